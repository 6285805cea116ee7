"""Items come in order, ahead of who wants them, and errors come with them."""

import itertools
import threading
import time

import pytest

from cogview_jax.data.prefetch import Prefetched


def test_items_come_in_order_and_at_most_so_many_ahead():
    made = []

    def items():
        for i in itertools.count():
            made.append(i)
            yield i

    ahead = Prefetched(items(), depth=2)
    for i in range(5):
        assert ahead.get() == i
    deadline = time.monotonic() + 300
    while len(made) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    # Five are taken, two wait, one is in the hand of the thread.
    assert made == list(range(8))
    ahead.close()


def test_who_waits_is_told_and_who_need_not_is_not():
    gate = threading.Event()

    def items():
        yield 1
        gate.wait(300)
        yield 2

    calls = []

    def waiting():
        calls.append(1)
        if len(calls) == 3:
            gate.set()

    ahead = Prefetched(items())
    while ahead._made.empty():
        time.sleep(0.001)
    assert ahead.get(waiting) == 1
    assert calls == []
    assert ahead.get(waiting) == 2
    assert len(calls) >= 3
    ahead.close()


def test_an_error_comes_where_the_item_would_have():
    def items():
        yield 1
        raise ValueError("the second")

    ahead = Prefetched(items())
    assert ahead.get() == 1
    with pytest.raises(ValueError, match="the second"):
        ahead.get()
    ahead.close()


def test_the_end_is_told_and_closing_ends_the_thread():
    ahead = Prefetched(iter(range(2)))
    assert [ahead.get(), ahead.get()] == [0, 1]
    with pytest.raises(StopIteration):
        ahead.get()
    endless = Prefetched(itertools.count())
    endless.close()
    assert not endless._thread.is_alive()
