"""What can go wrong on the line between a printer and us: each kind strikes a simulated printer, and then is over."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from bambu_client import LinkTimings
from simulator import SimulatedPrinter

Alarm = Callable[[], object]
Strike = Callable[[SimulatedPrinter, Random, Alarm], "contextlib.AbstractContextManager[None]"]

BRIEF = (0.05, 0.2, 0.5)


@dataclass(frozen=True)
class Kind:
    """A kind of fault. While the context is open it lasts; `told` says whether the line itself tells that it is over.

    `ends`: no connection outlives it. `undoes_starts`: a start under way may have to be begun anew, which takes time.
    """

    name: str
    strike: Strike
    told: bool = True
    ends: bool = True
    undoes_starts: bool = True

    def limit_seconds(self, timings: LinkTimings) -> float:
        """From the end of the fault to the next word of the printer over a good connection, at most.

        The longest pause between attempts, one attempt, and one full report that was asked for in vain. Where nothing
        tells us, first the time until we notice: a silence and the wait for an answer, or an attempt that is lost.
        """
        again = timings.backoff_most + timings.connect + timings.full_report
        unnoticed = max(timings.silence + timings.patience, timings.connect)
        return again if self.told else unnoticed + again


def _passing(*holds: float, **settings: Any) -> Strike:
    """These settings of the printer's faults, for one of these times in seconds."""

    @contextlib.contextmanager
    def strike(printer: SimulatedPrinter, chance: Random, alarm: Alarm) -> Iterator[None]:
        well = replace(printer.faults)
        for name, value in settings.items():
            setattr(printer.faults, name, value)
        time.sleep(chance.choice(holds))
        yield
        for name in settings:
            setattr(printer.faults, name, getattr(well, name))

    return strike


def _sudden(act: Callable[[SimulatedPrinter], None]) -> Strike:
    """Over as soon as it has happened."""

    @contextlib.contextmanager
    def strike(printer: SimulatedPrinter, chance: Random, alarm: Alarm) -> Iterator[None]:
        act(printer)
        yield

    return strike


@contextlib.contextmanager
def _black_hole(printer: SimulatedPrinter, chance: Random, alarm: Alarm) -> Iterator[None]:
    printer.faults.black_hole = True
    time.sleep(chance.choice((0.1, 0.6, 1.5)))
    yield
    printer.faults.black_hole = False


@contextlib.contextmanager
def _refused(printer: SimulatedPrinter, chance: Random, alarm: Alarm) -> Iterator[None]:
    printer.faults.shut_door()
    printer.faults.drop_connection()
    time.sleep(chance.choice(BRIEF))
    yield
    printer.faults.open_door()


def _limit(answer: Any) -> Strike:
    @contextlib.contextmanager
    def strike(printer: SimulatedPrinter, chance: Random, alarm: Alarm) -> Iterator[None]:
        printer.faults.limit_answer, printer.faults.connection_limit = answer, 0
        printer.faults.drop_connection()
        time.sleep(chance.choice(BRIEF))
        yield
        printer.faults.connection_limit = None

    return strike


@contextlib.contextmanager
def _wrong_certificate(printer: SimulatedPrinter, chance: Random, alarm: Alarm) -> Iterator[None]:
    """Somebody else answers at the printer's address: that must be said, and nobody may talk to him."""
    printer.faults.wrong_certificate = chance.choice(("other serial", "other authority", "expired", "not yet valid"))
    printer.change_certificate()
    printer.faults.drop_connection()
    logins = len(printer.connections)
    alarm()
    yield
    assert len(printer.connections) == logins, "another machine has heard the access code"
    printer.faults.wrong_certificate = None
    printer.change_certificate()


def _parts_before_the_whole(full_report_after_seconds: float, for_seconds: float) -> Strike:
    """On a new connection changes are told before anything is whole."""

    @contextlib.contextmanager
    def strike(printer: SimulatedPrinter, chance: Random, alarm: Alarm) -> Iterator[None]:
        printer.faults.full_report_delay_seconds = full_report_after_seconds * printer.speed
        printer.faults.drop_connection()
        time.sleep(for_seconds)
        yield
        printer.faults.full_report_delay_seconds = 0.0

    return strike


KINDS = (
    Kind("dropped", _sudden(lambda printer: printer.faults.drop_connection())),
    Kind("broken off in a packet", _sudden(lambda printer: printer.faults.break_off())),
    Kind("half-open", _sudden(lambda printer: printer.faults.abandon_connections()), told=False),
    Kind("noise for packets", _sudden(lambda printer: printer.faults.babble()), told=False, ends=False),
    Kind("black hole", _black_hole, told=False, ends=False),
    Kind("connection refused", _refused),
    Kind("too many clients, hung up", _limit("hang up")),
    Kind("too many clients, told", _limit("server unavailable")),
    Kind("wrong certificate", _wrong_certificate),
    Kind("full report late", _parts_before_the_whole(0.3, 0.4)),
    Kind("full reports lost", _parts_before_the_whole(math.inf, 1.2), told=False),
    Kind("reports delayed", _passing(*BRIEF, report_delay_seconds=10.0), told=False, ends=False, undoes_starts=False),
    Kind("reports doubled", _passing(*BRIEF, duplicate_reports=True), told=False, ends=False, undoes_starts=False),
    Kind("reports lost", _passing(*BRIEF, lose_reports=0.5), told=False, ends=False),
    Kind("silent", _passing(*BRIEF, 1.5, mute=True), told=False, ends=False),
    Kind("answers doubled", _passing(*BRIEF, duplicate_acks=True), told=False, ends=False, undoes_starts=False),
    Kind("answers late", _passing(*BRIEF, ack_delay_seconds=10.0), told=False, ends=False, undoes_starts=False),
    Kind("answers lost", _passing(*BRIEF, lose_acks=True), told=False, ends=False, undoes_starts=False),
    Kind(
        "garbage for reports",
        _passing(*BRIEF, 1.5, damage=("cut in half", "garbage", "trailing NUL", "invalid UTF-8"), damage_share=0.7),
        told=False,
        ends=False,
    ),
    Kind("slow drip", _passing(*BRIEF, 1.5, drip_bytes_per_second=1500.0), told=False, ends=False),
)
DROPPED = KINDS[0]


def draw(chance: Random, count: int) -> list[Kind]:
    """So many faults in the order of chance, every kind as often as the others, but for one."""
    drawn: list[Kind] = []
    while len(drawn) < count:
        drawn += chance.sample(KINDS, len(KINDS))
    return drawn[:count]
