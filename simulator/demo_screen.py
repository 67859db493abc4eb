"""What the demo shows: a timeline with live bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from simulator.demo_checks import Finding

COLORS = {"preparing": "yellow", "printing": "cyan", "finished": "green", "failed": "red", "paused": "magenta"}
WIDEST = 110
FRAMES_PER_SECOND = 12
PLAIN_STEP_PERCENT = 25
TIME_WIDTH = 8
COLUMNS: tuple[tuple[int | None, JustifyMethod], ...] = (
    *((9, "left"), (9, "left"), (None, "left"), (5, "right"), (5, "right"), (7, "right"), (6, "right")),
)


@dataclass(frozen=True, slots=True)
class PrinterView:
    """A printer as `GET /api/printer-connections/<id>/status` tells it; temperatures in °C, None where unknown.

    `job` is what it prints and `note` why it does not, either may be empty.
    """

    name: str
    model: str
    state: str
    percent: int | None
    layer: int | None
    layers: int | None
    nozzle: float | None
    nozzle_target: float | None
    bed: float | None
    bed_target: float | None
    job: str
    note: str

    @property
    def is_busy(self) -> bool:
        return self.state in ("preparing", "printing", "paused")

    @property
    def layer_text(self) -> str:
        return f"{self.layer or 0}/{self.layers}" if self.layers and self.state != "idle" else "-"


class Screen(Protocol):
    """Where the demo shows itself. Texts are shown as they are: nothing in them is markup."""

    def begin(self, title: str, subtitle: str) -> None: ...
    def open_phase(self, title: str) -> None: ...
    def tell(self, text: str, call: str = "", color: str = "") -> None: ...
    def watch(self) -> AbstractContextManager[None]: ...
    def show(self, views: Sequence[PrinterView]) -> None: ...
    def fail(self, text: str) -> None: ...
    def list_checks(self, findings: Sequence[Finding]) -> None: ...
    def close(self, lines: Sequence[str]) -> None: ...


def choose_screen(file: TextIO, environ: Mapping[str, str]) -> Screen:
    """The live one on a terminal, unless NO_COLOR, CI or a dumb terminal ask for plain lines."""
    is_plain = environ.get("NO_COLOR") or environ.get("CI") or environ.get("TERM", "dumb") in ("dumb", "unknown")
    return PlainScreen(file) if is_plain or not file.isatty() else LiveScreen(file)


class PlainScreen:
    """Line by line, for logs: no control characters, no colours, no lines drawn twice."""

    def __init__(self, file: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock, self._begun_at = file, clock, clock()
        self._shown: dict[str, tuple[str, int]] = {}

    def _line(self, text: str = "") -> None:
        print("".join(char if char.isprintable() else "?" for char in text), file=self._file, flush=True)

    def begin(self, title: str, subtitle: str) -> None:
        self._line(title)
        self._line(subtitle)

    def open_phase(self, title: str) -> None:
        self._line()
        self._line(f"== {title}")

    def tell(self, text: str, call: str = "", color: str = "") -> None:
        self._line(f"{self._clock() - self._begun_at:6.1f} s  {text}{f'  [{call}]' if call else ''}")

    @contextmanager
    def watch(self) -> Iterator[None]:
        self._shown.clear()
        yield

    def show(self, views: Sequence[PrinterView]) -> None:
        """A line when a printer changes what it does, and at every quarter of a print."""
        for view in views:
            step = (view.percent or 0) // PLAIN_STEP_PERCENT if view.state == "printing" else 0
            if self._shown.get(view.name) == (view.state, step):
                continue
            self._shown[view.name] = (view.state, step)
            self.tell(
                f"{view.name} ({view.model}): {view.state}, {view.percent or 0} %, layer {view.layer_text}, "
                f"nozzle {_degrees(view.nozzle, view.nozzle_target)}, bed {_degrees(view.bed, view.bed_target)}"
            )

    def fail(self, text: str) -> None:
        self._line()
        self._line(f"FAILED: {text}")

    def list_checks(self, findings: Sequence[Finding]) -> None:
        self._line()
        self._line("== Check list")
        for finding in findings:
            mark = "[ok]  " if finding.was_seen else "[MISS]"
            self._line(f"{mark} {finding.check.value}: {finding.words}")

    def close(self, lines: Sequence[str]) -> None:
        self._line()
        for line in lines:
            self._line(line)


class LiveScreen:
    """A terminal: the timeline scrolls above the printers' bars."""

    def __init__(self, file: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(file=file, highlight=False, emoji=False, markup=False)
        self._console.width = min(self._console.width, WIDEST)
        self._clock, self._begun_at = clock, clock()
        self._views: Sequence[PrinterView] = ()

    def begin(self, title: str, subtitle: str) -> None:
        self._console.print()
        self._console.print(Text(title, "bold"))
        self._console.print(Text(subtitle, "dim"))

    def open_phase(self, title: str) -> None:
        self._console.print()
        self._console.print(Rule(Text(title, "bold cyan"), align="left", style="cyan dim"))

    def tell(self, text: str, call: str = "", color: str = "") -> None:
        row = Table.grid(padding=(0, 2))
        row.add_column(width=TIME_WIDTH, justify="right", no_wrap=True)
        row.add_column()
        words = Text(text, color)
        if call:
            fits = TIME_WIDTH + 4 + words.cell_len + len(call) <= self._console.width
            words.append("  " if fits else "\n  ").append(call, "dim cyan")
        row.add_row(Text(f"{self._clock() - self._begun_at:.1f} s", "dim"), words)
        self._console.print(row)

    @contextmanager
    def watch(self) -> Iterator[None]:
        with Live(
            get_renderable=self._bars, console=self._console, refresh_per_second=FRAMES_PER_SECOND, transient=True
        ):
            yield

    def show(self, views: Sequence[PrinterView]) -> None:
        self._views = views

    def _bars(self) -> RenderableType:
        heads = (Text(head, "dim") for head in ("", "", "", "", "layer", "nozzle", "bed"))
        lines: list[RenderableType] = [Text(), _row(*heads)]
        for view in self._views:
            color = COLORS.get(view.state, "white")
            percent = view.percent if view.percent is not None and view.state != "idle" else 0
            lines += [
                _row(
                    Text.assemble((view.name, "bold"), (f" {view.model}", "dim")),
                    Text("heating" if view.state == "preparing" else view.state, color),
                    ProgressBar(100, percent, complete_style=color, finished_style=color),
                    Text(f"{percent} %", color),
                    Text(view.layer_text),
                    _heat(view.nozzle, view.nozzle_target),
                    _heat(view.bed, view.bed_target),
                ),
                Text(view.job if view.is_busy else view.note, "dim", no_wrap=True, overflow="ellipsis"),
                Text(),
            ]
        return Padding(Group(*lines), (0, 2))

    def fail(self, text: str) -> None:
        self._console.print()
        self._console.print(Text.assemble(("Failed: ", "bold red"), text))

    def list_checks(self, findings: Sequence[Finding]) -> None:
        self.open_phase("What was seen to happen")
        for finding in findings:
            row = Table.grid(padding=(0, 2))
            row.add_column(width=4, justify="right")
            row.add_column()
            mark = Text("✔", "bold green") if finding.was_seen else Text("✘", "bold red")
            words = Text(finding.words, "dim" if finding.was_seen else "red")
            row.add_row(mark, Text.assemble((finding.check.value, "bold"), "\n", words))
            self._console.print(row)

    def close(self, lines: Sequence[str]) -> None:
        self._console.print()
        for line in lines:
            # Not wrapped by us: a command broken into lines could not be copied.
            self._console.print(Text(line), soft_wrap=True)


def _row(*cells: RenderableType) -> Table:
    """One line of the bars; the third cell, the bar itself, takes the room that is left."""
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for width, justify in COLUMNS:
        table.add_column(width=width, justify=justify, ratio=None if width else 1, no_wrap=True)
    table.add_row(*cells)
    return table


def _degrees(now: float | None, target: float | None) -> str:
    if now is None:
        return "-"
    return f"{now:.0f}/{target:.0f} °C" if target else f"{now:.0f} °C"


def _heat(now: float | None, target: float | None) -> Text:
    """Yellow on the way up, red when hot for work, dim when off."""
    if now is None:
        return Text("-", "dim")
    if not target:
        return Text(f"{now:.0f} °C", "dim")
    return Text(f"{now:.0f}/{target:.0f}", "yellow" if now < target - 2 else "red")
