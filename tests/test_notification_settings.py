"""A printer's notification preferences through the API."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from models import PrintNotification
from tests.apps import another_app
from tests.conftest import Clock
from tests.farm_builder import Farm

PATH = "/api/bambu/notifications"
MISSING_ID = 2_000_000_000
DEFAULTS = {
    "notify_print_start": True,
    "notify_print_complete": True,
    "notify_print_failed": True,
    "notify_material_change": False,
    "notify_material_low": True,
    "notify_maintenance": True,
    "email_enabled": True,
    "webhook_url": None,
    "has_webhook_secret": False,
}
URL = "https://hooks.example.com/print?key=1"


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer()["id"])


@pytest.fixture
def strict_farm(app: Flask, strict_app: Flask) -> Farm:
    """A farm whose operator allows webhooks to 10.7.0.0/16 and fd07::/16 and to no other private network."""
    return Farm(strict_app, "strict@example.com")


@pytest.fixture(scope="module")
def strict_app(
    session_database_url: str, tmp_path_factory: pytest.TempPathFactory, session_clock: Clock
) -> Iterator[Flask]:
    folder, networks = tmp_path_factory.mktemp("strict"), "10.7.0.0/16, fd07::/16"
    with another_app(session_database_url, folder, session_clock, WEBHOOK_ALLOWED_NETWORKS=networks) as made:
        yield made


def put(farm: Farm, printer_id: int, **changes: Any) -> Any:
    return farm.put(f"{PATH}/{printer_id}", changes)


def test_a_first_read_answers_the_defaults_and_saves_nothing(farm: Farm, printer_id: int) -> None:
    answer = farm.get(f"{PATH}/{printer_id}")
    assert (answer.status_code, answer.json) == (
        200,
        {"id": None, "printer_id": printer_id, **DEFAULTS, "created_at": None, "updated_at": None},
    )
    with farm.database() as session:
        assert session.execute(sa.select(sa.func.count()).select_from(PrintNotification)).scalar_one() == 0


@pytest.mark.parametrize("flag", [name for name, value in DEFAULTS.items() if isinstance(value, bool)][:-1])
def test_a_put_changes_only_the_keys_it_sends(farm: Farm, printer_id: int, clock: Clock, flag: str) -> None:
    first = put(farm, printer_id, **{flag: not DEFAULTS[flag]})
    at = "2026-11-21T09:00:00Z"
    wanted = {"printer_id": printer_id, **DEFAULTS, flag: not DEFAULTS[flag], "created_at": at, "updated_at": at}
    assert (first.status_code, first.json) == (200, {"id": first.json["id"], **wanted})
    assert farm.get(f"{PATH}/{printer_id}").json == first.json
    clock.forward(minutes=1)
    second = put(farm, printer_id, **{flag: DEFAULTS[flag]}).json
    assert second == first.json | {flag: DEFAULTS[flag], "updated_at": "2026-11-21T09:01:00Z"}


def test_preferences_are_a_printers_own(farm: Farm, printer_id: int) -> None:
    other = farm.add_printer("Right")["id"]
    put(farm, printer_id, email_enabled=False)
    assert farm.get(f"{PATH}/{other}").json["email_enabled"] is True


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            (name, bad)
            for name in DEFAULTS
            if name not in ("webhook_url", "has_webhook_secret")
            for bad in (1, "true", None)
        ],
        *[("webhook_url", bad) for bad in ("", " ", 5, "x", "ftp://example.com/", "https://", "//example.com")],
        ("webhook_url", "https://example.com/" + "x" * 2000),
        ("webhook_url", "https://user:password@example.com/"),
        *[(name, 1) for name in ("id", "printer_id", "user_id", "webhook_secret", "has_webhook_secret", "nonsense")],
    ],
)
def test_what_is_invalid_read_only_or_unknown_is_refused_by_name(
    farm: Farm, printer_id: int, field: str, value: Any
) -> None:
    before = put(farm, printer_id, notify_maintenance=False).json
    answer = farm.put(f"{PATH}/{printer_id}", {field: value})
    assert (answer.status_code, list(answer.json["fields"])) == (422, [field])
    assert farm.get(f"{PATH}/{printer_id}").json == before


def test_another_users_printer_answers_like_a_missing_one(farm: Farm, stranger: Farm) -> None:
    theirs = stranger.add_printer()["id"]
    assert farm.get(f"{PATH}/{theirs}").status_code == 404
    assert farm.get(f"{PATH}/{theirs}").data == farm.get(f"{PATH}/{MISSING_ID}").data
    assert put(farm, theirs, email_enabled=False).data == put(farm, MISSING_ID, email_enabled=False).data
    assert stranger.get(f"{PATH}/{theirs}").json["email_enabled"] is True


# The webhook and its secret


def test_a_new_webhook_url_answers_its_secret_this_once(farm: Farm, printer_id: int) -> None:
    first = put(farm, printer_id, webhook_url=URL).json
    assert first["webhook_secret"].startswith("whsec_") and len(first["webhook_secret"]) >= 40
    assert (first["webhook_url"], first["has_webhook_secret"]) == (URL, True)
    later = [
        farm.get(f"{PATH}/{printer_id}").json,
        put(farm, printer_id, notify_maintenance=False).json,
        put(farm, printer_id, webhook_url=URL).json,
    ]
    for answer in later:
        assert "webhook_secret" not in answer
        assert (answer["webhook_url"], answer["has_webhook_secret"]) == (URL, True)


def test_another_url_gets_another_secret_and_no_url_none(farm: Farm, printer_id: int) -> None:
    first = put(farm, printer_id, webhook_url=URL).json["webhook_secret"]
    second = put(farm, printer_id, webhook_url=URL + "2").json["webhook_secret"]
    assert first != second
    gone = put(farm, printer_id, webhook_url=None).json
    assert (gone["webhook_url"], gone["has_webhook_secret"], "webhook_secret" in gone) == (None, False, False)
    assert put(farm, printer_id, webhook_url=URL).json["webhook_secret"] not in (first, second)


def test_a_secret_lies_sealed_in_the_database(farm: Farm, printer_id: int) -> None:
    secret = put(farm, printer_id, webhook_url=URL).json["webhook_secret"]
    with farm.database() as session:
        row = repr(tuple(session.execute(sa.text("SELECT * FROM print_notifications")).one()))
    assert secret.removeprefix("whsec_") not in row and URL in row


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:9/", "http://localhost/", "http://10.0.0.5/", "http://192.168.1.9/", "http://172.16.0.1/"),
        *(
            "http://169.254.169.254/latest",
            "http://[::1]/",
            "http://[fd00::1]/",
            "http://2130706433/",
            "http://0x7f.1/",
        ),
        *("http://[::ffff:10.0.0.5]/", "http://0.0.0.0/", "http://224.0.0.1/"),
    ],
)
def test_a_private_or_special_address_is_422(strict_farm: Farm, url: str) -> None:
    printer_id = strict_farm.add_printer()["id"]
    answer = put(strict_farm, printer_id, webhook_url=url)
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["webhook_url"])
    assert strict_farm.get(f"{PATH}/{printer_id}").json["webhook_url"] is None


@pytest.mark.parametrize(
    "url", ["http://10.7.200.1:8123/api/webhook/x", "https://[fd07::1]/", URL, "http://203.0.114.9/"]
)
def test_a_public_address_or_one_that_the_operator_allows_is_taken(strict_farm: Farm, url: str) -> None:
    answer = put(strict_farm, strict_farm.add_printer()["id"], webhook_url=url)
    assert (answer.status_code, answer.json["webhook_url"]) == (200, url)


def test_a_url_may_have_2000_characters(farm: Farm, printer_id: int) -> None:
    url = URL + "x" * (2000 - len(URL))
    assert put(farm, printer_id, webhook_url=url).json["webhook_url"] == url
    assert put(farm, printer_id, webhook_url=url + "x").status_code == 422


def test_two_first_puts_at_the_same_moment_both_hold(farm: Farm, printer_id: int) -> None:
    gate, statuses = threading.Barrier(4), []
    flags = ["notify_print_start", "notify_print_complete", "notify_print_failed", "notify_maintenance"]

    def change(flag: str) -> None:
        gate.wait()
        statuses.append(put(farm, printer_id, **{flag: False}).status_code)

    threads = [threading.Thread(target=change, args=(flag,)) for flag in flags]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert statuses == [200] * 4
    found = farm.get(f"{PATH}/{printer_id}").json
    assert [found[flag] for flag in flags] == [False] * 4
