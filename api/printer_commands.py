"""Pause, resume, stop, test: from a web process to the worker that holds the printer's connection, and its answer."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from api import context
from auth import current_user_id, mine
from errors import Conflict, UpstreamFailed
from farm.live import is_live
from models import (
    CommandKind,
    CommandState,
    PrinterCommand,
    PrinterConnection,
    PrintStatus,
    ScheduledPrint,
    db,
)

POLL_SECONDS = 0.05


def run(of_print: ScheduledPrint, kind: CommandKind) -> None:
    """Ask the worker and wait for the printer's own confirmation, with no transaction open while waiting.

    Raises:
        Conflict: the print is not running, or there is no live link.
        UpstreamFailed: the printer refused or did not confirm in time.
    """
    if of_print.status is not PrintStatus.started:
        raise Conflict(f"A {of_print.status} print cannot be told to {kind}; it is not running.", code="not_running")
    connection = db.session.execute(
        mine(PrinterConnection).where(PrinterConnection.printer_id == of_print.printer_id)
    ).scalar_one_or_none()
    if not is_live(connection, context.now()):
        raise Conflict("The printer cannot be reached right now.", code="no_live_link")
    _ask(of_print.printer_id, kind, print_id=of_print.id)


def ask_for_test(connection: PrinterConnection) -> dict[str, Any]:
    """What works between the worker and a printer, and what to press on it; see `farm.connection_check`.

    Raises:
        Conflict: no worker picked the question up in time.
    """
    try:
        result = _ask(connection.printer_id, CommandKind.test, print_id=None)
    except UpstreamFailed:
        raise Conflict(
            "No worker has this printer in hand right now. Is the worker running?", code="no_worker"
        ) from None
    return result or {}


def _ask(printer_id: int, kind: CommandKind, *, print_id: int | None) -> dict[str, Any] | None:
    at, patience = context.now(), context.settings().command_timeout_seconds
    command = PrinterCommand(
        user_id=current_user_id(),
        printer_id=printer_id,
        print_id=print_id,
        kind=kind,
        requested_at=at,
        expires_at=at + timedelta(seconds=patience),
    )
    db.session.add(command)
    db.session.commit()
    return _wait_for(command.id, patience)


def _wait_for(command_id: int, patience: float) -> dict[str, Any] | None:
    deadline = time.monotonic() + patience
    while True:
        state, reason, result = db.session.execute(
            sa.select(PrinterCommand.state, PrinterCommand.reason, PrinterCommand.result).where(
                PrinterCommand.id == command_id
            )
        ).one()
        db.session.rollback()
        if state is CommandState.done:
            answer: dict[str, Any] | None = result
            return answer
        if state in (CommandState.refused, CommandState.expired):
            raise UpstreamFailed(f"The printer did not do it: {reason}", code="not_confirmed")
        if time.monotonic() >= deadline:
            _give_up(command_id)
            raise UpstreamFailed("The printer did not confirm in time. Look at its screen.", code="not_confirmed")
        time.sleep(POLL_SECONDS)


def _give_up(command_id: int) -> None:
    """Nobody waits any more: a command that was not sent yet must not be sent later."""
    db.session.execute(
        sa.update(PrinterCommand)
        .where(PrinterCommand.id == command_id, PrinterCommand.state == CommandState.requested)
        .values(state=CommandState.expired, reason="nobody waited any more", ended_at=context.now())
    )
    db.session.commit()
