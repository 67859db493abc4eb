"""The simulated Etsy's side of OAuth 2.0 with PKCE. Never ships."""

import base64
import hashlib
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlencode

from werkzeug.wrappers import Request, Response

from simulator.etsy_wire import Refusal, make_response

ACCESS_TOKEN_LIFE = timedelta(hours=1)
REFRESH_TOKEN_LIFE = timedelta(days=90)
CODE_LIFE = timedelta(minutes=10)
SCOPES = frozenset(
    [
        "address_r",
        "address_w",
        "email_r",
        "listings_d",
        "listings_r",
        "listings_w",
        "profile_r",
        "profile_w",
        "shops_r",
        "shops_w",
        "transactions_r",
        "transactions_w",
    ]
)


@dataclass(frozen=True, slots=True)
class _Grant:
    expires_at: datetime
    scopes: frozenset[str]
    redirect_uri: str = ""
    challenge: str = ""


class Logins:
    """The authorization server: codes, access tokens and refresh tokens of one application and one shop's owner.

    The owner consents at once. Any redirect address is taken when `redirect_uris` is None.
    """

    def __init__(
        self,
        *,
        keystring: str,
        etsy_user_id: int,
        redirect_uris: Iterable[str] | None,
        clock: Callable[[], datetime],
        randomness: random.Random,
    ) -> None:
        self._keystring = keystring
        self._etsy_user_id = etsy_user_id
        self._redirect_uris = None if redirect_uris is None else frozenset(redirect_uris)
        self._clock = clock
        self._random = randomness
        self._codes: dict[str, _Grant] = {}
        self._access_tokens: dict[str, _Grant] = {}
        self._refresh_tokens: dict[str, _Grant] = {}

    def revoke(self) -> None:
        self._access_tokens.clear()
        self._refresh_tokens.clear()

    def check_access(self, request: Request, scope: str) -> None:
        bearer = re.fullmatch(r"Bearer ([0-9]+\.\S+)", request.headers.get("Authorization", ""))
        grant = self._access_tokens.get(bearer.group(1)) if bearer else None
        if grant is None:
            raise Refusal(401, {"error": "invalid_token", "error_description": "access token is invalid"})
        if grant.expires_at <= self._clock():
            raise Refusal(401, {"error": "invalid_token", "error_description": "access token is expired"})
        if scope not in grant.scopes:
            raise Refusal(403, {"error": "insufficient_scope", "error_description": f"{scope} is required"})

    def authorize(self, request: Request) -> Response:
        asked = request.args
        redirect_uri = asked.get("redirect_uri", "")
        if asked.get("client_id") != self._keystring:
            return make_response(400, "<h1>The application that is requesting access is unknown.</h1>")
        if not redirect_uri or (self._redirect_uris is not None and redirect_uri not in self._redirect_uris):
            return make_response(400, "<h1>The requested redirect URL is not permitted.</h1>")
        scopes = frozenset(asked.get("scope", "").split(" "))
        state = asked.get("state", "")
        answer = {"state": state} if state else {}
        if not state:
            answer |= {"error": "invalid_request", "error_description": "state is required"}
        elif asked.get("response_type") != "code":
            answer |= {"error": "unsupported_response_type", "error_description": "response_type must be code"}
        elif asked.get("code_challenge_method") != "S256" or not asked.get("code_challenge"):
            answer |= {"error": "invalid_request", "error_description": "an S256 code_challenge is required"}
        elif not scopes <= SCOPES:
            answer |= {"error": "invalid_scope", "error_description": "unknown scope"}
        else:
            answer["code"] = self._random.randbytes(24).hex()
            expires_at = self._clock() + CODE_LIFE
            self._codes[answer["code"]] = _Grant(expires_at, scopes, redirect_uri, asked["code_challenge"])
        target = f"{redirect_uri}{'&' if '?' in redirect_uri else '?'}{urlencode(answer)}"
        return Response(status=302, headers={"Location": target})

    def token(self, request: Request) -> Response:
        form = request.form
        if form.get("client_id") != self._keystring:
            raise Refusal(400, {"error": "invalid_client", "error_description": "client_id is unknown"})
        match form.get("grant_type"):
            case "authorization_code":
                grant = self._codes.pop(form.get("code", ""), None)  # a code works once, even for a failed attempt
                verifier = form.get("code_verifier", "")
                if grant is None or grant.expires_at <= self._clock():
                    raise _invalid_grant("code is invalid or expired")
                if form.get("redirect_uri") != grant.redirect_uri:
                    raise _invalid_grant("redirect_uri does not match")
                if not re.fullmatch(r"[A-Za-z0-9._~-]{43,128}", verifier) or _challenge(verifier) != grant.challenge:
                    raise _invalid_grant("code_verifier does not match")
            case "refresh_token":
                grant = self._refresh_tokens.pop(form.get("refresh_token", ""), None)
                if grant is None:
                    raise _invalid_grant("refresh_token is revoked")
                if grant.expires_at <= self._clock():
                    raise _invalid_grant("refresh_token is expired")
            case _:
                raise Refusal(400, {"error": "unsupported_grant_type"})
        access_token, refresh_token = self._new_token(), self._new_token()
        now = self._clock()
        self._access_tokens[access_token] = _Grant(now + ACCESS_TOKEN_LIFE, grant.scopes)
        self._refresh_tokens[refresh_token] = _Grant(now + REFRESH_TOKEN_LIFE, grant.scopes)
        answer = {"access_token": access_token, "token_type": "Bearer", "refresh_token": refresh_token}
        return make_response(200, {**answer, "expires_in": int(ACCESS_TOKEN_LIFE.total_seconds())})

    def _new_token(self) -> str:
        return f"{self._etsy_user_id}.{self._random.randbytes(32).hex()}"


def _challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest()).rstrip(b"=").decode("ascii")


def _invalid_grant(description: str) -> Refusal:
    return Refusal(400, {"error": "invalid_grant", "error_description": description})
