"""Apps beside the one of `conftest`: with other settings over the same database, or at work on one of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from flask import Flask

from app import create_app
from models import db
from settings import Settings
from tests.conftest import Clock, OutsideClient, settings_for
from worker import Worker


@contextmanager
def another_app(database_url: str, folder: Path, clock: Clock, **settings: str) -> Iterator[Flask]:
    """The settings are the environment's, in capitals; `folder` holds its secrets and files."""
    app = create_app(settings_for(database_url, folder, **settings), clock=clock)
    app.test_client_class = OutsideClient
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@contextmanager
def working_app(settings: Settings, clock: Callable[[], datetime]) -> Iterator[Flask]:
    """Over an empty database, its tables made, with a worker that follows printers."""
    app = create_app(settings, clock=clock)
    app.test_client_class = OutsideClient
    with app.app_context():
        db.create_all()
    worker = Worker(app)
    worker.start()
    try:
        yield app
    finally:
        worker.stop()
        with app.app_context():
            db.session.remove()
            db.engine.dispose()
