"""Shipping an order and what is printed on paper for it: `/api/orders/<id>/ship`, `/packing-slip`, `/job-tickets`."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from flask import Response
from marshmallow import ValidationError, fields, validates_schema

from api import context, slips
from api.fields import Body, Bool, Text
from api.lists import json_response
from api.orders import OrderSchema, read_order
from api.reading import Room
from auth import current_user_id, get_mine, mine
from etsy_shipping import Parcel, ship_order
from farm.staffed import zone_names
from models import BambuMaterial, Order, OrderStatus, Printer, PrintFile, ScheduledPrint, Shop, User, db

blueprint = Room("shipping", __name__, url_prefix="/api/orders", description="Orders on their way to their buyers")


class Shipment(Body):
    tracking_code = Text(required=True, allow_none=True)
    carrier_name = Text(allow_none=True, metadata={"description": 'As Etsy calls it; else "other"'})
    note_to_buyer = Text(1, 1000, allow_none=True)
    send_bcc = Bool(load_default=False)

    @validates_schema
    def check_parts(self, data: dict[str, Any], **kwargs: Any) -> None:
        if data.get("carrier_name") is not None and data["tracking_code"] is None:
            raise ValidationError({"carrier_name": ["Send the tracking_code, too."]})


class AtEtsy(Body):
    sent = fields.Boolean(required=True)
    tracking_stored = fields.Boolean(required=True)
    reason = fields.String(required=True, allow_none=True)


class ShipAnswer(Body):
    message = fields.String(required=True)
    order = fields.Nested(OrderSchema, required=True)
    etsy = fields.Nested(AtEtsy, required=True)


@blueprint.post("/<id:order_id>/ship")
@blueprint.arguments(Shipment)
@blueprint.response(200, ShipAnswer)
def ship(data: dict[str, Any], order_id: int) -> Response:
    """Ship an order whose prints are all done: once, at Etsy too, which mails the buyer. Where Etsy lets no app do
    that, it is shipped here and `etsy.reason` says what to press there."""
    user_id = current_user_id()
    parcel = Parcel(
        data["tracking_code"], data.get("carrier_name"), data.get("note_to_buyer"), wants_copy=data["send_bcc"]
    )
    ship_order(user_id, order_id, parcel, context.etsy_access())
    order = get_mine(Order, order_id)
    told = _at_etsy(order)
    message = "Shipped, and Etsy knows" if told["sent"] else "Shipped here"
    return json_response({"message": message, "order": read_order(order_id), "etsy": told})


def _at_etsy(order: Order) -> dict[str, Any]:
    if order.etsy_order_id is None:
        return {"sent": False, "tracking_stored": False, "reason": None}
    sent = order.ship_confirmed_at is not None or order.status is OrderStatus.completed
    stored = sent and order.ship_error is None and order.tracking_number is not None
    return {"sent": sent, "tracking_stored": stored, "reason": order.ship_error}


def _page(html: str) -> Response:
    return Response(html, mimetype="text/html", headers={"Content-Security-Policy": slips.POLICY})


def _zone(user: User) -> ZoneInfo:
    return ZoneInfo(user.timezone if user.timezone in zone_names() else "UTC")


def _user() -> User:
    return db.session.get_one(User, current_user_id())


@blueprint.get("/<id:order_id>/packing-slip")
@blueprint.response(200, content_type="text/html", schema={"type": "string"})
def get_packing_slip(order_id: int) -> Response:
    """The packing slip as a page to print. No prices on a gift's."""
    order = get_mine(Order, order_id)
    shop = None if order.shop_id is None else get_mine(Shop, order.shop_id)
    user = _user()
    return _page(slips.packing_slip(order, shop.name if shop else user.username, _zone(user)))


@blueprint.get("/<id:order_id>/job-tickets")
@blueprint.response(200, content_type="text/html", schema={"type": "string"})
def get_job_tickets(order_id: int) -> Response:
    """A ticket for each print of the order, as a page to print."""
    order = get_mine(Order, order_id)
    query = mine(ScheduledPrint).where(ScheduledPrint.order_id == order_id).order_by(ScheduledPrint.id)
    prints = db.session.execute(query).scalars().all()
    printer_ids = {each.printer_id for each in prints}
    file_ids = {each.print_file_id for each in prints if each.print_file_id is not None}
    # A removed printer is still what a print ran on.
    printers = db.session.execute(
        sa.select(Printer).where(Printer.user_id == current_user_id(), Printer.id.in_(printer_ids))
    ).scalars()
    files = db.session.execute(mine(PrintFile).where(PrintFile.id.in_(file_ids))).scalars()
    spools = db.session.execute(
        mine(BambuMaterial).where(BambuMaterial.printer_id.in_(printer_ids), BambuMaterial.removed_at.is_(None))
    ).scalars()
    html = slips.job_tickets(
        order,
        prints,
        {each.id: each for each in printers},
        {each.id: each for each in files},
        {(each.printer_id, each.slot): each for each in spools if each.slot is not None},
        _zone(_user()),
    )
    return _page(html)
