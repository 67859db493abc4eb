"""One MQTT connection to Bambu Lab's cloud for all of an account's printers. It never reconnects.

As bambu.wire's it runs no loop: whoever holds its socket waits for it and calls `pump`.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable, Sequence

import orjson
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bambu.cloud_types import CloudHosts, CloudSession
from bambu.commands import FULL_REPORT, RESUME_REPORTS, VERSION, Command, numbered
from bambu.wire import Ending

READS = (FULL_REPORT, RESUME_REPORTS, VERSION)
_PACKETS_AT_ONCE = 32
_BAD_LOGIN = (134, 135)  # CONNACK 4 and 5 in MQTT 5's numbers, which paho uses for both versions


class CloudWire:
    """A connection. All methods but the constructor belong to one thread; callbacks come from within `pump`.

    `on_ready` is told the serial numbers that the cloud would not subscribe us to. `on_payload`: serial, bytes.
    The cloud's certificate is checked as any public host's. Raises OSError when `ca_file` cannot be read.
    """

    def __init__(
        self,
        hosts: CloudHosts,
        session: CloudSession,
        serials: Sequence[str],
        *,
        keepalive_seconds: int,
        connect_seconds: float,
        on_ready: Callable[[frozenset[str]], None],
        on_payload: Callable[[str, bytes], None],
    ) -> None:
        self._hosts, self._serials = hosts, tuple(serials)
        self._of_topic = {f"device/{serial}/report": serial for serial in serials}
        self._keepalive_seconds = keepalive_seconds
        self._on_ready, self._on_payload = on_ready, on_payload
        self.ending: Ending | None = None
        # Bytes wait that TLS has decrypted already: the socket no longer announces them.
        self.has_more = False
        self._answered: frozenset[str] | None = None
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"farm{secrets.token_hex(8)}",
            clean_session=True,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.username_pw_set(f"u_{session.uid}", session.access_token)
        client.tls_set_context(ssl.create_default_context(cafile=hosts.ca_file))
        client.connect_timeout = connect_seconds
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._heard
        client.on_disconnect = self._disconnected
        self._client = client

    def connect(self) -> None:
        """TCP, TLS and the CONNECT packet; blocks for that long. Raises OSError."""
        self._client.connect(self._hosts.mqtt_host, self._hosts.mqtt_port, self._keepalive_seconds)

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
        if self._answered is not None and self.ending is None:
            refused, self._answered = self._answered, None
            self._on_ready(refused)

    def _read(self) -> None:
        self.has_more = False
        for _ in range(_PACKETS_AT_ONCE):
            if self.ending is not None:
                return
            if self._client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._end(Ending.lost)
                return
            connection = self._socket()
            if connection is None:
                self._end(Ending.lost)
                return
            if not connection.pending():
                return
        self.has_more = True

    def ask(self, serial: str, question: Command, sequence_id: str) -> None:
        """Has a printer report, once, at QoS 0. Raises ValueError for anything but a question: see `READS`."""
        if question not in READS:
            raise ValueError("nothing is ordered over the cloud")
        self._client.publish(f"device/{serial}/request", orjson.dumps(numbered(question, sequence_id)), qos=0)

    def close(self) -> None:
        """Says goodbye and closes."""
        if self.ending is None:
            self._client.disconnect()
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
            # One by one: the cloud takes no wildcard, and no report comes of the request topic.
            client.subscribe([(topic, 0) for topic in self._of_topic])
        else:
            self._end(Ending.bad_login if code.value in _BAD_LOGIN else Ending.refused)

    def _subscribed(
        self, client: mqtt.Client, data: object, mid: int, codes: list[ReasonCode], more: Properties | None
    ) -> None:
        # What is published from within paho's callback only queues: `pump` goes on from here.
        refused = [serial for serial, code in zip(self._serials, codes, strict=False) if code.is_failure]
        self._answered = frozenset(refused)

    def _heard(self, client: mqtt.Client, data: object, message: mqtt.MQTTMessage) -> None:
        serial = self._of_topic.get(message.topic)
        if serial is not None and self.ending is None:
            self._on_payload(serial, bytes(message.payload))

    def _disconnected(
        self,
        client: mqtt.Client,
        data: object,
        flags: mqtt.DisconnectFlags,
        code: ReasonCode,
        more: Properties | None,
    ) -> None:
        self._end(Ending.lost)
