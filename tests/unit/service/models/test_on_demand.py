"""Models that are open within a limit of memory."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.domain.errors import DeadlineExceeded, ModelFailure, NotReady, StartupError
from service.domain.latents import FloatRows
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
from tests.helpers.serving import Clock, marked, params, play, serving, submitted

PATIENCE_S = 300.0  # nothing takes a tenth of it


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of `service.models.on_demand`; it stands still unless a test moves it."""
    clock = Clock()
    monkeypatch.setattr(on_demand, "time", SimpleNamespace(monotonic=clock))
    return clock


class ShelfModel(OnDemandModel):
    """`rows` are the callers that have rows; ``claimed`` tells that the model is to be released."""

    def __init__(self, memory: Memory, name: str) -> None:
        self.claimed, self.looks = threading.Event(), threading.Semaphore(0)
        super().__init__(memory, f"{name}/1", 40 * 2**20)
        self.rows = ["x"]
        self.callers.append(self._look)

    def _look(self) -> list[str]:
        self.looks.release()
        return self.rows

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "is_claimed" and value:
            self.claimed.set()

    def waits(self) -> None:
        """Wait until a thread waits for the model, which has looked at it twice."""
        while self.looks.acquire(blocking=False):
            pass
        for _ in range(3):
            assert self.looks.acquire(timeout=PATIENCE_S)


