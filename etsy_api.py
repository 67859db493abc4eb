"""Orders from Etsy and the prints that fulfil them: connect a shop, sync, `schedule_order_prints()`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import joinedload

from errors import Conflict, Invalid, NotFound
from etsy_client import EtsyClient, ReconnectNeeded, Tokens, Unauthorized
from farm.order_import import BadReceipt, ImportedOrder, read_receipt
from farm.order_plan import AUTO, USUAL_RULES, OrderPlan, PlanRules, plan_order
from farm.order_prints import link_profiles, nothing_fits, order_to_print, plan_chain, printable_lines
from farm.orders import PrintOfOrder, prints_of, production_status_of
from farm.planner import PlannedPrint
from farm.staffed import MINUTE
from models import (
    Customer,
    EtsyLogin,
    Order,
    OrderItem,
    OrderStatus,
    Printer,
    PrintEvent,
    PrintFile,
    ProductionStatus,
    ScheduledPrint,
    Shop,
    User,
    db,
)
from vault import Vault

log = structlog.get_logger()

LOGIN_LIFE = timedelta(minutes=15)
# Etsy's clock and ours differ, and receipts become visible a little after their time stamp.
SYNC_OVERLAP = timedelta(minutes=10)
REFRESH_AHEAD = timedelta(minutes=5)
UPSERT_BATCH = 50
UNKNOWN_BUYER = "Etsy buyer"
UNSHIPPABLE = (OrderStatus.canceled, OrderStatus.refunded)

Answer = TypeVar("Answer")


def hash_state(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()


def begin_login(client: EtsyClient, vault: Vault, *, user_id: int | None, now: datetime) -> tuple[str, str]:
    """(state, url to open in a browser). The PKCE verifier stays here, sealed, until the login comes back."""
    login = client.new_login()
    state_hash = hash_state(login.state)
    db.session.execute(sa.delete(EtsyLogin).where(EtsyLogin.expires_at < now))
    db.session.add(
        EtsyLogin(
            state_hash=state_hash,
            user_id=user_id,
            verifier_sealed=vault.seal(login.verifier, f"etsy_logins.verifier:{state_hash}"),
            expires_at=now + LOGIN_LIFE,
        )
    )
    return login.state, login.url


def take_login(state: str, vault: Vault, *, now: datetime) -> tuple[str, int | None] | None:
    """(verifier, user who began it) of a login under way, which is used up by this; None if there is none."""
    state_hash = hash_state(state)
    login = db.session.execute(
        sa.select(EtsyLogin).where(EtsyLogin.state_hash == state_hash, EtsyLogin.expires_at >= now).with_for_update()
    ).scalar_one_or_none()
    if login is None:
        return None
    verifier = vault.open(login.verifier_sealed, f"etsy_logins.verifier:{state_hash}")
    db.session.delete(login)
    return verifier, login.user_id


@dataclass(frozen=True, slots=True)
class ShopFound:
    etsy_user_id: str
    etsy_shop_id: str
    name: str
    currency: str
    tokens: Tokens


def look_up_shop(client: EtsyClient, code: str, verifier: str) -> ShopFound:
    """Exchange a login's code and ask whose shop it is. Network only; raises EtsyError, or Invalid without a shop."""
    tokens = client.exchange_code(code, verifier)
    me = client.get_me(tokens.access_token)
    if me.etsy_shop_id is None:
        raise Invalid({"code": ["This Etsy account has no shop."]}, "This Etsy account has no shop.", code="no_shop")
    shop = client.get_shop(tokens.access_token, me.etsy_shop_id)
    return ShopFound(str(me.etsy_user_id), str(shop.etsy_shop_id), shop.name, shop.currency or "USD", tokens)


