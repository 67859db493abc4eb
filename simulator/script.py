"""A script of misbehaviour: what goes wrong with one printer, and when, in the printer's own time."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from simulator.faults import Faults, StorageFaults
from simulator.machine import Machine
from simulator.records import NotReadyError

Act = Callable[[Machine, list[Any]], None]

_SETTINGS = {entry.name for entry in fields(Faults)} - {"storage", "chance", "reach_link"}
_OF_STORAGE = {entry.name for entry in fields(StorageFaults)}
_ACTS: dict[str, Act] = {
    name: lambda machine, arguments, name=name: getattr(machine.faults, name)(*arguments)  # type: ignore[misc]
    for name in ("abandon_connections", "babble", "break_off", "drop_connection", "open_door", "shut_door")
} | {
    name: lambda machine, arguments, name=name: getattr(machine, name)(*arguments)  # type: ignore[misc]
    for name in ("fail", "finish_now", "pause", "pause_with", "press_start", "resume", "stop")
}
RESTART = "restart"


@dataclass(frozen=True)
class Step:
    """From `at_seconds` on, simulated ones since the script began: `settings` of the faults, then one act, `do`.

    Acts: `restart`, the acts of Faults and the buttons of Machine, by their names; a button that does nothing in the
    printer's present state does nothing. Settings of the storage go by `storage.` and their names.
    """

    at_seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    do: str | None = None
    arguments: Sequence[Any] = ()

    def __post_init__(self) -> None:
        """Raises ValueError, saying what is wrong."""
        if not 0 <= self.at_seconds < math.inf:
            raise ValueError(f"{self.at_seconds!r} is no time")
        for name in self.settings:
            if name not in _SETTINGS and not (name.startswith("storage.") and name[8:] in _OF_STORAGE):
                raise ValueError(f"there is no fault {name!r}")
        if self.do is not None and self.do != RESTART and self.do not in _ACTS:
            raise ValueError(f"there is no act {self.do!r}")

    def play(self, machine: Machine) -> None:
        """All of it but a restart, which is more than the machine's."""
        for name, value in self.settings.items():
            value = tuple(value) if isinstance(value, list) else value
            if name.startswith("storage."):
                setattr(machine.faults.storage, name[8:], value)
            else:
                setattr(machine.faults, name, value)
        if self.do is not None and self.do != RESTART:
            with contextlib.suppress(NotReadyError):
                _ACTS[self.do](machine, list(self.arguments))


@dataclass(frozen=True)
class Script:
    """Steps in the order of their times."""

    steps: tuple[Step, ...]

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Self:
        return cls(tuple(sorted(steps, key=lambda step: step.at_seconds)))

    @classmethod
    def read(cls, path: Path) -> Self:
        """From JSON: `[{"at": 60, "set": {"mute": true}}, {"at": 90, "do": "fail", "with": [50348044]}, …]`.

        Raises OSError, and ValueError saying what is wrong with the file.
        """
        whole = json.loads(path.read_text())
        if not isinstance(whole, list):
            raise ValueError("there is no list of steps")
        return cls.of([_step(entry) for entry in whole])


def _step(entry: Any) -> Step:
    if not isinstance(entry, dict) or not entry.keys() <= {"at", "set", "do", "with"}:
        raise ValueError(f"{entry!r} is no step")
    at, settings, arguments = entry.get("at"), entry.get("set", {}), entry.get("with", [])
    if not isinstance(at, int | float) or not isinstance(settings, dict) or not isinstance(arguments, list):
        raise ValueError(f"{entry!r} is no step")
    return Step(float(at), settings, entry.get("do"), arguments)
