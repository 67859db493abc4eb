"""How the shop's products are printed: `/api/product-profiles`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import sqlalchemy as sa
from flask import Response
from marshmallow import ValidationError, fields, validate, validates_schema

from api import context
from api.fields import Body, Color, Id, Moment, Num, Ranged, RangedNum, Text
from api.lists import Columns, PageQuery, json_response, named_list
from api.once import once
from api.orders import OptionsField
from api.print_schemas import Deleted
from api.reading import Room
from auth import current_user_id, get_mine, mine
from errors import Invalid, NotFound
from farm.line_plates import plain
from farm.print_files import NotPrintable, describe, plate_numbers
from models import OrderItem, PrintFile, ProductProfile, Shop, db

blueprint = Room(
    "product profiles", __name__, url_prefix="/api/product-profiles", description="How the shop's products are printed"
)

NAMES = (
    *("id", "product_name", "sku", "etsy_listing_id", "options", "print_file_id", "plate", "units_per_plate"),
    *("print_time_minutes", "preferred_material", "preferred_color", "nozzle_temp_c", "bed_temp_c", "print_speed_mms"),
    *("filament_grams", "shop_id", "rules", "more_plates", "notes", "created_at", "updated_at"),
)
MAX_RULES = 200
MAX_MORE_PLATES = 50
MILLIGRAM = Decimal("0.001")


def _finish(row: dict[str, Any]) -> None:
    row["more_plates"] = [
        plate | {"filament_grams": None if plate["filament_grams"] is None else Decimal(plate["filament_grams"])}
        for plate in row["more_plates"]
    ]


COLUMNS = Columns(ProductProfile, *NAMES, finish=_finish)


class OptionRuleSchema(Body):
    option = fields.String(required=True)
    value = fields.String(required=True)
    material_type = fields.String(required=True, allow_none=True)
    color = fields.String(required=True, allow_none=True)


class FurtherPlateSchema(Body):
    print_file_id = fields.Integer(required=True)
    plate = fields.Integer(required=True)
    units_per_plate = fields.Integer(required=True)
    copies = fields.Integer(required=True)
    print_time_minutes = fields.Integer(required=True, allow_none=True)
    filament_grams = Num(required=True, allow_none=True)
    preferred_material = fields.String(required=True, allow_none=True)
    preferred_color = fields.String(required=True, allow_none=True)


class ProfileSchema(Body):
    id = fields.Integer(required=True)
    product_name = fields.String(required=True)
    sku = fields.String(required=True, allow_none=True)
    etsy_listing_id = fields.String(required=True, allow_none=True)
    options = fields.Dict(required=True)
    print_file_id = fields.Integer(required=True, allow_none=True)
    plate = fields.Integer(required=True)
    units_per_plate = fields.Integer(required=True, allow_none=True)
    print_time_minutes = fields.Integer(required=True, allow_none=True)
    preferred_material = fields.String(required=True, allow_none=True)
    preferred_color = fields.String(required=True, allow_none=True)
    nozzle_temp_c = fields.Integer(required=True, allow_none=True)
    bed_temp_c = fields.Integer(required=True, allow_none=True)
    print_speed_mms = fields.Integer(required=True, allow_none=True)
    filament_grams = Num(required=True, allow_none=True)
    shop_id = fields.Integer(required=True, allow_none=True)
    rules = fields.List(fields.Nested(OptionRuleSchema), required=True)
    more_plates = fields.List(fields.Nested(FurtherPlateSchema), required=True)
    notes = fields.String(required=True, allow_none=True)
    created_at = Moment(required=True)
    updated_at = Moment(required=True)


class ProfilesSchema(Body):
    profiles = fields.List(fields.Nested(ProfileSchema), required=True)
    total = fields.Integer(required=True)


class NewOptionRule(Body):
    option = Text(required=True)
    value = Text(required=True)
    material_type = Text(allow_none=True, load_default=None)
    color = Color(allow_none=True, load_default=None)

    @validates_schema(skip_on_field_errors=True)
    def check_meaning(self, data: dict[str, Any], **kwargs: Any) -> None:
        if data["material_type"] is None and data["color"] is None:
            raise ValidationError("Says neither a material_type nor a color.", "color")


class NewFurtherPlate(Body):
    print_file_id = Id(required=True)
    plate = Ranged(1, 1000, load_default=1)
    units_per_plate = Ranged(1, 10_000, load_default=1)
    copies = Ranged(1, 1000, load_default=1)
    print_time_minutes = Ranged(1, 100_000, allow_none=True, load_default=None)
    filament_grams = RangedNum(0, 100_000, allow_none=True, load_default=None)
    preferred_material = Text(allow_none=True, load_default=None)
    preferred_color = Color(allow_none=True, load_default=None)


def _check_rules(rules: Sequence[Mapping[str, Any]]) -> None:
    if len({(plain(rule["option"]), plain(rule["value"])) for rule in rules}) < len(rules):
        raise ValidationError("Two rules are for the same option and value.")


class ProfileChange(Body):
    product_name = Text()
    sku = Text(allow_none=True)
    etsy_listing_id = Text(1, 20, pattern=r"^[0-9]{1,20}$", fault="Not the id of a listing.", allow_none=True)
    options = OptionsField()
    print_file_id = Id(allow_none=True)
    plate = Ranged(1, 1000)
    units_per_plate = Ranged(1, 10_000, allow_none=True)
    print_time_minutes = Ranged(1, 100_000, allow_none=True)
    preferred_material = Text(allow_none=True)
    preferred_color = Color(allow_none=True)
    nozzle_temp_c = Ranged(0, 500, allow_none=True)
    bed_temp_c = Ranged(0, 200, allow_none=True)
    print_speed_mms = Ranged(1, 2000, allow_none=True)
    filament_grams = RangedNum(0, 100_000, allow_none=True)
    shop_id = Id(allow_none=True)
    rules = fields.List(fields.Nested(NewOptionRule), validate=[validate.Length(0, MAX_RULES), _check_rules])
    more_plates = fields.List(fields.Nested(NewFurtherPlate), validate=validate.Length(0, MAX_MORE_PLATES))
    notes = Text(0, 2000, allow_none=True)


class NewProfile(ProfileChange):
    product_name = Text(required=True)


def _one(profile_id: int) -> dict[str, Any]:
    db.session.flush()
    return COLUMNS.one(mine(ProductProfile).where(ProductProfile.id == profile_id))


def _check_references(data: Mapping[str, Any], profile: ProductProfile | None = None) -> None:
    """The shop and the files are one's own, and the files have those plates. `profile`: as it is before the change."""

    def value(name: str, default: Any) -> Any:
        return data.get(name, default if profile is None else getattr(profile, name))

    shop_id = value("shop_id", None)
    if shop_id is not None:
        get_mine(Shop, shop_id)
    wanted = [("plate", value("print_file_id", None), value("plate", 1))]
    wanted += [
        (f"more_plates.{number}.plate", each["print_file_id"], each["plate"])
        for number, each in enumerate(data.get("more_plates", ()))
    ]
    ids = {file_id for _, file_id, _ in wanted if file_id is not None}
    # No key of the database holds what `more_plates` names: whoever deletes a file waits for this.
    query = mine(PrintFile).where(PrintFile.id.in_(ids)).order_by(PrintFile.id).with_for_update(read=True)
    files = {file.id: file for file in db.session.execute(query).scalars()} if ids else {}
    if ids - files.keys():
        raise NotFound
    faults = {}
    for field, file_id, plate in wanted:
        numbers = plate_numbers(files[file_id]) if file_id is not None else [plate]
        if plate not in numbers:
            faults[field] = [f"The file has no such plate; it has {', '.join(map(str, numbers))}."]
    if faults:
        raise Invalid(faults)
    for file in files.values():
        with contextlib.suppress(NotPrintable):
            describe(file, context.settings().files_dir)


