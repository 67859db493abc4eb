"""A physical printer's gate: what lies on its plate, and the ids of the starts sent to it. Nothing here commits."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from models import MAX_ID, PlateState, Printer, PrinterConnection, PrinterGate, db

# Ids go on rising even after a database was restored from a backup: the printer may still report an older start's.
IDS_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

# Made once, for these run with every report that tells something new.
_LOCKED = sa.select(PrinterGate).with_for_update().execution_options(populate_existing=True)
LOCKED_GATE = _LOCKED.where(PrinterGate.serial_number == sa.bindparam("serial"))
LOCKED_GATE_OF = _LOCKED.where(
    PrinterGate.serial_number
    == sa.select(PrinterConnection.serial_number)
    .where(PrinterConnection.printer_id == sa.bindparam("printer"))
    .scalar_subquery()
)
PLATE_STATE = (
    sa.select(PrinterGate.plate_state)
    .join(PrinterConnection, PrinterConnection.serial_number == PrinterGate.serial_number)
    .where(PrinterConnection.printer_id == sa.bindparam("printer"))
    .scalar_subquery()
)
"""What lies on a printer's plate as far as anybody knows, without a lock; None without a gate."""


def locked_gate(serial_number: str) -> PrinterGate:
    """A printer's gate, locked until the transaction ends; made when there is none yet."""
    found = db.session.execute(LOCKED_GATE, {"serial": serial_number}).scalar_one_or_none()
    if found is not None:
        return found
    insert = postgresql.insert if db.engine.dialect.name == "postgresql" else sqlite.insert
    db.session.execute(
        insert(PrinterGate)
        .values(serial_number=serial_number, epoch=0, plate_state=PlateState.unknown, last_submission_id=0)
        .on_conflict_do_nothing()
    )
    return db.session.execute(LOCKED_GATE, {"serial": serial_number}).scalar_one()


def gate_of(printer: Printer) -> PrinterGate | None:
    """The locked gate of a printer that has a serial number, else None."""
    found = db.session.execute(LOCKED_GATE_OF, {"printer": printer.id}).scalar_one_or_none()
    if found is not None:
        return found
    connection = printer.connection
    return locked_gate(connection.serial_number) if connection is not None and connection.serial_number else None


def next_submission_id(gate: PrinterGate, now: datetime) -> int:
    """An id that no start of this printer ever had, 1 to 2^31 - 1. The gate is locked."""
    gate.last_submission_id = min(MAX_ID, max(gate.last_submission_id + 1, int((now - IDS_BEGIN).total_seconds())))
    return gate.last_submission_id


def occupy(gate: PrinterGate, print_id: int | None) -> None:
    """Something lies on the plate: parts of a print of ours, or whatever somebody else prints."""
    if gate.plate_state is not PlateState.occupied or gate.plate_print_id != print_id:
        gate.plate_state, gate.plate_print_id = PlateState.occupied, print_id


def clear(gate: PrinterGate) -> None:
    gate.plate_state, gate.plate_print_id = PlateState.clear, None
