"""A print's move with all that follows from it: filament, order, notifications. One transaction, the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

import notifications
from farm import maintenance
from farm.materials import StageLimits, shares_of, use_filament
from farm.orders import settle_production_status
from models import (
    ENDED_STATUSES,
    WAITING_STATUSES,
    BambuMaterial,
    PrintEvent,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    db,
)


def move_print(
    moved: ScheduledPrint,
    status: PrintStatus,
    *,
    at: datetime,
    limits: StageLimits,
    reason: str | None = None,
    used_grams: Decimal | None = None,
    start: StartIntent | None = None,
) -> PrintEvent | None:
    """Move a print and settle filament, order and notifications; None when it already has that status. `start`: its
    locked one, which ends with it; what it was fed from is looked for if it is not given.

    Raises:
        IllegalMove: see `ScheduledPrint.move_to`.
    """
    if moved.status is status:
        return None
    before = moved.status
    grams = used_grams if used_grams is not None or status is not PrintStatus.completed else moved.estimated_grams
    # Read before anything is changed: then all of it is written in one go.
    shares = shares_of(moved, grams, start) if status in ENDED_STATUSES and grams else []
    event = moved.move_to(status, at=at, reason=reason)
    if start is not None:
        start.ended_at = at
    if status in ENDED_STATUSES:
        _book_filament(moved, event, grams, shares, at=at, limits=limits)
    if not {before, status} <= {*WAITING_STATUSES}:
        # To an order a print that waits is a print that waits.
        settle_production_status(moved.user_id, moved.order_id, at=at)
    notifications.fan_out(event, of_print=moved)
    if status in ENDED_STATUSES:
        maintenance.count_hours(moved, at=at)
    return event


def _book_filament(
    ended: ScheduledPrint,
    event: PrintEvent,
    grams: Decimal | None,
    shares: Sequence[tuple[BambuMaterial, Decimal]],
    *,
    at: datetime,
    limits: StageLimits,
) -> None:
    if grams is None:
        if ended.status is PrintStatus.completed:
            event.details = {"filament": "not booked: neither used nor estimated grams are known"}
        return
    ended.used_grams = grams
    booked, costs = [], []
    for spool, share in shares:
        costs.append(use_filament(spool, share, of_print=ended, at=at, limits=limits))
        booked.append({"material_id": spool.id, "grams": float(share)})
    if not booked:
        event.details = {"filament": "booked on no spool: none in its slot and not just one of its type"}
        return
    known = [cost for cost in costs if cost is not None]
    ended.material_cost = sum(known, Decimal(0)) if len(known) == len(costs) else None
    event.details = {"filament": booked[0] if len(booked) == 1 else booked}


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
