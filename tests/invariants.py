"""What must hold after anything that touched printing, read from the database and from the printers themselves."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import sqlalchemy as sa
from flask import Flask

from farm.interlocks import OVERRIDABLE, READY_STATES, Interlock
from farm.starter import FRESH_FOR
from models import (
    ENDED_STATUSES,
    OPEN_INTENT_STATES,
    BambuMaterial,
    IntentState,
    LedgerEntry,
    LedgerKind,
    PrinterConnection,
    PrintEvent,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    db,
)
from simulator import SimulatedPrinter

OVERRIDDEN = "overridden by a person"


def assert_invariants(app: Flask, printers: Iterable[SimulatedPrinter] = ()) -> None:
    """Fails with everything that does not hold. `printers` are all that the database knows of, or none."""
    with app.app_context():
        intents = db.session.execute(sa.select(StartIntent).order_by(StartIntent.id)).scalars().all()
        found = [
            *_counted_at_the_printers(intents, list(printers)),
            *(fault for intent in intents for fault in _as_published(intent)),
            *_open_ones(intents),
            *_history(intents),
            *_ledger(),
            *_between_users(),
        ]
        db.session.rollback()
    assert not found, "\n".join(found)


def _counted_at_the_printers(intents: Sequence[StartIntent], printers: Sequence[SimulatedPrinter]) -> Iterable[str]:
    """At most one `project_file` a start, none without one, none that was never written down as sent."""
    serials = dict(db.session.execute(sa.select(PrinterConnection.printer_id, PrinterConnection.serial_number)).all())
    known = {
        (serials[intent.printer_id], str(intent.submission_id)): intent
        for intent in intents
        if intent.printer_id in serials
    }
    for printer in printers:
        counted = Counter(start.subtask_id for start in printer.starts)
        for submission_id, times in counted.items():
            intent = known.get((printer.serial, submission_id))
            if times > 1:
                yield f"{printer.serial} was told to start {submission_id} {times} times"
            if intent is None:
                yield f"{printer.serial} was told to start {submission_id}, of which no row tells"
            elif intent.published_at is None:
                yield f"{printer.serial} was told to start {submission_id}, which is {intent.state} and was never sent"
            elif intent.state is IntentState.withdrawn:
                yield f"{printer.serial} was told to start {submission_id}, which was withdrawn"


def _as_published(intent: StartIntent) -> Iterable[str]:
    """Every interlock was true, on a report of less than ten seconds before."""
    if intent.published_at is None:
        if intent.state in (IntentState.published, IntentState.confirmed, IntentState.unknown, IntentState.refused):
            yield f"start {intent.id} is {intent.state} without having been sent"
        return
    if intent.owner is None or intent.epoch is None:
        yield f"start {intent.id} was sent by nobody"
    checks = dict(intent.checks or {})
    age = checks.pop("report_age_seconds", math.inf)
    if (was := checks.pop("printer_was", None)) not in READY_STATES:
        yield f"start {intent.id} was sent while the printer was {was}"
    if not 0 <= age < FRESH_FOR.total_seconds():
        yield f"start {intent.id} was sent on a report {age} s old"
    if set(checks) != {lock.value for lock in Interlock}:
        yield f"start {intent.id} was sent with other interlocks read than there are: {sorted(checks)}"
    for lock, said in checks.items():
        if said != "ok" and not (said == OVERRIDDEN and lock in OVERRIDABLE):
            yield f"start {intent.id} was sent although {lock}: {said}"


def _open_ones(intents: Sequence[StartIntent]) -> Iterable[str]:
    of_printer = Counter(intent.printer_id for intent in intents if intent.state in OPEN_INTENT_STATES)
    yield from (f"printer {key} has {count} open starts" for key, count in of_printer.items() if count > 1)
    for intent in intents:
        if intent.state in OPEN_INTENT_STATES and intent.ended_at is not None:
            yield f"start {intent.id} is {intent.state} and has ended"


def _history(intents: Sequence[StartIntent]) -> Iterable[str]:
    """A print's events tell one unbroken story: begun once and ended once in each of its runs."""
    events: dict[int, list[PrintEvent]] = defaultdict(list)
    moves = sa.select(PrintEvent).where(PrintEvent.to_status.is_not(None)).order_by(PrintEvent.id)
    for event in db.session.execute(moves).scalars():
        events[event.print_id].append(event)
    confirmed = Counter(intent.print_id for intent in intents if intent.confirmed_at is not None)
    for each in db.session.execute(sa.select(ScheduledPrint)).scalars():
        story = events[each.id]
        for before, after in pairwise(story):
            if before.to_status is not after.from_status:
                yield f"print {each.id} was {before.to_status}, then went from {after.from_status} to {after.to_status}"
        if story and story[-1].to_status is not each.status:
            yield f"print {each.id} is {each.status}, its last event tells {story[-1].to_status}"
        kinds = Counter(event.kind for event in story)
        runs = 1 + kinds["print.rescheduled"]
        ends = kinds["print.completed"] + kinds["print.failed"]
        if ends != runs - (each.status not in ENDED_STATUSES):
            yield f"print {each.id} is {each.status} in run {runs} and has {ends} events of an end"
        if kinds["print.started"] > runs:
            yield f"print {each.id} began {kinds['print.started']} times in {runs} runs"
        if confirmed[each.id] > kinds["print.started"]:
            yield f"print {each.id} was confirmed {confirmed[each.id]} times and began {kinds['print.started']} times"
        if each.status is PrintStatus.started and kinds["print.started"] == 0:
            yield f"print {each.id} runs and never began"
        yield from _booked(each.id, ends)


def _booked(print_id: int, ends: int) -> Iterable[str]:
    used = db.session.execute(
        sa.select(LedgerEntry.material_id, sa.func.count())
        .where(LedgerEntry.print_id == print_id, LedgerEntry.kind == LedgerKind.used)
        .group_by(LedgerEntry.material_id)
    )
    for material_id, times in used:
        if times > ends:
            yield f"print {print_id} ended {ends} times and was booked {times} times on spool {material_id}"


def _ledger() -> Iterable[str]:
    sums = dict(
        db.session.execute(
            sa.select(LedgerEntry.material_id, sa.func.sum(LedgerEntry.delta_grams)).group_by(LedgerEntry.material_id)
        ).all()
    )
    for spool in db.session.execute(sa.select(BambuMaterial)).scalars():
        if sums.get(spool.id, 0) != spool.remaining_grams:
            yield f"spool {spool.id} holds {spool.remaining_grams} g, its ledger tells {sums.get(spool.id, 0)} g"


def _between_users() -> Iterable[str]:
    """No row of one user refers to a row of another, whatever the reference is made of."""
    for table in db.metadata.sorted_tables:
        for reference in table.foreign_keys:
            there = reference.column.table
            if "user_id" not in table.c or "user_id" not in there.c or reference.parent.name == "user_id":
                continue
            aliased = there.alias()
            strange = db.session.execute(
                sa.select(sa.func.count())
                .select_from(table)
                .join(aliased, reference.parent == aliased.c[reference.column.name])
                .where(table.c.user_id != aliased.c.user_id)
            ).scalar_one()
            if strange:
                yield f"{strange} rows of {table.name} refer by {reference.parent.name} to another user's {there.name}"
