"""Spools that were swapped or taken out at the printer: seen in its reports, told once the hands are off.

The ledger stays as people keep it: what a spool without a chip weighs, no report tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from bambu_report import PrinterState
from farm.filament import EXTERNAL_UNIT, color_name
from farm.materials import announce_change
from models import BambuMaterial, Printer, db, slot_of

# Taking one out, putting another in and having its chip read takes about as long.
SETTLES_IN = timedelta(seconds=30)

Place = tuple[int, int]


class Seen(NamedTuple):
    """What a printer sees in one place. What it does not say is None."""

    is_loaded: bool
    material_type: str | None = None
    color: str | None = None
    spool_uuid: str | None = None

    def is_other_than(self, before: Seen) -> bool:
        """Another spool, or none. One that is read only now is the same."""
        if self.is_loaded != before.is_loaded:
            return True
        pairs = zip(self[1:], before[1:], strict=True)
        return self.is_loaded and any(a is not None and b is not None and a != b for a, b in pairs)

    def with_what_was_known(self, before: Seen) -> Seen:
        return Seen(self.is_loaded, *(a if a is not None else b for a, b in zip(self[1:], before[1:], strict=True)))


Spools = Mapping[Place, Seen]


def seen_in(state: PrinterState) -> dict[Place, Seen]:
    """A place that a report leaves out is no empty one: units come and go while a printer starts."""
    return {
        (spool.ams_id, spool.tray_id): Seen(spool.loaded, spool.material_type, spool.color, spool.spool_uuid)
        for spool in state.spools
    }


def differ(before: PrinterState, now: PrinterState) -> bool:
    """How much is left on a spool is another matter."""
    return now.spools != before.spools and seen_in(now) != seen_in(before)


def seen_before(snapshot: Mapping[str, Any] | None) -> dict[Place, Seen]:
    """What was written down of the loaded spools before this worker listened."""
    return {
        (each["ams_id"], each["tray_id"]): Seen(True, each["material_type"], each["color"])
        for each in (snapshot or {}).get("materials") or ()
    }


def changes(before: Spools, now: Spools) -> dict[Place, Seen]:
    """The places where another spool is, or none any more, or one where none was."""
    return {place: seen for place, seen in now.items() if place in before and seen.is_other_than(before[place])}


def after(before: Spools, now: Spools) -> dict[Place, Seen]:
    """What is known from now on."""
    kept = {
        place: seen.with_what_was_known(before[place])
        if place in before and not seen.is_other_than(before[place])
        else seen
        for place, seen in now.items()
    }
    return {**before, **kept}


def tell_changes(printer: Printer, changed: Spools, *, at: datetime) -> None:
    """One event for each place. The caller commits."""
    if not changed:
        return
    live = db.session.execute(
        sa.select(BambuMaterial).where(BambuMaterial.printer_id == printer.id, BambuMaterial.removed_at.is_(None))
    ).scalars()
    by_place = {(material.ams_id, material.tray_id): material for material in live}
    for place, seen in sorted(changed.items()):
        announce_change(
            printer,
            place,
            by_place.get(place),
            material_type=seen.material_type,
            color=seen.color,
            reason=_sentence(place, seen),
            at=at,
        )


def _sentence(place: Place, seen: Seen) -> str:
    slot = slot_of(*place)
    if slot is not None:
        name = f"slot {slot}"
    else:
        name = "the external spool" if place[0] == EXTERNAL_UNIT else f"AMS {place[0]} tray {place[1]}"
    if not seen.is_loaded:
        return f"the printer sees no spool in {name} any more"
    what = " ".join(filter(None, (seen.material_type, color_name(seen.color) if seen.color else None)))
    return f"the printer sees another spool in {name}: {what or 'it does not say which'}"
