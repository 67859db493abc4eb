"""A released print + an idle printer -> at most one start command. Nothing else in the product starts a print.

The order of steps is the safety: the intent is committed before anything is sent, the file goes up outside any
transaction, every interlock is read again on a fresh report, "published" is committed before the command leaves, and
the command leaves once. Only the printer's own report makes a print started (`farm.tracker`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import sqlalchemy as sa
import structlog

from bambu_client import NotSent, StartOrder
from bambu_files import StorageFault
from bambu_report import PrinterState
from farm.gates import clear, locked_gate, next_submission_id, occupy
from farm.interlocks import Verdict
from farm.leases import Lease, still_holds
from farm.materials import StageLimits
from farm.print_files import folder_of
from farm.readiness import Outlook, Seen, carry_out, look_over, printer_facts, verdict_on
from models import (
    OPEN_INTENT_STATES,
    SENDING_STATES,
    IntentState,
    Printer,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    count_changed,
    db,
)

if TYPE_CHECKING:
    from settings import Settings

log = structlog.get_logger()

# Locks are taken in one order wherever more than one is held, here as in the API: printer, gate, print, start. And not
# against those who only refer to the printer: whoever writes an event while holding a print would wait for us, and we
# for the print.
BUT_ITS_KEY = {"key_share": True}
# What is known of the printer when the command leaves is never older than this.
FRESH_FOR = timedelta(seconds=10)
PUBLISH_WITHIN = timedelta(seconds=5)
# A start may ask the printer more often than routine does.
ASKS = 3
STOPPING = "stopping before it was started"

CRASH_POINTS = (
    "claiming",
    "claimed",
    "uploading",
    "uploaded",
    "armed",
    "heard",
    "publishing",
    "published",
    "sent",
)
"""Where a worker may die; the tests kill it at each."""


class Link(Protocol):
    """What the starter needs of a printer's connection; see `bambu_client.PrinterLink`."""

    @property
    def state(self) -> PrinterState: ...
    @property
    def full_heard_at(self) -> datetime | None: ...
    @property
    def generation(self) -> int: ...
    def ask_full_report(self) -> None: ...
    def start_print(self, order: StartOrder, *, generation: int, latest_at: datetime | None = None) -> str: ...


