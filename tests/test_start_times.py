"""When a print starts, whatever the clocks do: never before its time, never twice, and not by surprise after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bambu_report import PrinterActivity
from farm import tracker
from farm.interlocks import Interlock, PrinterFacts, WaitingFacts, judge
from models import IntentState, PlateState, Printer, db
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import PASSWORD, Farm
from tests.test_starter import IDLE, Bench

BERLIN, LORD_HOWE, APIA = "Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia"
WINDOW = timedelta(minutes=60)
STEP = timedelta(minutes=10)


class TimedBench(Bench):
    """The bench of the starter, with a printer that is heard whenever the clock moves."""

    def at(self, moment: datetime) -> int:
        """The clock shows this; the queue is looked at. Returns how many starts have left by then."""
        self.clock.now = moment
        self.log_in()
        self.link.in_state_since = moment - timedelta(minutes=1)
        self.link.full_heard_at = moment
        with self.farm.database():
            self.hear()
            db.session.commit()
        self.start()
        return len(self.link.published)

    def log_in(self) -> None:
        """The clock has left the token's life behind."""
        login = {"email": "seller@example.com", "password": PASSWORD}
        self.farm.token = self.farm.client.post("/api/auth/login", json=login).json["token"]

    def wants(self, moment: str) -> datetime:
        """A person sets the print's time; the moment it is in UTC."""
        answer = self.farm.put(f"/api/bambu/scheduled-prints/{self.print_id}", {"scheduled_start": moment})
        assert answer.status_code == 200, answer.text
        return datetime.fromisoformat(answer.json["scheduled_start"])

    def hears(self, activity: PrinterActivity) -> None:
        """The printer tells of the start that left last."""
        state = replace(IDLE, state=activity, submission_id=str(self.link.published[-1].submission_id))
        with self.farm.database():
            printer = db.session.get_one(Printer, self.printer_id)
            limits = self.farm.app.extensions["parts"].limits
            since = self.clock() - timedelta(seconds=30)
            tracker.apply(printer, state, in_state_since=since, now=self.clock(), limits=limits)
            db.session.commit()

    def prints_it(self) -> None:
        self.hears(PrinterActivity.printing)
        self.hears(PrinterActivity.finished)
        self.plate(PlateState.clear)


@pytest.fixture
def bench(farm: Farm, clock: Clock) -> Iterator[TimedBench]:
    clock.now = datetime(2026, 1, 1, tzinfo=UTC)
    yield TimedBench(farm, clock)


def wall(zone: str, *parts: int, fold: int = 0) -> datetime:
    """A time as the clock on the wall shows it; one that is skipped too."""
    return datetime(*parts, tzinfo=ZoneInfo(zone), fold=fold)  # type: ignore[arg-type, misc]


# Berlin skips 02:00-03:00 on 29 March 2026 and has it twice on 25 October; Lord Howe changes by half an hour; Samoa
# left out the whole of 30 December 2011.
WALL_TIMES = {
    "before the gap": wall(BERLIN, 2026, 3, 29, 1, 59),
    "in the gap, as before it": wall(BERLIN, 2026, 3, 29, 2, 30),
    "in the gap, as after it": wall(BERLIN, 2026, 3, 29, 2, 30, fold=1),
    "after the gap": wall(BERLIN, 2026, 3, 29, 3, 0),
    "the first time round": wall(BERLIN, 2026, 10, 25, 2, 30),
    "the second time round": wall(BERLIN, 2026, 10, 25, 2, 30, fold=1),
    "half an hour's gap": wall(LORD_HOWE, 2026, 10, 4, 2, 15),
    "half an hour twice, first": wall(LORD_HOWE, 2026, 4, 5, 1, 45),
    "half an hour twice, second": wall(LORD_HOWE, 2026, 4, 5, 1, 45, fold=1),
    "a day that never was": wall(APIA, 2011, 12, 30, 12, 0),
}


@pytest.mark.parametrize("case", WALL_TIMES)
def test_around_a_change_of_clocks_a_print_starts_once_and_not_before_its_moment(bench: TimedBench, case: str) -> None:
    meant = WALL_TIMES[case].astimezone(UTC)
    due = bench.wants(WALL_TIMES[case].isoformat())
    assert due == meant
    moment, left = due - timedelta(hours=2), []
    while moment <= due + timedelta(hours=2):
        if bench.at(moment) > len(left):
            left.append(moment)
            bench.prints_it()
        moment += STEP
    assert left == [due], "once, at the first look that is not before it"


