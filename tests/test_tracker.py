"""What a printer's reports mean for our prints: edges of identified prints, never a bare FINISH."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import ORMExecuteState

from bambu_client import Answer
from bambu_report import PrinterActivity, PrinterState
from farm import alerts, tracker
from models import (
    CommandKind,
    CommandState,
    Delivery,
    IntentState,
    PlateState,
    Printer,
    PrinterCommand,
    PrintEvent,
    ScheduledPrint,
    StartIntent,
    db,
)
from simulator import Plate, make_sliced_file
from tests.conftest import Clock
from tests.farm_builder import Farm
from tests.test_starter import Bench

OURS = "ours"
SETTLED = {"seconds": 2}


class Track:
    """A published start, and the printer's reports as the test tells them."""

    def __init__(self, farm: Farm, clock: Clock) -> None:
        self.follow(Bench(farm, clock))

    def follow(self, bench: Bench) -> None:
        bench.start()
        (order,) = bench.link.published
        self.bench, self.farm, self.clock = bench, bench.farm, bench.clock
        self.ours = str(order.submission_id)
        self.since: datetime | None = None
        self.last: PrinterActivity | None = None

    def hear(
        self,
        state: str,
        submission_id: str | None = OURS,
        *,
        is_whole: bool = True,
        told_whole_at: datetime | None = None,
        **fields: object,
    ) -> int | None:
        named = self.ours if submission_id == OURS else submission_id
        heard = PrinterState(known=True, state=PrinterActivity(state), submission_id=named)
        heard = replace(heard, **fields)  # type: ignore[arg-type]
        if heard.state is not self.last:
            self.last, self.since = heard.state, self.clock()
        assert self.since is not None
        with self.farm.database():
            printer = db.session.get_one(Printer, self.bench.printer_id)
            limits = self.farm.app.extensions["parts"].limits
            current = tracker.apply(
                printer,
                heard,
                in_state_since=self.since,
                told_whole_at=told_whole_at,
                is_whole=is_whole,
                now=self.clock(),
                limits=limits,
            )
            current_id = current.id if current is not None else None
            db.session.commit()
            return current_id

    @property
    def status(self) -> str:
        found = self.farm.get_print(self.bench.print_id)
        assert found is not None
        return str(found["status"])

    @property
    def failed_reason(self) -> str | None:
        found = self.farm.get_print(self.bench.print_id)
        assert found is not None
        return found["failed_reason"]

    def ended_at(self) -> datetime | None:
        with self.farm.database():
            return db.session.execute(sa.select(StartIntent.ended_at)).scalar_one()

    def kinds(self) -> list[str]:
        path = f"/api/bambu/scheduled-prints/{self.bench.print_id}/events"
        return [event["kind"] for event in self.farm.get(path).json]


@pytest.fixture
def track(farm: Farm, clock: Clock) -> Iterator[Track]:
    yield Track(farm, clock)


def test_a_print_is_started_when_its_own_id_is_reported_active(track: Track) -> None:
    assert track.hear("preparing") == track.bench.print_id
    assert track.status == "started"
    assert track.bench.intents() == [IntentState.confirmed]
    track.hear("printing", progress_percent=40)
    found = track.farm.get_print(track.bench.print_id)
    assert found is not None and found["progress_percent"] == 40


@pytest.mark.parametrize("submission_id", [None, "0", "99", "100002", "٣", "x" * 40, "-1"])
def test_another_id_starts_nothing_of_ours(track: Track, submission_id: str | None) -> None:
    assert track.hear("printing", submission_id) is None
    assert track.status == "scheduled"
    track.hear("finished", submission_id)
    assert track.status == "scheduled"


def test_an_old_finish_that_lags_behind_ends_nothing(track: Track) -> None:
    track.hear("finished", OURS, progress_percent=100)
    assert track.status == "scheduled"
    assert track.bench.intents() == [IntentState.published]
    track.hear("printing")
    assert track.status == "started"
    track.hear("finished")
    assert track.status == "started", "it may still be the old one"
    track.clock.forward(**SETTLED)
    track.hear("finished")
    assert track.status == "completed"


