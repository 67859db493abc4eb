"""Files onto a printer: simulated printers, and a server by hand with the habits that have been met in the field."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bambu_client import PrinterAddress
from bambu_files import PrinterStorage, RemoteFile, StorageFault, StorageTimings, UploadFailed
from simulator import Authority, SimulatedPrinter

SERIAL = "01P00A123456789"
A1_SERIAL = "03900A123456789"
CODE = "12345678"
QUICK = StorageTimings(socket=0.3, closing_reply=0.5, least_upload=5.0, turn=0.2)
BYTES = bytes(range(256)) * 2000


class BareStorage:
    """An FTP server on implicit TLS, one thread a connection, that misbehaves as told."""

    def __init__(self, serial: str = SERIAL, **habits: Any) -> None:
        self.serial = serial
        self.habits = habits
        self.stored: dict[str, bytes] = {}
        self.heard: list[str] = []
        self.names: list[str | None] = []
        self.swallowing: list[ssl.SSLSocket] = []
        self.resumed: list[bool] = []
        self.goodbyes: list[bool] = []

    @contextlib.contextmanager
    def serving(self, tmp_path: Path, **changes: Any) -> Iterator[PrinterAddress]:
        authority = Authority()
        self.renew(tmp_path, authority)
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=self._accept, args=(server,), daemon=True).start()
            known = {"ftps_port": server.getsockname()[1], "ca_file": str(authority.ca_file)}
            yield PrinterAddress("127.0.0.1", self.serial, CODE, **{**known, **changes})
            server.shutdown(socket.SHUT_RDWR)

    def renew(self, folder: Path, authority: Authority | None = None) -> None:
        """Another certificate, of another authority unless one is given."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*(authority or Authority()).issue(self.serial).write(folder))
        self.context.sni_callback = lambda connection, name, own: self.names.append(name)

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = server.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), self.context.wrap_socket(plain, server_side=True) as control:
            lines = control.makefile("r", encoding="latin-1", newline="\r\n")

            def say(line: str) -> None:
                control.sendall(line.encode("latin-1") + b"\r\n")

            say(self.habits.get("banner", "220 (vsFTPd 3.0.3)"))
            clear = False
            passive: socket.socket | None = None
            for line in lines:
                command, _, argument = line.strip().partition(" ")
                self.heard.append(line.strip())
                if reply := self.habits.get(command):
                    say(reply)
                elif command == "USER":
                    say("331 Please specify the password.")
                elif command == "PASS":
                    say("230 Login successful." if argument == CODE else "530 Login incorrect.")
                elif command == "PROT":
                    clear = argument == "C"
                    say("200 PROT now set.")
                elif command == "PASV":
                    passive = socket.create_server(("127.0.0.1", 0))
                    high, low = divmod(passive.getsockname()[1], 256)
                    say(f"227 Entering Passive Mode ({self.habits.get('host', '127,0,0,1')},{high},{low}).")
                elif command in ("STOR", "LIST"):
                    assert passive is not None
                    data, _ = passive.accept()
                    say("150 Ok to send data.")
                    if self.habits.get("hangs_on_encrypted_data") and not clear:
                        continue
                    if self.habits.get("swallows_encrypted_data") and not clear:
                        self.swallowing.append(self._encrypted(data))
                        continue
                    channel = data if clear else self._encrypted(data)
                    if command == "STOR":
                        self._store(argument, channel)
                        say(self.habits.get("stored", "226 Transfer complete."))
                    else:
                        channel.sendall(self.habits.get("listing", b""))
                        channel.close()
                        say("226 Directory send OK.")
                elif command == "SIZE":
                    size = self.stored.get(argument)
                    say("550 Could not get file size." if size is None else f"213 {len(size)}")
                elif command == "DELE":
                    say("250 Delete operation successful." if self.stored.pop(argument, None) else "550 Failed.")
                elif command == "QUIT":
                    continue  # never answered
                else:
                    say("200 Ok.")

    def _encrypted(self, data: socket.socket) -> ssl.SSLSocket:
        channel = self.context.wrap_socket(data, server_side=True, suppress_ragged_eofs=False)
        self.resumed.append(bool(channel.session_reused))
        assert channel.version() == "TLSv1.2"
        return channel

    def _store(self, name: str, channel: socket.socket) -> None:
        received = bytearray()
        goodbye = True
        try:
            while part := channel.recv(65536):
                received += part
        except ssl.SSLEOFError:
            goodbye = False
        self.goodbyes.append(goodbye and isinstance(channel, ssl.SSLSocket))
        time.sleep(self.habits.get("thinks_seconds", 0))
        self.stored[name] = bytes(received[: self.habits.get("keeps_bytes")])


