"""The keys of X1, P2S, H2, X2D and A2L that P1 and A1 do not send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator.report_parts import DOOR_BIT, STORAGE_BITS, active_extruder, is_active, nozzle_celsius, prepare_percent
from simulator.spools import external_report, packed_address

if TYPE_CHECKING:
    from simulator.machine import Machine


def modern_keys(machine: Machine) -> dict[str, Any]:
    model, run = machine.model, machine.run
    active = is_active(machine)
    number = machine.request.plate_number if machine.request is not None else 1
    path = machine.gcode_file
    action = run.stage if run is not None and active else 255
    report: dict[str, Any] = {
        "ap_err": 0,
        "aux": f"{0x2800004 | STORAGE_BITS[machine.storage] << 12:X}",
        "aux_part_fan": False,
        "batch_id": 0,
        "canvas_id": 0,
        "care": [{"id": "ls", "info": "247991B"}],
        "cfg": f"{_cfg(machine):X}",
        "design_id": "0",
        "device": _device(machine),
        "err": "0",
        "fail_reason": str(machine.print_error) if machine.state == "FAILED" else "0",
        "file": path,
        "fun": f"{(model.fun or 0) | (0 if machine.developer_mode else 1 << 29):X}",
        "ipcam": {
            "agora_service": "disable",
            "brtc_service": "enable",
            "bs_state": 0,
            "ipcam_dev": "1",
            **machine.recording,
            "laser_preview_res": 7,
            "mode_bits": 2,
            "resolution": "1080p",
            "rtsp_url": "disable",
            "tl_store_hpd_type": 2,
            "tl_store_path_type": 2,
            "tutk_server": "disable",
        },
        "job": {
            "cur_stage": {"idx": 0, "state": 2 if active else 0},
            "stage": [
                {
                    "clock_in": False,
                    "color": [""] * model.nozzles,
                    "diameter": [float(machine.nozzle_diameter)] * model.nozzles,
                    "est_time": 0,
                    "heigh": 0.0,
                    "idx": 0,
                    "platform": "",
                    "print_then": False,
                    "proc_list": [],
                    "tool": ["HS01"] * model.nozzles,
                    "type": 2,
                }
            ],
        },
        "job_attr": 17,
        "job_id": "0",
        "mapping": _mapping(machine),
        "mc_action": action,
        "mc_err": 0,
        "mc_print_error_code": str(machine.print_error & 0xFFFF),
        "mc_stage": 2 if active else 1,
        "model_id": "",
        "net": {"conf": 16, "info": [{"ip": 16777343, "mask": 16777215}, {"ip": 0, "mask": 0}]},
        "online": {"ahb": True, "version": 10},
        "percent": machine.percent,
        "plate_cnt": 1,
        "plate_id": number,
        "plate_idx": number,
        "prepare_per": int(prepare_percent(machine)),
        "print_gcode_action": action,
        "print_real_action": 0,
        "queue": 0,
        "remain_time": machine.remaining_minutes,
        "stat": f"{0x46258008 | DOOR_BIT if machine.door_open else 0x46258008:X}",
        "state": {"IDLE": 0, "PREPARE": 3, "RUNNING": 4, "PAUSE": 5, "FINISH": 6, "FAILED": 7}[machine.state],
        "upgrade_state": {
            "ahb_new_version_number": "",
            "ams_new_version_number": "",
            "consistency_request": False,
            "dis_state": 0,
            "err_code": 0,
            "ext_new_version_number": "",
            "force_upgrade": False,
            "idx": 6,
            "idx2": 1929307258,
            "lower_limit": "00.00.00.00",
            "message": "",
            "module": "",
            "new_version_state": 2,
            "ota_new_version_number": "",
            "progress": "0",
            "sequence_id": 0,
            "sn": machine.serial,
            "status": "IDLE",
        },
        "upload": {
            "file_size": 0,
            "finish_size": 0,
            "message": "Good",
            "oss_url": "",
            "progress": 0,
            "sequence_id": "0903",
            "speed": 0,
            "status": "idle",
            "task_id": "",
            "time_remaining": 0,
            "trouble_id": "",
        },
        "ver": "20010",
        "xcam": {
            "allow_skip_parts": False,
            "buildplate_marker_detector": True,
            "first_layer_inspector": True,
            "halt_print_sensitivity": "medium",
            "print_halt": True,
            "printing_monitor": True,
            "spaghetti_detector": True,
            **machine.xcam,
        },
        "xcam_status": "0",
    }
    return report | _extras(machine)


def _extras(machine: Machine) -> dict[str, Any]:
    model = machine.model
    chamber = round(machine.chamber.celsius(machine.now))
    external_ids = (254, 255) if model.nozzles == 2 else (255,)
    possible: dict[str, Any] = {
        "2D": {
            "bs": {"bi": [], "total_time": 0},
            "cond": 14,
            "cur_stage": {"clock_in_time": 0, "idx": 0, "left_time": 0, "process": 0, "state": 0},
            "first_confirm": False,
            "makeable": False,
            "material": {"cur_id_list": [], "state": 0, "tar_id": "", "tar_name": ""},
        },
        "3D": {"layer_num": machine.layer, "total_layer_num": machine.total_layers},
        "chamber_temper": chamber if model.chamber_sensor else 5,
        "ctt": round(machine.chamber_target),
        "err2": {"err_code": "0", "img_id": ""},
        "fun2": "1",
        "info": {"temp": chamber},
        "lan_task_id": "0",
        "maintain": 3,
        "stg_cd": 0,
        "t_utc": int(machine.clock_epoch_seconds * 1000),
        "vir_slot": [external_report(model, str(number), machine.external[number]) for number in external_ids],
        "vt_tray": external_report(model, "255", machine.external[255]),
    }
    return {key: possible[key] for key in model.extras}


def _device(machine: Machine) -> dict[str, Any]:
    model = machine.model
    bed = packed_celsius(machine.bed.target, machine.bed.celsius(machine.now))
    active = active_extruder(machine)
    nozzles = [nozzle_celsius(machine, number) for number in range(model.nozzles)]
    device: dict[str, Any] = {
        "bed": {"info": {"temp": bed}, "state": 2 if machine.bed.target else 0},
        "bed_temp": bed,
        "cam": {"laser": {"cond": 252, "state": 0}},
        "ext_tool": {"calib": 2, "low_prec": True, "mount": 0, "th_temp": 0, "type": ""},
        "extruder": {
            "info": [
                {
                    "filam_bak": [],
                    "hnow": number,
                    "hpre": number,
                    "htar": number,
                    "id": number,
                    "info": 8,
                    **dict.fromkeys(
                        ("snow", "spre", "star"), packed_address(machine.loaded if number == active else None, number)
                    ),
                    "stat": 197376 if machine.loaded is not None and number == active else 0,
                    "temp": packed_celsius(target, celsius),
                }
                for number, (celsius, target) in enumerate(nozzles)
            ],
            "state": active << 8 | active << 4 | model.nozzles,
        },
        "fan": 0,
        "laser": {"power": 0},
        "nozzle": {
            "exist": (1 << model.nozzles) - 1,
            "info": [
                {"diameter": float(machine.nozzle_diameter), "id": number, "tm": 0, "type": "HS01", "wear": 0}
                for number in range(model.nozzles)
            ],
            "state": 0,
        },
        "plate": {"base": 1, "cali2d_id": "", "cur_id": "", "mat": 1, "tar_id": ""},
        "type": 1,
    }
    if model.chamber_sensor:
        chamber = packed_celsius(machine.chamber_target, machine.chamber.celsius(machine.now))
        device["ctc"] = {"info": {"temp": chamber}, "state": 0}
    return device


def _mapping(machine: Machine) -> list[int]:
    request = machine.request
    if request is None:
        return []
    length = max(request.slots, default=0)
    return [packed_address(request.slots.get(position)) for position in range(1, length + 1)]


def _cfg(machine: Machine) -> int:
    mask = 0x100158099 | machine.speed_level << 8
    mask |= 1 << 17 if machine.remain_detection else 0
    return mask | (1 << 18 if machine.options["auto_switch_filament"] else 0)


def packed_celsius(target: float, current: float) -> int:
    return round(target) << 16 | round(current)
