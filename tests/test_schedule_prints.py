"""From an order to its chained prints: `POST /api/orders/<id>/schedule-prints` and `schedule_order_prints()`."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import create_app
from errors import NotFound
from etsy_api import schedule_order_prints
from farm.line_plates import Mappings
from models import Order, OrderItem, OrderStatus, PrintEvent, ProductionStatus, ProductProfile, ScheduledPrint, db
from tests.conftest import BASE_TIME, Clock, OutsideClient, settings_for
from tests.farm_builder import Farm

PRINTS = "/api/bambu/scheduled-prints"
MISSING_ID = 2_000_000_000


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer()["id"])


def schedule(farm: Farm, order_id: int, printer_id: Any, **body: Any) -> Any:
    return farm.post(f"/api/orders/{order_id}/schedule-prints", {"printer_id": printer_id, **body})


def scheduled(farm: Farm, order_id: int, printer_id: int, **body: Any) -> list[dict[str, Any]]:
    answer = schedule(farm, order_id, printer_id, **body)
    assert answer.status_code == 201, answer.text
    prints: list[dict[str, Any]] = answer.json["prints"]
    return prints


def set_lines(farm: Farm, order_id: int, **values: Any) -> None:
    with farm.database() as session:
        session.execute(sa.update(OrderItem).where(OrderItem.order_id == order_id).values(**values))
        session.commit()


def set_order(farm: Farm, order_id: int, **values: Any) -> None:
    with farm.database() as session:
        session.execute(sa.update(Order).where(Order.id == order_id).values(**values))
        session.commit()


def starts(prints: list[dict[str, Any]]) -> list[str | None]:
    """Hours and minutes of each print's start."""
    return [each["scheduled_start"] and each["scheduled_start"][11:16] for each in prints]


# The answer


def test_the_answer_is_a_message_with_the_prints_and_what_was_skipped(farm: Farm, printer_id: int) -> None:
    order = farm.add_order({"title": "A", "quantity": 1}, {"title": "B", "quantity": 1})
    answer = schedule(farm, order["id"], printer_id)
    assert (answer.status_code, set(answer.json)) == (201, {"message", "prints", "skipped"})
    assert (answer.json["message"], answer.json["skipped"]) == ("Scheduled 2 print jobs", [])
    prints = answer.json["prints"]
    assert prints == farm.get(PRINTS).json[::-1]
    assert [(each["order_id"], each["order_item_id"], each["printer_id"], each["status"]) for each in prints] == [
        (order["id"], item["id"], printer_id, "queued") for item in order["items"]
    ]
    assert farm.get(f"/api/orders/{order['id']}").json["production_status"] == "queued"


def test_each_print_begins_its_history(farm: Farm, printer_id: int) -> None:
    prints = scheduled(farm, farm.add_order()["id"], printer_id)
    events = farm.get(f"{PRINTS}/{prints[0]['id']}/events").json
    assert [(event["kind"], event["to_status"]) for event in events] == [("print.created", "queued")]


# Settings of a print


def test_without_a_profile_a_print_takes_the_usual_settings(farm: Farm, printer_id: int) -> None:
    made = scheduled(farm, farm.add_order()["id"], printer_id)[0]
    names = ("estimated_duration_minutes", "material_type", "nozzle_temp", "bed_temp", "print_speed")
    assert [made[name] for name in names] == [120, "PLA", 200, 60, 50]
    unknown = ("estimated_grams", "material_color", "material_slot", "print_file_id", "file_name")
    assert [made[name] for name in unknown] == [None] * 5
    assert made["notes"] == "Quantity: 1"


