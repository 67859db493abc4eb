"""What a person makes a printer do, apart from its prints: speed, light, errors, filament. `/api/printers/<id>/…`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from flask import Response
from marshmallow import ValidationError, fields, post_load, validates_schema

from api import printer_commands
from api.fields import Body, Bool, Ranged, Text, Word
from api.lists import json_response
from api.materials import check_place
from api.reading import Room
from auth import get_mine
from bambu_client import generic_profile, is_place
from models import CommandKind, Printer, place_of

blueprint = Room("printer actions", __name__, url_prefix="/api/printers", description="What a printer is told to do")

COLOR_PATTERN = r"^#([0-9A-Fa-f]{6}|[0-9A-Fa-f]{8})$"
CODE_PATTERN = r"^[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}$"


class Speed(StrEnum):
    """From slowest to fastest, as the printer numbers them from 1."""

    silent = "silent"
    standard = "standard"
    sport = "sport"
    ludicrous = "ludicrous"


class ConfirmedBy(StrEnum):
    report = "report"
    ack = "ack"


MESSAGES = {
    ConfirmedBy.report: "Done: the printer reports it.",
    ConfirmedBy.ack: "The printer accepted. No report of its has shown it yet.",
}


class NewSpeed(Body):
    level = Word(Speed, required=True)


class NewLight(Body):
    on = Bool(required=True)


class ClearedError(Body):
    code = Text(
        1,
        9,
        pattern=CODE_PATTERN,
        fault="A code is like 0300-8003, of two groups.",
        required=True,
        metadata={"description": "The error that was seen, as in the printer's status"},
    )


class Place(Body):
    slot = Ranged(0, 7, metadata={"description": "Either this, or ams_id and tray_id"})
    ams_id = Ranged(0, 255, metadata={"description": "External spool: 255, of the left one of two nozzles 254"})
    tray_id = Ranged(0, 255, metadata={"description": "External spool: 0"})

    @validates_schema(skip_on_field_errors=False)
    def _names_one_place(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        check_place(data, required=True)
        if isinstance(data.get("ams_id"), int) and not is_place((data["ams_id"], data["tray_id"])):
            raise ValidationError("No printer has such a place.", "ams_id")

    @post_load
    def _as_place(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        slot, ams_id, tray_id = (data.pop(name, None) for name in ("slot", "ams_id", "tray_id"))
        data["place"] = list(place_of(slot)) if slot is not None else [ams_id, tray_id]
        return data


class FilamentLoad(Place):
    nozzle_temp = Ranged(150, 320, required=True, metadata={"description": "°C"})


class FilamentUnload(Body):
    nozzle_temp = Ranged(150, 320, required=True, metadata={"description": "°C, for the filament in the nozzle"})


class FilamentSettings(Place):
    material_type = Text(
        1, 16, pattern=r"^[A-Za-z0-9+-]{1,16}$", fault="Letters, digits, + and - only, as in PLA-CF.", required=True
    )
    color = Text(7, 9, pattern=COLOR_PATTERN, fault="A colour is #RRGGBB or #RRGGBBAA.", required=True)
    nozzle_temp_min = Ranged(0, 400, required=True, metadata={"description": "°C"})
    nozzle_temp_max = Ranged(0, 400, required=True, metadata={"description": "°C"})
    vendor_profile = Text(
        1,
        16,
        pattern=r"^[A-Za-z0-9]{1,16}$",
        fault="Letters and digits only, as in GFL99.",
        metadata={"description": "The printer's id of the filament; else the generic one of the material"},
    )

    @validates_schema(skip_on_field_errors=False)
    def _fits_together(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        faults = {}
        if data.get("nozzle_temp_min", 0) > data.get("nozzle_temp_max", 400):
            faults["nozzle_temp_max"] = ["Below nozzle_temp_min."]
        material = data.get("material_type")
        if material is not None and "vendor_profile" not in data and generic_profile(material) is None:
            faults["vendor_profile"] = [f"There is no generic profile of {material}: name one."]
        if faults:
            raise ValidationError(faults)


class Told(Body):
    printer_id = fields.Integer(required=True)
    confirmed_by = fields.Enum(ConfirmedBy, by_value=True, required=True)
    message = fields.String(required=True)
    state = fields.String(required=True, metadata={"description": "As in PrinterStatus"})


def _tell(printer_id: int, kind: CommandKind, arguments: dict[str, Any]) -> Response:
    # Read for update: of two requests at once the second one has to see the first.
    confirmed_by = ConfirmedBy(printer_commands.order(get_mine(Printer, printer_id, for_update=True), kind, arguments))
    connection = get_mine(Printer, printer_id).connection
    snapshot = (connection.snapshot if connection is not None else None) or {}
    return json_response(
        {
            "printer_id": printer_id,
            "confirmed_by": confirmed_by,
            "message": MESSAGES[confirmed_by],
            "state": snapshot.get("state") or "unknown",
        }
    )


@blueprint.post("/<id:printer_id>/speed")
@blueprint.arguments(NewSpeed)
@blueprint.response(200, Told)
def set_speed(data: dict[str, Any], printer_id: int) -> Response:
    """How fast the printer prints what it is printing."""
    return _tell(printer_id, CommandKind.speed, {"level": list(Speed).index(data["level"]) + 1})


@blueprint.post("/<id:printer_id>/light")
@blueprint.arguments(NewLight)
@blueprint.response(200, Told)
def switch_light(data: dict[str, Any], printer_id: int) -> Response:
    """Switch the light in the printer on or off."""
    return _tell(printer_id, CommandKind.light, {"on": data["on"]})


@blueprint.post("/<id:printer_id>/clear-error")
@blueprint.arguments(ClearedError)
@blueprint.response(200, Told)
def clear_error(data: dict[str, Any], printer_id: int) -> Response:
    """Take an error off the printer's screen. Names it, so that a late click cannot clear the next one."""
    return _tell(printer_id, CommandKind.clear_error, {"code": data["code"].upper()})


@blueprint.post("/<id:printer_id>/load-filament")
@blueprint.arguments(FilamentLoad)
@blueprint.response(200, Told)
def load_filament(data: dict[str, Any], printer_id: int) -> Response:
    """Feed filament from a place into the nozzle. While the printer prints it is 409."""
    return _tell(printer_id, CommandKind.change_filament, data)


@blueprint.post("/<id:printer_id>/unload-filament")
@blueprint.arguments(FilamentUnload)
@blueprint.response(200, Told)
def unload_filament(data: dict[str, Any], printer_id: int) -> Response:
    """Draw the filament back out of the nozzle. While the printer prints it is 409."""
    return _tell(printer_id, CommandKind.change_filament, {"place": None, **data})


@blueprint.post("/<id:printer_id>/filament")
@blueprint.arguments(FilamentSettings)
@blueprint.response(200, Told)
def set_filament(data: dict[str, Any], printer_id: int) -> Response:
    """Tell the printer what is in a place. Our own record of spools (`/api/bambu/materials`) stays as it is."""
    material = data["material_type"].upper()
    arguments = {
        **data,
        "material_type": material,
        # As printers report it, so that their report can be compared.
        "color": data["color"].upper().ljust(9, "F"),
        "vendor_profile": data.get("vendor_profile") or generic_profile(material),
    }
    return _tell(printer_id, CommandKind.set_filament, arguments)
