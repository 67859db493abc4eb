"""OpenWeatherMap over a real socket: what is asked, how often, and that the key is told to nobody."""

from __future__ import annotations

import logging
import socket
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import requests

import weather
from simulator.weather import HTML_PAGE, REFUSALS, SimulatedWeather
from weather import (
    CALLS_PER_MINUTE,
    FRESH_FOR,
    KEPT_FOR,
    MAX_PLACES,
    REFUSED_FOR,
    FoundPlace,
    KeyRefused,
    Observation,
    OpenWeatherMap,
    PlaceUnknown,
    RateLimited,
    Unavailable,
    Weather,
    WeatherError,
)

KEY = "QZKEYQZ0123456789abcdef01234567"
BERLIN = (52.517, 13.389)


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, span: timedelta) -> None:
        self.now += span


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[SimulatedWeather]:
    with SimulatedWeather(KEY, clock=clock) as simulated:
        yield simulated


def source_at(base_url: str, clock: Clock, key: str = KEY, timeout: float = 2.0) -> OpenWeatherMap:
    return OpenWeatherMap(key=key, session=requests.Session(), clock=clock, base_url=base_url, timeout=timeout)


@pytest.fixture
def source(server: SimulatedWeather, clock: Clock) -> OpenWeatherMap:
    return source_at(server.base_url, clock)


@pytest.fixture
def remembered(source: OpenWeatherMap, clock: Clock) -> Weather:
    return Weather(source, clock)


# The client


def test_the_air_at_a_place_is_asked_for_by_rounded_coordinates(
    source: OpenWeatherMap, server: SimulatedWeather, clock: Clock
) -> None:
    server.temperature_c, server.humidity_percent = -3.5, 0
    seen = source.current(*BERLIN)
    assert seen == Observation(-3.5, 0, clock.now)
    (asked,) = server.requests
    assert asked.path == "/data/2.5/weather"
    assert asked.query == {"lat": "52.52", "lon": "13.39", "units": "metric", "appid": KEY}


def test_a_place_is_found_by_its_name(source: OpenWeatherMap, server: SimulatedWeather) -> None:
    assert source.find("berlin,DE") == FoundPlace("Berlin, DE", 52.517, 13.3889)
    assert source.find("Springfield").name == "Springfield, Illinois, US"
    with pytest.raises(PlaceUnknown):
        source.find("Nowhere")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, None, PlaceUnknown),
        (401, None, KeyRefused),
        (404, None, PlaceUnknown),
        (429, None, RateLimited),
        (500, None, Unavailable),
        (503, HTML_PAGE, Unavailable),
        (301, HTML_PAGE, Unavailable),
        (200, HTML_PAGE, Unavailable),
        (200, {"cod": "404", "message": "city not found"}, PlaceUnknown),
        (200, REFUSALS[429], RateLimited),
        (200, [1, 2], Unavailable),
        (200, {}, Unavailable),
        (200, {"main": None}, Unavailable),
        (200, {"main": {"temp": True, "humidity": 50}}, Unavailable),
        (200, {"main": {"humidity": 50}}, Unavailable),
        (200, {"main": {"temp": 20}}, Unavailable),
        (200, {"main": {"temp": 293.15, "humidity": 50}}, Unavailable),
        (200, {"main": {"temp": 20, "humidity": 101}}, Unavailable),
        (200, {"main": {"temp": "nan", "humidity": 50}}, Unavailable),
        (200, {"main": {"temp": 10**400, "humidity": 50}}, Unavailable),
    ],
)
def test_every_other_answer_is_a_fault_of_its_kind(
    source: OpenWeatherMap, server: SimulatedWeather, status: int, body: object, kind: type[WeatherError]
) -> None:
    server.answer_with(status, body)
    with pytest.raises(WeatherError) as raised:
        source.current(*BERLIN)
    assert type(raised.value) is kind


def test_no_redirect_takes_the_key_elsewhere(source: OpenWeatherMap, server: SimulatedWeather) -> None:
    server.answer_with(
        302, HTML_PAGE, headers={"Location": f"{server.base_url}/data/2.5/weather?lat=1&lon=1&appid={KEY}"}
    )
    with pytest.raises(Unavailable, match="status 302"):
        source.current(*BERLIN)
    assert len(server.requests) == 1


