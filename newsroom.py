"""What the live channel tells and to whom: a look at the database when there is news, and once a second.

Only while somebody is connected, and only for those who are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import orjson

from auth import Bearer, still_good
from delivery.live_door import LOGIN_SECONDS, Door
from farm.events import Tail, newest_id, read_events
from farm.status_watch import StatusWatch

# Of a printer at most one status in that time.
STATUS_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveLimits:
    """How much room there is, and how long somebody may take who does not say who they are, read, or leave.

    A client for which `unsent` messages wait for longer than that is cut off; it comes again and resumes.
    """

    clients: int
    clients_a_user: int = 20
    unsent: int = 1000
    login_seconds: float = LOGIN_SECONDS
    leave_seconds: float = 2.0


@dataclass(slots=True, kw_only=True, eq=False)
class Seat:
    """A client that has logged in."""

    sid: str
    door: Door
    bearer: Bearer
    is_welcomed: bool = False

    @property
    def room(self) -> str:
        return f"user:{self.bearer.user_id}"


class Stage(Protocol):
    """The clients of this process."""

    limits: LiveLimits

    def seats(self) -> list[Seat]: ...

    def doors(self) -> list[Door]: ...

    def is_seated(self, seat: Seat) -> bool:
        """Whether the client knows that it is in."""

    def tell(self, to: str, name: str, value: Any) -> None:
        """To a room or to one client."""

    def end(self, seat: Seat, code: str) -> None: ...


def plain(value: Any) -> Any:
    """As JSON says it: Socket.IO's own encoder knows no times."""
    return orjson.loads(orjson.dumps(value, option=orjson.OPT_UTC_Z))


class Newsroom:
    """Every method runs in the live channel's own thread, in an app context."""

    def __init__(
        self, stage: Stage, clock: Callable[[], datetime], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._stage, self._clock, self._monotonic = stage, clock, monotonic
        self._tail, self._statuses = Tail(monotonic), StatusWatch()
        # Found, and not told yet.
        self._found: list[tuple[int, int]] = []
        self._looked_at = float("-inf")
        # Somebody is on the way in.
        self.has_arrivals = False

    @property
    def is_ready(self) -> bool:
        """Whether it knows from which event on it tells."""
        return self._tail.newest is not None

    def look(self) -> None:
        self._tell_events()
        if self._monotonic() - self._looked_at >= STATUS_SECONDS:
            self._looked_at = self._monotonic()
            self._show_out()
            self._end_logins()
            self._tell_statuses()
        self._welcome()

    def _user_ids(self) -> set[int]:
        return {seat.bearer.user_id for seat in self._stage.seats()}

    def _tell_events(self) -> None:
        while True:
            # What was found stays until it is told, whatever happens to the database in between.
            self._found += self._tail.look()
            if not self._found:
                return
            user_ids = self._user_ids()
            wanted = [event_id for event_id, user_id in self._found if user_id in user_ids]
            events = read_events(wanted) if wanted else []
            for user_id, event in events:
                self._stage.tell(f"user:{user_id}", "event", plain(event))
            self._found.clear()

    def _tell_statuses(self) -> None:
        for user_id, status in self._statuses.look(self._user_ids(), now=self._clock()):
            self._stage.tell(f"user:{user_id}", "printer_status", plain(status))

    def _welcome(self) -> None:
        """Whoever has just come hears from where on everything is told, and what each printer shows."""
        arrivals = [seat for seat in self._stage.seats() if not seat.is_welcomed]
        fresh = [seat for seat in arrivals if self._stage.is_seated(seat)]
        self.has_arrivals = len(fresh) < len(arrivals)
        for seat in fresh:
            user_id = seat.bearer.user_id
            welcome = {
                "last_event_id": newest_id(user_id),
                "expires_at": seat.bearer.expires_at,
                "printers": self._statuses.shown_to(user_id, now=self._clock()),
            }
            self._stage.tell(seat.sid, "welcome", plain(welcome))
            seat.is_welcomed = True

    def _end_logins(self) -> None:
        seats, now = self._stage.seats(), self._clock()
        good = still_good({seat.bearer.family_id for seat in seats})
        for seat in seats:
            if seat.bearer.family_id not in good:
                self._stage.end(seat, "ended_login")
            elif seat.bearer.expires_at <= now:
                self._stage.end(seat, "expired_token")

    def _show_out(self) -> None:
        """Those who neither read nor leave, so that no thread waits for them."""
        now, limits = time.monotonic(), self._stage.limits
        for door in self._stage.doors():
            door.lags_since = (door.lags_since or now) if door.unsent() > limits.unsent else None
            overdue = [each for each in (door.left_at, door.lags_since) if each and now - each > limits.leave_seconds]
            if overdue:
                door.cut()
