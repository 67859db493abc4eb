"""What Etsy answers, read: faults as exceptions, texts made safe, numbers believed only in their bounds. Pure."""

import html
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests

MAX_ANSWER_BYTES = 32 * 2**20  # a full page of receipts carries whole listing descriptions: some MB at the most
DEFAULT_RETRY_AFTER_SECONDS = 60
LONGEST_RETRY_AFTER_SECONDS = 86_400  # what Etsy answers when the day's quota is used up
LARGEST_ID = 2**63 - 1
EARLIEST_EPOCH_SECONDS = 946_684_800  # Etsy refuses a time before the year 2000
LATEST_EPOCH_SECONDS = 4_102_444_800  # the year 2100
MAX_REASON = 500  # characters

# C0 and C1 controls but line feed, lone surrogates, and the marks that reorder the text after them.
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_LINE_END = re.compile(r"\r\n|[\r\x85\u2028\u2029]")


class EtsyError(Exception):
    """Anything that kept Etsy from giving what was asked for."""


class Unauthorized(EtsyError):
    """The access token is expired or revoked: refresh it once, then ask again once."""


class ReconnectNeeded(EtsyError):
    """Etsy no longer takes this login (code or refresh token): a person has to connect the shop again."""


class NotFound(EtsyError):
    """Missing, or not this account's: Etsy does not tell the two apart."""


class RateLimited(EtsyError):
    """Too many calls. `retry_after_seconds` (1 to 86,400) may be a whole day: park the work, do not sleep on it."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"Etsy asks to wait {self.retry_after_seconds} s"


class Refused(EtsyError):
    """Etsy understood and said no: 400 bad input, 403 key, scope or lock-out, 409 conflict. `message` is its reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return f"Etsy refused ({self.status}): {self.message}"


class Unavailable(EtsyError):
    """No usable answer: network, 5xx, a page of the content network, or something that is not the promised JSON.

    `status` is the HTTP status, None where there was no answer. The request may have had its effect all the same.
    `was_slow`: no answer came in time.
    """

    def __init__(self, message: str, status: int | None = None, *, was_slow: bool = False) -> None:
        super().__init__(message, status)
        self.message = message
        self.status = status
        self.was_slow = was_slow

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Login:
    """A login under way: keep `state` and `verifier` on the server (with an expiry), send the browser to `url`."""

    state: str = field(repr=False)
    verifier: str = field(repr=False)
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Both tokens are spent by their next use as a pair: save them in the transaction that asked for them."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: datetime
    etsy_user_id: int


@dataclass(frozen=True, slots=True)
class Me:
    etsy_user_id: int
    etsy_shop_id: int | None


@dataclass(frozen=True, slots=True)
class Shop:
    """`currency` is an ISO 4217 code; `url` is http(s); both None where Etsy gave nothing usable."""

    etsy_shop_id: int
    name: str
    currency: str | None
    url: str | None
    is_vacation: bool


@dataclass(frozen=True, slots=True)
class ReceiptPage:
    """`count` matched the question in all; `length` entries came in this answer, of which `receipts` are objects."""

    count: int
    length: int
    receipts: tuple[dict[str, Any], ...]


def plain_text(value: object, limit: int, *, multiline: bool = False) -> str | None:
    """A buyer's or seller's text made safe to store: entities resolved once, controls and lone surrogates gone, at most
    `limit` characters. None for what is no text, or holds none ("" and null both mean absent to Etsy)."""
    if not isinstance(value, str):
        return None
    try:
        text = html.unescape(value)
    except ValueError:  # a character reference of more digits than int() takes
        text = value
    text = _LINE_END.sub("\n", text).replace("\t", " ")
    if not multiline:
        text = text.replace("\n", " ")
    return _UNPRINTABLE.sub("", text).strip()[:limit].rstrip() or None


def is_currency(value: object) -> bool:
    """Whether this has the form of an ISO 4217 code."""
    return isinstance(value, str) and re.fullmatch(r"[A-Z]{3}", value) is not None


def read_content(response: requests.Response) -> bytes:
    content = bytearray()
    for chunk in response.iter_content(65_536):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise requests.exceptions.ContentDecodingError("answer too large")
    return bytes(content)


def parse_json(content: bytes) -> object:
    """The JSON value, or None for anything else (a page of the content network, a cut answer)."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def refusal_of(status: int, body: object, hidden: Iterable[str], *, was_signed_in: bool) -> EtsyError:
    """The exception for an answer outside 2xx. A body that is not Etsy's JSON was not Etsy's word on the matter."""
    if not 400 <= status < 500 or not isinstance(body, dict | list):
        return Unavailable(f"Etsy is not available (status {status})", status)
    message = _reason(body)
    for secret in hidden:
        if len(secret) >= 8:
            message = message.replace(secret, "[hidden]")
    message = message[:MAX_REASON]  # after hiding, or the cut could leave half a secret
    if isinstance(body, dict) and body.get("error") == "invalid_grant":
        return ReconnectNeeded(message)
    if status == 401 and was_signed_in:
        return Unauthorized(message)
    if status == 404:
        return NotFound(message)
    return Refused(status, message)


def _reason(body: dict[str, Any] | list[Any]) -> str:
    """Etsy's own words: `{"error", "error_description"?}`, or a list of `{"path", "type", "message"}` (issue 622)."""
    faults = [body] if isinstance(body, dict) else [fault for fault in body[:5] if isinstance(fault, dict)]
    parts = [fault.get(name) for fault in faults for name in ("path", "message", "error", "error_description")]
    return ": ".join(text for part in parts if (text := plain_text(part, 10_000))) or "no reason given"


def retry_after_seconds(header: str) -> int:
    seconds = int(header) if is_digits(header) else DEFAULT_RETRY_AFTER_SECONDS
    return min(max(seconds, 1), LONGEST_RETRY_AFTER_SECONDS)


def told_time(header: str) -> datetime | None:
    """The aware time of a Date header; None for what is none, or is before 2000 or after 2100."""
    try:
        told = parsedate_to_datetime(header)
        told = told.replace(tzinfo=told.tzinfo or UTC).astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return told if EARLIEST_EPOCH_SECONDS <= told.timestamp() < LATEST_EPOCH_SECONDS else None


def is_digits(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", text) is not None


def positive_id(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_ID else None


def required_id(body: Mapping[str, object], name: str) -> int:
    value = positive_id(body.get(name))
    if value is None:
        raise Unavailable(f"Etsy's answer holds no usable {name}")
    return value
