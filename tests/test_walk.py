"""The whole walk over real parts: from an order to a finished print on a simulated printer, mail and webhook sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from simulator import Plate, SimulatedPrinter, Spool, make_sliced_file
from simulator.sinks import MailSink, WebhookReceiver
from tests.apps import working_app
from tests.conftest import settings_for
from tests.farm_builder import Farm

PATIENCE_SECONDS = 30


def eventually(check: Callable[[], Any]) -> Any:
    """What a check answers once it is truthy; real parts take real, if short, time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


@pytest.fixture
def mail() -> Iterator[MailSink]:
    with MailSink() as sink:
        yield sink


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as sink:
        yield sink


@pytest.fixture
def printer() -> Iterator[SimulatedPrinter]:
    with SimulatedPrinter(
        "01P00A000000001", "12345678", model="P1S", speed=1200, spools=[Spool("PLA", "#112233")]
    ) as made:
        yield made


@pytest.fixture
def live_app(database_url: str, tmp_path: Path, mail: MailSink, printer: SimulatedPrinter) -> Iterator[Flask]:
    settings = settings_for(
        database_url,
        tmp_path / "data",
        BAMBU_CA_FILE=str(printer.ca_file),
        SMTP_HOST=mail.host,
        SMTP_PORT=str(mail.port),
        SMTP_FROM="Farm <farm@example.com>",
        SMTP_TLS="none",
        STATUS_INTERVAL_SECONDS="0.05",
        COMMAND_TIMEOUT_SECONDS="20",
        PRINTER_REST_SECONDS="0.2",
    )
    with working_app(settings, lambda: datetime.now(UTC)) as app:
        yield app


@pytest.fixture
def live_farm(live_app: Flask) -> Farm:
    return Farm(live_app, "seller@example.com")


def connect(farm: Farm, printer: SimulatedPrinter) -> dict[str, Any]:
    return farm.add_printer(
        "Left",
        connection_type="bambu_lan",
        host=printer.host,
        port=printer.mqtt_port,
        ftps_port=printer.ftps_port,
        serial_number=printer.serial,
        access_code=printer.access_code,
    )


def clear_plate(farm: Farm, printer_id: int, print_id: int | None = None) -> None:
    eventually(lambda: farm.get(f"/api/printers/{printer_id}").json["plate_state"] == "occupied")
    answer = farm.post(f"/api/printers/{printer_id}/plate-cleared", {"print_id": print_id})
    assert answer.status_code == 200, answer.text


def test_an_order_becomes_a_finished_print(
    live_farm: Farm, printer: SimulatedPrinter, mail: MailSink, receiver: WebhookReceiver
) -> None:
    farm = live_farm
    added = connect(farm, printer)
    preferences = farm.put(f"/api/bambu/notifications/{added['id']}", {"webhook_url": receiver.url}).json
    receiver.trust(preferences["webhook_secret"])
    material = farm.add_material(added["id"], slot=0, color="#FFFFFF")
    file = farm.add_file(make_sliced_file(None, [Plate(minutes=30)]))
    farm.add_profile("Vase", print_file_id=file["id"], print_time_minutes=30, filament_grams=12.5)
    order = farm.add_order({"title": "Vase", "quantity": 1})
    scheduled = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": added["id"]}).json["prints"]
    assert [each["status"] for each in scheduled] == ["queued"]
    print_id = scheduled[0]["id"]
    released = farm.post(f"/api/bambu/scheduled-prints/{print_id}/start").json
    assert released["status"] == "scheduled"
    eventually(lambda: (farm.get_print(print_id) or {}).get("waiting_reason") == "plate not cleared")
    assert printer.starts == []
    clear_plate(farm, added["id"])

    def status() -> str:
        found = farm.get_print(print_id)
        assert found is not None
        assert found["status"] != "failed", found
        return str(found["status"])

    eventually(lambda: status() == "completed")
    assert len(printer.starts) == 1
    done = farm.get_print(print_id)
    assert done is not None
    assert (done["used_grams"], done["material_cost"], done["progress_percent"]) == (12.5, 0.25, 100)
    kinds = [event["kind"] for event in farm.get(f"/api/bambu/scheduled-prints/{print_id}/events").json]
    assert kinds == ["print.created", "print.scheduled", "print.started", "print.completed"]
    assert farm.get(f"/api/orders/{order['id']}").json["production_status"] == "printed"
    left = farm.get(f"/api/bambu/materials/{added['id']}").json[0]
    assert (left["id"], left["used_grams"]) == (material["id"], 12.5)
    eventually(lambda: len(receiver.received) == 2 and len(mail.messages) == 2)
    assert [(each.json["type"], each.verified) for each in receiver.received] == [
        ("print.started", True),
        ("print.completed", True),
    ]
    assert mail.messages[1]["To"] == "seller@example.com"
    eventually(lambda: not list(printer.files.glob("farm-*")))


def start_a_long_print(farm: Farm, printer: SimulatedPrinter) -> tuple[int, int]:
    """(printer's id, print's id), with the print running at a speed at which it does not end by itself."""
    added = connect(farm, printer)
    farm.add_material(added["id"], slot=0, color="#FFFFFF")
    file = farm.add_file(make_sliced_file(None, [Plate(minutes=30)]))
    clear_plate(farm, added["id"])
    made = farm.add_print(added["id"], print_file_id=file["id"], material_type="PLA", status="scheduled")
    eventually(lambda: (farm.get_print(made["id"]) or {})["status"] == "started")
    printer.speed = 30
    return added["id"], made["id"]


