"""The keys of a Bambu Lab report: how each is taken over into facts, and what has to be worked out again then.

A key holds a value, or a section that a function folds in by id and value by value, because a partial report may carry
one tray, one nozzle, one temperature. What cannot be read is left as it was, and counted. What a change makes
necessary is a number whose bits are places in STEPS: most reports are tiny, and collecting functions cost more than
reading the values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import bambu.meaning as meaning
import bambu.values as values
from bambu.errors import health_faults
from bambu.meaning import Facts
from bambu.spools import external_id, fold_tray, fold_trays, fold_units, without_absent_units
from bambu.state import PrinterActivity
from bambu.values import Unreadable

Meaning = Callable[[Facts, Facts], None]
STEPS: tuple[Meaning, ...] = (
    meaning.derive_print,
    meaning.derive_layers,
    meaning.derive_file,
    meaning.derive_faults,
    meaning.derive_nozzle_in_use,  # before all that asks which nozzle that is
    meaning.derive_nozzle_heat,
    meaning.derive_bed_heat,
    meaning.derive_chamber_heat,
    meaning.derive_hardware,
    meaning.derive_nozzles,
    meaning.derive_spools,
    meaning.derive_feeding,
)
_PRINT, _LAYERS, _FILE, _FAULTS, _NOZZLE_IN_USE, _NOZZLE_HEAT = (1 << place for place in range(6))
_BED_HEAT, _CHAMBER_HEAT, _HARDWARE, _NOZZLES, _SPOOLS, _FEEDING = (1 << place for place in range(6, len(STEPS)))
EVERYTHING = (1 << len(STEPS)) - 1


@functools.cache
def steps(needs: int) -> tuple[Meaning, ...]:
    """The functions that these bits stand for, in the order in which they build on each other."""
    return tuple(step for place, step in enumerate(STEPS) if needs >> place & 1)


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


def _fold_3d(facts: Facts, given: object, full: bool, before: object) -> tuple[int, int]:
    section = values.mapping(given)
    return (
        take(facts, section, "layer_num", values.count, "3D.layer_num")
        + take(facts, section, "total_layer_num", values.count, "3D.total_layer_num"),
        _LAYERS,
    )


def _fold_health(facts: Facts, given: object, full: bool, before: object) -> tuple[int, int]:
    facts["hms"], faults = health_faults(given)
    return faults, _FAULTS


def _fold_ams(facts: Facts, given: object, full: bool, before: object) -> tuple[int, int]:
    section = values.mapping(given)
    faults = (
        take(facts, section, "ams_exist_bits", values.hex_flags, "ams_exist_bits")
        + take(facts, section, "tray_exist_bits", values.hex_flags, "tray_exist_bits")
        + take(facts, section, "power_on_flag", values.switch, "power_on_flag")
        + take(facts, section, "tray_now", _tray_now, "tray_now")
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
    return faults, _SPOOLS | _FEEDING


def _fold_external_list(facts: Facts, given: object, full: bool, before: object) -> tuple[int, int]:
    facts["vir_slot"], faults = fold_trays(facts.get("vir_slot", {}), given, external_id, full=full)
    return faults, _SPOOLS


def _fold_external(facts: Facts, given: object, full: bool, before: object) -> tuple[int, int]:
    tray, faults = fold_tray(facts.get("vt_tray", {}).get(255, {}), values.mapping(given), full=full)
    facts["vt_tray"] = {255: tray}
    return faults, _SPOOLS


def _fold_device(facts: Facts, given: object, full: bool, before: object) -> tuple[int, int]:
    section = values.mapping(given)
    last = before if type(before) is dict else _NOTHING
    faults = needs = 0
    if "bed_temp" in section or "bed" in section:
        faults += take(facts, section, "bed_temp", values.packed_celsius, "device.bed")
        faults += _fold_heat(facts, section, "bed", "device.bed")
        needs |= _BED_HEAT
    if "ctc" in section:
        faults += _fold_heat(facts, section, "ctc", "device.ctc")
        needs |= _CHAMBER_HEAT
    extruder = section.get("extruder")
    if type(extruder) is dict and not same(last.get("extruder"), extruder):
        if "state" in extruder:
            faults += take(facts, extruder, "state", _uint32, "device.extruder")
            needs |= _NOZZLE_IN_USE | _SPOOLS
        faults += _fold_by_id(facts, extruder.get("info"), "device.extruders", _EXTRUDER)
        needs |= _NOZZLE_HEAT | _FEEDING
    nozzle = section.get("nozzle")
    if type(nozzle) is dict and not same(last.get("nozzle"), nozzle):
        faults += _fold_by_id(facts, nozzle.get("info"), "device.nozzles", _NOZZLE)
        needs |= _NOZZLES
    return faults, needs


def same(one: object, other: object) -> bool:
    """Whether two JSON values are equal, where that can be told."""
    try:
        return one == other
    except RecursionError:  # nested as deeply as a parser lets pass
        return False


def _fold_heat(facts: Facts, section: Mapping[str, object], part: str, name: str) -> int:
    inner = section.get(part)
    info = inner.get("info") if type(inner) is dict else None
    return take(facts, info, "temp", values.packed_celsius, name) if type(info) is dict else 0


_tray_now = values.whole_between(0, 255)
_uint32 = values.whole_between(0, 0xFFFFFFFF)
_Readers = tuple[tuple[str, Callable[[object], object]], ...]
_EXTRUDER: _Readers = (("temp", values.packed_celsius), ("snow", values.whole_between(0, 0xFFFF)))
_NOZZLE: _Readers = (("diameter", values.diameter_mm), ("type", values.text))
_NOTHING: Facts = {}


def _fold_by_id(facts: Facts, given: object, name: str, readers: _Readers) -> int:
    if type(given) is not list:  # absent, or the object that an old X1 sends here
        return 0
    known = dict(facts.get(name, _NOTHING))
    faults = 0
    for entry in values.entries(given):
        try:
            parts = values.mapping(entry)
            number = values.whole(parts.get("id"))
        except Unreadable:
            faults += 1
            continue
        if number in (0, 1):  # 16 and up are nozzles waiting in a rack
            part = dict(known.get(number, _NOTHING))
            for key, read_value in readers:
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


# Each key of a report: how it is read, what it becomes, whether that is an attribute of PrinterState or a fact, and
# what then needs to be worked out again. Where a function folds a section into several facts the second is None.
Taken = tuple[Callable[..., Any], str | None, bool, int]


def _shown(read_value: Callable[[object], object], name: str, needs: int = 0) -> Taken:
    return read_value, name, True, needs


def _fact(read_value: Callable[[object], object], name: str, needs: int) -> Taken:
    return read_value, name, False, needs


def _section(fold: Callable[[Facts, object, bool, object], tuple[int, int]]) -> Taken:
    return fold, None, False, 0


KEYS: dict[str, Taken] = {
    "gcode_state": _shown(_activity, "state", _PRINT),
    "mc_percent": _shown(values.percent, "progress_percent"),
    "mc_remaining_time": _fact(values.count, "mc_remaining_time", _PRINT),
    "stg_cur": _fact(values.whole_between(-1, 0xFFFF), "stg_cur", _PRINT),
    "layer_num": _fact(values.count, "layer_num", _LAYERS),
    "total_layer_num": _fact(values.count, "total_layer_num", _LAYERS),
    "3D": _section(_fold_3d),
    "print_error": _fact(values.flags, "print_error", _PRINT | _FAULTS),
    "fail_reason": _fact(_fail_reason, "fail_reason", _PRINT),
    "hms": _section(_fold_health),
    "subtask_name": _shown(words, "job_name"),
    "subtask_id": _shown(_identifier, "submission_id"),
    "gcode_file": _shown(words, "file_name", _FILE),
    "nozzle_temper": _fact(values.number, "nozzle_temper", _NOZZLE_HEAT),
    "nozzle_target_temper": _fact(values.number, "nozzle_target_temper", _NOZZLE_HEAT),
    "bed_temper": _fact(values.number, "bed_temper", _BED_HEAT),
    "bed_target_temper": _fact(values.number, "bed_target_temper", _BED_HEAT),
    "chamber_temper": _fact(values.number, "chamber_temper", _CHAMBER_HEAT),
    "device": _section(_fold_device),
    "spd_lvl": _shown(values.whole_between(1, 4), "speed_level"),
    "wifi_signal": _shown(_signal, "wifi_dbm"),
    "nozzle_diameter": _fact(values.diameter_mm, "nozzle_diameter", _NOZZLES),
    "nozzle_type": _fact(values.text, "nozzle_type", _NOZZLES),
    "home_flag": _fact(values.flags, "home_flag", _HARDWARE | _SPOOLS),
    "aux": _fact(values.hex_flags, "aux", _HARDWARE),
    "stat": _fact(values.hex_flags, "stat", _HARDWARE),
    "fun": _fact(values.hex_flags, "fun", _HARDWARE),
    "sdcard": _fact(values.switch, "sdcard", _HARDWARE),
    "ams": _section(_fold_ams),
    "vir_slot": _section(_fold_external_list),
    "vt_tray": _section(_fold_external),
}
