"""What must be known true before a print is started. Pure: facts go in, the reason of each lock that holds comes out.

Unknown counts as not true. A person may override some of the locks for one start, which is recorded; nobody overrides a
busy printer, a plate sliced for another model, or what the starter itself needs in order to start anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from bambu.errors import Fault, Severity
from bambu.models import PrinterModel, model_of_name, model_of_serial
from bambu_report import PrinterActivity, PrinterState, Storage
from farm.filament import (
    COLOR_LIMIT,
    FilamentNeed,
    LoadedSpool,
    Matching,
    color_distance,
    color_name,
    match,
    place_name,
    same_type,
)
from farm.filament import needs_of as filament_needs
from farm.plate_facts import PlateFacts
from models import PlateState

# A printer that has just come to rest may be about to go on; an old state may also lag behind a start.
SETTLED_FOR = timedelta(seconds=10)
# After a failure too: the plate is occupied then, and the person who clears it has seen what failed.
READY_STATES = (PrinterActivity.idle, PrinterActivity.finished, PrinterActivity.failed)
SEVERE = (Severity.fatal, Severity.serious)
# Health messages have four groups of digits. `print_error` has two and stays on for months: its state judges a print.
HEALTH_GROUPS = 4
HELD = "held by a person"


class Interlock(StrEnum):
    """In the order in which they are told."""

    order = "order"
    held = "held"
    file = "file"
    model = "model"
    nozzle = "nozzle"
    temperatures = "temperatures"
    profile = "profile"
    filament = "filament"
    missed = "missed"
    queue = "queue"
    control = "control"
    reachable = "reachable"
    idle = "idle"
    start_under_way = "start_under_way"
    plate = "plate"
    storage = "storage"
    fault = "fault"
    settled = "settled"
    due = "due"


OVERRIDABLE = frozenset(
    {
        Interlock.nozzle,
        Interlock.temperatures,
        Interlock.profile,
        Interlock.filament,
        Interlock.missed,
        Interlock.storage,
        Interlock.fault,
        Interlock.settled,
    }
)
# What a person sees first: what is wrong with the print itself, for it stays so however long one waits.
OF_THE_PRINT = (
    Interlock.order,
    Interlock.held,
    Interlock.file,
    Interlock.model,
    Interlock.nozzle,
    Interlock.temperatures,
    Interlock.profile,
    Interlock.filament,
    Interlock.missed,
)


@dataclass(frozen=True, slots=True)
class WaitingFacts:
    """A waiting print. `plate` is None without a file, or when its file does not tell; see `file_problem`."""

    scheduled_start: datetime | None = None
    is_chained: bool = False
    is_held: bool = False
    order_problem: str | None = None
    file_problem: str | None = None
    plate: PlateFacts | None = None
    material_type: str | None = None
    material_color: str | None = None
    place: tuple[int, int] | None = None
    grams: Decimal | None = None
    nozzle_temp: int | None = None
    bed_temp: int | None = None
    overrides: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PrinterFacts:
    """A printer as the database knows it, and as it reports itself (`state`, unknown where no process hears it).

    `control_problem`: why it takes no start from us however well it is heard. `model`: a name of bambu.models.
    `rest`: how long it must have been at rest.
    """

    control_problem: str | None
    is_live: bool
    state: PrinterState
    plate_state: PlateState
    is_queue_paused: bool = False
    is_auto_start: bool = False
    has_open_start: bool = False
    model: str | None = None
    nozzle_diameter_mm: Decimal | None = None
    in_state_since: datetime | None = None
    rest: timedelta = SETTLED_FOR
    spools: Sequence[LoadedSpool] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons`: of each lock that holds, in words for a person. `matching`: where each filament is fed from."""

    reasons: Mapping[Interlock, str]
    matching: Matching
    overridden: frozenset[str] = frozenset()

    @property
    def is_ready(self) -> bool:
        return not self.reasons

    @property
    def sentence(self) -> str | None:
        """What to tell a person: all that is wrong with the print itself, else the first of what it waits for."""
        own = [self.reasons[lock] for lock in OF_THE_PRINT if lock in self.reasons]
        if own:
            return "; ".join(own)
        return next((self.reasons[lock] for lock in Interlock if lock in self.reasons), None)

    def as_checks(self) -> dict[str, str]:
        """What each lock read, for the record."""
        return {
            lock.value: "overridden by a person" if lock in self.overridden else self.reasons.get(lock, "ok")
            for lock in Interlock
        }


NOTHING_MATCHED = Matching(places={}, reasons=())


@dataclass(slots=True)
class _Found:
    reasons: dict[Interlock, str] = field(default_factory=dict)

    def note(self, lock: Interlock, reason: str | None) -> None:
        if reason is not None:
            self.reasons[lock] = reason


