"""Scheduled prints through the API: fields and ranges, lists and the queue, what a PUT does, DELETE, the commands."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import (
    CommandKind,
    CommandState,
    ConnectionStatus,
    IntentState,
    LedgerEntry,
    PrinterCommand,
    PrintEvent,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    db,
)
from simulator import Plate, make_sliced_file
from tests.apps import another_app
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.rows import LAN, add_intent, hear

PATH = "/api/bambu/scheduled-prints"
FIELDS = {
    *("id", "printer_id", "order_id", "order_item_id", "job_name", "file_name", "print_file_id", "plate", "status"),
    *("scheduled_start", "estimated_duration_minutes", "material_type", "material_color", "material_slot"),
    *("nozzle_temp", "bed_temp", "print_speed", "priority", "notes", "waiting_reason", "started_at", "completed_at"),
    *(
        "failed_reason",
        "progress_percent",
        "estimated_grams",
        "used_grams",
        "material_cost",
        "batch_id",
        "units",
        "held_at",
        "overrides",
        "needs_look",
        "created_at",
        "updated_at",
    ),
}
SETTABLE: dict[str, Any] = {
    "job_name": "A bowl",
    "file_name": "bowl.gcode.3mf",
    "scheduled_start": "2026-11-22T10:30:00Z",
    "estimated_duration_minutes": 95,
    "estimated_grams": 31.25,
    "material_type": "PETG",
    "material_color": "#A1B2C3",
    "material_slot": 3,
    "nozzle_temp": 240,
    "bed_temp": 80,
    "print_speed": 150,
    "priority": 7,
    "notes": "brim\n5 mm",
}
NULLABLE = [name for name in SETTABLE if name not in ("job_name", "priority")]
MISSING_ID = 2_000_000_000


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer()["id"])


@pytest.fixture
def linked_id(farm: Farm) -> int:
    """A printer with a connection."""
    return int(farm.add_printer("Linked", **LAN)["id"])


def put(farm: Farm, print_id: int, **changes: Any) -> Any:
    return farm.put(f"{PATH}/{print_id}", changes)


def events(farm: Farm, print_id: int) -> list[str]:
    return [event["kind"] for event in farm.get(f"{PATH}/{print_id}/events").json]


def get(farm: Farm, print_id: int) -> dict[str, Any]:
    found = farm.get_print(print_id)
    assert found is not None
    return found


# What a print is


def test_a_print_has_exactly_the_fields_of_the_contract(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    assert set(made) == FIELDS
    assert set(farm.get(f"{PATH}/{printer_id}").json[0]) == FIELDS


def test_a_new_print_needs_a_printer_and_a_name_and_is_queued(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id, "A vase")
    filled = {name: value for name, value in made.items() if value is not None}
    assert filled == {
        "id": made["id"],
        "printer_id": printer_id,
        "job_name": "A vase",
        "plate": 1,
        "status": "queued",
        "priority": 0,
        "units": 1,
        "created_at": "2026-11-21T09:00:00Z",
        "updated_at": "2026-11-21T09:00:00Z",
    }
    answer = farm.post(PATH, {})
    assert (answer.status_code, set(answer.json["fields"])) == (422, {"printer_id", "job_name"})


def test_a_new_print_keeps_every_field_that_is_sent(farm: Farm, printer_id: int) -> None:
    order, file = farm.add_order(), farm.add_file(make_sliced_file(None, [Plate(1), Plate(3)]))
    sent = {**SETTABLE, "order_id": order["id"], "print_file_id": file["id"], "plate": 3, "status": "scheduled"}
    made = farm.add_print(printer_id, **sent)
    assert {name: made[name] for name in sent} == sent
    assert events(farm, made["id"]) == ["print.created"]


def test_a_print_of_a_file_is_named_after_it_unless_told(farm: Farm, printer_id: int) -> None:
    file = farm.add_file()
    assert farm.add_print(printer_id, print_file_id=file["id"])["file_name"] == file["file_name"]
    assert farm.add_print(printer_id, print_file_id=file["id"], file_name="mine")["file_name"] == "mine"


@pytest.mark.parametrize("status", ["started", "completed", "failed", "cancelled", "", None, 1])
def test_a_new_print_is_queued_or_scheduled_and_nothing_else(farm: Farm, printer_id: int, status: Any) -> None:
    answer = farm.post(PATH, {"printer_id": printer_id, "job_name": "A vase", "status": status})
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["status"])


OUT_OF_RANGE = [
    *[("nozzle_temp", bad) for bad in (-1, 501, 200.5, "200", True)],
    *[("bed_temp", bad) for bad in (-1, 201, "60", False)],
    *[("print_speed", bad) for bad in (0, 2001, "50")],
    *[("estimated_duration_minutes", bad) for bad in (0, 100_001, 0.5, "9")],
    *[("estimated_grams", bad) for bad in (-0.001, 100_000.001, "9", True)],
    *[("priority", bad) for bad in (-1001, 1001, -(2**31), 2**63, None, "1")],
    *[("material_slot", bad) for bad in (-1, 8, 255, "0")],
    *[("plate", bad) for bad in (0, 1001, None, "1")],
    *[("job_name", bad) for bad in ("", "   ", "x" * 256, None, 5, ["x"], "a\x00b", "a\x1b[0m")],
    *[("file_name", bad) for bad in ("", "x" * 256, 5)],
    *[("material_type", bad) for bad in ("", "x" * 256, 5)],
    *[("material_color", bad) for bad in ("#GGGGGG", "#12345", "", 5)],
    *[("notes", bad) for bad in ("x" * 2001, 5)],
    *[
        ("scheduled_start", bad)
        for bad in ("tomorrow", "2026-02-30T10:00:00Z", "0001-01-01T00:00:00Z", 5, "2026-11-22")
    ],
    *[("order_id", bad) for bad in ("1", True, 0, -1, 2**31, 1.5)],
    *[("printer_id", bad) for bad in ("1", True, 0, -1, 2**31, None)],
    *[("print_file_id", bad) for bad in ("1", True, 0, -1, 2**31)],
]
READ_ONLY = [
    *("id", "user_id", "created_at", "updated_at", "started_at", "completed_at", "progress_percent", "material_cost"),
    *("waiting_reason", "order_item_id", "is_chained", "deleted_at", "nonsense"),
    *("batch_id", "units", "held_at", "overrides", "needs_look"),
]


@pytest.mark.parametrize(("field", "value"), [*OUT_OF_RANGE, *((name, 1) for name in READ_ONLY)])
def test_what_is_out_of_range_read_only_or_unknown_is_refused_by_name(
    farm: Farm, printer_id: int, field: str, value: Any
) -> None:
    kept = farm.add_print(printer_id)
    body = {"printer_id": printer_id, "job_name": "A vase", field: value}
    for answer in (farm.post(PATH, body), put(farm, kept["id"], **{field: value})):
        assert answer.status_code == 422, answer.text
        assert list(answer.json["fields"]) == [field]
    assert farm.get(PATH).json == [kept]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("nozzle_temp", good) for good in (0, 500)],
        *[("bed_temp", good) for good in (0, 200)],
        *[("print_speed", good) for good in (1, 2000)],
        *[("estimated_duration_minutes", good) for good in (1, 100_000)],
        *[("estimated_grams", good) for good in (0, 0.001, 100_000)],
        *[("priority", good) for good in (-1000, 1000)],
        *[("material_slot", good) for good in (0, 7)],
        *[("job_name", good) for good in ("x", "ü" * 255, "{{7*7}} <svg onload> =cmd|' %s _ '")],
        *[("notes", good) for good in ("", "x" * 2000, "two\nlines")],
        ("material_color", "rose"),
    ],
)
def test_the_edges_of_a_range_belong_to_it(farm: Farm, printer_id: int, field: str, value: Any) -> None:
    made = farm.made(PATH, {"printer_id": printer_id, "job_name": "A vase", field: value})
    assert made[field] == value
    other = farm.add_print(printer_id)
    assert put(farm, other["id"], **{field: value}).json[field] == value


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("2026-11-22T10:30:00Z", "2026-11-22T10:30:00Z"),
        ("2026-11-22T10:30:00+14:00", "2026-11-21T20:30:00Z"),
        ("2026-11-22T10:30:00", "2026-11-22T10:30:00Z"),
        ("2026-11-22t10:30:00.25z", "2026-11-22T10:30:00.250000Z"),
    ],
)
def test_times_come_in_with_any_offset_and_go_out_in_utc(farm: Farm, printer_id: int, sent: str, shown: str) -> None:
    assert farm.add_print(printer_id, scheduled_start=sent)["scheduled_start"] == shown


@pytest.mark.parametrize("field", ["printer_id", "order_id", "print_file_id"])
def test_a_foreign_id_in_a_body_answers_like_a_missing_one(
    farm: Farm, stranger: Farm, printer_id: int, field: str
) -> None:
    foreign = {
        "printer_id": stranger.add_printer()["id"],
        "order_id": stranger.add_order()["id"],
        "print_file_id": stranger.add_file()["id"],
    }[field]
    kept = farm.add_print(printer_id)
    answers = []
    for bad in (foreign, MISSING_ID):
        answers.append(farm.post(PATH, {"printer_id": printer_id, "job_name": "A vase", field: bad}))
        answers.append(put(farm, kept["id"], **{field: bad}))
    assert {(answer.status_code, answer.data) for answer in answers} == {(404, answers[0].data)}
    assert farm.get(PATH).json == [kept]


def test_shape_is_checked_before_references_and_references_before_the_move(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    assert put(farm, made["id"], status="completed", printer_id=MISSING_ID, priority="x").status_code == 422
    assert put(farm, made["id"], status="failed", printer_id=MISSING_ID).status_code == 422
    assert put(farm, made["id"], status="completed", printer_id=MISSING_ID).status_code == 404
    assert put(farm, made["id"], status="completed", priority=3).status_code == 409
    assert get(farm, made["id"]) == made


def test_a_plate_must_be_in_its_file(farm: Farm, printer_id: int) -> None:
    file = farm.add_file(make_sliced_file(None, [Plate(1), Plate(3)]))
    body = {"printer_id": printer_id, "job_name": "A vase", "print_file_id": file["id"]}
    refused = farm.post(PATH, {**body, "plate": 2})
    assert (refused.status_code, refused.json["fields"]["plate"]) == (422, ["The file has no such plate; it has 1, 3."])
    made = farm.add_print(printer_id, print_file_id=file["id"], plate=3)
    assert put(farm, made["id"], plate=2).status_code == 422
    assert put(farm, made["id"], plate=1).json["plate"] == 1
    other = farm.add_file(make_sliced_file(None, [Plate(7)]))
    assert put(farm, made["id"], print_file_id=other["id"]).status_code == 422
    assert put(farm, made["id"], print_file_id=other["id"], plate=7).status_code == 200


# Lists


def test_lists_are_newest_first(farm: Farm, printer_id: int, clock: Clock) -> None:
    first = [farm.add_print(printer_id)["id"] for _ in range(2)]
    clock.forward(minutes=1)
    last = farm.add_print(printer_id, priority=-5)["id"]
    wanted = [last, first[1], first[0]]
    assert [each["id"] for each in farm.get(PATH).json] == wanted
    assert [each["id"] for each in farm.get(f"{PATH}/{printer_id}").json] == wanted


def test_a_printers_list_takes_one_of_the_five_words(farm: Farm, printer_id: int) -> None:
    made = {
        status: farm.add_print(printer_id)["id"] for status in ("queued", "scheduled", "started", "completed", "failed")
    }
    farm.move(made["scheduled"], "scheduled")
    farm.move(made["started"], "started")
    farm.move(made["completed"], "started", "completed")
    farm.move(made["failed"], "started", "failed")
    for status, print_id in made.items():
        for path in (f"{PATH}/{printer_id}", PATH):
            assert [each["id"] for each in farm.get(f"{path}?status={status}").json] == [print_id]
    for word in ("open", "", "Queued"):
        answer = farm.get(f"{PATH}/{printer_id}?status={word}")
        assert (answer.status_code, list(answer.json["fields"])) == (422, ["status"])


def test_the_list_across_printers_is_filtered_by_printer_order_status_and_id(farm: Farm, printer_id: int) -> None:
    other, order = farm.add_printer("Right")["id"], farm.add_order()["id"]
    plain = farm.add_print(printer_id)["id"]
    linked = farm.add_print(other, order_id=order)["id"]

    def ids(query: str) -> list[int]:
        return [each["id"] for each in farm.get(f"{PATH}?{query}").json]

    assert ids("") == [linked, plain]
    assert ids(f"printer_id={other}") == [linked]
    assert ids(f"order_id={order}") == [linked]
    assert ids(f"id={plain}") == [plain]
    assert ids(f"printer_id={printer_id}&order_id={order}") == []
    assert ids(f"printer_id={MISSING_ID}") == ids("id=-5") == []
    assert ids("nonsense=1") == [linked, plain]
    assert farm.get(f"{PATH}?order_id=x").status_code == 422
    assert farm.get(f"{PATH}?id=9999999999999999999").status_code == 422


def test_a_list_shows_only_ones_own(farm: Farm, stranger: Farm, printer_id: int) -> None:
    theirs = stranger.add_print(stranger.add_printer()["id"])
    assert farm.get(PATH).json == []
    assert farm.get(f"{PATH}?id={theirs['id']}").json == []
    missing = farm.get(f"{PATH}/{MISSING_ID}")
    for path in (
        f"{PATH}/{theirs['printer_id']}",
        f"{PATH}/{theirs['printer_id']}/queue",
        f"{PATH}/{theirs['id']}/events",
    ):
        assert (farm.get(path).status_code, farm.get(path).data) == (404, missing.data)


def test_a_page_tells_the_full_count_and_the_next_page(farm: Farm, printer_id: int) -> None:
    ids = [farm.add_print(printer_id)["id"] for _ in range(5)][::-1]
    seen: list[int] = []
    url: str | None = f"{PATH}?status=queued&limit=2"
    while url:
        answer = farm.get(url)
        seen += [each["id"] for each in answer.json]
        assert answer.headers["X-Total-Count"] == "5"
        link = answer.headers.get("Link")
        assert link is None or link.endswith('>; rel="next"')
        url = link[1:].split(">")[0] if link else None
    assert seen == ids


def test_a_page_that_ends_the_list_has_no_next_one(farm: Farm, printer_id: int) -> None:
    for _ in range(2):
        farm.add_print(printer_id)
    for query, count in (("limit=2", 2), ("limit=2&offset=1", 1), ("offset=2", 0), ("offset=99", 0)):
        for path in (PATH, f"{PATH}/{printer_id}", f"{PATH}/{printer_id}/queue"):
            answer = farm.get(f"{path}?{query}")
            assert (len(answer.json), answer.headers["X-Total-Count"]) == (count, "2")
            assert "Link" not in answer.headers


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=-1", "limit=x", "offset=-1", "limit=1e2", "limit=٣"])
def test_a_limit_is_1_to_1000_and_an_offset_not_negative(farm: Farm, printer_id: int, query: str) -> None:
    for path in (PATH, f"{PATH}/{printer_id}", f"{PATH}/{printer_id}/queue"):
        assert farm.get(f"{path}?{query}").status_code == 422


# The queue


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.integers(-2, 2),
            st.one_of(st.none(), st.integers(-3, 3)),
            st.sampled_from(list(PrintStatus)),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_the_queue_is_in_running_order(
    farm: Farm, printer_id: int, rows: list[tuple[int, int | None, PrintStatus, bool]]
) -> None:
    with farm.database() as session:
        session.execute(sa.delete(ScheduledPrint))
        made = [
            ScheduledPrint(
                user_id=farm.user["id"],
                printer_id=printer_id,
                job_name="x",
                priority=priority,
                scheduled_start=None if hours is None else BASE_TIME + timedelta(hours=hours),
                status=status,
                deleted_at=BASE_TIME if is_deleted else None,
                created_at=BASE_TIME,
                updated_at=BASE_TIME,
            )
            for priority, hours, status, is_deleted in rows
        ]
        session.add_all(made)
        session.commit()
        waiting = [each for each in made if each.status in ("queued", "scheduled") and each.deleted_at is None]
        first = datetime.min.replace(tzinfo=UTC)
        waiting.sort(key=lambda each: (-each.priority, each.scheduled_start or first, each.id))
        wanted = [each.id for each in waiting]
    assert [each["id"] for each in farm.get(f"{PATH}/{printer_id}/queue").json] == wanted


def test_the_queue_holds_what_is_queued_and_scheduled_and_nothing_else(farm: Farm, printer_id: int) -> None:
    queued, scheduled, started, done, gone = (farm.add_print(printer_id)["id"] for _ in range(5))
    farm.move(scheduled, "scheduled")
    farm.move(started, "started")
    farm.move(done, "started", "completed")
    farm.delete(f"{PATH}/{gone}")
    farm.add_print(farm.add_printer("Right")["id"])
    assert [each["id"] for each in farm.get(f"{PATH}/{printer_id}/queue").json] == [queued, scheduled]


def test_the_queue_takes_the_printers_id_and_events_the_prints(farm: Farm) -> None:
    farm.add_printer()
    right = farm.add_printer("Right")["id"]
    only = farm.add_print(right)["id"]
    assert only != right
    assert [each["id"] for each in farm.get(f"{PATH}/{right}/queue").json] == [only]
    assert farm.get(f"{PATH}/{only}/events").json[0]["print_id"] == only


# Changing


@pytest.mark.parametrize("field", SETTABLE)
def test_a_put_changes_only_the_keys_it_sends(farm: Farm, printer_id: int, clock: Clock, field: str) -> None:
    before = farm.add_print(printer_id, print_speed=50, bed_temp=55)
    clock.forward(minutes=1)
    after = put(farm, before["id"], **{field: SETTABLE[field]})
    assert after.status_code == 200, after.text
    assert after.json == before | {field: SETTABLE[field], "updated_at": "2026-11-21T09:01:00Z"}
    assert get(farm, before["id"]) == after.json
    assert events(farm, before["id"]) == ["print.created"]


@pytest.mark.parametrize("field", NULLABLE)
def test_a_put_of_null_clears_a_field(farm: Farm, printer_id: int, field: str) -> None:
    made = farm.add_print(printer_id, **SETTABLE)
    assert put(farm, made["id"], **{field: None}).json == made | {field: None}


def test_a_put_of_nothing_changes_nothing(farm: Farm, printer_id: int, clock: Clock) -> None:
    made = farm.add_print(printer_id)
    clock.forward(minutes=1)
    assert put(farm, made["id"]).json == made


def test_a_put_moves_a_waiting_print_to_another_printer(farm: Farm, printer_id: int) -> None:
    other = farm.add_printer("Right")["id"]
    made = farm.add_print(printer_id)
    assert put(farm, made["id"], printer_id=other).json["printer_id"] == other
    assert farm.get(f"{PATH}/{printer_id}").json == []


def test_a_started_print_stays_on_its_printer_and_takes_every_other_change(farm: Farm, printer_id: int) -> None:
    other = farm.add_printer("Right")["id"]
    made = farm.add_print(printer_id)
    farm.move(made["id"], "started")
    assert put(farm, made["id"], printer_id=other).json["code"] == "print_started"
    changed = put(farm, made["id"], printer_id=printer_id, **SETTABLE)
    assert changed.status_code == 200
    assert {name: changed.json[name] for name in SETTABLE} == SETTABLE


def test_a_put_of_another_file_brings_its_name(farm: Farm, printer_id: int) -> None:
    first, second = farm.add_file(), farm.add_file(make_sliced_file(None, [Plate(minutes=5)]))
    with farm.database() as session:
        session.execute(
            sa.text("UPDATE print_files SET file_name = 'bowl.gcode.3mf' WHERE id = :id"), {"id": second["id"]}
        )
        session.commit()
    made = farm.add_print(printer_id, print_file_id=first["id"])
    assert put(farm, made["id"], print_file_id=second["id"]).json["file_name"] == "bowl.gcode.3mf"
    assert put(farm, made["id"], print_file_id=first["id"], file_name="mine").json["file_name"] == "mine"


def test_move_and_changes_are_applied_together_or_not_at_all(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    refused = put(farm, made["id"], status="failed", failed_reason="no", priority=9)
    assert (refused.status_code, get(farm, made["id"])) == (409, made)
    moved = put(farm, made["id"], status="started", priority=9).json
    assert (moved["status"], moved["priority"]) == ("started", 9)


@pytest.mark.parametrize("status", list(PrintStatus))
def test_the_same_status_again_is_200_without_an_event_or_a_booking(
    farm: Farm, printer_id: int, clock: Clock, status: PrintStatus
) -> None:
    farm.add_material(printer_id)
    made = farm.add_print(printer_id, material_slot=0, estimated_grams=10)
    way: dict[str, list[str]] = {
        "queued": [],
        "scheduled": ["scheduled"],
        "started": ["started"],
        "completed": ["started", "completed"],
        "failed": ["started", "failed"],
    }
    if way[status]:
        farm.move(made["id"], *way[status])
    before, history = get(farm, made["id"]), events(farm, made["id"])
    clock.forward(minutes=1)
    extra: dict[str, Any] = {"failed_reason": "it came off the plate"} if status == "failed" else {}
    if status in ("completed", "failed"):
        extra["used_grams"] = 99
    for _ in range(2):
        answer = put(farm, made["id"], status=status, **extra)
        assert (answer.status_code, answer.json) == (200, before)
    assert (get(farm, made["id"]), events(farm, made["id"])) == (before, history)
    with farm.database() as session:
        booked = session.execute(sa.select(sa.func.count()).where(LedgerEntry.print_id == made["id"])).scalar_one()
    assert booked == (1 if status == "completed" else 0)


@pytest.mark.parametrize("end", ["completed", "failed"])
@pytest.mark.parametrize(
    "changes",
    [{"notes": "x"}, {"priority": 4}, {"printer_id": "other"}, {"failed_reason": "another"}, {"used_grams": 3}],
)
def test_an_ended_print_changes_only_together_with_queued(
    farm: Farm, printer_id: int, end: str, changes: dict[str, Any]
) -> None:
    made = farm.add_print(printer_id)
    ended = farm.move(made["id"], "started", end)
    if "printer_id" in changes:
        changes = {"printer_id": farm.add_printer("Right")["id"]}
    answer = put(farm, made["id"], **changes)
    assert answer.status_code == (422 if end == "completed" and "failed_reason" in changes else 409), answer.text
    assert get(farm, made["id"]) == ended
    if not {"failed_reason", "used_grams"} & changes.keys():
        again = put(farm, made["id"], status="queued", **changes).json
        assert {name: again[name] for name in changes} == changes


def test_a_client_that_sends_back_what_it_was_shown_is_not_refused(farm: Farm, printer_id: int, clock: Clock) -> None:
    order = farm.add_order()
    prints = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"]
    ended = farm.move(prints[0]["id"], "started", "completed")
    read_only = {"id", "order_item_id", "waiting_reason", "started_at", "completed_at", "failed_reason"}
    read_only |= {"progress_percent", "material_cost", "used_grams", "created_at", "updated_at"}
    read_only |= {"batch_id", "units", "held_at", "overrides", "needs_look"}
    clock.forward(minutes=1)
    whole = {name: value for name, value in ended.items() if name not in read_only}
    answer = put(farm, ended["id"], **whole)
    assert (answer.status_code, answer.json) == (200, ended)
    assert answer.json["order_item_id"] == order["items"][0]["id"]


def test_a_rescheduled_print_is_as_new_and_its_history_and_grams_stay(
    farm: Farm, printer_id: int, clock: Clock
) -> None:
    farm.add_material(printer_id)
    made = farm.add_print(printer_id, material_slot=0, scheduled_start="2026-11-21T09:00:00Z")
    clock.forward(minutes=1)
    ended = farm.move(made["id"], "started", "failed", used_grams=40)
    assert (ended["used_grams"], ended["material_cost"]) == (40, 0.8)
    clock.forward(minutes=1)
    again = put(farm, made["id"], status="queued").json
    assert again == made | {"scheduled_start": None, "updated_at": "2026-11-21T09:02:00Z"}
    assert farm.get(f"/api/bambu/materials/{printer_id}").json[0]["used_grams"] == 40
    assert events(farm, made["id"]) == ["print.created", "print.started", "print.failed", "print.rescheduled"]


def test_a_rescheduled_print_keeps_a_start_that_is_sent_with_it(farm: Farm, printer_id: int) -> None:
    start = "2026-11-21T09:00:00Z"
    made = farm.add_print(printer_id, scheduled_start=start)
    farm.move(made["id"], "started", "completed")
    assert put(farm, made["id"], status="queued", scheduled_start=start).json["scheduled_start"] == start


def test_a_print_is_not_rescheduled_onto_a_printer_that_is_gone(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    farm.move(made["id"], "started", "completed")
    assert farm.delete(f"/api/printers/{printer_id}").status_code == 200
    assert put(farm, made["id"], status="queued").json["code"] == "printer_removed"
    other = farm.add_printer("Right")["id"]
    assert put(farm, made["id"], status="queued", printer_id=other).json["status"] == "queued"


def test_failed_without_a_reason_is_422(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    farm.move(made["id"], "started")
    for reason in ({}, {"failed_reason": ""}, {"failed_reason": "  "}, {"failed_reason": None}):
        answer = put(farm, made["id"], status="failed", **reason)
        assert (answer.status_code, list(answer.json["fields"])) == (422, ["failed_reason"])
    assert put(farm, made["id"], status="failed", failed_reason="x" * 2001).status_code == 422
    assert put(farm, made["id"], status="failed", failed_reason="x" * 2000).status_code == 200


def test_a_reason_and_used_grams_go_with_an_end(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    for changes, field in (
        ({"failed_reason": "x"}, "failed_reason"),
        ({"used_grams": 1}, "used_grams"),
        ({"status": "started", "used_grams": 1}, "used_grams"),
        ({"status": "completed", "failed_reason": "x"}, "failed_reason"),
    ):
        answer = put(farm, made["id"], **changes)
        assert (answer.status_code, list(answer.json["fields"])) == (422, [field])


@pytest.mark.parametrize("bad", [-0.001, 100_000.001, "5", True, None])
def test_used_grams_are_0_to_100000(farm: Farm, printer_id: int, bad: Any) -> None:
    made = farm.add_print(printer_id)
    farm.move(made["id"], "started")
    assert put(farm, made["id"], status="completed", used_grams=bad).status_code == 422


# A printer that can be heard


@pytest.mark.parametrize(
    ("state", "runs_ours", "way", "status", "code"),
    [
        ("idle", False, [], "started", 409),
        ("printing", False, [], "started", 409),
        ("printing", True, [], "started", 200),
        ("preparing", True, ["scheduled"], "started", 200),
        ("printing", True, ["started"], "completed", 409),
        ("paused", True, ["started"], "failed", 409),
        ("finished", False, ["started"], "completed", 200),
        ("printing", False, ["started"], "failed", 200),
        ("idle", False, [], "scheduled", 200),
    ],
)
def test_a_put_that_contradicts_a_live_printer_is_a_conflict(
    farm: Farm, linked_id: int, clock: Clock, state: str, runs_ours: bool, way: list[str], status: str, code: int
) -> None:
    made = farm.add_print(linked_id)
    if way:
        farm.move(made["id"], *way)
    hear(farm, linked_id, clock, state, current_print_id=made["id"] if runs_ours else None)
    before = get(farm, made["id"])
    extra = {"failed_reason": "x"} if status == "failed" else {}
    answer = put(farm, made["id"], status=status, **extra)
    assert answer.status_code == code, answer.text
    if code == 409:
        assert (answer.json["code"], get(farm, made["id"])) == ("printer_says_otherwise", before)


@pytest.mark.parametrize(
    ("ago_seconds", "status"),
    [(90, ConnectionStatus.connected), (0, ConnectionStatus.offline), (0, ConnectionStatus.connecting)],
)
def test_a_person_records_for_a_printer_without_a_live_link(
    farm: Farm, linked_id: int, clock: Clock, ago_seconds: int, status: ConnectionStatus
) -> None:
    made = farm.add_print(linked_id)
    hear(farm, linked_id, clock, "idle", status=status, ago_seconds=ago_seconds)
    assert put(farm, made["id"], status="started").status_code == 200


def test_a_link_is_live_while_the_last_report_is_under_90_seconds_old(farm: Farm, linked_id: int, clock: Clock) -> None:
    made = farm.add_print(linked_id)
    hear(farm, linked_id, clock, "idle", ago_seconds=89.9)
    assert put(farm, made["id"], status="started").status_code == 409


def test_the_printer_that_a_print_is_moved_to_has_the_word(
    farm: Farm, linked_id: int, printer_id: int, clock: Clock
) -> None:
    made = farm.add_print(printer_id)
    hear(farm, linked_id, clock, "idle")
    assert put(farm, made["id"], status="started", printer_id=linked_id).json["code"] == "printer_says_otherwise"
    here = farm.add_print(linked_id)
    assert put(farm, here["id"], status="started", printer_id=printer_id).status_code == 200


UNSENT = [IntentState.claimed, IntentState.uploading, IntentState.armed]


@pytest.mark.parametrize("state", [*UNSENT, IntentState.published])
def test_a_print_that_is_being_sent_is_not_edited(farm: Farm, linked_id: int, state: IntentState) -> None:
    made = farm.add_print(linked_id, status="scheduled")
    add_intent(farm, made["id"], state)
    for answer in (put(farm, made["id"], priority=5), put(farm, made["id"], print_file_id=None, plate=2)):
        assert (answer.status_code, answer.json["code"]) == (409, "start_under_way")
    assert get(farm, made["id"]) == made


def test_a_print_whose_start_may_have_been_sent_is_neither_taken_back_nor_deleted(farm: Farm, linked_id: int) -> None:
    made = farm.add_print(linked_id, status="scheduled")
    add_intent(farm, made["id"], IntentState.published)
    for answer in (put(farm, made["id"], status="queued"), farm.delete(f"{PATH}/{made['id']}")):
        assert (answer.status_code, answer.json["code"]) == (409, "start_under_way")
    assert get(farm, made["id"]) == made


@pytest.mark.parametrize("state", UNSENT)
@pytest.mark.parametrize("way", ["queued", "deleted"])
def test_a_print_is_taken_back_as_long_as_its_start_was_not_sent(
    farm: Farm, linked_id: int, state: IntentState, way: str
) -> None:
    made = farm.add_print(linked_id, status="scheduled")
    add_intent(farm, made["id"], state)
    answer = farm.delete(f"{PATH}/{made['id']}") if way == "deleted" else put(farm, made["id"], status="queued")
    assert answer.status_code == 200, answer.text
    with farm.database() as session:
        intent = session.execute(sa.select(StartIntent)).scalar_one()
        assert (intent.state, intent.reason) == (IntentState.withdrawn, "a person took it back")
        assert intent.ended_at is not None


@pytest.mark.parametrize("state", [IntentState.withdrawn, IntentState.not_started, IntentState.refused])
def test_a_print_whose_start_came_to_nothing_is_free_again(farm: Farm, linked_id: int, state: IntentState) -> None:
    made = farm.add_print(linked_id, status="scheduled")
    add_intent(farm, made["id"], state)
    assert put(farm, made["id"], priority=5).status_code == 200
    assert put(farm, made["id"], status="queued").status_code == 200
    assert farm.delete(f"{PATH}/{made['id']}").status_code == 200


# Start, pause, resume, stop


def test_start_releases_a_queued_print(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    answer = farm.post(f"{PATH}/{made['id']}/start")
    assert (answer.status_code, answer.json["status"], answer.json["started_at"]) == (200, "scheduled", None)
    assert events(farm, made["id"]) == ["print.created", "print.scheduled"]


def test_start_on_a_scheduled_print_changes_nothing(farm: Farm, printer_id: int, clock: Clock) -> None:
    made = farm.add_print(printer_id)
    first = farm.post(f"{PATH}/{made['id']}/start").json
    with farm.database() as session:
        session.execute(sa.update(ScheduledPrint).values(waiting_reason="what the worker said"))
        session.commit()
    clock.forward(minutes=1)
    again = farm.post(f"{PATH}/{made['id']}/start")
    assert (again.status_code, again.json) == (200, first | {"waiting_reason": "what the worker said"})
    assert events(farm, made["id"]) == ["print.created", "print.scheduled"]


@pytest.mark.parametrize("way", [["started"], ["started", "completed"], ["started", "failed"]])
def test_start_in_a_wrong_state_is_a_conflict(farm: Farm, printer_id: int, way: list[str]) -> None:
    made = farm.add_print(printer_id)
    moved = farm.move(made["id"], *way)
    answer = farm.post(f"{PATH}/{made['id']}/start")
    assert (answer.status_code, answer.json["code"], get(farm, made["id"])) == (409, "illegal_move", moved)


UNREACHED, WANTS_RED = "the printer cannot be reached", "needs PLA red 20 g"


def test_a_release_that_an_interlock_holds_is_200_scheduled_and_says_why(
    farm: Farm, printer_id: int, linked_id: int, clock: Clock
) -> None:
    file = farm.add_file()["id"]
    farm.add_material(linked_id, color="#FFFFFF")
    cases = [
        (farm.add_print(linked_id), "it has no sliced file"),
        (farm.add_print(linked_id, print_file_id=file, scheduled_start="2026-11-21T12:00:00Z"), UNREACHED),
        (farm.add_print(linked_id, print_file_id=file, material_color="red"), f"{WANTS_RED}, slot 0 has white"),
        (
            farm.add_print(printer_id, print_file_id=file),
            "the printer has no connection: start it there and record it here",
        ),
        (farm.add_print(linked_id, print_file_id=file), UNREACHED),
    ]
    for made, reason in cases:
        released = farm.post(f"{PATH}/{made['id']}/start")
        assert (released.status_code, released.json["status"], released.json["waiting_reason"]) == (
            200,
            "scheduled",
            reason,
        )
        taken_back = put(farm, made["id"], status="queued").json
        assert (taken_back["status"], taken_back["waiting_reason"]) == ("queued", None)
        by_put = put(farm, made["id"], status="scheduled").json
        assert (by_put["status"], by_put["waiting_reason"]) == ("scheduled", reason)
    assert farm.add_print(linked_id, status="scheduled")["waiting_reason"] == "it has no sliced file"
    hear(farm, linked_id, clock, "printing")
    held = farm.add_print(linked_id, print_file_id=file, status="scheduled")
    assert held["waiting_reason"] == "the printer is printing"


def test_a_released_print_that_is_given_its_file_no_longer_says_that_it_has_none(farm: Farm, linked_id: int) -> None:
    farm.add_material(linked_id, color="#FFFFFF")
    made = farm.add_print(linked_id, status="scheduled")
    given = put(farm, made["id"], print_file_id=farm.add_file()["id"]).json
    assert given["waiting_reason"] == "the printer cannot be reached"


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
@pytest.mark.parametrize("way", [[], ["scheduled"], ["started", "completed"], ["started", "failed"]])
def test_a_command_to_a_print_that_does_not_run_is_a_conflict(
    farm: Farm, linked_id: int, clock: Clock, command: str, way: list[str]
) -> None:
    made = farm.add_print(linked_id)
    if way:
        farm.move(made["id"], *way)
    hear(farm, linked_id, clock, "idle")
    answer = farm.post(f"{PATH}/{made['id']}/{command}")
    assert (answer.status_code, answer.json["code"]) == (409, "not_running")


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
def test_a_command_without_a_live_link_is_a_conflict(
    farm: Farm, printer_id: int, linked_id: int, clock: Clock, command: str
) -> None:
    for on in (printer_id, linked_id):
        made = farm.add_print(on)
        farm.move(made["id"], "started")
        answer = farm.post(f"{PATH}/{made['id']}/{command}")
        assert (answer.status_code, answer.json["code"]) == (409, "no_live_link")
    hear(farm, linked_id, clock, "printing", current_print_id=made["id"], ago_seconds=90)
    assert farm.post(f"{PATH}/{made['id']}/{command}").json["code"] == "no_live_link"


@pytest.fixture
def impatient_farm(app: Flask, session_database_url: str, tmp_path: Path, clock: Clock) -> Iterator[Farm]:
    """A farm that waits for a printer's word for a fifth of a second, and whose worker does not run."""
    with another_app(session_database_url, tmp_path, clock, COMMAND_TIMEOUT_SECONDS="0.2") as made:
        yield Farm(made, "seller@example.com")


