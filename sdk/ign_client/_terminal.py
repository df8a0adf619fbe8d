"""Output of the commands: results on stdout, progress and errors on stderr."""

from typing import Final, TextIO

_CELLS: Final = 24


class Terminal:
    """Writes results, errors and a progress line, which is shown only if ``err`` is a terminal.

    Args:
        out: for results, usually stdout.
        err: for progress and errors, usually stderr.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err = out, err
        self._drawn = 0

    def result(self, text: str) -> None:
        """Write a line of output."""
        self.end()
        self._out.write(text + "\n")
        self._out.flush()

    def progress(self, done: int, total: int, failed: int = 0) -> None:
        """Draw a progress bar with numbers."""
        if not self._err.isatty():
            return
        filled = _CELLS * done // total
        text = f"[{'#' * filled:.<{_CELLS}}] {done}/{total}" + (f", {failed} failed" if failed else "")
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
