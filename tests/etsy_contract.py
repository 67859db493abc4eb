"""Whether a request to Etsy is one that its OpenAPI document knows: path, method, query, body, content type."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from simulator.etsy import SeenRequest

DOCUMENT = Path(__file__).resolve().parents[2] / "shared" / "protocol" / "etsy-openapi.json"
FORM = "application/x-www-form-urlencoded"
# Of OAuth the document says only where it is; RFC 6749 and 7636 name the fields.
TOKEN_PATH = "/v3/public/oauth/token"
TOKEN_FIELDS = {
    "authorization_code": {"grant_type", "client_id", "redirect_uri", "code", "code_verifier"},
    "refresh_token": {"grant_type", "client_id", "refresh_token"},
}
VALUES = {
    "integer": re.compile(r"-?[0-9]+"),
    "boolean": re.compile("true|false"),
    "string": re.compile(".+", re.DOTALL),
    "array": re.compile("[^,]+(,[^,]+)*"),
}
TYPES: dict[str, type | tuple[type, ...]] = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}


@cache
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DOCUMENT.read_text())
    return found


def faults_of(request: SeenRequest) -> list[str]:
    """What the document does not know of it; empty for a request that is right."""
    where = f"{request.method} {request.path}"
    if request.path == "/oauth/connect":
        return []
    faults = [] if ":" in request.headers.get("x-api-key", "") else ["no x-api-key of keystring and shared secret"]
    if request.path == TOKEN_PATH:
        return [f"{where}: {each}" for each in faults + _token_faults(request)]
    operation = _operation(request)
    if operation is None:
        return [f"{where}: no such operation"]
    parameters, shape = operation
    faults += _query_faults(request, parameters) + _body_faults(request, shape.get("requestBody"))
    needs_login = any("oauth2" in each for each in shape.get("security", []))
    if needs_login and not request.headers.get("authorization", "").startswith("Bearer "):
        faults.append("no access token")
    return [f"{where}: {each}" for each in faults]


def require(requests: Iterable[SeenRequest]) -> None:
    """Fails unless the document knows each of them; without the document beside the repository nothing is known."""
    if DOCUMENT.exists():
        assert [fault for request in requests for fault in faults_of(request)] == []


def _operation(request: SeenRequest) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    for path, methods in document()["paths"].items():
        shape = methods.get(request.method.lower())
        if shape is None or path.count("/") != request.path.count("/"):
            continue
        parameters = [*methods.get("parameters", []), *shape.get("parameters", [])]
        kinds = {each["name"]: each["schema"].get("type", "string") for each in parameters if each["in"] == "path"}
        parts = [
            VALUES[kinds[part[1:-1]]].pattern if part.startswith("{") else re.escape(part) for part in path.split("/")
        ]
        if re.fullmatch("/".join(parts), request.path):
            return parameters, shape
    return None


def _token_faults(request: SeenRequest) -> list[str]:
    form = parse_qs(request.body.decode(), keep_blank_values=True)
    grant = form.get("grant_type", [""])[0]
    faults = [] if request.method == "POST" and _content_type(request) == FORM else ["not a posted form"]
    if form.keys() != TOKEN_FIELDS.get(grant):
        faults.append(f"the fields of {grant!r} are not {sorted(form)}")
    return faults


def _query_faults(request: SeenRequest, parameters: list[dict[str, Any]]) -> list[str]:
    known = {each["name"]: each for each in parameters if each["in"] == "query"}
    faults = [f"unknown in the query: {name}" for name in request.query.keys() - known.keys()]
    faults += [
        f"missing in the query: {name}"
        for name, each in known.items()
        if each.get("required") and name not in request.query
    ]
    for name in request.query.keys() & known.keys():
        schema, values = known[name]["schema"], request.query[name]
        if len(values) != 1 or not VALUES[schema.get("type", "string")].fullmatch(values[0]):
            faults.append(f"{name} is no {schema.get('type')}: {values}")
        elif "enum" in schema and values[0] not in schema["enum"]:
            faults.append(f"{name} is none of {schema['enum']}: {values}")
        elif schema.get("type") == "integer":
            number = int(values[0])
            if not schema.get("minimum", number) <= number <= schema.get("maximum", number):
                faults.append(f"{name} is out of range: {number}")
    return faults


def _content_type(request: SeenRequest) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip()


def _body_faults(request: SeenRequest, body: dict[str, Any] | None) -> list[str]:
    if body is None:
        return ["a body where there is none"] if request.body else []
    kind = _content_type(request)
    if kind not in body["content"]:
        return [f"content type {kind!r}, not {list(body['content'])}"]
    properties = body["content"][kind]["schema"]["properties"]
    if kind == FORM:
        sent: dict[str, Any] = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        wrong = [
            name
            for name in sent.keys() & properties.keys()
            if not VALUES[properties[name]["type"]].fullmatch(sent[name])
        ]
    else:
        sent = json.loads(request.body)
        wrong = [
            name
            for name in sent.keys() & properties.keys()
            if not isinstance(sent[name], TYPES[properties[name]["type"]])
        ]
    return [f"unknown in the body: {name}" for name in sent.keys() - properties.keys()] + [
        f"{name} is no {properties[name]['type']}" for name in wrong
    ]
