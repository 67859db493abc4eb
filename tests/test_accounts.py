"""Accounts, tokens, the login at Etsy: whoever is not surely who they say is refused, whatever breaks on the way."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from werkzeug.test import TestResponse

import auth
from api.accounts import COMMON_PASSWORDS
from api.etsy_login import COOKIE
from app import create_app
from models import Shop, TokenFamily, User, db
from settings import Settings, SettingsError
from simulator.etsy import SimulatedEtsy
from tests.conftest import Clock, OutsideClient, empty, settings_for
from tests.farm_builder import PASSWORD, Farm
from vault import Vault

NEW = {"email": "new@example.com", "password": PASSWORD}
THREADS = 8


def post(app: Flask, path: str, body: dict[str, Any], **more: Any) -> TestResponse:
    return app.test_client().post(path, json=body, **more)


def refresh(app: Flask, token: str) -> TestResponse:
    return post(app, "/api/auth/refresh", {"refresh_token": token})


@contextmanager
def sibling(app: Flask, clock: Callable[[], Any] | None = None, **changes: str) -> Iterator[Flask]:
    """Another app over the same database with the same secrets, set otherwise."""
    settings = settings_for(app.config["SQLALCHEMY_DATABASE_URI"], app.extensions["parts"].settings.data_dir, **changes)
    made = create_app(settings, clock=clock or app.extensions["clock"])
    made.test_client_class = OutsideClient
    yield made
    with made.app_context():
        db.session.remove()
        db.engine.dispose()


def is_open(app: Flask, token: str) -> bool:
    answer = app.test_client().get("/api/auth/user", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code in (200, 401)
    return answer.status_code == 200


def at_once(acts: list[Callable[[], TestResponse]]) -> list[TestResponse]:
    """What the acts answer when all of them begin in the same moment."""
    ready = threading.Barrier(len(acts))

    def run(act: Callable[[], TestResponse]) -> TestResponse:
        ready.wait()
        return act()

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts))


# Accounts.


def test_an_account_is_opened_and_answers_for_itself(app: Flask) -> None:
    opened = post(app, "/api/auth/register", {**NEW, "email": "New.Seller@Example.COM", "username": " Ada "})
    assert opened.status_code == 201
    assert set(opened.json) == {"token", "refresh_token", "user"}
    user = opened.json["user"]
    assert (user["email"], user["username"], user["currency"], user["shops"]) == ("new.seller@example.com", "Ada", "USD", [])
    answer = app.test_client().get("/api/auth/user", headers={"Authorization": f"Bearer {opened.json['token']}"})
    assert answer.json == user


def test_a_taken_address_is_409_in_any_case(app: Flask) -> None:
    assert post(app, "/api/auth/register", {**NEW, "email": "straße@example.com"}).status_code == 201
    for spelling in ("straße@example.com", "STRASSE@EXAMPLE.COM", "Strasse@example.com", "  straße@example.com "):
        answer = post(app, "/api/auth/register", {**NEW, "email": spelling})
        assert (answer.status_code, answer.json["code"]) == (409, "email_taken"), spelling
    assert post(app, "/api/auth/login", {**NEW, "email": "STRASSE@example.com"}).status_code == 200


def test_of_racing_registrations_one_wins(app: Flask) -> None:
    answers = at_once([lambda: post(app, "/api/auth/register", NEW)] * THREADS)
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * (THREADS - 1)
    with app.app_context():
        assert db.session.execute(sa.select(sa.func.count()).select_from(User)).scalar() == 1


@pytest.mark.parametrize(
    "address",
    ["", "x", "x@", "@example.com", "x@localhost", "a b@example.com", "a@b@example.com", "a@example..com", "a@-", "a,b@c.de"]
    + ["<a@example.com>", "a@example.com\nBcc: b@example.com", "a\x00@example.com", "a@exämple.com", f"{'a' * 65}@example.com"]
    + [f"{'ΐ' * 64}@{'x' * 60}.com", f"a@{'x' * 260}.com"],
)
def test_what_is_no_address_is_422(app: Flask, address: str) -> None:
    answer = post(app, "/api/auth/register", {**NEW, "email": address})
    assert answer.status_code == 422
    assert list(answer.json["fields"]) == ["email"]


def test_the_longest_address_is_kept_whole(app: Flask) -> None:
    longest = f"{'a' * 64}@{'b' * 186}.com"
    assert len(longest) == 255
    assert post(app, "/api/auth/register", {**NEW, "email": longest}).json["user"]["email"] == longest


@pytest.mark.parametrize("password", ["", "short", "seven77", "password", "PASSWORD1", "12345678", "aaaaaaaaaa", "abababab", "x" * 1001])
def test_short_common_and_simple_passwords_are_422(app: Flask, password: str) -> None:
    answer = post(app, "/api/auth/register", {**NEW, "password": password})
    assert answer.status_code == 422
    assert list(answer.json["fields"]) == ["password"]


def test_the_list_of_common_passwords_is_a_long_one() -> None:
    assert len(COMMON_PASSWORDS) > 20_000
    assert {"password", "12345678", "qwertyuiop", "iloveyou1"} <= COMMON_PASSWORDS


def test_a_password_is_taken_as_it_is(app: Flask) -> None:
    """No trimming, no folding, any alphabet."""
    odd = "  Пароль \N{SNOWMAN} zwölf  "
    assert post(app, "/api/auth/register", {**NEW, "password": odd}).status_code == 201
    assert post(app, "/api/auth/login", {**NEW, "password": odd}).status_code == 200
    assert post(app, "/api/auth/login", {**NEW, "password": odd.strip()}).status_code == 401


def test_passwords_lie_as_argon2id_and_secrets_as_no_plain_text(app: Flask, farm: Farm) -> None:
    with app.app_context():
        kept = db.session.execute(sa.select(User.password_hash)).scalar_one()
    assert kept is not None and kept.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    defaults = Settings.model_fields
    assert (defaults["password_hash_memory_kib"].default, defaults["password_hash_time_cost"].default) == (19 * 1024, 2)


def test_a_wrong_password_and_an_unknown_account_answer_alike(app: Flask, farm: Farm) -> None:
    with app.app_context():
        db.session.add(User(email="etsy@example.com", username="no password", created_at=Clock()()))
        db.session.commit()
    right = {"email": "seller@example.com", "password": PASSWORD}
    answers = [
        post(app, "/api/auth/login", right | changes)
        for changes in ({"password": "wrong-wrong"}, {"email": "nobody@example.com"}, {"email": "etsy@example.com"})
    ]
    assert {(each.status_code, each.data, tuple(sorted(each.headers.keys()))) for each in answers} == {
        (401, answers[0].data, tuple(sorted(answers[0].headers.keys())))
    }
    assert post(app, "/api/auth/login", right).status_code == 200


def test_a_wrong_password_and_an_unknown_account_take_equally_long(app: Flask) -> None:
    """With a hash that costs something, an answer without it would stand out by far."""
    with sibling(app, PASSWORD_HASH_MEMORY_KIB="16384", PASSWORD_HASH_TIME_COST="2") as costly:
        assert post(costly, "/api/auth/register", NEW).status_code == 201

        def best_of(body: dict[str, Any]) -> float:
            spans = []
            for _ in range(4):
                begun = time.process_time()
                assert post(costly, "/api/auth/login", body).status_code == 401
                spans.append(time.process_time() - begun)
            return min(spans)

        wrong, unknown = best_of({**NEW, "password": "wrong"}), best_of({**NEW, "email": "nobody@example.com"})
        assert 0.5 < wrong / unknown < 2


# Tokens.


def test_tokens_say_what_they_must(app: Flask, farm: Farm, clock: Clock) -> None:
    key = app.extensions["parts"].settings.jwt_secret_key.get_secret_value()
    checks_of_ours = {"verify_exp": False, "verify_iat": False}
    kinds = {"access": (farm.token, 15 * 60), "refresh": (farm.refresh_token, 30 * 24 * 3600)}
    identities = set()
    for kind, (token, life) in kinds.items():
        claims = jwt.decode(token, key, algorithms=["HS256"], audience=kind, issuer="print-farm", options=checks_of_ours)
        assert set(claims) == {"exp", "iat", "sub", "jti", "iss", "aud", "fid"}
        assert (claims["iat"], claims["exp"]) == (int(clock().timestamp()), int(clock().timestamp()) + life)
        assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
        identities.add(claims["jti"])
    assert len(identities) == 2


def test_an_access_token_ends_after_fifteen_minutes(app: Flask, farm: Farm, clock: Clock) -> None:
    clock.forward(minutes=14, seconds=59)
    assert is_open(app, farm.token)
    clock.forward(seconds=1)
    answer = farm.get("/api/auth/user")
    assert (answer.status_code, answer.json["code"]) == (401, "expired_token")


def test_a_refresh_gives_a_new_pair_for_another_thirty_days(app: Flask, farm: Farm, clock: Clock) -> None:
    token = farm.refresh_token
    for _ in range(3):
        clock.forward(days=29)
        pair = refresh(app, token).json
        assert set(pair) == {"token", "refresh_token"} and pair["refresh_token"] != token
        assert is_open(app, pair["token"])
        token = pair["refresh_token"]
    clock.forward(days=30)
    assert refresh(app, token).json["code"] == "expired_token"


def test_a_refresh_token_used_twice_ends_the_whole_login(app: Flask, farm: Farm) -> None:
    second = refresh(app, farm.refresh_token).json
    third = refresh(app, second["refresh_token"]).json
    assert is_open(app, third["token"])
    stolen = refresh(app, farm.refresh_token)
    assert (stolen.status_code, stolen.json["code"]) == (401, "ended_login")
    assert not any(is_open(app, token) for token in (farm.token, second["token"], third["token"]))
    assert refresh(app, third["refresh_token"]).status_code == 401


def test_another_login_of_the_account_goes_on(app: Flask, farm: Farm) -> None:
    other = post(app, "/api/auth/login", {"email": "seller@example.com", "password": PASSWORD}).json
    refresh(app, farm.refresh_token)
    refresh(app, farm.refresh_token)
    assert not is_open(app, farm.token) and is_open(app, other["token"])
    assert farm.call("POST", "/api/auth/logout", headers={"Authorization": f"Bearer {other['token']}"}).status_code == 200
    assert not is_open(app, other["token"])


def test_of_threads_with_one_refresh_token_one_wins_and_the_family_is_dead(app: Flask, farm: Farm) -> None:
    answers = at_once([lambda: refresh(app, farm.refresh_token)] * THREADS)
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * (THREADS - 1)
    winner = next(answer.json for answer in answers if answer.status_code == 200)
    assert not is_open(app, farm.token) and not is_open(app, winner["token"])
    assert refresh(app, winner["refresh_token"]).status_code == 401


@pytest.mark.parametrize("kind", ["access", "garbage", "other key", "cut"])
def test_what_is_no_refresh_token_refreshes_nothing_and_ends_nothing(app: Flask, farm: Farm, kind: str) -> None:
    claims = jwt.decode(farm.refresh_token, options={"verify_signature": False})
    token = {
        "access": farm.token,
        "garbage": "a.b.c",
        "other key": jwt.encode(claims, "k" * 44, "HS256"),
        "cut": farm.refresh_token[:-3],
    }[kind]
    assert refresh(app, token).json["code"] == "bad_token"
    assert is_open(app, farm.token) and refresh(app, farm.refresh_token).status_code == 200


def test_logout_ends_access_and_refresh(app: Flask, farm: Farm) -> None:
    assert farm.post("/api/auth/logout").status_code == 200
    assert not is_open(app, farm.token)
    assert refresh(app, farm.refresh_token).json["code"] == "ended_login"
    assert farm.post("/api/auth/logout").status_code == 401


# The limit on failed logins.


def test_failed_logins_are_limited_per_account_and_address(app: Flask, farm: Farm) -> None:
    right = {"email": "seller@example.com", "password": PASSWORD}
    with sibling(app, LOGIN_LIMIT="3") as strict:

        def log_in(body: dict[str, Any], address: str = "192.0.2.1") -> TestResponse:
            return post(strict, "/api/auth/login", body, environ_base={"REMOTE_ADDR": address})

        # Successes do not count, and the case of the address makes no other account.
        assert [log_in(right).status_code for _ in range(5)] == [200] * 5
        wrong = [log_in(right | {"email": email, "password": "wrong"}) for email in ("seller@example.com", "SELLER@EXAMPLE.com") * 2]
        assert [each.status_code for each in wrong] == [401, 401, 401, 429]
        blocked = log_in(right)
        assert (blocked.status_code, blocked.json["code"]) == (429, "too_many_requests")
        assert 1 <= int(blocked.headers["Retry-After"]) <= 61
        assert log_in(right, "192.0.2.2").status_code == 200
        assert log_in(right | {"email": "other@example.com"}).status_code == 401
        # A client cannot name its own address.
        forged = post(
            strict,
            "/api/auth/login",
            right,
            environ_base={"REMOTE_ADDR": "192.0.2.1"},
            headers={"X-Forwarded-For": "192.0.2.9", "X-Real-IP": "192.0.2.9", "Forwarded": "for=192.0.2.9"},
        )
        assert forged.status_code == 429


def test_behind_one_proxy_the_address_that_it_saw_counts(app: Flask, farm: Farm) -> None:
    with sibling(app, LOGIN_LIMIT="3", PROXY_HOPS="1") as strict:

        def fail(forwarded: str) -> int:
            body = {"email": "seller@example.com", "password": "wrong"}
            return post(strict, "/api/auth/login", body, headers={"X-Forwarded-For": forwarded}).status_code

        assert [fail(f"203.0.113.{n}, 192.0.2.1") for n in range(4)] == [401, 401, 401, 429]
        assert fail("192.0.2.2") == 401


# Failing closed: every call that auth.py makes, and every statement and commit of a request, broken once.


def auth_calls(act: Callable[[], TestResponse], break_at: int | None = None) -> tuple[TestResponse, int]:
    """Run a request and count the calls that auth.py makes or receives in it; the one numbered `break_at` fails."""
    seen = 0

    def watch(frame: Any, what: str, argument: Any) -> None:
        nonlocal seen
        caller = frame.f_back if what == "call" else frame
        involved = {frame.f_code.co_filename, caller.f_code.co_filename if caller else ""}
        if what in ("call", "c_call") and auth.__file__ in involved:
            seen += 1
            if seen - 1 == break_at:
                raise OperationalError("a broken part", {}, Exception("injected"))

    sys.setprofile(watch)
    try:
        answer = act()
    finally:
        sys.setprofile(None)
    return answer, seen


def requests_through_auth(app: Flask, farm: Farm) -> dict[str, Callable[[], TestResponse]]:
    bearer = {"Authorization": f"Bearer {farm.token}"}
    client = app.test_client()
    return {
        "read": lambda: client.get("/api/auth/user", headers=bearer),
        "list": lambda: client.get("/api/printers", headers=bearer),
        "make": lambda: client.post("/api/printers", json={"name": "New"}, headers=bearer),
        "refresh": lambda: client.post("/api/auth/refresh", json={"refresh_token": farm.refresh_token}),
        "login": lambda: client.post("/api/auth/login", json={"email": "seller@example.com", "password": PASSWORD}),
        "register": lambda: client.post("/api/auth/register", json=NEW),
        "logout": lambda: client.post("/api/auth/logout", headers=bearer),
    }


@pytest.mark.parametrize("name", ["read", "list", "make", "refresh", "login", "register", "logout"])
def test_a_fault_at_any_call_inside_auth_lets_nobody_in(app: Flask, name: str) -> None:
    def begin() -> Callable[[], TestResponse]:
        empty(app)
        return requests_through_auth(app, Farm(app, "seller@example.com"))[name]

    answer, calls = auth_calls(begin())
    assert answer.status_code in (200, 201) and calls >= 8
    answer, _ = auth_calls(begin(), break_at=calls)
    assert answer.status_code in (200, 201)
    for number in range(calls):
        answer, seen = auth_calls(begin(), break_at=number)
        assert seen > number
        assert answer.status_code in (401, 500, 503), f"call {number}: {answer.status_code} {answer.text}"
        assert "token" not in answer.json


class Faults:
    """Breaks one statement or the commit of whatever runs on an engine."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self.statements = self.commits = 0
        self.at: int | str | None = None

    def _fail(self) -> None:
        raise OperationalError("a broken database", {}, Exception("injected"))

    def _statement(self, *_: Any) -> None:
        self.statements += 1
        if self.statements - 1 == self.at:
            self._fail()

    def _commit(self, *_: Any) -> None:
        self.commits += 1
        if self.at == "commit":
            self._fail()

    def __enter__(self) -> Faults:
        event.listen(self._engine, "before_cursor_execute", self._statement)
        event.listen(self._engine, "commit", self._commit)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._statement)
        event.remove(self._engine, "commit", self._commit)


