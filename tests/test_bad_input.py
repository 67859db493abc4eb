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
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from api.reading import MAX_DEPTH, read_json
from errors import BadRequest
from models import ScheduledPrint, db
from tests.api_document import ApiDocument, BodyField, rules
from tests.conftest import BASE_TIME, Clock, empty
from tests.farm_builder import Farm
from tests.whole_farm import BODIES, NEVER_USED_ID, WholeFarm, fill

MARK = "QZOWNERQZ"
# The answer of the database to what nobody checked before; no test here races with another, so none may see it.
UNCHECKED = "Somebody else changed this at the same moment."


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


TYPES = [None, True, False, 0, -1, 1, 1.5, "", " ", [], {}, nested(40), [None], {"a": {"b": [1]}}, "null", "true"]
NUMBERS = [2**31 - 1, 2**31, -(2**31), 2**63, 2**64, 10**30, 1e300, -1e300, 1e-300, 0.0001, 0.00049, -0.01, 10**9]
NUMBERS += [8, 101, 255, 256, 501, 1000.5, 100_000, 100_001, Decimal("0." + "1" * 60), "5", "٣", "1e3", "0x10", "Infinity"]
TEXTS = ["\x00", "a\x00b", "\x1b[31mred", "\x08", "\r\nBcc: x@example.com", "\u202egnp.exe", "\u2028", "\ufeff", "\ufffe", "%", "_"]
TEXTS += ["'", '"', "\\", "'; DROP TABLE users; --", "{{7*7}}", "${7*7}", "=cmd|' /C calc'!A0", "<svg onload=alert(1)>", "%s%n"]
TEXTS += ["../../etc/passwd", "#GGGGGG", "#12345", "#1122334455", "#112233\n", "\U0001f9ff" * 3, "x" * 255, "x" * 256, "é" * 2001]
TEXTS += ["x" * 1_000_000, "EUR\n", "12\n", "eur", "ＥＵＲ", "123", "1" * 21]
TIMES = ["2026-11-21", "2026-11-21T09:30:00", "2026-11-21 09:30:00Z", "2026-11-21T09:30:00+14:00", "0001-01-01T00:00:00+14:00"]
TIMES += ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00", "2026-12-31T23:59:60Z", "2026-13-01T00:00:00Z"]
TIMES += ["2026-03-29T02:30:00+01:00", "2026-10-25T02:30:00", "2026-11-21T24:00:00Z", "2026-11-21T09:30:00+25:00", "-2026-11-21T09:30:00Z"]
TIMES += ["2026-11-21T09:30:00.1234567890Z", "2026-11-21T09:30:00Z\n", "٢٠٢٦-11-21T09:30:00Z", "2026-W47-6", "now", "1795251000"]
ADDRESSES = ["localhost", "127.0.0.1", "0.0.0.0", "::1", "[::1]", "169.254.169.254", "192.168.1.5", "a..b", "-a", "a" * 254, "1.2.3"]
ADDRESSES += ["http://127.0.0.1/", "http://user:pw@example.com/", "ftp://example.com", "javascript:alert(1)", "http://", "//x", "http://[", "HTTP://X"]
CORPUS = [*TYPES, *NUMBERS, *TEXTS, *TIMES, *ADDRESSES]

EXTRAS = {"user_id": 1, "id": 1, "created_at": "2026-11-21T09:00:00Z", "no_such_field": None, "": 1, "__proto__": {}, "a.b": 1}

