"""Log in at Etsy and connect the shop: `/api/auth/etsy`."""

from __future__ import annotations

import hmac
from typing import Any

from flask import Response, g, request
from marshmallow import fields

import etsy_api
from api import context
from api.accounts import SessionSchema, open_session
from api.fields import Body, Text
from api.lists import Query, json_response
from api.reading import Room
from auth import bearer_token, require_token
from errors import Conflict, Invalid, Unauthorized, UpstreamFailed
from etsy_client import EtsyClient, EtsyError, ReconnectNeeded
from models import db
from vault import SealBroken

blueprint = Room("etsy login", __name__, url_prefix="/api/auth/etsy", description="Log in at Etsy")

COOKIE = "etsy_login"


class EtsyLoginAnswer(Body):
    auth_url = fields.String(required=True)
    state = fields.String(required=True)


class Callback(Body):
    code = Text(1, 2000, required=True)
    state = Text(1, 500, required=True)


class CallbackQuery(Query):
    code = Text(1, 2000)
    state = Text(1, 500)
    error = Text(0, 500)
    error_description = Text(0, 2000)


def _client() -> EtsyClient:
    client = context.etsy()
    if client is None:
        raise Conflict("No Etsy key is configured (ETSY_CLIENT_ID, ETSY_SHARED_SECRET).", code="etsy_not_configured")
    return client


@blueprint.get("/login")
@blueprint.response(200, EtsyLoginAnswer)
def begin_etsy_login() -> Response:
    """Where to send the browser. With a token, the shop is connected to that account; without, its owner logs in."""
    user_id = None
    if bearer_token() is not None:
        require_token()
        user_id = g.user_id
    state, url = etsy_api.begin_login(_client(), context.vault(), user_id=user_id, now=context.now())
    db.session.commit()
    response = json_response({"auth_url": url, "state": state})
    # Binds the redirect to the browser that began it: without it, somebody could have another person's shop
    # connected to their own account by sending them the link.
    response.set_cookie(
        COOKIE,
        etsy_api.hash_state(state),
        max_age=int(etsy_api.LOGIN_LIFE.total_seconds()),
        path=blueprint.url_prefix,
        httponly=True,
        secure=request.is_secure,
        samesite="Lax",
    )
    return response


@blueprint.post("/callback")
@blueprint.arguments(Callback)
@blueprint.response(200, SessionSchema)
def finish_etsy_login(data: dict[str, Any]) -> Response:
    """Finish a login with the code and state of the redirect. One begun with a token needs a token of that account."""
    return _finish(data["code"], data["state"], from_redirect=False)


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
        taken = etsy_api.take_login(state, context.vault(), now=context.now())
    except SealBroken:
        taken = None
    if taken is None:
        raise Unauthorized("This login is not under way any more. Begin it again.", code="etsy_login_gone")
    verifier, user_id = taken
    if from_redirect:
        # As bytes: compare_digest takes no text beyond ASCII, and a cookie may hold anything.
        begun_with = request.cookies.get(COOKIE, "").encode(errors="replace")
        if not hmac.compare_digest(begun_with, etsy_api.hash_state(state).encode()):
            raise Unauthorized("This login was begun in another browser.", code="etsy_login_elsewhere")
    elif user_id is not None:
        require_token()
        if g.user_id != user_id:
            raise Unauthorized("This login was begun by another account.", code="etsy_login_elsewhere")
    # The login is used up, whatever Etsy answers: a code works once.
    db.session.commit()
    try:
        found = etsy_api.look_up_shop(_client(), code, verifier)
    except ReconnectNeeded:
        raise Unauthorized("Etsy did not accept this login. Begin it again.", code="etsy_denied") from None
    except EtsyError as error:
        raise UpstreamFailed(f"Etsy did not answer as expected: {error}", code="etsy_failed") from None
    user = etsy_api.connect_shop(found, context.vault(), user_id=user_id, now=context.now())
    return open_session(user)
