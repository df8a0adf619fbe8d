"""What a command shows: results on one stream, a progress line and what went wrong on the other."""

from typing import Final, TextIO

_CELLS: Final = 24


class Terminal:
    """The progress line is redrawn in place on a terminal, and silent elsewhere: logs hold only what went wrong.

    Args:
        out: results, usually stdout.
        err: the rest, usually stderr.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err = out, err
        self._drawn = 0

    def result(self, text: str) -> None:
        """A line of output."""
        self.end()
        self._out.write(text + "\n")
        self._out.flush()

    def progress(self, done: int, of: int, failed: int = 0) -> None:
        """Draw a bar, and the numbers behind it."""
        if not self._err.isatty():
            return
        filled = _CELLS * done // of
        text = f"[{'#' * filled:.<{_CELLS}}] {done}/{of}" + (f", {failed} failed" if failed else "")
        self._err.write("\r" + text.ljust(self._drawn))
        self._err.flush()
        self._drawn = len(text)

    def error(self, text: str) -> None:
        """A line about something that went wrong, in place of the progress line."""
        self._err.write("\r" + " " * self._drawn + "\r" if self._drawn else "")
        self._err.write(text + "\n")
        self._err.flush()
        self._drawn = 0

    def end(self) -> None:
        """Leave the progress line standing as it is."""
        if self._drawn:
            self._err.write("\n")
            self._err.flush()
            self._drawn = 0
