"""What a webhook carries, kind by kind: the `webhooks` of the OpenAPI document."""

from __future__ import annotations

from typing import Any

from apispec import APISpec
from marshmallow import Schema, fields

from api.fields import Body, Moment, Word
from models import PrintStatus, ProductionStatus


class WebhookPrinter(Body):
    id = fields.Integer(required=True)
    name = fields.String(required=True)


class WebhookPrint(Body):
    id = fields.Integer(required=True)
    job_name = fields.String(required=True)
    status = Word(PrintStatus, required=True)
    file_name = fields.String(required=True, allow_none=True)
    material_type = fields.String(required=True, allow_none=True)
    material_color = fields.String(required=True, allow_none=True)
    material_slot = fields.Integer(required=True, allow_none=True)
    used_grams = fields.Float(required=True, allow_none=True)
    material_cost = fields.Float(required=True, allow_none=True)
    currency = fields.String(required=True)
    started_at = Moment(required=True, allow_none=True)
    completed_at = Moment(required=True, allow_none=True)
    failed_reason = fields.String(required=True, allow_none=True)


class WebhookOrder(Body):
    id = fields.Integer(required=True)
    label = fields.String(required=True)
    etsy_order_id = fields.String(required=True, allow_none=True)
    buyer_name = fields.String(required=True)
    production_status = Word(ProductionStatus, required=True)
    ship_by = Moment(required=True, allow_none=True)


class WebhookMaterial(Body):
    id = fields.Integer(
        required=True, allow_none=True, metadata={"description": "Null where the printer sees one that nobody entered"}
    )
    slot = fields.Integer(required=True, allow_none=True)
    ams_id = fields.Integer(required=True)
    tray_id = fields.Integer(required=True)
    material_type = fields.String(required=True, allow_none=True)
    color = fields.String(required=True, allow_none=True)
    weight_grams = fields.Float(required=True, allow_none=True)
    remaining_grams = fields.Float(required=True, allow_none=True)
    remaining_pct = fields.Float(required=True, allow_none=True)


class WebhookAlert(Body):
    key = fields.String(required=True, metadata={"description": "The same as long as it is the same trouble"})
    code = fields.String(
        required=True, allow_none=True, metadata={"description": "The printer's own of a fault, else a word of ours"}
    )
    text = fields.String(required=True, metadata={"description": "A sentence for a person"})
    since = Moment(required=True)
    times = fields.Integer(required=True, metadata={"description": "How often it came while it came and went"})


class WebhookMaintenance(Body):
    hours = fields.Float(required=True, metadata={"description": "Printed since the last maintenance"})
    every_hours = fields.Integer(required=True)


class _WebhookData(Body):
    event_id = fields.Integer(required=True, metadata={"description": "Rises with time"})
    printer = fields.Nested(WebhookPrinter, required=True)
    reason = fields.String(required=True, allow_none=True)


class PrintWebhookData(_WebhookData):
    print = fields.Nested(WebhookPrint, required=True)
    order = fields.Nested(WebhookOrder, required=True, allow_none=True)


class WaitWebhookData(PrintWebhookData):
    alert = fields.Nested(WebhookAlert, required=True)


class MaterialWebhookData(_WebhookData):
    material = fields.Nested(WebhookMaterial, required=True)


class AlertWebhookData(_WebhookData):
    alert = fields.Nested(WebhookAlert, required=True)


class MaintenanceWebhookData(_WebhookData):
    maintenance = fields.Nested(WebhookMaintenance, required=True)


class TestWebhookData(_WebhookData):
    pass


# What each kind says, and how a person would say it.
KINDS: dict[str, tuple[type[Schema], str]] = {
    "print.started": (PrintWebhookData, "A print began"),
    "print.completed": (PrintWebhookData, "A print succeeded"),
    "print.failed": (PrintWebhookData, "A print failed; `reason` says why"),
    "print.needs_look": (PrintWebhookData, "Nobody can say from here what became of a print"),
    "print.needs_person": (WaitWebhookData, "A print waits for something that only a person can do"),
    "print.not_wanted": (PrintWebhookData, "The order of a print that runs was cancelled or refunded"),
    "material.low": (MaterialWebhookData, "A spool is low"),
    "material.critical": (MaterialWebhookData, "A spool is nearly empty"),
    "material.replace": (MaterialWebhookData, "A spool should be replaced"),
    "material.depleted": (MaterialWebhookData, "A spool is empty"),
    "material.changed": (MaterialWebhookData, "A spool was loaded or removed; `reason` says which"),
    "printer.offline": (AlertWebhookData, "A printer has not been reached for a while"),
    "printer.back": (AlertWebhookData, "A printer is reached again"),
    "printer.fault": (AlertWebhookData, "A printer reports a fault"),
    "printer.maintenance_due": (MaintenanceWebhookData, "A printer has printed as long as it may without maintenance"),
    "notification.test": (TestWebhookData, "A person asked for a test"),
}
HEADERS = {
    "webhook-id": ({"type": "string", "pattern": "^msg_[0-9a-f]{32}$"}, "The same for each repeat of one message"),
    "webhook-timestamp": ({"type": "string", "pattern": "^[0-9]+$"}, "When this very try was made, in Unix seconds"),
    "webhook-signature": (
        {"type": "string", "pattern": "^v1,[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{43}=)*$"},
        "Base64 of the HMAC-SHA256 of `{webhook-id}.{webhook-timestamp}.{body}`, one for each secret that is valid",
    ),
}


def add_schemas(spec: APISpec) -> None:
    """The parts that webhooks are made of, as components of the document."""
    for schema in {each.__name__: each for each, _ in KINDS.values()}.values():
        spec.components.schema(schema.__name__, schema=schema)


def webhooks() -> dict[str, Any]:
    """The `webhooks` of the document: one entry a kind, each a POST that the receiver has to answer."""
    return {kind: {"post": _operation(kind, schema.__name__, said)} for kind, (schema, said) in KINDS.items()}


def _operation(kind: str, data: str, said: str) -> dict[str, Any]:
    return {
        "summary": f"{said}.",
        "description": "Sent to a printer's `webhook_url`, signed as Standard Webhooks say. A repeat carries the same "
        "`webhook-id`. More keys may come in later versions.",
        "tags": ["webhooks"],
        # No token of ours goes there: the signature is what a receiver goes by.
        "security": [],
        "parameters": [
            {"in": "header", "name": name, "required": True, "schema": schema, "description": description}
            for name, (schema, description) in HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "type": {"const": kind},
                            "timestamp": {"type": "string", "format": "date-time"},
                            "data": {"$ref": f"#/components/schemas/{data}"},
                        },
                        "required": ["type", "timestamp", "data"],
                        "additionalProperties": False,
                    }
                }
            },
        },
        "responses": {
            "2XX": {"description": "Received"},
            "410": {"description": "Never again: the webhook is switched off at once"},
            "default": {"description": "Not received, redirects among them: it is tried again"},
        },
    }
