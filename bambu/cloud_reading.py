"""What Bambu Lab's cloud answers over HTTPS, read into plain values. Pure; the wire's words stop here.

An answer is hostile text: a value of the wrong kind is left out (None), an entry without an identity is skipped, and
only an answer that is not of the promised shape at all raises Unavailable. Nothing else is ever raised.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import bambu.values as values
from bambu.cloud_types import (
    CloudFilament,
    CloudFirmware,
    CloudHistory,
    CloudPrint,
    CloudPrinter,
    PastPrint,
    Unavailable,
)
from bambu.models import model_of_code, model_of_name, model_of_serial
from bambu.state import PrinterActivity
from bambu.values import Unreadable

T = TypeVar("T")

TOKEN = re.compile(r"[\x21-\x7e]{1,4000}")
COOKIE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]{1,4000}")  # RFC 6265: no blank, comma, semicolon...
SERIAL = re.compile(r"[A-Za-z0-9]{1,40}")
MAX_ENTRIES = 1000
_UID = re.compile(r"(?:u_)?([1-9][0-9]{0,19})")
_ACCESS_CODE = re.compile(r"[\x21-\x7e]{1,64}")
_EPOCH = re.compile(r"[0-9]{10}(?:[0-9]{3})?")
_EARLIEST, _LATEST = datetime(2015, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)

_ACTIVITIES = {
    "IDLE": PrinterActivity.idle,
    "PREPARE": PrinterActivity.preparing,
    "SLICING": PrinterActivity.preparing,
    "RUNNING": PrinterActivity.printing,
    "PAUSE": PrinterActivity.paused,
    "SUCCESS": PrinterActivity.finished,
    "FINISH": PrinterActivity.finished,
    "FAIL": PrinterActivity.failed,
    "FAILED": PrinterActivity.failed,
}
_PAST = {
    1: PrinterActivity.printing,
    2: PrinterActivity.finished,
    3: PrinterActivity.failed,
    4: PrinterActivity.printing,
}


def read_printers(body: Mapping[str, Any]) -> tuple[CloudPrinter, ...]:
    """Of `GET …/user/bind`."""
    found = {}
    for entry in _entries(body, "devices"):
        serial = _maybe(_serial, entry.get("dev_id"))
        if serial is not None:
            found[serial] = CloudPrinter(
                serial=serial,
                name=_text(entry.get("name")),
                model=_model(entry, serial),
                is_online=_maybe(values.switch, entry.get("online")),
                activity=_activity(entry.get("print_status")),
                nozzle_diameter_mm=_maybe(values.diameter_mm, entry.get("nozzle_diameter")),
                access_code=_maybe(_access_code, entry.get("dev_access_code")),
            )
    return tuple(found.values())


def read_live(body: Mapping[str, Any]) -> tuple[CloudPrint, ...]:
    """Of `GET …/user/print`."""
    found = {}
    for entry in _entries(body, "devices"):
        serial = _maybe(_serial, entry.get("dev_id"))
        if serial is not None:
            found[serial] = CloudPrint(
                serial=serial,
                name=_text(entry.get("dev_name")),
                is_online=_maybe(values.switch, entry.get("dev_online")),
                activity=_activity(entry.get("task_status")),
                print_id=_identifier(entry.get("task_id")),
                title=_text(entry.get("task_name")),
                progress_percent=_maybe(values.percent, entry.get("progress")),
                estimated_seconds=_maybe(values.count, entry.get("prediction")),
                started_at=_maybe(_moment, entry.get("start_time")),
            )
    return tuple(found.values())


def read_history(body: Mapping[str, Any]) -> CloudHistory:
    """Of `GET …/my/tasks`."""
    prints = [_past_print(entry) for entry in _entries(body, "hits")]
    return CloudHistory(_maybe(values.count, body.get("total")), tuple(one for one in prints if one is not None))


def _past_print(entry: Mapping[str, Any]) -> PastPrint | None:
    print_id = _identifier(entry.get("id"))
    if print_id is None:
        return None
    serial = _maybe(_serial, entry.get("deviceId"))
    used = entry.get("amsDetailMapping")
    filaments = used[:64] if isinstance(used, list) else []
    return PastPrint(
        print_id=print_id,
        title=_text(entry.get("title")),
        serial=serial,
        printer_name=_text(entry.get("deviceName")),
        model=_named_model(entry.get("deviceModel")) or _text(entry.get("deviceModel")),
        activity=_PAST.get(_maybe(values.count, entry.get("status")) or 0, PrinterActivity.unknown),
        started_at=_maybe(_moment, entry.get("startTime")),
        ended_at=_maybe(_moment, entry.get("endTime")),
        estimated_seconds=_maybe(values.count, entry.get("costTime")),
        weight_grams=_maybe(_grams, entry.get("weight")),
        plate=_maybe(values.count, entry.get("plateIndex")),
        filaments=tuple(_filament(one) for one in filaments if isinstance(one, dict)),
    )


def _filament(entry: Mapping[str, Any]) -> CloudFilament:
    return CloudFilament(
        ams_id=_maybe(values.count, entry.get("amsId")),
        slot_id=_maybe(values.count, entry.get("slotId")),
        filament_id=_text(entry.get("filamentId")),
        material=_text(entry.get("filamentType")),
        color=_maybe(values.color, entry.get("sourceColor")) or None,
        weight_grams=_maybe(_grams, entry.get("weight")),
    )


def read_firmware(body: Mapping[str, Any], serial: str) -> tuple[CloudFirmware, ...]:
    """Of `GET …/device/version`: what is offered for this printer, as the cloud orders it."""
    entry = next((one for one in _entries(body, "devices") if one.get("dev_id") == serial), {})
    offered = entry.get("firmware")
    found = []
    for one in offered[:MAX_ENTRIES] if isinstance(offered, list) else []:
        version = _text(one.get("version")) if isinstance(one, dict) else None
        if version is not None:
            found.append(CloudFirmware(version, one.get("force_update") is True, one.get("status") == "beta"))
    return tuple(found)


def read_uid(given: object) -> str | None:
    """The digits of an account's number: `123`, "123" or "u_123"."""
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given) if 0 < given < 10**20 else None
    match = _UID.fullmatch(given) if isinstance(given, str) else None
    return match[1] if match else None


