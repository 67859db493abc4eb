"""An order line and the product profiles of the shop -> the plates that make it, or why nobody can know. Pure."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol

from farm.filament import same_type
from farm.plate_facts import PlateFacts, known_plate
from models import PrintFile, ProductProfile


class Why(StrEnum):
    """What keeps a line from being printed by itself."""

    no_mapping = "no_mapping"
    ambiguous = "ambiguous"
    no_rule = "no_rule"
    rule_does_not_fit = "rule_does_not_fit"
    no_file = "no_file"
    personalization = "personalization"
    too_old = "too_old"


# A person may still have prints made of such a line: without a file they never reach a machine.
RECORDABLE = frozenset({Why.no_mapping, Why.no_file})


class Line(Protocol):
    """What is asked of an order line."""

    sku: Any
    etsy_listing_id: Any
    title: Any
    quantity: Any
    options: Any
    personalization: Any
    personalization_seen_at: Any


@dataclass(frozen=True, slots=True)
class LinePlate:
    """A plate that a line needs, printed `count` times for `units` pieces. Without `units_per_plate` the one print is
    for the whole line; with it the last one may make more than is needed. What is None is taken from the sliced file,
    else it is the usual."""

    file: PrintFile | None = None
    plate: int = 1
    count: int = 1
    units: int = 1
    units_per_plate: int | None = None
    material_type: str | None = None
    color: str | None = None
    print_time_minutes: int | None = None
    filament_grams: Decimal | None = None
    nozzle_temp_c: int | None = None
    bed_temp_c: int | None = None
    print_speed_mms: int | None = None

    @property
    def facts(self) -> PlateFacts | None:
        """What the slicer wrote about it."""
        return known_plate(self.file.plates, self.plate) if self.file is not None else None


@dataclass(frozen=True, slots=True)
class LinePlates:
    """What a line needs. With a `why` it must not be printed by itself, and `sentence` tells a person; of the reasons
    in RECORDABLE `plates` are those that a person may have made all the same. `profile_ids`: where several fit alike,
    all of them."""

    profile: ProductProfile | None
    plates: tuple[LinePlate, ...]
    why: Why | None = None
    sentence: str = ""
    profile_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Choice:
    """What the buyer's options say by the profile's rules."""

    material_type: str | None = None
    color: str | None = None


class _Unfit(Exception):
    def __init__(self, why: Why, sentence: str) -> None:
        super().__init__(sentence)
        self.why = why


def plain(text: str) -> str:
    """A text as it is compared: Etsy's entities, case and white space make no difference."""
    return " ".join(html.unescape(text).split()).casefold()


def waits_for_person(line: Line) -> bool:
    """A text of the buyer's is to go on it, and nobody has said yet that it may be printed."""
    return line.personalization is not None and line.personalization_seen_at is None


