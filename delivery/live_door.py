"""The door of the live channel: one client's WebSocket, held down to the few frames that our clients send.

Flask-SocketIO's own wrapper takes messages of any size into memory, parses whatever comes before anybody has logged in,
and waits without end for a client that no longer reads. This one takes its place.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qs

import orjson
from simple_websocket import ConnectionClosed, Server
from simple_websocket.errors import SimpleWebsocketError
from wsproto.utilities import ProtocolError

PATH = "/socket.io/"
# A token and an id take less than 2 kB.
MOST_BYTES = 8 * 1024
# Frames that came while an earlier one is being answered: a client of ours waits for its answer.
MOST_UNREAD = 64
BURST, FRAMES_A_SECOND = 40.0, 20.0
# Whoever has not said who they are by then is nobody.
LOGIN_SECONDS = 5.0
LOOK_SECONDS = 1.0
MOST_BRACKETS = 16

# Engine.IO 4 and Socket.IO 5: a pong, a close, a connect with its payload, a disconnect, an event with or without
# acknowledgement. Only in the namespace "/", nothing binary.
FRAME = re.compile(r"3|1|41|(40)([{].*)?|42\d{0,9}([\[].*)", re.ASCII | re.DOTALL)
EVENTS = frozenset({"resume", "token"})

StartResponse = Callable[..., Any]


class EngineSocket(Protocol):
    """What is asked of Engine.IO's own object of a client."""

    sid: str
    closed: bool
    queue: Any

    def close(self, wait: bool = True, abort: bool = False, reason: Any = None) -> None: ...


class Unread(list[Any]):
    """What a client sent and nobody has looked at. One that sends faster than it is answered is cut off."""

    def append(self, message: Any) -> None:
        if len(self) >= MOST_UNREAD:
            raise OSError("more than anybody reads")
        super().append(message)


class BoundedServer(Server):  # type: ignore[misc]
    def handshake(self) -> None:
        # Before the thread that fills it begins.
        self.input_buffer = Unread()
        super().handshake()


