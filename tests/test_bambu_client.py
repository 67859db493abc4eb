"""The link to a printer, over real sockets: simulated printers, and one that does by hand what no printer should."""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import bambu.commands as commands
from bambu.lifeline import backoff_seconds
from bambu.tls import IdentityRefused, PrinterTlsContext, Trust
from bambu.wire import Wire
from bambu_client import (
    Answer,
    Heard,
    LinkStatus,
    LinkTimings,
    NotSent,
    PrinterAddress,
    PrinterLink,
    StartOptions,
    StartOrder,
    explain,
)
from bambu_report import PrinterActivity, Storage
from simulator import Authority, Faults, SimulatedPrinter, make_sliced_file

SERIAL = "01P00A123456789"
CODE = "12345678"
NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
QUICK = LinkTimings(
    connect=2.0,
    keepalive=5,
    full_report=0.15,
    silence=0.3,
    patience=0.2,
    offline=0.6,
    backoff_first=0.04,
    backoff_most=0.1,
    answer=0.4,
    hand_over=2.0,
)
CALM = LinkTimings(connect=2.0, backoff_first=0.05, backoff_most=0.1, answer=2.0)
IMPATIENT = replace(CALM, answer=0.2)


def wait_for(true: Callable[[], object], seconds: float = 5.0, tell: Callable[[], object] = lambda: None) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, tell()
        time.sleep(0.002)


class Listener:
    """A link with everything it tells, waited for instead of slept for."""

    def __init__(self, address: PrinterAddress, timings: LinkTimings = CALM) -> None:
        self.heard: list[Heard] = []
        self.answers: list[Answer] = []
        self.told: list[tuple[LinkStatus, str | None]] = []
        self.now = NOON
        self.link = PrinterLink(
            address,
            on_heard=self.heard.append,
            on_answer=self.answers.append,
            on_link=lambda status, reason: self.told.append((status, reason)),
            clock=lambda: self.now,
            timings=timings,
        )

    def until(self, true: Callable[[], object], seconds: float = 5.0) -> None:
        wait_for(true, seconds, lambda: (self.link.view, self.told[-3:], self.answers[-3:]))

    def connected(self) -> Listener:
        self.link.open()
        self.until(lambda: self.link.status is LinkStatus.connected)
        return self


@contextlib.contextmanager
def listening(address: PrinterAddress, timings: LinkTimings = CALM) -> Iterator[Listener]:
    listener = Listener(address, timings)
    try:
        yield listener
    finally:
        listener.link.close()


def address_of(printer: SimulatedPrinter, **changes: Any) -> PrinterAddress:
    known: dict[str, Any] = {
        "host": "127.0.0.1",
        "serial": printer.serial,
        "access_code": printer.access_code,
        "mqtt_port": printer.mqtt_port,
        "ftps_port": printer.ftps_port,
        "ca_file": str(printer.ca_file),
    }
    return PrinterAddress(**{**known, **changes})


@contextlib.contextmanager
def printer(**options: Any) -> Iterator[SimulatedPrinter]:
    with SimulatedPrinter(
        options.pop("serial", SERIAL), CODE, **{"model": "P1S", "speed": 500, **options}
    ) as simulated:
        (simulated.files / "p42.gcode.3mf").write_bytes(make_sliced_file(model_id=simulated.machine.model.slice_ids[0]))
        yield simulated


def order(**changes: Any) -> StartOrder:
    known: dict[str, Any] = {
        "remote_name": "p42.gcode.3mf",
        "title": "p42",
        "plate": 1,
        "submission_id": 4711,
        "bed_type": "textured_plate",
        "mapping": ((0, 0),),
    }
    return StartOrder(**{**known, **changes})


# Connecting and hearing.


@pytest.mark.parametrize(
    ("model", "serial"), [("P1S", SERIAL), ("X1C", "00M00A1"), ("H2D", "0940A1"), ("A1", "0390A1")]
)
def test_a_link_learns_the_whole_state_of_a_printer(model: str, serial: str) -> None:
    with printer(model=model, serial=serial) as simulated, listening(address_of(simulated)) as listener:
        listener.link.open()
        listener.until(lambda: listener.link.state.firmware and listener.link.state.known)
        link, state = listener.link, listener.link.state
        assert (link.status, link.reason, link.generation) == (LinkStatus.connected, None, 1)
        assert (link.heard_at, link.full_heard_at) == (NOON, NOON)
        assert (state.state, state.model, state.storage) == (
            PrinterActivity.idle,
            model.replace("X1C", "X1 Carbon"),
            Storage.ok,
        )
        assert sum(spool.loaded for spool in state.spools) == 4
        first_full = next(heard for heard in listener.heard if heard.full)
        assert not first_full.before.known
        assert first_full.after.known


