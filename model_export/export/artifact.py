"""An exported version: `<models>/<name>/<version>/{model.onnx, model.fp16.onnx, golden.npz}`, read and written whole.

`model.fp16.onnx` is there where it was asked for; the golden rows are of `model.onnx` and hold for both.
"""

import hashlib
import io
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import onnx
import onnxruntime as ort

from model_export.errors import UserError
from service.artifact.card import INPUT, OUTPUT, CardError, ModelCard, from_metadata, to_metadata
from service.domain.latents import FloatRows, NoiseSource

Precision = Literal["fp32", "fp16"]

MODEL: Final = "model.onnx"
FILES: Final[Mapping[Precision, str]] = MappingProxyType({"fp32": MODEL, "fp16": "model.fp16.onnx"})
GOLDEN: Final = "golden.npz"
METRICS: Final = "metrics.json"
_BATCH: Final = 64
_QUIET: Final = 4  # of onnxruntime's severities, fatal only: what fails is raised anyway


class OnnxFunction:
    """f as it is served: onnxruntime on the CPU.

    Args:
        data: the file's bytes.
        threads: CPU threads; 0 leaves the choice to onnxruntime.

    Raises:
        UserError: not an ONNX model.
    """

    def __init__(self, data: bytes, *, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _QUIET
        try:
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        # onnxruntime's errors share no base class of their own.
        except Exception as exc:
            raise UserError("not a model that onnxruntime can run") from exc

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself."""
        entries: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return entries

    def __call__(self, rows: FloatRows) -> FloatRows:
        """One step of f, in batches: (N, C, H, W) float32 → the same."""
        return np.concatenate([self.once(rows[i : i + _BATCH]) for i in range(0, len(rows), _BATCH)])

    def once(self, rows: FloatRows) -> FloatRows:
        """The same in a single batch."""
        out: FloatRows = self._session.run([OUTPUT], {INPUT: rows})[0]
        return out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """Rows x and what training says f makes of them, both (N, C, H, W) float32."""

    x: FloatRows
    y: FloatRows

    def to_bytes(self, model: bytes) -> bytes:
        """`golden.npz` for these bytes of `model.onnx`."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, x=self.x, y=self.y, digest=np.array(digest_of(model)))
        return buffer.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Artifact:
    """One exported version, read.

    Args:
        folder: where it lies.
        data: the bytes of one of its models.
        card, noise: what they say of themselves.
        function: f.
        precision: which of the models it is.
    """

    folder: Path
    data: bytes
    card: ModelCard
    noise: NoiseSource
    function: OnnxFunction
    precision: Precision = "fp32"

    @classmethod
    def read(cls, folder: Path, *, precision: Precision = "fp32", threads: int = 0) -> "Artifact":
        """Open a version folder.

        Raises:
            UserError: no model there, or none that this program exported.
        """
        path = folder / FILES[precision]
        if not path.is_file():
            raise UserError(f"no model at {path}")
        data = path.read_bytes()
        try:
            function = OnnxFunction(data, threads=threads)
            card, noise = from_metadata(function.metadata)
        except (UserError, CardError) as exc:
            raise UserError(f"{path}: {exc}") from exc
        return cls(folder=folder, precision=precision, data=data, card=card, noise=noise, function=function)

    @property
    def file(self) -> str:
        """Its file's name."""
        return FILES[self.precision]

    def golden(self) -> Golden:
        """The golden rows beside `model.onnx`.

        Raises:
            UserError: missing, damaged, or of another `model.onnx`; `verify` makes them anew.
        """
        path = self.folder / GOLDEN
        try:
            # Opened here: numpy forgets to close a file that is no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                golden, digest = Golden(x=arrays["x"], y=arrays["y"]), str(arrays["digest"])
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as exc:
            raise UserError(f"{path}: missing or damaged; `verify` makes it anew") from exc
        if digest != digest_of(self.data):
            raise UserError(f"{path}: belongs to another {MODEL}; `verify` makes it anew")
        return golden


def read_all(folder: Path, *, threads: int = 0) -> list[Artifact]:
    """Every precision of a version, `model.onnx` first.

    Raises:
        UserError: no `model.onnx`, or a file that this program did not export.
    """
    there = [precision for precision, file in FILES.items() if precision == "fp32" or (folder / file).is_file()]
    return [Artifact.read(folder, precision=precision, threads=threads) for precision in there]


def digest_of(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def stamp(data: bytes, card: ModelCard, noise: NoiseSource) -> bytes:
    """The same model with this card in its metadata in place of any other."""
    model = onnx.load_model_from_string(data)
    onnx.helper.set_model_props(model, to_metadata(card, noise.statistics))
    # Protocol buffers promise the same bytes for the same message only when told so.
    stamped: bytes = model.SerializeToString(deterministic=True)
    return stamped


def publish(folder: Path, files: Mapping[str, bytes], *, keep: bool = False) -> None:
    """Make ``folder`` hold these files: all of them or, when anything fails, what it held before.

    The files are written to a hidden folder beside it that then takes its name, so no reader meets a model with
    another's golden rows.

    Args:
        folder: the version folder; its parents are made.
        files: name → content.
        keep: keep the other files that are there already.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(folder) as scratch:
        fresh, old = scratch / "new", scratch / "old"
        if keep and folder.is_dir():
            shutil.copytree(folder, fresh)
        fresh.mkdir(exist_ok=True)
        for name, content in files.items():
            with (fresh / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield path
    finally:
        shutil.rmtree(path)
