"""The logins of the simulated cloud: passwords, codes by e-mail and SMS, authenticators, tokens. Never ships."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from werkzeug.wrappers import Request, Response

from simulator.etsy_wire import Refusal, make_response

TOKEN_LIFE = timedelta(days=90)
CODE_LIFE = timedelta(minutes=5)
PLEASE_LOGIN = {"code": 4, "error": "Please login."}


@dataclass(frozen=True, slots=True)
class CloudAccount:
    """`account`: an e-mail address, or in China a phone number. `wants`: what a login takes beside the password.

    `totp`: what this person's authenticator shows, all day long.
    """

    account: str
    password: str
    uid: str
    wants: Literal["nothing", "code", "totp"] = "nothing"
    totp: str = "314159"


@dataclass(frozen=True, slots=True)
class _Grant:
    account: CloudAccount
    expires_at: datetime


class CloudLogins:
    """`codes`: the last code sent to each address. `refresh_works`: some accounts are reported never to be refreshed.

    `token_comes_as`: where the authenticator's way puts the token, in the answer or in a cookie.
    """

    def __init__(self, clock: Callable[[], datetime], seed: int) -> None:
        self.accounts: dict[str, CloudAccount] = {}
        self.codes: dict[str, str] = {}
        self.refresh_works = True
        self.token_comes_as: Literal["json", "cookie"] = "json"
        self._clock = clock
        self._random = random.Random(f"cloud/{seed}")
        self._code_until: dict[str, datetime] = {}
        self._tokens: dict[str, _Grant] = {}
        self._refresh_tokens: dict[str, _Grant] = {}
        self._tfa_keys: dict[str, CloudAccount] = {}
        self._csrf_tokens: set[str] = set()

    def issue(self, account: CloudAccount, *, as_jwt: bool = False) -> str:
        """A token of this account; as a JWT it tells account and expiry, as older ones did."""
        expires_at = self._clock() + TOKEN_LIFE
        token = f"AQA{self._random.randbytes(60).hex()}"
        if as_jwt:
            claims = {"username": f"u_{account.uid}", "exp": int(expires_at.timestamp())}
            token = f"{_base64({'alg': 'RS256'})}.{_base64(claims)}.{self._random.randbytes(32).hex()}"
        self._tokens[token] = _Grant(account, expires_at)
        return token

    def revoke(self) -> None:
        """What a change of the password does: every token is dead."""
        self._tokens.clear()
        self._refresh_tokens.clear()

    def owner(self, token: str) -> CloudAccount | None:
        """Whose token this is, if it is alive."""
        grant = self._tokens.get(token)
        return grant.account if grant is not None and grant.expires_at > self._clock() else None

    def check(self, request: Request) -> CloudAccount:
        """The account that asks. Raises Refusal."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        account = self.owner(token) if kind == "Bearer" else None
        if account is None:
            raise Refusal(401, PLEASE_LOGIN)
        return account

    def log_in(self, request: Request) -> Response:
        sent = _body(request)
        account = self.accounts.get(str(sent.get("account")))
        if "code" in sent:
            if account is None or sent["code"] != self.codes.get(account.account):
                raise Refusal(400, {"code": 2, "error": "Incorrect code"})
            if self._code_until[account.account] <= self._clock():
                raise Refusal(400, {"code": 1, "error": "The code has expired"})
            del self.codes[account.account]
            return self._welcome(account)
        if account is None or sent.get("password") != account.password:
            raise Refusal(400, {"code": 2, "error": "Incorrect password"})
        if account.wants == "code":
            return make_response(200, _answer(loginType="verifyCode"))
        if account.wants == "totp":
            key = self._random.randbytes(16).hex()
            self._tfa_keys[key] = account
            return make_response(200, _answer(loginType="tfa", tfaKey=key))
        return self._welcome(account)

    def send_code(self, request: Request, field: str) -> Response:
        sent = _body(request)
        address = str(sent.get(field))
        if address not in self.accounts or sent.get("type") != "codeLogin":
            raise Refusal(400, {"code": 3, "error": f"No account of {address}"})
        self.codes[address] = f"{self._random.randrange(10**6):06d}"
        self._code_until[address] = self._clock() + CODE_LIFE
        return Response(status=200)

    def csrf(self) -> Response:
        token = self._random.randbytes(16).hex()
        self._csrf_tokens.add(token)
        response = Response(status=204)
        response.set_cookie("bbl_csrf_token", token, httponly=True)
        response.set_cookie("__cf_bm", self._random.randbytes(8).hex(), httponly=True)
        return response

    def redeem_on_web_site(self, request: Request) -> Response:
        """The rule of the web site: the cookie and the header that repeats it come before the code is looked at."""
        cookie = request.cookies.get("bbl_csrf_token")
        if cookie not in self._csrf_tokens:
            raise Refusal(403, {"error": "CSRF error: missing_cookie", "reason": "missing_cookie"})
        if request.headers.get("x-bbl-csrf-token") != cookie:
            raise Refusal(403, {"error": "CSRF error: token_mismatch", "reason": "token_mismatch"})
        return self.redeem(request)

    def redeem(self, request: Request) -> Response:
        sent = _body(request)
        account = self._tfa_keys.get(str(sent.get("tfaKey")))
        if account is None or sent.get("tfaCode") != account.totp:
            raise Refusal(400, {"code": 5, "error": "Login failed"})
        del self._tfa_keys[str(sent["tfaKey"])]
        if self.token_comes_as == "json":
            return self._welcome(account)
        response = make_response(200, {"success": True})
        response.set_cookie("token", self.issue(account), httponly=True)
        return response

    def refresh(self, request: Request) -> Response:
        grant = self._refresh_tokens.pop(str(_body(request).get("refreshToken")), None)
        if not self.refresh_works or grant is None or grant.expires_at <= self._clock():
            raise Refusal(401, PLEASE_LOGIN)
        return self._welcome(grant.account)

    def _welcome(self, account: CloudAccount) -> Response:
        token, refresh_token = self.issue(account), f"AQB{self._random.randbytes(60).hex()}"
        self._refresh_tokens[refresh_token] = self._tokens[token]
        life = int(TOKEN_LIFE.total_seconds())
        return make_response(200, _answer(accessToken=token, refreshToken=refresh_token, expiresIn=life))


def _answer(**filled: object) -> dict[str, object]:
    empty = {"accessToken": "", "refreshToken": "", "expiresIn": 0, "refreshExpiresIn": 0, "tfaKey": ""}
    return {**empty, "accessMethod": "", "loginType": "", **filled}


def _body(request: Request) -> dict[str, Any]:
    try:
        sent = json.loads(request.get_data())
    except ValueError:
        sent = None
    if not isinstance(sent, dict):
        raise Refusal(400, {"code": 1, "error": "Invalid parameter"})
    return sent


def _base64(claims: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
