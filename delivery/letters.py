"""From what is stored of an event to what a person reads: a mail, or a message for a messenger.

One event is told by its kind's own template; several that go out together are one summary. A payload is what a
webhook's receiver gets, fixed when the event happened; its texts are as hostile as who wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from delivery.mail_message import PNG_SIGNATURE, Mail, Picture
from delivery.mail_text import (
    MailContext,
    MailKind,
    SummaryItem,
    render_mail,
    render_message,
    render_summary,
    render_summary_message,
)

MAX_PICTURE_BYTES = 500_000
CONNECT_SHOP = "/api/auth/etsy/login"
# Named otherwise than the event; all others are its kind with an underscore.
_KINDS = {
    "print.needs_person": MailKind.NEEDS_PERSON,
    "print.needs_look": MailKind.NEEDS_LOOK,
    "printer.maintenance_due": MailKind.MAINTENANCE_DUE,
    "notification.test": MailKind.TEST,
}


def mail_of(
    payloads: Sequence[Mapping[str, Any]],
    *,
    to: str,
    message_id: str,
    public_url: str,
    zone: str,
    picture: bytes | None = None,
) -> Mail:
    """The mail about one event or several; times by the clock of `zone`, the link to `public_url` if there is one.

    `picture` is a PNG of the plate of the one event's print; anything else, and one beyond 500,000 bytes, is left out.

    Raises:
        ValueError: no payloads.
    """
    if not payloads:
        raise ValueError("a mail tells of one event at least")
    if len(payloads) > 1:
        link = _link(public_url)
        texts = render_summary([_item(payload) for payload in payloads], zone=zone, link=link)
        return Mail(to=to, subject=texts.subject, text=texts.text, html=texts.html, message_id=message_id)
    context = _context(payloads[0])
    context["zone"], context["link"] = zone, _link(public_url, context)
    shown = None
    if picture is not None and picture.startswith(PNG_SIGNATURE) and len(picture) <= MAX_PICTURE_BYTES:
        shown = Picture(f"plate.{message_id}@farm.invalid", picture)
        context["picture_cid"] = shown.content_id
    texts = render_mail(_kind(payloads[0]), context)
    return Mail(to=to, subject=texts.subject, text=texts.text, html=texts.html, message_id=message_id, picture=shown)


def message_of(payloads: Sequence[Mapping[str, Any]], *, public_url: str = "") -> tuple[str, str]:
    """(title, body) in plain text about one event or several, for a messenger; the body within 1,000 characters.

    Raises:
        ValueError: no payloads.
    """
    if not payloads:
        raise ValueError("a message tells of one event at least")
    if len(payloads) > 1:
        return render_summary_message([_item(payload) for payload in payloads], link=_link(public_url))
    context = _context(payloads[0])
    context["link"] = _link(public_url, context)
    return render_message(_kind(payloads[0]), context)


def _kind(payload: Mapping[str, Any]) -> MailKind:
    said = str(payload.get("type", ""))
    try:
        return _KINDS.get(said) or MailKind(said.replace(".", "_"))
    except ValueError:
        return MailKind.NEWS


def _item(payload: Mapping[str, Any]) -> SummaryItem:
    return SummaryItem(_kind(payload), _context(payload), payload.get("timestamp"))


def _link(public_url: str, context: MailContext | None = None) -> str | None:
    """To the farm, or to where a browser connects the shop anew; not one with a key of its own, for which it takes more
    than a link."""
    if not public_url:
        return None
    is_of_shop = context is not None and context.get("shop_name") and not context.get("has_own_key")
    return public_url.rstrip("/") + (CONNECT_SHOP if is_of_shop else "/")


def _context(payload: Mapping[str, Any]) -> MailContext:
    data: Mapping[str, Any] = payload["data"]
    printer, shop = data.get("printer") or {}, data.get("shop") or {}
    of_print, material = data.get("print") or {}, data.get("material") or {}
    order, alert, maintenance = data.get("order") or {}, data.get("alert") or {}, data.get("maintenance") or {}
    context: MailContext = {
        "printer_name": printer.get("name", ""),
        "printer_id": printer.get("id"),
        "shop_name": shop.get("name"),
        "has_own_key": bool(shop.get("has_own_key")),
        # A print made for an order carries the order's name in front; a mail names the order by itself.
        "print_name": (of_print.get("job_name") or "").removeprefix(f"{order.get('label') or ''} - ") or None,
        "order_label": order.get("label"),
        "buyer_name": order.get("buyer_name"),
        "ship_by": order.get("ship_by"),
        "material": material.get("material_type") or of_print.get("material_type"),
        "color": material.get("color") or of_print.get("material_color"),
        "slot": material.get("slot", of_print.get("material_slot")),
        "remaining_grams": material.get("remaining_grams"),
        "remaining_pct": material.get("remaining_pct"),
        "used_grams": of_print.get("used_grams"),
        "cost": of_print.get("material_cost"),
        "currency": of_print.get("currency"),
        "started_at": of_print.get("started_at"),
        "completed_at": of_print.get("completed_at"),
        "reason": alert.get("text") or data.get("reason"),
        "code": alert.get("code"),
        "since": alert.get("since"),
        "times": alert.get("times"),
        "hours": maintenance.get("hours"),
        "every_hours": maintenance.get("every_hours"),
    }
    return context
