"""The round trip on real parts: in by Etsy's login, out as an order that Etsy has as shipped, a printed one between."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from simulator import Plate, SimulatedPrinter, Spool, make_sliced_file
from simulator.etsy import ReceiptLine, Shipment, SimulatedEtsy
from tests import etsy_contract
from tests.apps import working_app
from tests.conftest import settings_for
from tests.etsy_bench import KEYSTRING, SHARED_SECRET, add, calls_to, consent, settings_of
from tests.farm_builder import Farm
from tests.test_walk import clear_plate, connect, eventually

RECEIPT = 3_100_000_001
PARCEL = {"tracking_code": "JJD00123456789", "carrier_name": "dhl"}


@pytest.fixture
def printer() -> Iterator[SimulatedPrinter]:
    white = Spool("PLA", "FFFFFFFF")
    with SimulatedPrinter("01P00A000000001", "12345678", model="P1S", speed=1200, spools=[white]) as made:
        yield made


@pytest.fixture
def live_etsy() -> Iterator[SimulatedEtsy]:
    """On the time of day, like the printer: neither of them can be told to wait."""
    with SimulatedEtsy(KEYSTRING, SHARED_SECRET) as made:
        yield made
        etsy_contract.require(made.requests)


@pytest.fixture
def seller(database_url: str, tmp_path: Path, printer: SimulatedPrinter, live_etsy: SimulatedEtsy) -> Iterator[Farm]:
    """Who has no account before the shop's owner signs in with Etsy."""
    settings = settings_for(
        database_url,
        tmp_path / "data",
        **settings_of(live_etsy),
        BAMBU_CA_FILE=str(printer.ca_file),
        STATUS_INTERVAL_SECONDS="0.05",
        COMMAND_TIMEOUT_SECONDS="20",
        PRINTER_REST_SECONDS="0.2",
    )
    with working_app(settings, lambda: datetime.now(UTC)) as app:
        client = app.test_client()
        returned = consent(client.get("/api/auth/etsy/login").json["auth_url"])
        answer = client.post("/api/auth/etsy/callback", json=returned)
        assert answer.status_code == 200, answer.text
        yield Farm.of(client, answer.json)


def prints_of(seller: Farm, order_id: int) -> list[int]:
    """The ids, the first to be printed first."""
    found = seller.get("/api/bambu/scheduled-prints", query_string={"order_id": order_id}).json
    return sorted(each["id"] for each in found)


def print_by_hand(seller: Farm, printer_id: int, print_id: int) -> None:
    """What a person does for a print: release it, clear the plate when it is done."""
    seller.put(f"/api/bambu/scheduled-prints/{print_id}", {"scheduled_start": None})
    released = seller.post(f"/api/bambu/scheduled-prints/{print_id}/start")
    assert released.status_code == 200, released.text

    def is_done() -> bool:
        found = seller.get_print(print_id)
        assert found is not None and found["status"] != "failed", found
        return bool(found["status"] == "completed")

    eventually(is_done)
    clear_plate(seller, printer_id, print_id)


def test_an_order_goes_from_the_login_at_etsy_to_etsys_shipped(
    seller: Farm, printer: SimulatedPrinter, live_etsy: SimulatedEtsy
) -> None:
    assert (seller.user["email"], [shop["name"] for shop in seller.user["shops"]]) == (None, ["PrintedThings"])
    seller.put("/api/auth/user", {"auto_schedule": True})
    printer_id = connect(seller, printer)["id"]
    seller.add_material(printer_id, slot=0, color="#FFFFFF")
    clear_plate(seller, printer_id)

    now = datetime.now(UTC)
    vase = ReceiptLine("Spiral vase", "VASE-01", 2, variations={"Color": "White"})
    pattern = ReceiptLine("Vase pattern", "PDF-01", is_digital=True)
    add(live_etsy, RECEIPT, vase, pattern, ordered_at=now - timedelta(hours=1), updated_at=now)
    seller.post("/api/orders/sync")
    # Else Celery's own round has just begun the same one.
    order = eventually(lambda: seller.get("/api/orders").json["orders"])[0]
    assert (order["etsy_order_id"], order["status"], order["production_status"]) == (str(RECEIPT), "paid", "new")
    path = f"/api/orders/{order['id']}"

    waiting = seller.get("/api/orders/unmapped").json["unmapped"]
    assert [(each["sku"], each["units"]) for each in waiting] == [("VASE-01", 2)]
    assert prints_of(seller, order["id"]) == []
    file = seller.add_file(make_sliced_file(None, [Plate(minutes=6)]))
    seller.add_profile("A vase", sku="VASE-01", print_file_id=file["id"], units_per_plate=1)
    assert seller.get("/api/orders/unmapped").json["total"] == 0

    for _ in range(2):
        assert seller.post("/api/orders/sync").status_code == 200
    prints = prints_of(seller, order["id"])
    assert len(prints) == 2
    print_by_hand(seller, printer_id, prints[0])
    early = seller.post(f"{path}/ship", PARCEL)
    assert (early.status_code, early.json["code"]) == (409, "not_printed")
    assert live_etsy.shipments == []
    print_by_hand(seller, printer_id, prints[1])
    assert len(printer.starts) == 2
    assert seller.get(path).json["production_status"] == "printed"

    shipped = seller.post(f"{path}/ship", PARCEL)
    assert shipped.status_code == 200, shipped.text
    assert shipped.json["etsy"] == {"sent": True, "tracking_stored": True, "reason": None}
    assert seller.post(f"{path}/ship", PARCEL).json == shipped.json
    there = live_etsy.receipts[RECEIPT]
    assert (there["is_shipped"], there["status"]) == (True, "Completed")
    assert [(each["carrier_name"], each["tracking_code"]) for each in there["shipments"]] == [("dhl", "JJD00123456789")]
    assert live_etsy.shipments == [Shipment(RECEIPT, "JJD00123456789", "dhl", None)]
    assert calls_to(live_etsy, "/tracking") == 1
    again = seller.post("/api/orders/sync").json
    assert [(each["created"], each["withdrawn"]) for each in again["shops"]] == [(0, 0)]
    kept = seller.get(path).json
    assert (kept["status"], kept["production_status"]) == ("completed", "shipped")
    assert kept["tracking_number"] == "JJD00123456789"
