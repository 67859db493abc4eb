"""What happens reaches its owner's browsers at once, nobody else's, and after a gap nothing is missing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from delivery.live_door import is_well_formed
from farm.events import MOST_HOLES, OVERLAP, Cursor, Tail, read_page
from live import Live
from models import ConnectionStatus, PrinterConnection, PrintEvent, db
from tests.browsers import Browser, RawClient, eventually, served
from tests.conftest import Clock
from tests.farm_builder import Farm


@pytest.fixture
def port(app: Flask) -> Iterator[int]:
    with served(app) as number:
        yield number


@pytest.fixture
def live(app: Flask) -> Iterator[Live]:
    found: Live = app.extensions["live"]
    limits = found.limits
    yield found
    found.limits = limits


def make_events(farm: Farm, printer_id: int | None, count: int = 1, **fields: Any) -> list[int]:
    with farm.database() as session:
        at = fields.pop("at", farm.app.extensions["clock"]())
        events = [
            PrintEvent(
                user_id=farm.user["id"],
                printer_id=printer_id,
                kind=fields.get("kind", "printer.back"),
                reason=fields.get("reason"),
                details={},
                at=at,
            )
            for _ in range(count)
        ]
        session.add_all(events)
        session.commit()
        return [event.id for event in events]


def test_an_event_reaches_every_page_of_its_owner_as_history_tells_it(farm: Farm, port: int) -> None:
    printer = farm.add_printer("Left")
    pages = [Browser(port, farm.token) for _ in range(2)]
    order = farm.add_order()
    made = farm.add_print(printer["id"], "A vase", order_id=order["id"])
    farm.move(made["id"], "scheduled", "started")
    for page in pages:
        eventually(lambda page=page: [e["type"] for e in page.told("event")][-1:] == ["print.started"], page.heard)
    history = farm.get("/api/events").json["events"]
    assert pages[0].told("event") == pages[1].told("event") == history
    started = history[-1]
    assert started["data"]["printer"] == {"id": printer["id"], "name": "Left"}
    assert started["data"]["print"] == {"id": made["id"], "job_name": made["job_name"], "order_id": order["id"]}
    assert (started["data"]["from_status"], started["data"]["to_status"]) == ("scheduled", "started")
    assert started["data"]["event_id"] == started["id"] and started["timestamp"].endswith("Z")


def test_prints_made_in_one_statement_are_told_at_once(farm: Farm, port: int) -> None:
    printer = farm.add_printer()
    page, order = Browser(port, farm.token), farm.add_order({"title": "Vase", "quantity": 3})
    begun = time.monotonic()
    farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer["id"]})
    eventually(lambda: page.told("event"), page.heard)
    assert time.monotonic() - begun < 0.8, "it came with the next look, not with its own word"


def test_a_savepoint_wakes_nobody_yet(farm: Farm, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[bool] = []
    monkeypatch.setattr(live, "wake", lambda: woken.append(True))
    with farm.database():
        now = farm.app.extensions["clock"]()
        db.session.add(PrintEvent(user_id=farm.user["id"], kind="shop.reconnect_needed", details={"shop": {}}, at=now))
        db.session.flush()
        with db.session.begin_nested():
            pass
        assert woken == []
        db.session.commit()
    assert woken == [True]


def test_what_concerns_no_printer_is_told_as_well(farm: Farm, port: int) -> None:
    page = Browser(port, farm.token)
    make_events(farm, None, kind="shop.reconnect_needed")
    eventually(lambda: page.told("event"), page.heard)
    assert page.told("event") == farm.get("/api/events").json["events"]
    assert page.told("event")[0]["data"]["printer"] is None


def test_a_material_event_carries_the_spool(farm: Farm, port: int) -> None:
    printer = farm.add_printer()
    spool = farm.add_material(printer["id"])
    page = Browser(port, farm.token)
    farm.put(f"/api/bambu/materials/{spool['id']}", {"remaining_pct": 10})
    eventually(lambda: "material.critical" in [e["type"] for e in page.told("event")], page.heard)
    assert page.told("event")[-1]["data"]["material"]["id"] == spool["id"]


def test_nothing_of_another_account_ever_arrives(farm: Farm, stranger: Farm, port: int) -> None:
    """Through every kind of message: events, statuses, the welcome, a resume with the other's ids, refusals."""
    marks = {"QZMINEQZ": farm, "QZTHEIRSQZ": stranger}
    printers = {mark: add_connected(owner, mark) for mark, owner in marks.items()}
    pages = {mark: Browser(port, owner.token) for mark, owner in marks.items()}
    for mark, owner in marks.items():
        made = owner.add_print(printers[mark]["id"], f"{mark} vase")
        owner.move(made["id"], "scheduled", "started")
        owner.move(made["id"], "failed", failed_reason=f"{mark} reason")
        spool = owner.add_material(printers[mark]["id"], material_type=f"{mark} PLA")
        owner.put(f"/api/bambu/materials/{spool['id']}", {"remaining_pct": 1})
        set_snapshot(owner, printers[mark]["id"], {"state": "printing", "job_name": f"{mark} job"})
    for mark, page in pages.items():
        eventually(lambda page=page: len(page.told("event")) >= 5 and page.told("printer_status"), page.heard)
        for after in (0, "0-", 10**9, *pages["QZMINEQZ"].event_ids, *pages["QZTHEIRSQZ"].event_ids):
            page.heard.append(("resumed", page.ask("resume", after=after)))
        other = next(each for each in marks if each != mark)
        page.heard.append(("renewed", page.ask("token", token=marks[other].token)))
        assert page.told("renewed")[0]["code"] == "bad_token"
    for mark, page in pages.items():
        said = json.dumps(page.heard)
        assert said.count(mark) > 10 and all(other == mark or other not in said for other in marks)
        assert {event["data"]["printer"]["id"] for event in page.told("event")} == {printers[mark]["id"]}


