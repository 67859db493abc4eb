"""bambu.cloud_link against a simulated cloud over real MQTT and TLS; its watch over one printer, by a clock of ours."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from bambu.cloud_link import CloudLink
from bambu.cloud_watch import CloudWatch
from bambu.cloud_wire import CloudWire
from bambu.commands import FULL_REPORT, PAUSE, RESUME_REPORTS, STOP, VERSION, Command
from bambu.state import PrinterActivity
from bambu.types import Heard, LinkStatus, LinkTimings
from bambu_cloud import CloudHosts, CloudSession
from simulator import Machine, SimulatedPrinter
from simulator.cloud import CloudAccount, SimulatedCloud
from simulator.sink_certificate import ThrowAwayCertificate
from tests.wire import served

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ACCOUNT = CloudAccount("plain@example.com", "secret-password", "1001")
OTHER = CloudAccount("other@example.com", "secret-password", "1002")
P1S, H2D = "01P00A1", "0940A1"
CALM = LinkTimings(connect=2.0, backoff_first=0.05, backoff_most=0.1)
QUICK = LinkTimings(
    connect=1.0, full_report=0.2, silence=0.3, offline=0.6, keepalive=5, backoff_first=0.05, backoff_most=0.1
)
Told = tuple[str, LinkStatus, str | None]


class Listener:
    """A link with everything it tells, waited for instead of slept for."""

    def __init__(self, cloud: SimulatedCloud, *serials: str, **changes: Any) -> None:
        self.heard: list[tuple[str, Heard]] = []
        self.told: list[Told] = []
        self.token = cloud.logins.issue(ACCOUNT)
        known: dict[str, Any] = {
            "on_heard": lambda serial, heard: self.heard.append((serial, heard)),
            "on_link": lambda serial, status, reason: self.told.append((serial, status, reason)),
            "clock": lambda: NOON,
            "hosts": hosts_of(cloud),
            "timings": CALM,
        }
        session = CloudSession(changes.pop("token", self.token), None, None, ACCOUNT.uid)
        self.link = CloudLink(session, serials, **{**known, **changes})

    def until(self, true: Callable[[], object], seconds: float = 5.0) -> None:
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until, (self.link.status, self.link.reason, self.told[-4:])
            time.sleep(0.002)

    def is_at(self, serial: str, status: LinkStatus) -> bool:
        return self.link.view(serial).status is status


def hosts_of(cloud: SimulatedCloud, **changes: Any) -> CloudHosts:
    known = {"mqtt_host": cloud.mqtt_host, "mqtt_port": cloud.mqtt_port, "ca_file": str(cloud.ca_file)}
    return CloudHosts(cloud.api_url, cloud.web_url, **{**known, **changes})


@pytest.fixture
def cloud() -> Iterator[SimulatedCloud]:
    with SimulatedCloud(ACCOUNT, OTHER) as cloud:
        yield cloud


@contextlib.contextmanager
def listening(cloud: SimulatedCloud, *serials: str, **changes: Any) -> Iterator[Listener]:
    listener = Listener(cloud, *serials, **changes)
    listener.link.open()
    try:
        yield listener
    finally:
        listener.link.close()


def bind(cloud: SimulatedCloud, *printers: tuple[str, str]) -> list[Machine]:
    machines = [Machine(serial, model) for serial, model in printers]
    for machine in machines:
        cloud.bind(ACCOUNT, machine)
    return machines


def connected(listener: Listener, *serials: str) -> None:
    listener.until(lambda: all(listener.is_at(serial, LinkStatus.connected) for serial in serials))


# Hearing.


def test_one_connection_tells_the_state_of_two_printers_and_their_changes(cloud: SimulatedCloud) -> None:
    p1s, h2d = bind(cloud, (P1S, "P1S"), (H2D, "H2D"))
    with listening(cloud, P1S, H2D) as listener:
        connected(listener, P1S, H2D)
        assert (listener.link.status, listener.link.reason) == (LinkStatus.connected, None)
        assert len(cloud.connections) == 1
        listener.until(lambda: listener.link.view(P1S).state.firmware == p1s.model.firmware)
        assert [len(listener.link.view(serial).state.nozzles) for serial in (P1S, H2D)] == [1, 2]
        p1s.press_start("vase.gcode.3mf")
        p1s.advance(1200)
        cloud.report(P1S)
        listener.until(lambda: listener.link.view(P1S).state.state is PrinterActivity.printing)
        last = next(heard for serial, heard in reversed(listener.heard) if serial == P1S)
        assert (last.before.state, last.after.job_name, last.full) == (PrinterActivity.idle, "vase", False)
        assert sum(spool.loaded for spool in last.after.spools) == 4, "a delta is folded into the whole"
        view = listener.link.view(H2D)
        assert (view.state.state, view.heard_at, view.full_heard_at) == (PrinterActivity.idle, NOON, NOON)
        first = next(heard for serial, heard in listener.heard if serial == P1S and heard.full)
        assert (first.before.known, first.after.known, first.generation) == (False, True, 1)


def test_a_printer_on_the_network_is_seen_through_the_cloud(cloud: SimulatedCloud) -> None:
    with SimulatedPrinter(P1S, "12345678", "P1S", speed=200) as printer:
        cloud.bind(ACCOUNT, printer)
        with listening(cloud, P1S) as listener:
            connected(listener, P1S)
            printer.press_start("vase.gcode.3mf")
            listener.until(lambda: listener.link.view(P1S).state.state is PrinterActivity.printing)
            printer.pull_plug()
            listener.until(lambda: listener.is_at(P1S, LinkStatus.offline))


def test_each_printer_is_asked_once_and_nothing_is_ever_ordered(cloud: SimulatedCloud) -> None:
    bind(cloud, (P1S, "P1S"), (H2D, "H2D"))
    with listening(cloud, P1S, H2D) as listener:
        connected(listener, P1S, H2D)
    asked = [(serial, section, body["command"]) for serial, one in cloud.asked for section, body in one.items()]
    questions = [("info", "get_version"), ("pushing", "pushall")]
    assert sorted(asked) == sorted((serial, *question) for serial in (P1S, H2D) for question in questions)
    ids = [body["sequence_id"] for _, one in cloud.asked for body in one.values()]
    assert len(set(ids)) == 4
    public = {name for name in vars(CloudLink) if not name.startswith("_")}
    assert public == {"status", "reason", "view", "open", "close"}


@pytest.mark.parametrize("order", [PAUSE, STOP, {"print": {"command": "project_file"}}, {**FULL_REPORT, **STOP}])
def test_the_wire_takes_no_orders(cloud: SimulatedCloud, order: Command) -> None:
    session = CloudSession("token", None, None, "1")
    wire = CloudWire(
        hosts_of(cloud),
        session,
        [P1S],
        keepalive_seconds=5,
        connect_seconds=1,
        on_ready=lambda refused: None,
        on_payload=lambda serial, payload: None,
    )
    with pytest.raises(ValueError, match="nothing is ordered"):
        wire.ask(P1S, order, "1")


def test_a_printer_that_leaves_and_comes_back_begins_anew(cloud: SimulatedCloud) -> None:
    (machine,) = bind(cloud, (P1S, "P1S"))
    with listening(cloud, P1S) as listener:
        connected(listener, P1S)
        cloud.switch(P1S, on=False)
        listener.until(lambda: listener.is_at(P1S, LinkStatus.offline))
        assert "switched off" in str(listener.link.view(P1S).reason)
        assert listener.link.view(P1S).state.known, "the last known state stands"
        machine.power_cycle()
        cloud.switch(P1S, on=True)
        connected(listener, P1S)
        again = [heard for _, heard in listener.heard if heard.generation == 2]
        assert not again[0].before.known
        assert len(cloud.connections) == 1


def test_a_printer_of_another_account_is_named_as_that_and_the_others_go_on(cloud: SimulatedCloud) -> None:
    bind(cloud, (P1S, "P1S"))
    cloud.bind(OTHER, Machine(H2D, "H2D"))
    with listening(cloud, H2D, P1S) as listener:
        connected(listener, P1S)
        view = listener.link.view(H2D)
        assert (view.status, view.state.known) == (LinkStatus.error, False)
        assert "this account" in str(view.reason)
        cloud.drop_connections()
        listener.until(lambda: listener.link.view(P1S).generation == 2 and listener.is_at(P1S, LinkStatus.connected))
        assert [status for serial, status, _ in listener.told if serial == H2D] == [LinkStatus.error]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"[" * 100_000,
        b'{"event": 5}',
        b'{"event": {"event": ["client.connected"]}}',
        b'{"event": {"event": "client.disconnected", "disconnected_at": {"a": 1e999}}}',
        b'{"print": {"command": "push_status", "msg": 0, "gcode_state": {"a": []}, "ams": 7, "hms": "x"}}',
        b'{"print": [], "info": {"command": "get_version", "module": {"a": 1}}}',
    ],
)
def test_no_payload_ends_the_link(cloud: SimulatedCloud, payload: bytes) -> None:
    bind(cloud, (P1S, "P1S"), (H2D, "H2D"))
    with listening(cloud, P1S, H2D) as listener:
        connected(listener, P1S, H2D)
        cloud.say(P1S, payload)
        before = len(listener.heard)
        cloud.report(H2D, full=True)
        listener.until(lambda: len(listener.heard) > before and listener.heard[-1][0] == H2D)
        assert len(cloud.connections) == 1


def test_a_listeners_fault_does_not_cost_the_connection(
    cloud: SimulatedCloud, caplog: pytest.LogCaptureFixture
) -> None:
    bind(cloud, (P1S, "P1S"))

    def stumble(serial: str, heard: Heard) -> None:
        raise RuntimeError("listener")

    with listening(cloud, P1S, on_heard=stumble) as listener:
        connected(listener, P1S)
        assert "listener" in caplog.text
        assert len(cloud.connections) == 1


# The connection.


def test_a_refused_login_is_tried_once_and_asks_for_another(
    cloud: SimulatedCloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with listening(cloud, P1S, H2D, token="AQAdeadtoken") as listener:
        listener.until(lambda: listener.link.status is LinkStatus.unauthorized)
        listener.until(lambda: not is_running())
        assert listener.told == [
            (serial, LinkStatus.unauthorized, "Bambu Lab's cloud refuses the login: log in again")
            for serial in (P1S, H2D)
        ]
        assert [one.verdict for one in cloud.connections] == ["refused"]
        assert "AQAdeadtoken" not in caplog.text + repr(listener.told) + repr(vars(listener.link))


def test_the_older_word_for_a_refused_login_is_understood(cloud: SimulatedCloud) -> None:
    certificate = ThrowAwayCertificate("127.0.0.1")
    cloud.ca_file.write_text(certificate.pem)
    logins: queue.Queue[bytes] = queue.Queue()

    def refuse(connection: socket.socket, number: int) -> None:
        with certificate.server_context.wrap_socket(connection, server_side=True) as secured:
            logins.put(secured.recv(1000))
            secured.sendall(bytes([0x20, 2, 0, 4]))  # CONNACK 4: bad user name or password
            secured.recv(1)

    with served(refuse) as port, listening(cloud, P1S, hosts=hosts_of(cloud, mqtt_port=port)) as listener:
        listener.until(lambda: listener.link.status is LinkStatus.unauthorized)
        login = logins.get(timeout=1)
        assert b"u_1001" in login
        assert listener.token.encode() in login
        listener.until(lambda: not is_running())
        assert logins.empty()


def test_a_lost_connection_comes_back_knowing_nothing(cloud: SimulatedCloud) -> None:
    bind(cloud, (P1S, "P1S"))
    with listening(cloud, P1S) as listener:
        connected(listener, P1S)
        cloud.drop_connections()
        listener.until(lambda: listener.link.view(P1S).generation == 2)
        connected(listener, P1S)
        again = [heard for _, heard in listener.heard if heard.generation == 2]
        assert not again[0].before.known
        assert (P1S, LinkStatus.connecting, "Bambu Lab's cloud closed the connection") in listener.told
        assert len({one.client_id for one in cloud.connections}) == 2


def test_a_cloud_that_is_away_is_offline_in_plain_words_and_found_again(cloud: SimulatedCloud) -> None:
    bind(cloud, (P1S, "P1S"))
    cloud.stop_mqtt()
    with listening(cloud, P1S) as listener:
        listener.until(lambda: listener.is_at(P1S, LinkStatus.offline))
        assert "could not be reached" in str(listener.link.reason)
        cloud.start_mqtt()
        connected(listener, P1S)


def test_a_login_that_dies_while_connected_is_noticed(cloud: SimulatedCloud) -> None:
    bind(cloud, (P1S, "P1S"))
    with listening(cloud, P1S) as listener:
        connected(listener, P1S)
        cloud.logins.revoke()
        cloud.drop_connections()
        listener.until(lambda: listener.is_at(P1S, LinkStatus.unauthorized))


@pytest.mark.parametrize(
    "changes", [{"ca_file": None}, {"mqtt_host": "localhost"}], ids=["unknown authority", "another host's name"]
)
def test_a_machine_that_is_not_provably_the_cloud_never_hears_the_token(
    cloud: SimulatedCloud, changes: dict[str, Any]
) -> None:
    certificate = ThrowAwayCertificate("127.0.0.1")
    cloud.ca_file.write_text(certificate.pem)
    received: list[bytes] = []

    def listen(connection: socket.socket, number: int) -> None:
        with (
            contextlib.suppress(ssl.SSLError),
            certificate.server_context.wrap_socket(connection, server_side=True) as secured,
        ):
            received.append(secured.recv(1000))

    with (
        served(listen) as port,
        listening(cloud, P1S, hosts=hosts_of(cloud, **{"mqtt_port": port, **changes})) as listener,
    ):
        listener.until(lambda: listener.is_at(P1S, LinkStatus.error))
        assert "no valid certificate" in str(listener.link.reason)
    assert not any(received)


def test_a_cloud_that_accepts_and_says_nothing_is_given_up(cloud: SimulatedCloud) -> None:
    certificate = ThrowAwayCertificate("127.0.0.1")
    cloud.ca_file.write_text(certificate.pem)

    def gape(connection: socket.socket, number: int) -> None:
        with certificate.server_context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1000)
            secured.recv(1)

    quick = LinkTimings(connect=0.2, backoff_first=0.05, backoff_most=0.1)
    with (
        served(gape) as port,
        listening(cloud, P1S, hosts=hosts_of(cloud, mqtt_port=port), timings=quick) as listener,
    ):
        listener.until(lambda: listener.link.reason == "Bambu Lab's cloud does not answer")


def is_running() -> bool:
    return any(one.name == "cloud-1001" for one in threading.enumerate())


def test_closing_says_goodbye_and_ends_the_thread(cloud: SimulatedCloud) -> None:
    bind(cloud, (P1S, "P1S"))
    listener = Listener(cloud, P1S)
    listener.link.open()
    connected(listener, P1S)
    began = time.monotonic()
    listener.link.close()
    assert time.monotonic() - began < 0.5
    assert not is_running()
    assert listener.is_at(P1S, LinkStatus.offline)
    listener.until(lambda: cloud.connections[0].ended_at is not None)
    listener.link.close()
    listener.link.open()
    assert not is_running()


def test_a_link_that_was_never_opened_closes(cloud: SimulatedCloud) -> None:
    listener = Listener(cloud, P1S)
    listener.link.close()
    assert listener.link.status is LinkStatus.offline


@pytest.mark.parametrize("serials", [[], ["#"], ["+"], ["a/b"], [P1S, ""]])
def test_what_is_no_serial_number_makes_no_link(cloud: SimulatedCloud, serials: list[str]) -> None:
    with pytest.raises(ValueError, match="serial number"):
        Listener(cloud, *serials)


# The watch over one printer, by a clock of our own.


class Watched:
    def __init__(self, model: str = "P1S") -> None:
        self.now = 1000.0
        self.machine = Machine(P1S, model)
        self.asked: list[tuple[float, Command]] = []
        self.heard: list[Heard] = []
        self.told: list[tuple[LinkStatus, str | None]] = []
        self.watch = CloudWatch(
            P1S,
            LinkTimings(),
            clock=lambda: NOON,
            now=lambda: self.now,
            ask=lambda serial, question: self.asked.append((self.now, question)),
            on_heard=lambda serial, heard: self.heard.append(heard),
            on_link=lambda serial, status, reason: self.told.append((status, reason)),
        )

    @property
    def status(self) -> LinkStatus:
        return self.watch.view.status

    def hear(self, message: object) -> None:
        self.watch.hear(json.dumps(message).encode())

    def report(self, *, full: bool) -> None:
        self.hear(self.machine.report(full))

    def event(self, kind: str, **times: object) -> None:
        self.hear({"event": {"event": kind, **times}})

    def pass_by(self, seconds: float, *, step: float = 1.0) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += step
            self.watch.tick()

    def asks(self, question: Command) -> list[float]:
        return [at for at, one in self.asked if one == question]


@pytest.fixture
def watched() -> Watched:
    watched = Watched()
    watched.watch.begin()
    return watched


def test_parts_alone_leave_everything_unknown_and_the_whole_is_asked_for_once_more(watched: Watched) -> None:
    for _ in range(40):
        watched.pass_by(2)
        watched.hear({"print": {"command": "push_status", "msg": 1, "nozzle_temper": 20.5}})
    assert watched.asks(FULL_REPORT) == [1000.0, 1031.0]
    assert watched.status is LinkStatus.connecting
    assert "no full report" in str(watched.watch.view.reason)
    assert not any(heard.after.known for heard in watched.heard)
    watched.report(full=True)
    assert (watched.status, watched.watch.view.reason) == (LinkStatus.connected, None)


def test_a_silent_printer_is_prodded_and_then_offline_and_empty_messages_are_silence(watched: Watched) -> None:
    watched.report(full=True)
    for _ in range(45):
        watched.pass_by(2)
        watched.hear({})
    assert watched.asks(RESUME_REPORTS) == [1061.0]
    assert watched.status is LinkStatus.connected
    watched.pass_by(2)
    assert watched.status is LinkStatus.offline
    assert "LAN Only" in str(watched.watch.view.reason)
    watched.pass_by(3600, step=10.0)
    assert len(watched.asked) == 3
    watched.report(full=True)
    assert watched.status is LinkStatus.connected
    assert not watched.heard[-1].before.known, "what happened meanwhile was not seen"


def test_one_word_of_a_printer_thought_away_brings_it_back(watched: Watched) -> None:
    watched.report(full=True)
    watched.event("client.disconnected")
    watched.machine.advance(60)
    watched.hear({"print": {"command": "push_status", "msg": 1, "mc_percent": 3}})
    assert len(watched.asks(FULL_REPORT)) == 2
    assert not watched.heard[-1].after.known
    watched.report(full=True)
    assert watched.status is LinkStatus.connected


def test_a_printer_that_comes_and_goes_is_not_asked_for_everything_each_time(watched: Watched) -> None:
    watched.report(full=True)
    for _ in range(20):
        watched.event("client.disconnected")
        watched.pass_by(10)
        watched.event("client.connected")
        watched.pass_by(20)
    asked = watched.asks(FULL_REPORT)
    assert asked[0] == 1000.0
    assert asked[1] == 1010.0, "the first time it is asked at once"
    assert all(later - earlier >= 300 for earlier, later in zip(asked[1:], asked[2:], strict=False))
    watched.pass_by(300)
    watched.report(full=True)
    assert watched.status is LinkStatus.connected


def test_the_late_end_of_an_old_connection_is_not_taken_for_the_new_ones(watched: Watched) -> None:
    watched.event("client.connected", connected_at="1704989279796")
    watched.report(full=True)
    watched.event("client.disconnected", disconnected_at="1704989279414")
    assert watched.status is LinkStatus.connected
    watched.event("client.disconnected", disconnected_at="1704989290000")
    assert watched.status is LinkStatus.offline


def test_without_a_connection_the_last_state_stands_for_a_while_and_is_then_offline(watched: Watched) -> None:
    watched.report(full=True)
    watched.watch.lose("lost")
    watched.report(full=True)
    assert watched.told[-1] == (LinkStatus.connecting, "lost")
    watched.pass_by(89)
    assert watched.status is LinkStatus.connecting
    watched.pass_by(3)
    assert watched.told[-1] == (LinkStatus.offline, "lost")
    assert watched.watch.view.state.known
    watched.watch.begin()
    assert watched.status is LinkStatus.offline, "until it is heard"
    watched.report(full=True)
    assert watched.status is LinkStatus.connected
    assert watched.asks(VERSION) == watched.asks(FULL_REPORT)


def test_a_printer_that_was_away_stays_away_when_the_connection_goes(watched: Watched) -> None:
    watched.report(full=True)
    watched.event("client.disconnected")
    watched.watch.lose("lost")
    assert watched.told[-1] == (LinkStatus.offline, "lost")