class Mappings:
    """A seller's product profiles, to find those of order lines. `files`: by id, those that further plates name."""

    def __init__(self, profiles: Iterable[ProductProfile], files: Mapping[int, PrintFile]) -> None:
        self._files = files
        self._by_sku: dict[str, list[ProductProfile]] = {}
        self._by_listing: dict[str, list[ProductProfile]] = {}
        self._by_title: dict[str, list[ProductProfile]] = {}
        for profile in sorted(profiles, key=lambda each: each.id):
            for table, key in (
                (self._by_sku, profile.sku),
                (self._by_listing, profile.etsy_listing_id),
                (self._by_title, profile.product_name),
            ):
                if key:
                    table.setdefault(key, []).append(profile)

    def fitting(self, line: Line, shop_id: int | None) -> list[ProductProfile]:
        """The profiles that fit a line best: none, the one, or several that fit alike. By the shop and the SKU, else
        the SKU in profiles of all shops, else the listing and its options, else the exact title and the options."""
        chosen = {plain(name): plain(value) for name, value in (line.options or {}).items()}
        by_sku = self._by_sku.get(line.sku or "", ())
        own = [each for each in by_sku if each.shop_id is not None and each.shop_id == shop_id]
        of_all = [each for each in by_sku if each.shop_id is None]
        for profiles in (own, of_all):
            found = _best((_sku_rank(each, chosen), each) for each in profiles)
            if found:
                return found
        for table, key in ((self._by_listing, line.etsy_listing_id), (self._by_title, line.title)):
            profiles = [each for each in table.get(key or "", ()) if each.shop_id in (None, shop_id)]
            found = _best((_option_rank(each, chosen), each) for each in profiles)
            if found:
                return found
        return []

    def plates_of(self, line: Line, shop_id: int | None) -> LinePlates:
        """What a line of an order of that shop needs."""
        fitting = self.fitting(line, shop_id)
        if not fitting:
            return LinePlates(None, (LinePlate(units=line.quantity),), Why.no_mapping, "No product profile fits it.")
        if len(fitting) > 1:
            ids = tuple(each.id for each in fitting)
            said = f"Product profiles {', '.join(map(str, ids))} fit it alike."
            return LinePlates(None, (), Why.ambiguous, said, ids)
        profile = fitting[0]
        try:
            plates = self._plates(line, profile)
        except _Unfit as error:
            return LinePlates(profile, (), error.why, str(error), (profile.id,))
        if any(each.file is None for each in plates):
            said = f"Product profile {profile.id} names no sliced file."
            return LinePlates(profile, plates, Why.no_file, said, (profile.id,))
        return LinePlates(profile, plates, profile_ids=(profile.id,))

    def _plates(self, line: Line, profile: ProductProfile) -> tuple[LinePlate, ...]:
        choice = _choose(line, profile)
        main = LinePlate(
            file=profile.print_file,
            plate=1 if profile.plate is None else profile.plate,
            count=-(-line.quantity // profile.units_per_plate) if profile.units_per_plate else 1,
            units=line.quantity,
            units_per_plate=profile.units_per_plate,
            material_type=profile.preferred_material,
            color=profile.preferred_color,
            print_time_minutes=profile.print_time_minutes,
            filament_grams=profile.filament_grams,
            nozzle_temp_c=profile.nozzle_temp_c,
            bed_temp_c=profile.bed_temp_c,
            print_speed_mms=profile.print_speed_mms,
        )
        drafts = [(main, choice), *(self._further(line, profile, choice, each) for each in profile.more_plates or [])]
        plates, is_told = [], _Choice()
        for plate, told in drafts:
            facts = plate.facts
            if facts is not None and len(facts.filaments) > 1:
                # Which of its filaments the buyer's colour would be, nobody has said.
                plates.append(plate)
                continue
            sliced_type = facts.filaments[0].material_type if facts is not None and facts.filaments else None
            if told.material_type and sliced_type and not same_type(told.material_type, sliced_type):
                raise _Unfit(
                    Why.rule_does_not_fit,
                    f"Its options say {told.material_type}, and the file of plate {plate.plate} is sliced for "
                    f"{sliced_type}.",
                )
            plates.append(
                replace(
                    plate,
                    material_type=told.material_type or plate.material_type,
                    color=told.color or plate.color,
                )
            )
            is_told = _Choice(told.material_type or is_told.material_type, told.color or is_told.color)
        if (choice.color and not is_told.color) or (choice.material_type and not is_told.material_type):
            raise _Unfit(
                Why.rule_does_not_fit, "Its options say a filament, and each of its plates is printed with several."
            )
        return tuple(plates)

    def _further(
        self, line: Line, profile: ProductProfile, choice: _Choice, kept: Mapping[str, Any]
    ) -> tuple[LinePlate, _Choice]:
        """A further plate, with what of the buyer's choice is for it: not what it fixes itself."""
        units = line.quantity * kept["copies"]
        grams = kept["filament_grams"]
        plate = LinePlate(
            file=self._files.get(kept["print_file_id"]),
            plate=kept["plate"],
            count=-(-units // kept["units_per_plate"]),
            units=units,
            units_per_plate=kept["units_per_plate"],
            material_type=kept["preferred_material"] or profile.preferred_material,
            color=kept["preferred_color"] or profile.preferred_color,
            print_time_minutes=kept["print_time_minutes"],
            filament_grams=None if grams is None else Decimal(grams),
            print_speed_mms=profile.print_speed_mms,
        )
        told = _Choice(
            None if kept["preferred_material"] else choice.material_type,
            None if kept["preferred_color"] else choice.color,
        )
        return plate, told


def _best(ranked: Iterable[tuple[tuple[int, ...] | None, ProductProfile]]) -> list[ProductProfile]:
    """Those of the highest rank, in the order that they came; one without a rank does not fit."""
    fitting = [(rank, profile) for rank, profile in ranked if rank is not None]
    highest = max((rank for rank, _ in fitting), default=None)
    return [profile for rank, profile in fitting if rank == highest]


def _fits(profile: ProductProfile, chosen: Mapping[str, str]) -> bool | None:
    """Whether the buyer chose just what the profile is for; None where something else."""
    named = [(chosen.get(plain(name)), plain(value)) for name, value in (profile.options or {}).items()]
    if any(have is not None and have != wanted for have, wanted in named):
        return None
    return all(have is not None for have, _ in named)


def _sku_rank(profile: ProductProfile, chosen: Mapping[str, str]) -> tuple[int, ...] | None:
    """A SKU says enough by itself; the options tell those of one SKU apart."""
    fits = _fits(profile, chosen)
    return None if fits is None else (int(fits), len(profile.options or {}) if fits else 0)


def _option_rank(profile: ProductProfile, chosen: Mapping[str, str]) -> tuple[int, ...] | None:
    """The more options it names, the more exact it is; then one of the shop alone goes before one of all."""
    return (len(profile.options or {}), int(profile.shop_id is not None)) if _fits(profile, chosen) else None


def _choose(line: Line, profile: ProductProfile) -> _Choice:
    """What the rules make of the buyer's options; of two that say the same thing the first one counts.

    Raises:
        _Unfit: an option with rules has a value that none of them names, or is missing while the line has one that
            nobody knows: it may be the same by another name.
    """
    rules: Sequence[Mapping[str, Any]] = profile.rules or []
    ruled = {plain(rule["option"]): rule["option"] for rule in reversed(rules)}
    known = {*ruled, *(plain(name) for name in profile.options or {})}
    unknown = [name for name in line.options or {} if plain(name) not in known]
    chosen: dict[str, str] = {}
    for name, value in (line.options or {}).items():
        chosen.setdefault(plain(name), value)
    choice = _Choice()
    for option in dict.fromkeys(plain(rule["option"]) for rule in rules):
        if option not in chosen and unknown:
            said = f"Its rules are for {ruled[option]}, which the line does not have, and nothing says what"
            raise _Unfit(Why.no_rule, f"{said} {unknown[0]} = {line.options[unknown[0]]} is.")
        if option not in chosen:
            continue
        wanted = plain(chosen[option])
        told = next((r for r in rules if plain(r["option"]) == option and plain(r["value"]) == wanted), None)
        if told is None:
            raise _Unfit(Why.no_rule, f"No rule says what {ruled[option]} = {chosen[option]} is.")
        choice = _Choice(choice.material_type or told["material_type"], choice.color or told["color"])
    return choice