def sent(storage: PrinterStorage, name: str = "p1.gcode.3mf", content: bytes = BYTES) -> None:
    storage.upload(io.BytesIO(content), name, len(content))


# Against simulated printers.


@pytest.mark.parametrize(("model", "serial"), [("P1S", SERIAL), ("A1", A1_SERIAL), ("H2D", "0940A1")])
def test_a_file_arrives_whole_and_can_be_listed_measured_and_deleted(model: str, serial: str) -> None:
    with SimulatedPrinter(serial, CODE, model=model) as printer:
        address = PrinterAddress("127.0.0.1", serial, CODE, ftps_port=printer.ftps_port, ca_file=str(printer.ca_file))
        storage = PrinterStorage(address)
        progress: list[int] = []
        stream = io.BytesIO(b"head" + BYTES)
        stream.seek(4)
        storage.upload(stream, "p1.gcode.3mf", len(BYTES), progress.append)
        assert (printer.files / "p1.gcode.3mf").read_bytes() == BYTES
        assert progress == sorted(progress)
        assert progress[-1] == len(BYTES)
        assert storage.list() == (RemoteFile("p1.gcode.3mf", len(BYTES)),)
        assert storage.size("p1.gcode.3mf") == len(BYTES)
        assert storage.size("none.3mf") is None
        assert storage.delete("p1.gcode.3mf") is True
        assert storage.delete("p1.gcode.3mf") is False
        assert storage.list() == ()
        assert not storage.clear_data


def test_a_printer_without_a_card_takes_no_file_and_says_what_may_be_wrong() -> None:
    with SimulatedPrinter(SERIAL, CODE) as printer:
        printer.machine.storage = "none"
        address = PrinterAddress("127.0.0.1", SERIAL, CODE, ftps_port=printer.ftps_port, ca_file=str(printer.ca_file))
        with pytest.raises(UploadFailed, match="missing, read-only or full") as failed:
            sent(PrinterStorage(address))
        assert not failed.value.retry


# Against a server by hand.


def test_the_data_channel_resumes_the_session_and_ends_without_a_goodbye(tmp_path: Path) -> None:
    server = BareStorage()
    with server.serving(tmp_path) as address:
        sent(PrinterStorage(address, timings=QUICK))
    assert server.stored == {"p1.gcode.3mf": BYTES}
    assert server.resumed == [True]
    assert server.names == [SERIAL, SERIAL]
    assert server.goodbyes == [False]
    words = [line.split()[0] for line in server.heard]
    assert words[:7] == ["USER", "PASS", "PBSZ", "PROT", "TYPE", "PASV", "STOR"]
    assert "SIZE" in words


def test_the_address_in_a_pasv_reply_is_ignored(tmp_path: Path) -> None:
    server = BareStorage(host="10,255,255,1")
    with server.serving(tmp_path) as address:
        sent(PrinterStorage(address, timings=QUICK))
    assert server.stored["p1.gcode.3mf"] == BYTES


def test_the_closing_reply_is_waited_for(tmp_path: Path) -> None:
    server = BareStorage(thinks_seconds=0.4)
    with server.serving(tmp_path) as address:
        sent(PrinterStorage(address, timings=QUICK))
        assert server.stored["p1.gcode.3mf"] == BYTES


def test_a_file_that_is_complete_arrived_whatever_the_reply_says(tmp_path: Path) -> None:
    server = BareStorage(stored="426 Failure reading network stream.")
    with server.serving(tmp_path) as address:
        sent(PrinterStorage(address, timings=QUICK))


@pytest.mark.parametrize("reply", ["226 Transfer complete.", "426 Failure reading network stream."])
def test_a_file_cut_short_did_not_arrive_whatever_the_reply_says(tmp_path: Path, reply: str) -> None:
    server = BareStorage(keeps_bytes=100_000, stored=reply)
    with server.serving(tmp_path) as address, pytest.raises(UploadFailed, match="whole") as failed:
        sent(PrinterStorage(address, timings=QUICK))
    assert failed.value.retry


