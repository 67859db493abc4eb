"""The plain values a printer's link takes and gives: where the printer is, what was heard, how the link stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from bambu.state import UNKNOWN, PrinterState

_SERIAL = re.compile(r"[A-Za-z0-9]{1,40}")


@dataclass(frozen=True, slots=True)
class PrinterAddress:
    """Where a printer is and how it is known to be that printer; see bambu.tls.Trust for the last two."""

    host: str
    serial: str
    access_code: str = field(repr=False)
    mqtt_port: int = 8883
    ftps_port: int = 990
    ca_file: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError: a serial number becomes part of a topic and of a certificate's check."""
        if not _SERIAL.fullmatch(self.serial):
            raise ValueError("a serial number is letters and digits")


class LinkStatus(StrEnum):
    """`connected`: a full report came over this connection. `error`: the machine is not provably this printer."""

    connecting = "connecting"
    connected = "connected"
    offline = "offline"
    unauthorized = "unauthorized"
    error = "error"


@dataclass(frozen=True, slots=True)
class LinkView:
    """Everything about a link at one moment. `state` is the last known one, also while the printer is away."""

    status: LinkStatus = LinkStatus.connecting
    reason: str | None = None
    state: PrinterState = UNKNOWN
    heard_at: datetime | None = None
    full_heard_at: datetime | None = None
    generation: int = 0
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """One report. `before` is unknown for the first ones of a connection: nothing changes from what was not seen."""

    before: PrinterState
    after: PrinterState
    heard_at: datetime
    generation: int
    full: bool


@dataclass(frozen=True, slots=True)
class LinkTimings:
    """In seconds. The defaults suit real printers; where they come from: field notes on the printers' habits."""

    connect: float = 10.0
    keepalive: int = 30
    full_report: float = 30.0
    silence: float = 60.0
    patience: float = 15.0
    offline: float = 90.0
    backoff_first: float = 5.0
    backoff_most: float = 300.0
    answer: float = 10.0
    hand_over: float = 5.0
    start_watch: float = 300.0
