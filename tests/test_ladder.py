"""When a delivery is tried again, and how many streams go beside each other."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from delivery.ladder import JITTER, STEPS, delay_after
from delivery.lanes import Lanes


def test_the_ladder_is_the_one_that_is_promised() -> None:
    seconds = [step.total_seconds() for step in STEPS]
    assert seconds == [0, 5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 10 * 3600]


def test_each_failed_try_waits_for_its_step_and_a_little_by_chance() -> None:
    for tries, step in enumerate(STEPS):
        assert delay_after(tries, 0.0) == step
        assert delay_after(tries, 0.5) == step * (1 + JITTER / 2)
        assert step <= (delay_after(tries, 0.999) or step) <= step * (1 + JITTER)


def test_after_the_last_step_there_is_no_other_try() -> None:
    assert [delay_after(tries, 0.3) for tries in (8, 9, 1000)] == [None] * 3


@dataclass(frozen=True)
class Parcel:
    stream: str
    number: int
    host: str


class Shelf:
    """What is to be sent, and what was: each stream is a list that is taken from its head."""

    def __init__(self, do: Callable[[Parcel], None] = lambda parcel: None) -> None:
        self.waiting: defaultdict[str, list[Parcel]] = defaultdict(list)
        self.done: list[Parcel] = []
        self.at_once: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._act, self._lock = do, threading.Lock()

    def put(self, stream: str, *numbers: int, host: str = "a") -> None:
        self.waiting[stream] += [Parcel(stream, number, host) for number in numbers]

    def look(self, stream: str) -> Parcel | None:
        return next(iter(self.waiting[stream]), None)

    def take(self, parcel: Parcel) -> bool:
        return True

    def do(self, parcel: Parcel) -> None:
        with self._lock:
            for key in (parcel.stream, f"host {parcel.host}"):
                self.at_once[key] += 1
                self.most[key] = max(self.most[key], self.at_once[key])
        try:
            self._act(parcel)
        finally:
            with self._lock:
                self.at_once[parcel.stream] -= 1
                self.at_once[f"host {parcel.host}"] -= 1
        self.waiting[parcel.stream].remove(parcel)
        self.done.append(parcel)


@contextmanager
def lanes(shelf: Shelf, **options: int) -> Iterator[Lanes[str, Parcel]]:
    made: Lanes[str, Parcel] = Lanes(shelf.look, shelf.take, shelf.do, **options)
    try:
        yield made
    finally:
        made.stop(5)


def test_a_stream_is_in_order_and_never_in_two_threads() -> None:
    shelf = Shelf(lambda parcel: time.sleep(0.001))
    for stream in "abcdefgh":
        shelf.put(stream, *range(20), host=stream)
    with lanes(shelf) as made:
        for _ in range(50):
            made.wake("abcdefgh")
        assert made.wait_idle(20)
    for stream in "abcdefgh":
        assert [each.number for each in shelf.done if each.stream == stream] == list(range(20))
        assert shelf.most[stream] == 1


def test_no_more_than_a_few_are_at_one_host_and_the_others_take_no_thread() -> None:
    gate = threading.Event()
    shelf = Shelf(lambda parcel: gate.wait(10) and None if parcel.host == "tarpit" else None)
    slow = [f"slow {number}" for number in range(20)]
    for stream in slow:
        shelf.put(stream, 0, host="tarpit")
    shelf.put("quick", *range(10), host="b")
    with lanes(shelf, threads=6, at_one_host=4) as made:
        made.wake(slow)
        made.wake(["quick"])
        deadline = time.monotonic() + 5
        while len(shelf.done) < 10 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert [each.stream for each in shelf.done] == ["quick"] * 10
        gate.set()
        assert made.wait_idle(10)
    assert len(shelf.done) == 30 and shelf.most["host tarpit"] == 4


def test_a_word_that_comes_while_a_stream_is_busy_is_not_lost() -> None:
    came, gate = threading.Event(), threading.Event()

    def do(parcel: Parcel) -> None:
        came.set()
        gate.wait(10)

    shelf = Shelf(do)
    shelf.put("a", 1)
    with lanes(shelf) as made:
        made.wake(["a"])
        assert came.wait(5)
        shelf.put("a", 2)
        made.wake(["a"])
        gate.set()
        assert made.wait_idle(5)
    assert [each.number for each in shelf.done] == [1, 2]


def test_two_words_at_the_same_moment_find_two_threads() -> None:
    """One thread that was just woken must not make the second word wait behind the first one's work."""
    gate = threading.Event()
    shelf = Shelf(lambda parcel: gate.wait(10) and None if parcel.host == "slow" else None)
    shelf.put("warm", 1, host="warm")
    with lanes(shelf) as made:
        made.wake(["warm"])
        assert made.wait_idle(5)
        for number in range(50):
            shelf.put(f"slow {number}", 1, host="slow")
            shelf.put(f"quick {number}", 1, host="quick")
        with_slow = [word for number in range(50) for word in (f"slow {number}", f"quick {number}")]
        made.wake(with_slow)
        deadline = time.monotonic() + 5
        while len(shelf.done) < 51 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(shelf.done) == 51
        gate.set()
        assert made.wait_idle(10)


