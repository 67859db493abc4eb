"""What is heard of the printers, written down: the tracker's moves, the connections' rows, the snapshots.

However a printer is reached, what it says ends here, in the worker's one thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from flask import Flask

from api.context import Parts
from bambu_client import Answer, LinkStatus
from bambu_report import ACTIVE, PrinterState
from farm import alerts, faults, spool_changes, tracker
from farm.leases import Lease
from farm.status import snapshot_of
from models import ConnectionStatus, Printer, PrinterConnection, db

log = structlog.get_logger()

NEVER = datetime.min.replace(tzinfo=UTC)
# A P1 suffers from more.
ASK_AGAIN = timedelta(minutes=5)


@dataclass(slots=True, kw_only=True)
class Watched:
    """A printer's connection as this worker listens to it, and what was heard last."""

    connection_id: int
    printer_id: int
    version: int
    lease: Lease
    state: PrinterState = field(default_factory=PrinterState)
    in_state_since: datetime | None = None
    # A full report came since the printer is at work: before, a part may be missing that tells whose print it is.
    is_known_whole: bool = False
    told_whole_at: datetime | None = None
    # When it was last asked for what decides about a start that it does not confirm.
    asked_to_tell_at: datetime | None = None
    # When time alone may change what that state means.
    settles_at: list[datetime] = field(default_factory=list)
    heard_at: datetime | None = None
    current_print_id: int | None = None
    print_name: str | None = None
    # What the tracker was told last: a report that says the same again needs no database.
    tracked: tuple[object, ...] | None = None
    is_unsaved: bool = False
    # When the last report that was written down was heard. Counted from the writing, a printer that reports as often as
    # may be written would slip until its reports waited for most of that time.
    saved_at: datetime | None = None
    # None until it was read what had been told before.
    complaints: faults.Complaints | None = None
    # What spools were told last, and since when the printer sees others.
    spools: spool_changes.Spools | None = None
    spools_moved_at: datetime | None = None
    # Commands wait for a report that shows them done.
    commands_under_way: int = 0


