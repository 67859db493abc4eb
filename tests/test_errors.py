"""Every answer that is not a success has one shape, and says what happened without saying how it is built."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError
from werkzeug.exceptions import GatewayTimeout, RequestTimeout
from werkzeug.test import TestResponse

from app import create_app
from errors import Problem, TooManyRequests, Unavailable, flatten_faults
from models import db
from tests.conftest import Clock, OutsideClient, settings_for
from tests.farm_builder import PASSWORD, Farm

HARDENED = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def check_shape(answer: TestResponse, status: int, code: str) -> dict[str, Any]:
    """The answer's body, once it is known to be an error of ours."""
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/json"
    body: dict[str, Any] = answer.json
    assert list(body) == ["error", "code", "fields"][: len(body)] and len(body) >= 2
    assert body["code"] == code and re.fullmatch(r"[a-z][a-z0-9_]*", code)
    assert re.fullmatch(r"[A-Z/].*[.!?]", body["error"], re.DOTALL), body["error"]
    for name, faults in body.get("fields", {}).items():
        assert isinstance(name, str) and faults and all(isinstance(fault, str) and fault for fault in faults)
    for name, value in HARDENED.items():
        assert answer.headers[name] == value
    return body


def raw(farm: Farm, method: str, path: str, body: bytes, kind: str = "application/json") -> TestResponse:
    return farm.call(method, path, data=body, content_type=kind)


def test_400_for_what_cannot_be_read(farm: Farm) -> None:
    body = check_shape(raw(farm, "POST", "/api/printers", b'{"name": '), 400, "bad_request")
    assert body["error"] == "The body is not valid JSON at line 1, column 10."


def test_401_without_a_token(app: Flask) -> None:
    answer = app.test_client().get("/api/printers")
    assert check_shape(answer, 401, "unauthorized") == {"error": "Log in first.", "code": "unauthorized"}
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_404_is_one_answer_wherever_it_comes_from(farm: Farm, stranger: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    foreign = stranger.get(f"/api/printers/{printer_id}")
    check_shape(foreign, 404, "not_found")
    others = [
        stranger.get("/api/printers/999999"),
        stranger.get("/api/no-such-thing"),
        stranger.get("/"),
        stranger.get("/api/printers/"),
        stranger.get("/api/printers/x"),
        stranger.post("/api/bambu/scheduled-prints", {"printer_id": printer_id, "job_name": "Vase"}),
    ]
    for path in ("/api/docs/no-such-asset", "/api/docs/..%2f..%2fsettings.py"):
        assert stranger.get(path).data == foreign.data
    for other in others:
        assert (other.status_code, other.data, other.mimetype) == (404, foreign.data, foreign.mimetype)
        assert sorted(other.headers.keys()) == sorted(foreign.headers.keys())


def test_addresses_are_taken_as_they_are(farm: Farm) -> None:
    """A second slash is another address, not a page that sends the client to whatever Host it named."""
    answer = farm.get("/api//printers", headers={"Host": "evil.example"})
    check_shape(answer, 404, "not_found")


def test_405_says_what_is_allowed(farm: Farm) -> None:
    answer = farm.delete("/api/printers")
    check_shape(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}
    check_shape(farm.call("TRACE", "/api/printers"), 405, "method_not_allowed")


def test_409_names_the_moves_that_are_allowed(farm: Farm) -> None:
    print_id = farm.add_print(farm.add_printer()["id"])["id"]
    answer = farm.put(f"/api/bambu/scheduled-prints/{print_id}", {"status": "completed"})
    body = check_shape(answer, 409, "illegal_move")
    assert body["error"] == "A queued print cannot become completed. From queued it may become: scheduled, started."
    assert body["fields"] == {"status": ["allowed: scheduled, started"]}


def test_413_for_a_body_above_a_megabyte(app: Flask, farm: Farm) -> None:
    big = json.dumps({"name": "x" * 1024 * 1024}).encode()
    check_shape(raw(farm, "POST", "/api/printers", big), 413, "too_large")
    # An anonymous one is not read at all.
    check_shape(app.test_client().post("/api/printers", data=big), 401, "unauthorized")
    check_shape(app.test_client().post("/api/auth/login", data=big, content_type="application/json"), 413, "too_large")


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "application/x-www-form-urlencoded", ""])
def test_415_for_anything_but_json(farm: Farm, kind: str) -> None:
    check_shape(raw(farm, "POST", "/api/printers", b'{"name": "x"}', kind), 415, "unsupported_media_type")
    with_key = farm.call(
        "POST", "/api/printers", data=b'{"name": "x"}', content_type=kind, headers={"Idempotency-Key": "k"}
    )
    check_shape(with_key, 415, "unsupported_media_type")
    assert farm.get("/api/printers").json == []


