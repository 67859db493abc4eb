"""A printer's report -> what it means for our prints: moves, plate, commands that came true.

Edges of identified prints only: a report moves a print when it names the start of ours (its submission id), never
because a printer merely happens to say FINISH.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog

from bambu_client import Answer, explain
from bambu_report import ACTIVE, PrinterActivity, PrinterState
from farm.command_proof import came_true
from farm.materials import StageLimits
from farm.moves import move_print
from models import (
    MAX_ID,
    CommandKind,
    CommandState,
    IntentState,
    PlateState,
    Printer,
    PrinterCommand,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    db,
)

log = structlog.get_logger()

# Whether a print was cancelled or broke may reach us some seconds after FAILED itself (seen: 5 s on a P2S).
FAILURE_SETTLES_IN = timedelta(seconds=10)
# The slowest models took 210 s from the command to the first sign; until then an old FINISH may just lag behind.
START_SETTLES_IN = timedelta(seconds=300)
UNCONFIRMED_AFTER = timedelta(seconds=150)
STOPPED_BY_PERSON = "stopped by a person"
AWAITING = (IntentState.published, IntentState.unknown)


def apply(
    printer: Printer, state: PrinterState, *, in_state_since: datetime, now: datetime, limits: StageLimits
) -> int | None:
    """What a printer's present state means; returns the id of the print of ours that it concerns. The caller commits.

    `in_state_since`: when the state's activity was first heard. Safe to call again with the same state.
    """
    if not state.known:
        return None
    if printer.plate_state is PlateState.unknown:
        # First contact: nobody can say what lies on the plate.
        printer.plate_state = PlateState.occupied
    intent = _intent_of(printer, state)
    ours = db.session.get_one(ScheduledPrint, intent.print_id, with_for_update=True) if intent is not None else None
    if state.state in ACTIVE:
        _occupy(printer, ours)
    if intent is not None and ours is not None:
        if state.state in ACTIVE:
            _confirm(intent, ours, now=now, limits=limits)
        elif state.state in (PrinterActivity.finished, PrinterActivity.failed):
            if _ended_while_away(intent, now):
                _confirm(intent, ours, now=now, limits=limits)
            _end(intent, ours, state, in_state_since=in_state_since, now=now, limits=limits)
        if ours.status is PrintStatus.started and state.progress_percent is not None:
            ours.progress_percent = max(0, min(100, state.progress_percent))
    _settle_commands(printer, state, now)
    is_current = ours is not None and (ours.status is PrintStatus.started or state.state in ACTIVE)
    return ours.id if is_current and ours is not None else None


def _intent_of(printer: Printer, state: PrinterState) -> StartIntent | None:
    """The start of ours that the printer's report names."""
    text = state.submission_id or ""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) <= MAX_ID):
        return None
    return db.session.execute(
        sa.select(StartIntent).where(
            StartIntent.printer_id == printer.id,
            StartIntent.submission_id == int(text),
            StartIntent.published_at.is_not(None),
        )
    ).scalar_one_or_none()


def _occupy(printer: Printer, ours: ScheduledPrint | None) -> None:
    on_plate = ours.id if ours is not None else None
    if printer.plate_state is not PlateState.occupied or printer.plate_print_id != on_plate:
        printer.plate_state, printer.plate_print_id = PlateState.occupied, on_plate


def _confirm(intent: StartIntent, ours: ScheduledPrint, *, now: datetime, limits: StageLimits) -> None:
    if intent.state not in AWAITING:
        return
    intent.state, intent.confirmed_at = IntentState.confirmed, now
    if ours.status in (PrintStatus.queued, PrintStatus.scheduled):
        move_print(ours, PrintStatus.started, at=now, limits=limits)


def _ended_while_away(intent: StartIntent, now: datetime) -> bool:
    published_at = intent.published_at
    return intent.state in AWAITING and published_at is not None and now - published_at > START_SETTLES_IN


def _end(
    intent: StartIntent,
    ours: ScheduledPrint,
    state: PrinterState,
    *,
    in_state_since: datetime,
    now: datetime,
    limits: StageLimits,
) -> None:
    if intent.state is not IntentState.confirmed or intent.ended_at is not None:
        return
    if ours.status is not PrintStatus.started:
        # A person recorded the end by hand before the printer told it.
        intent.ended_at = now
        return
    if state.state is PrinterActivity.finished:
        intent.ended_at = now
        move_print(ours, PrintStatus.completed, at=now, limits=limits)
        return
    reason = _why_failed(ours, state, settled=now - in_state_since >= FAILURE_SETTLES_IN)
    if reason is not None:
        intent.ended_at = now
        move_print(ours, PrintStatus.failed, at=now, limits=limits, reason=reason)


