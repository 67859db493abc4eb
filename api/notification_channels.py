"""Further ways out for a printer's events, each an apprise URL: `/api/bambu/notifications/<printer_id>/channels`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Response
from marshmallow import fields

from api import context
from api.deliveries import end_waiting
from api.fields import Body, Bool, Moment, Text
from api.lists import PageQuery, bare_page, json_response
from api.print_schemas import Deleted
from api.reading import Room
from auth import current_user_id, get_mine, mine
from delivery.apprise_post import check_apprise_url
from errors import Conflict, Invalid, NotFound
from models import Delivery, NotificationChannel, Printer, db
from vault import SealBroken

blueprint = Room(
    "notification channels",
    __name__,
    url_prefix="/api/bambu/notifications/<id:printer_id>/channels",
    description="Discord, Slack, ntfy and whatever else an apprise URL reaches",
)

MAX_CHANNELS = 10
MAX_SERVICE_CHARS = 64


class ChannelSchema(Body):
    id = fields.Integer(required=True)
    printer_id = fields.Integer(required=True)
    name = fields.String(required=True)
    service = fields.String(required=True, metadata={"description": "What the URL leads to, such as Discord"})
    masked_url = fields.String(required=True, allow_none=True, metadata={"description": "Only how the URL begins"})
    is_enabled = fields.Boolean(required=True)
    created_at = Moment(required=True)
    updated_at = Moment(required=True)


class NewChannel(Body):
    name = Text(required=True)
    url = Text(1, 2000, required=True)
    is_enabled = Bool(load_default=True)


class ChannelChange(Body):
    name = Text()
    url = Text(1, 2000)
    is_enabled = Bool()


def _masked(channel: NotificationChannel) -> str | None:
    """How the URL begins; even its host may be what must not be known, as the topic of ntfy://topic."""
    try:
        url = context.vault().open(channel.url_sealed, channel.secret_owner)
    except SealBroken:
        return None
    return f"{url.partition('://')[0]}://…"


def _represent(channel: NotificationChannel) -> dict[str, Any]:
    return {
        "id": channel.id,
        "printer_id": channel.printer_id,
        "name": channel.name,
        "service": channel.service,
        "masked_url": _masked(channel),
        "is_enabled": channel.is_enabled,
        "created_at": channel.created_at,
        "updated_at": channel.updated_at,
    }


def _of_printer(printer_id: int) -> sa.Select[Any]:
    return mine(NotificationChannel).where(NotificationChannel.printer_id == printer_id)


def _get(printer_id: int, channel_id: int, *, for_update: bool = False) -> NotificationChannel:
    """Raises NotFound."""
    get_mine(Printer, printer_id, for_update=for_update)
    channel = get_mine(NotificationChannel, channel_id, for_update=for_update)
    if channel.printer_id != printer_id:
        raise NotFound
    return channel


def _service_of(url: str) -> str:
    """What a URL leads to. Takes its time, so nothing may be locked. Raises Invalid."""
    service, fault = check_apprise_url(url)
    if service is None:
        raise Invalid({"url": [str(fault)]})
    return service[:MAX_SERVICE_CHARS]


def _refuse_too_many(printer_id: int) -> None:
    count = db.session.execute(_of_printer(printer_id).with_only_columns(sa.func.count())).scalar_one()
    if count >= MAX_CHANNELS:
        raise Conflict(f"A printer has at most {MAX_CHANNELS} channels.", code="too_many_channels")


@blueprint.get("")
@blueprint.arguments(PageQuery, location="query")
@blueprint.response(200, ChannelSchema(many=True))
def list_channels(args: dict[str, Any], printer_id: int) -> Response:
    """The channels of a printer. Their URLs never come back."""
    get_mine(Printer, printer_id)
    found = db.session.execute(_of_printer(printer_id).order_by(NotificationChannel.id)).scalars().all()
    limit, offset = args["limit"], args["offset"]
    return bare_page([_represent(each) for each in found[offset : offset + limit]], len(found), limit, offset)


@blueprint.post("")
@blueprint.arguments(NewChannel)
@blueprint.response(201, ChannelSchema)
def add_channel(data: dict[str, Any], printer_id: int) -> Response:
    """Add a channel to a printer, at most 10. What it leads to is not asked; send a test for that."""
    get_mine(Printer, printer_id)
    _refuse_too_many(printer_id)
    url: str = data.pop("url")
    service = _service_of(url)
    get_mine(Printer, printer_id, for_update=True)
    # Others may have come while the URL was looked at.
    _refuse_too_many(printer_id)
    at = context.now()
    channel = NotificationChannel(
        user_id=current_user_id(), printer_id=printer_id, service=service, created_at=at, updated_at=at, **data
    )
    channel.url_sealed = context.vault().seal(url, channel.secret_owner)
    db.session.add(channel)
    db.session.flush()
    body = _represent(channel)
    db.session.commit()
    return json_response(body, 201)


@blueprint.put("/<id:channel_id>")
@blueprint.arguments(ChannelChange)
@blueprint.response(200, ChannelSchema)
def change_channel(data: dict[str, Any], printer_id: int, channel_id: int) -> Response:
    """Change a channel. What waits for it goes to the new URL."""
    _get(printer_id, channel_id)
    url: str | None = data.pop("url", None)
    service = _service_of(url) if url is not None else None
    channel = _get(printer_id, channel_id, for_update=True)
    if url is not None and service is not None:
        channel.service, channel.url_sealed = service, context.vault().seal(url, channel.secret_owner)
    for name, value in data.items():
        setattr(channel, name, value)
    channel.updated_at = context.now()
    body = _represent(channel)
    db.session.commit()
    return json_response(body)


@blueprint.delete("/<id:channel_id>")
@blueprint.response(200, Deleted)
def remove_channel(printer_id: int, channel_id: int) -> Response:
    """Remove a channel. What waits for it has failed; what went through it stays on record."""
    channel = _get(printer_id, channel_id, for_update=True)
    end_waiting(printer_id, f"channel:{channel_id}", "Its channel was deleted.")
    db.session.execute(
        sa.update(Delivery)
        .where(
            Delivery.user_id == current_user_id(),
            Delivery.printer_id == printer_id,
            Delivery.channel_id == channel_id,
        )
        .values(channel_id=None)
    )
    db.session.delete(channel)
    db.session.commit()
    return json_response({"message": "Channel removed", "id": channel_id})
