"""`GET /api/weather/filament-advice`: always an answer, from the AMS first, and what is missing in sentences."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.pool import QueuePool

from bambu_report import PrinterActivity, PrinterState, Unit
from farm.leases import Lease
from farm.status import snapshot_of
from models import db
from recorder import Recorder, Watched
from simulator.weather import HTML_PAGE, SimulatedWeather
from tests.apps import another_app
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.production_log import production_log
from tests.rows import LAN, hear, log_in_again

KEY = "QZWEATHERKEYQZ123456789abcdef0"
PATH = "/api/weather/filament-advice"
IDLE = PrinterState(known=True, state=PrinterActivity.idle)
DRY = Unit(0, "AMS 2 Pro", humidity_level=5, humidity_percent=12, temperature=24.5, drying_minutes=0, nozzle=None)


@pytest.fixture
def server(clock: Clock) -> Iterator[SimulatedWeather]:
    with SimulatedWeather(KEY, clock=clock) as simulated:
        yield simulated


@pytest.fixture
def keyed(
    app: Flask, clock: Clock, server: SimulatedWeather, session_database_url: str, tmp_path: Path
) -> Iterator[Farm]:
    """An account of an installation that has a key."""
    settings = {"OPENWEATHER_API_KEY": KEY, "OPENWEATHER_BASE_URL": server.base_url}
    with another_app(session_database_url, tmp_path, clock, **settings) as other:
        yield Farm(other, "keyed@example.com")


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    with production_log() as said:
        yield said


def advice(farm: Farm, **query: Any) -> dict[str, Any]:
    answer = farm.get(PATH, query_string=query)
    assert answer.status_code == 200, answer.text
    assert KEY not in answer.text + str(answer.headers)
    found: dict[str, Any] = answer.json
    return found


def settle(farm: Farm, **fields: Any) -> dict[str, Any]:
    answer = farm.put("/api/auth/user", fields)
    assert answer.status_code == 200, answer.text
    user: dict[str, Any] = answer.json
    return user


def hear_of(farm: Farm, printer: dict[str, Any], clock: Clock, *units: Unit) -> None:
    """That printer's worker writes down a report with these AMS."""
    recorder = Recorder(farm.app)
    watched = Watched(
        connection_id=printer["connection_id"], printer_id=printer["id"], version=1, lease=Lease("01P00A1", "test", 1)
    )
    recorder.heard(watched, replace(IDLE, units=units), clock())
    recorder.save_snapshots([watched])


def by_type(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["material_type"]: each for each in found["materials"]}


# Without OpenWeatherMap


def test_an_empty_farm_gets_an_answer_that_says_what_is_missing(farm: Farm) -> None:
    found = advice(farm)
    assert {**found, "missing": None} == {
        **dict.fromkeys(("place", "outdoor", "indoor", "missing")),
        "ams": [],
        "materials": [],
    }
    key, place = found["missing"]
    assert "OPENWEATHER_API_KEY" in key and "PUT /api/auth/user" in place