def test_a_print_takes_its_settings_from_the_profile(farm: Farm, printer_id: int) -> None:
    file = farm.add_file()
    farm.add_profile(
        "Vase",
        print_file_id=file["id"],
        print_time_minutes=47,
        preferred_material="PETG",
        preferred_color="#00FF00",
        nozzle_temp_c=245,
        bed_temp_c=0,
        print_speed_mms=180,
        filament_grams=12.5,
    )
    made = scheduled(farm, farm.add_order({"title": "Vase", "quantity": 4})["id"], printer_id)
    assert len(made) == 1
    # Duration and grams are per print, never times the quantity.
    wanted = {
        "print_file_id": file["id"],
        "file_name": file["file_name"],
        "plate": 1,
        "estimated_duration_minutes": 47,
        "estimated_grams": 12.5,
        "material_type": "PETG",
        "material_color": "#00FF00",
        "nozzle_temp": 245,
        "bed_temp": 0,
        "print_speed": 180,
        "notes": "Quantity: 4",
    }
    assert {name: made[0][name] for name in wanted} == wanted


def test_what_a_profile_leaves_open_takes_the_usual_setting(farm: Farm, printer_id: int) -> None:
    farm.add_profile("Vase", bed_temp_c=70)
    made = scheduled(farm, farm.add_order()["id"], printer_id)[0]
    names = ("estimated_duration_minutes", "material_type", "nozzle_temp", "bed_temp", "print_speed")
    assert [made[name] for name in names] == [120, "PLA", 200, 70, 50]


def test_a_material_type_in_the_call_goes_before_the_profiles(farm: Farm, printer_id: int) -> None:
    farm.add_profile("Vase", preferred_material="PETG")
    assert scheduled(farm, farm.add_order()["id"], printer_id, material_type="ASA")[0]["material_type"] == "ASA"
    assert scheduled(farm, farm.add_order()["id"], printer_id, material_type=None)[0]["material_type"] == "PETG"


def test_a_print_is_named_by_its_order_and_its_line(farm: Farm, printer_id: int) -> None:
    order = farm.add_order()
    assert scheduled(farm, order["id"], printer_id)[0]["job_name"] == f"Order #{order['id']} - Vase"
    etsy = farm.add_order()
    set_order(farm, etsy["id"], etsy_order_id="3100000001")
    assert scheduled(farm, etsy["id"], printer_id)[0]["job_name"] == "Order #3100000001 - Vase"


def test_a_name_is_cut_to_255_characters(farm: Farm, printer_id: int) -> None:
    order = farm.add_order({"title": "ü" * 255, "quantity": 1})
    name = scheduled(farm, order["id"], printer_id)[0]["job_name"]
    assert name == f"Order #{order['id']} - {'ü' * 255}"[:255]


# Times and priorities


def test_the_first_starts_at_once_and_each_next_after_the_ones_before_it(farm: Farm, printer_id: int) -> None:
    for title, minutes in (("A", 30), ("B", 45), ("C", 60)):
        farm.add_profile(title, print_time_minutes=minutes)
    order = farm.add_order(*({"title": title, "quantity": 1} for title in "ABC"))
    # Now is 09:00, the buffer 15 minutes.
    assert starts(scheduled(farm, order["id"], printer_id)) == [None, "09:45", "10:45"]


def test_an_offset_moves_the_whole_chain_and_gives_the_first_a_time(farm: Farm, printer_id: int) -> None:
    order = farm.add_order(*({"title": title, "quantity": 1} for title in "ABC"))
    assert starts(scheduled(farm, order["id"], printer_id, start_offset_minutes=60)) == ["10:00", "12:15", "14:30"]


def test_priorities_fall_from_ten_and_never_below_one(farm: Farm, printer_id: int) -> None:
    order = farm.add_order(*({"title": f"Line {number}", "quantity": 1} for number in range(13)))
    assert [each["priority"] for each in scheduled(farm, order["id"], printer_id)] == [
        10,
        9,
        8,
        7,
        6,
        5,
        4,
        3,
        2,
        1,
        1,
        1,
        1,
    ]


def test_a_chain_runs_in_its_own_order(farm: Farm, printer_id: int) -> None:
    order = farm.add_order(*({"title": f"Line {number}", "quantity": 1} for number in range(40)))
    prints = scheduled(farm, order["id"], printer_id)
    assert [each["job_name"].split("Line ")[1] for each in prints] == [str(number) for number in range(40)]
    assert [each["id"] for each in farm.get(f"{PRINTS}/{printer_id}/queue").json] == [each["id"] for each in prints]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(minutes=st.lists(st.integers(1, 5000), min_size=1, max_size=6), offset=st.integers(0, 525_600))
