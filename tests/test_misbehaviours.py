"""Each way in which a printer misbehaves around a start or a print, and what a person finds afterwards.

In all of them: at most one order to start for each start, nothing said of a print that did not happen to it, nobody
else's print touched, and our file gone from the printer as soon as it is certain that no print needs it.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from models import IntentState
from simulator import Spool, StorageFaults
from simulator.faults import Faults
from tests.conftest import fresh_database
from tests.misbehaving import GRAMS, LONG_PATIENCE_SECONDS, RED, WHITE, Floor, Hall, eventually, hall

pytestmark = pytest.mark.database


def in_full(*values: Any) -> Any:
    """A case of the long form: what it may find, another one of the short form finds too in most cases."""
    return pytest.param(*values, marks=pytest.mark.prove)


UNCONFIRMED = "does not confirm it: look at the printer"
NEVER_BEGAN = "it was sent, but the printer never began it"
BUSY, UNREADABLE, NO_CARD, SPAGHETTI = 0x05004004, 0x05004003, 0x0500400C, 0x03008003
WRITTEN = {IntentState.published, IntentState.not_started}
HOT_BED = (0x03000100, 0x00010007)


@pytest.fixture(scope="module")
def plant(
    request: pytest.FixtureRequest, database_name: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hall]:
    folder = tmp_path_factory.mktemp("misbehaviours")
    with ExitStack() as stack:
        url = f"sqlite:///{folder / 'farm.sqlite3'}"
        if request.config.getoption("--postgresql"):
            url = stack.enter_context(fresh_database(f"{database_name}_misbehaviours"))
        yield stack.enter_context(hall(url, folder / "data"))


@pytest.fixture
def floor(plant: Hall) -> Iterator[Floor]:
    with plant.floor() as made:
        yield made


def once(*kinds: str) -> Counter[str]:
    return Counter(kinds)


# An order that is accepted, and then nothing, or much later.


def test_an_old_finish_that_lags_three_minutes_behind_is_no_end_of_the_new_print(floor: Floor) -> None:
    floor.release()
    floor.finish()
    floor.printer.faults.lag_finish_seconds = 3600
    floor.release()
    floor.until_sent(2)
    floor.skip(140)
    assert floor.stays()["status"] == "scheduled"
    floor.skip(20)
    floor.until("scheduled", UNCONFIRMED)
    floor.printer.advance(3600)
    done = floor.finish()
    assert done["used_grams"] == GRAMS
    assert floor.events() == Counter({"print.started": 2, "print.completed": 2})
    assert floor.verdicts() == ["accepted", "accepted"]
    floor.until_file_is_gone()


@pytest.mark.parametrize("shows", ["idle", "finished", in_full("failed")])
def test_a_start_that_is_accepted_and_never_begun_waits_for_a_person_s_word(floor: Floor, shows: str) -> None:
    """Its state is that of the print before, under the name of ours: no end of ours, and no reason to repeat it."""
    if shows != "idle":
        floor.release()
        floor.until("started")
        eventually(lambda: floor.machine.busy)
        if shows == "finished":
            floor.finish()
        else:
            floor.printer.fail(SPAGHETTI)
            floor.until("failed", "0300-8003")
        floor.until_file_is_gone()
    before, sent = floor.events(), len(floor.printer.starts)
    floor.printer.faults.accept_and_never_start = True
    floor.release()
    floor.until_sent(sent + 1)
    floor.skip(151)
    floor.until("scheduled", UNCONFIRMED)
    floor.skip(151)
    shown = floor.stays(1.0)
    assert (shown["status"], UNCONFIRMED in (shown["waiting_reason"] or "")) == ("scheduled", True), shown
    assert floor.events() == before
    assert len(floor.files_of_ours()) == 1, "it may begin yet"
    assert floor.verdicts()[-1:] == ["accepted"]
    floor.record("queued")
    floor.until_file_is_gone()
    assert len(floor.printer.starts) == sent + 1


def test_a_start_that_was_lost_in_silence_fails_after_five_minutes_and_is_not_repeated(floor: Floor) -> None:
    floor.printer.faults.silent_refusal = True
    floor.release()
    floor.until_sent()
    floor.skip(151)
    floor.until("scheduled", UNCONFIRMED)
    assert len(floor.files_of_ours()) == 1
    floor.skip(151)
    floor.until("failed", NEVER_BEGAN)
    floor.until_file_is_gone()
    assert floor.events() == once("print.failed")
    assert floor.verdicts() == ["ignored"]


def test_a_start_that_is_accepted_and_then_taken_back_waits_for_a_person_s_word(
    floor: Floor,
) -> None:
    floor.printer.faults.refuse_after_ack = UNREADABLE
    floor.release()
    floor.until_sent()
    floor.skip(151)
    floor.until("scheduled", UNCONFIRMED)
    floor.record("queued")
    floor.until_file_is_gone()
    assert floor.events() == Counter() and floor.verdicts() == ["accepted"]


def test_a_computer_that_sleeps_between_the_writing_and_the_sending_sends_nothing_and_begins_anew(floor: Floor) -> None:
    """As it wakes, the start is too late to send and too long unconfirmed at once."""
    floor.strike_at("published", lambda: floor.hall.clock.skip(600))
    floor.release()
    floor.finish()
    assert floor.intents() == [IntentState.not_started, IntentState.confirmed]
    assert (floor.events(), floor.verdicts()) == (once("print.started", "print.completed"), ["accepted"])


# The line, within a start.


def drop(floor: Floor) -> None:
    floor.printer.faults.drop_connection()


def break_off(floor: Floor) -> None:
    floor.printer.faults.break_off()


def babble(floor: Floor) -> None:
    floor.printer.faults.babble()


def abandon(floor: Floor) -> None:
    floor.printer.faults.abandon_connections()


LINES: dict[str, Callable[[Floor], None]] = {
    "dropped": drop,
    "broken off in a packet": break_off,
    "noise": babble,
    "half-open": abandon,
}


@pytest.mark.parametrize("step", [in_full("armed"), "published", in_full("sent")])
@pytest.mark.parametrize("line", [in_full("dropped"), in_full("broken off in a packet"), "noise", "half-open"])
def test_a_line_that_breaks_within_a_start_costs_no_print_and_doubles_none(floor: Floor, line: str, step: str) -> None:
    """Whether the order was sent may be known or not: it is given again only if it provably was not. One that was lost
    on the way fails after five minutes, and a person says what now."""
    floor.strike_at(step, lambda: LINES[line](floor))
    floor.release()
    eventually(lambda: floor.printer.starts or not WRITTEN.isdisjoint(floor.intents()), floor.tell)
    time.sleep(0.5)
    if not floor.printer.starts and floor.intents()[-1] is IntentState.published:
        floor.skip(302)
    eventually(lambda: floor.shown()["status"] in ("started", "failed"), floor.tell)
    if floor.printer.starts:
        floor.finish()
        assert (floor.events(), floor.verdicts()) == (once("print.started", "print.completed"), ["accepted"])
    else:
        floor.until("failed", NEVER_BEGAN)
        floor.until_file_is_gone()
        assert floor.events() == once("print.failed") and floor.printer.starts == []


def test_an_order_that_lay_in_a_black_hole_begins_late_and_is_still_ours(floor: Floor) -> None:
    def swallow() -> None:
        floor.printer.faults.black_hole = True

    floor.strike_at("published", swallow)
    floor.release()
    eventually(lambda: not WRITTEN.isdisjoint(floor.intents()), floor.tell)
    time.sleep(0.5)
    if floor.intents() == [IntentState.published]:
        floor.hall.clock.skip(151)
        floor.until("scheduled", UNCONFIRMED)
        floor.hall.clock.skip(600)
        shown = floor.stays()
        assert (shown["status"], len(floor.files_of_ours())) == ("scheduled", 1), "nobody has heard the printer since"
    # Else it was too late to send it, on a machine that had much to do.
    floor.printer.faults.black_hole = False
    floor.finish()
    assert (floor.events(), floor.verdicts()) == (once("print.started", "print.completed"), ["accepted"])


def test_parts_of_reports_do_not_prove_that_a_print_never_began(floor: Floor) -> None:
    """The report that told of the beginning was lost, and every whole one since; those that come tell of temperatures
    alone. Its file must stay, and it is no failure."""

    def lose() -> None:
        floor.printer.faults.lose_reports, floor.printer.faults.full_report_delay_seconds = 1.0, math.inf

    floor.strike_at("sent", lose)
    floor.release()
    eventually(lambda: floor.machine.state == "PREPARE", floor.tell)
    floor.printer.faults.lose_reports = 0.0
    floor.skip(151)
    floor.until("scheduled", UNCONFIRMED)
    for _ in range(3):
        floor.skip(302)
        shown = floor.stays()
        assert (shown["status"], len(floor.files_of_ours())) == ("scheduled", 1), shown
    floor.printer.faults.full_report_delay_seconds = 0.0
    floor.skip(302)
    floor.finish()
    assert (floor.events(), floor.verdicts()) == (once("print.started", "print.completed"), ["accepted"])


# Refusals.


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (UNREADABLE, "slice it again"),
        in_full(BUSY, "busy with another print"),
        in_full(NO_CARD, "no memory card"),
    ],
)
def test_a_refused_start_fails_and_says_what_to_do(floor: Floor, code: int, words: str) -> None:
    floor.printer.faults.refuse_start = code
    floor.release()
    floor.until("failed", "refused by the printer: ")
    assert words in floor.shown()["failed_reason"]
    floor.until_file_is_gone()
    assert (floor.events(), floor.verdicts()) == (once("print.failed"), ["refused"])


def test_without_developer_mode_nothing_is_sent_and_the_reason_says_what_to_switch_on(plant: Hall) -> None:
    with plant.floor("X1C", developer_mode=False) as floor:
        floor.release()
        floor.until("scheduled", "switch on Developer Mode")
        assert floor.stays()["status"] == "scheduled"
        assert floor.printer.starts == [] and floor.files_of_ours() == []
        floor.machine.developer_mode = True
        floor.finish()
        assert floor.verdicts() == ["accepted"]


@pytest.mark.parametrize("answer", [None, "bare echo", in_full("silence")])
def test_a_model_that_does_not_tell_its_developer_mode_is_asked_once(plant: Hall, answer: str | None) -> None:
    with plant.floor("P1S", developer_mode=False) as floor:
        floor.printer.faults.unsigned_answer = answer  # type: ignore[assignment]
        floor.release()
        floor.until_sent()
        if answer is None:
            floor.until("failed", "switch on LAN Only and then Developer Mode")
        else:
            floor.skip(151)
            floor.until("scheduled", UNCONFIRMED)
            floor.skip(151)
            floor.until("failed", NEVER_BEGAN)
        floor.until_file_is_gone()
        assert (floor.events(), floor.verdicts()) == (once("print.failed"), ["refused"])


# Answers that are lost, doubled or late.


@pytest.mark.parametrize("fault", ["lose_acks", "duplicate_acks"])
def test_answers_that_are_lost_or_doubled_change_nothing(floor: Floor, fault: str) -> None:
    setattr(floor.printer.faults, fault, True)
    floor.release()
    floor.finish()
    assert (floor.events(), floor.verdicts()) == (once("print.started", "print.completed"), ["accepted"])


def test_a_refusal_that_is_told_twice_is_one_failure(floor: Floor) -> None:
    floor.printer.faults.duplicate_acks, floor.printer.faults.refuse_start = True, UNREADABLE
    floor.release()
    floor.until("failed", "refused by the printer: ")
    floor.stays()
    assert floor.events() == once("print.failed")


@pytest.mark.parametrize("passed", [151, in_full(302)])
def test_a_refusal_that_comes_late_is_one_failure(floor: Floor, passed: int) -> None:
    floor.printer.faults.ack_delay_seconds, floor.printer.faults.refuse_start = 3600, UNREADABLE
    floor.release()
    floor.until_sent()
    floor.skip(151)
    floor.until("scheduled", UNCONFIRMED)
    if passed > 151:
        floor.skip(passed - 151)
        floor.until("failed", NEVER_BEGAN)
    floor.printer.advance(3600)
    floor.until("failed", "refused by the printer: " if passed == 151 else NEVER_BEGAN)
    floor.until_file_is_gone()
    assert floor.stays()["status"] == "failed"
    assert (floor.events(), floor.verdicts()) == (once("print.failed"), ["refused"])


# Somebody at the printer.


@pytest.mark.parametrize("cancels", [False, True])
def test_a_start_that_meets_a_print_begun_at_the_last_moment_fails_and_touches_nothing(
    floor: Floor, cancels: bool
) -> None:
    """The moment between the last report and the order: an A1 mini cancels its print at the mere asking."""
    floor.printer.faults.busy_start_cancels = cancels
    floor.strike_at("published", lambda: floor.printer.press_start("a lamp"))
    floor.release()
    floor.until("failed", "busy with another print")
    assert floor.machine.busy is not cancels
    if floor.machine.busy:
        floor.printer.advance(300)
        eventually(lambda: floor.events()["printer.foreign_print_started"] == 1, floor.tell)
        floor.printer.finish_now()
    floor.until_file_is_gone()
    assert floor.verdicts() == ["refused"] and floor.touched() == []
    assert floor.events()["print.failed"] == 1 and floor.events()["print.started"] == 0
    eventually(lambda: floor.shown_printer()["plate_state"] == "occupied", floor.shown_printer)


def test_a_print_somebody_starts_during_the_upload_holds_ours_back_until_its_plate_is_cleared(floor: Floor) -> None:

    def press() -> None:
        floor.printer.press_start("a lamp")
        floor.printer.advance(10)

    floor.strike_at("uploaded", press)
    floor.release()
    floor.until("scheduled", "the printer is ")
    assert floor.printer.starts == []
    eventually(lambda: floor.events()["printer.foreign_print_started"] == 1, floor.tell)
    floor.until_file_is_gone()
    floor.printer.finish_now()
    floor.until("scheduled", "plate not cleared")
    floor.clear_plate()
    floor.skip(30)
    floor.finish()
    wanted = ("printer.foreign_print_started", "printer.foreign_print_ended", "print.started", "print.completed")
    assert (floor.events(), floor.verdicts(), floor.touched()) == (once(*wanted), ["accepted"], [])


def test_a_print_stopped_at_the_printer_says_so(floor: Floor) -> None:
    floor.release()
    floor.until("started")
    floor.printer.press_stop()
    floor.until("failed", "stopped by a person at the printer")
    floor.until_file_is_gone()
    assert (floor.events(), floor.verdicts()) == (once("print.started", "print.failed"), ["accepted"])


def test_what_was_printed_while_nobody_listened_lies_on_the_plate(floor: Floor) -> None:
    """Somebody prints while the line is down, and the plate had been cleared before."""
    floor.clear_plate()
    floor.printer.faults.shut_door()
    floor.printer.faults.drop_connection()
    eventually(lambda: floor.shown_printer()["status"] == "offline", floor.shown_printer)
    floor.printer.press_start("a lamp")
    floor.printer.advance(60)
    floor.printer.finish_now()
    floor.printer.faults.open_door()
    eventually(lambda: floor.shown_printer()["plate_state"] == "occupied", floor.shown_printer)


def test_a_print_that_pauses_by_itself_goes_on_at_a_person_s_word(floor: Floor) -> None:
    floor.release()
    floor.until("started")
    eventually(lambda: floor.machine.state in ("PREPARE", "RUNNING"), floor.tell)
    floor.printer.pause_with(SPAGHETTI)
    floor.until_heard("paused")
    assert floor.stays()["status"] == "started" and len(floor.files_of_ours()) == 1
    floor.printer.press_resume()
    floor.finish()
    assert (floor.events(), floor.verdicts()) == (
        once("printer.fault", "print.started", "print.completed"),
        ["accepted"],
    )


# Power.


def test_a_print_that_a_power_cut_ended_needs_a_look_and_its_file_goes_with_the_person_s_word(floor: Floor) -> None:
    floor.release()
    floor.until("started")
    floor.printer.restart()
    eventually(lambda: floor.shown()["needs_look"], floor.tell)
    shown = floor.shown()
    assert (shown["status"], "does not say what became of this print" in shown["needs_look"]) == ("started", True)
    assert len(floor.files_of_ours()) == 1
    floor.record("failed", failed_reason="a power cut")
    floor.until_file_is_gone()
    assert floor.shown()["needs_look"] is None
    assert floor.events() == once("print.started", "print.needs_look", "print.failed")
    assert floor.verdicts() == ["accepted"]


def test_a_print_that_goes_on_after_a_power_cut_is_one_print(floor: Floor) -> None:
    floor.printer.faults.recover_after_seconds = 120
    floor.release()
    floor.until("started")
    eventually(lambda: floor.machine.state in ("PREPARE", "RUNNING"))
    floor.printer.restart()
    floor.printer.advance(120)
    eventually(lambda: floor.machine.busy)
    floor.finish()
    assert floor.shown()["needs_look"] is None
    events = floor.events()
    assert (events["print.started"], events["print.completed"], events["print.failed"]) == (1, 1, 0)
    assert floor.verdicts() == ["accepted"]


@pytest.mark.parametrize("after", ["a refusal", "the end of its print"])
def test_a_file_that_would_start_by_itself_is_gone_before_it_can(floor: Floor, after: str) -> None:
    floor.printer.faults.left_file_starts_after_seconds = 3600
    if after == "a refusal":
        floor.printer.faults.refuse_start = UNREADABLE
    floor.release()
    if after == "a refusal":
        floor.until("failed")
    else:
        floor.finish()
    floor.until_file_is_gone()
    floor.printer.advance(2 * 3600)
    floor.stays()
    assert not floor.machine.busy
    assert "printer.foreign_print_started" not in floor.events()


def test_a_file_that_starts_by_itself_is_nobody_s_start(floor: Floor) -> None:
    """Not confirmed, so the file had to stay. What begins by itself hours later is not taken for the start of ours."""
    floor.printer.faults.silent_refusal = True
    floor.printer.faults.left_file_starts_after_seconds = 100
    floor.release()
    floor.until_sent()
    floor.printer.advance(110)
    floor.until("failed", "another print began at the printer instead")
    assert floor.machine.busy
    floor.printer.finish_now()
    eventually(lambda: floor.events()["printer.foreign_print_ended"] == 1, floor.tell)
    assert floor.events() == once("print.failed", "printer.foreign_print_started", "printer.foreign_print_ended")
    assert (floor.verdicts(), floor.touched()) == (["ignored"], [])


# Health messages and filament.


def test_a_serious_fault_that_comes_and_goes_delays_the_start_and_doubles_nothing(floor: Floor) -> None:
    floor.printer.faults.flapping_hms, floor.printer.faults.flap_seconds = HOT_BED, 10**9
    floor.machine.hms = [HOT_BED]
    floor.release()
    floor.until("scheduled", "0300-0100-0001-0007")
    assert floor.printer.starts == []
    floor.machine.hms = []
    floor.printer.faults.flap_seconds = 6.0
    floor.until("started")
    time.sleep(1.0)
    floor.finish()
    assert (floor.events(), floor.verdicts()) == (
        once("printer.fault", "print.started", "print.completed"),
        ["accepted"],
    )


@pytest.mark.parametrize(
    ("spool", "words"),
    [in_full(None, "the printer sees no spool"), (Spool("PETG", filament_id="GFG00"), "sees PETG")],
)
def test_a_spool_that_was_swapped_before_the_start_is_seen(floor: Floor, spool: Spool | None, words: str) -> None:
    floor.printer.swap_spool(0, 0, spool)
    floor.release()
    floor.until("scheduled", words)
    assert floor.printer.starts == [] and floor.files_of_ours() == []
    floor.printer.swap_spool(0, 0, Spool("PLA", "FFFFFFFF"))
    floor.finish()
    assert floor.verdicts() == ["accepted"]


def test_a_spool_that_is_swapped_within_the_upload_is_seen_before_the_order(floor: Floor) -> None:
    other = Spool("PETG", filament_id="GFG00")
    floor.strike_at("uploaded", lambda: floor.printer.swap_spool(0, 0, other))
    floor.release()
    floor.until("scheduled", "sees PETG")
    assert floor.printer.starts == []
    floor.until_file_is_gone()
    floor.printer.swap_spool(0, 0, Spool("PLA", "FFFFFFFF"))
    floor.skip(30)
    floor.finish()
    assert floor.intents() == [IntentState.withdrawn, IntentState.confirmed]
    assert floor.verdicts() == ["accepted"]


def test_a_spool_whose_tag_is_still_being_read_is_waited_for(floor: Floor) -> None:
    floor.printer.faults.tag_reading_seconds = 3600
    floor.printer.swap_spool(0, 0, Spool("PLA", "FFFFFFFF"))
    floor.release()
    floor.until("scheduled", "sees no spool in slot 0")
    assert floor.stays()["status"] == "scheduled" and floor.printer.starts == []
    floor.printer.advance(3600)
    floor.finish()
    assert floor.verdicts() == ["accepted"]


def test_a_spool_that_runs_out_is_followed_by_its_backup(plant: Hall) -> None:
    with plant.floor(spools=[Spool("PLA", "FFFFFFFF", grams_left=1.0), Spool("PLA", "FFFFFFFF")]) as floor:
        floor.release()
        floor.until("started")
        floor.printer.advance(3600)
        floor.until("completed")
        assert (floor.events(), floor.verdicts()) == (once("print.started", "print.completed"), ["accepted"])


def test_a_spool_that_runs_out_for_good_pauses_the_print_and_ends_nothing(plant: Hall) -> None:
    with plant.floor(spools=[Spool("PLA", "FFFFFFFF", grams_left=1.0)]) as floor:
        floor.release()
        floor.until("started")
        floor.printer.advance(3600)
        floor.until_heard("paused")
        assert floor.stays()["status"] == "started" and len(floor.files_of_ours()) == 1
        floor.printer.swap_spool(0, 0, Spool("PLA", "FFFFFFFF"))
        floor.printer.press_resume()
        floor.finish()
        assert (floor.events(), floor.verdicts()) == (
            once("printer.fault", "print.started", "print.completed"),
            ["accepted"],
        )


# Reports.


def spoil(floor: Floor) -> None:
    floor.printer.faults.damage = ("cut in half", "garbage", "trailing NUL", "invalid UTF-8")
    floor.printer.faults.damage_share = 0.5


REPORTS: dict[str, Callable[[Floor], None]] = {
    "damaged": spoil,
    "half of them lost": lambda floor: setattr(floor.printer.faults, "lose_reports", 0.5),
    "each twice": lambda floor: setattr(floor.printer.faults, "duplicate_reports", True),
    "late": lambda floor: setattr(floor.printer.faults, "report_delay_seconds", 6.0),
    "in a trickle": lambda floor: setattr(floor.printer.faults, "drip_bytes_per_second", 60_000.0),
    "by a clock of another day": lambda floor: setattr(floor.printer.faults, "clock_off_seconds", 86_400.0 * 400),
}


SHORT_REPORTS = {("half of them lost", "X1C"), ("damaged", "X1C"), ("each twice", "P1S"), ("late", "P1S")}
SHORT_REPORTS |= {("in a trickle", "P1S"), ("by a clock of another day", "P1S")}


@pytest.mark.parametrize(
    ("case", "model"),
    [each if each in SHORT_REPORTS else in_full(*each) for each in itertools.product(REPORTS, ("P1S", "X1C"))],
)
def test_reports_that_are_damaged_lost_doubled_or_late_tell_no_story_of_their_own(
    plant: Hall, case: str, model: str
) -> None:
    with plant.floor(model) as floor:
        floor.clear_plate()
        REPORTS[case](floor)
        floor.release_onto_clear_plate()
        floor.finish()
        assert (floor.events(), floor.verdicts()) == (once("print.started", "print.completed"), ["accepted"])


# The printer's storage.

STORAGE: dict[str, tuple[StorageFaults, str]] = {
    "the card is full": (StorageFaults(refuse={"STOR": "552 Disk full."}), "full"),
    "nothing may be written": (StorageFaults(refuse={"STOR": "550 Permission denied."}), "could not be sent"),
    "226 for a file cut short": (StorageFaults(keep_bytes=100), "did not arrive whole"),
    "426 for a file cut short": (
        StorageFaults(keep_bytes=100, closing_reply="426 Failure reading network stream."),
        "could not be sent",
    ),
    "hangs up in between": (StorageFaults(drop_after_bytes=500), "could not be sent"),
    "says nothing": (StorageFaults(black_hole=True), "could not be sent"),
}


@pytest.mark.parametrize(
    "case",
    [each if each in ("the card is full", "226 for a file cut short") else in_full(each) for each in STORAGE],
)
def test_a_file_that_did_not_arrive_starts_nothing_and_is_sent_again_later(floor: Floor, case: str) -> None:
    floor.clear_plate()
    floor.printer.faults.storage, words = STORAGE[case]
    floor.release_onto_clear_plate()
    floor.until("scheduled", words, within=LONG_PATIENCE_SECONDS)
    assert floor.printer.starts == []
    floor.until_file_is_gone()
    floor.printer.faults.storage = StorageFaults()
    floor.skip(30)
    floor.finish()
    assert floor.verdicts() == ["accepted"]
    assert floor.events() == once("print.started", "print.completed")


def test_a_whole_file_is_believed_whatever_the_printer_says_of_it(floor: Floor) -> None:
    floor.printer.faults.storage.closing_reply = "426 Failure reading network stream."
    floor.release()
    floor.finish()
    assert (floor.intents(), floor.verdicts()) == ([IntentState.confirmed], ["accepted"])


@pytest.mark.prove
def test_a_printer_that_tells_nothing_any_more_is_sent_nothing(floor: Floor) -> None:
    floor.strike_at("uploaded", lambda: setattr(floor.printer.faults, "mute", True))
    floor.release()
    eventually(lambda: floor.intents() == [IntentState.withdrawn], floor.tell)
    assert floor.printer.starts == []
    floor.printer.faults.mute = False
    floor.skip(30)
    floor.finish()
    assert floor.verdicts() == ["accepted"]


@pytest.mark.prove
@pytest.mark.parametrize(
    "faults",
    [
        StorageFaults(hangs_on_encrypted_data=True),
        StorageFaults(closing_reply_after_seconds=35.0),
        StorageFaults(bytes_per_second=500.0),
    ],
    ids=["hangs on encrypted data", "tells its end 35 s late", "reads it slowly"],
)
def test_a_printer_that_is_slow_to_take_a_file_starts_it_once(plant: Hall, faults: StorageFaults) -> None:
    with plant.floor("A1 mini") as floor:
        floor.clear_plate()
        floor.printer.faults.storage = faults
        floor.release_onto_clear_plate()
        floor.until_sent(within=LONG_PATIENCE_SECONDS)
        floor.finish()
        assert floor.verdicts() == ["accepted"]


@pytest.mark.prove
def test_a_colour_that_was_not_asked_for_is_not_printed(floor: Floor) -> None:
    floor.farm.put(f"/api/bambu/materials/{floor.material_id}", {"color": RED})
    floor.release()
    floor.until("scheduled", "needs PLA")
    assert floor.printer.starts == []
    floor.farm.put(f"/api/bambu/materials/{floor.material_id}", {"color": WHITE})
    floor.finish()
    assert floor.verdicts() == ["accepted"]


def test_every_misbehaviour_of_the_simulator_meets_a_real_worker() -> None:
    """Here, or where a person gives a printer commands, or where its line is bad."""
    here = Path(__file__)
    text = "".join((here.parent / name).read_text() for name in (here.name, "test_printer_actions.py", "bad_line.py"))
    acts = {name for name, act in vars(Faults).items() if getattr(act, "__annotations__", None) == {"return": "None"}}
    settings = {entry.name for entry in fields(Faults)} - {"storage", "chance", "reach_link"}
    of_storage = {entry.name for entry in fields(StorageFaults)}
    assert "shut_door" in acts
    assert [name for name in sorted(acts | settings) if not re.search(rf"\b{name}\b", text)] == []
    setting = r"(StorageFaults\([^)]*\b|storage\.){}="
    assert [name for name in sorted(of_storage) if not re.search(setting.format(name), text.replace(" ", ""))] == []
