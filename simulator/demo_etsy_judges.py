"""Judges what the demo promises of Etsy: by what the API says, and by what the simulated Etsy has on record."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs

from simulator.demo_checks import Check, CheckList
from simulator.demo_goods import BUYER, CARRIER, CLIPS, LINES, PRODUCTS, RECEIPT_ID, TRACKING, VASE
from simulator.demo_stage import Post
from simulator.etsy import SimulatedEtsy

PLATE_BUFFER = timedelta(minutes=15)
PRINTS_DUE = sum(-(-product.line.quantity // product.units_per_plate) for product in PRODUCTS)
TICKET = 'class="ticket"'


def judge_login(
    checks: CheckList, etsy: SimulatedEtsy, connected: Mapping[str, Any], signed_in: Mapping[str, Any]
) -> None:
    """`connected`, `signed_in`: the account after a login with its token, and after one with nothing but Etsy's."""
    faults = []
    shops = [(shop["etsy_shop_id"], shop["name"]) for shop in signed_in["shops"]]
    if shops != [(str(etsy.shop.etsy_shop_id), etsy.shop.name)]:
        faults.append(f"the account's shops are {shops}")
    if connected["id"] != signed_in["id"]:
        faults.append(f"signing in with Etsy opened account {signed_in['id']} instead of {connected['id']}")
    forms = [parse_qs(each.body.decode()) for each in etsy.requests if each.path.endswith("/oauth/token")]
    verified = sum("code_verifier" in form for form in forms)
    if verified != 2:
        faults.append(f"Etsy gave tokens for {verified} codes instead of 2")
    checks.settle(
        Check.LOGIN, faults, f"{etsy.shop.name} is account {connected['id']}'s; 2 codes, each with its PKCE verifier"
    )


def judge_receipt(
    checks: CheckList,
    etsy: SimulatedEtsy,
    receipt: Mapping[str, Any],
    orders: Sequence[Mapping[str, Any]],
    seconds: float,
) -> None:
    faults = []
    asked = [each for each in etsy.requests if each.method == "GET" and each.path.endswith("/receipts")]
    if not asked:
        faults.append("the simulated Etsy was never asked for receipts")
    if [order["etsy_order_id"] for order in orders] != [str(RECEIPT_ID)]:
        checks.settle(Check.RECEIPT, [*faults, f"the API lists {len(orders)} orders, not just {RECEIPT_ID}"], "")
        return
    order = orders[0]
    bought = [(line["sku"], line["quantity"], line["options"], line["is_digital"]) for line in order["items"]]
    if bought != [(line.sku, line.quantity, dict(line.variations), line.is_digital) for line in LINES]:
        faults.append(f"its lines are {bought}")
    total = Decimal(receipt["grandtotal"]["amount"]) / receipt["grandtotal"]["divisor"]
    if Decimal(str(order["total_amount"])) != total:
        faults.append(f"its total is {order['total_amount']} instead of {total}")
    if order["ship_by"] is None:
        faults.append("it has no date to ship by")
        checks.settle(Check.RECEIPT, faults, "")
        return
    checks.settle(
        Check.RECEIPT,
        faults,
        f"receipt {RECEIPT_ID} {seconds:.1f} s after the login, by {len(asked)} calls to {etsy.base_url}: "
        f"{len(bought)} lines, {total:.2f} {order['currency']}, "
        f"ship by {datetime.fromisoformat(order['ship_by']):%d %b %Y, %H:%M} UTC",
    )


