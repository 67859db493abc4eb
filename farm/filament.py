"""Which spool feeds which filament of a plate: type, colour and grams must fit. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

from coloraide import Color

from farm.assignment import cheapest_columns

if TYPE_CHECKING:
    from farm.plate_facts import PlateFacts

Place = tuple[int, int]

EXTERNAL_UNIT = 255
# CIEDE2000. About 2 is just noticeable side by side; black filament reads up to 5 from #000000, red to orange is 21.
COLOR_LIMIT = 10.0
# What a colour counts that is not known: further away than any that is.
UNKNOWN_DISTANCE = 1000.0

HEX_COLOR = re.compile(r"#[0-9a-f]{6}([0-9a-f]{2})?", re.ASCII)
# The longest CSS name has 20 letters; whatever else is free text is not handed to the library.
COLOR_NAME = re.compile(r"[a-z]{3,24}", re.ASCII)
TENTH = Decimal("0.1")
NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class FilamentNeed:
    """One filament of a plate. `filament_id` is the slicer's number of it, from 1; None is not known."""

    filament_id: int
    material_type: str | None
    color: str | None
    grams: Decimal | None


@dataclass(frozen=True, slots=True)
class LoadedSpool:
    """A spool on a printer. `free_grams`: what the ledger says less what prints under way are going to take;
    `is_replaceable_only`: so near its end that nothing may be started on it."""

    material_id: int | None
    ams_id: int
    tray_id: int
    slot: int | None
    material_type: str
    color: str | None
    free_grams: Decimal | None
    is_replaceable_only: bool = False

    @property
    def place(self) -> Place:
        return self.ams_id, self.tray_id


@dataclass(frozen=True, slots=True)
class Matching:
    """`places`: filament_id -> (ams_id, tray_id), for those that found one. `reasons` is empty when all did."""

    places: dict[int, Place]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Unit:
    """Filaments that take one place together: alike in type and colour."""

    needs: tuple[FilamentNeed, ...]

    @property
    def first(self) -> FilamentNeed:
        return self.needs[0]

    @property
    def grams(self) -> Decimal | None:
        known = [need.grams for need in self.needs if need.grams is not None]
        return sum(known, NOTHING) if known else None

    def at(self, place: Place) -> dict[int, Place]:
        return {need.filament_id: place for need in self.needs}


@dataclass(frozen=True, slots=True)
class _Offer:
    """A spool beside those that a person chose: its grams after them, and the filament whose like alone may join."""

    spool: LoadedSpool
    free_grams: Decimal | None
    taken_by: FilamentNeed | None


def needs_of(
    facts: PlateFacts | None, *, material_type: str | None, material_color: str | None, grams: Decimal | None
) -> tuple[FilamentNeed, ...]:
    """What a print needs. Its own colour and grams count where there is one filament to which they belong; its type
    where the file says none."""
    filaments = facts.filaments if facts is not None else ()
    if len(filaments) > 1:
        return tuple(FilamentNeed(each.filament_id, each.material_type, each.color, each.grams) for each in filaments)
    if not filaments:
        return (FilamentNeed(1, material_type, material_color, grams),)
    only = filaments[0]
    return (
        FilamentNeed(
            only.filament_id,
            only.material_type or material_type,
            material_color or only.color,
            only.grams if grams is None else grams,
        ),
    )


def match(
    needs: Sequence[FilamentNeed],
    spools: Sequence[LoadedSpool],
    *,
    chosen: Mapping[int, Place] | None = None,
    any_color: bool = False,
) -> Matching:
    """Exactly one place for each filament of a plate, or in words for a person why there is none.

    Types must be equal (case-folded: PLA Silk is not PLA). The nearest colour wins, within COLOR_LIMIT; of equally
    near ones the spool with the least grams that suffice. Grams are compared where both are known. A place in `chosen`
    (by filament_id) wins over colour, not over type, grams or an end that is near. `any_color` lets any colour pass.
    Two filaments share a place only if they are alike in type and colour. The same input gives the same answer.
    """
    chosen = chosen or {}
    places, reasons, offers = _take_chosen(needs, sorted(spools, key=lambda spool: spool.place), chosen)
    others = [need for need in needs if need.filament_id not in chosen]
    units = _group(others)
    found = _assign(units, offers, any_color)
    if found.reasons and len(units) < len(others):
        apart = _assign([_Unit((need,)) for need in others], offers, any_color)
        found = found if apart.reasons else apart
    return Matching(places | found.places, (*reasons, *found.reasons))


@lru_cache(maxsize=4096)
def color_distance(a: str, b: str) -> float | None:
    """CIEDE2000 between two colours, each `#RRGGBB`, `#RRGGBBAA` or a CSS name; None when one is not a colour."""
    first, second = _color(a), _color(b)
    if first is None or second is None:
        return None
    return float(first.delta_e(second, method="2000"))


