"""Finding printers: what a datagram may say; and real datagrams on loopback from simulated printers to a listener."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bambu.models
from bambu.notice import DATAGRAM_LIMIT_BYTES, SERVICE, read_notice
from bambu_discovery import EVERY_PRINTER, SSDP_PORT, ConnectMode, Discovery, FoundPrinter
from simulator import Announcer, SimulatedPrinter, models

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SOURCE = "192.168.7.31"
FIELDS = {
    "Host": "239.255.255.250:1990",
    "Server": "UPnP/1.0",
    "Location": SOURCE,
    "NT": SERVICE,
    "NTS": "ssdp:alive",
    "USN": "22E00A123456789",
    "Cache-Control": "max-age=1800",
    "DevModel.bambu.com": "N7",
    "DevName.bambu.com": "Küche links",
    "DevSignal.bambu.com": "-44",
    "DevConnect.bambu.com": "lan",
    "DevBind.bambu.com": "free",
    "Devseclink.bambu.com": "secure",
    "DevInf.bambu.com": "wlan0",
    "DevVersion.bambu.com": "01.02.00.00",
    "DevCap.bambu.com": "1",
}


def notice(first_line: str = "NOTIFY * HTTP/1.1", **changed: str | None) -> bytes:
    """A printer's datagram; names of changed fields with `_` for `.` and `-`, and None for a field that is left out."""
    plain = {name.lower().replace(".", "_").replace("-", "_"): name for name in FIELDS}
    fields: dict[str, str | None] = {**FIELDS, **{plain.get(name, name): value for name, value in changed.items()}}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([first_line, *lines, "", ""]).encode()


def read(source: str = SOURCE, **changed: str | None) -> FoundPrinter | None:
    return read_notice(notice(**changed), source, NOON)


def found(**changed: str | None) -> FoundPrinter:
    printer = read(**changed)
    assert printer is not None
    return printer


# What a datagram says.


def test_a_notice_names_the_printer_its_address_and_how_it_is_set_up() -> None:
    assert found() == FoundPrinter(
        serial="22E00A123456789",
        host=SOURCE,
        model="P2S",
        name="Küche links",
        connect_mode=ConnectMode.lan,
        is_bound=False,
        firmware="01.02.00.00",
        signal_dbm=-44,
        heard_at=NOON,
        forget_at=NOON + timedelta(seconds=1800),
    )
    assert (found().signal_dbm, found().heard_at, found().forget_at) == (-44, NOON, NOON + timedelta(minutes=30))


def test_what_a_printer_does_not_say_is_unknown_and_its_name_is_then_the_serial_number() -> None:
    bare = dict.fromkeys(
        ("devname_bambu_com", "devsignal_bambu_com", "devconnect_bambu_com", "devbind_bambu_com"),
    )
    printer = found(**bare, devversion_bambu_com="new!", devmodel_bambu_com="Z9", cache_control=None)
    assert (printer.name, printer.signal_dbm, printer.connect_mode, printer.is_bound) == (
        printer.serial,
        None,
        None,
        None,
    )
    assert (printer.firmware, printer.model) == (None, "P2S")
    assert printer.forget_at == NOON + timedelta(minutes=30)
    assert found(devmodel_bambu_com="Z9", usn="ZZZ00A123456789").model is None


@pytest.mark.parametrize(
    ("code", "model"),
    [("3DPrinter-X1-Carbon", "X1 Carbon"), ("BL-P001", "X1 Carbon"), ("C12", "P1S"), ("N2S", "A1"), ("O1E", "H2D Pro")],
)
def test_the_model_is_read_from_its_code(code: str, model: str) -> None:
    assert found(devmodel_bambu_com=code, usn="ZZZ00A123456789").model == model


