"""The simulated Etsy answers as the real one does: the product's tests lean on it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from jsonschema import Draft202012Validator

from etsy_client import EtsyClient
from simulator.etsy import ReceiptLine, Shipment, SimulatedEtsy, SimulatedShop, make_receipt

KEYSTRING, SHARED_SECRET = "kkkkeystring0123456789", "sssecret0123"
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SHOP_ID = SimulatedShop().etsy_shop_id
OPENAPI = Path(__file__).resolve().parents[2] / "shared" / "protocol" / "etsy-openapi.json"


@pytest.fixture
def etsy() -> Iterator[SimulatedEtsy]:
    with SimulatedEtsy(KEYSTRING, SHARED_SECRET, clock=lambda: NOON) as etsy:
        yield etsy


@pytest.fixture
def access_token(etsy: SimulatedEtsy) -> str:
    with requests.Session() as session:
        client = EtsyClient(
            keystring=KEYSTRING,
            shared_secret=SHARED_SECRET,
            redirect_uri="http://localhost/back",
            base_url=etsy.base_url,
            authorize_url=etsy.authorize_url,
            session=session,
            clock=lambda: NOON,
        )
        login = client.new_login()
        location = session.get(login.url, allow_redirects=False, timeout=5).headers["Location"]
        return client.exchange_code(parse_qs(urlsplit(location).query)["code"][0], login.verifier).access_token


def call(etsy: SimulatedEtsy, access_token: str, method: str, path: str, **arguments: Any) -> requests.Response:
    headers = {"x-api-key": f"{KEYSTRING}:{SHARED_SECRET}", "Authorization": f"Bearer {access_token}"}
    headers |= arguments.pop("headers", {})
    url = f"{etsy.base_url}/v3/application/shops/{SHOP_ID}/receipts{path}"
    return requests.request(method, url, headers=headers, timeout=5, **arguments)


def test_the_simulator_wants_the_shared_secret_in_the_key(etsy: SimulatedEtsy, access_token: str) -> None:
    answer = call(etsy, access_token, "GET", "", headers={"x-api-key": KEYSTRING})
    assert (answer.status_code, answer.json()) == (403, {"error": "Shared secret is required in x-api-key header."})


@pytest.mark.parametrize(
    "query",
    ["was_paid=True", "limit=101", "limit=0", "offset=-1", "sort_on=name", "min_created=1", "max_last_modified=x"],
)
def test_the_simulator_refuses_a_bad_query_with_a_list(etsy: SimulatedEtsy, access_token: str, query: str) -> None:
    answer = call(etsy, access_token, "GET", f"?{query}")
    assert answer.status_code == 400
    assert answer.json()[0]["path"] == query.split("=")[0]


def test_the_simulator_shows_newest_first_unless_asked(etsy: SimulatedEtsy, access_token: str) -> None:
    for receipt_id in (1, 2, 3):
        ordered_at = NOON - timedelta(hours=receipt_id)
        etsy.add_receipt(make_receipt(receipt_id=receipt_id, lines=[ReceiptLine("Vase")], ordered_at=ordered_at))
    etsy.change_receipt(2, is_paid=False, is_noticed=False)

    def ids(query: str) -> list[int]:
        return [receipt["receipt_id"] for receipt in call(etsy, access_token, "GET", query).json()["results"]]

    assert ids("") == [1, 2, 3]
    assert ids("?sort_order=asc") == [3, 2, 1]
    assert ids("?was_paid=true") == [1, 3]
    assert ids("?sort_on=receipt_id&sort_order=down&limit=2&offset=1") == [2, 1]


def test_the_simulator_ships_with_tracking_and_mails_the_buyer(etsy: SimulatedEtsy, access_token: str) -> None:
    etsy.add_receipt(make_receipt(receipt_id=1, lines=[ReceiptLine("Vase")]))
    answer = call(etsy, access_token, "POST", "/1/tracking", json={"tracking_code": "0034", "carrier_name": "dhl"})
    shipped = answer.json()
    assert (shipped["status"], shipped["is_shipped"]) == ("Completed", True)
    assert shipped["shipments"][0]["tracking_code"] == "0034"
    assert shipped["updated_timestamp"] == int(NOON.timestamp())
    line = shipped["transactions"][0]
    assert line["expected_ship_date"] == line["shipped_timestamp"] == int(NOON.timestamp())
    assert etsy.shipments == [Shipment(1, "0034", "dhl", None)]


def test_the_simulator_loses_tracking_sent_as_json_under_a_forms_content_type(
    etsy: SimulatedEtsy, access_token: str
) -> None:
    etsy.add_receipt(make_receipt(receipt_id=1, lines=[ReceiptLine("Vase")]))
    body = json.dumps({"tracking_code": "0034", "carrier_name": "dhl"})
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = call(etsy, access_token, "POST", "/1/tracking", data=body, headers=form)
    assert (answer.status_code, answer.json()["is_shipped"], answer.json()["shipments"]) == (200, True, [])


def test_the_simulator_marks_a_receipt_as_shipped_by_form(etsy: SimulatedEtsy, access_token: str) -> None:
    etsy.add_receipt(make_receipt(receipt_id=1, lines=[ReceiptLine("Vase")]))
    assert call(etsy, access_token, "PUT", "/1", data={"was_shipped": "True"}).status_code == 400
    assert call(etsy, access_token, "PUT", "/1", data={"was_shipped": "true"}).json()["is_shipped"] is True
    assert call(etsy, access_token, "PUT", "/1", data={"was_shipped": "false"}).json()["is_shipped"] is False
    assert etsy.shipments == []


def test_the_simulator_wants_tracking_within_the_united_states_above_ten_dollars(
    etsy: SimulatedEtsy, access_token: str
) -> None:
    etsy.shop = SimulatedShop(country="US", currency="USD")
    for receipt_id, price in ((1, "3.00"), (2, "30.00")):
        line = ReceiptLine("Vase", price=Decimal(price))
        etsy.add_receipt(make_receipt(receipt_id=receipt_id, lines=[line], country="US", currency="USD"))
    assert call(etsy, access_token, "POST", "/1/tracking", json={}).status_code == 200
    refused = call(etsy, access_token, "POST", "/2/tracking", json={})
    assert (refused.status_code, refused.json()) == (400, {"error": "A tracking number is required"})
    assert [shipment.receipt_id for shipment in etsy.shipments] == [1]


def test_the_simulator_can_lock_an_application_out_of_tracking_and_addresses(
    etsy: SimulatedEtsy, access_token: str
) -> None:
    etsy.add_receipt(make_receipt(receipt_id=1, lines=[ReceiptLine("Vase")]))
    etsy.is_locked_out = True
    refused = call(etsy, access_token, "POST", "/1/tracking", json={"tracking_code": "1", "carrier_name": "usps"})
    assert (refused.status_code, refused.json()) == (403, {"error": "Unauthorized"})
    assert call(etsy, access_token, "GET", "/1").json()["formatted_address"] is None


def test_the_simulator_keeps_both_limits_and_says_what_is_left(etsy: SimulatedEtsy, access_token: str) -> None:
    etsy.limit_per_second = 3  # one of them was the login's own, in this very second
    etsy.remaining_today = 4
    answers = [call(etsy, access_token, "GET", "") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers.get("x-remaining-this-second") for answer in answers] == ["1", "0", None]
    assert (answers[2].headers["retry-after"], answers[0].headers["x-limit-per-second"]) == ("1", "3")
    assert [answers[0].headers[name] for name in ("x-limit-per-day", "x-remaining-today")] == ["10000", "3"]
    etsy.limit_per_second = None
    assert call(etsy, access_token, "GET", "").status_code == 200
    exhausted = call(etsy, access_token, "GET", "")
    assert (exhausted.status_code, exhausted.headers["retry-after"]) == (429, "86400")


def with_nulls(schema: Any) -> Any:
    """OpenAPI 3.0's `nullable` in the words of JSON Schema; references stay within the document."""
    if isinstance(schema, list):
        return [with_nulls(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    translated = {name: with_nulls(part) for name, part in schema.items() if name != "nullable"}
    return {"anyOf": [translated, {"type": "null"}]} if schema.get("nullable") is True else translated


@pytest.mark.parametrize(
    "receipt",
    [
        make_receipt(receipt_id=1, lines=[ReceiptLine("Vase")]),
        make_receipt(
            receipt_id=4_117_291_123,
            lines=[
                ReceiptLine("Vase", "V-1", 3, Decimal("9.99"), {"Color": "Red", "Size": "L"}, "Zoë"),
                ReceiptLine("Sign", personalization={"Which name?": "Ada", "Which year?": "1815"}, ship_by=NOON),
                ReceiptLine("Model file", is_digital=True),
            ],
            discount=Decimal("2.00"),
            is_gift=True,
            gift_message="Happy birthday",
            message_from_buyer="Please hurry",
            buyer_email="buyer@example.com",
        ),
        make_receipt(receipt_id=2, lines=[ReceiptLine("Vase")], status="Completed", tracking=("dhl", "0034")),
        make_receipt(receipt_id=3, lines=[], status="Fully Refunded", refund=Decimal(5), currency="JPY", divisor=1),
        make_receipt(receipt_id=4, lines=[ReceiptLine("Vase")], status="Open"),
    ],
    ids=["plain", "everything", "shipped", "refunded", "unpaid"],
)
def test_built_receipts_have_etsys_shape(receipt: dict[str, Any]) -> None:
    if not OPENAPI.exists():
        pytest.skip("Etsy's OpenAPI document is not beside the repository")
    document = with_nulls(json.loads(OPENAPI.read_text()))
    schema = {"$ref": "#/components/schemas/ShopReceipt", "components": document["components"]}
    live = {**receipt, "status": receipt["status"].lower()}  # the one known difference between document and service
    assert [error.message for error in Draft202012Validator(schema).iter_errors(live)] == []
    known = document["components"]["schemas"]
    assert set(receipt) <= set(known["ShopReceipt"]["properties"])
    for line in receipt["transactions"]:
        assert set(line) <= set(known["ShopReceiptTransaction"]["properties"])
    value = {name: part["amount"] for name, part in receipt.items() if isinstance(part, dict)}
    assert value["total_price"] - value["discount_amt"] == value["subtotal"]
    assert value["subtotal"] + value["total_shipping_cost"] == value["grandtotal"]


def test_the_simulator_runs_by_itself_until_it_is_told_to_stop() -> None:
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "simulator.etsy"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        url = running.stdout.readline().strip()
        assert requests.get(f"{url}/v3/application/users/me", timeout=5).status_code == 403
        running.terminate()
        assert running.wait(timeout=10) == 0
