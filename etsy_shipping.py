"""Shipping back: an order's tracking goes to Etsy once, since each success there mails the buyer.

The submission is claimed on the order's row before it goes out and its outcome written after, so that two at once make
one, and one that broke off is never repeated blindly: Etsy is asked for the receipt first, every time. No transaction
is open while the network is waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog

from errors import Conflict, NotFound, TooManyRequests, UpstreamFailed
from etsy_client import EtsyClient, EtsyError, RateLimited, ReconnectNeeded, Refused, Unavailable
from etsy_client import NotFound as NotAtEtsy
from etsy_tokens import EtsyAccess, ShopCalls
from farm.order_import import BadReceipt, ImportedOrder, read_receipt, tracking_codes
from farm.order_rows import write_orders
from farm.orders import prints_of
from farm.shipping import LOST_TRACKING, is_same_code, say_tracking, unfinished
from farm.withdrawal import withdraw_prints
from models import Order, OrderStatus, ProductionStatus, count_changed, db
from vault import SealBroken

log = structlog.get_logger()

OTHER_CARRIER = "other"
# Longer than one submission may take, waits for Etsy's limits included: after that it has ended, whoever began it.
ABANDONED = timedelta(minutes=3)
UNKNOWN = (
    "Etsy's answer did not arrive, so it may have the tracking or not. Send the same again in three minutes: Etsy is "
    "asked first, and no buyer gets two mails."
)
PRESS_THERE = (
    "Mark it as shipped there yourself: open Shop Manager, Orders & Shipping, the order {number}, press “Complete "
    "order” (“Mark as shipped” in some layouts), enter {tracking} and confirm. Etsy then mails the buyer."
)


@dataclass(frozen=True, slots=True)
class Parcel:
    """What goes to Etsy. Without `tracking_code` the order is only marked as shipped; a code without `carrier_name`
    goes as "other". `wants_copy`: Etsy mails the seller, too."""

    tracking_code: str | None
    carrier_name: str | None
    note_to_buyer: str | None = None
    wants_copy: bool = False


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a receipt says: `has_parcel` is the code that was sent, or, without one, that it is shipped."""

    has_parcel: bool
    is_shipped: bool
    has_tracking: bool


def ship_order(user_id: int, order_id: int, parcel: Parcel, access: EtsyAccess) -> None:
    """Ship an order: at Etsy where it came from there, else here alone. Commits by itself; needs an app context.

    What became of it stands on the order's row: `ship_confirmed_at` where Etsy has it, `ship_error` where a person has
    something to do there. The same again changes nothing and sends nothing.

    Raises:
        NotFound: no such order of this user's.
        Conflict: not everything is printed, the order is not one to ship, it is shipped with another code, it is being
            sent just now, or Etsy refuses.
        TooManyRequests: Etsy's limit is used up; nothing was sent.
        UpstreamFailed: Etsy could not be asked (nothing was sent), or did not answer (`ship_unknown`).
    """
    order = _lock(user_id, order_id)
    # A sync may have met what we sent before we knew what became of it: Etsy is still asked for the tracking.
    is_unsettled = order.ship_sent_at is not None and order.ship_confirmed_at is None
    if order.production_status is not ProductionStatus.shipped:
        _check(order)
    elif not is_unsettled:
        _answer_again(order, parcel, access.clock())
        return
    if order.shop_id is None or order.etsy_order_id is None:
        _record_here(order, parcel, None, access.clock())
        return
    submission = _Submission(order, order.shop_id, order.etsy_order_id, parcel, access)
    db.session.commit()
    submission.run()


def _lock(user_id: int, order_id: int) -> Order:
    query = sa.select(Order).where(Order.user_id == user_id, Order.id == order_id)
    locked = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    order = db.session.execute(locked).scalar_one_or_none()
    if order is None:
        raise NotFound
    return order


def _check(order: Order) -> None:
    if order.status is not OrderStatus.paid:
        raise Conflict(f"{order.label} is {order.status}: only a paid order is shipped.", code="order_not_shippable")
    open_lines = unfinished(order.items, prints_of(order))
    if open_lines:
        sentence = f"{order.label} is not all printed: {'; '.join(open_lines[:5])}."
        raise Conflict(sentence, code="not_printed", fields={"items": open_lines})


def _answer_again(order: Order, parcel: Parcel, now: datetime) -> None:
    """Of an order that is shipped: nothing for the same code. What Etsy was never told may still be corrected."""
    if not is_same_code(order.tracking_number, parcel.tracking_code):
        if order.ship_confirmed_at is not None or (order.shop_id is not None and order.status is OrderStatus.completed):
            raise already_shipped(order)
        _record_here(order, parcel, order.shipped_at, now)
        return
    db.session.commit()


def already_shipped(order: Order) -> Conflict:
    is_there = order.tracking_number and not order.ship_error
    having = f"with the tracking number {order.tracking_number}" if is_there else "without a number"
    return Conflict(
        f"{order.label} is shipped at Etsy already, {having}. What is to change is changed there.",
        code="already_shipped",
    )


