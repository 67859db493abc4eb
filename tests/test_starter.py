"""Starting: every interlock holds back a start, and one start leaves at most once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, BinaryIO

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from bambu_client import NotSent, StartOrder
from bambu_files import UploadFailed
from bambu_report import PrinterActivity, PrinterState, Spool, Storage
from farm import starter, tracker
from farm.leases import LEASE, Lease, keep_leases
from models import (
    ConnectionStatus,
    IntentState,
    Order,
    OrderStatus,
    PlateState,
    Printer,
    PrinterConnection,
    ScheduledPrint,
    StartIntent,
    db,
)
from simulator import Plate, make_sliced_file
from tests.conftest import Clock
from tests.farm_builder import Farm

SERIAL = "01P00A000000001"
IDLE = PrinterState(
    known=True,
    state=PrinterActivity.idle,
    storage=Storage.ok,
    spools=(Spool(ams_id=0, tray_id=0, slot=0, loaded=True, material_type="PLA"),),
)


class LinkOf:
    """A printer's connection at the edge of the world: it says what the test wants and remembers what it was told."""

    def __init__(self, clock: Clock, state: PrinterState = IDLE) -> None:
        self.clock, self.state, self.generation = clock, state, 1
        self.full_heard_at: datetime | None = clock()
        self.published: list[StartOrder] = []
        self.refuse: Exception | None = None
        self.on_fresh_report: Callable[[], None] = lambda: None
        self.is_mute = False

    def ask_full_report(self) -> None:
        if not self.is_mute:
            self.on_fresh_report()
            self.full_heard_at = self.clock()

    def start_print(self, order: StartOrder, *, generation: int, latest_at: datetime | None = None) -> str:
        if self.refuse is not None:
            raise self.refuse
        self.published.append(order)
        return "20001"


