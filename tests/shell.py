"""Running what the documents say: their server, their shell blocks in one bash, their answers against the real ones."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.documents import ROOT, Block, blocks

START_SECONDS = 60.0
BLOCK_SECONDS = 60.0
LOOK_AGAIN_SECONDS = 30.0
STOP_SECONDS = 30.0
MISSING_TOOLS = [tool for tool in ("bash", "curl", "awk", "tar") if shutil.which(tool) is None]


def environment(**own: str) -> dict[str, str]:
    """As a person with an activated virtual environment has it; proxies and the caller's own settings stay outside."""
    passed_on = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    return {
        **passed_on,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        # The port of announcements belongs to the whole computer: what tests start leaves it alone.
        "DISCOVERY_PORT": "0",
        **own,
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """With everything that it started, even what does not listen."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def served(command: str, folder: Path, **settings: str) -> Iterator[str]:
    """The base URL of a server that a document's command started, on a free port and with its data in `folder`."""
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"],
            cwd=ROOT,
            env=environment(PORT="0", DATA_DIR=str(folder / "instance"), **settings),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (found := re.search(r'"url": "(http://[^"]+)"', log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"not serving after {START_SECONDS} s:\n{log.read_text()}"
            time.sleep(0.05)
        yield found[1]
    except AssertionError:
        print(log.read_text())
        raise
    finally:
        _end(process)


class Shell:
    """One bash with `set -euo pipefail` that runs block after block, so that variables and functions live on."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self._folder, self._errors = folder, folder / "shell-errors.txt"
        with self._errors.open("wb") as errors:
            self._bash = subprocess.Popen(
                ["bash", "--norc", "--noprofile"],
                cwd=folder,
                env=environment(**variables),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self._number = 0
        self._send("set -euo pipefail")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _end(self._bash)

    def _send(self, line: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{line}\n".encode())
        self._bash.stdin.flush()

    def run(self, script: str) -> str:
        """What a block printed. Fails the test if one of its commands fails or it takes too long."""
        self._number += 1
        path, mark = self._folder / f"block-{self._number}.sh", f"-- end of block {self._number} --"
        path.write_text(script)
        self._send(f"source {path} </dev/null; echo; echo '{mark}'")
        output, deadline = b"", time.monotonic() + BLOCK_SECONDS
        assert self._bash.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._bash.stdout, selectors.EVENT_READ)
            while mark.encode() not in output:
                assert time.monotonic() < deadline, f"took longer than {BLOCK_SECONDS} s:\n{script}\n{output.decode()}"
                if selector.select(timeout=1.0):
                    chunk = os.read(self._bash.stdout.fileno(), 65536)
                    assert chunk, f"failed:\n{script}\n{output.decode()}\n{self._errors.read_text()}"
                    output += chunk
        return output.decode().partition(mark)[0].strip()

    def follow(self, text: str) -> int:
        """Run every `bash` block of a document and hold each answer that is printed below one against the real one.

        A block that only looks is repeated for a while: what it waits for happens on its own time. Returns how many
        answers were compared.
        """
        found, compared = blocks(text), 0
        for block, below in zip(found, [*found[1:], Block("", "", 0)], strict=True):
            if block.language != "bash":
                continue
            output = self.run(block.text)
            if below.language not in ("json", "text"):
                continue
            deadline = time.monotonic() + LOOK_AGAIN_SECONDS
            while (fault := difference(below, output)) and _only_looks(block.text) and time.monotonic() < deadline:
                time.sleep(0.2)
                output = self.run(block.text)
            assert fault is None, f"line {below.line}: {fault}\nthe real answer:\n{output}"
            compared += 1
        return compared


def _only_looks(script: str) -> bool:
    return "curl" in script and not re.search(r"\s-(?:d|X|F)\s|=\$\(", script)


def difference(shown: Block, output: str) -> str | None:
    """What a shown answer says that the real one does not; None if it is all there. See `_difference`."""
    if shown.language == "json":
        try:
            real = json.loads(output)
        except ValueError:
            return "the real answer is no JSON"
        return _difference(json.loads(shown.text), real, "answer")
    lines, real_lines = shown.text.split("\n"), [line.rstrip() for line in output.split("\n")]
    return _difference([line.rstrip() for line in lines if line.strip()], [line for line in real_lines if line], "line")


def _difference(shown: Any, real: Any, where: str) -> str | None:
    """Objects may leave keys out, lists nothing; `…` in a text stands for anything."""
    if isinstance(shown, dict) and isinstance(real, dict):
        missing = shown.keys() - real.keys()
        if missing:
            return f"{where} has no {', '.join(sorted(missing))}"
        return next((fault for key in shown if (fault := _difference(shown[key], real[key], f"{where}.{key}"))), None)
    if isinstance(shown, list) and isinstance(real, list):
        if len(shown) != len(real):
            return f"{where} has {len(real)} entries, not {len(shown)}"
        pairs = enumerate(zip(shown, real, strict=True))
        return next((fault for n, pair in pairs if (fault := _difference(*pair, f"{where}[{n}]"))), None)
    if isinstance(shown, str) and isinstance(real, str) and "…" in shown:
        pattern = ".*".join(re.escape(part) for part in shown.split("…"))
        return None if re.fullmatch(pattern, real, re.DOTALL) else f"{where} is {real!r}, not {shown!r}"
    return (
        None
        if shown == real and isinstance(shown, bool) is isinstance(real, bool)
        else f"{where} is {real!r}, not {shown!r}"
    )
