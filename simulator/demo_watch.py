"""The demo's person at the printers: watches what the API tells of them, and takes finished parts off the plates."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from simulator.demo_screen import PrinterView, Screen
from simulator.demo_seller import Seller
from simulator.demo_stage import Post, Stage

COLORS = {"started": "cyan", "completed": "green", "failed": "red", "printing": "cyan", "printed": "green"}
POLL_SECONDS = 0.1
# A moment to look at the finished part before it is taken off.
ADMIRE_SECONDS = 0.6


@dataclass(slots=True)
class Sighting:
    """What was seen of one print: by the API, and (`stored_sha256`, `starts`) in its printer's own records."""

    coldest: float | None = None
    hottest: float | None = None
    target: float | None = None
    layers: set[int] = field(default_factory=set)
    total_layers: int | None = None
    has_finished: bool = False
    stored_name: str = ""
    stored_sha256: str = ""

    def see(self, status: dict[str, Any]) -> None:
        nozzle, target = status["nozzle_temp"], status["nozzle_target"]
        if status["state"] == "preparing" and nozzle is not None and target:
            self.coldest = nozzle if self.coldest is None else min(self.coldest, nozzle)
            self.hottest = nozzle if self.hottest is None else max(self.hottest, nozzle)
            self.target = target
        if status["state"] == "printing" and status["layers_printed"]:
            self.layers.add(status["layers_printed"])
            self.total_layers = status["total_layers"]

    def see_end(self, status: dict[str, Any]) -> None:
        self.has_finished = True
        if status["layers_printed"]:
            self.layers.add(status["layers_printed"])

    @property
    def faults(self) -> list[str]:
        """What should have been seen of it and was not."""
        missing = []
        if self.coldest is None or self.target is None or self.coldest >= self.target:
            missing.append("no heating")
        if len(self.layers) < 3 or max(self.layers) != self.total_layers:
            missing.append("not its layers")
        if not self.has_finished:
            missing.append("no FINISH")
        return missing


@dataclass(slots=True)
class Lane:
    """One printer with the prints that are to run on it, in their order."""

    post: Post
    print_ids: list[int]
    sightings: dict[int, Sighting] = field(default_factory=dict)
    last_print_id: int | None = None
    cleared: set[int] = field(default_factory=set)
    news: object = None
    news_at: float = 0.0
    finished_at: float | None = None
    gave_up: str = ""

    @property
    def is_done(self) -> bool:
        return bool(self.gave_up) or self.cleared >= set(self.print_ids)


