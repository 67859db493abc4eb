"""Deliveries as senders take them: what is due, who has it, what came of it.

A delivery is taken by a conditional UPDATE that is committed before anything is sent, so that of two senders one gets
it, and what came of it is written only by who still has it. These statements pass the session by: a sender must not
wake itself, and each of its milliseconds is one of the webhook's. For the same reason a webhook that nothing waits
before is born taken where a sender listens in the process that writes it: see `born_taken`.
"""

from __future__ import annotations

import itertools
import secrets
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from models import UNSENT, Channel, Delivery, DeliveryAttempt, DeliveryStatus, PrintNotification, User

# A delivery that was claimed longer ago belongs to a sender that died: no try takes so long.
CLAIM_LIFE = timedelta(minutes=2)
# More than so many that are due together for one address go out as one summary.
FOLD_ABOVE = 3
FOLD_MOST = 100
WEBHOOK = Channel.webhook.value
LONGEST_ANSWER = 1_000
LONGEST_ERROR = 2_000

DELIVERIES, ATTEMPTS = Delivery.__table__, DeliveryAttempt.__table__
PREFERENCES, USERS = PrintNotification.__table__, User.__table__


class Stream(NamedTuple):
    """What goes one after the other: a printer's webhooks, an account's mails, a channel's messages.

    `printer_id` is 0 for mails, since those of all printers go to one person. Only mails can be of no printer.
    """

    user_id: int
    printer_id: int
    destination: str


ANY = Stream(0, 0, "")
"""Some stream: look which."""


