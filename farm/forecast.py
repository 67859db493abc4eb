"""What runs and waits on each printer of a farm -> when each print is expected to run, and what is free after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import joinedload

from bambu_report import PrinterActivity
from farm.farm_facts import spools_of
from farm.filament import LoadedSpool
from farm.interlocks import HELD, Interlock, PrinterFacts, judge, model_of
from farm.live import is_live, why_out_of_our_hands
from farm.materials import StageLimits
from farm.planner import DEFAULT_MINUTES
from farm.queue import RUN_ORDER
from farm.readiness import UNSHIPPABLE, waiting_facts
from farm.spread import Fit, Lane, Terms, fit, take_grams
from farm.staffed import MINUTE
from farm.status import state_from_snapshot
from farm.timeline import Gap, QueuedPrint, Run, run_through
from models import (
    WAITING_STATUSES,
    IntentState,
    Order,
    OrderStatus,
    PlateState,
    Printer,
    PrinterConnection,
    PrintStatus,
    ProductionStatus,
    ScheduledPrint,
    StartIntent,
    db,
)

# More waiting prints than this are not looked at: what runs after so many, nobody can know.
MAX_WAITING = 10_000
MAX_OVERDUE = 1000
BUSY_STATES = (PrinterActivity.preparing, PrinterActivity.printing, PrinterActivity.paused)


@dataclass(frozen=True, slots=True)
class FarmPrinter:
    """A printer with its prints: those that run, and those that wait, in the order in which they run."""

    printer: Printer
    facts: PrinterFacts
    running: tuple[ScheduledPrint, ...]
    waiting: tuple[ScheduledPrint, ...]
    has_unknown_start: bool


@dataclass(frozen=True, slots=True)
class Blocked:
    """A waiting print that will not start however long one waits."""

    print_id: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected on one printer. `problems`: why nothing new should be planned there. `runs`: the running print
    first; `gaps` and `spools`: what is left between and after them for others."""

    of: FarmPrinter
    problems: tuple[str, ...]
    runs: tuple[Run, ...]
    blocked: tuple[Blocked, ...]
    gaps: tuple[Gap, ...]
    spools: tuple[LoadedSpool, ...]

    def as_lane(self) -> Lane:
        facts = replace(self.of.facts, spools=self.spools)
        return Lane(self.of.printer.id, self.of.printer.name, facts, self.gaps, self.problems)


def read_farm(
    user_id: int, *, now: datetime, limits: StageLimits, printer_id: int | None = None, most: int = MAX_WAITING
) -> tuple[list[FarmPrinter], bool]:
    """(the user's printers, or that one, by id; whether all their prints were read, which are `most` at most). Seven
    statements, however many printers and prints."""
    of_user = (Printer.user_id == user_id, Printer.deleted_at.is_(None))
    wanted = of_user if printer_id is None else (*of_user, Printer.id == printer_id)
    printers = db.session.scalars(
        sa.select(Printer)
        .where(*wanted)
        .options(joinedload(Printer.connection).joinedload(PrinterConnection.gate))
        .order_by(Printer.id)
    ).all()
    ids = [printer.id for printer in printers]
    unknown = set(
        db.session.scalars(
            sa.select(StartIntent.printer_id).where(
                StartIntent.user_id == user_id,
                StartIntent.printer_id.in_(ids),
                StartIntent.state == IntentState.unknown,
            )
        )
    )
    prints = db.session.scalars(
        sa.select(ScheduledPrint)
        .where(
            ScheduledPrint.user_id == user_id,
            ScheduledPrint.printer_id.in_(ids),
            ScheduledPrint.deleted_at.is_(None),
            ScheduledPrint.status.in_((*WAITING_STATUSES, PrintStatus.started)),
        )
        .options(joinedload(ScheduledPrint.print_file), joinedload(ScheduledPrint.order))
        .order_by(ScheduledPrint.status != PrintStatus.started, *RUN_ORDER)
        .limit(most + 1)
    ).all()
    spools = spools_of(ids, limits=limits)
    by_printer: dict[int, list[ScheduledPrint]] = {}
    for each in prints[:most]:
        by_printer.setdefault(each.printer_id, []).append(each)
    farm = []
    for printer in printers:
        of_printer = by_printer.get(printer.id, [])
        farm.append(
            FarmPrinter(
                printer,
                _facts(printer, spools[printer.id], now),
                tuple(each for each in of_printer if each.status is PrintStatus.started),
                tuple(each for each in of_printer if each.status is not PrintStatus.started),
                printer.id in unknown,
            )
        )
    return farm, len(prints) <= most


def overdue_orders(user_id: int, *, now: datetime) -> Sequence[Order]:
    """Paid orders whose time is over and of which nothing is printed or planned; the oldest first, so many at most."""
    return db.session.scalars(
        sa.select(Order)
        .where(
            Order.user_id == user_id,
            Order.status == OrderStatus.paid,
            Order.production_status.in_((ProductionStatus.new, ProductionStatus.attention)),
            Order.ship_by < now,
        )
        .order_by(Order.ship_by, Order.id)
        .limit(MAX_OVERDUE)
    ).all()


