"""The shapes of logins to Bambu Lab's cloud, and of what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from api.fields import Body, Moment, Num, Text, Word
from api.lists import Query, QueryInt
from bambu_cloud import HISTORY_PAGE, LONGEST_HISTORY_PAGE
from models import CloudLoginState, CloudRegion

SERIAL_PATTERN = r"^[A-Za-z0-9]{1,40}$"
PRINT_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"


class CloudAccountSchema(Body):
    id = fields.Integer(required=True)
    region = fields.Enum(CloudRegion, by_value=True, required=True)
    account = fields.String(required=True)
    uid = fields.String(required=True, allow_none=True)
    state = fields.Enum(CloudLoginState, by_value=True, required=True)
    state_reason = fields.String(required=True, allow_none=True)
    token_expires_at = Moment(required=True, allow_none=True)
    created_at = Moment(required=True)
    updated_at = Moment(required=True)


class CloudAccountsSchema(Body):
    cloud_accounts = fields.List(fields.Nested(CloudAccountSchema), required=True)
    total = fields.Integer(required=True)


class NewCloudLogin(Body):
    region = Word(CloudRegion, load_default=CloudRegion.world)
    account = Text(1, 255)
    password = Text(1, 1000, trim=False, load_only=True)
    token = Text(1, 4000, load_only=True)

    @validates_schema(skip_on_field_errors=True)
    def _is_one_way_in(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        missing = [name for name in ("account", "password") if name not in data]
        if "token" in data:
            if len(missing) < 2:
                raise ValidationError({"token": ["Send either a token, or account and password."]})
        elif missing:
            raise ValidationError({name: ["Needed, unless a token is sent."] for name in missing})


class CloudCode(Body):
    code = Text(1, 64, required=True, load_only=True)


class CloudPrinterSchema(Body):
    serial_number = fields.String(required=True)
    name = fields.String(required=True, allow_none=True)
    model = fields.String(required=True, allow_none=True)
    is_online = fields.Boolean(required=True, allow_none=True)
    state = fields.String(required=True)
    nozzle_diameter_mm = Num(required=True, allow_none=True)
    printer_id = fields.Integer(required=True, allow_none=True)


class CloudPrintersSchema(Body):
    printers = fields.List(fields.Nested(CloudPrinterSchema), required=True)
    total = fields.Integer(required=True)


class CloudLiveSchema(Body):
    serial_number = fields.String(required=True)
    name = fields.String(required=True, allow_none=True)
    is_online = fields.Boolean(required=True, allow_none=True)
    state = fields.String(required=True)
    title = fields.String(required=True, allow_none=True)
    progress_percent = fields.Integer(required=True, allow_none=True)
    estimated_seconds = fields.Integer(required=True, allow_none=True)
    started_at = Moment(required=True, allow_none=True)
    printer_id = fields.Integer(required=True, allow_none=True)


class CloudLivesSchema(Body):
    printers = fields.List(fields.Nested(CloudLiveSchema), required=True)
    total = fields.Integer(required=True)


class CloudFilamentSchema(Body):
    ams_id = fields.Integer(required=True, allow_none=True)
    tray_id = fields.Integer(required=True, allow_none=True)
    material_type = fields.String(required=True, allow_none=True)
    color = fields.String(required=True, allow_none=True)
    weight_grams = Num(required=True, allow_none=True)


class PastPrintSchema(Body):
    cloud_print_id = fields.String(required=True)
    title = fields.String(required=True, allow_none=True)
    serial_number = fields.String(required=True, allow_none=True)
    printer_name = fields.String(required=True, allow_none=True)
    printer_id = fields.Integer(required=True, allow_none=True)
    model = fields.String(required=True, allow_none=True)
    state = fields.String(required=True)
    started_at = Moment(required=True, allow_none=True)
    ended_at = Moment(required=True, allow_none=True)
    estimated_seconds = fields.Integer(required=True, allow_none=True)
    weight_grams = Num(required=True, allow_none=True)
    plate = fields.Integer(required=True, allow_none=True)
    filaments = fields.List(fields.Nested(CloudFilamentSchema), required=True)


class CloudHistorySchema(Body):
    prints = fields.List(fields.Nested(PastPrintSchema), required=True)
    total = fields.Integer(required=True, allow_none=True)


class HistoryQuery(Query):
    printer_serial = Text(1, 40, pattern=SERIAL_PATTERN, fault="A serial number is letters and digits.")
    after = Text(1, 64, pattern=PRINT_PATTERN, fault="Not the id of a print in the cloud.")
    limit = QueryInt(load_default=HISTORY_PAGE, validate=validate.Range(1, LONGEST_HISTORY_PAGE))
