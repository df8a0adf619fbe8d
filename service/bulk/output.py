"""The output of a run, on this machine or in an object store.

    OUTPUT/run.json               fingerprint of the job; a run with another job is rejected
    OUTPUT/source-…/000000.jsonl  names in the source
    OUTPUT/000000/…               the images of a shard; or 000000.tar, or 000000.parquet
    OUTPUT/shards/000000.jsonl    one line for each image of a shard, which is complete with it
    OUTPUT/manifest.jsonl         one line for each image of all shards; or manifest.parquet

All but the last are written only if they are not there. However a run ends, the next one makes only
the missing shards, and of two that make the same one, the second changes nothing.
"""

import io
import json
import logging
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import PurePosixPath
from typing import IO, Any, Final, Literal

from service.bulk.places import Bucket, Contents, Folder, StoreError, absolute, is_url
from service.bulk.sources import Listing, require_pyarrow
from service.domain.errors import StartupError

Record = dict[str, Any]
Made = list[tuple[Record, bytes]]
"""Records, each with its encoded image; empty if there is none."""
Fingerprint = dict[str, Any]
"""Of a job; by it a later run knows that it continues the same job."""
ManifestFormat = Literal["jsonl", "parquet"]
Pack = Literal["files", "tar", "parquet"]
"""How the images of a shard are kept."""

COLUMNS: Final = {
    "index": "int64",
    "source": "string",
    "seed": "int64",
    "latent": "int64",
    "picture": "string",
    "steps": "int64",
    "converged": "bool_",
    "inverted": "bool_",
    "distance": "float64",
    "drift": "float64",
    "percentile": "float64",
    "in_distribution": "bool_",
    "error": "string",
    "detail": "string",
}
"""Fields of each line of a manifest, and their types in Parquet."""

_LOG = logging.getLogger(__name__)
_JOB: Final = "run.json"
_SHARD: Final = "shards/%06d.jsonl"
_AT_ONCE: Final = 16  # shards that `merge` reads at once


def check_output(
    output: "Output", source: str, pack: Pack, manifest_format: ManifestFormat
) -> None:
    """Raise StartupError, before models are loaded, if a run cannot be written to this OUTPUT."""
    url = output.url
    if source and f"{absolute(url)}/".startswith(f"{absolute(source)}/"):
        raise StartupError(f"{url}: lies within {source}; the next run would read it as input")
    if url.startswith(("http:", "https:")):
        raise StartupError(
            f"{url}: a web server cannot be written to; use a folder, s3://, gs:// or az://"
        )
    try:
        if output.previous_job() is None and not all(
            name.startswith(("source-", ".")) for name, *_ in output.place.files()
        ):
            raise StartupError(f"{url}: holds files of something else; use another folder")
    except StoreError as exc:
        raise StartupError(f"{url}: cannot be read: {str(exc).removeprefix(f'{url}: ')}") from exc
    if manifest_format == "parquet":
        require_pyarrow("--manifest parquet")
    elif pack == "parquet":
        require_pyarrow("--pack parquet")


