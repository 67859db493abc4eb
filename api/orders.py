"""Orders: `/api/orders`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from flask import Response, g
from marshmallow import ValidationError, fields, validate

import etsy_api
from api import context
from api.fields import Body, Moment, Num, Ranged, RangedNum, Text, Word
from api.lists import Columns, PageQuery, QueryInt, json_response, page
from api.once import once
from api.plans import ScheduleRequest, Skipped, plan_rules, skipped_lines
from api.print_schemas import PrintSchema, read_prints
from api.reading import Room
from auth import current_user_id, get_mine, mine, mine_prepared
from columns import currency_number
from errors import Invalid
from farm.order_prints import link_profiles
from models import (
    Customer,
    Order,
    OrderItem,
    OrderStatus,
    ProductionStatus,
    ScheduledPrint,
    db,
)

blueprint = Room("orders", __name__, url_prefix="/api/orders", description="Orders and the prints that fulfil them")


def _finish_order(row: dict[str, Any]) -> None:
    for name in ("total_amount", "refunded_amount"):
        if row[name] is not None:
            row[name] = currency_number(Decimal(str(row[name])), row["currency"])


def _finish_item(row: dict[str, Any]) -> None:
    if row["price"] is not None:
        row["price"] = currency_number(Decimal(str(row["price"])), row["currency"])
    row["options"] = row["options"] or {}


COLUMNS = Columns(
    Order,
    *("id", "shop_id", "customer_id", "etsy_order_id", "buyer_name", "status", "etsy_status", "partially_refunded"),
    *("production_status", "total_amount", "currency", "ship_by", "ordered_at", "shipped_at", "tracking_number"),
    *("carrier_name", "ship_error", "attention", "refunded_amount"),
    *(
        "is_gift",
        "gift_message",
        "gift_sender",
        "message_from_buyer",
        "message_from_seller",
        "created_at",
        "updated_at",
    ),
    finish=_finish_order,
)
ITEM_COLUMNS = Columns(
    OrderItem,
    *("id", "order_id", "etsy_transaction_id", "etsy_listing_id", "sku", "title", "quantity", "price", "currency"),
    *("options", "personalization", "personalization_seen_at", "is_digital", "profile_id"),
    finish=_finish_item,
)


class OrderItemSchema(Body):
    id = fields.Integer(required=True)
    order_id = fields.Integer(required=True)
    etsy_transaction_id = fields.String(required=True, allow_none=True)
    etsy_listing_id = fields.String(required=True, allow_none=True)
    sku = fields.String(required=True, allow_none=True)
    title = fields.String(required=True)
    quantity = fields.Integer(required=True)
    price = Num(required=True, allow_none=True)
    currency = fields.String(required=True)
    options = fields.Dict(required=True)
    personalization = fields.String(required=True, allow_none=True)
    personalization_seen_at = Moment(required=True, allow_none=True)
    is_digital = fields.Boolean(required=True)
    profile_id = fields.Integer(required=True, allow_none=True)
    prints = fields.Dict(
        keys=fields.String(), values=fields.Integer(), required=True, metadata={"description": "Counts by status"}
    )


class OrderSchema(Body):
    id = fields.Integer(required=True)
    shop_id = fields.Integer(required=True, allow_none=True)
    customer_id = fields.Integer(required=True, allow_none=True)
    etsy_order_id = fields.String(required=True, allow_none=True)
    buyer_name = fields.String(required=True)
    status = fields.Enum(OrderStatus, by_value=True, required=True)
    etsy_status = fields.String(required=True, allow_none=True)
    partially_refunded = fields.Boolean(required=True)
    production_status = fields.Enum(ProductionStatus, by_value=True, required=True)
    total_amount = Num(required=True, allow_none=True)
    currency = fields.String(required=True)
    ship_by = Moment(required=True, allow_none=True)
    ordered_at = Moment(required=True)
    shipped_at = Moment(required=True, allow_none=True)
    tracking_number = fields.String(required=True, allow_none=True)
    carrier_name = fields.String(required=True, allow_none=True)
    ship_error = fields.String(
        required=True, allow_none=True, metadata={"description": "What a person has to do at Etsy"}
    )
    attention = fields.String(required=True, allow_none=True)
    refunded_amount = Num(required=True, allow_none=True)
    is_gift = fields.Boolean(required=True)
    gift_message = fields.String(required=True, allow_none=True)
    gift_sender = fields.String(required=True, allow_none=True)
    message_from_buyer = fields.String(required=True, allow_none=True)
    message_from_seller = fields.String(required=True, allow_none=True)
    created_at = Moment(required=True)
    updated_at = Moment(required=True)
    items = fields.List(fields.Nested(OrderItemSchema), required=True)


class OrdersSchema(Body):
    orders = fields.List(fields.Nested(OrderSchema), required=True)
    total = fields.Integer(required=True)


def _check_texts(options: Mapping[str, str]) -> None:
    if len(options) > 50:
        raise ValidationError("At most 50 options.")


def OptionsField(**kwargs: Any) -> fields.Dict:
    """The buyer's choices, name to value."""
    return fields.Dict(keys=Text(), values=Text(), validate=_check_texts, **kwargs)


