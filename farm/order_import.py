"""An Etsy receipt, read: the ShopReceipt of Etsy's API v3 as an order of ours, whatever is missing or wrong in it.

Almost no field of a receipt is required by Etsy's own schema and texts come from buyers, so nothing here is trusted:
a field of the wrong type counts as absent. Pure: no clock, no database.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from types import MappingProxyType
from typing import Any

from etsy_client import EARLIEST_EPOCH_SECONDS, LARGEST_ID, LATEST_EPOCH_SECONDS, is_currency, plain_text

TEXT_LIMIT = 255
MESSAGE_LIMIT = 2000
QUANTITY_LIMIT = 10_000
VARIATION_LIMIT = 50  # Etsy: two options and five personalization questions
PERSONALIZATION_PROPERTY = "54"
# What Etsy writes where the buyer left a personalization empty (issue 260 of etsy/open-api): no wish of anybody's.
NOT_PERSONALIZED = "not requested on this item"
LARGEST_AMOUNT = Decimal("9999999999.99")
FINEST_AMOUNT = Decimal("0.0001")

# Etsy's schema writes them in lower case, the live service capitalised ("Paid"): compared case-folded.
STATUSES: Mapping[str, str] = MappingProxyType(
    {
        "open": "open",
        "payment processing": "open",
        "paid": "paid",
        "partially refunded": "paid",
        "completed": "completed",
        "canceled": "canceled",
        "fully refunded": "refunded",
    }
)


class BadReceipt(ValueError):
    """Not a receipt that an order can be made of; `reason` is a fixed sentence without any of its texts."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ImportedLine:
    """One bought listing. `etsy_transaction_id` is unique within its order: where Etsy gave none, or one twice, it is
    `<receipt id>-<position>`, so that the next sync finds the same line. `quantity` is 1 to 10,000, `price` per unit.
    `options` are the buyer's choices by name, without the personalization."""

    etsy_transaction_id: str
    etsy_listing_id: str | None
    sku: str | None
    title: str
    quantity: int
    price: Decimal | None
    currency: str | None
    options: dict[str, str]
    personalization: str | None
    is_digital: bool


@dataclass(frozen=True, slots=True)
class ImportedOrder:
    """`status` is open, paid, completed, canceled or refunded, `etsy_status` Etsy's own word. Times are aware UTC.

    `ship_by` is the earliest over the lines not yet shipped, so None once all are: Etsy overwrites a line's ship-by
    with the shipping time, hence a stored one is kept and not replaced by None. `shipped_at` is None until all are.
    `address` has the keys first_line, second_line, city, state, postal_code, country_code and formatted; Etsy withholds
    it, `buyer_name` and `buyer_email` from many applications. `total_amount` is the grand total, `refunded_amount` what
    went back of it, None where nothing did. `tracking_number` and `carrier_name` are those of the last parcel.
    """

    etsy_order_id: str
    buyer_user_id: str | None
    buyer_name: str | None
    buyer_email: str | None
    status: str
    etsy_status: str | None
    partially_refunded: bool
    refunded_amount: Decimal | None
    total_amount: Decimal | None
    currency: str | None
    ship_by: datetime | None
    ordered_at: datetime | None
    updated_at: datetime | None
    shipped_at: datetime | None
    tracking_number: str | None
    carrier_name: str | None
    is_gift: bool
    gift_message: str | None
    gift_sender: str | None
    message_from_buyer: str | None
    message_from_seller: str | None
    address: dict[str, str | None]
    lines: tuple[ImportedLine, ...]


