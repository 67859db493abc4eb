"""A flapping link starts nothing and loses nothing: a real worker, and printers whose lines break in every way."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from app import create_app
from bambu_client import LinkTimings
from models import (
    OPEN_INTENT_STATES,
    BambuMaterial,
    ConnectionStatus,
    IntentState,
    LedgerEntry,
    LedgerKind,
    PrinterConnection,
    PrinterGate,
    PrintEvent,
    StartIntent,
    db,
)
from simulator import Plate, SimulatedPrinter, Spool, find_model, make_sliced_file, shared_authority
from tests.bad_line import DROPPED, Kind, draw
from tests.conftest import BASE_TIME, OutsideClient, settings_for
from tests.farm_builder import PASSWORD, Farm
from worker import Worker

PATIENCE_SECONDS = 40.0
QUICK = LinkTimings(
    connect=2.0,
    keepalive=5,
    full_report=0.4,
    silence=0.6,
    patience=0.5,
    offline=1.5,
    backoff_first=0.05,
    backoff_most=0.3,
    answer=1.0,
)
TIMES_FASTER = 10.0
PRINTER_SPEED = 20.0
GRAMS = 10.0
OVER = {"completed": "finished", "failed": "failed"}
BROKEN_AT = 0x03008003


class QuickClock:
    """The app's time: ten seconds for each real one, so that its retries take seconds, not minutes."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        return BASE_TIME + timedelta(seconds=(time.monotonic() - self._began) * TIMES_FASTER) + self._ahead

    def forward(self, **span: float) -> None:
        self._ahead += timedelta(**span)


def eventually(check: Callable[[], Any], tell: Callable[[], object] = lambda: None) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError(f"it did not happen in time: {tell()}")


@pytest.fixture
def live_app(database_url: str, tmp_path: Path) -> Iterator[Flask]:
    ca_file = str(shared_authority().ca_file)
    settings = settings_for(
        database_url,
        tmp_path / "data",
        BAMBU_CA_FILE=ca_file,
        STATUS_INTERVAL_SECONDS="1",
        COMMAND_TIMEOUT_SECONDS="20",
    )
    app = create_app(settings, clock=QuickClock())
    app.test_client_class = OutsideClient
    with app.app_context():
        db.create_all()
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@contextlib.contextmanager
def working(app: Flask, timings: LinkTimings = QUICK) -> Iterator[Worker]:
    worker = Worker(app, timings=timings)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


@contextlib.contextmanager
def printers(models: list[str]) -> Iterator[list[SimulatedPrinter]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                SimulatedPrinter(
                    f"{find_model(model).serial_prefix}00A{number:09d}",
                    "12345678",
                    model=model,
                    speed=PRINTER_SPEED,
                    seed=number,
                    spools=[Spool("PLA", "#112233")],
                )
            )
            for number, model in enumerate(models)
        ]


@dataclass(frozen=True)
class Suffered:
    """One fault, how long the printer was not heard after it, and how many connections it cost."""

    kind: Kind
    seconds: float
    connections: int


