"""What becomes of the prints of an order that was cancelled or refunded: those that wait go, of one that runs a person
is told."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

import sqlalchemy as sa

import notifications
from farm.moves import delete_print
from farm.starter import take_back
from models import (
    OPEN_STATUSES,
    WAITING_STATUSES,
    IntentState,
    Order,
    OrderStatus,
    PrintEvent,
    ScheduledPrint,
    StartIntent,
    db,
)

NOT_WANTED = (OrderStatus.canceled, OrderStatus.refunded)
ATTENTION = {
    OrderStatus.canceled: "Cancelled at Etsy while it is being printed: stop the print if it is not needed.",
    OrderStatus.refunded: "Refunded at Etsy while it is being printed: stop the print if it is not needed.",
}


def withdraw_prints(user_id: int, shop_id: int, *, now: datetime) -> int:
    """Take the waiting prints of a shop's cancelled and refunded orders off their queues; the number. Flushes.

    Looks at how things stand and not at what has just changed, so that a crash after the change loses nothing. One
    statement where there is nothing to do.
    """
    query = (
        sa.select(ScheduledPrint.id)
        .join(Order, sa.and_(Order.user_id == ScheduledPrint.user_id, Order.id == ScheduledPrint.order_id))
        .where(
            Order.user_id == user_id,
            Order.shop_id == shop_id,
            Order.status.in_(NOT_WANTED),
            ScheduledPrint.status.in_(OPEN_STATUSES),
            ScheduledPrint.deleted_at.is_(None),
        )
    )
    ids = db.session.execute(query).scalars().all()
    if not ids:
        return 0
    # All prints before any order: a person who deletes one locks them in this order, too.
    locked = db.session.execute(
        sa.select(ScheduledPrint)
        .where(ScheduledPrint.id.in_(ids), ScheduledPrint.deleted_at.is_(None))
        .order_by(ScheduledPrint.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).scalars()
    withdrawn, running = 0, defaultdict[int | None, list[ScheduledPrint]](list)
    for each in locked.all():
        if each.status in WAITING_STATUSES and not _may_be_running(each) and take_back(each, now=now):
            delete_print(each, at=now)
            withdrawn += 1
        elif each.status in OPEN_STATUSES:
            running[each.order_id].append(each)
    # As they are now that their prints are locked: of two that look at once the second finds them flagged.
    flagged = sa.select(Order).where(Order.id.in_(running)).execution_options(populate_existing=True)
    for order in db.session.execute(flagged).scalars() if running else ():
        text = ATTENTION.get(order.status)
        if text is not None and order.attention != text:
            order.attention, order.updated_at = text, now
            for each in running[order.id]:
                _tell(each, text, now)
    db.session.flush()
    return withdrawn


def _tell(running: ScheduledPrint, reason: str, now: datetime) -> None:
    event = PrintEvent(
        user_id=running.user_id,
        printer_id=running.printer_id,
        print_id=running.id,
        kind="print.not_wanted",
        reason=reason,
        details={},
        at=now,
    )
    db.session.add(event)
    notifications.fan_out(event, of_print=running)


def _may_be_running(waiting: ScheduledPrint) -> bool:
    """A start that was never confirmed: only a person can tell."""
    found = sa.exists().where(StartIntent.print_id == waiting.id, StartIntent.state == IntentState.unknown)
    return bool(db.session.execute(sa.select(found)).scalar_one())
