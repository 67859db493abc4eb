"""An order's lines + their profiles + now -> the prints that fulfil it. Pure: no database, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from farm.plate_facts import known_plate
from models import OrderItem, ProductProfile

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
    """One print to be made. Duration and grams are per print, never times the order line's quantity."""

    order_item_id: int
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


def find_profile(line: OrderItem, profiles: Iterable[ProductProfile]) -> ProductProfile | None:
    """A line's profile: by SKU, else by listing and options, else by exact title; the oldest of several."""
    candidates = sorted(profiles, key=lambda profile: profile.id)

    def same_options(profile: ProductProfile) -> bool:
        return all(line.options.get(name) == value for name, value in (profile.options or {}).items())

    rules: tuple[tuple[object, Any], ...] = (
        (line.sku, lambda profile: profile.sku == line.sku),
        (
            line.etsy_listing_id,
            lambda profile: profile.etsy_listing_id == line.etsy_listing_id and same_options(profile),
        ),
        (line.title, lambda profile: profile.product_name == line.title and same_options(profile)),
    )
    for wanted, fits in rules:
        fitting = [profile for profile in candidates if fits(profile)] if wanted else []
        if fitting:
            # Of several the one whose options fit, and of those the one that names more of them, is the most exact.
            return max(fitting, key=lambda found: (same_options(found), len(found.options or {}), -found.id))
    return None


def plan_prints(
    label: str,
    lines: Sequence[tuple[OrderItem, ProductProfile | None]],
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
    counts = []
    for line, profile in lines:
        if not 1 <= line.quantity <= MAX_QUANTITY:
            raise PlanRefused(f"Quantity {line.quantity} is not between 1 and {MAX_QUANTITY}.", "quantity")
        per_plate = profile.units_per_plate if profile else None
        counts.append(-(-line.quantity // per_plate) if per_plate else 1)
    if sum(counts) > MAX_PRINTS:
        raise PlanRefused(f"The order needs {sum(counts)} prints; at most {MAX_PRINTS} are made at once.", "quantity")
    planned: list[PlannedPrint] = []
    starts_at = now + timedelta(minutes=start_offset_minutes)
    for (line, profile), count in zip(lines, counts, strict=True):
        for number in range(1, count + 1):
            is_first = not planned
            planned.append(
                _plan_one(
                    label,
                    line,
                    profile,
                    number=number,
                    count=count,
                    scheduled_start=None if is_first and not start_offset_minutes else starts_at,
                    is_chained=not is_first,
                    priority=max(1, FIRST_PRIORITY - len(planned)),
                    material_type=material_type,
                )
            )
            starts_at += timedelta(minutes=planned[-1].estimated_duration_minutes + buffer_minutes)
    return planned


def _plan_one(
    label: str,
    line: OrderItem,
    profile: ProductProfile | None,
    *,
    number: int,
    count: int,
    scheduled_start: datetime | None,
    is_chained: bool,
    priority: int,
    material_type: str | None,
) -> PlannedPrint:
    notes = f"Quantity: {line.quantity}"
    if profile and profile.units_per_plate:
        units = min(profile.units_per_plate, line.quantity - (number - 1) * profile.units_per_plate)
        notes += f" (plate {number} of {count}, {units} on it)"

    file = profile.print_file if profile else None
    facts = known_plate(file.plates, profile.plate) if profile and file else None
    sliced = facts.print_settings() if facts else {}

    def setting(name: str, default: Any, sliced_name: str = "") -> Any:
        """What the profile says, else what the slicer wrote about the plate, else the default."""
        value = getattr(profile, name) if profile else None
        return sliced.get(sliced_name, default) if value is None else value

    return PlannedPrint(
        order_item_id=line.id,
        job_name=f"{label} - {line.title}"[:JOB_NAME_LENGTH],
        notes=notes,
        scheduled_start=scheduled_start,
        is_chained=is_chained,
        priority=priority,
        print_file_id=setting("print_file_id", None),
        file_name=file.file_name if file else None,
        plate=setting("plate", 1),
        estimated_duration_minutes=setting("print_time_minutes", DEFAULT_MINUTES, "estimated_duration_minutes"),
        estimated_grams=setting("filament_grams", None, "estimated_grams"),
        material_type=material_type or setting("preferred_material", DEFAULT_MATERIAL, "material_type"),
        material_color=setting("preferred_color", None, "material_color"),
        nozzle_temp=setting("nozzle_temp_c", DEFAULT_NOZZLE_TEMP, "nozzle_temp"),
        bed_temp=setting("bed_temp_c", DEFAULT_BED_TEMP, "bed_temp"),
        print_speed=setting("print_speed_mms", DEFAULT_PRINT_SPEED),
    )
