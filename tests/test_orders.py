"""Orders through the API: by hand, lists and filters, and what an order's prints say about it."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from farm.orders import PrintOfOrder, production_status_of
from models import OPEN_STATUSES, Customer, Order, OrderItem, PrintStatus, ProductionStatus, User
from tests.conftest import Clock
from tests.farm_builder import Farm

PATH = "/api/orders"
PRINTS = "/api/bambu/scheduled-prints"
MISSING_ID = 2_000_000_000
ORDER_FIELDS = {
    *("id", "shop_id", "customer_id", "etsy_order_id", "buyer_name", "status", "etsy_status", "partially_refunded"),
    *("production_status", "total_amount", "currency", "ship_by", "ordered_at", "shipped_at", "tracking_number"),
    *("is_gift", "gift_message", "gift_sender", "message_from_buyer", "message_from_seller", "items"),
    *("created_at", "updated_at"),
    *("attention", "refunded_amount", "carrier_name", "ship_error"),
}
ITEM_FIELDS = {
    *("id", "order_id", "etsy_transaction_id", "etsy_listing_id", "sku", "title", "quantity", "price", "currency"),
    *("options", "personalization", "personalization_seen_at", "is_digital", "profile_id", "prints"),
}


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer()["id"])


def change(farm: Farm, order_id: int, **values: Any) -> None:
    """What only a sync writes."""
    with farm.database() as session:
        session.execute(sa.update(Order).where(Order.id == order_id).values(**values))
        session.commit()


def production(farm: Farm, order_id: int) -> str:
    return str(farm.get(f"{PATH}/{order_id}").json["production_status"])


# By hand


def test_an_order_has_exactly_the_fields_of_the_contract(farm: Farm) -> None:
    made = farm.add_order()
    assert (set(made), set(made["items"][0])) == (ORDER_FIELDS, ITEM_FIELDS)
    assert farm.get(f"{PATH}/{made['id']}").json == made
    assert farm.get(PATH).json == {"orders": [made], "total": 1}


def test_an_order_by_hand_is_paid_and_new_unless_told(farm: Farm) -> None:
    made = farm.made(PATH, {"buyer_name": "Ada", "items": [{"title": "Vase", "quantity": 2}]})
    shown = {name: made[name] for name in ("buyer_name", "status", "production_status", "currency", "etsy_order_id")}
    assert shown == {
        "buyer_name": "Ada",
        "status": "paid",
        "production_status": "new",
        "currency": "USD",
        "etsy_order_id": None,
    }
    assert made["ordered_at"] == made["created_at"] == "2026-11-21T09:00:00Z"
    assert (made["is_gift"], made["partially_refunded"], made["total_amount"]) == (False, False, None)
    item = made["items"][0]
    assert (item["title"], item["quantity"], item["price"], item["sku"]) == ("Vase", 2, None, None)
    assert (item["options"], item["prints"], item["profile_id"], item["is_digital"]) == ({}, {}, None, False)


def test_an_order_by_hand_keeps_what_is_sent(farm: Farm) -> None:
    item = {"title": "Vase", "quantity": 3, "price": 12.5, "sku": "V-1", "options": {"Color": "Red"}}
    made = farm.add_order(item, currency="EUR", ship_by="2026-12-01T00:00:00+01:00", status="open")
    assert (made["currency"], made["ship_by"], made["status"]) == ("EUR", "2026-11-30T23:00:00Z", "open")
    assert {name: made["items"][0][name] for name in item} == item
    assert (made["items"][0]["currency"], made["total_amount"]) == ("EUR", 37.5)


def test_an_orders_currency_is_the_users_unless_told(farm: Farm) -> None:
    with farm.database() as session:
        session.execute(sa.update(User).values(currency="JPY"))
        session.commit()
    made = farm.add_order({"title": "Vase", "quantity": 3, "price": 1000.5})
    assert (made["currency"], made["total_amount"], made["items"][0]["price"]) == ("JPY", 3002, 1001)


@pytest.mark.parametrize(("currency", "shown"), [("USD", 2.68), ("JPY", 3), ("KWD", 2.675)])
def test_money_is_rounded_half_up_to_what_its_currency_has(farm: Farm, currency: str, shown: float) -> None:
    made = farm.add_order({"title": "Vase", "quantity": 1, "price": 2.675}, currency=currency)
    assert (made["total_amount"], made["items"][0]["price"]) == (shown, shown)


def test_an_order_by_hand_makes_its_customer(farm: Farm) -> None:
    made = farm.add_order(buyer_name="Grace")
    with farm.database() as session:
        assert session.get_one(Customer, made["customer_id"]).name == "Grace"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"buyer_name", "items"}),
        ({"buyer_name": "", "items": []}, {"buyer_name", "items"}),
        ({"buyer_name": "A", "items": [{}]}, {"items.0.title", "items.0.quantity"}),
        *[
            ({"buyer_name": "A", "items": [{"title": "V", "quantity": bad}]}, {"items.0.quantity"})
            for bad in (0, -1, 10_001, 10**9, 1.5, "1", True, None)
        ],
        *[
            ({"buyer_name": "A", "items": [{"title": "V", "quantity": 1, "price": bad}]}, {"items.0.price"})
            for bad in (-0.01, 1_000_000_001, "1", True)
        ],
        *[
            ({"buyer_name": "A", "items": [{"title": bad, "quantity": 1}]}, {"items.0.title"})
            for bad in ("", " ", "x" * 256, 5, None)
        ],
        ({"buyer_name": "A", "items": [{"title": "V", "quantity": 1, "nonsense": 1}]}, {"items.0.nonsense"}),
        ({"buyer_name": "A", "items": [{"title": "V", "quantity": 1, "is_digital": True}]}, {"items.0.is_digital"}),
        ({"buyer_name": "A", "items": {"title": "V"}}, {"items"}),
        ({"buyer_name": "A", "items": [{"title": "V", "quantity": 1}], "status": "shipped"}, {"status"}),
        ({"buyer_name": "A", "items": [{"title": "V", "quantity": 1}], "currency": "euro"}, {"currency"}),
        (
            {"buyer_name": "A", "items": [{"title": "V", "quantity": 1}], "production_status": "printed"},
            {"production_status"},
        ),
        ({"buyer_name": "A", "items": [{"title": "V", "quantity": 1}], "ship_by": "soon"}, {"ship_by"}),
    ],
)
def test_a_bad_order_is_refused_with_every_fault_by_its_place(
    farm: Farm, body: dict[str, Any], fields: set[str]
) -> None:
    answer = farm.post(PATH, body)
    assert (answer.status_code, set(answer.json["fields"])) == (422, fields)
    assert farm.get(PATH).json["total"] == 0


def test_an_order_of_many_lines_with_one_bad_one_leaves_nothing(farm: Farm) -> None:
    lines = [{"title": f"Line {number}", "quantity": 1} for number in range(20)]
    assert farm.post(PATH, {"buyer_name": "A", "items": [*lines, {"title": "x", "quantity": 0}]}).status_code == 422
    with farm.database() as session:
        for model in (Order, OrderItem, Customer):
            assert session.execute(sa.select(sa.func.count()).select_from(model)).scalar_one() == 0


def test_another_users_order_answers_like_a_missing_one(farm: Farm, stranger: Farm) -> None:
    theirs = stranger.add_order()
    missing = farm.get(f"{PATH}/{MISSING_ID}")
    assert missing.status_code == 404
    assert farm.get(f"{PATH}/{theirs['id']}").data == missing.data
    assert farm.get(PATH).json == {"orders": [], "total": 0}


# Lists


def test_orders_are_listed_newest_first_with_their_total(farm: Farm, clock: Clock) -> None:
    ids = []
    for _ in range(3):
        clock.forward(minutes=1)
        ids.append(farm.add_order()["id"])
    ids.append(farm.add_order()["id"])  # at the same time as the third
    answer = farm.get(f"{PATH}?limit=3").json
    assert ([each["id"] for each in answer["orders"]], answer["total"]) == (ids[::-1][:3], 4)
    assert [each["id"] for each in farm.get(f"{PATH}?limit=3&offset=3").json["orders"]] == ids[:1]


def test_orders_are_filtered(farm: Farm, printer_id: int) -> None:
    first = farm.add_order({"title": "Blue 100% vase", "quantity": 1}, ship_by="2026-12-01T00:00:00Z")
    second = farm.add_order({"title": "Bowl", "quantity": 1}, {"title": "Lid_1", "quantity": 1}, status="open")
    third = farm.add_order(ship_by="2026-12-05T00:00:00Z")
    change(farm, first["id"], ordered_at=datetime.fromisoformat("2026-11-18T23:59:59+00:00"))
    change(farm, second["id"], ordered_at=datetime.fromisoformat("2026-11-20T00:00:00+00:00"))
    farm.post(f"{PATH}/{third['id']}/schedule-prints", {"printer_id": printer_id})
    one, two, three = first["id"], second["id"], third["id"]

    def ids(query: str) -> list[int]:
        answer = farm.get(f"{PATH}?{query}").json
        assert answer["total"] == len(answer["orders"])
        return [each["id"] for each in answer["orders"]]

    assert ids("") == [three, two, one]
    assert ids("status=open") == [two]
    assert ids("production_status=queued") == [three]
    assert ids("start_date=2026-11-20") == [three, two]
    assert ids("end_date=2026-11-20") == [two, one]
    assert ids("end_date=2026-11-19T23:59:59Z") == [one]
    assert ids("start_date=2026-11-19&end_date=2026-11-20") == [two]
    assert ids("start_date=2026-11-20T01:00:00%2B01:00&end_date=2026-11-20T00:00:00Z") == [two]
    assert ids("product=vase") == [three, one]
    assert ids("product=100%25") == [one]
    assert ids("product=lid_1") == [two]
    assert ids("product=_") == [two]
    assert ids(f"customer_id={second['customer_id']}") == [two]
    assert ids("ship_by_before=2026-12-05") == [one]
    assert ids("ship_by_before=2026-12-06") == [three, one]
    assert ids("status=paid&product=vase&ship_by_before=2026-12-02") == [one]
    assert ids("nonsense=1") == [three, two, one]


@pytest.mark.parametrize("query", ["status=shipped", "production_status=done", "start_date=x", "end_date=2026-02-30"])
def test_a_bad_filter_is_refused_by_name(farm: Farm, query: str) -> None:
    answer = farm.get(f"{PATH}?{query}")
    assert (answer.status_code, list(answer.json["fields"])) == (422, [query.split("=")[0]])


def test_a_line_counts_its_prints_by_status(farm: Farm, printer_id: int) -> None:
    farm.add_profile("Vase", units_per_plate=1)
    order = farm.add_order({"title": "Vase", "quantity": 3}, {"title": "Bowl", "quantity": 1})
    prints = farm.post(f"{PATH}/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"]
    farm.move(prints[0]["id"], "started", "completed")
    farm.delete(f"{PRINTS}/{prints[1]['id']}")
    shown = farm.get(f"{PATH}/{order['id']}").json["items"]
    assert [each["prints"] for each in shown] == [{"completed": 1, "queued": 1}, {"queued": 1}]
    assert farm.get(PATH).json["orders"][0]["items"] == shown


# What its prints say


def of(*prints: tuple[str, int] | tuple[str, int, bool]) -> ProductionStatus:
    return production_status_of(
        PrintOfOrder(number, each[1], PrintStatus(each[0]), len(each) > 2) for number, each in enumerate(prints, 1)
    )


@pytest.mark.parametrize(
    ("prints", "status"),
    [
        ([], "new"),
        ([("queued", 1)], "queued"),
        ([("queued", 1), ("scheduled", 2)], "queued"),
        ([("queued", 1), ("started", 2)], "printing"),
        ([("started", 1), ("completed", 2)], "printing"),
        ([("completed", 1), ("queued", 2)], "printing"),
        ([("completed", 1), ("scheduled", 1)], "printing"),
        ([("completed", 1), ("completed", 2)], "printed"),
        # A failed one counts until its line has an open or a later print.
        ([("failed", 1)], "attention"),
        ([("failed", 1), ("started", 2)], "attention"),
        ([("failed", 1), ("queued", 1)], "queued"),
        ([("queued", 1), ("failed", 1)], "queued"),
        ([("failed", 1), ("completed", 1)], "printed"),
        ([("completed", 1), ("failed", 1)], "attention"),
        ([("failed", 1), ("failed", 1)], "attention"),
        ([("failed", 1), ("failed", 1), ("started", 1)], "printing"),
        ([("failed", 1), ("completed", 1), ("queued", 2)], "printing"),
        # Deleted: a completed one still counts, any other does not.
        ([("completed", 1, True)], "printed"),
        ([("completed", 1, True), ("queued", 2)], "printing"),
        ([("failed", 1, True)], "new"),
        ([("failed", 1, True), ("completed", 2)], "printed"),
        ([("queued", 1, True)], "new"),
        ([("started", 1, True), ("queued", 2)], "queued"),
        ([("failed", 1), ("completed", 1, True)], "printed"),
        ([("failed", 1), ("queued", 1, True)], "attention"),
    ],
)
def test_production_status_is_one_function_of_the_prints(prints: list[Any], status: str) -> None:
    assert of(*prints) == status


@given(
    prints=st.lists(st.tuples(st.integers(1, 3), st.sampled_from(list(PrintStatus)), st.booleans()), max_size=8),
)
def test_production_status_follows_the_contracts_sentences(prints: list[tuple[int, PrintStatus, bool]]) -> None:
    """The sentences of the contract, written down a second time, one after the other."""
    rows = [PrintOfOrder(number, *each) for number, each in enumerate(prints, 1)]
    counted = [row for row in rows if not row.is_deleted or row.status is PrintStatus.completed]

    def is_settled(failed: PrintOfOrder) -> bool:
        same_line = [row for row in counted if row.order_item_id == failed.order_item_id]
        return any(row.status in OPEN_STATUSES for row in same_line) or any(row.id > failed.id for row in same_line)

    statuses = [row.status for row in counted if row.status is not PrintStatus.failed]
    if not all(is_settled(row) for row in counted if row.status is PrintStatus.failed):
        wanted = "attention"
    elif PrintStatus.started in statuses or PrintStatus.completed in statuses and set(statuses) & set(OPEN_STATUSES):
        wanted = "printing"
    elif statuses and set(statuses) <= set(OPEN_STATUSES):
        wanted = "queued"
    else:
        wanted = "printed" if statuses else "new"
    assert production_status_of(rows) == wanted


def test_an_orders_production_status_is_recomputed_at_each_move(farm: Farm, printer_id: int) -> None:
    order = farm.add_order({"title": "A", "quantity": 1}, {"title": "B", "quantity": 1})
    first, second = (
        each["id"]
        for each in farm.post(f"{PATH}/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"]
    )
    seen = [production(farm, order["id"])]
    for print_id, status in (
        (first, "scheduled"),
        (first, "started"),
        (first, "completed"),
        (second, "started"),
        (second, "failed"),
        (second, "queued"),
        (second, "started"),
        (second, "completed"),
    ):
        farm.move(print_id, status)
        seen.append(production(farm, order["id"]))
    assert seen == [
        *("queued", "queued", "printing", "printing", "printing", "attention", "printing", "printing", "printed")
    ]


def test_deleting_a_print_recomputes_its_order(farm: Farm, printer_id: int) -> None:
    order = farm.add_order({"title": "A", "quantity": 1}, {"title": "B", "quantity": 1})
    first, second = (
        each["id"]
        for each in farm.post(f"{PATH}/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"]
    )
    farm.move(first, "started", "failed")
    assert production(farm, order["id"]) == "attention"
    farm.delete(f"{PRINTS}/{first}")
    assert production(farm, order["id"]) == "queued"
    farm.move(second, "started", "completed")
    farm.delete(f"{PRINTS}/{second}")
    assert production(farm, order["id"]) == "printed"


def test_an_order_whose_prints_end_at_the_same_moment_is_printed(farm: Farm, printer_id: int) -> None:
    for _ in range(4):
        order = farm.add_order(*({"title": f"Line {number}", "quantity": 1} for number in range(4)))
        prints = farm.post(f"{PATH}/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"]
        for each in prints:
            farm.move(each["id"], "started")
        gate = threading.Barrier(len(prints))

        def end(print_id: int, gate: threading.Barrier = gate) -> None:
            gate.wait()
            farm.move(print_id, "completed")

        threads = [threading.Thread(target=end, args=(each["id"],)) for each in prints]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert production(farm, order["id"]) == "printed"


def test_a_print_linked_by_hand_counts_for_its_order_and_no_longer_when_unlinked(farm: Farm, printer_id: int) -> None:
    first, second = farm.add_order()["id"], farm.add_order()["id"]
    made = farm.add_print(printer_id, order_id=first)
    assert (production(farm, first), production(farm, second)) == ("queued", "new")
    farm.put(f"{PRINTS}/{made['id']}", {"order_id": second})
    assert (production(farm, first), production(farm, second)) == ("new", "queued")
    farm.put(f"{PRINTS}/{made['id']}", {"order_id": None})
    assert production(farm, second) == "new"


def test_a_link_and_a_move_together_settle_both_orders(farm: Farm, printer_id: int) -> None:
    first, second = farm.add_order()["id"], farm.add_order()["id"]
    made = farm.add_print(printer_id, order_id=first)
    farm.put(f"{PRINTS}/{made['id']}", {"order_id": second, "status": "started"})
    assert (production(farm, first), production(farm, second)) == ("new", "printing")


def test_shipped_stays(farm: Farm, printer_id: int) -> None:
    order = farm.add_order()["id"]
    made = farm.add_print(printer_id, order_id=order)
    change(farm, order, production_status=ProductionStatus.shipped)
    farm.move(made["id"], "started", "failed")
    assert production(farm, order) == "shipped"
    farm.delete(f"{PRINTS}/{made['id']}")
    assert production(farm, order) == "shipped"


def test_the_database_holds_the_ranges_and_words_too(farm: Farm) -> None:
    farm.add_order()
    for statement in (
        "UPDATE order_items SET quantity = 0",
        "UPDATE order_items SET quantity = 10001",
        "UPDATE orders SET status = 'shipped'",
        "UPDATE orders SET production_status = 'done'",
    ):
        with farm.database() as session, pytest.raises(sa.exc.IntegrityError):
            session.execute(sa.text(statement))
