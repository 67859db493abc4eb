"""Orders from Etsy, brought in by hand: `/api/orders/sync`."""

from __future__ import annotations

from typing import Any

from flask import Response
from marshmallow import fields

from api import context
from api.fields import Body
from api.lists import Query, json_response
from api.reading import Room
from api.shops import ConnectedShop, my_shops, represent_shop
from auth import current_user_id
from errors import Conflict, TooManyRequests, UpstreamFailed
from etsy_api import schedule_paid_orders
from etsy_client import EtsyError, RateLimited, ReconnectNeeded
from etsy_sync import SyncHeld, SyncResult, sync_shop
from farm.order_plan import PlanRules
from vault import SealBroken

blueprint = Room("order sync", __name__, url_prefix="/api/orders/sync", description="Orders from Etsy")


class ShopSync(Body):
    shop_id = fields.Integer(required=True)
    name = fields.String(required=True)
    created = fields.Integer(required=True)
    updated = fields.Integer(required=True)
    unreadable = fields.Integer(required=True)
    withdrawn = fields.Integer(required=True)
    requests = fields.Integer(required=True)


class SyncAnswer(Body):
    message = fields.String(required=True)
    shops = fields.List(fields.Nested(ShopSync), required=True)


class SyncState(Body):
    shops = fields.List(fields.Nested(ConnectedShop), required=True)


@blueprint.get("")
@blueprint.response(200, SyncState)
def get_sync() -> Response:
    """How far the syncs of the shops have come."""
    return json_response({"shops": [represent_shop(shop, context.now()) for shop in my_shops()]})


@blueprint.post("")
@blueprint.arguments(Query, location="query")
@blueprint.response(200, SyncAnswer)
def sync_orders(args: dict[str, Any]) -> Response:
    """Bring in what changed at Etsy since the last sync. One that runs already is not begun a second time; the GET says
    how far it is."""
    access = context.etsy_access()
    shops = [(shop.id, shop.name, shop.keystring) for shop in my_shops()]
    if access.client() is None and not any(keystring for _, _, keystring in shops):
        raise Conflict("No Etsy key is configured (ETSY_CLIENT_ID, ETSY_SHARED_SECRET).", code="etsy_not_configured")
    if not shops:
        raise Conflict("No Etsy shop is connected yet. Log in at Etsy first.", code="no_shop")
    results, is_running, faults = [], False, []
    for shop_id, name, _ in shops:
        try:
            done = sync_shop(shop_id, access)
            results.append(_represent(done, name))
        except SyncHeld:
            is_running = True
        except (EtsyError, SealBroken) as error:
            # One shop that cannot be asked does not keep the orders of the others out.
            faults.append(_problem(error, name))
    if results:
        rules = PlanRules.from_settings(context.settings())
        schedule_paid_orders(current_user_id(), context.now(), rules=rules)
    if faults:
        raise faults[0]
    created = sum(result["created"] for result in results)
    message = "A sync is running already" if is_running else f"Imported {created} new orders"
    return json_response({"message": message, "shops": results})


def _represent(done: SyncResult, name: str) -> dict[str, Any]:
    numbers = ("shop_id", "created", "updated", "unreadable", "withdrawn", "requests")
    return {**{number: getattr(done, number) for number in numbers}, "name": name}


def _problem(error: EtsyError | SealBroken, name: str) -> Conflict | TooManyRequests | UpstreamFailed:
    if isinstance(error, ReconnectNeeded):
        return Conflict(f"Etsy no longer accepts the login of {name}. Connect it again.", code="reconnect_shop")
    if isinstance(error, SealBroken):
        return Conflict(f"The stored login of {name} cannot be read. Connect it again.", code="reconnect_shop")
    if isinstance(error, RateLimited):
        seconds = error.retry_after_seconds
        return TooManyRequests("Etsy's call limit is used up for now.", retry_after_seconds=seconds)
    return UpstreamFailed(f"Etsy did not answer as expected: {error}", code="etsy_failed")
