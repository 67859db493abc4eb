"""What a Bambu Lab printer says, folded into one PrinterState. Pure; the wire's words stop here.

A printer sends full reports and partial ones. `merge` folds each message into a Raw, a plain value, reading every value
as it comes in: one of the wrong kind is dropped, counted, and the last good one kept. `read` makes the state of a Raw.
Until a full report has come everything is unknown, whatever parts were heard before. Nothing here ever raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import itemgetter
from typing import Any

import orjson

import bambu_meaning as meaning
import bambu_values as values
from bambu_errors import health_faults
from bambu_meaning import Facts
from bambu_models import PrinterModel, model_of_code, model_of_name, model_of_serial
from bambu_spools import (
    UNIT_KINDS,
    Spool,
    Unit,
    external_id,
    fold_tray,
    fold_trays,
    fold_units,
    without_absent_units,
)
from bambu_state import ACTIVE, UNKNOWN, Nozzle, PrinterActivity, PrinterState, Storage
from bambu_values import Unreadable

__all__ = [
    "ACTIVE",
    "UNKNOWN",
    "Nozzle",
    "PrinterActivity",
    "PrinterState",
    "Raw",
    "Spool",
    "Storage",
    "Unit",
    "decode",
    "first_raw",
    "is_full",
    "is_status",
    "learn",
    "merge",
    "read",
]

_PAYLOAD_LIMIT_BYTES = 4 * 1024 * 1024
_CORE_KEYS = ("gcode_state", "mc_percent", "home_flag", "nozzle_temper")
_ACTIVITIES = {
    "IDLE": PrinterActivity.idle,
    "PREPARE": PrinterActivity.preparing,
    "SLICING": PrinterActivity.preparing,
    "RUNNING": PrinterActivity.printing,
    "PAUSE": PrinterActivity.paused,
    "FINISH": PrinterActivity.finished,
    "FAILED": PrinterActivity.failed,
}
_ATTRIBUTES = [entry.name for entry in fields(PrinterState) if entry.name not in ("known", "faults_counted")]
_attributes_of: Callable[[Facts], Any] = itemgetter(*_ATTRIBUTES)
_NOTHING: Facts = {name: getattr(UNKNOWN, name) for name in _ATTRIBUTES}


@dataclass(frozen=True, slots=True)
class Raw:
    """What has been heard so far. A value: merging makes another, or returns the same where nothing is new.

    `heard` holds, by the wire's names, what was last taken over: what is merely repeated need not be read again.
    """

    known: bool = False
    facts: Facts = field(default_factory=_NOTHING.copy)
    heard: dict[str, tuple[bool, object]] = field(default_factory=dict)
    faults_counted: int = field(default=0, compare=False)


def decode(payload: bytes) -> dict[str, Any] | None:
    """The JSON object of an MQTT payload, or None. Broken UTF-8 is replaced, NULs at the end dropped, NaN is null."""
    if len(payload) > _PAYLOAD_LIMIT_BYTES:
        return None
    message: object
    try:
        message = orjson.loads(payload)
    except orjson.JSONDecodeError:
        message = _decode_leniently(payload)
    return message if type(message) is dict else None


def _decode_leniently(payload: bytes) -> object:
    written = payload.decode("utf-8", "replace").strip("\x00\ufeff \t\r\n")
    try:
        return json.loads(written, strict=False, parse_constant=lambda name: None)
    except (ValueError, RecursionError):  # ValueError: no JSON, or a number of thousands of digits
        return None


def first_raw(serial: str = "", *, obeys: bool | None = None) -> Raw:
    """Before anything was heard. The serial number tells the model until the printer does; `obeys` as in `learn`."""
    model = model_of_serial(serial)
    facts = {**_NOTHING, "obeys": obeys, "printer_model": model, "model": model.name if model else None}
    return Raw(facts=facts)


def learn(raw: Raw, *, obeys: bool) -> Raw:
    """What an answer taught: whether the printer takes commands from us. Counts for models that do not say it."""
    facts = {**raw.facts, "obeys": obeys}
    meaning.derive_hardware(facts)
    return Raw(raw.known, facts, raw.heard, raw.faults_counted)


def is_status(message: Mapping[str, Any]) -> bool:
    """Whether a decoded message is a report of the printer's state, full or partial."""
    report = message.get("print")
    return type(report) is dict and report.get("command") == "push_status"


def is_full(message: Mapping[str, Any]) -> bool:
    """Whether a decoded message is a full report. Some dual-nozzle firmware does not mark them."""
    return is_status(message) and _report_is_full(message["print"])


def _report_is_full(report: Mapping[str, Any]) -> bool:
    if "msg" in report:
        return report["msg"] in (0, "0") and type(report["msg"]) is not bool
    return all(key in report for key in _CORE_KEYS)


def merge(raw: Raw, message: Mapping[str, Any]) -> Raw:
    """This message folded in. What is neither status nor version (answers to commands) leaves `raw` as it is."""
    if type(message) is not dict:
        return Raw(raw.known, raw.facts, raw.heard, raw.faults_counted + 1)
    report = message.get("print")
    if type(report) is dict and report.get("command") == "push_status":
        raw = _merge_status(raw, report)
    info = message.get("info")
    if type(info) is dict and info.get("command") == "get_version" and "module" in info:
        raw = _merge_version(raw, info["module"])
    return raw


