"""Starting: every interlock holds back a start, and one start leaves at most once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, BinaryIO

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import ORMExecuteState

from bambu.errors import Fault, Severity
from bambu_client import NotSent, StartOrder
from bambu_files import UploadFailed
from bambu_report import Nozzle, PrinterActivity, PrinterState, Spool, Storage
from farm import starter, tracker
from farm.gates import locked_gate, next_submission_id
from farm.interlocks import Interlock
from farm.leases import LEASE, Lease, keep_leases
from models import (
    BambuMaterial,
    ConnectionStatus,
    IntentState,
    Order,
    OrderStatus,
    PlateState,
    Printer,
    PrinterConnection,
    PrintFile,
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
    nozzles=(Nozzle(0, 0.4, None),),
    spools=(Spool(ams_id=0, tray_id=0, slot=0, loaded=True, material_type="PLA"),),
)


class LinkOf:
    """A printer's connection at the edge of the world: it says what the test wants and remembers what it was told."""

    def __init__(self, clock: Clock, state: PrinterState = IDLE) -> None:
        self.clock, self.state, self.generation = clock, state, 1
        self.in_state_since: datetime | None = clock() - timedelta(minutes=1)
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
        self.material = farm.add_material(self.printer_id, slot=0, color="#FFFFFF")
        self.file = farm.add_file(make_sliced_file(None, [Plate(minutes=30)]))
        self.print_id = farm.add_print(self.printer_id, print_file_id=self.file["id"], status="scheduled")["id"]
        self.link, self.storage = LinkOf(clock), StorageOf()
        self.is_stopping = threading.Event()
        self.deferred: dict[int, str] = {}
        self.steps: list[str] = []
        self.look_again_at: datetime | None = None
        with farm.database():
            self.hear()
            db.session.commit()
        self.plate(PlateState.clear)

    def hear(self) -> None:
        db.session.execute(
            sa.update(PrinterConnection).values(
                connection_status=ConnectionStatus.connected, heard_at=self.clock(), snapshot={"state": "idle"}
            )
        )

    def plate(self, state: PlateState, print_id: int | None = None) -> None:
        with self.farm.database():
            gate = locked_gate(SERIAL)
            gate.plate_state, gate.plate_print_id = state, print_id
            db.session.commit()

    def plate_says(self, **facts: Any) -> None:
        """As if the slicer had written something else about the plate."""
        with self.farm.database():
            file = db.session.get_one(PrintFile, self.file["id"])
            file.plates = [{**file.plates[0], **facts}]
            db.session.commit()

    def bed_of(self, temp: int) -> None:
        self.plate_says(bed_temp=temp)
        self.change(ScheduledPrint, bed_temp=temp)

    def sliced_for(self, model: str | None) -> None:
        self.plate_says(printer_model=model)

    def change(self, model: Any, **values: Any) -> None:
        with self.farm.database():
            db.session.execute(sa.update(model).values(**values))
            db.session.commit()

    def start(self, lease: Lease | None = None, **more: Any) -> int | None:
        """The id of the print whose start was tried."""
        with self.farm.database():
            attempt = starter.Start(
                self.printer_id,
                self.link,
                self.storage,
                lease=lease or keep_leases("the worker", [SERIAL], now=self.clock())[SERIAL],
                clock=self.clock,
                rules=starter.StartRules.from_settings(self.farm.app.extensions["parts"].settings),
                is_stopping=self.is_stopping,
                in_state_since=lambda: self.link.in_state_since,
                deferred=self.deferred,
                at_step=self.steps.append,
                fresh_report_seconds=0.06,
                **more,
            ).run()
            self.look_again_at = attempt.look_again_at
            return attempt.intent.print_id if attempt.intent is not None else None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.farm.token}"}

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
    "plate occupied": (lambda b: b.plate(PlateState.occupied), "plate not cleared"),
    "plate unknown": (lambda b: b.plate(PlateState.unknown), "plate not cleared"),
    "storage unknown": (lambda b: setattr(b.link, "state", replace(IDLE, storage=None)), "storage"),
    "just come to rest": (lambda b: setattr(b.link, "in_state_since", b.clock() - timedelta(seconds=9)), "just come"),
    "rest unknown": (lambda b: setattr(b.link, "in_state_since", None), "just come"),
    "severe fault": (
        lambda b: setattr(
            b.link,
            "state",
            replace(IDLE, faults=(Fault("0300-0100-0001-0007", Severity.fatal, "hot bed", None),)),
        ),
        "0300-0100-0001-0007: hot bed",
    ),
    "other nozzle": (lambda b: setattr(b.link, "state", replace(IDLE, nozzles=(Nozzle(0, 0.2, None),))), "0.2 mm"),
    "nozzle unknown": (lambda b: setattr(b.link, "state", replace(IDLE, nozzles=())), "nozzle"),
    "other model": (lambda b: b.sliced_for("X1 Carbon"), "sliced for a X1 Carbon, this printer is a P1S"),
    "model unknown": (lambda b: b.sliced_for(None), "does not say for which printer"),
    "too hot": (
        lambda b: b.bed_of(110),
        "heats the bed to 110 °C, a P1S reaches 100 °C",
    ),
    "other temperature": (lambda b: b.change(ScheduledPrint, nozzle_temp=199), "199 °C was expected"),
    "other type in the file": (lambda b: b.change(ScheduledPrint, material_type="PETG"), "PETG was expected"),
    "queue paused": (lambda b: b.change(Printer, queue_paused_at=b.clock()), "queue of this printer is paused"),
    "held": (lambda b: b.change(ScheduledPrint, held_at=b.clock()), "held by a person"),
    "other colour": (lambda b: b.change(ScheduledPrint, material_color="#000000"), "needs PLA black"),
    "no storage": (lambda b: setattr(b.link, "state", replace(IDLE, storage=Storage.none)), "storage"),
    "developer mode off": (lambda b: setattr(b.link, "state", replace(IDLE, developer_mode=False)), "Developer Mode"),
    "not its time": (lambda b: b.change(ScheduledPrint, scheduled_start=b.clock() + timedelta(hours=1)), "not before"),
    "no file": (lambda b: b.change(ScheduledPrint, print_file_id=None), "no sliced file"),
    "no such spool": (lambda b: b.change(BambuMaterial, material_type="PETG"), "needs PLA"),
    "too few grams": (
        lambda b: b.change(ScheduledPrint, estimated_grams=1001),
        "needs PLA white 1001 g, slot 0 has 1000 g",
    ),
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


