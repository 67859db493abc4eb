"""What is wrong with a printer is told when it lasts, once while it comes and goes, and never by a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from bambu.errors import Fault, Severity
from bambu_client import LinkStatus
from bambu_files import UploadFailed
from bambu_report import PrinterActivity, Spool
from farm import alerts, starter
from farm.alerts import FLAP_WINDOW, OFFLINE_LASTS, WAIT_LASTS
from farm.faults import GONE_FOR
from farm.leases import Lease
from farm.moves import move_print
from farm.readiness import carry_out, look_over
from farm.spool_changes import SETTLES_IN
from farm.tracker import watch_starts
from models import (
    Delivery,
    IntentState,
    PlateState,
    Printer,
    PrinterAlert,
    PrintEvent,
    PrintStatus,
    ScheduledPrint,
    db,
)
from recorder import Recorder, Watched
from tests.conftest import Clock
from tests.farm_builder import Farm
from tests.rows import log_in_again
from tests.test_many_printers import statements
from tests.test_starter import IDLE, Bench

__all__ = ["statements"]

FATAL = Fault("0300-0100-0001-0007", Severity.fatal, "the bed does not heat", None)
SERIOUS = Fault("0700-2000-0002-0001", Severity.serious, "the AMS feeds nothing", None)
MILD = Fault("0500-0600-0003-0070", Severity.common, "clean the camera", None)
SPAGHETTI = "0300-8003"
SECOND = timedelta(seconds=1)


class Heard:
    """A printer's connection as a worker's recorder has it, told what the test tells."""

    def __init__(self, app: Flask, farm: Farm, clock: Clock) -> None:
        printer = farm.add_printer("Left", host="192.0.2.7", serial_number="01P00A000000001", access_code="12345678")
        self.app, self.farm, self.clock = app, farm, clock
        self.printer_id, self.connection_id = int(printer["id"]), int(printer["connection_id"])
        self.restart()

    def restart(self) -> None:
        """Another worker, or the same one anew: it knows what the rows tell."""
        self.recorder = Recorder(self.app)
        self.watched = Watched(
            connection_id=self.connection_id,
            printer_id=self.printer_id,
            version=1,
            lease=Lease("01P00A000000001", "test", 1),
        )

    def link(self, status: LinkStatus, reason: str | None = None) -> None:
        self.recorder.link_changed(self.watched, status, reason)

    def connect(self) -> None:
        self.link(LinkStatus.connected)
        self.hear()

    def hear(self, *faults: Fault, **changes: Any) -> None:
        self.recorder.heard(self.watched, replace(IDLE, faults=faults, **changes), self.clock())
        self.recorder.save_snapshots([self.watched])

    def wait(self, span: timedelta) -> None:
        self.clock.now += span
        self.look()

    def look(self) -> None:
        """The worker's regular looks."""
        self.recorder.settle([self.watched])
        self.recorder.tell_lasting()

    @property
    def events(self) -> list[PrintEvent]:
        return events_of(self.farm)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def events_of(farm: Farm) -> list[PrintEvent]:
    """Of alerts, oldest first."""
    with farm.database() as session:
        every = session.execute(sa.select(PrintEvent).order_by(PrintEvent.id)).scalars()
        found = [event for event in every if "alert" in event.details]
        session.expunge_all()
        return found


def payloads(farm: Farm) -> list[dict[str, Any]]:
    with farm.database() as session:
        return [
            each["data"] | {"type": each["type"]} for each in session.execute(sa.select(Delivery.payload)).scalars()
        ]


@pytest.fixture
def heard(app: Flask, farm: Farm, clock: Clock) -> Iterator[Heard]:
    made = Heard(app, farm, clock)
    made.connect()
    yield made


# A printer goes away and comes back


def test_a_printer_that_stays_away_is_told_and_so_is_that_it_is_back(heard: Heard) -> None:
    heard.wait(SECOND)
    went_at = heard.clock()
    heard.link(LinkStatus.offline, "no answer on port 8883")
    heard.wait(OFFLINE_LASTS - SECOND)
    assert heard.kinds == []
    heard.wait(SECOND)
    heard.wait(timedelta(hours=5))
    assert heard.kinds == ["printer.offline"]
    (told,) = heard.events
    assert told.reason == "no answer on port 8883"
    assert told.details["alert"] == {
        "key": "offline",
        "code": "offline",
        "text": "no answer on port 8883",
        "since": went_at.isoformat().replace("+00:00", "Z"),
        "times": 1,
    }
    (payload,) = payloads(heard.farm)
    assert (payload["type"], payload["alert"]) == ("printer.offline", told.details["alert"])
    heard.link(LinkStatus.connecting)
    assert heard.kinds == ["printer.offline"]
    heard.connect()
    assert heard.kinds == ["printer.offline", "printer.back"]


