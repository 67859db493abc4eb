"""Tells the senders at once that something is to be sent, after the transaction that made it.

In this process by a call, between processes through a list in Redis where REDIS_URL names one. A word may be lost, and
nothing but speed depends on it: the row is the truth, and the senders sweep as well.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import orjson
import redis
import sqlalchemy as sa
import structlog
from flask import Flask, current_app
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction

from claims import ANY, Claim, Load, Stream, stream_of
from models import Delivery, DeliveryStatus, db

log = structlog.get_logger()

KEY = "farm:postbox"
# Nobody takes them out while no sender runs; the sweep finds whatever is not told.
LONGEST_LIST = 10_000
BLOCK_SECONDS = 1
PUSH_SECONDS = 0.5
RECONNECT_SECONDS = 2.0

Posted = Collection[Stream]


class Sender(Protocol):
    """Who sends in this process. Called in the thread that commits, which cannot be kept for long."""

    def wake(self, streams: Posted) -> None: ...

    def claim(self) -> Claim:
        """For a webhook that is written as taken by it."""

    def hand(self, loads: Sequence[Load]) -> None:
        """What was written so, in one transaction, is committed."""


class Postbox:
    """One for each app."""

    def __init__(self, redis_url: str) -> None:
        self._senders: list[Sender] = []
        self._redis = (
            redis.Redis.from_url(redis_url, socket_timeout=PUSH_SECONDS, socket_connect_timeout=PUSH_SECONDS)
            if redis_url
            else None
        )

    def listen(self, sender: Sender) -> None:
        self._senders.append(sender)

    def stop_listening(self, sender: Sender) -> None:
        with contextlib.suppress(ValueError):
            self._senders.remove(sender)

    @property
    def sender(self) -> Sender | None:
        """Of this process; None where none listens."""
        return next(iter(self._senders), None)

    def post(self, streams: Posted) -> None:
        """To whoever sends in this process, else to those of other processes."""
        senders = list(self._senders)
        for sender in senders:
            sender.wake(streams)
        if senders or self._redis is None:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.lpush(KEY, orjson.dumps([list(stream) for stream in streams]))
                pipe.ltrim(KEY, 0, LONGEST_LIST - 1)
                pipe.execute()
        except redis.RedisError as error:
            log.warning("postbox_unreachable", reason=type(error).__name__)


def hang_postbox(app: Flask, redis_url: str) -> Postbox:
    """Once for each app, in `create_app`."""
    postbox = app.extensions["postbox"] = Postbox(redis_url)
    for name, handler in HANDLERS.items():
        if not sa.event.contains(db.session, name, handler):
            sa.event.listen(db.session, name, handler)
    return postbox


def _note(session: Session, stream: Stream) -> None:
    session.info.setdefault("posted", set()).add(stream)


def hand_over(sender: Sender, load: Load) -> None:
    """Once the present transaction is committed; not at all if it is not."""
    db.session().info.setdefault("handed", {}).setdefault(sender, []).append(load)


def _after_flush(session: Session, context: Any) -> None:
    for changed in (*session.new, *session.dirty):
        if isinstance(changed, Delivery) and changed.status is DeliveryStatus.pending:
            _note(session, stream_of(changed))


def _on_statement(statement: ORMExecuteState) -> None:
    """Statements that pass the unit of work by. Senders write past the session, so that they do not wake themselves."""
    table = getattr(getattr(statement.statement, "table", None), "name", None)
    if table == Delivery.__tablename__ and (statement.is_insert or statement.is_update):
        _note(statement.session, ANY)


def _after_commit(session: Session) -> None:
    if session.in_nested_transaction():
        # Of a savepoint alone: nothing is written down yet.
        return
    for sender, loads in session.info.pop("handed", {}).items():
        sender.hand(loads)
    posted = session.info.pop("posted", None)
    postbox: Postbox | None = current_app.extensions.get("postbox")
    if posted and postbox is not None:
        postbox.post(posted)


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    """Also of a rollback that failed. What was written before a savepoint stands, whatever becomes of that."""
    if transaction.parent is None:
        session.info.pop("posted", None)
        session.info.pop("handed", None)


HANDLERS: dict[str, Callable[..., None]] = {
    "after_flush": _after_flush,
    "do_orm_execute": _on_statement,
    "after_commit": _after_commit,
    "after_transaction_end": _after_transaction_end,
}


class RedisListener:
    """Hears the other processes' postboxes, in a thread of its own."""

    def __init__(self, redis_url: str, on_post: Callable[[Posted], None]) -> None:
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=BLOCK_SECONDS + 5.0, socket_connect_timeout=PUSH_SECONDS
        )
        self._on_post = on_post
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="postbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(BLOCK_SECONDS + 1.0)
        self._redis.close()

    def _run(self) -> None:
        is_new = True
        while not self._closed.is_set():
            try:
                if is_new:
                    self._redis.ping()
                    # Whatever was told while nobody heard.
                    self._on_post({ANY})
                    is_new = False
                found = self._redis.brpop([KEY], timeout=BLOCK_SECONDS)
            except redis.RedisError as error:
                log.warning("postbox_lost", reason=type(error).__name__)
                is_new = True
                self._closed.wait(RECONNECT_SECONDS)
                continue
            if found:
                self._on_post(_read(found[1]))


def _read(message: bytes | str) -> Posted:
    """Whoever reaches Redis may write there: anything odd means that the senders look for themselves."""
    try:
        return {
            Stream(int(user), int(printer), str(destination)) for user, printer, destination in orjson.loads(message)
        }
    except (ValueError, TypeError):
        return {ANY}
