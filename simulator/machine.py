"""A printer as a pure model: time goes in, commands go in, reports come out. No thread, no clock, no socket.

Two machines made alike and advanced alike give identical reports, however the time was cut into steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from random import Random
from typing import Any, BinaryIO

from simulator import commands, reports
from simulator.aftermath import after_power_cut, leave_file
from simulator.faults import Faults, is_report
from simulator.heater import Heater
from simulator.outbox import Outbox
from simulator.plate_reader import SlicedFilament, SlicedPlate, UnreadableFileError
from simulator.printer_models import PrinterModel, find_model
from simulator.records import CommandRecord, NotReadyError, StartRecord
from simulator.replay import Replay, laid_over
from simulator.run import Phase, PrintRequest, Run
from simulator.runout import run_out, seconds_to_runout
from simulator.spools import Address, AmsUnit, Spool, default_spools, fill_units, flat_tray
from simulator.starting import card_request, request_from_card

CANCELLED = 0x0300400C
speed_percents = {1: 50, 2: 100, 3: 124, 4: 166}
_JUST_NOW = 1e-6


def no_files(path: str) -> BinaryIO:
    """The storage of a printer without one. Raises FileNotFoundError."""
    raise FileNotFoundError(path)


class Machine:
    """One printer.

    `open_file` opens a path relative to the printer's storage and raises FileNotFoundError; `spools` fills AMS units of
    the model's own kind, four to a unit (`[]` = no AMS), unless `units` says which units there are; `external` is the
    spool at the back. `boot_epoch_seconds` is what the printer's own clock says at power-on.
    """

    def __init__(
        self,
        serial: str,
        model: str = "P1S",
        *,
        name: str | None = None,
        access_code: str = "12345678",
        seed: int = 0,
        spools: Sequence[Spool | None] | None = None,
        units: Sequence[AmsUnit] | None = None,
        external: Spool | None = None,
        developer_mode: bool = True,
        nozzle_diameter: str = "0.4",
        open_file: Callable[[str], BinaryIO] = no_files,
        faults: Faults | None = None,
        boot_epoch_seconds: int = 1_767_225_600,
    ) -> None:
        self.serial = serial
        self.model: PrinterModel = find_model(model)
        self.name = name or f"{self.model.name} {serial[-4:]}"
        self.access_code = access_code
        self.seed = seed
        self.developer_mode = developer_mode
        self.nozzle_diameter = nozzle_diameter
        self.open_file = open_file
        self.faults = faults or Faults()
        self.boot_epoch_seconds = boot_epoch_seconds
        self.chance = Random(f"{serial}/{seed}")
        self.faults.chance = Random(f"{serial}/{seed}/faults")
        if units is None:
            units = fill_units(self.model, default_spools() if spools is None else spools)
        self.units = list(units)
        self.external: dict[int, Spool | None] = {255: external, 254: None}
        for spool in [spool for unit in self.units for spool in unit.spools] + [external]:
            if spool is not None:
                spool.name_tag(self.chance)
        self.last_start: tuple[str, str] | None = None
        """Path and plate of the file last asked for."""
        self.starts: list[StartRecord] = []
        self.commands: list[CommandRecord] = []
        self.sent_count = self.chance.randrange(100, 60000)
        self.now = 0.0
        self.storage = "normal"
        self.door_open = False
        self.remain_detection = True
        self.options = {
            "auto_recovery": True,
            "sound_enable": True,
            "auto_switch_filament": True,
            "filament_tangle_detect": False,
        }
        self.lights = dict.fromkeys(self.model.lights, "on")
        self.recording = {"ipcam_record": "enable", "timelapse": "disable"}
        self.xcam: dict[str, Any] = {}
        self.hms: list[tuple[int, int]] = []
        self.hms_changed_at = 0.0
        self._boot()

    def _boot(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._due_count = 0
        self.outbox = Outbox(self.faults, self.later, lambda: self.now)
        self._replayed: dict[str, Any] | None = None
        self.tags_read_at: dict[Address, float] = {}
        self.run: Run | None = None
        self.request: PrintRequest | None = None
        self.state = "IDLE"
        self.percent = 0
        self.layer = 0
        self.total_layers = 0
        self.remaining_minutes = 0
        self.subtask_name = ""
        self.gcode_file = ""
        self.ids = {"subtask_id": "0", "task_id": "0", "project_id": "0", "profile_id": "0"}
        self.print_type = "idle" if self.model.classic else ""
        self.idle_stage = 0 if self.model.classic else -1
        self.print_error = 0
        self.late_error = 0
        self.skipped: list[int] = []
        self.homed = False
        self.loaded: Address | None = None
        self.filament_change_until = 0.0
        self.speed_level = 2
        self.nozzle = Heater(120.0, _since=self.now)
        self.bed = Heater(400.0, _since=self.now)
        self.chamber = Heater(600.0, _since=self.now)
        self.chamber_target = 0.0
        self.reboot_wanted = False
        self._reported = reports.build(self)

    @property
    def speed_factor(self) -> float:
        return speed_percents[self.speed_level] / 100

    @property
    def busy(self) -> bool:
        """A print is under way, or has been accepted and not yet begun."""
        return self.run is not None

    def seconds_to_next_event(self) -> float:
        """Simulated seconds until something changes by itself; infinite when nothing will."""
        soonest = self._due[0][0] - self.now if self._due else float("inf")
        if self.run is not None:
            soonest = min(soonest, self.run.seconds_to_boundary(self.speed_factor), seconds_to_runout(self, self.run))
        return max(soonest, 0.0)

    def advance(self, seconds: float) -> None:
        """Lets simulated time pass."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        end = self.now + seconds
        self._settle()
        while self.now < end:
            # What is left of a change may be less than the clock can show: it has to pass all the same.
            self._flow(min(max(self.seconds_to_next_event(), _JUST_NOW), end - self.now))
            self._settle()
        self.now = end

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Does `action` after so much simulated time, unless the power goes before."""
        self._due_count += 1
        heapq.heappush(self._due, (self.now + seconds, self._due_count, action))

    def _flow(self, seconds: float) -> None:
        self.now += seconds
        for unit in self.units:
            unit.dry_minutes = max(0.0, unit.dry_minutes - seconds / 60)
        run = self.run
        if run is None or run.paused or run.phase is Phase.ACCEPTED:
            return
        if run.phase is Phase.WARMING:
            run.warmed_seconds += seconds
        elif run.change_seconds_left > 0:
            run.change_seconds_left = max(0.0, run.change_seconds_left - seconds)
        else:
            printed = seconds * self.speed_factor
            run.printed_seconds += printed
            for filament in run.request.plate.filaments:
                spool = self.spool_at(run.feeds.get(filament.id))
                if spool is not None:
                    spool.grams_left -= filament.grams * printed / run.print_seconds
        self._show_progress(run)

    def _settle(self) -> None:
        while self._due and self._due[0][0] <= self.now + _JUST_NOW:
            heapq.heappop(self._due)[2]()
        run = self.run
        if run is None or run.paused or run.phase is Phase.ACCEPTED:
            return
        if run.phase is Phase.WARMING and run.warmed_seconds >= run.warm_up_seconds - _JUST_NOW:
            run.phase = Phase.PRINTING
            self.state = "RUNNING"
            self._show_progress(run)
        elif run.phase is Phase.PRINTING and run.printed_seconds >= run.print_seconds - _JUST_NOW:
            self.finish_now()
        elif seconds_to_runout(self, run) <= _JUST_NOW:
            run_out(self, run)

    def _show_progress(self, run: Run) -> None:
        self.percent = min(99, int(100 * run.fraction + _JUST_NOW))
        self.layer = run.layer
        self.remaining_minutes = int(run.seconds_left(self.speed_factor) / 60)
        self.loaded = run.active_slot

    def unit(self, ams_id: int) -> AmsUnit | None:
        return next((unit for unit in self.units if unit.id == ams_id), None)

    def spool_at(self, address: Address | None) -> Spool | None:
        if address is None:
            return None
        ams_id, slot = address
        if ams_id in self.external:
            return self.external[ams_id]
        unit = self.unit(ams_id)
        return unit.spools[slot] if unit is not None and 0 <= slot < len(unit.spools) else None

    def shown_file(self, file_name: str, plate_number: int) -> str:
        """What `gcode_file` reports: the 3mf's name on P1 and A1, a path in memory on the others."""
        return file_name if self.model.classic else f"/data/Metadata/plate_{plate_number}.gcode"

    def swap_spool(self, ams_id: int, tray_id: int, spool: Spool | None) -> None:
        """A person puts another spool in, or takes one out (None). External: `ams_id` 255, left of two 254.

        Raises ValueError if there is no such slot.
        """
        if spool is not None:
            spool.name_tag(self.chance)
        if ams_id in self.external:
            self.external[ams_id] = spool
            return
        unit = self.unit(ams_id)
        if unit is None or not 0 <= tray_id < len(unit.spools):
            raise ValueError(f"no slot {tray_id} in AMS {ams_id}")
        unit.spools[tray_id] = spool
        self.tags_read_at[ams_id, tray_id] = self.now + self.faults.tag_reading_seconds

    def reads_tag_of(self, address: Address) -> bool:
        """A spool was put in there and the printer does not know yet which."""
        return self.spool_at(address) is not None and self.now < self.tags_read_at.get(address, 0.0)

    @property
    def tray_now(self) -> int:
        return 255 if self.loaded is None else flat_tray(self.loaded)

    def accept(self, request: PrintRequest) -> None:
        """Takes on a print; the old state stays for the model's lag."""
        run = Run(request)
        self._take_on(run)
        if self.faults.accept_and_never_start:
            return
        lag = self.model.start_lag_seconds + self.faults.lag_finish_seconds
        if self.faults.refuse_after_ack is not None:
            code = self.faults.refuse_after_ack
            self.later(lag, lambda: self._refuse_late(run, code))
        else:
            self.later(lag, lambda: self._begin(run))

    def _take_on(self, run: Run) -> None:
        request = run.request
        self.run = run
        self.request = request
        self.subtask_name = request.subtask_name
        self.ids = {
            "subtask_id": request.subtask_id,
            "task_id": request.task_id,
            "project_id": request.project_id,
            "profile_id": request.profile_id,
        }
        self.print_error = self.late_error = 0

    def _refuse_late(self, run: Run, code: int) -> None:
        if self.run is run:
            self.run = None
            self.print_error = code
            leave_file(self)

    def _begin(self, run: Run) -> None:
        if self.run is not run:
            return
        request = run.request
        run.phase = Phase.WARMING
        self.state = self.model.warms_up_as
        self.total_layers = request.plate.layers
        self.gcode_file = request.gcode_file
        self.print_type = request.print_type
        self.skipped = []
        self.homed = True
        self.percent = 0
        self.remaining_minutes = int(run.seconds_left(self.speed_factor) / 60)
        self.bed.set_target(request.plate.bed_temperature, self.now, run.warm_up_seconds * 0.6)
        self.nozzle.set_target(request.plate.nozzle_temperature, self.now, run.warm_up_seconds)
        self.chamber.set_target(38.0, self.now, 1800.0)

    def finish_now(self) -> None:
        """The print under way is done at once. Raises NotReadyError if there is none."""
        run = self._running()
        self.percent = 100
        self.layer = self.total_layers = run.request.plate.layers
        self.remaining_minutes = 0
        self.loaded = None
        self._end("FINISH")

    def stop(self) -> None:
        """Cancels: FAILED at once, the code that tells a cancel from a fault five seconds later.

        Raises NotReadyError.
        """
        self._running()
        self.percent = 0
        self._end("FAILED")
        self.late_error = CANCELLED
        self.later(5.0, self._show_late_error)

    def _show_late_error(self) -> None:
        if self.late_error:
            self.print_error, self.late_error = self.late_error, 0

    def fail(self, code: int) -> None:
        """The printer gives up by itself with this `print_error`. Raises NotReadyError."""
        self._running()
        self._end("FAILED")
        self.print_error = code

    def _running(self) -> Run:
        if self.run is None:
            raise NotReadyError("nothing is printing")
        return self.run

    def _end(self, state: str) -> None:
        self.run = None
        self.state = state
        self.idle_stage = 255 if self.model.classic else -1
        self.print_type = "idle" if self.model.classic else self.print_type
        if not self.model.classic:
            self.remaining_minutes = 0
        for heater in (self.nozzle, self.bed, self.chamber):
            heater.set_target(0.0, self.now)
        self.chamber_target = 0.0
        leave_file(self)

    def pause(self) -> None:
        """Raises NotReadyError unless a print has begun and is not paused."""
        run = self._running()
        if run.phase is Phase.ACCEPTED or run.paused:
            raise NotReadyError("nothing to pause")
        run.paused = True
        run.pause_stage = 16
        self.state = "PAUSE"

    def pause_with(self, code: int, stage: int = 5) -> None:
        """The printer pauses by itself, showing `code` as its `print_error`. Raises NotReadyError."""
        self.pause()
        self._running().pause_stage = stage
        self.print_error = code

    def resume(self) -> None:
        """Raises NotReadyError unless paused."""
        run = self._running()
        if not run.paused:
            raise NotReadyError("not paused")
        run.paused = False
        self.print_error = 0
        self.state = "RUNNING" if run.phase is Phase.PRINTING else self.model.warms_up_as

    def show_hms(self, codes: Sequence[tuple[int, int]]) -> None:
        """Health messages from now on, as (attr, code); they replace those before."""
        self.hms = list(codes)
        self.hms_changed_at = self.now

    @property
    def shown_hms(self) -> list[tuple[int, int]]:
        """With the message that flaps, while it is up."""
        flapping = self.faults.flapping_hms
        is_up = flapping is not None and int(self.now / self.faults.flap_seconds) % 2 == 1
        return [*self.hms, flapping] if flapping is not None and is_up else self.hms

    @property
    def clock_epoch_seconds(self) -> float:
        """What the printer's own clock says."""
        return self.boot_epoch_seconds + self.now + self.faults.clock_off_seconds

    def press_start(self, name: str) -> None:
        """A person starts the file `name` of the storage at the screen, or, if there is none, a half-hour print.

        Raises NotReadyError while a print is under way.
        """
        if self.busy:
            raise NotReadyError("a print is under way")
        try:
            request = request_from_card(self, name)
        except (FileNotFoundError, UnreadableFileError):
            request = card_request(self, name, SlicedPlate(1800.0, 60, (SlicedFilament(1, "PLA", 10.0),)))
        self.accept(request)

    def power_cycle(self) -> None:
        """Off and on again: whatever was printing is gone, and nothing says so."""
        interrupted = self.run
        self._boot()
        after_power_cut(self, interrupted)

    def go_on(self, run: Run) -> None:
        """Takes up a print that was interrupted, from warming up on."""
        self._take_on(run)
        self._begin(run)
        self._show_progress(run)

    def play(self, replay: Replay) -> None:
        """From now on the printer says what was captured and nothing of its own, and obeys nobody, until power-off.

        Whatever it did before is forgotten. A full report that is asked for shows what has been played so far laid
        over the printer's own state.
        """
        self._boot()
        self._replayed = {}
        for event in replay.events:
            self.later(event.at_seconds, partial(self._say_again, event.message))

    def _say_again(self, message: dict[str, Any]) -> None:
        if self._replayed is not None and is_report(message):
            self._replayed = laid_over(self._replayed, message["print"])
        self.outbox.put(message)

    @property
    def is_replaying(self) -> bool:
        return self._replayed is not None

    def handle(self, message: Any, heard_at: datetime | None = None) -> list[dict[str, Any]]:
        """What the printer answers at once to one message of the request topic; what it cannot read it ignores."""
        return self.outbox.let_out(commands.answer(self, message, heard_at))

    def report(self, full: bool) -> dict[str, Any]:
        """A `push_status` message: whole, or what changed since the last one ({} if nothing did)."""
        present = reports.build(self)
        if self._replayed is not None:
            present = laid_over(present, self._replayed)
        earlier, self._reported = self._reported, present
        body = present if full else reports.difference(earlier, present)
        if not body:
            return {}
        self.sent_count += 1
        envelope: dict[str, Any] = {"command": "push_status"}
        if self.model.sends_msg:
            envelope["msg"] = 0 if full else 1
        envelope["sequence_id"] = str(self.sent_count) if self.model.classic else "2021"
        return {"print": {**body, **envelope}}
