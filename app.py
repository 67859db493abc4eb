"""The Flask app: wiring only. `python app.py` runs the whole farm in one process."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType
from urllib.parse import quote

import requests
import structlog
from flask import Flask, Response, request
from flask_cors import CORS
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import IntegerConverter
from werkzeug.serving import make_server

import auth
import database
import errors
from api import (
    accounts,
    batches,
    cloud_accounts,
    connections,
    deliveries,
    discovered,
    docs,
    etsy_login,
    etsy_webhook,
    events,
    maintenance,
    materials,
    notification_channels,
    notification_settings,
    order_sync,
    orders,
    plans,
    print_files,
    printer_actions,
    printers,
    prints,
    probes,
    product_profiles,
    queue,
    schedule,
    shipping,
    shops,
    unmapped,
    weather,
)
from api.context import Parts
from api.reading import Room
from bambu_cloud import CallBudget
from bell import hang_bell
from farm.materials import StageLimits
from live import Live, go_live
from models import MAX_ID
from postbox import hang_postbox
from settings import Settings, SettingsError
from vault import Vault
from weather import OpenWeatherMap, Weather

Clock = Callable[[], datetime]

ROOMS: tuple[Room, ...] = (
    accounts.blueprint,
    etsy_login.blueprint,
    etsy_webhook.blueprint,
    shops.blueprint,
    printers.blueprint,
    printer_actions.blueprint,
    maintenance.blueprint,
    discovered.blueprint,
    connections.blueprint,
    cloud_accounts.blueprint,
    orders.blueprint,
    order_sync.blueprint,
    shipping.blueprint,
    plans.blueprint,
    unmapped.blueprint,
    schedule.blueprint,
    product_profiles.blueprint,
    print_files.blueprint,
    materials.blueprint,
    notification_settings.blueprint,
    notification_channels.blueprint,
    deliveries.blueprint,
    prints.blueprint,
    queue.blueprint,
    batches.blueprint,
    weather.blueprint,
    events.blueprint,
    probes.blueprint,
)
# The only routes without a token; whatever is not in here is closed.
PUBLIC_ENDPOINTS = frozenset(
    {
        "accounts.register",
        "accounts.log_in",
        "accounts.refresh",
        "etsy login.begin_etsy_login",
        "etsy login.finish_etsy_login",
        "etsy login.finish_etsy_redirect",
        "etsy webhook.take_webhook",
        "probes.get_health",
        "probes.get_liveness",
        "probes.get_readiness",
        "probes.get_metrics",
        "docs.get_document",
        "docs.get_page",
        "docs.get_asset",
    }
)
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-site",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def _digits_up_to(limit: int) -> str:
    """A pattern of the numbers from 1 to `limit`, without leading zeros."""
    text = str(limit)
    shorter = f"[1-9][0-9]{{0,{len(text) - 2}}}"
    smaller = [
        f"{text[:place]}[{'1' if place == 0 else '0'}-{int(digit) - 1}][0-9]{{{len(text) - place - 1}}}"
        for place, digit in enumerate(text)
        if int(digit) > (1 if place == 0 else 0)
    ]
    return "(?:" + "|".join([shorter, *smaller, text]) + ")"


class IdConverter(IntegerConverter):
    """The id of a row: what no database could hold is no address of ours. In the pattern itself, since a bound that is
    checked after the match makes werkzeug answer 405 instead of 404."""

    regex = _digits_up_to(MAX_ID)


def utc_now() -> datetime:
    return datetime.now(UTC)


def create_app(
    settings: Settings | None = None,
    *,
    clock: Clock = utc_now,
    http: requests.Session | None = None,
    cloud_budget: CallBudget | None = None,
) -> Flask:
    """The whole API over one database. Clock, HTTP session and the cloud's budget of calls are passed in by tests.

    Raises:
        SettingsError: the environment does not make a safe configuration.
    """
    settings = settings or Settings.from_environment()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    app = Flask(__name__, static_folder=None)
    app.config.update(
        SECRET_KEY=settings.secret_key.get_secret_value(),
        SQLALCHEMY_DATABASE_URI=settings.database_url,
        SQLALCHEMY_ENGINE_OPTIONS=database.engine_options(settings.database_url),
        MAX_CONTENT_LENGTH=settings.max_body_bytes,
        MAX_FORM_MEMORY_SIZE=settings.max_body_bytes,
    )
    app.url_map.converters["id"] = IdConverter
    # Else a doubled slash would be a redirect to whatever Host the client named.
    app.url_map.merge_slashes = False
    http = http or requests.Session()
    app.extensions["clock"] = clock
    app.extensions["parts"] = Parts(
        settings=settings,
        vault=Vault(settings.encryption_keys.get_secret_value()),
        http=http,
        limits=StageLimits.from_settings(settings),
        cloud_http=requests.Session(),
        cloud_budget=cloud_budget or CallBudget(clock),
        clock=clock,
        weather=_weather(settings, clock, http),
    )
    database.init_app(app)
    # The first to hear of a commit: somebody waits for what it sends.
    hang_postbox(app, settings.redis_url)
    hang_bell(app)
    errors.init_app(app)
    app.before_request(print_files.allow_large_upload)
    auth.init_app(app, settings, clock, PUBLIC_ENDPOINTS)
    CORS(app, origins=list(settings.cors_origins), expose_headers=["X-Total-Count", "Link", "Retry-After"])
    _register_rooms(app)
    app.after_request(_harden)
    go_live(app, settings)
    if settings.proxy_hops:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=settings.proxy_hops, x_proto=settings.proxy_hops)  # type: ignore[method-assign]
    if settings.auto_db_create:
        database.bring_up_to_date(app)
    return app


def _weather(settings: Settings, clock: Clock, http: requests.Session) -> Weather | None:
    """The weather outside, or None where there is no key for it."""
    key = settings.openweather_api_key.get_secret_value()
    if not key:
        return None
    source = OpenWeatherMap(key=key, session=http, clock=clock, base_url=settings.openweather_base_url)
    return Weather(source, clock)


def _register_rooms(app: Flask) -> None:
    api = docs.make_api(app)
    api.register_converter(IdConverter, lambda converter: {"type": "integer", "minimum": 1, "maximum": MAX_ID})
    app.extensions["api"] = api
    for room in ROOMS:
        api.register_blueprint(room)
    app.register_blueprint(docs.blueprint)
    public = {
        (str(rule).replace("<id:", "{").replace(">", "}"), method.lower())
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if rule.endpoint in PUBLIC_ENDPOINTS
    }
    app.extensions["is_public"] = lambda path, method: (path, method) in public


def _harden(response: Response) -> Response:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if request.endpoint != "docs.get_asset":
        response.headers.setdefault("Cache-Control", "no-store")
    return response


def configure_logging() -> None:
    """One JSON object a line, our own and the libraries', so that no text of a printer or a buyer can forge a line."""
    shared = (
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    )
    write = structlog.processors.JSONRenderer(ensure_ascii=True)
    structlog.configure(
        processors=[*shared, write],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    handler = logging.StreamHandler()
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=write))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # It gives itself a level when it has none, and would write a line a request.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)