def test_older_firmware_and_answers_to_a_search_are_understood_too() -> None:
    assert read(nts=None) is not None
    answer = notice("HTTP/1.1 200 OK", nt=None, nts=None, ST=SERVICE)
    assert read_notice(answer, SOURCE, NOON) == found()
    assert read_notice(notice().replace(b"\r\n", b"\n"), SOURCE, NOON) == found()
    assert read_notice(notice("notify * HTTP/1.1"), SOURCE, NOON) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"nt": "urn:schemas-upnp-org:device:basic:1"},
        {"nt": None},
        {"nts": "ssdp:byebye"},
        {"usn": None},
        {"usn": ""},
        {"usn": "22e00a123456789"},
        {"usn": "22E00A1234/../89"},
        {"usn": "22E00A123456789\0"},
        {"usn": "٢٢E00A123456789"},
        {"usn": "2" * 21},
        {"usn": "2" * 7},
        {"first_line": "M-SEARCH * HTTP/1.1"},
        {"first_line": "HTTP/1.1 200 OK"},
        {"first_line": "GET / HTTP/1.1"},
    ],
)
def test_what_is_no_printers_announcement_is_not_taken_for_one(changed: dict[str, str | None]) -> None:
    assert read(**changed) is None


@pytest.mark.parametrize(
    ("location", "source", "taken"),
    [
        ("8.8.4.4", "8.8.4.4", True),
        ("169.254.3.4", "169.254.3.4", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("10.1.2.3", "192.168.7.1", True),
        ("172.31.0.9", "192.168.7.1", True),
        ("172.32.0.9", "192.168.7.1", False),
        ("8.8.4.4", "192.168.7.1", False),
        ("127.0.0.1", "192.168.7.1", False),
        ("169.254.169.254", "192.168.7.1", False),
        ("0.0.0.0", "0.0.0.0", False),
        ("255.255.255.255", "255.255.255.255", False),
        ("224.0.0.1", "224.0.0.1", False),
        ("printer.local", "192.168.7.1", False),
        ("http://10.1.2.3/", "192.168.7.1", False),
        ("10.1.2.3:80", "192.168.7.1", False),
        ("010.001.002.003", "192.168.7.1", False),
        ("١٠.1.2.3", "192.168.7.1", False),
        ("10.1.2", "192.168.7.1", False),
        ("167838211", "192.168.7.1", False),
        ("::1", "::1", False),
        ("fe80::1%eth0", "192.168.7.1", False),
        ("", "", False),
    ],
)
def test_the_address_is_the_senders_or_one_of_a_home_network(location: str, source: str, taken: bool) -> None:
    printer = read(source, location=location)
    assert (printer is not None) is taken
    assert printer is None or printer.host == location


def test_hostile_texts_are_cut_and_cleaned_and_numbers_that_are_none_are_unknown() -> None:
    printer = found(devname_bambu_com="\x1b[31m\u202eab\0c\ufffd" + "x" * 300, devsignal_bambu_com="-٤٤")
    assert printer.name == "[31mabc" + "x" * 57 and printer.signal_dbm is None
    assert found(devsignal_bambu_com="9" * 400).signal_dbm is None
    for told, seconds in (("max-age=99999999999999999999", 1800), ("max-age=0", 15), ("no-cache", 1800)):
        assert found(cache_control=told).forget_at == NOON + timedelta(seconds=seconds)
    assert found(cache_control="MAX-AGE = 60").forget_at == NOON + timedelta(seconds=60)


def test_a_name_that_is_not_utf8_loses_only_what_cannot_be_read() -> None:
    damaged = notice(devname_bambu_com="Kaa").replace(b"Kaa", b"K\xff\xc3a")
    printer = read_notice(damaged, SOURCE, NOON)
    assert printer is not None and printer.name == "Ka"


def test_the_first_of_two_headers_counts_and_too_many_or_too_long_ones_do_not() -> None:
    twice = notice().replace(b"USN:", b"USN: 01P00A000000001\r\nUSN:")
    printer = read_notice(twice, SOURCE, NOON)
    assert printer is not None and printer.serial == "01P00A000000001"
    assert read_notice(notice() + b"X: y\r\n" * 60, SOURCE, NOON) is None
    assert read(padding="x" * DATAGRAM_LIMIT_BYTES) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600), st.text(max_size=20))
