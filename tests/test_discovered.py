"""Printers that announce themselves: heard over real UDP by the worker, written down, and shown where they may be."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from bambu.models import MODELS
from bambu_discovery import ConnectMode, FoundPrinter
from farm.discovered import MOST_ROWS, forget_silent, note_found
from lookout import Lookout
from models import DiscoveredPrinter, db
from simulator import Announcer, SimulatedPrinter
from simulator.ssdp import SERVICE
from tests.apps import another_app
from tests.conftest import BASE_TIME, Clock, empty
from tests.farm_builder import Farm
from tests.production_log import production_log
from tests.rows import LAN
from worker import Worker

PATH = "/api/printers/discovered"
SERIAL = "01P00A000000001"
PATIENCE_SECONDS = 30
HEARD_LATELY = timedelta(seconds=35)


def eventually(check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


class Wall:
    """A clock that goes on by itself, as the worker's thread needs it, and that a test can turn."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def forward(self, **span: float) -> None:
        self._ahead += timedelta(**span)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 0))
        return int(taken.getsockname()[1])


def announced(serial: str = SERIAL, **changes: Any) -> FoundPrinter:
    """What a worker heard of a printer at BASE_TIME."""
    known: dict[str, Any] = {
        "host": "192.168.1.20",
        "model": "P1S",
        "name": "Left",
        "connect_mode": ConnectMode.lan,
        "is_bound": False,
        "firmware": "01.08.00.00",
        "signal_dbm": -44,
        "heard_at": BASE_TIME,
        "forget_at": BASE_TIME + timedelta(minutes=30),
    }
    return FoundPrinter(serial=serial, **(known | changes))


def write(app: Flask, *found: FoundPrinter, now: datetime = BASE_TIME) -> None:
    with app.app_context():
        note_found(found, now=now)
        db.session.commit()


def rows(app: Flask) -> dict[str, DiscoveredPrinter]:
    with app.app_context():
        return {each.serial_number: each for each in db.session.execute(sa.select(DiscoveredPrinter)).scalars()}


def seen(farm: Farm) -> list[dict[str, Any]]:
    answer = farm.get(PATH)
    assert answer.status_code == 200, answer.text
    shown: list[dict[str, Any]] = answer.json["printers"]
    assert answer.json["total"] == len(shown)
    return shown


def serials(farm: Farm) -> list[str]:
    return [each["serial_number"] for each in seen(farm)]