def test_opening_returns_at_once_and_nobody_there_is_offline_in_plain_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with listening(PrinterAddress("127.0.0.1", SERIAL, CODE, mqtt_port=port), QUICK) as listener:
        began = time.monotonic()
        listener.link.open()
        assert time.monotonic() - began < 0.1
        listener.until(lambda: listener.link.status is LinkStatus.offline)
        assert "LAN mode" in str(listener.link.reason)
        with pytest.raises(NotSent):
            listener.link.start_print(order(), generation=1)


def test_closing_says_goodbye_and_ends_the_thread() -> None:
    with printer() as simulated:
        listener = Listener(address_of(simulated)).connected()
        listener.link.close()
        assert listener.link.status is LinkStatus.offline
        assert not [one for one in threading.enumerate() if one.name == f"printer-{SERIAL}"]
        wait_for(lambda: simulated.connections[0].ended_at is not None)
        with pytest.raises(NotSent):
            listener.link.pause()
        listener.link.ask_full_report()


def test_a_secret_is_not_shown_and_a_serial_number_is_no_topic() -> None:
    assert "hunter22" not in repr(PrinterAddress("h", SERIAL, "hunter22"))
    for serial in ("", "#", "a/b", "+", "a b", "x" * 41, "é"):
        with pytest.raises(ValueError, match="letters and digits"):
            PrinterAddress("h", serial, CODE)


def test_after_a_cut_the_link_comes_back_knowing_nothing_and_says_what_is_new() -> None:
    with printer() as simulated, listening(address_of(simulated)) as listener:
        listener.connected()
        simulated.faults.drop_connection()
        listener.until(lambda: listener.link.generation == 2 and listener.link.status is LinkStatus.connected)
        again = [heard for heard in listener.heard if heard.generation == 2]
        assert not again[0].before.known
        assert next(heard for heard in again if heard.full).before.state is PrinterActivity.unknown
        assert LinkStatus.connecting in [status for status, _ in listener.told]
        assert len({one.client_id for one in simulated.connections}) == 2


def test_while_a_printer_is_away_its_last_state_stands_and_then_it_is_offline() -> None:
    with printer() as simulated, listening(address_of(simulated), QUICK) as listener:
        listener.connected()
        simulated.pull_plug()
        listener.until(lambda: listener.link.status is LinkStatus.connecting)
        listener.until(lambda: listener.link.status is LinkStatus.offline)
        assert listener.link.state.known
        simulated.plug_in()
        listener.until(lambda: listener.link.status is LinkStatus.connected)


# Who is at the other end.


def test_a_wrong_access_code_is_tried_once_and_said_in_plain_words() -> None:
    with printer() as simulated, listening(address_of(simulated, access_code="87654321"), QUICK) as listener:
        listener.link.open()
        listener.until(lambda: listener.link.status is LinkStatus.unauthorized)
        assert "access code" in str(listener.link.reason)
        wait_for(lambda: not [one for one in threading.enumerate() if one.name == f"printer-{SERIAL}"])
        assert [one.verdict for one in simulated.connections] == ["refused"]
        with pytest.raises(NotSent, match="access code"):
            listener.link.stop()


def test_blanks_around_an_access_code_do_no_harm() -> None:
    with printer() as simulated, listening(address_of(simulated, access_code=f" {CODE}\n")) as listener:
        listener.connected()


@pytest.mark.parametrize(
    ("fault", "words"), [("other serial", "has the serial number"), ("other authority", "no known authority")]
)
def test_another_machine_is_refused_before_it_hears_the_access_code(fault: Any, words: str) -> None:
    with (
        printer(faults=Faults(wrong_certificate=fault)) as simulated,
        listening(address_of(simulated), QUICK) as listener,
    ):
        listener.link.open()
        listener.until(lambda: listener.link.status is LinkStatus.error)
        assert words in str(listener.link.reason)
        assert simulated.connections == []


def test_a_serial_in_the_wrong_case_is_named_as_that() -> None:
    with printer() as simulated, listening(address_of(simulated, serial=SERIAL.lower()), QUICK) as listener:
        listener.link.open()
        listener.until(lambda: listener.link.status is LinkStatus.error)
        assert "capital letters" in str(listener.link.reason)


def test_without_an_authority_the_first_certificate_is_kept_and_another_refused() -> None:
    with printer() as simulated, listening(address_of(simulated, ca_file=None), QUICK) as listener:
        listener.connected()
        seen = listener.link.fingerprint
        assert seen is not None and len(seen) == 64
        simulated.pull_plug()
        simulated.plug_in()  # with a new certificate
        listener.until(lambda: listener.link.status is LinkStatus.error)
        assert "changed" in str(listener.link.reason)
        logins = len(simulated.connections)
        with listening(address_of(simulated, ca_file=None, fingerprint=seen), QUICK) as stranger:
            stranger.link.open()
            stranger.until(lambda: stranger.link.status is LinkStatus.error)
        with listening(address_of(simulated, ca_file=None), QUICK) as newcomer:
            newcomer.connected()
            fingerprint = newcomer.link.fingerprint
        assert len(simulated.connections) == logins + 1
        # An authority or the pin is enough; where there are both, either.
        authority = Authority()
        strange = str(authority.ca_file)
        for changes in ({"ca_file": None, "fingerprint": str(fingerprint).upper()}, {"fingerprint": seen},
                        {"ca_file": strange, "fingerprint": fingerprint}):  # fmt: skip
            with listening(address_of(simulated, **changes), QUICK) as known:
                known.connected()
        with listening(address_of(simulated, ca_file=strange, fingerprint=seen), QUICK) as stranger:
            stranger.link.open()
            stranger.until(lambda: stranger.link.status is LinkStatus.error)
            assert "changed" in str(stranger.link.reason)


