"""Bad input is 4xx, names its fault, and leaves nothing behind: a corpus against every field of every body and query.

Which fields there are is read from the OpenAPI document, so a new one is tried by itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from api.reading import MAX_DEPTH, read_json
from errors import BadRequest
from models import ScheduledPrint, db
from tests.api_document import ApiDocument, BodyField, rules
from tests.conftest import BASE_TIME, Clock, empty
from tests.corpus import ADDRESSES, CORPUS, EXTRAS, NUMBERS, TEXTS, TIMES, UNREADABLE
from tests.farm_builder import Farm
from tests.whole_farm import BODIES, NEVER_USED_ID, WholeFarm, fill

pytestmark = pytest.mark.database

MARK = "QZOWNERQZ"
# The answer of the database to what nobody checked before; no test here races with another, so none may see it.
UNCHECKED = "Somebody else changed this at the same moment."


def with_bodies(app: Flask, document: ApiDocument) -> list[tuple[Rule, str]]:
    return [
        (rule, method)
        for rule, method in rules(app)
        if rule.endpoint.partition(".")[0] != "docs" and document.body(rule, method) is not None
    ]


class Ground:
    """A whole farm that is put back as it was after each call that changed it."""

    def __init__(self, app: Flask) -> None:
        empty(app)
        self.app, self.document = app, ApiDocument(app)
        self.whole: WholeFarm = fill(Farm(app, "seller@example.com"), MARK)
        tables = [
            sa.select(sa.func.count()).select_from(table).scalar_subquery() for table in db.metadata.sorted_tables
        ]
        self._count = sa.select(*tables)
        self.counts = self.count()

    def statement(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        self._is_writing = self._is_writing or not statement.startswith("SELECT")

    def commit(self, *_: Any) -> None:
        self.has_written, self._is_writing = self.has_written or self._is_writing, False

    def count(self) -> tuple[int, ...]:
        self.has_written = self._is_writing = False
        with self.app.app_context():
            return tuple(db.session.execute(self._count).one())

    def send(self, rule: Rule, method: str, body: Any) -> TestResponse:
        """Send a body and hold the answer to the document, and the database to the answer."""
        # Not by the client's own encoder: a Decimal goes out as the number it is.
        text = json.dumps(body, default=lambda value: float(value), ensure_ascii=False).encode("utf-8", "surrogatepass")
        return self.send_raw(rule, method, text)

    def send_raw(self, rule: Rule, method: str, data: bytes, kind: str = "application/json") -> TestResponse:
        answer = self.whole.farm.call(method, self.whole.path(rule, method), data=data, content_type=kind)
        said = f"{method} {rule} {data[:200]!r}: {answer.status_code} {answer.text[:300]}"
        assert answer.status_code < 500, said
        assert answer.status_code != 401 or rule.endpoint.startswith(("accounts.", "etsy login.")), said
        assert UNCHECKED not in answer.text, said
        fault = self.document.fault(rule, method, answer)
        assert fault is None, f"{said}: {fault}"
        if answer.status_code < 300:
            self._settle(rule)
        elif self.has_written:
            assert self.count() == self.counts, said
        return answer

    def _settle(self, rule: Rule) -> None:
        if rule.endpoint == "orders.schedule_prints":
            # While its prints are open, the next attempt on that order would be 409, whatever it holds.
            with self.app.app_context():
                db.session.execute(sa.update(ScheduledPrint).values(deleted_at=BASE_TIME))
                db.session.execute(
                    sa.update(ScheduledPrint)
                    .where(ScheduledPrint.id.in_((self.whole.print_id, self.whole.spare_print_id)))
                    .values(deleted_at=None)
                )
                db.session.commit()
        self.counts = self.count()


# As texts, these are like any other: they are tried one by one where they mean something, and where they are refused.
FITTING = {"date-time": TIMES, "host": ADDRESSES, "webhook_url": ADDRESSES}


def is_worth_a_try(field: BodyField, value: Any) -> bool:
    fitting = FITTING.get(field.schema.get("format", field.name), [])
    return value in fitting or value not in [*TIMES, *ADDRESSES]


_grounds: list[Ground] = []


@pytest.fixture
def ground(session_app: Flask, session_clock: Clock) -> Iterator[Ground]:
    """Shared from test to test, as each one leaves it whole; made anew after a test with an empty database."""
    session_clock.now = BASE_TIME
    if not _grounds or _grounds[0].whole.farm.get("/api/auth/user").status_code != 200:
        _grounds[:] = [Ground(session_app)]
    with session_app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", _grounds[0].statement)
    event.listen(engine, "commit", _grounds[0].commit)
    yield _grounds[0]
    event.remove(engine, "before_cursor_execute", _grounds[0].statement)
    event.remove(engine, "commit", _grounds[0].commit)


def endpoints() -> list[str]:
    """Every operation with a JSON body, by name, so that each is a test of its own; another test holds the list."""
    return [
        "accounts.register",
        "accounts.log_in",
        "accounts.refresh",
        "accounts.change_user",
        "etsy login.finish_etsy_login",
        "etsy login.begin_login_with_own_key",
        "printers.add_printer",
        "printers.change_printer",
        "printers.clear_plate",
        "printer actions.set_speed",
        "printer actions.switch_light",
        "printer actions.clear_error",
        "printer actions.load_filament",
        "printer actions.unload_filament",
        "printer actions.set_filament",
        "printer connections.add_connection",
        "printer connections.change_connection",
        "cloud accounts.log_in",
        "cloud accounts.finish_login",
        "orders.add_order",
        "orders.schedule_prints",
        "shipping.ship",
        "plans.plan_prints",
        "product profiles.add_profile",
        "product profiles.change_profile",
        "materials.add_material",
        "materials.change_material",
        "notifications.change_preferences",
        "notification channels.add_channel",
        "notification channels.change_channel",
        "scheduled prints.add_print",
        "scheduled prints.change_print",
        "scheduled prints.start_print",
        "queue.order_queue",
        "queue.retry_print",
        "print batches.add_batch",
        "print batches.change_batch",
    ]


def rule_of(app: Flask, endpoint: str) -> tuple[Rule, str]:
    return next((rule, method) for rule, method in rules(app) if rule.endpoint == endpoint)


def test_every_operation_with_a_body_is_tried(app: Flask) -> None:
    assert sorted(rule.endpoint for rule, _ in with_bodies(app, ApiDocument(app))) == sorted(endpoints())


def base_of(ground: Ground, endpoint: str) -> dict[str, Any]:
    return BODIES[endpoint](ground.whole) if endpoint in BODIES else {}


def places(ground: Ground, schema: dict[str, Any]) -> Iterator[tuple[str, list[BodyField]]]:
    """("", the body's own fields), and for each list of objects in it (its name, their fields)."""
    fields = ground.document.fields(schema)
    yield "", fields
    for field in fields:
        inner = ground.document.follow(field.schema.get("items", {}))
        if inner.get("properties"):
            yield field.name, ground.document.fields(inner)


def put_in(base: dict[str, Any], place: str, values: dict[str, Any]) -> dict[str, Any]:
    if not place:
        return base | values
    return base | {place: [base[place][0] | values]}


@pytest.mark.parametrize("endpoint", endpoints())
def test_the_corpus_in_every_field(ground: Ground, endpoint: str) -> None:
    """What the document refuses, the API refuses by that field's name; the rest is taken whole or refused whole."""
    rule, method = rule_of(ground.app, endpoint)
    schema = ground.document.body(rule, method)
    assert schema is not None
    document, tried = ground.document, 0
    for place, fields in places(ground, schema):
        prefix = f"{place}.0." if place else ""
        for value in CORPUS:
            # White space around a text is taken off before it is looked at.
            spellings = [float(value) if isinstance(value, Decimal) else value]
            spellings += [value.strip()] if isinstance(value, str) and value.strip() else []
            refused = [
                field
                for field in fields
                if not any(document.is_valid(spelling, field.schema) for spelling in spellings)
            ]
            if refused:
                # One request holds the value in every field that must refuse it: all faults are named at once.
                body = put_in(base_of(ground, endpoint), place, {field.name: value for field in refused})
                answer = ground.send(rule, method, body)
                assert answer.status_code == 422, f"{place} {value!r:.80}: {answer.status_code} {answer.text[:300]}"
                unnamed = {prefix + field.name for field in refused} - {
                    ".".join(name.split(".")[: prefix.count(".") + 1]) for name in answer.json["fields"]
                }
                assert not unnamed, f"{unnamed} took {value!r:.80}"
                tried += len(refused)
            for field in fields:
                if field not in refused and is_worth_a_try(field, value):
                    answer = ground.send(rule, method, put_in(base_of(ground, endpoint), place, {field.name: value}))
                    tried += 1
                    _check_echo(answer, field.name if not place else "", value)
    assert tried >= 50


def _check_echo(answer: TestResponse, name: str, value: Any) -> None:
    """A text that was taken comes back as it was sent, but for white space around it."""
    taken = answer.json.get(name) if answer.status_code < 300 and name else None
    if isinstance(taken, str) and isinstance(value, str) and not taken.endswith("Z") and "email" not in name:
        assert taken == value.strip() or (not value.strip() and taken == value)


@pytest.mark.parametrize("endpoint", endpoints())
def test_missing_unknown_and_read_only_fields_are_named(ground: Ground, endpoint: str) -> None:
    rule, method = rule_of(ground.app, endpoint)
    schema = ground.document.body(rule, method)
    assert schema is not None
    for place, fields in places(ground, schema):
        prefix = f"{place}.0." if place else ""
        extras = {name: value for name, value in EXTRAS.items() if name not in {field.name for field in fields}}
        answer = ground.send(rule, method, put_in(base_of(ground, endpoint), place, extras))
        assert answer.status_code == 422
        for name in extras:
            assert (prefix + name).rstrip(".") in answer.json["fields"] or (not name and answer.json["fields"]), name
        required = [field.name for field in fields if field.is_required]
        for name in required:
            body = base_of(ground, endpoint)
            del (body[place][0] if place else body)[name]
            answer = ground.send(rule, method, body)
            assert (answer.status_code, list(answer.json["fields"])) == (422, [prefix + name])


# They have something to say at most: see Body.may_be_empty.
MAY_BE_EMPTY = {"scheduled prints.start_print", "queue.retry_print"}


@pytest.mark.parametrize("endpoint", endpoints())
def test_what_the_reader_refuses_is_400_on_every_route(ground: Ground, endpoint: str) -> None:
    rule, method = rule_of(ground.app, endpoint)
    for name, data in UNREADABLE.items():
        if not data and endpoint in MAY_BE_EMPTY:
            continue
        begun = time.monotonic()
        answer = ground.send_raw(rule, method, data)
        assert (answer.status_code, answer.json["code"]) == (400, "bad_request"), f"{name}: {answer.text[:200]}"
        assert time.monotonic() - begun < 2, name
    for data in (b"[]", b'[{"name": "x"}]', b'"x"', b"5", b"true", b"null", b"1.5"):
        answer = ground.send_raw(rule, method, data)
        assert answer.status_code == 422 and "body" in answer.json["fields"], data
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
    ):
        assert ground.send_raw(rule, method, b'{"name": "x"}', kind).status_code == 415, kind


