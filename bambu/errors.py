"""Faults of a Bambu Lab printer: codes as the printer shows them, and what a person should do, in our own words.

Two channels: `print_error` (one number, shown `0500-4004`) and the health messages (`0300-0100-0001-0007`). Codes whose
remedy matters to somebody running a queue have a sentence here; every other carries the maker's page.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bambu.values import Unreadable, entries, mapping, whole_between


class Severity(StrEnum):
    fatal = "fatal"
    serious = "serious"
    common = "common"
    info = "info"


@dataclass(frozen=True, slots=True)
class Fault:
    """What the printer complains of. `code` as on its screen; `url` a page of the maker's, or None."""

    code: str
    severity: Severity
    message: str
    url: str | None


DEVELOPER_MODE_OFF = 84033543  # 0502-4007: the command carried no signature of the maker's
CANCELLED = frozenset({0x0300400C, 0x0500400E})
COMMAND_UNVERIFIED = "0500-0500-0001-0007"

_SWITCH_ON_DEVELOPER_MODE = (
    "the printer refuses commands from other software: on its screen switch on LAN Only and then Developer Mode, and"
    " enter the new access code here"
)
_AMS_SLOT_EMPTY = "the slot in use has run out of filament: load more, then resume"
_EXTERNAL_SPOOL_EMPTY = "the external spool has run out of filament: load more, then resume"
_MAPPING = "the printer could not use the chosen slots: check that each is loaded, then start again"

# print_error and command codes -> what to do. Source of the codes: public code lists; sentences are ours.
_SENTENCES: dict[str, str] = {
    "0300-400C": "the print was cancelled",
    "0500-400E": "the print was cancelled",
    "0500-4004": "the printer is busy with another print",
    "0500-4003": "the printer cannot read the file: slice it again for this printer and upload it anew",
    "0500-4002": "the printer did not find the file at the path it was given",
    "0500-4006": "the printer's storage is full: delete old files from its card or stick",
    "0500-400C": "there is no memory card or USB stick in the printer: insert one",
    "0500-4037": "the file was sliced for another printer model: slice it for this one",
    "0500-4038": "the file was sliced for another nozzle: change the nozzle, or slice it again",
    "0500-803C": "the nozzle differs from the one the file was sliced for: change it, or stop the print",
    "0500-8013": "the file is no longer on the printer: upload it again",
    "0500-C010": "the memory card or USB stick cannot be read or written: reinsert, reformat or replace it",
    "0500-C011": "the memory card or USB stick is slow; prints go on, but consider another",
    "0500-8051": "the build plate is not the kind the file was sliced for: change the plate, then resume",
    "0500-8061": "no build plate was found: put one on, then resume",
    "0500-8062": "the marker of the build plate was not found: clean and align the plate, then resume",
    "0300-8003": "failed extrusion (spaghetti) was seen: look at the print, then resume or stop it",
    "0300-800F": "the door is open: close it, then resume",
    "0300-8015": _EXTERNAL_SPOOL_EMPTY,
    "0700-8010": "the AMS's feeding motor is overloaded: check for tangled or stuck filament",
    "07FF-8011": _EXTERNAL_SPOOL_EMPTY,
    "0700-8012": _MAPPING,
    "07FF-8012": _MAPPING,
    "0502-4007": _SWITCH_ON_DEVELOPER_MODE,
    "0502-4008": _SWITCH_ON_DEVELOPER_MODE,
    "0502-4009": _SWITCH_ON_DEVELOPER_MODE,
    "0502-400A": _SWITCH_ON_DEVELOPER_MODE,
    "0502-400B": _SWITCH_ON_DEVELOPER_MODE,
    "0502-400C": _SWITCH_ON_DEVELOPER_MODE,
    COMMAND_UNVERIFIED: _SWITCH_ON_DEVELOPER_MODE,
}
_FAMILIES = {("07", "8011"): _AMS_SLOT_EMPTY, ("12", "8011"): _AMS_SLOT_EMPTY, ("18", "8011"): _AMS_SLOT_EMPTY}
_MODULES = {
    0x03: "motion system",
    0x05: "mainboard",
    0x07: "AMS",
    0x08: "toolhead",
    0x0C: "camera",
    0x12: "AMS Lite",
    0x18: "AMS HT",
}
# Health messages that say less than their level claims, and stay listed on healthy printers for months.
_MILDER = {COMMAND_UNVERIFIED: Severity.common, "0500-0600-0002-0070": Severity.info}
_LEVELS = {1: Severity.fatal, 2: Severity.serious, 3: Severity.common, 4: Severity.info}

_uint32 = whole_between(0, 0xFFFFFFFF)


def error_code(number: int) -> str:
    """`print_error` or `err_code` as the printer's screen writes it: 83902468 -> `0500-4004`."""
    digits = f"{number & 0xFFFFFFFF:08X}"
    return f"{digits[:4]}-{digits[4:]}"


def sentence(code: str) -> str | None:
    """What to do about a code, or None when only the maker's page can tell."""
    return _SENTENCES.get(code) or _FAMILIES.get((code[:2], code[5:]))


def print_fault(number: int) -> Fault:
    """The fault behind a non-zero `print_error`. It says nothing of whether the print goes on: its state does."""
    code = error_code(number)
    if number in CANCELLED:
        severity = Severity.info
    else:
        # Last four digits 4xxx: the print ends; 8xxx: it pauses; others are advice.
        severity = Severity.serious if number >> 12 & 0xF in (4, 8) else Severity.common
    message = sentence(code) or f"{_module(number)}: fault {code}, see the maker's page"
    return Fault(code, severity, message, "https://wiki.bambulab.com/en/hms/error-code")


def health_faults(given: object) -> tuple[tuple[Fault, ...], int]:
    """The faults of the `hms` list, which each report replaces whole, and how many entries were unreadable.

    Raises Unreadable when there is no list.
    """
    found: dict[str, Fault] = {}
    unreadable = 0
    for entry in entries(given):
        try:
            fault = _health_fault(entry)
        except Unreadable:
            unreadable += 1
            continue
        if fault is not None:
            found[fault.code] = fault
    return tuple(found.values()), unreadable


def _health_fault(given: object) -> Fault | None:
    entry = mapping(given)
    attribute, number = _uint32(entry.get("attr")), _uint32(entry.get("code"))
    if not attribute or not number:
        return None
    digits = f"{attribute:08X}{number:08X}"
    groups = (digits[:4], digits[4:8], digits[8:12], digits[12:])
    code = "-".join(groups)
    message = sentence(code) or f"{_module(attribute)}: health message {code}, see the maker's page"
    severity = _MILDER.get(code) or _LEVELS.get(number >> 16, Severity.common)
    page = f"https://wiki.bambulab.com/en/x1/troubleshooting/hmscode/{'_'.join(groups)}"
    return Fault(code, severity, message, page)


def _module(number: int) -> str:
    return _MODULES.get(number >> 24, "printer")
