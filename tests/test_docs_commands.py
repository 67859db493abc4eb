"""What the documents tell a person to type is typed: their blocks run, and the answers they show are the real ones."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask

from app import create_app
from models import db
from tests.conftest import settings_for
from tests.documents import DOCUMENTS, ROOT, blocks, read, section
from tests.farm_builder import Farm
from tests.shell import MISSING_TOOLS, Shell, environment, served

SERVED = ("README.md", "docs/BAMBU_CONNECT_FEATURES.md", "docs/BAMBU_WORKFLOW_EXAMPLE.md")

needs_tools = pytest.mark.skipif(bool(MISSING_TOOLS), reason=f"not installed here: {', '.join(MISSING_TOOLS)}")


def server_command() -> str:
    """What the quick start says."""
    (block,) = blocks(section(read("README.md"), "Quick start").body)
    return block.text.splitlines()[-1]


@needs_tools
@pytest.mark.parametrize("name", SERVED)
def test_the_commands_of_a_document_work_and_answer_as_shown(name: str, tmp_path: Path) -> None:
    with served(server_command(), tmp_path) as url, Shell(tmp_path, FARM=url) as shell:
        compared = shell.follow(read(name))
    shown = [block for block in blocks(read(name)) if block.language in ("json", "text")]
    assert compared == len(shown) > 10


def test_every_document_starts_the_server_as_the_quick_start_does() -> None:
    shown = [block for path in DOCUMENTS for block in blocks(path.read_text()) if block.language == "sh"]
    commands = [line.strip() for block in shown for line in block.text.splitlines() if "python app.py" in line]
    assert len(commands) == 4
    assert set(commands) == {server_command()}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_only_shown_could_be_typed(path: Path, session_app: Flask) -> None:
    """`sh` blocks are not run (they download, stay, or need what is not here); what they name must be there."""
    adapter = session_app.url_map.bind("localhost")
    targets = set(re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.MULTILINE))
    for block in blocks(path.read_text()):
        for line in block.text.replace("\\\n", " ").splitlines() if block.language in ("sh", "bash") else ():
            for method, route in curl_calls(line):
                adapter.match(route, method)
        for line in block.text.replace("\\\n", " ").splitlines() if block.language == "sh" else ():
            words = [word for word in shlex.split(line) if not re.match(r"\w+=", word)]
            assert words[0] in ("make", "pip", "python", "flask", "curl", "docker-compose"), line
            if words[0] == "make":
                assert set(words[1:]) <= targets, line
            for word in words[1:]:
                if word.endswith((".py", ".txt")):
                    assert (ROOT / word).exists(), line


def curl_calls(line: str) -> list[tuple[str, str]]:
    """(method, path) of each curl call in a line, its variables filled in."""
    found = []
    for call in re.split(r"(?=\bcurl )", line)[1:]:
        route = re.search(r"\$FARM(/[\w/$.{}-]*)", call)
        method = re.search(r"-X (\w+)", call)
        implied = "POST" if re.search(r" -[dF] ", call) else "GET"
        if route:
            found.append((method[1] if method else implied, re.sub(r"\$\{?\w+\}?", "1", route[1])))
    return found


@needs_tools
def test_the_migration_commands_work(tmp_path: Path) -> None:
    (run, shown), (only_shown,) = _blocks_of("Migrations", "bash", "text"), _blocks_of("Migrations", "sh")
    with Shell(tmp_path, FLASK_ENV="development", DATA_DIR=str(tmp_path / "data"), PWD=str(ROOT)) as shell:
        shell.run(f"cd {shlex.quote(str(ROOT))}")
        newest = sorted((ROOT / "migrations/versions").glob("*.py"))[-1].name.partition("_")[0]
        assert shell.run(run) == shown.strip() == f"{newest} (head)"
        assert "flask db check" in only_shown
        assert shell.run("flask db check 2>&1").endswith("No new upgrade operations detected.")


def _blocks_of(title: str, *languages: str) -> list[str]:
    return [
        block.text for block in blocks(section(read("docs/DATABASE.md"), title).body) if block.language in languages
    ]


@needs_tools
def test_a_backup_holds_everything_while_the_server_runs(tmp_path: Path) -> None:
    (backup,) = _blocks_of("Backup and restore", "bash")
    with (
        served(server_command(), tmp_path),
        Shell(tmp_path, DATA_DIR=str(tmp_path / "instance")) as shell,
    ):
        shell.run(backup)
    with sqlite3.connect(tmp_path / "farm-backup.sqlite3") as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables >= {table.name for table in db.metadata.sorted_tables}
    with tarfile.open(tmp_path / "farm-files.tar.gz") as files:
        assert {"print-files", "secrets/encryption_keys"} <= set(files.getnames())


def test_moving_to_another_database_brings_every_row(tmp_path: Path, database_url: str) -> None:
    """From SQLite to whatever this run is on."""
    (script,) = _blocks_of("From SQLite to PostgreSQL", "python")
    source, target = f"sqlite:///{tmp_path / 'source.sqlite3'}", database_url
    old, new = (
        create_app(settings_for(url, tmp_path / f"data-{number}", AUTO_DB_CREATE="1"))
        for number, url in enumerate((source, target))
    )
    farm = Farm(old, "seller@example.com")
    printer = farm.add_printer()
    farm.add_material(printer["id"], remaining_pct=33.3)
    order = farm.add_order({"title": "Vase", "quantity": 2, "price": 18.5})
    farm.move(farm.add_print(printer["id"], order_id=order["id"], estimated_grams=0.125)["id"], "started", "completed")
    own = environment(SOURCE=source, TARGET=target.replace("+psycopg2", ""), PATH=os.environ["PATH"])
    moved = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=own, capture_output=True, text=True, check=False, timeout=60
    )
    assert moved.returncode == 0, moved.stderr
    for table in db.metadata.sorted_tables:
        with old.app_context():
            before = [tuple(row) for row in db.session.execute(sa.select(table))]
        with new.app_context():
            after = [tuple(row) for row in db.session.execute(sa.select(table))]
        assert sorted(map(repr, before)) == sorted(map(repr, after)), table.name
        assert f"{table.name} {len(before)}\n" in moved.stdout
    farm.app, farm.client = new, new.test_client()
    login = farm.client.post("/api/auth/login", json={"email": "seller@example.com", "password": "kein-leichtes-wort"})
    farm.token = login.json["token"]
    assert farm.add_printer("Right")["id"] == printer["id"] + 1
    for app in (old, new):
        with app.app_context():
            db.session.remove()
            db.engine.dispose()
