"""What a printer reads from the file it is told to print: time, layers, filaments, whom it was sliced for."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from typing import BinaryIO
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

_HEAD_BYTES = 65536
_TIME = re.compile(rb"total estimated time: (?:(\d+)d )?(?:(\d+)h )?(?:(\d+)m )?(\d+)s")


class UnreadableFileError(Exception):
    """Not a sliced file, or the plate is not in it."""


@dataclass(frozen=True)
class SlicedFilament:
    """One filament of a plate; `id` is the slicer's, 1-based and with gaps."""

    id: int
    material: str
    grams: float


@dataclass(frozen=True)
class SlicedPlate:
    """One plate as a printer sees it. Times in seconds, weights in grams, temperatures in whole °C."""

    prediction_seconds: float
    layers: int
    filaments: tuple[SlicedFilament, ...]
    model_id: str = ""
    nozzle_diameters: str = ""
    nozzle_temperature: int = 220
    bed_temperature: int = 60

    @property
    def grams(self) -> float:
        return sum(filament.grams for filament in self.filaments)


def read_plate(file: BinaryIO, gcode_member: str) -> SlicedPlate:
    """The plate whose G-code is `gcode_member`, e.g. `Metadata/plate_1.gcode`.

    Raises UnreadableFileError.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            with archive.open(gcode_member) as gcode:
                head = gcode.read(_HEAD_BYTES)
            slice_info = archive.read("Metadata/slice_info.config")
        return _plate(head, slice_info, gcode_member)
    except (zipfile.BadZipFile, KeyError, ParseError, DefusedXmlException, ValueError, OSError) as problem:
        raise UnreadableFileError(f"{gcode_member}: {problem}") from problem


def _plate(head: bytes, slice_info: bytes, gcode_member: str) -> SlicedPlate:
    number = re.search(r"(\d+)\.gcode$", gcode_member)
    facts: dict[str, str] = {}
    filaments: list[SlicedFilament] = []
    for element in fromstring(slice_info).iter("plate"):
        found = {item.get("key", ""): item.get("value", "") for item in element.iter("metadata")}
        if number is None or found.get("index") != number.group(1):
            continue
        facts = found
        filaments = [
            SlicedFilament(int(item.get("id", "1")), item.get("type", ""), float(item.get("used_g", "0")))
            for item in element.iter("filament")
        ]
    seconds = float(facts["prediction"]) if "prediction" in facts else _head_seconds(head)
    return SlicedPlate(
        prediction_seconds=max(seconds, 1.0),
        layers=max(_head_number(head, rb"; total layer number: (\d+)", 1), 1),
        filaments=tuple(filaments),
        model_id=facts.get("printer_model_id", ""),
        nozzle_diameters=facts.get("nozzle_diameters", ""),
        nozzle_temperature=_head_number(head, rb"; nozzle_temperature = (\d+)", 220),
        bed_temperature=_head_number(head, rb"; textured_plate_temp = (\d+)", 60),
    )


def _head_number(head: bytes, pattern: bytes, otherwise: int) -> int:
    found = re.search(pattern, head)
    return int(found.group(1)) if found else otherwise


def _head_seconds(head: bytes) -> float:
    found = _TIME.search(head)
    if found is None:
        return 3600.0
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
