"""What happened, as those who look on are told it: over the live channel, and page by page after a gap."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from models import MAX_ID, Printer, PrintEvent, ScheduledPrint, db

# PostgreSQL gives out ids before the commit: of two transactions, the one with the lower id may become visible last. So
# whoever asks for what came after an event gets, once more, what was written shortly before it. No transaction of ours
# lasts that long (database.POSTGRESQL ends one that idles for 30 seconds).
OVERLAP = timedelta(minutes=2)
# However many events two minutes hold, no more of them are looked through.
MOST_REPEATED = 5000
MOST_HOLES = 500
MOST_READ = 1000

COLUMNS = (
    *(PrintEvent.id, PrintEvent.user_id, PrintEvent.kind, PrintEvent.at, PrintEvent.printer_id, PrintEvent.print_id),
    *(PrintEvent.material_id, PrintEvent.from_status, PrintEvent.to_status, PrintEvent.reason, PrintEvent.details),
    Printer.name.label("printer_name"),
    ScheduledPrint.job_name,
    ScheduledPrint.order_id,
)
WHOLE = (
    sa.select(*COLUMNS)
    .outerjoin(Printer, Printer.id == PrintEvent.printer_id)
    .outerjoin(ScheduledPrint, ScheduledPrint.id == PrintEvent.print_id)
    .order_by(PrintEvent.id)
)


class Cursor(NamedTuple):
    """Where reading goes on: after the event of that id, exactly, or with what was written shortly before it."""

    event_id: int
    is_exact: bool = False

    @classmethod
    def read(cls, text: str) -> Cursor:
        """From what a client sends: an event's id, or the `next` of a page, which is an id and a dash."""
        return cls(min(int(text.removesuffix("-")), MAX_ID), text.endswith("-"))

    def __str__(self) -> str:
        return f"{self.event_id}{'-' if self.is_exact else ''}"


class Page(NamedTuple):
    """Events by id, and where the next page begins; None on the last one."""

    events: list[dict[str, Any]]
    following: Cursor | None


def read_page(user_id: int, after: Cursor, limit: int) -> Page:
    """A user's events after the cursor. An event may come twice, over all pages, but none is left out."""
    first_id = after.event_id + 1 if after.is_exact else _first_id(user_id, after.event_id)
    query = WHOLE.where(PrintEvent.user_id == user_id, PrintEvent.id >= first_id).limit(limit + 1)
    rows = db.session.execute(query).all()
    events = [represent(row) for row in rows[:limit]]
    return Page(events, Cursor(rows[limit - 1].id, is_exact=True) if len(rows) > limit else None)


def _first_id(user_id: int, after_id: int) -> int:
    """The first event that may have become visible after that one."""
    known = db.session.execute(
        sa.select(PrintEvent.id, PrintEvent.at)
        .where(PrintEvent.user_id == user_id, PrintEvent.id <= after_id)
        .order_by(PrintEvent.id.desc())
        .limit(1)
    ).one_or_none()
    if known is None:
        return 1
    return db.session.execute(
        sa.select(sa.func.min(PrintEvent.id)).where(
            PrintEvent.user_id == user_id,
            PrintEvent.id <= known.id,
            PrintEvent.id > known.id - MOST_REPEATED,
            PrintEvent.at >= known.at - OVERLAP,
        )
    ).scalar_one()


def read_events(event_ids: Collection[int]) -> list[tuple[int, dict[str, Any]]]:
    """(whose it is, the event), by id."""
    rows = db.session.execute(WHOLE.where(PrintEvent.id.in_(event_ids)))
    return [(row.user_id, represent(row)) for row in rows]


def newest_id(user_id: int) -> int:
    """A user's newest event; 0 where there is none."""
    query = sa.select(PrintEvent.id).where(PrintEvent.user_id == user_id).order_by(PrintEvent.id.desc()).limit(1)
    return db.session.execute(query).scalar() or 0


def represent(row: Any) -> dict[str, Any]:
    """An event in the words of a webhook, with `id` and what it moved."""
    details = dict(row.details)
    data: dict[str, Any] = {
        "event_id": row.id,
        "printer": row.printer_id and {"id": row.printer_id, "name": row.printer_name},
        "reason": row.reason,
        "from_status": row.from_status and row.from_status.value,
        "to_status": row.to_status and row.to_status.value,
        "print": row.print_id and {"id": row.print_id, "job_name": row.job_name, "order_id": row.order_id},
        "material": row.material_id and {"id": row.material_id, **row.details},
        "alert": details.pop("alert", None),
        "maintenance": details.pop("maintenance", None),
        "shop": details.pop("shop", None),
        "details": {} if row.material_id else details,
    }
    return {"id": row.id, "type": row.kind, "timestamp": row.at, "data": data}


@dataclass(slots=True)
class Tail:
    """Which events became visible since the last look, of whatever user: by the id, and by the holes below it, in which
    a transaction that is still open may have its events."""

    monotonic: Callable[[], float] = time.monotonic
    newest: int | None = None
    holes: dict[int, float] = field(default_factory=dict)

    def look(self) -> list[tuple[int, int]]:
        """(event, user) by id. The first look finds nothing and only remembers what is there."""
        now = self.monotonic()
        if self.newest is None:
            self._begin(now)
            return []
        self.holes = {each: since for each, since in self.holes.items() if now - since < OVERLAP.total_seconds()}
        rows = db.session.execute(
            sa.select(PrintEvent.id, PrintEvent.user_id)
            .where(sa.or_(PrintEvent.id > self.newest, PrintEvent.id.in_(self.holes)))
            .order_by(PrintEvent.id)
            .limit(MOST_READ)
        ).all()
        found = [(row.id, row.user_id) for row in rows]
        for event_id, _ in found:
            self.holes.pop(event_id, None)
            for missing in range(max(self.newest + 1, event_id - MOST_HOLES), event_id):
                self.holes[missing] = now
            self.newest = max(self.newest, event_id)
        return found

    def _begin(self, now: float) -> None:
        self.newest = db.session.execute(sa.select(sa.func.max(PrintEvent.id))).scalar() or 0
        first = max(1, self.newest - MOST_HOLES)
        there = set(db.session.execute(sa.select(PrintEvent.id).where(PrintEvent.id >= first)).scalars())
        # One that became visible in between is above the newest that was read: the next look finds it.
        self.holes = {each: now for each in range(first, self.newest) if each not in there}
