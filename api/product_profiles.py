"""How the shop's products are printed: `/api/product-profiles`."""

from __future__ import annotations

import contextlib
from typing import Any

import sqlalchemy as sa
from flask import Response
from marshmallow import fields

from api import context
from api.fields import Body, Color, Id, Moment, Num, Ranged, RangedNum, Text
from api.lists import Columns, PageQuery, json_response, named_list
from api.once import once
from api.orders import OptionsField
from api.print_schemas import Deleted
from api.reading import Room
from auth import current_user_id, get_mine, mine
from errors import Invalid
from farm.print_files import NotPrintable, describe, plate_numbers
from models import OrderItem, PrintFile, ProductProfile, db

blueprint = Room(
    "product profiles", __name__, url_prefix="/api/product-profiles", description="How the shop's products are printed"
)

NAMES = (
    *("id", "product_name", "sku", "etsy_listing_id", "options", "print_file_id", "plate", "units_per_plate"),
    *("print_time_minutes", "preferred_material", "preferred_color", "nozzle_temp_c", "bed_temp_c", "print_speed_mms"),
    *("filament_grams", "notes", "created_at", "updated_at"),
)
COLUMNS = Columns(ProductProfile, *NAMES)


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
    notes = fields.String(required=True, allow_none=True)
    created_at = Moment(required=True)
    updated_at = Moment(required=True)


class ProfilesSchema(Body):
    profiles = fields.List(fields.Nested(ProfileSchema), required=True)
    total = fields.Integer(required=True)


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
    notes = Text(0, 2000, allow_none=True)


class NewProfile(ProfileChange):
    product_name = Text(required=True)


def _one(profile_id: int) -> dict[str, Any]:
    db.session.flush()
    return COLUMNS.one(mine(ProductProfile).where(ProductProfile.id == profile_id))


def _check_file(print_file_id: int | None, plate: int) -> None:
    if print_file_id is None:
        return
    file = get_mine(PrintFile, print_file_id)
    numbers = plate_numbers(file)
    if plate not in numbers:
        raise Invalid({"plate": [f"The file has no such plate; it has {', '.join(map(str, numbers))}."]})
    with contextlib.suppress(NotPrintable):
        describe(file, context.settings().files_dir)


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
    _check_file(data.get("print_file_id"), data.get("plate", 1))
    at = context.now()
    profile = ProductProfile(user_id=current_user_id(), created_at=at, updated_at=at, **data)
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
    _check_file(data.get("print_file_id", profile.print_file_id), data.get("plate", profile.plate))
    for name, value in data.items():
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
