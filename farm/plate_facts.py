"""What a slicer wrote about a plate, as values: how it is kept in `PrintFile.plates`, and what a print takes from it.

What comes out of a file was written by strangers: each value is checked, cut and cleaned once, or it is unknown (None).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from bambu.models import model_of_code, model_of_name

MAX_FILAMENTS = 64
MAX_PLATE = 999
MAX_MINUTES = 100_000
MAX_GRAMS = 100_000
MAX_NOZZLE_TEMP = 500
MAX_BED_TEMP = 200
BED_TYPES = frozenset(
    {"cool_plate", "textured_cool_plate", "eng_plate", "hot_plate", "textured_plate", "supertack_plate"}
)
MILLI = Decimal("0.001")
_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,2})?", re.ASCII)
_COLOR = re.compile(r"#?([0-9A-Fa-f]{6})(?:[0-9A-Fa-f]{2})?", re.ASCII)
_PRESET = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
_HARMLESS_MARKS = frozenset(" +-_./()#&'")


@dataclass(frozen=True, slots=True)
class PlateFilament:
    """One filament that a plate uses. `filament_id`: its number in the slicer's list, from 1, with gaps. `color`:
    `#RRGGBB`. `nozzle_temp` in °C. `vendor_profile`: the slicer's short name of it, such as GFA00."""

    filament_id: int
    material_type: str | None = None
    color: str | None = None
    grams: Decimal | None = None
    meters: Decimal | None = None
    nozzle_temp: int | None = None
    vendor_profile: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "filament_id": self.filament_id,
            "material_type": self.material_type,
            "color": self.color,
            "grams": _plain(self.grams),
            "meters": _plain(self.meters),
            "nozzle_temp": self.nozzle_temp,
            "vendor_profile": self.vendor_profile,
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> PlateFilament:
        """What `to_json` made."""
        return cls(
            kept["filament_id"],
            kept["material_type"],
            kept["color"],
            _exact(kept["grams"]),
            _exact(kept["meters"]),
            kept["nozzle_temp"],
            kept["vendor_profile"],
        )

    @classmethod
    def from_stranger(cls, said: Mapping[str, Any]) -> PlateFilament | None:
        """None without a number of its own, which nothing can be mapped to."""
        filament_id = _whole(said.get("filament_id"), 1, MAX_FILAMENTS)
        if filament_id is None:
            return None
        return cls(
            filament_id=filament_id,
            material_type=_label(said.get("material_type"), 32),
            color=_color(said.get("color")),
            grams=_decimal(said.get("grams"), MAX_GRAMS),
            meters=_decimal(said.get("meters"), MAX_GRAMS),
            nozzle_temp=_whole(said.get("nozzle_temp"), 0, MAX_NOZZLE_TEMP),
            vendor_profile=_matching(_PRESET, said.get("vendor_profile")),
        )


