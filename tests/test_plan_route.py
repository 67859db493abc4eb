"""Where an order would go: `POST /api/orders/<id>/plan`, and `printer_id: "auto"` in schedule-prints."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from farm.farm_facts import spools_of
from farm.materials import StageLimits
from models import IntentState, Order, Printer, db
from simulator import Plate, make_sliced_file
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.rows import LAN, add_intent, hear

PRINTS = "/api/bambu/scheduled-prints"
MISSING_ID = 2_000_000_000
BLACK, WHITE = "#000000", "#FFFFFF"


def add_p1s(farm: Farm, name: str, color: str = BLACK, grams: int = 1000, **fields: Any) -> int:
    """A printer with one spool in slot 0."""
    printer = farm.add_printer(name, **{"model": "P1S", "nozzle_diameter_mm": 0.4, **fields})
    farm.add_material(printer["id"], 0, color=color, weight_grams=grams)
    return int(printer["id"])


def add_product(
    farm: Farm, title: str = "Vase", minutes: int = 60, color: str = BLACK, grams: float = 20, model: str = "C12"
) -> None:
    plate = Plate(minutes=minutes, filaments=[("PLA", color, grams, 7.0)])
    file = farm.add_file(make_sliced_file(None, [plate], model_id=model))
    farm.add_profile(title, print_file_id=file["id"], units_per_plate=1)


def order_of(farm: Farm, quantity: int = 1, title: str = "Vase", **fields: Any) -> int:
    return int(farm.add_order({"title": title, "quantity": quantity}, **fields)["id"])


def plan(farm: Farm, order_id: int, printer_id: Any = "auto", **body: Any) -> dict[str, Any]:
    answer = farm.post(f"/api/orders/{order_id}/plan", {"printer_id": printer_id, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


def schedule(farm: Farm, order_id: int, printer_id: Any = "auto", **body: Any) -> Any:
    return farm.post(f"/api/orders/{order_id}/schedule-prints", {"printer_id": printer_id, **body})


def clocks(prints: list[dict[str, Any]], name: str = "starts_at") -> list[str | None]:
    return [each[name] and each[name][11:16] for each in prints]


# The plan


def test_a_plan_says_which_print_goes_where_and_when(farm: Farm) -> None:
    left, right = add_p1s(farm, "Left"), add_p1s(farm, "Right")
    add_product(farm)
    found = plan(farm, order_of(farm, 3, ship_by="2026-11-21T12:00:00Z"))
    assert [each["printer_name"] for each in found["prints"]] == ["Left", "Right", "Left"]
    assert [each["printer_id"] for each in found["prints"]] == [left, right, left]
    assert clocks(found["prints"]) == ["09:00", "09:00", "10:15"]
    assert clocks(found["prints"], "ends_at") == ["10:00", "10:00", "11:15"]
    assert found["prints"][0]["places"] == [{"filament_id": 1, "ams_id": 0, "tray_id": 0, "slot": 0}]
    assert [each["material_slot"] for each in found["prints"]] == [0, 0, 0]
    assert (found["done_at"], found["slack_minutes"], found["is_late"]) == ("2026-11-21T11:15:00Z", 45, False)
    assert (found["refused"], found["skipped"]) == ([], [])


def test_a_late_order_is_known_before_it_is_late(farm: Farm) -> None:
    add_p1s(farm, "Left")
    add_product(farm, minutes=300)
    found = plan(farm, order_of(farm, ship_by="2026-11-21T13:30:00Z"))
    assert (found["is_late"], found["slack_minutes"]) == (True, -30)
    assert plan(farm, order_of(farm))["is_late"] is None


def test_a_plan_says_why_the_other_printers_were_refused(farm: Farm) -> None:
    add_p1s(farm, "A1", model="A1")
    add_p1s(farm, "White", WHITE)
    add_p1s(farm, "Empty", grams=15)
    fits = add_p1s(farm, "Fits")
    add_product(farm)
    found = plan(farm, order_of(farm))
    assert [each["printer_id"] for each in found["prints"]] == [fits]
    assert {each["printer_name"]: each["reasons"] for each in found["refused"]} == {
        "A1": ["sliced for a P1S, this printer is a A1"],
        "White": ["needs PLA black 20 g, slot 0 has white"],
        "Empty": ["needs PLA black 20 g, slot 0 has 15 g"],
    }


def test_where_nothing_fits_the_plan_says_so_and_scheduling_is_a_conflict(farm: Farm) -> None:
    order = order_of(farm)
    found = plan(farm, order)
    assert (found["prints"][0]["printer_id"], found["prints"][0]["starts_at"], found["done_at"]) == (None, None, None)
    assert schedule(farm, order).json["error"] == "There is no printer to print this order on yet."
    add_p1s(farm, "Left", WHITE)
    add_product(farm)
    order = order_of(farm)
    assert plan(farm, order)["prints"][0]["reasons"] == ["no printer fits"]
    answer = schedule(farm, order)
    assert (answer.status_code, answer.json["code"]) == (409, "no_printer_fits")
    assert answer.json["error"].endswith("Left: needs PLA black 20 g, slot 0 has white.")
    assert answer.json["fields"] == {"printer_id": ["Left: needs PLA black 20 g, slot 0 has white"]}
    assert farm.get(PRINTS).json == []
    assert farm.get(f"/api/orders/{order}").json["production_status"] == "new"


@pytest.mark.parametrize("printer", ["auto", "one"])
def test_a_plan_writes_nothing(farm: Farm, printer: str) -> None:
    printer_id = add_p1s(farm, "Left")
    order = order_of(farm, 2)
    add_product(farm)
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    with farm.app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        found = plan(farm, order, printer_id if printer == "one" else "auto")
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert len(found["prints"]) == 2
    assert [each for each in statements if not each.startswith("SELECT")] == []
    assert [each for each in statements if "FOR UPDATE" in each or "FOR SHARE" in each] == []
    assert farm.get(f"/api/orders/{order}").json["items"][0]["profile_id"] is None


def test_on_one_printer_the_plan_shows_the_chain_and_when_it_would_really_run(farm: Farm) -> None:
    printer_id = add_p1s(farm, "Left")
    farm.add_print(printer_id, "before", estimated_duration_minutes=100, priority=50)
    add_product(farm)
    order = order_of(farm, 2)
    found = plan(farm, order, printer_id)
    assert clocks(found["prints"], "scheduled_start") == [None, "10:15"]
    assert clocks(found["prints"]) == ["10:55", "12:10"]
    made = schedule(farm, order, printer_id).json["prints"]
    assert clocks(made, "scheduled_start") == [None, "10:15"]
    assert [each["material_slot"] for each in made] == [None, None]


def test_on_one_printer_that_does_not_fit_the_plan_says_why(farm: Farm) -> None:
    printer_id = add_p1s(farm, "Left", WHITE)
    add_product(farm)
    found = plan(farm, order_of(farm), printer_id)
    (only,) = found["prints"]
    assert (only["printer_id"], only["starts_at"]) == (printer_id, None)
    assert only["reasons"] == found["refused"][0]["reasons"] == ["needs PLA black 20 g, slot 0 has white"]
    assert found["done_at"] is None


def test_digital_lines_are_skipped_in_a_plan_too(farm: Farm) -> None:
    add_p1s(farm, "Left")
    add_product(farm)
    order = farm.add_order({"title": "Vase", "quantity": 1}, {"title": "Pattern", "quantity": 1})
    with farm.database() as session:
        session.execute(sa.text("UPDATE order_items SET is_digital = TRUE WHERE title = 'Pattern'"))
        session.commit()
    found = plan(farm, order["id"])
    assert found["skipped"] == [{"order_item_id": order["items"][1]["id"], "reason": "digital: nothing to print"}]
    assert len(found["prints"]) == 1


def test_what_cannot_be_scheduled_cannot_be_planned(farm: Farm) -> None:
    printer_id = add_p1s(farm, "Left")
    add_product(farm)
    order = order_of(farm)
    assert schedule(farm, order, printer_id).status_code == 201
    answer = farm.post(f"/api/orders/{order}/plan", {"printer_id": "auto"})
    assert (answer.status_code, answer.json["code"]) == (409, "already_scheduled")
    unpaid = order_of(farm, status="open")
    assert farm.post(f"/api/orders/{unpaid}/plan", {"printer_id": "auto"}).json["code"] == "order_not_printable"


@pytest.mark.parametrize("path", ["plan", "schedule-prints"])
@pytest.mark.parametrize("printer_id", ["AUTO", "", "1", 0, -1, 2**31, 1.5, True, None, [], {}])
def test_a_printer_is_an_id_or_auto(farm: Farm, path: str, printer_id: Any) -> None:
    answer = farm.post(f"/api/orders/{order_of(farm)}/{path}", {"printer_id": printer_id})
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["printer_id"])


def test_strangers_are_not_found(farm: Farm, stranger: Farm) -> None:
    printer_id, order = add_p1s(farm, "Left"), order_of(farm)
    theirs, their_order = add_p1s(stranger, "Theirs"), order_of(stranger)
    missing = stranger.post(f"/api/orders/{MISSING_ID}/plan", {"printer_id": "auto"})
    assert missing.status_code == 404
    for order_id, on in ((order, "auto"), (order, theirs), (their_order, printer_id), (their_order, MISSING_ID)):
        answer = stranger.post(f"/api/orders/{order_id}/plan", {"printer_id": on})
        assert (answer.status_code, answer.data) == (404, missing.data)
    # Whatever "auto" looks at is one's own.
    found = plan(stranger, their_order)
    assert "Left" not in str(found)


# Scheduling


def test_auto_gives_each_print_its_printer_slot_time_and_priority(farm: Farm) -> None:
    left, right = add_p1s(farm, "Left"), add_p1s(farm, "Right")
    add_product(farm)
    answer = schedule(farm, order_of(farm, 4))
    assert (answer.status_code, answer.json["message"]) == (201, "Scheduled 4 print jobs")
    made = sorted(answer.json["prints"], key=lambda each: -each["priority"])
    assert [each["printer_id"] for each in made] == [left, right, left, right]
    assert clocks(made, "scheduled_start") == [None, None, "10:15", "10:15"]
    assert [each["priority"] for each in made] == [10, 9, 8, 7]
    assert [each["material_slot"] for each in made] == [0, 0, 0, 0]
    with farm.database() as session:
        assert session.execute(sa.text("SELECT is_chained FROM scheduled_prints ORDER BY id")).scalars().all() == [
            False,
            False,
            True,
            True,
        ]


def test_auto_does_what_the_plan_said(farm: Farm) -> None:
    for name in ("A", "B", "C"):
        add_p1s(farm, name)
    add_product(farm)
    order = order_of(farm, 7)
    foreseen = plan(farm, order, start_offset_minutes=30)["prints"]
    made = schedule(farm, order, start_offset_minutes=30).json["prints"]
    names = ("printer_id", "scheduled_start", "material_slot", "priority", "job_name", "material_type")
    assert sorted([[each[name] for name in names] for each in made]) == sorted(
        [[each[name] for name in names] for each in foreseen]
    )


def test_an_order_goes_around_what_is_queued_and_its_filament(farm: Farm) -> None:
    busy, free = add_p1s(farm, "Busy", grams=100), add_p1s(farm, "Free", grams=45)
    farm.add_print(
        busy, "long", estimated_duration_minutes=600, material_type="PLA", material_color=BLACK, estimated_grams=70
    )
    add_product(farm)
    found = plan(farm, order_of(farm, 2))
    assert [each["printer_id"] for each in found["prints"]] == [free, free]
    found = plan(farm, order_of(farm, 3))
    assert [each["printer_id"] for each in found["prints"]] == [free, free, busy]
    assert plan(farm, order_of(farm, 4))["done_at"] is None


def test_a_second_order_goes_behind_the_first(farm: Farm) -> None:
    add_p1s(farm, "Left")
    add_product(farm)
    first, second = order_of(farm, 2), order_of(farm, 1)
    assert schedule(farm, first).status_code == 201
    assert clocks(schedule(farm, second).json["prints"], "scheduled_start") == ["11:30"]


def test_plates_are_cleared_in_staffed_hours_only(farm: Farm) -> None:
    farm.put("/api/auth/user", {"timezone": "Europe/Berlin", "staffed_hours": {"mon": [["08:00", "17:30"]]}})
    add_p1s(farm, "Left")
    add_product(farm)
    found = plan(farm, order_of(farm, 2))
    # Saturday 09:00 UTC, then Monday 08:15 in Berlin.
    assert [each["starts_at"] for each in found["prints"]] == ["2026-11-21T09:00:00Z", "2026-11-23T07:15:00Z"]


def test_a_paused_an_unreachable_and_an_unsettled_printer_take_nothing(farm: Farm, clock: Clock) -> None:
    paused = add_p1s(farm, "Paused")
    with farm.database() as session:
        session.execute(sa.update(Printer).where(Printer.id == paused).values(queue_paused_at=clock.now))
        session.commit()
    add_p1s(farm, "Silent", **LAN)
    unsettled = add_p1s(farm, "Unsettled", **{**LAN, "serial_number": "01P00A000000002"})
    hear(farm, unsettled, clock)
    add_intent(farm, farm.add_print(unsettled)["id"], IntentState.unknown)
    add_product(farm)
    found = plan(farm, order_of(farm))
    assert {each["printer_name"]: each["reasons"] for each in found["refused"]} == {
        "Paused": ["the queue of this printer is paused"],
        "Silent": ["the printer cannot be reached"],
        "Unsettled": ["a start there was never confirmed: say first what became of it"],
    }


def test_a_running_print_ends_when_its_printer_says(farm: Farm, clock: Clock) -> None:
    printer_id = add_p1s(farm, "Left", **LAN)
    running = farm.add_print(printer_id, "runs", estimated_duration_minutes=600)
    farm.move(running["id"], "started")
    hear(farm, printer_id, clock, "printing", current_print_id=running["id"], remaining_minutes=42)
    add_product(farm)
    assert clocks(plan(farm, order_of(farm))["prints"]) == ["09:57"]
    # Somebody else's print takes its time, too.
    hear(farm, printer_id, clock, "finished")
    farm.move(running["id"], "completed")
    hear(farm, printer_id, clock, "printing", remaining_minutes=20)
    assert clocks(plan(farm, order_of(farm))["prints"]) == ["09:35"]
    # What lies on the plate is cleared first.
    hear(farm, printer_id, clock, "idle")
    assert clocks(plan(farm, order_of(farm))["prints"]) == ["09:15"]


def test_of_many_orders_at_the_same_moment_none_go_into_the_same_gap(farm: Farm) -> None:
    add_p1s(farm, "Left")
    add_p1s(farm, "Right")
    add_product(farm)
    orders = [order_of(farm, 2) for _ in range(4)]
    threads = [threading.Thread(target=schedule, args=(farm, order)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    made = farm.get(PRINTS).json
    assert len(made) == 8
    assert len({(each["printer_id"], each["scheduled_start"]) for each in made}) == 8


# The spools


def test_grams_of_prints_under_way_are_not_free(farm: Farm) -> None:
    printer_id = add_p1s(farm, "Left", grams=500)
    farm.add_material(printer_id, 5, color=WHITE, weight_grams=300)

    def free(except_print_id: int | None = None) -> list[float]:
        with farm.database():
            found = spools_of([printer_id], limits=StageLimits(), except_print_id=except_print_id)[printer_id]
            return [float(each.free_grams or 0) for each in found]

    kind = {"material_type": "PLA", "estimated_grams": 60}
    by_hand = farm.add_print(printer_id, material_slot=0, **kind)
    assert free() == [500, 300]
    farm.move(by_hand["id"], "started")
    assert free() == [440, 300]
    starting = farm.add_print(printer_id, **kind)
    add_intent(farm, starting["id"], IntentState.uploading, mapping=[[1, 1]])
    assert free() == [440, 240]
    assert free(except_print_id=starting["id"]) == [440, 300]
    farm.move(by_hand["id"], "completed")
    assert free() == [440, 240], "booked now, and no longer reserved"


def test_a_farm_is_read_in_as_many_statements_however_large_it_is(farm: Farm) -> None:
    with farm.app.app_context():
        engine = db.engine
    add_product(farm)
    counts = []
    for size in (1, 6):
        for number in range(size):
            printer_id = add_p1s(farm, f"P{size}{number}")
            farm.add_print(printer_id)
        order = order_of(farm, size)
        seen: list[str] = []

        def note(connection: Any, cursor: Any, statement: str, *_: Any, into: list[str] = seen) -> None:
            into.append(statement)

        event.listen(engine, "before_cursor_execute", note)
        try:
            plan(farm, order)
        finally:
            event.remove(engine, "before_cursor_execute", note)
        counts.append(len(seen))
    assert counts[0] == counts[1] < 16


def test_the_order_of_a_plan_is_the_sellers_own_even_after_its_ship_by(farm: Farm) -> None:
    add_p1s(farm, "Left")
    add_product(farm)
    order = order_of(farm)
    with farm.database() as session:
        session.execute(sa.update(Order).where(Order.id == order).values(ship_by=BASE_TIME.replace(hour=1)))
        session.commit()
    assert plan(farm, order)["is_late"] is True
