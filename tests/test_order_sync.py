"""Orders from Etsy through the API: connect a shop at a simulated Etsy, sync, sync again, and what can go wrong."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from models import Customer, Order, OrderItem, Shop
from simulator.etsy import ReceiptLine, SimulatedEtsy, make_receipt
from tests.apps import another_app
from tests.conftest import BASE_TIME, Clock
from tests.etsy_bench import KEYSTRING, SHARED_SECRET, YESTERDAY, consent, hurry
from tests.farm_builder import Farm
from tests.rows import log_in_again

SYNC = "/api/orders/sync"


@pytest.fixture
def shop(seller: Farm) -> Farm:
    """The seller with the shop connected."""
    assert connect(seller).status_code == 200
    return seller


def connect(farm: Farm) -> Any:
    return farm.post("/api/auth/etsy/callback", consent(farm.get("/api/auth/etsy/login").json["auth_url"]))


def sync(farm: Farm) -> dict[str, Any]:
    answer = farm.post(SYNC)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


def orders(farm: Farm) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = farm.get("/api/orders").json["orders"]
    return found


def by_receipt(farm: Farm) -> dict[str, dict[str, Any]]:
    return {order["etsy_order_id"]: order for order in orders(farm)}


def add(etsy: SimulatedEtsy, receipt_id: int, *lines: ReceiptLine, **facts: Any) -> None:
    facts = {"ordered_at": YESTERDAY, **facts}
    etsy.add_receipt(make_receipt(receipt_id=receipt_id, lines=list(lines) or [ReceiptLine("Vase")], **facts))


def count(farm: Farm, model: type[Any]) -> int:
    with farm.database() as session:
        return int(session.execute(sa.select(sa.func.count()).select_from(model)).scalar_one())


def token_calls(etsy: SimulatedEtsy) -> int:
    return sum(request.path.endswith("/oauth/token") for request in etsy.requests)


# Logging in at Etsy


def test_a_seller_connects_the_shop_of_their_account(seller: Farm, etsy: SimulatedEtsy) -> None:
    begun = seller.get("/api/auth/etsy/login")
    assert (begun.status_code, set(begun.json)) == (200, {"auth_url", "state"})
    answer = seller.post("/api/auth/etsy/callback", consent(begun.json["auth_url"]))
    assert (answer.status_code, set(answer.json)) == (200, {"token", "refresh_token", "user"})
    shop = etsy.shop
    assert (answer.json["user"]["id"], answer.json["user"]["email"]) == (seller.user["id"], "seller@example.com")
    assert [(each["name"], each["etsy_shop_id"], each["currency"]) for each in answer.json["user"]["shops"]] == [
        (shop.name, str(shop.etsy_shop_id), "EUR")
    ]
    assert seller.get("/api/auth/user").json["shops"] == answer.json["user"]["shops"]


def test_without_an_account_the_shops_owner_gets_one_and_finds_it_again(shop_app: Flask) -> None:
    client = shop_app.test_client()

    def log_in() -> dict[str, Any]:
        begun = client.get("/api/auth/etsy/login").json
        answer = client.post("/api/auth/etsy/callback", json=consent(begun["auth_url"]))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json
        return found

    first, second = log_in(), log_in()
    assert first["user"] == second["user"]
    assert (first["user"]["email"], first["user"]["username"], first["user"]["currency"]) == (
        None,
        "PrintedThings",
        "EUR",
    )
    me = client.get("/api/auth/user", headers={"Authorization": f"Bearer {second['token']}"})
    assert me.json == first["user"]


def test_the_browsers_own_redirect_finishes_a_login_in_the_browser_that_began_it(shop_app: Flask) -> None:
    browser, other = shop_app.test_client(), shop_app.test_client()
    query = consent(browser.get("/api/auth/etsy/login").json["auth_url"])
    stolen = consent(browser.get("/api/auth/etsy/login").json["auth_url"])
    assert other.get("/api/auth/etsy/callback", query_string=stolen).json["code"] == "etsy_login_elsewhere"
    query = consent(browser.get("/api/auth/etsy/login").json["auth_url"])
    answer = browser.get("/api/auth/etsy/callback", query_string=query)
    assert (answer.status_code, set(answer.json)) == (200, {"token", "refresh_token", "user"})


def test_a_login_works_once_for_ten_minutes_and_for_its_own_account(
    seller: Farm, shop_app: Flask, clock: Clock
) -> None:
    path = "/api/auth/etsy/callback"
    used = consent(seller.get("/api/auth/etsy/login").json["auth_url"])
    assert seller.post(path, used).status_code == 200
    assert seller.post(path, used).json["code"] == "etsy_login_gone"
    assert seller.post(path, {"code": "x", "state": "never begun"}).json["code"] == "etsy_login_gone"
    mine = consent(seller.get("/api/auth/etsy/login").json["auth_url"])
    stranger = Farm(shop_app, "stranger@example.com")
    assert stranger.post(path, mine).json["code"] == "etsy_login_elsewhere"
    late = consent(seller.get("/api/auth/etsy/login").json["auth_url"])
    clock.forward(minutes=10, seconds=1)
    log_in_again(seller)
    assert seller.post(path, late).json["code"] == "etsy_login_gone"


def test_a_code_that_etsy_refuses_is_401(seller: Farm) -> None:
    begun = seller.get("/api/auth/etsy/login").json
    answer = seller.post("/api/auth/etsy/callback", {"code": "not-a-code", "state": begun["state"]})
    assert (answer.status_code, answer.json["code"]) == (401, "etsy_denied")
    assert count(seller, Shop) == 0


def test_a_shop_belongs_to_one_account(shop: Farm, shop_app: Flask) -> None:
    stranger = Farm(shop_app, "stranger@example.com")
    answer = connect(stranger)
    assert (answer.status_code, answer.json["code"]) == (409, "shop_taken")
    assert stranger.get("/api/auth/user").json["shops"] == []


def test_tokens_lie_sealed_in_the_database(shop: Farm, etsy: SimulatedEtsy) -> None:
    with shop.database() as session:
        row = repr(tuple(session.execute(sa.text("SELECT * FROM shops")).one()))
    assert f"{etsy.shop.etsy_user_id}." not in row


def test_without_a_key_or_a_shop_there_is_nothing_to_sync(farm: Farm, shop_app: Flask) -> None:
    answer = farm.post(SYNC)
    assert (answer.status_code, answer.json["code"]) == (409, "etsy_not_configured")
    assert farm.get("/api/auth/etsy/login").json["code"] == "etsy_not_configured"
    answer = Farm(shop_app, "other@example.com").post(SYNC)
    assert (answer.status_code, answer.json["code"]) == (409, "no_shop")


# What comes in


def test_a_receipt_becomes_an_order_with_its_lines(shop: Farm, etsy: SimulatedEtsy) -> None:
    ship_by = BASE_TIME + timedelta(days=2)
    vase = ReceiptLine("Spiral vase", "VASE-01", 2, Decimal("18.00"), {"Color": "White"}, ship_by=ship_by)
    sign = ReceiptLine(
        "Door sign", None, 1, Decimal("24.50"), {}, "Familie Müller", ship_by=ship_by + timedelta(days=1)
    )
    add(
        *(etsy, 3_100_000_001, vase, sign, ReceiptLine("Pattern", is_digital=True)),
        name="Robin Example",
        is_gift=True,
        gift_message="Happy birthday",
        gift_sender="Zoë &amp; Ada",
        message_from_seller="On its way soon",
        message_from_buyer="Please pack well",
    )
    assert sync(shop)["message"] == "Imported 1 new orders"
    [order] = orders(shop)
    shown = {
        "shop_id": shop.get("/api/auth/user").json["shops"][0]["id"],
        "etsy_order_id": "3100000001",
        "buyer_name": "Robin Example",
        "status": "paid",
        "etsy_status": "Paid",
        "partially_refunded": False,
        "production_status": "new",
        "total_amount": 77.9,
        "currency": "EUR",
        "ship_by": "2026-11-23T09:00:00Z",
        "ordered_at": "2026-11-20T09:00:00Z",
        "shipped_at": None,
        "tracking_number": None,
        "is_gift": True,
        "gift_message": "Happy birthday",
        "gift_sender": "Zoë & Ada",
        "message_from_seller": "On its way soon",
        "message_from_buyer": "Please pack well",
    }
    assert {name: order[name] for name in shown} == shown
    first, second, third = order["items"]
    wanted = ("title", "sku", "quantity", "price", "currency", "options", "personalization", "is_digital")
    assert [first[name] for name in wanted] == ["Spiral vase", "VASE-01", 2, 18, "EUR", {"Color": "White"}, None, False]
    assert [second[name] for name in wanted] == ["Door sign", None, 1, 24.5, "EUR", {}, "Familie Müller", False]
    assert (third["is_digital"], first["etsy_transaction_id"]) == (True, "31000000011")
    assert first["etsy_listing_id"].isdigit()
    assert order["customer_id"] is not None


@pytest.mark.parametrize(
    ("word", "status", "partially"),
    [
        ("Paid", "paid", False),
        ("Open", "open", False),
        ("Payment Processing", "open", False),
        ("Completed", "completed", False),
        ("Canceled", "canceled", False),
        ("Fully Refunded", "refunded", False),
        ("Partially Refunded", "paid", True),
        ("Something new", "open", False),
    ],
)
def test_a_status_word_is_one_of_ours_and_the_raw_one_is_kept(
    shop: Farm, etsy: SimulatedEtsy, word: str, status: str, partially: bool
) -> None:
    add(etsy, 1, status=word)
    sync(shop)
    [order] = orders(shop)
    assert (order["status"], order["etsy_status"], order["partially_refunded"]) == (status, word, partially)


def test_syncing_twice_makes_no_duplicates_and_changes_nothing(shop: Farm, etsy: SimulatedEtsy, clock: Clock) -> None:
    for receipt_id in (1, 2, 3):
        add(etsy, receipt_id, ReceiptLine("Vase"), ReceiptLine("Bowl"), ordered_at=BASE_TIME)
    first = sync(shop)["shops"][0]
    assert (first["created"], first["updated"], first["unreadable"]) == (3, 0, 0)
    before = orders(shop)
    clock.forward(minutes=5)
    second = sync(shop)
    assert second["message"] == "Imported 0 new orders"
    assert (second["shops"][0]["created"], second["shops"][0]["updated"]) == (0, 0)
    assert orders(shop) == before
    assert (count(shop, Order), count(shop, OrderItem), count(shop, Customer)) == (3, 6, 1)


def test_a_change_at_etsy_changes_the_order_that_is_there(shop: Farm, etsy: SimulatedEtsy, clock: Clock) -> None:
    add(etsy, 1, status="Open")
    add(etsy, 2)
    sync(shop)
    before = by_receipt(shop)
    clock.forward(minutes=12)
    etsy.change_receipt(1, status="Paid", is_paid=True, message_from_buyer="Blue, please")
    result = sync(shop)["shops"][0]
    assert (result["created"], result["updated"]) == (0, 1)
    after = by_receipt(shop)
    assert after["2"] == before["2"]
    changed = {"status": "paid", "etsy_status": "Paid", "message_from_buyer": "Blue, please"}
    assert after["1"] == before["1"] | changed | {"updated_at": "2026-11-21T09:12:00Z"}


def test_a_line_that_is_added_at_etsy_joins_its_order(shop: Farm, etsy: SimulatedEtsy, clock: Clock) -> None:
    add(etsy, 1, ReceiptLine("Vase"))
    sync(shop)
    first = orders(shop)[0]["items"][0]
    clock.forward(minutes=1)
    add(etsy, 1, ReceiptLine("Vase", quantity=3), ReceiptLine("Bowl"), updated_at=clock.now)
    sync(shop)
    items = orders(shop)[0]["items"]
    assert [(each["title"], each["quantity"]) for each in items] == [("Vase", 3), ("Bowl", 1)]
    assert items[0]["id"] == first["id"]


def test_a_cancelled_order_is_noticed_though_etsy_leaves_it_out(shop: Farm, etsy: SimulatedEtsy, clock: Clock) -> None:
    add(etsy, 1)
    sync(shop)
    clock.forward(minutes=1)
    etsy.change_receipt(1, status="Canceled")
    sync(shop)
    [order] = orders(shop)
    assert order["status"] == "canceled"
    answer = shop.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": shop.add_printer()["id"]})
    assert (answer.status_code, answer.json["code"]) == (409, "order_not_printable")


def test_a_shipped_order_keeps_its_ship_by_and_stays_shipped(shop: Farm, etsy: SimulatedEtsy, clock: Clock) -> None:
    ship_by = BASE_TIME + timedelta(days=2)
    add(etsy, 1, ReceiptLine("Vase", ship_by=ship_by))
    sync(shop)
    made = shop.add_print(shop.add_printer()["id"], order_id=orders(shop)[0]["id"])
    clock.forward(minutes=10)
    add(
        *(etsy, 1, ReceiptLine("Vase", ship_by=ship_by)),
        status="Completed",
        updated_at=clock.now,
        tracking=("DHL", "00340434161094042557"),
    )
    sync(shop)
    [order] = orders(shop)
    assert (order["status"], order["production_status"]) == ("completed", "shipped")
    assert (order["ship_by"], order["shipped_at"]) == ("2026-11-23T09:00:00Z", "2026-11-21T09:10:00Z")
    assert order["tracking_number"] == "00340434161094042557"
    shop.move(made["id"], "started", "failed")
    assert orders(shop)[0]["production_status"] == "shipped"


def test_an_unreadable_receipt_is_skipped_and_the_others_come_in(shop: Farm, etsy: SimulatedEtsy) -> None:
    for receipt_id in (1, 2, 3):
        add(etsy, receipt_id)
    etsy.receipts[2]["receipt_id"] = 0
    result = sync(shop)["shops"][0]
    assert (result["created"], result["unreadable"]) == (2, 1)
    assert set(by_receipt(shop)) == {"1", "3"}


def test_a_hostile_receipt_is_text_and_nothing_else(shop: Farm, etsy: SimulatedEtsy) -> None:
    bad = "\x00\ud800\u202e<svg onload=alert(1)> {{7*7}} ' ; DROP TABLE orders; --"
    add(etsy, 1, ReceiptLine(bad * 20, sku=bad * 20, quantity=10**9, variations={bad: bad}, personalization=bad))
    etsy.change_receipt(1, name=bad * 20, status=bad * 5, message_from_buyer=bad * 200, gift_message=5, grandtotal="x")
    sync(shop)
    [order] = orders(shop)
    assert (order["status"], order["total_amount"], order["items"][0]["quantity"]) == ("open", None, 10_000)
    assert "\x00" not in repr(order) and len(order["buyer_name"]) <= 255


def test_a_buyer_is_one_customer_over_all_orders(shop: Farm, etsy: SimulatedEtsy, clock: Clock) -> None:
    add(etsy, 1, buyer_user_id=7, name="Robin")
    add(etsy, 2, buyer_user_id=7, name="Robin")
    add(etsy, 3, buyer_user_id=8, name="Robin")
    sync(shop)
    customers = {receipt: order["customer_id"] for receipt, order in by_receipt(shop).items()}
    assert customers["1"] == customers["2"] != customers["3"]
    clock.forward(minutes=1)
    add(etsy, 4, buyer_user_id=7, name="Robin Renamed", updated_at=clock.now)
    sync(shop)
    with shop.database() as session:
        assert session.get_one(Customer, customers["1"]).name == "Robin Renamed"
    assert count(shop, Customer) == 2


def test_more_orders_than_a_page_come_in(shop: Farm, etsy: SimulatedEtsy) -> None:
    for receipt_id in range(1, 251):
        add(etsy, receipt_id, ordered_at=YESTERDAY + timedelta(minutes=receipt_id))
    assert sync(shop)["shops"][0]["created"] == 250
    assert shop.get("/api/orders?limit=1").json["total"] == 250


def test_lines_find_their_profiles_and_prints_bear_the_receipts_number(shop: Farm, etsy: SimulatedEtsy) -> None:
    profile = shop.add_profile("Whatever", sku="VASE-01", print_time_minutes=33)
    add(etsy, 3_100_000_001, ReceiptLine("Vase", "VASE-01"), ReceiptLine("Pattern", is_digital=True))
    sync(shop)
    [order] = orders(shop)
    assert [item["profile_id"] for item in order["items"]] == [profile["id"], None]
    answer = shop.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": shop.add_printer()["id"]}).json
    assert [each["job_name"] for each in answer["prints"]] == ["Order #3100000001 - Vase"]
    assert answer["prints"][0]["estimated_duration_minutes"] == 33
    assert [each["order_item_id"] for each in answer["skipped"]] == [order["items"][1]["id"]]


def test_a_second_sync_asks_only_for_what_changed_since(shop: Farm, etsy: SimulatedEtsy, clock: Clock) -> None:
    sync(shop)
    clock.forward(minutes=5)
    etsy.requests.clear()
    sync(shop)
    asked = [request.query for request in etsy.requests if request.path.endswith("/receipts")]
    assert len(asked) == 2
    # Ten minutes of overlap: Etsy's clock and ours differ, and receipts become visible late.
    since = int((BASE_TIME - timedelta(minutes=10)).timestamp())
    assert {query["min_last_modified"][0] for query in asked} == {str(since)}
    # Until when, Etsy's first answer says.
    assert [query.get("max_last_modified") for query in asked] == [None, [str(int(clock.now.timestamp()))]]


def test_a_sync_is_only_ones_own(shop: Farm, etsy: SimulatedEtsy, shop_app: Flask) -> None:
    add(etsy, 1)
    sync(shop)
    stranger = Farm(shop_app, "stranger@example.com")
    assert orders(stranger) == []
    assert stranger.get(f"/api/orders/{orders(shop)[0]['id']}").status_code == 404


# What can go wrong


def test_a_call_limit_is_429_with_the_time_to_wait(shop: Farm, etsy: SimulatedEtsy, clock: Clock) -> None:
    add(etsy, 1)
    etsy.fail_next(429, {"error": "Exceeded the limit"}, headers={"retry-after": "37"})
    answer = shop.post(SYNC)
    assert (answer.status_code, answer.headers["Retry-After"], orders(shop)) == (429, "37", [])
    before = len(etsy.requests)
    clock.forward(seconds=30)
    again = shop.post(SYNC)
    assert (again.status_code, again.headers["Retry-After"], len(etsy.requests)) == (429, "7", before)
    clock.forward(seconds=7)
    assert sync(shop)["shops"][0]["created"] == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, "<h1>Oops</h1>"), (503, {"error": "down"}), (200, "<h1>Welcome</h1>"), (400, {"error": "no"})],
)
def test_an_etsy_that_answers_nonsense_is_502_and_nothing_is_lost(
    shop: Farm, etsy: SimulatedEtsy, status: int, body: Any
) -> None:
    add(etsy, 1)
    hurry(shop.app)
    before = len(etsy.requests)
    etsy.fail_next(status, body, times=1 if status == 400 else 3)
    answer = shop.post(SYNC)
    assert (answer.status_code, answer.json["code"], orders(shop)) == (502, "etsy_failed", [])
    # What may pass is asked three times; a no is a no.
    assert len(etsy.requests) == before + (1 if status == 400 else 3)
    assert sync(shop)["shops"][0]["created"] == 1


def test_an_etsy_that_is_not_there_is_502(shop: Farm, session_database_url: str, tmp_path: Path, clock: Clock) -> None:
    nobody = {"ETSY_BASE_URL": "http://127.0.0.1:1", "ETSY_CLIENT_ID": KEYSTRING, "ETSY_SHARED_SECRET": SHARED_SECRET}
    with another_app(session_database_url, tmp_path, clock, **nobody) as alone:
        hurry(alone)
        answer = alone.test_client().post(SYNC, headers={"Authorization": f"Bearer {shop.token}"})
        assert (answer.status_code, answer.json["code"]) == (502, "etsy_failed")


def test_a_sync_that_breaks_off_goes_on_where_it_was(shop: Farm, etsy: SimulatedEtsy, clock: Clock) -> None:
    hurry(shop.app)
    for receipt_id in range(1, 121):
        add(etsy, receipt_id, ordered_at=YESTERDAY + timedelta(minutes=receipt_id))
    original = len(etsy.requests)
    etsy.fail_next(200, {"count": 120, "results": [etsy.receipts[number] for number in range(1, 101)]})
    etsy.fail_next(500, "<h1>Oops</h1>", times=3)
    assert shop.post(SYNC).status_code == 502
    assert len(etsy.requests) == original + 4
    clock.forward(minutes=1)
    # The first page was kept, and only its end is asked for a second time.
    result = sync(shop)["shops"][0]
    since = YESTERDAY + timedelta(minutes=100 - 10)
    assert etsy.requests[original + 4].query["min_last_modified"] == [str(int(since.timestamp()))]
    assert len(etsy.requests) == original + 6
    assert (result["created"], result["updated"], shop.get("/api/orders?limit=1").json["total"]) == (20, 0, 120)


def test_an_ageing_token_is_refreshed_once_and_the_new_pair_is_kept(
    shop: Farm, etsy: SimulatedEtsy, clock: Clock
) -> None:
    for _ in range(3):
        clock.forward(minutes=56)
        log_in_again(shop)
        before = token_calls(etsy)
        sync(shop)
        sync(shop)
        # Each time the refresh token of the time before is void: had it not been kept, Etsy would refuse.
        assert token_calls(etsy) == before + 1


def test_a_token_that_etsy_no_longer_takes_is_refreshed_once(shop: Farm, etsy: SimulatedEtsy, clock: Clock) -> None:
    add(etsy, 1)
    etsy.fail_next(401, {"error": "invalid_token", "error_description": "access token is expired"})
    before = token_calls(etsy)
    assert sync(shop)["shops"][0]["created"] == 1
    assert token_calls(etsy) == before + 1


def test_two_syncs_at_the_same_moment_refresh_once_and_make_no_duplicates(
    shop: Farm, etsy: SimulatedEtsy, clock: Clock
) -> None:
    for receipt_id in range(1, 11):
        add(etsy, receipt_id)
    clock.forward(minutes=56)
    log_in_again(shop)
    before = token_calls(etsy)
    gate, statuses = threading.Barrier(3), []

    def run() -> None:
        gate.wait()
        statuses.append(shop.post(SYNC).status_code)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 3
    assert token_calls(etsy) == before + 1
    assert (count(shop, Order), count(shop, OrderItem), count(shop, Customer)) == (10, 10, 1)


def test_a_shop_whose_login_etsy_has_revoked_is_409_until_it_is_connected_again(
    shop: Farm, etsy: SimulatedEtsy
) -> None:
    add(etsy, 1)
    etsy.revoke_tokens()
    answer = shop.post(SYNC)
    assert (answer.status_code, answer.json["code"]) == (409, "reconnect_shop")
    assert etsy.shop.name in answer.json["error"]
    assert connect(shop).status_code == 200
    assert count(shop, Shop) == 1
    assert sync(shop)["shops"][0]["created"] == 1


def test_a_login_that_can_no_longer_be_read_is_409(shop: Farm) -> None:
    with shop.database() as session:
        session.execute(sa.update(Shop).values(access_token_sealed="broken", refresh_token_sealed="broken"))
        session.commit()
    answer = shop.post(SYNC)
    assert (answer.status_code, answer.json["code"]) == (409, "reconnect_shop")


def test_no_answer_of_a_failed_sync_tells_a_token(shop: Farm, etsy: SimulatedEtsy) -> None:
    hurry(shop.app)
    for status, body in ((500, "x"), (400, {"error": "no"}), (429, {}), (403, {"error": SHARED_SECRET})):
        etsy.fail_next(status, body, times=3 if status == 500 else 1)
        answer = shop.post(SYNC)
        assert answer.status_code >= 400
        assert f"{etsy.shop.etsy_user_id}." not in answer.text and SHARED_SECRET not in answer.text


def test_the_cursor_moves_only_over_what_has_come(shop: Farm, etsy: SimulatedEtsy, clock: Clock) -> None:
    hurry(shop.app)

    def synced_until() -> datetime | None:
        with shop.database() as session:
            return session.execute(sa.select(Shop.synced_until)).scalar_one()

    etsy.fail_next(500, "x", times=3)
    shop.post(SYNC)
    assert synced_until() is None
    sync(shop)
    assert synced_until() == BASE_TIME
    clock.forward(minutes=5)
    etsy.fail_next(500, "x", times=3)
    shop.post(SYNC)
    assert synced_until() == BASE_TIME