class Uploader(Protocol):
    """See `bambu_files.PrinterStorage`."""

    def upload(
        self, stream: BinaryIO, remote_name: str, size_bytes: int, on_progress: Callable[[int], None] | None = None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class StartRules:
    """What an operator may set about starting."""

    missed_window: timedelta
    rest: timedelta
    limits: StageLimits
    files_dir: Path

    @classmethod
    def from_settings(cls, settings: Settings) -> StartRules:
        return cls(
            missed_window=timedelta(minutes=settings.missed_window_minutes),
            rest=timedelta(seconds=settings.printer_rest_seconds),
            limits=StageLimits.from_settings(settings),
            files_dir=settings.files_dir,
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of looking for a print to start. `intent` is None when none was to be started."""

    intent: StartIntent | None
    look_again_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """One look at one printer, in a thread of its own: an upload may take minutes. Commits step by step.

    `in_state_since`: since when the printer says what it says, or None; asked anew before the command leaves.
    `deferred`: prints that shall not be tried now, and why. `at_step` is called at each of CRASH_POINTS.
    """

    printer_id: int
    link: Link
    uploader: Uploader
    lease: Lease
    clock: Callable[[], datetime]
    rules: StartRules
    is_stopping: threading.Event
    in_state_since: Callable[[], datetime | None]
    deferred: Mapping[int, str] = field(default_factory=dict)
    at_step: Callable[[str], None] = lambda step: None
    # Called with the ids of a user and an order before anything of it is sent. Should it turn out to be cancelled, the
    # print is gone after that, and so is the claim.
    read_order_again: Callable[[int, int], object] = lambda user_id, order_id: None
    fresh_report_seconds: float = 10.0

    def run(self) -> Attempt:
        """Start the next print of the printer if everything allows it."""
        outlook = self._claim_next()
        intent = outlook.intent
        if intent is None:
            return outlook
        self.at_step("claimed")
        self._read_order_again(intent)
        if not _advance(intent, IntentState.claimed, IntentState.uploading, is_file_on_printer=True):
            return outlook
        self.at_step("uploading")
        reason = self._upload(intent)
        self.at_step("uploaded")
        if self.is_stopping.is_set():
            reason = STOPPING
        if reason is not None:
            _give_back(intent, reason, lease=self.lease, now=self.clock())
            return outlook
        if not _advance(intent, IntentState.uploading, IntentState.armed):
            # Taken back in between, and its file perhaps removed before the last byte came.
            _note_file_left(intent)
            return outlook
        self.at_step("armed")
        reason = "the printer did not answer in time" if not self._hear_afresh() else None
        self.at_step("heard")
        if self.is_stopping.is_set():
            reason = STOPPING
        if reason is not None:
            _give_back(intent, reason, lease=self.lease, now=self.clock())
            return outlook
        self._publish(intent)
        return outlook

    def _read_order_again(self, intent: StartIntent) -> None:
        query = sa.select(ScheduledPrint.user_id, ScheduledPrint.order_id).where(ScheduledPrint.id == intent.print_id)
        user_id, order_id = db.session.execute(query).one()
        db.session.commit()
        if order_id is not None:
            self.read_order_again(user_id, order_id)

    def _claim_next(self) -> Attempt:
        now = self.clock()
        # Without a lock at first: most looks find nothing to do, and must not hold up whoever writes. Whatever is
        # changed after that has the printer looked at again.
        seen = self._look(now)
        # Nothing that was read goes on being known.
        db.session.rollback()
        if seen is None or seen.changes_nothing:
            return Attempt(None, seen.look_again_at if seen is not None else None)
        printer = db.session.get(Printer, self.printer_id, populate_existing=True, with_for_update=BUT_ITS_KEY)
        seen = self._look(now) if still_holds(self.lease, now=now) else None
        if printer is None or seen is None:
            db.session.rollback()
            return Attempt(None)
        outlook = carry_out(seen, now=now, limits=self.rules.limits)
        intent = self._claim(printer, outlook, now)
        if intent is not None:
            self.at_step("claiming")
        db.session.commit()
        return Attempt(intent, outlook.look_again_at)

    def _look(self, now: datetime) -> Seen | None:
        """None when the printer is gone."""
        printer = db.session.get(Printer, self.printer_id)
        if printer is None or printer.deleted_at is not None:
            return None
        return look_over(
            printer,
            self.link.state,
            in_state_since=self.in_state_since(),
            now=now,
            missed_window=self.rules.missed_window,
            limits=self.rules.limits,
            deferred=self.deferred,
            rest=self.rules.rest,
        )

    def _claim(self, printer: Printer, outlook: Outlook, now: datetime) -> StartIntent | None:
        """The intent to start the chosen print, flushed."""
        chosen, verdict = outlook.chosen, outlook.verdict
        if chosen is None or verdict is None:
            return None
        file = chosen.print_file
        assert file is not None
        submission_id = next_submission_id(locked_gate(self.lease.serial_number), now)
        intent = StartIntent(
            user_id=chosen.user_id,
            printer_id=printer.id,
            print_id=chosen.id,
            print_file_id=file.id,
            plate=chosen.plate,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            remote_name=f"farm-{submission_id}.gcode.3mf",
            submission_id=submission_id,
            mapping=_mapping(verdict),
            owner=self.lease.owner,
            epoch=self.lease.epoch,
            claimed_at=now,
        )
        chosen.waiting_reason = "its file is on the way to the printer"
        db.session.add(intent)
        db.session.flush()
        return intent

    def _upload(self, intent: StartIntent) -> str | None:
        """Why the file did not reach the printer, or None."""
        path = folder_of(self.rules.files_dir, intent.user_id) / intent.sha256
        remote_name, size_bytes = intent.remote_name, intent.size_bytes
        db.session.rollback()
        try:
            with open(path, "rb") as stream:
                self.uploader.upload(stream, remote_name, size_bytes)
        except StorageFault as error:
            return f"the file could not be sent to the printer: {error.reason}"
        except OSError:
            return "the uploaded file is gone from our storage"
        return None

    def _hear_afresh(self) -> bool:
        """Wait for a full report newer than now. True when one came."""
        asked_at = self.clock()
        for _ in range(ASKS):
            self.link.ask_full_report()
            deadline = time.monotonic() + self.fresh_report_seconds / ASKS
            while time.monotonic() < deadline:
                heard_at = self.link.full_heard_at
                if heard_at is not None and heard_at >= asked_at:
                    return True
                time.sleep(0.01)
        return False

    def _publish(self, intent: StartIntent) -> None:
        generation, heard_at = self.link.generation, self.link.full_heard_at
        order = self._arm(intent, heard_at)
        if order is None or heard_at is None:
            return
        self.at_step("published")
        latest_at = min(heard_at + FRESH_FOR, self.clock() + PUBLISH_WITHIN)
        try:
            self.link.start_print(order, generation=generation, latest_at=latest_at)
        except NotSent as error:
            # Provably unsent is not ambiguous: the print goes back to the queue by itself.
            _give_back(
                intent,
                f"the start could not be sent: {error}",
                lease=self.lease,
                now=self.clock(),
                state=IntentState.not_started,
            )
            return
        self.at_step("sent")
        log.info("start_published", printer_id=self.printer_id, submission_id=order.submission_id)

    def _arm(self, intent: StartIntent, heard_at: datetime | None) -> StartOrder | None:
        """All interlocks again on the fresh report, then `published` in one conditional UPDATE. The write precedes the
        send: after a crash in between, the start counts as sent and is never repeated without a person. Commits."""
        now = self.clock()
        print_id = intent.print_id
        printer = db.session.get_one(Printer, self.printer_id, populate_existing=True, with_for_update=BUT_ITS_KEY)
        if not still_holds(self.lease, now=now):
            # Somebody else holds the printer by now, and has withdrawn this intent or will.
            db.session.rollback()
            return None
        gate = locked_gate(self.lease.serial_number)
        waiting = db.session.get_one(ScheduledPrint, print_id, populate_existing=True, with_for_update=True)
        kept = db.session.get_one(StartIntent, intent.id, populate_existing=True, with_for_update=True)
        facts = printer_facts(
            printer,
            self.link.state,
            in_state_since=self.in_state_since(),
            now=now,
            limits=self.rules.limits,
            own_print_id=waiting.id,
            rest=self.rules.rest,
        )
        verdict = verdict_on(waiting, facts, now=now, missed_window=self.rules.missed_window)
        if kept.state is not IntentState.armed:
            db.session.rollback()
            return None
        report_age = now - heard_at if heard_at is not None else timedelta.max
        if waiting.status is not PrintStatus.scheduled or waiting.deleted_at is not None:
            reason: str | None = "it was taken back"
        elif waiting.print_file is None or (waiting.print_file.sha256, waiting.plate) != (kept.sha256, kept.plate):
            reason = "its file was changed while another one was on the way"
        elif report_age > FRESH_FOR:
            reason = "the printer did not answer in time"
        elif _mapping(verdict) != kept.mapping:
            reason = verdict.sentence or "its filament was moved to another place"
        else:
            reason = verdict.sentence
        if reason is not None:
            db.session.rollback()
            _give_back(intent, reason, lease=self.lease, now=now)
            return None
        order = StartOrder(
            remote_name=kept.remote_name,
            title=f"farm-{kept.submission_id}",
            plate=kept.plate,
            submission_id=kept.submission_id,
            bed_type=None,
            mapping=tuple(None if place is None else (place[0], place[1]) for place in kept.mapping),
        )
        checks = {
            **verdict.as_checks(),
            "report_age_seconds": round(report_age.total_seconds(), 3),
            "printer_was": self.link.state.state.value,
        }
        published = count_changed(
            sa.update(StartIntent)
            .where(
                StartIntent.id == intent.id,
                StartIntent.state == IntentState.armed,
                StartIntent.owner == self.lease.owner,
                StartIntent.epoch == self.lease.epoch,
            )
            .values(state=IntentState.published, published_at=now, checks=checks)
        )
        if published != 1:
            db.session.rollback()
            return None
        occupy(gate, waiting.id)
        waiting.waiting_reason = "sent to the printer, waiting for it to begin"
        self.at_step("publishing")
        db.session.commit()
        return order


def _mapping(verdict: Verdict) -> list[list[int] | None]:
    """Per filament of the slicer's list, its id - 1: where it is fed from. Ids are sparse."""
    places = verdict.matching.places
    mapping: list[list[int] | None] = [None] * max(places, default=0)
    for filament_id, place in places.items():
        mapping[filament_id - 1] = list(place)
    return mapping


def _advance(intent: StartIntent, before: IntentState, after: IntentState, **values: bool) -> bool:
    """One conditional UPDATE: false when somebody else moved the intent in between. Commits."""
    moved = count_changed(
        sa.update(StartIntent)
        .where(StartIntent.id == intent.id, StartIntent.state == before)
        .values(state=after, **values)
    )
    db.session.commit()
    return moved == 1


def _note_file_left(intent: StartIntent) -> None:
    db.session.execute(sa.update(StartIntent).where(StartIntent.id == intent.id).values(is_file_on_printer=True))
    db.session.commit()


def _give_back(
    intent: StartIntent,
    reason: str,
    *,
    lease: Lease,
    now: datetime,
    state: IntentState = IntentState.withdrawn,
) -> None:
    """The print stays released and says why it waits. A deferral, not a failure. Commits."""
    db.session.rollback()
    gate = locked_gate(lease.serial_number)
    waiting = db.session.get_one(ScheduledPrint, intent.print_id, populate_existing=True, with_for_update=True)
    kept = db.session.get_one(StartIntent, intent.id, populate_existing=True, with_for_update=True)
    if kept.state in OPEN_INTENT_STATES:
        kept.state, kept.reason, kept.ended_at = state, reason, now
        if waiting.status is PrintStatus.scheduled:
            waiting.waiting_reason = reason
        if kept.published_at is not None and gate.plate_print_id == kept.print_id:
            # Nothing left us, so nothing lies on the plate.
            clear(gate)
    db.session.commit()
    log.warning("start_given_back", print_id=kept.print_id, reason=reason)


def take_back(of_print: ScheduledPrint, *, now: datetime) -> bool:
    """A person takes back a print whose start may be under way: it is not sent any more. False when it may have been
    sent already. Flushes."""
    under_way = db.session.execute(
        sa.select(StartIntent)
        .where(StartIntent.print_id == of_print.id, StartIntent.state.in_(SENDING_STATES))
        .with_for_update()
    ).scalar_one_or_none()
    if under_way is None:
        return True
    if under_way.state is IntentState.published:
        return False
    under_way.state, under_way.reason, under_way.ended_at = IntentState.withdrawn, "a person took it back", now
    db.session.flush()
    return True


def settle_by_person(of_print: ScheduledPrint, status: PrintStatus, *, now: datetime) -> None:
    """A person says what became of a start that the printer never confirmed: only this ends it. Flushes."""
    intent = db.session.execute(
        sa.select(StartIntent)
        .where(StartIntent.print_id == of_print.id, StartIntent.state == IntentState.unknown)
        .with_for_update()
    ).scalar_one_or_none()
    if intent is None:
        return
    if status is PrintStatus.started:
        intent.state, intent.confirmed_at = IntentState.confirmed, now
    else:
        intent.state, intent.ended_at = IntentState.not_started, now
    intent.reason = "a person said so"
    db.session.flush()
