"""`pipeline.ordered_map`: results in order, a bounded number under way, no thread left behind."""

import threading
import time

import pytest

from sousa_jax.data.pipeline import ordered_map


def test_ordered_map_keeps_order_and_bounds_what_is_under_way():
    begun, taken = [], 0

    def work(i):
        begun.append(i)
        time.sleep(0.002 * (i % 3))
        return i

    for result in ordered_map(work, range(40), workers=4, ahead=5):
        assert result == taken
        taken += 1
        assert len(begun) <= taken + 5
    assert taken == 40


def test_ordered_map_works_in_parallel():
    together = threading.Barrier(2, timeout=5)
    assert len(list(ordered_map(lambda _: together.wait(), range(2), workers=2, ahead=2))) == 2


def pool_threads():
    return {thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name}


def test_an_exception_comes_out_in_its_place_and_ends_the_threads():
    def work(i):
        return 1 // (3 - i)

    before = pool_threads()
    results = ordered_map(work, range(10), workers=2, ahead=4)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not pool_threads() - before


def test_closing_drops_what_has_not_begun():
    begun = []

    def work(i):
        begun.append(i)
        time.sleep(0.01)

    results = ordered_map(work, range(1000), workers=2, ahead=100)
    next(results)
    n_begun = len(begun)
    results.close()
    assert len(begun) <= n_begun + 4
