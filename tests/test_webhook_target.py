"""Which URLs a webhook may have: special addresses in every spelling, allowed networks, text that is no URL."""

from __future__ import annotations

import ipaddress

import pytest
from hostile_urls import MALFORMED_URLS, SPECIAL_URLS
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery.webhook_target import Network, check_webhook_url, permitted

LOOPBACK: tuple[Network, ...] = (ipaddress.IPv4Network("127.0.0.0/8"),)
EVERYWHERE: tuple[Network, ...] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))


def test_the_tables_hold_at_least_sixty_hostile_urls() -> None:
    assert len(SPECIAL_URLS) >= 60 and len(MALFORMED_URLS) >= 60


@pytest.mark.parametrize("url", SPECIAL_URLS)
def test_a_special_address_is_refused_in_every_spelling_unless_allowed(url: str) -> None:
    url = url.format(port=8080)
    assert check_webhook_url(url, ()) is not None
    assert check_webhook_url(url, EVERYWHERE) is None, "it is well-formed: only where it leads was wrong"


@pytest.mark.parametrize("url", MALFORMED_URLS)
def test_a_malformed_url_is_refused_whatever_is_allowed(url: str) -> None:
    said = check_webhook_url(url.replace("{port}", "8080"), EVERYWHERE)
    assert said is not None and said.endswith(".") and said[0].isupper()


def test_a_password_in_the_url_is_named_as_what_is_wrong() -> None:
    assert "password" in (check_webhook_url("https://user:pass@example.com/", ()) or "")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://example.com:8443/hook?a=1&b=%20#frag",
        "https://EXAMPLE.com./",
        "https://münchen.example/größe?q=ä",
        "http://8.8.8.8/",
        "http://134744072/",
        "http://[2606:4700::1111]:8080/x",
        "http://[64:ff9b::808:808]/",
        "http://home_assistant:8123/api/webhook/x",
        "http://example.com:/",
        "http://example.com/" + "a" * 1_981,
    ],
)
def test_an_ordinary_url_is_taken(url: str) -> None:
    assert check_webhook_url(url, ()) is None


def test_an_allowed_network_opens_itself_and_nothing_else() -> None:
    lan = (ipaddress.IPv4Network("192.168.1.0/24"), ipaddress.IPv6Network("fd00:1::/32"))
    assert check_webhook_url("http://192.168.1.20:8123/", lan) is None
    assert check_webhook_url("http://[::ffff:192.168.1.20]/", lan) is None
    assert check_webhook_url("http://[fd00:1::7]/", lan) is None
    for other in ("192.168.2.20", "127.0.0.1", "[fd00:2::7]", "localhost"):
        assert check_webhook_url(f"http://{other}/", lan) is not None
    assert check_webhook_url("http://localhost:5000/", LOOPBACK) is None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1) | st.integers(0, 15).map(lambda n: 0x7F000000 + n))
def test_every_spelling_of_an_ipv4_address_is_judged_alike(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    a, b, c, d = address.packed
    spellings = (
        str(address),
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a}.{(b << 16) + (c << 8) + d}",
        f"0x{a:x}.0{b:o}.{c}.{d}",
        f"[::ffff:{address}]",
        f"[64:ff9b::{address}]",
    )
    refused = {check_webhook_url(f"http://{spelling}/", ()) is not None for spelling in spellings}
    assert refused == {not permitted(address, ())}
    assert permitted(address, ()) <= address.is_global


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"https?://[\[\]0-9a-fx.:%@\\/-]{1,30}", fullmatch=True))
def test_no_text_at_all_makes_the_check_crash(url: str) -> None:
    said = check_webhook_url(url, ())
    assert said is None or said.endswith(".")
