"""The tokens of the connected shops: kept sealed, renewed ahead of their end, by one process at a time.

Etsy takes a refresh token once, and two refreshes at once would void each other. Whoever refreshes claims the shop's
row first, in a transaction of its own; nothing is locked while the network is waited for, and the others look again
until the new pair lies there.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import requests
import sqlalchemy as sa
import structlog

from etsy_client import EtsyClient, RateLimited, ReconnectNeeded, Tokens, Unauthorized, Unavailable
from models import PrintEvent, Shop, count_changed, db
from notifications import SHOP_RECONNECT, fan_out
from settings import Settings
from vault import Vault

log = structlog.get_logger()

REFRESH_AHEAD = timedelta(minutes=5)
# Longer than both tries of a refresh may take, each with its own time-outs.
REFRESH_ABANDONED = timedelta(minutes=3)
POLL_SECONDS, POLLS = 0.2, 200
# What a limit asks to wait up to here is waited for; beyond, the shop is parked.
LONGEST_WAIT_SECONDS = 5
SHORT_WAITS = 3
# Of the day's calls as many stay for telling buyers that their parcels are on the way.
RESERVE, RESERVE_SHARE = 200, 10
RESERVE_PARK_SECONDS = 3600
# After a fault that may have passed by then, and then once more.
READ_AGAIN_SECONDS = (1.0, 3.0)
RECONNECT = "Etsy no longer accepts the login of this shop. Connect it again."

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class EtsyAccess:
    """What it takes to ask Etsy for this installation's shops. `sleep` takes seconds."""

    settings: Settings
    vault: Vault
    http: requests.Session
    clock: Callable[[], datetime]
    sleep: Callable[[float], None] = time.sleep

    def client(self, keystring: str | None = None, shared_secret: str | None = None) -> EtsyClient | None:
        """With an app's own key, else with the installation's; None where there is none.

        Raises:
            ValueError: a key that fits into no header.
        """
        chosen = self.settings
        keystring = keystring or chosen.etsy_client_id
        shared_secret = shared_secret or chosen.etsy_shared_secret.get_secret_value()
        if not keystring or not shared_secret:
            return None
        return EtsyClient(
            keystring=keystring,
            shared_secret=shared_secret,
            redirect_uri=chosen.etsy_redirect_uri,
            base_url=chosen.etsy_base_url,
            authorize_url=chosen.etsy_authorize_url,
            session=self.http,
            clock=self.clock,
        )


def token_owners(shop: Shop) -> tuple[str, str]:
    """What a shop's access and refresh token are sealed for."""
    return shop.secret_owner("access_token"), shop.secret_owner("refresh_token")


def sealed_tokens(owners: tuple[str, str], tokens: Tokens, vault: Vault) -> dict[str, object]:
    """The columns of a new pair; they belong into one statement."""
    return {
        "access_token_sealed": vault.seal(tokens.access_token, owners[0]),
        "refresh_token_sealed": vault.seal(tokens.refresh_token, owners[1]),
        "token_expires_at": tokens.expires_at,
        "reconnect_needed_at": None,
        "refreshing_by": None,
        "refreshing_since": None,
    }


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a shop's row held. The refresh token stays sealed: as such it is what a claim is compared by."""

    access_token: str = field(repr=False)
    refresh_token_sealed: str = field(repr=False)
    expires_at: datetime


