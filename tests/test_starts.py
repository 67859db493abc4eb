"""When a queue is looked at, and what that costs however long it is. None of it needs a ring, which may be lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, BinaryIO, cast

import pytest
import sqlalchemy as sa
from flask import Flask

from bambu_client import LinkStatus, PrinterLink
from bambu_files import PrinterStorage, UploadFailed
from bambu_report import Nozzle, PrinterActivity, PrinterState, Storage
from bell import SWEEP
from farm.gates import clear, locked_gate
from farm.leases import keep_leases
from links import Held
from models import (
    BambuMaterial,
    ConnectionStatus,
    Order,
    OrderStatus,
    PlateState,
    Printer,
    PrinterConnection,
    PrinterGate,
    PrintStatus,
    ScheduledPrint,
    db,
)
from starts import BROKEN_OFF_AGAIN, Starts
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm

SERIALS = ("01P00A000000001", "01P00A000000002")
IDLE = PrinterState(known=True, state=PrinterActivity.idle, storage=Storage.ok, nozzles=(Nozzle(0, 0.4, None),))


class LinkOf:
    """A printer at the edge of the world: idle, and its storage takes nothing. It counts the looks at its state."""

    status, generation, full_heard_at, clear_data = LinkStatus.connected, 1, BASE_TIME, False

    def __init__(self) -> None:
        self.looks = 0
        self.on_look: Callable[[], None] = lambda: None

    @property
    def state(self) -> PrinterState:
        self.looks += 1
        self.on_look()
        return IDLE

    def upload(self, stream: BinaryIO, remote_name: str, size_bytes: int) -> None:
        raise UploadFailed("it is full", retry=True)


class Watch:
    """Two printers whose plates are not cleared, each with a spool and a released print, as a worker holds them."""

    def __init__(self, farm: Farm, clock: Clock) -> None:
        self.farm, self.clock = farm, clock
        self.printer_ids = [
            farm.add_printer(serial, host="127.0.0.1", serial_number=serial, access_code="12345678")["id"]
            for serial in SERIALS
        ]
        self.material_ids = [farm.add_material(printer_id, color="#FFFFFF")["id"] for printer_id in self.printer_ids]
        self.order_id = farm.add_order()["id"]
        self.file_id = farm.add_file()["id"]
        self.print_ids = [self.add_print(0, order_id=self.order_id), self.add_print(1)]
        with farm.database():
            leases = keep_leases("the worker", SERIALS, now=clock(), life=timedelta(days=1))
            db.session.execute(sa.update(PrinterGate).values(plate_state=PlateState.occupied))
            db.session.execute(
                sa.update(PrinterConnection).values(connection_status=ConnectionStatus.connected, heard_at=clock())
            )
            db.session.commit()
        self.links = [LinkOf(), LinkOf()]
        self.held = [
            Held(
                connection_id=printer_id,
                printer_id=printer_id,
                version=1,
                lease=leases[serial],
                state=IDLE,
                in_state_since=clock() - timedelta(hours=1),
                link=cast("PrinterLink", link),
                storage=cast("PrinterStorage", link),
            )
            for printer_id, serial, link in zip(self.printer_ids, SERIALS, self.links, strict=True)
        ]
        self.woken = 0
        self.starts = Starts(farm.app, run=self.run, is_stopping=threading.Event(), wake=self.wake)

    def run(self, errand: Callable[[], None], after: Callable[[], None]) -> None:
        """As the worker's pool does, at once: what fails ends nothing else."""
        try:
            with self.farm.app.app_context():
                errand()
        except OSError:
            pass
        finally:
            after()

    def wake(self) -> None:
        self.woken += 1

    def add_print(self, place: int, **fields: Any) -> int:
        body = {"print_file_id": self.file_id, "status": "scheduled", **fields}
        made: int = self.farm.add_print(self.printer_ids[place], **body)["id"]
        return made

    def add_prints(self, place: int, count: int) -> None:
        with self.farm.database():
            db.session.execute(
                sa.insert(ScheduledPrint),
                [
                    {
                        "user_id": self.farm.user["id"], "printer_id": self.printer_ids[place], "job_name": f"No. {n}",
                        "print_file_id": self.file_id, "order_id": self.order_id, "status": PrintStatus.scheduled,
                        "scheduled_start": self.clock() - timedelta(minutes=n), "material_type": "PLA",
                        "created_at": self.clock(), "updated_at": self.clock(),
                    }
                    for n in range(count)
                ],
            )  # fmt: skip
            db.session.commit()

    def looked_at(self) -> list[int]:
        """The places of the printers that one round of the worker looks at."""
        before = [link.looks for link in self.links]
        self.starts.begin(self.held)
        return [place for place, link in enumerate(self.links) if link.looks > before[place]]

    def sweep(self) -> list[int]:
        self.starts.compare(self.held)
        return self.looked_at()

    def reason(self, place: int) -> str | None:
        found = self.farm.get_print(self.print_ids[place])
        assert found is not None
        return found["waiting_reason"]


