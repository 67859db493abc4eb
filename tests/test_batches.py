"""Batches: so many pieces of one plate; what is made, on its way and still owed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from farm.batches import Tally, plates_for
from farm.plate_facts import PlateFacts
from models import IntentState, PrintBatch, PrintFile, ScheduledPrint, StartIntent
from simulator import Plate, make_sliced_file
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.rows import LAN, add_intent

PATH = "/api/print-batches"
PRINTS = "/api/bambu/scheduled-prints"
MISSING_ID = 2_000_000_000
FIELDS = {
    *("id", "name", "printer_id", "print_file_id", "plate", "quantity", "units_per_plate", "priority"),
    *("completed_units", "open_units", "failed_units", "owed_units", "prints", "cancelled_at"),
    *("created_at", "updated_at"),
}
NONE = {"queued": 0, "scheduled": 0, "started": 0, "completed": 0, "failed": 0}


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer()["id"])


@pytest.fixture
def body(farm: Farm, printer_id: int) -> dict[str, Any]:
    """A batch of a file that was read long ago: an upload takes a process of its own."""
    with farm.database() as session:
        facts = PlateFacts(1, print_minutes=30)
        file = PrintFile(user_id=farm.user["id"], file_name="vase.gcode.3mf", sha256="0" * 64, size_bytes=1)
        file.plates, file.created_at = [facts.to_json()], BASE_TIME
        session.add(file)
        session.commit()
        file_id = file.id
    return {"name": "Vases", "printer_id": printer_id, "print_file_id": file_id, "quantity": 5}


def add(farm: Farm, body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return farm.made(PATH, body | fields)


def prints_of(farm: Farm, batch_id: int) -> list[dict[str, Any]]:
    """In the order in which they were made."""
    found: list[dict[str, Any]] = farm.get(PRINTS, query_string={"batch_id": batch_id, "limit": 1000}).json
    return sorted(found, key=lambda each: each["id"])


def get(farm: Farm, batch_id: int) -> dict[str, Any]:
    answer = farm.get(f"{PATH}/{batch_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


def units(batch: dict[str, Any]) -> tuple[int, int, int, int]:
    return batch["completed_units"], batch["open_units"], batch["failed_units"], batch["owed_units"]


def top_up(farm: Farm, batch_id: int, **kwargs: Any) -> TestResponse:
    return farm.post(f"{PATH}/{batch_id}/top-up", **kwargs)


# Making one


def test_a_batch_makes_as_many_prints_as_its_quantity_takes(farm: Farm, body: dict[str, Any]) -> None:
    made = add(farm, body, units_per_plate=2, priority=7)
    assert set(made) == FIELDS
    assert made == {
        **body,
        "id": made["id"],
        "plate": 1,
        "units_per_plate": 2,
        "priority": 7,
        "completed_units": 0,
        "open_units": 6,
        "failed_units": 0,
        "owed_units": 0,
        "prints": NONE | {"queued": 3},
        "cancelled_at": None,
        "created_at": "2026-11-21T09:00:00Z",
        "updated_at": "2026-11-21T09:00:00Z",
    }
    prints = prints_of(farm, made["id"])
    assert [(each["job_name"], each["units"], each["priority"], each["status"]) for each in prints] == [
        ("Vases", 2, 7, "queued")
    ] * 3
    assert {each["print_file_id"] for each in prints} == {body["print_file_id"]}
    queue = farm.get(f"{PRINTS}/{body['printer_id']}/queue").json
    assert [each["id"] for each in queue] == [each["id"] for each in prints]
    assert [each["kind"] for each in farm.get(f"{PRINTS}/{prints[0]['id']}/events").json] == ["print.created"]


def test_what_its_prints_are_told_comes_from_their_plate(farm: Farm, printer_id: int, body: dict[str, Any]) -> None:
    file = farm.add_file(make_sliced_file(None, [Plate(1, minutes=11), Plate(3, minutes=33)]))
    by_hand = farm.add_print(printer_id, print_file_id=file["id"], plate=3)
    made = add(farm, body, print_file_id=file["id"], plate=3, quantity=1)
    (only,) = prints_of(farm, made["id"])
    taken = ("file_name", "plate", "estimated_duration_minutes", "estimated_grams", "material_type", "material_color")
    assert {name: only[name] for name in taken} == {name: by_hand[name] for name in taken}
    assert only["estimated_duration_minutes"] == 33


def test_a_print_by_hand_belongs_to_no_batch(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    assert (made["batch_id"], made["units"]) == (None, 1)


@pytest.mark.parametrize(
    ("quantity", "units_per_plate", "count"), [(1, 1, 1), (500, 1, 500), (10_000, 20, 500), (3, 10_000, 1)]
)
def test_the_edges_of_a_quantity(
    farm: Farm, body: dict[str, Any], quantity: int, units_per_plate: int, count: int
) -> None:
    made = add(farm, body, quantity=quantity, units_per_plate=units_per_plate)
    assert (made["prints"]["queued"], made["open_units"]) == (count, count * units_per_plate)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"quantity": 501}, {"quantity"}),
        ({"quantity": 10_000, "units_per_plate": 19}, {"quantity"}),
        ({"quantity": 0, "units_per_plate": 0, "plate": 0}, {"quantity", "units_per_plate", "plate"}),
        ({"quantity": 10_001, "units_per_plate": 10_001, "plate": 1001}, {"quantity", "units_per_plate", "plate"}),
        ({"quantity": "5", "name": "", "priority": 1001}, {"quantity", "name", "priority"}),
        ({"plate": 2}, {"plate"}),
        ({"completed_units": 3, "cancelled_at": None}, {"completed_units", "cancelled_at"}),
    ],
)
def test_bad_batches_are_refused_with_all_faults(
    farm: Farm, body: dict[str, Any], fields: dict[str, Any], wrong: set[str]
) -> None:
    answer = farm.post(PATH, body | fields)
    assert (answer.status_code, set(answer.json["fields"])) == (422, wrong)
    assert farm.get(PATH).json == {"print_batches": [], "total": 0}
    assert farm.get(PRINTS).json == []


def test_what_a_batch_needs(farm: Farm) -> None:
    answer = farm.post(PATH, {})
    assert (answer.status_code, set(answer.json["fields"])) == (
        422,
        {"name", "printer_id", "print_file_id", "quantity"},
    )


def test_a_batch_of_somebody_elses_things_is_404(farm: Farm, stranger: Farm, body: dict[str, Any]) -> None:
    foreign = {"printer_id": stranger.add_printer()["id"], "print_file_id": stranger.add_file()["id"]}
    missing = farm.get(f"{PATH}/{MISSING_ID}")
    for name, theirs in foreign.items():
        for bad in (theirs, MISSING_ID):
            answer = farm.post(PATH, body | {name: bad})
            assert (answer.status_code, answer.data) == (404, missing.data)


def test_a_batch_with_the_same_key_is_made_once(farm: Farm, body: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "batch"}
    answers = [farm.post(PATH, body, headers=key) for _ in range(2)]
    assert [each.status_code for each in answers] == [201, 201] and answers[0].json == answers[1].json
    assert farm.get(PATH).json["total"] == 1 and len(prints_of(farm, answers[0].json["id"])) == 5


# Reading


def test_batches_come_by_id_in_pages(farm: Farm, stranger: Farm, body: dict[str, Any]) -> None:
    made = [add(farm, body, name=f"batch {number}", quantity=number) for number in (1, 2, 3)]
    assert farm.get(PATH).json == {"print_batches": made, "total": 3}
    assert farm.get(f"{PATH}?limit=1&offset=1").json == {"print_batches": made[1:2], "total": 3}
    assert farm.get(f"{PATH}?limit=0").status_code == 422
    assert stranger.get(PATH).json == {"print_batches": [], "total": 0}


def test_somebody_elses_batch_is_not_there(farm: Farm, stranger: Farm, body: dict[str, Any]) -> None:
    mine = add(farm, body)
    for method, tail, sent in (("GET", "", None), ("PUT", "", {}), ("DELETE", "", None), ("POST", "/top-up", None)):
        kwargs = {"json": sent} if sent is not None else {}
        answers = [stranger.call(method, f"{PATH}/{each}{tail}", **kwargs) for each in (mine["id"], MISSING_ID)]
        assert answers[0].status_code == 404 and answers[0].data == answers[1].data
    assert stranger.get(PRINTS, query_string={"batch_id": mine["id"]}).json == []
    assert get(farm, mine["id"]) == mine


def test_pieces_follow_their_prints(farm: Farm, body: dict[str, Any]) -> None:
    made = add(farm, body, quantity=8, units_per_plate=2)
    done, failed, running, _ = (each["id"] for each in prints_of(farm, made["id"]))
    farm.move(done, "started", "completed")
    farm.move(failed, "started", "failed")
    farm.move(running, "started")
    batch = get(farm, made["id"])
    assert units(batch) == (2, 4, 2, 2)
    assert batch["prints"] == NONE | {"completed": 1, "failed": 1, "started": 1, "queued": 1}
    # Tried again it is on its way again; deleted it is owed again; made is made, on the lists or not.
    farm.post(f"{PRINTS}/{failed}/retry")
    assert units(get(farm, made["id"])) == (2, 6, 0, 0)
    farm.delete(f"{PRINTS}/{failed}")
    farm.delete(f"{PRINTS}/{done}")
    batch = get(farm, made["id"])
    assert units(batch) == (2, 4, 0, 2)
    assert batch["prints"] == NONE | {"started": 1, "queued": 1}
    assert farm.get(PATH).json["print_batches"] == [batch]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    quantity=st.integers(1, 30),
    rows=st.lists(
        st.tuples(
            st.sampled_from(["queued", "scheduled", "started", "completed", "failed"]), st.booleans(), st.integers(1, 9)
        ),
        max_size=8,
    ),
)
def test_what_is_owed_is_what_is_neither_made_nor_on_its_way(
    farm: Farm, printer_id: int, quantity: int, rows: list[tuple[str, bool, int]]
) -> None:
    stamps = {"created_at": BASE_TIME, "updated_at": BASE_TIME}
    owner = {"user_id": farm.user["id"], "printer_id": printer_id}
    with farm.database() as session:
        batch = PrintBatch(name="x", quantity=quantity, units_per_plate=1, **owner, **stamps)
        session.add(batch)
        session.flush()
        for status, is_deleted, pieces in rows:
            values = {"status": status, "units": pieces, "deleted_at": BASE_TIME if is_deleted else None}
            session.add(ScheduledPrint(job_name="x", batch_id=batch.id, **owner, **stamps, **values))
        session.commit()
        batch_id = batch.id
    made = sum(pieces for status, _, pieces in rows if status == "completed")
    on_its_way = sum(pieces for status, gone, pieces in rows if not gone and status not in ("completed", "failed"))
    failed = sum(pieces for status, gone, pieces in rows if not gone and status == "failed")
    assert units(get(farm, batch_id)) == (made, on_its_way, failed, max(0, quantity - made - on_its_way))


def test_a_plate_that_yields_more_than_is_owed_owes_nothing() -> None:
    assert Tally(completed_units=4, open_units=4).owed(5) == 0
    assert [plates_for(pieces, 4) for pieces in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]


# Changing


def test_a_higher_quantity_queues_what_it_takes_and_no_more(farm: Farm, body: dict[str, Any], clock: Clock) -> None:
    made = add(farm, body, quantity=5, units_per_plate=4)
    clock.forward(minutes=1)
    # Two plates yield 8 already.
    assert units(farm.put(f"{PATH}/{made['id']}", {"quantity": 8}).json) == (0, 8, 0, 0)
    changed = farm.put(f"{PATH}/{made['id']}", {"quantity": 13, "name": "More vases"})
    assert changed.status_code == 200, changed.text
    assert (units(changed.json), changed.json["quantity"]) == ((0, 16, 0, 0), 13)
    assert changed.json["updated_at"] == "2026-11-21T09:01:00Z"
    assert [each["job_name"] for each in prints_of(farm, made["id"])] == ["Vases", "Vases", "More vases", "More vases"]


def test_a_higher_quantity_does_not_bring_back_what_failed(farm: Farm, body: dict[str, Any]) -> None:
    made = add(farm, body, quantity=2)
    farm.move(prints_of(farm, made["id"])[0]["id"], "started", "failed")
    changed = farm.put(f"{PATH}/{made['id']}", {"quantity": 4}).json
    assert units(changed) == (0, 3, 1, 1)


def test_a_lower_quantity_cancels_nothing(farm: Farm, body: dict[str, Any]) -> None:
    made = add(farm, body, quantity=4)
    changed = farm.put(f"{PATH}/{made['id']}", {"quantity": 1}).json
    assert (changed["quantity"], units(changed)) == (1, (0, 4, 0, 0))
    assert units(farm.put(f"{PATH}/{made['id']}", {"quantity": 4}).json) == (0, 4, 0, 0)


def test_a_quantity_that_takes_too_many_at_once_changes_nothing(farm: Farm, body: dict[str, Any]) -> None:
    made = add(farm, body, quantity=1)
    answer = farm.put(f"{PATH}/{made['id']}", {"quantity": 502, "name": "Other"})
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["quantity"])
    assert get(farm, made["id"]) == made
    assert farm.put(f"{PATH}/{made['id']}", {"quantity": 501}).json["open_units"] == 501


def test_a_priority_goes_for_the_prints_that_wait(farm: Farm, body: dict[str, Any]) -> None:
    made = add(farm, body, quantity=3)
    waiting, released, running = (each["id"] for each in prints_of(farm, made["id"]))
    farm.move(released, "scheduled")
    farm.move(running, "started")
    farm.put(f"{PATH}/{made['id']}", {"priority": 9})
    assert [each["priority"] for each in prints_of(farm, made["id"])] == [9, 9, 0]
    # The same again leaves alone what was reordered by hand since.
    farm.put(f"{PRINTS}/{waiting}", {"priority": 2})
    farm.put(f"{PATH}/{made['id']}", {"priority": 9})
    assert [each["priority"] for each in prints_of(farm, made["id"])] == [2, 9, 0]


def test_a_change_of_nothing_changes_nothing(farm: Farm, body: dict[str, Any], clock: Clock) -> None:
    made = add(farm, body)
    clock.forward(minutes=1)
    assert farm.put(f"{PATH}/{made['id']}", {}).json == made
    same = {name: made[name] for name in ("name", "quantity", "priority")}
    assert farm.put(f"{PATH}/{made['id']}", same).json == made
    for field in ("printer_id", "print_file_id", "plate", "units_per_plate"):
        assert farm.put(f"{PATH}/{made['id']}", {field: 1}).status_code == 422


# Topping up


def test_what_is_owed_is_queued_when_a_person_asks_for_it(farm: Farm, body: dict[str, Any]) -> None:
    made = add(farm, body, quantity=6, units_per_plate=2)
    first, second, third = (each["id"] for each in prints_of(farm, made["id"]))
    farm.move(first, "started", "failed")
    farm.delete(f"{PRINTS}/{second}")
    farm.move(third, "started", "completed")
    assert units(get(farm, made["id"])) == (2, 0, 2, 4)
    answer = top_up(farm, made["id"])
    assert (answer.status_code, units(answer.json)) == (200, (2, 4, 2, 0))
    assert top_up(farm, made["id"]).json == answer.json
    assert [each["id"] for each in farm.get(f"{PRINTS}/{body['printer_id']}/queue").json] == [
        each["id"] for each in prints_of(farm, made["id"])[2:]
    ]


def test_a_top_up_with_the_same_key_is_one(farm: Farm, body: dict[str, Any]) -> None:
    made = add(farm, body, quantity=1)
    farm.move(prints_of(farm, made["id"])[0]["id"], "started", "failed")
    key = {"Idempotency-Key": "more"}
    first = top_up(farm, made["id"], headers=key)
    farm.delete(f"{PRINTS}/{prints_of(farm, made['id'])[-1]['id']}")
    again = top_up(farm, made["id"], headers=key)
    assert (again.json, again.headers["Idempotent-Replay"]) == (first.json, "true")
    assert units(get(farm, made["id"])) == (0, 0, 1, 1)


def at_once(*calls: Callable[[], TestResponse]) -> set[int]:
    codes: list[int] = []
    ready = threading.Barrier(len(calls))

    def run(call: Callable[[], TestResponse]) -> None:
        ready.wait(20)
        codes.append(call().status_code)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    assert len(codes) == len(calls)
    return set(codes)


def test_many_that_ask_for_more_at_once_queue_it_once(farm: Farm, body: dict[str, Any]) -> None:
    made = add(farm, body, quantity=4)
    for each in prints_of(farm, made["id"]):
        farm.delete(f"{PRINTS}/{each['id']}")
    assert at_once(*[lambda: top_up(farm, made["id"])] * 6) == {200}
    assert units(get(farm, made["id"])) == (0, 4, 0, 0)
    for each in prints_of(farm, made["id"])[:2]:
        farm.move(each["id"], "started", "failed")
    for quantity in (9, 17, 30):
        assert at_once(*[lambda: farm.put(f"{PATH}/{made['id']}", {"quantity": quantity})] * 6) == {200}  # noqa: B023
        assert units(get(farm, made["id"])) == (0, quantity - 2, 2, 2)


def test_at_most_500_are_queued_at_once(farm: Farm, body: dict[str, Any]) -> None:
    made = add(farm, body, quantity=1)
    farm.put(f"{PATH}/{made['id']}", {"quantity": 501})
    with farm.database() as session:
        session.execute(sa.update(ScheduledPrint).values(deleted_at=BASE_TIME))
        session.commit()
    assert units(top_up(farm, made["id"]).json) == (0, 500, 0, 1)
    assert units(top_up(farm, made["id"]).json) == (0, 501, 0, 0)


def test_nothing_is_queued_on_a_printer_that_is_gone_or_of_a_file_that_is(farm: Farm, body: dict[str, Any]) -> None:
    made = add(farm, body, quantity=1)
    (only,) = prints_of(farm, made["id"])
    assert farm.delete(f"/api/print-files/{body['print_file_id']}").status_code == 409
    farm.delete(f"{PRINTS}/{only['id']}")
    assert farm.delete(f"/api/print-files/{body['print_file_id']}").status_code == 200
    assert get(farm, made["id"])["print_file_id"] is None
    assert top_up(farm, made["id"]).json["code"] == "file_gone"
    assert farm.put(f"{PATH}/{made['id']}", {"quantity": 2}).json["code"] == "file_gone"
    assert farm.put(f"{PATH}/{made['id']}", {"name": "Old"}).json["quantity"] == 1
    assert farm.delete(f"/api/printers/{body['printer_id']}").status_code == 200
    assert top_up(farm, made["id"]).json["code"] == "printer_removed"
    assert farm.delete(f"{PATH}/{made['id']}").status_code == 200


# Cancelling


def test_a_cancelled_batch_takes_its_waiting_prints_along_and_nothing_else(
    farm: Farm, body: dict[str, Any], clock: Clock
) -> None:
    made = add(farm, body, quantity=5)
    waiting, released, running, done, failed = (each["id"] for each in prints_of(farm, made["id"]))
    other = add(farm, body, quantity=1, name="Other")
    farm.move(released, "scheduled")
    farm.move(running, "started")
    farm.move(done, "started", "completed")
    farm.move(failed, "started", "failed")
    clock.forward(minutes=1)
    answer = farm.delete(f"{PATH}/{made['id']}")
    assert (answer.status_code, answer.json) == (200, {"message": "Batch cancelled", "id": made["id"]})
    assert [each["id"] for each in prints_of(farm, made["id"])] == [running, done, failed]
    batch = get(farm, made["id"])
    assert (units(batch), batch["cancelled_at"]) == ((1, 1, 1, 0), "2026-11-21T09:01:00Z")
    assert get(farm, other["id"]) == other
    with farm.database() as session:
        said = sa.text("SELECT print_id FROM print_events WHERE kind = 'print.deleted' ORDER BY print_id")
        assert list(session.execute(said).scalars()) == [waiting, released]
    clock.forward(minutes=1)
    assert farm.delete(f"{PATH}/{made['id']}").status_code == 200
    assert get(farm, made["id"]) == batch
    assert farm.move(running, "completed")["status"] == "completed"


def test_a_cancelled_batch_takes_no_prints_any_more(farm: Farm, body: dict[str, Any]) -> None:
    made = add(farm, body)
    farm.delete(f"{PATH}/{made['id']}")
    for answer in (top_up(farm, made["id"]), farm.put(f"{PATH}/{made['id']}", {"quantity": 9})):
        assert (answer.status_code, answer.json["code"]) == (409, "batch_cancelled")
    assert prints_of(farm, made["id"]) == []


@pytest.mark.parametrize(
    ("state", "goes_on"),
    [
        (IntentState.claimed, False),
        (IntentState.uploading, False),
        (IntentState.published, True),
        (IntentState.unknown, True),
        (IntentState.withdrawn, False),
    ],
)
def test_a_print_that_may_have_been_sent_to_its_printer_goes_on(
    farm: Farm, body: dict[str, Any], state: IntentState, goes_on: bool
) -> None:
    linked = farm.add_printer("Linked", **LAN)["id"]
    made = add(farm, body, printer_id=linked, quantity=2)
    first, _ = (each["id"] for each in prints_of(farm, made["id"]))
    farm.move(first, "scheduled")
    intent_id = add_intent(farm, first, state)
    assert farm.delete(f"{PATH}/{made['id']}").status_code == 200
    assert [each["id"] for each in prints_of(farm, made["id"])] == ([first] if goes_on else [])
    with farm.database() as session:
        after = session.get_one(StartIntent, intent_id).state
        assert after is (state if goes_on else IntentState.withdrawn)


# The database itself


@pytest.mark.parametrize(
    "values",
    [
        *({"quantity": bad} for bad in (0, 10_001)),
        *({"units_per_plate": bad} for bad in (0, 10_001)),
        *({"priority": bad} for bad in (-1001, 1001)),
        {"plate": 0},
    ],
)
def test_the_database_holds_the_ranges_too(farm: Farm, body: dict[str, Any], values: dict[str, int]) -> None:
    add(farm, body)
    with farm.database() as session, pytest.raises(sa.exc.IntegrityError):
        session.execute(sa.update(PrintBatch).values(**values))
