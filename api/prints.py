"""Scheduled prints: `/api/bambu/scheduled-prints`.

The seeds use one path shape for two ids: GET and POST on the bare path take a printer's id, PUT and DELETE the print's
own; `/queue` takes the printer's, every other sub-path the print's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from flask import Response

from api import context, printer_commands
from api.lists import PageQuery, bare_list, json_response
from api.once import once
from api.print_schemas import (
    COLUMNS,
    EVENT_COLUMNS,
    AllPrintsQuery,
    Deleted,
    NewPrint,
    PrintChange,
    PrintEventSchema,
    PrintSchema,
    PrintsQuery,
    StartRequest,
    read_prints,
)
from api.reading import Room
from auth import current_user_id, get_mine, mine
from errors import Conflict, Invalid, NotFound, UpstreamFailed
from etsy_api import add_prints
from farm import readiness, starter
from farm.live import is_live, why_only_watched
from farm.moves import delete_print, move_print
from farm.orders import settle_production_status
from farm.print_files import NotPrintable, plate_numbers, plate_of
from farm.queue import override
from models import (
    ENDED_STATUSES,
    LEGAL_MOVES,
    MAX_ID,
    OPEN_INTENT_STATES,
    SENDING_STATES,
    CommandKind,
    IllegalMove,
    IntentState,
    Order,
    Printer,
    PrinterConnection,
    PrintEvent,
    PrintFile,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    db,
)

blueprint = Room(
    "scheduled prints", __name__, url_prefix="/api/bambu/scheduled-prints", description="The queue of each printer"
)

NEWEST_FIRST = (ScheduledPrint.created_at.desc(), ScheduledPrint.id.desc())
RUNNING_STATES = ("preparing", "printing", "paused")
REFERENCES: dict[str, Any] = {"printer_id": Printer, "order_id": Order, "print_file_id": PrintFile}


def check_references(data: dict[str, Any], before: ScheduledPrint | None = None) -> None:
    """Raises NotFound for the first id in a body that is not this user's, and Invalid for a plate not in its file."""
    for name, model in REFERENCES.items():
        if data.get(name) is not None:
            get_mine(model, data[name])
    if not {"print_file_id", "plate"} & data.keys():
        return
    file_id = data.get("print_file_id", before.print_file_id if before else None)
    if file_id is None:
        return
    file = get_mine(PrintFile, file_id)
    plate, numbers = data.get("plate", before.plate if before else 1), plate_numbers(file)
    if plate not in numbers:
        raise Invalid({"plate": [f"The file has no such plate; it has {', '.join(map(str, numbers))}."]})
    if "print_file_id" in data:
        data.setdefault("file_name", file.file_name)
    if before is None or (file_id, plate) != (before.print_file_id, before.plate):
        _fill_in(data, file, plate)


def _fill_in(data: dict[str, Any], file: PrintFile, plate: int) -> None:
    """What the slicer wrote about the plate, for each value that was not sent; one sent as null stays null."""
    # A file of before whose plates cannot be read says so when it is to be started.
    with contextlib.suppress(NotPrintable):
        for name, value in plate_of(file, plate, context.settings().files_dir).print_settings().items():
            data.setdefault(name, value)


def say_why_it_waits(waiting: ScheduledPrint, at: datetime) -> None:
    rules = context.start_rules()
    readiness.say_why_it_waits(waiting, now=at, missed_window=rules.missed_window, limits=rules.limits)


@blueprint.get("")
@blueprint.arguments(AllPrintsQuery, location="query")
@blueprint.response(200, PrintSchema(many=True))
def list_all_prints(args: dict[str, Any]) -> Response:
    """Prints across all of the user's printers, newest first."""
    query = mine(ScheduledPrint).order_by(*NEWEST_FIRST)
    for name in ("printer_id", "order_id", "batch_id", "id", "status"):
        if name in args:
            query = query.where(getattr(ScheduledPrint, name) == args[name])
    return bare_list(COLUMNS, query, args["limit"], args["offset"])