def test_the_reader_takes_what_is_json() -> None:
    assert read_json(b' {"a": [1, -0, 1.50, 2e2, "\\ud83e\\uddff", null, true]} ') == {
        "a": [1, 0, Decimal("1.50"), Decimal("2e2"), "\U0001f9ff", None, True]
    }
    read_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    read_json(json.dumps(["[{" * 500, '\\"[' * 500]).encode())
    with pytest.raises(BadRequest):
        read_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("endpoint", endpoints())
def test_a_text_of_a_megabyte_is_refused_by_its_length(ground: Ground, endpoint: str) -> None:
    rule, method = rule_of(ground.app, endpoint)
    schema = ground.document.body(rule, method)
    assert schema is not None
    for place, fields in places(ground, schema):
        for field in fields:
            if "string" in field.schema.get("type", ()):
                body = put_in(base_of(ground, endpoint), place, {field.name: "x" * 1_000_000})
                answer = ground.send(rule, method, body)
                assert answer.status_code == 422, field.name


# Queries, paths, headers.


def test_the_corpus_in_every_query(ground: Ground) -> None:
    tried = 0
    for rule, method in rules(ground.app):
        if method != "GET" or rule.endpoint.partition(".")[0] == "docs":
            continue
        for parameter in ground.document.query(rule, method):
            times = TIMES if "date" in parameter["name"] or "before" in parameter["name"] else TIMES[:1]
            for value in [*NUMBERS, *(text for text in TEXTS if len(text) < 5000), *times, "", " ", "-1", "0"]:
                answer = ground.whole.farm.get(
                    ground.whole.path(rule, method), query_string={parameter["name"]: str(value)}
                )
                said = f"{rule}?{parameter['name']}={value!r:.80}: {answer.status_code} {answer.text[:200]}"
                assert answer.status_code in (200, 401, 422), said
                assert ground.document.fault(rule, method, answer) is None, said
                tried += 1
    assert tried > 1500
    assert ground.count() == ground.counts