def test_each_start_is_now_and_offset_and_the_durations_and_buffers_before_it(
    farm: Farm, printer_id: int, minutes: list[int], offset: int
) -> None:
    with farm.database() as session:
        session.execute(sa.delete(PrintEvent))
        session.execute(sa.delete(ScheduledPrint))
        session.execute(sa.delete(OrderItem))
        session.execute(sa.delete(ProductProfile))
        session.commit()
    for number, each in enumerate(minutes):
        farm.add_profile(f"Line {number}", print_time_minutes=each)
    order = farm.add_order(*({"title": f"Line {number}", "quantity": 1} for number in range(len(minutes))))
    prints = scheduled(farm, order["id"], printer_id, start_offset_minutes=offset)
    at = BASE_TIME + timedelta(minutes=offset)
    for number, made in enumerate(prints):
        wanted = None if number == 0 and offset == 0 else at.isoformat().replace("+00:00", "Z")
        assert made["scheduled_start"] == wanted
        at += timedelta(minutes=minutes[number] + 15)


def test_the_buffer_is_a_setting(database_url: str, tmp_path: Path, session_clock: Clock) -> None:
    app = create_app(settings_for(database_url, tmp_path, CHAIN_BUFFER_MINUTES="0"), clock=session_clock)
    app.test_client_class = OutsideClient
    with app.app_context():
        db.create_all()
    farm = Farm(app, "seller@example.com")
    order = farm.add_order({"title": "A", "quantity": 1}, {"title": "B", "quantity": 1})
    prints = scheduled(farm, order["id"], farm.add_printer()["id"])
    with app.app_context():
        second = db.session.get_one(ScheduledPrint, prints[1]["id"])
        assert second.scheduled_start == session_clock.now + timedelta(minutes=120)
        db.session.remove()
        db.engine.dispose()


@pytest.mark.parametrize("offset", [-1, 525_601, 1.5, "0", True, None])
def test_an_offset_is_0_to_525600_minutes(farm: Farm, printer_id: int, offset: Any) -> None:
    answer = schedule(farm, farm.add_order()["id"], printer_id, start_offset_minutes=offset)
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["start_offset_minutes"])


# How many


@pytest.mark.parametrize(
    ("quantity", "units", "count"), [(1, 1, 1), (5, 1, 5), (5, 2, 3), (4, 2, 2), (1, 10, 1), (7, None, 1)]
)
def test_a_profile_that_knows_its_plate_makes_as_many_prints_as_it_takes(
    farm: Farm, printer_id: int, quantity: int, units: int | None, count: int
) -> None:
    farm.add_profile("Vase", units_per_plate=units)
    prints = scheduled(farm, farm.add_order({"title": "Vase", "quantity": quantity})["id"], printer_id)
    assert len(prints) == count
    assert all(each["notes"].startswith(f"Quantity: {quantity}") for each in prints)
    # A sliced plate is printed whole; of a plate that nobody has counted, the one print is for the whole line.
    assert [each["units"] for each in prints] == [units or quantity] * count


def test_a_print_of_a_line_without_a_profile_is_for_the_whole_line(farm: Farm, printer_id: int) -> None:
    made = scheduled(farm, farm.add_order({"title": "Vase", "quantity": 3})["id"], printer_id)
    assert [each["units"] for each in made] == [3]


def test_a_print_that_is_tried_again_still_makes_as_many(farm: Farm, printer_id: int) -> None:
    farm.add_profile("Vase", units_per_plate=4)
    order = farm.add_order({"title": "Vase", "quantity": 6})
    first = scheduled(farm, order["id"], printer_id)[0]
    farm.move(first["id"], "started", "failed")
    again = farm.post(f"/api/bambu/scheduled-prints/{first['id']}/retry")
    assert (again.status_code, again.json["units"]) == (200, 4), again.text


