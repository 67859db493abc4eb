"""`make demo`: it shows the whole walk, proves what it shows, and can tell when something did not happen."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

import demo
from simulator.demo_checks import Check
from simulator.demo_screen import LiveScreen, PlainScreen, choose_screen
from simulator.demo_seller import Seller
from simulator.demo_stage import DemoFailed, Scene, Stage

ROOT = Path(__file__).parent.parent
ROUND_SECONDS = 60
FAST = 300.0
OTHER_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Becomes the demo once its standard input is the terminal that a Ctrl-C comes from.
ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


def free_port() -> int:
    """The app's first choice: one of its own for each demo, so that several may begin at once. Below those that the
    system hands out: else one of the stage's own servers may have it before the app does."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "demo.py", "--folder", str(folder), "--port", str(free_port()), *options]


def play(scene: Scene) -> tuple[int, str]:
    """Exit code and output of one round in this process."""
    shown = io.StringIO()
    code = demo.run(scene, PlainScreen(shown), threading.Event(), once=True)
    return code, shown.getvalue()


def lines_of(output: str, mark: str) -> dict[Check, str]:
    """The check list's lines with that mark: the check, and the words after it."""
    found = {}
    for line in output.splitlines():
        for check in Check:
            if line.startswith(f"{mark} {check.value}: "):
                found[check] = line.removeprefix(f"{mark} {check.value}: ")
    return found


def all_have_ended(folder: Path) -> bool:
    """The lock is held by the demo and by its app, for as long as either lives."""
    with open(folder.with_name(f"{folder.name}.lock")) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def read_until(terminal: int, words: str, output: str, seconds: float = ROUND_SECONDS) -> str:
    """What a terminal showed up to and beyond these words, or up to its end."""
    deadline = time.monotonic() + seconds
    while words not in output and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                output += os.read(terminal, 65536).decode(errors="replace")
            except OSError:
                break
    return output


def test_one_round_shows_everything_with_evidence_and_ends_with_0(tmp_path: Path) -> None:
    strange = {
        "DATABASE_URL": "sqlite:////nowhere/at/all.sqlite3",
        "SMTP_HOST": "192.0.2.1",
        "http_proxy": "http://192.0.2.1",
    }
    ended = subprocess.run(
        command(tmp_path / "demo", "--once"),
        cwd=ROOT,
        env=os.environ | strange,
        capture_output=True,
        text=True,
        timeout=ROUND_SECONDS,
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout[-4000:] + ended.stderr
    assert CONTROLS.findall(ended.stdout) == []
    evidence = lines_of(ended.stdout, "[ok]  ")
    assert list(evidence) == list(Check)
    assert "let the app in" in evidence[Check.PRINTERS]
    assert evidence[Check.WEATHER].startswith("1 store sealed, 4 fine; 2 calls to http://127.0.0.1:")
    assert evidence[Check.LOGIN] == "PrintedThings is account 1's; 2 codes, each with its PKCE verifier"
    assert "receipt 3100000007" in evidence[Check.RECEIPT] and "3 lines, 81.90 EUR" in evidence[Check.RECEIPT]
    assert "4 prints" in evidence[Check.PLAN] and "1 digital line skipped" in evidence[Check.PLAN]
    assert evidence[Check.UPLOAD].count(".gcode.3mf on Right") == 2
    assert len(set(re.findall(r"farm-\S+ on (?:Left|Right)", evidence[Check.UPLOAD]))) == 4
    assert "Left was told 2 and accepted 2" in evidence[Check.START]
    assert "layers 1–60 of 60" in evidence[Check.REPORT]
    assert "963.4 g" in evidence[Check.FILAMENT] and "980.8 g" in evidence[Check.FILAMENT]
    assert evidence[Check.ORDER].endswith("queued → printing → printed")
    assert "“Finished: " in evidence[Check.MAIL] and evidence[Check.MAIL].count("Order #3100000007") == 1
    assert "Left 4 (print.started and print.completed)" in evidence[Check.WEBHOOK]
    assert "3 lines for Robin Example, 4 tickets" in evidence[Check.PAPERS]
    assert evidence[Check.SHIPPED] == "receipt 3100000007 is completed there, with dhl JJD00123456789"
    assert evidence[Check.ONCE].startswith("1 mail to Robin Example, 1 call to Etsy")
    assert "demo/app.log: no key" in evidence[Check.SECRETS]
    assert (tmp_path / "demo" / "job-tickets.html").exists()
    assert "POST /api/orders/sync" not in ended.stdout
    steps = ("5 °C and 85 % outside", "preparing", "scheduled → started", "finished, 100 %", "started → completed")
    for step in (*steps, "Shipped, and Etsy knows"):
        assert step in ended.stdout
    assert all_have_ended(tmp_path / "demo")


def test_printers_without_developer_mode_are_told_apart_from_success(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "demo", free_port(), FAST, patience_seconds=4.0, has_developer_mode=False)
    code, output = play(scene)
    misses = lines_of(output, "[MISS]")
    assert code == 1
    seen = [Check.PRINTERS, Check.WEATHER, Check.LOGIN, Check.RECEIPT, Check.PLAN, Check.SECRETS]
    assert list(lines_of(output, "[ok]  ")) == seen
    assert misses[Check.SHIPPED] == "never reached"
    assert misses[Check.START].endswith("Right was told 0 and accepted 0, for 2 prints")
    assert misses[Check.MOVES].startswith("print 1 went queued → scheduled → failed; print 4 went queued → scheduled;")
    *_, left, right, log = output.splitlines()
    assert left.startswith("Left: print 1, Spiral vase, failed: ") and "Developer Mode" in left
    assert right.startswith("Right: print 2, Cable clips, set of 4, does not go on: ") and "Developer Mode" in right
    assert log.endswith("demo/app.log")


def test_what_does_not_hold_is_told_apart_from_success_and_from_what_does(tmp_path: Path) -> None:
    """Signatures made with another secret, and an Etsy that loses the tracking number."""
    scene = Scene(tmp_path / "demo", free_port(), FAST, receivers_trust=OTHER_SECRET, etsy_loses_tracking=True)
    code, output = play(scene)
    misses = lines_of(output, "[MISS]")
    assert (code, list(misses)) == (1, [Check.WEBHOOK, Check.SHIPPED]), output
    assert "4 of 4 signatures of Left do not hold" in misses[Check.WEBHOOK]
    assert misses[Check.SHIPPED].startswith(
        "Etsy holds no tracking number instead of dhl JJD00123456789; the app says: "
    )
    assert "add it by hand" in misses[Check.SHIPPED]


def test_on_a_terminal_it_keeps_serving_what_it_says_until_ctrl_c(tmp_path: Path) -> None:
    terminal, far_end = pty.openpty()
    environ = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")}
    line = command(tmp_path / "demo", "--speed", str(FAST))
    running = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *line],
        cwd=ROOT,
        env=environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"},
        stdin=far_end,
        stdout=far_end,
        stderr=far_end,
        start_new_session=True,
    )
    os.close(far_end)
    try:
        output = read_until(terminal, "/start.", "")
        shown = ESCAPES.sub("", output).replace("\r\n", "\n")
        assert "\x1b[" in output and "━" in shown and "heating" in shown
        assert shown.count("✔") == len(Check) and "✘" not in shown, shown[-6000:]
        url = re.search(r"http://127\.0\.0\.1:\d+/api$", shown, re.MULTILINE)
        assert url is not None
        assert requests.get(f"{url[0]}/docs", timeout=5).ok
        assert shutil.which("curl"), "the demo recommends curl, so its test needs it"
        answers = run_commands(shown)
        assert [printer["name"] for printer in answers[0]] == ["Left", "Right"]
        assert answers[1]["message"] == "Imported 1 new orders"
        assert [(each["order_id"], each["status"]) for each in answers[2]] == [(2, "queued"), (2, "queued")]
        os.write(terminal, b"\x03")
        output = read_until(terminal, "have ended.", output)
        assert running.wait(20) == 0
    finally:
        running.kill()
        running.wait()
        os.close(terminal)
    assert "Traceback" not in output
    assert all_have_ended(tmp_path / "demo")


