"""Spools on a printer: `/api/bambu/materials`."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from flask import Response, g
from marshmallow import ValidationError, fields, validates_schema

from api import context
from api.fields import Body, Bool, Color, Moment, Num, Ranged, RangedNum, Text
from api.lists import Columns, PageQuery, bare_list, json_response, number
from api.once import once
from api.reading import Room
from auth import current_user_id, get_mine, mine
from columns import currency_number
from errors import Conflict
from farm.materials import (
    Stage,
    correct_spool,
    cost_of,
    load_spool,
    percent_of,
    remove_spool,
    share_of,
    stage_of,
    whole_milligrams,
)
from models import BambuMaterial, Printer, db, place_of, slot_of

blueprint = Room("materials", __name__, url_prefix="/api/bambu/materials", description="Spools on printers")


def _finish(row: dict[str, Any]) -> None:
    """Everything that is a view on the stored grams."""
    weight, remaining = Decimal(str(row["weight_grams"])), Decimal(str(row["remaining_grams"]))
    price = None if row["cost_per_kg"] is None else Decimal(str(row["cost_per_kg"]))
    row["slot"] = slot_of(row["ams_id"], row["tray_id"])
    row["remaining_pct"] = number(percent_of(weight, remaining))
    row["remaining_grams"] = number(remaining.quantize(Decimal("0.1"), ROUND_HALF_UP))
    row["used_grams"] = number(weight - remaining)
    row["cost_used"] = currency_number(cost_of(weight - remaining, price), g.currency)
    row["stage"] = stage_of(weight, remaining, context.limits())


COLUMNS = Columns(
    BambuMaterial,
    *("id", "printer_id", "ams_id", "tray_id", "material_type", "color", "weight_grams", "remaining_grams"),
    *("vendor", "cost_per_kg", "notes", "loaded_at", "last_synced", "removed_at", "created_at", "updated_at"),
    finish=_finish,
)


class MaterialSchema(Body):
    id = fields.Integer(required=True)
    printer_id = fields.Integer(required=True)
    slot = fields.Integer(required=True, allow_none=True, metadata={"description": "0-7: the first two AMS units"})
    ams_id = fields.Integer(required=True)
    tray_id = fields.Integer(required=True)
    material_type = fields.String(required=True)
    color = fields.String(required=True, allow_none=True)
    weight_grams = Num(required=True)
    remaining_pct = Num(required=True)
    remaining_grams = Num(required=True)
    used_grams = Num(required=True)
    cost_used = Num(required=True, allow_none=True)
    stage = fields.Enum(Stage, by_value=True, required=True)
    vendor = fields.String(required=True, allow_none=True)
    cost_per_kg = Num(required=True, allow_none=True)
    notes = fields.String(required=True, allow_none=True)
    loaded_at = Moment(required=True)
    last_synced = Moment(required=True, allow_none=True)
    removed_at = Moment(required=True, allow_none=True)
    created_at = Moment(required=True)
    updated_at = Moment(required=True)


class NewMaterial(Body):
    slot = Ranged(0, 7, metadata={"description": "Either this, or ams_id and tray_id"})
    ams_id = Ranged(0, 255, metadata={"description": "External spool: 255"})
    tray_id = Ranged(0, 255, metadata={"description": "External spool: 0"})
    material_type = Text(required=True)
    color = Color(allow_none=True)
    weight_grams = RangedNum(0.001, 100_000, required=True)
    remaining_pct = RangedNum(0, 100, above=True, load_default=Decimal(100))
    vendor = Text(allow_none=True)
    cost_per_kg = RangedNum(0, 100_000, allow_none=True)
    notes = Text(0, 2000, allow_none=True)
    replace = Bool(load_default=False, metadata={"description": "Retire the spool that is in the slot now"})

    @validates_schema(skip_on_field_errors=False)
    def _names_one_place(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        check_place(data, required=True)


class MaterialChange(Body):
    slot = Ranged(0, 7)
    ams_id = Ranged(0, 255)
    tray_id = Ranged(0, 255)
    material_type = Text()
    color = Color(allow_none=True)
    weight_grams = RangedNum(0.001, 100_000)
    remaining_pct = RangedNum(0, 100)
    vendor = Text(allow_none=True)
    cost_per_kg = RangedNum(0, 100_000, allow_none=True)
    notes = Text(0, 2000, allow_none=True)

    @validates_schema(skip_on_field_errors=False)
    def _names_one_place(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        check_place(data, required=False)


def check_place(data: Mapping[str, Any], *, required: bool) -> None:
    """A place is a slot, or an AMS unit and its tray; never both, never half of one."""
    has_slot, pair = "slot" in data, [name in data for name in ("ams_id", "tray_id")]
    if has_slot and any(pair):
        raise ValidationError("Name the slot, or ams_id and tray_id, not both.", "slot")
    if any(pair) and not all(pair):
        raise ValidationError("ams_id and tray_id go together.", "ams_id" if pair[1] else "tray_id")
    if required and not has_slot and not any(pair):
        raise ValidationError("Missing data for required field.", "slot")


def _place(data: dict[str, Any]) -> tuple[int, int] | None:
    slot, ams_id, tray_id = (data.pop(name, None) for name in ("slot", "ams_id", "tray_id"))
    return place_of(slot) if slot is not None else None if ams_id is None else (ams_id, tray_id)


def _in_place(printer_id: int, place: tuple[int, int]) -> BambuMaterial | None:
    found: BambuMaterial | None = db.session.execute(
        mine(BambuMaterial).where(
            BambuMaterial.printer_id == printer_id,
            BambuMaterial.ams_id == place[0],
            BambuMaterial.tray_id == place[1],
            BambuMaterial.removed_at.is_(None),
        )
    ).scalar_one_or_none()
    return found


def _answer(material: BambuMaterial, status: int = 200) -> Response:
    db.session.flush()
    return json_response(COLUMNS.one(mine(BambuMaterial).where(BambuMaterial.id == material.id)), status)


class MaterialQuery(PageQuery):
    include = fields.String(metadata={"description": "`removed` adds the historical records"})


@blueprint.get("/<id:printer_id>")
@blueprint.arguments(MaterialQuery, location="query")
@blueprint.response(200, MaterialSchema(many=True))
def list_materials(args: dict[str, Any], printer_id: int) -> Response:
    """The spools on a printer. Takes a printer's id."""
    get_mine(Printer, printer_id)
    query = mine(BambuMaterial).where(BambuMaterial.printer_id == printer_id)
    if args.get("include") != "removed":
        query = query.where(BambuMaterial.removed_at.is_(None))
    query = query.order_by(BambuMaterial.ams_id, BambuMaterial.tray_id, BambuMaterial.id)
    return bare_list(COLUMNS, query, args["limit"], args["offset"])


