"""No user reads or writes what is another's, and the database itself refuses a row across users."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.exc import IntegrityError
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from columns import Scaled, UtcDateTime
from models import MAX_ID, Delivery, TokenFamily, User, db
from simulator.sinks import MailSink, WebhookReceiver
from tests.api_document import ApiDocument, path_of, private_rules
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.outboxes import make_outbox
from tests.production_log import production_log
from tests.whole_farm import BODIES, NEVER_USED_ID, NO_REFERENCES, WholeFarm, fill

pytestmark = pytest.mark.usefixtures("app")

# What belongs to nobody: which worker is alive, and which holds which machine (two accounts may have entered the same).
SHARED = {"discovered_printers", "printer_gates", "worker_presences"}
OWNER, STRANGER = "QZOWNERQZ", "QZOTHERQZ"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    with production_log() as said:
        yield said


@pytest.fixture
def document(app: Flask) -> ApiDocument:
    return ApiDocument(app)


def body_of(document: ApiDocument, rule: Rule, method: str, whole: WholeFarm) -> dict[str, Any] | None:
    """A body that the operation takes, with every reference that it can hold pointing to the account's own rows."""
    schema = document.body(rule, method)
    if schema is None:
        return None
    body = BODIES[rule.endpoint](whole) if rule.endpoint in BODIES else {}
    for name in reference_fields(document, schema):
        body = put_reference(body, name, whole.row_named(name.rpartition(".")[2]))
    return body


def put_reference(body: dict[str, Any], name: str, row_id: int) -> dict[str, Any]:
    """The body with that id in it; `list.field` names the field of the list's first entry."""
    outer, _, field = name.rpartition(".")
    return body | ({outer: [body[outer][0] | {field: row_id}]} if outer else {field: row_id})


def reference_fields(document: ApiDocument, schema: dict[str, Any]) -> list[str]:
    """The fields of a body that name a row; one in a list of objects as `list.field`. One that is nested deeper fails
    here until the walk knows how to reach it."""
    found = []
    for field in document.fields(schema):
        inner = document.follow(field.schema.get("items", field.schema))
        if inner.get("properties"):
            nested = reference_fields(document, inner)
            is_reached = "items" in field.schema and not any("." in name for name in nested)
            assert is_reached or not nested, f"{field.name} holds references: teach the walk"
            found += [f"{field.name}.{name}" for name in nested]
        if (
            field.name.endswith("_id")
            and "string" not in field.schema.get("type", ())
            and field.name not in NO_REFERENCES
        ):
            found.append(field.name)
    return found


def call(farm: Farm, method: str, path: str, body: dict[str, Any] | None = None, **more: Any) -> TestResponse:
    return farm.call(method, path, **({"json": body} if body is not None else {}), **more)


def bytes_of(answer: TestResponse) -> tuple[int, bytes, list[tuple[str, str]]]:
    return answer.status_code, answer.get_data(), sorted(answer.headers.items())


def dump(app: Flask, user_id: int | None = None) -> dict[str, list[Any]]:
    """All rows, or all that belong to a user."""
    found = {}
    with app.app_context():
        for table in db.metadata.sorted_tables:
            query = sa.select(table).order_by(*table.primary_key)
            if user_id is not None and table.name not in SHARED:
                owner = table.c.id if table.name == "users" else table.c.user_id
                query = query.where(owner == user_id)
            found[table.name] = [tuple(row) for row in db.session.execute(query)]
    return found


@pytest.fixture
def both(app: Flask) -> tuple[WholeFarm, WholeFarm]:
    owner = fill(Farm(app, f"{OWNER}@example.com"), OWNER)
    return owner, fill(Farm(app, f"{STRANGER}@example.com"), STRANGER)


