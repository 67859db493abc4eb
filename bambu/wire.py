"""One MQTT connection to one printer, from TCP to the last byte. It never reconnects and carries no queue over.

It runs no loop: whoever holds its socket waits for it (`fileno`, `wants_to_write`) and calls `pump`. paho's own loop
uses select(), which silently fails for sockets numbered 1024 and above.
"""

from __future__ import annotations

import errno
import secrets
import socket
import ssl
import struct
from collections.abc import Callable
from enum import Enum, auto

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bambu.tls import PrinterTlsContext

USER_NAME = "bblp"
# A command must not leave the kernel's send buffer long after it was written, when a dead line comes back.
_UNACKNOWLEDGED_SECONDS = 15
_BAD_LOGIN = (134, 135)  # CONNACK 4 and 5 in MQTT 5's numbers, which paho uses for both versions
_SERVER_UNAVAILABLE = 136  # CONNACK 3


class NotSent(Exception):
    """Nothing of the command reached the printer. `reason` in plain words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Ending(Enum):
    """Why a connection is over."""

    bad_login = auto()
    too_many_clients = auto()
    refused = auto()
    lost = auto()


class Wire:
    """A connection. All methods but the constructor belong to one thread; callbacks come from within `pump`."""

    def __init__(
        self,
        host: str,
        port: int,
        serial: str,
        access_code: str,
        tls: PrinterTlsContext,
        *,
        keepalive_seconds: int,
        connect_seconds: float,
        on_ready: Callable[[], None],
        on_payload: Callable[[bytes], None],
    ) -> None:
        self._host, self._port = host, port
        self._request_topic = f"device/{serial}/request"
        self._report_topic = f"device/{serial}/report"
        self._keepalive_seconds = keepalive_seconds
        self._on_ready, self._on_payload = on_ready, on_payload
        self.ending: Ending | None = None
        self._subscribed_just_now = False
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"farm{secrets.token_hex(6)}",
            clean_session=True,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.username_pw_set(USER_NAME, access_code.strip())
        client.tls_set_context(tls)
        client.tls_insecure_set(True)  # paho would compare host names; the context compares serial numbers
        client.connect_timeout = connect_seconds
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._heard
        client.on_disconnect = self._disconnected
        self._client = client

    def connect(self) -> None:
        """TCP, TLS and the CONNECT packet; blocks for that long. Raises OSError, IdentityRefused among them."""
        self._client.connect(self._host, self._port, self._keepalive_seconds)
        connection = self._socket()
        if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_SECONDS * 1000)

    def fileno(self) -> int:
        """The socket to wait for, -1 when there is none any more."""
        connection = self._socket()
        return -1 if connection is None else connection.fileno()

    def wants_to_write(self) -> bool:
        """Whether bytes are waiting for the socket to take more."""
        return self._client.want_write()

    def pump(self, *, readable: bool, writable: bool) -> None:
        """Reads what has come, writes what waits, keeps the connection alive. Sets `ending` when it is over."""
        if readable:
            self._read()
        if writable and self.ending is None:
            self._client.loop_write()
        if self.ending is None:
            self._client.loop_misc()
        if self._subscribed_just_now:
            # Not from within paho's callback: what is published there only queues, and could be stuck behind others.
            self._subscribed_just_now = False
            self._on_ready()

    def _read(self) -> None:
        while self.ending is None:
            result = self._client.loop_read()
            connection = self._socket()
            if result != MQTTErrorCode.MQTT_ERR_SUCCESS or connection is None:
                self._end(Ending.lost)
                return
            # What TLS has decrypted already (at most one record, 16 kB) is no longer announced by the socket.
            if not connection.pending():
                return

    def publish(self, payload: bytes) -> None:
        """Hands one message to the socket, at QoS 0: it is never repeated. Raises NotSent if provably nothing went out.

        No exception means that the socket has it, or part of it: whether the printer got it is for the printer to say.
        """
        if self.ending is not None:
            raise NotSent("the connection to the printer is gone")
        if self._client.want_write():
            raise NotSent("the line to the printer is stuck")
        # A failed write leaves at most an incomplete TLS record, which the printer cannot read.
        if self._client.publish(self._request_topic, payload, qos=0).rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise NotSent("the connection to the printer broke")

    def close(self) -> None:
        """Says goodbye, so that the printer frees the place at once, and closes."""
        if self.ending is None:
            self._client.disconnect()
        self._abandon()

    def abort(self) -> None:
        """Closes at once and throws away what the kernel has not sent yet."""
        connection = self._socket()
        if connection is not None and connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._abandon()

    def _abandon(self) -> None:
        self._end(Ending.lost)
        connection = self._socket()
        if connection is not None:
            connection.close()

    def _socket(self) -> ssl.SSLSocket | None:
        connection = self._client.socket()
        return connection if isinstance(connection, ssl.SSLSocket) else None

    def _end(self, ending: Ending) -> None:
        if self.ending is None:
            self.ending = ending

    def _connected(
        self, client: mqtt.Client, data: object, flags: mqtt.ConnectFlags, code: ReasonCode, more: Properties | None
    ) -> None:
        if not code.is_failure:
            # Only reports: P1 and A1 printers hang up on whoever subscribes to the request topic.
            client.subscribe(self._report_topic, qos=0)
        elif code.value in _BAD_LOGIN:
            self._end(Ending.bad_login)
        elif code.value == _SERVER_UNAVAILABLE:
            self._end(Ending.too_many_clients)
        else:
            self._end(Ending.refused)

    def _subscribed(
        self, client: mqtt.Client, data: object, mid: int, codes: list[ReasonCode], more: Properties | None
    ) -> None:
        if codes and codes[0].is_failure:
            self._end(Ending.refused)
        else:
            self._subscribed_just_now = True

    def _heard(self, client: mqtt.Client, data: object, message: mqtt.MQTTMessage) -> None:
        if self.ending is None:
            self._on_payload(bytes(message.payload))

    def _disconnected(
        self,
        client: mqtt.Client,
        data: object,
        flags: mqtt.DisconnectFlags,
        code: ReasonCode,
        more: Properties | None,
    ) -> None:
        self._end(Ending.lost)


def unreachable(problem: OSError) -> str:
    """Why a connection could not be made, in plain words."""
    if isinstance(problem, ConnectionRefusedError):
        return "the address answers, but not as a printer: check it, and that the printer is in LAN mode"
    if isinstance(problem, socket.gaierror):
        return "the printer's host name is unknown: check it, or enter its address"
    if isinstance(problem, TimeoutError) or problem.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN):
        return "nothing answers at the printer's address: is it switched on and in this network?"
    if isinstance(problem, ssl.SSLError):
        return "no secure connection could be agreed on with the machine at the printer's address"
    return "the connection to the printer could not be made"
