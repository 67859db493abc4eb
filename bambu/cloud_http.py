"""The one door to Bambu Lab's cloud over HTTPS: a JSON object comes out, or a CloudError.

A page of Cloudflare's is told here from a dead token, a refusal and a failure. Answers are read up to a limit,
redirects are not followed, no cookie is kept, and no exception carries what was sent.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.auth import AuthBase
from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import HTTPError

from bambu.cloud_reading import TOKEN, is_cookie, reason
from bambu.cloud_types import Challenged, CloudError, LoginNeeded, RateLimited, Refused, Unavailable

USER_AGENT = "print-farm/1"
MAX_ANSWER_BYTES = 8 * 2**20
CALLS_PER_MINUTE = 30  # beyond about that many the cloud begins to refuse, or to show pages for browsers
DEFAULT_RETRY_AFTER_SECONDS = 60
LONGEST_RETRY_AFTER_SECONDS = 86_400

_PAGE_MARKS = (b"just a moment", b"attention required", b"challenge-platform", b"cf-chl", b"cf_chl")
_CHALLENGE = (
    "Bambu Lab's cloud shows a page meant for browsers instead of answering, as it does when it takes a caller for a"
    " robot: wait some minutes, or log in with a browser and paste the token"
)
_DEAD_TOKEN = "Bambu Lab's cloud no longer takes this login: log in again"


class CallBudget:
    """So many calls in any minute, by the clock handed in. Share one between all clients that go out by one address."""

    def __init__(self, clock: Callable[[], datetime], calls: int = CALLS_PER_MINUTE) -> None:
        self._clock, self._calls = clock, calls
        self._made: deque[datetime] = deque()
        self._lock = threading.Lock()

    def spend(self) -> None:
        """Counts one call. Raises RateLimited, and counts nothing, when the minute's are used up."""
        with self._lock:
            now = self._clock()
            # A call of the future was made before the clock was set back.
            self._made = deque(at for at in self._made if now - timedelta(minutes=1) < at <= now)
            if len(self._made) >= self._calls:
                left = self._made[0] + timedelta(minutes=1) - now
                raise RateLimited(max(1, -int(-left.total_seconds() // 1)))
            self._made.append(now)


@dataclass(frozen=True, slots=True)
class Reply:
    """`body` is empty for an answer without content. `cookies` by name; only such as can go back as they came."""

    body: dict[str, Any] = field(repr=False)
    cookies: dict[str, str] = field(repr=False)


class CloudDoor:
    """See the module. Takes `session` for its own: the cookie jar is closed, or one account's login, which comes as a
    cookie, would go out with another account's call."""

    def __init__(self, session: requests.Session, budget: CallBudget, timeout: float | tuple[float, float]) -> None:
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self._session, self._budget, self._timeout = session, budget, timeout

    def ask(
        self,
        method: str,
        url: str,
        *,
        token: str | None = None,
        payload: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One call. Raises LoginNeeded, Challenged, RateLimited, Refused and Unavailable.

        A refusal of a call without a token is always Refused: what it means is for the caller to say.
        """
        if token is not None and TOKEN.fullmatch(token) is None:
            # http.client would refuse it as a header, and quote it in the message.
            raise LoginNeeded("this is not a token of Bambu Lab's cloud")
        self._budget.spend()
        fault = ""
        try:
            with self._session.request(
                method,
                url,
                params=query,
                json=payload,
                headers={"Accept": "application/json", "User-Agent": USER_AGENT, **(headers or {})},
                cookies=dict(cookies or {}),
                auth=_Bearer(token),
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            ) as response:
                content = _read(response)
        except (OSError, HTTPError) as error:  # requests' own are OSErrors; it lets some of urllib3's through
            fault = type(error).__name__
        if fault:
            # Raised out here, so that the library's exception, which holds the request and its headers, is not chained.
            raise Unavailable(f"Bambu Lab's cloud could not be reached ({fault})")
        body = _parse(content)
        status = response.status_code
        if 200 <= status < 300 and (isinstance(body, dict) or not content):
            jar: Mapping[str, str | None] = response.cookies.get_dict()
            cookies_back = {name: value for name, value in jar.items() if value and is_cookie(name, value)}
            return Reply(body if isinstance(body, dict) else {}, cookies_back)
        hidden = [token or "", *(payload or {}).values(), *(cookies or {}).values()]
        raise _fault(status, response.headers, content, body, hidden, was_signed_in=token is not None)


class _Bearer(AuthBase):
    """As an auth object, because requests would let a netrc entry replace a plain Authorization header."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _read(response: requests.Response) -> bytes:
    content = bytearray()
    for chunk in response.iter_content(65_536):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise requests.exceptions.ContentDecodingError("answer too large")
    return bytes(content)


def _parse(content: bytes) -> object:
    """The JSON value, or None for anything else."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _fault(
    status: int,
    headers: CaseInsensitiveDict[str],
    content: bytes,
    body: object,
    hidden: Iterable[str],
    *,
    was_signed_in: bool,
) -> CloudError:
    if _is_challenge(status, headers, content, body):
        return Challenged(_CHALLENGE)
    if status == 429:
        return RateLimited(_retry_after_seconds(headers.get("retry-after", "")))
    if not 400 <= status < 500 or not isinstance(body, dict):
        return Unavailable(f"Bambu Lab's cloud is not available (status {status})", status)
    if status == 401 and was_signed_in:
        if _says_please_login(body):
            return LoginNeeded(_DEAD_TOKEN)
        # Seen to pass by itself with the same token: nobody should be sent to log in again for it.
        return Unavailable("Bambu Lab's cloud did not take the login just now", status)
    code = body.get("code")
    if type(code) is not int or abs(code) >= 2**31:
        code = None
    return Refused(f"Bambu Lab's cloud refused ({status}): {reason(body, hidden)}", status, code)


def _is_challenge(status: int, headers: CaseInsensitiveDict[str], content: bytes, body: object) -> bool:
    """Every answer passes through Cloudflare and carries `cf-ray`; only its own pages are no JSON besides."""
    if status == 418 or "cf-mitigated" in headers:
        return True
    if body is not None:
        return False
    start = content[:65_536].lower()
    is_page = b"<html" in start or b"<!doctype" in start
    return is_page and (any(mark in start for mark in _PAGE_MARKS) or (status in (403, 429) and "cf-ray" in headers))


def _says_please_login(body: Mapping[str, object]) -> bool:
    error = body.get("error")
    return body.get("code") == 4 or (isinstance(error, str) and error.lower().startswith("please login"))


def _retry_after_seconds(header: str) -> int:
    seconds = int(header) if re.fullmatch(r"[0-9]{1,9}", header) else DEFAULT_RETRY_AFTER_SECONDS
    return min(max(seconds, 1), LONGEST_RETRY_AFTER_SECONDS)
