"""Live status of an account's printers over the cloud's MQTT: one supervised connection for all of them.

It listens, and asks each printer once for everything; it carries no command (see bambu_cloud). What the printers report
goes out as Heard (before, after), as from bambu_client. A thread of its own holds the connection and makes it anew when
it breaks; callbacks run in that thread and should do no more than put things into a queue.
"""

from __future__ import annotations

import contextlib
import logging
import random
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime

from bambu.cloud_reading import SERIAL
from bambu.cloud_types import HOSTS, CloudHosts, CloudSession
from bambu.cloud_watch import CloudWatch
from bambu.cloud_wire import CloudWire
from bambu.commands import Command
from bambu.lifeline import backoff_seconds
from bambu.types import Heard, LinkStatus, LinkTimings, LinkView
from bambu.wire import Ending

_log = logging.getLogger(__name__)

_CLOSED = "the link is closed"
_LOG_IN_AGAIN = "Bambu Lab's cloud refuses the login: log in again"


class _Over(Exception):
    """A connection is over. `status` is what the links are now, None to leave that to how long each was heard."""

    def __init__(self, reason: str, status: LinkStatus | None = None) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


class CloudLink:
    """See the module. `clock` gives aware UTC times, `chance` 0 to 1.

    `on_heard(serial, heard)` and `on_link(serial, status, reason)` name the printer; a status of `connected` means that
    a full report came. A login that the cloud refuses makes every printer `unauthorized` and ends the thread: a new
    login needs a new link. `hosts`: those of the login's region. Of `timings`, the answer to commands plays no part.
    """

    def __init__(
        self,
        session: CloudSession,
        serials: Iterable[str],
        *,
        on_heard: Callable[[str, Heard], None],
        on_link: Callable[[str, LinkStatus, str | None], None],
        clock: Callable[[], datetime],
        hosts: CloudHosts = HOSTS["global"],
        timings: LinkTimings | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Raises ValueError for a serial number that is none, and when there are none at all."""
        self._serials = tuple(dict.fromkeys(serials))
        if not self._serials or not all(SERIAL.fullmatch(serial) for serial in self._serials):
            raise ValueError("a serial number is letters and digits, and there must be one")
        self._account, self._hosts, self._chance = session, hosts, chance
        self._timings = timings or LinkTimings()
        self._tell_heard, self._tell_link = on_heard, on_link
        self._watches = {
            serial: CloudWatch(
                serial,
                self._timings,
                clock=clock,
                now=time.monotonic,
                ask=self._ask,
                on_heard=lambda serial, heard: self._call(self._tell_heard, serial, heard),
                on_link=lambda serial, status, reason: self._call(self._tell_link, serial, status, reason),
            )
            for serial in self._serials
        }
        self._wire: CloudWire | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failures = 0
        self._sequence = random.randrange(20000, 29000)
        self._wake_in, self._wake_out = socket.socketpair()
        self._status = LinkStatus.connecting
        self._reason: str | None = None

    @property
    def status(self) -> LinkStatus:
        """How the connection to the cloud itself stands: `connected` says nothing of any printer."""
        return self._status

    @property
    def reason(self) -> str | None:
        return self._reason

    def view(self, serial: str) -> LinkView:
        """One consistent picture of one printer's link. Raises KeyError for a printer that is not watched."""
        return self._watches[serial].view

    def open(self) -> None:
        """Starts connecting, and returns at once. Once closed, a link stays closed."""
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._run, name=f"cloud-{self._account.uid}", daemon=True)
            self._thread.start()

    def close(self, wait_seconds: float = 5.0) -> None:
        """Says goodbye and ends the thread; waits for it, but not for a connection being made."""
        self._closing = True
        if self._thread is None:
            self._shut()
            return
        with contextlib.suppress(OSError):  # it has ended by itself
            self._wake_in.send(b"\0")
        if self._thread is not threading.current_thread():
            self._thread.join(wait_seconds)

    def _run(self) -> None:
        try:
            while not self._closing:
                began = time.monotonic()
                try:
                    self._live()
                except _Over as over:
                    self._settle(over.reason, over.status)
                    if over.status is LinkStatus.unauthorized:
                        return  # the same token will be refused again; a person must act
                except Exception:  # noqa: BLE001 - paho trips over odd packets in ways of its own; the thread must live
                    _log.exception("the link to the cloud stumbled")
                    self._settle("the cloud sent something that cannot be understood", None)
                # A connection that lasted was no failure, however it ended.
                lasted = time.monotonic() - began > self._timings.offline
                self._failures = 1 if lasted else self._failures + 1
                self._rest(backoff_seconds(self._failures, self._timings, self._chance()))
        finally:
            self._shut()

    def _shut(self) -> None:
        self._wake_in.close()
        self._wake_out.close()
        if self._closing:
            self._status, self._reason = LinkStatus.offline, _CLOSED
            for watch in self._watches.values():
                watch.view = replace(watch.view, status=LinkStatus.offline, reason=_CLOSED)

    def _live(self) -> None:
        """One connection, from its making to its end. Raises _Over, unless the link is being closed."""
        try:
            wire = CloudWire(
                self._hosts,
                self._account,
                self._serials,
                keepalive_seconds=self._timings.keepalive,
                connect_seconds=self._timings.connect,
                on_ready=self._ready,
                on_payload=lambda serial, payload: self._watches[serial].hear(payload),
            )
        except OSError:
            raise _Over("the file of certificate authorities cannot be read", LinkStatus.error) from None
        try:
            self._connect(wire)
            self._wire = wire
            self._converse(wire)
        finally:
            self._wire = None
            wire.close()

    def _connect(self, wire: CloudWire) -> None:
        try:
            wire.connect()
        except ssl.SSLCertVerificationError:
            raise _Over(
                "the machine that answers for Bambu Lab's cloud shows no valid certificate", LinkStatus.error
            ) from None
        except OSError as problem:
            raise _Over(f"Bambu Lab's cloud could not be reached ({type(problem).__name__})") from None

    def _converse(self, wire: CloudWire) -> None:
        connected = time.monotonic()
        with selectors.DefaultSelector() as selector:
            number, watched = wire.fileno(), selectors.EVENT_READ
            selector.register(number, watched)
            selector.register(self._wake_out, selectors.EVENT_READ)
            while not self._closing:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if wire.wants_to_write() else 0)
                if wanted != watched:
                    selector.modify(number, wanted)
                    watched = wanted
                patience = 0.0 if wire.has_more else self._tick_seconds()
                happened = next((events for key, events in selector.select(patience) if key.fd == number), 0)
                wire.pump(
                    readable=wire.has_more or bool(happened & selectors.EVENT_READ),
                    writable=bool(happened & selectors.EVENT_WRITE),
                )
                if wire.ending is not None:
                    raise _ending(wire.ending)
                if self._status is not LinkStatus.connected and time.monotonic() - connected > self._timings.connect:
                    raise _Over("Bambu Lab's cloud does not answer")
                for watch in self._watches.values():
                    watch.tick()

    def _ready(self, refused: frozenset[str]) -> None:
        self._status, self._reason = LinkStatus.connected, None
        for serial, watch in self._watches.items():
            if serial in refused:
                watch.refuse()
            else:
                watch.begin()

    def _ask(self, serial: str, question: Command) -> None:
        if self._wire is not None:
            self._sequence = self._sequence + 1 if self._sequence < 29999 else 20000
            self._wire.ask(serial, question, str(self._sequence))

    def _rest(self, seconds: float) -> None:
        """Waits before the next connection. Too long away is offline."""
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_out, selectors.EVENT_READ)
            while not self._closing and (left := until - time.monotonic()) > 0:
                for watch in self._watches.values():
                    watch.tick()
                selector.select(min(left, self._tick_seconds()))

    def _tick_seconds(self) -> float:
        """Often enough for the shortest of the watches' patiences, and for paho's keepalive."""
        timings = self._timings
        return min(1.0, timings.full_report / 5, timings.silence / 5, timings.offline / 5, timings.connect / 5)

    def _settle(self, reason: str, status: LinkStatus | None) -> None:
        self._status, self._reason = status or LinkStatus.offline, reason
        for watch in self._watches.values():
            watch.lose(reason, status)

    def _call(self, tell: Callable[..., None], *what: object) -> None:
        try:
            tell(*what)
        except Exception:  # noqa: BLE001 - the listener's fault must not cost the connection
            _log.exception("a listener of the cloud's link failed")


def _ending(ending: Ending) -> _Over:
    if ending is Ending.bad_login:
        return _Over(_LOG_IN_AGAIN, LinkStatus.unauthorized)
    if ending is Ending.refused:
        return _Over("Bambu Lab's cloud refuses the connection")
    return _Over("Bambu Lab's cloud closed the connection")
