"""What an order's prints say about the order."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from models import OPEN_STATUSES, Order, PrintStatus, ProductionStatus, ScheduledPrint, db

PRINTS_OF_ORDER = sa.select(
    ScheduledPrint.id, ScheduledPrint.order_item_id, ScheduledPrint.status, ScheduledPrint.deleted_at.is_not(None)
).where(ScheduledPrint.user_id == sa.bindparam("mine"), ScheduledPrint.order_id == sa.bindparam("order"))


class PrintOfOrder(NamedTuple):
    id: int
    order_item_id: int | None
    status: PrintStatus
    is_deleted: bool


def production_status_of(prints: Iterable[PrintOfOrder]) -> ProductionStatus:
    """One function of an order's prints. A deleted completed print still counts, any other deleted one does not."""
    counted = [each for each in prints if not each.is_deleted or each.status is PrintStatus.completed]
    for failed in (each for each in counted if each.status is PrintStatus.failed):
        of_line = [each for each in counted if each.order_item_id == failed.order_item_id]
        if not any(each.status in OPEN_STATUSES or each.id > failed.id for each in of_line):
            return ProductionStatus.attention
    statuses = {each.status for each in counted} - {PrintStatus.failed}
    if not statuses:
        return ProductionStatus.new
    if statuses == {PrintStatus.completed}:
        return ProductionStatus.printed
    if PrintStatus.started in statuses or PrintStatus.completed in statuses:
        return ProductionStatus.printing
    return ProductionStatus.queued


def settle_production_status(user_id: int, order_id: int | None, *, at: datetime) -> None:
    """Recompute an order after one of its prints moved, came or went. `shipped` stays. Flushes first."""
    if order_id is None:
        return
    db.session.flush()
    order = db.session.execute(
        sa.select(Order).where(Order.user_id == user_id, Order.id == order_id).with_for_update()
    ).scalar_one()
    settle_order(order, at=at)


def settle_order(order: Order, *, at: datetime) -> None:
    """The same for an order that this transaction has locked already."""
    if order.production_status is ProductionStatus.shipped:
        return
    status = production_status_of(prints_of(order))
    if status is not order.production_status:
        order.production_status, order.updated_at = status, at


def prints_of(order: Order) -> list[PrintOfOrder]:
    """All prints an order ever had, deleted ones included."""
    rows = db.session.execute(PRINTS_OF_ORDER, {"mine": order.user_id, "order": order.id})
    return [PrintOfOrder(*row) for row in rows]