def test_a_finish_is_told_once_however_often_it_is_reported(track: Track) -> None:
    track.hear("printing")
    for _ in range(5):
        track.hear("finished")
        track.clock.forward(**SETTLED)
    assert track.kinds().count("print.completed") == 1
    spool = track.farm.get(f"/api/bambu/materials/{track.bench.printer_id}").json[0]
    assert spool["used_grams"] == 20


def test_a_print_that_ended_while_we_were_away_is_settled(track: Track) -> None:
    track.clock.forward(minutes=10)
    track.hear("finished")
    track.clock.forward(**SETTLED)
    track.hear("finished")
    assert track.status == "completed"
    assert track.kinds()[-2:] == ["print.started", "print.completed"]
    path = f"/api/bambu/scheduled-prints/{track.bench.print_id}/events"
    assert "not known" in track.farm.get(path).json[-2]["details"]["duration"]


def test_the_first_report_after_a_restart_announces_nothing_new(track: Track) -> None:
    track.hear("printing")
    before = track.kinds()
    track.last = None
    track.hear("printing")
    assert track.kinds() == before


@pytest.mark.parametrize("end", ["finished", "failed"])
def test_a_start_ends_with_its_print(track: Track, end: str) -> None:
    """In the same transaction: nothing else is asked before the printer's next start."""
    track.hear("printing")
    track.hear(end)
    track.clock.forward(seconds=10)
    assert track.ended_at() is None
    track.hear(end)
    assert track.status in ("completed", "failed") and track.ended_at() == track.clock()


def test_an_unknown_state_changes_nothing(track: Track) -> None:
    track.hear("printing")
    track.hear("finished", OURS, known=False)
    assert track.status == "started"


def test_a_failure_waits_for_its_reason_and_no_longer_than_ten_seconds(track: Track) -> None:
    track.hear("printing")
    track.hear("failed")
    assert track.status == "started"
    track.clock.forward(seconds=5)
    track.hear("failed", print_error="0300-400C", cancelled=True)
    assert (track.status, track.failed_reason) == ("failed", "stopped by a person at the printer")


def test_a_failure_without_a_reason_is_one_after_ten_seconds(track: Track) -> None:
    track.hear("printing")
    track.hear("failed")
    track.clock.forward(seconds=10)
    track.hear("failed")
    assert (track.status, track.failed_reason) == ("failed", "the printer reports a failure without a reason")


def test_what_a_person_recorded_first_stays(track: Track) -> None:
    track.hear("printing")
    with track.farm.database():
        track.bench.hear()
        db.session.commit()
    answer = track.farm.put(
        f"/api/bambu/scheduled-prints/{track.bench.print_id}", {"status": "failed", "failed_reason": "spaghetti"}
    )
    assert answer.status_code == 200, answer.text
    track.hear("finished")
    assert (track.status, track.failed_reason) == ("failed", "spaghetti")


@pytest.mark.parametrize(
    ("state", "plate"),
    [("printing", "occupied"), ("paused", "occupied"), ("idle", "clear"), ("finished", "occupied")],
)
def test_any_running_print_occupies_the_plate(track: Track, state: str, plate: str) -> None:
    track.bench.plate(PlateState.clear)
    track.hear(state, "77")
    shown = track.farm.get(f"/api/printers/{track.bench.printer_id}").json
    assert shown["plate_state"] == plate


def test_on_first_contact_the_plate_counts_as_occupied(track: Track) -> None:
    track.bench.plate(PlateState.unknown)
    track.hear("idle", None)
    assert track.farm.get(f"/api/printers/{track.bench.printer_id}").json["plate_state"] == "occupied"


def test_a_late_click_cannot_clear_the_next_print(track: Track) -> None:
    track.hear("printing")
    track.hear("finished")
    track.clock.forward(**SETTLED)
    track.hear("finished")
    path = f"/api/printers/{track.bench.printer_id}/plate-cleared"
    assert track.farm.post(path, {"print_id": None}).status_code == 409
    answer = track.farm.post(path, {"print_id": track.bench.print_id})
    assert (answer.status_code, answer.json["plate_state"]) == (200, "clear")


