"""Output of the commands: results on stdout, progress and errors on stderr."""

import os
import time
from collections.abc import Callable
from typing import Final, TextIO

_CELLS: Final = 24


class ResultsClosed(Exception):
    """The pipe to which the results go is closed, as after `| head -1`."""


class Terminal:
    """Writes results, errors and a progress line, which is shown only if ``err`` is a terminal.

    Args:
        out: for results, usually stdout; None where it is closed.
        err: for progress and errors, usually stderr.
        clock: returns seconds; monotonic.
    """

    def __init__(self, out: TextIO | None, err: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._err = out, err
        self._clock = clock
        self._begun = clock()
        self._drawn = 0

    def result(self, text: str) -> None:
        """Write a line of output.

        Raises:
            ResultsClosed: whoever read the output has left.
        """
        self.end()
        if self._out is None:
            return
        try:
            self._out.write(text + "\n")
            self._out.flush()
        except BrokenPipeError as exc:
            # Python flushes stdout again when it exits; without a device to write to, it would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            raise ResultsClosed from exc

    def progress(self, done: int, total: int, failed: int = 0) -> None:
        """Draw a progress bar with numbers, and after the first picture their rate and the time left.

        Calls with ``done`` 0 start the clock.
        """
        if not done:
            self._begun = self._clock()
        if not self._err.isatty():
            return
        filled = _CELLS * done // total
        text = f"[{'#' * filled:.<{_CELLS}}] {done}/{total}" + (f", {failed} failed" if failed else "")
        seconds = self._clock() - self._begun
        if done and seconds > 0:
            text += f", {done / seconds:.3g}/s"
            text += f", {_duration(seconds * (total - done) / done)} left" if done < total else ""
        self._err.write("\r" + text.ljust(self._drawn))
        self._err.flush()
        self._drawn = len(text)

    def error(self, text: str) -> None:
        """Write a line about an error in place of the progress line."""
        self._err.write("\r" + " " * self._drawn + "\r" if self._drawn else "")
        self._err.write(text + "\n")
        self._err.flush()
        self._drawn = 0

    def end(self) -> None:
        """End the progress line."""
        if self._drawn:
            self._err.write("\n")
            self._err.flush()
            self._drawn = 0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
