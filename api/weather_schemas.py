"""What `/api/weather` takes and answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from api.fields import Body, Moment, Num
from api.lists import Query
from farm.filament_advice import Action, HumiditySource


class WeatherPlace(Body):
    name = fields.String(required=True, allow_none=True)
    latitude = Num(required=True)
    longitude = Num(required=True)


class OutdoorAir(Body):
    temperature_c = Num(required=True)
    humidity_percent = Num(required=True)
    measured_at = Moment(required=True)
    age_minutes = fields.Integer(required=True)
    attribution = fields.String(required=True)


class IndoorAir(Body):
    temperature_c = Num(required=True)
    temperature_is_assumed = fields.Boolean(required=True)
    humidity_percent = Num(required=True, allow_none=True)


class AmsAir(Body):
    printer_id = fields.Integer(required=True)
    printer_name = fields.String(required=True)
    ams_id = fields.Integer(required=True)
    kind = fields.String(required=True, allow_none=True)
    humidity_percent = Num(required=True, allow_none=True)
    humidity_level = fields.Integer(required=True, allow_none=True)
    temperature_c = Num(required=True, allow_none=True)
    drying_minutes = fields.Integer(required=True, allow_none=True)
    heard_at = Moment(required=True)


class Drying(Body):
    temperature_c = fields.Integer(required=True)
    hours = fields.Integer(required=True)
    softens_at_c = fields.Integer(required=True)


class MaterialAdvice(Body):
    material_id = fields.Integer(required=True)
    printer_id = fields.Integer(required=True)
    printer_name = fields.String(required=True)
    slot = fields.Integer(required=True, allow_none=True)
    ams_id = fields.Integer(required=True)
    tray_id = fields.Integer(required=True)
    material_type = fields.String(required=True)
    color = fields.String(required=True, allow_none=True)
    loaded_at = Moment(required=True)
    loaded_days = fields.Integer(required=True)
    action = fields.Enum(Action, by_value=True, required=True)
    humidity_source = fields.Enum(HumiditySource, by_value=True, required=True)
    humidity_percent = Num(required=True, allow_none=True)
    humidity_level = fields.Integer(required=True, allow_none=True)
    store_below_percent = fields.Integer(required=True, allow_none=True)
    drying = fields.Nested(Drying, required=True, allow_none=True)
    needs_enclosure = fields.Boolean(required=True)
    advice = fields.List(fields.String(), required=True)


class FilamentAdvice(Body):
    place = fields.Nested(WeatherPlace, required=True, allow_none=True)
    outdoor = fields.Nested(OutdoorAir, required=True, allow_none=True)
    indoor = fields.Nested(IndoorAir, required=True, allow_none=True)
    ams = fields.List(fields.Nested(AmsAir), required=True)
    materials = fields.List(fields.Nested(MaterialAdvice), required=True)
    missing = fields.List(fields.String(), required=True)


class AdviceQuery(Query):
    latitude = fields.Float(
        validate=validate.Range(-90, 90), metadata={"description": "Of another place; goes with longitude"}
    )
    longitude = fields.Float(validate=validate.Range(-180, 180), metadata={"description": "Degrees east"})

    @validates_schema(skip_on_field_errors=True)
    def check_place(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if ("latitude" in data) != ("longitude" in data):
            raise ValidationError("latitude and longitude go together.", "latitude")