@blueprint.post("")
@once
@blueprint.arguments(NewPrint)
@blueprint.response(201, PrintSchema)
def add_print(data: dict[str, Any]) -> Response:
    """Queue a print on a printer. `scheduled` releases it: it runs when its time has come and the printer is free."""
    # Locked, so that a printer which is being removed at this moment gets no print any more.
    get_mine(Printer, data["printer_id"], for_update=True)
    check_references(data)
    at = context.now()
    created = add_prints([{"user_id": current_user_id(), **data}], at=at)[0]
    settle_production_status(created.user_id, created.order_id, at=at)
    say_why_it_waits(created, at)
    return json_response(read_prints([created.id])[0], 201)


@blueprint.get("/<id:printer_id>")
@blueprint.arguments(PrintsQuery, location="query")
@blueprint.response(200, PrintSchema(many=True))
def list_prints(args: dict[str, Any], printer_id: int) -> Response:
    """All prints of a printer, newest first. Takes a printer's id."""
    require_printer(printer_id)
    query = mine(ScheduledPrint).where(ScheduledPrint.printer_id == printer_id).order_by(*NEWEST_FIRST)
    if "status" in args:
        query = query.where(ScheduledPrint.status == args["status"])
    return bare_list(COLUMNS, query, args["limit"], args["offset"])


def require_printer(printer_id: int) -> None:
    """`get_mine` without making an object: the lists that a page polls need only to know that it is theirs."""
    if db.session.execute(mine(Printer, Printer.id).where(Printer.id == printer_id)).scalar() is None:
        raise NotFound


@blueprint.put("/<id:print_id>")
@blueprint.arguments(PrintChange)
@blueprint.response(200, PrintSchema)
def change_print(data: dict[str, Any], print_id: int) -> Response:
    """Change a print or record what happened to it. Takes the print's own id.

    A status is recorded; only a released print on a printer with a live link makes a machine move.
    """
    status: PrintStatus | None = data.pop("status", None)
    changed = _lock_to_move(print_id) if status else get_mine(ScheduledPrint, print_id, for_update=True)
    reason, used_grams = data.pop("failed_reason", None), data.pop("used_grams", None)
    target = changed.status if status is None else status
    _check_combination(target, status, reason, used_grams)
    check_references(data, changed)
    if status is None and changed.status in ENDED_STATUSES and (reason is not None or used_grams is not None):
        raise _print_ended()
    moving_to = None if status is changed.status else status
    if moving_to is not None:
        _refuse_contradiction(changed, moving_to, data.get("printer_id", changed.printer_id))
    if moving_to is PrintStatus.queued and changed.status in ENDED_STATUSES:
        data.setdefault("scheduled_start", None)
        changed.is_chained = False
    # A client that sends back what it was shown changes nothing by that.
    data = {name: value for name, value in data.items() if getattr(changed, name) != value}
    _refuse_late_edit(changed, moving_to, data)
    at = context.now()
    if moving_to is PrintStatus.queued and not starter.take_back(changed, now=at):
        raise _start_under_way()
    before_order = changed.order_id
    _edit(changed, data)
    if moving_to is not None:
        starter.settle_by_person(changed, moving_to, now=at)
        move_print(changed, moving_to, at=at, limits=context.limits(), reason=reason, used_grams=used_grams)
    if moving_to is not None or (data and not _has_intent(changed, OPEN_INTENT_STATES)):
        say_why_it_waits(changed, at)
    if data:
        changed.updated_at = at
    if changed.order_id != before_order:
        settle_production_status(changed.user_id, before_order, at=at)
        settle_production_status(changed.user_id, changed.order_id, at=at)
    body = read_prints([print_id])[0]
    db.session.commit()
    return json_response(body)


def _lock_to_move(print_id: int) -> ScheduledPrint:
    """Theirs, with its printer locked before it: the end of a print adds to its printer's hours, and two who take both
    in different orders wait for each other until one is thrown out. Whoever merely releases a print does not wait for
    a look at the printer's queue. Raises NotFound."""
    owner = mine(ScheduledPrint, ScheduledPrint.printer_id).where(ScheduledPrint.id == print_id)
    if 0 < print_id <= MAX_ID:
        its_printer = mine(Printer, Printer.id).where(Printer.id == owner.scalar_subquery())
        db.session.execute(its_printer.with_for_update(key_share=True)).all()
    return get_mine(ScheduledPrint, print_id, for_update=True)