@pytest.mark.parametrize("token", [None, "", "x", "a.b.c", "refresh", "ended", "expired"])
def test_whoever_has_no_good_token_is_refused_and_shut_out_at_once(
    farm: Farm, port: int, live: Live, clock: Clock, token: str | None
) -> None:
    if token == "refresh":
        token = farm.refresh_token
    elif token == "ended":
        token = farm.token
        farm.post("/api/auth/logout")
    elif token == "expired":
        token = farm.token
        clock.forward(minutes=16)
    raw = RawClient(port)
    raw.send(b"40" + (json.dumps({"token": token}).encode() if token is not None else b""))
    begun = time.monotonic()
    said = raw.read_to_the_end()
    assert b'44{"message":"' in said and b'"code":"' in said and b"40{" not in said, said
    assert time.monotonic() - begun < 1.0
    assert live.seats() == []


def test_a_token_in_the_address_is_none(farm: Farm, port: int) -> None:
    raw = RawClient(port, f"/socket.io/?EIO=4&transport=websocket&token={farm.token}")
    raw.send(b"40")
    assert b'"unauthorized"' in raw.read_to_the_end()


def test_a_login_that_ends_takes_its_pages_with_it_and_no_others(farm: Farm, app: Flask, port: int) -> None:
    phone = Farm.__new__(Farm)
    phone.app, phone.client = app, app.test_client()
    body = {"email": "seller@example.com", "password": "kein-leichtes-wort"}
    phone.token = phone.client.post("/api/auth/login", json=body).json["token"]
    here, there = Browser(port, farm.token), Browser(port, phone.token)
    farm.post("/api/auth/logout")
    eventually(lambda: not here.io.connected, here.heard)
    assert here.told("ended") == [{"code": "ended_login"}]
    assert there.io.connected


def test_a_page_stays_as_long_as_its_token_and_longer_with_a_new_one(farm: Farm, port: int, clock: Clock) -> None:
    page, sleeper = Browser(port, farm.token), Browser(port, farm.token)
    clock.forward(minutes=10)
    pair = farm.client.post("/api/auth/refresh", json={"refresh_token": farm.refresh_token}).json
    assert page.ask("token", token=pair["token"]) == {"expires_at": "2026-11-21T09:25:00Z"}
    assert page.ask("token", token="x")["code"] == "bad_token"
    clock.forward(minutes=6)
    eventually(lambda: not sleeper.io.connected, sleeper.heard)
    assert sleeper.told("ended") == [{"code": "expired_token"}]
    farm.token = pair["token"]
    farm.add_print(farm.add_printer()["id"])
    eventually(lambda: page.told("event"), page.heard)


