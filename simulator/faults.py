"""Misbehaviour of one simulated printer, asked about at three seams: on accept, before an answer, before a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

WrongCertificate = Literal["other serial", "other authority"]


def _nobody_connected() -> None:
    return None


@dataclass
class Faults:
    """All off by default; may be changed while the printer runs, except `wrong_certificate`, which is read at power-on.

    accept_and_never_start: `project_file` is acknowledged, the name changes, the old state stays for ever.
    silent_refusal: `project_file` gets no answer and no effect.
    lag_finish_seconds: simulated seconds, on top of the model's own, that the old state stays after an accepted start.
    lose_acks: acknowledgements are not sent; effects and reports are as usual.
    refuse_after_ack: `print_error` that appears instead of the start that was acknowledged.
    mute: reports are not sent ("connected, no data"); answers to commands still are.
    connection_limit: TCP connections beyond so many are closed before anything is said (0: all are).
    """

    accept_and_never_start: bool = False
    silent_refusal: bool = False
    lag_finish_seconds: float = 0.0
    lose_acks: bool = False
    refuse_after_ack: int | None = None
    wrong_certificate: WrongCertificate | None = None
    mute: bool = False
    connection_limit: int | None = None
    cut_connections: Callable[[], None] = field(default=_nobody_connected, repr=False)

    def drop_connection(self) -> None:
        """Cuts every MQTT connection at once, without a word, as a lost link does."""
        self.cut_connections()

    def lets_in(self, open_connections: int) -> bool:
        """Asked for each TCP connection to the MQTT port."""
        return self.connection_limit is None or open_connections < self.connection_limit

    def answers_to_send(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Asked before answers to a request are sent; the full report that `pushall` brings is one of them."""
        kept = [answer for answer in answers if not (self.mute and is_report(answer))]
        return [answer for answer in kept if not (self.lose_acks and is_ack(answer))]

    def sends_reports(self) -> bool:
        """Asked before a report that the printer sends by itself."""
        return not self.mute


def is_report(message: dict[str, Any]) -> bool:
    return bool(message.get("print", {}).get("command") == "push_status")


def is_ack(message: dict[str, Any]) -> bool:
    return not is_report(message) and "info" not in message
