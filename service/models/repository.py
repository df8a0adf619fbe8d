"""Find, load and verify the models in the model directory: `<name>/<version>/{model.onnx,
golden.npz}`.

A single model may also lie as KServe mounts one: in the directory itself, or in `<version>`; its
card has the name.

A model file is read once. The same bytes are hashed, opened and run on the golden rows.
"""

import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from service.artifact.card import Card, from_metadata
from service.artifact.files import (
    GOLDEN_FILE,
    MAX_MODEL_BYTES,
    MODEL_FILE,
    MODEL_FILES,
    NAME_PATTERN,
    VERSION_PATTERN,
    Precision,
)
from service.artifact.golden import Golden, GoldenReport, check_golden, digest_of, read_golden
from service.artifact.onnx_file import read_metadata
from service.domain.errors import ModelFailure, StartupError, wrap_errors
from service.domain.model import DeviceLost, DeviceOutOfMemory
from service.models.loaded import Files, LoadedModel, ModelFactory, close_all
from service.models.store import Failures, ModelStore, cache_folder
from service.settings import Settings

if TYPE_CHECKING:
    from service.runtime.onnx_model import OnnxModel

LOAD_S: Final = 300.0
"""Seconds that loading, warm-up and verification of a version may take. The largest file, read from
a slow network disk at 20 MB/s, takes a third of them; a model that loops for ever does not end.
"""
_REF: Final = re.compile(f"{NAME_PATTERN[1:-1]}/{VERSION_PATTERN[1:-1]}")
_MOUNTED: Final = re.compile(rf"([1-9][0-9]{{0,8}}/)?{MODEL_FILE}")
_HINT: Final = "unset, the shipped models are served; `ign export` writes others"
_LOG = logging.getLogger(__name__)

T = TypeVar("T")


class _FailsOnCuda(StartupError):
    """CUDA does not run the model, or does not reproduce its golden rows."""


def repository_options(settings: Settings) -> dict[str, Any]:
    """The parameters of `Repository` that follow from the settings."""
    url = settings.model_url
    store = ModelStore(url, cache_folder(url, settings.model_cache)) if url else None
    return {
        "directory": settings.model_dir if store is None else store.folder,
        "store": store,
        "default": settings.default_model,
        "only_a_guess": "default_model" not in settings.model_fields_set,
        "pins": settings.pins,
        "precision": settings.precision,
    }


class Loaded(NamedTuple):
    """The models of a directory, and why the other versions failed to load, by `name/version`."""

    models: Mapping[str, LoadedModel]
    failures: Failures  # one line each, without a path outside of the directory


