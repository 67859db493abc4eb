"""The printers' connections that this worker holds: opened and closed with their rows, heard, and written down.

Network threads only put what they hear into the worker's inbox; the worker's one thread runs what is here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from flask import Flask

from api.context import Parts
from bambu_client import Answer, Heard, LinkStatus, PrinterAddress, PrinterLink
from bambu_files import PrinterStorage
from bambu_report import PrinterActivity, PrinterState
from farm import tracker
from farm.leases import Lease, keep_leases, release_leases
from farm.live import INCOMPLETE
from farm.status import snapshot_of
from models import ConnectionStatus, ConnectionType, Printer, PrinterConnection, ScheduledPrint, db
from vault import SealBroken

log = structlog.get_logger()

RENEW_LEASES = timedelta(seconds=10)
UNREADABLE = "the stored access code cannot be read: enter it again"


@dataclass(slots=True)
class Held:
    """A printer's connection as this worker holds it."""

    connection_id: int
    printer_id: int
    version: int
    lease: Lease
    link: PrinterLink
    storage: PrinterStorage
    state: PrinterState = field(default_factory=PrinterState)
    in_state_since: datetime | None = None
    heard_at: datetime | None = None
    current_print_id: int | None = None
    print_name: str | None = None
    # What the tracker was told last: a report that says the same again needs no database.
    tracked: tuple[object, ...] | None = None
    is_unsaved: bool = False
    saved_at: datetime | None = None
    commands_under_way: int = 0
    is_starting: bool = False
    start_not_before: datetime | None = None

    @property
    def is_busy(self) -> bool:
        return self.is_starting or self.commands_under_way > 0