class Judge:
    """One printer at one moment. What many prints have in common is worked out once, however long its queue."""

    def __init__(self, printer: PrinterFacts, *, now: datetime, missed_window: timedelta) -> None:
        self._printer, self._now, self._missed_window = printer, now, missed_window
        self._of_printer = printer_reasons(printer, now=now)
        self._fits: dict[tuple[object, ...], tuple[Mapping[Interlock, str], Matching]] = {}

    def of(self, waiting: WaitingFacts) -> Verdict:
        """Every interlock of one print."""
        printer, found = self._printer, _Found()
        note = found.note
        note(Interlock.order, waiting.order_problem)
        note(Interlock.held, HELD if waiting.is_held else None)
        note(Interlock.missed, _missed(waiting, printer, self._now, self._missed_window))
        note(Interlock.due, _not_due(waiting, self._now))
        if printer.control_problem is not None:
            # Nothing is started from here: what the print lacks for that matters to nobody.
            note(Interlock.control, printer.control_problem)
            return Verdict(found.reasons, NOTHING_MATCHED)
        found.reasons.update(self._of_printer)
        note(Interlock.file, waiting.file_problem)
        matching = NOTHING_MATCHED
        if waiting.file_problem is None:
            unfit, matching = self._fit(waiting)
            found.reasons.update(unfit)
        if not waiting.overrides:
            return Verdict(found.reasons, matching)
        overridden = waiting.overrides & OVERRIDABLE & found.reasons.keys()
        if Interlock.filament in overridden and len(matching.places) < len(needs_of(waiting)):
            # Whatever a person allows: a filament with no place at all cannot be fed.
            overridden -= {Interlock.filament}
        return Verdict(
            {lock: reason for lock, reason in found.reasons.items() if lock not in overridden},
            matching,
            frozenset(overridden),
        )

    def _fit(self, waiting: WaitingFacts) -> tuple[Mapping[Interlock, str], Matching]:
        """What of a plate does not fit the printer, and where its filaments are fed from. The same for all prints that
        are alike in this, as the many of a batch are."""
        alike = (
            *(waiting.plate, waiting.material_type, waiting.material_color, waiting.place, waiting.grams),
            *(waiting.nozzle_temp, waiting.bed_temp),
        )
        if alike not in self._fits:
            self._fits[alike] = _fit(waiting, self._printer)
        return self._fits[alike]


def judge(waiting: WaitingFacts, printer: PrinterFacts, *, now: datetime, missed_window: timedelta) -> Verdict:
    """Every interlock of one print on one printer."""
    return Judge(printer, now=now, missed_window=missed_window).of(waiting)


def _fit(waiting: WaitingFacts, printer: PrinterFacts) -> tuple[Mapping[Interlock, str], Matching]:
    found = _Found()
    note = found.note
    if waiting.plate is not None:
        note(Interlock.model, _other_model(waiting.plate, printer))
        note(Interlock.nozzle, _other_nozzle(waiting.plate, printer))
        note(Interlock.temperatures, _too_hot(waiting.plate, printer))
        note(Interlock.profile, _other_profile(waiting, waiting.plate))
    matching = _match(waiting, printer)
    note(Interlock.filament, "; ".join([*matching.reasons, *_seen_otherwise(matching, printer)]) or None)
    return found.reasons, matching


def printer_reasons(printer: PrinterFacts, *, now: datetime) -> dict[Interlock, str]:
    """Why no print at all is started on a printer at this moment."""
    found = _Found()
    note = found.note
    note(Interlock.queue, "the queue of this printer is paused" if printer.is_queue_paused else None)
    state = printer.state
    if not printer.is_live or not state.known:
        return {**found.reasons, Interlock.reachable: "the printer cannot be reached"}
    if state.developer_mode is False:
        note(Interlock.control, "the printer takes no commands: switch on Developer Mode at its screen")
    if state.state not in READY_STATES:
        note(Interlock.idle, f"the printer is {state.state}")
    note(Interlock.start_under_way, "another start is under way" if printer.has_open_start else None)
    note(Interlock.plate, "plate not cleared" if printer.plate_state is not PlateState.clear else None)
    if state.storage is None:
        note(Interlock.storage, "the printer does not say whether it has storage (SD card or USB stick)")
    elif state.storage is not Storage.ok:
        note(Interlock.storage, "the printer has no usable storage (SD card or USB stick)")
    if severe := severe_faults(state):
        note(Interlock.fault, f"the printer reports {severe[0].code}: {severe[0].message}")
    since = printer.in_state_since
    if state.state in READY_STATES and (since is None or now - since < printer.rest):
        note(Interlock.settled, "the printer has only just come to rest")
    return found.reasons


def severe_faults(state: PrinterState) -> list[Fault]:
    """What a printer complains of that somebody has to see to."""
    return [fault for fault in state.faults if fault.severity in SEVERE and fault.code.count("-") == HEALTH_GROUPS - 1]


def _not_due(waiting: WaitingFacts, now: datetime) -> str | None:
    start = waiting.scheduled_start
    return f"not before {start:%Y-%m-%d %H:%M} UTC" if start is not None and start > now else None


def _missed(waiting: WaitingFacts, printer: PrinterFacts, now: datetime, window: timedelta) -> str | None:
    """Why a print whose hour has passed is held on an auto-start printer: nothing starts by surprise at 3 a.m."""
    start = waiting.scheduled_start
    if start is None or waiting.is_chained or not printer.is_auto_start or now - start <= window:
        return None
    return f"its time {start:%Y-%m-%d %H:%M} UTC was missed: set a new one"