def connect_shop(found: ShopFound, vault: Vault, *, user_id: int | None, now: datetime) -> User:
    """Keep a shop's tokens with its account; without a user, log in its owner or open an account. Flushes.

    Raises:
        Conflict: the shop is connected to another account.
    """
    shop = db.session.execute(sa.select(Shop).where(Shop.etsy_shop_id == found.etsy_shop_id)).scalar_one_or_none()
    if shop is not None and user_id is not None and shop.user_id != user_id:
        raise Conflict("This Etsy shop is connected to another account.", code="shop_taken")
    owner_id = user_id if user_id is not None else shop.user_id if shop else None
    if owner_id is not None:
        user = db.session.get_one(User, owner_id)
    else:
        user = User(username=found.name, currency=found.currency, created_at=now)
        db.session.add(user)
        db.session.flush()
    if shop is None:
        shop = Shop(user_id=user.id, etsy_shop_id=found.etsy_shop_id, created_at=now)
        db.session.add(shop)
    shop.etsy_user_id, shop.name, shop.currency = found.etsy_user_id, found.name, found.currency
    _keep_tokens(shop, found.tokens, vault)
    db.session.flush()
    return user


def _keep_tokens(shop: Shop, tokens: Tokens, vault: Vault) -> None:
    shop.access_token_sealed = vault.seal(tokens.access_token, shop.secret_owner("access_token"))
    shop.refresh_token_sealed = vault.seal(tokens.refresh_token, shop.secret_owner("refresh_token"))
    shop.token_expires_at = tokens.expires_at


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What one sync of one shop did; `unreadable` receipts were skipped, with a log line each. What Etsy sent again
    without a change is in none of them."""

    created: int
    updated: int
    unreadable: int


def sync_shop(shop: Shop, client: EtsyClient, vault: Vault, *, clock: Callable[[], datetime]) -> SyncResult:
    """Bring in what changed at Etsy since the last sync. Commits by itself: never a transaction open over the network.

    The cursor moves in the last commit only, so a sync that breaks off is done again from where the last one ended,
    and receipts seen twice change nothing. Raises EtsyError.
    """
    shop_id, user_id, etsy_shop_id = shop.id, shop.user_id, int(shop.etsy_shop_id)
    since = shop.synced_until - SYNC_OVERLAP if shop.synced_until else None
    until = clock()

    def receipts(access_token: str) -> list[dict[str, Any]]:
        found = client.iterate_receipts(access_token, etsy_shop_id, min_last_modified=since, max_last_modified=until)
        # Etsy leaves cancelled receipts out unless they are asked for.
        canceled = client.iterate_receipts(
            access_token, etsy_shop_id, min_last_modified=since, max_last_modified=until, was_canceled=True
        )
        return [*found, *canceled]

    raw = _with_token(shop, client, vault, clock, receipts)
    orders, unreadable = [], 0
    for receipt in raw:
        try:
            orders.append(read_receipt(receipt))
        except BadReceipt as error:
            unreadable += 1
            log.warning("receipt_unreadable", shop_id=shop_id, reason=error.reason)
    done: Counter[Upserted] = Counter()
    for start in range(0, len(orders), UPSERT_BATCH):
        for order in orders[start : start + UPSERT_BATCH]:
            done[upsert_order(user_id, shop_id, order, now=until)] += 1
        db.session.commit()
    db.session.execute(sa.update(Shop).where(Shop.id == shop_id).values(synced_until=until))
    db.session.commit()
    return SyncResult(done[Upserted.created], done[Upserted.updated], unreadable)


def _with_token(
    shop: Shop, client: EtsyClient, vault: Vault, clock: Callable[[], datetime], call: Callable[[str], Answer]
) -> Answer:
    """One call with a fresh access token; refreshed ahead of its end, and once more if Etsy says it has ended."""
    if shop.token_expires_at - REFRESH_AHEAD <= clock():
        _refresh(shop, client, vault)
    token = vault.open(shop.access_token_sealed, shop.secret_owner("access_token"))
    db.session.commit()
    try:
        return call(token)
    except Unauthorized:
        _refresh(shop, client, vault)
        token = vault.open(shop.access_token_sealed, shop.secret_owner("access_token"))
        db.session.commit()
        try:
            return call(token)
        except Unauthorized:
            raise ReconnectNeeded("Etsy refuses even a fresh token") from None


def _refresh(shop: Shop, client: EtsyClient, vault: Vault) -> None:
    """New tokens, saved at once. Etsy takes a refresh token only once, so two refreshes must not overlap: the row is
    locked over this one call, the single place where a transaction waits for the network."""
    spent = shop.refresh_token_sealed
    locked = db.session.execute(
        sa.select(Shop).where(Shop.id == shop.id).with_for_update().execution_options(populate_existing=True)
    ).scalar_one()
    if locked.refresh_token_sealed == spent:
        tokens = client.refresh(vault.open(spent, locked.secret_owner("refresh_token")))
        _keep_tokens(locked, tokens, vault)
    db.session.commit()


class Upserted(Enum):
    created = auto()
    updated = auto()
    unchanged = auto()


def upsert_order(user_id: int, shop_id: int, imported: ImportedOrder, *, now: datetime) -> Upserted:
    """Write one imported order with its lines and customer. Flushes. What is seen again changes nothing."""
    known = db.session.execute(
        sa.select(Order)
        .where(Order.user_id == user_id, Order.shop_id == shop_id, Order.etsy_order_id == imported.etsy_order_id)
        .options(joinedload(Order.items))
    )
    order = known.unique().scalar_one_or_none()
    is_new = order is None
    # Whatever reads the database comes before the new row: reading flushes, and the row is not whole yet.
    customer_id = _upsert_customer(user_id, imported, now)
    currency = imported.currency or db.session.get_one(Shop, shop_id).currency
    if order is None:
        order = Order(
            user_id=user_id,
            shop_id=shop_id,
            etsy_order_id=imported.etsy_order_id,
            ordered_at=imported.ordered_at or now,
            created_at=now,
        )
        db.session.add(order)
    order.customer_id = customer_id
    order.buyer_name = imported.buyer_name or UNKNOWN_BUYER
    order.status = OrderStatus(imported.status)
    order.etsy_status = imported.etsy_status[:64] if imported.etsy_status else None
    order.partially_refunded = imported.partially_refunded
    order.total_amount, order.currency = imported.total_amount, currency
    # Etsy overwrites the ship-by of a shipped line: the one stored while it was open stays.
    order.ship_by = imported.ship_by or order.ship_by
    order.shipped_at = imported.shipped_at or order.shipped_at
    order.tracking_number = imported.tracking_number or order.tracking_number
    order.is_gift, order.gift_message = imported.is_gift, imported.gift_message
    order.message_from_buyer = imported.message_from_buyer
    if order.shipped_at is not None or order.status is OrderStatus.completed:
        order.production_status = ProductionStatus.shipped
    by_transaction = {item.etsy_transaction_id: item for item in order.items}
    for line in imported.lines:
        item = by_transaction.get(line.etsy_transaction_id)
        if item is None:
            item = OrderItem(user_id=user_id, etsy_transaction_id=line.etsy_transaction_id)
            order.items.append(item)
        item.etsy_listing_id, item.sku, item.title = line.etsy_listing_id, line.sku, line.title
        item.quantity, item.price, item.currency = line.quantity, line.price, line.currency or currency
        item.options, item.personalization, item.is_digital = line.options, line.personalization, line.is_digital
    is_changed = is_new or any(db.session.is_modified(each) for each in (order, *order.items))
    if is_changed:
        order.updated_at = now
    db.session.flush()
    link_profiles(user_id, order.items)
    db.session.flush()
    return Upserted.created if is_new else Upserted.updated if is_changed else Upserted.unchanged


def _upsert_customer(user_id: int, imported: ImportedOrder, now: datetime) -> int | None:
    if imported.buyer_user_id is None:
        return None
    customer = db.session.execute(
        sa.select(Customer).where(Customer.user_id == user_id, Customer.etsy_buyer_id == imported.buyer_user_id)
    ).scalar_one_or_none()
    if customer is None:
        customer = Customer(user_id=user_id, etsy_buyer_id=imported.buyer_user_id, created_at=now)
        db.session.add(customer)
    customer.name = imported.buyer_name or customer.name or UNKNOWN_BUYER
    customer.email = imported.buyer_email or customer.email
    if db.session.is_modified(customer):
        customer.updated_at = now
    db.session.flush()
    return customer.id


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
            digital, or no printer fits.
        Invalid: a quantity that cannot be planned.
    """
    now = now or datetime.now(UTC)
    # Printers first: locked against being removed meanwhile, and the worker takes them in this order, too.
    _lock_printers(user_id, printer_id)
    order = order_to_print(user_id, order_id, is_to_be_locked=True)
    before = prints_of(order)
    planned, files = plan_chain(order, before, now, material_type, start_offset_minutes, rules, note_profiles=True)
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
