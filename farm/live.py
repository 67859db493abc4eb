"""Whether a printer can be asked and told something right now."""

from __future__ import annotations

from datetime import datetime, timedelta

from models import ConnectionStatus, PrinterConnection

INCOMPLETE = "address, serial number and access code are all needed"
# A printer that prints reports at least every few seconds; after this long it counts as offline.
LIVE_FOR = timedelta(seconds=90)


def is_live(connection: PrinterConnection | None, now: datetime) -> bool:
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
        return "the printer has no connection: start it there and record it here"
    return None
