"""The queue of a printer: read it, put it in another order, pause it; hold a print, try an ended one again.

The paths are those of printers and of scheduled prints: `/queue` takes the printer's id, every other sub-path of a
scheduled print the print's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from flask import Response

from api import context
from api.lists import Listing, PageQuery, bare_page, json_response
from api.once import once
from api.print_schemas import COLUMNS, PrintSchema, QueueOrder, Retry, read_prints
from api.printers import PrinterSchema, answer_printer
from api.prints import require_printer, say_why_it_waits
from api.reading import Room
from auth import current_user_id, get_mine, mine, mine_prepared
from errors import Conflict, NotFound
from farm import starter
from farm.queue import RUN_ORDER, Place, hold, priorities_for, queue_again, release_hold
from models import ENDED_STATUSES, WAITING_STATUSES, Printer, ScheduledPrint, db

blueprint = Room("queue", __name__, url_prefix="/api", description="What runs next on each printer, and what does not")

MAX_NAMED = 20
# Polled by every open page: built once.
QUEUE = Listing(
    COLUMNS,
    mine_prepared(ScheduledPrint)
    .where(ScheduledPrint.printer_id == sa.bindparam("printer"), ScheduledPrint.status.in_(WAITING_STATUSES))
    .order_by(*RUN_ORDER),
)


def _queue_page(printer_id: int, limit: int, offset: int) -> tuple[list[dict[str, Any]], int]:
    return QUEUE.page(limit, offset, mine=current_user_id(), printer=printer_id)


@blueprint.get("/bambu/scheduled-prints/<id:printer_id>/queue")
@blueprint.arguments(PageQuery, location="query")
@blueprint.response(200, PrintSchema(many=True))
def get_queue(args: dict[str, Any], printer_id: int) -> Response:
    """What is queued and scheduled on a printer, in the order in which it will run. Takes a printer's id."""
    rows, total = _queue_page(printer_id, args["limit"], args["offset"])
    if not total:
        # A printer with waiting prints is there and theirs; only an empty queue needs the question.
        require_printer(printer_id)
    return bare_page(rows, total, args["limit"], args["offset"])


@blueprint.put("/bambu/scheduled-prints/<id:printer_id>/queue")
@blueprint.arguments(QueueOrder)
@blueprint.response(200, PrintSchema(many=True))
def order_queue(data: dict[str, Any], printer_id: int) -> Response:
    """Put a printer's waiting prints in this order, by as few new priorities as will do. Takes a printer's id."""
    # Locked, so that no new print comes in between; then the prints, so that nobody else moves one.
    get_mine(Printer, printer_id, for_update=True)
    places = {
        place.id: place
        for place in (
            Place(*row)
            for row in db.session.execute(
                mine(ScheduledPrint, ScheduledPrint.id, ScheduledPrint.priority, ScheduledPrint.scheduled_start)
                .where(ScheduledPrint.printer_id == printer_id, ScheduledPrint.status.in_(WAITING_STATUSES))
                .order_by(ScheduledPrint.id)
                .with_for_update()
            )
        )
    }
    wanted: list[int] = data["print_ids"]
    _refuse_other_prints(places.keys(), wanted)
    priorities = priorities_for([places[print_id] for print_id in wanted])
    if priorities is None:
        raise Conflict(
            "There are fewer priorities than this order takes: it turns too many prints around.",
            code="order_not_possible",
        )
    if priorities:
        at = context.now()
        db.session.execute(
            sa.update(ScheduledPrint),
            [{"id": each, "priority": priority, "updated_at": at} for each, priority in priorities.items()],
        )
    response = json_response(_queue_page(printer_id, max(1, len(wanted)), 0)[0])
    db.session.commit()
    return response


def _refuse_other_prints(waiting: Collection[int], wanted: list[int]) -> None:
    """The list and the queue hold the same prints, or somebody changed the queue since it was read."""
    others = set(wanted) - set(waiting)
    if others:
        known = db.session.execute(
            mine(ScheduledPrint, sa.func.count()).where(ScheduledPrint.id.in_(others))
        ).scalar_one()
        if known < len(others):
            raise NotFound
    missing = set(waiting) - set(wanted)
    faults = [
        *([f"Left out, but waiting here: {_named(missing)}."] if missing else []),
        *([f"Not waiting on this printer any more: {_named(others)}."] if others else []),
    ]
    if faults:
        raise Conflict(
            "The queue is not what it was. Read it again.", code="queue_changed", fields={"print_ids": faults}
        )


