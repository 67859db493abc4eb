"""Many streams beside each other in threads: one step of a stream at a time, a few for each host, and a host that takes
its time holds up nobody but those who go there."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, Protocol, TypeVar

import structlog

log = structlog.get_logger()

THREADS = 64
AT_ONE_HOST = 4


class Work(Protocol):
    """What is to be done next in a stream."""

    @property
    def host(self) -> str: ...


K = TypeVar("K", bound=Hashable)
W = TypeVar("W", bound=Work)


class Lanes(Generic[K, W]):
    """`look` says what a stream's next work is, None when there is none; `take` whether it is ours to do, before
    anything is waited for; `do` does it. All run in these threads.

    After that the stream is looked at again at once. A stream is never in two threads, and no more than `at_one_host`
    are in `do` for one host: others that go there wait without a thread.
    """

    def __init__(
        self,
        look: Callable[[K], W | None],
        take: Callable[[W], bool],
        do: Callable[[W], object],
        *,
        threads: int = THREADS,
        at_one_host: int = AT_ONE_HOST,
    ) -> None:
        self._look, self._take, self._do = look, take, do
        self._most, self._at_one_host = threads, at_one_host
        self._changed = threading.Condition()
        self._ready: queue.SimpleQueue[K | None] = queue.SimpleQueue()
        # Counted here and not by the queue, of which a thread that was just woken has taken more than it has told.
        self._threads = self._free = self._queued = self._untaken = 0
        self._busy: set[K] = set()
        self._again: set[K] = set()
        self._at_host: Counter[str] = Counter()
        self._parked: defaultdict[str, deque[K]] = defaultdict(deque)
        # Those for whom a place at a host came free, until it shows whether they go there.
        self._called: dict[K, str] = {}
        self._is_stopping = False

    def wake(self, streams: Iterable[K]) -> None:
        """Look at these. Returns at once; may be called from any thread, also while they are busy."""
        with self._changed:
            for stream in streams:
                if stream in self._busy:
                    self._again.add(stream)
                else:
                    self._busy.add(stream)
                    self._enqueue(stream)

    def wait_idle(self, seconds: float) -> bool:
        """Whether nothing was left to do in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, seconds)

    def wait_taken(self, seconds: float) -> bool:
        """Whether everything that was woken and has a place at its host had been taken in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._untaken, seconds)

    def stop(self, seconds: float) -> bool:
        """Begin nothing new; whether all that was under way ended in time."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._is_stopping = True
            for _ in range(self._threads):
                self._ready.put(None)
            return self._changed.wait_for(
                lambda: not self._threads or not self._at_host.total(), max(0.0, deadline - time.monotonic())
            )

    def _enqueue(self, stream: K) -> None:
        if self._is_stopping:
            return
        self._ready.put(stream)
        self._queued += 1
        self._untaken += 1
        if self._free < self._queued and self._threads < self._most:
            # A daemon: a receiver that drags on must not hold up the end of the process.
            thread = threading.Thread(target=self._run, name="lane", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The system has none to give. Whoever wakes us has committed something and must not fail for it; the
                # next who does, or the sweep, tries again.
                log.exception("lane_without_thread", threads=self._threads)
            else:
                self._threads += 1

    def _run(self) -> None:
        while True:
            with self._changed:
                self._free += 1
            stream = self._ready.get()
            with self._changed:
                self._free -= 1
                self._queued -= stream is not None
                if stream is None or self._is_stopping:
                    self._untaken -= stream is not None
                    self._threads -= 1
                    self._changed.notify_all()
                    return
            try:
                self._step(stream)
            except Exception:
                # Of one stream: it must not end the thread of all the others. The sweep looks at it again.
                log.exception("delivery_step_failed")
                self._finish(stream)

    def _step(self, stream: K) -> None:
        with contextlib.ExitStack() as untaken:
            untaken.callback(self._note_taken)
            work = self._look(stream)
            if work is None:
                untaken.close()
                self._finish(stream)
                return
            host = work.host
            if not self._enter(host, stream):
                return
            try:
                is_ours = self._take(work)
                untaken.close()
                if is_ours:
                    self._do(work)
            finally:
                self._leave(host)
        with self._changed:
            self._again.discard(stream)
            self._enqueue(stream)

    def _note_taken(self) -> None:
        with self._changed:
            self._untaken -= 1
            if not self._untaken:
                self._changed.notify_all()

    def _finish(self, stream: K) -> None:
        with self._changed:
            self._pass_on(stream, None)
            if stream in self._again:
                self._again.discard(stream)
                self._enqueue(stream)
            else:
                self._busy.discard(stream)
                self._changed.notify_all()

    def _enter(self, host: str, stream: K) -> bool:
        with self._changed:
            if self._is_stopping:
                return False
            self._pass_on(stream, host)
            if self._at_host[host] >= self._at_one_host:
                self._parked[host].append(stream)
                return False
            self._at_host[host] += 1
            return True

    def _leave(self, host: str) -> None:
        with self._changed:
            self._at_host[host] -= 1
            if not self._at_host[host]:
                del self._at_host[host]
            self._call_next(host)
            self._changed.notify_all()

    def _call_next(self, host: str) -> None:
        if waiting := self._parked.get(host):
            stream = waiting.popleft()
            if not waiting:
                del self._parked[host]
            self._called[stream] = host
            self._enqueue(stream)

    def _pass_on(self, stream: K, host: str | None) -> None:
        """A place that a stream was called to is the next one's if it has nothing to do there any more: nobody else
        would call those who wait."""
        called_to = self._called.pop(stream, None)
        if called_to is not None and called_to != host:
            self._call_next(called_to)
