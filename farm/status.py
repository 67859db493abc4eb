"""A printer's state as the API shows it, and what of it is kept in the database."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from bambu.errors import Fault, Severity
from bambu_report import UNKNOWN, Nozzle, PrinterActivity, PrinterState, Spool, Storage, Unit
from farm.live import LIVE_FOR, is_live, why_only_watched
from models import ConnectionStatus, PrinterConnection, slot_of

SHOWN = (
    *("state", "progress_percent", "remaining_minutes", "layers_printed", "total_layers", "nozzle_temp"),
    *("nozzle_target", "bed_temp", "bed_target", "chamber_temp", "errors", "job_name", "current_print_id"),
    *("materials", "can_control"),
)


def snapshot_of(state: PrinterState, *, current_print_id: int | None, print_name: str | None = None) -> dict[str, Any]:
    """PrinterStatus' fields (contract §5) as JSON; unknown is None, never 0."""
    return {
        "state": state.state.value,
        "stage": state.stage,
        "progress_percent": state.progress_percent,
        "remaining_minutes": state.remaining_minutes,
        "layers_printed": state.layers_printed,
        "total_layers": state.total_layers,
        "nozzle_temp": state.nozzle_temp,
        "nozzle_target": state.nozzle_target,
        "bed_temp": state.bed_temp,
        "bed_target": state.bed_target,
        "chamber_temp": state.chamber_temp,
        "errors": [
            {"code": fault.code, "severity": str(fault.severity), "message": fault.message} for fault in state.faults
        ]
        or None,
        # On the wire a print of ours has a name of ours, which says nothing to a person.
        "job_name": print_name or state.job_name,
        "current_print_id": current_print_id,
        "materials": [_spool(spool) for spool in state.spools if spool.loaded] if state.known else None,
        "can_control": state.developer_mode,
        "ams": [_unit(unit) for unit in state.units] if state.known else None,
        # Not shown, but the interlocks ask for it in processes without a link.
        "nozzles": [nozzle.diameter_mm for nozzle in state.nozzles],
        "storage": state.storage.value if state.storage is not None else None,
    }


def status_of(connection: PrinterConnection, *, now: datetime) -> dict[str, Any]:
    """PrinterStatus (contract §5): what the printer last reported, and whether that still counts."""
    live = is_live(connection, now)
    status, reason = connection.connection_status, connection.status_reason
    if status is ConnectionStatus.connected and not live:
        status, reason = ConnectionStatus.offline, f"Nothing heard for {LIVE_FOR.seconds} seconds."
    elif status is not ConnectionStatus.connected and reason is None:
        reason = "No connection has been made yet."
    snapshot = connection.snapshot or {}
    shown = {name: snapshot.get(name) for name in SHOWN}
    if why_only_watched(connection):
        shown["can_control"] = False
    if not live:
        shown["state"] = "unknown"
    return {
        "printer_id": connection.printer_id,
        "printer_name": connection.printer.name,
        "connection_type": connection.connection_type,
        "connection_status": status,
        "reason": reason,
        **shown,
        "state": shown["state"] or "unknown",
        "last_updated": connection.heard_at,
        "stale": not live,
    }


def state_from_snapshot(snapshot: dict[str, Any] | None) -> PrinterState:
    """What the database keeps of a printer's state, as far as interlocks ask for it: for processes without a link."""
    if not snapshot:
        return UNKNOWN
    spools = tuple(
        Spool(
            ams_id=each["ams_id"],
            tray_id=each["tray_id"],
            slot=each["slot"],
            loaded=True,
            material_type=each["material_type"],
        )
        for each in snapshot.get("materials") or ()
    )
    state = PrinterActivity(snapshot.get("state") or PrinterActivity.unknown)
    storage = snapshot.get("storage")
    return PrinterState(
        known=state is not PrinterActivity.unknown,
        state=state,
        spools=spools,
        developer_mode=snapshot.get("can_control"),
        nozzles=tuple(Nozzle(number, each, None) for number, each in enumerate(snapshot.get("nozzles") or ())),
        storage=Storage(storage) if storage else None,
        faults=tuple(
            Fault(each["code"], Severity(each["severity"]), each["message"], None)
            for each in snapshot.get("errors") or ()
        ),
    )


def _unit(unit: Unit) -> dict[str, Any]:
    """What advice on drying goes by (`farm.filament_advice`)."""
    return {
        "ams_id": unit.ams_id,
        "kind": unit.kind,
        "humidity_percent": unit.humidity_percent,
        "humidity_level": unit.humidity_level,
        "temperature_c": unit.temperature,
        "drying_minutes": unit.drying_minutes,
    }


def _spool(spool: Spool) -> dict[str, Any]:
    return {
        "slot": slot_of(spool.ams_id, spool.tray_id),
        "ams_id": spool.ams_id,
        "tray_id": spool.tray_id,
        "material_type": spool.material_type,
        "color": spool.color,
        "remaining_pct": spool.remaining_pct,
    }