def _edit(changed: ScheduledPrint, data: dict[str, Any]) -> None:
    for name, value in data.items():
        setattr(changed, name, value)
    if "order_id" in data:
        changed.order_item_id = None
    if "scheduled_start" in data:
        # From here on the time is a person's wish and no longer a link of a chain.
        changed.is_chained = False


def _check_combination(target: PrintStatus, sent: PrintStatus | None, reason: str | None, used_grams: Any) -> None:
    faults: dict[str, list[str]] = {}
    if sent is PrintStatus.failed and reason is None:
        faults["failed_reason"] = ["Say why it failed."]
    if reason is not None and target is not PrintStatus.failed:
        faults["failed_reason"] = ["Goes with status failed."]
    if used_grams is not None and target not in ENDED_STATUSES:
        faults["used_grams"] = ["Goes with status completed or failed."]
    if faults:
        raise Invalid(faults)


def _refuse_contradiction(changed: ScheduledPrint, status: PrintStatus, printer_id: int) -> None:
    """The table of moves first, then what the printer itself says where it can be heard."""
    if status not in LEGAL_MOVES[changed.status]:
        raise IllegalMove(changed.status, status)
    if changed.status is PrintStatus.scheduled and status is not PrintStatus.queued and is_being_sent(changed):
        raise _start_under_way()
    if status is PrintStatus.queued and printer_id == changed.printer_id and changed.printer.deleted_at is not None:
        raise Conflict("Its printer was removed. Send the printer_id of another one.", code="printer_removed")
    connection = _connection_to(printer_id)
    if connection is None or not is_live(connection, context.now()):
        return
    snapshot = connection.snapshot or {}
    is_running = snapshot.get("state") in RUNNING_STATES
    is_ours = snapshot.get("current_print_id") == changed.id
    # Where we only watch, a person began the print, and the printer reports it by a name that is none of ours. A start
    # that was never confirmed may have run and ended while nobody listened: of that only a person can tell.
    may_be_news = why_only_watched(connection) or _has_intent(changed, (IntentState.unknown,))
    if status is PrintStatus.started and not (is_running and is_ours) and not may_be_news:
        raise Conflict("The printer does not report that this print is running.", code="printer_says_otherwise")
    if changed.status is PrintStatus.started and status in ENDED_STATUSES and is_running and is_ours:
        raise Conflict("The printer reports that this print is still running.", code="printer_says_otherwise")


def _refuse_late_edit(changed: ScheduledPrint, moving_to: PrintStatus | None, data: dict[str, Any]) -> None:
    if not data:
        return
    if changed.status in ENDED_STATUSES and moving_to is not PrintStatus.queued:
        raise _print_ended()
    if changed.status is PrintStatus.started and data.get("printer_id", changed.printer_id) != changed.printer_id:
        raise Conflict("A started print stays on its printer.", code="print_started")
    if is_being_sent(changed):
        raise _start_under_way()


def _start_under_way() -> Conflict:
    return Conflict("This print is being sent to the printer right now.", code="start_under_way")


def _print_ended() -> Conflict:
    return Conflict("A print that has ended changes only together with status queued.", code="print_ended")


def is_being_sent(of_print: ScheduledPrint) -> bool:
    return _has_intent(of_print, SENDING_STATES)


def _has_intent(of_print: ScheduledPrint, states: Sequence[IntentState]) -> bool:
    return bool(
        db.session.execute(
            sa.select(sa.exists().where(StartIntent.print_id == of_print.id, StartIntent.state.in_(states)))
        ).scalar_one()
    )


def _connection_to(printer_id: int) -> PrinterConnection | None:
    found: PrinterConnection | None = db.session.execute(
        mine(PrinterConnection).where(PrinterConnection.printer_id == printer_id)
    ).scalar_one_or_none()
    return found


