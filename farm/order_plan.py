"""The prints of an order, and a farm as it stands -> where and when each runs, or why not. Reads; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from farm.filament import Place
from farm.forecast import FarmPrinter, forecast, read_farm
from farm.interlocks import WaitingFacts
from farm.materials import StageLimits
from farm.planner import FIRST_PRIORITY, PlannedPrint
from farm.plate_facts import known_plate
from farm.spread import Refused, Terms, WantedPrint, fit, spread, take_grams
from farm.staffed import StaffedHours
from farm.timeline import QueuedPrint
from models import MAX_ID, Order, PrintFile, User, slot_of

if TYPE_CHECKING:
    from settings import Settings

# In place of a printer's id: whichever printers have the order done first.
AUTO = "auto"
NO_PRINTER_FITS = "no printer fits"


@dataclass(frozen=True, slots=True)
class PlanRules:
    """The settings that a plan goes by. `clearing`: the staffed time that it takes to clear a plate. `oldest`: how long
    ago an order may have been made that is scheduled by itself."""

    clearing: timedelta = timedelta(minutes=15)
    missed_window: timedelta = timedelta(minutes=60)
    limits: StageLimits = StageLimits()
    oldest: timedelta = timedelta(days=30)

    @classmethod
    def from_settings(cls, settings: Settings) -> PlanRules:
        return cls(
            clearing=timedelta(minutes=settings.chain_buffer_minutes),
            missed_window=timedelta(minutes=settings.missed_window_minutes),
            limits=StageLimits.from_settings(settings),
            oldest=timedelta(days=settings.auto_schedule_days),
        )


USUAL_RULES = PlanRules()


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A print of the order with its place in the farm. Without a printer no one fits; without times it would wait for
    something that time alone does not bring, and `reasons` says for what."""

    planned: PlannedPrint
    printer_id: int | None
    printer_name: str | None
    places: Mapping[int, Place]
    starts_at: datetime | None
    ends_at: datetime | None
    reasons: tuple[str, ...] = ()

    @property
    def material_slot(self) -> int | None:
        """Its slot, where it is fed from one place and that is in one of the first two units."""
        places = set(self.places.values())
        return slot_of(*places.pop()) if len(places) == 1 else None


@dataclass(frozen=True, slots=True)
class OrderPlan:
    """Where an order's prints go. `refused`: each printer that gets none of them, and why. `skipped`: its lines of
    which there is nothing to print."""

    runs: tuple[PlannedRun, ...]
    refused: tuple[Refused, ...]
    ship_by: datetime | None
    now: datetime
    skipped: tuple[int, ...] = ()

    @property
    def fits(self) -> bool:
        return all(run.printer_id is not None for run in self.runs)

    @property
    def done_at(self) -> datetime | None:
        """When the last print ends; None while some print has no time."""
        ends = [run.ends_at for run in self.runs if run.ends_at is not None]
        return max(ends) if ends and len(ends) == len(self.runs) else None

    @property
    def slack(self) -> timedelta | None:
        return slack_to(self.ship_by, self.done_at)

    @property
    def is_late(self) -> bool | None:
        return is_late(self.ship_by, self.done_at, self.now)


def slack_to(ship_by: datetime | None, done_at: datetime | None) -> timedelta | None:
    """The time between; negative when it is done too late."""
    return None if ship_by is None or done_at is None else ship_by - done_at


def is_late(ship_by: datetime | None, done_at: datetime | None, now: datetime) -> bool | None:
    """Whether something is done after its time; None where nobody can know yet."""
    if ship_by is None or (done_at is None and ship_by >= now):
        return None
    return done_at is None or done_at > ship_by


def plan_order(
    order: Order,
    user: User,
    planned: Sequence[PlannedPrint],
    files: Mapping[int, PrintFile],
    printer_id: int | None,
    *,
    now: datetime,
    earliest: datetime,
    rules: PlanRules,
) -> OrderPlan:
    """The prints on one printer, or with None spread over the farm. `files`: by id, those that the prints name."""
    terms = Terms(earliest, StaffedHours(user.staffed_hours, user.timezone), rules.clearing)
    farm, _ = read_farm(user.id, now=now, limits=rules.limits, printer_id=printer_id)
    facts = [_facts(each, files) for each in planned]
    if printer_id is not None:
        return _on_one(order, planned, facts, farm[0], terms, now, rules)
    return _on_farm(order, planned, facts, farm, terms, now, rules)


