"""What the database knows of a printer and its waiting prints -> which print is next, and why each other one waits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from bambu_report import PrinterState
from farm.farm_facts import OPEN_START, spools_of
from farm.interlocks import HELD, SETTLED_FOR, Interlock, Judge, PrinterFacts, Verdict, WaitingFacts, judge, model_of
from farm.live import is_live, why_out_of_our_hands
from farm.materials import StageLimits
from farm.moves import move_print
from farm.needs import Needs
from farm.plate_facts import PlateFacts, known_plate
from farm.queue import RUN_ORDER
from farm.status import state_from_snapshot
from models import (
    WAITING_STATUSES,
    BambuMaterial,
    Order,
    OrderStatus,
    Printer,
    PrinterConnection,
    PrinterGate,
    PrintFile,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    db,
    place_of,
)

UNSHIPPABLE = (OrderStatus.canceled, OrderStatus.refunded)
# An auto-start printer does not release by itself what one of these holds back.
NOT_RELEASED = frozenset({Interlock.missed, Interlock.held, Interlock.due})

# Written out in the statement: a partial index serves only a condition that names its values.
WAITING: sa.BindParameter[Any] = sa.bindparam(
    "waiting", [each.value for each in WAITING_STATUSES], expanding=True, literal_execute=True
)


HAS_OPEN_START = sa.select(
    sa.exists().where(
        StartIntent.printer_id == sa.bindparam("printer"),
        StartIntent.print_id != sa.bindparam("own"),
        OPEN_START,
    )
)
# A printer's waiting prints in the order in which they run; no more of each than its interlocks ask for.
WAITING_ROWS = (
    sa.select(
        ScheduledPrint.id,
        ScheduledPrint.status,
        ScheduledPrint.scheduled_start,
        ScheduledPrint.is_chained,
        ScheduledPrint.held_at,
        ScheduledPrint.waiting_reason,
        ScheduledPrint.print_file_id,
        ScheduledPrint.plate,
        ScheduledPrint.material_type,
        ScheduledPrint.material_color,
        ScheduledPrint.material_slot,
        ScheduledPrint.estimated_grams,
        ScheduledPrint.nozzle_temp,
        ScheduledPrint.bed_temp,
        ScheduledPrint.overrides,
        Order.status.label("order_status"),
    )
    .outerjoin(Order, Order.id == ScheduledPrint.order_id)
    .where(
        ScheduledPrint.printer_id == sa.bindparam("printer"),
        ScheduledPrint.deleted_at.is_(None),
        ScheduledPrint.status.in_(WAITING),
    )
    .order_by(*RUN_ORDER)
)
PLATES = sa.select(PrintFile.id, PrintFile.plates).where(PrintFile.id.in_(sa.bindparam("files", expanding=True)))
PRINTS = ScheduledPrint.__table__
# Not those that somebody else is changing at this moment: that change has them looked at again.
STILL_WAITING = (
    sa.select(PRINTS.c.id)
    .where(
        PRINTS.c.id.in_(sa.bindparam("prints", expanding=True)),
        PRINTS.c.status == sa.bindparam("still"),
        PRINTS.c.deleted_at.is_(None),
    )
    .with_for_update(skip_locked=True, key_share=True)
)
WRITE_REASON = sa.update(PRINTS).where(PRINTS.c.id.in_(STILL_WAITING)).values(waiting_reason=sa.bindparam("reason"))
AT_PRINTERS: sa.BindParameter[Any] = sa.bindparam("printers", expanding=True)
# Each has the printer first.
FINGERPRINTS = (
    sa.select(
        Printer.id,
        Printer.updated_at,
        Printer.queue_paused_at,
        Printer.auto_start,
        PrinterConnection.connection_status,
        PrinterGate.plate_state,
    )
    .outerjoin(PrinterConnection, PrinterConnection.printer_id == Printer.id)
    .outerjoin(PrinterGate, PrinterGate.serial_number == PrinterConnection.serial_number)
    .where(Printer.id.in_(AT_PRINTERS)),
    sa.select(
        ScheduledPrint.printer_id,
        sa.func.count(),
        sa.func.max(ScheduledPrint.updated_at),
        sa.func.sum(ScheduledPrint.id),
        sa.func.count(Order.id),
    )
    .outerjoin(Order, sa.and_(Order.id == ScheduledPrint.order_id, Order.status.in_(UNSHIPPABLE)))
    .where(
        ScheduledPrint.printer_id.in_(AT_PRINTERS),
        ScheduledPrint.deleted_at.is_(None),
        ScheduledPrint.status.in_(WAITING),
    )
    .group_by(ScheduledPrint.printer_id),
    sa.select(
        BambuMaterial.printer_id,
        sa.func.count(),
        sa.func.max(BambuMaterial.updated_at),
        sa.func.sum(BambuMaterial.id),
    )
    .where(BambuMaterial.printer_id.in_(AT_PRINTERS), BambuMaterial.removed_at.is_(None))
    .group_by(BambuMaterial.printer_id),
)


@dataclass(frozen=True, slots=True)
class Outlook:
    """`chosen`: the print to start now, and what its interlocks read. `look_again_at`: when time may change that."""

    chosen: ScheduledPrint | None
    verdict: Verdict | None
    look_again_at: datetime | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a printer's queue comes to, with nothing written yet. `chosen`, `released` and `told` are ids of
    prints: the one to start now, those that release themselves, and those that learn why they wait."""

    chosen: tuple[int, Verdict] | None
    released: Sequence[int]
    told: Mapping[tuple[PrintStatus, str | None], Sequence[int]]
    needs: Needs
    look_again_at: datetime | None

    @property
    def changes_nothing(self) -> bool:
        return self.chosen is None and not self.released and not self.told and self.needs.is_settled


