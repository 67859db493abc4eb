"""The MQTT side of the simulated cloud, and the printers behind it. Never ships.

A printer is a SimulatedPrinter, whose own MQTT the cloud listens to and passes on, or a Machine, which has no sockets
and says something when the test has it say so.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import paho.mqtt.client as mqtt
from amqtt.contexts import Action
from amqtt.session import Session
from paho.mqtt.enums import CallbackAPIVersion

from simulator.broker import USER, Door, LoopThread, PrinterBroker
from simulator.commands import VERIFY_FAILED
from simulator.faults import Faults
from simulator.machine import Machine
from simulator.printer import SimulatedPrinter
from simulator.records import ConnectionRecord

_TOPIC = re.compile(r"device/([^/]+)/(report|request)")


class CloudBroker(PrinterBroker):
    """One broker for all accounts. `owns(username, password)` gives the serial numbers of a login, None for no login.

    `asks(serial, message)` is told every request. All methods belong to the loop's thread.
    """

    def __init__(
        self,
        owns: Callable[[str, str], Iterable[str] | None],
        asks: Callable[[str, dict[str, Any]], None],
    ) -> None:
        super().__init__("", "", Door(Faults(), _hears_nothing, drops_request_subscribers=False))
        self._owns, self._asks = owns, asks
        self._serials: dict[str, frozenset[str]] = {}

    def admit(self, session: Session) -> bool:
        username = session.username or ""
        owned = self._owns(username, session.password or "")
        verdict = "refused" if owned is None else "accepted"
        record = ConnectionRecord(session.client_id or "", username, verdict, datetime.now(UTC))
        self.connections.append(record)
        self._logins[(session.remote_address or "", session.remote_port or 0)] = record
        self._serials[username] = frozenset(owned or ())
        return owned is not None

    def permit(self, session: Session, topic: str, action: Action) -> bool:
        match = _TOPIC.fullmatch(topic)
        owned = match is not None and match[1] in self._serials.get(session.username or "", ())
        if action is Action.SUBSCRIBE:
            return bool(owned and match and match[2] == "report")
        return bool(action is not Action.PUBLISH or (owned and match and match[2] == "request"))

    async def receive(self, topic: str, payload: bytes) -> None:
        match = _TOPIC.fullmatch(topic)
        if match is None or match[2] != "request":
            return
        try:
            message = json.loads(payload)
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        self._asks(match[1], message)
        order = message.get("print")
        if isinstance(order, dict):
            # Only the vendor's own programs can sign an order, and none of them comes here.
            await self.say(match[1], {"print": {**order, "err_code": VERIFY_FAILED}})

    async def say(self, serial: str, message: object) -> None:
        """A message on a printer's report topic; bytes go out as they are."""
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        if self._broker is not None:
            await self._broker.internal_message_broadcast(f"device/{serial}/report", payload, 0)


async def _hears_nothing(payload: bytes) -> None:
    """The cloud's requests are told apart by their topics, in `receive`."""


class LonePrinter:
    """A Machine bound to the cloud. `say(serial, message)` puts a message onto its topic."""

    def __init__(self, machine: Machine, say: Callable[[str, object], None]) -> None:
        self.machine = machine
        self.is_online = True
        self._say = say

    def ask(self, message: dict[str, Any]) -> None:
        if self.is_online:
            for answer in self.machine.handle(message):
                self._say(self.machine.serial, answer)

    def leave(self) -> None:
        self.is_online = False


class Bridge:
    """A SimulatedPrinter bound to the cloud, over its own MQTT: takes one of its places for clients.

    `arrives(serial)` and `goes(serial)`: the connection to the printer is there, and is gone.
    """

    def __init__(
        self,
        printer: SimulatedPrinter,
        say: Callable[[str, object], None],
        arrives: Callable[[str], None],
        goes: Callable[[str], None],
    ) -> None:
        self.machine = printer.machine
        self.is_online = False
        self._say, self._arrives, self._goes = say, arrives, goes
        context = ssl.create_default_context(cafile=str(printer.ca_file))
        context.check_hostname = False  # a printer's certificate names its serial number
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"cloud-{printer.serial}")
        client.username_pw_set(USER, printer.access_code)
        client.tls_set_context(context)
        client.tls_insecure_set(True)
        client.reconnect_delay_set(1, 5)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = lambda client, data, message: say(printer.serial, bytes(message.payload))
        self._client = client
        client.connect(printer.host, printer.mqtt_port)
        client.loop_start()

    def ask(self, message: dict[str, Any]) -> None:
        self._client.publish(f"device/{self.machine.serial}/request", json.dumps(message))

    def leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: mqtt.Client, data: object, flags: object, code: object, more: object) -> None:
        client.subscribe(f"device/{self.machine.serial}/report")
        self.is_online = True
        self._arrives(self.machine.serial)

    def _disconnected(self, client: mqtt.Client, data: object, flags: object, code: object, more: object) -> None:
        self.is_online = False
        self._goes(self.machine.serial)


def in_loop(broker: CloudBroker) -> Callable[[str, object], None]:
    """`broker.say` for callers in any thread, the loop's own among them; does not wait."""
    loop = LoopThread.shared().loop

    def say(serial: str, message: object) -> None:
        asyncio.run_coroutine_threadsafe(broker.say(serial, message), loop)

    return say
