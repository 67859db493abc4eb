"""The legal moves: the whole table, what a move stamps and writes, and completion as one transaction."""

from __future__ import annotations

import itertools
import threading
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from bambu_report import UNKNOWN
from farm.interlocks import SETTLED_FOR, Interlock
from farm.materials import StageLimits
from farm.moves import move_print
from farm.readiness import Outlook, carry_out, look_over, printer_facts, verdict_on
from farm.starter import StartRules
from models import (
    LEGAL_MOVES,
    Delivery,
    IllegalMove,
    IntentState,
    LedgerEntry,
    Order,
    Printer,
    PrintEvent,
    PrintStatus,
    ScheduledPrint,
    db,
)
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.rows import LAN, add_intent

PATH = "/api/bambu/scheduled-prints"
# The contract's table, written out: the code's own is held against it.
TABLE = {
    "queued": {"scheduled", "started"},
    "scheduled": {"queued", "started", "failed"},
    "started": {"completed", "failed"},
    "completed": {"queued"},
    "failed": {"queued"},
}
WAYS: dict[str, list[str]] = {
    "queued": [],
    "scheduled": ["scheduled"],
    "started": ["started"],
    "completed": ["started", "completed"],
    "failed": ["started", "failed"],
}
PAIRS = [(before, after) for before, after in itertools.product(TABLE, TABLE) if before != after]


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer()["id"])


def put(farm: Farm, print_id: int, **changes: Any) -> Any:
    return farm.put(f"{PATH}/{print_id}", changes)


def history(farm: Farm, print_id: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = farm.get(f"{PATH}/{print_id}/events").json
    return found


def in_state(farm: Farm, printer_id: int, status: str, **fields: Any) -> dict[str, Any]:
    made = farm.add_print(printer_id, **fields)
    return farm.move(made["id"], *WAYS[status]) if WAYS[status] else made


def test_the_table_of_moves_is_the_contracts() -> None:
    assert {before.value: {after.value for after in moves} for before, moves in LEGAL_MOVES.items()} == TABLE


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair[1] in TABLE[pair[0]]])
def test_a_legal_move_is_made_and_written_down(farm: Farm, printer_id: int, before: str, after: str) -> None:
    made = in_state(farm, printer_id, before)
    answer = put(farm, made["id"], status=after, **({"failed_reason": "x"} if after == "failed" else {}))
    assert (answer.status_code, answer.json["status"]) == (200, after)
    last = history(farm, made["id"])[-1]
    assert (last["from_status"], last["to_status"]) == (before, after)


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair[1] not in TABLE[pair[0]]])
def test_any_other_move_is_409_and_names_the_allowed_ones(farm: Farm, printer_id: int, before: str, after: str) -> None:
    made = in_state(farm, printer_id, before)
    written = history(farm, made["id"])
    answer = put(farm, made["id"], status=after, **({"failed_reason": "x"} if after == "failed" else {}))
    allowed = ", ".join(sorted(TABLE[before]))
    assert (answer.status_code, answer.json) == (
        409,
        {
            "error": f"A {before} print cannot become {after}. From {before} it may become: {allowed}.",
            "code": "illegal_move",
            "fields": {"status": [f"allowed: {allowed}"]},
        },
    )
    assert (farm.get_print(made["id"]), history(farm, made["id"])) == (made, written)


