"""How the simulated Etsy answers, and how strictly it reads. Never ships."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response

T = TypeVar("T")

BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class Refusal(Exception):
    """Ends the handling of a request with this answer."""

    def __init__(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.response = make_response(status, body, headers)


def make_response(status: int, body: object, headers: Mapping[str, str] | None = None) -> Response:
    if isinstance(body, str):
        return Response(body, status, headers, content_type="text/html; charset=utf-8")
    return Response(json.dumps(body), status, headers, content_type="application/json; charset=utf-8")


class QueryReader:
    """Reads a query or a form as strictly as Etsy does, and collects what is wrong with it."""

    def __init__(self, values: MultiDict[str, str]) -> None:
        self._values = values
        self._faults: list[dict[str, str]] = []

    def number(self, name: str, default: int, minimum: int, maximum: int) -> int:
        text = self._values.get(name, str(default))
        if re.fullmatch(r"[0-9]{1,18}", text) and minimum <= int(text) <= maximum:
            return int(text)
        return self._fault(name, f"must be a number from {minimum} to {maximum}", default)

    def boolean(self, name: str) -> bool | None:
        text = self._values.get(name)
        if text is None or text in BOOLEANS:
            return None if text is None else BOOLEANS[text]
        return self._fault(name, "must be true or false", None)

    def word(self, name: str, default: str, words: Sequence[str]) -> str:
        text = self._values.get(name, default)
        return text if text in words else self._fault(name, f"must be one of {', '.join(words)}", default)

    def refuse_faults(self) -> None:
        if self._faults:
            raise Refusal(400, self._faults)

    def _fault(self, name: str, message: str, default: T) -> T:
        self._faults.append({"path": name, "type": "invalid", "message": message})
        return default
