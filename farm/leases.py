"""Which worker holds which printer: one lease a physical printer, in the database.

A second worker stands by or takes its share; what a worker that died held is free when its lease has run out. Every
holding has an epoch: a holder that was paused past its lease finds another epoch there and must send nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from models import PrinterGate, WorkerPresence, count_changed, db

LEASE = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to speak to one printer, until somebody else's epoch stands at its gate."""

    serial_number: str
    owner: str
    epoch: int


def keep_leases(
    owner: str, serials: Collection[str], *, now: datetime, busy: Collection[str] = (), life: timedelta = LEASE
) -> dict[str, Lease]:
    """Renew what this worker holds, take its fair share of what is free, give back what is beyond it. Commits.

    `busy` printers are never given back: a start or a command is under way on them. Returns the leases by serial.
    """
    _say_present(owner, now, life)
    _make_gates(serials)
    held = _renew(owner, serials, now, life)
    share = -(-len(serials) // max(1, _count_present()))
    for serial in sorted(held.keys() - set(busy))[: max(0, len(held) - share)]:
        _give_back(owner, [serial])
        del held[serial]
    if len(held) < share:
        held |= _take(owner, serials, share - len(held), now, life)
    db.session.commit()
    return held


def _insert() -> Any:
    return postgresql.insert if db.engine.dialect.name == "postgresql" else sqlite.insert


def _say_present(owner: str, now: datetime, life: timedelta) -> None:
    statement = _insert()(WorkerPresence).values(owner=owner, seen_at=now)
    db.session.execute(statement.on_conflict_do_update(index_elements=["owner"], set_={"seen_at": now}))
    # Those that are in nobody's hands: two workers that come back at once take each other for gone.
    gone = sa.select(WorkerPresence.owner).where(WorkerPresence.seen_at < now - life).with_for_update(skip_locked=True)
    db.session.execute(sa.delete(WorkerPresence).where(WorkerPresence.owner.in_(gone)))


def _count_present() -> int:
    return db.session.execute(sa.select(sa.func.count()).select_from(WorkerPresence)).scalar_one()


def _make_gates(serials: Collection[str]) -> None:
    known = set(
        db.session.execute(sa.select(PrinterGate.serial_number).where(PrinterGate.serial_number.in_(serials))).scalars()
    )
    missing = [{"serial_number": serial, "epoch": 0} for serial in serials if serial not in known]
    if missing:
        db.session.execute(_insert()(PrinterGate).on_conflict_do_nothing(), missing)


def _renew(owner: str, serials: Collection[str], now: datetime, life: timedelta) -> dict[str, Lease]:
    """Still ours, and still wanted. One whose time has run out is not ours any more, even if nobody took it yet."""
    mine = PrinterGate.owner == owner
    unwanted = db.session.execute(
        sa.select(PrinterGate.serial_number).where(mine, PrinterGate.serial_number.not_in(serials))
    ).scalars()
    _give_back(owner, list(unwanted))
    live = sa.and_(mine, PrinterGate.lease_until >= now)
    db.session.execute(sa.update(PrinterGate).where(live).values(lease_until=now + life))
    rows = db.session.execute(sa.select(PrinterGate.serial_number, PrinterGate.epoch).where(live))
    return {serial: Lease(serial, owner, epoch) for serial, epoch in rows}


def _give_back(owner: str, serials: Collection[str]) -> None:
    if serials:
        db.session.execute(
            sa.update(PrinterGate)
            .where(PrinterGate.owner == owner, PrinterGate.serial_number.in_(serials))
            .values(owner=None, lease_until=None)
        )


def _take(owner: str, serials: Collection[str], wanted: int, now: datetime, life: timedelta) -> dict[str, Lease]:
    is_free = sa.or_(PrinterGate.owner.is_(None), PrinterGate.lease_until < now)
    free = db.session.execute(
        sa.select(PrinterGate.serial_number, PrinterGate.epoch)
        .where(is_free, PrinterGate.serial_number.in_(serials))
        .order_by(PrinterGate.serial_number)
        .limit(wanted)
    ).all()
    taken = {}
    for serial, epoch in free:
        # The epoch in the condition: of two workers that saw the same free gate one gets it.
        won = count_changed(
            sa.update(PrinterGate)
            .where(PrinterGate.serial_number == serial, PrinterGate.epoch == epoch, is_free)
            .values(owner=owner, lease_until=now + life, epoch=epoch + 1)
        )
        if won:
            taken[serial] = Lease(serial, owner, epoch + 1)
    return taken


def release_leases(owner: str) -> None:
    """At the end of a worker: what it held is free at once. Commits."""
    db.session.execute(sa.update(PrinterGate).where(PrinterGate.owner == owner).values(owner=None, lease_until=None))
    db.session.execute(sa.delete(WorkerPresence).where(WorkerPresence.owner == owner))
    db.session.commit()


def still_holds(lease: Lease, *, now: datetime) -> bool:
    """Whether a lease is good at this moment; locks the gate until the transaction ends."""
    gate = db.session.execute(
        sa.select(PrinterGate)
        .where(PrinterGate.serial_number == lease.serial_number)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()
    return (
        gate is not None
        and gate.owner == lease.owner
        and gate.epoch == lease.epoch
        and gate.lease_until is not None
        and gate.lease_until > now
    )
