"""What a Bambu Lab printer says, folded into one PrinterState. Pure; the wire's words stop here.

A printer sends full reports and partial ones. `merge` folds each message into a Raw, a plain value, reading every value
as it comes in: one of the wrong kind is dropped, counted, and the last good one kept. `read` makes the state of a Raw.
Until a full report has come everything is unknown, whatever parts were heard before. Nothing here ever raises.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import orjson

import bambu.meaning as meaning
import bambu.values as values
from bambu.keys import EVERYTHING, KEYS, same, steps, take, words
from bambu.meaning import Facts
from bambu.models import PrinterModel, model_of_code, model_of_name, model_of_serial
from bambu.spools import UNIT_KINDS, Spool, Unit
from bambu.state import ACTIVE, UNKNOWN, Nozzle, PrinterActivity, PrinterState, Storage
from bambu.values import Unreadable

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
_NOTHING_HEARD: Facts = {"printer_model": None, "obeys": None}
_NOTHING_SHOWN: Facts = {entry.name: getattr(UNKNOWN, entry.name) for entry in fields(PrinterState)}
_set_whole = object.__setattr__


class Raw(NamedTuple):
    """What has been heard so far. A value: merging makes another, or returns the same where nothing is new.

    `facts` and `shown` as in bambu.meaning. `heard` holds, by the wire's names, what was last taken over: what is
    merely repeated need not be read again. A section stands there with whether it came in a full report. None of the
    three is ever written to once it is here.
    """

    facts: Facts = _NOTHING_HEARD
    shown: Facts = _NOTHING_SHOWN
    heard: dict[str, object] = {}


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
    facts = {"printer_model": model, "obeys": obeys}
    shown = {**_NOTHING_SHOWN, "model": model.name if model else None}
    meaning.derive_nozzle_in_use(facts, shown)
    return Raw(facts, shown)


def learn(raw: Raw, *, obeys: bool) -> Raw:
    """What an answer taught: whether the printer takes commands from us. Counts for models that do not say it."""
    facts, shown = {**raw.facts, "obeys": obeys}, dict(raw.shown)
    meaning.derive_hardware(facts, shown)
    return Raw(facts, shown, raw.heard)


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
        return _with_fault(raw)
    report = message.get("print")
    if type(report) is dict and report.get("command") == "push_status":
        raw = _merge_status(raw, report)
    info = message.get("info")
    if type(info) is dict and info.get("command") == "get_version" and "module" in info:
        raw = _merge_version(raw, info["module"])
    return raw


def read(raw: Raw) -> PrinterState:
    """The state of everything heard so far; all unknown before the first full report, but for model and firmware."""
    shown = raw.shown
    if shown["known"]:
        # Thirty-odd attributes change by one or two at a time: the state takes the whole dictionary over as its own.
        state = PrinterState.__new__(PrinterState)
        _set_whole(state, "__dict__", shown)
        return state
    return PrinterState(model=shown["model"], firmware=shown["firmware"], faults_counted=shown["faults_counted"])


def _merge_status(raw: Raw, report: dict[str, Any]) -> Raw:
    full = _report_is_full(report)
    facts, shown, heard = raw
    is_new = False
    faults = needs = 0
    for key, given in report.items():
        taken = KEYS.get(key)
        if taken is None:
            continue
        read_value, name, is_shown, needed = taken
        before: Any = heard.get(key, _UNHEARD)
        # Repeating what was taken over last changes nothing, unless a whole section now stands where a part stood.
        if name is not None:
            if before == given:
                continue
        elif (before[0] or not full) and same(before[1], given):
            continue
        if not is_new:
            is_new, facts, shown, heard = True, facts.copy(), shown.copy(), heard.copy()
        try:
            if name is None:
                wrong, needed = read_value(facts, given, full, before[1])
                faults += wrong
                heard[key] = full, given
            else:
                (shown if is_shown else facts)[name] = read_value(given)
                heard[key] = given
        except Unreadable:
            faults += 1
            continue
        needs |= needed
    if not is_new:
        if shown["known"] or not full:
            return raw
        shown = shown.copy()
    for work_out in steps(needs):
        work_out(facts, shown)
    if full:
        shown["known"] = True
    if faults:
        shown["faults_counted"] += faults
    return Raw(facts, shown, heard)


# No value of JSON equals it, nor its second part any section.
_UNHEARD = (False, object())


def _with_fault(raw: Raw) -> Raw:
    return raw._replace(shown={**raw.shown, "faults_counted": raw.shown["faults_counted"] + 1})


_UNIT_MODULES = {"ams": UNIT_KINDS[1], "ams_f1": UNIT_KINDS[2], "n3f": UNIT_KINDS[3], "n3s": UNIT_KINDS[4]}


def _merge_version(raw: Raw, given: object) -> Raw:
    faults = 0
    try:
        modules = values.entries(given)
    except Unreadable:
        return _with_fault(raw)
    facts, shown = raw.facts.copy(), raw.shown.copy()
    kinds: dict[int, str] = {}
    model: PrinterModel | None = None
    for entry in modules:
        try:
            module = values.mapping(entry)
            name = values.text(module.get("name"))
            if name == "ota":
                faults += take(shown, module, "sw_ver", words, "firmware")
            model = model or _module_model(name, module)
            family, _, number = name.partition("/")
            if family in _UNIT_MODULES and number:
                kinds[values.whole(number)] = _UNIT_MODULES[family]
        except Unreadable:
            faults += 1
    if model:
        facts["printer_model"], shown["model"] = model, model.name
    facts["unit_kinds"] = kinds
    for work_out in steps(EVERYTHING):
        work_out(facts, shown)
    shown["faults_counted"] += faults
    return Raw(facts, shown, raw.heard)


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