@dataclass(frozen=True, slots=True)
class PlateFacts:
    """One sliced plate. `printer_model`: a name of `bambu.models`, else what the slicer called it. `grams`: of all its
    filaments. `bed_type`: one of BED_TYPES. `nozzle_temp`: of the filament that it uses most of. None is unknown."""

    plate: int
    filaments: tuple[PlateFilament, ...] = ()
    print_minutes: int | None = None
    grams: Decimal | None = None
    printer_model: str | None = None
    nozzle_diameters_mm: tuple[Decimal, ...] = ()
    bed_type: str | None = None
    nozzle_temp: int | None = None
    bed_temp: int | None = None
    has_thumbnail: bool = False

    @property
    def filament_ids(self) -> tuple[int, ...]:
        return tuple(each.filament_id for each in self.filaments)

    @property
    def main_filament(self) -> PlateFilament | None:
        """The one it uses most of; of equals the first."""
        return _main(self.filaments)

    def print_settings(self) -> dict[str, Any]:
        """What a print of this plate takes from it, by the names of a print's columns; without what is unknown."""
        main = self.main_filament
        settings = {
            "estimated_duration_minutes": self.print_minutes,
            "estimated_grams": self.grams,
            "material_type": main.material_type if main else None,
            "material_color": main.color if main else None,
            "nozzle_temp": self.nozzle_temp,
            "bed_temp": self.bed_temp,
        }
        return {name: value for name, value in settings.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """How `PrintFile.plates` keeps it and the API answers it."""
        return {
            "plate": self.plate,
            "print_minutes": self.print_minutes,
            "grams": _plain(self.grams),
            "filaments": [each.to_json() for each in self.filaments],
            "printer_model": self.printer_model,
            "nozzle_diameters_mm": [_plain(each) for each in self.nozzle_diameters_mm],
            "bed_type": self.bed_type,
            "nozzle_temp": self.nozzle_temp,
            "bed_temp": self.bed_temp,
            "has_thumbnail": self.has_thumbnail,
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> PlateFacts:
        """What `to_json` made: an entry of `PrintFile.plates`. One of an older upload has no more than its number."""
        if not is_read(kept):
            return cls(kept["plate"])
        return cls(
            kept["plate"],
            tuple(PlateFilament.from_json(each) for each in kept["filaments"]),
            kept["print_minutes"],
            _exact(kept["grams"]),
            kept["printer_model"],
            tuple(Decimal(str(each)) for each in kept["nozzle_diameters_mm"]),
            kept["bed_type"],
            kept["nozzle_temp"],
            kept["bed_temp"],
            kept["has_thumbnail"],
        )

    @classmethod
    def from_stranger(cls, said: Mapping[str, Any]) -> PlateFacts:
        """By the same names, whatever anybody wrote there; what cannot be is unknown.

        Raises:
            ValueError: without the number of a plate.
        """
        plate = _whole(said.get("plate"), 1, MAX_PLATE)
        if plate is None:
            raise ValueError("facts of no plate")
        by_id: dict[int, PlateFilament] = {}
        for entry in _items(said.get("filaments")):
            if isinstance(entry, Mapping) and (filament := PlateFilament.from_stranger(entry)) is not None:
                by_id.setdefault(filament.filament_id, filament)
        filaments = tuple(by_id[filament_id] for filament_id in sorted(by_id))
        main = _main(filaments)
        nozzle_temp = main.nozzle_temp if main else None
        return cls(
            plate=plate,
            filaments=filaments,
            print_minutes=_whole(said.get("print_minutes"), 1, MAX_MINUTES),
            grams=_decimal(said.get("grams"), MAX_GRAMS) or _sum_of_grams(filaments),
            printer_model=_printer_model(said.get("printer_model")),
            nozzle_diameters_mm=tuple(
                found for each in _items(said.get("nozzle_diameters_mm"))[:2] if (found := _decimal(each, 5))
            ),
            bed_type=next((each for each in BED_TYPES if each == said.get("bed_type")), None),
            nozzle_temp=nozzle_temp if nozzle_temp is not None else _whole(said.get("nozzle_temp"), 0, MAX_NOZZLE_TEMP),
            bed_temp=_whole(said.get("bed_temp"), 0, MAX_BED_TEMP),
            has_thumbnail=said.get("has_thumbnail") is True,
        )


def is_read(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of `PrintFile.plates` says more than the plate's number: those of older uploads do not."""
    return "filaments" in entry


def known_plate(plates: Sequence[Mapping[str, Any]], plate: int) -> PlateFacts | None:
    """What `PrintFile.plates` says of a plate; None for no such plate, or one of an older upload."""
    entry = next((entry for entry in plates if entry["plate"] == plate), None)
    return PlateFacts.from_json(entry) if entry and is_read(entry) else None


def _main(filaments: tuple[PlateFilament, ...]) -> PlateFilament | None:
    return max(filaments, key=lambda each: each.grams or Decimal(0), default=None)


def _sum_of_grams(filaments: tuple[PlateFilament, ...]) -> Decimal | None:
    known = [each.grams for each in filaments if each.grams is not None]
    total = sum(known, Decimal(0))
    return total if known and total <= MAX_GRAMS else None


def _exact(value: int | float | None) -> Decimal | None:
    return None if value is None else Decimal(str(value))


def _plain(value: Decimal | None) -> int | float | None:
    if value is None:
        return None
    return int(value) if value == value.to_integral_value() else float(value)


def _items(value: Any) -> list[Any]:
    return value[:MAX_FILAMENTS] if isinstance(value, list) else []


def _decimal(value: Any, high: int) -> Decimal | None:
    """A number from 0 to `high`, to the thousandth."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = value.strip() if isinstance(value, str) else repr(float(value)) if abs(value) <= high else ""
    if len(text) > 64 or not _NUMBER.fullmatch(text):
        return None
    number = Decimal(text)
    return number.quantize(MILLI, ROUND_HALF_UP).normalize() + 0 if number <= high else None


def _whole(value: Any, low: int, high: int) -> int | None:
    number = _decimal(value, high)
    if number is None:
        return None
    whole = int(number.to_integral_value(ROUND_HALF_UP))
    return whole if low <= whole <= high else None


def _label(value: Any, length: int) -> str | None:
    """A short text for people: letters, digits and a few marks, nothing that steers a terminal or a page."""
    if not isinstance(value, str):
        return None
    kept = (
        each
        for each in unicodedata.normalize("NFC", value[:1000])
        if each in _HARMLESS_MARKS or unicodedata.category(each)[0] in "LN"
    )
    return "".join(kept).strip()[:length].strip() or None


def _color(value: Any) -> str | None:
    found = _COLOR.fullmatch(value.strip()) if isinstance(value, str) and len(value) < 64 else None
    return f"#{found[1].upper()}" if found else None


def _matching(pattern: re.Pattern[str], value: Any) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _printer_model(value: Any) -> str | None:
    label = _label(value, 64)
    model = (model_of_code(label) or model_of_name(label)) if label else None
    return model.name if model else label
