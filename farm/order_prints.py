"""An order's lines -> what of them is printed, from which files, and what stands against it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import joinedload

from errors import Conflict, Invalid, NotFound
from farm.line_plates import RECORDABLE, LinePlates, Mappings, Why, waits_for_person
from farm.order_plan import OrderPlan, PlanRules
from farm.orders import PrintOfOrder
from farm.planner import PlannedPrint, PlanRefused, plan_prints
from farm.staffed import MINUTE
from models import OPEN_STATUSES, Order, OrderItem, OrderStatus, PrintFile, ProductionStatus, ProductProfile, db

# Built once: a statement takes longer to build than to run.
ALL_PROFILES = (
    sa.select(ProductProfile)
    .where(ProductProfile.user_id == sa.bindparam("mine"))
    .options(joinedload(ProductProfile.print_file))
)
PROFILES = ALL_PROFILES.where(
    sa.or_(
        ProductProfile.sku.in_(sa.bindparam("skus", expanding=True)),
        ProductProfile.etsy_listing_id.in_(sa.bindparam("listings", expanding=True)),
        ProductProfile.product_name.in_(sa.bindparam("titles", expanding=True)),
    )
)
ORDER = (
    sa.select(Order)
    .where(Order.user_id == sa.bindparam("mine"), Order.id == sa.bindparam("order"))
    # Not by a second SELECT: SQLite would look for the lines among all that the user ever had.
    .options(joinedload(Order.items))
)
ORDER_LOCKED = ORDER.with_for_update(of=Order)


def link_profiles(user_id: int, shop_id: int | None, lines: Iterable[OrderItem]) -> dict[OrderItem, LinePlates]:
    """What lines of orders of one shop need, each with its product profile noted on it; a query or two, however many
    lines. What was noted before counts for nothing: a profile may have come, gone, or been changed since."""
    found = find_plates(user_id, shop_id, lines)
    for line, each in found.items():
        line.profile_id = each.profile.id if each.profile is not None else None
    return found


def find_plates(user_id: int, shop_id: int | None, lines: Iterable[OrderItem]) -> dict[OrderItem, LinePlates]:
    """The same, with nothing noted."""
    lines = list(lines)
    asked = {
        "mine": user_id,
        "skus": [line.sku for line in lines if line.sku],
        "listings": [line.etsy_listing_id for line in lines if line.etsy_listing_id],
        "titles": [line.title for line in lines],
    }
    mappings = _with_files(user_id, db.session.execute(PROFILES, asked).scalars().all())
    return {line: mappings.plates_of(line, shop_id) for line in lines}


def read_mappings(user_id: int) -> Mappings:
    """All that a seller's product profiles say."""
    return _with_files(user_id, db.session.execute(ALL_PROFILES, {"mine": user_id}).scalars().all())


def _with_files(user_id: int, profiles: Sequence[ProductProfile]) -> Mappings:
    ids = {plate["print_file_id"] for profile in profiles for plate in profile.more_plates or []}
    files: Sequence[PrintFile] = ()
    if ids:
        mine = sa.select(PrintFile).where(PrintFile.user_id == user_id, PrintFile.id.in_(ids))
        files = db.session.execute(mine).scalars().all()
    return Mappings(profiles, {file.id: file for file in files})


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
    is_by_itself: bool = False,
) -> tuple[list[PlannedPrint], dict[int, PrintFile]]:
    """(the order's prints as a chain, the files they name, by id). `before`: all prints the order ever had. What is
    made with no person at it (`is_by_itself`) needs a file for every plate.

    Raises:
        Conflict: its prints are still open, every line is digital, or one of them is not to be printed by guess.
        Invalid: a quantity that cannot be planned.
    """
    if any(each.status in OPEN_STATUSES and not each.is_deleted for each in before):
        raise Conflict("This order already has prints that are not finished.", code="already_scheduled")
    lines, digital = printable_lines(order)
    if not lines:
        raise Conflict(
            "Every line of this order is digital." if digital else "This order has no lines.", code="nothing_to_print"
        )
    find = link_profiles if note_profiles else find_plates
    found = find(order.user_id, order.shop_id, lines)
    _refuse_guessing(lines, found, frozenset() if is_by_itself else RECORDABLE)
    try:
        planned = plan_prints(
            order.label,
            [(line, found[line].plates) for line in lines],
            now=now,
            start_offset_minutes=start_offset_minutes,
            buffer_minutes=rules.clearing // MINUTE,
            material_type=material_type,
        )
    except PlanRefused as error:
        raise Invalid({error.field: [str(error)]}, str(error)) from None
    files = [plate.file for line in lines for plate in found[line].plates]
    return planned, {file.id: file for file in files if file is not None}


def _refuse_guessing(
    lines: Sequence[OrderItem], found: Mapping[OrderItem, LinePlates], allowed: Collection[Why]
) -> None:
    unseen = [_of_line(line, "see what the buyer wants on it, and say so") for line in lines if waits_for_person(line)]
    if unseen:
        raise Conflict(f"{'. '.join(unseen[:3])}.", code="personalization_not_seen", fields={"items": unseen})
    unclear = [_of_line(line, found[line].sentence) for line in lines if found[line].why not in (None, *allowed)]
    if unclear:
        raise Conflict(f"{'. '.join(unclear[:3])}.", code="mapping_unclear", fields={"items": unclear})


def _of_line(line: OrderItem, sentence: str) -> str:
    return f"Line {line.id} ({line.title}): {sentence.rstrip('.')}"


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
