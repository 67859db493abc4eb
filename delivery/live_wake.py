"""Tells the live channels of other processes that there is something new to read, through Redis.

Only that: what it is, each process reads from the database, for the clients that it serves. So whoever reaches Redis
can put no word into anybody's browser, and a word that is lost costs a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import redis
import structlog

log = structlog.get_logger()

CHANNEL = "farm:live"
CONNECT_SECONDS = 1.0
HEAR_SECONDS = 1.0
RECONNECT_SECONDS = 2.0


class Teller:
    """Publishes in a thread of its own, begun with the first word: no commit waits for Redis."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=CONNECT_SECONDS, socket_connect_timeout=CONNECT_SECONDS
        )
        self._has_news = threading.Event()
        self._beginning = threading.Lock()
        self._thread: threading.Thread | None = None

    def tell(self) -> None:
        self._has_news.set()
        with self._beginning:
            # After a fork the thread is not there any more.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="live teller", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._has_news.wait()
            self._has_news.clear()
            try:
                self._redis.publish(CHANNEL, b"")
            except redis.RedisError as error:
                log.warning("live_untold", reason=type(error).__name__)
                threading.Event().wait(RECONNECT_SECONDS)


class Hearer:
    """Calls `on_news` for each word of any process, its own among them, in a thread of its own until it is closed."""

    def __init__(self, redis_url: str, on_news: Callable[[], None]) -> None:
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=HEAR_SECONDS + 5.0, socket_connect_timeout=CONNECT_SECONDS
        )
        self._on_news = on_news
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live hearer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with self._redis.pubsub(ignore_subscribe_messages=True) as heard:  # type: ignore[no-untyped-call]
                    heard.subscribe(CHANNEL)
                    while not self._closed.is_set():
                        if heard.get_message(timeout=HEAR_SECONDS) is not None:
                            self._on_news()
            except redis.RedisError as error:
                log.warning("live_unheard", reason=type(error).__name__)
                self._closed.wait(RECONNECT_SECONDS)
        self._redis.close()
