"""The printers' connections that this worker holds: opened and closed with their rows, heard, and written down.

Network threads only put what they hear into the worker's inbox; the worker's one thread runs what is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from flask import Flask

from api.context import Parts
from bambu_client import Answer, Heard, LinkStatus, LinkTimings, PrinterAddress, PrinterLink
from bambu_files import PrinterStorage
from bambu_report import ACTIVE, PrinterState
from cloud_links import CloudLinks, CloudRow
from farm import tracker
from farm.leases import LEASE, Lease, keep_leases, release_leases
from farm.live import CLOUD_INCOMPLETE, INCOMPLETE
from models import CloudAccount, CloudLoginState, ConnectionStatus, ConnectionType, Printer, PrinterConnection, db
from recorder import Recorder, Watched
from vault import SealBroken

# So many times in its life a lease is renewed.
RENEWALS = 6
UNREADABLE = "the stored access code cannot be read: enter it again"

Complaint = tuple[ConnectionStatus, str]


@dataclass(frozen=True, slots=True)
class Deferral:
    """A print that could not be sent: not tried again before `until`, so that it holds up none behind it."""

    reason: str
    until: datetime
    tries: int


@dataclass(slots=True, kw_only=True)
class Held(Watched):
    """A printer that is reached over its own network, where it takes commands and files."""

    link: PrinterLink
    storage: PrinterStorage
    # Something of its queue or of itself may have changed since its queue was looked at.
    is_due: bool = True
    look_again_at: datetime | None = None
    fingerprint: tuple[object, ...] | None = None
    deferrals: dict[int, Deferral] = field(default_factory=dict)
    is_starting: bool = False
    is_tidying: bool = False
    tidy_not_before: datetime | None = None

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
        pool: Executor,
        timings: LinkTimings | None = None,
        lease_life: timedelta = LEASE,
    ) -> None:
        parts: Parts = app.extensions["parts"]
        self._app, self._owner, self._settings, self._vault = app, owner, parts.settings, parts.vault
        self._clock = parts.clock
        self._post, self._pool, self._timings = post, pool, timings
        self._recorder = Recorder(app)
        self._cloud = CloudLinks(app, self._recorder, post=post, pool=pool, timings=timings)
        self._by_connection: dict[int, Held] = {}
        self._leases: dict[str, Lease] = {}
        self._renewed_at: datetime | None = None
        self._lease_life = lease_life

    def all(self) -> list[Held]:
        """The printers that can be told something; those heard through the cloud are not among them."""
        return list(self._by_connection.values())

    def printer_ids(self) -> frozenset[int]:
        """Of the same printers. May be asked in any thread."""
        return frozenset(held.printer_id for held in self.all())

    def close(self) -> None:
        """Say goodbye to every printer and let other workers have them."""
        for held in self.all():
            # An upload may take longer than anybody waits for the end of a process.
            held.storage.break_off()
            held.link.close()
        try:
            # Whoever comes next may never hear what this worker has heard last.
            self._recorder.save_snapshots(self._everything(), at_once=True)
        finally:
            self._by_connection.clear()
            self._cloud.close()
            with self._app.app_context():
                release_leases(self._owner)

    def sync(self) -> None:
        """Hold what there is to hold: printers whose lease is ours, by the newest version of their row."""
        with self._app.app_context():
            self._cloud.extend_logins()
        with self._app.app_context():
            rows = db.session.execute(CONNECTIONS).all()
            complaints = {row.id: complaint for row in rows if (complaint := _complaint_about(row))}
            self._complain(complaints)
            complete = {row.id: row for row in rows if row.id not in complaints}
            taken = self._keep_leases({row.serial_number for row in complete.values()})
            ours = {row.id: row for row in complete.values() if row.serial_number in self._leases}
            lan = {key: row for key, row in ours.items() if row.connection_type is ConnectionType.bambu_lan}
            for held in self.all():
                row = lan.get(held.connection_id)
                if row is None or row.version != held.version or self._leases[row.serial_number] != held.lease:
                    del self._by_connection[held.connection_id]
                    self._pool.submit(held.link.close)
            for row in lan.values():
                if row.id not in self._by_connection:
                    self._open(db.session.get_one(PrinterConnection, row.id), self._leases[row.serial_number])
            self._cloud.sync(
                [_cloud_row(row, self._leases[row.serial_number]) for key, row in ours.items() if key not in lan]
            )
            if taken:
                # What the last holder left unsent is given back before anything new begins.
                tracker.withdraw_unsent(
                    [row.printer_id for row in ours.values() if row.serial_number in taken], now=self._clock()
                )
            db.session.commit()

    def _keep_leases(self, serials: set[str]) -> set[str]:
        """Returns the serials that became ours just now."""
        now = self._clock()
        is_fresh = self._renewed_at is not None and now - self._renewed_at < self._lease_life / RENEWALS
        if is_fresh and serials == self._leases.keys():
            return set()
        busy = [held.lease.serial_number for held in self.all() if held.is_busy]
        before = self._leases
        self._leases = keep_leases(self._owner, serials, now=now, busy=busy, life=self._lease_life)
        self._renewed_at = now
        return {serial for serial, lease in self._leases.items() if before.get(serial) != lease}

    def _complain(self, complaints: Mapping[int, Complaint]) -> None:
        for connection_id, (status, reason) in complaints.items():
            self._recorder.note(db.session.get_one(PrinterConnection, connection_id), status, reason)

    def _open(self, row: PrinterConnection, lease: Lease) -> None:
        assert row.host and row.serial_number and row.access_code_sealed
        try:
            access_code = self._vault.open(row.access_code_sealed, row.secret_owner("access_code"))
        except SealBroken:
            self._recorder.note(row, ConnectionStatus.error, UNREADABLE)
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
            timings=self._timings,
        )
        self._by_connection[row.id] = Held(
            connection_id=row.id,
            printer_id=row.printer_id,
            version=row.version,
            lease=lease,
            link=link,
            storage=PrinterStorage(address, clear_data=row.clear_data),
        )
        link.open()

    def _current(self, key: tuple[int, int]) -> Held | None:
        """What is held, unless the message came from a link that has been replaced since."""
        held = self._by_connection.get(key[0])
        return held if held is not None and held.version == key[1] else None

    def _changed(self, key: tuple[int, int], status: LinkStatus, reason: str | None) -> None:
        held = self._current(key)
        if held is not None:
            held.is_due = True
            self._recorder.link_changed(held, status, reason, held.link.fingerprint)

    def _heard(self, key: tuple[int, int], heard: Heard) -> None:
        held = self._current(key)
        if held is not None:
            held.is_due = held.is_due or _bears_on_starting(held.state, heard.after)
            begins = heard.after.state in ACTIVE and held.state.state not in ACTIVE
            self._recorder.heard(held, heard.after, heard.heard_at, is_whole=heard.full)
            if begins and not heard.full:
                # Whose print it is may stand in another part, and that may have been lost.
                held.link.ask_full_report()

    def _answered(self, key: tuple[int, int], answer: Answer) -> None:
        held = self._current(key)
        if held is not None and answer.submission_id is not None:
            self._recorder.answered(held, answer)

    def seconds_to_settling(self, at_most: float) -> float:
        """See `Recorder.seconds_to_settling`."""
        return self._recorder.seconds_to_settling(at_most)

    def settle_on_time(self) -> None:
        """See `Recorder.settle_on_time`."""
        self._recorder.settle_on_time(self._everything())

    def settle(self) -> None:
        """See `Recorder.settle`."""
        silent = self._recorder.settle(self._everything())
        for held in self.all():
            if held.printer_id in silent:
                held.link.ask_full_report()

    def save_snapshots(self) -> None:
        """See `Recorder.save_snapshots`."""
        self._recorder.save_snapshots(self._everything())

    def tell_lasting(self) -> None:
        """See `Recorder.tell_lasting`."""
        self._recorder.tell_lasting()

    def _everything(self) -> list[Watched]:
        return [*self.all(), *self._cloud.all()]


def _bears_on_starting(before: PrinterState, after: PrinterState) -> bool:
    """Whether a report changes what an interlock asks for."""
    return any(
        getattr(before, name) != getattr(after, name)
        for name in ("known", "state", "storage", "developer_mode", "faults", "spools", "nozzles", "model")
    )


CONNECTIONS = (
    sa.select(
        PrinterConnection.id,
        PrinterConnection.printer_id,
        PrinterConnection.version,
        PrinterConnection.connection_type,
        PrinterConnection.serial_number,
        sa.and_(PrinterConnection.host.is_not(None), PrinterConnection.access_code_sealed.is_not(None)).label(
            "has_address"
        ),
        PrinterConnection.cloud_token_sealed.is_not(None).label("has_token"),
        PrinterConnection.cloud_account_id,
        CloudAccount.version.label("account_version"),
        CloudAccount.state.label("account_state"),
        CloudAccount.state_reason.label("account_reason"),
    )
    .join(Printer, Printer.id == PrinterConnection.printer_id)
    .outerjoin(CloudAccount, CloudAccount.id == PrinterConnection.cloud_account_id)
    .where(Printer.deleted_at.is_(None))
)


def _complaint_about(row: Any) -> Complaint | None:
    """Why nothing can be done with a connection as it stands."""
    if row.connection_type is ConnectionType.bambu_lan:
        return None if row.serial_number and row.has_address else (ConnectionStatus.error, INCOMPLETE)
    if not row.serial_number or (row.cloud_account_id is None and not row.has_token):
        return ConnectionStatus.error, CLOUD_INCOMPLETE
    if row.cloud_account_id is not None and row.account_state is not CloudLoginState.connected:
        return ConnectionStatus.unauthorized, f"not logged in to Bambu's cloud: {row.account_reason}"
    return None


def _cloud_row(row: Any, lease: Lease) -> CloudRow:
    account = (row.cloud_account_id, row.account_version) if row.cloud_account_id is not None else None
    return CloudRow(row.id, row.printer_id, row.version, account, lease)