def datagram(serial: str, name: str = "Left", max_age: int = 1800) -> bytes:
    lines = [
        "NOTIFY * HTTP/1.1",
        "Location: 127.0.0.1",
        f"NT: {SERVICE}",
        f"USN: {serial}",
        f"Cache-Control: max-age={max_age}",
        f"DevName.bambu.com: {name}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.fixture
def printer() -> Iterator[SimulatedPrinter]:
    with SimulatedPrinter(SERIAL, "12345678", model="P1S", name="Küche") as made:
        yield made


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def listening_app(app: Flask, session_database_url: str, tmp_path: Path, clock: Clock, port: int) -> Iterator[Flask]:
    with another_app(session_database_url, tmp_path, clock, DISCOVERY_PORT=str(port)) as made:
        yield made


@pytest.fixture
def lookout(listening_app: Flask) -> Iterator[Lookout]:
    made = Lookout(listening_app)
    yield made
    made.close()


@pytest.fixture
def mouth(port: int) -> Iterator[Callable[[bytes], None]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaking:
        yield lambda data: speaking.sendto(data, ("127.0.0.1", port)) and None


def looks_until(lookout: Lookout, check: Callable[[], Any]) -> Any:
    """Whatever comes over the network takes a moment to arrive."""

    def look() -> Any:
        lookout.look()
        return check()

    return eventually(look)


# The whole way, with the worker.


@pytest.fixture
def wall_clock() -> Wall:
    return Wall()


@pytest.fixture
def live_app(app: Flask, session_database_url: str, tmp_path: Path, wall_clock: Wall, port: int) -> Iterator[Flask]:
    turning: Any = wall_clock
    with another_app(
        session_database_url, tmp_path, turning, DISCOVERY_PORT=str(port), ACCESS_TOKEN_MINUTES="600"
    ) as made:
        yield made


@contextlib.contextmanager
def running(app: Flask) -> Iterator[Worker]:
    worker = Worker(app)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def test_a_printer_that_announces_itself_is_found_and_forgotten_when_it_is_silent(
    live_app: Flask, wall_clock: Wall, printer: SimulatedPrinter, port: int
) -> None:
    farm = Farm(live_app, "seller@example.com")
    with running(live_app):
        with Announcer(printer, to=("127.0.0.1", port), every_seconds=0.05):
            (found,) = eventually(lambda: seen(farm))
            assert datetime.fromisoformat(found.pop("heard_at")) > wall_clock() - HEARD_LATELY
            assert found == {
                "serial_number": SERIAL,
                "host": "127.0.0.1",
                "model": "P1S",
                "name": "Küche",
                "connect_mode": "lan",
                "is_bound": False,
                "firmware": printer.machine.model.firmware,
                "signal_dbm": -44,
                "printer_id": None,
                "hint": None,
            }
            # It says nothing new for longer than it is remembered without a word.
            for minutes in (2, 20, 20):
                wall_clock.forward(minutes=minutes)
                eventually(lambda: is_confirmed(live_app, wall_clock))
            assert serials(farm) == [SERIAL]
            printer.name = "Keller"
            eventually(lambda: seen(farm)[0]["name"] == "Keller")
        assert serials(farm) == [SERIAL]
        wall_clock.forward(minutes=31)
        eventually(lambda: rows(live_app) == {})
    assert not [thread for thread in threading.enumerate() if thread.name == "printer-discovery"]


def is_confirmed(app: Flask, wall_clock: Wall) -> bool:
    """A second later. The first round after the clock was turned may have come before the printer spoke again."""
    wall_clock.forward(seconds=1)
    return rows(app)[SERIAL].heard_at > wall_clock() - HEARD_LATELY


def test_without_the_port_the_worker_goes_on_and_tries_again_later(
    live_app: Flask, wall_clock: Wall, printer: SimulatedPrinter, port: int
) -> None:
    with production_log() as logged, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alone:
        alone.bind(("", port))
        with running(live_app) as worker:
            eventually(lambda: "discovery_off" in logged.getvalue())
            alone.close()
            wall_clock.forward(seconds=61)
            eventually(lambda: "discovery_on" in logged.getvalue())
            with Announcer(printer, to=("127.0.0.1", port), every_seconds=0.05):
                eventually(lambda: SERIAL in rows(live_app))
            assert worker.is_running
    assert "worker_step_failed" not in logged.getvalue()


def test_a_port_that_cannot_be_had_is_told_once_and_tried_every_minute(
    lookout: Lookout, port: int, clock: Clock
) -> None:
    with production_log() as logged, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alone:
        alone.bind(("", port))
        for _ in range(3):
            lookout.look()
            clock.forward(seconds=60)
        alone.close()
        assert logged.getvalue().count("discovery_off") == 1
        lookout.look()
        assert logged.getvalue().count("discovery_on") == 1


def test_a_port_is_not_asked_for_at_every_step(lookout: Lookout, port: int, clock: Clock) -> None:
    with production_log() as logged:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alone:
            alone.bind(("", port))
            lookout.look()
        clock.forward(seconds=59)
        lookout.look()
        assert "discovery_on" not in logged.getvalue()
        clock.forward(seconds=1)
        lookout.look()
        assert "discovery_on" in logged.getvalue()


def test_switched_off_nobody_listens(app: Flask) -> None:
    lookout = Lookout(app)
    lookout.look()
    assert app.extensions["parts"].settings.discovery_port == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "printer-discovery"]
    lookout.close()


# What the worker writes down.


@pytest.fixture
def hear(listening_app: Flask, lookout: Lookout, mouth: Callable[[bytes], None], clock: Clock) -> Callable[..., Any]:
    """Let the printer speak now. Answers its row as it is once a newcomer, who spoke after it, is written down."""
    newcomers = (f"NEWCOMER{number:03}" for number in range(1000))

    def speak(name: str = "Left") -> DiscoveredPrinter | None:
        newcomer = next(newcomers)
        mouth(datagram(SERIAL, name))
        mouth(datagram(newcomer))
        looks_until(lookout, lambda: newcomer in rows(listening_app))
        return rows(listening_app).get(SERIAL)

    lookout.look()
    return speak


def test_a_printer_that_says_nothing_new_is_confirmed_every_30_seconds_and_no_more_often(
    listening_app: Flask, lookout: Lookout, hear: Callable[..., Any], clock: Clock
) -> None:
    assert hear().heard_at == BASE_TIME
    for seconds in (10, 19.9):
        last_heard_at = clock.forward(seconds=seconds)
        assert hear().heard_at == BASE_TIME
    clock.forward(seconds=0.1)
    lookout.look()
    confirmed = rows(listening_app)[SERIAL]
    assert (confirmed.heard_at, confirmed.forget_at) == (last_heard_at, last_heard_at + timedelta(minutes=30))
    changed_at = clock.forward(seconds=6)
    changed = hear("Right")
    assert (changed.name, changed.heard_at) == ("Right", changed_at)


def test_who_stays_silent_is_not_confirmed(
    listening_app: Flask, lookout: Lookout, hear: Callable[..., Any], clock: Clock
) -> None:
    hear()
    clock.forward(minutes=29)
    lookout.look()
    assert rows(listening_app)[SERIAL].forget_at == BASE_TIME + timedelta(minutes=30)
    clock.forward(minutes=1)
    lookout.look()
    assert rows(listening_app) == {}


def test_a_row_that_is_gone_comes_back_only_with_a_word_of_the_printer(
    app: Flask, listening_app: Flask, lookout: Lookout, hear: Callable[..., Any], clock: Clock
) -> None:
    hear()
    empty(app)
    clock.forward(seconds=30)
    lookout.look()
    assert rows(listening_app) == {}
    hear()
    clock.forward(seconds=30)
    lookout.look()
    assert SERIAL in rows(listening_app)


def test_a_clock_that_was_set_back_stops_nothing(
    listening_app: Flask, lookout: Lookout, hear: Callable[..., Any], clock: Clock
) -> None:
    hear()
    clock.forward(hours=-2)
    hear()
    heard_at = clock.forward(seconds=29)
    hear()
    clock.forward(seconds=1)
    lookout.look()
    assert rows(listening_app)[SERIAL].heard_at == heard_at


def test_what_could_not_be_written_is_written_in_the_next_round(
    listening_app: Flask, lookout: Lookout, mouth: Callable[[bytes], None], clock: Clock
) -> None:
    lookout.look()
    rename(listening_app, "discovered_printers", "away")
    try:
        mouth(datagram(SERIAL))

        def fails() -> bool:
            try:
                lookout.look()
            except sa.exc.DBAPIError:
                return True
            return False

        eventually(fails)
    finally:
        rename(listening_app, "away", "discovered_printers")
    clock.forward(seconds=30)
    looks_until(lookout, lambda: SERIAL in rows(listening_app))


def rename(app: Flask, table: str, other: str) -> None:
    with app.app_context():
        db.session.execute(sa.text(f"ALTER TABLE {table} RENAME TO {other}"))
        db.session.commit()


def test_a_flood_is_bounded_and_pushes_out_nobody_who_is_known(
    listening_app: Flask, lookout: Lookout, mouth: Callable[[bytes], None], clock: Clock
) -> None:
    lookout.look()
    mouth(datagram(SERIAL))
    looks_until(lookout, lambda: SERIAL in rows(listening_app))
    for wave in range(6):
        clock.forward(seconds=16)
        for number in range(700):
            mouth(datagram(f"FLOOD{wave}{number:06}", max_age=0 if wave % 2 else 1800))
            if number % 100 == 0:
                mouth(datagram(SERIAL))
                lookout.look()
    assert 100 < len(rows(listening_app)) <= MOST_ROWS

    def is_confirmed_later() -> bool:
        clock.forward(seconds=1)
        mouth(datagram(SERIAL))
        lookout.look()
        return rows(listening_app)[SERIAL].heard_at > BASE_TIME + timedelta(seconds=100)

    eventually(is_confirmed_later)


def test_of_too_many_the_longest_silent_go(app: Flask) -> None:
    found = [announced(f"SERIAL{second:03}", heard_at=BASE_TIME + timedelta(seconds=second)) for second in range(20)]
    write(app, *found[::-1])
    with app.app_context():
        forget_silent(now=BASE_TIME, most=5)
        db.session.commit()
    assert set(rows(app)) == {each.serial for each in found[-5:]}


def test_of_two_workers_that_hear_the_same_printer_the_later_word_stands(app: Flask) -> None:
    later = BASE_TIME + timedelta(seconds=20)
    write(app, announced(host="192.168.1.21", heard_at=later), now=later)
    write(app, announced(host="192.168.1.20", heard_at=BASE_TIME), now=later)
    assert (rows(app)[SERIAL].host, rows(app)[SERIAL].heard_at) == ("192.168.1.21", later)
    # But what was written before the clock was set back does not stand until that time comes again.
    write(app, announced(host="192.168.1.22", heard_at=BASE_TIME), now=BASE_TIME)
    assert (rows(app)[SERIAL].host, rows(app)[SERIAL].heard_at) == ("192.168.1.22", BASE_TIME)


def test_workers_that_write_and_forget_at_once_do_not_wait_for_each_other_for_ever(app: Flask) -> None:
    """Two that hear the same printers in another order, and one that hears others; each deletes what went silent, and
    some of that speaks again just then."""
    found = [announced(f"SERIAL{number:03}") for number in range(60)]
    faults: list[BaseException] = []

    def work(heard: list[FoundPrinter]) -> None:
        try:
            for _ in range(15):
                write(app, *(replace(each, forget_at=BASE_TIME) for each in heard))
                with app.app_context():
                    note_found(heard, now=BASE_TIME)
                    forget_silent(now=BASE_TIME)
                    db.session.commit()
        except sa.exc.SQLAlchemyError as error:
            faults.append(error)

    workers = [threading.Thread(target=work, args=(each,)) for each in (found[:30], found[29::-1], found[30:])]
    for each in workers:
        each.start()
    for each in workers:
        each.join(60)
    assert faults == []
    assert set(rows(app)) == {each.serial for each in found}


def test_two_running_workers_share_one_row(
    live_app: Flask, session_database_url: str, tmp_path: Path, wall_clock: Wall, printer: SimulatedPrinter, port: int
) -> None:
    turning: Any = wall_clock
    other_port = free_port()
    with (
        another_app(session_database_url, tmp_path / "other", turning, DISCOVERY_PORT=str(other_port)) as other,
        production_log() as logged,
        running(live_app),
        running(other),
        Announcer(printer, to=("127.0.0.1", port), every_seconds=0.05),
        Announcer(printer, to=("127.0.0.1", other_port), every_seconds=0.05),
    ):
        eventually(lambda: SERIAL in rows(live_app))
        eventually(lambda: logged.getvalue().count("discovery_on") == 2)
        wall_clock.forward(minutes=20)
        eventually(lambda: is_confirmed(live_app, wall_clock))
        assert set(rows(live_app)) == {SERIAL}
    assert "worker_step_failed" not in logged.getvalue()


def test_hostile_words_are_cleaned_and_the_longest_fit_their_columns(
    listening_app: Flask, lookout: Lookout, mouth: Callable[[bytes], None]
) -> None:
    lookout.look()
    mouth(b"\xff\xfe\0" * 400)
    mouth(datagram("ABCDEFGH", name="a\x00b\x1b[31m\u202e<script>'; DROP TABLE users; --"))
    mouth(datagram("Z" * 20, name="\U0001f5a8" * 400))
    looks_until(lookout, lambda: {"ABCDEFGH", "Z" * 20} <= rows(listening_app).keys())
    farm = Farm(listening_app, "hostile@example.com")
    named = {each["serial_number"]: each["name"] for each in seen(farm)}
    assert named == {"ABCDEFGH": "ab[31m<script>'; DROP TABLE users; --", "Z" * 20: "\U0001f5a8" * 64}
    longest = announced(
        "Z" * 20,
        host="255.255.255.254",
        model=max((each.name for each in MODELS), key=len),
        connect_mode=ConnectMode.cloud,
        firmware="999.999.999.999.999",
        signal_dbm=-999,
    )
    write(listening_app, longest)
    kept = rows(listening_app)["Z" * 20]
    assert (kept.firmware, kept.connect_mode, kept.signal_dbm) == ("999.999.999.999.999", "cloud", -999)
    # SQLite does not look at lengths: the columns say what PostgreSQL would refuse.
    for name in ("host", "model", "firmware", "connect_mode", "name", "serial_number"):
        assert len(getattr(kept, name)) <= DiscoveredPrinter.__table__.c[name].type.length


# Who sees what.


def test_nothing_found_is_an_empty_list(farm: Farm) -> None:
    assert farm.get(PATH).json == {"printers": [], "total": 0}


def test_the_list_needs_a_token_and_is_no_printers_id(app: Flask, farm: Farm) -> None:
    assert app.test_client().get(PATH).status_code == 401
    own = farm.add_printer()
    assert farm.get(f"/api/printers/{own['id']}").json["name"] == "Left"
    assert farm.get(f"{PATH}/1").status_code == 404
    assert farm.delete(PATH).status_code == 405


def test_what_a_printer_did_not_say_is_null(app: Flask, farm: Farm) -> None:
    nothing = dict.fromkeys(("model", "connect_mode", "is_bound", "firmware", "signal_dbm"))
    write(app, announced(**nothing))
    (shown,) = seen(farm)
    assert {name for name, value in shown.items() if value is None} == {*nothing, "printer_id", "hint"}
    assert shown["heard_at"] == "2026-11-21T09:00:00Z"


def test_silent_printers_are_not_shown_even_before_they_are_deleted(app: Flask, farm: Farm, clock: Clock) -> None:
    write(app, announced())
    clock.forward(minutes=10)
    assert serials(farm) == [SERIAL]
    # Nothing deletes it here: no worker runs.
    write(app, announced("01P00A000000002", forget_at=clock.now), announced("01P00A000000003", forget_at=clock.now))
    assert serials(farm) == [SERIAL]
    assert len(rows(app)) == 3


def test_pages_go_by_name(app: Flask, farm: Farm) -> None:
    names = ["left", "Right", "Ahead", "left"]
    write(app, *(announced(f"01P00A00000000{number}", name=name) for number, name in enumerate(names)))
    shown = [(each["name"], each["serial_number"][-1]) for each in seen(farm)]
    assert shown == [("Ahead", "2"), ("left", "0"), ("left", "3"), ("Right", "1")]
    answer = farm.get(PATH, query_string={"limit": 1, "offset": 2}).json
    assert ([each["serial_number"][-1] for each in answer["printers"]], answer["total"]) == (["3"], 4)


def test_a_printer_of_another_account_is_hidden(app: Flask, farm: Farm, stranger: Farm) -> None:
    write(app, announced(), announced("01P00A000000002", name="Right"))
    assert serials(farm) == serials(stranger) == [SERIAL, "01P00A000000002"]
    theirs = stranger.add_printer(**LAN)
    assert serials(farm) == ["01P00A000000002"]
    assert farm.get(PATH).json["total"] == 1
    assert [each["printer_id"] for each in seen(stranger)] == [theirs["id"], None]
    assert stranger.delete(f"/api/printers/{theirs['id']}").status_code == 200
    assert serials(farm) == [SERIAL, "01P00A000000002"]


def test_ones_own_printer_is_shown_even_if_another_account_entered_it_too(
    app: Flask, farm: Farm, stranger: Farm
) -> None:
    """Else an account could find out what others have connected, and hide it from them."""
    write(app, announced())
    own = farm.add_printer(**LAN)
    before = farm.get(PATH).get_data()
    stranger.add_printer(**LAN)
    assert farm.get(PATH).get_data() == before
    assert [each["printer_id"] for each in seen(farm)] == [own["id"]]


def test_the_number_and_the_hint_are_of_ones_own_connection_whoever_was_first(
    app: Flask, farm: Farm, stranger: Farm
) -> None:
    write(app, announced())
    theirs = stranger.add_printer(**{**LAN, "host": "192.168.9.99"})
    assert serials(farm) == []
    own = farm.add_printer(**LAN)
    (shown,) = seen(farm)
    assert (shown["printer_id"], shown["hint"]) == (own["id"], None)
    (shown,) = seen(stranger)
    assert shown["printer_id"] == theirs["id"] and "192.168.9.99" in shown["hint"]


def test_a_connection_without_a_serial_number_hides_nothing(app: Flask, farm: Farm, stranger: Farm) -> None:
    write(app, announced())
    cloud = stranger.add_printer("Cloud")
    stranger.made(
        "/api/printer-connections",
        {"printer_id": cloud["id"], "connection_type": "bambu_cloud", "cloud_token": "t" * 40},
    )
    assert serials(farm) == [SERIAL]


@pytest.mark.parametrize("host", [LAN["host"], "::ffff:192.168.1.20", "left.farm.example"])
def test_an_address_that_is_the_same_or_a_name_needs_no_hint(app: Flask, farm: Farm, host: str) -> None:
    write(app, announced())
    farm.add_printer(**{**LAN, "host": host})
    assert [each["hint"] for each in seen(farm)] == [None]


def test_another_address_is_a_hint_and_changes_nothing(app: Flask, farm: Farm) -> None:
    own = farm.add_printer(**LAN)
    connection = farm.get(f"/api/printer-connections/{own['connection_id']}").json
    write(app, announced(host="192.168.1.77"))
    (shown,) = seen(farm)
    assert (shown["host"], shown["printer_id"]) == ("192.168.1.77", own["id"])
    assert re.findall(r"192\.168\.1\.\d+", shown["hint"]) == ["192.168.1.77", "192.168.1.20"]
    assert farm.get(f"/api/printer-connections/{own['connection_id']}").json == connection


def test_the_worker_does_not_follow_an_announced_address(
    app: Flask, listening_app: Flask, lookout: Lookout, mouth: Callable[[bytes], None], farm: Farm
) -> None:
    own = farm.add_printer(**LAN)
    connection = farm.get(f"/api/printer-connections/{own['connection_id']}").json
    lookout.look()
    mouth(datagram(SERIAL))
    looks_until(lookout, lambda: SERIAL in rows(app))
    assert "127.0.0.1" in seen(farm)[0]["hint"]
    assert farm.get(f"/api/printer-connections/{own['connection_id']}").json == connection


def test_a_connection_that_lost_its_address_is_told_the_announced_one(app: Flask, farm: Farm) -> None:
    write(app, announced())
    own = farm.add_printer(**LAN)
    assert farm.put(f"/api/printer-connections/{own['connection_id']}", {"host": None}).status_code == 200
    assert "192.168.1.20" in seen(farm)[0]["hint"]


def test_a_printer_set_up_for_the_cloud_says_what_it_needs(app: Flask, farm: Farm) -> None:
    write(app, announced(connect_mode=ConnectMode.cloud))
    assert "Developer Mode" in seen(farm)[0]["hint"]
    farm.add_printer(**LAN)
    assert seen(farm)[0]["hint"] is None


def test_of_two_connections_of_one_printer_the_first_is_named(app: Flask, farm: Farm) -> None:
    write(app, announced())
    first = farm.add_printer("First", **LAN)
    farm.add_printer("Second", **LAN)
    assert [each["printer_id"] for each in seen(farm)] == [first["id"]]