LISTS = ["/api/printers", "/api/orders", "/api/printer-connections", "/api/product-profiles", "/api/print-files"]


@pytest.mark.parametrize("name", ["limit", "offset"])
@pytest.mark.parametrize(
    "value",
    [
        "0",
        "1001",
        "-1",
        "٣",
        "1e3",
        "1.0",
        "",
        " ",
        "+1",
        "0x1",
        "1_0",
        "x",
        "--5",
        "9" * 19,
        "9" * 5000,
        "NaN",
        "²",
        "1\x00",
    ],
)
def test_pages_are_asked_for_in_plain_whole_numbers(farm: Farm, name: str, value: str) -> None:
    allowed = {"0", "1001"} if name == "offset" else set()
    for path in [*LISTS, "/api/bambu/scheduled-prints"]:
        answer = farm.get(path, query_string={name: value})
        if value in allowed:
            assert answer.status_code == 200
        else:
            assert (answer.status_code, list(answer.json["fields"])) == (422, [name])


def test_the_edges_of_a_page(farm: Farm) -> None:
    farm.add_printer()
    for question, count in (
        ("limit=1", 1),
        ("limit=1000", 1),
        ("offset=1", 0),
        (f"offset={2**31 - 1}", 0),
        ("limit=1&offset=0", 1),
    ):
        answer = farm.get(f"/api/printers?{question}")
        assert (len(answer.json), answer.headers["X-Total-Count"]) == (count, "1")
    assert farm.get(f"/api/printers?offset={2**31}").status_code == 422


