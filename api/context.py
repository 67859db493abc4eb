"""What a view needs of the app it runs in: the clock, the settings, the keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import requests
from flask import current_app

from etsy_client import EtsyClient
from farm.materials import StageLimits
from farm.starter import StartRules
from settings import Settings
from vault import Vault


@dataclass(frozen=True, slots=True)
class Parts:
    """The app's real objects, handed in by `create_app`."""

    settings: Settings
    vault: Vault
    http: requests.Session
    limits: StageLimits


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


def etsy() -> EtsyClient | None:
    """The Etsy client of this installation's own key, or None where none is configured."""
    chosen = settings()
    if not chosen.etsy_client_id or not chosen.etsy_shared_secret.get_secret_value():
        return None
    return EtsyClient(
        keystring=chosen.etsy_client_id,
        shared_secret=chosen.etsy_shared_secret.get_secret_value(),
        redirect_uri=chosen.etsy_redirect_uri,
        base_url=chosen.etsy_base_url,
        authorize_url=chosen.etsy_authorize_url,
        session=parts().http,
        clock=current_app.extensions["clock"],
    )
