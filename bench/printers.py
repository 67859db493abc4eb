"""What printers cost: reading their reports beside a floor, and hundreds of them held by one process.

Three processes, so that each one's time is its own: one that replays the printers, one that holds them and is measured,
and this one, which starts both and looks at the rows.
"""

from __future__ import annotations

import json
import queue
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import orjson

import bambu_report as report
from bench.measure import Result, compare, percentiles
from bench.replayer import MODELS, REPORTS, age_seconds, payload, printing

PRINTERS = (100, 400)
LINKS_GOAL_PERCENT = 8.0
_SAMPLED_ROWS = 40
_LOOK_EVERY_SECONDS = 0.01
_PATIENCE_SECONDS = 90.0


def main() -> None:
    """Prints the numbers."""
    print()
    print(f"{f'CPU time for {REPORTS} reports':<42} {'ours':>11} {'floor':>11}   ratio")
    for result in report_results():
        print(result.line(), flush=True)
    for model, prefix in (MODELS[0], MODELS[-1]):
        first = beside_floor("", prefix, None, minute(model, prefix, full=True), goal=1.0)
        print(f"{model}, first full report of a connection: {first.ours_ms / REPORTS:.3f} ms, {first.ratio:.1f}x floor")
    print()
    print("printers, all models in turn, each with one report a second over MQTT and TLS, in another process")
    for count in PRINTERS:
        print(line(f"{count} printers, connections alone", held("links", count), to="listener", goal=count == 100))
        print(line(f"{count} printers, whole worker on SQLite", held("worker", count), to="row"))


def report_results() -> Iterator[Result]:
    """From bytes to a state, beside the least that keeps what was said: repeated full reports, then tiny ones."""
    for model, prefix in MODELS:
        full = minute(model, prefix, full=True)
        yield beside_floor(f"{model}, full reports", prefix, full[0], full, goal=1.5)
        if model in ("P1S", "A1", "H2D"):
            changes = minute(model, prefix, full=False)
            yield beside_floor(f"{model}, changes only", prefix, full[0], changes, goal=4.0)


def minute(model: str, prefix: str, *, full: bool) -> list[bytes]:
    """What a printer says while it heats up, whole or only what has changed."""
    machine = printing(model, f"{prefix}00B000000000", 10.0)
    messages = []
    while len(messages) < REPORTS:
        machine.advance(1.0)
        if message := machine.report(full=full):
            messages.append(payload(message, pretty=machine.model.pretty_json))
    return messages


def beside_floor(name: str, serial: str, first: bytes | None, messages: list[bytes], *, goal: float) -> Result:
    """What is said after a first report; without one, each message as if it was the first."""
    begin = report.first_raw(serial)
    known = report.merge(begin, orjson.loads(first)) if first else begin
    floor_known: dict[str, Any] = orjson.loads(first) if first else {}

    def ours() -> None:
        raw = known
        for message in messages:
            decoded = report.decode(message)
            assert decoded is not None
            raw = report.merge(raw if first else begin, decoded)
            report.read(raw)

    def floor() -> None:
        for message in messages:
            deep_merge(floor_known if first else {}, orjson.loads(message))

    return compare(name, ours, floor, goal=goal, repeat=10)


def deep_merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        known = into.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            deep_merge(known, value)
        else:
            into[key] = value


def held(role: str, count: int) -> dict[str, Any]:
    """What holding so many printers took; see bench.holding for `role`. Delays in seconds."""
    with (
        tempfile.TemporaryDirectory(prefix="farm-bench-") as folder,
        process("bench.replayer", str(count), folder) as replayer,
        process("bench.holding", role, str(count), replayer.get(timeout=_PATIENCE_SECONDS), folder) as holding,
    ):
        assert holding.get(timeout=_PATIENCE_SECONDS) == "begun"
        delays: list[float] = []
        if role == "worker":
            rows = look_at_rows(Path(folder) / "farm.sqlite3", count)
            while holding.empty():
                delays += next(rows)
        measured: dict[str, Any] = json.loads(holding.get())
    return {**measured, "delays": delays or measured["delays"]}


@contextmanager
def process(module: str, *arguments: str) -> Iterator[queue.SimpleQueue[str]]:
    """A Python process and what it prints, line by line; it ends with the block."""
    started = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert started.stdout is not None
        for printed in started.stdout:
            lines.put(printed.strip())

    threading.Thread(target=read, daemon=True).start()
    try:
        yield lines
    finally:
        started.terminate()
        started.wait()


def look_at_rows(path: Path, count: int) -> Iterator[list[float]]:
    """Looks again and again, and gives the ages of reports that were not there the last time."""
    ids = ",".join(str(1 + place * count // _SAMPLED_ROWS) for place in range(_SAMPLED_ROWS))
    look = f"SELECT id, json_extract(snapshot, '$.layers_printed') FROM printer_connections WHERE id IN ({ids})"
    seen: dict[int, int] = {}
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        seen.update(connection.execute(look))
        while True:
            threading.Event().wait(_LOOK_EVERY_SECONDS)
            found = connection.execute(look).fetchall()
            yield [age_seconds(layers) for row, layers in found if seen[row] != layers]
            seen.update(found)


def line(name: str, measured: dict[str, Any], *, to: str, goal: bool = False) -> str:
    middle, most, nearly_all = (f"{delay * 1000:.0f}" for delay in percentiles(measured["delays"]))
    text = (
        f"{name:<42} {measured['cpu_percent']:5.1f} % of a core {measured['memory_mb']:5.0f} MB"
        f"   report to {to} {middle}/{most}/{nearly_all} ms (50/95/99 %)"
    )
    if not goal:
        return text
    verdict = "ok" if measured["cpu_percent"] <= LINKS_GOAL_PERCENT else "ABOVE GOAL"
    return f"{text}   goal {LINKS_GOAL_PERCENT:.0f} %  {verdict}"


if __name__ == "__main__":
    main()
