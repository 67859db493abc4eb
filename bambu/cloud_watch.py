"""What is known of one printer over the cloud's MQTT: the conversation with it, from report to report. No socket here.

The connection is to the cloud, not to the printer: it stays up while a printer goes and comes. So a conversation begins
when the report topic is subscribed, when the cloud says that the printer has connected, and with the first word of one
that was thought to be away; and each begins knowing nothing, because reports may have been missed in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import bambu_report as report
from bambu.commands import FULL_REPORT, RESUME_REPORTS, VERSION, Command
from bambu.types import Heard, LinkStatus, LinkTimings, LinkView
from bambu.values import Unreadable, whole_between

# A P1 suffers from full reports; only the one after our own connecting is free.
FULL_REPORT_PAUSE_SECONDS = 300.0

_GONE = "the cloud says that the printer has disconnected: it is switched off, or has no network"
_SILENT = "nothing comes from the printer over the cloud: it is switched off, or in LAN Only mode"
_NO_FULL_REPORT = "connected, but the printer sends no full report over the cloud"
_NOT_OURS = "the cloud does not show this printer to this account: is it bound to another?"

_milliseconds = whole_between(0, 10**16)


class CloudWatch:
    """All methods belong to one thread. `now` is a monotonic time in seconds, everywhere."""

    def __init__(
        self,
        serial: str,
        timings: LinkTimings,
        *,
        clock: Callable[[], datetime],
        now: Callable[[], float],
        ask: Callable[[str, Command], None],
        on_heard: Callable[[str, Heard], None],
        on_link: Callable[[str, LinkStatus, str | None], None],
    ) -> None:
        self.serial = serial
        self.view = LinkView()
        self._timings, self._clock, self._now = timings, clock, now
        self._ask, self._on_heard, self._on_link = ask, on_heard, on_link
        self._raw = report.first_raw(serial)
        self._state = report.read(self._raw)
        self._talking = self._refused = self._gone = False
        self._began = 0.0
        self._heard: float | None = None
        self._nudged = False
        self._full_due: float | None = None
        self._full_asked: float | None = None
        self._free_again = 0.0
        self._connected_at = 0

    def begin(self) -> None:
        """The report topic is subscribed. A printer that was offline stays so until it is heard."""
        self._talking, self._refused = True, False
        self._start_over()
        if self.view.status in (LinkStatus.connecting, LinkStatus.error):
            self._note(LinkStatus.connecting, None)
        self._ask(self.serial, VERSION)
        self._ask_full()

    def refuse(self) -> None:
        """The cloud would not subscribe us to this printer."""
        self._talking, self._refused = False, True
        self._note(LinkStatus.error, _NOT_OURS)

    def lose(self, reason: str, status: LinkStatus | None = None) -> None:
        """The connection to the cloud is gone; `status` is what the link is now, None to leave it to time."""
        self._talking = False
        if status is not None:
            self._note(status, reason)
        elif self._refused:
            return  # which no connection of ours will change by being lost
        elif self._gone or self._is_away():
            self._note(LinkStatus.offline, reason)
        else:
            self._note(LinkStatus.connecting, reason)

    def hear(self, payload: bytes) -> None:
        """One message of the printer's topic: a report, an event of the cloud's, an answer to somebody, or noise."""
        message = report.decode(payload)
        if message is None or not self._talking:
            return
        event = message.get("event")
        if isinstance(event, dict):
            self._take_event(event)
            return
        is_status, full = report.is_status(message), report.is_full(message)
        if is_status and self._gone:
            self._start_over()
            if not full:
                self._ask_full_in_time()
        merged = report.merge(self._raw, message)
        if merged is self._raw and not is_status:
            return  # the cloud sends empty messages for printers that are switched off
        self._take_report(merged, full)

    def _take_report(self, merged: report.Raw, full: bool) -> None:
        self._heard, self._nudged = self._now(), False
        before = self._state
        if merged is not self._raw:
            self._raw, self._state = merged, report.read(merged)
        heard = Heard(before, self._state, self._clock(), self.view.generation, full)
        if self._state.known:
            full_heard_at = heard.heard_at if full else self.view.full_heard_at
            self.view = replace(self.view, state=self._state, heard_at=heard.heard_at, full_heard_at=full_heard_at)
        elif not self.view.state.known:
            # Otherwise the last known state stands until this conversation knows better.
            self.view = replace(self.view, state=self._state)
        if full:
            self._full_due = self._full_asked = None
            self._note(LinkStatus.connected, None)
        self._on_heard(self.serial, heard)

    def _take_event(self, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        if kind == "client.connected":
            self._connected_at = _time_of(event.get("connected_at")) or self._connected_at
            self._start_over()
            self._note(LinkStatus.connecting, None)
            self._ask(self.serial, VERSION)
            self._ask_full_in_time()
        elif kind == "client.disconnected":
            at = _time_of(event.get("disconnected_at"))
            # After a power cycle the old connection can be missed only when the new one is there already.
            if at is None or at >= self._connected_at:
                self._gone = True
                self._note(LinkStatus.offline, _GONE)

    def tick(self) -> None:
        """Watches over the conversation: asks again, prods, and in the end calls the printer offline."""
        now, timings = self._now(), self._timings
        if not self._talking:
            if self.view.status is LinkStatus.connecting and self.view.reason is not None and self._is_away():
                self._note(LinkStatus.offline, self.view.reason)
            return
        if self._gone:
            return
        if self._full_due is not None and now >= self._full_due:
            self._ask_full_in_time()
        if self._full_asked is not None and now - self._full_asked > timings.full_report:
            self._ask_full()
            self._full_asked = None  # asked twice in vain: reports may still make up a full one
            self._note(self.view.status, _NO_FULL_REPORT)
        quiet = now - max(self._began, self._heard or self._began)
        if quiet > timings.offline:
            self._gone = True
            self._note(LinkStatus.offline, _SILENT)
        elif quiet > timings.silence and not self._nudged:
            self._nudged = True
            self._ask(self.serial, RESUME_REPORTS)

    def _start_over(self) -> None:
        self._raw = report.first_raw(self.serial)
        self._state = report.read(self._raw)
        self._gone = self._nudged = False
        self._began = self._now()
        self._full_due = self._full_asked = None
        self.view = replace(self.view, generation=self.view.generation + 1)

    def _ask_full_in_time(self) -> None:
        now = self._now()
        if now >= self._free_again:
            self._free_again = now + FULL_REPORT_PAUSE_SECONDS
            self._ask_full()
        else:
            self._full_due = self._free_again

    def _ask_full(self) -> None:
        self._full_due, self._full_asked = None, self._now()
        self._ask(self.serial, FULL_REPORT)

    def _is_away(self) -> bool:
        return self._heard is None or self._now() - self._heard > self._timings.offline

    def _note(self, status: LinkStatus, reason: str | None) -> None:
        if (status, reason) != (self.view.status, self.view.reason):
            self.view = replace(self.view, status=status, reason=reason)
            self._on_link(self.serial, status, reason)


def _time_of(given: object) -> int | None:
    try:
        return _milliseconds(given)
    except Unreadable:
        return None
