"""The notifier is killed again and again, between any two of its steps: nothing is lost, a repeat is the same message.

Short here, long in `make prove`: real processes, SIGKILL, a real receiver that counts what it gets.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa

from claims import CLAIM_LIFE
from models import Delivery, DeliveryAttempt, DeliveryStatus, db
from outbox import CRASH_POINTS
from simulator.sinks import Received, WebhookReceiver
from tests.conftest import OutsideClient
from tests.farm_builder import Farm
from tests.outboxes import prefer, stock
from tests.prove_notifier import Notifiers, notifiers, wait_for_end
from tests.prove_worker import Spec

pytestmark = pytest.mark.database

EVENTS_A_KILL = 4
SEED = 5


class World:
    """Printers whose events go to one receiver, and who kills whoever sends them."""

    def __init__(self, spec: Spec, made: Notifiers, receiver: WebhookReceiver, printers: int) -> None:
        self.spec, self.notifiers, self.receiver, self.chance = spec, made, receiver, Random(SEED)
        self.app = spec.make_app()
        self.app.test_client_class = OutsideClient
        self.farm = Farm(self.app, "seller@example.com")
        self.printers = [int(self.farm.add_printer(f"P{number}")["id"]) for number in range(printers)]
        for printer in self.printers:
            prefer(self.farm, printer, webhook_url=receiver.url, email_enabled=False)
        self.kills: Counter[str] = Counter()
        self.repeats: list[Counter[int]] = []
        self.events = 0

    def add_events(self) -> None:
        for printer in self.printers:
            stock(self.farm, printer, EVENTS_A_KILL, first=self.events, next_try_at=self.spec.clock())
        self.events += EVENTS_A_KILL

    def kill_once(self) -> None:
        before = Counter(self.counted())
        self.add_events()
        # What the last one had in its hands is given up.
        self.spec.clock.forward(CLAIM_LIFE.total_seconds())
        # Most of them where a repeat comes from.
        step = self.chance.choice((*CRASH_POINTS, "sent", "sent"))
        pid = self.notifiers.make(step, self.chance.randint(1, EVENTS_A_KILL * len(self.printers)))
        if not wait_for_end(pid, seconds=0.01 + self.chance.random() * 0.1 if self.chance.random() < 0.3 else 20.0):
            step = "at random"
            os.kill(pid, signal.SIGKILL)
            assert wait_for_end(pid, seconds=10)
        # What it sent before it died may still be on its way into the receiver.
        assert self.receiver.wait_until_alone()
        self.kills[step] += 1
        again = {key: count for key, count in self.counted().items() if before[key] and count > before[key]}
        self.repeats.append(Counter({key[0]: count - before[key] for key, count in again.items()}))

    def whole(self) -> list[Received]:
        """What came, but for what broke off in the middle with its sender: no receiver takes that for a message."""
        return [each for each in list(self.receiver.received) if each.json is not None]

    def counted(self) -> Counter[tuple[int, int, str]]:
        """(printer, number, message id) of what the receiver got."""
        return Counter(
            (each.json["data"]["printer"]["id"], each.json["data"]["number"], each.headers["webhook-id"])
            for each in self.whole()
        )

    def finish(self) -> None:
        """The last notifier lives."""
        self.spec.clock.forward(CLAIM_LIFE.total_seconds())
        before = self.counted()
        pid = self.notifiers.make()
        deadline = 120.0
        while self.unsent() and deadline > 0:
            wait_for_end(pid, seconds=0.05)
            deadline -= 0.05
        os.kill(pid, signal.SIGTERM)
        assert wait_for_end(pid, seconds=15)
        again = {
            key: count - before[key] for key, count in self.counted().items() if before[key] < count and before[key]
        }
        self.repeats.append(Counter({key[0]: count for key, count in again.items()}))

    def unsent(self) -> int:
        with self.app.app_context():
            query = sa.select(sa.func.count()).where(Delivery.status != DeliveryStatus.sent)
            count = db.session.execute(query).scalar_one()
            db.session.rollback()
            return count

    def table(self) -> str:
        got = self.counted()
        expected = len(self.printers) * self.events
        lines = [
            f"kills {self.kills.total()}, printers {len(self.printers)}, events {expected}, lost {expected - len(got)}",
            f"repeats {got.total() - len(got)}, most in one kill {max(each.total() for each in self.repeats)},"
            f" most of one printer in one kill {max(max(each.values(), default=0) for each in self.repeats)}",
            "  ".join(f"{step} {count}" for step, count in sorted(self.kills.items())),
        ]
        return "\n".join(lines)


@pytest.fixture(params=[1, 6])
def world(request: pytest.FixtureRequest, tmp_path: Path, database_url: str) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        spec = Spec(database_url, str(tmp_path), 0.0, {"AUTO_DB_CREATE": "1", "REDIS_URL": ""})
        receiver = stack.enter_context(WebhookReceiver(clock=spec.clock))
        made = World(spec, stack.enter_context(notifiers(spec)), receiver, request.param)
        yield made
        with made.app.app_context():
            db.session.remove()
            db.engine.dispose()


@pytest.mark.parametrize("kills", [20, pytest.param(500, marks=pytest.mark.prove)])
def test_a_notifier_that_is_killed_loses_nothing_and_repeats_at_most_one_of_a_stream(world: World, kills: int) -> None:
    for _ in range(kills):
        world.kill_once()
    world.finish()
    print(f"\n{world.table()}")
    got = world.counted()
    wanted = {(printer, number) for printer in world.printers for number in range(world.events)}
    # Nothing is lost, and what came twice came with the id that it had.
    assert {key[:2] for key in got} == wanted and len(got) == len(wanted)
    assert all(count <= 1 for each in world.repeats for count in each.values())
    for printer in world.printers:
        # A repeat comes before whatever follows.
        came = [each.json["data"]["number"] for each in world.whole() if each.json["data"]["printer"]["id"] == printer]
        assert came == sorted(came)
    with world.app.app_context():
        kept = db.session.execute(sa.select(sa.func.count(sa.distinct(DeliveryAttempt.delivery_id)))).scalar_one()
        assert kept == len(wanted)
    assert world.unsent() == 0
