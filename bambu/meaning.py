"""What the values of a Bambu Lab report mean together: each function works out some attributes of PrinterState.

`facts` is what was heard, under the wire's names; `shown` what it means, under PrinterState's. A function here reads
both and writes the second; bambu_report runs it when something it reads has changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bambu.errors import CANCELLED, error_code, print_fault
from bambu.models import PrinterModel
from bambu.spools import EXTERNAL, EXTERNAL_LEFT, units_and_spools
from bambu.state import ACTIVE, Nozzle, PrinterActivity, Storage

Facts = dict[str, Any]
_NOTHING: Facts = {}

_STAGES = {
    0: "printing", 1: "levelling the bed", 2: "preheating the bed", 3: "measuring vibration", 4: "changing filament",
    5: "paused by the file", 6: "paused: filament ran out", 7: "heating the nozzle", 8: "calibrating extrusion",
    9: "scanning the bed", 10: "inspecting the first layer", 11: "identifying the plate", 12: "calibrating the lidar",
    13: "homing", 14: "cleaning the nozzle", 15: "checking temperatures", 16: "paused by a person",
    17: "paused: front cover off", 18: "calibrating the lidar", 19: "calibrating flow",
    20: "paused: nozzle temperature fault", 21: "paused: bed temperature fault", 22: "unloading filament",
    23: "paused: lost steps", 24: "loading filament", 25: "quietening the motors", 26: "paused: AMS lost",
    27: "paused: a fan is slow", 28: "paused: chamber temperature fault", 29: "cooling the chamber",
    30: "paused by the file", 32: "paused: nozzle covered", 33: "paused: cutter fault", 34: "paused: first layer fault",
    35: "paused: nozzle clogged", 39: "calibrating the nozzle offset", 40: "levelling the hot bed",
    47: "levelling the bed", 48: "levelling the bed", 49: "heating the chamber", 50: "cooling the bed",
    51: "printing calibration lines", 52: "checking the material", 54: "waiting for the bed",
    58: "preconditioning", 63: "waiting for the chamber", 64: "preparing the hotend", 66: "purifying the air",
    69: "cooling the nozzle", 73: "aligning the plate", 74: "looking for foreign objects",
    75: "looking for foreign objects", 76: "pre-extruding", 77: "preparing the AMS",
}  # fmt: skip

_STORAGE = (Storage.none, Storage.ok, Storage.abnormal, Storage.read_only)
_NOZZLE_MATERIALS = {"00": "stainless steel", "01": "hardened steel", "05": "tungsten carbide"}
_NOZZLE_FLOWS = {"H": ", high flow", "E": ", high flow", "U": ", TPU high flow"}
_NOZZLE_CODE = re.compile(r"[A-Z]([A-Z])([0-9]{2})")
_PLATE = re.compile(r"plate_([0-9]{1,3})\.gcode")
_REMAIN_DETECTION, _DOOR, _SIGNATURES = 7, 23, 29


def derive_print(facts: Facts, shown: Facts) -> None:
    """How the print stands: stage, remaining time, whether it was cancelled."""
    activity: PrinterActivity = shown["state"]
    active = activity in ACTIVE
    # The code of a cancelled print shows for seconds only, sometimes after the state says failed; a new print ends it.
    if active:
        shown["cancelled"] = False
    elif facts.get("print_error") in CANCELLED or facts.get("fail_reason") in CANCELLED:
        shown["cancelled"] = True
    remaining = facts.get("mc_remaining_time")
    left_over = remaining and activity in (PrinterActivity.idle, PrinterActivity.failed)
    shown["remaining_minutes"] = None if left_over else remaining
    number = facts.get("stg_cur")
    # P1 and A1 leave it at 0, "printing", while they pause, prepare or rest.
    speaks = active and (number != 0 or activity is PrinterActivity.printing)
    shown["stage"] = _STAGES.get(number) if speaks and number is not None else None


def derive_layers(facts: Facts, shown: Facts) -> None:
    """Layers, from whichever of two places has them."""
    for attribute, name in (("layers_printed", "layer_num"), ("total_layers", "total_layer_num")):
        layers = facts.get(name)
        shown[attribute] = layers if layers is not None else facts.get(f"3D.{name}")


def derive_file(facts: Facts, shown: Facts) -> None:
    """Which plate of its file is being printed, where the file's name tells."""
    plate = _PLATE.search(shown["file_name"] or "")
    shown["plate"] = int(plate[1]) if plate else None


def derive_faults(facts: Facts, shown: Facts) -> None:
    """The error the printer shows, beside its health messages."""
    number = facts.get("print_error")
    health = facts.get("hms", ())
    shown["print_error"] = error_code(number) if number else None
    shown["faults"] = (*health, print_fault(number)) if number else health


def derive_nozzle_in_use(facts: Facts, shown: Facts) -> None:
    """Which of its nozzles the printer prints with."""
    extruder: int | None = facts.get("device.extruder")
    if extruder is not None:
        shown["active_nozzle"] = extruder >> 4 & 15 if extruder & 15 > 1 else 0
    else:
        shown["active_nozzle"] = 0 if _nozzle_count(facts) == 1 else None


