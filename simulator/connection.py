"""One TLS connection to a simulated printer, as amqtt reads and writes it when the line is in trouble."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter

from simulator.faults import Faults

_LOOK_AGAIN_SECONDS = 0.02


@dataclass
class Connection:
    """One TLS connection to the printer. Once abandoned nobody reads, writes or closes it."""

    writer: asyncio.StreamWriter
    faults: Faults
    abandoned: bool = False
    _backlog: bytearray = field(default_factory=bytearray)
    _dripping: asyncio.Task[None] | None = None

    @property
    def is_stuck(self) -> bool:
        return self.abandoned or self.faults.black_hole

    def send(self, data: bytes) -> None:
        """At once, or behind what drips."""
        if self.faults.drip_bytes_per_second is None and not self._backlog:
            self.writer.write(data)
            return
        self._backlog += data
        if self._dripping is None:
            self._dripping = asyncio.get_running_loop().create_task(self._drip())

    async def _drip(self) -> None:
        """The backlog, a few bytes at a time; the rest at once when the line is well again."""
        while self._backlog and not self.writer.is_closing():
            rate = self.faults.drip_bytes_per_second
            size = len(self._backlog) if rate is None else max(1, int(rate * _LOOK_AGAIN_SECONDS))
            if not self.is_stuck:
                self.writer.write(bytes(self._backlog[:size]))
                del self._backlog[:size]
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        self._backlog.clear()
        self._dripping = None


class StuckReader(StreamReaderAdapter):  # type: ignore[misc]
    """What arrives while the connection is stuck waits until it is not."""

    def __init__(self, reader: asyncio.StreamReader, connection: Connection) -> None:
        super().__init__(reader)
        self._connection = connection

    async def read(self, n: int = -1) -> bytes:
        data: bytes = await super().read(n)
        while self._connection.is_stuck:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        return data


class StuckWriter(StreamWriterAdapter):  # type: ignore[misc]
    """What is said while the connection is stuck is lost: amqtt writes packet by packet, so none is cut."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.writer)
        self._connection = connection

    def write(self, data: bytes) -> None:
        if not self._connection.is_stuck and not self.is_closed:
            self._connection.send(data)

    async def close(self) -> None:
        if not self._connection.is_stuck:
            await super().close()