@pytest.mark.parametrize("name", ["read", "make", "refresh", "login", "register", "logout"])
def test_a_fault_at_any_statement_leaves_nothing_behind(app: Flask, name: str) -> None:
    def rows() -> list[Any]:
        with app.app_context():
            tables = (User, TokenFamily)
            return [tuple(row) for table in tables for row in db.session.execute(sa.select(table.__table__))]

    with app.app_context():
        engine = db.engine

    def attempt(at: int | str | None) -> tuple[TestResponse, Faults]:
        empty(app)
        act = requests_through_auth(app, Farm(app, "seller@example.com"))[name]
        before = rows()
        with Faults(engine) as faults:
            faults.at = at
            answer = act()
        if at is not None and (at == "commit" or int(at) < faults.statements):
            assert answer.status_code == 503, f"{at}: {answer.status_code}"
            assert answer.headers["Retry-After"] == "2"
            assert rows() == before
        return answer, faults

    answer, whole = attempt(None)
    assert answer.status_code in (200, 201) and whole.statements >= 1
    for number in range(whole.statements):
        attempt(number)
    if whole.commits:
        attempt("commit")


def test_without_its_tables_auth_opens_nothing(app: Flask, tmp_path: Path, database_url: str) -> None:
    """A database that was never migrated."""
    bare = create_app(settings_for(database_url, tmp_path), clock=Clock())
    bare.test_client_class = OutsideClient
    with app.app_context():
        user = User(id=1, email="x@example.com", username="x", created_at=Clock()())
    pair = bare.extensions["accounts"]._pair(user.id, "0" * 32, "0" * 32)
    answers = [
        post(bare, "/api/auth/login", NEW),
        post(bare, "/api/auth/register", NEW),
        refresh(bare, pair["refresh_token"]),
        bare.test_client().get("/api/auth/user", headers={"Authorization": f"Bearer {pair['token']}"}),
        bare.test_client().get("/api/printers", headers={"Authorization": f"Bearer {pair['token']}"}),
    ]
    assert all(answer.status_code >= 500 for answer in answers)
    with bare.app_context():
        db.session.remove()
        db.engine.dispose()


