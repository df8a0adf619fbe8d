"""Which models are loaded, verified and served, and in how many instances."""

import asyncio
import hashlib
import os
import shutil
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest

from service.domain.errors import Draining, LoadFailed, ModelFailure, StartupError, UnknownModel, UnloadRefused
from service.domain.latents import FloatRows
from service.domain.model import DeviceLost, DeviceOutOfMemory
from service.domain.tasks import Result
from service.models import instances, registry
from service.models import repository as module
from service.models.instances import open_instances
from service.models.registry import REFRESH_PAUSE_S, ModelRegistry, ServedModel
from service.models.repository import LoadedModel, Repository
from service.models.store import ModelStore
from service.observability.metrics import Metrics
from service.observability.statistics import ModelStatistics
from service.runtime.onnx_model import OnnxModel
from service.scheduling.scheduler import Scheduler
from service.settings import Settings
from tests.contract.harness import Gate
from tests.helpers.device_fakes import cuda_on_the_cpu, is_closed
from tests.helpers.onnx_models import hungry, make_card, model_bytes, reference, sample_rows, write_golden, write_model
from tests.helpers.serving import params


class Opener:
    """Opens real models, by default on the CPU, and remembers them and their threads; not more than ``most``."""

    def __init__(self, most: int = 64) -> None:
        self.most = most
        self.opened: list[OnnxModel] = []
        self.threads: list[int] = []

    def __call__(self, data: bytes) -> list[OnnxModel]:
        return [self.make(data)]

    def make(
        self, data: bytes, *, threads: int = 1, device: Literal["cpu", "cuda"] = "cpu", **options: Any
    ) -> OnnxModel:
        if len(self.opened) == self.most:
            raise StartupError("no more")
        self.threads.append(threads)
        self.opened.append(self.open(data, threads=threads, device=device, **options))
        return self.opened[-1]

    def open(self, data: bytes, **options: Any) -> OnnxModel:
        return OnnxModel(data, **options)

    def running(self) -> list[OnnxModel]:
        return [model for model in self.opened if not is_closed(model)]


def repository(directory: Path, default: str = "toy", **options: Any) -> Repository:
    return Repository(directory, Opener(), default=default, **options)


def refusal(directory: Path, default: str = "toy", **options: Any) -> str:
    opener = Opener()
    with pytest.raises(StartupError) as caught:
        Repository(directory, opener, default=default, **options).load_all()
    assert "\n" not in caught.value.detail
    assert not opener.running()
    return caught.value.detail


def test_loads_every_version_of_every_model(tmp_path: Path) -> None:
    for name, version in (("toy", "10"), ("toy", "9"), ("a.b-c_d", "1")):
        write_model(tmp_path / "real", name, version, shape=(3, 8, 8))
    (tmp_path / "models").symlink_to(tmp_path / "real")  # the directory may be a link
    store = tmp_path / "real" / "..data"  # … and so may files within it, as Kubernetes lays volumes out
    store.mkdir()
    file = (tmp_path / "real" / "toy" / "9" / "model.onnx").rename(store / "model.onnx")
    (tmp_path / "real" / "toy" / "9" / "model.onnx").symlink_to(file)
    here = repository(tmp_path / "models")
    models = here.load_all().models
    assert list(models) == ["a.b-c_d/1", "toy/9", "toy/10"]
    for ref, loaded in models.items():
        data = (tmp_path / "models" / ref / "model.onnx").read_bytes()
        assert loaded.ref == ref == loaded.card.ref
        assert loaded.digest == hashlib.sha256(data).hexdigest()
        assert (loaded.device, loaded.provider, loaded.fallback_reason) == ("cpu", "CPUExecutionProvider", None)
        assert (loaded.golden.passed, loaded.golden.reproducible) == (True, "exact")
        rows = sample_rows(2, (3, 8, 8), seed=5)
        np.testing.assert_allclose(loaded.instances[0].run(rows), reference(rows), atol=1e-6)
        assert loaded.noise.rows(1, 0, 2).shape == (2, 3, 8, 8)
    write_model(tmp_path / "real", "toy", "11")
    assert here.load("toy/11").ref == "toy/11"  # one more, later
    assert here.find("toy") == ["toy/9", "toy/10", "toy/11"]
    for name in ("to", "TOY", "", ".", "..", "../toy", "toy/9", "toy\0"):
        assert here.find(name) == []


