"""What is wrong with a printer: raised and cleared as often as it likes, and told once while it comes and goes.

The rows remember what was told, so that a restart or another worker tells nothing again. Nothing here commits: an alert
and its event are written in the transaction of whatever changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

import notifications
from models import (
    WAITING_STATUSES,
    ConnectionStatus,
    Printer,
    PrinterAlert,
    PrinterConnection,
    PrintEvent,
    ScheduledPrint,
    StartIntent,
    db,
)

# A link that is away for less than this is nobody's business: printers and routers restart.
OFFLINE_LASTS = timedelta(minutes=2)
# After a print somebody comes and clears the plate; only when nobody does is it worth a word.
WAIT_LASTS = timedelta(minutes=5)
# What comes back within this time is still the same. Of a link or a waiting print one word is said in that time.
FLAP_WINDOW = timedelta(minutes=30)

OFFLINE, MAINTENANCE = "offline", "maintenance"
HEALTH, ERROR, WAIT = "hms:", "error:", "print:"
# What a print waits for besides the interlocks.
UNSENT, UNCONFIRMED = "unsent", "unconfirmed"
UNREACHABLE = "the printer cannot be reached"
AWAY = (ConnectionStatus.offline, ConnectionStatus.unauthorized, ConnectionStatus.error)

_HAS_CONNECTION = sa.exists().where(PrinterConnection.printer_id == PrinterAlert.printer_id)
# Those that lasted, those that have been over for long enough, and those of printers that are not listened to any more.
_IS_DUE = sa.or_(
    sa.and_(
        PrinterAlert.cleared_at.is_(None),
        sa.or_(
            PrinterAlert.told_at.is_(None),
            sa.and_(PrinterAlert.told_at < PrinterAlert.raised_at, PrinterAlert.told_at <= sa.bindparam("again")),
        ),
        sa.or_(
            sa.and_(PrinterAlert.key == OFFLINE, PrinterAlert.raised_at <= sa.bindparam("away_since")),
            sa.and_(PrinterAlert.key.startswith(WAIT), PrinterAlert.raised_at <= sa.bindparam("waits_since")),
        ),
    ),
    PrinterAlert.cleared_at <= sa.bindparam("again"),
    sa.and_(PrinterAlert.key != MAINTENANCE, ~_HAS_CONNECTION),
)


def raise_alert(user_id: int, printer_id: int, key: str, *, at: datetime) -> PrinterAlert:
    """The alert of that key, raised from now on if it was not. Flushed.

    What comes back within FLAP_WINDOW is the same alert, and `times` counts it. A fault that does so goes on as if it
    had never been gone; of the others `raised_at` tells since when they are back.
    """
    alert = _find(printer_id, key)
    if alert is None:
        insert = postgresql.insert if db.engine.dialect.name == "postgresql" else sqlite.insert
        db.session.execute(
            insert(PrinterAlert)
            .values(user_id=user_id, printer_id=printer_id, key=key, raised_at=at, times=1)
            .on_conflict_do_nothing()
        )
        alert = _find(printer_id, key)
        assert alert is not None
        return alert
    if alert.cleared_at is None:
        return alert
    if at - alert.cleared_at >= FLAP_WINDOW:
        alert.raised_at, alert.told_at, alert.times = at, None, 1
    else:
        alert.times += 1
        if not is_fault(key):
            # Later than whatever was told before, even after a clock was set back.
            alert.raised_at = at if alert.told_at is None else max(at, alert.told_at + timedelta.resolution)
    alert.cleared_at = None
    db.session.flush()
    return alert


def clear_alert(printer_id: int, key: str, *, at: datetime) -> PrinterAlert | None:
    """It is over. Returns the alert if this ended it. Flushed."""
    alert = _find(printer_id, key)
    if alert is None or alert.cleared_at is not None:
        return None
    alert.cleared_at = at
    db.session.flush()
    return alert


def is_told(alert: PrinterAlert) -> bool:
    """Whether it was told since it was raised last."""
    return alert.told_at is not None and alert.told_at >= alert.raised_at


def may_be_told(alert: PrinterAlert, *, at: datetime) -> bool:
    """Not told yet, and not so soon after it was told before."""
    return alert.told_at is None or (not is_told(alert) and at - alert.told_at >= FLAP_WINDOW)


def is_fault(key: str) -> bool:
    return key.startswith((HEALTH, ERROR))


def tell(
    alert: PrinterAlert,
    kind: str,
    *,
    at: datetime,
    text: str,
    code: str | None = None,
    of_print: ScheduledPrint | None = None,
) -> PrintEvent:
    """The event of an alert, with its deliveries. `code` is the printer's own, or a word of ours. Flushes."""
    alert.told_at = max(at, alert.raised_at)
    return _announce(alert, kind, at=at, text=text, code=code, of_print=of_print)