@pytest.fixture
def watch(farm: Farm, clock: Clock) -> Watch:
    made = Watch(farm, clock)
    assert made.sweep() == [0, 1]
    assert [made.reason(place) for place in (0, 1)] == ["plate not cleared"] * 2
    # Later than everything that has been changed so far.
    clock.forward(seconds=1)
    return made


@contextmanager
def statements(app: Flask) -> Iterator[list[str]]:
    """The statements that reach the database."""
    found: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        found.append(statement)

    with app.app_context():
        engine = db.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    yield found
    sa.event.remove(engine, "before_cursor_execute", note)


def counted(watch: Watch, act: Callable[[], Any]) -> int:
    with statements(watch.farm.app) as found:
        act()
    return len(found)


def test_a_comparison_takes_three_statements_however_many_prints_and_printers(watch: Watch) -> None:
    assert counted(watch, lambda: watch.starts.compare(watch.held[:1])) == 3
    watch.add_prints(0, 60)
    assert counted(watch, lambda: watch.starts.compare(watch.held)) == 3


def test_a_look_takes_as_many_statements_at_a_long_queue_as_at_a_short_one(watch: Watch) -> None:
    def look(rung: int = 0) -> int:
        watch.starts.rung(watch.held, frozenset({watch.printer_ids[rung]}))
        return counted(watch, watch.looked_at)

    watch.add_prints(0, 2)
    first = look()
    short = look()
    assert first == 2 * short + 2, "once more under the lock, with the lease, and then written"
    watch.add_prints(0, 60)
    assert (look(), look()) == (first, short)
    with watch.farm.database():
        told = db.session.execute(sa.select(ScheduledPrint.waiting_reason).distinct()).scalars().all()
    assert told == ["plate not cleared"]


def test_what_did_not_change_is_not_looked_at_again(watch: Watch) -> None:
    assert [watch.sweep() for _ in range(3)] == [[]] * 3
    watch.clock.forward(hours=1)
    assert watch.sweep() == []


def test_a_ring_for_one_printer_looks_at_that_one_only(watch: Watch) -> None:
    watch.starts.rung(watch.held, frozenset({watch.printer_ids[1]}))
    assert watch.looked_at() == [1]
    watch.starts.rung(watch.held, frozenset({watch.printer_ids[0], SWEEP}))
    assert watch.looked_at() == [0]


def in_database(change: Callable[[Watch], None]) -> Callable[[Watch], None]:
    def act(watch: Watch) -> None:
        with watch.farm.database():
            change(watch)
            db.session.commit()

    return act


