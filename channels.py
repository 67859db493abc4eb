"""The ways out to people and programs: one attempt to send one signed webhook, one e-mail or one message.

Whether and when to try again is not decided here; `Attempt` and `MailFailed` say what the caller needs to decide it.
"""

from __future__ import annotations

import base64
import http.client
import re
import secrets as random
import smtplib
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.headerregistry import Address
from ipaddress import ip_address
from typing import Literal

import certifi
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from delivery.apprise_post import ApprisePost, check_apprise_url
from delivery.attempt import Attempt
from delivery.mail_facts import MailContext, one_line
from delivery.mail_message import Attachment, Mail, Picture, compose, parse_address, parse_sender
from delivery.mail_text import MailKind, render_mail
from delivery.pinned_http import AnswerTooLong, Bounds, PinnedConnections
from delivery.webhook_target import (
    BadWebhookUrl,
    Network,
    Resolver,
    check_webhook_url,
    checked_addresses,
    parse_webhook_url,
)

__all__ = [
    "ApprisePost",
    "Attachment",
    "Attempt",
    "Mail",
    "MailContext",
    "MailFailed",
    "MailKind",
    "MailSender",
    "Picture",
    "WebhookSender",
    "check_apprise_url",
    "check_webhook_url",
    "new_webhook_secret",
    "render_mail",
]

Clock = Callable[[], datetime]
TlsMode = Literal["starttls", "tls", "none"]

USER_AGENT = "print-farm-webhooks/1"
KEPT_ANSWER_BYTES = 1_000
_MESSAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.A)
_REASON_CHARS = 300


def new_webhook_secret() -> str:
    """A new signing secret as Standard Webhooks writes it: `whsec_` and 32 random bytes in base64."""
    return "whsec_" + base64.b64encode(random.token_bytes(32)).decode()


