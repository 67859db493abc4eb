"""Bambu Lab's cloud on loopback: a real HTTP server for the API, one for the web site, and MQTT over TLS. Never ships.

It behaves as several independent programs report of the real one, refusals and Cloudflare's pages included. Its time is
the clock handed to it.
"""

from __future__ import annotations

import copy
import functools
import random
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from simulator.broker import LoopThread
from simulator.cloud_accounts import CloudAccount, CloudLogins
from simulator.cloud_broker import Bridge, CloudBroker, LonePrinter, in_loop
from simulator.cloud_records import (
    BLOCK_PAGE,
    CHALLENGE_PAGE,
    BoundPrinter,
    Host,
    SeenRequest,
    bound,
    listed,
    offered,
    past_print,
    under_way,
)
from simulator.etsy_wire import Refusal, make_response
from simulator.machine import Machine
from simulator.printer import SimulatedPrinter
from simulator.records import ConnectionRecord
from simulator.sink_certificate import ThrowAwayCertificate

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["CloudAccount", "SeenRequest", "SimulatedCloud"]

USER = "/v1/user-service/user"
# An endpoint with an underscore is the method of SimulatedCloud that answers it.
ROUTES: dict[Host, Map] = {
    "api": Map(
        [
            Rule(f"{USER}/login", endpoint="log_in", methods=["POST"]),
            Rule(f"{USER}/sendemail/code", endpoint="email", methods=["POST"]),
            Rule(f"{USER}/refreshtoken", endpoint="refresh", methods=["POST"]),
            Rule(f"{USER}/tfa/login", endpoint="redeem", methods=["POST"]),
            Rule("/v1/design-user-service/my/preference", endpoint="_preference", methods=["GET"]),
            Rule("/v1/user-service/my/profile", endpoint="_profile", methods=["GET"]),
            Rule("/v1/iot-service/api/user/bind", endpoint="_bind", methods=["GET"]),
            Rule("/v1/iot-service/api/user/print", endpoint="_live", methods=["GET"]),
            Rule("/v1/user-service/my/tasks", endpoint="_past", methods=["GET"]),
            Rule("/v1/iot-service/api/user/device/version", endpoint="_firmware", methods=["GET"]),
            Rule("/v1/user-service/my/task", endpoint="_start", methods=["POST"]),
        ]
    ),
    "web": Map(
        [
            Rule("/api/csrf", endpoint="csrf", methods=["GET"]),
            Rule("/api/sign-in/tfa", endpoint="redeem_on_web_site", methods=["POST"]),
            Rule("/api/v1/user-service/user/sendsmscode", endpoint="sms", methods=["POST"]),
        ]
    ),
}


@dataclass(frozen=True, slots=True)
class _Fault:
    host: Host | None
    status: int
    body: object
    headers: dict[str, str]


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """What was asked stands in `SimulatedCloud.requests`."""


