"""An order's lines -> what of them is printed, by which profile and file, and what stands against it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import joinedload

from errors import Conflict, Invalid, NotFound
from farm.order_plan import OrderPlan, PlanRules
from farm.orders import PrintOfOrder
from farm.planner import PlannedPrint, PlanRefused, find_profile, plan_prints
from farm.staffed import MINUTE
from models import OPEN_STATUSES, Order, OrderItem, OrderStatus, PrintFile, ProductionStatus, ProductProfile, db

# Built once: a statement takes longer to build than to run.
PROFILES = (
    sa.select(ProductProfile)
    .where(
        ProductProfile.user_id == sa.bindparam("mine"),
        sa.or_(
            ProductProfile.id.in_(sa.bindparam("linked", expanding=True)),
            ProductProfile.sku.in_(sa.bindparam("skus", expanding=True)),
            ProductProfile.etsy_listing_id.in_(sa.bindparam("listings", expanding=True)),
            ProductProfile.product_name.in_(sa.bindparam("titles", expanding=True)),
        ),
    )
    .options(joinedload(ProductProfile.print_file))
)
ORDER = (
    sa.select(Order)
    .where(Order.user_id == sa.bindparam("mine"), Order.id == sa.bindparam("order"))
    # Not by a second SELECT: SQLite would look for the lines among all that the user ever had.
    .options(joinedload(Order.items))
)
ORDER_LOCKED = ORDER.with_for_update(of=Order)


def link_profiles(user_id: int, lines: Iterable[OrderItem]) -> dict[OrderItem, ProductProfile | None]:
    """Find and note the product profile of each line that has none yet; one query, however many lines."""
    found = find_profiles(user_id, lines)
    for line, profile in found.items():
        if profile is not None and line.profile_id is None:
            line.profile_id = profile.id
    return found


def find_profiles(user_id: int, lines: Iterable[OrderItem]) -> dict[OrderItem, ProductProfile | None]:
    """The product profile of each line: the one noted there, else the one that fits it."""
    lines = list(lines)
    linked = [line.profile_id for line in lines if line.profile_id]
    missing = [line for line in lines if line.profile_id is None]
    asked = {
        "mine": user_id,
        "linked": linked,
        "skus": [line.sku for line in missing if line.sku],
        "listings": [line.etsy_listing_id for line in missing if line.etsy_listing_id],
        "titles": [line.title for line in missing],
    }
    profiles = db.session.execute(PROFILES, asked).scalars().all()
    by_id = {profile.id: profile for profile in profiles}
    return {line: by_id.get(line.profile_id) if line.profile_id else find_profile(line, profiles) for line in lines}


def printable_lines(order: Order) -> tuple[list[OrderItem], list[OrderItem]]:
    """(lines to print, digital lines that are skipped)."""
    return [line for line in order.items if not line.is_digital], [line for line in order.items if line.is_digital]


def order_to_print(user_id: int, order_id: int, *, is_to_be_locked: bool) -> Order:
    """An order with its lines, if it may be printed.

    Raises:
        NotFound: it is not this user's.
        Conflict: unpaid, cancelled, refunded or shipped.
    """
    query = ORDER_LOCKED if is_to_be_locked else ORDER
    order = db.session.execute(query, {"mine": user_id, "order": order_id}).unique().scalar_one_or_none()
    if order is None:
        raise NotFound
    _refuse_unprintable(order)
    return order


def plan_chain(
    order: Order,
    before: Sequence[PrintOfOrder],
    now: datetime,
    material_type: str | None,
    start_offset_minutes: int,
    rules: PlanRules,
    *,
    note_profiles: bool,
) -> tuple[list[PlannedPrint], dict[int, PrintFile]]:
    """(the order's prints as a chain, the files they name, by id). `before`: all prints the order ever had.

    Raises:
        Conflict: its prints are still open, or every line is digital.
        Invalid: a quantity that cannot be planned.
    """
    if any(each.status in OPEN_STATUSES and not each.is_deleted for each in before):
        raise Conflict("This order already has prints that are not finished.", code="already_scheduled")
    lines, digital = printable_lines(order)
    if not lines:
        raise Conflict(
            "Every line of this order is digital." if digital else "This order has no lines.", code="nothing_to_print"
        )
    profiles = link_profiles(order.user_id, lines) if note_profiles else find_profiles(order.user_id, lines)
    try:
        planned = plan_prints(
            order.label,
            [(line, profiles[line]) for line in lines],
            now=now,
            start_offset_minutes=start_offset_minutes,
            buffer_minutes=rules.clearing // MINUTE,
            material_type=material_type,
        )
    except PlanRefused as error:
        raise Invalid({error.field: [str(error)]}, str(error)) from None
    files = [profile.print_file for profile in profiles.values() if profile is not None]
    return planned, {file.id: file for file in files if file is not None}


def _refuse_unprintable(order: Order) -> None:
    reason = None
    if order.production_status is ProductionStatus.shipped or order.status is OrderStatus.completed:
        reason = "shipped"
    elif order.status is not OrderStatus.paid:
        reason = "not paid" if order.status is OrderStatus.open else order.status.value
    if reason:
        raise Conflict(f"This order is {reason}: nothing to print.", code="order_not_printable")


def nothing_fits(plan: OrderPlan) -> Conflict:
    """Why nothing is scheduled, printer by printer."""
    if not plan.refused:
        return Conflict("There is no printer to print this order on yet.", code="no_printer_fits")
    reasons = [f"{each.name}: {'; '.join(each.reasons)}" for each in plan.refused]
    name = next(run.planned.job_name for run in plan.runs if run.printer_id is None)
    return Conflict(
        f"No printer takes {name}. {'. '.join(reasons[:3])}.", code="no_printer_fits", fields={"printer_id": reasons}
    )
