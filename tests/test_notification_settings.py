"""A printer's notification preferences through the API."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from channels import WebhookSender
from models import Delivery, DeliveryStatus, PrintNotification, User
from simulator.sinks import WebhookReceiver
from tests.apps import another_app
from tests.conftest import BASE_TIME, Clock
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
    "notify_printer_offline": True,
    "notify_printer_fault": True,
    "notify_needs_person": True,
    "email_enabled": True,
    "quiet_from": None,
    "quiet_to": None,
    "digest": "off",
    "digest_at": "08:00",
    "webhook_url": None,
    "webhook_enabled": True,
    "webhook_failing_since": None,
    "webhook_disabled_at": None,
    "webhook_disabled_reason": None,
    "has_webhook_secret": False,
    "old_secret_valid_until": None,
}
FLAGS = [name for name, value in DEFAULTS.items() if isinstance(value, bool) and name != "has_webhook_secret"]
READ_ONLY = (
    *("id", "printer_id", "user_id", "webhook_secret", "has_webhook_secret", "old_secret_valid_until"),
    *("webhook_failing_since", "webhook_disabled_at", "webhook_disabled_reason"),
)
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


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag != "webhook_enabled"])
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
        *[(name, bad) for name in FLAGS for bad in (1, "true", None)],
        *[(name, bad) for name in ("quiet_from", "quiet_to", "digest_at") for bad in ("24:00", "8:00", "08:60", "", 8)],
        *[(name, bad) for name in ("quiet_from", "digest_at") for bad in ("08:00:00", "٠٨:٠٠", "08:00\n.", "noon")],
        *[("digest", bad) for bad in ("weekly", "", None, 1)],
        ("digest_at", None),
        *[("webhook_url", bad) for bad in ("", " ", 5, "x", "ftp://example.com/", "https://", "//example.com")],
        ("webhook_url", "https://example.com/" + "x" * 2000),
        ("webhook_url", "https://user:password@example.com/"),
        *[(name, 1) for name in (*READ_ONLY, "nonsense")],
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


# Quiet hours and digests


def test_quiet_hours_and_digests_are_kept(farm: Farm, printer_id: int) -> None:
    wanted = {"quiet_from": "22:00", "quiet_to": "07:30", "digest": "daily", "digest_at": "18:05"}
    answer = put(farm, printer_id, **wanted)
    assert (answer.status_code, answer.json | wanted) == (200, answer.json)
    assert put(farm, printer_id, quiet_from="23:15").json["quiet_to"] == "07:30"
    off = put(farm, printer_id, quiet_from=None, quiet_to=None, digest="off").json
    assert (off["quiet_from"], off["quiet_to"], off["digest"], off["digest_at"]) == (None, None, "off", "18:05")


@pytest.mark.parametrize(
    ("before", "change", "field"),
    [
        ({}, {"quiet_from": "22:00"}, "quiet_to"),
        ({}, {"quiet_to": "07:00"}, "quiet_from"),
        ({}, {"quiet_from": "22:00", "quiet_to": None}, "quiet_to"),
        ({}, {"quiet_from": "22:00", "quiet_to": "22:00"}, "quiet_to"),
        ({"quiet_from": "22:00", "quiet_to": "07:00"}, {"quiet_from": None}, "quiet_from"),
        ({"quiet_from": "22:00", "quiet_to": "07:00"}, {"quiet_to": None}, "quiet_to"),
        ({"quiet_from": "22:00", "quiet_to": "07:00"}, {"quiet_to": "22:00"}, "quiet_to"),
    ],
)
def test_half_a_night_is_refused_by_what_is_missing(
    farm: Farm, printer_id: int, before: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    kept = put(farm, printer_id, notify_maintenance=False, **before).json
    answer = put(farm, printer_id, notify_maintenance=True, **change)
    assert (answer.status_code, list(answer.json["fields"])) == (422, [field])
    assert farm.get(f"{PATH}/{printer_id}").json == kept


def test_all_that_is_wrong_is_named_at_once(farm: Farm, printer_id: int) -> None:
    wrong = {"quiet_from": "25:00", "digest": "never", "digest_at": "late", "webhook_url": "x", "webhook_enabled": 1}
    answer = put(farm, printer_id, **wrong)
    assert (answer.status_code, set(answer.json["fields"])) == (422, set(wrong))


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


# Rotation


def rotate(farm: Farm, printer_id: int) -> Any:
    return farm.post(f"{PATH}/{printer_id}/rotate-secret")


def secrets_of(farm: Farm, printer_id: int) -> tuple[str | None, str | None]:
    """The webhook's secret and the one before, opened."""
    with farm.database() as session:
        saved = session.execute(
            sa.select(PrintNotification).where(PrintNotification.printer_id == printer_id)
        ).scalar_one()
        vault = farm.app.extensions["parts"].vault
        sealed = {"webhook_secret": saved.webhook_secret_sealed, "webhook_old_secret": saved.webhook_old_secret_sealed}
        opened = [each and vault.open(each, saved.secret_owner(name)) for name, each in sealed.items()]
        return opened[0], opened[1]


