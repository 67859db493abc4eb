"""The connected shops: shown with what keeps them, connected with a key of one's own or by a pasted address, let go."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from models import EtsyLogin, Shop, db
from simulator.etsy import SimulatedEtsy, SimulatedShop
from tests import etsy_contract
from tests.apps import another_app
from tests.conftest import Clock
from tests.etsy_bench import add, landed, settings_of, shop_row
from tests.farm_builder import Farm

LOGIN, CALLBACK = "/api/auth/etsy/login", "/api/auth/etsy/callback"
DAY = timedelta(days=1)
OWN = {"keystring": "ownkeystring0123456789", "shared_secret": "ownsecret0"}


@pytest.fixture
def own_etsy(clock: Clock) -> Iterator[SimulatedEtsy]:
    """Etsy as the seller's own app sees it."""
    shop = SimulatedShop(etsy_shop_id=87_654_321, name="OwnThings")
    with SimulatedEtsy(OWN["keystring"], OWN["shared_secret"], shop, clock=clock) as made:
        yield made
        etsy_contract.require(made.requests)


@pytest.fixture
def keyless_app(
    app: Flask, session_database_url: str, tmp_path: Path, clock: Clock, own_etsy: SimulatedEtsy
) -> Iterator[Flask]:
    """An installation without a key of its own."""
    settings = settings_of(own_etsy) | {"ETSY_CLIENT_ID": "", "ETSY_SHARED_SECRET": ""}
    with another_app(session_database_url, tmp_path, clock, **settings) as made:
        yield made


def connect(farm: Farm, own_key: dict[str, str] | None = None) -> Any:
    begun = farm.post(LOGIN, own_key) if own_key else farm.get(LOGIN)
    assert begun.status_code == 200, begun.text
    return farm.post(CALLBACK, {"url": landed(begun.json["auth_url"])})


def test_the_address_where_the_browser_ended_is_enough(seller: Farm) -> None:
    answer = connect(seller)
    assert (answer.status_code, [each["name"] for each in answer.json["user"]["shops"]]) == (200, ["PrintedThings"])


@pytest.mark.parametrize(
    "url",
    [
        "x",
        "https://farm.example.com/back",
        "https://farm.example.com/back?code=x",
        "https://farm.example.com/back?state=x",
        "https://farm.example.com/back?code=&state=",
        f"https://farm.example.com/back?code={'x' * 2001}&state=x",
        "http://[::1?code=x&state=y",
        "?" + "&".join(f"a{number}=1" for number in range(100)),
    ],
    ids=range(8),
)
def test_a_pasted_address_without_code_and_state_is_422(seller: Farm, url: str) -> None:
    answer = seller.post(CALLBACK, {"url": url})
    assert (answer.status_code, set(answer.json["fields"])) == (422, {"url"})


def test_a_pasted_no_and_both_ways_at_once(seller: Farm) -> None:
    denied = seller.post(CALLBACK, {"url": "https://farm.example.com/back?error=access_denied&state=x"})
    assert (denied.status_code, denied.json["code"]) == (401, "etsy_denied")
    both = seller.post(CALLBACK, {"url": "https://farm.example.com/back?code=x&state=x", "code": "x"})
    assert (both.status_code, set(both.json["fields"])) == (422, {"code"})
    assert set(seller.post(CALLBACK, {}).json["fields"]) == {"code", "state"}
    gone = seller.post(CALLBACK, {"url": "https://farm.example.com/back?code=x&state=x"})
    assert (gone.status_code, gone.json["code"]) == (401, "etsy_login_gone")


def test_a_shop_of_ones_own_key_is_asked_with_it(keyless_app: Flask, own_etsy: SimulatedEtsy) -> None:
    seller = Farm(keyless_app, "seller@example.com")
    assert seller.get(LOGIN).json["code"] == "etsy_not_configured"
    assert connect(seller, OWN).status_code == 200
    add(own_etsy, 1)
    answer = seller.post("/api/orders/sync")
    assert (answer.status_code, answer.json["message"]) == (200, "Imported 1 new orders")
    key = f"{OWN['keystring']}:{OWN['shared_secret']}"
    assert {each.headers["x-api-key"] for each in own_etsy.requests if "x-api-key" in each.headers} == {key}
    [shown] = seller.get("/api/shops").json["shops"]
    assert (shown["name"], shown["has_own_key"]) == ("OwnThings", True)
    with keyless_app.app_context():
        for table in (EtsyLogin, Shop):
            assert OWN["shared_secret"] not in str(db.session.execute(sa.select(table.__table__)).all())
    assert OWN["shared_secret"] not in answer.text + seller.get("/api/shops").text


