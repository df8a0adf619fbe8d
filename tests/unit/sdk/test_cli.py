"""`ign-client` as people at a shell know it."""

import json
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from ign_client import Client
from ign_client._batches import Terminal, for_each_item
from ign_client._cli import main
from ign_client._errors import TooManyRequests
from tests.contract.data import pixels
from tests.contract.harness import Service
from tests.helpers.folders import contents
from tests.helpers.live import environment
from tests.helpers.pictures import noise, save
from tests.unit.sdk.clients import CARD, SCORE, Answer, Canned, answer, limited, problem

DONE = 0
REFUSED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130
ALL = ["a.png", "b.png", "more/a.png"]


class Shell:
    """Runs a command in a folder with three images; what it printed is in `out` and `err`."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *options: object) -> None:
        self.options = options
        self.out = self.err = ""
        self._capsys = capsys

    def __call__(self, command: str, *words: object) -> int:
        try:
            return main([*map(str, self.options), *command.split(), *map(str, words)])
        finally:
            self.out, self.err = self._capsys.readouterr()


@pytest.fixture(autouse=True)
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images in `scans`, one of them deeper, and another file."""
    monkeypatch.chdir(tmp_path)
    Path("scans/more").mkdir(parents=True)
    for i, name in enumerate(ALL):
        Path("scans", name).write_bytes(save(noise(8, 8, seed=i)))
    Path("scans/notes.txt").write_text("not an image")


@pytest.fixture
def shell(service: Service, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys, "--base-url", service.url)


@pytest.fixture
def canned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Shell]:
    """Makes a shell before a service of canned responses, to which each request is sent once, one
    at a time.
    """

    def made(*answers: Answer) -> Shell:
        network: dict[str, Any] = {"transport": Canned(*answers), "sleep": lambda _: None}
        monkeypatch.setattr(
            "ign_client._cli.Client", lambda url, **options: Client(url, **options | network)
        )
        return Shell(capsys, "--retries", 0)

    return made


def names(folder: str) -> list[str]:
    return sorted(contents(folder))


def test_generate_into_a_folder(shell: Shell, service: Service) -> None:
    command = "generate -n 20 --seed 7 --offset 3 --steps 2 -o deep/out"
    assert shell(command) == DONE
    assert names("deep/out") == [f"7-{i:02}.png" for i in range(3, 23)]
    assert (shell.out, shell.err) == ("deep/out: seed 7\n", "")
    last = Path("deep/out/7-22.png").read_bytes()
    with Client(service.url, timeout=300) as client:
        assert last == client.generate(seed=7, offset=22, steps=2)[0].bytes
    for name in ("7-04.png", "7-05.png", "7-22.png"):  # an interrupted command goes on
        Path("deep/out", name).unlink()
    assert shell(command) == USAGE
    assert shell(f"{command} --skip-existing") == DONE
    assert (len(names("deep/out")), Path("deep/out/7-22.png").read_bytes()) == (20, last)
    assert shell("generate --format npy --noise-scale 0.5 --model colour -o out") == DONE
    seed = shell.out.rpartition(" ")[2].strip()  # that it chose
    assert np.load(f"out/{seed}-0.npy").shape == (3, 8, 8)
    Path("v1.2").mkdir()
    assert shell("generate --seed", "a/b c", "-o", "v1.2") == DONE
    assert names("v1.2") == ["a%2Fb c-0.png"]


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        ("generate -n 2 --columns 1 --gap 3 --scale 2", (35, 16)),
        ("interpolate Ada:0 2 3 4 --grid 2x3", (16, 24)),
        ("interpolate 1 2:3 scans/a.png --frames 4 --columns 2 --gap 2 --loop", (18, 18)),
    ],
)
def test_sheets_and_paths(shell: Shell, words: str, shape: tuple[int, int]) -> None:
    assert shell(words, "-o", "sheet.png") == DONE
    assert (pixels(Path("sheet.png").read_bytes()).shape, shell.out[:9]) == (shape, "sheet.png")
    assert shell("generate -n 100 -o large.png") == REFUSED
    assert "n: at most 64 are allowed; generate(), or a folder, " in shell.err
    assert shell("interpolate 1 2 --frames 3 --method lerp -o out") == DONE
    assert (names("out"), shell.out) == (["000.png", "001.png", "002.png"], "out: 3 frames\n")