def read_claims(token: str) -> tuple[str | None, datetime | None]:
    """(uid, expiry) that an older token, a JWT, tells of itself; (None, None) of an opaque one.

    The signature is not checked, nor need it be: only the cloud, to which both go back, acts on them.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None, None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(claims, dict):
        return None, None
    uid = read_uid(claims.get("username")) or read_uid(claims.get("preferred_username"))
    return uid, _maybe(_moment, claims.get("exp"))


def read_token(given: object) -> str | None:
    """A token that may be put into a header."""
    return given if isinstance(given, str) and TOKEN.fullmatch(given) else None


def is_cookie(name: str, value: str) -> bool:
    """Whether a cookie can go back as it came."""
    return COOKIE.fullmatch(name) is not None and COOKIE.fullmatch(value) is not None


def reason(body: Mapping[str, Any], hidden: Iterable[str]) -> str:
    """The cloud's own words for a refusal, made safe to show and without any of `hidden`."""
    for key in ("error", "message", "reason"):
        given = body.get(key)
        said = "".join(part for part in given[:10_000] if part.isprintable()) if isinstance(given, str) else ""
        for secret in hidden:
            if len(secret) >= 4:
                said = said.replace(secret, "[hidden]")
        said = said[: values.TEXT_LIMIT].strip()  # after hiding, or the cut could leave half a secret
        if said:
            return said
    return "no reason given"


def _entries(body: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    listed = body.get(key, "missing")
    if listed is None:  # Go's way to write an empty list
        return iter(())
    if not isinstance(listed, list):
        raise Unavailable("the answer of Bambu Lab's cloud is not of the expected form")
    return (entry for entry in listed[:MAX_ENTRIES] if isinstance(entry, dict))


def _maybe(reader: Callable[[object], T], given: object) -> T | None:
    try:
        return reader(given)
    except Unreadable:
        return None


def _text(given: object) -> str | None:
    return _maybe(values.text, given) or None


def _identifier(given: object) -> str | None:
    return _maybe(values.identifier, given) or None


def _serial(given: object) -> str:
    if isinstance(given, str) and SERIAL.fullmatch(given):
        return given
    raise Unreadable


def _access_code(given: object) -> str:
    # The cloud has been seen to send a line feed behind it.
    if isinstance(given, str) and _ACCESS_CODE.fullmatch(given.strip()):
        return given.strip()
    raise Unreadable


def _activity(given: object) -> PrinterActivity:
    return _ACTIVITIES.get((_text(given) or "").upper(), PrinterActivity.unknown)


def _named_model(given: object) -> str | None:
    name = _text(given)
    model = (model_of_code(name) or model_of_name(name)) if name else None
    return model.name if model else None


def _model(entry: Mapping[str, Any], serial: str) -> str | None:
    """A list names a model by its code or by its marketing name, one field or the other."""
    known = _named_model(entry.get("dev_product_name")) or _named_model(entry.get("dev_model_name"))
    by_serial = model_of_serial(serial)
    return known or (by_serial.name if by_serial else _text(entry.get("dev_product_name")))


def _grams(given: object) -> float:
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= 1e6:
        return float(given)
    raise Unreadable


def _moment(given: object) -> datetime:
    """ISO 8601, or seconds or milliseconds since 1970; a time without a zone is UTC."""
    text = str(given) if isinstance(given, int) and 0 < given < 10**13 else given
    if not isinstance(text, str) or len(text) > 40:
        raise Unreadable
    try:
        if _EPOCH.fullmatch(text):
            moment = datetime.fromtimestamp(int(text[:10]), UTC)
        else:
            moment = datetime.fromisoformat(text)
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Unreadable from None
    if not _EARLIEST <= moment < _LATEST:  # year 1 is Go's way to write no time at all
        raise Unreadable
    return moment