def test_a_short_absence_is_nobodys_business(heard: Heard) -> None:
    heard.link(LinkStatus.offline, "it is gone")
    heard.wait(OFFLINE_LASTS - SECOND)
    heard.connect()
    heard.wait(timedelta(hours=2))
    assert heard.kinds == []
    assert rows(heard.farm) == []


def test_a_link_that_flaps_tells_one_pair_in_a_window_and_counts_the_rest(heard: Heard) -> None:
    began = heard.clock()
    while heard.clock() - began < 3 * FLAP_WINDOW:
        heard.link(LinkStatus.offline, "it is gone")
        heard.wait(OFFLINE_LASTS + SECOND)
        heard.connect()
        heard.wait(timedelta(minutes=1))
    assert heard.kinds == ["printer.offline", "printer.back"] * 3
    assert [event.details["alert"]["times"] for event in heard.events if event.kind == "printer.offline"][0] == 1
    assert [event.details["alert"]["times"] for event in heard.events if event.kind == "printer.offline"][1] > 5


def test_one_that_flapped_and_then_stays_away_is_told_in_the_end(heard: Heard) -> None:
    heard.link(LinkStatus.offline, "it is gone")
    heard.wait(OFFLINE_LASTS)
    for _ in range(5):
        heard.connect()
        heard.link(LinkStatus.offline, "it is gone")
    heard.wait(FLAP_WINDOW - SECOND)
    assert heard.kinds == ["printer.offline", "printer.back"]
    heard.wait(2 * SECOND)
    heard.wait(timedelta(days=2))
    assert heard.kinds == ["printer.offline", "printer.back", "printer.offline"]


def test_a_restart_of_the_worker_announces_nothing(heard: Heard) -> None:
    for _ in range(5):
        heard.restart()
        heard.link(LinkStatus.connecting)
        heard.wait(timedelta(minutes=5))
        heard.connect()
    assert heard.kinds == []
    heard.link(LinkStatus.offline, "it is gone")
    heard.wait(OFFLINE_LASTS)
    for _ in range(5):
        heard.restart()
        heard.link(LinkStatus.connecting)
        heard.link(LinkStatus.offline, "it is still gone")
        heard.wait(timedelta(hours=1))
    assert heard.kinds == ["printer.offline"]


def test_what_only_a_person_can_mend_is_told_with_its_reason(app: Flask, farm: Farm, clock: Clock) -> None:
    never_heard = Heard(app, farm, clock)
    never_heard.link(LinkStatus.unauthorized, "the access code is wrong")
    never_heard.wait(OFFLINE_LASTS)
    (event,) = never_heard.events
    assert (event.kind, event.reason) == ("printer.offline", "the access code is wrong")
    assert event.details["alert"]["code"] == "unauthorized"


def test_a_printer_that_was_never_heard_has_not_gone_anywhere(app: Flask, farm: Farm, clock: Clock) -> None:
    never_heard = Heard(app, farm, clock)
    never_heard.link(LinkStatus.offline, "nothing answers there")
    never_heard.wait(timedelta(hours=1))
    assert never_heard.kinds == []


def test_one_whose_connection_was_removed_is_forgotten_in_silence(heard: Heard) -> None:
    heard.hear(FATAL)
    heard.link(LinkStatus.offline, "it is gone")
    assert heard.farm.delete(f"/api/printer-connections/{heard.connection_id}").status_code == 200
    heard.wait(OFFLINE_LASTS)
    assert heard.kinds == ["printer.fault"]
    assert rows(heard.farm) == []


def test_two_workers_that_look_at_once_tell_it_once(heard: Heard) -> None:
    heard.link(LinkStatus.offline, "it is gone")
    heard.clock.now += OFFLINE_LASTS
    other = Recorder(heard.app)
    heard.recorder.tell_lasting()
    other.tell_lasting()
    assert heard.kinds == ["printer.offline"]


