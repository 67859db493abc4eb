"""Printers to test against: MQTT over TLS, implicit FTPS and SSDP in this process, shaped like real Bambu Lab printers.

Never ships with the application.
"""

from simulator.certificates import Authority, shared_authority
from simulator.faults import Faults, StorageFaults
from simulator.machine import Machine
from simulator.printer import SimulatedPrinter
from simulator.printer_models import AmsKind, PrinterModel, find_model, models
from simulator.records import CommandRecord, ConnectionRecord, NotReadyError, StartRecord
from simulator.replay import Replay, ReplayEvent
from simulator.script import Script, Step
from simulator.sliced_file import Plate, make_sliced_file, make_unsliced_project
from simulator.spools import AmsUnit, Spool
from simulator.ssdp import Announcer

__all__ = [
    "AmsKind",
    "AmsUnit",
    "Announcer",
    "Authority",
    "CommandRecord",
    "ConnectionRecord",
    "Faults",
    "Machine",
    "NotReadyError",
    "Plate",
    "PrinterModel",
    "Replay",
    "ReplayEvent",
    "Script",
    "SimulatedPrinter",
    "Spool",
    "StartRecord",
    "Step",
    "StorageFaults",
    "find_model",
    "make_sliced_file",
    "make_unsliced_project",
    "models",
    "shared_authority",
]
