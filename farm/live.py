"""Whether a printer can be asked and told something right now."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol

from models import ConnectionStatus, ConnectionType, PrinterConnection

INCOMPLETE = "address, serial number and access code are all needed"
CLOUD_INCOMPLETE = "a serial number and a login to Bambu's cloud are both needed"
ONLY_WATCHED = "connected through Bambu's cloud, which only lets us watch"
# A printer that prints reports at least every few seconds; after this long it counts as offline.
LIVE_FOR = timedelta(seconds=90)
START_IT_THERE = "start it there and record it here"


class Heard(Protocol):
    """A connection, or what of its row is asked for here."""

    @property
    def connection_status(self) -> ConnectionStatus: ...

    @property
    def heard_at(self) -> datetime | None: ...


def is_live(connection: Heard | None, now: datetime) -> bool:
    """A live link: connected, and the last report under 90 s old."""
    return (
        connection is not None
        and connection.connection_status is ConnectionStatus.connected
        and connection.heard_at is not None
        and now - connection.heard_at < LIVE_FOR
    )


def why_out_of_our_hands(connection: PrinterConnection | None) -> str | None:
    """Why a printer takes nothing from us, however well it may be heard."""
    if connection is None:
        return f"the printer has no connection: {START_IT_THERE}"
    watched = why_only_watched(connection)
    return f"{watched}: {START_IT_THERE}" if watched else None


def why_only_watched(connection: PrinterConnection | None) -> str | None:
    """Why nothing can be told to this printer, however well it is heard; None where it takes our commands.

    Orders over the cloud need signatures that only the vendor's own programs can make (bambu_cloud).
    """
    if connection is None or connection.connection_type is not ConnectionType.bambu_cloud:
        return None
    return ONLY_WATCHED
