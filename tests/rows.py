"""What the worker would write, written by hand: tests of the API need its rows, not its links."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from models import ConnectionStatus, IntentState, PrinterConnection, ScheduledPrint, StartIntent
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import PASSWORD, Farm

LAN = {
    "connection_type": "bambu_lan",
    "host": "192.168.1.20",
    "serial_number": "01P00A000000001",
    "access_code": "12345678",
}


def hear(
    farm: Farm,
    printer_id: int,
    clock: Clock,
    state: str = "idle",
    *,
    status: ConnectionStatus = ConnectionStatus.connected,
    ago_seconds: float = 0,
    **snapshot: Any,
) -> None:
    """The printer of that id, which has a connection, has just reported this."""
    with farm.database() as session:
        session.execute(
            sa.update(PrinterConnection)
            .where(PrinterConnection.printer_id == printer_id)
            .values(
                connection_status=status,
                heard_at=clock.now - timedelta(seconds=ago_seconds),
                snapshot={"state": state, "current_print_id": None, "nozzles": [0.4], "storage": "ok", **snapshot},
            )
        )
        session.commit()


def add_intent(farm: Farm, print_id: int, state: IntentState, *, mapping: list[Any] | None = None) -> int:
    """A start of that print that has got so far; returns its id."""
    with farm.database() as session:
        of_print = session.get_one(ScheduledPrint, print_id)
        intent = StartIntent(
            user_id=of_print.user_id,
            printer_id=of_print.printer_id,
            print_id=print_id,
            plate=1,
            sha256="0" * 64,
            size_bytes=1,
            remote_name="farm-1.gcode.3mf",
            submission_id=100_000 + print_id,
            mapping=mapping or [],
            state=state,
            claimed_at=BASE_TIME,
            confirmed_at=BASE_TIME if state is IntentState.confirmed else None,
        )
        session.add(intent)
        session.commit()
        return intent.id


def log_in_again(farm: Farm) -> None:
    """A fresh token: time was turned further than the old one lives."""
    answer = farm.client.post("/api/auth/login", json={"email": farm.user["email"], "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    farm.token = answer.json["token"]
