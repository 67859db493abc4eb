"""Logging in and being logged in, as several tests ask for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from app import create_app
from models import db
from tests.conftest import OutsideClient, settings_for
from tests.farm_builder import PASSWORD

NEW = {"email": "new@example.com", "password": PASSWORD}
THREADS = 8


def post(app: Flask, path: str, body: dict[str, Any], **more: Any) -> TestResponse:
    return app.test_client().post(path, json=body, **more)


def refresh(app: Flask, token: str) -> TestResponse:
    return post(app, "/api/auth/refresh", {"refresh_token": token})


def is_open(app: Flask, token: str) -> bool:
    answer = app.test_client().get("/api/auth/user", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code in (200, 401)
    return answer.status_code == 200


def at_once(acts: list[Callable[[], TestResponse]]) -> list[TestResponse]:
    """What the acts answer when all of them begin in the same moment."""
    ready = threading.Barrier(len(acts))

    def run(act: Callable[[], TestResponse]) -> TestResponse:
        ready.wait()
        return act()

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts))


@contextmanager
def sibling(app: Flask, clock: Callable[[], Any] | None = None, **changes: str) -> Iterator[Flask]:
    """Another app over the same database with the same secrets, set otherwise."""
    settings = settings_for(app.config["SQLALCHEMY_DATABASE_URI"], app.extensions["parts"].settings.data_dir, **changes)
    made = create_app(settings, clock=clock or app.extensions["clock"])
    made.test_client_class = OutsideClient
    yield made
    with made.app_context():
        db.session.remove()
        db.engine.dispose()
