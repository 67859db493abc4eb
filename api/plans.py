"""What would become of an order: `POST /api/orders/<id>/plan`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from flask import Response
from marshmallow import ValidationError, fields

import etsy_api
from api import context
from api.fields import Body, Id, Moment, Num, Ranged, Text
from api.lists import json_response
from api.reading import Room
from auth import current_user_id
from farm.order_plan import AUTO, OrderPlan, PlannedRun, PlanRules
from farm.planner import PlannedPrint
from models import MAX_ID, slot_of

blueprint = Room("plans", __name__, url_prefix="/api/orders", description="Orders and the prints that fulfil them")


class PrinterChoice(fields.Field[Any]):
    """The id of a printer, or "auto" for whichever have the order done first."""

    def __init__(self, **kwargs: Any) -> None:
        any_of = [{"type": "integer", "minimum": 1, "maximum": MAX_ID}, {"type": "string", "enum": [AUTO]}]
        super().__init__(metadata={"anyOf": any_of}, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if value == AUTO:
            return AUTO
        try:
            return Id().deserialize(value)
        except ValidationError:
            raise ValidationError(f'Not the id of a printer, nor "{AUTO}".') from None


class ScheduleRequest(Body):
    printer_id = PrinterChoice(required=True)
    material_type = Text(allow_none=True)
    start_offset_minutes = Ranged(0, 525_600, load_default=0)


class PlaceSchema(Body):
    filament_id = fields.Integer(required=True, metadata={"description": "The slicer's number of the filament"})
    ams_id = fields.Integer(required=True)
    tray_id = fields.Integer(required=True)
    slot = fields.Integer(required=True, allow_none=True)


class PlannedPrintSchema(Body):
    order_item_id = fields.Integer(required=True)
    units = fields.Integer(required=True, metadata={"description": "Pieces on the plate when it is done"})
    job_name = fields.String(required=True)
    printer_id = fields.Integer(required=True, allow_none=True, metadata={"description": "None where no printer fits"})
    printer_name = fields.String(required=True, allow_none=True)
    material_slot = fields.Integer(required=True, allow_none=True)
    places = fields.List(fields.Nested(PlaceSchema), required=True)
    scheduled_start = Moment(required=True, allow_none=True, metadata={"description": "What it would be given"})
    starts_at = Moment(required=True, allow_none=True, metadata={"description": "Expected; None: blocked"})
    ends_at = Moment(required=True, allow_none=True)
    priority = fields.Integer(required=True)
    print_file_id = fields.Integer(required=True, allow_none=True)
    plate = fields.Integer(required=True)
    estimated_duration_minutes = fields.Integer(required=True)
    estimated_grams = Num(required=True, allow_none=True)
    material_type = fields.String(required=True)
    material_color = fields.String(required=True, allow_none=True)
    reasons = fields.List(fields.String(), required=True, metadata={"description": "Why it would not start"})


class RefusedSchema(Body):
    printer_id = fields.Integer(required=True)
    printer_name = fields.String(required=True)
    reasons = fields.List(fields.String(), required=True)


class Skipped(Body):
    order_item_id = fields.Integer(required=True)
    reason = fields.String(required=True)


class PlanAnswer(Body):
    prints = fields.List(fields.Nested(PlannedPrintSchema), required=True)
    refused = fields.List(fields.Nested(RefusedSchema), required=True)
    skipped = fields.List(fields.Nested(Skipped), required=True)
    done_at = Moment(required=True, allow_none=True, metadata={"description": "When the last print ends"})
    ship_by = Moment(required=True, allow_none=True)
    slack_minutes = fields.Integer(
        required=True, allow_none=True, metadata={"description": "From done_at to ship_by; negative when late"}
    )
    is_late = fields.Boolean(required=True, allow_none=True, metadata={"description": "None: nobody can know"})


def plan_rules() -> PlanRules:
    """The settings that plans go by."""
    return PlanRules.from_settings(context.settings())


def slack_minutes(slack: timedelta | None) -> int | None:
    """Whole minutes, rounded down: never more than there is."""
    return None if slack is None else slack // timedelta(minutes=1)


def skipped_lines(item_ids: list[int]) -> list[dict[str, Any]]:
    return [{"order_item_id": item_id, "reason": "digital: nothing to print"} for item_id in item_ids]


def _represent(run: PlannedRun) -> dict[str, Any]:
    planned: PlannedPrint = run.planned
    return {
        "order_item_id": planned.order_item_id,
        "units": planned.units,
        "job_name": planned.job_name,
        "printer_id": run.printer_id,
        "printer_name": run.printer_name,
        "material_slot": run.material_slot,
        "places": [
            {"filament_id": filament_id, "ams_id": ams_id, "tray_id": tray_id, "slot": slot_of(ams_id, tray_id)}
            for filament_id, (ams_id, tray_id) in sorted(run.places.items())
        ],
        "scheduled_start": planned.scheduled_start,
        "starts_at": run.starts_at,
        "ends_at": run.ends_at,
        "priority": planned.priority,
        "print_file_id": planned.print_file_id,
        "plate": planned.plate,
        "estimated_duration_minutes": planned.estimated_duration_minutes,
        "estimated_grams": planned.estimated_grams,
        "material_type": planned.material_type,
        "material_color": planned.material_color,
        "reasons": list(run.reasons),
    }


def _answer(plan: OrderPlan) -> dict[str, Any]:
    return {
        "prints": [_represent(run) for run in plan.runs],
        "refused": [
            {"printer_id": each.printer_id, "printer_name": each.name, "reasons": list(each.reasons)}
            for each in plan.refused
        ],
        "skipped": skipped_lines(list(plan.skipped)),
        "done_at": plan.done_at,
        "ship_by": plan.ship_by,
        "slack_minutes": slack_minutes(plan.slack),
        "is_late": plan.is_late,
    }


@blueprint.post("/<id:order_id>/plan")
@blueprint.arguments(ScheduleRequest)
@blueprint.response(200, PlanAnswer)
def plan_prints(data: dict[str, Any], order_id: int) -> Response:
    """What schedule-prints would make of the same body, and when it would run; nothing is touched."""
    plan = etsy_api.plan_order_prints(
        current_user_id(),
        order_id,
        data["printer_id"],
        data.get("material_type"),
        data["start_offset_minutes"],
        now=context.now(),
        rules=plan_rules(),
    )
    return json_response(_answer(plan))