def test_project(shell: Shell, service: Service) -> None:
    assert shell("project scans -o out --steps 2 --format jpeg --invert false") == DONE
    assert names("out") == ["a.jpg", "b.jpg", "more/a.jpg"]
    with Client(service.url, timeout=300) as client:
        (image,) = client.project("scans/b.png", steps=2, format="jpeg", invert=False)
    assert Path("out/b.jpg").read_bytes() == image.bytes
    assert (shell.out, shell.err) == ("out: 3 images\n", "")
    Path("keep.png").write_bytes(save(np.zeros((8, 8), np.uint8)))
    assert shell("project scans/a.png -o new/one.png --mask keep.png --invert false") == DONE
    np.testing.assert_array_equal(pixels(Path("new/one.png").read_bytes()), noise(8, 8, seed=0))


def test_a_bad_image_does_not_stop_the_others_and_hidden_ones_are_left_out(
    shell: Shell,
) -> None:
    for name in ("bad.png", "._a.png", ".trash/b.png"):
        Path("scans", name).parent.mkdir(exist_ok=True)
        Path("scans", name).write_bytes(b"not an image")
    assert shell("project scans -o out") == REFUSED
    assert names("out") == ALL
    assert shell.err.startswith("scans/bad.png: 422 undecodable_image: ")
    assert (shell.out, shell.err.count("\n")) == ("out: 3 images, 1 failed\n", 1)