def test_no_datagram_makes_the_reader_raise(datagram: bytes, source: str) -> None:
    read_notice(datagram, source, NOON)
    read_notice(notice() + datagram, source, NOON)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([name.lower().replace(".", "_").replace("-", "_") for name in FIELDS]),
        st.one_of(st.none(), st.text(max_size=80), st.from_regex(r"\A[-0-9. =a-z]{0,30}\Z")),
    ),
    st.sampled_from([SOURCE, "127.0.0.1", ""]),
)
def test_whatever_the_headers_say_a_printer_that_is_found_is_well_formed(
    changed: dict[str, str | None], source: str
) -> None:
    try:
        datagram = notice(**changed)
    except UnicodeEncodeError:
        return
    printer = read_notice(datagram, source, NOON)
    if printer is not None:
        assert printer.serial.isascii() and printer.serial.isalnum() and 8 <= len(printer.serial) <= 20
        assert socket.inet_ntoa(socket.inet_aton(printer.host)) == printer.host
        assert printer.name and len(printer.name) <= 64 and printer.name.isprintable()
        assert NOON < printer.forget_at <= NOON + timedelta(minutes=30)


# Over real sockets.


class Ear:
    """A discovery on a free loopback port, with everything it tells."""

    def __init__(self, **options: Any) -> None:
        self.now = NOON
        self.told: queue.Queue[FoundPrinter] = queue.Queue()
        self.discovery = Discovery(
            options.pop("on_found", self.told.put), lambda: self.now, **{"host": "127.0.0.1", "port": 0, **options}
        )
        self._mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.discovery.port)

    def hears(self, datagram: bytes) -> None:
        self._mouth.sendto(datagram, self.address)

    def next(self) -> FoundPrinter:
        return self.told.get(timeout=5)

    def settled(self) -> list[FoundPrinter]:
        """Everything told up to now: datagrams on one socket keep their order, so a last one marks the end."""
        self.hears(notice(usn="LASTLASTLAST", location="127.0.0.1", cache_control="max-age=0"))
        told = []
        while (printer := self.next()).serial != "LASTLASTLAST":
            told.append(printer)
        self.now += timedelta(seconds=15)
        return told

    def close(self) -> None:
        self.discovery.close()
        self._mouth.close()


@pytest.fixture
def listen() -> Iterator[Callable[..., Ear]]:
    ears: list[Ear] = []

    def make(**options: Any) -> Ear:
        ears.append(Ear(**options))
        ears[-1].discovery.start()
        return ears[-1]

    yield make
    for ear in ears:
        ear.close()


def here(**changed: str | None) -> bytes:
    return notice(**{"location": "127.0.0.1", **changed})


@pytest.mark.parametrize("model", models)
def test_simulated_printers_of_every_model_are_found_by_their_announcement(
    model: str, listen: Callable[..., Ear]
) -> None:
    ear = listen()
    row = models[model]
    printer = SimulatedPrinter(f"{row.serial_prefix}00A123456789", "12345678", model, name="Küche")
    with Announcer(printer, to=ear.address):
        heard = ear.next()
    printer.stop()
    assert (heard.serial, heard.host, heard.name) == (printer.serial, "127.0.0.1", "Küche")
    assert heard.model is not None and heard.model == bambu.models.model_of_name(model).name  # type: ignore[union-attr]
    assert (heard.connect_mode, heard.is_bound, heard.firmware) == (ConnectMode.lan, False, row.firmware)
    assert ear.discovery.found() == (heard,)