def test_after_a_gap_a_page_misses_nothing(farm: Farm, port: int) -> None:
    printer_id = farm.add_printer()["id"]
    page = Browser(port, farm.token)
    first = make_events(farm, printer_id, 3)
    eventually(lambda: page.event_ids == first, page.heard)
    known = page.last_event_id
    page.close()
    missed = make_events(farm, printer_id, 450)
    again = Browser(port, farm.token)
    assert again.told("welcome")[0]["last_event_id"] == missed[-1]
    resumed = [event["id"] for event in again.resume(known)]
    assert sorted(set(resumed)) == first + missed
    assert resumed == sorted(resumed)
    later = make_events(farm, printer_id, 2)
    eventually(lambda: again.event_ids == later, again.heard)
    assert set(resumed) & set(later) == set()


def test_a_page_that_comes_for_the_first_time_knows_from_where_to_resume(farm: Farm, port: int) -> None:
    printer_id = farm.add_printer()["id"]
    page = Browser(port, farm.token)
    assert page.last_event_id == 0
    page.close()
    made = make_events(farm, printer_id, 2)
    assert [event["id"] for event in Browser(port, farm.token).resume(page.last_event_id)] == made


def test_while_pages_come_and_go_under_fire_none_misses_an_event(farm: Farm, port: int) -> None:
    printer_id = farm.add_printer()["id"]
    stop, made = threading.Event(), list[int]()

    def fire() -> None:
        while not stop.is_set():
            made.extend(make_events(farm, printer_id))
            time.sleep(0.002)

    shooter = threading.Thread(target=fire)
    shooter.start()
    known, seen = 0, set[int]()
    for _ in range(8):
        page = Browser(port, farm.token)
        seen |= {event["id"] for event in page.resume(known)}
        time.sleep(0.05)
        seen |= set(page.event_ids)
        known = max(seen | {known})
        page.close()
        seen |= set(page.event_ids)
    stop.set()
    shooter.join()
    page = Browser(port, farm.token)
    seen |= {event["id"] for event in page.resume(known)}
    assert seen == set(made)


def test_an_event_that_is_committed_late_below_a_known_one_is_told_and_resumed(farm: Farm, port: int) -> None:
    """PostgreSQL gives out ids before the commit: of two transactions the lower id may become visible last."""
    if farm.app.extensions["parts"].settings.database_url.startswith("sqlite"):
        pytest.skip("SQLite lets one write at a time: ids become visible in order")
    printer_id = farm.add_printer()["id"]
    page, sleeper = Browser(port, farm.token), Browser(port, farm.token)
    with farm.app.app_context():
        early = PrintEvent(
            user_id=farm.user["id"], printer_id=printer_id, kind="early", details={}, at=farm.app.extensions["clock"]()
        )
        db.session.add(early)
        db.session.flush()
        threading.Thread(target=make_events, args=(farm, printer_id), kwargs={"kind": "late"}).start()
        eventually(lambda: page.event_ids and sleeper.event_ids, page.heard)
        known, early_id = sleeper.last_event_id, early.id
        assert known > early_id
        sleeper.close()
        db.session.commit()
    eventually(lambda: early_id in page.event_ids, page.heard)
    assert page.event_ids == [known, early_id]
    assert early_id in [event["id"] for event in Browser(port, farm.token).resume(known)]
    polled = farm.get("/api/events", query_string={"after": known}).json["events"]
    assert early_id in [event["id"] for event in polled]


