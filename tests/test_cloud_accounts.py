"""Logins to Bambu Lab's cloud through the API, and what is read with them, against a simulated cloud over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from werkzeug.test import TestResponse

from bambu_cloud import HOSTS
from farm import cloud_logins
from models import CloudAccount as Row
from models import CloudRegion, db
from settings import Settings, SettingsError
from simulator import Machine
from simulator.cloud import CloudAccount, SimulatedCloud
from tests.apps import another_app
from tests.clouds import settings_of
from tests.conftest import Clock
from tests.farm_builder import Farm
from tests.production_log import production_log
from tests.rows import log_in_again
from tests.test_secrets import everything_stored

PATH = "/api/cloud-accounts"
PASSWORD = "pppassword-987-canary"
PLAIN = CloudAccount("plain@cloud.example", PASSWORD, "1001")
CODED = CloudAccount("coded@cloud.example", PASSWORD, "1002", wants="code")
TOTP = CloudAccount("totp@cloud.example", PASSWORD, "1003", wants="totp", totp="271828")
PHONE = CloudAccount("13800138000", PASSWORD, "1004", wants="code")
SERIAL = "01P00A000000077"
FIELDS = {
    *("id", "region", "account", "uid", "state", "state_reason", "token_expires_at", "created_at", "updated_at"),
}


@pytest.fixture
def cloud(clock: Clock) -> Iterator[SimulatedCloud]:
    with SimulatedCloud(PLAIN, CODED, TOTP, PHONE, clock=clock) as cloud:
        yield cloud


@pytest.fixture
def cloud_app(app: Flask, cloud: SimulatedCloud, clock: Clock, tmp_path: Path) -> Iterator[Flask]:
    """An app with the real budget of calls, on the cloud of this test."""
    with another_app(app.config["SQLALCHEMY_DATABASE_URI"], tmp_path / "data", clock, **settings_of(cloud)) as made:
        yield made


@pytest.fixture
def seller(cloud_app: Flask) -> Farm:
    return Farm(cloud_app, "seller@example.com")


def log_in(farm: Farm, account: CloudAccount = PLAIN, **more: Any) -> TestResponse:
    return farm.post(PATH, {"account": account.account, "password": account.password, **more})


def path_of(made: dict[str, Any], *rest: str) -> str:
    return "/".join((PATH, str(made["id"]), *rest))


def counted(farm: Farm) -> int:
    return int(farm.get(PATH).json["total"])


# The ways in.


def test_a_password_alone_may_do(seller: Farm, cloud: SimulatedCloud) -> None:
    made = log_in(seller)
    assert (made.status_code, set(made.json)) == (201, FIELDS)
    expected = {"region": "global", "account": PLAIN.account, "uid": "1001", "state": "connected", "state_reason": None}
    assert made.json | expected == made.json
    assert made.json["token_expires_at"] == "2027-02-19T09:00:00Z"
    assert seller.get(path_of(made.json)).json == made.json
    assert seller.get(PATH).json == {"cloud_accounts": [made.json], "total": 1}


def test_a_code_by_mail_is_sent_at_once_and_finishes_the_login(seller: Farm, cloud: SimulatedCloud) -> None:
    made = log_in(seller, CODED).json
    assert (made["state"], made["uid"]) == ("code_needed", None)
    wrong = seller.post(path_of(made, "code"), {"code": "x"})
    assert (wrong.status_code, wrong.json["code"], list(wrong.json["fields"])) == (422, "wrong_cloud_code", ["code"])
    done = seller.post(path_of(made, "code"), {"code": f" {cloud.logins.codes[CODED.account]} "})
    assert (done.status_code, done.json["state"], done.json["uid"]) == (200, "connected", "1002")
    again = seller.post(path_of(made, "code"), {"code": "123456"})
    assert (again.status_code, again.json["code"]) == (409, "no_code_expected")


def test_a_code_that_is_over_says_so_and_another_one_is_sent(seller: Farm, cloud: SimulatedCloud, clock: Clock) -> None:
    made = log_in(seller, CODED).json
    first = cloud.logins.codes[CODED.account]
    clock.forward(minutes=6)
    late = seller.post(path_of(made, "code"), {"code": first})
    assert (late.status_code, late.json["code"], list(late.json["fields"])) == (422, "cloud_code_expired", ["code"])
    assert seller.post(path_of(made, "send-code")).status_code == 200
    second = cloud.logins.codes[CODED.account]
    assert seller.post(path_of(made, "code"), {"code": second}).json["state"] == "connected"
    assert seller.post(path_of(made, "send-code")).json["code"] == "no_code_expected"


@pytest.mark.parametrize("web_is_barred", [False, True])
def test_an_authenticators_code_finishes_the_login(seller: Farm, cloud: SimulatedCloud, web_is_barred: bool) -> None:
    made = log_in(seller, TOTP).json
    assert made["state"] == "totp_needed"
    assert seller.post(path_of(made, "send-code")).json["code"] == "no_code_expected"
    if web_is_barred:
        cloud.challenge_next(host="web")
    assert seller.post(path_of(made, "code"), {"code": "000000"}).json["code"] == "wrong_cloud_code"
    assert seller.post(path_of(made, "code"), {"code": TOTP.totp}).json["state"] == "connected"


@pytest.mark.parametrize("as_jwt", [False, True])
def test_a_token_of_a_browser_is_a_way_in(seller: Farm, cloud: SimulatedCloud, as_jwt: bool) -> None:
    made = seller.post(PATH, {"token": f" {cloud.logins.issue(PLAIN, as_jwt=as_jwt)}\n"})
    assert (made.status_code, made.json["account"], made.json["uid"]) == (201, "1001", "1001")
    assert (made.json["token_expires_at"] is not None) == as_jwt
    refused = seller.post(path_of(made.json, "refresh"))
    assert (refused.status_code, refused.json["code"]) == (409, "login_needed")
    assert seller.get(path_of(made.json)).json["state"] == "connected"


def test_a_dead_token_is_told_from_a_page_for_browsers(seller: Farm, cloud: SimulatedCloud) -> None:
    token = cloud.logins.issue(PLAIN)
    cloud.challenge_next(times=2)
    challenged = seller.post(PATH, {"token": token})
    assert (challenged.status_code, challenged.json["code"]) == (502, "cloud_challenged")
    assert "paste the token" in challenged.json["error"] and token not in challenged.text
    cloud.forget_faults()
    cloud.logins.revoke()
    dead = seller.post(PATH, {"token": token})
    assert (dead.status_code, dead.json["code"], list(dead.json["fields"])) == (422, "wrong_cloud_login", ["token"])
    assert counted(seller) == 0


def test_the_same_account_again_is_the_same_row(seller: Farm, cloud: SimulatedCloud, clock: Clock) -> None:
    first = log_in(seller).json
    clock.forward(minutes=1)
    second = log_in(seller)
    assert (second.status_code, second.json["id"]) == (201, first["id"])
    assert second.json["token_expires_at"] > first["token_expires_at"]
    by_token = seller.post(PATH, {"token": cloud.logins.issue(PLAIN)}).json
    assert (by_token["id"], by_token["account"]) == (first["id"], PLAIN.account)
    assert counted(seller) == 1


def test_china_is_a_region_of_its_own_and_sends_codes_to_phones(seller: Farm, cloud: SimulatedCloud) -> None:
    made = log_in(seller, PHONE, region="china").json
    assert (made["region"], made["state"]) == ("china", "code_needed")
    assert cloud.requests[-1].path == "/api/v1/user-service/user/sendsmscode"
    code = cloud.logins.codes[PHONE.account]
    assert seller.post(path_of(made, "code"), {"code": code}).json["state"] == "connected"
    assert log_in(seller).json["id"] != log_in(seller, region="china").json["id"]


def test_each_region_has_its_own_hosts_unless_the_settings_name_others(
    app: Flask, cloud_app: Flask, cloud: SimulatedCloud, clock: Clock, tmp_path: Path
) -> None:
    nowhere = {"BAMBU_CLOUD_API_URL": "", "BAMBU_CLOUD_WEB_URL": "", "BAMBU_CLOUD_MQTT": ""}
    with another_app(app.config["SQLALCHEMY_DATABASE_URI"], tmp_path / "real", clock, **nowhere) as real:
        parts = real.extensions["parts"]
        assert {region: parts.cloud_hosts(region) for region in CloudRegion} == {
            CloudRegion.world: HOSTS["global"],
            CloudRegion.china: HOSTS["china"],
        }
    for region in CloudRegion:
        hosts = cloud_app.extensions["parts"].cloud_hosts(region)
        assert (hosts.api, hosts.mqtt_port, hosts.ca_file) == (cloud.api_url, cloud.mqtt_port, str(cloud.ca_file))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("BAMBU_CLOUD_MQTT", bad) for bad in ("host", ":1", "host:", "host:0", "host:65536", "host:x")],
        *[("BAMBU_CLOUD_API_URL", "http://cloud.example"), ("BAMBU_CLOUD_WEB_URL", "http://cloud.example")],
    ],
)
def test_a_cloud_at_no_address_or_in_the_clear_is_no_configuration(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment({"FLASK_ENV": "testing", "DATA_DIR": str(tmp_path), name: value})


# What is refused.


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, {"account", "password"}),
        ({"account": "a"}, {"password"}),
        ({"password": "a"}, {"account"}),
        ({"token": "a", "password": "b"}, {"token"}),
        ({"token": "a", "account": "b"}, {"token"}),
        ({"token": None}, {"token"}),
        ({"token": "a", "region": "moon"}, {"region"}),
        ({"account": "a", "password": "b", "uid": "1", "state": "connected"}, {"uid", "state"}),
    ],
)
def test_a_body_is_one_way_in(seller: Farm, cloud: SimulatedCloud, body: dict[str, Any], named: set[str]) -> None:
    answer = seller.post(PATH, body)
    assert (answer.status_code, set(answer.json["fields"])) == (422, named)
    assert cloud.requests == []


def test_a_wrong_password_is_no_401_and_leaves_nothing(seller: Farm) -> None:
    answer = log_in(seller, CloudAccount(PLAIN.account, "wrong", "1"))
    assert (answer.status_code, answer.json["code"]) == (422, "wrong_cloud_login")
    assert list(answer.json["fields"]) == ["password"]
    assert counted(seller) == 0


def test_a_wrong_password_leaves_a_good_login_as_it_is(seller: Farm, clock: Clock) -> None:
    made = log_in(seller).json
    clock.forward(minutes=1)
    assert log_in(seller, CloudAccount(PLAIN.account, "wrong", "1")).status_code == 422
    assert seller.get(path_of(made)).json == made


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (503, "<html>down</html>", 502, "cloud_failed"),
        (200, "no json", 502, "cloud_failed"),
        (403, {"code": 6, "error": "Forbidden"}, 409, "cloud_refused"),
        (429, {"code": 1}, 429, "too_many_requests"),
    ],
)
def test_each_fault_of_the_cloud_has_its_answer_and_leaves_nothing(
    seller: Farm, cloud: SimulatedCloud, status: int, body: Any, expected: int, code: str
) -> None:
    cloud.fail_next(status, body, headers={"retry-after": "77"})
    answer = log_in(seller)
    assert (answer.status_code, answer.json["code"]) == (expected, code)
    assert (answer.headers.get("Retry-After") == "77") == (expected == 429)
    assert counted(seller) == 0


def test_a_code_that_cannot_be_sent_leaves_nothing_half_written(seller: Farm, cloud: SimulatedCloud) -> None:
    cloud.logins.accounts["coded@cloud.example"] = CODED
    log_in(seller, PLAIN)
    cloud.fail_next(200, {"loginType": "verifyCode"})
    cloud.challenge_next()
    answer = log_in(seller, CODED)
    assert (answer.status_code, answer.json["code"], counted(seller)) == (502, "cloud_challenged", 1)


def test_calls_beyond_the_budget_of_all_accounts_wait(seller: Farm, cloud: SimulatedCloud, clock: Clock) -> None:
    made = log_in(seller).json
    answers = [seller.get(path_of(made, "live")).status_code for _ in range(40)]
    assert set(answers) == {200, 429} and answers.count(200) < 30
    limited = log_in(seller)
    assert (limited.status_code, limited.headers["Retry-After"]) == (429, "60")
    asked = len(cloud.requests)
    assert seller.get(path_of(made, "live")).status_code == 429 and len(cloud.requests) == asked
    clock.forward(seconds=61)
    assert seller.get(path_of(made, "live")).status_code == 200


# What is read.


@pytest.fixture
def machine(cloud: SimulatedCloud) -> Machine:
    made = Machine(SERIAL, "P1S", access_code="CANARY99")
    cloud.bind(PLAIN, made)
    return made


def test_the_clouds_printers_come_with_ones_own_and_without_access_codes(
    seller: Farm, cloud: SimulatedCloud, machine: Machine
) -> None:
    cloud.bind(PLAIN, Machine("0940A1000000001", "H2D"))
    made = log_in(seller).json
    own = seller.add_printer(connection_type="bambu_cloud", serial_number=SERIAL)["id"]
    answer = seller.get(path_of(made, "printers"))
    assert answer.status_code == 200 and "CANARY" not in answer.text and "access" not in answer.text
    first, second = answer.json["printers"]
    assert answer.json["total"] == 2
    assert first == {
        "serial_number": SERIAL,
        "name": machine.name,
        "model": "P1S",
        "is_online": True,
        "state": "idle",
        "nozzle_diameter_mm": 0.4,
        "printer_id": own,
    }
    assert (second["model"], second["printer_id"]) == ("H2D", None)


def test_another_accounts_printer_of_that_serial_is_not_shown(
    seller: Farm, stranger: Farm, cloud: SimulatedCloud, machine: Machine
) -> None:
    stranger.add_printer(connection_type="bambu_cloud", serial_number=SERIAL)
    made = log_in(seller).json
    assert seller.get(path_of(made, "printers")).json["printers"][0]["printer_id"] is None


def test_what_the_printers_are_at(seller: Farm, cloud: SimulatedCloud, machine: Machine) -> None:
    made = log_in(seller).json
    idle = seller.get(path_of(made, "live")).json["printers"][0]
    assert (idle["state"], idle["title"], idle["progress_percent"]) == ("unknown", None, None)
    machine.press_start("vase.gcode.3mf")
    machine.advance(1200)
    busy = seller.get(path_of(made, "live")).json["printers"][0]
    assert (busy["serial_number"], busy["state"], busy["title"]) == (SERIAL, "printing", "vase")
    assert 0 < busy["progress_percent"] < 100 and busy["estimated_seconds"] > 0


def test_the_history_comes_in_pages_and_by_printer(seller: Farm, cloud: SimulatedCloud) -> None:
    for number in range(5):
        cloud.add_past_print(PLAIN, title=f"Vase {number}", deviceId=SERIAL if number % 2 else "01P00A000000099")
    made = log_in(seller).json
    page = seller.get(path_of(made, "history"), query_string={"limit": 2}).json
    assert (page["total"], [each["title"] for each in page["prints"]]) == (5, ["Vase 4", "Vase 3"])
    assert page["prints"][1] == {
        "cloud_print_id": "300000004",
        "title": "Vase 3",
        "serial_number": SERIAL,
        "printer_name": "P1S",
        "printer_id": None,
        "model": "P1S",
        "state": "finished",
        "started_at": "2026-11-21T08:00:00Z",
        "ended_at": "2026-11-21T09:00:00Z",
        "estimated_seconds": 3480,
        "weight_grams": 36.2,
        "plate": 1,
        "filaments": [
            {"ams_id": 0, "tray_id": 0, "material_type": "PLA", "color": "#FFFFFFFF", "weight_grams": 36.2},
        ],
    }
    after = page["prints"][1]["cloud_print_id"]
    rest = seller.get(path_of(made, "history"), query_string={"after": after}).json
    assert [each["title"] for each in rest["prints"]] == ["Vase 2", "Vase 1", "Vase 0"]
    own = seller.get(path_of(made, "history"), query_string={"printer_serial": SERIAL}).json
    assert [each["title"] for each in own["prints"]] == ["Vase 3", "Vase 1"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "0"),
        ("limit", "101"),
        ("limit", "x"),
        ("after", "a b"),
        ("after", "x" * 65),
        ("printer_serial", "a/b"),
    ],
)
def test_a_page_that_cannot_be_is_not_asked_for(seller: Farm, cloud: SimulatedCloud, name: str, value: str) -> None:
    made = log_in(seller).json
    asked = len(cloud.requests)
    answer = seller.get(path_of(made, "history"), query_string={name: value})
    assert (answer.status_code, list(answer.json["fields"]), len(cloud.requests)) == (422, [name], asked)


@pytest.mark.parametrize("what", ["printers", "live", "history"])
def test_a_login_that_has_died_is_said_once_and_kept(seller: Farm, cloud: SimulatedCloud, what: str) -> None:
    made = log_in(seller).json
    cloud.logins.revoke()
    answer = seller.get(path_of(made, what))
    assert (answer.status_code, answer.json["code"]) == (409, "login_needed")
    row = seller.get(path_of(made)).json
    assert (row["state"], row["token_expires_at"]) == ("login_needed", None)
    assert "log in again" in row["state_reason"]
    asked = len(cloud.requests)
    assert seller.get(path_of(made, what)).json["code"] == "login_needed" and len(cloud.requests) == asked
    assert log_in(seller).json["state"] == "connected"
    assert seller.get(path_of(made, what)).status_code == 200


@pytest.mark.parametrize("what", ["printers", "live", "history"])
def test_a_page_for_browsers_says_nothing_of_the_login(seller: Farm, cloud: SimulatedCloud, what: str) -> None:
    made = log_in(seller).json
    cloud.challenge_next()
    assert seller.get(path_of(made, what)).json["code"] == "cloud_challenged"
    cloud.fail_next(401, {"error": "try later"})
    assert seller.get(path_of(made, what)).json["code"] == "cloud_failed"
    assert seller.get(path_of(made)).json == made


def test_no_transaction_is_open_while_the_cloud_is_asked(seller: Farm, cloud_app: Flask, cloud: SimulatedCloud) -> None:
    """Else a slow cloud would hold connections of the database, and on SQLite every writer."""
    made, held = log_in(seller).json, []
    with cloud_app.app_context():
        engine = db.engine
    answered = cloud._answer

    def answer(*arguments: Any) -> Any:
        held.append(engine.pool.checkedout())  # type: ignore[attr-defined]
        return answered(*arguments)

    cloud._answer = answer  # type: ignore[method-assign]
    for what in ("printers", "live", "history"):
        assert seller.get(path_of(made, what)).status_code == 200
    assert seller.post(path_of(made, "refresh")).status_code == 200
    assert log_in(seller, CODED).json["state"] == "code_needed"
    assert len(held) >= 6 and set(held) == {0}


# Extending and forgetting.


def test_a_login_is_extended(seller: Farm, cloud: SimulatedCloud, clock: Clock) -> None:
    made = log_in(seller).json
    clock.forward(days=80)
    log_in_again(seller)
    extended = seller.post(path_of(made, "refresh"))
    assert (extended.status_code, extended.json["token_expires_at"]) == (200, "2027-05-10T09:00:00Z")
    clock.forward(days=20)
    log_in_again(seller)
    assert seller.get(path_of(made, "printers")).status_code == 200, "the new token is the one in use"


def test_a_refused_extension_leaves_the_login_good_for_its_time(seller: Farm, cloud: SimulatedCloud) -> None:
    made = log_in(seller).json
    cloud.logins.refresh_works = False
    answer = seller.post(path_of(made, "refresh"))
    assert (answer.status_code, answer.json["code"]) == (409, "login_needed")
    row = seller.get(path_of(made)).json
    assert (row["state"], row["token_expires_at"]) == ("connected", made["token_expires_at"])
    assert row["state_reason"] == "could not be extended: log in again before 2027-02-19"
    assert seller.get(path_of(made, "printers")).status_code == 200


def test_of_two_processes_that_see_a_login_end_one_extends_it(seller: Farm, cloud_app: Flask, clock: Clock) -> None:
    made = log_in(seller).json
    with cloud_app.app_context():
        assert cloud_logins.due_for_extension(clock()) == []
        at = clock.forward(days=84)
        due = cloud_logins.due_for_extension(at)
        assert due == [(made["id"], 1)]
        assert [cloud_logins.claim_extension(*due[0], now=at) for _ in range(2)] == [True, False]
        assert cloud_logins.claim_extension(*due[0], now=at + cloud_logins.EXTEND_AGAIN) is False
        assert cloud_logins.claim_extension(*due[0], now=clock.forward(hours=7)) is True
        assert cloud_logins.claim_extension(made["id"], 2, now=clock.forward(hours=7)) is False
        db.session.rollback()


def test_an_account_in_use_is_not_forgotten(seller: Farm) -> None:
    made = log_in(seller).json
    printer = seller.add_printer()["id"]
    connection = seller.made(
        "/api/printer-connections",
        {"printer_id": printer, "connection_type": "bambu_cloud", "cloud_account_id": made["id"]},
    )
    assert connection["cloud_account_id"] == made["id"]
    answer = seller.delete(path_of(made))
    assert (answer.status_code, answer.json["code"]) == (409, "account_in_use")
    let_go = seller.put(f"/api/printer-connections/{connection['id']}", {"cloud_account_id": None})
    assert let_go.json["cloud_account_id"] is None
    assert seller.delete(path_of(made)).json == {"message": "Cloud account removed", "id": made["id"]}
    assert seller.get(path_of(made)).status_code == 404


# Walls and secrets.


def test_two_accounts_of_ours_may_use_one_of_the_clouds_each_its_own_row(seller: Farm, cloud_app: Flask) -> None:
    other = Farm(cloud_app, "other@example.com")
    mine, theirs = log_in(seller).json, log_in(other).json
    assert mine["id"] != theirs["id"]
    for rest in ((), ("printers",), ("live",), ("history",)):
        assert other.get(path_of(mine, *rest)).data == other.get(f"{PATH}/2000000000").data
    for act in ("refresh", "send-code"):
        assert other.post(path_of(mine, act)).status_code == 404
    assert other.delete(path_of(mine)).status_code == 404
    printer = other.add_printer()["id"]
    body = {"printer_id": printer, "connection_type": "bambu_cloud", "cloud_account_id": mine["id"]}
    assert other.post("/api/printer-connections", body).status_code == 404
    kept = other.made("/api/printer-connections", {**body, "cloud_account_id": theirs["id"]})
    changed = other.put(f"/api/printer-connections/{kept['id']}", {"cloud_account_id": mine["id"]})
    assert changed.status_code == 404


def test_passwords_codes_keys_and_tokens_are_nowhere(
    seller: Farm, cloud_app: Flask, cloud: SimulatedCloud, machine: Machine, clock: Clock
) -> None:
    with production_log() as logged:
        answers = [log_in(seller), log_in(seller, CODED), log_in(seller, TOTP)]
        plain, coded, totp = (answer.json for answer in answers)
        code = cloud.logins.codes[CODED.account]
        answers += [seller.post(path_of(coded, "code"), {"code": "99887766"})]
        answers += [seller.post(path_of(coded, "code"), {"code": code})]
        waiting = everything_stored(cloud_app)
        keys = list(cloud.logins._tfa_keys)
        answers += [seller.post(path_of(totp, "code"), {"code": TOTP.totp})]
        answers += [seller.get(path_of(plain, what)) for what in ("printers", "live", "history")]
        answers += [seller.post(path_of(plain, "refresh")), seller.get(PATH)]
        pasted = cloud.logins.issue(CODED)
        answers += [seller.post(PATH, {"token": pasted}), seller.post(PATH, {"token": f"{pasted}x"})]
        answers += [log_in(seller, CloudAccount(PLAIN.account, f"{PASSWORD}-wrong", ""))]
        said = logged.getvalue()
    secrets = [PASSWORD, "99887766", code, pasted, machine.access_code, *keys]
    secrets += [*cloud.logins._tokens, *cloud.logins._refresh_tokens]
    assert len(secrets) > 8
    stored = waiting + everything_stored(cloud_app)
    for secret in secrets:
        assert not any(secret in answer.text + str(answer.headers) for answer in answers)
        assert secret not in said and secret not in stored
    assert PLAIN.account in stored


def test_what_is_sealed_opens_for_its_own_row_and_column_alone(seller: Farm, cloud_app: Flask) -> None:
    first, second = log_in(seller).json, log_in(seller, region="china").json
    with cloud_app.app_context():
        mine = db.session.get_one(Row, first["id"])
        db.session.execute(sa.update(Row).where(Row.id == second["id"]).values(token_sealed=mine.token_sealed))
        db.session.execute(sa.update(Row).where(Row.id == first["id"]).values(token_sealed=mine.refresh_token_sealed))
        db.session.commit()
    for made in (first, second):
        answer = seller.get(path_of(made, "printers"))
        assert (answer.status_code, answer.json["code"]) == (409, "login_needed")


def test_a_login_made_meanwhile_is_not_ended_by_an_older_answer(
    seller: Farm, cloud: SimulatedCloud, cloud_app: Flask
) -> None:
    """The old token's refusal arrives after a person has logged in again."""
    made = log_in(seller).json
    cloud.logins.revoke()
    answered = cloud._answer

    def answer(*arguments: Any) -> Any:
        response = answered(*arguments)
        with cloud_app.app_context():
            db.session.execute(sa.update(Row).values(version=Row.version + 1))
            db.session.commit()
        return response

    cloud._answer = answer  # type: ignore[method-assign]
    assert seller.get(path_of(made, "printers")).json["code"] == "login_needed"
    assert seller.get(path_of(made)).json["state"] == "connected"
