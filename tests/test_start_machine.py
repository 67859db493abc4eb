"""A model printer that does whatever printers do, and our side whatever people, clocks and crashes make of it.

The starter, the recorder, the tracker, the leases, the tidying and the API are the real ones; only the printer at the
end of the line is a model. After every step the promises about starts are held against what really happened on it.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from bambu_client import Answer, LinkStatus, StartOrder
from farm import tracker
from farm.interlocks import Interlock
from farm.leases import LEASE, Lease, keep_leases
from farm.starter import CRASH_POINTS, Start, StartRules
from links import Held
from models import (
    ENDED_STATUSES,
    OPEN_INTENT_STATES,
    BambuMaterial,
    CommandKind,
    CommandState,
    IntentState,
    LedgerEntry,
    PlateState,
    Printer,
    PrinterCommand,
    PrinterConnection,
    PrinterGate,
    PrintEvent,
    PrintFile,
    PrintStatus,
    ScheduledPrint,
    StartIntent,
    TokenFamily,
    User,
    db,
)
from recorder import Recorder
from starts import Starts
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import PASSWORD, Farm
from tests.invariants import assert_invariants
from tests.model_printer import ModelPrinter, ModelStorage, Reaction

SERIAL = "01P00A000000001"
MOST_PRINTS = 5
KEPT = (User, TokenFamily, Printer, PrinterConnection, PrintFile)
DEFERRED_FOR = timedelta(seconds=30)
# Where no transaction is open, so that somebody else may come in between.
OPEN_STEPS = ("claimed", "uploading", "uploaded", "armed", "heard")
FORWARD_SECONDS = (0.5, 2, 5, 11, 31, 61, 91, 151, 301, 3600, 90_000)
BACK_SECONDS = (1, 45, 600, 7200)


class Killed(BaseException):
    """The worker's process ends here, and nothing of it goes on."""