# Made for this test: CN 03000A123456789, X.509 version 1, its key thrown away.
VERSION_1 = (
    "MIIBIDCByAIUS67tJBLF6BJs+2puYEpuyE2ltyEwCgYIKoZIzj0EAwIwDTELMAkGA1UEAwwCQ0EwHhcNMjYxMTIxMDEyMTE0WhcNMzYxMTE4MDEy"
    "MTE0WjAaMRgwFgYDVQQDDA8wMzAwMEExMjM0NTY3ODkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQViTDLDdrqmjSYgvoVUqH7LCH+aGhuv22R"
    "THMHYmrbjJyjGkYGU2fJPgWyX9bn8hz8XI00HMRRvDiP4j3Q3lKCMAoGCCqGSM49BAMCA0cAMEQCIF23OHZW98JFBBVX4kEF9BiFPhrJhj7k5QS+"
    "uL8XWymUAiB+O12EfGYms3o7bZkTZI5JdQWEv8fzI9fmb4PaVEYcqA=="
)


def test_a_certificate_of_version_1_as_an_a1_mini_has_is_as_good() -> None:
    context = PrinterTlsContext(Trust("03000A123456789"))
    context.check_leaf(base64.b64decode(VERSION_1))
    assert context.seen_fingerprint is not None
    for nonsense in (b"", b"\x30\x00", None):
        with pytest.raises(IdentityRefused):
            context.check_leaf(nonsense)


def test_a_file_of_authorities_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for file in (tmp_path / "ca.pem", tmp_path / "absent.pem"):
        with listening(PrinterAddress("127.0.0.1", SERIAL, CODE, ca_file=str(file)), QUICK) as listener:
            listener.link.open()
            listener.until(lambda: listener.link.status is LinkStatus.error)
            assert "authorities" in str(listener.link.reason)


# A printer that is connected and does not talk.


def test_no_full_report_means_a_doubt_about_the_serial_number_and_then_a_new_connection() -> None:
    with printer(faults=Faults(mute=True)) as simulated, listening(address_of(simulated), QUICK) as listener:
        listener.link.open()
        listener.until(lambda: "serial number" in str(listener.link.reason))
        listener.until(lambda: listener.link.generation >= 2)
        asked = [one.command for one in simulated.commands]
        assert asked[:2] == ["get_version", "pushall"]
        assert "start" in asked
        simulated.faults.mute = False
        listener.until(lambda: listener.link.status is LinkStatus.connected)
        assert listener.link.reason is None


def test_a_printer_that_falls_silent_is_connected_anew_and_called_offline_meanwhile() -> None:
    timings = replace(QUICK, silence=0.1, patience=0.05)  # its answers about versions are no sign of life
    with printer(speed=1000) as simulated, listening(address_of(simulated), timings) as listener:
        listener.connected()
        simulated.faults.mute = True
        listener.until(lambda: listener.link.status is LinkStatus.offline)
        assert listener.link.generation >= 2
        simulated.faults.mute = False
        listener.until(lambda: listener.link.status is LinkStatus.connected)


def test_a_printer_with_too_many_programs_says_so_and_is_not_hammered() -> None:
    with printer(faults=Faults(connection_limit=0)) as simulated, listening(address_of(simulated), QUICK) as listener:
        listener.link.open()
        listener.until(lambda: listener.link.status is LinkStatus.offline)
        assert listener.link.reason
        simulated.faults.connection_limit = None
        listener.until(lambda: listener.link.status is LinkStatus.connected)


def test_one_good_connection_ends_the_row_of_failures() -> None:
    timings = replace(CALM, backoff_first=0.05, backoff_most=30.0)
    with printer(faults=Faults(connection_limit=0)) as simulated, listening(address_of(simulated), timings) as listener:
        listener.link.open()
        listener.until(lambda: listener.link.generation == 4)
        simulated.faults.connection_limit = None
        listener.until(lambda: listener.link.status is LinkStatus.connected)
        simulated.faults.drop_connection()
        listener.until(lambda: listener.link.status is LinkStatus.connecting)
        listener.until(lambda: listener.link.status is LinkStatus.connected, 0.8)