class NewOrderItem(Body):
    title = Text(required=True)
    quantity = Ranged(1, 10_000, required=True)
    price = RangedNum(0, 1_000_000_000, allow_none=True)
    sku = Text(allow_none=True)
    options = OptionsField()


class NewOrder(Body):
    buyer_name = Text(required=True)
    items = fields.List(fields.Nested(NewOrderItem), required=True, validate=validate.Length(1, 500))
    currency = Text(
        3,
        3,
        pattern=r"^[A-Z]{3}$",
        fault="Not an ISO 4217 code.",
        metadata={"description": "ISO 4217; else the user's"},
    )
    ship_by = Moment(allow_none=True)
    status = Word(OrderStatus, load_default=OrderStatus.paid)


class DayOrMoment(Moment):
    """A time, or a day (its beginning in UTC; as `end_date` the whole day)."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        if isinstance(value, str) and len(value) == 10:
            try:
                day = datetime.combine(date.fromisoformat(value), time(), UTC)
                return day + timedelta(days=1, microseconds=-1) if attr == "end_date" else day
            except (ValueError, OverflowError):
                raise ValidationError("No such day.") from None
        # In a query string a plus sign means a space.
        return super()._deserialize(value.replace(" ", "+") if isinstance(value, str) else value, attr, data, **kwargs)


class OrdersQuery(PageQuery):
    status = Word(OrderStatus)
    production_status = Word(ProductionStatus)
    start_date = DayOrMoment()
    end_date = DayOrMoment()
    product = Text()
    customer_id = QueryInt()
    ship_by_before = DayOrMoment()


def _with_items(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each order with its lines and their prints' counts: two statements, however many orders."""
    ids = [row["id"] for row in rows]
    counts: dict[int, dict[str, int]] = {}
    for item_id, status, count in db.session.execute(
        mine(ScheduledPrint, ScheduledPrint.order_item_id, ScheduledPrint.status, sa.func.count())
        .where(ScheduledPrint.order_id.in_(ids))
        .group_by(ScheduledPrint.order_item_id, ScheduledPrint.status)
    ):
        counts.setdefault(item_id, {})[status.value] = count
    items: dict[int, list[dict[str, Any]]] = {}
    for item in ITEM_COLUMNS.all(mine(OrderItem).where(OrderItem.order_id.in_(ids)).order_by(OrderItem.id)):
        items.setdefault(item["order_id"], []).append(item | {"prints": counts.get(item["id"], {})})
    return [row | {"items": items.get(row["id"], [])} for row in rows]


def read_order(order_id: int) -> dict[str, Any]:
    """One of the current user's orders with its lines, as it goes out. Flushes first."""
    db.session.flush()
    return _with_items([COLUMNS.one(mine(Order).where(Order.id == order_id))])[0]


