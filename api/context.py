"""What a view needs of the app it runs in: the clock, the settings, the keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import requests
from flask import current_app

from bambu_cloud import HOSTS, BambuCloud, CallBudget, CloudHosts
from etsy_client import EtsyClient
from etsy_tokens import EtsyAccess
from farm.materials import StageLimits
from farm.starter import StartRules
from models import CloudRegion
from settings import Settings
from vault import Vault
from weather import Weather


@dataclass(frozen=True, slots=True)
class Parts:
    """The app's real objects, handed in by `create_app`.

    Bambu Lab's cloud is asked through a session of its own, whose cookie jar is closed, and within one budget of calls
    for all accounts of this process: they all come from one address.
    """

    settings: Settings
    vault: Vault
    http: requests.Session
    limits: StageLimits
    cloud_http: requests.Session
    cloud_budget: CallBudget
    clock: Callable[[], datetime]
    weather: Weather | None
    # Seconds go by until Etsy is asked again.
    sleep: Callable[[float], None] = time.sleep

    def etsy_access(self) -> EtsyAccess:
        return EtsyAccess(self.settings, self.vault, self.http, self.clock, self.sleep)

    def cloud_hosts(self, region: CloudRegion) -> CloudHosts:
        """Where a region's cloud is; what the settings name takes the place of the region's own."""
        chosen, hosts = self.settings, HOSTS[region.value]
        host, _, port = chosen.bambu_cloud_mqtt.rpartition(":")
        if host:
            hosts = replace(hosts, mqtt_host=host, mqtt_port=int(port))
        return replace(
            hosts,
            api=chosen.bambu_cloud_api_url or hosts.api,
            web=chosen.bambu_cloud_web_url or hosts.web,
            ca_file=chosen.bambu_cloud_ca_file or hosts.ca_file,
        )

    def cloud(self, region: CloudRegion) -> BambuCloud:
        return BambuCloud(
            region=region.value,
            session=self.cloud_http,
            clock=self.clock,
            hosts=self.cloud_hosts(region),
            budget=self.cloud_budget,
        )


def parts() -> Parts:
    found: Parts = current_app.extensions["parts"]
    return found


def settings() -> Settings:
    return parts().settings


def limits() -> StageLimits:
    return parts().limits


def start_rules() -> StartRules:
    return StartRules.from_settings(settings())


def vault() -> Vault:
    return parts().vault


def now() -> datetime:
    """Aware UTC, from the clock that was passed to `create_app`."""
    moment: datetime = current_app.extensions["clock"]()
    return moment


def etsy_access() -> EtsyAccess:
    """What it takes to ask Etsy in the name of shops."""
    return parts().etsy_access()


def etsy() -> EtsyClient | None:
    """The Etsy client of this installation's own key, or None where none is configured."""
    return etsy_access().client()
