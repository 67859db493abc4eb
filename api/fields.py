"""marshmallow fields that take exactly what their JSON Schema says: no "5" for a number, no 1 for true."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from models import MAX_ID

# No NUL (PostgreSQL refuses it) nor other C0 controls but tab and line ends.
TEXT_PATTERN = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$"
HEX_COLOR = re.compile(r"^#([0-9A-Fa-f]{6}|[0-9A-Fa-f]{8})$")
RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)?", re.ASCII)
# The finest that is stored of grams: less would be nothing.
LEAST = Decimal("0.001")


class Matches(validate.Regexp):
    """The whole text matches: Python's `$` alone lets a line end pass that JSON Schema's does not."""

    def __call__(self, value: Any) -> Any:
        if self.regex.fullmatch(value) is None:
            raise ValidationError(self._format_error(value))
        return value


class Int(fields.Integer):
    """A JSON integer: 5 and 5.0, but not "5" and not true."""

    def _validated(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or value != int(value):
            raise self.make_error("invalid")
        return int(value)


class Num(fields.Float):
    """A JSON number as an exact Decimal."""

    def _validated(self, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise self.make_error("invalid")
        return Decimal(str(value))


class Bool(fields.Boolean):
    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Text(fields.String):
    """A text of `low` to `high` characters without control characters; more than white space when `low` is above 0.

    `pattern` takes the place of the usual one and stands in the OpenAPI document, which has room for one: it must
    refuse control characters, too, and mean the same in Python and ECMAScript.
    """

    def __init__(
        self,
        low: int = 1,
        high: int = 255,
        *,
        trim: bool = True,
        pattern: str = TEXT_PATTERN,
        fault: str = "Holds a control character.",
        **kwargs: Any,
    ) -> None:
        checks = list(kwargs.pop("validate", []))
        super().__init__(validate=[validate.Length(low, high), Matches(pattern, error=fault), *checks], **kwargs)
        self._low, self._trim = low, trim

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        text = str(super()._deserialize(value, attr, data, **kwargs))
        if self._low and text and not text.strip():
            raise ValidationError("Holds nothing but white space.")
        return text.strip() if self._trim and text.strip() else text


class Word(fields.String):
    """One word out of a StrEnum (or of some of its members), as that member."""

    def __init__(self, enum: type[StrEnum], *, only: tuple[StrEnum, ...] | None = None, **kwargs: Any) -> None:
        self._members = {member.value: member for member in (only or tuple(enum))}
        super().__init__(validate=validate.OneOf(list(self._members)), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        return self._members.get(str(text), text)


class Moment(fields.DateTime):
    """An RFC 3339 time with any offset; without one it is taken as UTC. Always an aware UTC datetime inside."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(format="iso", **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> datetime:
        match = RFC3339.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValidationError("Not a time like 2026-11-21T09:30:00Z.")
        day, time, fraction, offset = match.groups()
        leap = time.endswith(":60")
        try:
            moment = datetime.fromisoformat(f"{day}T{time[:6] + '59' if leap else time}{(fraction or '')[:7]}")
            if offset and offset not in "Zz":
                moment = datetime.fromisoformat(moment.isoformat() + offset)
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValidationError("No such time.") from None
        if not 1970 <= moment.year <= 9998:
            raise ValidationError("Out of range.")
        return moment


def Id(**kwargs: Any) -> Int:
    """The id of a row."""
    return Int(validate=validate.Range(1, MAX_ID), **kwargs)


def Ranged(low: int, high: int, **kwargs: Any) -> Int:
    return Int(validate=validate.Range(low, high), **kwargs)


def RangedNum(low: float, high: float, *, above: bool = False, **kwargs: Any) -> Num:
    """From `low` to `high`; with `above`, more than `low` by at least what is stored."""
    least = Decimal(str(low)) + (LEAST if above else 0)
    return Num(validate=validate.Range(least, Decimal(str(high))), **kwargs)


def check_color(value: str | None) -> None:
    """A colour is free text; starting with # it must be #RRGGBB or #RRGGBBAA."""
    if value is not None and value.startswith("#") and not HEX_COLOR.match(value):
        raise ValidationError("A colour that starts with # is #RRGGBB or #RRGGBBAA.")


def Color(**kwargs: Any) -> Text:
    return Text(validate=[check_color], **kwargs)


class Body(Schema):
    """A JSON body. Unknown keys are refused, each by name."""

    # A client that always names JSON as its type, and has nothing to say, is understood.
    may_be_empty = False

    class Meta:
        ordered = True


class ErrorSchema(Schema):
    """Every answer that is not a success."""

    error = fields.String(required=True, metadata={"description": "A sentence for a person"})
    code = fields.String(required=True, metadata={"description": "A word for a program"})
    fields_ = fields.Dict(
        keys=fields.String(),
        values=fields.List(fields.String()),
        data_key="fields",
        metadata={"description": "What is wrong, field by field"},
    )
