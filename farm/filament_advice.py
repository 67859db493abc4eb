"""What to do about moisture, spool by spool: dry it, store it sealed, put the printer into an enclosure. Pure.

Sources of the numbers. Temperatures and hours are the cautious end of what makers publish: Bambu Lab's "dry filament"
table and the drying presets in the profiles of Bambu Studio (PLA 45 °C, softening at 50; PETG 65 °C, 55 while it
prints, softening at 60), Prusa's and Ultimaker's pages on drying, and the table of PrintDry. Where they differ the
coolest is taken, with more hours rather than more heat. `softens_c` is the lowest temperature at which any of them
calls the material soft, glass transition or heat distortion, and drying stays below it.
`store_below_percent` and `open_days` are bounds of our own, in the makers' order of how thirsty the materials are:
nylon and PVA want less than about 20 % and take harm within a day or two, PLA stands the air of a dry room for weeks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

# What a room is taken to be heated to, and how warm it is taken to get in summer, where nobody said.
ASSUMED_ROOM_C, WARMEST_ASSUMED_ROOM_C = 21.0, 26.0
# Older, an AMS may have been refilled, opened or switched off since.
READING_GOOD_FOR = timedelta(hours=6)
# By so much above its bound a material takes up water about twice as fast.
FAR_ABOVE_PERCENT = 20
# Below this the corners of large parts of these materials lift in an open printer.
COLD_ROOM_C = 18
# Where the room's temperature is not known: so cold outside that an unheated room is too cold as well.
COLD_OUTSIDE_C = 10
# What a unit heats its spools to at the most (Bambu Lab's data sheets).
HEATED_UNITS = {"AMS 2 Pro": 65, "AMS HT": 85}
OPEN_PRINTERS = frozenset({"P1P", "A1", "A1 mini", "A2L"})


class Action(StrEnum):
    """The most urgent first."""

    dry = "dry"
    drying = "drying"
    store_sealed = "store_sealed"
    unknown = "unknown"
    fine = "fine"


class HumiditySource(StrEnum):
    """Where the humidity around a spool is known from."""

    ams = "ams"
    outdoor_estimate = "outdoor_estimate"
    none = "none"


@dataclass(frozen=True, slots=True)
class Family:
    """Materials that are treated alike. `needs_level`: at least so dry on the AMS's scale of 1 to 5, 5 the driest.

    `open_days`: for so long it may stand above its bound before it should be dried. `is_thirsty`: takes up water
    so fast that one whose air nobody knows counts as wet after that time. `warps`: wants warm air around the part.
    """

    name: str
    drying_c: int
    drying_hours: int
    softens_c: int
    store_below_percent: int
    needs_level: int
    open_days: int
    is_thirsty: bool = False
    warps: bool = False


PLA = Family("PLA", 45, 12, 50, 50, 3, 45)
PETG = Family("PETG", 55, 12, 60, 40, 4, 21)
PET = Family("PET", 65, 12, 70, 30, 4, 5, is_thirsty=True)
ABS = Family("ABS", 80, 6, 95, 40, 3, 21, warps=True)
ASA = Family("ASA", 80, 6, 95, 40, 3, 21, warps=True)
HIPS = Family("HIPS", 65, 4, 85, 45, 3, 30, warps=True)
PC = Family("PC", 80, 8, 108, 25, 4, 4, is_thirsty=True, warps=True)
PA = Family("PA", 80, 10, 100, 20, 5, 2, is_thirsty=True, warps=True)
PPA = Family("PPA", 100, 10, 120, 20, 5, 2, is_thirsty=True, warps=True)
PPS = Family("PPS", 100, 10, 120, 30, 4, 7, warps=True)
TPU = Family("TPU", 55, 8, 65, 30, 4, 4, is_thirsty=True)
PVA = Family("PVA", 45, 10, 50, 20, 5, 1, is_thirsty=True)
BVOH = Family("BVOH", 55, 8, 65, 20, 5, 1, is_thirsty=True)
PVB = Family("PVB", 45, 8, 55, 40, 4, 14)
PP = Family("PP", 55, 6, 75, 60, 2, 90, warps=True)

# A word of a material's name -> its family. Endings such as those of filled kinds are taken off before.
_WORDS = {
    **dict.fromkeys(("pla", "lwpla", "hspla", "htpla"), PLA),
    **dict.fromkeys(("petg", "pctg", "cpe"), PETG),
    **dict.fromkeys(("pet", "petp", "pett"), PET),
    **dict.fromkeys(("pc", "polycarbonate"), PC),
    **dict.fromkeys(("pa", "paht", "nylon", "polyamide"), PA),
    **dict.fromkeys(("tpu", "tpe", "tpc", "flex"), TPU),
    **dict.fromkeys(("pp", "polypropylene"), PP),
    "abs": ABS,
    "asa": ASA,
    "hips": HIPS,
    "ppa": PPA,
    "pps": PPS,
    "pva": PVA,
    "bvoh": BVOH,
    "pvb": PVB,
}
_WORD = re.compile(r"[a-z]+")
_ENDING = re.compile(r"(cf|gf|esd|plus|pro|hf|hs|max)$")


@dataclass(frozen=True, slots=True)
class AmsReading:
    """What an AMS reported. `humidity_level` 1 to 5, 5 the driest, is all that older ones tell; `temperature_c` is
    inside of it. None is not known; 0 % is a value."""

    printer_id: int
    ams_id: int
    kind: str | None
    humidity_percent: float | None
    humidity_level: int | None
    temperature_c: float | None
    drying_minutes: int | None
    heard_at: datetime

    @property
    def tells_humidity(self) -> bool:
        return self.humidity_percent is not None or self.humidity_level is not None


@dataclass(frozen=True, slots=True)
class LoadedMaterial:
    """A spool on a printer. `place` is how a person calls where it is; `printer_model` one of bambu.models."""

    material_id: int
    printer_id: int
    ams_id: int
    tray_id: int
    place: str
    material_type: str
    loaded_at: datetime
    printer_model: str | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """The air where the printers stand: `humidity_percent` estimated from outside, `temperature_c` only if a person
    said it. None is not known."""

    humidity_percent: float | None = None
    temperature_c: float | None = None
    outdoor_c: float | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """`family` None: a material we know nothing of. `humidity_*` is what the advice goes by, `sentences` the advice."""

    material_id: int
    family: Family | None
    action: Action
    source: HumiditySource
    humidity_percent: float | None
    humidity_level: int | None
    needs_enclosure: bool
    loaded_days: int
    sentences: tuple[str, ...]


def assumed_room_temperature(outdoor_c: float) -> float:
    """°C inside where nobody said: heated, and in summer about as warm as outside."""
    return min(max(outdoor_c, ASSUMED_ROOM_C), WARMEST_ASSUMED_ROOM_C)


def indoor_humidity(outdoor_percent: float, outdoor_c: float, indoor_c: float) -> float:
    """Relative humidity in % of the outdoor air once it has the room's temperature, at most 100.

    By Magnus' formula: 90 % at 0 °C are 22 % at 21 °C. What people, plants and washing add is not in it.
    """
    if outdoor_c == indoor_c:
        return outdoor_percent
    return min(100.0, outdoor_percent * _saturation_hpa(outdoor_c) / _saturation_hpa(indoor_c))


def _saturation_hpa(celsius: float) -> float:
    return 6.112 * math.exp(17.62 * celsius / (243.12 + celsius))


def family_of(material_type: str) -> Family | None:
    """The family of a material as people and printers write it; of a blend the one that stands the least heat.

    `Support for PLA/PETG`, `PLA Silk`, `PA6-CF`, `PAHT-CF`, `Nylon 12`, `TPU 95A`. None for what is not known.
    """
    found = []
    for word in _WORD.findall(material_type.casefold()):
        family = _WORDS.get(word) or _WORDS.get(_ENDING.sub("", word))
        if family is not None:
            found.append(family)
    return min(found, key=lambda each: each.drying_c, default=None)


def advise(
    materials: Sequence[LoadedMaterial], readings: Iterable[AmsReading], room: Room, now: datetime
) -> list[Advice]:
    """What to do about each spool, in the order given.

    A reading of the AMS that a spool is in counts before the estimate from outside, if it is not older than
    READING_GOOD_FOR.
    """
    by_unit = {(each.printer_id, each.ams_id): each for each in readings if now - each.heard_at < READING_GOOD_FOR}
    mates: dict[tuple[int, int], list[LoadedMaterial]] = {}
    for each in materials:
        mates.setdefault((each.printer_id, each.ams_id), []).append(each)
    found = []
    for material in materials:
        unit = (material.printer_id, material.ams_id)
        found.append(_advise_one(material, by_unit.get(unit), mates[unit], room, now))
    return found


def _advise_one(
    material: LoadedMaterial,
    reading: AmsReading | None,
    mates: Sequence[LoadedMaterial],
    room: Room,
    now: datetime,
) -> Advice:
    family = family_of(material.material_type)
    days = max(0, (now - material.loaded_at).days)
    source, percent, level = HumiditySource.none, None, None
    if reading is not None and reading.tells_humidity:
        source, percent, level = HumiditySource.ams, reading.humidity_percent, reading.humidity_level
    elif room.humidity_percent is not None:
        source, percent = HumiditySource.outdoor_estimate, room.humidity_percent
    action, why = _judge(family, source, percent, level, days)
    sentences: list[str] = []
    drying_minutes = _minutes_left(reading, now)
    if drying_minutes > 0:
        # Its own warm air would read as dry, and what it holds is being seen to.
        action = Action.drying
        sentences.append(f"Being dried in its AMS, for {drying_minutes} more minutes.")
    else:
        sentences.append(why)
        if action is Action.dry and family is not None:
            sentences.append(
                f"Dry it at {family.drying_c} °C for {family.drying_hours} hours, never hotter than "
                f"{family.softens_c} °C: it would soften on the spool."
            )
            sentences += _in_its_unit(family, reading, material, mates)
            sentences.append("Store it sealed with a desiccant afterwards.")
        elif action is Action.store_sealed:
            sentences.append(
                "Store it sealed with a desiccant, or in an AMS with dry desiccant, when it is not printing."
            )
    enclosure = family is not None and family.warps and _is_cold(room)
    if enclosure and family is not None:
        sentences.append(_on_enclosure(family, material.printer_model, room))
    return Advice(material.material_id, family, action, source, percent, level, enclosure, days, tuple(sentences))


def _minutes_left(reading: AmsReading | None, now: datetime) -> int:
    if reading is None or not reading.drying_minutes:
        return 0
    return reading.drying_minutes - (now - reading.heard_at) // timedelta(minutes=1)


def _judge(
    family: Family | None, source: HumiditySource, percent: float | None, level: int | None, days: int
) -> tuple[Action, str]:
    """(what to do, why in a sentence)."""
    told = _told(source, percent, level)
    if family is None:
        return Action.unknown, f"Nothing is known here of how this material takes moisture; {told}. Ask its maker."
    if source is HumiditySource.none:
        if family.is_thirsty and days > family.open_days:
            since = f"it has been loaded for {days} days, and nobody knows how humid it is there"
            return Action.dry, f"{family.name} draws water fast; {since}."
        return Action.unknown, f"{told[0].upper()}{told[1:]}: keep {family.name} below {family.store_below_percent} %."
    excess = _excess(family, percent, level)
    if excess <= 0:
        return Action.fine, f"Dry enough for {family.name}: {told}."
    wanted = _wanted(family, percent)
    allowed = max(1, family.open_days // 2) if excess > FAR_ABOVE_PERCENT else family.open_days
    if days >= allowed:
        return Action.dry, f"Too humid for {family.name} ({wanted}): {told}, and it has been loaded for {days} days."
    return Action.store_sealed, f"Too humid to leave {family.name} there for long ({wanted}): {told}."


def _excess(family: Family, percent: float | None, level: int | None) -> float:
    """By how many per cent it is too humid. A level is a range that has no exact percent (the makers of several
    programs found); a step of it counts as 20, which is how far apart they are."""
    if percent is not None:
        return percent - family.store_below_percent
    return 20.0 * (family.needs_level - (level or 0))


def _wanted(family: Family, percent: float | None) -> str:
    if percent is not None:
        return f"at most {family.store_below_percent} %"
    return f"at least level {family.needs_level} of 5, where 5 is the driest"


def _told(source: HumiditySource, percent: float | None, level: int | None) -> str:
    if source is HumiditySource.none:
        return "it is not known how humid it is there"
    if source is HumiditySource.ams:
        said = f"{percent:.0f} %" if percent is not None else f"level {level} of 5 (5 is the driest)"
        return f"its AMS reports {said}"
    return f"the room has about {percent:.0f} %, reckoned from the weather outside"


def _in_its_unit(
    family: Family, reading: AmsReading | None, material: LoadedMaterial, mates: Sequence[LoadedMaterial]
) -> list[str]:
    """Whether the AMS it is in can dry it, and what must not be heated with it."""
    hottest = HEATED_UNITS.get(reading.kind or "") if reading is not None else None
    if reading is None or hottest is None:
        return []
    if family.drying_c > hottest:
        return [f"Its {reading.kind} heats to {hottest} °C only: use a dryer that reaches {family.drying_c} °C."]
    soft = [
        f"{other.material_type} ({other.place})"
        for other in mates
        if other is not material
        and ((its := family_of(other.material_type)) is None or its.softens_c <= family.drying_c)
    ]
    first = f" Take out {', '.join(soft)} first." if soft else ""
    return [f"Its {reading.kind} can do that while nothing prints from it.{first}"]


def _is_cold(room: Room) -> bool:
    if room.temperature_c is not None:
        return room.temperature_c < COLD_ROOM_C
    return room.outdoor_c is not None and room.outdoor_c < COLD_OUTSIDE_C


def _on_enclosure(family: Family, printer_model: str | None, room: Room) -> str:
    if room.temperature_c is not None:
        cold = f"The room has {room.temperature_c:g} °C"
    else:
        cold = f"It is {room.outdoor_c or 0:.0f} °C outside, and an unheated room is too cold"
    if printer_model is None:
        what = "print it in an enclosure, warmed up before"
    elif printer_model in OPEN_PRINTERS:
        what = f"put an enclosure around the {printer_model}, and let it warm up before"
    else:
        what = f"keep door and lid of the {printer_model} closed, and let the chamber warm up before"
    return f"{cold}; {family.name} warps in cold air: {what}."