@pytest.mark.parametrize("seconds_before", [1, 59, 3600])
def test_not_a_second_early_however_the_clock_jumps(bench: TimedBench, seconds_before: int) -> None:
    due = bench.wants("2026-01-02T12:00:00+00:00")
    early = due - timedelta(seconds=seconds_before)
    for moment in (early, early - timedelta(days=1), early, early - timedelta(hours=5), early):
        assert bench.at(moment) == 0
        assert "not before 2026-01-02 12:00 UTC" in (bench.reason or "")
    assert bench.at(due) == 1


def test_a_clock_that_is_set_back_over_a_start_starts_nothing_again(bench: TimedBench) -> None:
    due = bench.wants("2026-01-02T12:00:00+00:00")
    assert bench.at(due + timedelta(minutes=1)) == 1
    for moment in (due - timedelta(hours=2), due, due + timedelta(minutes=1), due - timedelta(minutes=1), due):
        assert bench.at(moment) == 1
    bench.prints_it()
    for moment in (due - timedelta(hours=2), due, due + timedelta(minutes=30)):
        assert bench.at(moment) == 1
    assert bench.intents() == [IntentState.confirmed]


def test_a_clock_that_jumps_while_the_order_is_armed_sends_nothing(bench: TimedBench) -> None:
    """What was heard just now is a minute old by the clock that counts."""

    def hear_then_jump() -> None:
        bench.link.full_heard_at = bench.clock()
        bench.clock.forward(seconds=61)

    bench.link.ask_full_report = hear_then_jump  # type: ignore[method-assign]
    assert bench.at(bench.clock()) == 0
    assert IntentState.published not in bench.intents()


@pytest.mark.parametrize("minutes_late", [61, 600, 60 * 24 * 40])
def test_an_auto_start_printer_that_woke_too_late_waits_for_a_new_time(bench: TimedBench, minutes_late: int) -> None:
    bench.farm.put(f"/api/printers/{bench.printer_id}", {"auto_start": True})
    due = bench.wants("2026-01-02T12:00:00+00:00")
    late = due + timedelta(minutes=minutes_late)
    for moment in (late, late + timedelta(days=1)):
        assert bench.at(moment) == 0
        assert bench.reason == "its time 2026-01-02 12:00 UTC was missed: set a new one"
    again = bench.clock() + timedelta(minutes=5)
    assert bench.wants(again.isoformat()) == again
    assert bench.at(again - timedelta(seconds=1)) == 0
    assert bench.at(again) == 1


@pytest.mark.parametrize("minutes_late", [0, 59, 60])
def test_within_the_window_it_starts_late_rather_than_never(bench: TimedBench, minutes_late: int) -> None:
    bench.farm.put(f"/api/printers/{bench.printer_id}", {"auto_start": True})
    due = bench.wants("2026-01-02T12:00:00+00:00")
    assert bench.at(due + timedelta(minutes=minutes_late)) == 1


def test_a_person_s_own_click_is_never_too_late(bench: TimedBench) -> None:
    due = bench.wants("2026-01-02T12:00:00+00:00")
    assert bench.at(due + timedelta(days=40)) == 1


@given(
    start=st.none() | st.integers(-(10**7), 10**7),
    now=st.integers(-(10**7), 10**7),
    is_auto=st.booleans(),
    is_chained=st.booleans(),
)
@example(start=0, now=0, is_auto=True, is_chained=False)
@example(start=0, now=3600, is_auto=True, is_chained=False)
@example(start=0, now=3601, is_auto=True, is_chained=False)
@example(start=1, now=0, is_auto=False, is_chained=True)
def test_the_two_locks_of_time(start: int | None, now: int, is_auto: bool, is_chained: bool) -> None:
    """`due` holds before its moment and never after; `missed` only for a time that a person set on such a printer."""
    moment = BASE_TIME + timedelta(seconds=now)
    wanted = None if start is None else BASE_TIME + timedelta(seconds=start)
    printer = PrinterFacts(None, True, IDLE, PlateState.clear, is_auto_start=is_auto)
    waiting = WaitingFacts(scheduled_start=wanted, is_chained=is_chained)
    reasons = judge(waiting, printer, now=moment, missed_window=WINDOW).reasons
    assert (Interlock.due in reasons) == (wanted is not None and moment < wanted)
    is_late = wanted is not None and moment - wanted > WINDOW
    assert (Interlock.missed in reasons) == (is_late and is_auto and not is_chained)