@dataclass(eq=False)
class Repository:
    """Finds, loads and verifies the models of one directory. It keeps no loaded model; any thread
    may call it.

    Requests that name no model get ``default``, `name` or `name/version`; the first name of the
    directory takes the place of one that is ``only_a_guess`` and not there. A name stands for its
    version in ``pins``, else for its highest.
    ``open_on_cpu`` opens a model that ``open_models`` opened on CUDA and that fails there when it
    is warmed up or verified; without it, such a model is refused. With a ``store``, the directory
    holds copies from there. With ``only``, that model is the default, and no other one is loaded;
    an empty text stands for the default.
    """

    directory: Path
    open_models: ModelFactory
    _: KW_ONLY
    default: str
    only_a_guess: bool = False
    pins: Mapping[str, str] = field(default_factory=dict)
    precision: Precision = "fp32"
    open_on_cpu: ModelFactory | None = None
    store: ModelStore | None = None
    only: str | None = None

    def __post_init__(self) -> None:
        # why CUDA fails every call of this process, once a model has found that out
        self._cuda_lost = ""
        self._passed_over: set[str] = set()  # folders that a warning was logged for
        # Of models that lie as KServe mounts one: their names, and folders by `name/version`.
        self._names: dict[Files, str] = {}
        self._mounted: dict[str, str] = {}

    def find_all(self) -> list[str]:
        """`name/version` of every version folder, as `find`; raises StartupError if there is
        none.
        """
        if not self.directory.is_dir():
            raise StartupError(f"IGN_MODEL_DIR={self.directory}: no such directory; {_HINT}")
        refs = self.find()
        if not refs:
            raise StartupError(
                f"IGN_MODEL_DIR={self.directory}: holds no model such as "
                f"mnist/1/model.onnx; {_HINT}"
            )
        names = {ref.partition("/")[0] for ref in refs}
        if self.only_a_guess and self.default not in names:
            _LOG.info(
                "no IGN_DEFAULT_MODEL is set, and there is no %s: the default is %s",
                self.default,
                min(names),
            )
            self.default = min(names)
        self.default = self.only or self.default
        return refs

    def refresh(self, *, may_fail: bool = False) -> Failures:
        """Copy what has changed in the store, if there is one; as `ModelStore.refresh`."""
        return {} if self.store is None else self.store.refresh(may_fail=may_fail)

    def start_refresh(self) -> Future[Failures]:
        """As `refresh`, in a thread of its own: no other work waits behind a store that hangs."""
        return _start(self.refresh)

    def load_all(self) -> Loaded:
        """Load every version in the directory; this blocks until all are verified or have failed.

        Raises StartupError as `find_all`; also if a version is missing that is the default or
        pinned, or if none loads that the default may be.
        """
        failures = {
            ref: reason
            for ref, reason in self.refresh(may_fail=True).items()
            if ref.count("/") == 1
        }
        refs = self.find_all()
        defaults = self.defaults(refs)  # before the loading, which can take minutes
        refs = refs if self.only is None else defaults[-1:]
        _LOG.info("loading %d models of %s", len(refs), self.directory)
        loaded = dict[str, LoadedModel]()
        waiting = deque(refs)
        while waiting:
            ref = waiting.popleft()
            try:
                loaded[ref] = self.load(ref)
            except Exception as exc:
                failures[ref] = describe_failure(ref, exc)
                if not {*loaded, *waiting}.intersection(defaults):
                    close_all(loaded.values())
                    raise StartupError(failures[ref]) from exc
                _LOG.error("%s does not serve: %s", ref, failures[ref])
            if self._cuda_lost:  # also for models that were verified before: again, on the CPU
                lost = [ref for ref, model in loaded.items() if model.device == "cuda"]
                close_all(map(loaded.pop, lost))
                waiting += lost
        return Loaded(loaded, failures)

    def defaults(self, refs: Sequence[str]) -> list[str]:
        """Each `name/version` of `find_all` that the default stands for if no later one serves;
        raises StartupError if there is none, or a pinned version is missing.
        """
        there = f"there is {', '.join(refs)}"
        for name, version in self.pins.items():
            if f"{name}/{version}" not in refs:
                raise StartupError(f"IGN_VERSIONS={name}={version}: not there; {there}")
        versions = [ref for ref in refs if self.default in (ref, ref.partition("/")[0])]
        if self.default in self.pins:
            versions = [f"{self.default}/{self.pins[self.default]}"]
        if not versions:
            raise StartupError(
                f"no model {self.only!r}; {there}"
                if self.only
                else f"IGN_DEFAULT_MODEL={self.default}: not there; {there}; choose with "
                f"--default-model"
            )
        return versions

    def is_named(self, ref: str) -> bool:
        """Whether the settings name this very version."""
        name, _, version = ref.partition("/")
        return ref == self.default or self.pins.get(name) == version

    def find(self, name: str | None = None) -> list[str]:
        """`name/version` of every version folder, or of those of one model, sorted; invalid names
        are passed over.

        Raises StartupError if a model at the top of the directory has no valid card.
        """
        if name is not None and not re.fullmatch(NAME_PATTERN, name):
            return []
        folders = self.directory.iterdir() if name is None else [self.directory / name]
        refs = [
            f"{folder.name}/{version.name}"
            for folder in folders
            for version in folder.glob("*")
            if version.is_dir()
        ]
        wrong = {ref for ref in refs if not _REF.fullmatch(ref)} - self._passed_over
        for ref in sorted(wrong):
            _LOG.warning("model directory: %r is no model name and version; passed over", ref)
        self._passed_over |= wrong
        mounted = [ref for ref in self._find_mounted() if name in (None, ref.partition("/")[0])]
        return sorted([*filter(_REF.fullmatch, refs), *mounted], key=version_key)

    def _find_mounted(self) -> list[str]:
        """`name/version` of a model that lies as KServe mounts one, without a folder of its
        name.
        """
        files = [MODEL_FILE, *(f"{entry.name}/{MODEL_FILE}" for entry in self.directory.iterdir())]
        files = [file for file in filter(_MOUNTED.fullmatch, files) if self._identities([file])]
        for file in files:  # a version with a damaged card has the name of another one
            with suppress(StartupError):
                name, _, version = self._card_ref(file).partition("/")
                folders = [each.rpartition("/")[0] for each in files]
                found = {f"{name}/{folder or version}": folder for folder in folders}
                self._mounted |= found
                return list(found)
        return [self._card_ref(file) for file in files]  # which raises

    def _card_ref(self, file: str) -> str:
        """`name/version` in the card of a file."""
        key = self._identities([file])
        if key not in self._names:
            self._names[key] = self._card(file).ref
        return self._names[key]

    def card(self, ref: str) -> Card:
        """The card of a version; raises StartupError if its file cannot be read."""
        return self._card(self._path(ref, MODEL_FILE))

    def _card(self, file: str) -> Card:
        try:
            data = self._read(file)
        except OSError as exc:
            raise StartupError(f"{file}: {exc.strerror}") from exc
        with wrap_errors(file):
            return from_metadata(read_metadata(data))

    def path(self, ref: str, file: str) -> Path:
        """A file of a version."""
        return self.directory / self._path(ref, file)

    def _path(self, ref: str, file: str) -> str:
        """A file of a version, relative to the directory."""
        return str(PurePath(self._mounted.get(ref, ref), file))

    def files(self, ref: str) -> Files:
        """Identities of the current files of a version; missing files are left out."""
        names = {MODEL_FILES[self.precision], MODEL_FILE, GOLDEN_FILE}
        return self._identities([self._path(ref, name) for name in sorted(names)])

    def _identities(self, files: Iterable[str]) -> Files:
        identities = []
        for file in files:
            try:
                stat = os.stat(self.directory / file)
            except OSError:  # `load` reports the missing file
                continue
            identities.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return tuple(identities)

    def load(self, ref: str) -> LoadedModel:
        """Read, open, warm up and verify one version, `name/version`.

        Raises StartupError if that fails, whose text begins with the file, relative to the
        directory, and TimeoutError if it takes longer than `LOAD_S`.
        """
        return self.start_load(ref).result(LOAD_S)

    def start_load(self, ref: str) -> Future[LoadedModel]:
        """As `load`, in a thread of its own and without its time limit: nothing waits behind a
        model that hangs.
        """
        return _start(self._load, ref)

    def _load(self, ref: str) -> LoadedModel:
        # before the files are read, so that a change during the loading is noticed
        files = self.files(ref)
        file = self._path(ref, MODEL_FILES[self.precision])
        if self.precision == "fp16" and not (self.directory / file).is_file():
            raise StartupError(f"IGN_PRECISION=fp16: {file} is not there; use fp32, or export it")
        data = self._read(file)
        reason = self._cuda_lost
        golden = self._read_golden(ref, file, data)
        if not reason or self.open_on_cpu is None:
            try:
                return self._open_verified(self.open_models, data, file, golden, files)
            except _FailsOnCuda as exc:
                if self.open_on_cpu is None:
                    raise
                reason = exc.detail
                if isinstance(exc.__cause__, DeviceLost):
                    self._cuda_lost = reason
        # Outside of the handler, whose traceback would keep the sessions on CUDA alive.
        _LOG.warning("%s runs on the CPU: %s", ref, reason)
        return replace(
            self._open_verified(self.open_on_cpu, data, file, golden, files),
            fallback_reason=reason,
        )

    def _read_golden(self, ref: str, file: str, data: bytes) -> Golden:
        """The golden rows of a model file; raises StartupError, before onnxruntime reads the file,
        if it has others.
        """
        golden_file = self._path(ref, GOLDEN_FILE)
        with wrap_errors(file):
            card = from_metadata(read_metadata(data))
        if card.ref != ref:
            raise StartupError(f"{file}: its card says {card.ref}")
        path = self._file(golden_file)
        with wrap_errors(golden_file):
            golden = read_golden(path, *card.row_shapes)
        # golden.npz names the digest of the fp32 file.
        exported = digest_of(
            data if self.precision == "fp32" else self._read(self._path(ref, MODEL_FILE))
        )
        if golden.digest != exported:
            raise StartupError(
                f"{golden_file}: belongs to another {MODEL_FILE}, {golden.digest[:12]!r}"
            )
        return golden

    def _open_verified(
        self, open_models: ModelFactory, data: bytes, file: str, golden: Golden, files: Files
    ) -> LoadedModel:
        with wrap_errors(file):
            models = open_models(data)
        try:
            report = self._check_golden(file, golden, models)
        except BaseException:
            close_all(models)
            raise
        model = models[0]
        return LoadedModel(
            card=model.card,
            digest=model.digest,
            instances=tuple(models),
            golden=report,
            device=model.device,
            provider=model.provider,
            fallback_reason=model.fallback_reason,
            files=files,
        )

    def _check_golden(
        self, file: str, golden: Golden, models: "Sequence[OnnxModel]"
    ) -> GoldenReport:
        model, *other_instances = models
        error = _FailsOnCuda if model.device == "cuda" else StartupError
        try:
            for instance in models:
                instance.warm_up()
            report = check_golden(
                model, golden, getattr(model.card.tolerance, self.precision), other_instances
            )
        except (ModelFailure, DeviceOutOfMemory, DeviceLost, StartupError) as exc:
            reason = exc.reason if isinstance(exc, ModelFailure) else exc
            raise error(f"{file}: does not run on {model.provider}: {reason}") from exc
        if not report.passed:
            raise error(
                f"{PurePath(file).with_name(GOLDEN_FILE)}: {model.provider} differs by "
                f"{report.difference:.2g}, allowed are {report.tolerance:.2g}"
            )
        return report

    def _file(self, relative: str) -> Path:
        path = self.directory / relative
        if not path.is_file():
            raise StartupError(f"{relative}: no such file")
        resolved = path.resolve()  # what is checked is opened, even if a link changes meanwhile
        if not any(resolved.is_relative_to(root) for root in _roots(self.directory.resolve())):
            raise StartupError(f"{relative}: leads out of the model directory")
        return resolved

    def _read(self, relative: str) -> bytes:
        with self._file(relative).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_MODEL_BYTES:
                raise StartupError(f"{relative}: larger than {MAX_MODEL_BYTES} bytes")
            # `read` allocates as many bytes as it is asked for, so it is not asked for the limit.
            # One byte more than the size shows whether the file has grown.
            data = file.read(size + 1)
        if len(data) != size:
            raise StartupError(f"{relative}: changed while it was read")
        return data


