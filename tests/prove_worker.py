"""Workers in processes of their own, which a test may kill or stop at a named step.

`python -m tests.prove_worker SPEC` (JSON, see Spec) imports the product once, then makes a worker for each line of its
input: a JSON object (see Orders), answered by the worker's process id. A worker tells what it does in the file `log`.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from flask import Flask

from app import configure_logging, create_app
from bambu_client import LinkTimings
from models import db
from tests.conftest import BASE_TIME, settings_for
from worker import Worker

ROOT = Path(__file__).resolve().parent.parent
TIMES_FASTER = 10.0
QUICK = LinkTimings(
    connect=2.0,
    keepalive=5,
    full_report=0.4,
    silence=0.8,
    patience=0.5,
    offline=1.5,
    backoff_first=0.05,
    backoff_most=0.3,
    answer=1.0,
)


class SharedClock:
    """One time for all processes, ten seconds for each real one, which a test may set forward: it lies in a file."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(struct.pack("dd", time.monotonic(), 0.0))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def __call__(self) -> datetime:
        began, forward = struct.unpack("dd", self._memory[:])
        # Of the whole computer, not of one process.
        return BASE_TIME + timedelta(seconds=(time.monotonic() - began) * TIMES_FASTER + forward)

    def forward(self, seconds: float) -> None:
        began, forward = struct.unpack("dd", self._memory[:])
        self._memory[:] = struct.pack("dd", began, forward + seconds)


@dataclass(frozen=True)
class Spec:
    """The farm that the workers are of."""

    database_url: str
    folder: str
    lease_seconds: float
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def clock(self) -> SharedClock:
        return SharedClock(Path(self.folder) / "clock")

    def make_app(self) -> Flask:
        """The farm as any of its processes has it."""
        settings = settings_for(
            self.database_url,
            Path(self.folder) / "data",
            PRINTER_REST_SECONDS="0",
            ACCESS_TOKEN_MINUTES="1000000",
            COMMAND_TIMEOUT_SECONDS="20",
            **self.settings,
        )
        return create_app(settings, clock=self.clock)


@dataclass(frozen=True)
class Orders:
    """For one worker: the signal that it sends itself when it comes to `step` for the `times`-th time."""

    log: str
    step: str = ""
    times: int = 1
    number: int = signal.SIGKILL


class Marks:
    """What a worker did, in a file that outlives it."""

    def __init__(self, orders: Orders) -> None:
        self._orders, self._seen = orders, Counter[str]()
        self._lock = threading.Lock()
        self._file = os.open(orders.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, word: str) -> None:
        os.write(self._file, f"{word} {time.monotonic():.3f}\n".encode())

    def at_step(self, step: str) -> None:
        self.write(step)
        with self._lock:
            self._seen[step] += 1
            is_time = (step, self._seen[step]) == (self._orders.step, self._orders.times)
        if is_time and self._orders.number == signal.SIGSTOP:
            self._freeze()
        elif is_time:
            self.write("signal")
            os.kill(os.getpid(), self._orders.number)

    def _freeze(self) -> None:
        self.write("signal")
        while not Path(f"{self._orders.log}.go").exists():
            # To this thread: one to the process lets its sender run on for a moment.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            # Until it is thawed only the other threads may go on: see WorkerProcess.let_breathe.
            time.sleep(0.02)
        self.write("went on")


def be_worker(app: Flask, spec: Spec, orders: Orders) -> None:
    """As `worker.main`, with times to test by. Ends at SIGTERM."""
    stop, marks = threading.Event(), Marks(orders)
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    with app.app_context():
        # What the parent may have opened belongs to it.
        db.engine.dispose(close=False)
    worker = Worker(app, timings=QUICK, lease_life=timedelta(seconds=spec.lease_seconds), at_step=marks.at_step)
    worker.start()
    marks.write("running")
    stop.wait()
    worker.stop()
    marks.write("stopped")


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    configure_logging()
    app = spec.make_app()
    # Nobody waits for the dead, so that a process id stays theirs: a test goes on to send signals there.
    made = []
    for line in sys.stdin:
        orders = Orders(**json.loads(line))
        if (pid := os.fork()) == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            be_worker(app, spec, orders)
            os._exit(0)
        made.append(pid)
        print(pid, flush=True)
    for pid in made:
        # Whoever asked for them is gone.
        os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class WorkerProcess:
    """A worker that a test made; its process id is its own for as long as the nursery is open."""

    pid: int
    log: Path

    @property
    def _state(self) -> str:
        """One letter, see proc(5)."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    @property
    def is_alive(self) -> bool:
        return self._state != "Z"

    @property
    def is_stopped(self) -> bool:
        return self._state == "T"

    @property
    def told(self) -> list[tuple[str, float]]:
        """What it did, and when (`time.monotonic`)."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(word, float(at)) for word, _, at in (line.rpartition(" ") for line in lines)]

    @property
    def marks(self) -> list[str]:
        return [word for word, _ in self.told]

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def let_breathe(self) -> None:
        """While it is frozen where it was told to. All its threads are, and one may hold a lock of the database, which
        nobody ever takes from a process on SQLite."""
        self.send(signal.SIGCONT)

    def thaw(self) -> None:
        """It goes on where it was told to freeze."""
        Path(f"{self.log}.go").touch()
        while "went on" not in self.marks:
            self.send(signal.SIGCONT)
            time.sleep(0.01)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while self.is_alive:
            assert time.monotonic() < deadline, f"worker {self.pid} did not end: {self.marks}"
            time.sleep(0.005)


class Nursery:
    """Makes workers of one farm, quickly; every one of them is gone when it closes."""

    def __init__(self, spec: Spec) -> None:
        self._folder, self._made = Path(spec.folder), list[WorkerProcess]()
        self._lock = threading.Lock()
        with (self._folder / "workers.log").open("ab") as log:
            self._process: subprocess.Popen[str] = subprocess.Popen(
                [sys.executable, "-m", "tests.prove_worker", json.dumps(asdict(spec))],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def worker(self, step: str = "", *, times: int = 1, number: int = signal.SIGKILL) -> WorkerProcess:
        """One that sends itself a signal when it comes to that step, or a common one."""
        assert self._process.stdin and self._process.stdout
        with self._lock:
            log = self._folder / f"worker-{len(self._made)}.log"
            orders: dict[str, Any] = asdict(Orders(str(log), step, times, int(number)))
            self._process.stdin.write(json.dumps(orders) + "\n")
            self._process.stdin.flush()
            made = WorkerProcess(int(self._process.stdout.readline()), log)
            self._made.append(made)
        return made

    def close(self) -> None:
        for each in self._made:
            each.kill()
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def nursery(spec: Spec) -> Iterator[Nursery]:
    made = Nursery(spec)
    try:
        yield made
    finally:
        made.close()


if __name__ == "__main__":
    main()
