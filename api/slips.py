"""What a shop prints on paper: an order's packing slip and a ticket for each of its prints. HTML without a script."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from columns import CURRENCY_PLACES, currency_number
from models import SLOTS_PER_UNIT, BambuMaterial, Order, OrderItem, Printer, PrintFile, ScheduledPrint

PAGES = Path(__file__).parents[1] / "templates" / "pages"
STYLE = (PAGES / "print.css").read_text(encoding="utf-8")
STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
# In the page itself, too: opened from a blob, as a front end does that sent the token, it has no headers.
META_POLICY = f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; base-uri 'none'; form-action 'none'"
POLICY = f"{META_POLICY}; frame-ancestors 'none'"
STEPS = ("Plate clear", "Filament loaded", "Printed", "Cleaned up", "Checked", "Packed")
SWATCH = re.compile(r"(#[0-9A-Fa-f]{6})([0-9A-Fa-f]{2})?")

_PAGES = Environment(
    loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def packing_slip(order: Order, shop_name: str, zone: ZoneInfo) -> str:
    """The page that goes into the parcel. Nothing of the order's money stands on that of a gift. Etsy hides addresses
    from many applications, so there is none on it."""
    lines = [
        {
            **{name: getattr(item, name) for name in ("title", "sku", "quantity", "personalization", "is_digital")},
            "options": _options(item),
            "price": None if item.price is None else money(item.price * item.quantity, item.currency),
        }
        for item in order.items
    ]
    parts = (order.carrier_name, order.tracking_number) if order.tracking_number else ()
    return _render(
        "packing_slip.html",
        shop_name=shop_name,
        number=_number(order),
        ordered_on=_day(order.ordered_at, zone),
        buyer_name=order.buyer_name,
        tracking=" ".join(part for part in parts if part),
        lines=lines,
        has_prices=not order.is_gift,
        total=None if order.total_amount is None else money(order.total_amount, order.currency),
        gift_message=order.gift_message,
        gift_sender=order.gift_sender if order.is_gift else None,
    )


def job_tickets(
    order: Order,
    prints: Sequence[ScheduledPrint],
    printers: Mapping[int, Printer],
    files: Mapping[int, PrintFile],
    spools: Mapping[tuple[int, int], BambuMaterial],
    zone: ZoneInfo,
) -> str:
    """A ticket a print, in the order of `prints`. `spools` are what is loaded, by printer and slot."""
    items = {item.id: item for item in order.items}
    tickets = []
    for each in prints:
        item = items.get(each.order_item_id or 0)
        slot = each.material_slot
        spool = spools.get((each.printer_id, slot)) if slot is not None else None
        color = each.material_color or (spool.color if spool else None)
        shade = SWATCH.fullmatch((spool.color if spool else None) or color or "")
        tickets.append(
            {
                "id": each.id,
                "status": each.status.value,
                "title": item.title if item else each.job_name,
                "units": each.units,
                "personalization": item.personalization if item else None,
                "options": _options(item) if item else [],
                "notes": each.notes,
                "printer": _printer(printers.get(each.printer_id)),
                "filament": " ".join(part for part in (each.material_type, color) if part) or "not said",
                "swatch": shade[1] if shade else None,
                "slot": _slot(slot),
                "file": _file(each, files.get(each.print_file_id or 0)),
            }
        )
    return _render(
        "job_tickets.html",
        number=_number(order),
        buyer_name=order.buyer_name,
        ship_by=_day(order.ship_by, zone) if order.ship_by else None,
        message_from_buyer=order.message_from_buyer,
        tickets=tickets,
        steps=STEPS,
    )


def _render(name: str, **facts: Any) -> str:
    # The hash is of these very bytes, so they go in as they are: our own style sheet, and nothing of a buyer's.
    return _PAGES.get_template(name).render(policy=META_POLICY, style=Markup(STYLE), **facts)


def _number(order: Order) -> str:
    return order.label.removeprefix("Order ")


def _options(item: OrderItem) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in (item.options or {}).items()]


def _day(moment: datetime, zone: ZoneInfo) -> str:
    return moment.astimezone(zone).date().isoformat()


def money(amount: Decimal, currency: str) -> str:
    """As on paper: `12.50 EUR`, `1200 JPY`."""
    return f"{currency_number(amount, currency):.{CURRENCY_PLACES.get(currency, 2)}f} {currency}"


def _printer(printer: Printer | None) -> str:
    if printer is None:
        return "a removed printer"
    return f"{printer.name} ({printer.location})" if printer.location else printer.name


def _slot(slot: int | None) -> str:
    if slot is None:
        return "any with this filament"
    return f"AMS {slot // SLOTS_PER_UNIT + 1}, tray {slot % SLOTS_PER_UNIT + 1} (slot {slot})"


def _file(each: ScheduledPrint, stored: PrintFile | None) -> str:
    name = stored.file_name if stored else each.file_name
    return f"{name}, plate {each.plate}" if name else "none yet"
