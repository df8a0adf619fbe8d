"""The metrics of several processes as one.

Each of several processes writes its metrics to a file every second, and a scrape adds up the files.
A process that replaces another one takes over its file, and goes on from the counters there. Files
are replaced whole and never mapped, so on a full disk they stay as they are, and `/metrics` fails.
"""

import contextlib
import operator
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

# the gauges of a process that has not written its file for so long do not count
FRESH_S: Final = 10.0

Texts = Iterable[tuple[str, bool]]
"""The metrics of processes, and whether each is alive, so that its gauges count."""
Combine = Mapping[str, Callable[[float, float], float]]
"""How two series of a metric become one, by the metric's name."""


def add_up(texts: Texts, combine: Combine = MappingProxyType({})) -> bytes:
    """One text of several, each with or without its gauges: equal series become one, by ``combine``
    or added.
    """
    families: dict[str, dict[str, float]] = {}
    for text, with_gauges in texts:
        for family in f"\n{text}".split("\n# HELP ")[1:]:
            head, kind, *lines = family.strip("\n").split("\n")
            values = families.setdefault(f"# HELP {head}\n{kind}", {})
            both: Callable[..., float] = combine.get(head.partition(" ")[0], operator.add)
            if with_gauges or not kind.endswith(" gauge"):
                for series, _, value in (line.rpartition(" ") for line in lines):
                    values[series] = (
                        both(values[series], float(value)) if series in values else float(value)
                    )
    lines = [
        line
        for head, values in families.items()
        for line in (head, *(f"{k} {v}" for k, v in values.items()))
    ]
    return "\n".join([*lines, ""]).encode()


class SharedTexts(Protocol):
    """Where processes leave their metrics for each other."""

    def earlier(self) -> str:
        """The metrics of the processes that this one replaces."""
        ...

    def write(self, text: bytes) -> None:
        """Leave the metrics of this process, in place of those it has left before; may raise
        OSError.
        """
        ...

    def read(self) -> Texts:
        """The metrics of each process, and whether it is alive, so that its gauges count."""
        ...


class SharedFiles:
    """A folder with a file for each process; ``file`` is that of this one."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def earlier(self) -> str:
        """As `SharedTexts`."""
        return self._read(self._file)[0]

    def write(self, text: bytes) -> None:
        """As `SharedTexts`."""
        # a program that cleans folders may have removed it
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        new = self._file.with_suffix(".new")
        new.write_bytes(text)
        new.replace(self._file)

    def read(self) -> Texts:
        """As `SharedTexts`."""
        return map(self._read, self._file.parent.glob(f"*{self._file.suffix}"))

    @staticmethod
    def _read(file: Path) -> tuple[str, bool]:
        with contextlib.suppress(OSError):
            return file.read_bytes().decode(), time.time() - file.stat().st_mtime < FRESH_S
        return "", False
