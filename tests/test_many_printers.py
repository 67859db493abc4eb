"""What lets one worker hold hundreds of printers: files to open, and reports that ask nothing of the database."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from bambu_report import PrinterActivity, PrinterState
from farm.leases import Lease
from links import Held, Links
from models import PrinterConnection, db
from recorder import Recorder, Watched
from tests.conftest import Clock
from tests.farm_builder import Farm
from tests.test_starter import SERIAL, Bench
from worker import Worker

PRINTING = PrinterState(known=True, state=PrinterActivity.printing, progress_percent=10, layers_printed=1)


@pytest.fixture
def statements(app: Flask) -> Iterator[list[str]]:
    """What is asked of the database, as it is asked."""
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        asked.append(statement)

    with app.app_context():
        engine = db.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    yield asked
    sa.event.remove(engine, "before_cursor_execute", note)


class Listening:
    """A printer's connection as a worker's recorder has it, told what the test tells."""

    def __init__(self, app: Flask, farm: Farm, clock: Clock) -> None:
        printer = farm.add_printer(
            connection_type="bambu_lan", host="192.0.2.7", serial_number="01P00A1", access_code="12345678"
        )
        self.farm, self.clock, self.connection_id = farm, clock, printer["connection_id"]
        self.recorder = Recorder(app)
        self.watched = Watched(
            connection_id=self.connection_id, printer_id=printer["id"], version=1, lease=Lease("01P00A1", "test", 1)
        )

    def hear(self, **changes: Any) -> None:
        self.recorder.heard(self.watched, replace(PRINTING, **changes), self.clock())

    def look(self) -> int | None:
        """The worker's regular look, and the layer that the row then shows."""
        self.recorder.save_snapshots([self.watched])
        return self.shown().get("layers_printed")

    def shown(self) -> dict[str, Any]:
        with self.farm.database():
            return db.session.get_one(PrinterConnection, self.connection_id).snapshot or {}


@pytest.fixture
def listening(app: Flask, farm: Farm, clock: Clock) -> Listening:
    return Listening(app, farm, clock)


def test_how_far_a_print_that_is_not_ours_has_come_asks_nothing_of_the_database(
    listening: Listening, statements: list[str]
) -> None:
    listening.hear()
    assert statements
    statements.clear()
    listening.hear(progress_percent=11)
    listening.hear(progress_percent=12, layers_printed=2)
    assert statements == []
    listening.watched.current_print_id = 7  # as the tracker says of ours
    listening.hear(progress_percent=13)
    assert statements


def test_a_report_that_says_what_was_just_written_down_asks_nothing_of_the_database(
    app: Flask, farm: Farm, clock: Clock, statements: list[str]
) -> None:
    """As a print of ours begins, and as it ends: it is not the report alone that has changed then."""
    bench = Bench(farm, clock)
    bench.start()
    (order,) = bench.link.published
    connection_id = farm.get(f"/api/printers/{bench.printer_id}").json["connection_id"]
    recorder = Recorder(app)
    watched = Watched(connection_id=connection_id, printer_id=bench.printer_id, version=1, lease=Lease(SERIAL, "w", 1))
    ours = replace(PRINTING, submission_id=str(order.submission_id), progress_percent=40)

    def hear(state: PrinterState) -> list[str]:
        statements.clear()
        recorder.heard(watched, state, clock())
        return list(statements)

    assert hear(ours) and watched.current_print_id == bench.print_id
    assert hear(ours) == []
    finished = replace(ours, state=PrinterActivity.finished, progress_percent=100)
    assert hear(finished)
    clock.forward(seconds=3)
    recorder.settle_on_time([watched])
    assert watched.current_print_id is None
    assert hear(finished) == []


def test_a_printer_that_reports_as_often_as_is_written_down_never_waits_for_the_next_time(listening: Listening) -> None:
    for second in range(7):
        listening.hear(layers_printed=second + 1)
        # The look that comes next, each time a little sooner than a second after the last.
        wait = 280 - 40 * second
        listening.clock.forward(milliseconds=wait)
        assert listening.look() == second + 1
        listening.clock.forward(milliseconds=1000 - wait)


def test_more_often_than_is_set_nothing_is_written_down(listening: Listening) -> None:
    listening.hear(layers_printed=1)
    assert listening.look() == 1
    for layer in range(2, 5):
        listening.clock.forward(milliseconds=200)
        listening.hear(layers_printed=layer)
        assert listening.look() == 1
    listening.clock.forward(milliseconds=400)
    assert listening.look() == 4


def test_a_clock_that_was_set_back_stops_no_writing(listening: Listening) -> None:
    listening.hear(layers_printed=1)
    assert listening.look() == 1
    listening.clock.forward(hours=-1)
    listening.hear(layers_printed=2)
    assert listening.look() == 2


def test_what_time_alone_settles_is_shown_with_the_next_snapshot(listening: Listening, statements: list[str]) -> None:
    """A webhook waits for the transaction that settles it; what a page shows can come a moment later."""
    listening.hear(state=PrinterActivity.finished, progress_percent=None)
    listening.watched.current_print_id = 7  # as the tracker says of ours
    listening.watched.is_unsaved = True
    listening.clock.forward(seconds=2)
    listening.look()
    assert listening.shown()["current_print_id"] == 7
    statements.clear()
    listening.recorder.settle_on_time([listening.watched])
    assert statements and not any("UPDATE printer_connections" in each for each in statements)
    listening.clock.forward(seconds=2)
    listening.look()
    assert listening.shown()["current_print_id"] is None, "though nothing more was heard"


def test_a_report_that_could_not_be_tracked_is_written_down_with_what_it_settles(
    listening: Listening, statements: list[str]
) -> None:
    """Else what was decided on it would be decided once more."""
    listening.hear(state=PrinterActivity.finished)
    listening.watched.tracked = None  # as when the database failed
    listening.clock.forward(seconds=2)
    statements.clear()
    listening.recorder.settle_on_time([listening.watched])
    assert any("UPDATE printer_connections" in each for each in statements)


def test_what_was_heard_last_is_written_down_when_the_worker_ends(app: Flask, listening: Listening) -> None:
    listening.hear(layers_printed=1)
    heard = {each.name: getattr(listening.watched, each.name) for each in fields(Watched)}
    silent: Any = SimpleNamespace(close=lambda: None, break_off=lambda: None)
    with ThreadPoolExecutor() as pool:
        links = Links(app, "test", post=lambda act: None, pool=pool)
        links._by_connection[listening.connection_id] = held = Held(**heard, link=silent, storage=silent)
        links._recorder.heard(held, replace(PRINTING, layers_printed=2), listening.clock())
        assert held.is_unsaved and listening.shown()["layers_printed"] == 1
        assert links.printer_ids() == {listening.watched.printer_id}
        links.close()
    assert listening.shown()["layers_printed"] == 2 and links.printer_ids() == frozenset()


def test_a_worker_asks_for_as_many_open_files_as_hundreds_of_printers_take(app: Flask) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("not that many files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        worker = Worker(app)
        worker.start()
        worker.stop()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 2048
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
