"""What a printer may do by itself after a print or a power cut: go on, or start a file that was left on its card."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from simulator.plate_reader import UnreadableFileError
from simulator.run import Phase, Run
from simulator.starting import request_from_card

if TYPE_CHECKING:
    from simulator.machine import Machine


def after_power_cut(machine: Machine, interrupted: Run | None) -> None:
    """Plans what follows, by the printer's faults; it has just come back IDLE."""
    seconds = machine.faults.recover_after_seconds
    if seconds is not None and interrupted is not None and interrupted.phase is not Phase.ACCEPTED:
        machine.later(seconds, partial(_recover, machine, interrupted))
    else:
        leave_file(machine)


def _recover(machine: Machine, run: Run) -> None:
    if not machine.busy:
        run.phase, run.warmed_seconds, run.paused = Phase.ACCEPTED, 0.0, False
        machine.go_on(run)


def leave_file(machine: Machine) -> None:
    """The file last asked for lies there now, and may start by itself."""
    seconds = machine.faults.left_file_starts_after_seconds
    if seconds is not None and machine.last_start is not None:
        machine.later(seconds, partial(_start_left_file, machine, *machine.last_start))


def _start_left_file(machine: Machine, path: str, param: str) -> None:
    if not machine.busy:
        with contextlib.suppress(FileNotFoundError, UnreadableFileError):
            machine.accept(request_from_card(machine, path, param))