@blueprint.get("")
@blueprint.arguments(OrdersQuery, location="query")
@blueprint.response(200, OrdersSchema)
def list_orders(args: dict[str, Any]) -> Response:
    """Orders, newest first. `product` looks for a text in the lines' titles."""
    query = mine(Order).order_by(Order.ordered_at.desc(), Order.id.desc())
    for name in ("status", "production_status", "customer_id"):
        if name in args:
            query = query.where(getattr(Order, name) == args[name])
    if "start_date" in args:
        query = query.where(Order.ordered_at >= args["start_date"])
    if "end_date" in args:
        query = query.where(Order.ordered_at <= args["end_date"])
    if "ship_by_before" in args:
        query = query.where(Order.ship_by < args["ship_by_before"])
    if "product" in args:
        matching = mine(OrderItem, OrderItem.order_id).where(
            OrderItem.title.icontains(args["product"], autoescape=True)
        )
        query = query.where(Order.id.in_(matching))
    rows, total = page(COLUMNS, query, args["limit"], args["offset"])
    return json_response({"orders": _with_items(rows), "total": total})


@blueprint.post("")
@once
@blueprint.arguments(NewOrder)
@blueprint.response(201, OrderSchema)
def add_order(data: dict[str, Any]) -> Response:
    """Enter an order by hand."""
    at, user_id = context.now(), current_user_id()
    currency = data.get("currency") or g.currency
    customer = Customer(user_id=user_id, name=data["buyer_name"], created_at=at, updated_at=at)
    db.session.add(customer)
    db.session.flush()
    lines = data["items"]
    prices = [line["price"] * line["quantity"] for line in lines if line.get("price") is not None]
    order = Order(
        user_id=user_id,
        customer_id=customer.id,
        buyer_name=data["buyer_name"],
        status=data["status"],
        total_amount=sum(prices, Decimal(0)) if len(prices) == len(lines) else None,
        currency=currency,
        ship_by=data.get("ship_by"),
        ordered_at=at,
        created_at=at,
        updated_at=at,
        items=[
            OrderItem(
                user_id=user_id,
                title=line["title"],
                quantity=line["quantity"],
                price=line.get("price"),
                sku=line.get("sku"),
                options=line.get("options") or {},
                currency=currency,
            )
            for line in lines
        ],
    )
    if order.total_amount is not None and order.total_amount > 10**13:
        raise Invalid({"items": ["The total is out of range."]})
    db.session.add(order)
    db.session.flush()
    link_profiles(user_id, None, order.items)
    return json_response(read_order(order.id), 201)


@blueprint.get("/<id:order_id>")
@blueprint.response(200, OrderSchema)
def get_order(order_id: int) -> Response:
    """One order with its lines."""
    get_mine(Order, order_id)
    return json_response(read_order(order_id))


class ScheduleAnswer(Body):
    message = fields.String(required=True)
    prints = fields.List(fields.Nested(PrintSchema), required=True)
    skipped = fields.List(fields.Nested(Skipped), required=True)


DIGITAL = (
    mine_prepared(OrderItem)
    .where(OrderItem.order_id == sa.bindparam("order"), OrderItem.is_digital)
    .order_by(OrderItem.id)
    .with_only_columns(OrderItem.id)
)


@blueprint.post("/<id:order_id>/schedule-prints")
@once
@blueprint.arguments(ScheduleRequest)
@blueprint.response(201, ScheduleAnswer)
def schedule_prints(data: dict[str, Any], order_id: int) -> Response:
    """Queue the prints of an order: on one printer, one after the other, or with "auto" on whichever printers have it
    done first. All or nothing."""
    user_id = current_user_id()
    prints = etsy_api.schedule_order_prints(
        user_id,
        order_id,
        data["printer_id"],
        data.get("material_type"),
        data["start_offset_minutes"],
        now=context.now(),
        rules=plan_rules(),
    )
    rows = read_prints([each.id for each in prints])
    digital = db.session.execute(DIGITAL, {"mine": user_id, "order": order_id}).scalars()
    answer = {
        "message": f"Scheduled {len(rows)} print jobs",
        "prints": rows,
        "skipped": skipped_lines(list(digital)),
    }
    return json_response(answer, 201)