@dataclass
class Stand:
    """A printer of the farm, what it suffers, and what it prints for us; one thread at a time."""

    farm: Farm
    printer: SimulatedPrinter
    printer_id: int
    connection_id: int
    chance: Random
    prints: dict[int, str] = field(default_factory=dict)
    suffered: list[Suffered] = field(default_factory=list)
    released_anew: int = 0
    file_id: int = 0

    @classmethod
    def build(cls, farm: Farm, printer: SimulatedPrinter, seed: object, *, for_us: bool) -> Stand:
        own = copy.copy(farm)
        own.client = farm.app.test_client()
        added = own.add_printer(
            printer.serial,
            connection_type="bambu_lan",
            host=printer.host,
            port=printer.mqtt_port,
            ftps_port=printer.ftps_port,
            serial_number=printer.serial,
            access_code=printer.access_code,
        )
        stand = cls(own, printer, added["id"], added["connection_id"], Random(f"{seed}/{printer.serial}"))
        if for_us:
            own.add_material(stand.printer_id, slot=0, color="#112233", weight_grams=100_000)
            model = printer.machine.model.slice_ids[0]
            plate = Plate(minutes=300, filaments=[("PLA", "#112233", GRAMS, 4.0)])
            stand.file_id = own.add_file(make_sliced_file(None, [plate], model_id=model))["id"]
        return stand

    def row(self) -> tuple[ConnectionStatus, datetime | None, str | None]:
        with self.farm.app.app_context():
            found = db.session.execute(
                sa.select(
                    PrinterConnection.connection_status, PrinterConnection.heard_at, PrinterConnection.status_reason
                ).where(PrinterConnection.id == self.connection_id)
            ).one()
        return found[0], found[1], found[2]

    def is_heard_since(self, at: datetime) -> bool:
        status, heard_at, _ = self.row()
        return status is ConnectionStatus.connected and heard_at is not None and heard_at > at

    def until_heard(self) -> None:
        now = self.farm.app.extensions["clock"]()
        eventually(lambda: self.is_heard_since(now), self.row)

    def until_alarm(self) -> None:
        eventually(lambda: self.row()[0] is ConnectionStatus.error and self.row()[2], self.row)

    def suffer(self, kind: Kind, meanwhile: Callable[[], None] = lambda: None) -> None:
        """One fault, with something happening while it lasts; then the printer is heard again within the limit."""
        before = len(self.printer.connections)
        with kind.strike(self.printer, self.chance, self.until_alarm):
            meanwhile()
        over, over_at = time.monotonic(), self.farm.app.extensions["clock"]()
        limit = kind.limit_seconds(QUICK)
        while not ((not kind.ends or len(self.printer.connections) > before) and self.is_heard_since(over_at)):
            assert time.monotonic() - over < 4 * limit, f"{kind.name}: {self.printer.serial} is not heard, {self.row()}"
            time.sleep(0.01)
        taken = time.monotonic() - over
        self.suffered.append(Suffered(kind, taken, len(self.printer.connections) - before))

    def log_in(self) -> None:
        """In the app's quick time a token is soon too old."""
        answer = self.farm.client.post("/api/auth/login", json={"email": "seller@example.com", "password": PASSWORD})
        self.farm.token = answer.json["token"]

    def clears_plate(self) -> bool:
        """A person takes off what lies on the plate: the newest of our prints that is said to lie there, or another."""
        path = f"/api/printers/{self.printer_id}"
        if self.farm.get(path).json["plate_state"] != "occupied":
            return False
        named = [*reversed(self.prints), None]
        return any(self.farm.post(f"{path}/plate-cleared", {"print_id": it}).status_code == 200 for it in named)

    def shown(self, print_id: int) -> dict[str, Any]:
        found = self.farm.get_print(print_id)
        assert found is not None
        return found

    def begin_print(self, fault: Kind | None = None) -> int:
        """A print of ours, from the list to the printer's own word that it runs; released into a fault, if given."""
        self.log_in()
        eventually(self.clears_plate)
        there = set(self.printer.files.glob("farm-*"))
        print_id = self.add_print()
        if fault is not None:
            # The order leaves soon after the file has come: by chance just before, within or after the fault.
            eventually(lambda: set(self.printer.files.glob("farm-*")) - there or self.is_begun(print_id))
            time.sleep(self.chance.uniform(0.0, 0.15))
            self.suffer(fault)
        eventually(lambda: self.is_begun(print_id), lambda: self.tell(print_id))
        return print_id

    def add_print(self) -> int:
        made = self.farm.add_print(
            self.printer_id,
            print_file_id=self.file_id,
            material_type="PLA",
            material_slot=0,
            estimated_grams=GRAMS,
            status="scheduled",
        )
        self.prints[made["id"]] = "started"
        return int(made["id"])

    def lease_seconds(self) -> float:
        """How long the worker's lease of this printer is good."""
        with self.farm.app.app_context():
            until = db.session.execute(
                sa.select(PrinterGate.lease_until).where(PrinterGate.serial_number == self.printer.serial)
            ).scalar_one()
        return (until - self.farm.app.extensions["clock"]()).total_seconds() if until is not None else 0.0

    def is_begun(self, print_id: int) -> bool:
        shown = self.shown(print_id)
        assert shown["status"] in ("scheduled", "started"), shown
        intent = self.open_intent(print_id)
        if intent is None and shown["waiting_reason"] == "plate not cleared":
            # A report that was overtaken by newer ones said that something lies there.
            self.clears_plate()
        if intent is IntentState.unknown and not self.printer.machine.busy:
            # The order was lost on the way. Only a person may say so: they look at the printer, and release it anew.
            for path, body in (("", {"status": "queued"}), ("/start", None)):
                url = f"/api/bambu/scheduled-prints/{print_id}{path}"
                answer = self.farm.put(url, body) if body else self.farm.post(url)
                assert answer.status_code == 200, answer.text
            self.released_anew += 1
            self.clears_plate()
        return bool(shown["status"] == "started")

    def open_intent(self, print_id: int) -> IntentState | None:
        with self.farm.app.app_context():
            return db.session.execute(
                sa.select(StartIntent.state).where(
                    StartIntent.print_id == print_id, StartIntent.state.in_(OPEN_INTENT_STATES)
                )
            ).scalar_one_or_none()

    def end_print(self, print_id: int) -> None:
        """At the printer, where nobody may be listening just now."""
        match self.chance.choice(("finish", "finish", "break", "stop")):
            case "finish":
                self.printer.finish_now()
                self.prints[print_id] = "completed"
            case "break":
                self.printer.fail(BROKEN_AT)
                self.prints[print_id] = "failed"
            case "stop":
                self.printer.press_stop()
                self.prints[print_id] = "failed"

    def until_over(self, print_id: int) -> None:
        wanted = self.prints[print_id]

        def is_over() -> bool:
            shown = self.shown(print_id)
            assert shown["status"] in ("started", wanted), shown
            return bool(shown["status"] == wanted)

        eventually(is_over, lambda: self.tell(print_id))

    def tell(self, print_id: int) -> str:
        """For whoever must find out why a print is not where it should be."""
        machine, shown = self.printer.machine, self.shown(print_id)
        suffered = [f"{each.kind.name} {each.seconds:.2f} s" for each in self.suffered[-5:]]
        status = self.farm.get(f"/api/printer-connections/{self.connection_id}/status").json
        return (
            f"{machine.model.name} is {machine.state}, print {print_id} {shown['status']} ({shown['waiting_reason']})"
            f" of {self.prints}, after {suffered}; shown is {status}"
        )

    def print_under_fire(self, faults: list[Kind], *, every_start: bool) -> None:
        """Prints of ours, four faults each. The print ends at the printer in the midst of one of them."""
        left = list(faults)
        while left:
            released_into = left.pop() if every_start or not left[-1].undoes_starts else None
            print_id = self.begin_print(released_into)
            during, left = left[-3:], left[:-3]
            last = self.chance.randrange(len(during)) if during else -1
            for number, kind in enumerate(during):
                self.suffer(kind, (lambda: self.end_print(print_id)) if number == last else lambda: None)  # noqa: B023
            if last < 0:
                self.end_print(print_id)
            self.until_over(print_id)
        self.suffer(DROPPED)

    def print_for_others(self, faults: list[Kind]) -> None:
        """Prints that a person starts at the printer's own screen."""

        def press() -> None:
            if self.printer.machine.busy:
                self.chance.choice((self.printer.finish_now, self.printer.press_stop))()
            else:
                self.printer.press_start("a lamp")

        for kind in faults:
            self.suffer(kind, press)
        self.suffer(DROPPED)

    def rest(self, faults: list[Kind]) -> None:
        for kind in [*faults, DROPPED]:
            self.suffer(kind)


