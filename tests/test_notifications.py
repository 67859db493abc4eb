"""Events to deliveries: who is told of what, through which ways, when, and in which transaction."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from models import (
    Channel,
    Delivery,
    DeliveryStatus,
    NotificationChannel,
    PrintEvent,
    PrintNotification,
    ScheduledPrint,
    User,
    db,
)
from notifications import FLAGS, URGENT, fan_out
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.outboxes import deliveries, forget, prefer, told

PRINTS = "/api/bambu/scheduled-prints"
NOTIFY = (
    *("notify_print_start", "notify_print_complete", "notify_print_failed"),
    *("notify_material_change", "notify_material_low", "notify_maintenance"),
    *("notify_printer_offline", "notify_printer_fault", "notify_needs_person"),
)
URL = "https://hooks.example.com/print"


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer("Left")["id"])


# Which event reaches whom


def cause(farm: Farm, printer_id: int, kind: str) -> None:
    """Make just this event happen, among those that anybody is told of."""
    forget(farm)
    if kind.startswith("print."):
        made = farm.add_print(printer_id)
        if kind != "print.started":
            farm.move(made["id"], "started")
            forget(farm)
        farm.move(made["id"], kind.removeprefix("print."))
        return
    left = {"low": 60, "critical": 15, "replace": 1, "depleted": 0}[kind.removeprefix("material.")]
    material = farm.add_material(printer_id, replace=True)
    forget(farm)
    farm.put(f"/api/bambu/materials/{material['id']}", {"remaining_pct": left})


# The contract's flags, written out: an event goes out when any of these is on.
WANTED_BY = {
    "print.started": {"notify_print_start"},
    "print.completed": {"notify_print_complete"},
    "print.failed": {"notify_print_failed"},
    "material.low": {"notify_material_low", "notify_material_change"},
    "material.critical": {"notify_material_low", "notify_material_change"},
    "material.replace": {"notify_material_low", "notify_material_change"},
    "material.depleted": {"notify_material_low", "notify_material_change"},
}


@pytest.mark.parametrize("kind", WANTED_BY)
@pytest.mark.parametrize(("email_enabled", "has_webhook"), list(itertools.product([True, False], repeat=2)))
def test_an_event_goes_out_when_a_flag_of_its_own_is_on_and_through_every_channel_that_is(
    farm: Farm, printer_id: int, kind: str, email_enabled: bool, has_webhook: bool
) -> None:
    channels = (["email"] if email_enabled else []) + (["webhook"] if has_webhook else [])
    for only in (*NOTIFY, None):
        prefer(
            farm,
            printer_id,
            **{flag: flag == only for flag in NOTIFY},
            email_enabled=email_enabled,
            webhook_url=URL if has_webhook else None,
        )
        cause(farm, printer_id, kind)
        assert told(farm) == [(kind, channel) for channel in channels if only in WANTED_BY[kind]], only


def test_before_anything_was_saved_the_defaults_count(farm: Farm, printer_id: int) -> None:
    for kind in WANTED_BY:
        cause(farm, printer_id, kind)
        assert told(farm) == [(kind, "email")]


def test_a_change_of_spools_is_told_only_to_those_who_asked(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id)
    assert told(farm) == []
    prefer(farm, printer_id, notify_material_change=True)
    spool = farm.add_material(printer_id, slot=1)
    farm.delete(f"/api/bambu/materials/{spool['id']}")
    assert told(farm) == [("material.changed", "email")] * 2
    assert [each.payload["data"]["reason"] for each in deliveries(farm)] == ["loaded", "removed"]


def test_what_only_moves_in_the_queue_is_told_to_nobody(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    farm.move(made["id"], "scheduled", "queued", "scheduled")
    farm.put(f"{PRINTS}/{made['id']}", {"priority": 5})
    farm.delete(f"{PRINTS}/{made['id']}")
    assert told(farm) == []


def test_a_seller_without_an_address_gets_no_mail(farm: Farm, printer_id: int) -> None:
    with farm.database() as session:
        session.execute(sa.update(User).values(email=None))
        session.commit()
    prefer(farm, printer_id, webhook_url=URL)
    cause(farm, printer_id, "print.completed")
    assert told(farm) == [("print.completed", "webhook")]


def test_a_notification_says_all_that_it_concerns(farm: Farm, printer_id: int, clock: Clock) -> None:
    farm.add_material(printer_id, cost_per_kg=20)
    order = farm.add_order({"title": "Vase", "quantity": 1}, ship_by="2026-12-01T00:00:00Z")
    made = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"][0]
    farm.move(made["id"], "started")
    clock.forward(minutes=10)
    farm.move(made["id"], "completed", used_grams=12.5)
    started, completed = deliveries(farm)
    assert (started.payload["type"], started.payload["timestamp"]) == ("print.started", "2026-11-21T09:00:00Z")
    event_id = farm.get(f"{PRINTS}/{made['id']}/events").json[-1]["id"]
    assert completed.payload == {
        "type": "print.completed",
        "timestamp": "2026-11-21T09:10:00Z",
        "data": {
            "event_id": event_id,
            "printer": {"id": printer_id, "name": "Left"},
            "reason": None,
            "print": {
                "id": made["id"],
                "job_name": made["job_name"],
                "status": "completed",
                "file_name": None,
                "material_type": "PLA",
                "material_color": None,
                "material_slot": None,
                "used_grams": 12.5,
                "material_cost": 0.25,
                "currency": "USD",
                "started_at": "2026-11-21T09:00:00Z",
                "completed_at": "2026-11-21T09:10:00Z",
                "failed_reason": None,
            },
            "order": {
                "id": order["id"],
                "label": f"Order #{order['id']}",
                "etsy_order_id": None,
                "buyer_name": "Ada",
                "production_status": "printed",
                "ship_by": "2026-12-01T00:00:00Z",
            },
        },
    }


# In the change's own transaction


def test_deliveries_exist_exactly_when_the_change_was_committed(app: Flask, farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    for is_kept in (False, True):
        with app.app_context():
            row = db.session.get_one(ScheduledPrint, made["id"])
            event = row.move_to(row.status.started, at=BASE_TIME)
            assert len(fan_out(event, of_print=row)) == 1
            db.session.flush()
            if is_kept:
                db.session.commit()
            else:
                db.session.rollback()
        with farm.database() as session:
            events = session.execute(sa.select(PrintEvent).where(PrintEvent.kind == "print.started")).all()
        assert (len(deliveries(farm)), len(events)) == ((1, 1) if is_kept else (0, 0))


def test_a_refused_move_tells_nobody(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    assert farm.put(f"{PRINTS}/{made['id']}", {"status": "completed"}).status_code == 409
    assert farm.put(f"{PRINTS}/{made['id']}", {"status": "failed"}).status_code == 422
    assert told(farm) == []


def test_the_same_status_again_tells_nobody_twice(farm: Farm, printer_id: int) -> None:
    made = farm.add_print(printer_id)
    farm.move(made["id"], "started", "started", "completed", "completed")
    assert told(farm) == [("print.started", "email"), ("print.completed", "email")]


# What printers and endpoints say


def happen(
    app: Flask, printer_id: int | None, kind: str, *, at: datetime = BASE_TIME, **details: Any
) -> list[Delivery]:
    """An event, of a printer or of none, as whoever notices it writes it down."""
    with app.app_context():
        user_id = db.session.execute(sa.select(User.id)).scalars().first()
        event = PrintEvent(user_id=user_id, printer_id=printer_id, kind=kind, reason="why", details=details, at=at)
        db.session.add(event)
        made = fan_out(event)
        db.session.commit()
        for each in made:
            db.session.refresh(each)
        db.session.expunge_all()
        return made


def ways(made: list[Delivery]) -> list[str]:
    return [each.destination for each in made]


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("printer.offline", "notify_printer_offline"),
        ("printer.back", "notify_printer_offline"),
        ("printer.fault", "notify_printer_fault"),
        ("printer.maintenance_due", "notify_maintenance"),
        ("print.needs_look", "notify_needs_person"),
        ("print.needs_person", "notify_needs_person"),
    ],
)
def test_what_a_printer_needs_is_told_unless_it_is_not_wanted(
    app: Flask, farm: Farm, printer_id: int, kind: str, flag: str
) -> None:
    assert ways(happen(app, printer_id, kind)) == ["email"]
    with farm.database() as session:
        user_id = farm.user["id"]
        times = {"created_at": BASE_TIME, "updated_at": BASE_TIME}
        session.add(PrintNotification(user_id=user_id, printer_id=printer_id, webhook_url=URL, **times))
        session.commit()
    assert ways(happen(app, printer_id, kind)) == ["email", "webhook"]
    with farm.database() as session:
        session.execute(sa.update(PrintNotification).values({flag: False}))
        session.commit()
    assert happen(app, printer_id, kind) == []


def test_what_is_wrong_is_in_the_payload(app: Flask, farm: Farm, printer_id: int) -> None:
    alert = {"key": "hms:0300", "code": "0300-0100", "text": "hot <b>", "since": "2026-11-21T09:00:00Z", "times": 3}
    made = happen(app, printer_id, "printer.fault", alert=alert, internal="not for others")
    assert made[0].payload["data"]["alert"] == alert
    assert "internal" not in str(made[0].payload)
    due = happen(app, printer_id, "printer.maintenance_due", maintenance={"hours": 251.5, "every_hours": 250})
    assert due[0].payload["data"]["maintenance"] == {"hours": 251.5, "every_hours": 250}


@pytest.mark.parametrize("kind", ["printer.fault_cleared", "printer.foreign_print_started", "print.scheduled"])
def test_what_is_only_for_the_page_leaves_by_no_way(app: Flask, farm: Farm, printer_id: int, kind: str) -> None:
    assert happen(app, printer_id, kind) == []


def add_channel(farm: Farm, printer_id: int, name: str, *, is_enabled: bool = True) -> int:
    with farm.database() as session:
        made = NotificationChannel(
            user_id=farm.user["id"],
            printer_id=printer_id,
            name=name,
            service="ntfy",
            url_sealed="sealed",
            is_enabled=is_enabled,
            created_at=BASE_TIME,
            updated_at=BASE_TIME,
        )
        session.add(made)
        session.commit()
        return made.id


def test_each_channel_that_is_on_is_a_way_of_its_own(app: Flask, farm: Farm, printer_id: int) -> None:
    other = farm.add_printer("Right")["id"]
    first, _, second = (
        add_channel(farm, printer_id, "phone"),
        add_channel(farm, printer_id, "off", is_enabled=False),
        add_channel(farm, printer_id, "shop"),
    )
    add_channel(farm, other, "the other's")
    made = happen(app, printer_id, "print.failed")
    assert ways(made) == ["email", f"channel:{first}", f"channel:{second}"]
    assert [(each.channel, each.channel_id, each.target) for each in made[1:]] == [
        (Channel.apprise, first, "phone"),
        (Channel.apprise, second, "shop"),
    ]


def test_a_test_goes_everywhere_whatever_is_preferred(app: Flask, farm: Farm, printer_id: int) -> None:
    prefer(farm, printer_id, **dict.fromkeys(NOTIFY, False), email_enabled=False, webhook_url=URL)
    channel = add_channel(farm, printer_id, "phone")
    assert ways(happen(app, printer_id, "notification.test")) == ["email", "webhook", f"channel:{channel}"]


def test_that_a_webhook_was_switched_off_is_told_by_mail_whatever_is_preferred(
    app: Flask, farm: Farm, printer_id: int
) -> None:
    prefer(farm, printer_id, **dict.fromkeys(NOTIFY, False), email_enabled=False, webhook_url=URL)
    add_channel(farm, printer_id, "phone")
    assert ways(happen(app, printer_id, "webhook.disabled")) == ["email"]


def test_what_concerns_no_printer_goes_to_its_owner_by_mail_at_once_in_one_statement(
    app: Flask, farm: Farm, stranger: Farm, printer_id: int
) -> None:
    prefer(farm, printer_id, **dict.fromkeys(NOTIFY, False), email_enabled=False, webhook_url=URL)
    add_channel(farm, printer_id, "phone")
    with farm.database() as session:
        session.execute(sa.update(PrintNotification).values(quiet_from="00:00", quiet_to="23:59", digest="daily"))
        session.commit()
    shop = {"id": 3, "name": "PrintedThings", "has_own_key": False}
    read: list[str] = []
    with app.app_context():
        engine = db.engine

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("SELECT") and "print_notifications" in statement:
            read.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        (made,) = happen(app, None, "shop.reconnect_needed", at=EVENING, shop=shop)
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    assert len(read) == 1
    assert (made.user_id, made.printer_id, made.target) == (farm.user["id"], None, "seller@example.com")
    assert (made.destination, made.is_urgent, made.next_try_at) == ("email", True, EVENING)
    data = {"event_id": made.event_id, "printer": None, "reason": "why", "shop": shop}
    assert made.payload == {"type": "shop.reconnect_needed", "timestamp": "2026-11-21T22:30:00Z", "data": data}


def test_what_happens_while_a_webhook_is_off_is_kept_for_when_it_is_on_again(
    app: Flask, farm: Farm, printer_id: int
) -> None:
    prefer(farm, printer_id, webhook_url=URL, email_enabled=False)
    with farm.database() as session:
        session.execute(sa.update(PrintNotification).values(webhook_disabled_at=BASE_TIME))
        session.commit()
    made = happen(app, printer_id, "print.failed")[0]
    assert (made.status, made.error) == (DeliveryStatus.failed, "The webhook is switched off.")


EVENING = datetime(2026, 11, 21, 22, 30, tzinfo=UTC)


@pytest.mark.parametrize("kind", sorted({*FLAGS, "notification.test"} - {"material.changed"}))
def test_quiet_hours_hold_people_back_but_no_programs_and_nothing_urgent(
    app: Flask, farm: Farm, printer_id: int, kind: str
) -> None:
    prefer(farm, printer_id, webhook_url=URL)
    add_channel(farm, printer_id, "phone")
    with farm.database() as session:
        session.execute(sa.update(User).values(timezone="Europe/Berlin"))
        session.execute(sa.update(PrintNotification).values(quiet_from="23:00", quiet_to="07:30"))
        session.commit()
    made = {each.channel.value: each.next_try_at for each in happen(app, printer_id, kind, at=EVENING)}
    morning = datetime(2026, 11, 22, 6, 30, tzinfo=UTC)
    held = EVENING if kind in URGENT else morning
    assert made == {"email": held, "apprise": held, "webhook": EVENING}


def test_a_digest_is_gathered_until_its_hour(app: Flask, farm: Farm, printer_id: int) -> None:
    prefer(farm, printer_id, email_enabled=True)
    with farm.database() as session:
        session.execute(sa.update(PrintNotification).values(digest="hourly"))
        session.commit()
    at = BASE_TIME + timedelta(minutes=12)
    assert happen(app, printer_id, "print.completed", at=at)[0].next_try_at == BASE_TIME + timedelta(hours=1)
    assert happen(app, printer_id, "print.failed", at=at)[0].next_try_at == at


def test_an_event_that_nobody_wants_costs_one_statement(app: Flask, farm: Farm, printer_id: int) -> None:
    prefer(farm, printer_id, **dict.fromkeys(NOTIFY, False), webhook_url=URL)
    said: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        said.append(statement)

    with app.app_context():
        user_id = farm.user["id"]
        event = PrintEvent(user_id=user_id, printer_id=printer_id, kind="print.started", details={}, at=BASE_TIME)
        db.session.add(event)
        db.session.flush()
        sa.event.listen(db.engine, "before_cursor_execute", note)
        try:
            assert fan_out(event) == []
        finally:
            sa.event.remove(db.engine, "before_cursor_execute", note)
    assert len(said) == 1, said