def test_looking_for_what_lasts_takes_one_statement_when_nothing_does(heard: Heard, statements: list[str]) -> None:
    heard.hear(FATAL)
    heard.link(LinkStatus.offline, "it is gone")
    statements.clear()
    heard.recorder.tell_lasting()
    assert len([each for each in statements if each.startswith("SELECT")]) == len(statements) == 1


def rows(farm: Farm) -> list[str]:
    with farm.database() as session:
        return list(session.execute(sa.select(PrinterAlert.key).order_by(PrinterAlert.key)).scalars())


# A printer's faults


def test_a_fault_is_told_once_with_its_code_and_what_to_do(heard: Heard) -> None:
    heard.hear(FATAL, MILD)
    heard.wait(timedelta(minutes=10))
    heard.hear(FATAL, SERIOUS)
    heard.hear(FATAL, SERIOUS)
    assert [(event.kind, event.details["alert"]["code"]) for event in heard.events] == [
        ("printer.fault", FATAL.code),
        ("printer.fault", SERIOUS.code),
    ]
    assert heard.events[0].details["alert"]["key"] == f"hms:{FATAL.code}"
    assert heard.events[0].reason == heard.events[0].details["alert"]["text"] == "the bed does not heat"
    assert [payload["alert"]["code"] for payload in payloads(heard.farm)] == [FATAL.code, SERIOUS.code]


def test_a_fault_that_comes_and_goes_is_one_alert_and_asks_little_of_the_database(
    heard: Heard, statements: list[str]
) -> None:
    heard.hear(FATAL)
    statements.clear()
    for _ in range(100):
        for faults in ((), (FATAL,)):
            heard.clock.forward(seconds=5)
            heard.recorder.heard(heard.watched, replace(IDLE, faults=faults), heard.clock())
            heard.recorder.settle([heard.watched])
    writes = [each for each in statements if "alert" in each or "event" in each]
    assert writes == []
    assert heard.kinds == ["printer.fault"]


def test_one_that_comes_back_after_minutes_is_still_the_same(heard: Heard) -> None:
    for _ in range(20):
        heard.hear(FATAL)
        heard.wait(timedelta(minutes=5))
        heard.hear()
        heard.wait(GONE_FOR)
        heard.wait(timedelta(minutes=5))
    assert heard.kinds == ["printer.fault"]
    heard.wait(FLAP_WINDOW)
    assert heard.kinds == ["printer.fault", "printer.fault_cleared"]
    assert heard.events[-1].details["alert"]["times"] == 20
    assert len(payloads(heard.farm)) == 1, "that it is over is for those who look on"
    heard.hear(FATAL)
    assert heard.kinds[2:] == ["printer.fault"]
    assert heard.events[-1].details["alert"]["times"] == 1


def test_a_fault_that_was_told_is_not_told_again_after_a_restart(heard: Heard) -> None:
    heard.hear(FATAL)
    heard.restart()
    heard.connect()
    heard.restart()
    heard.hear(FATAL)
    heard.hear(FATAL, SERIOUS)
    assert heard.kinds == ["printer.fault", "printer.fault"]
    heard.restart()
    heard.wait(timedelta(hours=3))
    heard.hear(FATAL, SERIOUS)
    assert heard.kinds == ["printer.fault", "printer.fault"]


def test_one_that_was_mended_while_nobody_listened_is_over(heard: Heard) -> None:
    heard.hear(FATAL)
    heard.restart()
    heard.hear()
    heard.wait(GONE_FOR)
    heard.wait(FLAP_WINDOW)
    assert heard.kinds == ["printer.fault", "printer.fault_cleared"]
    assert rows(heard.farm) == []


def test_a_print_that_was_paused_with_an_error_is_told(heard: Heard) -> None:
    error = Fault(SPAGHETTI, Severity.serious, "failed extrusion was seen", None)
    heard.hear(error, state=PrinterActivity.printing, print_error=SPAGHETTI)
    assert heard.kinds == [], "it goes on printing"
    for _ in range(3):
        heard.hear(error, state=PrinterActivity.paused, print_error=SPAGHETTI)
    (event,) = heard.events
    assert event.details["alert"]["key"] == f"error:{SPAGHETTI}"
    assert (event.details["alert"]["code"], event.reason) == (SPAGHETTI, "failed extrusion was seen")