class StorageOf:
    def __init__(self, fail: Exception | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.fail = fail

    def upload(
        self, stream: BinaryIO, remote_name: str, size_bytes: int, on_progress: Callable[[int], None] | None = None
    ) -> None:
        if self.fail is not None:
            raise self.fail
        self.files[remote_name] = stream.read()
        assert len(self.files[remote_name]) == size_bytes


class Bench:
    """One printer that could print, one print that is released."""

    def __init__(self, farm: Farm, clock: Clock) -> None:
        self.farm, self.clock = farm, clock
        self.printer_id = farm.add_printer("Left", host="127.0.0.1", serial_number=SERIAL, access_code="12345678")["id"]
        self.material = farm.add_material(self.printer_id, slot=0)
        self.file = farm.add_file(make_sliced_file(None, [Plate(minutes=30)]))
        self.print_id = farm.add_print(
            self.printer_id, print_file_id=self.file["id"], material_type="PLA", estimated_grams=20, status="scheduled"
        )["id"]
        self.link, self.storage = LinkOf(clock), StorageOf()
        self.is_stopping = threading.Event()
        with farm.database():
            db.session.execute(sa.update(Printer).values(plate_state=PlateState.clear))
            self.hear()
            db.session.commit()

    def hear(self) -> None:
        db.session.execute(
            sa.update(PrinterConnection).values(
                connection_status=ConnectionStatus.connected, heard_at=self.clock(), snapshot={"state": "idle"}
            )
        )

    def change(self, model: Any, **values: Any) -> None:
        with self.farm.database():
            db.session.execute(sa.update(model).values(**values))
            db.session.commit()

    def start(self, lease: Lease | None = None) -> int | None:
        """The id of the print whose start was tried."""
        with self.farm.database():
            intent = starter.start(
                self.printer_id,
                self.link,
                self.storage,
                lease=lease or keep_leases("the worker", [SERIAL], now=self.clock())[SERIAL],
                clock=self.clock,
                rules=starter.StartRules.from_settings(self.farm.app.extensions["parts"].settings),
                is_stopping=self.is_stopping,
                fresh_report_seconds=0.05,
            )
            return intent.print_id if intent is not None else None

    @property
    def reason(self) -> str | None:
        found = self.farm.get_print(self.print_id)
        assert found is not None
        return found["waiting_reason"]

    def intents(self) -> list[IntentState]:
        with self.farm.database():
            return list(db.session.execute(sa.select(StartIntent.state).order_by(StartIntent.id)).scalars())


@pytest.fixture
def bench(farm: Farm, clock: Clock) -> Iterator[Bench]:
    yield Bench(farm, clock)


def test_a_ready_print_is_started_once_with_the_file_under_a_name_of_ours(bench: Bench) -> None:
    assert bench.start() == bench.print_id
    (order,) = bench.link.published
    assert order.mapping == ((0, 0),)
    assert order.plate == 1
    assert order.remote_name == f"farm-{order.submission_id}.gcode.3mf"
    assert list(bench.storage.files) == [order.remote_name]
    assert bench.intents() == [IntentState.published]
    # Nothing more leaves, however often the starter is asked.
    assert [bench.start() for _ in range(5)] == [None] * 5
    assert len(bench.link.published) == 1


def test_the_plate_counts_as_occupied_from_the_moment_a_start_is_sent(bench: Bench) -> None:
    bench.start()
    shown = bench.farm.get(f"/api/printers/{bench.printer_id}").json
    assert shown["plate_state"] == "occupied"


HELD_BACK: dict[str, tuple[Callable[[Bench], None], str]] = {
    "printer busy": (lambda b: setattr(b.link, "state", replace(IDLE, state=PrinterActivity.printing)), "printing"),
    "printer paused": (lambda b: setattr(b.link, "state", replace(IDLE, state=PrinterActivity.paused)), "paused"),
    "state unknown": (lambda b: setattr(b.link, "state", PrinterState()), "cannot be reached"),
    "link not live": (lambda b: b.change(PrinterConnection, connection_status=ConnectionStatus.offline), "reached"),
    "silent for 90 s": (lambda b: b.clock.forward(seconds=90) and None, "cannot be reached"),
    "plate occupied": (lambda b: b.change(Printer, plate_state=PlateState.occupied), "plate not cleared"),
    "plate unknown": (lambda b: b.change(Printer, plate_state=PlateState.unknown), "plate not cleared"),
    "no storage": (lambda b: setattr(b.link, "state", replace(IDLE, storage=Storage.none)), "storage"),
    "developer mode off": (lambda b: setattr(b.link, "state", replace(IDLE, developer_mode=False)), "Developer Mode"),
    "not its time": (lambda b: b.change(ScheduledPrint, scheduled_start=b.clock() + timedelta(hours=1)), "not before"),
    "no file": (lambda b: b.change(ScheduledPrint, print_file_id=None), "no sliced file"),
    "no such spool": (lambda b: b.change(ScheduledPrint, material_type="PETG"), "no spool of PETG"),
    "too few grams": (lambda b: b.change(ScheduledPrint, estimated_grams=1001), "needs PLA 1001 g, slot 0 has 1000 g"),
    "nearly empty": (
        lambda b: b.farm.put(f"/api/bambu/materials/{b.material['id']}", {"remaining_pct": 2}) and None,
        "nearly empty",
    ),
    "printer sees other filament": (
        lambda b: setattr(b.link, "state", replace(IDLE, spools=(replace(IDLE.spools[0], material_type="PETG"),))),
        "sees PETG",
    ),
    "printer sees no spool": (
        lambda b: setattr(b.link, "state", replace(IDLE, spools=(replace(IDLE.spools[0], loaded=False),))),
        "sees no spool",
    ),
}


@pytest.mark.parametrize("case", HELD_BACK)
def test_an_interlock_that_does_not_hold_keeps_the_print_waiting_and_says_why(bench: Bench, case: str) -> None:
    spoil, words = HELD_BACK[case]
    spoil(bench)
    assert bench.start() is None
    assert bench.link.published == [] and bench.storage.files == {}
    assert words in (bench.reason or "")
    found = bench.farm.get_print(bench.print_id)
    assert found is not None and found["status"] == "scheduled"


def test_a_print_of_a_cancelled_order_is_held_back(bench: Bench) -> None:
    order = bench.farm.add_order()
    bench.farm.put(f"/api/bambu/scheduled-prints/{bench.print_id}", {"order_id": order["id"]})
    bench.change(Order, status=OrderStatus.canceled)
    assert bench.start() is None
    assert "canceled" in (bench.reason or "")


@pytest.mark.parametrize("case", ["printer busy", "no storage", "developer mode off", "printer sees no spool"])
def test_what_changed_during_the_upload_is_seen_before_the_start(bench: Bench, case: str) -> None:
    spoil, words = HELD_BACK[case]
    bench.link.on_fresh_report = lambda: spoil(bench)
    bench.start()
    assert bench.link.published == []
    assert bench.intents() == [IntentState.withdrawn]
    assert words in (bench.reason or "")


def test_a_print_taken_back_during_the_upload_is_not_started(bench: Bench) -> None:
    def take_back() -> None:
        db.session.execute(sa.update(ScheduledPrint).values(status="queued"))
        db.session.commit()

    bench.link.on_fresh_report = take_back
    bench.start()
    assert bench.link.published == []
    assert bench.intents() == [IntentState.withdrawn]


def take_over(bench: Bench) -> None:
    """What happens while a worker sleeps past its lease: another one gets the printer."""
    bench.clock.forward(seconds=LEASE.total_seconds() + 1)
    with bench.farm.app.app_context():
        bench.hear()
        keep_leases("another worker", [SERIAL], now=bench.clock())


def test_a_worker_that_lost_its_lease_during_the_upload_publishes_nothing(bench: Bench) -> None:
    bench.link.on_fresh_report = lambda: take_over(bench)
    bench.start()
    assert bench.link.published == []
    assert bench.intents() == [IntentState.uploading]


def test_a_worker_that_lost_its_lease_claims_nothing(bench: Bench) -> None:
    with bench.farm.database():
        lease = keep_leases("a worker", [SERIAL], now=bench.clock())[SERIAL]
    take_over(bench)
    assert bench.start(lease) is None
    assert bench.link.published == [] and bench.intents() == []


def test_no_start_leaves_once_the_worker_was_told_to_stop(bench: Bench) -> None:
    bench.link.on_fresh_report = bench.is_stopping.set
    bench.start()
    assert bench.link.published == []
    assert bench.intents() == [IntentState.withdrawn]


def test_without_a_fresh_report_nothing_is_started(bench: Bench) -> None:
    bench.link.is_mute = True
    bench.clock.forward(seconds=1)
    bench.start()
    assert bench.link.published == []
    assert bench.intents() == [IntentState.withdrawn]


def test_a_failed_upload_gives_the_print_back(bench: Bench) -> None:
    bench.storage.fail = UploadFailed("the card is full", retry=False)
    bench.start()
    assert bench.link.published == []
    assert "the card is full" in (bench.reason or "")
    assert bench.intents() == [IntentState.withdrawn]


def test_a_start_that_provably_did_not_leave_gives_print_and_plate_back(bench: Bench) -> None:
    bench.link.refuse = NotSent("another connection")
    bench.start()
    assert bench.intents() == [IntentState.not_started]
    assert bench.farm.get(f"/api/printers/{bench.printer_id}").json["plate_state"] == "clear"
    bench.link.refuse = None
    bench.start()
    assert bench.intents() == [IntentState.not_started, IntentState.published]
    assert len(bench.link.published) == 1


def test_published_is_committed_before_the_command_leaves(bench: Bench) -> None:
    seen: list[IntentState] = []

    def look(order: StartOrder, *, generation: int, latest_at: datetime | None = None) -> str:
        with db.engine.connect() as connection:
            seen.append(connection.execute(sa.select(StartIntent.state)).scalar_one())
        return "1"

    bench.link.start_print = look  # type: ignore[method-assign]
    bench.start()
    assert seen == [IntentState.published]


def test_the_database_holds_one_open_start_a_printer(bench: Bench) -> None:
    bench.start()
    with bench.farm.database():
        row = db.session.execute(sa.select(StartIntent)).scalar_one()
        copy = {
            column.name: getattr(row, column.name) for column in StartIntent.__table__.columns if column.name != "id"
        }
        db.session.add(StartIntent(**{**copy, "submission_id": row.submission_id + 1, "state": IntentState.claimed}))
        with pytest.raises(IntegrityError):
            db.session.flush()


def test_a_start_that_is_never_confirmed_waits_for_a_person_s_word(bench: Bench) -> None:
    bench.start()
    bench.clock.forward(seconds=151)
    with bench.farm.database():
        bench.hear()
        tracker.mark_unconfirmed([bench.printer_id], now=bench.clock())
        db.session.commit()
    assert bench.intents() == [IntentState.unknown]
    assert "look at the printer" in (bench.reason or "")
    bench.change(Printer, plate_state=PlateState.clear)
    assert bench.start() is None, "an unconfirmed start is never repeated by itself"
    moved = bench.farm.put(f"/api/bambu/scheduled-prints/{bench.print_id}", {"status": "queued"})
    assert moved.status_code == 200, moved.text
    assert bench.intents() == [IntentState.not_started]
    bench.farm.post(f"/api/bambu/scheduled-prints/{bench.print_id}/start")
    bench.start()
    assert bench.intents() == [IntentState.not_started, IntentState.published]


def test_an_edit_during_a_start_is_refused(bench: Bench) -> None:
    bench.start()
    path = f"/api/bambu/scheduled-prints/{bench.print_id}"
    for answer in (bench.farm.put(path, {"notes": "x"}), bench.farm.put(path, {"status": "queued"})):
        assert (answer.status_code, answer.json["code"]) == (409, "start_under_way")
    assert bench.farm.delete(path).status_code == 409


def test_auto_start_releases_what_is_due_and_holds_what_was_missed(bench: Bench) -> None:
    bench.farm.put(f"/api/printers/{bench.printer_id}", {"auto_start": True})
    bench.farm.delete(f"/api/bambu/scheduled-prints/{bench.print_id}")
    fields = {"print_file_id": bench.file["id"], "material_type": "PLA"}
    missed = bench.farm.add_print(
        bench.printer_id, scheduled_start=(bench.clock() - timedelta(hours=2)).isoformat(), priority=9, **fields
    )
    later = bench.farm.add_print(
        bench.printer_id, scheduled_start=(bench.clock() + timedelta(hours=2)).isoformat(), priority=8, **fields
    )
    due = bench.farm.add_print(bench.printer_id, priority=1, **fields)
    assert bench.start() == due["id"]
    states = {each["id"]: each for each in bench.farm.get("/api/bambu/scheduled-prints").json}
    assert [states[each["id"]]["status"] for each in (missed, later, due)] == ["queued", "queued", "scheduled"]
    assert "was missed" in states[missed["id"]]["waiting_reason"]


def test_a_released_print_without_a_connection_says_so(farm: Farm) -> None:
    printer = farm.add_printer("By hand")
    file = farm.add_file()
    made = farm.add_print(printer["id"], print_file_id=file["id"])
    released = farm.post(f"/api/bambu/scheduled-prints/{made['id']}/start").json
    assert (released["status"], released["waiting_reason"]) == (
        "scheduled",
        "the printer has no connection: start it there and record it here",
    )


def test_a_plate_of_several_filaments_is_held_back(bench: Bench) -> None:
    colors = (("PLA", "#111111", 1.0, 0.3), ("PLA", "#222222", 1.0, 0.3))
    file = bench.farm.add_file(make_sliced_file(None, [Plate(minutes=30, filaments=colors)]))
    bench.farm.put(f"/api/bambu/scheduled-prints/{bench.print_id}", {"print_file_id": file["id"]})
    assert bench.start() is None
    assert "several filaments" in (bench.reason or "")
