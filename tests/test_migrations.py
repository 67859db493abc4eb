"""The migrations: what they make is what the models say; up, down and up again; with rows; many processes at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask_migrate
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import Flask

import database
from app import create_app
from models import Delivery, DeliveryAttempt, PrintEvent, db
from notifications import fan_out
from tests.conftest import Clock, OutsideClient, settings_for
from tests.farm_builder import Farm
from tests.rows import LAN

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bare_app(database_url: str, tmp_path: Path, session_clock: Clock) -> Iterator[Flask]:
    """An app over a database without any table."""
    app = create_app(settings_for(database_url, tmp_path / "data"), clock=session_clock)
    app.test_client_class = OutsideClient
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


def migrate(app: Flask, *, to: str = "head", down: bool = False, folder: Path | None = None) -> None:
    directory = str(folder or database.MIGRATIONS)
    with app.app_context():
        if down:
            flask_migrate.downgrade(directory=directory, revision=to)
        else:
            flask_migrate.upgrade(directory=directory, revision=to)
        db.session.remove()


def revisions() -> list[str]:
    """From the oldest to the newest."""
    return [each.revision for each in ScriptDirectory(str(database.MIGRATIONS)).walk_revisions()][::-1]


def tables(app: Flask) -> set[str]:
    with app.app_context():
        return set(sa.inspect(db.engine).get_table_names())


def written(part: Any) -> str:
    return json.dumps(part, default=str, sort_keys=True)


def schema(app: Flask) -> dict[str, Any]:
    """What the database itself knows of its tables, each part in an order of its own."""
    with app.app_context():
        inspector = sa.inspect(db.engine)
        found: dict[str, Any] = {}
        for table in sorted(set(inspector.get_table_names()) - {"alembic_version"}):
            found[table] = {
                "columns": [
                    (each["name"], repr(each["type"]), each["nullable"], each["default"], each.get("autoincrement"))
                    for each in sorted(inspector.get_columns(table), key=lambda each: str(each["name"]))
                ],
                "primary key": inspector.get_pk_constraint(table),
                "foreign keys": sorted(map(written, inspector.get_foreign_keys(table))),
                "unique": sorted(map(written, inspector.get_unique_constraints(table))),
                "indexes": sorted(map(written, inspector.get_indexes(table))),
                "checks": sorted(map(written, inspector.get_check_constraints(table))),
            }
        return found


def fill(app: Flask) -> Farm:
    """A farm with a row in most tables."""
    farm = Farm(app, "seller@example.com")
    printer = farm.add_printer(**LAN)["id"]
    farm.put(f"/api/bambu/notifications/{printer}", {"webhook_url": "https://hooks.example.com/x"})
    farm.add_material(printer)
    file = farm.add_file()
    farm.add_profile("Vase", print_file_id=file["id"], filament_grams=12.345)
    order = farm.add_order({"title": "Vase", "quantity": 1, "price": 12.5})
    made = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer}).json["prints"][0]
    farm.move(made["id"], "started", "completed")
    return farm


def rows(app: Flask) -> dict[str, int]:
    with app.app_context(), db.engine.connect() as connection:
        return {
            name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for name, table in db.metadata.tables.items()
        }


# Models and migrations


def test_alembic_sees_no_difference_between_models_and_migrations(bare_app: Flask) -> None:
    migrate(bare_app)
    with bare_app.app_context(), db.engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True, "render_item": database.render_item}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), db.metadata) == []


def test_the_migrations_make_what_the_models_would_checks_and_all(bare_app: Flask) -> None:
    """`compare_metadata` does not look at CHECK constraints, so the database is asked itself."""
    migrate(bare_app)
    migrated = schema(bare_app)
    assert any(each["checks"] for each in migrated.values())
    with bare_app.app_context():
        db.metadata.drop_all(db.engine)
        db.create_all()
    made = schema(bare_app)
    assert set(migrated) == set(made) == set(db.metadata.tables)
    for table, parts in made.items():
        assert migrated[table] == parts, table


def test_every_constraint_and_index_has_a_name(bare_app: Flask) -> None:
    for table in db.metadata.tables.values():
        for each in (*table.constraints, *table.indexes):
            # A nameless one cannot be changed by a later migration on SQLite.
            assert each.name, (table.name, each)


# Up and down


def test_up_down_and_up_again(bare_app: Flask) -> None:
    migrate(bare_app)
    assert tables(bare_app) == {"alembic_version", *db.metadata.tables}
    before = schema(bare_app)
    migrate(bare_app, to="base", down=True)
    assert tables(bare_app) == {"alembic_version"}
    migrate(bare_app)
    assert schema(bare_app) == before


def test_each_step_down_and_up_again_comes_to_the_same(bare_app: Flask) -> None:
    migrate(bare_app)
    before = schema(bare_app)
    for revision in revisions()[:-1][::-1]:
        migrate(bare_app, to=revision, down=True)
        migrate(bare_app)
        assert schema(bare_app) == before


def test_down_and_up_again_with_rows_in_between(bare_app: Flask) -> None:
    migrate(bare_app)
    fill(bare_app)
    migrate(bare_app, to="base", down=True)
    assert tables(bare_app) == {"alembic_version"}
    migrate(bare_app)
    assert not any(rows(bare_app).values())
    fill(bare_app)


def test_events_of_no_printer_have_no_place_before_they_were_allowed(bare_app: Flask) -> None:
    """The way back takes them along, with what hangs on them, and nothing else."""
    migrate(bare_app)
    farm = fill(bare_app)
    before = rows(bare_app)
    with bare_app.app_context():
        now = bare_app.extensions["clock"]()
        event = PrintEvent(user_id=farm.user["id"], kind="shop.reconnect_needed", details={"shop": {}}, at=now)
        db.session.add(event)
        (mail,) = fan_out(event)
        db.session.flush()
        db.session.add(DeliveryAttempt(user_id=mail.user_id, delivery_id=mail.id, at=now, duration_ms=1, is_ok=True))
        db.session.execute(sa.update(Delivery).where(Delivery.id < mail.id).values(folded_into_id=mail.id))
        db.session.commit()
    migrate(bare_app, to="0005", down=True)
    assert rows(bare_app) == before
    with bare_app.app_context(), db.engine.connect() as connection:
        assert set(connection.execute(sa.text("SELECT folded_into_id FROM deliveries")).scalars()) == {None}
    migrate(bare_app)
    assert rows(bare_app) == before


def test_up_to_date_again_changes_nothing(bare_app: Flask) -> None:
    database.bring_up_to_date(bare_app)
    farm = fill(bare_app)
    before, prints = rows(bare_app), farm.get("/api/bambu/scheduled-prints").json
    database.bring_up_to_date(bare_app)
    assert (rows(bare_app), farm.get("/api/bambu/scheduled-prints").json) == (before, prints)


def test_an_app_brings_its_schema_up_to_date_when_told(database_url: str, tmp_path: Path, session_clock: Clock) -> None:
    app = create_app(settings_for(database_url, tmp_path, AUTO_DB_CREATE="1"), clock=session_clock)
    app.test_client_class = OutsideClient
    assert tables(app) == {"alembic_version", *db.metadata.tables}
    fill(app)
    with app.app_context():
        db.engine.dispose()


# Migrations to come


LATER = '''"""A later migration, for this test"""
import sqlalchemy as sa
from alembic import op
revision = "{revision}"
down_revision = "{before}"
branch_labels = depends_on = None


def upgrade() -> None:
    {upgrade}


def downgrade() -> None:
    {downgrade}
'''


@pytest.fixture
def later(tmp_path: Path) -> Any:
    """The migrations in a folder of their own, to which a test adds more."""
    folder = tmp_path / "migrations"
    shutil.copytree(database.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    newest = revisions()[-1]

    def add(revision: str, before: str | None = None, *, upgrade: str, downgrade: str = "pass") -> Path:
        text = LATER.format(revision=revision, before=before or newest, upgrade=upgrade, downgrade=downgrade)
        (folder / "versions" / f"{revision}.py").write_text(text)
        return folder

    return add


@pytest.mark.parametrize("table", ["users", "printers", "orders", "scheduled_prints", "bambu_materials"])
def test_a_later_migration_that_makes_a_table_anew_loses_no_row(bare_app: Flask, later: Any, table: str) -> None:
    """On SQLite a table is changed by making it anew; with foreign keys on, that would empty what refers to it."""
    migrate(bare_app)
    fill(bare_app)
    before = rows(bare_app)
    assert before[table]
    anew = '"always" if op.get_bind().dialect.name == "sqlite" else "never"'
    change = f'with op.batch_alter_table("{table}", recreate={anew}) as batch: '
    column = 'sa.Column("later", sa.Integer(), nullable=False, server_default="7")'
    folder = later(
        "later", upgrade=change + f"batch.add_column({column})", downgrade=change + 'batch.drop_column("later")'
    )
    migrate(bare_app, folder=folder)
    assert rows(bare_app) == before
    with bare_app.app_context(), db.engine.connect() as connection:
        assert set(connection.execute(sa.text(f"SELECT later FROM {table}")).scalars()) == {7}
    migrate(bare_app, to="-1", down=True, folder=folder)
    assert rows(bare_app) == before
    with bare_app.app_context():
        # No column more, and nothing else of the table lost.
        assert "later" not in {each["name"] for each in sa.inspect(db.engine).get_columns(table)}


def test_a_migration_that_breaks_off_leaves_nothing_of_itself(bare_app: Flask, later: Any) -> None:
    migrate(bare_app)
    fill(bare_app)
    before, kept = schema(bare_app), rows(bare_app)
    steps = 'op.create_table("half", sa.Column("id", sa.Integer())); op.execute("DELETE FROM deliveries")'
    folder = later("broken", upgrade=f'{steps}; raise RuntimeError("refused by the test")')
    with pytest.raises(SystemExit):
        migrate(bare_app, folder=folder)
    assert (schema(bare_app), rows(bare_app)) == (before, kept)
    assert_version(bare_app, revisions()[-1])


def test_a_migration_that_would_leave_a_row_without_what_it_refers_to_is_refused(bare_app: Flask, later: Any) -> None:
    migrate(bare_app)
    fill(bare_app)
    kept = rows(bare_app)
    folder = later("orphans", upgrade='op.execute("DELETE FROM scheduled_prints")')
    with pytest.raises((SystemExit, sa.exc.IntegrityError)):
        migrate(bare_app, folder=folder)
    assert rows(bare_app) == kept
    assert_version(bare_app, revisions()[-1])


def test_foreign_keys_hold_again_after_a_migration(bare_app: Flask) -> None:
    migrate(bare_app)
    with bare_app.app_context(), db.engine.connect() as connection, pytest.raises(sa.exc.IntegrityError):
        connection.execute(
            sa.text(
                "INSERT INTO token_families (id, user_id, refresh_jti, created_at, expires_at) "
                "VALUES ('x', 99, 'x', '2026-01-01', '2026-01-01')"
            )
        )


def assert_version(app: Flask, revision: str) -> None:
    with app.app_context(), db.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all() == [revision]


# Several at once


def test_of_several_processes_that_start_at_once_one_migrates_and_the_others_wait(
    bare_app: Flask, database_url: str, tmp_path: Path
) -> None:
    environ = {
        **os.environ,
        "FLASK_ENV": "testing",
        "DATABASE_URL": database_url,
        "DATA_DIR": str(tmp_path / "data"),
        "AUTO_DB_CREATE": "1",
    }
    command = [sys.executable, "-c", "from app import create_app; create_app()"]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(4)
    ]
    said = [each.communicate(timeout=60)[0] for each in running]
    assert [each.returncode for each in running] == [0] * 4, "\n".join(said)
    assert tables(bare_app) == {"alembic_version", *db.metadata.tables}
    assert_version(bare_app, revisions()[-1])


def test_whoever_waits_for_another_migration_waits_longer_than_a_request_would(bare_app: Flask) -> None:
    """Held up by a lock for a while, then through; and its patience does not stay on a pooled connection."""
    held, release, done = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with bare_app.app_context(), database._one_at_a_time(bare_app):
            held.set()
            release.wait(30)

    def wait() -> None:
        database.bring_up_to_date(bare_app)
        done.set()

    first, second = threading.Thread(target=hold), threading.Thread(target=wait)
    first.start()
    assert held.wait(10)
    second.start()
    time.sleep(0.3)
    assert (done.is_set(), tables(bare_app)) == (False, set())
    if database_url_is_postgresql(bare_app):
        assert somebody_waits_for_the_lock(bare_app)
    release.set()
    first.join(30)
    second.join(30)
    assert done.is_set()
    if database_url_is_postgresql(bare_app):
        with bare_app.app_context():
            for _ in range(3):
                with db.engine.connect() as connection:
                    assert connection.execute(sa.text("SHOW statement_timeout")).scalar_one() == "30s"
                    assert connection.execute(sa.text("SHOW lock_timeout")).scalar_one() == "10s"


def somebody_waits_for_the_lock(app: Flask) -> bool:
    query = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with app.app_context(), db.engine.connect() as connection:
            if connection.execute(query).scalar_one():
                return True
        time.sleep(0.02)
    return False


def database_url_is_postgresql(app: Flask) -> bool:
    with app.app_context():
        return db.engine.dialect.name == "postgresql"