def test_what_healthy_printers_list_for_months_is_told_to_nobody(heard: Heard) -> None:
    heard.hear(MILD, print_error="0500-4003")
    heard.hear(MILD, state=PrinterActivity.finished, print_error="0500-4003")
    assert heard.kinds == []


def test_a_report_that_changes_nothing_asks_nothing_of_the_database(heard: Heard, statements: list[str]) -> None:
    heard.hear(FATAL, SERIOUS)
    statements.clear()
    for _ in range(10):
        heard.clock.forward(milliseconds=100)
        heard.recorder.heard(heard.watched, replace(IDLE, faults=(FATAL, SERIOUS)), heard.clock())
        heard.recorder.settle([heard.watched])
    assert [each for each in statements if "start_intents" not in each] == []


def test_a_fault_and_its_event_are_one_transaction(heard: Heard, app: Flask) -> None:
    def fail(*rest: Any) -> None:
        raise RuntimeError("the process is killed here")

    with app.app_context():
        sa.event.listen(db.session, "before_commit", fail)
    try:
        with pytest.raises(RuntimeError):
            heard.hear(FATAL)
    finally:
        sa.event.remove(db.session, "before_commit", fail)
        with app.app_context():
            db.session.rollback()
    assert heard.kinds == [] and rows(heard.farm) == []
    heard.hear(FATAL)
    assert heard.kinds == ["printer.fault"], "what was not written is told by the next report"


def test_an_absence_and_its_event_are_one_transaction(heard: Heard) -> None:
    heard.link(LinkStatus.offline, "it is gone")
    heard.clock.now += OFFLINE_LASTS
    with heard.farm.database() as session:
        assert alerts.tell_lasting(at=heard.clock()) == 1
        assert session.execute(sa.select(sa.func.count(PrintEvent.id))).scalar_one() == 1
        session.rollback()
    assert heard.kinds == []
    heard.look()
    assert heard.kinds == ["printer.offline"]


# Spools that somebody swaps at the printer


def sees(heard: Heard, *spools: Spool) -> None:
    heard.hear(spools=spools)


WHITE = Spool(0, 0, 0, True, "PLA", "#FFFFFF", remaining_pct=80)
EMPTY = Spool(0, 0, 0, False)


def swaps(heard: Heard) -> list[PrintEvent]:
    with heard.farm.database() as session:
        found = list(
            session.execute(
                sa.select(PrintEvent).where(PrintEvent.kind == "material.changed", PrintEvent.reason != "loaded")
            ).scalars()
        )
        session.expunge_all()
        return found


def test_a_spool_that_was_swapped_is_told_once_the_hands_are_off(heard: Heard) -> None:
    material = heard.farm.add_material(heard.printer_id, slot=0, color="#FFFFFF")
    heard.farm.put(f"/api/bambu/notifications/{heard.printer_id}", {"notify_material_change": True})
    sees(heard, WHITE)
    heard.wait(SETTLES_IN)
    sees(heard, EMPTY)
    heard.wait(SETTLES_IN - SECOND)
    sees(heard, replace(WHITE, material_type=None, color=None))
    heard.wait(SETTLES_IN - SECOND)
    sees(heard, replace(WHITE, material_type="PETG", color="#FF0000"))
    heard.wait(SETTLES_IN - SECOND)
    assert swaps(heard) == []
    heard.wait(SECOND)
    heard.wait(timedelta(hours=1))
    (event,) = swaps(heard)
    assert event.reason == "the printer sees another spool in slot 0: PETG red"
    assert event.material_id == material["id"]
    (payload,) = payloads(heard.farm)
    assert payload["material"]["material_type"] == "PETG" and payload["material"]["slot"] == 0
    assert payload["material"]["remaining_grams"] is None
    log_in_again(heard.farm)
    (kept,) = heard.farm.get(f"/api/bambu/materials/{heard.printer_id}").json
    assert kept["material_type"] == "PLA", "the ledger is a person's"


def test_a_spool_that_was_taken_out_is_told_also_where_none_was_entered(heard: Heard) -> None:
    sees(heard, WHITE)
    heard.wait(SETTLES_IN)
    sees(heard, EMPTY)
    heard.wait(SETTLES_IN)
    sees(heard, WHITE)
    heard.wait(SETTLES_IN)
    assert [(event.reason, event.material_id) for event in swaps(heard)] == [
        ("the printer sees no spool in slot 0 any more", None),
        ("the printer sees another spool in slot 0: PLA white", None),
    ]


