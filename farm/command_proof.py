"""What a printer must report before a command of a person's counts as done, and what forbids one from being sent.

A printer's answer proves that it heard. What it proves beyond that depends on the command: most are done only when a
report shows it; where no report can, or where it takes minutes, the answer has to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from bambu_report import ACTIVE, PrinterActivity, PrinterState
from models import CommandKind, PrinterCommand

Arguments = Mapping[str, Any]

# Heating the nozzle, drawing the old filament back and feeding the new one; slow models take more than two minutes.
FILAMENT_CHANGE_TAKES = timedelta(minutes=4)
# In these the filament stands still, so that it may be changed.
AT_REST = frozenset({PrinterActivity.idle, PrinterActivity.finished, PrinterActivity.failed, PrinterActivity.paused})


class Objection(NamedTuple):
    """Why a command must not be sent as things are: a word for a program, a sentence for a person."""

    code: str
    sentence: str


def objection(kind: CommandKind, arguments: Arguments, state: PrinterState) -> Objection | None:
    """What the printer's state says against a command; None: nothing."""
    match kind:
        case CommandKind.speed if state.state not in ACTIVE:
            return Objection(code="not_running", sentence="The printer does not print: there is no speed to set.")
        case CommandKind.clear_error if state.print_error != arguments["code"]:
            return Objection(
                code="another_error", sentence="The printer does not show that error any more. Look again."
            )
        case CommandKind.change_filament if state.state not in AT_REST:
            return Objection(
                code="printer_busy", sentence=f"The printer is {state.state}: its filament cannot be changed now."
            )
    return None


def shows(kind: CommandKind, arguments: Arguments, state: PrinterState) -> bool | None:
    """Whether the printer's reports show what a command asks for; None: they do not say, whatever becomes of it."""
    shown = _SHOWN_BY.get(kind)
    return shown(arguments, state) if shown is not None and state.known else None


def waits_for_report(kind: CommandKind, arguments: Arguments, before: PrinterState) -> bool:
    """Whether a report will tell that it was done, given what they showed before it was sent."""
    return kind in _OF_PRINTS or shows(kind, arguments, before) is False


def came_true(command: PrinterCommand, state: PrinterState) -> bool:
    """Whether a command that was sent is done, as the printer's own report has it."""
    if command.kind not in _OF_PRINTS and command.result is None:
        # Its answer is not in yet. What was so before anybody asked would hide that the printer refuses.
        return False
    return shows(command.kind, command.arguments or {}, state) is True


def answer_will_do(kind: CommandKind) -> bool:
    """Whether whoever asked is told that the printer has accepted, rather than to wait until its reports show it."""
    return kind is CommandKind.change_filament


def _shows_speed(arguments: Arguments, state: PrinterState) -> bool | None:
    return None if state.speed_level is None else state.speed_level == arguments["level"]


def _shows_loaded(arguments: Arguments, state: PrinterState) -> bool:
    place = arguments["place"]
    return state.feeding == (None if place is None else tuple(place))


def _shows_filament(arguments: Arguments, state: PrinterState) -> bool | None:
    place = tuple(arguments["place"])
    spool = next((each for each in state.spools if (each.ams_id, each.tray_id) == place), None)
    if spool is None:
        return None
    if (spool.material_type, spool.color) != (arguments["material_type"], arguments["color"]):
        return False
    # Not every model reports these.
    others = ("vendor_profile", "nozzle_temp_min", "nozzle_temp_max")
    return all(getattr(spool, name) in (None, arguments[name]) for name in others)


_OF_PRINTS = frozenset({CommandKind.pause, CommandKind.resume, CommandKind.stop})
_SHOWN_BY: dict[CommandKind, Callable[[Arguments, PrinterState], bool | None]] = {
    CommandKind.pause: lambda arguments, state: state.state is PrinterActivity.paused,
    CommandKind.resume: lambda arguments, state: state.state in (PrinterActivity.printing, PrinterActivity.preparing),
    CommandKind.stop: lambda arguments, state: state.state not in ACTIVE,
    CommandKind.speed: _shows_speed,
    CommandKind.clear_error: lambda arguments, state: state.print_error != arguments["code"],
    CommandKind.change_filament: _shows_loaded,
    CommandKind.set_filament: _shows_filament,
}
