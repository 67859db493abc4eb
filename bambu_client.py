"""The link to one printer: one supervised MQTT connection that listens, and carries each command at most once.

A thread of its own holds the connection, makes a new one when it breaks, and alone touches the wire; other threads hand
it requests. What the printer reports goes out as Heard (before, after). Callbacks run in that thread and should do no
more than put things into a queue. A new connection begins knowing nothing; its first full report tells the state anew.
"""

from __future__ import annotations

import errno
import logging
import random
import re
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

import bambu_commands as commands
import bambu_report as report
from bambu_commands import Answer, Command, StartOptions, StartOrder, explain
from bambu_report import PrinterState
from bambu_session import Heard, LinkTimings, Session
from bambu_tls import IdentityRefused, PrinterTlsContext, Trust
from bambu_wire import Ending, NotSent, Wire

__all__ = [
    "Answer",
    "Heard",
    "LinkStatus",
    "LinkTimings",
    "LinkView",
    "NotSent",
    "PrinterAddress",
    "PrinterLink",
    "StartOptions",
    "StartOrder",
    "explain",
]

_log = logging.getLogger(__name__)
_SERIAL = re.compile(r"[A-Za-z0-9]{1,40}")


@dataclass(frozen=True, slots=True)
class PrinterAddress:
    """Where a printer is and how it is known to be that printer; see bambu_tls.Trust for the last two."""

    host: str
    serial: str
    access_code: str = field(repr=False)
    mqtt_port: int = 8883
    ftps_port: int = 990
    ca_file: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError: a serial number becomes part of a topic and of a certificate's check."""
        if not _SERIAL.fullmatch(self.serial):
            raise ValueError("a serial number is letters and digits")


class LinkStatus(StrEnum):
    """`connected`: a full report came over this connection. `error`: the machine is not provably this printer."""

    connecting = "connecting"
    connected = "connected"
    offline = "offline"
    unauthorized = "unauthorized"
    error = "error"


@dataclass(frozen=True, slots=True)
class LinkView:
    """Everything about a link at one moment. `state` is the last known one, also while the printer is away."""

    status: LinkStatus = LinkStatus.connecting
    reason: str | None = None
    state: PrinterState = report.UNKNOWN
    heard_at: datetime | None = None
    full_heard_at: datetime | None = None
    generation: int = 0
    fingerprint: str | None = None


class _Over(Exception):
    """A connection is over. `status` is what the link is now, None to leave that to how long ago anything was heard."""

    def __init__(self, reason: str, status: LinkStatus | None = None) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


