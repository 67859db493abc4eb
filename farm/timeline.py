"""A printer's queue and now -> when each print will run, as far as can be known. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from farm.staffed import MINUTE, StaffedHours, later

BEFORE_ALL = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class QueuedPrint:
    """A waiting print. It runs not before `not_before`; of those that are due, the highest priority first."""

    id: int
    minutes: int
    priority: int = 0
    not_before: datetime | None = None

    @property
    def run_key(self) -> tuple[int, datetime, int]:
        """What runs next is the first that is due: priority high to low, then its time (none first), then id."""
        return -self.priority, self.not_before or BEFORE_ALL, self.id


@dataclass(frozen=True, slots=True)
class Run:
    """When a print is expected to run."""

    print_id: int
    starts_at: datetime
    ends_at: datetime


# From when to when a printer has nothing to do and a clear plate; None is for ever.
Gap = tuple[datetime, datetime | None]


def run_through(
    waiting: Iterable[QueuedPrint], *, free_at: datetime | None, staffed: StaffedHours, clearing: timedelta
) -> tuple[list[Run], list[Gap]]:
    """(the runs in their order, the gaps that they leave).

    `free_at`: when the next print can start, its plate cleared. Between two prints somebody clears the plate, which
    takes `clearing` of staffed time. None: never, because nobody ever is there; what cannot run is left out.
    """
    by_time = sorted(waiting, key=lambda each: (each.not_before or BEFORE_ALL, each.run_key))
    due: list[tuple[tuple[int, datetime, int], QueuedPrint]] = []
    runs: list[Run] = []
    gaps: list[Gap] = []
    following = 0
    while free_at is not None and (due or following < len(by_time)):
        if not due and (starts_at := by_time[following].not_before or BEFORE_ALL) > free_at:
            gaps.append((free_at, starts_at))
            free_at = starts_at
        while following < len(by_time) and (by_time[following].not_before or BEFORE_ALL) <= free_at:
            heapq.heappush(due, (by_time[following].run_key, by_time[following]))
            following += 1
        chosen = heapq.heappop(due)[1]
        ends_at = later(free_at, chosen.minutes * MINUTE)
        runs.append(Run(chosen.id, free_at, ends_at))
        free_at = staffed.after_work(ends_at, clearing)
    if free_at is not None:
        gaps.append((free_at, None))
    return runs, gaps
