"""One mail through a real SMTP server, and what its texts say."""

from __future__ import annotations

import re
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from wire import served

from channels import Attachment, Mail, MailContext, MailFailed, MailKind, MailSender, render_mail
from simulator.sinks import MailSink

PUBLIC_TRUST = ssl.create_default_context()  # made once: loading every public authority takes 40 ms
NOW = datetime(2026, 11, 21, 9, 5, tzinfo=UTC)
LINK = "https://farm.example/prints/17?a=1&b=2"


def mail_to(to: str = "maker@example.org", **changes: Any) -> Mail:
    usual = {"subject": "Finished: Möbius", "text": "It is done.", "html": "<p>It is done.</p>", "message_id": "msg_7"}
    return Mail(to=to, **{**usual, **changes})


def mailer(sink: MailSink, **changes: Any) -> MailSender:
    usual: dict[str, Any] = {
        "host": sink.host,
        "port": sink.port,
        "user": "",
        "password": "",
        "sender": "Print farm <farm@example.com>",
        "tls": "none",
        "clock": lambda: NOW,
        "tls_context": sink.certificate.client_context if sink.certificate else PUBLIC_TRUST,
    }
    return MailSender(**{**usual, **changes})


def test_a_mail_arrives_whole() -> None:
    with MailSink() as sink:
        mailer(sink).send(mail_to(attachments=[Attachment("a/b\r\n.txt", "text/calendar", b"\x00x")]))
    [message] = sink.messages
    assert message["From"] == "Print farm <farm@example.com>"
    assert message["To"] == "maker@example.org"
    assert message["Subject"] == "Finished: Möbius"
    assert message["Message-ID"] == "<msg_7@example.com>"
    assert message["Date"].datetime == NOW
    assert message["Auto-Submitted"] == "auto-generated"
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None and plain.get_content().strip() == "It is done."
    assert html is not None and html.get_content().strip() == "<p>It is done.</p>"
    [attachment] = message.iter_attachments()
    assert attachment.get_filename() == "a_b .txt" and attachment.get_content_type() == "text/calendar"
    assert attachment.get_payload(decode=True) == b"\x00x"


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # the sink's, which has TLS from the start
@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_login_goes_over_verified_tls(tls: Any) -> None:
    with MailSink(tls=tls, user="farm", password="s3cret") as sink:
        mailer(sink, tls=tls, user="farm", password="s3cret").send(mail_to())
        assert len(sink.messages) == 1 and sink.logins == ["farm"]
        with pytest.raises(MailFailed, match="certificate is not valid") as untrusted:
            mailer(sink, tls=tls, user="farm", password="s3cret", tls_context=None).send(mail_to())
        assert not untrusted.value.is_final and sink.logins == ["farm"], "the password never left"
        with pytest.raises(MailFailed, match="refused the login: 535") as wrong:
            mailer(sink, tls=tls, user="farm", password="wrong").send(mail_to())
        assert not wrong.value.is_final and len(sink.messages) == 1


def test_without_starttls_at_the_server_nothing_is_sent() -> None:
    with MailSink() as sink, pytest.raises(MailFailed, match="STARTTLS") as failed:
        mailer(sink, tls="starttls", user="farm", password="s3cret").send(mail_to())
    assert not failed.value.is_final and sink.messages == [] and sink.logins == []


@pytest.mark.parametrize(("reply", "is_final"), [("550 5.1.1 unknown", True), ("451 4.2.1 later", False)])
def test_refusals_of_recipient_and_of_content_are_told_apart_and_4xx_from_5xx(reply: str, is_final: bool) -> None:
    with MailSink(refuse={"maker@example.org": reply}) as sink, pytest.raises(MailFailed) as refused:
        mailer(sink).send(mail_to())
    assert (refused.value.is_final, refused.value.recipient_refused) == (is_final, True)
    assert reply in refused.value.reason and refused.value.code == int(reply[:3])
    with MailSink(refuse_data=reply) as sink, pytest.raises(MailFailed) as refused:
        mailer(sink).send(mail_to())
    assert (refused.value.is_final, refused.value.recipient_refused) == (is_final, False)
    assert refused.value.code == int(reply[:3])


