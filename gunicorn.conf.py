"""How the image serves: one process, many threads. `GUNICORN_CMD_ARGS` overrides any line of it."""

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from settings import Settings, SettingsError

try:
    _settings = Settings.from_environment()
except SettingsError as error:
    # Before the first process is forked, so that an unsafe installation stops with one sentence and is not retried.
    sys.exit(f"Not started: {error}")

bind = f"[{_settings.host}]:{_settings.port}" if ":" in _settings.host else f"{_settings.host}:{_settings.port}"

# One process, since limits, wake-ups and live connections are kept in memory.
workers = 1
worker_class = "gthread"
# Each live connection holds one for as long as it lasts, and requests are answered by the others. None is begun before
# it is needed.
API_THREADS = 32
threads = API_THREADS + _settings.live_clients
# Those that wait between two requests need no thread.
worker_connections = threads + 1000

# docker-compose.yml kills 30 seconds after SIGTERM: whatever is in flight has to end before that.
graceful_timeout = 20

# The heartbeat file must lie in memory (on a disk, fchmod can block), and a read-only root has no other place for it.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None

# Nobody steers this process from outside, and its socket would need a writable home.
control_socket_disable = True


def post_fork(server: Any, worker: Any) -> None:
    """Log in the application's own form, as `python app.py` and `python worker.py` do."""
    from app import configure_logging

    configure_logging()


def post_worker_init(worker: Any) -> None:
    """A live connection never ends by itself: on SIGTERM its client is sent away, else the process waited for it."""
    from app import spare_what_stays

    spare_what_stays()
    live = worker.wsgi.extensions["live"]

    def send_away_and(then: Any) -> Any:
        def on_signal(number: int, frame: FrameType | None) -> None:
            threading.Thread(target=live.stop, name="live stop", daemon=True).start()
            then(number, frame)

        return on_signal

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        then = signal.getsignal(number)
        if callable(then):
            signal.signal(number, send_away_and(then))
