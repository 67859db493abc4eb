"""An order's lines + the plates that they need + now -> the prints that fulfil it. Pure: no database, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from farm.line_plates import LinePlate
from models import OrderItem

MAX_PRINTS = 500
MAX_QUANTITY = 10_000
FIRST_PRIORITY = 10
JOB_NAME_LENGTH = 255

DEFAULT_MINUTES = 120
DEFAULT_MATERIAL = "PLA"
DEFAULT_NOZZLE_TEMP = 200
DEFAULT_BED_TEMP = 60
DEFAULT_PRINT_SPEED = 50


class PlanRefused(Exception):
    """The order cannot be planned; the message says why in words for a person."""

    def __init__(self, sentence: str, field: str) -> None:
        super().__init__(sentence)
        self.field = field


@dataclass(frozen=True, slots=True)
class PlannedPrint:
    """One print to be made. Duration and grams are per print, never times the order line's quantity. `units` are all
    pieces that its plate makes, whether the order needs each of them or not: a sliced plate is printed whole."""

    order_item_id: int
    units: int
    job_name: str
    notes: str
    scheduled_start: datetime | None
    is_chained: bool
    priority: int
    print_file_id: int | None
    file_name: str | None
    plate: int
    estimated_duration_minutes: int
    estimated_grams: Decimal | None
    material_type: str
    material_color: str | None
    nozzle_temp: int
    bed_temp: int
    print_speed: int


def plan_prints(
    label: str,
    lines: Sequence[tuple[OrderItem, Sequence[LinePlate]]],
    *,
    now: datetime,
    start_offset_minutes: int,
    buffer_minutes: int,
    material_type: str | None,
) -> list[PlannedPrint]:
    """The prints of an order on one printer, each after the one before it.

    The first starts at once, or at now + offset when there is an offset; each next one not before now + offset + the
    durations before it + a buffer each. Priorities fall from 10 and never below 1.

    Raises:
        PlanRefused: a quantity out of 1-10,000 or more than 500 prints.
    """
    for line, _ in lines:
        if not 1 <= line.quantity <= MAX_QUANTITY:
            raise PlanRefused(f"Quantity {line.quantity} is not between 1 and {MAX_QUANTITY}.", "quantity")
    count = sum(each.count for _, plates in lines for each in plates)
    if count > MAX_PRINTS:
        raise PlanRefused(f"The order needs {count} prints; at most {MAX_PRINTS} are made at once.", "quantity")
    planned: list[PlannedPrint] = []
    starts_at = now + timedelta(minutes=start_offset_minutes)
    for line, plates in lines:
        for part, plate in enumerate(plates, 1):
            of_parts = f"part {part} of {len(plates)}" if len(plates) > 1 else ""
            for number in range(1, plate.count + 1):
                is_first = not planned
                planned.append(
                    _plan_one(
                        label,
                        line,
                        plate,
                        notes=_notes(line, plate, number, of_parts),
                        scheduled_start=None if is_first and not start_offset_minutes else starts_at,
                        is_chained=not is_first,
                        priority=max(1, FIRST_PRIORITY - len(planned)),
                        material_type=material_type,
                    )
                )
                starts_at += timedelta(minutes=planned[-1].estimated_duration_minutes + buffer_minutes)
    return planned


def _notes(line: OrderItem, plate: LinePlate, number: int, of_parts: str) -> str:
    """What lies on this very plate, and what of it the line does not need."""
    said = [of_parts] if of_parts else []
    if plate.units_per_plate:
        spare = max(0, number * plate.units_per_plate - plate.units)
        to_spare = f", {spare} to spare" if spare else ""
        said.append(f"plate {number} of {plate.count}, {plate.units_per_plate} on it{to_spare}")
    return f"Quantity: {line.quantity}" + (f" ({': '.join(said)})" if said else "")


def _plan_one(
    label: str,
    line: OrderItem,
    plate: LinePlate,
    *,
    notes: str,
    scheduled_start: datetime | None,
    is_chained: bool,
    priority: int,
    material_type: str | None,
) -> PlannedPrint:
    facts = plate.facts
    sliced = facts.print_settings() if facts else {}

    def setting(said: Any, default: Any, sliced_name: str = "") -> Any:
        """What is said of the plate, else what the slicer wrote about it, else the default."""
        return sliced.get(sliced_name, default) if said is None else said

    return PlannedPrint(
        order_item_id=line.id,
        units=plate.units_per_plate or plate.units,
        job_name=f"{label} - {line.title}"[:JOB_NAME_LENGTH],
        notes=notes,
        scheduled_start=scheduled_start,
        is_chained=is_chained,
        priority=priority,
        print_file_id=plate.file.id if plate.file else None,
        file_name=plate.file.file_name if plate.file else None,
        plate=plate.plate,
        estimated_duration_minutes=setting(plate.print_time_minutes, DEFAULT_MINUTES, "estimated_duration_minutes"),
        estimated_grams=setting(plate.filament_grams, None, "estimated_grams"),
        material_type=material_type or setting(plate.material_type, DEFAULT_MATERIAL, "material_type"),
        material_color=setting(plate.color, None, "material_color"),
        nozzle_temp=setting(plate.nozzle_temp_c, DEFAULT_NOZZLE_TEMP, "nozzle_temp"),
        bed_temp=setting(plate.bed_temp_c, DEFAULT_BED_TEMP, "bed_temp"),
        print_speed=setting(plate.print_speed_mms, DEFAULT_PRINT_SPEED),
    )
