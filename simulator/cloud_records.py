"""What the simulated cloud answers of printers and prints, in the shapes of the real one. Never ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

from simulator.machine import Machine

Host = Literal["api", "web"]

CHALLENGE_PAGE = (
    '<!DOCTYPE html><html lang="en-US"><head><title>Just a moment...</title></head><body>'
    '<script src="/cdn-cgi/challenge-platform/h/b/orchestrate/chl_page/v1"></script></body></html>'
)
BLOCK_PAGE = "<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title></head><body></body></html>"

# How the cloud's lists call what a printer reports as its gcode_state.
_STATUS = {"FINISH": "SUCCESS", "FAILED": "FAIL"}


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request as it came in; header names are in lower case."""

    host: Host
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class BoundPrinter(Protocol):
    """A printer as the cloud knows it: what it is, whether it is there, how to ask it something."""

    machine: Machine
    is_online: bool

    def ask(self, message: dict[str, Any]) -> None: ...

    def leave(self) -> None: ...


def listed(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"message": "success", "code": None, "error": None, "devices": list(entries)}


def bound(printer: BoundPrinter) -> dict[str, Any]:
    machine = printer.machine
    return {
        "dev_id": machine.serial,
        "name": machine.name,
        "online": printer.is_online,
        "print_status": _STATUS.get(machine.state, machine.state),
        "dev_model_name": machine.model.slice_ids[0],
        "dev_product_name": machine.model.shown_name,
        "dev_access_code": machine.access_code,
        "nozzle_diameter": float(machine.nozzle_diameter),
        "dev_structure": "CoreXY",
        "print_job": None,
    }


def under_way(printer: BoundPrinter) -> dict[str, Any]:
    machine, run = printer.machine, printer.machine.run
    return {
        "dev_id": machine.serial,
        "dev_name": machine.name,
        "dev_model_name": machine.model.slice_ids[0],
        "dev_product_name": machine.model.shown_name,
        "dev_online": printer.is_online,
        "dev_access_code": machine.access_code,
        "task_id": machine.ids["task_id"] if run else None,
        "task_name": machine.subtask_name if run else None,
        "task_status": machine.state if run else None,
        "progress": machine.percent if run else None,
        "prediction": int(run.request.plate.prediction_seconds) if run else None,
        "start_time": None,
        "thumbnail": None,
    }


def offered(printer: BoundPrinter) -> dict[str, Any]:
    version = printer.machine.model.firmware
    return {
        "dev_id": printer.machine.serial,
        "firmware": [
            {"version": "99.00.00.01", "force_update": False, "url": "", "description": "", "status": "beta"},
            {"version": version, "force_update": False, "url": "", "description": "", "status": "release"},
        ],
        "ams": [],
    }


def past_print(number: int, ended_at: datetime) -> dict[str, Any]:
    """A print that went well and ended at that time."""
    return {
        "id": 300_000_000 + number,
        "title": f"Vase {number}",
        "cover": "",
        "status": 2,
        "startTime": (ended_at - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "endTime": ended_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "weight": 36.2,
        "length": 1214,
        "costTime": 3480,
        "profileId": 0,
        "plateIndex": 1,
        "plateName": "",
        "deviceId": "01P00A000000001",
        "deviceName": "P1S",
        "deviceModel": "C12",
        "amsDetailMapping": [
            {
                "ams": 0,
                "amsId": 0,
                "slotId": 0,
                "nozzleId": 0,
                "filamentId": "GFA00",
                "filamentType": "PLA",
                "sourceColor": "FFFFFFFF",
                "targetColor": "FFFFFFFF",
                "weight": 36.2,
            }
        ],
        "mode": "cloud_file",
        "bedType": "textured_plate",
    }
