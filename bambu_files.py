"""Files onto a Bambu Lab printer's memory card or stick, over FTPS. Paths are ours, never a user's text."""

from __future__ import annotations

import ftplib
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeVar
from weakref import WeakValueDictionary

from bambu.ftp import DataHangs, ImplicitFtp, SourceFailed, TooSlow
from bambu.models import model_of_serial
from bambu.tls import NO_AUTHORITY, IdentityRefused, PrinterTlsContext, Trust
from bambu.wire import USER_NAME

_T = TypeVar("_T")
_REMOTE_NAME = re.compile(r"(?:[A-Za-z0-9_-]{1,32}/)?[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


class Address(Protocol):
    """The parts of bambu_client.PrinterAddress that matter here."""

    @property
    def host(self) -> str: ...
    @property
    def serial(self) -> str: ...
    @property
    def access_code(self) -> str: ...
    @property
    def ftps_port(self) -> int: ...
    @property
    def ca_file(self) -> str | None: ...
    @property
    def fingerprint(self) -> str | None: ...


class StorageFault(Exception):
    """The printer's storage did not do what was asked. `reason` in plain words; `retry`: trying again may help."""

    def __init__(self, reason: str, *, retry: bool) -> None:
        super().__init__(reason)
        self.reason, self.retry = reason, retry


class UploadFailed(StorageFault):
    """The file is not on the printer, or not whole."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the printer. Its name is the printer's text: hostile, and possibly cut."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StorageTimings:
    """In seconds. An upload's deadline is its size by `slowest_bytes_per_second`, never under `least_upload`."""

    socket: float = 30.0
    closing_reply: float = 60.0  # an H2D took over 30
    slowest_bytes_per_second: float = 25_000.0
    least_upload: float = 600.0
    turn: float = 60.0


class PrinterStorage:
    """The storage of one printer. Each call makes its own connection, one at a time per printer in this process.

    `clear_data`: leave the data channel unencrypted, as some A1 firmware needs; see the property of that name.
    """

    def __init__(self, address: Address, *, clear_data: bool = False, timings: StorageTimings | None = None) -> None:
        self._address = address
        self._timings = timings or StorageTimings()
        self._clear_data = clear_data
        self._trust = Trust(address.serial, address.ca_file, address.fingerprint)
        self._turn = _turn_of(address.serial)
        self._open: ImplicitFtp | None = None
        self._is_broken_off = False

    def break_off(self) -> None:
        """For good, from any thread: a transfer under way fails at once with StorageFault, and so does any later."""
        self._is_broken_off = True
        if (ftp := self._open) is not None:
            ftp.break_off()

    @property
    def clear_data(self) -> bool:
        """Whether the data channel goes unencrypted: to be kept and given to this printer's next PrinterStorage."""
        return self._clear_data

    def upload(
        self,
        stream: BinaryIO,
        remote_name: str,
        size_bytes: int,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Sends `size_bytes` from a seekable stream's position; `on_progress` is told how many have been sent.

        Returns only when the printer has the whole file. Raises UploadFailed, what the stream and `on_progress` raise
        (EOFError for a stream that ends early), and ValueError for a remote name that is not short and plain.
        """
        _check_name(remote_name)
        begin = stream.tell()
        timings = self._timings
        seconds = max(timings.least_upload, size_bytes / timings.slowest_bytes_per_second)

        def send(ftp: ImplicitFtp) -> None:
            stream.seek(begin)
            ftp.send_file(
                remote_name,
                stream,
                size_bytes,
                deadline=time.monotonic() + seconds,
                reply_seconds=timings.closing_reply,
                on_progress=on_progress,
            )
            # Success has been reported for files cut short, and failure for complete ones.
            if ftp.size_of(remote_name) != size_bytes:
                raise UploadFailed("the file did not arrive whole", retry=True)

        try:
            self._do(send, UploadFailed)
        except TooSlow:
            raise UploadFailed("the upload was too slow and was given up", retry=True) from None
        except SourceFailed as failed:
            raise (failed.__cause__ or failed) from None

    def size(self, remote_name: str) -> int | None:
        """The size in bytes, None if there is no such file. Raises StorageFault."""
        _check_name(remote_name)
        return self._do(lambda ftp: ftp.size_of(remote_name), StorageFault)

    def delete(self, remote_name: str) -> bool:
        """Deletes a file; False if there was none. Raises StorageFault."""
        _check_name(remote_name)

        def remove(ftp: ImplicitFtp) -> bool:
            try:
                ftp.delete(remote_name)
            except ftplib.error_perm:
                if ftp.size_of(remote_name) is not None:
                    raise StorageFault("the printer does not let the file be deleted", retry=True) from None
                return False
            return True

        return self._do(remove, StorageFault)

    def list(self, directory: str = "") -> tuple[RemoteFile, ...]:
        """The files of a directory, the root by default; a printer without a card has none. Raises StorageFault."""
        if directory:
            _check_name(directory)
        found = self._do(lambda ftp: ftp.listing(directory), StorageFault)
        return tuple([RemoteFile(name, size_bytes) for name, size_bytes in found])

    def _do(self, act: Callable[[ImplicitFtp], _T], fault: type[StorageFault]) -> _T:
        """Runs `act` over a connection of its own; once more with clear data where only that may work."""
        with self._one_at_a_time(fault):
            try:
                with self._session(fault, clear_data=self._clear_data) as ftp:
                    return act(ftp)
            except DataHangs:
                with self._session(fault, clear_data=True) as ftp:
                    result = act(ftp)
                self._clear_data = True
                return result

    def _may_go_clear(self) -> bool:
        # Only where firmware is known for it: else anybody who disturbs the line could take the encryption off.
        model = model_of_serial(self._address.serial)
        return not self._clear_data and model is not None and model.may_need_clear_data

    @contextmanager
    def _one_at_a_time(self, fault: type[StorageFault]) -> Iterator[None]:
        if not self._turn.acquire(timeout=self._timings.turn):
            raise fault("another transfer to this printer is under way", retry=True)
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _session(self, fault: type[StorageFault], *, clear_data: bool) -> Iterator[ImplicitFtp]:
        """A connection that is logged in; what the printer or the network do wrong within comes out as `fault`.

        Raises DataHangs where clear data is worth a try.
        """
        ftp: ImplicitFtp | None = None
        try:
            ftp = self._logged_in(clear_data)
            yield ftp
            with suppress(OSError):
                ftp.putcmd("QUIT")  # some servers never answer it
        except IdentityRefused as refused:
            raise fault(refused.reason, retry=False) from None
        except ssl.SSLCertVerificationError:
            raise fault(NO_AUTHORITY, retry=False) from None
        except ftplib.Error as refusal:
            raise _refused(refusal, fault) from None
        except TimeoutError as late:
            if isinstance(late, DataHangs) and self._may_go_clear():
                raise
            raise fault("the printer stopped answering", retry=True) from None
        except (OSError, EOFError):
            raise fault("the connection to the printer's storage broke or could not be made", retry=True) from None
        except (ValueError, OverflowError):  # numbers that are none in a reply
            raise fault(_NO_SENSE, retry=True) from None
        finally:
            if ftp is not None:
                ftp.close()

    def _logged_in(self, clear_data: bool) -> ImplicitFtp:
        *firsts, last = self._trust.ways()
        for trust in firsts:
            try:
                return self._log_in(trust, clear_data)
            except IdentityRefused:
                raise
            except ssl.SSLCertVerificationError:
                continue
        return self._log_in(last, clear_data)

    def _log_in(self, trust: Trust, clear_data: bool) -> ImplicitFtp:
        # Over TLS 1.3 newer printers cut uploads short.
        tls = PrinterTlsContext(trust, highest=ssl.TLSVersion.TLSv1_2)
        ftp = self._open = ImplicitFtp(tls, timeout_seconds=self._timings.socket, clear_data=clear_data)
        try:
            if self._is_broken_off:
                raise EOFError
            ftp.log_in(self._address.host, self._address.ftps_port, USER_NAME, self._address.access_code.strip())
        except BaseException:
            ftp.close()
            raise
        self._trust = self._trust.pinning(tls.seen_fingerprint)
        return ftp


_turns: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
_turns_guard = threading.Lock()


def _turn_of(serial: str) -> threading.Lock:
    with _turns_guard:
        return _turns.setdefault(serial, threading.Lock())


def _check_name(remote_name: str) -> None:
    if not _REMOTE_NAME.fullmatch(remote_name):
        raise ValueError("a remote name is short, ASCII and without blanks")


_NO_SENSE = "the printer's storage answered something that makes no sense"
_REFUSALS = {
    "421": ("the printer's storage is busy", True),
    "425": ("the printer could not open a data connection", True),
    "426": ("the transfer was cut off", True),
    "452": ("the printer's storage is full: delete old files from its card or stick", False),
    "530": ("the printer refuses the access code: enter it again as its screen shows it", False),
    "550": ("the printer has no such file or folder", False),
    "552": ("the printer's storage is full: delete old files from its card or stick", False),
    "553": (
        "the printer does not let the file be written: its card or stick is missing, read-only or full, or Developer"
        " Mode is off",
        False,
    ),
}


def _refused(refusal: ftplib.Error, fault: type[StorageFault]) -> StorageFault:
    code = str(refusal)[:3]
    if not isinstance(refusal, ftplib.error_temp | ftplib.error_perm):
        return fault(_NO_SENSE, retry=True)
    otherwise = (f"the printer's storage refused ({code})", isinstance(refusal, ftplib.error_temp))
    reason, retry = _REFUSALS.get(code, otherwise)
    return fault(reason, retry=retry)