def read_receipt(receipt: object) -> ImportedOrder:
    """The order in a ShopReceipt as parsed from JSON. BadReceipt when it is no object or has no usable receipt_id."""
    if not isinstance(receipt, dict):
        raise BadReceipt("a receipt is an object")
    etsy_order_id = _id(receipt.get("receipt_id"))
    if etsy_order_id is None:
        raise BadReceipt("a receipt needs a receipt_id")
    transactions = _objects(receipt.get("transactions"))
    shipments = _objects(receipt.get("shipments"))
    etsy_status = plain_text(receipt.get("status"), TEXT_LIMIT)
    word = (etsy_status or "").casefold()
    total_amount, currency = _money(receipt.get("grandtotal"))
    refunded_amount = _refunded(receipt.get("refunds"))
    # The word can lag behind the money (issue 513 of etsy/open-api).
    is_all_refunded = bool(refunded_amount and total_amount and refunded_amount >= total_amount)
    status = STATUSES.get(word, "open")
    carrier_name, tracking_number = _tracking(shipments)
    return ImportedOrder(
        etsy_order_id=etsy_order_id,
        buyer_user_id=_id(receipt.get("buyer_user_id")),
        buyer_name=plain_text(receipt.get("name"), TEXT_LIMIT),
        buyer_email=_email(receipt.get("buyer_email")),
        # An unknown word must not look paid: a paid order may be printed.
        status="refunded" if is_all_refunded and status == "paid" else status,
        etsy_status=etsy_status,
        partially_refunded=word == "partially refunded" or (refunded_amount is not None and not is_all_refunded),
        refunded_amount=refunded_amount,
        total_amount=total_amount,
        currency=currency,
        ship_by=_ship_by(receipt, transactions),
        ordered_at=_first_time(receipt, "created_timestamp", "create_timestamp"),
        updated_at=_first_time(receipt, "updated_timestamp", "update_timestamp"),
        shipped_at=_shipped_at(receipt, transactions, shipments),
        tracking_number=tracking_number,
        carrier_name=carrier_name,
        is_gift=receipt.get("is_gift") is True,
        gift_message=plain_text(receipt.get("gift_message"), MESSAGE_LIMIT, multiline=True),
        gift_sender=plain_text(receipt.get("gift_sender"), TEXT_LIMIT),
        message_from_buyer=plain_text(receipt.get("message_from_buyer"), MESSAGE_LIMIT, multiline=True),
        message_from_seller=plain_text(receipt.get("message_from_seller"), MESSAGE_LIMIT, multiline=True),
        address={
            "first_line": plain_text(receipt.get("first_line"), TEXT_LIMIT),
            "second_line": plain_text(receipt.get("second_line"), TEXT_LIMIT),
            "city": plain_text(receipt.get("city"), TEXT_LIMIT),
            "state": plain_text(receipt.get("state"), TEXT_LIMIT),
            "postal_code": plain_text(receipt.get("zip"), TEXT_LIMIT),
            "country_code": plain_text(receipt.get("country_iso"), TEXT_LIMIT),
            "formatted": plain_text(receipt.get("formatted_address"), MESSAGE_LIMIT, multiline=True),
        },
        lines=_lines(etsy_order_id, transactions),
    )


def _lines(etsy_order_id: str, transactions: list[dict[str, Any]]) -> tuple[ImportedLine, ...]:
    taken: set[str] = set()
    lines = []
    for position, transaction in enumerate(transactions, start=1):
        transaction_id = _id(transaction.get("transaction_id"))
        if transaction_id is None or transaction_id in taken:
            transaction_id = f"{etsy_order_id}-{position}"
        taken.add(transaction_id)
        lines.append(_line(transaction_id, transaction))
    return tuple(lines)


def _line(transaction_id: str, transaction: dict[str, Any]) -> ImportedLine:
    sku = plain_text(transaction.get("sku"), TEXT_LIMIT)
    price, currency = _money(transaction.get("price"))
    variations = _objects(transaction.get("variations"))[:VARIATION_LIMIT]
    return ImportedLine(
        etsy_transaction_id=transaction_id,
        etsy_listing_id=_id(transaction.get("listing_id")),
        sku=sku,
        title=plain_text(transaction.get("title"), TEXT_LIMIT) or sku or "Untitled",
        quantity=_quantity(transaction.get("quantity")),
        price=price,
        currency=currency,
        options=_options([choice for choice in variations if not _is_personalization(choice)]),
        personalization=_personalization([choice for choice in variations if _is_personalization(choice)]),
        is_digital=transaction.get("is_digital") is True,
    )


def _is_personalization(variation: dict[str, Any]) -> bool:
    """Property 54; since May 2026 also known by its question_id, and named as the seller's question."""
    return _id(variation.get("property_id")) == PERSONALIZATION_PROPERTY or bool(_id(variation.get("question_id")))


def _options(variations: list[dict[str, Any]]) -> dict[str, str]:
    options: dict[str, str] = {}
    for variation in variations:
        value = plain_text(variation.get("formatted_value"), TEXT_LIMIT)
        if value is None:
            continue
        name = plain_text(variation.get("formatted_name"), TEXT_LIMIT) or "Option"
        # A seller may call both of a listing's custom properties the same.
        number = 1
        label = name
        while label in options:
            number += 1
            label = f"{name[: TEXT_LIMIT - 5]} ({number})"
        options[label] = value
    return options


