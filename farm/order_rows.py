"""Imported orders -> rows: a page of them in a handful of statements, and what is seen again changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import joinedload

from farm.order_import import ImportedLine, ImportedOrder
from farm.order_prints import link_profiles
from farm.shipping import LOST_TRACKING, say_tracking
from models import Customer, Order, OrderItem, OrderStatus, ProductionStatus, db

UNKNOWN_BUYER = "Etsy buyer"

KNOWN_ORDERS = (
    sa.select(Order)
    .where(
        Order.user_id == sa.bindparam("mine"),
        Order.shop_id == sa.bindparam("shop"),
        Order.etsy_order_id.in_(sa.bindparam("receipts", expanding=True)),
    )
    .options(joinedload(Order.items))
    .with_for_update(of=Order, key_share=True)
    .execution_options(populate_existing=True)
)
KNOWN_CUSTOMERS = sa.select(Customer).where(
    Customer.user_id == sa.bindparam("mine"), Customer.etsy_buyer_id.in_(sa.bindparam("buyers", expanding=True))
)


@dataclass(frozen=True, slots=True)
class Written:
    """Numbers of orders. What was there already, just so, is in neither."""

    created: int
    updated: int


def write_orders(
    user_id: int,
    shop_id: int,
    currency: str,
    imported: Sequence[ImportedOrder],
    *,
    asked_at: datetime,
    now: datetime,
    was_asked_by_id: bool = False,
) -> Written:
    """Write orders of one shop with their lines and customers. Flushes. `currency` is the shop's, where Etsy gave none;
    `asked_at` is from before the question went out: an order that was read by itself later than that is left alone."""
    # A receipt may stand twice in a page that moved while it was made.
    by_receipt = {each.etsy_order_id: each for each in imported}
    asked = {"mine": user_id, "shop": shop_id, "receipts": list(by_receipt)}
    known = {order.etsy_order_id: order for order in db.session.execute(KNOWN_ORDERS, asked).unique().scalars()}
    customers = _customers(user_id, list(by_receipt.values()), now)
    fresh, seen_again = [], []
    for receipt, each in by_receipt.items():
        order = known.get(receipt)
        if order is None:
            fresh.append(each)
        elif order.read_at is None or order.read_at <= asked_at:
            seen_again.append((order, each))
    changed_lines: list[OrderItem] = []
    updated = 0
    for order, each in seen_again:
        if _update(order, each, customers.get(each.buyer_user_id), currency, now):
            updated += 1
            changed_lines += order.items
        if was_asked_by_id:
            order.read_at = now
    db.session.flush()
    changed_lines += _insert(user_id, shop_id, fresh, customers, currency, now)
    if changed_lines:
        link_profiles(user_id, shop_id, changed_lines)
        db.session.flush()
    return Written(len(fresh), updated)


def _customers(user_id: int, imported: Sequence[ImportedOrder], now: datetime) -> dict[str | None, Customer]:
    """The buyers by their id at Etsy, those who are new among them."""
    buyers = {each.buyer_user_id: each for each in imported if each.buyer_user_id is not None}
    if not buyers:
        return {}
    asked = {"mine": user_id, "buyers": list(buyers)}
    known = db.session.execute(KNOWN_CUSTOMERS, asked).scalars().all()
    # In one order everywhere: two shops of one seller may meet the same new buyers at the same moment.
    missing = sorted(buyers.keys() - {each.etsy_buyer_id for each in known})
    if missing:
        insert = postgresql.insert if db.session.get_bind().dialect.name == "postgresql" else sqlite.insert
        rows = [
            {
                "user_id": user_id,
                "etsy_buyer_id": buyer,
                "name": buyers[buyer].buyer_name or UNKNOWN_BUYER,
                "email": buyers[buyer].buyer_email,
                "created_at": now,
                "updated_at": now,
            }
            for buyer in missing
        ]
        db.session.connection().execute(insert(Customer).on_conflict_do_nothing(), rows)
        known = db.session.execute(KNOWN_CUSTOMERS, asked).scalars().all()
    return {each.etsy_buyer_id: each for each in known}


def _name_customer(customer: Customer | None, imported: ImportedOrder, now: datetime) -> None:
    """As the buyer is called in what came in last."""
    if customer is None:
        return
    customer.name = imported.buyer_name or customer.name
    customer.email = imported.buyer_email or customer.email
    if db.session.is_modified(customer):
        customer.updated_at = now


def _facts(imported: ImportedOrder, customer: Customer | None, currency: str, before: Order | None) -> dict[str, Any]:
    """The columns of an order. Etsy withholds and overwrites: what was known stays where it gives nothing, and the
    ship-by as it was first seen, since that of a shipped line is the shipping time."""

    def kept(name: str) -> Any:
        return getattr(before, name) if before is not None else None

    facts = {
        "customer_id": customer.id if customer else kept("customer_id"),
        "buyer_name": imported.buyer_name or kept("buyer_name") or UNKNOWN_BUYER,
        "status": OrderStatus(imported.status),
        "etsy_status": imported.etsy_status[:64] if imported.etsy_status else None,
        "partially_refunded": imported.partially_refunded,
        "refunded_amount": imported.refunded_amount,
        "total_amount": imported.total_amount,
        "currency": imported.currency or kept("currency") or currency,
        "ship_by": kept("ship_by") or imported.ship_by,
        "shipped_at": imported.shipped_at or kept("shipped_at"),
        "tracking_number": imported.tracking_number or kept("tracking_number"),
        "carrier_name": imported.carrier_name or kept("carrier_name"),
        "is_gift": imported.is_gift,
        "gift_message": imported.gift_message,
        "gift_sender": imported.gift_sender,
        "message_from_buyer": imported.message_from_buyer,
        "message_from_seller": imported.message_from_seller,
        "ship_error": kept("ship_error"),
        "attention": kept("attention"),
        "production_status": kept("production_status") or ProductionStatus.new,
    }
    if facts["shipped_at"] is not None or imported.status == "completed":
        facts["production_status"] = ProductionStatus.shipped
    # A code that we sent and Etsy does not show may have been dropped there (issue 466 of etsy/open-api).
    is_lost = kept("tracking_number") and kept("ship_sent_at") and not kept("ship_confirmed_at")
    is_done = kept("status") is not OrderStatus.completed and not is_lost
    if imported.status == "completed" and (imported.tracking_number or is_done):
        # What was to be done there has been done.
        facts["ship_error"] = None
        if kept("tracking_number") and not kept("ship_sent_at") and not imported.tracking_number:
            # But for the code that is only known here.
            tracking = say_tracking(kept("tracking_number"), kept("carrier_name"))
            facts["ship_error"] = LOST_TRACKING.format(tracking=tracking)
    refunded_before = kept("refunded_amount") or 0
    if imported.refunded_amount and imported.refunded_amount > refunded_before and imported.status == "paid":
        facts["attention"] = (
            f"Refunded in part at Etsy ({imported.refunded_amount.normalize():f} {facts['currency']}): "
            "look what is still to be sent."
        )
    return facts


def _line_facts(line: ImportedLine, currency: str) -> dict[str, Any]:
    return {
        "etsy_listing_id": line.etsy_listing_id,
        "sku": line.sku,
        "title": line.title,
        "quantity": line.quantity,
        "price": line.price,
        "currency": line.currency or currency,
        "options": line.options,
        "personalization": line.personalization,
        "is_digital": line.is_digital,
    }


def _update(order: Order, imported: ImportedOrder, customer: Customer | None, currency: str, now: datetime) -> bool:
    """Whether anything was another than before."""
    for name, value in _facts(imported, customer, currency, order).items():
        setattr(order, name, value)
    lines = {item.etsy_transaction_id: item for item in order.items}
    is_changed = False
    for line in imported.lines:
        item = lines.get(line.etsy_transaction_id)
        if item is None:
            item = OrderItem(user_id=order.user_id, etsy_transaction_id=line.etsy_transaction_id)
            order.items.append(item)
            is_changed = True
        elif item.personalization != line.personalization:
            # What a person has let pass was another text.
            item.personalization_seen_at = None
        for name, value in _line_facts(line, order.currency).items():
            setattr(item, name, value)
        is_changed = is_changed or db.session.is_modified(item)
    is_changed = is_changed or db.session.is_modified(order)
    if is_changed:
        order.updated_at = now
        _name_customer(customer, imported, now)
    return is_changed


def _insert(
    user_id: int,
    shop_id: int,
    fresh: Sequence[ImportedOrder],
    customers: dict[str | None, Customer],
    currency: str,
    now: datetime,
) -> list[OrderItem]:
    """The lines of the orders that were not here yet; both are written in one statement each."""
    if not fresh:
        return []
    rows, lines = [], []
    for each in fresh:
        customer = customers.get(each.buyer_user_id)
        _name_customer(customer, each, now)
        rows.append(
            {
                "user_id": user_id,
                "shop_id": shop_id,
                "etsy_order_id": each.etsy_order_id,
                "ordered_at": each.ordered_at or now,
                "created_at": now,
                "updated_at": now,
                **_facts(each, customer, currency, None),
            }
        )
    # Else a row with a NULL more than its neighbour would be a statement of its own.
    whole = {"render_nulls": True}
    returned = sa.insert(Order).returning(Order.id, Order.etsy_order_id, Order.currency)
    made = {row.etsy_order_id: row for row in db.session.execute(returned, rows, execution_options=whole)}
    for each in fresh:
        order = made[each.etsy_order_id]
        lines += [
            {
                "user_id": user_id,
                "order_id": order.id,
                "etsy_transaction_id": line.etsy_transaction_id,
                **_line_facts(line, order.currency),
            }
            for line in each.lines
        ]
    if not lines:
        return []
    return list(db.session.scalars(sa.insert(OrderItem).returning(OrderItem), lines, execution_options=whole))
