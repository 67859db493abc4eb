"""Spools: their stages, and the ledger that books every gram.

Functions here change rows of the open session and, if they do not say otherwise, flush; the caller commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

import notifications
from farm.plate_facts import known_plate
from models import (
    BambuMaterial,
    LedgerEntry,
    LedgerKind,
    Printer,
    PrintEvent,
    ScheduledPrint,
    StartIntent,
    db,
    place_of,
    slot_of,
)

if TYPE_CHECKING:
    from settings import Settings

NOTHING = Decimal(0)
MILLIGRAM = Decimal("0.001")
# Made once, for these run with every print that ends.
LIVE_SPOOLS = (
    sa.select(BambuMaterial)
    .where(
        BambuMaterial.user_id == sa.bindparam("user"),
        BambuMaterial.printer_id == sa.bindparam("printer"),
        BambuMaterial.removed_at.is_(None),
    )
    .order_by(BambuMaterial.id)
    .with_for_update()
    .execution_options(populate_existing=True)
)
STARTED_FROM = (
    sa.select(StartIntent.mapping)
    .where(StartIntent.print_id == sa.bindparam("print"), StartIntent.confirmed_at.is_not(None))
    .order_by(StartIntent.id.desc())
    .limit(1)
)
GRAMS_PER_KG = Decimal(1000)


class Stage(StrEnum):
    """How far a spool is used up, from best to worst."""

    new = "new"
    in_use = "in_use"
    low = "low"
    critical = "critical"
    replace = "replace"  # type: ignore[assignment]  # hides str.replace, which no stage needs
    depleted = "depleted"


BEST_TO_WORST = tuple(Stage)
ANNOUNCED_STAGES = (Stage.low, Stage.critical, Stage.replace, Stage.depleted)


@dataclass(frozen=True, slots=True)
class StageLimits:
    """Where the stages begin. Edges belong to the worse stage."""

    low_percent: Decimal = Decimal(70)
    critical_percent: Decimal = Decimal(20)
    critical_grams: Decimal = Decimal(30)
    replace_percent: Decimal = Decimal(2)

    @classmethod
    def from_settings(cls, settings: Settings) -> StageLimits:
        return cls(settings.low_percent, settings.critical_percent, settings.critical_grams, settings.replace_percent)


def whole_milligrams(grams: Decimal) -> Decimal:
    """As stored. Rounded before anything is added up: else a balance and its ledger would round apart."""
    return grams.quantize(MILLIGRAM, ROUND_HALF_UP)


def share_of(weight_grams: Decimal, share: Decimal) -> Decimal:
    """A share (0-1) of a weight in whole milligrams; a little is never rounded to nothing."""
    return max(whole_milligrams(weight_grams * share), MILLIGRAM) if share else NOTHING


def percent_of(weight_grams: Decimal, remaining_grams: Decimal) -> Decimal:
    """What remains, in percent with two decimals; a spool that was touched never reads 100, nor one with rest 0."""
    percent = (remaining_grams * 100 / weight_grams).quantize(Decimal("0.01"), ROUND_HALF_UP)
    if remaining_grams < weight_grams:
        percent = min(percent, Decimal("99.99"))
    return max(percent, Decimal("0.01")) if remaining_grams else NOTHING


def stage_of(weight_grams: Decimal, remaining_grams: Decimal, limits: StageLimits) -> Stage:
    """The worst stage that applies."""
    percent = remaining_grams * 100 / weight_grams
    if remaining_grams <= 0:
        return Stage.depleted
    if percent <= limits.replace_percent:
        return Stage.replace
    if percent <= limits.critical_percent or remaining_grams < limits.critical_grams:
        return Stage.critical
    if percent <= limits.low_percent:
        return Stage.low
    return Stage.in_use if remaining_grams < weight_grams else Stage.new


def cost_of(grams: Decimal, cost_per_kg: Decimal | None) -> Decimal | None:
    """Exact cost of some grams, unrounded; None when the price is not known."""
    return None if cost_per_kg is None else grams * cost_per_kg / GRAMS_PER_KG


def load_spool(material: BambuMaterial, *, at: datetime, limits: StageLimits) -> None:
    """Put a new spool on its printer. Its present stage counts as announced: the person has just looked at it."""
    material.loaded_at = material.created_at = material.updated_at = at
    material.announced_stage = stage_of(material.weight_grams, material.remaining_grams, limits)
    db.session.add(material)
    db.session.flush()
    _book(material, LedgerKind.loaded, material.remaining_grams, at=at)
    _announce(material, "material.changed", at, reason="loaded")


def remove_spool(material: BambuMaterial, *, at: datetime) -> None:
    """Take a spool out of its slot. The record and its ledger stay."""
    material.removed_at = material.updated_at = at
    # The new spool's INSERT must find the slot free: flush before it is added.
    db.session.flush()
    _announce(material, "material.changed", at, reason="removed")


def correct_spool(
    material: BambuMaterial,
    *,
    weight_grams: Decimal | None,
    remaining_pct: Decimal | None,
    at: datetime,
    limits: StageLimits,
) -> None:
    """A person's correction. A new weight alone keeps the percent, since a PUT changes only the keys it sends."""
    before = material.remaining_grams
    weight = material.weight_grams if weight_grams is None else whole_milligrams(weight_grams)
    share = remaining_pct / 100 if remaining_pct is not None else before / material.weight_grams
    after = share_of(weight, share)
    material.weight_grams, material.remaining_grams, material.updated_at = weight, after, at
    if after != before:
        _book(material, LedgerKind.corrected, after - before, at=at)
    _settle_stage(material, at=at, limits=limits)
    db.session.flush()