def test_failures_in_a_row_wait_ever_longer_up_to_a_limit_and_not_all_at_once() -> None:
    real = LinkTimings()
    assert [backoff_seconds(failures, real, 0.5) for failures in (1, 2, 3, 6, 7, 99)] == [5, 10, 20, 160, 300, 300]
    assert backoff_seconds(2, real, 0.0) == 7.5
    assert backoff_seconds(2, real, 1.0) == 12.5


# Starting a print.


def test_a_start_goes_out_once_and_the_printers_own_report_confirms_it() -> None:
    with printer() as simulated, listening(address_of(simulated)) as listener:
        listener.connected()
        sequence_id = listener.link.start_print(order(), generation=listener.link.generation)
        listener.until(lambda: listener.link.state.state is PrinterActivity.printing)
        assert listener.link.state.submission_id == "4711"
        assert [(one.subtask_id, one.verdict) for one in simulated.starts] == [("4711", "accepted")]
        answer = listener.answers[0]
        assert (answer.command, answer.sequence_id, answer.submission_id) == ("project_file", sequence_id, "4711")
        assert answer.accepted is True


def test_a_start_is_bound_to_the_connection_the_state_was_read_over() -> None:
    with printer() as simulated, listening(address_of(simulated)) as listener:
        listener.connected()
        simulated.faults.drop_connection()
        listener.until(lambda: listener.link.generation == 2 and listener.link.status is LinkStatus.connected)
        with pytest.raises(NotSent):
            listener.link.start_print(order(), generation=1)
        assert listener.link.pause() is not None
        assert simulated.starts == []


def test_a_start_that_comes_too_late_is_not_sent() -> None:
    with printer() as simulated, listening(address_of(simulated)) as listener:
        listener.connected()
        listener.now = NOON + timedelta(seconds=6)
        with pytest.raises(NotSent, match="too late"):
            listener.link.start_print(order(), generation=1, latest_at=NOON + timedelta(seconds=5))
        assert listener.link.start_print(order(), generation=1, latest_at=NOON + timedelta(seconds=6))


def test_a_start_refused_while_the_line_is_down_is_not_sent_later() -> None:
    with printer() as simulated, listening(address_of(simulated), QUICK) as listener:
        listener.connected()
        simulated.pull_plug()
        listener.until(lambda: listener.link.status is not LinkStatus.connected)
        with pytest.raises(NotSent):
            listener.link.start_print(order(), generation=1)
        simulated.plug_in()
        listener.until(lambda: listener.link.status is LinkStatus.connected)
        assert listener.link.set_light(True).accepted
        assert simulated.starts == []


def test_the_printers_refusal_comes_with_the_submission_and_in_words() -> None:
    with printer() as simulated, listening(address_of(simulated)) as listener:
        listener.connected()
        simulated.press_start("screen.gcode.3mf")
        listener.until(lambda: listener.link.state.state is not PrinterActivity.idle)
        listener.link.start_print(order(), generation=listener.link.generation)
        listener.until(lambda: listener.answers)
        assert listener.answers[0].accepted is False
        assert listener.answers[0].submission_id == "4711"
        assert "busy" in explain(listener.answers[0])


# Other commands.


def test_pausing_resuming_and_stopping() -> None:
    with printer() as simulated, listening(address_of(simulated)) as listener:
        link = listener.connected().link
        link.start_print(order(), generation=link.generation)
        listener.until(lambda: link.state.state is PrinterActivity.printing)
        assert link.pause().accepted
        listener.until(lambda: link.state.state is PrinterActivity.paused)
        assert link.resume().accepted
        listener.until(lambda: link.state.state is PrinterActivity.printing)
        assert link.set_speed(3).accepted
        listener.until(lambda: link.state.speed_level == 3)
        assert link.stop().accepted
        listener.until(lambda: link.state.cancelled)
        assert link.state.state is PrinterActivity.failed
        assert link.clear_error().accepted
        assert link.state.developer_mode is True  # learnt from the answers: a P1S does not say


def test_without_developer_mode_a_command_is_refused_with_what_to_press() -> None:
    with (
        printer(developer_mode=False, serial="0940A1", model="H2D") as simulated,
        listening(address_of(simulated)) as listener,
    ):
        listener.connected()
        assert listener.link.state.developer_mode is False
        answer = listener.link.pause()
        assert answer.accepted is False
        assert answer.code == "0502-4007"
        assert "Developer Mode" in explain(answer)


def test_no_answer_is_said_after_a_while_and_two_bring_a_new_connection() -> None:
    with printer() as simulated, listening(address_of(simulated), IMPATIENT) as listener:
        listener.connected()
        simulated.faults.lose_acks = True
        answer = listener.link.pause()
        assert answer.accepted is None
        assert "did not answer" in str(answer.reason)
        listener.link.pause()
        listener.until(lambda: listener.link.generation == 2 and listener.link.status is LinkStatus.connected)


