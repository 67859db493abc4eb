"""The bell: whoever changes what may start tells the workers, in this process and in others."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from bell import ALL, SWEEP, NotifyListener, Rung
from farm.gates import locked_gate
from models import MAX_ID, BambuMaterial, Order, OrderStatus, PlateState, Printer, ScheduledPrint, StartIntent, db
from tests.farm_builder import Farm


class Rings:
    def __init__(self) -> None:
        self.heard: list[Rung] = []

    def since(self, act: Callable[[], Any]) -> Rung:
        self.heard.clear()
        act()
        return frozenset().union(*self.heard)


@pytest.fixture
def rings(app: Flask) -> Iterator[Rings]:
    found = Rings()
    bell = app.extensions["bell"]
    bell.listen(found.heard.append)
    yield found
    bell.stop_listening(found.heard.append)


def test_whatever_may_change_what_starts_rings_for_its_printer(farm: Farm, rings: Rings) -> None:
    left, right = (farm.add_printer(name)["id"] for name in ("Left", "Right"))
    assert rings.since(lambda: farm.add_material(left)) == {left}
    assert rings.since(lambda: farm.put(f"/api/printers/{right}", {"auto_start": True})) == {right}
    made = farm.add_print(right)["id"]
    path = f"/api/bambu/scheduled-prints/{made}"
    assert rings.since(lambda: farm.post(f"{path}/start")) == {right}
    assert rings.since(lambda: farm.put(path, {"priority": 5})) == {right}
    assert rings.since(lambda: farm.delete(path)) == {right}


def test_a_statement_that_names_no_object_asks_for_a_comparison(farm: Farm, rings: Rings) -> None:
    printer_id = farm.add_printer()["id"]
    assert SWEEP in rings.since(lambda: farm.add_print(printer_id))

    def bulk() -> None:
        with farm.database():
            db.session.execute(sa.update(BambuMaterial).values(notes="x"))
            db.session.commit()

    assert rings.since(bulk) == {SWEEP}


def test_a_cleared_plate_asks_for_a_comparison(farm: Farm, rings: Rings) -> None:
    def clear() -> None:
        with farm.database():
            locked_gate("01P00A000000001").plate_state = PlateState.clear
            db.session.commit()

    assert rings.since(clear) == {SWEEP}


def test_a_cancelled_order_concerns_every_printer(farm: Farm, rings: Rings) -> None:
    order_id = farm.add_order()["id"]

    def cancel() -> None:
        with farm.database():
            db.session.get_one(Order, order_id).status = OrderStatus.canceled
            db.session.commit()

    assert ALL in rings.since(cancel)


@pytest.mark.parametrize("name", ["waiting_reason", "progress_percent"])
def test_what_the_worker_writes_with_each_report_rings_for_nobody(farm: Farm, rings: Rings, name: str) -> None:
    print_id = farm.add_print(farm.add_printer()["id"])["id"]

    def write() -> None:
        with farm.database():
            setattr(db.session.get_one(ScheduledPrint, print_id), name, "x" if name == "waiting_reason" else 5)
            db.session.commit()

    assert rings.since(write) == frozenset()


def test_what_was_rolled_back_never_rang(farm: Farm, rings: Rings) -> None:
    printer_id = farm.add_printer()["id"]

    def change_and_drop() -> None:
        with farm.database():
            db.session.get_one(Printer, printer_id).auto_start = True
            db.session.flush()
            db.session.rollback()
            db.session.commit()

    assert rings.since(change_and_drop) == frozenset()


def test_a_savepoint_rings_for_nothing_yet(farm: Farm, rings: Rings) -> None:
    printer_id = farm.add_printer()["id"]

    def change() -> None:
        with farm.database():
            db.session.get_one(Printer, printer_id).auto_start = True
            db.session.flush()
            with db.session.begin_nested():
                pass
            assert rings.heard == []
            db.session.commit()

    assert rings.since(change) == {printer_id}


def test_steps_of_a_start_do_not_wake_every_printer(farm: Farm, rings: Rings) -> None:
    def step() -> None:
        with farm.database():
            db.session.execute(sa.update(StartIntent).values(is_file_on_printer=False))
            db.session.commit()

    assert rings.since(step) == frozenset()


@pytest.fixture
def from_elsewhere(app: Flask) -> Iterator[queue.SimpleQueue[Rung]]:
    with app.app_context():
        url = db.engine.url
    if url.get_backend_name() != "postgresql":
        pytest.skip("SQLite is for one process, which hears itself")
    heard: queue.SimpleQueue[Rung] = queue.SimpleQueue()
    listener = NotifyListener(url, heard.put)
    listener.start()
    assert heard.get(timeout=10) == {ALL}, "whatever was rung while nobody listened"
    yield heard
    listener.close()


def test_another_process_hears_the_ring_once_it_is_committed(
    farm: Farm, from_elsewhere: queue.SimpleQueue[Rung]
) -> None:
    printer_id = farm.add_printer()["id"]
    assert from_elsewhere.get(timeout=10) == {printer_id}


def test_of_a_printer_that_is_held_here_no_other_process_hears(
    app: Flask, farm: Farm, rings: Rings, from_elsewhere: queue.SimpleQueue[Rung]
) -> None:
    ours = farm.add_printer("Ours")["id"]
    assert from_elsewhere.get(timeout=10) == {ours}
    theirs = farm.add_printer("Theirs")["id"]
    assert from_elsewhere.get(timeout=10) == {theirs}
    app.extensions["bell"].listen(lambda rung: None, held=lambda: frozenset({ours}))
    assert rings.since(lambda: farm.add_material(ours)) == {ours}

    def both() -> None:
        with farm.database():
            for printer_id in (ours, theirs):
                db.session.get_one(Printer, printer_id).auto_start = True
            db.session.commit()

    assert rings.since(both) == {ours, theirs}
    assert from_elsewhere.get(timeout=10) == {theirs}, "and nothing came before"


@pytest.mark.parametrize("payload", ["", "x", "1,", f"{MAX_ID}9999", "1;DROP", "٣"])
def test_odd_words_on_the_channel_mean_that_each_printer_is_looked_at(
    app: Flask, from_elsewhere: queue.SimpleQueue[Rung], payload: str
) -> None:
    with app.app_context():
        db.session.execute(sa.text("SELECT pg_notify('farm_bell', :payload)"), {"payload": payload})
        db.session.commit()
    assert from_elsewhere.get(timeout=10) == {ALL}