def test_a_filter_is_no_pattern(farm: Farm) -> None:
    farm.add_order({"title": "Vase 100 % blue_green", "quantity": 1})
    for text, count in (
        ("%", 1),
        ("_", 1),
        ("0 % b", 1),
        ("e_g", 1),
        ("v%e", 0),
        ("v_se", 0),
        ("\\", 0),
        ("VASE", 1),
        ("'", 0),
    ):
        assert farm.get("/api/orders", query_string={"product": text}).json["total"] == count, text


def test_a_foreign_method_in_a_header_is_ignored(farm: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        for word in ("DELETE", "PUT", "TRACE", "x" * 10_000):
            assert farm.get(f"/api/printers/{printer_id}", headers={name: word}).status_code == 200
            assert farm.post(f"/api/printers/{printer_id}", {}, headers={name: word}).status_code == 405
    assert farm.get(f"/api/printers/{printer_id}?_method=DELETE").status_code == 200


def test_headers_of_any_size_and_kind_break_nothing(farm: Farm) -> None:
    for name in (
        "Accept",
        "User-Agent",
        "Cookie",
        "If-None-Match",
        "Range",
        "X-Forwarded-For",
        "Origin",
        "Accept-Encoding",
    ):
        for value in ("x" * 100_000, "\x7f", "é" * 100, "=;,", "bytes=0-", "*/*;q=x", "'\"<>"):
            answer = farm.get("/api/printers", headers={name: value})
            assert answer.status_code == 200 and "evil" not in str(answer.headers), (name, value[:20])
    assert farm.get("/api/printers", headers={"Host": "evil.example:99999999"}).status_code in (200, 400, 404)


def test_a_body_that_lies_about_its_length(farm: Farm) -> None:
    for length in ("-1", "x", "999999999999999999999", str(2**31)):
        answer = farm.call(
            "POST",
            "/api/printers",
            data=b'{"name": "x"}',
            content_type="application/json",
            headers={"Content-Length": length},
        )
        assert answer.status_code in (201, 400, 411, 413, 415, 422), (length, answer.text)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-1",
        "00",
        "01",
        "1.0",
        str(2**31),
        str(2**63),
        "9" * 400,
        "٣",
        "%D9%A3",
        "1%00",
        "1%20",
        "x",
        "%2e%2e",
        "%ff",
    ],
)
def test_an_id_in_a_path_is_a_plain_number_that_a_row_can_have(farm: Farm, method: str, text: str) -> None:
    paths = ["/api/bambu/materials"] if method == "POST" else ["/api/printers", "/api/bambu/scheduled-prints"]
    for path in paths:
        body = {"slot": 0, "material_type": "PLA", "weight_grams": 1} if method == "POST" else {}
        answer = farm.call(method, f"{path}/{text}", json=body)
        assert answer.status_code == 404, answer.text


