"""A print's move with all that follows from it: filament, order, notifications. One transaction, the caller's."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import notifications
from farm.materials import StageLimits, spool_for, use_filament
from farm.orders import settle_production_status
from models import ENDED_STATUSES, PrintEvent, PrintStatus, ScheduledPrint, db


def move_print(
    moved: ScheduledPrint,
    status: PrintStatus,
    *,
    at: datetime,
    limits: StageLimits,
    reason: str | None = None,
    used_grams: Decimal | None = None,
) -> PrintEvent | None:
    """Move a print and settle filament, order and notifications; None when it already has that status.

    Raises:
        IllegalMove: see `ScheduledPrint.move_to`.
    """
    if moved.status is status:
        return None
    event = moved.move_to(status, at=at, reason=reason)
    if status in ENDED_STATUSES:
        _book_filament(moved, event, used_grams, at=at, limits=limits)
    settle_production_status(moved.user_id, moved.order_id, at=at)
    notifications.fan_out(event, of_print=moved)
    return event


def _book_filament(
    ended: ScheduledPrint, event: PrintEvent, used_grams: Decimal | None, *, at: datetime, limits: StageLimits
) -> None:
    grams = used_grams
    if grams is None and ended.status is PrintStatus.completed:
        grams = ended.estimated_grams
    if grams is None:
        if ended.status is PrintStatus.completed:
            event.details = {"filament": "not booked: neither used nor estimated grams are known"}
        return
    ended.used_grams = grams
    spool = spool_for(ended) if grams > 0 else None
    if spool is None:
        event.details = {"filament": "booked on no spool: none in its slot and not just one of its type"}
        return
    ended.material_cost = use_filament(spool, grams, of_print=ended, at=at, limits=limits)
    event.details = {"filament": {"material_id": spool.id, "grams": float(grams)}}


def delete_print(deleted: ScheduledPrint, *, at: datetime) -> None:
    """Take a print off every list. What happened stays: its events and what it used."""
    deleted.deleted_at = deleted.updated_at = at
    db.session.add(
        PrintEvent(
            user_id=deleted.user_id,
            printer_id=deleted.printer_id,
            print_id=deleted.id,
            kind="print.deleted",
            from_status=deleted.status,
            details={},
            at=at,
        )
    )
    settle_production_status(deleted.user_id, deleted.order_id, at=at)
