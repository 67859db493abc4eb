"""A printer's state as the API shows it, and what of it is kept in the database."""

from __future__ import annotations

from typing import Any

from bambu_report import PrinterState, Spool
from models import slot_of


def snapshot_of(state: PrinterState, *, current_print_id: int | None) -> dict[str, Any]:
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
        "job_name": state.job_name,
        "current_print_id": current_print_id,
        "materials": [_spool(spool) for spool in state.spools if spool.loaded] if state.known else None,
        "can_control": state.developer_mode,
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
