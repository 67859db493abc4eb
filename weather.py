"""OpenWeatherMap over HTTPS: the temperature and humidity outside, and where a place lies.

OpenWeatherMap's words stop here. No Flask, no SQLAlchemy: plain values go in and come out. The key travels in the
address, which is how OpenWeatherMap takes it, so no address is ever part of an exception, and the HTTP library's own
log is kept from showing it.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

import requests
from urllib3.exceptions import HTTPError

BASE_URL = "https://api.openweathermap.org"
MAX_ANSWER_BYTES = 256 * 1024  # a real one has about 600
LONGEST_ANSWER_SECONDS = 15.0
# Free keys may make 60 calls a minute, and several processes may share one.
CALLS_PER_MINUTE = 20
MAX_PLACES = 256
# The model behind it is run about every 10 minutes; nothing here changes by the minute.
FRESH_FOR = timedelta(minutes=30)
# What lies further back says nothing about the air of now.
KEPT_FOR = timedelta(hours=12)
NAMES_KEPT_FOR = timedelta(hours=24)
PLACE_UNKNOWN_FOR = timedelta(hours=1)
# A refused key may be a new one (valid after up to 2 hours), and a spent one is good again after 10 minutes.
REFUSED_FOR = timedelta(minutes=15)
SHORTEST_PAUSE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(minutes=30)

_KEY = re.compile(r"(?i)(appid=)[^&\s'\")]*")
# C0 and C1 controls, lone surrogates, and the marks that reorder the text after them.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")

Kept = TypeVar("Kept")


class WeatherError(Exception):
    """What kept OpenWeatherMap from giving what was asked for. `message` is for a person, and holds no key."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class KeyRefused(WeatherError):
    """The key is wrong, not subscribed to this, or too new. Asking again soon changes nothing."""


class RateLimited(WeatherError):
    """The key's calls are used up for now."""


class PlaceUnknown(WeatherError):
    """No such place."""


class Unavailable(WeatherError):
    """No usable answer: network, 5xx, a page instead of JSON."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The air outside: °C, relative humidity in % (0 is a value), and when it was measured."""

    temperature_c: float
    humidity_percent: float
    measured_at: datetime


