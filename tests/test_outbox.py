"""Deliveries on their way, over a real mail server and real receivers."""

from __future__ import annotations

import contextlib
import sqlite3
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from channels import Attempt, Mail, MailFailed, MailSender, WebhookSender
from claims import CLAIM_LIFE, FOLD_MOST
from delivery.ladder import ENDPOINT_PATIENCE, STEPS
from models import Channel, Delivery, DeliveryStatus, NotificationChannel, PrintNotification, db
from outbox import Outbox
from simulator import Plate, make_sliced_file
from simulator.sinks import MailSink, WebhookReceiver
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.outboxes import attempts, deliveries, finish_prints, make_outbox, numbers, prefer, stock, told

PENDING, SENDING, SENT, FAILED = DeliveryStatus


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


@pytest.fixture
def hooked(farm: Farm, printer_id: int, receiver: WebhookReceiver) -> int:
    """A printer of which nobody is told but the receiver."""
    receiver.trust(prefer(farm, printer_id, webhook_url=receiver.url, email_enabled=False)["webhook_secret"])
    return printer_id


@contextlib.contextmanager
def started(outbox: Outbox) -> Iterator[Outbox]:
    outbox.start()
    try:
        yield outbox
    finally:
        outbox.stop(5)


def ids(receiver: WebhookReceiver) -> list[str]:
    return [each.headers["webhook-id"] for each in receiver.received]


def statuses(farm: Farm) -> list[str]:
    return [each.status.value for each in deliveries(farm)]


def fail_a_print(farm: Farm, printer_id: int) -> None:
    farm.move(farm.add_print(printer_id)["id"], "started", "failed", failed_reason="it came <b>off</b>")


# One try


def test_mail_and_signed_webhook_arrive(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, mail: MailSink, receiver: WebhookReceiver
) -> None:
    receiver.trust(prefer(farm, printer_id, webhook_url=receiver.url)["webhook_secret"])
    fail_a_print(farm, printer_id)
    assert make_outbox(app, clock, mail).drain() == 4
    assert statuses(farm) == ["sent"] * 4
    assert [(each.json["type"], each.verified) for each in receiver.received] == [
        ("print.started", True),
        ("print.failed", True),
    ]
    assert receiver.received[1].json == deliveries(farm)[3].payload
    assert receiver.received[1].json["data"]["reason"] == "it came <b>off</b>"
    assert [message["To"] for message in mail.messages] == ["seller@example.com"] * 2
    html = mail.messages[1].get_body(("html",))
    assert html is not None and "it came &lt;b&gt;off" in html.get_content()


