"""Receipts in the shape in which Etsy sends them, from the few facts that a test or a demo cares about. Never ships."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

Receipt = dict[str, Any]

ORDERED_AT = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
FIRST_CUSTOM_PROPERTY = 513
PERSONALIZATION_PROPERTY = 54


@dataclass(frozen=True, slots=True)
class ReceiptLine:
    """One transaction. `price` is per unit; `personalization` is one answer, or the answers by question."""

    title: str
    sku: str | None = None
    quantity: int = 1
    price: Decimal = Decimal("12.50")
    variations: Mapping[str, str] = field(default_factory=dict)
    personalization: str | Mapping[str, str] | None = None
    is_digital: bool = False
    ship_by: datetime | None = None


def make_receipt(
    *,
    receipt_id: int,
    lines: Sequence[ReceiptLine],
    status: str = "Paid",
    ordered_at: datetime = ORDERED_AT,
    updated_at: datetime | None = None,
    shipped_at: datetime | None = None,
    buyer_user_id: int = 900_000_101,
    seller_user_id: int = 900_000_001,
    name: str = "Robin Example",
    buyer_email: str | None = None,
    country: str = "DE",
    currency: str = "EUR",
    divisor: int = 100,
    shipping_cost: Decimal = Decimal("4.90"),
    discount: Decimal = Decimal(0),
    refund: Decimal = Decimal(0),
    tracking: tuple[str, str] | None = None,
    is_gift: bool = False,
    gift_message: str = "",
    gift_sender: str = "",
    message_from_seller: str | None = None,
    message_from_buyer: str | None = None,
) -> Receipt:
    """A ShopReceipt in the true shape. `status` in Etsy's live spelling (Paid, Completed, Canceled, Open ...); a
    `Completed` one is shipped at `shipped_at`, else at `updated_at`. `tracking` is carrier and code. The sums agree."""
    created, updated = epoch_seconds(ordered_at), epoch_seconds(updated_at or ordered_at)
    is_paid = status.casefold() not in ("open", "payment processing")
    is_shipped = status.casefold() == "completed"
    shipped = epoch_seconds(shipped_at) if shipped_at else updated if is_shipped else None

    def money(value: Decimal) -> dict[str, object]:
        return {"amount": int(value * divisor), "divisor": divisor, "currency_code": currency}

    def transaction(position: int, line: ReceiptLine) -> dict[str, Any]:
        listing_id = _value_id(line.title)
        return {
            "transaction_id": receipt_id * 10 + position,
            "title": line.title,
            "description": "",
            "seller_user_id": seller_user_id,
            "buyer_user_id": buyer_user_id,
            "create_timestamp": created,
            "created_timestamp": created,
            "paid_timestamp": created if is_paid else None,
            "shipped_timestamp": shipped,
            "quantity": line.quantity,
            "listing_image_id": None,
            "receipt_id": receipt_id,
            "is_digital": line.is_digital,
            "file_data": "",
            "listing_id": listing_id,
            "transaction_type": "listing",
            "product_id": listing_id + 1,
            "sku": line.sku,
            "price": money(line.price),
            "shipping_cost": money(Decimal(0)),
            "variations": _variations(line),
            "product_data": [
                {
                    "property_id": FIRST_CUSTOM_PROPERTY + index,
                    "property_name": option,
                    "scale_id": None,
                    "scale_name": None,
                    "value_ids": [_value_id(value)],
                    "values": [value],
                }
                for index, (option, value) in enumerate(line.variations.items())
            ],
            "shipping_profile_id": None if line.is_digital else 1,
            "min_processing_days": 1,
            "max_processing_days": 3,
            "shipping_method": None,
            "shipping_upgrade": None,
            # Seen in every shipped capture: the ship-by is overwritten with the shipping time.
            "expected_ship_date": shipped or epoch_seconds(line.ship_by or ordered_at + timedelta(days=3)),
            "buyer_coupon": 0,
            "shop_coupon": 0,
        }

    total_price = sum((line.price * line.quantity for line in lines), Decimal(0))
    subtotal = total_price - discount
    shipment = {"receipt_shipping_id": receipt_id * 10, "shipment_notification_timestamp": shipped or updated}
    return {
        "receipt_id": receipt_id,
        "receipt_type": 0,
        "seller_user_id": seller_user_id,
        "seller_email": "seller@example.com",
        "buyer_user_id": buyer_user_id,
        "buyer_email": buyer_email,
        "name": name,
        "first_line": "1 Example Street",
        "second_line": None,
        "city": "Sampletown",
        "state": "",
        "zip": "10115",
        "status": status,
        "formatted_address": f"{name}\n1 Example Street\n10115 SAMPLETOWN",
        "country_iso": country,
        "payment_method": "cc",
        "payment_email": None,
        "message_from_payment": None,
        "message_from_seller": message_from_seller,
        "message_from_buyer": message_from_buyer,
        "is_shipped": is_shipped,
        "is_paid": is_paid,
        "create_timestamp": created,
        "created_timestamp": created,
        "update_timestamp": updated,
        "updated_timestamp": updated,
        "is_gift": is_gift,
        "gift_message": gift_message,
        "gift_sender": gift_sender,
        "grandtotal": money(subtotal + shipping_cost),
        "subtotal": money(subtotal),
        "total_price": money(total_price),
        "total_shipping_cost": money(shipping_cost),
        "total_tax_cost": money(Decimal(0)),
        "total_vat_cost": money(Decimal(0)),
        "discount_amt": money(discount),
        "gift_wrap_price": money(Decimal(0)),
        "shipments": [{**shipment, "carrier_name": tracking[0], "tracking_code": tracking[1]}] if tracking else [],
        "transactions": [transaction(position, line) for position, line in enumerate(lines, start=1)],
        "refunds": [{"amount": money(refund), "created_timestamp": updated, "reason": None}] if refund else [],
    }


def demo_receipts(now: datetime) -> list[Receipt]:
    """Three orders of the last hours: options and quantity, personalization, and one that waits for its payment."""
    vase = ReceiptLine("Spiral vase", "VASE-01", 2, Decimal("18.00"), {"Color": "White"})
    sign = ReceiptLine("Door sign", "SIGN-01", 1, Decimal("24.50"), {"Color": "Black"}, "Familie Müller")
    clip = ReceiptLine("Cable clip, set of 10", "CLIP-10", 1, Decimal("7.90"))
    return [
        make_receipt(receipt_id=3_100_000_001, lines=[vase], ordered_at=now - timedelta(hours=5)),
        make_receipt(receipt_id=3_100_000_002, lines=[sign, clip], ordered_at=now - timedelta(hours=2), is_gift=True),
        make_receipt(receipt_id=3_100_000_003, lines=[clip], ordered_at=now - timedelta(hours=1), status="Open"),
    ]


def epoch_seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _variations(line: ReceiptLine) -> list[dict[str, object]]:
    variations: list[dict[str, object]] = [
        {
            "property_id": FIRST_CUSTOM_PROPERTY + index,
            "value_id": _value_id(value),
            "formatted_name": name,
            "formatted_value": value,
        }
        for index, (name, value) in enumerate(line.variations.items())
    ]
    given = line.personalization
    answers = {"Personalization": given} if isinstance(given, str) else given or {}
    return variations + [
        {
            "property_id": PERSONALIZATION_PROPERTY,
            "value_id": None,
            "formatted_name": question,
            "formatted_value": answer,
            "question_id": _value_id(question),
        }
        for question, answer in answers.items()
    ]


def _value_id(value: str) -> int:
    return 1_000_000_000 + zlib.crc32(value.encode("utf-8", "replace"))
