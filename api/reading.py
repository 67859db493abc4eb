"""Reading a request body: strict JSON, so that what is refused is refused for a reason the client can fix."""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from flask import Request
from flask_smorest import Blueprint
from marshmallow import missing
from webargs.flaskparser import FlaskParser

from errors import BadRequest, UnsupportedMediaType

MAX_DEPTH = 64
SURROGATE = re.compile("[\ud800-\udfff]")
# A whole text, or a bracket outside of texts. Possessive, and a text may lack its end: each character is read once,
# where backtracking from one missing quote would take minutes for a megabyte.
TEXT_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def _refuse_constant(word: str) -> Any:
    raise BadRequest(f"{word} is not a JSON number.")


def _read_number(text: str) -> Decimal:
    if len(text) > 64:
        raise BadRequest("A number in the body is too long.")
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise BadRequest(f"The number {text} is out of range.") from None
    if number and not -308 < number.adjusted() < 308:
        raise BadRequest(f"The number {text} is out of range.")
    return number


def _read_whole_number(text: str) -> int:
    if len(text) > 64:
        raise BadRequest("A number in the body is too long.")
    return int(text)


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest("A key stands twice in one JSON object.")
    return found


def _depth_is_bounded(text: str) -> bool:
    """A cheap upper bound on nesting, so that the parser never gets to recurse deeply."""
    depth = 0
    for match in TEXT_OR_BRACKET.finditer(text):
        bracket = match[0]
        if bracket in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return False
        elif bracket in "]}":
            depth -= 1
    return True


def read_json(body: bytes) -> Any:
    """One JSON document of at most 64 levels; numbers with a fraction become Decimal.

    Raises:
        BadRequest: syntax, BOM, encoding, duplicate keys, NaN or Infinity, depth, lone surrogates.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The body is not UTF-8.") from None
    if text.startswith("\ufeff"):
        raise BadRequest("The body starts with a byte order mark; send plain UTF-8.")
    if text.count("[") + text.count("{") > MAX_DEPTH and not _depth_is_bounded(text):
        raise BadRequest(f"The body is nested deeper than {MAX_DEPTH} levels.")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_read_object,
            parse_constant=_refuse_constant,
            parse_float=_read_number,
            parse_int=_read_whole_number,
        )
    except ValueError as error:
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequest(f"The body is not valid JSON{where}.") from None
    if "\\ud" in text or "\\uD" in text:
        _refuse_lone_surrogates(value)
    return value


def _refuse_lone_surrogates(value: Any) -> None:
    if isinstance(value, str):
        if SURROGATE.search(value):
            raise BadRequest("A text in the body holds half a surrogate pair.")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _refuse_lone_surrogates(key)
            _refuse_lone_surrogates(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_lone_surrogates(inner)


def read_body(request: Request) -> Any:
    """The request's JSON document; webargs' `missing` where there is no body at all.

    Raises:
        BadRequest: see `read_json`.
        UnsupportedMediaType: something else than JSON.
    """
    body = request.get_data()
    if not body and not request.content_type:
        return missing
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the body as application/json.")
    return read_json(body)


class StrictParser(FlaskParser):
    """webargs' parser with our JSON reader in it."""

    def load_json(self, req: Request, schema: Any) -> Any:
        if getattr(schema, "may_be_empty", False) and not req.get_data():
            return missing
        return read_body(req)


class Room(Blueprint):
    """flask-smorest's blueprint with our reader. On the class: `arguments` takes the parser when a view is decorated,
    so one that is set on an instance later is never asked."""

    ARGUMENTS_PARSER = StrictParser()
