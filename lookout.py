"""Printers that announce themselves in the worker's network: heard, and written down for every web process to read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from flask import Flask

from api.context import Parts
from bambu_discovery import Discovery, FoundPrinter
from farm.discovered import forget_silent, note_found
from models import db

log = structlog.get_logger()

# Printers speak every few seconds. What says nothing new is confirmed this often, and what went silent is deleted.
ROUND_EVERY = timedelta(seconds=30)
TRY_AGAIN_AFTER = timedelta(seconds=60)


class Lookout:
    """Every method runs in the worker's own thread. The network's thread only rings a bell: whatever a flood brings, it
    is one transaction a call of `look()`, with what `Discovery` remembers and no more."""

    def __init__(self, app: Flask) -> None:
        parts: Parts = app.extensions["parts"]
        self._app, self._port = app, parts.settings.discovery_port
        self._clock: Callable[[], datetime] = app.extensions["clock"]
        self._discovery: Discovery | None = None
        self._has_news = threading.Event()
        self._written: dict[str, FoundPrinter] = {}
        self._round_at: datetime | None = None
        self._tried_at: datetime | None = None
        self._fault: str | None = None

    def look(self) -> None:
        """Write down who has been heard. Without the port it goes on, and tries again later."""
        if not self._port:
            return
        now = self._clock()
        # Either way: a clock that was set back must not put it off until it has caught up.
        if self._discovery is None and (self._tried_at is None or abs(now - self._tried_at) >= TRY_AGAIN_AFTER):
            self._tried_at = now
            self._discovery = self._listen()
        is_round = self._round_at is None or abs(now - self._round_at) >= ROUND_EVERY
        if is_round or self._has_news.is_set():
            self._write_down(now, is_round=is_round)

    def close(self) -> None:
        if self._discovery is not None:
            self._discovery.close()

    def _listen(self) -> Discovery | None:
        discovery = Discovery(lambda _: self._has_news.set(), self._clock, port=self._port)
        try:
            discovery.start()
        except OSError as error:
            if self._fault != str(error):
                self._fault = str(error)
                log.warning("discovery_off", port=self._port, reason=self._fault)
            return None
        self._fault = None
        log.info("discovery_on", port=discovery.port)
        return discovery

    def _write_down(self, now: datetime, *, is_round: bool) -> None:
        self._has_news.clear()
        found = self._discovery.found() if self._discovery is not None else ()
        due = {each.serial: each for each in found if self._is_due(each, is_round=is_round)}
        with self._app.app_context():
            note_found(due.values(), now=now)
            if is_round:
                forget_silent(now=now)
            db.session.commit()
        # Not before the commit: what could not be written is due again in the next round.
        self._written = {each.serial: due.get(each.serial, self._written.get(each.serial, each)) for each in found}
        if is_round:
            self._round_at = now

    def _is_due(self, found: FoundPrinter, *, is_round: bool) -> bool:
        """Two are equal when they say the same, whenever they said it."""
        written = self._written.get(found.serial)
        return written is None or found != written or (is_round and found.heard_at != written.heard_at)
