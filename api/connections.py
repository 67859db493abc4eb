"""How printers are reached, and what they report: `/api/printer-connections`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Response
from marshmallow import fields

from api import context, printer_commands
from api.connection_fields import ConnectionChange, NewConnection, edit_connection, make_connection
from api.fields import Body, Moment, Num
from api.lists import Columns, PageQuery, json_response, named_list
from api.once import once
from api.print_schemas import Deleted
from api.reading import Room
from auth import get_mine, mine
from errors import Conflict
from farm.live import INCOMPLETE
from farm.status import status_of
from models import (
    CloudAccount,
    ConnectionStatus,
    ConnectionType,
    Printer,
    PrinterConnection,
    PrintStatus,
    ScheduledPrint,
    db,
)

blueprint = Room(
    "printer connections", __name__, url_prefix="/api/printer-connections", description="How printers are reached"
)

COLUMNS = Columns(
    PrinterConnection,
    *("id", "printer_id", "connection_type", "host", "port", "ftps_port", "serial_number", "cloud_account_id"),
    *("connection_status", "status_reason", "heard_at", "created_at", "updated_at"),
    extra={
        "has_access_code": PrinterConnection.access_code_sealed.is_not(None),
        "has_cloud_token": PrinterConnection.cloud_token_sealed.is_not(None),
    },
)


class ConnectionSchema(Body):
    id = fields.Integer(required=True)
    printer_id = fields.Integer(required=True)
    connection_type = fields.Enum(ConnectionType, by_value=True, required=True)
    host = fields.String(required=True, allow_none=True)
    port = fields.Integer(required=True)
    ftps_port = fields.Integer(required=True)
    serial_number = fields.String(required=True, allow_none=True)
    cloud_account_id = fields.Integer(required=True, allow_none=True)
    has_access_code = fields.Boolean(required=True)
    has_cloud_token = fields.Boolean(required=True)
    connection_status = fields.Enum(ConnectionStatus, by_value=True, required=True)
    status_reason = fields.String(required=True, allow_none=True)
    heard_at = Moment(required=True, allow_none=True)
    created_at = Moment(required=True)
    updated_at = Moment(required=True)


class ConnectionsSchema(Body):
    connections = fields.List(fields.Nested(ConnectionSchema), required=True)
    total = fields.Integer(required=True)


class PrinterErrorSchema(Body):
    code = fields.String(required=True)
    severity = fields.String(required=True)
    message = fields.String(required=True)


class PrinterStatusSchema(Body):
    printer_id = fields.Integer(required=True)
    printer_name = fields.String(required=True)
    connection_type = fields.Enum(ConnectionType, by_value=True, required=True)
    connection_status = fields.Enum(ConnectionStatus, by_value=True, required=True)
    reason = fields.String(required=True, allow_none=True)
    state = fields.String(required=True)
    progress_percent = Num(required=True, allow_none=True)
    remaining_minutes = Num(required=True, allow_none=True)
    layers_printed = fields.Integer(required=True, allow_none=True)
    total_layers = fields.Integer(required=True, allow_none=True)
    nozzle_temp = Num(required=True, allow_none=True)
    nozzle_target = Num(required=True, allow_none=True)
    bed_temp = Num(required=True, allow_none=True)
    bed_target = Num(required=True, allow_none=True)
    chamber_temp = Num(required=True, allow_none=True)
    errors = fields.List(fields.Nested(PrinterErrorSchema), required=True, allow_none=True)
    job_name = fields.String(required=True, allow_none=True)
    current_print_id = fields.Integer(required=True, allow_none=True)
    materials = fields.List(fields.Dict(), required=True, allow_none=True)
    can_control = fields.Boolean(required=True, allow_none=True)
    last_updated = Moment(required=True, allow_none=True)
    stale = fields.Boolean(required=True)


def _check_account(data: dict[str, Any]) -> None:
    if data.get("cloud_account_id") is not None:
        get_mine(CloudAccount, data["cloud_account_id"])


def _one(connection_id: int) -> dict[str, Any]:
    db.session.flush()
    return COLUMNS.one(mine(PrinterConnection).where(PrinterConnection.id == connection_id))


@blueprint.get("")
@blueprint.arguments(PageQuery, location="query")
@blueprint.response(200, ConnectionsSchema)
def list_connections(args: dict[str, Any]) -> Response:
    """All printer connections of the user."""
    query = mine(PrinterConnection).order_by(PrinterConnection.id)
    return named_list("connections", COLUMNS, query, args["limit"], args["offset"])


@blueprint.post("")
@once
@blueprint.arguments(NewConnection)
@blueprint.response(201, ConnectionSchema)
def add_connection(data: dict[str, Any]) -> Response:
    """Connect a printer. A printer has one connection."""
    printer = get_mine(Printer, data.pop("printer_id"), for_update=True)
    _check_account(data)
    if printer.connection is not None:
        raise Conflict("This printer has a connection already. Change that one.", code="already_connected")
    connection = make_connection(printer, data, at=context.now(), vault=context.vault())
    db.session.add(connection)
    db.session.flush()
    return json_response(_one(connection.id), 201)


@blueprint.get("/<id:connection_id>")
@blueprint.response(200, ConnectionSchema)
def get_connection(connection_id: int) -> Response:
    """One connection. Secrets never come back."""
    get_mine(PrinterConnection, connection_id)
    return json_response(_one(connection_id))


@blueprint.put("/<id:connection_id>")
@blueprint.arguments(ConnectionChange)
@blueprint.response(200, ConnectionSchema)
def change_connection(data: dict[str, Any], connection_id: int) -> Response:
    """Change a connection. The worker connects anew with what is now true."""
    connection = get_mine(PrinterConnection, connection_id, for_update=True)
    _check_account(data)
    if {"serial_number", "host"} & data.keys():
        # Another machine may answer now: its certificate is pinned anew.
        connection.fingerprint = None
    edit_connection(connection, data, vault=context.vault())
    connection.version += 1
    connection.connection_status, connection.status_reason = ConnectionStatus.connecting, None
    connection.updated_at = context.now()
    body = _one(connection_id)
    db.session.commit()
    return json_response(body)


@blueprint.delete("/<id:connection_id>")
@blueprint.response(200, Deleted)
def remove_connection(connection_id: int) -> Response:
    """Forget how a printer is reached, secrets and all. While it prints a print of ours it is 409."""
    connection = get_mine(PrinterConnection, connection_id, for_update=True)
    running = db.session.execute(
        mine(ScheduledPrint, sa.func.count()).where(
            ScheduledPrint.printer_id == connection.printer_id, ScheduledPrint.status == PrintStatus.started
        )
    ).scalar_one()
    if running:
        raise Conflict("A print is running on this printer.", code="print_running")
    db.session.delete(connection)
    db.session.commit()
    return json_response({"message": "Connection removed", "id": connection_id})


class ConnectionCheck(Body):
    check = fields.String(required=True)
    ok = fields.Boolean(required=True, allow_none=True, metadata={"description": "null: cannot be told"})
    message = fields.String(required=True)
    advice = fields.String(required=True, allow_none=True, metadata={"description": "What to press on the printer"})


class ConnectionTest(Body):
    ok = fields.Boolean(required=True)
    checks = fields.List(fields.Nested(ConnectionCheck), required=True)


@blueprint.post("/<id:connection_id>/test")
@blueprint.response(200, ConnectionTest)
def ask_for_test(connection_id: int) -> Response:
    """What works between us and the printer, and what to press on it where something does not: all in one answer."""
    connection = get_mine(PrinterConnection, connection_id)
    if connection.status_reason == INCOMPLETE:
        raise Conflict(f"This connection is not complete: {INCOMPLETE}.", code="connection_incomplete")
    return json_response(printer_commands.ask_for_test(connection))


@blueprint.get("/<id:connection_id>/status")
@blueprint.response(200, PrinterStatusSchema)
def get_status(connection_id: int) -> Response:
    """What the printer last reported: one indexed read. Unknown is null; an unreachable printer is an answer, too."""
    connection = get_mine(PrinterConnection, connection_id)
    return json_response(status_of(connection, now=context.now()))