def test_a_foreign_id_in_any_path_answers_like_one_that_never_was(
    app: Flask, document: ApiDocument, both: tuple[WholeFarm, WholeFarm], logged: io.StringIO
) -> None:
    owner, stranger = both
    before, faults, tried = dump(app, owner.farm.user["id"]), [], 0
    for rule, method in private_rules(app):
        for argument in rule.arguments - NO_REFERENCES:
            body, own = body_of(document, rule, method, stranger), stranger.ids_for(rule, method)
            absent = call(stranger.farm, method, path_of(rule, own | {argument: NEVER_USED_ID}), body)
            if absent.status_code != 404:
                faults.append(f"{method} {rule}: {absent.status_code} for an id that never was")
            known = {getattr(owner, f"{kind}{argument}", None) for kind in ("", "spare_", "deleted_")}
            # One's own that is deleted is no more than one that never was, either.
            known.add(getattr(stranger, f"deleted_{argument}", None))
            for foreign in sorted(known - {None}):
                answer = call(stranger.farm, method, path_of(rule, own | {argument: foreign}), body)
                tried += 1
                if bytes_of(answer) != bytes_of(absent):
                    faults.append(f"{method} {rule}: {answer.status_code} {answer.text[:200]}")
    assert faults == []
    assert tried > 50
    assert dump(app, owner.farm.user["id"]) == before
    assert OWNER not in logged.getvalue()


def test_a_foreign_id_in_any_body_answers_like_one_that_never_was(
    app: Flask, document: ApiDocument, both: tuple[WholeFarm, WholeFarm]
) -> None:
    owner, stranger = both
    before, faults, tried = dump(app), [], []
    for rule, method in private_rules(app):
        schema = document.body(rule, method)
        for name in reference_fields(document, schema) if schema else []:
            path, body = stranger.path(rule, method), body_of(document, rule, method, stranger)
            assert body is not None
            theirs = owner.row_named(name.rpartition(".")[2])
            absent = call(stranger.farm, method, path, put_reference(body, name, NEVER_USED_ID))
            foreign = call(stranger.farm, method, path, put_reference(body, name, theirs))
            tried.append((rule.endpoint, name))
            if absent.status_code != 404 or bytes_of(foreign) != bytes_of(absent):
                faults.append(f"{method} {rule} {name}: {absent.status_code}, {foreign.status_code} {foreign.text}")
    assert faults == []
    assert len(tried) >= 10
    assert dump(app) == before


def test_the_same_calls_reach_ones_own_rows(
    app: Flask, document: ApiDocument, both: tuple[WholeFarm, WholeFarm]
) -> None:
    """Without this, an entry that asks for the wrong kind of id would see 404 everywhere and prove nothing."""
    owner, faults = both[0], []
    for rule, method in sorted(private_rules(app), key=lambda each: (each[1] == "DELETE", str(each[0]))):
        if rule.endpoint == "accounts.log_out":
            continue
        body = body_of(document, rule, method, owner)
        answer = call(owner.farm, method, owner.path(rule, method), body)
        # An upload is no JSON body: without its file it is 422, which is far enough.
        refused = {401, 404, 405, 500} | ({422} if rule.endpoint != "print files.upload_file" else set())
        if answer.status_code in refused:
            faults.append(f"{method} {rule}: {answer.status_code} {answer.text[:200]}")
    assert faults == []


def test_lists_counts_and_filters_say_nothing_of_another_account(
    app: Flask, document: ApiDocument, stranger: Farm
) -> None:
    """Whatever one account reads is byte for byte the same after another one came with all it has."""
    mine = fill(stranger, STRANGER)

    def read_everything(foreign: WholeFarm | None) -> dict[str, Any]:
        found = {}
        for rule, method in private_rules(app):
            if method != "GET":
                continue
            path = mine.path(rule, method)
            questions = [("", "")]
            for parameter in document.query(rule, method):
                name = parameter["name"]
                questions += [(name, word) for word in parameter["schema"].get("enum", [])]
                if parameter["schema"]["type"] == "string" and "enum" not in parameter["schema"]:
                    questions += [(name, OWNER), (name, "%"), (name, "removed"), (name, "2026-11-21")]
                elif parameter["schema"]["type"] == "integer" and name not in ("limit", "offset"):
                    questions += [(name, str(mine.row_named(name)))]
                    asked = str(foreign.row_named(name) if foreign else NEVER_USED_ID)
                    found[f"{path}?{name}=foreign"] = bytes_of(mine.farm.get(path, query_string={name: asked}))
            for name, value in questions:
                found[f"{path}?{name}={value}"] = bytes_of(
                    mine.farm.get(path, query_string={name: value} if name else {})
                )
            found[f"{path} page"] = bytes_of(mine.farm.get(path, query_string={"limit": 1, "offset": 1}))
        return found

    alone = read_everything(None)
    assert {answer[0] for answer in alone.values()} <= {200, 422}
    assert len(alone) > 60
    other = fill(Farm(app, f"{OWNER}@example.com"), OWNER)
    together = read_everything(other)
    assert {question: answer for question, answer in together.items() if answer != alone[question]} == {}
    assert all(OWNER.encode() not in answer[1] for answer in together.values())
    assert any(STRANGER.encode() in answer[1] for answer in together.values())


