"""The MQTT side of one simulated printer: an amqtt broker behind a TLS listener of our own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from amqtt.broker import Broker
from amqtt.contexts import Action, BaseContext
from amqtt.mqtt.publish import PublishPacket
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import ApplicationMessage, Session

from simulator.connection import Connection, StuckReader, StuckWriter
from simulator.faults import Faults
from simulator.records import ConnectionRecord

USER = "bblp"
_SERVER_UNAVAILABLE = b"\x20\x02\x00\x03"


class LoopThread:
    """The one asyncio loop, in a daemon thread, that all brokers of the process share."""

    _lock = threading.Lock()
    _shared: LoopThread | None = None

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="simulated-mqtt", daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> LoopThread:
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def run(self, work: Coroutine[Any, Any, Any], timeout_seconds: float = 20.0) -> Any:
        """The result of `work`, waited for from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_seconds)


@dataclass(frozen=True)
class Door:
    """What a broker has of its printer: the faults it may have, what to do with a request."""

    faults: Faults
    hears: Callable[[bytes], Awaitable[None]]
    drops_request_subscribers: bool


class PrinterBroker:
    """Serves `device/{serial}/report` and `/request` to user `bblp`. All methods belong to the loop's thread."""

    def __init__(self, serial: str, access_code: str, door: Door) -> None:
        self.report_topic = f"device/{serial}/report"
        self.request_topic = f"device/{serial}/request"
        self.access_code = access_code
        self.door = door
        self.connections: list[ConnectionRecord] = []
        self._logins: dict[tuple[str, int], ConnectionRecord] = {}
        self._connections: dict[tuple[str, int], Connection] = {}
        self._abandoned: list[Connection] = []
        self._swallowed: list[socket.socket] = []
        self._broker: Broker | None = None
        self._address = ("", 0)
        self._context: ssl.SSLContext | None = None
        self._doorman: asyncio.Task[None] | None = None
        self._greetings: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int, context: ssl.SSLContext) -> int:
        """Listens; returns the real port. Raises OSError if the port is taken."""
        listening = _listen(host, port)
        self._address, self._context = listening.getsockname()[:2], context
        self._broker = Broker(
            {"listeners": {"default": {"type": "external"}}, "plugins": {f"{__name__}.Doorkeeper": {"house": self}}},
            loop=asyncio.get_running_loop(),
        )
        await self._broker.start()
        self._doorman = asyncio.create_task(self._accept_all(listening, context))
        return self._address[1]

    async def stop(self) -> None:
        """Nobody listens any more and every connection but the abandoned ones is gone."""
        greetings = [task for task in (self._doorman, *self._greetings) if task is not None]
        for task in greetings:
            task.cancel()
        await asyncio.gather(*greetings, return_exceptions=True)
        for swallowed in self._swallowed:
            swallowed.close()
        self._swallowed.clear()
        self.cut_all()
        if self._broker is not None:
            await self._broker.shutdown()
        self._doorman = self._broker = None

    def bury(self) -> None:
        """Closes the connections that were abandoned."""
        for connection in self._abandoned:
            connection.writer.transport.abort()
        self._abandoned.clear()

    @property
    def has_subscribers(self) -> bool:
        return self._broker is not None and any(self._broker.subscriptions.values())

    async def publish(self, payload: bytes) -> None:
        if self._broker is not None:
            await self._broker.internal_message_broadcast(self.report_topic, payload, 0)

    def cut_all(self) -> None:
        """Ends every connection without a DISCONNECT."""
        for connection in self._connections.values():
            if not connection.abandoned:
                connection.writer.transport.abort()

    def abandon_all(self) -> None:
        """Leaves every connection open and unattended; a connection counts no more then."""
        for connection in self._connections.values():
            connection.abandoned = True
        self._abandoned += self._connections.values()
        self._connections.clear()

    def break_off_all(self) -> None:
        """Ends every connection after the first half of a report's packet."""
        packet = PublishPacket.build(self.report_topic, b'{"print": {"command": "push_status"}}', None, False, 0, False)
        data = bytes(packet.to_bytes())
        self.babble_all(data[: len(data) // 2])
        for connection in self._connections.values():
            connection.writer.close()

    def babble_all(self, data: bytes) -> None:
        """Puts these bytes onto every connection, between two packets."""
        for connection in self._connections.values():
            connection.send(data)

    def shut_door(self) -> None:
        """Nobody listens on the port any more; the connections that are there stay."""
        if self._doorman is not None:
            self._doorman.cancel()
            self._doorman = None

    def open_door(self) -> None:
        """Listens on the same port again. Raises OSError if somebody else has taken it."""
        if self._broker is not None and self._doorman is None and self._context is not None:
            listening = _listen(*self._address)
            self._doorman = asyncio.get_running_loop().create_task(self._accept_all(listening, self._context))

    def admit(self, session: Session) -> bool:
        """Called at CONNECT; a refusal becomes CONNACK 5."""
        admitted = bool(session.username == USER and session.password == self.access_code)
        verdict = "accepted" if admitted else "refused"
        record = ConnectionRecord(session.client_id or "", session.username or "", verdict, datetime.now(UTC))
        self.connections.append(record)
        self._logins[(session.remote_address or "", session.remote_port or 0)] = record
        return admitted

    def permit(self, session: Session, topic: str, action: Action) -> bool:
        if action is Action.SUBSCRIBE and topic == self.request_topic and self.door.drops_request_subscribers:
            connection = self._connections.get((session.remote_address or "", session.remote_port or 0))
            if connection is not None:
                connection.writer.transport.abort()
            return False
        return bool(action is not Action.PUBLISH or topic == self.request_topic)

    async def receive(self, topic: str, payload: bytes) -> None:
        if topic == self.request_topic:
            await self.door.hears(payload)

    async def _accept_all(self, listening: socket.socket, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    incoming, _ = await loop.sock_accept(listening)
                except OSError:
                    # The process has no socket left; the client waits in the queue.
                    await asyncio.sleep(1.0)
                    continue
                if self.door.faults.black_hole:
                    self._swallowed.append(incoming)
                    continue
                greeting = loop.create_task(self._greet(incoming, context))
                self._greetings.add(greeting)
                greeting.add_done_callback(self._greetings.discard)

    async def _greet(self, incoming: socket.socket, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        # A handshake that fails is the client's affair.
        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(
                lambda: asyncio.StreamReaderProtocol(reader, self._accept, loop=loop), incoming, ssl=context
            )

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        if self._broker is None or peer is None:
            writer.transport.abort()
            return
        if not self.door.faults.lets_in(len(self._connections)):
            await self._turn_away(reader, writer)
            return
        key = (peer[0], peer[1])
        connection = Connection(writer, self.door.faults)
        self._connections[key] = connection
        try:
            # A client that vanishes mid-packet surfaces here as an OSError; the connection is over either way.
            with contextlib.suppress(OSError):
                await self._broker.external_connected(
                    StuckReader(reader, connection), StuckWriter(connection), "default"
                )
        finally:
            record = self._logins.pop(key, None)
            if record is not None:
                record.ended_at = datetime.now(UTC)
            if not connection.abandoned:
                del self._connections[key]
                writer.transport.abort()

    async def _turn_away(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.door.faults.limit_answer == "server unavailable":
            # CONNECT comes in one record; what it says does not matter.
            await reader.read(65536)
            writer.write(_SERVER_UNAVAILABLE)
            writer.close()
        else:
            writer.transport.abort()


def _listen(host: str, port: int) -> socket.socket:
    listening = socket.create_server((host, port), backlog=100)
    listening.setblocking(False)
    return listening


class Doorkeeper(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]
    """The plugin through which amqtt asks who may come in, what may be said, and hands over what was."""

    @dataclass
    class Config:
        house: Any

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self.house: PrinterBroker = self._get_config_option("house")

    async def authenticate(self, *, session: Session) -> bool | None:
        return self.house.admit(session)

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        if session is None or topic is None or action is None:
            return False
        return self.house.permit(session, topic, action)

    async def on_broker_message_broadcast(self, *, client_id: str, message: ApplicationMessage) -> None:
        await self.house.receive(message.topic, bytes(message.data or b""))