def test_a_start_is_watched_over_the_connection_it_came_by() -> None:
    with printer() as simulated, listening(address_of(simulated), IMPATIENT) as listener:
        listener.connected()
        listener.link.start_print(order(), generation=1)
        simulated.faults.lose_acks = True
        listener.link.pause()
        listener.link.pause()
        heard = len(listener.heard)
        listener.link.ask_full_report()
        listener.until(lambda: any(one.full for one in listener.heard[heard:]))
        assert listener.link.generation == 1


def test_waiting_for_an_answer_ends_with_the_connection() -> None:
    with printer() as simulated, listening(address_of(simulated)) as listener:
        listener.connected()
        simulated.faults.lose_acks = True
        answered: queue.Queue[Answer] = queue.Queue()
        waiting = threading.Thread(target=lambda: answered.put(listener.link.pause()))
        waiting.start()
        wait_for(lambda: any(one.command == "pause" for one in simulated.commands))
        simulated.faults.drop_connection()
        assert answered.get(timeout=1.0).accepted is None
        waiting.join()


def test_the_links_own_thread_may_not_wait_for_itself() -> None:
    caught: list[BaseException] = []

    def stop(status: LinkStatus, reason: str | None) -> None:
        try:
            link.stop()
        except RuntimeError as problem:
            caught.append(problem)

    with printer() as simulated:
        link = PrinterLink(
            address_of(simulated),
            on_heard=lambda heard: 1 // 0,  # a listener's fault costs nothing but a line in the log
            on_answer=lambda answer: None,
            on_link=stop,
            clock=lambda: NOON,
        )
        link.open()
        wait_for(lambda: caught and link.state.known)
        link.close()


# What goes over the wire, and what comes: a printer by hand.


class BarePrinter:
    """Speaks just enough MQTT over TLS to see each packet and to answer wrongly."""

    def __init__(self, connack: int = 0, suback: int = 0) -> None:
        self.packets: queue.Queue[tuple[int, bytes]] = queue.Queue()
        self.ended: queue.Queue[bool] = queue.Queue()
        self.names: list[str | None] = []
        self.deaf = threading.Event()
        self._connack, self._suback = connack, suback
        self._connections: list[ssl.SSLSocket] = []

    @contextlib.contextmanager
    def serving(self, tmp_path: Path) -> Iterator[PrinterAddress]:
        authority = Authority()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue(SERIAL).write(tmp_path))
        context.sni_callback = lambda connection, name, own: self.names.append(name)
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=self._accept, args=(server, context), daemon=True).start()
            yield PrinterAddress(
                "127.0.0.1", SERIAL, CODE, mqtt_port=server.getsockname()[1], ca_file=str(authority.ca_file)
            )
            server.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            connection.close()

    def _accept(self, server: socket.socket, context: ssl.SSLContext) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = server.accept()
                threading.Thread(target=self._serve, args=(plain, context), daemon=True).start()

    def _serve(self, plain: socket.socket, context: ssl.SSLContext) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._converse(context.wrap_socket(plain, server_side=True))
        self.ended.put(True)

    def _converse(self, connection: ssl.SSLSocket) -> None:
        self._connections.append(connection)
        stream = connection.makefile("rb")
        while head := stream.read(1):
            size = shift = 0
            while True:
                byte = stream.read(1)[0]
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            body = stream.read(size)
            self.packets.put((head[0], body))
            while self.deaf.is_set():
                time.sleep(0.01)
            if head[0] == 0x10:
                connection.sendall(bytes((0x20, 2, 0, self._connack)))
            elif head[0] == 0x82:
                connection.sendall(bytes((0x90, 3)) + body[:2] + bytes((self._suback,)))

    def say(self, payload: bytes) -> None:
        self.send(packet(payload))

    def send(self, packet: bytes) -> None:
        self._connections[-1].sendall(packet)

    def next_request(self) -> dict[str, Any]:
        while True:
            kind, body = self.packets.get(timeout=5)
            if kind & 0xF0 == 0x30:
                assert kind == 0x30, "a command goes out at QoS 0, not retained, not as a repeat"
                size = int.from_bytes(body[:2], "big")
                assert body[2 : 2 + size] == f"device/{SERIAL}/request".encode()
                return dict(json.loads(body[2 + size :]))


def packet(payload: bytes) -> bytes:
    topic = f"device/{SERIAL}/report".encode()
    body = len(topic).to_bytes(2, "big") + topic + payload
    return bytes((0x30,)) + packet_size(len(body)) + body


def packet_size(size: int) -> bytes:
    encoded = bytearray()
    while True:
        size, rest = divmod(size, 128)
        encoded.append(rest | (128 if size else 0))
        if not size:
            return bytes(encoded)


FULL = json.dumps(
    {"print": {"command": "push_status", "msg": 0, "gcode_state": "IDLE", "home_flag": 256, "print_error": 0x0500C011}}
).encode()


