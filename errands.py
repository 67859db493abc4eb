"""What runs beside the worker's own thread because it waits for a printer: starts, commands, tests, tidying up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from flask import Flask

from api.context import Parts
from bambu_client import LinkStatus, NotSent
from bambu_files import StorageFault
from farm import starter
from farm.connection_check import check_connection
from links import Held
from models import (
    CommandKind,
    CommandState,
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

log = structlog.get_logger()

START_RETRY = timedelta(seconds=30)


class Errands:
    """Each is one call in the pool, with a session of its own, run by the worker's `guarded`."""

    def __init__(
        self, app: Flask, pool: Executor, *, guarded: Callable[[Callable[[], None]], None], is_stopping: threading.Event
    ) -> None:
        parts: Parts = app.extensions["parts"]
        self._app, self._pool, self._guarded, self._is_stopping = app, pool, guarded, is_stopping
        self._clock: Callable[[], datetime] = app.extensions["clock"]
        self._rules = starter.StartRules.from_settings(parts.settings)

    def _run(self, errand: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
        def in_session() -> None:
            with self._app.app_context():
                errand()

        def run() -> None:
            try:
                self._guarded(in_session)
            finally:
                after()

        self._pool.submit(run)

    # Starts

    def begin_starts(self, held: list[Held]) -> None:
        """Look for a print to start on every printer that could take one."""
        now = self._clock()
        ready = [
            each
            for each in held
            if not each.is_starting
            and each.link.status is LinkStatus.connected
            and (each.start_not_before is None or each.start_not_before <= now)
        ]
        if not ready or self._is_stopping.is_set():
            return
        with self._app.app_context():
            with_work = set(
                db.session.execute(
                    sa.select(ScheduledPrint.printer_id)
                    .join(Printer, Printer.id == ScheduledPrint.printer_id)
                    .where(
                        ScheduledPrint.deleted_at.is_(None),
                        sa.or_(
                            ScheduledPrint.status == PrintStatus.scheduled,
                            sa.and_(ScheduledPrint.status == PrintStatus.queued, Printer.auto_start),
                        ),
                    )
                    .distinct()
                ).scalars()
            )
        for each in ready:
            if each.printer_id in with_work:
                each.is_starting = True
                self._run(lambda each=each: self._start(each), lambda each=each: setattr(each, "is_starting", False))  # type: ignore[misc]

    def _start(self, held: Held) -> None:
        intent = starter.start(
            held.printer_id,
            held.link,
            held.storage,
            lease=held.lease,
            clock=self._clock,
            rules=self._rules,
            is_stopping=self._is_stopping,
        )
        if intent is not None and intent.state is not IntentState.published:
            held.start_not_before = self._clock() + START_RETRY
        self._remember_clear_data(held)

    def _remember_clear_data(self, held: Held) -> None:
        """A printer that hung with an encrypted data channel is not made to hang again after a restart."""
        if held.storage.clear_data:
            db.session.execute(
                sa.update(PrinterConnection)
                .where(PrinterConnection.id == held.connection_id, PrinterConnection.clear_data.is_(False))
                .values(clear_data=True)
            )
            db.session.commit()

    def tidy_up(self, held: Held) -> None:
        """Take the file of an ended print off the printer: one left behind has started by itself hours later."""

        def errand() -> None:
            name = db.session.execute(
                sa.select(StartIntent.remote_name)
                .where(StartIntent.printer_id == held.printer_id, StartIntent.ended_at.is_not(None))
                .order_by(StartIntent.ended_at.desc(), StartIntent.id.desc())
                .limit(1)
            ).scalar_one_or_none()
            db.session.rollback()
            if name is not None:
                try:
                    held.storage.delete(name)
                except StorageFault as error:
                    log.warning("remote_file_left", printer_id=held.printer_id, name=name, reason=error.reason)

        self._run(errand)

    # Commands of people, from any web process

    def begin_commands(self, held: list[Held]) -> None:
        """Send what people have asked for, each once, and let go of what nobody waits for any more."""
        now = self._clock()
        by_printer = {each.printer_id: each for each in held}
        with self._app.app_context():
            open_commands = db.session.execute(
                sa.select(PrinterCommand.id, PrinterCommand.printer_id, PrinterCommand.kind, PrinterCommand.state)
                .where(PrinterCommand.state.in_((CommandState.requested, CommandState.sent)))
                .order_by(PrinterCommand.id)
            ).all()
            if open_commands:
                self._expire(now)
            for each in held:
                each.commands_under_way = 0
            for command in open_commands:
                holder = by_printer.get(command.printer_id)
                if holder is None:
                    continue
                holder.commands_under_way += 1
                if command.state is CommandState.requested and self._claim(command.id):
                    self._run(lambda h=holder, c=command: self._send(h, c.id, c.kind))  # type: ignore[misc]

    def _expire(self, now: datetime) -> None:
        db.session.execute(
            sa.update(PrinterCommand)
            .where(
                PrinterCommand.state.in_((CommandState.requested, CommandState.sent)), PrinterCommand.expires_at < now
            )
            .values(state=CommandState.expired, reason="not confirmed in time", ended_at=now)
            .execution_options(synchronize_session=False)
        )
        db.session.commit()

    def _claim(self, command_id: int) -> bool:
        claimed = count_changed(
            sa.update(PrinterCommand)
            .where(PrinterCommand.id == command_id, PrinterCommand.state == CommandState.requested)
            .values(state=CommandState.sent)
        )
        db.session.commit()
        return claimed == 1

    def _send(self, held: Held, command_id: int, kind: CommandKind) -> None:
        if kind is CommandKind.test:
            self._finish(command_id, CommandState.done, None, check_connection(held.link, held.storage))
            return
        send = {
            CommandKind.pause: held.link.pause,
            CommandKind.resume: held.link.resume,
            CommandKind.stop: held.link.stop,
        }[kind]
        try:
            answer = send()
        except NotSent as error:
            self._finish(command_id, CommandState.refused, str(error))
            return
        if answer.accepted is False:
            self._finish(command_id, CommandState.refused, answer.reason)
        else:
            # Only the printer's report says that it was done; a P1 reports by itself when something changes.
            held.link.ask_full_report()

    def _finish(
        self, command_id: int, state: CommandState, reason: str | None, result: dict[str, object] | None = None
    ) -> None:
        db.session.execute(
            sa.update(PrinterCommand)
            .where(PrinterCommand.id == command_id, PrinterCommand.state == CommandState.sent)
            .values(state=state, reason=reason, result=result, ended_at=self._clock())
        )
        db.session.commit()
