"""Printers heard through Bambu Lab's cloud: one connection for each login, for all its printers that this worker holds.

Nothing is ordered here, and no print of ours begins on such a printer (`farm.live.why_only_watched`): what it prints is
somebody else's, unless it was begun over its own network before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from flask import Flask

from api.context import Parts
from bambu.cloud_link import CloudLink
from bambu_client import Heard, LinkStatus, LinkTimings
from bambu_cloud import CloudError, CloudSession, LoginNeeded
from bambu_report import PrinterState
from farm import cloud_logins
from farm.cloud_logins import StoredLogin, read_login
from farm.leases import Lease
from models import CloudAccount, CloudRegion, ConnectionStatus, PrinterConnection, StartIntent, db
from recorder import Recorder, Watched
from vault import SealBroken

log = structlog.get_logger()

LOOK_FOR_ENDING_LOGINS = timedelta(minutes=1)
ASK_AGAIN = timedelta(minutes=1)

# Whose login it is (an account's row, or a connection's own token) and at which version.
LoginKey = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class CloudRow:
    """A connection by the cloud whose lease is held here. Without an account it has a token of its own."""

    connection_id: int
    printer_id: int
    version: int
    account: tuple[int, int] | None
    lease: Lease

    @property
    def login(self) -> LoginKey:
        return ("account", *self.account) if self.account else ("token", self.connection_id, self.version)


@dataclass(slots=True, kw_only=True)
class CloudWatched(Watched):
    # The starts of ours, over the printer's own network, that had not ended when the cloud took over.
    own_submissions: frozenset[str]


@dataclass(slots=True)
class _Hold:
    """One login. `link` is None while a pasted token is asked for its account, and when none could be made."""

    rows: frozenset[CloudRow]
    watched: dict[str, list[CloudWatched]]
    account: tuple[int, int] | None
    link: CloudLink | None = None
    ask_at: datetime | None = None


class CloudLinks:
    """Every method runs in the worker's own thread, but for the callbacks, which only reach for the inbox."""

    def __init__(
        self,
        app: Flask,
        recorder: Recorder,
        *,
        post: Callable[[Callable[[], None]], None],
        pool: Executor,
        timings: LinkTimings | None = None,
    ) -> None:
        self._parts: Parts = app.extensions["parts"]
        self._app, self._vault, self._clock = app, self._parts.vault, self._parts.clock
        self._recorder, self._post, self._pool, self._timings = recorder, post, pool, timings
        self._holds: dict[LoginKey, _Hold] = {}
        self._looked_at: datetime | None = None

    def all(self) -> list[CloudWatched]:
        return [each for hold in self._holds.values() for watched in hold.watched.values() for each in watched]

    def close(self) -> None:
        for hold in self._holds.values():
            if hold.link is not None:
                hold.link.close()
        self._holds.clear()

    def sync(self, rows: Sequence[CloudRow]) -> None:
        """Listen to exactly these, each by the newest version of its login. Within an app context; flushes."""
        wanted: dict[LoginKey, list[CloudRow]] = {}
        for row in rows:
            wanted.setdefault(row.login, []).append(row)
        for key, hold in list(self._holds.items()):
            if hold.rows != frozenset(wanted.get(key, ())):
                del self._holds[key]
                if hold.link is not None:
                    self._pool.submit(hold.link.close)
        for key, of_login in wanted.items():
            if key not in self._holds:
                self._open(key, of_login)
            elif (ask_at := self._holds[key].ask_at) is not None and self._clock() >= ask_at:
                self._ask_for_account(key, self._holds[key])

    def extend_logins(self) -> None:
        """Have the logins that end soon extended, each by one process. Within an app context; commits."""
        now = self._clock()
        if self._looked_at is not None and timedelta() <= now - self._looked_at < LOOK_FOR_ENDING_LOGINS:
            return
        self._looked_at = now
        for account_id, version in cloud_logins.due_for_extension(now):
            if not cloud_logins.claim_extension(account_id, version, now=now):
                continue
            db.session.commit()
            try:
                login = read_login(db.session.get_one(CloudAccount, account_id), self._vault)
            except SealBroken:
                continue
            db.session.rollback()
            if login.refresh_token is not None:
                cloud = self._parts.cloud(login.region)
                asked = self._pool.submit(cloud.refresh, login.refresh_token, uid=login.uid)
                asked.add_done_callback(lambda done, login=login: self._post(lambda: self._extended(login, done)))  # type: ignore[misc]

    def _extended(self, login: StoredLogin, done: Future[CloudSession]) -> None:
        now = self._clock()
        with self._app.app_context():
            try:
                is_kept = cloud_logins.keep_extension(login, done.result(), self._vault, now=now)
                log.info("cloud_login_extended", account_id=login.account_id, is_kept=is_kept)
            except LoginNeeded:
                cloud_logins.note_refused_extension(login, now=now)
                log.warning("cloud_login_not_extended", account_id=login.account_id)
            except CloudError as error:
                # The token is good for days yet; it is tried again.
                log.warning("cloud_login_not_extended", account_id=login.account_id, reason=error.message)
            db.session.commit()

    def _open(self, key: LoginKey, rows: list[CloudRow]) -> None:
        watched: dict[str, list[CloudWatched]] = {}
        for row in rows:
            kept = db.session.get_one(PrinterConnection, row.connection_id)
            if kept.connection_status in (ConnectionStatus.unauthorized, ConnectionStatus.error):
                # Of an older login, or of what was missing: a printer that is switched off would not put it right.
                self._recorder.note(kept, ConnectionStatus.connecting, None)
            watched.setdefault(row.lease.serial_number, []).append(
                CloudWatched(
                    connection_id=row.connection_id,
                    printer_id=row.printer_id,
                    version=row.version,
                    lease=row.lease,
                    own_submissions=_open_submissions(row.printer_id),
                )
            )
        hold = self._holds[key] = _Hold(frozenset(rows), watched, rows[0].account)
        if hold.account is None:
            self._ask_for_account(key, hold)
            return
        account = db.session.get_one(CloudAccount, hold.account[0])
        session = self._session_of(account)
        if session is None:
            self._note_unreadable(hold)
        else:
            self._listen(hold, session, account.region)

    def _session_of(self, account: CloudAccount) -> CloudSession | None:
        try:
            return read_login(account, self._vault).session
        except SealBroken:
            return None

    def _note_unreadable(self, hold: _Hold) -> None:
        for row in hold.rows:
            self._recorder.note(
                db.session.get_one(PrinterConnection, row.connection_id),
                ConnectionStatus.unauthorized,
                cloud_logins.UNREADABLE,
            )

    def _ask_for_account(self, key: LoginKey, hold: _Hold) -> None:
        """A token alone may not say whose it is, and MQTT wants to know."""
        hold.ask_at = None
        row = db.session.get_one(PrinterConnection, key[1])
        assert row.cloud_token_sealed
        try:
            token = self._vault.open(row.cloud_token_sealed, row.secret_owner("cloud_token"))
        except SealBroken:
            self._note_unreadable(hold)
            return
        asked = self._pool.submit(self._parts.cloud(CloudRegion.world).from_token, token)
        asked.add_done_callback(lambda done: self._post(lambda: self._told_account(key, hold, done)))

    def _told_account(self, key: LoginKey, hold: _Hold, done: Future[CloudSession]) -> None:
        if self._holds.get(key) is not hold:
            return
        try:
            session = done.result()
        except LoginNeeded as error:
            self._link_changed(hold, None, LinkStatus.unauthorized, error.message)
        except CloudError as error:
            hold.ask_at = self._clock() + ASK_AGAIN
            self._link_changed(hold, None, LinkStatus.offline, error.message)
        else:
            self._listen(hold, session, CloudRegion.world)

    def _listen(self, hold: _Hold, session: CloudSession, region: CloudRegion) -> None:
        hold.link = CloudLink(
            session,
            hold.watched,
            on_heard=lambda serial, heard: self._post(lambda: self._heard(hold, serial, heard)),
            on_link=lambda serial, status, reason: self._post(lambda: self._changed(hold, serial, status, reason)),
            clock=self._clock,
            hosts=self._parts.cloud_hosts(region),
            timings=self._timings,
        )
        hold.link.open()

    def _is_current(self, hold: _Hold) -> bool:
        """Whether a message came from a link that has not been replaced since."""
        return any(each is hold for each in self._holds.values())

    def _heard(self, hold: _Hold, serial: str, heard: Heard) -> None:
        if self._is_current(hold):
            for watched in hold.watched[serial]:
                self._recorder.heard(watched, _as_foreign(heard.after, watched.own_submissions), heard.heard_at)

    def _changed(self, hold: _Hold, serial: str, status: LinkStatus, reason: str | None) -> None:
        if not self._is_current(hold):
            return
        self._link_changed(hold, serial, status, reason)
        if status is LinkStatus.unauthorized and hold.account is not None:
            account_id, version = hold.account
            with self._app.app_context():
                why = reason or cloud_logins.UNREADABLE
                if cloud_logins.end_login(account_id, version, why, now=self._clock()):
                    log.warning("cloud_login_ended", account_id=account_id)
                db.session.commit()

    def _link_changed(self, hold: _Hold, serial: str | None, status: LinkStatus, reason: str | None) -> None:
        for each in hold.watched if serial is None else (serial,):
            for watched in hold.watched[each]:
                self._recorder.link_changed(watched, status, reason)


def _open_submissions(printer_id: int) -> frozenset[str]:
    rows = db.session.execute(
        sa.select(StartIntent.submission_id).where(
            StartIntent.printer_id == printer_id,
            StartIntent.published_at.is_not(None),
            StartIntent.ended_at.is_(None),
        )
    )
    return frozenset(str(submission_id) for (submission_id,) in rows)


def _as_foreign(state: PrinterState, own_submissions: frozenset[str]) -> PrinterState:
    """The cloud numbers its prints as it likes: a number of ours that it happens to use means nothing."""
    if state.submission_id is None or state.submission_id in own_submissions:
        return state
    return replace(state, submission_id=None)
