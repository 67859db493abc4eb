"""What a mail says: from an event's facts to subject, plain text and HTML, by the templates in `templates/mail`.

Every fact is cleaned by `delivery.mail_facts`, and escaped in the HTML.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from delivery.hours import zone_of
from delivery.mail_facts import MailContext as MailContext
from delivery.mail_facts import Moment, clean_link, clock_time, one_line, template_values

_SUBJECT_CHARS = 200
_LINE_CHARS = 300
# What a phone shows and every service takes: Pushover, the narrowest, cuts at 1,024.
_MESSAGE_CHARS = 1_000
_HEADLINE_COUNTS = 3
_SHOWN_PRINTERS = 20
_SHOWN_PER_PRINTER = 10
_TONES = ("bad", "warn", "good", "calm")


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
    PRINTER_FAULT = "printer_fault"
    MAINTENANCE_DUE = "maintenance_due"
    NEEDS_PERSON = "needs_person"
    NEEDS_LOOK = "needs_look"
    PRINT_NOT_WANTED = "print_not_wanted"
    WEBHOOK_DISABLED = "webhook_disabled"
    SHOP_RECONNECT_NEEDED = "shop_reconnect_needed"
    TEST = "test"
    NEWS = "news"
    """Anything else: it tells what is known and guesses no advice."""


class RenderedMail(NamedTuple):
    """A mail's three texts; `subject` is one line."""

    subject: str
    text: str
    html: str


class RenderedMessage(NamedTuple):
    """What a messenger shows: a line, and at most 1,000 characters of plain text."""

    title: str
    body: str


class SummaryItem(NamedTuple):
    """One event of several that go out together."""

    kind: str
    context: MailContext
    at: Moment


class _Line(NamedTuple):
    tone: str
    text: str
    at: str

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return _TONES.index(self.tone)


class _Group(NamedTuple):
    name: str
    lines: list[_Line]
    more: int


def render_mail(kind: str, context: MailContext) -> RenderedMail:
    """Subject, plain text and HTML of one mail.

    Raises:
        ValueError: `kind` is not a MailKind.
    """
    template = f"{MailKind(kind)}.j2"
    values = template_values(context)
    plain = _AS_TEXT.get_template(template)
    text = plain.render(values, layout="layout.txt.j2")
    html = _AS_HTML.get_template(template).render(values, layout="layout.html.j2")
    return RenderedMail(_block(plain, "subject", values, _SUBJECT_CHARS), _tidy(text), html)


def render_message(kind: str, context: MailContext) -> RenderedMessage:
    """The same in short and without markup, for messengers.

    Raises:
        ValueError: `kind` is not a MailKind.
    """
    template = _AS_TEXT.get_template(f"{MailKind(kind)}.j2")
    values = template_values(context)
    parts = [
        _block(template, "story", values, _LINE_CHARS * 2),
        one_line(str(values["reason"]), _LINE_CHARS),
        _block(template, "next", values, _LINE_CHARS),
    ]
    body = "\n".join(filter(None, map(_without_mentions, parts)))
    return _message(_block(template, "subject", values, _SUBJECT_CHARS), body, str(values["link"]))


def render_summary(items: Sequence[SummaryItem], *, zone: str, link: str | None) -> RenderedMail:
    """Many events in one mail: what happened how often, then each printer's and each shop's, newest first; at most 200
    are listed.

    Raises:
        ValueError: no items, or a kind is not a MailKind.
    """
    if not items:
        raise ValueError("a summary is of one event at least")
    values = _summary_values(items, zone, link)
    plain = _AS_TEXT.get_template("summary.txt.j2")
    return RenderedMail(
        _block(plain, "subject", values, _SUBJECT_CHARS),
        _tidy(plain.render(values)),
        _AS_HTML.get_template("summary.html.j2").render(values),
    )


def render_summary_message(items: Sequence[SummaryItem], *, link: str | None = None) -> RenderedMessage:
    """Many events in one message: as many lines as fit, the worst first, then the newest.

    Raises:
        ValueError: a kind is not a MailKind.
    """
    lines = sorted(
        ((_subject(item), _line(item, "UTC")) for item in _newest_first(items)), key=lambda each: each[1].rank
    )
    texts = [_without_mentions(f"{one_line(name, 60)}: {line.text}") for name, line in lines]
    shown: list[str] = []
    for text in texts:
        if sum(len(each) + 1 for each in (*shown, text)) > _MESSAGE_CHARS - 100:
            break
        shown.append(text)
    if len(shown) < len(texts):
        shown.append(f"… and {len(texts) - len(shown)} more")
    return _message(_headline(_counts(items)), "\n".join(shown), clean_link(link))