def run_commands(shown: str) -> list[object]:
    """Run the shell commands of the farewell in a shell, as one who copies them; the JSON that each curl printed."""
    begins = ("API=", "TOKEN=", "curl ", "  -d ", "  -H ", "  | ")
    farewell = shown[shown.index("Try it from another terminal") :]
    lines = [line for line in farewell.splitlines() if line.startswith(begins)]
    script = "\n".join(line if line.endswith("\\") or not line.strip() else f"{line}\necho" for line in lines)
    ended = subprocess.run(["bash", "-e"], input=script, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines() if line.strip()]


def test_told_to_stop_in_the_middle_it_puts_everything_away(tmp_path: Path) -> None:
    line = command(tmp_path / "demo", "--once")
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        output = ""
        for shown in running.stdout:
            output += shown
            if "an order comes in" in shown.casefold():
                running.send_signal(signal.SIGTERM)
        assert running.wait(20) == demo.INTERRUPTED, output
    assert "Traceback" not in output and "Stopped" in output
    assert all_have_ended(tmp_path / "demo")


def test_an_app_that_ends_by_itself_is_explained_with_its_log(tmp_path: Path) -> None:
    with Stage(Scene(tmp_path / "demo", free_port()), threading.Event()) as stage:
        stage.start_app()
        assert stage.app is not None
        assert Seller(stage).get("/api/health") == {"status": "healthy"}
        stage.app.kill()
        stage.app.wait()
        with pytest.raises(DemoFailed, match=r"ended by itself \(exit code -9\).*demo/app\.log\. It"):
            Seller(stage).get("/api/health")


def test_two_demos_do_not_share_a_folder_and_foreign_files_are_safe(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "demo", free_port())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with Stage(scene, threading.Event()):
        (scene.folder / "left_over").touch()
        code, output = play(scene)
        assert code == 1 and "Another demo is still running" in output
        code, output = play(Scene(tmp_path / "mine", free_port()))
        assert code == 1 and "not emptied" in output
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with Stage(scene, threading.Event()):
        assert not (scene.folder / "left_over").exists()


def test_a_taken_port_is_passed_over(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), Stage(Scene(tmp_path / "demo", port), threading.Event()) as stage:
        assert stage.port > port


@pytest.mark.parametrize(
    ("environ", "is_live"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "CI": "true"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_bars_are_for_terminals_and_whoever_wants_them(environ: dict[str, str], is_live: bool) -> None:
    terminal, far_end = pty.openpty()
    with os.fdopen(terminal), open(far_end, "w") as shown:
        assert isinstance(choose_screen(shown, environ), LiveScreen if is_live else PlainScreen)
    assert isinstance(choose_screen(io.StringIO(), environ), PlainScreen)


def test_plain_lines_hold_no_control_characters() -> None:
    shown = io.StringIO()
    screen = PlainScreen(shown, clock=lambda: 0.0)
    screen.tell("vase\x1b[2J\n[ok]   forged", "POST /\x9b")
    assert shown.getvalue() == "   0.0 s  vase?[2J?[ok]   forged  [POST /?]\n"