def test_other_entries_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_model(tmp_path)
    (tmp_path / "README.md").write_text("models")
    for folder in (".git", "lost+found", "toy/latest", "toy/01"):
        (tmp_path / folder).mkdir()
    models = repository(tmp_path)
    assert list(models.load_all().models) == models.find() == models.find("toy") == ["toy/1"]
    assert len(caplog.records) == 3  # each said once
    assert {record.args for record in caplog.records} == {("lost+found",), ("latest",), ("01",)}


def test_a_missing_or_empty_directory_or_default_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").startswith(f"IGN_MODEL_DIR={tmp_path}/none: no such directory")
    assert "holds no model" in refusal(tmp_path)
    (tmp_path / "toy").mkdir()
    assert "holds no model" in refusal(tmp_path)
    shutil.copytree(write_model(tmp_path / "sound"), tmp_path / "toy" / "1")
    shutil.rmtree(tmp_path / "sound")
    for default in ("mnist", "toy/2", "to"):
        assert f"IGN_DEFAULT_MODEL={default}: not there; there is toy/1" in refusal(tmp_path, default)


def golden_of(scale: float = 1.0, **changes: Any) -> Callable[[Path], object]:
    """Writes other golden rows."""
    x = changes.pop("x", sample_rows(2))
    return lambda path: write_golden(path.parent, x, reference(x) * np.float32(scale), **changes)


def other(card: Any = None, scale: float = 1.0) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(model_bytes(card or make_card(), scale=scale))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # opening it would wait for ever


def too_hungry(path: Path) -> None:
    path.write_bytes(hungry(2**45))
    write_golden(path.parent, sample_rows(2), sample_rows(2))


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("model.onnx", pipe, "no such file"),
        ("model.onnx", truncate, "not a model onnxruntime can load"),
        ("model.onnx", other(make_card("other")), "its card says other/1"),
        ("model.onnx", too_hungry, "does not run on CPUExecutionProvider: 1 rows do not fit"),
        ("model.onnx", lambda file: os.truncate(file, 10_001), "larger than 10000 bytes"),
        ("golden.npz", Path.unlink, "no such file"),
        ("golden.npz", truncate, "damaged"),
        ("golden.npz", golden_of(digest="0" * 64), "belongs to another model.onnx, '000000000000'"),
        ("golden.npz", golden_of(1.01), "CPUExecutionProvider differs by 0.00"),
        ("golden.npz", golden_of(x=sample_rows(2, (3, 8, 8))), "x and y must both be"),
    ],
)
def test_damage_is_refused_by_file(
    tmp_path: Path, file: str, damage: Callable[[Path], object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_MODEL_BYTES", 10_000)
    write_model(tmp_path, "a")  # sound, and loaded first: it has to be closed as well
    damage(write_model(tmp_path) / file)
    line = refusal(tmp_path, default="a", strict=True)
    assert line.startswith(f"toy/1/{file}: {says}")
    assert str(tmp_path) not in line


@pytest.mark.parametrize("what", ["toy", "toy/1", "toy/1/model.onnx", "toy/1/golden.npz"])
def test_links_out_of_the_directory_are_refused(tmp_path: Path, what: str) -> None:
    inside, outside = tmp_path / "models", tmp_path / "outside"
    write_model(inside)
    outside.mkdir()
    shutil.move(inside / what, outside / "moved")
    (inside / what).symlink_to(outside / "moved")
    file = what if what.endswith((".onnx", ".npz")) else "toy/1/model.onnx"
    assert refusal(inside) == f"{file}: leads out of the model directory"


def test_reading_a_file_takes_no_more_memory_than_the_file(tmp_path: Path) -> None:
    write_model(tmp_path)
    models = repository(tmp_path)
    tracemalloc.start()
    try:
        models.load("toy/1")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**25


@pytest.mark.parametrize("reported", [10, 10**6])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: int
) -> None:
    write_model(tmp_path)
    result = os.stat_result((0o100644, 0, 0, 1, 0, 0, reported, 0, 0, 0))
    monkeypatch.setattr(os, "fstat", lambda _: result)
    assert refusal(tmp_path) == "toy/1/model.onnx: changed while it was read"


class BrokenGpu(OnnxModel):
    """A model on a stand-in for CUDA: it raises `error`, or gives other rows than the golden ones if that is None."""

    error: Exception | None = None

    def run(self, rows: FloatRows) -> FloatRows:
        if self.error is not None:
            raise self.error
        return super().run(rows) + np.float32(1)


class OpenerOnCuda(Opener):
    """Opens models on a stand-in for CUDA, of which those named fail."""

    def __init__(self, error: Exception | None, name: str = "toy") -> None:
        super().__init__()
        self.error, self.name = error, name

    def open(self, data: bytes, **options: Any) -> OnnxModel:
        model = OnnxModel(data, device="cuda")
        if model.card.name == self.name:
            model = BrokenGpu(data, device="cuda")
            model.error = self.error
        return model


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ModelFailure("the model failed", reason="CUDNN failure 3000"), "CUDNN failure 3000"),
        (DeviceLost("CUDA failure 209"), "CUDA failure 209"),
        (DeviceOutOfMemory("1 rows do not fit"), "1 rows do not fit"),
        (StartupError("CUDA cannot be used: no memory"), "CUDA cannot be used: no memory"),
        (None, "differs by 1"),
    ],
)
def test_a_model_that_fails_on_cuda_runs_on_the_cpu_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, says: str
) -> None:
    cuda_on_the_cpu(monkeypatch)
    write_model(tmp_path)
    gpu = OpenerOnCuda(error)
    with pytest.raises(StartupError, match=says):  # without a fallback
        Repository(tmp_path, gpu, default="toy").load_all()
    loaded = Repository(tmp_path, gpu, default="toy", open_on_cpu=Opener()).load("toy/1")
    assert (loaded.device, loaded.provider, loaded.golden.passed) == ("cpu", "CPUExecutionProvider", True)
    assert says in (loaded.fallback_reason or "")
    assert (len(gpu.opened), gpu.running()) == (2, [])