def test_without_a_key_it_advises_from_what_the_ams_report(farm: Farm, clock: Clock) -> None:
    left = farm.add_printer("Left", model="P1S", **LAN)
    right = farm.add_printer("Right", **LAN | {"serial_number": "03900A000000002"})
    hear_of(farm, left, clock, DRY, replace(DRY, ams_id=1, kind="AMS", humidity_percent=None, humidity_level=2))
    hear_of(farm, right, clock, replace(DRY, humidity_percent=60))
    farm.add_material(left["id"], 0, material_type="PA6-CF")
    farm.add_material(left["id"], 5, material_type="PETG", color="#445566")
    farm.add_material(right["id"], 0, material_type="TPU")
    clock.forward(days=30)
    log_in_again(farm)
    for printer, units in (
        (left, (DRY, replace(DRY, ams_id=1, kind="AMS", humidity_percent=None, humidity_level=2))),
        (right, (replace(DRY, humidity_percent=60),)),
    ):
        hear_of(farm, printer, clock, *units)
    found = advice(farm)
    assert len(found["missing"]) == 2 and "OPENWEATHER_API_KEY" in found["missing"][0]
    # The most urgent come first.
    assert [each["material_type"] for each in found["materials"]] == ["PETG", "TPU", "PA6-CF"]
    of = by_type(found)
    assert [of[each]["action"] for each in ("PA6-CF", "PETG", "TPU")] == ["fine", "dry", "dry"]
    assert {each["humidity_source"] for each in found["materials"]} == {"ams"}
    assert (of["PETG"]["humidity_level"], of["PETG"]["humidity_percent"], of["PETG"]["slot"]) == (2, None, 5)
    assert of["PETG"]["drying"] == {"temperature_c": 55, "hours": 12, "softens_at_c": 60}
    assert of["PETG"]["loaded_days"] == 30 and of["PETG"]["printer_name"] == "Left"
    assert any("55 °C for 12 hours" in sentence for sentence in of["PETG"]["advice"])
    assert any("Its AMS 2 Pro can do that" in sentence for sentence in of["TPU"]["advice"])
    assert [(each["printer_name"], each["ams_id"], each["temperature_c"]) for each in found["ams"]] == [
        *[("Left", 0, 24.5), ("Left", 1, 24.5), ("Right", 0, 24.5)]
    ]


def test_what_is_removed_deleted_or_somebody_elses_is_left_out(farm: Farm, stranger: Farm, clock: Clock) -> None:
    printer = farm.add_printer("Left", **LAN)
    gone = farm.add_printer("Gone", **LAN | {"serial_number": "01P00A000000009"})
    hear_of(farm, gone, clock, DRY)
    farm.add_material(gone["id"], 0, material_type="ABS")
    removed = farm.add_material(printer["id"], 0, material_type="PVA")
    farm.add_material(printer["id"], 1, material_type="PLA")
    assert farm.delete(f"/api/bambu/materials/{removed['id']}").status_code == 200
    assert farm.delete(f"/api/printers/{gone['id']}").status_code == 200
    found = advice(farm)
    assert [each["material_type"] for each in found["materials"]] == ["PLA"]
    assert found["ams"] == [] and "No AMS of yours has reported how humid it is." in found["missing"]
    assert advice(stranger)["materials"] == []


def test_an_ams_that_tells_nothing_or_was_heard_long_ago_is_named(farm: Farm, clock: Clock) -> None:
    printer = farm.add_printer("Left", **LAN)
    lite = replace(DRY, kind="AMS Lite", humidity_level=None, humidity_percent=None, temperature=None)
    hear_of(farm, printer, clock, lite)
    assert "An AMS Lite of Left (AMS 0) tells no humidity." in advice(farm)["missing"]
    clock.forward(hours=6)
    log_in_again(farm)
    farm.add_material(printer["id"], 0)
    found = advice(farm)
    assert "Left was last heard at 2026-11-21 09:00 UTC" in found["missing"][-1]
    assert found["materials"][0]["humidity_source"] == "none"


def test_a_snapshot_of_before_units_were_kept_is_no_reading(farm: Farm, clock: Clock) -> None:
    printer = farm.add_printer("Left", **LAN)
    hear(farm, printer["id"], clock)
    assert advice(farm)["ams"] == []
    assert "ams" in snapshot_of(IDLE, current_print_id=None)


# With it