@pytest.mark.parametrize(
    ("said", "at", "code", "is_final"),
    [
        (b"554 no mail from there", b"", 554, False),  # the greeting: our address is the set-up's matter
        (b"421 too busy", b"", 421, False),
        (b"553 not yours to send from", b"MAIL", 553, False),
        (b"552 too much mail", b"MAIL", 552, True),
        (b"450 greylisted", b"RCPT", 450, False),
        (b"550 nobody here", b"RCPT", 550, True),
        (b"451 try later", b"DATA", 451, False),
        (b"554 spam", b"DATA", 554, True),
        (b"421 going down", b"DATA", 421, False),
        (b"\xff\x00 no SMTP at all", b"", None, False),
    ],
)
def test_each_answer_of_a_server_is_final_or_is_not(said: bytes, at: bytes, code: int | None, is_final: bool) -> None:
    def smtp(connection: socket.socket, _: int) -> None:
        lines = connection.makefile("rwb", buffering=0)
        lines.write(b"220 hi\r\n" if at else said + b"\r\n")
        for line in lines:
            lines.write((said if at and line.upper().startswith(at) else b"250 fine") + b"\r\n")

    with MailSink() as sink, served(smtp) as port, pytest.raises(MailFailed) as failed:
        mailer(sink, port=port, timeout_seconds=2.0).send(mail_to())
    assert (failed.value.code, failed.value.is_final) == (code, is_final), failed.value.reason
    assert failed.value.reason.isprintable()


def test_a_server_that_is_not_there_or_says_nothing_is_a_passing_fault() -> None:
    with MailSink() as sink:
        sender = mailer(sink)
    with pytest.raises(MailFailed, match="Connection refused") as failed:
        sender.send(mail_to())
    assert not failed.value.is_final and failed.value.code is None
    began = time.monotonic()
    with served(lambda *_: None) as port, pytest.raises(MailFailed, match="timed out") as failed:
        mailer(sink, port=port, timeout_seconds=0.2).send(mail_to())
    assert time.monotonic() - began < 2
    assert not failed.value.is_final
    with served(lambda connection, _: connection.close()) as port, pytest.raises(MailFailed) as failed:
        mailer(sink, port=port).send(mail_to())
    assert not failed.value.is_final


def test_a_mail_that_was_taken_is_a_success_even_if_the_goodbye_fails() -> None:
    taken: list[bytes] = []

    def smtp(connection: socket.socket, _: int) -> None:
        lines = connection.makefile("rwb", buffering=0)
        lines.write(b"220 hi\r\n")
        for line in lines:
            if line.upper().startswith(b"DATA"):
                lines.write(b"354 go\r\n")
                while (part := lines.readline()) != b".\r\n":
                    taken.append(part)
                lines.write(b"250 taken\r\n")
                connection.shutdown(socket.SHUT_RDWR)
                return
            lines.write(b"250 fine\r\n")

    with MailSink() as sink, served(smtp) as port:
        mailer(sink, port=port, timeout_seconds=1.0).send(mail_to())
    assert taken


@pytest.mark.parametrize("host", ["mail.example.com", "10.0.0.5", "mailpit", "127.0.0.1.example.com", ""])
def test_without_tls_only_a_loopback_host_is_taken(host: str) -> None:
    with MailSink() as sink:
        with pytest.raises(ValueError, match="loopback"):
            mailer(sink, host=host)
        mailer(sink, host=host, tls="starttls")
        for loopback in ("localhost", "127.0.0.1", "127.8.8.8", "::1"):
            mailer(sink, host=loopback)


@pytest.mark.parametrize(
    "changes",
    [
        {"sender": ""},
        {"sender": "farm"},
        {"sender": "a@b\r\nBcc: x@y"},
        {"sender": "a@b <c@d> e@f"},
        {"tls": "ssl"},
        {"user": "ü"},
    ],
)
def test_a_set_up_that_cannot_work_is_refused_at_once(changes: dict[str, Any]) -> None:
    with MailSink() as sink, pytest.raises(ValueError):
        mailer(sink, **changes)


