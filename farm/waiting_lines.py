"""Which lines of paid orders wait for a person, and for what; and which orders wait for nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from errors import Conflict
from farm.line_plates import RECORDABLE, LinePlate, Mappings, Why, plain, waits_for_person
from farm.order_prints import read_mappings
from farm.orders import PrintOfOrder
from models import Order, OrderItem, OrderStatus, PrintStatus, ProductionStatus, ScheduledPrint, User, db

NEVER = datetime.max.replace(tzinfo=UTC)
TOO_OLD = "schedule its prints yourself, or mark the order as shipped."
LINES = (
    sa.select(
        OrderItem.id,
        OrderItem.order_id,
        OrderItem.sku,
        OrderItem.etsy_listing_id,
        OrderItem.title,
        OrderItem.quantity,
        OrderItem.options,
        OrderItem.personalization,
        OrderItem.personalization_seen_at,
        Order.shop_id,
        Order.ship_by,
        Order.ordered_at,
        User.auto_schedule,
    )
    .join(Order, sa.and_(Order.user_id == OrderItem.user_id, Order.id == OrderItem.order_id))
    .join(User, User.id == Order.user_id)
    .where(
        Order.user_id == sa.bindparam("mine"),
        Order.status == OrderStatus.paid,
        Order.production_status != ProductionStatus.shipped,
        OrderItem.is_digital.is_(False),
    )
)
# A line of which something was printed, or is going to be: a deleted print does not count unless it is done.
NOT_PRINTED = ~sa.exists().where(
    ScheduledPrint.user_id == OrderItem.user_id,
    ScheduledPrint.order_item_id == OrderItem.id,
    sa.or_(ScheduledPrint.deleted_at.is_(None), ScheduledPrint.status == PrintStatus.completed),
)
UNPRINTED_LINES = LINES.where(NOT_PRINTED).order_by(OrderItem.id)
# Of orders that a person has had nothing to do with yet, and need not.
UNTOUCHED_LINES = LINES.where(
    User.auto_schedule,
    # A first sync brings in all of a shop's past, and what was sent long ago may never have been marked there.
    Order.ordered_at >= sa.bindparam("since"),
    Order.production_status == ProductionStatus.new,
    Order.partially_refunded.is_(False),
    Order.attention.is_(None),
    ~sa.exists().where(ScheduledPrint.user_id == Order.user_id, ScheduledPrint.order_id == Order.id),
).order_by(Order.ship_by.is_(None), Order.ship_by, Order.id, OrderItem.id)


@dataclass(frozen=True, slots=True)
class WaitingLine:
    """A line that is not printed, as it stands in the list of those."""

    order_id: int
    order_item_id: int
    quantity: int
    ship_by: datetime | None
    personalization: str | None


@dataclass(slots=True)
class Waiting:
    """What waits for one thing that a person has to do, and the lines that wait for it. `shop_id` and on: of the first
    of them."""

    why: Why
    sentence: str
    profile_ids: tuple[int, ...]
    shop_id: int | None
    sku: str | None
    etsy_listing_id: str | None
    title: str
    options: Mapping[str, str]
    lines: list[WaitingLine]

    @property
    def ship_by(self) -> datetime | None:
        return min((each.ship_by for each in self.lines if each.ship_by is not None), default=None)


def read_waiting(user_id: int, since: datetime) -> list[Waiting]:
    """What keeps the unprinted lines of a seller's open, paid orders from being printed by themselves: orders from
    before `since` their age alone."""
    rows = db.session.execute(UNPRINTED_LINES, {"mine": user_id}).all()
    return group_waiting(rows, read_mappings(user_id), since) if rows else []


def read_mapped_orders(user_id: int, since: datetime) -> list[tuple[int, frozenset[tuple[Any, ...]]]]:
    """(order, what it needs) of each order that may become prints by itself, the first to be shipped first; none where
    the account does not want that. Orders that need the same fit, or fit not, on the same printers. `since`: the
    earliest time at which such an order was made."""
    rows = db.session.execute(UNTOUCHED_LINES, {"mine": user_id, "since": since}).all()
    if not rows:
        return []
    mappings = read_mappings(user_id)
    found = []
    for order_id, lines in groupby(rows, key=lambda row: int(row.order_id)):
        needs = [None if waits_for_person(line) else mappings.plates_of(line, line.shop_id) for line in lines]
        if all(need is not None and need.why is None for need in needs):
            found.append(
                (order_id, frozenset(Counter(_need(plate) for need in needs if need for plate in need.plates).items()))
            )
    return found


def _need(plate: LinePlate) -> tuple[Any, ...]:
    return (
        plate.file and plate.file.id,
        plate.plate,
        plate.count,
        plate.material_type,
        plate.color,
        plate.filament_grams,
    )


def refuse_by_itself(order: Order, before: Sequence[PrintOfOrder], since: datetime) -> None:
    """Asked again of the locked order.

    Raises:
        Conflict: it had a print before, it was made before `since`, a person has to look at it, or the account does
            not want it any more.
    """
    if before:
        raise Conflict("This order had prints before.", code="already_scheduled")
    is_wanted = db.session.execute(sa.select(User.auto_schedule).where(User.id == order.user_id)).scalar_one()
    if order.attention is not None or order.partially_refunded or order.ordered_at < since or not is_wanted:
        raise Conflict("A person decides about this order.", code="order_not_printable")


def group_waiting(rows: Iterable[Any], mappings: Mappings, since: datetime) -> list[Waiting]:
    """The same of given lines, those of one product together; the first to be shipped first, what is too old last. A
    row is a Line with `id`, `order_id`, `shop_id`, `ship_by`, `ordered_at`, and the account's `auto_schedule`."""
    groups: dict[tuple[Any, ...], Waiting] = {}
    for row in rows:
        found = mappings.plates_of(row, row.shop_id)
        reasons = [(found.why, found.sentence)] if found.why is not None else []
        if waits_for_person(row):
            reasons.append((Why.personalization, "A person has to see what the buyer wants on it."))
        if row.auto_schedule and row.ordered_at < since and not reasons:
            reasons.append((Why.too_old, f"It was ordered before {since:%Y-%m-%d}: {TOO_OLD}"))
        for why, sentence in reasons:
            ids = () if why is Why.personalization else found.profile_ids
            group = groups.setdefault(
                _key(why, row),
                Waiting(
                    why, sentence, ids, row.shop_id, row.sku, row.etsy_listing_id, row.title, row.options or {}, []
                ),
            )
            group.lines.append(WaitingLine(row.order_id, row.id, row.quantity, row.ship_by, row.personalization))
    return sorted(
        groups.values(),
        key=lambda each: (each.why is Why.too_old, each.ship_by or NEVER, each.lines[0].order_item_id, each.why),
    )


def _key(why: Why, row: Any) -> tuple[Any, ...]:
    """What one mapping would put right for all."""
    if why is Why.personalization:
        return why, row.id
    if row.sku and why in RECORDABLE:
        return why, row.shop_id, row.sku
    options = tuple(sorted((plain(name), plain(value)) for name, value in (row.options or {}).items()))
    return why, row.shop_id, row.sku, row.etsy_listing_id, None if row.etsy_listing_id else row.title, options