def test_the_weather_of_the_accounts_place_becomes_the_rooms_air(
    keyed: Farm, server: SimulatedWeather, clock: Clock
) -> None:
    assert "PUT /api/auth/user" in advice(keyed)["missing"][0]
    user = settle(keyed, latitude=52.51704, longitude=13.38886, indoor_temperature_c=17.5)
    assert (user["latitude"], user["longitude"], user["indoor_temperature_c"]) == (52.517, 13.3889, 17.5)
    printer = keyed.add_printer("Left", model="A1", **LAN)
    for slot, kind in enumerate(("ABS", "PVA", "PLA")):
        keyed.add_material(printer["id"], slot, material_type=kind)
    found = advice(keyed)
    assert found["place"] == {"name": None, "latitude": 52.517, "longitude": 13.3889}
    outdoor = found["outdoor"]
    assert (outdoor["temperature_c"], outdoor["humidity_percent"], outdoor["age_minutes"]) == (5, 85, 0)
    assert outdoor["measured_at"] == "2026-11-21T09:00:00Z" and "OpenWeather" in outdoor["attribution"]
    assert found["indoor"] == {"temperature_c": 17.5, "temperature_is_assumed": False, "humidity_percent": 37.1}
    assert found["missing"] == ["No AMS of yours has reported how humid it is."]
    of = by_type(found)
    assert {each["humidity_source"] for each in found["materials"]} == {"outdoor_estimate"}
    assert [(each, of[each]["action"]) for each in of] == [("PVA", "store_sealed"), ("ABS", "fine"), ("PLA", "fine")]
    assert of["ABS"]["needs_enclosure"] and not of["PLA"]["needs_enclosure"]
    assert "put an enclosure around the A1" in of["ABS"]["advice"][-1]
    clock.forward(minutes=10)
    assert advice(keyed)["outdoor"]["age_minutes"] == 10
    assert len(server.requests) == 1


def test_a_room_whose_temperature_nobody_told_is_assumed_and_said_so(keyed: Farm) -> None:
    settle(keyed, latitude=0, longitude=0)
    found = advice(keyed)
    assert found["indoor"] == {"temperature_c": 21, "temperature_is_assumed": True, "humidity_percent": 29.9}
    assert any("taken to have 21 °C" in sentence for sentence in found["missing"])


def test_the_ams_counts_before_the_weather(keyed: Farm, server: SimulatedWeather, clock: Clock) -> None:
    server.temperature_c, server.humidity_percent = 28, 70
    settle(keyed, latitude=1, longitude=1)
    printer = keyed.add_printer("Left", **LAN)
    hear_of(keyed, printer, clock, DRY)
    keyed.add_material(printer["id"], 0, material_type="PVA")
    keyed.add_material(printer["id"], 4, material_type="PLA")
    of = by_type(advice(keyed))
    assert (of["PVA"]["humidity_source"], of["PVA"]["action"]) == ("ams", "fine")
    assert (of["PLA"]["humidity_source"], of["PLA"]["action"]) == ("outdoor_estimate", "store_sealed")


def test_a_place_is_looked_up_once_by_its_name_and_kept(keyed: Farm, server: SimulatedWeather, clock: Clock) -> None:
    assert settle(keyed, place_name="springfield")["latitude"] is None
    found = advice(keyed)
    assert found["place"] == {"name": "Springfield, Illinois, US", "latitude": 39.799, "longitude": -89.644}
    clock.forward(hours=30)
    log_in_again(keyed)
    assert advice(keyed)["place"] == found["place"]
    assert [each.path for each in server.requests].count("/geo/1.0/direct") == 1
    user = keyed.get("/api/auth/user").json
    assert (user["place_name"], user["latitude"]) == ("Springfield, Illinois, US", 39.799)
    # Another name is another place, unless it only names the coordinates that come with it.
    assert settle(keyed, place_name="Berlin")["longitude"] is None
    assert advice(keyed)["place"]["name"] == "Berlin, DE"
    assert settle(keyed, place_name="Berlin, DE")["latitude"] == 52.517
    assert settle(keyed, place_name="Shed", latitude=1, longitude=2)["latitude"] == 1
    assert advice(keyed)["place"] == {"name": "Shed", "latitude": 1, "longitude": 2}
    assert settle(keyed, place_name=None, latitude=None, longitude=None)["place_name"] is None


def test_another_place_may_be_asked_for(keyed: Farm, server: SimulatedWeather) -> None:
    settle(keyed, latitude=1, longitude=1)
    assert advice(keyed, latitude="-33.87", longitude=151.2)["place"] == {
        "name": None,
        "latitude": -33.87,
        "longitude": 151.2,
    }
    assert server.requests[-1].query["lat"] == "-33.87"
    assert keyed.get("/api/auth/user").json["latitude"] == 1
    for wrong in ({"latitude": 1}, {"longitude": 1}, {"latitude": 91, "longitude": 0}, {"latitude": "nan"}):
        assert keyed.get(PATH, query_string=wrong).status_code == 422


