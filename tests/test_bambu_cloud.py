"""bambu_cloud against a simulated cloud over real HTTP on loopback."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import socket
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bambu.cloud_reading as reading
import bambu_cloud
from bambu.state import PrinterActivity
from bambu_cloud import (
    HOSTS,
    BambuCloud,
    CallBudget,
    Challenged,
    CloudError,
    CloudHosts,
    CloudSession,
    CodeExpired,
    CodeNeeded,
    LoginNeeded,
    RateLimited,
    Refused,
    TotpNeeded,
    Unavailable,
    WrongCode,
    WrongCredentials,
)
from simulator.cloud import CloudAccount, SimulatedCloud
from simulator.machine import Machine
from tests.wire import served

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
PASSWORD = "pppassword-987"
PLAIN = CloudAccount("plain@example.com", PASSWORD, "1001")
CODED = CloudAccount("coded@example.com", PASSWORD, "1002", wants="code")
TOTP = CloudAccount("totp@example.com", PASSWORD, "1003", wants="totp", totp="271828")
PHONE = CloudAccount("13800138000", PASSWORD, "1004", wants="code")


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, **amount: float) -> None:
        self.now += timedelta(**amount)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cloud(clock: Clock) -> Iterator[SimulatedCloud]:
    with SimulatedCloud(PLAIN, CODED, TOTP, PHONE, clock=clock) as cloud:
        yield cloud


@pytest.fixture
def make_client(cloud: SimulatedCloud, clock: Clock) -> Iterator[Callable[..., BambuCloud]]:
    with requests.Session() as session:

        def make(**changes: Any) -> BambuCloud:
            hosts = CloudHosts(cloud.api_url, cloud.web_url, cloud.mqtt_host)
            arguments: dict[str, Any] = {"session": session, "clock": clock, "hosts": hosts, "timeout": 5.0}
            return BambuCloud(**{**arguments, **changes})

        yield make


@pytest.fixture
def client(make_client: Callable[..., BambuCloud]) -> BambuCloud:
    return make_client()


def logged_in(client: BambuCloud) -> CloudSession:
    session = client.login(PLAIN.account, PASSWORD)
    assert isinstance(session, CloudSession)
    return session


# Logging in.


def test_a_password_alone_may_do(client: BambuCloud, cloud: SimulatedCloud) -> None:
    session = client.login(f" {PLAIN.account}\n", PASSWORD)
    assert isinstance(session, CloudSession)
    assert (session.uid, session.expires_at) == ("1001", NOON + timedelta(days=90))
    assert cloud.logins.owner(session.access_token) == PLAIN
    assert session.refresh_token is not None


@pytest.mark.parametrize(("account", "password"), [(PLAIN.account, "wrong"), ("nobody@example.com", PASSWORD)])
def test_a_wrong_password_is_called_that(client: BambuCloud, account: str, password: str) -> None:
    with pytest.raises(WrongCredentials):
        client.login(account, password)


def test_a_code_by_e_mail_is_asked_for_and_taken_once(client: BambuCloud, cloud: SimulatedCloud) -> None:
    assert client.login(CODED.account, PASSWORD) == CodeNeeded()
    assert cloud.logins.codes == {}
    client.send_code(CODED.account)
    code = cloud.logins.codes[CODED.account]
    session = client.login_with_code(CODED.account, f" {code[:3]} {code[3:]}\n")
    assert session.uid == CODED.uid
    with pytest.raises(WrongCode):
        client.login_with_code(CODED.account, code)


def test_a_wrong_code_is_told_from_one_that_came_too_late(
    client: BambuCloud, cloud: SimulatedCloud, clock: Clock
) -> None:
    client.send_code(CODED.account)
    with pytest.raises(WrongCode):
        client.login_with_code(CODED.account, "000000")
    clock.pass_by(minutes=6)
    with pytest.raises(CodeExpired):
        client.login_with_code(CODED.account, cloud.logins.codes[CODED.account])


def test_in_china_a_phone_gets_its_code_by_sms(make_client: Callable[..., BambuCloud], cloud: SimulatedCloud) -> None:
    client = make_client(region="china")
    client.send_code(PHONE.account)
    assert (cloud.requests[-1].host, cloud.requests[-1].path) == ("web", "/api/v1/user-service/user/sendsmscode")
    assert client.login_with_code(PHONE.account, cloud.logins.codes[PHONE.account]).uid == PHONE.uid
    client.send_code(CODED.account)
    assert cloud.requests[-1].host == "api"


def test_each_region_has_hosts_of_its_own() -> None:
    with requests.Session() as session:
        client = BambuCloud(region="china", session=session, clock=Clock())
    assert client.hosts == HOSTS["china"]
    assert all("bambulab.cn" in host for host in (client.hosts.api, client.hosts.web))
    assert HOSTS["china"].mqtt_host == "cn.mqtt.bambulab.com"
    assert all(hosts.api.startswith("https://") and hosts.ca_file is None for hosts in HOSTS.values())
    with pytest.raises(ValueError, match="regions"):
        BambuCloud(region="moon", session=session, clock=Clock())  # type: ignore[arg-type]


def totp_key(client: BambuCloud) -> str:
    step = client.login(TOTP.account, PASSWORD)
    assert isinstance(step, TotpNeeded)
    return step.tfa_key


@pytest.mark.parametrize("comes_as", ["json", "cookie"])
def test_an_authenticators_code_is_redeemed_on_the_web_site_by_its_csrf_rule(
    client: BambuCloud, cloud: SimulatedCloud, comes_as: Any
) -> None:
    cloud.logins.token_comes_as = comes_as
    session = client.login_with_totp(totp_key(client), "271 828")
    assert session.uid == TOTP.uid
    assert session.expires_at == NOON + timedelta(days=90)
    paths = [(seen.host, seen.path) for seen in cloud.requests]
    assert paths[1:3] == [("web", "/api/csrf"), ("web", "/api/sign-in/tfa")]


def test_a_wrong_authenticators_code_is_tried_in_one_place_only(client: BambuCloud, cloud: SimulatedCloud) -> None:
    with pytest.raises(WrongCode):
        client.login_with_totp(totp_key(client), "000000")
    assert [seen.path for seen in cloud.requests].count("/v1/user-service/user/tfa/login") == 0


@pytest.mark.parametrize(
    "bar",
    [
        lambda cloud: cloud.challenge_next(host="web"),
        lambda cloud: cloud.block_next(host="web", times=2),
        lambda cloud: cloud.fail_next(404, "<html>gone</html>", host="web"),
        lambda cloud: cloud.fail_next(400, {"code": 1, "error": "no csrf today"}, host="web"),
        lambda cloud: cloud.fail_next(204, "", host="web"),  # no cookie, so the CSRF rule refuses
        lambda cloud: cloud.fail_next(502, "<html>Bad gateway</html>", host="web"),
    ],
    ids=["challenge", "block", "moved", "refused", "csrf", "down"],
)
def test_a_barred_web_site_is_gone_round_by_the_api_host(
    client: BambuCloud, cloud: SimulatedCloud, bar: Callable[[SimulatedCloud], None]
) -> None:
    key = totp_key(client)
    bar(cloud)
    assert client.login_with_totp(key, TOTP.totp).uid == TOTP.uid
    assert any(seen.path == "/v1/user-service/user/tfa/login" for seen in cloud.requests)


def test_a_wrong_code_is_a_wrong_code_by_the_other_way_too(client: BambuCloud, cloud: SimulatedCloud) -> None:
    key = totp_key(client)
    cloud.challenge_next(host="web")
    with pytest.raises(WrongCode):
        client.login_with_totp(key, "000000")


def test_where_both_ways_are_barred_the_first_reason_stands(client: BambuCloud, cloud: SimulatedCloud) -> None:
    key = totp_key(client)
    cloud.challenge_next(host="web")
    cloud.fail_next(404, {"error": "Not Found"}, host="api")
    with pytest.raises(Challenged):
        client.login_with_totp(key, TOTP.totp)


def test_no_cookie_of_one_account_goes_out_with_anothers_call(client: BambuCloud, cloud: SimulatedCloud) -> None:
    cloud.logins.token_comes_as = "cookie"
    client.login_with_totp(totp_key(client), TOTP.totp)
    other = logged_in(client)
    client.printers(other.access_token)
    assert [seen.path for seen in cloud.requests if "cookie" in seen.headers] == ["/api/sign-in/tfa"]


# Tokens.


def test_a_pasted_token_finds_its_account(client: BambuCloud, cloud: SimulatedCloud) -> None:
    token = cloud.logins.issue(PLAIN)
    assert client.from_token(f"  {token}\n") == CloudSession(token, None, None, PLAIN.uid)


def test_an_older_token_tells_its_account_and_end_itself(client: BambuCloud, cloud: SimulatedCloud) -> None:
    token = cloud.logins.issue(PLAIN, as_jwt=True)
    assert client.from_token(token).expires_at == NOON + timedelta(days=90)
    cloud.challenge_next(times=2)
    assert client.from_token(token).uid == PLAIN.uid
    cloud.challenge_next(times=2)
    with pytest.raises(Challenged):
        client.from_token(cloud.logins.issue(PLAIN))


def test_a_dead_token_asks_for_a_login(client: BambuCloud, cloud: SimulatedCloud, clock: Clock) -> None:
    token = cloud.logins.issue(PLAIN, as_jwt=True)
    clock.pass_by(days=91)
    for call in (client.from_token, client.printers, client.live, client.history):
        with pytest.raises(LoginNeeded):
            call(token)


@pytest.mark.parametrize("pasted", ["", "two words", "a\r\nX-Evil: 1", "t\u00f6ken", "\ud800", "x" * 4001])
def test_what_is_no_token_is_not_sent(client: BambuCloud, cloud: SimulatedCloud, pasted: str) -> None:
    with pytest.raises(LoginNeeded):
        client.from_token(pasted)
    assert cloud.requests == []


def test_the_accounts_number_is_found_in_a_second_place(client: BambuCloud, cloud: SimulatedCloud) -> None:
    token = cloud.logins.issue(PLAIN)
    cloud.fail_next(200, {"uid": None})
    assert client.from_token(token).uid == PLAIN.uid
    cloud.fail_next(500, {"error": "oops"})
    assert client.from_token(token).uid == PLAIN.uid
    cloud.fail_next(200, {"uid": "../../x"}, times=2)
    with pytest.raises(Unavailable):
        client.from_token(token)


def test_a_login_is_extended_and_the_old_refresh_token_kept_where_no_new_one_comes(
    client: BambuCloud, cloud: SimulatedCloud, clock: Clock
) -> None:
    session = logged_in(client)
    assert session.refresh_token is not None
    clock.pass_by(days=80)
    again = client.refresh(session.refresh_token, uid=session.uid)
    assert cloud.requests[-1].path == "/v1/user-service/user/refreshtoken"
    assert again.expires_at == clock.now + timedelta(days=90)
    assert again.access_token != session.access_token
    cloud.fail_next(200, {"accessToken": cloud.logins.issue(PLAIN), "expiresIn": True})
    assert client.refresh("keepme", uid="1").refresh_token == "keepme"


def test_a_refused_refresh_asks_for_a_login_but_a_page_in_the_way_does_not(
    client: BambuCloud, cloud: SimulatedCloud
) -> None:
    refresh_token = logged_in(client).refresh_token
    assert refresh_token is not None
    cloud.challenge_next()
    with pytest.raises(Challenged):
        client.refresh(refresh_token)
    cloud.fail_next(503, "<html>maintenance</html>")
    with pytest.raises(Unavailable):
        client.refresh(refresh_token)
    cloud.logins.refresh_works = False
    with pytest.raises(LoginNeeded):
        client.refresh(refresh_token)


# What an answer means.

PLEASE_LOGIN = {"code": 4, "error": "Please login."}
MOMENT = "<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"
PAGE = "<html><body>Sorry</body></html>"


@pytest.mark.parametrize(
    ("status", "body", "headers", "error"),
    [
        (401, PLEASE_LOGIN, {}, LoginNeeded),
        (401, {"error": "please login"}, {}, LoginNeeded),
        (401, {"code": 9, "error": "busy"}, {}, Unavailable),
        (401, PAGE, {}, Unavailable),
        (401, MOMENT, {}, Challenged),
        (403, MOMENT, {"cf-mitigated": "challenge"}, Challenged),
        (403, "", {"cf-mitigated": "challenge"}, Challenged),
        (403, "<html><title>Attention Required! | Cloudflare</title></html>", {}, Challenged),
        (403, PAGE, {}, Challenged),
        (403, {"code": 6, "error": "Forbidden"}, {}, Refused),
        (403, {"error": "CSRF error: missing_cookie", "reason": "missing_cookie"}, {}, Refused),
        (404, {"error": "Not Found"}, {}, Refused),
        (418, {}, {}, Challenged),
        (429, MOMENT, {}, Challenged),
        (429, {"error": "slow down"}, {"retry-after": "7"}, RateLimited),
        (429, {"error": "slow down"}, {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, RateLimited),
        (500, {"error": "oops"}, {}, Unavailable),
        (502, "<html><title>api.bambulab.com | 502: Bad gateway</title>Cloudflare</html>", {}, Unavailable),
        (503, MOMENT, {}, Challenged),
        (503, PAGE, {}, Unavailable),
        (200, PAGE, {}, Unavailable),
        (200, [1, 2], {}, Unavailable),
        (200, None, {}, Unavailable),
        (200, {"message": "error", "devices": 5}, {}, Unavailable),
        (302, {}, {"location": "/v1/iot-service/api/user/bind"}, Unavailable),
    ],
)
def test_an_answer_is_called_what_it_is(
    client: BambuCloud,
    cloud: SimulatedCloud,
    status: int,
    body: object,
    headers: dict[str, str],
    error: type[CloudError],
) -> None:
    token = cloud.logins.issue(PLAIN)
    cloud.fail_next(status, body, headers=headers)
    with pytest.raises(CloudError) as raised:
        client.printers(token)
    assert type(raised.value) is error
    assert len(cloud.requests) == 1
    assert client.printers(token) == ()


def test_a_page_in_the_way_is_no_wrong_password_and_no_wrong_code(client: BambuCloud, cloud: SimulatedCloud) -> None:
    cloud.challenge_next(times=4)
    for call in (
        lambda: client.login(PLAIN.account, PASSWORD),
        lambda: client.send_code(CODED.account),
        lambda: client.login_with_code(CODED.account, "123456"),
        lambda: client.refresh("refresh-token"),
    ):
        with pytest.raises(Challenged, match="paste the token"):
            call()


def test_being_asked_to_wait_says_how_long(client: BambuCloud, cloud: SimulatedCloud) -> None:
    cloud.calls_per_minute = 0
    with pytest.raises(RateLimited) as raised:
        client.printers(cloud.logins.issue(PLAIN))
    assert raised.value.retry_after_seconds == 30


def test_thirty_calls_a_minute_are_not_exceeded(
    make_client: Callable[..., BambuCloud], cloud: SimulatedCloud, clock: Clock
) -> None:
    budget = CallBudget(clock)
    first, second = make_client(budget=budget), make_client(budget=budget)
    token = cloud.logins.issue(PLAIN)
    for number in range(30):
        (first, second)[number % 2].printers(token)
        clock.pass_by(seconds=1)
    for client in (first, second):
        with pytest.raises(RateLimited) as raised:
            client.printers(token)
        assert raised.value.retry_after_seconds == 30
    assert len(cloud.requests) == 30
    clock.pass_by(seconds=30)
    first.printers(token)
    with pytest.raises(RateLimited):
        second.printers(token)
    clock.pass_by(hours=-1)  # the clock was set right
    second.printers(token)


def test_nobody_there_and_an_endless_answer_are_unavailable(make_client: Callable[..., BambuCloud]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = make_client(hosts=CloudHosts(f"http://127.0.0.1:{port}", "http://127.0.0.1:1", "127.0.0.1"))
    with pytest.raises(Unavailable, match="ConnectionError"):
        client.printers("token")

    def pour(connection: socket.socket, number: int) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[")
        while True:
            connection.sendall(b" " * 1_000_000)

    with served(pour) as port:
        client = make_client(hosts=CloudHosts(f"http://127.0.0.1:{port}", "http://127.0.0.1:1", "127.0.0.1"))
        with pytest.raises(Unavailable):
            client.printers("token")


# What the cloud tells.


def test_printers_come_with_model_and_presence(client: BambuCloud, cloud: SimulatedCloud) -> None:
    cloud.bind(PLAIN, Machine("01P00A1", "P1S", name="Left", access_code="hidden88"))
    cloud.bind(PLAIN, Machine("0940A1", "H2D"))
    cloud.bind(CODED, Machine("0390A1", "A1"))
    cloud.switch("0940A1", on=False)
    token = logged_in(client).access_token
    first, second = client.printers(token)
    assert (first.serial, first.name, first.model) == ("01P00A1", "Left", "P1S")
    assert (first.is_online, first.activity) == (True, PrinterActivity.idle)
    assert (first.nozzle_diameter_mm, first.access_code) == (0.4, "hidden88")
    assert "hidden88" not in repr(first)
    assert (second.model, second.is_online) == ("H2D", False)
    assert [seen.serial for seen in client.live(token)] == ["01P00A1", "0940A1"]


def test_what_a_printer_is_at(client: BambuCloud, cloud: SimulatedCloud) -> None:
    machine = Machine("01P00A1", "P1S")
    cloud.bind(PLAIN, machine)
    token = logged_in(client).access_token
    (idle,) = client.live(token)
    assert (idle.activity, idle.title, idle.progress_percent) == (PrinterActivity.unknown, None, None)
    machine.press_start("vase.gcode.3mf")
    machine.advance(1200)
    (busy,) = client.live(token)
    assert (busy.activity, busy.title, busy.estimated_seconds) == (PrinterActivity.printing, "vase", 1800)
    assert busy.progress_percent is not None and 0 < busy.progress_percent < 100


def test_history_comes_page_by_page_newest_first(client: BambuCloud, cloud: SimulatedCloud) -> None:
    for number in range(5):
        cloud.add_past_print(PLAIN, deviceId="01P00A1" if number < 4 else "0940A1")
    cloud.add_past_print(PLAIN, deviceId="01P00A1", status=3, title="Stopped")
    token = logged_in(client).access_token
    page = client.history(token, "01P00A1", limit=2)
    assert (page.total, [one.title for one in page.prints]) == (5, ["Stopped", "Vase 4"])
    assert [one.activity for one in page.prints] == [PrinterActivity.failed, PrinterActivity.finished]
    rest = client.history(token, "01P00A1", after=page.prints[-1].print_id)
    assert [one.title for one in rest.prints] == ["Vase 3", "Vase 2", "Vase 1"]
    went_well = page.prints[1]
    assert went_well.started_at == NOON - timedelta(hours=1)
    assert went_well.ended_at == NOON
    assert (went_well.estimated_seconds, went_well.weight_grams, went_well.model) == (3480, 36.2, "P1S")
    (filament,) = went_well.filaments
    assert (filament.ams_id, filament.slot_id, filament.material, filament.color) == (0, 0, "PLA", "#FFFFFFFF")


def test_firmware_on_offer(client: BambuCloud, cloud: SimulatedCloud) -> None:
    machine = Machine("01P00A1", "P1S")
    cloud.bind(PLAIN, machine)
    beta, release = client.firmware(logged_in(client).access_token, "01P00A1")
    assert (beta.is_beta, release.is_beta, release.version) == (True, False, machine.model.firmware)


@pytest.mark.parametrize("serial", ["", "a/b", "x" * 41, "a&b=c", "\ud800"])
def test_what_is_no_serial_number_is_not_sent(client: BambuCloud, cloud: SimulatedCloud, serial: str) -> None:
    for call in (client.firmware, client.history):
        with pytest.raises(ValueError, match="letters and digits"):
            call("token", serial)
    with pytest.raises(ValueError, match="1 to 100"):
        client.history("token", limit=101)
    with pytest.raises(ValueError, match="1 to 100"):
        client.history("token", after="1&deviceId=2")
    assert cloud.requests == []


def test_a_value_of_the_wrong_kind_is_left_out_and_an_entry_without_a_serial_skipped() -> None:
    odd = {"dev_id": "01P00A1", "name": ["x"], "online": "yes", "print_status": 7, "nozzle_diameter": "wide"}
    body = {"devices": [odd, {"dev_id": "a/b"}, None, 7, {"name": "lost"}, {"dev_id": "0940A1", "name": "\x1b[31mRed"}]}
    first, second = reading.read_printers(body)
    assert (first.name, first.is_online, first.activity) == (None, None, PrinterActivity.unknown)
    assert (first.nozzle_diameter_mm, first.model) == (None, "P1S")
    assert second.name == "[31mRed"
    assert reading.read_printers({"devices": None}) == ()
    for odd_time in ("yesterday", "9999-12-31T23:59:59-14:00", "\ud800", 10**12, True, [], 1e300, "12345678901"):
        (past,) = reading.read_history({"hits": [{"id": 5, "startTime": odd_time}]}).prints
        assert past.started_at is None, odd_time
    entry = {"id": 5, "weight": 10**400, "costTime": -1, "startTime": "0001-01-01T00:00:00Z", "endTime": 1_790_000_000}
    (past,) = reading.read_history({"hits": [entry, {"title": "no id"}]}).prints
    assert (past.weight_grams, past.estimated_seconds, past.started_at) == (None, None, None)
    assert past.ended_at == datetime.fromtimestamp(1_790_000_000, UTC)
    live = {"dev_id": "1", "progress": 101, "prediction": 1e300, "start_time": "2026-11-21 11:00:00+02:00"}
    (print_,) = reading.read_live({"devices": [live]})
    assert (print_.progress_percent, print_.estimated_seconds) == (None, None)
    assert print_.started_at == datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


WORDS = """devices hits total dev_id name online print_status dev_model_name dev_product_name dev_access_code
    nozzle_diameter task_id task_name task_status progress prediction start_time id title status startTime endTime
    weight costTime plateIndex deviceId deviceModel amsDetailMapping amsId slotId sourceColor firmware version
    accessToken refreshToken expiresIn loginType tfaKey uid uidStr code error message"""
KEYS = st.sampled_from(re.findall(r"\w+", WORDS))
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["01P00A1", "tfa", "C12"])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(), inner), max_leaves=12
)
ENTRIES = st.lists(st.dictionaries(KEYS, JSON).map(lambda entry: {**entry, "dev_id": "01P00A1", "id": 5}), max_size=3)
LISTS = st.fixed_dictionaries({"devices": ENTRIES | JSON, "hits": ENTRIES | JSON})


@given(body=LISTS | st.dictionaries(KEYS, JSON))
@settings(max_examples=60, deadline=None)
def test_reading_any_json_raises_nothing_but_unavailable(body: dict[str, Any]) -> None:
    for read in (
        reading.read_printers,
        reading.read_live,
        reading.read_history,
        lambda body: reading.read_firmware(body, "01P00A1"),
    ):
        with contextlib.suppress(Unavailable):
            repr(read(body))


@given(body=JSON, status=st.sampled_from([200, 200, 400, 401, 403, 500]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_answer_over_http_raises_nothing_but_a_cloud_error(
    cloud: SimulatedCloud, make_client: Callable[..., BambuCloud], clock: Clock, body: Any, status: int
) -> None:
    clock.pass_by(minutes=1)
    client = make_client()
    for call in (
        lambda: client.login(PLAIN.account, PASSWORD),
        lambda: client.login_with_totp("key", "123456"),
        lambda: client.from_token("token"),
        lambda: client.history("token"),
    ):
        if isinstance(body, str):
            body = [body]
        cloud.fail_next(status, body, times=4)
        with contextlib.suppress(CloudError):
            repr(call())
        cloud.forget_faults()


@given(token=st.text(max_size=60) | st.lists(st.binary(max_size=20).map(lambda part: part.hex())).map(".".join))
@settings(max_examples=100, deadline=None)
def test_claims_of_any_text_can_be_read(token: str) -> None:
    reading.read_claims(token)


# Secrets, and reading only.


@pytest.mark.parametrize("status", [400, 401, 403, 409, 500])
def test_a_cloud_that_echoes_what_was_sent_gives_nothing_away(
    client: BambuCloud, cloud: SimulatedCloud, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    calls: dict[str, Callable[[str], object]] = {
        "ppp-password": lambda sent: client.login(PLAIN.account, sent),
        "AQAtoken": client.printers,
        "AQApasted": client.from_token,
        "555444": lambda sent: client.login_with_code(PLAIN.account, sent),
        "AQBrefresh": client.refresh,
        "tfakey99": lambda sent: client.login_with_totp(sent, "000000"),
    }
    for before, (sent, call) in itertools.product(("no ", "x" * 192), calls.items()):
        cloud.fail_next(status, {"error": f"{before}{sent}", "message": sent, "devices": sent}, times=4)
        with pytest.raises(CloudError) as raised:
            call(sent)
        cloud.forget_faults()
        shown = repr(raised.value) + str(raised.value) + repr(vars(raised.value)) + caplog.text
        chain = raised.value.__context__, raised.value.__cause__
        assert sent[:6] not in shown + "".join(repr(one) for one in chain)


def test_no_secret_is_in_a_repr(client: BambuCloud, cloud: SimulatedCloud) -> None:
    session = logged_in(client)
    assert session.refresh_token is not None
    key = totp_key(client)
    shown = repr(session) + repr(TotpNeeded(key)) + repr(client)
    assert not [secret for secret in (session.access_token, session.refresh_token, key) if secret in shown]


def test_a_lost_connection_leaves_no_request_in_the_exception(make_client: Callable[..., BambuCloud]) -> None:
    with served(lambda connection, number: connection.close()) as port:
        client = make_client(hosts=CloudHosts(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}", "127.0.0.1"))
        with pytest.raises(Unavailable) as raised:
            client.login(PLAIN.account, PASSWORD)
    assert raised.value.__context__ is None
    assert PASSWORD not in "".join(traceback.format_exception(raised.value))


def test_the_module_reads_only_and_says_so(client: BambuCloud, cloud: SimulatedCloud) -> None:
    assert "Read-only" in str(bambu_cloud.__doc__)
    assert "ships no key" in str(bambu_cloud.__doc__)
    public = {name for name in vars(BambuCloud) if not name.startswith("_")}
    logins = {"login", "send_code", "login_with_code", "login_with_totp", "from_token", "refresh"}
    assert public == logins | {"printers", "live", "history", "firmware"}
    token = logged_in(client).access_token
    before = len(cloud.requests)
    client.printers(token), client.live(token), client.history(token), client.firmware(token, "01P00A1")
    assert {(seen.method, seen.body) for seen in cloud.requests[before:]} == {("GET", b"")}


def test_the_simulated_cloud_refuses_a_start_without_a_signature(cloud: SimulatedCloud) -> None:
    headers = {"Authorization": f"Bearer {cloud.logins.issue(PLAIN)}"}
    answer = requests.post(f"{cloud.api_url}/v1/user-service/my/task", headers=headers, data=json.dumps({}), timeout=5)
    assert answer.status_code == 403


def test_errors_are_plain_words_with_their_facts() -> None:
    assert str(RateLimited(5)) == "Bambu Lab's cloud is asked too often: wait 5 s"
    refused = Refused("no", 409, 7)
    assert (refused.status, refused.code, str(refused)) == (409, 7, "no")
