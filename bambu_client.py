"""The link to one printer: one supervised MQTT connection that listens, and carries each command at most once.

A thread of its own holds the connection, makes a new one when it breaks, and alone touches the wire; other threads hand
it requests. What the printer reports goes out as Heard (before, after). Callbacks run in that thread and should do no
more than put things into a queue. A new connection begins knowing nothing; its first full report tells the state anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from datetime import datetime
from typing import Any

import bambu.commands as commands
from bambu.commands import Answer, Command, StartOptions, StartOrder, explain, is_place
from bambu.filaments import generic_profile
from bambu.lifeline import Lifeline
from bambu.session import Session
from bambu.types import Heard, LinkStatus, LinkTimings, LinkView, PrinterAddress
from bambu.wire import NotSent
from bambu_report import PrinterState

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
    "generic_profile",
    "is_place",
]


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
        self._timings, self._clock = timings or LinkTimings(), clock
        self._lifeline = Lifeline(
            address,
            self._timings,
            clock=clock,
            chance=chance,
            on_heard=on_heard,
            on_answer=on_answer,
            on_link=on_link,
        )

    @property
    def view(self) -> LinkView:
        """One consistent picture of the link; the properties below are its parts."""
        return self._lifeline.view

    @property
    def status(self) -> LinkStatus:
        return self._lifeline.view.status

    @property
    def reason(self) -> str | None:
        """Why the status is what it is, in plain words; None when all is well."""
        return self._lifeline.view.reason

    @property
    def state(self) -> PrinterState:
        return self._lifeline.view.state

    @property
    def heard_at(self) -> datetime | None:
        return self._lifeline.view.heard_at

    @property
    def full_heard_at(self) -> datetime | None:
        return self._lifeline.view.full_heard_at

    @property
    def generation(self) -> int:
        """Which connection this is, counted from 1."""
        return self._lifeline.view.generation

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the certificate seen, to be kept and pinned where no authority vouches for the printer."""
        return self._lifeline.view.fingerprint

    def open(self) -> None:
        """Starts connecting, and returns at once. Once closed, a link stays closed."""
        self._lifeline.open()

    def close(self, wait_seconds: float = 5.0) -> None:
        """Says goodbye to the printer and ends the thread; waits for it, but not for a connection being made."""
        self._lifeline.close(wait_seconds)

    def ask_full_report(self) -> None:
        """Asks for a full report, if there is a connection; it comes as Heard. A P1 suffers from frequent asking."""
        self._lifeline.post(lambda session: session.order(commands.FULL_REPORT))

    def start_print(self, order: StartOrder, *, generation: int, latest_at: datetime | None = None) -> str:
        """Publishes the start exactly once, over that connection and no other; returns its sequence id.

        Raises NotSent if it provably did not go out: another connection, a broken line, or later than `latest_at`.
        The printer's answer comes to `on_answer`, with the submission id; only its reports say that it prints.
        """

        command = commands.start_print(order, two_nozzles=len(self.state.nozzles) > 1)

        def publish(session: Session) -> str:
            if session.generation != generation:
                raise NotSent("the connection is not the one the printer's state was read over")
            if latest_at is not None and self._clock() > latest_at:
                raise NotSent("it became too late to start on what was known of the printer")
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
        state = self._lifeline.view.state
        return self._ask(commands.clear_error(state.print_error or "0", state.submission_id))

    def change_filament(self, place: tuple[int, int] | None, *, nozzle_temp: int, nozzle: int | None = None) -> Answer:
        """Loads from (ams_id, tray_id), unloads with None, at this temperature in °C. Raises ValueError too.

        Without `nozzle` it is the one that the place feeds, or to unload the one in use, as far as the printer tells.
        """
        if nozzle is None:
            state = self._lifeline.view.state
            nozzle = commands.nozzle_fed_from(place, state.units, state.active_nozzle)
        return self._ask(commands.change_filament(place, nozzle_temp=nozzle_temp, nozzle=nozzle))

    def set_filament(self, place: tuple[int, int], **what: Any) -> Answer:
        """Tells the printer what is in a place; for `what` see bambu.commands.set_filament. Raises ValueError too."""
        return self._ask(commands.set_filament(place, **what))

    def _ask(self, command: Command) -> Answer:
        waiter: Future[Answer] = Future()
        sequence_id = self._hand_over(lambda session: session.order(command, waiter=waiter))
        try:
            return waiter.result(self._timings.answer)
        except TimeoutError:
            self._lifeline.post(lambda session: session.give_up_waiting(sequence_id))
            reason = f"the printer did not answer within {self._timings.answer:g} seconds"
            return Answer(commands.section_and_name(command)[1], sequence_id, None, None, reason, None)

    def _hand_over(self, act: Callable[[Session], str]) -> str:
        if self._lifeline.is_current_thread:
            raise RuntimeError("the link's own thread cannot wait for itself")
        if self._lifeline.view.status is not LinkStatus.connected:
            raise NotSent(self._lifeline.view.reason or "there is no connection to the printer")
        done = self._lifeline.post(act)
        try:
            return str(done.result(self._timings.hand_over))
        except TimeoutError:
            if done.cancel():
                raise NotSent("the connection to the printer is busy being made") from None
            return str(done.result())
        except CancelledError:
            raise NotSent("the link is closed") from None
