"""Order lines that wait for a person before they are printed: `/api/orders/unmapped`."""

from __future__ import annotations

from typing import Any

from flask import Response
from marshmallow import fields

from api import context
from api.fields import Body, Moment
from api.lists import PageQuery, json_response
from api.orders import OrderSchema, read_order
from api.reading import Room
from auth import current_user_id, get_mine, mine
from errors import NotFound
from farm.line_plates import Why
from farm.order_plan import PlanRules
from farm.waiting_lines import Waiting, read_waiting
from models import Order, OrderItem, db

blueprint = Room("unmapped lines", __name__, url_prefix="/api/orders", description="Order lines that wait for a person")

# A product that sells well would fill the page with lines that one mapping puts right.
MAX_LINES = 20


class UnmappedLine(Body):
    order_id = fields.Integer(required=True)
    order_item_id = fields.Integer(required=True)
    quantity = fields.Integer(required=True)
    ship_by = Moment(required=True, allow_none=True)
    personalization = fields.String(required=True, allow_none=True)


class UnmappedSchema(Body):
    reason = fields.Enum(Why, by_value=True, required=True)
    message = fields.String(required=True)
    profile_ids = fields.List(fields.Integer(), required=True)
    shop_id = fields.Integer(required=True, allow_none=True)
    sku = fields.String(required=True, allow_none=True)
    etsy_listing_id = fields.String(required=True, allow_none=True)
    title = fields.String(required=True)
    options = fields.Dict(required=True)
    orders = fields.Integer(required=True)
    units = fields.Integer(required=True)
    ship_by = Moment(required=True, allow_none=True)
    lines = fields.List(fields.Nested(UnmappedLine), required=True)


class UnmappedListSchema(Body):
    unmapped = fields.List(fields.Nested(UnmappedSchema), required=True)
    total = fields.Integer(required=True)


def _represent(waiting: Waiting) -> dict[str, Any]:
    return {
        "reason": waiting.why,
        "message": waiting.sentence,
        "profile_ids": waiting.profile_ids,
        "shop_id": waiting.shop_id,
        "sku": waiting.sku,
        "etsy_listing_id": waiting.etsy_listing_id,
        "title": waiting.title,
        "options": waiting.options,
        "orders": len({line.order_id for line in waiting.lines}),
        "units": sum(line.quantity for line in waiting.lines),
        "ship_by": waiting.ship_by,
        "lines": [
            {
                "order_id": line.order_id,
                "order_item_id": line.order_item_id,
                "quantity": line.quantity,
                "ship_by": line.ship_by,
                "personalization": line.personalization,
            }
            for line in waiting.lines[:MAX_LINES]
        ],
    }


@blueprint.get("/unmapped")
@blueprint.arguments(PageQuery, location="query")
@blueprint.response(200, UnmappedListSchema)
def list_unmapped(args: dict[str, Any]) -> Response:
    """What keeps lines of paid orders from being printed, by product; the first to be shipped first."""
    oldest = PlanRules.from_settings(context.settings()).oldest
    found = read_waiting(current_user_id(), context.now() - oldest)
    rows = found[args["offset"] : args["offset"] + args["limit"]]
    return json_response({"unmapped": [_represent(each) for each in rows], "total": len(found)})


@blueprint.post("/<id:order_id>/items/<id:order_item_id>/personalization-seen")
@blueprint.response(200, OrderSchema)
def see_personalization(order_id: int, order_item_id: int) -> Response:
    """Say that a person has seen what the buyer wants on a line, and that it may be printed."""
    # The order first, as whoever imports it: the text must not become another one meanwhile.
    order = get_mine(Order, order_id, for_update=True)
    query = mine(OrderItem).where(OrderItem.order_id == order.id, OrderItem.id == order_item_id)
    line = db.session.execute(query.execution_options(populate_existing=True)).scalar_one_or_none()
    if line is None:
        raise NotFound
    if line.personalization is not None and line.personalization_seen_at is None:
        line.personalization_seen_at = order.updated_at = context.now()
    body = read_order(order_id)
    db.session.commit()
    return json_response(body)
