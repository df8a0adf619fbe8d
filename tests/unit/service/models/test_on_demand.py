"""Models that are open within a limit of memory."""

import asyncio
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from service.domain.errors import NotReady
from service.domain.latents import FloatRows
from service.models import on_demand
from service.models.on_demand import Memory, OnDemandModel, OnDemandRepository
from service.runtime.onnx_model import OnnxModel
from service.scheduling.scheduler import Scheduler
from tests.contract.harness import PATIENCE_S
from tests.helpers.fakes import FakeModel
from tests.helpers.onnx_models import write_model
from tests.helpers.serving import Clock, marked, params, play, serving


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of `service.models.on_demand`; it stands still unless a test moves it."""
    clock = Clock()
    monkeypatch.setattr(on_demand, "time", SimpleNamespace(monotonic=clock))
    return clock


class ShelfModel(OnDemandModel):
    """A model of 40 MiB. `rows` are the callers that have rows; ``claimed`` tells that it is to be
    released.
    """

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


class Shelf:
    """Models within a limit, wanted by caller x; `opened` has those that were opened, in order."""

    def __init__(self, limit: int = 100, clock: Clock | None = None) -> None:
        self.opened: list[str] = []
        self.seen: list[tuple[int, int]] = []
        self.opening_s = 3.0
        self._clock = clock or Clock()
        self.memory = Memory(
            limit, on_change=lambda count, size: self.seen.append((count, size // 2**20))
        )
        self.models = {name: self.model(name) for name in "abc"}

    def model(self, name: str) -> ShelfModel:
        def read() -> bytes:
            self.opened.append(name)
            self._clock.now += self.opening_s
            return b""

        model = ShelfModel(self.memory, name)
        model.read = read
        return model

    def use(self, names: str) -> None:
        for name in names:
            assert self.models[name].acquire()
            self.models[name].release()

    def open_names(self) -> str:
        return "".join(name for name, model in self.models.items() if model.is_open)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("used", "opened", "left"),
    [("ab", "ab", "ab"), ("abc", "abc", "bc"), ("abac", "abc", "ac"), ("abcab", "abcab", "ab")],
)
def test_the_model_that_was_used_least_recently_is_closed(
    used: str, opened: str, left: str
) -> None:
    shelf = Shelf()
    shelf.use(used)
    assert ("".join(shelf.opened), shelf.open_names()) == (opened, left)
    assert shelf.seen[-1] == (2, 80)
    assert max(size for _, size in shelf.seen) <= 100


@pytest.mark.parametrize("is_closed", [True, False])
def test_nothing_is_opened_that_nobody_waits_for_any_more(is_closed: bool) -> None:
    shelf = Shelf()
    for name in "ab":
        assert shelf.models[name].acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shelf.models["c"].acquire)
        if is_closed:
            shelf.models["c"].close()
        else:
            shelf.models["c"].rows = []
        assert not waiting.result(PATIENCE_S)
    shelf.models["a"].close()
    assert (shelf.opened, shelf.seen[-1]) == (["a", "b"], (1, 40))


def test_a_model_stays_open_as_long_as_opening_took(clock: Clock) -> None:
    shelf = Shelf(40, clock)
    assert shelf.models["a"].acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shelf.models["b"].acquire)
        clock.now += 2.9
        for _ in range(3):  # it has looked at least twice since
            assert shelf.models["b"].looks.acquire(timeout=PATIENCE_S)
        assert not shelf.models["a"].claimed.is_set()
        clock.now += 0.2
        assert shelf.models["a"].claimed.wait(PATIENCE_S)
        shelf.models["a"].release()
        assert waiting.result(PATIENCE_S)


@pytest.mark.parametrize("seed", range(10))
def test_models_are_opened_for_the_caller_that_has_had_least(clock: Clock, seed: int) -> None:
    """However many models each caller waits for, and in whichever order they came."""
    chance = random.Random(seed)
    shelf = Shelf(40, clock)
    opened = list[str]()
    shelf.opening_s = 0.0
    owners = list(
        Counter(
            {caller: chance.randint(1, 6) for caller in "pqrs"[: chance.randint(2, 4)]}
        ).elements()
    )
    chance.shuffle(owners)

    def use(model: ShelfModel) -> None:
        assert model.acquire()
        opened.append(model.rows[0])
        clock.now += 1.0
        model.release()

    assert shelf.models["a"].acquire()
    with ThreadPoolExecutor(len(owners)) as pool:
        for number, owner in enumerate(owners):
            model = shelf.model(f"{owner}{number}")
            model.rows = [owner]
            pool.submit(use, model)
            assert model.looks.acquire(timeout=PATIENCE_S)  # it waits
        shelf.models["a"].release()
    assert len(opened) == len(owners)
    for end in range(len(opened)):
        had = Counter(opened[:end])
        left = set(opened[end:])
        assert max(had[each] for each in left) - min(had[each] for each in left) <= 1, opened


def test_a_stream_of_one_caller_closes_between_two_steps_for_another_caller(clock: Clock) -> None:
    """And goes on later, with the same numbers."""
    shelf = Shelf(40, clock)
    allowed = threading.Semaphore(3)
    began = list[str]()
    shelf.opening_s = 0.0
    held_up = threading.Event()  # in a step, so the model is in use
    first = shelf.models["a"]
    second = shelf.models["b"]
    first.rows = second.rows = []

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
        with (
            serving(FakeModel(function=step), memory=first) as streaming,
            serving(FakeModel(function=other_step), memory=second) as other,
        ):
            stream = streaming.run(marked(1), params(40, tolerance=1e-30, key="a"))
            assert await asyncio.to_thread(held_up.wait, PATIENCE_S)
            asked = other.run(marked(2), params(key="b"))
            assert await asyncio.to_thread(first.claimed.wait, PATIENCE_S)
            claimed_after = len(began)
            allowed.release(40)
            np.testing.assert_array_equal(
                (await asyncio.wait_for(asked, PATIENCE_S)).rows, marked(1)
            )
            # at most the step that had been decided on
            assert began.index("b") <= claimed_after + 1
            np.testing.assert_array_equal((await stream).rows, marked(2.0**-40))

    asyncio.run(main())
    assert shelf.opened == ["a", "b", "a"]


def test_who_cannot_have_a_model_before_the_deadline_hears_so_at_once(clock: Clock) -> None:
    shelf = Shelf(40, clock)
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


def test_a_model_that_is_not_loaded_takes_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = max(
        (write_model(tmp_path, version=version) / "model.onnx").stat().st_size for version in "1234"
    )
    (tmp_path / "toy" / "2" / "golden.npz").write_bytes(b"")
    sizes = iter([0, 0, 2**30])  # the third look at the first model
    monkeypatch.setattr(on_demand, "resident_bytes", lambda: next(sizes, 0))
    monkeypatch.setattr(on_demand, "_MIB", 2 * size)
    models, failures = OnDemandRepository(
        memory=Memory(1),
        max_batch_rows=8,
        directory=tmp_path,
        open_models=lambda data: [OnnxModel(data, device="cpu")],
        default="toy",
    ).load_all()
    assert list(models) == ["toy/3", "toy/4"]  # the second has taken the room of the first
    assert failures["toy/2"].startswith("toy/2/golden.npz: damaged")
    assert "more than IGN_MODEL_MEMORY_MIB=1" in failures["toy/1"]