def _tell_printer(of_print: ScheduledPrint, kind: CommandKind) -> None:
    """Ask the printer and wait for its word; never when it runs another print than this one.

    Raises:
        Conflict, UpstreamFailed: see `printer_commands.run`.
    """
    connection = _connection_to(of_print.printer_id)
    if connection is not None and is_live(connection, context.now()) and not why_only_watched(connection):
        snapshot = connection.snapshot or {}
        if snapshot.get("state") in RUNNING_STATES and snapshot.get("current_print_id") != of_print.id:
            raise Conflict("The printer reports that it runs another print.", code="printer_says_otherwise")
    printer_commands.run(of_print, kind)


@blueprint.delete("/<id:print_id>")
@blueprint.response(200, Deleted)
def remove_print(print_id: int) -> Response:
    """Cancel a print or take an ended one off the lists. Takes the print's own id.

    A running print on a printer with a connection is stopped first; if the printer does not confirm that, the answer
    is 502 and nothing changes.
    """
    found = get_mine(ScheduledPrint, print_id)
    if found.status is PrintStatus.started and _connection_to(found.printer_id) is not None:
        try:
            _tell_printer(found, CommandKind.stop)
        except Conflict as error:
            raise UpstreamFailed(f"Nothing was changed: {error.sentence}", code="not_confirmed") from None
    deleted = _lock_to_move(print_id)
    at = context.now()
    if not starter.take_back(deleted, now=at):
        raise _start_under_way()
    starter.settle_by_person(deleted, PrintStatus.failed, now=at)
    delete_print(deleted, at=at)
    db.session.commit()
    return json_response({"message": "Print deleted", "id": print_id})


@blueprint.get("/<id:print_id>/events")
@blueprint.arguments(PageQuery, location="query")
@blueprint.response(200, PrintEventSchema(many=True))
def list_events(args: dict[str, Any], print_id: int) -> Response:
    """A print's whole history, oldest first."""
    get_mine(ScheduledPrint, print_id)
    query = mine(PrintEvent).where(PrintEvent.print_id == print_id).order_by(PrintEvent.id)
    return bare_list(EVENT_COLUMNS, query, args["limit"], args["offset"])


@blueprint.post("/<id:print_id>/start")
@once
@blueprint.arguments(StartRequest, required=False)
@blueprint.response(200, PrintSchema)
def start_print(data: dict[str, Any], print_id: int) -> Response:
    """Release a queued print: it runs when its time has come, the printer is free and every interlock holds.

    A person may answer for single interlocks of this start by name.
    """
    started, at = get_mine(ScheduledPrint, print_id, for_update=True), context.now()
    before = started.status, started.overrides
    if started.status is not PrintStatus.scheduled:
        move_print(started, PrintStatus.scheduled, at=at, limits=context.limits())
    override(started, data["override"], by_user_id=current_user_id(), at=at)
    if (started.status, started.overrides) != before:
        if is_being_sent(started):
            raise _start_under_way()
        say_why_it_waits(started, at)
    return json_response(read_prints([print_id])[0])


def _command(print_id: int, kind: CommandKind) -> Response:
    _tell_printer(get_mine(ScheduledPrint, print_id), kind)
    body = read_prints([print_id])[0]
    db.session.commit()
    return json_response(body)


@blueprint.post("/<id:print_id>/pause")
@blueprint.response(200, PrintSchema)
def pause_print(print_id: int) -> Response:
    """Pause a running print at the printer."""
    return _command(print_id, CommandKind.pause)


@blueprint.post("/<id:print_id>/resume")
@blueprint.response(200, PrintSchema)
def resume_print(print_id: int) -> Response:
    """Go on with a paused print at the printer."""
    return _command(print_id, CommandKind.resume)


@blueprint.post("/<id:print_id>/stop")
@blueprint.response(200, PrintSchema)
def stop_print(print_id: int) -> Response:
    """Stop a running print at the printer. It ends as failed, "stopped by a person"."""
    return _command(print_id, CommandKind.stop)