def test_what_is_left_what_is_read_late_and_what_is_not_listed_is_no_other_spool(heard: Heard) -> None:
    for seen in (
        [replace(WHITE, material_type=None, color=None)],
        [WHITE],
        [replace(WHITE, remaining_pct=20)],
        [replace(WHITE, color=None, spool_uuid="A" * 32)],
        [],
        [WHITE],
        [WHITE, Spool(1, 0, 4, True, "ABS", "#000000")],
    ):
        sees(heard, *seen)
        heard.wait(2 * SETTLES_IN)
    assert swaps(heard) == []


def test_spools_are_not_told_by_a_restart_but_what_was_swapped_meanwhile_is(heard: Heard) -> None:
    sees(heard, WHITE)
    heard.wait(SETTLES_IN)
    for _ in range(3):
        heard.restart()
        sees(heard, WHITE)
        heard.wait(2 * SETTLES_IN)
    assert swaps(heard) == []
    heard.restart()
    sees(heard, replace(WHITE, color="#000000"))
    heard.wait(SETTLES_IN)
    assert [event.reason for event in swaps(heard)] == ["the printer sees another spool in slot 0: PLA black"]


# A start needs a person


@pytest.fixture
def bench(farm: Farm, clock: Clock) -> Iterator[Bench]:
    yield Bench(farm, clock)


def needs(bench: Bench) -> list[tuple[int | None, str]]:
    """(print, what it waits for) of each event."""
    found = [event for event in events_of(bench.farm) if event.kind == "print.needs_person"]
    return [(event.print_id, event.details["alert"]["code"]) for event in found]


def pass_time(bench: Bench, span: timedelta) -> None:
    bench.clock.now += span
    with bench.farm.database() as session:
        bench.hear()
        alerts.tell_lasting(at=bench.clock())
        session.commit()


NEEDED: dict[str, tuple[Callable[[Bench], None], str, str]] = {
    "other model": (lambda b: b.sliced_for("A1 mini"), "model", "sliced for a A1 mini"),
    "other nozzle": (lambda b: b.plate_says(nozzle_diameters_mm=[0.8]), "nozzle", "0.8 mm nozzle"),
    "no filament": (
        lambda b: b.farm.delete(f"/api/bambu/materials/{b.material['id']}") and None,
        "filament",
        "PLA",
    ),
    "developer mode": (
        lambda b: setattr(b.link, "state", replace(IDLE, developer_mode=False)),
        "control",
        "Developer Mode",
    ),
    "no storage": (lambda b: setattr(b.link, "state", replace(IDLE, storage=None)), "storage", "storage"),
    "missed": (lambda b: miss(b), "missed", "was missed"),
}


def miss(bench: Bench) -> None:
    start = bench.clock() - timedelta(days=2)
    bench.farm.put(f"/api/printers/{bench.printer_id}", {"auto_start": True})
    bench.change(ScheduledPrint, scheduled_start=start, status=PrintStatus.queued)


@pytest.mark.parametrize("case", NEEDED)
def test_a_start_that_needs_a_person_is_told_at_once_and_once(bench: Bench, case: str) -> None:
    arrange, lock, said = NEEDED[case]
    arrange(bench)
    for _ in range(3):
        assert bench.start() is None
    assert needs(bench) == [(bench.print_id, lock)]
    (payload,) = [each for each in payloads(bench.farm) if each["type"] == "print.needs_person"]
    assert said in payload["reason"] and payload["print"]["id"] == bench.print_id
    pass_time(bench, timedelta(hours=2))
    bench.start()
    assert needs(bench) == [(bench.print_id, lock)]


NOT_NEEDED: dict[str, Callable[[Bench], None]] = {
    "ready": lambda b: None,
    "busy": lambda b: setattr(b.link, "state", replace(IDLE, state=PrinterActivity.printing)),
    "held by a person": lambda b: b.change(ScheduledPrint, held_at=b.clock()),
    "not due": lambda b: b.change(ScheduledPrint, scheduled_start=b.clock() + timedelta(days=1)),
    "not released": lambda b: b.change(ScheduledPrint, status=PrintStatus.queued),
    "queue paused": lambda b: b.farm.post(f"/api/printers/{b.printer_id}/pause-queue") and None,
    "a fault, told as such": lambda b: setattr(b.link, "state", replace(IDLE, faults=(FATAL,))),
}