def judge_plan(checks: CheckList, posts: Sequence[Post], prints: Sequence[Mapping[str, Any]], unmapped: int) -> None:
    """Each product where its file fits, each printer's first print at once, the next not before that and a buffer."""
    faults, hours = [], []
    if len(prints) != PRINTS_DUE:
        faults.append(f"{len(prints)} prints instead of {PRINTS_DUE}")
    if unmapped:
        faults.append(f"{unmapped} lines wait for a mapping")
    if [each["priority"] for each in prints] != list(range(10, 10 - len(prints), -1)):
        faults.append("the priorities do not fall from 10 one by one")
    if any(each["status"] != "queued" for each in prints):
        faults.append("not all are queued")
    for post, product in zip(posts, (VASE, CLIPS), strict=True):
        own = [each for each in prints if each["printer_id"] == post.printer_id]
        if not own or any(product.title not in each["job_name"] for each in own):
            faults.append(f"{post.name} has not just {product.title}")
            continue
        if own[0]["scheduled_start"]:
            faults.append(f"print {own[0]['id']} does not start at once")
        starts = [datetime.fromisoformat(each["scheduled_start"] or each["created_at"]) for each in own]
        for before, start, following in zip(own, starts, starts[1:], strict=False):
            if following - start < timedelta(minutes=before["estimated_duration_minutes"]) + PLATE_BUFFER:
                faults.append(f"print {before['id']} and the next overlap")
        hours += [f"{start:%H:%M}" for start in starts[1:]]
    words = (
        f"{len(prints)} prints: {VASE.title} on {posts[0].name}, {CLIPS.title} on {posts[1].name}, the first of each "
        f"at once, the others not before {', '.join(hours)} UTC; 1 digital line skipped"
    )
    checks.settle(Check.PLAN, faults, words)


def judge_papers(checks: CheckList, slip: str, tickets: str, prints: Sequence[Mapping[str, Any]]) -> None:
    """HTML: who bought what is on the slip, and each print has a ticket."""
    faults = []
    words = html.unescape(slip)
    for due in (BUYER, str(RECEIPT_ID), *(line.title for line in LINES)):
        if due not in words:
            faults.append(f"“{due}” is not on the packing slip")
    if tickets.count(TICKET) != len(prints):
        faults.append(f"{tickets.count(TICKET)} job tickets for {len(prints)} prints")
    if "<script" in slip + tickets:
        faults.append("there is a script in them")
    checks.settle(
        Check.PAPERS,
        faults,
        f"a slip with {len(LINES)} lines for {BUYER}, {len(prints)} tickets, and no script in them",
    )


def judge_shipped(
    checks: CheckList, receipt: Mapping[str, Any], order: Mapping[str, Any], told: Mapping[str, Any]
) -> None:
    """`receipt` as it lies at Etsy, `order` as the API shows it, `told` what it says of Etsy."""
    faults = []
    if (receipt["is_shipped"], receipt["status"]) != (True, "Completed"):
        faults.append(f"at Etsy it is {receipt['status']}")
    parcels = [(each["carrier_name"], each["tracking_code"]) for each in receipt["shipments"]]
    if parcels != [(CARRIER, TRACKING)]:
        there = ", ".join(" ".join(parcel) for parcel in parcels) or "no tracking number"
        faults.append(f"Etsy holds {there} instead of {CARRIER} {TRACKING}")
    if (order["production_status"], order["tracking_number"]) != ("shipped", TRACKING):
        faults.append(f"the API says that it is {order['production_status']} with {order['tracking_number']}")
    if told["reason"]:
        faults.append(f"the app says: {told['reason']}")
    elif not (told["sent"] and told["tracking_stored"]):
        faults.append("the app does not say that Etsy has it")
    words = f"receipt {receipt['receipt_id']} is {receipt['status'].lower()} there, with {CARRIER} {TRACKING}"
    checks.settle(Check.SHIPPED, faults, words)


def judge_once(checks: CheckList, etsy: SimulatedEtsy, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """`first` and `second`: what the API answered to the same twice."""
    faults = []
    calls = sum(each.method == "POST" and each.path.endswith("/tracking") for each in etsy.requests)
    mails = len([each for each in etsy.shipments if each.receipt_id == RECEIPT_ID])
    if mails != 1:
        faults.append(f"{BUYER} got {mails} mails")
    if calls != 1:
        faults.append(f"Etsy was told {calls} times")
    if second != first:
        faults.append("the second time the app answered something else")
    checks.settle(Check.ONCE, faults, f"{mails} mail to {BUYER}, {calls} call to Etsy, and the same answer both times")