def _roots(directory: Path) -> list[Path]:
    """The folders that may hold files: the directory and, if it is in a snapshot of the Hugging
    Face Hub, the blobs.

    models--ign--digits/snapshots/1b2c…/mnist/3/model.onnx ──▶ models--ign--digits/blobs/9f8e…
    """
    snapshots = (
        folder.parent
        for folder in (directory, *directory.parents)
        if folder.parent.name == "snapshots"
    )
    return [directory, *(folder.parent / "blobs" for folder in snapshots)]


def describe_failure(ref: str, exc: Exception) -> str:
    """Why a version failed to load: one line; an unexpected error is also logged."""
    if isinstance(exc, StartupError):
        return exc.detail
    if isinstance(exc, TimeoutError):
        return f"{ref}: not loaded and verified in time ({LOAD_S:g} s, or until the service stops)"
    if isinstance(exc, OSError):
        return f"{ref}: {exc.strerror or type(exc).__name__}"
    _LOG.error("loading %s failed", ref, exc_info=exc)
    return f"{ref}: loading it failed in a way nobody foresaw; the log says how"


def _start(function: Callable[..., T], *arguments: Any) -> Future[T]:
    executor = ThreadPoolExecutor(1, "ign-load")
    future = executor.submit(function, *arguments)
    executor.shutdown(wait=False)
    return future


def version_key(ref: str) -> tuple[str, int]:
    """Sort key of `name/version`: the name, then the version as a number."""
    name, _, version = ref.partition("/")
    return name, int(version)
