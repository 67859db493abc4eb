"""What happened, for clients that poll or come back after a gap: `/api/events`. The live channel says the same."""

from __future__ import annotations

from typing import Any

from flask import Response
from marshmallow import fields, validate

from api.fields import Body, Matches, Moment
from api.lists import DEFAULT_LIMIT, MAX_LIMIT, Query, QueryInt, json_response
from api.reading import Room
from auth import current_user_id
from farm.events import Cursor, read_page

blueprint = Room("events", __name__, url_prefix="/api/events", description="What happened")

CURSOR = r"^[0-9]{1,10}-?$"


class EventsQuery(Query):
    after = fields.String(load_default="0", validate=Matches(CURSOR, error="An event's id, or a page's next."))
    limit = QueryInt(load_default=DEFAULT_LIMIT, validate=validate.Range(1, MAX_LIMIT))


class LivePrinterSchema(Body):
    id = fields.Integer(required=True)
    name = fields.String(required=True)


class LiveShopSchema(Body):
    id = fields.Integer(required=True)
    name = fields.String(required=True)
    has_own_key = fields.Boolean(required=True)


class LivePrintSchema(Body):
    id = fields.Integer(required=True)
    job_name = fields.String(required=True)
    order_id = fields.Integer(required=True, allow_none=True)


class LiveEventDataSchema(Body):
    event_id = fields.Integer(required=True)
    printer = fields.Nested(LivePrinterSchema, required=True, allow_none=True)
    reason = fields.String(required=True, allow_none=True)
    from_status = fields.String(required=True, allow_none=True)
    to_status = fields.String(required=True, allow_none=True)
    print = fields.Nested(LivePrintSchema, required=True, allow_none=True)
    material = fields.Dict(required=True, allow_none=True)
    alert = fields.Dict(required=True, allow_none=True)
    maintenance = fields.Dict(required=True, allow_none=True)
    shop = fields.Nested(LiveShopSchema, required=True, allow_none=True)
    details = fields.Dict(required=True)


class LiveEventSchema(Body):
    id = fields.Integer(required=True)
    type = fields.String(required=True)
    timestamp = Moment(required=True)
    data = fields.Nested(LiveEventDataSchema, required=True)


class EventsSchema(Body):
    events = fields.List(fields.Nested(LiveEventSchema), required=True)
    next = fields.String(required=True, allow_none=True)


@blueprint.get("")
@blueprint.arguments(EventsQuery, location="query")
@blueprint.response(200, EventsSchema)
def list_events(args: dict[str, Any]) -> Response:
    """What happened after an event, oldest first."""
    events, following = read_page(current_user_id(), Cursor.read(args["after"]), args["limit"])
    return json_response({"events": events, "next": str(following) if following else None})
