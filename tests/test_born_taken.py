"""Webhooks that are written as taken: they leave with the commit, and none is lost, doubled or overtaken for it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from claims import CLAIM_LIFE, Stream
from models import Delivery, DeliveryStatus, PrintEvent, db
from notifications import fan_out
from outbox import BORN_TAKEN_FOR, Outbox
from simulator.sinks import WebhookReceiver
from tests.conftest import Clock
from tests.farm_builder import Farm
from tests.outboxes import attempts, deliveries, make_outbox, prefer

PENDING, SENDING, SENT, FAILED = DeliveryStatus


@pytest.fixture
def receiver(clock: Clock) -> Iterator[WebhookReceiver]:
    with WebhookReceiver(clock=clock) as sink:
        yield sink


@pytest.fixture
def hooked(farm: Farm, receiver: WebhookReceiver) -> int:
    """A printer of which nobody is told but the receiver."""
    return add_hooked(farm, receiver, "Left")


@pytest.fixture
def outbox(app: Flask, clock: Clock) -> Iterator[Outbox]:
    """One that listens, and has looked for what others left lying."""
    made = make_outbox(app, clock)
    made.start()
    assert made.wait_idle(10)
    yield made
    made.stop(5)


@contextlib.contextmanager
def one_after_the_other(outbox: Outbox) -> Iterator[None]:
    """Nothing is handed over before the end, as if the threads were slow."""
    late: list[Any] = []
    outbox.hand = late.append  # type: ignore[method-assign]
    yield
    del outbox.hand
    for loads in late:
        outbox.hand(loads)


def happen(farm: Farm, printer_id: int, clock: Clock, *, kind: str = "print.completed") -> None:
    """An event in the present transaction, and whoever is to be told of it."""
    event = PrintEvent(user_id=farm.user["id"], printer_id=printer_id, kind=kind, details={}, at=clock())
    db.session.add(event)
    fan_out(event)


def states(farm: Farm) -> list[tuple[DeliveryStatus, int, int]]:
    return [(each.status, each.attempts, each.tries) for each in deliveries(farm)]


def commit_one(farm: Farm, printer_id: int, clock: Clock) -> None:
    with farm.database() as session:
        happen(farm, printer_id, clock)
        session.commit()


def add_hooked(farm: Farm, receiver: WebhookReceiver, name: str) -> int:
    printer_id = int(farm.add_printer(name)["id"])
    receiver.trust(prefer(farm, printer_id, webhook_url=receiver.url, email_enabled=False)["webhook_secret"])
    return printer_id


def told_ids(receiver: WebhookReceiver) -> list[int]:
    return [each.json["data"]["event_id"] for each in receiver.received]


def test_nobody_asks_the_database_between_the_commit_and_the_post(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    assert outbox.wait_idle(5)
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if threading.current_thread().name == "lane" and not receiver.received:
            asked.append(statement)

    with farm.database():
        sa.event.listen(db.engine, "before_cursor_execute", note)
        try:
            happen(farm, hooked, clock)
            db.session.commit()
            assert receiver.wait_for(1) and outbox.wait_idle(5)
        finally:
            sa.event.remove(db.engine, "before_cursor_execute", note)
    assert asked == []
    assert states(farm) == [(SENT, 1, 1)] and receiver.received[0].verified
    assert [each.is_ok for each in attempts(farm)] == [True]


def test_whoever_commits_goes_on_once_the_webhook_is_taken(
    app: Flask, farm: Farm, hooked: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after a commit would take the interpreter from the sender."""
    monkeypatch.setattr("outbox.HANDED_SECONDS", 10.0)
    may_take, steps = threading.Event(), list[str]()

    def step(name: str) -> None:
        assert name != "claiming" or may_take.wait(10)
        steps.append(name)

    outbox = make_outbox(app, clock, at_step=step)
    outbox.start()
    committing = threading.Thread(target=commit_one, args=(farm, hooked, clock))
    committing.start()
    committing.join(0.1)
    assert committing.is_alive() and steps == []
    may_take.set()
    committing.join(10)
    assert not committing.is_alive() and "claimed" in steps
    assert outbox.wait_idle(5)
    outbox.stop(5)


