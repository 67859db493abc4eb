"""A printer's notification preferences: `/api/bambu/notifications`."""

from __future__ import annotations

from typing import Any

from flask import Response
from marshmallow import ValidationError, fields

from api import context
from api.fields import Body, Bool, Moment, Text
from api.lists import json_response
from api.reading import Room
from auth import current_user_id, get_mine, mine
from channels import new_webhook_secret
from delivery.webhook_target import check_webhook_url
from models import Printer, PrintNotification, db
from notifications import DEFAULTS

blueprint = Room(
    "notifications", __name__, url_prefix="/api/bambu/notifications", description="Who is told what, printer by printer"
)


class PreferencesSchema(Body):
    id = fields.Integer(required=True, allow_none=True, metadata={"description": "null until something was saved"})
    printer_id = fields.Integer(required=True)
    notify_print_start = fields.Boolean(required=True)
    notify_print_complete = fields.Boolean(required=True)
    notify_print_failed = fields.Boolean(required=True)
    notify_material_change = fields.Boolean(required=True)
    notify_material_low = fields.Boolean(required=True)
    notify_maintenance = fields.Boolean(required=True)
    email_enabled = fields.Boolean(required=True)
    webhook_url = fields.String(required=True, allow_none=True)
    has_webhook_secret = fields.Boolean(required=True)
    webhook_secret = fields.String(metadata={"description": "whsec_…, shown this once: when a new webhook_url is set"})
    created_at = Moment(required=True, allow_none=True)
    updated_at = Moment(required=True, allow_none=True)


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
    email_enabled = Bool()
    webhook_url = Text(1, 2000, allow_none=True, validate=[_check_url])


def _represent(printer_id: int, saved: PrintNotification | None) -> dict[str, Any]:
    flags = {name: getattr(saved, name) if saved else default for name, default in DEFAULTS.items()}
    return {
        "id": saved.id if saved else None,
        "printer_id": printer_id,
        **flags,
        "webhook_url": saved.webhook_url if saved else None,
        "has_webhook_secret": bool(saved and saved.webhook_secret_sealed),
        "created_at": saved.created_at if saved else None,
        "updated_at": saved.updated_at if saved else None,
    }


def _find(printer_id: int) -> PrintNotification | None:
    found: PrintNotification | None = db.session.execute(
        mine(PrintNotification).where(PrintNotification.printer_id == printer_id)
    ).scalar_one_or_none()
    return found


@blueprint.get("/<id:printer_id>")
@blueprint.response(200, PreferencesSchema)
def get_preferences(printer_id: int) -> Response:
    """The preferences of a printer; before anything was saved, the defaults."""
    get_mine(Printer, printer_id)
    return json_response(_represent(printer_id, _find(printer_id)))


@blueprint.put("/<id:printer_id>")
@blueprint.arguments(PreferencesChange)
@blueprint.response(200, PreferencesSchema)
def change_preferences(data: dict[str, Any], printer_id: int) -> Response:
    """Change preferences. A new `webhook_url` answers its signing secret, this once."""
    get_mine(Printer, printer_id, for_update=True)
    at, saved, secret = context.now(), _find(printer_id), None
    if saved is None:
        saved = PrintNotification(user_id=current_user_id(), printer_id=printer_id, created_at=at, **DEFAULTS)
        db.session.add(saved)
    old_url = saved.webhook_url
    for name, value in data.items():
        setattr(saved, name, value)
    if saved.webhook_url is None:
        saved.webhook_secret_sealed = None
    elif saved.webhook_url != old_url:
        secret = new_webhook_secret()
        saved.webhook_secret_sealed = context.vault().seal(secret, saved.secret_owner("webhook_secret"))
    saved.updated_at = at
    db.session.flush()
    body = _represent(printer_id, saved)
    db.session.commit()
    return json_response(body | ({"webhook_secret": secret} if secret else {}))
