"""How a simulated printer makes itself known on the network: NOTIFY every few seconds, and an answer to M-SEARCH.

Real printers broadcast to UDP port 2021. Here the receivers are a setting: one address, a multicast group or everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from ipaddress import IPv4Address
from types import TracebackType
from typing import TYPE_CHECKING, Self

from simulator.broker import LoopThread

if TYPE_CHECKING:
    from simulator.printer import SimulatedPrinter

SSDP_PORT = 2021
EVERYBODY = "255.255.255.255"
GROUP = "239.255.255.250"
SERVICE = "urn:bambulab-com:device:3dprinter:1"


class Announcer:
    """Announces one printer to the address `to` every so many real seconds, from the port it hears searches on.

    `search_port` 0 takes a free one, read back under the same name; so does None where `to` is a single address, since
    a receiver on this computer would share its port with us and its datagrams too. `location` is the address that is
    announced, the printer's own unless given; `connect` is "lan" or "cloud", `bind` "free" or "occupied".
    """

    def __init__(
        self,
        printer: SimulatedPrinter,
        *,
        to: tuple[str, int] = (EVERYBODY, SSDP_PORT),
        every_seconds: float = 5.0,
        search_host: str = "",
        search_port: int | None = None,
        location: str | None = None,
        connect: str = "lan",
        bind: str = "free",
    ) -> None:
        self.printer = printer
        self.to = to
        if search_port is None:
            reaches_many = to[0] == EVERYBODY or IPv4Address(to[0]).is_multicast
            search_port = SSDP_PORT if reaches_many else 0
        self.search_port = search_port
        self.location = location or printer.host
        self.connect = connect
        self.bind = bind
        self._search_host = search_host
        self._every_seconds = every_seconds
        self._thread = LoopThread.shared()
        self._transport: asyncio.DatagramTransport | None = None
        self._round: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Announces for the first time. Raises OSError if the port is taken or the address cannot be sent to."""
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            if self.search_port:
                # Every printer of this computer hears a search that goes to all.
                own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            own.bind((self._search_host, self.search_port))
            # Without a network that has multicast it is still found by its announcements.
            with contextlib.suppress(OSError):
                joined = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton("0.0.0.0"))
                own.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
            own.sendto(self.notice(), self.to)
        except OSError:
            own.close()
            raise
        own.setblocking(False)
        self.search_port = int(own.getsockname()[1])
        self._thread.run(self._open(own))

    def stop(self) -> None:
        self._thread.run(self._close())

    def announce(self) -> None:
        """Once more, out of turn."""
        self._thread.run(self._announce())

    def notice(self) -> bytes:
        return self._message("NOTIFY * HTTP/1.1", "NT", "NTS: ssdp:alive")

    def answer(self) -> bytes:
        """What a search for printers gets."""
        return self._message("HTTP/1.1 200 OK", "ST", "EXT:")

    def _message(self, first_line: str, kind: str, extra: str) -> bytes:
        model = self.printer.machine.model
        lines = [
            first_line,
            f"Host: {GROUP}:1990",
            "Server: UPnP/1.0",
            f"Location: {self.location}",
            f"{kind}: {SERVICE}",
            extra,
            f"USN: {self.printer.serial}",
            "Cache-Control: max-age=1800",
            f"DevModel.bambu.com: {model.slice_ids[0]}",
            f"DevName.bambu.com: {self.printer.name}",
            "DevSignal.bambu.com: -44",
            f"DevConnect.bambu.com: {self.connect}",
            f"DevBind.bambu.com: {self.bind}",
            "Devseclink.bambu.com: secure",
            "DevInf.bambu.com: wlan0",
            f"DevVersion.bambu.com: {model.firmware}",
            "DevCap.bambu.com: 1",
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    async def _open(self, own: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: _Listener(self), sock=own)
        self._round = loop.create_task(self._go_round())

    async def _close(self) -> None:
        if self._round is not None:
            self._round.cancel()
        if self._transport is not None:
            self._transport.close()
        self._round = self._transport = None

    async def _go_round(self) -> None:
        while True:
            await asyncio.sleep(self._every_seconds)
            await self._announce()

    async def _announce(self) -> None:
        if self._transport is not None:
            self._transport.sendto(self.notice(), self.to)

    def hear(self, datagram: bytes, sender: tuple[str, int]) -> None:
        """Answers a search for printers, or for everything; runs in the loop's thread."""
        first_line, *headers = datagram.decode(errors="replace").split("\r\n")
        pairs = [line.partition(":") for line in headers]
        wanted = {name.strip().lower(): value.strip() for name, _, value in pairs}.get("st")
        if first_line.startswith("M-SEARCH *") and wanted in (SERVICE, "ssdp:all") and self._transport is not None:
            self._transport.sendto(self.answer(), sender)


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._announcer.hear(data, addr)

    def error_received(self, exc: Exception) -> None:
        """An announcement that nobody took; the next one may be."""