@pytest.mark.parametrize("command", ["pause", "resume", "stop", "delete"])
def test_a_command_that_the_printer_does_not_confirm_in_time_is_502_and_is_not_sent_later(
    impatient_farm: Farm, clock: Clock, command: str
) -> None:
    farm = impatient_farm
    printer_id = farm.add_printer(**LAN)["id"]
    made = farm.add_print(printer_id)
    moved = farm.move(made["id"], "started")
    hear(farm, printer_id, clock, "printing", current_print_id=made["id"])
    path = f"{PATH}/{made['id']}"
    answer = farm.delete(path) if command == "delete" else farm.post(f"{path}/{command}")
    assert (answer.status_code, answer.json["code"]) == (502, "not_confirmed")
    assert get(farm, made["id"]) == moved
    with farm.database() as session:
        asked = session.execute(sa.select(PrinterCommand)).scalar_one()
        wanted = CommandKind.stop if command == "delete" else CommandKind(command)
        assert (asked.kind, asked.state) == (wanted, CommandState.expired)


def settle_command(app: Flask, state: CommandState, reason: str | None = None) -> None:
    """What the worker does with a command, as soon as there is one."""
    for _ in range(500):
        with app.app_context():
            found = db.session.execute(
                sa.update(PrinterCommand)
                .where(PrinterCommand.state == CommandState.requested)
                .values(state=state, reason=reason)
            )
            db.session.commit()
            if found.rowcount:
                return
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("state", "code"), [(CommandState.done, 200), (CommandState.refused, 502), (CommandState.expired, 502)]
)
@pytest.mark.parametrize("command", ["pause", "resume", "stop", "delete"])
def test_a_command_ends_as_the_printer_says(
    app: Flask, farm: Farm, linked_id: int, clock: Clock, command: str, state: CommandState, code: int
) -> None:
    made = farm.add_print(linked_id)
    farm.move(made["id"], "started")
    hear(farm, linked_id, clock, "printing", current_print_id=made["id"])
    worker = threading.Thread(target=settle_command, args=(app, state, "it <b>is</b> busy"))
    worker.start()
    path = f"{PATH}/{made['id']}"
    answer = farm.delete(path) if command == "delete" else farm.post(f"{path}/{command}")
    worker.join(10)
    assert answer.status_code == code, answer.text
    assert (farm.get_print(made["id"]) is None) is (command == "delete" and code == 200)


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
def test_a_printer_that_runs_another_print_is_not_told_anything(
    farm: Farm, linked_id: int, clock: Clock, command: str
) -> None:
    made = farm.add_print(linked_id)
    farm.move(made["id"], "started")
    hear(farm, linked_id, clock, "printing", current_print_id=None)
    answer = farm.post(f"{PATH}/{made['id']}/{command}")
    assert (answer.status_code, answer.json["code"]) == (409, "printer_says_otherwise")
    assert farm.delete(f"{PATH}/{made['id']}").status_code == 502
    with farm.database() as session:
        assert session.execute(sa.text("SELECT count(*) FROM printer_commands")).scalar_one() == 0


