"""The long-running process that owns the printers' connections. `python worker.py`, or inside `python app.py`.

Network threads only put what they hear into one inbox; one thread turns it into rows. Uploads and commands run beside
it, so that a slow printer holds up no other.
"""

from __future__ import annotations

import contextlib
import fcntl
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import FrameType
from typing import Any

import sqlalchemy as sa
import structlog
from flask import Flask
from werkzeug.serving import make_server

from api.context import Parts
from app import configure_logging, create_app
from bambu_client import Answer, Heard, LinkStatus, NotSent, PrinterAddress, PrinterLink
from bambu_files import PrinterStorage, StorageFault
from bambu_report import PrinterActivity, PrinterState
from channels import MailSender, WebhookSender
from farm import starter, tracker
from farm.status import snapshot_of
from models import (
    CommandKind,
    CommandState,
    ConnectionStatus,
    ConnectionType,
    IntentState,
    Printer,
    PrinterCommand,
    PrinterConnection,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    count_changed,
    db,
)
from notifications import Sender
from settings import Settings, SettingsError
from vault import SealBroken

log = structlog.get_logger()

TICK_SECONDS = 0.05
SWEEP_SECONDS = 0.25
LINKS_SECONDS = 1.0
START_RETRY = timedelta(seconds=30)
PARALLEL_STARTS = 16


@dataclass(slots=True)
class Held:
    """A printer's connection as the worker holds it."""

    connection_id: int
    printer_id: int
    version: int
    link: PrinterLink
    storage: PrinterStorage
    state: PrinterState = field(default_factory=PrinterState)
    in_state_since: datetime | None = None
    heard_at: datetime | None = None
    current_print_id: int | None = None
    saved: dict[str, Any] | None = None
    saved_at: datetime | None = None
    saved_heard_at: datetime | None = None
    is_starting: bool = False
    start_not_before: datetime | None = None