@pytest.mark.parametrize(
    ("habits", "words", "retry"),
    [
        ({"PASS": "530 Login incorrect."}, "access code", False),
        ({"STOR": "553 Could not create file."}, "Developer Mode", False),
        ({"STOR": "552 Exceeded storage."}, "full", False),
        ({"stored": "452 No space."}, "full", False),
        ({"STOR": "550 No such file."}, "no such file", False),
        ({"STOR": "425 Use PORT or PASV first."}, "data connection", True),
        ({"stored": "451 Local error."}, "451", True),
        ({"STOR": "504 What?"}, "504", False),
        ({"banner": "421 Too many users."}, "busy", True),
        ({"PASV": "227 Entering Passive Mode (127,0,0,1,999,999)."}, "broke", True),
        ({"PASV": "227 whatever"}, "no sense", True),
        ({"TYPE": "banana"}, "no sense", True),
        ({"SIZE": "213 many"}, "no sense", True),
    ],
    ids=str,
)
def test_refusals_come_in_plain_words_and_say_whether_to_try_again(
    tmp_path: Path, habits: dict[str, Any], words: str, retry: bool
) -> None:
    server = BareStorage(**habits)
    with server.serving(tmp_path) as address, pytest.raises(UploadFailed, match=words) as failed:
        sent(PrinterStorage(address, timings=QUICK))
    assert failed.value.retry is retry


@pytest.mark.parametrize("habit", ["hangs_on_encrypted_data", "swallows_encrypted_data"])
def test_an_a1_that_hangs_on_encrypted_data_gets_it_clear_and_that_is_remembered(tmp_path: Path, habit: str) -> None:
    server = BareStorage(A1_SERIAL, **{habit: True})
    with server.serving(tmp_path) as address:
        storage = PrinterStorage(address, timings=QUICK)
        sent(storage)
        assert storage.clear_data
        assert server.stored["p1.gcode.3mf"] == BYTES
        server.heard.clear()
        sent(PrinterStorage(address, clear_data=True, timings=QUICK), "p2.gcode.3mf")
        assert "PROT C" in server.heard
        assert "PROT P" not in server.heard


def test_no_other_printer_is_ever_sent_clear_data(tmp_path: Path) -> None:
    server = BareStorage(hangs_on_encrypted_data=True)
    with server.serving(tmp_path) as address:
        storage = PrinterStorage(address, timings=QUICK)
        with pytest.raises(UploadFailed, match="stopped answering") as failed:
            sent(storage)
        assert failed.value.retry
        assert not storage.clear_data
        assert "PROT C" not in server.heard


def test_an_a1_that_hangs_either_way_is_asked_encrypted_again_next_time(tmp_path: Path) -> None:
    server = BareStorage(A1_SERIAL, hangs_on_encrypted_data=True, thinks_seconds=2)
    with server.serving(tmp_path) as address:
        storage = PrinterStorage(address, timings=QUICK)
        with pytest.raises(UploadFailed):
            sent(storage)
        assert not storage.clear_data


def test_a_printer_without_size_is_asked_for_a_listing(tmp_path: Path) -> None:
    line = f"-rw-r--r--    1 103      107      {len(BYTES):8} Nov 21 10:00 p1.gcode.3mf\r\n"
    server = BareStorage(SIZE="502 Command not implemented.", listing=line.encode())
    with server.serving(tmp_path) as address:
        sent(PrinterStorage(address, timings=QUICK))
        assert PrinterStorage(address, timings=QUICK).size("p2.gcode.3mf") is None


def test_a_listing_is_read_leniently(tmp_path: Path) -> None:
    listing = (
        b"total 4\r\ndrwxr-xr-x    2 0 0 4096 Jan 01 2024 timelapse\r\n\r\n\xff\xfe\r\n"
        b"-rw-rw-rw-   1 root  root       12 Jan  1 00:00 \xc3\xa9 two words.3mf\r\n"
        b"-rw-rw-rw-   1 root  root  99999999999999999999 Jan  1 00:00 huge\r\n"
        b"-rw-rw-rw-   1 root  root       7 Nov 21 2025 a.3mf\n"
    )
    server = BareStorage(listing=listing)
    with server.serving(tmp_path) as address:
        found = PrinterStorage(address, timings=QUICK).list("cache")
    assert found == (RemoteFile("é two words.3mf", 12), RemoteFile("a.3mf", 7))
    assert "LIST cache" in server.heard


def test_a_file_that_will_not_go_is_no_file_that_was_not_there(tmp_path: Path) -> None:
    server = BareStorage(DELE="550 Permission denied.")
    with server.serving(tmp_path) as address:
        storage = PrinterStorage(address, timings=QUICK)
        assert storage.delete("p1.gcode.3mf") is False
        sent(storage)
        with pytest.raises(StorageFault, match="deleted"):
            storage.delete("p1.gcode.3mf")