def _why_failed(ours: ScheduledPrint, state: PrinterState, *, settled: bool) -> str | None:
    """Why a print failed; None while the printer may still tell."""
    stopped_by_us = db.session.execute(
        sa.select(
            sa.exists().where(
                PrinterCommand.print_id == ours.id,
                PrinterCommand.kind == CommandKind.stop,
                PrinterCommand.state.in_((CommandState.sent, CommandState.done)),
                # Not a stop of an earlier run of a print that was rescheduled.
                PrinterCommand.requested_at >= ours.started_at,
            )
        )
    ).scalar_one()
    if stopped_by_us:
        return STOPPED_BY_PERSON
    if state.cancelled:
        return f"{STOPPED_BY_PERSON} at the printer"
    told = next((fault for fault in state.faults if fault.code == state.print_error), None)
    if state.print_error and (told or settled):
        return f"the printer reports {state.print_error}: {told.message if told else 'no explanation'}"[:2000]
    return "the printer reports a failure without a reason" if settled else None


def _settle_commands(printer: Printer, state: PrinterState, now: datetime) -> None:
    """A command is done when the printer's own report shows it."""
    sent = db.session.execute(
        sa.select(PrinterCommand).where(
            PrinterCommand.printer_id == printer.id,
            PrinterCommand.state == CommandState.sent,
            # A test of the connection is answered by what it finds, not by a report.
            PrinterCommand.kind != CommandKind.test,
        )
    ).scalars()
    for command in sent:
        if came_true(command, state):
            command.state, command.ended_at = CommandState.done, now
            command.result = {"confirmed_by": "report"}


def apply_answer(printer: Printer, answer: Answer, *, now: datetime, limits: StageLimits) -> None:
    """The printer's explicit refusal of a start. An acceptance proves nothing: only reports do. The caller commits."""
    if answer.accepted is not False or answer.submission_id is None or not answer.submission_id.isdigit():
        return
    intent = db.session.execute(
        sa.select(StartIntent).where(
            StartIntent.printer_id == printer.id,
            StartIntent.submission_id == int(answer.submission_id),
            StartIntent.state.in_(AWAITING),
        )
    ).scalar_one_or_none()
    if intent is None:
        return
    reason = explain(answer) or "no reason given"
    intent.state, intent.reason, intent.ended_at = IntentState.refused, reason, now
    # A refused start put nothing on the plate.
    printer.plate_state, printer.plate_print_id = PlateState.clear, None
    refused = db.session.get_one(ScheduledPrint, intent.print_id, with_for_update=True)
    if refused.status is PrintStatus.scheduled:
        move_print(
            refused, PrintStatus.failed, at=now, limits=limits, reason=f"refused by the printer: {reason}"[:2000]
        )


def mark_unconfirmed(printer_ids: Sequence[int], *, now: datetime) -> set[int]:
    """A start that its printer does not confirm is shown as such and never repeated without a person.

    Returns the printers of those marked just now: the report that said it had begun may have been lost.
    """
    intents = db.session.execute(
        sa.select(StartIntent).where(
            StartIntent.state == IntentState.published,
            StartIntent.published_at < now - UNCONFIRMED_AFTER,
        )
    ).scalars()
    marked = [intent for intent in intents if intent.printer_id in printer_ids]
    for intent in marked:
        _mark_unconfirmed(intent)
    return {intent.printer_id for intent in marked}


def _mark_unconfirmed(intent: StartIntent) -> None:
    intent.state = IntentState.unknown
    waiting = db.session.get_one(ScheduledPrint, intent.print_id)
    waiting.waiting_reason = (
        "sent to the printer, which does not confirm it: look at the printer, then say what happened"
    )
    log.warning("start_unconfirmed", print_id=intent.print_id, printer_id=intent.printer_id)


def withdraw_unsent(printer_ids: Sequence[int], *, now: datetime) -> None:
    """When these printers come into new hands: intents that the last holder left before sending. The caller commits."""
    db.session.execute(
        sa.update(StartIntent)
        .where(
            StartIntent.printer_id.in_(printer_ids),
            StartIntent.state.in_((IntentState.claimed, IntentState.uploading, IntentState.armed)),
        )
        .values(state=IntentState.withdrawn, reason="the worker ended before it was sent", ended_at=now)
        .execution_options(synchronize_session=False)
    )
