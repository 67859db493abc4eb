"""Hours of printing, counted in the transaction that ends each print, and the word that is said when they are many."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from farm.alerts import FLAP_WINDOW
from farm.moves import move_print
from models import Delivery, Printer, PrintEvent, PrintStatus, ScheduledPrint, db
from tests.conftest import Clock
from tests.farm_builder import Farm
from tests.rows import log_in_again

DUE = "printer.maintenance_due"


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer("Left", maintenance_every_hours=10)["id"])


def run(farm: Farm, clock: Clock, printer_id: int, hours: float, end: str = "completed") -> None:
    made = farm.add_print(printer_id)
    farm.move(made["id"], "started")
    clock.forward(hours=hours)
    log_in_again(farm)
    farm.move(made["id"], end)


def shown(farm: Farm, printer_id: int) -> dict[str, Any]:
    found: dict[str, Any] = farm.get(f"/api/printers/{printer_id}").json
    return found


def due(farm: Farm) -> list[PrintEvent]:
    with farm.database() as session:
        found = list(session.execute(sa.select(PrintEvent).where(PrintEvent.kind == DUE)).scalars())
        session.expunge_all()
        return found


def done(farm: Farm, printer_id: int) -> Any:
    return farm.post(f"/api/printers/{printer_id}/maintenance-done")


def test_hours_grow_by_what_each_print_ran_also_one_that_failed(farm: Farm, clock: Clock, printer_id: int) -> None:
    other = farm.add_printer("Right")["id"]
    run(farm, clock, printer_id, 1.5)
    run(farm, clock, printer_id, 2.25, end="failed")
    assert shown(farm, printer_id)["hours_since_maintenance"] == 3.75
    assert shown(farm, other)["hours_since_maintenance"] == 0


def test_a_print_that_never_began_adds_nothing(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id, status="scheduled")
    farm.move(made["id"], "failed")
    assert shown(farm, printer_id)["hours_since_maintenance"] == 0


def test_maintenance_is_told_once_when_the_hours_are_full(farm: Farm, clock: Clock, printer_id: int) -> None:
    run(farm, clock, printer_id, 9.99)
    assert due(farm) == []
    run(farm, clock, printer_id, 0.01)
    (event,) = due(farm)
    assert event.details == {"maintenance": {"hours": 10.0, "every_hours": 10}}
    assert event.print_id is None and event.reason == (
        "it has printed for 10 hours since its last maintenance, which is due every 10"
    )
    with farm.database() as session:
        (payload,) = session.execute(sa.select(Delivery.payload).where(Delivery.event_id == event.id)).scalars()
    assert payload["type"] == DUE
    assert payload["data"]["maintenance"] == {"hours": 10.0, "every_hours": 10}
    clock.forward(seconds=FLAP_WINDOW.total_seconds())
    log_in_again(farm)
    for _ in range(3):
        run(farm, clock, printer_id, 5)
    assert len(due(farm)) == 1


def test_when_it_is_done_the_hours_begin_again_and_it_can_be_told_anew(
    farm: Farm, clock: Clock, printer_id: int
) -> None:
    run(farm, clock, printer_id, 12)
    at = clock.forward(hours=1)
    log_in_again(farm)
    answer = done(farm, printer_id)
    assert answer.status_code == 200
    assert answer.json == shown(farm, printer_id)
    assert answer.json["hours_since_maintenance"] == 0
    assert answer.json["maintenance_done_at"] == at.isoformat().replace("+00:00", "Z")
    run(farm, clock, printer_id, 9)
    assert len(due(farm)) == 1
    run(farm, clock, printer_id, 1)
    assert len(due(farm)) == 2


def test_a_person_may_want_it_more_often_less_often_or_never(farm: Farm, clock: Clock, printer_id: int) -> None:
    def want(hours: int | None) -> None:
        answer = farm.put(f"/api/printers/{printer_id}", {"maintenance_every_hours": hours})
        assert (answer.status_code, answer.json["maintenance_every_hours"]) == (200, hours)

    want(None)
    run(farm, clock, printer_id, 30)
    assert due(farm) == []
    want(40)
    assert due(farm) == []
    want(20)
    assert len(due(farm)) == 1, "it is due already"
    want(25)
    assert len(due(farm)) == 1
    want(50)
    run(farm, clock, printer_id, 20)
    assert len(due(farm)) == 2, "with the longer time it was not due any more"


def test_a_new_printer_may_want_none(farm: Farm) -> None:
    assert farm.add_printer()["maintenance_every_hours"] == 250
    made = farm.add_printer(maintenance_every_hours=None)
    assert made["maintenance_every_hours"] is None
    assert shown(farm, made["id"]) == made


def test_a_change_of_something_else_says_nothing_of_maintenance(farm: Farm, clock: Clock, printer_id: int) -> None:
    run(farm, clock, printer_id, 30)
    with farm.database() as session:
        session.execute(sa.text("DELETE FROM printer_alerts"))
        session.commit()
    farm.put(f"/api/printers/{printer_id}", {"notes": "greased"})
    assert len(due(farm)) == 1


@pytest.mark.parametrize("wrong", [0, -1, 100_001, 1.5, "10", True, [], 2**63])
def test_hours_are_whole_and_between_1_and_100000(farm: Farm, printer_id: int, wrong: Any) -> None:
    for answer in (
        farm.put(f"/api/printers/{printer_id}", {"maintenance_every_hours": wrong}),
        farm.post("/api/printers", {"name": "New", "maintenance_every_hours": wrong}),
    ):
        assert (answer.status_code, list(answer.json["fields"])) == (422, ["maintenance_every_hours"])


@pytest.mark.parametrize("field", ["hours_since_maintenance", "maintenance_done_at"])
def test_what_was_counted_is_not_set_by_hand(farm: Farm, printer_id: int, field: str) -> None:
    before = shown(farm, printer_id)
    farm.put(f"/api/printers/{printer_id}", {field: None})
    farm.put(f"/api/printers/{printer_id}", {field: 5})
    assert {**shown(farm, printer_id), "updated_at": None} == {**before, "updated_at": None}


def test_another_accounts_printer_is_not_there(farm: Farm, stranger: Farm, printer_id: int) -> None:
    assert done(stranger, printer_id).status_code == 404
    assert done(stranger, printer_id).data == done(stranger, 2_000_000_000).data


def test_a_move_that_is_rolled_back_leaves_neither_hours_nor_event(farm: Farm, clock: Clock, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    farm.move(made["id"], "started")
    clock.forward(hours=20)
    with farm.database() as session:
        limits = farm.app.extensions["parts"].limits
        running = session.get_one(ScheduledPrint, made["id"])
        move_print(running, PrintStatus.completed, at=clock(), limits=limits)
        kinds = session.execute(sa.select(PrintEvent.kind)).scalars().all()
        assert kinds.count(DUE) == kinds.count("print.completed") == 1
        session.rollback()
        kinds = session.execute(sa.select(PrintEvent.kind)).scalars().all()
        assert DUE not in kinds and "print.completed" not in kinds
        assert session.get_one(Printer, printer_id).hours_since_maintenance == 0


def test_a_clock_that_was_set_back_takes_no_hours_away(farm: Farm, clock: Clock, printer_id: int) -> None:
    run(farm, clock, printer_id, 2)
    made = farm.add_print(printer_id)
    farm.move(made["id"], "started")
    clock.now -= timedelta(minutes=10)
    farm.move(made["id"], "completed")
    assert shown(farm, printer_id)["hours_since_maintenance"] == 2


def test_each_ended_print_has_one_event_of_its_end(farm: Farm, clock: Clock, printer_id: int) -> None:
    for _ in range(3):
        run(farm, clock, printer_id, 6)
    with farm.database():
        ends = db.session.execute(
            sa.select(PrintEvent.print_id, sa.func.count())
            .where(PrintEvent.kind.in_(("print.completed", "print.failed")))
            .group_by(PrintEvent.print_id)
        ).all()
    assert [count for _, count in ends] == [1, 1, 1]