@contextmanager
def between_look_and_lock(act: Callable[[], object]) -> Iterator[None]:
    """Somebody else does this after the look without a lock, and before the one under the lock."""
    done: list[ORMExecuteState] = []

    def hear(statement: ORMExecuteState) -> None:
        is_lock = getattr(statement.statement, "_for_update_arg", None) is not None
        of_printer = statement.bind_mapper is not None and statement.bind_mapper.class_ is Printer
        if is_lock and of_printer and not done:
            done.append(statement)
            somebody = threading.Thread(target=act)
            somebody.start()
            somebody.join()

    sa.event.listen(db.session, "do_orm_execute", hear)
    try:
        yield
    finally:
        sa.event.remove(db.session, "do_orm_execute", hear)
    assert done


# Its clock is read once for both.
@pytest.mark.parametrize("case", [case for case in HELD_BACK if case != "silent for 90 s"])
def test_what_changes_before_the_printer_is_locked_is_seen(bench: Bench, case: str) -> None:
    spoil, words = HELD_BACK[case]
    with between_look_and_lock(lambda: spoil(bench)):
        assert bench.start() is None
    assert bench.link.published == [] and bench.intents() == []
    assert words in (bench.reason or "")


def test_a_worker_that_lost_its_lease_between_look_and_lock_claims_nothing(bench: Bench) -> None:
    with bench.farm.database():
        lease = keep_leases("a worker", [SERIAL], now=bench.clock())[SERIAL]
    with between_look_and_lock(lambda: take_over(bench)):
        assert bench.start(lease) is None
    assert bench.link.published == [] and bench.intents() == []