class Door:
    """Engine.IO's `websocket` for one client. `on_open` and `on_close` are called in the client's own thread.

    Who passed the login is `seat`, set by whoever checks it; a door without a seat shuts after its one attempt.
    """

    def __init__(
        self,
        handler: Callable[[Door], object],
        server: object,
        *,
        on_open: Callable[[Door], None],
        on_close: Callable[[Door], None],
    ) -> None:
        self._handler, self._on_open, self._on_close = handler, on_open, on_close
        self.engine: EngineSocket = handler.__self__  # type: ignore[attr-defined]
        self.seat: object | None = None
        # Ends the client's stay with a word for a program; set with the seat.
        self.end: Callable[[str], None] | None = None
        # Set when nothing more is read of this client; what it has not been sent by then may be on its way.
        self.left_at: float | None = None
        # Since when more waits for this client than it should.
        self.lags_since: float | None = None
        self._ws: BoundedServer | None = None
        self._socket: socket.socket | None = None
        self.login_seconds = LOGIN_SECONDS
        self._has_greeted = False
        self._opened_at = self._refilled_at = time.monotonic()
        self._tokens = BURST

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        self._socket = environ.get("werkzeug.socket") or environ.get("gunicorn.socket")
        environ["live.door"] = self
        try:
            self._ws = BoundedServer(environ, max_message_size=MOST_BYTES)
        except (SimpleWebsocketError, ProtocolError, OSError):
            self.engine.close(wait=False, abort=True)
            start_response("400 Bad Request", [("Content-Length", "0"), ("Connection", "close")])
            return []
        self._on_open(self)
        try:
            self._handler(self)
        finally:
            self.engine.close(wait=False, abort=True)
            self._on_close(self)
            self.cut()
            self._drain()
        # How each server is told that the socket is no longer its business.
        if "gunicorn.socket" in environ:
            raise StopIteration
        raise ConnectionError

    def wait(self) -> str | None:
        """The next frame; None when the client is gone or has to go."""
        frame = self._receive() if self.seat is not None or not self._has_greeted else None
        if frame is not None and not self._may_say(frame):
            if self.end is not None:
                self.end("bad_message")
            frame = None
        if frame is None:
            self.left_at = time.monotonic()
        return frame

    def _receive(self) -> Any:
        ws = self._ws
        while ws is not None and (ws.connected or ws.input_buffer) and not self.engine.closed:
            try:
                # Never without end: it can miss that the connection was closed at that very moment.
                frame = ws.receive(timeout=LOOK_SECONDS)
            except ConnectionClosed:
                return None
            if frame is not None:
                self._pay()
                return frame
            if not self._has_greeted and time.monotonic() - self._opened_at > self.login_seconds:
                return None
        return None

    def _may_say(self, frame: Any) -> bool:
        """The login comes first, and once."""
        if not is_well_formed(frame):
            return False
        if frame.startswith("40") and not self._has_greeted:
            self._has_greeted = True
            return True
        return frame == "3" or (self._has_greeted and not frame.startswith("40"))

    def _pay(self) -> None:
        """A frame costs a token. Without one this client waits, and what it sends meanwhile piles up outside."""
        now = time.monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._refilled_at) * FRAMES_A_SECOND)
        self._refilled_at = now
        if self._tokens < 1.0:
            time.sleep((1.0 - self._tokens) / FRAMES_A_SECOND)
        self._tokens -= 1.0

    def send(self, message: str | bytes) -> None:
        ws = self._ws
        if ws is None:
            raise OSError("not open")
        try:
            ws.send(message)
        except ConnectionClosed:
            raise OSError("closed") from None

    def close(self) -> None:
        if self._ws is not None:
            with contextlib.suppress(ConnectionClosed, ProtocolError, OSError):
                self._ws.close()

    def unsent(self) -> int:
        """How many messages wait for this client to read."""
        count: int = self.engine.queue.qsize()
        return count

    def cut(self) -> None:
        """Without a word: whoever reads from or writes to this client is freed at once."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _drain(self) -> None:
        """What still lies in the socket is no next request."""
        with contextlib.suppress(OSError):
            for _ in range(MOST_UNREAD):
                if self._socket is None or not self._socket.recv(65536):
                    return


def is_well_formed(frame: object) -> bool:
    """Whether this is something that a client of ours may say."""
    found = FRAME.fullmatch(frame) if isinstance(frame, str) else None
    if found is None:
        return False
    text = found[2] or found[3]
    if not text:
        return True
    if text.count("[") + text.count("{") > MOST_BRACKETS:
        return False
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    if found[1]:
        return isinstance(value, dict)
    return isinstance(value, list) and len(value) == 2 and value[0] in EVENTS and isinstance(value[1], dict)


def is_knock(environ: Mapping[str, Any]) -> bool:
    """Whether a request wants to open a WebSocket here, and says so as RFC 6455 and Engine.IO 4 want it."""
    text = environ.get("QUERY_STRING", "")
    query = parse_qs(text) if len(text) < 1000 else {}
    return (
        environ["PATH_INFO"] == PATH
        and environ["REQUEST_METHOD"] == "GET"
        and environ.get("HTTP_UPGRADE", "").casefold() == "websocket"
        and "upgrade" in [each.strip() for each in environ.get("HTTP_CONNECTION", "").casefold().split(",")]
        and environ.get("HTTP_SEC_WEBSOCKET_VERSION") == "13"
        and _is_key(environ.get("HTTP_SEC_WEBSOCKET_KEY", ""))
        and query.get("EIO") == ["4"]
        and query.get("transport") == ["websocket"]
        and "sid" not in query
    )


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text.encode(), validate=True)) == 16
    except (binascii.Error, UnicodeEncodeError):
        return False
