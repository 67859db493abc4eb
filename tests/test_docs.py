"""The documents say what is true: each fact in them is held against the code, and nothing of the code is left out."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

import errors
from app import PUBLIC_ENDPOINTS
from farm import alerts, maintenance
from farm.materials import StageLimits, cost_of, percent_of, stage_of
from models import LEGAL_MOVES, Delivery, ScheduledPrint, db
from settings import Settings
from tests import documents
from tests.documents import DOCUMENTS, LINK, ROOT, ROUTE, Section, in_words, read, section, sections, table, tables
from tests.farm_builder import Farm

ROOMS = ("", "api/", "bambu/", "delivery/", "farm/")
SHIPPED = sorted(path for room in ROOMS for path in ROOT.glob(f"{room}*.py"))
# What an id in a path is called in the sentence that says which id it takes.
IDS = {
    "printer_id": "**printer's id**",
    "connection_id": "**connection's id**",
    "cloud_account_id": "**cloud account's id**",
    "order_id": "**order's id**",
    "order_item_id": "**order line's id**",
    "shop_id": "**shop's id**",
    "profile_id": "**profile's id**",
    "batch_id": "**batch's id**",
    "file_id": "**file's id**",
    "plate": "**plate's number**",
    "channel_id": "**channel's id**",
    "delivery_id": "**delivery's id**",
    "material_id": "**material's own id**",
    "print_id": "**print's own id**",
}

Operation = dict[str, Any]
Routes = dict[tuple[str, str], Section]


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def openapi(session_app: Flask) -> dict[str, Any]:
    answer = session_app.test_client().get("/api/openapi.json")
    document: dict[str, Any] = answer.json or {}
    return document


@pytest.fixture(scope="module")
def operations(openapi: dict[str, Any]) -> dict[tuple[str, str], Operation]:
    return {
        (method.upper(), path): operation
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
        if "responses" in operation
    }


@pytest.fixture(scope="module")
def routes() -> Routes:
    """The sections of API.md that are about a route."""
    found = [(ROUTE.fullmatch(each.title), each) for each in sections(read("docs/API.md"))]
    return {(match[1], match[2]): each for match, each in found if match}


@pytest.fixture(scope="module")
def shapes() -> dict[str, Section]:
    """The sections of API.md that are about an object."""
    return {
        each.title: each
        for each in sections(read("docs/API.md"))
        if each.level == 3
        and (table(each.body, "answer") or table(each.body, "field"))
        and not ROUTE.search(each.title)
    }


def schema_of(openapi: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = openapi["components"]["schemas"][name]
    return found


def name_of(schema: dict[str, Any]) -> str:
    return str(schema["$ref"]).rsplit("/", 1)[1]


# API.md


def test_api_md_has_every_route_and_no_other(
    session_app: Flask, routes: Routes, operations: dict[Any, Operation]
) -> None:
    served = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in session_app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.endpoint != "docs.get_asset"
    }
    assert routes.keys() == served
    assert operations.keys() == served - {("GET", "/api/openapi.json"), ("GET", "/api/docs")}


def test_api_md_says_which_routes_need_no_token(session_app: Flask, routes: Routes) -> None:
    endpoints = session_app.url_map.bind("localhost")
    for (method, path), each in routes.items():
        endpoint, _ = endpoints.match(re.sub(r"\{\w+\}", "1", path), method)
        assert ("**No token" in each.body) == (endpoint in PUBLIC_ENDPOINTS), (method, path)


def test_api_md_says_whose_id_each_path_takes(routes: Routes) -> None:
    for (method, path), each in routes.items():
        named = {name for name, words in IDS.items() if words in flat(each.body)}
        assert named == set(re.findall(r"\{(\w+)\}", path)), (method, path)


def request_rows(each: Section, routes: Routes) -> dict[str, tuple[str, str]]:
    """field -> (what it takes, what it is when left out); `Fields as in …` brings in those of another route."""
    rows: dict[str, tuple[str, str]] = {}
    if inherits := re.search(r"Fields as in `(\w+) (\S+)`, none needed([^.:]*)[.:]", flat(each.body)):
        without = set(re.findall(r"`(\w+)`", inherits[3]))
        parent = request_rows(routes[inherits[1], inherits[2]], routes)
        assert without <= parent.keys()
        rows = {name: (takes, "–") for name, (takes, _) in parent.items() if name not in without}
    own = {name: (cells[0], cells[1]) for name, cells in table(each.body, "field").items()}
    return rows | own


def test_api_md_has_every_field_of_every_request(
    openapi: dict[str, Any], operations: dict[tuple[str, str], Operation], routes: Routes
) -> None:
    for route, operation in operations.items():
        content = operation.get("requestBody", {}).get("content", {})
        expected = {}
        for kind in content.values():
            schema = schema_of(openapi, name_of(kind["schema"]))
            expected = {
                name: (in_words(field), documents.default_in_words(schema, name))
                for name, field in schema["properties"].items()
            }
        assert request_rows(routes[route], routes) == expected, route


def test_api_md_has_every_query_key(operations: dict[tuple[str, str], Operation], routes: Routes) -> None:
    pages = table(section(read("docs/API.md"), "Lists").body, "query")
    for route, operation in operations.items():
        parameters = [each for each in operation.get("parameters", []) if each.get("in") == "query"]
        schema = {
            "properties": {each["name"]: each["schema"] for each in parameters},
            "required": [each["name"] for each in parameters if each.get("required")],
        }
        expected = {
            name: [in_words(field), documents.default_in_words(schema, name)]
            for name, field in schema["properties"].items()
        }
        shown = {name: cells[:2] for name, cells in table(routes[route].body, "query").items()}
        if "[Pages](#lists)" in routes[route].body:
            shown |= {name: cells[:2] for name, cells in pages.items()}
        assert shown == expected, route


def test_api_md_marks_what_may_be_repeated(operations: dict[tuple[str, str], Operation], routes: Routes) -> None:
    for route, operation in operations.items():
        takes_key = any(each.get("name") == "Idempotency-Key" for each in operation.get("parameters", []))
        assert ("**Repeat-safe.**" in routes[route].body) == takes_key, route


def test_api_md_has_every_field_of_every_answer(
    openapi: dict[str, Any], operations: dict[tuple[str, str], Operation], routes: Routes, shapes: dict[str, Section]
) -> None:
    reached: set[str] = set()

    def hold(schema: dict[str, Any], body: str, route: tuple[str, str]) -> None:
        """A shape of its own is linked; what has none is spelled out in the route's section."""
        if schema.get("type") == "array":
            assert f"list of {in_words(schema['items'])}" in flat(body), route
            schema = schema["items"]
        if "$ref" not in schema:
            return
        name = name_of(schema)
        if name in shapes:
            assert in_words(schema) in body, route
            reached.add(name)
            return
        for field, inner in schema_of(openapi, name)["properties"].items():
            assert f"`{field}`" in body, (route, field)
            hold(inner, body, route)

    for route, operation in operations.items():
        (status,) = [status for status in operation["responses"] if status.startswith("2")]
        assert f"Answers `{status}`" in routes[route].body, route
        answer = operation["responses"][status].get("content", {}).get("application/json", {}).get("schema", {})
        hold(answer, routes[route].body, route)
    following = list(reached)
    while following:
        for field in schema_of(openapi, following.pop())["properties"].values():
            named = set(re.findall(r"\[(\w+)\]\(#\w+\)", in_words(field))) - reached
            reached |= named
            following += named
    answered = {name for name, each in shapes.items() if table(each.body, "answer")}
    assert reached == answered


