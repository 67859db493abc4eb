"""The timeline of the whole farm: `/api/schedule`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from flask import Response
from marshmallow import fields

from api import context
from api.accounts import StaffedHoursSchema, represent_hours
from api.fields import Body, Moment
from api.lists import Query, json_response
from api.plans import plan_rules, slack_minutes
from api.reading import Room
from auth import current_user
from farm.forecast import Forecast, forecast, overdue_orders, read_farm
from farm.order_plan import is_late, slack_to
from farm.spread import Terms
from farm.staffed import StaffedHours
from models import Order, PrintStatus, ScheduledPrint

blueprint = Room("schedule", __name__, url_prefix="/api/schedule", description="The timeline of the whole farm")

# Of each printer, in run order; the times of all are reckoned, whatever is shown.
MAX_SHOWN = 200
NOT_PLANNED = "not planned yet"


class TimelinePrintSchema(Body):
    id = fields.Integer(required=True)
    job_name = fields.String(required=True)
    order_id = fields.Integer(required=True, allow_none=True)
    batch_id = fields.Integer(required=True, allow_none=True)
    status = fields.Enum(PrintStatus, by_value=True, required=True)
    priority = fields.Integer(required=True)
    scheduled_start = Moment(required=True, allow_none=True)
    starts_at = Moment(required=True, metadata={"description": "Expected, or when it did"})
    ends_at = Moment(required=True, metadata={"description": "Expected"})
    ship_by = Moment(required=True, allow_none=True)
    slack_minutes = fields.Integer(required=True, allow_none=True)
    is_late = fields.Boolean(required=True, allow_none=True)


class BlockedPrintSchema(Body):
    id = fields.Integer(required=True)
    job_name = fields.String(required=True)
    order_id = fields.Integer(required=True, allow_none=True)
    batch_id = fields.Integer(required=True, allow_none=True)
    status = fields.Enum(PrintStatus, by_value=True, required=True)
    ship_by = Moment(required=True, allow_none=True)
    waiting_reason = fields.String(required=True)


class PrinterTimelineSchema(Body):
    printer_id = fields.Integer(required=True)
    printer_name = fields.String(required=True)
    problems = fields.List(fields.String(), required=True, metadata={"description": "Why no order is planned on it"})
    prints = fields.List(fields.Nested(TimelinePrintSchema), required=True)
    blocked = fields.List(fields.Nested(BlockedPrintSchema), required=True)
    left_out = fields.Integer(required=True, metadata={"description": "Prints beyond the 200 that are shown"})
    free_at = Moment(required=True, allow_none=True, metadata={"description": "When it could start yet another"})


class LateOrderSchema(Body):
    order_id = fields.Integer(required=True)
    label = fields.String(required=True)
    ship_by = Moment(required=True)
    done_at = Moment(required=True, allow_none=True)
    slack_minutes = fields.Integer(required=True, allow_none=True)
    reason = fields.String(required=True, allow_none=True)


class ScheduleSchema(Body):
    now = Moment(required=True)
    timezone = fields.String(required=True)
    staffed_hours = fields.Nested(StaffedHoursSchema, required=True, allow_none=True)
    clearing_minutes = fields.Integer(required=True)
    printers = fields.List(fields.Nested(PrinterTimelineSchema), required=True)
    would_miss = fields.List(fields.Nested(LateOrderSchema), required=True)
    is_whole = fields.Boolean(required=True, metadata={"description": "False: more waits than is looked at"})


def _of_print(found: ScheduledPrint) -> dict[str, Any]:
    return {
        "id": found.id,
        "job_name": found.job_name,
        "order_id": found.order_id,
        "batch_id": found.batch_id,
        "status": found.status.value,
        "ship_by": found.order.ship_by if found.order is not None else None,
    }


def _timeline(found: Forecast, prints: Mapping[int, ScheduledPrint], now: datetime) -> dict[str, Any]:
    shown = []
    for run in found.runs[:MAX_SHOWN]:
        each = prints[run.print_id]
        row = _of_print(each)
        row |= {
            "priority": each.priority,
            "scheduled_start": each.scheduled_start,
            "starts_at": run.starts_at,
            "ends_at": run.ends_at,
            "slack_minutes": slack_minutes(slack_to(row["ship_by"], run.ends_at)),
            "is_late": is_late(row["ship_by"], run.ends_at, now),
        }
        shown.append(row)
    blocked = [
        _of_print(prints[each.print_id]) | {"waiting_reason": "; ".join(each.reasons)}
        for each in found.blocked[: MAX_SHOWN - len(shown)]
    ]
    return {
        "printer_id": found.of.printer.id,
        "printer_name": found.of.printer.name,
        "problems": list(found.problems),
        "prints": shown,
        "blocked": blocked,
        "left_out": len(prints) - len(shown) - len(blocked),
        "free_at": found.gaps[-1][0] if found.gaps else None,
    }


def _would_miss(
    forecasts: Iterable[tuple[Forecast, Mapping[int, ScheduledPrint]]], unplanned: Iterable[Order], now: datetime
) -> list[dict[str, Any]]:
    """The orders that end after their time: by the last of their prints, and by those that cannot be told."""
    orders: dict[int, Order] = {}
    done: dict[int, datetime] = {}
    blocked: dict[int, str] = {}
    for found, prints in forecasts:
        timed = {run.print_id: run.ends_at for run in found.runs}
        why = {each.print_id: "; ".join(each.reasons) for each in found.blocked}
        for print_id, each in prints.items():
            if each.order is None or each.order.ship_by is None:
                continue
            orders[each.order.id] = each.order
            if print_id in timed:
                done[each.order.id] = max(done.get(each.order.id, timed[print_id]), timed[print_id])
            else:
                blocked.setdefault(each.order.id, why.get(print_id, "nobody is ever there to clear the plate"))
    for order in unplanned:
        orders[order.id] = order
        blocked[order.id] = NOT_PLANNED
    late = []
    for order in orders.values():
        known = done.get(order.id)
        # What is blocked ends later still: late already by what can be told is late.
        if order.ship_by is not None and (order.ship_by < now or is_late(order.ship_by, known, now)):
            done_at = None if order.id in blocked else known
            late.append(
                {
                    "order_id": order.id,
                    "label": order.label,
                    "ship_by": order.ship_by,
                    "done_at": done_at,
                    "slack_minutes": slack_minutes(slack_to(order.ship_by, done_at)),
                    "reason": blocked.get(order.id),
                }
            )
    return sorted(late, key=lambda each: (each["ship_by"], each["order_id"]))


@blueprint.get("")
@blueprint.arguments(Query, location="query")
@blueprint.response(200, ScheduleSchema)
def get_schedule(args: dict[str, Any]) -> Response:
    """What runs and waits on each printer, when each print is expected to run, and which orders would be late."""
    user, now, rules = current_user(), context.now(), plan_rules()
    terms = Terms(now, StaffedHours(user.staffed_hours, user.timezone), rules.clearing)
    farm, is_whole = read_farm(user.id, now=now, limits=rules.limits)
    found = [
        (
            forecast(each, now=now, terms=terms, missed_window=rules.missed_window),
            {of.id: of for of in (*each.running, *each.waiting)},
        )
        for each in farm
    ]
    answer = {
        "now": now,
        "timezone": user.timezone,
        "staffed_hours": represent_hours(user),
        "clearing_minutes": context.settings().chain_buffer_minutes,
        "printers": [_timeline(each, prints, now) for each, prints in found],
        "would_miss": _would_miss(found, overdue_orders(user.id, now=now), now),
        "is_whole": is_whole,
    }
    return json_response(answer)
