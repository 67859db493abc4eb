"""One HTTP POST to addresses that were checked beforehand, bounded as a whole in time and in bytes read.

`requests` and `urllib3` bound each read but not their sum (a server that drips one byte a second holds them for ever)
nor the weight of the headers, and resolve the name once more. Hence `http.client`, on a socket that keeps the bounds.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from delivery.webhook_target import Address, WebhookTarget

MAX_IDLE_CONNECTIONS = 64
MAX_IDLE_SECONDS = 15.0
_READ_BYTES = 16_384


class AnswerTooLong(OSError):
    """More bytes came than one exchange may bring."""


class Bounds:
    """What one exchange may still use: the seconds until its deadline and the bytes it may read, headers included."""

    def __init__(self, timeout_seconds: float, max_answer_bytes: int) -> None:
        self._deadline = time.monotonic() + timeout_seconds
        self.bytes_left = max_answer_bytes
        self.answer_began = False

    def seconds_left(self) -> float:
        """Always above 0. Raises TimeoutError at the deadline."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for this exchange is over")
        return left


class PinnedConnections:
    """Posts to checked addresses and keeps the connections alive for the next post. Safe to share between threads.

    Proxies of the environment are not used and redirects are not followed: `http.client` knows neither.
    """

    def __init__(self, tls_context: ssl.SSLContext) -> None:
        self._tls_context = tls_context
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()

    def post(
        self,
        target: WebhookTarget,
        addresses: Sequence[Address],
        headers: Mapping[str, str],
        body: bytes,
        bounds: Bounds,
        kept_bytes: int,
    ) -> tuple[int, bytes]:
        """Post once to the first of `addresses` that takes a connection: the status and the answer's first bytes.

        Once the status has come, the rest of the answer decides nothing: it is read as far as the bounds reach.

        Raises:
            OSError: no connection, no valid certificate, no status in time (TimeoutError), too much (AnswerTooLong).
            http.client.HTTPException: the answer is not HTTP.
        """
        idle = self._take_idle(target, addresses)
        if idle is not None:
            try:
                return self._exchange(idle, headers, body, bounds, kept_bytes)
            except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                if bounds.answer_began:
                    raise
                # The receiver closed the idle connection in the very moment that we used it.
        return self._exchange(_Connection(target, addresses, self._tls_context), headers, body, bounds, kept_bytes)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(
        self, connection: _Connection, headers: Mapping[str, str], body: bytes, bounds: Bounds, kept_bytes: int
    ) -> tuple[int, bytes]:
        kept = False
        try:
            connection.begin(bounds)
            connection.request("POST", connection.target.path, body, headers)
            response = connection.getresponse()
            answer, is_whole = _read(response, kept_bytes)
            kept = is_whole and not response.will_close
            response.close()
            if kept:
                self._keep(connection)
            return response.status, answer
        finally:
            if not kept:
                connection.close()

    def _take_idle(self, target: WebhookTarget, addresses: Sequence[Address]) -> _Connection | None:
        """An idle connection to this very site, at an address that it has today."""
        stale_before = time.monotonic() - MAX_IDLE_SECONDS
        with self._lock:
            stale = [each for each in self._idle if each.idle_since < stale_before or each.is_readable()]
            fresh = [each for each in self._idle if each not in stale]
            found = next((each for each in reversed(fresh) if each.reaches(target, addresses)), None)
            self._idle = [each for each in fresh if each is not found]
        for connection in stale:
            connection.close()
        return found

    def _keep(self, connection: _Connection) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            self._idle.append(connection)
            surplus = self._idle[:-MAX_IDLE_CONNECTIONS]
            self._idle = self._idle[-MAX_IDLE_CONNECTIONS:]
        for oldest in surplus:
            oldest.close()


def _read(response: http.client.HTTPResponse, kept_bytes: int) -> tuple[bytes, bool]:
    """The first bytes of the body, and whether it was read to its end."""
    kept = bytearray()
    try:
        while not response.isclosed() and response.length != 0:
            kept += response.read1(_READ_BYTES)[: kept_bytes - len(kept)]
    except (OSError, http.client.HTTPException):
        return bytes(kept), False
    return bytes(kept), response.length in (0, None)


class _Connection(http.client.HTTPConnection):
    """A connection to one of some checked addresses. Host header, SNI and certificate check use the URL's own name."""

    def __init__(self, target: WebhookTarget, addresses: Sequence[Address], tls_context: ssl.SSLContext) -> None:
        self.default_port = 443 if target.scheme == "https" else 80
        super().__init__(target.host, target.port)
        self.target = target
        self.idle_since = 0.0
        self._addresses = addresses
        self._tls_context = tls_context
        self._address: Address | None = None
        self._bounded: _BoundedSocket | None = None

    def begin(self, bounds: Bounds) -> None:
        """Start an exchange within these bounds, connecting if that is still to be done."""
        if self._bounded is None:
            self.sock = self._bounded = _BoundedSocket(self._opened(bounds), bounds)
        self._bounded.bounds = bounds

    def reaches(self, target: WebhookTarget, addresses: Sequence[Address]) -> bool:
        """Whether this connection leads to the same site at one of these addresses."""
        ours = (self.target.scheme, self.target.host, self.target.port)
        return ours == (target.scheme, target.host, target.port) and self._address in addresses

    def is_readable(self) -> bool:
        """Whether bytes or an end wait on an idle connection; either way it is of no more use."""
        return self._bounded is None or self._bounded.is_readable()

    def _opened(self, bounds: Bounds) -> socket.socket:
        plain = self._connected(bounds)
        if self.target.scheme == "http":
            return plain
        try:
            plain.settimeout(bounds.seconds_left())
            return self._tls_context.wrap_socket(plain, server_hostname=self.target.host)
        except BaseException:
            plain.close()
            raise

    def _connected(self, bounds: Bounds) -> socket.socket:
        failure: OSError = OSError("the host name has no address")
        for tried, address in enumerate(self._addresses):
            share = bounds.seconds_left() / (len(self._addresses) - tried)
            try:
                plain = socket.create_connection((str(address), self.target.port), timeout=share)
            except OSError as fault:
                failure = fault
                continue
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._address = address
            return plain
        raise failure


class _BoundedSocket:
    """As much of a socket as `http.client` uses; every send and read of it has only what the exchange has left."""

    def __init__(self, sock: socket.socket, bounds: Bounds) -> None:
        self._sock = sock
        self.bounds = bounds

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._sock.settimeout(self.bounds.seconds_left())
            rest = rest[self._sock.send(rest) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_BoundedReader(self._sock, self.bounds))

    def is_readable(self) -> bool:
        poll = select.poll()  # select() fails on descriptors above 1023
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        self._sock.close()


class _BoundedReader(io.RawIOBase):
    """Stays readable after the socket was closed, as http.client closes it as soon as it has read the headers."""

    def __init__(self, sock: socket.socket, bounds: Bounds) -> None:
        self._sock = sock
        self._bounds = bounds
        self._incoming = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._bounds.bytes_left <= 0:
            raise AnswerTooLong("the answer is too long")
        self._sock.settimeout(self._bounds.seconds_left())
        count = self._incoming.readinto(memoryview(buffer)[: self._bounds.bytes_left])
        if count:
            self._bounds.answer_began = True
            self._bounds.bytes_left -= count
        return count

    def close(self) -> None:
        self._incoming.close()
        super().close()
