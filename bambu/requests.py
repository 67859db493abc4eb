"""What other threads ask of the one that holds a connection: acts to be done with it, each with its future."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from bambu.session import Session
from bambu.wire import NotSent


class Requests:
    """A queue with a socket to wait for. `post` is for any thread, all else for the one that serves."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[Session], Any], Future[Any]]] = deque()
        self._bell, self._heard = socket.socketpair()
        self._bell.setblocking(False)
        self._heard.setblocking(False)

    def post(self, act: Callable[[Session], Any]) -> Future[Any]:
        """Has something done with the session. The future raises NotSent, or is cancelled when nobody serves."""
        done: Future[Any] = Future()
        self._waiting.append((act, done))
        self.wake()
        return done

    def wake(self) -> None:
        """Makes `fileno` readable; may be called from any thread."""
        try:
            self._bell.send(b"\0")
        except BlockingIOError:
            pass  # it has been rung more often than heard
        except OSError:
            self._refuse()  # closed

    def fileno(self) -> int:
        """Readable when there is something to serve or to see."""
        return self._heard.fileno()

    def serve(self, session: Session | None, otherwise: str) -> None:
        """Does what is asked; without a session each is told NotSent, for the reason `otherwise`."""
        try:
            while self._heard.recv(4096):
                pass
        except BlockingIOError:
            pass  # that was all
        while self._waiting:
            act, done = self._waiting.popleft()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                if session is None:
                    raise NotSent(otherwise)
                done.set_result(act(session))
            except Exception as problem:  # noqa: BLE001 - it belongs to whoever asked, and waits for it
                done.set_exception(problem)

    def close(self) -> None:
        """Serves no more: what waits and what comes is cancelled."""
        self._bell.close()
        self._heard.close()
        self._refuse()

    def _refuse(self) -> None:
        while self._waiting:
            self._waiting.popleft()[1].cancel()
