"""etsy_client against a simulated Etsy over real HTTP on loopback."""

import copy
import json
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from etsy_client import (
    EtsyClient,
    EtsyError,
    Login,
    NotFound,
    RateLimited,
    ReceiptPage,
    ReconnectNeeded,
    Refused,
    Tokens,
    Unauthorized,
    Unavailable,
)
from etsy_pages import PageAsked, walk_pages
from simulator.etsy import ReceiptLine, SimulatedEtsy, SimulatedShop, make_receipt
from tests import etsy_contract

KEYSTRING, SHARED_SECRET = "kkkkeystring0123456789", "sssecret0123"
REDIRECT_URI = "http://localhost:5000/api/auth/etsy/callback"
SHOP_ID = SimulatedShop().etsy_shop_id
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def etsy(clock: Clock) -> Iterator[SimulatedEtsy]:
    with SimulatedEtsy(KEYSTRING, SHARED_SECRET, clock=clock, redirect_uris=[REDIRECT_URI]) as etsy:
        yield etsy
        etsy_contract.require(etsy.requests)


@pytest.fixture
def make_client(etsy: SimulatedEtsy, clock: Clock) -> Iterator[Callable[..., EtsyClient]]:
    with requests.Session() as session:

        def make(**changes: Any) -> EtsyClient:
            arguments: dict[str, Any] = {
                "keystring": KEYSTRING,
                "shared_secret": SHARED_SECRET,
                "redirect_uri": REDIRECT_URI,
                "base_url": etsy.base_url,
                "authorize_url": etsy.authorize_url,
                "session": session,
                "clock": clock,
                "timeout": 5.0,
            }
            return EtsyClient(**{**arguments, **changes})

        yield make


@pytest.fixture
def client(make_client: Callable[..., EtsyClient]) -> EtsyClient:
    return make_client()


def consent(login: Login) -> dict[str, str]:
    """What the browser brings back to the redirect address."""
    answer = requests.get(login.url, allow_redirects=False, timeout=5)
    assert answer.status_code == 302
    location = answer.headers["Location"]
    assert location.startswith(f"{REDIRECT_URI}?")
    return {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}


def log_in(client: EtsyClient) -> Tokens:
    login = client.new_login()
    return client.exchange_code(consent(login)["code"], login.verifier)


def add_orders(etsy: SimulatedEtsy, number: int) -> list[int]:
    ids = list(range(1001, 1001 + number))
    for index, receipt_id in enumerate(ids):
        changed_at = NOON - timedelta(hours=5) + timedelta(seconds=index)
        etsy.add_receipt(make_receipt(receipt_id=receipt_id, lines=[ReceiptLine("Vase")], updated_at=changed_at))
    return ids


def test_a_login_carries_state_and_an_s256_challenge_and_comes_back_as_tokens(
    client: EtsyClient, etsy: SimulatedEtsy
) -> None:
    login = client.new_login()
    query = parse_qs(urlsplit(login.url).query)
    assert query["scope"] == ["transactions_r transactions_w shops_r listings_r"]
    assert query["client_id"] == [KEYSTRING]
    assert query["code_challenge_method"] == ["S256"]
    assert 43 <= len(login.verifier) <= 128
    assert login.verifier not in login.url
    back = consent(login)
    assert back["state"] == login.state
    tokens = client.exchange_code(back["code"], login.verifier)
    assert tokens.expires_at == NOON + timedelta(hours=1)
    assert tokens.etsy_user_id == etsy.shop.etsy_user_id
    assert client.get_me(tokens.access_token).etsy_shop_id == etsy.shop.etsy_shop_id


def test_every_login_is_new(client: EtsyClient) -> None:
    logins = [client.new_login() for _ in range(20)]
    assert len({login.state for login in logins} | {login.verifier for login in logins}) == 40


def test_a_code_with_a_strange_verifier_is_refused_and_used_up(client: EtsyClient) -> None:
    login = client.new_login()
    code = consent(login)["code"]
    with pytest.raises(ReconnectNeeded):
        client.exchange_code(code, client.new_login().verifier)
    with pytest.raises(ReconnectNeeded):
        client.exchange_code(code, login.verifier)