def test_a_time_that_is_missing_absurd_or_ahead_is_the_time_of_asking(
    source: OpenWeatherMap, server: SimulatedWeather, clock: Clock
) -> None:
    for when in (None, "soon", 10**30, clock.now.timestamp() + 500):
        server.answer_with(200, {"main": {"temp": 1, "humidity": 2}, "dt": when})
        assert source.current(*BERLIN).measured_at == clock.now


def test_hostile_names_and_coordinates_of_places_are_left_out(source: OpenWeatherMap, server: SimulatedWeather) -> None:
    server.answer_with(200, [7, {"lat": 91, "lon": 0}, {"name": "A\u202eB\x00", "lat": 1, "lon": 2, "country": ["x"]}])
    assert source.find("x") == FoundPlace("AB", 1.0, 2.0)
    server.answer_with(200, {"lat": 1, "lon": 2})
    with pytest.raises(Unavailable):
        source.find("x")


def test_a_server_that_is_slow_gone_or_endless_is_unavailable(clock: Clock, server: SimulatedWeather) -> None:
    server.answer_with(200, delay_seconds=5)
    with pytest.raises(Unavailable, match="ReadTimeout"):
        source_at(server.base_url, clock, timeout=0.2).current(*BERLIN)
    with pytest.raises(Unavailable, match="ConnectionError"):
        source_at("http://127.0.0.1:9", clock).current(*BERLIN)
    server.answer_with(200, "x" * (weather.MAX_ANSWER_BYTES + 1))
    with pytest.raises(Unavailable, match="without end"):
        source_at(server.base_url, clock).current(*BERLIN)


