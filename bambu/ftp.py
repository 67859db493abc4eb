"""The dialect of FTP that Bambu Lab printers speak: implicit TLS, one session for both channels, no goodbyes.

From field notes on their servers: the data channel must resume the TLS session of the control channel; it begins only
after reply 150; a TLS goodbye on it is never answered: none is sent, but the closing reply is waited for; the address
in a PASV reply is to be ignored. Some A1 firmware hangs on encrypted data.
"""

from __future__ import annotations

import ftplib
import re
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

from bambu.tls import PrinterTlsContext

_CHUNK = 64 * 1024
_LISTING_LIMIT_BYTES = 2 * 1024 * 1024
_REFUSAL_SECONDS = 5.0
# Nothing can end this wait from outside.
_CONNECT_SECONDS = 10.0
_LISTED = re.compile(r"(?P<kind>[-dl])\S{9,10} +\d+ +\S+ +\S+ +(?P<size>\d{1,15}) +\S+ +\S+ +\S+ (?P<name>.+)")


class DataHangs(TimeoutError):
    """The printer stopped taking data, over an encrypted channel."""


class TooSlow(Exception):
    """The deadline passed while data was still moving."""


class SourceFailed(Exception):
    """The local side of a transfer raised; that exception is the cause."""


class ImplicitFtp(ftplib.FTP_TLS):
    """Raises OSError (IdentityRefused among them), ftplib.Error and EOFError from every method."""

    def __init__(self, tls: PrinterTlsContext, *, timeout_seconds: float, clear_data: bool) -> None:
        # Replies are decoded in a way that cannot fail; names are ASCII.
        super().__init__(context=tls, timeout=timeout_seconds, encoding="latin-1")
        self._timeout_seconds = timeout_seconds
        self._clear_data = clear_data
        # Second handles, by which another thread can end a wait: TLS takes the first ones away as soon as it greets.
        self._control_handle: socket.socket | None = None
        self._data_handle: socket.socket | None = None

    def break_off(self) -> None:
        """From another thread: whatever is waited for fails at once."""
        for handle in (self._data_handle, self._control_handle):
            if handle is not None:
                with suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._control_handle is not None:
            self._control_handle.close()
        super().close()

    def _close_data(self, data: socket.socket) -> None:
        # Both, or the printer never learns that the file has ended.
        if self._data_handle is not None:
            self._data_handle.close()
        data.close()

    def log_in(self, host: str, port: int, user: str, access_code: str) -> None:
        """Connects, checks the certificate and opens the door."""
        plain = socket.create_connection((host, port), min(self._timeout_seconds, _CONNECT_SECONDS))
        plain.settimeout(self._timeout_seconds)
        self.host, self.port, self.af = host, port, plain.family
        self._control_handle = plain.dup()
        try:
            self.sock = self.context.wrap_socket(plain)
        except OSError:
            plain.close()
            raise
        self.file = self.sock.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()
        self.login(user, access_code, secure=False)  # it is: the connection began with TLS
        if self._clear_data:
            self.voidcmd("PBSZ 0")
            self.prot_c()
        else:
            self.prot_p()
        self.voidcmd("TYPE I")

    def _open_data(self, command: str) -> socket.socket:
        plain, _ = ftplib.FTP.ntransfercmd(self, command)
        self._data_handle = plain.dup()
        if self._clear_data:
            return plain
        control = self.sock
        assert isinstance(control, ssl.SSLSocket)
        try:
            return self.context.wrap_socket(plain, session=control.session)
        except TimeoutError:
            self._close_data(plain)
            raise self._hanging() from None
        except OSError:
            self._close_data(plain)
            raise

    def send_file(
        self,
        name: str,
        source: BinaryIO,
        size_bytes: int,
        *,
        deadline: float,
        reply_seconds: float,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        """Sends so many bytes of `source`; `deadline` is a time of time.monotonic. The caller compares sizes after.

        Raises SourceFailed, TooSlow, DataHangs when nothing moves, and ftplib.Error for a refusal. A reply that
        says the transfer failed (426) raises nothing: it has been seen for files that were complete.
        """
        data = self._open_data(f"STOR {name}")
        sent = 0
        broke = False
        try:
            while sent < size_bytes and not broke:
                chunk = _read(source, min(_CHUNK, size_bytes - sent))
                try:
                    data.sendall(chunk)
                except TimeoutError:
                    raise self._hanging() from None
                except OSError:
                    broke = True  # what the printer has against it stands on the control channel
                    continue
                sent += len(chunk)
                if on_progress is not None:
                    _tell(on_progress, sent)
                if time.monotonic() > deadline:
                    raise TooSlow
        finally:
            self._close_data(data)
        self._closing_reply(_REFUSAL_SECONDS if broke else reply_seconds)

    def _closing_reply(self, seconds: float) -> None:
        assert self.sock is not None
        self.sock.settimeout(seconds)
        try:
            self.voidresp()
        except ftplib.error_temp as reply:
            if not str(reply).startswith("426"):
                raise
        except TimeoutError:
            raise self._hanging() from None
        finally:
            self.sock.settimeout(self._timeout_seconds)

    def _hanging(self) -> TimeoutError:
        return TimeoutError() if self._clear_data else DataHangs()

    def size_of(self, name: str) -> int | None:
        """A file's size in bytes, None if there is none."""
        try:
            return self.size(name)
        except ftplib.error_perm as refusal:
            if str(refusal).startswith("550"):
                return None
            if not str(refusal).startswith(("500", "502")):
                raise
        directory, _, base_name = name.rpartition("/")  # a server without SIZE
        return dict(self.listing(directory)).get(base_name)

    def listing(self, directory: str) -> list[tuple[str, int]]:
        """The files of a directory with their sizes in bytes, from at most 2 MB of LIST."""
        data = self._open_data(f"LIST {directory}" if directory else "LIST")
        heard = bytearray()
        try:
            while len(heard) < _LISTING_LIMIT_BYTES and (part := data.recv(_CHUNK)):
                heard += part
        finally:
            self._close_data(data)
        self._closing_reply(self._timeout_seconds)
        found = [_LISTED.fullmatch(line) for line in heard.decode("utf-8", "replace").splitlines()]
        return [(one["name"], int(one["size"])) for one in found if one and one["kind"] == "-"]


def _read(source: BinaryIO, limit: int) -> bytes:
    try:
        chunk = source.read(limit)
    except Exception as problem:
        raise SourceFailed from problem
    if not chunk:
        raise SourceFailed from EOFError("the file is shorter than its size was said to be")
    return chunk


def _tell(on_progress: Callable[[int], None], sent: int) -> None:
    try:
        on_progress(sent)
    except Exception as problem:
        raise SourceFailed from problem
