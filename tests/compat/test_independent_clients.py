"""Programs of other people talk to our simulator, so that it is more than our own idea of a printer. `make compat`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator import Plate, SimulatedPrinter, Spool, make_sliced_file

HERE = Path(__file__).parent
PYTHON = os.environ.get("COMPAT_PYTHON", "")
SERIAL, CODE = "01P00A000000001", "12345678"

pytestmark = [
    pytest.mark.compat,
    pytest.mark.skipif(not PYTHON, reason="COMPAT_PYTHON names no interpreter that has the programs: make compat"),
]


@pytest.fixture
def printer() -> Iterator[SimulatedPrinter]:
    spools = [Spool("PLA", "FFFFFFFF"), Spool("PLA", "000000FF", rfid=False)]
    with SimulatedPrinter(SERIAL, CODE, model="P1S", speed=60, spools=spools) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "compat.gcode.3mf"
    path.write_bytes(make_sliced_file(None, [Plate(minutes=600)]))
    return path


def talk(program: str, printer: SimulatedPrinter, file: Path) -> dict[str, Any]:
    """What the program saw."""
    command = [PYTHON, str(HERE / program), printer.host, str(printer.mqtt_port), str(printer.ftps_port)]
    ended = subprocess.run([*command, SERIAL, CODE, str(file)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    seen: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return seen


def test_bambulabs_api_uploads_starts_steers_and_reads(printer: SimulatedPrinter, file: Path) -> None:
    seen = talk("with_bambulabs_api.py", printer, file)
    assert seen["before"] in ("IDLE", "FINISH")
    assert (seen["nozzle_diameter"], seen["light"]) == (0.4, "on")
    assert seen["upload"].startswith("226")
    assert [seen[step] for step in ("started", "paused", "resumed")] == ["RUNNING", "PAUSE", "RUNNING"]
    assert (seen["speed"], printer.machine.speed_level) == ("124", 3)
    assert seen["stopped"] in ("FAILED", "IDLE")
    assert [start.verdict for start in printer.starts] == ["accepted"]


def test_bambu_printer_manager_sets_loads_uploads_starts_steers_and_reads(
    printer: SimulatedPrinter, file: Path
) -> None:
    seen = talk("with_bambu_printer_manager.py", printer, file)
    assert seen["model"].endswith("P1S")
    assert seen["bed"] > 0
    assert (seen["light"], printer.machine.lights["chamber_light"]) == ("False", "off")
    assert (seen["told"], seen["loaded"], seen["unloaded"]) == ("['PETG']", "1", "True")
    spool = printer.machine.spool_at((0, 1))
    assert spool is not None and (spool.filament_id, spool.color) == ("GFG99", "FF0000FF")
    assert seen["files"] == ["compat.gcode.3mf"]
    assert [seen[step] for step in ("started", "paused", "resumed")] == ["RUNNING", "PAUSE", "RUNNING"]
    assert (seen["speed"], printer.machine.speed_level) == ("4", 4)
    assert seen["stopped"] in ("FAILED", "IDLE")
    assert (seen["error"], seen["cleared"]) == (str(0x0300400C), "0")
    assert [start.verdict for start in printer.starts] == ["accepted"]