def _message(title: str, body: str, link: str) -> RenderedMessage:
    room = _MESSAGE_CHARS - (len(link) + 1 if len(link) < _LINE_CHARS else 0)
    body = body if len(body) <= room else body[: room - 1].rstrip() + "…"
    return RenderedMessage(_without_mentions(title), f"{body}\n{link}" if room < _MESSAGE_CHARS and link else body)


def _without_mentions(text: str) -> str:
    """A print named `@everyone` wakes nobody: with an invisible space behind it, an at sign begins no name."""
    return re.sub(r"([@<])(?=\S)", "\\1\u200b", text)


def _summary_values(items: Sequence[SummaryItem], zone: str, link: str | None) -> dict[str, object]:
    ordered = _newest_first(items)
    by_name: dict[str, list[_Line]] = {}
    for item in ordered:
        by_name.setdefault(_subject(item), []).append(_line(item, zone))
    counts = _counts(items)
    # Of shops the headline speaks already.
    place = f"on {len(by_name)} printers" if len(by_name) > 1 else f"on {next(iter(by_name))}"
    return {
        "counts": ", ".join(counts),
        "headline": _headline(counts),
        "tone": min((line for lines in by_name.values() for line in lines), key=lambda line: line.rank).tone,
        "event_count": len(items),
        "place": "" if any(item.context.get("shop_name") for item in items) else f" {place}",
        "groups": [_group(name, lines) for name, lines in list(by_name.items())[:_SHOWN_PRINTERS]],
        "more_printers": max(0, len(by_name) - _SHOWN_PRINTERS),
        "from_at": clock_time(ordered[-1].at, zone_of(zone)),
        "to_at": clock_time(ordered[0].at, zone_of(zone)),
        "link": clean_link(link),
    }


def _group(name: str, lines: list[_Line]) -> _Group:
    """Where not all can be shown, what is bad is; and all in their order."""
    kept = sorted(range(len(lines)), key=lambda place: lines[place].rank)[:_SHOWN_PER_PRINTER]
    return _Group(name, [lines[place] for place in sorted(kept)], len(lines) - len(kept))


def _newest_first(items: Sequence[SummaryItem]) -> list[SummaryItem]:
    return sorted(items, key=lambda item: str(item.at or ""), reverse=True)


def _subject(item: SummaryItem) -> str:
    """The printer or the shop that it is about."""
    values = template_values(item.context)
    return str(values["shop_name"] or values["printer_name"])


def _line(item: SummaryItem, zone: str) -> _Line:
    template = _AS_TEXT.get_template(f"{MailKind(item.kind)}.j2")
    values = template_values(item.context)
    said = _block(template, "line", values, _LINE_CHARS)
    return _Line(_block(template, "tone", values, 10), said, clock_time(item.at, zone_of(zone)))


def _counts(items: Sequence[SummaryItem]) -> list[str]:
    """Like `1 print failed` and `3 prints finished`: the worst first."""
    counted = Counter(item.kind for item in items)
    said = []
    for kind, count in counted.items():
        template = _AS_TEXT.get_template(f"{MailKind(kind)}.j2")
        values = template_values({})
        one, _, many = _block(template, "count", values, _LINE_CHARS).partition("|")
        said.append((_TONES.index(_block(template, "tone", values, 10)), f"{count} {one if count == 1 else many}"))
    return [text for _, text in sorted(said, key=lambda each: each[0])]


def _headline(counts: list[str]) -> str:
    """What a subject has room for."""
    if len(counts) <= _HEADLINE_COUNTS:
        return ", ".join(counts)
    rest = sum(int(count.split()[0]) for count in counts[_HEADLINE_COUNTS:])
    return f"{', '.join(counts[:_HEADLINE_COUNTS])} and {rest} more"


def _block(template: Template, name: str, values: dict[str, object], max_chars: int) -> str:
    return one_line("".join(template.blocks[name](template.new_context(values))), max_chars)


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _strong(text: str) -> Markup:
    return Markup("<strong>{}</strong>").format(escape(text))


def _linked(url: str, name: str) -> Markup:
    """Only for an address that we made ourselves."""
    return Markup('<a href="{}" style="color:#2563a8;">{}</a>').format(escape(url), escape(name))


def _link_as_text(url: str, name: str) -> str:
    return f"{name}: {url}"


def _environment(for_html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "templates" / "mail"),
        autoescape=for_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["strong"] = _strong if for_html else str
    environment.filters["linked"] = _linked if for_html else _link_as_text
    return environment


_AS_TEXT = _environment(for_html=False)
_AS_HTML = _environment(for_html=True)
