"""Accounts and tokens: `/api/auth`."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import sqlalchemy as sa
from flask import Response, g, request
from marshmallow import ValidationError, fields, missing, validate, validates_schema
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from api import context
from api.fields import Body, Bool, Moment, Num, RangedNum, Text
from api.lists import json_response
from api.reading import Room
from auth import accounts, current_user
from errors import Conflict, Unauthorized
from farm.staffed import MAX_INTERVALS, WEEKDAYS, BadHours, read_hours, zone_names
from models import Shop, User, db

blueprint = Room("accounts", __name__, url_prefix="/api/auth", description="Accounts and tokens")

MAX_EMAIL = 255
COMMON_PASSWORDS = frozenset(FREQUENCY_LISTS["passwords"])
EMAIL = r"^[^@\s\x00-\x1f\x7f<>(),;:\\\x22\[\]]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$"


class ShopSchema(Body):
    id = fields.Integer(required=True)
    name = fields.String(required=True)
    etsy_shop_id = fields.String(required=True)
    currency = fields.String(required=True)


STEPS = {"latitude": Decimal("0.0001"), "longitude": Decimal("0.0001"), "indoor_temperature_c": Decimal("0.1")}
WALL_TIME = r"^[0-2][0-9]:[0-5][0-9]$"


def Day(**kwargs: Any) -> fields.List[Any]:
    """The intervals of a weekday, `["08:00", "17:30"]` each; one that ends at or before its begin ends the next day."""
    time = Text(5, 5, pattern=WALL_TIME, fault="Not a time like 08:00.")
    interval = fields.List(time, validate=validate.Length(2, 2))
    return fields.List(interval, validate=validate.Length(0, MAX_INTERVALS), **kwargs)


# When somebody is there to clear plates, by weekday in the account's time zone.
StaffedHoursSchema = Body.from_dict({day: Day(required=True) for day in WEEKDAYS}, name="StaffedHoursSchema")


class StaffedHoursChange(Body.from_dict({day: Day() for day in WEEKDAYS}, name="StaffedDays")):  # type: ignore[misc]
    """The same as it is sent: a day left out has no hours."""

    @validates_schema(skip_on_field_errors=False)
    def check_hours(self, data: dict[str, Any], **kwargs: Any) -> None:
        # A time that is none has its own fault, and has been left out here.
        whole = {day: intervals for day, intervals in data.items() if all(len(each) == 2 for each in intervals)}
        try:
            read_hours(whole)
        except BadHours as error:
            raise ValidationError(error.faults) from None


def represent_hours(user: User) -> dict[str, Any] | None:
    """An account's staffed hours, every day of the week in its place."""
    return None if user.staffed_hours is None else {day: user.staffed_hours.get(day, []) for day in WEEKDAYS}


class UserSchema(Body):
    id = fields.Integer(required=True)
    email = fields.String(required=True, allow_none=True)
    username = fields.String(required=True)
    shops = fields.List(fields.Nested(ShopSchema), required=True)
    currency = fields.String(required=True)
    timezone = fields.String(required=True)
    staffed_hours = fields.Nested(StaffedHoursSchema, required=True, allow_none=True)
    auto_schedule = fields.Boolean(required=True)
    place_name = fields.String(required=True, allow_none=True)
    latitude = Num(required=True, allow_none=True)
    longitude = Num(required=True, allow_none=True)
    indoor_temperature_c = Num(required=True, allow_none=True)
    created_at = Moment(required=True)


class SessionSchema(Body):
    token = fields.String(required=True)
    refresh_token = fields.String(required=True)
    user = fields.Nested(UserSchema, required=True)


class TokensSchema(Body):
    token = fields.String(required=True)
    refresh_token = fields.String(required=True)


def _check_password(value: str) -> None:
    if value.casefold() in COMMON_PASSWORDS:
        raise ValidationError("This password is one of the most common ones.")
    if len(set(value)) < 4:
        raise ValidationError("This password is too simple.")


def _fits_when_folded(value: str) -> None:
    """Folding case makes some letters up to three: what is stored must fit as well."""
    if len(value.casefold()) > MAX_EMAIL:
        raise ValidationError(f"Longer than maximum length {MAX_EMAIL}.")


class Registration(Body):
    email = Text(
        3, MAX_EMAIL, required=True, pattern=EMAIL, fault="Not an e-mail address.", validate=[_fits_when_folded]
    )
    password = Text(8, 1000, trim=False, required=True, load_only=True, validate=[_check_password])
    username = Text()


class Credentials(Body):
    email = Text(1, MAX_EMAIL, required=True)
    password = Text(1, 1000, trim=False, required=True, load_only=True)


class RefreshRequest(Body):
    refresh_token = Text(1, 4000, required=True, load_only=True)


def _check_zone(value: str) -> None:
    if value not in zone_names():
        raise ValidationError("Not a time zone like Europe/Berlin.")


