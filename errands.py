"""What runs beside the worker's own thread because it waits for a printer; among it the commands of people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog
from flask import Flask

from bambu_client import Answer, NotSent, PrinterLink, explain
from farm.command_proof import FILAMENT_CHANGE_TAKES, objection, waits_for_report
from farm.connection_check import check_connection
from links import Held
from models import (
    OPEN_INTENT_STATES,
    CommandKind,
    CommandState,
    PrinterCommand,
    StartIntent,
    count_changed,
    db,
)

log = structlog.get_logger()


# Made once, for it runs whenever something has changed.
OPEN_COMMANDS = (
    sa.select(
        PrinterCommand.id,
        PrinterCommand.printer_id,
        PrinterCommand.kind,
        PrinterCommand.arguments,
        PrinterCommand.state,
    )
    .where(PrinterCommand.state.in_((CommandState.requested, CommandState.sent)))
    .order_by(PrinterCommand.id)
)


class Errands:
    """Each is one call in the pool, with a session of its own, run by the worker's `guarded`."""

    def __init__(self, app: Flask, pool: Executor, *, guarded: Callable[[Callable[[], None]], None]) -> None:
        self._app, self._pool, self._guarded = app, pool, guarded
        self._clock: Callable[[], datetime] = app.extensions["clock"]

    def run(self, errand: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
        def in_session() -> None:
            with self._app.app_context():
                errand()

        def run() -> None:
            try:
                self._guarded(in_session)
            finally:
                after()

        self._pool.submit(run)

    def begin_commands(self, held: Sequence[Held]) -> None:
        """Send what people have asked for, each once, and let go of what nobody waits for any more."""
        now = self._clock()
        by_printer = {each.printer_id: each for each in held}
        with self._app.app_context():
            open_commands = db.session.execute(OPEN_COMMANDS).all()
            if open_commands:
                self._expire(now)
            for each in held:
                each.commands_under_way = 0
            for command in open_commands:
                holder = by_printer.get(command.printer_id)
                if holder is None:
                    continue
                holder.commands_under_way += 1
                if command.state is CommandState.requested and self._claim(command.id, command.kind, holder):
                    self.run(lambda h=holder, c=command: self._send(h, c.id, c.kind, c.arguments or {}))  # type: ignore[misc]

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

    def _claim(self, command_id: int, kind: CommandKind, held: Held) -> bool:
        """Whether the command is ours to send. A filament change waits until no start is on its way."""
        claim = (
            sa.update(PrinterCommand)
            .where(PrinterCommand.id == command_id, PrinterCommand.state == CommandState.requested)
            .values(state=CommandState.sent)
        )
        if kind is CommandKind.change_filament:
            if held.is_starting:
                return False
            under_way = sa.exists().where(
                StartIntent.printer_id == held.printer_id, StartIntent.state.in_(OPEN_INTENT_STATES)
            )
            # While it is open, nothing is started on this printer.
            claim = claim.where(~under_way).values(expires_at=self._clock() + FILAMENT_CHANGE_TAKES)
        claimed = count_changed(claim)
        db.session.commit()
        return claimed == 1

    def _send(self, held: Held, command_id: int, kind: CommandKind, arguments: dict[str, Any]) -> None:
        if kind is CommandKind.test:
            self._finish(command_id, CommandState.done, None, check_connection(held.link, held.storage))
            return
        state = held.link.state
        against = objection(kind, arguments, state)
        if against is not None:
            self._finish(command_id, CommandState.refused, against.sentence)
            return
        try:
            answer = _tell(held.link, kind, arguments)
        except NotSent as error:
            self._finish(command_id, CommandState.refused, str(error))
            return
        if answer.accepted is False:
            self._finish(command_id, CommandState.refused, explain(answer))
        elif waits_for_report(kind, arguments, state):
            # Only the printer's report says that it was done; a P1 reports by itself when something changes.
            self._note_answer(command_id, accepted=answer.accepted is True)
            held.link.ask_full_report()
        elif answer.accepted:
            # No report can show it, or one showed it before anybody asked: then its word is all there is.
            self._finish(command_id, CommandState.done, None, {"confirmed_by": "ack"})
        else:
            self._finish(command_id, CommandState.refused, explain(answer))

    def _note_answer(self, command_id: int, *, accepted: bool) -> None:
        db.session.execute(
            sa.update(PrinterCommand)
            .where(PrinterCommand.id == command_id, PrinterCommand.state == CommandState.sent)
            .values(result={"accepted": accepted})
        )
        db.session.commit()

    def _finish(
        self, command_id: int, state: CommandState, reason: str | None, result: dict[str, object] | None = None
    ) -> None:
        db.session.execute(
            sa.update(PrinterCommand)
            .where(PrinterCommand.id == command_id, PrinterCommand.state == CommandState.sent)
            .values(state=state, reason=reason, result=result, ended_at=self._clock())
        )
        db.session.commit()


def _tell(link: PrinterLink, kind: CommandKind, arguments: dict[str, Any]) -> Answer:
    """Send it, once, and wait for the answer. Raises NotSent."""
    match kind:
        case CommandKind.pause:
            return link.pause()
        case CommandKind.resume:
            return link.resume()
        case CommandKind.stop:
            return link.stop()
        case CommandKind.speed:
            return link.set_speed(arguments["level"])
        case CommandKind.light:
            return link.set_light(arguments["on"])
        case CommandKind.clear_error:
            return link.clear_error()
        case CommandKind.change_filament:
            place = None if arguments["place"] is None else tuple(arguments["place"])
            return link.change_filament(place, nozzle_temp=arguments["nozzle_temp"])
        case CommandKind.set_filament:
            what = {name: value for name, value in arguments.items() if name != "place"}
            return link.set_filament(tuple(arguments["place"]), **what)
    raise NotSent(f"nobody knows how to tell a printer to {kind}")
