"""A POST with an `Idempotency-Key` has one effect, however often and however much at once it is sent."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from werkzeug.test import TestResponse

from models import IdempotencyKey, Printer, db
from tests.api_document import ApiDocument, rules
from tests.conftest import Clock
from tests.farm_builder import PASSWORD, Farm
from tests.whole_farm import BODIES, fill

THREADS, KEYS = 8, 20
REPEATABLE = {
    "print batches.add_batch",
    "print batches.top_up_batch",
    "queue.retry_print",
    "notifications.send_test",
    "printers.add_printer",
    "printer connections.add_connection",
    "materials.add_material",
    "scheduled prints.add_print",
    "scheduled prints.start_print",
    "orders.add_order",
    "orders.schedule_prints",
    "product profiles.add_profile",
}


def send(farm: Farm, key: str, body: Any = None, path: str = "/api/printers") -> TestResponse:
    return farm.post(path, {"name": "Left"} if body is None else body, headers={"Idempotency-Key": key})


def is_repeat(answer: TestResponse) -> bool:
    return answer.headers.get("Idempotent-Replay") == "true"


def count(app: Flask, model: Any = Printer) -> int:
    with app.app_context():
        found: int = db.session.execute(sa.select(sa.func.count()).select_from(model)).scalar_one()
        return found


def test_the_same_again_is_the_first_answer_again(app: Flask, farm: Farm) -> None:
    first, again = send(farm, "a"), send(farm, "a")
    assert (first.status_code, again.status_code, again.data) == (201, 201, first.data)
    assert (is_repeat(first), is_repeat(again)) == (False, True)
    assert again.mimetype == "application/json"
    assert count(app) == 1
    assert send(farm, "b").json["id"] != first.json["id"]


def test_the_answer_is_the_first_one_even_when_the_row_has_changed(farm: Farm) -> None:
    first = send(farm, "a")
    farm.put(f"/api/printers/{first.json['id']}", {"name": "Right"})
    assert send(farm, "a").data == first.data
    farm.delete(f"/api/printers/{first.json['id']}")
    assert send(farm, "a").data == first.data


def test_without_a_key_each_call_counts(app: Flask, farm: Farm) -> None:
    assert [farm.post("/api/printers", {"name": "Left"}).status_code for _ in range(2)] == [201, 201]
    assert (count(app), count(app, IdempotencyKey)) == (2, 0)


def test_another_body_is_422(app: Flask, farm: Farm) -> None:
    send(farm, "a")
    answer = send(farm, "a", {"name": "Right"})
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["Idempotency-Key"])
    assert count(app) == 1


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (b'{"name":"x","notes":"y"}', b'{ "notes": "y",\n"name": "\\u0078" }', True),
        (b'{"name":"x","notes":null}', b'{"name":"x"}', False),
        (b'{"name":"x"}', b'{"name":"X"}', False),
    ],
)
def test_it_is_what_the_body_means_that_counts(farm: Farm, first: bytes, second: bytes, same: bool) -> None:
    def raw(body: bytes) -> TestResponse:
        headers = {"Idempotency-Key": "a"}
        return farm.call("POST", "/api/printers", data=body, content_type="application/json", headers=headers)

    assert raw(first).status_code == 201
    assert raw(second).status_code == (201 if same else 422)


@pytest.mark.parametrize("body", [b'{"name": 1e300}', b'{"name": 123456789012345678901234567890}', b'{"name": [[{}]]}'])
def test_a_body_that_the_view_refuses_is_refused_with_a_key_too(farm: Farm, body: bytes) -> None:
    headers = {"Idempotency-Key": "a"}
    answer = farm.call("POST", "/api/printers", data=body, content_type="application/json", headers=headers)
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["name"])


def test_another_path_is_another_key(farm: Farm) -> None:
    left, right = (send(farm, "a", path="/api/printers", body={"name": name}) for name in ("Left", "Left"))
    assert left.json["id"] == right.json["id"]
    order = {"buyer_name": "Ada", "items": [{"title": "Vase", "quantity": 1}]}
    assert send(farm, "a", order, "/api/orders").status_code == 201
    second = farm.add_printer("Second")["id"]
    spool = {"slot": 0, "material_type": "PLA", "weight_grams": 1000}
    spools = [send(farm, "a", spool, f"/api/bambu/materials/{printer}") for printer in (left.json["id"], second)]
    assert [each.json["printer_id"] for each in spools] == [left.json["id"], second]


def test_what_failed_may_be_sent_again(app: Flask, farm: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    first = farm.add_material(printer_id)
    spool = {"slot": 0, "material_type": "PETG", "weight_grams": 500}
    path = f"/api/bambu/materials/{printer_id}"
    assert send(farm, "a", spool, path).status_code == 409
    assert send(farm, "b", {"slot": 0}, path).status_code == 422
    assert send(farm, "c", spool, "/api/bambu/materials/999").status_code == 404
    assert count(app, IdempotencyKey) == 0
    farm.delete(f"/api/bambu/materials/{first['id']}")
    answer = send(farm, "a", spool, path)
    assert (answer.status_code, is_repeat(answer)) == (201, False)
    assert is_repeat(send(farm, "a", spool, path))


def test_a_key_is_kept_for_a_day(app: Flask, farm: Farm, clock: Clock) -> None:
    def log_in() -> None:
        answer = farm.client.post("/api/auth/login", json={"email": "seller@example.com", "password": PASSWORD})
        farm.token = answer.json["token"]

    first = send(farm, "a").json["id"]
    clock.forward(hours=23, minutes=59)
    log_in()
    assert send(farm, "a").json["id"] == first
    clock.forward(minutes=2)
    assert send(farm, "a").json["id"] != first
    assert (count(app), count(app, IdempotencyKey)) == (2, 1)


@pytest.mark.parametrize("key", ["", "x" * 256, "with space", "tab\t", "\x7f", "schlüssel"])
def test_what_is_no_key_is_422(app: Flask, farm: Farm, key: str) -> None:
    answer = send(farm, key)
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["Idempotency-Key"])
    assert count(app) == 0


def test_the_longest_and_strangest_key_is_one(farm: Farm) -> None:
    key = "'\"%_\\{{}}<>" + "x" * 244
    assert len(key) == 255
    assert send(farm, key).json["id"] == send(farm, key).json["id"]
    assert not is_repeat(send(farm, "'\"%_\\{{}}<>"))


def test_a_key_opens_nothing_without_a_token(app: Flask, farm: Farm) -> None:
    send(farm, "a")
    answer = app.test_client().post("/api/printers", json={"name": "Left"}, headers={"Idempotency-Key": "a"})
    assert answer.status_code == 401


def test_it_stands_on_what_creates_or_starts_and_nowhere_else(app: Flask) -> None:
    document = ApiDocument(app)
    documented = {
        rule.endpoint
        for rule, method in rules(app)
        if rule.endpoint.partition(".")[0] != "docs"
        for parameter in document.operation(rule, method).get("parameters", [])
        if parameter["name"] == "Idempotency-Key"
    }
    assert documented == REPEATABLE


def test_every_one_of_them_repeats(app: Flask, farm: Farm) -> None:
    whole = fill(farm, "QZOWNERQZ")
    found = {rule.endpoint: rule for rule, _ in rules(app)}
    for endpoint in sorted(REPEATABLE):
        path = whole.path(found[endpoint], "POST")
        body = BODIES[endpoint](whole) if endpoint in BODIES else None
        if endpoint == "queue.retry_print":
            farm.move(whole.print_id, "started", "failed")
        first, again = (farm.post(path, body, headers={"Idempotency-Key": "same"}) for _ in range(2))
        made = 200 if endpoint.endswith(("start_print", "retry_print", "top_up_batch")) else 201
        made = 202 if endpoint.endswith("send_test") else made
        assert (first.status_code, again.data) == (made, first.data), endpoint
        assert (is_repeat(first), is_repeat(again)) == (False, True), endpoint


def test_no_tokens_are_kept_for_repeats(app: Flask, farm: Farm) -> None:
    key = {"Idempotency-Key": "a"}
    credentials = {"email": "seller@example.com", "password": PASSWORD}
    tokens = [farm.client.post("/api/auth/login", json=credentials, headers=key).json["token"] for _ in range(2)]
    assert tokens[0] != tokens[1]
    pairs = [
        farm.client.post("/api/auth/refresh", json={"refresh_token": farm.refresh_token}, headers=key).status_code
        for _ in range(2)
    ]
    assert pairs == [200, 401]
    assert count(app, IdempotencyKey) == 0


def test_uploads_take_no_key(app: Flask, farm: Farm) -> None:
    assert farm.upload().status_code == 201
    assert count(app, IdempotencyKey) == 0


def test_threads_with_the_same_keys_make_each_row_once(app: Flask, farm: Farm) -> None:
    """Eight threads send the same twenty keys, all in the same moment and each in its own order."""
    ready = threading.Barrier(THREADS)

    def run(number: int) -> list[tuple[str, int, bool, bytes]]:
        client, answers = app.test_client(), []
        ready.wait()
        for step in range(KEYS):
            key = f"key-{(step + number * 3) % KEYS}"
            headers = {"Authorization": f"Bearer {farm.token}", "Idempotency-Key": key}
            answer = client.post("/api/printers", json={"name": key}, headers=headers)
            answers.append((key, answer.status_code, is_repeat(answer), answer.data))
        return answers

    with ThreadPoolExecutor(THREADS) as pool:
        answers = [each for answers in pool.map(run, range(THREADS)) for each in answers]
    assert {status for _, status, _, _ in answers} == {201}
    assert Counter(repeated for _, _, repeated, _ in answers) == {False: KEYS, True: KEYS * (THREADS - 1)}
    assert len({(key, data) for key, _, _, data in answers}) == KEYS
    assert (count(app), count(app, IdempotencyKey)) == (KEYS, KEYS)


@pytest.mark.parametrize("what", ["statement", "commit"])
def test_a_break_before_the_commit_leaves_neither_row_nor_key(app: Flask, farm: Farm, what: str) -> None:
    with app.app_context():
        engine = db.engine

    def break_it(*_: Any) -> None:
        raise OperationalError("a broken database", {}, Exception("injected"))

    def break_keeping(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE idempotency_keys"):
            break_it()

    name, fault = ("commit", break_it) if what == "commit" else ("before_cursor_execute", break_keeping)
    event.listen(engine, name, fault)
    try:
        assert send(farm, "a").status_code == 503
    finally:
        event.remove(engine, name, fault)
    assert (count(app), count(app, IdempotencyKey)) == (0, 0)
    answer = send(farm, "a")
    assert (answer.status_code, is_repeat(answer)) == (201, False)
