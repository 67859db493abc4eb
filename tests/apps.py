"""Another app over the database that a test uses already, with other settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flask import Flask

from app import create_app
from models import db
from tests.conftest import Clock, OutsideClient, settings_for


@contextmanager
def another_app(database_url: str, folder: Path, clock: Clock, **settings: str) -> Iterator[Flask]:
    """The settings are the environment's, in capitals; `folder` holds its secrets and files."""
    app = create_app(settings_for(database_url, folder, **settings), clock=clock)
    app.test_client_class = OutsideClient
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()
