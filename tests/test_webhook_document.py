"""What the OpenAPI document says of webhooks is what goes out: real payloads and headers of every kind against it."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from jsonschema import Draft202012Validator

from channels import WebhookSender, new_webhook_secret
from farm import alerts, maintenance
from models import ConnectionStatus, PrinterConnection, PrintEvent, ScheduledPrint
from notifications import FLAGS, TEST, fan_out
from simulator.sinks import WebhookReceiver
from tests.api_document import JSON, ApiDocument
from tests.conftest import Clock
from tests.farm_builder import Farm

URL = "https://hooks.example.com/print"
RFC3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.fixture
def document(app: Flask) -> ApiDocument:
    return ApiDocument(app)


@pytest.fixture
def printer_id(farm: Farm) -> int:
    made = int(farm.add_printer(host="192.0.2.10", access_code="12345678", serial_number="01P00A000000001")["id"])
    preferences = {"webhook_url": URL, "notify_material_change": True}
    assert farm.put(f"/api/bambu/notifications/{made}", preferences).status_code == 200
    return made


def cause(farm: Farm, printer_id: int, clock: Clock, kind: str) -> None:
    """Make an event of that kind happen, through the API where a person can make it happen."""
    subject, _, what = kind.partition(".")
    if kind == TEST:
        assert farm.post(f"/api/bambu/notifications/{printer_id}/test").status_code == 202
    elif subject == "material":
        left = {"low": 60, "critical": 15, "replace": 1, "depleted": 0, "changed": 100}[what]
        spool = farm.add_material(printer_id)
        assert farm.put(f"/api/bambu/materials/{spool['id']}", {"remaining_pct": left}).status_code == 200
    elif what in ("started", "completed", "failed"):
        order = farm.add_order(ship_by="2026-12-01T00:00:00Z")
        farm.add_material(printer_id)
        made = farm.add_print(printer_id, order_id=order["id"], material_slot=0, estimated_grams=12.5)
        farm.move(made["id"], *(["started"] if what == "started" else ["started", what]))
    else:
        _cause_by_the_machine(farm, printer_id, clock, what)


def _cause_by_the_machine(farm: Farm, printer_id: int, clock: Clock, what: str) -> None:
    made = farm.add_print(printer_id)
    with farm.database() as session:
        of_print, user_id, at = session.get_one(ScheduledPrint, made["id"]), farm.user["id"], clock()
        connection = session.execute(sa.select(PrinterConnection)).scalar_one()
        match what:
            case "needs_look" | "not_wanted":
                event = PrintEvent(
                    user_id=user_id,
                    printer_id=printer_id,
                    print_id=of_print.id,
                    kind=f"print.{what}",
                    reason="look at it",
                    details={},
                    at=at,
                )
                session.add(event)
                fan_out(event, of_print=of_print)
            case "needs_person":
                alerts.needs_person(of_print, "nozzle", "another nozzle is needed", at=at)
            case "offline" | "back":
                alert = alerts.raise_alert(user_id, printer_id, alerts.OFFLINE, at=at)
                alerts.tell(alert, "printer.offline", at=at, text="it does not answer", code="offline")
                connection.connection_status = ConnectionStatus.connected
                alerts.link_stands(connection, at=at)
            case "fault":
                alert = alerts.raise_alert(user_id, printer_id, "hms:0300-0100-0001-0007", at=at)
                alerts.tell(alert, "printer.fault", at=at, text="the bed does not heat", code="0300-0100-0001-0007")
            case _:
                maintenance.tell_if_due(user_id, printer_id, Decimal("250.25"), 250, at=at)
        session.commit()


def payload_of(farm: Farm, kind: str) -> Any:
    row = farm.get("/api/bambu/deliveries", query_string={"kind": kind, "channel": "webhook", "limit": 1}).json[0]
    return farm.get(f"/api/bambu/deliveries/{row['id']}").json["payload"]


def validator(document: ApiDocument, kind: str) -> Draft202012Validator:
    body = document.raw["webhooks"][kind]["post"]["requestBody"]["content"][JSON]["schema"]
    return Draft202012Validator({**body, "components": document.raw["components"]})


def moments(schema: dict[str, Any], value: Any, document: ApiDocument) -> list[str]:
    """Each text in a value whose schema calls it a time."""
    schema = document.follow(schema)
    if isinstance(value, dict):
        known = next(
            each["properties"] for each in map(document.follow, schema.get("anyOf", [schema])) if "properties" in each
        )
        return [found for name, each in value.items() for found in moments(known[name], each, document)]
    return [value] if schema.get("format") == "date-time" and value is not None else []


def test_each_kind_that_goes_out_is_documented_and_no_other(document: ApiDocument) -> None:
    assert set(document.raw["webhooks"]) == {*FLAGS, TEST}


@pytest.mark.parametrize("kind", [*FLAGS, TEST])
def test_what_goes_out_is_what_the_document_says(
    farm: Farm, printer_id: int, clock: Clock, document: ApiDocument, kind: str
) -> None:
    cause(farm, printer_id, clock, kind)
    payload = payload_of(farm, kind)
    errors = [f"{error.json_path}: {error.message}" for error in validator(document, kind).iter_errors(payload)]
    assert errors == []
    schema = document.raw["webhooks"][kind]["post"]["requestBody"]["content"][JSON]["schema"]
    times = moments(schema, payload, document)
    assert times and all(RFC3339_UTC.fullmatch(each) for each in times)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda payload: payload.update(type="print.started"),
        lambda payload: payload.pop("timestamp"),
        lambda payload: payload.update(more=1),
        lambda payload: payload["data"].pop("print"),
        lambda payload: payload["data"].update(print=None),
        lambda payload: payload["data"]["print"].update(status="lost"),
        lambda payload: payload["data"]["order"].pop("label"),
        lambda payload: payload["data"].update(secret="x"),
    ],
)
def test_the_document_would_have_seen_a_difference(
    farm: Farm, printer_id: int, clock: Clock, document: ApiDocument, spoil: Any
) -> None:
    cause(farm, printer_id, clock, "print.completed")
    payload = payload_of(farm, "print.completed")
    assert validator(document, "print.completed").is_valid(payload)
    spoil(payload)
    assert not validator(document, "print.completed").is_valid(payload)


def test_a_webhook_has_the_documented_headers(farm: Farm, printer_id: int, clock: Clock, document: ApiDocument) -> None:
    cause(farm, printer_id, clock, "print.started")
    row = farm.get("/api/bambu/deliveries", query_string={"channel": "webhook"}).json[0]
    old, new = new_webhook_secret(), new_webhook_secret()
    with WebhookReceiver(old, clock=clock) as receiver:
        networks = farm.app.extensions["parts"].settings.webhook_allowed_networks
        sender = WebhookSender(networks, clock=clock)
        assert sender.send(receiver.url, [new, old], row["message_id"], b"{}").ok
        sender.close()
    (received,) = receiver.received
    for kind, item in document.raw["webhooks"].items():
        headers = {each["name"]: each for each in item["post"]["parameters"]}
        assert set(headers) == {"webhook-id", "webhook-timestamp", "webhook-signature"}, kind
        for name, each in headers.items():
            assert each["in"] == "header" and each["required"]
            assert re.search(each["schema"]["pattern"], received.headers[name]), name
    assert received.verified


def test_a_webhook_asks_for_no_token_and_says_what_each_answer_means(document: ApiDocument) -> None:
    for item in document.raw["webhooks"].values():
        operation = item["post"]
        assert operation["security"] == []
        assert set(operation["responses"]) == {"2XX", "410", "default"}
