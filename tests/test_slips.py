"""The pages that go to the printer of paper: what stands on them, and that a buyer's text stays in its place."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import datetime
from html.parser import HTMLParser
from typing import Any

import pytest
import sqlalchemy as sa

from models import Order, OrderItem, Printer, PrintFile, ScheduledPrint, User
from tests.farm_builder import Farm

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raise %}",
    "&lt;b&gt; &amp;",
    "\u202egnp.exe",
    "' style='position:fixed",
    "x" * 255,
]
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "footer", "section", "div", "h1", "h2", "p"),
    *("dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "strong", "bdi", "blockquote", "ul", "li"),
    *("svg", "rect"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "class", "viewbox", "aria-hidden", "x", "y", "width"),
    *("height", "fill", "stroke"),
}


class Page(HTMLParser):
    """A page, read: its texts as a person sees them, and everything that it is made of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.fills: list[str] = []
        self.parts: list[str] = []
        self.style = ""
        self._in: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.fills += [value or "" for name, value in attrs if name == "fill"]
        self._in.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._in.append("")

    def handle_data(self, data: str) -> None:
        if self._in and self._in[-1] == "style":
            self.style += data
        else:
            self.parts.append(data)


def page(farm: Farm, order_id: int, name: str) -> Page:
    answer = farm.get(f"/api/orders/{order_id}/{name}")
    assert answer.status_code == 200
    assert answer.mimetype == "text/html"
    made = Page(answer.text)
    digest = base64.b64encode(hashlib.sha256(made.style.encode()).digest()).decode()
    policy = answer.headers["Content-Security-Policy"]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert policy.removesuffix("; frame-ancestors 'none'").replace("'", "&#39;") in answer.text
    assert made.tags <= TAGS and made.attributes <= ATTRIBUTES
    assert not re.search(r"https?:|url\(", answer.text)
    return made


def change(farm: Farm, model: type[Any], row_id: int, **values: Any) -> None:
    """What only a sync writes."""
    with farm.database() as session:
        session.execute(sa.update(model).where(model.id == row_id).values(**values))
        session.commit()


def scheduled(farm: Farm, *lines: dict[str, Any], **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    order = farm.add_order(*lines, **fields)
    printer = farm.add_printer("Left", location="Shelf 2")
    answer = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer["id"]})
    prints: list[dict[str, Any]] = answer.json["prints"]
    return order, prints


VASE = {"title": "Vase", "quantity": 2, "price": 12.5, "sku": "V-1", "options": {"Color": "White"}}


def test_a_packing_slip_says_what_is_in_the_parcel(farm: Farm) -> None:
    order = farm.add_order(VASE, buyer_name="Robin Example", currency="EUR")
    change(farm, OrderItem, order["items"][0]["id"], personalization="Für Zoë\n2026")
    text = page(farm, order["id"], "packing-slip").text
    for said in ("seller", f"Order #{order['id']}", "Ordered on 2026-11-21", "For Robin Example", "2 × Vase V-1"):
        assert said in text
    for said in ("Color : White", "“ Für Zoë 2026 ”".replace("“ ", "“").replace(" ”", "”"), "25.00 EUR"):
        assert said in text


def test_a_gift_shows_its_message_and_no_money(farm: Farm) -> None:
    order = farm.add_order(VASE, currency="EUR")
    change(farm, Order, order["id"], is_gift=True, gift_message="Happy birthday!")
    text = page(farm, order["id"], "packing-slip").text
    assert "Happy birthday!" in text
    assert "EUR" not in text and "25" not in text and "Price" not in text
    assert "A message for you Happy" in text
    change(farm, Order, order["id"], gift_sender="Lou <b>& Zoë")
    assert "A message for you from Lou <b>& Zoë Happy birthday!" in page(farm, order["id"], "packing-slip").text
    # Of what is no gift it is nobody's.
    change(farm, Order, order["id"], is_gift=False)
    assert "Lou" not in page(farm, order["id"], "packing-slip").text


def test_a_currency_without_cents_has_none_on_paper(farm: Farm) -> None:
    order = farm.add_order({"title": "Vase", "quantity": 3, "price": 1200}, currency="JPY")
    assert "3600 JPY" in page(farm, order["id"], "packing-slip").text


def test_a_digital_line_is_said_not_to_be_in_the_parcel(farm: Farm) -> None:
    order = farm.add_order({"title": "Plan", "quantity": 1})
    change(farm, OrderItem, order["items"][0]["id"], is_digital=True)
    assert "Digital: not in this parcel" in page(farm, order["id"], "packing-slip").text