def test_what_is_sent_first_and_what_is_sent_again_is_the_same(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    receiver.answer_with(503)
    farm.move(farm.add_print(hooked, "Vase “ü”")["id"], "started")
    assert receiver.wait_for(1) and outbox.wait_idle(5)
    assert states(farm) == [(PENDING, 1, 1)]
    assert deliveries(farm)[0].next_try_at == clock() + timedelta(seconds=5)
    clock.forward(seconds=5)
    outbox.deliver_due()
    assert receiver.wait_for(2) and outbox.wait_idle(5)
    first, again = receiver.received
    assert first.json == again.json == deliveries(farm)[0].payload
    assert first.headers["webhook-id"] == again.headers["webhook-id"]
    assert states(farm) == [(SENT, 2, 2)]


def test_what_is_not_committed_is_not_sent(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    with farm.database() as session:
        happen(farm, hooked, clock)
        session.rollback()
        session.commit()
    assert outbox.wait_idle(5)
    assert deliveries(farm) == [] and receiver.received == []


def test_a_savepoint_that_is_taken_back_takes_nothing_else_with_it(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    other = add_hooked(farm, receiver, "Right")
    with farm.database() as session:
        happen(farm, hooked, clock)
        with contextlib.suppress(ZeroDivisionError), session.begin_nested():
            happen(farm, other, clock)
            raise ZeroDivisionError
        session.commit()
    assert receiver.wait_for(1) and outbox.wait_idle(5)
    assert [each.json["data"]["printer"]["id"] for each in receiver.received] == [hooked]
    assert states(farm) == [(SENT, 1, 1)]


def test_a_savepoint_hands_nothing_over_before_the_transaction_around_it(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    handed: list[Any] = []
    outbox.hand = handed.append  # type: ignore[method-assign]
    with farm.database() as session:
        happen(farm, hooked, clock)
        with session.begin_nested():
            session.add(PrintEvent(user_id=farm.user["id"], printer_id=hooked, kind="x", details={}, at=clock()))
        assert handed == []
        session.commit()
    assert [len(loads) for loads in handed] == [1]


def test_only_the_first_of_a_stream_is_taken_and_the_others_follow_in_their_order(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    with one_after_the_other(outbox):
        with farm.database() as session:
            happen(farm, hooked, clock)
            happen(farm, hooked, clock, kind="print.failed")
            session.commit()
        farm.move(farm.add_print(hooked)["id"], "started")
        assert states(farm) == [(SENDING, 1, 1), (PENDING, 0, 0), (PENDING, 0, 0)]
    assert receiver.wait_for(3) and outbox.wait_idle(5)
    assert told_ids(receiver) == sorted(told_ids(receiver))
    assert states(farm) == [(SENT, 1, 1)] * 3


def test_two_that_were_taken_without_knowing_of_each_other_are_both_sent(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    """As of two transactions that run at once, of which none sees the other's row."""
    with one_after_the_other(outbox):
        for _ in range(2):
            with farm.database() as session:
                session.execute(sa.update(Delivery).values(status=DeliveryStatus.sent))
                happen(farm, hooked, clock)
                session.execute(sa.update(Delivery).values(status=DeliveryStatus.sending))
                session.commit()
    assert receiver.wait_for(2) and outbox.wait_idle(5)
    assert told_ids(receiver) == sorted(told_ids(receiver))
    assert states(farm) == [(SENT, 1, 1)] * 2


def test_one_whose_first_try_is_to_be_repeated_is_not_overtaken_by_what_knew_nothing_of_it(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    receiver.answer_with(503)
    late: list[Any] = []
    commit_one(farm, hooked, clock)
    assert receiver.wait_for(1) and outbox.wait_idle(5)
    outbox.hand = late.append  # type: ignore[method-assign]
    with farm.database() as session:
        waiting = sa.select(Delivery.id).where(Delivery.status == PENDING)
        (first,) = session.execute(waiting).scalars().all()
        session.execute(sa.update(Delivery).values(status=SENT))
        happen(farm, hooked, clock)
        session.execute(sa.update(Delivery).where(Delivery.id == first).values(status=PENDING))
        session.commit()
    del outbox.hand
    outbox.hand(late[0])
    assert outbox.wait_idle(5)
    assert len(receiver.received) == 1
    assert states(farm) == [(PENDING, 1, 1), (PENDING, 0, 0)]
    clock.forward(seconds=5)
    outbox.deliver_due()
    assert receiver.wait_for(3) and outbox.wait_idle(5)
    assert told_ids(receiver)[1:] == sorted(told_ids(receiver)[1:])


def test_what_was_given_up_untried_begins_at_the_foot_of_the_ladder(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    receiver.answer_with(503)
    with one_after_the_other(outbox):
        commit_one(farm, hooked, clock)
        clock.forward(seconds=BORN_TAKEN_FOR.total_seconds() + 1)
    assert receiver.wait_for(1) and outbox.wait_idle(5)
    assert states(farm) == [(PENDING, 1, 1)] and len(attempts(farm)) == 1
    assert deliveries(farm)[0].next_try_at == clock() + timedelta(seconds=5)


@pytest.mark.parametrize(
    "decided", [{"webhook_url": None}, {"webhook_enabled": False}, {"webhook_url": "http://127.0.0.1:9/elsewhere"}]
)
def test_one_that_waited_for_its_host_goes_by_what_was_decided_meanwhile(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, decided: dict[str, Any]
) -> None:
    other = add_hooked(farm, receiver, "Right")
    receiver.answer_with(204, delay_seconds=0.7)
    outbox = make_outbox(app, clock, at_one_host=1)
    outbox.start()
    commit_one(farm, hooked, clock)
    assert receiver.wait_for(1)
    commit_one(farm, other, clock)
    prefer(farm, other, **decided)
    assert outbox.wait_idle(5)
    outbox.stop(5)
    assert len(receiver.received) == 1


def test_giving_up_is_tried_again_when_the_database_was_away(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    claims, is_away = outbox._claims, [True]
    give_up = claims.give_up

    def give_up_later(load: Any, now: Any) -> None:
        if is_away.pop() if is_away else False:
            raise sa.exc.OperationalError("UPDATE", {}, Exception("away"))
        give_up(load, now)

    claims.give_up = give_up_later  # type: ignore[method-assign]
    with one_after_the_other(outbox):
        commit_one(farm, hooked, clock)
        clock.forward(seconds=BORN_TAKEN_FOR.total_seconds() + 1)
    assert outbox.wait_idle(5)
    assert states(farm) == [(SENDING, 1, 1)]
    outbox.deliver_due()
    assert receiver.wait_for(1) and outbox.wait_idle(5)
    assert states(farm) == [(SENT, 1, 1)]


def test_a_commit_does_not_fail_for_want_of_a_thread_and_the_sweep_sends_what_it_made(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = add_hooked(farm, receiver, "Right")
    outbox = make_outbox(app, clock)
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == "lane":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        outbox.start()
        with farm.database() as session:
            happen(farm, hooked, clock)
            happen(farm, other, clock)
            session.commit()
    commit_one(farm, other, clock)
    outbox.wake([Stream(1, 10**6, "webhook")])
    assert receiver.wait_for(3) and outbox.wait_idle(5)
    outbox.stop(5)
    assert states(farm) == [(SENT, 1, 1)] * 3


def test_a_rollback_that_fails_hands_nothing_to_the_next_transaction(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    with farm.database() as session:
        happen(farm, hooked, clock)
        dialect = db.engine.dialect
        roll_back = dialect.do_rollback

        def fail(connection: Any) -> None:
            roll_back(connection)
            raise sa.exc.DBAPIError("ROLLBACK", {}, Exception("server closed the connection"))

        dialect.do_rollback = fail  # type: ignore[method-assign]
        with contextlib.suppress(sa.exc.DBAPIError):
            session.rollback()
        del dialect.do_rollback
        session.rollback()
        session.execute(sa.text("SELECT 1"))
        session.commit()
    assert outbox.wait_idle(5)
    assert deliveries(farm) == [] and receiver.received == []


@pytest.mark.parametrize("preferred", [{"webhook_url": None}, {"webhook_url": "http://127.0.0.1:9/elsewhere"}])
def test_what_could_not_leave_for_a_while_goes_by_what_is_preferred_then(
    app: Flask,
    farm: Farm,
    hooked: int,
    clock: Clock,
    receiver: WebhookReceiver,
    outbox: Outbox,
    preferred: dict[str, Any],
) -> None:
    with one_after_the_other(outbox):
        commit_one(farm, hooked, clock)
        prefer(farm, hooked, **preferred)
        clock.forward(seconds=BORN_TAKEN_FOR.total_seconds() + 1)
    assert outbox.wait_idle(5)
    assert receiver.received == []
    (tried,) = deliveries(farm)
    assert tried.status is (FAILED if preferred["webhook_url"] is None else PENDING)
    assert tried.target == (preferred["webhook_url"] or receiver.url)


def test_a_sender_that_has_stopped_takes_nothing_and_gives_back_what_it_had(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    stopped = make_outbox(app, clock)
    stopped.start()
    with farm.database() as session:
        happen(farm, hooked, clock)
        stopped.stop(5)
        session.commit()
    assert states(farm) == [(PENDING, 0, 0)] and deliveries(farm)[0].claimed_by is None
    commit_one(farm, hooked, clock)
    assert [each.status for each in deliveries(farm)] == [PENDING, PENDING]
    assert receiver.received == []
    assert make_outbox(app, clock).drain() == 2
    assert told_ids(receiver) == sorted(told_ids(receiver))


def test_one_that_waits_for_its_host_when_the_sender_stops_is_given_back(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    other = add_hooked(farm, receiver, "Right")
    receiver.answer_with(204, delay_seconds=0.3)
    outbox = make_outbox(app, clock, at_one_host=1)
    outbox.start()
    for printer_id in (hooked, other):
        commit_one(farm, printer_id, clock)
        assert receiver.wait_for(1)
    outbox.stop(5)
    assert states(farm) == [(SENT, 1, 1), (PENDING, 0, 0)] and deliveries(farm)[1].claimed_by is None
    assert make_outbox(app, clock).drain() == 1


def test_what_a_sender_had_that_died_with_the_commit_another_sends_two_minutes_later(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    dead = make_outbox(app, clock)
    dead.start()
    dead.hand = lambda load: None  # type: ignore[method-assign]
    commit_one(farm, hooked, clock)
    app.extensions["postbox"].stop_listening(dead)
    heir = make_outbox(app, clock)
    assert heir.drain() == 0
    clock.forward(seconds=CLAIM_LIFE.total_seconds())
    assert heir.drain() == 1
    assert states(farm) == [(SENT, 2, 2)] and len(receiver.received) == 1


def test_a_webhook_that_is_switched_off_is_taken_by_nobody(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    receiver.answer_with(410)
    commit_one(farm, hooked, clock)
    assert receiver.wait_for(1) and outbox.wait_idle(5)
    commit_one(farm, hooked, clock)
    assert outbox.wait_idle(5)
    webhooks = [each for each in deliveries(farm) if each.destination == "webhook"]
    assert [(each.status, each.attempts) for each in webhooks] == [(FAILED, 1), (FAILED, 0)]
    assert len(receiver.received) == 1
