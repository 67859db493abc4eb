"""Orders from Etsy: what changed, what was cancelled, what Etsy does not tell of its own accord, and what it tells.

One sync of a shop at a time, held by a claim on its row that each written page renews. A page is written in the
transaction of that renewal, so whoever has lost the claim writes nothing more. A cursor moves with each page, up to
where all has come, so what broke off goes on there. Cursors are Etsy's time, whatever the clock here says.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog

from etsy_client import EtsyClient, EtsyError, NotFound, RateLimited, ReceiptPage, ReconnectNeeded, Refused
from etsy_pages import PageAsked, walk_pages
from etsy_tokens import RECONNECT, EtsyAccess, ShopCalls
from farm.order_import import BadReceipt, ImportedOrder, read_receipt
from farm.order_rows import Written, write_orders
from farm.withdrawal import withdraw_prints
from models import EtsyNotice, Order, OrderStatus, ProductionStatus, Shop, count_changed, db
from vault import SealBroken

log = structlog.get_logger()

# Receipts become visible a little after their time stamp.
OVERLAP = timedelta(minutes=10)
# A time that Etsy told and that is further ahead of ours than this is believed to be a fault of its own.
MOST_AHEAD = timedelta(days=1)
# Refunds and new ship dates do not count as changes at Etsy (issues 232, 513 and 604 of etsy/open-api): four a day.
OPEN_ORDERS_EVERY = timedelta(hours=6)
# A call each: of thousands a part at a time, or nothing would be left of the day's calls to bring in new ones.
OPEN_ORDERS_SHARE, OPEN_ORDERS_AT_ONCE = 10, 1000
# Nobody waits longer for an answer of Etsy's than this: a sync without a sign of life has died.
ABANDONED = timedelta(minutes=5)
NOTICE_RETRY = timedelta(minutes=1)
READ_BEFORE_PRINT = timedelta(minutes=10)
MAX_ERROR = 500
OPEN_AT_ETSY = (OrderStatus.open, OrderStatus.paid)


class SyncHeld(Exception):
    """Another one holds this shop's sync, from the beginning or by now."""


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What one sync of one shop did; `unreadable` receipts were skipped, with a log line each. What Etsy sent again
    without a change is in none of them."""

    shop_id: int
    user_id: int
    created: int
    updated: int
    unreadable: int
    withdrawn: int
    requests: int


def sync_due(access: EtsyAccess, now: datetime) -> list[SyncResult]:
    """Sync each shop whose time has come, or of which Etsy has sent word; what was done. Needs an app context. A shop
    that cannot be synced is said in the log and on its row, and holds up no other."""
    rows = db.session.execute(_due(access, now)).all()
    db.session.commit()
    done = []
    for shop_id, is_time in rows:
        try:
            done.append(sync_shop(shop_id, access, only_notices=not is_time))
        except SyncHeld:
            continue
        except (EtsyError, SealBroken, sa.exc.DBAPIError) as error:
            db.session.rollback()
            log.warning("etsy_sync_failed", shop_id=shop_id, error=type(error).__name__)
    return done


def _due(access: EtsyAccess, now: datetime) -> sa.Select[int, bool]:
    every = timedelta(minutes=access.settings.etsy_sync_minutes)
    is_time = sa.or_(Shop.sync_ended_at.is_(None), Shop.sync_ended_at <= now - every, Shop.sync_ended_at > now + every)
    has_word = sa.and_(
        sa.exists().where(EtsyNotice.shop_id == Shop.id, EtsyNotice.done_at.is_(None)),
        # Else word that cannot be followed would be followed at every look.
        sa.or_(Shop.sync_error.is_(None), Shop.sync_ended_at <= now - NOTICE_RETRY),
    )
    query = (
        sa.select(Shop.id, is_time)
        .where(
            Shop.reconnect_needed_at.is_(None),
            sa.or_(Shop.parked_until.is_(None), Shop.parked_until <= now),
            sa.or_(Shop.syncing_by.is_(None), Shop.syncing_since < now - ABANDONED),
            sa.or_(is_time, has_word),
        )
        .order_by(Shop.id)
    )
    return query if access.client() is not None else query.where(Shop.keystring.is_not(None))


def sync_shop(shop_id: int, access: EtsyAccess, *, only_notices: bool = False) -> SyncResult:
    """Bring one shop's orders up to date. Commits by itself; needs an app context.

    What was seen before changes nothing, so a sync that breaks off is simply done again.

    Raises:
        SyncHeld: it is being synced already.
        EtsyError: RateLimited has parked the shop; ReconnectNeeded and others are said on its row.
        SealBroken: what is stored of its login cannot be opened.
    """
    return _Sync(shop_id, access).run(only_notices)


class _Sync:
    def __init__(self, shop_id: int, access: EtsyAccess) -> None:
        self._shop_id, self._access = shop_id, access
        self._holder = secrets.token_hex(16)
        self._begun_at = self._asked_at = access.clock()
        # Columns of the shop that go out with the next sign of life.
        self._pending: dict[str, Any] = {}
        self._created = self._updated = self._unreadable = self._withdrawn = self._seen = 0
        self._pass, self._of = "changed", 0
        # The end of what is read, by Etsy's time: known with its first answer.
        self._until: datetime | None = None
        self._calls: ShopCalls

    def run(self, only_notices: bool) -> SyncResult:
        self._claim()
        try:
            self._calls = ShopCalls(self._shop_id, self._access)
            self._run_passes(only_notices)
        except SyncHeld:
            db.session.rollback()
            raise
        except BaseException as error:
            db.session.rollback()
            self._end(self._sentence(error))
            raise
        self._end(None, is_whole=not only_notices)
        counts = self._created, self._updated, self._unreadable, self._withdrawn
        return SyncResult(self._shop_id, self._calls.user_id, *counts, self._calls.count)

    def _claim(self) -> None:
        claimed = count_changed(
            sa.update(Shop)
            .where(
                Shop.id == self._shop_id,
                sa.or_(Shop.syncing_by.is_(None), Shop.syncing_since < self._begun_at - ABANDONED),
            )
            .values(syncing_by=self._holder, syncing_since=self._begun_at, sync_progress=self._progress(0))
        )
        db.session.commit()
        if not claimed:
            raise SyncHeld

    def _run_passes(self, only_notices: bool) -> None:
        shop = db.session.get_one(Shop, self._shop_id)
        changed_since, canceled_since, read_at = shop.synced_until, shop.canceled_until, shop.open_orders_read_at
        now = self._begun_at
        self._read_notices()
        if not only_notices:
            self._read_window("changed", "synced_until", changed_since, None)
            # Etsy leaves cancelled receipts out unless they are asked for.
            self._read_window("canceled", "canceled_until", canceled_since, True)
            if read_at is None or read_at <= now - OPEN_ORDERS_EVERY:
                self._read_open_orders(now)
                self._pending["open_orders_read_at"] = now
        self._withdrawn = withdraw_prints(self._calls.user_id, self._shop_id, now=self._access.clock())
        db.session.commit()

    def _read_window(self, name: str, cursor: str, since: datetime | None, was_canceled: bool | None) -> None:
        """What was changed since `since`, which the column `cursor` of the shop follows."""
        self._pass = name
        self._of = 0
        earliest = since - OVERLAP if since else None
        reached = since
        before: Sequence[object] = ()

        def fetch(asked: PageAsked) -> ReceiptPage:
            self._asked_at = self._access.clock()
            # Else what changes while it is read would be read to no end.
            latest = asked.latest or self._until
            if latest is not None and asked.earliest is not None:
                latest = max(latest, asked.earliest)

            def ask(client: EtsyClient, token: str) -> ReceiptPage:
                return client.get_receipt_page(
                    token,
                    self._calls.etsy_shop_id,
                    min_last_modified=asked.earliest,
                    max_last_modified=latest,
                    was_canceled=was_canceled,
                    is_by_id=asked.is_by_id,
                    offset=asked.offset,
                )

            page = self._calls.read(ask)
            self._until = self._until or self._etsy_time()
            return page

        for page, whole_until in walk_pages(fetch, earliest):
            until = self._until or self._begun_at
            if earliest is not None and earliest > until:
                # Written by a clock that was ahead of Etsy's: what it passed over nobody knows.
                self._read_window(name, cursor, None, was_canceled)
                return
            # What is left of the window gets less.
            self._of = max(self._of, page.count)
            if whole_until is not None and (reached is None or whole_until > reached):
                reached = min(whole_until, until)
            self._write([each for each in page.receipts if each not in before], moving={cursor: reached})
            before = page.receipts
        self._pending[cursor] = self._until

    def _etsy_time(self) -> datetime:
        """Of the answer that was just given. A cursor ahead of it would pass over what is yet to change before it."""
        told = self._calls.etsy_time
        return told if told is not None and told <= self._access.clock() + MOST_AHEAD else self._begun_at

    def _read_open_orders(self, now: datetime) -> None:
        self._pass = "open"
        # One that has just come in was read just now.
        read_at = sa.func.coalesce(Order.read_at, Order.created_at)
        waiting = sa.select(Order.etsy_order_id).where(
            Order.user_id == self._calls.user_id,
            Order.shop_id == self._shop_id,
            Order.status.in_(OPEN_AT_ETSY),
            Order.production_status != ProductionStatus.shipped,
            read_at <= now - OPEN_ORDERS_EVERY,
        )
        limit = self._calls.limit_per_day
        at_once = OPEN_ORDERS_AT_ONCE if limit is None else max(1, limit // OPEN_ORDERS_SHARE)
        ids = db.session.execute(waiting.order_by(read_at, Order.ship_by, Order.id).limit(at_once)).scalars().all()
        self._read_by_id([each for each in ids if each is not None])

    def _read_notices(self) -> None:
        """The orders that Etsy has sent word of. What its word says is not believed, only what Etsy answers."""
        self._pass = "notices"
        waiting = sa.select(EtsyNotice.id, EtsyNotice.etsy_order_id).where(
            EtsyNotice.shop_id == self._shop_id, EtsyNotice.done_at.is_(None)
        )
        notices = db.session.execute(waiting).all()
        if not notices:
            return
        self._read_by_id(list(dict.fromkeys(each.etsy_order_id for each in notices if each.etsy_order_id)))
        done = sa.update(EtsyNotice).where(EtsyNotice.id.in_([each.id for each in notices]))
        db.session.execute(done.values(done_at=self._access.clock()))
        db.session.commit()

    def _read_by_id(self, etsy_order_ids: Sequence[str]) -> None:
        self._of = len(etsy_order_ids)
        for etsy_order_id in etsy_order_ids:
            self._asked_at = self._access.clock()
            try:
                receipt = self._calls.read(
                    lambda client, token, asked=etsy_order_id: client.get_receipt(  # type: ignore[misc]
                        token, self._calls.etsy_shop_id, int(asked)
                    )
                )
            except (NotFound, Refused):
                # One order that cannot be read must not keep all the others from coming in.
                log.warning("etsy_order_not_read", shop_id=self._shop_id, etsy_order_id=etsy_order_id)
                self._hold()
                note_read(self._calls.user_id, self._shop_id, etsy_order_id, now=self._access.clock())
                db.session.commit()
                continue
            self._write([receipt], was_asked_by_id=True)

    def _write(
        self, receipts: Sequence[object], *, moving: Mapping[str, Any] | None = None, was_asked_by_id: bool = False
    ) -> None:
        """`moving`: columns of the shop that are so with these receipts, and not without."""
        orders = [order for each in receipts if (order := self._read(each)) is not None]
        self._seen += len(receipts)
        if not receipts:
            return
        # First: it locks the shop's row, so that of two who take themselves for the holder only one goes on.
        self._hold(moving)
        done = (
            write_orders(
                self._calls.user_id,
                self._shop_id,
                self._calls.currency,
                orders,
                asked_at=self._asked_at,
                now=self._access.clock(),
                was_asked_by_id=was_asked_by_id,
            )
            if orders
            else Written(0, 0)
        )
        db.session.commit()
        self._created, self._updated = self._created + done.created, self._updated + done.updated

    def _read(self, receipt: object) -> ImportedOrder | None:
        try:
            return read_receipt(receipt)
        except BadReceipt as error:
            self._unreadable += 1
            log.warning("receipt_unreadable", shop_id=self._shop_id, reason=error.reason)
            return None

    def _hold(self, moving: Mapping[str, Any] | None = None) -> None:
        """A sign of life with how far it has come, in the transaction of what is written. Raises SyncHeld."""
        values = {"syncing_since": self._access.clock(), "sync_progress": self._progress(self._calls.count)}
        mine = sa.update(Shop).where(Shop.id == self._shop_id, Shop.syncing_by == self._holder)
        if not count_changed(mine.values({**values, **self._pending, **(moving or {})})):
            raise SyncHeld
        self._pending = {}

    def _progress(self, requests: int) -> dict[str, Any]:
        return {
            "reading": self._pass,
            "seen": self._seen,
            "of": self._of,
            "created": self._created,
            "updated": self._updated,
            "unreadable": self._unreadable,
            "requests": requests,
            "begun_at": self._begun_at.isoformat().replace("+00:00", "Z"),
        }

    def _end(self, error: str | None, *, is_whole: bool = True) -> None:
        calls = getattr(self, "_calls", None)
        values: dict[str, Any] = {
            "syncing_by": None,
            "syncing_since": None,
            "sync_error": error,
            "sync_progress": self._progress(calls.count if calls else 0),
            **self._pending,
        }
        if is_whole:
            # What Etsy sent word of was read by itself: the next whole sync comes in its own time.
            values["sync_ended_at"] = self._access.clock()
        mine = sa.update(Shop).where(Shop.id == self._shop_id, Shop.syncing_by == self._holder)
        db.session.execute(mine.values(values))
        db.session.commit()

    def _sentence(self, error: BaseException) -> str:
        if isinstance(error, ReconnectNeeded):
            return RECONNECT
        if isinstance(error, SealBroken):
            return "The stored login of this shop cannot be read. Connect it again."
        if isinstance(error, RateLimited):
            until = self._access.clock() + timedelta(seconds=error.retry_after_seconds)
            return f"Etsy's limit of calls is used up: nothing is asked until {until:%Y-%m-%dT%H:%M:%SZ}."
        return str(error)[:MAX_ERROR] if isinstance(error, EtsyError) else "The sync broke off."


def note_read(user_id: int, shop_id: int, etsy_order_id: str, *, now: datetime) -> None:
    """That Etsy was asked about an order, whatever came of it. The caller commits."""
    mine = sa.update(Order).where(Order.user_id == user_id, Order.shop_id == shop_id)
    db.session.execute(mine.where(Order.etsy_order_id == etsy_order_id).values(read_at=now))


def look_again(user_id: int, order_id: int, access: EtsyAccess) -> bool:
    """Ask Etsy about this very order right before it is printed, and write down what has changed: a cancelled order's
    waiting prints are gone after this. Commits; needs an app context.

    True if what is stored is what Etsy said in the last ten minutes, or was never Etsy's. False if Etsy cannot be
    asked now, for whatever reason: it is no news about the order.
    """
    order = db.session.execute(
        sa.select(Order.shop_id, Order.etsy_order_id, Order.read_at).where(
            Order.user_id == user_id, Order.id == order_id
        )
    ).one()
    db.session.commit()
    now = access.clock()
    if order.shop_id is None or order.etsy_order_id is None:
        return True
    if order.read_at is not None and now - READ_BEFORE_PRINT < order.read_at <= now:
        return True
    try:
        calls = ShopCalls(order.shop_id, access)
        receipt = calls.ask(
            lambda client, token: client.get_receipt(token, calls.etsy_shop_id, int(order.etsy_order_id))
        )
        imported = read_receipt(receipt)
    except (EtsyError, SealBroken, BadReceipt) as error:
        db.session.rollback()
        log.warning("etsy_order_not_read", order_id=order_id, error=type(error).__name__)
        return False
    if imported.etsy_order_id != order.etsy_order_id:
        return False
    write_orders(
        user_id, order.shop_id, calls.currency, [imported], asked_at=now, now=access.clock(), was_asked_by_id=True
    )
    db.session.commit()
    withdraw_prints(user_id, order.shop_id, now=access.clock())
    db.session.commit()
    return True
