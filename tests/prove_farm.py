"""A farm whose workers are killed: simulated printers, the persons beside them, and what became of each start."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import sqlalchemy as sa
from flask import Flask

from farm.starter import CRASH_POINTS
from models import (
    ENDED_STATUSES,
    OPEN_INTENT_STATES,
    IntentState,
    PrintEvent,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    db,
)
from simulator import Plate, SimulatedPrinter, Spool, make_sliced_file, shared_authority
from tests.conftest import OutsideClient
from tests.farm_builder import Farm
from tests.invariants import assert_invariants
from tests.prove_worker import Nursery, Spec, WorkerProcess, nursery

PATIENCE_SECONDS = 60.0
# A second of real time: on a computer that is busy with other tests too a worker renews it in time.
LEASE_SECONDS = 10.0
GRAMS = 10.0
PRINTER_SPEED = 20.0
BROKEN_AT = 0x03008003
AT_RANDOM = "at random"
# As random, but soon after a start has begun: most of a worker's time none is under way.
AT_RANDOM_IN_A_START = "at random in a start"
# In the farm's time: past 150 s an unconfirmed start is shown as such.
UNTIL_UNKNOWN_SECONDS = 151.0
FORWARD_EVERY_SECONDS = 3.0
LONGEST_LIFE_SECONDS = 1.5
A_START_TAKES_SECONDS = 0.25

STATE_AT = {
    "claimed": IntentState.claimed,
    "uploading": IntentState.uploading,
    "uploaded": IntentState.uploading,
    "armed": IntentState.armed,
    "heard": IntentState.armed,
    # Rolled back by the death of the process.
    "publishing": IntentState.armed,
    "published": IntentState.published,
    "sent": IntentState.published,
}
"""What the database holds of a start whose worker died at a crash point; nothing at all at "claiming"."""
BECOMES = {
    IntentState.withdrawn: frozenset({"claimed", "uploading", "uploaded", "armed", "heard", "publishing"}),
    IntentState.not_started: frozenset({"published"}),
    IntentState.confirmed: frozenset({"sent"}),
}
"""What becomes of it: given back and started anew by the next worker; shown to a person; confirmed by the printer."""


def eventually(check: Callable[[], Any], tell: Callable[[], object] = lambda: None) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.01)
    raise AssertionError(f"it did not happen in time: {tell()}")


@dataclass
class Station:
    """A printer and the person beside it, who clears its plate, looks when asked to, and ends prints at its screen."""

    printer: SimulatedPrinter
    printer_id: int
    file_id: int
    prints: list[int] = field(default_factory=list)
    print_id: int | None = None
    cleared_at: list[datetime] = field(default_factory=list)
    ended_at_printer: int | None = None

    @property
    def wire_starts(self) -> Counter[str]:
        return Counter(start.subtask_id for start in self.printer.starts)


@dataclass(frozen=True)
class Shown:
    """A print as the database has it, and the start of it that is open."""

    status: PrintStatus
    waiting_reason: str | None
    intent: IntentState | None
    submission_id: int | None


@dataclass(frozen=True)
class Kill:
    """Where a worker died, and the starts that were in its hands with the state they were in: intent id -> state.
    `last`: the newest start that it ever had, if another worker was so quick to take all of them over."""

    point: str
    hit: dict[int, IntentState]
    last: int | None


class World:
    """Everything that is beside the workers. `step` may be called from one thread only."""

    def __init__(self, app: Flask, spec: Spec, workers: Nursery, printers: list[SimulatedPrinter], seed: int) -> None:
        self.app, self.workers, self.chance = app, workers, Random(seed)
        self.clock = spec.clock
        self.farm = Farm(app, "seller@example.com")
        content = make_sliced_file(None, [Plate(minutes=300, filaments=[("PLA", "#112233", GRAMS, 4.0)])])
        self.file_id = self.farm.add_file(content)["id"]
        self.stations = [self._station(printer) for printer in printers]
        self.kills: list[Kill] = []
        # How often a person ends a print at the printer before anybody heard that it had begun.
        self.haste = 0.0
        self.asked_person = 0
        self._forward_at = time.monotonic() + FORWARD_EVERY_SECONDS
        self._silent_since: dict[int, float] = {}

    def _station(self, printer: SimulatedPrinter) -> Station:
        added = self.farm.add_printer(
            printer.serial,
            connection_type="bambu_lan",
            host=printer.host,
            port=printer.mqtt_port,
            ftps_port=printer.ftps_port,
            serial_number=printer.serial,
            access_code=printer.access_code,
        )
        self.farm.add_material(added["id"], slot=0, color="#112233", weight_grams=100_000)
        return Station(printer, added["id"], self.file_id)

    def release(self, station: Station, status: str = "scheduled") -> int:
        """A print of ours on a plate that a person has cleared."""
        self.clear_plate(station)
        made = self.farm.add_print(station.printer_id, print_file_id=station.file_id, status=status)
        station.print_id = int(made["id"])
        station.prints.append(station.print_id)
        return station.print_id

    def clear_plate(self, station: Station) -> None:
        """Only ever of a printer that is at rest."""
        if station.printer.machine.busy:
            return
        path = f"/api/printers/{station.printer_id}"
        at = datetime.now(UTC)
        for named in [*reversed(station.prints), None]:
            if self.farm.post(f"{path}/plate-cleared", {"print_id": named}).status_code == 200:
                station.cleared_at.append(at)
                return

    def look(self, print_ids: list[int]) -> dict[int, Shown]:
        with self.app.app_context():
            found = db.session.execute(
                sa.select(
                    ScheduledPrint.id,
                    ScheduledPrint.status,
                    ScheduledPrint.waiting_reason,
                    StartIntent.state,
                    StartIntent.submission_id,
                )
                .outerjoin(
                    StartIntent,
                    sa.and_(StartIntent.print_id == ScheduledPrint.id, StartIntent.state.in_(OPEN_INTENT_STATES)),
                )
                .where(ScheduledPrint.id.in_(print_ids))
            ).all()
        return {row.id: Shown(*row[1:]) for row in found}

    def step(self, *, is_over: bool = False) -> None:
        """Each person does what there is to do now; a new print is begun unless it `is_over`."""
        shown = self.look([station.print_id for station in self.stations if station.print_id is not None])
        for station in self.stations:
            if station.print_id is not None:
                self._attend(station, station.print_id, shown[station.print_id])
            elif not is_over:
                self.release(station)
        self._pass_time(shown)

    def _attend(self, station: Station, print_id: int, shown: Shown) -> None:
        machine = station.printer.machine
        has_begun = shown.status is PrintStatus.started or self.chance.random() < self.haste
        if machine.busy and has_begun and station.ended_at_printer != print_id and self.chance.random() < 0.3:
            self.end_at_printer(station, print_id)
        elif shown.status in ENDED_STATUSES:
            if any(str(each) in station.wire_starts for each in self.submission_ids(print_id)):
                station.print_id = None
            else:
                # It says that it never began. Only a person may try again.
                self._try_again(station, print_id)
        elif shown.intent is IntentState.unknown and str(shown.submission_id) not in station.wire_starts:
            self._try_again(station, print_id)
        elif shown.intent is IntentState.unknown and station.ended_at_printer == print_id:
            # It broke off as the one before had, while nobody listened: the printer's report cannot tell the two apart.
            self._tell_the_end(print_id)
        elif shown.intent is None and shown.waiting_reason == "plate not cleared":
            self.clear_plate(station)

    def end_at_printer(self, station: Station, print_id: int) -> None:
        station.ended_at_printer = print_id
        match self.chance.choice(("finish", "finish", "break", "stop")):
            case "finish":
                station.printer.finish_now()
            case "break":
                station.printer.fail(BROKEN_AT)
            case "stop":
                station.printer.press_stop()

    def submission_ids(self, print_id: int) -> list[int]:
        with self.app.app_context():
            return list(
                db.session.execute(
                    sa.select(StartIntent.submission_id).where(StartIntent.print_id == print_id)
                ).scalars()
            )

    def _try_again(self, station: Station, print_id: int) -> None:
        self.asked_person += 1
        url = f"/api/bambu/scheduled-prints/{print_id}"
        taken_back = self.farm.put(url, {"status": "queued"})
        assert taken_back.status_code == 200, taken_back.text
        self.clear_plate(station)
        assert self.farm.post(f"{url}/start").status_code == 200

    def _tell_the_end(self, print_id: int) -> None:
        self.asked_person += 1
        url = f"/api/bambu/scheduled-prints/{print_id}"
        for body in ({"status": "started"}, {"status": "failed", "failed_reason": "seen at the printer"}):
            # 409: the worker was faster.
            assert self.farm.put(url, body).status_code in (200, 409), body

    def _pass_time(self, shown: dict[int, Shown]) -> None:
        """Nobody here has the minutes that a start may stay unconfirmed: when one does, time is set forward."""
        now = time.monotonic()
        silent = {
            station.printer_id
            for station in self.stations
            if (of_print := shown.get(station.print_id or 0)) is not None
            and of_print.intent in (IntentState.published, IntentState.unknown)
            and not station.printer.machine.busy
        }
        self._silent_since = {each: self._silent_since.get(each, now) for each in silent}
        if any(now - since > 1.0 for since in self._silent_since.values()) and now >= self._forward_at:
            self.clock.forward(UNTIL_UNKNOWN_SECONDS)
            self._forward_at = now + FORWARD_EVERY_SECONDS
            self._silent_since.clear()

    def note_kill(self, worker: WorkerProcess, point: str) -> None:
        """The worker is dead: what it had in its hands."""
        # A database server may still be busy with its last words.
        time.sleep(0.02)
        with self.app.app_context():
            had = dict(
                db.session.execute(
                    sa.select(StartIntent.id, StartIntent.state).where(StartIntent.owner.contains(f"-{worker.pid}-"))
                ).all()
            )
        hit = {intent_id: state for intent_id, state in had.items() if state in OPEN_INTENT_STATES}
        self.kills.append(Kill(point, hit, None if hit else max(had, default=None)))

    def storm(self, points: list[str], lanes: int) -> None:
        """So many workers at once, each killed at the next of `points` and followed by another until all are used;
        then one goes on alone until no print is left."""
        dice = Random(self.chance.random())
        plan = [(point, dice.random()) for point in reversed(points)]

        def kill_in_turn() -> None:
            with contextlib.suppress(IndexError):
                while True:
                    self._kill_one(*plan.pop())

        with ThreadPoolExecutor(lanes) as pool:
            going = [pool.submit(kill_in_turn) for _ in range(lanes)]
            while not all(each.done() for each in going):
                self.step()
                time.sleep(0.02)
            for each in going:
                each.result()
        self.workers.worker()
        self.drain()

    def _kill_one(self, point: str, dice: float) -> None:
        worker = self.workers.worker(point if point in CRASH_POINTS else "")
        if point == AT_RANDOM:
            time.sleep(dice * LONGEST_LIFE_SECONDS)
            worker.kill()
        elif point == AT_RANDOM_IN_A_START:
            eventually(lambda: "claiming" in worker.marks)
            time.sleep(dice * A_START_TAKES_SECONDS)
            worker.kill()
        else:
            worker.wait(PATIENCE_SECONDS)
            assert worker.marks[-1] == "signal", worker.marks
        self.note_kill(worker, point)

    def drain(self) -> None:
        """No new prints: every one there is comes to its end."""

        def is_empty() -> bool:
            self.step(is_over=True)
            return all(station.print_id is None for station in self.stations)

        eventually(is_empty, self.tell)

    def tell(self) -> str:
        """For whoever must find out why a print is not where it should be."""
        shown = self.look([station.print_id for station in self.stations if station.print_id is not None])
        return "\n".join(
            f"{station.printer.serial} is {station.printer.machine.state}: print {station.print_id}"
            f" {shown.get(station.print_id or 0)}, {dict(station.wire_starts)}"
            for station in self.stations
        )

    def check(self) -> None:
        """0 duplicates, 0 lost, 0 false starts; each start that was in a dead worker's hands ended as it must."""
        printers = [station.printer for station in self.stations]
        assert_invariants(self.app, printers)
        for station in self.stations:
            starts = station.printer.starts
            assert all(start.verdict == "accepted" for start in starts), starts
            for before, after in pairwise(starts):
                assert any(before.heard_at < at < after.heard_at for at in station.cleared_at), (before, after)  # type: ignore[operator]
        with self.app.app_context():
            runs = db.session.execute(
                sa.select(PrintEvent.print_id, sa.func.count())
                .where(PrintEvent.kind == "print.started")
                .group_by(PrintEvent.print_id)
            )
            # Whatever a start went through: every print that was released has run, and no print has run twice.
            assert dict(runs.all()) == {each: 1 for station in self.stations for each in station.prints}
        outcomes = self.outcomes()
        for kill in self.kills:
            for intent_id, state in kill.hit.items():
                became = outcomes[intent_id]
                assert became in (IntentState.withdrawn, IntentState.not_started, IntentState.confirmed), kill
                if state in (IntentState.claimed, IntentState.uploading):
                    assert became is IntentState.withdrawn, kill
            if kill.point in STATE_AT:
                (wanted,) = (state for state, points in BECOMES.items() if kill.point in points)
                found = [outcomes[key] for key, state in kill.hit.items() if state is STATE_AT[kill.point]]
                found += [] if kill.last is None else [outcomes[kill.last]]
                assert wanted in found, (kill, found)

    def outcomes(self) -> dict[int, IntentState]:
        """What became of each start, held against what the printers heard of it."""
        heard = Counter[tuple[int, str]]()
        for station in self.stations:
            heard.update({(station.printer_id, key): times for key, times in station.wire_starts.items()})
        with self.app.app_context():
            intents = db.session.execute(sa.select(StartIntent)).scalars().all()
            found = {}
            for intent in intents:
                is_heard = heard[intent.printer_id, str(intent.submission_id)]
                assert is_heard == (intent.state is IntentState.confirmed), (intent.state, intent.reason, is_heard)
                found[intent.id] = intent.state
        return found

    def table(self) -> str:
        outcomes = self.outcomes()
        printed = {key: times for station in self.stations for key, times in station.wire_starts.items() if times > 1}
        lines = [
            f"{'crash point':22} {'kills':>6} {'starts hit':>11} {'duplicates':>11} {'lost':>5}"
            f" {'unknown':>8} {'recovered':>10}"
        ]
        for point in [*CRASH_POINTS, AT_RANDOM, AT_RANDOM_IN_A_START]:
            kills = [kill for kill in self.kills if kill.point == point]
            became = Counter(outcomes[key] for kill in kills for key in kill.hit)
            unknown = became[IntentState.not_started]
            lost = became.total() - unknown - became[IntentState.withdrawn] - became[IntentState.confirmed]
            lines.append(
                f"{point:22} {len(kills):6} {became.total():11} {len(printed):11} {lost:5}"
                f" {unknown:8} {became.total() - unknown - lost:10}"
            )
        prints = sum(len(station.prints) for station in self.stations)
        return "\n".join([*lines, f"{len(self.kills)} kills, {prints} prints, each of which ran once"])


@contextlib.contextmanager
def world(
    database_url: str, folder: Path, printers: int, *, seed: int = 1, lease: float = LEASE_SECONDS
) -> Iterator[World]:
    """A farm with printers on an empty database; no worker yet."""
    spec = Spec(database_url, str(folder), lease, {"BAMBU_CA_FILE": str(shared_authority().ca_file)})
    app = spec.make_app()
    app.test_client_class = OutsideClient
    with app.app_context():
        db.create_all()
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(nursery(spec))
        made = [
            stack.enter_context(
                SimulatedPrinter(
                    f"01P00A{number:09d}",
                    "12345678",
                    speed=PRINTER_SPEED,
                    seed=number,
                    spools=[Spool("PLA", "#112233")],
                )
            )
            for number in range(printers)
        ]
        yield World(app, spec, workers, made, seed)
    with app.app_context():
        db.session.remove()
        db.engine.dispose()
