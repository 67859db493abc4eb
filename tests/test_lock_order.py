"""Locks are taken in one order: the printer, its gate, the print, the start. In two orders each of two would wait for
the other, and PostgreSQL throws one of them out. SQLite has one lock for all."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from flask import Flask, g

from auth import get_mine
from bambu_client import Answer
from bambu_report import PrinterActivity, PrinterState
from farm.gates import locked_gate
from farm.leases import Lease
from models import IntentState, PlateState, Printer, PrinterGate, PrintStatus, ScheduledPrint, StartIntent, db
from recorder import Recorder, Watched
from tests.conftest import Clock
from tests.farm_builder import Farm
from tests.test_many_printers import Listening
from tests.test_starter import SERIAL, Bench

IS_ANYBODY_WAITING = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")


@pytest.fixture
def on_postgresql(app: Flask) -> None:
    with app.app_context():
        if db.engine.dialect.name != "postgresql":
            pytest.skip("SQLite has one lock for all")


@pytest.fixture
def listening(app: Flask, farm: Farm, clock: Clock, on_postgresql: None) -> Listening:
    return Listening(app, farm, clock)


def takes_the_printer_first(app: Flask, act: Callable[[], object], then: sa.Select[tuple[object]]) -> None:
    """While the printer is somebody else's, `act` waits and does not hold what it takes later: `then`."""
    with app.app_context():
        engine = db.engine
    with engine.connect() as somebody, engine.connect() as other, ThreadPoolExecutor() as pool:
        somebody.execute(sa.select(Printer.id).with_for_update(key_share=True))
        acting = pool.submit(act)
        until_it_waits(acting, other)
        other.execute(then.with_for_update(nowait=True)).scalar_one()
        other.rollback()
        somebody.rollback()
        acting.result()


def until_it_waits(acting: Future[object], other: sa.Connection) -> None:
    while not other.execute(IS_ANYBODY_WAITING).scalar_one():
        assert not acting.done()
        # What a transaction has seen of the activity once, it goes on seeing.
        other.rollback()


def test_a_report_takes_the_printer_before_its_gate(app: Flask, listening: Listening) -> None:
    with listening.farm.database():
        locked_gate("01P00A1").plate_state = PlateState.clear
        db.session.commit()
    takes_the_printer_first(app, listening.hear, sa.select(PrinterGate.serial_number))
    with listening.farm.database():
        assert db.session.execute(sa.select(PrinterGate.plate_state)).scalar_one() is PlateState.occupied


@pytest.mark.parametrize("act", ["recorded as started", "deleted"])
def test_a_person_takes_the_printer_before_its_print(
    app: Flask, farm: Farm, clock: Clock, listening: Listening, act: str
) -> None:
    url = f"/api/bambu/scheduled-prints/{farm.add_print(listening.watched.printer_id)['id']}"

    def do() -> None:
        answer = {
            "recorded as started": lambda: farm.put(url, {"status": "started"}),
            "deleted": lambda: farm.delete(url),
        }[act]()
        assert answer.status_code == 200, answer.text

    takes_the_printer_first(app, do, sa.select(ScheduledPrint.id))


def test_what_is_locked_is_read_as_it_stands_then(app: Flask, farm: Farm) -> None:
    """Whatever was read before the lock: somebody may have changed it while one waited."""
    print_id = farm.add_print(farm.add_printer()["id"])["id"]
    with app.test_request_context():
        g.user_id = farm.user["id"]
        before = get_mine(ScheduledPrint, print_id)
        assert before.priority == 0
        with db.engine.begin() as somebody:
            somebody.execute(sa.update(ScheduledPrint.__table__).values(priority=7))
        assert get_mine(ScheduledPrint, print_id, for_update=True) is before and before.priority == 7
        db.session.rollback()


def test_a_refusal_takes_the_printer_before_its_print(
    app: Flask, farm: Farm, clock: Clock, on_postgresql: None
) -> None:
    bench = Bench(farm, clock)
    bench.start()
    (order,) = bench.link.published
    refusal = Answer("project_file", "20001", False, "0x05004003", "busy", str(order.submission_id))
    watched = Watched(connection_id=0, printer_id=bench.printer_id, version=1, lease=Lease(SERIAL, "test", 1))
    takes_the_printer_first(app, lambda: Recorder(app).answered(watched, refusal), sa.select(ScheduledPrint.id))
    assert bench.intents() == [IntentState.refused]


def test_a_report_reads_the_start_as_whoever_held_its_print_left_it(
    app: Flask, farm: Farm, clock: Clock, on_postgresql: None
) -> None:
    bench = Bench(farm, clock)
    bench.start()
    (order,) = bench.link.published
    begun = PrinterState(known=True, state=PrinterActivity.printing, submission_id=str(order.submission_id))
    watched = Watched(connection_id=0, printer_id=bench.printer_id, version=1, lease=Lease(SERIAL, "test", 1))
    with app.app_context():
        engine = db.engine
    with engine.connect() as somebody, engine.connect() as other, ThreadPoolExecutor() as pool:
        somebody.execute(sa.select(ScheduledPrint.id).with_for_update())
        hearing = pool.submit(Recorder(app).heard, watched, begun, clock())
        until_it_waits(hearing, other)
        somebody.execute(sa.update(StartIntent.__table__).values(state=IntentState.withdrawn, ended_at=clock()))
        somebody.commit()
        hearing.result()
    assert bench.intents() == [IntentState.withdrawn]
    assert farm.get_print(bench.print_id)["status"] == PrintStatus.scheduled
