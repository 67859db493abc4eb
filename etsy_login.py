"""A login at Etsy, from its beginning to the connected shop; and letting a shop go again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from errors import Conflict, Invalid, TooManyRequests
from etsy_client import EtsyClient, Tokens
from etsy_tokens import sealed_tokens, token_owners
from models import EtsyLogin, EtsyNotice, Order, ProductProfile, Shop, User, db
from vault import Vault

LOGIN_LIFE = timedelta(minutes=10)
# Logins under way, of one account and of all who have none yet: anybody may begin one, and each is a row.
MOST_LOGINS, MOST_NAMELESS_LOGINS = 20, 1000


@dataclass(frozen=True, slots=True)
class OwnKey:
    """The key of a seller's own app at Etsy, where it is not the installation's."""

    keystring: str
    shared_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LoginTaken:
    """What was kept of a login under way: the PKCE verifier, whose account it is for, and with whose key it began."""

    verifier: str = field(repr=False)
    user_id: int | None
    own_key: OwnKey | None


@dataclass(frozen=True, slots=True)
class ShopFound:
    etsy_user_id: str
    etsy_shop_id: str
    name: str
    currency: str
    tokens: Tokens
    own_key: OwnKey | None = None


def hash_state(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()


def begin_login(
    client: EtsyClient, vault: Vault, *, user_id: int | None, now: datetime, own_key: OwnKey | None = None
) -> tuple[str, str]:
    """(state, url to open in a browser). The PKCE verifier stays here, sealed, until the login comes back; so does the
    seller's own key, which must be the client's.

    Raises:
        TooManyRequests: so many are under way already.
    """
    login = client.new_login()
    state_hash = hash_state(login.state)
    kept = [login.verifier, own_key and own_key.keystring, own_key and own_key.shared_secret]
    db.session.execute(sa.delete(EtsyLogin).where(EtsyLogin.expires_at < now))
    _refuse_crowd(user_id, now)
    db.session.add(
        EtsyLogin(
            state_hash=state_hash,
            user_id=user_id,
            verifier_sealed=vault.seal(json.dumps(kept), f"etsy_logins.verifier:{state_hash}"),
            expires_at=now + LOGIN_LIFE,
        )
    )
    return login.state, login.url


def _refuse_crowd(user_id: int | None, now: datetime) -> None:
    """The nameless take no place from those with an account."""
    of_one = EtsyLogin.user_id.is_(None) if user_id is None else EtsyLogin.user_id == user_id
    query = sa.select(sa.func.count(), sa.func.min(EtsyLogin.expires_at)).where(of_one)
    number, first_ends_at = db.session.execute(query).one()
    if number < (MOST_NAMELESS_LOGINS if user_id is None else MOST_LOGINS):
        return
    seconds = int((first_ends_at - now).total_seconds()) + 1
    raise TooManyRequests("Too many logins at Etsy are under way. Try again later.", retry_after_seconds=seconds)


def take_login(state: str, vault: Vault, *, now: datetime) -> LoginTaken | None:
    """A login under way, which is used up by this; None if there is none. Raises SealBroken."""
    state_hash = hash_state(state)
    login = db.session.execute(
        sa.select(EtsyLogin).where(EtsyLogin.state_hash == state_hash, EtsyLogin.expires_at >= now).with_for_update()
    ).scalar_one_or_none()
    if login is None:
        return None
    kept = json.loads(vault.open(login.verifier_sealed, f"etsy_logins.verifier:{state_hash}"))
    verifier, keystring, shared_secret = kept
    db.session.delete(login)
    return LoginTaken(verifier, login.user_id, OwnKey(keystring, shared_secret) if keystring else None)


def look_up_shop(client: EtsyClient, code: str, verifier: str, own_key: OwnKey | None = None) -> ShopFound:
    """Exchange a login's code and ask whose shop it is. Network only; raises EtsyError, or Invalid without a shop."""
    tokens = client.exchange_code(code, verifier)
    me = client.get_me(tokens.access_token)
    if me.etsy_shop_id is None:
        raise Invalid({"code": ["This Etsy account has no shop."]}, "This Etsy account has no shop.", code="no_shop")
    shop = client.get_shop(tokens.access_token, me.etsy_shop_id)
    currency = shop.currency or "USD"
    return ShopFound(str(me.etsy_user_id), str(shop.etsy_shop_id), shop.name, currency, tokens, own_key)


def connect_shop(found: ShopFound, vault: Vault, *, user_id: int | None, now: datetime) -> User:
    """Keep a shop's tokens with its account; without a user, log in its owner or open an account. Flushes.

    Raises:
        Conflict: the shop is connected to another account.
    """
    shop = db.session.execute(
        sa.select(Shop).where(Shop.etsy_shop_id == found.etsy_shop_id).with_for_update()
    ).scalar_one_or_none()
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
    own = found.own_key
    # Tokens are good with the key that they were asked for with, and with no other.
    shop.keystring = own.keystring if own else None
    shop.shared_secret_sealed = vault.seal(own.shared_secret, shop.secret_owner("shared_secret")) if own else None
    shop.sync_error = shop.parked_until = None
    for column, value in sealed_tokens(token_owners(shop), found.tokens, vault).items():
        setattr(shop, column, value)
    db.session.flush()
    return user


def disconnect_shop(shop: Shop, *, now: datetime) -> bool:
    """Forget a shop's login. True if nothing hung on the shop and it is gone as a whole; else its orders stay.
    Flushes."""
    for model in (Order, ProductProfile):
        if db.session.execute(sa.select(model.id).where(model.shop_id == shop.id).limit(1)).first() is not None:
            shop.access_token_sealed = shop.refresh_token_sealed = ""
            shop.keystring = shop.shared_secret_sealed = None
            # Whoever syncs it just now finds that it is no longer theirs to write to.
            shop.syncing_by = shop.syncing_since = None
            shop.reconnect_needed_at = now
            db.session.flush()
            return False
    db.session.execute(sa.delete(EtsyNotice).where(EtsyNotice.shop_id == shop.id))
    db.session.delete(shop)
    db.session.flush()
    return True
