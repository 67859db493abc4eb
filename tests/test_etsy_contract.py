"""Every request that we send to Etsy is one of its OpenAPI document; and what a request of ours must not be is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from flask import Flask

from etsy_sync import look_again
from etsy_tokens import ShopCalls
from models import Order, db
from simulator.etsy import SeenRequest, SimulatedEtsy
from tests.conftest import Clock
from tests.etsy_bench import access_of, add, connect, sync
from tests.etsy_contract import DOCUMENT, faults_of
from tests.farm_builder import Farm

pytestmark = pytest.mark.skipif(not DOCUMENT.exists(), reason="Etsy's OpenAPI document is not beside the repository")


def test_every_request_from_login_to_tracking_is_one_of_etsys_document(
    shop_app: Flask, etsy: SimulatedEtsy, clock: Clock
) -> None:
    user_id = Farm(shop_app, "seller@example.com").user["id"]
    shop_id = connect(shop_app, user_id)
    for number in range(1, 121):
        add(etsy, number, ordered_at=clock.now - timedelta(hours=number))
    sync(shop_app, shop_id)
    clock.forward(hours=7)
    sync(shop_app, shop_id)
    with shop_app.app_context():
        order_id = db.session.query(Order.id).filter_by(etsy_order_id="7").scalar()
        clock.forward(hours=1)
        assert look_again(user_id, order_id, access_of(shop_app))
        calls = ShopCalls(shop_id, access_of(shop_app), may_use_reserve=True)
        shipped = calls.ask(
            lambda client, token: client.add_tracking(
                token, calls.etsy_shop_id, 7, tracking_code="0034", carrier_name="dhl", note_to_buyer="Thank you"
            )
        )
    assert shipped["shipments"][0]["tracking_code"] == "0034"
    asked = {(each.method, each.path.rpartition("/")[2].strip("0123456789")) for each in etsy.requests}
    assert asked == {
        ("GET", "connect"), ("POST", "token"), ("GET", "me"), ("GET", ""), ("GET", "receipts"), ("POST", "tracking"),
    }  # fmt: skip
    assert len(etsy.requests) > 120
    assert [fault for each in etsy.requests for fault in faults_of(each)] == []


RIGHT = SeenRequest(
    "GET",
    "/v3/application/shops/5/receipts",
    {"limit": ["100"], "was_canceled": ["true"], "sort_on": ["updated"]},
    {"x-api-key": "a:b", "authorization": "Bearer 1.x"},
    b"",
)
TRACKING = SeenRequest(
    "POST",
    "/v3/application/shops/5/receipts/6/tracking",
    {},
    {"x-api-key": "a:b", "authorization": "Bearer 1.x", "content-type": "application/json"},
    b'{"tracking_code": "1", "carrier_name": "dhl"}',
)


@pytest.mark.parametrize(
    "request_",
    [
        replace(RIGHT, path="/v3/application/shops/x/receipts"),
        replace(RIGHT, path="/v3/application/shops/5/orders"),
        replace(RIGHT, method="PUT"),
        replace(RIGHT, query={"limit": ["101"]}),
        replace(RIGHT, query={"limit": ["1", "2"]}),
        replace(RIGHT, query={"was_canceled": ["True"]}),
        replace(RIGHT, query={"sort_on": ["name"]}),
        replace(RIGHT, query={"page": ["1"]}),
        replace(RIGHT, query={"min_created": ["5"]}),
        replace(RIGHT, headers={"x-api-key": "a", "authorization": "Bearer 1.x"}),
        replace(RIGHT, headers={"x-api-key": "a:b"}),
        replace(RIGHT, body=b"{}"),
        replace(TRACKING, headers=TRACKING.headers | {"content-type": "application/x-www-form-urlencoded"}),
        replace(TRACKING, body=b'{"tracking": "1"}'),
        replace(TRACKING, body=b'{"tracking_code": 1}'),
        replace(TRACKING, path="/v3/public/oauth/token", body=b"grant_type=refresh_token&client_secret=b"),
    ],
)
def test_a_request_that_is_wrong_is_told(request_: SeenRequest) -> None:
    assert faults_of(RIGHT) == faults_of(TRACKING) == []
    assert len(faults_of(request_)) >= 1
