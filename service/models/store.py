"""Models at a URL (`IGN_MODEL_DIR=s3://bucket/models`), copied to a local folder before they are loaded.

The files of a version are copied beside the old ones and replace them together, so that the service can always start
with what is there. A file is copied again when the store says that it has another size or tag.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from service.artifact.files import MODEL_PATH
from service.domain.errors import StartupError

_LOG = logging.getLogger(__name__)
_FILE: Final = re.compile(MODEL_PATH)
_CLIENT: Final[Any] = {"timeout": "300s", "connect_timeout": "5s", "allow_http": True}  # endpoints may be local
_RETRY: Final[Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_CLOUD: Final = "169.254.169.254"  # where machines of a cloud ask for credentials

Objects = Mapping[str, tuple[int, str]]
"""Path below the URL → size in bytes and tag, which changes with the content."""


class Source(Protocol):
    """Where models are copied from. Its methods raise StartupError."""

    def objects(self, known: Objects, fresh: Path) -> Objects:
        """The files of models there. ``known`` are those that were copied; the folder ``fresh`` is for what follows."""
        ...

    def read(self, path: str, tag: str) -> Iterator[bytes]:
        """The bytes of one of the files."""
        ...


class ModelStore:
    """Copies the models below a URL into a folder, which processes may share. Any thread may call it."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self.folder = url, folder
        self._state = self.folder / ".copied.json"

    def refresh(self, *, may_fail: bool = False) -> dict[str, str]:
        """Copy new and changed versions, and remove those that are gone.

        Returns why versions could not be copied, by folder; their earlier copies stay. Raises StartupError if the store
        cannot be read; if it ``may_fail``, only without earlier copies.
        """
        copied: dict[str, tuple[int, str]] = {}
        with contextlib.suppress(OSError, ValueError):
            copied = {path: tuple(tag) for path, tag in json.loads(self._state.read_bytes()).items()}
        with named(str(self.folder)):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".new-") as fresh:
                return self._refresh(copied, Path(fresh), may_fail=may_fail)

    def _refresh(self, copied: dict[str, tuple[int, str]], fresh: Path, *, may_fail: bool) -> dict[str, str]:
        lost = {tag for path, (_, tag) in copied.items() if not (self.folder / path).is_file()}
        known = {path: tag for path, tag in copied.items() if tag[1] not in lost}
        try:
            with named(f"IGN_MODEL_DIR={self._url}"):
                source = open_source(self._url)
                objects = source.objects(known, fresh)
                if not objects:
                    raise StartupError("holds no model such as mnist/1/model.onnx")
        except StartupError as exc:
            if not (may_fail and copied):
                raise
            _LOG.warning("%s; the models that were copied earlier are used", exc.detail)
            return {}
        changed, failures = defaultdict[str, dict[str, tuple[int, str]]](dict), dict[str, str]()
        for path, tag in objects.items() - known.items():
            changed[os.path.dirname(path)][path] = tag
        for folder, paths in sorted(changed.items()):
            try:
                self._copy(source, folder, paths, fresh)
                copied |= paths
            except (StartupError, OSError) as exc:
                failures[folder] = f"{folder or '.'}: not copied: {exc}"
                _LOG.error("IGN_MODEL_DIR=%s: %s", self._url, failures[folder])
        for path in copied.keys() - objects.keys():
            del copied[path]
            self._remove(path)
        # A layer of an image may hold several folders: it is read again unless all of them were copied.
        again = {tag for folder in failures for _, tag in changed[folder].values()}
        state = fresh / "state"
        state.write_text(json.dumps({path: tag for path, tag in copied.items() if tag[1] not in again}), "utf-8")
        state.replace(self._state)
        return failures

    def _copy(self, source: Source, folder: str, paths: Objects, fresh: Path) -> None:
        _LOG.info("copying %s of %s", folder or "the model", self._url)
        for path, (size, tag) in paths.items():
            file = fresh / os.path.basename(path)
            with named(path), file.open("wb") as out:
                for chunk in source.read(path, tag):
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            if file.stat().st_size != size:
                raise StartupError(f"{path}: {file.stat().st_size} bytes came, not {size}")
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        for path in paths:
            (fresh / os.path.basename(path)).replace(self.folder / path)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):  # a folder that still holds files stays
            (self.folder / path).unlink(missing_ok=True)
            for parent in Path(path).parents[:-1]:
                (self.folder / parent).rmdir()


class _Bucket:
    """A folder of an object store; the tag of an object is its ETag."""

    def __init__(self, url: str) -> None:
        self._store = open_store(url, f"IGN_MODEL_DIR={url}", _RETRY)
        import obstore

        self._api: Any = obstore

    def objects(self, known: Objects, fresh: Path) -> Objects:
        """As `Source`."""
        found = [each for chunk in self._api.list(self._store) for each in chunk if _FILE.fullmatch(each["path"])]
        return {each["path"]: (each["size"], each["e_tag"] or "") for each in found}

    def read(self, path: str, tag: str) -> Iterator[bytes]:
        """As `Source`."""
        yield from self._api.get(self._store, path, options={"if_match": tag} if tag else {})


def cache_folder(url: str, cache: Path) -> Path:
    """Where the models of a URL lie in the cache."""
    return cache.expanduser() / hashlib.sha256(url.encode()).hexdigest()[:16]


def open_source(url: str) -> Source:
    """The source at a URL; raises StartupError."""
    if url.startswith("oci:"):
        from service.models.oci import Image  # imports httpx, which most services do not need

        return Image(url)
    return _Bucket(url)


def open_store(url: str, what: str, retry: Any) -> Any:
    """The object store below a URL, that of `obstore`; raises StartupError that begins with ``what``.

    The variables of each provider, such as `AWS_ACCESS_KEY_ID` and `AWS_ENDPOINT_URL`, have credentials and endpoints.
    """
    try:
        from obstore.store import from_url
    except ImportError as exc:
        raise _Named(f"{what}: needs obstore: run `pip install 'ign-service[store]'`") from exc
    with named(what):
        return from_url(url, client_options=_CLIENT, retry_config=retry)


class _Named(StartupError):
    """An error that says what it is about."""


@contextlib.contextmanager
def named(what: str, kind: type[Exception] = _Named) -> Iterator[None]:
    """Turn an error of a store or a file into a ``kind`` of one line that begins with ``what``; named ones stay."""
    try:
        yield
    except Exception as exc:
        if isinstance(exc, _Named) or not isinstance(exc, (OSError, StartupError, *_store_errors())):
            raise
        text = exc.detail if isinstance(exc, StartupError) else getattr(exc, "strerror", None) or str(exc)
        line, code = text.partition(": <?xml")[0].partition(": <Error")[0].partition("\n")[0], _CODE.search(text)
        hint = "no credentials in the environment" if _CLOUD in line else code and code[1]
        raise kind(f"{what}: {line[:300]}{f' ({hint})' if hint else ''}") from exc


def _store_errors() -> tuple[type[Exception], ...]:
    try:
        from obstore.exceptions import BaseError
    except ImportError:
        return ()
    return (BaseError,)
