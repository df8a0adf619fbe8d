"""A capture of a CUDA graph has exclusive access, all other uses of a device share it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.runtime.runners import CudaGraphLock


def test_users_share_access() -> None:
    lock, both = CudaGraphLock(), threading.Barrier(2, timeout=30)

    def use() -> None:
        with lock.shared():
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        for used in [pool.submit(use), pool.submit(use)]:
            used.result(30)


def test_a_capture_waits_for_users_and_later_users_for_it() -> None:
    lock, order = CudaGraphLock(), list[str]()
    here, go = threading.Event(), threading.Event()

    def use() -> None:
        with lock.shared():
            here.set()
            assert go.wait(30)
            order.append("user")

    def capture() -> None:
        with lock.exclusive():
            order.append("capture")

    def come_late() -> None:
        with lock.shared():
            order.append("late")

    threads = [threading.Thread(target=use)]
    threads[0].start()
    assert here.wait(30)
    threads.append(threading.Thread(target=capture))
    threads[1].start()
    for _ in range(1000):  # until a user has to wait, which is once the capture waits
        threads.append(threading.Thread(target=come_late))
        threads[-1].start()
        threads[-1].join(0.05)
        if threads[-1].is_alive():
            break
    go.set()
    for thread in threads:
        thread.join(30)
    assert [event for event in order if event != "late"] == ["user", "capture"]
    assert order[-2:] == ["capture", "late"]


def test_one_thread_captures_at_a_time() -> None:
    lock = CudaGraphLock()
    inside = most = 0

    def capture() -> None:
        nonlocal inside, most
        for _ in range(200):
            with lock.exclusive():
                inside += 1
                most = max(most, inside)
                inside -= 1
            with lock.shared():
                assert not inside

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(capture) for _ in range(4)]:
            done.result(60)
    assert most == 1


def test_an_error_releases_the_lock() -> None:
    lock = CudaGraphLock()
    for turn in (lock.exclusive, lock.shared):
        with pytest.raises(ValueError, match="no"), turn():
            raise ValueError("no")
    with lock.exclusive():
        pass
    with lock.shared():
        pass