@pytest.mark.parametrize(
    "to",
    [
        "",
        "a",
        "a@",
        "@b",
        "a@b@c.d",
        "a@b.c\r\nBcc: evil@example.net",
        "a@b.c\nRCPT TO:<evil@example.net>",
        "a@b.c, evil@example.net",
        "a@b.c evil@example.net",
        "<a@b.c>",
        '"a b"@b.c',
        "a\x00@b.c",
        "a\u202e@b.c",
        "a@b..c",
        "a@-b.c",
        "a@b.c>",
        "a..b@c.d",
        "\ud800@b.c",
        "a@" + "b" * 300,
    ],
)
def test_no_address_breaks_out_of_its_header_or_command(to: str) -> None:
    with MailSink() as sink, pytest.raises(MailFailed) as failed:
        mailer(sink).send(mail_to(to))
    assert failed.value.is_final and failed.value.recipient_refused and sink.messages == []


HOSTILE_TEXT = (
    "<svg onload=alert(1)>\r\nBcc: evil@example.net\r\n\r\n\x00\u202e\u2066{{7*7}}\x1b[31m\ud800 \u2028'\"=cmd|"
)


def test_no_subject_or_text_adds_a_header() -> None:
    with MailSink() as sink:
        mailer(sink).send(mail_to(subject=HOSTILE_TEXT, text=HOSTILE_TEXT, html=HOSTILE_TEXT))
        mailer(sink).send(mail_to(subject="ä" * 5_000))
    hostile, long = sink.messages
    ours = {"From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"}
    assert set(hostile.keys()) == ours
    assert hostile["Subject"].isprintable() and "\u202e" not in hostile["Subject"]
    assert hostile["Subject"].startswith("<svg onload=alert(1)> Bcc: evil@example.net {{7*7}}")
    assert 190 <= len(long["Subject"]) <= 200


def test_names_beyond_ascii_are_written_as_mail_needs_them() -> None:
    with MailSink() as sink:
        mailer(sink, sender='"Drückerei" <farm@münchen.example>').send(mail_to("maker@größe.example"))
        mailer(sink).send(mail_to("dörte@example.org", message_id="m" * 64))
    idn, utf8 = sink.messages
    assert idn["From"] == "Drückerei <farm@xn--mnchen-3ya.example>"
    assert idn["To"] == "maker@xn--gre-6ka8i.example"
    assert utf8["To"] == "dörte@example.org" and utf8["Message-ID"] == "<" + "m" * 64 + "@example.com>"


@pytest.mark.parametrize("message_id", ["", "a b", "a\r\nb", "a>b", "x" * 65])
def test_a_message_id_that_is_no_id_is_a_fault_of_the_caller(message_id: str) -> None:
    with MailSink() as sink, pytest.raises(ValueError):
        mailer(sink).send(mail_to(message_id=message_id))


FACTS: MailContext = {
    "printer_name": "X1C by the window",
    "shop_name": "PrintedThings",
    "print_name": "Moon lamp",
    "order_label": "Order #3187245561",
    "buyer_name": "Ana Lindqvist",
    "material": "PLA",
    "color": "#FF6A13",
    "slot": 2,
    "remaining_grams": Decimal("175.000"),
    "remaining_pct": Decimal("70.00"),
    "used_grams": Decimal("45.25"),
    "cost": Decimal("6.125"),
    "currency": "EUR",
    "started_at": NOW,
    "completed_at": NOW + timedelta(minutes=125),
    "reason": "Nozzle blob (0300-0D00)",
    "link": LINK,
}
SUMMARIES = {"summary.html", "summary.txt"}


@pytest.mark.parametrize("kind", MailKind)
def test_each_kind_tells_every_fact_and_what_to_do_next(kind: MailKind) -> None:
    subject, text, html = render_mail(kind, FACTS)
    assert "X1C by the window" in text
    assert any(name in subject for name in ("X1C by the window", "Order #3187245561", "PrintedThings"))
    about = ("Moon lamp", "Order #3187245561 · Ana Lindqvist", "PLA, #FF6A13, slot 2", "Nozzle blob (0300-0D00)")
    figures = ("175 g (70 %)", "45.3 g", "6.13 EUR", "21 Nov 2026, 09:05 UTC", "21 Nov 2026, 11:10 UTC", "2 h 5 min")
    for fact in about + figures:
        assert fact in text and fact in html, fact
    assert f"{LINK}\n" in text
    assert 'href="https://farm.example/prints/17?a=1&amp;b=2"' in html
    assert "background:#FF6A13" in html
    assert "<img" not in html and "<script" not in html and "url(" not in html
    assert "None" not in text + html and "<" not in text


