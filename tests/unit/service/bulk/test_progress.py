"""How far a run is, on a terminal and elsewhere."""

import io
import sys

import pytest

from service.bulk.progress import shown


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_few_and_say_what_is_left() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = shown(1000, 200, stream, clock)
    for _ in range(5):
        clock.now += 4
        progress.advance(80)
    clock.now = 21
    progress.advance(0, ["a.png: is no picture"])
    assert stream.getvalue().splitlines() == ["440/1000 pictures, 20/s, 28 s left", "a.png: is no picture"]
    clock.now = 40
    progress.advance(400)
    progress.close()
    assert stream.getvalue().splitlines()[2:] == ["1000/1000 pictures, 20/s, 1 could not be used"] * 2


def test_bad_pictures_do_not_flood_the_log() -> None:
    stream = io.StringIO()
    progress = shown(100, 0, stream, Clock())
    progress.advance(50, [f"{n}.png: bad" for n in range(50)])
    progress.advance(50, [f"{n}.png: bad" for n in range(50)])
    lines = stream.getvalue().splitlines()
    assert len(lines) == 21
    assert "the manifest lists all of them" in lines[-1]


def test_a_bar_on_a_terminal() -> None:
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    stream = Terminal()
    progress = shown(10, 4, stream)
    progress.advance(6, ["a.png: bad"])
    progress.close()
    assert "10/10" in stream.getvalue()
    assert "a.png: bad" in stream.getvalue()


def test_lines_on_a_terminal_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    stream = Terminal()
    progress = shown(1, 0, stream, Clock())
    progress.close()
    assert stream.getvalue() == "0/1 pictures, 0/s\n"
