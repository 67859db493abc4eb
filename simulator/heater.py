"""A heater's temperature as a function of time: a straight line up, an exponential down."""

from __future__ import annotations

import math
from dataclasses import dataclass

ROOM_CELSIUS = 24.0


@dataclass
class Heater:
    """Temperatures in °C, times in simulated seconds; what it shows at a time does not depend on the steps taken."""

    cooling_seconds: float
    target: float = 0.0
    _from_celsius: float = ROOM_CELSIUS
    _since: float = 0.0
    _reached_at: float = 0.0

    def set_target(self, target: float, now: float, within_seconds: float = 60.0) -> None:
        """Aims at `target` (0 = off); heating up takes `within_seconds`."""
        self._from_celsius = self.celsius(now)
        self._since = now
        self._reached_at = now + within_seconds
        self.target = target

    def celsius(self, now: float) -> float:
        goal = self.target if self.target > ROOM_CELSIUS else ROOM_CELSIUS
        if goal >= self._from_celsius:
            if now >= self._reached_at:
                return goal
            done = (now - self._since) / (self._reached_at - self._since)
            return self._from_celsius + (goal - self._from_celsius) * done
        return goal + (self._from_celsius - goal) * math.exp(-(now - self._since) / self.cooling_seconds)
