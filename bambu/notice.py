"""One SSDP datagram of a Bambu Lab printer -> who it is and where. Pure; every byte of it may be anybody's invention.

Printers broadcast a NOTIFY to UDP port 2021 every few seconds, shaped like HTTP headers: `Location` is a bare IPv4
address, `USN` the serial number, `DevModel.bambu.com` and its like the rest. Answers to M-SEARCH say the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

import bambu.values as values
from bambu.models import model_of_code, model_of_serial

SERVICE = "urn:bambulab-com:device:3dprinter:1"
DATAGRAM_LIMIT_BYTES = 2048
_HEADERS_LIMIT = 40
_NAME_LIMIT = 64
_LIFE = timedelta(seconds=1800)
_LEAST_LIFE = timedelta(seconds=15)

_NOTICE = re.compile(r"NOTIFY \* HTTP/1\.[01]")
_ANSWER = re.compile(r"HTTP/1\.[01] 200 .{0,20}")
_SERIAL = re.compile(r"[0-9A-Z]{8,20}")
_FIRMWARE = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){1,4}")
_MAX_AGE = re.compile(r"max-age ?= ?([0-9]{1,9})")
# A printer's own address in somebody else's datagram, as programs that carry announcements into other networks send it.
_HOME_NETWORKS = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))


class ConnectMode(StrEnum):
    """How a printer is set up, not whether it can be reached: `cloud` printers can be watched over the LAN too."""

    lan = "lan"
    cloud = "cloud"


@dataclass(frozen=True, slots=True)
class FoundPrinter:
    """A printer that announced itself. Nothing here is proven: only its certificate says who it is.

    `model` is a name of bambu.models, `is_bound` whether it belongs to a cloud account, `signal_dbm` that of its Wi-Fi.
    What a printer did not say, or not readably, is None; without a name it goes by its serial number. Two are equal
    when they say the same; the signal and the times do not count.
    """

    serial: str
    host: str
    model: str | None
    name: str
    connect_mode: ConnectMode | None
    is_bound: bool | None
    firmware: str | None
    signal_dbm: int | None = field(compare=False)
    heard_at: datetime = field(compare=False)
    forget_at: datetime = field(compare=False)


def read_notice(datagram: bytes, source: str, heard_at: datetime) -> FoundPrinter | None:
    """The printer a datagram speaks of, or None if it is not about one; never raises.

    `source` is the IPv4 address it came from. The address announced must be that one or one of a home network.
    """
    headers = _headers(datagram)
    if headers is None:
        return None
    serial = headers.get("usn", "")
    host = _host(headers.get("location", ""), source)
    if not _SERIAL.fullmatch(serial) or host is None:
        return None
    model = model_of_code(headers.get("devmodel.bambu.com", "")) or model_of_serial(serial)
    firmware = headers.get("devversion.bambu.com", "")
    return FoundPrinter(
        serial=serial,
        host=host,
        model=model.name if model is not None else None,
        name=_name(headers.get("devname.bambu.com", "")) or serial,
        connect_mode=_CONNECT_MODES.get(headers.get("devconnect.bambu.com", "").lower()),
        is_bound=_BOUND.get(headers.get("devbind.bambu.com", "").lower()),
        firmware=firmware if _FIRMWARE.fullmatch(firmware) else None,
        signal_dbm=_signal(headers.get("devsignal.bambu.com", "")),
        heard_at=heard_at,
        forget_at=heard_at + _life(headers.get("cache-control", "")),
    )


_CONNECT_MODES: dict[str, ConnectMode] = {mode.value: mode for mode in ConnectMode}
_BOUND = {"free": False, "occupied": True}


def _headers(datagram: bytes) -> dict[str, str] | None:
    """By name in lower case, the first of each, of a notice or an answer about a printer that is there."""
    if len(datagram) > DATAGRAM_LIMIT_BYTES:
        return None
    first_line, *lines = datagram.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    if len(lines) > _HEADERS_LIMIT:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    if _NOTICE.fullmatch(first_line.rstrip()):
        # Older firmware leaves NTS out.
        speaks = headers.get("nt") == SERVICE and headers.get("nts", "ssdp:alive").lower() == "ssdp:alive"
    else:
        speaks = _ANSWER.fullmatch(first_line.rstrip()) is not None and headers.get("st") == SERVICE
    return headers if speaks else None


def _host(location: str, source: str) -> str | None:
    try:
        address = IPv4Address(location)
    except ValueError:
        return None
    if address.is_unspecified or address.is_multicast or address.is_reserved:
        return None
    if location != source and not any(address in network for network in _HOME_NETWORKS):
        return None
    return str(address)


def _name(given: str) -> str:
    return values.text(given.replace("\N{REPLACEMENT CHARACTER}", ""))[:_NAME_LIMIT].strip()


def _signal(given: str) -> int | None:
    try:
        return values.signal_dbm(given)
    except values.Unreadable:
        return None


def _life(cache_control: str) -> timedelta:
    told = _MAX_AGE.search(cache_control.lower())
    return _LIFE if told is None else min(_LIFE, max(_LEAST_LIFE, timedelta(seconds=int(told[1]))))
