"""A printer at the edge of the world, small enough to reason about: what it says, what it was told, what lies on it.

It stands in for the connection that the starter and the recorder see. What it was told and what really happened on its
plate is what the tests hold the product against.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import BinaryIO

from bambu_client import Answer, LinkStatus, NotSent, StartOrder
from bambu_files import UploadFailed
from bambu_report import ACTIVE, Nozzle, PrinterActivity, PrinterState, Spool, Storage
from tests.conftest import Clock

BUSY = "0500-4004"
NO_PRINT = "0"


class Reaction(StrEnum):
    """What the printer makes of the next start."""

    accepts = "accepts"
    never_begins = "accepts and never begins"
    refuses = "refuses"
    is_silent = "does not answer"
    loses = "lost on the way"


class ModelPrinter:
    """`tell_worker` gets every report as the connection hears it, `answer_worker` every answer to a start.

    `has_parts`: whether anything lies on the plate, whoever printed it. `began`, `finished`, `broke`: submission ids of
    which that really happened.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.tell_worker: Callable[[PrinterState, datetime], None] = lambda state, at: None
        self.answer_worker: Callable[[Answer], None] = lambda answer: None
        self.check_order: Callable[[StartOrder], None] = lambda order: None
        self.reaction = Reaction.accepts
        self.activity, self.submission_id, self.job_name = PrinterActivity.idle, NO_PRINT, ""
        self.error: str | None = None
        self.is_cancelled = False
        self.percent = 0
        self.pending: str | None = None
        self.has_parts = False
        self.has_card = True
        self.filament = "PLA"
        self.files: set[str] = set()
        self.fails_uploads = False
        self.orders: list[StartOrder] = []
        self.began: set[str] = set()
        self.finished: set[str] = set()
        self.broke: set[str] = set()
        self.is_connected = True
        self.is_mute = False
        self.answers_times = 1
        self.generation = 1
        self.state = PrinterState()
        self.full_heard_at: datetime | None = None

    @property
    def is_active(self) -> bool:
        return self.activity in ACTIVE

    @property
    def status(self) -> LinkStatus:
        return LinkStatus.connected if self.is_connected else LinkStatus.offline

    def present(self) -> PrinterState:
        return PrinterState(
            known=True,
            state=self.activity,
            submission_id=self.submission_id,
            job_name=self.job_name,
            progress_percent=self.percent,
            print_error=self.error,
            cancelled=self.is_cancelled,
            storage=Storage.ok if self.has_card else Storage.none,
            nozzles=(Nozzle(0, 0.4, None),),
            spools=(Spool(ams_id=0, tray_id=0, slot=0, loaded=True, material_type=self.filament),),
            developer_mode=True,
        )

    def tell(self) -> None:
        """A full report, where anybody is listening."""
        if self.is_connected and not self.is_mute:
            self.state, self.full_heard_at = self.present(), self._clock()
            self.tell_worker(self.state, self.full_heard_at)

    def ask_full_report(self) -> None:
        self.tell()

    def start_print(self, order: StartOrder, *, generation: int, latest_at: datetime | None = None) -> str:
        if not self.is_connected or generation != self.generation:
            raise NotSent("the connection is not the one the printer's state was read over")
        if latest_at is not None and self._clock() > latest_at:
            raise NotSent("it became too late to start on what was known of the printer")
        self.check_order(order)
        self.orders.append(order)
        submission_id = str(order.submission_id)
        match self.reaction:
            case _ if self.pending is not None or self.is_active:
                self._answer(submission_id, BUSY)
            case Reaction.refuses:
                self._answer(submission_id, "0500-4003")
            case Reaction.accepts | Reaction.never_begins:
                self.submission_id, self.job_name, self.pending = submission_id, order.title, submission_id
                self.error, self.is_cancelled = None, False
                self._answer(submission_id, None)
        return "20001"

    def _answer(self, submission_id: str, code: str | None) -> None:
        for _ in range(self.answers_times):
            self.answer_worker(
                Answer("project_file", "20001", code is None, code, "fail" if code else None, submission_id)
            )

    def begin_pending(self) -> bool:
        """The accepted start begins. False when there is none that ever will."""
        if self.pending is None or self.reaction is Reaction.never_begins:
            return False
        self._begin(self.pending, self.job_name)
        return True

    def begin_foreign(self, name: str) -> None:
        """Somebody starts a file at the screen, or one left on the card starts by itself."""
        self._begin(NO_PRINT, name)

    def _begin(self, submission_id: str, name: str) -> None:
        self.activity, self.submission_id, self.job_name = PrinterActivity.preparing, submission_id, name
        self.pending, self.percent, self.error, self.is_cancelled = None, 0, None, False
        self.has_parts = True
        if submission_id != NO_PRINT:
            self.began.add(submission_id)

    def finish(self) -> None:
        self.activity, self.percent = PrinterActivity.finished, 100
        self.finished.add(self.submission_id)

    def fail(self, error: str | None, *, is_cancelled: bool = False) -> None:
        self.activity, self.error, self.is_cancelled = PrinterActivity.failed, error, is_cancelled
        self.broke.add(self.submission_id)

    def power_cycle(self) -> None:
        """Whatever was printing is gone, and nothing says so."""
        self.activity, self.submission_id, self.job_name = PrinterActivity.idle, NO_PRINT, ""
        self.pending, self.error, self.is_cancelled, self.percent = None, None, False, 0
        self.is_connected = False


class ModelStorage:
    """The printer's card, as the starter and the tidying see it."""

    clear_data = False

    def __init__(self, printer: ModelPrinter) -> None:
        self._printer = printer

    def upload(
        self, stream: BinaryIO, remote_name: str, size_bytes: int, on_progress: Callable[[int], None] | None = None
    ) -> None:
        assert len(stream.read()) == size_bytes
        if self._printer.fails_uploads or not self._printer.is_connected:
            raise UploadFailed("the line broke", retry=True)
        self._printer.files.add(remote_name)

    def delete(self, remote_name: str) -> None:
        if not self._printer.is_connected:
            raise UploadFailed("the line broke", retry=True)
        self._printer.files.discard(remote_name)

    def size(self, remote_name: str) -> int | None:
        return 1 if remote_name in self._printer.files else None