class SimulatedCloud:
    """A context manager: inside it the cloud answers at `api_url`, `web_url` and `mqtt_host`:`mqtt_port` (`ca_file`).

    `logins` holds accounts, sent codes and tokens; `requests` and `asked` (serial, message by MQTT) what was heard;
    `connections` the MQTT logins. `calls_per_minute`: more are answered with 429.
    """

    def __init__(
        self,
        *accounts: CloudAccount,
        seed: int = 0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        calls_per_minute: int | None = None,
        host: str = "127.0.0.1",
        mqtt_port: int = 0,
    ) -> None:
        self.logins = CloudLogins(clock, seed)
        self.requests: list[SeenRequest] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.calls_per_minute = calls_per_minute
        self._clock = clock
        self._random = random.Random(f"cloud-http/{seed}")
        self._owners: dict[str, str] = {}
        self._printers: dict[str, BoundPrinter] = {}
        self._history: dict[str, list[dict[str, Any]]] = {}
        self._faults: deque[_Fault] = deque()
        self._calls: list[datetime] = []
        self._lock = threading.Lock()
        self._broker = CloudBroker(self._owned, self._ask)
        self._say = in_loop(self._broker)
        self._certificate = ThrowAwayCertificate("127.0.0.1", "localhost")
        self._folder = tempfile.TemporaryDirectory(prefix="simulated-cloud-", ignore_cleanup_errors=True)
        self.ca_file = Path(self._folder.name) / "ca.pem"
        self.ca_file.write_text(self._certificate.pem)
        self.mqtt_host, self.mqtt_port = host, mqtt_port
        self._servers: list[BaseWSGIServer] = []
        urls = [self._serve(which, host) for which in ("api", "web")]
        self.api_url, self.web_url = urls
        for account in accounts:
            self.logins.accounts[account.account] = account

    def _serve(self, which: Host, host: str) -> str:
        application = functools.partial(self._application, which)
        server = make_server(host, 0, application, threaded=True, request_handler=_QuietHandler)
        self._servers.append(server)
        return f"http://{host}:{server.server_port}"

    def __enter__(self) -> Self:
        for server in self._servers:
            # The default looks for a shutdown twice a second: too slow for a server per test.
            run = functools.partial(server.serve_forever, poll_interval=0.01)
            threading.Thread(target=run, name="simulated-cloud", daemon=True).start()
        self.start_mqtt()
        return self

    def __exit__(self, *_: object) -> None:
        for printer in self._printers.values():
            printer.leave()
        self.stop_mqtt()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._folder.cleanup()

    @property
    def connections(self) -> list[ConnectionRecord]:
        return self._broker.connections

    def start_mqtt(self) -> None:
        """Listens, on the same port as before."""
        context = self._certificate.server_context
        self.mqtt_port = LoopThread.shared().run(self._broker.start(self.mqtt_host, self.mqtt_port, context))

    def stop_mqtt(self) -> None:
        """The broker is gone, and so is every connection to it."""
        LoopThread.shared().run(self._broker.stop())

    def drop_connections(self) -> None:
        """Cuts every MQTT connection at once, without a word."""
        LoopThread.shared().loop.call_soon_threadsafe(self._broker.cut_all)

    def bind(self, account: CloudAccount, printer: SimulatedPrinter | Machine) -> None:
        """This printer is the account's from now on."""
        serial = printer.serial
        self._owners[serial] = account.account
        if isinstance(printer, SimulatedPrinter):
            self._printers[serial] = Bridge(printer, self._say, self._arrives, self._goes)
        else:
            self._printers[serial] = LonePrinter(printer, self._say)

    def say(self, serial: str, message: object) -> None:
        """Puts a message onto a printer's report topic, whatever it is; bytes go out as they are."""
        LoopThread.shared().run(self._broker.say(serial, message))

    def report(self, serial: str, *, full: bool = False) -> None:
        """Has a bound Machine report."""
        self.say(serial, self._printers[serial].machine.report(full))

    def switch(self, serial: str, *, on: bool) -> None:
        """Switches a bound Machine off or on; off, it says nothing and the cloud says so."""
        self._printers[serial].is_online = on
        (self._arrives if on else self._goes)(serial)

    def add_past_print(self, account: CloudAccount, **fields: object) -> None:
        """An entry of the history, newest last; what is not given is as in a print that went well."""
        with self._lock:
            history = self._history.setdefault(account.account, [])
            history.append({**past_print(len(history) + 1, self._clock()), **copy.deepcopy(fields)})

    def fail_next(
        self,
        status: int,
        body: object,
        *,
        headers: Mapping[str, str] | None = None,
        times: int = 1,
        host: Host | None = None,
    ) -> None:
        """The next requests, to this host if one is named, are answered so: a text as HTML, all else as JSON."""
        with self._lock:
            self._faults.extend([_Fault(host, status, body, dict(headers or {}))] * times)

    def forget_faults(self) -> None:
        """What `fail_next` and its kin still had in store is dropped."""
        with self._lock:
            self._faults.clear()

    def challenge_next(self, *, times: int = 1, host: Host | None = None, status: int = 403) -> None:
        """The next requests meet Cloudflare's page that only a browser passes."""
        self.fail_next(status, CHALLENGE_PAGE, headers={"cf-mitigated": "challenge"}, times=times, host=host)

    def block_next(self, *, times: int = 1, host: Host | None = None) -> None:
        """The next requests meet Cloudflare's page for those whom it will not let in at all."""
        self.fail_next(403, BLOCK_PAGE, times=times, host=host)

    def _owned(self, username: str, password: str) -> list[str] | None:
        account = self.logins.owner(password)
        if account is None or username != f"u_{account.uid}":
            return None
        return [serial for serial, owner in self._owners.items() if owner == account.account]

    def _ask(self, serial: str, message: dict[str, Any]) -> None:
        self.asked.append((serial, message))
        self._printers[serial].ask({section: body for section, body in message.items() if section != "print"})

    def _arrives(self, serial: str) -> None:
        self._say(serial, {"event": {"event": "client.connected", "connected_at": self._milliseconds()}})

    def _goes(self, serial: str) -> None:
        self._say(serial, {"event": {"event": "client.disconnected", "disconnected_at": self._milliseconds()}})

    def _milliseconds(self) -> str:
        return str(int(self._clock().timestamp() * 1000))

    def _application(self, which: Host, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        body = request.get_data(cache=True)
        headers = {name.lower(): value for name, value in request.headers.items()}
        with self._lock:
            self.requests.append(
                SeenRequest(which, request.method, request.path, request.args.to_dict(), headers, body)
            )
            response = self._answer(which, request)
        # Every answer comes through Cloudflare, its own pages and the cloud's JSON alike.
        response.headers["cf-ray"] = f"{self._random.randbytes(8).hex()}-FRA"
        response.headers["server"] = "cloudflare"
        return response(environ, start_response)

    def _answer(self, which: Host, request: Request) -> Response:
        fault = next((one for one in self._faults if one.host in (None, which)), None)
        if fault is not None:
            self._faults.remove(fault)
            return make_response(fault.status, fault.body, fault.headers)
        try:
            endpoint, _ = ROUTES[which].bind_to_environ(request.environ).match()
            self._count_call()
            if endpoint in ("email", "sms"):
                return self.logins.send_code(request, "email" if endpoint == "email" else "phone")
            if endpoint == "csrf":
                return self.logins.csrf()
            if endpoint.startswith("_"):
                account = self.logins.check(request)
                return make_response(200, getattr(self, endpoint)(account, request))
            handler: Callable[[Request], Response] = getattr(self.logins, endpoint)
            return handler(request)
        except Refusal as refusal:
            return refusal.response
        except HTTPException as error:
            return make_response(error.code or 500, {"code": error.code, "error": error.name})

    def _count_call(self) -> None:
        now = self._clock()
        self._calls = [at for at in self._calls if at > now - timedelta(minutes=1)] + [now]
        if self.calls_per_minute is not None and len(self._calls) > self.calls_per_minute:
            raise Refusal(429, {"code": 429, "error": "Too many requests"}, {"retry-after": "30"})

    def _preference(self, account: CloudAccount, request: Request) -> object:
        return {"uid": int(account.uid), "name": f"user_{account.uid}", "handle": f"user_{account.uid}", "bio": ""}

    def _profile(self, account: CloudAccount, request: Request) -> object:
        return {"uidStr": account.uid, "account": account.account, "name": f"user_{account.uid}"}

    def _bind(self, account: CloudAccount, request: Request) -> object:
        return listed([bound(printer) for printer in self._of(account)])

    def _live(self, account: CloudAccount, request: Request) -> object:
        return listed([under_way(printer) for printer in self._of(account)])

    def _past(self, account: CloudAccount, request: Request) -> object:
        wanted, after = request.args.get("deviceId", ""), request.args.get("after", "")
        prints = [one for one in self._history.get(account.account, []) if wanted in ("", one["deviceId"])][::-1]
        ids = [str(one["id"]) for one in prints]
        begin = ids.index(after) + 1 if after in ids else 0
        return {"total": len(prints), "hits": prints[begin : begin + request.args.get("limit", 20, type=int)]}

    def _firmware(self, account: CloudAccount, request: Request) -> object:
        wanted = request.args.get("dev_id")
        return listed([offered(printer) for printer in self._of(account) if printer.machine.serial == wanted])

    def _start(self, account: CloudAccount, request: Request) -> object:
        raise Refusal(403, {"code": 6, "error": "Forbidden"})

    def _of(self, account: CloudAccount) -> list[BoundPrinter]:
        return [printer for serial, printer in self._printers.items() if self._owners[serial] == account.account]
