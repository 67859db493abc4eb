"""Printers that announced themselves: written down, forgotten, and shown to whom they may be shown.

Nothing of it is proven, since anybody in the network can send such words: it fills in a form, it changes no connection.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_address

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from bambu_discovery import ConnectMode, FoundPrinter
from models import ConnectionType, DiscoveredPrinter, PrinterConnection, db

# A worker remembers 512 at a time, and a flood can put others in their place each minute.
MOST_ROWS = 2048

_table = DiscoveredPrinter.__table__


def note_found(found: Collection[FoundPrinter], *, now: datetime) -> None:
    """Write down printers, each serial number at most once among them. Of two workers that hear the same printer, the
    one that heard it last wins. Does not commit."""
    if not found:
        return
    insert = postgresql.insert if db.engine.dialect.name == "postgresql" else sqlite.insert
    statement = insert(_table)
    statement = statement.on_conflict_do_update(
        index_elements=["serial_number"],
        set_={column.name: statement.excluded[column.name] for column in _table.c if not column.primary_key},
        # What lies in the future was written before the clock was set back, and must not stand until then.
        where=sa.or_(_table.c.heard_at <= statement.excluded.heard_at, _table.c.heard_at > now),
    )
    rows = [
        {
            "serial_number": each.serial,
            "host": each.host,
            "model": each.model,
            "name": each.name,
            "connect_mode": each.connect_mode.value if each.connect_mode else None,
            "is_bound": each.is_bound,
            "firmware": each.firmware,
            "signal_dbm": each.signal_dbm,
            "heard_at": each.heard_at,
            "forget_at": each.forget_at,
        }
        # Two workers lock the rows in the same order, so that neither waits for what the other holds.
        for each in sorted(found, key=lambda each: each.serial)
    ]
    db.session.connection().execute(statement, rows)


def forget_silent(*, now: datetime, most: int = MOST_ROWS) -> None:
    """Delete the printers that have said nothing for as long as they announced, and of more than `most` rows those that
    have been silent the longest. Does not commit."""
    newest_first = sa.select(_table.c.serial_number).order_by(_table.c.heard_at.desc(), _table.c.serial_number)
    gone = (
        sa.select(_table.c.serial_number)
        .where(sa.or_(_table.c.forget_at <= now, _table.c.serial_number.in_(newest_first.offset(most))))
        # What another worker is writing or deleting right now is left to that one.
        .with_for_update(skip_locked=True)
    )
    db.session.execute(sa.delete(_table).where(_table.c.serial_number.in_(gone)))


def shown_to(user_id: int, *, now: datetime) -> sa.Select[tuple[DiscoveredPrinter]]:
    """The printers that an account may see: those heard lately, but for what other accounts alone have connected."""
    connected = sa.select(PrinterConnection.serial_number).where(PrinterConnection.serial_number.is_not(None))
    serial = DiscoveredPrinter.serial_number
    return (
        sa.select(DiscoveredPrinter)
        .where(
            DiscoveredPrinter.forget_at > now,
            sa.or_(
                serial.in_(connected.where(PrinterConnection.user_id == user_id)),
                serial.not_in(connected.where(PrinterConnection.user_id != user_id)),
            ),
        )
        .order_by(sa.func.lower(DiscoveredPrinter.name), serial)
    )


def hint_about(host: str, connect_mode: str | None, connection: PrinterConnection | None) -> str | None:
    """What a person should know about a printer that announces `host`; `connection` is their own of that printer."""
    if connection is None:
        if connect_mode == ConnectMode.cloud:
            return (
                "It is set up for Bambu Lab's cloud: with firmware of 2025 or newer it takes commands from us only "
                "once LAN Only Mode and Developer Mode are on."
            )
        return None
    if connection.host is None:
        is_lan = connection.connection_type is ConnectionType.bambu_lan
        return f"The connection of your printer has no address. It announces {host}." if is_lan else None
    known = _address(connection.host)
    if known is None or known == IPv4Address(host):
        return None
    return (
        f"It announces {host}, but the connection of your printer says {connection.host}. If it has a new address, "
        "enter that there: it is not changed by itself, since anybody in the network can announce one."
    )


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """None for a name: what it stands for is the name server's to say."""
    try:
        found = ip_address(host)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
