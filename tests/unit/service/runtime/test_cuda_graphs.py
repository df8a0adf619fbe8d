"""Who captures a CUDA graph is alone; all others are together."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.runtime.cuda_graphs import CudaGraphLock


def until(true: Callable[[], bool]) -> None:
    """Wait for what nobody tells."""
    for _ in range(30_000):
        if true():
            return
        threading.Event().wait(0.001)
    raise AssertionError("in vain")


def test_users_are_together() -> None:
    captures, both = CudaGraphLock(), threading.Barrier(2, timeout=30)

    def use() -> None:
        with captures.together():
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        for used in [pool.submit(use), pool.submit(use)]:
            used.result(30)


def test_who_captures_waits_for_users_and_new_ones_for_it() -> None:
    captures, order = CudaGraphLock(), list[str]()
    here, go = threading.Event(), threading.Event()

    def use() -> None:
        with captures.together():
            here.set()
            assert go.wait(30)
            order.append("user")

    def capture() -> None:
        with captures.alone():
            order.append("capture")

    def come_late() -> None:
        with captures.together():
            order.append("latecomer")

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(use)]
        assert here.wait(30)
        jobs.append(pool.submit(capture))
        until(lambda: captures._waiting == 1)
        jobs.append(pool.submit(come_late))
        go.set()
        for job in jobs:
            job.result(30)
    assert order == ["user", "capture", "latecomer"]
    assert not captures.capturing


def test_one_captures_at_a_time() -> None:
    captures = CudaGraphLock()
    inside = most = 0

    def capture() -> None:
        nonlocal inside, most
        for _ in range(200):
            with captures.alone():
                inside += 1
                most = max(most, inside)
                assert captures.capturing
                inside -= 1
            with captures.together():
                assert not captures.capturing

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(capture) for _ in range(4)]:
            done.result(60)
    assert most == 1


def test_a_failure_lets_the_others_go_on() -> None:
    captures = CudaGraphLock()
    for turn in (captures.alone, captures.together):
        with pytest.raises(ValueError, match="no"), turn():
            raise ValueError("no")
    with captures.alone():
        assert captures.capturing
