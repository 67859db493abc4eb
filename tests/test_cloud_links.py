"""The worker and Bambu Lab's cloud: printers are heard over real MQTT, shown as any other, and never told anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from app import create_app
from bambu_client import LinkTimings
from farm.gates import gate_of
from farm.leases import keep_leases, release_leases
from models import CloudAccount as Row
from models import IntentState, Printer, PrinterGate, StartIntent, db
from simulator import Machine
from simulator.cloud import CloudAccount, SimulatedCloud
from tests.clouds import settings_of
from tests.conftest import OutsideClient, settings_for
from tests.farm_builder import Farm
from tests.rows import add_intent
from worker import Worker

ACCOUNT = CloudAccount("plain@cloud.example", "cloud-password-1", "1001")
CODED = CloudAccount("coded@cloud.example", "cloud-password-1", "1002", wants="code")
P1S, H2D = "01P00A000000001", "0940A1000000001"
QUICK = LinkTimings(connect=2.0, backoff_first=0.05, backoff_most=0.1)
PATIENCE_SECONDS = 15


class MovedClock:
    """The real time, put forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def eventually(check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := check()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


@pytest.fixture
def moved() -> MovedClock:
    return MovedClock()


@pytest.fixture
def cloud(moved: MovedClock) -> Iterator[SimulatedCloud]:
    with SimulatedCloud(ACCOUNT, CODED, clock=moved) as cloud:
        yield cloud


@pytest.fixture
def live_app(database_url: str, tmp_path: Path, cloud: SimulatedCloud, moved: MovedClock) -> Iterator[Flask]:
    settings = settings_for(database_url, tmp_path / "data", STATUS_INTERVAL_SECONDS="0.05", **settings_of(cloud))
    app = create_app(settings, clock=moved)
    app.test_client_class = OutsideClient
    with app.app_context():
        db.create_all()
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@pytest.fixture
def farm(live_app: Flask) -> Farm:
    return Farm(live_app, "seller@example.com")


@contextmanager
def working(app: Flask) -> Iterator[Worker]:
    worker = Worker(app, timings=QUICK)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


@pytest.fixture
def worker(live_app: Flask) -> Iterator[Worker]:
    with working(live_app) as made:
        yield made


def bind(cloud: SimulatedCloud, serial: str = P1S, model: str = "P1S", account: CloudAccount = ACCOUNT) -> Machine:
    machine = Machine(serial, model)
    cloud.bind(account, machine)
    return machine


def log_in(farm: Farm, account: CloudAccount = ACCOUNT) -> int:
    made = farm.made("/api/cloud-accounts", {"account": account.account, "password": account.password})
    return int(made["id"])


def connect(farm: Farm, serial: str | None = P1S, **fields: Any) -> tuple[int, int]:
    """(printer's id, connection's id)"""
    printer = farm.add_printer(f"Left {serial}")["id"]
    body = {"printer_id": printer, "connection_type": "bambu_cloud", "serial_number": serial, **fields}
    return printer, farm.made("/api/printer-connections", body)["id"]


def status_of(farm: Farm, connection: int) -> dict[str, Any]:
    answer: dict[str, Any] = farm.get(f"/api/printer-connections/{connection}/status").json
    return answer


def is_at(farm: Farm, connection: int, status: str, **more: Any) -> bool:
    shown = status_of(farm, connection)
    return bool(shown["connection_status"] == status and shown | more == shown)


# Heard.


def test_the_printers_of_a_login_are_heard_over_one_connection(
    farm: Farm, cloud: SimulatedCloud, worker: Worker
) -> None:
    p1s, _ = bind(cloud), bind(cloud, H2D, "H2D")
    account = log_in(farm)
    first, second = (connect(farm, serial, cloud_account_id=account)[1] for serial in (P1S, H2D))
    for connection in (first, second):
        eventually(lambda connection=connection: is_at(farm, connection, "connected", state="idle"))
    eventually(lambda: sum(each.ended_at is None for each in cloud.connections) == 1)
    assert {each.username for each in cloud.connections} == {"u_1001"}
    p1s.press_start("vase.gcode.3mf")
    p1s.advance(1200)
    cloud.report(P1S)
    eventually(lambda: is_at(farm, first, "connected", state="printing", job_name="vase"))
    shown = status_of(farm, first)
    assert shown["progress_percent"] > 0 and len(shown["materials"]) == 4
    assert (shown["can_control"], shown["current_print_id"], shown["stale"]) == (False, None, False)
    assert status_of(farm, second)["state"] == "idle"
    cloud.switch(P1S, on=False)
    eventually(lambda: is_at(farm, first, "offline", state="unknown"))
    assert all("print" not in message for _, message in cloud.asked), "nothing is ever ordered"


def test_a_token_of_a_connection_listens_too(farm: Farm, cloud: SimulatedCloud, worker: Worker) -> None:
    bind(cloud)
    _, connection = connect(farm, cloud_token=cloud.logins.issue(ACCOUNT))
    eventually(lambda: is_at(farm, connection, "connected", state="idle"))
    made = farm.get(f"/api/printer-connections/{connection}").json
    assert (made["has_cloud_token"], made["cloud_account_id"]) == (True, None)


def test_a_dead_token_of_a_connection_is_said_and_not_asked_again(
    farm: Farm, cloud: SimulatedCloud, worker: Worker
) -> None:
    bind(cloud)
    _, connection = connect(farm, cloud_token="AQAdead")
    eventually(lambda: is_at(farm, connection, "unauthorized"))
    assert "log in again" in status_of(farm, connection)["reason"]
    asked = len(cloud.requests)
    farm.put(f"/api/printer-connections/{connection}", {"cloud_token": cloud.logins.issue(ACCOUNT)})
    eventually(lambda: is_at(farm, connection, "connected", state="idle"))
    assert len(cloud.requests) == asked + 1
    assert cloud.requests[-1].path.endswith("/preference")


def test_a_cloud_that_shows_a_page_is_asked_again_by_and_by(
    live_app: Flask, farm: Farm, cloud: SimulatedCloud, worker: Worker, moved: MovedClock
) -> None:
    bind(cloud)
    cloud.challenge_next(times=2)
    _, connection = connect(farm, cloud_token=cloud.logins.issue(ACCOUNT))
    eventually(lambda: is_at(farm, connection, "offline", stale=True) and cloud.requests)
    eventually(lambda: "page meant for browsers" in status_of(farm, connection)["reason"])
    asked = len(cloud.requests)
    until = lease_of(live_app)
    moved.ahead = timedelta(seconds=40)
    # Put forward in two steps: past the end of its lease, the printer would be taken up anew for that alone.
    eventually(lambda: lease_of(live_app) > until)
    assert len(cloud.requests) == asked
    moved.ahead = timedelta(seconds=80)
    eventually(lambda: is_at(farm, connection, "connected", state="idle"))


def lease_of(app: Flask) -> datetime:
    with app.app_context():
        return db.session.execute(sa.select(PrinterGate.lease_until)).scalar_one() or datetime.min.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("serial", "uses_account", "status", "reason"),
    [
        (None, True, "error", "a serial number and a login to Bambu's cloud are both needed"),
        (P1S, False, "error", "a serial number and a login to Bambu's cloud are both needed"),
        (H2D, True, "error", "the cloud does not show this printer to this account: is it bound to another?"),
    ],
)
def test_what_is_missing_or_not_ours_is_said(
    farm: Farm,
    cloud: SimulatedCloud,
    worker: Worker,
    serial: str | None,
    uses_account: bool,
    status: str,
    reason: str,
) -> None:
    bind(cloud)
    account = log_in(farm) if uses_account else None
    _, connection = connect(farm, serial, cloud_account_id=account)
    eventually(lambda: is_at(farm, connection, status, reason=reason))


