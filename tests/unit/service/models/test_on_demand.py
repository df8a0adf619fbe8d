"""Models that are open within a limit of memory."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.domain.errors import DeadlineExceeded, ModelFailure, StartupError
from service.models import on_demand
from service.models.instances import open_instances
from service.models.on_demand import Memory, OnDemandModel, OnDemandRepository
from service.models.repository import LoadedModel
from service.runtime.onnx_model import OnnxModel
from service.scheduling.scheduler import Scheduler
from service.settings import Settings
from tests.helpers.device_fakes import is_closed
from tests.helpers.fakes import FakeModel
from tests.helpers.onnx_models import reference, sample_rows, write_model
from tests.helpers.serving import Clock, marked, params, play, submitted, until_queued


def always() -> bool:
    return True


def never() -> bool:
    return False


def seen(waits: threading.Event) -> bool:
    waits.set()
    return True


class Shelf:
    """Models of 40 MiB each within 100 MiB; `opened` has those that were opened, in order."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.seen: list[tuple[int, int]] = []
        self.memory = Memory(100, on_change=lambda count, size: self.seen.append((count, size // 2**20)))
        self.models = {name: self.model(name) for name in "abc"}

    def model(self, name: str, open_again: Callable[[], list[Any]] | None = None) -> OnDemandModel:
        def opened() -> list[Any]:
            self.opened.append(name)
            return open_again() if open_again else [FakeInstance()]

        model = OnDemandModel(self.memory, f"{name}/1", 40 * 2**20)
        model.open_again = opened
        return model

    def use(self, names: str) -> None:
        for name in names:
            assert self.models[name].acquire(never)
            self.models[name].release()

    def open_names(self) -> str:
        return "".join(name for name, model in self.models.items() if model.instances)


class FakeInstance(FakeModel):
    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("used", "opened", "left"),
    [("ab", "ab", "ab"), ("abc", "abc", "bc"), ("abac", "abc", "ac"), ("abcab", "abcab", "ab"), ("abbac", "abc", "ac")],
)
def test_the_model_that_was_used_least_recently_is_closed(used: str, opened: str, left: str) -> None:
    shelf = Shelf()
    shelf.use(used)
    assert ("".join(shelf.opened), shelf.open_names()) == (opened, left)
    assert shelf.seen[-1] == (2, 80)
    assert max(size for _, size in shelf.seen) <= 100


def test_a_model_in_use_is_never_closed_and_others_wait_for_it() -> None:
    shelf = Shelf()
    for name in "ab":
        assert shelf.models[name].acquire(always)
    assert not shelf.models["c"].acquire(never)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(shelf.models["c"].acquire, always) for _ in range(2)]  # opened once, used twice
        shelf.use("a")  # a second use does not free it
        assert shelf.open_names() == "ab"
        shelf.models["b"].release()
        assert [each.result(30) for each in waiting] == [True, True]
    assert shelf.open_names() == "ac"
    assert shelf.opened == ["a", "b", "c"]


def test_who_waits_first_is_opened_first() -> None:
    shelf, names = Shelf(), "cdef"
    shelf.models |= {name: shelf.model(name) for name in "def"}
    for name in "ab":
        assert shelf.models[name].acquire(always)
    with ThreadPoolExecutor(len(names)) as pool:
        for name in names:
            waits = threading.Event()
            pool.submit(shelf.models[name].acquire, partial(seen, waits))
            assert waits.wait(30)
        for name in "ab" + names[:2]:
            shelf.models[name].release()
    assert "".join(shelf.opened) == "ab" + names


def test_closing_a_model_ends_the_wait_for_it_and_frees_its_room() -> None:
    shelf = Shelf()
    for name in "ab":
        assert shelf.models[name].acquire(always)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shelf.models["c"].acquire, always)
        shelf.models["c"].close()
        assert not waiting.result(30)
    shelf.models["a"].close()
    assert shelf.seen[-1] == (1, 40)
    with pytest.raises(ModelFailure) as caught:
        shelf.models["a"].call(0, "run", marked(1))
    assert caught.value.reason == "it is closed"


def test_a_model_that_cannot_be_opened_says_why_and_takes_no_room_until_it_can() -> None:
    shelf, causes = Shelf(), [StartupError("d/1/model.onnx: changed"), StartupError("d/1/model.onnx: changed")]

    def fail() -> list[Any]:
        if causes:
            raise causes.pop()
        return [FakeInstance()]

    model = shelf.model("d", fail)
    assert model.acquire(always)
    assert (model.failure, shelf.seen[-1]) == ("d/1/model.onnx: changed", (0, 0))
    with pytest.raises(ModelFailure, match="cannot be opened") as caught:
        model.call(0, "run", marked(1))
    assert caught.value.reason == "d/1/model.onnx: changed"
    np.testing.assert_array_equal(model.call(0, "run", marked(2)), marked(1))
    assert (model.failure, shelf.seen[-1]) == ("", (1, 40))


