"""The prints that fulfil orders from Etsy: `schedule_order_prints()`, and what it would make before it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
import structlog

from errors import Conflict, Invalid, NotFound
from farm.order_plan import AUTO, USUAL_RULES, OrderPlan, PlanRules, plan_order
from farm.order_prints import nothing_fits, order_to_print, plan_chain, printable_lines
from farm.orders import PrintOfOrder, prints_of, production_status_of
from farm.planner import PlannedPrint
from farm.staffed import MINUTE
from farm.waiting_lines import read_mapped_orders, refuse_by_itself
from models import Order, Printer, PrintEvent, PrintFile, ScheduledPrint, User, db

log = structlog.get_logger()

MAX_ORDERS_AT_ONCE = 100


def schedule_order_prints(
    user_id: int,
    order_id: int,
    printer_id: int | str,
    material_type: str | None = None,
    start_offset_minutes: int = 0,
    *,
    now: datetime | None = None,
    rules: PlanRules = USUAL_RULES,
) -> list[ScheduledPrint]:
    """The prints of an order, all or none: chained on one printer, or with "auto" spread over all of the user's so that
    the order is done first. Adds and flushes; the caller commits.

    `now` is the present time unless given.

    Raises:
        NotFound: the order or the printer is not this user's.
        Conflict: the order is unpaid, cancelled, refunded or shipped, its prints are still open, every line is
            digital, one could only be guessed or has a personalization that nobody has seen, or no printer fits.
        Invalid: a quantity that cannot be planned.
    """
    now = now or datetime.now(UTC)
    return _schedule(user_id, order_id, printer_id, material_type, start_offset_minutes, now, rules)


def schedule_paid_orders(user_id: int, now: datetime, *, rules: PlanRules = USUAL_RULES) -> list[int]:
    """Make the prints of the user's orders that nothing is asked about any more, if the account wants that: after a
    sync. The ids of those orders.

    Only paid orders of which every line to print is wholly mapped, that never had a print, that are not older than
    `rules.oldest`, and about which a person need not be asked; by their `ship_by`. Two at the same time, or one after
    the other, make an order's prints once. What fits no printer yet is tried again the next time. Commits order by
    order, at most MAX_ORDERS_AT_ONCE; needs an app context with nothing pending.
    """
    done: list[int] = []
    misfits: set[frozenset[tuple[Any, ...]]] = set()
    for order_id, needs in read_mapped_orders(user_id, now - rules.oldest):
        if len(done) == MAX_ORDERS_AT_ONCE:
            break
        if needs in misfits:
            continue
        # Else what was read before the lock would be taken for what is true under it.
        db.session.expire_all()
        try:
            _schedule(user_id, order_id, AUTO, None, 0, now, rules, is_by_itself=True)
        except (Conflict, Invalid, NotFound) as error:
            db.session.rollback()
            log.info("order_not_scheduled", user_id=user_id, order_id=order_id, reason=error.code)
            if error.code == "no_printer_fits":
                misfits.add(needs)
            continue
        db.session.commit()
        done.append(order_id)
    return done


def _schedule(
    user_id: int,
    order_id: int,
    printer_id: int | str,
    material_type: str | None,
    start_offset_minutes: int,
    now: datetime,
    rules: PlanRules,
    *,
    is_by_itself: bool = False,
) -> list[ScheduledPrint]:
    # Printers first: locked against being removed meanwhile, and the worker takes them in this order, too.
    _lock_printers(user_id, printer_id)
    order = order_to_print(user_id, order_id, is_to_be_locked=True)
    before = prints_of(order)
    if is_by_itself:
        refuse_by_itself(order, before, now - rules.oldest)
    planned, files = plan_chain(
        order,
        before,
        now,
        material_type,
        start_offset_minutes,
        rules,
        note_profiles=True,
        is_by_itself=is_by_itself,
    )
    where: list[dict[str, Any]] = [{"printer_id": printer_id}] * len(planned)
    if printer_id == AUTO:
        plan = _plan(order, planned, files, printer_id, now, start_offset_minutes, rules)
        if not plan.fits:
            raise nothing_fits(plan)
        where = [{"printer_id": run.printer_id, "material_slot": run.material_slot} for run in plan.runs]
        planned = [run.planned for run in plan.runs]
    prints = add_prints(
        [
            {"user_id": user_id, "order_id": order_id, **at, **{name: getattr(each, name) for name in each.__slots__}}
            for each, at in zip(planned, where, strict=True)
        ],
        at=now,
    )
    added = [PrintOfOrder(each.id, each.order_item_id, each.status, False) for each in prints]
    order.production_status, order.updated_at = production_status_of([*before, *added]), now
    return prints


def plan_order_prints(
    user_id: int,
    order_id: int,
    printer_id: int | str,
    material_type: str | None = None,
    start_offset_minutes: int = 0,
    *,
    now: datetime,
    rules: PlanRules = USUAL_RULES,
) -> OrderPlan:
    """What `schedule_order_prints` would make of the same arguments, and when it would run. Raises the same, but for a
    plan that fits nowhere, which is an answer. Reads; changes nothing."""
    if printer_id != AUTO:
        _find_printer(user_id, printer_id)
    order = order_to_print(user_id, order_id, is_to_be_locked=False)
    planned, files = plan_chain(
        order, prints_of(order), now, material_type, start_offset_minutes, rules, note_profiles=False
    )
    plan = _plan(order, planned, files, printer_id, now, start_offset_minutes, rules)
    return replace(plan, skipped=tuple(line.id for line in printable_lines(order)[1]))


def _find_printer(user_id: int, printer_id: int | str) -> None:
    found = sa.select(Printer.id).where(
        Printer.user_id == user_id, Printer.id == printer_id, Printer.deleted_at.is_(None)
    )
    if db.session.execute(found).scalar_one_or_none() is None:
        raise NotFound


ALL_LOCKED = (
    sa.select(Printer.id)
    .where(Printer.user_id == sa.bindparam("mine"), Printer.deleted_at.is_(None))
    .order_by(Printer.id)
    .with_for_update(read=True)
)
ONE_LOCKED = ALL_LOCKED.where(Printer.id == sa.bindparam("printer"))


def _lock_printers(user_id: int, printer_id: int | str) -> None:
    if printer_id != AUTO:
        # An order of somebody else's is not found either, and must not be told from this.
        if db.session.execute(ONE_LOCKED, {"mine": user_id, "printer": printer_id}).scalar_one_or_none() is None:
            raise NotFound
        return
    # One spread at a time, or two orders would go into the same gap.
    db.session.execute(sa.select(User.id).where(User.id == user_id).with_for_update(key_share=True))
    db.session.execute(ALL_LOCKED, {"mine": user_id}).all()


def _plan(
    order: Order,
    planned: Sequence[PlannedPrint],
    files: dict[int, PrintFile],
    printer_id: int | str,
    now: datetime,
    start_offset_minutes: int,
    rules: PlanRules,
) -> OrderPlan:
    return plan_order(
        order,
        db.session.get_one(User, order.user_id),
        planned,
        files,
        None if printer_id == AUTO else int(printer_id),
        now=now,
        earliest=now + start_offset_minutes * MINUTE,
        rules=rules,
    )


def add_prints(values: Sequence[dict[str, Any]], *, at: datetime) -> list[ScheduledPrint]:
    """Write new prints, each with the first event of its history: two statements, however many. In running order."""
    # Not `add_all`: SQLite cannot tell which new id is whose, so the ORM would insert row by row to find out.
    made = db.session.scalars(
        sa.insert(ScheduledPrint).returning(ScheduledPrint),
        [{"created_at": at, "updated_at": at, **each} for each in values],
        # Else a row with a NULL more than its neighbour would be a statement of its own.
        execution_options={"render_nulls": True},
    ).all()
    # Through the session, for the live channel hears of it there.
    db.session.execute(
        sa.insert(PrintEvent.__table__),
        [
            {
                "user_id": each.user_id,
                "printer_id": each.printer_id,
                "print_id": each.id,
                "kind": "print.created",
                "to_status": each.status,
                "details": {},
                "at": at,
            }
            for each in made
        ],
    )
    first = datetime.min.replace(tzinfo=UTC)
    return sorted(made, key=lambda each: (-each.priority, each.scheduled_start or first, each.id))