# The login behind it.


def test_a_refused_login_is_the_accounts_and_a_new_one_is_taken_up(
    farm: Farm, cloud: SimulatedCloud, worker: Worker
) -> None:
    bind(cloud)
    account = log_in(farm)
    _, connection = connect(farm, cloud_account_id=account)
    eventually(lambda: is_at(farm, connection, "connected"))
    cloud.logins.revoke()
    cloud.drop_connections()
    eventually(lambda: farm.get(f"/api/cloud-accounts/{account}").json["state"] == "login_needed")
    eventually(lambda: "not logged in to Bambu's cloud" in (status_of(farm, connection)["reason"] or ""))
    assert is_at(farm, connection, "unauthorized")
    refused = len(cloud.connections)
    assert log_in(farm) == account
    eventually(lambda: is_at(farm, connection, "connected", state="idle"))
    assert [each.verdict for each in cloud.connections[refused:]] == ["accepted"]


def test_while_a_code_is_awaited_nothing_is_heard(farm: Farm, cloud: SimulatedCloud, worker: Worker) -> None:
    bind(cloud, account=CODED)
    account = log_in(farm, CODED)
    _, connection = connect(farm, cloud_account_id=account)
    eventually(lambda: is_at(farm, connection, "unauthorized"))
    assert "a code was sent to you" in status_of(farm, connection)["reason"]
    code = cloud.logins.codes[CODED.account]
    assert farm.post(f"/api/cloud-accounts/{account}/code", {"code": code}).status_code == 200
    eventually(lambda: is_at(farm, connection, "connected", state="idle"))


