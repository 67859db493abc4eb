"""What a printer complains of -> alerts. What comes and goes every few seconds is kept in memory, and asks nothing of
the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from bambu.errors import Fault, Severity
from bambu_report import PrinterActivity, PrinterState
from farm.alerts import ERROR, HEALTH, clear_alert, faults_of, may_be_told, raise_alert, tell
from farm.interlocks import severe_faults
from models import Printer

# A fault that is listed again sooner was never gone.
GONE_FOR = timedelta(minutes=1)

Complaints = dict[str, datetime | None]
"""By the alert's key: None while it is listed, else since when it is not."""


def complaints_of(state: PrinterState) -> dict[str, Fault]:
    """By the alert's key, what somebody should hear of: what holds back starts, and what paused a print."""
    if not state.faults and state.print_error is None:
        return {}
    found = {f"{HEALTH}{fault.code}": fault for fault in severe_faults(state)}
    code = state.print_error
    if code is not None and state.state is PrinterActivity.paused and not state.cancelled:
        told = next((fault for fault in state.faults if fault.code == code), None)
        found[f"{ERROR}{code}"] = told or Fault(code, Severity.serious, "no explanation", None)
    return found


def note_listed(known: Complaints, state: PrinterState, *, heard_at: datetime) -> bool:
    """Keep in memory which of the known complaints a report lists. True if it lists one that is not known."""
    listed = complaints_of(state)
    for key, gone_since in known.items():
        if key in listed:
            known[key] = None
        elif gone_since is None:
            known[key] = heard_at
    return not known.keys() >= listed.keys()


def raise_faults(printer: Printer, state: PrinterState, known: Complaints | None, *, at: datetime) -> Complaints:
    """Tell each complaint that is new, and return what is known now. Without `known` it is read what was raised before:
    after a restart nothing is told again. The caller commits, and only then takes over what is returned."""
    listed = complaints_of(state)
    after: Complaints = dict.fromkeys(faults_of(printer.id), at) if known is None else dict(known)
    for key, fault in listed.items():
        if key not in after:
            alert = raise_alert(printer.user_id, printer.id, key, at=at)
            if may_be_told(alert, at=at):
                tell(alert, "printer.fault", at=at, text=fault.message, code=fault.code)
        after[key] = None
    return after


def over(known: Mapping[str, datetime | None], *, now: datetime) -> list[str]:
    """Those that have not been listed for long enough, or since a time that has yet to come."""
    return [key for key, since in known.items() if since is not None and abs(now - since) >= GONE_FOR]


def clear_faults(printer_id: int, keys: Iterable[str], *, at: datetime) -> None:
    """They are over; that is told when they have not come back. The caller commits."""
    for key in keys:
        clear_alert(printer_id, key, at=at)