def use_filament(
    material: BambuMaterial, grams: Decimal, *, of_print: ScheduledPrint, at: datetime, limits: StageLimits
) -> Decimal | None:
    """Book a print's grams on a spool that `shares_of` has locked, and return their cost. More than there was ends at
    0, and the ledger says so. Does not flush."""
    grams = whole_milligrams(grams)
    taken = min(grams, material.remaining_grams)
    cost = cost_of(grams, material.cost_per_kg)
    material.remaining_grams -= taken
    material.updated_at = at
    wanted = grams if grams > taken else None
    _book(material, LedgerKind.used, -taken, wanted=wanted, cost=cost, of_print=of_print, at=at)
    _settle_stage(material, at=at, limits=limits)
    return cost


def shares_of(
    of_print: ScheduledPrint, grams: Decimal, start: StartIntent | None = None
) -> list[tuple[BambuMaterial, Decimal]]:
    """Which spools a print used, and how much of each: as it was started, else from its slot, else from the only live
    spool of its type. Several filaments share the grams as the slicer reckoned them. The printer's spools are locked
    from here on. `start`: the print's last one that was confirmed, if the caller has it."""
    wanted_of = {"user": of_print.user_id, "printer": of_print.printer_id}
    live = db.session.execute(LIVE_SPOOLS, wanted_of).scalars().all()
    by_place = {(material.ams_id, material.tray_id): material for material in live}
    fed = _places_of(start.mapping if start is not None else _mapping_of(of_print))
    if len(fed) > 1:
        return _divide(of_print, grams, fed, by_place)
    places = list(fed.values())
    if of_print.material_slot is not None:
        places.append(place_of(of_print.material_slot))
    for place in places:
        if place in by_place:
            return [(by_place[place], grams)]
    wanted = (of_print.material_type or "").casefold()
    of_type = [material for material in live if material.material_type.casefold() == wanted]
    return [(of_type[0], grams)] if len(of_type) == 1 else []


def _mapping_of(of_print: ScheduledPrint) -> list[Any] | None:
    return db.session.execute(STARTED_FROM, {"print": of_print.id}).scalar_one_or_none()


