"""The spools of printers with what is free on them: for whoever plans prints and whoever starts them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from farm.filament import LoadedSpool, Place, needs_of, same_type
from farm.materials import NOTHING, Stage, StageLimits, stage_of
from farm.plate_facts import known_plate
from models import (
    OPEN_INTENT_STATES,
    BambuMaterial,
    IntentState,
    Printer,
    PrintFile,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    db,
    place_of,
    slot_of,
)

# Written out in the statement: a partial index serves only a condition that names its values.
OPEN_START = StartIntent.state.in_(
    sa.bindparam("open_states", list(OPEN_INTENT_STATES), expanding=True, literal_execute=True)
)
PRINT_UNDER_WAY = (
    ScheduledPrint.id,
    ScheduledPrint.printer_id,
    ScheduledPrint.plate,
    ScheduledPrint.material_type,
    ScheduledPrint.material_color,
    ScheduledPrint.material_slot,
    ScheduledPrint.estimated_grams,
    PrintFile.plates,
    StartIntent.mapping,
)


AT_PRINTERS: sa.BindParameter[Any] = sa.bindparam("printers", expanding=True)
SPOOLS = (
    sa.select(
        BambuMaterial.id,
        BambuMaterial.printer_id,
        BambuMaterial.ams_id,
        BambuMaterial.tray_id,
        BambuMaterial.material_type,
        BambuMaterial.color,
        BambuMaterial.weight_grams,
        BambuMaterial.remaining_grams,
    )
    .where(BambuMaterial.printer_id.in_(AT_PRINTERS), BambuMaterial.removed_at.is_(None))
    .order_by(BambuMaterial.printer_id, BambuMaterial.ams_id, BambuMaterial.tray_id)
)
OF_FILE = sa.and_(PrintFile.user_id == ScheduledPrint.user_id, PrintFile.id == ScheduledPrint.print_file_id)
STARTED = (
    sa.select(*PRINT_UNDER_WAY)
    .select_from(ScheduledPrint)
    # By way of the printer: the index begins with the owner.
    .join(Printer, sa.and_(Printer.user_id == ScheduledPrint.user_id, Printer.id == ScheduledPrint.printer_id))
    .outerjoin(PrintFile, OF_FILE)
    .outerjoin(
        StartIntent, sa.and_(StartIntent.print_id == ScheduledPrint.id, StartIntent.state == IntentState.confirmed)
    )
    .where(
        Printer.id.in_(AT_PRINTERS),
        ScheduledPrint.status == PrintStatus.started,
        ScheduledPrint.deleted_at.is_(None),
    )
    .order_by(StartIntent.id)
)
STARTING = (
    sa.select(*PRINT_UNDER_WAY)
    .select_from(ScheduledPrint)
    .join(StartIntent, StartIntent.print_id == ScheduledPrint.id)
    .outerjoin(PrintFile, OF_FILE)
    .where(StartIntent.printer_id.in_(AT_PRINTERS), OPEN_START)
)


def spools_of(
    printer_ids: Collection[int], *, limits: StageLimits, except_print_id: int | None = None
) -> dict[int, list[LoadedSpool]]:
    """The live spools of each printer, by place, with the grams that no print under way is going to take.

    Under way: started, or with an open intent. `except_print_id` is the print one is about to start: its own intent
    must not stand in its way. Three statements, however many printers.
    """
    found: dict[int, list[LoadedSpool]] = {printer_id: [] for printer_id in printer_ids}
    if not found:
        return found
    spools = db.session.execute(SPOOLS, {"printers": list(found)})
    for spool in spools:
        stage = stage_of(spool.weight_grams, spool.remaining_grams, limits)
        found[spool.printer_id].append(
            LoadedSpool(
                material_id=spool.id,
                ams_id=spool.ams_id,
                tray_id=spool.tray_id,
                slot=slot_of(spool.ams_id, spool.tray_id),
                material_type=spool.material_type,
                color=spool.color,
                free_grams=spool.remaining_grams,
                is_replaceable_only=stage in (Stage.replace, Stage.depleted),
            )
        )
    for print_id, row in _under_way(found).items():
        if print_id != except_print_id:
            taken = _taken(row, found[row.printer_id])
            found[row.printer_id] = [_less(each, taken.get(each.place)) for each in found[row.printer_id]]
    return found


def _under_way(printer_ids: Collection[int]) -> dict[int, sa.Row[Any]]:
    """The prints that are going to take filament, by id, each with the mapping it was started with, if any."""
    # Of several starts of one print the last counts; an open one is later than any that was confirmed.
    asked = {"printers": list(printer_ids)}
    return {row.id: row for statement in (STARTED, STARTING) for row in db.session.execute(statement, asked)}


def _taken(row: sa.Row[Any], spools: Sequence[LoadedSpool]) -> dict[Place, Decimal]:
    """The grams that a print under way takes from each place."""
    needs = needs_of(
        known_plate(row.plates or (), row.plate),
        material_type=row.material_type,
        material_color=row.material_color,
        grams=row.estimated_grams,
    )
    mapping = row.mapping or []
    taken: dict[Place, Decimal] = {}
    for need in needs:
        mapped = mapping[need.filament_id - 1] if need.filament_id <= len(mapping) else None
        place = (mapped[0], mapped[1]) if mapped else None
        if place is None and len(needs) == 1:
            place = _place_without_mapping(row, spools)
        if place is not None and need.grams is not None:
            taken[place] = taken.get(place, NOTHING) + need.grams
    return taken


def _place_without_mapping(row: sa.Row[Any], spools: Sequence[LoadedSpool]) -> Place | None:
    """A start that a person recorded: from its slot, else from the only live spool of its type."""
    if row.material_slot is not None:
        return place_of(row.material_slot)
    of_type = [spool for spool in spools if same_type(spool.material_type, row.material_type or "")]
    return of_type[0].place if len(of_type) == 1 else None


def _less(spool: LoadedSpool, grams: Decimal | None) -> LoadedSpool:
    if grams is None or spool.free_grams is None:
        return spool
    return replace(spool, free_grams=max(spool.free_grams - grams, NOTHING))
