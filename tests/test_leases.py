"""Leases: one holder a printer, a fair share for each worker, and an epoch that betrays a holder who slept."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from flask import Flask

from farm.leases import LEASE, Lease, keep_leases, release_leases, still_holds
from models import WorkerPresence, db
from tests.conftest import Clock

SERIALS = [f"01P00A{number:09}" for number in range(10)]


@pytest.fixture
def session(app: Flask) -> object:
    with app.app_context():
        yield


def held(owner: str, clock: Clock, serials: list[str] = SERIALS, busy: tuple[str, ...] = ()) -> set[str]:
    return set(keep_leases(owner, serials, now=clock(), busy=busy))


def test_one_worker_holds_every_printer_and_keeps_its_epoch(session: object, clock: Clock) -> None:
    first = keep_leases("a", SERIALS, now=clock())
    clock.forward(seconds=30)
    assert keep_leases("a", SERIALS, now=clock()) == first
    assert set(first) == set(SERIALS)


def test_two_workers_share_and_never_hold_the_same_printer(session: object, clock: Clock) -> None:
    held("a", clock)
    assert held("b", clock) == set()
    a, b = held("a", clock), held("b", clock)
    assert len(a) == len(b) == 5
    assert a | b == set(SERIALS) and not a & b


def test_a_busy_printer_is_not_given_back(session: object, clock: Clock) -> None:
    held("a", clock)
    held("b", clock)
    assert set(SERIALS[:5]) <= held("a", clock, busy=tuple(SERIALS[:5]))


def test_what_a_dead_worker_held_is_free_when_its_lease_has_run_out(session: object, clock: Clock) -> None:
    held("a", clock)
    clock.forward(seconds=LEASE.total_seconds() - 1)
    assert held("b", clock) == set()
    clock.forward(seconds=2)
    assert held("b", clock) == set(SERIALS)


def test_a_holder_that_slept_past_its_lease_finds_another_epoch(session: object, clock: Clock) -> None:
    slept = keep_leases("a", SERIALS[:1], now=clock())[SERIALS[0]]
    assert still_holds(slept, now=clock())
    clock.forward(seconds=LEASE.total_seconds() + 1)
    assert not still_holds(slept, now=clock()), "run out, though nobody took it yet"
    keep_leases("b", SERIALS[:1], now=clock())
    assert not still_holds(slept, now=clock())
    clock.forward(seconds=LEASE.total_seconds() + 1)
    again = keep_leases("a", SERIALS[:1], now=clock())[SERIALS[0]]
    assert again.epoch > slept.epoch
    assert not still_holds(slept, now=clock()), "an old lease stays dead when the same worker gets the printer again"


def test_a_worker_that_ends_gives_everything_back_at_once(session: object, clock: Clock) -> None:
    held("a", clock)
    release_leases("a")
    assert held("b", clock) == set(SERIALS)


def test_a_printer_that_is_gone_is_let_go(session: object, clock: Clock) -> None:
    held("a", clock)
    assert held("a", clock, SERIALS[:3]) == set(SERIALS[:3])
    assert not still_holds(Lease(SERIALS[9], "a", 1), now=clock())


def test_workers_that_race_for_free_printers_never_get_the_same_one(app: Flask, clock: Clock) -> None:
    won: list[Lease] = []
    gate = threading.Barrier(6)

    def run(owner: str) -> None:
        with app.app_context():
            gate.wait()
            won.extend(keep_leases(owner, SERIALS, now=clock()).values())
            db.session.remove()

    threads = [threading.Thread(target=run, args=(f"w{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lease.serial_number for lease in won) == sorted({lease.serial_number for lease in won})
    assert len(won) == len(SERIALS)


def test_a_worker_that_is_just_being_written_down_is_not_taken_for_gone(session: object, clock: Clock) -> None:
    """Two that come back at once would wait for each other, and PostgreSQL throw one of them out."""
    if db.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has one lock for all")
    held("a", clock)
    clock.forward(seconds=LEASE.total_seconds() + 1)
    with db.engine.connect() as other:
        other.execute(sa.select(WorkerPresence).where(WorkerPresence.owner == "a").with_for_update()).all()
        held("b", clock)
        assert set(db.session.execute(sa.select(WorkerPresence.owner)).scalars()) == {"a", "b"}
        other.rollback()
    held("b", clock)
    assert list(db.session.execute(sa.select(WorkerPresence.owner)).scalars()) == ["b"]