def _places_of(mapping: list[Any] | None) -> dict[int, tuple[int, int]]:
    """By filament of the slicer's list, from 1: where it was fed from."""
    return {number: (place[0], place[1]) for number, place in enumerate(mapping or [], 1) if place is not None}


def _divide(
    of_print: ScheduledPrint,
    grams: Decimal,
    fed: dict[int, tuple[int, int]],
    by_place: dict[tuple[int, int], BambuMaterial],
) -> list[tuple[BambuMaterial, Decimal]]:
    plate = known_plate(of_print.print_file.plates, of_print.plate) if of_print.print_file else None
    reckoned = {each.filament_id: each.grams or NOTHING for each in plate.filaments} if plate else {}
    total = sum((reckoned.get(number, NOTHING) for number in fed), NOTHING)
    if not total:
        return []
    shares: dict[int, tuple[BambuMaterial, Decimal]] = {}
    left = grams
    for number, place in fed.items():
        # The last one takes what rounding left: the shares add up to the milligram.
        part = whole_milligrams(grams * reckoned.get(number, NOTHING) / total)
        share = left if number == max(fed) else min(left, part)
        left -= share
        material = by_place.get(place)
        if material is not None and share > 0:
            before = shares.get(material.id, (material, NOTHING))[1]
            shares[material.id] = material, before + share
    return list(shares.values())


def _book(
    material: BambuMaterial,
    kind: LedgerKind,
    delta: Decimal,
    *,
    at: datetime,
    wanted: Decimal | None = None,
    cost: Decimal | None = None,
    of_print: ScheduledPrint | None = None,
) -> None:
    db.session.add(
        LedgerEntry(
            user_id=material.user_id,
            material_id=material.id,
            print_id=of_print.id if of_print else None,
            kind=kind,
            delta_grams=delta,
            wanted_grams=wanted,
            cost=cost,
            at=at,
        )
    )


def _settle_stage(material: BambuMaterial, *, at: datetime, limits: StageLimits) -> None:
    """Announce a worse stage once, re-arm on a better one, and take an empty spool out of its slot."""
    stage = stage_of(material.weight_grams, material.remaining_grams, limits)
    announced = Stage(material.announced_stage)
    material.announced_stage = stage
    if stage in ANNOUNCED_STAGES and BEST_TO_WORST.index(stage) > BEST_TO_WORST.index(announced):
        _announce(material, f"material.{stage}", at)
    if stage is Stage.depleted:
        material.removed_at = at


def announce_change(
    printer: Printer,
    place: tuple[int, int],
    material: BambuMaterial | None,
    *,
    material_type: str | None,
    color: str | None,
    reason: str,
    at: datetime,
) -> None:
    """A printer sees another spool in a place, of this type and colour, or none. `material`: what the ledger has there,
    which stays as it is."""
    event = PrintEvent(
        user_id=printer.user_id,
        printer_id=printer.id,
        material_id=material.id if material is not None else None,
        kind="material.changed",
        reason=reason,
        details={
            "slot": slot_of(*place),
            "ams_id": place[0],
            "tray_id": place[1],
            "material_type": material_type,
            "color": color,
            # Of a spool that was swapped nobody knows yet.
            "weight_grams": None,
            "remaining_grams": None,
            "remaining_pct": None,
        },
        at=at,
    )
    db.session.add(event)
    notifications.fan_out(event)


def _announce(material: BambuMaterial, kind: str, at: datetime, reason: str | None = None) -> None:
    event = PrintEvent(
        user_id=material.user_id,
        printer_id=material.printer_id,
        material_id=material.id,
        kind=kind,
        reason=reason,
        details={
            "slot": material.slot,
            "ams_id": material.ams_id,
            "tray_id": material.tray_id,
            "material_type": material.material_type,
            "color": material.color,
            "weight_grams": float(material.weight_grams),
            "remaining_grams": float(material.remaining_grams),
            "remaining_pct": float(percent_of(material.weight_grams, material.remaining_grams)),
        },
        at=at,
    )
    db.session.add(event)
    notifications.fan_out(event)
