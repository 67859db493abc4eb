"""The OpenAPI document is valid, whole and true, and its page needs nothing from anywhere else."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from schemathesis.engine import events, from_schema

from api.docs import ASSET_NAMES, ASSETS, PAGE_POLICY
from app import create_app
from models import db
from tests.api_document import PUBLIC, ApiDocument, rules, template
from tests.conftest import Clock, OutsideClient, settings_for
from tests.farm_builder import Farm
from tests.whole_farm import WholeFarm, fill

MARK = "QZOWNERQZ"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)
DOCUMENTED_PUBLIC = {
    (path, method.lower()) for path, method in PUBLIC if not path.startswith(("/api/docs", "/api/openapi"))
}


@pytest.fixture
def document(app: Flask) -> ApiDocument:
    return ApiDocument(app)


def operations(document: ApiDocument) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, item in document.raw["paths"].items()
        for method, operation in item.items()
        if method in ("get", "post", "put", "patch", "delete")
    ]


def test_the_document_is_valid_openapi_3_1(document: ApiDocument) -> None:
    assert document.raw["openapi"] == "3.1.0"
    validate(document.raw, cls=OpenAPIV31SpecValidator)


def test_making_the_document_warns_of_nothing(database_url: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app = create_app(settings_for(database_url, tmp_path), clock=Clock())
        assert app.test_client().get("/api/openapi.json").status_code == 200
    with app.app_context():
        db.engine.dispose()


def test_every_route_is_documented_and_nothing_else(app: Flask, document: ApiDocument) -> None:
    routes = {(template(rule), method.lower()) for rule, method in rules(app) if not rule.endpoint.startswith("docs.")}
    assert {(path, method) for path, method, _ in operations(document)} == routes


def test_every_operation_says_what_it_is_and_answers(document: ApiDocument) -> None:
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        assert re.fullmatch(r"[A-Z].*[.)]", operation["summary"], re.DOTALL), where
        assert len(operation["tags"]) == 1, where
        successes = [status for status in operation["responses"] if status.startswith("2")]
        assert len(successes) == 1, where
        for status in ("default", *successes):
            content = document.follow(operation["responses"][status])["content"]
            assert all(kind and "schema" in each for kind, each in content.items()), where
        error = document.follow(operation["responses"]["default"])["content"]["application/json"]["schema"]
        assert document.follow(error) == document.schemas["Error"], where


def test_only_the_listed_operations_are_open(document: ApiDocument) -> None:
    assert document.raw["security"] == [{"bearer": []}]
    assert document.raw["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    found = {(path, method) for path, method, operation in operations(document) if operation.get("security") == []}
    assert found == DOCUMENTED_PUBLIC
    closed = [each for path, method, each in operations(document) if (path, method) not in DOCUMENTED_PUBLIC]
    assert not any("security" in each for each in closed)


def test_paths_say_which_id_they_take(document: ApiDocument) -> None:
    for path, method, operation in operations(document):
        named = set(re.findall(r"{(\w+)}", path))
        item = document.raw["paths"][path].get("parameters", [])
        parameters = {each["name"]: each for each in [*operation.get("parameters", []), *item] if each["in"] == "path"}
        assert set(parameters) == named, (method, path)
        for each in parameters.values():
            assert each["schema"] == {"type": "integer", "minimum": 1, "maximum": 2**31 - 1} and each["required"]


def test_texts_carry_their_true_pattern(document: ApiDocument) -> None:
    schemas = document.schemas
    email = schemas["Registration"]["properties"]["email"]["pattern"]
    assert (
        re.search(email, "ada@example.com") and not re.search(email, "ada") and not re.search(email, "a b@example.com")
    )
    for name, schema in schemas.items():
        for field, each in schema["properties"].items():
            if "pattern" in each:
                # What it means must not depend on whose engine reads it.
                assert not re.search(r"\\[AZzbBGQE]|\(\?", each["pattern"]), (name, field)
                assert not re.search(each["pattern"], "a\x00b"), (name, field)


def test_bodies_refuse_what_they_do_not_know(document: ApiDocument) -> None:
    for name, schema in document.schemas.items():
        assert schema["additionalProperties"] is False, name


def test_bare_arrays_say_how_many_there_are(app: Flask, document: ApiDocument, farm: Farm) -> None:
    whole, tried = fill(farm, MARK), 0
    for rule, method in rules(app):
        if method != "GET" or rule.endpoint.startswith("docs."):
            continue
        said = document.operation(rule, method)["responses"]["200"]
        if said["content"].get("application/json", {}).get("schema", {}).get("type") != "array":
            continue
        assert set(said["headers"]) == {"X-Total-Count", "Link"}
        path = whole.path(rule, method)
        everything = farm.get(path)
        total = int(everything.headers["X-Total-Count"])
        assert (len(everything.json), "Link" in everything.headers) == (total, False) and total >= 1
        one, tried = farm.get(path, query_string={"limit": 1}), tried + 1
        assert one.json == everything.json[:1] and one.headers["X-Total-Count"] == str(total)
        if total > 1:
            walked, following = [], one
            while link := following.headers.get("Link"):
                walked += following.json
                target = re.fullmatch(r'<([^>]+)>; rel="next"', link)
                assert target is not None
                following = farm.get(target[1])
            assert walked + following.json == everything.json
    assert tried == 8


# What is answered has exactly the keys that the schema has: the lists that a page polls are written by hand.


def shapes(document: ApiDocument, schema: dict[str, Any], value: Any, where: str) -> list[str]:
    """Where the keys of a value differ from those of its schema, at any depth."""
    schema = document.follow(schema)
    if isinstance(value, list):
        return [fault for each in value for fault in shapes(document, schema["items"], each, f"{where}[]")]
    if not isinstance(value, dict):
        return []
    alternatives = [document.follow(each) for each in schema.get("anyOf", [schema])]
    known = next((each["properties"] for each in alternatives if "properties" in each), None)
    if known is None:
        return []
    faults = [f"{where}: {key}" for key in set(known) ^ set(value) if key != "webhook_secret"]
    return faults + [
        fault
        for key, each in value.items()
        if key in known
        for fault in shapes(document, known[key], each, f"{where}.{key}")
    ]


def test_what_is_answered_has_exactly_the_documented_keys(app: Flask, document: ApiDocument, farm: Farm) -> None:
    whole, faults, seen = fill(farm, MARK), [], 0
    for rule, method in rules(app):
        if rule.endpoint.startswith("docs.") or method not in ("GET", "PUT"):
            continue
        path = whole.path(rule, method)
        answer = farm.get(path) if method == "GET" else farm.put(path, {})
        fault = document.fault(rule, method, answer)
        if answer.status_code == 200 and answer.mimetype == "application/json":
            schema = document.operation(rule, method)["responses"]["200"]["content"]["application/json"]["schema"]
            assert answer.json not in ([], {}), path
            faults += shapes(document, schema, answer.json, f"{method} {path}")
            seen += 1
        faults += [f"{method} {path}: {fault}"] if fault else []
    assert faults == []
    assert seen >= 25


def test_answers_hold_every_documented_key_always(document: ApiDocument) -> None:
    """A client may rely on each key: unknown is null, not absent."""
    sent = {
        document.follow(content["schema"])["title"]
        if "title" in content["schema"]
        else content["schema"].get("$ref", "")
        for _, _, operation in operations(document)
        for content in operation.get("requestBody", {}).get("content", {}).values()
    }
    for name, schema in document.schemas.items():
        if any(reference.endswith(f"/{name}") for reference in sent) or name in (
            "Error",
            "NewOrderItem",
            "NewOptionRule",
            "NewFurtherPlate",
            "StaffedHoursChange",
            "PaginationMetadata",
        ):
            continue
        optional = set(schema["properties"]) - set(schema.get("required", []))
        assert optional <= {"webhook_secret"}, (name, optional)


# The page.


def test_the_page_and_all_it_names_come_from_here(app: Flask) -> None:
    client = app.test_client()
    page = client.get("/api/docs")
    assert (page.status_code, page.mimetype) == (200, "text/html")
    named = re.findall(r'(?:href|src)="([^"]*)"', page.text)
    assert len(named) == 4
    for address in named:
        assert re.fullmatch(r"/api/docs/[a-z0-9.-]+", address)
        asset = client.get(address)
        assert asset.status_code == 200 and len(asset.data) > 100
        kinds = {"css": "text/css", "js": "text/javascript", "png": "image/png"}
        assert asset.mimetype == kinds[address.rpartition(".")[2]]
        assert asset.headers["X-Content-Type-Options"] == "nosniff"
    assert client.get("/api/openapi.json").mimetype == "application/json"


def test_neither_page_nor_script_nor_style_refers_elsewhere(app: Flask) -> None:
    client = app.test_client()
    for path in ("/api/docs", "/api/docs/page.js"):
        text = client.get(path).text
        assert "//" not in text.replace("<!doctype", ""), path
        assert "<script>" not in text and " on" not in re.sub(r"<title>.*?</title>", "", text).casefold().replace(
            " only", ""
        )
    style = client.get("/api/docs/swagger-ui.css").text
    assert "@import" not in style
    # Pictures stand in the style sheet itself; `#` names a part of one.
    assert {address[:5] for address in re.findall(r"url\(['\"]?([^)'\"]*)", style)} <= {"data:"}
    assert "sourceMappingURL=http" not in style + client.get("/api/docs/swagger-ui-bundle.js").text


def test_the_policy_keeps_whatever_the_bundle_would_fetch_at_home(app: Flask) -> None:
    policy = app.test_client().get("/api/docs").headers["Content-Security-Policy"]
    assert policy == PAGE_POLICY
    for directive in policy.split("; "):
        name, *sources = directive.split(" ")
        assert set(sources) <= {"'self'", "'none'", "data:", "'unsafe-inline'"}, directive
        assert name != "script-src" or sources == ["'self'"]
    assert policy.startswith("default-src 'none'; ")


def test_no_other_file_of_the_packages_is_served(app: Flask) -> None:
    client = app.test_client()
    others = {path.name for path in ASSETS.iterdir()} - set(ASSET_NAMES)
    assert others
    for name in [
        *others,
        "missing",
        "..",
        "%2e%2e/index.html",
        "../app.py",
        "page.js/",
        "PAGE.JS",
        "swagger-ui.css%00",
    ]:
        assert client.get(f"/api/docs/{name}").status_code == 404, name


# Cases made from the document by somebody else's program, against the whole app.


def run_schemathesis(app: Flask, whole: WholeFarm, max_examples: int) -> tuple[Counter[int], list[str]]:
    """(answers by status, failures) of schemathesis' systematic and random cases for every operation but the logout."""
    names = ("printer_id", "material_id", "print_id", "connection_id", "order_id", "file_id", "profile_id")
    names += ("cloud_account_id", "channel_id", "delivery_id", "order_item_id")
    alone = ("order_id", "order_item_id", "delivery_id")
    spare = {f"path.{name}": getattr(whole, f"spare_{name}") for name in names if name not in alone}
    config = schemathesis.Config.from_dict(
        {
            "seed": 1,
            "continue-on-failure": True,
            "headers": {"Authorization": f"Bearer {whole.farm.token}"},
            "generation": {"deterministic": True, "max-examples": max_examples, "database": "none"},
            "parameters": {f"path.{name}": getattr(whole, name) for name in names},
            "operations": [{"include-method": "DELETE", "parameters": spare}],
            "checks": {"enabled": False, **{name: {"enabled": True} for name in CHECKS}},
            "phases": {"stateful": {"enabled": False}},
        }
    )
    # Logging out would end the token that all other cases need.
    schema = schemathesis.openapi.from_wsgi("/api/openapi.json", app, config=config).exclude(path="/api/auth/logout")
    statuses: Counter[int] = Counter()
    failures = []
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            failures.append(str(event))
        if isinstance(event, events.ScenarioFinished):
            statuses.update(each.response.status_code for each in event.recorder.interactions.values() if each.response)
            failures += [
                f"{event.label} {check.name}: {check.failure_info.failure.message}\n{check.failure_info.code_sample}"
                for checks in event.recorder.checks.values()
                for check in checks
                if check.failure_info is not None
            ]
    return statuses, failures


@pytest.fixture
def whole(app: Flask, clock: Clock) -> WholeFarm:
    app.test_client_class = OutsideClient
    return fill(Farm(app, "seller@example.com"), MARK)


def test_schemathesis_finds_nothing(app: Flask, whole: WholeFarm) -> None:
    statuses, failures = run_schemathesis(app, whole, max_examples=6)
    assert failures == []
    assert sum(statuses.values()) > 2500
    # The cases went deep: they were taken, refused for their values, and refused for the state of things.
    assert {200, 201, 400, 404, 405, 409, 415, 422} <= set(statuses)
    assert statuses[200] + statuses[201] > 300


@pytest.mark.prove
def test_schemathesis_finds_nothing_in_ten_thousand_cases(app: Flask, whole: WholeFarm) -> None:
    statuses, failures = run_schemathesis(app, whole, max_examples=400)
    print(f"schemathesis: {sum(statuses.values())} cases, {dict(statuses)}, {len(failures)} failures")
    assert failures == []
    assert sum(statuses.values()) >= 10_000