def test_prints_of_one_plate_after_another_say_what_lies_on_each(farm: Farm, printer_id: int) -> None:
    farm.add_profile("Vase", units_per_plate=2)
    prints = scheduled(farm, farm.add_order({"title": "Vase", "quantity": 5})["id"], printer_id)
    assert [each["notes"] for each in prints] == [
        "Quantity: 5 (plate 1 of 3, 2 on it)",
        "Quantity: 5 (plate 2 of 3, 2 on it)",
        "Quantity: 5 (plate 3 of 3, 2 on it, 1 to spare)",
    ]
    assert starts(prints) == [None, "11:15", "13:30"]


def test_500_prints_are_made_and_501_are_refused(farm: Farm, printer_id: int) -> None:
    farm.add_profile("Vase", units_per_plate=1)
    farm.add_profile("Bowl", units_per_plate=1)
    refused = farm.add_order({"title": "Vase", "quantity": 500}, {"title": "Bowl", "quantity": 1})
    answer = schedule(farm, refused["id"], printer_id)
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["quantity"])
    assert farm.get(PRINTS).json == []
    assert farm.get(f"/api/orders/{refused['id']}").json["production_status"] == "new"
    taken = farm.add_order({"title": "Vase", "quantity": 500})
    prints = scheduled(farm, taken["id"], printer_id)
    assert len(prints) == 500
    assert len({each["scheduled_start"] for each in prints}) == 500
    assert farm.get(f"{PRINTS}?limit=1").headers["X-Total-Count"] == "500"


# Who may be scheduled


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"status": OrderStatus.open}, "not paid"),
        ({"status": OrderStatus.canceled}, "canceled"),
        ({"status": OrderStatus.refunded}, "refunded"),
        ({"status": OrderStatus.completed}, "shipped"),
        ({"production_status": ProductionStatus.shipped}, "shipped"),
    ],
)
def test_an_unpaid_cancelled_refunded_or_shipped_order_is_a_conflict(
    farm: Farm, printer_id: int, values: dict[str, Any], sentence: str
) -> None:
    order = farm.add_order()
    set_order(farm, order["id"], **values)
    answer = schedule(farm, order["id"], printer_id)
    assert (answer.status_code, answer.json["code"]) == (409, "order_not_printable")
    assert sentence in answer.json["error"]
    assert farm.get(PRINTS).json == []


def test_a_partly_refunded_order_is_paid(farm: Farm, printer_id: int) -> None:
    order = farm.add_order()
    set_order(farm, order["id"], partially_refunded=True)
    assert len(scheduled(farm, order["id"], printer_id)) == 1


@pytest.mark.parametrize("way", [[], ["scheduled"], ["started"]])
def test_twice_on_one_order_while_its_prints_are_open_is_a_conflict(
    farm: Farm, printer_id: int, way: list[str]
) -> None:
    order = farm.add_order()
    made = scheduled(farm, order["id"], printer_id)[0]
    if way:
        farm.move(made["id"], *way)
    answer = schedule(farm, order["id"], farm.add_printer("Right")["id"])
    assert (answer.status_code, answer.json["code"]) == (409, "already_scheduled")
    assert len(farm.get(PRINTS).json) == 1


@pytest.mark.parametrize("end", ["completed", "failed", "deleted"])
def test_an_order_whose_prints_have_ended_can_be_scheduled_again(farm: Farm, printer_id: int, end: str) -> None:
    order = farm.add_order()
    made = scheduled(farm, order["id"], printer_id)[0]
    if end == "deleted":
        farm.delete(f"{PRINTS}/{made['id']}")
    else:
        farm.move(made["id"], "started", end)
    assert len(scheduled(farm, order["id"], printer_id)) == 1
    wanted = "printing" if end == "completed" else "queued"
    assert farm.get(f"/api/orders/{order['id']}").json["production_status"] == wanted


