"""Every call that auth.py makes, and every statement and commit of a request through it, broken once: no entry."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from werkzeug.test import TestResponse

import auth
from app import create_app
from models import TokenFamily, User, db
from tests.conftest import Clock, OutsideClient, empty, settings_for
from tests.farm_builder import PASSWORD, Farm
from tests.logins import NEW, post, refresh, sibling


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
