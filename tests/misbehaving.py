"""A farm around one simulated printer that misbehaves: a real worker, real MQTT and FTPS, and a clock that can jump.

What takes minutes on a real printer is not waited for: the app's clock runs ten times as fast as time and is moved on
by as much as a test likes, and the printer's own time is moved on by `SimulatedPrinter.advance`.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask

from app import create_app
from bambu_client import LinkTimings
from models import IntentState, PrinterCommand, PrintEvent, StartIntent, db
from simulator import Plate, SimulatedPrinter, Spool, find_model, make_sliced_file, shared_authority
from simulator.machine import Machine
from tests.conftest import BASE_TIME, OutsideClient, settings_for
from tests.farm_builder import Farm
from tests.invariants import assert_invariants
from worker import Worker

PATIENCE_SECONDS = 30.0
# Of a file transfer that hangs.
LONG_PATIENCE_SECONDS = 120.0
QUICK = LinkTimings(
    connect=2.0,
    keepalive=5,
    full_report=0.4,
    silence=1.0,
    patience=0.5,
    offline=3.0,
    backoff_first=0.05,
    backoff_most=0.3,
    answer=1.0,
)
TIMES_FASTER = 10.0
PRINTER_SPEED = 30.0
GRAMS = 12.5
WHITE, RED = "#FFFFFF", "#C12E1F"


class JumpingClock:
    """The app's time: ten seconds for each real one, and what is skipped."""

    def __init__(self) -> None:
        self._began, self._skipped = time.monotonic(), timedelta()

    def __call__(self) -> datetime:
        return BASE_TIME + self._skipped + timedelta(seconds=(time.monotonic() - self._began) * TIMES_FASTER)

    def skip(self, seconds: float) -> None:
        self._skipped += timedelta(seconds=seconds)


