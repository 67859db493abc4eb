"""An order on its way back: told to Etsy once, whatever breaks on the way, and what a person has to press there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from requests.adapters import HTTPAdapter

from farm.orders import PrintOfOrder
from farm.shipping import is_same_code, unfinished
from models import Order, OrderItem, OrderStatus, PrintStatus, ProductionStatus, Shop, db
from simulator.etsy import ReceiptLine, SimulatedEtsy, make_receipt
from tests.conftest import Clock
from tests.etsy_bench import (
    YESTERDAY,
    access_of,
    add,
    calls_to,
    go,
    hurry,
    process,
    sync,
)
from tests.farm_builder import Farm
from tests.rows import log_in_again

TRACKING = "/tracking"
DHL = {"tracking_code": "JJD 0012345", "carrier_name": "dhl"}


def order_at_etsy(seller: Farm, etsy: SimulatedEtsy, shop_id: int, **facts: Any) -> int:
    """The id of a printed order that came in from Etsy as receipt 1."""
    add(etsy, 1, **facts)
    sync(seller.app, shop_id)
    (found,) = seller.get("/api/orders").json["orders"]
    print_all(seller, found["id"])
    return int(found["id"])


def print_all(seller: Farm, order_id: int) -> None:
    printer_id = seller.add_printer()["id"]
    answer = seller.post(f"/api/orders/{order_id}/schedule-prints", {"printer_id": printer_id})
    assert answer.status_code == 201, answer.text
    for each in answer.json["prints"]:
        seller.move(each["id"], "started", "completed")


def ship(seller: Farm, order_id: int, **body: Any) -> Any:
    return seller.post(f"/api/orders/{order_id}/ship", {**DHL, **body})


def row(app: Flask, order_id: int) -> Order:
    with app.app_context():
        found = db.session.get_one(Order, order_id)
        db.session.refresh(found)
        db.session.expunge(found)
        return found


def set_columns(app: Flask, order_id: int, **values: Any) -> None:
    with app.app_context():
        db.session.execute(sa.update(Order).where(Order.id == order_id).values(**values))
        db.session.commit()


# At Etsy


def test_a_printed_order_is_shipped_at_etsy_and_the_tracking_is_found_there(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int, clock: Clock
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    answer = ship(seller, order_id, note_to_buyer="On its way!", send_bcc=True)
    assert answer.status_code == 200
    assert answer.json["etsy"] == {"sent": True, "tracking_stored": True, "reason": None}
    shown = answer.json["order"]
    assert {name: shown[name] for name in ("status", "production_status", "tracking_number", "carrier_name")} == {
        "status": "completed",
        "production_status": "shipped",
        "tracking_number": "JJD 0012345",
        "carrier_name": "dhl",
    }
    assert shown["shipped_at"] == clock.now.isoformat().replace("+00:00", "Z")
    assert seller.get(f"/api/orders/{order_id}").json == shown
    (sent,) = etsy.shipments
    assert (sent.receipt_id, sent.tracking_code, sent.carrier_name) == (1, "JJD 0012345", "dhl")
    assert sent.note_to_buyer == "On its way!"
    (request,) = [each for each in etsy.requests if each.path.endswith(TRACKING)]
    assert request.headers["content-type"] == "application/json" and b'"send_bcc": true' in request.body


def test_the_same_again_answers_the_same_and_another_code_is_refused(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    first = ship(seller, order_id)
    seen = len(etsy.requests)
    again = ship(seller, order_id, tracking_code="jjd0012345")
    assert (again.status_code, again.json) == (200, first.json)
    other = ship(seller, order_id, tracking_code="OTHER")
    assert (other.status_code, other.json["code"]) == (409, "already_shipped")
    assert len(etsy.requests) == seen and len(etsy.shipments) == 1


def test_a_sync_after_shipping_changes_nothing(seller: Farm, etsy: SimulatedEtsy, shop_id: int) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    shown = ship(seller, order_id).json["order"]
    assert sync(seller.app, shop_id).updated == 0
    assert seller.get(f"/api/orders/{order_id}").json == shown


def test_without_a_code_the_order_is_only_marked(seller: Farm, etsy: SimulatedEtsy, shop_id: int) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    answer = seller.post(f"/api/orders/{order_id}/ship", {"tracking_code": None})
    assert answer.json["etsy"] == {"sent": True, "tracking_stored": False, "reason": None}
    assert [each.tracking_code for each in etsy.shipments] == [None]
    assert seller.post(f"/api/orders/{order_id}/ship", {"tracking_code": None}).json == answer.json
    assert len(etsy.shipments) == 1


def test_a_carrier_that_etsy_does_not_know_goes_as_other(seller: Farm, etsy: SimulatedEtsy, shop_id: int) -> None:
    etsy.carriers = {"dhl"}
    order_id = order_at_etsy(seller, etsy, shop_id)
    assert ship(seller, order_id, carrier_name="Bike courier").status_code == 200
    assert [(each.tracking_code, each.carrier_name) for each in etsy.shipments] == [("JJD 0012345", "other")]


def test_a_code_without_a_carrier_goes_as_other(seller: Farm, etsy: SimulatedEtsy, shop_id: int) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    assert ship(seller, order_id, carrier_name=None).status_code == 200
    assert [each.carrier_name for each in etsy.shipments] == ["other"]


def test_where_etsy_needs_a_code_its_words_are_told_and_the_order_can_be_sent_again(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id, country="IN")
    answer = seller.post(f"/api/orders/{order_id}/ship", {"tracking_code": None})
    assert (answer.status_code, answer.json["code"]) == (409, "etsy_refused")
    assert "A tracking number is required" in answer.json["error"]
    kept = row(seller.app, order_id)
    assert (kept.ship_sent_at, kept.tracking_number, kept.production_status) == (None, None, ProductionStatus.printed)
    assert "A tracking number is required" in (kept.ship_error or "")
    assert ship(seller, order_id).json["etsy"] == {"sent": True, "tracking_stored": True, "reason": None}
    assert len(etsy.shipments) == 1


# Refused


def test_the_lock_out_ships_it_here_and_says_what_to_press_there(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int
) -> None:
    etsy.is_locked_out = True
    order_id = order_at_etsy(seller, etsy, shop_id)
    answer = ship(seller, order_id)
    assert answer.status_code == 200
    told = answer.json["etsy"]
    assert (told["sent"], told["tracking_stored"]) == (False, False)
    for said in ("Unauthorized", "Shop Manager", "“Complete order”", "the order 1,", "JJD 0012345 of dhl"):
        assert said in told["reason"]
    shown = answer.json["order"]
    assert (shown["production_status"], shown["status"], shown["ship_error"]) == ("shipped", "paid", told["reason"])
    assert ship(seller, order_id).json == answer.json
    assert calls_to(etsy, TRACKING) == 1 and etsy.shipments == []
    # Nobody was told yet, so a slip of the pen may be mended.
    mended = ship(seller, order_id, tracking_code="RIGHT")
    assert mended.json["order"]["tracking_number"] == "RIGHT" and "RIGHT" in mended.json["etsy"]["reason"]


def test_what_was_pressed_at_etsy_ends_the_reminder(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int, clock: Clock
) -> None:
    etsy.is_locked_out = True
    order_id = order_at_etsy(seller, etsy, shop_id)
    assert ship(seller, order_id).json["order"]["ship_error"]
    asked = calls_to(etsy, "/receipts/1")
    clock.forward(hours=7)
    sync(seller.app, shop_id)
    assert calls_to(etsy, "/receipts/1") == asked, "a shipped order is not read by itself any more"
    log_in_again(seller)
    etsy.change_receipt(
        1, status="Completed", is_shipped=True, shipments=[{"carrier_name": "DHL", "tracking_code": "JJD0012345"}]
    )
    sync(seller.app, shop_id)
    shown = seller.get(f"/api/orders/{order_id}").json
    assert (shown["ship_error"], shown["status"], shown["production_status"]) == (None, "completed", "shipped")


def test_an_order_completed_at_etsy_without_the_code_says_that_it_is_not_there(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int, clock: Clock
) -> None:
    etsy.is_locked_out = True
    order_id = order_at_etsy(seller, etsy, shop_id)
    ship(seller, order_id)
    for _ in range(2):
        clock.forward(minutes=1)
        etsy.change_receipt(1, status="Completed", is_shipped=True)
        sync(seller.app, shop_id)
        told = ship(seller, order_id).json
        assert (told["etsy"]["sent"], told["etsy"]["tracking_stored"]) == (True, False)
        assert told["etsy"]["reason"] == told["order"]["ship_error"]
        assert "does not show the tracking number" in told["etsy"]["reason"]
        assert "add it by hand: the tracking number JJD 0012345 of dhl." in told["etsy"]["reason"]
        other = ship(seller, order_id, tracking_code="OTHER")
        assert (other.status_code, other.json["code"]) == (409, "already_shipped")
        assert "without a number" in other.json["error"]
    clock.forward(minutes=1)
    etsy.change_receipt(1, shipments=[{"carrier_name": "DHL", "tracking_code": "JJD 0012345"}])
    sync(seller.app, shop_id)
    assert ship(seller, order_id).json["etsy"] == {"sent": True, "tracking_stored": True, "reason": None}


def test_a_login_without_the_right_to_ship_asks_to_connect_again(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    scope = {"error": "insufficient_scope", "error_description": "transactions_w is required"}
    etsy.fail_next(403, scope, skip=1)
    answer = ship(seller, order_id)
    assert (answer.status_code, answer.json["code"]) == (409, "reconnect_shop")
    assert row(seller.app, order_id).ship_sent_at is None
    assert ship(seller, order_id).status_code == 200


def test_a_revoked_login_sends_nothing_and_says_so(seller: Farm, etsy: SimulatedEtsy, shop_id: int) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    etsy.revoke_tokens()
    answer = ship(seller, order_id)
    assert (answer.status_code, answer.json["code"]) == (409, "reconnect_shop")
    assert row(seller.app, order_id).ship_sent_at is None and calls_to(etsy, TRACKING) == 0


def test_the_days_limit_is_told_and_the_claim_given_back(seller: Farm, etsy: SimulatedEtsy, shop_id: int) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    etsy.fail_next(429, {"error": "Exceeded the daily rate limit."}, headers={"retry-after": "86400"}, skip=1)
    answer = ship(seller, order_id)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "86400")
    left = row(seller.app, order_id)
    assert (left.tracking_number, left.carrier_name, left.ship_sent_at) == (None, None, None)
    # A parked shop may ship all the same: that is what the reserve is for.
    assert ship(seller, order_id).status_code == 200


def test_an_order_that_etsy_does_not_know_is_refused(seller: Farm, etsy: SimulatedEtsy, shop_id: int) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    etsy.receipts.clear()
    answer = ship(seller, order_id)
    assert (answer.status_code, answer.json["code"]) == (409, "etsy_refused")


def test_without_a_key_nothing_is_asked(farm: Farm, app: Flask, clock: Clock) -> None:
    order_id = farm.add_order()["id"]
    print_all(farm, order_id)
    with app.app_context():
        vault, user_id = app.extensions["parts"].vault, farm.user["id"]
        shop = Shop(
            user_id=user_id,
            etsy_shop_id="5",
            etsy_user_id="6",
            name="S",
            currency="EUR",
            access_token_sealed=vault.seal("6.a", f"shops.access_token:{user_id}:5"),
            refresh_token_sealed=vault.seal("6.b", f"shops.refresh_token:{user_id}:5"),
            token_expires_at=clock.now,
            created_at=clock.now,
        )
        db.session.add(shop)
        db.session.commit()
        made = shop.id
    set_columns(app, order_id, shop_id=made, etsy_order_id="77")
    answer = ship(farm, order_id)
    assert (answer.status_code, answer.json["code"]) == (409, "etsy_not_configured")


# What breaks on the way


def test_an_answer_that_is_lost_after_the_effect_is_found_at_once(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    etsy.fail_next(502, "<html>Bad gateway</html>", after_effect=True, skip=1)
    answer = ship(seller, order_id)
    assert answer.json["etsy"] == {"sent": True, "tracking_stored": True, "reason": None}
    assert len(etsy.shipments) == 1 and calls_to(etsy, TRACKING) == 1


@pytest.mark.parametrize("after_effect", [False, True])
def test_an_unknown_outcome_is_looked_at_again_and_sent_only_if_it_is_not_there(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int, clock: Clock, after_effect: bool
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    etsy.fail_next(500, {"error": "Server Error"}, after_effect=after_effect, skip=1)
    etsy.fail_next(503, "<html>Busy</html>", times=3)
    hurry(seller.app)
    answer = ship(seller, order_id)
    assert (answer.status_code, answer.json["code"]) == (502, "ship_unknown")
    assert row(seller.app, order_id).ship_error == answer.json["error"]
    early = ship(seller, order_id)
    if after_effect:
        assert early.json["etsy"]["sent"] and early.json["order"]["ship_error"] is None
    else:
        # It may still be on its way.
        assert (early.status_code, early.json["code"]) == (409, "ship_under_way")
        clock.forward(minutes=3)
        assert ship(seller, order_id).json["etsy"]["sent"]
    assert len(etsy.shipments) == 1


@pytest.mark.parametrize("loses_tracking", [False, True])
def test_an_unknown_outcome_that_a_sync_meets_first_is_still_asked_about(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int, clock: Clock, loses_tracking: bool
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    etsy.loses_tracking = loses_tracking
    etsy.fail_next(500, {"error": "Server Error"}, after_effect=True, skip=1)
    etsy.fail_next(503, "<html>Busy</html>", times=3)
    hurry(seller.app)
    unknown = ship(seller, order_id).json
    assert unknown["code"] == "ship_unknown"
    clock.forward(minutes=5)
    sync(seller.app, shop_id)
    found = seller.get(f"/api/orders/{order_id}").json
    assert (found["status"], found["production_status"]) == ("completed", "shipped")
    assert found["ship_error"] == (unknown["error"] if loses_tracking else None)
    told = ship(seller, order_id).json["etsy"]
    assert (told["sent"], told["tracking_stored"]) == (True, not loses_tracking)
    assert not loses_tracking or "does not show the tracking number" in told["reason"]
    assert ship(seller, order_id).json["etsy"] == told
    assert row(seller.app, order_id).ship_confirmed_at == clock.now
    assert len(etsy.shipments) == calls_to(etsy, TRACKING) == 1


def test_a_call_that_runs_into_its_time_out_is_not_repeated(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int, clock: Clock
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    access_of(seller.app).http.mount(etsy.base_url, Impatient())
    etsy.delayed_path, etsy.delay_seconds = TRACKING, 0.6
    answer = ship(seller, order_id)
    assert (answer.status_code, answer.json["code"]) == (502, "ship_unknown")
    wait_for(lambda: len(etsy.shipments) == 1)
    assert ship(seller, order_id).json["etsy"]["sent"]
    assert len(etsy.shipments) == 1


class Impatient(HTTPAdapter):
    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        return super().send(request, *args, **{**kwargs, "timeout": 0.2})


def test_tracking_that_etsy_has_dropped_is_said_and_no_second_mail_goes_out(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int
) -> None:
    etsy.loses_tracking = True
    order_id = order_at_etsy(seller, etsy, shop_id)
    answer = ship(seller, order_id)
    assert answer.status_code == 200
    told = answer.json["etsy"]
    assert (told["sent"], told["tracking_stored"]) == (True, False)
    assert "does not show the tracking number" in told["reason"] and "JJD 0012345" in told["reason"]
    assert answer.json["order"]["production_status"] == "shipped"
    assert ship(seller, order_id).json == answer.json
    sync(seller.app, shop_id)
    assert seller.get(f"/api/orders/{order_id}").json["ship_error"] == told["reason"]
    assert len(etsy.shipments) == 1


@pytest.mark.parametrize("after_effect", [False, True])
def test_a_success_without_the_code_in_it_is_not_believed(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int, after_effect: bool
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    as_before = make_receipt(receipt_id=1, lines=[ReceiptLine("Vase")], ordered_at=YESTERDAY)
    etsy.fail_next(200, as_before, after_effect=after_effect, skip=1)
    answer = ship(seller, order_id)
    if after_effect:
        assert answer.json["etsy"] == {"sent": True, "tracking_stored": True, "reason": None}
    else:
        assert (answer.status_code, answer.json["code"]) == (502, "ship_unknown")
        assert seller.get(f"/api/orders/{order_id}").json["production_status"] == "printed"


def test_another_orders_receipt_says_nothing_of_this_one(seller: Farm, etsy: SimulatedEtsy, shop_id: int) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    shipped = make_receipt(
        receipt_id=2, lines=[ReceiptLine("Bowl")], status="Completed", tracking=("dhl", DHL["tracking_code"])
    )
    etsy.fail_next(200, shipped)
    answer = ship(seller, order_id)
    assert (answer.status_code, answer.json["code"]) == (502, "etsy_failed")
    assert [each["production_status"] for each in seller.get("/api/orders").json["orders"]] == ["printed"]
    assert etsy.shipments == []


def test_what_the_seller_has_shipped_at_etsy_is_not_sent_again(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int, clock: Clock
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    clock.forward(minutes=1)
    etsy.change_receipt(
        1, status="Completed", is_shipped=True, shipments=[{"carrier_name": "DHL", "tracking_code": "JJD0012345"}]
    )
    other = ship(seller, order_id, tracking_code="OTHER")
    assert (other.status_code, other.json["code"]) == (409, "already_shipped")
    assert ship(seller, order_id).json["etsy"] == {"sent": True, "tracking_stored": True, "reason": None}
    assert etsy.shipments == []


def test_an_order_that_was_cancelled_meanwhile_is_not_shipped(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int, clock: Clock
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    clock.forward(minutes=1)
    etsy.change_receipt(1, is_noticed=False, status="Canceled")
    answer = ship(seller, order_id)
    assert (answer.status_code, answer.json["code"]) == (409, "order_not_shippable")
    assert seller.get(f"/api/orders/{order_id}").json["status"] == "canceled"
    assert etsy.shipments == []


@pytest.mark.parametrize("is_there", [False, True])
def test_one_that_was_killed_after_its_claim_is_asked_about_before_anything_is_sent(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int, clock: Clock, is_there: bool
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    set_columns(seller.app, order_id, ship_sent_at=clock.now, tracking_number="JJD 0012345", carrier_name="dhl")
    if is_there:
        etsy.change_receipt(
            1, status="Completed", is_shipped=True, shipments=[{"carrier_name": "dhl", "tracking_code": "JJD 0012345"}]
        )
    answer = ship(seller, order_id)
    if is_there:
        assert answer.json["etsy"]["sent"] and etsy.shipments == []
        return
    assert (answer.status_code, answer.json["code"]) == (409, "ship_under_way")
    clock.forward(minutes=3)
    assert ship(seller, order_id, tracking_code="ANOTHER").json["etsy"]["sent"]
    assert [each.tracking_code for each in etsy.shipments] == ["ANOTHER"]


def test_a_process_killed_while_etsy_works_leaves_one_shipment(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int, clock: Clock, session_database_url: str, tmp_path: Path
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    act = f"ship:{seller.user['id']}:{order_id}:KILLED"
    with process(seller.app, session_database_url, tmp_path, act, shop_id, clock.now) as begun:
        etsy.delayed_path, etsy.delay_seconds = TRACKING, 1.0
        go(begun)
        # Etsy has it, and takes its time.
        wait_for(lambda: etsy.arrived[-1].endswith(TRACKING))
        begun.kill()
        begun.wait(10)
    etsy.delay_seconds = 0
    wait_for(lambda: len(etsy.shipments) == 1)
    assert row(seller.app, order_id).ship_confirmed_at is None
    assert ship(seller, order_id, tracking_code="KILLED").json["etsy"]["sent"]
    assert len(etsy.shipments) == 1


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 15
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_two_processes_at_once_make_one_shipment(
    seller: Farm, etsy: SimulatedEtsy, shop_id: int, clock: Clock, session_database_url: str, tmp_path: Path
) -> None:
    order_id = order_at_etsy(seller, etsy, shop_id)
    act = f"ship:{seller.user['id']}:{order_id}:TWICE"
    with (
        process(seller.app, session_database_url, tmp_path, act, shop_id, clock.now) as one,
        process(seller.app, session_database_url, tmp_path, act, shop_id, clock.now) as two,
    ):
        etsy.delay_seconds = 0.5
        go(one)
        go(two)
        said = [each.stdout.read().split() for each in (one, two) if each.stdout]
    assert len(etsy.shipments) == 1 and calls_to(etsy, TRACKING) == 1
    # The second one found it there, or was told that it is on its way.
    assert [each[-1] for each in said] == ["done", "done"]
    assert sum("order_shipped" in each for each in said) >= 1
    assert row(seller.app, order_id).production_status is ProductionStatus.shipped


# Not ready


def test_an_order_that_is_not_all_printed_is_refused_by_what_is_open(farm: Farm) -> None:
    order = farm.add_order({"title": "Vase", "quantity": 1}, {"title": "Bowl", "quantity": 1})
    answer = ship(farm, order["id"])
    assert (answer.status_code, answer.json["code"]) == (409, "not_printed")
    assert answer.json["fields"]["items"] == ["Vase: has no print yet", "Bowl: has no print yet"]
    printer_id = farm.add_printer()["id"]
    prints = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"]
    vase, bowl = (each["id"] for each in prints)
    farm.move(vase, "started", "completed")
    answer = ship(farm, order["id"])
    assert answer.json["fields"]["items"] == [f"Bowl: waits for a printer (print {bowl})"]
    farm.move(bowl, "started", "failed")
    answer = ship(farm, order["id"])
    assert answer.json["fields"]["items"] == [f"Bowl: failed and was not printed again (print {bowl})"]
    farm.move(bowl, "queued", "started", "completed")
    assert ship(farm, order["id"]).status_code == 200


@pytest.mark.parametrize(
    ("prints", "sentences"),
    [
        ([], ["Vase: has no print yet"]),
        ([(1, "completed", False)], []),
        ([(1, "completed", True)], []),
        ([(1, "started", False)], ["Vase: is not done yet (print 1)"]),
        ([(1, "completed", False), (1, "queued", False)], ["Vase: is not done yet (print 2)"]),
        ([(None, "completed", False)], []),
        ([(None, "queued", False)], ["Vase: has no print yet", "Linked by hand: waits for a printer (print 1)"]),
        (
            [(1, "completed", False), (None, "failed", False)],
            ["Linked by hand: failed and was not printed again (print 1)".replace("print 1", "print 2")],
        ),
        ([(1, "queued", True)], ["Vase: has no print yet"]),
    ],
)
def test_what_keeps_an_order_back(prints: list[Any], sentences: list[str]) -> None:
    lines = [OrderItem(id=1, title="Vase", is_digital=False), OrderItem(id=2, title="File", is_digital=True)]
    rows = [PrintOfOrder(number, line, PrintStatus(word), gone) for number, (line, word, gone) in enumerate(prints, 1)]
    assert unfinished(lines, rows) == sentences


def test_codes_are_compared_without_blanks_and_case() -> None:
    assert is_same_code(" ab 12", "AB12") and is_same_code(None, "") and not is_same_code("AB12", None)


@pytest.mark.parametrize("status", [each for each in OrderStatus if each is not OrderStatus.paid])
def test_only_a_paid_order_is_shipped(farm: Farm, status: OrderStatus) -> None:
    order_id = farm.add_order()["id"]
    print_all(farm, order_id)
    set_columns(farm.app, order_id, status=status)
    answer = ship(farm, order_id)
    assert (answer.status_code, answer.json["code"]) == (409, "order_not_shippable")


# By hand


def test_an_order_by_hand_is_shipped_here_alone_and_its_code_may_be_mended(farm: Farm, clock: Clock) -> None:
    order_id = farm.add_order()["id"]
    print_all(farm, order_id)
    answer = ship(farm, order_id)
    assert answer.json["etsy"] == {"sent": False, "tracking_stored": False, "reason": None}
    shown = answer.json["order"]
    assert (shown["status"], shown["production_status"]) == ("completed", "shipped")
    shipped_at = shown["shipped_at"]
    clock.forward(minutes=5)
    assert ship(farm, order_id).json == answer.json
    mended = ship(farm, order_id, tracking_code="RIGHT").json["order"]
    assert (mended["tracking_number"], mended["shipped_at"]) == ("RIGHT", shipped_at)


def test_another_users_order_is_not_found(farm: Farm, stranger: Farm) -> None:
    order_id = stranger.add_order()["id"]
    for answer in (ship(farm, order_id), farm.get(f"/api/orders/{order_id}/packing-slip")):
        assert answer.status_code == 404
    assert ship(farm, 2_000_000_000).data == ship(farm, order_id).data


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({}, "tracking_code"),
        ({"tracking_code": None, "carrier_name": "dhl"}, "carrier_name"),
        ({"tracking_code": "x" * 256}, "tracking_code"),
        ({"tracking_code": "a\x00b"}, "tracking_code"),
        ({"tracking_code": "A", "send_bcc": 1}, "send_bcc"),
        ({"tracking_code": "A", "force": True}, "force"),
    ],
)
def test_a_bad_shipment_is_refused_by_its_field(farm: Farm, body: dict[str, Any], name: str) -> None:
    order_id = farm.add_order()["id"]
    answer = farm.post(f"/api/orders/{order_id}/ship", body)
    assert (answer.status_code, list(answer.json["fields"])) == (422, [name])
