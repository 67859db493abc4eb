"""What comes round by itself, as Celery tasks: retries and what was held, the sweep, orders from Etsy.

By default both worker and beat of Celery run inside the worker process, on a broker in its memory. With a real broker
(CELERY_BROKER_URL) they are processes of their own: `celery -A tasks worker --pool threads` and `celery -A tasks beat`.
No task carries anything: each only says that it is time to look at the rows, so whatever a broker forgets or repeats
does no harm.
"""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any

from celery import Celery, signals
from celery.beat import Scheduler, Service
from celery.worker import WorkController
from flask import Flask

from api.context import Parts
from app import configure_logging, create_app
from courier import Courier
from etsy_api import schedule_paid_orders
from etsy_sync import sync_due
from farm.order_plan import PlanRules
from outbox import Outbox
from settings import Settings

IN_MEMORY = "memory://"
# The same, with the host that kombu otherwise warns of.
IN_MEMORY_URL = "memory://localhost/"
DUE_SECONDS, SWEEP_SECONDS, ORDERS_SECONDS = 1.0, 15.0, 5.0
# A look that nobody took in time is made by the next one.
EXPIRE_SECONDS = 10.0
POLL_SECONDS = 0.1
# The time that a process of Celery's has for what it is sending.
SENDS_END_SECONDS = 15.5
SYNC_ENDS_SECONDS = 5.0


class Rounds:
    """What is done again and again for one app. Where the broker is in memory, `start` brings Celery with it: one
    worker and one beat for the whole process, since Celery keeps its state in modules."""

    # Held while Celery starts or ends, which waits for what it is at; that asks for `all`, under a lock of its own.
    _turning, _lock = threading.Lock(), threading.Lock()
    _started: list[Rounds] = []
    _embedded: Embedded | None = None

    def __init__(self, app: Flask, outbox: Outbox) -> None:
        self._app, self._outbox = app, outbox
        self._parts: Parts = app.extensions["parts"]
        self._broker: str = self._parts.settings.celery_broker_url
        # Held by a sweep under way, so that none outlives its app; and by a sync, of which one is enough.
        self._sweeping, self._syncing = threading.Lock(), threading.Lock()

    @classmethod
    def all(cls) -> list[Rounds]:
        with cls._lock:
            return list(cls._started)

    def start(self) -> None:
        with Rounds._turning:
            with Rounds._lock:
                Rounds._started.append(self)
            if self._broker == IN_MEMORY and Rounds._embedded is None:
                Rounds._embedded = Embedded(make_celery(IN_MEMORY))

    def stop(self) -> None:
        # A sync that waits for Etsy for longer is simply done again by whoever comes next.
        until = time.monotonic() + SYNC_ENDS_SECONDS
        with Rounds._turning:
            with Rounds._lock:
                Rounds._started.remove(self)
                is_last = not Rounds._started
            if is_last and Rounds._embedded is not None:
                Rounds._embedded.stop(SYNC_ENDS_SECONDS)
                Rounds._embedded = None
        with self._sweeping:
            pass
        if self._syncing.acquire(timeout=max(0.0, until - time.monotonic())):
            self._syncing.release()

    @property
    def is_running(self) -> bool:
        embedded = Rounds._embedded
        return self in Rounds.all() and (self._broker != IN_MEMORY or (embedded is not None and embedded.is_running))

    def deliver_due(self) -> None:
        """What is to be tried again, what quiet hours or a digest held until now, and what nobody was told of."""
        self._outbox.deliver_due()

    def sweep(self) -> None:
        """What only time brings: endpoints that are lost, attempts that are old."""
        with self._sweeping:
            if self not in Rounds.all():
                return
            self._outbox.switch_off_lost()
            self._outbox.forget_old_attempts()

    def bring_in_orders(self) -> None:
        """Shops whose time has come, and what follows by itself from paid orders."""
        if not self._syncing.acquire(blocking=False):
            return
        try:
            if self not in Rounds.all():
                return
            with self._app.app_context():
                access, rules = self._parts.etsy_access(), PlanRules.from_settings(self._parts.settings)
                for user_id in {done.user_id for done in sync_due(access, self._parts.clock())}:
                    schedule_paid_orders(user_id, self._parts.clock(), rules=rules)
        finally:
            self._syncing.release()