def test_an_announcer_goes_on_announcing_and_stops_when_told(listen: Callable[..., Ear]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        printer = SimulatedPrinter("01P00A123456789", "12345678")
        with Announcer(printer, to=receiver.getsockname(), every_seconds=0.01) as announcer:
            heard = [receiver.recvfrom(4096) for _ in range(4)]
            own_port = announcer.search_port
        printer.stop()
        assert {datagram for datagram, _ in heard} == {announcer.notice()}
        assert {source for _, source in heard} == {("127.0.0.1", own_port)}
        receiver.settimeout(0.1)
        with pytest.raises(TimeoutError):
            while True:
                receiver.recv(4096)


def test_the_real_ports_and_addresses_are_the_defaults() -> None:
    printer = SimulatedPrinter("01P00A123456789", "12345678")
    announcer = Announcer(printer)
    printer.stop()
    assert (announcer.to, announcer.search_port) == (("255.255.255.255", 2021), 2021)
    assert Announcer(printer, to=("239.255.255.250", 1990)).search_port == 2021
    assert Announcer(printer, to=("127.0.0.1", 2021)).search_port == 0
    assert Discovery(lambda _: None, lambda: NOON).port == SSDP_PORT == 2021
    assert ("239.255.255.250", 2021) in EVERY_PRINTER


def test_a_search_is_answered_by_the_printers_it_reaches(listen: Callable[..., Ear]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        printers = [SimulatedPrinter(f"01P00A00000000{number}", "12345678") for number in (1, 2)]
        announcers = [Announcer(one, to=nobody.getsockname()) for one in printers]
        for announcer in announcers:
            announcer.start()
        try:
            ear = listen(search_to=[("127.0.0.1", announcer.search_port) for announcer in announcers])
            assert {ear.next().serial for _ in printers} == {one.serial for one in printers}
            ear.now += timedelta(hours=1)
            assert ear.discovery.found() == ()
            ear.discovery.search()
            assert {ear.next().serial for _ in printers} == {one.serial for one in printers}
        finally:
            for announcer in announcers:
                announcer.stop()
            for one in printers:
                one.stop()


def test_a_search_goes_on_every_so_often(listen: Callable[..., Ear]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.bind(("127.0.0.1", 0))
        asked.settimeout(5)
        ear = listen(search_to=[asked.getsockname()], search_every_seconds=0.02)
        for _ in range(3):
            question, source = asked.recvfrom(4096)
            assert question.startswith(b"M-SEARCH * HTTP/1.1\r\n") and f"ST: {SERVICE}\r\n".encode() in question
            assert source == ear.address


def test_somebody_elses_search_is_not_answered() -> None:
    printer = SimulatedPrinter("01P00A123456789", "12345678")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.bind(("127.0.0.1", 0))
        asker.settimeout(5)
        with Announcer(printer, to=asker.getsockname()) as announcer:
            assert asker.recv(4096).startswith(b"NOTIFY")
            for kind in (b"urn:schemas-upnp-org:device:basic:1", b"\xff\xfe", b"ssdp:all"):
                asker.sendto(b"M-SEARCH * HTTP/1.1\r\nST: " + kind + b"\r\n\r\n", ("127.0.0.1", announcer.search_port))
            assert asker.recv(4096) == announcer.answer()
            asker.settimeout(0.05)
            with pytest.raises(TimeoutError):
                asker.recv(4096)
    printer.stop()


def test_a_printer_is_told_of_once_and_again_when_it_says_something_new(listen: Callable[..., Ear]) -> None:
    ear = listen()
    ear.hears(here())
    ear.hears(here(devsignal_bambu_com="-71"))
    assert [printer.signal_dbm for printer in ear.settled()] == [-44]
    assert [printer.signal_dbm for printer in ear.discovery.found()] == [-71]
    ear.hears(here(location="127.0.0.1", devbind_bambu_com="occupied"))
    assert [printer.is_bound for printer in ear.settled()] == [True]
    ear.hears(here(location="10.9.9.9", devbind_bambu_com="occupied"))
    assert [printer.host for printer in ear.settled()] == ["10.9.9.9"]


def test_a_printer_that_says_something_else_every_time_is_told_of_every_five_seconds_at_most(
    listen: Callable[..., Ear],
) -> None:
    ear = listen()
    for number in range(50):
        ear.hears(here(devname_bambu_com=f"name {number}"))
    assert [printer.name for printer in ear.settled()] == ["name 0"]
    ear.hears(here(devname_bambu_com="name 49"))
    assert [printer.name for printer in ear.settled()] == ["name 49"]


def test_a_printer_is_forgotten_when_it_has_been_silent_for_as_long_as_it_said(listen: Callable[..., Ear]) -> None:
    ear = listen()
    ear.hears(here(cache_control="max-age=60"))
    heard = ear.next()
    ear.now = NOON + timedelta(seconds=59)
    assert ear.discovery.found() == (heard,)
    ear.hears(here(cache_control="max-age=60"))
    assert ear.settled() == []
    ear.now = NOON + timedelta(seconds=59 + 59)
    assert len(ear.discovery.found()) == 1
    ear.now = NOON + timedelta(seconds=59 + 60)
    assert ear.discovery.found() == ()
    ear.hears(here(cache_control="max-age=60"))
    assert ear.next() == heard


def test_a_flood_of_printers_fills_no_memory_and_pushes_nobody_out_who_still_speaks(listen: Callable[..., Ear]) -> None:
    ear = listen(entries=4)

    def known() -> list[str]:
        return sorted(printer.serial[-2:] for printer in ear.discovery.found())

    for number in range(50):
        ear.hears(here(usn=f"01P00A{number:09d}"))
    assert [ear.next().serial[-2:] for _ in range(4)] == ["00", "01", "02", "03"]
    ear.now += timedelta(seconds=6)
    ear.hears(here(usn="01P00A000000000", devname_bambu_com="still here"))
    assert ear.next().name == "still here"
    assert known() == ["00", "01", "02", "03"]
    ear.now += timedelta(seconds=30)
    ear.hears(here(usn="01P00A000000003", devname_bambu_com="and here"))
    assert ear.next().name == "and here"
    ear.now += timedelta(seconds=40)
    ear.hears(here(usn="01P00A000000077"))
    assert ear.next().serial == "01P00A000000077"
    assert len(known()) == 4 and {"03", "77"} <= set(known())


def test_rubbish_and_a_listener_that_fails_do_not_end_the_listening(listen: Callable[..., Ear]) -> None:
    told: queue.Queue[FoundPrinter] = queue.Queue()

    def fail_first(printer: FoundPrinter) -> None:
        told.put(printer)
        if told.qsize() == 1:
            raise RuntimeError("a listener's fault")

    ear = listen(on_found=fail_first)
    for datagram in (b"", b"\0" * 2000, b"x" * 60000, b"\xff" * 40, here()[:100]):
        ear.hears(datagram)
    ear.hears(here())
    ear.hears(here(usn="01P00A000000001"))
    assert [told.get(timeout=5).serial, told.get(timeout=5).serial] == ["22E00A123456789", "01P00A000000001"]


def test_printers_are_listed_by_name(listen: Callable[..., Ear]) -> None:
    ear = listen()
    for number, name in enumerate(["b", "A", "c"]):
        ear.hears(here(usn=f"01P00A00000000{number}", devname_bambu_com=name))
        ear.next()
    assert [printer.name for printer in ear.discovery.found()] == ["A", "b", "c"]


def test_closing_ends_the_thread_and_frees_the_port_and_a_closed_one_stays_closed() -> None:
    ear = Ear()
    ear.discovery.start()
    ear.discovery.start()
    port = ear.discovery.port
    threads = [thread for thread in threading.enumerate() if thread.name == "printer-discovery"]
    assert len(threads) == 1
    ear.close()
    ear.discovery.close()
    assert not threads[0].is_alive()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", port))
    never = Discovery(lambda _: None, lambda: NOON, port=0)
    never.close()
    for closed in (ear.discovery, never):
        closed.start()
        closed.search()
    assert not [thread for thread in threading.enumerate() if thread.name == "printer-discovery"]


def test_a_port_that_somebody_holds_alone_is_an_error_and_a_shared_one_is_shared() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alone:
        alone.bind(("127.0.0.1", 0))
        with pytest.raises(OSError), Discovery(lambda _: None, lambda: NOON, port=alone.getsockname()[1]):
            pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sharing:
        sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sharing.bind(("", 0))
        with Discovery(lambda _: None, lambda: NOON, port=sharing.getsockname()[1]) as discovery:
            assert discovery.port == sharing.getsockname()[1]


def test_two_that_say_the_same_at_other_times_are_equal() -> None:
    later = replace(found(), heard_at=NOON + timedelta(seconds=5), signal_dbm=-80)
    assert later == found() and replace(later, host="10.0.0.9") != found()
