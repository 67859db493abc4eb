"""When somebody is at the printers: staffed hours by weekday in the user's zone, as the moments they make in UTC.

A plate is cleared by a person, so what follows a print waits for one. An interval ends before its end, may reach over
midnight into the next day, and means what the clock on the wall shows: where clocks go forward, a time that does not
exist is the moment of the change; where they go back, an hour that comes twice is staffed twice. Pure.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MAX_INTERVALS = 24
DAY_MINUTES = 24 * 60
WALL_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
END_OF_DAY = "24:00"
# Of every length of interval some begins within this many days, even where its hour is once lost to a change of clocks.
SEARCH_DAYS = 15
# Beyond this, nobody knows who will be there: the estimate goes on as if always somebody was.
HORIZON = timedelta(days=3 * 366)
# Where estimates end, far from where datetimes do.
FAR = datetime(9000, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

# From and to, in minutes of the wall clock since midnight.
Interval = tuple[int, int]


class BadHours(Exception):
    """Staffed hours that cannot be meant; `faults` names every one, by day."""

    def __init__(self, faults: dict[str, list[str]]) -> None:
        super().__init__(faults)
        self.faults = faults


@cache
def zone_names() -> frozenset[str]:
    """The names of all time zones that may be chosen."""
    return frozenset(available_timezones()) - {"localtime", "Factory"}


def later(moment: datetime, span: timedelta) -> datetime:
    """A moment later by a span; estimates never leave the calendar."""
    return moment + span if span < FAR - moment else FAR


def read_hours(hours: Mapping[str, Any]) -> tuple[tuple[Interval, ...], ...]:
    """Intervals by weekday, Monday first, those over midnight split in two.

    Takes {"mon": [["08:00", "17:30"], ["22:00", "06:00"]], …}; "24:00" may be an end. A day that is missing has none.

    Raises:
        BadHours: an unknown day, a time that is none, intervals that are empty, out of order or overlapping.
    """
    faults: dict[str, list[str]] = {}
    days: list[list[Interval]] = [[] for _ in WEEKDAYS]
    spilled: list[Interval | None] = [None] * len(WEEKDAYS)
    for name, intervals in hours.items():
        if name not in WEEKDAYS:
            faults[str(name)[:40]] = [f"Not a day: {', '.join(WEEKDAYS)}."]
            continue
        number = WEEKDAYS.index(name)
        found = _read_day(intervals)
        if isinstance(found, list):
            faults[name] = found
            continue
        for begins, ends in found:
            if ends > begins:
                days[number].append((begins, ends))
                continue
            days[number].append((begins, DAY_MINUTES))
            if ends:
                spilled[(number + 1) % len(WEEKDAYS)] = (0, ends)
    for number, spill in enumerate(spilled):
        if spill is not None:
            if days[number] and days[number][0][0] < spill[1]:
                faults.setdefault(WEEKDAYS[number], []).append(
                    f"Begins before the interval of {WEEKDAYS[number - 1]} ends."
                )
            days[number].insert(0, spill)
    if faults:
        raise BadHours(faults)
    return tuple(tuple(day) for day in days)


def _read_day(intervals: Any) -> tuple[Interval, ...] | list[str]:
    """A day's intervals, an end at or before its begin meaning the next day; or what is wrong with them."""
    if not isinstance(intervals, list | tuple) or len(intervals) > MAX_INTERVALS:
        return [f"Not a list of up to {MAX_INTERVALS} intervals."]
    found: list[Interval] = []
    faults = []
    for number, interval in enumerate(intervals, 1):
        times = [_minutes(each) for each in interval] if isinstance(interval, list | tuple) else []
        if len(times) != 2 or None in times or times[0] == DAY_MINUTES:
            faults.append(f'Interval {number} is not ["08:00", "17:30"].')
            continue
        begins, ends = times[0] or 0, times[1] or 0
        if begins == ends:
            faults.append(f"Interval {number} is empty.")
        elif found and (found[-1][1] <= found[-1][0] or begins < found[-1][1]):
            faults.append(f"Interval {number} begins before the one before it ends.")
        found.append((begins, ends))
    return faults or tuple(found)