def read(raw: Raw) -> PrinterState:
    """The state of everything heard so far; all unknown before the first full report, but for model and firmware."""
    if raw.known:
        return PrinterState(True, *_attributes_of(raw.facts), raw.faults_counted)
    facts = raw.facts
    return PrinterState(model=facts["model"], firmware=facts["firmware"], faults_counted=raw.faults_counted)


def _merge_status(raw: Raw, report: dict[str, Any]) -> Raw:
    full = _report_is_full(report)
    heard, facts = raw.heard, raw.facts
    faults = 0
    derive: dict[Callable[[Facts], None], None] = {}
    for key, given in report.items():
        taken = _KEYS.get(key)
        if taken is None:
            continue
        before = heard.get(key)
        # Repeating what was taken over last changes nothing, unless a whole list now stands where a part stood.
        if before is not None and (before[0] or not full) and _same(before[1], given):
            continue
        if heard is raw.heard:
            heard, facts = dict(heard), dict(facts)
        fold, name, meanings = taken
        try:
            if name is None:
                faults += fold(facts, given, full)
            else:
                facts[name] = fold(given)
        except Unreadable:
            faults += 1
            continue
        heard[key] = (full, given)
        derive.update(meanings)
    for work_out in derive:
        work_out(facts)
    known = raw.known or full
    if heard is raw.heard and known is raw.known:
        return raw
    return Raw(known, facts, heard, raw.faults_counted + faults)


def _same(one: object, other: object) -> bool:
    try:
        return one == other
    except RecursionError:  # nested as deeply as a parser lets pass
        return False


def _take(
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
    return _take(facts, section, "layer_num", values.count, "3D.layer_num") + _take(
        facts, section, "total_layer_num", values.count, "3D.total_layer_num"
    )


def _fold_health(facts: Facts, given: object, full: bool) -> int:
    facts["hms"], faults = health_faults(given)
    return faults


def _fold_ams(facts: Facts, given: object, full: bool) -> int:
    section = values.mapping(given)
    faults = (
        _take(facts, section, "ams_exist_bits", values.hex_flags, "ams_exist_bits")
        + _take(facts, section, "tray_exist_bits", values.hex_flags, "tray_exist_bits")
        + _take(facts, section, "power_on_flag", values.switch, "power_on_flag")
        + _take(facts, section, "tray_now", values.whole_between(0, 255), "tray_now")
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
    faults = _take(facts, section, "bed_temp", values.packed_celsius, "device.bed")
    for part, name in (("bed", "device.bed"), ("ctc", "device.ctc")):
        info = _inner(_inner(section, part), "info")
        faults += _take(facts, info, "temp", values.packed_celsius, name)
    extruder = _inner(section, "extruder")
    faults += _take(facts, extruder, "state", values.whole_between(0, 0xFFFFFFFF), "device.extruder")
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
                faults += _take(part, parts, key, read_value, key)
            known[number] = part
    facts[name] = known
    return faults


def _activity(given: object) -> PrinterActivity:
    return _ACTIVITIES.get(values.text(given), PrinterActivity.unknown)


def _words(given: object) -> str | None:
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
_Taken = tuple[Callable[..., Any], str | None, dict[Callable[[Facts], None], None]]


def _to(read_value: Callable[[object], object], name: str, *meanings: Callable[[Facts], None]) -> _Taken:
    return read_value, name, dict.fromkeys(meanings)


def _section(fold: Callable[[Facts, object, bool], int], *meanings: Callable[[Facts], None]) -> _Taken:
    return fold, None, dict.fromkeys(meanings)


_KEYS: dict[str, _Taken] = {
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
    "subtask_name": _to(_words, "job_name"),
    "subtask_id": _to(_identifier, "submission_id"),
    "gcode_file": _to(_words, "file_name", meaning.derive_file),
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
_UNIT_MODULES = {"ams": UNIT_KINDS[1], "ams_f1": UNIT_KINDS[2], "n3f": UNIT_KINDS[3], "n3s": UNIT_KINDS[4]}


def _merge_version(raw: Raw, given: object) -> Raw:
    faults = 0
    try:
        modules = values.entries(given)
    except Unreadable:
        return Raw(raw.known, raw.facts, raw.heard, raw.faults_counted + 1)
    facts = dict(raw.facts)
    kinds: dict[int, str] = {}
    model: PrinterModel | None = None
    for entry in modules:
        try:
            module = values.mapping(entry)
            name = values.text(module.get("name"))
            if name == "ota":
                faults += _take(facts, module, "sw_ver", _words, "firmware")
            model = model or _module_model(name, module)
            family, _, number = name.partition("/")
            if family in _UNIT_MODULES and number:
                kinds[values.whole(number)] = _UNIT_MODULES[family]
        except Unreadable:
            faults += 1
    if model:
        facts["printer_model"], facts["model"] = model, model.name
    facts["unit_kinds"] = kinds
    for work_out in (meaning.derive_heat, meaning.derive_hardware, meaning.derive_spools, meaning.derive_feeding):
        work_out(facts)
    return Raw(raw.known, facts, raw.heard, raw.faults_counted + faults)


def _module_model(name: str, module: Mapping[str, object]) -> PrinterModel | None:
    if name not in ("ota", "esp32", "ap", "rv1126"):
        return None
    for key, find in (("product_name", model_of_name), ("project_name", model_of_code)):
        told = module.get(key)
        if type(told) is str and (model := find(told[:64])):
            return model
    if module.get("hw_ver") == "AP02":  # the only sign of an X1E
        return model_of_name("X1E")
    return model_of_name("X1 Carbon") if name == "rv1126" else None
