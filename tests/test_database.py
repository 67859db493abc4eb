"""How the database behaves under the app: many writers, foreign keys, exact values, times in UTC."""

from __future__ import annotations

import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite
from werkzeug.test import TestResponse

from columns import Cost, Grams, Money, Scaled, UtcDateTime
from database import ASKED_AFTER_SECONDS
from farm.gates import locked_gate
from models import BambuMaterial, LedgerEntry, Order, Printer, PrinterGate, ScheduledPrint, db
from tests.farm_builder import Farm

PRINTS = "/api/bambu/scheduled-prints"
WRITERS, ROUNDS = 8, 6


def is_sqlite(app: Flask) -> bool:
    with app.app_context():
        return db.engine.dialect.name == "sqlite"


# Many writers


def test_eight_writers_never_hear_that_the_database_is_locked(app: Flask, farm: Farm) -> None:
    """Everybody prints, books filament from one spool, corrects another, schedules orders and reads lists."""
    printer_id = farm.add_printer()["id"]
    spool = farm.add_material(printer_id, slot=0, weight_grams=100_000)
    corrected = [farm.add_material(printer_id, slot=slot)["id"] for slot in range(1, 8)]
    seen: list[tuple[str, int]] = []
    gate = threading.Barrier(WRITERS)

    def done(act: str, answer: TestResponse) -> TestResponse:
        seen.append((act, answer.status_code))
        # Whoever is refused ends here: waiting for locks all the way would take minutes.
        assert answer.status_code < 400, answer.text
        return answer

    def write(number: int) -> None:
        gate.wait()
        for turn in range(ROUNDS):
            body = {"printer_id": printer_id, "job_name": "x", "material_slot": 0}
            path = f"{PRINTS}/{done('add', farm.post(PRINTS, body)).json['id']}"
            done("release", farm.post(f"{path}/start"))
            done("begin", farm.put(path, {"status": "started"}))
            done("end", farm.put(path, {"status": "completed", "used_grams": 1.125}))
            material_id = corrected[number % 7]
            done("correct", farm.put(f"/api/bambu/materials/{material_id}", {"remaining_pct": 90 - turn}))
            lines = {"buyer_name": "A", "items": [{"title": "V", "quantity": 1}]}
            order = done("order", farm.post("/api/orders", lines)).json["id"]
            prints = done("schedule", farm.post(f"/api/orders/{order}/schedule-prints", {"printer_id": printer_id}))
            done("read", farm.get(f"{PRINTS}/{printer_id}/queue"))
            done("delete", farm.delete(f"{PRINTS}/{prints.json['prints'][0]['id']}"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert Counter(seen) == Counter(
        {
            ("add", 201): WRITERS * ROUNDS,
            ("release", 200): WRITERS * ROUNDS,
            ("begin", 200): WRITERS * ROUNDS,
            ("end", 200): WRITERS * ROUNDS,
            ("correct", 200): WRITERS * ROUNDS,
            ("order", 201): WRITERS * ROUNDS,
            ("schedule", 201): WRITERS * ROUNDS,
            ("read", 200): WRITERS * ROUNDS,
            ("delete", 200): WRITERS * ROUNDS,
        }
    )
    with farm.database() as session:
        left = session.get_one(BambuMaterial, spool["id"]).remaining_grams
        booked = session.execute(
            sa.select(sa.func.sum(LedgerEntry.delta_grams)).where(LedgerEntry.material_id == spool["id"])
        ).scalar_one()
    assert left == booked == 100_000 - WRITERS * ROUNDS * Decimal("1.125")


def test_a_read_before_a_write_waits_its_turn_and_loses_nothing(app: Flask, farm: Farm) -> None:
    """The trap of SQLite: with a plain BEGIN, whoever has read cannot go on to write after another has."""
    faults: list[Exception] = []

    def count_up() -> None:
        for _ in range(20):
            with app.app_context():
                try:
                    locked_gate("01P00A000000001").last_submission_id += 1
                    db.session.commit()
                except Exception as error:
                    faults.append(error)
                    raise

    threads = [threading.Thread(target=count_up) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    with farm.database() as session:
        assert session.execute(sa.select(PrinterGate.last_submission_id)).scalar_one() == 20 * WRITERS


def test_reading_holds_up_no_writer(app: Flask, farm: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    with app.app_context():
        assert db.session.get_one(Printer, printer_id).name == "Left"
        # Still in the reader's session, another one writes.
        answers: list[int] = []
        change = {"name": "Right"}
        writer = threading.Thread(
            target=lambda: answers.append(farm.put(f"/api/printers/{printer_id}", change).status_code)
        )
        writer.start()
        writer.join(10)
        assert answers == [200]
        db.session.rollback()
        assert db.session.get_one(Printer, printer_id).name == "Right"


# Settings of a connection


def test_a_connection_to_sqlite_is_tamed(app: Flask) -> None:
    if not is_sqlite(app):
        pytest.skip("of SQLite only")
    with app.app_context(), db.engine.connect() as first, db.engine.connect() as second:
        for connection in (first, second):
            found = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("foreign_keys", "journal_mode", "busy_timeout", "synchronous")
            }
            assert found == {"foreign_keys": 1, "journal_mode": "wal", "busy_timeout": 15_000, "synchronous": 1}


def test_a_connection_to_postgresql_has_its_limits(app: Flask) -> None:
    if is_sqlite(app):
        pytest.skip("of PostgreSQL only")
    with app.app_context(), db.engine.connect() as connection:
        found = {
            name: connection.execute(sa.text(f"SHOW {name}")).scalar_one()
            for name in ("statement_timeout", "lock_timeout", "timezone")
        }
    assert {name: value.lower() for name, value in found.items()} == {
        "statement_timeout": "30s",
        "lock_timeout": "10s",
        "timezone": "utc",
    }


def test_the_connection_that_was_used_last_is_used_first(app: Flask) -> None:
    with app.app_context():
        with db.engine.connect() as first, db.engine.connect() as second:
            last = first.connection.dbapi_connection
            second.close()
        for _ in range(3):
            with db.engine.connect() as again:
                assert again.connection.dbapi_connection is last


@pytest.mark.parametrize(("rested", "is_asked"), [(ASKED_AFTER_SECONDS / 2, False), (ASKED_AFTER_SECONDS, True)])
def test_a_connection_that_rested_is_asked_whether_it_still_is_one(app: Flask, rested: float, is_asked: bool) -> None:
    if is_sqlite(app):
        pytest.skip("of PostgreSQL only")
    with app.app_context(), db.engine.connect() as other:
        with db.engine.connect() as one:
            process_id, record = one.scalar(sa.func.pg_backend_pid()), one.connection.info
        other.execute(sa.select(sa.func.pg_terminate_backend(process_id, 5000))).one()
        record["rests_since"] = time.monotonic() - rested
        if is_asked:
            with db.engine.connect() as one:
                assert one.scalar(sa.func.pg_backend_pid()) != process_id
        else:
            with pytest.raises(sa.exc.OperationalError), db.engine.connect() as one:
                one.scalar(sa.func.pg_backend_pid())
        # Whoever found out, the next has a new one.
        with db.engine.connect() as one:
            assert one.scalar(sa.func.pg_backend_pid()) != process_id


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO token_families (id, user_id, refresh_jti, created_at, expires_at) "
        "VALUES ('x', 2000000000, 'x', '2026-01-01', '2026-01-01')",
        "UPDATE scheduled_prints SET printer_id = 2000000000",
        "UPDATE scheduled_prints SET order_id = 2000000000",
        "DELETE FROM printers",
        "DELETE FROM orders",
    ],
)
def test_foreign_keys_hold(farm: Farm, statement: str) -> None:
    order = farm.add_order()
    farm.add_print(farm.add_printer()["id"], order_id=order["id"])
    with farm.database() as session, pytest.raises(sa.exc.IntegrityError):
        session.execute(sa.text(statement))
        session.commit()


def test_a_users_rows_go_with_the_user(farm: Farm, stranger: Farm) -> None:
    farm.add_printer()
    stranger.add_printer()
    with farm.database() as session:
        session.execute(sa.text("DELETE FROM users WHERE id = :id"), {"id": farm.user["id"]})
        session.commit()
        assert session.execute(sa.select(Printer.user_id)).scalars().all() == [stranger.user["id"]]


# Exact values


DIALECTS = [sqlite.dialect(), postgresql.dialect()]


@pytest.mark.parametrize("kind", [Grams(), Money(), Cost()], ids=["grams", "money", "cost"])
@given(data=st.data())
def test_a_decimal_comes_back_as_it_went_in(kind: Scaled, data: Any) -> None:
    value = data.draw(st.decimals(-(10**7), 10**7, places=kind.places))
    for dialect in DIALECTS:
        stored = kind.process_bind_param(value, dialect)
        assert isinstance(stored, int)
        assert kind.process_result_value(stored, dialect) == value


def test_what_is_finer_than_its_column_is_rounded_half_up() -> None:
    stored = [
        Grams().process_bind_param(Decimal(each), DIALECTS[0]) for each in ("0.0004", "0.0005", "-0.0005", "1.2345")
    ]
    assert stored == [0, 1, -1, 1235]


def test_the_database_adds_up_grams_exactly(farm: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    for grams in [0.1] * 10:
        farm.add_print(printer_id, estimated_grams=grams)
    with farm.database() as session:
        total = session.execute(sa.select(sa.func.sum(ScheduledPrint.estimated_grams))).scalar_one()
    assert total == Decimal(1)


def test_money_is_kept_to_a_hundredth_of_a_cent(farm: Farm) -> None:
    order = farm.add_order({"title": "V", "quantity": 3, "price": 0.3333})
    with farm.database() as session:
        assert session.get_one(Order, order["id"]).total_amount == Decimal("0.9999")


# Times


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="naive"):
        UtcDateTime().process_bind_param(datetime(2026, 1, 1), DIALECTS[0])  # noqa: DTZ001


def test_a_time_is_kept_as_the_moment_that_it_is(farm: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    moment = datetime(2026, 10, 25, 2, 30, 0, 123456, tzinfo=timezone(timedelta(hours=14)))
    with farm.database() as session:
        session.execute(sa.update(Printer).where(Printer.id == printer_id).values(created_at=moment))
        session.commit()
        kept = session.execute(sa.select(Printer.created_at)).scalar_one()
    assert (kept, kept.tzinfo) == (moment, UTC)
    assert farm.get(f"/api/printers/{printer_id}").json["created_at"] == "2026-10-24T12:30:00.123456Z"