@pytest.mark.parametrize(
    ("error", "devices", "tried"),
    [(DeviceLost("CUDA failure 700"), ["cpu"] * 3, 2), (DeviceOutOfMemory(), ["cuda", "cpu", "cuda"], 3)],
)
def test_after_a_lost_device_and_no_other_failure_every_model_runs_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, devices: list[str], tried: int
) -> None:
    """CUDA fails every call of the process then, those of models that were verified before too."""
    cuda_on_the_cpu(monkeypatch)
    for name in ("a", "b", "c"):
        write_model(tmp_path, name)
    gpu = OpenerOnCuda(error, "b")
    models = Repository(tmp_path, gpu, default="a", open_on_cpu=Opener()).load_all().models.values()
    assert [loaded.device for loaded in models] == devices
    assert len(gpu.opened) == tried
    assert all(is_closed(model) == (model.card.name == "b" or tried == 2) for model in gpu.opened)


@pytest.mark.parametrize(
    ("damage", "says", "tried"),
    [(truncate, "golden.npz: damaged", 0), (golden_of(1.01), "CPUExecutionProvider differs by 0.00", 1)],
)
def test_a_damaged_file_is_not_cudas_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object], says: str, tried: int
) -> None:
    cuda_on_the_cpu(monkeypatch)
    damage(write_model(tmp_path) / "golden.npz")
    opener = Opener()
    with pytest.raises(StartupError, match=says):
        Repository(tmp_path, OpenerOnCuda(None), default="toy", open_on_cpu=opener).load_all()
    assert len(opener.opened) == tried
    assert not opener.running()