def test_api_md_has_every_field_of_every_shape(openapi: dict[str, Any], shapes: dict[str, Section]) -> None:
    for name, each in shapes.items():
        schema = schema_of(openapi, name)
        if table(each.body, "answer"):
            shown = {field: cells[0] for field, cells in table(each.body, "answer").items()}
            assert shown == {field: in_words(kind) for field, kind in schema["properties"].items()}, name
        else:
            assert request_rows(each, {}) == {
                field: (in_words(kind), documents.default_in_words(schema, field))
                for field, kind in schema["properties"].items()
            }, name


def codes_of_the_source() -> dict[str, set[int]]:
    """Every `code` that an answer can carry, with its statuses: read from the source, so that a new one shows up."""
    found: dict[str, set[int]] = {}
    for status, (code, _) in errors.FRAMEWORK_SENTENCES.items():
        found.setdefault(code, set()).add(status)
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.Problem):
            found.setdefault(kind.code, set()).add(kind.status)
    for path in SHIPPED:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = getattr(call.func, "id", "")
            # What a printer's state says against a command becomes a Conflict in the view.
            kind = errors.Conflict if name == "Objection" else getattr(errors, name, None)
            if kind is errors.problem_response and all(isinstance(each, ast.Constant) for each in call.args[:2]):
                status, code = (ast.literal_eval(each) for each in call.args[:2])
                found.setdefault(code, set()).add(status)
            for keyword in call.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant) and isinstance(kind, type):
                    found.setdefault(str(keyword.value.value), set()).add(kind.status)
    return found


