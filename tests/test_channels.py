"""One webhook: what goes out, where it does not go, and what a hostile other end can do."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hostile_urls import HOSTILE_NAMES, MALFORMED_URLS, SPECIAL_URLS
from wire import GuardedListener, NameTable, served

from channels import Attempt, WebhookSender, check_webhook_url, new_webhook_secret
from delivery.pinned_http import Bounds, PinnedConnections
from delivery.webhook_target import Network, parse_webhook_url
from simulator.sink_certificate import ThrowAwayCertificate
from simulator.sinks import WebhookReceiver

SECRET = new_webhook_secret()
BODY = '{"type": "print.completed", "data": {"name": "Möbius"}}'.encode()
LOOPBACK: tuple[Network, ...] = (ipaddress.IPv4Network("127.0.0.0/8"),)
EVERYWHERE: tuple[Network, ...] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))
PUBLIC_TRUST = ssl.create_default_context()  # made once: loading every public authority takes 40 ms
NOW = datetime(2026, 11, 21, 9, 5, tzinfo=UTC)


def wall_clock() -> datetime:
    return datetime.now(UTC)


@contextmanager
def senders(allowed: Sequence[Network] = LOOPBACK, **options: Any) -> Iterator[WebhookSender]:
    usual = {"clock": wall_clock, "timeout_seconds": 5.0, "tls_context": PUBLIC_TRUST}
    sender = WebhookSender(allowed, **{**usual, **options})
    try:
        yield sender
    finally:
        sender.close()


def post(sender: WebhookSender, url: str, *, secrets: Sequence[str] = (SECRET,), message_id: str = "msg_1") -> Attempt:
    return sender.send(url, secrets, message_id, BODY)


@pytest.fixture
def guard() -> Iterator[GuardedListener]:
    listener = GuardedListener()
    yield listener
    listener.close()


def test_no_hostile_url_connects_to_anything(guard: GuardedListener) -> None:
    names = NameTable({name: [addresses] for name, addresses in HOSTILE_NAMES.items()})
    urls = [*SPECIAL_URLS, *MALFORMED_URLS, *(f"http://{name}:{{port}}/" for name in HOSTILE_NAMES)]
    with senders((), resolver=names) as sender:
        for url in urls:
            attempt = post(sender, url.replace("{port}", str(guard.port)))
            assert not attempt.ok and attempt.status is None and attempt.error, url
    assert guard.connections() == 0
    assert set(names.asked) == set(HOSTILE_NAMES), "no literal address went to the resolver"


def test_the_guard_would_have_seen_them(guard: GuardedListener) -> None:
    """The same loopback URLs with the guard open do connect; else the test above would prove nothing."""
    urls = [url.format(port=guard.port) for url in SPECIAL_URLS]
    spelled = [url for url in urls if check_webhook_url(url, LOOPBACK) is None]
    seen = 0
    with senders(timeout_seconds=0.05) as sender:
        for url in spelled:
            post(sender, url)
            seen += guard.connections()
    assert seen >= len(spelled) >= 25


def test_a_webhook_is_signed_and_says_what_was_sent() -> None:
    with WebhookReceiver(SECRET) as receiver, senders() as sender:
        attempt = post(sender, receiver.url + "?a=ä", message_id="msg_42")
    assert attempt == Attempt(True, 204, attempt.duration_ms, None, b"")
    assert 0 <= attempt.duration_ms < 5_000
    [received] = receiver.received
    assert received.verified
    assert received.json["data"]["name"] == "Möbius"
    assert received.headers["webhook-id"] == "msg_42"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"


def test_while_secrets_rotate_a_receiver_may_know_either() -> None:
    old, new, wrong = (new_webhook_secret() for _ in range(3))
    for known, verified in ((old, True), (new, True), (wrong, False)):
        with WebhookReceiver(known) as receiver, senders() as sender:
            assert post(sender, receiver.url, secrets=[new, old]).ok
        assert receiver.received[0].verified is verified


def test_the_timestamp_is_the_clock_that_was_given() -> None:
    with (
        WebhookReceiver(SECRET) as by_the_wall,
        WebhookReceiver(SECRET, clock=lambda: NOW) as by_the_clock,
        senders(clock=lambda: NOW.astimezone()) as sender,
    ):
        assert post(sender, by_the_wall.url).ok and post(sender, by_the_clock.url).ok
    assert by_the_clock.received[0].headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    assert by_the_clock.received[0].verified
    assert by_the_wall.received[0].verified is (abs(wall_clock() - NOW) < timedelta(minutes=5))


@pytest.mark.parametrize(
    ("secrets", "message_id", "body"),
    [
        ([], "msg_1", b"{}"),
        (SECRET, "msg_1", b"{}"),
        ([""], "msg_1", b"{}"),
        (["whsec_"], "msg_1", b"{}"),
        (["whsec_a"], "msg_1", b"{}"),
        ([SECRET], "msg\r\nX: y", b"{}"),
        ([SECRET], "msg.1", b"{}"),
        ([SECRET], "", b"{}"),
        ([SECRET], "msg_1", b"\xff"),
    ],
    ids=["none", "a bare text", "empty", "only a prefix", "no base64", "line break", "full stop", "no id", "no UTF-8"],
)
def test_what_cannot_be_signed_is_not_sent(secrets: Any, message_id: str, body: bytes) -> None:
    with WebhookReceiver(SECRET) as receiver, senders() as sender, pytest.raises(ValueError):
        sender.send(receiver.url, secrets, message_id, body)
    assert receiver.connections == 0


def test_a_new_secret_is_fresh_and_has_256_bits() -> None:
    secrets = {new_webhook_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret) for secret in secrets)


@pytest.mark.parametrize("status", [400, 404, 410, 429, 500, 503])
def test_any_answer_but_2xx_is_a_failure_with_its_status(status: int) -> None:
    with WebhookReceiver(SECRET) as receiver, senders() as sender:
        receiver.answer_with(status, body=b"no, thank you" * 500)
        attempt = post(sender, receiver.url)
    assert (attempt.ok, attempt.status) == (False, status)
    assert attempt.error == f"The receiver answered {status}."
    assert attempt.answer == (b"no, thank you" * 500)[:1_000]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_is_not_followed(status: int, guard: GuardedListener) -> None:
    with WebhookReceiver(SECRET) as receiver, senders(EVERYWHERE) as sender:
        receiver.answer_with(status, headers={"Location": f"http://127.0.0.1:{guard.port}/"})
        attempt = post(sender, receiver.url)
    assert (attempt.ok, attempt.status) == (False, status)
    assert "redirects" in (attempt.error or "")
    assert guard.connections() == 0 and len(receiver.received) == 1


def test_a_name_that_turns_to_another_address_is_refused_from_then_on() -> None:
    """Only 127.0.0.2 is allowed here, as a public address is elsewhere; 127.0.0.1 stands for the forbidden host."""
    names = NameTable({"rebind.example": [["127.0.0.2"], ["127.0.0.1"]]})
    allowed = [ipaddress.IPv4Network("127.0.0.2/32")]
    visits: list[int] = []
    with (
        WebhookReceiver(SECRET, host="127.0.0.2") as receiver,
        served(lambda _, number: visits.append(number), port=receiver.port),
        senders(allowed, resolver=names) as sender,
    ):
        url = f"http://rebind.example:{receiver.port}/"
        first, second = post(sender, url), post(sender, url)
    assert first.ok and not second.ok and second.status is None
    assert names.asked == ["rebind.example"] * 2, "one look-up a send: a second one could answer otherwise"
    assert visits == [] and len(receiver.received) == 1
    assert receiver.received[0].headers["host"] == f"rebind.example:{receiver.port}"


def test_a_kept_connection_is_not_used_for_an_address_that_the_name_has_lost() -> None:
    names = NameTable({"moved.example": [["127.0.0.2"], ["127.0.0.3"], ["127.0.0.2", "127.0.0.3"]]})
    with (
        WebhookReceiver(SECRET, host="127.0.0.2") as old,
        WebhookReceiver(SECRET, host="127.0.0.3", port=old.port) as new,
        senders(resolver=names) as sender,
    ):
        assert all(post(sender, f"http://moved.example:{old.port}/").ok for _ in range(3))
    assert (len(old.received), len(new.received)) == (1, 2)
    assert (old.connections, new.connections) == (1, 1)


def test_the_next_address_is_tried_when_the_first_takes_no_connection() -> None:
    with WebhookReceiver(SECRET, host="127.0.0.3") as receiver:
        names = NameTable({"two.example": [["127.0.0.2", "127.0.0.3"]]})
        with senders(resolver=names) as sender:
            assert post(sender, f"http://two.example:{receiver.port}/").ok


def test_proxies_of_the_environment_are_ignored(guard: GuardedListener, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{guard.port}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{guard.port}")
    with WebhookReceiver(SECRET) as receiver, senders() as sender:
        assert post(sender, receiver.url).ok
    assert guard.connections() == 0


def test_connections_are_kept_alive_between_sends() -> None:
    with WebhookReceiver(SECRET) as receiver, senders() as sender:
        receiver.answer_with(200, body=b"ok").answer_with(500, body=b"oh").answer_with(204)
        assert [post(sender, receiver.url).status for _ in range(5)] == [200, 500, 204, 204, 204]
    assert receiver.connections == 1


def test_a_receiver_that_came_back_gets_the_very_next_webhook() -> None:
    with senders() as sender:
        with WebhookReceiver(SECRET) as receiver:
            assert post(sender, receiver.url).ok
        assert not post(sender, receiver.url).ok
        with WebhookReceiver(SECRET, port=receiver.port) as again:
            assert post(sender, receiver.url).ok
    assert len(again.received) == 1


def test_each_exchange_on_a_kept_connection_has_bounds_of_its_own() -> None:
    with WebhookReceiver(SECRET) as receiver, senders() as sender:
        receiver.answer_with(200, body=b"x" * 40_000, times=3)
        assert [post(sender, receiver.url).ok for _ in range(3)] == [True, True, True]
    assert receiver.connections == 1


def test_a_receiver_that_wants_to_close_is_let_close() -> None:
    with WebhookReceiver(SECRET) as receiver, senders() as sender:
        receiver.answer_with(200, body=b"bye", headers={"Connection": "close"}, times=2)
        assert [post(sender, receiver.url).answer for _ in range(2)] == [b"bye", b"bye"]
    assert receiver.connections == 2


def test_no_second_is_left_once_the_time_is_over() -> None:
    """A timeout of 0 or less means something else to a socket than to us."""
    for timeout_seconds in (0.0, -1.0):
        with pytest.raises(TimeoutError):
            Bounds(timeout_seconds, 1).seconds_left()


def read_request(connection: socket.socket) -> bytes:
    request = b""
    while not request.endswith(BODY):
        more = connection.recv(65_536)
        if not more:
            raise ConnectionResetError
        request += more
    return request


OK_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_a_kept_connection_closed_in_the_moment_of_use_is_replaced() -> None:
    requests: list[int] = []

    def answer_once_per_connection(connection: socket.socket, number: int) -> None:
        for answer in (OK_ANSWER, b""):
            read_request(connection)
            requests.append(number)
            connection.sendall(answer)
        connection.close()

    with served(answer_once_per_connection) as port, senders() as sender:
        assert [post(sender, f"http://127.0.0.1:{port}/").ok for _ in range(3)] == [True, True, True]
    assert requests == [1, 1, 2, 2, 3]


def test_many_threads_share_one_sender() -> None:
    outcomes: list[bool] = []
    with WebhookReceiver(SECRET) as receiver, senders() as sender:
        threads = [
            threading.Thread(target=lambda: outcomes.extend(post(sender, receiver.url).ok for _ in range(10)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes == [True] * 80
    assert receiver.connections <= 8 and all(each.verified for each in receiver.received)


def drip(connection: socket.socket, start: bytes, each: bytes) -> None:
    read_request(connection)
    connection.sendall(start)
    while True:
        connection.sendall(each)
        time.sleep(0.02)


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("start", "each"),
    [
        (b"", b"H"),
        (HEAD + b"X: ", b"y"),
        (HEAD, b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["status", "one header", "headers without end", "100 Continue without end"],
)
def test_a_dripping_server_is_cut_at_the_deadline(start: bytes, each: bytes) -> None:
    with served(lambda connection, _: drip(connection, start, each)) as port, senders(timeout_seconds=0.3) as sender:
        began = time.monotonic()
        attempt = post(sender, f"http://127.0.0.1:{port}/")
        took = time.monotonic() - began
    assert not attempt.ok and attempt.status is None
    assert "0.3 seconds" in (attempt.error or "")
    assert 0.25 < took < 2


@pytest.mark.parametrize("framing", [b"Content-Length: 9999", b"Transfer-Encoding: chunked", b"Connection: close"])
def test_a_dripping_body_ends_at_the_deadline_but_2xx_has_been_said(framing: bytes) -> None:
    each = b"1\r\nx\r\n" if b"chunked" in framing else b"x"
    start = HEAD + framing + b"\r\n\r\n"
    with served(lambda connection, _: drip(connection, start, each)) as port, senders(timeout_seconds=0.3) as sender:
        began = time.monotonic()
        attempt = post(sender, f"http://127.0.0.1:{port}/")
        took = time.monotonic() - began
    assert attempt.ok and attempt.status == 200 and attempt.answer.strip(b"x") == b"" and attempt.answer
    assert 0.25 < took < 2


def test_a_server_that_reads_nothing_or_says_nothing_is_cut_at_the_deadline() -> None:
    for scheme, body in (("http", b"{}"), ("https", b"{}"), ("http", b'"' + b"x" * 30_000_000 + b'"')):
        with served(lambda *_: None) as port, senders(timeout_seconds=0.2) as sender:
            began = time.monotonic()
            attempt = sender.send(f"{scheme}://127.0.0.1:{port}/", [SECRET], "msg_1", body)
            took = time.monotonic() - began
        assert not attempt.ok and "did not answer within" in (attempt.error or "")
        assert 0.15 < took < 3


def test_a_stalled_resolver_is_not_waited_for() -> None:
    over = threading.Event()

    def stalled(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        over.wait(5)
        return []

    with senders(resolver=stalled, timeout_seconds=0.2) as sender:
        began = time.monotonic()
        attempt = post(sender, "http://slow.example/")
        took = time.monotonic() - began
        over.set()
    assert not attempt.ok and took < 2


def test_an_unknown_name_is_a_failure_that_says_so() -> None:
    with senders(resolver=NameTable()) as sender:
        assert post(sender, "http://nowhere.example/").error == "The host name cannot be found."


def test_of_a_megabyte_no_more_than_64_kilobytes_are_read() -> None:
    with WebhookReceiver(SECRET) as receiver, senders() as sender:
        receiver.answer_with(200, body=b"x" * 1_000_000, times=2)
        attempt = post(sender, receiver.url)
        assert attempt.ok and attempt.answer == b"x" * 1_000
        bounds = Bounds(5.0, 65_536)
        connections = PinnedConnections(PUBLIC_TRUST)
        target = parse_webhook_url(receiver.url)
        connections.post(target, target.literal, {}, BODY, bounds, 1_000)
        assert bounds.bytes_left == 0
        assert post(sender, receiver.url).ok
    assert receiver.connections == 3, "a connection with an unread rest is not used again"


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 200 " + b"x" * 70_000,
        HEAD + (b"X: " + b"y" * 9_000 + b"\r\n") * 10,
        b"HTTP/1.1 100 C\r\n\r\n" * 5_000,
    ],
)
def test_endless_headers_are_a_failure(endless: bytes) -> None:
    def answer(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(endless)

    with served(answer) as port, senders(timeout_seconds=2.0) as sender:
        attempt = post(sender, f"http://127.0.0.1:{port}/")
    assert not attempt.ok and attempt.status is None and attempt.duration_ms < 1_500


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff" * 100,
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 banana\r\n\r\n",
        b"HTTP/1.1 99999 x\r\n\r\n",
        b"220 mail ESMTP\r\n",
    ],
)
def test_what_is_not_http_is_a_failure_with_a_clean_sentence(answer: bytes) -> None:
    def say(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(answer)
        connection.close()

    with served(say) as port, senders() as sender:
        attempt = post(sender, f"http://127.0.0.1:{port}/")
    assert not attempt.ok and attempt.status is None
    assert attempt.error is not None and attempt.error.isprintable() and attempt.error.endswith(".")


@pytest.mark.parametrize("size", [b"-5", b"zz", b"ffffffffffffffff", b"", b"5"])
def test_a_broken_chunk_decides_nothing_once_2xx_has_been_said(size: bytes) -> None:
    def say(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\nxyz")
        connection.close()

    with served(say) as port, senders() as sender:
        assert [post(sender, f"http://127.0.0.1:{port}/").ok for _ in range(2)] == [True, True]


def test_over_tls_the_name_of_the_url_is_sent_and_checked() -> None:
    certificate = ThrowAwayCertificate("farm.test", "127.0.0.1")
    asked_for: list[str | None] = []
    certificate.server_context.sni_callback = lambda _, name, __: asked_for.append(name)
    names = NameTable({"farm.test": [["127.0.0.1"]], "other.test": [["127.0.0.1"]]})
    with (
        WebhookReceiver(SECRET, certificate=certificate) as receiver,
        senders(resolver=names, tls_context=certificate.client_context) as sender,
    ):
        assert post(sender, f"https://farm.test:{receiver.port}/").ok
        assert post(sender, f"https://farm.test:{receiver.port}/").ok
        assert receiver.connections == 1
        assert post(sender, receiver.url).ok, "an address in the certificate"
        mismatch = post(sender, f"https://other.test:{receiver.port}/")
    assert asked_for == ["farm.test", None, "other.test"]
    assert not mismatch.ok and "certificate is not valid" in (mismatch.error or "")
    assert [each.headers["host"] for each in receiver.received][0] == f"farm.test:{receiver.port}"
    assert len(receiver.received) == 3


def test_a_certificate_of_unknown_origin_is_refused() -> None:
    with WebhookReceiver(SECRET, certificate=ThrowAwayCertificate("127.0.0.1")) as receiver, senders() as sender:
        attempt = post(sender, receiver.url)
    assert not attempt.ok and "certificate" in (attempt.error or "") and receiver.received == []


def test_a_refused_connection_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with senders() as sender:
        assert post(sender, f"http://127.0.0.1:{port}/").error == "The receiver refused the connection."