def test_a_running_plate_cannot_be_cleared(track: Track) -> None:
    track.hear("printing")
    path = f"/api/printers/{track.bench.printer_id}/plate-cleared"
    assert track.farm.post(path, {"print_id": track.bench.print_id}).status_code == 409


def test_an_explicit_refusal_fails_the_print_and_frees_printer_and_plate(track: Track) -> None:
    refused = Answer("project_file", "20001", False, "0500-4037", "fail", track.ours)
    with track.farm.database():
        printer = db.session.get_one(Printer, track.bench.printer_id)
        tracker.apply_answer(printer, refused, now=track.clock(), limits=track.farm.app.extensions["parts"].limits)
        db.session.commit()
    assert track.status == "failed"
    assert (track.failed_reason or "").startswith("refused by the printer")
    assert track.bench.intents() == [IntentState.refused]
    assert track.farm.get(f"/api/printers/{track.bench.printer_id}").json["plate_state"] == "clear"


@pytest.mark.parametrize("accepted", [True, None])
def test_an_acceptance_proves_nothing(track: Track, accepted: bool | None) -> None:
    with track.farm.database():
        printer = db.session.get_one(Printer, track.bench.printer_id)
        answer = Answer("project_file", "20001", accepted, None, None, track.ours)
        tracker.apply_answer(printer, answer, now=track.clock(), limits=track.farm.app.extensions["parts"].limits)
        db.session.commit()
    assert track.status == "scheduled"


CAME_TRUE: dict[CommandKind, tuple[str, str]] = {
    CommandKind.pause: ("printing", "paused"),
    CommandKind.resume: ("paused", "printing"),
    CommandKind.stop: ("printing", "failed"),
}


@pytest.mark.parametrize("kind", CAME_TRUE)
def test_a_command_is_done_when_the_report_shows_it(track: Track, kind: CommandKind) -> None:
    before, after = CAME_TRUE[kind]
    track.hear("printing")
    with track.farm.database():
        now = track.clock()
        db.session.add(
            PrinterCommand(
                user_id=track.farm.user["id"],
                printer_id=track.bench.printer_id,
                print_id=track.bench.print_id,
                kind=kind,
                state=CommandState.sent,
                requested_at=now,
                expires_at=now + timedelta(seconds=20),
            )
        )
        db.session.commit()
    track.hear(before)
    assert _command_state(track.farm) is CommandState.sent
    track.hear(after)
    assert _command_state(track.farm) is CommandState.done
    if kind is CommandKind.stop:
        assert (track.status, track.failed_reason) == ("failed", "stopped by a person")


def add_command(track: Track, kind: CommandKind, state: CommandState) -> None:
    with track.farm.database():
        now = track.clock()
        db.session.add(
            PrinterCommand(
                user_id=track.farm.user["id"],
                printer_id=track.bench.printer_id,
                print_id=None if kind is CommandKind.test else track.bench.print_id,
                kind=kind,
                state=state,
                requested_at=now,
                expires_at=now + timedelta(seconds=20),
            )
        )
        db.session.commit()


def test_a_test_of_the_connection_does_not_disturb_the_tracking(track: Track) -> None:
    add_command(track, CommandKind.test, CommandState.sent)
    track.hear("printing")
    assert track.status == "started"
    assert _command_state(track.farm) is CommandState.sent


def test_a_stop_of_an_earlier_run_does_not_explain_a_later_failure(track: Track) -> None:
    add_command(track, CommandKind.stop, CommandState.done)
    track.clock.forward(seconds=1)
    track.hear("printing")
    track.hear("failed")
    track.clock.forward(seconds=10)
    track.hear("failed")
    assert track.failed_reason == "the printer reports a failure without a reason"


def _command_state(farm: Farm) -> CommandState:
    with farm.database():
        return db.session.execute(sa.select(PrinterCommand.state)).scalar_one()


