"""The facts that a mail may tell, and how each is written for a person.

Every fact may be hostile (a printer, a file or a buyer wrote it): each is cleaned here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import NamedTuple, TypedDict

from delivery.hours import zone_of

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_COLOR = re.compile(r"#[0-9a-f]{6}([0-9a-f]{2})?", re.I | re.A)
_LINK = re.compile(r"https?://[!-~]{1,2000}", re.I | re.A)
_WITHOUT_CENTS = frozenset({"CLP", "ISK", "JPY", "KRW", "PYG", "UGX", "VND", "XAF", "XOF", "XPF"})
# What may stand in `cid:` and in the header of the picture that it names (RFC 2392).
CONTENT_ID = re.compile(r"[A-Za-z0-9_.-]{1,80}@[a-z.]{1,40}", re.A)
# What Bambu Lab calls a health message; its page is named by it (see `bambu/errors.py`).
_HEALTH_CODE = re.compile(r"[0-9A-F]{4}(-[0-9A-F]{4}){3}", re.A)
_HEALTH_PAGE = "https://wiki.bambulab.com/en/x1/troubleshooting/hmscode/"
NAME_CHARS = 200
REASON_CHARS = 1_000


Number = Decimal | int | float | str | None
Moment = datetime | str | None


class MailContext(TypedDict, total=False):
    """The facts a mail may tell. What is missing, None or unreadable is not spoken of.

    Times may be RFC 3339 texts, and are shown by the clock of `zone` (UTC without one); a number may be a text; a
    duration as text is kept. `picture_cid` is the Content-ID of the picture of the plate that the mail carries.
    `code` is a fault's as the printer's screen writes it, `times` how often it came, `hours` what the printer has
    printed since its last maintenance. `has_own_key`: the shop is asked with the key of an Etsy app of its owner's.
    """

    zone: str
    printer_name: str
    printer_id: int | None
    shop_name: str | None
    has_own_key: bool
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
    ship_by: Moment
    reason: str | None
    code: str | None
    since: Moment
    times: int | None
    hours: Number
    every_hours: Number
    picture_cid: str | None
    link: str | None


class Fact(NamedTuple):
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


def template_values(context: MailContext) -> dict[str, object]:
    """What the templates know, each fact clean and written out; empty where there is none."""
    color = _name(context.get("color"))
    code = _name(context.get("code"))
    facts = [fact for fact in _facts(context) if fact.value]
    return {
        "printer_name": _name(context.get("printer_name")) or "the printer",
        "printer_id": context.get("printer_id"),
        "shop_name": _name(context.get("shop_name")),
        "has_own_key": context.get("has_own_key", False),
        "print_name": _name(context.get("print_name")),
        "order_label": _name(context.get("order_label")),
        "buyer_name": _name(context.get("buyer_name")),
        "spool": _spool(context, "" if color.startswith("#") else color),  # people do not say hexadecimal
        "remaining": _remaining(context),
        "duration": _duration(context),
        "reason": one_line(context.get("reason") or "", REASON_CHARS),
        "code": code,
        "help_page": _HEALTH_PAGE + code.replace("-", "_") if _HEALTH_CODE.fullmatch(code) else "",
        "hours": _rounded(context.get("hours"), 0),
        "every_hours": _rounded(context.get("every_hours"), 0),
        "picture_cid": _content_id(context.get("picture_cid")),
        "link": clean_link(context.get("link")),
        # The printer alone is in the headline already.
        "facts": facts if len(facts) > 1 else [],
    }


def _facts(context: MailContext) -> Iterator[Fact]:
    place = zone_of(context.get("zone") or "UTC")
    color = _name(context.get("color"))
    times = context.get("times") or 1
    yield Fact("Print", _name(context.get("print_name")))
    yield Fact("For", " · ".join(filter(None, (_name(context.get("order_label")), _name(context.get("buyer_name"))))))
    yield Fact("Printer", _name(context.get("printer_name")))
    yield Fact("Material", _spool(context, color), color[:7] if _COLOR.fullmatch(color) else "")
    yield Fact("Left on the spool", _remaining(context))
    yield Fact("Used", _grams(context.get("used_grams")))
    yield Fact("Material cost", _money(context.get("cost"), context.get("currency")))
    yield Fact("Started", clock_time(context.get("started_at"), place))
    yield Fact("Ended", clock_time(context.get("completed_at"), place))
    yield Fact("Took", _duration(context))
    yield Fact("Code", _name(context.get("code")))
    yield Fact("Since", clock_time(context.get("since"), place))
    yield Fact("Seen", f"{times:d} times" if times > 1 else "")
    yield Fact("Ship by", clock_time(context.get("ship_by"), place).partition(",")[0])


def _name(text: str | None) -> str:
    return one_line(text or "", NAME_CHARS)


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


def clock_time(at: Moment, place: tzinfo) -> str:
    """Like `21 Nov 2026, 10:05 CET`."""
    moment = _read_moment(at)
    if moment is None:
        return ""
    wall = moment.astimezone(place)
    name = wall.tzname() or ""
    return f"{wall:%d %b %Y, %H:%M} {'UTC' if name[:1] in ('+', '-') else ''}{name}"


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


def clean_link(link: str | None) -> str:
    """Only http and https: an escaped `javascript:` would still run when clicked."""
    return link if link and _LINK.fullmatch(link) else ""


def _content_id(text: str | None) -> str:
    return text if text and CONTENT_ID.fullmatch(text) else ""