@pytest.mark.parametrize("waits", [True, False])
def test_a_look_that_changes_nothing_locks_nothing(bench: Bench, waits: bool) -> None:
    with bench.farm.database():
        lease = keep_leases("a worker", [SERIAL], now=bench.clock())[SERIAL]
    bench.plate(PlateState.occupied)
    bench.start(lease)
    if not waits:
        bench.farm.delete(f"/api/bambu/scheduled-prints/{bench.print_id}")
        bench.start(lease)
    begun: list[str] = []

    def hear(connection: object, cursor: Any, statement: str, *rest: object) -> None:
        # SQLite has one lock for all, which is not written in the statement.
        is_writing = getattr(cursor.connection, "in_transaction", False)
        if "FOR " in statement or not statement.startswith("SELECT") or is_writing:
            begun.append(statement)

    with bench.farm.app.app_context():
        engine = db.engine
    sa.event.listen(engine, "before_cursor_execute", hear)
    try:
        bench.start(lease)
    finally:
        sa.event.remove(engine, "before_cursor_execute", hear)
    assert begun == []


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
    assert bench.intents() == [IntentState.armed]


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
        tracker.watch_starts([bench.printer_id], now=bench.clock())
        db.session.commit()
    assert bench.intents() == [IntentState.unknown]
    assert "look at the printer" in (bench.reason or "")
    bench.plate(PlateState.clear)
    assert bench.start() is None, "an unconfirmed start is never repeated by itself"
    moved = bench.farm.put(f"/api/bambu/scheduled-prints/{bench.print_id}", {"status": "queued"})
    assert moved.status_code == 200, moved.text
    assert bench.intents() == [IntentState.not_started]
    bench.farm.post(f"/api/bambu/scheduled-prints/{bench.print_id}/start")
    bench.start()
    assert bench.intents() == [IntentState.not_started, IntentState.published]


def test_a_print_that_is_being_started_goes_on_saying_so_itself(bench: Bench) -> None:
    bench.start()
    said = bench.reason
    assert said == "sent to the printer, waiting for it to begin"
    bench.farm.add_print(bench.printer_id, print_file_id=bench.file["id"], status="scheduled")
    bench.start()
    assert bench.reason == said


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


def test_each_filament_of_a_plate_is_fed_from_the_slot_that_matches_it(bench: Bench) -> None:
    colors = (("PLA", "#111111", 1.0, 0.3), None, ("PETG", "#EEEEEE", 2.0, 0.6))
    file = bench.farm.add_file(make_sliced_file(None, [Plate(minutes=30, filaments=colors)]))
    bench.farm.add_material(bench.printer_id, slot=2, color="#EEEEEE", material_type="PETG")
    bench.farm.add_material(bench.printer_id, slot=5, color="#101010")
    bench.farm.delete(f"/api/bambu/scheduled-prints/{bench.print_id}")
    made = bench.farm.add_print(bench.printer_id, print_file_id=file["id"], status="scheduled")
    assert bench.start() == made["id"], bench.farm.get_print(made["id"])
    assert bench.link.published[0].mapping == ((1, 1), None, (0, 2))


def test_a_print_that_cannot_start_holds_up_none_behind_it(bench: Bench) -> None:
    bench.change(ScheduledPrint, material_color="#000000", priority=9)
    second = bench.farm.add_print(bench.printer_id, print_file_id=bench.file["id"], status="scheduled")
    third = bench.farm.add_print(bench.printer_id, print_file_id=bench.file["id"], status="scheduled")
    assert bench.start() == second["id"]
    assert "needs PLA black" in (bench.reason or "")
    assert bench.farm.get_print(third["id"])["waiting_reason"] == "another print goes first"  # type: ignore[index]


def test_a_deferred_print_lets_the_next_one_go(bench: Bench) -> None:
    second = bench.farm.add_print(bench.printer_id, print_file_id=bench.file["id"], status="scheduled")
    bench.deferred[bench.print_id] = "the file could not be sent"
    assert bench.start() == second["id"]
    assert bench.reason == "the file could not be sent"


