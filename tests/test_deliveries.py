"""What went out and what came of each try, as the API tells it; and sending something once more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event

from models import Delivery, DeliveryAttempt, DeliveryStatus, NotificationChannel, PrintNotification, User, db
from simulator.sinks import WebhookReceiver
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.outboxes import make_outbox

PATH = "/api/bambu/deliveries"
URL = "https://hooks.example.com/print"
MISSING_ID = 2_000_000_000


@pytest.fixture
def printer_id(farm: Farm) -> int:
    """A printer with e-mail and a webhook."""
    made = int(farm.add_printer()["id"])
    prefer(farm, made, webhook_url=URL)
    return made


def prefer(farm: Farm, printer_id: int, **preferences: Any) -> dict[str, Any]:
    answer = farm.put(f"/api/bambu/notifications/{printer_id}", preferences)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


def listed(farm: Farm, **query: Any) -> list[dict[str, Any]]:
    answer = farm.get(PATH, query_string=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json
    return found


def told(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["kind"], row["channel"]) for row in rows]


def settle(farm: Farm, status: DeliveryStatus = DeliveryStatus.sent, **values: Any) -> None:
    """All deliveries have that status now."""
    with farm.database() as session:
        session.execute(sa.update(Delivery).values(status=status, **values))
        session.commit()


def stored(farm: Farm, delivery_id: int) -> Delivery:
    with farm.database() as session:
        found: Delivery = session.get_one(Delivery, delivery_id)
        session.expunge(found)
        return found


def add_attempts(farm: Farm, delivery_id: int, *attempts: dict[str, Any]) -> None:
    with farm.database() as session:
        for number, attempt in enumerate(attempts):
            usual = {"at": BASE_TIME + timedelta(seconds=number), "duration_ms": 12, "is_ok": False}
            session.add(DeliveryAttempt(user_id=farm.user["id"], delivery_id=delivery_id, **usual | attempt))
        session.commit()


@pytest.fixture
def statements(app: Flask) -> Iterator[list[str]]:
    """Every SELECT of a table of deliveries."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT") and "deliver" in statement:
            seen.append(statement)

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


