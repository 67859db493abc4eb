"""Deliveries on their way: each is taken, sent, and what came of it written down.

What is written in `notifications.fan_out` leaves here, a webhook within milliseconds of the commit. A sender may die at
any moment: what it had taken is sent again by the next, under the same message id.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from flask import Flask

from claims import ANY, WEBHOOK, Claim, Claims, Load, Outcome, Stream, record
from courier import Courier, Tried
from delivery.ladder import ENDPOINT_PATIENCE, delay_after
from delivery.lanes import AT_ONE_HOST, THREADS, Lanes
from models import (
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    PrintEvent,
    PrintNotification,
    count_changed,
    db,
)
from notifications import SWITCHED_OFF, WEBHOOK_DISABLED, fan_out
from postbox import Postbox, Posted

log = structlog.get_logger()

CRASH_POINTS = ("claiming", "claimed", "sent", "recorded")
"""Where a sender may die, by the names that `at_step` is called with."""
ATTEMPTS_KEPT = timedelta(days=90)
# What was written as taken and could not leave at once is looked at anew: a person may have decided otherwise since.
BORN_TAKEN_FOR = timedelta(seconds=1)
# Whoever commits waits so long at most until it is taken out of their hands.
HANDED_SECONDS = 0.002
FAILED_FOR_DAYS = f"nothing has arrived there for {ENDPOINT_PATIENCE.days} days"


class Outbox:
    """Sends what is committed. `at_step` is called at each of CRASH_POINTS; `chance` gives the jitter's share, from 0
    up to 1."""

    def __init__(
        self,
        app: Flask,
        courier: Courier,
        *,
        threads: int = THREADS,
        at_one_host: int = AT_ONE_HOST,
        chance: Callable[[], float] = random.random,
        at_step: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._app, self._courier = app, courier
        self._clock: Callable[[], datetime] = app.extensions["clock"]
        self._chance, self._at_step = chance, at_step
        with app.app_context():
            self._claims = Claims(db.engine)
        self._lanes: Lanes[Stream, Load] = Lanes(
            self._look, self._take, self._deliver, threads=threads, at_one_host=at_one_host
        )
        self._postbox: Postbox = app.extensions["postbox"]
        self._handing = threading.Lock()
        # What was written as taken, until it is tried; and the tokens of that which was to be tried and had to wait.
        self._handed: dict[Stream, list[Load]] = {}
        self._delayed: set[str] = set()
        # Streams whose first is to be tried again.
        self._held_up: set[Stream] = set()
        self._has_stopped = False

    def start(self) -> None:
        """From now on whatever this process commits leaves at once, and what others left lying."""
        self._postbox.listen(self)
        self.deliver_due()

    def stop(self, seconds: float) -> None:
        """Begin nothing new; what has not ended in time may be taken by another sender at once."""
        self._postbox.stop_listening(self)
        is_done = self._lanes.stop(seconds)
        with self._handing:
            self._has_stopped = True
            handed, self._handed = self._handed, {}
        for load in itertools.chain.from_iterable(handed.values()):
            self._claims.give_up(load, self._clock())
        if not is_done:
            log.warning("deliveries_handed_back", count=self._claims.hand_back(self._clock()))
        self._courier.close()

    def wake(self, streams: Posted) -> None:
        """Something of these may be due. Returns at once."""
        self._lanes.wake(streams)

    def claim(self) -> Claim:
        """For a webhook that is written as taken by this sender."""
        return self._claims.claim(self._clock())

    def hand(self, loads: Sequence[Load]) -> None:
        """What was written so is committed. Returns once it is on its way, or very soon."""
        with self._handing:
            has_stopped = self._has_stopped
            for load in loads if not has_stopped else ():
                self._handed.setdefault(load.stream, []).append(load)
        if has_stopped:
            for load in loads:
                self._claims.give_up(load, self._clock())
        else:
            self._lanes.wake([load.stream for load in loads])
            # What its thread does after a commit can wait, and would take the interpreter from the sender.
            self._lanes.wait_taken(HANDED_SECONDS)

    def deliver_due(self) -> None:
        """Whatever is due: what nobody was told of, what is to be tried again, what was held until now."""
        self.wake([ANY])

    def wait_taken(self, seconds: float) -> bool:
        """Whether everything that is due, and may be sent now, was on its way out in time."""
        return self._lanes.wait_taken(seconds)

    def wait_idle(self, seconds: float) -> bool:
        """Whether everything that was due had been tried in time."""
        return self._lanes.wait_idle(seconds)

    def drain(self, *, limit: int = 50) -> int:
        """Send up to `limit` messages that are due, one after the other in this thread; returns how many were tried."""
        tried = 0
        while tried < limit:
            before = tried
            for stream in self._claims.due(self._clock()):
                while tried < limit and (load := self._look(stream)) is not None and self._take(load):
                    self._deliver(load)
                    tried += 1
            if tried == before:
                break
        return tried

    def _look(self, stream: Stream) -> Load | None:
        if stream == ANY:
            with self._handing:
                handed = list(self._handed)
            self._lanes.wake(handed)
            self._lanes.wake(self._claims.due(self._clock()))
            return None
        return self._look_at_handed(stream) or self._claims.look(stream, self._clock())

    def _look_at_handed(self, stream: Stream) -> Load | None:
        """What can be sent as it was handed over: it is the stream's first, and did not have to wait."""
        with self._handing:
            handed = list(self._handed.get(stream, ()))
            if handed and stream not in self._held_up and self._is_fresh(handed[0]):
                # Should its host be full now, this stream is looked at again.
                self._delayed.add(handed[0].token)
                return handed[0]
        for load in handed:
            # In this order: what fails here is done by the next look.
            self._claims.give_up(load, self._clock())
            self._drop(load)
        return None

    def _is_fresh(self, load: Load) -> bool:
        is_young = load.born_at is not None and self._clock() - load.born_at <= BORN_TAKEN_FOR
        return is_young and load.token not in self._delayed

    def _drop(self, load: Load) -> None:
        with self._handing:
            left = [each for each in self._handed.pop(load.stream, ()) if each is not load]
            if left:
                self._handed[load.stream] = left
            self._delayed.discard(load.token)

    def _take(self, load: Load) -> bool:
        """Whether it is ours to try."""
        self._at_step("claiming")
        if load.born_at is not None:
            self._drop(load)
            is_ours = True
        else:
            is_ours = self._claims.take(load, self._clock())
        if is_ours:
            self._at_step("claimed")
        return is_ours

    def _deliver(self, load: Load) -> None:
        began_at = self._clock()
        tried = self._courier.try_once(load)
        self._at_step("sent")
        self._record(load, tried, began_at)
        self._at_step("recorded")

    def _record(self, load: Load, tried: Tried, began_at: datetime) -> None:
        attempt, now = tried.attempt, self._clock()
        # `tries` was read before this one.
        delay = None if tried.is_final or tried.gone else delay_after(load.first.tries + 1, self._chance())
        outcome = Outcome(
            is_ok=attempt.ok,
            at=began_at,
            ended_at=now,
            duration_ms=attempt.duration_ms,
            answer_code=attempt.status,
            error=None if attempt.ok else attempt.error or f"answered {attempt.status}",
            answer=attempt.answer,
            next_try_at=now + delay if delay is not None else None,
            target=load.endpoint.url if load.endpoint else None,
        )
        if outcome.next_try_at is not None and not outcome.is_ok:
            self._held_up.add(load.stream)
        else:
            self._held_up.discard(load.stream)
        if tried.gone is None:
            is_ours = self._claims.record(load, outcome)
        else:
            is_ours = self._record_end(load, outcome, tried.gone)
        log.info(
            "delivery",
            ids=load.ids,
            channel=load.first.channel.value,
            status="sent" if attempt.ok else "waits" if outcome.next_try_at else "failed",
            try_number=load.first.tries + 1,
            error=outcome.error,
            is_ours=is_ours,
        )

    def _record_end(self, load: Load, outcome: Outcome, reason: str) -> bool:
        """The last try at an endpoint, and its end, in one transaction."""
        with self._app.app_context():
            if not record(db.session.connection(), load, outcome):
                db.session.rollback()
                return False
            assert load.endpoint is not None and load.endpoint.url is not None
            _switch_off(load.stream.printer_id, load.endpoint.url, reason, outcome.ended_at)
            db.session.commit()
        return True

    def switch_off_lost(self) -> int:
        """Endpoints at which nothing has arrived for days, and no end is seen; returns how many."""
        now, count = self._clock(), 0
        with self._app.app_context():
            lost = db.session.execute(
                sa.select(PrintNotification.printer_id, PrintNotification.webhook_url).where(
                    PrintNotification.webhook_failing_since <= now - ENDPOINT_PATIENCE,
                    PrintNotification.webhook_disabled_at.is_(None),
                    PrintNotification.webhook_url.is_not(None),
                )
            ).all()
            for printer_id, url in lost:
                count += url is not None and _switch_off(printer_id, url, FAILED_FOR_DAYS, now)
                db.session.commit()
        return count

    def forget_old_attempts(self) -> int:
        """What came of tries long ago; the deliveries themselves stay. Returns how many."""
        with self._app.app_context():
            old = sa.delete(DeliveryAttempt).where(DeliveryAttempt.at < self._clock() - ATTEMPTS_KEPT)
            count = db.session.connection().execute(old).rowcount
            db.session.commit()
        return count


def _switch_off(printer_id: int, url: str, reason: str, now: datetime) -> bool:
    """An endpoint is used no more, whatever waits for it has failed, and its owner is told. The caller commits."""
    is_changed = count_changed(
        sa.update(PrintNotification)
        .where(
            PrintNotification.printer_id == printer_id,
            # A person may have set another one meanwhile.
            PrintNotification.webhook_url == url,
            PrintNotification.webhook_disabled_at.is_(None),
        )
        .values(webhook_disabled_at=now, webhook_disabled_reason=reason)
    )
    if not is_changed:
        return False
    count_changed(
        sa.update(Delivery)
        .where(
            Delivery.printer_id == printer_id,
            Delivery.destination == WEBHOOK,
            Delivery.status == DeliveryStatus.pending,
        )
        .values(status=DeliveryStatus.failed, error=f"{SWITCHED_OFF[:-1]}: {reason}.")
    )
    user_id = db.session.execute(
        sa.select(PrintNotification.user_id).where(PrintNotification.printer_id == printer_id)
    ).scalar_one()
    event = PrintEvent(user_id=user_id, printer_id=printer_id, kind=WEBHOOK_DISABLED, reason=reason, details={}, at=now)
    db.session.add(event)
    fan_out(event)
    return True
