"""The demo's check list: what has to be seen to happen, and what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Check(StrEnum):
    """In the order in which they happen; the value is the promise in words."""

    PRINTERS = "Two simulated printers came up and are connected"
    WEATHER = "Each loaded spool got its advice, by the AMS or the weather"
    LOGIN = "Etsy's login connected the shop, and opens the same account"
    RECEIPT = "The order came in from Etsy by itself"
    PLAN = "Its prints were made by themselves, on the printers that fit"
    UPLOAD = "Each sliced file arrived on its printer by FTPS"
    START = "Each print was started over MQTT exactly once"
    REPORT = "Heating, layers and FINISH were seen through the API"
    MOVES = "Each print went queued → scheduled → started → completed"
    FILAMENT = "The filament was booked"
    ORDER = "The order became printed"
    MAIL = "The e-mails arrived"
    WEBHOOK = "The signed webhooks arrived and were verified"
    PAPERS = "Packing slip and job tickets are pages to print"
    SHIPPED = "Etsy has the order as shipped, with its tracking number"
    ONCE = "Shipped twice, the buyer was mailed once"
    SECRETS = "No key, secret or password is in the app's log"


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one check. `words`: the evidence, or why it was not seen."""

    check: Check
    was_seen: bool
    words: str


class CheckList:
    """Nothing counts as seen until it is said to be."""

    def __init__(self) -> None:
        self._found: dict[Check, Finding] = {}
        self.reasons: list[str] = []
        """What went wrong, in words for a person: why checks fail that never had a chance."""

    def settle(self, check: Check, faults: list[str], evidence: str) -> None:
        """Seen if there are no faults, with the evidence; else not, with the faults."""
        self._found[check] = Finding(check, not faults, "; ".join(faults) or evidence)

    def break_off(self, reason: str) -> None:
        """The demo cannot go on: the next check fails for this reason, and the ones after it are never reached."""
        self.reasons.append(reason)
        for check in Check:
            if check not in self._found:
                self._found[check] = Finding(check, False, reason)
                return

    @property
    def findings(self) -> list[Finding]:
        """Every check, in order."""
        return [self._found.get(check, Finding(check, False, "never reached")) for check in Check]

    @property
    def is_whole(self) -> bool:
        return all(finding.was_seen for finding in self.findings)
