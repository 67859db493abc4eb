"""Etsy's webhooks: who sent it, was it sent before, and of which order it speaks. Nothing else in one is believed.

The scheme is that of Standard Webhooks: `webhook-id`, `webhook-timestamp` in seconds, and `webhook-signature`, an
HMAC-SHA256 of `id.timestamp.body` under the base64 behind `whsec_`. Etsy's documents show the signature bare,
integrators report `v1,` before it, and several may stand with blanks between them: all are taken.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from models import EtsyNotice, Shop, db

TOLERANCE = timedelta(minutes=5)
# Etsy goes on trying for a day and a half, and a person may send one again from its portal.
KEPT_FOR = timedelta(days=30)
PREFIX = "whsec_"
MAX_SIGNATURES = 10
MIN_KEY_BYTES = 16
MAX_ID = 255
MAX_KIND = 64
EVENT = re.compile(r"[a-z]{1,20}[._][a-z_]{1,40}", re.ASCII | re.IGNORECASE)
# It is never asked for as it stands: only the two numbers are taken out of it.
RESOURCE = re.compile(
    r"https://(?:api|openapi)\.etsy\.com/v3/application/shops/([1-9][0-9]{0,18})/receipts/([1-9][0-9]{0,18})", re.ASCII
)


class NotFromEtsy(Exception):
    """The signature, its time or its form does not hold."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What a webhook points to."""

    webhook_id: str
    kind: str
    etsy_shop_id: str
    etsy_order_id: str


def split_secrets(text: str) -> list[str]:
    """The signing secrets of a setting: each endpoint at Etsy has its own."""
    return [part.strip() for part in text.split(",") if part.strip()]


def verify(headers: Mapping[str, str], body: bytes, secrets: Iterable[str], now: datetime) -> str:
    """The webhook's id, if one of the secrets has signed it within five minutes of `now`. Raises NotFromEtsy."""
    given_headers = {name.lower(): value for name, value in headers.items()}
    webhook_id, sent_at = given_headers.get("webhook-id", ""), given_headers.get("webhook-timestamp", "")
    if not re.fullmatch(rf"[\x21-\x7e]{{1,{MAX_ID}}}", webhook_id) or not re.fullmatch(r"[0-9]{1,12}", sent_at):
        raise NotFromEtsy
    if abs(int(sent_at) - now.timestamp()) > TOLERANCE.total_seconds():
        raise NotFromEtsy
    signed = b".".join((webhook_id.encode(), sent_at.encode(), body))
    given = [_signature(each) for each in given_headers.get("webhook-signature", "").split()[:MAX_SIGNATURES]]
    expected = [hmac.digest(key, signed, "sha256") for key in map(_key, secrets) if len(key) >= MIN_KEY_BYTES]
    # All pairs, whatever the first ones say: how long it takes tells nothing.
    matches = [hmac.compare_digest(mine, theirs) for mine in expected for theirs in given]
    if not any(matches):
        raise NotFromEtsy
    return webhook_id


def read_notice(webhook_id: str, body: bytes) -> Notice | None:
    """What a verified body points to; None where that is no order of a shop."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    kind, resource, shop_id = (document.get(name) for name in ("event_type", "resource_url", "shop_id"))
    pointed = RESOURCE.fullmatch(resource) if isinstance(resource, str) else None
    # Seen as a number and as a text.
    if pointed is None or isinstance(shop_id, bool) or str(shop_id) != pointed[1]:
        return None
    if not isinstance(kind, str) or not EVENT.fullmatch(kind):
        return None
    return Notice(webhook_id, kind.lower()[:MAX_KIND], pointed[1], pointed[2])


def note(notice: Notice, *, now: datetime) -> bool:
    """Keep a notice until the next sync reads that order. False for one that was here before, or of a shop that is not
    connected: there is nothing to do. Flushes."""
    db.session.execute(sa.delete(EtsyNotice).where(EtsyNotice.received_at < now - KEPT_FOR))
    shop = db.session.execute(
        sa.select(Shop.id, Shop.user_id).where(Shop.etsy_shop_id == notice.etsy_shop_id)
    ).one_or_none()
    if shop is None:
        return False
    try:
        with db.session.begin_nested():
            db.session.add(
                EtsyNotice(
                    user_id=shop.user_id,
                    shop_id=shop.id,
                    webhook_id=notice.webhook_id,
                    kind=notice.kind,
                    etsy_order_id=notice.etsy_order_id,
                    received_at=now,
                )
            )
    except IntegrityError:
        return False
    return True


def _key(secret: str) -> bytes:
    """Empty for what is no secret of Etsy's: a mistake in the settings, and no key to be guessed."""
    text = secret.removeprefix(PREFIX)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _signature(text: str) -> bytes:
    """`x`, or `v1,x`; of another version none that fits."""
    version, comma, rest = text.partition(",")
    if comma and version != "v1":
        return b""
    try:
        return base64.b64decode(rest if comma else text, validate=True)
    except (binascii.Error, ValueError):
        return b""