def stream_of(delivery: Delivery) -> Stream:
    printer_id = 0 if delivery.channel is Channel.email or delivery.printer_id is None else delivery.printer_id
    return Stream(delivery.user_id, printer_id, delivery.destination)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One delivery as it is sent."""

    id: int
    user_id: int
    printer_id: int | None
    message_id: str
    channel: Channel
    destination: str
    channel_id: int | None
    target: str
    payload: dict[str, Any]
    is_urgent: bool
    tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a printer's webhooks go, as its preferences have it now; the secrets are sealed."""

    url: str | None
    owner_ids: tuple[int, int]
    secret_sealed: str | None
    old_secret_sealed: str | None
    old_secret_until: datetime | None
    failing_since: datetime | None
    disabled_reason: str | None
    is_disabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What goes out in one message: one delivery, or the first of a summary with its members."""

    stream: Stream
    parcels: tuple[Parcel, ...]
    token: str
    host: str
    timezone: str = "UTC"
    endpoint: Endpoint | None = None
    born_at: datetime | None = None
    """Since when it has been taken, of one that was written so."""

    @property
    def first(self) -> Parcel:
        return self.parcels[0]

    @property
    def ids(self) -> list[int]:
        return [parcel.id for parcel in self.parcels]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a try that began `at`. `next_try_at` is None where nothing more is to be tried; `target` is where it
    went."""

    is_ok: bool
    at: datetime
    ended_at: datetime
    duration_ms: int
    answer_code: int | None = None
    error: str | None = None
    answer: bytes | str = b""
    next_try_at: datetime | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a sender writes into whatever it takes."""

    token: str
    at: datetime


class Claims:
    """Of one sender. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._owner = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    def due(self, now: datetime) -> list[Stream]:
        """The streams that something can be sent of."""
        at = {"now": now, "dead_since": now - CLAIM_LIFE}
        with self._engine.connect() as connection:
            found = [*connection.execute(DUE_WEBHOOKS, at), *connection.execute(DUE_OTHERS, at)]
        return [Stream(*row) for row in found]

    def look(self, stream: Stream, now: datetime) -> Load | None:
        """What would be sent next of a stream; None when nothing can be sent now."""
        with self._engine.connect() as connection:
            if stream.destination == WEBHOOK:
                return self._look_at_webhooks(connection, stream, now)
            return self._look_at_mails(connection, stream, now)

    def _look_at_webhooks(self, connection: Connection, stream: Stream, now: datetime) -> Load | None:
        head = connection.execute(WEBHOOK_HEAD, {"printer": stream.printer_id}).one_or_none()
        if head is None or not _can_be_claimed(head, now):
            return None
        parcel, endpoint = _parcel(head), _endpoint(head, head)
        return Load(
            stream=stream,
            parcels=(parcel,),
            token=self._token(),
            host=_host_of(endpoint.url or parcel.target),
            endpoint=endpoint,
        )

    def _look_at_mails(self, connection: Connection, stream: Stream, now: datetime) -> Load | None:
        rows = connection.execute(
            DUE_MAILS,
            {
                "user": stream.user_id,
                "destination": stream.destination,
                "now": now,
                "dead_since": now - CLAIM_LIFE,
            },
        ).all()
        if not rows:
            return None
        is_mail = rows[0].channel is Channel.email
        return Load(
            stream=stream,
            parcels=tuple(map(_parcel, _together(rows))),
            token=self._token(),
            # A mail server of our own, and whatever one account's channels name.
            host="mail" if is_mail else f"apprise {stream.user_id}",
            timezone=rows[0].timezone,
        )

    def _token(self) -> str:
        return f"{self._owner}.{next(self._numbers)}"

    def claim(self, now: datetime) -> Claim:
        """For a webhook that is written as taken."""
        return Claim(self._token(), now)

    def take(self, load: Load, now: datetime) -> bool:
        """Whether it is ours now. Committed before anything is sent."""
        first, *members = load.ids
        with self._engine.connect() as connection, connection.begin() as transaction:
            values = {"now": now, "dead_since": now - CLAIM_LIFE, "token": load.token}
            if self._engine.dialect.name == "postgresql":
                # Should the server forget it in a crash, it is sent again, as after any crash: no reason to wait for
                # the disk before the network.
                connection.execute(NOT_DURABLE)
            # The first before its members: of two that fold alike one gets none.
            if connection.execute(TAKE_ONE, {**values, "first": first}).rowcount != 1:
                transaction.rollback()
                return False
            if members:
                folded = connection.execute(TAKE_MEMBERS, {**values, "first": first, "members": members})
                if folded.rowcount != len(members):
                    transaction.rollback()
                    return False
        return True

    def record(self, load: Load, outcome: Outcome) -> bool:
        """What came of a try, unless somebody else has taken it over by now; whether it was written."""
        with self._engine.begin() as connection:
            return record(connection, load, outcome)

    def hand_back(self, now: datetime) -> int:
        """Whatever this sender still has may be taken by the next at once; how many there were."""
        return self._give_up(DELIVERIES.c.claimed_by.startswith(f"{self._owner}."), now)

    def give_up(self, load: Load, now: datetime) -> None:
        """It was written as taken, and was not tried: whoever looks next takes it anew, this sender as well."""
        self._give_up(
            DELIVERIES.c.claimed_by == load.token, now, attempts=DELIVERIES.c.attempts - 1, tries=DELIVERIES.c.tries - 1
        )

    def _give_up(self, whose: sa.ColumnElement[bool], now: datetime, **changes: Any) -> int:
        with self._engine.begin() as connection:
            return connection.execute(
                sa.update(DELIVERIES)
                .where(UNSENT, DELIVERIES.c.status == DeliveryStatus.sending, whose)
                .values(status=DeliveryStatus.pending, claimed_at=None, claimed_by=None, next_try_at=now, **changes)
            ).rowcount


def born_taken(claim: Claim) -> dict[str, Any]:
    """The columns of a new delivery that this claim takes. Nothing of its stream may wait before it, and its
    transaction has to hand over its `load_of` once it is committed."""
    return {
        "status": DeliveryStatus.sending,
        "claimed_at": claim.at,
        "claimed_by": claim.token,
        "attempts": 1,
        "tries": 1,
    }


def load_of(webhook: Delivery, preferences: Any, claim: Claim) -> Load:
    """Of a webhook that was written as taken; `preferences` has the endpoint's columns."""
    return Load(
        stream=stream_of(webhook),
        # Read, as elsewhere, before this try.
        parcels=(replace(_parcel(webhook), tries=0),),
        token=claim.token,
        host=_host_of(webhook.target),
        endpoint=_endpoint(webhook, preferences),
        born_at=claim.at,
    )


