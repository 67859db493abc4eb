"""The demo's middle acts: the shop is connected, an order comes in, its prints are made and released."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from simulator import demo_etsy_judges as judges
from simulator.demo_goods import BUYER, LINES, RECEIPT_ID
from simulator.demo_show import Show
from simulator.demo_stage import DemoFailed
from simulator.demo_watch import Lane, title_of


def bring_in_order(show: Show) -> int:
    """Its id. It was bought before the shop was connected, so it is the first that the farm ever asks for."""
    stage, seller, screen = show.stage, show.seller, show.screen
    screen.open_phase("The shop is connected, and an order comes in by itself")
    receipt = stage.receive_order(RECEIPT_ID, list(LINES), BUYER)
    screen.tell(f"{BUYER} has bought {', '.join(f'{line.quantity} × {line.title}' for line in LINES)}")
    user = seller.connect_etsy()
    connected_at = time.monotonic()
    shops = ", ".join(shop["name"] for shop in user["shops"])
    screen.tell(f"Etsy shop {shops}: login, consent, redirect", "GET /api/auth/etsy/login, …/callback")
    signed_in = seller.sign_in_with_etsy()
    screen.tell(
        f"“Sign in with Etsy” in another browser: it is account {signed_in['id']} again", "the same, without a token"
    )
    judges.judge_login(show.checks, stage.etsy, user, signed_in)
    screen.tell("Now nobody presses anything: Celery looks every 5 s which shop is due")

    def has_come() -> bool:
        shop = seller.get("/api/orders/sync")["shops"][0]
        return shop["sync_ended_at"] is not None or shop["sync_error"] is not None

    stage.wait_until(has_come)
    shop = seller.get("/api/orders/sync")["shops"][0]
    orders = seller.get("/api/orders")["orders"]
    seconds = time.monotonic() - connected_at
    judges.judge_receipt(show.checks, stage.etsy, receipt, orders, seconds)
    if not orders:
        raise DemoFailed(
            f"The order did not come in: {shop['sync_error'] or 'its shop was not synced'}. {stage.log_hint()}"
        )
    done = shop["sync_progress"]
    screen.tell(f"{done['created']} order came in, with {done['requests']} requests", "GET /api/orders/sync")
    _tell_order(show, orders[0])
    return int(orders[0]["id"])


def _tell_order(show: Show, order: dict[str, Any]) -> None:
    ship_by = f"{datetime.fromisoformat(order['ship_by']):%d %b %Y}"
    show.screen.tell(
        f"Order {order['id']}: {order['buyer_name']}, {order['total_amount']:.2f} {order['currency']}, "
        f"ship by {ship_by}",
        f"GET /api/orders/{order['id']}",
    )
    for line in order["items"]:
        options = ", ".join(f"{name}: {value}" for name, value in line["options"].items())
        what = "digital" if line["is_digital"] else f"SKU {line['sku']}"
        show.screen.tell(f"  {line['quantity']} × {line['title']}{f' ({options})' if options else ''}, {what}")


def await_prints(show: Show, order_id: int) -> list[Lane]:
    """The order's prints by printer, planned and not yet released."""
    seller, screen, posts = show.seller, show.screen, show.stage.posts
    screen.open_phase("Its prints are made by themselves")
    show.stage.wait_until(lambda: bool(seller.find_prints(order_id)))
    prints = seller.find_prints(order_id)
    unmapped = seller.get("/api/orders/unmapped")["total"]
    judges.judge_plan(show.checks, posts, prints, unmapped)
    if not prints:
        raise DemoFailed(f"No prints were made of the order. {show.stage.log_hint()}")
    screen.tell(
        f"{len(prints)} prints, each on the printer its file is sliced for; {unmapped} lines wait for a mapping",
        "GET /api/bambu/scheduled-prints, /api/orders/unmapped",
    )
    names = {post.printer_id: f"{post.name} ({post.model})" for post in posts}
    for each in prints:
        start = each["scheduled_start"]
        begin = f"not before {datetime.fromisoformat(start):%H:%M} UTC" if start else "at once"
        screen.tell(
            f"  print {each['id']}: {title_of(each)} on {names[each['printer_id']]}, "
            f"{each['estimated_duration_minutes']} min, {begin}"
        )
    _take_hours_off(show, prints)
    return [Lane(post, [each["id"] for each in prints if each["printer_id"] == post.printer_id]) for post in posts]


def release_prints(show: Show, lanes: Sequence[Lane]) -> None:
    print_ids = sorted(print_id for lane in lanes for print_id in lane.print_ids)
    for print_id in print_ids:
        show.seller.post(f"/api/bambu/scheduled-prints/{print_id}/start")
    show.screen.tell(
        f"{len(print_ids)} prints released: each starts when its printer and the plate are free",
        "POST /api/bambu/scheduled-prints/<id>/start",
    )


def _take_hours_off(show: Show, prints: Sequence[dict[str, Any]]) -> None:
    timed = [each for each in prints if each["scheduled_start"]]
    show.screen.tell("“Not before” is meant in real hours, and these printers are faster: the seller wants them now")
    for each in timed:
        show.seller.put(f"/api/bambu/scheduled-prints/{each['id']}", {"scheduled_start": None})
    show.screen.tell(
        f"  the hour is taken off {len(timed)} prints",
        'PUT /api/bambu/scheduled-prints/<id> {"scheduled_start": null}',
    )
