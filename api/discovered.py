"""Printers that announce themselves in the network: `/api/printers/discovered`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Response
from marshmallow import fields

from api import context
from api.fields import Body, Moment
from api.lists import Columns, PageQuery, json_response, page
from api.reading import Room
from auth import current_user_id, mine
from bambu_discovery import ConnectMode
from farm.discovered import hint_about, shown_to
from models import DiscoveredPrinter, PrinterConnection, db

blueprint = Room(
    "discovered printers", __name__, url_prefix="/api/printers/discovered", description="Printers found in the network"
)

COLUMNS = Columns(
    DiscoveredPrinter,
    *("serial_number", "host", "model", "name", "connect_mode", "is_bound", "firmware", "signal_dbm", "heard_at"),
)


class DiscoveredPrinterSchema(Body):
    serial_number = fields.String(required=True)
    host = fields.String(required=True)
    model = fields.String(required=True, allow_none=True)
    name = fields.String(required=True)
    connect_mode = fields.Enum(ConnectMode, by_value=True, required=True, allow_none=True)
    is_bound = fields.Boolean(required=True, allow_none=True)
    firmware = fields.String(required=True, allow_none=True)
    signal_dbm = fields.Integer(required=True, allow_none=True)
    heard_at = Moment(required=True)
    printer_id = fields.Integer(
        required=True, allow_none=True, metadata={"description": "The user's own printer with that serial number"}
    )
    hint = fields.String(required=True, allow_none=True)


class DiscoveredPrintersSchema(Body):
    printers = fields.List(fields.Nested(DiscoveredPrinterSchema), required=True)
    total = fields.Integer(required=True)


def _own_connections(serials: list[str]) -> dict[str, PrinterConnection]:
    """By serial number; of several of one printer the first."""
    rows = db.session.execute(
        mine(PrinterConnection)
        .where(PrinterConnection.serial_number.in_(serials))
        .order_by(PrinterConnection.printer_id.desc())
    ).scalars()
    return {str(each.serial_number): each for each in rows}


@blueprint.get("")
@blueprint.arguments(PageQuery, location="query")
@blueprint.response(200, DiscoveredPrintersSchema)
def list_discovered(args: dict[str, Any]) -> Response:
    """Printers that announce themselves in the worker's network. Those of other accounts are left out."""
    query: sa.Select[Any] = shown_to(current_user_id(), now=context.now())
    rows, total = page(COLUMNS, query, args["limit"], args["offset"])
    own = _own_connections([row["serial_number"] for row in rows])
    for row in rows:
        connection = own.get(row["serial_number"])
        row["printer_id"] = connection.printer_id if connection is not None else None
        row["hint"] = hint_about(row["host"], row["connect_mode"], connection)
    return json_response({"printers": rows, "total": total})
