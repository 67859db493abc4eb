"""One message through apprise: it arrives, it goes nowhere it must not, and its URL is nowhere to be seen."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from wire import GuardedListener, served

from channels import ApprisePost, check_apprise_url
from delivery.webhook_target import Network
from simulator.sink_certificate import ThrowAwayCertificate
from simulator.sinks import WebhookReceiver

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.1/32"),)
SECRET = "s3cr3tt0pic"
ROOT = Path(__file__).parent.parent


class Service:
    """Any service that speaks HTTP: it keeps what it is sent and answers as it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200
        self.location = ""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                service.requests.append((self.path, dict(self.headers.items()), body))
                self.send_response(service.status)
                if service.location:
                    self.send_header("Location", service.location)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_PUT = do_POST

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.server.shutdown()
    service.server.server_close()


@pytest.fixture(scope="module")
def guard() -> Iterator[GuardedListener]:
    listener = GuardedListener()
    yield listener
    listener.close()


def send(url: str, *, allowed: tuple[Network, ...] = LOOPBACK, seconds: float = 15.0, **message: Any) -> Any:
    usual: dict[str, Any] = {"title": "Finished: Möbius", "body": "Take it off <b>the plate</b>.", "is_urgent": False}
    return ApprisePost(allowed, timeout_seconds=seconds).send(url, **{**usual, **message})


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("json://127.0.0.1:{port}/hook", "/hook"),
        ("ntfy://127.0.0.1:{port}/" + SECRET, ""),
        ("hassio://127.0.0.1:{port}/" + "a" * 32, "/api/services/persistent_notification/create"),
    ],
)
def test_a_message_arrives(service: Service, url: str, path: str) -> None:
    attempt = send(url.format(port=service.port))
    assert (attempt.ok, attempt.error, attempt.status, attempt.answer) == (True, None, None, b"")
    [(to, _, body)] = service.requests
    assert to.startswith(path)
    said = json.loads(body)
    assert said["title"] == "Finished: Möbius" and said["message"] == "Take it off <b>the plate</b>."
    # Nobody's logo is fetched from elsewhere by whoever reads it.
    assert "github" not in body.decode()


@pytest.mark.parametrize("status", [401, 429, 503])
def test_what_the_service_does_not_take_has_failed_with_its_status_and_was_sent_once(
    service: Service, status: int
) -> None:
    service.status = status
    attempt = send(f"json://127.0.0.1:{service.port}/{SECRET}?retry=5&wait=0.1")
    assert (attempt.ok, attempt.status, attempt.error) == (False, status, f"The service answered {status}.")
    assert len(service.requests) == 1


def nowhere(port: int) -> list[str]:
    """URLs that lead to this machine, however they are written; the last by a name that a resolver knows."""
    return [
        f"json://127.0.0.1:{port}/",
        f"json://localhost:{port}/",
        f"json://[::1]:{port}/",
        f"json://{socket.gethostname()}:{port}/",
        f"ntfy://localhost:{port}/topic",
        f"mailto://a:b@localhost:{port}?smtp=localhost&mode=insecure&to=a@example.org",
        f"mqtt://localhost:{port}/topic",
        f"rsyslog://127.0.0.1:{port}/auth",
        f"irc://localhost:{port}/%23farm?user=a",
    ]


def test_without_leave_it_connects_to_no_address_of_this_machine(guard: GuardedListener) -> None:
    guard.connections()
    with ThreadPoolExecutor(3) as pool:
        attempts = list(pool.map(lambda url: send(url, allowed=()), nowhere(guard.port)))
    assert [attempt.ok for attempt in attempts] == [False] * len(attempts)
    assert guard.connections() == 0
    said = [attempt.error for attempt in attempts]
    assert sum("private or otherwise special" in error for error in said) >= 6, said


def test_the_guard_of_the_tests_counts_who_comes(guard: GuardedListener) -> None:
    """Else the test above would hold of a listener that hears nothing."""
    guard.connections()
    send(f"json://localhost:{guard.port}/?rto=0.2", allowed=(*LOOPBACK, ip_network("::1/128")))
    assert guard.connections() >= 1


@pytest.mark.parametrize("words", ["", "?redirect=yes"])
def test_no_redirect_leads_out_of_what_is_allowed(service: Service, guard: GuardedListener, words: str) -> None:
    guard.connections()
    service.status, service.location = 307, f"http://127.0.0.2:{guard.port}/"
    attempt = send(f"json://127.0.0.1:{service.port}/{words}")
    assert not attempt.ok and len(service.requests) == 1
    assert guard.connections() == 0


def test_a_tarpit_is_left_at_the_deadline() -> None:
    hold = threading.Event()
    with served(lambda *_: hold.wait(20) and None) as port:
        began = time.monotonic()
        attempt = send(f"json://127.0.0.1:{port}/?rto=60&cto=60", seconds=2.0)
        assert time.monotonic() - began < 5
        hold.set()
    assert (attempt.ok, attempt.error) == (False, "The service did not take the message within 2 seconds.")