class WebhookSender:
    """Posts webhooks signed by Standard Webhooks (standardwebhooks.com). Safe to share between threads.

    At each send the name is resolved once, every address is checked, and the connection goes to a checked address.
    Redirects are failures, proxies of the environment are ignored, and the timeout holds for the whole send.
    """

    def __init__(
        self,
        allowed_networks: Sequence[Network],
        *,
        clock: Clock,
        resolver: Resolver = socket.getaddrinfo,
        timeout_seconds: float = 15.0,
        max_answer_bytes: int = 65_536,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed_networks = tuple(allowed_networks)
        self._clock = clock
        self._resolver = resolver
        self._timeout_seconds = timeout_seconds
        self._max_answer_bytes = max_answer_bytes
        self._connections = PinnedConnections(tls_context or _trusting_public_authorities())

    def send(self, url: str, secrets: Sequence[str], message_id: str, body: bytes) -> Attempt:
        """Post `body` (JSON in UTF-8) once. Whatever the URL or the receiver do, the outcome is an Attempt.

        `secrets` sign one after another, so that a receiver may know the old or the new one while they rotate.
        A repeat of the same message must carry the same `message_id`: receivers tell repeats by it.

        Raises:
            ValueError: no secrets or a broken one, a `message_id` other than 1-64 of A-Z a-z 0-9 _ -, or not UTF-8.
        """
        headers = _signed_headers(secrets, message_id, self._clock(), body)
        began = time.monotonic()
        status: int | None = None
        answer = b""
        error: str | None = None
        try:
            bounds = Bounds(self._timeout_seconds, self._max_answer_bytes)
            target = parse_webhook_url(url)
            addresses = checked_addresses(target, self._allowed_networks, self._resolver, bounds.seconds_left())
            status, answer = self._connections.post(target, addresses, headers, body, bounds, KEPT_ANSWER_BYTES)
        except BadWebhookUrl as fault:
            error = str(fault)
        except (OSError, http.client.HTTPException) as fault:
            error = self._sentence(fault)
        else:
            if 300 <= status < 400:
                error = f"The receiver answered {status}; redirects are not followed."
            elif not 200 <= status < 300:
                error = f"The receiver answered {status}."
        return Attempt(error is None, status, round((time.monotonic() - began) * 1000), error, answer)

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self._connections.close()

    def _sentence(self, fault: OSError | http.client.HTTPException) -> str:
        match fault:
            case TimeoutError():
                return f"The receiver did not answer within {self._timeout_seconds:g} seconds."
            case socket.gaierror():
                return "The host name cannot be found."
            case ssl.SSLCertVerificationError():
                return f"The receiver's certificate is not valid: {one_line(fault.verify_message, _REASON_CHARS)}."
            case ssl.SSLError():
                return "No TLS connection could be made with the receiver."
            case AnswerTooLong():
                return "The receiver's answer is too long."
            case ConnectionRefusedError():
                return "The receiver refused the connection."
            case ConnectionError():
                return "The receiver closed the connection without an answer."
            case http.client.HTTPException():
                return "The receiver's answer is not proper HTTP."
            case _:
                return f"The receiver cannot be reached: {one_line(fault.strerror or str(fault), _REASON_CHARS)}."


def _signed_headers(secrets: Sequence[str], message_id: str, now: datetime, body: bytes) -> dict[str, str]:
    if not secrets:
        raise ValueError("a webhook is signed with at least one secret")
    if not _MESSAGE_ID.fullmatch(message_id):
        raise ValueError("a webhook's message id is 1-64 characters of A-Z a-z 0-9 _ -")
    at = now.astimezone(UTC)
    try:
        signatures = [Webhook(secret).sign(message_id, at, body.decode()) for secret in secrets]
    except EmptyWebhookSecretError:
        raise ValueError("a webhook secret is empty") from None
    return {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _trusting_public_authorities() -> ssl.SSLContext:
    """The system's authorities (where an operator adds a private one) and certifi's, for systems that have none."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


class MailFailed(Exception):
    """A mail was not taken by the server.

    `reason` is a sentence. `is_final`: this very mail will never be taken, trying again cannot help; faults of the
    set-up (no connection, a wrong password, no TLS) are not final, as the operator can mend them. `code` is what the
    server answered, None when it did not. `recipient_refused`: it is the address that the server does not want.
    """

    def __init__(
        self, reason: str, *, is_final: bool, code: int | None = None, recipient_refused: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_final = is_final
        self.code = code
        self.recipient_refused = recipient_refused


class MailSender:
    """Sends mail through one SMTP server, one connection per mail.

    `sender` is an address or `Name <address>`; `tls` is "starttls" (required, not tried), "tls" from the first byte,
    or "none", which only a loopback host may have. An empty `user` means no login. `timeout_seconds` is for each step.

    Raises:
        ValueError: the set-up cannot work or is not safe; the message says why.
    """

    def __init__(
        self,
        host: str,
        port: int,
        user: str,
        password: str,
        sender: str,
        tls: TlsMode,
        *,
        clock: Clock,
        timeout_seconds: float = 20.0,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        if tls not in ("starttls", "tls", "none"):
            raise ValueError(f"SMTP_TLS must be starttls, tls or none, not {tls!r}")
        if tls == "none" and not _is_loopback(host):
            raise ValueError(f"SMTP_TLS=none sends mail and password in the clear; {host!r} is not a loopback host")
        if not (user + password).isascii():
            raise ValueError("SMTP_USER and SMTP_PASSWORD must be ASCII: smtplib cannot send others")
        try:
            self._sender = parse_sender(sender)
        except ValueError as fault:
            raise ValueError(f"SMTP_FROM: {fault}") from None
        self._host, self._port, self._user, self._password, self._tls = host, port, user, password, tls
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._tls_context = tls_context or _trusting_public_authorities()

    def send(self, mail: Mail) -> None:
        """Hand one mail to the server.

        Raises:
            MailFailed: the server did not take it.
            ValueError: `message_id` is not 1-64 of A-Z a-z 0-9 _ -.
        """
        try:
            recipient = parse_address(mail.to)
        except ValueError as fault:
            raise MailFailed(f"The mail cannot be addressed: {fault}.", is_final=True, recipient_refused=True) from None
        message = compose(mail, self._sender, recipient, self._clock())
        try:
            with self._connected() as server:
                server.send_message(message, self._sender.addr_spec, [recipient.addr_spec])
        except (OSError, smtplib.SMTPException) as fault:
            raise _mail_failed(fault, recipient) from fault

    @contextmanager
    def _connected(self) -> Iterator[smtplib.SMTP]:
        # Told its name, smtplib does not ask the resolver for one, which takes seconds where there is no resolver.
        name = self._sender.domain
        if self._tls == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                self._host, self._port, name, timeout=self._timeout_seconds, context=self._tls_context
            )
        else:
            server = smtplib.SMTP(self._host, self._port, name, timeout=self._timeout_seconds)
        try:
            if self._tls == "starttls":
                server.starttls(context=self._tls_context)
            if self._user:
                server.login(self._user, self._password)
            yield server
            # The mail is taken. What goes wrong from here on must not look like a failure: it would be sent twice.
            with suppress(OSError, smtplib.SMTPException):
                server.quit()
        finally:
            server.close()


def _mail_failed(fault: Exception, recipient: Address) -> MailFailed:
    match fault:
        case smtplib.SMTPRecipientsRefused():
            code, said = next(iter(fault.recipients.values()))
            return _refused("refused the recipient", code, said, is_final=code >= 500, recipient_refused=True)
        case smtplib.SMTPAuthenticationError():
            return _refused("refused the login", fault.smtp_code, fault.smtp_error)
        case smtplib.SMTPSenderRefused():  # our own address or right to send: the set-up's fault, unless it is the size
            return _refused("refused the sender", fault.smtp_code, fault.smtp_error, is_final=fault.smtp_code == 552)
        case smtplib.SMTPDataError():
            return _refused("refused the mail", fault.smtp_code, fault.smtp_error, is_final=fault.smtp_code >= 500)
        case smtplib.SMTPResponseException():
            return _refused("answered", fault.smtp_code, fault.smtp_error)
        case smtplib.SMTPNotSupportedError():
            is_address = not recipient.addr_spec.isascii()
            reason = f"The mail server cannot do what is needed: {fault}"
            return MailFailed(reason, is_final=is_address, recipient_refused=is_address)
        case ssl.SSLCertVerificationError():
            why = one_line(fault.verify_message, _REASON_CHARS)
            return MailFailed(f"The mail server's certificate is not valid: {why}.", is_final=False)
        case _:
            why = one_line(getattr(fault, "strerror", None) or str(fault), _REASON_CHARS)
            return MailFailed(f"The mail server cannot be used: {why}", is_final=False)


def _refused(
    what: str, code: int, said: bytes | str, *, is_final: bool = False, recipient_refused: bool = False
) -> MailFailed:
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    reason = f"The mail server {what}: {code} {one_line(text, _REASON_CHARS)}"
    # Where a connection broke in the middle of an answer, smtplib's code is -1.
    return MailFailed(reason, is_final=is_final, code=code if code > 0 else None, recipient_refused=recipient_refused)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
