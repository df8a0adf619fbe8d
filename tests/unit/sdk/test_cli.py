"""`ign-client` as people at a shell know it."""

import io
import json
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from ign_client import Client
from ign_client._batches import Terminal, for_each_item
from ign_client._cli import main, parser, run
from ign_client._errors import Problem, TooManyRequests
from tests.contract.data import frames, pixels
from tests.contract.harness import Service
from tests.helpers.live import environment
from tests.helpers.pictures import noise, save
from tests.unit.sdk.clients import MODEL, SCORE, Answer, Canned, answer, limited, problem

PICTURE = save(noise(8, 8, seed=1))
DONE, REFUSED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
ONE = ("--retries", 0)  # before a command


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


class Shell:
    """Runs a command; what it printed is in `out` and `err`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.out = self.err = ""

    def __call__(self, *words: object, terminal: bool = False) -> int:
        out, err = Screen(terminal), Screen(terminal)
        try:
            return main(["--base-url", self.url, *map(str, words)], Terminal(out, err))
        finally:
            self.out, self.err = out.getvalue(), err.getvalue()


@pytest.fixture
def shell(service: Service) -> Shell:
    return Shell(service.url)


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shell]:
    """Makes a shell before a service of canned responses."""

    def made(*answers: Answer) -> Shell:
        network: dict[str, Any] = {"transport": Canned(*answers), "sleep": lambda _: None}
        monkeypatch.setattr("ign_client._cli.Client", lambda url, **options: Client(url, **options | network))
        return Shell("http://x")

    return made


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three images, one of them deeper, and another file."""
    folder = tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "more/a.png")):
        (folder / name).write_bytes(save(noise(8, 8, seed=i)))
    (folder / "notes.txt").write_text("not an image")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_generate_into_a_folder(shell: Shell, service: Service, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    command = ("generate", "-n", 20, "--seed", 7, "--offset", 3, "--steps", 2, "-o", out)
    assert shell(*command) == DONE
    assert names(out) == [f"7-{i:02}.png" for i in range(3, 23)]
    assert (shell.out, shell.err) == (f"{out}: seed 7\n", "")
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    with Client(service.url, timeout=300) as client:
        assert whole["7-22.png"] == client.generate(seed=7, offset=22, steps=2)[0].bytes
    for name in ("7-04.png", "7-05.png", "7-09.png"):  # an interrupted command goes on
        (out / name).unlink()
    assert shell(*command) == USAGE
    assert shell(*command, "--skip-existing") == DONE
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    assert shell("generate", "-o", out, "--format", "npy", "--noise-scale", 0.5, "--model", "colour") == DONE
    seed = shell.out.rpartition(" ")[2].strip()  # that it chose
    assert np.load(out / f"{seed}-0.npy").shape == (3, 8, 8)


def test_a_text_is_a_seed(shell: Shell, tmp_path: Path) -> None:
    command = ("generate", "--seed", "a/b c", "-o", tmp_path)
    assert shell(*command) == DONE
    assert shell(*command, "--skip-existing") == DONE
    assert names(tmp_path) == ["a%2Fb c-0.png"]
    assert shell("interpolate", "Ada:0", "1", "--frames", 2, "-o", tmp_path / "walk") == DONE
    assert shell("generate", "--seed", "Ada", "-o", tmp_path) == DONE
    assert (tmp_path / "Ada-0.png").read_bytes() == (tmp_path / "walk" / "000.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        (("generate", "-n", 4), (16, 16)),
        (("generate", "-n", 2, "--columns", 1, "--gap", 3, "--scale", 2), (35, 16)),
        (("generate", "-n", 2, "--scale", 32, "--resample", "smooth"), (256, 512)),
        (("interpolate", 1, 2, 3, 4, "--grid", "2x3"), (16, 24)),
        (("interpolate", 1, 2, "--frames", 4, "--columns", 2, "--gap", 2), (18, 18)),
    ],
)
def test_sheets(shell: Shell, tmp_path: Path, words: Any, shape: tuple[int, int]) -> None:
    target = tmp_path / "sheet.png"
    assert shell(*words, "-o", target) == DONE
    assert pixels(target.read_bytes()).shape == shape
    assert shell.out.startswith(str(target))


