"""Repeat-safe POST: the `Idempotency-Key` header."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from functools import wraps
from typing import Any

import sqlalchemy as sa
from flask import Response, request
from sqlalchemy.dialects import postgresql, sqlite

from api.context import now
from api.reading import read_body
from auth import current_user_id
from errors import Conflict, Invalid
from models import IdempotencyKey, db

KEPT_FOR = timedelta(hours=24)
HEADER = "Idempotency-Key"
KEY_PATTERN = r"^[\x21-\x7e]{1,255}$"
PARAMETER = {
    "in": "header",
    "name": HEADER,
    "required": False,
    "schema": {"type": "string", "pattern": KEY_PATTERN},
    "description": "Send the same key again to get the first answer again instead of a second effect (24 hours).",
}


def once(view: Callable[..., Response]) -> Callable[..., Response]:
    """Run a view at most once per user, method, path and key. Owns the commit: such a view only flushes.

    Key, effect and answer are one transaction: a crash leaves none of them. A second request with the same key waits
    for the first at the unique index, then gets its answer. Only successes are kept.
    """

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Response:
        key = request.headers.get(HEADER)
        if key is None:
            response = view(*args, **kwargs)
            db.session.commit()
            return response
        if not re.fullmatch(KEY_PATTERN, key):
            raise Invalid({HEADER: ["1 to 255 printable ASCII characters without spaces."]})
        row_id = _claim(key, _hash_of_body())
        if isinstance(row_id, Response):
            return row_id
        response = view(*args, **kwargs)
        if 200 <= response.status_code < 300:
            db.session.execute(
                sa.update(IdempotencyKey)
                .where(IdempotencyKey.id == row_id)
                .values(answer_status=response.status_code, answer_body=response.get_data(as_text=True))
            )
        else:
            db.session.execute(sa.delete(IdempotencyKey).where(IdempotencyKey.id == row_id))
        db.session.commit()
        return response

    doc = deepcopy(getattr(wrapper, "_apidoc", {}))
    doc.setdefault("manual_doc", {}).setdefault("parameters", []).append(PARAMETER)
    wrapper._apidoc = doc  # type: ignore[attr-defined]
    return wrapper


def _hash_of_body() -> str:
    # The standard library's writer: orjson refuses whole numbers above 64 bits, which the view has yet to refuse.
    return hashlib.sha256(json.dumps(read_body(request), sort_keys=True, default=repr).encode()).hexdigest()


def _claim(key: str, body_hash: str) -> int | Response:
    """The id of the key's new row, or the answer that was given before."""
    at = now()
    scope = {"user_id": current_user_id(), "method": request.method, "path": request.path, "key": key}
    db.session.execute(
        sa.delete(IdempotencyKey).where(
            IdempotencyKey.user_id == current_user_id(), IdempotencyKey.created_at < at - KEPT_FOR
        )
    )
    insert = postgresql.insert if db.engine.dialect.name == "postgresql" else sqlite.insert
    row_id: int | None = db.session.execute(
        insert(IdempotencyKey)
        .values(body_hash=body_hash, created_at=at, **scope)
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.id)
    ).scalar_one_or_none()
    if row_id is not None:
        return row_id
    first = db.session.execute(sa.select(IdempotencyKey).filter_by(**scope)).scalar_one_or_none()
    if first is None or first.answer_status is None:
        raise Conflict("The first request with this key is still running.", code="still_running")
    if first.body_hash != body_hash:
        raise Invalid({HEADER: ["Was used with another body."]}, "This Idempotency-Key was used with another body.")
    answer = Response(first.answer_body, status=first.answer_status, mimetype="application/json")
    answer.headers["Idempotent-Replay"] = "true"
    db.session.rollback()
    return answer
