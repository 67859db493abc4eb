"""What the database knows of a printer and its waiting prints -> which print is next, and why each other one waits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import joinedload

from bambu_report import PrinterState
from farm.farm_facts import spools_of
from farm.interlocks import HELD, SETTLED_FOR, Interlock, PrinterFacts, Verdict, WaitingFacts, judge, model_of
from farm.live import is_live, why_out_of_our_hands
from farm.materials import StageLimits
from farm.moves import move_print
from farm.plate_facts import known_plate
from farm.queue import RUN_ORDER
from farm.status import state_from_snapshot
from models import (
    OPEN_INTENT_STATES,
    WAITING_STATUSES,
    BambuMaterial,
    OrderStatus,
    Printer,
    PrinterConnection,
    PrinterGate,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    db,
    place_of,
)

UNSHIPPABLE = (OrderStatus.canceled, OrderStatus.refunded)


# Written out in the statement: a partial index serves only a condition that names its values.
WAITING: sa.BindParameter[Any] = sa.bindparam(
    "waiting", [each.value for each in WAITING_STATUSES], expanding=True, literal_execute=True
)


@dataclass(frozen=True, slots=True)
class Outlook:
    """`chosen`: the print to start now, and what its interlocks read. `look_again_at`: when time may change that."""

    chosen: ScheduledPrint | None
    verdict: Verdict | None
    look_again_at: datetime | None


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
    open_start = sa.select(
        sa.exists().where(
            StartIntent.printer_id == printer.id,
            StartIntent.state.in_(OPEN_INTENT_STATES),
            StartIntent.print_id != (own_print_id or 0),
        )
    )
    return PrinterFacts(
        control_problem=why_out_of_our_hands(connection),
        is_live=is_live(connection, now),
        state=state,
        plate_state=printer.plate_state,
        is_queue_paused=printer.queue_paused_at is not None,
        is_auto_start=printer.auto_start,
        has_open_start=db.session.execute(open_start).scalar_one(),
        model=model_of(connection.serial_number if connection else None, state, printer.model),
        nozzle_diameter_mm=printer.nozzle_diameter_mm,
        in_state_since=in_state_since,
        rest=rest,
        spools=spools_of([printer.id], limits=limits, except_print_id=own_print_id)[printer.id],
    )


def waiting_facts(waiting: ScheduledPrint) -> WaitingFacts:
    plate, problem = None, None
    if waiting.print_file is None:
        problem = "it has no sliced file"
    else:
        plate = known_plate(waiting.print_file.plates, waiting.plate)
        if plate is None:
            problem = f"its file does not tell what plate {waiting.plate} needs: upload it again"
    order = waiting.order
    return WaitingFacts(
        scheduled_start=waiting.scheduled_start,
        is_chained=waiting.is_chained,
        is_held=waiting.held_at is not None,
        order_problem=f"its order is {order.status}" if order is not None and order.status in UNSHIPPABLE else None,
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


def waiting_prints(printer: Printer, statuses: Iterable[PrintStatus]) -> list[ScheduledPrint]:
    """A printer's prints in these states, in the order in which they run."""
    return list(
        db.session.execute(
            sa.select(ScheduledPrint)
            .where(
                ScheduledPrint.user_id == printer.user_id,
                ScheduledPrint.printer_id == printer.id,
                ScheduledPrint.deleted_at.is_(None),
                ScheduledPrint.status.in_(list(statuses)),
            )
            .options(joinedload(ScheduledPrint.print_file), joinedload(ScheduledPrint.order))
            .order_by(*RUN_ORDER)
        ).scalars()
    )


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
) -> Outlook:
    """The first print that is released, due and ready; each other one learns why it waits. One that cannot be started
    holds up none behind it, nor does one that is `deferred` (its id, and why). An auto-start printer releases what is
    due by itself."""
    facts = printer_facts(printer, state, in_state_since=in_state_since, now=now, limits=limits, rest=rest)
    statuses = [PrintStatus.scheduled, PrintStatus.queued]
    chosen, chosen_verdict = None, None
    for waiting in waiting_prints(printer, statuses):
        if waiting.status is PrintStatus.queued:
            if not printer.auto_start:
                _tell(waiting, HELD if waiting.held_at is not None else None)
                continue
            verdict = verdict_on(waiting, facts, now=now, missed_window=missed_window)
            if {Interlock.missed, Interlock.held, Interlock.due} & verdict.reasons.keys():
                _tell(waiting, verdict.sentence)
                continue
            move_print(waiting, PrintStatus.scheduled, at=now, limits=limits)
        else:
            verdict = verdict_on(waiting, facts, now=now, missed_window=missed_window)
        if waiting.id in deferred:
            _tell(waiting, deferred[waiting.id])
        elif verdict.is_ready and chosen is None:
            chosen, chosen_verdict = waiting, verdict
            _tell(waiting, None)
        else:
            _tell(waiting, verdict.sentence or "another print goes first")
    return Outlook(chosen, chosen_verdict, _look_again_at(printer, facts, in_state_since, now, missed_window))


