"""One e-mail as the caller gives it, and the message for the wire. Nothing in it can break out of its header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

import idna

from delivery.mail_facts import CONTENT_ID, one_line, without_controls

# Not every server on the way takes 8-bit bodies, and smtplib does not ask whether the next one does.
_SEVEN_BIT = SMTP.clone(cte_type="7bit")
_MESSAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.A)
_LOCAL_PART = re.compile(r'[^\s.@<>()\[\]\\,;:"]+(\.[^\s.@<>()\[\]\\,;:"]+)*')
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.I | re.A)
_NAMED_ADDRESS = re.compile(r"(?P<name>[^<>]*)<(?P<spec>[^<>]*)>")
_MEDIA_TYPE = re.compile(r"([a-z0-9.+-]{1,60})/([a-z0-9.+-]{1,60})", re.I | re.A)
_SUBJECT_CHARS = 200
_FILE_NAME_CHARS = 100
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes along with a mail; `media_type` like `text/calendar`."""

    file_name: str
    media_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG that the HTML shows as `cid:<content_id>`; the id is like `plate.7@farm.invalid`."""

    content_id: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Mail:
    """One e-mail to one address. `message_id` is the caller's own id of it; a repeat carries it again."""

    to: str
    subject: str
    text: str
    html: str
    message_id: str
    attachments: Sequence[Attachment] = ()
    picture: Picture | None = None


def parse_address(text: str, name: str = "") -> Address:
    """`someone@example.org` with the domain in ASCII.

    Raises:
        ValueError: it is not exactly one proper address.
    """
    if without_controls(text) != text or not 3 <= len(text.encode()) <= 254:
        raise ValueError("the e-mail address is too long or holds control characters")
    local_part, _, domain = text.rpartition("@")
    with suppress(idna.IDNAError, UnicodeError):
        domain = domain if domain.isascii() else idna.encode(domain, uts46=True).decode()
    if not _LOCAL_PART.fullmatch(local_part) or not _DOMAIN.fullmatch(domain):
        raise ValueError("the e-mail address is not a proper one")
    return Address(name, local_part, domain)


def parse_sender(text: str) -> Address:
    """`someone@example.org` or `Name <someone@example.org>`. Raises ValueError."""
    named = _NAMED_ADDRESS.fullmatch(text.strip())
    if named is None:
        return parse_address(text.strip())
    return parse_address(named["spec"].strip(), one_line(named["name"].strip(' "'), _SUBJECT_CHARS))


def compose(mail: Mail, sender: Address, recipient: Address, at: datetime) -> EmailMessage:
    """The message for the wire: 7-bit, with text and HTML as alternatives.

    Raises:
        ValueError: `message_id` is not 1-64 of A-Z a-z 0-9 _ -, or the picture is no PNG or its id none.
    """
    if not _MESSAGE_ID.fullmatch(mail.message_id):
        raise ValueError("a mail's message id is 1-64 characters of A-Z a-z 0-9 _ -")
    message = EmailMessage(_SEVEN_BIT)
    message["From"] = sender
    message["To"] = recipient
    message["Subject"] = one_line(mail.subject, _SUBJECT_CHARS)
    message["Date"] = format_datetime(at)
    message["Message-ID"] = f"<{mail.message_id}@{sender.domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday notice answers it
    message.set_content(without_controls(mail.text))
    message.add_alternative(without_controls(mail.html), subtype="html")
    if mail.picture is not None:
        _show(mail.picture, message)
    for attachment in mail.attachments:
        media_type = _MEDIA_TYPE.fullmatch(attachment.media_type)
        maintype, subtype = media_type.groups() if media_type else ("application", "octet-stream")
        file_name = re.sub(r'[/\\"]', "_", one_line(attachment.file_name, _FILE_NAME_CHARS))
        message.add_attachment(attachment.content, maintype, subtype, filename=file_name)
    return message


def _show(picture: Picture, message: EmailMessage) -> None:
    """Next to the HTML, where it is shown in its place and not listed as a file (RFC 2387, RFC 2392)."""
    if not CONTENT_ID.fullmatch(picture.content_id) or not picture.content.startswith(PNG_SIGNATURE):
        raise ValueError("a mail's picture is a PNG with an id of its own")
    html = message.get_body(("html",))
    assert html is not None
    html.add_related(
        picture.content, "image", "png", cid=f"<{picture.content_id}>", disposition="inline", filename="plate.png"
    )
