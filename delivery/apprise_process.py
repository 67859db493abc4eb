"""The process that sends one message through apprise: it connects where a webhook may go, and nowhere else.

It is started by `delivery.apprise_post`, reads a request as JSON from its standard input and writes the answer to its
standard output: "service" or "error" where only the URL is to be checked, "status" and "error" where a message is sent.

apprise was not made for URLs of strangers: some of its services follow redirects, read key files and templates, write
logs or run programs, as their URL says. Hence an audit hook (PEP 578), which no library gets around by accident.
"""

from __future__ import annotations

import importlib
import ipaddress
import json
import logging
import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from delivery.webhook_target import Network, permitted

MEMORY_BYTES = 512 * 1024 * 1024
CPU_SECONDS = 20
NOT_ALLOWED = "The service's address is a private or otherwise special one, to which messages are not sent."
# They show what they are told on the machine that the farm runs on, write it to its log, or light a lamp on it.
LOCAL_SERVICES = frozenset({"blink1", "dbus", "gio", "glib", "gnome", "kde", "macosx", "qt", "syslog", "windows"})
_CONNECTING = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_FORBIDDEN = re.compile(
    r"subprocess\.|pty\.|shutil\.|winreg\.|webbrowser\.|syslog\."
    r"|os\.(system|exec|posix_spawn|spawn|fork|forkpty|startfile|remove|rename|mkdir|rmdir|link|symlink|truncate"
    r"|chmod|chown|kill|killpg|setxattr)"
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Beside the libraries themselves: the types of files by their names, and the zones.
_READABLE = ("/etc/mime.types", "/usr/share/zoneinfo")
_HTTP_STATUS = re.compile(r"\berror=([1-5]\d\d)\b")


class Refused(Exception):
    """Why an URL is not taken, in words for a person. Never with a word of the URL but its schema in it."""


class Guard:
    """The hook. What it refuses looks to a library like a connection or a file that the system refuses."""

    def __init__(self, allowed_networks: Sequence[Network]) -> None:
        self._allowed_networks = tuple(allowed_networks)
        paths = sysconfig.get_paths()
        folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
        folders |= {folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")}
        own = str(Path(__file__).parent)
        self._readable = tuple(os.path.realpath(folder) for folder in (*folders, own, *_READABLE))
        self._own: list[Any] = []
        self.has_refused_address = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CONNECTING:
            self._judge_address(arguments[1])
        elif event == "socket.bind":
            self._judge_own_address(*arguments)
        elif event == "open":
            self._judge_file(*arguments)
        elif _FORBIDDEN.match(event):
            raise PermissionError(f"{event} is not for a message")

    def _judge_address(self, address: object) -> None:
        if address is None:  # over a connection that was judged when it was made
            return
        if any(bound.fileno() >= 0 and bound.getsockname() == address for bound in self._own):
            return
        # A name would be looked up after this, and may lead anywhere then; a path is a socket of this machine.
        host = address[0] if isinstance(address, tuple) and address and isinstance(address[0], str) else ""
        try:
            is_permitted = permitted(ipaddress.ip_address(host), self._allowed_networks)
        except ValueError:
            is_permitted = False
        if not is_permitted:
            self.has_refused_address = True
            raise PermissionError(NOT_ALLOWED)

    def _judge_own_address(self, bound: Any, address: object) -> None:
        """Where a socket begins. MQTT's library wakes itself over a connection from this process to itself."""
        if not (isinstance(address, tuple) and address[1:] == (0,)):
            raise PermissionError("nobody calls back about a message")
        self._own.append(bound)

    def _judge_file(self, path: object, mode: object, flags: object) -> None:
        if isinstance(path, int):
            return
        is_written = (isinstance(mode, str) and set(mode) & set("wax+")) or (
            isinstance(flags, int) and flags & _WRITING
        )
        place = os.path.realpath(os.fsdecode(path)) if isinstance(path, str | bytes) else ""
        if is_written or not any(place == folder or place.startswith(folder + os.sep) for folder in self._readable):
            raise PermissionError("this file is not for a message")


class _Statuses(logging.Handler):
    """Of what apprise logs, which may hold the URL, only the status of HTTP is kept."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.last: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if found := _HTTP_STATUS.search(record.getMessage()):
            self.last = int(found[1])


def main() -> int:
    """Answer one request. The exit status is 0 for an answer, whatever it says."""
    request = json.load(sys.stdin)
    answer_to, sys.stdout = sys.stdout, sys.stderr
    _limit()
    guard = Guard([ipaddress.ip_network(network) for network in request["allowed_networks"]])
    sys.addaudithook(guard)
    try:
        service = service_of(request["url"])
        answer = _send(service, request, guard) if "body" in request else {"service": _name(service), "error": None}
    except Refused as refused:
        answer = {"service": None, "status": None, "error": str(refused)}
    answer_to.write(json.dumps(answer))
    answer_to.flush()
    return 0


def _send(service: Any, request: dict[str, Any], guard: Guard) -> dict[str, Any]:
    apprise = importlib.import_module("apprise")
    # Whether and when to try again is not its business: a message that was taken would be sent twice.
    service.retry = 0
    sender = apprise.Apprise(asset=service.asset)
    sender.add(service)
    statuses = _Statuses()
    logger = logging.getLogger("apprise")
    logger.addHandler(statuses)
    logger.setLevel(logging.DEBUG)
    done = sender.notify(
        title=request["title"],
        body=request["body"],
        body_format="text",
        notify_type="warning" if request["is_urgent"] else "info",
    )
    if done:
        return {"status": None, "error": None}
    if guard.has_refused_address:
        return {"status": None, "error": NOT_ALLOWED}
    if statuses.last is not None:
        return {"status": statuses.last, "error": f"The service answered {statuses.last}."}
    return {"status": None, "error": "The service cannot be reached, or did not take the message."}


def service_of(url: str) -> Any:
    """apprise's object for an URL; nothing is sent yet.

    Raises:
        Refused: no service has such URLs, or it is one that reaches nobody from here.
    """
    apprise = importlib.import_module("apprise")
    schema = url.partition("://")[0].lower()
    if schema in LOCAL_SERVICES:
        raise Refused(f"{schema}:// shows messages on the machine that the farm runs on, where nobody sees them.")
    # A word that begins with # would be the rest of an URL to its readers (apprise does the same).
    url = url.replace("/#", "/%23")
    if schema in ("http", "https"):
        plugin, parts = _by_address(url)
    else:
        plugin = _by_schema(schema)
        parts = plugin.parse_url(url)
    if not plugin.enabled:
        raise Refused(f"{_name(plugin)} needs software that is not installed here.")
    wrong = f"This is not a proper URL for {_name(plugin)}: see its page in apprise's documentation."
    if not parts:
        raise Refused(wrong)
    asset = apprise.AppriseAsset(
        app_id="Print farm",
        app_desc="Print farm",
        app_url="",
        image_url_mask="",
        image_url_logo="",
        async_mode=False,
        http_redirects=False,
        storage_mode=apprise.PersistentStoreMode.MEMORY,
        service_timeout=0,
    )
    try:
        return plugin(**{"overflow": "truncate", **parts, "asset": asset})
    except (TypeError, ValueError, apprise.exception.AppriseException):
        raise Refused(wrong) from None


def _by_schema(schema: str) -> Any:
    """Only the modules that may know it are imported: all 180 take a second, one takes a tenth of that."""
    base = importlib.import_module("apprise.plugins.base").NotifyBase
    for name in _modules_that_name(schema):
        module = importlib.import_module(f"apprise.plugins.{name}")
        plugins = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, base)]
        for plugin in plugins:
            # Its own method, which apprise itself calls on the class.
            if schema in base.schemas(plugin):
                return plugin
    raise Refused(f"No service is known by {schema[:40]}://.")


def _modules_that_name(schema: str) -> Iterator[str]:
    folder = Path(str(importlib.import_module("apprise.plugins").__file__)).parent
    named = re.compile(rb"protocol\s*=[^=]*?[\"']" + re.escape(schema.encode()) + rb"[\"']")
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*.py")) if named.search(path.read_bytes()))
    yield from dict.fromkeys(path.parts[0].removesuffix(".py") for path in found)


def _by_address(url: str) -> tuple[Any, dict[str, Any] | None]:
    """Some services hand out an address of their own, such as Discord's: every service is asked whether it is its."""
    plugins = importlib.import_module("apprise.plugins")
    parts = plugins.url_to_dict(url)
    if not parts:
        raise Refused("No service is known by this address. An apprise URL begins with the service's name.")
    if parts["schema"] in LOCAL_SERVICES:
        raise Refused("This service reaches nobody from here.")
    return plugins.N_MGR[parts["schema"]], parts


def _name(service: Any) -> str:
    return str(service.service_name)[:64]


def _limit() -> None:
    """It ends by itself where whoever started it is gone. Where a platform cannot limit it, its deadline does."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:
        return
    for what, amount in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (amount, amount))