def test_api_md_has_every_error_code(routes: Routes) -> None:
    conventions = section(read("docs/API.md"), "Errors").body
    shown = {code: {int(each) for each in cells[0].split(",")} for code, cells in table(conventions, "code").items()}
    assert shown == codes_of_the_source()
    statuses = {int(status) for status in table(conventions, "status")}
    assert set().union(*shown.values()) - statuses <= {408, 411, 414, 416, 431}
    for route, each in routes.items():
        named = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", flat(each.body).partition("Errors:")[2]))
        assert set(named) <= shown.keys(), route


@pytest.fixture
def printer_id(farm: Farm) -> int:
    printer: int = farm.add_printer()["id"]
    url = "https://hooks.shop.example/farm"
    assert farm.put(f"/api/bambu/notifications/{printer}", {"webhook_url": url}).status_code == 200
    return printer


def test_api_md_shows_a_real_error(farm: Farm, printer_id: int) -> None:
    (shown,) = [json.loads(block.text) for block in documents.blocks(section(read("docs/API.md"), "Errors").body)]
    body = {"slot": 0, "material_type": "PLA", "weight_grams": 1000, "color": "#12", "owner": "Ada"}
    answer = farm.post(f"/api/bambu/materials/{printer_id}", body)
    assert answer.json == shown


def test_api_md_has_every_key_of_a_webhook(farm: Farm, printer_id: int) -> None:
    material = farm.add_material(printer_id)
    order = farm.add_order()
    farm.move(farm.add_print(printer_id, order_id=order["id"])["id"], "scheduled", "started")
    farm.put(f"/api/bambu/materials/{material['id']}", {"remaining_pct": 10})
    waiting = farm.add_print(printer_id)
    with farm.database() as session:
        at = farm.app.extensions["clock"]()
        alerts.needs_person(session.get_one(ScheduledPrint, waiting["id"]), "nozzle", "another nozzle", at=at)
        maintenance.tell_if_due(farm.user["id"], printer_id, Decimal(251), 250, at=at)
        payloads = [each.payload for each in session.execute(sa.select(Delivery)).scalars()]
    real: dict[str, set[str]] = {"type": set(), "timestamp": set()}
    for payload in payloads:
        assert payload.keys() == {"type", "timestamp", "data"}
        for key, value in payload["data"].items():
            real.setdefault(f"data.{key}", set()).update(value if isinstance(value, dict) else ())
    shown = table(section(read("docs/API.md"), "Webhooks").body, "key")
    assert shown.keys() == real.keys()
    for key, inner in real.items():
        if inner:
            assert set(re.findall(r"`(\w+)`", shown[key][0])) == inner, key


# DATABASE.md


def test_database_md_has_every_table_and_column() -> None:
    text = read("docs/DATABASE.md")
    shown = {
        each.title.strip("`"): {name: cells[0] for name, cells in table(each.body, "column").items()}
        for each in sections(text)
        if re.fullmatch(r"`\w+`", each.title)
    }
    assert shown == {
        each.name: {column.name: documents.column_in_words(column) for column in each.columns}
        for each in db.metadata.sorted_tables
    }
    (exceptions,) = re.findall(r"Every table carries `user_id`, but for (.+?)\.\s", text, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", exceptions)) == {
        each.name for each in db.metadata.sorted_tables if "user_id" not in each.columns
    }


# ARCHITECTURE_DIAGRAM.md


def test_the_drawn_moves_are_the_legal_ones() -> None:
    (moves,) = [found for found in tables(read("docs/ARCHITECTURE_DIAGRAM.md")) if found[0][:2] == ["from", "to"]]
    shown = {(row[0].strip("`"), row[1].strip("`")) for row in moves[1:]}
    assert shown == {(str(before), str(after)) for before, allowed in LEGAL_MOVES.items() for after in allowed}


def test_the_life_of_a_spool_comes_out_as_drawn() -> None:
    weight, price = Decimal(250), Decimal(25)
    rows = table(read("docs/ARCHITECTURE_DIAGRAM.md"), "remaining_grams")
    assert len(rows) == 6
    for grams, (percent, stage, used, cost) in rows.items():
        remaining = Decimal(grams)
        exact = cost_of(weight - remaining, price)
        assert exact is not None
        assert percent_of(weight, remaining) == Decimal(percent)
        assert stage_of(weight, remaining, StageLimits()) == stage.strip("`")
        assert (weight - remaining, exact.quantize(Decimal("0.01"), ROUND_HALF_UP)) == (Decimal(used), Decimal(cost))


def test_the_stages_begin_where_the_settings_say() -> None:
    fields = Settings.model_fields
    for _, (when, setting) in table(read("docs/ARCHITECTURE_DIAGRAM.md"), "stage").items():
        numbers = re.findall(r"\d+", when)
        assert numbers == [str(fields[name.lower()].default) for name in re.findall(r"`(\w+)`", setting)]