def test_of_two_calls_at_the_same_moment_one_schedules(farm: Farm, printer_id: int) -> None:
    order = farm.add_order({"title": "A", "quantity": 1}, {"title": "B", "quantity": 1})
    gate, statuses = threading.Barrier(6), []

    def call() -> None:
        gate.wait()
        statuses.append(schedule(farm, order["id"], printer_id).status_code)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == [201, 409, 409, 409, 409, 409]
    assert len(farm.get(PRINTS).json) == 2


def test_digital_lines_are_skipped_and_named(farm: Farm, printer_id: int) -> None:
    order = farm.add_order(
        {"title": "A", "quantity": 1}, {"title": "Pattern", "quantity": 1}, {"title": "C", "quantity": 1}
    )
    digital = order["items"][1]["id"]
    with farm.database() as session:
        session.execute(sa.update(OrderItem).where(OrderItem.id == digital).values(is_digital=True))
        session.commit()
    answer = schedule(farm, order["id"], printer_id).json
    assert answer["skipped"] == [{"order_item_id": digital, "reason": "digital: nothing to print"}]
    assert [each["order_item_id"] for each in answer["prints"]] == [order["items"][0]["id"], order["items"][2]["id"]]
    assert starts(answer["prints"]) == [None, "11:15"]
    assert answer["message"] == "Scheduled 2 print jobs"


def test_an_order_of_nothing_but_digital_lines_is_a_conflict(farm: Farm, printer_id: int) -> None:
    order = farm.add_order()
    set_lines(farm, order["id"], is_digital=True)
    answer = schedule(farm, order["id"], printer_id)
    assert (answer.status_code, answer.json["code"]) == (409, "nothing_to_print")


@pytest.mark.parametrize("bad", ["Auto", "1", True, None, 0, -1, 1.5, 2**31, [1]])
def test_a_printer_is_an_id_or_auto(farm: Farm, bad: Any) -> None:
    answer = schedule(farm, farm.add_order()["id"], bad)
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["printer_id"])


@pytest.mark.parametrize("body", [{}, {"printer_id": 1, "nonsense": 1}, {"printer_id": 1, "material_type": ""}])
def test_a_call_needs_a_printer_and_nothing_unknown(farm: Farm, body: dict[str, Any]) -> None:
    assert farm.post(f"/api/orders/{farm.add_order()['id']}/schedule-prints", body).status_code == 422


def test_a_foreign_printer_or_order_answers_like_a_missing_one(farm: Farm, stranger: Farm, printer_id: int) -> None:
    order = farm.add_order()
    their_printer, their_order = stranger.add_printer()["id"], stranger.add_order()["id"]
    removed = farm.add_printer("Old")["id"]
    farm.delete(f"/api/printers/{removed}")
    answers = [
        schedule(farm, order["id"], MISSING_ID),
        schedule(farm, order["id"], their_printer),
        schedule(farm, order["id"], removed),
        schedule(farm, MISSING_ID, printer_id),
        schedule(farm, their_order, printer_id),
    ]
    assert {(answer.status_code, answer.data) for answer in answers} == {(404, answers[0].data)}
    for each in (farm, stranger):
        assert each.get(PRINTS).json == []


def test_it_is_all_or_nothing(app: Flask, farm: Farm, printer_id: int) -> None:
    """The database refuses the last of the rows: a line's title in it is one that a trigger knows."""
    order = farm.add_order(*({"title": f"Line {number}", "quantity": 1} for number in range(20)))
    with app.app_context(), db.engine.begin() as connection:
        if db.engine.dialect.name == "sqlite":
            connection.exec_driver_sql(
                "CREATE TRIGGER refuse BEFORE INSERT ON scheduled_prints WHEN NEW.job_name LIKE '%Line 19' "
                "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
            )
        else:
            connection.exec_driver_sql(
                "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'refused by the test' USING ERRCODE = 'unique_violation'; END $$"
            )
            connection.exec_driver_sql(
                "CREATE TRIGGER refuse BEFORE INSERT ON scheduled_prints FOR EACH ROW "
                "WHEN (NEW.job_name LIKE '%%Line 19') EXECUTE FUNCTION refuse()"
            )
    try:
        assert schedule(farm, order["id"], printer_id).status_code in (409, 500, 503)
        assert farm.get(PRINTS).json == []
        assert farm.get(f"/api/orders/{order['id']}").json == order
    finally:
        with app.app_context(), db.engine.begin() as connection:
            on = " ON scheduled_prints" if db.engine.dialect.name == "postgresql" else ""
            connection.exec_driver_sql(f"DROP TRIGGER refuse{on}")
    assert len(scheduled(farm, order["id"], printer_id)) == 20