def test_half_a_place_is_refused(farm: Farm) -> None:
    for wrong in ({"latitude": 1}, {"longitude": None}, {"latitude": 1, "longitude": None}, {"place_name": ""}):
        assert farm.put("/api/auth/user", wrong).status_code == 422
    for wrong in ({"latitude": 90.1, "longitude": 0}, {"latitude": 0, "longitude": -181}, {"indoor_temperature_c": 90}):
        assert farm.put("/api/auth/user", wrong).status_code == 422


def test_a_name_that_changes_while_it_is_looked_up_keeps_nothing_of_the_old_place(
    keyed: Farm, server: SimulatedWeather
) -> None:
    settle(keyed, place_name="Berlin")
    second = Farm.__new__(Farm)
    second.__dict__.update(keyed.__dict__)
    second.client = keyed.app.test_client()
    found: list[dict[str, Any]] = []
    _while_asked(server, lambda: found.append(advice(keyed)), lambda: settle(second, place_name="Springfield"))
    assert found[0]["place"]["name"] == "Berlin, DE"
    user = keyed.get("/api/auth/user").json
    assert (user["place_name"], user["latitude"]) == ("Springfield", None)


def _while_asked(server: SimulatedWeather, ask: Callable[[], object], act: Callable[[], object]) -> None:
    server.answer_with(200, delay_seconds=0.4)
    asking = threading.Thread(target=ask)
    asking.start()
    until = time.monotonic() + 5
    while not server.requests and time.monotonic() < until:
        time.sleep(0.005)
    act()
    asking.join()


# Its faults are never ours


@pytest.mark.parametrize(
    ("status", "body"),
    [(400, None), (401, None), (404, None), (429, None), (500, None), (502, HTML_PAGE), (200, HTML_PAGE), (200, {})],
)
def test_no_fault_of_openweathermaps_is_one_of_the_request(
    keyed: Farm, server: SimulatedWeather, logged: io.StringIO, status: int, body: object
) -> None:
    server.answer_with(status, body, times=2)
    settle(keyed, latitude=1, longitude=1)
    found = advice(keyed)
    assert found["outdoor"] is None and len(found["missing"]) == 1 and "OpenWeatherMap" in found["missing"][0]
    settle(keyed, place_name="Berlin")
    found = advice(keyed)
    assert found["place"] is None or status in (400, 404)
    assert len(found["missing"]) == 1
    assert KEY not in logged.getvalue()


def test_a_name_that_nobody_knows_is_said(keyed: Farm) -> None:
    settle(keyed, place_name="Nowhere")
    assert advice(keyed)["missing"] == ["OpenWeatherMap knows no place called Nowhere: send its coordinates."]


def test_when_it_fails_the_last_good_weather_stays_with_its_age(
    keyed: Farm, server: SimulatedWeather, clock: Clock
) -> None:
    settle(keyed, latitude=1, longitude=1, indoor_temperature_c=20)
    advice(keyed)
    clock.forward(minutes=45)
    log_in_again(keyed)
    server.answer_with(503, HTML_PAGE, times=50)
    for _ in range(5):
        found = advice(keyed)
        assert found["outdoor"]["age_minutes"] == 45
        assert found["missing"] == [
            "The weather has not been to be had since 2026-11-21 09:45 UTC: "
            "OpenWeatherMap is not available (status 503)."
        ]
    assert len(server.requests) == 2
    assert clock.now - BASE_TIME == timedelta(minutes=45)


def test_nothing_is_asked_inside_a_transaction(keyed: Farm, server: SimulatedWeather) -> None:
    """Else one slow answer would keep a connection, and on some databases whoever else writes."""
    settle(keyed, place_name="Berlin")
    with keyed.app.app_context():
        pool = db.engine.pool
    assert isinstance(pool, QueuePool)
    held: list[int] = []
    found: list[dict[str, Any]] = []
    _while_asked(server, lambda: found.append(advice(keyed)), lambda: held.append(pool.checkedout()))
    assert held == [0] and found[0]["outdoor"]
