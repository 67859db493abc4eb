"""Events to deliveries to e-mail and signed webhooks.

`fan_out` runs in the transaction of the change itself and only writes rows; `drain` sends what is committed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Protocol

import orjson
import sqlalchemy as sa
import structlog

from channels import Attempt, Mail, MailFailed, render_mail
from columns import currency_number
from models import (
    Channel,
    Delivery,
    DeliveryStatus,
    Order,
    Printer,
    PrintEvent,
    PrintNotification,
    ScheduledPrint,
    User,
    count_changed,
    db,
)
from vault import SealBroken, Vault

log = structlog.get_logger()

# A delivery claimed for longer than this belongs to a sender that died.
CLAIM_LIFE = timedelta(minutes=2)

FLAGS: dict[str, tuple[str, ...]] = {
    "print.started": ("notify_print_start",),
    "print.completed": ("notify_print_complete",),
    "print.failed": ("notify_print_failed",),
    "material.low": ("notify_material_low", "notify_material_change"),
    "material.critical": ("notify_material_low", "notify_material_change"),
    "material.replace": ("notify_material_low", "notify_material_change"),
    "material.depleted": ("notify_material_low", "notify_material_change"),
    "material.changed": ("notify_material_change",),
}
DEFAULTS = {
    "notify_print_start": True,
    "notify_print_complete": True,
    "notify_print_failed": True,
    "notify_material_change": False,
    "notify_material_low": True,
    "notify_maintenance": True,
    "email_enabled": True,
}


class WebhookPost(Protocol):
    def send(self, url: str, secrets: list[str], message_id: str, body: bytes) -> Attempt: ...


class MailPost(Protocol):
    def send(self, mail: Mail) -> None: ...


def fan_out(event: PrintEvent, *, of_print: ScheduledPrint | None = None) -> list[Delivery]:
    """Delivery rows for an event, by the printer's preferences. Flushes; sends nothing."""
    flags = FLAGS.get(event.kind)
    if flags is None:
        return []
    db.session.flush()
    row = db.session.execute(
        sa.select(User.email, User.currency, Printer.name, PrintNotification)
        .join(Printer, Printer.user_id == User.id)
        .outerjoin(PrintNotification, PrintNotification.printer_id == Printer.id)
        .where(User.id == event.user_id, Printer.id == event.printer_id)
    ).one()
    email, currency, printer_name, preferences = row
    wanted = {flag: getattr(preferences, flag) if preferences else DEFAULTS[flag] for flag in (*flags, "email_enabled")}
    if not any(wanted[flag] for flag in flags):
        return []
    payload = _payload(event, of_print, printer_name, currency)
    targets: list[tuple[Channel, str]] = []
    if wanted["email_enabled"] and email:
        targets.append((Channel.email, email))
    if preferences and preferences.webhook_url:
        targets.append((Channel.webhook, preferences.webhook_url))
    deliveries = [
        Delivery(
            user_id=event.user_id,
            printer_id=event.printer_id,
            event_id=event.id,
            message_id=f"msg_{secrets.token_hex(16)}",
            channel=channel,
            destination=channel.value,
            target=target,
            payload=payload,
            next_try_at=event.at,
            created_at=event.at,
        )
        for channel, target in targets
    ]
    db.session.add_all(deliveries)
    return deliveries


def _payload(event: PrintEvent, of_print: ScheduledPrint | None, printer_name: str, currency: str) -> dict[str, Any]:
    """What a receiver gets: the event with the state of everything it concerns, as it was then."""
    data: dict[str, Any] = {
        "event_id": event.id,
        "printer": {"id": event.printer_id, "name": printer_name},
        "reason": event.reason,
    }
    if event.material_id is not None:
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


