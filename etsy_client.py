"""Etsy Open API v3 over HTTPS: OAuth 2.0 with PKCE, shops, receipts and tracking.

Etsy's words stop here, in `etsy_answers.py` and in `farm/order_import.py`. No Flask, no SQLAlchemy: plain values go in
and come out. Every fault is an `EtsyError`; none of them carries a token, the shared secret or an authorization code.
"""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import requests
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError

from etsy_answers import (
    EARLIEST_EPOCH_SECONDS,
    LARGEST_ID,
    LATEST_EPOCH_SECONDS,
    EtsyError,
    Login,
    Me,
    NotFound,
    RateLimited,
    ReceiptPage,
    ReconnectNeeded,
    Refused,
    Shop,
    Tokens,
    Unauthorized,
    Unavailable,
    is_currency,
    is_digits,
    parse_json,
    plain_text,
    positive_id,
    read_content,
    refusal_of,
    required_id,
    retry_after_seconds,
    told_time,
)

__all__ = [
    "EARLIEST_EPOCH_SECONDS",
    "LARGEST_ID",
    "LATEST_EPOCH_SECONDS",
    "EtsyClient",
    "EtsyError",
    "Login",
    "Me",
    "NotFound",
    "RateLimited",
    "ReceiptPage",
    "ReconnectNeeded",
    "Refused",
    "Shop",
    "Tokens",
    "Unauthorized",
    "Unavailable",
    "is_currency",
    "plain_text",
]

SCOPES = ("transactions_r", "transactions_w", "shops_r", "listings_r")
PAGE_SIZE = 100
ACCESS_TOKEN_SECONDS = 3600

# They differ from application to application and have changed: read, never assumed.
LIMIT_HEADERS = {
    "limit_per_day": "x-limit-per-day",
    "remaining_today": "x-remaining-today",
    "remaining_this_second": "x-remaining-this-second",
}

_TOKEN = re.compile(r"([1-9][0-9]{0,18})\.[\x21-\x7e]{1,4000}")


