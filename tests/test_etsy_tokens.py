"""Tokens of a shop: renewed once, by one, whoever else wants them at the same moment; and given up once."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from etsy_client import RateLimited, ReconnectNeeded, Unauthorized, Unavailable
from etsy_sync import sync_due
from etsy_tokens import EtsyAccess, ShopCalls
from models import Channel, Delivery, PrintEvent, Shop, db
from simulator.etsy import SimulatedEtsy
from simulator.sinks import MailSink
from tests.conftest import BASE_TIME, Clock
from tests.etsy_bench import (
    access_of,
    calls_to,
    connect,
    go,
    process,
    shop_row,
    sync,
)
from tests.farm_builder import Farm
from tests.outboxes import make_outbox, prefer
from tests.rows import log_in_again


def ask(app: Flask, shop_id: int, access: EtsyAccess | None = None, **options: bool) -> Any:
    with app.app_context():
        calls = ShopCalls(shop_id, access or access_of(app), **options)
        return calls.ask(lambda client, token: client.get_shop(token, calls.etsy_shop_id))


def test_two_processes_that_refresh_at_once_ask_etsy_once(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, session_database_url: str, tmp_path: Path, clock: Clock
) -> None:
    now = clock.forward(minutes=58)
    before = calls_to(etsy, "/oauth/token")
    etsy.delay_seconds = 0.3
    asked = (shop_app, session_database_url, tmp_path, "ask", shop_id, now)
    with process(*asked) as first, process(*asked) as second:
        for each in (first, second):
            go(each)
        for each in (first, second):
            assert each.stdout is not None
            assert each.stdout.read() == "done\n"
            assert each.wait(20) == 0
    assert calls_to(etsy, "/oauth/token") == before + 1
    kept = shop_row(shop_app, shop_id)
    assert (kept.refreshing_by, kept.reconnect_needed_at) == (None, None)
    assert kept.token_expires_at == now + timedelta(hours=1)
    # Had the newer pair been overwritten by the older, Etsy would refuse it now.
    clock.forward(minutes=58)
    etsy.delay_seconds = 0
    ask(shop_app, shop_id)
    assert calls_to(etsy, "/oauth/token") == before + 2


def test_eight_threads_refresh_once(shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, clock: Clock) -> None:
    clock.forward(minutes=58)
    before = calls_to(etsy, "/oauth/token")
    etsy.delay_seconds = 0.1
    gate, names = threading.Barrier(8), []

    def run() -> None:
        gate.wait()
        names.append(ask(shop_app, shop_id).name)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert names == ["PrintedThings"] * 8
    assert calls_to(etsy, "/oauth/token") == before + 1


def test_no_row_is_locked_while_etsy_is_asked_for_tokens(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, clock: Clock
) -> None:
    clock.forward(minutes=58)
    etsy.delay_seconds = 1.0
    asking = threading.Thread(target=lambda: ask(shop_app, shop_id))
    asking.start()
    while calls_to(etsy, "/oauth/token") < 1 or shop_row(shop_app, shop_id).refreshing_by is None:
        pass
    with shop_app.app_context():
        changed = db.session.execute(sa.update(Shop).where(Shop.id == shop_id).values(name="Renamed"))
        db.session.commit()
        assert changed is not None
    assert shop_row(shop_app, shop_id).refreshing_by is not None, "the refresh ended before the row was written"
    asking.join(10)
    assert (shop_row(shop_app, shop_id).name, shop_row(shop_app, shop_id).refreshing_by) == ("Renamed", None)


def claim(app: Flask, shop_id: int, since: datetime) -> None:
    with app.app_context():
        db.session.execute(
            sa.update(Shop).where(Shop.id == shop_id).values(refreshing_by="somebody", refreshing_since=since)
        )
        db.session.commit()


def test_who_waits_for_a_refresh_that_never_ends_gives_up_and_a_dead_one_is_taken_over(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, clock: Clock
) -> None:
    clock.forward(minutes=58)
    claim(shop_app, shop_id, clock.now)
    before, waits = calls_to(etsy, "/oauth/token"), []
    with pytest.raises(Unavailable, match="Somebody else"):
        ask(shop_app, shop_id, access_of(shop_app, waits.append))
    assert calls_to(etsy, "/oauth/token") == before
    assert 20 <= sum(waits) <= 60
    clock.forward(minutes=3, seconds=1)
    assert ask(shop_app, shop_id).name == "PrintedThings"
    assert calls_to(etsy, "/oauth/token") == before + 1


@pytest.mark.parametrize(("status", "body"), [(500, {"error": "Server Error"}), (503, "<h1>busy</h1>"), (403, "<h1>")])
def test_a_refresh_that_fails_leaves_no_claim_and_no_loss(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, clock: Clock, status: int, body: Any
) -> None:
    clock.forward(minutes=58)
    etsy.fail_next(status, body, times=2 if status == 500 else 1)
    with pytest.raises(Unavailable):
        ask(shop_app, shop_id)
    assert shop_row(shop_app, shop_id).refreshing_by is None
    assert ask(shop_app, shop_id).name == "PrintedThings"


def events_of(app: Flask) -> list[PrintEvent]:
    with app.app_context():
        found = list(db.session.execute(sa.select(PrintEvent).order_by(PrintEvent.id)).scalars())
        db.session.expunge_all()
        return found


def mails_of(app: Flask) -> list[Delivery]:
    with app.app_context():
        found = list(db.session.execute(sa.select(Delivery).order_by(Delivery.id)).scalars())
        db.session.expunge_all()
        return found


def test_a_revoked_login_is_said_once_and_never_asked_again(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, clock: Clock
) -> None:
    clock.forward(minutes=58)
    etsy.revoke_tokens()
    before = len(etsy.requests)
    for _ in range(3):
        with pytest.raises(ReconnectNeeded):
            ask(shop_app, shop_id)
        with shop_app.app_context():
            assert sync_due(access_of(shop_app), clock.forward(minutes=6)) == []
    assert len(etsy.requests) == before + 1
    row = shop_row(shop_app, shop_id)
    assert row.reconnect_needed_at == BASE_TIME + timedelta(minutes=58)
    assert row.sync_error is not None and "Connect it again" in row.sync_error
    (event,), (mail,) = events_of(shop_app), mails_of(shop_app)
    assert (event.kind, event.printer_id, event.at) == ("shop.reconnect_needed", None, row.reconnect_needed_at)
    assert event.details == {"shop": {"id": shop_id, "name": "PrintedThings", "has_own_key": False}}
    assert (mail.event_id, mail.printer_id, mail.channel) == (event.id, None, Channel.email)
    assert (mail.target, mail.is_urgent, mail.next_try_at) == ("seller@example.com", True, event.at)
    connect(shop_app, row.user_id, clock.now)
    assert (shop_row(shop_app, shop_id).reconnect_needed_at, shop_row(shop_app, shop_id).sync_error) == (None, None)
    assert sync(shop_app, shop_id).requests == 2
    assert len(events_of(shop_app)) == len(mails_of(shop_app)) == 1


def test_each_login_that_is_lost_is_told_by_itself(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, clock: Clock
) -> None:
    user_id = shop_row(shop_app, shop_id).user_id
    for _ in range(2):
        clock.forward(minutes=58)
        etsy.revoke_tokens()
        for _ in range(2):
            with pytest.raises(ReconnectNeeded):
                ask(shop_app, shop_id)
        connect(shop_app, user_id, clock.now)
    assert len(mails_of(shop_app)) == 2


def test_two_processes_that_find_a_login_revoked_tell_it_once(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, session_database_url: str, tmp_path: Path, clock: Clock
) -> None:
    now = clock.forward(minutes=58)
    etsy.revoke_tokens()
    etsy.delay_seconds = 0.3
    asked = (shop_app, session_database_url, tmp_path, "ask", shop_id, now)
    with process(*asked) as first, process(*asked) as second:
        for each in (first, second):
            go(each)
        for each in (first, second):
            assert each.stdout is not None
            assert each.stdout.read().endswith("reconnect\ndone\n")
    assert len(events_of(shop_app)) == len(mails_of(shop_app)) == 1


def test_two_that_are_refused_with_one_fresh_token_tell_it_once(shop_app: Flask, shop_id: int) -> None:
    gate, refused = threading.Barrier(2), []

    def run() -> None:
        with shop_app.app_context():
            calls = ShopCalls(shop_id, access_of(shop_app))

            def refuse(client: Any, token: str) -> None:
                if calls.count == 2:
                    gate.wait(20)
                raise Unauthorized("not this one")

            with pytest.raises(ReconnectNeeded):
                calls.ask(refuse)
            refused.append(calls.count)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert refused == [2, 2]
    assert len(events_of(shop_app)) == len(mails_of(shop_app)) == 1


def test_a_login_is_given_up_and_told_in_one_transaction(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, clock: Clock
) -> None:
    clock.forward(minutes=58)
    etsy.revoke_tokens()

    def refuse(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("INSERT INTO deliveries"):
            raise InterruptedError("the power went away")

    with shop_app.app_context():
        engine = db.engine
    sa.event.listen(engine, "before_cursor_execute", refuse)
    try:
        with pytest.raises(InterruptedError):
            ask(shop_app, shop_id)
    finally:
        sa.event.remove(engine, "before_cursor_execute", refuse)
    assert (shop_row(shop_app, shop_id).reconnect_needed_at, events_of(shop_app)) == (None, [])
    # Whoever comes after the one that died tells it.
    clock.forward(minutes=4)
    with pytest.raises(ReconnectNeeded):
        ask(shop_app, shop_id)
    assert len(events_of(shop_app)) == len(mails_of(shop_app)) == 1


def test_the_owner_reads_what_stops_and_where_to_connect_the_shop_whatever_printers_are_set_to(
    shop_app: Flask, seller: Farm, shop_id: int, etsy: SimulatedEtsy, clock: Clock
) -> None:
    printer_id = seller.add_printer()["id"]
    quiet = {"email_enabled": False, "quiet_from": "00:00", "quiet_to": "23:59", "digest": "daily"}
    prefer(seller, printer_id, webhook_url="https://hooks.example.com/x", notify_needs_person=False, **quiet)
    clock.forward(minutes=58)
    etsy.revoke_tokens()
    with pytest.raises(ReconnectNeeded):
        ask(shop_app, shop_id)
    with MailSink() as sink:
        outbox = make_outbox(shop_app, clock, sink)
        assert (outbox.drain(), outbox.drain()) == (1, 0)
    (mail,) = sink.messages
    assert (mail["To"], mail["Subject"]) == (
        "seller@example.com",
        "Connect PrintedThings again: Etsy no longer accepts its login",
    )
    text = mail.get_body(("plain",)).get_content()  # type: ignore[union-attr]
    for said in ("no orders come in", "nothing is marked as shipped", "https://farm.example.com/api/auth/etsy/login"):
        assert said in text
    log_in_again(seller)
    (told,) = [each for each in seller.get("/api/events").json["events"] if each["type"] == "shop.reconnect_needed"]
    assert told["data"]["shop"] == {"id": shop_id, "name": "PrintedThings", "has_own_key": False}
    assert told["data"]["printer"] is None
    (sent,) = seller.get("/api/bambu/deliveries").json
    assert (sent["kind"], sent["printer_id"], sent["status"]) == ("shop.reconnect_needed", None, "sent")
    again = seller.post(f"/api/bambu/deliveries/{sent['id']}/replay")
    assert (again.status_code, again.json["target"]) == (200, "seller@example.com")


@pytest.mark.parametrize("is_revoked", [False, True])
def test_a_login_made_while_the_old_one_is_refreshed_stays(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, clock: Clock, is_revoked: bool
) -> None:
    user_id = shop_row(shop_app, shop_id).user_id
    clock.forward(minutes=58)
    etsy.delay_seconds, etsy.delayed_path = 1.0, "/oauth/token"
    outcome: list[str] = []

    def refresh() -> None:
        try:
            outcome.append(ask(shop_app, shop_id).name)
        except ReconnectNeeded:
            outcome.append("revoked")

    refreshing = threading.Thread(target=refresh)
    arrived = len(etsy.arrived)
    refreshing.start()
    while len(etsy.arrived) == arrived:
        pass
    etsy.delay_seconds = 0
    if is_revoked:
        etsy.revoke_tokens()
    connect(shop_app, user_id, clock.now)
    fresh = shop_row(shop_app, shop_id).refresh_token_sealed
    assert outcome == [], "the refresh ended before the new login"
    refreshing.join(10)
    row = shop_row(shop_app, shop_id)
    assert (row.refresh_token_sealed, row.reconnect_needed_at, row.sync_error) == (fresh, None, None)
    assert mails_of(shop_app) == []
    assert outcome == ["revoked" if is_revoked else "PrintedThings"]
    assert ask(shop_app, shop_id).name == "PrintedThings"


def test_a_token_refused_twice_needs_a_person(shop_app: Flask, shop_id: int, etsy: SimulatedEtsy) -> None:
    etsy.fail_next(401, {"error": "invalid_token"})
    refresh_alone = calls_to(etsy, "/oauth/token") + 1

    def refuse_again(seconds: float) -> None:
        raise AssertionError("nothing to wait for")

    with shop_app.app_context():
        calls = ShopCalls(shop_id, access_of(shop_app, refuse_again))

        def call(client: Any, token: str) -> Any:
            etsy.fail_next(401, {"error": "invalid_token"}) if calls.count == 2 else None
            return client.get_shop(token, calls.etsy_shop_id)

        with pytest.raises(ReconnectNeeded):
            # The second answer is a refusal, too.
            calls.ask(call)
    assert calls_to(etsy, "/oauth/token") == refresh_alone
    assert shop_row(shop_app, shop_id).reconnect_needed_at == BASE_TIME


def test_a_short_limit_is_waited_for_and_a_long_one_parks_the_shop(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, clock: Clock
) -> None:
    waits: list[float] = []
    etsy.fail_next(429, {"error": "slow down"}, headers={"retry-after": "2"})
    assert ask(shop_app, shop_id, access_of(shop_app, waits.append)).name == "PrintedThings"
    assert waits == [2]
    etsy.remaining_today = 0
    with pytest.raises(RateLimited):
        ask(shop_app, shop_id, access_of(shop_app, waits.append))
    assert waits == [2]
    assert shop_row(shop_app, shop_id).parked_until == clock.now + timedelta(days=1)
    before = len(etsy.requests)
    with pytest.raises(RateLimited) as caught:
        ask(shop_app, shop_id)
    assert (caught.value.retry_after_seconds, len(etsy.requests)) == (86_400, before)


def test_a_short_limit_without_end_parks_the_shop(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, clock: Clock
) -> None:
    waits: list[float] = []
    etsy.fail_next(429, {"error": "Exceeded"}, headers={"retry-after": "2"}, times=9)
    before = len(etsy.requests)
    with pytest.raises(RateLimited):
        ask(shop_app, shop_id, access_of(shop_app, waits.append))
    assert (waits, len(etsy.requests) - before) == ([2, 2, 2], 4)
    assert shop_row(shop_app, shop_id).parked_until == clock.now + timedelta(seconds=2)


def test_the_calls_of_a_second_are_spread_over_seconds(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, clock: Clock
) -> None:
    etsy.limit_per_second = 3
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.forward(seconds=seconds)

    with shop_app.app_context():
        calls = ShopCalls(shop_id, access_of(shop_app, sleep))
        for _ in range(10):
            calls.ask(lambda client, token: client.get_shop(token, calls.etsy_shop_id))
    # Not one of them was refused: the headers said when to wait.
    assert calls.count == 10
    assert waits == [1.0] * 3


def test_the_last_calls_of_a_day_are_kept_for_shipping(
    shop_app: Flask, shop_id: int, etsy: SimulatedEtsy, clock: Clock
) -> None:
    etsy.remaining_today = 202
    with shop_app.app_context():
        calls = ShopCalls(shop_id, access_of(shop_app))
        for _ in range(2):
            calls.ask(lambda client, token: client.get_shop(token, calls.etsy_shop_id))
        with pytest.raises(RateLimited):
            calls.ask(lambda client, token: client.get_shop(token, calls.etsy_shop_id))
    assert etsy.remaining_today == 200
    assert shop_row(shop_app, shop_id).parked_until == clock.now + timedelta(hours=1)
    assert ask(shop_app, shop_id, may_use_reserve=True).name == "PrintedThings"
