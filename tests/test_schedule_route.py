"""The farm's timeline: `GET /api/schedule`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from farm.forecast import read_farm
from farm.materials import StageLimits
from models import BambuMaterial, Order, OrderStatus, Printer, PrintStatus, ScheduledPrint, User, db
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.rows import LAN, hear

SCHEDULE = "/api/schedule"
SHIP_BY = "2026-11-21T12:00:00Z"


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer()["id"])


def timeline(farm: Farm) -> dict[str, Any]:
    answer = farm.get(SCHEDULE)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


def clocks(prints: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(each["job_name"], each["starts_at"][11:16], each["ends_at"][11:16]) for each in prints]


def test_an_empty_farm_has_an_empty_timeline(farm: Farm) -> None:
    assert timeline(farm) == {
        "now": "2026-11-21T09:00:00Z",
        "timezone": "UTC",
        "staffed_hours": None,
        "clearing_minutes": 15,
        "printers": [],
        "would_miss": [],
        "is_whole": True,
    }


def test_prints_run_in_the_order_of_the_queue_with_clearing_in_between(farm: Farm, printer_id: int) -> None:
    farm.add_print(printer_id, "second", estimated_duration_minutes=60)
    farm.add_print(printer_id, "first", estimated_duration_minutes=30, priority=5)
    farm.add_print(
        printer_id, "third", estimated_duration_minutes=60, priority=9, scheduled_start="2026-11-21T13:00:00Z"
    )
    running = farm.add_print(printer_id, "running", estimated_duration_minutes=45)
    farm.move(running["id"], "started")
    (found,) = timeline(farm)["printers"]
    assert clocks(found["prints"]) == [
        ("running", "09:00", "09:45"),
        ("first", "10:00", "10:30"),
        ("second", "10:45", "11:45"),
        ("third", "13:00", "14:00"),
    ]
    assert [each["status"] for each in found["prints"]] == ["started", "queued", "queued", "queued"]
    assert (found["free_at"], found["left_out"], found["problems"]) == ("2026-11-21T14:15:00Z", 0, [])


def test_staffed_hours_hold_the_next_print(farm: Farm, printer_id: int) -> None:
    farm.put("/api/auth/user", {"staffed_hours": {"sun": [["10:00", "12:00"]]}})
    farm.add_print(printer_id, "now")
    farm.add_print(printer_id, "then")
    starts = [each["starts_at"] for each in timeline(farm)["printers"][0]["prints"]]
    assert starts == ["2026-11-21T09:00:00Z", "2026-11-22T10:15:00Z"]
    farm.put("/api/auth/user", {"staffed_hours": {}})
    found = timeline(farm)["printers"][0]
    assert (len(found["prints"]), found["left_out"], found["free_at"]) == (1, 1, None)


def test_what_would_miss_its_ship_by_is_named(farm: Farm, printer_id: int) -> None:
    late, in_time = (
        farm.add_order({"title": title, "quantity": 1}, ship_by=ship_by)["id"]
        for title, ship_by in (("A", SHIP_BY), ("B", "2026-11-21T23:00:00Z"))
    )
    farm.add_print(printer_id, "a", order_id=late, estimated_duration_minutes=200)
    farm.add_print(printer_id, "b", order_id=in_time, estimated_duration_minutes=60)
    found = timeline(farm)
    assert [(each["slack_minutes"], each["is_late"]) for each in found["printers"][0]["prints"]] == [
        (-20, True),
        (565, False),
    ]
    assert found["would_miss"] == [
        {
            "order_id": late,
            "label": f"Order #{late}",
            "ship_by": SHIP_BY,
            "done_at": "2026-11-21T12:20:00Z",
            "slack_minutes": -20,
            "reason": None,
        }
    ]


def test_an_order_is_as_late_as_its_last_print_on_whichever_printer(farm: Farm, printer_id: int) -> None:
    order = farm.add_order({"title": "A", "quantity": 1}, ship_by=SHIP_BY)["id"]
    farm.add_print(printer_id, order_id=order, estimated_duration_minutes=10)
    farm.add_print(farm.add_printer("Right")["id"], order_id=order, estimated_duration_minutes=240)
    assert [each["done_at"] for each in timeline(farm)["would_miss"]] == ["2026-11-21T13:00:00Z"]


def test_an_overdue_order_that_nobody_planned_would_miss_too(farm: Farm) -> None:
    order = farm.add_order(ship_by=SHIP_BY)["id"]
    assert timeline(farm)["would_miss"] == []
    with farm.database() as session:
        session.execute(sa.update(Order).where(Order.id == order).values(ship_by=BASE_TIME - timedelta(days=1)))
        session.commit()
    assert [(each["order_id"], each["reason"]) for each in timeline(farm)["would_miss"]] == [(order, "not planned yet")]


def test_what_is_blocked_says_why_and_is_in_nobodys_way(farm: Farm, clock: Clock) -> None:
    printer_id = farm.add_printer(model="P1S", **LAN)["id"]
    hear(farm, printer_id, clock)
    cancelled = farm.add_order(ship_by=SHIP_BY)["id"]
    farm.add_print(printer_id, "no file", priority=9)
    farm.add_print(printer_id, "cancelled", order_id=cancelled, priority=8)
    held = farm.add_print(printer_id, "held", priority=7)["id"]
    with farm.database() as session:
        session.execute(sa.update(Order).where(Order.id == cancelled).values(status=OrderStatus.canceled))
        session.execute(sa.update(ScheduledPrint).where(ScheduledPrint.id == held).values(held_at=clock.now))
        session.commit()
    (found,) = timeline(farm)["printers"]
    assert found["prints"] == []
    reasons = {each["job_name"]: each["waiting_reason"] for each in found["blocked"]}
    assert "it has no sliced file" in reasons["no file"]
    assert reasons["cancelled"].startswith("its order is canceled")
    assert reasons["held"].startswith("held by a person")


def test_a_printer_that_cannot_be_reached_says_so(farm: Farm) -> None:
    farm.add_printer(**LAN)
    assert timeline(farm)["printers"][0]["problems"] == ["the printer cannot be reached"]


def test_nobody_sees_anothers_timeline(farm: Farm, stranger: Farm, printer_id: int) -> None:
    farm.add_print(printer_id, "secret")
    assert timeline(stranger)["printers"] == []
    assert farm.client.get(SCHEDULE).status_code == 401


def fill(farm: Farm, printers: int, prints: int, *, grams: int = 1) -> None:
    with farm.database() as session:
        user = session.execute(sa.select(User)).scalar_one()
        at: dict[str, Any] = {"user_id": user.id, "created_at": BASE_TIME, "updated_at": BASE_TIME}
        for number in range(printers):
            printer = Printer(name=f"P{number}", **at)
            session.add(printer)
            session.flush()
            spool = BambuMaterial(
                printer_id=printer.id,
                ams_id=0,
                tray_id=0,
                material_type="PLA",
                color="#000000",
                weight_grams=1000,
                remaining_grams=1000,
                loaded_at=BASE_TIME,
                **at,
            )
            session.add(spool)
            session.execute(
                sa.insert(ScheduledPrint),
                [
                    {
                        "printer_id": printer.id,
                        "job_name": f"{each}",
                        "status": PrintStatus.queued,
                        "estimated_duration_minutes": 100_000,
                        "estimated_grams": grams,
                        "material_type": "PLA",
                        "material_color": "#000000",
                        **at,
                    }
                    for each in range(prints)
                ],
            )
        session.commit()


def test_the_statements_do_not_grow_with_the_farm(farm: Farm) -> None:
    with farm.app.app_context():
        engine = db.engine
    counts = []
    for printers, prints in ((1, 1), (5, 60)):
        fill(farm, printers, prints)
        seen: list[str] = []

        def note(connection: Any, cursor: Any, statement: str, *_: Any, into: list[str] = seen) -> None:
            into.append(statement)

        event.listen(engine, "before_cursor_execute", note)
        try:
            timeline(farm)
        finally:
            event.remove(engine, "before_cursor_execute", note)
        counts.append(len(seen))
    assert counts[0] == counts[1] <= 10


def test_a_long_queue_is_bounded_and_ends_in_the_calendar(farm: Farm) -> None:
    farm.put("/api/auth/user", {"staffed_hours": {"mon": [["08:00", "09:00"]]}})
    fill(farm, 1, 1200)
    (found,) = timeline(farm)["printers"]
    # Each of them prints for ten weeks.
    assert (len(found["prints"]), found["left_out"]) == (200, 1000)
    assert found["free_at"] > "2200"


def test_more_prints_than_are_looked_at_are_said_to_be_more(farm: Farm) -> None:
    fill(farm, 1, 12)
    with farm.database() as session:
        user_id = session.execute(sa.select(User.id)).scalar_one()
        for most, is_whole in ((12, True), (11, False)):
            (found,), said = read_farm(user_id, now=BASE_TIME, limits=StageLimits(), most=most)
            assert (len(found.waiting), said) == (most, is_whole)
