"""Hours of printing since somebody last greased and cleaned a printer. Nothing here commits."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa

import notifications
from farm.alerts import MAINTENANCE, may_be_told, raise_alert
from models import Printer, PrinterAlert, PrintEvent, ScheduledPrint, db

SECONDS_PER_HOUR = 3600
PRINTERS = Printer.__table__
ADD_HOURS = (
    sa.update(PRINTERS)
    .where(PRINTERS.c.id == sa.bindparam("printer"))
    .values(hours_since_maintenance=PRINTERS.c.hours_since_maintenance + sa.bindparam("hours"))
    .returning(PRINTERS.c.hours_since_maintenance, PRINTERS.c.maintenance_every_hours)
)


def count_hours(ended: ScheduledPrint, *, at: datetime) -> None:
    """Add the time that a print which just ended ran, whether or not it came to something. One that never began adds
    nothing. Adding up is left to the database, for prints may be recorded from several processes at once."""
    if ended.started_at is None or ended.completed_at is None or ended.completed_at <= ended.started_at:
        return
    hours = Decimal((ended.completed_at - ended.started_at).total_seconds()) / SECONDS_PER_HOUR
    # Past the objects: it changes nothing of what may start, for which a changed printer is looked at.
    counted = db.session.connection().execute(ADD_HOURS, {"printer": ended.printer_id, "hours": hours})
    after, every = counted.one()
    tell_if_due(ended.user_id, ended.printer_id, after, every, at=at)


def tell_if_due(user_id: int, printer_id: int, hours: Decimal, every_hours: int | None, *, at: datetime) -> None:
    """Once, until somebody did it or wants it less often."""
    if every_hours is None or hours < every_hours:
        return
    alert = raise_alert(user_id, printer_id, MAINTENANCE, at=at)
    if not may_be_told(alert, at=at):
        return
    alert.told_at = max(at, alert.raised_at)
    event = PrintEvent(
        user_id=user_id,
        printer_id=printer_id,
        kind="printer.maintenance_due",
        reason=f"it has printed for {hours:.0f} hours since its last maintenance, which is due every {every_hours}",
        details={"maintenance": {"hours": float(hours), "every_hours": every_hours}},
        at=at,
    )
    db.session.add(event)
    notifications.fan_out(event)


def done(printer: Printer, *, at: datetime) -> None:
    """Somebody did it: the hours begin again at 0."""
    printer.hours_since_maintenance, printer.maintenance_done_at = Decimal(0), at
    _forget(printer)


def changed(printer: Printer, *, at: datetime) -> None:
    """A person changed how often it is wanted."""
    every = printer.maintenance_every_hours
    if every is None or printer.hours_since_maintenance < every:
        _forget(printer)
    tell_if_due(printer.user_id, printer.id, printer.hours_since_maintenance, every, at=at)


def _forget(printer: Printer) -> None:
    db.session.execute(
        sa.delete(PrinterAlert).where(PrinterAlert.printer_id == printer.id, PrinterAlert.key == MAINTENANCE)
    )
