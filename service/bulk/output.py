"""What a run leaves: a folder of shards, each of which is there wholly or not at all.

    OUTPUT/run.json            what is made; a run that means something else is refused
    OUTPUT/000000/…            the pictures of one shard, and its manifest.jsonl
    OUTPUT/manifest.jsonl      one line for each picture of all shards; or manifest.parquet

A shard is made in a hidden folder beside its place, and moved there in one step. So whatever ends a run, what is there
is finished, and the next run goes on behind it.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from service.bulk.job import Identity, check_same
from service.domain.errors import StartupError

Record = dict[str, Any]
ManifestForm = Literal["jsonl", "parquet"]

MANIFEST: Final = "manifest.jsonl"
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
"""Members of every line of a manifest, and their types in Parquet."""

_RUN: Final = "run.json"
_LOCK: Final = ".lock"
_PARTIAL: Final = ".partial"


class Output:
    """The output folder of one run.

    Args:
        root: the folder; made when the run begins.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self) -> None:
        """Refuse a folder that holds something else, before anything is loaded.

        Raises:
            StartupError: it does, or is no folder.
        """
        if self.root.exists() and not self.root.is_dir():
            raise StartupError(f"{self.root}: is no folder")
        if not (self.root / _RUN).is_file() and self.root.is_dir() and set(os.listdir(self.root)) - {_LOCK}:
            raise StartupError(f"{self.root}: holds something that is no run of this command; give another folder")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs out of the folder until the block, or the process, ends.

        Raises:
            StartupError: another run is at work there, or the folder cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / _LOCK).open("w")
        except OSError as exc:
            raise StartupError(f"{self.root}: cannot be written: {exc.strerror}") from exc
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StartupError(f"{self.root}: another run is at work there") from None
            try:
                yield
            finally:
                self._leave_nothing()

    def _leave_nothing(self) -> None:
        """Where no run has begun, there is no folder."""
        if set(os.listdir(self.root)) == {_LOCK}:
            (self.root / _LOCK).unlink()
            self.root.rmdir()

    def remembered(self) -> Identity | None:
        """What the run in this folder was asked to do, if there is one.

        Raises:
            StartupError: its record is damaged.
        """
        try:
            found = json.loads((self.root / _RUN).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as exc:
            raise StartupError(f"{self.root / _RUN}: damaged") from exc
        if not isinstance(found, dict):
            raise StartupError(f"{self.root / _RUN}: damaged")
        return found

    def begin(self, identity: Identity) -> None:
        """Begin or continue a run: what an earlier one had not finished is cleared away.

        Raises:
            StartupError: the folder holds a run of something else.
        """
        there = self.remembered()
        if there is None:
            _write(self.root / _RUN, json.dumps(identity, indent=2) + "\n")
        else:
            check_same(there, identity)
        for left in self.root.glob(f".*{_PARTIAL}"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def is_done(self, shard: int) -> bool:
        """Whether a shard is there."""
        return self.folder(shard).is_dir()

    def folder(self, shard: int) -> Path:
        """Where a shard lies once it is done."""
        return self.root / f"{shard:06}"

    def partial(self, shard: int) -> Path:
        """A new empty folder in which to make a shard."""
        folder = self.root / f".{shard:06}{_PARTIAL}"
        if folder.is_dir():  # of an attempt that failed on another machine
            shutil.rmtree(folder)
        folder.mkdir()
        return folder

    def finish(self, shard: int, partial: Path, records: Sequence[Record]) -> None:
        """Move a shard to its place, with its manifest."""
        (partial / MANIFEST).write_text(_lines(records), encoding="utf-8")
        partial.rename(self.folder(shard))

    def records(self, shard: int) -> list[Record]:
        """The manifest of a shard that is done."""
        with (self.folder(shard) / MANIFEST).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def merge(self, shards: int, form: ManifestForm) -> tuple[Path, int]:
        """Write the manifest of the whole run; returns its file, and how many pictures could not be used."""
        target = self.root / f"manifest.{form}"
        partial = self.root / f".{target.name}{_PARTIAL}"
        bad = 0

        def parts() -> Iterator[list[Record]]:
            nonlocal bad
            for shard in range(shards):
                records = self.records(shard)
                bad += sum(record["error"] is not None for record in records)
                yield records

        (_write_parquet if form == "parquet" else _write_lines)(partial, parts())
        partial.replace(target)
        return target, bad


def check_form(form: ManifestForm) -> None:
    """Refuse a form of manifest that cannot be written here, before anything is made.

    Raises:
        StartupError: pyarrow is not installed.
    """
    if form == "parquet" and find_spec("pyarrow") is None:
        raise StartupError("--manifest parquet: pyarrow, which writes it, is not installed")


def _write_lines(file: Path, parts: Iterator[list[Record]]) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for records in parts:
            lines.write(_lines(records))


def _lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write_parquet(file: Path, parts: Iterator[list[Record]]) -> None:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in COLUMNS.items()])
    with parquet.ParquetWriter(file, schema) as writer:
        for records in parts:
            writer.write_table(pyarrow.Table.from_pylist(records, schema=schema))


def _write(target: Path, text: str) -> None:
    partial = target.with_name(f".{target.name}{_PARTIAL}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)