def test_messages_carry_nothing_of_another_account(app: Flask, clock: Clock, logged: io.StringIO) -> None:
    with MailSink() as mail, WebhookReceiver() as receiver:
        whole = [fill(Farm(app, f"{mark}@example.com"), mark, receiver.url) for mark in (OWNER, STRANGER)]
        with app.app_context():
            outbox = make_outbox(app, clock, mail)
            while outbox.drain():
                pass
            deliveries = db.session.execute(sa.select(Delivery)).scalars().all()
            assert {each.status for each in deliveries} == {"sent"}
            for one, other in (whole, whole[::-1]):
                own = [each for each in deliveries if each.user_id == one.farm.user["id"]]
                assert len(own) >= 8
                for each in own:
                    said = json.dumps([each.target, each.payload])
                    assert other.mark not in said and other.mark.casefold() not in said.casefold()
                    assert one.mark.casefold() in each.target.casefold()
        for message in mail.messages:
            addressee = OWNER if OWNER.casefold() in message["To"] else STRANGER
            other = STRANGER if addressee == OWNER else OWNER
            assert other.casefold() not in message.as_string().casefold()
        for post in receiver.received:
            told = json.dumps(post.json)
            assert (OWNER in told) is not (STRANGER in told)
    said = logged.getvalue().casefold()
    assert "delivery" in said
    assert OWNER.casefold() not in said and STRANGER.casefold() not in said


def test_one_accounts_repeat_key_is_not_anothers(farm: Farm, stranger: Farm) -> None:
    key = {"Idempotency-Key": "the-same"}
    first = farm.post("/api/printers", {"name": OWNER}, headers=key).json
    second = stranger.post("/api/printers", {"name": STRANGER}, headers=key)
    assert second.status_code == 201
    assert (second.json["name"], "Idempotent-Replay" in second.headers) == (STRANGER, False)
    assert second.json["id"] != first["id"]


def test_the_same_file_is_each_accounts_own(app: Flask, farm: Farm, stranger: Farm) -> None:
    mine, theirs = farm.add_file(), stranger.add_file()
    assert mine["sha256"] == theirs["sha256"] and mine["id"] != theirs["id"]
    assert stranger.delete(f"/api/print-files/{theirs['id']}").status_code == 200
    kept = app.extensions["parts"].settings.files_dir / str(farm.user["id"]) / mine["sha256"]
    assert farm.get(f"/api/print-files/{mine['id']}").status_code == 200 and kept.is_file()


# The database itself.

COMPOSITE_KEYS = [
    (table.name, constraint.column_keys[1])
    for table in db.metadata.sorted_tables
    for constraint in sorted(table.foreign_key_constraints, key=lambda each: each.column_keys)
    if len(constraint.column_keys) == 2
]
# Integers that end in _id and point to no row: places on a printer, our number on the printer's wire, and the print on
# the plate, which is compared with an id of the caller's own and never followed (a key back would close a circle).
NO_KEYS = {("bambu_materials", "ams_id"), ("bambu_materials", "tray_id"), ("start_intents", "submission_id")}
NO_KEYS |= {("printer_gates", "plate_print_id"), ("printer_gates", "last_submission_id")}


def value_for(column: sa.Column[Any]) -> Any:
    kind = column.type
    if isinstance(kind, sa.Enum):
        return kind.python_type(kind.enums[0]) if kind.python_type is not str else kind.enums[0]
    if isinstance(kind, UtcDateTime):
        return BASE_TIME
    if isinstance(kind, sa.String):
        return secrets.token_hex(16)[: kind.length or 32]
    if isinstance(kind, sa.JSON):
        return {}
    if isinstance(kind, sa.Boolean):
        return False
    assert isinstance(kind, sa.Integer | Scaled), column
    return secrets.randbelow(200) + 1 if "id" in column.name else 1