def test_a_shop_that_is_connected_again_is_asked_with_the_key_of_that_login(
    shop_app: Flask, seller: Farm, etsy: SimulatedEtsy, clock: Clock
) -> None:
    connect(seller)
    shop_id = seller.get("/api/shops").json["shops"][0]["id"]
    with shop_app.app_context():
        # As if it had been connected with a key of the seller's own, whose calls are used up.
        used_up = {"keystring": OWN["keystring"], "shared_secret_sealed": "-", "parked_until": clock.now + DAY}
        db.session.execute(sa.update(Shop).where(Shop.id == shop_id).values(used_up))
        db.session.commit()
    assert connect(seller).status_code == 200
    row = shop_row(shop_app, shop_id)
    assert (row.keystring, row.shared_secret_sealed, row.parked_until) == (None, None, None)
    assert seller.post("/api/orders/sync").status_code == 200


def test_a_begun_login_keeps_the_own_secret_sealed(keyless_app: Flask) -> None:
    seller = Farm(keyless_app, "seller@example.com")
    assert OWN["shared_secret"] not in seller.post(LOGIN, OWN).text
    with keyless_app.app_context():
        assert OWN["shared_secret"] not in str(db.session.execute(sa.select(EtsyLogin.__table__)).all())


def test_a_login_with_ones_own_key_is_for_accounts_alone(shop_app: Flask) -> None:
    """Whoever says yes to somebody's app must not be logged in, or have an account opened, by that."""
    assert shop_app.test_client().post(LOGIN, json=OWN).status_code == 401


def test_an_account_has_several_shops(shop_app: Flask, seller: Farm, etsy: SimulatedEtsy, clock: Clock) -> None:
    assert connect(seller).status_code == 200
    etsy.shop = SimulatedShop(etsy_shop_id=99, name="Second", currency="USD")
    assert connect(seller).status_code == 200
    listed = seller.get("/api/shops").json
    assert (listed["total"], [each["name"] for each in listed["shops"]]) == (2, ["PrintedThings", "Second"])
    assert listed["shops"][0] == {
        "id": listed["shops"][0]["id"],
        "name": "PrintedThings",
        "etsy_shop_id": "12345678",
        "currency": "EUR",
        "has_own_key": False,
        "is_syncing": False,
        "sync_progress": None,
        "sync_ended_at": None,
        "sync_error": None,
        "synced_until": None,
        "parked_until": None,
        "reconnect_needed_at": None,
        "created_at": "2026-11-21T09:00:00Z",
    }
    etsy.revoke_tokens()
    assert seller.post("/api/orders/sync").status_code == 409
    shown = seller.get("/api/orders/sync").json["shops"]
    assert [each["reconnect_needed_at"] for each in shown] == ["2026-11-21T09:00:00Z"] * 2
    assert {each["sync_error"] for each in shown} == {
        "Etsy no longer accepts the login of this shop. Connect it again."
    }


def test_a_shop_without_orders_goes_as_a_whole(shop_app: Flask, seller: Farm) -> None:
    connect(seller)
    shop_id = seller.get("/api/shops").json["shops"][0]["id"]
    answer = seller.delete(f"/api/shops/{shop_id}")
    assert (answer.status_code, answer.json) == (200, {"message": "Shop removed", "id": shop_id})
    assert seller.get("/api/shops").json == {"shops": [], "total": 0}
    assert seller.delete(f"/api/shops/{shop_id}").status_code == 404


def test_a_shop_with_orders_stays_without_its_login(shop_app: Flask, seller: Farm, etsy: SimulatedEtsy) -> None:
    connect(seller)
    add(etsy, 1)
    seller.post("/api/orders/sync")
    shop_id = seller.get("/api/shops").json["shops"][0]["id"]
    assert seller.delete(f"/api/shops/{shop_id}").json["message"] == "Shop disconnected"
    row = shop_row(shop_app, shop_id)
    assert (row.access_token_sealed, row.refresh_token_sealed) == ("", "")
    before = len(etsy.requests)
    answer = seller.post("/api/orders/sync")
    assert (answer.status_code, answer.json["code"], len(etsy.requests)) == (409, "reconnect_shop", before)
    assert seller.get("/api/orders").json["total"] == 1
    assert connect(seller).status_code == 200
    assert seller.get("/api/shops").json["shops"][0]["id"] == shop_id
    assert seller.post("/api/orders/sync").status_code == 200


def test_a_stranger_finds_no_shop(shop_app: Flask, seller: Farm) -> None:
    connect(seller)
    shop_id = seller.get("/api/shops").json["shops"][0]["id"]
    stranger = Farm(shop_app, "stranger@example.com")
    assert stranger.get("/api/shops").json == {"shops": [], "total": 0}
    assert stranger.delete(f"/api/shops/{shop_id}").status_code == 404
    assert stranger.get("/api/orders/sync").json == {"shops": []}