def _tell(waiting: ScheduledPrint, reason: str | None) -> None:
    if waiting.waiting_reason != reason:
        waiting.waiting_reason = reason


def _look_again_at(
    printer: Printer,
    facts: PrinterFacts,
    in_state_since: datetime | None,
    now: datetime,
    missed_window: timedelta,
) -> datetime | None:
    """When the mere passing of time next changes what is ready."""
    starts = (
        db.session.execute(
            sa.select(ScheduledPrint.scheduled_start)
            .where(
                ScheduledPrint.user_id == printer.user_id,
                ScheduledPrint.printer_id == printer.id,
                ScheduledPrint.deleted_at.is_(None),
                ScheduledPrint.status.in_((PrintStatus.queued, PrintStatus.scheduled)),
                ScheduledPrint.scheduled_start > now - missed_window,
            )
            .distinct()
        )
        .scalars()
        .all()
    )
    moments = [moment for start in starts if start for moment in (start, start + missed_window) if moment > now]
    if facts.is_live and in_state_since is not None and now < in_state_since + facts.rest:
        moments.append(in_state_since + facts.rest)
    return min(moments, default=None)


def fingerprints(printer_ids: Collection[int]) -> dict[int, tuple[object, ...]]:
    """By printer: what changes when its queue, its spools or its plate do. Three statements, however many prints."""
    found: dict[int, tuple[object, ...]] = dict.fromkeys(printer_ids, ())
    if not found:
        return found
    printers = sa.select(
        Printer.id, Printer.updated_at, Printer.queue_paused_at, Printer.auto_start, PrinterGate.plate_state
    )
    at_gate = sa.and_(
        PrinterConnection.printer_id == Printer.id, PrinterGate.serial_number == PrinterConnection.serial_number
    )
    queues = sa.select(
        ScheduledPrint.printer_id,
        sa.func.count(),
        sa.func.max(ScheduledPrint.updated_at),
        sa.func.sum(ScheduledPrint.id),
    )
    spools = sa.select(
        BambuMaterial.printer_id,
        sa.func.count(),
        sa.func.max(BambuMaterial.updated_at),
        sa.func.sum(BambuMaterial.id),
    )
    for statement in (
        printers.outerjoin(PrinterConnection, PrinterConnection.printer_id == Printer.id)
        .outerjoin(PrinterGate, at_gate)
        .where(Printer.id.in_(printer_ids)),
        queues.where(
            ScheduledPrint.printer_id.in_(printer_ids),
            ScheduledPrint.deleted_at.is_(None),
            ScheduledPrint.status.in_(WAITING),
        ).group_by(ScheduledPrint.printer_id),
        spools.where(BambuMaterial.printer_id.in_(printer_ids), BambuMaterial.removed_at.is_(None)).group_by(
            BambuMaterial.printer_id
        ),
    ):
        for printer_id, *values in db.session.execute(statement):
            found[printer_id] += tuple(values)
    return found
