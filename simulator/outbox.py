"""The way out of a printer for its messages, where faults lose, double or delay them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from simulator.faults import Faults, is_report


class Outbox:
    """`later(seconds, action)` does something after so much simulated time; `now` tells it."""

    def __init__(
        self, faults: Faults, later: Callable[[float, Callable[[], None]], None], now: Callable[[], float]
    ) -> None:
        self._faults = faults
        self._later = later
        self._now = now
        self._reports_held_until = 0.0
        self._overdue: list[dict[str, Any]] = []

    def let_out(self, messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """What is left of these messages for now; what is held back is overdue later."""
        at_once: list[dict[str, Any]] = []
        for message in messages:
            copies = [message] * self._faults.copies_of(message)
            delay = self._delay_of(message)
            if delay > 0 and copies:
                self._later(delay, partial(self._overdue.extend, copies))
            else:
                at_once += copies
        return at_once

    def _delay_of(self, message: dict[str, Any]) -> float:
        """Reports go over one line: none overtakes another, but for what a full one that is late leaves behind it."""
        if not is_report(message):
            return self._faults.delay_of(message)
        in_line = max(self._faults.report_delay_seconds, self._reports_held_until - self._now())
        self._reports_held_until = self._now() + in_line
        return max(in_line, self._faults.delay_of(message))

    def put(self, message: dict[str, Any]) -> None:
        """One that nobody waits for at once."""
        self._overdue += self.let_out([message])

    def take_overdue(self) -> list[dict[str, Any]]:
        """Messages whose time to be sent has come, once."""
        overdue = list(self._overdue)
        self._overdue.clear()
        return overdue