class Output:
    """The output of one run, by its path or URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.place = Bucket(url) if is_url(url) else Folder(url)

    def previous_job(self) -> Fingerprint | None:
        """Fingerprint of the job in this folder, if there is one; raises StartupError if it is
        damaged.
        """
        fingerprint: Any = ""
        with suppress(ValueError):
            fingerprint = json.loads(self.place.get(_JOB) or b"null")
        if not isinstance(fingerprint, dict | None):
            raise StartupError(f"{self.url}/{_JOB}: damaged")
        return fingerprint

    def wait(self) -> None:
        """Wait until another worker has listed the source and recorded the job."""
        while self.previous_job() is None:
            _LOG.info("waiting for part 1, which lists the source")
            time.sleep(5.0)

    def listing(self, source: str, *, is_part: bool) -> Listing:
        """The files of a source: as the first run found them, unless it is cheap to look whether
        they changed.
        """
        known = (self.previous_job() or {}).get("listing")
        listing = Listing(source, known if is_part or is_url(source) else None, self.place.get)
        ends = (listing.rows[0], listing.rows[-1]) if known and is_url(source) else ()
        for name, size in ends:
            if listing.place.size(name) != size:
                raise StartupError(
                    f"{source}: {name} is not what it was when {self.url} began; use another folder"
                )
        return listing

    def start(self, fingerprint: Fingerprint, listing: Listing | None) -> None:
        """Start or continue a job, or raise StartupError if the folder holds another."""
        previous = self.previous_job()
        if previous is None:
            try:
                if listing is not None:
                    self._put_written(listing.file, listing.write, new=True)
                if not self.place.put(_JOB, (json.dumps(fingerprint, indent=2) + "\n").encode()):
                    previous = self.previous_job()
            except OSError as exc:
                raise StartupError(f"{self.url}: cannot be written: {exc.strerror or exc}") from exc
        if previous is not None:
            before, now = (
                {**one, **one.get("options", {}), "options": None}
                for one in (previous, fingerprint)
            )
            for name in dict.fromkeys((*before, *now)):
                if before.get(name) != now.get(name):
                    raise StartupError(
                        f"the output holds another run: {name} was {before.get(name)}, and is "
                        f"{now.get(name)} now; use another folder"
                    )

    def _put_written(self, name: str, write: Callable[[IO[bytes]], None], *, new: bool) -> None:
        """Put a file that need not fit into memory."""
        with tempfile.TemporaryFile() as file:
            write(file)
            file.seek(0)
            self.place.put(name, file, new=new)

    def complete(self) -> dict[int, float]:
        """Complete shards, and when they were."""
        found = (
            (re.fullmatch(r"shards/(\d+)\.jsonl", name), at)
            for name, _, at in self.place.files("shards")
        )
        return {int(match[1]): at for match, at in found if match}

    async def write(self, shard: int, files: Contents) -> None:
        """Write files of a shard, each of which replaces what an earlier attempt left, unless the
        shard is complete.
        """

        def write(file: tuple[str, bytes]) -> None:
            name, content = file
            if (
                not self.place.put(name, content)
                and self.place.get(name) != content
                and self.records(shard) is None
            ):
                self.place.put(name, content, new=False)

        await self.place.each(write, files)

    def finish(self, shard: int, records: Sequence[Record]) -> list[Record]:
        """Complete a shard; returns the records that count, which are those of the worker that was
        first.
        """
        if self.place.put(_SHARD % shard, _lines(records).encode()):
            return list(records)
        return self.records(shard) or []

    def records(self, shard: int) -> list[Record] | None:
        """The manifest of a shard; None if it is not complete."""
        content = self.place.get(_SHARD % shard)
        return None if content is None else [json.loads(line) for line in content.splitlines()]

    def merge(self, shards: int, manifest_format: ManifestFormat) -> tuple[str, int, int]:
        """Write the manifest of the whole run; returns its path and how many images there are, and
        failed.
        """
        name = f"manifest.{manifest_format}"
        images = failed = 0

        def parts() -> Iterator[list[Record]]:
            nonlocal images, failed
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for start in range(0, shards, _AT_ONCE):
                    for records in pool.map(
                        self.records, range(start, min(start + _AT_ONCE, shards))
                    ):
                        made = records or []
                        images += len(made)
                        failed += sum(record["error"] is not None for record in made)
                        yield made

        def write(file: IO[bytes]) -> None:
            if manifest_format == "parquet":
                _write_parquet(file, parts())
            else:
                file.writelines(_lines(records).encode() for records in parts())

        self._put_written(name, write, new=False)
        if isinstance(self.place, Folder):
            self.place.clean()
        return f"{self.url.rstrip('/')}/{name}", images, failed

    def status(self) -> str:
        """How far a run is, in one line; raises StartupError if there is none."""
        if (job := self.previous_job()) is None:
            raise StartupError(f"{self.url}: holds no run")
        complete = self.complete()
        images = job["pictures"]
        size = job["shard"]
        shards = -(-images // size)
        done = sum(min(size, images - shard * size) for shard in complete)
        text = (
            f"{job['task']} with {job['model']}: {len(complete)}/{shards} shards, "
            f"{done}/{images} images"
        )
        # the rate is that of the last hundred shards
        times = sorted(complete.values())[-100:]
        if len(complete) < shards and len(times) > 1 and times[-1] > times[0]:
            rate = (len(times) - 1) * size / (times[-1] - times[0])
            text += (
                f", {progress(rate, images - done)}; the last one "
                f"{time.time() - times[-1]:.0f} s ago"
            )
        return text


def progress(rate: float, left: int) -> str:
    """Images per second, and how long the images that are left take."""
    return f"{rate:.1f}/s, {timedelta(seconds=round(left / max(rate, 1e-6)))} left"


def packed(pack: Pack, made: Made) -> bytes:
    """Images of a shard in one file: a WebDataset with their records, or a table as Hugging Face
    reads it.
    """
    file = io.BytesIO()
    named = [(record, PurePosixPath(record["picture"] or ""), image) for record, image in made]
    if pack == "parquet":
        rows = [
            {**record, "image": {"bytes": image, "path": path.name} if image else None}
            for record, path, image in named
        ]
        _write_parquet(file, [rows], image=True)
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for record, path, image in named:
            text = json.dumps(record, ensure_ascii=False).encode()
            for member, data in ((path.name, image), (f"{path.stem}.json", text)) if image else ():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write_parquet(file: IO[bytes], parts: Iterable[list[Record]], *, image: bool = False) -> None:
    import pyarrow
    from pyarrow import parquet

    fields = [(name, getattr(pyarrow, kind)()) for name, kind in COLUMNS.items()]
    encoded = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([*fields, ("image", encoded)] if image else fields)
    with parquet.ParquetWriter(file, schema) as writer:
        for records in parts:
            writer.write_table(pyarrow.Table.from_pylist(records, schema=schema))