class EtsyClient:
    """One application's view of Etsy. Tokens are passed in with each call; none is kept here.

    `clock` gives aware UTC; `timeout` is in seconds, as requests takes it (connect, read). Proxies and certificates
    are those of `session`. `limit_per_day`, `remaining_today` and
    `remaining_this_second` are what the last answer said of the application's quota, None before it; `etsy_time` is the
    time at Etsy when it was given, None where it did not say so.
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
        self.limit_per_day: int | None = None
        self.remaining_today: int | None = None
        self.remaining_this_second: int | None = None
        self.etsy_time: datetime | None = None

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
        return Me(required_id(body, "user_id"), positive_id(body.get("shop_id")))

    def get_shop(self, access_token: str, shop_id: int) -> Shop:
        body = self._get(f"/shops/{shop_id:d}", access_token)
        currency = body.get("currency_code")
        url = body.get("url")
        return Shop(
            etsy_shop_id=required_id(body, "shop_id"),
            name=plain_text(body.get("shop_name"), 255) or f"Shop {shop_id}",
            currency=currency if is_currency(currency) else None,
            url=plain_text(url, 2000) if isinstance(url, str) and url.startswith(("https://", "http://")) else None,
            is_vacation=body.get("is_vacation") is True,
        )

    def get_receipt(self, access_token: str, shop_id: int, receipt_id: int) -> dict[str, Any]:
        """One ShopReceipt as Etsy sent it; `farm.order_import.read_receipt` makes sense of it."""
        return self._get(f"/shops/{shop_id:d}/receipts/{receipt_id:d}", access_token)

    def get_receipt_page(
        self,
        access_token: str,
        shop_id: int,
        *,
        min_last_modified: datetime | None,
        max_last_modified: datetime | None,
        was_canceled: bool | None = None,
        is_by_id: bool = False,
        offset: int = 0,
    ) -> ReceiptPage:
        """Up to 100 ShopReceipts last modified between two aware times (whole seconds, both ends in; None is no end),
        oldest change first, or `is_by_id` the lowest receipt_id. Etsy leaves cancelled ones out unless asked with
        `was_canceled=True` (issues 604 and 629 of etsy/open-api)."""
        query: dict[str, object] = {
            "min_last_modified": None if min_last_modified is None else _epoch_seconds(min_last_modified),
            "max_last_modified": None if max_last_modified is None else _epoch_seconds(max_last_modified),
            "was_canceled": was_canceled,
            "sort_on": "receipt_id" if is_by_id else "updated",
            "sort_order": "asc",
            "limit": PAGE_SIZE,
            "offset": offset,
        }
        page = self._get(f"/shops/{shop_id:d}/receipts", access_token, query)
        results, count = page.get("results"), page.get("count")
        if not isinstance(results, list) or not isinstance(count, int):
            raise Unavailable("Etsy's answer is not a page of receipts")
        # An entry that is no object has no id to be imported by.
        return ReceiptPage(count, len(results), tuple(each for each in results if isinstance(each, dict)))

    def add_tracking(
        self,
        access_token: str,
        shop_id: int,
        receipt_id: int,
        *,
        tracking_code: str | None = None,
        carrier_name: str | None = None,
        note_to_buyer: str | None = None,
        send_bcc: bool = False,
    ) -> dict[str, Any]:
        """Mark an order as shipped; the ShopReceipt as it is afterwards. Each success mails the buyer, so it is never
        repeated here, and after `Unavailable` it may have happened: read the receipt before another try. Without code
        and carrier the order is only marked. Etsy has dropped the tracking while marking (issue 466 of
        etsy/open-api): look for the code in the answer. `Refused` with 403 is the lock-out of new applications.
        With `send_bcc` the seller gets the mail, too."""
        sent = {
            "tracking_code": tracking_code,
            "carrier_name": carrier_name,
            "note_to_buyer": note_to_buyer,
            "send_bcc": send_bcc or None,
        }
        return self._request(
            "POST",
            f"/v3/application/shops/{shop_id:d}/receipts/{receipt_id:d}/tracking",
            access_token=access_token,
            document={name: value for name, value in sent.items() if value is not None},
        )

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
        document: Mapping[str, object] | None = None,
    ) -> dict[str, Any]:
        """The one door to Etsy: a JSON object, or an EtsyError."""
        if access_token is not None and _TOKEN.fullmatch(access_token) is None:
            # http.client would refuse it as a header, and quote it in the message.
            raise Unauthorized("not an access token of Etsy")
        headers = {"Accept": "application/json"}
        data = None
        if document is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(document)
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            data = urlencode(form, errors="replace")  # a code that a person pasted may hold anything
        fault, was_slow = "", False
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
                content = read_content(response)
        except (OSError, HTTPError) as error:  # requests' own are OSErrors; it lets some of urllib3's through
            fault, was_slow = type(error).__name__, isinstance(error, requests.Timeout | TimeoutError)
        if fault:
            # Raised out here, so that the library's exception, which holds the request and its headers, is not chained.
            raise Unavailable(f"Etsy could not be reached ({fault})", was_slow=was_slow)
        self._note(response.headers)
        if response.status_code == 429:
            raise RateLimited(retry_after_seconds(response.headers.get("retry-after", "")))
        body = parse_json(content)
        if not 200 <= response.status_code < 300:
            asked_with = form or {}
            hidden = [self._shared_secret, self._keystring, access_token or ""]
            hidden += [asked_with.get(name, "") for name in ("code", "code_verifier", "refresh_token")]
            raise refusal_of(response.status_code, body, hidden, was_signed_in=access_token is not None)
        if not isinstance(body, dict):
            raise Unavailable("Etsy's answer is not a JSON object", response.status_code)
        return body

    def _note(self, headers: Mapping[str, str]) -> None:
        self.etsy_time = told_time(headers.get("date", ""))
        for name, header in LIMIT_HEADERS.items():
            if is_digits(headers.get(header, "")):
                setattr(self, name, int(headers[header]))


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