def _announce(
    alert: PrinterAlert,
    kind: str,
    *,
    at: datetime,
    text: str,
    code: str | None,
    of_print: ScheduledPrint | None = None,
) -> PrintEvent:
    event = PrintEvent(
        user_id=alert.user_id,
        printer_id=alert.printer_id,
        print_id=of_print.id if of_print is not None else None,
        kind=kind,
        reason=text,
        details={
            "alert": {
                "key": alert.key,
                "code": code,
                "text": text,
                "since": alert.raised_at.isoformat().replace("+00:00", "Z"),
                "times": alert.times,
            }
        },
        at=at,
    )
    db.session.add(event)
    notifications.fan_out(event, of_print=of_print)
    return event


def link_stands(connection: PrinterConnection, *, at: datetime) -> None:
    """What a connection's new status means. Away is told when it lasts, back only to whom it was told."""
    status = connection.connection_status
    if status is ConnectionStatus.connected:
        over = clear_alert(connection.printer_id, OFFLINE, at=at)
        if over is not None and is_told(over):
            _announce(over, "printer.back", at=at, text="the printer can be reached again", code=None)
    elif status in AWAY and (connection.heard_at is not None or status is not ConnectionStatus.offline):
        # One that was never heard has not gone anywhere; that its access code is wrong is news all the same.
        raise_alert(connection.user_id, connection.printer_id, OFFLINE, at=at)


def tell_lasting(*, at: datetime) -> int:
    """What no report announces: an alert that has lasted, a fault that has been gone for long. How many rows were due:
    most times none, which takes one statement. Two workers may do it at once. The caller commits."""
    moments = {"again": at - FLAP_WINDOW, "away_since": at - OFFLINE_LASTS, "waits_since": at - WAIT_LASTS}
    if db.session.execute(sa.select(PrinterAlert.id).where(_IS_DUE).limit(1), moments).first() is None:
        return 0
    # Another worker that is at one of them tells it; what it has told is not due any more.
    locked = sa.select(PrinterAlert).where(_IS_DUE).order_by(PrinterAlert.id).with_for_update(skip_locked=True)
    found = db.session.execute(locked.execution_options(populate_existing=True), moments).scalars().all()
    for alert in found:
        if not _tell_if_true(alert, at):
            db.session.delete(alert)
    db.session.flush()
    return len(found)


def _tell_if_true(alert: PrinterAlert, at: datetime) -> bool:
    """Whether the alert is to be kept."""
    connection = db.session.execute(
        sa.select(PrinterConnection)
        .join(Printer, Printer.id == PrinterConnection.printer_id)
        .where(Printer.id == alert.printer_id, Printer.deleted_at.is_(None))
    ).scalar_one_or_none()
    if connection is None:
        return False
    if alert.cleared_at is not None:
        if is_fault(alert.key):
            code = alert.key.partition(":")[2]
            _announce(alert, "printer.fault_cleared", at=at, text=f"{code} has not come back", code=code)
        return False
    if alert.key == OFFLINE:
        return _tell_offline(alert, connection, at)
    return _tell_wait(alert, at)


