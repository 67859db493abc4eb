"""A start under fire: workers are killed, frozen and doubled, each in a process of its own, before real printers."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa

from farm.starter import CRASH_POINTS, PUBLISH_WITHIN
from models import (
    ENDED_STATUSES,
    SENDING_STATES,
    IntentState,
    PrinterGate,
    PrintStatus,
    StartIntent,
    db,
)
from tests.prove_farm import AT_RANDOM, AT_RANDOM_IN_A_START, Station, World, eventually, world
from tests.prove_worker import TIMES_FASTER, WorkerProcess

FROZEN_AT = ("uploading", "uploaded", "armed", "heard", "published")
# In the farm's time: past the lease, and past the freshness of a report; but a start may stay unconfirmed for so long.
LEASE_SECONDS, FROZEN_SECONDS = 60, 61
REQUESTS = 100
ENDS_WITHIN_SECONDS = 25.0


def random_points(kills: int, seed: int) -> list[str]:
    """Each crash point as often as any other, and as many moments of chance."""
    chance = Random(seed)
    named = [CRASH_POINTS[number % len(CRASH_POINTS)] for number in range(kills // 2)]
    points = named + [AT_RANDOM_IN_A_START, AT_RANDOM] * ((kills - len(named) + 1) // 2)
    chance.shuffle(points)
    return points[:kills]


def test_a_worker_killed_at_each_crash_point_and_at_random_starts_nothing_twice_and_loses_nothing(
    database_url: str, tmp_path: Path
) -> None:
    points = [*CRASH_POINTS, *[AT_RANDOM, AT_RANDOM_IN_A_START] * 10]
    Random(7).shuffle(points)
    with world(database_url, tmp_path, 10, seed=7) as farm:
        farm.storm(points, lanes=5)
        farm.check()


@pytest.mark.prove
@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_kills(database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int) -> None:
    """A hundred a time: `-k "kills and 3"` repeats the fourth of them."""
    began = time.monotonic()
    with world(database_url, tmp_path, 10, seed=seed) as farm:
        farm.haste = 0.002
        farm.storm(random_points(100, seed), lanes=6)
        farm.check()
        with capsys.disabled():
            print(f"\nseed {seed}, {time.monotonic() - began:.0f} s\n{farm.table()}")


def owners(farm: World) -> list[str]:
    with farm.app.app_context():
        return [owner for owner in db.session.execute(sa.select(PrinterGate.owner)).scalars() if owner]


def has_begun(farm: World, station: Station) -> bool:
    assert station.print_id is not None
    return farm.look([station.print_id])[station.print_id].status is PrintStatus.started


def first_start_of(farm: World, worker: WorkerProcess) -> StartIntent:
    with farm.app.app_context():
        return db.session.execute(
            sa.select(StartIntent)
            .where(StartIntent.owner.contains(f"-{worker.pid}-"))
            .order_by(StartIntent.id)
            .limit(1)
        ).scalar_one()


def until_taken_over(farm: World, frozen: list[WorkerProcess]) -> None:
    """Until another worker holds every printer."""
    pids = {str(each.pid) for each in frozen}
    last = time.monotonic()

    def is_taken_over() -> bool:
        nonlocal last
        if time.monotonic() - last > 2.0:
            last = time.monotonic()
            for each in frozen:
                each.let_breathe()
        held_by = owners(farm)
        return len(held_by) == len(farm.stations) and not any(owner.split("-")[-2] in pids for owner in held_by)

    eventually(is_taken_over, lambda: owners(farm))


def assert_nothing_left_late(farm: World, frozen: WorkerProcess) -> None:
    """Of the start that it was frozen in. Since then it may hold a printer again, and start what is given to it."""
    intent = first_start_of(farm, frozen)
    told = frozen.marks[frozen.marks.index("went on") + 1 :]
    until_next = told[: told.index("claiming")] if "claiming" in told else told
    assert "sent" not in until_next, frozen.marks
    assert intent.state in (IntentState.withdrawn, IntentState.not_started), (frozen.marks, intent.state)
    (station,) = (each for each in farm.stations if each.printer_id == intent.printer_id)
    assert str(intent.submission_id) not in station.wire_starts


@pytest.mark.prove
def test_a_worker_frozen_past_its_lease_sends_nothing_when_it_goes_on(database_url: str, tmp_path: Path) -> None:
    with world(database_url, tmp_path, len(FROZEN_AT), lease=LEASE_SECONDS) as farm:
        frozen = [farm.workers.worker(step, number=signal.SIGSTOP) for step in FROZEN_AT]
        eventually(lambda: len(set(owners(farm))) == len(owners(farm)) == len(FROZEN_AT), lambda: owners(farm))
        for station in farm.stations:
            farm.release(station)
        eventually(lambda: all(each.is_stopped for each in frozen), lambda: [each.marks for each in frozen])
        farm.clock.forward(FROZEN_SECONDS)
        farm.workers.worker()
        until_taken_over(farm, frozen)
        # One start may have been sent, for all that anybody else can know: nobody repeats it.
        eventually(lambda: sum(has_begun(farm, each) for each in farm.stations) == len(FROZEN_AT) - 1, farm.tell)
        for each in frozen:
            each.thaw()
        # Its own holder says that it never left, and whoever holds the printer now starts it; unless so much time has
        # passed that nobody knows, and a person has to say so.
        farm.drain()
        for each in frozen:
            assert_nothing_left_late(farm, each)
        assert farm.asked_person <= 1
        farm.check()


@pytest.mark.prove
def test_a_worker_frozen_in_the_transaction_that_arms_a_start_sends_nothing_when_it_goes_on(
    database_url: str, tmp_path: Path
) -> None:
    """It holds the printer's row, so nobody takes over meanwhile; but what it knew of the printer is too old then."""
    with world(database_url, tmp_path, 1, lease=LEASE_SECONDS) as farm:
        frozen = farm.workers.worker("publishing", number=signal.SIGSTOP)
        farm.release(farm.stations[0])
        eventually(lambda: frozen.is_stopped, lambda: frozen.marks)
        farm.clock.forward(FROZEN_SECONDS)
        other = farm.workers.worker()
        eventually(lambda: other.marks)
        frozen.thaw()
        farm.drain()
        assert_nothing_left_late(farm, frozen)
        farm.check()