def printer_facts(
    printer: Printer,
    state: PrinterState,
    *,
    in_state_since: datetime | None,
    now: datetime,
    limits: StageLimits,
    own_print_id: int | None = None,
    rest: timedelta = SETTLED_FOR,
) -> PrinterFacts:
    """`own_print_id`: a print whose own start is under way neither stands in its own way nor takes its own filament."""
    connection = printer.connection
    asked = {"printer": printer.id, "own": own_print_id or 0}
    return PrinterFacts(
        control_problem=why_out_of_our_hands(connection),
        is_live=is_live(connection, now),
        state=state,
        plate_state=printer.plate_state,
        is_queue_paused=printer.queue_paused_at is not None,
        is_auto_start=printer.auto_start,
        has_open_start=db.session.execute(HAS_OPEN_START, asked).scalar_one(),
        model=model_of(connection.serial_number if connection else None, state, printer.model),
        nozzle_diameter_mm=printer.nozzle_diameter_mm,
        in_state_since=in_state_since,
        rest=rest,
        spools=spools_of([printer.id], limits=limits, except_print_id=own_print_id)[printer.id],
    )


def waiting_facts(waiting: ScheduledPrint) -> WaitingFacts:
    file, order = waiting.print_file, waiting.order
    plate = known_plate(file.plates, waiting.plate) if file is not None else None
    return _facts_of(waiting, plate, order.status if order is not None else None)


def _facts_of(waiting: Any, plate: PlateFacts | None, order_status: OrderStatus | None) -> WaitingFacts:
    """`waiting`: a print, or a row with its columns."""
    problem = None
    if waiting.print_file_id is None:
        problem = "it has no sliced file"
    elif plate is None:
        problem = f"its file does not tell what plate {waiting.plate} needs: upload it again"
    return WaitingFacts(
        scheduled_start=waiting.scheduled_start,
        is_chained=waiting.is_chained,
        is_held=waiting.held_at is not None,
        order_problem=f"its order is {order_status}" if order_status in UNSHIPPABLE else None,
        file_problem=problem,
        plate=plate,
        material_type=waiting.material_type,
        material_color=waiting.material_color,
        place=place_of(waiting.material_slot) if waiting.material_slot is not None else None,
        grams=waiting.estimated_grams,
        nozzle_temp=waiting.nozzle_temp,
        bed_temp=waiting.bed_temp,
        overrides=frozenset(waiting.overrides or ()),
    )


def verdict_on(waiting: ScheduledPrint, facts: PrinterFacts, *, now: datetime, missed_window: timedelta) -> Verdict:
    return judge(waiting_facts(waiting), facts, now=now, missed_window=missed_window)


def say_why_it_waits(waiting: ScheduledPrint, *, now: datetime, missed_window: timedelta, limits: StageLimits) -> None:
    """For a process without a link: what holds a waiting print, as far as it is known here. The worker knows more."""
    if waiting.status is not PrintStatus.scheduled:
        _tell(waiting, HELD if waiting.status is PrintStatus.queued and waiting.held_at is not None else None)
        return
    printer = waiting.printer
    connection = printer.connection
    state = state_from_snapshot(connection.snapshot if connection else None)
    facts = printer_facts(printer, state, in_state_since=now - SETTLED_FOR, now=now, limits=limits)
    _tell(waiting, verdict_on(waiting, facts, now=now, missed_window=missed_window).sentence)


