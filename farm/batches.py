"""Batches: so many pieces of one plate. How many are made, on their way and still owed; which prints make the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from models import OPEN_STATUSES, PrintBatch, PrintStatus, ScheduledPrint, db

MAX_PRINTS_AT_ONCE = 500


def _sum_where(condition: sa.ColumnElement[bool], counted: Any = ScheduledPrint.units) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, counted), else_=0)), 0)


_IS_THERE = ScheduledPrint.deleted_at.is_(None)
# What was made is there even when its print was taken off the lists; any other deleted print makes nothing.
COMPLETED_UNITS = _sum_where(ScheduledPrint.status == PrintStatus.completed)
OPEN_UNITS = _sum_where(sa.and_(_IS_THERE, ScheduledPrint.status.in_(OPEN_STATUSES)))
FAILED_UNITS = _sum_where(sa.and_(_IS_THERE, ScheduledPrint.status == PrintStatus.failed))
PRINTS_BY_STATUS = {
    status.value: _sum_where(sa.and_(_IS_THERE, ScheduledPrint.status == status), 1) for status in PrintStatus
}
WITH_PRINTS = sa.outerjoin(
    PrintBatch,
    ScheduledPrint,
    sa.and_(ScheduledPrint.user_id == PrintBatch.user_id, ScheduledPrint.batch_id == PrintBatch.id),
)


@dataclass(frozen=True, slots=True)
class Tally:
    """Pieces of a batch, by what became of the prints that make them."""

    completed_units: int
    open_units: int

    def owed(self, quantity: int) -> int:
        """How many pieces of a quantity are neither made nor on their way."""
        return max(0, quantity - self.completed_units - self.open_units)


def plates_for(units: int, units_per_plate: int) -> int:
    """How many plates yield so many pieces; the last may yield more."""
    return -(-units // units_per_plate)


def tally_of(batch: PrintBatch) -> Tally:
    """Its prints are locked first: one that fails or is tried again at this moment is counted once, as it ends up."""
    own = sa.and_(ScheduledPrint.user_id == batch.user_id, ScheduledPrint.batch_id == batch.id)
    db.session.execute(sa.select(ScheduledPrint.id).where(own).order_by(ScheduledPrint.id).with_for_update()).all()
    completed, in_work = db.session.execute(sa.select(COMPLETED_UNITS, OPEN_UNITS).where(own)).one()
    return Tally(completed, in_work)


def new_prints(batch: PrintBatch, count: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The values of so many more prints of a batch. `settings`: its file and plate, and what each takes from that."""
    each = {
        **settings,
        "user_id": batch.user_id,
        "printer_id": batch.printer_id,
        "batch_id": batch.id,
        "units": batch.units_per_plate,
        "job_name": batch.name,
        "priority": batch.priority,
    }
    return [each] * count
