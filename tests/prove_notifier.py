"""Notifiers in processes of their own, which die where a test says.

`python -m tests.prove_notifier SPEC` (JSON, see prove_worker.Spec) imports the product once, then makes a notifier for
each line of its input: a step of `outbox.CRASH_POINTS` and how often it is passed before the notifier kills itself
there, or "none 0". It is answered by the notifier's process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from flask import Flask

from courier import Courier
from models import db
from outbox import Outbox
from tests.prove_worker import ROOT, Spec

LOOK_SECONDS = 0.02


def be_notifier(app: Flask, step: str, times: int) -> None:
    """Ends at SIGTERM, or where it is told to die."""
    stop, seen, lock = threading.Event(), Counter[str](), threading.Lock()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    with app.app_context():
        # What the parent may have opened belongs to it.
        db.engine.dispose(close=False)

    def at_step(here: str) -> None:
        with lock:
            seen[here] += 1
            is_time = (here, seen[here]) == (step, times)
        if is_time:
            os.kill(os.getpid(), signal.SIGKILL)

    outbox = Outbox(app, Courier.of(app), at_step=at_step)
    outbox.start()
    while not stop.wait(LOOK_SECONDS):
        outbox.deliver_due()
    outbox.stop(10)


def main() -> None:
    app = Spec(**json.loads(sys.argv[1])).make_app()
    for line in sys.stdin:
        step, times = line.split()
        if (pid := os.fork()) == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            be_notifier(app, step, int(times))
            os._exit(0)
        print(pid, flush=True)


class Notifiers:
    """Makes notifiers of one farm, quickly. Nobody waits for the dead, so that a process id stays theirs."""

    def __init__(self, spec: Spec) -> None:
        with (Path(spec.folder) / "notifiers.log").open("ab") as log:
            self._process: subprocess.Popen[str] = subprocess.Popen(
                [sys.executable, "-m", "tests.prove_notifier", json.dumps(asdict(spec))],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._made: list[int] = []

    def make(self, step: str = "none", times: int = 0) -> int:
        """The process id of one that dies when it comes to that step for so many times."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{step} {times}\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        self._made.append(pid)
        return pid

    def close(self) -> None:
        for pid in self._made:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()


def is_alive(pid: int) -> bool:
    """See proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for_end(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


@contextlib.contextmanager
def notifiers(spec: Spec) -> Iterator[Notifiers]:
    made = Notifiers(spec)
    try:
        yield made
    finally:
        made.close()


if __name__ == "__main__":
    main()
