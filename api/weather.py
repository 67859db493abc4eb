"""What the air does to the filament: `/api/weather`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from flask import Response

from api import context
from api.lists import json_response
from api.reading import Room as Blueprint
from api.weather_schemas import AdviceQuery, FilamentAdvice
from auth import current_user, current_user_id, mine
from bambu.models import model_of_name, model_of_serial
from farm.filament import LoadedSpool, place_name
from farm.filament_advice import (
    READING_GOOD_FOR,
    Action,
    Advice,
    AmsReading,
    LoadedMaterial,
    Room,
    advise,
    assumed_room_temperature,
    indoor_humidity,
)
from models import BambuMaterial, Printer, PrinterConnection, User, db
from weather import FoundPlace, Observation, Outlook, PlaceUnknown, WeatherError

blueprint = Blueprint("weather", __name__, url_prefix="/api/weather", description="Drying and storing filament")

# The licence of the data asks for it.
ATTRIBUTION = "Weather data provided by OpenWeather (https://openweathermap.org/)"
NO_KEY = "No OPENWEATHER_API_KEY is set on this installation: the weather outside is not known."
NO_PLACE = "Where your printers stand is not known: send place_name, or latitude and longitude, to PUT /api/auth/user."
URGENCY = {action: rank for rank, action in enumerate(Action)}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A place as far as it is known before OpenWeatherMap is asked."""

    name: str | None
    coordinates: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class _Heard:
    """What was found out; `found`: a name's coordinates that were not known before."""

    place: _Asked
    observation: Observation | None
    missing: list[str]
    found: FoundPlace | None = None


@blueprint.get("/filament-advice")
@blueprint.arguments(AdviceQuery, location="query")
@blueprint.response(200, FilamentAdvice)
def get_filament_advice(args: dict[str, Any]) -> Response:
    """What to do about each loaded spool: dry it, store it sealed, use an enclosure. By what the AMS reports, else by
    the weather outside."""
    user = current_user()
    room_c = None if user.indoor_temperature_c is None else float(user.indoor_temperature_c)
    asked = _asked(user, args)
    # The weather is asked for outside of any transaction.
    db.session.rollback()
    heard = _look(asked)
    at = context.now()
    indoor = _indoor(heard.observation, room_c)
    room = Room(
        humidity_percent=indoor["humidity_percent"] if indoor else None,
        temperature_c=room_c,
        outdoor_c=heard.observation.temperature_c if heard.observation else None,
    )
    printers = {row.id: row for row in db.session.execute(mine(Printer, Printer.id, Printer.name, Printer.model))}
    connections = db.session.execute(
        mine(
            PrinterConnection,
            *(PrinterConnection.printer_id, PrinterConnection.serial_number),
            *(PrinterConnection.snapshot, PrinterConnection.heard_at),
        )
        .where(PrinterConnection.printer_id.in_(list(printers)))
        .order_by(PrinterConnection.printer_id)
    ).all()
    readings = [reading for row in connections for reading in _readings(row)]
    materials = [
        material
        for material in db.session.execute(
            mine(BambuMaterial)
            .where(BambuMaterial.removed_at.is_(None))
            .order_by(BambuMaterial.printer_id, BambuMaterial.ams_id, BambuMaterial.tray_id)
        ).scalars()
        if material.printer_id in printers
    ]
    serials = {row.printer_id: row.serial_number for row in connections}
    loaded = [_loaded(each, printers[each.printer_id].model, serials.get(each.printer_id)) for each in materials]
    advised = zip(materials, advise(loaded, readings, room, at), strict=True)
    names = {printer_id: row.name for printer_id, row in printers.items()}
    missing = [*heard.missing, *_missing_inside(readings, names, bool(materials), at)]
    if indoor is not None and indoor["temperature_is_assumed"]:
        missing.append(
            f"The room is taken to have {indoor['temperature_c']:g} °C: "
            "send indoor_temperature_c to PUT /api/auth/user."
        )
    answer = {
        "place": _represent_place(heard.place),
        "outdoor": _represent_outdoor(heard.observation, at),
        "indoor": indoor,
        "ams": [_represent_reading(each, names) for each in readings],
        "materials": sorted(
            (_represent(material, advice, names) for material, advice in advised),
            key=lambda each: URGENCY[each["action"]],
        ),
        "missing": missing,
    }
    if heard.found is not None:
        _keep(heard.found, asked.name)
    db.session.commit()
    return json_response(answer)


def _asked(user: User, args: Mapping[str, Any]) -> _Asked:
    if "latitude" in args:
        return _Asked(None, (args["latitude"], args["longitude"]))
    if user.latitude is not None and user.longitude is not None:
        return _Asked(user.place_name, (float(user.latitude), float(user.longitude)))
    return _Asked(user.place_name, None)


def _look(asked: _Asked) -> _Heard:
    """The weather there, and in sentences what keeps it from being known. Whatever OpenWeatherMap does is no fault of
    the request."""
    weather = context.parts().weather
    lacking = [] if weather is not None else [NO_KEY]
    if asked.coordinates is None and asked.name is None:
        return _Heard(asked, None, [*lacking, NO_PLACE])
    if weather is None:
        return _Heard(asked, None, lacking)
    found = None
    if asked.coordinates is None and asked.name is not None:
        try:
            found = weather.find(asked.name)
        except PlaceUnknown:
            return _Heard(asked, None, [f"OpenWeatherMap knows no place called {asked.name}: send its coordinates."])
        except WeatherError as fault:
            return _Heard(asked, None, [f"Where {asked.name} is cannot be looked up: {fault.message}."])
        asked = _Asked(found.name, (found.latitude, found.longitude))
    outlook = weather.at(*asked.coordinates) if asked.coordinates is not None else Outlook(None)
    return _Heard(asked, outlook.observation, [outlook.problem] if outlook.problem else [], found)