def test_the_first_packets_are_those_a_printer_expects(tmp_path: Path) -> None:
    bare = BarePrinter()
    with bare.serving(tmp_path) as address, listening(address) as listener:
        listener.link.open()
        kind, login = bare.packets.get(timeout=5)
        assert bare.names == [SERIAL]
        assert (kind, login[:7]) == (0x10, b"\x00\x04MQTT\x04")
        assert login[7] == 0b11000010  # user, password, clean session; no will
        assert login.endswith(b"\x00\x04bblp\x00\x08" + CODE.encode())
        kind, subscription = bare.packets.get(timeout=5)
        topic = f"device/{SERIAL}/report".encode()
        assert (kind, subscription[2:]) == (0x82, len(topic).to_bytes(2, "big") + topic + b"\x00")
        version, everything = bare.next_request(), bare.next_request()
        assert version["info"]["command"] == "get_version"
        assert everything["pushing"] == {
            "sequence_id": everything["pushing"]["sequence_id"],
            "command": "pushall",
            "version": 1,
            "push_target": 1,
        }
        ids = int(version["info"]["sequence_id"]), int(everything["pushing"]["sequence_id"])
        assert 20000 <= ids[0] < ids[1] <= 29999


def test_a_link_that_closes_tells_the_printer(tmp_path: Path) -> None:
    bare = BarePrinter()
    with bare.serving(tmp_path) as address:
        listener = Listener(address)
        listener.link.open()
        bare.next_request(), bare.next_request()
        listener.link.close()
        assert bare.packets.get(timeout=5) == (0xE0, b"")


def test_every_command_has_its_own_increasing_id_and_a_parameter(tmp_path: Path) -> None:
    bare = BarePrinter()
    with bare.serving(tmp_path) as address, listening(address, IMPATIENT) as listener:
        listener.link.open()
        bare.next_request(), bare.next_request()
        bare.say(FULL)
        listener.until(lambda: listener.link.status is LinkStatus.connected)
        listener.link.start_print(order(), generation=1)
        start = bare.next_request()["print"]
        assert start["command"] == "project_file"
        asked = threading.Thread(target=listener.link.pause)
        asked.start()
        pause = bare.next_request()["print"]
        assert (pause["command"], pause["param"]) == ("pause", "")
        assert int(start["sequence_id"]) < int(pause["sequence_id"])
        asked.join()


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (5, LinkStatus.unauthorized, "access code"),
        (4, LinkStatus.unauthorized, "access code"),
        (3, LinkStatus.offline, "no more connections"),
        (2, LinkStatus.offline, "refuses"),
    ],
)
def test_how_a_printer_says_no(tmp_path: Path, code: int, status: LinkStatus, words: str) -> None:
    bare = BarePrinter(connack=code)
    with bare.serving(tmp_path) as address, listening(address, QUICK) as listener:
        listener.link.open()
        listener.until(lambda: listener.link.status is status)
        assert words in str(listener.link.reason)


def test_only_answers_to_our_own_commands_count(tmp_path: Path) -> None:
    bare = BarePrinter()
    with bare.serving(tmp_path) as address, listening(address) as listener:
        listener.link.open()
        bare.next_request(), bare.next_request()
        bare.say(FULL)
        listener.until(lambda: listener.link.status is LinkStatus.connected)
        sequence_id = listener.link.start_print(order(), generation=1)

        def answer(**fields: Any) -> None:
            bare.say(json.dumps({"print": {"command": "project_file", "sequence_id": sequence_id, **fields}}).encode())

        answer(sequence_id="2021", result="fail")  # the screen's
        answer(command="pause", result="fail")
        bare.say(
            json.dumps({"system": {"command": "project_file", "sequence_id": sequence_id, "result": "fail"}}).encode()
        )
        answer()  # an echo decides nothing
        answer(err_code=84033543)  # and then it does
        answer(result="success")  # once is enough
        bare.say(FULL)
        listener.until(lambda: len(listener.heard) == 2)
        assert [one.accepted for one in listener.answers] == [None, False]
        assert "Developer Mode" in explain(listener.answers[1])
        assert listener.link.state.developer_mode is False


def test_the_link_outlives_whatever_a_printer_sends(tmp_path: Path) -> None:
    bare = BarePrinter()
    with bare.serving(tmp_path) as address, listening(address) as listener:
        listener.link.open()
        bare.next_request(), bare.next_request()
        for noise in (
            b"",
            b"\x00",
            b"[]",
            b"\xff" * 99,
            b'{"print":' * 2000,
            b'{"print":{"command":"push_status","ams":[1]}}',
        ):
            bare.say(noise)
        bare.say(FULL + b"\x00")
        listener.until(lambda: listener.link.status is LinkStatus.connected)
        assert listener.link.generation == 1
        # Packets that are no MQTT end the connection, not the link.
        for generation, packet_of_nonsense in enumerate((b"\x90\x00", b"\x30\x01\x00", b"\xb0\x00", b"\xf0\x00"), 2):
            bare.send(packet_of_nonsense)
            listener.until(lambda wanted=generation: listener.link.generation == wanted)  # type: ignore[misc]
            bare.next_request(), bare.next_request()
            bare.say(FULL)
            listener.until(lambda: listener.link.status is LinkStatus.connected)


