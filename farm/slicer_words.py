"""What slicers write into a sliced file about its plates -> the names of our facts. Runs in the reader's process.

Three sources, the better first: `slice_info.config` (XML, each plate with its filaments), `project_settings.config` and
`plate_N.json` (JSON: temperatures, bed), and the comments of the G-code, where older and other slicers write it only.
What comes out is not checked yet: `farm.plate_facts` does that, in the process that believes it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from farm.sliced_archive import Refused

MAX_ELEMENTS = 200_000
MAX_DEPTH = 64
MAX_FILAMENTS = 64
MAX_SECONDS = 100_000 * 60
Facts = dict[str, Any]

_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,30})?", re.ASCII)
# `; key = value` and `; key : value`; a line may be many kilobytes of another key.
_COMMENT = re.compile(
    r"^; (total filament weight \[g\]|total filament length \[mm\]|filament used \[g\]|filament used \[mm\]|filament|"
    r"filament_type|filament_colour|filament_ids|filament_self_index|nozzle_temperature|nozzle_temperature_initial_layer|"
    r"\w{1,20}_plate_temp|\w{1,20}_plate_temp_initial_layer|bed_temperature_formula|curr_bed_type|nozzle_diameter|"
    r"printer_model) ?[=:] ?([^\r\n]{0,4096})",
    re.ASCII | re.MULTILINE,
)
_TIME = re.compile(
    r"^; .{0,100}?(?:total estimated time:|estimated printing time \(normal mode\) =) ?"
    r"(?:(\d{1,6})d ?)?(?:(\d{1,6})h ?)?(?:(\d{1,6})m ?)?(?:(\d{1,6})s)?",
    re.ASCII | re.MULTILINE,
)
BEDS = {
    "cool plate": "cool_plate",
    "textured cool plate": "textured_cool_plate",
    "engineering plate": "eng_plate",
    "high temp plate": "hot_plate",
    "smooth pei plate": "hot_plate",
    "smooth pei plate / high temp plate": "hot_plate",
    "textured pei plate": "textured_plate",
    "supertack plate": "supertack_plate",
    "bambu cool plate supertack": "supertack_plate",
}


class _SliceInfo:
    """Takes the elements as they are read, so that a large tree is never built. A target of an XML parser."""

    def __init__(self) -> None:
        self.plates: dict[str, Facts] = {}
        self._plate: Facts | None = None
        self._elements = self._depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        self._depth += 1
        if self._elements > MAX_ELEMENTS or self._depth > MAX_DEPTH:
            raise Refused("The description of the plates is absurdly large.")
        if tag == "plate":
            self._plate = {"filaments": []}
        elif self._plate is None:
            return
        elif tag == "metadata":
            self._plate.setdefault(attributes.get("key", ""), attributes.get("value", ""))
        elif tag == "filament" and len(self._plate["filaments"]) < MAX_FILAMENTS:
            self._plate["filaments"].append(attributes)

    def end(self, tag: str) -> None:
        self._depth -= 1
        if tag != "plate" or self._plate is None:
            return
        if self._plate.get("index", "") in self.plates:
            raise Refused("This file describes one plate twice.")
        self.plates[self._plate.get("index", "")] = self._plate
        self._plate = None

    def close(self) -> dict[str, Facts]:
        return self.plates


def read_slice_info(document: bytes) -> dict[str, Facts]:
    """By the plate's number, as text: its metadata, and under "filaments" the attributes of each.

    Raises:
        Refused: no sound XML, one with a document type or entities, or an absurd one.
    """
    parser = DefusedXMLParser(target=_SliceInfo(), forbid_dtd=True)
    try:
        parser.feed(document)
        found: dict[str, Facts] = parser.close()
    except (ParseError, DefusedXmlException, ValueError, LookupError, OSError):
        raise Refused("The description of the plates in this file cannot be read.") from None
    return found


def read_settings(document: bytes) -> Facts:
    """A JSON object with numbers left as they are written; empty when it is none, since a printer needs it not."""
    try:
        found = json.loads(document, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_comments(head: bytes, tail: bytes) -> Facts:
    """What the comments at both ends of a G-code say, the first of each key; `seconds` among it."""
    found: Facts = {}
    for part in (head, tail):
        text = part.decode("utf-8", "replace")
        for key, value in _COMMENT.findall(text):
            found.setdefault(key, value.strip())
        times = (sum(int(digits or 0) * unit for digits, unit in _units(each)) for each in _TIME.finditer(text))
        if "seconds" not in found and (seconds := next((each for each in times if each), None)):
            found["seconds"] = str(seconds)
    return found


def _units(match: re.Match[str]) -> Iterator[tuple[str | None, int]]:
    return zip(match.groups(), (86_400, 3600, 60, 1), strict=True)


def describe(plate: int, stated: Facts, settings: Facts, layout: Facts, comments: Facts) -> Facts:
    """One plate by the names of `PlateFacts`. `stated`: of slice_info; `layout`: of plate_N.json."""
    # The G-code says the same as the project where it says anything: it fills in what other slicers leave out.
    settings = {**settings, **{key: value for key, value in comments.items() if key not in settings}}
    bed_type = _bed_type(layout.get("bed_type")) or _bed_type(comments.get("curr_bed_type"))
    bed_type = bed_type or _bed_type(settings.get("curr_bed_type"))
    filaments = [_stated_filament(each) for each in stated.get("filaments", ())] or _filaments_of(comments)
    for each in filaments:
        each["nozzle_temp"] = _of_filament(settings, "nozzle_temperature", each["filament_id"], by_variant=True)
    diameters = stated.get("nozzle_diameters") or settings.get("nozzle_diameter")
    return {
        "plate": plate,
        "print_minutes": _minutes(stated.get("prediction")) or _minutes(comments.get("seconds")),
        "grams": stated.get("weight"),
        "filaments": filaments,
        "printer_model": stated.get("printer_model_id") or settings.get("printer_model"),
        "nozzle_diameters_mm": _listed(diameters),
        "bed_type": bed_type,
        "bed_temp": _bed_temp(bed_type, filaments, settings, layout),
    }


def _stated_filament(attributes: Facts) -> Facts:
    return {
        "filament_id": attributes.get("id"),
        "material_type": attributes.get("type"),
        "color": attributes.get("color"),
        "grams": attributes.get("used_g"),
        "meters": attributes.get("used_m"),
        "vendor_profile": attributes.get("tray_info_idx"),
    }


def _filaments_of(comments: Facts) -> list[Facts]:
    """From the comments alone: only where they say clearly which filaments the plate uses."""
    grams = _listed(comments.get("total filament weight [g]") or comments.get("filament used [g]"))
    lengths = _listed(comments.get("total filament length [mm]") or comments.get("filament used [mm]"))
    types, colors = _listed(comments.get("filament_type")), _listed(comments.get("filament_colour"))
    presets = _listed(comments.get("filament_ids"))
    numbers = _listed(comments.get("filament"))
    if not numbers and len(grams) == max(len(types), 1):
        numbers = [str(number) for number in range(1, len(grams) + 1)]
    found: list[Facts] = []
    for place, number in enumerate(numbers[:MAX_FILAMENTS]):
        used = _at(grams, place)
        if len(grams) == len(numbers) and number.isascii() and number.isdigit() and len(number) < 4 and _float(used):
            index = int(number) - 1
            found.append(
                {
                    "filament_id": number,
                    "material_type": _at(types, index),
                    "color": _at(colors, index),
                    "grams": used,
                    "meters": millimeters / 1000 if (millimeters := _float(_at(lengths, place))) else None,
                    "vendor_profile": _at(presets, index),
                }
            )
    return found


def _bed_type(said: Any) -> str | None:
    word = said.strip().lower() if isinstance(said, str) else ""
    return word if word in BEDS.values() else BEDS.get(word)


def _bed_temp(bed_type: str | None, filaments: list[Facts], settings: Facts, layout: Facts) -> str | None:
    """Of the first filament that is printed, or the highest of all: the slicer's own rule, which the file names."""
    if bed_type is None or not filaments:
        return None
    numbers = [each["filament_id"] for each in filaments]
    temps = {number: _of_filament(settings, f"{bed_type}_temp", number) for number in numbers}
    if settings.get("bed_temperature_formula") == "by_highest_temp":
        return max((temp for temp in temps.values() if temp), key=lambda temp: _float(temp) or 0, default=None)
    first = layout.get("first_extruder")
    number = str(int(first) + 1) if isinstance(first, str) and re.fullmatch("[0-9]{1,2}", first) else numbers[0]
    return temps.get(number, temps[numbers[0]])