def eventually(
    check: Callable[[], Any], tell: Callable[[], object] = lambda: None, *, within: float = PATIENCE_SECONDS
) -> Any:
    """What a check answers once it is truthy, within so many seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError(f"it did not happen in time: {tell()}")


@dataclass
class Hall:
    """An app and its worker, shared by the tests of a process; each brings a printer and an account of its own."""

    app: Flask
    clock: JumpingClock
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    at_step: Callable[[str], None] = lambda step: None

    @contextmanager
    def floor(self, model: str = "P1S", **made_as: Any) -> Iterator[Floor]:
        """A printer that is at rest, heard, and has an empty plate."""
        number = next(self.numbers)
        spools = made_as.pop("spools", [Spool("PLA", "FFFFFFFF")])
        serial = f"{find_model(model).serial_prefix}00A{number:09d}"
        with SimulatedPrinter(
            serial, "12345678", model=model, speed=PRINTER_SPEED, spools=spools, **made_as
        ) as printer:
            floor = Floor(self, Farm(self.app, f"seller{number}@example.com"), printer)
            try:
                yield floor
                assert_invariants(self.app, [printer])
            finally:
                self.at_step = lambda step: None
                floor.farm.delete(f"/api/printer-connections/{floor.connection_id}")


@contextmanager
def hall(database_url: str, folder: Path) -> Iterator[Hall]:
    settings = settings_for(
        database_url,
        folder,
        BAMBU_CA_FILE=str(shared_authority().ca_file),
        STATUS_INTERVAL_SECONDS="1",
        COMMAND_TIMEOUT_SECONDS="20",
        ACCESS_TOKEN_MINUTES="600",
        PRINTER_REST_SECONDS="3",
    )
    clock = JumpingClock()
    app = create_app(settings, clock=clock)
    app.test_client_class = OutsideClient
    with app.app_context():
        db.create_all()
    made = Hall(app, clock)
    # A jump of the clock must not cost the printers.
    worker = Worker(app, timings=QUICK, lease_life=timedelta(days=30), at_step=lambda step: made.at_step(step))
    worker.start()
    try:
        yield made
    finally:
        worker.stop()
        with app.app_context():
            db.session.remove()
            db.engine.dispose()


class Floor:
    """One account with one printer: what a person does and sees, and what the printer was told."""

    def __init__(self, hall: Hall, farm: Farm, printer: SimulatedPrinter) -> None:
        self.hall, self.farm, self.printer = hall, farm, printer
        added = farm.add_printer(
            "Left",
            connection_type="bambu_lan",
            host=printer.host,
            port=printer.mqtt_port,
            ftps_port=printer.ftps_port,
            serial_number=printer.serial,
            access_code=printer.access_code,
        )
        self.printer_id, self.connection_id = added["id"], added["connection_id"]
        self.material_id = farm.add_material(self.printer_id, slot=0, color=WHITE)["id"]
        plate = Plate(minutes=30, filaments=[("PLA", WHITE, GRAMS, 4.0)])
        slice_id = printer.machine.model.slice_ids[0]
        self.file_id = farm.add_file(make_sliced_file(None, [plate], model_id=slice_id))["id"]
        self.print_id = 0
        eventually(lambda: self.shown_printer()["status"] == "idle", self.shown_printer)

    @property
    def machine(self) -> Machine:
        return self.printer.machine

    def shown_printer(self) -> dict[str, Any]:
        shown: dict[str, Any] = self.farm.get(f"/api/printers/{self.printer_id}").json
        return shown

    def shown(self) -> dict[str, Any]:
        found = self.farm.get_print(self.print_id)
        assert found is not None
        return found

    def clear_plate(self) -> None:
        eventually(lambda: self.shown_printer()["plate_state"] == "occupied", self.shown_printer)
        path = f"/api/printers/{self.printer_id}/plate-cleared"
        named = [self.print_id or None, None]
        eventually(lambda: any(self.farm.post(path, {"print_id": it}).status_code == 200 for it in named), self.tell)

    def release(self) -> None:
        """A print of ours, with everything ready for it as far as we know."""
        self.clear_plate()
        self.release_onto_clear_plate()

    def release_onto_clear_plate(self) -> None:
        self.print_id = self.farm.add_print(
            self.printer_id, print_file_id=self.file_id, material_type="PLA", estimated_grams=GRAMS, status="scheduled"
        )["id"]

    def release_again(self) -> None:
        path = f"/api/bambu/scheduled-prints/{self.print_id}"
        assert self.farm.post(f"{path}/start").status_code == 200

    def record(self, status: str, **fields: Any) -> None:
        self.farm.move(self.print_id, status, **fields)

    def until(self, status: str, words: str | None = None, *, within: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The print as it is shown, once it has this status and gives a reason with these words."""

        def is_so() -> dict[str, Any] | None:
            shown = self.shown()
            reason = shown["failed_reason"] or shown["waiting_reason"] or ""
            return shown if shown["status"] == status and (words is None or words in reason) else None

        found: dict[str, Any] = eventually(is_so, self.tell, within=within)
        return found

    def until_heard(self, state: str) -> None:
        eventually(lambda: self.shown_printer()["status"] == state, self.shown_printer)

    def strike_at(self, step: str, strike: Callable[[], object]) -> None:
        """Once, as the next start comes to this one of its steps."""
        waiting = [strike]

        def at_step(reached: str) -> None:
            if reached == step and waiting:
                waiting.pop()()

        self.hall.at_step = at_step

    def until_sent(self, times: int = 1, *, within: float = PATIENCE_SECONDS) -> None:
        eventually(lambda: len(self.printer.starts) >= times, self.tell, within=within)

    def skip(self, seconds: float) -> None:
        """So much later, by the app's clock; until the printer has been heard there, nothing is known of it."""
        self.hall.clock.skip(seconds)
        eventually(lambda: self.shown_printer()["status"] != "offline", self.shown_printer)

    def stays(self, seconds: float = 0.5) -> dict[str, Any]:
        """The print as it is shown after a while in which nothing should happen to it; ten times as long to the app."""
        time.sleep(seconds)
        return self.shown()

    def finish(self) -> dict[str, Any]:
        """The print that runs ends well."""
        self.until("started")
        eventually(lambda: self.machine.busy)
        self.printer.finish_now()
        return self.until("completed")

    def intents(self) -> list[IntentState]:
        with self.hall.app.app_context():
            return list(
                db.session.execute(
                    sa.select(StartIntent.state)
                    .where(StartIntent.printer_id == self.printer_id)
                    .order_by(StartIntent.id)
                ).scalars()
            )

    def events(self) -> Counter[str]:
        """Of what a person is told: moves of the print, prints of others, looks that are needed."""
        with self.hall.app.app_context():
            kinds = db.session.execute(
                sa.select(PrintEvent.kind).where(PrintEvent.printer_id == self.printer_id)
            ).scalars()
            told = ("print.started", "print.completed", "print.failed", "print.needs_look", "printer.")
            return Counter(kind for kind in kinds if kind.startswith(told))

    def files_of_ours(self) -> list[str]:
        return [path.name for path in self.printer.files.glob("farm-*")]

    def until_file_is_gone(self) -> None:
        eventually(lambda: not self.files_of_ours(), self.tell)

    def verdicts(self) -> list[str]:
        """What the printer made of each start it was told."""
        return [start.verdict for start in self.printer.starts]

    def touched(self) -> list[str]:
        """What it was told besides: nobody asked for any of it."""
        asked = {"pushall", "get_version", "project_file", "start"}
        with self.hall.app.app_context():
            assert not db.session.execute(
                sa.select(PrinterCommand.id).where(PrinterCommand.printer_id == self.printer_id)
            ).all()
        return [each.command for each in self.printer.commands if each.command not in asked]

    def tell(self) -> str:
        shown = self.shown() if self.print_id else {}
        return (
            f"the printer is {self.machine.state} {self.machine.ids['subtask_id']} {self.verdicts()}, shown as"
            f" {self.shown_printer()['status']}; starts {self.intents()}; print {shown.get('status')},"
            f" waits: {shown.get('waiting_reason')}, failed: {shown.get('failed_reason')}"
        )