@pytest.mark.parametrize("case", NOT_NEEDED)
def test_a_print_that_waits_for_nobody_in_particular_tells_nothing(bench: Bench, case: str) -> None:
    if case != "ready":
        bench.sliced_for("A1 mini")
    if case.startswith("a fault"):
        bench.sliced_for("P1S")
    NOT_NEEDED[case](bench)
    bench.start()
    pass_time(bench, timedelta(hours=1))
    assert needs(bench) == []


def test_words_that_change_only_in_numbers_are_not_told_again(bench: Bench) -> None:
    bench.plate_says(nozzle_diameters_mm=[0.8])
    bench.start()
    bench.plate_says(nozzle_diameters_mm=[0.6])
    bench.start()
    assert "0.6 mm" in (bench.reason or "")
    assert needs(bench) == [(bench.print_id, "nozzle")]


def test_another_kind_of_reason_is_told_too(bench: Bench) -> None:
    bench.plate_says(nozzle_diameters_mm=[0.8])
    bench.start()
    bench.sliced_for("A1 mini")
    bench.start()
    assert needs(bench) == [(bench.print_id, "nozzle"), (bench.print_id, "model")]
    bench.sliced_for("P1S")
    bench.start()
    assert needs(bench) == [(bench.print_id, "nozzle"), (bench.print_id, "model")], "it still waits for the nozzle"


def never_sent(bench: Bench) -> None:
    """So that a print that is ready goes on waiting."""
    bench.storage.fail = UploadFailed("not just now", retry=True)


def test_what_was_settled_and_comes_again_later_is_told_again(bench: Bench) -> None:
    never_sent(bench)
    for _ in range(2):
        bench.sliced_for("A1 mini")
        bench.start()
        bench.sliced_for("P1S")
        bench.start()
        pass_time(bench, FLAP_WINDOW)
    assert needs(bench) == [(bench.print_id, "model")] * 2


def test_what_flickers_is_told_once_in_a_window_and_in_the_end(bench: Bench) -> None:
    never_sent(bench)
    for _ in range(10):
        for model in ("A1 mini", "P1S"):
            bench.sliced_for(model)
            bench.start()
            pass_time(bench, timedelta(seconds=10))
    assert needs(bench) == [(bench.print_id, "model")]
    bench.sliced_for("A1 mini")
    bench.start()
    pass_time(bench, FLAP_WINDOW)
    assert needs(bench) == [(bench.print_id, "model")] * 2


def test_a_long_queue_tells_of_its_head_only(bench: Bench) -> None:
    bench.sliced_for("A1 mini")
    more = [
        bench.farm.add_print(bench.printer_id, print_file_id=bench.file["id"], status="scheduled")["id"]
        for _ in range(50)
    ]
    bench.start()
    pass_time(bench, timedelta(hours=1))
    bench.start()
    assert needs(bench) == [(bench.print_id, "model")]
    log_in_again(bench.farm)
    assert bench.farm.delete(f"/api/bambu/scheduled-prints/{bench.print_id}").status_code == 200
    bench.start()
    assert needs(bench) == [(bench.print_id, "model"), (more[0], "model")]


def test_of_a_print_behind_one_that_starts_nothing_is_told_yet(bench: Bench) -> None:
    stuck = bench.farm.add_print(
        bench.printer_id, print_file_id=bench.file["id"], status="scheduled", nozzle_temp=150, material_slot=3
    )["id"]
    bench.start()
    assert len(bench.link.published) == 1
    assert needs(bench) == []
    found = bench.farm.get_print(stuck)
    assert found is not None and found["waiting_reason"]


def test_a_plate_is_cleared_by_somebody_as_always_and_told_only_when_nobody_does(bench: Bench) -> None:
    bench.plate(PlateState.occupied)
    bench.start()
    pass_time(bench, WAIT_LASTS - SECOND)
    assert needs(bench) == []
    bench.plate(PlateState.clear)
    never_sent(bench)
    bench.start()
    pass_time(bench, SECOND)
    assert needs(bench) == []
    bench.plate(PlateState.occupied)
    bench.start()
    pass_time(bench, WAIT_LASTS)
    pass_time(bench, timedelta(hours=2))
    assert needs(bench) == [(bench.print_id, "plate")]
    (payload,) = [each for each in payloads(bench.farm) if each["type"] == "print.needs_person"]
    assert payload["reason"] == "plate not cleared"