def test_a_worker_that_died_before_sending_leaves_the_print_to_the_next(farm: Farm, clock: Clock) -> None:
    bench = Bench(farm, clock)
    bench.start()
    bench.change(StartIntent, state=IntentState.uploading, published_at=None)
    with farm.database():
        tracker.withdraw_unsent([bench.printer_id], now=clock())
        db.session.commit()
    assert bench.intents() == [IntentState.withdrawn]
    bench.plate(PlateState.clear)
    assert bench.start() == bench.print_id


def events(farm: Farm) -> list[str]:
    with farm.database():
        return list(db.session.execute(sa.select(PrintEvent.kind).order_by(PrintEvent.id)).scalars())


def test_a_print_that_somebody_started_at_the_printer_is_recorded_once_and_never_touched(track: Track) -> None:
    before = events(track.farm)
    track.hear("preparing", "0", job_name="Benchy")
    track.clock.forward(minutes=1)
    track.hear("printing", "0", job_name="Benchy")
    track.hear("paused", "0", job_name="Benchy")
    assert events(track.farm)[len(before) :][:1] == ["printer.foreign_print_started"]
    track.hear("finished", "0", job_name="Benchy")
    track.hear("finished", "0", job_name="Benchy")
    told = [kind for kind in events(track.farm) if kind.startswith("printer.foreign")]
    assert told == ["printer.foreign_print_started", "printer.foreign_print_ended"]


def test_a_start_that_a_person_took_back_and_the_printer_begins_after_all_is_recorded_as_somebody_s(
    track: Track,
) -> None:
    track.clock.forward(minutes=3)
    with track.farm.database():
        tracker.watch_starts([track.bench.printer_id], now=track.clock())
        db.session.commit()
    assert track.bench.intents() == [IntentState.unknown]
    track.farm.move(track.bench.print_id, "queued")
    track.hear("printing", job_name="Vase")
    track.hear("printing", job_name="Vase")
    track.hear("finished", job_name="Vase")
    track.clock.forward(**SETTLED)
    track.hear("finished", job_name="Vase")
    assert track.status == "queued"
    told = [kind for kind in events(track.farm) if kind.startswith("printer.foreign")]
    assert told == ["printer.foreign_print_started", "printer.foreign_print_ended"]


def test_another_print_instead_of_ours_means_that_ours_did_not_start(track: Track) -> None:
    track.hear("printing", "77")
    assert track.status == "scheduled", "its id may still lag behind"
    track.clock.forward(seconds=10)
    track.hear("printing", "77")
    assert (track.status, track.failed_reason) == ("failed", "another print began at the printer instead")
    assert track.bench.intents() == [IntentState.not_started]


def test_a_printer_that_never_began_is_told_and_a_person_may_try_again(track: Track) -> None:
    track.hear("idle", "0")
    track.clock.forward(seconds=299)
    track.hear("idle", "0")
    assert track.status == "scheduled"
    track.clock.forward(seconds=2)
    track.hear("idle", "0")
    assert (track.status, track.failed_reason) == ("failed", "it was sent, but the printer never began it")
    assert track.bench.intents() == [IntentState.not_started]


def test_parts_of_a_report_do_not_prove_that_a_start_never_began(track: Track) -> None:
    """They tell of temperatures; the one that told of the beginning may have been lost."""
    sent_at = track.clock()
    track.hear("idle", "0")
    track.clock.forward(seconds=400)
    track.hear("idle", "0", told_whole_at=sent_at + timedelta(seconds=300))
    assert (track.status, track.bench.intents()) == ("scheduled", [IntentState.published])
    track.hear("idle", "0", told_whole_at=sent_at + timedelta(seconds=301))
    assert (track.status, track.bench.intents()) == ("failed", [IntentState.not_started])


def test_a_print_that_begins_in_a_part_of_a_report_is_nobody_s_until_the_whole_is_told(track: Track) -> None:
    track.hear("printing", "0", is_whole=False)
    track.clock.forward(seconds=20)
    track.hear("printing", "0", is_whole=False)
    assert track.status == "scheduled" and "printer.foreign_print_started" not in events(track.farm)
    track.hear("printing", is_whole=True)
    assert (track.status, track.bench.intents()) == ("started", [IntentState.confirmed])


