"""The login at Etsy, over a simulated Etsy that speaks HTTP: it ends in the account that began it, once, or nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest
import sqlalchemy as sa
from flask import Flask

import etsy_login
from api.etsy_login import COOKIE
from models import EtsyLogin, Shop, db
from simulator.etsy import SimulatedEtsy
from tests import etsy_contract
from tests.conftest import Clock
from tests.etsy_bench import consent
from tests.farm_builder import Farm
from tests.logins import THREADS, at_once, is_open, post, sibling
from vault import Vault


@pytest.fixture
def etsy(clock: Clock) -> Iterator[SimulatedEtsy]:
    with SimulatedEtsy("keystring", "shared-secret", clock=clock) as made:
        yield made
        etsy_contract.require(made.requests)


@pytest.fixture
def shop_app(app: Flask, etsy: SimulatedEtsy) -> Iterator[Flask]:
    """The same database under an app that knows an Etsy."""
    with sibling(
        app,
        ETSY_CLIENT_ID="keystring",
        ETSY_SHARED_SECRET="shared-secret",
        ETSY_REDIRECT_URI="http://localhost/api/auth/etsy/callback",
        ETSY_BASE_URL=etsy.base_url,
        ETSY_AUTHORIZE_URL=etsy.authorize_url,
    ) as made:
        yield made


LOGIN = "/api/auth/etsy/login"


def bearer(farm: Farm | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {farm.token}"} if farm else {}


def begin(client: Any, farm: Farm | None = None) -> dict[str, str]:
    """Begin a login and let the owner consent: the code and state that Etsy sends the browser back with."""
    answer = client.get("/api/auth/etsy/login", headers=bearer(farm))
    assert answer.status_code == 200, answer.text
    returned = consent(answer.json["auth_url"])
    assert returned["state"] == answer.json["state"]
    return returned


def shops(app: Flask) -> list[tuple[int, str]]:
    with app.app_context():
        return [tuple(row) for row in db.session.execute(sa.select(Shop.user_id, Shop.etsy_shop_id).order_by(Shop.id))]


def test_an_owner_logs_in_by_post_and_comes_back_to_the_same_account(shop_app: Flask) -> None:
    client = shop_app.test_client()
    first = client.post("/api/auth/etsy/callback", json=begin(client))
    assert first.status_code == 200, first.text
    user = first.json["user"]
    assert (user["email"], user["username"], user["currency"]) == (None, "PrintedThings", "EUR")
    assert [shop["etsy_shop_id"] for shop in user["shops"]] == ["12345678"]
    assert is_open(shop_app, first.json["token"])
    again = client.post("/api/auth/etsy/callback", json=begin(client))
    assert again.json["user"]["id"] == user["id"]
    assert len(shops(shop_app)) == 1


def test_the_browsers_redirect_needs_the_browser_that_began(shop_app: Flask) -> None:
    browser, other = shop_app.test_client(), shop_app.test_client()
    returned = begin(browser)
    cookie = browser.get_cookie(COOKIE, path="/api/auth/etsy")
    assert cookie is not None
    assert (cookie.http_only, cookie.same_site, cookie.path) == (True, "Lax", "/api/auth/etsy")
    assert returned["state"] not in cookie.value
    without = other.get("/api/auth/etsy/callback", query_string=returned)
    assert (without.status_code, without.json["code"]) == (401, "etsy_login_elsewhere")
    for forged in ("ü", "\udcff", "x" * 64, returned["state"]):
        other.set_cookie(COOKIE, forged.encode("utf-8", "replace").decode("latin-1"), path="/api/auth/etsy")
        assert other.get("/api/auth/etsy/callback", query_string=returned).json["code"] == "etsy_login_elsewhere"
    own = other.get("/api/auth/etsy/login").json
    assert (
        other.get("/api/auth/etsy/callback", query_string=returned | {"code": "x"}).json["code"]
        == "etsy_login_elsewhere"
    )
    assert own["state"] != returned["state"]
    assert shops(shop_app) == []
    # A stranger's attempts used nothing up.
    assert browser.get("/api/auth/etsy/callback", query_string=returned).status_code == 200


def test_a_browser_that_opens_the_link_of_a_mail_is_sent_on_to_etsy_and_comes_back_logged_in(
    shop_app: Flask, farm: Farm
) -> None:
    """As for a shop whose login Etsy has taken back: no page of ours, and no token."""
    connected = shop_app.test_client().post(
        "/api/auth/etsy/callback", json=begin(shop_app.test_client(), farm), headers=bearer(farm)
    )
    assert connected.status_code == 200, connected.text
    browser = shop_app.test_client()
    usual = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"
    opened = browser.get("/api/auth/etsy/login", headers={"Accept": usual})
    assert (opened.status_code, opened.headers["Vary"]) == (303, "Accept")
    ended = browser.get("/api/auth/etsy/callback", query_string=consent(opened.location))
    assert (ended.status_code, ended.json["user"]["id"]) == (200, farm.user["id"])
    for accepted in ("*/*", "application/json", "application/json, text/html;q=0.5", ""):
        assert browser.get("/api/auth/etsy/login", headers={"Accept": accepted}).status_code == 200


def test_the_cookie_is_secure_over_https(shop_app: Flask) -> None:
    client = shop_app.test_client()
    client.get("/api/auth/etsy/login", base_url="https://localhost")
    cookie = client.get_cookie(COOKIE, path="/api/auth/etsy")
    assert cookie is not None and cookie.secure


def test_a_login_begun_with_a_token_needs_a_token_of_that_account(shop_app: Flask, farm: Farm, stranger: Farm) -> None:
    client = shop_app.test_client()
    returned = begin(client, farm)
    nobody = client.post("/api/auth/etsy/callback", json=returned)
    assert (nobody.status_code, nobody.json["code"]) == (401, "unauthorized")
    other = client.post("/api/auth/etsy/callback", json=returned, headers=bearer(stranger))
    assert (other.status_code, other.json["code"]) == (401, "etsy_login_elsewhere")
    assert shops(shop_app) == []
    done = client.post("/api/auth/etsy/callback", json=returned, headers=bearer(farm))
    assert done.status_code == 200
    assert shops(shop_app) == [(farm.user["id"], "12345678")]
    assert done.json["user"]["email"] == "seller@example.com"


def test_a_bad_token_does_not_begin_a_login_as_nobody(shop_app: Flask) -> None:
    answer = shop_app.test_client().get("/api/auth/etsy/login", headers={"Authorization": "Bearer x.y.z"})
    assert (answer.status_code, answer.json["code"]) == (401, "bad_token")


def test_a_state_is_used_once_whatever_etsy_answers(shop_app: Flask, etsy: SimulatedEtsy) -> None:
    client = shop_app.test_client()
    returned = begin(client)
    assert client.post("/api/auth/etsy/callback", json=returned).status_code == 200
    again = client.post("/api/auth/etsy/callback", json=returned)
    assert (again.status_code, again.json["code"]) == (401, "etsy_login_gone")
    failed = begin(client)
    etsy.fail_next(503, {"error": "down"}, times=5)
    assert client.post("/api/auth/etsy/callback", json=failed).status_code == 502
    assert client.post("/api/auth/etsy/callback", json=failed).json["code"] == "etsy_login_gone"


def test_of_racing_callbacks_one_wins(shop_app: Flask) -> None:
    returned = begin(shop_app.test_client())
    answers = at_once([lambda: post(shop_app, "/api/auth/etsy/callback", returned)] * THREADS)
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * (THREADS - 1)
    assert len(shops(shop_app)) == 1


def test_a_login_not_finished_in_ten_minutes_is_gone(shop_app: Flask, clock: Clock) -> None:
    client = shop_app.test_client()
    returned = begin(client)
    clock.forward(minutes=10, seconds=1)
    assert client.post("/api/auth/etsy/callback", json=returned).json["code"] == "etsy_login_gone"


@pytest.mark.parametrize("state", ["x", "0" * 43, "%00", "'; DROP TABLE users; --"])
def test_an_unknown_state_is_401(shop_app: Flask, state: str) -> None:
    client = shop_app.test_client()
    code = begin(client)["code"]
    assert client.post("/api/auth/etsy/callback", json={"code": code, "state": state}).json["code"] == "etsy_login_gone"
    assert client.get("/api/auth/etsy/callback", query_string={"code": code, "state": state}).status_code == 401


def test_a_code_of_anothers_login_is_refused(shop_app: Flask) -> None:
    """PKCE: the code of one login does not fit the verifier of another."""
    client = shop_app.test_client()
    mine, theirs = begin(client), begin(shop_app.test_client())
    answer = client.post("/api/auth/etsy/callback", json={"code": theirs["code"], "state": mine["state"]})
    assert (answer.status_code, answer.json["code"]) == (401, "etsy_denied")
    assert shops(shop_app) == []


def test_a_shop_of_another_account_is_409_and_stays_there(shop_app: Flask, farm: Farm, stranger: Farm) -> None:
    client = shop_app.test_client()
    assert client.post("/api/auth/etsy/callback", json=begin(client, farm), headers=bearer(farm)).status_code == 200
    taken = client.post("/api/auth/etsy/callback", json=begin(client, stranger), headers=bearer(stranger))
    assert (taken.status_code, taken.json["code"]) == (409, "shop_taken")
    assert shops(shop_app) == [(farm.user["id"], "12345678")]
    assert stranger.get("/api/auth/user").json["shops"] == []


def test_denied_at_etsy_or_half_a_redirect(shop_app: Flask) -> None:
    client = shop_app.test_client()
    denied = client.get("/api/auth/etsy/callback?error=access_denied&error_description=%3Cb%3Eno%3C/b%3E&state=x")
    assert (denied.status_code, denied.json["code"]) == (401, "etsy_denied")
    assert "<b>" not in denied.text
    assert set(client.get("/api/auth/etsy/callback?code=x").json["fields"]) == {"state"}
    assert set(client.get("/api/auth/etsy/callback").json["fields"]) == {"code", "state"}


def test_without_a_key_of_etsys_there_is_no_login(app: Flask) -> None:
    answer = app.test_client().get("/api/auth/etsy/login")
    assert (answer.status_code, answer.json["code"]) == (409, "etsy_not_configured")


def test_etsys_tokens_lie_sealed_and_open_for_their_row_alone(shop_app: Flask, etsy: SimulatedEtsy, farm: Farm) -> None:
    client = shop_app.test_client()
    assert client.post("/api/auth/etsy/callback", json=begin(client, farm), headers=bearer(farm)).status_code == 200
    with shop_app.app_context():
        shop = db.session.execute(sa.select(Shop)).scalar_one()
        vault: Vault = shop_app.extensions["parts"].vault
        opened = [
            vault.open(getattr(shop, f"{name}_sealed"), shop.secret_owner(name))
            for name in ("access_token", "refresh_token")
        ]
        stored = "".join(
            str(tuple(row)) for table in db.metadata.sorted_tables for row in db.session.execute(sa.select(table))
        )
    assert all(re.fullmatch(r"900000001\.[0-9a-f]{64}", token) for token in opened)
    assert opened[0] in etsy.requests[-1].headers["authorization"]
    assert not any(token in stored for token in opened)


def test_a_begun_login_keeps_neither_state_nor_verifier_in_plain(shop_app: Flask, etsy: SimulatedEtsy) -> None:
    client = shop_app.test_client()
    returned = begin(client)
    with shop_app.app_context():
        row = str([tuple(row) for row in db.session.execute(sa.select(db.metadata.tables["etsy_logins"]))])
    client.post("/api/auth/etsy/callback", json=returned)
    form = next(parse_qs(seen.body.decode()) for seen in etsy.requests if seen.path.endswith("/oauth/token"))
    assert returned["state"] not in row
    assert len(form["code_verifier"][0]) >= 43 and form["code_verifier"][0] not in row


# How many are under way


def under_way(app: Flask) -> int:
    with app.app_context():
        return db.session.execute(sa.select(sa.func.count()).select_from(EtsyLogin)).scalar_one()


def test_an_address_begins_as_many_in_a_minute_as_it_may_fail(app: Flask, etsy: SimulatedEtsy) -> None:
    with sibling(app, ETSY_CLIENT_ID="keystring", ETSY_SHARED_SECRET="shared-secret", LOGIN_LIMIT="3") as limited:
        farm = Farm(limited, "owner@example.com")

        def ask(address: str, **more: Any) -> Any:
            return limited.test_client().get(LOGIN, environ_base={"REMOTE_ADDR": address}, **more)

        answers = [ask("203.0.113.1") for _ in range(5)]
        assert [each.status_code for each in answers] == [200, 200, 200, 429, 429]
        assert answers[-1].json["code"] == "too_many_requests"
        assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
        assert under_way(limited) == 3
        # Neither another address nor who has an account is held up, nor does one use up the failures of a login.
        assert ask("203.0.113.2").status_code == 200
        assert ask("203.0.113.1", headers=bearer(farm)).status_code == 200
        wrong = {"email": "owner@example.com", "password": "wrong-password"}
        failed = limited.test_client().post("/api/auth/login", json=wrong, environ_base={"REMOTE_ADDR": "203.0.113.1"})
        assert failed.status_code == 401


def test_there_is_an_end_to_the_logins_under_way(
    shop_app: Flask, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etsy_login, "MOST_LOGINS", 2)
    monkeypatch.setattr(etsy_login, "MOST_NAMELESS_LOGINS", 4)
    farm, client = Farm(shop_app, "owner@example.com"), shop_app.test_client()

    def ask(who: Farm | None = None) -> Any:
        return client.get(LOGIN, headers=bearer(who))

    assert [ask().status_code for _ in range(3)] == [200] * 3
    clock.forward(minutes=4)
    answers = [ask() for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 429, 429]
    assert (answers[-1].json["code"], answers[-1].headers["Retry-After"]) == ("too_many_requests", "361")
    # Whoever has an account is not held up by those who have none, only by their own.
    assert [ask(farm).status_code for _ in range(3)] == [200, 200, 429]
    own = client.post(LOGIN, headers=bearer(farm), json={"keystring": "k" * 20, "shared_secret": "secret"})
    assert own.status_code == 429
    assert under_way(shop_app) == 6
    clock.forward(minutes=6, seconds=1)
    assert [ask().status_code for _ in range(4)] == [200, 200, 200, 429]
    assert under_way(shop_app) == 6
