"""Keeps a connection to one printer alive: makes it, watches it, makes it anew. The thread that alone touches the wire.

Other threads hand it requests; it serves them between two looks at the socket. A thread for each printer is cheap
enough for hundreds (`make bench`): one loop over 400 sockets saved 2 % of a core and 30 MB, and would have to make the
connections, which block, elsewhere. To have it all the same, `_converse` is what would become one selector over many
wires: a Session says when it is due, a Wire what it waits for.
"""

from __future__ import annotations

import logging
import random
import selectors
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from typing import Any

import bambu_report as report
from bambu.commands import Answer
from bambu.requests import Requests
from bambu.session import Session
from bambu.tls import NO_AUTHORITY, IdentityRefused, PrinterTlsContext, Trust
from bambu.types import Heard, LinkStatus, LinkTimings, LinkView, PrinterAddress
from bambu.wire import Ending, NotSent, Wire, unreachable

_log = logging.getLogger(__name__)

# Unlike epoll it takes no descriptor of its own, of which a process may by default have 1024, and like epoll it has no
# limit on their numbers.
_Selector = getattr(selectors, "PollSelector", selectors.DefaultSelector)


class _Over(Exception):
    """A connection is over. `status` is what the link is now, None to leave that to how long ago anything was heard."""

    def __init__(self, reason: str, status: LinkStatus | None = None, *, line_works: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.status, self.line_works = reason, status, line_works


class Lifeline:
    """See the module. `clock` gives aware UTC times, `chance` 0 to 1; the callbacks run in the thread."""

    def __init__(
        self,
        address: PrinterAddress,
        timings: LinkTimings,
        *,
        clock: Callable[[], datetime],
        chance: Callable[[], float],
        on_heard: Callable[[Heard], None],
        on_answer: Callable[[Answer], None],
        on_link: Callable[[LinkStatus, str | None], None],
    ) -> None:
        self.view = LinkView()
        self._address, self._timings, self._clock, self._chance = address, timings, clock, chance
        self._tell_heard, self._tell_answer, self._tell_link = on_heard, on_answer, on_link
        self._thread: threading.Thread | None = None
        self._closing = False
        self._requests = Requests()
        # A first id that was the same after each restart was refused as a replay; the makers' programs use this range.
        self._sequence = random.randrange(20000, 29000)
        self._obeys: bool | None = None
        self._trust = Trust(address.serial, address.ca_file, address.fingerprint)
        self._heard_last: float | None = None
        self._failures = 0

    @property
    def is_current_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def open(self) -> None:
        """Starts the thread. Once closed, a lifeline stays closed."""
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._run, name=f"printer-{self._address.serial}", daemon=True)
            self._thread.start()

    def close(self, wait_seconds: float) -> None:
        """Ends the connection and the thread, and waits for it."""
        self._closing = True
        self._requests.wake()
        if self._thread is not None and not self.is_current_thread:
            self._thread.join(wait_seconds)

    def post(self, act: Callable[[Session], Any]) -> Future[Any]:
        """Has something done with the session, in the thread; see bambu.requests."""
        return self._requests.post(act)

    def _run(self) -> None:
        try:
            while not self._closing:
                try:
                    self._live()
                except _Over as over:
                    self._failures += 1
                    self._settle(over.reason, over.status)
                    if over.status is LinkStatus.unauthorized:
                        return  # asking again would lock the code's owner out; a person must act
                except Exception:  # noqa: BLE001 - paho trips over odd packets in ways of its own; the thread must live
                    _log.exception("the link to printer %s stumbled", self._address.serial)
                    self._failures += 1
                    self._settle("the printer sent something that cannot be understood", None)
                self._rest(backoff_seconds(self._failures, self._timings, self._chance()))
        finally:
            self._requests.close()
            if self._closing:
                self.view = replace(self.view, status=LinkStatus.offline, reason="the link is closed")

    def _live(self) -> None:
        """One connection, from its making to its end. Raises _Over, unless the link is being closed."""
        session = Session(
            self.view.generation + 1,
            report.first_raw(self._address.serial, obeys=self._obeys),
            self._timings,
            clock=self._clock,
            now=time.monotonic,
            next_sequence_id=self._next_sequence_id,
            on_heard=self._heard,
            on_answer=lambda answer: self._call(self._tell_answer, answer),
        )
        self.view = replace(self.view, generation=session.generation)
        wire = self._connect(session)
        reason = "the connection was closed"
        line_works = True
        try:
            session.use(wire)
            self._converse(session, wire)
        except NotSent as problem:
            reason, line_works = problem.reason, False
            raise _Over(reason) from None
        except _Over as over:
            reason, line_works = over.reason, over.line_works
            raise
        finally:
            self._obeys = self._obeys if session.obeys is None else session.obeys
            if line_works:
                wire.close()
            else:
                wire.abort()
            session.end(reason)

    def _connect(self, session: Session) -> Wire:
        for trust in self._trust.ways():
            try:
                tls = PrinterTlsContext(trust)
            except OSError:
                raise _Over("the file of certificate authorities cannot be read", LinkStatus.error) from None
            wire = Wire(
                self._address.host,
                self._address.mqtt_port,
                self._address.serial,
                self._address.access_code,
                tls,
                keepalive_seconds=self._timings.keepalive,
                connect_seconds=self._timings.connect,
                on_ready=session.begin,
                on_payload=session.hear,
            )
            try:
                wire.connect()
            except IdentityRefused as refused:
                raise _Over(refused.reason, LinkStatus.error) from None
            except ssl.SSLCertVerificationError:
                continue
            except OSError as problem:
                raise _Over(unreachable(problem)) from None
            self._trust = self._trust.pinning(tls.seen_fingerprint)
            self.view = replace(self.view, fingerprint=tls.seen_fingerprint)
            return wire
        raise _Over(NO_AUTHORITY, LinkStatus.error)

    def _converse(self, session: Session, wire: Wire) -> None:
        number = wire.fileno()
        if number < 0:  # it broke while being made
            raise _ending(Ending.lost, session)
        with _Selector() as selector:
            watched = selectors.EVENT_READ
            selector.register(number, watched)
            selector.register(self._requests, selectors.EVENT_READ)
            while not self._closing:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if wire.wants_to_write() else 0)
                if wanted != watched:
                    selector.modify(number, wanted)
                    watched = wanted
                happened, is_rung = 0, False
                for key, events in selector.select(session.next_due(time.monotonic())):
                    if key.fd == number:
                        happened = events
                    else:
                        is_rung = True
                wire.pump(
                    readable=bool(happened & selectors.EVENT_READ), writable=bool(happened & selectors.EVENT_WRITE)
                )
                if wire.ending is not None:
                    raise _ending(wire.ending, session)
                if is_rung:
                    self._requests.serve(session, "")
                session.tick(time.monotonic())
                if session.is_silent:
                    raise _Over(session.trouble or "the printer fell silent")
                if session.is_deaf:
                    raise _Over("the printer answers no commands; connecting anew", line_works=True)
                if session.trouble is not None:
                    self._note(self.view.status, session.trouble)
                self._note_absence()

    def _rest(self, seconds: float) -> None:
        """Waits before the next connection; requests are refused meanwhile. Too long away is offline."""
        until = time.monotonic() + seconds
        with _Selector() as selector:
            selector.register(self._requests, selectors.EVENT_READ)
            while not self._closing and (left := until - time.monotonic()) > 0:
                self._note_absence()
                if self.view.status is LinkStatus.connecting:
                    left = min(left, max(0.01, self._timings.offline / 10))
                selector.select(left)
                self._requests.serve(None, self.view.reason or "there is no connection to the printer")

    def _next_sequence_id(self) -> str:
        self._sequence = self._sequence + 1 if self._sequence < 29999 else 20000
        return str(self._sequence)

    def _is_away(self) -> bool:
        return self._heard_last is None or time.monotonic() - self._heard_last > self._timings.offline

    def _note_absence(self) -> None:
        if self.view.status is LinkStatus.connecting and self.view.reason is not None and self._is_away():
            self._note(LinkStatus.offline, self.view.reason)

    def _settle(self, reason: str, status: LinkStatus | None) -> None:
        self._note(status or (LinkStatus.offline if self._is_away() else LinkStatus.connecting), reason)

    def _note(self, status: LinkStatus, reason: str | None) -> None:
        self._show(replace(self.view, status=status, reason=reason))

    def _show(self, view: LinkView) -> None:
        """Puts up the new picture whole, and tells of a new status."""
        before, self.view = self.view, view
        if (before.status, before.reason) != (view.status, view.reason):
            self._call(self._tell_link, view.status, view.reason)

    def _heard(self, heard: Heard) -> None:
        view, known = self.view, heard.after.known
        if known:
            self._heard_last = time.monotonic()
        if heard.full:
            self._failures = 0
        # Written out: replacing one field after the other cost more than reading a small report.
        self._show(
            LinkView(
                LinkStatus.connected if heard.full else view.status,
                None if heard.full else view.reason,
                # The last known state stands until this connection knows better.
                heard.after if known or not view.state.known else view.state,
                heard.heard_at if known else view.heard_at,
                heard.heard_at if heard.full else view.full_heard_at,
                view.generation,
                view.fingerprint,
            )
        )
        self._call(self._tell_heard, heard)

    def _call(self, tell: Callable[..., None], *what: object) -> None:
        try:
            tell(*what)
        except Exception:  # noqa: BLE001 - the listener's fault must not cost the connection
            _log.exception("a listener of printer %s failed", self._address.serial)


def backoff_seconds(failures: int, timings: LinkTimings, chance: float) -> float:
    """How long to wait after so many failures in a row, doubled each time; `chance` 0 to 1 spreads it by a quarter."""
    doubled = timings.backoff_first * 2.0 ** min(max(failures - 1, 0), 16)
    return min(timings.backoff_most, doubled * (0.75 + 0.5 * chance))


def _ending(ending: Ending, session: Session) -> _Over:
    match ending:
        case Ending.bad_login:
            return _Over(
                "the printer refuses the access code: read it off the printer's screen (Settings, LAN Only) and enter"
                " it again; it changes when LAN Only or Developer Mode is switched",
                LinkStatus.unauthorized,
            )
        case Ending.too_many_clients:
            return _Over("the printer takes no more connections: close other programs that watch it")
        case Ending.refused:
            return _Over("the printer refuses the connection")
        case Ending.lost if session.trouble:
            return _Over(session.trouble)
        case Ending.lost if not session.is_ready:
            return _Over("the printer hangs up at once: other programs may be watching it, or it is starting up")
        case Ending.lost:
            return _Over("the printer closed the connection")
