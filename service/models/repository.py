"""Find, load and verify the models in the model directory: `<name>/<version>/{model.onnx, golden.npz}`.

A model file is read once. The same bytes are hashed, opened and run on the golden rows.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol

from service.artifact.card import Card
from service.artifact.files import GOLDEN_FILE, MODEL_FILE, MODEL_FILES, NAME_PATTERN, VERSION_PATTERN
from service.artifact.golden import Golden, GoldenReport, check_golden, digest_of, read_golden
from service.domain.errors import ModelFailure, StartupError
from service.domain.latents import NoiseSource
from service.domain.model import DeviceLost, DeviceOutOfMemory, Model

LOAD_S: Final = 300.0
"""Seconds that loading, warm-up and verification of a version may take. The largest file, read from a slow network disk
at 20 MB/s, takes a third of them; a model that loops for ever does not end."""
MAX_MODEL_BYTES: Final = 2**31 - 1  # the limit of a protobuf message, which an ONNX file is
_VERSION: Final = re.compile(VERSION_PATTERN)
_HINT: Final = "unset, the shipped models are served; `ign export` writes others"
_LOG = logging.getLogger(__name__)

Files = tuple[tuple[int, int, int, int], ...]
"""Device, inode, size in bytes and modification time in ns of the files of a version; they differ after a change."""


class InferenceModel(Model, Protocol):
    """An opened model; the implementation is `service.runtime.onnx_model.OnnxModel`."""

    card: Card
    digest: str  # SHA-256 of the file, in hexadecimal
    noise: NoiseSource
    device: Literal["cpu", "cuda"]
    provider: str  # onnxruntime's name of it
    fallback_reason: str | None  # why the device `auto` did not select CUDA

    def warm_up(self) -> None:
        """Run every batch size once."""

    def close(self) -> None:
        """Release the session and its memory."""


class _FailsOnCuda(StartupError):
    """CUDA does not run the model, or does not reproduce its golden rows."""


ModelFactory = Callable[[bytes], Sequence[InferenceModel]]
"""Opens the bytes of a model file as one or more instances; raises StartupError if they hold no valid model."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A verified model."""

    card: Card
    digest: str  # SHA-256 of the file that runs, in hexadecimal
    instances: tuple[InferenceModel, ...]
    noise: NoiseSource
    golden: GoldenReport
    device: Literal["cpu", "cuda"]
    provider: str
    fallback_reason: str | None = None  # why `auto` did not select CUDA
    files: Files = ()  # that it was loaded from

    @property
    def ref(self) -> str:
        """`name/version`."""
        return self.card.ref

    def close(self) -> None:
        """Release every instance; none may run afterwards."""
        _close(self.instances)


