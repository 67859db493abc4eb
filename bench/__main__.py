"""`make bench`: prints the numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from werkzeug.test import EnvironBuilder

from app import create_app, utc_now
from bench import deliveries, etsy_sync, latency, live, printers, starts
from bench.floor import bare_app, floor_app
from bench.measure import compare
from models import Order, OrderItem, Printer, PrintStatus, ScheduledPrint, db
from settings import Settings

PRINTERS, PRINTS_A_PRINTER, LINES = 50, 200, 20
BEGIN = datetime(2026, 11, 21, tzinfo=UTC)


def call(app: Flask, method: str, path: str, token: str = "", body: bytes = b"") -> Callable[[], bytes]:
    """The WSGI call itself, without a client's own cost."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if body:
        headers["Content-Type"] = "application/json"

    def run() -> bytes:
        environ = EnvironBuilder(path=path, method=method, headers=headers, data=body or None).get_environ()
        statuses: list[str] = []

        def start_response(status: str, answered: Any, exc_info: Any = None) -> Any:
            statuses.append(status)

        chunks: Iterable[bytes] = app.wsgi_app(environ, start_response)
        answer = b"".join(chunks)
        close = getattr(chunks, "close", None)
        if close:
            close()
        assert statuses[0].startswith("2"), (statuses, answer)
        return answer

    return run


def fill(app: Flask) -> str:
    """10,000 waiting prints over 50 printers of one account; answers its token."""
    answer = app.test_client().post(
        "/api/auth/register", json={"email": "bench@example.com", "password": "kein-leichtes-wort"}
    )
    user_id = answer.json["user"]["id"]
    with app.app_context():
        db.session.execute(
            sa.insert(Printer),
            [
                {"user_id": user_id, "name": f"Printer {n}", "created_at": BEGIN, "updated_at": BEGIN}
                for n in range(PRINTERS)
            ],
        )
        db.session.execute(
            sa.insert(ScheduledPrint),
            [
                {
                    "user_id": user_id, "printer_id": 1 + n % PRINTERS, "job_name": f"Order #{n} - Vase",
                    "file_name": "vase.gcode.3mf", "status": PrintStatus.queued, "estimated_duration_minutes": 120,
                    "estimated_grams": 12, "material_type": "PLA", "material_color": "#112233", "material_slot": 1,
                    "nozzle_temp": 220, "bed_temp": 60, "print_speed": 50, "priority": n % 10, "notes": "Quantity: 1",
                    "scheduled_start": BEGIN if n % 2 else None, "created_at": BEGIN, "updated_at": BEGIN,
                }
                for n in range(PRINTERS * PRINTS_A_PRINTER)
            ],
        )  # fmt: skip
        db.session.commit()
    return str(answer.json["token"])


def add_orders(app: Flask, count: int) -> list[int]:
    with app.app_context():
        ids = []
        for number in range(count):
            order = Order(
                user_id=1, buyer_name="Ada", status="paid", currency="USD", ordered_at=BEGIN, created_at=BEGIN,
                updated_at=BEGIN,
                items=[
                    OrderItem(user_id=1, title=f"Thing {line}", quantity=1, currency="USD", options={})
                    for line in range(LINES)
                ],
            )  # fmt: skip
            db.session.add(order)
            if number % 50 == 0:
                db.session.flush()
            ids.append(order)
        db.session.commit()
        return [order.id for order in ids]


def in_turn(calls: list[Callable[[], bytes]]) -> Callable[[], bytes]:
    """Each call once: an order is scheduled only once."""
    waiting = iter(calls)
    return lambda: next(waiting)()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
        settings = Settings.from_environment(
            {
                "FLASK_ENV": "testing", "DATA_DIR": folder, "AUTO_DB_CREATE": "1",
                "PASSWORD_HASH_TIME_COST": "1", "PASSWORD_HASH_MEMORY_KIB": "8",
            }
        )  # fmt: skip
        app = create_app(settings)
        token = fill(app)
        floor = floor_app(
            f"sqlite:///{Path(folder) / 'farm.sqlite3'}", settings.jwt_secret_key.get_secret_value(), utc_now
        )
        orders = add_orders(app, 600)
        body = b'{"printer_id": 1}'
        print(f"{'CPU time a call':<42} {'ours':>11} {'floor':>11}   ratio")
        results = [
            compare(
                "queue of one printer, 200 rows",
                call(app, "GET", "/api/bambu/scheduled-prints/7/queue", token),
                call(floor, "GET", "/queue/7", token),
                goal=1.5,
                repeat=20,
            ),
            compare(
                f"schedule-prints, {LINES} lines",
                in_turn([call(app, "POST", f"/api/orders/{n}/schedule-prints", token, body) for n in orders[:300]]),
                in_turn([call(floor, "POST", f"/schedule/{n}", token, body) for n in orders[300:]]),
                goal=3.0,
                repeat=10,
            ),
            compare(
                "health, to a bare route behind the same hooks",
                call(app, "GET", "/api/health"),
                call(bare_app(app), "GET", "/api/health"),
                goal=1.3,
                repeat=300,
            ),
        ]
        for result in results:
            print(result.line())
        hooks = compare(
            "hooks alone",
            call(bare_app(app), "GET", "/api/health"),
            call(bare_app(), "GET", "/api/health"),
            goal=9,
            repeat=300,
        )
        print(f"the hooks' own cost: {(hooks.ours_ms - hooks.floor_ms) * 1000:.0f} µs a request")
    printers.main()
    starts.main()
    latency.main()
    etsy_sync.main()
    deliveries.main()
    live.main()


if __name__ == "__main__":
    main()
