"""What is stored of an event, as a person reads it: a mail through a real server, a message, a summary of many."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from channels import MailKind, MailSender
from delivery.letters import MAX_PICTURE_BYTES, mail_of, message_of
from notifications import FLAGS
from simulator.sinks import MailSink
from simulator.sliced_file import make_png

PRINT = {
    "id": 17,
    "job_name": "Order #3187245561 - Moon lamp",
    "status": "completed",
    "file_name": "moon.gcode.3mf",
    "material_type": "PLA",
    "material_color": "#FF6A13",
    "material_slot": 2,
    "used_grams": 45.25,
    "material_cost": 1.13,
    "currency": "EUR",
    "started_at": "2026-11-21T09:05:00Z",
    "completed_at": "2026-11-21T11:10:00Z",
    "failed_reason": None,
}
ORDER = {
    "id": 3,
    "label": "Order #3187245561",
    "etsy_order_id": "3187245561",
    "buyer_name": "Ana Lindqvist",
    "production_status": "in_production",
    "ship_by": "2026-11-24T12:00:00Z",
}
MATERIAL = {
    "id": 4,
    "material_type": "PETG",
    "color": "black",
    "slot": 0,
    "remaining_grams": 175.0,
    "remaining_pct": 17.5,
}
ALERT = {
    "key": "hms:0300-0100-0001-0007",
    "code": "0300-0100-0001-0007",
    "text": "motion system: the heatbed's temperature is abnormal",
    "since": "2026-11-21T08:30:00Z",
    "times": 4,
}
DATA: dict[str, dict[str, Any]] = {
    "print.started": {"print": PRINT, "order": ORDER},
    "print.completed": {"print": PRINT, "order": ORDER},
    "print.failed": {"print": PRINT, "order": ORDER, "reason": "it came off the plate"},
    "print.needs_person": {"print": PRINT, "order": ORDER, "reason": "no spool fits"},
    "print.needs_look": {"print": PRINT, "order": ORDER, "reason": "the start was not answered"},
    **{f"material.{kind}": {"material": MATERIAL} for kind in ("low", "critical", "replace", "depleted", "changed")},
    "printer.maintenance_due": {"maintenance": {"hours": 312.4, "every_hours": 300}},
    "printer.offline": {
        "print": PRINT,
        "order": ORDER,
        "alert": {**ALERT, "code": None, "text": "no word since 08:30"},
    },
    "printer.back": {},
    "printer.fault": {"print": PRINT, "order": ORDER, "alert": ALERT},
    "print.not_wanted": {"print": PRINT, "order": ORDER, "reason": "Cancelled at Etsy while it is being printed."},
    "webhook.disabled": {"reason": "five days of failures"},
    "notification.test": {},
}


def payload(kind: str, *, at: str = "2026-11-21T11:10:00Z", printer: str = "X1C by the window", **data: Any) -> Any:
    known = {"event_id": 1, "printer": {"id": 7, "name": printer}, "reason": None, **DATA.get(kind, {}), **data}
    return {"type": kind, "timestamp": at, "data": known}


def mail(*payloads: Any, zone: str = "Europe/Berlin", **changes: Any) -> Any:
    usual = {"to": "maker@example.org", "message_id": "msg_7", "public_url": "https://farm.example/"}
    return mail_of(payloads, zone=zone, **{**usual, **changes})


def of_shop(name: str = "PrintedThings", *, has_own_key: bool = False) -> Any:
    shop = {"id": 2, "name": name, "has_own_key": has_own_key}
    return payload("shop.reconnect_needed") | {
        "data": {"event_id": 1, "printer": None, "reason": None, "shop": shop},
    }


@pytest.mark.parametrize("kind", sorted(DATA))
def test_each_event_has_its_mail_and_says_what_to_do_next(kind: str) -> None:
    letter = mail(payload(kind))
    assert "X1C by the window" in letter.subject and "https://farm.example/\n" in letter.text
    assert 'href="https://farm.example/"' in letter.html
    assert "None" not in letter.subject + letter.text + letter.html
    assert (letter.to, letter.message_id) == ("maker@example.org", "msg_7")
    if "print" in DATA[kind]:
        assert "Moon lamp" in letter.text and "Order #3187245561 · Ana Lindqvist" in letter.text
        assert "Order #3187245561 - Moon lamp" not in letter.text, "the order is named by itself"
    title, body = message_of([payload(kind)], public_url="https://farm.example")
    assert "X1C by the window" in title and body.endswith("\nhttps://farm.example/") and len(body) <= 1_000


def test_every_kind_that_goes_out_has_a_template_of_its_own() -> None:
    assert set(FLAGS) <= set(DATA)
    subjects = {mail(payload(kind)).subject for kind in DATA} | {mail(of_shop()).subject}
    assert len(subjects) == len(DATA) + 1 and not any("News" in subject for subject in subjects)


def test_the_mail_of_a_shop_to_connect_again_says_what_stops_and_leads_there() -> None:
    letter = mail(of_shop())
    assert letter.subject == "Connect PrintedThings again: Etsy no longer accepts its login"
    for said in ("no orders come in", "nothing is marked as shipped", "https://farm.example/api/auth/etsy/login\n"):
        assert said in letter.text
    assert 'href="https://farm.example/api/auth/etsy/login"' in letter.html and "Connect the shop" in letter.html
    assert "printer" not in letter.text + letter.html, "it concerns none"
    title, body = message_of([of_shop()], public_url="https://farm.example")
    assert "PrintedThings" in title and body.endswith("\nhttps://farm.example/api/auth/etsy/login")


def test_a_shop_with_a_key_of_its_own_is_not_connected_by_a_link() -> None:
    letter = mail(of_shop(has_own_key=True))
    assert "POST /api/auth/etsy/login" in letter.text and letter.text.count("https://farm.example/\n") == 1
    assert 'href="https://farm.example/"' in letter.html
    assert "GET /api/auth/etsy/login" in mail(of_shop(), public_url="").text


def test_a_summary_of_a_shop_and_printers_names_both() -> None:
    letter = mail(of_shop(), payload("print.failed"), payload("print.failed"))
    assert letter.subject == "1 shop to connect again, 2 prints failed"
    assert "PrintedThings" in letter.text and "X1C by the window" in letter.text
    assert mail(of_shop("One"), of_shop("Two")).subject == "2 shops to connect again"


def test_what_is_told_of_each_is_what_a_seller_wants_to_know() -> None:
    fault = mail(payload("printer.fault")).text
    for said in ("0300-0100-0001-0007", ALERT["text"], "Since: 21 Nov 2026, 09:30 CET", "Seen: 4 times", "Moon lamp"):
        assert str(said) in fault
    assert "https://wiki.bambulab.com/en/x1/troubleshooting/hmscode/0300_0100_0001_0007" in fault
    due = mail(payload("printer.maintenance_due")).text
    assert "312 hours" in due and "every 300 hours" in due and "/api/printers/7/maintenance-done" in due
    assert "five days of failures" in mail(payload("webhook.disabled")).text
    assert "PETG, black, slot 0" in mail(payload("material.low")).text
    assert "Ship by: 24 Nov 2026\n" in mail(payload("print.failed")).text
    assert "it came off the plate" in mail(payload("print.failed")).text


def test_a_code_that_is_no_health_message_leads_to_no_page() -> None:
    for code in ("0500-4004", "../../evil", "0300-0100-0001-0007?x", "０300-0100-0001-0007"):
        assert "wiki" not in mail(payload("printer.fault", alert={**ALERT, "code": code})).html


def test_an_event_that_nobody_has_written_words_for_is_told_all_the_same() -> None:
    letter = mail(payload("printer.foreign_print_started", reason="benchy.3mf"))
    assert letter.subject == "News from X1C by the window" and "benchy.3mf" in letter.text
    assert message_of([payload("../../etc/passwd")])[0] == "News from X1C by the window"


@pytest.mark.parametrize(
    ("zone", "shown"),
    [
        ("Europe/Berlin", "21 Nov 2026, 10:05 CET"),
        ("America/New_York", "21 Nov 2026, 04:05 EST"),
        ("Pacific/Kiritimati", "21 Nov 2026, 23:05 UTC+14"),
        ("America/Sao_Paulo", "21 Nov 2026, 06:05 UTC-03"),
        ("UTC", "21 Nov 2026, 09:05 UTC"),
        ("Nowhere/Land", "21 Nov 2026, 09:05 UTC"),
    ],
)
def test_times_are_those_of_the_sellers_wall(zone: str, shown: str) -> None:
    letter = mail(payload("print.completed"), zone=zone)
    assert f"Started: {shown}\n" in letter.text and shown in letter.html
    assert (
        shown[:19] in mail(payload("print.completed", at=PRINT["started_at"]), payload("printer.back"), zone=zone).text
    )


def test_without_an_address_of_the_farm_there_is_no_link() -> None:
    for letter in (mail(payload("print.started"), public_url=""), mail(*[payload("print.started")] * 2, public_url="")):
        assert "href" not in letter.html and "http" not in letter.text
    assert "http" not in message_of([payload("print.started")])[1]


def test_the_picture_of_the_plate_is_shown_in_its_place() -> None:
    picture = make_png("#FF6A13")
    with MailSink() as sink:
        sender = MailSender(
            *(sink.host, sink.port, "", "", "Farm <farm@example.com>", "none"),
            clock=lambda: datetime(2026, 11, 21, 9, 5, tzinfo=UTC),
        )
        sender.send(mail(payload("print.completed"), picture=picture))
        sender.send(mail(payload("print.completed")))
    shown, plain = sink.messages
    html = shown.get_body(("html",))
    assert html is not None
    [part] = [part for part in shown.walk() if part.get_content_type() == "image/png"]
    assert part.get_payload(decode=True) == picture and part.get_content_disposition() == "inline"
    content_id = part["Content-ID"].strip("<>")
    assert f'src="cid:{content_id}"' in html.get_content()
    assert 'alt="The plate of Moon lamp, as sliced"' in html.get_content()
    assert [part.get_content_type() for part in shown.walk()] == [
        *("multipart/alternative", "text/plain", "multipart/related", "text/html", "image/png")
    ]
    html = plain.get_body(("html",))
    assert html is not None and "<img" not in html.get_content() and "cid:" not in html.get_content()
    assert [part.get_content_type() for part in plain.walk()] == ["multipart/alternative", "text/plain", "text/html"]


@pytest.mark.parametrize(
    "picture", [b"", b"<svg onload=alert(1)>", b"GIF89a", make_png() + bytes(MAX_PICTURE_BYTES), b"\xff\xd8\xff"]
)
def test_what_is_no_small_png_is_left_out(picture: bytes) -> None:
    letter = mail(payload("print.completed"), picture=picture)
    assert letter.picture is None and "<img" not in letter.html


def many(count: int, printers: int = 1, kinds: tuple[str, ...] = ("print.completed",)) -> list[Any]:
    start = datetime(2026, 11, 21, 0, 0, tzinfo=UTC)
    return [
        payload(
            kinds[number % len(kinds)],
            at=(start + timedelta(minutes=number)).isoformat().replace("+00:00", "Z"),
            printer=f"P{number % printers:02d}",
            print={**PRINT, "job_name": f"Lamp {number:03d}"},
            order=None,
        )
        for number in range(count)
    ]


def test_several_events_are_one_summary_by_printer_and_newest_first() -> None:
    kinds = ("print.completed", "print.completed", "print.failed")
    letter = mail(*many(6, printers=2, kinds=kinds), picture=make_png())
    assert letter.subject == "2 prints failed, 4 prints finished on 2 printers"
    lines = [line for line in letter.text.splitlines() if re.match(r"[!-] |P0", line)]
    assert [re.sub(r" \(.*|\. it came.*", "", line) for line in lines] == [
        *("P01", "! Failed: Lamp 005", "- Finished: Lamp 003", "- Finished: Lamp 001"),
        *("P00", "- Finished: Lamp 004", "! Failed: Lamp 002", "- Finished: Lamp 000"),
    ]
    assert "(21 Nov 2026, 01:05 CET)" in letter.text and "6 events, 21 Nov 2026, 01:00 CET to" in letter.text
    assert letter.html.index("Lamp 005") < letter.html.index("Lamp 001") < letter.html.index("Lamp 004")
    assert letter.picture is None and "<img" not in letter.html


def test_a_summary_of_one_printer_names_it() -> None:
    assert mail(*many(2)).subject == "2 prints finished on P00"
    assert (
        mail(*many(2, kinds=("print.completed", "print.failed"))).subject == "1 print failed, 1 print finished on P00"
    )


def test_a_summary_is_bounded_and_what_is_bad_is_never_what_is_left_out() -> None:
    events = many(3_000, printers=40)
    events[0] = payload("print.failed", at=events[0]["timestamp"], printer="P00", order=None)
    letter = mail(*events)
    assert letter.subject == "1 print failed, 2,999 prints finished on 40 printers".replace(",999", "999")
    assert len(letter.html) < 150_000 and len(letter.text) < 30_000
    assert "and 20 more printers" in letter.text and "and 65 more" in letter.html
    by_many_kinds = mail(*(payload(kind) for kind in DATA))
    assert len(by_many_kinds.subject) < 120 and "more on X1C by the window" in by_many_kinds.subject
    few = [payload("printer.back", printer="P00", at=f"2026-11-21T10:{minute:02d}:00Z") for minute in range(30)]
    few.append(payload("printer.fault", printer="P00", at="2026-11-20T10:00:00Z"))
    assert "0300-0100-0001-0007" in mail(*few).text and "and 21 more" in mail(*few).text


def test_a_message_of_many_events_is_short_and_says_the_worst_first() -> None:
    events = many(300, printers=3)
    events[7] = payload("print.failed", at=events[7]["timestamp"], printer="P01", order=None)
    title, body = message_of(events, public_url="https://farm.example")
    assert title == "1 print failed, 299 prints finished"
    assert body.startswith("P01: Failed: Order #3187245561 - Moon lamp")
    assert len(body) <= 1_000 and re.search(r"… and \d+ more\nhttps://farm\.example/$", body)


HOSTILE = (
    "<svg onload=alert(1)>\r\nBcc: evil@example.net\r\n\r\n\x00\u202e{{7*7}}\x1b[31m\ud800 \u2028'\""
    "@everyone <!channel>"
)


@pytest.mark.parametrize("kind", [*sorted(DATA), "no.such.kind"])
def test_no_stored_text_breaks_out_of_mail_summary_or_message(kind: str) -> None:
    hostile = payload(
        kind,
        printer=HOSTILE,
        reason=HOSTILE,
        print={**dict.fromkeys(PRINT, HOSTILE), "id": 1, "material_slot": 1},
        order={**dict.fromkeys(ORDER, HOSTILE), "id": 1},
        material={**dict.fromkeys(MATERIAL, HOSTILE), "id": 1, "slot": 1},
        alert={**dict.fromkeys(ALERT, HOSTILE), "times": 3},
        maintenance={"hours": HOSTILE, "every_hours": HOSTILE},
    )
    for letter in (mail(hostile, zone=HOSTILE), mail(hostile, hostile, zone=HOSTILE)):
        assert letter.subject.isprintable() and len(letter.subject) <= 200
        assert letter.text.replace("\n", "").isprintable() and letter.html.replace("\n", "").isprintable()
        assert "<svg" not in letter.html and "49" not in letter.subject + letter.text
        assert "\nBcc" not in letter.text and letter.html.count("<table") == letter.html.count("</table")
    for title, body in (message_of([hostile]), message_of([hostile] * 40)):
        assert "\n" not in title and len(title) <= 300 and len(body) <= 1_000
        assert "@everyone" not in title + body and "<!channel" not in title + body


def test_a_letter_about_nothing_is_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError):
        mail()
    with pytest.raises(ValueError):
        message_of([])


def test_every_kind_of_mail_has_its_words_for_a_summary() -> None:
    """Each template says its line, its count of one and of many, and its tone."""
    for kind in MailKind:
        name = kind.value.replace("_", ".", 1)
        other = payload("print.completed" if kind is MailKind.PRINT_STARTED else "print.started")
        twice, once = mail(payload(name), payload(name)), mail(payload(name), other)
        assert twice.subject.startswith("2 ") and "1 " in once.subject and "|" not in twice.subject + once.subject
