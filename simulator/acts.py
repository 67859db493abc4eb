"""What each command does to a simulated printer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from simulator.aftermath import leave_file
from simulator.printer_models import AmsKind
from simulator.records import NotReadyError, StartRecord
from simulator.runout import SLOT_EMPTY, slot_error
from simulator.spools import Spool
from simulator.starting import BUSY, RefusedStartError, path_of, read_request

if TYPE_CHECKING:
    from simulator.machine import Machine


@dataclass
class Outcome:
    """What becomes of a command: done, refused with a reason and perhaps a code, or no answer at all."""

    done: bool = True
    reason: str = ""
    err_code: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


SILENCE = Outcome(done=False, reason="no answer")
Act = Callable[["Machine", dict[str, Any], "datetime | None"], Outcome]


def refused(reason: str, err_code: int = 0) -> Outcome:
    return Outcome(done=False, reason=reason, err_code=err_code)


def disobey(machine: Machine, command: str) -> Outcome | None:
    """What the printer's faults make of a command; None: nothing, it is obeyed."""
    faults = machine.faults
    if command in faults.ignore_commands:
        return SILENCE
    if command in faults.refuse_commands:
        return refused(faults.refuse_commands[command])
    return Outcome() if command in faults.feign_commands else None


def record_start(
    machine: Machine, body: dict[str, Any], heard_at: datetime | None, verdict: str, error: int = 0
) -> None:
    machine.starts.append(
        StartRecord(
            machine.now,
            heard_at,
            str(body.get("subtask_id", "")),
            str(body.get("url", "")),
            str(body.get("param", "")),
            verdict,
            error,
        )
    )