@pytest.mark.parametrize("suffix", [".tif", ".png"])  # the bytes decide
def test_every_page_of_a_tiff_has_a_file(shell: Shell, suffix: str) -> None:
    pages = [Image.fromarray(noise(8, 8, seed=i)) for i in range(2)]
    Path(f"scans/x{suffix}").write_bytes(
        save(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    )
    assert shell("project scans -o out") == DONE
    assert names("out") == [*ALL, "x.page2.png", "x.png"]
    Path("out/x.png").unlink()
    assert shell("project scans -o out --skip-existing") == REFUSED  # its other page is there
    assert "x.page2.png is there already" in shell.err
    assert shell("score scans") == DONE
    files = [line.partition("\t")[0] for line in shell.out.splitlines()[4:]]
    assert files == [f"scans/x{suffix}", f"scans/x.page2{suffix}"]


def test_score(shell: Shell, service: Service) -> None:
    Path("scans/a\tb\x1b[2J\n\udcff.png").write_bytes(save(noise(8, 8, seed=3)))
    assert shell("score scans --invert true --resize crop") == DONE
    head, *lines = [line.split("\t") for line in shell.out.splitlines()]
    assert head == ["file", "distance", "drift", "percentile", "in_distribution"]
    # The name of a file is one cell, whatever it holds.
    assert [line[0] for line in lines] == [
        r"scans/a\tb\x1b[2J\n\udcff.png",
        *(f"scans/{name}" for name in ALL),
    ]
    with Client(service.url, timeout=300) as client:
        scores = client.score(sorted(Path("scans").rglob("*.png")), invert=True, resize="crop")
    assert [float(line[1]) for line in lines] == [score.distance for score in scores]
    assert shell("score scans --json") == DONE
    assert [list(json.loads(line)) for line in shell.out.splitlines()] == [head] * 4


@pytest.mark.parametrize(
    ("words", "left"),
    [
        *(
            ("project scans -o out", 2),
            ("generate --seed 1 -n 2 -o out", 1),
            ("interpolate 1 2 -o out", 0),
        ),
        *(("generate -o out/a.png", 0), ("interpolate 1 2 -o out/a.png", 0)),
    ],
)
def test_outputs_are_not_overwritten(shell: Shell, words: str, left: int) -> None:
    Path("out").mkdir()
    for name in ("out/a.png", "out/1-0.png"):
        Path(name).write_bytes(b"mine")
    assert shell(words) == USAGE
    assert "--force" in shell.err
    if left:
        for _ in range(2):
            assert shell(words, "--skip-existing") == DONE
    assert Path("out/a.png").read_bytes() == Path("out/1-0.png").read_bytes() == b"mine"
    assert len(names("out")) == 2 + left
    assert shell(words, "--force", "--format", "png") == DONE


TILED = limited(models=[CARD | {"tiles": {"overlap": 1}}])
BAD = problem(422, "undecodable_image")
BUSY = problem(429, "rate_limited", Retry_After="7")
GONE = httpx.ConnectError("gone")


@pytest.mark.parametrize(
    ("response", "status"),
    [
        *((problem(status), REFUSED) for status in (401, 404, 422, 500)),
        *((problem(status), UNREACHABLE) for status in (503, 504)),
        *((response, UNREACHABLE) for response in (GONE, httpx.Response(200, text="It works!"))),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
@pytest.mark.parametrize(
    "before", [[], [limited(images=1), answer()]], ids=["when asked for limits", "afterwards"]
)
def test_an_error_that_concerns_all_images_ends_the_command(
    canned: Callable[..., Shell], before: list[Any], response: Any, status: int
) -> None:
    shell = canned(*before, response, response)
    assert shell("project scans -o out --jobs 1") == status
    assert shell.err.startswith(
        "interrupted\n" if status == INTERRUPTED else "ign-client project: "
    )
    assert shell.err.count("\n") == 1
    assert names("out") == ALL[: len(before) // 2]
    assert shell.out.startswith("out: 1 of 3 images; --skip-existing ") == bool(before)


@pytest.mark.parametrize(
    ("responses", "failed"),
    [
        ([limited(images=2), answer(2), answer()], ""),
        ([TILED, answer(), answer(), answer()], ""),  # large images are sent alone
        ([limited(), BUSY, answer(), BUSY, problem(429, "queue_full"), answer(), answer()], ""),
        ([limited(), BAD, answer(), BAD, answer()], "422 undecodable_image"),
        *(
            ([limited(images=1), answer(), problem(500, code), answer()], f"500 {code}")
            for code in ("internal", "deadline_exceeded", "model_failure", "too_large")
        ),
    ],
)
def test_one_image_is_sent_again_or_fails(
    canned: Callable[..., Shell], monkeypatch: pytest.MonkeyPatch, responses: list[Any], failed: str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Terminal, "sleep", lambda _, seconds: waits.append(seconds))
    shell = canned(*responses)
    assert shell("project scans -o out --jobs 1") == (REFUSED if failed else DONE)
    assert names("out") == [name for name in ALL if not failed or name != "b.png"]
    assert shell.out == ("out: 2 images, 1 failed\n" if failed else "out: 3 images\n")
    assert shell.err.startswith(f"scans/b.png: {failed}: a reason" if failed else "")
    assert shell.err.count("\n") == bool(failed)
    assert waits == ([7, 7, 5] if len(responses) == 7 else [])


@pytest.mark.parametrize(
    ("words", "response"),
    [
        ("models", limited(models=[CARD | {"name": "\x1b]0;owned\x07\r\n\u202e"}])),
        ("score scans/a.png", problem(422, "\x1b]0;owned\x07\r\n\u202e")),
    ],
)
def test_nothing_that_a_server_says_controls_the_terminal(
    canned: Callable[..., Shell], words: str, response: httpx.Response
) -> None:
    shell = canned(response)
    shell(words)
    lines = (shell.out + shell.err).splitlines()
    assert len(lines) == 2
    assert all(cell.isprintable() for line in lines for cell in line.split("\t"))


def test_scores_before_an_error_are_shown(canned: Callable[..., Shell]) -> None:
    shell = canned(
        limited(images=1),
        answer(images=[SCORE | {"percentile": 12.5}]),
        answer(images=[SCORE]),
        GONE,
    )
    assert shell("score scans --jobs 1") == UNREACHABLE
    assert shell.out.splitlines()[1:] == [
        "scans/a.png\t0.5\t0.25\t12.5\t-",
        "scans/b.png\t0.5\t0.25\t-\t-",
    ]


def test_it_is_sent_fewer_requests_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    full = threading.Barrier(3)
    lock = threading.Lock()
    running: set[int] = set()
    at_a_time: list[int] = []

    def work(some: Sequence[int]) -> None:
        with lock:
            running.update(some)
            at_a_time.append(len(running))
            is_busy = len(at_a_time) <= 3
        if is_busy:
            full.wait(60)
        running.difference_update(some)
        if is_busy:
            raise TooManyRequests(429, "over_share", "full", None, None, retryable=True)

    monkeypatch.setattr(Terminal, "sleep", lambda *_: None)
    assert for_each_item(range(20), 20, work, 3, Terminal(), group=1) == 0
    assert (max(at_a_time[:3]), set(at_a_time[6:]), len(at_a_time)) == (3, {1}, 23)


def test_any_number_of_images_takes_little_memory(canned: Callable[..., Shell]) -> None:
    Path("out").mkdir()
    Path("out/5-000000000.png").write_bytes(b"mine")
    shell = canned(answer(16, 1), answer(16, 17), *[KeyboardInterrupt()] * 40)
    tracemalloc.start()
    try:
        assert (
            shell("generate -n 1000000000 --seed 5 -o out --jobs 1 --skip-existing") == INTERRUPTED
        )
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert len(names("out")) == 33
    assert "32 of 999999999 images; --seed 5 --skip-existing " in shell.out


def test_an_image_that_vanishes_does_not_stop_the_others(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def vanishing(self: Path) -> bytes:
        if self.name == "b.png":
            self.unlink()
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", vanishing)
    assert shell("project scans -o out") == REFUSED
    assert shell.err.startswith("scans/b.png: images: ")
    assert names("out") == ["a.png", "more/a.png"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("project missing.png -o out", "missing.png: no such file"),
        ("project empty -o out", "no .png .jpg .jpeg .webp .tif .tiff .bmp .gif .avif in empty"),
        ("project scans/a.png -o out --mask missing.png", "missing.png: no such file"),
        (
            "project scans/a.png scans/more/a.png -o out",
            "scans/a.png and scans/more/a.png would both become out/a.png",
        ),
        ("project scans -o a.png", "scans/a.png and scans/more/a.png would both become a.png; "),
        ("interpolate 1 two.png -o x.gif", "two.png: no such file"),
        ("generate -n 0 -o out", "-n: expected 1 or more"),
        ("generate -o out --columns 2", "--columns: "),
        ("interpolate 1 2 -o out --gap 2", "--gap: "),
        ("generate -o out.jpg --format webp", "--format webp: --out out.jpg is jpeg"),
        ("--deadline -1 generate -o out", "deadline: expected seconds above 0"),
        ("--base-url nowhere generate -o out", "base_url: expected"),
        ("", "usage: ign-client "),
        ("generate", "usage: ign-client generate "),
        ("generate -o x.gif", "--out x.gif: expected .png .jpeg .webp .npy, or a folder"),
        ("interpolate 1 2 -o x.y", "--out x.y: expected .png .jpeg .webp .npy .gif .apng, or "),
        ("project scans -o x.pdf", "--out x.pdf: expected .png "),
        ("generate --out=", "usage: ign-client generate "),
        ("generate -o x --jobs 0", "usage: ign-client generate "),
        ("generate -o x --n 3", "usage: ign-client "),
        ("interpolate 1 2 -o x --jobs 2", "usage: ign-client "),
        ("interpolate 1 2 3 4 --grid 5 -o y.png", "usage: ign-client interpolate "),
        ("generate -o x --noise-scale nan", "usage: ign-client generate "),
    ],
)
def test_commands_that_cannot_be_carried_out(shell: Shell, words: str, text: str) -> None:
    Path("empty").mkdir()
    before = names(".")
    if text.startswith("usage: "):
        with pytest.raises(SystemExit, match=str(USAGE)):
            shell(words)
        assert shell.err.startswith(text)
    else:
        assert shell(words) == USAGE
        assert shell.err.partition(": ")[2].startswith(text)
    assert names(".") == before


def test_progress_tells_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    now = iter([0.0, 0.0, 0.0, 10.0])
    clock = SimpleNamespace(monotonic=lambda: next(now), sleep=lambda _: None)
    monkeypatch.setattr("ign_client._batches.time", clock)
    terminal = Terminal()
    terminal.progress(0, 100)
    terminal.progress(10, 100)
    terminal.sleep(0.0)
    terminal.error("x: no")  # takes its place
    terminal.sleep(0.0)
    terminal.end()
    shown = capsys.readouterr().err
    assert shown.startswith("\r0/100\x1b[K\r10/100, 1/s, 1 min 30 s left\x1b[K\rno service")
    assert "\r\x1b[Kx: no\n\rno service" in shown
    assert shown.endswith("\x1b[K\n")


@pytest.mark.parametrize("redirection", ["", ">&-", "| true"])
def test_as_a_process(service: Service, redirection: str) -> None:
    """The environment says where the service is; nobody has to read the results."""
    program = "import sys; from ign_client._cli import main; sys.exit(main())"
    command = (
        f"{sys.executable} -c '{program}' --retries 0 generate --seed 7 -o seven.png "
        f"--force {redirection}"
    )
    reached, missed = (
        subprocess.run(
            ["bash", "-c", command],
            env=environment(IGN_BASE_URL=url, NO_PROXY="*"),
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        for url in (service.url, "http://127.0.0.1:1")
    )
    assert (reached.returncode, reached.stderr) == (DONE, "")
    assert reached.stdout == ("" if redirection else "seven.png: seed 7\n")
    assert "seven.png" in names(".")
    assert missed.returncode == (DONE if "|" in redirection else UNREACHABLE)
    assert missed.stderr.startswith("ign-client generate: POST /generate: ")
    assert missed.stderr.count("\n") == 1