class UserChange(Body):
    username = Text()
    currency = Text(3, 3, pattern=r"^[A-Z]{3}$", fault="Not an ISO 4217 code.")
    timezone = Text(1, 64, validate=[_check_zone], metadata={"description": "A name of the tz database"})
    staffed_hours = fields.Nested(StaffedHoursChange, allow_none=True, metadata={"description": "None: always"})
    auto_schedule = Bool(metadata={"description": "Paid, wholly mapped orders become prints after a sync"})
    place_name = Text(allow_none=True, metadata={"description": "Where the printers stand; alone, it is looked up"})
    latitude = RangedNum(-90, 90, allow_none=True, metadata={"description": "Degrees north; goes with longitude"})
    longitude = RangedNum(-180, 180, allow_none=True, metadata={"description": "Degrees east"})
    indoor_temperature_c = RangedNum(-20, 50, allow_none=True, metadata={"description": "Where the printers stand"})

    @validates_schema(skip_on_field_errors=True)
    def check_place(self, data: dict[str, Any], **kwargs: Any) -> None:
        north, east = (data.get(name, missing) for name in ("latitude", "longitude"))
        if (north is missing, north is None) != (east is missing, east is None):
            raise ValidationError("latitude and longitude go together.", "latitude")


class Message(Body):
    message = fields.String(required=True)


def _as_stored(name: str, value: Any) -> Any:
    """Degrees to about 10 metres: the answer shows what is kept."""
    step = STEPS.get(name)
    return value if step is None or value is None else value.quantize(step, ROUND_HALF_UP)


def represent_user(user: User) -> dict[str, Any]:
    shops = db.session.execute(sa.select(Shop).where(Shop.user_id == user.id).order_by(Shop.id)).scalars()
    return {
        "id": user.id,
        "email": user.email,
        "username": user.username,
        "shops": [
            {"id": shop.id, "name": shop.name, "etsy_shop_id": shop.etsy_shop_id, "currency": shop.currency}
            for shop in shops
        ],
        "currency": user.currency,
        "timezone": user.timezone,
        "staffed_hours": represent_hours(user),
        "auto_schedule": user.auto_schedule,
        "place_name": user.place_name,
        "latitude": user.latitude,
        "longitude": user.longitude,
        "indoor_temperature_c": user.indoor_temperature_c,
        "created_at": user.created_at,
    }


def open_session(user: User, status: int = 200) -> Response:
    """A fresh pair of tokens with the account, committed."""
    body = {**accounts().begin(user), "user": represent_user(user)}
    db.session.commit()
    return json_response(body, status)


@blueprint.post("/register")
@blueprint.arguments(Registration)
@blueprint.response(201, SessionSchema)
def register(data: dict[str, Any]) -> Response:
    """Open an account."""
    email = data["email"].casefold()
    if db.session.execute(sa.select(User.id).where(User.email == email)).scalar() is not None:
        raise Conflict("There is an account with this e-mail address.", code="email_taken")
    user = User(
        email=email,
        username=data.get("username") or email.partition("@")[0],
        password_hash=accounts().hash_password(data["password"]),
        created_at=context.now(),
    )
    db.session.add(user)
    db.session.flush()
    return open_session(user, 201)


@blueprint.post("/login")
@blueprint.arguments(Credentials)
@blueprint.response(200, SessionSchema)
def log_in(data: dict[str, Any]) -> Response:
    """Log in. One answer for an unknown account and a wrong password."""
    email = data["email"].casefold()
    key = (email, request.remote_addr or "")
    accounts().refuse_hammering(*key)
    user = db.session.execute(sa.select(User).where(User.email == email)).scalar_one_or_none()
    if not accounts().check_password(user, data["password"]) or user is None:
        accounts().count_failure(*key)
        raise Unauthorized("E-mail address or password is wrong.", code="wrong_credentials")
    return open_session(user)


@blueprint.post("/refresh")
@blueprint.arguments(RefreshRequest)
@blueprint.response(200, TokensSchema)
def refresh(data: dict[str, Any]) -> Response:
    """A new pair for a refresh token. One that was used before ends the whole login."""
    pair = accounts().rotate(data["refresh_token"])
    db.session.commit()
    if pair is None:
        raise Unauthorized(
            "This refresh token was used before or its login has ended. Log in again.", code="ended_login"
        )
    return json_response(pair)


@blueprint.post("/logout")
@blueprint.response(200, Message)
def log_out() -> Response:
    """End this login: its tokens are no longer good."""
    accounts().revoke(g.family_id)
    db.session.commit()
    return json_response({"message": "Logged out"})


@blueprint.get("/user")
@blueprint.response(200, UserSchema)
def get_user() -> Response:
    """The account of the token."""
    return json_response(represent_user(current_user()))


@blueprint.put("/user")
@blueprint.arguments(UserChange)
@blueprint.response(200, UserSchema)
def change_user(data: dict[str, Any]) -> Response:
    """Change the account of the token: its name, currency, time zone, when somebody is there to clear plates, and where
    the printers stand."""
    user = current_user()
    if data.get("place_name", user.place_name) != user.place_name and "latitude" not in data:
        # Those of the old place: they are looked up anew when the weather is asked for.
        data |= {"latitude": None, "longitude": None}
    for name, value in data.items():
        setattr(user, name, _as_stored(name, value))
    answer = represent_user(user)
    db.session.commit()
    return json_response(answer)
