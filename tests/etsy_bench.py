"""A shop at a simulated Etsy without a login through the API, for tests of what lies below it. A plugin: the fixtures
here are every test's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import sqlalchemy as sa
from flask import Flask

from etsy_login import begin_login, connect_shop, look_up_shop, take_login
from etsy_sync import SyncResult, sync_shop
from etsy_tokens import EtsyAccess
from models import Shop, db
from simulator.etsy import ReceiptLine, SimulatedEtsy, make_receipt
from tests import etsy_contract
from tests.apps import another_app
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm

KEYSTRING, SHARED_SECRET = "kkkkeystring0123456789", "sssecret0123"
ROOT = Path(__file__).resolve().parents[1]
YESTERDAY = BASE_TIME - timedelta(days=1)


def settings_of(etsy: SimulatedEtsy) -> dict[str, str]:
    return {
        "ETSY_CLIENT_ID": KEYSTRING,
        "ETSY_SHARED_SECRET": SHARED_SECRET,
        "ETSY_REDIRECT_URI": "https://farm.example.com/back",
        "PUBLIC_URL": "https://farm.example.com",
        "ETSY_BASE_URL": etsy.base_url,
        "ETSY_AUTHORIZE_URL": etsy.authorize_url,
    }


@pytest.fixture
def etsy(clock: Clock) -> Iterator[SimulatedEtsy]:
    """Etsy on the test's clock. In the end, everything it was asked must be what Etsy's own document knows."""
    with SimulatedEtsy(KEYSTRING, SHARED_SECRET, clock=clock) as made:
        yield made
        etsy_contract.require(made.requests)


@pytest.fixture
def shop_app(
    app: Flask, session_database_url: str, tmp_path: Path, clock: Clock, etsy: SimulatedEtsy
) -> Iterator[Flask]:
    """The database of `app` under an app that knows this Etsy."""
    with another_app(session_database_url, tmp_path, clock, **settings_of(etsy)) as made:
        yield made


@pytest.fixture
def seller(shop_app: Flask) -> Farm:
    return Farm(shop_app, "seller@example.com")


@pytest.fixture
def shop_id(shop_app: Flask, seller: Farm) -> int:
    """The seller's shop, connected."""
    return connect(shop_app, seller.user["id"])


def access_of(app: Flask, sleep: Callable[[float], None] | None = None) -> EtsyAccess:
    access: EtsyAccess = app.extensions["parts"].etsy_access()
    return replace(access, sleep=sleep) if sleep else access


def hurry(app: Flask) -> None:
    """Let this app wait for nothing before it asks Etsy again."""
    app.extensions["parts"] = replace(app.extensions["parts"], sleep=lambda seconds: None)


def landed(auth_url: str) -> str:
    """The address where the browser stands after the owner has said yes at Etsy."""
    return requests.get(auth_url, allow_redirects=False, timeout=5).headers["Location"]


def consent(auth_url: str) -> dict[str, str]:
    """Code and state of that address."""
    return {name: values[0] for name, values in parse_qs(urlsplit(landed(auth_url)).query).items()}


def connect(app: Flask, user_id: int, now: datetime = BASE_TIME) -> int:
    """The shop of the simulated Etsy, connected to an account; its id."""
    access = access_of(app)
    client = access.client()
    assert client is not None
    with app.app_context():
        state, url = begin_login(client, access.vault, user_id=user_id, now=now)
        db.session.commit()
        taken = take_login(state, access.vault, now=now)
        assert taken is not None
        found = look_up_shop(client, consent(url)["code"], taken.verifier)
        connect_shop(found, access.vault, user_id=user_id, now=now)
        db.session.commit()
        query = sa.select(Shop.id).where(Shop.etsy_shop_id == found.etsy_shop_id)
        return int(db.session.execute(query).scalar_one())


def sync(app: Flask, shop_id: int, sleep: Callable[[float], None] | None = None) -> SyncResult:
    with app.app_context():
        return sync_shop(shop_id, access_of(app, sleep))


def shop_row(app: Flask, shop_id: int) -> Shop:
    with app.app_context():
        shop = db.session.get_one(Shop, shop_id)
        db.session.refresh(shop)
        db.session.expunge(shop)
        return shop


def add(etsy: SimulatedEtsy, receipt_id: int, *lines: ReceiptLine, **facts: Any) -> None:
    facts = {"ordered_at": YESTERDAY, **facts}
    etsy.add_receipt(make_receipt(receipt_id=receipt_id, lines=list(lines) or [ReceiptLine("Vase")], **facts))


def calls_to(etsy: SimulatedEtsy, end: str) -> int:
    return sum(request.path.endswith(end) for request in etsy.requests)


def rows(app: Flask, model: type[Any]) -> list[tuple[Any, ...]]:
    """A table as it stands, in the order of its ids."""
    with app.app_context():
        return [tuple(row) for row in db.session.execute(sa.select(model.__table__).order_by(model.id))]


@contextmanager
def process(
    app: Flask, url: str, folder: Path, act: str, shop_id: int, now: datetime
) -> Iterator[subprocess.Popen[str]]:
    settings = app.extensions["parts"].settings
    environment = {
        "PATH": os.environ["PATH"],
        "FLASK_ENV": "testing",
        "DATABASE_URL": url,
        "DATA_DIR": str(folder),
        "ETSY_CLIENT_ID": KEYSTRING,
        "ETSY_SHARED_SECRET": SHARED_SECRET,
        "ETSY_BASE_URL": settings.etsy_base_url,
    }
    command = [sys.executable, "-m", "tests.etsy_process", act, str(shop_id), now.isoformat()]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as begun:
        assert begun.stdout is not None
        assert begun.stdout.readline() == "ready\n"
        yield begun
        begun.kill()


def go(begun: subprocess.Popen[str]) -> None:
    assert begun.stdin is not None
    begun.stdin.write("go\n")
    begun.stdin.flush()
