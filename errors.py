"""One error shape, made here and nowhere else: `{"error": sentence, "code": slug, "fields": {name: [faults]}?}`."""

from __future__ import annotations

import re
import secrets
import traceback
from collections.abc import Mapping
from typing import Any

import orjson
import structlog
from flask import Flask, Response
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError
from werkzeug.exceptions import HTTPException

from models import IllegalMove, db

log = structlog.get_logger()

Fields = Mapping[str, list[str]]

# code and sentence for what the framework itself refuses
FRAMEWORK_SENTENCES = {
    400: ("bad_request", "The request cannot be read."),
    404: ("not_found", "There is nothing here under that address."),
    405: ("method_not_allowed", "This address does not take that method."),
    408: ("too_slow", "The request took too long to arrive."),
    411: ("length_required", "The request must say its length."),
    413: ("too_large", "The request is larger than allowed."),
    414: ("uri_too_long", "The address is too long."),
    415: ("unsupported_media_type", "Send the body as application/json."),
    416: ("range_not_satisfiable", "That range is not there."),
    422: ("invalid", "Some values are not valid."),
    431: ("headers_too_large", "The headers are larger than allowed."),
}


class Problem(Exception):
    """An answer that is not a success. Raised anywhere below a view, turned into JSON here."""

    status = 500
    code = "internal"

    def __init__(
        self,
        sentence: str,
        *,
        code: str | None = None,
        fields: Fields | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code or type(self).code
        self.fields = fields
        self.headers = headers or {}


class BadRequest(Problem):
    status, code = 400, "bad_request"


class Unauthorized(Problem):
    status, code = 401, "unauthorized"

    def __init__(self, sentence: str = "Log in first.", *, code: str | None = None) -> None:
        super().__init__(sentence, code=code, headers={"WWW-Authenticate": "Bearer"})


class NotFound(Problem):
    """The same bytes for what never existed, what was deleted and what belongs to somebody else."""

    status, code = 404, "not_found"

    def __init__(self) -> None:
        super().__init__(FRAMEWORK_SENTENCES[404][1])


class Conflict(Problem):
    status, code = 409, "conflict"


class TooLarge(Problem):
    status, code = 413, "too_large"


class UnsupportedMediaType(Problem):
    status, code = 415, "unsupported_media_type"


class Invalid(Problem):
    status, code = 422, "invalid"

    def __init__(self, fields: Fields, sentence: str = FRAMEWORK_SENTENCES[422][1], *, code: str | None = None) -> None:
        super().__init__(sentence, code=code, fields=fields)


class TooManyRequests(Problem):
    status, code = 429, "too_many_requests"

    def __init__(self, sentence: str, *, retry_after_seconds: int) -> None:
        super().__init__(sentence, headers={"Retry-After": str(max(1, retry_after_seconds))})


class UpstreamFailed(Problem):
    status, code = 502, "upstream_failed"


class Unavailable(Problem):
    status, code = 503, "unavailable"

    def __init__(self, sentence: str, *, retry_after_seconds: int = 5) -> None:
        super().__init__(sentence, headers={"Retry-After": str(retry_after_seconds)})


def problem_response(
    status: int, code: str, sentence: str, fields: Fields | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    body: dict[str, Any] = {"error": sentence, "code": code}
    if fields:
        body["fields"] = fields
    response = Response(orjson.dumps(body), status=status, mimetype="application/json")
    response.headers.update(headers or {})
    return response


def flatten_faults(messages: Any, prefix: str = "") -> dict[str, list[str]]:
    """marshmallow's nested faults as `{"items.0.quantity": ["…"]}`, with the location (json, query …) taken off."""
    if isinstance(messages, Mapping):
        flat: dict[str, list[str]] = {}
        for key, value in messages.items():
            name = "" if key == "_schema" else str(key)
            path = ".".join(part for part in (prefix, name) if part)
            for where, faults in flatten_faults(value, path).items():
                flat.setdefault(where, []).extend(faults)
        return flat
    faults = messages if isinstance(messages, list) else [messages]
    return {prefix or "body": [str(fault) for fault in faults]}


def _from_http_exception(error: HTTPException) -> Response:
    status = error.code or 500
    code, sentence = FRAMEWORK_SENTENCES.get(status, ("http_" + str(status), re.sub(r"[<>]", "", error.name) + "."))
    messages = getattr(error, "data", {}).get("messages")
    fields = None
    if messages:
        fields = flatten_faults(next(iter(messages.values())) if isinstance(messages, Mapping) else messages)
    own = error.get_response().headers
    headers = {name: own[name] for name in ("Allow", "Retry-After", "Location", "WWW-Authenticate") if name in own}
    return problem_response(status, code, sentence, fields, headers)


def _from_illegal_move(error: IllegalMove) -> Response:
    allowed = ", ".join(error.allowed)
    return problem_response(
        409,
        "illegal_move",
        f"{error}. From {error.from_status} it may become: {allowed}.",
        {"status": [f"allowed: {allowed}"]},
    )


def _is_race(error: IntegrityError) -> bool:
    """A broken UNIQUE or FOREIGN KEY can come of two requests at once; a broken NOT NULL or CHECK is our own fault."""
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return state in ("23505", "23503") or str(error.orig).startswith(("UNIQUE constraint", "FOREIGN KEY constraint"))


def _from_integrity_error(error: IntegrityError) -> Response:
    # Two requests raced past the same check: the database let one through. Nothing of this one was written.
    log.warning("integrity_error", kind=type(error.orig).__name__)
    return problem_response(409, "conflict", "Somebody else changed this at the same moment. Read it again and retry.")


def _is_out_of_reach(error: Exception) -> bool:
    """Whether the database did not answer, or lost the connection while it did: trying again may help."""
    if isinstance(error, OperationalError | PoolTimeout):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _from_unreachable_database(error: Exception) -> Response:
    log.error("database_unavailable", kind=type(getattr(error, "orig", error)).__name__)
    return problem_response(
        503, "database_busy", "The database does not answer right now. Try again.", headers={"Retry-After": "2"}
    )


def _from_bug(error: Exception) -> Response:
    reference = secrets.token_hex(6)
    if isinstance(error, DBAPIError):
        # The database's own words may hold a whole row (PostgreSQL's DETAIL): buyers' texts, sealed secrets.
        what: dict[str, Any] = {
            "kind": type(error.orig).__name__,
            "sqlstate": getattr(error.orig, "pgcode", None),
            "statement": error.statement,
            "stack": "".join(traceback.format_tb(error.__traceback__)),
        }
    else:
        what = {"exc_info": error}
    log.error("unhandled_error", reference=reference, **what)
    return problem_response(500, "internal", f"Something went wrong on our side. Reference: {reference}.")


def init_app(app: Flask) -> None:
    """The table of errors: every exception of a request ends in one of these rows."""

    def handle(error: Exception) -> Response:
        try:
            db.session.rollback()
        except SQLAlchemyError as fault:
            # The answer goes out all the same; the connection is thrown away when the request ends.
            log.error("rollback_failed", kind=type(fault).__name__)
        match error:
            case Problem():
                return problem_response(error.status, error.code, error.sentence, error.fields, error.headers)
            case HTTPException():
                return _from_http_exception(error)
            case IllegalMove():
                return _from_illegal_move(error)
            case StaleDataError():
                return problem_response(
                    409, "conflict", "Somebody else changed this at the same moment. Read it again."
                )
            case IntegrityError() if _is_race(error):
                return _from_integrity_error(error)
            case _ if _is_out_of_reach(error):
                return _from_unreachable_database(error)
            case _:
                return _from_bug(error)

    app.register_error_handler(Exception, handle)
    app.register_error_handler(HTTPException, handle)