@blueprint.post("/<id:printer_id>")
@once
@blueprint.arguments(NewMaterial)
@blueprint.response(201, MaterialSchema)
def add_material(data: dict[str, Any], printer_id: int) -> Response:
    """Put a spool on a printer. Takes a printer's id. A slot that is taken is 409 unless `replace` is true."""
    printer = get_mine(Printer, printer_id, for_update=True)
    at, place, replace = context.now(), _place(data), data.pop("replace")
    assert place is not None
    present = _in_place(printer.id, place)
    if present is not None and not replace:
        raise Conflict("There is a spool in that slot. Send replace: true to retire it.", code="slot_taken")
    if present is not None:
        remove_spool(present, at=at)
    data["weight_grams"] = whole_milligrams(data["weight_grams"])
    material = BambuMaterial(
        user_id=current_user_id(),
        printer_id=printer.id,
        ams_id=place[0],
        tray_id=place[1],
        remaining_grams=share_of(data["weight_grams"], data.pop("remaining_pct") / 100),
        **data,
    )
    load_spool(material, at=at, limits=context.limits())
    return _answer(material, 201)


@blueprint.put("/<id:material_id>")
@blueprint.arguments(MaterialChange)
@blueprint.response(200, MaterialSchema)
def change_material(data: dict[str, Any], material_id: int) -> Response:
    """Correct a spool. Takes the material's own id. At 0 % it leaves its slot and stays as a record."""
    material = get_mine(BambuMaterial, material_id, for_update=True)
    if material.removed_at is not None:
        raise Conflict("This spool is no longer in a slot.", code="spool_removed")
    at, place = context.now(), _place(data)
    if place is not None and place != (material.ams_id, material.tray_id):
        if _in_place(material.printer_id, place) is not None:
            raise Conflict("There is a spool in that slot.", code="slot_taken")
        material.ams_id, material.tray_id = place
    weight, percent = data.pop("weight_grams", None), data.pop("remaining_pct", None)
    for name, value in data.items():
        setattr(material, name, value)
    if weight is not None or percent is not None:
        correct_spool(material, weight_grams=weight, remaining_pct=percent, at=at, limits=context.limits())
    material.last_synced = material.updated_at = at
    response = _answer(material)
    db.session.commit()
    return response


@blueprint.delete("/<id:material_id>")
@blueprint.response(200, MaterialSchema)
def remove_material(material_id: int) -> Response:
    """Take a spool out of its slot. Takes the material's own id. The record stays."""
    material = get_mine(BambuMaterial, material_id, for_update=True)
    if material.removed_at is None:
        remove_spool(material, at=context.now())
    response = _answer(material)
    db.session.commit()
    return response