def test_holes_are_looked_into_for_as_long_as_a_transaction_may_last(farm: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    seconds = [0.0]
    with farm.database() as session:
        base = make_events(farm, printer_id)[0]
        tail = Tail(lambda: seconds[0])
        assert tail.look() == []

        def put(event_id: int) -> None:
            session.execute(
                sa.insert(PrintEvent).values(
                    id=event_id, user_id=farm.user["id"], printer_id=printer_id, kind="x", details={},
                    at=farm.app.extensions["clock"](),
                )
            )  # fmt: skip
            session.commit()

        def found() -> list[int]:
            return [event_id - base for event_id, _ in tail.look()]

        put(base + 3)
        assert (found(), found()) == ([3], [])
        put(base + 1)
        assert (found(), found()) == ([1], [])
        seconds[0] += OVERLAP.total_seconds() + 1
        tail.look()
        put(base + 2)
        assert found() == []
        put(base + 10_000)
        assert (found(), len(tail.holes)) == ([10_000], MOST_HOLES)


def test_a_page_of_events_begins_two_minutes_before_the_known_one(farm: Farm, clock: Clock) -> None:
    printer_id = farm.add_printer()["id"]
    old = make_events(farm, printer_id)
    clock.forward(seconds=OVERLAP.total_seconds() + 1)
    recent = make_events(farm, printer_id, 2)
    with farm.database():
        page = read_page(farm.user["id"], Cursor(recent[-1]), 10)
        assert [event["id"] for event in page.events] == recent
        exact = read_page(farm.user["id"], Cursor(recent[0], is_exact=True), 10)
        assert [event["id"] for event in exact.events] == recent[1:]
        assert [event["id"] for event in read_page(farm.user["id"], Cursor(0), 10).events] == old + recent


def test_events_are_listed_page_by_page_for_whoever_polls(farm: Farm, stranger: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    made = make_events(farm, printer_id, 5)
    make_events(stranger, stranger.add_printer()["id"], 5)
    seen, after = [], "0"
    while after is not None:
        page = farm.get("/api/events", query_string={"after": after, "limit": 2}).json
        assert len(page["events"]) <= 2
        seen += [event["id"] for event in page["events"]]
        after = page["next"]
    assert seen == made
    for wrong in ("-1", "x", "1.0", "--", "", "٣", "1--", "9" * 11):
        assert farm.get("/api/events", query_string={"after": wrong}).status_code == 422, wrong
    assert farm.get("/api/events", query_string={"after": "9999999999"}).json == {
        "events": farm.get("/api/events").json["events"],
        "next": None,
    }


# Printers


def add_connected(farm: Farm, name: str = "Left") -> dict[str, Any]:
    return farm.add_printer(
        name,
        connection_type="bambu_lan",
        host="192.0.2.10",
        serial_number=f"01P00A{farm.user['id']:09}",
        access_code="12345678",
    )


def set_snapshot(farm: Farm, printer_id: int, snapshot: dict[str, Any]) -> None:
    with farm.database() as session:
        connection = session.execute(
            sa.select(PrinterConnection).where(PrinterConnection.printer_id == printer_id)
        ).scalar_one()
        connection.snapshot, connection.heard_at = snapshot, farm.app.extensions["clock"]()
        connection.connection_status = ConnectionStatus.connected
        session.commit()


def test_a_status_is_told_when_something_shows_and_at_most_once_a_second(farm: Farm, port: int, clock: Clock) -> None:
    printer = add_connected(farm)
    page = Browser(port, farm.token)
    (first,) = page.told("welcome")[0]["printers"]
    path = f"/api/printer-connections/{printer['connection_id']}/status"
    assert first == farm.get(path).json and first["stale"] is True
    begun = time.monotonic()
    for percent in range(1, 61):
        set_snapshot(farm, printer["id"], {"state": "printing", "progress_percent": percent})
        # An event makes it look at once, and must not make it tell a status at once.
        make_events(farm, printer["id"])
        time.sleep(0.02)
    took = time.monotonic() - begun
    eventually(lambda: (page.told("printer_status") or [first])[-1]["progress_percent"] == 60, page.heard[-1:])
    assert 1 <= len(page.told("printer_status")) <= took + 2
    assert page.told("printer_status")[-1] == farm.get(path).json
    told = len(page.told("printer_status"))
    clock.forward(seconds=1)
    set_snapshot(farm, printer["id"], {"state": "printing", "progress_percent": 60, "nozzles": [0.6]})
    time.sleep(1.3)
    assert len(page.told("printer_status")) == told, "nothing that is shown has changed"
    clock.forward(seconds=91)
    eventually(lambda: page.told("printer_status")[-1]["stale"], page.heard[-1:])
    assert page.told("printer_status")[-1]["connection_status"] == "offline"


# Those who mean harm


GARBAGE = [
    b"x", b"", b"9", b"5", b"6", b"2", b"2probe", b"42", b"42[]", b"42{}", b'42["resume"]', b'42["resume",1]',
    b'42["nothing",{}]', b'42["connect",{}]', b'42["disconnect",{}]', b'42["resume",{}', b'42["resume",{"after":NaN}]',
    b'42/other,["resume",{}]', b"40/other,{}", b'45-["resume",{"_placeholder":true,"num":0}]', b"46-[]", b"43[]",
    b"44{}", b"40{}", b'40{"token":"x"}', b"4", b"47", b"\xd9\xa3", b'42["resume",{"after":' + b"[" * 500,
    b"4" * 2000, b"b" + b"A" * 100, b"1", b"41", b"3probe",
    '42["resume",{"after":"\ud800"}]'.encode("utf-8", "surrogatepass"),
]  # fmt: skip


def test_garbage_ends_the_connection_and_nothing_else(farm: Farm, port: int, live: Live) -> None:
    witness = Browser(port, farm.token)
    for payload in GARBAGE:
        for has_logged_in in (False, True):
            raw = RawClient(port)
            if has_logged_in:
                raw.log_in(farm.token)
            raw.send(payload)
            raw.read_to_the_end()
            raw.close()
    for frame in (b"\xff" * 100, b"\x83\x00", b"\x81\xfe\x00", b"GET / HTTP/1.1\r\n\r\n"):
        raw = RawClient(port)
        raw.socket.sendall(frame)
        raw.close()
    eventually(lambda: len(live.doors()) == 1, live.doors())
    make_events(farm, farm.add_printer()["id"])
    eventually(lambda: witness.told("event"), witness.heard)


def test_a_bad_message_is_told_before_the_door_shuts(farm: Farm, port: int) -> None:
    raw = RawClient(port)
    raw.log_in(farm.token)
    raw.send(b'42["nothing",{}]')
    assert b'42["ended",{"code":"bad_message"}]' in raw.read_to_the_end()


@pytest.mark.parametrize("opcode", [1, 2])
def test_a_message_that_is_too_large_is_not_kept(farm: Farm, port: int, live: Live, opcode: int) -> None:
    for has_logged_in in (False, True):
        raw = RawClient(port)
        if has_logged_in:
            raw.log_in(farm.token)
        raw.send(b"4" * 20_000, opcode)
        raw.read_to_the_end()
    # One that never ends.
    endless = RawClient(port)
    endless.log_in(farm.token)
    for number in range(20):
        endless.send(b"4" * 1000, 0 if number else opcode, is_last=False)
    endless.read_to_the_end()
    eventually(lambda: live.doors() == [])


def test_whoever_floods_is_cut_off(farm: Farm, port: int, live: Live) -> None:
    raw = RawClient(port)
    raw.log_in(farm.token)
    with pytest.raises(OSError):
        for _ in range(20_000):
            raw.send(b'421["resume",{"after":0}]')
        raise ConnectionError
    raw.close()
    eventually(lambda: live.doors() == [])
    assert farm.get("/api/auth/user").status_code == 200


def test_whoever_does_not_say_who_they_are_is_shut_out(port: int, live: Live) -> None:
    live.limits = replace(live.limits, login_seconds=0.3)
    raw = RawClient(port)
    begun = time.monotonic()
    raw.read_to_the_end()
    assert time.monotonic() - begun < 3.0
    eventually(lambda: live.doors() == [])


def test_whoever_does_not_read_holds_up_nobody(farm: Farm, stranger: Farm, port: int, live: Live) -> None:
    printer_id = stranger.add_printer()["id"]
    live.limits = replace(live.limits, unsent=100, leave_seconds=0.5)
    sleepy = RawClient(port)
    sleepy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sleepy.log_in(stranger.token)
    eventually(lambda: len(live.seats()) == 1)
    page = Browser(port, farm.token)
    for _ in range(4):
        make_events(stranger, printer_id, 200, reason="x" * 20_000)
    make_events(farm, farm.add_printer()["id"])
    eventually(lambda: page.told("event"), page.heard)
    eventually(lambda: len(live.doors()) == 1, live.doors())


def test_an_account_has_so_many_pages_and_no_more(farm: Farm, stranger: Farm, port: int, live: Live) -> None:
    assert live.limits.clients_a_user == 20
    live.limits = replace(live.limits, clients_a_user=5)
    pages = [Browser(port, farm.token) for _ in range(5)]
    refused = Browser(port, farm.token)
    assert refused.refusal["data"]["code"] == "too_many_requests" and not refused.io.connected
    assert Browser(port, stranger.token).io.connected
    pages[0].close()
    eventually(lambda: len(live.seats()) == 5)
    assert Browser(port, farm.token).io.connected


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("", 101),
        ("http://127.0.0.1:{port}", 101),
        ("https://127.0.0.1:{port}", 400),
        ("http://evil.example", 400),
        ("null", 400),
        ("http://127.0.0.1:{port}.evil.example", 400),
    ],
)
def test_only_pages_of_ours_may_connect(farm: Farm, port: int, origin: str, status: int) -> None:
    raw = RawClient(port, Origin=origin.format(port=port))
    assert raw.status == status
    if status == 400:
        assert b"bad_origin" in raw.read_to_the_end()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/socket.io/?EIO=4&transport=polling", {}),
        ("/socket.io/?EIO=3&transport=websocket", {}),
        ("/socket.io/?EIO=4&transport=websocket&sid=x", {}),
        ("/socket.io/?EIO=4&transport=websocket", {"Upgrade": "h2c"}),
        ("/socket.io/?EIO=4&transport=websocket", {"Connection": "close"}),
        ("/socket.io/?EIO=4&transport=websocket", {"Sec_WebSocket_Key": "short"}),
        ("/socket.io/?EIO=4&transport=websocket", {"Sec_WebSocket_Version": "8"}),
        ("/socket.io/x?EIO=4&transport=websocket", {}),
        ("/socket.io/?" + "a=1&" * 2000, {}),
    ],
)
def test_what_opens_no_websocket_is_answered_like_any_address_that_is_not_there(
    port: int, live: Live, path: str, headers: dict[str, str]
) -> None:
    raw = RawClient(port, path, **headers)
    assert raw.status in (404, 414) and b"application/json" in raw.answer
    assert live.doors() == []


