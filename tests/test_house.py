"""The house keeps itself: who may know whom; where commits, statuses, the environment and broad catches may stand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_SHIPPED = {"tests", "simulator", "bench", "migrations", "docs", "frontend", "templates"}
MAX_LINES = 500


def modules() -> dict[str, Path]:
    """Every module of the product, by its dotted name."""
    found = {}
    for path in sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("*/*.py")):
        folder = path.relative_to(ROOT).parts[0]
        if folder not in NOT_SHIPPED and not folder.startswith("."):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()
ENTRIES = {"app", "worker", "tasks", "demo", "gunicorn.conf"}
# What the worker is made of, and nobody else knows: it may know what the worker may.
WORKER_PARTS = {"links", "cloud_links", "recorder", "errands", "lookout", "starts"}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


@cache
def imports(name: str) -> frozenset[str]:
    """The modules that a module imports, at its head or inside a function, but those for types alone."""
    found: set[str] = set()

    def look(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                look(node.orelse)
                continue
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                found.update(
                    f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else str(node.module)
                    for alias in node.names
                )
            for field in ("body", "orelse", "finalbody"):
                look(getattr(node, field, []))
            for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                look(handler.body)

    look(tree(name).body)
    return frozenset(found)


def family(name: str) -> str:
    """Which part of the house a module belongs to."""
    top = name.partition(".")[0]
    if top in ("api", "farm"):
        return top
    if top.startswith("bambu_"):
        return "bambu"
    if top == "etsy_answers":
        return "etsy_client"
    return top


def edges() -> Iterator[tuple[str, str]]:
    for name in MODULES:
        for imported in imports(name):
            if imported in MODULES:
                yield name, imported


def functions(name: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            yield node.name, node


def test_nobody_imports_an_entry_point() -> None:
    # Entry points may know each other: app runs the worker inside its own process, the worker wires the same app.
    wrong = [edge for edge in edges() if edge[1] in ENTRIES and edge[0] not in ENTRIES]
    assert wrong == []


def test_views_are_known_to_entry_points_alone() -> None:
    known_to = {"api", *ENTRIES, *WORKER_PARTS}
    wrong = [edge for edge in edges() if family(edge[1]) == "api" and family(edge[0]) not in known_to]
    wrong += [edge for edge in edges() if edge[1] in WORKER_PARTS and edge[0] not in {"worker", *WORKER_PARTS}]
    assert wrong == []


@pytest.mark.parametrize("name", [name for name in MODULES if family(name) in ("bambu", "etsy_client", "weather")])
def test_what_speaks_to_others_could_ship_as_a_library(name: str) -> None:
    outside = {imported.partition(".")[0] for imported in imports(name)}
    assert not outside & {"flask", "sqlalchemy", "flask_sqlalchemy", "flask_smorest", "marshmallow", "alembic"}
    ours = {imported for imported in imports(name) if imported in MODULES}
    assert {family(each) for each in ours} <= {family(name)}


@pytest.mark.parametrize("name", [name for name in MODULES if family(name) == "farm"])
def test_the_inside_opens_no_socket_and_knows_no_request(name: str) -> None:
    outside = {imported.partition(".")[0] for imported in imports(name)}
    assert not outside & {
        "flask",
        "flask_smorest",
        "marshmallow",
        "requests",
        "socket",
        "ssl",
        "smtplib",
        "ftplib",
        "http",
    }
    assert not outside & {"urllib", "urllib3", "paho", "api", "auth", "app", "worker", "tasks", "settings", "database"}


def test_the_tables_know_nothing_above_them() -> None:
    assert {each for each in imports("models") if each in MODULES} == {"columns"}
    assert {each for each in imports("columns") if each in MODULES} == set()
    assert {each for each in imports("settings") if each in MODULES} == set()
    assert {each for each in imports("errors") if each in MODULES} == {"models"}
    assert {each for each in imports("auth") if each in MODULES} == {"errors", "models", "settings"}


def test_there_is_no_circle() -> None:
    graph = {name: (imports(name) & set(MODULES)) - ENTRIES for name in MODULES}
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for imported in graph[name]:
                walk(imported, (*above, name))
            done.add(name)

    for name in MODULES:
        walk(name, ())


WIRE_WORDS = re.compile(
    r"\b(gcode_state|subtask_id|tray_now|receipt_id|print_error|mc_percent|gcode_file|project_file)\b"
)


def test_words_of_others_stay_where_they_are_spoken() -> None:
    for name in MODULES:
        if family(name) in ("bambu", "etsy_client", "weather", "demo") or name == "farm.order_import":
            continue
        prose = docstrings(tree(name))
        said = {
            match[0]
            for node in ast.walk(tree(name))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose
            for match in WIRE_WORDS.finditer(node.value)
        }
        # `print_error` is also how our own state is called once it has been read.
        assert said - {"print_error"} == set(), name


def docstrings(module: ast.Module) -> set[ast.expr]:
    return {
        parent.body[0].value
        for parent in ast.walk(module)
        if isinstance(parent, ast.Module | ast.ClassDef | ast.FunctionDef)
        and parent.body
        and isinstance(parent.body[0], ast.Expr)
    }


def calls(node: ast.AST, attribute: str) -> list[ast.Call]:
    return [
        each
        for each in ast.walk(node)
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr == attribute
    ]


# Who ends a transaction besides views: what works between network calls, each commit making true what was done.
COMMITTING = {
    "etsy_api",
    "etsy_shipping",
    "etsy_sync",
    "etsy_tokens",
    "outbox",
    "farm.starter",
    "farm.leases",
    "database",
    "api.once",
    "api.printer_commands",
}
COMMITTING |= {"worker", "tasks", "links", "cloud_links", "recorder", "errands", "lookout", "starts"}


def test_commits_stand_in_views_and_in_what_works_between_network_calls() -> None:
    committing = {name for name in MODULES if calls(tree(name), "commit")}
    assert {name for name in committing if family(name) != "api"} <= COMMITTING
    for name in committing:
        if family(name) == "api" and name not in COMMITTING:
            for function, node in functions(name):
                # The login at Etsy uses up the state before it asks Etsy, and opens the session after.
                assert len(calls(node, "commit")) <= 1, f"{name}.{function} commits more than once"


def test_a_view_commits_as_its_last_act() -> None:
    for name in MODULES:
        if family(name) != "api" or name in COMMITTING:
            continue
        for function, node in functions(name):
            for index, statement in enumerate(node.body):
                if not calls(statement, "commit") or f"{name}.{function}" in (
                    "api.etsy_login._finish",
                    "api.accounts.refresh",
                ):
                    continue
                after = [ast.unparse(each) for each in node.body[index + 1 :]]
                # A file is taken off the disk after its row, and the cookie goes with an answer that is made by then.
                acts = [each for each in after if not each.startswith(("return", "path.unlink", "response", "if "))]
                assert acts == [], f"{name}.{function}: {acts}"


# Statuses of other rows: an order's as Etsy says it.
STATUSES_WRITTEN = {
    "models.move_to: self.status",
    "api.deliveries.replay_delivery: delivery.status",
}


def test_a_status_of_a_print_changes_in_move_to_alone() -> None:
    for name in (each for each in MODULES if "models" in {each, *imports(each)}):
        for owner in [node for node in ast.walk(tree(name)) if isinstance(node, ast.FunctionDef | ast.Module)]:
            for node in ast.iter_child_nodes(owner) if isinstance(owner, ast.Module) else ast.walk(owner):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                for target in targets:
                    for each in ast.walk(target) if isinstance(target, ast.AST) else ():
                        if (
                            isinstance(each, ast.Attribute)
                            and each.attr == "status"
                            and isinstance(each.ctx, ast.Store)
                        ):
                            where = f"{name}.{getattr(owner, 'name', '')}: {ast.unparse(each)}"
                            assert where in STATUSES_WRITTEN, where


def test_no_statement_writes_a_prints_status_past_move_to() -> None:
    """Neither an UPDATE in bulk nor a print that is made with another word than those it may begin with."""
    for name in MODULES:
        for call in calls(tree(name), "values"):
            updated = ast.unparse(call.func)
            assert not ("ScheduledPrint" in updated and any(each.arg == "status" for each in call.keywords)), name
        for node in ast.walk(tree(name)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("ScheduledPrint", "setattr")
            ):
                assert not any(each.arg == "status" for each in node.keywords), f"{name}: {ast.unparse(node)}"
                assert "'status'" not in ast.unparse(node), f"{name}: {ast.unparse(node)}"


def test_the_environment_is_read_in_settings_alone() -> None:
    for name in MODULES:
        if name == "settings":
            continue
        reads = [
            ast.unparse(node)
            for node in ast.walk(tree(name))
            if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"))
            or (isinstance(node, ast.Name) and node.id in ("environ", "getenv") and isinstance(node.ctx, ast.Load))
            or (isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} & {"environ", "getenv"})
        ]
        # A WSGI function gets a dict of that name; the demo hands its own to the process that it starts.
        assert [each for each in reads if not each.startswith(("environ", "request."))] == [] or name == "demo", name


# Where a thread that serves many would end with the fault of one, and where a fault is handed to whoever waits for it.
BROAD = {
    "worker._guarded",
    "delivery.lanes._run",
    "bambu.lifeline._run",
    "bambu.lifeline._call",
    "bambu.requests.serve",
    "bambu.cloud_link._run",
    "bambu.cloud_link._call",
    "bambu_discovery._listen",
    "live._guarded",
}


def test_every_exception_that_is_kept_is_named() -> None:
    """All may be caught to clean up or to say more, if it goes on from there."""
    for name in MODULES:
        for function, node in functions(name):
            for handler in (each for each in ast.walk(node) if isinstance(each, ast.ExceptHandler)):
                caught = ast.unparse(handler.type) if handler.type else "everything"
                if re.search(r"\b(Exception|BaseException|everything)\b", caught):
                    goes_on = isinstance(handler.body[-1], ast.Raise)
                    assert goes_on or f"{name}.{function}" in BROAD, f"{name}.{function}"


def test_no_time_is_naive() -> None:
    for name in MODULES:
        for call in (node for node in ast.walk(tree(name)) if isinstance(node, ast.Call)):
            said = ast.unparse(call)
            assert not re.match(r"(datetime\.)?datetime\.(now\(\)|utcnow|utcfromtimestamp|today)", said), (
                f"{name}: {said}"
            )
            assert not re.match(r"(datetime\.)?date\.today", said), f"{name}: {said}"


def test_every_file_can_be_read_in_one_sitting() -> None:
    long = {name: count for name, path in MODULES.items() if (count := len(path.read_text().splitlines())) > MAX_LINES}
    assert set(long) <= {"models"}, long


def test_names_say_what_a_thing_is() -> None:
    for name in MODULES:
        assert not re.search(r"(^|[._])(utils?|helpers?|misc|common|managers?|services?)($|[._])", name), name
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.ClassDef):
                assert not re.search(r"(Manager|Helper|Utils?|Service)s?$", node.name), f"{name}.{node.name}"


def test_the_source_was_found() -> None:
    """Else every test above would hold of nothing."""
    assert {"app", "worker", "models", "auth", "errors", "api.prints", "farm.starter", "bambu_client"} <= set(MODULES)
    assert len(MODULES) > 50
    assert ("api.prints", "farm.moves") in set(edges()) and ("api.prints", "auth") in set(edges())
