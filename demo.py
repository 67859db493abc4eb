"""`python demo.py [--once]`: one Etsy order becomes a finished print, before your eyes, on this machine alone.

The product runs as it does anywhere, as a process of its own, and is spoken to over HTTP only. Simulated are the two
printers and Etsy; what they say and are told goes over real sockets.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from simulator.demo_checks import CheckList
from simulator.demo_screen import Screen, choose_screen
from simulator.demo_seller import EMAIL, PASSWORD
from simulator.demo_stage import ROOT, DemoFailed, Interrupted, Scene, Stage, shown_path
from simulator.demo_walk import Walk

INTERRUPTED = 130


def run(scene: Scene, screen: Screen, stop: threading.Event, *, once: bool) -> int:
    """Plays the scene; the exit code: 0 only if everything on the check list was seen to happen.

    Not `once`, it keeps serving after that until `stop` is set.
    """
    screen.begin(
        "From an Etsy order to a finished print",
        "The app is real and so is every connection; Etsy and the two printers are simulated. Nothing leaves this machine.",
    )
    checks = CheckList()
    try:
        with Stage(scene, stop) as stage:
            walk = Walk(stage, screen, checks)
            try:
                walk.play()
            except DemoFailed as error:
                screen.fail(str(error))
                checks.break_off(str(error))
            screen.list_checks(checks.findings)
            if not checks.is_whole:
                screen.close([f"Not everything was seen to happen. The app's log is {shown_path(stage.log_path)}"])
                return 1
            if once:
                screen.close(["Everything was seen to happen."])
                return 0
            walk.add_another_order()
            screen.close(_farewell(stage))
            _serve(stage)
    except Interrupted:
        screen.close(["Stopped. The app and the printers have ended."])
        return 0 if checks.is_whole else INTERRUPTED
    except (DemoFailed, OSError) as error:
        screen.fail(str(error))
        return 1
    return 0


def _serve(stage: Stage) -> None:
    """Until somebody asks to stop (Interrupted) or the app ends by itself (DemoFailed)."""
    while True:
        stage.pause(0.5)
        stage.require_app()


def _farewell(stage: Stage) -> list[str]:
    url = stage.base_url
    return [
        "The farm goes on, and so do its printers, until you press Ctrl-C.",
        "",
        f"  API    {url}/api",
        f"  Docs   {url}/api/docs",
        f"  Login  {EMAIL}  {PASSWORD}",
        f"  Log    {shown_path(stage.log_path)}",
        "",
        "Try it. Log in and keep the token:",
        "",
        f"TOKEN=$(curl -s {url}/api/auth/login -H 'Content-Type: application/json' \\",
        f"""  -d '{{"email": "{EMAIL}", "password": "{PASSWORD}"}}' \\""",
        """  | python3 -c 'import json, sys; print(json.load(sys.stdin)["token"])')""",
        "",
        "Look at the printers:",
        "",
        f'curl -s -H "Authorization: Bearer $TOKEN" {url}/api/printers',
        "",
        "Another order has come in at Etsy. Import it, and queue its prints on Left:",
        "",
        f'curl -s -X POST -H "Authorization: Bearer $TOKEN" {url}/api/orders/sync',
        f'curl -s -X POST -H "Authorization: Bearer $TOKEN" {url}/api/orders/2/schedule-prints \\',
        f"""  -H 'Content-Type: application/json' -d '{{"printer_id": {stage.posts[0].printer_id}}}'""",
        "",
        "Each of them starts with POST /api/bambu/scheduled-prints/<id>/start; the docs have the rest.",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="One Etsy order becomes a finished print, simulated.")
    parser.add_argument("--once", action="store_true", help="end after one round: 0 if everything was seen to happen")
    parser.add_argument("--speed", type=float, default=240.0, help="the printers' seconds per real second (default 240)")
    parser.add_argument("--port", type=int, default=5000, help="the app's, or the next free one (default 5000)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "instance" / "demo",
        help="database, files and log; emptied at the start (default instance/demo)",
    )
    chosen = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Only a mark is left: what waits looks at it, so that everything is put away in its order.
        signal.signal(number, lambda *_: stop.set())
    # The simulators' own words (a connection that was cut) must not run through the picture.
    logging.getLogger().addHandler(logging.NullHandler())
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    scene = Scene(folder=chosen.folder, first_port=chosen.port, speed=chosen.speed)
    return run(scene, choose_screen(sys.stdout, os.environ), stop, once=chosen.once)


if __name__ == "__main__":
    raise SystemExit(main())