def test_a_damaged_password_hash_lets_nobody_in(app: Flask, farm: Farm) -> None:
    for kept in ("", "plain", "$argon2id$", PASSWORD, None):
        with app.app_context():
            db.session.execute(sa.update(User).values(password_hash=kept))
            db.session.commit()
        for password in (PASSWORD, "plain", "$argon2id$"):
            answer = post(app, "/api/auth/login", {"email": "seller@example.com", "password": password})
            assert answer.status_code == 401


def test_a_clock_that_fails_lets_nobody_in(app: Flask, farm: Farm) -> None:
    def broken() -> Any:
        raise OSError("no clock")

    with sibling(app, broken) as timeless:
        answer = timeless.test_client().get("/api/auth/user", headers={"Authorization": f"Bearer {farm.token}"})
        assert answer.status_code == 500


# The login at Etsy, over a simulated Etsy that speaks HTTP.


@pytest.fixture
def etsy(clock: Clock) -> Iterator[SimulatedEtsy]:
    with SimulatedEtsy("keystring", "shared-secret", clock=clock) as made:
        yield made


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


def bearer(farm: Farm | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {farm.token}"} if farm else {}


def begin(client: Any, farm: Farm | None = None) -> dict[str, str]:
    """Begin a login and let the owner consent: the code and state that Etsy sends the browser back with."""
    answer = client.get("/api/auth/etsy/login", headers=bearer(farm))
    assert answer.status_code == 200, answer.text
    sent_back = requests.get(answer.json["auth_url"], allow_redirects=False, timeout=5).headers["Location"]
    returned = {name: values[0] for name, values in parse_qs(urlsplit(sent_back).query).items()}
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
    assert other.get("/api/auth/etsy/callback", query_string=returned | {"code": "x"}).json["code"] == "etsy_login_elsewhere"
    assert own["state"] != returned["state"]
    assert shops(shop_app) == []
    # A stranger's attempts used nothing up.
    assert browser.get("/api/auth/etsy/callback", query_string=returned).status_code == 200


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


def test_a_login_not_finished_in_a_quarter_of_an_hour_is_gone(shop_app: Flask, clock: Clock) -> None:
    client = shop_app.test_client()
    returned = begin(client)
    clock.forward(minutes=15, seconds=1)
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
            vault.open(getattr(shop, f"{name}_sealed"), shop.secret_owner(name)) for name in ("access_token", "refresh_token")
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


# An unsafe production does not start.

GOOD = {
    "SECRET_KEY": "hD3v9Qk2mX7pLr5tZw8yBn4cFj6sGa1e",
    "JWT_SECRET_KEY": "Vt6yNq1wRb8kMz3xLc5pHd9sJf2gTa7u",
    "ENCRYPTION_KEYS": "b2Zm6m1hZkR3c1dQdG5yV0x4Y0p1S2U5R3ZBaUVUbjg=",
}


def refusal(**changes: str | None) -> str:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment({name: value for name, value in {**GOOD, **changes}.items() if value is not None})
    return str(refused.value)


def test_good_secrets_start_production_which_is_the_default() -> None:
    settings = Settings.from_environment(GOOD)
    assert settings.is_production and not settings.embedded_worker and not settings.allow_loopback_printers
    assert not any(secret in repr(settings) for secret in GOOD.values())


@pytest.mark.parametrize("name", ["SECRET_KEY", "JWT_SECRET_KEY", "ENCRYPTION_KEYS"])
@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (None, "is missing"),
        ("", "is missing"),
        ("tiny", "is shorter than 32 characters"),
        ("change-me-change-me-change-me-change-me", "looks like a placeholder"),
        ("dev-secret-key-dev-secret-key-dev-secret", "looks like a placeholder"),
        ("a" * 44, "is not random"),
    ],
)
def test_a_default_short_or_placeholder_secret_is_refused_by_name(name: str, value: str | None, fault: str) -> None:
    said = refusal(**{name: value})
    assert f"{name} {fault}" in said
    assert "python settings.py --write-secrets DIR" in said
    assert not value or value not in said


