"""A captured sequence of a printer's messages, with their timings, to be played again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from simulator.printer_models import models

_ENVELOPE = ("command", "msg", "sequence_id")


@dataclass(frozen=True)
class ReplayEvent:
    """One message of the report topic, in seconds since the capture began."""

    at_seconds: float
    message: dict[str, Any]


@dataclass(frozen=True)
class Replay:
    """Events in the order of their times. `model` is the printer they were captured from, where that is known."""

    events: tuple[ReplayEvent, ...]
    model: str | None = None

    @property
    def seconds(self) -> float:
        """From the beginning to the last event."""
        return self.events[-1].at_seconds

    @classmethod
    def of(cls, events: Sequence[ReplayEvent], model: str | None = None) -> Self:
        """Raises ValueError without any events."""
        if not events:
            raise ValueError("there is nothing to replay")
        return cls(tuple(sorted(events, key=lambda event: event.at_seconds)), model)

    @classmethod
    def read(cls, path: Path, every_seconds: float = 1.0) -> Self:
        """From a file of one of two kinds.

        JSON: `{"_meta": {"model"}, "events": [{"ms", "print": {…}, …}]}`, with times in milliseconds.
        Lines of JSON (`.jsonl`): a message each, or `{"msg": message, "model"}`; without times, so `every_seconds`.
        Raises OSError, and ValueError saying what is wrong with the file.
        """
        text = path.read_text()
        if path.suffix == ".jsonl":
            lines = [_object(json.loads(line)) for line in text.splitlines() if line.strip()]
            events = [
                ReplayEvent(position * every_seconds, _message(_object(line.get("msg", line))))
                for position, line in enumerate(lines)
            ]
            return cls.of(events, _model_in(lines[0].get("model")) if lines else None)
        whole = _object(json.loads(text))
        captured = whole.get("events")
        if not isinstance(captured, list):
            raise ValueError("there is no list of events")
        events = [ReplayEvent(_seconds(_object(event).get("ms")), _message(event)) for event in captured]
        return cls.of(events, _model_in(_object(whole.get("_meta", {})).get("model")))


def laid_over(report: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """A report with what a later message says, where lists of things with ids (AMS units, trays) go by id."""
    merged = dict(report)
    for key, value in said.items():
        if key not in _ENVELOPE:
            merged[key] = _merged(merged.get(key), value)
    return merged


def _merged(before: Any, after: Any) -> Any:
    if isinstance(before, dict) and isinstance(after, dict):
        return {**before, **{key: _merged(before.get(key), value) for key, value in after.items()}}
    if isinstance(before, list) and isinstance(after, list) and _have_ids(before) and _have_ids(after):
        known = {item["id"]: item for item in before}
        return list({**known, **{item["id"]: _merged(known.get(item["id"]), item) for item in after}}.values())
    return after


def _have_ids(items: list[Any]) -> bool:
    return bool(items) and all(isinstance(item, dict) and "id" in item for item in items)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not the object it should be")
    return value


def _message(captured: dict[str, Any]) -> dict[str, Any]:
    """Its sections; what else stands beside them says something about the capture."""
    message = {key: value for key, value in captured.items() if isinstance(value, dict)}
    if not message:
        raise ValueError("an event without a message")
    return message


def _seconds(milliseconds: Any) -> float:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float) or not milliseconds >= 0:
        raise ValueError("an event without a time")
    return milliseconds / 1000


def _model_in(text: Any) -> str | None:
    """The model that a note such as `P2S fw 01.02` begins with."""
    plain = str(text).replace("-", " ").casefold()
    matching = [name for name in models if f"{plain} ".startswith(f"{name.casefold()} ")]
    return max(matching, key=len, default=None)
