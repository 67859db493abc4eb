"""Where the demo and the tests let mail and webhooks end: a real SMTP server and a real HTTP receiver on free ports."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as default_policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from simulator.sink_certificate import ThrowAwayCertificate

_LOOPBACK = "127.0.0.1"
_TOLERANCE = timedelta(minutes=5)


class MailSink:
    """An SMTP server that keeps what it is given. Use as a context manager; `host` and `port` are set from the start.

    `tls`: "none", "starttls" (demanded before mail) or "tls". With `user` a login is demanded. `refuse` maps a
    recipient to the reply he gets, `refuse_data` is the reply to every mail's content, both like `550 5.1.1 unknown`.
    """

    def __init__(
        self,
        *,
        tls: Literal["none", "starttls", "tls"] = "none",
        user: str = "",
        password: str = "",
        refuse: Mapping[str, str] | None = None,
        refuse_data: str = "",
    ) -> None:
        self.messages: list[EmailMessage] = []
        self.logins: list[str] = []
        self._refuse = dict(refuse or {})
        self._refuse_data = refuse_data
        self._user, self._password = user, password
        self._socket = socket.create_server((_LOOPBACK, 0))
        self.host, self.port = _LOOPBACK, int(self._socket.getsockname()[1])
        self.certificate = ThrowAwayCertificate(_LOOPBACK) if tls != "none" else None
        context = self.certificate.server_context if self.certificate else None
        self._controller = _ControllerOn(
            self._socket,
            handler=self,
            hostname=_LOOPBACK,
            port=self.port,
            ssl_context=context if tls == "tls" else None,
            tls_context=context if tls == "starttls" else None,
            require_starttls=tls == "starttls",
            authenticator=self._authenticate if user else None,
            auth_required=bool(user),
            auth_require_tls=tls == "starttls",
            enable_SMTPUTF8=True,
        )

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._controller.stop()
        self._socket.close()

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object
    ) -> AuthResult:
        if not isinstance(data, LoginPassword):
            return AuthResult(success=False, handled=False)
        self.logins.append(data.login.decode())
        expected = (self._user.encode(), self._password.encode())
        return AuthResult(success=(data.login, data.password) == expected, handled=False)

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
    ) -> str:
        if reply := self._refuse.get(address):
            return reply
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self._refuse_data:
            return self._refuse_data
        self.messages.append(message_from_bytes(cast(bytes, envelope.content), policy=default_policy))
        return "250 OK"


class _ControllerOn(Controller):
    """aiosmtpd's controller on a socket that is bound already: with port 0 the original probes port 0 and fails."""

    def __init__(self, listening: socket.socket, **options: Any) -> None:
        self._listening = listening
        super().__init__(**options)

    def _create_server(self) -> Any:
        return self.loop.create_server(self._factory_invoker, sock=self._listening, ssl=self.ssl_context)


class Received(NamedTuple):
    """One request: its headers in lower case, the body as JSON (None when it is none), whether the signature holds."""

    headers: dict[str, str]
    json: Any
    verified: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    delay_seconds: float
    body: bytes
    headers: tuple[tuple[str, str], ...]


class WebhookReceiver:
    """A receiver of webhooks over HTTP/1.1 with keep-alive. Use as a context manager; `url` is set from the start.

    Each request's signature is verified by the `standardwebhooks` library against `secret`. With a `clock` the age of a
    request is judged by it, and not by the wall clock as the library does. With `certificate` it speaks TLS.
    """

    def __init__(
        self,
        secret: str | None = None,
        *,
        clock: Callable[[], datetime] | None = None,
        certificate: ThrowAwayCertificate | None = None,
        host: str = _LOOPBACK,
        port: int = 0,
    ) -> None:
        self.received: list[Received] = []
        self.connections = 0
        self._webhook = Webhook(secret) if secret else None
        self._clock = clock
        self._script: list[_Answer] = []
        self._came = threading.Condition()
        self._closing = threading.Event()
        self._server = _Listener((host, port), _Request)
        self._server.receiver = self
        self._server.certificate = certificate
        self._open: set[socket.socket] = set()
        self._newest_peer: Any = None
        self.port = int(self._server.server_address[1])
        self.url = f"{'https' if certificate else 'http'}://{host}:{self.port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with self._came:
            for connection in self._open:  # a receiver that is gone must not answer on kept connections
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def trust(self, secret: str) -> None:
        """Verify by this secret from now on: the sender makes it when it is told the receiver's address."""
        self._webhook = Webhook(secret)

    def answer_with(
        self,
        status: int,
        delay_seconds: float = 0.0,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        times: int = 1,
    ) -> Self:
        """Add to the script: the next `times` requests are answered so. After the script every answer is 204."""
        answer = _Answer(status, delay_seconds, body, tuple((headers or {}).items()))
        with self._came:
            self._script.extend([answer] * times)
        return self

    def wait_for(self, count: int, timeout_seconds: float = 5.0) -> bool:
        """Wait until `count` requests have come; whether they did in time."""
        with self._came:
            return self._came.wait_for(lambda: len(self.received) >= count, timeout_seconds)

    def wait_until_alone(self, timeout_seconds: float = 5.0) -> bool:
        """Wait until whoever was connected has gone, and all that they had sent has been taken; whether it was so in
        time."""
        with socket.create_connection(self._server.server_address[:2]) as last:
            # Connections are taken in the order in which they were made.
            address = last.getsockname()
        with self._came:
            return self._came.wait_for(lambda: self._newest_peer == address and not self._open, timeout_seconds)

    def opened(self, connection: socket.socket, peer: Any) -> None:
        """Count a connection and remember it while it is open."""
        with self._came:
            self.connections += 1
            self._open.add(connection)
            self._newest_peer = peer

    def closed(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self._came:
            self._open.discard(connection)
            self._came.notify_all()

    def take(self, headers: Mapping[str, str], body: bytes) -> _Answer:
        """Record a request and say how to answer it, after the delay of the script."""
        lower = {name.lower(): value for name, value in headers.items()}
        try:
            content = json.loads(body)
        except ValueError:
            content = None
        with self._came:
            answer = self._script.pop(0) if self._script else _Answer(204, 0.0, b"", ())
            self.received.append(Received(lower, content, self._verifies(lower, body)))
            self._came.notify_all()
        self._closing.wait(answer.delay_seconds)
        return answer

    def _verifies(self, headers: dict[str, str], body: bytes) -> bool:
        if self._webhook is None:
            return False
        try:
            if self._clock is None:
                self._webhook.verify(body, headers, json_parse=False)
                return True
            at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
            expected = self._webhook.sign(headers["webhook-id"], at, body.decode())
            return expected in headers["webhook-signature"].split() and abs(self._clock() - at) <= _TOLERANCE
        except (WebhookVerificationError, KeyError, ValueError):
            return False


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    receiver: WebhookReceiver
    certificate: ThrowAwayCertificate | None = None

    def process_request(self, request: Any, client_address: Any) -> None:
        self.receiver.opened(request, client_address)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        connection = request
        try:
            if self.certificate:
                request.settimeout(5)
                connection = self.certificate.server_context.wrap_socket(request.dup(), server_side=True)
                connection.settimeout(None)
            super().finish_request(connection, client_address)
        except OSError:  # the sender went away, or does not trust the certificate
            return
        finally:
            self.receiver.closed(request)
            connection.close()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.server.receiver.take(dict(self.headers.items()), body)
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the console of the demo and the tests quiet."""
