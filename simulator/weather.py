"""OpenWeatherMap on loopback: a real HTTP server for the current weather and for looking up places. Never ships.

It answers as OpenWeatherMap's documents and integrators say, refusals included: `cod` is a text in some answers and a
number in others. Its time is the clock handed to it.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

HTML_PAGE = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
REFUSALS: dict[int, dict[str, Any]] = {
    400: {"cod": "400", "message": "Nothing to geocode"},
    401: {
        "cod": 401,
        "message": "Invalid API key. Please see https://openweathermap.org/faq#error401 for more info.",
    },
    404: {"cod": "404", "message": "city not found"},
    429: {
        "cod": 429,
        "message": "Your account is temporary blocked due to exceeding of requests limitation of your subscription "
        "type. Please choose the proper subscription https://openweathermap.org/price",
    },
    500: {"cod": "500", "message": "Internal error"},
    503: {"cod": "503", "message": "Service unavailable"},
}


@dataclass(frozen=True, slots=True)
class SimulatedPlace:
    name: str
    latitude: float
    longitude: float
    country: str
    state: str | None = None


BERLIN = SimulatedPlace("Berlin", 52.5170, 13.3889, "DE")
SPRINGFIELD = SimulatedPlace("Springfield", 39.7990, -89.6440, "US", "Illinois")


@dataclass(frozen=True, slots=True)
class SeenRequest:
    path: str
    query: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: object
    delay_seconds: float
    headers: Mapping[str, str] = field(default_factory=dict)


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """What was asked stands in `SimulatedWeather.requests`."""


class SimulatedWeather:
    """A context manager: inside it the server answers at `base_url` to the key it was made with.

    `temperature_c` and `humidity_percent` are the same everywhere, and may be set; `places` can be looked up by the
    beginning of their names.
    """

    def __init__(
        self,
        key: str,
        *,
        temperature_c: float = 5.0,
        humidity_percent: float = 85,
        places: tuple[SimulatedPlace, ...] = (BERLIN, SPRINGFIELD),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.temperature_c = temperature_c
        self.humidity_percent = humidity_percent
        self.requests: list[SeenRequest] = []
        self._key, self._places, self._clock = key, places, clock
        self._script: deque[_Answer] = deque()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server: BaseWSGIServer = make_server(
            "127.0.0.1", 0, self._application, threaded=True, request_handler=_QuietHandler
        )
        self.base_url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, name="simulated-weather", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer_with(
        self,
        status: int,
        body: object = None,
        *,
        delay_seconds: float = 0.0,
        headers: Mapping[str, str] | None = None,
        times: int = 1,
    ) -> None:
        """The next `times` requests are answered so: a text as HTML, all else as JSON, by default the status' own."""
        answer = _Answer(status, REFUSALS.get(status) if body is None else body, delay_seconds, headers or {})
        with self._lock:
            self._script.extend([answer] * times)

    def answer_well(self) -> None:
        """Forget the rest of the script."""
        with self._lock:
            self._script.clear()

    def _application(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        return self._respond(Request(environ))(environ, start_response)

    def _respond(self, request: Request) -> Response:
        with self._lock:
            self.requests.append(SeenRequest(request.path, request.args.to_dict()))
            scripted = self._script.popleft() if self._script else None
        if scripted is not None:
            self._closing.wait(scripted.delay_seconds)
            if scripted.status != 200 or scripted.body is not None:
                return _response(scripted.status, scripted.body, scripted.headers)
        headers = scripted.headers if scripted is not None else {}
        if request.args.get("appid") != self._key:
            return _response(401, REFUSALS[401])
        if request.path == "/geo/1.0/direct":
            return self._find(request)
        if request.path == "/data/2.5/weather":
            return self._observe(request, headers)
        return _response(404, {"cod": "404", "message": "Internal error"})

    def _find(self, request: Request) -> Response:
        name = request.args.get("q", "").partition(",")[0].strip().casefold()
        if not name:
            return _response(400, REFUSALS[400])
        found = [place for place in self._places if place.name.casefold().startswith(name)]
        limit = int(request.args.get("limit", "1"))
        return _response(200, [_place(place) for place in found[:limit]])

    def _observe(self, request: Request, headers: Mapping[str, str]) -> Response:
        try:
            latitude, longitude = float(request.args["lat"]), float(request.args["lon"])
        except (KeyError, ValueError):
            return _response(400, REFUSALS[400])
        if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
            return _response(400, {"cod": "400", "message": "wrong latitude"})
        kelvin = 0.0 if request.args.get("units") == "metric" else 273.15
        body = {
            "coord": {"lon": longitude, "lat": latitude},
            "weather": [{"id": 804, "main": "Clouds", "description": "overcast clouds", "icon": "04d"}],
            "base": "stations",
            "main": {
                "temp": self.temperature_c + kelvin,
                "feels_like": self.temperature_c + kelvin,
                "pressure": 1012,
                "humidity": self.humidity_percent,
            },
            "visibility": 10_000,
            "wind": {"speed": 3.6, "deg": 250},
            "clouds": {"all": 100},
            "dt": int(self._clock().timestamp()),
            "sys": {"country": "DE", "sunrise": 1_795_243_200, "sunset": 1_795_273_200},
            "timezone": 3600,
            "id": 2_950_159,
            "name": "",
            "cod": 200,
        }
        return _response(200, body, headers)


def _place(place: SimulatedPlace) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": place.name,
        "lat": place.latitude,
        "lon": place.longitude,
        "country": place.country,
    }
    return told if place.state is None else {**told, "state": place.state}


def _response(status: int, body: object, headers: Mapping[str, str] | None = None) -> Response:
    if isinstance(body, str):
        return Response(body, status, dict(headers or {}), content_type="text/html; charset=utf-8")
    return Response(json.dumps(body), status, dict(headers or {}), content_type="application/json; charset=utf-8")
