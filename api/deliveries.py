"""What went out, to whom, and what came of each try: `/api/bambu/deliveries`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from flask import Response
from marshmallow import fields, validate

from api import context
from api.fields import Body, Moment, Text, Word
from api.lists import Columns, PageQuery, QueryInt, bare_page, json_response, page
from api.reading import Room
from auth import current_user, current_user_id, get_mine, mine
from errors import Conflict
from models import (
    Channel,
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    NotificationChannel,
    Printer,
    PrintEvent,
    PrintNotification,
    db,
)

blueprint = Room(
    "deliveries", __name__, url_prefix="/api/bambu/deliveries", description="What went out, and what came of each try"
)

NEWEST, OLDEST = "newest", "oldest"
UNSENT_STATUSES = (DeliveryStatus.pending, DeliveryStatus.sending)


def _finish(row: dict[str, Any]) -> None:
    if row["status"] != DeliveryStatus.pending:
        row["next_try_at"] = None


NAMES = (
    *("id", "printer_id", "event_id", "message_id", "channel", "destination", "channel_id", "target", "is_urgent"),
    *("status", "tries", "next_try_at", "folded_into_id", "sent_at", "error", "created_at"),
)
# Not by a join: counting the rows of a long history would join all of them.
OF_THE_EVENT = {
    column.name: sa.select(column).where(PrintEvent.id == Delivery.event_id).scalar_subquery()
    for column in (PrintEvent.kind, PrintEvent.print_id, PrintEvent.material_id)
}
COLUMNS = Columns(Delivery, *NAMES, extra=OF_THE_EVENT, finish=_finish)
WITH_PAYLOAD = Columns(Delivery, *NAMES, "payload", extra=OF_THE_EVENT, finish=_finish)
ATTEMPT_COLUMNS = Columns(
    DeliveryAttempt, *("delivery_id", "at", "duration_ms", "is_ok", "answer_code", "error", "answer")
)


class AttemptSchema(Body):
    at = Moment(required=True)
    duration_ms = fields.Integer(required=True)
    is_ok = fields.Boolean(required=True)
    answer_code = fields.Integer(required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)
    answer = fields.String(required=True, allow_none=True, metadata={"description": "Its first bytes, as text"})


class DeliverySchema(Body):
    id = fields.Integer(required=True)
    printer_id = fields.Integer(required=True, allow_none=True)
    event_id = fields.Integer(required=True)
    kind = fields.String(required=True)
    print_id = fields.Integer(required=True, allow_none=True)
    material_id = fields.Integer(required=True, allow_none=True)
    message_id = fields.String(required=True)
    channel = Word(Channel, required=True)
    destination = fields.String(required=True)
    channel_id = fields.Integer(required=True, allow_none=True)
    target = fields.String(required=True, allow_none=True)
    is_urgent = fields.Boolean(required=True)
    status = Word(DeliveryStatus, required=True)
    tries = fields.Integer(required=True)
    next_try_at = Moment(required=True, allow_none=True)
    folded_into_id = fields.Integer(required=True, allow_none=True)
    sent_at = Moment(required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)
    created_at = Moment(required=True)
    attempts = fields.List(fields.Nested(AttemptSchema), required=True)


class WholeDeliverySchema(DeliverySchema):
    payload = fields.Dict(required=True, metadata={"description": "What is sent: see the document's webhooks"})


class DeliveriesQuery(PageQuery):
    printer_id = QueryInt()
    status = Word(DeliveryStatus)
    channel = Word(Channel)
    kind = Text(1, 64)
    order = fields.String(load_default=NEWEST, validate=validate.OneOf([NEWEST, OLDEST]))


def _with_attempts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, each with its attempts, the first one first."""
    by_id: dict[int, list[dict[str, Any]]] = {row["id"]: row.setdefault("attempts", []) for row in rows}
    query = mine(DeliveryAttempt).where(DeliveryAttempt.delivery_id.in_(by_id)).order_by(DeliveryAttempt.id)
    for attempt in ATTEMPT_COLUMNS.all(query) if by_id else ():
        by_id[attempt.pop("delivery_id")].append(attempt)
    return rows


def read_deliveries(ids: Sequence[int]) -> list[dict[str, Any]]:
    """These deliveries of the current user, by id, as they are answered."""
    db.session.flush()
    query = mine(Delivery).where(Delivery.id.in_(ids)).order_by(Delivery.id)
    return _with_attempts(COLUMNS.all(query))


