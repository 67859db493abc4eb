"""The process that holds printers and is measured: `python -m bench.holding links|worker <count> <port> <folder>`.

`links` holds connections whose listeners do nothing; `worker` is the product's own, with a database in the folder.
Prints "begun" when the time that counts begins, and then one line of JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import structlog
from flask import Flask

from app import create_app, utc_now
from bambu_client import Heard, LinkStatus, PrinterAddress, PrinterLink
from bench.replayer import age_seconds, serials
from models import ConnectionType, Printer, PrinterConnection, db
from settings import Settings
from worker import Worker

WARM_SECONDS, SECONDS = 3.0, 8.0
PATIENCE_SECONDS = 60.0
ACCESS_CODE = "12345678"


@contextmanager
def links(count: int, port: int, folder: Path, delays: list[float]) -> Iterator[Callable[[], bool]]:
    """Connections alone; gives whether all are made."""

    def hear(heard: Heard) -> None:
        if heard.after.layers_printed is not None:
            delays.append(age_seconds(heard.after.layers_printed))

    held = [
        PrinterLink(
            PrinterAddress("127.0.0.1", serial, ACCESS_CODE, mqtt_port=port, ca_file=str(folder / "ca.pem")),
            on_heard=hear,
            on_answer=lambda answer: None,
            on_link=lambda status, reason: None,
            clock=utc_now,
        )
        for serial in serials(count)
    ]
    for link in held:
        link.open()
    yield lambda: all(link.status is LinkStatus.connected for link in held)


@contextmanager
def worker(count: int, port: int, folder: Path) -> Iterator[Callable[[], bool]]:
    """The whole worker over a fresh database."""
    settings = Settings.from_environment(
        {
            "FLASK_ENV": "testing", "DATA_DIR": str(folder), "AUTO_DB_CREATE": "1", "DISCOVERY_PORT": "0",
            "PASSWORD_HASH_TIME_COST": "1", "PASSWORD_HASH_MEMORY_KIB": "8", "BAMBU_CA_FILE": str(folder / "ca.pem"),
        }
    )  # fmt: skip
    app = create_app(settings)
    fill(app, count, port)
    running = Worker(app)
    running.start()
    asked = "SELECT count(*) FROM printer_connections WHERE connection_status = 'connected' AND snapshot IS NOT NULL"
    try:
        with closing(sqlite3.connect(folder / "farm.sqlite3")) as connection:
            yield lambda: connection.execute(asked).fetchone() == (count,)
    finally:
        running.stop()


def fill(app: Flask, count: int, port: int) -> None:
    """One account with so many printers, each with a connection."""
    answer = app.test_client().post(
        "/api/auth/register", json={"email": "bench@example.com", "password": "kein-leichtes-wort"}
    )
    user_id, now, vault = answer.json["user"]["id"], utc_now(), app.extensions["parts"].vault
    with app.app_context():
        for serial in serials(count):
            printer = Printer(user_id=user_id, name=serial, created_at=now, updated_at=now)
            db.session.add(printer)
            db.session.flush()
            connection = PrinterConnection(
                user_id=user_id, printer_id=printer.id, connection_type=ConnectionType.bambu_lan, host="127.0.0.1",
                port=port, serial_number=serial, created_at=now, updated_at=now,
            )  # fmt: skip
            connection.access_code_sealed = vault.seal(ACCESS_CODE, connection.secret_owner("access_code"))
            db.session.add(connection)
        db.session.commit()


def memory_mb() -> float:
    """What the process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def main() -> None:
    """See the module."""
    role, count, port, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    delays: list[float] = []
    holding = links(count, port, folder, delays) if role == "links" else worker(count, port, folder)
    with holding as all_are_held:
        until = time.monotonic() + PATIENCE_SECONDS
        while not all_are_held():
            assert time.monotonic() < until, "not all printers could be connected to"
            time.sleep(0.1)
        time.sleep(WARM_SECONDS)
        delays.clear()
        print("begun", flush=True)
        begun, before = time.monotonic(), os.times()
        time.sleep(SECONDS)
        after, seconds = os.times(), time.monotonic() - begun
        spent = after.user + after.system - before.user - before.system
        told = {"cpu_percent": spent / seconds * 100, "memory_mb": memory_mb(), "delays": delays}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
