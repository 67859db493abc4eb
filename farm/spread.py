"""The prints of an order over the printers of a farm, so that the order is done first. Pure.

A printer takes a print that its model, nozzle and loaded filament fit, in a gap of its queue. Finding the very best
spread is a hard problem (machines with different beginnings and fits); this takes the best of several greedy ones, and
never a worse one than the single best printer would give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from farm.filament import LoadedSpool, Place, may_feed
from farm.interlocks import Interlock, PrinterFacts, WaitingFacts, judge, needs_of
from farm.staffed import MINUTE, StaffedHours, later
from farm.timeline import Gap

# What makes a print fit a printer whenever it is started; the other interlocks change by the hour.
LASTING = (Interlock.model, Interlock.nozzle, Interlock.temperatures, Interlock.profile, Interlock.filament)
NOTHING = Decimal(0)
NEVER = datetime.max.replace(tzinfo=UTC)
# How many different prints are looked at to say why a printer was left out, and how many reasons are named.
KINDS_ASKED = 5
REASONS_NAMED = 5


@dataclass(frozen=True, slots=True)
class WantedPrint:
    """A print to be placed. `id` is whatever the caller calls it by."""

    id: int
    minutes: int
    facts: WaitingFacts


@dataclass(frozen=True, slots=True)
class Lane:
    """A printer with what is queued there already taken off: its `gaps` in order, and in `facts` the grams that are
    left. `problems`: why it takes nothing at all."""

    printer_id: int
    name: str
    facts: PrinterFacts
    gaps: tuple[Gap, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """Where and when a print goes. `places`: filament_id -> (ams_id, tray_id)."""

    print_id: int
    printer_id: int
    places: Mapping[int, Place]
    starts_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class Refused:
    """A printer that got none of the prints, and why."""

    printer_id: int
    name: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """`placed` in the order in which they start. `unplaced`: the ids of those that fit nowhere; with any, `refused`
    says of every printer why it does not take the first of them. `done_at` is None unless all are placed."""

    placed: tuple[Placed, ...]
    unplaced: tuple[int, ...]
    refused: tuple[Refused, ...]

    @property
    def done_at(self) -> datetime | None:
        return None if self.unplaced else max((each.ends_at for each in self.placed), default=None)


@dataclass(frozen=True, slots=True)
class Fit:
    """What a print would take from where; `reasons` why it cannot be printed there."""

    places: Mapping[int, Place]
    grams: Mapping[Place, Decimal]
    reasons: tuple[str, ...]


IMPOSSIBLE = Fit({}, {}, ("another model, or other filament",))


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for the whole plan. `clearing`: staffed time that it takes to clear a plate."""

    earliest: datetime
    staffed: StaffedHours
    clearing: timedelta


@dataclass(slots=True)
class _State:
    """A lane while it is being filled."""

    lane: Lane
    facts: PrinterFacts
    gaps: list[Gap]
    placed: list[Placed] = field(default_factory=list)
    fits: dict[int, Fit] = field(default_factory=dict)
    last_kind: int | None = None
    changes: int = 0

    @classmethod
    def of(cls, lane: Lane) -> _State:
        return cls(lane, lane.facts, list(lane.gaps))


def fit(waiting: WaitingFacts, printer: PrinterFacts) -> Fit:
    """Whether a printer could ever start a print as it is loaded now; what is no matter of the moment."""
    asked = replace(waiting, file_problem=None)
    verdict = judge(asked, replace(printer, control_problem=None), now=NEVER, missed_window=timedelta.max)
    reasons = tuple(verdict.reasons[lock] for lock in LASTING if lock in verdict.reasons)
    if waiting.file_problem is not None:
        reasons = (waiting.file_problem, *reasons)
    grams: dict[Place, Decimal] = {}
    for need in needs_of(waiting):
        place = verdict.matching.places.get(need.filament_id)
        if place is not None and need.grams is not None:
            grams[place] = grams.get(place, NOTHING) + need.grams
    return Fit(verdict.matching.places, grams, reasons)


def take_grams(spools: Sequence[LoadedSpool], grams: Mapping[Place, Decimal]) -> tuple[LoadedSpool, ...]:
    """The spools after a print."""
    return tuple(
        replace(spool, free_grams=spool.free_grams - grams[spool.place])
        if spool.place in grams and spool.free_grams is not None
        else spool
        for spool in spools
    )


