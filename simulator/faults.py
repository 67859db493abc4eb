"""Misbehaviour of one simulated printer: settings, each asked about at the one place where a printer can go that wrong.

Where chance has a say it is the printer's own: the same seed misbehaves the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, Protocol

WrongCertificate = Literal["other serial", "other authority", "expired", "not yet valid"]
Damage = Literal["cut in half", "garbage", "trailing NUL", "invalid UTF-8"]
UnsignedAnswer = Literal["bare echo", "silence"]
LimitAnswer = Literal["hang up", "server unavailable"]


class Link(Protocol):
    """The MQTT connections of a printer, as seen from its faults."""

    def cut_all(self) -> None: ...
    def abandon_all(self) -> None: ...
    def break_off_all(self) -> None: ...
    def babble_all(self, data: bytes) -> None: ...
    def shut_door(self) -> None: ...
    def open_door(self) -> None: ...


def _nobody_connected(act: Callable[[Link], None]) -> None:
    return None


@dataclass
class StorageFaults:
    """Of the FTPS side. All off by default; may be changed at any time. Times are real seconds: transfers are real.

    refuse: reply lines by command, given instead of obeying: `{"STOR": "552 Disk full."}`.
    closing_reply: the line after an upload instead of 226, whatever was stored: "426 Failure reading network stream."
        with the whole file has been seen (P2S, X1E).
    keep_bytes: of an upload only so many are kept: with nothing else set, 226 for a short file.
    closing_reply_after_seconds: how late that line comes (an H2D took over 30 s); `math.inf` for never.
    hangs_on_encrypted_data: nobody answers on an encrypted data channel (some A1 firmware); `PROT C` works.
    bytes_per_second: an upload is not read faster than this.
    drop_after_bytes: when so much of an upload has come both channels are closed (a P1P did at 256 KB).
    black_hole: connections are accepted and nothing is said.
    """

    refuse: dict[str, str] = field(default_factory=dict)
    closing_reply: str | None = None
    keep_bytes: int | None = None
    closing_reply_after_seconds: float = 0.0
    hangs_on_encrypted_data: bool = False
    bytes_per_second: float | None = None
    drop_after_bytes: int | None = None
    black_hole: bool = False


@dataclass
class Faults:
    """All off by default; may be changed while the printer runs, unless it says otherwise. Seconds are simulated ones.

    Starts:
    accept_and_never_start: `project_file` is acknowledged, the name changes, the old state stays for ever.
    silent_refusal: `project_file` gets no answer and no effect.
    refuse_start: `project_file` is refused with this code in the answer and in `print_error`.
    refuse_after_ack: `print_error` that appears instead of the start that was acknowledged.
    lag_finish_seconds: on top of the model's own, how long the old state stays after an accepted start.
    busy_start_cancels: a start refused as busy cancels the print under way (an A1 mini does so without being told).

    Answers:
    unsigned_answer: without Developer Mode a print command is not refused in words but echoed bare, with a health
        message instead (a P1S did), or not answered at all.
    lose_acks: acknowledgements are not sent; effects and reports are as usual.
    duplicate_acks: each is sent twice.
    ack_delay_seconds: how late they come; the effect does not wait.

    Commands, by their name on the wire:
    refuse_commands: refused, with this reason, without effect: `{"ledctrl": "no such lamp"}`.
    ignore_commands: neither answered nor obeyed.
    feign_commands: acknowledged without effect.

    Reports:
    mute: none are sent ("connected, no data"); answers to commands still are.
    lose_reports: the share that is lost on the way, 0 to 1.
    duplicate_reports: each is sent twice.
    report_delay_seconds: how old a report is when it is sent; those after it wait behind it, power-off loses them all.
    full_report_delay_seconds: the same for full reports alone: what changes meanwhile is told before them, and with
        `math.inf` only that is told.
    damage: in which ways messages are spoiled, chosen by chance; a trailing NUL and invalid UTF-8 spoil nothing else.
    damage_share: of all messages, answers too, 0 to 1.

    The connection:
    wrong_certificate: read at power-on and by `SimulatedPrinter.change_certificate`. The last two are what a client
        whose clock is wrong sees of a good one.
    connection_limit: TCP connections beyond so many are refused (0: all are), in the way of `limit_answer`.
    black_hole: new TCP connections are accepted without a word, now and ever after, and those there are fall silent:
        what the printer says is lost, what it is told waits until the hole closes.
    drip_bytes_per_second: what the printer says comes no faster than this, in small pieces (of real seconds).

    Printing:
    recover_after_seconds: a print that a power cut ended goes on where it was, so long after power-on, as when
        a person says yes at the screen. Until then the printer is IDLE and knows no print.
    left_file_starts_after_seconds: the file last asked for starts by itself, unless it is gone, so long after it was
        refused, its print ended or the power came back (an A1 did after a power cut, others hours later).
    flapping_hms: a health message (attr, code) that comes and goes, changing every `flap_seconds`.
    tag_reading_seconds: a spool put in is there at once but has no name for so long.
    clock_off_seconds: the printer's clock is ahead by so much, in reports and in the storage's file times.
    """

    accept_and_never_start: bool = False
    silent_refusal: bool = False
    refuse_start: int | None = None
    refuse_after_ack: int | None = None
    lag_finish_seconds: float = 0.0
    busy_start_cancels: bool = False
    unsigned_answer: UnsignedAnswer | None = None
    lose_acks: bool = False
    duplicate_acks: bool = False
    ack_delay_seconds: float = 0.0
    refuse_commands: dict[str, str] = field(default_factory=dict)
    ignore_commands: frozenset[str] = frozenset()
    feign_commands: frozenset[str] = frozenset()
    mute: bool = False
    lose_reports: float = 0.0
    duplicate_reports: bool = False
    report_delay_seconds: float = 0.0
    full_report_delay_seconds: float = 0.0
    damage: tuple[Damage, ...] = ()
    damage_share: float = 1.0
    wrong_certificate: WrongCertificate | None = None
    connection_limit: int | None = None
    limit_answer: LimitAnswer = "hang up"
    black_hole: bool = False
    drip_bytes_per_second: float | None = None
    recover_after_seconds: float | None = None
    left_file_starts_after_seconds: float | None = None
    flapping_hms: tuple[int, int] | None = None
    flap_seconds: float = 10.0
    tag_reading_seconds: float = 0.0
    clock_off_seconds: float = 0.0
    storage: StorageFaults = field(default_factory=StorageFaults)
    chance: Random = field(default_factory=lambda: Random(0), repr=False)
    reach_link: Callable[[Callable[[Link], None]], None] = field(default=_nobody_connected, repr=False)

    def drop_connection(self) -> None:
        """Cuts every MQTT connection at once, without a word, as a lost link does."""
        self.reach_link(lambda link: link.cut_all())

    def break_off(self) -> None:
        """Every MQTT connection ends in the middle of a report's packet."""
        self.reach_link(lambda link: link.break_off_all())

    def babble(self) -> None:
        """Bytes of chance that are no packet come over every MQTT connection."""
        noise = self.chance.randbytes(64)
        self.reach_link(lambda link: link.babble_all(noise))

    def shut_door(self) -> None:
        """New connections to the MQTT port are refused, as while the printer boots; those there are stay."""
        self.reach_link(lambda link: link.shut_door())

    def open_door(self) -> None:
        """They are accepted again. Raises OSError if somebody has taken the port."""
        self.reach_link(lambda link: link.open_door())

    def abandon_connections(self) -> None:
        """Leaves every MQTT connection half-open: the client's end stands, nobody is at the other, nobody hangs up.

        They stay so over a power cycle; new connections work.
        """
        self.reach_link(lambda link: link.abandon_all())

    def lets_in(self, open_connections: int) -> bool:
        """Asked for each TCP connection to the MQTT port."""
        return self.connection_limit is None or open_connections < self.connection_limit

    def sends_reports(self) -> bool:
        """Asked before a report that the printer sends by itself is made."""
        return not self.mute

    def copies_of(self, message: dict[str, Any]) -> int:
        """Asked for each message: how many of it leave the printer."""
        if is_report(message):
            lost = self.mute or (self.lose_reports > 0 and self.chance.random() < self.lose_reports)
            return 0 if lost else 1 + self.duplicate_reports
        if is_ack(message):
            return 0 if self.lose_acks else 1 + self.duplicate_acks
        return 1

    def delay_of(self, message: dict[str, Any]) -> float:
        """Asked for each message: how much later it leaves, in simulated seconds."""
        if is_report(message):
            full = self.full_report_delay_seconds if is_full_report(message) else 0.0
            return max(full, self.report_delay_seconds)
        return self.ack_delay_seconds if is_ack(message) else 0.0

    def bytes_to_send(self, payload: bytes) -> bytes:
        """Asked for each payload as it goes out."""
        if not self.damage or self.chance.random() >= self.damage_share:
            return payload
        match self.chance.choice(self.damage):
            case "cut in half":
                return payload[: len(payload) // 2]
            case "garbage":
                return self.chance.randbytes(len(payload))
            case "trailing NUL":
                return payload + b"\0"
            case "invalid UTF-8":
                return payload.replace(b'"command":', b'"name":"K\xc3\xbche \xff\xc3","command":', 1)


def is_report(message: dict[str, Any]) -> bool:
    return bool(message.get("print", {}).get("command") == "push_status")


def is_full_report(message: dict[str, Any]) -> bool:
    """Some models mark them; a whole one has what never changes."""
    return is_report(message) and {"home_flag", "ams_status", "gcode_state", "wifi_signal"} <= message["print"].keys()


def is_ack(message: dict[str, Any]) -> bool:
    return not is_report(message) and "info" not in message
