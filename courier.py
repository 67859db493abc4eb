"""One try: a delivery's message made and handed to the way out that it takes, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import orjson
import sqlalchemy as sa
import structlog
from flask import Flask
from sqlalchemy.orm import joinedload

from channels import Attempt, Mail, MailFailed, MailSender, WebhookSender
from claims import Endpoint, Load
from delivery.apprise_post import ApprisePost
from delivery.letters import mail_of, message_of
from farm.plate_pictures import picture_of
from models import Channel, NotificationChannel, PrintNotification, ScheduledPrint, db
from notifications import SWITCHED_OFF
from settings import Settings
from vault import SealBroken, Vault

log = structlog.get_logger()

GONE = 410
ANSWERED_GONE = "the receiver answered 410: it does not want any more"


class WebhookPost(Protocol):
    def send(self, url: str, secrets: Sequence[str], message_id: str, body: bytes) -> Attempt: ...

    def close(self) -> None: ...


class MailPost(Protocol):
    def send(self, mail: Mail) -> None: ...


class MessagePost(Protocol):
    def send(self, url: str, *, title: str, body: str, is_urgent: bool) -> Attempt: ...


@dataclass(frozen=True, slots=True)
class Tried:
    """What a try came to. `is_final`: another would come to the same. `gone`: why nothing is to be sent there again."""

    attempt: Attempt
    is_final: bool = False
    gone: str | None = None


class Courier:
    """`mail` is None where no SMTP server is configured. Safe to share between threads."""

    @classmethod
    def of(cls, app: Flask) -> Courier:
        """With the ways out that the settings name."""
        settings: Settings = app.extensions["parts"].settings
        clock = app.extensions["clock"]
        networks = settings.webhook_allowed_networks
        return cls(
            app,
            mail=_mail_sender(settings, clock),
            webhooks=WebhookSender(networks, clock=clock),
            messages=ApprisePost(networks),
        )

    def __init__(self, app: Flask, *, mail: MailPost | None, webhooks: WebhookPost, messages: MessagePost) -> None:
        parts = app.extensions["parts"]
        self._app: Flask = app
        self._vault: Vault = parts.vault
        self._clock: Callable[[], datetime] = app.extensions["clock"]
        self._public_url: str = parts.settings.public_url.rstrip("/")
        self._files_dir: Path = parts.settings.files_dir
        self._mail, self._webhooks, self._messages = mail, webhooks, messages

    def close(self) -> None:
        """Of connections that are kept for the next webhook."""
        self._webhooks.close()

    def try_once(self, load: Load) -> Tried:
        """No transaction is open while the network is waited for."""
        match load.first.channel:
            case Channel.webhook:
                return self._post_webhook(load)
            case Channel.email:
                return self._post_mail(load)
            case Channel.apprise:
                return self._post_message(load)

    def _post_webhook(self, load: Load) -> Tried:
        endpoint, parcel = load.endpoint, load.first
        assert endpoint is not None
        if endpoint.url is None:
            return _refused("The webhook was taken away.")
        if endpoint.is_disabled:
            return _refused(f"{SWITCHED_OFF[:-1]}: {endpoint.disabled_reason}.")
        secrets = self._secrets(endpoint)
        if not secrets:
            return _refused("The webhook has no signing secret any more.")
        attempt = self._webhooks.send(endpoint.url, secrets, parcel.message_id, orjson.dumps(parcel.payload))
        return Tried(attempt, gone=ANSWERED_GONE if attempt.status == GONE else None)

    def _secrets(self, endpoint: Endpoint) -> list[str]:
        """The present one, and for a day after a rotation the one before."""
        user_id, printer_id = endpoint.owner_ids
        row = PrintNotification(user_id=user_id, printer_id=printer_id)
        secrets = []
        if endpoint.secret_sealed is not None:
            secrets.append(self._opened(endpoint.secret_sealed, row.secret_owner("webhook_secret")))
        until = endpoint.old_secret_until
        if endpoint.old_secret_sealed is not None and until is not None and self._clock() < until:
            secrets.append(self._opened(endpoint.old_secret_sealed, row.secret_owner("webhook_old_secret")))
        return [secret for secret in secrets if secret is not None]

    def _opened(self, sealed: str, owner: str) -> str | None:
        try:
            return self._vault.open(sealed, owner)
        except SealBroken as error:
            log.error("secret_unreadable", error=str(error))
            return None

    def _post_mail(self, load: Load) -> Tried:
        if self._mail is None:
            return _refused("No mail server is configured (SMTP_HOST).")
        mail = self._compose(load)
        began = time.monotonic()
        try:
            self._mail.send(mail)
        except MailFailed as fault:
            return Tried(Attempt(False, fault.code, _ms_since(began), fault.reason, b""), is_final=fault.is_final)
        return Tried(Attempt(True, None, _ms_since(began), None, b""))

    def _compose(self, load: Load) -> Mail:
        return mail_of(
            [parcel.payload for parcel in load.parcels],
            to=load.first.target,
            message_id=load.first.message_id,
            public_url=self._public_url,
            zone=load.timezone,
            picture=self._picture(load),
        )

    def _picture(self, load: Load) -> bytes | None:
        """Of the plate, for a mail about one print."""
        of_print = load.first.payload["data"].get("print")
        if of_print is None or len(load.parcels) > 1:
            return None
        with self._app.app_context():
            query = sa.select(ScheduledPrint).options(joinedload(ScheduledPrint.print_file))
            found = db.session.execute(
                query.where(ScheduledPrint.id == of_print["id"], ScheduledPrint.user_id == load.first.user_id)
            ).scalar_one_or_none()
            # The file is read by another process, in its time, and no transaction is held for that.
            db.session.expunge_all()
            db.session.rollback()
        return picture_of(found, self._files_dir) if found is not None else None

    def _post_message(self, load: Load) -> Tried:
        with self._app.app_context():
            channel = db.session.get(NotificationChannel, load.first.channel_id) if load.first.channel_id else None
            if channel is None:
                return _refused("The channel was deleted.")
            if not channel.is_enabled:
                return _refused("The channel is switched off.")
            url = self._opened(channel.url_sealed, channel.secret_owner)
        if url is None:
            return _refused("The channel's address cannot be read any more: enter it again.")
        title, body = message_of([parcel.payload for parcel in load.parcels], public_url=self._public_url)
        is_urgent = any(parcel.is_urgent for parcel in load.parcels)
        return Tried(self._messages.send(url, title=title, body=body, is_urgent=is_urgent))


def _refused(reason: str) -> Tried:
    """Nothing was sent, and nothing ever will be."""
    return Tried(Attempt(False, None, 0, reason, b""), is_final=True)


def _ms_since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


def _mail_sender(settings: Settings, clock: Callable[[], datetime]) -> MailSender | None:
    if not settings.smtp_host:
        return None
    return MailSender(
        host=settings.smtp_host,
        port=settings.smtp_port,
        user=settings.smtp_user,
        password=settings.smtp_password.get_secret_value(),
        sender=settings.smtp_from,
        tls=settings.smtp_tls,
        clock=clock,
    )
