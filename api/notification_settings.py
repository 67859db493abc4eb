"""A printer's notification preferences, its webhook's secret, and a test of both: `/api/bambu/notifications`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from flask import Response
from marshmallow import ValidationError, fields

from api import context
from api.deliveries import DeliverySchema, end_waiting, preferences_of, read_deliveries
from api.fields import Body, Bool, Moment, Text, Word
from api.lists import json_response
from api.once import once
from api.reading import Room
from auth import current_user, current_user_id, get_mine, mine
from channels import new_webhook_secret
from delivery.webhook_target import check_webhook_url
from errors import Conflict, Invalid
from models import (
    Delivery,
    DeliveryStatus,
    Digest,
    NotificationChannel,
    Printer,
    PrintEvent,
    PrintNotification,
    db,
)
from notifications import DEFAULTS, fan_out
from vault import SealBroken

blueprint = Room(
    "notifications", __name__, url_prefix="/api/bambu/notifications", description="Who is told what, printer by printer"
)

# So long a receiver may still verify with the secret of before a rotation.
OLD_SECRET_LIFE = timedelta(hours=24)
TIME_OF_DAY = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
BY_A_PERSON = "a person switched it off"
DEFAULT_DIGEST_AT = "08:00"


def _time_of_day(**kwargs: Any) -> Text:
    return Text(5, 5, pattern=TIME_OF_DAY, fault="Not a time of day like 22:30.", **kwargs)


class PreferencesSchema(Body):
    id = fields.Integer(required=True, allow_none=True, metadata={"description": "null until something was saved"})
    printer_id = fields.Integer(required=True)
    notify_print_start = fields.Boolean(required=True)
    notify_print_complete = fields.Boolean(required=True)
    notify_print_failed = fields.Boolean(required=True)
    notify_material_change = fields.Boolean(required=True)
    notify_material_low = fields.Boolean(required=True)
    notify_maintenance = fields.Boolean(required=True)
    notify_printer_offline = fields.Boolean(required=True)
    notify_printer_fault = fields.Boolean(required=True)
    notify_needs_person = fields.Boolean(required=True)
    email_enabled = fields.Boolean(required=True)
    quiet_from = fields.String(required=True, allow_none=True)
    quiet_to = fields.String(required=True, allow_none=True)
    digest = Word(Digest, required=True)
    digest_at = fields.String(required=True)
    webhook_url = fields.String(required=True, allow_none=True)
    webhook_enabled = fields.Boolean(required=True)
    webhook_failing_since = Moment(required=True, allow_none=True)
    webhook_disabled_at = Moment(required=True, allow_none=True)
    webhook_disabled_reason = fields.String(required=True, allow_none=True)
    has_webhook_secret = fields.Boolean(required=True)
    webhook_secret = fields.String(metadata={"description": "whsec_…, shown this once: when a new webhook_url is set"})
    old_secret_valid_until = Moment(required=True, allow_none=True)
    created_at = Moment(required=True, allow_none=True)
    updated_at = Moment(required=True, allow_none=True)


class RotatedSecret(Body):
    webhook_secret = fields.String(required=True, metadata={"description": "whsec_…, shown this once"})
    old_secret_valid_until = Moment(required=True, allow_none=True)


class SentTest(Body):
    deliveries = fields.List(fields.Nested(DeliverySchema), required=True)


def _check_url(value: str | None) -> None:
    fault = check_webhook_url(value, context.settings().webhook_allowed_networks) if value is not None else None
    if fault:
        raise ValidationError(fault)


class PreferencesChange(Body):
    notify_print_start = Bool()
    notify_print_complete = Bool()
    notify_print_failed = Bool()
    notify_material_change = Bool()
    notify_material_low = Bool()
    notify_maintenance = Bool()
    notify_printer_offline = Bool()
    notify_printer_fault = Bool()
    notify_needs_person = Bool()
    email_enabled = Bool()
    quiet_from = _time_of_day(allow_none=True)
    quiet_to = _time_of_day(allow_none=True)
    digest = Word(Digest)
    digest_at = _time_of_day()
    webhook_url = Text(1, 2000, allow_none=True, validate=[_check_url])
    webhook_enabled = Bool()


def _represent(printer_id: int, saved: PrintNotification | None) -> dict[str, Any]:
    row = saved or PrintNotification(**DEFAULTS, digest=Digest.off, digest_at=DEFAULT_DIGEST_AT)
    old_until = row.webhook_old_secret_until
    return {
        "id": row.id,
        "printer_id": printer_id,
        **{name: getattr(row, name) for name in DEFAULTS},
        "quiet_from": row.quiet_from,
        "quiet_to": row.quiet_to,
        "digest": row.digest,
        "digest_at": row.digest_at,
        "webhook_url": row.webhook_url,
        "webhook_enabled": row.webhook_disabled_at is None,
        "webhook_failing_since": row.webhook_failing_since,
        "webhook_disabled_at": row.webhook_disabled_at,
        "webhook_disabled_reason": row.webhook_disabled_reason,
        "has_webhook_secret": row.webhook_secret_sealed is not None,
        "old_secret_valid_until": old_until if old_until and old_until > context.now() else None,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


@blueprint.get("/<id:printer_id>")
@blueprint.response(200, PreferencesSchema)
def get_preferences(printer_id: int) -> Response:
    """The preferences of a printer; before anything was saved, the defaults."""
    get_mine(Printer, printer_id)
    return json_response(_represent(printer_id, preferences_of(printer_id)))


@blueprint.put("/<id:printer_id>")
@blueprint.arguments(PreferencesChange)
@blueprint.response(200, PreferencesSchema)
def change_preferences(data: dict[str, Any], printer_id: int) -> Response:
    """Change preferences. A new `webhook_url` answers its signing secret, this once."""
    get_mine(Printer, printer_id, for_update=True)
    at, saved = context.now(), preferences_of(printer_id)
    if saved is None:
        saved = PrintNotification(user_id=current_user_id(), printer_id=printer_id, created_at=at, **DEFAULTS)
        db.session.add(saved)
    is_enabled: bool | None = data.pop("webhook_enabled", None)
    old_url = saved.webhook_url
    for name, value in data.items():
        setattr(saved, name, value)
    saved.updated_at = at
    _refuse_half_a_night(saved)
    secret = _new_endpoint(saved) if saved.webhook_url != old_url else None
    if is_enabled is not None and saved.webhook_url is not None:
        _switch_webhook(saved, is_enabled, at)
    db.session.flush()
    body = _represent(printer_id, saved)
    db.session.commit()
    return json_response(body | ({"webhook_secret": secret} if secret else {}))


def _refuse_half_a_night(saved: PrintNotification) -> None:
    start, end = saved.quiet_from, saved.quiet_to
    if (start is None) != (end is None):
        raise Invalid({"quiet_from" if start is None else "quiet_to": ["Quiet hours need both, or none of the two."]})
    if start is not None and start == end:
        raise Invalid({"quiet_to": ["Quiet hours must end at another time than they begin."]})


def _new_endpoint(saved: PrintNotification) -> str | None:
    """Another address knows nothing of the secrets and faults of the one before; answers its secret, if it is one.

    What still waits goes to the new address: the old one may be just what was wrong.
    """
    saved.webhook_old_secret_sealed = saved.webhook_old_secret_until = None
    _forget_faults(saved)
    if saved.webhook_url is None:
        saved.webhook_secret_sealed = None
        end_waiting(saved.printer_id, "webhook", "The webhook was removed.")
        return None
    secret = new_webhook_secret()
    saved.webhook_secret_sealed = context.vault().seal(secret, saved.secret_owner("webhook_secret"))
    db.session.execute(
        sa.update(Delivery)
        .where(
            Delivery.user_id == current_user_id(),
            Delivery.printer_id == saved.printer_id,
            Delivery.destination == "webhook",
            Delivery.status == DeliveryStatus.pending,
        )
        .values(target=saved.webhook_url)
    )
    return secret


def _forget_faults(saved: PrintNotification) -> None:
    saved.webhook_failing_since = saved.webhook_disabled_at = saved.webhook_disabled_reason = None


def _switch_webhook(saved: PrintNotification, is_enabled: bool, at: datetime) -> None:
    if is_enabled and saved.webhook_disabled_at is not None:
        _forget_faults(saved)
    elif not is_enabled and saved.webhook_disabled_at is None:
        saved.webhook_disabled_at, saved.webhook_disabled_reason = at, BY_A_PERSON


@blueprint.post("/<id:printer_id>/rotate-secret")
@blueprint.response(200, RotatedSecret)
def rotate_secret(printer_id: int) -> Response:
    """Make a new signing secret for the webhook. For a day, both it and the one before sign each message."""
    get_mine(Printer, printer_id, for_update=True)
    saved, at, vault = preferences_of(printer_id), context.now(), context.vault()
    if saved is None or saved.webhook_url is None:
        raise Conflict("This printer has no webhook.", code="no_destination")
    saved.webhook_old_secret_sealed = saved.webhook_old_secret_until = None
    if saved.webhook_secret_sealed is not None:
        try:
            old = vault.open(saved.webhook_secret_sealed, saved.secret_owner("webhook_secret"))
        except SealBroken:
            # Nothing was signed with it any more: a new one is what helps.
            pass
        else:
            saved.webhook_old_secret_sealed = vault.seal(old, saved.secret_owner("webhook_old_secret"))
            saved.webhook_old_secret_until = at + OLD_SECRET_LIFE
    secret = new_webhook_secret()
    saved.webhook_secret_sealed = vault.seal(secret, saved.secret_owner("webhook_secret"))
    saved.updated_at = at
    body = {"webhook_secret": secret, "old_secret_valid_until": saved.webhook_old_secret_until}
    db.session.commit()
    return json_response(body)


@blueprint.post("/<id:printer_id>/test")
@once
@blueprint.response(202, SentTest)
def send_test(printer_id: int) -> Response:
    """Send a test to everything that is set up for a printer. The deliveries say what came of it."""
    get_mine(Printer, printer_id)
    event = PrintEvent(
        user_id=current_user_id(), printer_id=printer_id, kind="notification.test", details={}, at=context.now()
    )
    db.session.add(event)
    sent = fan_out(event)
    if all(each.status is DeliveryStatus.failed for each in sent):
        raise Conflict(f"Nobody would be told. {_what_is_missing(printer_id)}", code="no_destination")
    db.session.flush()
    return json_response({"deliveries": read_deliveries([each.id for each in sent])}, 202)


def _what_is_missing(printer_id: int) -> str:
    saved = preferences_of(printer_id)
    has_channel = db.session.execute(
        mine(NotificationChannel, sa.func.count()).where(NotificationChannel.printer_id == printer_id)
    ).scalar_one()
    return " ".join(
        (
            "The account has no e-mail address." if current_user().email is None else "E-mail is switched off.",
            "The printer has no webhook." if saved is None or saved.webhook_url is None else "Its webhook is off.",
            "Its channels are off." if has_channel else "It has no channels.",
        )
    )
