"""A released print + an idle printer -> at most one start command. Nothing else in the product starts a print.

The order of steps is the safety: the intent is committed before anything is sent, the file goes up outside any
transaction, every interlock is read again on a fresh report, "published" is committed before the command leaves, and
the command leaves once. Only the printer's own report makes a print started (`farm.tracker`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import sqlalchemy as sa
import structlog

from bambu_client import NotSent, StartOrder
from bambu_files import StorageFault
from bambu_report import PrinterActivity, PrinterState, Storage
from farm.leases import Lease, still_holds
from farm.live import is_live, why_only_watched
from farm.materials import Stage, StageLimits, spool_for, stage_of
from farm.moves import move_print
from farm.print_files import NotPrintable, PlateFacts, folder_of, read_plate
from models import (
    OPEN_INTENT_STATES,
    BambuMaterial,
    IntentState,
    OrderStatus,
    PlateState,
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

FRESH_FOR = timedelta(seconds=10)
# After a failure too: the plate is occupied then, and the person who clears it has seen what failed.
READY_STATES = (PrinterActivity.idle, PrinterActivity.finished, PrinterActivity.failed)
FIRST_SUBMISSION_ID = 100_000
UNSHIPPABLE = (OrderStatus.canceled, OrderStatus.refunded)


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
    limits: StageLimits
    files_dir: Path

    @classmethod
    def from_settings(cls, settings: Settings) -> StartRules:
        return cls(
            missed_window=timedelta(minutes=settings.missed_window_minutes),
            limits=StageLimits.from_settings(settings),
            files_dir=settings.files_dir,
        )


def release_due(printer: Printer, *, now: datetime, rules: StartRules) -> None:
    """Auto-start: release the queued prints of a printer whose time has come. Flushes."""
    if not printer.auto_start:
        return
    queued = db.session.execute(_waiting(printer).where(ScheduledPrint.status == PrintStatus.queued)).scalars()
    for waiting in queued:
        if waiting.scheduled_start is not None and waiting.scheduled_start > now:
            continue
        reason = missed(waiting, printer, now=now, rules=rules)
        if reason is None:
            move_print(waiting, PrintStatus.scheduled, at=now, limits=rules.limits)
        elif waiting.waiting_reason != reason:
            waiting.waiting_reason = reason


def _waiting(printer: Printer) -> sa.Select[ScheduledPrint]:
    """A printer's prints in the order in which they run."""
    return (
        sa.select(ScheduledPrint)
        .where(
            ScheduledPrint.user_id == printer.user_id,
            ScheduledPrint.printer_id == printer.id,
            ScheduledPrint.deleted_at.is_(None),
        )
        .order_by(
            ScheduledPrint.priority.desc(),
            ScheduledPrint.scheduled_start.is_not(None),
            ScheduledPrint.scheduled_start,
            ScheduledPrint.id,
        )
    )


def missed(waiting: ScheduledPrint, printer: Printer, *, now: datetime, rules: StartRules) -> str | None:
    """Why a print whose hour has passed is held on an auto-start printer: nothing starts by surprise at 3 a.m."""
    start = waiting.scheduled_start
    if start is None or waiting.is_chained or not printer.auto_start or now - start <= rules.missed_window:
        return None
    return f"its time {start:%Y-%m-%d %H:%M} UTC was missed: set a new one"


def choose_print(printer: Printer, state: PrinterState, *, now: datetime, rules: StartRules) -> ScheduledPrint | None:
    """The first print that is released, due and ready. The others learn why they wait. Flushes."""
    chosen = None
    for waiting in db.session.execute(
        _waiting(printer).where(ScheduledPrint.status == PrintStatus.scheduled)
    ).scalars():
        reason = why_not(waiting, printer, state, now=now, rules=rules)
        if reason is None and chosen is None:
            chosen = waiting
        shown = reason if reason or chosen is waiting else "another print goes first"
        if waiting.waiting_reason != shown:
            waiting.waiting_reason = shown
    return chosen


def why_not(
    waiting: ScheduledPrint,
    printer: Printer,
    state: PrinterState,
    *,
    now: datetime,
    rules: StartRules,
    own_intent_id: int | None = None,
) -> str | None:
    """The first interlock that does not hold, in words for a person; None when all do. Unknown counts as not."""
    if waiting.scheduled_start is not None and waiting.scheduled_start > now:
        return f"not before {waiting.scheduled_start:%Y-%m-%d %H:%M} UTC"
    if held := missed(waiting, printer, now=now, rules=rules):
        return held
    if waiting.print_file_id is None:
        return "it has no sliced file"
    if waiting.order is not None and waiting.order.status in UNSHIPPABLE:
        return f"its order is {waiting.order.status}"
    return why_printer_is_not_ready(printer, state, now=now, own_intent_id=own_intent_id) or why_filament_does_not_fit(
        waiting, state, rules
    )