def _minutes(text: Any) -> int | None:
    if text == END_OF_DAY:
        return DAY_MINUTES
    match = WALL_TIME.fullmatch(text) if isinstance(text, str) else None
    return int(match[1]) * 60 + int(match[2]) if match else None


class StaffedHours:
    """The moments in which somebody is there. Reads ahead as far as it is asked, and remembers."""

    def __init__(self, hours: Mapping[str, Any] | None, timezone: str) -> None:
        self._days = read_hours(hours) if hours is not None else None
        self._zone = ZoneInfo(timezone if timezone in zone_names() else "UTC")
        self._begins: list[datetime] = []
        self._ends: list[datetime] = []
        self._known_from: datetime | None = None
        self._known_until: datetime | None = None
        self._next_day = date.min

    @property
    def is_always(self) -> bool:
        return self._days is None

    def next_staffed(self, moment: datetime) -> datetime | None:
        """The first moment at or after this one in which somebody is there; None when nobody ever is."""
        if self._days is None:
            return moment
        index = self._window(moment)
        return None if index is None else max(moment, self._begins[index])

    def after_work(self, moment: datetime, work: timedelta) -> datetime | None:
        """When work that takes this long is done, begun as soon as somebody is there and going on while somebody is.

        Without any length: the next moment somebody is there. None when nobody ever is.
        """
        if self._days is None:
            return later(moment, work)
        horizon = later(moment, HORIZON)
        while True:
            index = self._window(moment)
            if index is None:
                return None
            begun = max(moment, self._begins[index])
            if begun > horizon or self._ends[index] - begun >= work:
                return later(begun, work)
            work -= self._ends[index] - begun
            moment = self._ends[index]

    def _window(self, moment: datetime) -> int | None:
        """The window that a moment lies in, else the next one; None where there is none for half a month."""
        if self._known_from is None or self._known_until is None or moment < self._known_from:
            self._begins, self._ends = [], []
            self._next_day = (moment - timedelta(days=2)).astimezone(self._zone).date()
            self._known_from = self._known_until = moment - timedelta(days=1)
        if moment - self._known_until > HORIZON:
            # So far away nothing is remembered on the way there.
            self._known_from = None
            return self._window(moment)
        while True:
            # The last window that begins at or before the moment may still hold it.
            index = bisect_right(self._ends, moment)
            if index < len(self._ends):
                return index
            if self._known_until > moment + timedelta(days=SEARCH_DAYS):
                return None
            self._read_day_ahead()

    def _read_day_ahead(self) -> None:
        day, following = self._next_day, self._next_day + timedelta(days=1)
        assert self._days is not None
        for begins, ends in self._days[day.weekday()]:
            first = _moment(day, begins, self._zone, is_end=False)
            last = _moment(following if ends == DAY_MINUTES else day, ends % DAY_MINUTES, self._zone, is_end=True)
            # Windows may overlap in an hour that comes twice; their begins and their ends are in order all the same.
            if first < last:
                self._begins.append(first)
                self._ends.append(last)
        self._next_day = following
        self._known_until = datetime.combine(following, time(), UTC) - timedelta(days=1)


def _moment(day: date, minutes: int, zone: ZoneInfo, *, is_end: bool) -> datetime:
    """What a wall time of a day is in UTC. One that comes twice: its first as a begin, its second as an end. One that
    is skipped: the moment of the change."""
    wall = datetime.combine(day, time(minutes // 60, minutes % 60), zone)
    moment = wall.replace(fold=int(is_end)).astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return moment
    before = wall.replace(fold=1).astimezone(UTC)
    after = wall.replace(fold=0).astimezone(UTC)
    offset = before.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) / 2
        before, after = (middle, after) if middle.astimezone(zone).utcoffset() == offset else (before, middle)
    return after.replace(microsecond=0)
