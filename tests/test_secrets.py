"""Secrets never leave: not by an answer, not into the log, not in plain into the database."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from models import PrinterConnection, db
from tests.api_document import private_rules
from tests.clouds import account_of
from tests.farm_builder import PASSWORD, Farm
from tests.production_log import production_log
from tests.whole_farm import fill
from vault import SealBroken

OWNER, STRANGER = "QZOWNERQZ", "QZOTHERQZ"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    with production_log() as said:
        yield said


def everything_stored(app: Flask) -> str:
    """All rows as text; on SQLite the very bytes of the database's files, too."""
    with app.app_context():
        stored = "".join(
            json.dumps(tuple(row), default=str)
            for table in db.metadata.sorted_tables
            for row in db.session.execute(sa.select(table))
        )
        if db.engine.dialect.name == "sqlite":
            name = str(db.engine.url.database)
            # By another process: closing the file in this one would take away all locks that SQLite holds on it here.
            read = subprocess.run(["cat", name, f"{name}-wal"], stdout=subprocess.PIPE, check=True)
            stored += read.stdout.decode("latin-1")
    return stored


def test_secrets_never_leave(app: Flask, farm: Farm, logged: io.StringIO) -> None:
    whole = fill(farm, OWNER)
    pair = app.test_client().post("/api/auth/refresh", json={"refresh_token": farm.refresh_token}).json
    farm.token = pair["token"]
    settings = app.extensions["parts"].settings
    keys = [settings.secret_key, settings.jwt_secret_key, settings.encryption_keys]
    hidden = [PASSWORD, whole.access_code, whole.cloud_token, whole.webhook_secret, farm.refresh_token]
    hidden += [account_of(OWNER).password, whole.channel_url]
    hidden += [pair["token"], pair["refresh_token"], *(key.get_secret_value() for key in keys)]
    answers = []
    for rule, method in private_rules(app):
        path = whole.path(rule, method)
        if method == "GET":
            answers.append(farm.get(path))
        elif method == "PUT":
            answers.append(farm.put(path, {}))
            answers.append(farm.put(path, {"no_such_field": 1}))
    assert len(answers) > 20
    # A picture is no text, and could carry one all the same.
    texts = [answer.data.decode(errors="replace") + str(answer.headers) for answer in answers]
    stored = everything_stored(app)
    said = logged.getvalue()
    for secret in hidden:
        assert not any(secret in text for text in texts)
        assert secret not in stored and secret not in said
    assert OWNER in stored


@pytest.mark.parametrize("fault", ["no such table", "a whole row refused"])
def test_the_log_of_a_failed_statement_holds_none_of_its_values(
    app: Flask, farm: Farm, logged: io.StringIO, fault: str
) -> None:
    """A fault of the database's own: what it says of it may hold the values, and a refused row is a whole one."""
    printer_id = farm.add_printer(notes=f"{OWNER} notes")["id"]
    with app.app_context():
        engine = db.engine

    def break_it(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> Any:
        if fault == "no such table":
            return statement.replace("UPDATE printers ", "UPDATE no_printers "), parameters
        return statement.replace("UPDATE printers SET ", "UPDATE printers SET created_at=NULL, "), parameters

    event.listen(engine, "before_cursor_execute", break_it, retval=True)
    try:
        answer = farm.put(f"/api/printers/{printer_id}", {"name": f"{OWNER} name", "location": PASSWORD})
    finally:
        event.remove(engine, "before_cursor_execute", break_it)
    assert answer.status_code in (500, 503)
    said = logged.getvalue()
    assert "unhandled_error" in said or "database_unavailable" in said
    assert OWNER not in said + answer.text and PASSWORD not in said + answer.text


def test_an_error_of_the_database_comes_without_the_statements_values(app: Flask) -> None:
    """Not every log line is made in errors.py: the worker logs what it stumbles over as it comes."""
    with app.app_context(), pytest.raises(DBAPIError) as stumbled:
        db.session.execute(sa.text("SELECT id FROM no_such_table WHERE name = :value"), {"value": OWNER})
    said = str(stumbled.value).replace(str(stumbled.value.orig), "")
    assert "no_such_table" in said and OWNER not in said


def test_what_is_sealed_opens_for_its_own_row_alone(app: Flask, farm: Farm, stranger: Farm) -> None:
    """A ciphertext copied from one account's row to another's is worth nothing there."""
    owner, other = fill(farm, OWNER), fill(stranger, STRANGER)
    vault = app.extensions["parts"].vault
    with app.app_context():
        mine = db.session.get_one(PrinterConnection, owner.connection_id)
        theirs = db.session.get_one(PrinterConnection, other.connection_id)
        assert vault.open(mine.access_code_sealed, mine.secret_owner("access_code")) == owner.access_code
        for label in (theirs.secret_owner("access_code"), mine.secret_owner("cloud_token"), ""):
            with pytest.raises(SealBroken):
                vault.open(mine.access_code_sealed, label)