class Links:
    """Every method runs in the worker's own thread, but for the callbacks, which only reach for the inbox."""

    def __init__(
        self,
        app: Flask,
        owner: str,
        *,
        post: Callable[[Callable[[], None]], None],
        on_news: Callable[[], None],
        on_idle: Callable[[Held], None],
        pool: Executor,
    ) -> None:
        parts: Parts = app.extensions["parts"]
        self._app, self._owner, self._settings, self._vault = app, owner, parts.settings, parts.vault
        self._limits, self._clock = parts.limits, app.extensions["clock"]
        self._post, self._on_news, self._on_idle, self._pool = post, on_news, on_idle, pool
        self._by_connection: dict[int, Held] = {}
        self._leases: dict[str, Lease] = {}
        self._renewed_at: datetime | None = None

    def all(self) -> list[Held]:
        return list(self._by_connection.values())

    def close(self) -> None:
        """Say goodbye to every printer and let other workers have them."""
        for held in self.all():
            held.link.close()
        self._by_connection.clear()
        with self._app.app_context():
            release_leases(self._owner)

    def sync(self) -> None:
        """Hold what there is to hold: printers whose lease is ours, by the newest version of their row."""
        with self._app.app_context():
            rows = db.session.execute(
                sa.select(
                    PrinterConnection.id,
                    PrinterConnection.version,
                    PrinterConnection.serial_number,
                    sa.and_(
                        PrinterConnection.host.is_not(None), PrinterConnection.access_code_sealed.is_not(None)
                    ).label("is_complete"),
                )
                .join(Printer, Printer.id == PrinterConnection.printer_id)
                .where(PrinterConnection.connection_type == ConnectionType.bambu_lan, Printer.deleted_at.is_(None))
            ).all()
            complete = {row.id: row for row in rows if row.serial_number and row.is_complete}
            self._complain([row.id for row in rows if row.id not in complete])
            taken = self._keep_leases({row.serial_number for row in complete.values()})
            for held in self.all():
                row = complete.get(held.connection_id)
                lease = self._leases.get(row.serial_number) if row is not None else None
                if row is None or row.version != held.version or lease != held.lease:
                    del self._by_connection[held.connection_id]
                    self._pool.submit(held.link.close)
            for row in complete.values():
                if row.id not in self._by_connection and row.serial_number in self._leases:
                    self._open(db.session.get_one(PrinterConnection, row.id), self._leases[row.serial_number])
            if taken:
                # What the last holder left unsent is given back before anything new begins.
                tracker.withdraw_unsent(
                    [held.printer_id for held in self.all() if held.lease.serial_number in taken], now=self._clock()
                )
            db.session.commit()

    def _keep_leases(self, serials: set[str]) -> set[str]:
        """Returns the serials that became ours just now."""
        now = self._clock()
        if self._renewed_at is not None and now - self._renewed_at < RENEW_LEASES and serials == self._leases.keys():
            return set()
        busy = [held.lease.serial_number for held in self.all() if held.is_busy]
        before = self._leases
        self._leases = keep_leases(self._owner, serials, now=now, busy=busy)
        self._renewed_at = now
        return {serial for serial, lease in self._leases.items() if before.get(serial) != lease}

    def _complain(self, connection_ids: list[int]) -> None:
        for connection_id in connection_ids:
            self._note(db.session.get_one(PrinterConnection, connection_id), ConnectionStatus.error, INCOMPLETE)

    def _open(self, row: PrinterConnection, lease: Lease) -> None:
        assert row.host and row.serial_number and row.access_code_sealed
        try:
            access_code = self._vault.open(row.access_code_sealed, row.secret_owner("access_code"))
        except SealBroken:
            self._note(row, ConnectionStatus.error, UNREADABLE)
            return
        address = PrinterAddress(
            host=row.host,
            serial=row.serial_number,
            access_code=access_code,
            mqtt_port=row.port,
            ftps_port=row.ftps_port,
            ca_file=self._settings.bambu_ca_file or None,
            fingerprint=row.fingerprint,
        )
        key = row.id, row.version
        link = PrinterLink(
            address,
            on_heard=lambda heard: self._post(lambda: self._heard(key, heard)),
            on_answer=lambda answer: self._post(lambda: self._answered(key, answer)),
            on_link=lambda status, reason: self._post(lambda: self._changed(key, status, reason)),
            clock=self._clock,
        )
        self._by_connection[row.id] = Held(
            row.id, row.printer_id, row.version, lease, link, PrinterStorage(address, clear_data=row.clear_data)
        )
        link.open()

    def _note(self, row: PrinterConnection, status: ConnectionStatus, reason: str | None) -> None:
        if (row.connection_status, row.status_reason) != (status, reason):
            row.connection_status, row.status_reason = status, reason

    def _current(self, key: tuple[int, int]) -> Held | None:
        """What is held, unless the message came from a link that has been replaced since."""
        held = self._by_connection.get(key[0])
        return held if held is not None and held.version == key[1] else None

    def _changed(self, key: tuple[int, int], status: LinkStatus, reason: str | None) -> None:
        held = self._current(key)
        if held is None:
            return
        with self._app.app_context():
            row = db.session.get(PrinterConnection, held.connection_id)
            if row is None:
                return
            self._note(row, ConnectionStatus(status.value), reason)
            if held.link.fingerprint and row.fingerprint is None:
                row.fingerprint = held.link.fingerprint
            db.session.commit()
        log.info("link", printer_id=held.printer_id, status=status.value, reason=reason)

    def _heard(self, key: tuple[int, int], heard: Heard) -> None:
        held = self._current(key)
        if held is None:
            return
        state = heard.after
        if held.in_state_since is None or state.state is not held.state.state:
            held.in_state_since = heard.heard_at
        held.state, held.heard_at, held.is_unsaved = state, heard.heard_at, True
        news = (
            *(state.known, state.state, state.submission_id, state.progress_percent),
            *(state.print_error, state.cancelled),
        )
        if news != held.tracked or held.commands_under_way:
            self.track(held)
            held.tracked = news

    def track(self, held: Held) -> None:
        """What the printer's present state means for our prints, in one transaction with the snapshot that shows it."""
        if held.in_state_since is None:
            return
        with self._app.app_context():
            printer = db.session.get(Printer, held.printer_id)
            if printer is None or printer.deleted_at is not None:
                return
            before = held.current_print_id
            held.current_print_id = tracker.apply(
                printer, held.state, in_state_since=held.in_state_since, now=self._clock(), limits=self._limits
            )
            if held.current_print_id != before:
                ours = db.session.get(ScheduledPrint, held.current_print_id) if held.current_print_id else None
                held.print_name = ours.job_name if ours else None
            has_news = bool(db.session.new or db.session.dirty)
            self._save([held])
            db.session.commit()
        if has_news:
            self._on_news()
        if before is not None and held.current_print_id is None:
            self._on_idle(held)

    def _answered(self, key: tuple[int, int], answer: Answer) -> None:
        held = self._current(key)
        if held is None or answer.submission_id is None:
            return
        with self._app.app_context():
            printer = db.session.get_one(Printer, held.printer_id)
            tracker.apply_answer(printer, answer, now=self._clock(), limits=self._limits)
            db.session.commit()
        self._on_news()

    def settle(self) -> None:
        """What no report announces: a failure whose time to explain itself is over, a start never confirmed."""
        now = self._clock()
        for held in self.all():
            since = held.in_state_since
            if (
                held.state.state is PrinterActivity.failed
                and since is not None
                and now - since < 3 * tracker.FAILURE_SETTLES_IN
            ):
                self.track(held)
        with self._app.app_context():
            tracker.mark_unconfirmed([held.printer_id for held in self.all()], now=now)
            db.session.commit()

    def save_snapshots(self) -> None:
        """Write down what was heard, for every web process to read: all printers in one transaction, each not more
        often than the setting says."""
        now, interval = self._clock(), timedelta(seconds=self._settings.status_interval_seconds)
        due = [
            held
            for held in self.all()
            if held.is_unsaved and (held.saved_at is None or now - held.saved_at >= interval)
        ]
        if due:
            with self._app.app_context():
                self._save(due)
                db.session.commit()

    def _save(self, due: list[Held]) -> None:
        now = self._clock()
        rows: list[dict[str, Any]] = [
            {
                "connection": held.connection_id,
                "at_version": held.version,
                "shown": snapshot_of(held.state, current_print_id=held.current_print_id, print_name=held.print_name),
                "heard": held.heard_at,
            }
            for held in due
        ]
        db.session.flush()
        db.session.connection().execute(SAVE_SNAPSHOT, rows)
        for held in due:
            held.is_unsaved, held.saved_at = False, now


SAVE_SNAPSHOT = (
    sa.update(PrinterConnection.__table__)
    .where(
        PrinterConnection.__table__.c.id == sa.bindparam("connection"),
        PrinterConnection.__table__.c.version == sa.bindparam("at_version"),
    )
    .values(snapshot=sa.bindparam("shown"), heard_at=sa.bindparam("heard"))
)
