"""Events to deliveries: who is told of what, through which ways, and when.

`fan_out` runs in the transaction of the change itself and only writes rows; see `outbox` for what becomes of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from flask import current_app

from claims import ENDPOINT, HAS_WEBHOOKS_WAITING, Claim, born_taken, load_of
from columns import currency_number
from delivery.hours import hold_until
from models import (
    Channel,
    Delivery,
    DeliveryStatus,
    Digest,
    NotificationChannel,
    Order,
    Printer,
    PrintEvent,
    PrintNotification,
    ScheduledPrint,
    User,
    db,
)
from postbox import Postbox, Sender, hand_over

FLAGS: dict[str, tuple[str, ...]] = {
    "print.started": ("notify_print_start",),
    "print.completed": ("notify_print_complete",),
    "print.failed": ("notify_print_failed",),
    "print.needs_look": ("notify_needs_person",),
    "print.needs_person": ("notify_needs_person",),
    "print.not_wanted": ("notify_needs_person",),
    "material.low": ("notify_material_low", "notify_material_change"),
    "material.critical": ("notify_material_low", "notify_material_change"),
    "material.replace": ("notify_material_low", "notify_material_change"),
    "material.depleted": ("notify_material_low", "notify_material_change"),
    "material.changed": ("notify_material_change",),
    "printer.maintenance_due": ("notify_maintenance",),
    "printer.offline": ("notify_printer_offline",),
    "printer.back": ("notify_printer_offline",),
    "printer.fault": ("notify_printer_fault",),
}
"""The kinds that leave the house, each with the preferences of which one has to be on."""
DEFAULTS = {
    "notify_print_start": True,
    "notify_print_complete": True,
    "notify_print_failed": True,
    "notify_material_change": False,
    "notify_material_low": True,
    "notify_maintenance": True,
    "notify_printer_offline": True,
    "notify_printer_fault": True,
    "notify_needs_person": True,
    "email_enabled": True,
}
TEST = "notification.test"
"""Goes everywhere, whatever is preferred."""
WEBHOOK_DISABLED = "webhook.disabled"
"""Goes out by mail, whatever is preferred: the webhook itself is what is broken."""
SHOP_RECONNECT = "shop.reconnect_needed"
"""Goes out by mail, whatever is preferred: it concerns no printer, whose preferences could say more."""
BY_MAIL_ALONE = frozenset({WEBHOOK_DISABLED, SHOP_RECONNECT})
ALWAYS_TOLD = BY_MAIL_ALONE | {TEST}
URGENT = frozenset(
    {
        "print.failed",
        "print.needs_look",
        "print.needs_person",
        "print.not_wanted",
        "material.replace",
        "material.depleted",
        "printer.offline",
        "printer.fault",
        SHOP_RECONNECT,
        TEST,
    }
)
"""Kinds that pass quiet hours and digests."""


def fan_out(event: PrintEvent, *, of_print: ScheduledPrint | None = None) -> list[Delivery]:
    """Delivery rows for an event, by its printer's preferences, in the caller's transaction. Sends nothing."""
    flags = FLAGS.get(event.kind, ())
    if not flags and event.kind not in ALWAYS_TOLD:
        return []
    db.session.flush()
    rows = db.session.execute(WISHES, {"user": event.user_id, "printer": event.printer_id}).all()
    wish = rows[0]
    is_saved = wish.email_enabled is not None
    if flags and not any(getattr(wish, flag) if is_saved else DEFAULTS[flag] for flag in flags):
        return []
    targets = _targets(event.kind, rows)
    if not targets:
        return []
    payload = payload_of(event, of_print, wish.printer_name, wish.currency)
    is_urgent = event.kind in URGENT
    sender = _free_sender(wish)
    claim = sender.claim() if sender is not None else None
    gathered_at = event.at if is_urgent or not is_saved else _gathered_at(event.at, wish)
    deliveries = [
        Delivery(
            user_id=event.user_id,
            printer_id=event.printer_id,
            event_id=event.id,
            message_id=f"msg_{secrets.token_hex(16)}",
            channel=channel,
            destination=f"channel:{channel_id}" if channel_id is not None else channel.value,
            channel_id=channel_id,
            target=target,
            payload=payload,
            is_urgent=is_urgent,
            **_webhook_state(wish, claim) if channel is Channel.webhook else {},
            # Programs take what happens when it happens, one after the other; people do not.
            next_try_at=event.at if channel is Channel.webhook else gathered_at,
            created_at=event.at,
        )
        for channel, target, channel_id in targets
    ]
    db.session.add_all(deliveries)
    if sender is not None and claim is not None:
        db.session.flush()
        for webhook in deliveries:
            if webhook.channel is Channel.webhook:
                hand_over(sender, load_of(webhook, wish, claim))
    return deliveries


def _free_sender(wish: Any) -> Sender | None:
    """Who sends the webhook as soon as this is committed, without a look and a claim of its own: each of the two is a
    transaction, and costs as much as the webhook itself."""
    if not wish.webhook_url or wish.webhook_disabled_at is not None or wish.has_webhooks_waiting:
        return None
    # What a savepoint takes back would have been handed over.
    if db.session().in_nested_transaction():
        return None
    postbox: Postbox = current_app.extensions["postbox"]
    return postbox.sender


def _webhook_state(wish: Any, claim: Claim | None) -> dict[str, Any]:
    if wish.webhook_disabled_at is not None:
        # Kept all the same, so that it can be sent once the receiver is back.
        return OFF
    return born_taken(claim) if claim is not None else {}


SWITCHED_OFF = "The webhook is switched off."
OFF: dict[str, Any] = {"status": DeliveryStatus.failed, "error": SWITCHED_OFF}
USERS, PRINTERS = User.__table__, Printer.__table__
PREFERENCES, CHANNELS = PrintNotification.__table__, NotificationChannel.__table__
WISHES = (
    sa.select(
        USERS.c.email,
        USERS.c.currency,
        USERS.c.timezone,
        PRINTERS.c.name.label("printer_name"),
        *(PREFERENCES.c[name] for name in DEFAULTS),
        PREFERENCES.c.quiet_from,
        PREFERENCES.c.quiet_to,
        PREFERENCES.c.digest,
        PREFERENCES.c.digest_at,
        *ENDPOINT,
        HAS_WEBHOOKS_WAITING.label("has_webhooks_waiting"),
        CHANNELS.c.id.label("channel_id"),
        CHANNELS.c.name.label("channel_name"),
    )
    # Of no printer where the event has none: then nothing is saved, and nothing preferred.
    .outerjoin(PRINTERS, sa.and_(PRINTERS.c.user_id == USERS.c.id, PRINTERS.c.id == sa.bindparam("printer")))
    .outerjoin(PREFERENCES, PREFERENCES.c.printer_id == PRINTERS.c.id)
    .outerjoin(CHANNELS, sa.and_(CHANNELS.c.printer_id == PRINTERS.c.id, CHANNELS.c.is_enabled.is_(True)))
    .where(USERS.c.id == sa.bindparam("user"))
    .order_by(CHANNELS.c.id)
)
"""One row for each further channel, at least one: this runs with every change of a print, so it is one statement."""


def _targets(kind: str, rows: Sequence[Any]) -> list[tuple[Channel, str, int | None]]:
    wish = rows[0]
    is_mail_wanted = DEFAULTS["email_enabled"] if wish.email_enabled is None else wish.email_enabled
    targets: list[tuple[Channel, str, int | None]] = []
    if wish.email and (is_mail_wanted or kind in ALWAYS_TOLD):
        targets.append((Channel.email, wish.email, None))
    if kind in BY_MAIL_ALONE:
        return targets
    if wish.webhook_url:
        targets.append((Channel.webhook, wish.webhook_url, None))
    targets += [(Channel.apprise, row.channel_name, row.channel_id) for row in rows if row.channel_id is not None]
    return targets


def _gathered_at(at: datetime, wish: Any) -> datetime:
    """When quiet hours and a digest let it go to a person."""
    quiet = (wish.quiet_from, wish.quiet_to) if wish.quiet_from and wish.quiet_to else None
    if quiet is None and wish.digest is Digest.off:
        return at
    return hold_until(at, zone=wish.timezone, quiet=quiet, digest=wish.digest, digest_at=wish.digest_at)


def payload_of(
    event: PrintEvent, of_print: ScheduledPrint | None, printer_name: str | None, currency: str
) -> dict[str, Any]:
    """What a receiver gets: the event with the state of everything it concerns, as it was then."""
    data: dict[str, Any] = {
        "event_id": event.id,
        "printer": {"id": event.printer_id, "name": printer_name} if event.printer_id is not None else None,
        "reason": event.reason,
    }
    for shown in ("alert", "maintenance", "shop"):
        if shown in event.details:
            data[shown] = event.details[shown]
    if event.kind.startswith("material."):
        data["material"] = {"id": event.material_id, **event.details}
    if of_print is not None:
        order = of_print.order
        data["print"] = {
            "id": of_print.id,
            "job_name": of_print.job_name,
            "status": of_print.status,
            "file_name": of_print.file_name,
            "material_type": of_print.material_type,
            "material_color": of_print.material_color,
            "material_slot": of_print.material_slot,
            "used_grams": _number(of_print.used_grams),
            "material_cost": currency_number(of_print.material_cost, currency),
            "currency": currency,
            "started_at": _time(of_print.started_at),
            "completed_at": _time(of_print.completed_at),
            "failed_reason": of_print.failed_reason,
        }
        data["order"] = _order(order) if order else None
    return {"type": event.kind, "timestamp": _time(event.at), "data": data}


def _order(order: Order) -> dict[str, Any]:
    return {
        "id": order.id,
        "label": order.label,
        "etsy_order_id": order.etsy_order_id,
        "buyer_name": order.buyer_name,
        "production_status": order.production_status,
        "ship_by": _time(order.ship_by),
    }


def _number(value: Any) -> float | None:
    return None if value is None else round(float(value), 4)


def _time(at: datetime | None) -> str | None:
    return at.isoformat().replace("+00:00", "Z") if at else None