def test_every_fault_is_named_at_once() -> None:
    said = refusal(SECRET_KEY=None, JWT_SECRET_KEY="short", CORS_ORIGINS="*", SMTP_HOST="mail")
    for fault in ("SECRET_KEY is missing", "JWT_SECRET_KEY is shorter", "CORS_ORIGINS must list", "SMTP_FROM is needed"):
        assert fault in said


def test_one_secret_for_two_purposes_debug_and_any_origin_are_refused() -> None:
    assert "must differ" in refusal(JWT_SECRET_KEY=GOOD["SECRET_KEY"])
    assert "FLASK_DEBUG must be off" in refusal(FLASK_DEBUG="1")
    assert "exact origins, not *" in refusal(CORS_ORIGINS="https://a.example,*")
    assert "flask_env" in refusal(FLASK_ENV="staging").casefold()


def test_an_encryption_key_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    said = refusal(ENCRYPTION_KEYS="hD3v9Qk2mX7pLr5tZw8yBn4cFj6sGa1e-not-a-fernet-key")
    assert "ENCRYPTION_KEYS" in said


def test_development_makes_its_own_secrets_for_its_owner_alone(tmp_path: Path) -> None:
    environment = {"FLASK_ENV": "development", "DATA_DIR": str(tmp_path)}
    first, second = (Settings.from_environment(environment) for _ in range(2))
    assert first == second
    made = list((tmp_path / "secrets").iterdir())
    assert {path.stat().st_mode & 0o777 for path in made} == {0o600}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert len({path.read_text() for path in made}) == len(made) >= 3