class ShopCalls:
    """Calls in the name of one shop: with a token that is good, and within the limits.

    Needs an app context. Every call commits what is pending first, so that no transaction is open over the network.
    `may_use_reserve`: the few calls of a day that are kept for shipping may be spent, and a parked shop is asked all
    the same.

    Raises:
        ReconnectNeeded: Etsy has taken the login back; it is not asked again until the shop is connected anew.
        RateLimited: the shop is parked.
        Unavailable: there is no key to ask with.
        SealBroken: what is stored cannot be opened.
    """

    def __init__(self, shop_id: int, access: EtsyAccess, *, may_use_reserve: bool = False) -> None:
        self.shop_id = shop_id
        self.count = 0
        self._access = access
        self._may_use_reserve = may_use_reserve
        shop = self._read()
        self.user_id, self.etsy_shop_id, self.currency = shop.user_id, int(shop.etsy_shop_id), shop.currency
        self._owners = token_owners(shop)
        secret = shop.shared_secret_sealed and access.vault.open(
            shop.shared_secret_sealed, shop.secret_owner("shared_secret")
        )
        client = access.client(shop.keystring, secret)
        if client is None:
            raise Unavailable("No Etsy key is configured (ETSY_CLIENT_ID, ETSY_SHARED_SECRET)")
        self._client = client
        self._kept = self._open(shop)
        if shop.parked_until is not None and shop.parked_until > access.clock() and not may_use_reserve:
            raise RateLimited(max(1, int((shop.parked_until - access.clock()).total_seconds())))

    @property
    def limit_per_day(self) -> int | None:
        """The calls that Etsy gives the application in a day; None before the first answer."""
        return self._client.limit_per_day

    @property
    def etsy_time(self) -> datetime | None:
        """The time at Etsy when it gave its last answer, where that said so."""
        return self._client.etsy_time

    def read(self, call: Callable[[EtsyClient, str], Answer]) -> Answer:
        """The same as `ask` for a call that changes nothing: where no usable answer came, it is asked again."""

        def patiently(client: EtsyClient, token: str) -> Answer:
            for seconds in READ_AGAIN_SECONDS:
                try:
                    return call(client, token)
                except Unavailable as fault:
                    # Who has waited that long already had better not wait three times.
                    if fault.was_slow:
                        raise
                self._access.sleep(seconds)
                self.count += 1
            return call(client, token)

        return self.ask(patiently)

    def ask(self, call: Callable[[EtsyClient, str], Answer]) -> Answer:
        """What `call` makes of the client and a good access token. Raises EtsyError."""
        db.session.commit()
        if self._kept.expires_at - REFRESH_AHEAD <= self._access.clock():
            self._renew()
        try:
            return self._within_limits(call)
        except Unauthorized:
            self._renew()
        try:
            return self._within_limits(call)
        except Unauthorized:
            self._give_up(self._kept.refresh_token_sealed)
            raise ReconnectNeeded("Etsy refuses even a fresh token") from None

    def _read(self) -> Shop:
        shop = db.session.get_one(Shop, self.shop_id, populate_existing=True)
        if shop.reconnect_needed_at is not None:
            raise ReconnectNeeded(RECONNECT)
        return shop

    def _open(self, shop: Shop) -> _Kept:
        opened = self._access.vault.open(shop.access_token_sealed, self._owners[0])
        return _Kept(opened, shop.refresh_token_sealed, shop.token_expires_at)

    def _within_limits(self, call: Callable[[EtsyClient, str], Answer]) -> Answer:
        client = self._client
        if not self._may_use_reserve and _is_down_to_reserve(client):
            self._park(RESERVE_PARK_SECONDS)
            raise RateLimited(RESERVE_PARK_SECONDS)
        for waits_left in reversed(range(SHORT_WAITS + 1)):
            if client.remaining_this_second == 0:
                self._access.sleep(1.0)
                client.remaining_this_second = None
            self.count += 1
            try:
                return call(client, self._kept.access_token)
            except RateLimited as limit:
                if limit.retry_after_seconds > LONGEST_WAIT_SECONDS or not waits_left:
                    self._park(limit.retry_after_seconds)
                    raise
                self._access.sleep(limit.retry_after_seconds)
        raise AssertionError("the last of the tries returns or raises")

    def _park(self, seconds: int) -> None:
        until = self._access.clock() + timedelta(seconds=seconds)
        db.session.execute(sa.update(Shop).where(Shop.id == self.shop_id).values(parked_until=until))
        db.session.commit()
        log.warning("etsy_shop_parked", shop_id=self.shop_id, until=until.isoformat())

    def _renew(self) -> None:
        """A newer pair than the one we hold: from Etsy, or from whoever has got it there meanwhile."""
        spent = self._kept.refresh_token_sealed
        for _ in range(POLLS):
            holder = secrets.token_hex(16)
            if self._claim(holder, spent):
                self._refresh(holder, spent)
                return
            shop = self._read()
            if shop.refresh_token_sealed != spent:
                self._kept = self._open(shop)
                db.session.commit()
                return
            db.session.commit()
            self._access.sleep(POLL_SECONDS)
        raise Unavailable("Somebody else has been asking Etsy for new tokens for too long")

    def _claim(self, holder: str, spent: str) -> bool:
        now = self._access.clock()
        claimed = count_changed(
            sa.update(Shop)
            .where(
                Shop.id == self.shop_id,
                Shop.refresh_token_sealed == spent,
                Shop.reconnect_needed_at.is_(None),
                sa.or_(Shop.refreshing_by.is_(None), Shop.refreshing_since < now - REFRESH_ABANDONED),
            )
            .values(refreshing_by=holder, refreshing_since=now)
        )
        db.session.commit()
        return claimed == 1

    def _refresh(self, holder: str, spent: str) -> None:
        try:
            tokens = self._client.refresh(self._access.vault.open(spent, self._owners[1]))
        except ReconnectNeeded:
            self._give_up(spent)
            raise
        except BaseException:
            released = sa.update(Shop).where(Shop.id == self.shop_id, Shop.refreshing_by == holder)
            db.session.execute(released.values(refreshing_by=None, refreshing_since=None))
            db.session.commit()
            raise
        # Not if the shop was connected anew meanwhile: that login is the newer one.
        stored = sa.update(Shop).where(Shop.id == self.shop_id, Shop.refresh_token_sealed == spent)
        db.session.execute(stored.values(sealed_tokens(self._owners, tokens, self._access.vault)))
        db.session.commit()
        self._kept = self._open(self._read())
        db.session.commit()

    def _give_up(self, spent: str) -> None:
        """Etsy has taken the login back. Its owner is told in the same transaction, once, however many find it out; and
        Etsy is never asked again until a person has connected the shop."""
        now = self._access.clock()
        is_first = count_changed(
            sa.update(Shop)
            .where(Shop.id == self.shop_id, Shop.refresh_token_sealed == spent, Shop.reconnect_needed_at.is_(None))
            .values(
                reconnect_needed_at=now,
                refreshing_by=None,
                refreshing_since=None,
                sync_error=RECONNECT,
            )
        )
        if is_first:
            self._tell_owner(now)
        db.session.commit()
        if is_first:
            log.warning("etsy_reconnect_needed", shop_id=self.shop_id)

    def _tell_owner(self, now: datetime) -> None:
        name, keystring = db.session.execute(sa.select(Shop.name, Shop.keystring).where(Shop.id == self.shop_id)).one()
        shop = {"id": self.shop_id, "name": name, "has_own_key": keystring is not None}
        event = PrintEvent(user_id=self.user_id, kind=SHOP_RECONNECT, details={"shop": shop}, at=now)
        db.session.add(event)
        fan_out(event)


def _is_down_to_reserve(client: EtsyClient) -> bool:
    if client.remaining_today is None or client.limit_per_day is None:
        return False
    return client.remaining_today <= min(RESERVE, client.limit_per_day // RESERVE_SHARE)