def _of_filament(settings: Facts, key: str, number: Any, *, by_variant: bool = False) -> str | None:
    """A setting's value for the filament of that number; the first layer's where the others' is missing."""
    if not (isinstance(number, str) and re.fullmatch("[0-9]{1,3}", number)):
        return None
    owners = _listed(settings.get("filament_self_index")) if by_variant else []
    for name in (key, f"{key}_initial_layer"):
        values = _listed(settings.get(name))
        if owners and len(owners) == len(values):
            # A printer with several nozzles has several values per filament, and says whose each is.
            return values[owners.index(number)] if number in owners else None
        if values:
            return _at(values, int(number) - 1) or (values[0] if len(values) == 1 else None)
    return None


def _listed(value: Any) -> list[str]:
    """The texts in a list, or in a text with commas or semicolons."""
    if isinstance(value, str):
        value = re.split("[,;]", value[:4096])
    return [each.strip(' "[]') for each in value[:1000] if isinstance(each, str)] if isinstance(value, list) else []


def _at(values: list[str], index: int) -> str | None:
    return values[index] if 0 <= index < len(values) else None


def _float(text: Any) -> float | None:
    return float(text) if isinstance(text, str) and _NUMBER.fullmatch(text.strip()) else None


def _minutes(seconds: Any) -> int | None:
    """Begun minutes count: a plan that is a little too long does no harm."""
    found = _float(seconds)
    return math.ceil(found / 60) if found and found <= MAX_SECONDS else None