def spread(prints: Sequence[WantedPrint], lanes: Sequence[Lane], terms: Terms) -> Spread:
    """Each print a printer, its places and its time; the whole done as early as can be found. The same input gives the
    same answer."""
    kinds: dict[WaitingFacts, int] = {}
    kind_of = {each.id: kinds.setdefault(each.facts, len(kinds)) for each in prints}
    open_lanes = sorted((lane for lane in lanes if not lane.problems and lane.gaps), key=lambda lane: lane.printer_id)
    attempt = _Attempt(kind_of, terms)
    best = attempt.best(prints, open_lanes)
    for lane in open_lanes:
        if _could_beat(lane, prints, best, terms):
            best = min(best, attempt.best(prints, [lane]), key=lambda found: found.value)
    placed = sorted(best.placed, key=lambda each: (each.starts_at, each.printer_id))
    done = {each.print_id for each in placed}
    unplaced = tuple(each.id for each in prints if each.id not in done)
    return Spread(tuple(placed), unplaced, _refused(prints, kind_of, lanes, best, unplaced))


@dataclass(frozen=True, slots=True)
class _Found:
    states: Sequence[_State]
    unplaced: int

    @property
    def placed(self) -> list[Placed]:
        return [each for state in self.states for each in state.placed]

    @property
    def value(self) -> tuple[int, datetime, float, int, tuple[int, ...]]:
        """Less is better: all placed, done first, earlier starts, fewer changes of filament, lower printers."""
        placed = self.placed
        done_at = max((each.ends_at for each in placed), default=NEVER)
        starts = sum(each.starts_at.timestamp() for each in placed)
        changes = sum(state.changes for state in self.states)
        return self.unplaced, done_at, starts, changes, tuple(sorted(each.printer_id for each in placed))


class _Attempt:
    def __init__(self, kind_of: Mapping[int, int], terms: Terms) -> None:
        self._kind_of, self._terms = kind_of, terms
        self._as_loaded: dict[tuple[int, int], Fit] = {}

    def best(self, prints: Sequence[WantedPrint], lanes: Sequence[Lane]) -> _Found:
        """The best of several orders in which the prints are handed out, each printer's own then put in order."""
        orders = _orders(prints)
        found = min((self._hand_out(order, lanes) for order in orders), key=lambda each: each.value)
        if len(lanes) == 1:
            return found
        by_id = {each.id: each for each in prints}
        states = [self._put_in_order(state, by_id) for state in found.states]
        return min(found, _Found(states, found.unplaced), key=lambda each: each.value)

    def _hand_out(self, prints: Sequence[WantedPrint], lanes: Sequence[Lane]) -> _Found:
        """Each print to the printer that would end it first."""
        states = [_State.of(lane) for lane in lanes]
        fitting: dict[int, list[tuple[int, _State]]] = {}
        missing = 0
        for wanted in prints:
            kind = self._kind_of[wanted.id]
            if kind not in fitting:
                fitting[kind] = [(n, state) for n, state in enumerate(states) if self._fits_as_loaded(state, wanted)]
            options = []
            for number, state in fitting[kind]:
                found = self._first_gap(state, wanted.minutes)
                if found is not None:
                    is_change = state.last_kind is not None and state.last_kind != kind
                    options.append((found[1], found[0], is_change, number, found[2]))
            options.sort()
            for _, starts_at, _, number, gap in options:
                if not self._fit(states[number], wanted).reasons:
                    self._place(states[number], wanted, starts_at, gap)
                    break
            else:
                missing += 1
                # Filament only gets less while prints are handed out, and gaps fewer.
                fitting[kind] = []
        return _Found(states, missing)

    def _put_in_order(self, state: _State, by_id: Mapping[int, WantedPrint]) -> _State:
        prints = [by_id[each.print_id] for each in state.placed]
        if len({each.minutes for each in prints}) < 2:
            return state
        others = [self._hand_out(order, [state.lane]) for order in _orders(prints)]
        whole = [found.states[0] for found in others if not found.unplaced]
        return min((state, *whole), key=lambda each: _Found([each], 0).value)

    def _first_gap(self, state: _State, minutes: int) -> tuple[datetime, datetime, int] | None:
        """(start, end, number of the gap) of the first gap that a print and the clearing after it fit in."""
        for number, (begins, until) in enumerate(state.gaps):
            starts_at = max(begins, self._terms.earliest)
            ends_at = later(starts_at, minutes * MINUTE)
            if until is None:
                return starts_at, ends_at, number
            if ends_at <= until:
                cleared = self._terms.staffed.after_work(ends_at, self._terms.clearing)
                if cleared is not None and cleared <= until:
                    return starts_at, ends_at, number
        return None

    def _fits_as_loaded(self, state: _State, wanted: WantedPrint) -> bool:
        key = state.lane.printer_id, self._kind_of[wanted.id]
        if key not in self._as_loaded:
            facts = state.lane.facts
            is_possible = _may_fit(wanted.facts, facts)
            self._as_loaded[key] = fit(wanted.facts, facts) if is_possible else IMPOSSIBLE
        return not self._as_loaded[key].reasons

    def _fit(self, state: _State, wanted: WantedPrint) -> Fit:
        """As the printer is loaded after what was placed there; asked of printers that fit as loaded."""
        kind = self._kind_of[wanted.id]
        if not state.placed:
            return self._as_loaded[state.lane.printer_id, kind]
        if kind not in state.fits:
            state.fits[kind] = fit(wanted.facts, state.facts)
        return state.fits[kind]

    def _place(self, state: _State, wanted: WantedPrint, starts_at: datetime, gap: int) -> None:
        kind, found = self._kind_of[wanted.id], self._fit(state, wanted)
        ends_at = later(starts_at, wanted.minutes * MINUTE)
        cleared, until = self._terms.staffed.after_work(ends_at, self._terms.clearing), state.gaps[gap][1]
        # Nothing of the order starts before this print in the same gap: what is left of it lies behind.
        rest: list[Gap] = [] if cleared is None or (until is not None and cleared >= until) else [(cleared, until)]
        state.gaps[gap : gap + 1] = rest
        state.placed.append(Placed(wanted.id, state.lane.printer_id, found.places, starts_at, ends_at))
        if found.grams:
            state.facts = replace(state.facts, spools=take_grams(state.facts.spools, found.grams))
            # What did not fit before does not fit now; what did must be asked again.
            state.fits = {each: known for each, known in state.fits.items() if known.reasons}
        state.changes += state.last_kind is not None and state.last_kind != kind
        state.last_kind = kind


