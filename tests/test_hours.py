"""When something may go out to a person: quiet hours and digests, around midnight and around changes of the clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from delivery.hours import DIGESTS, hold_until
from models import Digest

BERLIN = "Europe/Berlin"
NIGHT = ("22:00", "07:00")


def at(text: str, zone: str = BERLIN, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)


TABLE = [
    # now, quiet hours, digest, expected; by the clock in Berlin
    ("2026-11-21T12:00", None, "off", "2026-11-21T12:00"),
    ("2026-11-21T12:00", NIGHT, "off", "2026-11-21T12:00"),
    ("2026-11-21T21:59:59", NIGHT, "off", "2026-11-21T21:59:59"),
    ("2026-11-21T22:00", NIGHT, "off", "2026-11-22T07:00"),
    ("2026-11-21T23:59:59.999999", NIGHT, "off", "2026-11-22T07:00"),
    ("2026-11-22T00:00", NIGHT, "off", "2026-11-22T07:00"),
    ("2026-11-22T06:59:59", NIGHT, "off", "2026-11-22T07:00"),
    ("2026-11-22T07:00", NIGHT, "off", "2026-11-22T07:00"),
    ("2026-12-31T23:00", NIGHT, "off", "2027-01-01T07:00"),
    # within one day; the whole day but a minute; none at all
    ("2026-11-21T13:30", ("13:00", "15:00"), "off", "2026-11-21T15:00"),
    ("2026-11-21T15:00", ("13:00", "15:00"), "off", "2026-11-21T15:00"),
    ("2026-11-21T12:01", ("12:01", "12:00"), "off", "2026-11-22T12:00"),
    ("2026-11-21T12:00", ("12:00", "12:00"), "off", "2026-11-21T12:00"),
    ("2026-11-21T00:00", ("00:00", "00:00"), "off", "2026-11-21T00:00"),
    ("2026-11-21T05:00", ("00:00", "23:59"), "off", "2026-11-21T23:59"),
    # digests
    ("2026-11-21T12:00", None, "hourly", "2026-11-21T12:00"),
    ("2026-11-21T12:00:00.000001", None, "hourly", "2026-11-21T13:00"),
    ("2026-11-21T23:30", None, "hourly", "2026-11-22T00:00"),
    ("2026-11-21T07:59", None, "daily", "2026-11-21T08:00"),
    ("2026-11-21T08:00", None, "daily", "2026-11-21T08:00"),
    ("2026-11-21T08:00:01", None, "daily", "2026-11-22T08:00"),
    # a digest that falls into the quiet hours waits for their end
    ("2026-11-21T21:30", NIGHT, "hourly", "2026-11-22T07:00"),
    ("2026-11-21T21:00", NIGHT, "hourly", "2026-11-21T21:00"),
    ("2026-11-22T06:30", ("22:00", "06:45"), "hourly", "2026-11-22T07:00"),
    ("2026-11-21T12:00", ("22:00", "09:30"), "daily", "2026-11-22T09:30"),
    # the clocks go forward on 29 March 2026 at 02:00, back on 25 October at 03:00
    ("2026-03-29T01:30", ("22:00", "03:30"), "off", "2026-03-29T03:30"),
    ("2026-03-29T01:30", ("22:00", "02:30"), "off", "2026-03-29T03:30"),
    ("2026-03-29T01:00", ("03:10", "02:30"), "off", "2026-03-30T02:30"),
    ("2026-03-28T08:30", None, "daily", "2026-03-29T08:00"),
    ("2026-10-24T08:30", None, "daily", "2026-10-25T08:00"),
    ("2026-10-24T23:00", NIGHT, "off", "2026-10-25T07:00"),
    ("2026-10-25T01:30", ("22:00", "02:30"), "off", "2026-10-25T02:30"),
    ("2026-03-29T01:10", None, "hourly", "2026-03-29T03:00"),
]


@pytest.mark.parametrize(("now", "quiet", "digest", "expected"), TABLE)
def test_when_it_may_go_out(now: str, quiet: tuple[str, str] | None, digest: str, expected: str) -> None:
    held = hold_until(at(now), zone=BERLIN, quiet=quiet, digest=digest, digest_at="08:00")
    assert held == at(expected).astimezone(UTC) and held.tzinfo is UTC


def test_a_time_that_the_clocks_pass_twice_ends_the_quiet_hours_both_times() -> None:
    second = at("2026-10-25T02:10", fold=1)
    held = hold_until(second, zone=BERLIN, quiet=("22:00", "02:30"), digest="off", digest_at="08:00")
    assert held == at("2026-10-25T02:30", fold=1).astimezone(UTC)
    assert held - second == timedelta(minutes=20)


def test_a_daily_digest_at_a_time_that_comes_twice_goes_out_once() -> None:
    between = at("2026-10-25T02:45")
    held = hold_until(between, zone=BERLIN, quiet=None, digest="daily", digest_at="02:30")
    assert held == at("2026-10-26T02:30")


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("Asia/Kathmandu", "2026-11-21T10:15+00:00"),
        ("UTC", "2026-11-21T11:00+00:00"),
        ("Nowhere/Land", "2026-11-21T11:00+00:00"),
    ],
)
def test_the_full_hour_is_that_of_the_zone_and_an_unknown_zone_is_utc(zone: str, expected: str) -> None:
    now = datetime(2026, 11, 21, 10, 5, tzinfo=UTC)
    held = hold_until(now, zone=zone, quiet=None, digest="hourly", digest_at="08:00")
    assert held == datetime.fromisoformat(expected)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "/etc/passwd", "Europe", "\x00", "x" * 5_000])
def test_a_zone_that_is_none_loses_nothing(name: str) -> None:
    now = datetime(2026, 11, 21, 10, 5, tzinfo=UTC)
    assert hold_until(now, zone=name, quiet=None, digest="off", digest_at="08:00") == now


@pytest.mark.parametrize("wrong", ["", "8:00", "24:00", "08:60", "08-00", "08:0x", "-1:00", "08:00:00", "٠٨:٠٠"])
def test_a_time_that_is_none_is_refused(wrong: str) -> None:
    now = datetime(2026, 11, 21, 10, 5, tzinfo=UTC)
    for quiet, digest, digest_at in (
        ((wrong, "08:00"), "off", ""),
        (("08:00", wrong), "off", ""),
        (None, "daily", wrong),
    ):
        with pytest.raises(ValueError):
            hold_until(now, zone="UTC", quiet=quiet, digest=digest, digest_at=digest_at)


def test_another_digest_and_a_naive_moment_are_refused() -> None:
    with pytest.raises(ValueError):
        hold_until(datetime(2026, 11, 21, tzinfo=UTC), zone="UTC", quiet=None, digest="weekly", digest_at="08:00")
    with pytest.raises(ValueError):
        hold_until(datetime(2026, 11, 21), zone="UTC", quiet=None, digest="off", digest_at="08:00")  # noqa: DTZ001


def test_the_digests_of_the_preferences_are_these() -> None:
    assert set(DIGESTS) == set(Digest)


ZONES = [
    *("UTC", BERLIN, "America/New_York", "America/Santiago", "Australia/Lord_Howe", "Asia/Kathmandu"),
    *("Pacific/Apia", "Africa/Casablanca", "America/St_Johns", "Pacific/Chatham", "Asia/Beirut", "America/Havana"),
]
TIMES = st.builds("{:02d}:{:02d}".format, st.integers(0, 23), st.integers(0, 59))
MOMENTS = st.datetimes(datetime(2025, 1, 1), datetime(2028, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001
# The hours in which these zones change their clocks come up too seldom by chance.
CHANGES = st.builds(
    lambda day, minutes: datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(minutes=minutes),
    st.sampled_from(["2026-03-28", "2026-03-29", "2026-10-24", "2026-10-25", "2026-03-08", "2026-11-01", "2026-04-04"]),
    st.integers(0, 2 * 24 * 60),
)


def wall(moment: datetime, zone: str) -> str:
    return moment.astimezone(ZoneInfo(zone)).strftime("%H:%M")


def minutes(text: str) -> int:
    return int(text[:2]) * 60 + int(text[3:])


@settings(max_examples=300, deadline=None)
@given(st.one_of(MOMENTS, CHANGES), st.sampled_from(ZONES), st.tuples(TIMES, TIMES), st.sampled_from(DIGESTS), TIMES)
def test_held_never_into_the_past_never_into_quiet_hours_and_never_for_long(
    now: datetime, zone: str, quiet: tuple[str, str], digest: str, digest_at: str
) -> None:
    start, end = quiet
    # Else a jump of the clocks can swallow the only minutes of a day that are not quiet.
    assume(start == end or (minutes(start) - minutes(end)) % (24 * 60) > 60)
    held = hold_until(now, zone=zone, quiet=quiet, digest=digest, digest_at=digest_at)
    assert held >= now
    assert held - now < timedelta(hours=25 if digest == "off" else 49)
    on_the_wall = wall(held, zone)
    inside = start <= on_the_wall < end if start <= end else on_the_wall >= start or on_the_wall < end
    assert not inside
    # Held over again, it goes at once: what is due is due.
    assert hold_until(held, zone=zone, quiet=quiet, digest="off", digest_at=digest_at) == held
