"""The conversation over one connection to a printer: what is asked, awaited and heard, from first packet to last.

A session begins knowing nothing and is never resumed: a new connection makes a new one. All of it runs in one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime

import orjson

import bambu.commands as commands
import bambu_report as report
from bambu.commands import Answer, Command
from bambu.types import Heard, LinkTimings
from bambu.wire import NotSent, Wire

_UNSIGNED_REFUSED = frozenset(f"0502-40{number:02X}" for number in range(7, 13))
_NO_FULL_REPORT = "connected, but the printer sends no full report: is the serial number right, capital letters too?"


@dataclass(slots=True)
class _Awaited:
    section: str
    command: str
    submission_id: str | None
    sent: float
    waiter: Future[Answer] | None


class Session:
    """`now` is a monotonic time in seconds, everywhere. `trouble` is what is odd about a live connection, in words."""

    def __init__(
        self,
        generation: int,
        raw: report.Raw,
        timings: LinkTimings,
        *,
        clock: Callable[[], datetime],
        now: Callable[[], float],
        next_sequence_id: Callable[[], str],
        on_heard: Callable[[Heard], None],
        on_answer: Callable[[Answer], None],
    ) -> None:
        self.generation = generation
        self.full_came = False
        self.trouble: str | None = None
        self.is_silent = False
        self.is_deaf = False
        self.heard = now()
        self.obeys: bool | None = None
        self._raw = raw
        self._state = report.read(raw)
        self._timings, self._clock, self._now = timings, clock, now
        self._next_sequence_id = next_sequence_id
        self._on_heard, self._on_answer = on_heard, on_answer
        self._wire: Wire | None = None
        self._ready: float | None = None
        self._asked_again = False
        self._nudged: float | None = None
        self._awaited: dict[str, _Awaited] = {}
        self._unanswered = 0
        self._start_sent: float | None = None

    def use(self, wire: Wire) -> None:
        """Gives the session its connection, just made."""
        self._wire = wire
        self.heard = self._now()

    @property
    def is_ready(self) -> bool:
        """Whether the printer has let us in and reports can come."""
        return self._ready is not None

    def begin(self) -> None:
        """The report topic is subscribed: ask who the printer is and how it stands."""
        self._ready = self._now()
        self.order(commands.VERSION)
        self.order(commands.FULL_REPORT)

    def order(self, command: Command, *, submission_id: str | None = None, waiter: Future[Answer] | None = None) -> str:
        """Publishes once and returns the sequence id. Raises NotSent."""
        if self._wire is None:
            raise NotSent("there is no connection to the printer")
        sequence_id = self._next_sequence_id()
        payload = orjson.dumps(commands.numbered(command, sequence_id))
        self._wire.publish(payload)
        if submission_id is not None:
            self._start_sent = self._now()
        section, name = commands.section_and_name(command)
        self._awaited[sequence_id] = _Awaited(section, name, submission_id, self._now(), waiter)
        return sequence_id

    def hear(self, payload: bytes) -> None:
        """One message from the printer: a report, an answer, or noise."""
        message = report.decode(payload)
        if message is None:
            return
        self.heard = self._now()
        self._nudged = None
        is_status = report.is_status(message)
        if not is_status or len(message) > 1:  # otherwise there is no room for an answer
            for section, answer in commands.answers(message):
                self._take_answer(section, answer)
        raw = report.merge(self._raw, message)
        if raw is self._raw and not is_status:
            return
        full = report.is_full(message)
        if full:
            self.full_came = True
            self.trouble = None
        before = self._state
        if raw is not self._raw:
            self._raw, self._state = raw, report.read(raw)
        self._on_heard(Heard(before, self._state, self._clock(), self.generation, full))

    def _take_answer(self, section: str, answer: Answer) -> None:
        awaited = self._awaited.get(answer.sequence_id)
        # The commands of the printer's own screen and of other programs are answered on the same topic.
        if awaited is None or awaited.section != section or answer.command not in ("", awaited.command):
            return
        self._unanswered = 0
        answer = replace(answer, command=awaited.command, submission_id=awaited.submission_id)
        if answer.accepted is not None:  # after a bare echo a decision may still follow
            del self._awaited[answer.sequence_id]
        if section == "print":
            self._learn(answer)
        if awaited.waiter is not None and not awaited.waiter.done():
            awaited.waiter.set_result(answer)
        self._on_answer(answer)

    def _learn(self, answer: Answer) -> None:
        if answer.accepted:
            self.obeys = True
        elif answer.code in _UNSIGNED_REFUSED:
            self.obeys = False
        else:
            return
        self._raw = report.learn(self._raw, obeys=self.obeys)
        self._state = report.read(self._raw)

    def tick(self, now: float) -> None:
        """Watches over the conversation; sets `trouble`, `is_silent`, `is_deaf`. Raises NotSent on a broken line."""
        timings = self._timings
        if self._ready is None:
            self.is_silent = now - self.heard > timings.connect
            return
        if not self.full_came and not self._asked_again and now - self._ready > timings.full_report:
            self._asked_again = True
            self.trouble = _NO_FULL_REPORT
            self.order(commands.FULL_REPORT)
        if self._nudged is None and now - self.heard > timings.silence:
            self._nudged = now
            self.order(commands.RESUME_REPORTS)
        # A printer that was asked twice and tells only what changes would stay half known for ever.
        is_half_known = not self.full_came and now - self._ready > timings.full_report + timings.silence
        self.is_silent = is_half_known or (self._nudged is not None and now - self._nudged > timings.patience)
        self._forget(now)
        # Reports that flow while commands get lost were cured by a new connection with a new client id. Not soon after
        # a start: a printer may take minutes to act on one, and is watched over the connection it came by.
        starting = self._start_sent is not None and now - self._start_sent < timings.start_watch
        self.is_deaf = self._unanswered >= 2 and not starting

    def _forget(self, now: float) -> None:
        for sequence_id, awaited in list(self._awaited.items()):
            if now - awaited.sent > self._timings.start_watch:
                del self._awaited[sequence_id]

    def give_up_waiting(self, sequence_id: str) -> None:
        """Nobody waits for this answer any more; it counts as a command that went unanswered."""
        if self._awaited.pop(sequence_id, None) is not None:
            self._unanswered += 1

    def next_due(self, now: float) -> float:
        """Seconds until `tick` has something to look at, at most one keepalive."""
        times = [self._timings.keepalive + 0.0]
        if self._ready is None:
            times.append(self.heard + self._timings.connect - now)
        else:
            if not self.full_came:
                asked_again = self._timings.silence if self._asked_again else 0.0
                times.append(self._ready + self._timings.full_report + asked_again - now)
            if self._nudged is None:
                times.append(self.heard + self._timings.silence - now)
            else:
                times.append(self._nudged + self._timings.patience - now)
        return max(0.0, min(times))

    def end(self, reason: str) -> None:
        """Tells whoever still waits that no answer will come."""
        self._wire = None
        for sequence_id, awaited in self._awaited.items():
            if awaited.waiter is not None and not awaited.waiter.done():
                awaited.waiter.set_result(
                    Answer(awaited.command, sequence_id, None, None, reason, awaited.submission_id)
                )
        self._awaited.clear()
