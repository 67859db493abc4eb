"""A printer's report -> what it means for our prints: moves, plate, commands that came true.

Edges of identified prints only: a report moves a print when it names the start of ours (its submission id), never
because a printer merely happens to say FINISH.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
import structlog

import notifications
from bambu_client import Answer, explain
from bambu_report import ACTIVE, PrinterActivity, PrinterState
from farm.alerts import UNCONFIRMED, needs_person
from farm.command_proof import came_true
from farm.gates import PLATE_STATE, clear, gate_of, occupy
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
    PrinterGate,
    PrintEvent,
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
# An old FINISH may come back for a moment, and a printer that goes on is not finished.
FINISH_SETTLES_IN = timedelta(seconds=2)
ASK_AFTER = timedelta(seconds=30)
UNCONFIRMED_AFTER = timedelta(seconds=150)
UNCONFIRMED_SENTENCE = "sent to the printer, which does not confirm it: look at the printer, then say what happened"
STOPPED_BY_PERSON = "stopped by a person"
AWAITING = (IntentState.published, IntentState.unknown)
# Written out in the statement: a partial index serves only a condition that names its values.
AWAITED: sa.BindParameter[Any] = sa.bindparam("awaited", list(AWAITING), expanding=True, literal_execute=True)
# Made once, for these run with every report that tells something new.
OTHER_STARTS = sa.select(StartIntent.id).where(
    StartIntent.printer_id == sa.bindparam("printer"),
    StartIntent.ended_at.is_(None),
    StartIntent.state.in_((*AWAITING, IntentState.confirmed)),
    StartIntent.submission_id != sa.bindparam("submission"),
)
SENT_COMMANDS = sa.select(PrinterCommand.id).where(
    PrinterCommand.printer_id == sa.bindparam("printer"),
    PrinterCommand.state == CommandState.sent,
    # A test of the connection is answered by what it finds, not by a report.
    PrinterCommand.kind != CommandKind.test,
)
# What is asked of every report.
_ASKED = (
    PLATE_STATE.label("plate_state"),
    sa.exists(SENT_COMMANDS).label("has_commands"),
    sa.exists(OTHER_STARTS.correlate(None)).label("has_other_starts"),
)
KNOWN = sa.select(*_ASKED)
# Both are locked, the print first, so that both are read as they stand once their locks are had: whoever held them, a
# person or the starter, may have ended either meanwhile.
_LOCKED = (
    sa.select(ScheduledPrint, StartIntent)
    .join(StartIntent, StartIntent.print_id == ScheduledPrint.id)
    .with_for_update()
    .execution_options(populate_existing=True)
)
LOCKED_START = _LOCKED.where(StartIntent.id == sa.bindparam("start"))
# Of a report that names a start of ours, all of it in one statement.
NAMED = _LOCKED.add_columns(*_ASKED).where(
    StartIntent.printer_id == sa.bindparam("printer"),
    StartIntent.submission_id == sa.bindparam("submission"),
    StartIntent.published_at.is_not(None),
)
# A person recorded the end of a print, and its printer has nothing new to say: its start has ended all the same.
ENDED_BY_HAND = (
    sa.select(StartIntent.printer_id)
    .join(ScheduledPrint, ScheduledPrint.id == StartIntent.print_id)
    .where(
        StartIntent.is_file_on_printer,
        StartIntent.ended_at.is_(None),
        StartIntent.state == IntentState.confirmed,
        ScheduledPrint.status != PrintStatus.started,
    )
)


def apply(
    printer: Printer,
    state: PrinterState,
    *,
    in_state_since: datetime,
    now: datetime,
    limits: StageLimits,
    told_whole_at: datetime | None = None,
    is_whole: bool = True,
) -> ScheduledPrint | None:
    """What a printer's present state means; returns the print of ours that it concerns. The caller commits.

    `in_state_since`: when the state's activity was first heard; `told_whole_at`: when a full report was heard last, now
    if not given. `is_whole`: a full report came since the printer is at work; before, a part may be missing that tells
    whose print it is. Safe to call again with the same state.
    """
    if not state.known:
        return None
    settled_for = now - in_state_since
    asked = {"printer": printer.id, "submission": _submission_of(state)}
    named = db.session.execute(NAMED, asked).one_or_none() if asked["submission"] else None
    ours, intent = (named.ScheduledPrint, named.StartIntent) if named is not None else (None, None)
    known = named or db.session.execute(KNOWN, asked).one()
    _see_plate(printer, state, ours, known.plate_state or PlateState.unknown)
    if intent is not None and ours is not None:
        if state.state in ACTIVE:
            _confirm(intent, ours, state, now=now, limits=limits)
            ours.needs_look = None
        elif state.state in (PrinterActivity.finished, PrinterActivity.failed):
            if _ended_while_away(intent, state, now):
                _confirm(intent, ours, state, now=now, limits=limits, was_seen=False)
            _end(intent, ours, state, settled_for=settled_for, now=now, limits=limits)
        if ours.status is PrintStatus.started:
            _note_progress(ours, state)
    if is_whole or state.state not in ACTIVE:
        _see_foreign_print(printer, state, intent, now)
        if known.has_other_starts:
            _miss_ours(
                *(printer, state, intent),
                settled_for=settled_for,
                told_whole_at=told_whole_at or now,
                now=now,
                limits=limits,
            )
    if known.has_commands:
        _settle_commands(printer, state, now)
    is_current = ours is not None and (ours.status is PrintStatus.started or state.state in ACTIVE)
    return ours if is_current else None


def settling_moments(state: PrinterState, in_state_since: datetime) -> list[datetime]:
    """When time alone may change what a state means: no report announces that."""
    waits = (FAILURE_SETTLES_IN,) if state.state in ACTIVE else (FINISH_SETTLES_IN, FAILURE_SETTLES_IN)
    return [in_state_since + wait for wait in waits]


def _submission_of(state: PrinterState) -> int:
    """The id of a start that a report names; 0, which no start has, when it names none that could be ours."""
    text = state.submission_id or ""
    is_id = text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID
    return int(text) if is_id else 0


def _locked(start_id: int) -> tuple[ScheduledPrint, StartIntent]:
    """A start and its print, as they stand."""
    of_print, start = db.session.execute(LOCKED_START, {"start": start_id}).one()
    return of_print, start


def _see_plate(printer: Printer, state: PrinterState, ours: ScheduledPrint | None, known: PlateState) -> None:
    """Occupied from the first sign of any print, and on first contact: nobody can say what lies there."""
    has_printed = state.state in ACTIVE
    if not has_printed:
        has_printed = known is PlateState.clear and _has_printed_unheard(printer, state)
        if known is not PlateState.unknown and not has_printed:
            return
    gate = gate_of(printer)
    if gate is None:
        return
    if has_printed:
        if ours is not None or not _is_print_of_another_account(gate, printer):
            occupy(gate, ours.id if ours is not None else None)
    elif gate.plate_state is PlateState.unknown:
        gate.plate_state = PlateState.occupied


def _has_printed_unheard(printer: Printer, state: PrinterState) -> bool:
    """A print ended of which nobody heard that it ran: the line was down, or no worker listened. Held against what was
    written down before; that the same file was printed once more, nothing shows."""
    if state.state not in (PrinterActivity.finished, PrinterActivity.failed):
        return False
    before = (printer.connection.snapshot if printer.connection is not None else None) or {}
    names = {before.get("job_name") or state.job_name, state.job_name or before.get("job_name")}
    return before.get("state") != state.state.value or len(names) > 1


def _is_print_of_another_account(gate: PrinterGate, printer: Printer) -> bool:
    """The same machine, entered twice: what the other account prints on it is known to lie there."""
    if gate.plate_print_id is None:
        return False
    owner = db.session.execute(
        sa.select(ScheduledPrint.printer_id).where(ScheduledPrint.id == gate.plate_print_id)
    ).scalar_one_or_none()
    return owner is not None and owner != printer.id


def _confirm(
    intent: StartIntent,
    ours: ScheduledPrint,
    state: PrinterState,
    *,
    now: datetime,
    limits: StageLimits,
    was_seen: bool = True,
) -> None:
    if intent.state not in AWAITING:
        return
    intent.state, intent.confirmed_at = IntentState.confirmed, now
    if ours.status in (PrintStatus.queued, PrintStatus.scheduled):
        # With the move, so that the row is written once.
        _note_progress(ours, state)
        event = move_print(ours, PrintStatus.started, at=now, limits=limits)
        if event is not None and not was_seen:
            event.details = {**event.details, "duration": "not known: nobody listened while it was printed"}


def _note_progress(ours: ScheduledPrint, state: PrinterState) -> None:
    if state.progress_percent is not None:
        ours.progress_percent = max(0, min(100, state.progress_percent))


def _ended_while_away(intent: StartIntent, state: PrinterState, now: datetime) -> bool:
    """A printer that accepts a start and never begins it shows the end of the print before, under our name, for ever:
    only an end that it did not show already when the start was sent is ours. Of any other a person has to tell."""
    published_at = intent.published_at
    if intent.state not in AWAITING or published_at is None or now - published_at <= START_SETTLES_IN:
        return False
    return (intent.checks or {}).get("printer_was") != state.state.value


def _end(
    intent: StartIntent,
    ours: ScheduledPrint,
    state: PrinterState,
    *,
    settled_for: timedelta,
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
        if settled_for >= FINISH_SETTLES_IN:
            move_print(ours, PrintStatus.completed, at=now, limits=limits, start=intent)
        return
    reason = _why_failed(ours, state, settled=settled_for >= FAILURE_SETTLES_IN)
    if reason is not None:
        move_print(ours, PrintStatus.failed, at=now, limits=limits, reason=reason, start=intent)


def _see_foreign_print(printer: Printer, state: PrinterState, intent: StartIntent | None, now: datetime) -> None:
    """A print that somebody started at the printer: recorded once as it begins and as it ends, and never touched. So is
    a start of ours that a person has taken back, if the printer begins it after all."""
    running = None
    is_ours = intent is not None and intent.state in (*AWAITING, IntentState.confirmed)
    if not is_ours and state.state in ACTIVE:
        running = (state.job_name or state.file_name or state.submission_id or "a print without a name")[:255]
    if running == printer.foreign_print or (running is None and state.state is PrinterActivity.unknown):
        return
    if running is not None and printer.foreign_print is not None:
        # Some firmware tells the name late: still the same print.
        printer.foreign_print = running
        return
    name = running or printer.foreign_print
    printer.foreign_print = running
    db.session.add(
        PrintEvent(
            user_id=printer.user_id,
            printer_id=printer.id,
            kind="printer.foreign_print_started" if running else "printer.foreign_print_ended",
            details={"name": name, "state": state.state.value},
            at=now,
        )
    )


def _miss_ours(
    printer: Printer,
    state: PrinterState,
    intent: StartIntent | None,
    *,
    settled_for: timedelta,
    told_whole_at: datetime,
    now: datetime,
    limits: StageLimits,
) -> None:
    """Starts of ours that the printer should know of and does not name."""
    named = intent.submission_id if intent is not None else 0
    for start_id in db.session.execute(OTHER_STARTS, {"printer": printer.id, "submission": named}).scalars().all():
        ours, missed = _locked(start_id)
        published_at = missed.published_at
        if published_at is None or missed.ended_at is not None:
            continue
        is_running_another = state.state in ACTIVE and settled_for >= FAILURE_SETTLES_IN
        if missed.state is IntentState.confirmed:
            if ours.status is not PrintStatus.started:
                missed.ended_at = now
            elif is_running_another or (state.state not in ACTIVE and settled_for >= FAILURE_SETTLES_IN):
                _ask_to_look(ours, state, now)
        elif is_running_another:
            _never_started(missed, ours, "another print began at the printer instead", now=now, limits=limits)
        elif (
            # What was heard before that says nothing: the line may be down while it prints. Nor does a part since: the
            # one that told of the beginning may have been lost.
            told_whole_at - published_at > START_SETTLES_IN
            and state.state not in ACTIVE
            and settled_for > FAILURE_SETTLES_IN
        ):
            _never_started(missed, ours, "it was sent, but the printer never began it", now=now, limits=limits)


def _ask_to_look(ours: ScheduledPrint, state: PrinterState, now: datetime) -> None:
    """The printer does not print ours any more and does not say how it ended: power was lost, or it was restarted."""
    sentence = (
        f"the printer is {state.state} and does not say what became of this print:"
        " look at it, then record it as completed or failed"
    )
    if ours.needs_look is not None:
        return
    ours.needs_look = sentence
    event = PrintEvent(
        user_id=ours.user_id,
        printer_id=ours.printer_id,
        print_id=ours.id,
        kind="print.needs_look",
        reason=sentence,
        details={},
        at=now,
    )
    db.session.add(event)
    notifications.fan_out(event, of_print=ours)


def _never_started(
    intent: StartIntent, ours: ScheduledPrint, reason: str, *, now: datetime, limits: StageLimits
) -> None:
    """Nobody repeats it by itself: a person may, which makes a new start."""
    intent.state, intent.reason, intent.ended_at = IntentState.not_started, reason, now
    if ours.status is PrintStatus.scheduled:
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
    for command_id in db.session.execute(SENT_COMMANDS, {"printer": printer.id}).scalars().all():
        command = db.session.get_one(PrinterCommand, command_id)
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
    refused, intent = _locked(intent.id)
    if intent.state not in AWAITING:
        return
    reason = explain(answer) or "no reason given"
    intent.state, intent.reason, intent.ended_at = IntentState.refused, reason, now
    gate = gate_of(printer)
    if gate is not None and gate.plate_print_id == intent.print_id:
        # A refused start put nothing on the plate.
        clear(gate)
    if refused.status is PrintStatus.scheduled:
        move_print(
            refused, PrintStatus.failed, at=now, limits=limits, reason=f"refused by the printer: {reason}"[:2000]
        )


class Awaited(NamedTuple):
    """Printers that have not confirmed a start: to be asked for a full report, and to be judged by what they say, each
    from its moment on. `ended`: whose start a person ended."""

    ask: list[int]
    judge: dict[int, datetime]
    ended: list[int]


def watch_starts(printer_ids: Sequence[int], *, now: datetime) -> Awaited:
    """Starts that wait for their printers' word. One that is not confirmed in time is shown as such, and never repeated
    without a person. The caller commits."""
    awaited = Awaited([], {}, [])
    intents = db.session.execute(
        sa.select(StartIntent).where(StartIntent.state.in_(AWAITED), StartIntent.published_at < now - ASK_AFTER)
    ).scalars()
    for intent in intents:
        published_at = intent.published_at
        if intent.printer_id not in printer_ids or published_at is None:
            continue
        if intent.state is IntentState.published and now - published_at > UNCONFIRMED_AFTER:
            if not _mark_unconfirmed(intent, now):
                continue
            # The report that said it had begun may have been lost.
            awaited.ask.append(intent.printer_id)
        if intent.report_asked_at is None:
            intent.report_asked_at = now
            awaited.ask.append(intent.printer_id)
        if now - published_at > START_SETTLES_IN:
            awaited.judge[intent.printer_id] = published_at + START_SETTLES_IN
    ended_by_hand = db.session.execute(ENDED_BY_HAND).scalars()
    awaited.ended.extend(printer_id for printer_id in ended_by_hand if printer_id in printer_ids)
    return awaited


def _mark_unconfirmed(intent: StartIntent, now: datetime) -> bool:
    """False when it was settled in this moment: a computer that slept between the writing and the sending of a start
    finds it too late to send and too long unconfirmed at once."""
    waiting, intent = _locked(intent.id)
    if intent.state is not IntentState.published:
        return False
    intent.state = IntentState.unknown
    waiting.waiting_reason = UNCONFIRMED_SENTENCE
    needs_person(waiting, UNCONFIRMED, UNCONFIRMED_SENTENCE, at=now)
    log.warning("start_unconfirmed", print_id=intent.print_id, printer_id=intent.printer_id)
    return True


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
