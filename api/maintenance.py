"""A printer's maintenance. `/api/printers/<id>/maintenance-done`."""

from __future__ import annotations

from flask import Response

from api import context
from api.printers import PrinterSchema, answer_printer
from api.reading import Room
from auth import get_mine
from farm import maintenance
from models import Printer, db

blueprint = Room("maintenance", __name__, url_prefix="/api/printers", description="Hours of printing, and greasing")


@blueprint.post("/<id:printer_id>/maintenance-done")
@blueprint.response(200, PrinterSchema)
def finish_maintenance(printer_id: int) -> Response:
    """Say that somebody maintained the printer: its hours begin again at 0."""
    printer = get_mine(Printer, printer_id, for_update=True)
    at = context.now()
    maintenance.done(printer, at=at)
    printer.updated_at = at
    response = answer_printer(printer)
    db.session.commit()
    return response