def _record_here(order: Order, parcel: Parcel, shipped_at: datetime | None, now: datetime, refusal: str = "") -> None:
    """Shipped, as far as we are concerned. `refusal` is why Etsy does not hear of it from us; it keeps its own word."""
    values: dict[str, Any] = {**_columns(parcel), **_shipped(now), "shipped_at": shipped_at or now}
    if order.etsy_order_id is None:
        values["status"] = OrderStatus.completed
    else:
        told = refusal or "Etsy was not told."
        values["ship_error"] = f"{told} {press_there(order.etsy_order_id, parcel)}"
        values["ship_sent_at"] = None
    _write_row(order.id, values)
    db.session.commit()
    log.info("order_shipped_here", order_id=order.id, is_etsys=order.etsy_order_id is not None)


def press_there(etsy_order_id: str, parcel: Parcel) -> str:
    """What a person does at Etsy so that the buyer gets the mail."""
    return PRESS_THERE.format(number=etsy_order_id, tracking=_said(parcel))


def _said(parcel: Parcel) -> str:
    return say_tracking(parcel.tracking_code, parcel.carrier_name)


def _columns(parcel: Parcel) -> dict[str, Any]:
    return {"tracking_number": parcel.tracking_code, "carrier_name": parcel.carrier_name}


def _shipped(now: datetime) -> dict[str, Any]:
    return {"production_status": ProductionStatus.shipped, "updated_at": now}


def _write_row(order_id: int, values: Mapping[str, Any], *conditions: sa.ColumnElement[bool]) -> int:
    return count_changed(sa.update(Order).where(Order.id == order_id, *conditions).values(values))


