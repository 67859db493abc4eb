"""An order's prints over a farm: `farm.spread`, and the queue it goes by, `farm.timeline`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bambu_report import UNKNOWN
from farm.filament import LoadedSpool
from farm.interlocks import PrinterFacts, WaitingFacts
from farm.plate_facts import PlateFacts, PlateFilament
from farm.spread import Lane, Spread, Terms, WantedPrint, spread
from farm.staffed import WEEKDAYS, StaffedHours
from farm.timeline import Gap, QueuedPrint, run_through
from models import PlateState

# A Saturday.
NOW = datetime(2026, 11, 21, 9, tzinfo=UTC)
WORKDAYS = {day: [["08:00", "17:30"]] for day in WEEKDAYS[:5]}
QUARTER = timedelta(minutes=15)
BLACK, WHITE = "#000000", "#FFFFFF"


def hours(count: float) -> timedelta:
    return timedelta(hours=count)


def terms(week: Any = None, offset: timedelta = timedelta()) -> Terms:
    return Terms(NOW + offset, StaffedHours(week, "UTC"), QUARTER)


def spool(tray: int, color: str = BLACK, grams: int = 1000, kind: str = "PLA") -> LoadedSpool:
    return LoadedSpool(tray, 0, tray, tray, kind, color, Decimal(grams))


def lane(
    printer_id: int,
    *spools: LoadedSpool,
    model: str = "P1S",
    nozzle: str = "0.4",
    gaps: Sequence[Gap] = ((NOW, None),),
    problems: tuple[str, ...] = (),
) -> Lane:
    facts = PrinterFacts(
        control_problem=None,
        is_live=True,
        state=UNKNOWN,
        plate_state=PlateState.clear,
        model=model,
        nozzle_diameter_mm=Decimal(nozzle),
        spools=spools or (spool(0),),
    )
    return Lane(printer_id, f"Printer {printer_id}", facts, tuple(gaps), problems)


def wanted(
    number: int, minutes: int = 60, grams: int = 10, color: str = BLACK, model: str = "P1S", nozzle: str = "0.4"
) -> WantedPrint:
    filament = PlateFilament(1, "PLA", color, Decimal(grams))
    plate = PlateFacts(1, (filament,), printer_model=model, nozzle_diameters_mm=(Decimal(nozzle),))
    return WantedPrint(number, minutes, WaitingFacts(plate=plate))


def where(found: Spread) -> dict[int, int]:
    return {each.print_id: each.printer_id for each in found.placed}


def why(found: Spread, printer_id: int) -> tuple[str, ...]:
    return next(each.reasons for each in found.refused if each.printer_id == printer_id)


def test_prints_go_side_by_side_so_that_the_order_is_done_first() -> None:
    found = spread([wanted(0), wanted(1), wanted(2)], [lane(1), lane(2)], terms())
    assert found.done_at == NOW + hours(2.25)
    assert sorted(where(found).values()) == [1, 1, 2]
    assert [(each.starts_at - NOW) for each in found.placed] == [hours(0), hours(0), hours(1.25)]


def test_long_prints_are_balanced() -> None:
    found = spread([wanted(0, 60), wanted(1, 60), wanted(2, 120)], [lane(1), lane(2)], terms())
    assert found.done_at == NOW + hours(2.25)


def test_a_print_says_from_where_it_is_fed() -> None:
    (placed,) = spread([wanted(0)], [lane(1, spool(0, WHITE), spool(3))], terms()).placed
    assert placed.places == {1: (0, 3)}


def test_the_printer_that_is_free_first_is_taken_and_of_equals_the_lower_id() -> None:
    busy = lane(1, gaps=[(NOW + hours(3), None)])
    assert where(spread([wanted(0)], [busy, lane(3), lane(2)], terms())) == {0: 2}


def test_another_model_nozzle_or_filament_is_refused_with_its_reason() -> None:
    farm = [
        lane(1, model="A1"),
        lane(2, nozzle="0.6"),
        lane(3, spool(0, WHITE)),
        lane(4, problems=("the queue of this printer is paused",)),
        lane(5, gaps=()),
        lane(6, gaps=[(NOW + hours(1), None)]),
        lane(7),
    ]
    found = spread([wanted(0)], farm, terms())
    assert where(found) == {0: 7}
    assert {number: why(found, number) for number in range(1, 7)} == {
        1: ("sliced for a P1S, this printer is a A1",),
        2: ("sliced for a 0.4 mm nozzle, the printer has 0.6 mm",),
        3: ("needs PLA black 10 g, slot 0 has white",),
        4: ("the queue of this printer is paused",),
        5: ("nobody is ever there to clear its plate",),
        6: ("it would be done later there: free from 2026-11-21 10:00 UTC",),
    }


def test_what_fits_nowhere_is_named_with_the_reasons_of_every_printer() -> None:
    found = spread([wanted(0), wanted(1, model="X1 Carbon")], [lane(1), lane(2, model="A1")], terms())
    assert (found.unplaced, found.done_at) == ((1,), None)
    assert why(found, 1) == ("sliced for a X1 Carbon, this printer is a P1S",)
    assert why(found, 2) == ("sliced for a X1 Carbon, this printer is a A1",)


def test_grams_are_counted_off_with_each_print() -> None:
    found = spread(
        [wanted(n, grams=40) for n in range(4)], [lane(1, spool(0, grams=100)), lane(2, spool(0, grams=90))], terms()
    )
    assert sorted(where(found).values()) == [1, 1, 2, 2]
    found = spread(
        [wanted(n, grams=40) for n in range(5)], [lane(1, spool(0, grams=100)), lane(2, spool(0, grams=90))], terms()
    )
    assert len(found.unplaced) == 1
    assert why(found, 1) == ("needs PLA black 40 g, slot 0 has 20 g",)


def test_a_second_print_waits_until_somebody_was_there_to_clear_the_plate() -> None:
    found = spread([wanted(0), wanted(1)], [lane(1)], terms(WORKDAYS))
    # The first may start on a Saturday; the next only after Monday morning's first quarter of an hour.
    assert [each.starts_at for each in found.placed] == [NOW, datetime(2026, 11, 23, 8, 15, tzinfo=UTC)]


def test_long_prints_are_left_for_the_night() -> None:
    week = {day: [["08:00", "17:30"]] for day in WEEKDAYS}
    found = spread([wanted(0, 600), wanted(1, 120), wanted(2, 120)], [lane(1)], terms(week))
    assert [each.print_id for each in found.placed] == [1, 2, 0]
    assert found.done_at == NOW + hours(2.25 + 2.25 + 10)


def test_a_gap_in_a_queue_is_used_when_the_clearing_fits_too() -> None:
    gaps = [(NOW, NOW + hours(2)), (NOW + hours(20), None)]
    assert spread([wanted(0, 105)], [lane(1, gaps=gaps)], terms()).placed[0].starts_at == NOW
    assert spread([wanted(0, 106)], [lane(1, gaps=gaps)], terms()).placed[0].starts_at == NOW + hours(20)
    both = spread([wanted(0, 30), wanted(1, 30)], [lane(1, gaps=gaps)], terms()).placed
    assert [each.starts_at - NOW for each in both] == [hours(0), hours(0.75)]


def test_nothing_starts_before_the_offset() -> None:
    found = spread([wanted(0), wanted(1)], [lane(1)], terms(offset=hours(5)))
    assert [each.starts_at - NOW for each in found.placed] == [hours(5), hours(6.25)]


def test_no_prints_are_an_empty_plan() -> None:
    assert spread([], [lane(1)], terms()).placed == ()


# The queue


def test_a_queue_runs_by_priority_of_what_is_due() -> None:
    waiting = [
        QueuedPrint(1, 60),
        QueuedPrint(2, 60, priority=5, not_before=NOW + hours(1)),
        QueuedPrint(3, 60, priority=1),
        QueuedPrint(4, 60, not_before=NOW + hours(10)),
    ]
    runs, gaps = run_through(waiting, free_at=NOW, staffed=StaffedHours(None, "UTC"), clearing=QUARTER)
    assert [(run.print_id, run.starts_at - NOW) for run in runs] == [
        (3, hours(0)),
        (2, hours(1.25)),
        (1, hours(2.5)),
        (4, hours(10)),
    ]
    assert gaps == [(NOW + hours(3.75), NOW + hours(10)), (NOW + hours(11.25), None)]


def test_where_nobody_ever_is_only_the_first_print_can_be_foreseen() -> None:
    runs, gaps = run_through(
        [QueuedPrint(1, 60), QueuedPrint(2, 60)], free_at=NOW, staffed=StaffedHours({}, "UTC"), clearing=QUARTER
    )
    assert ([run.print_id for run in runs], gaps) == ([1], [])


# Whatever comes in

SPOOLS = st.lists(
    st.builds(spool, st.integers(0, 3), st.sampled_from([BLACK, WHITE]), st.integers(0, 120)),
    min_size=1,
    max_size=3,
    unique_by=lambda each: each.tray_id,
)
GAPS = st.sampled_from(
    [
        ((NOW, None),),
        ((NOW + hours(3), None),),
        ((NOW, NOW + hours(2)), (NOW + hours(5), None)),
        ((NOW + hours(1), NOW + hours(8)),),
    ]
)


@st.composite
def farms(draw: st.DrawFn) -> list[Lane]:
    return [
        lane(
            number,
            *draw(SPOOLS),
            model=draw(st.sampled_from(["P1S", "A1"])),
            nozzle=draw(st.sampled_from(["0.4", "0.6"])),
            gaps=draw(GAPS),
        )
        for number in range(1, draw(st.integers(1, 4)) + 1)
    ]


PRINTS = st.lists(
    st.tuples(
        st.integers(1, 700),
        st.integers(1, 60),
        st.sampled_from([BLACK, WHITE]),
        st.sampled_from(["P1S", "A1"]),
        st.sampled_from(["0.4", "0.6"]),
    ),
    max_size=6,
).map(lambda rows: [wanted(number, *row) for number, row in enumerate(rows)])
WEEKS = st.sampled_from(
    [None, WORKDAYS, {day: [["08:00", "17:30"]] for day in WEEKDAYS}, {"sun": [["22:00", "02:00"]]}]
)


@settings(max_examples=150, deadline=None)
@given(prints=PRINTS, farm=farms(), week=WEEKS)
def test_every_plan_keeps_to_the_rules(prints: list[WantedPrint], farm: list[Lane], week: Any) -> None:
    held = terms(week)
    found = spread(prints, farm, held)
    assert found == spread(prints, farm[::-1], terms(week)), "the same farm gives the same plan"
    by_id, lanes = {each.id: each for each in prints}, {each.printer_id: each for each in farm}
    assert sorted([each.print_id for each in found.placed] + list(found.unplaced)) == sorted(by_id)
    for number, of in lanes.items():
        mine = [each for each in found.placed if each.printer_id == number]
        taken: dict[tuple[int, int], Decimal] = {}
        for each in mine:
            of_print = by_id[each.print_id]
            assert of_print.facts.plate is not None
            assert of_print.facts.plate.printer_model == of.facts.model
            assert of_print.facts.plate.nozzle_diameters_mm == (of.facts.nozzle_diameter_mm,)
            assert each.ends_at - each.starts_at == timedelta(minutes=of_print.minutes)
            assert any(
                begins <= each.starts_at
                and (until is None or (held.staffed.after_work(each.ends_at, QUARTER) or NOW) <= until)
                for begins, until in of.gaps
            )
            taken[each.places[1]] = taken.get(each.places[1], Decimal(0)) + of_print.facts.plate.filaments[0].grams  # type: ignore[operator]
            assert (
                next(s.color for s in of.facts.spools if s.place == each.places[1])
                == of_print.facts.plate.filaments[0].color
            )
        for before, after in zip(mine, mine[1:], strict=False):
            cleared = held.staffed.after_work(before.ends_at, QUARTER)
            assert cleared is not None and after.starts_at >= cleared
        for each_spool in of.facts.spools:
            assert taken.get(each_spool.place, Decimal(0)) <= (each_spool.free_grams or 0)
    # Never worse than one printer alone, whichever it is.
    for of in farm:
        alone = spread(prints, [of], held)
        if not alone.unplaced:
            assert not found.unplaced
            assert found.done_at is None or found.done_at <= (alone.done_at or NOW)
    told = {each.printer_id: each.reasons for each in found.refused}
    assert all(told[number] for number in lanes if number in told)
    assert set(lanes) - {each.printer_id for each in found.placed} <= set(told)


def test_500_prints_over_200_printers_are_planned_in_two_seconds() -> None:
    farm = [
        lane(number, spool(0, BLACK, 900), spool(1, WHITE, 900), model=("P1S", "A1")[number % 2])
        for number in range(1, 201)
    ]
    prints = [wanted(n, 20 + n % 37 * 10, 5 + n % 50, (BLACK, WHITE)[n % 2], ("P1S", "A1")[n % 2]) for n in range(500)]
    begun = time.process_time()
    found = spread(prints, farm, terms(WORKDAYS))
    assert not found.unplaced
    assert time.process_time() - begun < 2
