"""A webhook leads to no address that is not allowed: the whole way, from the preferences to a listener that counts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from flask import Flask

from channels import WebhookSender
from delivery.webhook_target import Network
from models import Delivery, DeliveryAttempt, DeliveryStatus, PrintNotification
from outbox import Outbox
from simulator.sinks import WebhookReceiver
from tests.apps import another_app
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm
from tests.hostile_urls import HOSTILE_NAMES, MALFORMED_URLS, SPECIAL_URLS
from tests.outboxes import make_outbox
from tests.wire import GuardedListener, NameTable, served

HOSTILE = [*SPECIAL_URLS, *MALFORMED_URLS, *(f"http://{name}:{{port}}/" for name in HOSTILE_NAMES)]
# What a database takes as a text: PostgreSQL no NUL, and neither of them half a surrogate pair.
STORABLE = [url for url in HOSTILE if not re.search("[\x00\ud800-\udfff]", url)]
URL = "https://hooks.example.com/print"
LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]


@pytest.fixture
def guard() -> Iterator[GuardedListener]:
    listener = GuardedListener()
    yield listener
    listener.close()


@pytest.fixture
def strict_farm(app: Flask, strict_app: Flask) -> Farm:
    """A farm whose operator allows no private network."""
    return Farm(strict_app, "strict@example.com")


@pytest.fixture(scope="module")
def strict_app(
    session_database_url: str, tmp_path_factory: pytest.TempPathFactory, session_clock: Clock
) -> Iterator[Flask]:
    with another_app(
        session_database_url, tmp_path_factory.mktemp("strict"), session_clock, WEBHOOK_ALLOWED_NETWORKS=""
    ) as made:
        yield made


def with_webhook(farm: Farm, url: str = URL) -> int:
    """A printer whose webhook has one delivery to send, and nothing else."""
    printer_id = int(farm.add_printer()["id"])
    answer = farm.put(f"/api/bambu/notifications/{printer_id}", {"webhook_url": url, "email_enabled": False})
    assert answer.status_code == 200, answer.text
    farm.move(farm.add_print(printer_id)["id"], "started")
    return printer_id


def point_to(farm: Farm, url: str) -> None:
    """Store a URL past all checks, with its delivery due now and nothing known of before."""
    with farm.database() as session:
        session.execute(sa.delete(DeliveryAttempt))
        session.execute(sa.update(PrintNotification).values(webhook_url=url, webhook_failing_since=None))
        session.execute(
            sa.update(Delivery).values(target=url, status=DeliveryStatus.pending, tries=0, next_try_at=BASE_TIME)
        )
        session.commit()


@contextmanager
def outboxes(
    farm: Farm, clock: Clock, names: NameTable, allowed: Sequence[Network], *, timeout_seconds: float = 5.0
) -> Iterator[Outbox]:
    sender = WebhookSender(allowed, clock=clock, resolver=names, timeout_seconds=timeout_seconds)
    yield make_outbox(farm.app, clock, webhooks=sender)
    sender.close()


def try_it(farm: Farm, outbox: Outbox) -> list[tuple[bool, int | None, str | None]]:
    """Send what is due: (is_ok, answer_code, error) of each attempt so far."""
    assert outbox.drain() == 1
    with farm.database() as session:
        query = sa.select(DeliveryAttempt.is_ok, DeliveryAttempt.answer_code, DeliveryAttempt.error)
        return [tuple(row) for row in session.execute(query.order_by(DeliveryAttempt.id))]


def test_no_hostile_url_is_taken_as_a_preference(strict_farm: Farm, guard: GuardedListener) -> None:
    printer_id = strict_farm.add_printer()["id"]
    path = f"/api/bambu/notifications/{printer_id}"
    tried = 0
    for url in [*SPECIAL_URLS, *MALFORMED_URLS]:
        answer = strict_farm.put(path, {"webhook_url": url.replace("{port}", str(guard.port))})
        # Half a surrogate pair is no JSON text at all.
        assert answer.status_code == 422 or (answer.status_code == 400 and url not in STORABLE), url
        assert answer.status_code == 400 or list(answer.json["fields"]) == ["webhook_url"], url
        tried += 1
    assert tried >= 60
    assert strict_farm.get(path).json["webhook_url"] is None
    assert guard.connections() == 0


def test_no_hostile_url_that_is_stored_all_the_same_connects_to_anything(
    strict_farm: Farm, clock: Clock, guard: GuardedListener
) -> None:
    """Stored by an earlier version, or when the operator allowed more; and names, of which nobody knows before."""
    with_webhook(strict_farm)
    names = NameTable({name: [addresses] for name, addresses in HOSTILE_NAMES.items()})
    with outboxes(strict_farm, clock, names, ()) as outbox:
        for url in STORABLE:
            point_to(strict_farm, url.replace("{port}", str(guard.port)))
            ((is_ok, answer_code, error),) = try_it(strict_farm, outbox)
            assert (is_ok, answer_code) == (False, None) and error, url
    assert len(STORABLE) >= 60 and set(names.asked) == set(HOSTILE_NAMES)
    assert guard.connections() == 0
    (row,) = strict_farm.get("/api/bambu/deliveries").json
    assert (row["status"], row["tries"], len(row["attempts"])) == ("pending", 1, 1)


def test_the_guarded_listener_would_have_seen_them(farm: Farm, clock: Clock, guard: GuardedListener) -> None:
    """The same ways with the addresses allowed do connect; else the tests above would prove nothing."""
    names = NameTable({"loop.example": [["127.0.0.1"]]})
    with_webhook(farm)
    with outboxes(farm, clock, names, LOOPBACK, timeout_seconds=0.1) as outbox:
        for url in ("http://127.0.0.1:{port}/", "http://0x7f.1:{port}/", "http://loop.example:{port}/"):
            point_to(farm, url.format(port=guard.port))
            assert not try_it(farm, outbox)[0][0]
            assert guard.connections() >= 1, url


def test_a_name_that_turns_to_a_private_address_is_refused_from_then_on(farm: Farm, clock: Clock) -> None:
    """127.0.0.2 is allowed here, as a public address is elsewhere; 127.0.0.1 stands for what is not."""
    names = NameTable({"rebind.example": [["127.0.0.2"], ["127.0.0.1"]]})
    allowed, visits = [ipaddress.ip_network("127.0.0.2/32")], list[int]()
    with (
        WebhookReceiver(host="127.0.0.2") as receiver,
        served(lambda _, number: visits.append(number), port=receiver.port),
        outboxes(farm, clock, names, allowed) as outbox,
    ):
        with_webhook(farm, f"http://rebind.example:{receiver.port}/")
        first = try_it(farm, outbox)
        delivery_id = farm.get("/api/bambu/deliveries").json[0]["id"]
        assert farm.post(f"/api/bambu/deliveries/{delivery_id}/replay").status_code == 200
        second = try_it(farm, outbox)
    assert [row[0] for row in first] == [True] and [row[0] for row in second] == [True, False]
    assert "private" in str(second[1][2])
    assert names.asked == ["rebind.example"] * 2, "one look-up an attempt: a second one could answer otherwise"
    assert (visits, len(receiver.received)) == ([], 1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_a_private_address_is_a_failure_and_is_not_followed(
    farm: Farm, clock: Clock, guard: GuardedListener, status: int
) -> None:
    with WebhookReceiver() as receiver:
        receiver.answer_with(status, headers={"Location": f"http://127.0.0.1:{guard.port}/"})
        with_webhook(farm, receiver.url)
        with outboxes(farm, clock, NameTable(), LOOPBACK) as outbox:
            ((is_ok, answer_code, error),) = try_it(farm, outbox)
    assert (is_ok, answer_code) == (False, status) and "redirects" in str(error)
    assert (guard.connections(), len(receiver.received)) == (0, 1)


def test_the_operators_list_lets_a_receiver_in_the_lan_be_reached(farm: Farm, clock: Clock) -> None:
    with WebhookReceiver() as receiver:
        with_webhook(farm, receiver.url)
        allowed = farm.app.extensions["parts"].settings.webhook_allowed_networks
        assert [str(network) for network in allowed] == ["127.0.0.0/8"]
        with outboxes(farm, clock, NameTable(), allowed) as outbox:
            assert try_it(farm, outbox) == [(True, 204, None)]
    assert len(receiver.received) == 1
