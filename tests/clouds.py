"""Bambu Lab's cloud as tests of the whole API need it: simulated on loopback, with accounts that carry a mark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from simulator import Machine
from simulator.cloud import CloudAccount, SimulatedCloud

# Where nobody answers: no test asks the real cloud.
NOWHERE = {
    "BAMBU_CLOUD_API_URL": "http://127.0.0.1:9",
    "BAMBU_CLOUD_WEB_URL": "http://127.0.0.1:9",
    "BAMBU_CLOUD_MQTT": "127.0.0.1:9",
}


def settings_of(cloud: SimulatedCloud) -> dict[str, str]:
    """The environment that leads an app there."""
    return {
        "BAMBU_CLOUD_API_URL": cloud.api_url,
        "BAMBU_CLOUD_WEB_URL": cloud.web_url,
        "BAMBU_CLOUD_MQTT": f"{cloud.mqtt_host}:{cloud.mqtt_port}",
        "BAMBU_CLOUD_CA_FILE": str(cloud.ca_file),
    }


def account_of(mark: str, kind: str = "main") -> CloudAccount:
    """An account whose every text carries the mark."""
    uid = str(1_000_000 + int.from_bytes(f"{mark}{kind}".encode()) % 1_000_000_007)
    return CloudAccount(f"{mark}-{kind}@cloud.example", f"{mark}-cloud-password", uid)


@contextmanager
def marked_cloud(*marks: str, clock: Callable[[], datetime]) -> Iterator[SimulatedCloud]:
    """A cloud with two accounts for each mark; the main one has a printer and a past print."""
    with SimulatedCloud(
        *(account_of(mark, kind) for mark in marks for kind in ("main", "spare")), clock=clock
    ) as cloud:
        for mark in marks:
            cloud.bind(account_of(mark), Machine(f"{mark}03", "P1S"))
            cloud.add_past_print(account_of(mark), title=f"{mark} past", deviceId=f"{mark}03")
        yield cloud