class _Submission:
    """One call's way to Etsy and back."""

    def __init__(self, order: Order, shop_id: int, etsy_order_id: str, parcel: Parcel, access: EtsyAccess) -> None:
        self._user_id, self._order_id, self._shop_id, self._etsy_order_id = (
            order.user_id,
            order.id,
            shop_id,
            etsy_order_id,
        )
        self._parcel, self._access = parcel, access
        self._claimed_at: datetime | None = None
        self._before: dict[str, Any] = {}
        self._calls: ShopCalls

    def run(self) -> None:
        try:
            self._calls = self._open_calls()
            if self._settle(self._look()) or not self._claim():
                return
            self._submit()
        except (ReconnectNeeded, SealBroken):
            raise Conflict(
                "Etsy no longer accepts the login of this order's shop. Connect it again.", code="reconnect_shop"
            ) from None
        except RateLimited as limit:
            raise TooManyRequests(
                "Etsy's call limit is used up for now; nothing was sent.", retry_after_seconds=limit.retry_after_seconds
            ) from None
        except (Refused, NotAtEtsy) as refusal:
            raise Conflict(f"Etsy did not take it: {_words(refusal)}", code="etsy_refused") from None
        except EtsyError as error:
            raise UpstreamFailed(
                f"Etsy did not answer as expected, and nothing was sent: {error}", code="etsy_failed"
            ) from None

    def _open_calls(self) -> ShopCalls:
        try:
            return ShopCalls(self._shop_id, self._access, may_use_reserve=True)
        except Unavailable as error:
            raise Conflict(f"{error.message}.", code="etsy_not_configured") from None

    def _look(self) -> _Seen:
        """The receipt as it is now, written down, too. Raises EtsyError."""
        asked_at = self._access.clock()
        receipt = self._calls.read(
            lambda client, token: client.get_receipt(token, self._calls.etsy_shop_id, int(self._etsy_order_id))
        )
        seen = self._write(receipt, asked_at)
        db.session.commit()
        withdraw_prints(self._user_id, self._shop_id, now=self._access.clock())
        db.session.commit()
        return seen

    def _write(self, receipt: dict[str, Any], asked_at: datetime) -> _Seen:
        try:
            imported = read_receipt(receipt)
        except BadReceipt as error:
            raise Unavailable(f"Etsy's answer is no order ({error.reason})") from None
        if imported.etsy_order_id != self._etsy_order_id:
            raise Unavailable("Etsy's answer is another order")
        write_orders(
            self._user_id,
            self._shop_id,
            self._calls.currency,
            [imported],
            asked_at=asked_at,
            now=self._access.clock(),
            was_asked_by_id=True,
        )
        return self._see(receipt, imported)

    def _see(self, receipt: dict[str, Any], imported: ImportedOrder) -> _Seen:
        is_shipped = imported.status == "completed" or imported.shipped_at is not None
        code, codes = self._parcel.tracking_code, tracking_codes(receipt)
        has_code = any(is_same_code(each, code) for each in codes)
        return _Seen(is_shipped if code is None else has_code, is_shipped, bool(codes))

    def _settle(self, seen: _Seen) -> bool:
        """Write down what has arrived at Etsy by now, whoever sent it; whether there is nothing left to send."""
        order = _lock(self._user_id, self._order_id)
        if seen.has_parcel:
            self._confirm(order, None)
        elif seen.is_shipped:
            if order.ship_sent_at is None or seen.has_tracking:
                raise already_shipped(order)
            # It was we who marked it, and Etsy has dropped what came with it (issue 466 of etsy/open-api).
            self._confirm(order, LOST_TRACKING.format(tracking=_said(self._parcel)))
        else:
            db.session.commit()
            return False
        return True

    def _confirm(self, order: Order, error: str | None) -> None:
        now = self._access.clock()
        values = {**_columns(self._parcel), **_shipped(now), "ship_confirmed_at": now, "ship_error": error}
        # What Etsy calls the carrier stays, if it holds one.
        if order.carrier_name is not None and is_same_code(order.tracking_number, self._parcel.tracking_code):
            values["carrier_name"] = order.carrier_name
        _write_row(self._order_id, {**values, "shipped_at": order.shipped_at or now})
        db.session.commit()
        log.info("order_shipped", order_id=self._order_id, has_lost_tracking=error is not None)

    def _claim(self) -> bool:
        """The right to send, on the row and committed; False if another one has shipped it meanwhile."""
        order = _lock(self._user_id, self._order_id)
        now = self._access.clock()
        if order.production_status is ProductionStatus.shipped:
            _answer_again(order, self._parcel, now)
            return False
        _check(order)
        kept = order.ship_sent_at is None
        self._before = {
            "tracking_number": order.tracking_number if kept else None,
            "carrier_name": order.carrier_name if kept else None,
        }
        claimed = _write_row(
            self._order_id,
            {**_columns(self._parcel), "ship_sent_at": now, "ship_error": None, "updated_at": now},
            Order.production_status != ProductionStatus.shipped,
            sa.or_(Order.ship_sent_at.is_(None), Order.ship_sent_at <= now - ABANDONED),
        )
        if not claimed:
            sentence = (
                "This order is being sent to Etsy, or was just now without an answer. Ask again in three minutes."
            )
            raise Conflict(sentence, code="ship_under_way")
        db.session.commit()
        self._claimed_at = now
        return True

    def _submit(self) -> None:
        asked_at = self._access.clock()
        try:
            receipt = self._calls.ask(self._add_tracking)
        except Unavailable:
            self._settle_unanswered()
            return
        except Refused as refusal:
            self._settle_refused(refusal)
            return
        except (EtsyError, SealBroken):
            # A limit, a login that is gone, an order that is: Etsy has not taken it.
            self._give_back(None)
            raise
        try:
            seen = self._write(receipt, asked_at)
            db.session.commit()
        except Unavailable:
            seen = None
        if seen is None or not seen.has_parcel:
            self._settle_unanswered()
            return
        self._settle(seen)

    def _add_tracking(self, client: EtsyClient, token: str) -> dict[str, Any]:
        parcel = self._parcel

        def send(carrier_name: str | None) -> dict[str, Any]:
            return client.add_tracking(
                token,
                self._calls.etsy_shop_id,
                int(self._etsy_order_id),
                tracking_code=parcel.tracking_code,
                carrier_name=carrier_name,
                note_to_buyer=parcel.note_to_buyer,
                send_bcc=parcel.wants_copy,
            )

        carrier_name = None if parcel.tracking_code is None else parcel.carrier_name or OTHER_CARRIER
        try:
            return send(carrier_name)
        except Refused as refusal:
            is_unknown = refusal.status == 400 and "carrier" in refusal.message.casefold()
            if not is_unknown or carrier_name in (None, OTHER_CARRIER):
                raise
        # What was refused mailed nobody.
        return send(OTHER_CARRIER)

    def _settle_unanswered(self) -> None:
        """Look once whether it has arrived. If not, it still may: a person sends it again, later."""
        try:
            if self._settle(self._look()):
                return
        except (EtsyError, SealBroken) as fault:
            db.session.rollback()
            log.warning("etsy_shipping_unknown", order_id=self._order_id, error=type(fault).__name__)
        _write_row(self._order_id, {"ship_error": UNKNOWN}, *self._mine())
        db.session.commit()
        raise UpstreamFailed(UNKNOWN, code="ship_unknown")

    def _settle_refused(self, refusal: Refused) -> None:
        if refusal.status == 403 and "scope" not in refusal.message.casefold():
            order = _lock(self._user_id, self._order_id)
            words = f"Etsy does not let this app ship orders ({_words(refusal)})."
            _record_here(order, self._parcel, None, self._access.clock(), words)
            return
        if refusal.status == 409 and self._settle(self._look()):
            return
        self._give_back(f"Etsy did not take it: {_words(refusal)}")
        if refusal.status == 403:
            raise Conflict(
                "This shop's login does not allow shipping orders. Connect it again and agree to all that is asked.",
                code="reconnect_shop",
            )
        raise refusal

    def _give_back(self, error: str | None) -> None:
        values = {**self._before, "ship_sent_at": None, "ship_error": error, "updated_at": self._access.clock()}
        _write_row(self._order_id, values, *self._mine())
        db.session.commit()

    def _mine(self) -> tuple[sa.ColumnElement[bool], ...]:
        return Order.ship_sent_at == self._claimed_at, Order.production_status != ProductionStatus.shipped


def _words(refusal: EtsyError) -> str:
    return refusal.message if isinstance(refusal, Refused) else "it does not know this order"