def _facts(planned: PlannedPrint, files: Mapping[int, PrintFile]) -> WaitingFacts:
    """A print without a file is started by a person who knows what it needs: only its filament is looked at."""
    file = files.get(planned.print_file_id) if planned.print_file_id is not None else None
    plate = known_plate(file.plates, planned.plate) if file is not None else None
    return WaitingFacts(
        file_problem=f"its file does not tell what plate {planned.plate} needs: upload it again"
        if file is not None and plate is None
        else None,
        plate=plate,
        material_type=planned.material_type,
        material_color=planned.material_color,
        grams=planned.estimated_grams,
        nozzle_temp=planned.nozzle_temp if plate is not None else None,
        bed_temp=planned.bed_temp if plate is not None else None,
    )


def _on_one(
    order: Order,
    planned: Sequence[PlannedPrint],
    facts: Sequence[WaitingFacts],
    printer: FarmPrinter,
    terms: Terms,
    now: datetime,
    rules: PlanRules,
) -> OrderPlan:
    """Behind what is queued there, chained as they are."""
    before = forecast(printer, now=now, terms=terms, missed_window=rules.missed_window)
    loaded = replace(printer.facts, spools=before.spools)
    fits = []
    queued = []
    for number, (each, wanted) in enumerate(zip(planned, facts, strict=True), 1):
        found = fit(wanted, loaded)
        loaded = replace(loaded, spools=take_grams(loaded.spools, found.grams))
        fits.append(found)
        if not found.reasons:
            # Above every id there is: of two alike the one that was there before goes first.
            minutes = each.estimated_duration_minutes
            queued.append(QueuedPrint(MAX_ID + number, minutes, each.priority, each.scheduled_start))
    after = forecast(printer, now=now, terms=terms, missed_window=rules.missed_window, extra=queued)
    times = {run.print_id: run for run in after.runs}
    runs = []
    for number, (each, found) in enumerate(zip(planned, fits, strict=True), 1):
        time = times.get(MAX_ID + number)
        runs.append(
            PlannedRun(
                each,
                printer.printer.id,
                printer.printer.name,
                found.places,
                time.starts_at if time else None,
                time.ends_at if time else None,
                found.reasons,
            )
        )
    reasons = tuple(dict.fromkeys([*before.problems, *(reason for found in fits for reason in found.reasons)]))
    refused = (Refused(printer.printer.id, printer.printer.name, reasons),) if reasons else ()
    return OrderPlan(tuple(runs), refused, order.ship_by, now)


def _on_farm(
    order: Order,
    planned: Sequence[PlannedPrint],
    facts: Sequence[WaitingFacts],
    farm: Sequence[FarmPrinter],
    terms: Terms,
    now: datetime,
    rules: PlanRules,
) -> OrderPlan:
    """Wherever the whole is done first. A print that need not wait has no start time; the others start "not before"."""
    lanes = [forecast(printer, now=now, terms=terms, missed_window=rules.missed_window).as_lane() for printer in farm]
    wanted = [
        WantedPrint(number, each.estimated_duration_minutes, known)
        for number, (each, known) in enumerate(zip(planned, facts, strict=True))
    ]
    found = spread(wanted, lanes, terms)
    names = {lane.printer_id: lane.name for lane in lanes}
    runs = []
    for number, placed in enumerate(found.placed):
        # At the very moment that a person asked for is that person's time; any later one is ours.
        is_asked_for = placed.starts_at == terms.earliest
        each = replace(
            planned[placed.print_id],
            scheduled_start=None if is_asked_for and terms.earliest <= now else placed.starts_at,
            is_chained=not is_asked_for,
            priority=max(1, FIRST_PRIORITY - number),
        )
        name = names[placed.printer_id]
        runs.append(PlannedRun(each, placed.printer_id, name, placed.places, placed.starts_at, placed.ends_at))
    left = [PlannedRun(planned[n], None, None, {}, None, None, (NO_PRINTER_FITS,)) for n in found.unplaced]
    return OrderPlan((*runs, *left), found.refused, order.ship_by, now)