# References among ones own rows.


def test_a_child_under_anothers_parent_is_refused(ground: Ground) -> None:
    """Ids of the right account in the wrong place: another kind of row, a deleted one, a print of another printer."""
    whole, farm = ground.whole, ground.whole.farm
    prints, materials = "/api/bambu/scheduled-prints", "/api/bambu/materials"
    assert farm.get(f"{prints}/{whole.deleted_printer_id}").status_code == 404
    assert farm.get(f"{materials}/{whole.deleted_printer_id}").status_code == 404
    assert farm.post(prints, {"printer_id": whole.deleted_printer_id, "job_name": "x"}).status_code == 404
    assert farm.put(f"{prints}/{whole.print_id}", {"printer_id": whole.deleted_printer_id}).status_code == 404
    assert farm.get(f"{prints}/{whole.deleted_print_id}/events").status_code == 404
    for act in ("start", "pause", "resume", "stop"):
        assert farm.post(f"{prints}/{whole.deleted_print_id}/{act}").status_code == 404
    cleared = farm.post(f"/api/printers/{whole.spare_printer_id}/plate-cleared", {"print_id": whole.print_id})
    assert cleared.status_code == 409
    wrong_plate = {"print_file_id": whole.file_id, "plate": 2}
    assert farm.put(f"{prints}/{whole.print_id}", wrong_plate).status_code == 422
    assert farm.put(f"/api/product-profiles/{whole.profile_id}", wrong_plate).status_code == 422
    assert farm.put(f"{prints}/{whole.print_id}", {"order_id": NEVER_USED_ID, "notes": "x"}).status_code == 404
    assert ground.count() == ground.counts


def test_shape_comes_before_references_and_those_before_the_move(ground: Ground) -> None:
    farm, path = ground.whole.farm, f"/api/bambu/scheduled-prints/{ground.whole.print_id}"
    everything = {"status": "completed", "order_id": NEVER_USED_ID, "priority": "high"}
    assert farm.put(path, everything).status_code == 422
    del everything["priority"]
    assert farm.put(path, everything).status_code == 404
    del everything["order_id"]
    assert farm.put(path, everything | {"notes": "changed"}).status_code == 409
    assert farm.get_print(ground.whole.print_id)["notes"] == f"{MARK} print"  # type: ignore[index]


# Uploads.


@pytest.mark.parametrize(
    "kind", ["application/json", "text/plain", "multipart/form-data", "multipart/form-data; boundary="]
)
def test_an_upload_that_is_no_form(farm: Farm, kind: str) -> None:
    for data in (b"", b"{}", b"--x\r\n", b"\x00" * 1000):
        answer = farm.call("POST", "/api/print-files", data=data, content_type=kind)
        assert answer.status_code in (400, 413, 415, 422), answer.text
