"""Outboxes that tests drive by hand, and what the rows say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from flask import Flask

from channels import Attempt, MailSender, WebhookSender
from courier import Courier, MailPost, MessagePost, WebhookPost
from models import Channel, Delivery, DeliveryAttempt, DeliveryStatus, PrintEvent
from outbox import Outbox
from simulator.sinks import MailSink
from tests.conftest import BASE_TIME
from tests.farm_builder import Farm


class NoMessages:
    """Where no channel is."""

    def send(self, url: str, *, title: str, body: str, is_urgent: bool) -> Attempt:
        raise AssertionError(f"nothing should be sent to {url}")


def make_outbox(
    app: Flask,
    clock: Callable[[], Any],
    mail: MailSink | MailPost | None = None,
    webhooks: WebhookPost | None = None,
    messages: MessagePost | None = None,
    **options: Any,
) -> Outbox:
    """By hand: without jitter unless `chance` says so."""
    if isinstance(mail, MailSink):
        mail = MailSender(mail.host, mail.port, "", "", "Farm <farm@example.com>", "none", clock=clock)
    networks = app.extensions["parts"].settings.webhook_allowed_networks
    courier = Courier(
        app,
        mail=mail,
        webhooks=webhooks or WebhookSender(networks, clock=clock, timeout_seconds=options.pop("timeout_seconds", 15.0)),
        messages=messages or NoMessages(),
    )
    return Outbox(app, courier, **{"chance": lambda: 0.0, **options})


def prefer(farm: Farm, printer_id: int, **preferences: Any) -> dict[str, Any]:
    answer = farm.put(f"/api/bambu/notifications/{printer_id}", preferences)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


def deliveries(farm: Farm) -> list[Delivery]:
    with farm.database() as session:
        found = list(session.execute(sa.select(Delivery).order_by(Delivery.id)).scalars())
        session.expunge_all()
        return found


def attempts(farm: Farm) -> list[DeliveryAttempt]:
    with farm.database() as session:
        found = list(session.execute(sa.select(DeliveryAttempt).order_by(DeliveryAttempt.id)).scalars())
        session.expunge_all()
        return found


def forget(farm: Farm) -> None:
    with farm.database() as session:
        session.execute(sa.delete(DeliveryAttempt))
        session.execute(sa.delete(Delivery))
        session.commit()


def told(farm: Farm) -> list[tuple[str, str]]:
    """(kind, channel) of every delivery."""
    return [(each.payload["type"], each.channel.value) for each in deliveries(farm)]


def finish_prints(farm: Farm, printer_id: int, count: int) -> None:
    for number in range(count):
        made = farm.add_print(printer_id, f"Print {number}")
        farm.move(made["id"], "started", "completed")


def stock(
    farm: Farm,
    printer_id: int,
    count: int,
    *,
    channel: Channel = Channel.webhook,
    target: str = "http://127.0.0.1:9/hook",
    first: int = 0,
    **changes: Any,
) -> list[int]:
    """So many deliveries at once, as `fan_out` would have made them at BASE_TIME, numbered in their payloads."""
    user_id = farm.user["id"]
    with farm.database() as session:
        numbers = range(first, first + count)
        events = session.execute(
            sa.insert(PrintEvent).returning(PrintEvent.id, sort_by_parameter_order=True),
            [
                {
                    "user_id": user_id,
                    "printer_id": printer_id,
                    "kind": "print.completed",
                    "details": {},
                    "at": BASE_TIME,
                }
                for _ in numbers
            ],
        ).scalars()
        ids = session.execute(
            sa.insert(Delivery).returning(Delivery.id, sort_by_parameter_order=True),
            [
                {
                    "user_id": user_id,
                    "printer_id": printer_id,
                    "event_id": event_id,
                    "message_id": f"msg_{printer_id}_{channel.value}_{number}",
                    "channel": channel,
                    "destination": channel.value,
                    "target": target,
                    "payload": payload(printer_id, number),
                    "status": DeliveryStatus.pending,
                    "next_try_at": BASE_TIME,
                    "created_at": BASE_TIME,
                    **changes,
                }
                for number, event_id in zip(numbers, events, strict=True)
            ],
        ).scalars()
        found = list(ids)
        session.commit()
    return found


def payload(printer_id: int, number: int) -> dict[str, Any]:
    printer = {"id": printer_id, "name": f"Printer {printer_id}"}
    data = {"event_id": number, "printer": printer, "reason": None, "number": number}
    return {"type": "print.completed", "timestamp": "2026-11-21T09:00:00Z", "data": data}


def numbers(received: Sequence[Any]) -> list[int]:
    return [each.json["data"]["number"] for each in received]