def test_nobody_there_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    attempt = send(f"json://127.0.0.1:{port}/{SECRET}")
    assert (attempt.ok, attempt.status) == (False, None)
    assert attempt.error == "The service cannot be reached, or did not take the message."


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="only Linux shows command lines and environments")
def test_the_url_is_in_no_command_line_no_environment_and_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[bytes] = []
    ready, hold = threading.Event(), threading.Event()

    def look(*_: object) -> None:
        for entry in Path("/proc").glob("[0-9]*"):
            for file in ("cmdline", "environ"):
                try:
                    seen.append((entry / file).read_bytes())
                except OSError:
                    continue
        ready.set()
        hold.wait(10)

    with served(look) as port:
        attempt = send(f"json://user:{SECRET}@127.0.0.1:{port}/{SECRET}?rto=0.5", seconds=5.0)
        hold.set()
    assert ready.is_set() and any(b"apprise_process" in each for each in seen)
    assert not any(SECRET.encode() in each for each in seen)
    assert SECRET not in str(attempt) and SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("url", "service_name"),
    [
        ("discord://123456789012345678/abcdefghijklmnopqrstuvwxyz", "Discord"),
        ("https://discord.com/api/webhooks/123456789012345678/abcdefghijklmnopqrst", "Discord"),
        ("tgram://123456789:abcdefg_hijklmnop/12315544/", "Telegram"),
        ("hassios://home.example.org/" + "a" * 32, "HomeAssistant"),
        ("mailtos://user:pass@example.org", "E-Mail"),
    ],
)
def test_a_proper_url_is_known_by_its_service(url: str, service_name: str) -> None:
    assert check_apprise_url(url) == (service_name, None)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        *((f"{schema}://", "on the machine that the farm runs on") for schema in ("dbus", "SysLog")),
        ("file:///etc/passwd", "No service is known by file://."),
        ("https://example.org/hook", "No service is known by this address"),
        ("slack://x", "not a proper URL for Slack"),
        ("xmpp://user:pass@example.org", "needs software that is not installed"),
        ("", "not an apprise URL"),
        ("ntfy", "not an apprise URL"),
        ("ntfy://a b", "not an apprise URL"),
        ("ntfy://a\nb", "not an apprise URL"),
        ("../x://a", "not an apprise URL"),
        ("json://" + "a" * 2_000, "longer than 2,000"),
    ],
)
def test_an_url_that_leads_nowhere_is_refused_in_words(url: str, why: str) -> None:
    service_name, fault = check_apprise_url(url)
    assert service_name is None and fault is not None and why in fault


def test_a_refused_url_is_not_repeated_in_the_refusal() -> None:
    _, fault = check_apprise_url(f"discord://{SECRET}")
    assert fault is not None and SECRET not in fault


PROBE = """
import sys; sys.path += sys.argv[1:]
from delivery.apprise_process import Guard
import socket, subprocess, os, shutil
guard = Guard([])
sys.addaudithook(guard)
acts = {
    "program": lambda: subprocess.run(["true"]),
    "shell": lambda: os.system("true"),
    "fork": os.fork,
    "write": lambda: open("written", "w"),
    "append": lambda: os.open("written", os.O_WRONLY | os.O_CREAT),
    "secret": lambda: open("/etc/passwd").read(),
    "own": lambda: open(sys.argv[1] + "/README.md"),
    "remove": lambda: os.remove("nothing"),
    "copy": lambda: shutil.copyfile("/etc/passwd", "copy"),
    "unix": lambda: socket.socket(socket.AF_UNIX).connect("/run/nothing"),
    "name": lambda: socket.socket().connect(("localhost", 9)),
    "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 9)),
    "listen": lambda: socket.socket().bind(("127.0.0.1", 28080)),
}
for name, act in acts.items():
    try:
        act()
    except PermissionError:
        continue
    except BaseException as fault:
        print(name, repr(fault))
    else:
        print(name, "done")
import email.mime.audio, zoneinfo, certifi
open(certifi.where()).close()
print("libraries can be read")
"""


def test_no_library_in_that_process_runs_a_program_or_reads_or_writes_a_file_of_ours(tmp_path: Path) -> None:
    libraries = [folder for folder in sys.path if folder.endswith("-packages")]
    command = [sys.executable, "-I", "-B", "-c", PROBE, str(ROOT), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=30)
    assert done.stdout == "libraries can be read\n", done.stdout + done.stderr
    assert os.listdir(tmp_path) == []


def test_a_file_that_an_url_names_does_not_go_out(tmp_path: Path) -> None:
    """This service would take its message from a template: any file of ours that holds JSON."""
    template = tmp_path / "template.json"
    template.write_text(json.dumps({"type": "message", "attachments": [{"said": SECRET}]}))
    with WebhookReceiver(certificate=ThrowAwayCertificate("127.0.0.1")).answer_with(202, times=2) as receiver:
        url = f"workflows://127.0.0.1:{receiver.port}/workflow1/signature1/?verify=no"
        assert send(url).ok and len(receiver.received) == 1
        assert not send(f"{url}&template={template}").ok
    assert len(receiver.received) == 1 and SECRET not in str(receiver.received)


def test_mqtt_is_spoken_too() -> None:
    """Its library connects to itself, which must not be taken for a way into this machine."""
    heard: list[bytes] = []

    def broker(connection: socket.socket, _: int) -> None:
        heard.append(connection.recv(64))
        connection.sendall(b"\x20\x02\x00\x00")
        heard.append(connection.recv(4_096))

    with served(broker) as port:
        assert send(f"mqtt://127.0.0.1:{port}/news").ok
    assert b"MQTT" in heard[0] and b"news" in heard[1]


def test_one_module_is_imported_and_not_all() -> None:
    """All 180 take a second of a processor."""
    script = (
        "import sys; sys.path += sys.argv[1:]; from delivery.apprise_process import service_of;"
        "service_of('ntfy://ntfy.sh/topic'); print(sum(name.startswith('apprise.plugins.') for name in sys.modules))"
    )
    libraries = [folder for folder in sys.path if folder.endswith("-packages")]
    command = [sys.executable, "-I", "-B", "-c", script, str(ROOT), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert re.fullmatch(r"[0-9]{1,2}\n", done.stdout) and int(done.stdout) < 10