def _as_stored(data: dict[str, Any]) -> dict[str, Any]:
    """JSON has no exact decimals: grams stand in it as text, to the milligram."""
    if "more_plates" not in data:
        return data
    plates = []
    for plate in data["more_plates"]:
        grams = plate["filament_grams"]
        exact = None if grams is None else f"{grams.quantize(MILLIGRAM, ROUND_HALF_UP):f}"
        plates.append(plate | {"filament_grams": exact})
    return data | {"more_plates": plates}


@blueprint.get("")
@blueprint.arguments(PageQuery, location="query")
@blueprint.response(200, ProfilesSchema)
def list_profiles(args: dict[str, Any]) -> Response:
    """All product profiles."""
    return named_list(
        "profiles", COLUMNS, mine(ProductProfile).order_by(ProductProfile.id), args["limit"], args["offset"]
    )


@blueprint.post("")
@once
@blueprint.arguments(NewProfile)
@blueprint.response(201, ProfileSchema)
def add_profile(data: dict[str, Any]) -> Response:
    """Say how a product is printed. An order line finds it by SKU, else listing and options, else exact title."""
    _check_references(data)
    at = context.now()
    profile = ProductProfile(user_id=current_user_id(), created_at=at, updated_at=at, **_as_stored(data))
    db.session.add(profile)
    db.session.flush()
    return json_response(_one(profile.id), 201)


@blueprint.get("/<id:profile_id>")
@blueprint.response(200, ProfileSchema)
def get_profile(profile_id: int) -> Response:
    """One product profile."""
    get_mine(ProductProfile, profile_id)
    return json_response(_one(profile_id))


@blueprint.put("/<id:profile_id>")
@blueprint.arguments(ProfileChange)
@blueprint.response(200, ProfileSchema)
def change_profile(data: dict[str, Any], profile_id: int) -> Response:
    """Change a product profile. Prints that exist already keep what they were made with."""
    profile = get_mine(ProductProfile, profile_id, for_update=True)
    _check_references(data, profile)
    for name, value in _as_stored(data).items():
        setattr(profile, name, value)
    profile.updated_at = context.now()
    body = _one(profile_id)
    db.session.commit()
    return json_response(body)


@blueprint.delete("/<id:profile_id>")
@blueprint.response(200, Deleted)
def remove_profile(profile_id: int) -> Response:
    """Forget how a product is printed. Order lines and prints stay."""
    profile = get_mine(ProductProfile, profile_id, for_update=True)
    db.session.execute(
        sa.update(OrderItem)
        .where(OrderItem.user_id == current_user_id(), OrderItem.profile_id == profile_id)
        .values(profile_id=None)
    )
    db.session.delete(profile)
    db.session.commit()
    return json_response({"message": "Profile removed", "id": profile_id})