def test_stopping_waits_for_what_is_under_way_and_begins_nothing() -> None:
    came = threading.Event()

    def do(parcel: Parcel) -> None:
        came.set()
        time.sleep(0.2)

    shelf = Shelf(do)
    shelf.put("a", 1, 2)
    with lanes(shelf) as made:
        made.wake(["a"])
        assert came.wait(5)
        assert made.stop(5)
        made.wake(["a", "b"])
        time.sleep(0.05)
    assert [each.number for each in shelf.done] == [1]


def test_stopping_says_when_it_could_not_wait() -> None:
    came, gate = threading.Event(), threading.Event()

    def do(parcel: Parcel) -> None:
        came.set()
        gate.wait(10)

    shelf = Shelf(do)
    shelf.put("a", 1)
    with lanes(shelf) as made:
        made.wake(["a"])
        assert came.wait(5)
        assert not made.stop(0.05)
        gate.set()


def test_what_is_taken_is_told_apart_from_what_is_done() -> None:
    """A receiver that takes its time, and those that wait for a place there, are waited for by nobody."""
    taking, sending = threading.Event(), threading.Event()

    class Slow(Shelf):
        def take(self, parcel: Parcel) -> bool:
            return taking.wait(10)

    shelf = Slow(lambda parcel: sending.wait(10) and None)
    for stream in "abc":
        shelf.put(stream, 1)
    with lanes(shelf, at_one_host=2) as made:
        assert made.wait_taken(0), "nothing was woken"
        made.wake("abc")
        assert not made.wait_taken(0.05)
        taking.set()
        assert made.wait_taken(5)
        assert shelf.done == [], "nothing has been done"
        sending.set()
        assert made.wait_idle(5)
        assert made.wait_taken(0) and len(shelf.done) == 3


@pytest.mark.parametrize("then", ["nothing", "a fault", "elsewhere"])
def test_a_place_that_is_not_needed_any_more_goes_to_the_next_who_waits_for_it(then: str) -> None:
    """b and c wait for the host where a is; when b is called, it has nothing to do there any more."""
    under_way, gate, looks = threading.Event(), threading.Event(), Counter[str]()

    class Changed(Shelf):
        def look(self, stream: str) -> Parcel | None:
            looks[stream] += 1
            if stream == "b" and looks["b"] == 2:
                if then == "a fault":
                    raise OSError("the database was away for a moment")
                host = "elsewhere" if then == "elsewhere" else ""
                self.waiting["b"] = [Parcel("b", 1, host)] if host else []
            return super().look(stream)

    def do(parcel: Parcel) -> None:
        under_way.set()
        gate.wait(10)

    shelf = Changed(do)
    for stream in "abc":
        shelf.put(stream, 1)
    with lanes(shelf, at_one_host=1) as made:
        made.wake("a")
        assert under_way.wait(5)
        for stream in "bc":
            made.wake(stream)
            deadline = time.monotonic() + 5
            while stream not in made._parked["a"] and time.monotonic() < deadline:
                time.sleep(0.005)
        gate.set()
        assert made.wait_idle(5)
    done = {"nothing": "ac", "a fault": "ac", "elsewhere": "abc"}[then]
    assert {parcel.stream for parcel in shelf.done} == set(done)


def test_what_somebody_else_took_is_not_done() -> None:
    class Taken(Shelf):
        def take(self, parcel: Parcel) -> bool:
            self.waiting[parcel.stream].remove(parcel)
            return False

    shelf = Taken()
    shelf.put("a", 1)
    with lanes(shelf) as made:
        made.wake("a")
        assert made.wait_idle(5) and made.wait_taken(0)
    assert shelf.done == [] and not shelf.waiting["a"]


@pytest.mark.parametrize("where", ["look", "take", "do"])
def test_a_fault_ends_no_thread_and_its_stream_can_be_woken_again(where: str) -> None:
    faults = ["broken"]

    class Faulty(Shelf):
        def look(self, stream: str) -> Parcel | None:
            if where == "look" and faults:
                raise ZeroDivisionError(faults.pop())
            return super().look(stream)

        def take(self, parcel: Parcel) -> bool:
            if where == "take" and faults:
                raise ZeroDivisionError(faults.pop())
            return super().take(parcel)

        def do(self, parcel: Parcel) -> None:
            if where == "do" and faults:
                raise ZeroDivisionError(faults.pop())
            super().do(parcel)

    shelf = Faulty()
    shelf.put("a", 1)
    with lanes(shelf, threads=1, at_one_host=1) as made:
        made.wake(["a"])
        assert made.wait_idle(5) and made.wait_taken(0) and shelf.done == []
        made.wake(["a"])
        assert made.wait_idle(5)
    assert len(shelf.done) == 1
