"""The demo's stage: two printers, an Etsy, a weather, mail and webhook receivers, and the product as its own process.

Everything is real but the printers, Etsy and the weather, which are simulated on real sockets; nothing leaves this
machine.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from simulator.certificates import shared_authority
from simulator.demo_goods import make_outside_spool, make_spools
from simulator.etsy import ReceiptLine, SimulatedEtsy, make_receipt
from simulator.printer import SimulatedPrinter
from simulator.sinks import MailSink, WebhookReceiver
from simulator.spools import Spool
from simulator.weather import SimulatedWeather

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
PORTS_TRIED = 100
KEYSTRING, SHARED_SECRET = "demo-keystring", "demo-shared-secret"
WEATHER_KEY = "demo-weather-key"
# Simulated seconds per real one.
SPEED = 180.0
MARKER = ".demo"
READY_SECONDS = 60.0
STOP_SECONDS = 30.0
# What a Python process may need of the caller's environment. The rest stays outside: the caller's own DATABASE_URL,
# Etsy key, mail server or HTTP proxy must not get into the demo.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE")


class DemoFailed(Exception):
    """The demo cannot go on; the message says why in words for a person."""


class Interrupted(Exception):
    """Somebody asked the demo to stop."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is played. `speed`: simulated seconds per real second. `folder` is emptied at the start.

    The last three spoil it on purpose: printers that take no commands, receivers that trust a wrong secret, an Etsy
    that forgets tracking numbers.
    """

    folder: Path
    first_port: int = 5000
    speed: float = SPEED
    patience_seconds: float = 30.0
    has_developer_mode: bool = True
    receivers_trust: str | None = None
    etsy_loses_tracking: bool = False


@dataclass(slots=True)
class Post:
    """One printer of the workshop with the receiver of its webhooks. The ids are the API's, 0 until it was added."""

    name: str
    printer: SimulatedPrinter
    receiver: WebhookReceiver
    printer_id: int = 0
    connection_id: int = 0
    webhook_secret: str = ""

    @property
    def model(self) -> str:
        return self.printer.machine.model.name

    @property
    def has_outside_spool(self) -> bool:
        return any(spool is not None for spool in self.printer.machine.external.values())


