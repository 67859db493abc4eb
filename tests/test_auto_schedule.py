"""Lines that wait for a person, and paid orders that wait for nobody: those become prints by themselves, once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

import etsy_api
from etsy_api import schedule_paid_orders
from farm.order_plan import PlanRules
from models import (
    Order,
    OrderItem,
    OrderStatus,
    PrintStatus,
    ProductionStatus,
    ProductProfile,
    ScheduledPrint,
    User,
    db,
)
from simulator import Plate, make_sliced_file
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm

ROOT = Path(__file__).parent.parent
PRINTS = "/api/bambu/scheduled-prints"
UNMAPPED = "/api/orders/unmapped"
MISSING_ID = 2_000_000_000


@pytest.fixture
def shop(farm: Farm) -> Farm:
    """A seller with a printer, a product that is wholly mapped, and orders that are scheduled by themselves."""
    printer_id = farm.add_printer(model="P1S", nozzle_diameter_mm=0.4)["id"]
    farm.add_material(printer_id, 0, color="#000000", weight_grams=100_000)
    plate = Plate(minutes=30, filaments=[("PLA", "#000000", 20, 7.0)])
    farm.add_profile("Vase", sku="V-1", print_file_id=farm.add_file(make_sliced_file(None, [plate]))["id"])
    assert farm.put("/api/auth/user", {"auto_schedule": True}).json["auto_schedule"] is True
    return farm


def vase(**fields: Any) -> dict[str, Any]:
    return {"title": "Vase", "sku": "V-1", "quantity": 1, **fields}


def run(farm: Farm) -> list[int]:
    with farm.app.app_context():
        return schedule_paid_orders(farm.user["id"], BASE_TIME)


def change(farm: Farm, model: type[Any], row_id: int, **values: Any) -> None:
    with farm.database() as session:
        session.execute(sa.update(model).where(model.id == row_id).values(**values))
        session.commit()


def personalize(farm: Farm, order: dict[str, Any], text: str = "Zoë") -> str:
    """The first line of the order gets a text; where to say that it was seen."""
    item_id = order["items"][0]["id"]
    change(farm, OrderItem, item_id, personalization=text)
    return f"/api/orders/{order['id']}/items/{item_id}/personalization-seen"


def waiting(farm: Farm) -> list[tuple[str, str, int, int]]:
    return [
        (each["reason"], each["title"], each["orders"], each["units"]) for each in farm.get(UNMAPPED).json["unmapped"]
    ]


# Personalization


@pytest.mark.parametrize("act", ["plan", "schedule-prints"])
def test_a_personalised_line_waits_until_a_person_has_seen_it(shop: Farm, clock: Clock, act: str) -> None:
    order = shop.add_order(vase(), vase())
    seen = personalize(shop, order)
    refused = shop.post(f"/api/orders/{order['id']}/{act}", {"printer_id": "auto"})
    assert (refused.status_code, refused.json["code"]) == (409, "personalization_not_seen")
    assert len(refused.json["fields"]["items"]) == 1
    assert f"Line {order['items'][0]['id']} (Vase)" in refused.json["error"]
    assert run(shop) == []
    assert waiting(shop) == [("personalization", "Vase", 1, 1)]
    assert shop.get(UNMAPPED).json["unmapped"][0]["lines"][0]["personalization"] == "Zoë"

    clock.forward(minutes=1)
    answer = shop.post(seen)
    assert (answer.status_code, answer.json["id"]) == (200, order["id"])
    assert [item["personalization_seen_at"] for item in answer.json["items"]] == ["2026-11-21T09:01:00Z", None]
    clock.forward(minutes=1)
    assert shop.post(seen).json == answer.json
    assert waiting(shop) == []
    assert shop.post(f"/api/orders/{order['id']}/{act}", {"printer_id": "auto"}).status_code in (200, 201)


def test_there_is_nothing_to_see_on_a_line_without_a_text(shop: Farm) -> None:
    order = shop.add_order(vase())
    path = f"/api/orders/{order['id']}/items/{order['items'][0]['id']}/personalization-seen"
    assert shop.post(path).json == order


def test_a_line_of_another_order_or_account_is_not_found(shop: Farm, stranger: Farm) -> None:
    mine, other, theirs = shop.add_order(), shop.add_order(), stranger.add_order()
    answers = [
        shop.post(f"/api/orders/{order}/items/{item}/personalization-seen")
        for order, item in (
            (mine["id"], MISSING_ID),
            (mine["id"], other["items"][0]["id"]),
            (mine["id"], theirs["items"][0]["id"]),
            (theirs["id"], theirs["items"][0]["id"]),
        )
    ]
    assert {(answer.status_code, answer.data) for answer in answers} == {(404, answers[0].data)}


# The list


def test_lines_without_a_mapping_stand_in_one_list_by_product(shop: Farm) -> None:
    bowl = {"title": "Bowl", "sku": "B-1", "quantity": 2}
    first = shop.add_order(bowl, vase())
    shop.add_order(bowl | {"title": "Bowl, now in blue"}, ship_by="2026-11-23T00:00:00Z")
    shop.add_order({"title": "Cup", "quantity": 3, "options": {"Color": "Red"}}, ship_by="2026-11-22T00:00:00Z")
    shop.add_order({"title": "Cup", "quantity": 1, "options": {"Color": "Blue"}})
    found = shop.get(UNMAPPED).json
    assert waiting(shop) == [
        ("no_mapping", "Cup", 1, 3),
        ("no_mapping", "Bowl", 2, 4),
        ("no_mapping", "Cup", 1, 1),
    ]
    assert found["total"] == 3
    bowls = found["unmapped"][1]
    assert bowls["lines"][0] == {
        "order_id": first["id"],
        "order_item_id": first["items"][0]["id"],
        "quantity": 2,
        "ship_by": None,
        "personalization": None,
    }
    assert {name: bowls[name] for name in bowls if name not in ("lines", "reason", "title", "orders", "units")} == {
        "message": "No product profile fits it.",
        "profile_ids": [],
        "shop_id": None,
        "sku": "B-1",
        "etsy_listing_id": None,
        "options": {},
        "ship_by": "2026-11-23T00:00:00Z",
    }
    page = shop.get(f"{UNMAPPED}?limit=1&offset=1").json
    assert (page["unmapped"], page["total"]) == ([bowls], 3)


def test_a_mapping_is_made_once_and_all_lines_that_wait_for_it_fit(shop: Farm) -> None:
    ids = [shop.add_order({"title": "Bowl", "sku": "B-1", "quantity": 1})["id"] for _ in range(3)]
    assert (waiting(shop), run(shop)) == ([("no_mapping", "Bowl", 3, 3)], [])
    made = shop.add_profile("Bowl", sku="B-1")
    assert waiting(shop) == [("no_file", "Bowl", 3, 3)]
    file_id = shop.get("/api/print-files").json["print_files"][0]["id"]
    shop.put(f"/api/product-profiles/{made['id']}", {"print_file_id": file_id})
    assert waiting(shop) == []
    assert run(shop) == ids


def test_what_is_unclear_says_which_profiles_or_options(shop: Farm) -> None:
    twin = shop.add_profile("Another vase", sku="V-1")
    shop.add_order(vase())
    found = shop.get(UNMAPPED).json["unmapped"][0]
    assert (found["reason"], len(found["profile_ids"]), found["profile_ids"][1]) == ("ambiguous", 2, twin["id"])
    shop.delete(f"/api/product-profiles/{twin['id']}")
    rules = [{"option": "Color", "value": "Navy", "color": "#1F3A93"}]
    shop.put(f"/api/product-profiles/{found['profile_ids'][0]}", {"rules": rules})
    for color in ("Green", "green", "Navy", "Teal"):
        shop.add_order(vase(options={"Color": color}))
    assert [(each["message"], each["orders"]) for each in shop.get(UNMAPPED).json["unmapped"]] == [
        ("No rule says what Color = Green is.", 2),
        ("No rule says what Color = Teal is.", 1),
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"status": OrderStatus.open},
        {"status": OrderStatus.canceled},
        {"status": OrderStatus.completed},
        {"production_status": ProductionStatus.shipped},
    ],
)
def test_only_open_paid_orders_are_in_the_list(shop: Farm, values: dict[str, Any]) -> None:
    order = shop.add_order({"title": "Bowl", "quantity": 1})
    assert len(waiting(shop)) == 1
    change(shop, Order, order["id"], **values)
    assert waiting(shop) == []


def test_digital_lines_and_those_with_prints_are_not_in_the_list(shop: Farm) -> None:
    digital, printed = (shop.add_order({"title": title, "quantity": 1}) for title in ("Pattern", "Bowl"))
    change(shop, OrderItem, digital["items"][0]["id"], is_digital=True)
    printer_id = shop.get("/api/printers").json[0]["id"]
    made = shop.post(f"/api/orders/{printed['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"]
    assert waiting(shop) == []
    shop.delete(f"{PRINTS}/{made[0]['id']}")
    assert waiting(shop) == [("no_mapping", "Bowl", 1, 1)]


def test_another_accounts_lines_are_not_in_the_list(shop: Farm, stranger: Farm) -> None:
    shop.add_order({"title": "Bowl", "quantity": 1})
    stranger.add_profile("Bowl")
    assert (len(waiting(shop)), waiting(stranger)) == (1, [])


def test_a_product_that_sells_well_shows_twenty_of_its_lines(shop: Farm) -> None:
    shop.add_order(*({"title": "Bowl", "sku": "B-1", "quantity": 1} for _ in range(25)))
    found = shop.get(UNMAPPED).json["unmapped"][0]
    assert (found["orders"], found["units"], len(found["lines"])) == (1, 25, 20)


@contextmanager
def statements(app: Flask) -> Iterator[list[str]]:
    with app.app_context():
        engine = db.engine
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(engine, "before_cursor_execute", note)


def test_the_list_takes_as_many_statements_for_hundred_orders_as_for_one(shop: Farm) -> None:
    shop.add_profile("Box", more_plates=[{"print_file_id": shop.get("/api/print-files").json["print_files"][0]["id"]}])
    counts = set()
    for _ in range(2):
        shop.add_order(*({"title": f"Bowl {number}", "quantity": 1} for number in range(100)))
        with statements(shop.app) as seen:
            shop.get(f"{UNMAPPED}?limit=1")
        counts.add(len(seen))
    assert len(counts) == 1


# By themselves


def test_it_is_off_until_a_person_wants_it(farm: Farm) -> None:
    assert farm.user["auto_schedule"] is False
    assert farm.put("/api/auth/user", {"auto_schedule": True}).json["auto_schedule"] is True
    assert farm.get("/api/auth/user").json["auto_schedule"] is True
    for bad in (None, 1, "true"):
        assert farm.put("/api/auth/user", {"auto_schedule": bad}).status_code == 422


def test_paid_and_mapped_orders_become_prints_the_first_to_be_shipped_first(shop: Farm) -> None:
    later = shop.add_order(vase(), ship_by="2026-11-25T00:00:00Z")["id"]
    never = shop.add_order(vase())["id"]
    sooner = shop.add_order(vase(quantity=2), ship_by="2026-11-22T00:00:00Z")["id"]
    assert run(shop) == [sooner, later, never]
    prints = shop.get(PRINTS).json
    assert {each["order_id"] for each in prints} == {sooner, later, never}
    assert {(each["status"], each["material_slot"]) for each in prints} == {("queued", 0)}
    assert shop.get(f"/api/orders/{sooner}").json["production_status"] == "queued"


def test_nothing_is_made_where_the_account_does_not_want_it(shop: Farm) -> None:
    shop.add_order(vase())
    shop.put("/api/auth/user", {"auto_schedule": False})
    with statements(shop.app) as seen:
        assert run(shop) == []
    assert len(seen) == 1
    assert shop.get(PRINTS).json == []


@pytest.mark.parametrize(
    "values",
    [
        {"status": OrderStatus.open},
        {"status": OrderStatus.canceled},
        {"status": OrderStatus.refunded},
        {"status": OrderStatus.completed},
        {"production_status": ProductionStatus.shipped},
        {"partially_refunded": True},
        {"attention": "Look."},
    ],
)
def test_an_order_that_is_not_paid_or_needs_a_person_is_left_alone(shop: Farm, values: dict[str, Any]) -> None:
    change(shop, Order, shop.add_order(vase())["id"], **values)
    assert run(shop) == []


def test_one_line_without_a_mapping_holds_the_whole_order(shop: Farm) -> None:
    shop.add_order(vase(), {"title": "Bowl", "quantity": 1})
    assert run(shop) == []


def test_digital_lines_hold_nothing_and_alone_are_nothing_to_print(shop: Farm) -> None:
    both, alone = shop.add_order(vase(), {"title": "Pattern", "quantity": 1}), shop.add_order(vase())
    change(shop, OrderItem, both["items"][1]["id"], is_digital=True)
    change(shop, OrderItem, alone["items"][0]["id"], is_digital=True)
    assert run(shop) == [both["id"]]


@pytest.mark.parametrize("end", ["queued", "deleted", "failed", "completed"])
def test_an_order_is_scheduled_once_whatever_became_of_its_prints(shop: Farm, end: str) -> None:
    order_id = shop.add_order(vase())["id"]
    assert run(shop) == [order_id]
    made = shop.get(PRINTS).json[0]
    if end == "deleted":
        shop.delete(f"{PRINTS}/{made['id']}")
    elif end != "queued":
        shop.move(made["id"], "started", end)
    assert run(shop) == []
    assert len(shop.get(PRINTS).json) == (0 if end == "deleted" else 1)


def test_what_fits_no_printer_waits_and_does_not_hold_up_the_others(shop: Farm) -> None:
    plate = Plate(minutes=30, filaments=[("PETG", "#FF0000", 20, 7.0)])
    file = shop.add_file(make_sliced_file(None, [plate]))
    shop.add_profile("Bowl", sku="B-1", print_file_id=file["id"])
    bowls = [shop.add_order({"title": "Bowl", "sku": "B-1", "quantity": 1})["id"] for _ in range(2)]
    vases = shop.add_order(vase())["id"]
    assert run(shop) == [vases]
    printer_id = shop.get("/api/printers").json[0]["id"]
    shop.add_material(printer_id, 1, material_type="PETG", color="#FF0000")
    assert run(shop) == bowls


def test_of_many_orders_that_fit_no_printer_one_is_tried(shop: Farm) -> None:
    plate = Plate(minutes=30, filaments=[("PETG", "#FF0000", 20, 7.0)])
    shop.add_profile("Bowl", sku="B-1", print_file_id=shop.add_file(make_sliced_file(None, [plate]))["id"])
    counts = []
    for _ in range(2):
        shop.add_order({"title": "Bowl", "sku": "B-1", "quantity": 1})
        with statements(shop.app) as seen:
            assert run(shop) == []
        counts.append(len(seen))
    assert counts[0] == counts[1]


def test_a_long_list_is_taken_in_pieces(shop: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etsy_api, "MAX_ORDERS_AT_ONCE", 2)
    ids = [shop.add_order(vase())["id"] for _ in range(3)]
    assert [run(shop), run(shop), run(shop)] == [ids[:2], ids[2:], []]


def test_an_order_from_long_ago_waits_for_a_person_and_the_list_says_why(shop: Farm) -> None:
    """A first sync brings in all of a shop's past, and what was sent long ago may never have been marked there."""
    fresh, old, older = (shop.add_order(vase(), ship_by="2026-11-01T00:00:00Z")["id"] for _ in range(3))
    unmapped = shop.add_order({"title": "Bowl", "quantity": 1})["id"]
    change(shop, Order, fresh, ordered_at=BASE_TIME - timedelta(days=30))
    change(shop, Order, old, ordered_at=BASE_TIME - timedelta(days=30, seconds=1))
    change(shop, Order, older, ordered_at=BASE_TIME - timedelta(days=2000))
    change(shop, Order, unmapped, ordered_at=BASE_TIME - timedelta(days=2000))
    assert run(shop) == [fresh]
    with statements(shop.app) as seen:
        assert run(shop) == []
    # They are not even looked at: there may be thousands.
    assert len(seen) == 1
    assert waiting(shop) == [("no_mapping", "Bowl", 1, 1), ("too_old", "Vase", 2, 2)]
    assert shop.get(UNMAPPED).json["unmapped"][1]["message"] == (
        "It was ordered before 2026-10-22: schedule its prints yourself, or mark the order as shipped."
    )
    assert shop.post(f"/api/orders/{old}/schedule-prints", {"printer_id": "auto"}).status_code == 201
    assert waiting(shop)[1] == ("too_old", "Vase", 1, 1)
    # Who does not want it by itself need not be told.
    shop.put("/api/auth/user", {"auto_schedule": False})
    assert waiting(shop) == [("no_mapping", "Bowl", 1, 1)]


