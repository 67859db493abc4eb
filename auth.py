"""Accounts, tokens, the current user, and the wall between users: `mine()` and `get_mine()`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

import jwt
import sqlalchemy as sa
import structlog
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from flask import Flask, current_app, g, request
from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage, Storage
from limits.strategies import MovingWindowRateLimiter

from errors import NotFound, TooManyRequests, Unauthorized
from models import MAX_ID, TokenFamily, User, count_changed, db
from settings import Settings

log = structlog.get_logger()

Row = TypeVar("Row")

ALGORITHM = "HS256"
ISSUER = "print-farm"
CLAIMS = ["exp", "iat", "sub", "jti", "iss", "aud", "fid"]

FAMILY_OWNER = (
    sa.select(TokenFamily.user_id, User.currency)
    .join(User, User.id == TokenFamily.user_id)
    .where(TokenFamily.id == sa.bindparam("family_id"), TokenFamily.revoked_at.is_(None))
)


def _storage(redis_url: str) -> Storage:
    if not redis_url:
        return MemoryStorage()
    # Not longer than a login may wait.
    return RedisStorage(redis_url, wrap_exceptions=True, socket_connect_timeout=1.0, socket_timeout=1.0)


class Accounts:
    """Password checks and tokens of one app. Keys, clock and costs are passed in."""

    def __init__(self, settings: Settings, clock: Callable[[], datetime]) -> None:
        self._key = settings.jwt_secret_key.get_secret_value()
        self._clock = clock
        self._access_life = timedelta(minutes=settings.access_token_minutes)
        self._refresh_life = timedelta(days=settings.refresh_token_days)
        self._hasher = PasswordHasher(
            time_cost=settings.password_hash_time_cost, memory_cost=settings.password_hash_memory_kib, parallelism=1
        )
        self._nobody = self._hasher.hash(secrets.token_hex(16))
        self._limiter = MovingWindowRateLimiter(_storage(settings.redis_url))
        # While Redis does not answer, each process counts for itself: nobody is locked out, nobody may hammer.
        self._own_limiter = MovingWindowRateLimiter(_storage(""))
        self._limit = RateLimitItemPerMinute(settings.login_limit)

    def hash_password(self, password: str) -> str:
        return self._hasher.hash(password)

    def check_password(self, user: User | None, password: str) -> bool:
        """Takes equally long for an account that is not there: the answer's time tells nothing."""
        try:
            self._hasher.verify((user and user.password_hash) or self._nobody, password)
        except (VerificationError, InvalidHashError):
            return False
        return user is not None and user.password_hash is not None

    def count_begun(self, address: str) -> None:
        """Count a login elsewhere that is begun here, which leaves a row. Raises TooManyRequests when this address has
        begun too many in the last minute."""
        self.refuse_hammering("begun", address, sentence="Too many logins were begun. Wait a minute.")
        self.count_failure("begun", address)

    def refuse_hammering(self, *key: str, sentence: str = "Too many failed logins. Wait a minute.") -> None:
        """Raises TooManyRequests when this account and address have failed too often in the last minute."""
        try:
            wait = self._wait_seconds(self._limiter, *key)
        except StorageError:
            wait = self._wait_seconds(self._own_limiter, *key)
        if wait is not None:
            raise TooManyRequests(sentence, retry_after_seconds=wait)

    def _wait_seconds(self, limiter: MovingWindowRateLimiter, *key: str) -> int | None:
        if limiter.test(self._limit, *key):
            return None
        return int(limiter.get_window_stats(self._limit, *key).reset_time - datetime.now(UTC).timestamp()) + 1

    def count_failure(self, *key: str) -> None:
        try:
            self._limiter.hit(self._limit, *key)
        except StorageError as error:
            log.warning("login_limit_alone", reason=type(error.storage_error).__name__)
            self._own_limiter.hit(self._limit, *key)

    def _encode(self, user_id: int, family_id: str, kind: str, jti: str, life: timedelta) -> str:
        now = self._clock()
        claims = {
            "iss": ISSUER,
            "aud": kind,
            "sub": str(user_id),
            "fid": family_id,
            "jti": jti,
            "iat": int(now.timestamp()),
            "exp": int((now + life).timestamp()),
        }
        return jwt.encode(claims, self._key, ALGORITHM)

    def decode(self, token: str, kind: str) -> dict[str, Any]:
        """The claims of a token of that kind ("access", "refresh"). Raises Unauthorized."""
        try:
            # The library reads the wall clock; ours is passed in, so the times are checked below.
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                audience=kind,
                issuer=ISSUER,
                options={"require": CLAIMS, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
            expires_at, user_id = float(claims["exp"]), int(claims["sub"])
            if not isinstance(claims["fid"], str):
                raise TypeError("fid is no text")
        except (jwt.InvalidTokenError, ValueError, TypeError):
            raise Unauthorized("This token is not valid. Log in again.", code="bad_token") from None
        if not self._clock().timestamp() < expires_at:
            raise Unauthorized("This token has expired. Refresh it or log in again.", code="expired_token")
        return claims | {"user_id": user_id}

    def begin(self, user: User) -> dict[str, str]:
        """A new family of tokens for a user who just proved who they are; flushed, not committed."""
        now = self._clock()
        family = TokenFamily(
            id=secrets.token_hex(16),
            user_id=user.id,
            refresh_jti=secrets.token_hex(16),
            created_at=now,
            expires_at=now + self._refresh_life,
        )
        db.session.add(family)
        db.session.flush()
        return self._pair(user.id, family.id, family.refresh_jti)

    def _pair(self, user_id: int, family_id: str, refresh_jti: str) -> dict[str, str]:
        return {
            "token": self._encode(user_id, family_id, "access", secrets.token_hex(16), self._access_life),
            "refresh_token": self._encode(user_id, family_id, "refresh", refresh_jti, self._refresh_life),
        }

    def rotate(self, refresh_token: str) -> dict[str, str] | None:
        """A new pair for the newest refresh token of a family; None, with the family revoked, for one used before.

        One conditional UPDATE decides: of two requests with the same token exactly one wins.
        """
        claims = self.decode(refresh_token, "refresh")
        new_jti = secrets.token_hex(16)
        won = count_changed(
            sa.update(TokenFamily)
            .where(
                TokenFamily.id == claims["fid"],
                TokenFamily.refresh_jti == claims["jti"],
                TokenFamily.revoked_at.is_(None),
            )
            .values(refresh_jti=new_jti, expires_at=self._clock() + self._refresh_life)
        )
        if won != 1:
            self.revoke(claims["fid"])
            return None
        return self._pair(claims["user_id"], claims["fid"], new_jti)

    def revoke(self, family_id: str) -> None:
        db.session.execute(
            sa.update(TokenFamily)
            .where(TokenFamily.id == family_id, TokenFamily.revoked_at.is_(None))
            .values(revoked_at=self._clock())
        )


def accounts() -> Accounts:
    found: Accounts = current_app.extensions["accounts"]
    return found


def bearer_token() -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.casefold() == "bearer" and token.strip() else None


class Bearer(NamedTuple):
    """Whom an access token lets in, by which login, and until when."""

    user_id: int
    currency: str
    family_id: str
    expires_at: datetime


def read_token(token: str) -> Bearer:
    """Whose access token this is. Raises Unauthorized; every doubt is a no."""
    claims = accounts().decode(token, "access")
    owner = db.session.execute(FAMILY_OWNER, {"family_id": claims["fid"]}).one_or_none()
    if owner is None or owner.user_id != claims["user_id"]:
        raise Unauthorized("This login has ended. Log in again.", code="ended_login")
    return Bearer(owner.user_id, owner.currency, claims["fid"], datetime.fromtimestamp(float(claims["exp"]), UTC))


def require_token() -> None:
    """Sets `g.user_id`, `g.family_id`, `g.currency` from the bearer token. Raises Unauthorized."""
    token = bearer_token()
    if token is None:
        raise Unauthorized
    g.user_id, g.currency, g.family_id, _ = read_token(token)


def still_good(family_ids: Collection[str]) -> set[str]:
    """Those of these logins that nobody has ended."""
    query = sa.select(TokenFamily.id).where(TokenFamily.id.in_(family_ids), TokenFamily.revoked_at.is_(None))
    return set(db.session.execute(query).scalars())


def current_user_id() -> int:
    user_id: int = g.user_id
    return user_id


def current_user() -> User:
    return db.session.get_one(User, current_user_id())


def mine(model: type[Row], *columns: Any) -> sa.Select[Any]:
    """A SELECT of the current user's rows that have not been deleted; `columns` instead of the whole row if given."""
    table: Any = model
    query = sa.select(*columns) if columns else sa.select(model)
    query = query.where(table.user_id == current_user_id())
    return query.where(table.deleted_at.is_(None)) if hasattr(table, "deleted_at") else query


def mine_prepared(model: type[Any]) -> sa.Select[Any]:
    """`mine()` as a statement built once and run with `{"mine": current_user_id()}`: for lists that pages poll."""
    query = sa.select(model).where(model.user_id == sa.bindparam("mine"))
    return query.where(model.deleted_at.is_(None)) if hasattr(model, "deleted_at") else query


def get_mine(model: type[Row], row_id: int, *, for_update: bool = False) -> Row:
    """The one place where an id becomes an object.

    Raises:
        NotFound: no such row, a deleted one, or somebody else's: the caller cannot tell which.
    """
    if not 0 < row_id <= MAX_ID:
        raise NotFound
    table: Any = model
    query = mine(model).where(table.id == row_id)
    if for_update:
        # One that is only marked as deleted keeps its key: nobody who merely refers to it needs to wait.
        query = query.with_for_update(key_share=hasattr(model, "deleted_at"))
        # As it stands now that it is locked, whatever was read before.
        query = query.execution_options(populate_existing=True)
    row: Row | None = db.session.execute(query).scalar_one_or_none()
    if row is None:
        raise NotFound
    return row


def init_app(app: Flask, settings: Settings, clock: Callable[[], datetime], public_endpoints: frozenset[str]) -> None:
    """Every route needs a token unless it is in the list: a new route is closed by default."""
    app.extensions["accounts"] = Accounts(settings, clock)

    def guard() -> None:
        if request.endpoint is not None and request.endpoint not in public_endpoints and request.method != "OPTIONS":
            require_token()

    app.before_request(guard)