class Worker:
    """Connections, tracking, starting, sending. Clock and settings are the app's."""

    def __init__(self, app: Flask) -> None:
        parts: Parts = app.extensions["parts"]
        self._app, self._settings, self._vault = app, parts.settings, parts.vault
        self._clock: Callable[[], datetime] = app.extensions["clock"]
        self._limits = parts.limits
        self._rules = starter.StartRules.from_settings(self._settings)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._held: dict[int, Held] = {}
        self._stop, self._is_up = threading.Event(), threading.Event()
        self._send_now = threading.Event()
        self._pool = ThreadPoolExecutor(PARALLEL_STARTS, thread_name_prefix="printer-work")
        self._threads = [
            threading.Thread(target=self._run, name="worker"),
            threading.Thread(target=self._run_sender, name="sender"),
        ]
        self._webhooks = WebhookSender(self._settings.webhook_allowed_networks, clock=self._clock)
        self._sender = Sender(
            mail=_mail_sender(self._settings, self._clock),
            webhooks=self._webhooks,
            vault=self._vault,
            clock=self._clock,
            public_url=self._settings.public_url,
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, wait_seconds: float = 20.0) -> None:
        """No start leaves after this; what is under way is finished or handed back."""
        self._stop.set()
        self._send_now.set()
        self._inbox.put(lambda: None)
        for thread in self._threads:
            thread.join(wait_seconds)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._webhooks.close()

    @property
    def is_running(self) -> bool:
        return self._is_up.is_set() and all(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        with self._alone() as may_run:
            if not may_run:
                return
            self._guarded(self._withdraw_unsent)
            self._is_up.set()
            due = dict.fromkeys((self._sync_links, self._sweep), self._clock())
            periods = {self._sync_links: LINKS_SECONDS, self._sweep: SWEEP_SECONDS}
            while not self._stop.is_set():
                with contextlib.suppress(queue.Empty):
                    self._guarded(self._inbox.get(timeout=TICK_SECONDS))
                    while True:
                        self._guarded(self._inbox.get_nowait())
                now = self._clock()
                for step, at in due.items():
                    if now >= at:
                        self._guarded(step)
                        due[step] = now + timedelta(seconds=periods[step])
        for held in self._held.values():
            held.link.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Two workers on one set of printers would fight over them: the second stands by until the first has gone."""
        self._settings.data_dir.mkdir(parents=True, exist_ok=True)
        with open(self._settings.data_dir / "worker.lock", "w") as lock:
            said = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not said:
                        log.warning("standing_by", reason="another worker holds the printers")
                        said = True
                    if self._stop.wait(1.0):
                        yield False
                        return
                else:
                    yield True
                    return

    def _guarded(self, step: Callable[[], None]) -> None:
        """One step in its own session. A fault in one printer's report or row must not end the farm's only worker."""
        with self._app.app_context():
            try:
                step()
            except Exception:
                db.session.rollback()
                log.exception("worker_step_failed")

    def _withdraw_unsent(self) -> None:
        tracker.withdraw_unsent(self._clock())
        db.session.commit()

    def _run_sender(self) -> None:
        while not self._stop.is_set():
            self._send_now.wait(SWEEP_SECONDS)
            self._send_now.clear()
            if self._is_up.is_set():
                self._guarded(self._send)

    def _send(self) -> None:
        while not self._stop.is_set() and self._sender.drain():
            pass

    # Links: one per connection row, opened anew when the row changes.

    def _sync_links(self) -> None:
        wanted = {
            row.id: row
            for row in db.session.execute(
                sa.select(PrinterConnection)
                .join(Printer, Printer.id == PrinterConnection.printer_id)
                .where(PrinterConnection.connection_type == ConnectionType.bambu_lan, Printer.deleted_at.is_(None))
            ).scalars()
        }
        for connection_id, held in list(self._held.items()):
            row = wanted.get(connection_id)
            if row is None or row.version != held.version:
                del self._held[connection_id]
                self._pool.submit(held.link.close)
        for connection_id, row in wanted.items():
            if connection_id not in self._held:
                self._open(row)
        db.session.commit()

    def _open(self, row: PrinterConnection) -> None:
        if not (row.host and row.serial_number and row.access_code_sealed):
            self._note(row, ConnectionStatus.error, "address, serial number and access code are all needed")
            return
        try:
            access_code = self._vault.open(row.access_code_sealed, row.secret_owner("access_code"))
        except SealBroken:
            self._note(row, ConnectionStatus.error, "the stored access code cannot be read: enter it again")
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
        connection_id, version = row.id, row.version
        link = PrinterLink(
            address,
            on_heard=lambda heard: self._inbox.put(lambda: self._heard(connection_id, version, heard)),
            on_answer=lambda answer: self._inbox.put(lambda: self._answered(connection_id, version, answer)),
            on_link=lambda status, reason: self._inbox.put(
                lambda: self._link_changed(connection_id, version, status, reason)
            ),
            clock=self._clock,
        )
        self._held[connection_id] = Held(connection_id, row.printer_id, version, link, PrinterStorage(address))
        link.open()

    def _note(self, row: PrinterConnection, status: ConnectionStatus, reason: str | None) -> None:
        if (row.connection_status, row.status_reason) != (status, reason):
            row.connection_status, row.status_reason = status, reason

    def _held_now(self, connection_id: int, version: int) -> Held | None:
        """What is held, unless the message came from a link that has been replaced since."""
        held = self._held.get(connection_id)
        return held if held is not None and held.version == version else None

    def _link_changed(self, connection_id: int, version: int, status: LinkStatus, reason: str | None) -> None:
        held = self._held_now(connection_id, version)
        row = db.session.get(PrinterConnection, connection_id)
        if held is None or row is None:
            return
        self._note(row, ConnectionStatus(status.value), reason)
        if held.link.fingerprint and row.fingerprint is None:
            row.fingerprint = held.link.fingerprint
        db.session.commit()
        log.info("link", printer_id=held.printer_id, status=status.value, reason=reason)

    def _heard(self, connection_id: int, version: int, heard: Heard) -> None:
        held = self._held_now(connection_id, version)
        if held is None:
            return
        if held.in_state_since is None or heard.after.state is not held.state.state:
            held.in_state_since = heard.heard_at
        held.state, held.heard_at = heard.after, heard.heard_at
        self._track(held)

    def _track(self, held: Held) -> None:
        printer = db.session.get(Printer, held.printer_id)
        if printer is None or printer.deleted_at is not None or held.in_state_since is None:
            return
        before = held.current_print_id
        held.current_print_id = tracker.apply(
            printer, held.state, in_state_since=held.in_state_since, now=self._clock(), limits=self._limits
        )
        self._save_snapshot(held)
        has_news = bool(db.session.new or db.session.dirty)
        db.session.commit()
        if has_news:
            self._send_now.set()
        if before is not None and held.current_print_id is None:
            self._pool.submit(self._clean_up, held)

    def _save_snapshot(self, held: Held) -> None:
        """On change, and not more often than the setting says, unless what the printer does has changed."""
        now, shown = self._clock(), snapshot_of(held.state, current_print_id=held.current_print_id)
        age = None if held.saved_at is None else (now - held.saved_at).total_seconds()
        is_news = held.saved is None or any(
            held.saved.get(key) != shown[key] for key in ("state", "current_print_id", "errors")
        )
        if age is not None and not is_news and age < self._settings.status_interval_seconds:
            return
        db.session.execute(
            sa.update(PrinterConnection)
            .where(PrinterConnection.id == held.connection_id, PrinterConnection.version == held.version)
            .values(snapshot=shown, heard_at=held.heard_at)
        )
        held.saved, held.saved_at, held.saved_heard_at = shown, now, held.heard_at

    def _answered(self, connection_id: int, version: int, answer: Answer) -> None:
        held = self._held_now(connection_id, version)
        printer = db.session.get(Printer, held.printer_id) if held else None
        if printer is not None:
            tracker.apply_answer(printer, answer, now=self._clock(), limits=self._limits)
            db.session.commit()
            self._send_now.set()

    # The sweep: what no report announces.

    def _sweep(self) -> None:
        now = self._clock()
        self._expire_commands(now)
        for held in list(self._held.values()):
            if self._is_settling(held, now):
                self._track(held)
            elif held.heard_at != held.saved_heard_at:
                self._save_snapshot(held)
            printer = db.session.get(Printer, held.printer_id)
            if printer is not None:
                tracker.mark_unconfirmed(printer, now=now)
        db.session.commit()
        self._send_commands()
        self._begin_starts(now)

    def _is_settling(self, held: Held, now: datetime) -> bool:
        """A failure may still tell its reason; the printer reports nothing new when the time for that is over."""
        since = held.in_state_since
        if since is None or held.state.state is not PrinterActivity.failed:
            return False
        return now - since < 3 * tracker.FAILURE_SETTLES_IN

    def _begin_starts(self, now: datetime) -> None:
        ready = [
            held
            for held in self._held.values()
            if not held.is_starting
            and held.link.status is LinkStatus.connected
            and (held.start_not_before is None or held.start_not_before <= now)
        ]
        waiting = (PrintStatus.queued, PrintStatus.scheduled)
        with_work = set(
            db.session.execute(
                sa.select(ScheduledPrint.printer_id)
                .join(Printer, Printer.id == ScheduledPrint.printer_id)
                .where(
                    ScheduledPrint.printer_id.in_([held.printer_id for held in ready]),
                    ScheduledPrint.deleted_at.is_(None),
                    ScheduledPrint.status.in_(waiting),
                    sa.or_(ScheduledPrint.status == PrintStatus.scheduled, Printer.auto_start),
                )
                .distinct()
            ).scalars()
        )
        db.session.rollback()
        for held in ready:
            if held.printer_id in with_work and not self._stop.is_set():
                held.is_starting = True
                self._pool.submit(self._start_on, held)

    def _start_on(self, held: Held) -> None:
        def step() -> None:
            intent = starter.start(
                held.printer_id,
                held.link,
                held.storage,
                clock=self._clock,
                rules=self._rules,
                is_stopping=self._stop,
            )
            if intent is not None and intent.state is not IntentState.published:
                held.start_not_before = self._clock() + START_RETRY

        try:
            self._guarded(step)
        finally:
            held.is_starting = False

    def _clean_up(self, held: Held) -> None:
        """Take the files of ended prints off the printer: one left behind has started by itself hours later."""

        def step() -> None:
            names = db.session.execute(
                sa.select(StartIntent.remote_name)
                .join(ScheduledPrint, ScheduledPrint.id == StartIntent.print_id)
                .where(StartIntent.printer_id == held.printer_id, StartIntent.ended_at.is_not(None))
                .order_by(StartIntent.id.desc())
                .limit(1)
            ).scalars()
            for name in list(names):
                db.session.rollback()
                try:
                    held.storage.delete(name)
                except StorageFault as error:
                    log.warning("remote_file_left", printer_id=held.printer_id, name=name, reason=error.reason)

        self._guarded(step)

    # Commands of people, from any web process.

    def _expire_commands(self, now: datetime) -> None:
        db.session.execute(
            sa.update(PrinterCommand)
            .where(
                PrinterCommand.state.in_((CommandState.requested, CommandState.sent)), PrinterCommand.expires_at < now
            )
            .values(state=CommandState.expired, reason="not confirmed in time", ended_at=now)
        )
        db.session.commit()

    def _send_commands(self) -> None:
        by_printer = {held.printer_id: held for held in self._held.values()}
        requested = db.session.execute(
            sa.select(PrinterCommand)
            .where(PrinterCommand.state == CommandState.requested, PrinterCommand.printer_id.in_(by_printer))
            .order_by(PrinterCommand.id)
        ).scalars()
        found = [(command.id, command.printer_id, command.kind) for command in requested]
        for command_id, printer_id, kind in found:
            claimed = count_changed(
                sa.update(PrinterCommand)
                .where(PrinterCommand.id == command_id, PrinterCommand.state == CommandState.requested)
                .values(state=CommandState.sent)
            )
            db.session.commit()
            if claimed:
                self._pool.submit(self._send_command, by_printer[printer_id], command_id, kind)

    def _send_command(self, held: Held, command_id: int, kind: CommandKind) -> None:
        def step() -> None:
            send = {
                CommandKind.pause: held.link.pause,
                CommandKind.resume: held.link.resume,
                CommandKind.stop: held.link.stop,
            }[kind]
            try:
                answer = send()
                refused = answer.accepted is False
                reason = answer.reason
            except NotSent as error:
                refused, reason = True, str(error)
            if refused:
                db.session.execute(
                    sa.update(PrinterCommand)
                    .where(PrinterCommand.id == command_id, PrinterCommand.state == CommandState.sent)
                    .values(state=CommandState.refused, reason=reason, ended_at=self._clock())
                )
                db.session.commit()
            else:
                held.link.ask_full_report()

        self._guarded(step)


def _mail_sender(settings: Settings, clock: Callable[[], datetime]) -> MailSender | None:
    if not settings.smtp_host:
        return None
    return MailSender(
        host=settings.smtp_host,
        port=settings.smtp_port,
        user=settings.smtp_user,
        password=settings.smtp_password.get_secret_value(),
        sender=settings.smtp_from,
        tls=settings.smtp_tls,
        clock=clock,
    )


def serve_health(worker: Worker, settings: Settings) -> Any:
    """`/livez` of the worker process: 200 while its threads live, 503 after."""

    def answer(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        alive = worker.is_running and environ["PATH_INFO"] == "/livez"
        start_response("200 OK" if alive else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [b'{"status":"healthy"}' if alive else b'{"status":"unhealthy"}']

    server = make_server("127.0.0.1", settings.worker_health_port, answer)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server


def main() -> None:
    configure_logging()
    try:
        settings = Settings.from_environment()
        app = create_app(settings)
    except SettingsError as error:
        sys.exit(f"The configuration is not usable: {error}")
    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    worker = Worker(app)
    worker.start()
    health = serve_health(worker, settings)
    log.info("worker_running", health_port=health.server_port)
    stop.wait()
    worker.stop()
    health.shutdown()


if __name__ == "__main__":
    main()
