"""Bambu Lab's cloud over HTTPS: logging in, and reading what it knows of an account's printers and prints.

Read-only. Nothing here starts, stops or changes a print: the cloud takes such orders only with signatures that the
vendor's own programs alone can make; this program ships no key and signs nothing. Commands go over the printer's own
network (bambu_client), with Developer Mode on. Live status by MQTT is bambu.cloud_link.

No Flask, no SQLAlchemy: plain values go in and come out. Every fault is a CloudError; none of them carries a password,
a code or a token. Paths and habits are field notes of several independent programs: the vendor documents nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import requests

import bambu.cloud_reading as reading
from bambu.cloud_http import CallBudget, CloudDoor, Reply
from bambu.cloud_types import (
    HOSTS,
    Challenged,
    CloudError,
    CloudFilament,
    CloudFirmware,
    CloudHistory,
    CloudHosts,
    CloudPrint,
    CloudPrinter,
    CloudSession,
    CodeExpired,
    CodeNeeded,
    LoginNeeded,
    PastPrint,
    RateLimited,
    Refused,
    Region,
    TotpNeeded,
    Unavailable,
    WrongCode,
    WrongCredentials,
)

__all__ = [
    "HOSTS",
    "BambuCloud",
    "CallBudget",
    "Challenged",
    "CloudError",
    "CloudFilament",
    "CloudFirmware",
    "CloudHistory",
    "CloudHosts",
    "CloudPrint",
    "CloudPrinter",
    "CloudSession",
    "CodeExpired",
    "CodeNeeded",
    "LoginNeeded",
    "PastPrint",
    "RateLimited",
    "Refused",
    "Region",
    "TotpNeeded",
    "Unavailable",
    "WrongCode",
    "WrongCredentials",
]

SHORTEST_LIFE, LONGEST_LIFE = timedelta(days=90), timedelta(days=400)  # of a token
HISTORY_PAGE = 20
LONGEST_HISTORY_PAGE = 100
_CODE_EXPIRED, _CODE_WRONG = 1, 2
_PRINT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_WRONG_CODE = "this is not the right code"
_CODE_OVER = "this code is no longer valid: ask for another"


class BambuCloud:
    """One region's cloud. Tokens are passed in with each call; none is kept here.

    `clock` gives aware UTC; `timeout` is in seconds, as requests takes it (connect, read). Proxies and certificates are
    those of `session`, whose cookie jar is closed for good. `hosts` replaces the region's own. Without a `budget` to
    share this client has one of its own: 30 calls a minute, above which it raises RateLimited without asking.
    Every method raises Challenged, RateLimited and Unavailable besides what it names.
    """

    def __init__(
        self,
        *,
        region: Region = "global",
        session: requests.Session,
        clock: Callable[[], datetime],
        hosts: CloudHosts | None = None,
        budget: CallBudget | None = None,
        timeout: float | tuple[float, float] = (5.0, 20.0),
    ) -> None:
        if region not in HOSTS:
            raise ValueError("the regions are global and china")
        self.region = region
        self.hosts = hosts or HOSTS[region]
        self._api, self._web = self.hosts.api.rstrip("/"), self.hosts.web.rstrip("/")
        self._clock = clock
        self._door = CloudDoor(session, budget or CallBudget(clock), timeout)

    def login(self, account: str, password: str) -> CloudSession | CodeNeeded | TotpNeeded:
        """A login, or what the cloud wants besides the password. Raises WrongCredentials and Refused."""
        asked_at = self._clock()
        try:
            reply = self._log_in({"account": account.strip(), "password": password, "apiError": ""})
        except Refused as refusal:
            if refusal.status not in (400, 401):
                raise
            raise WrongCredentials("Bambu Lab's cloud does not take this account and password") from None
        kind, key = reply.body.get("loginType"), reply.body.get("tfaKey")
        if not reply.body.get("accessToken") and kind == "verifyCode":
            return CodeNeeded()
        if not reply.body.get("accessToken") and kind == "tfa" and isinstance(key, str) and 0 < len(key) <= 4000:
            return TotpNeeded(key)
        return self._session_of(reply, asked_at)

    def send_code(self, account: str) -> None:
        """Has the cloud send a code by e-mail; in China by SMS where the account is a phone number. Raises Refused."""
        account = account.strip()
        if self.region == "china" and "@" not in account:
            url = f"{self._web}/api/v1/user-service/user/sendsmscode"
            self._door.ask("POST", url, payload={"phone": account, "type": "codeLogin"})
        else:
            url = f"{self._api}/v1/user-service/user/sendemail/code"
            self._door.ask("POST", url, payload={"email": account, "type": "codeLogin"})

    def login_with_code(self, account: str, code: str) -> CloudSession:
        """With the code that was sent; no password. Raises WrongCode, CodeExpired and Refused."""
        asked_at = self._clock()
        try:
            reply = self._log_in({"account": account.strip(), "code": _bare(code)})
        except Refused as refusal:
            if refusal.status == 400 and refusal.code == _CODE_EXPIRED:
                raise CodeExpired(_CODE_OVER) from None
            if refusal.status == 400 and refusal.code == _CODE_WRONG:
                raise WrongCode(_WRONG_CODE) from None
            raise
        return self._session_of(reply, asked_at)

    def login_with_totp(self, tfa_key: str, code: str) -> CloudSession:
        """With the key that `login` gave and what the authenticator shows. Raises WrongCode and CodeExpired.

        The way of the web site comes first. Where a page for browsers or its CSRF rule bars it, before the code is even
        looked at, the API host's own way is tried.
        """
        asked_at = self._clock()
        payload = {"tfaKey": tfa_key, "tfaCode": _bare(code)}
        outcome = self._redeem_on_web_site(payload)
        reply = outcome if isinstance(outcome, Reply) else self._redeem_on_api_host(payload, barred=outcome)
        return self._session_of(reply, asked_at)

    def from_token(self, token: str) -> CloudSession:
        """A login from a token that a person copied out of a browser. Raises LoginNeeded when it is none, or dead."""
        token = token.strip()
        uid, expires_at = reading.read_claims(token)
        try:
            uid = self._ask_uid(token)
        except (Challenged, Unavailable):
            if uid is None:
                raise
            # An older token names its account itself; MQTT will still tell whether it is alive.
        return CloudSession(token, None, expires_at, uid)

    def refresh(self, refresh_token: str, *, uid: str | None = None) -> CloudSession:
        """A new login for an old one; `uid`, where it is known, saves a call. Raises LoginNeeded when refused, which
        for some accounts is always."""
        asked_at = self._clock()
        url = f"{self._api}/v1/user-service/user/refreshtoken"
        try:
            reply = self._door.ask("POST", url, payload={"refreshToken": refresh_token})
        except Refused:
            raise LoginNeeded("the login could not be extended: log in again") from None
        session = self._session_of(reply, asked_at, uid)
        return session if session.refresh_token else replace(session, refresh_token=refresh_token)

    def printers(self, token: str) -> tuple[CloudPrinter, ...]:
        """The account's printers. Raises LoginNeeded and Refused, as all below."""
        return reading.read_printers(self._get("/v1/iot-service/api/user/bind", token))

    def live(self, token: str) -> tuple[CloudPrint, ...]:
        """What each printer is at."""
        return reading.read_live(self._get("/v1/iot-service/api/user/print", token, {"force": "true"}))

    def history(
        self, token: str, printer_serial: str | None = None, after: str | None = None, limit: int = HISTORY_PAGE
    ) -> CloudHistory:
        """A page of 1 to 100 past prints, newest first, `after` the one with that id. Raises ValueError too."""
        if not 1 <= limit <= LONGEST_HISTORY_PAGE or not (after is None or _PRINT_ID.fullmatch(after)):
            raise ValueError("a page holds 1 to 100 prints and begins after a print's id")
        query = {"limit": str(limit)}
        if printer_serial is not None:
            query["deviceId"] = _serial(printer_serial)
        if after is not None:
            query["after"] = after
        return reading.read_history(self._get("/v1/user-service/my/tasks", token, query))

    def firmware(self, token: str, serial: str) -> tuple[CloudFirmware, ...]:
        """The firmware offered for a printer. Raises ValueError too."""
        body = self._get("/v1/iot-service/api/user/device/version", token, {"dev_id": _serial(serial)})
        return reading.read_firmware(body, serial)

    def _get(self, path: str, token: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        return self._door.ask("GET", f"{self._api}{path}", token=token, query=query).body

    def _log_in(self, payload: Mapping[str, str]) -> Reply:
        return self._door.ask("POST", f"{self._api}/v1/user-service/user/login", payload=payload)

    def _redeem_on_web_site(self, payload: Mapping[str, str]) -> Reply | CloudError:
        """The answer, or what kept the code from being looked at. Raises WrongCode and CodeExpired."""
        try:
            # Cloudflare's own cookies go back as well, or the next call would look like a stranger's.
            cookies = self._door.ask("GET", f"{self._web}/api/csrf").cookies
        except (Challenged, Unavailable, Refused) as fault:
            return fault
        headers = {"x-bbl-csrf-token": cookies.get("bbl_csrf_token", "")}
        url = f"{self._web}/api/sign-in/tfa"
        try:
            reply = self._door.ask("POST", url, payload=payload, cookies=cookies, headers=headers)
        except (Challenged, Unavailable) as fault:
            return fault
        except Refused as refusal:
            if refusal.status in (404, 405) or (refusal.status == 403 and "csrf" in refusal.message.lower()):
                return refusal
            raise _code_fault(refusal) from None
        if reply.body.get("success") is False:
            raise WrongCode(_WRONG_CODE)
        return reply

    def _redeem_on_api_host(self, payload: Mapping[str, str], *, barred: CloudError) -> Reply:
        try:
            return self._door.ask("POST", f"{self._api}/v1/user-service/user/tfa/login", payload=payload)
        except Refused as refusal:
            raise (barred if refusal.status in (404, 405) else _code_fault(refusal)) from None

    def _session_of(self, reply: Reply, asked_at: datetime, uid: str | None = None) -> CloudSession:
        body = reply.body
        found = (body.get("accessToken"), body.get("token"), reply.cookies.get("token"))
        token = next((text for given in found if (text := reading.read_token(given))), None)
        if token is None:
            raise Unavailable("Bambu Lab's cloud answered without a token")
        seconds = body.get("expiresIn")
        life = SHORTEST_LIFE
        if type(seconds) is int and 0 < seconds <= LONGEST_LIFE.total_seconds():
            life = timedelta(seconds=seconds)
        uid = uid or reading.read_claims(token)[0] or self._ask_uid(token)
        return CloudSession(token, reading.read_token(body.get("refreshToken")), asked_at + life, uid)

    def _ask_uid(self, token: str) -> str:
        """Two places know it. A code is spent by now, so that one of them failing must not cost the login."""
        try:
            uid = reading.read_uid(self._get("/v1/design-user-service/my/preference", token).get("uid"))
        except (Challenged, Unavailable, Refused):
            uid = None
        if uid is None:
            body = self._get("/v1/user-service/my/profile", token)
            uid = reading.read_uid(body.get("uidStr")) or reading.read_uid(body.get("uid"))
        if uid is None:
            raise Unavailable("Bambu Lab's cloud does not tell the account's number")
        return uid


def _bare(code: str) -> str:
    """A code as people paste it, without the blanks that group its digits."""
    return "".join(code.split())


def _serial(given: str) -> str:
    if reading.SERIAL.fullmatch(given) is None:
        raise ValueError("a serial number is letters and digits")
    return given


def _code_fault(refusal: Refused) -> CloudError:
    return CodeExpired(_CODE_OVER) if refusal.code == _CODE_EXPIRED else WrongCode(_WRONG_CODE)
