"""The plain values of Bambu Lab's cloud: where it is, who is logged in, what it tells, and what can go wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from bambu.state import PrinterActivity

Region = Literal["global", "china"]


@dataclass(frozen=True, slots=True)
class CloudHosts:
    """`api` and `web` are base URLs; `ca_file` (PEM) replaces the public authorities for MQTT, for a cloud of ours."""

    api: str
    web: str
    mqtt_host: str
    mqtt_port: int = 8883
    ca_file: str | None = None


HOSTS: dict[Region, CloudHosts] = {
    "global": CloudHosts("https://api.bambulab.com", "https://bambulab.com", "us.mqtt.bambulab.com"),
    "china": CloudHosts("https://api.bambulab.cn", "https://bambulab.cn", "cn.mqtt.bambulab.com"),
}


class CloudError(Exception):
    """Anything that kept the cloud from giving what was asked for. `message` is for people and holds no secret."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class LoginNeeded(CloudError):
    """The token is dead, or cannot be refreshed: a person has to log in again."""


class WrongCredentials(CloudError):
    """The cloud does not take this account and password."""


class WrongCode(CloudError):
    """Not the code that was sent, or that the authenticator shows."""


class CodeExpired(CloudError):
    """The code was right once: ask for another."""


class Challenged(CloudError):
    """A page for browsers stood in the way (Cloudflare's). Says nothing of token, password or code."""


class RateLimited(CloudError):
    """Too many calls, by the cloud's count or by our own. `retry_after_seconds`: 1 to 86,400."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"Bambu Lab's cloud is asked too often: wait {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class Refused(CloudError):
    """The cloud understood and said no. `status` of HTTP; `code` is its own number for the reason, or None."""

    def __init__(self, message: str, status: int, code: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Unavailable(CloudError):
    """No usable answer: network, 5xx, or not the promised JSON. `status` is None where there was no answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class CloudSession:
    """A login. `uid`: digits, the account's number. `expires_at` is None where a pasted token does not tell it."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_at: datetime | None
    uid: str


@dataclass(frozen=True, slots=True)
class CodeNeeded:
    """The password was right; the cloud wants a code as well, which is only sent when asked for."""


@dataclass(frozen=True, slots=True)
class TotpNeeded:
    """The password was right; the cloud wants what the person's authenticator shows. Keep the key on the server."""

    tfa_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CloudPrinter:
    """A printer bound to the account. `model`: a name of bambu.models, else as the cloud calls it."""

    serial: str
    name: str | None
    model: str | None
    is_online: bool | None
    activity: PrinterActivity
    nozzle_diameter_mm: float | None
    access_code: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class CloudPrint:
    """What a printer is at by the cloud's HTTPS side: coarse, minutes late. All None while it is idle."""

    serial: str
    name: str | None
    is_online: bool | None
    activity: PrinterActivity
    print_id: str | None
    title: str | None
    progress_percent: int | None
    estimated_seconds: int | None
    started_at: datetime | None


@dataclass(frozen=True, slots=True)
class CloudFilament:
    """One filament of a past print: where it was fed from, what it was, and the slicer's grams of it."""

    ams_id: int | None
    slot_id: int | None
    filament_id: str | None
    material: str | None
    color: str | None
    weight_grams: float | None


@dataclass(frozen=True, slots=True)
class PastPrint:
    """A print of the account's history. `weight_grams` and `estimated_seconds` are the slicer's, also where the print
    was stopped half-way; how long it really took is `ended_at - started_at`. A stopped print counts as failed."""

    print_id: str
    title: str | None
    serial: str | None
    printer_name: str | None
    model: str | None
    activity: PrinterActivity
    started_at: datetime | None
    ended_at: datetime | None
    estimated_seconds: int | None
    weight_grams: float | None
    plate: int | None
    filaments: tuple[CloudFilament, ...]


@dataclass(frozen=True, slots=True)
class CloudHistory:
    """One page, newest first. `total`: of all pages. The next page begins `after` the last print's id."""

    total: int | None
    prints: tuple[PastPrint, ...]


@dataclass(frozen=True, slots=True)
class CloudFirmware:
    """A firmware that the cloud offers for a printer."""

    version: str
    is_forced: bool
    is_beta: bool