@pytest.mark.parametrize("code", ["", "x", "\x00", "\ud800", "a\r\nHost: evil", "٣", "a" * 100_000])
def test_a_hostile_code_needs_a_new_login(client: EtsyClient, code: str) -> None:
    with pytest.raises(ReconnectNeeded):
        client.exchange_code(code, client.new_login().verifier)


def test_a_redirect_address_that_is_not_registered_gets_no_code(make_client: Callable[..., EtsyClient]) -> None:
    login = make_client(redirect_uri=f"{REDIRECT_URI}/").new_login()
    assert requests.get(login.url, allow_redirects=False, timeout=5).status_code == 400


def test_each_refresh_turns_the_refresh_token_over(client: EtsyClient, clock: Clock) -> None:
    first = log_in(client)
    clock.now += timedelta(minutes=50)
    second = client.refresh(first.refresh_token)
    assert second.refresh_token != first.refresh_token
    assert second.expires_at == clock.now + timedelta(hours=1)
    with pytest.raises(ReconnectNeeded, match="revoked"):
        client.refresh(first.refresh_token)
    assert client.refresh(second.refresh_token)


def test_a_refresh_token_ends_after_ninety_days(client: EtsyClient, clock: Clock) -> None:
    tokens = log_in(client)
    clock.now += timedelta(days=90)
    with pytest.raises(ReconnectNeeded):
        client.refresh(tokens.refresh_token)


def test_an_expired_access_token_is_told_apart_from_a_lost_login(
    client: EtsyClient, etsy: SimulatedEtsy, clock: Clock
) -> None:
    tokens = log_in(client)
    clock.now = tokens.expires_at
    with pytest.raises(Unauthorized, match="expired"):
        client.get_me(tokens.access_token)
    assert client.get_me(client.refresh(tokens.refresh_token).access_token)
    etsy.revoke_tokens()
    with pytest.raises(Unauthorized):
        client.get_me(tokens.access_token)


def test_a_single_500_of_the_token_endpoint_is_repeated_once(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    tokens = log_in(client)
    etsy.fail_next(500, {"error": "Server Error"})
    renewed = client.refresh(tokens.refresh_token)
    etsy.fail_next(500, {"error": "Server Error"}, times=2)
    with pytest.raises(Unavailable):
        client.refresh(renewed.refresh_token)
    assert client.refresh(renewed.refresh_token)


def test_other_faults_of_the_token_endpoint_are_not_repeated(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    tokens = log_in(client)
    before = len(etsy.requests)
    etsy.fail_next(503, "<html>busy</html>")
    with pytest.raises(Unavailable):
        client.refresh(tokens.refresh_token)
    assert len(etsy.requests) == before + 1


def test_a_refresh_whose_answer_was_lost_needs_a_new_login(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    tokens = log_in(client)
    etsy.fail_next(500, {"error": "Server Error"}, after_effect=True)
    with pytest.raises(ReconnectNeeded):
        client.refresh(tokens.refresh_token)


@pytest.mark.parametrize("seconds", [None, "3600", True, 0, -1, 10**30, 1.5])
def test_tokens_with_a_senseless_lifetime_are_kept_for_an_hour(
    client: EtsyClient, etsy: SimulatedEtsy, seconds: object
) -> None:
    etsy.fail_next(200, {"access_token": "12.abc", "refresh_token": "12.def", "expires_in": seconds})
    tokens = client.refresh("12.old")
    assert (tokens.expires_at, tokens.etsy_user_id) == (NOON + timedelta(hours=1), 12)


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"access_token": "12.abc"},
        {"access_token": "abc", "refresh_token": "12.def"},
        {"access_token": "12.abc", "refresh_token": "12.d\ne"},
        {"access_token": 12, "refresh_token": None},
        {"access_token": "0.abc", "refresh_token": "0.def"},
    ],
)
def test_an_answer_without_usable_tokens_is_unavailable(client: EtsyClient, etsy: SimulatedEtsy, body: object) -> None:
    etsy.fail_next(200, body)
    with pytest.raises(Unavailable):
        client.refresh("12.old")