def _facts(printer: Printer, spools: Sequence[LoadedSpool], now: datetime) -> PrinterFacts:
    connection = printer.connection
    state = state_from_snapshot(connection.snapshot if connection else None)
    return PrinterFacts(
        control_problem=why_out_of_our_hands(connection),
        is_live=is_live(connection, now),
        state=state,
        plate_state=printer.plate_state,
        is_queue_paused=printer.queue_paused_at is not None,
        is_auto_start=printer.auto_start,
        model=model_of(connection.serial_number if connection else None, state, printer.model),
        nozzle_diameter_mm=printer.nozzle_diameter_mm,
        spools=spools,
    )


def forecast(
    of: FarmPrinter, *, now: datetime, terms: Terms, missed_window: timedelta, extra: Iterable[QueuedPrint] = ()
) -> Forecast:
    """When each print of a printer runs, as far as can be known; `extra` prints queue up with the others."""
    runs, free_at = _running(of, now)
    if free_at is None:
        free_at = now if _plate_is_clear(of) else terms.staffed.after_work(now, terms.clearing)
    else:
        free_at = terms.staffed.after_work(free_at, terms.clearing)
    facts, blocked, queued = of.facts, [], []
    known: dict[tuple[Any, ...], Fit] = {}
    for waiting in of.waiting:
        found = _fit_of(waiting, facts, known)
        facts = replace(facts, spools=take_grams(facts.spools, found.grams)) if found.grams else facts
        reasons = _why_blocked(waiting, facts, found, now, missed_window)
        if reasons:
            blocked.append(Blocked(waiting.id, reasons))
        else:
            minutes = waiting.estimated_duration_minutes or DEFAULT_MINUTES
            queued.append(QueuedPrint(waiting.id, minutes, waiting.priority, waiting.scheduled_start))
    expected, gaps = run_through([*queued, *extra], free_at=free_at, staffed=terms.staffed, clearing=terms.clearing)
    return Forecast(of, _problems(of), (*runs, *expected), tuple(blocked), tuple(gaps), tuple(facts.spools))


def _running(of: FarmPrinter, now: datetime) -> tuple[list[Run], datetime | None]:
    """(the prints that run, when the last of them ends): by the printer's own word, else by what was estimated."""
    connection = of.printer.connection
    snapshot: Mapping[str, Any] = (connection.snapshot if connection else None) or {}
    heard_at = connection.heard_at if connection else None
    remaining = snapshot.get("remaining_minutes")
    said = heard_at + remaining * MINUTE if heard_at is not None and remaining is not None else None
    runs = []
    for each in of.running:
        begun = each.started_at or now
        ends_at = begun + (each.estimated_duration_minutes or DEFAULT_MINUTES) * MINUTE
        if said is not None and snapshot.get("current_print_id") == each.id:
            ends_at = said
        runs.append(Run(each.id, begun, max(ends_at, now)))
    free_at = max((run.ends_at for run in runs), default=None)
    if free_at is None and of.facts.state.state in BUSY_STATES:
        # Somebody else's print: it takes its time, too.
        free_at = max(said or now + DEFAULT_MINUTES * MINUTE, now)
    return runs, free_at


def _plate_is_clear(of: FarmPrinter) -> bool:
    """On a printer without a connection nobody keeps account of its plate."""
    return of.printer.connection is None or of.printer.plate_state is PlateState.clear


def _problems(of: FarmPrinter) -> tuple[str, ...]:
    found = []
    if of.facts.is_queue_paused:
        found.append("the queue of this printer is paused")
    if of.printer.connection is not None and not of.facts.is_live:
        found.append("the printer cannot be reached")
    if of.has_unknown_start:
        found.append("a start there was never confirmed: say first what became of it")
    found += [f"its print {each.id} needs a look: {each.needs_look}" for each in of.running if each.needs_look]
    return tuple(found)


def _fit_of(waiting: ScheduledPrint, facts: PrinterFacts, known: dict[tuple[Any, ...], Fit]) -> Fit:
    """Whether a print fits, asked once for many that are alike, and again when the filament it found is used up."""
    key = (
        waiting.print_file_id,
        waiting.plate,
        waiting.material_type,
        waiting.material_color,
        waiting.material_slot,
        waiting.estimated_grams,
        waiting.nozzle_temp,
        waiting.bed_temp,
        tuple(waiting.overrides or ()),
    )
    if key in known:
        left = {spool.place: spool.free_grams for spool in facts.spools}
        if all((free := left.get(place)) is None or free >= grams for place, grams in known[key].grams.items()):
            return known[key]
    known[key] = fit(waiting_facts(waiting), facts)
    return known[key]


def _why_blocked(
    waiting: ScheduledPrint, facts: PrinterFacts, found: Fit, now: datetime, missed_window: timedelta
) -> tuple[str, ...]:
    reasons: list[str | None] = [HELD if waiting.held_at is not None else None]
    may_be_missed = waiting.scheduled_start is not None and waiting.scheduled_start < now and not waiting.is_chained
    if waiting.order is not None and waiting.order.status in UNSHIPPABLE or (may_be_missed and facts.is_auto_start):
        own = replace(waiting_facts(waiting), file_problem="")
        verdict = judge(own, facts, now=now, missed_window=missed_window)
        reasons += [verdict.reasons.get(lock) for lock in (Interlock.order, Interlock.missed)]
    if facts.control_problem is None:
        reasons += found.reasons
    return tuple(reason for reason in reasons if reason)