@pytest.mark.parametrize("kind", MailKind)
def test_each_kind_is_a_proper_mail_when_little_is_known(kind: MailKind) -> None:
    known = MailContext(shop_name="A1") if kind is MailKind.SHOP_RECONNECT_NEEDED else MailContext(printer_name="A1")
    for context in (known, MailContext(**known, reason=None, cost=None, slot=None)):
        subject, text, html = render_mail(kind, context)
        assert "A1" in text and subject
        assert re.search(r"None|  |,,|\(\)|: *\n| ,| \.", subject + text) is None, text
        assert html.count("<table") == html.count("</table") and "href" not in html


@pytest.mark.parametrize("kind", MailKind)
def test_no_fact_breaks_out_of_its_place(kind: MailKind) -> None:
    names = (
        "printer_name",
        "shop_name",
        "print_name",
        "order_label",
        "buyer_name",
        "material",
        "color",
        "currency",
        "reason",
    )
    context: Any = {**dict.fromkeys(names, HOSTILE_TEXT), "link": "javascript:alert(1)", "cost": "NaN"}
    subject, text, html = render_mail(kind, context)
    assert subject.isprintable() and text.replace("\n", "").isprintable() and html.replace("\n", "").isprintable()
    assert "<svg" not in html and "49" not in subject + text and "javascript" not in text + html
    assert "\nBcc" not in text and "NaN" not in text
    assert html.count("<table") == html.count("</table") and len(subject) <= 200


@pytest.mark.parametrize(
    "link",
    [
        "javascript:alert(1)",
        "https://a/ b",
        "//evil.example",
        "data:text/html,x",
        "ftp://a/b",
        "https://a\n",
        "https://",
    ],
)
def test_a_link_that_is_none_leads_nowhere(link: str) -> None:
    _, text, html = render_mail("print_started", {"printer_name": "A1", "link": link})
    assert "href" not in html and link not in text


def test_a_link_does_not_break_out_of_its_attribute() -> None:
    html = render_mail("print_started", {"printer_name": "A1", "link": 'https://a/"onclick=x'}).html
    assert 'href="https://a/&#34;onclick=x"' in html


@pytest.mark.parametrize("color", ["#FF6A13;background:url(//evil.example)", "red", "#GGGGGG", "#fff", "#FF6A13\n"])
def test_only_a_proper_color_reaches_the_style(color: str) -> None:
    html = render_mail("material_low", {"printer_name": "A1", "color": color}).html
    swatches = re.findall(r"border-radius:50%;background:([^\"]*)", html)
    assert swatches == (["#FF6A13;"] if color.strip() == "#FF6A13" else [])


def test_facts_may_come_as_the_texts_of_a_stored_event() -> None:
    context: MailContext = {
        "printer_name": "A1",
        "started_at": "2026-11-21T09:05:00Z",
        "completed_at": "2026-11-21T10:05:00+00:00",
        "remaining_grams": "50.0",
        "cost": 150.4,
        "currency": "JPY",
    }
    text = render_mail("print_completed", context).text
    assert "21 Nov 2026, 09:05 UTC" in text and "Took: 1 h\n" in text and "50 g" in text and "150 JPY" in text
    assert "Took: about an hour" in render_mail("print_completed", {**context, "duration": "about an hour"}).text


def test_kinds_and_templates_are_the_same_and_another_kind_is_refused() -> None:
    folder = Path(__file__).parent.parent / "templates" / "mail"
    assert {path.name.removesuffix(".j2") for path in folder.glob("[!l]*.j2")} == set(MailKind) | SUMMARIES
    for kind in ("", "layout.html", "../mail/print_started", "print.started"):
        with pytest.raises(ValueError):
            render_mail(kind, {"printer_name": "A1"})