# Delete


@pytest.mark.parametrize("way", [[], ["scheduled"], ["started"], ["started", "completed"], ["started", "failed"]])
def test_a_deleted_print_is_gone_from_every_list_and_its_history_stays(
    farm: Farm, printer_id: int, way: list[str]
) -> None:
    farm.add_material(printer_id)
    made = farm.add_print(printer_id, material_slot=0, estimated_grams=12)
    if way:
        farm.move(made["id"], *way)
    answer = farm.delete(f"{PATH}/{made['id']}")
    assert (answer.status_code, answer.json) == (200, {"message": "Print deleted", "id": made["id"]})
    for path in (PATH, f"{PATH}?id={made['id']}", f"{PATH}/{printer_id}", f"{PATH}/{printer_id}/queue"):
        assert farm.get(path).json == []
    for again in (
        farm.delete(f"{PATH}/{made['id']}"),
        put(farm, made["id"], priority=1),
        farm.post(f"{PATH}/{made['id']}/start"),
    ):
        assert again.status_code == 404
    with farm.database() as session:
        kept = session.execute(
            sa.select(PrintEvent.kind).where(PrintEvent.print_id == made["id"]).order_by(PrintEvent.id)
        ).scalars()
        booked = session.execute(sa.select(LedgerEntry.delta_grams).where(LedgerEntry.print_id == made["id"])).scalars()
        assert list(kept) == ["print.created", *[f"print.{status}" for status in way], "print.deleted"]
        assert list(booked) == ([-12] if way[-1:] == ["completed"] else [])