def record(connection: Connection, load: Load, outcome: Outcome) -> bool:
    """In the caller's transaction: see `Claims.record`."""
    still_ours = (DELIVERIES.c.id.in_(load.ids), DELIVERIES.c.claimed_by == load.token)
    changes: dict[str, Any] = {"claimed_at": None, "claimed_by": None, "error": _clean(outcome.error, LONGEST_ERROR)}
    if outcome.target is not None and outcome.target != load.first.target:
        changes["target"] = outcome.target
    if outcome.is_ok:
        changes |= {"status": DeliveryStatus.sent, "sent_at": outcome.ended_at}
    elif outcome.next_try_at is None:
        changes |= {"status": DeliveryStatus.failed}
    else:
        changes |= {"status": DeliveryStatus.pending, "next_try_at": outcome.next_try_at}
    if connection.execute(sa.update(DELIVERIES).where(*still_ours).values(changes)).rowcount == 0:
        return False
    connection.execute(
        ADD_ATTEMPTS,
        [
            {
                "user_id": parcel.user_id,
                "delivery_id": parcel.id,
                "at": outcome.at,
                "duration_ms": outcome.duration_ms,
                "is_ok": outcome.is_ok,
                "answer_code": outcome.answer_code,
                "error": _clean(outcome.error, LONGEST_ERROR),
                "answer": _clean(outcome.answer, LONGEST_ANSWER),
            }
            for parcel in load.parcels
        ],
    )
    endpoint = load.endpoint
    if endpoint is not None and outcome.is_ok == (endpoint.failing_since is not None):
        connection.execute(
            sa.update(PREFERENCES)
            # What failed at another address says nothing of this one.
            .where(PREFERENCES.c.printer_id == load.first.printer_id, PREFERENCES.c.webhook_url == endpoint.url)
            .values(webhook_failing_since=None if outcome.is_ok else outcome.at)
        )
    return True


def _can_be_claimed(row: Any, now: datetime) -> bool:
    if row.status is DeliveryStatus.pending:
        return bool(row.next_try_at <= now)
    return bool(row.claimed_at <= now - CLAIM_LIFE)


def _together(rows: Sequence[Any]) -> Sequence[Any]:
    """Of what is due in a stream of mails, what goes out now: the first, with the summary that it is the head of."""
    members: defaultdict[int, list[Any]] = defaultdict(list)
    for row in rows:
        if row.folded_into_id is not None:
            members[row.folded_into_id].append(row)
    first = rows[0]
    if first.folded_into_id is not None:
        # A person sends it once more, by itself.
        return [first]
    if first.id in members:
        # What was tried as a summary stays that summary: a repeat is the same message.
        return [first, *members[first.id]]
    fresh = [
        row
        for row in rows
        if row.folded_into_id is None and row.id not in members and not row.attempts and row.target == first.target
    ]
    # What quiet hours or a digest have held is gathered, however few they are.
    above = 1 if all(row.next_try_at > row.created_at for row in fresh) else FOLD_ABOVE
    return fresh[:FOLD_MOST] if first in fresh and len(fresh) > above else [first]


def _parcel(row: Any) -> Parcel:
    return Parcel(
        id=row.id,
        user_id=row.user_id,
        printer_id=row.printer_id,
        message_id=row.message_id,
        channel=row.channel,
        destination=row.destination,
        channel_id=row.channel_id,
        target=row.target,
        payload=row.payload,
        is_urgent=row.is_urgent,
        tries=row.tries,
    )


def _endpoint(delivery: Any, preferences: Any) -> Endpoint:
    return Endpoint(
        url=preferences.webhook_url,
        owner_ids=(delivery.user_id, delivery.printer_id),
        secret_sealed=preferences.webhook_secret_sealed,
        old_secret_sealed=preferences.webhook_old_secret_sealed,
        old_secret_until=preferences.webhook_old_secret_until,
        failing_since=preferences.webhook_failing_since,
        disabled_reason=preferences.webhook_disabled_reason,
        is_disabled=preferences.webhook_disabled_at is not None,
    )


def _host_of(url: str) -> str:
    """Scheme, host and port, for telling one receiver from another."""
    return url.casefold().partition("://")[2].partition("/")[0].rpartition("@")[2]


