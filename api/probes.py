"""Is it alive, is it ready, what does it count: `/api/health`, `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Response
from marshmallow import fields

from api.fields import Body
from api.lists import json_response
from api.reading import Room
from errors import Unavailable
from models import Delivery, PrinterConnection, ScheduledPrint, db

blueprint = Room("probes", __name__, description="For monitoring")

HEALTHY = b'{"status":"healthy"}'


class Health(Body):
    status = fields.String(required=True)


@blueprint.get("/api/health")
@blueprint.response(200, Health)
def get_health() -> Response:
    """The process answers."""
    return Response(HEALTHY, mimetype="application/json")


@blueprint.get("/livez")
@blueprint.response(200, Health)
def get_liveness() -> Response:
    """The process answers."""
    return Response(HEALTHY, mimetype="application/json")


@blueprint.get("/readyz")
@blueprint.response(200, Health)
def get_readiness() -> Response:
    """The process answers and its database has the tables."""
    try:
        db.session.execute(sa.select(ScheduledPrint.id).limit(1))
    except sa.exc.SQLAlchemyError:
        raise Unavailable("The database is not ready.") from None
    return json_response({"status": "ready"})


@blueprint.get("/metrics")
@blueprint.response(200, content_type="text/plain", schema={"type": "string"})
def get_metrics() -> Response:
    """Counts over the whole installation in Prometheus' text format; nothing of any single user."""
    lines: list[str] = []
    for name, help_text, column in (
        ("farm_prints", "Prints by status", ScheduledPrint.status),
        ("farm_printer_connections", "Printer connections by status", PrinterConnection.connection_status),
        ("farm_deliveries", "Notification deliveries by status", Delivery.status),
    ):
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
        query = sa.select(column, sa.func.count()).group_by(column).order_by(column)
        lines += [f'{name}{{status="{word.value}"}} {count}' for word, count in db.session.execute(query)]
    return Response("\n".join(lines) + "\n", mimetype="text/plain")
