"""From a paid receipt at Etsy to a released print without a person; and a cancellation in the last moment."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from flask import Flask

from courier import Courier
from models import Order, OrderStatus, ScheduledPrint, db
from outbox import Outbox
from simulator import Plate, make_sliced_file
from simulator.etsy import ReceiptLine, SimulatedEtsy
from starts import Starts
from tasks import Rounds
from tests.conftest import Clock
from tests.etsy_bench import add, calls_to, connect, sync
from tests.farm_builder import Farm
from tests.test_starter import Bench


def has_a_vase(seller: Farm) -> None:
    printer_id = seller.add_printer(model="P1S", nozzle_diameter_mm=0.4)["id"]
    seller.add_material(printer_id, 0, color="#000000", weight_grams=100_000)
    plate = Plate(minutes=30, filaments=[("PLA", "#000000", 20, 7.0)])
    seller.add_profile("Vase", sku="V-1", print_file_id=seller.add_file(make_sliced_file(None, [plate]))["id"])


def prints(app: Flask) -> list[int | None]:
    with app.app_context():
        return list(db.session.execute(sa.select(ScheduledPrint.order_id).order_by(ScheduledPrint.id)).scalars())


@pytest.mark.parametrize("wanted", [True, False])
def test_a_paid_order_of_which_all_is_mapped_becomes_prints_once_if_that_is_wanted(
    shop_app: Flask, seller: Farm, etsy: SimulatedEtsy, wanted: bool
) -> None:
    has_a_vase(seller)
    seller.put("/api/auth/user", {"auto_schedule": wanted})
    connect(shop_app, seller.user["id"])
    add(etsy, 1, ReceiptLine("Vase", sku="V-1"))
    rounds = Rounds(shop_app, Outbox(shop_app, Courier.of(shop_app)))
    rounds.start()
    try:
        rounds.bring_in_orders()
        rounds.bring_in_orders()
    finally:
        rounds.stop()
    (order,) = seller.get("/api/orders").json["orders"]
    assert prints(shop_app) == ([order["id"]] if wanted else [])
    assert seller.post("/api/orders/sync").status_code == 200
    assert len(prints(shop_app)) == wanted


def test_a_sync_by_hand_makes_the_prints_too(shop_app: Flask, seller: Farm, etsy: SimulatedEtsy) -> None:
    has_a_vase(seller)
    seller.put("/api/auth/user", {"auto_schedule": True})
    connect(shop_app, seller.user["id"])
    add(etsy, 1, ReceiptLine("Vase", sku="V-1"))
    assert seller.post("/api/orders/sync").json["message"] == "Imported 1 new orders"
    assert prints(shop_app) == [seller.get("/api/orders").json["orders"][0]["id"]]


def test_an_order_that_was_cancelled_at_etsy_meanwhile_is_not_printed(
    shop_app: Flask, seller: Farm, clock: Clock, etsy: SimulatedEtsy
) -> None:
    """Etsy is asked once more, with the file not yet on its way; within ten minutes of an answer it is not."""
    bench = Bench(seller, clock)
    shop_id = connect(shop_app, seller.user["id"])
    add(etsy, 1, ReceiptLine("Vase", sku="V-1"))
    sync(shop_app, shop_id)
    with seller.database():
        order_id = db.session.execute(sa.select(Order.id)).scalar_one()
    seller.put(f"/api/bambu/scheduled-prints/{bench.print_id}", {"order_id": order_id})
    etsy.change_receipt(1, status="Canceled")
    clock.forward(minutes=11)
    bench.link.full_heard_at = clock()
    with seller.database():
        bench.hear()
        db.session.commit()
    before = calls_to(etsy, "/receipts/1")
    starts = Starts(shop_app, run=lambda *step: None, is_stopping=bench.is_stopping)
    assert bench.start(read_order_again=starts.read_order_again) == bench.print_id
    assert calls_to(etsy, "/receipts/1") == before + 1
    assert (bench.link.published, bench.storage.files) == ([], {})
    with seller.database():
        assert db.session.get_one(Order, order_id).status is OrderStatus.canceled
    assert seller.get_print(bench.print_id) is None
