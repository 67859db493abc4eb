"""Etsy's own word that an order has changed: `/api/etsy/webhook`."""

from __future__ import annotations

from flask import Response, request
from marshmallow import fields

import etsy_webhooks
from api import context
from api.fields import Body
from api.lists import json_response
from api.reading import Room
from errors import TooLarge, Unauthorized
from models import db

blueprint = Room("etsy webhook", __name__, url_prefix="/api/etsy", description="Webhooks from Etsy")

MAX_BODY_BYTES = 64 * 1024


class NoticeAnswer(Body):
    message = fields.String(required=True)


@blueprint.post("/webhook")
@blueprint.response(200, NoticeAnswer)
def take_webhook() -> Response:
    """Etsy's word of an order, signed with the endpoint's secret. The order is read from Etsy by the next sync, at
    once; what the body says of it is not believed."""
    body = request.get_data()
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge("The request is larger than allowed.")
    secrets = etsy_webhooks.split_secrets(context.settings().etsy_webhook_secret.get_secret_value())
    try:
        webhook_id = etsy_webhooks.verify(dict(request.headers.items()), body, secrets, context.now())
    except etsy_webhooks.NotFromEtsy:
        raise Unauthorized("This is not signed by Etsy, or too long ago.", code="bad_signature") from None
    notice = etsy_webhooks.read_notice(webhook_id, body)
    is_new = notice is not None and etsy_webhooks.note(notice, now=context.now())
    db.session.commit()
    return json_response({"message": "Noted" if is_new else "Nothing to do"})
