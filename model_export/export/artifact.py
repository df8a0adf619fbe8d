"""Read and write a version folder `<models>/<name>/<version>/{model.onnx, model.fp16.onnx,
golden.npz}`.

`model.fp16.onnx` is optional. The golden rows belong to `model.onnx` and are valid for both.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort

from model_export.errors import UserError
from model_export.files import write_file
from service.artifact.card import (
    Card,
    CardError,
    Data,
    Training,
    from_metadata,
    to_metadata,
)
from service.artifact.files import GOLDEN_FILE, MODEL_FILE, MODEL_FILES, Precision
from service.artifact.golden import Golden, digest_of, max_abs_diff, read_golden
from service.domain.errors import StartupError
from service.domain.latents import FloatRows, NoiseSource

_BATCH: Final = 64


class TrainedCard(Card):
    """The card of a network that was trained here. In schema 2 the network makes nothing of
    noise.
    """

    data: Data
    training: Training


class OnnxFunction:
    """f as the service runs it: onnxruntime on the CPU. With 0 threads it chooses their number.

    Raises what onnxruntime raises: its errors have no common base class.
    """

    def __init__(self, data: bytes, *, threads: int = 0, optimised: bool = True) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # fatal only: onnxruntime raises all other errors as exceptions
        options.log_severity_level = 4
        if not optimised:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.input, *_ = self._session.get_inputs()

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata entries of the file."""
        return self._session.get_modelmeta().custom_metadata_map

    def __call__(self, rows: FloatRows, batch: int = _BATCH) -> FloatRows:
        """Apply f once, in batches of at most ``batch`` rows: (N, C, H, W) float32 → the same
        shape.
        """
        return np.concatenate(
            [
                self._session.run(None, {self.input.name: rows[i : i + batch]})[0]
                for i in range(0, len(rows), batch)
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Artifact:
    """One model file of a version folder."""

    folder: Path  # the version folder
    data: bytes  # content of the file
    card: TrainedCard
    noise: NoiseSource
    function: OnnxFunction
    precision: Precision = "fp32"

    @classmethod
    def read(cls, folder: Path, *, precision: Precision = "fp32", threads: int = 0) -> "Artifact":
        """Read one model file of a version folder."""
        path = folder / MODEL_FILES[precision]
        if not path.is_file():
            raise UserError(f"no model at {path}")
        data = path.read_bytes()
        try:
            function = OnnxFunction(data, threads=threads)
            card = from_metadata(function.metadata)
        except CardError as exc:
            raise UserError(f"{path}: {exc}") from exc
        except Exception as exc:
            raise UserError(f"{path}: not a model that onnxruntime can run") from exc
        if card.data is None or card.training is None:
            raise UserError(
                f"{path}: was imported, and this command is about networks that were trained here"
            )
        trained = TrainedCard.model_validate(card.model_dump())
        return cls(
            folder=folder,
            precision=precision,
            data=data,
            card=trained,
            noise=NoiseSource(card.shape),
            function=function,
        )

    def golden(self) -> Golden:
        """The golden rows beside `model.onnx`."""
        path = self.folder / GOLDEN_FILE
        try:
            golden = read_golden(path, *self.card.row_shapes)
        except StartupError as exc:
            raise UserError(f"{path}: missing or damaged; `verify` writes it again") from exc
        if golden.digest != digest_of(self.data):
            raise UserError(f"{path}: belongs to another {MODEL_FILE}; `verify` writes it again")
        return golden


def read_all(folder: Path, *, threads: int = 0) -> list[Artifact]:
    """Read all model files of a version, `model.onnx` first."""
    present = [
        precision
        for precision, file in MODEL_FILES.items()
        if precision == "fp32" or (folder / file).is_file()
    ]
    return [Artifact.read(folder, precision=precision, threads=threads) for precision in present]


def with_fields(artifacts: Sequence[Artifact], **fields: object) -> dict[str, bytes]:
    """The files of a version with other fields of the card, and their golden rows, for
    `publish`.
    """
    golden = artifacts[0].golden()
    card = TrainedCard.model_validate(artifacts[0].card.model_dump() | fields)
    files = {MODEL_FILES[each.precision]: stamp(each.data, card) for each in artifacts}
    files[GOLDEN_FILE] = replace(golden, digest=digest_of(files[MODEL_FILE])).to_bytes()
    return files


def check_golden(
    function: OnnxFunction, golden: Golden, card: TrainedCard, precision: Precision
) -> None:
    """Raise `UserError` if a file differs from the golden rows by more than the tolerance of the
    card.
    """
    difference = max_abs_diff(function(golden.x), golden.y)
    if difference > getattr(card.tolerance, precision):
        name = card.ref if precision == "fp32" else f"{card.ref} in {precision}"
        raise UserError(
            f"{name}: differs from its golden rows by {difference:.2g}; `verify` it first"
        )


def sample_rows(card: Card, shape: tuple[int, int, int], count: int) -> FloatRows:
    """Rows (C, H, W) of every kind that f gets: images that differ by channel, random ones, and
    latents of noise.
    """
    (low, high), (channels, height, width) = card.range, shape
    down, right = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    patterns = np.stack(
        [right, np.abs(right - 0.5) < 0.12, right * down, down, 0 * down, 1 + 0 * down]
    )
    images = np.stack(
        [np.roll(patterns, -2 * channel, axis=0)[:count] for channel in range(channels)], axis=1
    )
    random = np.random.default_rng(0).random((count, *shape))
    rows = (low + np.concatenate([images, random])[:count] * (high - low)).astype(np.float32)
    if card.noise is not None:
        latents = count - min(len(images) + 1, count - 1)
        rows[count - latents :] = NoiseSource(shape).rows(0, 0, latents)
    return rows


def version_folder(versions: Path, version: int | None) -> Path:
    """The folder of a version of a model; without a number, that of the highest one in the model's
    folder plus one.
    """
    if version is None:
        names = (entry.name for entry in versions.iterdir()) if versions.is_dir() else ()
        version = 1 + max(
            (int(name) for name in names if name.isascii() and name.isdigit()), default=0
        )
    return versions / str(version)


def remove_annotations(model: onnx.ModelProto) -> None:
    """Remove what exporters write beside a graph, such as paths of source files on this machine."""
    graph = model.graph
    for part in (
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def smaller_tiles(side: int, multiple: int) -> tuple[int, ...]:
    """The sides of smaller tiles, ascending, in pixels: quarters of ``side`` that ``multiple``
    divides.
    """
    return tuple(side * part // 4 for part in (1, 2, 3) if side * part % (4 * multiple) == 0)


def serialised(model: onnx.ModelProto) -> bytes:
    """The model as the content of a file: equal bytes for equal messages, which protobuf does not
    guarantee without this option.
    """
    return model.SerializeToString(deterministic=True)


def open_sides(data: bytes) -> bytes:
    """A network whose operators take any height and width, as one that also says so."""
    model = onnx.load_model_from_string(data)
    for value in (*model.graph.input, *model.graph.output):
        for dim, name in zip(
            value.type.tensor_type.shape.dim[2:], ("height", "width"), strict=True
        ):
            dim.dim_param = name
    del model.graph.value_info[:]  # the sizes between them
    return serialised(model)


def stamp(data: bytes, card: Card) -> bytes:
    """Replace the card in the metadata of a model; returns the new content of the file."""
    model = onnx.load_model_from_string(data)
    onnx.helper.set_model_props(model, to_metadata(card))
    return serialised(model)


def publish(folder: Path, files: Mapping[str, bytes], *, keep: bool = False) -> None:
    """Replace the content of ``folder`` by these files, all at once. If anything fails, the folder
    is unchanged.

    The files are written to a hidden folder beside it, which is then renamed. So no reader sees a
    model together with the golden rows of another one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        fresh = Path(temporary, "new")
        old = Path(temporary, "old")
        if keep and folder.is_dir():
            shutil.copytree(folder, fresh)
        fresh.mkdir(exist_ok=True)
        for name, content in files.items():
            write_file(fresh / name, content)
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