def _tell_offline(alert: PrinterAlert, connection: PrinterConnection, at: datetime) -> bool:
    if connection.connection_status is ConnectionStatus.connected:
        return False
    code = connection.connection_status.value
    tell(alert, "printer.offline", at=at, text=connection.status_reason or UNREACHABLE, code=code)
    return True


def _tell_wait(alert: PrinterAlert, at: datetime) -> bool:
    print_id, lock = _wait_of(alert.key)
    waiting = db.session.get(ScheduledPrint, print_id, populate_existing=True)
    if waiting is None or not _still_waits(waiting, alert.printer_id):
        return False
    text = _last_refusal(print_id) if lock == UNSENT else waiting.waiting_reason
    tell(alert, "print.needs_person", at=at, text=text or "it waits for somebody", code=lock, of_print=waiting)
    return True


def wait_key(print_id: int, lock: str) -> str:
    """A print that waits for somebody, by what it waits for."""
    return f"{WAIT}{print_id}:{lock}"


def _wait_of(key: str) -> tuple[int, str]:
    _, print_id, lock = key.split(":", 2)
    return int(print_id), lock


def _still_waits(waiting: ScheduledPrint, printer_id: int) -> bool:
    return waiting.printer_id == printer_id and waiting.deleted_at is None and waiting.status in WAITING_STATUSES


def _last_refusal(print_id: int) -> str | None:
    """Why its file or its start could not be sent; while it is tried again the print itself tells how far that is."""
    return db.session.execute(
        sa.select(StartIntent.reason)
        .where(StartIntent.print_id == print_id, StartIntent.reason.is_not(None))
        .order_by(StartIntent.id.desc())
        .limit(1)
    ).scalar()


def needs_person(waiting: ScheduledPrint, lock: str, text: str, *, at: datetime, lasts: bool = False) -> None:
    """A start that goes no further without somebody. Told once for each print and kind of reason, however its words
    change; one of those that `lasts` is told by `tell_lasting` if it does."""
    alert = raise_alert(waiting.user_id, waiting.printer_id, wait_key(waiting.id, lock), at=at)
    if not lasts and may_be_told(alert, at=at):
        tell(alert, "print.needs_person", at=at, text=text, code=lock, of_print=waiting)


# Made once, for it runs with every look at a queue.
WAITS_OF = sa.select(PrinterAlert.key, PrinterAlert.told_at).where(
    PrinterAlert.printer_id == sa.bindparam("printer"),
    PrinterAlert.cleared_at.is_(None),
    PrinterAlert.key.startswith(WAIT),
)


def waits_of(printer_id: int) -> dict[tuple[int, str], bool]:
    """What a printer's prints wait for a person for, as (print, kind of reason), and whether anybody was told."""
    rows = db.session.execute(WAITS_OF, {"printer": printer_id})
    return {_wait_of(key): told_at is not None for key, told_at in rows}


def settle_waits(printer_id: int, settled: Iterable[tuple[int, str]], *, at: datetime) -> None:
    """Somebody settled these, or nobody needs to any more: they can be told anew."""
    for print_id, lock in sorted(settled):
        clear_alert(printer_id, wait_key(print_id, lock), at=at)


def faults_of(printer_id: int) -> list[str]:
    """The keys of the faults that are raised."""
    of_kind = sa.or_(PrinterAlert.key.startswith(HEALTH), PrinterAlert.key.startswith(ERROR))
    raised = sa.select(PrinterAlert.key).where(
        PrinterAlert.printer_id == printer_id, PrinterAlert.cleared_at.is_(None), of_kind
    )
    return list(db.session.execute(raised).scalars())


def _find(printer_id: int, key: str) -> PrinterAlert | None:
    return db.session.execute(
        sa.select(PrinterAlert)
        .where(PrinterAlert.printer_id == printer_id, PrinterAlert.key == key)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()