def call(method: str, path: str, body: Any = None) -> Callable[[Watch], None]:
    """Through the API, as a page does; in the path the first printer's own ids."""

    def act(watch: Watch) -> None:
        ids = {"printer": watch.printer_ids[0], "print": watch.print_ids[0], "material": watch.material_ids[0]}
        ids["connection"] = watch.farm.get(f"/api/printers/{ids['printer']}").json["connection_id"]
        answer = watch.farm.call(method, path.format(**ids), **({"json": body} if body is not None else {}))
        assert answer.status_code < 300, answer.text

    return act


PRINT = "/api/bambu/scheduled-prints/{print}"
CHANGES: dict[str, Callable[[Watch], None]] = {
    "print added": lambda watch: cast("None", watch.add_print(0)),
    "print changed": call("PUT", PRINT, {"material_type": "PETG"}),
    "print taken back": call("PUT", PRINT, {"status": "queued"}),
    "print held": call("POST", f"{PRINT}/hold"),
    "print deleted": call("DELETE", PRINT),
    "lock overridden": call("POST", f"{PRINT}/start", {"override": ["filament"]}),
    "spool loaded": call(
        "POST", "/api/bambu/materials/{printer}", {"slot": 1, "material_type": "PLA", "weight_grams": 9}
    ),
    "spool weighed": call("PUT", "/api/bambu/materials/{material}", {"remaining_pct": 20}),
    "spool removed": call("DELETE", "/api/bambu/materials/{material}"),
    "plate cleared": call("POST", "/api/printers/{printer}/plate-cleared", {"print_id": None}),
    "plate cleared by a statement": in_database(lambda watch: clear(locked_gate(SERIALS[0]))),
    "printer changed": call("PUT", "/api/printers/{printer}", {"nozzle_diameter_mm": 0.6}),
    "auto-start": call("PUT", "/api/printers/{printer}", {"auto_start": True}),
    "queue paused": call("POST", "/api/printers/{printer}/pause-queue"),
    "order cancelled": in_database(
        lambda watch: setattr(db.session.get_one(Order, watch.order_id), "status", OrderStatus.canceled)
    ),
    "connection lost": in_database(
        lambda watch: setattr(
            db.session.get_one(Printer, watch.printer_ids[0]).connection, "connection_status", ConnectionStatus.offline
        )
    ),
    "connection changed": call("PUT", "/api/printer-connections/{connection}", {"host": "127.0.0.2"}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_one_sweep_finds_every_change_without_a_ring(watch: Watch, change: Callable[[Watch], None]) -> None:
    change(watch)
    assert watch.looked_at() == [], "nobody rang"
    assert watch.sweep() == [0]
    # A look that released or moved something may be followed by one more, then there is rest.
    watch.sweep()
    assert watch.sweep() == []


def test_the_reason_follows_what_a_sweep_has_found(watch: Watch) -> None:
    CHANGES["order cancelled"](watch)
    watch.sweep()
    assert (watch.reason(0), watch.reason(1)) == ("its order is canceled", "plate not cleared")


def test_filament_that_another_print_used_is_found_too(watch: Watch) -> None:
    with watch.farm.database():
        spool = db.session.get_one(BambuMaterial, watch.material_ids[1])
        spool.remaining_grams, spool.updated_at = spool.remaining_grams / 2, watch.clock()
        db.session.commit()
    assert watch.sweep() == [1]


def test_a_print_is_looked_at_when_its_time_has_come(watch: Watch) -> None:
    watch.add_print(0, scheduled_start=(watch.clock() + timedelta(minutes=10)).isoformat())
    watch.sweep()
    watch.clock.forward(minutes=9)
    assert watch.looked_at() == []
    watch.clock.forward(minutes=1)
    assert watch.looked_at() == [0]


def test_a_change_during_a_look_is_looked_at_at_once(watch: Watch) -> None:
    def ring_once() -> None:
        watch.links[0].on_look = lambda: None
        watch.starts.rung(watch.held, frozenset({watch.printer_ids[0]}))

    watch.links[0].on_look = ring_once
    watch.starts.rung(watch.held, frozenset({watch.printer_ids[0]}))
    assert watch.looked_at() == [0]
    assert watch.woken == 1
    assert watch.looked_at() == [0]
    assert (watch.looked_at(), watch.woken) == ([], 1)


def test_a_look_that_broke_off_is_taken_again(watch: Watch) -> None:
    def fail_once() -> None:
        watch.links[0].on_look = lambda: None
        raise OSError

    CHANGES["print added"](watch)
    watch.links[0].on_look = fail_once
    assert watch.sweep() == [0]
    assert watch.sweep() == [], "not at once, again and again"
    watch.clock.forward(seconds=BROKEN_OFF_AGAIN.total_seconds())
    assert watch.looked_at() == [0]
    watch.clock.forward(hours=1)
    assert watch.looked_at() == []


WAITING_FOR_LOCKS = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


@pytest.fixture
def between_transactions(watch: Watch) -> Iterator[sa.Connection]:
    """Somebody else's transaction, and a database that holds locks on rows."""
    with watch.farm.app.app_context():
        engine = db.engine
    if engine.dialect.name != "postgresql":
        pytest.skip("on SQLite one writes after the other")
    with engine.connect() as connection:
        yield connection


def test_a_click_that_holds_the_printer_and_a_look_do_not_wait_for_each_other(
    watch: Watch, between_transactions: sa.Connection
) -> None:
    click = between_transactions
    # Which has to learn why it waits.
    watch.add_print(0)
    click.execute(sa.select(Printer.id).where(Printer.id == watch.printer_ids[0]).with_for_update()).all()
    watch.starts.rung(watch.held, frozenset({watch.printer_ids[0]}))
    with ThreadPoolExecutor(1) as pool:
        look = pool.submit(watch.starts.begin, watch.held)
        until = time.monotonic() + 5
        while not click.execute(WAITING_FOR_LOCKS).scalar_one():
            assert time.monotonic() < until, "the look waits for the printer"
            time.sleep(0.01)
            # Else a transaction goes on seeing what it saw first.
            click.execute(sa.text("SELECT pg_stat_clear_snapshot()"))
        gate = sa.select(PrinterGate).where(PrinterGate.serial_number == SERIALS[0]).with_for_update(nowait=True)
        assert click.execute(gate).all(), "not while it holds the gate already"
        click.rollback()
        look.result(timeout=5)
    assert watch.links[0].looks == 4, "each time without a lock, and with it"


def test_a_look_waits_for_no_print_that_somebody_is_changing(watch: Watch, between_transactions: sa.Connection) -> None:
    second = watch.add_print(0, priority=-1)
    CHANGES["queue paused"](watch)
    mine = sa.select(ScheduledPrint.id).where(ScheduledPrint.id == watch.print_ids[0])
    between_transactions.execute(mine.with_for_update()).all()
    assert watch.sweep() == [0]
    between_transactions.rollback()
    other = watch.farm.get_print(second)
    assert other is not None
    assert other["waiting_reason"] == "the queue of this printer is paused"
    assert watch.reason(0) == "plate not cleared", "whoever changes it has it looked at again"


def test_an_event_of_a_print_can_be_written_during_a_look(watch: Watch, between_transactions: sa.Connection) -> None:
    """It refers to the printer, which the look has locked."""
    added: list[int] = []

    def let_pass() -> None:
        """The look without a lock."""
        watch.links[0].on_look = release

    def release() -> None:
        watch.links[0].on_look = lambda: None
        with ThreadPoolExecutor(1) as pool:
            path = f"/api/bambu/scheduled-prints/{queued}/start"
            added.append(pool.submit(watch.farm.post, path).result(timeout=5).status_code)

    queued = watch.add_print(0, status="queued")
    watch.add_print(0)
    watch.links[0].on_look = let_pass
    assert watch.sweep() == [0]
    assert added == [200]