def test_half_precision_answers_to_the_same_golden_rows_with_its_own_tolerance(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    line = refusal(tmp_path, precision="fp16")
    assert line == "IGN_PRECISION=fp16: toy/1/model.fp16.onnx is not there; use fp32, or export it"
    other(scale=1.005)(folder / "model.fp16.onnx")
    loaded = repository(tmp_path, precision="fp16").load_all().models["toy/1"]
    assert loaded.digest == hashlib.sha256((folder / "model.fp16.onnx").read_bytes()).hexdigest()
    assert 1e-4 < loaded.golden.difference < loaded.golden.tolerance == 1e-2


@pytest.mark.parametrize(
    ("granted", "options", "fast", "slow", "fast_alone", "slow_alone"),
    [
        (1, {}, [1], [1], [1], [1]),
        (2, {}, [1], [2], [1], [1, 1]),
        (9, {}, [8], [9], [1] * 8, [4, 4]),
        (20, {}, [19], [20], [2] * 8, [10, 10]),
        (64, {"threads": 8}, [7], [8], [1] * 7, [4, 4]),
    ],
)
def test_a_model_has_one_instance_and_several_in_a_program_that_is_alone(
    granted: int,
    options: dict[str, Any],
    fast: list[int],
    slow: list[int],
    fast_alone: list[int],
    slow_alone: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(instances, "available_cpus", lambda: granted)
    for alone, fast_row_s, threads in (
        (False, 60.0, fast),
        (False, 0.0, slow),
        (True, 60.0, fast_alone),
        (True, 0.0, slow_alone),
    ):
        monkeypatch.setattr(instances, "_FAST_ROW_S", fast_row_s)
        factory = Opener()
        models = open_instances(factory.make, Settings(device="cpu", **options), model_bytes(), alone=alone)
        assert models == factory.running()
        assert factory.threads[-len(models) :] == threads


def test_when_one_cannot_be_made_the_others_are_closed() -> None:
    factory = Opener(most=2)
    with pytest.raises(StartupError, match="no more"):
        open_instances(factory.make, Settings(device="cpu"), model_bytes(), 3)
    assert (len(factory.opened), factory.running()) == (2, [])


def test_a_model_that_fails_is_left_to_verification() -> None:
    # It is not taken for a slow one, which would be made again with all threads.
    assert len(open_instances(Opener().make, Settings(device="cpu", threads=3), hungry(2**45), alone=True)) == 2


class Stage:
    """A registry over real models behind a gate; requests end when `gone` is set.

    Without `loadable` no model can be loaded; `loading` says that one tries.
    """

    def __init__(self, directory: Path, store: ModelStore | None = None) -> None:
        self.loadable, self.loading = threading.Event(), threading.Event()
        self.loadable.set()
        self.gate, self.gone, self.opened = Gate(), asyncio.Event(), list[OnnxModel]()
        self.repository = Repository(directory, self._open, default="toy", store=store)
        self.registry = ModelRegistry(
            self.repository,
            serve=self._serve,
            on_activated=lambda loaded: None,
            on_deactivated=lambda ref: None,
            wait_for_requests=self._wait,
        )

    def _open(self, data: bytes) -> list[OnnxModel]:
        self.loading.set()
        assert self.loadable.wait(300)
        self.opened.append(self.gate.model(data, device="cpu"))
        return self.opened[-1:]

    async def _wait(self) -> None:
        await self.gone.wait()

    def _serve(self, loaded: LoadedModel) -> ServedModel:
        statistics = ModelStatistics(Metrics(), loaded.ref)
        scheduler = Scheduler(*loaded.instances, max_batch_rows=8, queue_rows=100, observe=statistics.take)
        return ServedModel(loaded, lambda _: scheduler, statistics)

    def run(self) -> "asyncio.Task[Result]":
        return asyncio.create_task(self.registry.resolve("toy").scheduler.run(sample_rows(1), params()))


def on_stage(
    directory: Path,
    play: Callable[[Stage], Awaitable[None]],
    *,
    are_closed: bool = True,
    store: ModelStore | None = None,
) -> None:
    write_model(directory)

    async def main() -> None:
        stage = Stage(directory, store)
        try:
            await play(stage)
        finally:
            stage.gone.set()
            await stage.registry.close()
        assert stage.registry.models == {}
        assert not are_closed or all(map(is_closed, stage.opened))

    asyncio.run(main())


@pytest.mark.parametrize("end", ["close", "abort_all"])
def test_ending_everything_ends_what_was_leaving_too(tmp_path: Path, end: str) -> None:
    async def play(stage: Stage) -> None:
        leaving, staying = (stage.repository.load("toy/1") for _ in range(2))
        stage.registry.activate(leaving)
        with stage.gate:
            held = stage.run()
            assert await asyncio.to_thread(stage.gate.entered.wait, 10)
            stage.registry.activate(staying)
            if end == "close":
                closing = asyncio.create_task(stage.registry.close())
            else:
                stage.registry.abort_all()
            with pytest.raises(Draining):
                await held
        if end == "close":
            await closing

    on_stage(tmp_path, play)


def test_a_directory_that_cannot_be_read_is_a_failed_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    async def play(stage: Stage) -> None:
        stage.registry.activate(stage.repository.load("toy/1"))
        monkeypatch.setattr(stage.repository, "find", unreadable)
        with pytest.raises(LoadFailed) as caught:
            await stage.registry.load("toy")
        assert caught.value.detail == "toy: Permission denied"
        assert [(entry.ref, entry.state) for entry in await stage.registry.index()] == [("toy/1", "READY")]

    on_stage(tmp_path, play)


def test_two_refreshes_of_a_store_are_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore", reason="needs the extra store")
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def play(stage: Stage) -> None:
        # In that module alone: other event loops of this process sleep, too.
        monkeypatch.setattr(registry, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
        for _ in range(2):
            await stage.registry.load("toy")
        assert waits[0] <= 0 < waits[1] <= REFRESH_PAUSE_S

    write_model(tmp_path / "bucket")
    on_stage(tmp_path / "copies", play, store=ModelStore((tmp_path / "bucket").as_uri(), tmp_path / "copies"))


async def start_loading(stage: Stage, name: str) -> "asyncio.Task[None]":
    """A load that does not end before `loadable` is set."""
    stage.loadable.clear()
    stage.loading.clear()
    loading = asyncio.create_task(stage.registry.load(name))
    assert await asyncio.to_thread(stage.loading.wait, 60)
    return loading


def test_while_it_loads_the_index_says_so(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        stage.registry.activate(stage.repository.load("toy/1"))
        write_model(tmp_path, version="2")
        loading = await start_loading(stage, "toy")
        again = asyncio.create_task(stage.registry.load("toy"))
        found = {entry.ref: entry.state for entry in await stage.registry.index()}
        assert found == {"toy/1": "READY", "toy/2": "LOADING"}
        with pytest.raises(UnknownModel):
            stage.registry.resolve("toy/2")
        np.testing.assert_allclose((await stage.run()).rows, reference(sample_rows(1)), atol=1e-6)
        stage.loadable.set()
        await loading
        assert stage.registry.resolve("toy").ref == "toy/2"
        await again

    on_stage(tmp_path, play)


@pytest.mark.parametrize("limit_s", [0.01, 300.0])
def test_a_model_whose_loading_hangs_holds_up_no_other_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_s: float
) -> None:
    monkeypatch.setattr("service.models.registry.LOAD_S", limit_s)

    async def play(stage: Stage) -> None:
        stage.registry.activate(stage.repository.load("toy/1"))
        write_model(tmp_path, "other")
        loading = await start_loading(stage, "other")
        await stage.registry.load("toy")  # is not changed, so it is not opened
        with pytest.raises(UnloadRefused):
            await stage.registry.unload("toy")
        if limit_s > 1:
            assert not loading.done()
            stage.registry.abort_all()
            stage.registry.abort_all()  # a second signal
        with pytest.raises(LoadFailed, match="other/1: not loaded and verified in time"):
            await loading
        monkeypatch.undo()
        stage.loadable.set()
        await stage.registry.load("other")
        assert stage.registry.resolve("other").ref == "other/1"

    on_stage(tmp_path, play, are_closed=False)


def test_a_start_with_a_model_that_hangs_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.models.repository.LOAD_S", 0.01)
    stage = Stage(tmp_path)
    write_model(tmp_path)
    stage.loadable.clear()
    with pytest.raises(StartupError, match="toy/1: not loaded and verified in time"):
        stage.repository.load_all()
    stage.loadable.set()
