"""`python demo.py [--once]`: an Etsy order is printed and shipped, before your eyes, on this machine alone.

The product runs as it does anywhere, as a process of its own, and is spoken to over HTTP only. Simulated are the two
printers, Etsy and the weather; what they say and are told goes over real sockets.
"""

from __future__ import annotations

import argparse
import io
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
from simulator.demo_stage import ROOT, SPEED, DemoFailed, Interrupted, Scene, Stage, shown_path
from simulator.demo_walk import Walk

INTERRUPTED = 130
# Faster, and a state may come and go between two looks.
FASTEST = 600


def run(scene: Scene, screen: Screen, stop: threading.Event, *, once: bool) -> int:
    """Plays the scene; the exit code: 0 only if everything on the check list was seen to happen.

    Not `once`, it keeps serving after that until `stop` is set.
    """
    screen.begin(
        "From an Etsy order to a finished print, and back to Etsy as shipped",
        "The app and every connection are real. Etsy, weather and printers are simulated; nothing leaves this machine.",
    )
    checks = CheckList()
    try:
        with Stage(scene, stop) as stage:
            walk = Walk(stage, screen, checks)
            try:
                walk.play()
            except DemoFailed as error:
                checks.break_off(str(error))
            screen.list_checks(checks.findings)
            if not checks.is_whole:
                screen.close(
                    [
                        "Not everything was seen to happen.",
                        *checks.reasons,
                        f"The app's log: {shown_path(stage.log_path)}",
                    ]
                )
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
        f"  Login  {EMAIL} with the password {PASSWORD}",
        f"  Log    {shown_path(stage.log_path)}",
        "",
        "Try it from another terminal. Log in:",
        "",
        f"API={url}/api",
        "TOKEN=$(curl -s $API/auth/login -H 'Content-Type: application/json' \\",
        f"""  -d '{{"email": "{EMAIL}", "password": "{PASSWORD}"}}' \\""",
        """  | python3 -c 'import json, sys; print(json.load(sys.stdin)["token"])')""",
        "",
        "Look at the printers:",
        "",
        'curl -s -H "Authorization: Bearer $TOKEN" $API/printers',
        "",
        "Somebody else has bought at Etsy. Do not wait for the next sync, and look at the prints that it makes:",
        "",
        'curl -s -X POST -H "Authorization: Bearer $TOKEN" $API/orders/sync',
        'curl -s -H "Authorization: Bearer $TOKEN" "$API/bambu/scheduled-prints?order_id=2"',
        "",
        "Each print starts with POST $API/bambu/scheduled-prints/<id>/start.",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="An Etsy order is printed and shipped, simulated.")
    parser.add_argument("--once", action="store_true", help="end after one round: 0 if everything was seen to happen")
    parser.add_argument(
        "--speed", type=float, default=SPEED, help=f"the printers' seconds per real one (default {SPEED:g})"
    )
    parser.add_argument("--port", type=int, default=5000, help="the app's, or the next free one (default 5000)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "instance" / "demo",
        help="database, files and log; emptied at the start (default instance/demo)",
    )
    chosen = parser.parse_args(arguments)
    if not 1 <= chosen.speed <= FASTEST:
        parser.error(f"--speed is a number from 1 to {FASTEST}")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Only a mark is left: what waits looks at it, so that everything is put away in its order.
        signal.signal(number, lambda *_: stop.set())
    # The simulators' own words (a connection that was cut) must not run through the picture.
    logging.getLogger().addHandler(logging.NullHandler())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    scene = Scene(folder=chosen.folder, first_port=chosen.port, speed=chosen.speed)
    try:
        return run(scene, choose_screen(sys.stdout, os.environ), stop, once=chosen.once)
    except OSError:
        # The terminal or the reader of the pipe is gone: everything is put away by now, and nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