@dataclass(frozen=True)
class Books:
    """What the database holds at the end: per print its events and intents; all events; what was booked."""

    events: dict[int | None, Counter[str]]
    confirmed: Counter[int]
    booked: dict[int, list[float]]
    off_spools: float
    printers_with_events: set[int]

    @classmethod
    def read(cls, app: Flask) -> Books:
        events: dict[int | None, Counter[str]] = defaultdict(Counter)
        booked: dict[int, list[float]] = defaultdict(list)
        with app.app_context():
            rows = db.session.execute(
                sa.select(PrintEvent.print_id, PrintEvent.printer_id, PrintEvent.kind).where(
                    PrintEvent.kind.startswith("print.")
                )
            ).all()
            for print_id, _, kind in rows:
                events[print_id][kind] += 1
            confirmed = db.session.execute(
                sa.select(StartIntent.print_id).where(StartIntent.state == IntentState.confirmed)
            ).scalars()
            uses = db.session.execute(
                sa.select(LedgerEntry.print_id, LedgerEntry.delta_grams).where(LedgerEntry.kind == LedgerKind.used)
            )
            for print_id, grams in uses:
                booked[print_id].append(float(-grams))
            spools = db.session.execute(sa.select(BambuMaterial)).scalars()
            gone = sum(float(spool.weight_grams - spool.remaining_grams) for spool in spools)
            return cls(events, Counter(confirmed), booked, gone, {row.printer_id for row in rows})


