"""One message through apprise, which knows the ways of a hundred services: Discord, ntfy, Telegram, Home Assistant …

apprise and the service's URL meet in a process of their own (`delivery.apprise_process`), which may connect to no
address that a webhook may not go to, and is killed at its deadline. The URL is a secret as a whole: it goes there over
a pipe, and is in no command line, no log and no error.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from delivery.attempt import Attempt
from delivery.webhook_target import Network

MAX_URL_CHARS = 2_000
CHECK_SECONDS = 15.0
# Each takes a processor for a third of a second, and 36 MB for its time.
MAX_PROCESSES = 8
_PROCESSES = threading.BoundedSemaphore(MAX_PROCESSES)
_ROOT = Path(__file__).parent.parent
_URL = re.compile(r"[a-z0-9][a-z0-9+.-]{0,60}://[^\x00-\x20\x7f]*", re.I)
NO_URL = "This is not an apprise URL, such as ntfy://ntfy.sh/my-topic."


class _Broken(Exception):
    """The process ended without an answer."""


class ApprisePost:
    """Sends messages to the services that apprise URLs name. Safe to share between threads.

    It connects to public addresses and `allowed_networks` alone. `timeout_seconds` holds for the whole attempt, from
    the start of its process to the service's answer.
    """

    def __init__(self, allowed_networks: Sequence[Network], *, timeout_seconds: float = 15.0) -> None:
        self._allowed_networks = [str(network) for network in allowed_networks]
        self._timeout_seconds = timeout_seconds

    def send(self, url: str, *, title: str, body: str, is_urgent: bool) -> Attempt:
        """Send one message in plain text once. Whatever the URL or the service do, the outcome is an Attempt.

        `answer` is always empty: what a service answers may hold what the URL keeps secret.
        """
        request = {
            "url": url,
            "title": title,
            "body": body,
            "is_urgent": is_urgent,
            "allowed_networks": self._allowed_networks,
        }
        began = time.monotonic()
        status: int | None = None
        error: str | None
        try:
            answer = _ask(request, self._timeout_seconds)
        except subprocess.TimeoutExpired:
            error = f"The service did not take the message within {self._timeout_seconds:g} seconds."
        except _Broken:
            error = "The message could not be handed to the service."
        else:
            status, error = answer["status"], answer["error"]
        return Attempt(error is None, status, round((time.monotonic() - began) * 1000), error, b"")


def check_apprise_url(url: str) -> tuple[str, None] | tuple[None, str]:
    """(what the service is called, None), or (None, a sentence that says what is wrong with the URL).

    Nothing is sent and no name is looked up. Takes about half a second.
    """
    if len(url) > MAX_URL_CHARS:
        return None, f"The URL is longer than {MAX_URL_CHARS:,} characters."
    if not _URL.fullmatch(url):
        return None, NO_URL
    try:
        answer = _ask({"url": url, "allowed_networks": []}, CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        return None, "The URL took too long to read."
    except _Broken:
        return None, NO_URL
    return (None, answer["error"]) if answer["error"] else (answer["service"], None)


def _ask(request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What the process answers to a request.

    Raises:
        TimeoutExpired: it did not in time, and was killed.
        _Broken: it ended otherwise.
    """
    libraries = [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    command = (
        *(sys.executable, "-I", "-B", "-X", "utf8", "-c"),
        "import sys; sys.path += sys.argv[1:]; from delivery.apprise_process import main; sys.exit(main())",
        str(_ROOT),
        *libraries,
    )
    content = json.dumps(request).encode()
    with _PROCESSES:
        done = subprocess.run(
            command,
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            timeout=seconds,
            check=False,
        )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise _Broken from None
    if done.returncode != 0 or not isinstance(answer, dict):
        raise _Broken
    return answer
