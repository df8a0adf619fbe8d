"""Many pictures: which are meant, where they go, and several at a time."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final, TypeVar

from ign_client._errors import InputError, StatusError
from ign_client._terminal import Terminal

T = TypeVar("T")

_PICTURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
_PICTURE_ERRORS: Final = {"undecodable_image", "image_too_large", "too_large", "mask_size", "model_failure"}


def list_images(inputs: Sequence[str]) -> dict[Path, Path]:
    """The pictures meant, each with the name its output should have: its own, or its place in its folder.

    Raises:
        InputError: something is not there, or nothing is.
    """
    pictures: dict[Path, Path] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = [
                file for file in sorted(path.rglob("*")) if file.suffix.lower() in _PICTURE_SUFFIXES and file.is_file()
            ]
            pictures.update((file, file.relative_to(path)) for file in inside)
        else:
            pictures[require_file(path)] = Path(path.name)
    if not pictures:
        raise InputError(f"no {' '.join(_PICTURE_SUFFIXES)} in {', '.join(inputs)}")
    return pictures


def require_file(path: Path) -> Path:
    """The path of a file that is there.

    Raises:
        InputError: it is not.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path


def check_free(targets: Iterable[Path], force: bool) -> None:
    """Refuse to overwrite, before anything is done.

    Raises:
        InputError: something is there, and ``force`` is not meant.
    """
    there = [] if force else [target for target in targets if target.exists()]
    if there:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise InputError(f"{there[0]} is there already{more}; --force overwrites")


def for_each_item(
    items: Sequence[T],
    work: Callable[[T], None],
    jobs: int,
    terminal: Terminal,
    weight: Callable[[T], int] = lambda _: 1,
) -> bool:
    """Do all, several at a time; one that is refused does not keep the others from being done.

    Args:
        items: what to do,
        work: and how; called in threads.
        jobs: how many at a time.
        terminal: hears how far it is, and what was refused.
        weight: how much an item counts.

    Returns:
        Whether none was refused.

    Raises:
        IgnError, OSError: what would happen to the others as well.
    """
    total, done, failed = sum(map(weight, items)), 0, 0
    if total:
        terminal.progress(0, total)
    with ThreadPoolExecutor(jobs) as pool:
        running: dict[Future[None], T] = {pool.submit(work, item): item for item in items}
        try:
            for future in as_completed(running):
                item = running[future]
                done += weight(item)
                failed += weight(item) * _report_failure(future, item, terminal)
                terminal.progress(done, total, failed)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return not failed


def _report_failure(future: "Future[None]", item: object, terminal: Terminal) -> bool:
    """Whether it was; what is not about this item alone is raised."""
    try:
        future.result()
    except StatusError as exc:
        if exc.code not in _PICTURE_ERRORS:
            raise
        terminal.error(f"{item}: {exc}")
    except InputError as exc:  # it cannot be read
        terminal.error(f"{item}: {exc}")
    else:
        return False
    return True