def test_a_printer_that_is_removed_at_the_same_moment_gets_no_prints(farm: Farm) -> None:
    for _ in range(5):
        printer_id, orders = farm.add_printer()["id"], [farm.add_order()["id"] for _ in range(2)]
        gate = threading.Barrier(4)

        def run(call: Any, *args: Any, gate: threading.Barrier = gate) -> None:
            gate.wait()
            call(*args)

        acts = [(schedule, farm, order_id, printer_id) for order_id in orders]
        body = {"printer_id": printer_id, "job_name": "x"}
        threads = [
            *(threading.Thread(target=run, args=act) for act in acts),
            threading.Thread(target=run, args=(farm.post, PRINTS, body)),
            threading.Thread(target=run, args=(farm.delete, f"/api/printers/{printer_id}")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        is_removed = farm.get(f"/api/printers/{printer_id}").status_code == 404
        waiting = farm.get(f"{PRINTS}?printer_id={printer_id}").json
        assert not (is_removed and waiting)


# The function


def test_the_function_stands_where_the_seeds_put_it(app: Flask, farm: Farm, stranger: Farm, printer_id: int) -> None:
    positional = list(inspect.signature(schedule_order_prints).parameters.values())[:5]
    assert [(each.name, each.default) for each in positional] == [
        ("user_id", inspect.Parameter.empty),
        ("order_id", inspect.Parameter.empty),
        ("printer_id", inspect.Parameter.empty),
        ("material_type", None),
        ("start_offset_minutes", 0),
    ]
    order = farm.add_order()["id"]
    with app.app_context():
        for user_id, order_id, on in (
            (stranger.user["id"], order, printer_id),
            (farm.user["id"], order, stranger.user["id"] + MISSING_ID),
        ):
            with pytest.raises(NotFound):
                schedule_order_prints(user_id, order_id, on)
            db.session.rollback()
        prints = schedule_order_prints(farm.user["id"], order, printer_id)
        assert [each.id is not None and each.job_name for each in prints] == [f"Order #{order} - Vase"]
        db.session.rollback()
    # It adds and flushes; only the caller commits.
    assert farm.get(PRINTS).json == []


# How a line finds its profile


def profile(**fields: Any) -> ProductProfile:
    return ProductProfile(**{"id": 1, "product_name": "-", "options": {}, **fields})


def line(**fields: Any) -> OrderItem:
    return OrderItem(**{"title": "Vase", "options": {}, **fields})


@pytest.mark.parametrize(
    ("line", "profiles", "wanted"),
    [
        # SKU goes before listing, listing before title.
        (
            line(sku="V-1", etsy_listing_id="5"),
            [profile(id=1, product_name="Vase"), profile(id=2, etsy_listing_id="5"), profile(id=3, sku="V-1")],
            3,
        ),
        (
            line(sku="V-2", etsy_listing_id="5"),
            [profile(id=1, product_name="Vase"), profile(id=2, etsy_listing_id="5")],
            2,
        ),
        (line(etsy_listing_id="6"), [profile(id=1, product_name="Vase"), profile(id=2, etsy_listing_id="5")], 1),
        # A title is exact.
        (line(title="vase"), [profile(product_name="Vase")], None),
        (line(title="Vase, blue"), [profile(product_name="Vase")], None),
        (line(title="Vase"), [profile(product_name="Vase")], 1),
        # An absent SKU is no SKU in common.
        (line(sku=None), [profile(sku=None)], None),
        (line(sku=""), [profile(sku="")], None),
        (line(etsy_listing_id=None), [profile(etsy_listing_id=None)], None),
        # A listing goes with its options; the profile that names more of them is the more exact.
        (
            line(etsy_listing_id="5", options={"Color": "Red", "Size": "L"}),
            [
                profile(id=1, etsy_listing_id="5"),
                profile(id=2, etsy_listing_id="5", options={"Color": "Red"}),
                profile(id=3, etsy_listing_id="5", options={"Color": "Blue"}),
            ],
            2,
        ),
        (
            line(etsy_listing_id="5", options={"Color": "Red"}),
            [profile(etsy_listing_id="5", options={"Color": "Blue"})],
            None,
        ),
        (line(etsy_listing_id="5"), [profile(etsy_listing_id="5", options={"Color": "Blue"})], None),
        # Of profiles with one SKU, the one whose options fit.
        (
            line(sku="V-1", options={"Color": "Blue"}),
            [profile(id=1, sku="V-1", options={"Color": "Red"}), profile(id=2, sku="V-1", options={"Color": "Blue"})],
            2,
        ),
        (
            line(sku="V-1", options={"Color": "Green"}),
            [profile(id=1, sku="V-1", options={"Color": "Red"}), profile(id=2, sku="V-1")],
            2,
        ),
        (line(sku="V-1"), [profile(id=1, sku="V-1", options={"Color": "Red"})], 1),
        (line(), [], None),
    ],
)
def test_a_line_finds_its_profile_by_sku_else_listing_and_options_else_exact_title(
    line: OrderItem, profiles: list[ProductProfile], wanted: int | None
) -> None:
    for each in (profiles, profiles[::-1]):
        found = [profile.id for profile in Mappings(each, {}).fitting(line, None)]
        assert found == ([] if wanted is None else [wanted])


def test_a_profile_made_after_the_order_is_found_when_it_is_scheduled(farm: Farm, printer_id: int) -> None:
    order = farm.add_order()
    assert order["items"][0]["profile_id"] is None
    made = farm.add_profile("Vase", print_time_minutes=30)
    assert scheduled(farm, order["id"], printer_id)[0]["estimated_duration_minutes"] == 30
    assert farm.get(f"/api/orders/{order['id']}").json["items"][0]["profile_id"] == made["id"]


def test_another_users_profile_is_never_found(farm: Farm, stranger: Farm, printer_id: int) -> None:
    stranger.add_profile("Vase", print_time_minutes=30, sku="V-1")
    order = farm.add_order({"title": "Vase", "sku": "V-1", "quantity": 1})
    assert scheduled(farm, order["id"], printer_id)[0]["estimated_duration_minutes"] == 120


# Statements


@contextmanager
def counted_statements(app: Flask) -> Iterator[list[str]]:
    with app.app_context():
        engine = db.engine
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize("with_profiles", [False, True])
def test_the_number_of_statements_does_not_grow_with_the_lines(
    app: Flask, farm: Farm, printer_id: int, with_profiles: bool
) -> None:
    numbers = {}
    for count in (2, 40, 400):
        if with_profiles:
            with farm.database() as session:
                session.add_all(
                    ProductProfile(
                        user_id=farm.user["id"],
                        product_name=f"{count} {number}",
                        # Uneven on purpose: rows with other NULLs than their neighbours.
                        filament_grams=number if number % 3 else None,
                        created_at=BASE_TIME,
                        updated_at=BASE_TIME,
                    )
                    for number in range(count)
                )
                session.commit()
        order = farm.add_order(*({"title": f"Line {number}", "quantity": 1} for number in range(count)))
        if with_profiles:
            with farm.database() as session:
                for item in session.execute(sa.select(OrderItem).where(OrderItem.order_id == order["id"])).scalars():
                    item.title = item.title.replace("Line", str(count))
                session.commit()
        with counted_statements(app) as statements:
            assert len(scheduled(farm, order["id"], printer_id)) == count
        numbers[count] = len(statements)
    assert numbers[40] == numbers[2], numbers
    assert numbers[400] == numbers[2], numbers