def derive_nozzle_heat(facts: Facts, shown: Facts) -> None:
    """The temperature of the nozzle in use; newer models' packed values win over the old ones, here and below."""
    extruder = facts.get("device.extruders", _NOTHING).get(shown["active_nozzle"])
    packed = extruder.get("temp") if extruder is not None else None
    if packed is None:
        shown["nozzle_temp"], shown["nozzle_target"] = facts.get("nozzle_temper"), facts.get("nozzle_target_temper")
    else:
        shown["nozzle_temp"], shown["nozzle_target"] = float(packed & 0xFFFF), float(packed >> 16)


def derive_bed_heat(facts: Facts, shown: Facts) -> None:
    """The temperature of the bed."""
    packed: int | None = facts.get("device.bed")
    if packed is None:
        shown["bed_temp"], shown["bed_target"] = facts.get("bed_temper"), facts.get("bed_target_temper")
    else:
        shown["bed_temp"], shown["bed_target"] = float(packed & 0xFFFF), float(packed >> 16)


def derive_chamber_heat(facts: Facts, shown: Facts) -> None:
    """The temperature of the chamber, of models that measure it."""
    model: PrinterModel | None = facts["printer_model"]
    packed: int | None = facts.get("device.ctc")
    degrees: float | None = facts.get("chamber_temper") if packed is None else float(packed & 0xFFFF)
    # Models without a sensor report a constant 5.
    constant = not model.has_chamber_sensor if model else packed is None and degrees == 5
    shown["chamber_temp"] = None if constant else degrees


def derive_hardware(facts: Facts, shown: Facts) -> None:
    """Storage, door, and whether commands are taken."""
    home_flag, auxiliary, card = facts.get("home_flag"), facts.get("aux"), facts.get("sdcard")
    if home_flag is not None:
        shown["storage"] = _STORAGE[home_flag >> 8 & 3]
    elif auxiliary is not None:
        shown["storage"] = _STORAGE[auxiliary >> 12 & 3]
    elif card is not None:
        shown["storage"] = Storage.ok if card else Storage.none
    model: PrinterModel | None = facts["printer_model"]
    bits = facts.get("stat", home_flag)
    shown["door_open"] = bool(bits >> _DOOR & 1) if bits is not None and model and model.has_door_sensor else None
    signatures = facts.get("fun")
    shown["developer_mode"] = facts["obeys"] if signatures is None else not signatures >> _SIGNATURES & 1


def derive_nozzles(facts: Facts, shown: Facts) -> None:
    """The nozzles; the flat pair of values names either one of two."""
    listed: Mapping[int, Mapping[str, Any]] = facts.get("device.nozzles", {})
    flat = {"diameter": facts.get("nozzle_diameter"), "type": facts.get("nozzle_type")}
    if listed:
        shown["nozzles"] = tuple([_nozzle(number, listed[number]) for number in sorted(listed)])
    elif flat["diameter"] is not None or flat["type"]:
        shown["nozzles"] = (_nozzle(0, flat),)


def _nozzle(number: int, part: Mapping[str, Any]) -> Nozzle:
    told: str = part.get("type") or ""
    kind: str | None = told.replace("_", " ") or None
    if code := _NOZZLE_CODE.fullmatch(told):
        material = _NOZZLE_MATERIALS.get(code[2])
        kind = material + _NOZZLE_FLOWS.get(code[1], "") if material else None
    return Nozzle(number, part.get("diameter"), kind)


def derive_spools(facts: Facts, shown: Facts) -> None:
    """AMS units and spools, if anything they are made of has changed."""
    exist_bits = facts.get("tray_exist_bits")
    if exist_bits == 0 and not facts.get("power_on_flag"):
        exist_bits = None  # the AMS is still starting
    made_of = (
        facts.get("ams.units", {}),
        facts.get("vir_slot") or facts.get("vt_tray", {}),
        exist_bits,
        bool(facts.get("home_flag", 0) >> _REMAIN_DETECTION & 1),
        _nozzle_count(facts) == 2,
        facts.get("unit_kinds", {}),
    )
    if made_of != facts.get("spools.made_of"):
        facts["spools.made_of"] = made_of
        shown["units"], shown["spools"] = units_and_spools(*made_of)


def derive_feeding(facts: Facts, shown: Facts) -> None:
    """Where the filament of the active nozzle comes from."""
    extruders = facts.get("device.extruders", {})
    fed = extruders.get(shown["active_nozzle"], {}).get("snow")
    tray = facts.get("tray_now")
    if fed is not None and (len(extruders) > 1 or tray is None):
        shown["feeding"] = _packed_place(fed)
    elif tray is None or tray == 255:
        shown["feeding"] = None
    elif tray == 254:
        shown["feeding"] = EXTERNAL
    elif tray >= 128:
        shown["feeding"] = (tray, 0)
    elif list(facts.get("ams.units", ())) == [16]:  # the A2L's AMS Lite counts from its own first tray
        shown["feeding"] = (16, tray)
    else:
        shown["feeding"] = (tray >> 2, tray & 3)


def _packed_place(fed: int) -> tuple[int, int] | None:
    ams_id, tray_id = fed >> 8, fed & 0xFF
    if tray_id == 0xFF:
        return None
    return EXTERNAL if ams_id == 0xFF else EXTERNAL_LEFT if ams_id == 0xFE else (ams_id, tray_id)


def _nozzle_count(facts: Facts) -> int | None:
    extruder: int | None = facts.get("device.extruder")
    if extruder is not None:
        return extruder & 15
    model: PrinterModel | None = facts["printer_model"]
    return model.nozzles if model else None
