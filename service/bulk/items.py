"""One picture on its way: made or decoded, measured, and written under its number."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from service.api.native.schemas import Format, GenerateRequest, ProjectOptions, ScoreOptions
from service.bulk.job import Job
from service.bulk.output import COLUMNS, Record
from service.bulk.readers import open_source
from service.bulk.source import Found, Source
from service.domain.errors import IgnError, RequestError
from service.domain.latents import FloatRow
from service.images import DecodeLimits, decode_picture, encode, encode_npy, prepare, to_uint8
from service.models.registry import ServedModel
from service.settings import Settings

_ENDINGS: Final = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "npy": ".npy"}
_LONGEST_STEM: Final = 80


@dataclass(slots=True, kw_only=True, eq=False)
class Item:
    """One picture on its way.

    Args:
        record: its line of the manifest, as far as known.
        row: (C, H, W), first the input and then the output; None for one that cannot be used, and once it is written.
        error: why it cannot be used.
    """

    record: Record
    row: FloatRow | None = None
    error: IgnError | None = None


class Inputs(Protocol):
    """What f is applied to. Called from several threads."""

    @property
    def digest(self) -> str:
        """Of the pictures; empty for noise."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def items(self, start: int, stop: int) -> list[Item]:
        """Numbers ``start`` … ``stop − 1``.

        Raises:
            OSError: reading fails altogether.
        """
        ...


def inputs_of(job: Job, model: ServedModel, settings: Settings, source: Source | None = None) -> Inputs:
    """The inputs of a job; ``source`` is its own if it has been opened already.

    Raises:
        StartupError: it cannot be.
    """
    if isinstance(job.options, GenerateRequest):
        return Drawn(job.options, model)
    if source is None:
        source = open_source(job.source, column=job.column, limit=settings.max_body_bytes)
    return Given(job.options, model, source, DecodeLimits(max_pixels=settings.max_pixels))


class Drawn:
    """Latents of a seed."""

    def __init__(self, options: GenerateRequest, model: ServedModel) -> None:
        self._options, self._noise = options, model.noise
        self._seed = options.seed or 0
        self.digest = ""

    def __len__(self) -> int:
        """How many are asked for."""
        return self._options.n

    def items(self, start: int, stop: int) -> list[Item]:
        """Latents by number."""
        first = self._options.offset + start
        rows = self._noise.rows(self._seed, first, stop - start, self._options.noise_scale)
        return [
            Item(record=_record(index=start + place, seed=self._seed, latent=first + place), row=row)
            for place, row in enumerate(rows)
        ]


class Given:
    """Pictures of a source."""

    def __init__(
        self, options: ProjectOptions | ScoreOptions, model: ServedModel, source: Source, limits: DecodeLimits
    ) -> None:
        self._options, self._card, self._source, self._limits = options, model.card, source, limits

    def __len__(self) -> int:
        """How many there are."""
        return len(self._source)

    @property
    def digest(self) -> str:
        """Of the source."""
        return self._source.digest

    def items(self, start: int, stop: int) -> list[Item]:
        """Pictures by number, decoded; one that cannot be is an error in its place."""
        return [self._item(start + place, found) for place, found in enumerate(self._source.read(start, stop))]

    def _item(self, index: int, found: Found) -> Item:
        item = Item(record=_record(index=index, source=_text(found.name)))
        try:
            if isinstance(found.content, RequestError):
                raise found.content
            picture = decode_picture(found.content, self._limits, field=found.name)
        except RequestError as exc:
            item.error = exc
        else:
            prepared = prepare(picture, self._card, resize=self._options.resize, invert=self._options.invert)
            item.row = prepared.row
            item.record["inverted"] = prepared.inverted
        return item


def keep(folder: Path, items: Sequence[Item], model: ServedModel, form: Format | None) -> None:
    """Write the pictures, unless ``form`` is None; and into the records which those are, or why there are none.

    Raises:
        OSError: they cannot be written.
    """
    for item in items:
        if item.error is not None:
            item.record |= {"error": item.error.error_code, "detail": _told(item.record, item.error)}
        elif form is not None and item.row is not None:
            name = _name(item.record, form)
            content = encode_npy(item.row) if form == "npy" else encode(to_uint8(item.row, model.card), form)
            (folder / name).write_bytes(content)
            item.record["picture"] = name
        item.row = None


def _record(**known: Any) -> Record:
    return dict.fromkeys(COLUMNS) | known


def _told(record: Record, error: IgnError) -> str:
    name, detail = record["source"], _text(error.detail)
    return detail if name is None or detail.startswith(name) else f"{name}: {detail}"


def _text(name: str) -> str:
    """A name as it can be written, for there are files whose names are no UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def _name(record: Record, form: Format) -> str:
    """Of an output: its number, and as much of its source's name as every file system takes."""
    stem = PurePosixPath(record["source"] or f"{record['seed']}-{record['latent']}").stem
    return f"{record['index']:08}-{re.sub(r'[^A-Za-z0-9_-]+', '_', stem)[:_LONGEST_STEM]}{_ENDINGS[form]}"