def test_a_printer_that_is_off_does_not_keep_the_complaint_about_an_older_login(
    farm: Farm, cloud: SimulatedCloud, worker: Worker
) -> None:
    bind(cloud, account=CODED)
    cloud.switch(P1S, on=False)
    account = log_in(farm, CODED)
    _, connection = connect(farm, cloud_account_id=account)
    eventually(lambda: is_at(farm, connection, "unauthorized"))
    farm.post(f"/api/cloud-accounts/{account}/code", {"code": cloud.logins.codes[CODED.account]})
    eventually(lambda: is_at(farm, connection, "connecting"))


def test_a_login_that_ends_soon_is_extended_once_by_two_workers(
    live_app: Flask, farm: Farm, cloud: SimulatedCloud, moved: MovedClock
) -> None:
    bind(cloud)
    account = log_in(farm)
    connect(farm, cloud_account_id=account)
    before = farm.get(f"/api/cloud-accounts/{account}").json["token_expires_at"]
    moved.ahead = timedelta(days=84)

    def extended() -> bool:
        with live_app.app_context():
            row = db.session.get_one(Row, account)
            return row.token_expires_at.isoformat() > before and row.version == 2

    with working(live_app), working(live_app):
        eventually(extended)
        eventually(lambda: any(each.verdict == "accepted" for each in cloud.connections))
        time.sleep(0.3)
    assert [each.path for each in cloud.requests].count("/v1/user-service/user/refreshtoken") == 1
    assert extended()


def test_a_refused_extension_is_not_asked_for_again_at_once_and_goes_on_listening(
    live_app: Flask, farm: Farm, cloud: SimulatedCloud, moved: MovedClock
) -> None:
    bind(cloud)
    account = log_in(farm)
    cloud.logins.refresh_works = False
    moved.ahead = timedelta(days=84)

    def reason() -> Any:
        with live_app.app_context():
            return db.session.get_one(Row, account).state_reason

    with working(live_app):
        eventually(lambda: (reason() or "").startswith("could not be extended: log in again before "))
        moved.ahead += timedelta(minutes=5)
        time.sleep(1.3)
        assert [each.path for each in cloud.requests].count("/v1/user-service/user/refreshtoken") == 1
        moved.ahead += timedelta(hours=6)
        eventually(lambda: [each.path for each in cloud.requests].count("/v1/user-service/user/refreshtoken") == 2)
    with live_app.app_context():
        assert db.session.get_one(Row, account).state == "connected"


def test_a_printer_that_another_worker_holds_is_left_to_it(
    live_app: Flask, farm: Farm, cloud: SimulatedCloud, moved: MovedClock
) -> None:
    bind(cloud)
    _, connection = connect(farm, cloud_account_id=log_in(farm))
    with live_app.app_context():
        assert keep_leases("another", [P1S], now=moved())
    with working(live_app):
        time.sleep(1.5)
        assert cloud.connections == []
        with live_app.app_context():
            release_leases("another")
        moved.ahead = timedelta(seconds=11)
        eventually(lambda: is_at(farm, connection, "connected"))


def test_another_printer_of_the_login_makes_the_connection_anew(
    farm: Farm, cloud: SimulatedCloud, worker: Worker
) -> None:
    bind(cloud), bind(cloud, H2D, "H2D")
    account = log_in(farm)
    printer, first = connect(farm, cloud_account_id=account)
    eventually(lambda: is_at(farm, first, "connected"))
    _, second = connect(farm, H2D, cloud_account_id=account)
    eventually(lambda: is_at(farm, second, "connected") and is_at(farm, first, "connected"))
    eventually(lambda: sum(each.ended_at is None for each in cloud.connections) == 1)
    assert farm.delete(f"/api/printers/{printer}").status_code == 200
    eventually(lambda: len(cloud.connections) == 3)
    eventually(lambda: is_at(farm, second, "connected"))


