"""Column types that keep exact values exact on SQLite and PostgreSQL alike."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime. SQLite keeps it naive; a naive value going in is a bug and is refused."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime was about to be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    def __repr__(self) -> str:
        return "UtcDateTime()"


class Scaled(TypeDecorator[Decimal]):
    """A Decimal with a fixed number of places, stored as a whole number.

    SQLite has no exact decimals and would add up grams as floats; whole milligrams add up exactly everywhere.
    """

    impl = sa.BigInteger
    cache_ok = True

    def __init__(self, places: int) -> None:
        super().__init__()
        self.places = places
        self.unit = Decimal(1).scaleb(-places)

    def process_bind_param(self, value: Decimal | int | None, dialect: sa.Dialect) -> int | None:
        if value is None:
            return None
        return int(Decimal(value).quantize(self.unit, ROUND_HALF_UP).scaleb(self.places))

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> Decimal | None:
        return None if value is None else Decimal(value).scaleb(-self.places)

    def __repr__(self) -> str:
        return f"Scaled({self.places})"


# How many decimals a currency has where that is not two (ISO 4217).
CURRENCY_PLACES = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND"), 0),
    **dict.fromkeys(("VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}

GRAMS_PLACES = 3
MONEY_PLACES = 4
COST_PLACES = 10


def Grams() -> Scaled:
    """Grams to the milligram."""
    return Scaled(GRAMS_PLACES)


def Money() -> Scaled:
    """Money in some currency's major unit, to a hundredth of a cent; the currency stands beside it."""
    return Scaled(MONEY_PLACES)


def Cost() -> Scaled:
    """Grams times price per kilogram, exact: it is rounded on the way out only."""
    return Scaled(COST_PLACES)


def words(enum: type[StrEnum], name: str) -> sa.Enum:
    """A status column: the enum's words as text with a CHECK."""

    def values(members: type[StrEnum]) -> list[str]:
        return [member.value for member in members]

    return sa.Enum(enum, values_callable=values, native_enum=False, create_constraint=True, length=32, name=name)


def currency_number(amount: Decimal | None, currency: str) -> float | None:
    """Money on its way out: rounded half up to what the currency has."""
    if amount is None:
        return None
    return float(amount.quantize(Decimal(1).scaleb(-CURRENCY_PLACES.get(currency, 2)), ROUND_HALF_UP))
