"""Further ways out for a printer's events, through the API."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from models import Delivery, DeliveryStatus, NotificationChannel, User
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm

SECRET = "QZTOPICQZ"
URL = f"ntfy://{SECRET}"
DISCORD = f"discord://4174216298/{SECRET}JHMHI8qBe7bk2ZwO5U711o3dV"
MISSING_ID = 2_000_000_000


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer()["id"])


def path(printer_id: int, channel_id: int | None = None) -> str:
    return f"/api/bambu/notifications/{printer_id}/channels" + ("" if channel_id is None else f"/{channel_id}")


def add(farm: Farm, printer_id: int, **fields: Any) -> dict[str, Any]:
    """A channel as the API answers it. Made past it, as each look at a URL takes half a second."""
    at = farm.app.extensions["clock"]()
    with farm.database() as session:
        row = NotificationChannel(
            **{"user_id": farm.user["id"], "printer_id": printer_id, "name": "Phone", "service": "ntfy"} | fields,
            created_at=at,
            updated_at=at,
        )
        row.url_sealed = farm.app.extensions["parts"].vault.seal(URL, row.secret_owner)
        session.add(row)
        session.commit()
        made_id = row.id
    found: dict[str, Any] = next(each for each in farm.get(path(printer_id)).json if each["id"] == made_id)
    return found


def opened(farm: Farm, channel_id: int) -> str:
    with farm.database() as session:
        row = session.get_one(NotificationChannel, channel_id)
        found: str = farm.app.extensions["parts"].vault.open(row.url_sealed, row.secret_owner)
        return found


def test_a_channel_is_answered_with_its_service_and_without_its_url(farm: Farm, printer_id: int) -> None:
    made = farm.post(path(printer_id), {"name": "Phone", "url": URL})
    assert (made.status_code, made.json) == (
        201,
        {
            "id": made.json["id"],
            "printer_id": printer_id,
            "name": "Phone",
            "service": "ntfy",
            "masked_url": "ntfy://…",
            "is_enabled": True,
            "created_at": "2026-11-21T09:00:00Z",
            "updated_at": "2026-11-21T09:00:00Z",
        },
    )
    listed = farm.get(path(printer_id))
    assert listed.json == [made.json] and listed.headers["X-Total-Count"] == "1"
    changed = farm.put(path(printer_id, made.json["id"]), {"name": "Watch"})
    assert SECRET not in made.text + listed.text + changed.text
    assert opened(farm, made.json["id"]) == URL
    with farm.database() as session:
        assert SECRET not in repr(tuple(session.execute(sa.text("SELECT * FROM notification_channels")).one()))


def test_a_change_changes_only_the_keys_it_sends(farm: Farm, printer_id: int, clock: Clock) -> None:
    made = add(farm, printer_id)
    clock.forward(minutes=1)
    for change in ({"name": "Watch"}, {"is_enabled": False}):
        changed = farm.put(path(printer_id, made["id"]), change)
        made = made | change | {"updated_at": "2026-11-21T09:01:00Z"}
        assert (changed.status_code, changed.json) == (200, made)
    assert opened(farm, made["id"]) == URL
    moved = farm.put(path(printer_id, made["id"]), {"url": DISCORD}).json
    assert (moved["service"], moved["masked_url"]) == ("Discord", "discord://…")
    assert opened(farm, made["id"]) == DISCORD


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("url", bad) for bad in ("", " ", "x", 5, None, "x" * 2001, "discord://", "syslog://")],
        *[("name", bad) for bad in ("", " ", None, 5, "x" * 256, "a\x00b")],
        *[("is_enabled", bad) for bad in (None, 1, "true")],
        *[(name, 1) for name in ("id", "printer_id", "user_id", "service", "masked_url", "url_sealed", "nonsense")],
    ],
)
def test_what_is_wrong_with_a_channel_is_named_and_nothing_is_kept(
    farm: Farm, printer_id: int, field: str, value: Any
) -> None:
    made = add(farm, printer_id)
    for answer in (
        farm.post(path(printer_id), {"name": "Phone", "url": URL, field: value}),
        farm.put(path(printer_id, made["id"]), {field: value}),
    ):
        assert (answer.status_code, list(answer.json["fields"])) == (422, [field])
    assert farm.get(path(printer_id)).json == [made]


def test_all_faults_of_a_body_are_named_at_once(farm: Farm, printer_id: int) -> None:
    answer = farm.post(path(printer_id), {"name": "", "url": "", "is_enabled": 1, "owner": 1})
    assert (answer.status_code, set(answer.json["fields"])) == (422, {"name", "url", "is_enabled", "owner"})


def test_a_fault_of_a_url_does_not_repeat_it(farm: Farm, printer_id: int) -> None:
    answer = farm.post(path(printer_id), {"name": "Phone", "url": f"nosuch://{SECRET}"})
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["url"])
    assert SECRET not in answer.text


def test_a_printer_has_at_most_ten_channels(farm: Farm, printer_id: int) -> None:
    made = [add(farm, printer_id, name=f"Phone {number}") for number in range(10)]
    answer = farm.post(path(printer_id), {"name": "One more", "url": URL})
    assert (answer.status_code, answer.json["code"]) == (409, "too_many_channels")
    page = farm.get(path(printer_id), query_string={"limit": 4, "offset": 4})
    assert (page.json, page.headers["X-Total-Count"]) == (made[4:8], "10")
    assert 'rel="next"' in page.headers["Link"]
    assert farm.delete(path(printer_id, made[0]["id"])).status_code == 200
    assert farm.post(path(printer_id), {"name": "One more", "url": URL}).status_code == 201


def test_ten_is_ten_for_two_who_come_at_once(farm: Farm, printer_id: int) -> None:
    for number in range(9):
        add(farm, printer_id, name=f"Phone {number}")
    gate, statuses = threading.Barrier(3), []

    def post() -> None:
        gate.wait()
        statuses.append(farm.post(path(printer_id), {"name": "One more", "url": URL}).status_code)

    threads = [threading.Thread(target=post) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == [201, 409, 409]


def test_a_channel_goes_with_what_waits_for_it_and_leaves_what_went_through_it(farm: Farm, printer_id: int) -> None:
    made, other = add(farm, printer_id), add(farm, printer_id, name="Other")
    for _ in range(3):
        farm.move(farm.add_print(printer_id)["id"], "started")
    with farm.database() as session:
        session.execute(sa.delete(Delivery).where(Delivery.channel == "apprise"))
        mails = session.execute(sa.select(Delivery).order_by(Delivery.id)).scalars().all()
        for mail, status, channel in zip(mails, ("pending", "sent", "pending"), (made, made, other), strict=True):
            mail.channel, mail.channel_id = "apprise", channel["id"]
            mail.destination, mail.status = f"channel:{channel['id']}", DeliveryStatus(status)
        session.commit()
    answer = farm.delete(path(printer_id, made["id"]))
    assert (answer.status_code, answer.json) == (200, {"message": "Channel removed", "id": made["id"]})
    assert farm.get(path(printer_id)).json == [other]
    rows = farm.get("/api/bambu/deliveries", query_string={"order": "oldest"}).json
    assert [(row["status"], row["channel_id"], row["error"]) for row in rows] == [
        ("failed", None, "Its channel was deleted."),
        ("sent", None, None),
        ("pending", other["id"], None),
    ]
    assert rows[0]["destination"] == f"channel:{made['id']}"


def test_a_url_that_cannot_be_opened_any_more_can_be_set_anew(farm: Farm, printer_id: int) -> None:
    made = add(farm, printer_id)
    with farm.database() as session:
        session.execute(sa.update(NotificationChannel).values(url_sealed="sealed with other keys"))
        session.commit()
    assert farm.get(path(printer_id)).json[0]["masked_url"] is None
    assert farm.put(path(printer_id, made["id"]), {"url": URL}).json["masked_url"] == "ntfy://…"


def test_a_url_sealed_for_one_printer_opens_for_no_other(farm: Farm, stranger: Farm, printer_id: int) -> None:
    mine, other = add(farm, printer_id), add(farm, farm.add_printer("Right")["id"])
    theirs = add(stranger, stranger.add_printer()["id"])
    with farm.database() as session:
        sealed = session.get_one(NotificationChannel, mine["id"]).url_sealed
        session.execute(sa.update(NotificationChannel).values(url_sealed=sealed))
        session.commit()
    assert farm.get(path(other["printer_id"])).json[0]["masked_url"] is None
    assert stranger.get(path(theirs["printer_id"])).json[0]["masked_url"] is None


def test_another_users_channel_answers_like_a_missing_one(farm: Farm, stranger: Farm, printer_id: int) -> None:
    made, theirs = add(farm, printer_id), stranger.add_printer()["id"]
    own = farm.add_printer("Right")["id"]
    for caller, printer in ((stranger, printer_id), (stranger, theirs), (farm, own)):
        for method, body in (("PUT", {"name": "Mine now"}), ("DELETE", None)):
            known, missing = (
                caller.call(method, path(printer, channel_id), **({"json": body} if body else {}))
                for channel_id in (made["id"], MISSING_ID)
            )
            assert known.status_code == 404 and known.data == missing.data
    assert stranger.get(path(printer_id)).data == stranger.get(path(MISSING_ID)).data
    assert stranger.post(path(printer_id), {"name": "Mine", "url": URL}).status_code == 404
    assert farm.get(path(printer_id)).json == [made]


def test_a_test_reaches_every_channel_that_is_on(app: Flask, farm: Farm, printer_id: int) -> None:
    with farm.database() as session:
        session.execute(sa.update(User).values(email=None))
        session.commit()
    on, _ = add(farm, printer_id), add(farm, printer_id, name="Off", is_enabled=False)
    answer = farm.post(f"/api/bambu/notifications/{printer_id}/test")
    assert answer.status_code == 202, answer.text
    assert [(row["channel_id"], row["target"]) for row in answer.json["deliveries"]] == [(on["id"], "Phone")]
    with farm.database() as session:
        stored = repr([tuple(row) for row in session.execute(sa.text("SELECT * FROM deliveries"))])
        made_at = session.execute(sa.select(Delivery.created_at)).scalar_one()
    assert SECRET not in stored and made_at == BASE_TIME
    assert farm.put(path(printer_id, on["id"]), {"is_enabled": False}).status_code == 200
    refused = farm.post(f"/api/bambu/notifications/{printer_id}/test")
    assert (refused.status_code, "channels are off" in refused.json["error"]) == (409, True)
