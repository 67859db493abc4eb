"""Which waiting print of a printer goes no further without somebody. Told of the first in the queue only: who comes for
that one sees the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from farm.alerts import UNSENT, needs_person, settle_waits, waits_of
from farm.interlocks import Interlock, Verdict
from models import ScheduledPrint, db

# In the order in which a person should hear of them.
TELLING = (
    Interlock.order,
    Interlock.file,
    Interlock.model,
    Interlock.nozzle,
    Interlock.temperatures,
    Interlock.profile,
    Interlock.filament,
    Interlock.missed,
    Interlock.control,
    Interlock.storage,
    Interlock.plate,
)
# A fault of the printer is told as one. Whatever else holds a print passes by itself, or somebody wants it so.
OF_PERSONS = frozenset({*TELLING, Interlock.fault})
# Clearing the plate is the normal course, and what could not be sent is tried again: told only when nobody does.
LASTING = frozenset({Interlock.plate.value, UNSENT})


class Need(NamedTuple):
    print_id: int
    lock: str
    sentence: str


@dataclass(slots=True)
class Needs:
    """One look at a printer's queue, print by print in the order in which they run."""

    printer_id: int
    raised: Mapping[tuple[int, str], bool]
    first: Need | None = None
    _kept: set[tuple[int, str]] = field(default_factory=set)

    @classmethod
    def of(cls, printer_id: int) -> Needs:
        return cls(printer_id, waits_of(printer_id))

    def keep(self, print_id: int) -> None:
        """Its own start is under way, and says what becomes of it."""
        self._kept.update(each for each in self.raised if each[0] == print_id)

    def see(self, print_id: int, verdict: Verdict, deferred: str | None, *, is_first: bool) -> None:
        """`deferred`: why it cannot be sent just now. `is_first`: nothing before it is started instead."""
        reasons = verdict.reasons
        if self.raised:
            self._keep_what_holds(print_id, reasons)
        if self.first is not None or not is_first or not OF_PERSONS.issuperset(reasons):
            return
        lock = next((lock for lock in TELLING if lock in reasons), None)
        if lock is not None:
            self.first = Need(print_id, lock.value, verdict.sentence or reasons[lock])
        elif deferred is not None and not reasons:
            self.first = Need(print_id, UNSENT, deferred)

    def _keep_what_holds(self, print_id: int, reasons: Mapping[Interlock, str]) -> None:
        for raised, was_told in self.raised.items():
            of_print, lock = raised
            if of_print != print_id:
                continue
            # One that nobody was told of begins anew when something else holds the print meanwhile.
            if lock == UNSENT:
                holds = was_told or not reasons
            else:
                holds = lock in reasons and (was_told or OF_PERSONS.issuperset(reasons))
            if holds:
                self._kept.add(raised)

    @property
    def is_settled(self) -> bool:
        """Whether `settle` has nothing to do."""
        return not self._over() and not self._is_first_to_be_raised()

    def settle(self, *, at: datetime) -> None:
        """Tell what is to be told, and forget what somebody settled. The caller commits."""
        settle_waits(self.printer_id, self._over(), at=at)
        if self.first is not None and self._is_first_to_be_raised():
            waiting = db.session.get_one(ScheduledPrint, self.first.print_id)
            lock = self.first.lock
            needs_person(waiting, lock, self.first.sentence, at=at, lasts=lock in LASTING)

    def _over(self) -> set[tuple[int, str]]:
        first = {(self.first.print_id, self.first.lock)} if self.first is not None else set()
        return self.raised.keys() - self._kept - first

    def _is_first_to_be_raised(self) -> bool:
        if self.first is None:
            return False
        was_told = self.raised.get((self.first.print_id, self.first.lock))
        # What lasts is told by time, once it is raised.
        return was_told is None or not (was_told or self.first.lock in LASTING)