class Recorder:
    """Every method runs in the worker's own thread."""

    def __init__(self, app: Flask) -> None:
        parts: Parts = app.extensions["parts"]
        self._app, self._limits, self._clock = app, parts.limits, app.extensions["clock"]
        self._interval = timedelta(seconds=parts.settings.status_interval_seconds)
        # The earliest of the moments at which time alone changes what some printer's state means.
        self._settles_next: datetime | None = None

    def note(self, row: PrinterConnection, status: ConnectionStatus, reason: str | None) -> None:
        """How a connection stands. The caller commits."""
        if (row.connection_status, row.status_reason) != (status, reason):
            row.connection_status, row.status_reason = status, reason
            alerts.link_stands(row, at=self._clock())

    def link_changed(
        self, watched: Watched, status: LinkStatus, reason: str | None, fingerprint: str | None = None
    ) -> None:
        with self._app.app_context():
            row = db.session.get(PrinterConnection, watched.connection_id)
            if row is None:
                return
            self.note(row, ConnectionStatus(status.value), reason)
            if fingerprint and row.fingerprint is None:
                row.fingerprint = fingerprint
            db.session.commit()
        log.info("link", printer_id=watched.printer_id, status=status.value, reason=reason)

    def heard(self, watched: Watched, state: PrinterState, heard_at: datetime, *, is_whole: bool = True) -> None:
        """`is_whole`: it was a full report."""
        if not state.known:
            # The parts that a connection may begin with: what was written down stands until it has told the whole.
            return
        if watched.in_state_since is None or state.state is not watched.state.state:
            watched.in_state_since = heard_at
            watched.settles_at = tracker.settling_moments(state, heard_at)
            self._settles_next = min(self._settles_next or watched.settles_at[0], watched.settles_at[0])
        if state.state in ACTIVE and watched.state.state not in ACTIVE:
            watched.is_known_whole = False
        if is_whole:
            watched.is_known_whole, watched.told_whole_at = True, heard_at
        if watched.spools is not None and spool_changes.differ(watched.state, state):
            watched.spools_moved_at = heard_at
        watched.state, watched.heard_at, watched.is_unsaved = state, heard_at, True
        is_complaint = watched.complaints is not None and faults.note_listed(
            watched.complaints, state, heard_at=heard_at
        )
        if _news_in(watched) != watched.tracked or watched.commands_under_way or is_complaint:
            self.track(watched)

    def track(self, watched: Watched, *, is_heard: bool = True) -> None:
        """What the printer's present state means for our prints, in one transaction with the snapshot that shows it.
        `is_heard`: a report has just told it; what time alone settles is shown with the next snapshot, for somebody
        waits to hear of it."""
        if watched.in_state_since is None:
            return
        # A report that could not be tracked when it came is as new as one that has just come.
        is_news = is_heard or _news_in(watched) != watched.tracked
        with self._app.app_context():
            # First of all locks, as everywhere: the printer, its gate, the print, the start.
            printer = db.session.execute(LOCKED_PRINTER, {"printer": watched.printer_id}).scalar_one_or_none()
            if printer is None or printer.deleted_at is not None:
                return
            before = watched.current_print_id
            ours = tracker.apply(
                printer,
                watched.state,
                in_state_since=watched.in_state_since,
                told_whole_at=watched.told_whole_at or NEVER,
                is_whole=watched.is_known_whole,
                now=self._clock(),
                limits=self._limits,
            )
            watched.current_print_id = ours.id if ours is not None else None
            if watched.current_print_id != before:
                watched.print_name = ours.job_name if ours is not None else None
            spools = _spools_of(printer, watched)
            complaints = faults.raise_faults(printer, watched.state, watched.complaints, at=self._clock())
            if is_news:
                self._save([watched])
            else:
                watched.is_unsaved = True
            db.session.commit()
        # With the print that it turned out to concern, or not to concern any more: that is no news in the next report.
        watched.tracked = _news_in(watched)
        watched.complaints = complaints
        if watched.spools is None:
            watched.spools, watched.spools_moved_at = spools, watched.heard_at

    def answered(self, watched: Watched, answer: Answer) -> None:
        """What the printer's word on a start means for it."""
        with self._app.app_context():
            # As with a report: the printer is locked before its gate and its print.
            printer = db.session.execute(LOCKED_PRINTER, {"printer": watched.printer_id}).scalar_one()
            tracker.apply_answer(printer, answer, now=self._clock(), limits=self._limits)
            db.session.commit()

    def seconds_to_settling(self, at_most: float) -> float:
        """How long nothing settles by time alone."""
        if self._settles_next is None:
            return at_most
        left: float = (self._settles_next - self._clock()).total_seconds()
        return max(0.0, min(at_most, left))

    def settle_on_time(self, everything: Iterable[Watched]) -> None:
        """What a state means from this very moment on: somebody waits to hear that a print is done."""
        now = self._clock()
        if self._settles_next is None or self._settles_next > now:
            return
        waiting = [watched for watched in everything if watched.settles_at]
        for watched in waiting:
            due = [moment for moment in watched.settles_at if moment <= now]
            if due:
                watched.settles_at = watched.settles_at[len(due) :]
                self.track(watched, is_heard=False)
        self._settles_next = min((watched.settles_at[0] for watched in waiting if watched.settles_at), default=None)

    def settle(self, everything: Iterable[Watched]) -> list[int]:
        """What no report announces: an end that has settled, a failure whose time to explain itself is over, a start
        that is never confirmed. Returns the printers to be asked for a full report."""
        now = self._clock()
        by_printer = {watched.printer_id: watched for watched in everything}
        for watched in by_printer.values():
            if watched.in_state_since is not None and watched.in_state_since > now:
                # A clock that was set back must not stop all settling until it has caught up.
                watched.in_state_since = now
                watched.settles_at = tracker.settling_moments(watched.state, now)
        with self._app.app_context():
            awaited = tracker.watch_starts(list(by_printer), now=now)
            db.session.commit()
        for printer_id, watched in by_printer.items():
            due = [moment for moment in watched.settles_at if moment <= now]
            if due:
                watched.settles_at = watched.settles_at[len(due) :]
            if due or printer_id in awaited.judge or printer_id in awaited.ended:
                self.track(watched)
            if printer_id in awaited.judge and _must_tell(watched, awaited.judge[printer_id], now):
                watched.asked_to_tell_at = now
                awaited.ask.append(printer_id)
            if watched.complaints:
                self._let_go(watched, now)
            if watched.spools_moved_at is not None:
                self._tell_spools(watched, now)
        return awaited.ask

    def _tell_spools(self, watched: Watched, now: datetime) -> None:
        """Which spools were swapped, once no more are."""
        assert watched.spools is not None and watched.spools_moved_at is not None
        if abs(now - watched.spools_moved_at) < spool_changes.SETTLES_IN:
            return
        seen = spool_changes.seen_in(watched.state)
        changed = spool_changes.changes(watched.spools, seen)
        if changed:
            with self._app.app_context():
                printer = db.session.get(Printer, watched.printer_id)
                if printer is not None and printer.deleted_at is None:
                    spool_changes.tell_changes(printer, changed, at=now)
                    self._save([watched])
                    db.session.commit()
        watched.spools, watched.spools_moved_at = spool_changes.after(watched.spools, seen), None

    def _let_go(self, watched: Watched, now: datetime) -> None:
        """Of the complaints that the printer has not listed for a while."""
        assert watched.complaints is not None
        over = faults.over(watched.complaints, now=now)
        if over:
            with self._app.app_context():
                faults.clear_faults(watched.printer_id, over, at=now)
                db.session.commit()
            for key in over:
                del watched.complaints[key]

    def tell_lasting(self) -> None:
        """What lasts although no report tells it: a printer that stays away, a print that goes on waiting."""
        with self._app.app_context():
            alerts.tell_lasting(at=self._clock())
            db.session.commit()

    def save_snapshots(self, everything: Iterable[Watched], *, at_once: bool = False) -> None:
        """Write down what was heard, for every web process to read: all printers in one transaction, each not more
        often than the setting says, unless it is to be `at_once`."""
        now = self._clock()
        due = [
            watched
            for watched in everything
            if watched.is_unsaved
            and (at_once or watched.saved_at is None or abs(now - watched.saved_at) >= self._interval)
        ]
        if due:
            with self._app.app_context():
                self._save(due)
                db.session.commit()

    def _save(self, due: Sequence[Watched]) -> None:
        rows: list[dict[str, Any]] = [
            {
                "connection": watched.connection_id,
                "at_version": watched.version,
                "shown": snapshot_of(
                    watched.state, current_print_id=watched.current_print_id, print_name=watched.print_name
                ),
                "heard": watched.heard_at,
            }
            for watched in due
        ]
        db.session.flush()
        db.session.connection().execute(SAVE_SNAPSHOT, rows)
        for watched in due:
            watched.is_unsaved, watched.saved_at = False, watched.heard_at


