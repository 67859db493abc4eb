"""What a mail says: from an event's facts to subject, plain text and HTML, by the templates in `templates/mail`.

Every fact may be hostile (a printer, a file or a buyer wrote it): each is cleaned here, and escaped in the HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, TypedDict

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_COLOR = re.compile(r"#[0-9a-f]{6}([0-9a-f]{2})?", re.I | re.A)
_LINK = re.compile(r"https?://[!-~]{1,2000}", re.I | re.A)
_WITHOUT_CENTS = frozenset({"CLP", "ISK", "JPY", "KRW", "PYG", "UGX", "VND", "XAF", "XOF", "XPF"})
_NAME_CHARS = 200
_REASON_CHARS = 1_000


class MailKind(StrEnum):
    """What a mail is about; each has its template of the same name."""

    PRINT_STARTED = "print_started"
    PRINT_COMPLETED = "print_completed"
    PRINT_FAILED = "print_failed"
    MATERIAL_LOW = "material_low"
    MATERIAL_CRITICAL = "material_critical"
    MATERIAL_REPLACE = "material_replace"
    MATERIAL_DEPLETED = "material_depleted"
    MATERIAL_CHANGED = "material_changed"
    PRINTER_OFFLINE = "printer_offline"
    PRINTER_BACK = "printer_back"
    NEEDS_PERSON = "needs_person"


Number = Decimal | int | float | str | None
Moment = datetime | str | None


class MailContext(TypedDict, total=False):
    """The facts a mail may tell. What is missing, None or unreadable is not spoken of.

    Times are shown in their own zone and may be RFC 3339 texts; a number may be a text; a duration as text is kept.
    """

    printer_name: str
    print_name: str | None
    order_label: str | None
    buyer_name: str | None
    material: str | None
    color: str | None
    slot: int | None
    remaining_grams: Number
    remaining_pct: Number
    used_grams: Number
    cost: Number
    currency: str | None
    started_at: Moment
    completed_at: Moment
    duration: timedelta | str | None
    reason: str | None
    link: str | None


class RenderedMail(NamedTuple):
    """A mail's three texts; `subject` is one line."""

    subject: str
    text: str
    html: str


class _Fact(NamedTuple):
    label: str
    value: str
    swatch: str = ""


def without_controls(text: str) -> str:
    """The text without control, direction-changing and invisible characters; line breaks (LF) and tabs stay."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str, max_chars: int) -> str:
    """The text cleaned, on one line, and cut to `max_chars`."""
    line = " ".join(without_controls(text).split())
    return line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"


def render_mail(kind: str, context: MailContext) -> RenderedMail:
    """Subject, plain text and HTML of one mail.

    Raises:
        ValueError: `kind` is not a MailKind.
    """
    template = f"{MailKind(kind)}.j2"
    color = _name(context.get("color"))
    values = {
        "printer_name": _name(context.get("printer_name")) or "the printer",
        "print_name": _name(context.get("print_name")),
        "order_label": _name(context.get("order_label")),
        "buyer_name": _name(context.get("buyer_name")),
        "spool": _spool(context, "" if color.startswith("#") else color),  # people do not say hexadecimal
        "remaining": _remaining(context),
        "duration": _duration(context),
        "reason": one_line(context.get("reason") or "", _REASON_CHARS),
        "link": _link(context.get("link")),
        "facts": [fact for fact in _facts(context) if fact.value],
    }
    plain = _AS_TEXT.get_template(template)
    subject = "".join(plain.blocks["subject"](plain.new_context(values)))
    text = plain.render(values, layout="layout.txt.j2")
    html = _AS_HTML.get_template(template).render(values, layout="layout.html.j2")
    return RenderedMail(one_line(subject, _NAME_CHARS), re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", html)


def _facts(context: MailContext) -> Iterator[_Fact]:
    color = _name(context.get("color"))
    yield _Fact("Print", _name(context.get("print_name")))
    yield _Fact("For", " · ".join(filter(None, (_name(context.get("order_label")), _name(context.get("buyer_name"))))))
    yield _Fact("Printer", _name(context.get("printer_name")))
    yield _Fact("Material", _spool(context, color), color[:7] if _COLOR.fullmatch(color) else "")
    yield _Fact("Left on the spool", _remaining(context))
    yield _Fact("Used", _grams(context.get("used_grams")))
    yield _Fact("Material cost", _money(context.get("cost"), context.get("currency")))
    yield _Fact("Started", _moment(context.get("started_at")))
    yield _Fact("Ended", _moment(context.get("completed_at")))
    yield _Fact("Took", _duration(context))


def _name(text: str | None) -> str:
    return one_line(text or "", _NAME_CHARS)


def _spool(context: MailContext, color: str) -> str:
    """Like `PLA, black, slot 2`."""
    slot = context.get("slot")
    return ", ".join(filter(None, (_name(context.get("material")), color, "" if slot is None else f"slot {slot:d}")))


def _remaining(context: MailContext) -> str:
    """Like `175 g (70 %)`."""
    grams, percent = _grams(context.get("remaining_grams")), _rounded(context.get("remaining_pct"), 0)
    percent = percent and f"{percent} %"
    return f"{grams} ({percent})" if grams and percent else grams or percent


def _grams(value: Number) -> str:
    return _rounded(value, 1).removesuffix(".0") + " g" if _rounded(value, 1) else ""


def _money(value: Number, currency: str | None) -> str:
    code = one_line(currency or "", 3)
    amount = _rounded(value, 0 if code in _WITHOUT_CENTS else 2)
    return f"{amount} {code}".strip() if amount else ""


def _rounded(value: Number, decimals: int) -> str:
    """Rounded half up; empty for nothing and for what is no number."""
    if value is None:
        return ""
    try:
        number = Decimal(str(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    except InvalidOperation:
        return ""
    return f"{number:,f}" if number.is_finite() else ""


def _read_moment(at: Moment) -> datetime | None:
    if isinstance(at, str):
        try:
            at = datetime.fromisoformat(at)
        except ValueError:
            return None
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _moment(at: Moment) -> str:
    """Like `21 Nov 2026, 09:05 UTC`."""
    moment = _read_moment(at)
    return f"{moment:%d %b %Y, %H:%M %Z}" if moment else ""


def _duration(context: MailContext) -> str:
    """Like `2 h 5 min`; from start and end when it is not given."""
    duration = context.get("duration")
    if isinstance(duration, str):
        return _name(duration)
    start, end = _read_moment(context.get("started_at")), _read_moment(context.get("completed_at"))
    if duration is None and start is not None and end is not None:
        duration = end - start
    if duration is None or duration < timedelta(0):
        return ""
    hours, minutes = divmod(round(duration.total_seconds() / 60), 60)
    if hours and minutes:
        return f"{hours} h {minutes} min"
    return f"{hours} h" if hours else f"{minutes} min"


def _link(link: str | None) -> str:
    """Only http and https: an escaped `javascript:` would still run when clicked."""
    return link if link and _LINK.fullmatch(link) else ""


def _strong(text: str) -> Markup:
    return Markup("<strong>{}</strong>").format(escape(text))


def _environment(for_html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "templates" / "mail"),
        autoescape=for_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["strong"] = _strong if for_html else str
    return environment


_AS_TEXT = _environment(for_html=False)
_AS_HTML = _environment(for_html=True)