class Stage:
    """A context manager. Inside it everything but the app runs; `start_app()` starts that, and leaving stops all."""

    def __init__(self, scene: Scene, stop: threading.Event) -> None:
        self.scene = scene
        self.log_path = scene.folder / "app.log"
        self.app: subprocess.Popen[bytes] | None = None
        self._stop = stop
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._take_folder(stack)
            self.port = _free_port(self.scene.first_port)
            self.base_url = f"http://{HOST}:{self.port}"
            self.posts = [
                self._post(stack, "Left", "P1S", "01P00A412300045", "61204873", make_outside_spool()),
                self._post(stack, "Right", "X1C", "00M00A299600712", "90317725"),
            ]
            self.etsy = stack.enter_context(
                SimulatedEtsy(KEYSTRING, SHARED_SECRET, redirect_uris=[f"{self.base_url}/api/auth/etsy/callback"])
            )
            self.etsy.loses_tracking = self.scene.etsy_loses_tracking
            self.weather = stack.enter_context(SimulatedWeather(WEATHER_KEY))
            self.mail = stack.enter_context(MailSink())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stop_app()
        finally:
            self._stack.close()

    def _take_folder(self, stack: ExitStack) -> None:
        """Empties the folder, if it is one of the demo's and no other demo is using it."""
        folder = self.scene.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        stack.callback(os.close, self._lock)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailed(f"Another demo is still running in {shown_path(folder)}. End that one first.") from None
        if folder.exists():
            if any(folder.iterdir()) and not (folder / MARKER).exists():
                raise DemoFailed(f"{shown_path(folder)} holds files that are not the demo's, so it is not emptied.")
            shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
        (folder / MARKER).touch()

    def _post(
        self, stack: ExitStack, name: str, model: str, serial: str, access_code: str, outside: Spool | None = None
    ) -> Post:
        printer = stack.enter_context(
            SimulatedPrinter(
                serial,
                access_code,
                model,
                name=name,
                speed=self.scene.speed,
                spools=make_spools(),
                external=outside,
                developer_mode=self.scene.has_developer_mode,
            )
        )
        return Post(name, printer, stack.enter_context(WebhookReceiver()))

    def receive_order(self, receipt_id: int, lines: list[ReceiptLine], name: str) -> dict[str, Any]:
        """A buyer pays at Etsy, an hour ago; to be shipped within three days."""
        ordered_at = datetime.now(UTC) - timedelta(hours=1)
        receipt = make_receipt(
            receipt_id=receipt_id,
            lines=lines,
            ordered_at=ordered_at,
            updated_at=datetime.now(UTC) - timedelta(minutes=1),
            name=name,
            shipping_cost=Decimal("4.90"),
        )
        self.etsy.add_receipt(receipt)
        return receipt

    def start_app(self) -> None:
        """`python app.py` with its worker inside, until it is ready. Raises DemoFailed, Interrupted."""
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= {
            "FLASK_ENV": "development",
            "AUTO_DB_CREATE": "1",
            "HOST": HOST,
            "PORT": str(self.port),
            "DATA_DIR": str(self.scene.folder.absolute()),
            "PUBLIC_URL": self.base_url,
            "STATUS_INTERVAL_SECONDS": "0.1",
            # The printers run at many times the speed of real ones, and rest as much less.
            "PRINTER_REST_SECONDS": "1",
            "DISCOVERY_PORT": "0",
            "BAMBU_CA_FILE": str(shared_authority().ca_file),
            "ETSY_CLIENT_ID": KEYSTRING,
            "ETSY_SHARED_SECRET": SHARED_SECRET,
            "ETSY_REDIRECT_URI": f"{self.base_url}/api/auth/etsy/callback",
            "ETSY_BASE_URL": self.etsy.base_url,
            "ETSY_AUTHORIZE_URL": self.etsy.authorize_url,
            "OPENWEATHER_API_KEY": WEATHER_KEY,
            "OPENWEATHER_BASE_URL": self.weather.base_url,
            "SMTP_HOST": self.mail.host,
            "SMTP_PORT": str(self.mail.port),
            "SMTP_FROM": "Print farm <farm@example.com>",
            "SMTP_TLS": "none",
            "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        with open(self.log_path, "wb") as log:
            self.app = subprocess.Popen(
                [sys.executable, "app.py"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches only the demo, which ends the app before the printers it talks to.
                start_new_session=True,
                # The folder stays locked for as long as the app lives, even if the demo is killed.
                pass_fds=[self._lock],
            )
        deadline = time.monotonic() + READY_SECONDS
        with requests.Session() as session:
            session.trust_env = False
            while time.monotonic() < deadline:
                self.require_app()
                try:
                    if session.get(f"{self.base_url}/readyz", timeout=5).ok:
                        return
                except requests.RequestException:
                    pass
                self.pause(0.1)
        raise DemoFailed(f"The app was not ready after {READY_SECONDS:.0f} seconds. {self.log_hint()}")

    def require_app(self) -> None:
        """Raises DemoFailed if the app has ended by itself."""
        code = self.app.poll() if self.app else None
        if code is not None:
            raise DemoFailed(f"The app has ended by itself (exit code {code}). {self.log_hint()}")

    def log_hint(self) -> str:
        """Where the app's log is, and the last thing in it."""
        lines = [line for line in self.log_path.read_text(errors="replace").splitlines() if line.strip()]
        last = f" It ends with: {_short(lines[-1])}" if lines else " It is empty."
        return f"The app's log is {shown_path(self.log_path)}.{last}"

    def pause(self, seconds: float) -> None:
        """Raises Interrupted as soon as somebody asks the demo to stop."""
        if self._stop.wait(seconds):
            raise Interrupted

    def wait_until(self, has_come: Callable[[], bool]) -> bool:
        """Whether it came while patience lasted. Raises Interrupted."""
        deadline = time.monotonic() + self.scene.patience_seconds
        while not has_come():
            if time.monotonic() > deadline:
                return False
            self.pause(0.1)
        return True

    def _stop_app(self) -> None:
        if self.app is None or self.app.poll() is not None:
            return
        self.app.terminate()
        try:
            self.app.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.app.kill()
            self.app.wait()


def _short(line: str) -> str:
    """A line of the log, and of a traceback in it only what it was."""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if isinstance(entry, dict) and entry.get("exception"):
        line = f"{entry.get('event')}: {str(entry['exception']).strip().splitlines()[-1]}"
    return line[:300]


def _free_port(first: int) -> int:
    for port in range(first, min(first + PORTS_TRIED, 65536)):
        try:
            socket.create_server((HOST, port)).close()
        except OSError:
            continue
        return port
    raise DemoFailed(f"None of the ports from {first} on is free.")


def shown_path(path: Path) -> str:
    """As a person would type it from where they are."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