def check_books(app: Flask, stands: list[Stand]) -> tuple[int, int]:
    """0 false events, 0 duplicates, nothing lost. Returns how many starts and ends were seen."""
    books = Books.read(app)
    wanted = {print_id: outcome for stand in stands for print_id, outcome in stand.prints.items()}
    for print_id, outcome in wanted.items():
        seen = books.events[print_id]
        assert seen["print.started"] == 1, (print_id, seen)
        assert (seen["print.completed"], seen["print.failed"]) == (outcome == "completed", outcome == "failed"), seen
        assert books.confirmed[print_id] == 1
        assert books.booked.get(print_id, []) == ([GRAMS] if outcome == "completed" else [])
    assert set(books.events) == set(wanted) and set(books.confirmed) == set(wanted)
    assert books.printers_with_events == {stand.printer_id for stand in stands if stand.prints}
    assert books.off_spools == pytest.approx(GRAMS * sum(outcome == "completed" for outcome in wanted.values()))
    for stand in stands:
        orders = Counter(start.subtask_id for start in stand.printer.starts)
        assert all(count == 1 for count in orders.values()), orders
        accepted = [start for start in stand.printer.starts if start.verdict == "accepted"]
        assert len(accepted) == len(stand.prints)
    return (
        sum(seen["print.started"] for seen in books.events.values()),
        sum(seen["print.completed"] + seen["print.failed"] for seen in books.events.values()),
    )


def check_snapshot(stand: Stand) -> None:
    """What is shown is how the printer stands."""
    stand.log_in()
    shown = stand.farm.get(f"/api/printer-connections/{stand.connection_id}/status").json
    state = {"IDLE": "idle", "FINISH": "finished", "FAILED": "failed", "RUNNING": "printing", "PREPARE": "preparing"}
    assert shown["connection_status"] == "connected", shown
    assert shown["state"] == state[stand.printer.machine.state], shown
    assert shown["current_print_id"] is None, shown


