"""The FTPS side of simulated printers: implicit TLS, passive only, data channel bound to the control session."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from OpenSSL import SSL
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import TLS_DTPHandler, TLS_FTPHandler
from pyftpdlib.ioloop import AsyncChat, IOLoop
from pyftpdlib.servers import FTPServer

# Without a handler of its own pyftpdlib sets up logging to the screen for everybody.
logging.getLogger("pyftpdlib").addHandler(logging.NullHandler())

_not_spoken = ("REST", "APPE", "MLSD", "MLST", "PORT", "EPRT", "STOU", "AUTH")


class DataChannel(TLS_DTPHandler):  # type: ignore[misc]
    """Printers refuse a data channel that does not resume the TLS session of its control channel."""

    def handle_ssl_established(self) -> None:
        super().handle_ssl_established()
        control = self.cmd_channel.socket
        if self.cmd_channel.needs_session_reuse and self.socket.master_key() != control.master_key():
            self.cmd_channel.respond("522 SSL connection failed: session reuse required")
            self.close()


class ControlChannel(TLS_FTPHandler):  # type: ignore[misc]
    """One subclass of this per printer carries its context, user and storage: pyftpdlib keeps settings on the class."""

    banner = "(vsFTPd 3.0.3)"
    dtp_handler = DataChannel
    tls_control_required = True
    auth_failed_timeout = 0.05
    use_sendfile = False
    needs_session_reuse = True
    may_write: Callable[[], bool]
    proto_cmds = {name: row for name, row in TLS_FTPHandler.proto_cmds.items() if name not in _not_spoken}

    def handle(self) -> None:
        self.secure_connection(self.ssl_context)

    def handle_ssl_established(self) -> None:
        super().handle()

    def ftp_STOR(self, file: str, mode: str = "w") -> Any:
        if not type(self).may_write():
            self.respond("553 Could not create file.")
            return None
        return super().ftp_STOR(file, mode)


class FtpsThread:
    """The one thread, with one pyftpdlib loop, that serves all printers of the process."""

    _lock = threading.Lock()
    _shared: FtpsThread | None = None

    def __init__(self) -> None:
        self.ioloop = IOLoop()
        self._asked: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._bell, heard = socket.socketpair()
        _Bell(heard, self.ioloop, self._serve_asked)
        threading.Thread(target=self.ioloop.loop, name="simulated-ftps", daemon=True).start()

    @classmethod
    def shared(cls) -> FtpsThread:
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    def run(self, work: Callable[[], Any], timeout_seconds: float = 20.0) -> Any:
        """The result of `work`, done in the loop's thread: pyftpdlib's sockets must not be touched from elsewhere."""
        future: Future[Any] = Future()
        self._asked.put((future, work))
        self._bell.send(b"!")
        return future.result(timeout_seconds)

    def _serve_asked(self) -> None:
        while not self._asked.empty():
            future, work = self._asked.get()
            try:
                future.set_result(work())
            except OSError as problem:
                future.set_exception(problem)


class _Bell(AsyncChat):  # type: ignore[misc]
    """Wakes the loop when another thread wants something done in it."""

    def __init__(self, heard: socket.socket, ioloop: Any, answer: Callable[[], None]) -> None:
        super().__init__(heard, ioloop=ioloop)
        self._answer = answer

    def handle_read(self) -> None:
        self.recv(4096)
        self._answer()


class FtpsServer:
    """One printer's storage over FTPS. `files` is the root; `may_write` False answers STOR with 553."""

    def __init__(
        self, files: Path, access_code: str, may_write: Callable[[], bool], *, needs_session_reuse: bool
    ) -> None:
        self._files = files
        self._access_code = access_code
        self._may_write = may_write
        self._needs_session_reuse = needs_session_reuse
        self._server: FTPServer | None = None

    def start(self, host: str, port: int, certificate: Path, key: Path) -> int:
        """Listens; returns the real port. Raises OSError if the port is taken."""
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        context.use_certificate_chain_file(str(certificate))
        context.use_privatekey_file(str(key))
        context.set_session_id(b"simulated printer")
        context.set_session_cache_mode(SSL.SESS_CACHE_SERVER)
        authorizer = DummyAuthorizer()
        authorizer.add_user("bblp", self._access_code, str(self._files), perm="elradfmwMT")
        settings = {
            "ssl_context": context,
            "authorizer": authorizer,
            "may_write": staticmethod(self._may_write),
            "needs_session_reuse": self._needs_session_reuse,
        }
        handler = type("PrinterControlChannel", (ControlChannel,), settings)
        thread = FtpsThread.shared()
        self._server = thread.run(lambda: FTPServer((host, port), handler, ioloop=thread.ioloop))
        return int(self._server.address[1])

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            FtpsThread.shared().run(lambda: _close(server))


def _close(server: FTPServer) -> None:
    """The listener and the connections it accepted; other printers share the loop."""
    for channel in list(server.ioloop.socket_map.values()):
        control = getattr(channel, "cmd_channel", channel)
        if getattr(control, "server", None) is server:
            channel.close()
    server.close()