def make_celery(broker: str) -> Celery:
    """The tasks, for whatever is started in this process."""
    made = Celery("farm", broker=IN_MEMORY_URL if broker == IN_MEMORY else broker)
    # Celery's threads know no other than the default one.
    made.set_default()
    made.conf.update(
        task_ignore_result=True,
        # In memory all of a process's queues are one broker's; one that is closing must not take the next one's tasks.
        task_default_queue=f"farm-{secrets.token_hex(4)}" if broker == IN_MEMORY else "farm",
        timezone="UTC",
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        # It keeps nothing on the disk: after a restart everything is simply due.
        beat_scheduler="celery.beat:Scheduler",
        beat_schedule={
            name: {"task": name, "schedule": seconds, "options": {"expires": EXPIRE_SECONDS}}
            for name, seconds in (
                ("deliver_due", DUE_SECONDS),
                ("sweep", SWEEP_SECONDS),
                ("bring_in_orders", ORDERS_SECONDS),
            )
        },
    )
    if broker == IN_MEMORY:
        made.conf.broker_transport_options = {"polling_interval": POLL_SECONDS}

    @made.task(name="deliver_due", shared=False)  # type: ignore[untyped-decorator]
    def deliver_due() -> None:
        for rounds in Rounds.all():
            rounds.deliver_due()

    @made.task(name="sweep", shared=False)  # type: ignore[untyped-decorator]
    def sweep() -> None:
        for rounds in Rounds.all():
            rounds.sweep()

    @made.task(name="bring_in_orders", shared=False)  # type: ignore[untyped-decorator]
    def bring_in_orders() -> None:
        for rounds in Rounds.all():
            rounds.bring_in_orders()

    return made


class Embedded:
    """Celery's worker and beat as threads of this process, from now on."""

    def __init__(self, made: Celery) -> None:
        self._worker = WorkController(
            app=made,
            pool_cls="threads",
            concurrency=3,
            without_heartbeat=True,
            without_mingle=True,
            without_gossip=True,
            loglevel="WARNING",
        )
        self._beat = Service(made, scheduler_cls=Scheduler, max_interval=DUE_SECONDS / 2)
        self._threads = [
            threading.Thread(target=self._worker.start, name="celery", daemon=True),
            threading.Thread(target=self._beat.start, name="beat", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_running(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def stop(self, seconds: float) -> None:
        """Waits so long for the tasks under way. Its threads notice within two seconds, and find nothing to do until
        then."""
        self._beat.stop()
        ending = threading.Thread(target=self._worker.stop, kwargs={"in_sighandler": False}, daemon=True)
        ending.start()
        ending.join(seconds)


def from_environment() -> Celery:
    """For Celery's own processes: the app is made, and sends, where tasks are run."""
    configure_logging()
    settings = Settings.from_environment()
    made = make_celery(settings.celery_broker_url)
    held: list[tuple[Rounds, Outbox]] = []

    @signals.worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def begin(**arguments: Any) -> None:
        app = create_app(settings)
        outbox = Outbox(app, Courier.of(app))
        rounds = Rounds(app, outbox)
        outbox.start()
        rounds.start()
        held.append((rounds, outbox))

    @signals.worker_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
    def end(**arguments: Any) -> None:
        for rounds, outbox in held:
            rounds.stop()
            outbox.stop(SENDS_END_SECONDS)

    return made


def __getattr__(name: str) -> Celery:
    """`tasks.celery` is what the program `celery -A tasks` asks for; nobody else reads the environment by importing."""
    if name == "celery":
        return from_environment()
    raise AttributeError(name)
