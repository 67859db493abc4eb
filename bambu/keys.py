"""The keys of a Bambu Lab report: how each is taken over into facts, and what has to be worked out again then.

A key holds a value, or a section that a function folds in by id and value by value, because a partial report may carry
one tray, one nozzle, one temperature. What cannot be read is left as it was, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import bambu.meaning as meaning
import bambu.values as values
from bambu.errors import health_faults
from bambu.meaning import Facts
from bambu.spools import external_id, fold_tray, fold_trays, fold_units, without_absent_units
from bambu.state import PrinterActivity
from bambu.values import Unreadable

_ACTIVITIES = {
    "IDLE": PrinterActivity.idle,
    "PREPARE": PrinterActivity.preparing,
    "SLICING": PrinterActivity.preparing,
    "RUNNING": PrinterActivity.printing,
    "PAUSE": PrinterActivity.paused,
    "FINISH": PrinterActivity.finished,
    "FAILED": PrinterActivity.failed,
}


def take(
    facts: Facts, section: Mapping[str, object], key: str, read_value: Callable[[object], object], name: str
) -> int:
    """Reads one value of a section into `facts` if it is there; returns 1 if it could not be read."""
    if key in section:
        try:
            facts[name] = read_value(section[key])
        except Unreadable:
            return 1
    return 0


def _fold_3d(facts: Facts, given: object, full: bool) -> int:
    section = values.mapping(given)
    return take(facts, section, "layer_num", values.count, "3D.layer_num") + take(
        facts, section, "total_layer_num", values.count, "3D.total_layer_num"
    )


def _fold_health(facts: Facts, given: object, full: bool) -> int:
    facts["hms"], faults = health_faults(given)
    return faults


def _fold_ams(facts: Facts, given: object, full: bool) -> int:
    section = values.mapping(given)
    faults = (
        take(facts, section, "ams_exist_bits", values.hex_flags, "ams_exist_bits")
        + take(facts, section, "tray_exist_bits", values.hex_flags, "tray_exist_bits")
        + take(facts, section, "power_on_flag", values.switch, "power_on_flag")
        + take(facts, section, "tray_now", values.whole_between(0, 255), "tray_now")
    )
    units = facts.get("ams.units", {})
    exist_bits = facts.get("ams_exist_bits")
    starting_up = exist_bits == 0 and not facts.get("power_on_flag")
    if "ams" in section:
        units, wrong = fold_units(units, section["ams"], full=full and not starting_up)
        faults += wrong
    if exist_bits is not None and not starting_up:
        units = without_absent_units(units, exist_bits)
    facts["ams.units"] = units
    return faults


def _fold_external_list(facts: Facts, given: object, full: bool) -> int:
    facts["vir_slot"], faults = fold_trays(facts.get("vir_slot", {}), given, external_id, full=full)
    return faults


def _fold_external(facts: Facts, given: object, full: bool) -> int:
    tray, faults = fold_tray(facts.get("vt_tray", {}).get(255, {}), values.mapping(given), full=full)
    facts["vt_tray"] = {255: tray}
    return faults


def _fold_device(facts: Facts, given: object, full: bool) -> int:
    section = values.mapping(given)
    faults = take(facts, section, "bed_temp", values.packed_celsius, "device.bed")
    for part, name in (("bed", "device.bed"), ("ctc", "device.ctc")):
        info = _inner(_inner(section, part), "info")
        faults += take(facts, info, "temp", values.packed_celsius, name)
    extruder = _inner(section, "extruder")
    faults += take(facts, extruder, "state", values.whole_between(0, 0xFFFFFFFF), "device.extruder")
    faults += _fold_by_id(facts, extruder.get("info"), "device.extruders", _EXTRUDER)
    return faults + _fold_by_id(facts, _inner(section, "nozzle").get("info"), "device.nozzles", _NOZZLE)


def _inner(section: Mapping[str, object], key: str) -> Mapping[str, object]:
    inner = section.get(key)
    return inner if type(inner) is dict else {}


_EXTRUDER: dict[str, Callable[[object], object]] = {
    "temp": values.packed_celsius,
    "snow": values.whole_between(0, 0xFFFF),
}
_NOZZLE: dict[str, Callable[[object], object]] = {"diameter": values.diameter_mm, "type": values.text}


def _fold_by_id(facts: Facts, given: object, name: str, readers: Mapping[str, Callable[[object], object]]) -> int:
    if type(given) is not list:  # absent, or the object that an old X1 sends here
        return 0
    known = dict(facts.get(name, {}))
    faults = 0
    for entry in values.entries(given):
        try:
            parts = values.mapping(entry)
            number = values.whole(parts.get("id"))
        except Unreadable:
            faults += 1
            continue
        if number in (0, 1):  # 16 and up are nozzles waiting in a rack
            part = dict(known.get(number, {}))
            for key, read_value in readers.items():
                faults += take(part, parts, key, read_value, key)
            known[number] = part
    facts[name] = known
    return faults


def _activity(given: object) -> PrinterActivity:
    return _ACTIVITIES.get(values.text(given), PrinterActivity.unknown)


def words(given: object) -> str | None:
    return values.text(given) or None


def _identifier(given: object) -> str | None:
    return values.identifier(given) or None


def _signal(given: object) -> int | None:
    dbm = values.signal_dbm(given)
    return None if dbm == -90 else dbm  # what printers on a cable report


def _fail_reason(given: object) -> int:
    return values.flags(given or 0)


# Each key of a report: how it is read, the fact it becomes (None where a function folds a section into several), and
# what has to be worked out again when it changes.
Taken = tuple[Callable[..., Any], str | None, dict[Callable[[Facts], None], None]]


def _to(read_value: Callable[[object], object], name: str, *meanings: Callable[[Facts], None]) -> Taken:
    return read_value, name, dict.fromkeys(meanings)


def _section(fold: Callable[[Facts, object, bool], int], *meanings: Callable[[Facts], None]) -> Taken:
    return fold, None, dict.fromkeys(meanings)


KEYS: dict[str, Taken] = {
    "gcode_state": _to(_activity, "state", meaning.derive_print),
    "mc_percent": _to(values.percent, "progress_percent"),
    "mc_remaining_time": _to(values.count, "mc_remaining_time", meaning.derive_print),
    "stg_cur": _to(values.whole_between(-1, 0xFFFF), "stg_cur", meaning.derive_print),
    "layer_num": _to(values.count, "layer_num", meaning.derive_layers),
    "total_layer_num": _to(values.count, "total_layer_num", meaning.derive_layers),
    "3D": _section(_fold_3d, meaning.derive_layers),
    "print_error": _to(values.flags, "print_error.number", meaning.derive_print, meaning.derive_faults),
    "fail_reason": _to(_fail_reason, "fail_reason", meaning.derive_print),
    "hms": _section(_fold_health, meaning.derive_faults),
    "subtask_name": _to(words, "job_name"),
    "subtask_id": _to(_identifier, "submission_id"),
    "gcode_file": _to(words, "file_name", meaning.derive_file),
    "nozzle_temper": _to(values.number, "nozzle_temper", meaning.derive_heat),
    "nozzle_target_temper": _to(values.number, "nozzle_target_temper", meaning.derive_heat),
    "bed_temper": _to(values.number, "bed_temper", meaning.derive_heat),
    "bed_target_temper": _to(values.number, "bed_target_temper", meaning.derive_heat),
    "chamber_temper": _to(values.number, "chamber_temper", meaning.derive_heat),
    "device": _section(
        _fold_device, meaning.derive_heat, meaning.derive_nozzles, meaning.derive_spools, meaning.derive_feeding
    ),
    "spd_lvl": _to(values.whole_between(1, 4), "speed_level"),
    "wifi_signal": _to(_signal, "wifi_dbm"),
    "nozzle_diameter": _to(values.diameter_mm, "nozzle_diameter", meaning.derive_nozzles),
    "nozzle_type": _to(values.text, "nozzle_type", meaning.derive_nozzles),
    "home_flag": _to(values.flags, "home_flag", meaning.derive_hardware, meaning.derive_spools),
    "aux": _to(values.hex_flags, "aux", meaning.derive_hardware),
    "stat": _to(values.hex_flags, "stat", meaning.derive_hardware),
    "fun": _to(values.hex_flags, "fun", meaning.derive_hardware),
    "sdcard": _to(values.switch, "sdcard", meaning.derive_hardware),
    "ams": _section(_fold_ams, meaning.derive_spools, meaning.derive_feeding),
    "vir_slot": _section(_fold_external_list, meaning.derive_spools),
    "vt_tray": _section(_fold_external, meaning.derive_spools),
}