def test_a_delivery_says_what_went_where_and_what_came_of_each_try(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    farm.move(made["id"], "started")
    webhook = listed(farm, channel="webhook")[0]
    add_attempts(
        farm,
        webhook["id"],
        {"error": "The receiver did not answer within 15 seconds.", "duration_ms": 15_003},
        {"is_ok": True, "answer_code": 200, "answer": "<b>thanks</b>"},
    )
    settle(farm, sent_at=BASE_TIME + timedelta(seconds=1), attempts=2, tries=2)
    event_id = farm.get(f"/api/bambu/scheduled-prints/{made['id']}/events").json[-1]["id"]
    whole = farm.get(f"{PATH}/{webhook['id']}").json
    assert whole["message_id"].startswith("msg_")
    assert whole == {
        "id": webhook["id"],
        "printer_id": printer_id,
        "event_id": event_id,
        "kind": "print.started",
        "print_id": made["id"],
        "material_id": None,
        "message_id": webhook["message_id"],
        "channel": "webhook",
        "destination": "webhook",
        "channel_id": None,
        "target": URL,
        "is_urgent": False,
        "status": "sent",
        "tries": 2,
        "next_try_at": None,
        "folded_into_id": None,
        "sent_at": "2026-11-21T09:00:01Z",
        "error": None,
        "created_at": "2026-11-21T09:00:00Z",
        "attempts": [
            {
                "at": "2026-11-21T09:00:00Z",
                "duration_ms": 15_003,
                "is_ok": False,
                "answer_code": None,
                "error": "The receiver did not answer within 15 seconds.",
                "answer": None,
            },
            {
                "at": "2026-11-21T09:00:01Z",
                "duration_ms": 12,
                "is_ok": True,
                "answer_code": 200,
                "error": None,
                "answer": "<b>thanks</b>",
            },
        ],
        "payload": stored(farm, webhook["id"]).payload,
    }
    assert whole["payload"]["data"]["print"]["id"] == made["id"]
    assert listed(farm, channel="webhook") == [{key: each for key, each in whole.items() if key != "payload"}]


def test_what_waits_says_when_it_is_tried_next_and_what_does_not_says_nothing(farm: Farm, printer_id: int) -> None:
    farm.move(farm.add_print(printer_id)["id"], "started")
    later = BASE_TIME + timedelta(minutes=5)
    for status, said in (
        ("pending", "2026-11-21T09:05:00Z"),
        *((each, None) for each in ("sending", "sent", "failed")),
    ):
        settle(farm, DeliveryStatus(status), next_try_at=later)
        assert {row["next_try_at"] for row in listed(farm)} == {said}


def test_the_list_is_filtered_by_printer_status_channel_and_kind(farm: Farm, printer_id: int) -> None:
    other = farm.add_printer("Right")["id"]
    farm.move(farm.add_print(printer_id)["id"], "started")
    settle(farm)
    farm.move(farm.add_print(other)["id"], "started", "completed")
    assert told(listed(farm)) == [
        ("print.completed", "email"),
        ("print.started", "email"),
        ("print.started", "webhook"),
        ("print.started", "email"),
    ]
    assert {row["printer_id"] for row in listed(farm, printer_id=other)} == {other}
    assert len(listed(farm, printer_id=other)) == 2
    assert told(listed(farm, status="sent")) == [("print.started", "webhook"), ("print.started", "email")]
    assert told(listed(farm, channel="webhook")) == [("print.started", "webhook")]
    assert told(listed(farm, kind="print.completed")) == [("print.completed", "email")]
    assert told(listed(farm, kind="print.started", status="pending")) == [("print.started", "email")]
    assert listed(farm, kind="print.never") == []


def test_the_list_goes_by_time_either_way_and_in_pages(farm: Farm, printer_id: int) -> None:
    for _ in range(3):
        farm.move(farm.add_print(printer_id)["id"], "started", "completed")
    newest = [row["id"] for row in listed(farm)]
    assert newest == sorted(newest, reverse=True) and len(newest) == 12
    assert [row["id"] for row in listed(farm, order="oldest")] == newest[::-1]
    page = farm.get(PATH, query_string={"limit": 5, "offset": 5, "status": "pending"})
    assert [row["id"] for row in page.json] == newest[5:10]
    assert page.headers["X-Total-Count"] == "12"
    assert page.headers["Link"] == f'<{PATH}?status=pending&limit=5&offset=10>; rel="next"'


@pytest.mark.parametrize(("name", "value"), [("status", "lost"), ("channel", "pigeon"), ("order", "random")])
def test_a_filter_that_cannot_be_is_refused_by_name(farm: Farm, name: str, value: str) -> None:
    answer = farm.get(PATH, query_string={name: value})
    assert (answer.status_code, list(answer.json["fields"])) == (422, [name])


def test_a_page_of_deliveries_takes_two_statements_however_many_attempts(
    farm: Farm, printer_id: int, statements: list[str]
) -> None:
    for _ in range(10):
        farm.move(farm.add_print(printer_id)["id"], "started")
    for row in listed(farm):
        add_attempts(farm, row["id"], {}, {}, {})
    statements.clear()
    assert sum(len(row["attempts"]) for row in listed(farm)) == 60
    assert len(statements) == 2


def test_deliveries_are_ones_own(farm: Farm, stranger: Farm, printer_id: int) -> None:
    farm.move(farm.add_print(printer_id)["id"], "started")
    mine = listed(farm)[0]["id"]
    assert listed(stranger) == []
    for call in (
        lambda delivery_id: stranger.get(f"{PATH}/{delivery_id}"),
        lambda delivery_id: stranger.post(f"{PATH}/{delivery_id}/replay"),
    ):
        assert call(mine).status_code == 404
        assert call(mine).data == call(MISSING_ID).data


# From the event to the answer, and once more


def test_what_a_receiver_answered_is_told_and_a_replay_reaches_it_under_the_same_id(
    app: Flask, farm: Farm, clock: Clock
) -> None:
    """A real receiver: it fails, gets the second try, and after a rotation the replay, which either secret verifies."""
    printer_id = int(farm.add_printer()["id"])
    with WebhookReceiver(clock=clock) as receiver:
        old = prefer(farm, printer_id, webhook_url=receiver.url, email_enabled=False)["webhook_secret"]
        receiver.trust(old)
        receiver.answer_with(503, body=b"come back \xff later" + b"." * 5000)
        outbox = make_outbox(app, clock)
        farm.move(farm.add_print(printer_id)["id"], "started")
        assert outbox.drain() == 1
        (row,) = listed(farm)
        assert (row["status"], row["tries"], row["next_try_at"]) == ("pending", 1, "2026-11-21T09:00:05Z")
        (attempt,) = row["attempts"]
        assert (attempt["is_ok"], attempt["answer_code"], attempt["at"]) == (False, 503, "2026-11-21T09:00:00Z")
        assert attempt["error"] == row["error"] == "The receiver answered 503."
        assert attempt["answer"].startswith("come back ") and len(attempt["answer"]) <= 1_000
        assert farm.post(f"{PATH}/{row['id']}/replay").json["code"] == "delivery_under_way"
        clock.forward(seconds=5)
        assert outbox.drain() == 1
        (row,) = listed(farm)
        assert (row["status"], [each["is_ok"] for each in row["attempts"]]) == ("sent", [False, True])
        clock.forward(minutes=1)
        farm.post(f"/api/bambu/notifications/{printer_id}/rotate-secret")
        posted: list[Any] = []
        outbox.wake = posted.extend  # type: ignore[method-assign]
        app.extensions["postbox"].listen(outbox)
        assert farm.post(f"{PATH}/{row['id']}/replay").status_code == 200
        app.extensions["postbox"].stop_listening(outbox)
        assert [stream.destination for stream in posted] == ["webhook"], "the senders are woken at once"
        assert outbox.drain() == 1
        outbox.stop(5)
    assert [each.verified for each in receiver.received] == [True] * 3
    assert {each.headers["webhook-id"] for each in receiver.received} == {row["message_id"]}
    assert len({each.headers["webhook-timestamp"] for each in receiver.received}) == 3
    assert [len(each.headers["webhook-signature"].split()) for each in receiver.received] == [1, 1, 2]
    (row,) = listed(farm)
    assert (row["status"], row["tries"], len(row["attempts"])) == ("sent", 1, 3)


@pytest.mark.parametrize("status", [DeliveryStatus.sent, DeliveryStatus.failed])
def test_a_replay_goes_out_again_with_the_same_message_id(
    farm: Farm, printer_id: int, clock: Clock, status: DeliveryStatus
) -> None:
    farm.move(farm.add_print(printer_id)["id"], "started")
    before = listed(farm, channel="webhook")[0]
    add_attempts(farm, before["id"], {"error": "The receiver answered 500.", "answer_code": 500})
    settle(farm, status, tries=8, attempts=8, error="no luck", sent_at=BASE_TIME)
    clock.forward(minutes=10)
    answer = farm.post(f"{PATH}/{before['id']}/replay")
    assert answer.status_code == 200, answer.text
    expected = {"status": "pending", "tries": 0, "next_try_at": "2026-11-21T09:10:00Z", "error": None, "sent_at": None}
    attempts = farm.get(f"{PATH}/{before['id']}").json["attempts"]
    assert answer.json == before | expected | {"attempts": attempts} and len(attempts) == 1
    now = stored(farm, before["id"])
    assert (now.message_id, now.attempts, now.claimed_by) == (before["message_id"], 8, None)
    assert [row["status"] for row in listed(farm, channel="email")] == [status.value], "the others are left alone"


@pytest.mark.parametrize("status", [DeliveryStatus.pending, DeliveryStatus.sending])
def test_what_is_on_its_way_is_not_sent_twice(farm: Farm, printer_id: int, status: DeliveryStatus) -> None:
    farm.move(farm.add_print(printer_id)["id"], "started")
    settle(farm, status)
    answer = farm.post(f"{PATH}/{listed(farm)[0]['id']}/replay")
    assert (answer.status_code, answer.json["code"]) == (409, "delivery_under_way")


def test_of_many_replays_at_once_one_counts(farm: Farm, printer_id: int) -> None:
    farm.move(farm.add_print(printer_id)["id"], "started")
    settle(farm)
    delivery_id, gate, statuses = listed(farm)[0]["id"], threading.Barrier(4), []

    def replay() -> None:
        gate.wait()
        statuses.append(farm.post(f"{PATH}/{delivery_id}/replay").status_code)

    threads = [threading.Thread(target=replay) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(statuses) == [200, 409, 409, 409]


def test_a_replay_goes_to_where_the_destination_is_now(farm: Farm, printer_id: int) -> None:
    farm.move(farm.add_print(printer_id)["id"], "started")
    settle(farm, DeliveryStatus.failed, error="no luck")
    prefer(farm, printer_id, webhook_url=f"{URL}/new")
    with farm.database() as session:
        session.execute(sa.update(User).values(email="new@example.com"))
        session.commit()
    replayed = [farm.post(f"{PATH}/{row['id']}/replay").json["target"] for row in listed(farm)]
    assert replayed == [f"{URL}/new", "new@example.com"]


def test_a_replay_without_a_destination_says_what_is_missing(farm: Farm, printer_id: int) -> None:
    farm.move(farm.add_print(printer_id)["id"], "started")
    settle(farm, DeliveryStatus.failed)
    webhook, email = (listed(farm, channel=channel)[0]["id"] for channel in ("webhook", "email"))

    def refusal(delivery_id: int) -> tuple[str, str]:
        answer = farm.post(f"{PATH}/{delivery_id}/replay")
        assert answer.status_code == 409, answer.text
        return answer.json["code"], answer.json["error"]

    prefer(farm, printer_id, email_enabled=False, webhook_enabled=False)
    code, said = refusal(webhook)
    assert code == "destination_off" and "a person switched it off" in said
    assert refusal(email)[0] == "destination_off"
    prefer(farm, printer_id, webhook_url=None)
    assert refusal(webhook)[0] == "no_destination"
    with farm.database() as session:
        session.execute(sa.update(User).values(email=None))
        session.commit()
    assert refusal(email)[0] == "no_destination"
    with farm.database() as session:
        session.execute(sa.delete(PrintNotification))
        session.commit()
    assert refusal(webhook)[0] == "no_destination"


def test_a_removed_printers_deliveries_are_kept_and_not_sent_again(farm: Farm, printer_id: int) -> None:
    farm.move(farm.add_print(printer_id)["id"], "started", "completed")
    settle(farm)
    assert farm.delete(f"/api/printers/{printer_id}").status_code == 200
    rows = listed(farm)
    assert len(rows) == 4
    answer = farm.post(f"{PATH}/{rows[0]['id']}/replay")
    assert (answer.status_code, answer.json["code"]) == (409, "printer_removed")


def test_a_channels_delivery_goes_again_under_its_present_name(farm: Farm, printer_id: int) -> None:
    farm.move(farm.add_print(printer_id)["id"], "started")
    with farm.database() as session:
        channel = NotificationChannel(
            user_id=farm.user["id"],
            printer_id=printer_id,
            name="Phone",
            service="ntfy",
            url_sealed="sealed",
            created_at=BASE_TIME,
            updated_at=BASE_TIME,
        )
        session.add(channel)
        session.flush()
        made = session.execute(sa.select(Delivery).where(Delivery.channel == "email")).scalar_one()
        made.channel, made.channel_id, made.destination = "apprise", channel.id, f"channel:{channel.id}"
        made.target, made.status = "Watch", DeliveryStatus.failed
        channel_id = channel.id
        session.commit()
    (row,) = listed(farm, channel="apprise")
    assert (row["channel_id"], row["destination"], row["target"]) == (channel_id, f"channel:{channel_id}", "Watch")
    replay = farm.post(f"{PATH}/{row['id']}/replay")
    assert (replay.status_code, replay.json["target"]) == (200, "Phone")
    settle(farm)
    channels = f"/api/bambu/notifications/{printer_id}/channels/{channel_id}"
    assert farm.put(channels, {"is_enabled": False}).status_code == 200
    assert farm.post(f"{PATH}/{row['id']}/replay").json["code"] == "destination_off"
    assert farm.delete(channels).status_code == 200
    assert farm.post(f"{PATH}/{row['id']}/replay").json["code"] == "no_destination"
