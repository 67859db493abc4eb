"""When the worker looks at a printer's queue: at once when something changed, when time alone may have, and in a sweep.

Looking is cheap while nothing changed, however long the queues: what is kept of a printer is compared, not its prints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from flask import Flask

from api.context import Parts
from bambu_client import LinkStatus
from bambu_files import StorageFault
from bell import ALL, SWEEP, Rung
from etsy_sync import look_again
from farm.readiness import fingerprints
from farm.starter import Start, StartRules
from links import Deferral, Held
from models import IntentState, PrinterConnection, StartIntent, db

log = structlog.get_logger()

DEFER_FIRST, DEFER_MOST = timedelta(seconds=30), timedelta(minutes=10)
TIDY_AGAIN = timedelta(minutes=1)
# A look that broke off, as on a database that was busy, is taken again by itself.
BROKEN_OFF_AGAIN = timedelta(seconds=5)
GIVEN_BACK = (IntentState.withdrawn, IntentState.not_started)


class Starts:
    """Every method runs in the worker's own thread; `run` takes an errand into the pool, and `wake` asks from there for
    another `begin`."""

    def __init__(
        self,
        app: Flask,
        *,
        run: Callable[..., None],
        is_stopping: threading.Event,
        wake: Callable[[], None] = lambda: None,
        at_step: Callable[[str], None] = lambda step: None,
    ) -> None:
        parts: Parts = app.extensions["parts"]
        self._app, self._run, self._is_stopping, self._at_step = app, run, is_stopping, at_step
        self._wake = wake
        self._clock: Callable[[], datetime] = app.extensions["clock"]
        self._rules = StartRules.from_settings(parts.settings)
        self._etsy = parts.etsy_access()

    def read_order_again(self, user_id: int, order_id: int) -> None:
        """In the thread of a start. That Etsy cannot be asked is no reason not to print what was paid."""
        look_again(user_id, order_id, self._etsy)

    def rung(self, held: Sequence[Held], printers: Rung) -> None:
        """Somebody changed something of these printers."""
        for each in held:
            if ALL in printers or each.printer_id in printers:
                each.is_due = True
        if SWEEP in printers:
            self.compare(held)

    def compare(self, held: Sequence[Held]) -> None:
        """What was changed without a ring, or by a statement that does not say of which printer."""
        with self._app.app_context():
            found = fingerprints([each.printer_id for each in held])
            db.session.rollback()
        for each in held:
            if each.fingerprint != found[each.printer_id]:
                each.fingerprint, each.is_due = found[each.printer_id], True

    def begin(self, held: Sequence[Held]) -> None:
        """Look at the queue of every printer where that may change something."""
        now = self._clock()
        for each in held:
            # Not into a filament change, nor while a stop is not yet confirmed.
            if each.is_starting or each.commands_under_way or self._is_stopping.is_set():
                continue
            if each.is_due or (each.look_again_at is not None and each.look_again_at <= now):
                each.is_due, each.look_again_at, each.is_starting = False, now + BROKEN_OFF_AGAIN, True
                self._run(lambda each=each: self._start(each), lambda each=each: self._looked(each))

    def _looked(self, held: Held) -> None:
        held.is_starting = False
        if held.is_due:
            # Something changed meanwhile.
            self._wake()

    def _start(self, held: Held) -> None:
        now = self._clock()
        held.deferrals = {key: each for key, each in held.deferrals.items() if each.until > now or each.tries > 1}
        waiting = {key: each for key, each in held.deferrals.items() if each.until > now}
        attempt = Start(
            held.printer_id,
            held.link,
            held.storage,
            lease=held.lease,
            clock=self._clock,
            rules=self._rules,
            is_stopping=self._is_stopping,
            in_state_since=lambda: held.in_state_since,
            deferred={key: each.reason for key, each in waiting.items()},
            at_step=self._at_step,
            read_order_again=self.read_order_again,
        ).run()
        moments = [attempt.look_again_at, *(each.until for each in waiting.values())]
        held.look_again_at = min((moment for moment in moments if moment is not None), default=None)
        if attempt.intent is not None:
            self._learn(held, attempt.intent)
        self._remember_clear_data(held)

    def _learn(self, held: Held, intent: StartIntent) -> None:
        """What was given back waits a while, longer each time; the next one may go at once."""
        kept = db.session.get_one(StartIntent, intent.id, populate_existing=True)
        if kept.state in GIVEN_BACK:
            before = held.deferrals.get(kept.print_id)
            tries = before.tries + 1 if before is not None else 1
            wait = min(DEFER_FIRST * 2 ** (tries - 1), DEFER_MOST)
            held.deferrals[kept.print_id] = Deferral(kept.reason or "given back", self._clock() + wait, tries)
            held.is_due = True
        else:
            held.deferrals.pop(kept.print_id, None)
        db.session.rollback()

    def _remember_clear_data(self, held: Held) -> None:
        """A printer that hung with an encrypted data channel is not made to hang again after a restart."""
        if held.storage.clear_data:
            db.session.execute(
                sa.update(PrinterConnection)
                .where(PrinterConnection.id == held.connection_id, PrinterConnection.clear_data.is_(False))
                .values(clear_data=True)
            )
            db.session.commit()

    def tidy_up(self, held: Sequence[Held]) -> None:
        """Take the files of ended starts off the printers: one left behind has started by itself hours later."""
        now = self._clock()
        able = {
            each.printer_id: each
            for each in held
            if each.link.status is LinkStatus.connected
            and not each.is_tidying
            and (each.tidy_not_before is None or each.tidy_not_before <= now)
        }
        if not able or self._is_stopping.is_set():
            return
        with self._app.app_context():
            printer_ids = set(
                db.session.execute(
                    sa.select(StartIntent.printer_id).where(
                        StartIntent.is_file_on_printer, StartIntent.ended_at.is_not(None)
                    )
                ).scalars()
            )
            db.session.rollback()
        for printer_id in printer_ids & able.keys():
            each = able[printer_id]
            each.is_tidying = True
            self._run(lambda each=each: self._tidy(each), lambda each=each: setattr(each, "is_tidying", False))

    def _tidy(self, held: Held) -> None:
        left = db.session.execute(
            sa.select(StartIntent.id, StartIntent.remote_name).where(
                StartIntent.printer_id == held.printer_id,
                StartIntent.is_file_on_printer,
                StartIntent.ended_at.is_not(None),
            )
        ).all()
        db.session.rollback()
        for intent_id, name in left:
            try:
                held.storage.delete(name)
                if held.storage.size(name) is not None:
                    raise StorageFault("it is still there", retry=True)
            except StorageFault as error:
                log.warning("remote_file_left", printer_id=held.printer_id, name=name, reason=error.reason)
                held.tidy_not_before = self._clock() + TIDY_AGAIN
                return
            db.session.execute(
                sa.update(StartIntent).where(StartIntent.id == intent_id).values(is_file_on_printer=False)
            )
            db.session.commit()