def test_the_day_is_that_of_the_sellers_zone(farm: Farm) -> None:
    order = farm.add_order(ship_by="2026-11-30T23:30:00Z")
    change(farm, Order, order["id"], ordered_at=datetime.fromisoformat("2026-11-21T23:30:00+00:00"))
    change(farm, User, farm.user["id"], timezone="Europe/Berlin")
    assert "Ordered on 2026-11-22" in page(farm, order["id"], "packing-slip").text


def test_the_tracking_number_stands_on_it_once_it_is_shipped(farm: Farm) -> None:
    order = farm.add_order()
    change(farm, Order, order["id"], tracking_number="AB 12", carrier_name="dhl")
    assert "Tracking dhl AB 12" in page(farm, order["id"], "packing-slip").text


def test_a_ticket_says_all_that_a_print_takes(farm: Farm) -> None:
    file = farm.add_file()
    farm.add_profile("Vase", print_file_id=file["id"], units_per_plate=2, preferred_material="PETG")
    order, (made,) = scheduled(farm, VASE, buyer_name="Robin", ship_by="2026-11-30T23:30:00Z")
    change(farm, OrderItem, order["items"][0]["id"], personalization="ZOË")
    change(farm, ScheduledPrint, made["id"], material_slot=5, material_color="Navy", units=12)
    change(farm, User, farm.user["id"], timezone="Europe/Berlin")
    farm.add_material(made["printer_id"], 5, color="#1F3A9380")
    seen = page(farm, order["id"], "job-tickets")
    for said in (
        *(
            "Vase 12 pieces",
            "Personalization ZOË",
            "Notes Quantity: 2",
            f"Order #{order['id']} for Robin",
            "Ship by 2026-12-01",
        ),
        *(f"Print {made['id']}, 1 of 1, queued", "Printer Left (Shelf 2)", "Filament PETG Navy"),
        *("Slot AMS 2, tray 2 (slot 5)", "File vase.gcode.3mf, plate 1", "Color White"),
        *("Plate clear", "Filament loaded", "Printed", "Cleaned up", "Checked", "Packed"),
    ):
        assert said in seen.text
    assert seen.fills == ["#1F3A93", *["none"] * 6]


def test_there_is_a_ticket_a_print_and_a_deleted_print_has_none(farm: Farm) -> None:
    order, prints = scheduled(farm, {"title": "Vase", "quantity": 1}, {"title": "Bowl", "quantity": 1})
    farm.delete(f"/api/bambu/scheduled-prints/{prints[0]['id']}")
    text = page(farm, order["id"], "job-tickets").text
    assert "Bowl Notes Quantity: 1" in text and "Vase" not in text
    assert "Slot any with this filament" in text and "File none yet" in text and "Ship by no date" in text


def test_an_order_without_prints_says_so(farm: Farm) -> None:
    assert "No print is scheduled" in page(farm, farm.add_order()["id"], "job-tickets").text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_a_text_wherever_it_stands(farm: Farm, text: str) -> None:
    order, (made,) = scheduled(farm, VASE)
    change(
        farm,
        Order,
        order["id"],
        buyer_name=text,
        gift_message=text,
        gift_sender=text,
        message_from_buyer=text,
        tracking_number=text,
    )
    item = {"title": text, "sku": text, "personalization": text, "options": {text: text}}
    change(farm, OrderItem, order["items"][0]["id"], **item)
    file = farm.add_file()
    change(farm, PrintFile, file["id"], file_name=text)
    change(farm, Printer, made["printer_id"], name=text, location=text)
    colors = {"material_type": text, "material_color": text, "notes": text}
    change(farm, ScheduledPrint, made["id"], print_file_id=file["id"], **colors)
    change(farm, User, farm.user["id"], username=text)
    for name in ("packing-slip", "job-tickets"):
        seen = page(farm, order["id"], name)
        assert " ".join(text.split()) in seen.text
        assert set(seen.fills) <= {"none"}


def test_the_pages_need_a_token(farm: Farm) -> None:
    order_id = farm.add_order()["id"]
    for name in ("packing-slip", "job-tickets"):
        answer = farm.client.get(f"/api/orders/{order_id}/{name}")
        assert (answer.status_code, answer.mimetype) == (401, "application/json")
        assert farm.get(f"/api/orders/{order_id}/{name}").headers["Cache-Control"] == "no-store"
