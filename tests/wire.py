"""Other ends of a connection for tests: a resolver, a TCP server by hand, a listener that counts who comes."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class NameTable:
    """A resolver: each name has a list of answers, used one per look-up; the last one stays."""

    def __init__(self, names: Mapping[str, list[list[str]]] | None = None) -> None:
        self.names = {name: list(answers) for name, answers in (names or {}).items()}
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        answers = self.names.get(host)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]


@contextmanager
def served(on_connection: Callable[[socket.socket, int], None], port: int = 0) -> Iterator[int]:
    """A TCP server by hand on 127.0.0.1: `on_connection(socket, number of the connection)`; yields its port."""
    stop = threading.Event()
    open_sockets: list[socket.socket] = []

    def serve(listening: socket.socket) -> None:
        while not stop.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            open_sockets.append(connection)
            threading.Thread(target=one, args=(connection, len(open_sockets)), daemon=True).start()

    def one(connection: socket.socket, number: int) -> None:
        try:
            on_connection(connection, number)
        except OSError:
            connection.close()

    with socket.create_server(("127.0.0.1", port)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        yield listening.getsockname()[1]
        stop.set()
        listening.shutdown(socket.SHUT_RDWR)
        for connection in open_sockets:
            connection.close()


class GuardedListener:
    """Listens on every address of this machine, IPv4 and IPv6, on one port, and counts who comes."""

    def __init__(self) -> None:
        self._sockets = [socket.create_server(("0.0.0.0", 0), backlog=200)]
        self.port = int(self._sockets[0].getsockname()[1])
        if socket.has_ipv6:
            self._sockets.append(socket.create_server(("::", self.port), family=socket.AF_INET6, backlog=200))

    def connections(self) -> int:
        count = 0
        while waiting := select.select(self._sockets, [], [], 0)[0]:
            for each in waiting:
                each.accept()[0].close()
                count += 1
        return count

    def close(self) -> None:
        for each in self._sockets:
            each.close()