def test_how_old_an_order_may_be_is_a_setting(shop: Farm) -> None:
    order = shop.add_order(vase())["id"]
    change(shop, Order, order, ordered_at=BASE_TIME - timedelta(days=40))
    settings = shop.app.extensions["parts"].settings
    assert PlanRules.from_settings(settings).oldest == timedelta(days=30)
    rules = PlanRules.from_settings(settings.model_copy(update={"auto_schedule_days": 41}))
    with shop.app.app_context():
        assert schedule_paid_orders(shop.user["id"], BASE_TIME) == []
        assert schedule_paid_orders(shop.user["id"], BASE_TIME, rules=rules) == [order]


def test_another_accounts_orders_are_not_touched(shop: Farm, stranger: Farm) -> None:
    stranger.put("/api/auth/user", {"auto_schedule": True})
    shop.add_order(vase())
    assert run(stranger) == []
    assert shop.get(PRINTS).json == []


@pytest.mark.parametrize(
    "meanwhile", ["attention", "refunded in part", "unwanted", "printed", "without a file", "too old"]
)
def test_what_changes_while_the_orders_before_it_are_scheduled_counts(shop: Farm, meanwhile: str) -> None:
    first, second = shop.add_order(vase())["id"], shop.add_order(vase())["id"]
    printer_id = shop.get("/api/printers").json[0]["id"]
    profile_id = shop.get("/api/product-profiles").json["profiles"][0]["id"]

    commits: list[Any] = []

    def act(session: Any) -> None:
        commits.append(session)
        if len(commits) > 1:
            return
        if meanwhile == "attention":
            change(shop, Order, second, attention="Look.")
        elif meanwhile == "refunded in part":
            change(shop, Order, second, partially_refunded=True)
        elif meanwhile == "too old":
            change(shop, Order, second, ordered_at=BASE_TIME - timedelta(days=31))
        elif meanwhile == "unwanted":
            change(shop, User, shop.user["id"], auto_schedule=False)
        elif meanwhile == "without a file":
            change(shop, ProductProfile, profile_id, print_file_id=None)
        else:
            with shop.database() as other:
                other.add(
                    ScheduledPrint(
                        user_id=shop.user["id"], printer_id=printer_id, order_id=second, job_name="By hand",
                        status=PrintStatus.completed, created_at=BASE_TIME, updated_at=BASE_TIME,
                    )
                )  # fmt: skip
                other.commit()

    sa.event.listen(db.session, "after_commit", act)
    try:
        assert run(shop) == [first]
    finally:
        sa.event.remove(db.session, "after_commit", act)
    assert {each["order_id"] for each in shop.get(PRINTS).json if each["job_name"] != "By hand"} == {first}


