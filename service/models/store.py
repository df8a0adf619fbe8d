"""Models in an object store (`IGN_MODEL_DIR=s3://bucket/models`), copied to a local folder before they are loaded.

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
from typing import Any, Final

from service.artifact.files import GOLDEN_FILE, MODEL_FILES
from service.domain.errors import StartupError

_LOG = logging.getLogger(__name__)
_FILE: Final = re.compile(rf"(?:[\w.-]+/){{0,2}}(?:{'|'.join(map(re.escape, (*MODEL_FILES.values(), GOLDEN_FILE)))})")
_CLIENT: Final[Any] = {"timeout": "300s", "connect_timeout": "5s", "allow_http": True}  # endpoints may be local
_RETRY: Final[Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_CLOUD: Final = "169.254.169.254"  # where machines of a cloud ask for credentials

Objects = Mapping[str, tuple[int, str]]
"""Path below the URL → size and tag, as the store lists them."""


class ModelStore:
    """Copies the models below a URL into a folder, which processes may share. Any thread may call it.

    The variables of each provider, such as `AWS_ACCESS_KEY_ID` and `AWS_ENDPOINT_URL`, have credentials and endpoints.
    """

    def __init__(self, url: str, cache: Path) -> None:
        self._url = url
        self.folder = cache.expanduser() / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._state = self.folder / ".copied.json"

    def refresh(self, *, may_fail: bool = False) -> dict[str, str]:
        """Copy new and changed versions, and remove those that are gone.

        Returns why versions could not be copied, by folder; their earlier copies stay. Raises StartupError if the store
        cannot be read; if it ``may_fail``, only without earlier copies.
        """
        copied: dict[str, tuple[int, str]] = {}
        with contextlib.suppress(OSError, ValueError):
            copied = {path: tuple(tag) for path, tag in json.loads(self._state.read_bytes()).items()}
        try:
            store, objects = _list(self._url)
        except StartupError as exc:
            if not (may_fail and copied):
                raise
            _LOG.warning("%s; the models that were copied earlier are used", exc.detail)
            return {}
        changed, failures = defaultdict[str, dict[str, tuple[int, str]]](dict), dict[str, str]()
        for path, tag in objects.items():
            if copied.get(path) != tag or not (self.folder / path).is_file():
                changed[os.path.dirname(path)][path] = tag
        with named(f"IGN_MODEL_CACHE={self.folder.parent}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            for folder, paths in changed.items():
                try:
                    self._copy(store, folder, paths)
                    copied |= paths
                except (StartupError, OSError) as exc:
                    failures[folder] = f"{folder or '.'}: not copied: {exc}"
                    _LOG.error("IGN_MODEL_DIR=%s: %s", self._url, failures[folder])
            for path in copied.keys() - objects.keys():
                del copied[path]
                self._remove(path)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".new-") as fresh:
                state = Path(fresh, "state")
                state.write_text(json.dumps(copied), encoding="utf-8")
                state.replace(self._state)
        return failures

    def _copy(self, store: Any, folder: str, paths: Objects) -> None:
        import obstore

        _LOG.info("copying %s of %s", folder or "the model", self._url)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".new-") as fresh:
            for path, (size, tag) in paths.items():
                file = Path(fresh, os.path.basename(path))
                with named(path), file.open("wb") as out:
                    for chunk in obstore.get(store, path, options={"if_match": tag} if tag else {}):
                        out.write(chunk)
                    out.flush()
                    os.fsync(out.fileno())
                if file.stat().st_size != size:
                    raise StartupError(f"{path}: {file.stat().st_size} bytes came, not {size}")
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
            for path in paths:
                Path(fresh, os.path.basename(path)).replace(self.folder / path)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):  # a folder that still holds files stays
            (self.folder / path).unlink(missing_ok=True)
            for parent in Path(path).parents[:-1]:
                (self.folder / parent).rmdir()


def _list(url: str) -> tuple[Any, Objects]:
    """The store below a URL, and its files of models."""
    what = f"IGN_MODEL_DIR={url}"
    store = open_store(url, what, _RETRY)
    import obstore

    with named(what):
        found = [each for chunk in obstore.list(store) for each in chunk if _FILE.fullmatch(each["path"])]
    if not found:
        raise StartupError(f"{what}: holds no model such as mnist/1/model.onnx")
    return store, {each["path"]: (each["size"], each["e_tag"] or "") for each in found}


def open_store(url: str, what: str, retry: Any) -> Any:
    """The object store below a URL, that of `obstore`; raises StartupError that begins with ``what``."""
    try:
        from obstore.store import from_url
    except ImportError as exc:
        raise StartupError(f"{what}: needs obstore: run `pip install 'ign-service[store]'`") from exc
    with named(what):
        return from_url(url, client_options=_CLIENT, retry_config=retry)


@contextlib.contextmanager
def named(what: str, kind: type[Exception] = StartupError) -> Iterator[None]:
    """Turn an error of the store or of a file into a ``kind`` of one line that begins with ``what``."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (OSError, BaseError) as exc:
        text = getattr(exc, "strerror", None) or str(exc)
        line, code = text.partition(": <?xml")[0].partition(": <Error")[0].partition("\n")[0], _CODE.search(text)
        hint = "no credentials in the environment" if _CLOUD in line else code and code[1]
        raise kind(f"{what}: {line[:300]}{f' ({hint})' if hint else ''}") from exc