def preferences_of(printer_id: int) -> PrintNotification | None:
    """What was saved for a printer of the current user; None stands for the defaults."""
    found: PrintNotification | None = db.session.execute(
        mine(PrintNotification).where(PrintNotification.printer_id == printer_id)
    ).scalar_one_or_none()
    return found


def end_waiting(printer_id: int, destination: str, reason: str) -> None:
    """What waits for a destination that is no more has failed, for this reason. What is being sent tells by itself."""
    db.session.execute(
        sa.update(Delivery)
        .where(
            Delivery.user_id == current_user_id(),
            Delivery.printer_id == printer_id,
            Delivery.destination == destination,
            Delivery.status == DeliveryStatus.pending,
        )
        .values(status=DeliveryStatus.failed, error=reason)
    )


@blueprint.get("")
@blueprint.arguments(DeliveriesQuery, location="query")
@blueprint.response(200, DeliverySchema(many=True))
def list_deliveries(args: dict[str, Any]) -> Response:
    """Deliveries across all of the user's printers, each with its attempts; newest first, unless asked otherwise."""
    at = Delivery.id.asc() if args["order"] == OLDEST else Delivery.id.desc()
    query = mine(Delivery).order_by(at)
    for name in ("printer_id", "status", "channel"):
        if name in args:
            query = query.where(getattr(Delivery, name) == args[name])
    if "kind" in args:
        query = query.where(
            Delivery.event_id.in_(mine(PrintEvent, PrintEvent.id).where(PrintEvent.kind == args["kind"]))
        )
    limit, offset = args["limit"], args["offset"]
    rows, total = page(COLUMNS, query, limit, offset)
    return bare_page(_with_attempts(rows), total, limit, offset)


@blueprint.get("/<id:delivery_id>")
@blueprint.response(200, WholeDeliverySchema)
def get_delivery(delivery_id: int) -> Response:
    """One delivery with what is sent and what came of each try."""
    get_mine(Delivery, delivery_id)
    query = mine(Delivery).where(Delivery.id == delivery_id)
    return json_response(_with_attempts(WITH_PAYLOAD.all(query))[0])


@blueprint.post("/<id:delivery_id>/replay")
@blueprint.response(200, DeliverySchema)
def replay_delivery(delivery_id: int) -> Response:
    """Send a delivery once more, to where its destination is now. Its message id stays: repeats are told by it."""
    delivery = get_mine(Delivery, delivery_id, for_update=True)
    if delivery.status in UNSENT_STATUSES:
        raise Conflict("This delivery is still on its way.", code="delivery_under_way")
    delivery.target = _present_target(delivery)
    delivery.status, delivery.tries, delivery.next_try_at = DeliveryStatus.pending, 0, context.now()
    delivery.claimed_at = delivery.claimed_by = delivery.sent_at = delivery.error = delivery.folded_into_id = None
    body = read_deliveries([delivery_id])[0]
    db.session.commit()
    return json_response(body)


def _present_target(delivery: Delivery) -> str:
    """Where the delivery's destination is now. Raises Conflict when it is gone or off."""
    preferences = None
    if delivery.printer_id is not None:
        if db.session.execute(mine(Printer, Printer.id).where(Printer.id == delivery.printer_id)).scalar() is None:
            raise Conflict("Its printer was removed.", code="printer_removed")
        preferences = preferences_of(delivery.printer_id)
    match delivery.channel:
        case Channel.webhook:
            if preferences is None or preferences.webhook_url is None:
                raise Conflict("This printer has no webhook any more.", code="no_destination")
            if preferences.webhook_disabled_at is not None:
                reason = preferences.webhook_disabled_reason
                raise Conflict(f"This printer's webhook is switched off: {reason}.", code="destination_off")
            return preferences.webhook_url
        case Channel.email:
            email = current_user().email
            if email is None:
                raise Conflict("The account has no e-mail address.", code="no_destination")
            if preferences is not None and not preferences.email_enabled:
                raise Conflict("E-mail is switched off for this printer.", code="destination_off")
            return email
        case Channel.apprise:
            channel: NotificationChannel | None = db.session.execute(
                mine(NotificationChannel).where(NotificationChannel.id == delivery.channel_id)
            ).scalar_one_or_none()
            if channel is None:
                raise Conflict("Its channel was deleted.", code="no_destination")
            if not channel.is_enabled:
                raise Conflict(f"The channel {channel.name} is switched off.", code="destination_off")
            # Its name: what is behind a channel is a secret as a whole.
            return channel.name
