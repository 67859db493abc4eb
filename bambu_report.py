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

import bambu.meaning as meaning
import bambu.values as values
from bambu.keys import KEYS, take, words
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
_ATTRIBUTES = [entry.name for entry in fields(PrinterState)]
_attributes_of: Callable[[Facts], Any] = itemgetter(*_ATTRIBUTES)
_NOTHING: Facts = {name: getattr(UNKNOWN, name) for name in _ATTRIBUTES}


@dataclass(frozen=True, slots=True)
class Raw:
    """What has been heard so far. A value: merging makes another, or returns the same where nothing is new.

    `heard` holds, by the wire's names, what was last taken over: what is merely repeated need not be read again.
    """

    facts: Facts = field(default_factory=_NOTHING.copy)
    heard: dict[str, tuple[bool, object]] = field(default_factory=dict)


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
    return Raw(facts, raw.heard)


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
    facts = raw.facts
    if facts["known"]:
        return PrinterState(*_attributes_of(facts))
    return PrinterState(model=facts["model"], firmware=facts["firmware"], faults_counted=facts["faults_counted"])


def _merge_status(raw: Raw, report: dict[str, Any]) -> Raw:
    full = _report_is_full(report)
    heard, facts = raw.heard, dict(raw.facts)
    faults = 0
    derive: dict[Callable[[Facts], None], None] = {}
    for key, given in report.items():
        taken = KEYS.get(key)
        if taken is None:
            continue
        before = heard.get(key)
        # Repeating what was taken over last changes nothing, unless a whole list now stands where a part stood.
        if before is not None and (before[0] or not full) and _same(before[1], given):
            continue
        if heard is raw.heard:
            heard = dict(heard)
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
    if heard is raw.heard and (facts["known"] or not full):
        return raw
    facts["known"] = facts["known"] or full
    facts["faults_counted"] += faults
    return Raw(facts, heard)


def _with_fault(raw: Raw) -> Raw:
    return Raw({**raw.facts, "faults_counted": raw.facts["faults_counted"] + 1}, raw.heard)


def _same(one: object, other: object) -> bool:
    try:
        return one == other
    except RecursionError:  # nested as deeply as a parser lets pass
        return False


_UNIT_MODULES = {"ams": UNIT_KINDS[1], "ams_f1": UNIT_KINDS[2], "n3f": UNIT_KINDS[3], "n3s": UNIT_KINDS[4]}


def _merge_version(raw: Raw, given: object) -> Raw:
    faults = 0
    try:
        modules = values.entries(given)
    except Unreadable:
        return _with_fault(raw)
    facts = dict(raw.facts)
    kinds: dict[int, str] = {}
    model: PrinterModel | None = None
    for entry in modules:
        try:
            module = values.mapping(entry)
            name = values.text(module.get("name"))
            if name == "ota":
                faults += take(facts, module, "sw_ver", words, "firmware")
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
    facts["faults_counted"] += faults
    return Raw(facts, raw.heard)


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