def why_printer_is_not_ready(
    printer: Printer, state: PrinterState, *, now: datetime, own_intent_id: int | None = None
) -> str | None:
    if printer.connection is None:
        return "the printer has no connection: start it there and record it here"
    if reason := why_only_watched(printer.connection):
        return f"{reason}: start it there and record it here"
    if not is_live(printer.connection, now) or not state.known:
        return "the printer cannot be reached"
    if state.state not in READY_STATES:
        return f"the printer is {state.state}"
    if printer.plate_state is not PlateState.clear:
        return "plate not cleared"
    if state.storage in (Storage.none, Storage.abnormal, Storage.read_only):
        return "the printer has no usable storage (SD card or USB stick)"
    if state.developer_mode is False:
        return "the printer takes no commands: switch on Developer Mode at its screen"
    open_intent = db.session.execute(
        sa.select(
            sa.exists().where(
                StartIntent.printer_id == printer.id,
                StartIntent.state.in_(OPEN_INTENT_STATES),
                StartIntent.id != (own_intent_id or 0),
            )
        )
    ).scalar_one()
    return "another start is under way" if open_intent else None


def why_filament_does_not_fit(waiting: ScheduledPrint, state: PrinterState, rules: StartRules) -> str | None:
    material = spool_for(waiting)
    if material is None:
        return (
            f"no spool of {waiting.material_type or 'its material'} is known on this printer: add it, or set the slot"
        )
    place = f"slot {material.slot}" if material.slot is not None else f"AMS {material.ams_id}"
    wanted = waiting.material_type
    if wanted and material.material_type.casefold() != wanted.casefold():
        return f"needs {wanted}, {place} has {material.material_type}"
    if stage_of(material.weight_grams, material.remaining_grams, rules.limits) in (Stage.replace, Stage.depleted):
        return f"{place} is nearly empty: replace the spool"
    needed = waiting.estimated_grams
    if needed is not None and material.remaining_grams < needed:
        return f"needs {wanted or material.material_type} {needed:.0f} g, {place} has {material.remaining_grams:.0f} g"
    return _why_printer_sees_other(material, state, place)


def _why_printer_sees_other(material: BambuMaterial, state: PrinterState, place: str) -> str | None:
    """The ledger against what the printer itself sees in that place, where it says anything."""
    for spool in state.spools:
        if (spool.ams_id, spool.tray_id) != (material.ams_id, material.tray_id):
            continue
        if not spool.loaded:
            return f"the printer sees no spool in {place}"
        if spool.material_type and spool.material_type.casefold() != material.material_type.casefold():
            return f"the printer sees {spool.material_type} in {place}, not {material.material_type}"
    return None


def claim(printer: Printer, chosen: ScheduledPrint, *, now: datetime, rules: StartRules) -> StartIntent | None:
    """The intent to start this print, flushed; None, with the reason on the print, if its file cannot be printed."""
    file, material = chosen.print_file, spool_for(chosen)
    assert file is not None and material is not None
    try:
        facts = read_plate(folder_of(rules.files_dir, chosen.user_id) / file.sha256, chosen.plate)
    except NotPrintable as error:
        chosen.waiting_reason = str(error)
        return None
    if len(facts.filament_ids) > 1:
        chosen.waiting_reason = "its plate uses several filaments, which is not supported yet"
        return None
    last_id = db.session.execute(
        sa.select(sa.func.max(StartIntent.submission_id)).where(StartIntent.printer_id == printer.id)
    ).scalar_one()
    submission_id = max(last_id or 0, FIRST_SUBMISSION_ID) + 1
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
        mapping=_mapping(facts, (material.ams_id, material.tray_id)),
        claimed_at=now,
    )
    db.session.add(intent)
    db.session.flush()
    return intent


def _mapping(facts: PlateFacts, place: tuple[int, int]) -> list[list[int] | None]:
    """Per filament of the slicer's list, its id - 1: where it is fed from. Ids are sparse."""
    used = facts.filament_ids[0] if facts.filament_ids else 1
    mapping: list[list[int] | None] = [None] * used
    mapping[used - 1] = list(place)
    return mapping


def start(
    printer_id: int,
    link: Link,
    uploader: Uploader,
    *,
    lease: Lease,
    clock: Callable[[], datetime],
    rules: StartRules,
    is_stopping: threading.Event,
    fresh_report_seconds: float = 10.0,
) -> StartIntent | None:
    """Start the next print of a printer if everything allows it; commits step by step.

    Returns the intent, whatever became of it, or None if nothing was to be started. Runs in a thread of its own: the
    upload may take minutes.
    """
    intent = _claim_next(printer_id, link, lease, clock(), rules)
    if intent is None:
        return None
    path = folder_of(rules.files_dir, intent.user_id) / intent.sha256
    if not _advance(intent, (IntentState.claimed,), IntentState.uploading):
        return intent
    try:
        with open(path, "rb") as stream:
            uploader.upload(stream, intent.remote_name, intent.size_bytes)
    except (StorageFault, OSError) as error:
        reason = error.reason if isinstance(error, StorageFault) else "the uploaded file is gone from our storage"
        return _give_back(intent, f"the file could not be sent to the printer: {reason}", now=clock())
    if not _hear_afresh(link, clock, fresh_report_seconds):
        return _give_back(intent, "the printer did not answer in time", now=clock())
    if is_stopping.is_set():
        return _give_back(intent, "stopping before it was started", now=clock())
    generation, heard_at = link.generation, link.full_heard_at
    order = _arm(intent, link.state, lease, clock(), rules)
    if order is None or heard_at is None:
        return intent
    try:
        link.start_print(order, generation=generation, latest_at=heard_at + FRESH_FOR)
    except NotSent as error:
        # Provably unsent is not ambiguous: the print goes back to the queue by itself.
        return _give_back(intent, f"the start could not be sent: {error}", now=clock(), state=IntentState.not_started)
    log.info("start_published", print_id=intent.print_id, printer_id=printer_id, submission_id=intent.submission_id)
    return intent


