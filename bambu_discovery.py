"""Finds Bambu Lab printers on the local network by what they broadcast, and asks for them where that is wanted.

A convenience: broadcasts cross neither container bridges nor VLANs, so typing a printer's address is the way that
always works. Nothing found is believed: see bambu.notice for what is let in, bambu.tls for who proves to be a printer.
"""

from __future__ import annotations

import logging
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from bambu.notice import DATAGRAM_LIMIT_BYTES, SERVICE, ConnectMode, FoundPrinter, read_notice

__all__ = ["EVERY_PRINTER", "SSDP_PORT", "ConnectMode", "Discovery", "FoundPrinter"]

SSDP_PORT = 2021
EVERY_PRINTER = (("239.255.255.250", SSDP_PORT), ("255.255.255.255", SSDP_PORT))
"""Where a search reaches the printers of the network."""

_GROUP = "239.255.255.250"
_SEARCH = (
    f'M-SEARCH * HTTP/1.1\r\nHost: {_GROUP}:{SSDP_PORT}\r\nMan: "ssdp:discover"\r\nMX: 3\r\nST: {SERVICE}\r\n\r\n'
).encode()
# Printers speak every five seconds. Who has been still for a minute makes room for another when there is none.
_STILL = timedelta(seconds=60)
_TOLD_AGAIN = timedelta(seconds=5)
_REST_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    found: FoundPrinter
    told: FoundPrinter
    told_at: datetime


def _share(listening: socket.socket) -> None:
    """The makers' own programs listen on the same port of the same computer."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


class Discovery:
    """Listens on UDP `port` of `host` (0 takes a free one, read back as `port`) in a thread of its own, once started.

    `on_found` is called in that thread for a printer heard for the first time and for one that says something new about
    itself, at most every five seconds for each; a new time or signal is nothing new. `clock` gives aware UTC times.
    `search_to`: where to ask for printers, at the start and every `search_every_seconds`; nowhere by default, since
    printers speak without being asked and not all of them answer. At most `entries` printers are remembered, each
    until it has said nothing for as long as it announced (30 minutes): beyond them a newcomer takes the place of one
    that has been still for a minute, and while there is none it is not heard, so that a flood does not push out those
    that are known. Public methods may be called from any thread.
    """

    def __init__(
        self,
        on_found: Callable[[FoundPrinter], None],
        clock: Callable[[], datetime],
        *,
        host: str = "",
        port: int = SSDP_PORT,
        search_to: Sequence[tuple[str, int]] = (),
        search_every_seconds: float = 60.0,
        entries: int = 512,
    ) -> None:
        self.port = port
        self._on_found, self._clock = on_found, clock
        self._host = host
        self._search_to, self._search_every_seconds = tuple(search_to), search_every_seconds
        self._limit = entries
        self._entries: dict[str, _Entry] = {}
        self._guard = threading.Lock()
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._bell: socket.socket | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Raises OSError if the port cannot be had: another program holds it alone. Once closed, it stays closed."""
        if self._thread is not None or self._closed.is_set():
            return
        listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            if self.port:
                _share(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            listening.bind((self._host, self.port))
        except OSError:
            listening.close()
            raise
        # Some firmware multicasts too; without a network that can, broadcasts are heard all the same.
        with suppress(OSError):
            joined = struct.pack("4s4s", socket.inet_aton(_GROUP), socket.inet_aton("0.0.0.0"))
            listening.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        listening.setblocking(False)
        self._socket = listening
        self.port = int(listening.getsockname()[1])
        self._bell, ringing = socket.socketpair()
        self._thread = threading.Thread(
            target=self._run, args=(listening, ringing), name="printer-discovery", daemon=True
        )
        self._thread.start()

    def close(self, wait_seconds: float = 5.0) -> None:
        """Ends the thread and waits for it."""
        self._closed.set()
        if self._bell is not None:
            self._bell.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(wait_seconds)

    def found(self) -> tuple[FoundPrinter, ...]:
        """The printers heard lately, by name."""
        now = self._clock()
        with self._guard:
            self._forget(now)
            known = [entry.found for entry in self._entries.values()]
        return tuple(sorted(known, key=lambda printer: (printer.name.casefold(), printer.serial)))

    def search(self) -> None:
        """Asks for printers now, out of turn; answers come by `on_found`. Does nothing unless started."""
        listening = self._socket
        if listening is None:
            return
        for address in self._search_to:
            # A network without a way there; printers speak by themselves too. Or the socket has just been closed.
            with suppress(OSError):
                listening.sendto(_SEARCH, address)

    def _run(self, listening: socket.socket, ringing: socket.socket) -> None:
        search_due = time.monotonic()
        with listening, ringing, selectors.DefaultSelector() as selector:
            selector.register(listening, selectors.EVENT_READ)
            selector.register(ringing, selectors.EVENT_READ)
            while not self._closed.is_set():
                wait: float | None = None
                if self._search_to:
                    if time.monotonic() >= search_due:
                        self.search()
                        search_due = time.monotonic() + self._search_every_seconds
                    wait = max(0.0, search_due - time.monotonic())
                if any(key.fileobj is listening for key, _ in selector.select(wait)):
                    self._listen(listening)
        self._socket = None

    def _listen(self, listening: socket.socket) -> None:
        try:
            datagram, (source, *_) = listening.recvfrom(DATAGRAM_LIMIT_BYTES + 1)
        except BlockingIOError:
            return  # it was not worth its checksum
        except OSError:
            _log.warning("cannot listen for printers for a moment", exc_info=True)
            self._closed.wait(_REST_SECONDS)
            return
        found = read_notice(datagram, source, self._clock())
        if found is not None and self._is_news(found):
            try:
                self._on_found(found)
            except Exception:  # noqa: BLE001 - the listener's fault must not end the listening
                _log.exception("a listener for found printers failed")

    def _is_news(self, found: FoundPrinter) -> bool:
        """Remembers a printer; true if it has something to tell and has not just told something."""
        now = found.heard_at
        with self._guard:
            entry = self._entries.get(found.serial)
            if entry is None or entry.found.forget_at <= now:
                if entry is None and not self._make_room(now):
                    return False
                self._entries[found.serial] = _Entry(found, found, now)
                return True
            entry.found = found
            if found == entry.told or abs(now - entry.told_at) < _TOLD_AGAIN:
                return False
            entry.told, entry.told_at = found, now
            return True

    def _make_room(self, now: datetime) -> bool:
        if len(self._entries) < self._limit:
            return True
        self._forget(now)
        if len(self._entries) < self._limit:
            return True
        stillest = min(self._entries.values(), key=lambda entry: entry.found.heard_at)
        if now - stillest.found.heard_at < _STILL:
            return False
        del self._entries[stillest.found.serial]
        return True

    def _forget(self, now: datetime) -> None:
        for serial in [serial for serial, entry in self._entries.items() if entry.found.forget_at <= now]:
            del self._entries[serial]
