"""The live channel as browsers use it: a real server on a free port, and real Socket.IO clients."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import socketio
from flask import Flask
from werkzeug.serving import make_server

from live import Live

PATIENCE_SECONDS = 10.0


@contextlib.contextmanager
def served(app: Flask) -> Iterator[int]:
    """The port on which the app answers; nobody is connected any more afterwards."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    live: Live = app.extensions["live"]
    try:
        yield server.server_port
    finally:
        for seat in live.seats():
            live.end(seat, "restarting")
        for door in live.doors():
            door.cut()
        server.shutdown()
        thread.join()
        server.server_close()
        eventually(lambda: not live.doors())


def eventually(check: Callable[[], object], what: object = "") -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not check():
        assert time.monotonic() < until, f"it did not happen in time {what}"
        time.sleep(0.01)


class Browser:
    """One page. `heard` is all that it was told, in order."""

    def __init__(self, port: int, token: str | None, **headers: str) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.refusal: Any = None
        self.io = socketio.Client(reconnection=False)
        self.io.on("*", lambda name, *data: self.heard.append((name, data[0] if data else None)))
        self.io.on("connect_error", self._refused)
        auth = {"token": token} if token is not None else None
        with contextlib.suppress(socketio.exceptions.ConnectionError):
            self.io.connect(
                f"http://127.0.0.1:{port}", auth=auth, headers=headers, transports=["websocket"], wait_timeout=5
            )
        if self.io.connected:
            eventually(lambda: self.told("welcome"), self.heard)

    def _refused(self, why: Any = None) -> None:
        self.refusal = why

    def told(self, name: str) -> list[Any]:
        return [data for kind, data in list(self.heard) if kind == name]

    @property
    def event_ids(self) -> list[int]:
        return [event["id"] for event in self.told("event")]

    @property
    def last_event_id(self) -> int:
        """As a page would keep it."""
        return max([self.told("welcome")[-1]["last_event_id"], *self.event_ids])

    def ask(self, name: str, **data: Any) -> Any:
        return self.io.call(name, data, timeout=PATIENCE_SECONDS)

    def resume(self, after: int | str) -> list[dict[str, Any]]:
        """All that is said to have happened after an event."""
        events: list[dict[str, Any]] = []
        following: int | str | None = after
        while following is not None:
            page = self.ask("resume", after=following)
            events, following = events + page["events"], page["next"]
        return events

    def close(self) -> None:
        self.io.disconnect()


class RawClient:
    """Somebody who speaks WebSocket by hand, and says what no client of ours would."""

    def __init__(self, port: int, path: str = "/socket.io/?EIO=4&transport=websocket", **headers: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        said = {
            "Host": f"127.0.0.1:{port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
            "Sec-WebSocket-Version": "13",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items() if value)]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self.answer = b""
        while b"\r\n\r\n" not in self.answer and (more := self.socket.recv(1)):
            self.answer += more

    @property
    def status(self) -> int:
        return int(self.answer.split()[1])

    def send(self, payload: bytes, opcode: int = 1, *, is_last: bool = True) -> None:
        """A frame, masked with zeros; the last one of its message."""
        length = len(payload)
        head = bytes([(0x80 if is_last else 0) | opcode])
        if length < 126:
            head += bytes([0x80 | length])
        elif length < 65536:
            head += bytes([0x80 | 126]) + length.to_bytes(2, "big")
        else:
            head += bytes([0x80 | 127]) + length.to_bytes(8, "big")
        self.socket.sendall(head + b"\0\0\0\0" + payload)

    def log_in(self, token: str) -> None:
        self.send(b"40" + json.dumps({"token": token}).encode())

    def read_to_the_end(self) -> bytes:
        """Everything up to the moment at which the server hangs up. Raises TimeoutError where it does not."""
        everything = b""
        with contextlib.suppress(ConnectionError):
            while more := self.socket.recv(65536):
                everything += more
        return everything

    def close(self) -> None:
        self.socket.close()
