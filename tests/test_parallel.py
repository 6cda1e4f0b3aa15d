"""Work on threads, in order, in bounded memory."""

import threading
import time

import pytest

from util.workers import MAX_PENDING, ordered_map


def test_results_come_in_the_order_of_the_items_whatever_they_take():
    def work(number):
        time.sleep(0.01 * (number % 3 == 0))
        return number * number

    assert list(ordered_map(work, range(20))) == [number * number for number in range(20)]


def test_items_run_beside_each_other():
    meeting = threading.Barrier(MAX_PENDING, timeout=10)
    assert len(list(ordered_map(lambda _: meeting.wait(), range(MAX_PENDING)))) == MAX_PENDING


def test_as_many_items_run_as_were_asked_for():
    meeting = threading.Barrier(7, timeout=10)
    assert len(list(ordered_map(lambda _: meeting.wait(), range(7), max_pending=7))) == 7


def test_no_more_items_are_taken_than_may_be_pending():
    taken = 0

    def items():
        nonlocal taken
        for number in range(30):
            taken = number + 1
            yield number

    for done, _ in enumerate(ordered_map(str, items()), start=1):
        assert taken <= done + MAX_PENDING


def test_an_error_of_the_work_or_of_the_items_reaches_the_caller_at_its_place():
    def work(number):
        if number == 3:
            raise OSError("disk full")
        return number

    results = ordered_map(work, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk full"):
        next(results)

    def items():
        yield 1
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        list(ordered_map(str, items()))


def test_a_caller_that_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    results = ordered_map(str, range(100))
    next(results)
    results.close()
    assert threading.active_count() == before
