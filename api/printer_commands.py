"""What people ask of a printer: from a web process to the worker that holds its connection, and the printer's word."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from api import context
from auth import current_user_id, mine
from bambu_report import PrinterActivity, PrinterState
from errors import Conflict, UpstreamFailed
from farm.command_proof import answer_will_do, objection
from farm.live import is_live, why_only_watched
from models import (
    OPEN_INTENT_STATES,
    CommandKind,
    CommandState,
    Printer,
    PrinterCommand,
    PrinterConnection,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    db,
)

POLL_SECONDS = 0.05
UNCONFIRMED = "The printer did not confirm in time. Look at its screen."
ACCEPTED_ONLY = "The printer said yes, but its reports do not show that it was done. Look at its screen."


def run(of_print: ScheduledPrint, kind: CommandKind) -> None:
    """Ask the worker and wait for the printer's own confirmation, with no transaction open while waiting.

    Raises:
        Conflict: the print is not running, or there is no live link.
        UpstreamFailed: the printer refused or did not confirm in time.
    """
    if of_print.status is not PrintStatus.started:
        raise Conflict(f"A {of_print.status} print cannot be told to {kind}; it is not running.", code="not_running")
    connection = _connection_to(of_print.printer_id)
    _refuse_if_only_watched(connection)
    if not is_live(connection, context.now()):
        raise Conflict("The printer cannot be reached right now.", code="no_live_link")
    _ask(of_print.printer_id, kind, print_id=of_print.id)


def ask_for_test(connection: PrinterConnection) -> dict[str, Any]:
    """What works between the worker and a printer, and what to press on it; see `farm.connection_check`.

    Raises:
        Conflict: the connection only watches, or no worker picked the question up in time.
    """
    _refuse_if_only_watched(connection)
    try:
        result = _ask(connection.printer_id, CommandKind.test, print_id=None)
    except UpstreamFailed:
        raise Conflict(
            "No worker has this printer in hand right now. Is the worker running?", code="no_worker"
        ) from None
    return result or {}


def order(printer: Printer, kind: CommandKind, arguments: dict[str, Any]) -> str:
    """Ask the worker to tell a printer something; how it was confirmed: by its `report`, or only by its `ack`.

    `printer`: read for update, so that of two requests at once the second one finds the first.

    Raises:
        Conflict: no live link, the printer's state forbids it, or the same was asked and is not done yet.
        UpstreamFailed: the printer refused or did not confirm in time.
    """
    connection = _connection_to(printer.id)
    _refuse_if_only_watched(connection)
    if connection is None or not is_live(connection, context.now()):
        raise Conflict("The printer cannot be reached right now.", code="no_live_link")
    against = objection(kind, arguments, _state_shown(connection))
    if against is not None:
        raise Conflict(against.sentence, code=against.code)
    if kind is CommandKind.change_filament and _is_starting(printer.id):
        raise Conflict("A print is being sent to this printer.", code="start_under_way")
    if _is_asked_already(printer.id, kind):
        raise Conflict("The printer was told so already and has not done it yet.", code="command_under_way")
    result = _ask(printer.id, kind, print_id=None, arguments=arguments) or {}
    return str(result.get("confirmed_by", "ack"))


def _connection_to(printer_id: int) -> PrinterConnection | None:
    found: PrinterConnection | None = db.session.execute(
        mine(PrinterConnection).where(PrinterConnection.printer_id == printer_id)
    ).scalar_one_or_none()
    return found


def _refuse_if_only_watched(connection: PrinterConnection | None) -> None:
    if reason := why_only_watched(connection):
        raise Conflict(f"This printer is {reason}.", code="read_only")


def _state_shown(connection: PrinterConnection) -> PrinterState:
    """As far as objections ask for it."""
    shown = connection.snapshot or {}
    codes = [each["code"] for each in shown.get("errors") or ()]
    return PrinterState(
        known=True,
        state=PrinterActivity(shown.get("state") or PrinterActivity.unknown),
        # Of two groups; health messages have four, and no command takes them away.
        print_error=next((code for code in codes if code.count("-") == 1), None),
    )


def _is_starting(printer_id: int) -> bool:
    return bool(
        db.session.execute(
            sa.select(
                sa.exists().where(StartIntent.printer_id == printer_id, StartIntent.state.in_(OPEN_INTENT_STATES))
            )
        ).scalar_one()
    )


def _is_asked_already(printer_id: int, kind: CommandKind) -> bool:
    return bool(
        db.session.execute(
            sa.select(
                sa.exists().where(
                    PrinterCommand.printer_id == printer_id,
                    PrinterCommand.kind == kind,
                    PrinterCommand.state.in_((CommandState.requested, CommandState.sent)),
                    PrinterCommand.expires_at > context.now(),
                )
            )
        ).scalar_one()
    )


def _ask(
    printer_id: int, kind: CommandKind, *, print_id: int | None, arguments: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    at, patience = context.now(), context.settings().command_timeout_seconds
    command = PrinterCommand(
        user_id=current_user_id(),
        printer_id=printer_id,
        print_id=print_id,
        kind=kind,
        arguments=arguments,
        requested_at=at,
        expires_at=at + timedelta(seconds=patience),
    )
    db.session.add(command)
    db.session.commit()
    return _wait_for(command.id, kind, patience)


def _wait_for(command_id: int, kind: CommandKind, patience: float) -> dict[str, Any] | None:
    deadline = time.monotonic() + patience
    while True:
        state, reason, result = db.session.execute(
            sa.select(PrinterCommand.state, PrinterCommand.reason, PrinterCommand.result).where(
                PrinterCommand.id == command_id
            )
        ).one()
        db.session.rollback()
        is_accepted = bool((result or {}).get("accepted"))
        if state is CommandState.done:
            answer: dict[str, Any] | None = result
            return answer
        if state is CommandState.refused:
            raise UpstreamFailed(f"The printer did not do it: {reason}", code="not_confirmed")
        if state is CommandState.expired or time.monotonic() >= deadline:
            if is_accepted and answer_will_do(kind):
                return {"confirmed_by": "ack"}
            _give_up(command_id)
            raise UpstreamFailed(ACCEPTED_ONLY if is_accepted else UNCONFIRMED, code="not_confirmed")
        time.sleep(POLL_SECONDS)


def _give_up(command_id: int) -> None:
    """Nobody waits any more: a command that was not sent yet must not be sent later."""
    db.session.execute(
        sa.update(PrinterCommand)
        .where(PrinterCommand.id == command_id, PrinterCommand.state == CommandState.requested)
        .values(state=CommandState.expired, reason="nobody waited any more", ended_at=context.now())
    )
    db.session.commit()
