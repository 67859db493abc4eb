"""The floor: the least that Flask, SQLAlchemy Core, an index and orjson can do for the same answers on the data."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import orjson
import sqlalchemy as sa
from flask import Flask, Response, request

PRINT_COLUMNS = (
    *("id", "printer_id", "order_id", "order_item_id", "job_name", "file_name", "print_file_id", "plate", "status"),
    *("scheduled_start", "estimated_duration_minutes", "material_type", "material_color", "material_slot"),
    *("nozzle_temp", "bed_temp", "print_speed", "priority", "notes", "waiting_reason", "started_at", "completed_at"),
    *(
        "failed_reason",
        "progress_percent",
        "estimated_grams",
        "used_grams",
        "material_cost",
        "batch_id",
        "units",
        "held_at",
        "overrides",
        "needs_look",
        "created_at",
        "updated_at",
    ),
)
DATETIMES = ("scheduled_start", "started_at", "completed_at", "held_at", "created_at", "updated_at")
NUMBERS = (
    *("id", "user_id", "printer_id", "order_id", "order_item_id", "print_file_id", "plate", "priority", "print_id"),
    *("batch_id", "units"),
)


def _table(name: str, columns: tuple[str, ...]) -> sa.Table:
    def kind(column: str) -> sa.types.TypeEngine[Any]:
        if column in DATETIMES or column == "at":
            return sa.DateTime()
        return sa.Integer() if column in NUMBERS or column.endswith(("_minutes", "_grams", "_temp")) else sa.Text()

    return sa.Table(
        name, sa.MetaData(), *(sa.Column(column, kind(column), primary_key=column == "id") for column in columns)
    )


PRINTS = _table("scheduled_prints", (*PRINT_COLUMNS, "user_id", "is_chained", "deleted_at"))
EVENTS = _table("print_events", ("id", "user_id", "printer_id", "print_id", "kind", "to_status", "details", "at"))


def bare_app(hooks: Flask | None = None) -> Flask:
    """Flask with one constant route; behind the hooks of another app when one is given."""
    app = Flask("bare")

    @app.get("/api/health")
    def health() -> Response:
        return Response(b'{"status":"healthy"}', mimetype="application/json")

    if hooks is not None:
        app.config.update(hooks.config)
        app.extensions.update(hooks.extensions)
        for funcs in hooks.before_request_funcs.values():
            for func in funcs:
                if func.__name__ != "guard":
                    app.before_request(func)
        for funcs_after in hooks.after_request_funcs.values():
            for func_after in funcs_after:
                app.after_request(func_after)
        for teardown in hooks.teardown_appcontext_funcs:
            app.teardown_appcontext(teardown)
    return app


def floor_app(url: str, key: str, now: Callable[[], datetime]) -> Flask:
    """The queue and schedule-prints, written with nothing in between."""
    engine = sa.create_engine(url)
    app = Flask("floor")
    queue = (
        sa.select(*(PRINTS.c[name] for name in PRINT_COLUMNS))
        .where(
            PRINTS.c.user_id == sa.bindparam("user_id"),
            PRINTS.c.printer_id == sa.bindparam("printer_id"),
            PRINTS.c.status.in_(("queued", "scheduled")),
            PRINTS.c.deleted_at.is_(None),
        )
        .order_by(
            PRINTS.c.priority.desc(), PRINTS.c.scheduled_start.is_not(None), PRINTS.c.scheduled_start, PRINTS.c.id
        )
        .limit(200)
    )

    def user_id() -> int:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        options = {"verify_exp": False, "verify_iat": False}
        return int(jwt.decode(token, key, ["HS256"], audience="access", options=options)["sub"])

    @app.get("/queue/<int:printer_id>")
    def get_queue(printer_id: int) -> Response:
        with engine.connect() as connection:
            rows = connection.execute(queue, {"user_id": user_id(), "printer_id": printer_id}).all()
        body = [dict(zip(PRINT_COLUMNS, row, strict=True)) for row in rows]
        return Response(orjson.dumps(body, option=orjson.OPT_NAIVE_UTC), mimetype="application/json")

    @app.post("/schedule/<int:order_id>")
    def schedule(order_id: int) -> Response:
        owner, data, at = user_id(), orjson.loads(request.get_data()), now().astimezone(UTC).replace(tzinfo=None)
        with engine.begin() as connection:
            lines = connection.execute(
                sa.text("SELECT id, title, quantity FROM order_items WHERE user_id = :u AND order_id = :o ORDER BY id"),
                {"u": owner, "o": order_id},
            ).all()
            rows = []
            for number, (item_id, title, quantity) in enumerate(lines):
                rows.append(
                    {
                        "user_id": owner, "printer_id": data["printer_id"], "order_id": order_id,
                        "order_item_id": item_id, "job_name": f"Order #{order_id} - {title}", "plate": 1,
                        "units": 1, "status": "queued", "is_chained": number > 0,
                        "scheduled_start": at + timedelta(minutes=135 * number) if number else None,
                        "estimated_duration_minutes": 120, "material_type": "PLA", "nozzle_temp": 200, "bed_temp": 60,
                        "print_speed": 50, "priority": max(1, 10 - number), "notes": f"Quantity: {quantity}",
                        "created_at": at, "updated_at": at,
                    }
                )  # fmt: skip
            made = connection.execute(
                sa.insert(PRINTS).returning(*(PRINTS.c[name] for name in PRINT_COLUMNS), sort_by_parameter_order=True),
                rows,
            ).all()
            connection.execute(
                sa.insert(EVENTS),
                [
                    {"user_id": owner, "printer_id": row.printer_id, "print_id": row.id, "kind": "print.created",
                     "to_status": "queued", "details": "{}", "at": at}
                    for row in made
                ],
            )  # fmt: skip
            connection.execute(
                sa.text("UPDATE orders SET production_status = 'queued' WHERE user_id = :u AND id = :o"),
                {"u": owner, "o": order_id},
            )
        body = {"prints": [dict(zip(PRINT_COLUMNS, row, strict=True)) for row in made]}
        return Response(orjson.dumps(body, option=orjson.OPT_NAIVE_UTC), status=201, mimetype="application/json")

    return app
