"""Tells the workers at once which printers' queues may look different now.

In this process by a call after the commit, between processes by PostgreSQL's NOTIFY in the transaction itself, where it
concerns a printer that none of ours has. A ring may be lost, and nothing but speed depends on it: the workers sweep as
well.
"""

from __future__ import annotations

import contextlib
import re
import select
import threading
from collections.abc import Callable, Iterable
from typing import Any

import psycopg2
import sqlalchemy as sa
import structlog
from flask import Flask, current_app
from sqlalchemy.orm import ORMExecuteState, Session

from models import (
    BambuMaterial,
    Order,
    Printer,
    PrinterCommand,
    PrinterConnection,
    PrinterGate,
    ScheduledPrint,
    StartIntent,
    db,
)

log = structlog.get_logger()

Rung = frozenset[int]
"""Ids of printers. Besides them SWEEP: some printer, compare what is kept of each; ALL: look at each of them."""
SWEEP, ALL = -1, -2

OF_ONE_PRINTER = (BambuMaterial, PrinterCommand, PrinterConnection, ScheduledPrint, StartIntent)
# Changed by statements that name no object; those on other tables are the worker's own steps.
WATCHED_TABLES = {"scheduled_prints", "bambu_materials", "printers"}
# What the worker itself writes with every report changes nothing of what may start.
UNMOVING = {"waiting_reason", "progress_percent"}
NOTIFY = sa.text("SELECT pg_notify(:channel, :payload)")
CHANNEL = "farm_bell"
LONGEST_PAYLOAD = 7000
RECONNECT_SECONDS = 2.0
PRINTER_ID = re.compile(r"-?[0-9]{1,10}", re.ASCII)


class Bell:
    """One for each app. Listeners are called in the thread that committed, and should only put things into a queue."""

    def __init__(self) -> None:
        self._listeners: dict[Callable[[Rung], None], Callable[[], Rung]] = {}

    def listen(self, on_ring: Callable[[Rung], None], *, held: Callable[[], Rung] = frozenset) -> None:
        """`held`: the printers that nobody else has, asked in any thread; of these no other process need hear."""
        self._listeners[on_ring] = held

    def stop_listening(self, on_ring: Callable[[Rung], None]) -> None:
        self._listeners.pop(on_ring, None)

    def held(self) -> Rung:
        return frozenset().union(*(held() for held in list(self._listeners.values())))

    def ring(self, printer_ids: Rung) -> None:
        for on_ring in list(self._listeners):
            on_ring(printer_ids)


def hang_bell(app: Flask) -> Bell:
    """Once for each app, in `create_app`."""
    bell = app.extensions["bell"] = Bell()
    for name, handler in HANDLERS.items():
        if not sa.event.contains(db.session, name, handler):
            sa.event.listen(db.session, name, handler)
    return bell


def _note(session: Session, printer_id: int) -> None:
    session.info.setdefault("rung", set()).add(printer_id)


def _after_flush(session: Session, context: Any) -> None:
    for changed in (*session.new, *session.dirty, *session.deleted):
        if isinstance(changed, Printer):
            _note(session, changed.id)
        elif isinstance(changed, OF_ONE_PRINTER):
            if changed in session.dirty and not _moves_something(changed):
                continue
            _note(session, changed.printer_id)
        elif isinstance(changed, PrinterGate):
            _note(session, SWEEP)
        elif isinstance(changed, Order) and _has_changed(changed, "status"):
            # A cancelled order holds its prints back, on whatever printer they wait.
            _note(session, ALL)


def _has_changed(changed: object, name: str) -> bool:
    state: Any = sa.inspect(changed)
    return bool(state.attrs[name].history.deleted)


def _moves_something(changed: object) -> bool:
    state: Any = sa.inspect(changed)
    # Of all its columns only those that were set are compared.
    return any(state.attrs[key].history.has_changes() for key in state.committed_state.keys() - UNMOVING)


def _on_statement(statement: ORMExecuteState) -> None:
    """Statements that pass the unit of work by, such as a conditional UPDATE."""
    table = getattr(getattr(statement.statement, "table", None), "name", None)
    is_write = statement.is_insert or statement.is_update or statement.is_delete
    if is_write and table in WATCHED_TABLES:
        _note(statement.session, SWEEP)


def _before_commit(session: Session) -> None:
    session.flush()
    rung = session.info.get("rung")
    if not rung or db.engine.dialect.name != "postgresql":
        return
    bell: Bell | None = current_app.extensions.get("bell")
    # A NOTIFY is one more statement and makes the commit dearer, and whoever waits for a webhook waits for both.
    others = rung - bell.held() if bell is not None else rung
    if others:
        payload = ",".join(map(str, sorted(others)))
        session.connection().execute(
            NOTIFY, {"channel": CHANNEL, "payload": payload if len(payload) <= LONGEST_PAYLOAD else str(ALL)}
        )


def _after_commit(session: Session) -> None:
    if session.in_nested_transaction():
        # Of a savepoint alone: nothing is written down yet.
        return
    rung = session.info.pop("rung", None)
    bell: Bell | None = current_app.extensions.get("bell")
    if rung and bell is not None:
        bell.ring(frozenset(rung))


def _after_rollback(session: Session) -> None:
    session.info.pop("rung", None)


HANDLERS: dict[str, Callable[..., None]] = {
    "after_flush": _after_flush,
    "do_orm_execute": _on_statement,
    "before_commit": _before_commit,
    "after_commit": _after_commit,
    "after_rollback": _after_rollback,
}


class NotifyListener:
    """Hears the rings of other processes, in a thread of its own. `url` is that of a PostgreSQL database."""

    def __init__(self, url: sa.URL, on_ring: Callable[[Rung], None]) -> None:
        self._dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._on_ring = on_ring
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bell", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                connection = psycopg2.connect(self._dsn)
                with contextlib.closing(connection):
                    connection.set_session(autocommit=True)
                    with connection.cursor() as cursor:
                        cursor.execute(f"LISTEN {CHANNEL}")
                    # Whatever was rung while nobody listened.
                    self._on_ring(frozenset({ALL}))
                    self._hear(connection)
            except psycopg2.Error as error:
                log.warning("bell_lost", reason=type(error).__name__)
                self._closed.wait(RECONNECT_SECONDS)

    def _hear(self, connection: Any) -> None:
        while not self._closed.is_set():
            if not select.select([connection], [], [], 0.5)[0]:
                continue
            connection.poll()
            payloads = [notify.payload for notify in connection.notifies]
            connection.notifies.clear()
            if payloads:
                self._on_ring(_read(payloads))


def _read(payloads: Iterable[str]) -> Rung:
    """Whoever may connect may notify: anything odd means that each printer is looked at."""
    words = ",".join(payloads).split(",")
    return frozenset(map(int, words)) if all(PRINTER_ID.fullmatch(word) for word in words) else frozenset({ALL})