def look_over(
    printer: Printer,
    state: PrinterState,
    *,
    in_state_since: datetime | None,
    now: datetime,
    missed_window: timedelta,
    limits: StageLimits,
    deferred: Mapping[int, str] = MappingProxyType({}),
    rest: timedelta = SETTLED_FOR,
) -> Seen:
    """The first print that is released, due and ready; each other one learns why it waits. One that cannot be started
    holds up none behind it, nor does one that is `deferred` (its id, and why). An auto-start printer releases what is
    due by itself. Nothing is written or locked: see `carry_out`."""
    needs = Needs.of(printer.id)
    rows = db.session.execute(WAITING_ROWS, {"printer": printer.id}).all()
    if not rows:
        return Seen(None, (), {}, needs, None)
    facts = printer_facts(printer, state, in_state_since=in_state_since, now=now, limits=limits, rest=rest)
    judge_here = Judge(facts, now=now, missed_window=missed_window)
    plates = _plates_of(rows)
    chosen: tuple[int, Verdict] | None = None
    released: list[int] = []
    told: dict[tuple[PrintStatus, str | None], list[int]] = {}

    def tell(row: Any, status: PrintStatus, reason: str | None) -> None:
        if row.waiting_reason != reason:
            told.setdefault((status, reason), []).append(row.id)

    being_started = _print_being_started(printer.id) if facts.has_open_start else None
    for row in rows:
        if row.id == being_started:
            # Its own start says why it waits.
            needs.keep(row.id)
            continue
        if row.status is PrintStatus.queued and not printer.auto_start:
            tell(row, row.status, HELD if row.held_at is not None else None)
            continue
        verdict = judge_here.of(_facts_of(row, plates.get((row.print_file_id, row.plate)), row.order_status))
        needs.see(row.id, verdict, deferred.get(row.id), is_first=chosen is None)
        if row.status is PrintStatus.queued:
            if not NOT_RELEASED.isdisjoint(verdict.reasons):
                tell(row, row.status, verdict.sentence)
                continue
            released.append(row.id)
        if row.id in deferred:
            tell(row, PrintStatus.scheduled, deferred[row.id])
        elif verdict.is_ready and chosen is None:
            chosen = row.id, verdict
            tell(row, PrintStatus.scheduled, None)
        else:
            tell(row, PrintStatus.scheduled, verdict.sentence or "another print goes first")
    return Seen(chosen, released, told, needs, _look_again_at(rows, facts, in_state_since, now, missed_window))


def carry_out(seen: Seen, *, now: datetime, limits: StageLimits) -> Outlook:
    """Write down what a look came to. The caller had locked the printer before that look, and commits."""
    _release(seen.released, now=now, limits=limits)
    _write_reasons(seen.told)
    seen.needs.settle(at=now)
    if seen.chosen is None:
        return Outlook(None, None, seen.look_again_at)
    chosen_id, verdict = seen.chosen
    return Outlook(db.session.get_one(ScheduledPrint, chosen_id), verdict, seen.look_again_at)


def _print_being_started(printer_id: int) -> int | None:
    """A printer has at most one start that is open."""
    return db.session.execute(
        sa.select(StartIntent.print_id).where(StartIntent.printer_id == printer_id, OPEN_START)
    ).scalar_one_or_none()


def _plates_of(rows: Iterable[Any]) -> dict[tuple[int, int], PlateFacts | None]:
    """What is known of the plates of these prints, by file and number: each read once, however many print it."""
    wanted = {(row.print_file_id, row.plate) for row in rows if row.print_file_id is not None}
    if not wanted:
        return {}
    files = {row.id: row.plates for row in db.session.execute(PLATES, {"files": {file_id for file_id, _ in wanted}})}
    return {(file_id, plate): known_plate(files[file_id], plate) for file_id, plate in wanted}


def _release(print_ids: Sequence[int], *, now: datetime, limits: StageLimits) -> None:
    if print_ids:
        found = db.session.execute(sa.select(ScheduledPrint).where(ScheduledPrint.id.in_(print_ids))).scalars()
        for released in found:
            move_print(released, PrintStatus.scheduled, at=now, limits=limits)
        db.session.flush()


def _write_reasons(told: Mapping[tuple[PrintStatus, str | None], Sequence[int]]) -> None:
    """Past the objects, for it changes nothing of what may start; and only where the print still waits as it did."""
    for (status, reason), print_ids in told.items():
        db.session.connection().execute(WRITE_REASON, {"prints": print_ids, "still": status, "reason": reason})


def _tell(waiting: ScheduledPrint, reason: str | None) -> None:
    if waiting.waiting_reason != reason:
        waiting.waiting_reason = reason


def _look_again_at(
    rows: Iterable[Any],
    facts: PrinterFacts,
    in_state_since: datetime | None,
    now: datetime,
    missed_window: timedelta,
) -> datetime | None:
    """When the mere passing of time next changes what is ready."""
    starts = {row.scheduled_start for row in rows if row.scheduled_start is not None}
    moments = [moment for start in starts for moment in (start, start + missed_window) if moment > now]
    if facts.is_live and in_state_since is not None and now < in_state_since + facts.rest:
        moments.append(in_state_since + facts.rest)
    return min(moments, default=None)


def fingerprints(printer_ids: Collection[int]) -> dict[int, tuple[object, ...]]:
    """By printer: what changes when its queue, its orders, its spools, its plate or itself do. Three statements,
    however many prints."""
    found: dict[int, tuple[object, ...]] = dict.fromkeys(printer_ids, ())
    if found:
        for statement in FINGERPRINTS:
            for printer_id, *values in db.session.execute(statement, {"printers": list(found)}):
                found[printer_id] += tuple(values)
    return found
