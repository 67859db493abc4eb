"""One print on a simulated printer: what was asked for, which slots feed it, how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from simulator.plate_reader import SlicedPlate
from simulator.spools import Address


class Phase(Enum):
    ACCEPTED = auto()
    """Acknowledged; the printer still shows its old state."""
    WARMING = auto()
    PRINTING = auto()


@dataclass(frozen=True)
class PrintRequest:
    """What a start says, whoever gave it. Ids are strings, "0" when nobody gave one.

    `slots` maps the slicer's filament id (1-based) to where the filament comes from.
    """

    plate: SlicedPlate
    subtask_name: str
    gcode_file: str
    subtask_id: str = "0"
    task_id: str = "0"
    project_id: str = "0"
    profile_id: str = "0"
    plate_number: int = 1
    print_type: str = "local"
    slots: dict[int, Address] = field(default_factory=dict)
    mapping: list[int] = field(default_factory=list)
    bed_leveling: bool = True
    flow_cali: bool = False
    vibration_cali: bool = False


# stg_cur of each warm-up step and its share of the time; see the table of stages in the protocol notes.
_PREHEAT, _HOMING, _CLEANING = (2, 4.0), (13, 1.0), (14, 2.0)
_LEVELLING, _VIBRATION, _FLOW = (1, 3.0), (3, 2.0), (8, 2.0)
_CHANGE_STAGE = 4


@dataclass
class Run:
    """A print under way. All times in simulated seconds.

    `feeds` begins as the slots that were asked for and changes when a backup slot takes over.
    """

    request: PrintRequest
    phase: Phase = Phase.ACCEPTED
    paused: bool = False
    pause_stage: int = 16
    warmed_seconds: float = 0.0
    printed_seconds: float = 0.0
    change_seconds_left: float = 0.0

    def __post_init__(self) -> None:
        self.feeds = dict(self.request.slots)
        total = self.request.plate.prediction_seconds
        self.warm_up_seconds = min(240.0, total * 0.2)
        self.print_seconds = total - self.warm_up_seconds
        steps = [_PREHEAT, _HOMING, _CLEANING]
        steps += [_LEVELLING] if self.request.bed_leveling else []
        steps += [_VIBRATION] if self.request.vibration_cali else []
        steps += [_FLOW] if self.request.flow_cali else []
        share = self.warm_up_seconds / sum(weight for _, weight in steps)
        self.stages: list[int] = [stage for stage, _ in steps]
        self.stage_ends: list[float] = []
        end = 0.0
        for _, weight in steps:
            end += weight * share
            self.stage_ends.append(end)

    @property
    def fraction(self) -> float:
        """How much of the plate is printed, 0 to 1."""
        return min(1.0, self.printed_seconds / self.print_seconds)

    @property
    def stage(self) -> int:
        """`stg_cur` while this print is under way."""
        if self.paused:
            return self.pause_stage
        if self.phase is Phase.PRINTING:
            return _CHANGE_STAGE if self.change_seconds_left > 0 else 0
        for stage, end in zip(self.stages, self.stage_ends, strict=True):
            if self.warmed_seconds < end - 1e-6:
                return stage
        return self.stages[-1]

    @property
    def layer(self) -> int:
        if self.phase is not Phase.PRINTING:
            return 0
        return min(self.request.plate.layers, int(self.fraction * self.request.plate.layers) + 1)

    @property
    def active_slot(self) -> Address | None:
        """Where filament comes from at this layer; a print of several filaments changes every layer."""
        used = [self.feeds[key] for key in sorted(self.feeds)]
        return used[self.layer % len(used)] if used else None

    def seconds_left(self, speed_factor: float) -> float:
        printing = (self.print_seconds - self.printed_seconds) / speed_factor
        return self.warm_up_seconds - self.warmed_seconds + self.change_seconds_left + printing

    def seconds_to_boundary(self, speed_factor: float) -> float:
        """Until the present warm-up step, filament change or the whole print ends, were nothing to change."""
        if self.paused or self.phase is Phase.ACCEPTED:
            return float("inf")
        if self.change_seconds_left > 0:
            return self.change_seconds_left
        if self.phase is Phase.PRINTING:
            return (self.print_seconds - self.printed_seconds) / speed_factor
        return next((end for end in self.stage_ends if end > self.warmed_seconds + 1e-6), 0.0) - self.warmed_seconds