def _claim_next(printer_id: int, link: Link, lease: Lease, now: datetime, rules: StartRules) -> StartIntent | None:
    if not still_holds(lease, now=now):
        db.session.rollback()
        return None
    printer = db.session.execute(
        sa.select(Printer).where(Printer.id == printer_id, Printer.deleted_at.is_(None)).with_for_update()
    ).scalar_one_or_none()
    intent = None
    if printer is not None:
        release_due(printer, now=now, rules=rules)
        chosen = choose_print(printer, link.state, now=now, rules=rules)
        intent = claim(printer, chosen, now=now, rules=rules) if chosen is not None else None
    db.session.commit()
    return intent


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


def _advance(intent: StartIntent, allowed: tuple[IntentState, ...], state: IntentState) -> bool:
    """One conditional UPDATE: false when somebody else moved the intent in between. Commits."""
    moved = count_changed(
        sa.update(StartIntent)
        .where(StartIntent.id == intent.id, StartIntent.state.in_(allowed))
        .values(state=state)
        .execution_options(synchronize_session=False)
    )
    db.session.commit()
    return moved == 1


def _give_back(
    intent: StartIntent, reason: str, *, now: datetime, state: IntentState = IntentState.withdrawn
) -> StartIntent:
    """The print stays released and says why it waits. A deferral, not a failure. Commits."""
    db.session.rollback()
    kept = db.session.get_one(StartIntent, intent.id, populate_existing=True)
    kept.state, kept.reason, kept.ended_at = state, reason, now
    waiting = db.session.get_one(ScheduledPrint, kept.print_id)
    if waiting.status is PrintStatus.scheduled:
        waiting.waiting_reason = reason
    if kept.published_at is not None:
        # Nothing left us, so nothing lies on the plate.
        printer = db.session.get_one(Printer, kept.printer_id)
        printer.plate_state, printer.plate_print_id = PlateState.clear, None
    db.session.commit()
    log.warning("start_given_back", print_id=kept.print_id, reason=reason)
    return kept


def _hear_afresh(link: Link, clock: Callable[[], datetime], patience_seconds: float) -> bool:
    """Wait for a full report newer than now. True when one came."""
    asked_at = clock()
    link.ask_full_report()
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        heard_at = link.full_heard_at
        if heard_at is not None and heard_at >= asked_at:
            return True
        time.sleep(0.02)
    return False


def _arm(intent: StartIntent, state: PrinterState, lease: Lease, now: datetime, rules: StartRules) -> StartOrder | None:
    """All interlocks again on the fresh report, then `published` in one conditional UPDATE. The write precedes the
    send: after a crash in between, the start counts as sent and is never repeated without a person. Commits."""
    if not still_holds(lease, now=now):
        # Somebody else holds the printer by now, and has withdrawn this intent or will.
        db.session.rollback()
        return None
    kept = db.session.get_one(StartIntent, intent.id, populate_existing=True, with_for_update=True)
    printer = db.session.get_one(Printer, kept.printer_id, populate_existing=True, with_for_update=True)
    waiting = db.session.get_one(ScheduledPrint, kept.print_id, populate_existing=True, with_for_update=True)
    reason = None
    if waiting.status is not PrintStatus.scheduled or waiting.deleted_at is not None:
        reason = "it was taken back"
    else:
        reason = why_not(waiting, printer, state, now=now, rules=rules, own_intent_id=kept.id)
    if reason is not None:
        db.session.commit()
        _give_back(intent, reason, now=now)
        return None
    order = StartOrder(
        remote_name=kept.remote_name,
        title=f"farm-{kept.submission_id}",
        plate=kept.plate,
        submission_id=kept.submission_id,
        bed_type=None,
        mapping=tuple(None if place is None else (place[0], place[1]) for place in kept.mapping),
    )
    published = count_changed(
        sa.update(StartIntent)
        .where(StartIntent.id == intent.id, StartIntent.state == IntentState.uploading)
        .values(state=IntentState.published, published_at=now)
        .execution_options(synchronize_session=False)
    )
    if published == 1:
        printer.plate_state, printer.plate_print_id = PlateState.occupied, waiting.id
        waiting.waiting_reason = "sent to the printer, waiting for it to begin"
    db.session.commit()
    return order if published == 1 else None