def test_an_unforeseen_error_in_its_thread_costs_a_link_only_the_connection() -> None:
    times = iter([KeyError("a clock that fails once")])

    def clock() -> datetime:
        for problem in times:
            raise problem
        return NOON

    with printer() as simulated:
        link = PrinterLink(
            address_of(simulated),
            on_heard=lambda heard: None,
            on_answer=lambda answer: None,
            on_link=lambda status, reason: None,
            clock=clock,
            timings=CALM,
        )
        link.open()
        wait_for(lambda: link.status is LinkStatus.connected)
        assert link.generation == 2
        link.close()


def test_many_reports_in_one_breath_are_all_heard_at_once(tmp_path: Path) -> None:
    bare = BarePrinter()
    with bare.serving(tmp_path) as address, listening(address) as listener:
        listener.link.open()
        bare.next_request(), bare.next_request()
        bare.send(packet(FULL) * 60)
        listener.until(lambda: len(listener.heard) == 60, 1.0)


def test_a_talkative_printer_does_not_keep_a_command_waiting(tmp_path: Path) -> None:
    bare = BarePrinter()
    with bare.serving(tmp_path) as address, listening(address) as listener:
        listener.link.open()
        bare.next_request(), bare.next_request()
        bare.say(FULL)
        listener.until(lambda: listener.link.status is LinkStatus.connected)
        stop = threading.Event()

        def chatter() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    bare.say(FULL)

        talking = threading.Thread(target=chatter)
        talking.start()
        began = time.monotonic()
        listener.link.start_print(order(), generation=1)
        assert time.monotonic() - began < 1.0
        stop.set()
        talking.join()


def test_behind_bytes_that_are_stuck_nothing_more_is_sent(tmp_path: Path) -> None:
    bare = BarePrinter()
    with bare.serving(tmp_path) as address:
        ready: list[bool] = []
        wire = Wire(
            address.host,
            address.mqtt_port,
            SERIAL,
            CODE,
            PrinterTlsContext(Trust(SERIAL, address.ca_file)),
            keepalive_seconds=30,
            connect_seconds=2.0,
            on_ready=lambda: ready.append(True),
            on_payload=lambda payload: None,
        )
        wire.connect()
        wait_for(lambda: wire.pump(readable=True, writable=True) or ready)
        bare.deaf.set()
        published = 0
        with pytest.raises(NotSent, match="stuck"):
            while published < 2000:
                wire.publish(b"x" * 60_000)
                published += 1
        assert wire.wants_to_write()
        wire.abort()
        with pytest.raises(NotSent, match="gone"):
            wire.publish(b"x")
        bare.deaf.clear()
        # What was still in the kernel is thrown away with the connection: no command is delivered late.
        bare.ended.get(timeout=5)
        assert bare.packets.qsize() < published - 5


