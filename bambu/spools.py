"""The spools of a Bambu Lab printer: AMS units, their slots, and the external spools.

`fold_*` take over what a report says into plain dictionaries, by id and value by value; `units_and_spools` reads those.
An absent spool is no proof of an empty slot (units come and go while a printer starts): empty is a Spool that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bambu.values import (
    Unreadable,
    color,
    count,
    entries,
    hex_flags,
    mapping,
    number,
    percent,
    spool_uuid,
    text,
    whole,
    whole_between,
)


@dataclass(frozen=True, slots=True)
class Unit:
    """One AMS. `humidity_level` 1–5 (5 is driest), `temperature` in °C, `nozzle` 0 right or only, 1 left."""

    ams_id: int
    kind: str | None
    humidity_level: int | None
    humidity_percent: int | None
    temperature: float | None
    drying_minutes: int | None
    nozzle: int | None


@dataclass(frozen=True, slots=True)
class Spool:
    """A place for a spool and what is in it. External spools are (255, 0), the left one of two nozzles (254, 0).

    `slot` numbers the first two AMS units 0–7. `remaining_pct` is None unless the printer measures it: the spool has a
    readable chip and detection is on. `weight_grams` is a full spool's. `vendor_profile` is the printer's filament id.
    """

    ams_id: int
    tray_id: int
    slot: int | None
    loaded: bool
    material_type: str | None = None
    color: str | None = None
    remaining_pct: int | None = None
    weight_grams: int | None = None
    spool_uuid: str | None = None
    vendor_profile: str | None = None
    product_name: str | None = None
    nozzle_temp_min: int | None = None
    nozzle_temp_max: int | None = None


EXTERNAL = (255, 0)
EXTERNAL_LEFT = (254, 0)
LITE, HEATED = "AMS Lite", "AMS HT"
UNIT_KINDS = {1: "AMS", 2: LITE, 3: "AMS 2 Pro", 4: HEATED}

Facts = dict[str, Any]
_Readers = tuple[tuple[str, Callable[[object], object]], ...]

_TRAY: _Readers = (
    ("state", whole_between(0, 0xFFFF)),
    ("tray_type", text),
    ("tray_sub_brands", text),
    ("tray_info_idx", text),
    ("tray_color", color),
    ("remain", whole_between(-1, 100)),
    ("tray_weight", count),
    ("tray_uuid", spool_uuid),
    ("nozzle_temp_min", whole_between(0, 1000)),
    ("nozzle_temp_max", whole_between(0, 1000)),
)
_UNIT: _Readers = (
    ("info", hex_flags),
    ("humidity", whole_between(0, 5)),
    ("humidity_raw", percent),
    ("temp", number),
    ("dry_time", count),
)
_ABSENT = object()


def _fold(readers: _Readers, old: Facts, given: dict[str, object], new: Facts) -> int:
    """Reads what is given into `new`; where it cannot be read the old value stays. Returns how many could not."""
    faults = 0
    for name, read in readers:
        value = given.get(name, _ABSENT)
        if value is not _ABSENT:
            try:
                new[name] = read(value)
            except Unreadable:
                faults += 1
                if name in old:
                    new[name] = old[name]
    return faults


def _unit_id(given: object) -> int:
    ams_id = whole(given)
    if 0 <= ams_id < 32 or 128 <= ams_id < 160:
        return ams_id
    raise Unreadable


_tray_id = whole_between(0, 3)
_external_id = whole_between(254, 255)


def fold_units(units: Mapping[int, Facts], given: object, *, full: bool) -> tuple[dict[int, Facts], int]:
    """AMS units after a report's list of them, and how much of it was unreadable. A full report's list replaces."""
    try:
        listed = entries(given)
    except Unreadable:
        return dict(units), 1
    new = {} if full else dict(units)
    faults = 0
    for entry in listed:
        try:
            fields = mapping(entry)
            ams_id = _unit_id(fields.get("id"))
        except Unreadable:
            faults += 1
            continue
        old = units.get(ams_id, {})
        unit = {} if full else dict(old)
        faults += _fold(_UNIT, old, fields, unit)
        unit["trays"] = old.get("trays", {})
        if "tray" in fields:
            unit["trays"], wrong = fold_trays(unit["trays"], fields["tray"], _tray_id, full=full)
            faults += wrong
        new[ams_id] = unit
    return new, faults


def fold_trays(
    trays: Mapping[int, Facts], given: object, read_id: Callable[[object], int], *, full: bool
) -> tuple[dict[int, Facts], int]:
    """The trays of one unit (or the external spools) after a list of them, and how much of it was unreadable."""
    try:
        listed = entries(given)
    except Unreadable:
        return dict(trays), 1
    new = {} if full else dict(trays)
    faults = 0
    for entry in listed:
        try:
            fields = mapping(entry)
            tray_id = read_id(fields.get("id"))
        except Unreadable:
            faults += 1
            continue
        new[tray_id], wrong = fold_tray(trays.get(tray_id, {}), fields, full=full)
        faults += wrong
    return new, faults


def fold_tray(old: Facts, given: dict[str, object], *, full: bool) -> tuple[Facts, int]:
    """One tray. A bare id means that its spool was taken out, and so does a state that says so."""
    if len(given) == 1 and "id" in given:
        return {}, 0
    tray = {} if full else dict(old)
    faults = _fold(_TRAY, old, given, tray)
    state = tray.get("state")
    if state is not None and _says_empty(state):
        # What is left of the old spool must not come back with the next one.
        return {"state": state}, faults
    return tray, faults


def external_id(given: object) -> int:
    """254 or 255. Raises Unreadable."""
    return _external_id(given)


def without_absent_units(units: dict[int, Facts], exist_bits: int) -> dict[int, Facts]:
    """The units whose bit is set. A unit that has no known bit stays."""
    return {
        ams_id: unit for ams_id, unit in units.items() if (bit := _unit_bit(ams_id)) is None or exist_bits >> bit & 1
    }


def _unit_bit(ams_id: int) -> int | None:
    if ams_id < 4:
        return ams_id
    return 4 + ams_id - 128 if 128 <= ams_id < 132 else None


def _tray_bit(ams_id: int, tray_id: int) -> int | None:
    if ams_id < 4:
        return ams_id * 4 + tray_id
    if ams_id == 16:  # the A2L's AMS Lite
        return 24 + tray_id
    return 16 + ams_id - 128 if 128 <= ams_id < 132 else None


def _says_empty(state: int) -> bool:
    # New firmware: bit 0 is "a spool is there". Old firmware: 0 empty, 1 and 2 loading, 3 loaded.
    return not state & 1 and state != 2


def units_and_spools(
    units: Mapping[int, Facts],
    externals: Mapping[int, Facts],
    exist_bits: int | None,
    remaining_is_measured: bool,
    two_nozzles: bool,
    kinds: Mapping[int, str],
) -> tuple[tuple[Unit, ...], tuple[Spool, ...]]:
    """What stands where, in order of ids.

    `exist_bits` are the printer's bits of occupied trays, None when they cannot be relied on; `kinds` the kinds of
    units as the version report names them, for firmware that does not say so in the unit itself.
    """
    read_units = []
    spools = []
    for ams_id in sorted(units):
        facts = units[ams_id]
        kind = _kind(ams_id, facts, kinds)
        read_units.append(_unit(ams_id, kind, facts))
        trays = facts["trays"]
        for tray_id in sorted(trays):
            bit = _tray_bit(ams_id, tray_id)
            absent = exist_bits is not None and bit is not None and not exist_bits >> bit & 1
            spools.append(_spool(ams_id, tray_id, trays[tray_id], absent, remaining_is_measured, kind))
    left_too = two_nozzles or len(externals) == 2
    for tray_id in sorted(externals):
        place = EXTERNAL_LEFT if tray_id == 254 and left_too else EXTERNAL
        tray = externals[tray_id]
        spools.append(_spool(*place, tray, not tray.get("tray_type"), False, None))
    return tuple(read_units), tuple(spools)


def _kind(ams_id: int, facts: Facts, kinds: Mapping[int, str]) -> str | None:
    info = facts.get("info")
    kind = UNIT_KINDS.get(info & 15) if info is not None else None
    return kind or kinds.get(ams_id) or (HEATED if ams_id >= 128 else None)


def _unit(ams_id: int, kind: str | None, facts: Facts) -> Unit:
    info = facts.get("info")
    fed = info >> 8 & 15 if info is not None else None
    # Zero stands for "no sensor" in all three; an AMS Lite has none and still reports a constant level.
    measured = kind != LITE
    return Unit(
        ams_id,
        kind,
        (facts.get("humidity") or None) if measured else None,
        (facts.get("humidity_raw") or None) if measured else None,
        (facts.get("temp") or None) if measured else None,
        facts.get("dry_time"),
        fed if fed in (0, 1) else None,
    )


def _spool(ams_id: int, tray_id: int, tray: Facts, absent: bool, measured: bool, kind: str | None) -> Spool:
    slot = ams_id * 4 + tray_id if ams_id < 2 else None
    state = tray.get("state")
    if absent or (state is not None and _says_empty(state)):
        return Spool(ams_id, tray_id, slot, False)
    if len(tray) <= (state is not None):  # nothing is known but, perhaps, a state
        return Spool(ams_id, tray_id, slot, state is not None)
    get = tray.get
    uuid = get("tray_uuid") or None
    remaining = get("remain", -1) if measured and uuid else -1
    if remaining == 0 and kind == LITE:
        remaining = -1  # an AMS Lite does not measure, and reports 0 for full spools with a chip
    return Spool(
        ams_id,
        tray_id,
        slot,
        True,
        get("tray_type") or None,
        get("tray_color") or None,
        remaining if remaining >= 0 else None,
        get("tray_weight") or None,
        uuid,
        get("tray_info_idx") or None,
        get("tray_sub_brands") or None,
        get("nozzle_temp_min") or None,
        get("nozzle_temp_max") or None,
    )
