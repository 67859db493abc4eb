"""A shop with 10,000 orders, brought in from a simulated Etsy over HTTP; and the syncs after it, with nothing new."""

from __future__ import annotations

import resource
import tempfile
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event

from app import create_app
from etsy_login import begin_login, connect_shop, look_up_shop, take_login
from etsy_sync import SyncResult, sync_shop
from models import Customer, Order, OrderItem, Shop, User, db
from settings import Settings
from simulator.etsy import ReceiptLine, SimulatedEtsy, make_receipt

ORDERS, LINES, BUYERS = 10_000, 2, 4_000
NOW = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


def main() -> None:
    print(f"\nan Etsy shop with {ORDERS:,} orders of {LINES} lines, {BUYERS:,} buyers")
    clock = Clock()
    with (
        tempfile.TemporaryDirectory(prefix="farm-bench-") as folder,
        SimulatedEtsy("keystring", "secret", clock=clock) as etsy,
    ):
        etsy.remaining_today = etsy.limit_per_day
        for number in range(1, ORDERS + 1):
            lines = [ReceiptLine(f"Thing {line}", f"SKU-{number % 50}-{line}") for line in range(LINES)]
            at = NOW - timedelta(minutes=ORDERS - number + 20)
            etsy.add_receipt(
                make_receipt(receipt_id=number, lines=lines, ordered_at=at, buyer_user_id=number % BUYERS + 1)
            )
        app = _app(folder, etsy, clock)
        shop_id = _connect(app, clock.now)
        _measure("first sync", app, shop_id)
        clock.now += timedelta(minutes=5)
        _measure("second sync, nothing new", app, shop_id)
        clock.now += timedelta(minutes=5)
        for number in range(100):
            etsy.change_receipt(ORDERS - number, message_from_buyer="Please hurry")
        _measure("100 orders changed", app, shop_id)
        print(f"most memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def _app(folder: str, etsy: SimulatedEtsy, clock: Clock) -> Flask:
    settings = Settings.from_environment(
        {
            "FLASK_ENV": "testing", "DATA_DIR": folder, "AUTO_DB_CREATE": "1", "ETSY_CLIENT_ID": "keystring",
            "ETSY_SHARED_SECRET": "secret", "ETSY_REDIRECT_URI": "https://farm.example.com/back",
            "ETSY_BASE_URL": etsy.base_url, "ETSY_AUTHORIZE_URL": etsy.authorize_url,
        }
    )  # fmt: skip
    return create_app(settings, clock=clock)


def _connect(app: Flask, now: datetime) -> int:
    access = app.extensions["parts"].etsy_access()
    client = access.client()
    with app.app_context():
        user = User(username="bench", created_at=now)
        db.session.add(user)
        db.session.flush()
        state, url = begin_login(client, access.vault, user_id=user.id, now=now)
        location = requests.get(url, allow_redirects=False, timeout=5).headers["Location"]
        taken = take_login(state, access.vault, now=now)
        assert taken is not None
        found = look_up_shop(client, parse_qs(urlsplit(location).query)["code"][0], taken.verifier)
        connect_shop(found, access.vault, user_id=user.id, now=now)
        db.session.commit()
        return int(db.session.execute(sa.select(Shop.id)).scalar_one())


def _measure(name: str, app: Flask, shop_id: int) -> SyncResult:
    statements = 0

    def count(*_: Any) -> None:
        nonlocal statements
        statements += 1

    with app.app_context():
        event.listen(db.engine, "before_cursor_execute", count)
        begun, cpu = time.perf_counter(), time.process_time()
        result = sync_shop(shop_id, app.extensions["parts"].etsy_access())
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        event.remove(db.engine, "before_cursor_execute", count)
        rows = [
            db.session.execute(sa.select(sa.func.count()).select_from(model)).scalar_one()
            for model in (Order, OrderItem, Customer)
        ]
    print(
        f"{name:<26} {result.requests:>4} requests  {seconds:>6.2f} s ({cpu:.2f} s CPU with Etsy's own)  "
        f"{statements:>5} statements  +{result.created:,} ~{result.updated:,}  "
        f"rows: {rows[0]:,} orders, {rows[1]:,} lines, {rows[2]:,} customers"
    )
    return result


if __name__ == "__main__":
    main()
