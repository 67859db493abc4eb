"""The demo's last act: the order is packed, and goes back to Etsy as shipped."""

from __future__ import annotations

from simulator import demo_etsy_judges as judges
from simulator.demo_goods import BUYER, CARRIER, TRACKING
from simulator.demo_show import Show
from simulator.demo_stage import shown_path

PAGES = ("packing-slip", "job-tickets")


def ship_order(show: Show, order_id: int) -> None:
    stage, seller, screen = show.stage, show.seller, show.screen
    screen.open_phase("Packed, and handed back to Etsy")
    pages = {}
    for name in PAGES:
        path = f"/api/orders/{order_id}/{name}"
        pages[name] = seller.get_page(path)
        kept = stage.scene.folder / f"{name}.html"
        kept.write_text(pages[name], encoding="utf-8")
        screen.tell(f"To print: {shown_path(kept)}", f"GET {path}")
    judges.judge_papers(show.checks, pages["packing-slip"], pages["job-tickets"], seller.find_prints(order_id))
    path, parcel = f"/api/orders/{order_id}/ship", {"tracking_code": TRACKING, "carrier_name": CARRIER}
    first = seller.post(path, parcel)
    screen.tell(f"{CARRIER.upper()} {TRACKING}: {first['message']}", f"POST {path}", "green")
    if first["etsy"]["reason"]:
        screen.tell(f"  {first['etsy']['reason']}", color="yellow")
    second = seller.post(path, parcel)
    screen.tell("Pressed once more, as one does", f"POST {path}")
    receipt = stage.etsy.receipts[int(first["order"]["etsy_order_id"])]
    there = ", ".join(f"{each['carrier_name']} {each['tracking_code']}" for each in receipt["shipments"])
    mails = len(stage.etsy.shipments)
    screen.tell(
        f"At Etsy the order is {receipt['status'].lower()}, with {there or 'no tracking number'}; "
        f"{BUYER} got {mails} mail{'' if mails == 1 else 's'}"
    )
    judges.judge_shipped(show.checks, receipt, seller.get(f"/api/orders/{order_id}"), first["etsy"])
    judges.judge_once(show.checks, stage.etsy, first, second)