def _named(ids: Collection[int]) -> str:
    first = ", ".join(map(str, sorted(ids)[:MAX_NAMED]))
    return f"{first} and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else first


@blueprint.post("/printers/<id:printer_id>/pause-queue")
@blueprint.response(200, PrinterSchema)
def pause_queue(printer_id: int) -> Response:
    """Start nothing new on a printer until its queue is resumed. What runs goes on."""
    printer = get_mine(Printer, printer_id, for_update=True)
    if printer.queue_paused_at is None:
        printer.queue_paused_at = printer.updated_at = context.now()
    response = answer_printer(printer)
    db.session.commit()
    return response


@blueprint.post("/printers/<id:printer_id>/resume-queue")
@blueprint.response(200, PrinterSchema)
def resume_queue(printer_id: int) -> Response:
    """Let a paused queue go on."""
    printer = get_mine(Printer, printer_id, for_update=True)
    if printer.queue_paused_at is not None:
        printer.queue_paused_at, printer.updated_at = None, context.now()
    response = answer_printer(printer)
    db.session.commit()
    return response


def _waiting(print_id: int) -> ScheduledPrint:
    """A locked print of theirs that waits."""
    found = get_mine(ScheduledPrint, print_id, for_update=True)
    if found.status not in WAITING_STATUSES:
        raise Conflict(f"A {found.status} print does not wait any more.", code="not_waiting")
    return found


@blueprint.post("/bambu/scheduled-prints/<id:print_id>/hold")
@blueprint.response(200, PrintSchema)
def hold_print(print_id: int) -> Response:
    """Hold a waiting print back. It keeps its place in the queue, and others go past it."""
    held, at = _waiting(print_id), context.now()
    if not starter.take_back(held, now=at):
        raise Conflict("This print is being sent to the printer right now.", code="start_under_way")
    hold(held, at=at)
    say_why_it_waits(held, at)
    body = read_prints([print_id])[0]
    db.session.commit()
    return json_response(body)


@blueprint.post("/bambu/scheduled-prints/<id:print_id>/release-hold")
@blueprint.response(200, PrintSchema)
def release_held_print(print_id: int) -> Response:
    """Hold a print back no longer. It runs when its turn comes."""
    released, at = _waiting(print_id), context.now()
    release_hold(released, at=at)
    say_why_it_waits(released, at)
    body = read_prints([print_id])[0]
    db.session.commit()
    return json_response(body)


@blueprint.post("/bambu/scheduled-prints/<id:print_id>/retry")
@once
@blueprint.arguments(Retry, required=False)
@blueprint.response(200, PrintSchema)
def retry_print(data: dict[str, Any], print_id: int) -> Response:
    """Queue a print that has ended once more, on its printer or on another one. Its history stays."""
    query = mine(ScheduledPrint, ScheduledPrint.printer_id).where(ScheduledPrint.id == print_id)
    own_id: int | None = db.session.execute(query).scalar()
    if own_id is None:
        raise NotFound
    printer_id: int = data.get("printer_id", own_id)
    # The printer before the print, as everywhere: no print comes to one that is being removed.
    if db.session.execute(mine(Printer, Printer.id).where(Printer.id == printer_id).with_for_update()).scalar() is None:
        if "printer_id" in data:
            raise NotFound
        raise Conflict("Its printer was removed. Send the printer_id of another one.", code="printer_removed")
    ended = get_mine(ScheduledPrint, print_id, for_update=True)
    if ended.status not in ENDED_STATUSES:
        raise Conflict(f"A {ended.status} print has not ended.", code="not_ended")
    queue_again(
        ended,
        printer_id=printer_id,
        scheduled_start=data.get("scheduled_start"),
        at=context.now(),
        limits=context.limits(),
    )
    return json_response(read_prints([print_id])[0])
