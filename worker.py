"""The long-running process that owns the printers' connections. `python worker.py`, or inside `python app.py`.

One inbox, one order of events: one thread turns what the printers say into rows. Whatever waits for a printer or a
receiver runs beside it, so that a slow one holds up no other.
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from types import FrameType
from typing import Any, cast

import sqlalchemy as sa
import structlog
from flask import Flask
from werkzeug.serving import make_server

from api.context import Parts
from app import configure_logging, create_app, spare_what_stays
from bambu_client import LinkTimings
from bell import Bell, NotifyListener, Rung
from courier import Courier
from errands import Errands
from farm.leases import LEASE
from links import Links
from lookout import Lookout
from outbox import Outbox
from postbox import RedisListener
from settings import Settings, SettingsError
from starts import Starts
from tasks import Rounds

log = structlog.get_logger()

TICK_SECONDS = 0.05
SYNC_EVERY = timedelta(seconds=1)
SWEEP_EVERY = timedelta(seconds=0.25)
# Behind the bell, which tells at once: for what was changed without a ring.
SLOW_SWEEP_EVERY = timedelta(seconds=5)
LOOK_EVERY = timedelta(seconds=1)
# Of the time that a worker has to stop; a send takes 15 s at most, and what is still under way then is handed back.
SENDS_END_SECONDS = 15.5
SENDS_FIRST_SECONDS = 0.01
PARALLEL_ERRANDS = 32
OPEN_FILES = 65536


class Worker:
    """Connections, tracking, starting, sending. Clock and settings are the app's; the links' `timings` their own.
    `at_step` is called at each of `farm.starter.CRASH_POINTS`."""

    def __init__(
        self,
        app: Flask,
        *,
        timings: LinkTimings | None = None,
        lease_life: timedelta = LEASE,
        at_step: Callable[[str], None] = lambda step: None,
    ) -> None:
        parts: Parts = app.extensions["parts"]
        self._app, self._settings = app, parts.settings
        self._clock: Callable[[], datetime] = app.extensions["clock"]
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ringing, self._rung = threading.Lock(), cast("Rung", frozenset())
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(PARALLEL_ERRANDS, thread_name_prefix="errand")
        self._errands = Errands(app, self._pool, guarded=self._guarded)
        self._starts = Starts(
            app,
            run=self._errands.run,
            is_stopping=self._stop,
            wake=lambda: self._inbox.put(lambda: self._starts.begin(self._links.all())),
            at_step=at_step,
        )
        self._links = Links(
            app,
            f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"[-64:],
            post=self._inbox.put,
            pool=self._pool,
            timings=timings,
            lease_life=lease_life,
        )
        self._lookout = Lookout(app)
        self._bell: Bell = app.extensions["bell"]
        url = sa.make_url(self._settings.database_url)
        is_shared = url.get_backend_name() == "postgresql"
        self._from_elsewhere = NotifyListener(url, self._hear_bell) if is_shared else None
        self._outbox = Outbox(app, Courier.of(app))
        self._rounds = Rounds(app, self._outbox)
        redis_url = self._settings.redis_url
        self._other_postboxes = RedisListener(redis_url, self._outbox.wake) if redis_url else None
        self._thread = threading.Thread(target=self._run, name="worker")

    def start(self) -> None:
        _allow_open_files()
        self._bell.listen(self._hear_bell, held=self._links.printer_ids)
        if self._from_elsewhere is not None:
            self._from_elsewhere.start()
        if self._other_postboxes is not None:
            self._other_postboxes.start()
        self._outbox.start()
        self._rounds.start()
        self._thread.start()

    def stop(self, wait_seconds: float = 20.0) -> None:
        """No start leaves after this; what is under way is finished or handed back."""
        self._stop.set()
        self._bell.stop_listening(self._hear_bell)
        if self._from_elsewhere is not None:
            self._from_elsewhere.close()
        if self._other_postboxes is not None:
            self._other_postboxes.close()
        self._inbox.put(lambda: None)
        self._rounds.stop()
        until = time.monotonic() + wait_seconds
        self._outbox.stop(min(SENDS_END_SECONDS, wait_seconds))
        self._thread.join(max(1.0, until - time.monotonic()))
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive() and self._rounds.is_running

    def _run(self) -> None:
        steps: dict[Callable[[], None], timedelta] = {
            self._links.sync: SYNC_EVERY,
            self._sweep: SWEEP_EVERY,
            self._sweep_slowly: SLOW_SWEEP_EVERY,
            self._lookout.look: LOOK_EVERY,
        }
        due = dict.fromkeys(steps, self._clock())
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                self._guarded(self._inbox.get(timeout=self._links.seconds_to_settling(TICK_SECONDS)))
                while True:
                    # However much waits in the inbox, nothing that is due waits for all of it.
                    self._guarded(self._links.settle_on_time)
                    self._guarded(self._inbox.get_nowait())
            self._guarded(self._links.settle_on_time)
            now = self._clock()
            for step, at in due.items():
                # A clock that was set back must not stop the sweep until it has caught up.
                if now >= at or at - now > steps[step]:
                    self._guarded(step)
                    due[step] = now + steps[step]
        self._guarded(self._lookout.close)
        self._guarded(self._links.close)

    def _guarded(self, step: Callable[[], None]) -> None:
        """A fault in one printer's report, row or errand must not end the worker of all the others."""
        try:
            step()
        except Exception:
            log.exception("worker_step_failed")

    def _sweep(self) -> None:
        held = self._links.all()
        self._errands.begin_commands(held)
        self._links.settle()
        self._links.save_snapshots()
        self._starts.begin(held)

    def _sweep_slowly(self) -> None:
        held = self._links.all()
        self._starts.compare(held)
        self._starts.tidy_up(held)
        self._links.tell_lasting()

    def _hear_bell(self, rung: Rung) -> None:
        """In the thread of whoever rang. Rings that come while one waits in the inbox go with it."""
        with self._ringing:
            is_first, self._rung = not self._rung, self._rung | rung
        if is_first:
            self._inbox.put(self._answer_bell)

    def _answer_bell(self) -> None:
        # Somebody waits to hear what happened. What comes next here can wait a moment, and would take the interpreter
        # from the senders.
        self._outbox.wait_taken(SENDS_FIRST_SECONDS)
        with self._ringing:
            rung, self._rung = self._rung, frozenset()
        held = self._links.all()
        self._starts.rung(held, rung)
        self._errands.begin_commands(held)
        self._starts.begin(held)


def _allow_open_files() -> None:
    """Each printer's connection takes three. Most systems begin with 1024, and allow far more to whoever asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def serve_health(worker: Worker, settings: Settings) -> Any:
    """`/livez` of the worker process: 200 while its threads live, 503 after."""

    def answer(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        alive = worker.is_running and environ["PATH_INFO"] == "/livez"
        start_response("200 OK" if alive else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [b'{"status":"healthy"}' if alive else b'{"status":"unhealthy"}']

    server = make_server("127.0.0.1", settings.worker_health_port, answer)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server


def main() -> None:
    configure_logging()
    try:
        settings = Settings.from_environment()
        app = create_app(settings)
    except SettingsError as error:
        sys.exit(f"The configuration is not usable: {error}")
    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    worker = Worker(app)
    worker.start()
    health = serve_health(worker, settings)
    spare_what_stays()
    log.info("worker_running", health_port=health.server_port)
    stop.wait()
    worker.stop()
    health.shutdown()


if __name__ == "__main__":
    main()
