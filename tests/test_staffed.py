"""When somebody is there to clear a plate: `farm.staffed`, and the account's hours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.staffed import FAR, WEEKDAYS, BadHours, StaffedHours, later, read_hours
from tests.farm_builder import Farm

WORKDAYS = {day: [["08:00", "17:30"]] for day in WEEKDAYS[:5]}
USER = "/api/auth/user"


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


def minutes(count: int) -> timedelta:
    return timedelta(minutes=count)


def test_somebody_is_there_from_the_begin_and_not_at_the_end() -> None:
    hours = StaffedHours(WORKDAYS, "UTC")
    monday = at(2026, 11, 23)
    assert hours.next_staffed(monday) == at(2026, 11, 23, 8)
    assert hours.next_staffed(at(2026, 11, 23, 8)) == at(2026, 11, 23, 8)
    assert hours.next_staffed(at(2026, 11, 23, 17, 29, 59)) == at(2026, 11, 23, 17, 29, 59)
    assert hours.next_staffed(at(2026, 11, 23, 17, 30)) == at(2026, 11, 24, 8)
    assert hours.next_staffed(at(2026, 11, 27, 20)) == at(2026, 11, 30, 8)


def test_without_hours_somebody_is_always_there_and_with_empty_ones_never() -> None:
    moment = at(2026, 11, 21, 3)
    assert StaffedHours(None, "UTC").next_staffed(moment) == moment
    assert StaffedHours(None, "UTC").after_work(moment, minutes(15)) == moment + minutes(15)
    for none in ({}, {"mon": []}):
        assert StaffedHours(none, "UTC").next_staffed(moment) is None
        assert StaffedHours(none, "UTC").after_work(moment, minutes(0)) is None


def test_work_that_is_not_done_by_the_evening_goes_on_in_the_morning() -> None:
    hours = StaffedHours(WORKDAYS, "UTC")
    assert hours.after_work(at(2026, 11, 23, 17, 25), minutes(15)) == at(2026, 11, 24, 8, 10)
    assert hours.after_work(at(2026, 11, 23, 17, 15), minutes(15)) == at(2026, 11, 23, 17, 30)
    assert hours.after_work(at(2026, 11, 23, 22), minutes(0)) == at(2026, 11, 24, 8)


def test_the_hours_are_those_of_the_wall_clock() -> None:
    hours = StaffedHours(WORKDAYS, "Europe/Berlin")
    assert hours.next_staffed(at(2026, 3, 27, 17)) == at(2026, 3, 30, 6)
    assert hours.next_staffed(at(2026, 10, 23, 17)) == at(2026, 10, 26, 7)


def test_an_interval_over_midnight_reaches_into_the_next_day() -> None:
    hours = StaffedHours({"fri": [["22:00", "06:00"]]}, "UTC")
    assert hours.next_staffed(at(2026, 11, 28, 5, 59)) == at(2026, 11, 28, 5, 59)
    assert hours.next_staffed(at(2026, 11, 28, 6)) == at(2026, 12, 4, 22)
    # Two windows that touch are one: work goes through midnight.
    assert hours.after_work(at(2026, 11, 27, 23), minutes(300)) == at(2026, 11, 28, 4)
    assert read_hours({"sun": [["20:00", "00:00"]]})[6] == ((1200, 1440),)
    assert read_hours({"sun": [["20:00", "01:00"]]})[0] == ((0, 60),)


def test_a_whole_week_is_always() -> None:
    hours = StaffedHours({day: [["00:00", "24:00"]] for day in WEEKDAYS}, "America/New_York")
    begin = at(2026, 10, 20)
    assert hours.after_work(begin, timedelta(days=30)) == begin + timedelta(days=30)


# Where clocks change: Berlin skips 02:00-03:00 on 29 March 2026 (01:00 UTC) and has it twice on 25 October.


def test_an_hour_that_is_skipped_is_not_staffed() -> None:
    within = StaffedHours({"sun": [["02:15", "02:45"]]}, "Europe/Berlin")
    assert within.next_staffed(at(2026, 3, 28)) == at(2026, 4, 5, 0, 15)
    into = StaffedHours({"sun": [["01:00", "02:30"]]}, "Europe/Berlin")
    assert into.after_work(at(2026, 3, 28), minutes(60)) == at(2026, 3, 29, 1)
    out_of = StaffedHours({"sun": [["02:15", "05:00"]]}, "Europe/Berlin")
    assert out_of.next_staffed(at(2026, 3, 28)) == at(2026, 3, 29, 1)


def test_an_hour_that_comes_twice_is_staffed_twice() -> None:
    hours = StaffedHours({"sun": [["02:15", "02:45"]]}, "Europe/Berlin")
    assert hours.next_staffed(at(2026, 10, 24)) == at(2026, 10, 25, 0, 15)
    assert hours.after_work(at(2026, 10, 24), minutes(90)) == at(2026, 10, 25, 1, 45)
    assert hours.next_staffed(at(2026, 10, 25, 1, 45)) == at(2026, 11, 1, 1, 15)


def test_intervals_that_touch_within_such_an_hour_count_once() -> None:
    hours = StaffedHours({"sun": [["01:00", "02:30"], ["02:30", "04:00"]]}, "Europe/Berlin")
    # 23:00 to 03:00 UTC: four hours, and not one minute more.
    assert hours.after_work(at(2026, 10, 24), minutes(240)) == at(2026, 10, 25, 3)
    assert hours.after_work(at(2026, 10, 24), minutes(241)) == at(2026, 11, 1, 0, 1)


def test_a_midnight_that_is_skipped_is_the_moment_of_the_change() -> None:
    # In Beirut the clocks went from 00:00 to 01:00 on 30 March 2025, which was 29 March 22:00 UTC.
    hours = StaffedHours({"sat": [["20:00", "24:00"]], "sun": [["00:00", "02:00"]]}, "Asia/Beirut")
    assert hours.after_work(at(2025, 3, 29, 17), minutes(300)) == at(2025, 3, 29, 23)
    assert hours.next_staffed(at(2025, 3, 29, 23)) == at(2025, 4, 5, 17)


@given(
    moment=st.integers(0, 3_000_000).map(lambda count: at(2024, 1, 1) + minutes(count)),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia"]),
    work=st.integers(0, 3000),
)
def test_work_is_done_after_at_least_its_length_and_in_order(moment: datetime, zone: str, work: int) -> None:
    hours = StaffedHours({"mon": [["08:00", "12:00"], ["13:00", "17:00"]], "sat": [["22:00", "03:00"]]}, zone)
    begun = hours.next_staffed(moment)
    assert begun is not None and begun >= moment
    assert hours.next_staffed(begun) == begun
    done = hours.after_work(moment, minutes(work))
    assert done is not None and done >= begun + minutes(work)
    more = hours.after_work(moment, minutes(work + 1))
    assert more is not None and more > done
    # The same, asked afresh: what is remembered changes nothing.
    fresh = StaffedHours({"mon": [["08:00", "12:00"], ["13:00", "17:00"]], "sat": [["22:00", "03:00"]]}, zone)
    assert fresh.after_work(moment, minutes(work)) == done


def test_estimates_end_where_the_calendar_nearly_does() -> None:
    assert later(at(8999, 12, 31), timedelta(days=10**6)) == FAR
    hours = StaffedHours(WORKDAYS, "Europe/Berlin")
    assert hours.after_work(FAR, minutes(15)) == FAR
    done = hours.after_work(at(2026, 11, 21), timedelta(days=4000))
    assert done is not None and done > at(2037, 1, 1)
    assert hours.next_staffed(at(2026, 11, 21)) == at(2026, 11, 23, 7)


# The account's hours


def test_an_account_begins_in_utc_with_somebody_always_there(farm: Farm) -> None:
    assert {name: farm.user[name] for name in ("timezone", "staffed_hours")} == {
        "timezone": "UTC",
        "staffed_hours": None,
    }


def test_a_person_sets_zone_hours_currency_and_name(farm: Farm) -> None:
    wanted = {"timezone": "Europe/Berlin", "staffed_hours": WORKDAYS, "currency": "EUR", "username": "Ada"}
    answer = farm.put(USER, wanted)
    assert answer.status_code == 200
    week = {day: WORKDAYS.get(day, []) for day in WEEKDAYS}
    assert (wanted | {"staffed_hours": week}).items() <= answer.json.items()
    assert farm.get(USER).json == answer.json
    changed = farm.put(USER, {"staffed_hours": None}).json
    assert (changed["staffed_hours"], changed["timezone"]) == (None, "Europe/Berlin")


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"timezone": "Mars/Olympus"}, ["timezone"]),
        ({"timezone": "../../etc/passwd"}, ["timezone"]),
        ({"timezone": None}, ["timezone"]),
        ({"currency": "eur"}, ["currency"]),
        ({"email": "x@example.com"}, ["email"]),
        ({"staffed_hours": {"monday": []}}, ["staffed_hours.monday"]),
        ({"staffed_hours": {"mon": [["8:00", "17:00"]]}}, ["staffed_hours.mon.0.0"]),
        ({"staffed_hours": {"mon": [["08:00"]]}}, ["staffed_hours.mon.0"]),
        ({"staffed_hours": {"mon": [["24:00", "01:00"]]}}, ["staffed_hours.mon"]),
        ({"staffed_hours": {"mon": [["08:00", "08:00"]]}}, ["staffed_hours.mon"]),
        ({"staffed_hours": {"mon": [["09:00", "10:00"], ["08:00", "09:00"]]}}, ["staffed_hours.mon"]),
        ({"staffed_hours": {"mon": [["08:00", "12:00"], ["11:59", "13:00"]]}}, ["staffed_hours.mon"]),
        ({"staffed_hours": {"sun": [["22:00", "06:00"]], "mon": [["05:00", "07:00"]]}}, ["staffed_hours.mon"]),
        ({"staffed_hours": {"mon": [["00:00", "00:01"]] * 25}}, ["staffed_hours.mon"]),
        (
            {"timezone": "x", "currency": "x", "staffed_hours": {"mon": [["1", "2"]], "tue": [["08:00", "08:00"]]}},
            ["currency", "staffed_hours.mon.0.0", "staffed_hours.mon.0.1", "staffed_hours.tue", "timezone"],
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_every_fault(farm: Farm, body: dict[str, Any], names: list[str]) -> None:
    before = farm.get(USER).json
    answer = farm.put(USER, body)
    assert (answer.status_code, sorted(answer.json["fields"])) == (422, names)
    assert farm.get(USER).json == before


def test_every_fault_of_a_week_is_named() -> None:
    with pytest.raises(BadHours) as refused:
        read_hours({"mon": "x", "moon": [], "tue": [["a", "b"], ["10:00", "09:00"], ["11:00", "12:00"]]})
    assert sorted(refused.value.faults) == ["mon", "moon", "tue"]
    assert len(refused.value.faults["tue"]) == 2
