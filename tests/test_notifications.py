"""Events to deliveries to e-mail and signed webhooks, over a real mail server and a real receiver."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from channels import Attempt, Mail, MailSender, WebhookSender
from models import Channel, Delivery, DeliveryStatus, PrintEvent, PrintNotification, ScheduledPrint, User, db
from notifications import CLAIM_LIFE, MailPost, Sender, WebhookPost, fan_out
from simulator.sinks import MailSink, WebhookReceiver
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm

PRINTS = "/api/bambu/scheduled-prints"
FLAGS = (
    *("notify_print_start", "notify_print_complete", "notify_print_failed"),
    *("notify_material_change", "notify_material_low", "notify_maintenance"),
)
URL = "https://hooks.example.com/print"


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer("Left")["id"])


@pytest.fixture
def mail() -> Iterator[MailSink]:
    with MailSink() as sink:
        yield sink


@pytest.fixture
def receiver(clock: Clock) -> Iterator[WebhookReceiver]:
    with WebhookReceiver(clock=clock) as sink:
        yield sink


def sender(
    app: Flask, clock: Clock, mail: MailSink | MailPost | None = None, webhooks: WebhookPost | None = None
) -> Sender:
    parts = app.extensions["parts"]
    post: MailPost | None
    if isinstance(mail, MailSink):
        post = MailSender(mail.host, mail.port, "", "", "Farm <farm@example.com>", "none", clock=clock)
    else:
        post = mail
    return Sender(
        mail=post,
        webhooks=webhooks or WebhookSender(parts.settings.webhook_allowed_networks, clock=clock),
        vault=parts.vault,
        clock=clock,
        public_url="https://farm.example.com",
    )


def drain(app: Flask, made: Sender, **kwargs: int) -> int:
    with app.app_context():
        return made.drain(**kwargs)


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


def told(farm: Farm) -> list[tuple[str, str]]:
    """(kind, channel) of every delivery."""
    return [(each.payload["type"], each.channel.value) for each in deliveries(farm)]


def finish_prints(farm: Farm, printer_id: int, count: int) -> None:
    for number in range(count):
        made = farm.add_print(printer_id, f"Print {number}")
        farm.move(made["id"], "started", "completed")


# Which event reaches whom


def cause(farm: Farm, printer_id: int, kind: str) -> None:
    """Make just this event happen, among those that anybody is told of."""
    with farm.database() as session:
        session.execute(sa.delete(Delivery))
        session.commit()
    if kind.startswith("print."):
        made = farm.add_print(printer_id)
        if kind != "print.started":
            farm.move(made["id"], "started")
            with farm.database() as session:
                session.execute(sa.delete(Delivery))
                session.commit()
        farm.move(made["id"], kind.removeprefix("print."))
        return
    left = {"low": 60, "critical": 15, "replace": 1, "depleted": 0}[kind.removeprefix("material.")]
    material = farm.add_material(printer_id, replace=True)
    with farm.database() as session:
        session.execute(sa.delete(Delivery))
        session.commit()
    farm.put(f"/api/bambu/materials/{material['id']}", {"remaining_pct": left})


# The contract's flags, written out: an event goes out when any of these is on.
WANTED_BY = {
    "print.started": {"notify_print_start"},
    "print.completed": {"notify_print_complete"},
    "print.failed": {"notify_print_failed"},
    "material.low": {"notify_material_low", "notify_material_change"},
    "material.critical": {"notify_material_low", "notify_material_change"},
    "material.replace": {"notify_material_low", "notify_material_change"},
    "material.depleted": {"notify_material_low", "notify_material_change"},
}


@pytest.mark.parametrize("kind", WANTED_BY)
@pytest.mark.parametrize(("email_enabled", "has_webhook"), list(itertools.product([True, False], repeat=2)))
def test_an_event_goes_out_when_a_flag_of_its_own_is_on_and_through_every_channel_that_is(
    farm: Farm, printer_id: int, kind: str, email_enabled: bool, has_webhook: bool
) -> None:
    channels = (["email"] if email_enabled else []) + (["webhook"] if has_webhook else [])
    for only in (*FLAGS, None):
        prefer(
            farm,
            printer_id,
            **{flag: flag == only for flag in FLAGS},
            email_enabled=email_enabled,
            webhook_url=URL if has_webhook else None,
        )
        cause(farm, printer_id, kind)
        assert told(farm) == [(kind, channel) for channel in channels if only in WANTED_BY[kind]], only


def test_before_anything_was_saved_the_defaults_count(farm: Farm, printer_id: int) -> None:
    for kind in WANTED_BY:
        cause(farm, printer_id, kind)
        assert told(farm) == [(kind, "email")]


def test_a_change_of_spools_is_told_only_to_those_who_asked(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id)
    assert told(farm) == []
    prefer(farm, printer_id, notify_material_change=True)
    spool = farm.add_material(printer_id, slot=1)
    farm.delete(f"/api/bambu/materials/{spool['id']}")
    assert told(farm) == [("material.changed", "email")] * 2
    assert [each.payload["data"]["reason"] for each in deliveries(farm)] == ["loaded", "removed"]


def test_what_only_moves_in_the_queue_is_told_to_nobody(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    farm.move(made["id"], "scheduled", "queued", "scheduled")
    farm.put(f"{PRINTS}/{made['id']}", {"priority": 5})
    farm.delete(f"{PRINTS}/{made['id']}")
    assert told(farm) == []


def test_a_seller_without_an_address_gets_no_mail(farm: Farm, printer_id: int) -> None:
    with farm.database() as session:
        session.execute(sa.update(User).values(email=None))
        session.commit()
    prefer(farm, printer_id, webhook_url=URL)
    cause(farm, printer_id, "print.completed")
    assert told(farm) == [("print.completed", "webhook")]


def test_a_notification_says_all_that_it_concerns(farm: Farm, printer_id: int, clock: Clock) -> None:
    farm.add_material(printer_id, cost_per_kg=20)
    order = farm.add_order({"title": "Vase", "quantity": 1}, ship_by="2026-12-01T00:00:00Z")
    made = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"][0]
    farm.move(made["id"], "started")
    clock.forward(minutes=10)
    farm.move(made["id"], "completed", used_grams=12.5)
    started, completed = deliveries(farm)
    assert (started.payload["type"], started.payload["timestamp"]) == ("print.started", "2026-11-21T09:00:00Z")
    event_id = farm.get(f"{PRINTS}/{made['id']}/events").json[-1]["id"]
    assert completed.payload == {
        "type": "print.completed",
        "timestamp": "2026-11-21T09:10:00Z",
        "data": {
            "event_id": event_id,
            "printer": {"id": printer_id, "name": "Left"},
            "reason": None,
            "print": {
                "id": made["id"],
                "job_name": made["job_name"],
                "status": "completed",
                "file_name": None,
                "material_type": "PLA",
                "material_color": None,
                "material_slot": None,
                "used_grams": 12.5,
                "material_cost": 0.25,
                "currency": "USD",
                "started_at": "2026-11-21T09:00:00Z",
                "completed_at": "2026-11-21T09:10:00Z",
                "failed_reason": None,
            },
            "order": {
                "id": order["id"],
                "label": f"Order #{order['id']}",
                "etsy_order_id": None,
                "buyer_name": "Ada",
                "production_status": "printed",
                "ship_by": "2026-12-01T00:00:00Z",
            },
        },
    }


# In the change's own transaction


def test_deliveries_exist_exactly_when_the_change_was_committed(app: Flask, farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    for is_kept in (False, True):
        with app.app_context():
            row = db.session.get_one(ScheduledPrint, made["id"])
            event = row.move_to(row.status.started, at=BASE_TIME)
            assert len(fan_out(event, of_print=row)) == 1
            db.session.flush()
            if is_kept:
                db.session.commit()
            else:
                db.session.rollback()
        with farm.database() as session:
            events = session.execute(sa.select(PrintEvent).where(PrintEvent.kind == "print.started")).all()
        assert (len(deliveries(farm)), len(events)) == ((1, 1) if is_kept else (0, 0))


def test_a_refused_move_tells_nobody(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    assert farm.put(f"{PRINTS}/{made['id']}", {"status": "completed"}).status_code == 409
    assert farm.put(f"{PRINTS}/{made['id']}", {"status": "failed"}).status_code == 422
    assert told(farm) == []


def test_the_same_status_again_tells_nobody_twice(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    farm.move(made["id"], "started", "started", "completed", "completed")
    assert told(farm) == [("print.started", "email"), ("print.completed", "email")]


# Sending


def test_mail_and_signed_webhook_arrive(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, mail: MailSink, receiver: WebhookReceiver
) -> None:
    receiver.trust(prefer(farm, printer_id, webhook_url=receiver.url)["webhook_secret"])
    made = farm.add_print(printer_id, "<svg onload=alert(1)> vase")
    farm.move(made["id"], "started", "failed", failed_reason="it came <b>off</b>")
    assert drain(app, sender(app, clock, mail)) == 4
    assert [each.status for each in deliveries(farm)] == [DeliveryStatus.sent] * 4
    assert [(each.json["type"], each.verified) for each in receiver.received] == [
        ("print.started", True),
        ("print.failed", True),
    ]
    assert receiver.received[1].json == deliveries(farm)[3].payload
    assert receiver.received[1].json["data"]["reason"] == "it came <b>off</b>"
    assert [message["To"] for message in mail.messages] == ["seller@example.com"] * 2
    html = mail.messages[1].get_body(("html",))
    assert html is not None
    assert "<svg" not in html.get_content() and "it came &lt;b&gt;off" in html.get_content()


def test_a_delivery_keeps_what_became_of_it(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    receiver.trust(prefer(farm, printer_id, webhook_url=receiver.url, email_enabled=False)["webhook_secret"])
    receiver.answer_with(500).answer_with(302, headers={"Location": "http://127.0.0.1/"})
    finish_prints(farm, printer_id, 2)
    clock.forward(seconds=5)
    assert drain(app, sender(app, clock)) == 4
    found = deliveries(farm)
    assert [each.status.value for each in found] == ["failed", "failed", "sent", "sent"]
    assert [each.error for each in found] == [
        "The receiver answered 500.",
        "The receiver answered 302; redirects are not followed.",
        None,
        None,
    ]
    sent_at = BASE_TIME + timedelta(seconds=5)
    assert [each.sent_at for each in found] == [None, None, sent_at, sent_at]
    assert [each.attempts for each in found] == [1] * 4
    ids = [each.headers["webhook-id"] for each in receiver.received]
    assert ids == [each.message_id for each in found] and len(set(ids)) == 4


def test_a_mail_that_the_server_refuses_has_failed(app: Flask, farm: Farm, printer_id: int, clock: Clock) -> None:
    cause(farm, printer_id, "print.completed")
    with MailSink(refuse={"seller@example.com": "550 5.1.1 unknown"}) as refusing:
        assert drain(app, sender(app, clock, refusing)) == 1
    found = deliveries(farm)[0]
    assert (found.status, found.error) == (
        DeliveryStatus.failed,
        "The mail server refused the recipient: 550 5.1.1 unknown",
    )


def test_without_a_mail_server_a_mail_has_failed_and_a_webhook_has_not(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    receiver.trust(prefer(farm, printer_id, webhook_url=receiver.url)["webhook_secret"])
    cause(farm, printer_id, "print.completed")
    drain(app, sender(app, clock))
    found = {each.channel: (each.status.value, each.error) for each in deliveries(farm)}
    assert found == {
        Channel.email: ("failed", "No mail server is configured (SMTP_HOST)."),
        Channel.webhook: ("sent", None),
    }


def test_a_webhook_that_was_taken_away_meanwhile_is_not_sent(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    prefer(farm, printer_id, webhook_url=receiver.url, email_enabled=False)
    cause(farm, printer_id, "print.completed")
    prefer(farm, printer_id, webhook_url=None)
    drain(app, sender(app, clock))
    assert (deliveries(farm)[0].status, receiver.received) == (DeliveryStatus.failed, [])


def test_a_secret_that_cannot_be_read_fails_only_its_own_webhook(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    other = farm.add_printer("Right")["id"]
    prefer(farm, printer_id, webhook_url=receiver.url, email_enabled=False)
    prefer(farm, other, webhook_url=receiver.url, email_enabled=False)
    with farm.database() as session:
        session.execute(
            sa.update(PrintNotification)
            .where(PrintNotification.printer_id == printer_id)
            .values(webhook_secret_sealed="broken")
        )
        session.commit()
    for on in (printer_id, other):
        farm.move(farm.add_print(on)["id"], "started")
    assert drain(app, sender(app, clock)) == 2
    assert [each.status.value for each in deliveries(farm)] == ["failed", "sent"]


def test_the_oldest_go_first_and_no_more_than_asked(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    prefer(farm, printer_id, webhook_url=receiver.url, email_enabled=False, notify_print_start=False)
    finish_prints(farm, printer_id, 5)
    made = sender(app, clock)
    assert [drain(app, made, limit=3), drain(app, made, limit=3), drain(app, made)] == [3, 2, 0]
    names = [each.json["data"]["print"]["job_name"] for each in receiver.received]
    assert names == [f"Print {number}" for number in range(5)]


def test_two_senders_never_send_the_same_one(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    prefer(farm, printer_id, webhook_url=receiver.url, email_enabled=False)
    finish_prints(farm, printer_id, 20)
    # Slow enough for both to have their share.
    receiver.answer_with(204, delay_seconds=0.02, times=40)
    counts: list[int] = []
    gate = threading.Barrier(2)

    def run() -> None:
        made = sender(app, clock)
        gate.wait()
        counts.append(drain(app, made, limit=1000))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    ids = [each.headers["webhook-id"] for each in receiver.received]
    assert (len(ids), len(set(ids)), sum(counts)) == (40, 40, 40)
    assert min(counts) > 0
    assert {each.status for each in deliveries(farm)} == {DeliveryStatus.sent}


def test_what_a_dead_sender_had_claimed_is_taken_up_again_with_the_same_id(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    prefer(farm, printer_id, webhook_url=receiver.url, email_enabled=False)
    cause(farm, printer_id, "print.completed")

    class Dead:
        def send(self, url: str, secrets: list[str], message_id: str, body: bytes) -> Attempt:
            raise SystemExit

    with pytest.raises(SystemExit):
        drain(app, sender(app, clock, webhooks=Dead()))
    waiting = deliveries(farm)[0]
    assert (waiting.status, waiting.attempts) == (DeliveryStatus.sending, 1)
    assert drain(app, sender(app, clock)) == 0
    clock.now += CLAIM_LIFE + timedelta(seconds=1)
    assert drain(app, sender(app, clock)) == 1
    assert [each.headers["webhook-id"] for each in receiver.received] == [waiting.message_id]
    assert deliveries(farm)[0].attempts == 2


def test_no_transaction_is_open_while_the_network_is_waited_for(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, receiver: WebhookReceiver, mail: MailSink
) -> None:
    prefer(farm, printer_id, webhook_url=receiver.url)
    cause(farm, printer_id, "print.completed")
    seen: list[bool] = []
    parts = app.extensions["parts"]

    def look() -> None:
        """Another connection may write at once, and nobody is idle in a transaction."""
        seen.append(db.session.registry().in_transaction())
        if db.engine.dialect.name == "sqlite":
            with contextlib.closing(sqlite3.connect(db.engine.url.database or "", timeout=0)) as other:
                other.execute("BEGIN IMMEDIATE")
        else:
            idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = :name"
            with db.engine.connect() as connection:
                name = db.engine.url.database
                seen.append(connection.execute(sa.text(idle), {"name": name}).scalar_one() > 0)

    class WatchedWebhooks:
        def __init__(self) -> None:
            self._post = WebhookSender(parts.settings.webhook_allowed_networks, clock=clock)

        def send(self, url: str, secrets: list[str], message_id: str, body: bytes) -> Attempt:
            look()
            return self._post.send(url, secrets, message_id, body)

    class WatchedMail:
        def send(self, message: Mail) -> None:
            look()
            MailSender(mail.host, mail.port, "", "", "Farm <farm@example.com>", "none", clock=clock).send(message)

    assert drain(app, sender(app, clock, WatchedMail(), WatchedWebhooks())) == 2
    assert [each.status for each in deliveries(farm)] == [DeliveryStatus.sent] * 2
    assert seen and not any(seen)
