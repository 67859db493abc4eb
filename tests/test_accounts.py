"""Accounts and tokens: whoever is not surely who they say is refused."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest
import sqlalchemy as sa
from flask import Flask
from werkzeug.test import TestResponse

from api.accounts import COMMON_PASSWORDS
from models import User, db
from settings import Settings
from tests.conftest import Clock
from tests.farm_builder import PASSWORD, Farm
from tests.logins import NEW, THREADS, at_once, is_open, post, refresh, sibling

# Accounts.


def test_an_account_is_opened_and_answers_for_itself(app: Flask) -> None:
    opened = post(app, "/api/auth/register", {**NEW, "email": "New.Seller@Example.COM", "username": " Ada "})
    assert opened.status_code == 201
    assert set(opened.json) == {"token", "refresh_token", "user"}
    user = opened.json["user"]
    assert (user["email"], user["username"], user["currency"], user["shops"]) == (
        "new.seller@example.com",
        "Ada",
        "USD",
        [],
    )
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
    [
        "",
        "x",
        "x@",
        "@example.com",
        "x@localhost",
        "a b@example.com",
        "a@b@example.com",
        "a@example..com",
        "a@-",
        "a,b@c.de",
    ]
    + [
        "<a@example.com>",
        "a@example.com\nBcc: b@example.com",
        "a\x00@example.com",
        "a@exämple.com",
        f"{'a' * 65}@example.com",
    ]
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


@pytest.mark.parametrize(
    "password", ["", "short", "seven77", "password", "PASSWORD1", "12345678", "aaaaaaaaaa", "abababab", "x" * 1001]
)
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
        claims = jwt.decode(
            token, key, algorithms=["HS256"], audience=kind, issuer="print-farm", options=checks_of_ours
        )
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
    assert (
        farm.call("POST", "/api/auth/logout", headers={"Authorization": f"Bearer {other['token']}"}).status_code == 200
    )
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
        wrong = [
            log_in(right | {"email": email, "password": "wrong"})
            for email in ("seller@example.com", "SELLER@EXAMPLE.com") * 2
        ]
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