def test_every_import_follows_the_floors() -> None:
    floors = table(section(read("docs/ARCHITECTURE_DIAGRAM.md"), "Who may know whom").body, "floor")
    of_file = {
        path: floor
        for floor, (members, _) in floors.items()
        for pattern in re.findall(r"`([^`]+)`", members)
        for path in ROOT.glob(pattern + "*.py" if pattern.endswith("/") else pattern)
    }
    assert of_file.keys() == set(SHIPPED)
    for path, floor in of_file.items():
        below = {each.strip() for each in floors[floor][1].split(",")} | {floor}
        for imported in imports_of(path):
            assert of_file[imported] in below, f"{path.relative_to(ROOT)} imports {imported.relative_to(ROOT)}"


def imports_of(path: Path) -> Iterator[Path]:
    """The files of ours that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [each.name for each in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{name}" for name in names)]
        for name in names:
            found = ROOT / f"{name.replace('.', '/')}.py"
            if found in SHIPPED:
                yield found


def test_the_named_technology_is_what_is_installed() -> None:
    rows = table(section(read("docs/ARCHITECTURE_DIAGRAM.md"), "Technology").body, "what")
    named = {name for (cell,) in rows.values() for name in re.findall(r"`([\w-]+)`", cell)} - {"ftplib"}
    wanted = set(re.findall(r"^[\w-]+$", read("requirements.in"), re.MULTILINE))
    assert named <= wanted


# README.md


def test_the_readme_has_every_setting() -> None:
    shown: dict[str, str] = {}
    for found in tables(section(read("README.md"), "Settings").body):
        assert found[0] == ["setting", "default", "meaning"]
        shown |= {row[0].strip("`"): row[1] for row in found[1:]}
    assert shown == {
        name.upper(): documents.setting_in_words(field.default) for name, field in Settings.model_fields.items()
    }


def test_the_readme_has_every_make_target() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.MULTILINE))
    rows = table(section(read("README.md"), "Working on it").body, "command")
    assert {name.removeprefix("make ") for name in rows} == targets


def test_the_readme_lays_out_every_file() -> None:
    rows = table(section(read("README.md"), "Layout").body, "where")
    patterns = {name for cell in rows for name in re.findall(r"[\w./*]+", cell)}
    shown = {path for pattern in patterns for path in ROOT.glob(pattern.rstrip("/"))}
    packages = {path.parent for path in ROOT.glob("*/*") if path.suffix in (".py", ".md")} | {ROOT / "templates"}
    ours = {path for path in packages if not path.name.startswith(".") and path.name not in ("instance", "frontend")}
    assert all(any(ROOT.glob(pattern.rstrip("/"))) for pattern in patterns)
    assert shown == set(ROOT.glob("*.py")) | ours


def test_what_troubleshooting_quotes_is_really_said() -> None:
    said = "".join(path.read_text() for path in [*SHIPPED, ROOT / "Makefile"])
    for found in tables(section(read("README.md"), "Troubleshooting").body):
        for cell, *_ in found[1:]:
            for quoted in re.findall(r"`([^`]+)`", cell):
                assert quoted in said, quoted


# All documents


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_links_only_to_what_is_there(path: Path) -> None:
    for target in LINK.findall(documents.without_blocks(path.read_text())):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        assert not anchor or anchor in documents.anchors(linked.read_text()), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_only_routes_and_settings_that_exist(path: Path, session_app: Flask) -> None:
    text = path.read_text()
    adapter = session_app.url_map.bind("localhost")
    for method, route in ROUTE.findall(text):
        if "…" not in route:
            adapter.match(re.sub(r"\{\w+\}|<\w+>", "1", route.partition("?")[0]), method)
    settings = {name.upper() for name in Settings.model_fields}
    known = (
        settings | {f"{name}_FILE" for name in settings} | set(re.findall(r"[A-Z][A-Z_]+", read("docker-compose.yml")))
    )
    known |= set(re.findall(r"[A-Z][A-Z_]+", read("Makefile"))) | {"NAME_FILE", "SOURCE", "TARGET"}
    shell = {name for block in documents.blocks(text) for name in re.findall(r"\$?\b([A-Z_]{2,})\b", block.text)}
    constants = {"NULL", "CHECK", "BIGINT", "WAL", "ON", "DELETE", "SET"}
    for name in re.findall(r"`([A-Z][A-Z]+_[A-Z_]+)(?:=[^`]*)?`", text):
        assert name in known | shell | constants, name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_no_path_of_a_machine_and_no_registry(path: Path) -> None:
    text = path.read_text()
    assert not re.findall(r"(?<![\w.:/}])/(?:home|root|tmp|work|usr|Users|opt|mnt|etc|var|srv)/\S*", text)
    assert not re.findall(r"pypi\.|npmjs|artifactory|docker\.io|index-url", text)
