"""Work on many images at a terminal: list the inputs, check the outputs, run several requests at a
time, report.
"""

import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from ign_client._client import Client
from ign_client._errors import (
    InputError,
    StatusError,
    TimedOut,
    TooManyRequests,
    UnexpectedAnswer,
)
from ign_client._picture import SUFFIXES, Picture

T = TypeVar("T")
ResultT = TypeVar("ResultT")

PAGED: Final = (".tif", ".tiff")
"""Suffixes of files that may hold several images."""
_PAUSE_S: Final = 5.0
_IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", *PAGED, ".bmp", ".gif", ".avif")
# Control characters, ends of lines, marks that change the direction of text, and bytes that are no
# text.
_UNSAFE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_IMAGE_ERRORS: Final = {
    "deadline_exceeded",
    "deadline_unreachable",
    "image_too_large",
    "internal",
    "mask_size",
    "model_failure",
    "too_large",
    "undecodable_image",
}


def printable(text: str) -> str:
    """The text with escapes in place of what controls a terminal or ends a line."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Terminal:
    """Writes results to stdout, errors to stderr, and the progress there if it is a terminal."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._is_drawn = False

    def result(self, *cells: str) -> None:
        """Write a line of output, with tabs between its cells."""
        self.end()
        print(*map(printable, cells), sep="\t", flush=True)

    def progress(self, done: int, total: int, failed: int = 0) -> None:
        """Show how many images are done, and after the first one their rate and the time left.

        Calls with ``done`` 0 start the clock.
        """
        if not done:
            self._begun = time.monotonic()
        text = f"{done}/{total}" + (f", {failed} failed" if failed else "")
        seconds = time.monotonic() - self._begun
        if done and seconds > 0:
            text += f", {done / seconds:.3g}/s"
            text += f", {_duration(seconds * (total - done) / done)} left" if done < total else ""
        self._draw(text)

    def sleep(self, seconds: float) -> None:
        """Wait before another attempt of a request, and show it."""
        self._draw(f"no service, or a busy one; next attempt in {_duration(seconds)}")
        time.sleep(seconds)

    def error(self, text: str) -> None:
        erasing = "\r\x1b[K" if self._is_drawn else ""
        self._is_drawn = False
        print(erasing + printable(text), file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._is_drawn:
            self._is_drawn = False
            print(file=sys.stderr, flush=True)

    def _draw(self, text: str) -> None:
        """Replace the last line of stderr."""
        if sys.stderr.isatty():
            self._is_drawn = True
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@dataclass
class Prompt:
    """The methods of a client, which raise `ConnectionFailed` at once if nothing listens when a
    method is first used: a service that is absent is likelier than one that restarts.
    """

    client: Any

    def __getattr__(self, name: str) -> Any:
        with (
            suppress(StatusError, TimedOut, UnexpectedAnswer),
            Client(self.client.base_url, timeout=10.0, max_retries=0) as once,
        ):
            once.ready()
        vars(self)[name] = method = getattr(self.client, name)
        return method


def list_images(inputs: Sequence[str]) -> dict[Path, Path]:
    """List the input images, each with the path of its output: its name, or its path below an input
    folder.

    Hidden files and folders below a folder are left out.
    """
    images: dict[Path, Path] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            below = {file: file.relative_to(path) for file in sorted(path.rglob("*"))}
            images |= {file: name for file, name in below.items() if _is_image(file, name)}
        else:
            images[require_file(path)] = Path(path.name)
    if not images:
        raise InputError(f"no {' '.join(_IMAGE_SUFFIXES)} in {', '.join(inputs)}")
    return images


def _is_image(file: Path, below: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in below.parts)
    return not is_hidden and file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file()


def require_file(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path


def check_free(targets: Iterable[Path], force: bool, ways: str = "--force overwrites") -> None:
    """Raise `InputError` if an output exists, before any request; ``ways`` says what the user may
    do else.
    """
    taken = (target for target in targets if not force and target.exists())
    if (first := next(taken, None)) is not None:
        raise InputError(f"{first} is there already; {ways}")


def form_of(out: Path, forms: Collection[str]) -> str | None:
    """The format, one of ``forms``, of the file that `--out` names, or None for a folder."""
    suffix = out.suffix.lower()
    if not suffix or out.is_dir():
        return None
    form = SUFFIXES.get(suffix, suffix[1:])
    if form not in forms:
        raise InputError(
            f"--out {out}: expected .{' .'.join(forms)}, or a folder: a name without a suffix"
        )
    return form


def save(picture: Picture, target: Path) -> None:
    """Write an image, and the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target)


def by_source(
    call: Callable[[Any], Sequence[ResultT]], some: Sequence[Path]
) -> Iterator[tuple[Path, Sequence[ResultT]]]:
    """Each image with its results: several for the pages of a TIFF."""
    if len(some) == 1:
        # not as a list, so that errors do not number one image
        yield some[0], call(some[0])
        return
    results = call(some)
    if len(results) != len(some):  # a TIFF under another name: each image is tried again alone
        raise InputError("a file of several pages")
    yield from zip(some, ([result] for result in results), strict=True)


def pages(path: Path, count: int) -> list[Path]:
    """The path, and for each further page of its file a name of its own."""
    return [path, *(path.with_stem(f"{path.stem}.page{number}") for number in range(2, count + 1))]


def for_each_item(
    items: Iterable[T],
    total: int,
    work: Callable[[Sequence[T]], None],
    jobs: int,
    terminal: Terminal,
    *,
    group: int,
) -> int:
    """Run ``work`` for all items in threads, in groups. A rejected item does not stop the others;
    returns their number.

    Items are taken as threads become free. If ``work`` fails because of an image, it is called
    again for each item of the group alone; if the service is busy, after a pause, and with one
    thread less. An error that would stop the other items, too, is raised.
    """
    done = failed = 0
    if total:
        terminal.progress(0, total)
    items = iter(items)
    again = list[list[T]]()
    running: dict[Future[None], list[T]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                while len(running) < jobs and (
                    some := again.pop() if again else list(islice(items, group))
                ):
                    running[pool.submit(work, some)] = some
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    ended = running.pop(future)
                    error = future.exception()
                    if _again(error, ended, terminal):
                        jobs = max(1, jobs - _is_busy(error))
                        again += [[item] for item in reversed(ended)]
                    else:
                        failed += error is not None
                        done += len(ended)
                        terminal.progress(done, total, failed)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _is_busy(error: BaseException | None) -> bool:
    """Whether the service has other work, or the caller has used up its rate."""
    return isinstance(error, TooManyRequests) and error.retryable


def _again(error: BaseException | None, items: Sequence[object], terminal: Terminal) -> bool:
    """Whether to send the images of a rejected request again, each alone; if the service is busy,
    after a pause. An error that concerns all items is raised.
    """
    if error is None:
        return False
    if _is_busy(error):
        terminal.sleep(getattr(error, "retry_after", None) or _PAUSE_S)
        return True
    # an InputError: the file cannot be read or sent
    if getattr(error, "code", None) not in _IMAGE_ERRORS and not isinstance(error, InputError):
        raise error
    if len(items) == 1:
        terminal.error(f"{items[0]}: {error}")
        return False
    return True
