"""The connected Etsy shops: `/api/shops`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from flask import Response
from marshmallow import fields

from api import context
from api.fields import Body, Moment
from api.lists import json_response
from api.reading import Room
from auth import get_mine, mine
from etsy_login import disconnect_shop
from etsy_sync import ABANDONED
from models import Shop, db

blueprint = Room("shops", __name__, url_prefix="/api/shops", description="The connected Etsy shops")


class SyncProgress(Body):
    reading = fields.String(required=True, metadata={"description": "notices, changed, canceled or open"})
    seen = fields.Integer(required=True)
    of = fields.Integer(required=True, metadata={"description": "How many this reading has in all"})
    created = fields.Integer(required=True)
    updated = fields.Integer(required=True)
    unreadable = fields.Integer(required=True)
    requests = fields.Integer(required=True)
    begun_at = Moment(required=True)


class ConnectedShop(Body):
    id = fields.Integer(required=True)
    name = fields.String(required=True)
    etsy_shop_id = fields.String(required=True)
    currency = fields.String(required=True)
    has_own_key = fields.Boolean(required=True)
    is_syncing = fields.Boolean(required=True)
    sync_progress = fields.Nested(SyncProgress, required=True, allow_none=True)
    sync_ended_at = Moment(required=True, allow_none=True)
    sync_error = fields.String(required=True, allow_none=True)
    synced_until = Moment(required=True, allow_none=True)
    parked_until = Moment(required=True, allow_none=True)
    reconnect_needed_at = Moment(required=True, allow_none=True)
    created_at = Moment(required=True)


class ConnectedShops(Body):
    shops = fields.List(fields.Nested(ConnectedShop), required=True)
    total = fields.Integer(required=True)


class Disconnected(Body):
    message = fields.String(required=True)
    id = fields.Integer(required=True)


def my_shops() -> Sequence[Shop]:
    return db.session.execute(mine(Shop).order_by(Shop.id)).scalars().all()


def represent_shop(shop: Shop, now: datetime) -> dict[str, Any]:
    is_syncing = shop.syncing_since is not None and shop.syncing_since >= now - ABANDONED
    return {
        **{name: getattr(shop, name) for name in ("id", "name", "etsy_shop_id", "currency", "sync_progress")},
        **{name: getattr(shop, name) for name in ("sync_ended_at", "sync_error", "synced_until", "created_at")},
        "has_own_key": shop.keystring is not None,
        "is_syncing": is_syncing,
        "parked_until": shop.parked_until if shop.parked_until and shop.parked_until > now else None,
        "reconnect_needed_at": shop.reconnect_needed_at,
    }


@blueprint.get("")
@blueprint.response(200, ConnectedShops)
def list_shops() -> Response:
    """The connected shops, how far their syncs have come, and what keeps one from syncing."""
    shops = [represent_shop(shop, context.now()) for shop in my_shops()]
    return json_response({"shops": shops, "total": len(shops)})


@blueprint.delete("/<id:shop_id>")
@blueprint.response(200, Disconnected)
def disconnect(shop_id: int) -> Response:
    """Forget a shop's login. Its orders stay, and with them the shop, until it is connected again; one without orders
    and product profiles goes as a whole."""
    is_gone = disconnect_shop(get_mine(Shop, shop_id, for_update=True), now=context.now())
    db.session.commit()
    return json_response({"message": "Shop removed" if is_gone else "Shop disconnected", "id": shop_id})