def test_one_transfer_at_a_time_per_printer(tmp_path: Path) -> None:
    server = BareStorage(thinks_seconds=0.4)
    with server.serving(tmp_path) as address:
        first = threading.Thread(target=sent, args=(PrinterStorage(address, timings=QUICK),))
        first.start()
        until = time.monotonic() + 5
        while not server.heard and time.monotonic() < until:
            time.sleep(0.002)
        with pytest.raises(UploadFailed, match="another transfer") as failed:
            sent(PrinterStorage(address, timings=QUICK), "p2.gcode.3mf")
        assert failed.value.retry
        first.join()
        sent(PrinterStorage(address, timings=QUICK), "p2.gcode.3mf")


def test_an_upload_slower_than_its_deadline_ends(tmp_path: Path) -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            time.sleep(0.05)
            return super().read(min(size or 0, 1000))

    timings = StorageTimings(socket=0.3, least_upload=0.2, slowest_bytes_per_second=1e9)
    server = BareStorage()
    with server.serving(tmp_path) as address, pytest.raises(UploadFailed, match="too slow") as failed:
        PrinterStorage(address, timings=timings).upload(Dripping(BYTES), "p1.gcode.3mf", len(BYTES))
    assert failed.value.retry


def test_what_the_local_file_or_the_listener_raises_comes_out_as_it_is(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise PermissionError("local disk")

    def tired(sent_bytes: int) -> None:
        raise KeyError(sent_bytes)

    server = BareStorage()
    with server.serving(tmp_path) as address:
        storage = PrinterStorage(address, timings=QUICK)
        with pytest.raises(PermissionError, match="local disk"):
            storage.upload(Broken(BYTES), "p1.gcode.3mf", len(BYTES))
        with pytest.raises(KeyError):
            storage.upload(io.BytesIO(BYTES), "p1.gcode.3mf", len(BYTES), tired)
        with pytest.raises(EOFError, match="shorter"):
            storage.upload(io.BytesIO(BYTES), "p1.gcode.3mf", len(BYTES) + 1)
        sent(storage)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../b", "a b", "a/b/c", "x\r\nDELE y", "é.3mf", "x" * 65, ".hidden", "-rf/../x", "/x"],
)
def test_only_short_plain_names_reach_the_printer(name: str) -> None:
    storage = PrinterStorage(PrinterAddress("127.0.0.1", SERIAL, CODE, ftps_port=1), timings=QUICK)
    acts: list[Callable[[], object]] = [
        lambda: sent(storage, name),
        lambda: storage.size(name),
        lambda: storage.delete(name),
    ]
    for act in acts:
        with pytest.raises(ValueError, match="remote name"):
            act()


def test_nobody_there_may_be_tried_again() -> None:
    with pytest.raises(UploadFailed) as failed:
        sent(PrinterStorage(PrinterAddress("127.0.0.1", SERIAL, CODE, ftps_port=1), timings=QUICK))
    assert failed.value.retry


def test_another_machine_is_refused_before_it_hears_the_access_code(tmp_path: Path) -> None:
    server = BareStorage("01P00A000000000")
    with server.serving(tmp_path) as address:
        ours = PrinterAddress("127.0.0.1", SERIAL, CODE, ftps_port=address.ftps_port, ca_file=address.ca_file)
        with pytest.raises(UploadFailed, match="serial number") as failed:
            sent(PrinterStorage(ours, timings=QUICK))
        assert not failed.value.retry
        strange = Authority()
        ours = PrinterAddress("127.0.0.1", SERIAL, CODE, ftps_port=address.ftps_port, ca_file=str(strange.ca_file))
        with pytest.raises(UploadFailed, match="authority"):
            sent(PrinterStorage(ours, timings=QUICK))
        first = PrinterStorage(
            PrinterAddress("127.0.0.1", server.serial, CODE, ftps_port=address.ftps_port), timings=QUICK
        )
        sent(first)
        server.renew(tmp_path)
        server.heard.clear()
        with pytest.raises(UploadFailed, match="changed"):
            sent(first)
        pinned = PrinterAddress("127.0.0.1", server.serial, CODE, ftps_port=address.ftps_port, fingerprint="0" * 64)
        with pytest.raises(UploadFailed, match="changed"):
            sent(PrinterStorage(pinned, timings=QUICK))
        assert server.heard == []
