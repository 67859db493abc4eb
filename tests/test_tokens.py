"""Every route needs a good token unless it is listed; a new one is closed by default."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import sqlalchemy as sa
from flask import Flask

from app import create_app
from models import User, db
from tests.api_document import PUBLIC, path_of, private_rules, rules
from tests.conftest import Clock, OutsideClient, settings_for
from tests.farm_builder import Farm

# The library reads the wall clock; the app's stands still.
AS_IS = {"verify_exp": False, "verify_iat": False}


def bad_tokens(app: Flask, farm: Farm, clock: Clock) -> dict[str, str | None]:
    """Authorization headers that must open nothing."""
    key = app.extensions["parts"].settings.jwt_secret_key.get_secret_value()
    good = jwt.decode(farm.token, key, algorithms=["HS256"], audience="access", options=AS_IS)
    expires = int((clock() + timedelta(minutes=5)).timestamp())

    def signed(by: str = key, algorithm: str = "HS256", **changes: Any) -> str:
        claims = {name: value for name, value in (good | changes).items() if value is not ...}
        return "Bearer " + jwt.encode(claims, by, algorithm)

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    head, body, signature = farm.token.split(".")
    stranger_id = Farm(app, "third@example.com").user["id"]
    left = Farm(app, "left@example.com")
    assert left.post("/api/auth/logout").status_code == 200
    gone = Farm(app, "gone@example.com")
    with app.app_context():
        db.session.execute(sa.delete(User).where(User.id == gone.user["id"]))
        db.session.commit()
    assert farm.call("GET", "/api/auth/user", headers={"Authorization": signed(exp=expires)}).status_code == 200
    return {
        "none": None,
        "empty": "",
        "no token": "Bearer ",
        "other scheme": f"Basic {farm.token}",
        "no scheme": farm.token,
        "garbage": "Bearer garbage",
        "not ASCII": "Bearer ü.ü.ü",
        "two": f"Bearer {farm.token} {farm.token}",
        "cut off": f"Bearer {farm.token[:-4]}",
        "expired": signed(exp=int(clock().timestamp())),
        "refresh": f"Bearer {farm.refresh_token}",
        "other key": signed(by="k" * 44),
        "alg none": f"Bearer {part({'alg': 'none', 'typ': 'JWT'})}.{body}.",
        "alg None with a signature": f"Bearer {part({'alg': 'None', 'typ': 'JWT'})}.{body}.{signature}",
        "other algorithm": signed(algorithm="HS512"),
        "other issuer": signed(iss="somebody"),
        "other audience": signed(aud="mail"),
        "body of another": f"Bearer {head}.{part(good | {'sub': str(stranger_id)})}.{signature}",
        "another's sub": signed(sub=str(stranger_id)),
        "sub is no number": signed(sub="me"),
        "unknown family": signed(fid="0" * 32),
        "family is a list": signed(fid=[good["fid"]]),
        "exp is no number": signed(exp="soon"),
        "exp is not a number": signed(exp=float("nan")),
        **{f"without {name}": signed(**{name: ...}) for name in ("exp", "iat", "sub", "jti", "iss", "aud", "fid")},
        "nested deep": f"Bearer {'W1tb' * 20_000}.e30.x",
        "logged out": f"Bearer {left.token}",
        "deleted account": f"Bearer {gone.token}",
    }


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_every_route_but_the_listed_ones_needs_a_good_token(app: Flask, farm: Farm, clock: Clock) -> None:
    client, faults, shapes = app.test_client(), [], set()
    tokens = bad_tokens(app, farm, clock)
    for rule, method in private_rules(app):
        path = path_of(rule, dict.fromkeys(rule.arguments, 1))
        for name, header in tokens.items():
            answer = client.open(path, method=method, headers={} if header is None else {"Authorization": header})
            if answer.status_code != 401 or answer.headers.get("WWW-Authenticate") != "Bearer":
                faults.append(f"{method} {rule} with {name}: {answer.status_code} {answer.text[:100]}")
            shapes.add(tuple(answer.json or ()))
    assert faults == []
    assert shapes == {("error", "code")}


def test_the_listed_routes_need_none(app: Flask) -> None:
    listed = {(str(rule), method) for rule, method in rules(app)} & PUBLIC
    assert listed == PUBLIC
    client = app.test_client()
    for path, method in PUBLIC:
        answer = client.open(path.replace("<asset>", "page.js"), method=method)
        assert answer.status_code != 401 or answer.json["code"] in ("etsy_login_gone", "bad_signature"), (
            path,
            answer.text,
        )


def test_no_rule_answers_options_by_a_view_of_its_own(app: Flask) -> None:
    """OPTIONS passes the guard, for browsers ask before they send a token: it must never reach a view."""
    for rule in app.url_map.iter_rules():
        assert rule.provide_automatic_options or "OPTIONS" not in (rule.methods or ()), rule


def test_a_new_route_is_closed_by_default(tmp_path: Path, database_url: str) -> None:
    app = create_app(settings_for(database_url, tmp_path), clock=Clock())
    app.test_client_class = OutsideClient
    app.add_url_rule("/api/new", "new", lambda: {"open": True})
    app.add_url_rule("/health/new", "probes.get_new", lambda: {"open": True}, methods=["GET", "POST"])
    client = app.test_client()
    assert client.get("/api/new").status_code == 401
    assert client.post("/health/new").status_code == 401
    assert {(str(rule), method) for rule, method in private_rules(app)} >= {
        ("/api/new", "GET"),
        ("/health/new", "POST"),
    }
    with app.app_context():
        db.engine.dispose()