def test_a_start_whose_print_a_person_ended_is_looked_at_once_more(track: Track) -> None:
    ids = [track.bench.printer_id]
    track.hear("printing")
    track.farm.move(track.bench.print_id, "failed", failed_reason="the power went")
    with track.farm.database():
        assert tracker.watch_starts(ids, now=track.clock()) == ([], {}, ids)
    track.hear("idle", "0")
    with track.farm.database():
        assert tracker.watch_starts(ids, now=track.clock()) == ([], {}, [])


@pytest.mark.parametrize(("state", "submission_id"), [("idle", None), ("idle", "0"), ("printing", "77")])
def test_power_loss_in_mid_print_needs_a_look_and_is_no_event_of_its_end(
    track: Track, state: str, submission_id: str | None
) -> None:
    track.hear("printing", progress_percent=40)
    track.hear(state, submission_id)
    track.clock.forward(seconds=10)
    for _ in range(3):
        track.hear(state, submission_id)
    found = track.farm.get_print(track.bench.print_id)
    assert found is not None
    assert (found["status"], track.kinds().count("print.needs_look")) == ("started", 1)
    assert "record it as completed or failed" in found["needs_look"]
    # It goes on after all: nothing needs a look any more.
    track.hear("printing", progress_percent=41)
    found = track.farm.get_print(track.bench.print_id)
    assert found is not None and found["needs_look"] is None


def delivered(track: Track) -> list[str]:
    with track.farm.database() as session:
        return [each["type"] for each in session.execute(sa.select(Delivery.payload).order_by(Delivery.id)).scalars()]


def test_that_a_print_needs_a_look_goes_out_at_once_and_once(track: Track) -> None:
    track.hear("printing")
    for _ in range(3):
        track.hear("idle", None)
        track.clock.forward(seconds=10)
    assert delivered(track) == ["print.started", "print.needs_look"]


def test_the_end_of_a_print_adds_its_time_to_the_printers_hours_once(track: Track) -> None:
    track.hear("printing")
    track.clock.forward(hours=2)
    for _ in range(3):
        track.hear("finished")
        track.clock.forward(**SETTLED)
    with track.farm.database():
        hours = db.session.get_one(Printer, track.bench.printer_id).hours_since_maintenance
    assert hours == 2
    assert delivered(track) == ["print.started", "print.completed"]


def test_a_start_that_is_not_confirmed_is_told_once_and_needs_nobody_when_it_is(track: Track) -> None:
    for _ in range(3):
        track.clock.forward(minutes=3)
        with track.farm.database():
            tracker.watch_starts([track.bench.printer_id], now=track.clock())
            db.session.commit()
    assert delivered(track) == ["print.needs_person"]
    track.hear("printing")
    assert delivered(track) == ["print.needs_person", "print.started"]
    track.clock.forward(hours=1)
    with track.farm.database():
        alerts.tell_lasting(at=track.clock())
        db.session.commit()
    assert delivered(track) == ["print.needs_person", "print.started"]


def test_what_needs_a_look_is_settled_by_a_person(track: Track) -> None:
    track.hear("printing")
    track.hear("idle", None)
    track.clock.forward(seconds=10)
    track.hear("idle", None)
    moved = track.farm.move(track.bench.print_id, "failed", failed_reason="the power went")
    assert (moved["status"], moved["needs_look"]) == ("failed", None)


def test_a_silent_printer_is_asked_once_for_a_full_report_and_judged_in_the_end(track: Track) -> None:
    ids = [track.bench.printer_id]
    with track.farm.database():
        judged_from = track.clock() + timedelta(seconds=300)
        assert tracker.watch_starts(ids, now=track.clock()) == ([], {}, [])
        track.clock.forward(seconds=31)
        assert tracker.watch_starts([ids[0] + 1], now=track.clock()) == ([], {}, [])
        assert tracker.watch_starts(ids, now=track.clock()) == (ids, {}, [])
        assert tracker.watch_starts(ids, now=track.clock()) == ([], {}, [])
        track.clock.forward(seconds=120)
        assert tracker.watch_starts(ids, now=track.clock()) == (ids, {}, []), "as it is shown as not confirmed"
        assert tracker.watch_starts(ids, now=track.clock()) == ([], {}, [])
        track.clock.forward(seconds=150)
        assert tracker.watch_starts(ids, now=track.clock()) == ([], {ids[0]: judged_from}, [])