def test_where_there_is_no_room_a_page_is_told_to_come_later(farm: Farm, port: int, live: Live) -> None:
    live.limits = replace(live.limits, clients=1)
    page = Browser(port, farm.token)
    raw = RawClient(port)
    assert raw.status == 503 and b"Retry-After: 5" in raw.answer and b"live_full" in raw.read_to_the_end()
    page.close()
    eventually(lambda: not live.doors())
    assert Browser(port, farm.token).io.connected


def test_what_a_client_of_ours_says_is_let_in() -> None:
    for frame in ("3", "1", "41", "40", '40{"token":"x"}', '42["resume",{"after":1}]', '420["token",{"token":"x"}]'):
        assert is_well_formed(frame), frame


def test_a_resume_that_makes_no_sense_is_an_answer(farm: Farm, port: int) -> None:
    page = Browser(port, farm.token)
    for after in (None, -1, 1.5, True, [], {}, "x", "1--", "9" * 30):
        assert page.ask("resume", after=after)["code"] == "invalid", after
    assert page.io.connected


def test_a_page_is_sent_away_when_the_server_stops(farm: Farm, app: Flask) -> None:
    with served(app) as number:
        page = Browser(number, farm.token)
        live: Live = app.extensions["live"]
        begun = time.monotonic()
        live.stop()
        assert time.monotonic() - begun < 3.0
        eventually(lambda: not page.io.connected)
        assert page.told("ended") == [{"code": "restarting"}]
        raw = RawClient(number)
        assert raw.status == 503
        live._is_stopping = False


def test_the_thread_that_looks_ends_with_the_last_page(farm: Farm, port: int) -> None:
    def is_looking() -> bool:
        return any(thread.name == "live" for thread in threading.enumerate())

    page = Browser(port, farm.token)
    assert is_looking()
    page.close()
    eventually(lambda: not is_looking())


def test_no_time_is_lost_between_an_events_commit_and_the_page(farm: Farm, port: int) -> None:
    printer_id = farm.add_printer()["id"]
    page = Browser(port, farm.token)
    waits = []
    for number in range(20):
        begun = time.monotonic()
        make_events(farm, printer_id)
        eventually(lambda number=number: len(page.event_ids) == number + 1)
        waits.append(time.monotonic() - begun)
    assert sorted(waits)[10] < 0.3, waits