# Only watched.


@pytest.fixture
def watched(farm: Farm, cloud: SimulatedCloud, worker: Worker) -> tuple[Machine, int, int]:
    """(the machine, its printer's id, its connection's id), heard."""
    machine = bind(cloud)
    printer, connection = connect(farm, cloud_account_id=log_in(farm))
    eventually(lambda: is_at(farm, connection, "connected", state="idle"))
    return machine, printer, connection


ONLY_WATCHED = "connected through Bambu's cloud, which only lets us watch"


def test_no_print_is_started_and_it_says_why(farm: Farm, watched: tuple[Machine, int, int]) -> None:
    _, printer, _ = watched
    farm.add_material(printer)
    assert farm.post(f"/api/printers/{printer}/plate-cleared", {"print_id": None}).status_code == 200
    made = farm.add_print(printer, print_file_id=farm.add_file()["id"], material_type="PLA")
    released = farm.post(f"/api/bambu/scheduled-prints/{made['id']}/start").json
    assert (released["status"], released["waiting_reason"]) == (
        "scheduled",
        f"{ONLY_WATCHED}: start it there and record it here",
    )
    time.sleep(0.6)
    with farm.database() as session:
        assert session.execute(sa.select(sa.func.count()).select_from(StartIntent)).scalar_one() == 0


def test_nothing_is_told_to_it(farm: Farm, cloud: SimulatedCloud, watched: tuple[Machine, int, int]) -> None:
    machine, printer, connection = watched
    made = farm.add_print(printer)
    machine.press_start("vase.gcode.3mf")
    machine.advance(1200)
    cloud.report(P1S)
    eventually(lambda: is_at(farm, connection, "connected", state="printing"))
    assert farm.move(made["id"], "started")["status"] == "started", "a person records what they began there"
    paths = [f"/api/bambu/scheduled-prints/{made['id']}/{act}" for act in ("pause", "resume", "stop")]
    for path in (*paths, f"/api/printer-connections/{connection}/test"):
        answer = farm.post(path)
        assert (answer.status_code, answer.json["code"]) == (409, "read_only"), path
        assert ONLY_WATCHED in answer.json["error"]
    kept = farm.delete(f"/api/bambu/scheduled-prints/{made['id']}")
    assert kept.status_code == 502 and ONLY_WATCHED in kept.json["error"]
    assert all("print" not in message for _, message in cloud.asked)
    assert farm.move(made["id"], "completed")["status"] == "completed"


def test_a_foreign_print_is_shown_and_moves_none_of_ours(
    farm: Farm, cloud: SimulatedCloud, watched: tuple[Machine, int, int]
) -> None:
    """Even where the cloud numbers it as we once numbered a start of ours that is over."""
    machine, printer, connection = watched
    ended, waiting = farm.add_print(printer, "Ended"), farm.add_print(printer, "Waiting")
    farm.move(ended["id"], "started", "completed")
    intent = add_intent(farm, ended["id"], IntentState.confirmed)
    with farm.database() as session:
        row = session.get_one(StartIntent, intent)
        row.published_at = row.ended_at = row.claimed_at
        submission = str(row.submission_id)
        gate_of(session.get_one(Printer, printer)).plate_state = "clear"
        session.commit()
    machine.press_start("lamp.gcode.3mf")
    machine.ids["subtask_id"] = submission
    machine.advance(1200)
    cloud.report(P1S, full=True)
    shown = eventually(lambda: is_at(farm, connection, "connected", state="printing") and status_of(farm, connection))
    assert (shown["job_name"], shown["current_print_id"]) == ("lamp", None)
    assert farm.get(f"/api/printers/{printer}").json["plate_state"] == "occupied"
    for _ in range(2000):
        machine.advance(60)
        if machine.state == "FINISH":
            break
    cloud.report(P1S, full=True)
    eventually(lambda: is_at(farm, connection, "connected", state="finished"))
    kept = [farm.get_print(each["id"]) for each in (ended, waiting)]
    assert [each and each["status"] for each in kept] == ["completed", "queued"]