def test_sockets_numbered_above_1023_work(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("not that many files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        with contextlib.ExitStack() as held:
            for _ in range(1100):
                held.enter_context(open("/dev/null"))
            with printer() as simulated, listening(address_of(simulated)) as listener:
                listener.connected()
                assert listener.link.set_light(True).accepted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# The words of commands and answers.


def test_a_start_is_worded_as_the_makers_programs_word_it() -> None:
    mapping = ((0, 3), None, (1, 2), (128, 0), (255, 0), (16, 1))
    worded = commands.start_print(order(plate=3, mapping=mapping), two_nozzles=False)["print"]
    assert worded == {
        "command": "project_file",
        "param": "Metadata/plate_3.gcode",
        "url": "ftp://p42.gcode.3mf",
        "file": "p42.gcode.3mf",
        "subtask_name": "p42",
        "md5": "",
        "project_id": "4711",
        "profile_id": "0",
        "task_id": "4711",
        "subtask_id": "4711",
        "bed_type": "textured_plate",
        "bed_leveling": True,
        "auto_bed_leveling": 1,
        "flow_cali": False,
        "extrude_cali_flag": 0,
        "extrude_cali_manual_mode": 0,
        "vibration_cali": False,
        "layer_inspect": False,
        "timelapse": False,
        "nozzle_offset_cali": 0,
        "use_ams": True,
        "ams_mapping": [3, -1, 6, 128, -1, 1],
        "ams_mapping2": [
            {"ams_id": 0, "slot_id": 3},
            {"ams_id": 255, "slot_id": 255},
            {"ams_id": 1, "slot_id": 2},
            {"ams_id": 128, "slot_id": 0},
            {"ams_id": 255, "slot_id": 0},
            {"ams_id": 16, "slot_id": 1},
        ],
        "cfg": "0",
    }


def test_starts_from_external_spools_and_folders_and_with_two_nozzles() -> None:
    worded = commands.start_print(
        order(remote_name="cache/p42.3mf", mapping=((254, 0), (255, 0)), bed_type=None), two_nozzles=True
    )["print"]
    assert worded["use_ams"] is False
    assert worded["ams_mapping"] == [-1, -1]
    assert worded["ams_mapping2"] == [{"ams_id": 254, "slot_id": 0}, {"ams_id": 255, "slot_id": 0}]
    assert (worded["url"], worded["file"]) == ("ftp:///cache/p42.3mf", "p42.3mf")
    assert (worded["bed_type"], worded["nozzle_offset_cali"]) == ("auto", 2)
    options = StartOptions(bed_leveling=False, flow_calibration=True, timelapse=True)
    worded = commands.start_print(order(options=options, bed_type="velvet"), two_nozzles=False)["print"]
    assert (worded["auto_bed_leveling"], worded["bed_leveling"]) == (0, False)
    assert (worded["extrude_cali_flag"], worded["flow_cali"], worded["timelapse"]) == (1, True, True)
    assert worded["bed_type"] == "auto"


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "Vase for Zoë"},
        {"title": ""},
        {"title": "x" * 65},
        {"title": 'a"b'},
        {"title": "a\nb"},
        {"remote_name": "../x.3mf"},
        {"remote_name": "a b.3mf"},
        {"remote_name": "a/b/c.3mf"},
        {"remote_name": "x\r\nDELE y"},
        {"remote_name": ".hidden"},
        {"plate": 0},
        {"plate": 1000},
        {"submission_id": 0},
        {"submission_id": 2**31},
        {"mapping": ((0, 4),)},
        {"mapping": ((-1, 0),)},
        {"mapping": ((255, 1),)},
        {"mapping": (None,) * 65},
    ],
)
def test_what_must_not_go_onto_the_wire_cannot_be_ordered(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is|names"):
        order(**changes)


def test_commands_with_values_that_cannot_be_are_refused_here() -> None:
    with pytest.raises(ValueError, match="speed"):
        commands.set_speed(5)
    with pytest.raises(ValueError, match="changed at"):
        commands.change_filament((0, 1), nozzle_temp=500)
    setting: dict[str, Any] = {
        "vendor_profile": "GFA00",
        "material_type": "PLA",
        "color": "#ff6a13",
        "nozzle_temp_min": 190,
        "nozzle_temp_max": 230,
    }
    assert commands.set_filament((0, 1), **setting)["print"]["tray_color"] == "FF6A13FF"
    assert commands.set_filament((255, 0), **setting)["print"]["tray_id"] == 254
    for wrong in ({"color": "red"}, {"vendor_profile": "x y"}, {"material_type": "ПЛА"}, {"nozzle_temp_max": 100}):
        with pytest.raises(ValueError, match="are|is"):
            commands.set_filament((0, 1), **{**setting, **wrong})
    assert commands.change_filament(None, nozzle_temp=220)["print"]["target"] == 255
    assert commands.change_filament((255, 0), nozzle_temp=220)["print"]["target"] == 254
    assert commands.change_filament((1, 2), nozzle_temp=220)["print"]["target"] == 6


@pytest.mark.parametrize(
    ("fields", "accepted", "words"),
    [
        ({"result": "success", "reason": "success"}, True, "accepted"),
        ({"result": "SUCCESS", "err_code": 0}, True, "accepted"),
        ({"result": "fail", "reason": "error string"}, False, "error string"),
        ({"result": "FAIL"}, False, "no reason"),
        ({"result": 0}, True, "accepted"),
        ({"result": 3}, False, "refused"),
        ({}, None, "its own reports"),
        ({"param": ""}, None, "its own reports"),
        ({"err_code": 84033543}, False, "Developer Mode"),
        ({"result": "success", "err_code": 84033543}, False, "Developer Mode"),
        ({"result": "failed", "reason": "mqtt message verify failed"}, False, "Developer Mode"),
        ({"errno": -2}, False, "FFFF-FFFE"),
        ({"err_code": "83902468"}, False, "busy"),
        ({"err_code": {}, "result": [], "reason": 7}, None, "its own reports"),
    ],
)
def test_answers_in_all_their_shapes(fields: dict[str, Any], accepted: bool | None, words: str) -> None:
    message = {"print": {"command": "pause", "sequence_id": "20001", **fields}}
    [(section, answer)] = commands.answers(message)
    assert (section, answer.accepted) == ("print", accepted)
    assert words in explain(answer)


def test_a_report_is_no_answer() -> None:
    assert list(commands.answers({"print": {"command": "push_status", "sequence_id": "1"}, "system": 3})) == []
    for number in (None, True, 1.5, [], {}):
        assert list(commands.answers({"print": {"command": "pause", "sequence_id": number}})) == []
