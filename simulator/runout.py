"""A spool runs empty: when, what the printer says of it, and which other spool of the AMS takes over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.plate_reader import SlicedFilament
from simulator.printer_models import AmsKind
from simulator.run import Phase, Run
from simulator.spools import Address

if TYPE_CHECKING:
    from simulator.machine import Machine

SLOT_EMPTY = 0x8011
CHANGE_SECONDS = 60.0
_A_TRACE = 1e-6


def seconds_to_runout(machine: Machine, run: Run) -> float:
    """Until the first of the print's spools is empty, were nothing to change; infinite while it does not print."""
    if run.phase is not Phase.PRINTING or run.paused or run.change_seconds_left > 0:
        return float("inf")
    return min(
        (_seconds_left(machine, run, filament) for filament in run.request.plate.filaments), default=float("inf")
    )


def _seconds_left(machine: Machine, run: Run, filament: SlicedFilament) -> float:
    spool = machine.spool_at(run.feeds.get(filament.id))
    if spool is None or filament.grams <= 0:
        return float("inf")
    return spool.grams_left / filament.grams * run.print_seconds / machine.speed_factor


def run_out(machine: Machine, run: Run) -> None:
    """The print goes on from a backup slot where there is one and the option is on; else it pauses and says why."""
    for filament in run.request.plate.filaments:
        if _seconds_left(machine, run, filament) > _A_TRACE:
            continue
        address = run.feeds[filament.id]
        backup = _backup_of(machine, address)
        if backup is None:
            machine.pause_with(slot_error(machine, address, SLOT_EMPTY), stage=6)
            return
        run.feeds[filament.id] = backup
        run.change_seconds_left = CHANGE_SECONDS
        machine.filament_change_until = machine.now + CHANGE_SECONDS


def _backup_of(machine: Machine, empty: Address) -> Address | None:
    """Another AMS slot for the same nozzle with the same filament in the same colour."""
    unit, gone = machine.unit(empty[0]), machine.spool_at(empty)
    if unit is None or gone is None or not machine.options["auto_switch_filament"]:
        return None
    for other in machine.units:
        for slot, spool in enumerate(other.spools):
            if spool is None or spool is gone or other.extruder != unit.extruder or spool.grams_left <= _A_TRACE:
                continue
            if (spool.material, spool.color, spool.filament_id) == (gone.material, gone.color, gone.filament_id):
                return (other.id, slot)
    return None


def slot_error(machine: Machine, address: Address, low: int) -> int:
    """The `print_error` of one AMS: 07UU-, Lite 12UU-, HT 18UU- with UU the unit, external 07FF-."""
    unit = machine.unit(address[0])
    if unit is None:
        return 0x07FF << 16 | low
    family = {AmsKind.LITE: 0x12, AmsKind.HT: 0x18}.get(unit.kind, 0x07)
    return (family << 8 | unit.id & 0x0F) << 16 | low