@dataclass(frozen=True, slots=True)
class FoundPlace:
    """`name` as OpenWeatherMap writes it, with state and country: `Berlin, DE`. Degrees north and east."""

    name: str
    latitude: float
    longitude: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known of the air at a place. `problem` says why it is not of now, or not known at all."""

    observation: Observation | None
    problem: str | None = None


class OpenWeatherMap:
    """One key's view of OpenWeatherMap; every call asks. `timeout` is in seconds, as requests takes it."""

    def __init__(
        self,
        *,
        key: str,
        session: requests.Session,
        clock: Callable[[], datetime],
        base_url: str = BASE_URL,
        timeout: float | tuple[float, float] = (3.0, 5.0),
    ) -> None:
        self._key = key
        self._session = session
        self._clock = clock
        self._base_url = base_url.rstrip("/")
        self._timeout = timeout

    def current(self, latitude: float, longitude: float) -> Observation:
        """The air there now. Raises WeatherError."""
        body = self._ask("/data/2.5/weather", {"lat": f"{latitude:.2f}", "lon": f"{longitude:.2f}", "units": "metric"})
        main = body.get("main") if isinstance(body, dict) else None
        if not isinstance(body, dict) or not isinstance(main, dict):
            raise Unavailable("OpenWeatherMap's answer holds no weather")
        temperature, humidity = _number(main.get("temp"), -100, 70), _number(main.get("humidity"), 0, 100)
        if temperature is None or humidity is None:
            raise Unavailable("OpenWeatherMap's answer holds no temperature and humidity")
        return Observation(temperature, humidity, self._measured_at(body.get("dt")))

    def find(self, name: str) -> FoundPlace:
        """Where the place of that name is: the first of those that OpenWeatherMap knows. Raises WeatherError."""
        body = self._ask("/geo/1.0/direct", {"q": name, "limit": "1"})
        if not isinstance(body, list):
            raise Unavailable("OpenWeatherMap's answer is not a list of places")
        for place in body:
            if isinstance(place, dict):
                latitude, longitude = _number(place.get("lat"), -90, 90), _number(place.get("lon"), -180, 180)
                if latitude is not None and longitude is not None:
                    words = [_plain(place.get(part)) for part in ("name", "state", "country")]
                    return FoundPlace(", ".join(word for word in words if word) or name, latitude, longitude)
        raise PlaceUnknown("OpenWeatherMap knows no place of that name")

    def _measured_at(self, value: object) -> datetime:
        now = self._clock()
        seconds = _number(value, 0, 2**40)
        if seconds is None:
            return now
        # One that is ahead comes of clocks that differ.
        return min(now, datetime.fromtimestamp(int(seconds), UTC))

    def _ask(self, path: str, query: Mapping[str, str]) -> object:
        """The one door to OpenWeatherMap: a JSON value, or a WeatherError."""
        fault, content, status = "", b"", 0
        ends_at = time.monotonic() + LONGEST_ANSWER_SECONDS
        try:
            with self._session.get(
                f"{self._base_url}{path}",
                params={**query, "appid": self._key},
                headers={"Accept": "application/json"},
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            ) as response:
                status = response.status_code
                for chunk in response.iter_content(16_384):
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES or time.monotonic() > ends_at:
                        fault = "an answer without end"
                        break
        except (OSError, HTTPError, ValueError) as error:  # requests' own are OSErrors, but for those of odd addresses
            fault = type(error).__name__
        if fault:
            # Raised out here, so that the library's exception, whose text holds the address and with it the key, is
            # not chained.
            raise Unavailable(f"OpenWeatherMap could not be reached ({fault})")
        body = _parse(content)
        if isinstance(body, dict) and "cod" in body:
            # A text in some answers, a number in others.
            said = _number(body["cod"], 100, 599)
            status = int(said) if said is not None and status == 200 else status
        if status != 200:
            raise _refusal(status)
        return body