def test_of_threads_at_the_same_moment_each_order_is_scheduled_by_one(shop: Farm) -> None:
    ids = [shop.add_order(vase())["id"] for _ in range(4)]
    gate, done = threading.Barrier(4), []

    def act() -> None:
        gate.wait()
        done.append(run(shop))

    threads = [threading.Thread(target=act) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(sum(done, [])) == ids
    assert sorted(each["order_id"] for each in shop.get(PRINTS).json) == ids


def test_of_two_processes_and_a_person_each_order_is_scheduled_by_one(
    shop: Farm, session_database_url: str, tmp_path: Path
) -> None:
    ids = [shop.add_order(vase())["id"] for _ in range(6)]
    environment = {
        "PATH": os.environ["PATH"],
        "FLASK_ENV": "testing",
        "DATABASE_URL": session_database_url,
        "DATA_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "tests.schedule_process", str(shop.user["id"]), BASE_TIME.isoformat()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with ExitStack() as stack:
        begun = [stack.enter_context(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)) for _ in range(2)]
        assert [each.stdout.readline() for each in begun] == ["ready\n"] * 2
        for each in begun:
            each.stdin.write("go\n")
            each.stdin.flush()
        answers = [shop.post(f"/api/orders/{each}/schedule-prints", {"printer_id": "auto"}) for each in ids]
        counts = [int(each.stdout.readline()) for each in begun]
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {201, 409}
    assert sum(counts) + statuses.count(201) == len(ids)
    assert sorted(each["order_id"] for each in shop.get(PRINTS).json) == ids
