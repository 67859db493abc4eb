"""When a mail or a message may go out: quiet hours and digests, by the clock on the seller's wall. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DIGESTS = ("off", "hourly", "daily")
_TIME = re.compile(r"[0-9]{2}:[0-9]{2}", re.ASCII)


def zone_of(name: str) -> tzinfo:
    """The zone of that name, or UTC: a zone that the system has lost must not lose what happened."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def hold_until(now: datetime, *, zone: str, quiet: tuple[str, str] | None, digest: str, digest_at: str) -> datetime:
    """When something that comes about `now` may go out: `now` itself when nothing holds it.

    `quiet` is (from, to) as "HH:MM" in `zone`, from inclusive, to exclusive, over midnight where from is the later
    one; two equal times are no quiet hours. `digest` is one of DIGESTS: "hourly" waits for the full hour, "daily" for
    `digest_at`; one that falls into the quiet hours waits for their end. What comes at the very moment goes at once.

    The answer is UTC, never before `now` and never inside the quiet hours. A time of day that the clocks jump over is
    taken as if they had not jumped (PEP 495); one that they pass twice ends quiet hours twice, and is for a digest
    the first of the two.

    Raises:
        ValueError: `now` is naive, a time is not "HH:MM", or there is no such digest.
    """
    if now.tzinfo is None:
        raise ValueError("a moment needs its zone")
    place = zone_of(zone)
    moment = now.astimezone(UTC)
    if digest == "hourly":
        moment = _next_hour(moment, place)
    elif digest == "daily":
        moment = _next_time_of_day(moment, place, _time_of_day(digest_at))
    elif digest != "off":
        raise ValueError(f"a digest is one of {', '.join(DIGESTS)}, not {digest!r}")
    if quiet is None:
        return moment
    start, end = (_time_of_day(text) for text in quiet)
    return _end_of_quiet(moment, place, start, end)


def _time_of_day(text: str) -> time:
    if not _TIME.fullmatch(text):
        raise ValueError(f"a time of day is written HH:MM, not {text!r}")
    return time(int(text[:2]), int(text[3:]))


def _next_hour(moment: datetime, place: tzinfo) -> datetime:
    """By the zone's own clock: some are half an hour, or three quarters, off the others."""
    wall = moment.astimezone(place)
    over = timedelta(minutes=wall.minute, seconds=wall.second, microseconds=wall.microsecond)
    return moment + timedelta(hours=1) - over if over else moment


def _next_time_of_day(moment: datetime, place: tzinfo, at: time) -> datetime:
    today = moment.astimezone(place).date()
    # The zone of a far date line can drop a day, and a late `at` in a gap falls on the day after: hence some more.
    return next(each for days in range(-1, 4) if (each := _instant(today, days, at, 0, place)) >= moment)


def _end_of_quiet(moment: datetime, place: tzinfo, start: time, end: time) -> datetime:
    if not _is_quiet(moment, place, start, end):
        return moment
    today = moment.astimezone(place).date()
    return next(each for each in _ends(today, end, place) if each > moment and not _is_quiet(each, place, start, end))


def _ends(today: date, end: time, place: tzinfo) -> Iterator[datetime]:
    for days in range(-1, 5):
        yield _instant(today, days, end, 0, place)
        yield _instant(today, days, end, 1, place)


def _is_quiet(moment: datetime, place: tzinfo, start: time, end: time) -> bool:
    wall = moment.astimezone(place).time()
    return start <= wall < end if start <= end else wall >= start or wall < end


def _instant(today: date, days: int, at: time, fold: int, place: tzinfo) -> datetime:
    return datetime.combine(today + timedelta(days), at.replace(fold=fold), place).astimezone(UTC)