class Sender:
    """Sends committed deliveries, one attempt each. `mail` is None where no SMTP server is configured."""

    def __init__(
        self,
        *,
        mail: MailPost | None,
        webhooks: WebhookPost,
        vault: Vault,
        clock: Callable[[], datetime],
        public_url: str = "",
    ) -> None:
        self._mail, self._webhooks, self._vault, self._clock = mail, webhooks, vault, clock
        self._public_url = public_url.rstrip("/")

    def drain(self, *, limit: int = 50) -> int:
        """Send up to `limit` waiting deliveries, oldest first, and return how many were tried.

        Each is claimed by a conditional UPDATE and committed before anything is sent, so that two senders never take
        the same one; the outcome is committed after.
        """
        tried = 0
        while tried < limit and (delivery := self._claim()) is not None:
            error = self._send(delivery)
            delivery.status = DeliveryStatus.failed if error else DeliveryStatus.sent
            delivery.error = error
            delivery.sent_at = None if error else self._clock()
            db.session.commit()
            log.info(
                "delivery", id=delivery.id, channel=delivery.channel.value, status=delivery.status.value, error=error
            )
            tried += 1
        return tried

    def _claim(self) -> Delivery | None:
        now = self._clock()
        waiting = sa.or_(
            Delivery.status == DeliveryStatus.pending,
            sa.and_(Delivery.status == DeliveryStatus.sending, Delivery.claimed_at < now - CLAIM_LIFE),
        )
        candidate = db.session.execute(sa.select(Delivery.id).where(waiting).order_by(Delivery.id).limit(1)).scalar()
        if candidate is None:
            db.session.rollback()
            return None
        claimed = count_changed(
            sa.update(Delivery)
            .where(Delivery.id == candidate, waiting)
            .values(status=DeliveryStatus.sending, claimed_at=now, attempts=Delivery.attempts + 1)
        )
        db.session.commit()
        return db.session.get(Delivery, candidate, populate_existing=True) if claimed else self._claim()

    def _send(self, delivery: Delivery) -> str | None:
        """None when it arrived, else why not. No transaction is open while the network is waited for."""
        if delivery.channel is Channel.webhook:
            secret = self._webhook_secret(delivery)
            message = delivery.target, delivery.message_id, orjson.dumps(delivery.payload)
            db.session.commit()
            if secret is None:
                return "The webhook has no signing secret any more."
            attempt = self._webhooks.send(message[0], [secret], message[1], message[2])
            return None if attempt.ok else (attempt.error or f"answered {attempt.status}")
        if self._mail is None:
            return "No mail server is configured (SMTP_HOST)."
        mail = self._compose(delivery)
        db.session.commit()
        try:
            self._mail.send(mail)
        except MailFailed as error:
            return error.reason
        return None

    def _webhook_secret(self, delivery: Delivery) -> str | None:
        preferences = db.session.execute(
            sa.select(PrintNotification).where(PrintNotification.printer_id == delivery.printer_id)
        ).scalar_one_or_none()
        if preferences is None or preferences.webhook_secret_sealed is None:
            return None
        try:
            return self._vault.open(preferences.webhook_secret_sealed, preferences.secret_owner("webhook_secret"))
        except SealBroken as error:
            log.error("webhook_secret_unreadable", printer_id=delivery.printer_id, error=str(error))
            return None

    def _compose(self, delivery: Delivery) -> Mail:
        kind, data = delivery.payload["type"].replace(".", "_"), delivery.payload["data"]
        of_print, material, order = data.get("print") or {}, data.get("material") or {}, data.get("order") or {}
        subject, text, html = render_mail(
            kind,
            {
                "printer_name": data["printer"]["name"],
                # A print made for an order carries the order's name in front; a mail names the order by itself.
                "print_name": (of_print.get("job_name") or "").removeprefix(f"{order.get('label')} - ") or None,
                "order_label": order.get("label"),
                "buyer_name": order.get("buyer_name"),
                "material": material.get("material_type") or of_print.get("material_type"),
                "color": material.get("color") or of_print.get("material_color"),
                "slot": material.get("slot", of_print.get("material_slot")),
                "remaining_grams": material.get("remaining_grams"),
                "remaining_pct": material.get("remaining_pct"),
                "used_grams": of_print.get("used_grams"),
                "cost": of_print.get("material_cost"),
                "currency": of_print.get("currency"),
                "started_at": of_print.get("started_at"),
                "completed_at": of_print.get("completed_at"),
                "duration": _duration(of_print.get("started_at"), of_print.get("completed_at")),
                "reason": data.get("reason"),
                "link": f"{self._public_url}/" if self._public_url else None,
            },
        )
        return Mail(to=delivery.target, subject=subject, text=text, html=html, message_id=delivery.message_id)


def _duration(started_at: str | None, completed_at: str | None) -> str | None:
    if not started_at or not completed_at:
        return None
    minutes = round((datetime.fromisoformat(completed_at) - datetime.fromisoformat(started_at)).total_seconds() / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