@pytest.fixture
def broken_headers() -> Iterator[str]:
    """A server whose answers carry a header line that is none: urllib3 writes a warning with the whole address."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\nno header\r\nX-More: 1\r\n\r\n{}"
            )

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread.join(5)
    listening.close()


def test_the_key_reaches_no_log_and_no_exception(
    clock: Clock, server: SimulatedWeather, broken_headers: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    faults = []

    def ask(source: OpenWeatherMap) -> None:
        try:
            source.current(*BERLIN)
        except WeatherError as fault:
            faults.append("".join(traceback.format_exception(fault)) + repr(fault) + str(fault.__context__))

    for status in (401, 404, 429, 500):
        server.answer_with(status, {"cod": status, "message": f"not with {KEY}"})
        ask(source_at(server.base_url, clock))
    server.answer_with(200, delay_seconds=5)
    ask(source_at(server.base_url, clock, timeout=0.2))
    ask(source_at("http://127.0.0.1:9", clock))
    ask(source_at("http://[broken", clock))
    ask(source_at("no-scheme", clock))
    ask(source_at(broken_headers, clock))
    assert len(faults) == 9
    assert KEY not in "".join(faults)
    assert "Failed to parse headers" in caplog.text and "appid=[hidden]" in caplog.text
    assert KEY not in caplog.text
    assert KEY not in repr(source_at(server.base_url, clock))


# The memory


def test_a_place_is_asked_for_once_in_a_while_and_by_one_at_a_time(
    remembered: Weather, server: SimulatedWeather, clock: Clock
) -> None:
    server.answer_with(200, delay_seconds=0.1)
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(remembered.at(*BERLIN))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and all(each.observation and each.problem is None for each in seen)
    # So near that it is the same place.
    assert remembered.at(52.5199, 13.3861) == seen[0]
    clock.forward(FRESH_FOR - timedelta(seconds=1))
    assert remembered.at(*BERLIN).observation == seen[0].observation
    assert len(server.requests) == 1
    clock.forward(timedelta(seconds=1))
    remembered.at(*BERLIN)
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [401, 429])
def test_a_refused_key_is_not_tried_again_for_a_while_wherever_it_is_for(
    remembered: Weather, server: SimulatedWeather, clock: Clock, status: int
) -> None:
    server.answer_with(status, times=2)
    first = remembered.at(*BERLIN)
    assert first.observation is None
    for minutes in range(14):
        clock.forward(timedelta(minutes=1))
        assert remembered.at(minutes, minutes).problem == first.problem
    with pytest.raises(WeatherError):
        remembered.find("Berlin")
    assert len(server.requests) == 1
    clock.forward(REFUSED_FOR - timedelta(minutes=14))
    assert remembered.at(*BERLIN).problem == first.problem
    assert len(server.requests) == 2
    clock.forward(REFUSED_FOR)
    assert remembered.at(*BERLIN).problem is None


def test_the_last_good_answer_stays_with_when_it_was_and_since_when_it_fails(
    remembered: Weather, server: SimulatedWeather, clock: Clock
) -> None:
    good = remembered.at(*BERLIN).observation
    begun = clock.now
    clock.forward(timedelta(minutes=40))
    server.answer_with(503, HTML_PAGE, times=100)
    failed = remembered.at(*BERLIN)
    assert failed.observation == good and good is not None and good.measured_at == begun
    assert failed.problem == (
        "The weather has not been to be had since 2026-11-21 09:40 UTC: OpenWeatherMap is not available (status 503)."
    )
    clock.forward(timedelta(hours=2))
    assert remembered.at(*BERLIN) == failed
    clock.forward(KEPT_FOR)
    assert remembered.at(*BERLIN).observation is None


def test_failures_are_asked_about_less_and_less_and_end_with_the_first_good_answer(
    remembered: Weather, server: SimulatedWeather, clock: Clock
) -> None:
    server.answer_with(500, times=100)
    for _ in range(4 * 60):
        remembered.at(*BERLIN)
        clock.forward(timedelta(minutes=1))
    assert len(server.requests) == 12  # after 1, 2, 4, 8, 16, then every 30 minutes
    server.answer_well()
    clock.forward(timedelta(minutes=30))
    assert remembered.at(*BERLIN).problem is None
    clock.forward(FRESH_FOR)
    server.answer_with(500)
    assert "13:30" not in str(remembered.at(*BERLIN).problem)
    clock.forward(timedelta(minutes=1))
    assert remembered.at(*BERLIN).problem is None


def test_a_clock_that_was_set_back_forgets_rather_than_waits(
    remembered: Weather, server: SimulatedWeather, clock: Clock
) -> None:
    server.answer_with(401)
    remembered.at(*BERLIN)
    clock.forward(-timedelta(days=30))
    assert remembered.at(*BERLIN).problem is None
    clock.forward(-timedelta(days=30))
    assert remembered.at(*BERLIN).problem is None
    assert len(server.requests) == 3


def test_no_number_of_places_makes_more_than_so_many_calls_a_minute(
    remembered: Weather, server: SimulatedWeather, clock: Clock
) -> None:
    looks = [remembered.at(degree, 0) for degree in range(CALLS_PER_MINUTE + 5)]
    assert len(server.requests) == CALLS_PER_MINUTE
    assert [look.observation is None for look in looks] == [False] * CALLS_PER_MINUTE + [True] * 5
    assert "too many places" in str(looks[-1].problem)
    clock.forward(timedelta(minutes=1))
    assert remembered.at(89, 0).problem is None


def test_a_name_is_looked_up_once_and_an_unknown_one_not_again_for_a_while(
    remembered: Weather, server: SimulatedWeather, clock: Clock
) -> None:
    assert remembered.find("Berlin") == remembered.find("  bERLIN ")
    for _ in range(3):
        with pytest.raises(PlaceUnknown):
            remembered.find("Nowhere")
    assert len(server.requests) == 2
    server.answer_with(404)
    for _ in range(3):
        assert remembered.at(1, 1) == weather.Outlook(
            None, "The weather cannot be read: OpenWeatherMap knows no such place."
        )
    assert len(server.requests) == 3
    clock.forward(weather.PLACE_UNKNOWN_FOR)
    assert remembered.at(1, 1).problem is None


def test_no_more_than_so_many_places_are_kept(remembered: Weather, clock: Clock) -> None:
    shelf: weather._Shelf[int] = weather._Shelf()
    for number in range(MAX_PLACES + 10):
        shelf.put(str(number), number, clock.now)
        shelf.get("0", clock.now, FRESH_FOR)
    kept = [number for number in range(MAX_PLACES + 10) if shelf.get(str(number), clock.now, FRESH_FOR) is not None]
    assert len(kept) == MAX_PLACES and kept[0] == 0 and kept[1] == 11
