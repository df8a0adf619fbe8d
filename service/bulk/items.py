"""The inputs of a job, decoded images or seeded noise, and the files that its outputs are written to."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from service.api.native.schemas import Format
from service.api.native.schemas import GenerateRequest, ProjectOptions, ScoreOptions
from service.bulk.job import Job
from service.bulk.output import COLUMNS, Record
from service.bulk.readers import open_source
from service.bulk.source import Source, SourceItem
from service.domain.errors import IgnError, RequestError
from service.domain.latents import FloatRow
from service.images import DecodeLimits, decode_picture, encode, encode_npy, prepare, to_uint8
from service.models.registry import ServedModel
from service.settings import Settings

_SUFFIXES: Final = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "npy": ".npy"}
_MAX_STEM: Final = 80


@dataclass(slots=True, kw_only=True, eq=False)
class Item:
    """One image in processing.

    Args:
        record: its line of the manifest, filled in step by step.
        row: (C, H, W) in the model's units: the input, then the output. None if the image failed or is written.
        error: why the image failed.
    """

    record: Record
    row: FloatRow | None = None
    error: IgnError | None = None


class Inputs(Protocol):
    """The inputs of f in a fixed order. Thread-safe."""

    @property
    def digest(self) -> str:
        """Digest of the images; empty for noise."""
        ...

    def __len__(self) -> int:
        """Number of inputs."""
        ...

    def items(self, start: int, stop: int) -> list[Item]:
        """Inputs ``start`` … ``stop − 1``.

        Raises:
            OSError: the whole source cannot be read.
        """
        ...


def open_inputs(job: Job, model: ServedModel, settings: Settings, source: Source | None = None) -> Inputs:
    """Open the inputs of a job.

    Args:
        job: the job.
        model: the model, for its noise and its input size.
        settings: limits on the size of an image.
        source: the source of the job, if it is open already.

    Raises:
        StartupError: the source cannot be opened.
    """
    if isinstance(job.options, GenerateRequest):
        return NoiseInputs(job.options, model)
    if source is None:
        source = open_source(job.source, column=job.column, limit=settings.max_body_bytes)
    return UploadedInputs(job.options, model, source, DecodeLimits(max_pixels=settings.max_pixels))


class NoiseInputs:
    """Seeded noise."""

    def __init__(self, options: GenerateRequest, model: ServedModel) -> None:
        self._options, self._noise = options, model.noise
        self._seed = options.seed or 0
        self.digest = ""

    def __len__(self) -> int:
        """Number of latents."""
        return self._options.n

    def items(self, start: int, stop: int) -> list[Item]:
        """Latents ``start`` … ``stop − 1`` of the job."""
        first = self._options.offset + start
        rows = self._noise.rows(self._seed, first, stop - start, self._options.noise_scale)
        return [
            Item(record=_record(index=start + i, seed=self._seed, latent=first + i), row=row)
            for i, row in enumerate(rows)
        ]


class UploadedInputs:
    """Images of a source, decoded and fitted to the model's input as `/project` does."""

    def __init__(
        self, options: ProjectOptions | ScoreOptions, model: ServedModel, source: Source, limits: DecodeLimits
    ) -> None:
        self._options, self._card, self._source, self._limits = options, model.card, source, limits

    def __len__(self) -> int:
        """Number of inputs."""
        return len(self._source)

    @property
    def digest(self) -> str:
        """Digest of the source."""
        return self._source.digest

    def items(self, start: int, stop: int) -> list[Item]:
        """Images ``start`` … ``stop − 1``, decoded. An image that cannot be decoded has an error."""
        return [self._item(start + i, image) for i, image in enumerate(self._source.read(start, stop))]

    def _item(self, index: int, image: SourceItem) -> Item:
        item = Item(record=_record(index=index, source=_printable(image.name)))
        try:
            if isinstance(image.content, RequestError):
                raise image.content
            picture = decode_picture(image.content, self._limits, field=image.name)
        except RequestError as exc:
            item.error = exc
        else:
            prepared = prepare(picture, self._card, resize=self._options.resize, invert=self._options.invert)
            item.row = prepared.row
            item.record["inverted"] = prepared.inverted
        return item


def write_images(folder: Path, items: Sequence[Item], model: ServedModel, image_format: Format | None) -> None:
    """Write the output images, and complete their records with the file name or the error.

    Args:
        folder: where to write.
        items: the images; their rows are dropped.
        model: the model, which knows the range of its pixels.
        image_format: format of the files; None to write none.

    Raises:
        OSError: a file cannot be written.
    """
    for item in items:
        if item.error is not None:
            item.record |= {"error": item.error.error_code, "detail": _detail(item.record, item.error)}
        elif image_format is not None and item.row is not None:
            name = _file_name(item.record, image_format)
            if image_format == "npy":
                content = encode_npy(item.row)
            else:
                content = encode(to_uint8(item.row, model.card), image_format)
            (folder / name).write_bytes(content)
            item.record["picture"] = name
        item.row = None


def _record(**known: Any) -> Record:
    return dict.fromkeys(COLUMNS) | known


def _detail(record: Record, error: IgnError) -> str:
    name, detail = record["source"], _printable(error.detail)
    return detail if name is None or detail.startswith(name) else f"{name}: {detail}"


def _printable(text: str) -> str:
    """Escape what UTF-8 cannot encode: file names of Linux may be any bytes."""
    return text.encode(errors="backslashreplace").decode()


def _file_name(record: Record, image_format: Format) -> str:
    """Index and shortened source name of an output, in characters that every file system allows."""
    stem = PurePosixPath(record["source"] or f"{record['seed']}-{record['latent']}").stem
    return f"{record['index']:08}-{re.sub(r'[^A-Za-z0-9_-]+', '_', stem)[:_MAX_STEM]}{_SUFFIXES[image_format]}"
