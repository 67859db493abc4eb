"""The queue of a printer: its order, what a person holds back, what is tried again, which interlocks are overridden."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple

from farm.interlocks import Interlock
from farm.materials import StageLimits
from farm.moves import move_print
from models import PrintEvent, PrintStatus, ScheduledPrint, db

# The order in which they run; false sorts before true, so a print without a start time comes first.
RUN_ORDER = (
    ScheduledPrint.priority.desc(),
    ScheduledPrint.scheduled_start.is_not(None),
    ScheduledPrint.scheduled_start,
    ScheduledPrint.id,
)
LOWEST_PRIORITY, HIGHEST_PRIORITY = -1000, 1000
BEFORE_ALL = datetime.min.replace(tzinfo=UTC)


class Place(NamedTuple):
    """What a waiting print's place in the queue is made of."""

    id: int
    priority: int
    scheduled_start: datetime | None

    @property
    def rank(self) -> tuple[datetime, int]:
        """What decides between prints of one priority."""
        return self.scheduled_start or BEFORE_ALL, self.id

    @property
    def run_key(self) -> tuple[int, datetime, int]:
        """RUN_ORDER for a sort in memory."""
        return -self.priority, *self.rank


def priorities_for(wanted: Sequence[Place]) -> dict[int, int] | None:
    """The fewest new priorities, by print id, with which the queue runs in this order; None where none will do.

    Of two neighbours the first needs a priority above the second's where their rank is against it, else one as high
    will do. With the number of such drops before a print added to its priority, that is: the sums never rise. So what
    can stay is a longest part of them that does not rise, and each of the others gets the nearest that fits between.
    """
    if not wanted:
        return {}
    drops = [0]
    for before, after in pairwise(wanted):
        drops.append(drops[-1] + (before.rank > after.rank))
    lowest, highest = LOWEST_PRIORITY + drops[-1], HIGHEST_PRIORITY
    if lowest > highest:
        return None
    levels = [each.priority + drop for each, drop in zip(wanted, drops, strict=True)]
    kept = _longest_without_rise(levels, lowest, highest)
    floors, floor = [lowest] * len(levels), lowest
    for index in reversed(range(len(levels))):
        floor = levels[index] if index in kept else floor
        floors[index] = floor
    changed: dict[int, int] = {}
    level = highest
    for each, own, least, drop in zip(wanted, levels, floors, drops, strict=True):
        level = max(least, min(level, own))
        if level - drop != each.priority:
            changed[each.id] = level - drop
    return changed


def _longest_without_rise(levels: Sequence[int], lowest: int, highest: int) -> set[int]:
    """The places of a longest part of these numbers that does not rise, within the bounds. O(n log n)."""
    ends: list[int] = []
    end_places: list[int] = []
    before: dict[int, int | None] = {}
    for place, level in enumerate(levels):
        if lowest <= level <= highest:
            length = bisect_right(ends, -level)
            ends[length : length + 1] = [-level]
            end_places[length : length + 1] = [place]
            before[place] = end_places[length - 1] if length else None
    kept: set[int] = set()
    last = end_places[-1] if end_places else None
    while last is not None:
        kept.add(last)
        last = before[last]
    return kept


def hold(waiting: ScheduledPrint, *, at: datetime) -> None:
    """Keep a waiting print from starting. It keeps its place, and others go past it."""
    if waiting.held_at is None:
        waiting.held_at = waiting.updated_at = at
        _record(waiting, "print.held", {}, at)


def release_hold(waiting: ScheduledPrint, *, at: datetime) -> None:
    if waiting.held_at is not None:
        waiting.held_at, waiting.updated_at = None, at
        _record(waiting, "print.hold_released", {}, at)


def override(waiting: ScheduledPrint, locks: Iterable[Interlock], *, by_user_id: int, at: datetime) -> None:
    """A person answers for these interlocks at the print's next start. Recorded by name and person."""
    before = waiting.overrides or []
    new = sorted({lock.value for lock in locks} - set(before))
    if new:
        waiting.overrides, waiting.updated_at = [*before, *new], at
        _record(waiting, "print.overridden", {"interlocks": new, "user_id": by_user_id}, at)


def queue_again(
    ended: ScheduledPrint,
    *,
    printer_id: int,
    scheduled_start: datetime | None,
    at: datetime,
    limits: StageLimits,
) -> None:
    """An ended print waits once more, on this printer. Its history and what it used stay on record.

    Raises:
        IllegalMove: see `ScheduledPrint.move_to`.
    """
    ended.printer_id, ended.scheduled_start, ended.is_chained = printer_id, scheduled_start, False
    move_print(ended, PrintStatus.queued, at=at, limits=limits)


def _record(of_print: ScheduledPrint, kind: str, details: dict[str, Any], at: datetime) -> None:
    db.session.add(
        PrintEvent(
            user_id=of_print.user_id,
            printer_id=of_print.printer_id,
            print_id=of_print.id,
            kind=kind,
            details=details,
            at=at,
        )
    )
