"""What came of sending one message once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of posting one webhook, or one message through apprise.

    `ok` means that the receiver answered 2xx, or that the service took it. `status` is None when no answer came, or
    none is known; `error` is a sentence, and None when ok; `answer` holds the first bytes of the answer's body, as
    hostile as its sender.
    """

    ok: bool
    status: int | None
    duration_ms: int
    error: str | None
    answer: bytes