class Shelf:
    """Models of 40 MiB each within 100 MiB, wanted by caller x; `opened` has those that were opened, in order."""

    def __init__(self, limit: int = 100) -> None:
        self.opened: list[str] = []
        self.seen: list[tuple[int, int]] = []
        self.memory = Memory(limit, on_change=lambda count, size: self.seen.append((count, size // 2**20)))
        self.models = {name: self.model(name) for name in "abc"}

    def model(self, name: str, open_again: Callable[[], list[Any]] | None = None) -> ShelfModel:
        def opened() -> list[Any]:
            self.opened.append(name)
            return open_again() if open_again else [FakeInstance()]

        model = ShelfModel(self.memory, name)
        model.open_again = opened
        return model

    def use(self, names: str) -> None:
        for name in names:
            assert self.models[name].acquire()
            self.models[name].release()

    def open_names(self) -> str:
        return "".join(name for name, model in self.models.items() if model.instances)


class FakeInstance(FakeModel):
    def close(self) -> None:
        pass


@pytest.mark.usefixtures("clock")
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


def test_a_model_in_use_closes_once_it_is_released_and_others_wait_for_it() -> None:
    shelf = Shelf()
    for name in "ab":
        assert shelf.models[name].acquire()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(shelf.models["c"].acquire) for _ in range(2)]  # opened once, used twice
        assert shelf.models["a"].claimed.wait(PATIENCE_S)
        assert shelf.open_names() == "ab"
        shelf.models["a"].release()
        assert [each.result(PATIENCE_S) for each in waiting] == [True, True]
    assert shelf.open_names() == "bc"
    assert shelf.opened == ["a", "b", "c"]


def test_nothing_is_opened_that_nobody_waits_for_any_more() -> None:
    shelf = Shelf()
    for name in "ab":
        assert shelf.models[name].acquire()
    shelf.models["c"].rows = []
    assert not shelf.models["c"].acquire()
    assert shelf.opened == ["a", "b"]


def test_a_model_stays_open_as_long_as_opening_took(clock: Clock) -> None:
    shelf = Shelf(limit=40)

    def slow() -> list[Any]:
        clock.now += 3.0
        return [FakeInstance()]

    shelf.models["a"] = shelf.model("a", slow)
    assert shelf.models["a"].acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shelf.models["b"].acquire)
        clock.now += 2.9
        shelf.models["b"].waits()
        assert not shelf.models["a"].claimed.is_set()
        clock.now += 0.2
        assert shelf.models["a"].claimed.wait(PATIENCE_S)
        shelf.models["a"].release()
        assert waiting.result(PATIENCE_S)


@pytest.mark.parametrize("seed", range(10))
def test_models_are_opened_for_the_caller_that_has_had_least(clock: Clock, seed: int) -> None:
    """However many models each caller waits for, and in whichever order they came."""
    chance, shelf = random.Random(seed), Shelf(limit=40)
    wanted = Counter({caller: chance.randint(1, 6) for caller in "pqrs"[: chance.randint(2, 4)]})
    owners = list(wanted.elements())
    chance.shuffle(owners)
    opened: list[str] = []

    def use(name: str) -> None:
        model = shelf.models[name]
        assert model.acquire()
        opened.append(model.rows[0])
        clock.now += 1.0
        model.release()

    assert shelf.models["a"].acquire()
    with ThreadPoolExecutor(len(owners)) as pool:
        for number, owner in enumerate(owners):
            name = f"{owner}{number}"
            shelf.models[name] = model = shelf.model(name)
            model.rows = [owner]
            pool.submit(use, name)
            assert model.looks.acquire(timeout=PATIENCE_S)  # it waits
        shelf.models["a"].release()
    assert len(opened) == len(owners)
    for end in range(len(opened)):
        had, left = Counter(opened[:end]), Counter(opened[end:])
        assert max(had[each] for each in left) - min(had[each] for each in left) <= 1, opened


def test_a_stream_of_one_caller_closes_between_two_steps_for_another_caller(clock: Clock) -> None:
    """And goes on later, with the same numbers."""
    shelf, allowed, began = Shelf(limit=40), threading.Semaphore(3), list[str]()
    held_up = threading.Event()  # in a step, so the model is in use
    first, second = shelf.models["a"], shelf.models["b"]

    def step(rows: FloatRows) -> FloatRows:
        began.append("a")
        if len(began) == 4:
            held_up.set()
        assert allowed.acquire(timeout=PATIENCE_S)
        return rows * np.float32(0.5)

    def other_step(rows: FloatRows) -> FloatRows:
        began.append("b")
        return rows * np.float32(0.5)

    async def main() -> None:
        with ExitStack() as stack:
            streaming = stack.enter_context(serving(FakeModel(function=step), memory=first))
            other = stack.enter_context(serving(FakeModel(function=other_step), memory=second))
            first.callers[:1] = second.callers[:1] = []
            stream = asyncio.create_task(streaming.run(marked(1), params(40, tolerance=1e-30, key="a")))
            assert await asyncio.to_thread(held_up.wait, PATIENCE_S)
            asked = asyncio.create_task(other.run(marked(2), params(key="b")))
            assert await asyncio.to_thread(first.claimed.wait, PATIENCE_S)
            claimed_after = len(began)
            allowed.release(40)
            np.testing.assert_array_equal((await asyncio.wait_for(asked, PATIENCE_S)).rows, marked(1))
            assert began.index("b") <= claimed_after + 1  # at most the step that had been decided on
            np.testing.assert_array_equal((await stream).rows, marked(2.0**-40))

    asyncio.run(main())
    assert shelf.opened == ["a", "b", "a"]


def test_who_cannot_have_a_model_before_the_deadline_hears_so_at_once(clock: Clock) -> None:
    shelf = Shelf(limit=40)

    def slow() -> list[Any]:
        clock.now += 3.0
        return [FakeInstance()]

    shelf.models["c"] = shelf.model("c", slow)
    for name in "ca":
        shelf.use(name)
        clock.now += 3.0

    async def main(scheduler: Scheduler) -> None:
        with pytest.raises(NotReady) as caught:
            await scheduler.run(marked(1), params(deadline=clock.now + 5.0))
        assert caught.value.retry_after == 6.0
        await scheduler.run(marked(1), params(deadline=clock.now + 7.0))

    play(main, FakeModel(), memory=shelf.models["c"], clock=clock)
    assert shelf.opened == ["c", "a", "c"]


def test_models_of_callers_that_have_had_more_do_not_count_in_that_prediction(clock: Clock) -> None:
    shelf = Shelf(limit=40)
    for model in shelf.models.values():
        model.opening_s = 1.0
    assert shelf.models["a"].acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shelf.models["b"].acquire)
        shelf.models["b"].waits()
        clock.now += 1.0
        shelf.models["b"].waits()
        assert shelf.models["a"].seconds_to_open("x") == 0.0
        assert shelf.models["c"].seconds_to_open("x") == 4.0
        assert shelf.models["c"].seconds_to_open("newcomer") == 2.0
        shelf.models["a"].release()
        assert waiting.result(PATIENCE_S)