def state_of(farm: Farm, printer_id: int) -> str:
    return str(farm.get(f"/api/printers/{printer_id}").json["status"])


def test_pause_resume_and_stop_reach_the_printer(live_farm: Farm, printer: SimulatedPrinter) -> None:
    printer_id, print_id = start_a_long_print(live_farm, printer)
    eventually(lambda: state_of(live_farm, printer_id) == "printing")
    paused = live_farm.post(f"/api/bambu/scheduled-prints/{print_id}/pause")
    assert (paused.status_code, paused.json["status"]) == (200, "started")
    assert state_of(live_farm, printer_id) == "paused"
    resumed = live_farm.post(f"/api/bambu/scheduled-prints/{print_id}/resume")
    assert resumed.status_code == 200
    eventually(lambda: state_of(live_farm, printer_id) == "printing")
    stopped = live_farm.post(f"/api/bambu/scheduled-prints/{print_id}/stop")
    assert (stopped.status_code, stopped.json["status"]) == (200, "failed")
    assert stopped.json["failed_reason"] == "stopped by a person"


def test_a_running_print_is_stopped_before_it_is_deleted(live_farm: Farm, printer: SimulatedPrinter) -> None:
    printer_id, print_id = start_a_long_print(live_farm, printer)
    answer = live_farm.delete(f"/api/bambu/scheduled-prints/{print_id}")
    assert (answer.status_code, answer.json["id"]) == (200, print_id)
    assert live_farm.get_print(print_id) is None
    assert [command.command for command in printer.commands].count("stop") == 1
    assert state_of(live_farm, printer_id) == "failed"


def test_deleting_a_running_print_changes_nothing_when_the_printer_is_gone(
    live_farm: Farm, printer: SimulatedPrinter
) -> None:
    printer_id, print_id = start_a_long_print(live_farm, printer)
    printer.pull_plug()
    answer = live_farm.delete(f"/api/bambu/scheduled-prints/{print_id}")
    assert (answer.status_code, answer.json["code"]) == (502, "not_confirmed")
    kept = live_farm.get_print(print_id)
    assert kept is not None and kept["status"] == "started"
    assert live_farm.post(f"/api/bambu/scheduled-prints/{print_id}/pause").status_code in (409, 502)


def test_a_print_that_breaks_at_the_printer_fails_with_its_reason(live_farm: Farm, printer: SimulatedPrinter) -> None:
    _, print_id = start_a_long_print(live_farm, printer)
    printer.fail(0x03008003)
    failed = eventually(lambda: (found := live_farm.get_print(print_id)) and found["status"] == "failed" and found)
    assert "0300-8003" in failed["failed_reason"]


def test_a_refused_start_fails_and_says_what_to_do(live_farm: Farm, printer: SimulatedPrinter) -> None:
    added = connect(live_farm, printer)
    live_farm.add_material(added["id"], slot=0, color="#FFFFFF")
    file = live_farm.add_file(make_sliced_file(None, [Plate(minutes=30)]))
    printer.faults.refuse_start = 0x05004003
    clear_plate(live_farm, added["id"])
    made = live_farm.add_print(added["id"], print_file_id=file["id"], material_type="PLA", status="scheduled")
    failed = eventually(lambda: (found := live_farm.get_print(made["id"])) and found["status"] == "failed" and found)
    assert failed["failed_reason"].startswith("refused by the printer: ")
    assert len(printer.starts) == 1


def test_a_person_s_put_does_not_contradict_the_printer(live_farm: Farm, printer: SimulatedPrinter) -> None:
    _, print_id = start_a_long_print(live_farm, printer)
    answer = live_farm.put(f"/api/bambu/scheduled-prints/{print_id}", {"status": "completed"})
    assert (answer.status_code, answer.json["code"]) == (409, "printer_says_otherwise")


def test_a_wrong_access_code_is_said_and_starts_nothing(live_farm: Farm, printer: SimulatedPrinter) -> None:
    added = connect(live_farm, printer)
    eventually(lambda: state_of(live_farm, added["id"]) == "idle")
    path = f"/api/printer-connections/{added['connection_id']}"
    assert live_farm.put(path, {"access_code": "87654321"}).status_code == 200
    status = eventually(
        lambda: (found := live_farm.get(f"{path}/status").json)["connection_status"] == "unauthorized" and found
    )
    assert "code" in status["reason"]
    made = live_farm.add_print(added["id"])
    released = live_farm.post(f"/api/bambu/scheduled-prints/{made['id']}/start").json
    assert (released["status"], released["waiting_reason"]) == ("scheduled", "it has no sliced file")
    assert printer.starts == []


def test_a_connection_test_says_what_works_and_what_to_press(live_farm: Farm, printer: SimulatedPrinter) -> None:
    added = connect(live_farm, printer)
    eventually(lambda: state_of(live_farm, added["id"]) == "idle")
    path = f"/api/printer-connections/{added['connection_id']}"
    fine = live_farm.post(f"{path}/test")
    assert fine.status_code == 200, fine.text
    assert {check["check"] for check in fine.json["checks"]} == {"connection", "reports", "files", "storage", "control"}
    assert fine.json["ok"] is True
    live_farm.put(path, {"access_code": "87654321"})
    eventually(lambda: live_farm.get(f"{path}/status").json["connection_status"] == "unauthorized")
    refused = live_farm.post(f"{path}/test").json
    assert refused["ok"] is False
    assert "Access Code" in refused["checks"][0]["advice"]