def test_a_rotated_secret_is_shown_once_and_the_old_one_is_good_for_a_day(
    farm: Farm, printer_id: int, clock: Clock
) -> None:
    old = put(farm, printer_id, webhook_url=URL).json["webhook_secret"]
    answer = rotate(farm, printer_id)
    assert answer.status_code == 200, answer.text
    new = answer.json["webhook_secret"]
    assert new.startswith("whsec_") and new != old
    assert answer.json == {"webhook_secret": new, "old_secret_valid_until": "2026-11-22T09:00:00Z"}
    assert secrets_of(farm, printer_id) == (new, old)
    shown = farm.get(f"{PATH}/{printer_id}")
    assert shown.json["old_secret_valid_until"] == "2026-11-22T09:00:00Z"
    assert "whsec_" not in shown.text
    with farm.database() as session:
        row = repr(tuple(session.execute(sa.text("SELECT * FROM print_notifications")).one()))
    assert old.removeprefix("whsec_") not in row and new.removeprefix("whsec_") not in row
    clock.forward(hours=24)
    farm.token = farm.client.post("/api/auth/refresh", json={"refresh_token": farm.refresh_token}).json["token"]
    assert farm.get(f"{PATH}/{printer_id}").json["old_secret_valid_until"] is None


def test_a_receiver_verifies_with_either_secret_while_they_rotate(farm: Farm, printer_id: int, clock: Clock) -> None:
    put(farm, printer_id, webhook_url=URL)
    rotate(farm, printer_id)
    known = [each for each in secrets_of(farm, printer_id) if each is not None]
    for secret in known:
        with WebhookReceiver(secret, clock=clock) as receiver:
            sender = WebhookSender([ipaddress.ip_network("127.0.0.0/8")], clock=clock)
            assert sender.send(receiver.url, known, "msg_1", b"{}").ok
            sender.close()
        assert receiver.received[0].verified


def test_a_second_rotation_within_the_day_drops_the_oldest(farm: Farm, printer_id: int, clock: Clock) -> None:
    put(farm, printer_id, webhook_url=URL)
    first = rotate(farm, printer_id).json["webhook_secret"]
    clock.forward(minutes=10)
    second = rotate(farm, printer_id).json
    assert second["old_secret_valid_until"] == "2026-11-22T09:10:00Z"
    assert secrets_of(farm, printer_id) == (second["webhook_secret"], first)


def test_a_new_url_forgets_the_old_secrets(farm: Farm, printer_id: int) -> None:
    put(farm, printer_id, webhook_url=URL)
    rotate(farm, printer_id)
    moved = put(farm, printer_id, webhook_url=URL + "2").json
    assert moved["old_secret_valid_until"] is None
    assert secrets_of(farm, printer_id) == (moved["webhook_secret"], None)
    rotate(farm, printer_id)
    put(farm, printer_id, webhook_url=None)
    assert secrets_of(farm, printer_id) == (None, None)


def test_a_secret_that_cannot_be_opened_any_more_is_replaced(farm: Farm, printer_id: int) -> None:
    put(farm, printer_id, webhook_url=URL)
    with farm.database() as session:
        session.execute(sa.update(PrintNotification).values(webhook_secret_sealed="sealed with other keys"))
        session.commit()
    answer = rotate(farm, printer_id)
    assert (answer.status_code, answer.json["old_secret_valid_until"]) == (200, None)
    assert secrets_of(farm, printer_id) == (answer.json["webhook_secret"], None)


def test_without_a_webhook_there_is_nothing_to_rotate(farm: Farm, stranger: Farm, printer_id: int) -> None:
    for _ in range(2):
        answer = rotate(farm, printer_id)
        assert (answer.status_code, answer.json["code"]) == (409, "no_destination")
        put(farm, printer_id, email_enabled=False)
    put(farm, printer_id, webhook_url=URL)
    assert rotate(stranger, printer_id).status_code == 404


# Switched off and on again


