"""The shapes of a scheduled print."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from flask import g
from marshmallow import ValidationError, fields, validate

from api.fields import Body, Color, Id, Moment, Num, Ranged, RangedNum, Text, Word
from api.lists import Columns, PageQuery, QueryInt
from auth import current_user_id, mine_prepared
from columns import currency_number
from farm.interlocks import OVERRIDABLE, Interlock
from models import WAITING_STATUSES, PrintEvent, PrintStatus, ScheduledPrint, db


def _finish(row: dict[str, Any]) -> None:
    if row["material_cost"] is not None:
        row["material_cost"] = currency_number(Decimal(str(row["material_cost"])), g.currency)


COLUMNS = Columns(
    ScheduledPrint,
    *("id", "printer_id", "order_id", "order_item_id", "job_name", "file_name", "print_file_id", "plate", "status"),
    *("scheduled_start", "estimated_duration_minutes", "material_type", "material_color", "material_slot"),
    *("nozzle_temp", "bed_temp", "print_speed", "priority", "notes", "waiting_reason", "started_at", "completed_at"),
    *("failed_reason", "progress_percent", "estimated_grams", "used_grams", "material_cost"),
    *("batch_id", "units", "held_at", "overrides", "needs_look", "created_at", "updated_at"),
    finish=_finish,
)

# Built once: answering 20 prints costs less than building the statement that reads them.
BY_IDS = (
    mine_prepared(ScheduledPrint)
    .where(ScheduledPrint.id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(ScheduledPrint.id)
    .with_only_columns(*COLUMNS.expressions)
)


def read_prints(ids: Sequence[int]) -> list[dict[str, Any]]:
    """The user's prints of these ids as JSON-ready dicts, after flushing what is pending."""
    db.session.flush()
    return COLUMNS.run(BY_IDS, {"mine": current_user_id(), "ids": list(ids)})


EVENT_COLUMNS = Columns(
    PrintEvent,
    *("id", "print_id", "printer_id", "kind", "from_status", "to_status", "reason", "details", "at"),
)


class PrintSchema(Body):
    id = fields.Integer(required=True)
    printer_id = fields.Integer(required=True)
    order_id = fields.Integer(required=True, allow_none=True)
    order_item_id = fields.Integer(required=True, allow_none=True)
    job_name = fields.String(required=True)
    file_name = fields.String(required=True, allow_none=True)
    print_file_id = fields.Integer(required=True, allow_none=True)
    plate = fields.Integer(required=True)
    status = fields.Enum(PrintStatus, by_value=True, required=True)
    scheduled_start = Moment(required=True, allow_none=True)
    estimated_duration_minutes = fields.Integer(required=True, allow_none=True)
    material_type = fields.String(required=True, allow_none=True)
    material_color = fields.String(required=True, allow_none=True)
    material_slot = fields.Integer(required=True, allow_none=True)
    nozzle_temp = fields.Integer(required=True, allow_none=True)
    bed_temp = fields.Integer(required=True, allow_none=True)
    print_speed = fields.Integer(required=True, allow_none=True)
    priority = fields.Integer(required=True)
    notes = fields.String(required=True, allow_none=True)
    waiting_reason = fields.String(required=True, allow_none=True, metadata={"description": "Why it has not begun"})
    started_at = Moment(required=True, allow_none=True)
    completed_at = Moment(required=True, allow_none=True)
    failed_reason = fields.String(required=True, allow_none=True)
    progress_percent = fields.Integer(required=True, allow_none=True)
    estimated_grams = Num(required=True, allow_none=True)
    used_grams = Num(required=True, allow_none=True)
    material_cost = Num(required=True, allow_none=True, metadata={"description": "In the account's currency"})
    batch_id = fields.Integer(required=True, allow_none=True)
    units = fields.Integer(required=True, metadata={"description": "Pieces on the plate when it is done"})
    held_at = Moment(required=True, allow_none=True, metadata={"description": "Since when a person holds it back"})
    overrides = fields.List(fields.String(), required=True, allow_none=True)
    needs_look = fields.String(required=True, allow_none=True)
    created_at = Moment(required=True)
    updated_at = Moment(required=True)


class PrintEventSchema(Body):
    id = fields.Integer(required=True)
    print_id = fields.Integer(required=True)
    printer_id = fields.Integer(required=True)
    kind = fields.String(required=True)
    from_status = fields.String(required=True, allow_none=True)
    to_status = fields.String(required=True, allow_none=True)
    reason = fields.String(required=True, allow_none=True)
    details = fields.Dict(required=True)
    at = Moment(required=True)


def check_twice(ids: Sequence[int]) -> None:
    """Raises ValidationError for an id that stands twice in a list."""
    if len(set(ids)) != len(ids):
        raise ValidationError("An id stands twice in it.")


class _Settable(Body):
    """What a person may set on a print."""

    order_id = Id(allow_none=True)
    file_name = Text(allow_none=True)
    print_file_id = Id(allow_none=True)
    plate = Ranged(1, 1000)
    scheduled_start = Moment(allow_none=True)
    estimated_duration_minutes = Ranged(1, 100_000, allow_none=True)
    estimated_grams = RangedNum(0, 100_000, allow_none=True)
    material_type = Text(allow_none=True)
    material_color = Color(allow_none=True)
    material_slot = Ranged(0, 7, allow_none=True)
    nozzle_temp = Ranged(0, 500, allow_none=True)
    bed_temp = Ranged(0, 200, allow_none=True)
    print_speed = Ranged(1, 2000, allow_none=True)
    notes = Text(0, 2000, allow_none=True)


class NewPrint(_Settable):
    printer_id = Id(required=True)
    job_name = Text(required=True)
    status = Word(PrintStatus, only=WAITING_STATUSES, load_default=PrintStatus.queued)
    priority = Ranged(-1000, 1000, load_default=0)


class PrintChange(_Settable):
    printer_id = Id()
    job_name = Text()
    priority = Ranged(-1000, 1000)
    status = Word(PrintStatus)
    failed_reason = Text(1, 2000)
    used_grams = RangedNum(0, 100_000)


# In the order of the interlocks themselves; a set has none.
OVERRIDABLE_WORDS = tuple(lock for lock in Interlock if lock in OVERRIDABLE)


class StartRequest(Body):
    may_be_empty = True
    override = fields.List(
        Word(Interlock, only=OVERRIDABLE_WORDS),
        load_default=list,
        validate=validate.Length(max=len(OVERRIDABLE_WORDS)),
        metadata={"description": "Interlocks that a person answers for at this start"},
    )


class Retry(Body):
    may_be_empty = True
    scheduled_start = Moment(allow_none=True)
    printer_id = Id()


class QueueOrder(Body):
    print_ids = fields.List(
        Id(),
        required=True,
        validate=[validate.Length(max=10_000), check_twice],
        metadata={"uniqueItems": True, "description": "All that waits on the printer, in the order to run"},
    )


class PrintsQuery(PageQuery):
    status = Word(PrintStatus)


class AllPrintsQuery(PrintsQuery):
    printer_id = QueryInt()
    order_id = QueryInt()
    batch_id = QueryInt()
    id = QueryInt()


class Deleted(Body):
    message = fields.String(required=True)
    id = fields.Integer(required=True)
