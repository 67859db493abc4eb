"""The MQTT side of one simulated printer: an amqtt broker behind a TLS listener of our own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action, BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import ApplicationMessage, Session

from simulator.records import ConnectionRecord

USER = "bblp"


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

    def run(self, work: Coroutine[Any, Any, Any], timeout_seconds: float = 20.0) -> Any:
        """The result of `work`, waited for from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_seconds)


@dataclass(frozen=True)
class Door:
    """What a broker asks its printer: may one more connection in beside so many, what to do with a request."""

    lets_in: Callable[[int], bool]
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
        self._writers: dict[tuple[str, int], asyncio.StreamWriter] = {}
        self._broker: Broker | None = None
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int, context: ssl.SSLContext) -> int:
        """Listens; returns the real port."""
        self._broker = Broker(
            {"listeners": {"default": {"type": "external"}}, "plugins": {f"{__name__}.Doorkeeper": {"house": self}}},
            loop=asyncio.get_running_loop(),
        )
        await self._broker.start()
        self._server = await asyncio.start_server(self._accept, host, port, ssl=context, backlog=100)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut_all()
        if self._broker is not None:
            await self._broker.shutdown()
        self._server = self._broker = None

    @property
    def has_subscribers(self) -> bool:
        return self._broker is not None and any(self._broker.subscriptions.values())

    async def publish(self, payload: bytes) -> None:
        if self._broker is not None:
            await self._broker.internal_message_broadcast(self.report_topic, payload, 0)

    def cut_all(self) -> None:
        """Ends every connection without a DISCONNECT."""
        for writer in list(self._writers.values()):
            writer.transport.abort()

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
            writer = self._writers.get((session.remote_address or "", session.remote_port or 0))
            if writer is not None:
                writer.transport.abort()
            return False
        return bool(action is not Action.PUBLISH or topic == self.request_topic)

    async def receive(self, topic: str, payload: bytes) -> None:
        if topic == self.request_topic:
            await self.door.hears(payload)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        if self._broker is None or peer is None or not self.door.lets_in(len(self._writers)):
            writer.transport.abort()
            return
        key = (peer[0], peer[1])
        self._writers[key] = writer
        try:
            # A client that vanishes mid-packet surfaces here as an OSError; the connection is over either way.
            with contextlib.suppress(OSError):
                await self._broker.external_connected(
                    StreamReaderAdapter(reader), StreamWriterAdapter(writer), "default"
                )
        finally:
            del self._writers[key]
            record = self._logins.pop(key, None)
            if record is not None:
                record.ended_at = datetime.now(UTC)
            writer.transport.abort()


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