def _orders(prints: Sequence[WantedPrint]) -> list[list[WantedPrint]]:
    """Longest first balances well, shortest first leaves the long ones for the night, most grams first packs spools."""
    keys: tuple[Callable[[WantedPrint], object], ...] = (
        lambda each: -each.minutes,
        lambda each: each.minutes,
        lambda each: -(each.facts.grams or NOTHING),
    )
    found = [list(prints)]
    for key in keys:
        order = sorted(prints, key=key)  # type: ignore[arg-type]  # ints and Decimals sort
        if order not in found:
            found.append(order)
    return found


def _could_beat(lane: Lane, prints: Sequence[WantedPrint], best: _Found, terms: Terms) -> bool:
    """Whether one printer alone might be done before the best that was found: by no more than its printing time.

    Hardly ever: a print goes elsewhere only to end earlier. But filling gaps and spools is packing, where with less to
    pack the rest may come to lie worse.
    """
    unplaced, done_at = best.value[:2]
    minutes = sum(each.minutes for each in prints)
    if unplaced:
        return _has_enough(lane, prints)
    return later(max(lane.gaps[0][0], terms.earliest), minutes * MINUTE) < done_at


def _may_fit(waiting: WaitingFacts, printer: PrinterFacts) -> bool:
    """A quick no, or maybe: most printers of a large farm are out by their model or what is loaded."""
    if waiting.plate is not None and waiting.plate.printer_model != printer.model:
        return False
    return all(may_feed(need, printer.spools) for need in needs_of(waiting))


def _has_enough(lane: Lane, prints: Sequence[WantedPrint]) -> bool:
    """Whether a printer's spools hold what all the prints need together; a quick no, and no promise."""
    if any(spool.free_grams is None for spool in lane.facts.spools):
        return True
    there = sum((spool.free_grams or NOTHING for spool in lane.facts.spools), NOTHING)
    return there >= sum((need.grams or NOTHING for each in prints for need in needs_of(each.facts)), NOTHING)


def _refused(
    prints: Sequence[WantedPrint],
    kind_of: Mapping[int, int],
    lanes: Sequence[Lane],
    best: _Found,
    unplaced: tuple[int, ...],
) -> tuple[Refused, ...]:
    states = {state.lane.printer_id: state for state in best.states}
    of_kind = {kind_of[each.id]: each for each in reversed(prints)}
    asked = [of_kind[kind] for kind in sorted(of_kind)][:KINDS_ASKED]
    if unplaced:
        asked = [next(each for each in prints if each.id == unplaced[0])]
    refused = []
    for lane in sorted(lanes, key=lambda each: each.printer_id):
        state = states.get(lane.printer_id) or _State.of(lane)
        if state.placed and not unplaced:
            continue
        reasons: dict[str, None] = dict.fromkeys(lane.problems)
        if not lane.gaps:
            reasons["nobody is ever there to clear its plate"] = None
        if not reasons:
            fits = [fit(each.facts, state.facts).reasons for each in asked]
            reasons = dict.fromkeys(reason for found in fits for reason in found)
            if not all(fits) and not unplaced:
                reasons = {f"it would be done later there: free from {lane.gaps[0][0]:%Y-%m-%d %H:%M} UTC": None}
            elif not reasons:
                reasons["its queue leaves no gap that is long enough"] = None
        refused.append(Refused(lane.printer_id, lane.name, tuple(reasons)[:REASONS_NAMED]))
    return tuple(refused)