def test_json_with_a_charset_is_json(farm: Farm) -> None:
    assert raw(farm, "POST", "/api/printers", b'{"name": "x"}', "application/json; charset=UTF-8").status_code == 201


def test_422_names_every_fault_at_once(farm: Farm) -> None:
    sent = {"name": "", "auto_start": 1, "no_such": 1, "user_id": 7, "id": 7, "created_at": "2026-11-21T09:00:00Z"}
    body = check_shape(farm.post("/api/printers", sent), 422, "invalid")
    assert set(body["fields"]) == set(sent)
    lines = [{"title": "Vase", "quantity": 1}, {"quantity": 0}, {"title": "Cup", "quantity": "1", "extra": None}]
    body = check_shape(farm.post("/api/orders", {"buyer_name": "Ada", "items": lines}), 422, "invalid")
    assert set(body["fields"]) == {"items.1.title", "items.1.quantity", "items.2.quantity", "items.2.extra"}
    assert set(check_shape(raw(farm, "POST", "/api/orders", b"[]"), 422, "invalid")["fields"]) == {"body"}
    query = farm.get("/api/orders?limit=0&offset=-1&status=lost&start_date=soon")
    assert set(check_shape(query, 422, "invalid")["fields"]) == {"limit", "offset", "status", "start_date"}


def test_unknown_query_keys_are_ignored(farm: Farm) -> None:
    assert farm.get("/api/printers?no_such=1&limit=5").json == []


def test_faults_of_nested_values_are_named_by_their_path() -> None:
    faults = {"items": {0: {"title": ["a"], "_schema": ["b"]}}, "_schema": ["c"], "x": "d"}
    assert flatten_faults(faults) == {"items.0.title": ["a"], "items.0": ["b"], "body": ["c"], "x": ["d"]}


# Faults of our own: routes that break, in an app of their own.

BREAKS: dict[str, Exception] = {
    "bug": RuntimeError("QZCANARY secret"),
    "key": KeyError("QZCANARY"),
    "assertion": AssertionError("QZCANARY"),
    "not-implemented": NotImplementedError("QZCANARY"),
    "lost": OperationalError("SELECT 'QZCANARY'", {}, Exception("server closed the connection")),
    "pool": PoolTimeout("QueuePool limit"),
    "invalidated": DBAPIError("SELECT 'QZCANARY'", {}, Exception("x"), connection_invalidated=True),
    "interface": InterfaceError("SELECT 'QZCANARY'", {}, Exception("x"), connection_invalidated=True),
    "data": DBAPIError("SELECT 'QZCANARY'", {}, Exception("value too long")),
    "unique": IntegrityError("INSERT 'QZCANARY'", {}, Exception("UNIQUE constraint failed: users.email")),
    "stale": StaleDataError("QZCANARY"),
    "hurry": TooManyRequests("Slow down.", retry_after_seconds=0),
    "closed": Unavailable("Closed for now."),
    "late": RequestTimeout("QZCANARY"),
    "gateway": GatewayTimeout("QZCANARY"),
}


