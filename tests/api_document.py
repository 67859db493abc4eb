"""The OpenAPI document as tests read it: operations, the fields of their bodies, and whether an answer keeps to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flask import Flask
from jsonschema import Draft202012Validator
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

JSON = "application/json"
OWN_ANSWER = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
# The contract's explicit list. A route that is in neither list nor behind a token is a hole.
PUBLIC = {
    ("/api/auth/register", "POST"),
    ("/api/auth/login", "POST"),
    ("/api/auth/refresh", "POST"),
    ("/api/auth/etsy/login", "GET"),
    ("/api/auth/etsy/callback", "GET"),
    ("/api/auth/etsy/callback", "POST"),
    ("/api/etsy/webhook", "POST"),
    ("/api/health", "GET"),
    ("/livez", "GET"),
    ("/readyz", "GET"),
    ("/metrics", "GET"),
    ("/api/openapi.json", "GET"),
    ("/api/docs", "GET"),
    ("/api/docs/<asset>", "GET"),
}


def rules(app: Flask) -> Iterator[tuple[Rule, str]]:
    """Every rule with every method that has a view of its own."""
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) & OWN_ANSWER):
            yield rule, method


def private_rules(app: Flask) -> Iterator[tuple[Rule, str]]:
    for rule, method in rules(app):
        if (str(rule), method) not in PUBLIC:
            yield rule, method


def path_of(rule: Rule, ids: dict[str, Any]) -> str:
    path = str(rule)
    for argument in rule.arguments:
        path = path.replace(f"<id:{argument}>", str(ids[argument])).replace(f"<{argument}>", str(ids[argument]))
    return path


def template(rule: Rule) -> str:
    """A rule's path as the document writes it."""
    return str(rule).replace("<id:", "{").replace("<", "{").replace(">", "}")


@dataclass(frozen=True, slots=True)
class BodyField:
    """A field of a body: its name, whether the body needs it, and its JSON Schema."""

    name: str
    is_required: bool
    schema: dict[str, Any]


class ApiDocument:
    """What `/api/openapi.json` says. References inside a schema are followed."""

    def __init__(self, app: Flask) -> None:
        self.raw: dict[str, Any] = app.test_client().get("/api/openapi.json").json
        self._validators: dict[str, Draft202012Validator] = {}
        self._kept: set[tuple[str, str, int, bytes]] = set()

    def operation(self, rule: Rule, method: str) -> dict[str, Any]:
        found: dict[str, Any] = self.raw["paths"][template(rule)][method.lower()]
        return found

    def follow(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The schema behind a reference."""
        while "$ref" in schema:
            found: Any = self.raw
            for part in schema["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            schema = found
        return schema

    def body(self, rule: Rule, method: str) -> dict[str, Any] | None:
        """The schema of an operation's JSON body, if it takes one."""
        content = self.operation(rule, method).get("requestBody", {}).get("content", {})
        return self.follow(content[JSON]["schema"]) if JSON in content else None

    def fields(self, schema: dict[str, Any]) -> list[BodyField]:
        required = schema.get("required", [])
        return [
            BodyField(name, name in required, self.follow(each)) for name, each in schema.get("properties", {}).items()
        ]

    def query(self, rule: Rule, method: str) -> list[dict[str, Any]]:
        return [each for each in self.operation(rule, method).get("parameters", []) if each["in"] == "query"]

    def is_valid(self, value: Any, schema: dict[str, Any]) -> bool:
        return self._validator(schema).is_valid(value)

    def fault(self, rule: Rule, method: str, answer: TestResponse) -> str | None:
        """How an answer breaks what the document says of its operation; None when it keeps to it."""
        seen = (str(rule), method, answer.status_code, answer.data)
        if seen in self._kept:
            return None
        fault = self._fault(rule, method, answer)
        if fault is None:
            self._kept.add(seen)
        return fault

    def _fault(self, rule: Rule, method: str, answer: TestResponse) -> str | None:
        responses = self.operation(rule, method)["responses"]
        said = self.follow(responses.get(str(answer.status_code)) or responses["default"])
        if str(answer.status_code) not in responses and answer.status_code < 400:
            return f"{answer.status_code} is not documented"
        if answer.mimetype not in said["content"]:
            return f"{answer.mimetype} is not documented for {answer.status_code}"
        if answer.mimetype != JSON:
            return None
        errors = list(self._validator(said["content"][JSON]["schema"]).iter_errors(answer.json))
        return "; ".join(f"{error.json_path}: {error.message}" for error in errors) or None

    def _validator(self, schema: dict[str, Any]) -> Draft202012Validator:
        key = repr(schema)
        if key not in self._validators:
            self._validators[key] = Draft202012Validator({**schema, "components": self.raw["components"]})
        return self._validators[key]

    @cached_property
    def schemas(self) -> dict[str, Any]:
        found: dict[str, Any] = self.raw["components"]["schemas"]
        return found
