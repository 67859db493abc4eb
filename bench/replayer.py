"""Many printers in one process, as light as can be: just enough MQTT over TLS to be connected to and to report.

One port serves them all; which printer is meant is told by the name in the TLS greeting, the serial number. What they
say was said by simulated printers beforehand. Each report carries the moment it was sent, as its layer: see `stamp`.
"""

from __future__ import annotations

import asyncio
import io
import json
import ssl
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from simulator import make_sliced_file
from simulator.certificates import Authority
from simulator.machine import Machine
from simulator.printer_models import Cadence, find_model

MODELS = (("P1S", "01P"), ("A1", "039"), ("X1C", "00M"), ("P2S", "22E"), ("H2D", "094"))
REPORTS = 60
_FULL_EVERY = 5
_STAMP = 7654321
_STAMPS = 9_000_000


def stamp() -> int:
    """Now, in milliseconds, as a number of layers that a printer could have."""
    return 1_000_000 + time.time_ns() // 1_000_000 % _STAMPS


def age_seconds(stamped: int) -> float:
    """How long ago `stamp` gave that."""
    return (stamp() - stamped) % _STAMPS / 1000


def serials(count: int) -> list[str]:
    """Serial numbers of so many printers, all models in turn."""
    return [f"{MODELS[number % len(MODELS)][1]}00B{number:09}" for number in range(count)]


class Said(NamedTuple):
    """What printers of one model say: asked for a full report, asked for versions, and unasked second by second."""

    full: bytes
    version: bytes
    by_itself: list[bytes]


def payload(message: object, *, pretty: bool) -> bytes:
    """JSON as that model writes it."""
    return json.dumps(message, **({"indent": 4} if pretty else {"separators": (",", ":")})).encode()  # type: ignore[arg-type]


def printing(model: str, serial: str, seconds: float = 300.0) -> Machine:
    """A simulated printer so many seconds into a print."""
    data = make_sliced_file(model_id=find_model(model).slice_ids[0])
    machine = Machine(serial, model, open_file=lambda path: io.BytesIO(data))
    machine.press_start("vase.gcode.3mf")
    machine.advance(seconds)
    machine.report(full=True)
    return machine


def said(model: str, serial: str) -> Said:
    """A minute in the life of a printer, stamped with what the replayer then replaces."""
    machine = printing(model, serial)
    cadence, pretty = machine.model.cadence, machine.model.pretty_json

    def report(full: bool) -> bytes:
        message = machine.report(full=full) or {"print": {"command": "push_status", "msg": 1}}
        message["print"]["layer_num"] = _STAMP
        return payload(message, pretty=pretty)

    first = report(True)
    by_itself = []
    for second in range(REPORTS):
        machine.advance(1.0)
        by_itself.append(report(cadence is Cadence.FULL or (cadence is Cadence.MIXED and second % _FULL_EVERY == 0)))
    (version,) = machine.handle({"info": {"sequence_id": "1", "command": "get_version"}})
    return Said(first, payload(version, pretty=pretty), by_itself)


def packet(kind: int, body: bytes) -> bytes:
    """An MQTT packet."""
    size, encoded = len(body), bytearray((kind,))
    while True:
        size, rest = divmod(size, 128)
        encoded.append(rest | (128 if size else 0))
        if not size:
            return bytes(encoded) + body


class Connection(asyncio.Protocol):
    """One client of one printer."""

    def __init__(self, of_model: dict[str, Said], places: dict[str, float], on_subscribed: Callable[[], None]) -> None:
        self._of_model, self._places, self._on_subscribed = of_model, places, on_subscribed
        self._received = bytearray()
        self._next: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._serial = transport.get_extra_info("ssl_object").context.serial
        self._said = self._of_model[self._serial[:3]]
        self._by_itself = cycle(self._said.by_itself)
        self._topic = f"device/{self._serial}/report".encode()

    def connection_lost(self, problem: Exception | None) -> None:
        if self._next is not None:
            self._next.cancel()

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        while len(received) >= 2:
            size = shift = 0
            for place in range(1, min(len(received), 5)):
                size |= (received[place] & 127) << shift
                shift += 7
                if received[place] < 128:
                    break
            else:
                return
            end = place + 1 + size
            if len(received) < end:
                return
            kind, body = received[0], bytes(received[place + 1 : end])
            del received[:end]
            self._take(kind & 0xF0, body)

    def _take(self, kind: int, body: bytes) -> None:
        if kind == 0x10:
            self._transport.write(b"\x20\x02\x00\x00")
        elif kind == 0x80:
            self._transport.write(packet(0x90, body[:2] + b"\x00"))
            self._on_subscribed()
            # Spread over the second, as real ones are.
            loop = asyncio.get_running_loop()
            wait = (self._places[self._serial] - loop.time()) % 1.0
            self._next = loop.call_later(wait, self._report, loop.time() + wait)
        elif kind == 0x30:
            topic_size = int.from_bytes(body[:2], "big")
            request = json.loads(body[2 + topic_size :])
            if "info" in request:
                self._publish(self._said.version)
            if "pushing" in request:
                self._publish(self._said.full)
        elif kind == 0xC0:
            self._transport.write(b"\xd0\x00")
        elif kind == 0xE0:
            self._transport.close()

    def _report(self, due: float) -> None:
        self._publish(next(self._by_itself))
        self._next = asyncio.get_running_loop().call_at(due + 1.0, self._report, due + 1.0)

    def _publish(self, what: bytes) -> None:
        text = what.replace(b"%d" % _STAMP, b"%d" % stamp(), 1)
        self._transport.write(packet(0x30, len(self._topic).to_bytes(2, "big") + self._topic + text))


class PrinterContext(ssl.SSLContext):
    """The certificate of one printer, and whose it is."""

    serial = ""


async def serve(count: int, folder: Path) -> None:
    """Listens, writes the authority's file to `folder` and prints the port; "ready" each time all are subscribed to."""
    authority = Authority()
    (folder / "ca.pem").write_text(authority.ca_pem)
    contexts: dict[str, PrinterContext] = {}
    for serial in serials(count):
        context = contexts[serial] = PrinterContext(ssl.PROTOCOL_TLS_SERVER)
        context.serial = serial
        context.load_cert_chain(*authority.issue(serial).write(folder))
    greeting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def choose(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        if name not in contexts:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = contexts[name]
        return None

    greeting.sni_callback = choose  # type: ignore[assignment]
    subscribed = 0

    def count_one() -> None:
        nonlocal subscribed
        subscribed += 1
        if subscribed % count == 0:
            print("ready", flush=True)

    places = {serial: number / count for number, serial in enumerate(contexts)}
    of_model = {prefix: said(model, f"{prefix}00B000000000") for model, prefix in MODELS}
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(of_model, places, count_one), "127.0.0.1", 0, ssl=greeting, backlog=1000
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