def test_the_shop_is_read(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    tokens = log_in(client)
    shop = client.get_shop(tokens.access_token, SHOP_ID)
    assert (shop.etsy_shop_id, shop.name, shop.currency, shop.is_vacation) == (SHOP_ID, "PrintedThings", "EUR", False)
    assert shop.url == "https://www.etsy.com/shop/PrintedThings"
    with pytest.raises(NotFound):
        client.get_shop(tokens.access_token, SHOP_ID + 1)


def test_a_hostile_shop_is_made_harmless(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    tokens = log_in(client)
    etsy.fail_next(
        200,
        {
            "shop_id": SHOP_ID,
            "shop_name": "A\x00\ud800\u202e&amp;B" + "x" * 1000,
            "currency_code": "eur\n",
            "url": "javascript:alert(1)",
            "is_vacation": "yes",
        },
    )
    shop = client.get_shop(tokens.access_token, SHOP_ID)
    assert shop.name == ("A&B" + "x" * 1000)[:255]
    assert (shop.currency, shop.url, shop.is_vacation) == (None, None, False)


@pytest.mark.parametrize("shop_id", [None, 0, "5", True, -1, 2**63])
def test_a_person_without_a_shop_has_none(client: EtsyClient, etsy: SimulatedEtsy, shop_id: object) -> None:
    tokens = log_in(client)
    etsy.fail_next(200, {"user_id": 7, "shop_id": shop_id})
    assert client.get_me(tokens.access_token).etsy_shop_id is None
    etsy.fail_next(200, {"shop_id": 7})
    with pytest.raises(Unavailable):
        client.get_me(tokens.access_token)


def walk(
    client: EtsyClient, earliest: datetime | None, latest: datetime = NOON, was_canceled: bool | None = None
) -> Iterator[tuple[ReceiptPage, datetime | None]]:
    token = log_in(client).access_token

    def fetch(asked: PageAsked) -> ReceiptPage:
        return client.get_receipt_page(
            token,
            SHOP_ID,
            min_last_modified=asked.earliest,
            max_last_modified=asked.latest or latest,
            was_canceled=was_canceled,
            is_by_id=asked.is_by_id,
            offset=asked.offset,
        )

    return walk_pages(fetch, earliest)


def ids_of(pages: Iterable[tuple[ReceiptPage, datetime | None]]) -> list[int]:
    return [receipt["receipt_id"] for page, _ in pages for receipt in page.receipts]


def test_all_receipts_of_a_window_come_oldest_change_first_in_pages_of_a_hundred(
    client: EtsyClient, etsy: SimulatedEtsy
) -> None:
    ids = add_orders(etsy, 250)
    begun_at = NOON - timedelta(hours=5)
    first, last = begun_at + timedelta(seconds=1), begun_at + timedelta(seconds=200)
    pages = walk(client, first + timedelta(milliseconds=900), last)
    before = len(etsy.requests)
    found = list(pages)
    # A page begins with the second in which the one before it ended.
    assert ids_of(found) == [*ids[1:101], *ids[100:200], *ids[199:201]]
    assert [until for _, until in found] == [
        begun_at + timedelta(seconds=100), begun_at + timedelta(seconds=199), None
    ]  # fmt: skip
    queries = [seen.query for seen in etsy.requests[before:]]
    starts = [first, *(until for _, until in found if until)]
    assert queries == [
        {
            "min_last_modified": [str(int(start.timestamp()))],
            "max_last_modified": [str(int(last.timestamp()))],
            "sort_on": ["updated"],
            "sort_order": ["asc"],
            "limit": ["100"],
            "offset": ["0"],
        }
        for start in starts
    ]


def test_a_window_open_to_the_past_and_an_empty_shop(client: EtsyClient) -> None:
    assert ids_of(walk(client, None)) == []
    assert ids_of(walk(client, datetime(1990, 1, 1, tzinfo=UTC))) == []
    with pytest.raises(ValueError, match="aware"):
        list(walk(client, None, NOON.replace(tzinfo=None)))


def test_cancelled_receipts_come_only_when_asked_for(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    etsy.add_receipt(make_receipt(receipt_id=1, lines=[ReceiptLine("Vase")]))
    etsy.add_receipt(make_receipt(receipt_id=2, lines=[ReceiptLine("Vase")], status="Canceled"))
    assert [ids_of(walk(client, None, was_canceled=each)) for each in (None, False, True)] == [[1], [1], [2]]
    assert etsy.requests[-1].query["was_canceled"] == ["true"]


def change_at(etsy: SimulatedEtsy, receipt_id: int, moment: datetime) -> None:
    seconds = int(moment.timestamp())
    etsy.change_receipt(receipt_id, is_noticed=False, updated_timestamp=seconds, update_timestamp=seconds)


@pytest.mark.parametrize("entering", [0, 7, 9])
def test_no_receipt_is_lost_when_others_leave_the_window_and_enter_it_between_two_pages(
    client: EtsyClient, etsy: SimulatedEtsy, entering: int
) -> None:
    ids = add_orders(etsy, 250)
    pages = walk(client, None)
    seen = ids_of([next(pages)])
    for receipt_id in ids[3:10]:
        change_at(etsy, receipt_id, NOON + timedelta(minutes=1))
    for number in range(entering):
        # As many as have left, so that the count says nothing.
        late = NOON - timedelta(minutes=number)
        etsy.add_receipt(make_receipt(receipt_id=5000 + number, lines=[ReceiptLine("Vase")], updated_at=late))
    seen += ids_of(pages)
    assert set(seen) == {*ids, *range(5000, 5000 + entering)}


@pytest.mark.parametrize(("alike", "requests_made"), [(90, 3), (100, 4), (250, 6)])
def test_receipts_of_one_second_in_no_firm_order_all_come(
    client: EtsyClient, etsy: SimulatedEtsy, alike: int, requests_made: int
) -> None:
    ids = add_orders(etsy, 60 + alike + 30)
    for receipt_id in ids[60:-30]:
        change_at(etsy, receipt_id, NOON - timedelta(hours=4))
    for number, receipt_id in enumerate(ids[-30:]):
        change_at(etsy, receipt_id, NOON - timedelta(hours=3) + timedelta(seconds=number))
    etsy.shuffles_ties = True
    pages = walk(client, None)
    before = len(etsy.requests)
    assert set(ids_of(pages)) == set(ids)
    assert len(etsy.requests) - before == requests_made


def test_of_many_in_one_second_none_is_lost_when_one_leaves_the_window(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    ids = add_orders(etsy, 300)
    for receipt_id in ids:
        change_at(etsy, receipt_id, NOON - timedelta(hours=4))
    pages = walk(client, None)
    seen = ids_of([next(pages), next(pages)])
    for receipt_id in ids[:3]:
        change_at(etsy, receipt_id, NOON + timedelta(minutes=1))
    seen += ids_of(pages)
    assert set(seen) == set(ids)
    assert [each.query["offset"] for each in etsy.requests[-6:-1]] == [["0"], ["99"], ["0"], ["99"], ["198"]]


def test_a_list_that_never_holds_still_is_given_up(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    pages = walk(client, None)
    for number in range(8):
        results = [{"receipt_id": number * 100 + each} for each in range(100)]
        etsy.fail_next(200, {"count": 300, "results": results})
    with pytest.raises(Unavailable, match="hold still"):
        list(pages)


def test_pages_in_another_order_than_was_asked_for_are_read_by_id(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    ids = add_orders(etsy, 150)
    results = [copy.deepcopy(etsy.receipts[each]) for each in ids[:100]]
    etsy.fail_next(200, {"count": 150, "results": results[::-1]}, skip=2)
    found = list(walk(client, None))
    assert set(ids_of(found)) == set(ids)
    # Nothing is known of what came with it.
    assert [until for _, until in found] == [None, None]
    assert {each.query["sort_on"][0] for each in etsy.requests[-2:]} == {"receipt_id"}


def test_paging_ends_when_every_other_receipt_leaves_the_window(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    ids = add_orders(etsy, 101)
    pages = walk(client, None)
    next(pages)
    for receipt_id in ids:
        change_at(etsy, receipt_id, NOON + timedelta(minutes=1))
    assert ids_of(pages) == []


def test_a_page_that_ends_early_ends_the_paging(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    before = len(etsy.requests) + 2
    etsy.fail_next(200, {"count": 500, "results": [{"receipt_id": 1}, None, "text"]}, skip=2)
    etsy.fail_next(200, {"count": 500, "results": [{"receipt_id": 1}, None, "text"]})
    etsy.fail_next(200, {"count": 500, "results": []})
    assert ids_of(walk(client, None)) == [1]
    assert len(etsy.requests) == before + 3


@pytest.mark.parametrize(
    "body", [{}, {"count": 1}, {"results": []}, {"count": "1", "results": []}, {"count": 1, "results": {}}]
)
def test_what_is_no_page_is_unavailable(client: EtsyClient, etsy: SimulatedEtsy, body: object) -> None:
    etsy.fail_next(200, body, skip=2)
    with pytest.raises(Unavailable):
        list(walk(client, None))


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (None, NOON),
        ("Mon, 02 Mar 2026 13:30:00 GMT", NOON + timedelta(hours=1, minutes=30)),
        ("Mon, 02 Mar 2026 13:30:00 +0100", NOON + timedelta(minutes=30)),
        ("Mon, 02 Mar 2026 12:00:00 -0000", NOON),
        ("", None),
        ("soon", None),
        ("Mon, 99 Mar 2026 13:30:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -2359", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None),
        ("Fri, 01 Jan 2100 00:00:00 GMT", None),
    ],
)
def test_the_time_at_etsy_is_that_of_its_last_answer(
    client: EtsyClient, etsy: SimulatedEtsy, told: str | None, wanted: datetime | None
) -> None:
    token = log_in(client).access_token
    etsy.told_time = told
    client.get_me(token)
    assert client.etsy_time == wanted


def test_one_receipt_is_read_by_id(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    receipt = make_receipt(receipt_id=4_117_291_123, lines=[ReceiptLine("Vase", personalization="Zoë")])
    etsy.add_receipt(receipt)
    tokens = log_in(client)
    assert client.get_receipt(tokens.access_token, SHOP_ID, 4_117_291_123) == receipt
    with pytest.raises(NotFound):
        client.get_receipt(tokens.access_token, SHOP_ID, 5)
    with pytest.raises(NotFound):
        client.get_receipt(tokens.access_token, SHOP_ID + 1, 4_117_291_123)


def test_every_call_carries_the_key_and_only_scoped_ones_the_token(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    tokens = log_in(client)
    client.get_me(tokens.access_token)
    calls = [seen for seen in etsy.requests if seen.path.startswith("/v3/")]
    assert [seen.headers["x-api-key"] for seen in calls] == [f"{KEYSTRING}:{SHARED_SECRET}"] * 2
    assert "authorization" not in calls[0].headers
    assert calls[1].headers["authorization"] == f"Bearer {tokens.access_token}"
    form = parse_qs(calls[0].body.decode())
    assert form["client_id"] == [KEYSTRING]
    assert SHARED_SECRET not in calls[0].body.decode()


def test_a_netrc_entry_does_not_replace_the_token(
    client: EtsyClient, etsy: SimulatedEtsy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert client.get_me(log_in(client).access_token)


def test_values_of_a_query_are_written_as_etsy_reads_them(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    tokens = log_in(client)
    query: dict[str, object] = {"was_paid": True, "was_shipped": False, "limit": 5, "left_out": None}
    path = f"/v3/application/shops/{SHOP_ID}/receipts"
    client._request("GET", path, access_token=tokens.access_token, query=query)
    assert etsy.requests[-1].query == {"was_paid": ["true"], "was_shipped": ["false"], "limit": ["5"]}
    with pytest.raises(NotFound):
        client._request("GET", "/v3/application/listings/batch", query={"listing_ids": [1, 2, 3]})
    assert etsy.requests[-1].query == {"listing_ids": ["1,2,3"]}


@pytest.mark.parametrize(
    ("keystring", "shared_secret", "reason"),
    [
        (KEYSTRING, "wrong-secret", "Invalid API key"),
        ("wrong-keystring", SHARED_SECRET, "Invalid API key"),
        (KEYSTRING, "a:b", "format"),
    ],
)
def test_a_wrong_key_is_refused_with_etsys_reason(
    make_client: Callable[..., EtsyClient], keystring: str, shared_secret: str, reason: str
) -> None:
    client = make_client(keystring=keystring, shared_secret=shared_secret)
    with pytest.raises(Refused, match=reason) as caught:
        client.get_me("12.abc")
    assert caught.value.status == 403


@pytest.mark.parametrize("secret", ["a b", "a\nb", "ä", "a\x00"])
def test_a_key_that_fits_in_no_header_is_refused_at_once(make_client: Callable[..., EtsyClient], secret: str) -> None:
    with pytest.raises(ValueError, match="printable") as caught:
        make_client(shared_secret=secret)
    assert secret not in str(caught.value)


def test_a_login_without_the_scope_is_refused(client: EtsyClient) -> None:
    login = client.new_login(scopes=["transactions_r"])
    tokens = client.exchange_code(consent(login)["code"], login.verifier)
    with pytest.raises(Refused, match="shops_r"):
        client.get_me(tokens.access_token)


HTML = "<html><body>503 Service Unavailable</body></html>"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": "bad"}, Refused),
        (400, [{"path": "limit", "type": "max", "message": "too large"}], Refused),
        (400, [], Refused),
        (401, {"error": "invalid_token", "error_description": "access token is expired"}, Unauthorized),
        (403, {"error": "Unauthorized"}, Refused),
        (403, HTML, Unavailable),
        (404, {"error": "Resource not found"}, NotFound),
        (404, HTML, Unavailable),
        (409, {"error": "Conflict"}, Refused),
        (418, {"error": {"nested": []}}, Refused),
        (429, HTML, RateLimited),
        (500, {"error": "Server Error"}, Unavailable),
        (503, HTML, Unavailable),
        (302, "", Unavailable),
        (200, HTML, Unavailable),
        (200, "", Unavailable),
        (200, '{"user_id": 7', Unavailable),
        (200, "[" * 100_000, Unavailable),
        (200, '{"user_id": ' + "9" * 10_000 + "}", Unavailable),
        (200, [1], Unavailable),
        (204, "", Unavailable),
    ],
)
def test_every_answer_becomes_one_of_our_exceptions(
    client: EtsyClient, etsy: SimulatedEtsy, status: int, body: object, expected: type[EtsyError]
) -> None:
    tokens = log_in(client)
    etsy.fail_next(status, body)
    with pytest.raises(EtsyError) as caught:
        client.get_me(tokens.access_token)
    assert type(caught.value) is expected


def test_the_reason_of_a_refusal_is_readable(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    tokens = log_in(client)
    etsy.fail_next(400, [{"path": "limit", "type": "max", "message": "too large\x00\x1b[31m"}])
    with pytest.raises(Refused) as caught:
        client.get_me(tokens.access_token)
    assert str(caught.value) == "Etsy refused (400): limit: too large[31m"
    etsy.fail_next(400, {"error": "x" * 100_000})
    with pytest.raises(Refused) as caught:
        client.get_me(tokens.access_token)
    assert caught.value.message == "x" * 500


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("17", 17), ("86400", 86_400), ("999999999", 86_400), ("0", 1), ("-5", 60), ("soon", 60), ("٣", 60), ("", 60)],
)
def test_a_limit_says_how_long_to_wait(client: EtsyClient, etsy: SimulatedEtsy, header: str, seconds: int) -> None:
    tokens = log_in(client)
    etsy.fail_next(429, {"error": "slow down"}, headers={"retry-after": header.encode().decode("latin-1")})
    with pytest.raises(RateLimited) as caught:
        client.get_me(tokens.access_token)
    assert caught.value.retry_after_seconds == seconds


def test_the_rest_of_the_days_quota_is_remembered(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    assert client.remaining_today is None
    etsy.remaining_today = 3
    tokens = log_in(client)
    assert client.remaining_today == 2
    client.get_me(tokens.access_token)
    etsy.fail_next(200, {"user_id": 1}, headers={"x-remaining-today": "many"})
    client.get_me(tokens.access_token)
    assert client.remaining_today == 1
    client.get_me(tokens.access_token)
    with pytest.raises(RateLimited) as caught:
        client.get_me(tokens.access_token)
    assert caught.value.retry_after_seconds == 86_400
    assert client.remaining_today == 0


def test_a_redirect_is_not_followed(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    tokens = log_in(client)
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        etsy.fail_next(307, {}, headers={"Location": f"http://127.0.0.1:{trap.getsockname()[1]}/"})
        with pytest.raises(Unavailable):
            client.get_me(tokens.access_token)
        with pytest.raises(TimeoutError):
            trap.accept()


def test_a_server_that_is_not_there_or_says_nothing_is_unavailable(make_client: Callable[..., EtsyClient]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable, match="Timeout"):
            make_client(base_url=address, timeout=0.2).get_me("12.abc")
    with pytest.raises(Unavailable) as caught:
        make_client(base_url=address).get_me("12.abc")
    assert caught.value.status is None


def test_an_answer_without_end_is_cut_off(client: EtsyClient, etsy: SimulatedEtsy) -> None:
    tokens = log_in(client)
    etsy.fail_next(200, {"user_id": 1, "filler": "x" * 33 * 2**20})
    with pytest.raises(Unavailable):
        client.get_me(tokens.access_token)


@pytest.mark.parametrize("token", ["", "abc", "12.ab\r\nX-Evil: 1", "12.\x00", "12.ä", "12.\ud800", "12.", "-1.abc"])
def test_a_token_that_etsy_never_issued_is_not_sent(client: EtsyClient, etsy: SimulatedEtsy, token: str) -> None:
    with pytest.raises(Unauthorized):
        client.get_me(token)
    assert not etsy.requests


def test_no_secret_stands_in_a_repr(client: EtsyClient) -> None:
    login = client.new_login()
    tokens = client.exchange_code(consent(login)["code"], login.verifier)
    shown = f"{client!r} {login!r} {tokens!r}"
    for secret in (SHARED_SECRET, login.state, login.verifier, tokens.access_token, tokens.refresh_token):
        assert secret not in shown


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 409, 500, None])
def test_no_secret_stands_in_the_trace_of_a_fault_even_if_etsy_repeats_it(
    make_client: Callable[..., EtsyClient], etsy: SimulatedEtsy, status: int | None
) -> None:
    access_token, refresh_token, code, verifier = "12.access-abcdefgh", "12.refresh-abcdefgh", "code-abcdefgh", "v" * 43
    client = make_client(base_url="http://127.0.0.1:1") if status is None else make_client()
    calls: list[tuple[Callable[[], object], list[str]]] = [
        (lambda: client.get_me(access_token), [access_token]),
        (lambda: client.refresh(refresh_token), [refresh_token]),
        (lambda: client.exchange_code(code, verifier), [code, verifier]),
    ]
    for call, secrets in calls:
        secrets = [SHARED_SECRET, KEYSTRING, *secrets]
        echo = {
            "error": " ".join(secrets),
            "error_description": "x" * (490 - len(" ".join(secrets))) + " ".join(secrets),
        }
        if status is not None:
            etsy.fail_next(status, f"{json.dumps(echo)}..." if status == 200 else echo, times=1 + (status == 500))
        with pytest.raises(EtsyError) as caught:
            call()
        trace = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert not any(secret[:10] in trace for secret in secrets)
        # A log that follows the chain would print what the library's exception holds: the request, the answer.
        assert caught.value.__context__ is None or isinstance(caught.value.__context__, EtsyError)
        if status == 500:
            etsy._faults.clear()


def test_exceptions_survive_a_journey_between_processes() -> None:
    for error in (Refused(403, "no"), RateLimited(17), Unavailable("gone", 503), NotFound("no"), Unauthorized("old")):
        twin = copy.copy(error)  # by the same protocol as pickle
        assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))
