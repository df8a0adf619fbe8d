"""Models at a URL (`IGN_MODEL_DIR=s3://bucket/models`), copied to a local folder before they are
loaded.

The files of a version are copied beside the old ones and replace them together, so that the service
can always start with what is there. A file is copied again when the store says that it has another
size or tag.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from service.artifact.files import MAX_MODEL_BYTES, MODEL_FILE, MODEL_PATH
from service.domain.errors import StartupError, printable

_LOG = logging.getLogger(__name__)
_MAX_OBJECTS: Final = 100_000  # below the URL, models or not
_MAX_BYTES: Final = 1 << 36  # of all models together

Failures = dict[str, str]
"""Why folders of models could not be copied, or versions do not serve: a line for each, by its path
below the URL or by `name/version`.
"""
Objects = dict[str, tuple[int, str]]
"""Path below the URL → size in bytes and tag, which changes with the content."""


class ModelStore:
    """Copies the models below a URL into a folder, which processes may share. Any thread may call
    it.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self.folder = folder
        self._state = self.folder / ".copied.json"

    def refresh(self, *, may_fail: bool = False) -> Failures:
        """Copy new and changed versions, and remove those that are gone.

        Returns for each folder that could not be copied a text for callers; the log has the reason,
        and the earlier copies stay. Raises StartupError if the store cannot be read; if it
        ``may_fail``, only without earlier copies.
        """
        with named(str(self.folder)):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".new-") as fresh:
                return self._refresh(self._copied(), Path(fresh), may_fail=may_fail)

    def _copied(self) -> Objects:
        """The objects that the state file names; none if there is no such file."""
        try:
            state = json.loads(self._state.read_bytes())
        except (OSError, ValueError):
            return {}
        return {path: (size, tag) for path, (size, tag) in state.items()}

    def _refresh(self, copied: Objects, fresh: Path, *, may_fail: bool) -> Failures:
        known = {path: tag for path, tag in copied.items() if os.path.isfile(self.folder / path)}
        try:
            with named(f"IGN_MODEL_DIR={self._url}"):
                retry = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}
                store = open_store(self._url, f"IGN_MODEL_DIR={self._url}", retry)
                objects = _list(store)
        except StartupError as exc:
            if not (may_fail and any(self.folder.rglob(MODEL_FILE))):
                raise
            _LOG.warning("%s; the models that were copied earlier are used", exc.detail)
            return {}
        changed = defaultdict[str, Objects](dict)
        failures = Failures()
        for path, tag in objects.items() - known.items():
            changed[os.path.dirname(path)][path] = tag
        for folder, paths in sorted(changed.items()):
            try:
                self._copy(store, folder, paths, fresh)
                copied |= paths
            except (StartupError, OSError) as exc:
                failures[folder] = f"{folder or '.'}: not copied from the store; the log says why"
                _LOG.error("IGN_MODEL_DIR=%s: %s: not copied: %s", self._url, folder or ".", exc)
        for path in copied.keys() - objects.keys():
            del copied[path]
            self._remove(path)
        state = fresh / "state"
        state.write_text(json.dumps(copied), "utf-8")
        state.replace(self._state)
        return failures

    def _copy(self, store: Any, folder: str, paths: Objects, fresh: Path) -> None:
        _LOG.info("copying %s of %s", folder or "the model", self._url)
        for path, (size, tag) in paths.items():
            with named(path):
                _fetch(store, path, size, tag, fresh / os.path.basename(path))
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        for path in paths:
            (fresh / os.path.basename(path)).replace(self.folder / path)

    def _remove(self, path: str) -> None:
        with suppress(OSError):  # a folder that still holds files stays
            (self.folder / path).unlink(missing_ok=True)
            for parent in Path(path).parents[:-1]:
                (self.folder / parent).rmdir()


def _list(store: Any) -> Objects:
    """The files of models in a store, within the limits of objects and bytes; raises
    StartupError.
    """
    import obstore

    seen = 0
    found = Objects()
    for chunk in obstore.list(store):
        seen += len(chunk)
        if seen > _MAX_OBJECTS:
            raise StartupError(
                f"holds more than {_MAX_OBJECTS} objects; name the folder of the models"
            )
        found |= {
            each["path"]: (each["size"], each["e_tag"] or "")
            for each in chunk
            if re.fullmatch(MODEL_PATH, each["path"])
        }
    if not found:
        raise StartupError("holds no model such as mnist/1/model.onnx")
    if sum(size for size, _ in found.values()) > _MAX_BYTES:
        raise StartupError(f"its models have more than {_MAX_BYTES >> 30} GiB")
    return found


def _fetch(store: Any, path: str, size: int, tag: str, file: Path) -> None:
    """Write an object of ``size`` bytes to a file; raises StartupError as soon as it has more, or
    if it has fewer.
    """
    import obstore

    if size > MAX_MODEL_BYTES:
        raise StartupError(f"larger than {MAX_MODEL_BYTES} bytes")
    written = 0
    with file.open("wb") as out:
        for chunk in obstore.get(store, path, options={"if_match": tag} if tag else {}):
            written += len(chunk)
            if written > size:
                raise StartupError(f"more than the {size} bytes that the store lists came")
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if written < size:
        raise StartupError(f"{written} bytes came, not {size}")


def cache_folder(url: str, cache: Path) -> Path:
    """Where the models of a URL lie in the cache."""
    return cache.expanduser() / hashlib.sha256(url.encode()).hexdigest()[:16]


def open_store(url: str, what: str, retry: Any) -> Any:
    """The object store below a URL, that of `obstore`; raises StartupError that begins with
    ``what``.

    The variables of each provider, such as `AWS_ACCESS_KEY_ID` and `AWS_ENDPOINT_URL`, have
    credentials and endpoints.
    """
    try:
        from obstore.store import from_url
    except ImportError as exc:
        raise _Named(f"{what}: needs obstore: run `pip install 'ign-service[store]'`") from exc
    with named(what):
        return from_url(
            url,
            # endpoints may be local
            client_options={"timeout": "300s", "connect_timeout": "5s", "allow_http": True},
            retry_config=retry,
        )


class _Named(StartupError):
    """An error that says what it is about."""


@contextmanager
def named(what: str, kind: type[Exception] = _Named) -> Iterator[None]:
    """Turn whatever a block raises into a ``kind`` of one line that begins with ``what``; named
    errors stay.
    """
    try:
        yield
    except _Named:
        raise
    except Exception as exc:
        text = getattr(exc, "strerror", None) or str(exc)
        line = re.split(r": <\?xml|: <Error|\n", text)[0] or type(exc).__name__
        code = re.search(r"<Code>(\w+)</Code>", text)
        hint = code and code[1]
        if "169.254.169.254" in line:  # where machines of a cloud ask for credentials
            hint = "no credentials in the environment"
        raise kind(f"{what}: {printable(line[:300])}{f' ({hint})' if hint else ''}") from exc
