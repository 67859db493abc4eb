"""A machine's state in the words of its model: the whole `push_status` object, and what differs between two of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from simulator.report_parts import DOOR_BIT, STORAGE_BITS, is_active, nozzle_celsius, prepare_percent
from simulator.reports_modern import modern_keys
from simulator.run import Phase
from simulator.spools import external_report, unit_report

if TYPE_CHECKING:
    from simulator.machine import Machine

_stage_words = {"PREPARE": "2", "RUNNING": "2", "PAUSE": "3"}
# Fans go from "0" to "15".
_FAN_FULL = "15"


def build(machine: Machine) -> dict[str, Any]:
    """Every field the model reports, without the envelope (`command`, `msg`, `sequence_id`)."""
    report = _common(machine)
    report.update(_classic(machine) if machine.model.classic else modern_keys(machine))
    return report


def difference(earlier: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    """What a delta carries: changed keys; of `ams` the units and trays that changed, of `device` the changed leaves."""
    changed = {key: value for key, value in present.items() if key not in earlier or earlier[key] != value}
    if "ams" in changed and "ams" in earlier:
        changed["ams"] = _ams_difference(earlier["ams"], present["ams"])
    if "device" in changed and "device" in earlier:
        changed["device"] = _changed_leaves(earlier["device"], present["device"])
    return changed


def _changed_leaves(earlier: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in present.items():
        before = earlier.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := _changed_leaves(before, value):
                changed[key] = inner
        elif before != value:
            changed[key] = value
    return changed


def _ams_difference(earlier: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in present.items() if key != "ams" and earlier.get(key) != value}
    known = {unit["id"]: unit for unit in earlier["ams"]}
    units = [_unit_difference(known[unit["id"]], unit) for unit in present["ams"] if unit != known[unit["id"]]]
    return {"ams": units, **changed} if units else changed


def _unit_difference(earlier: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in present.items() if key == "id" or value != earlier.get(key)}
    if "tray" in changed:
        pairs = zip(earlier["tray"], present["tray"], strict=True)
        changed["tray"] = [tray for before, tray in pairs if tray != before]
    return changed


def _common(machine: Machine) -> dict[str, Any]:
    model, run = machine.model, machine.run
    printing = run is not None and run.phase is Phase.PRINTING and not run.paused
    # With two nozzles the flat fields show the left one, whichever prints (captures of H2D and X2D).
    flat_nozzle = nozzle_celsius(machine, model.nozzles - 1)
    return {
        "nozzle_temper": _celsius(machine, flat_nozzle[0]),
        "nozzle_target_temper": _target(machine, flat_nozzle[1]),
        "bed_temper": _celsius(machine, machine.bed.celsius(machine.now)),
        "bed_target_temper": _target(machine, machine.bed.target),
        "mc_print_stage": _stage_words.get(machine.state, "1"),
        "mc_print_sub_stage": 0,
        "heatbreak_fan_speed": _FAN_FULL if is_active(machine) else "0",
        "cooling_fan_speed": "10" if printing and machine.layer > 1 else "0",
        "big_fan1_speed": "0",
        "big_fan2_speed": "0",
        "fan_gear": 0,
        "mc_percent": machine.percent,
        "mc_remaining_time": machine.remaining_minutes,
        "ams_status": _ams_status(machine),
        "ams_rfid_status": 0,
        "hw_switch_state": 0 if machine.loaded is None else 1,
        "spd_mag": round(machine.speed_factor * 100),
        "spd_lvl": machine.speed_level,
        "print_error": machine.print_error,
        "wifi_signal": f"-{48 + _jitter(machine, 60, 5)}dBm",
        "gcode_state": machine.state,
        "gcode_file_prepare_percent": prepare_percent(machine),
        "queue_number": 0,
        "queue_total": 0,
        "queue_est": 0,
        "queue_sts": 0,
        **machine.ids,
        "subtask_name": machine.subtask_name,
        "gcode_file": machine.gcode_file,
        "stg": list(run.stages) if run is not None and is_active(machine) else [],
        "stg_cur": run.stage if run is not None and is_active(machine) else machine.idle_stage,
        "print_type": machine.print_type,
        "home_flag": _home_flag(machine),
        "sdcard": machine.storage != "none",
        "force_upgrade": False,
        "layer_num": machine.layer,
        "total_layer_num": machine.total_layers,
        "s_obj": list(machine.skipped),
        "nozzle_diameter": machine.nozzle_diameter,
        "nozzle_type": model.nozzle_type,
        "cali_version": 0,
        "hms": _hms(machine),
        "ams": _ams(machine),
        "lights_report": [{"node": node, "mode": mode} for node, mode in machine.lights.items()],
    }


def _classic(machine: Machine) -> dict[str, Any]:
    return {
        "chamber_temper": 5,
        "filam_bak": [],
        "flag3": 15,
        "ipcam": {
            "ipcam_dev": "1",
            **machine.recording,
            "resolution": "1080p",
            "tutk_server": "disable",
            "mode_bits": 3,
        },
        "k": "0.0200",
        "lifecycle": "product",
        "mc_print_line_number": "0",
        "mess_production_state": "active",
        "net": {"conf": 0, "info": [{"ip": 16777343, "mask": 16777215}]},
        "online": {"ahb": False, "rfid": False, "version": 1849067821},
        "upgrade_state": {
            "sequence_id": 0,
            "progress": "",
            "status": "IDLE",
            "consistency_request": False,
            "dis_state": 0,
            "err_code": 0,
            "force_upgrade": False,
            "message": "",
            "module": "",
            "new_version_state": 2,
            "cur_state_code": 0,
            "idx2": 204412160,
            "new_ver_list": [],
        },
        "upload": {"status": "idle", "progress": 0, "message": ""},
        "vt_tray": external_report(machine.model, "254", machine.external[255]),
        **({"xcam": {"buildplate_marker_detector": True, **machine.xcam}} if "xcam" in machine.model.extras else {}),
    }


def _ams(machine: Machine) -> dict[str, Any]:
    exist = reading = 0
    unread: dict[int, list[int]] = {}
    for unit in machine.units:
        unread[unit.id] = [slot for slot in range(len(unit.spools)) if machine.reads_tag_of((unit.id, slot))]
        reading |= sum(1 << (unit.first_bit + slot) for slot in unread[unit.id])
        exist |= sum(1 << (unit.first_bit + slot) for slot, spool in enumerate(unit.spools) if spool is not None)
    read = exist & ~reading
    now = str(machine.tray_now)
    report: dict[str, Any] = {
        "ams": [
            unit_report(machine.model, unit, remain_known=machine.remain_detection, unread=unread[unit.id])
            for unit in machine.units
        ],
        "ams_exist_bits": f"{sum(1 << unit.bit for unit in machine.units):x}",
        "tray_exist_bits": f"{exist:x}",
        "tray_is_bbl_bits": f"{read:x}",
        "tray_tar": now,
        "tray_now": now,
        "tray_pre": now,
        "tray_read_done_bits": f"{read:x}",
        "tray_reading_bits": f"{reading:x}",
        "version": 89,
        "insert_flag": True,
        "power_on_flag": False,
    }
    if not machine.model.classic:
        report |= {"ams_exist_bits_raw": report["ams_exist_bits"], "cali_id": 255, "cali_stat": 0, "unbind_ams_stat": 0}
    return report


def _ams_status(machine: Machine) -> int:
    if machine.now < machine.filament_change_until:
        return 1 << 8
    fed_by_ams = machine.loaded is not None and machine.loaded[0] not in machine.external
    return 768 if is_active(machine) and fed_by_ams else 0


def _home_flag(machine: Machine) -> int:
    flag = 0x30000000 if machine.model.classic else 0xC0000000
    flag |= 7 if machine.homed else 0
    flag |= 1 << 4 if machine.options["auto_recovery"] else 0
    flag |= 1 << 7 if machine.remain_detection else 0
    flag |= STORAGE_BITS[machine.storage] << 8
    flag |= 1 << 10 if machine.options["auto_switch_filament"] else 0
    flag |= 1 << 17 if machine.options["sound_enable"] else 0
    flag |= 1 << 18 | 1 << 19
    flag |= DOOR_BIT if machine.door_open else 0
    flag |= 1 << 20 if machine.options["filament_tangle_detect"] else 0
    return flag - (1 << 32) if flag & 1 << 31 else flag


def _hms(machine: Machine) -> list[dict[str, Any]]:
    if machine.model.classic:
        return [{"attr": attr, "code": code} for attr, code in machine.shown_hms]
    since = machine.boot_epoch_seconds + machine.hms_changed_at + machine.faults.clock_off_seconds
    shown = datetime.fromtimestamp(since, UTC).strftime("%Y%m%d%H%M%S")
    return [{"attr": attr, "code": code, "ts_boot": 33429, "ts_unix": shown} for attr, code in machine.shown_hms]


def _celsius(machine: Machine, value: float) -> float:
    """P1 and A1 report thirty-seconds of a degree and waver a little, the others whole degrees."""
    if not machine.model.classic:
        return float(round(value))
    return round(value * 32 + _jitter(machine, 5, 3) - 1) / 32


def _target(machine: Machine, value: float) -> float | int:
    return int(value) if machine.model.classic else float(value)


def _jitter(machine: Machine, every_seconds: int, span: int) -> int:
    """A small number that changes with time alone, so that the same machine at the same time says the same."""
    step = int(machine.now) // every_seconds
    return ((step * 2654435761 + machine.seed * 40503) >> 7) % span