def make_row(table: sa.Table, user_id: int, **given: Any) -> dict[str, Any]:
    """Insert a row of a user with fresh rows of theirs behind every reference; its values with the id."""
    references = {
        constraint.column_keys[1]: constraint.referred_table
        for constraint in table.foreign_key_constraints
        if len(constraint.column_keys) == 2
    }
    values: dict[str, Any] = {}
    for column in table.columns:
        if column.name in given:
            values[column.name] = given[column.name]
        elif column.name == "user_id":
            values[column.name] = user_id
        elif references.get(column.name) is table:
            values[column.name] = None
        elif column.name in references:
            values[column.name] = make_row(references[column.name], user_id)["id"]
        elif not (column.primary_key and isinstance(column.type, sa.Integer)):
            values[column.name] = value_for(column)
    key = db.session.execute(sa.insert(table).values(**values)).inserted_primary_key
    return values | dict(zip((column.name for column in table.primary_key), key or (), strict=False))


@pytest.fixture
def two_users(app: Flask) -> Iterator[tuple[int, int]]:
    with app.app_context():
        users = [make_row(User.__table__, 0) for _ in range(2)]
        db.session.commit()
        yield users[0]["id"], users[1]["id"]
        db.session.rollback()


@pytest.mark.parametrize(("table_name", "column"), COMPOSITE_KEYS)
def test_the_database_refuses_a_row_across_users(two_users: tuple[int, int], table_name: str, column: str) -> None:
    mine, theirs = two_users
    table = db.metadata.tables[table_name]
    constraint = next(each for each in table.foreign_key_constraints if each.column_keys[1:] == [column])
    foreign = make_row(constraint.referred_table, theirs)["id"]
    # The very same row is taken from its owner: it is the crossing that is refused.
    make_row(table, theirs, **{column: foreign})
    db.session.commit()
    with pytest.raises(IntegrityError, match="(?i)foreign key"):
        make_row(table, mine, **{column: make_row(constraint.referred_table, theirs)["id"]})
        db.session.commit()


def test_every_reference_between_owned_rows_is_held_by_a_composite_key() -> None:
    loose = {
        (table.name, column.name)
        for table in db.metadata.sorted_tables
        for column in table.columns
        if column.name.endswith("_id")
        and column.name != "user_id"
        and isinstance(column.type, sa.Integer)
        and (table.name, column.name) not in COMPOSITE_KEYS
    }
    assert loose == NO_KEYS
    assert len(COMPOSITE_KEYS) > 20


def test_every_table_belongs_to_a_user() -> None:
    ownerless = {table.name for table in db.metadata.sorted_tables if "user_id" not in table.columns}
    assert ownerless == {"users"} | SHARED


def test_an_id_that_no_row_can_have_is_no_address(farm: Farm) -> None:
    farm.add_printer()
    never = farm.get(f"/api/printers/{NEVER_USED_ID}")
    for text in ("0", "-1", str(MAX_ID + 1), str(2**63), "1.0", "1e0", "٣", "%00", "1%00", "x", "+1", "'", "..", "1;2"):
        answer = farm.get(f"/api/printers/{text}")
        assert bytes_of(answer) == bytes_of(never), text


def test_families_of_all_accounts_are_apart(app: Flask, farm: Farm, stranger: Farm) -> None:
    farm.post("/api/auth/logout")
    assert stranger.get("/api/auth/user").json["email"] == "stranger@example.com"
    with app.app_context():
        revoked = db.session.execute(
            sa.select(TokenFamily.user_id).where(TokenFamily.revoked_at.is_not(None))
        ).scalars()
        assert set(revoked) == {farm.user["id"]}


def test_an_id_is_never_given_to_another_row(farm: Farm, stranger: Farm) -> None:
    """Whoever still holds the id of a deleted row, a client or the worker's link, must not reach another with it."""
    mine = fill(farm, OWNER)
    assert farm.delete(f"/api/product-profiles/{mine.spare_profile_id}").status_code == 200
    assert farm.delete(f"/api/print-files/{mine.spare_file_id}").status_code == 200
    assert farm.delete(f"/api/printer-connections/{mine.spare_connection_id}").status_code == 200
    theirs = fill(stranger, STRANGER)
    assert theirs.profile_id > mine.spare_profile_id
    assert theirs.file_id > mine.spare_file_id
    assert theirs.connection_id > mine.spare_connection_id