class Watch:
    """Follows released prints to their end. A lane that stands still for too long is given up, with the reason."""

    def __init__(self, stage: Stage, seller: Seller, screen: Screen, lanes: Sequence[Lane], order_id: int) -> None:
        self._stage, self._seller, self._screen = stage, seller, screen
        self._lanes, self._order_id = lanes, order_id
        self._told: dict[int, str] = {}
        self._mails = 0
        self.order_statuses: list[str] = []
        """Every production status of the order, in turn."""

    def run(self) -> None:
        """Until every lane is done or given up. Raises DemoFailed, Interrupted."""
        with self._screen.watch():
            while not all(lane.is_done for lane in self._lanes):
                # What the printers say first, then what became of it: so nothing is told before its cause.
                statuses = [
                    self._seller.get(f"/api/printer-connections/{lane.post.connection_id}/status")
                    for lane in self._lanes
                ]
                order = self._seller.get(f"/api/orders/{self._order_id}")
                prints = {each["id"]: each for each in self._seller.find_prints(self._order_id)}
                told = [(lane, status) for lane, status in zip(self._lanes, statuses, strict=True)]
                self._screen.show([self._look(lane, status, prints) for lane, status in told])
                for each in prints.values():
                    self._tell_move(each)
                self._tell_order(order["production_status"])
                self._tell_mails()
                for lane, status in told:
                    self._take_off(lane, prints)
                    self._judge_pace(lane, status, _waiting(lane, prints))
                self._stage.pause(POLL_SECONDS)

    def look_at_order(self) -> None:
        self._tell_order(self._seller.get(f"/api/orders/{self._order_id}")["production_status"])

    def _look(self, lane: Lane, status: dict[str, Any], prints: dict[int, dict[str, Any]]) -> PrinterView:
        current = status["current_print_id"]
        if current in lane.print_ids:
            lane.last_print_id = current
            sighting = lane.sightings.setdefault(current, Sighting())
            sighting.see(status)
            self._look_into_storage(lane, sighting)
        elif status["state"] == "finished" and lane.last_print_id is not None:
            lane.sightings[lane.last_print_id].see_end(status)
        return _view(lane, status, prints.get(current), _waiting(lane, prints))

    def _look_into_storage(self, lane: Lane, sighting: Sighting) -> None:
        """Only FTPS writes there. The app deletes the file when the print has ended, or a moment after."""
        if sighting.stored_sha256:
            return
        earlier = {each.stored_name for each in lane.sightings.values()}
        for path in lane.post.printer.files.glob("*.3mf"):
            if path.name in earlier:
                continue
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue
            sighting.stored_name, sighting.stored_sha256 = path.name, hashlib.sha256(content).hexdigest()

    def _take_off(self, lane: Lane, prints: dict[int, dict[str, Any]]) -> None:
        """What a person does: sees FINISH at the printer, takes the part off, and says that the plate is clear."""
        done = lane.last_print_id
        if done is None or done in lane.cleared or prints[done]["status"] != "completed":
            return
        if not lane.sightings[done].has_finished:
            return
        now = time.monotonic()
        if lane.finished_at is None:
            lane.finished_at = now
        if now - lane.finished_at < ADMIRE_SECONDS:
            return
        self._seller.post(f"/api/printers/{lane.post.printer_id}/plate-cleared", {"print_id": done})
        self._screen.tell(
            f"A person takes it off {lane.post.name}", f"POST /api/printers/{lane.post.printer_id}/plate-cleared"
        )
        lane.cleared.add(done)
        lane.finished_at = None

    def _judge_pace(self, lane: Lane, status: dict[str, Any], waiting: dict[str, Any] | None) -> None:
        news = (status["state"], status["progress_percent"], status["nozzle_temp"], waiting and waiting["status"])
        now = time.monotonic()
        if news != lane.news:
            lane.news, lane.news_at = news, now
        if lane.is_done:
            return
        if waiting is not None and waiting["status"] == "failed":
            lane.gave_up = f"print {waiting['id']}, {title_of(waiting)}, failed: {waiting['failed_reason']}"
        elif now - lane.news_at > self._stage.scene.patience_seconds:
            reason = (waiting and waiting["waiting_reason"]) or status["reason"] or "no reason is given"
            what = f"print {waiting['id']}, {title_of(waiting)}," if waiting else "it"
            lane.gave_up = f"{what} does not go on: {reason}"
        if lane.gave_up:
            lane.gave_up = f"{lane.post.name}: {lane.gave_up}"
            self._screen.tell(lane.gave_up, color=COLORS["failed"])

    def _tell_move(self, each: dict[str, Any]) -> None:
        before, now = self._told.get(each["id"]), each["status"]
        if now == before:
            return
        self._told[each["id"]] = now
        if before is not None:
            name = next(lane.post.name for lane in self._lanes if each["id"] in lane.print_ids)
            self._screen.tell(
                f"Print {each['id']}, {title_of(each)} on {name}: {before} → {now}", color=COLORS.get(now, "")
            )

    def _tell_order(self, status: str) -> None:
        if not self.order_statuses or self.order_statuses[-1] != status:
            self.order_statuses.append(status)
            self._screen.tell(
                f"Order {self._order_id} is {status}", f"GET /api/orders/{self._order_id}", COLORS.get(status, "")
            )

    def _tell_mails(self) -> None:
        while self._mails < len(self._stage.mail.messages):
            self._screen.tell(f"E-mail: {subject_of(self._stage.mail.messages[self._mails])}")
            self._mails += 1


def title_of(each: dict[str, Any]) -> str:
    """What a print is of, without the order's label before it."""
    return str(each["job_name"]).partition(" - ")[2]


def subject_of(mail: EmailMessage) -> str:
    """As a reader shows it: a folded line begins with the space it was folded at."""
    return str(mail["Subject"]).strip()


def _waiting(lane: Lane, prints: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    """The first print of a lane that is not completed."""
    return next((prints[print_id] for print_id in lane.print_ids if prints[print_id]["status"] != "completed"), None)


def _view(
    lane: Lane, status: dict[str, Any], current: dict[str, Any] | None, waiting: dict[str, Any] | None
) -> PrinterView:
    note = lane.gave_up
    if not note:
        note = f"next: {title_of(waiting)}, {waiting['waiting_reason'] or waiting['status']}" if waiting else "all done"
    left = status["remaining_minutes"]
    job = title_of(current) if current else ""
    return PrinterView(
        name=lane.post.name,
        model=lane.post.model,
        state=status["state"],
        percent=status["progress_percent"],
        layer=status["layers_printed"],
        layers=status["total_layers"],
        nozzle=status["nozzle_temp"],
        nozzle_target=status["nozzle_target"],
        bed=status["bed_temp"],
        bed_target=status["bed_target"],
        job=f"{job}, {left} min left in the printer's own time" if job and left is not None else job,
        note=note,
    )
