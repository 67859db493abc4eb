"""What several parts of a report are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.heater import ROOM_CELSIUS
from simulator.run import Phase

if TYPE_CHECKING:
    from simulator.machine import Machine

STORAGE_BITS = {"none": 0, "normal": 1, "abnormal": 2, "read-only": 3}
DOOR_BIT = 1 << 23


def is_active(machine: Machine) -> bool:
    """A print has begun and not ended, paused or not."""
    return machine.run is not None and machine.run.phase is not Phase.ACCEPTED


def nozzle_celsius(machine: Machine, number: int) -> tuple[float, float]:
    """(°C now, target); the nozzle that does not print is cold."""
    if number != active_extruder(machine):
        return ROOM_CELSIUS, 0.0
    return machine.nozzle.celsius(machine.now), machine.nozzle.target


def active_extruder(machine: Machine) -> int:
    if machine.model.nozzles == 1 or machine.loaded is None:
        return 0
    unit = machine.unit(machine.loaded[0])
    return unit.extruder if unit is not None else int(machine.loaded[0] == 254)


def prepare_percent(machine: Machine) -> str:
    run = machine.run
    if run is None or run.phase is Phase.ACCEPTED:
        return "0" if machine.state == "IDLE" else "100"
    return str(min(100, int(run.warmed_seconds / min(5.0, run.warm_up_seconds) * 100)))