def _personalization(variations: list[dict[str, Any]]) -> str | None:
    """The only answer as it stands, or several, each as `question: answer` on a line of its own."""
    answers = [
        (plain_text(variation.get("formatted_name"), TEXT_LIMIT), answer)
        for variation in variations
        if (answer := plain_text(variation.get("formatted_value"), MESSAGE_LIMIT, multiline=True))
        and answer.rstrip(".").casefold() != NOT_PERSONALIZED
    ]
    if len(answers) == 1:
        return answers[0][1]
    text = "\n".join(f"{question}: {answer}" if question else answer for question, answer in answers)
    return text[:MESSAGE_LIMIT].rstrip() or None


def _ship_by(receipt: dict[str, Any], transactions: list[dict[str, Any]]) -> datetime | None:
    if receipt.get("is_shipped") is True:
        return None
    waiting = [line for line in _physical(transactions) if _time(line.get("shipped_timestamp")) is None]
    return min((at for line in waiting if (at := _time(line.get("expected_ship_date")))), default=None)


def _shipped_at(
    receipt: dict[str, Any], transactions: list[dict[str, Any]], shipments: list[dict[str, Any]]
) -> datetime | None:
    """The lines' own time first: a shipment's notification can be cut to the day and precede the order itself."""
    shipped = [_time(line.get("shipped_timestamp")) for line in _physical(transactions) or transactions]
    if receipt.get("is_shipped") is not True and (not shipped or None in shipped):
        return None
    notified = [_time(shipment.get("shipment_notification_timestamp")) for shipment in shipments]
    known = [at for at in shipped if at] or [at for at in notified if at]
    return max(known, default=None)


def tracking_codes(receipt: object) -> tuple[str, ...]:
    """The tracking codes that a ShopReceipt holds, of all its parcels."""
    shipments = _objects(receipt.get("shipments")) if isinstance(receipt, dict) else []
    return tuple(code for each in shipments if (code := plain_text(each.get("tracking_code"), TEXT_LIMIT)))


def _tracking(shipments: list[dict[str, Any]]) -> tuple[str | None, str | None]:
    """(carrier, code) of the last shipment that has a code."""
    found = [
        (plain_text(shipment.get("carrier_name"), TEXT_LIMIT), code)
        for shipment in shipments
        if (code := plain_text(shipment.get("tracking_code"), TEXT_LIMIT))
    ]
    return found[-1] if found else (None, None)


def _refunded(refunds: object) -> Decimal | None:
    amounts = [_money(refund.get("amount"))[0] for refund in _objects(refunds)]
    total = sum((amount for amount in amounts if amount), Decimal(0))
    return min(total, LARGEST_AMOUNT) or None


def _physical(transactions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in transactions if line.get("is_digital") is not True]


def _money(value: object) -> tuple[Decimal | None, str | None]:
    """Etsy's Money `{amount, divisor, currency_code}`: the divisor is not always 100, and may be 0."""
    if not isinstance(value, dict):
        return None, None
    code = value.get("currency_code")
    currency = code if is_currency(code) else None
    amount, divisor = _whole(value.get("amount")), _whole(value.get("divisor"))
    if amount is None or not divisor:
        return None, currency
    number = Decimal(amount) / Decimal(divisor)
    if number > LARGEST_AMOUNT:
        return None, currency
    rounded = number.quantize(FINEST_AMOUNT, ROUND_HALF_UP)
    return (number if number == rounded else rounded), currency


def _quantity(value: object) -> int:
    """A line is kept even with a senseless quantity; 1 is then the least that a person has to notice and correct."""
    if isinstance(value, bool) or not isinstance(value, int):
        return 1
    return min(max(value, 1), QUANTITY_LIMIT)


def _email(value: object) -> str | None:
    text = plain_text(value, TEXT_LIMIT + 1)
    return text if text and len(text) <= TEXT_LIMIT and re.fullmatch(r"[^@\s]+@[^@\s]+", text) else None


def _first_time(source: dict[str, Any], *names: str) -> datetime | None:
    return next((at for name in names if (at := _time(source.get(name)))), None)


def _time(value: object) -> datetime | None:
    seconds = _whole(value)
    if seconds is None or not EARLIEST_EPOCH_SECONDS <= seconds <= LATEST_EPOCH_SECONDS:
        return None
    return datetime.fromtimestamp(seconds, UTC)


def _id(value: object) -> str | None:
    """A positive 64-bit id, as digits; Etsy has sent ids both as numbers and as strings."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value):
        value = int(value)
    number = _whole(value)
    return str(number) if number else None


def _whole(value: object) -> int | None:
    """A whole number from 0 to the largest of 64 bits."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_ID else None


def _objects(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