@pytest.fixture
def breaking(database_url: str, tmp_path: Path) -> Iterator[Farm]:
    """An account on an app with a route for each way to break; each one leaves an unfinished change behind."""
    app = create_app(settings_for(database_url, tmp_path), clock=Clock())
    app.test_client_class = OutsideClient
    with app.app_context():
        db.create_all()

    def break_by(name: str) -> None:
        db.session.execute(sa.text("UPDATE users SET username = 'half-written'"))
        raise BREAKS[name]

    app.add_url_rule("/api/break/<name>", "break", break_by)
    yield Farm(app, "seller@example.com")
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@pytest.mark.parametrize(
    ("name", "status", "code", "retry_after"),
    [
        ("bug", 500, "internal", None),
        ("key", 500, "internal", None),
        ("assertion", 500, "internal", None),
        ("not-implemented", 500, "internal", None),
        ("data", 500, "internal", None),
        ("lost", 503, "database_busy", "2"),
        ("pool", 503, "database_busy", "2"),
        ("invalidated", 503, "database_busy", "2"),
        ("interface", 503, "database_busy", "2"),
        ("unique", 409, "conflict", None),
        ("stale", 409, "conflict", None),
        ("hurry", 429, "too_many_requests", "1"),
        ("closed", 503, "unavailable", "5"),
        ("late", 408, "too_slow", None),
        ("gateway", 504, "http_504", None),
    ],
)
def test_a_fault_is_told_without_its_insides(
    breaking: Farm, name: str, status: int, code: str, retry_after: str | None
) -> None:
    answer = breaking.get(f"/api/break/{name}")
    check_shape(answer, status, code)
    assert answer.headers.get("Retry-After") == retry_after
    for inside in ("QZCANARY", "Error", "Traceback", "SELECT", "UNIQUE", "users", ".py"):
        assert inside not in answer.text
    # Nothing of the request was kept, and the next one is served.
    assert breaking.get("/api/auth/user").json["username"] == "seller"


def test_500_carries_a_reference_that_the_log_knows(breaking: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [breaking.get("/api/break/bug") for _ in range(2)]
    references = [re.search(r"Reference: ([0-9a-f]{12})\.", answer.json["error"]) for answer in answers]
    assert references[0] and references[1] and references[0][1] != references[1][1]
    captured = capsys.readouterr()
    for reference in references:
        assert reference is not None and reference[1] in captured.out + captured.err


def test_every_problem_has_a_status_and_a_slug() -> None:
    for kind in Problem.__subclasses__():
        assert 400 <= kind.status <= 503 and re.fullmatch(r"[a-z_]+", kind.code), kind


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg2://farm@127.0.0.1:1/farm", "sqlite:////no/such/folder/farm.sqlite3"],
)
def test_503_when_the_database_is_not_there(tmp_path: Path, url: str) -> None:
    """A real one: nobody listens there, or the folder does not exist."""
    client = create_app(settings_for("sqlite://", tmp_path).model_copy(update={"database_url": url})).test_client()
    credentials = {"email": "seller@example.com", "password": PASSWORD}
    for path in ("/api/auth/login", "/api/auth/register"):
        answer = client.post(path, json=credentials)
        check_shape(answer, 503, "database_busy")
        assert answer.headers["Retry-After"] == "2"
    assert client.get("/readyz").status_code == 503
    assert client.get("/livez").status_code == 200


def test_429_says_how_long_to_wait(app: Flask, tmp_path: Path) -> None:
    limited = create_app(settings_for(app.config["SQLALCHEMY_DATABASE_URI"], tmp_path, LOGIN_LIMIT="1"), clock=Clock())
    client = limited.test_client()
    wrong = {"email": "nobody@example.com", "password": "wrong"}
    assert client.post("/api/auth/login", json=wrong).status_code == 401
    answer = client.post("/api/auth/login", json=wrong)
    check_shape(answer, 429, "too_many_requests")
    assert 1 <= int(answer.headers["Retry-After"]) <= 61
    with limited.app_context():
        db.engine.dispose()


def test_errors_reach_a_page_of_another_origin(tmp_path: Path, app: Flask) -> None:
    """A front end must be able to read why, so CORS stands on errors as on successes, for exact origins only."""
    settings = settings_for(
        app.config["SQLALCHEMY_DATABASE_URI"], tmp_path, CORS_ORIGINS="https://farm.example, https://b.example"
    )
    crossed = create_app(settings, clock=Clock())
    client = crossed.test_client()
    answer = client.get("/api/printers", headers={"Origin": "https://farm.example"})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (401, "https://farm.example")
    for foreign in ("https://evil.example", "https://farm.example.evil.example", "http://farm.example", "null"):
        answer = client.get("/api/printers", headers={"Origin": foreign})
        assert "Access-Control-Allow-Origin" not in answer.headers, foreign
    with crossed.app_context():
        db.engine.dispose()
