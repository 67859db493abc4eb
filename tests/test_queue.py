"""The queue through the API: any order that is asked for, paused queues, held prints, another try, overridden locks."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from farm.interlocks import OVERRIDABLE, Interlock
from farm.queue import HIGHEST_PRIORITY, LOWEST_PRIORITY, Place, priorities_for
from models import IntentState, PrintEvent, ScheduledPrint, StartIntent, db
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.rows import LAN, add_intent

PATH = "/api/bambu/scheduled-prints"
MISSING_ID = 2_000_000_000


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer()["id"])


def queue(farm: Farm, printer_id: int) -> list[int]:
    return [each["id"] for each in farm.get(f"{PATH}/{printer_id}/queue").json]


def reorder(farm: Farm, printer_id: int, ids: list[int]) -> TestResponse:
    return farm.put(f"{PATH}/{printer_id}/queue", {"print_ids": ids})


def events(farm: Farm, print_id: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = farm.get(f"{PATH}/{print_id}/events").json
    return found


def get(farm: Farm, print_id: int) -> dict[str, Any]:
    found = farm.get_print(print_id)
    assert found is not None
    return found


# The order, as arithmetic

PLACES = st.lists(st.tuples(st.integers(-3, 3), st.one_of(st.none(), st.integers(0, 2))), max_size=9).flatmap(
    lambda rows: st.permutations(
        [
            Place(number, priority, None if hours is None else BASE_TIME + timedelta(hours=hours))
            for number, (priority, hours) in enumerate(rows, 1)
        ]
    )
)


def after(places: list[Place], changed: dict[int, int]) -> list[Place]:
    """The places in running order once the new priorities are there."""
    return sorted((each._replace(priority=changed.get(each.id, each.priority)) for each in places), key=by_run_key)


def by_run_key(place: Place) -> tuple[Any, ...]:
    return place.run_key


@given(PLACES)
def test_any_order_comes_out_exactly_as_asked(wanted: list[Place]) -> None:
    changed = priorities_for(wanted)
    assert changed is not None
    assert [each.id for each in after(wanted, changed)] == [each.id for each in wanted]
    assert all(LOWEST_PRIORITY <= priority <= HIGHEST_PRIORITY for priority in changed.values())
    assert all(priority != each.priority for each in wanted if (priority := changed.get(each.id)) is not None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.one_of(st.none(), st.integers(0, 1))), max_size=4).flatmap(
        lambda rows: st.permutations(
            [
                Place(number, priority, None if hours is None else BASE_TIME + timedelta(hours=hours))
                for number, (priority, hours) in enumerate(rows, 1)
            ]
        )
    )
)
def test_no_fewer_new_priorities_would_do(wanted: list[Place]) -> None:
    changed = priorities_for(wanted)
    assert changed is not None
    for tried in itertools.product(range(-6, 7), repeat=len(wanted)):
        others = {each.id: priority for each, priority in zip(wanted, tried, strict=True) if priority != each.priority}
        if len(others) < len(changed):
            assert after(wanted, others) != [
                each._replace(priority=others.get(each.id, each.priority)) for each in wanted
            ], others


def test_a_print_that_is_dragged_changes_alone() -> None:
    places = [Place(number, 0, None) for number in range(1, 8)]
    for taken in places:
        rest = [each for each in places if each is not taken]
        assert set(priorities_for([*rest, taken]) or {}) <= {taken.id}
        assert set(priorities_for([taken, *rest]) or {}) <= {taken.id}
    assert priorities_for(places) == {}


def test_at_the_edge_of_the_priorities_the_others_make_room() -> None:
    top = [Place(number, HIGHEST_PRIORITY, None) for number in (1, 2, 3)]
    assert priorities_for([top[2], top[0], top[1]]) == {1: 999, 2: 999}
    bottom = [Place(number, LOWEST_PRIORITY, None) for number in (1, 2, 3)]
    assert priorities_for([bottom[1], bottom[2], bottom[0]]) == {2: -999, 3: -999}
    apart = [Place(1, HIGHEST_PRIORITY, None), Place(2, LOWEST_PRIORITY, None)]
    assert priorities_for(apart[::-1]) == {2: -999, 1: -1000}


def test_as_many_prints_as_there_are_priorities_can_be_turned_around_and_not_one_more() -> None:
    count = HIGHEST_PRIORITY - LOWEST_PRIORITY + 1
    places = [Place(number, 0, None) for number in range(1, count + 2)]
    turned = priorities_for(places[:count][::-1])
    assert turned is not None
    assert sorted({0, *turned.values()}) == list(range(LOWEST_PRIORITY, HIGHEST_PRIORITY + 1))
    assert priorities_for(places[::-1]) is None
    assert priorities_for(places) == {}


# The order, through the API


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.integers(-2, 2), st.one_of(st.none(), st.integers(-3, 3)), st.booleans()), min_size=1, max_size=9
    ),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_queue_is_in_the_order_that_was_asked_for(
    farm: Farm, printer_id: int, rows: list[tuple[int, int | None, bool]], shuffle: Any
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
                status="scheduled" if is_released else "queued",
                created_at=BASE_TIME,
                updated_at=BASE_TIME,
            )
            for priority, hours, is_released in rows
        ]
        session.add_all(made)
        session.commit()
        wanted = [each.id for each in made]
    shuffle.shuffle(wanted)
    answer = reorder(farm, printer_id, wanted)
    assert (answer.status_code, [each["id"] for each in answer.json]) == (200, wanted)
    assert farm.get(f"{PATH}/{printer_id}/queue").json == answer.json
    again = reorder(farm, printer_id, wanted)
    assert again.json == answer.json


def test_a_new_order_changes_priorities_of_as_few_as_possible_and_nothing_else(
    farm: Farm, printer_id: int, clock: Clock
) -> None:
    first, second, third = (farm.add_print(printer_id, f"print {n}") for n in range(3))
    other = farm.add_print(farm.add_printer("Right")["id"])
    clock.forward(minutes=1)
    answer = reorder(farm, printer_id, [third["id"], first["id"], second["id"]])
    assert answer.json == [third | {"priority": 1, "updated_at": "2026-11-21T09:01:00Z"}, first, second]
    assert get(farm, other["id"]) == other
    assert [each["kind"] for each in events(farm, third["id"])] == ["print.created"]


def test_an_empty_queue_has_one_order(farm: Farm, printer_id: int) -> None:
    assert (reorder(farm, printer_id, []).status_code, reorder(farm, printer_id, []).json) == (200, [])


def test_a_list_that_is_not_the_queue_is_a_conflict_that_names_what_differs(farm: Farm, printer_id: int) -> None:
    first, second, running, done = (farm.add_print(printer_id)["id"] for _ in range(4))
    elsewhere = farm.add_print(farm.add_printer("Right")["id"])["id"]
    farm.move(running, "started")
    farm.move(done, "started", "failed")
    left_out = reorder(farm, printer_id, [second])
    assert (left_out.status_code, left_out.json["code"]) == (409, "queue_changed")
    assert left_out.json["fields"] == {"print_ids": [f"Left out, but waiting here: {first}."]}
    for gone in (running, done, elsewhere):
        answer = reorder(farm, printer_id, [gone, first])
        assert answer.json["fields"]["print_ids"] == [
            f"Left out, but waiting here: {second}.",
            f"Not waiting on this printer any more: {gone}.",
        ]
    assert queue(farm, printer_id) == [first, second]


def test_a_conflict_names_no_more_than_a_screenful(farm: Farm, printer_id: int) -> None:
    ids = [farm.add_print(printer_id)["id"] for _ in range(25)]
    said = reorder(farm, printer_id, []).json["fields"]["print_ids"]
    assert said == [f"Left out, but waiting here: {', '.join(map(str, ids[:20]))} and 5 more."]


def test_ids_that_are_nobodys_somebody_elses_or_deleted_are_one_404(
    farm: Farm, stranger: Farm, printer_id: int
) -> None:
    own, gone = farm.add_print(printer_id)["id"], farm.add_print(printer_id)["id"]
    farm.delete(f"{PATH}/{gone}")
    theirs = stranger.add_print(stranger.add_printer()["id"])
    missing = farm.get(f"{PATH}/{MISSING_ID}")
    for bad in (MISSING_ID, theirs["id"], gone):
        answer = reorder(farm, printer_id, [own, bad])
        assert (answer.status_code, answer.data) == (404, missing.data)
    for printer in (theirs["printer_id"], MISSING_ID):
        answer = reorder(farm, printer, [own])
        assert (answer.status_code, answer.data) == (404, missing.data)
    assert stranger.get_print(theirs["id"]) == theirs


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"print_ids"}),
        ({"print_ids": None}, {"print_ids"}),
        ({"print_ids": [1, 1]}, {"print_ids"}),
        ({"print_ids": "1"}, {"print_ids"}),
        ({"print_ids": ["1", 0, 2.5, None]}, {f"print_ids.{n}" for n in range(4)}),
        ({"print_ids": [], "extra": 1}, {"extra"}),
        ({"print_ids": list(range(1, 10_002))}, {"print_ids"}),
    ],
)
def test_bad_lists_are_refused_by_name(farm: Farm, printer_id: int, body: dict[str, Any], fields: set[str]) -> None:
    answer = farm.put(f"{PATH}/{printer_id}/queue", body)
    assert (answer.status_code, set(answer.json["fields"])) == (422, fields)


def test_an_order_for_which_there_are_too_few_priorities_changes_nothing(farm: Farm, printer_id: int) -> None:
    count = HIGHEST_PRIORITY - LOWEST_PRIORITY + 2
    with farm.database() as session:
        session.execute(
            sa.insert(ScheduledPrint),
            [
                {"user_id": farm.user["id"], "printer_id": printer_id, "job_name": "x", "units": 1}
                | {"created_at": BASE_TIME, "updated_at": BASE_TIME}
                for _ in range(count)
            ],
        )
        ids = list(session.execute(sa.select(ScheduledPrint.id).order_by(ScheduledPrint.id)).scalars())
        session.commit()
    answer = reorder(farm, printer_id, ids[::-1])
    assert (answer.status_code, answer.json["code"]) == (409, "order_not_possible")
    with farm.database() as session:
        assert session.execute(sa.select(ScheduledPrint.priority).distinct()).scalars().all() == [0]
    turned = reorder(farm, printer_id, [*ids[1:][::-1], ids[0]])
    assert turned.status_code == 409
    possible = [ids[-1], *ids[:-1]]
    assert [each["id"] for each in reorder(farm, printer_id, possible).json] == possible


def test_two_who_reorder_at_once_leave_one_of_the_two_orders(app: Flask, farm: Farm, printer_id: int) -> None:
    ids = [farm.add_print(printer_id)["id"] for _ in range(6)]
    orders = [ids[::-1], [*ids[3:], *ids[:3]]]
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda order=order: codes.append(reorder(farm, printer_id, order).status_code))
        for order in orders * 3
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    assert set(codes) == {200} and queue(farm, printer_id) in orders


# What holds up nothing but itself


def test_a_failed_and_a_held_print_do_not_block_the_rest(farm: Farm, printer_id: int) -> None:
    bad, held, free = (farm.add_print(printer_id)["id"] for _ in range(3))
    farm.move(bad, "scheduled", "started", "failed")
    assert farm.post(f"{PATH}/{held}/hold").status_code == 200
    assert queue(farm, printer_id) == [held, free]
    released = farm.post(f"{PATH}/{free}/start").json
    assert (released["status"], released["held_at"]) == ("scheduled", None)
    assert farm.move(free, "started")["status"] == "started"
    assert queue(farm, printer_id) == [held]


# A paused queue


def test_a_queue_is_paused_once_and_resumed_once(farm: Farm, printer_id: int, clock: Clock) -> None:
    before = farm.get(f"/api/printers/{printer_id}").json
    assert before["queue_paused_at"] is None
    clock.forward(minutes=1)
    paused = farm.post(f"/api/printers/{printer_id}/pause-queue")
    assert (paused.status_code, paused.json["queue_paused_at"]) == (200, "2026-11-21T09:01:00Z")
    clock.forward(minutes=1)
    assert farm.post(f"/api/printers/{printer_id}/pause-queue").json == paused.json
    assert farm.get("/api/printers").json == [paused.json]
    resumed = farm.post(f"/api/printers/{printer_id}/resume-queue").json
    assert resumed == before | {"updated_at": "2026-11-21T09:02:00Z"}
    clock.forward(minutes=1)
    assert farm.post(f"/api/printers/{printer_id}/resume-queue").json == resumed


def test_a_paused_queue_takes_prints_and_orders_as_before(farm: Farm, printer_id: int) -> None:
    farm.post(f"/api/printers/{printer_id}/pause-queue")
    first, second = farm.add_print(printer_id)["id"], farm.add_print(printer_id)["id"]
    assert reorder(farm, printer_id, [second, first]).status_code == 200
    assert farm.post(f"{PATH}/{first}/start").json["status"] == "scheduled"


def test_a_strangers_queue_is_not_there(farm: Farm, stranger: Farm) -> None:
    theirs = stranger.add_printer()["id"]
    for verb in ("pause-queue", "resume-queue"):
        answers = [farm.post(f"/api/printers/{each}/{verb}") for each in (theirs, MISSING_ID)]
        assert answers[0].status_code == 404 and answers[0].data == answers[1].data


# Held prints


@pytest.mark.parametrize("way", [[], ["scheduled"]])
def test_a_held_print_keeps_its_place_and_status(farm: Farm, printer_id: int, clock: Clock, way: list[str]) -> None:
    made, other = farm.add_print(printer_id), farm.add_print(printer_id)
    if way:
        farm.move(made["id"], *way)
    clock.forward(minutes=1)
    held = farm.post(f"{PATH}/{made['id']}/hold")
    assert (held.status_code, held.json["held_at"]) == (200, "2026-11-21T09:01:00Z")
    assert held.json["waiting_reason"].startswith("held by a person")
    assert held.json["status"] == (way or ["queued"])[-1]
    clock.forward(minutes=1)
    assert farm.post(f"{PATH}/{made['id']}/hold").json == held.json
    assert queue(farm, printer_id) == [made["id"], other["id"]]
    freed = farm.post(f"{PATH}/{made['id']}/release-hold").json
    assert (freed["held_at"], freed["status"]) == (None, held.json["status"])
    assert farm.post(f"{PATH}/{made['id']}/release-hold").json == freed
    assert [each["kind"] for each in events(farm, made["id"])] == [
        "print.created",
        *(f"print.{each}" for each in way),
        "print.held",
        "print.hold_released",
    ]


@pytest.mark.parametrize("way", [["started"], ["started", "completed"], ["started", "failed"]])
@pytest.mark.parametrize("verb", ["hold", "release-hold"])
def test_what_does_not_wait_is_not_held(farm: Farm, printer_id: int, way: list[str], verb: str) -> None:
    made = farm.add_print(printer_id)
    moved = farm.move(made["id"], *way)
    answer = farm.post(f"{PATH}/{made['id']}/{verb}")
    assert (answer.status_code, answer.json["code"], get(farm, made["id"])) == (409, "not_waiting", moved)


@pytest.mark.parametrize("state", [IntentState.claimed, IntentState.uploading])
def test_a_print_whose_file_is_on_its_way_is_held_and_not_sent(farm: Farm, state: IntentState) -> None:
    made = farm.add_print(farm.add_printer(**LAN)["id"], status="scheduled")
    intent_id = add_intent(farm, made["id"], state)
    held = farm.post(f"{PATH}/{made['id']}/hold").json
    assert held["held_at"] is not None and held["waiting_reason"].startswith("held by a person")
    with farm.database() as session:
        assert session.get_one(StartIntent, intent_id).state is IntentState.withdrawn


def test_a_print_that_may_have_been_sent_is_not_held(farm: Farm) -> None:
    made = farm.add_print(farm.add_printer(**LAN)["id"], status="scheduled")
    add_intent(farm, made["id"], IntentState.published)
    answer = farm.post(f"{PATH}/{made['id']}/hold")
    assert (answer.status_code, answer.json["code"]) == (409, "start_under_way")
    assert get(farm, made["id"])["held_at"] is None


def test_a_held_print_that_a_person_records_as_started_is_held_no_more(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)["id"]
    farm.post(f"{PATH}/{made}/hold")
    assert farm.move(made, "started")["held_at"] is None


# Another try


@pytest.mark.parametrize("end", ["failed", "completed"])
def test_another_try_is_as_new_and_its_history_and_grams_stay(
    farm: Farm, printer_id: int, clock: Clock, end: str
) -> None:
    farm.add_material(printer_id)
    made = farm.add_print(printer_id, material_slot=0, scheduled_start="2026-11-21T09:00:00Z")
    ended = farm.move(made["id"], "started", end, used_grams=40)
    assert (ended["used_grams"], ended["material_cost"]) == (40, 0.8)
    with farm.database() as session:
        session.execute(
            sa.update(ScheduledPrint).values(needs_look="the power went away", overrides=["plate"], is_chained=True)
        )
        session.commit()
    clock.forward(minutes=1)
    answer = farm.post(f"{PATH}/{made['id']}/retry")
    assert answer.status_code == 200, answer.text
    assert answer.json == made | {"scheduled_start": None, "updated_at": "2026-11-21T09:01:00Z"}
    assert farm.get(f"/api/bambu/materials/{printer_id}").json[0]["used_grams"] == 40
    kinds = [each["kind"] for each in events(farm, made["id"])]
    assert kinds == ["print.created", "print.started", f"print.{end}", "print.rescheduled"]
    with farm.database() as session:
        assert session.execute(sa.select(ScheduledPrint.is_chained)).scalar_one() is False


def test_another_try_takes_a_time_and_another_printer(farm: Farm, printer_id: int) -> None:
    other = farm.add_printer("Right")["id"]
    made = farm.add_print(printer_id)["id"]
    farm.move(made, "started", "failed")
    body = {"scheduled_start": "2026-11-22T09:00:00+01:00", "printer_id": other}
    again = farm.post(f"{PATH}/{made}/retry", body).json
    assert (again["printer_id"], again["scheduled_start"]) == (other, "2026-11-22T08:00:00Z")
    assert (queue(farm, printer_id), queue(farm, other)) == ([], [made])
    assert events(farm, made)[-1]["printer_id"] == other


def test_the_order_follows_another_try(farm: Farm, printer_id: int) -> None:
    order = farm.add_order()["id"]
    made = farm.add_print(printer_id, order_id=order)["id"]
    farm.move(made, "started", "failed")
    assert farm.get(f"/api/orders/{order}").json["production_status"] == "attention"
    farm.post(f"{PATH}/{made}/retry")
    assert farm.get(f"/api/orders/{order}").json["production_status"] == "queued"


@pytest.mark.parametrize("way", [[], ["scheduled"], ["started"]])
def test_what_has_not_ended_is_not_tried_again(farm: Farm, printer_id: int, way: list[str]) -> None:
    made = farm.add_print(printer_id)
    if way:
        farm.move(made["id"], *way)
    before = get(farm, made["id"])
    answer = farm.post(f"{PATH}/{made['id']}/retry")
    assert (answer.status_code, answer.json["code"], get(farm, made["id"])) == (409, "not_ended", before)


def test_another_try_with_the_same_key_is_one(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)["id"]
    farm.move(made, "started", "failed")
    key = {"Idempotency-Key": "again"}
    answers = [farm.post(f"{PATH}/{made}/retry", {}, headers=key) for _ in range(2)]
    assert [each.status_code for each in answers] == [200, 200] and answers[0].json == answers[1].json
    assert farm.post(f"{PATH}/{made}/retry").status_code == 409
    assert [each["kind"] for each in events(farm, made)].count("print.rescheduled") == 1


def test_another_try_on_a_printer_that_is_gone_or_anothers(farm: Farm, stranger: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)["id"]
    ended = farm.move(made, "started", "failed")
    theirs = stranger.add_printer()["id"]
    answers = [farm.post(f"{PATH}/{made}/retry", {"printer_id": each}) for each in (theirs, MISSING_ID)]
    assert answers[0].status_code == 404 and answers[0].data == answers[1].data
    assert farm.delete(f"/api/printers/{printer_id}").status_code == 200
    assert farm.post(f"{PATH}/{made}/retry").json["code"] == "printer_removed"
    assert farm.post(f"{PATH}/{made}/retry", {"printer_id": printer_id}).data == answers[0].data
    assert get(farm, made) == ended
    assert farm.post(f"{PATH}/{made}/retry", {"printer_id": farm.add_printer("New")["id"]}).status_code == 200


def test_bad_fields_of_another_try_are_all_named(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)["id"]
    farm.move(made, "started", "failed")
    answer = farm.post(f"{PATH}/{made}/retry", {"scheduled_start": "soon", "printer_id": "1", "status": "queued"})
    assert (answer.status_code, set(answer.json["fields"])) == (422, {"scheduled_start", "printer_id", "status"})


# Overridden interlocks


def start(farm: Farm, print_id: int, *names: str, **kwargs: Any) -> TestResponse:
    return farm.post(f"{PATH}/{print_id}/start", {"override": list(names)}, **kwargs)


def test_a_person_overrides_locks_by_name_and_it_is_recorded(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)["id"]
    one, other = sorted(OVERRIDABLE)[:2]
    started = start(farm, made, one).json
    assert (started["status"], started["overrides"]) == ("scheduled", [one])
    assert start(farm, made, one).json == started
    assert start(farm, made, other, one).json["overrides"] == [one, other]
    assert farm.post(f"{PATH}/{made}/start").json["overrides"] == [one, other]
    said = [(each["kind"], each["details"]) for each in events(farm, made)]
    assert said == [
        ("print.created", {}),
        ("print.scheduled", {}),
        ("print.overridden", {"interlocks": [one], "user_id": farm.user["id"]}),
        ("print.overridden", {"interlocks": [other], "user_id": farm.user["id"]}),
    ]


@pytest.mark.parametrize("lock", list(Interlock))
def test_only_the_locks_that_may_be_overridden_are(farm: Farm, printer_id: int, lock: Interlock) -> None:
    made = farm.add_print(printer_id)
    answer = start(farm, made["id"], lock.value)
    if lock in OVERRIDABLE:
        assert answer.json["overrides"] == [lock.value]
    else:
        assert (answer.status_code, list(answer.json["fields"])) == (422, ["override.0"])
        assert get(farm, made["id"]) == made


def test_busy_and_another_model_are_never_overridden() -> None:
    never = {Interlock.idle, Interlock.model, Interlock.start_under_way, Interlock.control, Interlock.reachable}
    assert not OVERRIDABLE & never


def test_every_wrong_name_is_named(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    answer = farm.post(f"{PATH}/{made['id']}/start", {"override": ["model", "fault", "busy", None], "force": True})
    assert answer.status_code == 422
    assert set(answer.json["fields"]) == {"override.0", "override.2", "override.3", "force"}
    for bad in (None, "fault", {}, ["fault"] * 30):
        assert farm.post(f"{PATH}/{made['id']}/start", {"override": bad}).status_code == 422
    assert get(farm, made["id"]) == made


def test_overrides_are_for_one_start(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)["id"]
    start(farm, made, "fault")
    assert farm.move(made, "queued")["overrides"] is None
    start(farm, made, "fault")
    assert farm.move(made, "started", "failed")["overrides"] == ["fault"]
    assert farm.post(f"{PATH}/{made}/retry").json["overrides"] is None


def test_a_print_on_its_way_takes_no_more_overrides(farm: Farm) -> None:
    made = farm.add_print(farm.add_printer(**LAN)["id"], status="scheduled")
    add_intent(farm, made["id"], IntentState.claimed)
    assert start(farm, made["id"], "fault").json["code"] == "start_under_way"
    assert start(farm, made["id"]).status_code == 200
    assert get(farm, made["id"])["overrides"] is None


def test_a_start_with_the_same_key_overrides_once(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)["id"]
    key = {"Idempotency-Key": "start"}
    first = start(farm, made, "fault", headers=key)
    assert start(farm, made, "fault", headers=key).json == first.json
    assert start(farm, made, "storage", headers=key).status_code == 422
    assert [each["kind"] for each in events(farm, made)].count("print.overridden") == 1


@contextmanager
def counted_statements(app: Flask) -> Iterator[list[str]]:
    said: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    with app.app_context():
        engine = db.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    yield said
    sa.event.remove(engine, "before_cursor_execute", note)


def test_a_new_order_takes_as_many_statements_for_many_prints_as_for_few(
    app: Flask, farm: Farm, printer_id: int
) -> None:
    counts = []
    for number in (3, 20):
        ids = [farm.add_print(printer_id)["id"] for _ in range(number)]
        ids = [*queue(farm, printer_id)[::-1]]
        with counted_statements(app) as said:
            assert reorder(farm, printer_id, ids).status_code == 200
        counts.append(len(said))
    assert counts[0] == counts[1]


def test_events_of_a_queue_tell_nobody_anything(farm: Farm, printer_id: int) -> None:
    """A hold or an override is history, not news: nothing is sent for it."""
    farm.put(f"/api/bambu/notifications/{printer_id}", {"webhook_url": "http://127.0.0.1:9/hook"})
    made = farm.add_print(printer_id)["id"]
    farm.post(f"{PATH}/{made}/hold")
    start(farm, made, "fault")
    with farm.database() as session:
        assert session.execute(sa.select(sa.func.count()).select_from(PrintEvent)).scalar_one() == 4
        assert session.execute(sa.text("SELECT count(*) FROM deliveries")).scalar_one() == 0


@pytest.mark.parametrize("body", [b"", b"{}"])
@pytest.mark.parametrize("content_type", ["application/json", None])
def test_a_start_needs_no_body_whatever_type_is_named(farm: Farm, body: bytes, content_type: str | None) -> None:
    print_id = farm.add_print(farm.add_printer()["id"])["id"]
    path = f"/api/bambu/scheduled-prints/{print_id}/start"
    answer = farm.post(path, data=body, content_type=content_type)
    assert answer.status_code == (415 if body and content_type is None else 200), answer.text