def test_a_started_print_on_an_offline_printer_is_not_deleted(farm: Farm, linked_id: int, clock: Clock) -> None:
    made = farm.add_print(linked_id)
    moved = farm.move(made["id"], "started")
    hear(farm, linked_id, clock, "printing", current_print_id=made["id"], ago_seconds=300)
    answer = farm.delete(f"{PATH}/{made['id']}")
    assert (answer.status_code, answer.json["code"], get(farm, made["id"])) == (502, "not_confirmed", moved)


def test_a_printer_with_a_connection_is_not_asked_about_a_print_that_does_not_run(farm: Farm, linked_id: int) -> None:
    for way in ([], ["scheduled"], ["started", "failed"]):
        made = farm.add_print(linked_id)
        if way:
            farm.move(made["id"], *way)
        assert farm.delete(f"{PATH}/{made['id']}").status_code == 200


# The database itself


@pytest.mark.parametrize(
    "values",
    [
        *[{"nozzle_temp": bad} for bad in (-1, 501)],
        *[{"bed_temp": bad} for bad in (-1, 201)],
        *[{"print_speed": bad} for bad in (0, 2001)],
        *[{"estimated_duration_minutes": bad} for bad in (0, 100_001)],
        *[{"priority": bad} for bad in (-1001, 1001)],
        *[{"material_slot": bad} for bad in (-1, 8)],
        *[{"progress_percent": bad} for bad in (-1, 101)],
        {"plate": 0},
        {"estimated_grams": -1},
        {"used_grams": 100_001},
    ],
)
def test_the_database_holds_the_ranges_too(farm: Farm, printer_id: int, values: dict[str, Any]) -> None:
    made = farm.add_print(printer_id)
    with farm.database() as session, pytest.raises(sa.exc.IntegrityError):
        session.execute(sa.update(ScheduledPrint).where(ScheduledPrint.id == made["id"]).values(**values))


def test_the_database_holds_the_five_words(farm: Farm, printer_id: int) -> None:
    farm.add_print(printer_id)
    with farm.database() as session, pytest.raises(sa.exc.IntegrityError):
        session.execute(sa.text("UPDATE scheduled_prints SET status = 'cancelled'"))


def test_the_database_refuses_a_print_on_another_users_printer(farm: Farm, stranger: Farm, printer_id: int) -> None:
    theirs = stranger.add_printer()["id"]
    farm.add_print(printer_id)
    with farm.database() as session, pytest.raises(sa.exc.IntegrityError):
        session.execute(sa.update(ScheduledPrint).values(printer_id=theirs))
        session.commit()
