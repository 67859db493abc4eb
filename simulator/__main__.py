"""`python -m simulator`: printers to try things on by hand, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from random import Random

from simulator.printer import SimulatedPrinter
from simulator.printer_models import find_model, models
from simulator.replay import Replay
from simulator.script import Script
from simulator.ssdp import EVERYBODY, SSDP_PORT, Announcer

_LOOK_AGAIN_SECONDS = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m simulator", description="Simulated Bambu Lab printers.")
    parser.add_argument("--printers", type=int, default=1, metavar="N", help="how many (default 1)")
    parser.add_argument(
        "--model", action="append", metavar="NAME", help=f"repeat for several, taken in turn: {', '.join(models)}"
    )
    parser.add_argument("--speed", type=float, default=1.0, help="simulated seconds per real second (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same printers")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument(
        "--replay",
        type=Path,
        metavar="FILE",
        help="say what was captured in FILE, from when somebody listens; the model is the captured one unless given",
    )
    parser.add_argument(
        "--script",
        type=Path,
        action="append",
        metavar="FILE",
        help="misbehave as FILE says from when somebody listens (see simulator/script.py); repeat for several, taken "
        "in turn",
    )
    parser.add_argument(
        "--announce",
        nargs="?",
        const="",
        metavar="ADDRESS[:PORT]",
        help=f"be found by SSDP, on UDP port {SSDP_PORT} unless given; without an address by everybody on the network, "
        "or by this computer alone where the printers listen on a loopback address",
    )
    chosen = parser.parse_args(arguments)
    try:
        replay = Replay.read(chosen.replay) if chosen.replay is not None else None
        scripts = [Script.read(path) for path in chosen.script or ()]
        captured = replay.model if replay is not None else None
        wanted = [find_model(name) for name in chosen.model or [captured or "P1S"]]
        receiver = _receiver(chosen.announce, chosen.host) if chosen.announce is not None else None
    except (OSError, ValueError) as problem:
        parser.error(str(problem))
    chance = Random(chosen.seed)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with contextlib.ExitStack() as stack:
        printers = []
        for position in range(chosen.printers):
            model = wanted[position % len(wanted)]
            serial = f"{model.serial_prefix}00A{chance.randrange(10**9):09d}"
            access_code = f"{chance.randrange(10**8):08d}"
            printer = SimulatedPrinter(
                serial, access_code, model.name, host=chosen.host, speed=chosen.speed, seed=chosen.seed + position
            )
            printers.append(stack.enter_context(printer))
            if receiver is not None:
                stack.enter_context(Announcer(printer, to=receiver))
        print_table(printers)
        waiting = list(printers) if replay is not None or scripts else []
        while not stopped.wait(_LOOK_AGAIN_SECONDS if waiting else None):
            for printer in [printer for printer in waiting if printer.has_listeners]:
                if replay is not None:
                    printer.replay(replay)
                if scripts:
                    printer.follow(scripts[printers.index(printer) % len(scripts)])
                waiting.remove(printer)
    return 0


def _receiver(text: str, host: str) -> tuple[str, int]:
    """Where announcements go, for printers that listen on `host`. Raises ValueError."""
    address, _, port = text.partition(":")
    if not address:
        address = host if ip_address(host).is_loopback else EVERYBODY
    if port and not port.isdecimal():
        raise ValueError(f"{text!r} is no ADDRESS:PORT")
    return str(IPv4Address(address)), int(port or SSDP_PORT)


def print_table(printers: Sequence[SimulatedPrinter]) -> None:
    """What a client needs to reach each printer, one line each."""
    print(f"{'name':14} {'model':8} {'host':15} {'MQTT':>5} {'FTPS':>5} {'serial':15} {'code':8} CA file")
    for printer in printers:
        print(
            f"{printer.name:14} {printer.machine.model.name:8} {printer.host:15} {printer.mqtt_port:>5} "
            f"{printer.ftps_port:>5} {printer.serial:15} {printer.access_code:8} {printer.ca_file}",
            flush=True,
        )


if __name__ == "__main__":
    raise SystemExit(main())