def test_what_needs_more_than_there_is_is_refused() -> None:
    shelf = Shelf()
    assert shelf.models["a"].acquire(always)
    shelf.memory.resize(shelf.models["a"], 100 * 2**20)
    with pytest.raises(StartupError, match="needs 101 MiB, more than IGN_MODEL_MEMORY_MIB=100"):
        shelf.memory.resize(shelf.models["a"], 101 * 2**20)


def test_rows_wait_for_memory_until_their_deadline_and_later_ones_run() -> None:
    """A worker keeps the model while rows are left, and gives it back when it is idle."""
    shelf, clock = Shelf(), Clock()
    shelf.use("ab")

    async def main(scheduler: Scheduler) -> None:
        for name in "ab":
            assert shelf.models[name].acquire(always)
        late = submitted(scheduler, marked(1), params(deadline=clock.now + 1.0))
        await until_queued(scheduler, late)
        clock.now += 1.0
        with pytest.raises(DeadlineExceeded):
            await late
        shelf.models["a"].release()
        np.testing.assert_array_equal((await scheduler.run(marked(2), params())).rows, marked(1))
        assert await asyncio.to_thread(shelf.models["a"].acquire, always)  # waits until the worker gives "c" back

    play(main, FakeModel(), memory=shelf.models["c"], clock=clock, loop_clock=clock)
    assert shelf.open_names() == "ab"


class Library:
    """A repository of real models of one size; `room` of them are open at a time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        size = {(folder / ref / "model.onnx").stat().st_size for ref in ("toy/1", "toy/2", "toy/3")}
        monkeypatch.setattr(on_demand, "_resident_bytes", lambda: 0)
        monkeypatch.setattr(on_demand, "_ESTIMATE", 4)
        monkeypatch.setattr(on_demand, "_MIB", 4 * max(size))  # of two instances
        settings, self.opened = Settings(device="cpu", threads=2), list[OnnxModel]()
        self.memory = Memory(room)
        self.repository = OnDemandRepository(
            directory=folder,
            open_models=lambda data, count=None: open_instances(self._make, settings, data, count),
            default="toy",
            memory=self.memory,
            max_batch_rows=8,
        )

    def _make(self, data: bytes, **options: Any) -> OnnxModel:
        self.opened.append(OnnxModel(data, **options))
        return self.opened[-1]

    def running(self) -> list[str]:
        return sorted(model.card.ref for model in self.opened if not is_closed(model))


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    for version in "123":
        write_model(tmp_path, version=version, scale=0.5 + int(version))
    return tmp_path


def ask(loaded: LoadedModel, index: int = 1) -> None:
    x = sample_rows(2)
    expected = reference(x, 0.5 + int(loaded.card.version))
    np.testing.assert_allclose(loaded.instances[index].run(x), expected, atol=1e-6)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"other")])
def test_a_file_that_is_no_longer_the_verified_one_is_not_opened(
    toys: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], Any]
) -> None:
    library = Library(toys, monkeypatch, 1)
    first, *_ = library.repository.load_all().models.values()
    count, file = len(library.opened), toys / "toy" / "1" / "model.onnx"
    kept = file.read_bytes()
    damage(file)
    with pytest.raises(ModelFailure) as caught:
        ask(first)
    assert caught.value.reason.startswith("toy/1/model.onnx: ")
    assert first.memory is not None
    assert first.memory.failure == caught.value.reason
    assert len(library.opened) == count  # onnxruntime has not seen it
    file.write_bytes(kept)
    ask(first)
    assert first.memory.failure == ""


def test_a_model_that_is_too_large_or_broken_takes_no_room(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(toys, monkeypatch, 1)
    (toys / "toy" / "2" / "golden.npz").write_bytes(b"")
    sizes = iter([0, 0, 2**30])  # the third look at the first model
    monkeypatch.setattr(on_demand, "_resident_bytes", lambda: next(sizes, 0))
    models, failures = library.repository.load_all()
    assert list(models) == ["toy/3"]
    assert failures["toy/2"].startswith("toy/2/golden.npz: damaged")
    assert "more than IGN_MODEL_MEMORY_MIB=1" in failures["toy/1"]
    ask(models["toy/3"])