def failed_for_days(farm: Farm) -> None:
    with farm.database() as session:
        session.execute(
            sa.update(PrintNotification).values(
                webhook_failing_since=BASE_TIME - timedelta(days=5),
                webhook_disabled_at=BASE_TIME,
                webhook_disabled_reason="nothing has arrived there for 5 days",
            )
        )
        session.commit()


@pytest.mark.parametrize("change", [{"webhook_enabled": True}, {"webhook_url": URL + "2"}])
def test_a_webhook_that_was_switched_off_says_why_and_can_be_switched_on(
    farm: Farm, printer_id: int, change: dict[str, Any]
) -> None:
    put(farm, printer_id, webhook_url=URL)
    failed_for_days(farm)
    shown = farm.get(f"{PATH}/{printer_id}").json
    off = {
        "webhook_enabled": False,
        "webhook_failing_since": "2026-11-16T09:00:00Z",
        "webhook_disabled_at": "2026-11-21T09:00:00Z",
        "webhook_disabled_reason": "nothing has arrived there for 5 days",
    }
    assert shown | off == shown
    assert put(farm, printer_id, notify_maintenance=False).json["webhook_enabled"] is False
    now = put(farm, printer_id, **change).json
    assert now["webhook_enabled"] is True
    assert {now[name] for name in off if name != "webhook_enabled"} == {None}


def test_a_person_switches_a_webhook_off_and_keeps_its_secret(farm: Farm, printer_id: int) -> None:
    put(farm, printer_id, webhook_url=URL)
    secret = secrets_of(farm, printer_id)
    off = put(farm, printer_id, webhook_enabled=False).json
    assert (off["webhook_enabled"], off["webhook_disabled_reason"]) == (False, "a person switched it off")
    on = put(farm, printer_id, webhook_enabled=True).json
    assert (on["webhook_enabled"], on["webhook_disabled_reason"]) == (True, None)
    assert secrets_of(farm, printer_id) == secret


def test_what_waits_goes_to_the_new_url_and_without_one_has_failed(farm: Farm, printer_id: int) -> None:
    put(farm, printer_id, webhook_url=URL)
    farm.move(farm.add_print(printer_id)["id"], "started")
    put(farm, printer_id, webhook_url=URL + "2")

    def waiting() -> list[tuple[str, DeliveryStatus, str | None]]:
        with farm.database() as session:
            query = sa.select(Delivery.target, Delivery.status, Delivery.error).order_by(Delivery.id)
            return [tuple(row) for row in session.execute(query)]

    mail = ("seller@example.com", DeliveryStatus.pending, None)
    assert waiting() == [mail, (URL + "2", DeliveryStatus.pending, None)]
    put(farm, printer_id, webhook_url=None)
    assert waiting() == [mail, (URL + "2", DeliveryStatus.failed, "The webhook was removed.")]


# A test of all that is set up


def send_test(farm: Farm, printer_id: int) -> Any:
    return farm.post(f"{PATH}/{printer_id}/test")


def test_a_test_goes_to_everything_that_is_set_up(farm: Farm, printer_id: int) -> None:
    flags_off = {flag: False for flag in FLAGS if flag.startswith("notify_")}
    put(farm, printer_id, webhook_url=URL, **flags_off, quiet_from="00:00", quiet_to="23:59", digest="daily")
    answer = send_test(farm, printer_id)
    assert answer.status_code == 202, answer.text
    sent = answer.json["deliveries"]
    assert [(row["kind"], row["channel"], row["status"]) for row in sent] == [
        ("notification.test", "email", "pending"),
        ("notification.test", "webhook", "pending"),
    ]
    assert {row["next_try_at"] for row in sent} == {"2026-11-21T09:00:00Z"}, "a person waits for it"
    assert farm.get(f"/api/bambu/deliveries/{sent[0]['id']}").json["payload"]["type"] == "notification.test"


def test_a_test_without_a_destination_says_what_is_missing(farm: Farm, stranger: Farm, printer_id: int) -> None:
    with farm.database() as session:
        session.execute(sa.update(User).values(email=None))
        session.commit()
    for webhook, said in (({}, "has no webhook"), ({"webhook_url": URL, "webhook_enabled": False}, "webhook is off")):
        put(farm, printer_id, **webhook)
        answer = send_test(farm, printer_id)
        assert (answer.status_code, answer.json["code"]) == (409, "no_destination")
        for each in ("no e-mail address", "no channels", said):
            assert each in answer.json["error"]
    assert farm.get("/api/bambu/deliveries").json == []
    assert send_test(stranger, printer_id).status_code == 404