def spare_what_stays() -> None:
    """Leave what lives as long as the process out of every later search for garbage. Else a full one walks through all
    of it now and then, and no thread runs for 100 ms and more: once everything is in place, before the work begins."""
    gc.collect()
    gc.freeze()


def serve(app: Flask, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, with the worker inside where the settings say so."""
    from worker import Worker

    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    # Set both: a background job of a shell starts with SIGINT ignored.
    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    server = make_server(settings.host, settings.port, app, threaded=True)
    # Requests under way end before the process does.
    vars(server)["daemon_threads"] = False
    web = threading.Thread(target=server.serve_forever, name="web")
    web.start()
    worker = Worker(app) if settings.embedded_worker else None
    if worker:
        worker.start()
    spare_what_stays()
    log = structlog.get_logger()
    log.info("serving", url=f"http://{quote(settings.host)}:{server.server_port}", worker=worker is not None)
    stop.wait()
    log.info("stopping")
    live: Live = app.extensions["live"]
    server.shutdown()
    live.stop()
    if worker:
        worker.stop()
    web.join(timeout=10)
    server.server_close()


def main() -> None:
    configure_logging()
    try:
        settings = Settings.from_environment()
        app = create_app(settings)
    except SettingsError as error:
        sys.exit(f"The configuration is not usable: {error}")
    serve(app, settings)


if __name__ == "__main__":
    main()