def model_of(serial: str | None, state: PrinterState, entered: str | None) -> str | None:
    """A printer's model: what its serial number says, else its reports, else what a person entered."""
    by_serial = model_of_serial(serial) if serial else None
    known: PrinterModel | None = by_serial or (model_of_name(entered) if entered else None)
    return by_serial.name if by_serial else state.model or (known.name if known else None)


def _other_model(plate: PlateFacts, printer: PrinterFacts) -> str | None:
    if plate.printer_model is None:
        return "its file does not say for which printer it was sliced"
    if printer.model is None:
        return "the printer's model is not known"
    if plate.printer_model != printer.model:
        return f"sliced for a {plate.printer_model}, this printer is a {printer.model}"
    return None


def _other_nozzle(plate: PlateFacts, printer: PrinterFacts) -> str | None:
    mounted = {
        Decimal(str(nozzle.diameter_mm)).quantize(Decimal("0.01"))
        for nozzle in printer.state.nozzles
        if nozzle.diameter_mm
    } or ({printer.nozzle_diameter_mm} if printer.nozzle_diameter_mm is not None else set())
    wanted = {diameter.quantize(Decimal("0.01")) for diameter in plate.nozzle_diameters_mm}
    if not mounted and not printer.state.known:
        return None  # it is not heard at all: that is told instead, and holds back as well
    if not wanted or not mounted:
        return "the nozzle of the file or of the printer is not known"
    if wanted <= mounted:
        return None
    names = ", ".join(f"{diameter.normalize():f}" for diameter in sorted(wanted))
    has = ", ".join(f"{diameter.normalize():f}" for diameter in sorted(mounted))
    return f"sliced for a {names} mm nozzle, the printer has {has} mm"


def _too_hot(plate: PlateFacts, printer: PrinterFacts) -> str | None:
    model = model_of_name(printer.model) if printer.model else None
    if model is None:
        return None
    for what, wanted, most in (
        ("nozzle", plate.nozzle_temp, model.max_nozzle_temp),
        ("bed", plate.bed_temp, model.max_bed_temp),
    ):
        if wanted is not None and wanted > most:
            return f"the file heats the {what} to {wanted} °C, a {model.name} reaches {most} °C"
    return None


def _other_profile(waiting: WaitingFacts, plate: PlateFacts) -> str | None:
    """What a person expects and what the file does may differ: they are told, and choose."""
    differences = [
        f"the file heats the {what} to {in_file} °C, {expected} °C was expected"
        for what, in_file, expected in (
            ("nozzle", plate.nozzle_temp, waiting.nozzle_temp),
            ("bed", plate.bed_temp, waiting.bed_temp),
        )
        if in_file is not None and expected is not None and in_file != expected
    ]
    types = {each.material_type for each in plate.filaments if each.material_type}
    expected_type = waiting.material_type
    if expected_type and types and not any(same_type(expected_type, each) for each in types):
        differences.append(f"the file was sliced for {', '.join(sorted(types))}, {expected_type} was expected")
    return "; ".join(differences) or None


def needs_of(waiting: WaitingFacts) -> tuple[FilamentNeed, ...]:
    """What its plate needs; see `farm.filament.needs_of`."""
    return filament_needs(
        waiting.plate,
        material_type=waiting.material_type,
        material_color=waiting.material_color,
        grams=waiting.grams,
    )


def _match(waiting: WaitingFacts, printer: PrinterFacts) -> Matching:
    needs = needs_of(waiting)
    chosen = {needs[0].filament_id: waiting.place} if len(needs) == 1 and waiting.place is not None else {}
    matching = match(needs, printer.spools, chosen=chosen)
    return Matching(matching.places, (*matching.reasons, *_other_color(waiting, printer)))


def _other_color(waiting: WaitingFacts, printer: PrinterFacts) -> list[str]:
    """The slot is chosen, and so is the colour: since then another spool may have come into that slot."""
    spool = next((each for each in printer.spools if each.place == waiting.place), None)
    if spool is None or spool.color is None or waiting.material_color is None:
        return []
    distance = color_distance(waiting.material_color, spool.color)
    if distance is None or distance <= COLOR_LIMIT:
        return []
    return [f"{place_name(spool)} has {color_name(spool.color)}, {color_name(waiting.material_color)} was asked for"]


def _seen_otherwise(matching: Matching, printer: PrinterFacts) -> list[str]:
    """The ledger against what the printer itself sees in those places, where it says anything."""
    ours = {(spool.ams_id, spool.tray_id): spool for spool in printer.spools}
    differences = []
    for spool in printer.state.spools:
        place = (spool.ams_id, spool.tray_id)
        if place not in matching.places.values() or place not in ours:
            continue
        name = place_name(ours[place])
        if not spool.loaded:
            differences.append(f"the printer sees no spool in {name}")
        elif spool.material_type and not same_type(spool.material_type, ours[place].material_type):
            differences.append(f"the printer sees {spool.material_type} in {name}, not {ours[place].material_type}")
    return differences
