"""What a printer's connection takes, inline with its printer or on its own."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from marshmallow import ValidationError, validates_schema

from api import context
from api.fields import Body, Id, Ranged, Text, Word
from models import ConnectionType, Printer, PrinterConnection
from vault import Vault

MQTT_PORT, FTPS_PORT = 8883, 990
SERIAL = re.compile(r"^[A-Za-z0-9]{6,32}$", re.ASCII)
ACCESS_CODE = re.compile(r"^[A-Za-z0-9]{4,32}$", re.ASCII)
HOST_NAME = re.compile(r"^(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*$", re.ASCII)
INLINE_FIELDS = ("connection_type", "host", "port", "ftps_port", "serial_number", "access_code")
SECRETS = ("access_code", "cloud_token")


def _check_host(value: str | None) -> None:
    """A printer stands in the LAN on purpose, so private addresses are fine; ours and special ones are not."""
    if value is None:
        return
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        if not HOST_NAME.match(value) or len(value) > 253 or value.rsplit(".", 1)[-1].isdigit():
            raise ValidationError("Not a host name or an IP address.") from None
        is_loopback = value.casefold() == "localhost" or value.casefold().endswith(".localhost")
    else:
        mapped = getattr(address, "ipv4_mapped", None) or address
        if (
            mapped.is_multicast
            or mapped.is_unspecified
            or mapped.is_link_local
            or (mapped.is_reserved and not mapped.is_loopback)
        ):
            raise ValidationError("Not an address that a printer can have.")
        is_loopback = mapped.is_loopback
    if is_loopback and not context.settings().allow_loopback_printers:
        raise ValidationError("Loopback hosts need ALLOW_LOOPBACK_PRINTERS.")


def _check_port(usual: int) -> Any:
    def check(value: int) -> None:
        # Else "add printer" would be a port scanner for the LAN.
        if value != usual and not context.settings().allow_loopback_printers:
            raise ValidationError(f"A printer's port is {usual}.")

    return check


def _check(pattern: re.Pattern[str], sentence: str) -> Any:
    def check(value: str | None) -> None:
        if value is not None and not pattern.match(value):
            raise ValidationError(sentence)

    return check


class NewConnectionFields(Body):
    connection_type = Word(ConnectionType)
    host = Text(1, 253, allow_none=True, validate=[_check_host])
    port = Ranged(1, 65535)
    ftps_port = Ranged(1, 65535)
    serial_number = Text(
        1, 64, allow_none=True, validate=[_check(SERIAL, "A serial number is 6 to 32 letters and digits.")]
    )
    access_code = Text(
        1,
        64,
        allow_none=True,
        load_only=True,
        validate=[_check(ACCESS_CODE, "An access code is 4 to 32 letters and digits.")],
    )

    @validates_schema(skip_on_field_errors=False)
    def _has_usual_ports(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        faults = {}
        for name, usual in (("port", MQTT_PORT), ("ftps_port", FTPS_PORT)):
            if isinstance(data.get(name), int):
                try:
                    _check_port(usual)(data[name])
                except ValidationError as error:
                    faults[name] = error.messages
        # Inline with a printer, one field of a connection is enough to mean one.
        named = [name for name in INLINE_FIELDS if data.get(name) is not None]
        if named and data.get("connection_type") in (None, ConnectionType.bambu_lan):
            for name in ("host", "serial_number", "access_code"):
                if self._needs_all and data.get(name) is None:
                    faults[name] = ["Needed to reach a printer in the LAN."]
        if faults:
            raise ValidationError(faults)

    _needs_all = True


class ConnectionChange(NewConnectionFields):
    cloud_token = Text(1, 4000, allow_none=True, load_only=True)
    cloud_account_id = Id(allow_none=True)
    _needs_all = False


class NewConnection(ConnectionChange):
    printer_id = Id(required=True)
    connection_type = Word(ConnectionType, required=True)
    _needs_all = True


def make_connection(printer: Printer, data: dict[str, Any], *, at: datetime, vault: Vault) -> PrinterConnection:
    connection = PrinterConnection(
        user_id=printer.user_id,
        printer_id=printer.id,
        connection_type=data.pop("connection_type", None) or ConnectionType.bambu_lan,
        port=data.pop("port", MQTT_PORT),
        ftps_port=data.pop("ftps_port", FTPS_PORT),
        created_at=at,
        updated_at=at,
    )
    edit_connection(connection, data, vault=vault)
    return connection


def edit_connection(connection: PrinterConnection, data: dict[str, Any], *, vault: Vault) -> None:
    """Set what was sent. Secrets go in sealed and never come out by a route."""
    for name, value in data.items():
        if name in SECRETS:
            sealed = vault.seal(value, connection.secret_owner(name)) if value is not None else None
            setattr(connection, f"{name}_sealed", sealed)
        else:
            setattr(connection, name, value)
