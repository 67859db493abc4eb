"""A Bambu Lab printer as its reports describe it, in plain words."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from bambu.errors import Fault
from bambu.spools import Spool, Unit


class PrinterActivity(StrEnum):
    idle = "idle"
    preparing = "preparing"
    printing = "printing"
    paused = "paused"
    finished = "finished"
    failed = "failed"
    unknown = "unknown"


ACTIVE = frozenset({PrinterActivity.preparing, PrinterActivity.printing, PrinterActivity.paused})


class Storage(StrEnum):
    """The memory card or USB stick."""

    none = "none"
    ok = "ok"
    abnormal = "abnormal"
    read_only = "read_only"


@dataclass(frozen=True, slots=True)
class Nozzle:
    """`nozzle_id` 0 right or only, 1 left; `type` in plain words, such as `hardened steel, high flow`."""

    nozzle_id: int
    diameter_mm: float | None
    type: str | None


@dataclass(frozen=True)
class PrinterState:
    """A printer at one moment; None is "not known". Temperatures in °C, those of the nozzle of the active one.

    Without slots, so that one can be made in one step of the dictionary that the report parser keeps.

    `known`: a full report has come; before that all else but model and firmware is unknown.
    `remaining_minutes`, `stage`: of a print under way; `stage` in plain words.
    `submission_id`: the id a start order carried, as its reports repeat it.
    `cancelled`: the print that ended was stopped by a person. `print_error` alone does not mean that a print stopped.
    `developer_mode`: False when the printer takes commands only from its maker's software; None until it is known.
    `feeding`: (ams_id, tray_id) of the filament in use.
    `model`: a name of bambu.models. `wifi_dbm`: None on a cable.
    `faults_counted`: how many values were unreadable since the first message.
    """

    known: bool = False
    state: PrinterActivity = PrinterActivity.unknown
    stage: str | None = None
    progress_percent: int | None = None
    remaining_minutes: int | None = None
    layers_printed: int | None = None
    total_layers: int | None = None
    nozzle_temp: float | None = None
    nozzle_target: float | None = None
    bed_temp: float | None = None
    bed_target: float | None = None
    chamber_temp: float | None = None
    active_nozzle: int | None = None
    nozzles: tuple[Nozzle, ...] = ()
    speed_level: int | None = None
    storage: Storage | None = None
    door_open: bool | None = None
    developer_mode: bool | None = None
    print_error: str | None = None
    cancelled: bool = False
    faults: tuple[Fault, ...] = ()
    job_name: str | None = None
    submission_id: str | None = None
    file_name: str | None = None
    plate: int | None = None
    units: tuple[Unit, ...] = ()
    spools: tuple[Spool, ...] = ()
    feeding: tuple[int, int] | None = None
    model: str | None = None
    firmware: str | None = None
    wifi_dbm: int | None = None
    faults_counted: int = field(default=0, compare=False)


UNKNOWN = PrinterState()