def _news_in(watched: Watched) -> tuple[object, ...]:
    """What of a report may mean something for prints."""
    state = watched.state
    return (
        *(state.known, state.state, state.submission_id, state.job_name, state.print_error, state.cancelled),
        watched.is_known_whole,
        # How far a print that is not ours has come needs no database.
        state.progress_percent if watched.current_print_id is not None else None,
    )


def _spools_of(printer: Printer, watched: Watched) -> spool_changes.Spools:
    """Those that were told last: before this worker listened, those that were written down."""
    if watched.spools is not None:
        return watched.spools
    before = spool_changes.seen_before(printer.connection.snapshot if printer.connection is not None else None)
    return {**spool_changes.seen_in(watched.state), **before}


def _must_tell(watched: Watched, since: datetime, now: datetime) -> bool:
    """Whether a full report that is newer than `since` is to be asked for: once, and now and then if that is lost."""
    asked_at = watched.asked_to_tell_at
    is_told = watched.told_whole_at is not None and watched.told_whole_at > since
    return not is_told and (asked_at is None or asked_at <= since or now - asked_at >= ASK_AGAIN)


LOCKED_PRINTER = sa.select(Printer).where(Printer.id == sa.bindparam("printer")).with_for_update(key_share=True)
SAVE_SNAPSHOT = (
    sa.update(PrinterConnection.__table__)
    .where(
        PrinterConnection.__table__.c.id == sa.bindparam("connection"),
        PrinterConnection.__table__.c.version == sa.bindparam("at_version"),
    )
    .values(snapshot=sa.bindparam("shown"), heard_at=sa.bindparam("heard"))
)
