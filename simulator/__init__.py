"""Printers to test against: MQTT over TLS and implicit FTPS in this process, in the shapes of real Bambu Lab printers.

Never ships with the application.
"""

from simulator.certificates import Authority, shared_authority
from simulator.faults import Faults
from simulator.machine import Machine
from simulator.printer import SimulatedPrinter
from simulator.printer_models import AmsKind, PrinterModel, find_model, models
from simulator.records import CommandRecord, ConnectionRecord, NotReadyError, StartRecord
from simulator.sliced_file import Plate, make_sliced_file, make_unsliced_project
from simulator.spools import AmsUnit, Spool

__all__ = [
    "AmsKind",
    "AmsUnit",
    "Authority",
    "CommandRecord",
    "ConnectionRecord",
    "Faults",
    "Machine",
    "NotReadyError",
    "Plate",
    "PrinterModel",
    "SimulatedPrinter",
    "Spool",
    "StartRecord",
    "find_model",
    "make_sliced_file",
    "make_unsliced_project",
    "models",
    "shared_authority",
]