def same_type(a: str, b: str) -> bool:
    """Whether two materials are the same one: PLA is pla, and never PLA Silk."""
    return _plain(a) == _plain(b)


def place_name(spool: LoadedSpool) -> str:
    """How a person calls a spool's place."""
    if spool.slot is not None:
        return f"slot {spool.slot}"
    return "the external spool" if spool.ams_id == EXTERNAL_UNIT else f"AMS {spool.ams_id} tray {spool.tray_id}"


@lru_cache(maxsize=1024)
def color_name(color: str) -> str:
    """A colour as a person says it: its CSS name where it has one, else as hex; other words as they are."""
    found = _color(color)
    return color if found is None else str(found.to_string(names=True, hex=True))


def describe_need(need: FilamentNeed, grams: Decimal | None) -> str:
    """`PETG black 43 g`, without what is not known."""
    words = (
        need.material_type,
        color_name(need.color) if need.color else None,
        None if grams is None else f"{_shown(grams, ROUND_CEILING)} g",
    )
    return " ".join(word for word in words if word)


def may_feed(need: FilamentNeed, spools: Iterable[LoadedSpool]) -> bool:
    """A quick no, or maybe: whether any of these spools has the type and, if it is a known one, about the colour."""
    if need.material_type is None:
        return False
    is_known = need.color is not None and _color(need.color) is not None
    return any(
        same_type(need.material_type, spool.material_type)
        and (not is_known or (spool.color is not None and _is_near(need.color or "", spool.color)))
        for spool in spools
    )


@lru_cache(maxsize=4096)
def _is_near(a: str, b: str) -> bool:
    distance = _difference(a, b)
    return distance is not None and distance <= COLOR_LIMIT


@lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _shown(grams: Decimal, rounding: str) -> str:
    """To a tenth. What is needed rounds up and what is there rounds down, so the two never look equal."""
    return f"{max(grams, NOTHING).quantize(TENTH, rounding)}".removesuffix(".0")


@lru_cache(maxsize=1024)
def _color(text: str) -> Color | None:
    plain = text.strip().casefold()
    if HEX_COLOR.fullmatch(plain):
        # The last two digits are opacity, which a ledger and a slicer write differently.
        return Color(plain[:7])
    name = re.sub(r"[ _-]", "", plain)
    if not COLOR_NAME.fullmatch(name) or name == "transparent":
        return None
    try:
        return Color(name)
    except ValueError:
        return None


def _difference(wanted: str, have: str | None) -> float | None:
    """How far apart two colours are; the same words are the same colour, whatever they mean."""
    if have is None:
        return None
    return 0.0 if _plain(wanted) == _plain(have) else color_distance(wanted, have)


def _sought_color(need: FilamentNeed, spools: Iterable[LoadedSpool]) -> str | None:
    """The colour to look for: a real one, or words that stand on a spool, too."""
    if not need.color:
        return None
    if _color(need.color) is None and all(_difference(need.color, spool.color) != 0 for spool in spools):
        return None
    return need.color


def _group(needs: Iterable[FilamentNeed]) -> list[_Unit]:
    alike: dict[tuple[str, str], list[FilamentNeed]] = {}
    for need in needs:
        # Without a colour nobody can say that two filaments are alike.
        color = _plain(color_name(need.color)) if need.color else f"filament {need.filament_id}"
        alike.setdefault((_plain(need.material_type or ""), color), []).append(need)
    return [_Unit(tuple(group)) for group in alike.values()]


def _alike(a: FilamentNeed, b: FilamentNeed) -> bool:
    return len(_group((a, b))) == 1


def _take_chosen(
    needs: Sequence[FilamentNeed], spools: Sequence[LoadedSpool], chosen: Mapping[int, Place]
) -> tuple[dict[int, Place], list[str], list[_Offer]]:
    """(places, reasons, what is left for the other filaments)."""
    by_place = {spool.place: spool for spool in spools}
    wishes: dict[Place, list[FilamentNeed]] = {}
    for need in needs:
        if need.filament_id in chosen:
            wishes.setdefault(chosen[need.filament_id], []).append(need)
    places: dict[int, Place] = {}
    reasons: list[str] = []
    for place, wanted in wishes.items():
        units = _group(wanted)
        spool = by_place.get(place)
        if spool is not None and len(units) > 1:
            reasons.append(f"{place_name(spool)} was chosen for filaments that are not alike")
        for unit in units:
            fault: str | None = "no spool is known in the place that was chosen"
            if spool is not None:
                fault = _type_fault(unit.first, spool) or _grams_fault(unit.grams, spool, spool.free_grams)
            if fault is None:
                places |= unit.at(place)
            else:
                reasons.append(f"needs {describe_need(unit.first, unit.grams) or 'a filament'}, {fault}")
    offers = []
    for spool in spools:
        takers = wishes.get(spool.place, [])
        taken = _Unit(tuple(takers)).grams or NOTHING
        free = None if spool.free_grams is None else spool.free_grams - taken
        offers.append(_Offer(spool, free, takers[0] if takers else None))
    return places, reasons, offers