UNREADABLE = {
    "nothing in it": b"",
    "cut off": b'{"name": "x"',
    "two documents": b'{"name": "x"}{"name": "y"}',
    "text after it": b'{"name": "x"} x',
    "duplicate keys": b'{"name": "x", "name": "y"}',
    "duplicate keys, spelled apart": b'{"name": "x", "n\\u0061me": "y"}',
    "duplicate keys inside": b'{"name": {"a": 1, "a": 1}}',
    "byte order mark": b'\xef\xbb\xbf{"name": "x"}',
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
    "Latin-1": '{"name": "é"}'.encode("latin-1"),
    "overlong UTF-8": b'{"name": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"name": "\xed\xa0\x80"}',
    "lone surrogate": b'{"name": "\\ud800"}',
    "lone surrogate as a key": b'{"\\uDC00": 1}',
    "surrogates the wrong way round": b'{"name": ["\\ude00\\ud83d"]}',
    "NaN": b'{"name": NaN}',
    "Infinity": b'{"name": Infinity}',
    "-Infinity": b'{"name": -Infinity}',
    "1e309": b'{"name": 1e309}',
    "1e-999999": b'{"name": 1e-999999}',
    "an exponent beyond all bounds": b'{"name": 1e99999999999999999999999}',
    "a number of 5000 digits": b'{"name": ' + b"1" * 5000 + b"}",
    "a fraction of 5000 digits": b'{"name": 0.' + b"1" * 5000 + b"}",
    "leading zero": b'{"name": 01}',
    "plus sign": b'{"name": +1}',
    "single quotes": b"{'name': 'x'}",
    "comment": b'{"name": "x"} // y',
    "trailing comma": b'{"name": "x",}',
    "control character": b'{"name": "\n"}',
    "bad escape": b'{"name": "\\x41"}',
    "100,000 levels of lists": b"[" * 100_000 + b"]" * 100_000,
    "100,000 levels of objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "100,000 levels in a field": b'{"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a text without end": b"[" * 65 + b'"' + b'\\"' * 400_000,
}


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
        tables = [sa.select(sa.func.count()).select_from(table).scalar_subquery() for table in db.metadata.sorted_tables]
        self._count = sa.select(*tables)
        self.counts = self.count()

    def count(self) -> tuple[int, ...]:
        with self.app.app_context():
            return tuple(db.session.execute(self._count).one())

    def path(self, rule: Rule, method: str) -> str:
        path = str(rule)
        for argument in rule.arguments:
            path = path.replace(f"<id:{argument}>", str(self.whole.id_for(argument, method)))
        return path

    def send(self, rule: Rule, method: str, body: Any) -> TestResponse:
        """Send a body and hold the answer to the document, and the database to the answer."""
        # Not by the client's own encoder: a Decimal goes out as the number it is.
        text = json.dumps(body, default=lambda value: float(value), ensure_ascii=False).encode("utf-8", "surrogatepass")
        return self.send_raw(rule, method, text)

    def send_raw(self, rule: Rule, method: str, data: bytes, kind: str = "application/json") -> TestResponse:
        answer = self.whole.farm.call(method, self.path(rule, method), data=data, content_type=kind)
        said = f"{method} {rule} {data[:200]!r}: {answer.status_code} {answer.text[:300]}"
        assert answer.status_code < 500, said
        assert answer.status_code != 401 or rule.endpoint.startswith(("accounts.", "etsy login.")), said
        assert UNCHECKED not in answer.text, said
        fault = self.document.fault(rule, method, answer)
        assert fault is None, f"{said}: {fault}"
        if answer.status_code >= 400:
            assert self.count() == self.counts, said
        else:
            self._settle(rule)
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


@pytest.fixture
def ground(app: Flask, clock: Clock) -> Ground:
    return Ground(app)


def endpoints() -> list[str]:
    """Every operation with a JSON body, by name, so that each is a test of its own; another test holds the list."""
    return [
        "accounts.register",
        "accounts.log_in",
        "accounts.refresh",
        "etsy login.finish_etsy_login",
        "printers.add_printer",
        "printers.change_printer",
        "printers.clear_plate",
        "printer connections.add_connection",
        "printer connections.change_connection",
        "orders.add_order",
        "orders.schedule_prints",
        "product profiles.add_profile",
        "product profiles.change_profile",
        "materials.add_material",
        "materials.change_material",
        "notifications.change_preferences",
        "scheduled prints.add_print",
        "scheduled prints.change_print",
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
    """What the document refuses, the API refuses by that field's name; what it allows is taken whole or refused whole."""
    rule, method = rule_of(ground.app, endpoint)
    schema = ground.document.body(rule, method)
    assert schema is not None
    document, tried = ground.document, 0
    for place, fields in places(ground, schema):
        prefix = f"{place}.0." if place else ""
        for value in CORPUS:
            plain = float(value) if isinstance(value, Decimal) else value
            refused = [field for field in fields if not document.is_valid(plain, field.schema)]
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
                if field not in refused:
                    answer = ground.send(rule, method, put_in(base_of(ground, endpoint), place, {field.name: value}))
                    tried += 1
                    _check_echo(answer, field.name if not place else "", value)
    assert tried >= len(CORPUS)


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


@pytest.mark.parametrize("endpoint", endpoints())
def test_what_the_reader_refuses_is_400_on_every_route(ground: Ground, endpoint: str) -> None:
    rule, method = rule_of(ground.app, endpoint)
    for name, data in UNREADABLE.items():
        begun = time.monotonic()
        answer = ground.send_raw(rule, method, data)
        assert (answer.status_code, answer.json["code"]) == (400, "bad_request"), f"{name}: {answer.text[:200]}"
        assert time.monotonic() - begun < 2, name
    for data in (b"[]", b'[{"name": "x"}]', b'"x"', b"5", b"true", b"null", b"1.5"):
        answer = ground.send_raw(rule, method, data)
        assert (answer.status_code, list(answer.json["fields"])) == (422, ["body"]), data
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx"):
        assert ground.send_raw(rule, method, b'{"name": "x"}', kind).status_code == 415, kind


def test_the_reader_takes_what_is_json() -> None:
    assert read_json(b' {"a": [1, -0, 1.50, 2e2, "\\ud83e\\uddff", null, true]} ') == {
        "a": [1, 0, Decimal("1.50"), Decimal("2e2"), "\U0001f9ff", None, True]
    }
    read_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    read_json(json.dumps(["[{" * 500, '\\"[' * 500]).encode())
    with pytest.raises(BadRequest):
        read_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


# Queries, paths, headers.


def test_the_corpus_in_every_query(ground: Ground) -> None:
    tried = 0
    for rule, method in rules(ground.app):
        if method != "GET" or rule.endpoint.partition(".")[0] == "docs":
            continue
        for parameter in ground.document.query(rule, method):
            for value in [*NUMBERS, *(text for text in TEXTS if len(text) < 5000), *TIMES, "", " ", "-1", "0"]:
                answer = ground.whole.farm.get(ground.path(rule, method), query_string={parameter["name"]: str(value)})
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
    ["0", "1001", "-1", "٣", "1e3", "1.0", "", " ", "+1", "0x1", "1_0", "x", "--5", "9" * 19, "9" * 5000, "NaN", "²", "1\x00"],
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
    for question, count in (("limit=1", 1), ("limit=1000", 1), ("offset=1", 0), (f"offset={2**31 - 1}", 0), ("limit=1&offset=0", 1)):
        answer = farm.get(f"/api/printers?{question}")
        assert (len(answer.json), answer.headers["X-Total-Count"]) == (count, "1")
    assert farm.get(f"/api/printers?offset={2**31}").status_code == 422


def test_a_filter_is_no_pattern(farm: Farm) -> None:
    farm.add_order({"title": "Vase 100 % blue_green", "quantity": 1})
    for text, count in (("%", 1), ("_", 1), ("0 % b", 1), ("e_g", 1), ("v%e", 0), ("v_se", 0), ("\\", 0), ("VASE", 1), ("'", 0)):
        assert farm.get("/api/orders", query_string={"product": text}).json["total"] == count, text


def test_a_foreign_method_in_a_header_is_ignored(farm: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        for word in ("DELETE", "PUT", "TRACE", "x" * 10_000):
            assert farm.get(f"/api/printers/{printer_id}", headers={name: word}).status_code == 200
            assert farm.post(f"/api/printers/{printer_id}", {}, headers={name: word}).status_code == 405
    assert farm.get(f"/api/printers/{printer_id}?_method=DELETE").status_code == 200


def test_headers_of_any_size_and_kind_break_nothing(farm: Farm) -> None:
    for name in ("Accept", "User-Agent", "Cookie", "If-None-Match", "Range", "X-Forwarded-For", "Origin", "Accept-Encoding"):
        for value in ("x" * 100_000, "\x7f", "é" * 100, "=;,", "bytes=0-", "*/*;q=x", "'\"<>"):
            answer = farm.get("/api/printers", headers={name: value})
            assert answer.status_code == 200 and "evil" not in str(answer.headers), (name, value[:20])
    assert farm.get("/api/printers", headers={"Host": "evil.example:99999999"}).status_code in (200, 400, 404)


def test_a_body_that_lies_about_its_length(farm: Farm) -> None:
    for length in ("-1", "x", "999999999999999999999", str(2**31)):
        answer = farm.call(
            "POST", "/api/printers", data=b'{"name": "x"}', content_type="application/json", headers={"Content-Length": length}
        )
        assert answer.status_code in (201, 400, 411, 413, 415, 422), (length, answer.text)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
@pytest.mark.parametrize("text", ["0", "-1", "00", "01", "1.0", str(2**31), str(2**63), "9" * 400, "٣", "%D9%A3", "1%00", "1%20", "x", "%2e%2e", "%ff"])
def test_an_id_in_a_path_is_a_plain_number_that_a_row_can_have(farm: Farm, method: str, text: str) -> None:
    for path in ("/api/printers", "/api/bambu/materials", "/api/bambu/scheduled-prints"):
        answer = farm.call(method, f"{path}/{text}", json={})
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
    ("form", "status"),
    [
        ({}, 422),
        ({"file": "no file but a text"}, 422),
        ({"file": (b"", "x.gcode.3mf")}, 422),
        ({"file": (b"PK\x03\x04 no zip", "x.gcode.3mf")}, 422),
        ({"other": (b"x", "x.gcode.3mf")}, 422),
        ({"file": (b"x", "")}, 422),
        ({"file": (b"x", "../../../etc/passwd")}, 422),
        ({"file": (b"x", "a\x00b")}, 422),
    ],
)
def test_an_upload_that_is_none(app: Flask, farm: Farm, form: dict[str, Any], status: int) -> None:
    import io

    data = {name: (io.BytesIO(part[0]), part[1]) if isinstance(part, tuple) else part for name, part in form.items()}
    answer = farm.call("POST", "/api/print-files", data=data, content_type="multipart/form-data")
    assert answer.status_code == status, answer.text
    assert farm.get("/api/print-files").json == {"print_files": [], "total": 0}
    folder = app.extensions["parts"].settings.files_dir / str(farm.user["id"])
    assert not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data", "multipart/form-data; boundary="])
def test_an_upload_that_is_no_form(farm: Farm, kind: str) -> None:
    for data in (b"", b"{}", b"--x\r\n", b"\x00" * 1000):
        answer = farm.call("POST", "/api/print-files", data=data, content_type=kind)
        assert answer.status_code in (400, 413, 415, 422), answer.text
