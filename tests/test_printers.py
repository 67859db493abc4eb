"""Printers through the API: what one is and shows, its plate, its time at work, its end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from farm.gates import gate_of
from models import ConnectionStatus, PlateState, Printer, PrinterConnection, ScheduledPrint
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.rows import LAN, hear, log_in_again

PATH = "/api/printers"
PRINTS = "/api/bambu/scheduled-prints"
MISSING_ID = 2_000_000_000
FIELDS = {
    *("id", "name", "model", "location", "notes", "connection_id", "connection_type", "status", "current_job"),
    *("auto_start", "queue_paused_at", "nozzle_diameter_mm", "plate_state", "utilization_pct"),
    *("maintenance_every_hours", "hours_since_maintenance", "maintenance_done_at", "created_at", "updated_at"),
}


def get(farm: Farm, printer_id: int) -> dict[str, Any]:
    found: dict[str, Any] = farm.get(f"{PATH}/{printer_id}").json
    return found


def put_on_plate(farm: Farm, printer_id: int, print_id: int | None, state: PlateState = PlateState.occupied) -> None:
    """What the worker writes when a print has run."""
    with farm.database() as session:
        gate = gate_of(session.get_one(Printer, printer_id))
        assert gate is not None
        gate.plate_state, gate.plate_print_id = state, print_id
        session.commit()


def add_reached(farm: Farm) -> int:
    """A printer with a connection: only such a one has a plate that matters to us."""
    made = farm.add_printer(host="192.168.1.20", serial_number="01P00A000000001", access_code="12345678")
    return int(made["id"])


# What a printer is


def test_a_printer_has_exactly_the_fields_of_the_contract(farm: Farm) -> None:
    made = farm.add_printer()
    assert set(made) == FIELDS
    assert farm.get(PATH).json == [made]
    assert get(farm, made["id"]) == made


def test_a_printer_needs_only_a_name(farm: Farm) -> None:
    made = farm.made(PATH, {"name": "Left"})
    assert made == {
        "id": made["id"],
        "name": "Left",
        "model": None,
        "location": None,
        "notes": None,
        "connection_id": None,
        "connection_type": None,
        "status": "none",
        "current_job": None,
        "auto_start": False,
        "nozzle_diameter_mm": None,
        "maintenance_every_hours": 250,
        "hours_since_maintenance": 0,
        "maintenance_done_at": None,
        "queue_paused_at": None,
        "plate_state": "unknown",
        "utilization_pct": 0,
        "created_at": "2026-11-21T09:00:00Z",
        "updated_at": "2026-11-21T09:00:00Z",
    }
    assert list(farm.post(PATH, {}).json["fields"]) == ["name"]


def test_one_call_adds_printer_and_connection(farm: Farm) -> None:
    made = farm.add_printer("Left", model="P1S", location="Cellar", notes="loud", auto_start=True, **LAN)
    assert (made["model"], made["location"], made["notes"], made["auto_start"]) == ("P1S", "Cellar", "loud", True)
    assert (made["connection_type"], made["status"]) == ("bambu_lan", "offline")
    connection = farm.get(f"/api/printer-connections/{made['connection_id']}").json
    assert {name: connection[name] for name in ("printer_id", "host", "serial_number", "port", "ftps_port")} == {
        "printer_id": made["id"],
        "host": LAN["host"],
        "serial_number": LAN["serial_number"],
        "port": 8883,
        "ftps_port": 990,
    }
    assert connection["has_access_code"] is True


def test_an_inline_connection_is_a_lan_one_unless_told(farm: Farm) -> None:
    made = farm.add_printer(**{name: value for name, value in LAN.items() if name != "connection_type"})
    assert made["connection_type"] == "bambu_lan"


def test_half_a_connection_is_refused_and_no_printer_is_made(farm: Farm) -> None:
    answer = farm.post(PATH, {"name": "Left", "host": "192.168.1.20"})
    assert (answer.status_code, set(answer.json["fields"])) == (422, {"serial_number", "access_code"})
    assert farm.get(PATH).json == []


def test_empty_fields_of_a_form_mean_no_connection(farm: Farm) -> None:
    made = farm.add_printer(host=None, serial_number=None, access_code=None, model=None)
    assert (made["connection_id"], made["status"]) == (None, "none")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("name", bad) for bad in ("", " ", None, 5, "x" * 256, "a\x00b")],
        *[("model", bad) for bad in ("", 5, "x" * 256)],
        *[("location", bad) for bad in ("", 5, "x" * 256)],
        *[("notes", bad) for bad in (5, "x" * 2001)],
        *[("auto_start", bad) for bad in (1, "true", None)],
        *[(name, 1) for name in ("id", "user_id", "status", "plate_state", "created_at", "connection_id", "nonsense")],
    ],
)
def test_what_is_invalid_read_only_or_unknown_is_refused_by_name(farm: Farm, field: str, value: Any) -> None:
    kept = farm.add_printer()
    for answer in (farm.post(PATH, {"name": "Left", field: value}), farm.put(f"{PATH}/{kept['id']}", {field: value})):
        assert (answer.status_code, list(answer.json["fields"])) == (422, [field])
    assert farm.get(PATH).json == [kept]


@pytest.mark.parametrize(
    "change",
    [{"name": "Right"}, {"model": "X1C"}, {"location": None}, {"notes": "x" * 2000}, {"auto_start": True}],
)
def test_a_put_changes_only_the_keys_it_sends(farm: Farm, clock: Clock, change: dict[str, Any]) -> None:
    before = farm.add_printer(model="P1S", location="Cellar")
    clock.forward(minutes=1)
    after = farm.put(f"{PATH}/{before['id']}", change)
    assert (after.status_code, after.json) == (200, before | change | {"updated_at": "2026-11-21T09:01:00Z"})


def test_printers_are_a_bare_array_by_id_with_its_full_count(farm: Farm) -> None:
    ids = [farm.add_printer(name)["id"] for name in "CAB"]
    answer = farm.get(f"{PATH}?limit=2")
    assert ([each["id"] for each in answer.json], answer.headers["X-Total-Count"]) == (ids[:2], "3")
    assert answer.headers["Link"] == f'<{PATH}?limit=2&offset=2>; rel="next"'
    rest = farm.get(f"{PATH}?limit=2&offset=2")
    assert ([each["id"] for each in rest.json], "Link" in rest.headers) == (ids[2:], False)


def test_another_users_printer_answers_like_a_missing_one(farm: Farm, stranger: Farm) -> None:
    theirs = stranger.add_printer()["id"]
    for method, body in (("GET", None), ("PUT", {"name": "Mine"}), ("DELETE", None)):
        answers = [farm.call(method, f"{PATH}/{each}", json=body) for each in (theirs, MISSING_ID)]
        assert (answers[0].status_code, answers[0].data) == (404, answers[1].data)
    assert farm.get(PATH).json == []


# What goes on on it


def test_a_printers_status_is_what_it_reports_or_offline_or_none(farm: Farm, clock: Clock) -> None:
    printer_id = farm.add_printer(**LAN)["id"]
    assert get(farm, printer_id)["status"] == "offline"
    for state in ("idle", "preparing", "printing", "paused", "finished", "failed", "unknown"):
        hear(farm, printer_id, clock, state)
        assert get(farm, printer_id)["status"] == state
    hear(farm, printer_id, clock, "printing", ago_seconds=90)
    assert get(farm, printer_id)["status"] == "offline"
    hear(farm, printer_id, clock, "printing", status=ConnectionStatus.unauthorized)
    assert get(farm, printer_id)["status"] == "offline"


def test_a_printer_shows_the_print_that_runs(farm: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    made = farm.add_print(printer_id, "A vase")
    farm.add_print(printer_id, "A bowl")
    assert get(farm, printer_id)["current_job"] is None
    farm.move(made["id"], "started")
    assert get(farm, printer_id)["current_job"] == {"id": made["id"], "job_name": "A vase", "progress_percent": None}
    with farm.database() as session:
        session.execute(sa.update(ScheduledPrint).where(ScheduledPrint.id == made["id"]).values(progress_percent=42))
        session.commit()
    assert farm.get(PATH).json[0]["current_job"]["progress_percent"] == 42
    farm.move(made["id"], "completed")
    assert get(farm, printer_id)["current_job"] is None


def test_utilization_is_the_printing_time_of_the_last_seven_days(farm: Farm, clock: Clock) -> None:
    printer_id, idle_id = farm.add_printer()["id"], farm.add_printer("Idle")["id"]
    hours = timedelta(hours=1)
    runs: list[tuple[timedelta, timedelta | None]] = [
        (-200 * hours, -170 * hours),  # over before the seven days began
        (-170 * hours, -160 * hours),  # 8 hours of it within them
        (-50 * hours, -40 * hours),
        (-2 * hours, None),  # still running
    ]
    with farm.database() as session:
        session.add_all(
            ScheduledPrint(
                user_id=farm.user["id"],
                printer_id=printer_id,
                job_name="x",
                status="started" if end is None else "completed",
                started_at=BASE_TIME + begin,
                completed_at=None if end is None else BASE_TIME + end,
                created_at=BASE_TIME,
                updated_at=BASE_TIME,
            )
            for begin, end in runs
        )
        session.commit()
    assert get(farm, printer_id)["utilization_pct"] == round(100 * 20 / 168, 1)
    assert get(farm, idle_id)["utilization_pct"] == 0
    clock.forward(hours=10)
    log_in_again(farm)
    assert get(farm, printer_id)["utilization_pct"] == round(100 * (10 + 12) / 168, 1)


def test_a_deleted_print_still_was_work(farm: Farm, clock: Clock) -> None:
    printer_id = farm.add_printer()["id"]
    made = farm.add_print(printer_id)
    farm.move(made["id"], "started")
    clock.forward(minutes=14)
    farm.move(made["id"], "completed")
    farm.delete(f"{PRINTS}/{made['id']}")
    assert get(farm, printer_id)["utilization_pct"] == 0.1


# The plate


def test_a_plate_is_cleared_by_naming_the_last_print(farm: Farm) -> None:
    printer_id = add_reached(farm)
    first, second = farm.add_print(printer_id)["id"], farm.add_print(printer_id)["id"]
    put_on_plate(farm, printer_id, second)
    late = farm.post(f"{PATH}/{printer_id}/plate-cleared", {"print_id": first})
    assert (late.status_code, late.json["code"], get(farm, printer_id)["plate_state"]) == (
        409,
        "another_print_on_plate",
        "occupied",
    )
    assert farm.post(f"{PATH}/{printer_id}/plate-cleared", {"print_id": None}).status_code == 409
    answer = farm.post(f"{PATH}/{printer_id}/plate-cleared", {"print_id": second})
    assert (answer.status_code, answer.json["plate_state"]) == (200, "clear")
    assert farm.post(f"{PATH}/{printer_id}/plate-cleared", {"print_id": second}).status_code == 409


@pytest.mark.parametrize("state", [PlateState.unknown, PlateState.occupied])
def test_a_plate_with_nothing_of_ours_on_it_is_cleared_by_null(farm: Farm, state: PlateState) -> None:
    printer_id = add_reached(farm)
    put_on_plate(farm, printer_id, None, state)
    made = farm.add_print(printer_id)["id"]
    assert farm.post(f"{PATH}/{printer_id}/plate-cleared", {"print_id": made}).status_code == 409
    assert farm.post(f"{PATH}/{printer_id}/plate-cleared", {"print_id": None}).json["plate_state"] == "clear"


@pytest.mark.parametrize("by_null", [True, False])
def test_a_plate_whose_last_print_was_deleted_can_still_be_cleared(farm: Farm, by_null: bool) -> None:
    printer_id = add_reached(farm)
    made = farm.add_print(printer_id)["id"]
    farm.move(made, "started", "completed")
    put_on_plate(farm, printer_id, made)
    farm.delete(f"{PRINTS}/{made}")
    answer = farm.post(f"{PATH}/{printer_id}/plate-cleared", {"print_id": None if by_null else made})
    assert (answer.status_code, answer.json["plate_state"]) == (200, "clear")


def test_a_plate_is_not_cleared_while_a_print_runs(farm: Farm) -> None:
    printer_id = add_reached(farm)
    made = farm.add_print(printer_id)["id"]
    farm.move(made, "started")
    put_on_plate(farm, printer_id, made)
    answer = farm.post(f"{PATH}/{printer_id}/plate-cleared", {"print_id": made})
    assert (answer.status_code, answer.json["code"]) == (409, "print_running")


def test_a_plate_call_names_the_print_explicitly_and_only_ones_own(farm: Farm, stranger: Farm) -> None:
    printer_id = add_reached(farm)
    theirs = stranger.add_print(stranger.add_printer()["id"])
    missing = farm.post(f"{PATH}/{printer_id}/plate-cleared", {"print_id": MISSING_ID})
    foreign = farm.post(f"{PATH}/{printer_id}/plate-cleared", {"print_id": theirs["id"]})
    assert (missing.status_code, missing.data) == (404, foreign.data)
    assert farm.post(f"{PATH}/{theirs['printer_id']}/plate-cleared", {"print_id": None}).data == missing.data
    for body in ({}, {"print_id": "1"}, {"print_id": True}):
        assert farm.post(f"{PATH}/{printer_id}/plate-cleared", body).status_code == 422


# The end


def test_a_printer_with_open_prints_is_not_removed(farm: Farm) -> None:
    printer_id = farm.add_printer(**LAN)["id"]
    made = farm.add_print(printer_id)["id"]
    for way in ([], ["scheduled"], ["started"]):
        if way:
            farm.move(made, *way)
        answer = farm.delete(f"{PATH}/{printer_id}")
        assert (answer.status_code, answer.json["code"]) == (409, "has_open_prints")
    assert get(farm, printer_id)["connection_id"] is not None
    farm.move(made, "completed")
    assert farm.delete(f"{PATH}/{printer_id}").status_code == 200


def test_a_removed_printer_takes_its_connection_and_secrets_with_it_and_leaves_its_history(farm: Farm) -> None:
    printer = farm.add_printer(**LAN)
    made = farm.add_print(printer["id"])["id"]
    farm.move(made, "started", "completed")
    answer = farm.delete(f"{PATH}/{printer['id']}")
    assert (answer.status_code, answer.json) == (200, {"message": "Printer removed", "id": printer["id"]})
    assert farm.get(PATH).json == []
    for path in (
        f"{PATH}/{printer['id']}",
        f"/api/printer-connections/{printer['connection_id']}",
        f"{PRINTS}/{printer['id']}",
        f"{PRINTS}/{printer['id']}/queue",
        f"/api/bambu/materials/{printer['id']}",
        f"/api/bambu/notifications/{printer['id']}",
    ):
        assert farm.get(path).status_code == 404
    assert farm.delete(f"{PATH}/{printer['id']}").status_code == 404
    assert farm.post(PRINTS, {"printer_id": printer["id"], "job_name": "x"}).status_code == 404
    assert [each["id"] for each in farm.get(PRINTS).json] == [made]
    with farm.database() as session:
        assert session.execute(sa.select(sa.func.count()).select_from(PrinterConnection)).scalar_one() == 0


def test_a_plate_that_nothing_starts_on_from_here_need_not_be_cleared(farm: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    answer = farm.post(f"{PATH}/{printer_id}/plate-cleared", {"print_id": None})
    assert (answer.status_code, answer.json["code"]) == (409, "no_connection")


def test_one_machine_has_one_plate_whichever_account_entered_it(farm: Farm, stranger: Farm) -> None:
    mine, theirs = add_reached(farm), add_reached(stranger)
    made = farm.add_print(mine)["id"]
    put_on_plate(farm, mine, made)
    assert get(stranger, theirs)["plate_state"] == "occupied"
    # They cannot name a print that is not theirs; that the plate is empty they can see as well as anybody.
    assert stranger.post(f"{PATH}/{theirs}/plate-cleared", {"print_id": made}).status_code == 404
    assert stranger.post(f"{PATH}/{theirs}/plate-cleared", {"print_id": None}).json["plate_state"] == "clear"
    assert get(farm, mine)["plate_state"] == "clear"


@pytest.mark.parametrize("state", ["preparing", "printing", "paused"])
def test_a_plate_is_not_cleared_while_the_printer_says_that_it_prints(farm: Farm, clock: Clock, state: str) -> None:
    printer_id = add_reached(farm)
    put_on_plate(farm, printer_id, None)
    with farm.database() as session:
        session.execute(
            sa.update(PrinterConnection).values(
                connection_status=ConnectionStatus.connected, heard_at=clock(), snapshot={"state": state}
            )
        )
        session.commit()
    answer = farm.post(f"{PATH}/{printer_id}/plate-cleared", {"print_id": None})
    assert (answer.status_code, answer.json["code"]) == (409, "print_running")


@pytest.mark.parametrize("diameter", [0.2, 0.4, 0.6, 0.8])
def test_a_printer_s_nozzle_can_be_entered_where_no_report_tells_it(farm: Farm, diameter: float) -> None:
    printer_id = farm.add_printer(nozzle_diameter_mm=diameter)["id"]
    assert get(farm, printer_id)["nozzle_diameter_mm"] == diameter
    assert farm.put(f"{PATH}/{printer_id}", {"nozzle_diameter_mm": None}).json["nozzle_diameter_mm"] is None
    for wrong in (0, 0.05, 2.5, "0.4", True):
        answer = farm.put(f"{PATH}/{printer_id}", {"nozzle_diameter_mm": wrong})
        assert (answer.status_code, list(answer.json["fields"])) == (422, ["nozzle_diameter_mm"]), wrong