class PrinterLink:
    """See the module. `clock` gives aware UTC times; `on_link` is told each new status and its reason."""

    def __init__(
        self,
        address: PrinterAddress,
        *,
        on_heard: Callable[[Heard], None],
        on_answer: Callable[[Answer], None],
        on_link: Callable[[LinkStatus, str | None], None],
        clock: Callable[[], datetime],
        timings: LinkTimings | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.address = address
        self._tell_heard, self._tell_answer, self._tell_link = on_heard, on_answer, on_link
        self._clock, self._timings, self._chance = clock, timings or LinkTimings(), chance
        self._view = LinkView()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._session: Session | None = None
        self._requests: deque[tuple[Callable[[Session], Any], Future[Any]]] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        # A first id that was the same after each restart was refused as a replay; the makers' programs use this range.
        self._sequence = random.randrange(20000, 29000)
        self._obeys: bool | None = None
        self._pinned = address.fingerprint
        self._heard_last: float | None = None
        self._failures = 0

    @property
    def view(self) -> LinkView:
        """One consistent picture of the link; the properties below are its parts."""
        return self._view

    @property
    def status(self) -> LinkStatus:
        return self._view.status

    @property
    def reason(self) -> str | None:
        """Why the status is what it is, in plain words; None when all is well."""
        return self._view.reason

    @property
    def state(self) -> PrinterState:
        return self._view.state

    @property
    def heard_at(self) -> datetime | None:
        return self._view.heard_at

    @property
    def full_heard_at(self) -> datetime | None:
        return self._view.full_heard_at

    @property
    def generation(self) -> int:
        """Which connection this is, counted from 1."""
        return self._view.generation

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the certificate seen, to be kept and pinned where no authority vouches for the printer."""
        return self._view.fingerprint

    def open(self) -> None:
        """Starts connecting, and returns at once. Once closed, a link stays closed."""
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._run, name=f"printer-{self.address.serial}", daemon=True)
            self._thread.start()

    def close(self, wait_seconds: float = 5.0) -> None:
        """Says goodbye to the printer and ends the thread; waits for it, but not for a connection being made."""
        self._closing = True
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(wait_seconds)

    def ask_full_report(self) -> None:
        """Asks for a full report, if there is a connection; it comes as Heard. A P1 suffers from frequent asking."""
        self._post(lambda session: session.order(commands.FULL_REPORT))

    def start_print(self, order: StartOrder, *, generation: int, latest_at: datetime | None = None) -> str:
        """Publishes the start exactly once, over that connection and no other; returns its sequence id.

        Raises NotSent if it provably did not go out: another connection, a broken line, or later than `latest_at`.
        The printer's answer comes to `on_answer`, with the submission id; only its reports say that it prints.
        """

        def publish(session: Session) -> str:
            if session.generation != generation:
                raise NotSent("the connection is not the one the printer's state was read over")
            if latest_at is not None and self._clock() > latest_at:
                raise NotSent("it became too late to start on what was known of the printer")
            command = commands.start_print(order, two_nozzles=len(self._view.state.nozzles) > 1)
            return session.order(command, submission_id=str(order.submission_id))

        return self._hand_over(publish)

    def pause(self) -> Answer:
        """As every command below: waits for the answer, at most `LinkTimings.answer`. Raises NotSent."""
        return self._ask(commands.PAUSE)

    def resume(self) -> Answer:
        return self._ask(commands.RESUME)

    def stop(self) -> Answer:
        return self._ask(commands.STOP)

    def set_speed(self, level: int) -> Answer:
        """1 silent, 2 standard, 3 sport, 4 ludicrous. Raises ValueError too."""
        return self._ask(commands.set_speed(level))

    def set_light(self, on: bool) -> Answer:
        return self._ask(commands.set_light(on))

    def clear_error(self) -> Answer:
        """Takes the error the printer shows off its screen."""
        state = self._view.state
        return self._ask(commands.clear_error(state.print_error or "0", state.submission_id))

    def change_filament(self, place: tuple[int, int] | None, *, nozzle_temp: int, nozzle: int = 0) -> Answer:
        """Loads from (ams_id, tray_id), unloads with None, at this temperature in °C. Raises ValueError too."""
        return self._ask(commands.change_filament(place, nozzle_temp=nozzle_temp, nozzle=nozzle))

    def set_filament(self, place: tuple[int, int], **what: Any) -> Answer:
        """Tells the printer what is in a place; for `what` see bambu_commands.set_filament. Raises ValueError too."""
        return self._ask(commands.set_filament(place, **what))

    # From here on requests go to the link's own thread.

    def _ask(self, command: Command) -> Answer:
        waiter: Future[Answer] = Future()
        sequence_id = self._hand_over(lambda session: session.order(command, waiter=waiter))
        try:
            return waiter.result(self._timings.answer)
        except TimeoutError:
            self._post(lambda session: session.give_up_waiting(sequence_id))
            reason = f"the printer did not answer within {self._timings.answer:g} seconds"
            return Answer(commands.section_and_name(command)[1], sequence_id, None, None, reason, None)

    def _hand_over(self, act: Callable[[Session], str]) -> str:
        if threading.current_thread() is self._thread:
            raise RuntimeError("the link's own thread cannot wait for itself")
        if self._view.status is not LinkStatus.connected:
            raise NotSent(self._view.reason or "there is no connection to the printer")
        done = self._post(act)
        try:
            return str(done.result(self._timings.hand_over))
        except TimeoutError:
            if done.cancel():
                raise NotSent("the connection to the printer is busy being made") from None
            return str(done.result())
        except CancelledError:
            raise NotSent("the link is closed") from None

    def _post(self, act: Callable[[Session], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        self._requests.append((act, done))
        self._wake()
        return done

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"\0")
        except BlockingIOError:
            pass  # it has been woken more often than it has looked
        except OSError:
            self._refuse_requests()  # closed

    def _serve_requests(self) -> None:
        while self._requests:
            act, done = self._requests.popleft()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                if self._session is None:
                    raise NotSent(self._view.reason or "there is no connection to the printer")
                done.set_result(act(self._session))
            except NotSent as problem:
                done.set_exception(problem)

    def _refuse_requests(self) -> None:
        while self._requests:
            self._requests.popleft()[1].cancel()

    # From here on everything runs in the link's own thread.

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
                    _log.exception("the link to printer %s stumbled", self.address.serial)
                    self._failures += 1
                    self._settle("the printer sent something that cannot be understood", None)
                self._rest(self._pause_before_next())
        finally:
            self._wake_in.close()
            self._wake_out.close()
            self._refuse_requests()
            if self._closing:
                self._view = replace(self._view, status=LinkStatus.offline, reason="the link is closed")

    def _live(self) -> None:
        """One connection, from its making to its end. Raises _Over, unless the link is being closed."""
        address, timings = self.address, self._timings
        trust = Trust(address.serial, address.ca_file, self._pinned)
        try:
            tls = PrinterTlsContext(trust)
        except OSError:
            raise _Over("the file of certificate authorities cannot be read", LinkStatus.error) from None
        session = Session(
            self._view.generation + 1,
            report.first_raw(address.serial, obeys=self._obeys),
            timings,
            clock=self._clock,
            now=time.monotonic,
            next_sequence_id=self._next_sequence_id,
            on_heard=self._heard,
            on_answer=lambda answer: self._call(self._tell_answer, answer),
        )
        wire = Wire(
            address.host,
            address.mqtt_port,
            address.serial,
            address.access_code,
            tls,
            keepalive_seconds=timings.keepalive,
            connect_seconds=timings.connect,
            on_ready=session.begin,
            on_payload=session.hear,
        )
        session.use(wire)
        self._view = replace(self._view, generation=session.generation)
        reason = "the connection was closed"
        try:
            self._connect(wire)
            self._view = replace(self._view, fingerprint=tls.seen_fingerprint)
            if not address.ca_file:
                self._pinned = tls.seen_fingerprint
            self._session = session
            self._converse(session, wire)
        except NotSent as problem:
            raise _Over(problem.reason) from None
        except _Over as over:
            reason = over.reason
            raise
        finally:
            self._session = None
            self._obeys = self._obeys if session.obeys is None else session.obeys
            if self._closing:
                wire.close()
            else:
                wire.abort()
            session.end(reason)

    def _connect(self, wire: Wire) -> None:
        try:
            wire.connect()
        except IdentityRefused as refused:
            raise _Over(refused.reason, LinkStatus.error) from None
        except ssl.SSLCertVerificationError:
            raise _Over(
                "no known authority vouches for the printer's certificate: it is a newer model, or another machine",
                LinkStatus.error,
            ) from None
        except OSError as problem:
            raise _Over(_unreachable(problem)) from None

    def _converse(self, session: Session, wire: Wire) -> None:
        with selectors.DefaultSelector() as selector:
            number = wire.fileno()
            watched = selectors.EVENT_READ
            selector.register(number, watched)
            selector.register(self._wake_out, selectors.EVENT_READ)
            while not self._closing:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if wire.wants_to_write() else 0)
                if wanted != watched:
                    selector.modify(number, wanted)
                    watched = wanted
                happened = 0
                for key, events in selector.select(session.next_due(time.monotonic())):
                    if key.fd == number:
                        happened = events
                    else:
                        self._drain_wake()
                wire.pump(
                    readable=bool(happened & selectors.EVENT_READ), writable=bool(happened & selectors.EVENT_WRITE)
                )
                if wire.ending is not None:
                    raise _ending(wire.ending, session)
                self._serve_requests()
                silent = session.tick(time.monotonic())
                if silent is not None:
                    raise _Over(session.trouble or silent)
                if session.trouble is not None:
                    self._note(self._view.status, session.trouble)

    def _drain_wake(self) -> None:
        try:
            while self._wake_out.recv(4096):
                pass
        except BlockingIOError:
            pass  # that was all

    def _rest(self, seconds: float) -> None:
        """Waits before the next connection; requests are refused meanwhile. Too long away is offline."""
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_out, selectors.EVENT_READ)
            while not self._closing and (left := until - time.monotonic()) > 0:
                if self._view.status is LinkStatus.connecting:
                    if self._is_away():
                        self._note(LinkStatus.offline, self._view.reason)
                    left = min(left, max(0.01, self._timings.offline / 10))
                if selector.select(left):
                    self._drain_wake()
                self._serve_requests()

    def _pause_before_next(self) -> float:
        timings = self._timings
        doubled = timings.backoff_first * 2.0 ** min(max(self._failures - 1, 0), 16)
        return min(timings.backoff_most, doubled) * (0.75 + 0.5 * self._chance())

    def _next_sequence_id(self) -> str:
        self._sequence = self._sequence + 1 if self._sequence < 29999 else 20000
        return str(self._sequence)

    def _is_away(self) -> bool:
        return self._heard_last is None or time.monotonic() - self._heard_last > self._timings.offline

    def _settle(self, reason: str, status: LinkStatus | None) -> None:
        self._note(status or (LinkStatus.offline if self._is_away() else LinkStatus.connecting), reason)

    def _note(self, status: LinkStatus, reason: str | None) -> None:
        if (status, reason) != (self._view.status, self._view.reason):
            self._view = replace(self._view, status=status, reason=reason)
            self._call(self._tell_link, status, reason)

    def _heard(self, heard: Heard) -> None:
        self._heard_last = time.monotonic()
        view = self._view
        self._view = replace(
            view,
            # The last known state stands until this connection knows better.
            state=heard.after if heard.after.known or not view.state.known else view.state,
            heard_at=heard.heard_at,
            full_heard_at=heard.heard_at if heard.full else view.full_heard_at,
        )
        if heard.full:
            self._failures = 0
            self._note(LinkStatus.connected, None)
        self._call(self._tell_heard, heard)

    def _call(self, tell: Callable[..., None], *what: object) -> None:
        try:
            tell(*what)
        except Exception:  # noqa: BLE001 - the listener's fault must not cost the connection
            _log.exception("a listener of printer %s failed", self.address.serial)


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
        case Ending.lost:
            return _Over("the printer closed the connection")


def _unreachable(problem: OSError) -> str:
    if isinstance(problem, ConnectionRefusedError):
        return "the address answers, but not as a printer: check it, and that the printer is in LAN mode"
    if isinstance(problem, socket.gaierror):
        return "the printer's host name is unknown: check it, or enter its address"
    if isinstance(problem, TimeoutError) or problem.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN):
        return "nothing answers at the printer's address: is it switched on and in this network?"
    if isinstance(problem, ssl.SSLError):
        return "no secure connection could be agreed on with the machine at the printer's address"
    return "the connection to the printer could not be made"