def _type_fault(need: FilamentNeed, spool: LoadedSpool) -> str | None:
    if need.material_type is not None and not same_type(need.material_type, spool.material_type):
        return f"{place_name(spool)} has {spool.material_type}"
    return None


def _grams_fault(grams: Decimal | None, spool: LoadedSpool, free: Decimal | None) -> str | None:
    if spool.is_replaceable_only:
        return f"{place_name(spool)} is nearly empty: replace the spool"
    if grams is not None and free is not None and free < grams:
        return f"{place_name(spool)} has {_shown(free, ROUND_FLOOR)} g"
    return None


def _assign(units: Sequence[_Unit], offers: Sequence[_Offer], any_color: bool) -> Matching:
    """Units to spools, one each: as many as possible, then the least colour distance, then the least grams."""
    by_grams = sorted(
        range(len(offers)),
        key=lambda n: (offers[n].free_grams is None, offers[n].free_grams or NOTHING, offers[n].spool.place),
    )
    rank = {index: number for number, index in enumerate(by_grams)}
    # One thousandth of colour distance outweighs every rank; one place less outweighs every distance.
    step = (len(offers) + 1) * (len(units) + 1)
    without = (round(UNKNOWN_DISTANCE * 1000) + 1) * step * (len(units) + 1)
    costs: list[list[int]] = []
    weighed: list[_Unit] = []
    reasons: list[str] = []
    for unit in units:
        fits, faults = _weigh(unit, offers, any_color)
        if not fits:
            reasons.append(_why_none(unit, faults, has_spools=bool(offers)))
            continue
        row = [2 * without] * len(offers) + [without] * len(units)
        for index, distance in fits.items():
            row[index] = round(distance * 1000) * step + rank[index]
        costs.append(row)
        weighed.append(unit)
    places: dict[int, Place] = {}
    for unit, column in zip(weighed, cheapest_columns(costs), strict=True):
        if column < len(offers):
            places |= unit.at(offers[column].spool.place)
        else:
            faults = [*_weigh(unit, offers, any_color)[1], "the spool that fits feeds another filament of this plate"]
            reasons.append(_why_none(unit, faults, has_spools=True))
    return Matching(places, tuple(reasons))


def _weigh(unit: _Unit, offers: Sequence[_Offer], any_color: bool) -> tuple[dict[int, float], list[str]]:
    """(colour distance of each offer that fits, by its index; what is wrong with the others of the type)."""
    need = unit.first
    of_type = [offer for offer in offers if need.material_type and not _type_fault(need, offer.spool)]
    usable = [offer.spool for offer in of_type if not offer.spool.is_replaceable_only]
    color = _sought_color(need, (offer.spool for offer in of_type))
    if color is None and not any_color and len({_plain(spool.color or place_name(spool)) for spool in usable}) > 1:
        listed = [f"{place_name(spool)} ({color_name(spool.color) if spool.color else '?'})" for spool in usable]
        return {}, [f"choose {', '.join(listed[:-1])} or {listed[-1]}"]
    fits: dict[int, float] = {}
    faults: list[str] = []
    for index, offer in enumerate(offers):
        if offer not in of_type:
            continue
        spool = offer.spool
        distance = 0.0 if color is None else _difference(color, spool.color)
        fault = _grams_fault(unit.grams, spool, offer.free_grams)
        if distance is None and not any_color:
            fault = f"the colour of {place_name(spool)} is not known"
        elif distance is not None and distance > COLOR_LIMIT and not any_color:
            fault = f"{place_name(spool)} has {color_name(spool.color or '')}"
        elif fault is None and offer.taken_by is not None and not _alike(need, offer.taken_by):
            fault = f"{place_name(spool)} feeds another filament of this plate"
        if fault is None:
            fits[index] = UNKNOWN_DISTANCE if distance is None else distance
        else:
            faults.append(fault)
    return fits, faults


def _why_none(unit: _Unit, faults: Sequence[str], *, has_spools: bool) -> str:
    need = unit.first
    described = describe_need(need, unit.grams)
    if need.material_type is None:
        return f"nobody said which material filament {need.filament_id} is ({described or 'nor how much'})"
    if not faults:
        faults = [f"no {need.material_type} is loaded" if has_spools else "no spool is known on this printer"]
    return f"needs {described}, {', '.join(faults)}"
