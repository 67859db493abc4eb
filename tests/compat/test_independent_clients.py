"""Programs of other people talk to our simulator, so that it is more than our own idea of a printer. `make compat`."""

from __future__ import annotations

import json
import os
import subprocess
import threading
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
    with SimulatedPrinter(SERIAL, CODE, model="P1S", speed=60, spools=[Spool("PLA", "#FFFFFF")]) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "compat.gcode.3mf"
    path.write_bytes(make_sliced_file(None, [Plate(minutes=600)]))
    return path


def talk(program: str, printer: SimulatedPrinter, file: Path, *, on_word: Any = None) -> dict[str, Any]:
    """What the program saw. `on_word` is called when it asks on stderr for somebody at the printer."""
    command = [PYTHON, str(HERE / program), printer.host, str(printer.mqtt_port), str(printer.ftps_port)]
    with subprocess.Popen(
        [*command, SERIAL, CODE, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        said: list[str] = []

        def listen(stderr: Any) -> None:
            for line in stderr:
                said.append(line)
                if line.strip() == "press start" and on_word is not None:
                    on_word()

        listener = threading.Thread(target=listen, args=(process.stderr,))
        listener.start()
        try:
            answer, _ = process.stdout.read(), process.wait(120)
        finally:
            process.kill()
            listener.join(5)
    assert process.returncode == 0, "".join(said)
    seen: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return seen


def test_bambulabs_api_uploads_starts_steers_and_reads(printer: SimulatedPrinter, file: Path) -> None:
    seen = talk("with_bambulabs_api.py", printer, file)
    assert seen["before"] in ("IDLE", "FINISH")
    assert (seen["nozzle_diameter"], seen["light"]) == (0.4, "on")
    assert seen["upload"].startswith("226")
    assert [seen[step] for step in ("started", "paused", "resumed")] == ["RUNNING", "PAUSE", "RUNNING"]
    assert seen["stopped"] in ("FAILED", "IDLE")
    assert [start.verdict for start in printer.starts] == ["accepted"]


def test_bambu_printer_manager_reads_and_steers_what_was_started_at_the_printer(
    printer: SimulatedPrinter, file: Path
) -> None:
    (printer.files / file.name).write_bytes(file.read_bytes())
    seen = talk("with_bambu_printer_manager.py", printer, file, on_word=lambda: printer.press_start(file.name))
    assert seen["model"].endswith("P1S")
    assert seen["bed"] > 0
    assert [seen[step] for step in ("started", "paused", "resumed")] == ["RUNNING", "PAUSE", "RUNNING"]
    assert seen["stopped"] in ("FAILED", "IDLE")