@pytest.mark.prove
def test_on_postgresql_a_worker_frozen_in_a_transaction_holds_up_the_others_for_half_a_minute_at_most(
    database_url: str, tmp_path: Path
) -> None:
    if not database_url.startswith("postgresql"):
        pytest.skip("SQLite has no time limit for a transaction, and all its processes are on one computer")
    with world(database_url, tmp_path, 2, lease=LEASE_SECONDS) as farm:
        frozen = farm.workers.worker("publishing", number=signal.SIGSTOP)
        farm.release(farm.stations[0])
        eventually(lambda: frozen.is_stopped, lambda: frozen.marks)
        farm.workers.worker()
        eventually(lambda: has_begun(farm, farm.stations[0]), farm.tell)
        frozen.thaw()
        farm.release(farm.stations[1])
        farm.drain()
        assert_nothing_left_late(farm, frozen)
        farm.check()


def run_queues(farm: World) -> None:
    """The persons clear plates and end prints until every print has run."""

    def is_over() -> bool:
        shown = farm.look([each for station in farm.stations for each in station.prints])
        for station in farm.stations:
            own = [(each, shown[each]) for each in station.prints]
            running = next((each for each, it in own if it.status is PrintStatus.started), None)
            if running is not None and running != station.ended_at_printer and station.printer.machine.busy:
                farm.end_at_printer(station, running)
            elif running is None and any(it.waiting_reason == "plate not cleared" for _, it in own):
                farm.clear_plate(station)
        return all(it.status in ENDED_STATUSES for it in shown.values())

    eventually(is_over, farm.tell)


def ask_for_all(farm: World, prints_each: int, workers: int) -> None:
    """A hundred requests from eight threads for fewer prints, so that each is asked for again and again."""
    for _ in range(workers):
        farm.workers.worker()
    for station in farm.stations:
        farm.clear_plate(station)
        for _ in range(prints_each):
            farm.release(station, "queued")
        station.print_id = None
    prints = [each for station in farm.stations for each in station.prints]
    wanted = [prints[number % len(prints)] for number in range(REQUESTS)]
    Random(workers).shuffle(wanted)

    def ask(print_id: int) -> int:
        client = farm.app.test_client()
        headers = {"Authorization": f"Bearer {farm.farm.token}"}
        return client.post(f"/api/bambu/scheduled-prints/{print_id}/start", headers=headers).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(ask, wanted))
    # 409: it runs by now.
    assert answers <= {200, 409}, answers
    run_queues(farm)
    farm.check()
    real, at = datetime.now(UTC), farm.clock()
    with farm.app.app_context():
        published = {
            (intent.printer_id, str(intent.submission_id)): intent.published_at
            for intent in db.session.execute(sa.select(StartIntent)).scalars()
        }
    for station in farm.stations:
        for start in station.printer.starts:
            assert start.heard_at is not None
            arrived_at = at - (real - start.heard_at) * TIMES_FASTER
            late = arrived_at - published[station.printer_id, start.subtask_id]
            assert late <= PUBLISH_WITHIN, f"{start.subtask_id} came {late} after it was noted as sent"


