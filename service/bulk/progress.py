"""How far a run is: a bar where tqdm and a terminal are, else a line now and then."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TextIO

_EVERY_S: Final = 10.0
_MOST_TOLD: Final = 20  # bad pictures; the manifest has them all


class Progress(Protocol):
    """Hears how far a run is."""

    def advance(self, pictures: int, bad: Iterable[str] = ()) -> None:
        """So many more are done, of which these could not be used."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


def shown(total: int, done: int, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Progress on a stream.

    Args:
        total: pictures of the run.
        done: of those, what an earlier run has finished.
        stream: usually stderr.
        clock: monotonic seconds.
    """
    if stream.isatty():
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            return _Bar(tqdm(total=total, initial=done, unit=" pictures", file=stream, dynamic_ncols=True), stream)
    return Lines(total, done, stream, clock)


class _Complaints:
    """Tells of the first bad pictures, and where the others are to be found."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say, self._told = say, 0

    def hear(self, bad: Iterable[str]) -> None:
        for detail in bad:
            self._told += 1
            if self._told <= _MOST_TOLD:
                self._say(detail)
            elif self._told == _MOST_TOLD + 1:
                self._say("more pictures could not be used; the manifest lists all of them")


class Lines:
    """A line every ten seconds at most, and one at the end."""

    def __init__(self, total: int, done: int, stream: TextIO, clock: Callable[[], float]) -> None:
        self._total, self._before, self._done = total, done, done
        self._stream, self._clock = stream, clock
        self._began = self._last = clock()
        self._bad = 0
        self._complaints = _Complaints(self._say)

    def advance(self, pictures: int, bad: Iterable[str] = ()) -> None:
        """So many more are done, of which these could not be used."""
        listed = list(bad)
        self._complaints.hear(listed)
        self._done += pictures
        self._bad += len(listed)
        now = self._clock()
        if now - self._last >= _EVERY_S:
            self._last = now
            self._tell(now)

    def close(self) -> None:
        """Tell how far it came."""
        self._tell(self._clock())

    def _tell(self, now: float) -> None:
        rate = (self._done - self._before) / max(now - self._began, 1e-9)
        left = f", {(self._total - self._done) / rate:.0f} s left" if rate and self._done < self._total else ""
        bad = f", {self._bad} could not be used" if self._bad else ""
        self._say(f"{self._done}/{self._total} pictures, {rate:.0f}/s{left}{bad}")

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class _Bar:
    def __init__(self, bar: Any, stream: TextIO) -> None:
        self._bar = bar
        self._complaints = _Complaints(lambda text: bar.write(text, file=stream))

    def advance(self, pictures: int, bad: Iterable[str] = ()) -> None:
        self._complaints.hear(bad)
        self._bar.update(pictures)

    def close(self) -> None:
        self._bar.close()
