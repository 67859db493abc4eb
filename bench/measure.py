"""Side by side: two calls in turns, CPU time each, the median of many rounds."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Result:
    """CPU milliseconds a call of both, and how many times the floor the product takes."""

    name: str
    ours_ms: float
    floor_ms: float
    goal: float

    @property
    def ratio(self) -> float:
        return self.ours_ms / self.floor_ms

    def line(self) -> str:
        verdict = "ok" if self.ratio <= self.goal else "ABOVE GOAL"
        return (
            f"{self.name:<42} {self.ours_ms:8.3f} ms {self.floor_ms:8.3f} ms   "
            f"{self.ratio:5.2f}x   goal {self.goal:.1f}x  {verdict}"
        )


def cpu_ms(call: Callable[[], object], repeat: int) -> float:
    begun = time.process_time()
    for _ in range(repeat):
        call()
    return (time.process_time() - begun) * 1000 / repeat


def compare(name: str, ours: Callable[[], object], floor: Callable[[], object], *, goal: float, repeat: int) -> Result:
    """Both in turns, so that whatever else the machine does strikes both alike."""
    cpu_ms(ours, repeat), cpu_ms(floor, repeat)
    gc.collect()
    gc.disable()
    try:
        rounds = [(cpu_ms(ours, repeat), cpu_ms(floor, repeat)) for _ in range(ROUNDS)]
    finally:
        gc.enable()
    return Result(name, statistics.median(r[0] for r in rounds), statistics.median(r[1] for r in rounds), goal)


def percentiles(samples: list[float]) -> tuple[float, float, float]:
    """The 50th, 95th and 99th of a hundred; not a number where there are no samples."""
    if len(samples) < 2:
        return (float("nan"),) * 3
    cuts = statistics.quantiles(samples, n=100)
    return cuts[49], cuts[94], cuts[98]
