"""Who is in which room, kept whole while many clients come and go at once.

python-socketio's own rooms are meant for one thread: of two clients that are first in a room at the same moment, one
can end up in none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from socketio import Manager


class Rooms(Manager):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()

    def pre_connect(self, eio_sid: str, namespace: str) -> Any:
        with self._lock:
            return super().pre_connect(eio_sid, namespace)

    def connect(self, sid: str, namespace: str) -> Any:
        with self._lock:
            return super().connect(sid, namespace)

    def pre_disconnect(self, sid: str, namespace: str) -> Any:
        with self._lock:
            return super().pre_disconnect(sid, namespace)

    def disconnect(self, sid: str, namespace: str, **options: Any) -> Any:
        with self._lock:
            return super().disconnect(sid, namespace, **options)

    def basic_enter_room(self, sid: str, namespace: str, room: str | None, eio_sid: str | None = None) -> None:
        with self._lock:
            super().basic_enter_room(sid, namespace, room, eio_sid=eio_sid)

    def basic_leave_room(self, sid: str, namespace: str, room: str | None) -> None:
        with self._lock:
            super().basic_leave_room(sid, namespace, room)

    def get_participants(self, namespace: str, room: Any) -> Iterator[tuple[str, str]]:
        with self._lock:
            return iter(list(super().get_participants(namespace, room)))