def _clean(text: bytes | str | None, longest: int) -> str | None:
    """What PostgreSQL takes as text, whoever wrote it."""
    if not text:
        return None
    words = text.decode(errors="replace") if isinstance(text, bytes) else text
    return words.replace("\x00", "")[:longest].encode(errors="replace").decode()


# The statements are made once: to make one costs as much as to run it.
ENDPOINT = (
    PREFERENCES.c.webhook_url,
    PREFERENCES.c.webhook_secret_sealed,
    PREFERENCES.c.webhook_old_secret_sealed,
    PREFERENCES.c.webhook_old_secret_until,
    PREFERENCES.c.webhook_failing_since,
    PREFERENCES.c.webhook_disabled_at,
    PREFERENCES.c.webhook_disabled_reason,
)
"""What `load_of` reads of the preferences."""
# Written out, for a partial index serves only a condition that names its values.
_IS_UNSENT = sa.text("deliveries.status IN ('pending', 'sending')")
_IS_DUE = sa.or_(
    sa.and_(DELIVERIES.c.status == DeliveryStatus.pending, DELIVERIES.c.next_try_at <= sa.bindparam("now")),
    sa.and_(DELIVERIES.c.status == DeliveryStatus.sending, DELIVERIES.c.claimed_at <= sa.bindparam("dead_since")),
)
# Of a printer's webhooks the oldest alone: those behind it wait, however long they are due.
_HEADS = (
    sa.select(sa.func.min(DELIVERIES.c.id).label("id"))
    .where(_IS_UNSENT, DELIVERIES.c.destination == WEBHOOK)
    .group_by(DELIVERIES.c.printer_id, DELIVERIES.c.destination)
    .subquery()
)
DUE_WEBHOOKS = (
    sa.select(DELIVERIES.c.user_id, DELIVERIES.c.printer_id, DELIVERIES.c.destination)
    .join(_HEADS, _HEADS.c.id == DELIVERIES.c.id)
    .where(_IS_DUE)
)
DUE_OTHERS = (
    sa.select(
        DELIVERIES.c.user_id,
        sa.case((DELIVERIES.c.channel == Channel.email, 0), else_=DELIVERIES.c.printer_id),
        DELIVERIES.c.destination,
    )
    .where(_IS_UNSENT, DELIVERIES.c.destination != WEBHOOK, _IS_DUE)
    .distinct()
)
DUE_MAILS = (
    sa.select(DELIVERIES, USERS.c.timezone)
    .join(USERS, USERS.c.id == DELIVERIES.c.user_id)
    .where(
        _IS_UNSENT,
        DELIVERIES.c.user_id == sa.bindparam("user"),
        DELIVERIES.c.destination == sa.bindparam("destination"),
        _IS_DUE,
    )
    .order_by(DELIVERIES.c.id)
    .limit(FOLD_MOST * 10)
)
_TAKE = (
    sa.update(DELIVERIES)
    .where(_IS_DUE)
    .values(
        status=DeliveryStatus.sending,
        claimed_at=sa.bindparam("now"),
        claimed_by=sa.bindparam("token"),
        attempts=DELIVERIES.c.attempts + 1,
        tries=DELIVERIES.c.tries + 1,
    )
)
ADD_ATTEMPTS = sa.insert(ATTEMPTS)
NOT_DURABLE = sa.text("SET LOCAL synchronous_commit TO off")
TAKE_ONE = _TAKE.where(DELIVERIES.c.id == sa.bindparam("first"))
TAKE_MEMBERS = _TAKE.where(DELIVERIES.c.id.in_(sa.bindparam("members", expanding=True))).values(
    folded_into_id=sa.bindparam("first")
)
HAS_WEBHOOKS_WAITING = sa.exists().where(
    DELIVERIES.c.printer_id == sa.bindparam("printer"), DELIVERIES.c.destination == WEBHOOK, _IS_UNSENT
)
WEBHOOK_HEAD = (
    sa.select(DELIVERIES, *ENDPOINT)
    .outerjoin(PREFERENCES, PREFERENCES.c.printer_id == DELIVERIES.c.printer_id)
    .where(
        DELIVERIES.c.printer_id == sa.bindparam("printer"),
        DELIVERIES.c.destination == WEBHOOK,
        _IS_UNSENT,
    )
    .order_by(DELIVERIES.c.id)
    .limit(1)
)
