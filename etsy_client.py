"""Etsy Open API v3 over HTTPS: OAuth 2.0 with PKCE, shops and receipts.

Etsy's words stop here and in `farm/order_import.py`. No Flask, no SQLAlchemy: plain values go in and come out.
Every fault is an `EtsyError`; none of them carries a token, the shared secret or an authorization code.
"""

import base64
import hashlib
import html
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import requests
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError

SCOPES = ("transactions_r", "transactions_w", "shops_r", "listings_r")
PAGE_SIZE = 100
MAX_ANSWER_BYTES = 32 * 2**20  # a full page of receipts carries whole listing descriptions: some MB at the most
ACCESS_TOKEN_SECONDS = 3600
EARLIEST_EPOCH_SECONDS = 946_684_800  # Etsy refuses a time before the year 2000
DEFAULT_RETRY_AFTER_SECONDS = 60
LONGEST_RETRY_AFTER_SECONDS = 86_400  # what Etsy answers when the day's quota is used up
LARGEST_ID = 2**63 - 1
MAX_REASON = 500  # characters

_TOKEN = re.compile(r"([1-9][0-9]{0,18})\.[\x21-\x7e]{1,4000}")
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
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message, status)
        self.message = message
        self.status = status

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


class EtsyClient:
    """One application's view of Etsy. Tokens are passed in with each call; none is kept here.

    `clock` gives aware UTC; `timeout` is in seconds, as requests takes it (connect, read). Proxies and certificates
    are those of `session`. `remaining_today` is what the last answer said is left of the day's quota, None before it.
    """

    def __init__(
        self,
        *,
        keystring: str,
        shared_secret: str,
        redirect_uri: str,
        base_url: str = "https://api.etsy.com",
        authorize_url: str = "https://www.etsy.com/oauth/connect",
        session: requests.Session,
        clock: Callable[[], datetime],
        timeout: float | tuple[float, float] = (5.0, 30.0),
    ) -> None:
        if not all(part.isascii() and part.isprintable() and " " not in part for part in (keystring, shared_secret)):
            raise ValueError("Etsy's keystring and shared secret are printable ASCII without blanks")
        self._keystring = keystring
        self._shared_secret = shared_secret
        self._redirect_uri = redirect_uri
        self._base_url = base_url.rstrip("/")
        self._authorize_url = authorize_url
        self._session = session
        self._clock = clock
        self._timeout = timeout
        self.remaining_today: int | None = None

    def new_login(self, scopes: Sequence[str] = SCOPES) -> Login:
        """A fresh state and PKCE verifier (86 characters) and the address at which the shop's owner consents."""
        state = secrets.token_urlsafe(32)
        verifier = secrets.token_urlsafe(64)
        digest = hashlib.sha256(verifier.encode("ascii")).digest()
        query = {
            "response_type": "code",
            "client_id": self._keystring,
            "redirect_uri": self._redirect_uri,
            "scope": " ".join(scopes),
            "state": state,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii"),
            "code_challenge_method": "S256",
        }
        return Login(state, verifier, f"{self._authorize_url}?{urlencode(query, quote_via=quote)}")

    def exchange_code(self, code: str, verifier: str) -> Tokens:
        """Tokens for the code that came back to the redirect address. ReconnectNeeded when Etsy does not take it."""
        return self._ask_for_tokens(
            {
                "grant_type": "authorization_code",
                "client_id": self._keystring,
                "redirect_uri": self._redirect_uri,
                "code": code,
                "code_verifier": verifier,
            }
        )

    def refresh(self, refresh_token: str) -> Tokens:
        """New tokens; the old refresh token is void from here on. ReconnectNeeded when it already was.

        Two at once for one account would void each other: the caller holds a lock per account.
        """
        return self._ask_for_tokens(
            {"grant_type": "refresh_token", "client_id": self._keystring, "refresh_token": refresh_token}
        )

    def get_me(self, access_token: str) -> Me:
        """Whose token this is; `etsy_shop_id` is None for a person without a shop."""
        body = self._get("/users/me", access_token)
        return Me(_required_id(body, "user_id"), _id(body.get("shop_id")))

    def get_shop(self, access_token: str, shop_id: int) -> Shop:
        body = self._get(f"/shops/{shop_id:d}", access_token)
        currency = body.get("currency_code")
        url = body.get("url")
        return Shop(
            etsy_shop_id=_required_id(body, "shop_id"),
            name=plain_text(body.get("shop_name"), 255) or f"Shop {shop_id}",
            currency=currency if is_currency(currency) else None,
            url=plain_text(url, 2000) if isinstance(url, str) and url.startswith(("https://", "http://")) else None,
            is_vacation=body.get("is_vacation") is True,
        )

    def get_receipt(self, access_token: str, shop_id: int, receipt_id: int) -> dict[str, Any]:
        """One ShopReceipt as Etsy sent it; `farm.order_import.read_receipt` makes sense of it."""
        return self._get(f"/shops/{shop_id:d}/receipts/{receipt_id:d}", access_token)

    def iterate_receipts(
        self,
        access_token: str,
        shop_id: int,
        *,
        min_last_modified: datetime | None,
        max_last_modified: datetime,
        was_canceled: bool | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Every ShopReceipt last modified between two aware times (whole seconds, both ends in), oldest change first.

        Pages are fetched as the iterator is drawn from, and any EtsyError arises there. A receipt may come twice.
        Etsy leaves cancelled ones out unless asked with `was_canceled=True` (issues 604 and 629 of etsy/open-api).
        """
        query: dict[str, object] = {
            "min_last_modified": None if min_last_modified is None else _epoch_seconds(min_last_modified),
            "max_last_modified": _epoch_seconds(max_last_modified),
            "was_canceled": was_canceled,
            "sort_on": "updated",
            "sort_order": "asc",
            "limit": PAGE_SIZE,
        }
        offset = 0
        known_count: int | None = None
        while True:
            page = self._get(f"/shops/{shop_id:d}/receipts", access_token, {**query, "offset": offset})
            results = page.get("results")
            count = page.get("count")
            if not isinstance(results, list) or not isinstance(count, int):
                raise Unavailable("Etsy's answer is not a page of receipts")
            if known_count is not None and count < known_count and offset > 0:
                # Receipts that changed while we paged have left the window and those behind them moved up, some onto
                # pages already read: step back by as many. The count falls each time, so this ends.
                offset = max(0, offset - (known_count - count))
                known_count = count
                continue
            known_count = count
            # An entry that is no object has no id to be imported by.
            yield from (receipt for receipt in results if isinstance(receipt, dict))
            offset += len(results)
            if not results or offset >= count:
                return

    def _get(self, path: str, access_token: str, query: Mapping[str, object] | None = None) -> dict[str, Any]:
        return self._request("GET", f"/v3/application{path}", access_token=access_token, query=query)

    def _ask_for_tokens(self, form: Mapping[str, str]) -> Tokens:
        asked_at = self._clock()
        try:
            body = self._request("POST", "/v3/public/oauth/token", form=form)
        except Unavailable as fault:
            # The token endpoint answers an occasional 500 that succeeds on retry (issue 549 of etsy/open-api).
            # Nothing else is repeated: after a time-out the old refresh token may already be void.
            if fault.status != 500:
                raise
            body = self._request("POST", "/v3/public/oauth/token", form=form)
        access_token, refresh_token = body.get("access_token"), body.get("refresh_token")
        if not isinstance(access_token, str) or not isinstance(refresh_token, str):
            raise Unavailable("Etsy's answer holds no tokens")
        owner = _TOKEN.fullmatch(access_token)
        if owner is None or _TOKEN.fullmatch(refresh_token) is None:
            raise Unavailable("Etsy's answer holds tokens of an unknown form")
        seconds = body.get("expires_in")
        if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 < seconds <= 86_400:
            # To refuse the answer would lose the new refresh token, and with it the login.
            seconds = ACCESS_TOKEN_SECONDS
        return Tokens(access_token, refresh_token, asked_at + timedelta(seconds=seconds), int(owner.group(1)))

    def _request(
        self,
        method: str,
        path: str,
        *,
        access_token: str | None = None,
        query: Mapping[str, object] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The one door to Etsy: a JSON object, or an EtsyError."""
        if access_token is not None and _TOKEN.fullmatch(access_token) is None:
            # http.client would refuse it as a header, and quote it in the message.
            raise Unauthorized("not an access token of Etsy")
        headers = {"Accept": "application/json"}
        data = None
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            data = urlencode(form, errors="replace")  # a code that a person pasted may hold anything
        fault = ""
        try:
            with self._session.request(
                method,
                f"{self._base_url}{path}",
                params=_wire_query(query or {}),
                data=data,
                headers=headers,
                auth=_Credentials(f"{self._keystring}:{self._shared_secret}", access_token),
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            ) as response:
                content = _read(response)
        except (OSError, HTTPError) as error:  # requests' own are OSErrors; it lets some of urllib3's through
            fault = type(error).__name__
        if fault:
            # Raised out here, so that the library's exception, which holds the request and its headers, is not chained.
            raise Unavailable(f"Etsy could not be reached ({fault})")
        remaining = response.headers.get("x-remaining-today", "")
        if _is_digits(remaining):
            self.remaining_today = int(remaining)
        if response.status_code == 429:
            raise RateLimited(_retry_after_seconds(response.headers.get("retry-after", "")))
        body = _parse(content)
        if not 200 <= response.status_code < 300:
            asked_with = form or {}
            hidden = [self._shared_secret, self._keystring, access_token or ""]
            hidden += [asked_with.get(name, "") for name in ("code", "code_verifier", "refresh_token")]
            raise _refusal(response.status_code, body, hidden, was_signed_in=access_token is not None)
        if not isinstance(body, dict):
            raise Unavailable("Etsy's answer is not a JSON object", response.status_code)
        return body


class _Credentials(AuthBase):
    """As an auth object, because requests would let a netrc entry replace a plain Authorization header."""

    def __init__(self, api_key: str, access_token: str | None) -> None:
        self._api_key = api_key
        self._access_token = access_token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["x-api-key"] = self._api_key
        if self._access_token is not None:
            request.headers["Authorization"] = f"Bearer {self._access_token}"
        return request


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


def _read(response: requests.Response) -> bytes:
    content = bytearray()
    for chunk in response.iter_content(65_536):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise requests.exceptions.ContentDecodingError("answer too large")
    return bytes(content)


def _parse(content: bytes) -> object:
    """The JSON value, or None for anything else (a page of the content network, a cut answer)."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _refusal(status: int, body: object, hidden: Iterable[str], *, was_signed_in: bool) -> EtsyError:
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


def _wire_query(query: Mapping[str, object]) -> dict[str, str]:
    """Etsy reads `true` and `1,2,3` where requests would write `True` and repeat the key."""
    return {name: _wire_value(value) for name, value in query.items() if value is not None}


def _wire_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(_wire_value(part) for part in value)
    return str(value)


def _epoch_seconds(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise ValueError("a time for Etsy must be aware")
    return max(EARLIEST_EPOCH_SECONDS, int(moment.timestamp()))


def _retry_after_seconds(header: str) -> int:
    seconds = int(header) if _is_digits(header) else DEFAULT_RETRY_AFTER_SECONDS
    return min(max(seconds, 1), LONGEST_RETRY_AFTER_SECONDS)


def _is_digits(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", text) is not None


def _id(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_ID else None


def _required_id(body: Mapping[str, object], name: str) -> int:
    value = _id(body.get(name))
    if value is None:
        raise Unavailable(f"Etsy's answer holds no usable {name}")
    return value
