"""The FTPS side of simulated printers: implicit TLS, passive only, data channel bound to the control session."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
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

from simulator.faults import Faults

# Without a handler of its own pyftpdlib sets up logging to the screen for everybody.
logging.getLogger("pyftpdlib").addHandler(logging.NullHandler())

_not_spoken = ("REST", "APPE", "MLSD", "MLST", "PORT", "EPRT", "STOU", "AUTH")


class DataChannel(TLS_DTPHandler):  # type: ignore[misc]
    """Printers refuse a data channel that does not resume the TLS session of its control channel."""

    closing_reply = ""
    _pause: Any = None
    _resp: tuple[Any, ...]

    def recv(self, buffer_size: int) -> bytes:
        chunk: bytes = super().recv(buffer_size)
        faults = self.cmd_channel.faults.storage
        if faults.drop_after_bytes is not None and self.tot_bytes_received + len(chunk) >= faults.drop_after_bytes:
            # What has come is still written.
            self.ioloop.call_later(0, self.cmd_channel.close)
        elif chunk and faults.bytes_per_second is not None:
            self.del_channel()
            self._pause = self.ioloop.call_later(len(chunk) / faults.bytes_per_second, self._go_on)
        return chunk

    def _go_on(self) -> None:
        self.add_channel(events=self.ioloop.READ)

    def close(self) -> None:
        if self._pause is not None and not self._pause.cancelled:
            self._pause.cancel()
        if self.receive and self._resp:
            # It is for the control channel to give, once the file is closed.
            self.closing_reply, self._resp = self._resp[0], ()
        super().close()

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
    faults: Faults
    may_write: Callable[[], bool]
    _unattended: socket.socket | None = None
    proto_cmds = {name: row for name, row in TLS_FTPHandler.proto_cmds.items() if name not in _not_spoken}

    def handle(self) -> None:
        if not self.faults.storage.black_hole:
            self.secure_connection(self.ssl_context)

    def collect_incoming_data(self, data: bytes) -> None:
        # In a black hole there is no TLS: what comes is a greeting that nobody answers.
        if self._ssl_requested:
            super().collect_incoming_data(data)

    def found_terminator(self) -> None:
        if self._ssl_requested:
            super().found_terminator()

    def handle_ssl_established(self) -> None:
        super().handle()

    def process_command(self, cmd: str, *arguments: Any, **options: Any) -> None:
        reply = self.faults.storage.refuse.get(cmd)
        if reply is None:
            super().process_command(cmd, *arguments, **options)
        else:
            self.respond(reply)

    def ftp_PASV(self, line: str) -> None:
        if not (self._prot and self.faults.storage.hangs_on_encrypted_data):
            super().ftp_PASV(line)
            return
        # The client gets its TCP connection, and nobody ever takes it.
        self._leave_unattended()
        host = self.socket.getsockname()[0]
        self._unattended = socket.create_server((host, 0))
        high, low = divmod(self._unattended.getsockname()[1], 256)
        self.respond(f"227 Entering passive mode ({host.replace('.', ',')},{high},{low}).")

    def _leave_unattended(self) -> None:
        if self._unattended is not None:
            self._unattended.close()

    def close(self) -> None:
        self._leave_unattended()
        super().close()

    def on_file_received(self, file: str) -> None:
        self._end_upload(file)

    def on_incomplete_file_received(self, file: str) -> None:
        self._end_upload(file)

    def _end_upload(self, file: str) -> None:
        faults = self.faults.storage
        if faults.keep_bytes is not None and faults.keep_bytes < os.path.getsize(file):
            os.truncate(file, faults.keep_bytes)
        if self.faults.clock_off_seconds:
            shown = time.time() + self.faults.clock_off_seconds
            os.utime(file, (shown, shown))
        reply = faults.closing_reply or self.data_channel.closing_reply
        if faults.closing_reply_after_seconds == 0:
            self._close_upload(reply)
        elif math.isfinite(faults.closing_reply_after_seconds):
            self.ioloop.call_later(faults.closing_reply_after_seconds, lambda: self._close_upload(reply))

    def _close_upload(self, reply: str) -> None:
        if self.connected and reply:
            self.respond(reply)

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
        self,
        files: Path,
        access_code: str,
        faults: Faults,
        may_write: Callable[[], bool],
        *,
        needs_session_reuse: bool,
    ) -> None:
        self._files = files
        self._access_code = access_code
        self._faults = faults
        self._may_write = may_write
        self._needs_session_reuse = needs_session_reuse
        self._server: FTPServer | None = None

    def start(self, host: str, port: int, certificate: Path, key: Path) -> int:
        """Listens; returns the real port. Raises OSError if the port is taken."""
        authorizer = DummyAuthorizer()
        authorizer.add_user("bblp", self._access_code, str(self._files), perm="elradfmwMT")
        settings = {
            "ssl_context": _context(certificate, key),
            "authorizer": authorizer,
            "faults": self._faults,
            "may_write": staticmethod(self._may_write),
            "needs_session_reuse": self._needs_session_reuse,
        }
        handler = type("PrinterControlChannel", (ControlChannel,), settings)
        thread = FtpsThread.shared()
        self._server = thread.run(lambda: FTPServer((host, port), handler, ioloop=thread.ioloop))
        return int(self._server.address[1])

    def change_certificate(self, certificate: Path, key: Path) -> None:
        """New connections see this one; those there are stay."""
        server = self._server
        if server is not None:
            FtpsThread.shared().run(lambda: setattr(server.handler, "ssl_context", _context(certificate, key)))

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            FtpsThread.shared().run(lambda: _close(server))


def _context(certificate: Path, key: Path) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.use_certificate_chain_file(str(certificate))
    context.use_privatekey_file(str(key))
    context.set_session_id(b"simulated printer")
    context.set_session_cache_mode(SSL.SESS_CACHE_SERVER)
    return context


def _close(server: FTPServer) -> None:
    """The listener and the connections it accepted; other printers share the loop."""
    for channel in list(server.ioloop.socket_map.values()):
        control = getattr(channel, "cmd_channel", channel)
        if getattr(control, "server", None) is server:
            channel.close()
    server.close()