def test_closing_a_model_ends_the_wait_for_it_and_frees_its_room() -> None:
    shelf = Shelf()
    for name in "ab":
        assert shelf.models[name].acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shelf.models["c"].acquire)
        shelf.models["c"].close()
        assert not waiting.result(PATIENCE_S)
    shelf.models["a"].close()
    assert shelf.seen[-1] == (1, 40)
    with pytest.raises(ModelFailure, match="is closed"):
        shelf.models["a"].call(0, "run", marked(1))


def test_a_model_that_cannot_be_opened_says_why_and_takes_no_room_until_it_can() -> None:
    shelf, causes = Shelf(), [StartupError("d/1/model.onnx: changed"), StartupError("d/1/model.onnx: changed")]

    def fail() -> list[Any]:
        if causes:
            raise causes.pop()
        return [FakeInstance()]

    model = shelf.model("d", fail)
    assert model.acquire()
    assert (model.failure, shelf.seen[-1]) == ("d/1/model.onnx: changed", (0, 0))
    with pytest.raises(ModelFailure, match="cannot be opened") as caught:
        model.call(0, "run", marked(1))
    assert caught.value.reason == "d/1/model.onnx: changed"
    np.testing.assert_array_equal(model.call(0, "run", marked(2)), marked(1))
    assert (model.failure, shelf.seen[-1]) == ("", (1, 40))


def test_what_needs_more_than_there_is_is_refused() -> None:
    shelf = Shelf()
    assert shelf.models["a"].acquire()
    shelf.memory.resize(shelf.models["a"], 100 * 2**20)
    with pytest.raises(StartupError, match="needs 101 MiB, more than IGN_MODEL_MEMORY_MIB=100"):
        shelf.memory.resize(shelf.models["a"], 101 * 2**20)


def test_rows_wait_for_memory_until_their_deadline_and_later_ones_run(clock: Clock) -> None:
    """A worker keeps the model while rows are left, and gives it back when it is idle."""
    shelf = Shelf()

    async def main(scheduler: Scheduler) -> None:
        shelf.models["c"].callers[:1] = []
        for name in "ab":
            assert shelf.models[name].acquire()
        late = submitted(scheduler, marked(1), params(deadline=clock.now + 1.0))
        for _ in range(2):  # it is submitted, and given to the lane
            await asyncio.sleep(0)
        clock.now += 1.0
        with pytest.raises(DeadlineExceeded):
            await late
        shelf.models["a"].release()
        np.testing.assert_array_equal((await scheduler.run(marked(2), params())).rows, marked(1))
        assert await asyncio.to_thread(shelf.models["a"].acquire)  # waits until the worker gives "c" back

    play(main, FakeModel(), memory=shelf.models["c"], clock=clock, loop_clock=clock)
    assert shelf.open_names() == "ab"


class Library:
    """A repository of real models of one size; `room` of them are open at a time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        size = {(folder / ref / "model.onnx").stat().st_size for ref in ("toy/1", "toy/2", "toy/3")}
        monkeypatch.setattr(on_demand, "resident_bytes", lambda: 0)
        monkeypatch.setattr(on_demand, "_ESTIMATE", 4)
        monkeypatch.setattr(on_demand, "_MIB", 4 * max(size))  # of two instances
        settings, self.opened = Settings(device="cpu", threads=2), list[OnnxModel]()
        self.memory = Memory(room)
        self.repository = OnDemandRepository(
            directory=folder,
            open_models=lambda data, count=None: open_instances(self._make, settings, data, count or 2),
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
    monkeypatch.setattr(on_demand, "resident_bytes", lambda: next(sizes, 0))
    models, failures = library.repository.load_all()
    assert list(models) == ["toy/3"]
    assert failures["toy/2"].startswith("toy/2/golden.npz: damaged")
    assert "more than IGN_MODEL_MEMORY_MIB=1" in failures["toy/1"]
    ask(models["toy/3"])
