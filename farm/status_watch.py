"""Which printers show something new, for those who look on."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import joinedload

from farm.live import is_live
from farm.status import status_of
from models import Printer, PrinterConnection, db

# The snapshot as a text: most of the time it is the one that is known, and needs no reading.
FACTS = (
    sa.select(
        PrinterConnection.id,
        PrinterConnection.user_id,
        PrinterConnection.connection_status,
        PrinterConnection.heard_at,
        PrinterConnection.status_reason,
        PrinterConnection.connection_type,
        sa.cast(PrinterConnection.snapshot, sa.Text).label("snapshot"),
        Printer.name,
    )
    .join(Printer, Printer.id == PrinterConnection.printer_id)
    .where(Printer.deleted_at.is_(None), PrinterConnection.user_id.in_(sa.bindparam("user_ids", expanding=True)))
)


class StatusWatch:
    """Remembers what each printer showed, of the users that were asked for last."""

    def __init__(self) -> None:
        self._user_ids: set[int] = set()
        self._facts: dict[int, tuple[Any, ...]] = {}
        self._shown: dict[int, tuple[int, dict[str, Any]]] = {}

    def look(self, user_ids: set[int], *, now: datetime) -> list[tuple[int, dict[str, Any]]]:
        """(whose printer, its status) of each that shows something else than at the last look. That it said the same
        once more is nothing new, and neither is anything of a user who is asked for the first time."""
        rows = db.session.execute(FACTS, {"user_ids": list(user_ids)}).all()
        facts = {row.id: (row.connection_status, is_live(row, now), *row[4:]) for row in rows}
        self._shown = {each: shown for each, shown in self._shown.items() if each in facts}
        news = []
        for connection in self._read([each for each, fact in facts.items() if self._facts.get(each) != fact]):
            status = status_of(connection, now=now)
            _, before = self._shown.get(connection.id, (0, None))
            self._shown[connection.id] = connection.user_id, status
            has_changed = before is None or {**before, "last_updated": None} != {**status, "last_updated": None}
            if has_changed and connection.user_id in self._user_ids:
                news.append((connection.user_id, status))
        self._facts, self._user_ids = facts, set(user_ids)
        return news

    def shown_to(self, user_id: int, *, now: datetime) -> list[dict[str, Any]]:
        """What the printers of a user showed at the last look, or show now to one who was not asked for then."""
        if user_id not in self._user_ids:
            query = sa.select(PrinterConnection.id).where(PrinterConnection.user_id == user_id)
            for connection in self._read(db.session.execute(query).scalars().all()):
                self._shown[connection.id] = user_id, status_of(connection, now=now)
            self._user_ids.add(user_id)
        return [status for owner, status in self._shown.values() if owner == user_id]

    def _read(self, connection_ids: Collection[int]) -> list[PrinterConnection]:
        query = (
            sa.select(PrinterConnection)
            .join(Printer, Printer.id == PrinterConnection.printer_id)
            .where(PrinterConnection.id.in_(connection_ids), Printer.deleted_at.is_(None))
            .options(joinedload(PrinterConnection.printer))
            .order_by(PrinterConnection.id)
        )
        return list(db.session.execute(query).scalars()) if connection_ids else []