def _keep(found: FoundPlace, asked_name: str | None) -> None:
    """Looked up once. Nothing is kept where the account was changed while OpenWeatherMap was asked."""
    db.session.execute(
        sa.update(User)
        .where(User.id == current_user_id(), User.place_name == asked_name, User.latitude.is_(None))
        .values(
            place_name=found.name[:255],
            latitude=Decimal(str(found.latitude)),
            longitude=Decimal(str(found.longitude)),
        )
        .execution_options(synchronize_session=False)
    )


def _indoor(observation: Observation | None, room_c: float | None) -> dict[str, Any] | None:
    if observation is None:
        if room_c is None:
            return None
        return {"temperature_c": room_c, "temperature_is_assumed": False, "humidity_percent": None}
    inside = assumed_room_temperature(observation.temperature_c) if room_c is None else room_c
    percent = indoor_humidity(observation.humidity_percent, observation.temperature_c, inside)
    return {
        "temperature_c": inside,
        "temperature_is_assumed": room_c is None,
        "humidity_percent": round(percent, 1),
    }


def _readings(row: sa.Row[Any]) -> Iterable[AmsReading]:
    """What a printer's last report says of its AMS."""
    if row.heard_at is None:
        return ()
    return [
        AmsReading(
            printer_id=row.printer_id,
            ams_id=unit["ams_id"],
            kind=unit["kind"],
            humidity_percent=unit["humidity_percent"],
            humidity_level=unit["humidity_level"],
            temperature_c=unit["temperature_c"],
            drying_minutes=unit["drying_minutes"],
            heard_at=row.heard_at,
        )
        for unit in (row.snapshot or {}).get("ams") or ()
    ]


def _loaded(material: BambuMaterial, model: str | None, serial: str | None) -> LoadedMaterial:
    known = model_of_name(model or "") or model_of_serial(serial or "")
    spool = LoadedSpool(
        material.id, material.ams_id, material.tray_id, material.slot, material.material_type, material.color, None
    )
    return LoadedMaterial(
        material_id=material.id,
        printer_id=material.printer_id,
        ams_id=material.ams_id,
        tray_id=material.tray_id,
        place=place_name(spool),
        material_type=material.material_type,
        loaded_at=material.loaded_at,
        printer_model=known.name if known else None,
    )


def _missing_inside(
    readings: Iterable[AmsReading], names: Mapping[int, str], has_materials: bool, at: datetime
) -> list[str]:
    found, tells = [], False
    for each in readings:
        if at - each.heard_at >= READING_GOOD_FOR:
            found.append(
                f"{names[each.printer_id]} was last heard at {each.heard_at:%Y-%m-%d %H:%M} UTC: what its AMS reported "
                "then does not count any more."
            )
        elif not each.tells_humidity:
            found.append(f"An {each.kind or 'AMS'} of {names[each.printer_id]} (AMS {each.ams_id}) tells no humidity.")
        else:
            tells = True
    if has_materials and not tells and not found:
        found.append("No AMS of yours has reported how humid it is.")
    return list(dict.fromkeys(found))


def _represent_place(place: _Asked) -> dict[str, Any] | None:
    if place.coordinates is None:
        return None
    return {"name": place.name, "latitude": place.coordinates[0], "longitude": place.coordinates[1]}


def _represent_outdoor(observation: Observation | None, at: datetime) -> dict[str, Any] | None:
    if observation is None:
        return None
    return {
        "temperature_c": round(observation.temperature_c, 1),
        "humidity_percent": round(observation.humidity_percent, 1),
        "measured_at": observation.measured_at,
        "age_minutes": max(0, int((at - observation.measured_at).total_seconds() // 60)),
        "attribution": ATTRIBUTION,
    }


def _represent_reading(reading: AmsReading, names: Mapping[int, str]) -> dict[str, Any]:
    return {
        "printer_id": reading.printer_id,
        "printer_name": names[reading.printer_id],
        "ams_id": reading.ams_id,
        "kind": reading.kind,
        "humidity_percent": reading.humidity_percent,
        "humidity_level": reading.humidity_level,
        "temperature_c": reading.temperature_c,
        "drying_minutes": reading.drying_minutes,
        "heard_at": reading.heard_at,
    }


def _represent(material: BambuMaterial, advice: Advice, names: Mapping[int, str]) -> dict[str, Any]:
    family = advice.family
    return {
        "material_id": material.id,
        "printer_id": material.printer_id,
        "printer_name": names[material.printer_id],
        "slot": material.slot,
        "ams_id": material.ams_id,
        "tray_id": material.tray_id,
        "material_type": material.material_type,
        "color": material.color,
        "loaded_at": material.loaded_at,
        "loaded_days": advice.loaded_days,
        "action": advice.action,
        "humidity_source": advice.source,
        "humidity_percent": advice.humidity_percent,
        "humidity_level": advice.humidity_level,
        "store_below_percent": family.store_below_percent if family else None,
        "drying": {
            "temperature_c": family.drying_c,
            "hours": family.drying_hours,
            "softens_at_c": family.softens_c,
        }
        if family
        else None,
        "needs_enclosure": advice.needs_enclosure,
        "advice": list(advice.sentences),
    }