def test_project_a_folder(shell: Shell, service: Service, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert shell("project", scans, "-o", out, "--steps", 2, "--format", "jpeg", "--invert", "false") == DONE
    assert names(out) == ["a.jpg", "b.jpg", "more/a.jpg"]
    with Client(service.url, timeout=300) as client:
        (image,) = client.project(scans / "b.png", steps=2, format="jpeg", invert=False)
    assert (out / "b.jpg").read_bytes() == image.bytes
    assert (shell.out, shell.err) == (f"{out}: 3 images\n", "")
    assert shell("project", scans, "-o", tmp_path / "large", "--scale", 32, "--resample", "smooth") == DONE
    assert pixels((tmp_path / "large" / "a.png").read_bytes()).shape == (256, 256)


def test_project_one_image_with_a_mask(shell: Shell, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.png").write_bytes(save(np.zeros((8, 8), np.uint8)))
    target = tmp_path / "new" / "one.png"
    assert shell("project", scans / "a.png", "-o", target, "--mask", tmp_path / "keep.png", "--invert", "false") == DONE
    np.testing.assert_array_equal(pixels(target.read_bytes()), noise(8, 8, seed=0))
    assert shell("project", scans, "-o", tmp_path / "several.png") == USAGE
    assert not (tmp_path / "several.png").exists()


def test_a_bad_image_does_not_stop_the_others(shell: Shell, scans: Path, tmp_path: Path) -> None:
    (scans / "bad.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    assert shell("project", scans, "-o", out) == REFUSED
    assert names(out) == ["a.png", "b.png", "more/a.png"]
    assert shell.err.startswith(f"{scans / 'bad.png'}: 422 undecodable_image: ")
    assert shell.err.count("\n") == 1
    assert shell.out == f"{out}: 3 images, 1 failed\n"
    assert shell("project", scans, "-o", out, "--force", "--jobs", 1, terminal=True) == REFUSED
    assert shell.err.startswith("\r[........................] 0/4\r[")
    assert shell.err.split("\r")[-1].startswith("[########################] 4/4, 1 failed")
    assert f"\r{scans / 'bad.png'}: 422 " in shell.err


@pytest.mark.parametrize("suffix", [".tif", ".png"])  # the bytes decide
def test_every_page_of_a_tiff_has_a_file(shell: Shell, scans: Path, tmp_path: Path, suffix: str) -> None:
    pages = [Image.fromarray(noise(8, 8, seed=i)) for i in range(3)]
    (scans / f"scan{suffix}").write_bytes(save(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    out = tmp_path / "out"
    assert shell("project", scans, "-o", out) == DONE
    assert names(out) == ["a.png", "b.png", "more/a.png", "scan.page2.png", "scan.page3.png", "scan.png"]
    assert (out / "scan.page2.png").read_bytes() == (out / "b.png").read_bytes()
    (out / "scan.png").unlink()
    assert shell("project", scans, "-o", out, "--skip-existing") == REFUSED  # its other pages are there
    assert "scan.page2.png is there already" in shell.err
    assert shell("score", scans) == DONE
    lines = dict(line.split("\t", 1) for line in shell.out.splitlines()[1:])
    assert len(lines) == 6
    assert lines[str(scans / f"scan.page2{suffix}")] == lines[str(scans / "b.png")]


def test_hidden_files_of_a_folder_are_left_out(shell: Shell, scans: Path, tmp_path: Path) -> None:
    for name in ("._a.png", ".trash/b.png"):
        (scans / name).parent.mkdir(exist_ok=True)
        (scans / name).write_bytes(b"not an image")
    hidden = scans.rename(tmp_path / ".scans")  # the folder itself is asked for
    assert shell("project", hidden, "-o", tmp_path / "out") == DONE
    assert names(tmp_path / "out") == ["a.png", "b.png", "more/a.png"]
    assert shell("project", hidden / "._a.png", "-o", tmp_path / "out") == REFUSED


def test_a_request_has_several_images_until_one_is_rejected(
    canned: Callable[..., Shell], scans: Path, tmp_path: Path
) -> None:
    shell = canned(limited(images=2), answer(2), answer())
    assert shell(*ONE, "project", scans, "-o", tmp_path / "out", "--jobs", 1) == DONE
    assert names(tmp_path / "out") == ["a.png", "b.png", "more/a.png"]
    bad = problem(422, "undecodable_image")
    shell = canned(limited(), bad, answer(), bad, answer())
    assert shell(*ONE, "project", scans, "-o", tmp_path / "again", "--jobs", 1) == REFUSED
    assert names(tmp_path / "again") == ["a.png", "more/a.png"]
    assert f"{scans / 'b.png'}: 422 undecodable_image" in shell.err


def test_an_image_that_vanishes(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gone.png", "x.png"):
        (tmp_path / name).write_bytes(PICTURE)
    read = Path.read_bytes

    def vanishing(self: Path) -> bytes:
        if self.name == "gone.png":
            self.unlink()
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", vanishing)
    assert shell("project", tmp_path, "-o", tmp_path / "out") == REFUSED
    assert shell.err.startswith(f"{tmp_path / 'gone.png'}: images: ")
    assert names(tmp_path / "out") == ["x.png"]


def test_interpolate(shell: Shell, service: Service, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PICTURE)
    target, out = tmp_path / "walk.gif", tmp_path / "out"
    words = ("interpolate", 1, "2:3", tmp_path / "x.png", "--frames", 7, "--loop", "--fps", 10, "-o", target)
    assert shell(*words) == DONE
    assert len(frames(target.read_bytes())) == 7
    assert shell.out == f"{target}\n"
    assert shell("interpolate", 1, 2, "--frames", 3, "--method", "lerp", "-o", out) == DONE
    assert names(out) == ["000.png", "001.png", "002.png"]
    assert shell.out == f"{out}: 3 frames\n"
    with Client(service.url, timeout=300) as client:
        assert (out / "002.png").read_bytes() == client.generate(seed=2)[0].bytes


def test_score(shell: Shell, service: Service, scans: Path) -> None:
    assert shell("score", scans, "--invert", "true", "--resize", "crop") == DONE
    head, *lines = [line.split("\t") for line in shell.out.splitlines()]
    assert head == ["file", "distance", "drift", "percentile", "in_distribution"]
    assert [line[0] for line in lines] == [str(scans / name) for name in ("a.png", "b.png", "more/a.png")]
    with Client(service.url, timeout=300) as client:
        scores = client.score([Path(line[0]) for line in lines], invert=True, resize="crop")
    assert [float(line[1]) for line in lines] == [score.distance for score in scores]
    assert shell("score", scans, "--json") == DONE
    assert [list(json.loads(line)) for line in shell.out.splitlines()] == [head] * 3


@pytest.mark.parametrize(("percentile", "usual", "shown"), [(None, None, "-\t-"), (12.5, True, "12.5\ttrue")])
def test_scores_of_models_with_and_without_measures(
    canned: Callable[..., Shell], tmp_path: Path, percentile: float | None, usual: bool | None, shown: str
) -> None:
    (tmp_path / "x.png").write_bytes(PICTURE)
    shell = canned(answer(images=[SCORE | {"percentile": percentile, "in_distribution": usual}]))
    assert shell("score", tmp_path / "x.png", terminal=True) == DONE
    assert shell.out.splitlines()[1] == f"{tmp_path / 'x.png'}\t0.5\t0.25\t{shown}"
    assert shell.err.startswith("\r[........................] 0/1\r[########################] 1/1")


def test_models(shell: Shell, service: Service) -> None:
    assert shell("models") == DONE
    head, *lines = [line.split("\t") for line in shell.out.splitlines()]
    assert head == ["model", "shape", "device", "default"]
    with Client(service.url, timeout=300) as client:
        served = client.models()
    assert [line[0] for line in lines] == [card.ref for card in served]
    assert [line[0] for line in lines if line[3] == "yes"] == [served.default]


def test_outputs_are_not_overwritten(shell: Shell, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.png", "b.png"):
        (out / name).write_bytes(b"mine")
    assert shell("project", scans, "-o", out) == USAGE
    assert all(text in shell.err for text in (str(out / "a.png"), "--force", "--skip-existing"))
    assert names(out) == ["a.png", "b.png"]
    for _ in range(2):
        assert shell("project", scans, "-o", out, "--skip-existing") == DONE
        assert ((out / "a.png").read_bytes(), names(out)) == (b"mine", ["a.png", "b.png", "more/a.png"])
    assert shell("project", scans, "-o", out, "--force") == DONE
    assert (out / "a.png").read_bytes() != b"mine"


@pytest.mark.parametrize("words", [("generate", "--seed", 1), ("interpolate", 1, 2)])
@pytest.mark.parametrize("out", [".", "taken.png"])
def test_nor_by_the_others(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").write_bytes(b"mine")
    (tmp_path / "1-0.png").write_bytes(b"mine")
    assert shell(*words, "-o", out) == USAGE
    assert "--force" in shell.err
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"mine"}
    assert shell(*words, "-o", out, "--force") == DONE


@pytest.mark.parametrize("words", [("generate",), ("interpolate", 1, 2), ("project", "x.png")])
def test_a_format_that_the_name_of_the_output_denies(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").write_bytes(PICTURE)
    assert shell(*words, "--format", "webp", "-o", "out.jpg") == USAGE
    assert "--format webp" in shell.err
    assert "out.jpg is jpeg" in shell.err
    assert names(tmp_path) == ["x.png"]
    assert shell(*words, "--format", "jpeg", "-o", "out.jpg") == DONE
    assert (tmp_path / "out.jpg").read_bytes().startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("response", "status"),
    [
        *((problem(status), REFUSED) for status in (401, 404, 422, 500)),
        *((problem(status), UNREACHABLE) for status in (429, 503, 504)),
        (httpx.ConnectError("refused"), UNREACHABLE),
        (httpx.ReadTimeout("slow"), UNREACHABLE),
        (httpx.Response(200, text="It works!"), UNREACHABLE),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
@pytest.mark.parametrize("before", [(), (limited(images=1),)], ids=["when asked for limits", "afterwards"])
def test_an_error_that_concerns_all_images_ends_the_command(
    canned: Callable[..., Shell], scans: Path, tmp_path: Path, before: tuple[Any, ...], response: Any, status: int
) -> None:
    shell = canned(*before, *[response] * 3)
    assert shell(*ONE, "project", scans, "-o", tmp_path / "out", "--jobs", 1) == status
    assert shell.err == "interrupted\n" if status == INTERRUPTED else shell.err.startswith("ign-client project: ")
    assert shell.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("code", ["over_share", "queue_full", "would_miss_deadline"])
def test_a_busy_service_is_waited_for(
    canned: Callable[..., Shell], scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Terminal, "sleep", lambda _, seconds: waits.append(seconds))
    busy = [problem(429, code, Retry_After="7"), problem(429, code)]
    shell = canned(limited(), busy[0], answer(), *busy, answer(), answer())
    assert shell(*ONE, "project", scans, "-o", tmp_path / "out", "--jobs", 1) == DONE
    assert waits[:2] == [7, 7]
    assert len(waits) == 3
    assert names(tmp_path / "out") == ["a.png", "b.png", "more/a.png"]
    assert shell.err == ""


def test_it_is_sent_fewer_requests_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at_a_time: list[int] = []
    running, lock = 0, threading.Lock()
    full = threading.Barrier(3)

    def work(some: Sequence[int]) -> None:
        nonlocal running
        with lock:
            running += 1
            at_a_time.append(running)
            is_first = len(at_a_time) <= 3
        if is_first:
            full.wait(60)
        with lock:
            running -= 1
        if is_first:
            raise TooManyRequests(Problem(status=429, code="over_share", detail="full", retry_after=2))

    waits: list[float] = []
    monkeypatch.setattr(Terminal, "sleep", lambda _, seconds: waits.append(seconds))
    assert for_each_item(range(20), 20, work, 3, Terminal(None, io.StringIO()), group=1) == 0
    assert waits == [2, 2, 2]
    assert max(at_a_time[:3]) == 3
    assert set(at_a_time[6:]) == {1}
    assert len(at_a_time) == 23


@pytest.mark.parametrize("code", ["internal", "deadline_exceeded", "model_failure", "too_large"])
def test_an_image_that_the_service_fails_on_is_a_line(
    canned: Callable[..., Shell], scans: Path, tmp_path: Path, code: str
) -> None:
    shell = canned(limited(images=1), answer(), problem(500, code), answer())
    assert shell(*ONE, "project", scans, "-o", tmp_path / "out", "--jobs", 1) == REFUSED
    assert names(tmp_path / "out") == ["a.png", "more/a.png"]
    assert shell.err.startswith(f"{scans / 'b.png'}: 500 {code}: ")
    assert shell.out == f"{tmp_path / 'out'}: 2 images, 1 failed\n"


def test_large_images_are_sent_alone(canned: Callable[..., Shell], scans: Path, tmp_path: Path) -> None:
    tiled = {**MODEL, "shape": [1, 8, 8], "range": [-1, 1], "device": "cpu", "provider": "x", "tiles": {"overlap": 1}}
    models = limited().json() | {"models": [tiled]}
    shell = canned(httpx.Response(200, json=models), answer(), answer(), answer())
    assert shell(*ONE, "project", scans, "-o", tmp_path / "out", "--jobs", 1) == DONE


def test_images_saved_before_an_error_are_counted(canned: Callable[..., Shell], scans: Path, tmp_path: Path) -> None:
    gone = [httpx.ConnectError("gone")] * 2
    out = tmp_path / "out"
    shell = canned(limited(images=1), answer(), *gone)
    assert shell(*ONE, "project", scans, "-o", out, "--jobs", 1) == UNREACHABLE
    assert shell.out.startswith(f"{out}: 1 of 3 images; --skip-existing ")
    assert names(out) == ["a.png"]
    shell = canned(limited(images=1), answer(images=[SCORE]), *gone)
    assert shell(*ONE, "score", scans, "--jobs", 1) == UNREACHABLE
    assert [line.partition("\t")[0] for line in shell.out.splitlines()] == ["file", str(scans / "a.png")]
    shell = canned(answer(), *[KeyboardInterrupt()] * 40)
    command = ("generate", "-n", 40, "--scale", 32, "--seed", 5, "-o", out, "--jobs", 1)
    assert shell(*command) == INTERRUPTED
    assert shell.out.startswith(f"{out}: 1 of 40 images; --seed 5 --skip-existing ")


@pytest.mark.parametrize("more", [(), ("--skip-existing",)])
def test_any_number_of_images_takes_little_memory(
    canned: Callable[..., Shell], tmp_path: Path, more: tuple[str, ...]
) -> None:
    (tmp_path / f"5-{'0' * (9 if more else 8)}.png").write_bytes(b"mine")
    command = ("generate", "-n", 10**9, "--seed", 5, "-o", tmp_path, "--jobs", 1)
    start = len(more)
    shell = canned(answer(16, start), answer(16, start + 16), *[KeyboardInterrupt()] * 40)
    tracemalloc.start()
    try:
        assert shell(*command, *more) == INTERRUPTED
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert len(names(tmp_path)) == 33
    assert f"32 of {10**9 - start} images" in shell.out


def test_retries_and_a_hint_if_there_is_no_service(canned: Callable[..., Shell], tmp_path: Path) -> None:
    shell = canned(problem(503), problem(503), answer())
    assert shell("--timeout", 5, "generate", "-o", tmp_path) == DONE
    canned(httpx.ConnectError("refused"))
    err = io.StringIO()
    options = parser().parse_args(["--retries", "0", "models"])
    assert run(options, Terminal(None, err), "start one") == UNREACHABLE
    assert err.getvalue().endswith("\nstart one\n")


def test_a_disk_that_is_full(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, other: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for out in (tmp_path, tmp_path / "x.png"):
        assert shell("generate", "-o", out) == REFUSED
        assert "No space left on device" in shell.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("project missing.png -o out", "missing.png: no such file"),
        ("project empty -o out", "no .png .jpg .jpeg .webp .tif .tiff .bmp .gif .avif in empty"),
        ("score missing", "missing: no such file"),
        ("project x.png -o out --mask missing.png", "missing.png: no such file"),
        ("project x.png x.jpg -o out", "x.png and x.jpg would both become out/x.png"),
        ("interpolate 1 two.png -o x.gif", "two.png: no such file"),
        ("generate -n 0 -o out", "-n: expected 1 or more"),
        ("--deadline -1 generate -o out", "deadline: expected seconds above 0"),
        *((f"{command} -o out --columns 2", "--columns: ") for command in ("generate", "interpolate 1 2")),
        *((f"{command} -o out --gap 2", "--gap: ") for command in ("generate", "interpolate 1 2")),
        ("--timeout 0 generate -o out", "timeout: expected seconds above 0"),
        ("--retries -1 generate -o out", "max_retries: expected 0 or more"),
        ("--base-url nowhere generate -o out", "base_url: expected"),
    ],
)
def test_commands_that_cannot_be_carried_out(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("x.png", "x.jpg"):
        (tmp_path / name).write_bytes(PICTURE)
    assert shell(*words.split()) == USAGE
    assert shell.err.partition(": ")[2].startswith(text)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("", ""),
        ("", "dance"),
        ("generate", ""),
        ("generate", "-o  "),
        ("generate", "-o x.bmp"),
        ("generate", "-o x --jobs 0"),
        ("generate", "-o x --jobs many"),
        ("interpolate", "1 2 -o x --jobs 2"),
        ("interpolate", "1 2 3 4 --grid 5 -o y.png"),
        ("generate", "-o x --noise-scale much"),
        ("generate", "-o x --noise-scale nan"),
        ("generate", "-o x --resample bent"),
        ("project", "-o x"),
        ("project", "x.png -o x --url nowhere"),
    ],
)
def test_usage(shell: Shell, command: str, options: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        shell(*command.split(), *(options.split(" ") if options else ()))
    assert caught.value.code == USAGE
    assert capsys.readouterr().err.startswith(f"usage: ign-client {command}".strip())


def test_progress_tells_rate_and_time_left() -> None:
    now, err = [0.0], Screen(terminal=True)
    terminal = Terminal(io.StringIO(), err, clock=lambda: now[0])
    terminal.sleep(0.0)
    assert "next attempt in 0 s" in err.getvalue()
    terminal.end()
    err.truncate(err.seek(0))
    terminal.progress(0, 2)
    terminal.error("x: no")  # takes its place
    terminal.progress(2, 2)
    terminal.result("done")
    empty, full = "." * 24, "#" * 24
    assert err.getvalue() == f"\r[{empty}] 0/2\r{' ' * 30}\rx: no\n\r[{full}] 2/2\n"
    err.truncate(err.seek(0))
    terminal.progress(0, 100)
    for now[0], done in ((2.0, 10), (10.0, 50), (20.0, 100)):
        terminal.progress(done, 100)
    shown = [text.split("] ")[1].rstrip() for text in err.getvalue().split("\r")[1:]]
    assert shown == ["0/100", "10/100, 5/s, 18 s left", "50/100, 5/s, 10 s left", "100/100, 5/s"]
    now[0] = 0.0
    terminal.progress(0, 1000)
    now[0] = 10.0
    terminal.progress(100, 1000, 2)
    assert err.getvalue().endswith("100/1000, 2 failed, 10/s, 1 min 30 s left")


@pytest.mark.parametrize("redirection", ["", ">&-", "| true"])
def test_as_a_process(service: Service, tmp_path: Path, redirection: str) -> None:
    """The environment says where the service is; nobody has to read the results."""
    program = "import sys; from ign_client._cli import main; sys.exit(main())"
    command = f"{sys.executable} -c '{program}' --retries 0 generate --seed 7 -o {{}} {redirection}"
    for name, url in (("seven.png", service.url), ("eight.png", "http://127.0.0.1:1")):
        done = subprocess.run(
            ["bash", "-c", command.format(name)],
            cwd=tmp_path,
            env=environment(IGN_BASE_URL=url, NO_PROXY="*"),
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        if name == "seven.png":
            assert (done.returncode, done.stderr) == (DONE, "")
            assert done.stdout == ("" if redirection else "seven.png: seed 7\n")
        else:
            assert done.returncode == (DONE if "|" in redirection else UNREACHABLE)
            assert done.stderr.startswith("ign-client generate: POST /generate: ")
            assert done.stderr.count("\n") == 1
    assert names(tmp_path) == ["seven.png"]