def rain(app: Flask, models: list[str], faults: int, *, seed: int, every_start: bool) -> list[Stand]:
    """So many faults over all printers at once: the last two are a stranger's and an idle one."""
    with printers(models) as made, working(app):
        farm = Farm(app, "seller@example.com")
        ours = len(made) - 2
        stands = [Stand.build(farm, printer, seed, for_us=number < ours) for number, printer in enumerate(made)]
        chance = Random(seed)
        share = [draw(chance, faults // len(made) + (number < faults % len(made))) for number in range(len(made))]
        with ThreadPoolExecutor(len(stands)) as pool:
            for stand in stands:
                stand.until_heard()
            work = [
                pool.submit(stand.print_under_fire, share[number], every_start=every_start)
                for number, stand in enumerate(stands[:ours])
            ]
            work += [pool.submit(stands[-2].print_for_others, share[-2]), pool.submit(stands[-1].rest, share[-1])]
            for each in work:
                each.result()
        started, ended = check_books(app, stands)
        assert started == ended == sum(len(stand.prints) for stand in stands)
        for stand in stands:
            stand.until_heard()
            check_snapshot(stand)
    return stands


def table(stands: list[Stand]) -> str:
    suffered = [each for stand in stands for each in stand.suffered]
    lines = [f"{'fault':28} {'times':>6} {'reconnects':>11} {'slowest s':>10} {'limit s':>8}"]
    for kind in sorted({each.kind for each in suffered}, key=lambda kind: kind.name):
        of_kind = [each for each in suffered if each.kind is kind]
        slowest = max(each.seconds for each in of_kind)
        limit = kind.limit_seconds(QUICK)
        reconnects = sum(each.connections for each in of_kind)
        lines.append(f"{kind.name:28} {len(of_kind):6} {reconnects:11} {slowest:10.2f} {limit:8.2f}")
    prints = [outcome for stand in stands for outcome in stand.prints.values()]
    reconnects = sum(each.connections for each in suffered)
    lines.append(
        f"{len(suffered)} faults, {reconnects} reconnects; {len(prints)} prints of ours: "
        f"{2 * len(prints)} starts and ends expected, {2 * len(prints)} seen, 0 false, 0 twice; "
        f"{sum(stand.released_anew for stand in stands)} starts lost on the way and given anew by a person"
    )
    return "\n".join(lines)


def late(stands: list[Stand]) -> list[str]:
    return [
        f"{each.kind.name}: {each.seconds:.2f} s, limit {each.kind.limit_seconds(QUICK):.2f} s"
        for stand in stands
        for each in stand.suffered
        if each.seconds > each.kind.limit_seconds(QUICK)
    ]


def test_a_flapping_link_starts_nothing_and_loses_nothing(live_app: Flask) -> None:
    stands = rain(live_app, ["P1S", "X1C", "A1 mini", "P1S", "P1S"], 30, seed=9, every_start=False)
    assert late(stands) == []


def test_a_print_that_gave_way_to_another_while_the_line_was_down_is_not_taken_for_it(live_app: Flask) -> None:
    """On a new connection the other print's end comes as a part, before anything tells whose it is."""
    with printers(["P1S"]) as (printer,), working(live_app):
        stand = Stand.build(Farm(live_app, "seller@example.com"), printer, 0, for_us=True)
        stand.until_heard()
        print_id = stand.begin_print()
        printer.faults.full_report_delay_seconds = math.inf
        printer.restart()
        printer.press_start("a lamp")
        eventually(lambda: printer.has_listeners and stand.row()[0] is ConnectionStatus.connecting)
        printer.advance(60)
        printer.finish_now()
        path = f"/api/printer-connections/{stand.connection_id}/status"
        for _ in range(10):
            meanwhile = stand.farm.get(path).json
            assert (meanwhile["connection_status"], meanwhile["current_print_id"]) == ("connecting", print_id), (
                meanwhile
            )
            time.sleep(0.03)
        printer.faults.full_report_delay_seconds = 0.0
        stand.until_heard()
        shown = stand.shown(print_id)
        assert (shown["status"], shown["progress_percent"]) == ("started", 0), shown
        events = Books.read(live_app).events[print_id]
        assert (events["print.completed"], events["print.failed"]) == (0, 0), events
        assert stand.farm.get(path).json["state"] == "finished"


def test_a_start_whose_first_signs_were_lost_is_found_out_by_asking(live_app: Flask) -> None:
    """Without that it would wait for a person for ever, while the printer prints."""
    clock = live_app.extensions["clock"]
    talkative_enough = replace(QUICK, silence=60.0)
    with printers(["P1S"]) as (printer,), working(live_app, talkative_enough):
        stand = Stand.build(Farm(live_app, "seller@example.com"), printer, 0, for_us=True)
        stand.until_heard()
        before = stand.begin_print()
        printer.finish_now()
        stand.prints[before] = "completed"
        stand.until_over(before)
        printer.faults.lag_finish_seconds = 2.0 * PRINTER_SPEED
        eventually(stand.clears_plate)
        print_id = stand.add_print()
        eventually(lambda: len(printer.starts) == 2)
        printer.faults.lose_reports = 1.0
        printer.advance(600)
        assert printer.machine.state == "RUNNING"
        printer.faults.lose_reports = 0.0
        printer.advance(60)
        for _ in range(3):
            clock.forward(seconds=50)
            # In steps, so that the worker does not take itself for one that has slept past its lease.
            eventually(lambda: stand.lease_seconds() > 50)
        eventually(lambda: stand.shown(print_id)["status"] == "started", lambda: stand.tell(print_id))
        printer.finish_now()
        stand.prints[print_id] = "completed"
        stand.until_over(print_id)
        check_books(live_app, [stand])


def restart_workers(app: Flask, models: list[str], restarts: int) -> list[Stand]:
    """A worker after the other, in the midst of prints; some end while there is none, others right before or after."""
    with printers(models) as made:
        farm = Farm(app, "seller@example.com")
        stands = [Stand.build(farm, printer, restarts, for_us=True) for printer in made]
        under_way: dict[int, int] = {}
        chance = Random(restarts)
        worker = Worker(app, timings=QUICK)
        worker.start()
        try:
            for number in range(restarts):
                for place, stand in enumerate(stands):
                    if place not in under_way:
                        stand.until_heard()
                        under_way[place] = stand.begin_print()
                ending = chance.randrange(len(stands)) if number % 3 == 0 or number == restarts - 1 else None
                moment = chance.choice(("before", "between", "after"))
                for now in ("before", "between", "after"):
                    if now == "between":
                        worker.stop()
                    if ending is not None and now == moment:
                        stands[ending].end_print(under_way[ending])
                    if now == "between":
                        worker = Worker(app, timings=QUICK)
                        worker.start()
                if ending is not None:
                    stands[ending].log_in()
                    stands[ending].until_over(under_way.pop(ending))
            for place, print_id in under_way.items():
                stands[place].log_in()
                stands[place].end_print(print_id)
                stands[place].until_over(print_id)
            check_books(app, stands)
            for stand in stands:
                stand.until_heard()
                check_snapshot(stand)
        finally:
            worker.stop()
    return stands


def test_a_worker_tells_the_bell_which_printers_it_has(live_app: Flask) -> None:
    """Of these no other process is told."""
    bell = live_app.extensions["bell"]
    with printers(["P1S"]) as (printer,), working(live_app):
        stand = Stand.build(Farm(live_app, "seller@example.com"), printer, 0, for_us=True)
        stand.until_heard()
        assert bell.held() == {stand.printer_id}
    assert bell.held() == frozenset()


def test_a_worker_that_is_restarted_in_mid_print_changes_nothing(live_app: Flask) -> None:
    restart_workers(live_app, ["P1S", "X1C"], 5)


def restart_printers(app: Flask, models: list[str], restarts: int) -> list[Stand]:
    """Power cuts in mid-print; then the printer goes on where it was, as when a person says yes at its screen."""
    with printers(models) as made, working(app):
        farm = Farm(app, "seller@example.com")
        stands = [Stand.build(farm, printer, restarts, for_us=True) for printer in made]
        for stand in stands:
            stand.until_heard()
            stand.printer.faults.recover_after_seconds = 0.3 * PRINTER_SPEED
        for first in range(0, restarts, len(stands) * 3):
            prints = [stand.begin_print() for stand in stands]
            for number in range(first, min(restarts, first + len(stands) * 3)):
                stand = stands[number % len(stands)]
                eventually(lambda: stand.printer.machine.state in ("PREPARE", "RUNNING"))  # noqa: B023
                stand.printer.restart()
                stand.until_heard()
                assert stand.shown(prints[number % len(stands)])["status"] == "started"
            for stand, print_id in zip(stands, prints, strict=True):
                eventually(lambda: stand.printer.machine.busy)  # noqa: B023
                stand.end_print(print_id)
                stand.until_over(print_id)
        check_books(app, stands)
    return stands


def test_a_printer_that_is_restarted_in_mid_print_changes_nothing(live_app: Flask) -> None:
    restart_printers(live_app, ["P1S", "X1C"], 4)


def test_a_print_that_a_power_cut_ended_is_neither_done_nor_failed_until_a_person_says_so(live_app: Flask) -> None:
    with printers(["P1S"]) as (printer,), working(live_app):
        stand = Stand.build(Farm(live_app, "seller@example.com"), printer, 0, for_us=True)
        stand.until_heard()
        print_id = stand.begin_print()
        printer.restart()
        stand.until_heard()
        assert stand.shown(print_id)["status"] == "started"
        answer = stand.farm.put(
            f"/api/bambu/scheduled-prints/{print_id}", {"status": "failed", "failed_reason": "a power cut"}
        )
        assert answer.status_code == 200, answer.text
        stand.prints[print_id] = "failed"
        check_books(live_app, [stand])


@pytest.mark.prove
def test_a_thousand_link_faults(live_app: Flask, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["P1S", "X1C", "A1 mini", "H2D", "P2S", "A1", "P1S", "P1S"]
    stands = rain(live_app, models, 1000, seed=1, every_start=True)
    with capsys.disabled():
        print("\n" + table(stands))
    assert late(stands) == []


@pytest.mark.prove
def test_two_hundred_restarts_of_the_worker(live_app: Flask, capsys: pytest.CaptureFixture[str]) -> None:
    stands = restart_workers(live_app, ["P1S", "X1C", "A1 mini", "H2D"], 200)
    prints = Counter(outcome for stand in stands for outcome in stand.prints.values())
    with capsys.disabled():
        print(f"\n200 restarts of the worker in mid-print: {dict(prints)}, 0 false events, filament booked once each")


@pytest.mark.prove
def test_sixty_power_cuts_of_printers(live_app: Flask, capsys: pytest.CaptureFixture[str]) -> None:
    stands = restart_printers(live_app, ["P1S", "X1C", "A1 mini", "H2D"], 60)
    prints = Counter(outcome for stand in stands for outcome in stand.prints.values())
    with capsys.disabled():
        print(f"\n60 power cuts of printers in mid-print: {dict(prints)}, 0 false events, filament booked once each")