class Repository:
    """Finds, loads and verifies the models of one directory. It keeps no loaded model; any thread may call it.

    Requests that name no model get ``default``, `name` or `name/version`. ``open_on_cpu`` opens a model that
    ``open_models`` opened on CUDA and that fails there when it is warmed up or verified; without it, such a model is
    refused.
    """

    def __init__(
        self,
        directory: Path,
        open_models: ModelFactory,
        *,
        default: str,
        precision: Literal["fp32", "fp16"] = "fp32",
        open_on_cpu: ModelFactory | None = None,
    ) -> None:
        self._directory, self.default = directory, default
        self._open_models, self._open_on_cpu = open_models, open_on_cpu
        self._precision: Literal["fp32", "fp16"] = precision
        self._cuda_lost = ""  # why CUDA fails every call of this process, once a model has found that out
        self._ignored_names: set[str] = set()  # folders that a warning was logged for

    def find_all(self) -> list[str]:
        """`name/version` of every version folder, as `find`; raises StartupError if there is none."""
        if not self._directory.is_dir():
            raise StartupError(f"IGN_MODEL_DIR={self._directory}: no such directory; {_HINT}")
        refs = self.find()
        if not refs:
            raise StartupError(f"IGN_MODEL_DIR={self._directory}: holds no model such as mnist/1/model.onnx; {_HINT}")
        return refs

    def load_all(self) -> Mapping[str, LoadedModel]:
        """Load every version in the directory; this blocks until all are verified.

        Raises StartupError as `find_all`; also if the default is missing, or a version cannot be verified.
        """
        refs = self.find_all()  # and the default before the loading, which can take minutes
        if not any(self.default in (ref, ref.partition("/")[0]) for ref in refs):
            there = f"there is {', '.join(refs)}; choose with --default-model"
            raise StartupError(f"IGN_DEFAULT_MODEL={self.default}: not there; {there}")
        _LOG.info("loading %d models of %s", len(refs), self._directory)
        loaded: dict[str, LoadedModel] = {}
        try:
            for ref in refs:
                loaded[ref] = self.load(ref)
            # The device of models that were verified earlier is lost: load them again, on the CPU.
            for ref in [ref for ref, model in loaded.items() if self._cuda_lost and model.device == "cuda"]:
                loaded[ref].close()
                loaded[ref] = self.load(ref)
        except BaseException:
            _close(loaded.values())
            raise
        return loaded

    def find(self, name: str | None = None) -> list[str]:
        """`name/version` of every version folder, or of those of one model, sorted; invalid names are passed over.

        Raises StartupError if a folder is a link that leads out of the directory.
        """
        folders = self._subfolders(self._directory, re.compile(NAME_PATTERN))
        if name is not None:
            folder = self._directory / name
            if not re.fullmatch(NAME_PATTERN, name) or not folder.is_dir():
                return []
            self._check_inside(folder)
            folders = iter([folder])
        refs = [f"{folder.name}/{version.name}" for folder in folders for version in self._subfolders(folder, _VERSION)]
        return sorted(refs, key=version_key)

    def files(self, ref: str) -> Files:
        """Identities of the current files of a version; missing files are left out."""
        names = dict.fromkeys((MODEL_FILES[self._precision], MODEL_FILE, GOLDEN_FILE))
        identities = []
        for name in names:
            try:
                stat = os.stat(self._directory / ref / name)
            except OSError:  # `load` reports the missing file
                continue
            identities.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return tuple(identities)

    def load(self, ref: str) -> LoadedModel:
        """Read, open, warm up and verify one version, `name/version`.

        Raises StartupError if that fails or takes longer than `LOAD_S`; the text begins with the file, relative to the
        directory.
        """
        try:
            return self.start_load(ref).result(LOAD_S)
        except TimeoutError as exc:
            raise StartupError(f"{ref}: not loaded and verified in time ({LOAD_S:g} s)") from exc

    def start_load(self, ref: str) -> Future[LoadedModel]:
        """As `load`, in a thread of its own and without its time limit: nothing waits behind a model that hangs."""
        executor = ThreadPoolExecutor(1, "ign-load")
        loaded = executor.submit(self._load, ref)
        executor.shutdown(wait=False)
        return loaded

    def _load(self, ref: str) -> LoadedModel:
        files = self.files(ref)  # before the files are read, so that a change during the loading is noticed
        file = f"{ref}/{MODEL_FILES[self._precision]}"
        if self._precision == "fp16" and not (self._directory / file).is_file():
            raise StartupError(f"IGN_PRECISION=fp16: {file} is not there; use fp32, or export it")
        data, reason = self._read(file), self._cuda_lost
        if not reason or self._open_on_cpu is None:
            try:
                return self._open_verified(self._open_models, data, ref, file, files)
            except _FailsOnCuda as exc:
                if self._open_on_cpu is None:
                    raise
                reason = exc.detail
                if isinstance(exc.__cause__, DeviceLost):
                    self._cuda_lost = reason
        # Outside of the handler, whose traceback would keep the sessions on CUDA alive.
        _LOG.warning("%s runs on the CPU: %s", ref, reason)
        return replace(self._open_verified(self._open_on_cpu, data, ref, file, files), fallback_reason=reason)

    def _open_verified(self, open_models: ModelFactory, data: bytes, ref: str, file: str, files: Files) -> LoadedModel:
        with wrap_errors(file):
            models = open_models(data)
        try:
            return self._verify(ref, file, files, models)
        except BaseException:
            _close(models)
            raise

    def _verify(self, ref: str, file: str, files: Files, models: Sequence[InferenceModel]) -> LoadedModel:
        model, golden_file = models[0], f"{ref}/{GOLDEN_FILE}"
        if model.card.ref != ref:
            raise StartupError(f"{file}: its card says {model.card.ref}")
        path = self._file(golden_file)
        with wrap_errors(golden_file):
            golden = read_golden(path, model.card.shape)
        exported = model.digest
        if self._precision != "fp32":  # golden.npz names the digest of the fp32 file
            exported = digest_of(self._read(f"{ref}/{MODEL_FILE}"))
        if golden.digest != exported:
            raise StartupError(f"{golden_file}: belongs to another {MODEL_FILE}, {golden.digest[:12]!r}")
        return LoadedModel(
            card=model.card,
            digest=model.digest,
            instances=tuple(models),
            noise=model.noise,
            golden=self._check_golden(file, golden, models),
            device=model.device,
            provider=model.provider,
            fallback_reason=model.fallback_reason,
            files=files,
        )

    def _check_golden(self, file: str, golden: Golden, models: Sequence[InferenceModel]) -> GoldenReport:
        model, *other_instances = models
        error = _FailsOnCuda if model.device == "cuda" else StartupError
        try:
            for instance in models:
                instance.warm_up()
            report = check_golden(model, golden, getattr(model.card.tolerance, self._precision), other_instances)
        except (ModelFailure, DeviceOutOfMemory, DeviceLost, StartupError) as exc:
            reason = exc.reason if isinstance(exc, ModelFailure) else exc
            raise error(f"{file}: does not run on {model.provider}: {reason}") from exc
        if not report.passed:
            raise error(
                f"{Path(file).parent}/{GOLDEN_FILE}: {model.provider} differs by {report.difference:.2g}, "
                f"allowed are {report.tolerance:.2g}"
            )
        return report

    def _subfolders(self, parent: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
        for entry in parent.iterdir():
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            if not pattern.fullmatch(entry.name):
                if entry.name not in self._ignored_names:  # one warning for each name
                    self._ignored_names.add(entry.name)
                    _LOG.warning("model directory: %r is no model name or version; passed over", entry.name)
                continue
            self._check_inside(entry)
            yield entry

    def _check_inside(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self._directory.resolve()):
            raise StartupError(f"{path.relative_to(self._directory)}: leads out of the model directory")

    def _file(self, relative: str) -> Path:
        path = self._directory / relative
        if not path.is_file():
            raise StartupError(f"{relative}: no such file")
        self._check_inside(path)
        return path.resolve()  # so that what was checked is opened, even if a link changes meanwhile

    def _read(self, relative: str) -> bytes:
        with self._file(relative).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_MODEL_BYTES:
                raise StartupError(f"{relative}: larger than {MAX_MODEL_BYTES} bytes")
            # `read` allocates as many bytes as it is asked for, so it is not asked for the limit. One byte more than
            # the size shows whether the file has grown.
            data = file.read(size + 1)
        if len(data) != size:
            raise StartupError(f"{relative}: changed while it was read")
        return data


def _close(models: Iterable[LoadedModel | InferenceModel]) -> None:
    for model in models:
        model.close()


@contextmanager
def wrap_errors(prefix: str) -> Iterator[None]:
    """Put ``prefix``, such as a file name, before the text of a `StartupError`."""
    try:
        yield
    except StartupError as exc:
        raise StartupError(f"{prefix}: {exc.detail}") from exc


def version_key(ref: str) -> tuple[str, int]:
    """Sort key of `name/version`: the name, then the version as a number."""
    name, _, version = ref.partition("/")
    return name, int(version)