class Weather:
    """OpenWeatherMap with a memory, for all threads of a process: asks once in FRESH_FOR per place, never more than
    CALLS_PER_MINUTE, and after a refusal or failure not at all for a while, whatever the place."""

    def __init__(self, source: OpenWeatherMap, clock: Callable[[], datetime]) -> None:
        self._source = source
        self._clock = clock
        self._seen: _Shelf[Observation] = _Shelf()
        self._named: _Shelf[FoundPlace] = _Shelf()
        self._unknown: _Shelf[str] = _Shelf()
        self._failures = 0
        self._failing: tuple[datetime, str] | None = None  # since when, and why it did the last time
        self._pause: tuple[datetime, datetime] | None = None
        self._calls: deque[datetime] = deque()
        self._lock = threading.Lock()
        self._asking = threading.Lock()

    def at(self, latitude: float, longitude: float) -> Outlook:
        """The air at a place, to about a kilometre. Never raises for anything that OpenWeatherMap does."""
        place = f"{latitude:.2f} {longitude:.2f}"
        try:
            seen = self._look_up(self._seen, place, FRESH_FOR, lambda: self._source.current(latitude, longitude))
        except WeatherError as fault:
            return Outlook(self._seen.get(place, self._clock(), KEPT_FOR), f"The weather {self._told(fault)}.")
        return Outlook(seen)

    def find(self, name: str) -> FoundPlace:
        """Where a place is. Raises WeatherError, PlaceUnknown where there is none of that name."""
        asked = " ".join(name.split()).casefold()
        return self._look_up(self._named, asked, NAMES_KEPT_FOR, lambda: self._source.find(name))

    def _look_up(self, shelf: _Shelf[Kept], key: str, good_for: timedelta, ask: Callable[[], Kept]) -> Kept:
        """What lies on the shelf, or what comes of asking: one asks at a time, and who waited takes what it brought.

        Raises:
            WeatherError: what came of it, or what came of the last try while it is too early for another.
        """
        kept = shelf.get(key, self._clock(), good_for)
        if kept is not None:
            return kept
        if not self._asking.acquire(timeout=LONGEST_ANSWER_SECONDS):
            raise Unavailable("OpenWeatherMap takes long to answer")
        try:
            kept = shelf.get(key, self._clock(), good_for)
            if kept is not None:
                return kept
            unknown = self._unknown.get(key, self._clock(), PLACE_UNKNOWN_FOR)
            if unknown is not None:
                raise PlaceUnknown(unknown)
            self._check_pause()
            try:
                kept = ask()
            except PlaceUnknown as fault:
                self._unknown.put(key, fault.message, self._clock())
                self._has_answered()
                raise
            except WeatherError as fault:
                self._has_failed(fault)
                raise
            shelf.put(key, kept, self._clock())
            self._has_answered()
            return kept
        finally:
            self._asking.release()

    def _check_pause(self) -> None:
        now = self._clock()
        with self._lock:
            # Times ahead of now were noted before the clock was set back.
            if self._pause is not None and self._failing is not None and self._pause[0] <= now < self._pause[1]:
                raise Unavailable(self._failing[1])
            self._calls = deque(at for at in self._calls if now - timedelta(minutes=1) < at <= now)
            if len(self._calls) >= CALLS_PER_MINUTE:
                raise RateLimited("too many places are asked for at once: try again in a minute")
            self._calls.append(now)

    def _has_answered(self) -> None:
        with self._lock:
            self._failures, self._failing, self._pause = 0, None, None

    def _has_failed(self, fault: WeatherError) -> None:
        now = self._clock()
        with self._lock:
            self._failures += 1
            pause = min(SHORTEST_PAUSE * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE)
            if isinstance(fault, KeyRefused | RateLimited):
                pause = REFUSED_FOR
            since = self._failing[0] if self._failing is not None else now
            self._failing = since, fault.message
            self._pause = now, now + pause

    def _told(self, fault: WeatherError) -> str:
        with self._lock:
            if self._failing is None:
                return f"cannot be read: {fault.message}"
            return f"has not been to be had since {self._failing[0]:%Y-%m-%d %H:%M} UTC: {fault.message}"


class _Shelf(Generic[Kept]):
    """Up to MAX_PLACES values with the time they came in; the one that was asked for least recently gives way."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[datetime, Kept]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, now: datetime, within: timedelta) -> Kept | None:
        with self._lock:
            found = self._kept.get(key)
            if found is None or not timedelta(0) <= now - found[0] < within:
                return None
            self._kept.move_to_end(key)
            return found[1]

    def put(self, key: str, value: Kept, now: datetime) -> None:
        with self._lock:
            self._kept[key] = now, value
            self._kept.move_to_end(key)
            while len(self._kept) > MAX_PLACES:
                self._kept.popitem(last=False)


class _HideKey(logging.Filter):
    """urllib3 writes whole addresses: each request at DEBUG, and at WARNING one whose answer has broken headers."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if "appid=" in said.lower():
            record.msg, record.args = _KEY.sub(r"\1[hidden]", said), ()
        return True


for _name in ("urllib3.connectionpool", "urllib3.connection"):
    logging.getLogger(_name).addFilter(_HideKey())


def _parse(content: bytes) -> object:
    """The JSON value, or None for anything else."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _refusal(status: int) -> WeatherError:
    """In words of ours: OpenWeatherMap's own could repeat what was sent."""
    if status == 401:
        return KeyRefused(
            "OpenWeatherMap does not take the key of this installation (a new one is good after up to two hours)"
        )
    if status == 429:
        return RateLimited("OpenWeatherMap's calls are used up for now")
    if status in (400, 404):
        return PlaceUnknown("OpenWeatherMap knows no such place")
    return Unavailable(f"OpenWeatherMap is not available (status {status})")


def _number(value: object, low: float, high: float) -> float | None:
    """A number or a text of one, within bounds; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and low <= number <= high else None


def _plain(value: object) -> str:
    return _UNPRINTABLE.sub("", value).strip()[:80] if isinstance(value, str) else ""