@contextmanager
def settled_as_it_is_read(track: Track, state: IntentState) -> Iterator[None]:
    """Another thread or process ends the start after it was found here, and before its print is locked."""
    settled: list[ORMExecuteState] = []

    def settle(statement: ORMExecuteState) -> None:
        if settled or statement.bind_mapper is None or statement.bind_mapper.class_ is not ScheduledPrint:
            return
        settled.append(statement)
        with db.engine.connect() as connection:
            values = {"state": state, "reason": "settled", "ended_at": track.clock()}
            connection.execute(sa.update(StartIntent.__table__).values(**values))
            connection.commit()

    sa.event.listen(db.session, "do_orm_execute", settle)
    try:
        yield
    finally:
        sa.event.remove(db.session, "do_orm_execute", settle)
    assert settled


def _watched(track: Track) -> None:
    with track.farm.database():
        assert tracker.watch_starts([track.bench.printer_id], now=track.clock()) == ([], {}, [])
        db.session.commit()


def _answered(track: Track) -> None:
    with track.farm.database():
        printer = db.session.get_one(Printer, track.bench.printer_id)
        limits = track.farm.app.extensions["parts"].limits
        answer = Answer("project_file", "1", False, None, "no", track.ours)
        tracker.apply_answer(printer, answer, now=track.clock(), limits=limits)
        db.session.commit()


@pytest.mark.parametrize(
    ("forward", "tell"),
    [
        pytest.param(151, _watched, id="too long unconfirmed"),
        pytest.param(1, _answered, id="refused"),
        pytest.param(1, lambda track: track.hear("printing"), id="begun"),
        pytest.param(311, lambda track: track.hear("idle", "0"), id="never begun"),
    ],
)
def test_a_start_that_is_settled_in_the_same_moment_stays_as_it_was_settled(
    track: Track, forward: int, tell: Callable[[Track], object]
) -> None:
    """A computer that slept between the writing and the sending finds a start too late to send and too long unconfirmed
    at once; a person may say what happened as the printer does."""
    track.hear("idle", "0")
    track.clock.forward(seconds=forward)
    with settled_as_it_is_read(track, IntentState.not_started):
        tell(track)
    with track.farm.database():
        intent = db.session.execute(sa.select(StartIntent)).scalar_one()
        assert (intent.state, intent.reason) == (IntentState.not_started, "settled")
    assert track.status == "scheduled"


def test_the_grams_of_a_plate_of_several_filaments_go_to_the_spools_that_fed_it(farm: Farm, clock: Clock) -> None:
    bench = Bench(farm, clock)
    colors = (("PLA", "#FFFFFF", 12.0, 4.0), ("PETG", "#EEEEEE", 3.0, 1.0))
    file = farm.add_file(make_sliced_file(None, [Plate(minutes=30, filaments=colors)]))
    farm.add_material(bench.printer_id, slot=2, color="#EEEEEE", material_type="PETG")
    farm.delete(f"/api/bambu/scheduled-prints/{bench.print_id}")
    bench.print_id = farm.add_print(bench.printer_id, print_file_id=file["id"], status="scheduled")["id"]
    track = Track.__new__(Track)
    track.follow(bench)
    track.hear("printing")
    track.hear("finished")
    clock.forward(**SETTLED)
    track.hear("finished")
    used = {each["slot"]: each["used_grams"] for each in farm.get(f"/api/bambu/materials/{bench.printer_id}").json}
    assert used == {0: 12, 2: 3}
    found = farm.get_print(bench.print_id)
    assert found is not None and (found["used_grams"], found["material_cost"]) == (15, 0.3)
