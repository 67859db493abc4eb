"""Printers: `/api/printers`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from flask import Response
from marshmallow import fields

from api import context
from api.connection_fields import INLINE_FIELDS, NewConnectionFields, make_connection
from api.fields import Body, Bool, Id, Moment, Num, Ranged, RangedNum, Text
from api.lists import PageQuery, json_response
from api.once import once
from api.print_schemas import Deleted
from api.reading import Room
from auth import current_user_id, get_mine, mine
from errors import Conflict
from farm import maintenance
from farm.gates import clear, gate_of
from farm.live import is_live
from models import (
    OPEN_STATUSES,
    ConnectionType,
    IntentState,
    PlateState,
    Printer,
    PrinterConnection,
    PrinterGate,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    db,
)

blueprint = Room("printers", __name__, url_prefix="/api/printers", description="The user's printers")

UTILIZATION_WINDOW = timedelta(days=7)
# What makers advise for greasing rods and cleaning, roughly.
EVERY_HOURS = 250
RUNNING_STATES = ("preparing", "printing", "paused")


class CurrentPrint(Body):
    id = fields.Integer(required=True)
    job_name = fields.String(required=True)
    progress_percent = fields.Integer(required=True, allow_none=True)


class PrinterSchema(Body):
    id = fields.Integer(required=True)
    name = fields.String(required=True)
    model = fields.String(required=True, allow_none=True)
    location = fields.String(required=True, allow_none=True)
    notes = fields.String(required=True, allow_none=True)
    connection_id = fields.Integer(required=True, allow_none=True)
    connection_type = fields.Enum(ConnectionType, by_value=True, required=True, allow_none=True)
    status = fields.String(required=True, metadata={"description": "A state of PrinterStatus, or offline, or none"})
    current_job = fields.Nested(CurrentPrint, required=True, allow_none=True)
    auto_start = fields.Boolean(required=True)
    nozzle_diameter_mm = Num(required=True, allow_none=True)
    maintenance_every_hours = fields.Integer(required=True, allow_none=True)
    hours_since_maintenance = Num(required=True, metadata={"description": "Hours that it printed since"})
    maintenance_done_at = Moment(required=True, allow_none=True)
    queue_paused_at = Moment(required=True, allow_none=True, metadata={"description": "Since when nothing new starts"})
    plate_state = fields.Enum(PlateState, by_value=True, required=True)
    utilization_pct = Num(required=True, metadata={"description": "Printing time of the last 7 days"})
    created_at = Moment(required=True)
    updated_at = Moment(required=True)


class PrinterChange(Body):
    name = Text()
    model = Text(allow_none=True)
    location = Text(allow_none=True)
    notes = Text(0, 2000, allow_none=True)
    auto_start = Bool()
    nozzle_diameter_mm = RangedNum(
        0.1, 2, allow_none=True, metadata={"description": "For a printer whose reports do not tell it"}
    )
    maintenance_every_hours = Ranged(
        1, 100_000, allow_none=True, metadata={"description": "Hours of printing after which it is due; null for never"}
    )


class NewPrinter(PrinterChange, NewConnectionFields):
    name = Text(required=True)
    auto_start = Bool(load_default=False)
    maintenance_every_hours = Ranged(1, 100_000, allow_none=True, load_default=EVERY_HOURS)


class PlateCleared(Body):
    print_id = Id(required=True, allow_none=True, metadata={"description": "The last print on the plate, or null"})


def _represent(printers: Sequence[Printer]) -> list[dict[str, Any]]:
    """Printers with what goes on on them: four statements, however many printers."""
    ids = [printer.id for printer in printers]
    at = context.now()
    connections = {
        connection.printer_id: connection
        for connection in db.session.execute(
            mine(PrinterConnection).where(PrinterConnection.printer_id.in_(ids))
        ).scalars()
    }
    running = {
        each.printer_id: each
        for each in db.session.execute(
            mine(ScheduledPrint)
            .where(ScheduledPrint.printer_id.in_(ids), ScheduledPrint.status == PrintStatus.started)
            .order_by(ScheduledPrint.id)
        ).scalars()
    }
    busy = _printing_time(ids, at)
    return [_represent_one(each, connections.get(each.id), running.get(each.id), busy, at) for each in printers]


def _represent_one(
    printer: Printer,
    connection: PrinterConnection | None,
    running: ScheduledPrint | None,
    busy: dict[int, timedelta],
    at: datetime,
) -> dict[str, Any]:
    if connection is None:
        status = "none"
    else:
        status = (connection.snapshot or {}).get("state", "unknown") if is_live(connection, at) else "offline"
    return {
        "id": printer.id,
        "name": printer.name,
        "model": printer.model,
        "location": printer.location,
        "notes": printer.notes,
        "connection_id": connection.id if connection else None,
        "connection_type": connection.connection_type if connection else None,
        "status": status,
        "current_job": {"id": running.id, "job_name": running.job_name, "progress_percent": running.progress_percent}
        if running
        else None,
        "auto_start": printer.auto_start,
        "nozzle_diameter_mm": printer.nozzle_diameter_mm,
        "maintenance_every_hours": printer.maintenance_every_hours,
        "hours_since_maintenance": printer.hours_since_maintenance,
        "maintenance_done_at": printer.maintenance_done_at,
        "queue_paused_at": printer.queue_paused_at,
        "plate_state": printer.plate_state,
        "utilization_pct": round(100 * busy.get(printer.id, timedelta()) / UTILIZATION_WINDOW, 1),
        "created_at": printer.created_at,
        "updated_at": printer.updated_at,
    }


def _printing_time(printer_ids: Sequence[int], at: datetime) -> dict[int, timedelta]:
    """How long each printer printed in the last 7 days. Deleted prints count: the printer did run."""
    since = at - UTILIZATION_WINDOW
    rows = db.session.execute(
        sa.select(ScheduledPrint.printer_id, ScheduledPrint.started_at, ScheduledPrint.completed_at).where(
            ScheduledPrint.user_id == current_user_id(),
            ScheduledPrint.printer_id.in_(printer_ids),
            ScheduledPrint.started_at.is_not(None),
            sa.or_(ScheduledPrint.completed_at.is_(None), ScheduledPrint.completed_at > since),
        )
    )
    busy: dict[int, timedelta] = {}
    for printer_id, started_at, completed_at in rows:
        assert started_at is not None
        span = max(timedelta(), min(completed_at or at, at) - max(started_at, since))
        busy[printer_id] = min(busy.get(printer_id, timedelta()) + span, UTILIZATION_WINDOW)
    return busy


def answer_printer(printer: Printer, status: int = 200) -> Response:
    db.session.flush()
    return json_response(_represent([printer])[0], status)


@blueprint.get("")
@blueprint.arguments(PageQuery, location="query")
@blueprint.response(200, PrinterSchema(many=True))
def list_printers(args: dict[str, Any]) -> Response:
    """All printers of the user."""
    query = mine(Printer).order_by(Printer.id)
    total = db.session.execute(mine(Printer, sa.func.count())).scalar_one()
    printers = db.session.execute(query.limit(args["limit"]).offset(args["offset"])).scalars().all()
    headers = {"X-Total-Count": str(total)}
    following = args["offset"] + args["limit"]
    if following < total:
        headers["Link"] = f'</api/printers?limit={args["limit"]}&offset={following}>; rel="next"'
    return json_response(_represent(printers), headers=headers)


@blueprint.post("")
@once
@blueprint.arguments(NewPrinter)
@blueprint.response(201, PrinterSchema)
def add_printer(data: dict[str, Any]) -> Response:
    """Add a printer; with the fields of a connection in the same call, its connection too."""
    at = context.now()
    # A form sends null for what was left empty: that means no connection.
    inline = {name: value for name in INLINE_FIELDS if (value := data.pop(name, None)) is not None}
    if data["maintenance_every_hours"] is None:
        # Said, and not left out: a plain None would be stored as the column's default.
        data["maintenance_every_hours"] = sa.null()
    printer = Printer(user_id=current_user_id(), created_at=at, updated_at=at, **data)
    db.session.add(printer)
    db.session.flush()
    if inline:
        db.session.add(make_connection(printer, inline, at=at, vault=context.vault()))
    return answer_printer(printer, 201)


@blueprint.get("/<id:printer_id>")
@blueprint.response(200, PrinterSchema)
def get_printer(printer_id: int) -> Response:
    """One printer."""
    return answer_printer(get_mine(Printer, printer_id))


@blueprint.put("/<id:printer_id>")
@blueprint.arguments(PrinterChange)
@blueprint.response(200, PrinterSchema)
def change_printer(data: dict[str, Any], printer_id: int) -> Response:
    """Change a printer."""
    printer = get_mine(Printer, printer_id, for_update=True)
    for name, value in data.items():
        setattr(printer, name, value)
    printer.updated_at = at = context.now()
    if "maintenance_every_hours" in data:
        maintenance.changed(printer, at=at)
    response = answer_printer(printer)
    db.session.commit()
    return response


@blueprint.delete("/<id:printer_id>")
@blueprint.response(200, Deleted)
def remove_printer(printer_id: int) -> Response:
    """Remove a printer. With prints that are not finished it is 409. Its history stays."""
    printer = get_mine(Printer, printer_id, for_update=True)
    has_open = db.session.execute(
        mine(ScheduledPrint, sa.func.count()).where(
            ScheduledPrint.printer_id == printer_id, ScheduledPrint.status.in_(OPEN_STATUSES)
        )
    ).scalar_one()
    if has_open:
        raise Conflict(f"This printer still has {has_open} prints that are not finished.", code="has_open_prints")
    db.session.execute(
        sa.delete(PrinterConnection).where(
            PrinterConnection.user_id == current_user_id(), PrinterConnection.printer_id == printer_id
        )
    )
    printer.deleted_at = printer.updated_at = context.now()
    db.session.commit()
    return json_response({"message": "Printer removed", "id": printer_id})


def _last_print(gate: PrinterGate) -> ScheduledPrint | None:
    """The print of this user whose parts lie on the plate, even when it was taken off the lists."""
    if gate.plate_print_id is None:
        return None
    return db.session.execute(
        sa.select(ScheduledPrint).where(
            ScheduledPrint.user_id == current_user_id(), ScheduledPrint.id == gate.plate_print_id
        )
    ).scalar_one_or_none()


@blueprint.post("/<id:printer_id>/plate-cleared")
@blueprint.arguments(PlateCleared)
@blueprint.response(200, PrinterSchema)
def clear_plate(data: dict[str, Any], printer_id: int) -> Response:
    """Say that the plate is empty. Names the last print, so that a late click cannot clear the next one."""
    printer = get_mine(Printer, printer_id, for_update=True)
    gate = gate_of(printer)
    if gate is None:
        raise Conflict("This printer has no connection: nothing is started on it from here.", code="no_connection")
    last, named = _last_print(gate), data["print_id"]
    if named is not None and (last is None or named != last.id):
        get_mine(ScheduledPrint, named)
    # One that was deleted is on no list any more: then null names it as well.
    if named != (last.id if last else None) and not (named is None and last is not None and last.deleted_at):
        raise Conflict("Another print lies on the plate by now. Look again.", code="another_print_on_plate")
    if _is_printing(printer, gate):
        raise Conflict("A print is running on this printer.", code="print_running")
    clear(gate)
    printer.updated_at = context.now()
    response = answer_printer(printer)
    db.session.commit()
    return response


def _is_printing(printer: Printer, gate: PrinterGate) -> bool:
    """By our rows, by what it was last heard to say, or because a start has been sent to it."""
    running = sa.select(
        sa.exists().where(
            ScheduledPrint.printer_id == printer.id,
            ScheduledPrint.status == PrintStatus.started,
            ScheduledPrint.deleted_at.is_(None),
        )
    )
    sent = sa.select(
        sa.exists().where(
            StartIntent.printer_id.in_(
                sa.select(PrinterConnection.printer_id).where(PrinterConnection.serial_number == gate.serial_number)
            ),
            StartIntent.state == IntentState.published,
        )
    )
    connection = printer.connection
    says = (connection.snapshot or {}).get("state") if connection and is_live(connection, context.now()) else None
    return says in RUNNING_STATES or any(db.session.execute(each).scalar_one() for each in (running, sent))
