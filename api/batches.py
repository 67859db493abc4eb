"""Batches of one plate: `/api/print-batches`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Response
from marshmallow import fields

from api import context
from api.fields import Body, Id, Moment, Ranged, Text
from api.lists import Columns, PageQuery, json_response
from api.once import once
from api.print_schemas import Deleted
from api.prints import check_references
from api.reading import Room
from auth import current_user_id, get_mine, mine, mine_prepared
from errors import Conflict, Invalid
from etsy_api import add_prints
from farm import starter
from farm.batches import (
    COMPLETED_UNITS,
    FAILED_UNITS,
    MAX_PRINTS_AT_ONCE,
    OPEN_UNITS,
    PRINTS_BY_STATUS,
    WITH_PRINTS,
    Tally,
    new_prints,
    plates_for,
    tally_of,
)
from farm.moves import delete_print
from models import (
    OPEN_INTENT_STATES,
    SENDING_STATES,
    WAITING_STATUSES,
    IntentState,
    PrintBatch,
    Printer,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    db,
)

blueprint = Room("print batches", __name__, url_prefix="/api/print-batches", description="So many pieces of one plate")


def _finish(row: dict[str, Any]) -> None:
    tally = Tally(row["completed_units"], row["open_units"])
    row["owed_units"] = tally.owed(row["quantity"]) if row["cancelled_at"] is None else 0
    row["prints"] = {status.value: row.pop(status.value) for status in PrintStatus}


COLUMNS = Columns(
    PrintBatch,
    *("id", "name", "printer_id", "print_file_id", "plate", "quantity", "units_per_plate", "priority"),
    *("cancelled_at", "created_at", "updated_at"),
    extra={
        "completed_units": COMPLETED_UNITS,
        "open_units": OPEN_UNITS,
        "failed_units": FAILED_UNITS,
        **PRINTS_BY_STATUS,
    },
    finish=_finish,
)
# Batches and what became of their prints in one statement, however many of both.
BATCHES = (
    mine_prepared(PrintBatch)
    .select_from(WITH_PRINTS)
    .group_by(PrintBatch.id)
    .order_by(PrintBatch.id)
    .with_only_columns(*COLUMNS.expressions)
)


class PrintCounts(Body):
    queued = fields.Integer(required=True)
    scheduled = fields.Integer(required=True)
    started = fields.Integer(required=True)
    completed = fields.Integer(required=True)
    failed = fields.Integer(required=True)


class BatchSchema(Body):
    id = fields.Integer(required=True)
    name = fields.String(required=True)
    printer_id = fields.Integer(required=True)
    print_file_id = fields.Integer(required=True, allow_none=True)
    plate = fields.Integer(required=True)
    quantity = fields.Integer(required=True, metadata={"description": "Pieces that are wanted"})
    units_per_plate = fields.Integer(required=True)
    priority = fields.Integer(required=True)
    completed_units = fields.Integer(required=True)
    open_units = fields.Integer(required=True, metadata={"description": "Pieces of queued and running prints"})
    failed_units = fields.Integer(required=True)
    owed_units = fields.Integer(required=True, metadata={"description": "Pieces that nothing makes yet"})
    prints = fields.Nested(PrintCounts, required=True)
    cancelled_at = Moment(required=True, allow_none=True)
    created_at = Moment(required=True)
    updated_at = Moment(required=True)


class BatchesSchema(Body):
    print_batches = fields.List(fields.Nested(BatchSchema), required=True)
    total = fields.Integer(required=True)


class NewBatch(Body):
    name = Text(required=True)
    printer_id = Id(required=True)
    print_file_id = Id(required=True)
    plate = Ranged(1, 1000, load_default=1)
    quantity = Ranged(1, 10_000, required=True)
    units_per_plate = Ranged(1, 10_000, load_default=1)
    priority = Ranged(-1000, 1000, load_default=0)


class BatchChange(Body):
    name = Text()
    quantity = Ranged(1, 10_000)
    priority = Ranged(-1000, 1000)


def _answer(batch_id: int, status: int = 200) -> Response:
    db.session.flush()
    rows = COLUMNS.run(BATCHES.where(PrintBatch.id == batch_id), {"mine": current_user_id()})
    return json_response(rows[0], status)


def _count_plates(units: int, units_per_plate: int) -> int:
    """Raises Invalid for more plates than are made at once."""
    count = plates_for(units, units_per_plate)
    if count > MAX_PRINTS_AT_ONCE:
        raise Invalid({"quantity": [f"Takes {count} more prints; at most {MAX_PRINTS_AT_ONCE} are made at once."]})
    return count


def _settings_of(print_file_id: int, plate: int) -> dict[str, Any]:
    """What each print of this plate takes from its file. Raises as `check_references`."""
    settings: dict[str, Any] = {"print_file_id": print_file_id, "plate": plate}
    check_references(settings)
    return settings


def _lock(batch_id: int) -> PrintBatch:
    """A batch that takes prints, and its printer. The printer first, as everywhere, so that none waits in a circle."""
    printer_id = db.session.execute(mine(PrintBatch, PrintBatch.printer_id).where(PrintBatch.id == batch_id)).scalar()
    query = mine(Printer, Printer.id).where(Printer.id == printer_id).with_for_update()
    is_there = db.session.execute(query).scalar() is not None
    batch = get_mine(PrintBatch, batch_id, for_update=True)
    if batch.cancelled_at is not None:
        raise Conflict("This batch was cancelled.", code="batch_cancelled")
    if not is_there:
        raise Conflict("Its printer was removed.", code="printer_removed")
    return batch


def _queue_plates(batch: PrintBatch, count: int) -> None:
    if not count:
        return
    if batch.print_file_id is None:
        raise Conflict("Its file was deleted.", code="file_gone")
    add_prints(new_prints(batch, count, _settings_of(batch.print_file_id, batch.plate)), at=context.now())


@blueprint.get("")
@blueprint.arguments(PageQuery, location="query")
@blueprint.response(200, BatchesSchema)
def list_batches(args: dict[str, Any]) -> Response:
    """All batches, cancelled ones too."""
    page = BATCHES.limit(args["limit"]).offset(args["offset"])
    total = db.session.execute(mine(PrintBatch, sa.func.count())).scalar_one()
    return json_response({"print_batches": COLUMNS.run(page, {"mine": current_user_id()}), "total": total})


@blueprint.post("")
@once
@blueprint.arguments(NewBatch)
@blueprint.response(201, BatchSchema)
def add_batch(data: dict[str, Any]) -> Response:
    """Queue as many prints of one plate as a quantity takes. At most 500 at once."""
    count = _count_plates(data["quantity"], data["units_per_plate"])
    get_mine(Printer, data["printer_id"], for_update=True)
    settings = _settings_of(data["print_file_id"], data["plate"])
    at = context.now()
    batch = PrintBatch(user_id=current_user_id(), created_at=at, updated_at=at, **data)
    db.session.add(batch)
    db.session.flush()
    add_prints(new_prints(batch, count, settings), at=at)
    return _answer(batch.id, 201)


@blueprint.get("/<id:batch_id>")
@blueprint.response(200, BatchSchema)
def get_batch(batch_id: int) -> Response:
    """One batch, with how many pieces are made, on their way and still owed."""
    get_mine(PrintBatch, batch_id)
    return _answer(batch_id)


@blueprint.put("/<id:batch_id>")
@blueprint.arguments(BatchChange)
@blueprint.response(200, BatchSchema)
def change_batch(data: dict[str, Any], batch_id: int) -> Response:
    """Change a batch. A higher quantity queues the prints that it takes; a lower one cancels none. A priority goes for
    the prints that wait, too.
    """
    batch = _lock(batch_id)
    more = 0
    if data.get("quantity", 0) > batch.quantity:
        tally = tally_of(batch)
        # What failed before stays owed until a person asks for it.
        more = tally.owed(data["quantity"]) - tally.owed(batch.quantity)
    count = _count_plates(more, batch.units_per_plate)
    changes = {name: value for name, value in data.items() if getattr(batch, name) != value}
    for name, value in changes.items():
        setattr(batch, name, value)
    at = context.now()
    if changes:
        batch.updated_at = at
    if "priority" in changes:
        db.session.execute(
            sa.update(ScheduledPrint)
            .where(
                ScheduledPrint.user_id == current_user_id(),
                ScheduledPrint.batch_id == batch_id,
                ScheduledPrint.status.in_(WAITING_STATUSES),
                ScheduledPrint.deleted_at.is_(None),
            )
            .values(priority=changes["priority"], updated_at=at)
        )
    _queue_plates(batch, count)
    response = _answer(batch_id)
    db.session.commit()
    return response


@blueprint.post("/<id:batch_id>/top-up")
@once
@blueprint.response(200, BatchSchema)
def top_up_batch(batch_id: int) -> Response:
    """Queue prints for the pieces that are still owed, because a print failed or was deleted. At most 500 at once."""
    batch = _lock(batch_id)
    owed = tally_of(batch).owed(batch.quantity)
    _queue_plates(batch, min(MAX_PRINTS_AT_ONCE, plates_for(owed, batch.units_per_plate)))
    return _answer(batch_id)


def _open_starts(batch_id: int) -> dict[int, IntentState]:
    """By print: how far a start of it has got whose end is not known."""
    rows = db.session.execute(
        sa.select(StartIntent.print_id, StartIntent.state)
        .join(ScheduledPrint, ScheduledPrint.id == StartIntent.print_id)
        .where(
            ScheduledPrint.user_id == current_user_id(),
            ScheduledPrint.batch_id == batch_id,
            StartIntent.state.in_(OPEN_INTENT_STATES),
        )
    )
    return {row.print_id: row.state for row in rows}


@blueprint.delete("/<id:batch_id>")
@blueprint.response(200, Deleted)
def cancel_batch(batch_id: int) -> Response:
    """Cancel a batch and its waiting prints. What was sent to its printer goes on."""
    batch, at = get_mine(PrintBatch, batch_id, for_update=True), context.now()
    if batch.cancelled_at is None:
        batch.cancelled_at = batch.updated_at = at
        waiting = mine(ScheduledPrint).where(
            ScheduledPrint.batch_id == batch_id, ScheduledPrint.status.in_(WAITING_STATUSES)
        )
        found = db.session.execute(waiting.order_by(ScheduledPrint.id).with_for_update()).scalars().all()
        starts = _open_starts(batch_id)
        for each in found:
            start = starts.get(each.id)
            if start is None or (start in SENDING_STATES and starter.take_back(each, now=at)):
                delete_print(each, at=at)
    db.session.commit()
    return json_response({"message": "Batch cancelled", "id": batch_id})
