"""How printers are reached, and the status they report, through the API."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from models import ConnectionStatus, PrinterConnection, db
from tests.apps import another_app
from tests.conftest import Clock
from tests.farm_builder import Farm
from tests.rows import LAN, hear

PATH = "/api/printer-connections"
MISSING_ID = 2_000_000_000
FIELDS = {
    *("id", "printer_id", "connection_type", "host", "port", "ftps_port", "serial_number", "has_access_code"),
    *("cloud_account_id", "has_cloud_token", "connection_status", "status_reason", "heard_at"),
    *("created_at", "updated_at"),
}
STATUS_FIELDS = {
    *("printer_id", "printer_name", "connection_type", "connection_status", "reason", "state", "progress_percent"),
    *("remaining_minutes", "layers_printed", "total_layers", "nozzle_temp", "nozzle_target", "bed_temp", "bed_target"),
    *("chamber_temp", "errors", "job_name", "current_print_id", "materials", "can_control", "last_updated", "stale"),
}
UNKNOWN_YET = STATUS_FIELDS - {
    *("printer_id", "printer_name", "connection_type", "connection_status", "reason", "state", "stale")
}


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer()["id"])


@pytest.fixture
def connection(farm: Farm, printer_id: int) -> dict[str, Any]:
    return farm.made(PATH, {"printer_id": printer_id, **LAN})


@pytest.fixture
def strict_farm(app: Flask, strict_app: Flask) -> Farm:
    """A farm where only real printers may be added, as in production."""
    return Farm(strict_app, "strict@example.com")


@pytest.fixture(scope="module")
def strict_app(
    session_database_url: str, tmp_path_factory: pytest.TempPathFactory, session_clock: Clock
) -> Iterator[Flask]:
    folder = tmp_path_factory.mktemp("strict")
    with another_app(session_database_url, folder, session_clock, ALLOW_LOOPBACK_PRINTERS="0") as made:
        yield made


# What a connection is


def test_a_connection_has_exactly_the_fields_of_the_contract(farm: Farm, connection: dict[str, Any]) -> None:
    assert set(connection) == FIELDS
    assert farm.get(PATH).json == {"connections": [connection], "total": 1}
    assert farm.get(f"{PATH}/{connection['id']}").json == connection


def test_a_connection_takes_the_usual_ports(connection: dict[str, Any]) -> None:
    assert (connection["port"], connection["ftps_port"], connection["connection_type"]) == (8883, 990, "bambu_lan")


def test_a_connection_needs_its_printer_and_type_and_in_the_lan_all_that_reaches_it(
    farm: Farm, printer_id: int
) -> None:
    answer = farm.post(PATH, {})
    assert (answer.status_code, set(answer.json["fields"])) == (422, {"printer_id", "connection_type"})
    answer = farm.post(PATH, {"printer_id": printer_id, "connection_type": "bambu_lan"})
    assert (answer.status_code, set(answer.json["fields"])) == (422, {"host", "serial_number", "access_code"})
    made = farm.made(PATH, {"printer_id": printer_id, "connection_type": "bambu_cloud", "cloud_token": "t" * 40})
    assert (made["connection_type"], made["host"], made["has_cloud_token"]) == ("bambu_cloud", None, True)


def test_a_printer_has_one_connection(farm: Farm, printer_id: int, connection: dict[str, Any]) -> None:
    answer = farm.post(PATH, {"printer_id": printer_id, **LAN})
    assert (answer.status_code, answer.json["code"]) == (409, "already_connected")
    assert farm.get(PATH).json["total"] == 1


def test_secrets_never_come_back(farm: Farm, printer_id: int) -> None:
    made = farm.made(
        PATH, {"printer_id": printer_id, **LAN, "access_code": "canary77", "cloud_token": "canary-token-88"}
    )
    answers = [
        farm.get(PATH),
        farm.get(f"{PATH}/{made['id']}"),
        farm.put(f"{PATH}/{made['id']}", {"host": "192.168.1.21"}),
        farm.get(f"{PATH}/{made['id']}/status"),
        farm.get(f"/api/printers/{printer_id}"),
    ]
    assert all(answer.status_code == 200 and "canary" not in answer.text for answer in answers)
    assert (made["has_access_code"], made["has_cloud_token"]) == (True, True)


def test_secrets_lie_sealed_in_the_database(farm: Farm, printer_id: int) -> None:
    farm.made(PATH, {"printer_id": printer_id, **LAN, "access_code": "canary77", "cloud_token": "canary-token-88"})
    with farm.database() as session:
        row = session.execute(sa.text("SELECT * FROM printer_connections")).one()
        assert "canary" not in repr(tuple(row))
        if db.engine.dialect.name == "sqlite":
            with sqlite3.connect(db.engine.url.database or "") as raw:
                assert "canary" not in "\n".join(raw.iterdump())


def test_a_secret_is_forgotten_when_it_is_put_to_null(farm: Farm, connection: dict[str, Any]) -> None:
    answer = farm.put(f"{PATH}/{connection['id']}", {"access_code": None}).json
    assert (answer["has_access_code"], answer["host"]) == (False, LAN["host"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("host", bad) for bad in ("", "a b", "http://192.168.1.2", "192.168.1.2:8883", "1.2.3", "x" * 254, 5)],
        *[("host", bad) for bad in ("0.0.0.0", "224.0.0.1", "169.254.169.254", "::", "ff02::1", "fe80::1")],
        *[("host", bad) for bad in ("240.0.0.1", "255.255.255.255", "::ffff:169.254.169.254")],
        *[("port", bad) for bad in (0, 65_536, -1, "8883", True, None, 1.5)],
        *[("ftps_port", bad) for bad in (0, 65_536, "990", True, None)],
        *[("serial_number", bad) for bad in ("", "12345", "x" * 33, "01P00A/0000", "01P00A\n0001", 5)],
        *[("access_code", bad) for bad in ("", "123", "1" * 33, "12 34", "12345678\n9", 5)],
        *[("connection_type", bad) for bad in ("lan", "", None, 5)],
        *[("cloud_token", bad) for bad in ("", "x" * 4001, 5)],
        *[(name, 1) for name in ("id", "user_id", "connection_status", "heard_at", "fingerprint", "has_access_code")],
    ],
)
def test_what_is_invalid_read_only_or_unknown_is_refused_by_name(
    farm: Farm, printer_id: int, field: str, value: Any
) -> None:
    answer = farm.post(PATH, {"printer_id": printer_id, **LAN, field: value})
    assert (answer.status_code, list(answer.json["fields"])) == (422, [field])
    assert farm.get(PATH).json["total"] == 0
    kept = farm.made(PATH, {"printer_id": printer_id, **LAN})
    answer = farm.put(f"{PATH}/{kept['id']}", {field: value})
    assert (answer.status_code, list(answer.json["fields"])) == (422, [field])
    assert farm.get(f"{PATH}/{kept['id']}").json == kept


@pytest.mark.parametrize("bad", ["1", True, None, 0, -1, 1.5, 2**31])
def test_a_printer_is_named_by_a_whole_number(farm: Farm, printer_id: int, bad: Any) -> None:
    answer = farm.post(PATH, {**LAN, "printer_id": bad})
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["printer_id"])


@pytest.mark.parametrize("host", ["192.168.1.20", "10.0.0.9", "fd00::5", "printer.local", "printer", "203.0.113.9"])
def test_a_printer_stands_in_the_lan_on_purpose(strict_farm: Farm, host: str) -> None:
    assert strict_farm.add_printer(**{**LAN, "host": host})["status"] == "offline"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("host", bad) for bad in ("127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST", "a.localhost", "::1")],
        ("host", "::ffff:127.0.0.1"),
        *[("port", bad) for bad in (22, 8884, 65_535)],
        *[("ftps_port", bad) for bad in (21, 991)],
    ],
)
def test_other_ports_and_loopback_hosts_need_the_setting(strict_farm: Farm, farm: Farm, field: str, value: Any) -> None:
    assert farm.add_printer(**{**LAN, field: value})["connection_id"]
    answer = strict_farm.post("/api/printers", {"name": "Left", **LAN, field: value})
    assert (answer.status_code, list(answer.json["fields"])) == (422, [field])
    printer_id = strict_farm.add_printer()["id"]
    answer = strict_farm.post(PATH, {"printer_id": printer_id, **LAN, field: value})
    assert (answer.status_code, list(answer.json["fields"])) == (422, [field])
    made = strict_farm.made(PATH, {"printer_id": printer_id, **LAN})
    answer = strict_farm.put(f"{PATH}/{made['id']}", {field: value})
    assert (answer.status_code, list(answer.json["fields"])) == (422, [field])


# Changing


@pytest.mark.parametrize(
    "change",
    [
        {"host": "192.168.1.77"},
        {"port": 18883},
        {"ftps_port": 1990},
        {"serial_number": "01P00A000000002"},
        {"connection_type": "bambu_cloud"},
    ],
)
def test_a_put_changes_only_the_keys_it_sends_and_connects_anew(
    farm: Farm, printer_id: int, connection: dict[str, Any], clock: Clock, change: dict[str, Any]
) -> None:
    hear(farm, printer_id, clock, "idle")
    clock.forward(minutes=1)
    after = farm.put(f"{PATH}/{connection['id']}", change)
    new = {"connection_status": "connecting", "updated_at": "2026-11-21T09:01:00Z", "heard_at": "2026-11-21T09:00:00Z"}
    assert (after.status_code, after.json) == (200, connection | change | new)
    with farm.database() as session:
        assert session.get_one(PrinterConnection, connection["id"]).version == 2


def test_another_machine_is_pinned_anew(farm: Farm, connection: dict[str, Any]) -> None:
    def pin() -> str | None:
        with farm.database() as session:
            return session.get_one(PrinterConnection, connection["id"]).fingerprint

    for change, kept in (
        ({"access_code": "87654321"}, "ab"),
        ({"host": "192.168.1.9"}, None),
        ({"serial_number": "01P00B1"}, None),
    ):
        with farm.database() as session:
            session.execute(sa.update(PrinterConnection).values(fingerprint="ab"))
            session.commit()
        farm.put(f"{PATH}/{connection['id']}", change)
        assert pin() == kept


def test_a_connection_is_removed_but_not_while_its_printer_prints(
    farm: Farm, printer_id: int, connection: dict[str, Any]
) -> None:
    made = farm.add_print(printer_id)
    farm.move(made["id"], "started")
    assert farm.delete(f"{PATH}/{connection['id']}").json["code"] == "print_running"
    farm.move(made["id"], "completed")
    answer = farm.delete(f"{PATH}/{connection['id']}")
    assert (answer.status_code, answer.json) == (200, {"message": "Connection removed", "id": connection["id"]})
    assert farm.get(f"/api/printers/{printer_id}").json["status"] == "none"
    assert farm.made(PATH, {"printer_id": printer_id, **LAN})["id"] is not None


def test_connections_are_listed_by_id_with_their_total(farm: Farm) -> None:
    ids = [farm.add_printer(name, **LAN)["connection_id"] for name in "ABC"]
    answer = farm.get(f"{PATH}?limit=2&offset=1").json
    assert ([each["id"] for each in answer["connections"]], answer["total"]) == (ids[1:], 3)


def test_another_users_connection_or_printer_answers_like_a_missing_one(farm: Farm, stranger: Farm) -> None:
    theirs = stranger.add_printer(**LAN)
    for method, path, body in (
        ("GET", "", None),
        ("PUT", "", {"host": "192.168.1.9"}),
        ("DELETE", "", None),
        ("GET", "/status", None),
    ):
        answers = [
            farm.call(method, f"{PATH}/{each}{path}", json=body) for each in (theirs["connection_id"], MISSING_ID)
        ]
        assert (answers[0].status_code, answers[0].data) == (404, answers[1].data)
    answers = [farm.post(PATH, {"printer_id": each, **LAN}) for each in (theirs["id"], MISSING_ID)]
    assert (answers[0].status_code, answers[0].data) == (404, answers[1].data)
    assert farm.get(PATH).json == {"connections": [], "total": 0}


# Status


def status(farm: Farm, connection_id: int) -> dict[str, Any]:
    answer = farm.get(f"{PATH}/{connection_id}/status")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json
    return found


def test_a_status_is_flat_and_unknown_is_null_and_never_0(farm: Farm, connection: dict[str, Any]) -> None:
    found = status(farm, connection["id"])
    assert set(found) == STATUS_FIELDS
    assert [found[name] for name in sorted(UNKNOWN_YET)] == [None] * len(UNKNOWN_YET)
    assert (found["state"], found["stale"], found["printer_name"], found["connection_type"]) == (
        *("unknown", True, "Left", "bambu_lan"),
    )


def test_a_printer_never_reached_is_an_answer_with_a_reason(farm: Farm, connection: dict[str, Any]) -> None:
    found = status(farm, connection["id"])
    assert (found["connection_status"], found["reason"]) == ("offline", "No connection has been made yet.")


def test_a_status_is_what_the_printer_last_reported(
    farm: Farm, printer_id: int, connection: dict[str, Any], clock: Clock
) -> None:
    made = farm.add_print(printer_id)
    told = {
        "progress_percent": 41,
        "remaining_minutes": 77,
        "layers_printed": 12,
        "total_layers": 100,
        "nozzle_temp": 219.9,
        "nozzle_target": 220,
        "bed_temp": 0,
        "bed_target": 60,
        "chamber_temp": None,
        "errors": [{"code": "0300_0100", "severity": "serious", "message": "<svg onload> \u202e"}],
        "job_name": "farm-100001",
        "current_print_id": made["id"],
        "materials": [{"slot": 0, "material_type": "PLA"}],
        "can_control": True,
    }
    hear(farm, printer_id, clock, "printing", **told)
    clock.forward(seconds=89)
    found = status(farm, connection["id"])
    assert found == {
        "printer_id": printer_id,
        "printer_name": "Left",
        "connection_type": "bambu_lan",
        "connection_status": "connected",
        "reason": None,
        "state": "printing",
        **told,
        "last_updated": "2026-11-21T09:00:00Z",
        "stale": False,
    }


def test_a_printer_not_heard_for_90_seconds_is_offline_and_its_state_unknown(
    farm: Farm, printer_id: int, connection: dict[str, Any], clock: Clock
) -> None:
    hear(farm, printer_id, clock, "printing", progress_percent=41)
    clock.forward(seconds=90)
    found = status(farm, connection["id"])
    assert (found["connection_status"], found["reason"]) == ("offline", "Nothing heard for 90 seconds.")
    assert (found["state"], found["stale"], found["last_updated"]) == ("unknown", True, "2026-11-21T09:00:00Z")


@pytest.mark.parametrize("word", ["connecting", "offline", "unauthorized", "error"])
def test_an_unreachable_printer_is_an_answer_with_a_reason(farm: Farm, connection: dict[str, Any], word: str) -> None:
    with farm.database() as session:
        values = {"connection_status": ConnectionStatus(word), "status_reason": "no route to host"}
        session.execute(sa.update(PrinterConnection).values(**values))
        session.commit()
    found = status(farm, connection["id"])
    assert (found["connection_status"], found["reason"], found["state"]) == (word, "no route to host", "unknown")


def test_the_database_holds_one_connection_per_printer_and_the_ranges(farm: Farm, connection: dict[str, Any]) -> None:
    for values in ({"port": 0}, {"port": 65_536}, {"ftps_port": 0}):
        with farm.database() as session, pytest.raises(sa.exc.IntegrityError):
            session.execute(sa.update(PrinterConnection).values(**values))
