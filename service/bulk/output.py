"""The output folder of a run, which consists of complete shards only.

    OUTPUT/run.json            fingerprint of the job; a run with another job is rejected
    OUTPUT/.000001.partial/    a shard that is being written
    OUTPUT/000000/…            the images of a complete shard, and its manifest.jsonl
    OUTPUT/manifest.jsonl      one line for each image of all shards; or manifest.parquet

Renaming its folder completes a shard. However a run ends, the next one makes only the missing shards.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from service.bulk.sources import is_url
from service.domain.errors import StartupError

Record = dict[str, Any]
Fingerprint = dict[str, Any]
"""Of a job; by it a later run knows that it continues the same job."""
ManifestFormat = Literal["jsonl", "parquet"]

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

_MANIFEST: Final = "manifest.jsonl"
_JOB: Final = "run.json"
_LOCK: Final = ".lock"
_TEMP_SUFFIX: Final = ".partial"


def check_output(output: str, source: str, manifest_format: ManifestFormat) -> None:
    """Raise StartupError, before models are loaded, if a run cannot be written to this OUTPUT."""
    root = Path(output)
    if is_url(output):
        raise StartupError(f"{output}: only the input may be a URL; the output must be a local folder")
    if source and not is_url(source) and root.resolve().is_relative_to(Path(source).resolve()):
        raise StartupError(f"{output}: lies within {source}; the next run would read it as input")
    if root.exists() and not root.is_dir():
        raise StartupError(f"{output}: not a folder")
    if not (root / _JOB).is_file() and root.is_dir() and set(os.listdir(root)) - {_LOCK}:
        raise StartupError(f"{output}: holds files of something else; use another folder")
    if manifest_format == "parquet" and find_spec("pyarrow") is None:
        raise StartupError("--manifest parquet: pyarrow is not installed; pip install 'ign-service[bulk]'")


class Output:
    """The output folder of one run; `lock` creates it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against other runs until the block, or the process, ends; else raise StartupError."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / _LOCK).open("w")
        except OSError as exc:
            raise StartupError(f"{self.root}: cannot be written: {exc.strerror}") from exc
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StartupError(f"{self.root}: another run is using this folder") from None
            try:
                yield
            finally:
                if os.listdir(self.root) == [_LOCK]:  # no run has started in it
                    (self.root / _LOCK).unlink()
                    self.root.rmdir()

    def previous_job(self) -> Fingerprint | None:
        """Fingerprint of the job in this folder, if there is one; raises StartupError if it is damaged."""
        try:
            fingerprint = json.loads((self.root / _JOB).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            fingerprint = None
        if not isinstance(fingerprint, dict):
            raise StartupError(f"{self.root / _JOB}: damaged")
        return fingerprint

    def start(self, fingerprint: Fingerprint) -> None:
        """Start or continue a job, or raise StartupError if the folder holds another; removes temporary files."""
        previous = self.previous_job()
        if previous is None:
            temp = self.root / f".{_JOB}{_TEMP_SUFFIX}"
            temp.write_text(json.dumps(fingerprint, indent=2) + "\n", encoding="utf-8")
            temp.replace(self.root / _JOB)
        else:
            before, now = ({**one, **one.get("options", {}), "options": None} for one in (previous, fingerprint))
            for name in dict.fromkeys((*before, *now)):
                if before.get(name) != now.get(name):
                    change = f"{name} was {before.get(name)}, and is {now.get(name)} now"
                    raise StartupError(f"the output holds another run: {change}; use another folder")
        for leftover in self.root.glob(f".*{_TEMP_SUFFIX}"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def shard_dir(self, shard: int) -> Path:
        """Folder of a shard; there is none until the shard is complete."""
        return self.root / f"{shard:06}"

    def temp_dir(self, shard: int) -> Path:
        """Create the empty hidden folder to write a shard to."""
        folder = self.root / f".{shard:06}{_TEMP_SUFFIX}"
        if folder.is_dir():  # left by an attempt that failed on another machine
            shutil.rmtree(folder)
        folder.mkdir()
        return folder

    def finish(self, shard: int, temp_dir: Path, records: Sequence[Record]) -> None:
        """Write the manifest of a shard and rename its folder, which makes it complete."""
        (temp_dir / _MANIFEST).write_text(_lines(records), encoding="utf-8")
        temp_dir.rename(self.shard_dir(shard))

    def records(self, shard: int) -> list[Record]:
        """The manifest of a complete shard."""
        with (self.shard_dir(shard) / _MANIFEST).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def merge(self, shards: int, manifest_format: ManifestFormat) -> tuple[Path, int]:
        """Write the manifest of the whole run; returns its path and the number of failed images."""
        target = self.root / f"manifest.{manifest_format}"
        temp = self.root / f".{target.name}{_TEMP_SUFFIX}"
        failed = 0

        def parts() -> Iterator[list[Record]]:
            nonlocal failed
            for records in map(self.records, range(shards)):
                failed += sum(record["error"] is not None for record in records)
                yield records

        if manifest_format == "parquet":
            _write_parquet(temp, parts())
        else:
            with temp.open("w", encoding="utf-8") as lines:
                lines.writelines(map(_lines, parts()))
        temp.replace(target)
        return target, failed


def _lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write_parquet(file: Path, parts: Iterable[list[Record]]) -> None:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in COLUMNS.items()])
    with parquet.ParquetWriter(file, schema) as writer:
        for records in parts:
            writer.write_table(pyarrow.Table.from_pylist(records, schema=schema))