def test_every_try_is_kept_with_its_time_its_answer_and_its_first_bytes(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    receiver.answer_with(500, body=b"<b>no\x00\xff" + b"x" * 5000).answer_with(302, headers={"Location": "/elsewhere"})
    stock(farm, hooked, 1)
    outbox = make_outbox(app, clock)
    for seconds in (0, 5, 300):
        clock.forward(seconds=seconds)
        assert outbox.drain() == 1
    made = attempts(farm)
    assert [(each.at - BASE_TIME).total_seconds() for each in made] == [0, 5, 305]
    assert [(each.is_ok, each.answer_code, each.error) for each in made] == [
        (False, 500, "The receiver answered 500."),
        (False, 302, "The receiver answered 302; redirects are not followed."),
        (True, 204, None),
    ]
    assert made[0].answer is not None and made[0].answer.startswith("<b>no�xxx") and len(made[0].answer) <= 1000
    assert all(0 <= each.duration_ms < 5000 for each in made)
    done = deliveries(farm)[0]
    assert (done.status, done.error, done.sent_at, done.attempts) == (SENT, None, clock(), 3)
    assert (done.claimed_at, done.claimed_by) == (None, None)
    assert len(receiver.received) == 3 and len(set(ids(receiver))) == 1


def test_a_delivery_climbs_the_ladder_and_then_makes_way_for_the_next(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    stock(farm, hooked, 2)
    receiver.answer_with(503, times=len(STEPS))
    outbox = make_outbox(app, clock)
    for step in STEPS[:-1]:
        clock.now += step
        assert outbox.drain() == 1
        assert statuses(farm) == ["pending", "pending"]
        assert outbox.drain() == 0
    clock.now += STEPS[-1] - timedelta(milliseconds=1)
    assert outbox.drain() == 0
    clock.forward(milliseconds=1)
    assert outbox.drain() == 2
    assert statuses(farm) == ["failed", "sent"]
    assert numbers(receiver.received) == [0] * len(STEPS) + [1]
    assert [each.answer_code for each in attempts(farm)] == [503] * len(STEPS) + [204]


def test_jitter_spreads_the_next_try(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    stock(farm, hooked, 1)
    receiver.answer_with(500)
    make_outbox(app, clock, chance=lambda: 0.5).drain()
    assert deliveries(farm)[0].next_try_at == BASE_TIME + timedelta(seconds=5.25)


def test_the_head_of_a_stream_holds_those_behind_it_and_no_other_stream(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    other = farm.add_printer("Right")["id"]
    prefer(farm, other, webhook_url=receiver.url)
    receiver.answer_with(500)
    stock(farm, hooked, 3)
    stock(farm, other, 2, first=10)
    outbox = make_outbox(app, clock)
    outbox.drain()
    assert numbers(receiver.received) == [0, 10, 11]
    assert statuses(farm) == ["pending"] * 3 + ["sent"] * 2
    clock.forward(seconds=5)
    outbox.drain()
    assert numbers(receiver.received) == [0, 10, 11, 0, 1, 2]


def test_the_oldest_go_first_and_no_more_than_asked(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    stock(farm, hooked, 5)
    outbox = make_outbox(app, clock)
    assert [outbox.drain(limit=3), outbox.drain(limit=3), outbox.drain()] == [3, 2, 0]
    assert numbers(receiver.received) == list(range(5))


# Mails and messages


def test_a_mail_that_is_refused_for_good_has_failed_and_holds_up_none(
    app: Flask, farm: Farm, printer_id: int, clock: Clock
) -> None:
    stock(farm, printer_id, 1, channel=Channel.email, target="nobody@example.com")
    stock(farm, printer_id, 1, channel=Channel.email, target="seller@example.com", first=1)
    with MailSink(refuse={"nobody@example.com": "550 5.1.1 unknown"}) as refusing:
        assert make_outbox(app, clock, refusing).drain() == 2
        assert len(refusing.messages) == 1
    refused, sent = deliveries(farm)
    assert (refused.status, refused.error) == (FAILED, "The mail server refused the recipient: 550 5.1.1 unknown")
    assert sent.status is SENT
    assert [(each.is_ok, each.answer_code) for each in attempts(farm)] == [(False, 550), (True, None)]


def test_a_mail_that_is_refused_for_now_is_tried_again(app: Flask, farm: Farm, printer_id: int, clock: Clock) -> None:
    stock(farm, printer_id, 1, channel=Channel.email, target="seller@example.com")
    with MailSink(refuse={"seller@example.com": "451 4.7.1 later"}) as busy:
        make_outbox(app, clock, busy).drain()
    waiting = deliveries(farm)[0]
    assert (waiting.status, waiting.next_try_at) == (PENDING, BASE_TIME + STEPS[1])
    clock.forward(seconds=5)
    with MailSink() as sink:
        make_outbox(app, clock, sink).drain()
        assert [each["Message-ID"].count(waiting.message_id) for each in sink.messages] == [1]
    assert statuses(farm) == ["sent"]


def test_without_a_mail_server_a_mail_has_failed_and_a_webhook_has_not(
    app: Flask, farm: Farm, hooked: int, clock: Clock
) -> None:
    stock(farm, hooked, 1)
    stock(farm, hooked, 1, channel=Channel.email, target="seller@example.com")
    make_outbox(app, clock).drain()
    assert [(each.channel.value, each.status.value, each.error) for each in deliveries(farm)] == [
        ("webhook", "sent", None),
        ("email", "failed", "No mail server is configured (SMTP_HOST)."),
    ]


class Messages:
    """A service that takes messages, or does not."""

    def __init__(self, *faults: str | None) -> None:
        self.taken: list[tuple[str, str, str, bool]] = []
        self._faults = list(faults)

    def send(self, url: str, *, title: str, body: str, is_urgent: bool) -> Attempt:
        self.taken.append((url, title, body, is_urgent))
        fault = self._faults.pop(0) if self._faults else None
        return Attempt(fault is None, None, 3, fault, b"")


def add_channel(app: Flask, farm: Farm, printer_id: int, url: str) -> int:
    times = {"created_at": BASE_TIME, "updated_at": BASE_TIME}
    with farm.database() as session:
        made = NotificationChannel(
            user_id=farm.user["id"], printer_id=printer_id, name="phone", service="ntfy", url_sealed="", **times
        )
        made.url_sealed = app.extensions["parts"].vault.seal(url, made.secret_owner)
        session.add(made)
        session.commit()
        return made.id


def test_a_message_goes_through_its_channel_and_is_tried_again(
    app: Flask, farm: Farm, printer_id: int, clock: Clock
) -> None:
    channel = add_channel(app, farm, printer_id, "ntfy://secret-topic")
    fail_a_print(farm, printer_id)
    with farm.database() as session:
        session.execute(sa.delete(Delivery).where(Delivery.channel != Channel.apprise))
        session.commit()
    service = Messages("busy")
    outbox = make_outbox(app, clock, messages=service)
    assert outbox.drain() == 2
    clock.forward(seconds=5)
    assert outbox.drain() == 1
    assert [(url, urgent) for url, _, _, urgent in service.taken] == [
        ("ntfy://secret-topic", False),
        ("ntfy://secret-topic", True),
        ("ntfy://secret-topic", False),
    ]
    assert all(title and body for _, title, body, _ in service.taken)
    assert {each.destination for each in deliveries(farm)} == {f"channel:{channel}"}
    assert [each.error for each in attempts(farm)] == ["busy", None, None]
    assert "secret-topic" not in str([(each.target, each.payload) for each in deliveries(farm)])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"is_enabled": False}, "The channel is switched off."),
        ({"url_sealed": "broken"}, "The channel's address cannot be read any more: enter it again."),
    ],
)
def test_a_channel_that_is_of_no_use_any_more_fails_with_its_reason(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, change: dict[str, Any], reason: str
) -> None:
    channel = add_channel(app, farm, printer_id, "ntfy://topic")
    target = {"channel": Channel.apprise, "destination": f"channel:{channel}", "channel_id": channel}
    stock(farm, printer_id, 1, target="phone", **target)
    with farm.database() as session:
        session.execute(sa.update(NotificationChannel).values(change))
        session.commit()
    make_outbox(app, clock, messages=Messages()).drain()
    assert [(each.status, each.error) for each in deliveries(farm)] == [(FAILED, reason)]


def test_a_mail_about_a_print_shows_its_plate(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, mail: MailSink
) -> None:
    file = farm.add_file(make_sliced_file(None, [Plate(minutes=30)]))
    made = farm.add_print(printer_id, print_file_id=file["id"])
    farm.move(made["id"], "started")
    assert make_outbox(app, clock, mail).drain() == 1
    kinds = [part.get_content_type() for part in mail.messages[0].walk()]
    assert kinds.count("image/png") == 1


# Folding


def test_a_burst_of_mails_is_one_summary_and_a_few_are_not(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, mail: MailSink
) -> None:
    outbox = make_outbox(app, clock, mail)
    stock(farm, printer_id, 3, channel=Channel.email, target="seller@example.com")
    assert outbox.drain() == 3
    stock(farm, printer_id, 2, channel=Channel.email, target="seller@example.com", first=3)
    other = farm.add_printer("Right")["id"]
    stock(farm, other, 2, channel=Channel.email, target="seller@example.com", first=5)
    assert outbox.drain() == 1
    assert len(mail.messages) == 4
    folded = deliveries(farm)[3:]
    assert [each.status for each in folded] == [SENT] * 4
    assert [each.folded_into_id for each in folded] == [None, *[folded[0].id] * 3]
    assert folded[0].message_id in mail.messages[-1]["Message-ID"]


def test_a_summary_that_did_not_arrive_is_repeated_as_that_summary(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, mail: MailSink
) -> None:
    made = stock(farm, printer_id, 5, channel=Channel.email, target="seller@example.com")

    class Down:
        def send(self, message: Mail) -> None:
            raise MailFailed("down", is_final=False)

    make_outbox(app, clock, Down()).drain()
    assert {each.next_try_at for each in deliveries(farm)} == {BASE_TIME + STEPS[1]}
    clock.forward(seconds=5)
    stock(farm, printer_id, 5, channel=Channel.email, target="seller@example.com", first=5)
    assert make_outbox(app, clock, mail).drain() == 2
    assert [each.folded_into_id for each in deliveries(farm)] == [None, *[made[0]] * 4, None, *[made[0] + 5] * 4]
    assert statuses(farm) == ["sent"] * 10
    ids_sent = [message["Message-ID"] for message in mail.messages]
    assert len(ids_sent) == 2 and deliveries(farm)[0].message_id in ids_sent[0]


def test_what_was_held_goes_out_as_a_summary_however_little_it_is(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, mail: MailSink
) -> None:
    held = {"channel": Channel.email, "target": "seller@example.com", "next_try_at": BASE_TIME + timedelta(hours=8)}
    stock(farm, printer_id, 2, **held)
    outbox = make_outbox(app, clock, mail)
    assert outbox.drain() == 0
    clock.forward(hours=8)
    assert outbox.drain() == 1 and len(mail.messages) == 1


def test_a_flood_is_folded_in_parts(app: Flask, farm: Farm, printer_id: int, clock: Clock, mail: MailSink) -> None:
    stock(farm, printer_id, FOLD_MOST + 4, channel=Channel.email, target="seller@example.com")
    assert make_outbox(app, clock, mail).drain() == 2
    assert set(statuses(farm)) == {"sent"}


def test_one_of_a_summary_that_is_sent_once_more_goes_by_itself(
    app: Flask, farm: Farm, printer_id: int, clock: Clock, mail: MailSink
) -> None:
    made = stock(farm, printer_id, 4, channel=Channel.email, target="seller@example.com")
    outbox = make_outbox(app, clock, mail)
    outbox.drain()
    with farm.database() as session:
        session.execute(sa.update(Delivery).where(Delivery.id == made[2]).values(status=PENDING, tries=0))
        session.commit()
    assert outbox.drain() == 1
    assert deliveries(farm)[2].message_id in mail.messages[-1]["Message-ID"]


# Endpoints


def rotated(app: Flask, farm: Farm, printer_id: int, old: str, until: Any) -> None:
    with farm.database() as session:
        row = session.execute(sa.select(PrintNotification)).scalar_one()
        row.webhook_old_secret_sealed = app.extensions["parts"].vault.seal(old, row.secret_owner("webhook_old_secret"))
        row.webhook_old_secret_until = until
        session.commit()


def test_both_secrets_sign_for_as_long_as_a_rotation_lasts(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    old = "whsec_" + "b2xkc2VjcmV0b2xkc2VjcmV0b2xkc2VjcmV0b2w="
    rotated(app, farm, hooked, old, BASE_TIME + timedelta(days=1))
    outbox = make_outbox(app, clock)
    stock(farm, hooked, 1)
    outbox.drain()
    receiver.trust(old)
    stock(farm, hooked, 1, first=1)
    outbox.drain()
    clock.forward(days=1)
    stock(farm, hooked, 1, first=2)
    outbox.drain()
    assert [each.verified for each in receiver.received] == [True, True, False]
    assert [len(each.headers["webhook-signature"].split()) for each in receiver.received] == [2, 2, 1]


def endpoint(farm: Farm) -> PrintNotification:
    with farm.database() as session:
        found = session.execute(sa.select(PrintNotification)).scalar_one()
        session.expunge_all()
        return found


def test_410_switches_an_endpoint_off_at_once_and_its_owner_is_told(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, mail: MailSink
) -> None:
    receiver.answer_with(410)
    stock(farm, hooked, 3)
    outbox = make_outbox(app, clock, mail)
    outbox.drain()
    assert len(receiver.received) == 1
    webhooks = [each for each in deliveries(farm) if each.channel is Channel.webhook]
    assert {each.status for each in webhooks} == {FAILED}
    assert "switched off" in (webhooks[1].error or "") and webhooks[0].error == "The receiver answered 410."
    off = endpoint(farm)
    assert (off.webhook_disabled_at, off.webhook_disabled_reason) == (
        BASE_TIME,
        "the receiver answered 410: it does not want any more",
    )
    assert told(farm)[-1] == ("webhook.disabled", "email")
    outbox.drain()
    assert len(mail.messages) == 1 and len(receiver.received) == 1


def test_what_an_endpoint_missed_while_it_was_off_can_be_sent_once_it_is_on(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, mail: MailSink
) -> None:
    receiver.answer_with(410)
    made = stock(farm, hooked, 2)
    outbox = make_outbox(app, clock, mail)
    outbox.drain()
    prefer(farm, hooked, webhook_enabled=True)
    for each in made:
        assert farm.post(f"/api/bambu/deliveries/{each}/replay").status_code == 200
    outbox.drain()
    assert numbers(receiver.received) == [0, 0, 1] and receiver.received[1].verified


def test_five_days_without_an_arrival_switch_an_endpoint_off(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, mail: MailSink
) -> None:
    receiver.answer_with(500)
    stock(farm, hooked, 1)
    outbox = make_outbox(app, clock, mail)
    outbox.drain()
    assert endpoint(farm).webhook_failing_since == BASE_TIME
    clock.now += ENDPOINT_PATIENCE - timedelta(seconds=1)
    assert outbox.switch_off_lost() == 0
    clock.forward(seconds=1)
    assert outbox.switch_off_lost() == 1 and outbox.switch_off_lost() == 0
    assert endpoint(farm).webhook_disabled_reason == "nothing has arrived there for 5 days"
    assert statuses(farm)[0] == "failed"
    outbox.drain()
    assert len(mail.messages) == 1


def test_one_arrival_ends_what_an_endpoint_was_blamed_for(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    receiver.answer_with(500, times=2)
    stock(farm, hooked, 1)
    outbox = make_outbox(app, clock)
    for seconds in (0, 5):
        clock.forward(seconds=seconds)
        outbox.drain()
        assert endpoint(farm).webhook_failing_since == BASE_TIME
    clock.forward(minutes=5)
    outbox.drain()
    assert endpoint(farm).webhook_failing_since is None
    clock.now += ENDPOINT_PATIENCE
    assert outbox.switch_off_lost() == 0


def test_what_waits_goes_to_the_address_that_was_put_right(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    prefer(farm, hooked, webhook_url="http://127.0.0.1:9/wrong")
    stock(farm, hooked, 2, target="http://127.0.0.1:9/wrong")
    outbox = make_outbox(app, clock)
    outbox.drain()
    assert deliveries(farm)[0].error == "The receiver refused the connection."
    receiver.trust(prefer(farm, hooked, webhook_url=receiver.url)["webhook_secret"])
    clock.forward(seconds=5)
    outbox.drain()
    assert numbers(receiver.received) == [0, 1] and all(each.verified for each in receiver.received)
    assert {each.target for each in deliveries(farm)} == {receiver.url}


def test_a_webhook_that_was_taken_away_meanwhile_is_not_sent(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    stock(farm, hooked, 1)
    with farm.database() as session:
        session.execute(sa.update(PrintNotification).values(webhook_url=None))
        session.commit()
    make_outbox(app, clock).drain()
    assert (statuses(farm), receiver.received) == (["failed"], [])


def test_a_secret_that_cannot_be_read_fails_only_its_own_webhook(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    other = farm.add_printer("Right")["id"]
    prefer(farm, other, webhook_url=receiver.url, email_enabled=False)
    with farm.database() as session:
        broken = sa.update(PrintNotification).where(PrintNotification.printer_id == hooked)
        session.execute(broken.values(webhook_secret_sealed="broken"))
        session.commit()
    stock(farm, hooked, 1)
    stock(farm, other, 1)
    assert make_outbox(app, clock).drain() == 2
    assert statuses(farm) == ["failed", "sent"]


# Several senders, and senders that die


def test_two_senders_never_send_the_same_one(app: Flask, farm: Farm, clock: Clock, receiver: WebhookReceiver) -> None:
    printers = [farm.add_printer(f"P{number}")["id"] for number in range(8)]
    for each in printers:
        prefer(farm, each, webhook_url=receiver.url, email_enabled=False)
        stock(farm, each, 5)
    outboxes = [make_outbox(app, clock), make_outbox(app, clock)]
    for outbox in outboxes:
        outbox.deliver_due()
    for _ in range(100):
        for outbox in outboxes:
            assert outbox.wait_idle(30)
        if set(statuses(farm)) == {"sent"}:
            break
        for outbox in outboxes:
            outbox.deliver_due()
    sent = Counter((each.json["data"]["printer"]["id"], each.json["data"]["number"]) for each in receiver.received)
    assert set(sent.values()) == {1} and len(sent) == 40
    for each in printers:
        own = [post for post in receiver.received if post.json["data"]["printer"]["id"] == each]
        assert numbers(own) == list(range(5))
    for outbox in outboxes:
        outbox.stop(5)


def test_one_of_many_who_take_the_same_gets_it(app: Flask, farm: Farm, hooked: int, clock: Clock) -> None:
    stock(farm, hooked, 1)
    senders = [make_outbox(app, clock) for _ in range(8)]
    streams = senders[0]._claims.due(clock())
    loads = [sender._claims.look(streams[0], clock()) for sender in senders]
    gate, taken = threading.Barrier(len(senders)), list[bool]()

    def take(sender: Outbox, load: Any) -> None:
        gate.wait()
        taken.append(sender._claims.take(load, clock()))

    threads = [threading.Thread(target=take, args=each) for each in zip(senders, loads, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(taken) == [False] * 7 + [True]


class Dies:
    """A way out in which the sender dies."""

    def send(self, url: str, secrets: Sequence[str], message_id: str, body: bytes) -> Attempt:
        raise SystemExit

    def close(self) -> None:
        pass


def test_what_a_dead_sender_had_claimed_is_taken_up_again_with_the_same_id(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    stock(farm, hooked, 2)
    with pytest.raises(SystemExit):
        make_outbox(app, clock, webhooks=Dies()).drain()
    waiting = deliveries(farm)[0]
    assert (waiting.status, waiting.attempts) == (SENDING, 1)
    outbox = make_outbox(app, clock)
    assert outbox.drain() == 0
    # The figure itself is promised: longer would be a printer's silence.
    clock.forward(minutes=2)
    assert outbox.drain() == 2
    assert ids(receiver) == [each.message_id for each in deliveries(farm)]
    assert deliveries(farm)[0].attempts == 2


def test_who_has_lost_a_claim_writes_nothing_down(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    stock(farm, hooked, 1)
    late = make_outbox(app, clock)
    load = late._claims.look(late._claims.due(clock())[0], clock())
    assert load is not None and late._claims.take(load, clock())
    clock.now += CLAIM_LIFE
    assert make_outbox(app, clock).drain() == 1
    before = deliveries(farm)[0]
    late._record(load, late._courier.try_once(load), clock())
    after = deliveries(farm)[0]
    assert (after.status, after.sent_at, len(attempts(farm))) == (SENT, before.sent_at, 1)


def test_a_sender_that_stops_finishes_what_is_under_way_and_begins_nothing(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    receiver.answer_with(204, delay_seconds=0.3)
    stock(farm, hooked, 3)
    outbox = make_outbox(app, clock)
    outbox.start()
    assert receiver.wait_for(1)
    outbox.stop(10)
    assert statuses(farm) == ["sent", "pending", "pending"] and len(receiver.received) == 1


def test_a_sender_that_may_not_finish_hands_back_what_it_has(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    receiver.answer_with(204, delay_seconds=1.0)
    stock(farm, hooked, 1)
    outbox = make_outbox(app, clock)
    outbox.start()
    assert receiver.wait_for(1)
    began = time.monotonic()
    outbox.stop(0.1)
    assert time.monotonic() - began < 0.9
    back = deliveries(farm)[0]
    assert (back.status, back.claimed_by, back.claimed_at) == (PENDING, None, None)
    assert make_outbox(app, clock).drain() == 1
    assert len(set(ids(receiver))) == 1


# At once


def test_what_is_committed_leaves_at_once_and_what_is_not_does_not(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    values = row_of(farm, hooked, 1)
    with started(make_outbox(app, clock)) as outbox:
        assert outbox.wait_idle(5)
        with app.app_context():
            db.session.add(Delivery(**values))
            db.session.flush()
            time.sleep(0.1)
            assert receiver.received == []
            db.session.rollback()
        assert outbox.wait_idle(5) and receiver.received == []
        farm.move(farm.add_print(hooked)["id"], "started", "completed")
        assert receiver.wait_for(2)
    assert [each.json["type"] for each in receiver.received] == ["print.started", "print.completed"]


def row_of(farm: Farm, printer_id: int, number: int) -> dict[str, Any]:
    made = stock(farm, printer_id, 1, first=number)
    with farm.database() as session:
        row = session.get_one(Delivery, made[0])
        values = {
            column.name: getattr(row, column.name) for column in Delivery.__table__.columns if column.name != "id"
        }
        session.delete(row)
        session.commit()
    return values


def test_what_is_sent_once_more_leaves_at_once(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    made = stock(farm, hooked, 1, status=FAILED)
    with started(make_outbox(app, clock)):
        assert farm.post(f"/api/bambu/deliveries/{made[0]}/replay").status_code == 200
        assert receiver.wait_for(1)


def test_the_next_of_a_stream_follows_without_a_sweep(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    receiver.answer_with(204, delay_seconds=0.2)
    with started(make_outbox(app, clock)):
        finish_prints(farm, hooked, 3)
        assert receiver.wait_for(6)
    assert [each.json["data"]["event_id"] for each in receiver.received] == sorted(
        each.json["data"]["event_id"] for each in receiver.received
    )


def test_a_fault_of_one_stream_stops_no_other(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    other = farm.add_printer("Right")["id"]
    prefer(farm, other, webhook_url=receiver.url, email_enabled=False)
    parts = app.extensions["parts"]

    class Broken:
        def __init__(self) -> None:
            self._post = WebhookSender(parts.settings.webhook_allowed_networks, clock=clock)

        def send(self, url: str, secrets: Sequence[str], message_id: str, body: bytes) -> Attempt:
            if message_id.startswith(f"msg_{hooked}_"):
                raise ZeroDivisionError
            return self._post.send(url, secrets, message_id, body)

        def close(self) -> None:
            self._post.close()

    stock(farm, hooked, 1)
    with started(make_outbox(app, clock, webhooks=Broken(), threads=1)) as outbox:
        assert outbox.wait_idle(10)
        stock(farm, other, 3)
        outbox.deliver_due()
        assert receiver.wait_for(3)
        assert outbox.wait_idle(10)
    assert statuses(farm) == ["sending", "sent", "sent", "sent"]


def test_no_transaction_is_open_while_the_network_is_waited_for(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, mail: MailSink
) -> None:
    seen: list[bool] = []
    parts = app.extensions["parts"]

    def look() -> None:
        """Another connection may write at once, and nobody is idle in a transaction."""
        with app.app_context():
            if db.engine.dialect.name == "sqlite":
                with contextlib.closing(sqlite3.connect(db.engine.url.database or "", timeout=0)) as other:
                    other.execute("BEGIN IMMEDIATE")
                    seen.append(False)
            else:
                idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = :name"
                with db.engine.connect() as connection:
                    name = db.engine.url.database
                    seen.append(connection.execute(sa.text(idle), {"name": name}).scalar_one() > 0)

    class WatchedWebhooks:
        def __init__(self) -> None:
            self._post = WebhookSender(parts.settings.webhook_allowed_networks, clock=clock)

        def send(self, url: str, secrets: Sequence[str], message_id: str, body: bytes) -> Attempt:
            look()
            return self._post.send(url, secrets, message_id, body)

        def close(self) -> None:
            self._post.close()

    class WatchedMail:
        def send(self, message: Mail) -> None:
            look()
            MailSender(mail.host, mail.port, "", "", "Farm <farm@example.com>", "none", clock=clock).send(message)

    stock(farm, hooked, 1)
    stock(farm, hooked, 1, channel=Channel.email, target="seller@example.com")
    assert make_outbox(app, clock, WatchedMail(), WatchedWebhooks()).drain() == 2
    assert statuses(farm) == ["sent"] * 2 and seen == [False, False]


# Many receivers


def test_one_tarpit_delays_nobody_else(app: Flask, farm: Farm, clock: Clock) -> None:
    """Fifty receivers, one of which takes connections and says nothing. The others get one webhook after the other."""
    began: dict[int, float] = {}
    took: list[float] = []
    with contextlib.ExitStack() as stack:
        receivers = [stack.enter_context(Timed(clock, began, took)) for _ in range(49)]
        tarpit = stack.enter_context(WebhookReceiver(clock=clock))
        tarpit.answer_with(204, delay_seconds=8.0, times=1000)
        printers = []
        for number, each in enumerate([tarpit] * 6 + receivers):
            printers.append(farm.add_printer(f"P{number}")["id"])
            prefer(farm, printers[-1], webhook_url=each.url, email_enabled=False)
        for printer in printers[:6]:
            stock(farm, printer, 3, next_try_at=BASE_TIME)
        with started(make_outbox(app, clock, timeout_seconds=7.0)):
            assert tarpit.wait_for(4)
            for wave in range(3):
                for printer in printers[6:]:
                    began[printer] = time.monotonic()
                    stock(farm, printer, 1, first=wave, next_try_at=BASE_TIME)
                for each in receivers:
                    assert each.wait_for(wave + 1, timeout_seconds=20)
            assert len(tarpit.received) <= 4
    assert len(took) == 49 * 3
    assert statistics.quantiles(took, n=100)[94] < 2.0


class Timed(WebhookReceiver):
    """One that notes how long each delivery was on its way."""

    def __init__(self, clock: Callable[[], Any], began: dict[int, float], took: list[float]) -> None:
        super().__init__(clock=clock)
        self._began, self._took = began, took

    def take(self, headers: Any, body: bytes) -> Any:
        answer = super().take(headers, body)
        self._took.append(time.monotonic() - self._began[self.received[-1].json["data"]["printer"]["id"]])
        return answer


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.prove)])
def test_a_receiver_that_was_down_for_an_hour_gets_everything_in_order(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, count: int
) -> None:
    outbox = make_outbox(app, clock)
    # Nobody listens there for the hour.
    move_to(farm, "http://127.0.0.1:9/hook")
    tries = 0
    parts = 20
    for part in range(parts):
        stock(farm, hooked, count // parts, first=part * (count // parts))
        tries += outbox.drain(limit=count)
        clock.forward(seconds=3600 / parts)
    assert receiver.received == [] and tries == 4
    move_to(farm, receiver.url)
    clock.forward(hours=2)
    began = time.monotonic()
    with started(outbox):
        assert receiver.wait_for(count, timeout_seconds=600)
        assert outbox.wait_idle(30)
    print(f"\n{count} webhooks after an hour: {(time.monotonic() - began) / count * 1000:.2f} ms each")
    assert numbers(receiver.received) == list(range(count))
    assert len(set(ids(receiver))) == count
    assert set(statuses(farm)) == {"sent"}


def move_to(farm: Farm, url: str) -> None:
    with farm.database() as session:
        session.execute(sa.update(PrintNotification).values(webhook_url=url))
        session.commit()


def test_old_attempts_are_forgotten_and_deliveries_are_not(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    stock(farm, hooked, 1)
    outbox = make_outbox(app, clock)
    outbox.drain()
    clock.forward(days=89)
    assert outbox.forget_old_attempts() == 0
    clock.forward(days=2)
    assert outbox.forget_old_attempts() == 1
    assert len(deliveries(farm)) == 1
