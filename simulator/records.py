"""What a simulated printer remembers of what it was told, for tests to hold against what should have been said."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class StartRecord:
    """One `project_file` that arrived. `at_seconds` is simulated time since power-on, `heard_at` real time.

    `verdict`: "accepted", "ignored" (no answer) or "refused", then `error` is the code it was refused with.
    """

    at_seconds: float
    heard_at: datetime | None
    subtask_id: str
    url: str
    param: str
    verdict: str
    error: int = 0


@dataclass(frozen=True)
class CommandRecord:
    """One command that arrived, understood or not; `body` is its whole section."""

    at_seconds: float
    heard_at: datetime | None
    section: str
    command: str
    body: dict[str, Any]


@dataclass
class ConnectionRecord:
    """One MQTT login. `verdict`: "accepted" or "refused"; `ended_at` stays None while it lasts."""

    client_id: str
    username: str
    verdict: str
    connected_at: datetime
    ended_at: datetime | None = None


class NotReadyError(Exception):
    """A button was pressed that does nothing in the present state."""
