"""Work on many pictures: list the inputs, check the outputs, run several requests at a time."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final, TypeVar

from ign_client._errors import InputError, StatusError
from ign_client._terminal import Terminal

T = TypeVar("T")

_PICTURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
_PICTURE_ERRORS: Final = {"undecodable_image", "image_too_large", "too_large", "mask_size", "model_failure"}


def list_images(inputs: Sequence[str]) -> dict[Path, Path]:
    """List the input pictures, each with the relative path of its output.

    The output of a file has the name of the file. The output of a file in a folder has its path below the folder.
    Hidden files and folders below a folder are left out.

    Raises:
        InputError: an input does not exist, or there is no picture.
    """
    pictures: dict[Path, Path] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            below = {file: file.relative_to(path) for file in sorted(path.rglob("*"))}
            pictures |= {file: name for file, name in below.items() if _is_picture(file, name)}
        else:
            pictures[require_file(path)] = Path(path.name)
    if not pictures:
        raise InputError(f"no {' '.join(_PICTURE_SUFFIXES)} in {', '.join(inputs)}")
    return pictures


def _is_picture(file: Path, below: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in below.parts)
    return not is_hidden and file.suffix.lower() in _PICTURE_SUFFIXES and file.is_file()


def require_file(path: Path) -> Path:
    """Return the path of an existing file.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path


def check_free(targets: Iterable[Path], force: bool, ways: str = "--force overwrites") -> None:
    """Check before any request that no output exists; ``ways`` says what the user may do else.

    Raises:
        InputError: an output exists, and ``force`` is False.
    """
    taken = [] if force else [target for target in targets if target.exists()]
    if taken:
        more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
        raise InputError(f"{taken[0]} is there already{more}; {ways}")


def for_each_item(
    items: Sequence[T], work: Callable[[Sequence[T]], None], jobs: int, terminal: Terminal, *, group: int
) -> int:
    """Run ``work`` for all items in threads, in groups. A rejected item does not stop the others.

    Args:
        items: one for each picture.
        work: processes the items of a group; called from several threads. If it fails because of a picture, it is
            called again for each item alone.
        jobs: number of threads.
        terminal: shows the progress and the rejected items.
        group: most items of a group.

    Returns:
        The number of rejected items.

    Raises:
        IgnError, OSError: an error that would stop the other items, too.
    """
    done = failed = 0
    if items:
        terminal.progress(0, len(items))
    with ThreadPoolExecutor(jobs) as pool:
        groups = [items[start : start + group] for start in range(0, len(items), group)]
        running = {pool.submit(work, each): each for each in groups}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    ended = running.pop(future)
                    error = _picture_error(future)
                    if error is not None and len(ended) > 1:
                        running |= {pool.submit(work, [item]): [item] for item in ended}
                        continue
                    if error is not None:
                        terminal.error(f"{ended[0]}: {error}")
                        failed += 1
                    done += len(ended)
                    terminal.progress(done, len(items), failed)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _picture_error(future: "Future[None]") -> StatusError | InputError | None:
    """The error that rejects a picture; None if there is none. An error that concerns all items is raised."""
    try:
        future.result()
    except StatusError as exc:
        if exc.code not in _PICTURE_ERRORS:
            raise
        return exc
    except InputError as exc:  # the file cannot be read or sent
        return exc
    return None