def _pause(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    return _button(machine.pause)


def _resume(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    return _button(machine.resume)


def _stop(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    return _button(machine.stop)


def _button(press: Callable[[], None]) -> Outcome:
    # No capture shows a refusal here: acknowledged without effect, so a client has to look at the state.
    with contextlib.suppress(NotReadyError):
        press()
    return Outcome()


def _print_speed(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    if body["param"] not in ("1", "2", "3", "4"):
        return refused("invalid speed level")
    machine.speed_level = int(body["param"])
    return Outcome()


def _gcode_line(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    heaters = {"M104": machine.nozzle, "M109": machine.nozzle, "M140": machine.bed, "M190": machine.bed}
    if machine.model.chamber_heater:
        heaters["M141"] = machine.chamber
    for line in body["param"].splitlines():
        found = re.match(r"\s*([GM]\d+)(?:.*?\bS(\d+(?:\.\d+)?))?", line)
        if found is None:
            continue
        code, value = found.groups()
        if code == "G28":
            machine.homed = True
        elif code in heaters and value is not None:
            heaters[code].set_target(float(value), machine.now)
            if code == "M141":
                machine.chamber_target = float(value)
    return Outcome()


def _clean_print_error(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    machine.print_error = 0
    return Outcome()


def _skip_objects(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    objects = body.get("obj_list")
    if not isinstance(objects, list) or not all(isinstance(item, int) for item in objects):
        return refused("invalid obj_list")
    if not machine.busy:
        return refused("not printing")
    machine.skipped = sorted({*machine.skipped, *objects})
    return Outcome()


def _ams_change_filament(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    target = body.get("target")
    if not isinstance(target, int):
        return refused("invalid target")
    address: tuple[int, int] | None = None
    if target in (254, 255):
        address = (255, 0) if target == 254 else None
    elif target >= 128:
        address = (target, 0)
    elif isinstance(body.get("ams_id"), int) and isinstance(body.get("slot_id"), int):
        address = (body["ams_id"], body["slot_id"])
    else:
        address = (machine.units[0].id, target) if len(machine.units) == 1 else (target // 4, target % 4)
    if machine.busy and machine.state != "PAUSE":
        return refused("printer is busy", BUSY)
    if address is not None and machine.spool_at(address) is None:
        return refused("no filament in the slot", slot_error(machine, address, SLOT_EMPTY))
    seconds = 40.0
    machine.filament_change_until = machine.now + seconds

    def load() -> None:
        machine.loaded = address

    machine.later(seconds, load)
    return Outcome()


def _ams_filament_setting(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    ams_id, tray_id = body.get("ams_id"), body.get("slot_id", body.get("tray_id"))
    if not isinstance(ams_id, int) or not isinstance(tray_id, int):
        return refused("invalid tray")
    external = ams_id in machine.external
    present = machine.spool_at((ams_id, 0 if external else tray_id))
    if present is None and not external:
        return refused("no filament in the slot")
    if present is not None and present.rfid:
        return refused("filament is read from its tag")
    spool = present or Spool(rfid=False)
    spool.material = str(body.get("tray_type", spool.material))
    spool.color = str(body.get("tray_color", spool.color))
    spool.filament_id = str(body.get("tray_info_idx", spool.filament_id))
    coolest, hottest = body.get("nozzle_temp_min"), body.get("nozzle_temp_max")
    if isinstance(coolest, int) and isinstance(hottest, int):
        spool.nozzle_temps = (coolest, hottest)
    machine.swap_spool(ams_id, 0 if external else tray_id, spool)
    return Outcome()


def _ams_user_setting(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    machine.remain_detection = bool(body.get("calibrate_remain_flag", machine.remain_detection))
    return Outcome()


def _ams_control(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    return _button(machine.resume) if body["param"] == "resume" else Outcome()


def _ams_filament_drying(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    unit = machine.unit(body["ams_id"]) if isinstance(body.get("ams_id"), int) else None
    if unit is None or unit.kind not in (AmsKind.PRO_2, AmsKind.HT):
        return refused("this AMS does not dry")
    hours = body.get("duration", 0)
    unit.dry_minutes = float(hours) * 60 if body.get("mode") and isinstance(hours, int) else 0.0
    return Outcome()


def _print_option(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    for key, value in body.items():
        if key in machine.options and isinstance(value, bool):
            machine.options[key] = value
    return Outcome()


def _acknowledge(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    return Outcome()


def _ledctrl(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    node, mode = body.get("led_node"), body.get("led_mode")
    numbers = ("led_on_time", "led_off_time", "loop_times", "interval_time")
    if not isinstance(node, str) or node not in machine.lights:
        return refused(f"did not find the valid led: {node}")
    if mode not in ("on", "off", "flashing") or not all(isinstance(body.get(key), int) for key in numbers):
        return refused("invalid led parameters")
    machine.lights[node] = mode
    return Outcome()


def _get_access_code(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    return Outcome(extra={"access_code": machine.access_code})


def _reboot(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    machine.reboot_wanted = True
    return SILENCE


def _camera(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    setting = {"ipcam_record_set": "ipcam_record", "ipcam_timelapse": "timelapse"}[body["command"]]
    if body.get("control") not in ("enable", "disable"):
        return refused("invalid control")
    machine.recording[setting] = body["control"]
    return Outcome()


def _xcam_control_set(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    name, enable = body.get("module_name"), body.get("enable", body.get("control"))
    if not isinstance(name, str) or not isinstance(enable, bool):
        return refused("invalid module")
    machine.later(3.0, lambda: machine.xcam.update({name: enable}))
    return Outcome()


def _upgrade_history(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    return Outcome(extra={"firmware_optional": []})


def _project_file(machine: Machine, body: dict[str, Any], heard_at: datetime | None) -> Outcome:
    faults = machine.faults
    with contextlib.suppress(RefusedStartError):
        machine.last_start = (path_of(body.get("url")), body["param"])
    if faults.silent_refusal:
        record_start(machine, body, heard_at, "ignored")
        leave_file(machine)
        return SILENCE
    try:
        if faults.refuse_start is not None:
            raise RefusedStartError(faults.refuse_start, "refused")
        request = read_request(machine, body)
    except RefusedStartError as refusal:
        record_start(machine, body, heard_at, "refused", refusal.code)
        if refusal.code == BUSY and (machine.model.busy_start_cancels or faults.busy_start_cancels):
            machine.stop()
        machine.print_error = refusal.code
        leave_file(machine)
        return refused(refusal.reason, refusal.code)
    record_start(machine, body, heard_at, "accepted")
    machine.accept(request)
    return Outcome()


need_param = {"pause", "resume", "stop", "print_speed", "gcode_line", "project_file", "ams_control"}

acts: dict[tuple[str, str], Act] = {
    ("print", "project_file"): _project_file,
    ("print", "pause"): _pause,
    ("print", "resume"): _resume,
    ("print", "stop"): _stop,
    ("print", "print_speed"): _print_speed,
    ("print", "gcode_line"): _gcode_line,
    ("print", "clean_print_error"): _clean_print_error,
    ("print", "ignore"): _clean_print_error,
    ("print", "idle_ignore"): _clean_print_error,
    ("print", "skip_objects"): _skip_objects,
    ("print", "ams_change_filament"): _ams_change_filament,
    ("print", "ams_filament_setting"): _ams_filament_setting,
    ("print", "ams_user_setting"): _ams_user_setting,
    ("print", "ams_control"): _ams_control,
    ("print", "ams_get_rfid"): _acknowledge,
    ("print", "ams_filament_drying"): _ams_filament_drying,
    ("print", "print_option"): _print_option,
    ("print", "calibration"): _acknowledge,
    ("system", "ledctrl"): _ledctrl,
    ("system", "get_access_code"): _get_access_code,
    ("system", "set_accessories"): _acknowledge,
    ("system", "reboot"): _reboot,
    ("camera", "ipcam_record_set"): _camera,
    ("camera", "ipcam_timelapse"): _camera,
    ("xcam", "xcam_control_set"): _xcam_control_set,
    ("upgrade", "get_history"): _upgrade_history,
}
