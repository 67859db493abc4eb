"""Etsy's webhooks: taken when Etsy has signed them just now, once, and then only as a pointer to an order."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from standardwebhooks import Webhook
from werkzeug.test import TestResponse

from etsy_webhooks import NotFromEtsy, read_notice, verify
from models import EtsyNotice, db
from simulator.etsy import SimulatedEtsy
from tests.apps import another_app
from tests.conftest import Clock
from tests.etsy_bench import connect, settings_of
from tests.farm_builder import Farm

# Not a key of anybody's: the vector that our facts on Etsy carry.
SECRET = "whsec_ajNkLXRlc3Qtc2lnbmluZy1rZXktMDAw"
OTHER = "whsec_" + base64.b64encode(b"another-signing-key-000").decode()
PATH = "/api/etsy/webhook"
VECTOR_BODY = (
    b'{"event_type":"order.paid","resource_url":"https://openapi.etsy.com/v3/application/shops/12345/receipts/'
    b'2750906110","shop_id":12345}'
)
VECTOR_AT = datetime.fromtimestamp(1_790_000_000, UTC)
VECTOR_SIGNATURE = "/+uZGAwCYS6JbI/olJ7mZzdHKiavQETMzy6pzj1Zm2E="


@pytest.fixture
def shop_app(
    app: Flask, session_database_url: str, tmp_path: Path, clock: Clock, etsy: SimulatedEtsy
) -> Iterator[Flask]:
    hooks = {"ETSY_WEBHOOK_SECRET": f"{OTHER}, {SECRET}"}
    with another_app(session_database_url, tmp_path, clock, **settings_of(etsy), **hooks) as made:
        connect(made, Farm(made, "seller@example.com").user["id"])
        yield made


def body_of(receipt_id: int = 7, shop_id: Any = 12_345_678, **changes: Any) -> bytes:
    url = f"https://openapi.etsy.com/v3/application/shops/{shop_id}/receipts/{receipt_id}"
    return json.dumps({"event_type": "order.paid", "resource_url": url, "shop_id": shop_id, **changes}).encode()


def signed(body: bytes, at: datetime, webhook_id: str = "msg_1", secret: str = SECRET) -> dict[str, str]:
    stamp = str(int(at.timestamp()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = f"{webhook_id}.{stamp}.".encode() + body
    signature = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return {"webhook-id": webhook_id, "webhook-timestamp": stamp, "webhook-signature": signature}


def send(app: Flask, body: bytes, headers: dict[str, str]) -> TestResponse:
    return app.test_client().post(PATH, data=body, headers=headers, content_type="application/json")


def notices(app: Flask) -> list[tuple[str, str, str | None]]:
    with app.app_context():
        found = sa.select(EtsyNotice.webhook_id, EtsyNotice.kind, EtsyNotice.etsy_order_id).order_by(EtsyNotice.id)
        return [tuple(row) for row in db.session.execute(found)]


@pytest.mark.parametrize(
    "form", ["{}", "v1,{}", "v1,AAAA v1,{}", "v2,AAAA {}", "AAAA {} BBBB", "v1a,!!! v1,{}"], ids=range(6)
)
def test_the_known_vector_holds_in_every_form_of_the_header(form: str) -> None:
    headers = {
        "webhook-id": "msg_test_0001",
        "webhook-timestamp": "1790000000",
        "webhook-signature": form.format(VECTOR_SIGNATURE),
    }
    assert verify(headers, VECTOR_BODY, [SECRET], VECTOR_AT) == "msg_test_0001"
    notice = read_notice("msg_test_0001", VECTOR_BODY)
    assert notice is not None
    assert (notice.kind, notice.etsy_shop_id, notice.etsy_order_id) == ("order.paid", "12345", "2750906110")
    with pytest.raises(NotFromEtsy):
        verify(headers, VECTOR_BODY + b" ", [SECRET], VECTOR_AT)


def test_what_the_reference_library_signs_is_taken() -> None:
    at = datetime.now(UTC)
    signature = Webhook(SECRET).sign("msg_9", at, VECTOR_BODY.decode())
    stamp = str(int(at.timestamp()))
    headers = {"webhook-id": "msg_9", "webhook-timestamp": stamp, "webhook-signature": signature}
    assert verify(headers, VECTOR_BODY, [SECRET], at) == "msg_9"


def test_a_signed_webhook_is_noted_and_a_replay_changes_nothing(shop_app: Flask, clock: Clock) -> None:
    body = body_of()
    headers = signed(body, clock.now)
    first = send(shop_app, body, headers)
    assert (first.status_code, first.json) == (200, {"message": "Noted"})
    # Etsy's own second try bears the same id under a new time.
    for again in (headers, signed(body_of(8), clock.forward(minutes=4), "msg_1")):
        replay = send(shop_app, body if again is headers else body_of(8), again)
        assert (replay.status_code, replay.json) == (200, {"message": "Nothing to do"})
    assert notices(shop_app) == [("msg_1", "order.paid", "7")]
    for number, secret in ((2, SECRET), (3, OTHER)):
        assert send(shop_app, body, signed(body, clock.now, f"msg_{number}", secret)).json == {"message": "Noted"}


@pytest.mark.parametrize("minutes", [-5.02, 5.02])
def test_one_that_is_too_old_or_from_the_future_is_refused(shop_app: Flask, clock: Clock, minutes: float) -> None:
    body, sent_at = body_of(), clock.now
    clock.forward(minutes=minutes)
    answer = send(shop_app, body, signed(body, sent_at))
    assert (answer.status_code, answer.json["code"]) == (401, "bad_signature")
    clock.forward(minutes=-minutes * 0.99)
    assert send(shop_app, body, signed(body, sent_at)).status_code == 200


FORGED: list[dict[str, str]] = [
    {"webhook-signature": ""},
    {"webhook-signature": "AAAA"},
    {"webhook-signature": "v1,"},
    {"webhook-signature": "\xff"},
    {"webhook-signature": " ".join(["AAAA"] * 5000)},
    {"webhook-id": ""},
    {"webhook-id": "x" * 256},
    {"webhook-id": "msg_2"},
    {"webhook-id": "m\xe4h"},
    {"webhook-timestamp": ""},
    {"webhook-timestamp": "soon"},
    {"webhook-timestamp": "-5"},
    {"webhook-timestamp": "9" * 400},
    {"webhook-timestamp": "1e9"},
]


@pytest.mark.parametrize("forged", FORGED, ids=range(len(FORGED)))
def test_what_etsy_has_not_signed_is_refused_and_leaves_nothing(
    shop_app: Flask, clock: Clock, forged: dict[str, str]
) -> None:
    body = body_of()
    answer = send(shop_app, body, signed(body, clock.now) | forged)
    assert (answer.status_code, answer.json["code"]) == (401, "bad_signature")
    assert notices(shop_app) == []


def test_a_changed_body_another_secret_and_no_headers_are_refused(shop_app: Flask, clock: Clock) -> None:
    headers = signed(body_of(), clock.now)
    stranger = "whsec_" + base64.b64encode(b"x" * 24).decode()
    answers = [
        send(shop_app, body_of(8), headers),
        send(shop_app, body_of(), signed(body_of(), clock.now, secret=stranger)),
        send(shop_app, body_of(), {}),
        send(shop_app, b"", headers),
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert send(shop_app, b"x" * 65_537, signed(b"x" * 65_537, clock.now)).status_code == 413


@pytest.mark.parametrize("setting", ["", " , ", "whsec_", "whsec_AAAA", "not base64 at all!", "whsec_é"])
def test_without_a_real_secret_nothing_is_taken(
    app: Flask, session_database_url: str, tmp_path: Path, clock: Clock, setting: str
) -> None:
    with another_app(session_database_url, tmp_path, clock, ETSY_WEBHOOK_SECRET=setting) as made:
        for key in (b"", b"\0\0\0", setting.encode()):
            body, stamp = body_of(), str(int(clock.now.timestamp()))
            digest = hmac.new(key, f"m.{stamp}.".encode() + body, hashlib.sha256).digest()
            headers = {"webhook-id": "m", "webhook-timestamp": stamp}
            answer = send(made, body, headers | {"webhook-signature": base64.b64encode(digest).decode()})
            assert (answer.status_code, answer.json["code"]) == (401, "bad_signature")


ELSEWHERE = [
    b"",
    b"not json",
    b"[" * 30_000,
    b"[]",
    b"{}",
    body_of(shop_id="../1"),
    body_of(shop_id=99),
    body_of(shop_id=99, resource_url="https://api.etsy.com/v3/application/shops/12345678/receipts/7"),
    body_of(resource_url="https://evil.example/v3/application/shops/12345678/receipts/7"),
    body_of(resource_url="https://api.etsy.com.evil.example/v3/application/shops/12345678/receipts/7"),
    body_of(resource_url="https://api.etsy.com@evil.example/v3/application/shops/12345678/receipts/7"),
    body_of(resource_url="http://api.etsy.com/v3/application/shops/12345678/receipts/7"),
    body_of(resource_url="https://api.etsy.com/v3/application/shops/12345678/receipts/7/../8"),
    body_of(resource_url="https://api.etsy.com/v3/application/shops/12345678/receipts/7\n"),
    body_of(resource_url="https://api.etsy.com/v3/application/shops/87654321/receipts/7"),
    body_of(resource_url=["https://api.etsy.com/v3/application/shops/12345678/receipts/7"]),
    body_of(event_type=None),
    body_of(event_type="order.paid\x00" * 100),
]


@pytest.mark.parametrize("body", ELSEWHERE, ids=range(len(ELSEWHERE)))
def test_a_signed_body_that_points_to_no_order_of_ours_is_answered_and_forgotten(
    shop_app: Flask, clock: Clock, etsy: SimulatedEtsy, body: bytes
) -> None:
    before = len(etsy.requests)
    answer = send(shop_app, body, signed(body, clock.now))
    assert (answer.status_code, answer.json) == (200, {"message": "Nothing to do"})
    assert (notices(shop_app), len(etsy.requests)) == ([], before)


def test_the_shop_may_be_a_number_or_a_text_and_the_host_either(shop_app: Flask, clock: Clock) -> None:
    for number, (shop_id, host) in enumerate([("12345678", "api"), (12_345_678, "api"), ("12345678", "openapi")]):
        url = f"https://{host}.etsy.com/v3/application/shops/12345678/receipts/7"
        body = body_of(shop_id=shop_id, resource_url=url, event_type="ORDER_PAID")
        assert send(shop_app, body, signed(body, clock.now, f"m{number}")).json == {"message": "Noted"}
    assert [kind for _, kind, _ in notices(shop_app)] == ["order_paid"] * 3


def test_notices_are_forgotten_after_a_month(shop_app: Flask, clock: Clock) -> None:
    send(shop_app, body_of(), signed(body_of(), clock.now))
    clock.forward(days=30, seconds=1)
    send(shop_app, body_of(), signed(body_of(), clock.now, "msg_2"))
    assert [each for each, _, _ in notices(shop_app)] == ["msg_2"]


def test_the_answer_does_not_wait_for_etsy(shop_app: Flask, clock: Clock, etsy: SimulatedEtsy) -> None:
    before = len(etsy.requests)
    assert send(shop_app, body_of(), signed(body_of(), clock.now)).status_code == 200
    assert len(etsy.requests) == before
