"""How connections to SQLite and PostgreSQL behave, and bringing the schema up to date."""

from __future__ import annotations

import contextlib
import fcntl
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask_migrate
import orjson
import psycopg2
import sqlalchemy as sa
from flask import Flask
from flask_migrate import Migrate
from sqlalchemy import event
from sqlalchemy.engine import Engine

from columns import Scaled, UtcDateTime
from models import db

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 15_000
MIGRATION_LOCK_ID = 0x6661726D
POSTGRESQL = {
    "timezone": "utc",
    "statement_timeout": 30_000,
    "lock_timeout": 10_000,
    # A process that is frozen in a transaction, as with its whole computer, would hold its rows for ever.
    "idle_in_transaction_session_timeout": 30_000,
}
IN_MEMORY = (None, "", ":memory:")
# The connection that was given back last is warm: PostgreSQL keeps a process for each, SQLite its pages and statements.
LAST_USED_FIRST = {"pool_use_lifo": True}
# A server may have been restarted while a connection lay in the pool for longer than that. To ask before each use would
# cost a round trip with every report.
ASKED_AFTER_SECONDS = 2.0
READ_ONLY = re.compile(r"\s*(SELECT|PRAGMA|EXPLAIN|WITH)\b", re.IGNORECASE)


def render_item(kind: str, item: Any, context: Any) -> Any:
    """How our column types are written down in a migration."""
    if kind == "type" and isinstance(item, UtcDateTime | Scaled):
        context.imports.add("import columns")
        return f"columns.{item!r}"
    return False


migrate = Migrate(render_as_batch=True, render_item=render_item, directory=str(MIGRATIONS), compare_type=True)


def engine_options(url: str) -> dict[str, Any]:
    # A statement's values are secrets as often as not, and an error of the driver would carry them into the log.
    json = {
        "hide_parameters": True,
        "json_serializer": lambda value: orjson.dumps(value).decode(),
        "json_deserializer": orjson.loads,
    }
    if url.startswith("postgresql"):
        return {
            **json,
            **LAST_USED_FIRST,
            "pool_size": 20,
            "max_overflow": 20,
            "connect_args": {"options": " ".join(f"-c {name}={value}" for name, value in POSTGRESQL.items())},
        }
    arguments = {"timeout": BUSY_TIMEOUT_MS / 1000, "factory": _turn_takers()}
    file = sa.make_url(url)
    has_pool = file.database not in IN_MEMORY and file.query.get("mode") != "memory"
    return {**json, **(LAST_USED_FIRST if has_pool else {}), "connect_args": arguments}


def _turn_takers() -> type[sqlite3.Connection]:
    """Connections of one engine, of which one writes at a time. SQLite itself lets whoever has to wait sleep, for
    longer each time; here they are woken. Other processes still meet its own lock."""
    turn = threading.Lock()

    class TurnTaker(sqlite3.Connection):
        is_its_turn = False

        def begin_writing(self) -> None:
            # Without its turn it waits as SQLite has it: in vain, should the one who writes wait for this thread.
            self.is_its_turn = turn.acquire(timeout=BUSY_TIMEOUT_MS / 1000)
            try:
                self.execute("BEGIN IMMEDIATE")
            finally:
                self._pass_on()

        def commit(self) -> None:
            super().commit()
            self._pass_on()

        def rollback(self) -> None:
            super().rollback()
            self._pass_on()

        def close(self) -> None:
            super().close()
            self._pass_on(is_open=False)

        def _pass_on(self, *, is_open: bool = True) -> None:
            if self.is_its_turn and not (is_open and self.in_transaction):
                self.is_its_turn = False
                turn.release()

    return TurnTaker


def init_app(app: Flask) -> None:
    db.init_app(app)
    migrate.init_app(app, db)
    with app.app_context():
        if db.engine.dialect.name == "sqlite":
            _tame_sqlite(db.engine)
        else:
            _ask_after_rest(db.engine)


def _ask_after_rest(engine: Engine) -> None:
    """A connection that rested is asked whether it is still one; if not, it and all others are made anew."""

    @event.listens_for(engine, "checkin")
    def rest(connection: Any, record: Any) -> None:
        record.info["rests_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ask(connection: Any, record: Any, proxy: Any) -> None:
        rests_since = record.info.get("rests_since")
        if rests_since is None or time.monotonic() - rests_since < ASKED_AFTER_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg2.Error as error:
            raise sa.exc.InvalidatePoolError from error


def _tame_sqlite(engine: Engine) -> None:
    """Reads without a BEGIN, writes in BEGIN IMMEDIATE: with a deferred BEGIN, eight writers who read before they
    write get "database is locked" most of the time; with this they queue up."""

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}", "synchronous=NORMAL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "before_cursor_execute")
    def begin(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if cursor.connection.in_transaction:
            return
        compiled = getattr(context, "compiled", None)
        locks = getattr(getattr(compiled, "statement", None), "_for_update_arg", None) is not None
        if locks or not READ_ONLY.match(statement):
            cursor.connection.begin_writing()


@contextlib.contextmanager
def _one_at_a_time(app: Flask) -> Iterator[None]:
    """Of several processes that start at once, one migrates and the others wait for it."""
    engine = db.engine
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            # Another's migration may take longer than a request may wait. Never back to the pool with that.
            connection.detach()
            connection.execute(sa.text("SET statement_timeout = 0"))
            connection.execute(sa.text("SET lock_timeout = 0"))
            connection.execute(sa.text("SELECT pg_advisory_lock(:id)"), {"id": MIGRATION_LOCK_ID})
            connection.commit()
            try:
                yield
            finally:
                connection.execute(sa.text("SELECT pg_advisory_unlock(:id)"), {"id": MIGRATION_LOCK_ID})
                connection.commit()
    else:
        path = engine.url.database or ""
        if path in IN_MEMORY:
            yield
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(f"{path}.migrating", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def bring_up_to_date(app: Flask) -> None:
    """Run the migrations that this database has not seen yet."""
    with app.app_context(), _one_at_a_time(app):
        flask_migrate.upgrade()
        db.session.remove()