def test_the_row_itself_refuses_an_illegal_move(app: Flask, farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    with app.app_context():
        row = db.session.get_one(ScheduledPrint, made["id"])
        with pytest.raises(IllegalMove):
            row.move_to(PrintStatus.completed, at=BASE_TIME)
        row.move_to(PrintStatus.started, at=BASE_TIME)
        with pytest.raises(ValueError, match="needs a reason"):
            row.move_to(PrintStatus.failed, at=BASE_TIME)


# Stamps


def test_started_stamps_its_start_and_completed_and_failed_their_end(farm: Farm, printer_id: int, clock: Clock) -> None:
    for end, extra in (("completed", {}), ("failed", {"failed_reason": "it came off the plate"})):
        made = farm.add_print(printer_id)
        clock.forward(minutes=1)
        begun = put(farm, made["id"], status="started").json
        at = clock.now.isoformat().replace("+00:00", "Z")
        assert (begun["started_at"], begun["completed_at"]) == (at, None)
        clock.forward(minutes=2)
        ended = put(farm, made["id"], status=end, **extra).json
        done_at = clock.now.isoformat().replace("+00:00", "Z")
        assert (ended["started_at"], ended["completed_at"], ended["updated_at"]) == (at, done_at, done_at)
        assert ended["failed_reason"] == extra.get("failed_reason")


def test_a_print_that_failed_before_it_began_has_an_end_and_no_start(farm: Farm, printer_id: int) -> None:
    made = in_state(farm, printer_id, "scheduled")
    failed = put(farm, made["id"], status="failed", failed_reason="the printer refused").json
    assert (failed["started_at"], failed["completed_at"]) == (None, "2026-11-21T09:00:00Z")


def test_a_completed_print_is_at_100_percent(farm: Farm, printer_id: int) -> None:
    assert in_state(farm, printer_id, "completed")["progress_percent"] == 100


@pytest.mark.parametrize("end", ["completed", "failed"])
def test_rescheduling_clears_what_the_run_left(farm: Farm, printer_id: int, end: str) -> None:
    farm.add_material(printer_id)
    made = farm.add_print(printer_id, material_slot=0, scheduled_start="2026-11-22T09:00:00Z")
    farm.move(made["id"], "started", end, used_grams=30)
    again = put(farm, made["id"], status="queued").json
    cleared = ("started_at", "completed_at", "failed_reason", "progress_percent", "scheduled_start")
    assert [again[name] for name in (*cleared, "used_grams", "material_cost")] == [None] * 7
    with farm.database() as session:
        assert session.execute(sa.select(sa.func.count()).where(LedgerEntry.print_id == made["id"])).scalar_one() == 1


def test_a_second_run_books_again(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id)
    made = farm.add_print(printer_id, material_slot=0, estimated_grams=30)
    farm.move(made["id"], "started", "completed", "queued", "started", "completed")
    assert farm.get(f"/api/bambu/materials/{printer_id}").json[0]["used_grams"] == 60


# History


def test_the_history_tells_every_move_with_its_time_and_reason(farm: Farm, printer_id: int, clock: Clock) -> None:
    made = farm.add_print(printer_id)
    for status, extra in (
        ("scheduled", {}),
        ("queued", {}),
        ("scheduled", {}),
        ("started", {}),
        ("failed", {"failed_reason": "it came off the plate"}),
        ("queued", {}),
    ):
        clock.forward(minutes=1)
        assert put(farm, made["id"], status=status, **extra).status_code == 200
    told = [
        (each["kind"], each["from_status"], each["to_status"], each["at"][14:16]) for each in history(farm, made["id"])
    ]
    assert told == [
        ("print.created", None, "queued", "00"),
        ("print.scheduled", "queued", "scheduled", "01"),
        ("print.queued", "scheduled", "queued", "02"),
        ("print.scheduled", "queued", "scheduled", "03"),
        ("print.started", "scheduled", "started", "04"),
        ("print.failed", "started", "failed", "05"),
        ("print.rescheduled", "failed", "queued", "06"),
    ]
    assert history(farm, made["id"])[5]["reason"] == "it came off the plate"


def test_a_history_is_an_array_page_by_page(farm: Farm, printer_id: int) -> None:
    made = in_state(farm, printer_id, "completed")
    answer = farm.get(f"{PATH}/{made['id']}/events?limit=2")
    assert ([each["kind"] for each in answer.json], answer.headers["X-Total-Count"]) == (
        ["print.created", "print.started"],
        "3",
    )
    assert set(answer.json[0]) == {
        *("id", "print_id", "printer_id", "kind", "from_status", "to_status", "reason", "details", "at")
    }


# Completion: which spool, how much


def booked(farm: Farm, printer_id: int) -> dict[int | None, float]:
    """Used grams by slot, slots without a use left out."""
    materials = farm.get(f"/api/bambu/materials/{printer_id}?include=removed").json
    return {each["slot"]: each["used_grams"] for each in materials if each["used_grams"]}


def test_used_grams_go_before_estimated_ones(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id)
    first = farm.add_print(printer_id, material_slot=0, estimated_grams=30)
    assert farm.move(first["id"], "started", "completed", used_grams=20)["used_grams"] == 20
    second = farm.add_print(printer_id, material_slot=0, estimated_grams=30)
    done = farm.move(second["id"], "started", "completed")
    assert (done["used_grams"], done["material_cost"]) == (30, 0.6)
    assert booked(farm, printer_id) == {0: 50}


def test_without_any_grams_nothing_is_booked_and_the_print_says_so(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id)
    made = farm.add_print(printer_id, material_slot=0)
    done = farm.move(made["id"], "started", "completed")
    assert (done["used_grams"], done["material_cost"], booked(farm, printer_id)) == (None, None, {})
    assert history(farm, made["id"])[-1]["details"] == {
        "filament": "not booked: neither used nor estimated grams are known"
    }


def test_no_grams_used_is_a_word_too(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id)
    made = farm.add_print(printer_id, material_slot=0, estimated_grams=30)
    assert farm.move(made["id"], "started", "completed", used_grams=0)["used_grams"] == 0
    assert booked(farm, printer_id) == {}


def test_a_failed_print_books_what_it_is_said_to_have_used_and_no_estimate(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id)
    told = farm.add_print(printer_id, material_slot=0, estimated_grams=30)
    farm.move(told["id"], "started", "failed", used_grams=7)
    untold = farm.add_print(printer_id, material_slot=0, estimated_grams=30)
    assert farm.move(untold["id"], "started", "failed")["used_grams"] is None
    assert booked(farm, printer_id) == {0: 7}


@pytest.mark.parametrize(
    ("fields", "used"),
    [
        ({"material_slot": 1, "material_type": "PLA"}, {1: 9}),
        ({"material_slot": 1}, {1: 9}),
        ({"material_type": "petg"}, {2: 9}),
        ({"material_slot": 7, "material_type": "PETG"}, {2: 9}),
        ({"material_type": "PLA"}, {}),
        ({"material_type": "ABS"}, {}),
        ({"material_slot": 7}, {}),
        ({}, {}),
    ],
)
def test_filament_comes_from_the_prints_slot_else_from_the_only_spool_of_its_type_else_from_none(
    farm: Farm, printer_id: int, fields: dict[str, Any], used: dict[int, float]
) -> None:
    for slot, kind in enumerate(("PLA", "PLA", "PETG")):
        farm.add_material(printer_id, slot=slot, material_type=kind)
    gone = farm.add_material(printer_id, slot=7, material_type="ABS")
    farm.delete(f"/api/bambu/materials/{gone['id']}")
    made = farm.add_print(printer_id, estimated_grams=9, **fields)
    done = farm.move(made["id"], "started", "completed")
    assert (booked(farm, printer_id), done["used_grams"]) == (used, 9)
    details = history(farm, made["id"])[-1]["details"]["filament"]
    assert (
        ("grams" in details) if used else details == "booked on no spool: none in its slot and not just one of its type"
    )


def test_filament_comes_from_the_place_that_the_print_was_started_from(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id, slot=0)
    farm.made(
        f"/api/bambu/materials/{printer_id}",
        {"ams_id": 255, "tray_id": 0, "material_type": "PLA", "weight_grams": 1000},
    )
    made = farm.add_print(printer_id, estimated_grams=9, material_slot=0, status="scheduled")
    add_intent(farm, made["id"], IntentState.confirmed, mapping=[None, [255, 0]])
    farm.move(made["id"], "started", "completed")
    assert booked(farm, printer_id) == {None: 9}


def test_another_printers_spool_is_never_used(farm: Farm, printer_id: int) -> None:
    other = farm.add_printer("Right")["id"]
    farm.add_material(other, slot=0)
    made = farm.add_print(printer_id, material_slot=0, material_type="PLA", estimated_grams=9)
    farm.move(made["id"], "started", "completed")
    assert booked(farm, other) == {}


# Completion is one transaction


def test_completion_updates_order_material_and_notifications(farm: Farm, printer_id: int, clock: Clock) -> None:
    farm.add_material(printer_id, weight_grams=100)
    order = farm.add_order()
    made = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"][0]
    put(farm, made["id"], estimated_grams=85)
    farm.move(made["id"], "started")
    clock.forward(minutes=5)
    farm.move(made["id"], "completed")
    assert farm.get(f"/api/orders/{order['id']}").json["production_status"] == "printed"
    assert farm.get(f"/api/bambu/materials/{printer_id}").json[0]["remaining_grams"] == 15
    with farm.database() as session:
        told = session.execute(sa.select(Delivery).order_by(Delivery.id)).scalars().all()
        assert [each.payload["type"] for each in told] == ["print.started", "material.critical", "print.completed"]
        data = told[-1].payload["data"]
    assert (data["print"]["status"], data["print"]["used_grams"], data["print"]["material_cost"]) == (
        "completed",
        85,
        1.7,
    )
    assert (data["order"]["id"], data["order"]["production_status"]) == (order["id"], "printed")


def everything(farm: Farm) -> dict[str, list[Any]]:
    """Every row of the tables that a completion touches."""
    with farm.database() as session:
        return {
            table: [tuple(row) for row in session.execute(sa.text(f"SELECT * FROM {table} ORDER BY id"))]
            for table in (
                "scheduled_prints",
                "print_events",
                "orders",
                "bambu_materials",
                "filament_ledger",
                "deliveries",
            )
        }


def test_when_the_last_step_of_a_completion_fails_nothing_of_it_remains(
    app: Flask, farm: Farm, printer_id: int
) -> None:
    """The last rows written are the deliveries. A trigger of the database itself refuses them."""
    farm.add_material(printer_id, weight_grams=100)
    order = farm.add_order()
    made = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"][0]
    put(farm, made["id"], estimated_grams=85)
    farm.move(made["id"], "started")
    before = everything(farm)
    with app.app_context(), db.engine.begin() as connection:
        for statement in refuse_completed_deliveries(db.engine.dialect.name):
            connection.exec_driver_sql(statement)
    try:
        answer = put(farm, made["id"], status="completed")
        assert answer.status_code in (409, 500, 503), answer.text
        assert everything(farm) == before
    finally:
        with app.app_context(), db.engine.begin() as connection:
            on = " ON deliveries" if db.engine.dialect.name == "postgresql" else ""
            connection.exec_driver_sql(f"DROP TRIGGER refuse{on}")
    assert put(farm, made["id"], status="completed").status_code == 200
    assert everything(farm) != before


def refuse_completed_deliveries(dialect: str) -> list[str]:
    if dialect == "sqlite":
        return [
            "CREATE TRIGGER refuse BEFORE INSERT ON deliveries WHEN NEW.payload LIKE '%print.completed%' "
            "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
        ]
    return [
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'refused by the test' USING ERRCODE = 'unique_violation'; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON deliveries FOR EACH ROW "
        "WHEN (NEW.payload::text LIKE '%%print.completed%%') EXECUTE FUNCTION refuse()",
    ]


def test_of_two_completions_at_the_same_moment_one_books(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id)
    made = farm.add_print(printer_id, material_slot=0, estimated_grams=10)
    farm.move(made["id"], "started")
    gate, statuses = threading.Barrier(6), []

    def complete() -> None:
        gate.wait()
        statuses.append(put(farm, made["id"], status="completed").status_code)

    threads = [threading.Thread(target=complete) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 6
    assert booked(farm, printer_id) == {0: 10}
    assert [each["kind"] for each in history(farm, made["id"])].count("print.completed") == 1


def test_a_worker_and_a_person_who_move_the_same_print_book_once(app: Flask, farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id)
    made = farm.add_print(printer_id, material_slot=0, estimated_grams=10)
    farm.move(made["id"], "started")
    with app.app_context():
        row = db.session.get_one(ScheduledPrint, made["id"], with_for_update=True)
        waiting = threading.Thread(target=put, args=(farm, made["id"]), kwargs={"status": "completed"})
        waiting.start()
        move_print(row, PrintStatus.completed, at=BASE_TIME, limits=StageLimits(), used_grams=Decimal(4))
        db.session.commit()
        waiting.join(30)
    assert booked(farm, printer_id) == {0: 4}


# What is due, and what runs next


@pytest.fixture
def rules(app: Flask) -> StartRules:
    return StartRules.from_settings(app.extensions["parts"].settings)


def release(farm: Farm, printer_id: int, clock: Clock, rules: StartRules) -> Outlook:
    with farm.database() as session:
        seen = look_over(
            session.get_one(Printer, printer_id),
            UNKNOWN,
            in_state_since=None,
            now=clock.now,
            missed_window=rules.missed_window,
            limits=rules.limits,
        )
        outlook = carry_out(seen, now=clock.now, limits=rules.limits)
        session.commit()
    return outlook


def is_missed(print_id: int, now: datetime, rules: StartRules) -> bool:
    waiting = db.session.get_one(ScheduledPrint, print_id)
    facts = printer_facts(waiting.printer, UNKNOWN, in_state_since=now - SETTLED_FOR, now=now, limits=rules.limits)
    return Interlock.missed in verdict_on(waiting, facts, now=now, missed_window=rules.missed_window).reasons


def test_an_auto_start_printer_releases_what_is_due_and_only_that(farm: Farm, clock: Clock, rules: StartRules) -> None:
    printer_id = farm.add_printer(auto_start=True)["id"]
    now, past, future = (
        farm.add_print(printer_id, scheduled_start=start)["id"]
        for start in (None, "2026-11-21T08:30:00Z", "2026-11-21T09:05:00Z")
    )
    by_hand = farm.add_print(farm.add_printer("Right")["id"])["id"]
    # A POST answers the status that was asked for; only the worker releases.
    assert {each["status"] for each in farm.get(PATH).json} == {"queued"}
    release(farm, printer_id, clock, rules)

    def statuses() -> list[str]:
        return [(farm.get_print(each) or {})["status"] for each in (now, past, future, by_hand)]

    assert statuses() == ["scheduled", "scheduled", "queued", "queued"]
    clock.forward(minutes=5)
    release(farm, printer_id, clock, rules)
    assert statuses() == ["scheduled", "scheduled", "scheduled", "queued"]


def test_a_start_that_a_person_set_and_missed_by_an_hour_is_held_and_says_so(
    farm: Farm, clock: Clock, rules: StartRules
) -> None:
    printer_id = farm.add_printer(auto_start=True)["id"]
    missed_one = farm.add_print(printer_id, scheduled_start="2026-11-21T07:59:59Z")["id"]
    just_in_time = farm.add_print(printer_id, scheduled_start="2026-11-21T08:00:00Z")["id"]
    release(farm, printer_id, clock, rules)
    held = farm.get_print(missed_one) or {}
    assert (held["status"], held["waiting_reason"]) == (
        "queued",
        "its time 2026-11-21 07:59 UTC was missed: set a new one",
    )
    assert (farm.get_print(just_in_time) or {})["status"] == "scheduled"
    put(farm, missed_one, scheduled_start="2026-11-21T08:59:00Z")
    release(farm, printer_id, clock, rules)
    assert (farm.get_print(missed_one) or {})["status"] == "scheduled"


def test_a_chained_start_means_not_before_and_cannot_be_missed(farm: Farm, clock: Clock, rules: StartRules) -> None:
    printer_id = farm.add_printer(auto_start=True)["id"]
    order = farm.add_order({"title": "A", "quantity": 1}, {"title": "B", "quantity": 1})
    prints = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"]
    late = clock.now + timedelta(days=2)
    with farm.database():
        assert not is_missed(prints[1]["id"], late, rules)
    put(farm, prints[1]["id"], scheduled_start="2026-11-21T10:00:00Z")
    with farm.database():
        assert is_missed(prints[1]["id"], late, rules)


def test_a_start_in_the_past_is_due_now_where_nothing_starts_by_itself(farm: Farm, rules: StartRules) -> None:
    printer_id = farm.add_printer()["id"]
    made = farm.add_print(printer_id, scheduled_start="2026-11-01T08:00:00Z", print_file_id=farm.add_file()["id"])
    released = farm.post(f"{PATH}/{made['id']}/start").json
    # What holds it is the missing link, not its time.
    assert released["waiting_reason"] == "the printer has no connection: start it there and record it here"


def test_without_a_file_a_print_never_reaches_a_machine(farm: Farm, clock: Clock, rules: StartRules) -> None:
    printer_id = farm.add_printer(**LAN)["id"]
    order = farm.add_order()
    made = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"][0]
    farm.post(f"{PATH}/{made['id']}/start")
    chosen = release(farm, printer_id, clock, rules).chosen
    assert (chosen, (farm.get_print(made["id"]) or {})["waiting_reason"]) == (None, "it has no sliced file")


def test_events_and_orders_of_a_move_share_its_time(farm: Farm, printer_id: int, clock: Clock) -> None:
    order = farm.add_order()
    made = farm.add_print(printer_id, order_id=order["id"])
    at = clock.forward(minutes=3)
    farm.move(made["id"], "started")
    with farm.database() as session:
        event = session.execute(sa.select(PrintEvent).order_by(PrintEvent.id.desc()).limit(1)).scalar_one()
        kept = session.get_one(Order, order["id"])
        assert (event.at, kept.updated_at) == (at, at)