OVERRIDES: dict[str, str] = {
    "other nozzle": "nozzle",
    "too hot": "temperatures",
    "other temperature": "profile",
    "severe fault": "fault",
    "just come to rest": "settled",
    "storage unknown": "storage",
    "printer sees other filament": "filament",
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_a_person_may_answer_for_a_single_interlock(bench: Bench, case: str) -> None:
    HELD_BACK[case][0](bench)
    assert bench.start() is None
    bench.change(ScheduledPrint, overrides=[OVERRIDES[case]])
    assert bench.start() == bench.print_id
    with bench.farm.database():
        checks = db.session.execute(sa.select(StartIntent.checks)).scalar_one()
    assert checks is not None and checks.pop("report_age_seconds") < 10
    assert checks.pop("printer_was") == "idle"
    assert checks[OVERRIDES[case]] == "overridden by a person"
    assert set(checks.values()) == {"ok", "overridden by a person"}


@pytest.mark.parametrize("case", ["printer busy", "plate occupied", "other model", "developer mode off", "held"])
def test_nobody_overrides_what_would_break_something(bench: Bench, case: str) -> None:
    HELD_BACK[case][0](bench)
    bench.change(ScheduledPrint, overrides=[lock.value for lock in Interlock])
    assert bench.start() is None
    assert bench.link.published == []


def test_the_starter_says_when_time_alone_may_change_something(bench: Bench) -> None:
    due = bench.clock() + timedelta(hours=1)
    bench.change(ScheduledPrint, scheduled_start=due)
    assert bench.start() is None
    assert bench.look_again_at == due
    bench.link.in_state_since = bench.clock() - timedelta(seconds=4)
    bench.start()
    assert bench.look_again_at == bench.clock() + timedelta(seconds=6)


def test_each_named_crash_point_lies_on_the_way(bench: Bench) -> None:
    bench.start()
    assert tuple(bench.steps) == starter.CRASH_POINTS


def test_a_print_taken_back_while_its_file_is_on_the_way_is_never_sent(bench: Bench) -> None:
    def cancel() -> None:
        with bench.farm.app.app_context():
            mine = db.session.get_one(ScheduledPrint, bench.print_id)
            assert starter.take_back(mine, now=bench.clock())
            db.session.commit()

    bench.link.on_fresh_report = cancel
    bench.start()
    assert bench.link.published == []
    assert bench.intents() == [IntentState.withdrawn]


def test_a_print_whose_start_may_have_been_sent_is_not_taken_back(bench: Bench) -> None:
    bench.start()
    with bench.farm.database():
        assert not starter.take_back(db.session.get_one(ScheduledPrint, bench.print_id), now=bench.clock())


def test_ids_of_starts_are_never_shared_by_two_accounts_on_one_machine(bench: Bench, stranger: Farm) -> None:
    """The printer's report names a start by its id: two accounts with the same machine must not mean the same id."""
    bench.start()
    with bench.farm.database():
        first = db.session.execute(sa.select(StartIntent.submission_id)).scalar_one()
        gate = locked_gate(SERIAL)
        assert next_submission_id(gate, bench.clock()) > first
        assert next_submission_id(gate, bench.clock() - timedelta(days=90)) > first + 1


def test_a_file_that_was_changed_during_the_upload_is_not_started_by_the_old_name(bench: Bench) -> None:
    """An edit that began before the claim may come in after it: what lies on the printer is not what is wanted now."""
    other = bench.farm.add_file(make_sliced_file(None, [Plate(minutes=31)]))

    def edit() -> None:
        db.session.execute(sa.update(ScheduledPrint).values(print_file_id=other["id"]))
        db.session.commit()

    bench.link.on_fresh_report = edit
    bench.start()
    assert bench.link.published == []
    assert bench.intents() == [IntentState.withdrawn]
    assert "file was changed" in (bench.reason or "")
    bench.link.on_fresh_report = lambda: None
    assert bench.start() == bench.print_id