def test_while_it_prints_something_else_nobody_is_asked_to_clear_the_plate(bench: Bench) -> None:
    bench.plate(PlateState.occupied)
    bench.start()
    bench.link.state = replace(IDLE, state=PrinterActivity.printing)
    bench.start()
    pass_time(bench, timedelta(hours=1))
    assert needs(bench) == []


def test_a_print_that_began_meanwhile_needs_nobody(bench: Bench) -> None:
    bench.plate(PlateState.occupied)
    bench.start()
    bench.change(ScheduledPrint, status=PrintStatus.started, started_at=bench.clock())
    pass_time(bench, timedelta(hours=1))
    assert needs(bench) == []
    with bench.farm.database() as session:
        assert session.execute(sa.select(PrinterAlert)).scalars().all() == []


def test_a_file_that_cannot_be_sent_for_minutes_is_told_with_its_reason(bench: Bench) -> None:
    bench.storage.fail = UploadFailed("the stick is full", retry=True)
    bench.start()
    bench.deferred[bench.print_id] = "the file could not be sent"
    bench.start()
    pass_time(bench, WAIT_LASTS - SECOND)
    assert needs(bench) == []
    # Tried again in between, as the worker does.
    bench.deferred.clear()
    bench.start()
    bench.deferred[bench.print_id] = "the file could not be sent"
    bench.start()
    pass_time(bench, SECOND)
    assert needs(bench) == [(bench.print_id, "unsent")]
    assert "the stick is full" in (events_of(bench.farm)[-1].reason or "")


def test_one_that_waits_for_something_else_by_now_is_not_told_as_unsent(bench: Bench) -> None:
    bench.deferred[bench.print_id] = "the file could not be sent"
    bench.start()
    bench.sliced_for("A1 mini")
    bench.start()
    pass_time(bench, WAIT_LASTS)
    assert needs(bench) == [(bench.print_id, "model")]


def test_a_start_that_the_printer_does_not_confirm_is_told_at_once(bench: Bench) -> None:
    bench.start()
    bench.clock.forward(minutes=3)
    for _ in range(3):
        with bench.farm.database() as session:
            watch_starts([bench.printer_id], now=bench.clock())
            session.commit()
        bench.start()
    assert bench.intents() == [IntentState.unknown]
    assert needs(bench) == [(bench.print_id, "unconfirmed")]
    with bench.farm.database() as session:
        (alert,) = session.execute(sa.select(PrinterAlert)).scalars()
        assert alert.cleared_at is None, "it is not settled by looking at the queue"
    assert "look at the printer" in (events_of(bench.farm)[-1].reason or "")


def test_a_wait_and_its_event_are_written_with_the_reason(bench: Bench) -> None:
    bench.sliced_for("A1 mini")
    rules = starter.StartRules.from_settings(bench.farm.app.extensions["parts"].settings)
    with bench.farm.database() as session:
        seen = look_over(
            session.get_one(Printer, bench.printer_id),
            IDLE,
            in_state_since=bench.link.in_state_since,
            now=bench.clock(),
            missed_window=rules.missed_window,
            limits=rules.limits,
        )
        carry_out(seen, now=bench.clock(), limits=rules.limits)
        told = session.execute(sa.select(PrintEvent.kind).where(PrintEvent.kind == "print.needs_person")).all()
        assert len(told) == 1
        # The process dies here.
        session.rollback()
    assert needs(bench) == [] and rows(bench.farm) == []
    assert "sliced for" not in (bench.reason or "")
    bench.start()
    assert needs(bench) == [(bench.print_id, "model")]
    assert "sliced for" in (bench.reason or "")


def test_each_ended_print_has_one_event_however_often_it_waited(bench: Bench, clock: Clock) -> None:
    bench.plate(PlateState.occupied)
    bench.start()
    pass_time(bench, WAIT_LASTS)
    with bench.farm.database() as session:
        waiting = session.get_one(ScheduledPrint, bench.print_id)
        limits = bench.farm.app.extensions["parts"].limits
        for status in (PrintStatus.started, PrintStatus.completed, PrintStatus.completed):
            move_print(waiting, status, at=clock(), limits=limits)
        session.commit()
        kinds = list(session.execute(sa.select(PrintEvent.kind).order_by(PrintEvent.id)).scalars())
    assert kinds.count("print.completed") == 1
    assert kinds.count("print.needs_person") == 1