@pytest.mark.parametrize("workers", [2, 4])
def test_a_hundred_requests_at_once_and_several_workers_start_each_print_once(
    database_url: str, tmp_path: Path, workers: int
) -> None:
    with world(database_url, tmp_path, 4) as farm:
        ask_for_all(farm, 2, workers)


@pytest.mark.prove
@pytest.mark.parametrize("workers", [2, 4])
def test_a_hundred_prints_asked_for_at_once(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    with world(database_url, tmp_path, 8) as farm:
        ask_for_all(farm, REQUESTS // 8, workers)
        with capsys.disabled():
            starts = sum(len(station.printer.starts) for station in farm.stations)
            print(
                f"\n{workers} workers, {REQUESTS} requests at once: {starts} prints, {starts} starts, 0 twice, 0 late"
            )


def kill_in_mid_print(farm: World, kills: int) -> None:
    """Workers die one after the other; some prints end while there is none."""
    for station in farm.stations:
        farm.release(station)
    for _ in range(kills):
        worker = farm.workers.worker()
        eventually(lambda: any(has_begun(farm, each) for each in farm.stations), farm.tell)
        time.sleep(farm.chance.uniform(0.0, 1.0))
        worker.kill()
        ending = farm.chance.choice(farm.stations)
        if farm.chance.random() < 0.4 and has_begun(farm, ending) and ending.printer.machine.busy:
            assert ending.print_id is not None
            farm.end_at_printer(ending, ending.print_id)
            farm.workers.worker().send(signal.SIGTERM)
            last = farm.workers.worker()
            eventually(lambda: farm.look([ending.print_id])[ending.print_id].status in ENDED_STATUSES, farm.tell)  # noqa: B023
            farm.release(ending)
            eventually(lambda: has_begun(farm, ending), farm.tell)  # noqa: B023
            last.kill()
    farm.workers.worker()
    farm.drain()
    farm.check()


def test_workers_killed_in_mid_print_change_nothing(database_url: str, tmp_path: Path) -> None:
    with world(database_url, tmp_path, 2, seed=3) as farm:
        kill_in_mid_print(farm, 5)


@pytest.mark.prove
def test_two_hundred_workers_killed_in_mid_print(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with world(database_url, tmp_path, 4, seed=4) as farm:
        kill_in_mid_print(farm, 200)
        with capsys.disabled():
            prints = sum(len(station.prints) for station in farm.stations)
            print(f"\n200 workers killed in mid-print: {prints} prints, 0 false events, filament booked once each")


def test_a_worker_told_to_stop_in_the_midst_of_starts_ends_in_time_and_starts_nothing_more(
    database_url: str, tmp_path: Path
) -> None:
    with world(database_url, tmp_path, 4, lease=600) as farm:
        # One whose file takes a second, and one whose storage never says that it has it.
        farm.stations[0].printer.faults.storage.bytes_per_second = 3000
        farm.stations[1].printer.faults.storage.closing_reply_after_seconds = 3600
        worker = farm.workers.worker()
        eventually(lambda: worker.marks and len(owners(farm)) == 4)
        for station in farm.stations:
            farm.release(station)
        eventually(lambda: worker.marks.count("uploading") >= 4, lambda: worker.marks)
        told_at = time.monotonic()
        worker.send(signal.SIGTERM)
        worker.wait(2 * ENDS_WITHIN_SECONDS)
        took = time.monotonic() - told_at
        assert worker.marks[-1] == "stopped", worker.marks
        assert took < ENDS_WITHIN_SECONDS
        # The signal itself takes a moment.
        assert not [word for word, at in worker.told if word in ("claiming", "publishing") and at > told_at + 0.2]
        with farm.app.app_context():
            left = set(db.session.execute(sa.select(StartIntent.state)).scalars())
        assert not left & set(SENDING_STATES) - {IntentState.published}, left
        farm.stations[0].printer.faults.storage.bytes_per_second = None
        farm.stations[1].printer.faults.storage.closing_reply_after_seconds = 0.0
        farm.workers.worker()
        farm.drain()
        farm.check()
