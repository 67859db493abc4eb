"""Log in at Etsy and connect the shop: `/api/auth/etsy`."""

from __future__ import annotations

import hmac
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flask import Response, g, request
from marshmallow import ValidationError, fields, validates_schema

import etsy_login
from api import context
from api.accounts import SessionSchema, open_session
from api.fields import Body, Text
from api.lists import Query, json_response
from api.reading import Room
from auth import accounts, bearer_token, current_user_id, require_token
from errors import Conflict, Invalid, Unauthorized, UpstreamFailed
from etsy_client import EtsyClient, EtsyError, ReconnectNeeded
from etsy_login import OwnKey
from models import db
from vault import SealBroken

blueprint = Room("etsy login", __name__, url_prefix="/api/auth/etsy", description="Log in at Etsy")

COOKIE = "etsy_login"


class EtsyLoginAnswer(Body):
    auth_url = fields.String(required=True)
    state = fields.String(required=True)


KEY = r"^[\x21-\x7e]+$"


class OwnEtsyKey(Body):
    keystring = Text(8, 255, required=True, pattern=KEY, fault="Not a keystring of Etsy's.")
    shared_secret = Text(4, 255, required=True, load_only=True, pattern=KEY, fault="Not a shared secret of Etsy's.")


class Callback(Body):
    code = Text(1, 2000)
    state = Text(1, 500)
    url = Text(1, 5000, metadata={"description": "The whole address where the browser ended, instead of both"})

    @validates_schema(skip_on_field_errors=False)
    def check_parts(self, data: dict[str, Any], **kwargs: Any) -> None:
        needed = ("url",) if "url" in data else ("code", "state")
        missing = {name: ["Missing data for required field."] for name in needed if name not in data}
        if "url" in data:
            missing = {name: ["Send the url alone."] for name in ("code", "state") if name in data}
        if missing:
            raise ValidationError(missing)


class CallbackQuery(Query):
    code = Text(1, 2000)
    state = Text(1, 500)
    error = Text(0, 500)
    error_description = Text(0, 2000)


def _client(own_key: OwnKey | None = None) -> EtsyClient:
    access = context.etsy_access()
    client = access.client(own_key.keystring, own_key.shared_secret) if own_key else access.client()
    if client is None:
        raise Conflict("No Etsy key is configured (ETSY_CLIENT_ID, ETSY_SHARED_SECRET).", code="etsy_not_configured")
    return client


def _is_opened_as_page() -> bool:
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def _begin(user_id: int | None, own_key: OwnKey | None = None) -> Response:
    client = _client(own_key)
    if user_id is None:
        accounts().count_begun(request.remote_addr or "")
    state, url = etsy_login.begin_login(client, context.vault(), user_id=user_id, now=context.now(), own_key=own_key)
    db.session.commit()
    response = json_response({"auth_url": url, "state": state})
    response.vary.add("Accept")
    if request.method == "GET" and _is_opened_as_page():
        # Who follows a link in a mail has no page that would go on from the JSON.
        response.status_code, response.location = 303, url
    # Binds the redirect to the browser that began it: without it, somebody could have another person's shop
    # connected to their own account by sending them the link.
    response.set_cookie(
        COOKIE,
        etsy_login.hash_state(state),
        max_age=int(etsy_login.LOGIN_LIFE.total_seconds()),
        path=blueprint.url_prefix,
        httponly=True,
        secure=request.is_secure,
        samesite="Lax",
    )
    return response


@blueprint.get("/login")
@blueprint.response(200, EtsyLoginAnswer)
@blueprint.alt_response(303, description="For a browser that opened it as a page: on to Etsy")
def begin_etsy_login() -> Response:
    """Where to send the browser; one that asks for a page is sent there. With a token, the shop is connected to that
    account; without, its owner logs in."""
    user_id = None
    if bearer_token() is not None:
        require_token()
        user_id = g.user_id
    return _begin(user_id)


@blueprint.post("/login")
@blueprint.arguments(OwnEtsyKey)
@blueprint.response(200, EtsyLoginAnswer)
def begin_login_with_own_key(data: dict[str, Any]) -> Response:
    """The same with the key of an Etsy app of one's own, which the shop is asked with from then on. For an account
    only: whoever says yes to somebody's app must not be logged in here by that."""
    return _begin(current_user_id(), OwnKey(data["keystring"], data["shared_secret"]))


def _pasted(url: str) -> tuple[str, str]:
    """Code and state of the address where the browser ended. Raises Invalid, or Unauthorized for a no."""
    try:
        query = parse_qs(urlsplit(url).query, max_num_fields=20)
    except ValueError:
        query = {}
    if query.get("error"):
        raise Unauthorized("Etsy did not allow it. Begin the login again.", code="etsy_denied")
    code, state = (query.get(name, [""])[0] for name in ("code", "state"))
    if not code or not state or len(code) > 2000 or len(state) > 500:
        raise Invalid({"url": ["Not the address that Etsy sent the browser to: it holds code and state."]})
    return code, state


@blueprint.post("/callback")
@blueprint.arguments(Callback)
@blueprint.response(200, SessionSchema)
def finish_etsy_login(data: dict[str, Any]) -> Response:
    """Finish a login with the code and state of the redirect. One begun with a token needs a token of that account."""
    code, state = _pasted(data["url"]) if "url" in data else (data["code"], data["state"])
    return _finish(code, state, from_redirect=False)


@blueprint.get("/callback")
@blueprint.arguments(CallbackQuery, location="query")
@blueprint.response(200, SessionSchema)
def finish_etsy_redirect(args: dict[str, Any]) -> Response:
    """The same for the browser's own redirect; it must be the browser that began the login."""
    if args.get("error"):
        raise Unauthorized("Etsy did not allow it. Begin the login again.", code="etsy_denied")
    missing = {name: ["Missing data for required field."] for name in ("code", "state") if not args.get(name)}
    if missing:
        raise Invalid(missing)
    return _finish(args["code"], args["state"], from_redirect=True)


def _finish(code: str, state: str, *, from_redirect: bool) -> Response:
    try:
        taken = etsy_login.take_login(state, context.vault(), now=context.now())
    except SealBroken:
        taken = None
    if taken is None:
        raise Unauthorized("This login is not under way any more. Begin it again.", code="etsy_login_gone")
    user_id = taken.user_id
    if from_redirect:
        # As bytes: compare_digest takes no text beyond ASCII, and a cookie may hold anything.
        begun_with = request.cookies.get(COOKIE, "").encode(errors="replace")
        if not hmac.compare_digest(begun_with, etsy_login.hash_state(state).encode()):
            raise Unauthorized("This login was begun in another browser.", code="etsy_login_elsewhere")
    elif user_id is not None:
        require_token()
        if g.user_id != user_id:
            raise Unauthorized("This login was begun by another account.", code="etsy_login_elsewhere")
    # The login is used up, whatever Etsy answers: a code works once.
    db.session.commit()
    try:
        found = etsy_login.look_up_shop(_client(taken.own_key), code, taken.verifier, taken.own_key)
    except ReconnectNeeded:
        raise Unauthorized("Etsy did not accept this login. Begin it again.", code="etsy_denied") from None
    except EtsyError as error:
        raise UpstreamFailed(f"Etsy did not answer as expected: {error}", code="etsy_failed") from None
    user = etsy_login.connect_shop(found, context.vault(), user_id=user_id, now=context.now())
    return open_session(user)