class World:
    """Our side around the model printer. Commits as the worker does."""

    def __init__(self, app: Flask, clock: Clock) -> None:
        self.app, self.clock = app, clock
        self.farm = Farm(app, "seller@example.com")
        self.printer_id = self.farm.add_printer("Left", host="127.0.0.1", serial_number=SERIAL, access_code="12345678")[
            "id"
        ]
        self.file_id = self.farm.add_file()["id"]
        parts = app.extensions["parts"]
        self.limits, self.rules = parts.limits, StartRules.from_settings(parts.settings)
        self.recorder = Recorder(app)
        self.stopping = threading.Event()
        self.starts = Starts(app, run=self._run_at_once, is_stopping=self.stopping)
        self.seen: Counter[str] = Counter()
        self.reset()

    def reset(self) -> None:
        """As on the first day: the account, its printer and its file, and nothing that happened since."""
        self.clock.now = BASE_TIME
        with self.app.app_context():
            kept = {model.__tablename__ for model in KEPT}
            for table in reversed(db.metadata.sorted_tables):
                if table.name not in kept:
                    db.session.execute(table.delete())
            db.session.execute(sa.update(Printer).values(auto_start=False, queue_paused_at=None))
            db.session.execute(
                sa.update(PrinterConnection).values(snapshot=None, heard_at=None, connection_status="connecting")
            )
            db.session.commit()
        self.material_id = self.call("POST", f"/api/bambu/materials/{self.printer_id}", SPOOL)["id"]
        self.printer = ModelPrinter(self.clock)
        self.printer.tell_worker = lambda state, at: self._post(lambda held: self.recorder.heard(held, state, at))
        self.printer.answer_worker = lambda answer: self._post(lambda held: self._answered(answer))
        self.printer.check_order = self.check_order
        self.storage = ModelStorage(self.printer)
        self.inbox: deque[Callable[[], None]] = deque()
        self.held: Held | None = None
        self.lease: Lease | None = None
        self.start_lease: Lease | None = None
        self.workers = 0
        self.deferred: dict[int, tuple[str, Any]] = {}
        self.prints: list[int] = []
        self.started_by_person = 0
        self.hire()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A person's call; the JSON of the answer, or None for one that was refused."""
        extra = {"json": body} if body is not None else {}
        answer = self.farm.call(method, path, **extra)
        if answer.status_code == 401:
            # The clock has passed the token's life.
            login = {"email": "seller@example.com", "password": PASSWORD}
            self.farm.token = self.farm.client.post("/api/auth/login", json=login).json["token"]
            answer = self.farm.call(method, path, **extra)
        assert answer.status_code < 500 and answer.status_code not in (400, 401, 422), (method, path, answer.text)
        return answer.json if answer.status_code < 300 else None

    def _run_at_once(self, errand: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
        with self.app.app_context():
            errand()
        after()

    def _post(self, act: Callable[[Held], None]) -> None:
        held = self.held
        if held is not None:
            self.inbox.append(lambda: act(held))

    def _answered(self, answer: Answer) -> None:
        with self.app.app_context():
            printer = db.session.get_one(Printer, self.printer_id)
            tracker.apply_answer(printer, answer, now=self.clock(), limits=self.limits)
            db.session.commit()

    def hire(self) -> None:
        """Another worker; it gets the printer when the last one's lease is over."""
        self.workers += 1
        self.owner = f"worker {self.workers}"
        self.held, self.lease = None, None
        self.inbox.clear()
        self.sync()

    def lay_off(self) -> None:
        """No worker runs: nobody listens."""
        self.owner, self.held, self.lease = "", None, None
        self.inbox.clear()

    def sync(self) -> None:
        """As `Links.sync`: keep the lease; what came into new hands is withdrawn, and listened to anew."""
        if not self.owner:
            return
        with self.app.app_context():
            lease = keep_leases(self.owner, [SERIAL], now=self.clock()).get(SERIAL)
            if lease == self.lease:
                return
            self.lease, self.held = lease, None
            self.inbox.clear()
            if lease is None:
                return
            row = db.session.execute(sa.select(PrinterConnection)).scalar_one()
            self.held = Held(
                connection_id=row.id,
                printer_id=self.printer_id,
                version=row.version,
                lease=lease,
                link=self.printer,  # type: ignore[arg-type]
                storage=self.storage,  # type: ignore[arg-type]
            )
            tracker.withdraw_unsent([self.printer_id], now=self.clock())
            db.session.commit()
        self.deferred.clear()
        self.connect()

    def connect(self) -> None:
        self.printer.generation += 1
        self.printer.is_connected = True
        self._link_changed(LinkStatus.connected)
        self.printer.tell()

    def disconnect(self) -> None:
        self.printer.is_connected = False
        self._link_changed(LinkStatus.offline)

    def _link_changed(self, status: LinkStatus) -> None:
        self._post(lambda held: self.recorder.link_changed(held, status, None))

    def read_inbox(self) -> None:
        while self.inbox:
            self.inbox.popleft()()

    def sweep(self) -> None:
        self.sync()
        self.read_inbox()
        if self.held is not None:
            if self.recorder.settle([self.held]):
                self.printer.tell()
                self.read_inbox()
            self.recorder.save_snapshots([self.held])
            self.starts.tidy_up([self.held])

    def start(self, at_step: Callable[[str], None]) -> bool:
        """Look at the queue, as the worker does. False when there was none to look, or it died of it."""
        held, now = self.held, self.clock()
        if held is None:
            return False
        waiting = {key: reason for key, (reason, until) in self.deferred.items() if until > now}
        self.start_lease = held.lease
        with self.app.app_context():
            try:
                attempt = Start(
                    self.printer_id,
                    self.printer,
                    self.storage,
                    lease=held.lease,
                    clock=self.clock,
                    rules=self.rules,
                    is_stopping=self.stopping,
                    in_state_since=lambda: held.in_state_since,
                    deferred=waiting,
                    at_step=at_step,
                    fresh_report_seconds=0.003,
                ).run()
            except Killed:
                db.session.rollback()
                self.hire()
                return False
            if attempt.intent is not None:
                kept = db.session.get_one(StartIntent, attempt.intent.id, populate_existing=True)
                if kept.state in (IntentState.withdrawn, IntentState.not_started):
                    self.deferred[kept.print_id] = kept.reason or "given back", now + DEFERRED_FOR
        return True

    def check_order(self, order: StartOrder) -> None:
        """At the moment at which the command reaches the printer."""
        printer = self.printer
        assert order.submission_id not in {each.submission_id for each in printer.orders}, "a second command"
        assert not printer.is_active, "started on a busy printer"
        assert not printer.has_parts, "started on an occupied plate"
        assert printer.has_card and printer.filament == "PLA", "started with a false interlock"
        assert self.lease == self.start_lease, "started by a worker that does not hold the printer any more"
        assert order.remote_name in printer.files
        with db.engine.connect() as connection:
            intent = connection.execute(
                sa.select(StartIntent.__table__).where(StartIntent.submission_id == order.submission_id)
            ).one()
            waiting = connection.execute(
                sa.select(ScheduledPrint.__table__).where(ScheduledPrint.id == intent.print_id)
            ).one()
            queue_paused_at = connection.execute(sa.select(Printer.queue_paused_at)).scalar_one()
        assert intent.state == IntentState.published and intent.published_at is not None
        read = {intent.checks[lock.value] for lock in Interlock}
        assert read <= {"ok", "overridden by a person"}, intent.checks
        assert waiting.status == PrintStatus.scheduled and waiting.deleted_at is None and waiting.held_at is None
        assert waiting.scheduled_start is None or waiting.scheduled_start <= intent.published_at, "an early start"
        assert queue_paused_at is None


SPOOL = {"slot": 0, "material_type": "PLA", "color": "#FFFFFF", "weight_grams": 100_000, "cost_per_kg": 20}


def aside(act: Callable[[], object]) -> None:
    """By somebody else, who shares no transaction with whoever is at work."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - handed on to the test's own thread
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


class StartMachine(RuleBasedStateMachine):
    """See the module. The world is handed in once; each example begins on its first day."""

    world: World

    @initialize()
    def first_day(self) -> None:
        self.world.reset()
        self.printer = self.world.printer
        self.foreign = 0
        self.judged: set[int] = set()
        self.ended_by_person: set[int] = set()
        self.has_looked = False
        self.settle_down()
        self.call_for(None, "plate-cleared", {"print_id": None})
        self.add_print(True)

    def settle_down(self) -> None:
        self.world.read_inbox()

    def call_for(self, print_id: int | None, action: str, body: Any = None, method: str = "POST") -> Any:
        base = (
            f"/api/printers/{self.world.printer_id}" if print_id is None else f"/api/bambu/scheduled-prints/{print_id}"
        )
        self.has_looked = False
        return self.world.call(method, f"{base}/{action}".rstrip("/"), body)

    def some_print(self, choice: int) -> int | None:
        return self.world.prints[choice % len(self.world.prints)] if self.world.prints else None

    # What a person does.

    @rule(released=st.booleans())
    def add_print(self, released: bool) -> None:
        if len(self.world.prints) >= MOST_PRINTS:
            return
        body = {
            "printer_id": self.world.printer_id,
            "job_name": "A vase",
            "print_file_id": self.world.file_id,
            "status": "scheduled" if released else "queued",
        }
        self.has_looked = False
        self.world.prints.append(self.world.call("POST", "/api/bambu/scheduled-prints", body)["id"])

    @rule(choice=st.integers(0, 9), action=st.sampled_from(["start", "start", "hold", "release-hold", "retry"]))
    def press(self, choice: int, action: str) -> None:
        if (print_id := self.some_print(choice)) is not None:
            self.call_for(print_id, action)

    @rule(action=st.sampled_from(["pause-queue", "resume-queue", "resume-queue"]))
    def pause_queue(self, action: str) -> None:
        self.call_for(None, action)

    @rule(is_on=st.booleans())
    def auto_start(self, is_on: bool) -> None:
        self.call_for(None, "", {"auto_start": is_on}, "PUT")

    @rule(choice=st.integers(0, 9), status=st.sampled_from(list(PrintStatus)))
    def record(self, choice: int, status: PrintStatus) -> None:
        """A person writes down what they see, or think they see."""
        if (print_id := self.some_print(choice)) is None:
            return
        before = self.statuses().get(print_id)
        body = {"status": status.value, **({"failed_reason": "spaghetti"} if status is PrintStatus.failed else {})}
        if self.call_for(print_id, "", body, "PUT") is not None and before is not status:
            self.world.started_by_person += status is PrintStatus.started
            if status in ENDED_STATUSES:
                self.ended_by_person.add(print_id)

    @rule(choice=st.integers(0, 9), field=st.sampled_from(["later", "sooner", "priority"]))
    def edit(self, choice: int, field: str) -> None:
        if (print_id := self.some_print(choice)) is None:
            return
        at = {"later": 3600, "sooner": -60}.get(field)
        body: dict[str, Any] = {"priority": choice}
        if at is not None:
            body = {"scheduled_start": (self.world.clock() + timedelta(seconds=at)).isoformat()}
        self.call_for(print_id, "", body, "PUT")

    @rule(choice=st.integers(0, 9))
    def take_off_the_list(self, choice: int) -> None:
        print_id = self.some_print(choice)
        # One that runs is stopped first: that is a command, and another rule.
        may_go = print_id is not None and self.statuses()[print_id] is not PrintStatus.started
        if may_go and self.call_for(print_id, "", method="DELETE") is not None:
            self.world.prints.remove(print_id)

    @rule(choice=st.integers(-1, 9), is_right=st.booleans())
    def clear_plate(self, choice: int, is_right: bool) -> None:
        """The right click follows empty hands on an empty plate; a late one names what lay there before."""
        with self.world.app.app_context():
            gate = db.session.execute(sa.select(PrinterGate)).scalar_one()
            last = db.session.get(ScheduledPrint, gate.plate_print_id) if gate.plate_print_id else None
            named = None if choice < 0 else self.some_print(choice)
            expected = last.id if last is not None and last.deleted_at is None else None
        if is_right:
            named = expected
        if named == expected:
            if self.printer.is_active:
                # A person who sees it print does not say that the plate is empty.
                return
            self.printer.has_parts = False
        cleared = self.call_for(None, "plate-cleared", {"print_id": named})
        assert cleared is None or not self.printer.has_parts, "a late click cleared the next print"

    @rule(override=st.sampled_from(["settled", "missed"]), choice=st.integers(0, 9))
    def override(self, override: str, choice: int) -> None:
        if (print_id := self.some_print(choice)) is not None:
            self.call_for(print_id, "start", {"override": [override]})

    @rule()
    def stop_ours(self) -> None:
        """As the worker leaves the command behind when it has gone out."""
        now = self.world.clock()
        running = [key for key, status in self.statuses().items() if status is PrintStatus.started]
        if not running or not self.printer.is_active or not self.printer.is_connected:
            return
        with self.world.app.app_context():
            ours = db.session.get_one(ScheduledPrint, running[0])
            intent = db.session.execute(
                sa.select(StartIntent).where(
                    StartIntent.print_id == ours.id, StartIntent.state == IntentState.confirmed
                )
            ).scalar()
            if intent is None or str(intent.submission_id) != self.printer.submission_id:
                return
            db.session.add(
                PrinterCommand(
                    user_id=ours.user_id,
                    printer_id=ours.printer_id,
                    print_id=ours.id,
                    kind=CommandKind.stop,
                    state=CommandState.sent,
                    requested_at=now,
                    expires_at=now + timedelta(seconds=20),
                )
            )
            db.session.commit()
        self.printer.fail(None)
        self.heard()

    # What the printer does.

    def heard(self, lags: bool = False) -> None:
        self.printer.tell()
        if not lags:
            self.settle_down()

    @rule(reaction=st.sampled_from(list(Reaction)), answers_times=st.integers(0, 2))
    def will_react(self, reaction: Reaction, answers_times: int) -> None:
        self.printer.reaction, self.printer.answers_times = reaction, answers_times

    @rule(lags=st.booleans())
    def begin(self, lags: bool) -> None:
        if self.printer.begin_pending():
            self.heard(lags)

    @rule(error=st.none() | st.just("0500-4003"))
    def drop_the_accepted_start(self, error: str | None) -> None:
        if self.printer.pending is not None:
            self.printer.pending, self.printer.error = None, error
            self.heard()

    @rule(lags=st.booleans())
    def somebody_starts_at_the_printer(self, lags: bool) -> None:
        if not self.printer.is_active and self.printer.pending is None:
            self.foreign += 1
            self.printer.begin_foreign(f"a lamp {self.foreign}")
            self.heard(lags)

    @rule(
        how=st.sampled_from(["printing", "paused", "finish", "finish", "finish", "break", "stop"]), lags=st.booleans()
    )
    def goes_on(self, how: str, lags: bool) -> None:
        if not self.printer.is_active:
            return
        match how:
            case "finish":
                self.printer.finish()
            case "break":
                self.printer.fail("0300-8003")
            case "stop":
                self.printer.fail(None, is_cancelled=True)
            case _:
                self.printer.activity = type(self.printer.activity)(how)
                self.printer.percent = min(99, self.printer.percent + 20)
        self.heard(lags)

    @rule()
    def power_goes(self) -> None:
        if not self.knows_of_parts():
            # A print of which nobody heard, and then a power cut: no report can tell of it.
            self.printer.has_parts = False
        self.printer.power_cycle()
        self.world.disconnect()

    @rule(what=st.sampled_from(["card", "spool", "uploads", "mute"]), is_well=st.booleans())
    def something_about_the_printer(self, what: str, is_well: bool) -> None:
        match what:
            case "card":
                self.printer.has_card = is_well
            case "spool":
                self.printer.filament = "PLA" if is_well else "PETG"
            case "uploads":
                self.printer.fails_uploads = not is_well
            case "mute":
                self.printer.is_mute = not is_well
        self.heard()

    @rule(is_there=st.booleans())
    def line(self, is_there: bool) -> None:
        if is_there:
            self.world.connect()
        else:
            self.world.disconnect()
        self.settle_down()

    # What time and the worker do.

    @rule(seconds=st.sampled_from(FORWARD_SECONDS))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.forward(seconds=seconds)
        self.printer.tell()
        self.world.sweep()

    @rule(seconds=st.sampled_from(BACK_SECONDS))
    def clock_is_set_back(self, seconds: float) -> None:
        self.world.clock.forward(seconds=-seconds)
        self.world.sweep()

    @rule()
    def look_at_the_queue(self) -> None:
        self.settle_down()
        self.has_looked = self.world.start(lambda step: None)

    def make_ready(self) -> None:
        """What was left open is ended, and everything is as it should be: the next look starts a print."""
        printer, world = self.printer, self.world
        printer.is_mute, printer.has_card, printer.filament, printer.fails_uploads = False, True, "PLA", False
        if not printer.is_connected:
            world.connect()
        printer.reaction = Reaction.accepts
        printer.begin_pending()
        if printer.is_active:
            printer.finish()
        self.time_passes(0)
        self.time_passes(31 if self.open_intent() is None else 151)
        open_intent = self.open_intent()
        for print_id, status in self.statuses().items():
            if status is PrintStatus.started or print_id == open_intent:
                self.record(world.prints.index(print_id), PrintStatus.failed)
        if self.is_queue_paused():
            self.call_for(None, "resume-queue")
        if self.knows_of_parts():
            self.clear_plate(0, True)
        if len(world.prints) == MOST_PRINTS:
            self.take_off_the_list(0)
        self.add_print(True)

    @rule(reaction=st.sampled_from([Reaction.accepts, *Reaction]), answers_times=st.integers(0, 2))
    def a_good_day(self, reaction: Reaction, answers_times: int) -> None:
        self.make_ready()
        self.will_react(reaction, answers_times)
        self.look_at_the_queue()

    @rule()
    def a_print_begins(self) -> None:
        self.a_good_day(Reaction.accepts, 1)
        self.begin(False)

    @rule(
        is_first_sent=st.booleans(),
        how=st.sampled_from(["line", "mute", "worker"]),
        events=st.lists(st.sampled_from(["begin", "finish", "break", "foreign", "drop", "power", *FORWARD_SECONDS])),
    )
    def while_nobody_listened(self, is_first_sent: bool, how: str, events: list[str | float]) -> None:
        """Whatever happens at the printer, nobody hears of it until it is over."""
        self.make_ready()
        if is_first_sent:
            self.look_at_the_queue()
        match how:
            case "line":
                self.world.disconnect()
            case "mute":
                self.printer.is_mute = True
            case "worker":
                self.world.lay_off()
        for event in events:
            match event:
                case "begin":
                    self.begin(True)
                case "finish" | "break":
                    self.goes_on(event, True)
                case "foreign":
                    self.somebody_starts_at_the_printer(True)
                case "drop":
                    self.drop_the_accepted_start(None)
                case "power":
                    self.power_goes()
                case float() | int():
                    self.time_passes(event)
        self.printer.is_mute = False
        if self.world.held is None:
            self.world.hire()
        self.world.connect()
        self.time_passes(31)
        self.look_at_the_queue()

    @rule(
        step=st.sampled_from(OPEN_STEPS),
        what=st.sampled_from(
            ["foreign", "taken over", "card", "spool", "line", "reconnect", "mute", "forward", "back"]
            + ["queued", "failed", "started", "DELETE", "hold", "edit", "pause-queue"]
        ),
    )
    def start_disturbed(self, step: str, what: str) -> None:
        self.make_ready()
        self.has_looked = False
        self.world.start(lambda at: aside(lambda: self.disturb(what)) if at == step else None)
        self.settle_down()

    @rule(step=st.sampled_from(["published", "sent"]), what=st.sampled_from(["line", "reconnect", "forward", "queued"]))
    def disturbed_when_written(self, step: str, what: str) -> None:
        self.start_disturbed(step, what)

    @rule(step=st.sampled_from(CRASH_POINTS), waits=st.booleans())
    def killed(self, step: str, waits: bool) -> None:
        def die(at: str) -> None:
            if at == step:
                raise Killed

        self.make_ready()
        self.has_looked = False
        self.world.start(die)
        if waits:
            self.time_passes(LEASE.total_seconds() + 1)

    @rule()
    def worker_restarts(self) -> None:
        self.world.hire()
        self.time_passes(LEASE.total_seconds() + 1)

    def disturb(self, what: str) -> None:
        printer, world = self.printer, self.world
        match what:
            case "foreign":
                if not printer.is_active and printer.pending is None:
                    self.foreign += 1
                    printer.begin_foreign(f"a lamp {self.foreign}")
                    printer.tell()
            case "taken over":
                world.clock.forward(seconds=LEASE.total_seconds() + 1)
                world.hire()
            case "card":
                printer.has_card = False
                printer.tell()
            case "spool":
                printer.filament = "PETG"
                printer.tell()
            case "line":
                world.disconnect()
            case "reconnect":
                world.disconnect()
                world.connect()
            case "mute":
                printer.is_mute = True
            case "forward" | "back":
                world.clock.forward(seconds=70 if what == "forward" else -70)
            case "hold":
                self.call_for(self.print_under_way(), "hold")
            case "edit":
                self.call_for(self.print_under_way(), "", {"priority": 7}, "PUT")
            case "pause-queue":
                self.call_for(None, "pause-queue")
            case "DELETE":
                print_id = self.print_under_way()
                if self.call_for(print_id, "", method="DELETE") is not None:
                    world.prints.remove(print_id)
            case _:
                self.record(world.prints.index(self.print_under_way()), PrintStatus(what))

    def open_intent(self) -> int | None:
        """The print whose start is under way or not confirmed."""
        with self.world.app.app_context():
            return db.session.execute(
                sa.select(StartIntent.print_id).where(StartIntent.state.in_(OPEN_INTENT_STATES))
            ).scalar_one_or_none()

    def print_under_way(self) -> int:
        found = self.open_intent()
        assert found is not None
        return found

    # What must hold after each of it.

    def statuses(self) -> dict[int, PrintStatus]:
        with self.world.app.app_context():
            rows = db.session.execute(
                sa.select(ScheduledPrint.id, ScheduledPrint.status).where(ScheduledPrint.deleted_at.is_(None))
            )
            return {print_id: status for print_id, status in rows}  # noqa: C416 - rows are no pairs to mypy

    def is_queue_paused(self) -> bool:
        with self.world.app.app_context():
            return db.session.execute(sa.select(Printer.queue_paused_at)).scalar_one() is not None

    def knows_of_parts(self) -> bool:
        with self.world.app.app_context():
            gate = db.session.execute(sa.select(PrinterGate)).scalar_one()
            return gate.plate_state is not PlateState.clear

    @invariant()
    def promises_hold(self) -> None:
        with self.world.app.app_context():
            prints = db.session.execute(sa.select(ScheduledPrint)).scalars().all()
            intents = db.session.execute(sa.select(StartIntent)).scalars().all()
            events = db.session.execute(sa.select(PrintEvent).order_by(PrintEvent.id)).scalars().all()
            self.starts_are_what_they_say(intents)
            self.prints_are_what_they_say(prints, intents, events)
            self.books_balance()

    def starts_are_what_they_say(self, intents: Any) -> None:
        printer, ordered = self.printer, {each.submission_id for each in self.printer.orders}
        assert sum(each.state in OPEN_INTENT_STATES for each in intents) <= 1
        assert len(ordered) == len(printer.orders)
        assert ordered <= {each.submission_id for each in intents if each.published_at is not None}
        for intent in intents:
            ran = str(intent.submission_id) in printer.began
            was_told = intent.confirmed_at is not None and intent.reason != "a person said so"
            assert ran or not was_told, "taken for started, and it never was"
            if (intent.reason or "").endswith("never began it") and intent.id not in self.judged:
                self.judged.add(intent.id)
                runs = printer.is_active and printer.submission_id == str(intent.submission_id)
                assert not runs, "taken for never started while it runs"
            left = intent.remote_name in printer.files
            assert intent.is_file_on_printer or not left, "a file was left on the card, and nobody knows"
            if intent.state in (IntentState.confirmed, IntentState.unknown) and intent.ended_at is None:
                assert left, "a file was taken away while its print may run"

    def prints_are_what_they_say(self, prints: Any, intents: Any, events: Any) -> None:
        moves: dict[int, list[PrintEvent]] = {each.id: [] for each in prints}
        for event in events:
            if event.to_status is not None:
                moves[event.print_id].append(event)
        for each in prints:
            ends = [event for event in moves[each.id] if event.to_status in ENDED_STATUSES]
            again = [event for event in moves[each.id] if event.from_status in ENDED_STATUSES]
            assert len(ends) - len(again) == (each.status in ENDED_STATUSES), "an end is told once"
            assert each.needs_look is None or each.status is PrintStatus.started
            if each.status is PrintStatus.completed and each.id not in self.ended_by_person:
                mine = [str(intent.submission_id) for intent in intents if intent.print_id == each.id]
                assert self.printer.finished & set(mine), "completed, and the printer never finished it"
            if self.has_looked and each.status is PrintStatus.scheduled and each.deleted_at is None:
                assert each.waiting_reason, "it waits, and nobody says why"
        told = sum(each.confirmed_at is not None and each.reason != "a person said so" for each in intents)
        started = sum(event.to_status is PrintStatus.started for event in events)
        assert started <= told + self.world.started_by_person, "started without the printer's or a person's word"

    def teardown(self) -> None:
        """What is read from the whole database at the end of each example; and what the examples were made of."""
        assert_invariants(self.world.app)
        with self.world.app.app_context():
            for model in (StartIntent.state, ScheduledPrint.status, PrintEvent.kind):
                self.world.seen.update(
                    f"{model.class_.__name__} {value}" for value in db.session.execute(sa.select(model)).scalars()
                )
        self.world.seen["commands"] += len(self.printer.orders)

    def books_balance(self) -> None:
        spool = db.session.execute(sa.select(BambuMaterial)).scalar_one()
        total = db.session.execute(sa.select(sa.func.sum(LedgerEntry.delta_grams))).scalar_one()
        assert spool.remaining_grams == total
        kinds = db.session.execute(sa.select(PrinterCommand.kind)).scalars().all()
        assert set(kinds) <= {CommandKind.stop}


def run(app: Flask, clock: Clock, *, examples: int, steps: int) -> Counter[str]:
    world = World(app, clock)

    class Machine(StartMachine):
        pass

    Machine.world = world
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            database=None,
        ),
    )
    return world.seen


def test_whatever_printers_people_clocks_and_crashes_do_a_start_goes_out_at_most_once(app: Flask, clock: Clock) -> None:
    run(app, clock, examples=4, steps=20)


@pytest.mark.prove
def test_four_hundred_walks_of_sixty_steps_through_printer_and_starts(app: Flask, clock: Clock) -> None:
    print(run(app, clock, examples=400, steps=60))
