"""`ign-client` as people at a shell know it."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ign_client import Client
from ign_client._batches import Terminal
from ign_client._cli import main
from tests.contract.harness import Service, frames, pixels
from tests.helpers.live import environment
from tests.helpers.pictures import noise, save
from tests.unit.sdk.clients import IMAGE, Answer, Canned, generated, refusal

PICTURE = save(noise(8, 8, seed=1))
DONE, REFUSED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130


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
def scans(tmp_path: Path) -> Path:
    """Three pictures, one of them deeper, and something else."""
    folder = tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "more/a.png")):
        (folder / name).write_bytes(save(noise(8, 8, seed=i)))
    (folder / "notes.txt").write_text("not a picture")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_generate_into_a_folder(shell: Shell, service: Service, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert shell("generate", "-n", 20, "--seed", 7, "--offset", 3, "--steps", 2, "-o", out) == DONE
    assert names(out) == [f"7-{i:02}.png" for i in range(3, 23)]
    assert shell.out == f"{out}: seed 7\n"
    assert shell.err == ""
    with Client(service.url) as client:
        assert (out / "7-22.png").read_bytes() == client.generate(seed=7, offset=22, steps=2)[0].bytes


def test_generate_tells_the_seed_it_chose(shell: Shell, tmp_path: Path) -> None:
    assert shell("generate", "-o", tmp_path, "--format", "npy", "--noise-scale", 0.5, "--model", "colour") == DONE
    seed = shell.out.rpartition(" ")[2].strip()
    assert np.load(tmp_path / f"{seed}-0.npy").shape == (3, 8, 8)


def test_generate_a_sheet(shell: Shell, tmp_path: Path) -> None:
    target = tmp_path / "sheet.webp"
    assert shell("generate", "-n", 4, "-o", target) == DONE
    assert pixels(target.read_bytes()).shape[:2] == (16, 16)
    assert shell.out.startswith(f"{target}: seed ")


def test_project_a_folder(shell: Shell, service: Service, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert shell("project", scans, "-o", out, "--steps", 2, "--format", "jpeg", "--invert", "false") == DONE
    assert names(out) == ["a.jpg", "b.jpg", "more/a.jpg"]
    with Client(service.url) as client:
        (image,) = client.project(scans / "b.png", steps=2, format="jpeg", invert=False)
    assert (out / "b.jpg").read_bytes() == image.bytes
    assert (shell.out, shell.err) == (f"{out}: 3 pictures\n", "")


def test_project_with_a_mask(shell: Shell, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.png").write_bytes(save(np.zeros((8, 8), np.uint8)))
    mask = tmp_path / "keep.png"
    assert shell("project", scans / "a.png", "-o", tmp_path / "out", "--mask", mask, "--invert", "false") == DONE
    np.testing.assert_array_equal(pixels((tmp_path / "out" / "a.png").read_bytes()), noise(8, 8, seed=0))


def test_one_bad_picture_does_not_stop_the_others(shell: Shell, scans: Path, tmp_path: Path) -> None:
    (scans / "bad.png").write_bytes(b"not a picture")
    out = tmp_path / "out"
    assert shell("project", scans, "-o", out) == REFUSED
    assert names(out) == ["a.png", "b.png", "more/a.png"]
    assert shell.err.startswith(f"{scans / 'bad.png'}: 422 undecodable_image: ")
    assert shell.err.count("\n") == 1
    assert shell.out == f"{out}: 3 pictures, 1 failed\n"


def test_hidden_files_of_a_folder_are_left_out(shell: Shell, scans: Path, tmp_path: Path) -> None:
    for name in ("._a.png", ".trash/b.png"):
        (scans / name).parent.mkdir(exist_ok=True)
        (scans / name).write_bytes(b"not a picture")
    hidden = scans.rename(tmp_path / ".scans")  # the folder itself is asked for
    assert shell("project", hidden, "-o", tmp_path / "out") == DONE
    assert names(tmp_path / "out") == ["a.png", "b.png", "more/a.png"]
    assert shell("project", hidden / "._a.png", "-o", tmp_path / "out") == REFUSED


def test_a_terminal_sees_how_far_it_is(shell: Shell, scans: Path, tmp_path: Path) -> None:
    (scans / "bad.png").write_bytes(b"not a picture")
    assert shell("project", scans, "-o", tmp_path / "out", "--jobs", 1, terminal=True) == REFUSED
    assert shell.err.startswith("\r[........................] 0/4\r[")
    assert shell.err.split("\r")[-1].startswith("[########################] 4/4, 1 failed")
    assert f"\r{scans / 'bad.png'}: 422 " in shell.err
    assert shell("score", scans / "a.png", terminal=True) == DONE
    assert shell.err.startswith("\r[........................] 0/1\r[########################] 1/1")


def test_outputs_are_not_overwritten(shell: Shell, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.png", "b.png"):
        (out / name).write_bytes(b"mine")
    assert shell("project", scans, "-o", out) == USAGE
    assert str(out / "a.png") in shell.err
    assert "--force" in shell.err
    assert "--skip-existing" in shell.err
    assert names(out) == ["a.png", "b.png"]
    assert shell("project", scans, "-o", out, "--skip-existing") == DONE
    assert ((out / "a.png").read_bytes(), names(out)) == (b"mine", ["a.png", "b.png", "more/a.png"])
    assert shell("project", scans, "-o", out, "--skip-existing", terminal=True) == DONE
    assert shell.err == ""
    assert shell("project", scans, "-o", out, "--force") == DONE
    assert (out / "a.png").read_bytes() != b"mine"


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "--seed", 1, "-o", "."),
        ("generate", "-o", "taken.png"),
        ("interpolate", 1, 2, "-o", "taken.png"),
        ("interpolate", 1, 2, "-o", "."),
    ],
)
def test_nor_by_the_others(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").write_bytes(b"mine")
    (tmp_path / "1-0.png").write_bytes(b"mine")
    assert shell(*words) == USAGE
    assert "--force" in shell.err
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"mine"}
    assert shell(*words, "--force") == DONE


def test_interpolate_an_animation(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PICTURE)
    target = tmp_path / "walk.gif"
    words = ("interpolate", 1, "2:3", tmp_path / "x.png", "--frames", 7, "--loop", "--fps", 10, "-o", target)
    assert shell(*words) == DONE
    assert len(frames(target.read_bytes())) == 7
    assert shell.out == f"{target}\n"


def test_interpolate_frames_and_grids(shell: Shell, service: Service, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert shell("interpolate", 1, 2, "--frames", 3, "--method", "lerp", "-o", out) == DONE
    assert names(out) == ["000.png", "001.png", "002.png"]
    assert shell.out == f"{out}: 3 frames\n"
    with Client(service.url) as client:
        assert (out / "002.png").read_bytes() == client.generate(seed=2)[0].bytes
    assert shell("interpolate", 1, 2, 3, 4, "--grid", "2x3", "-o", tmp_path / "grid.png") == DONE
    assert pixels((tmp_path / "grid.png").read_bytes()).shape == (16, 24)


def test_pictures_at_a_size(shell: Shell, service: Service, scans: Path, tmp_path: Path) -> None:
    size = ("--scale", 32, "--resample", "smooth")
    out = tmp_path / "out"
    assert shell("generate", "-n", 3, "--seed", 1, *size, "-o", out) == DONE
    assert shell("project", scans / "a.png", *size, "-o", out) == DONE
    assert shell("interpolate", 1, 2, "--frames", 2, *size, "-o", out, "--force") == DONE
    assert names(out) == ["000.png", "001.png", "1-0.png", "1-1.png", "1-2.png", "a.png"]
    assert {pixels(file.read_bytes()).shape for file in out.iterdir()} == {(256, 256)}
    with Client(service.url) as client:
        assert (out / "1-2.png").read_bytes() == client.generate(seed=1, offset=2, scale=32, resample="smooth")[0].bytes
    sheet = ("--scale", 2, "--columns", 1, "--gap", 3)
    for words in (("generate", "-n", 3), ("interpolate", 1, 2, "--frames", 3)):
        assert shell(*words, *sheet, "-o", tmp_path / "sheet.png", "--force") == DONE
        assert pixels((tmp_path / "sheet.png").read_bytes()).shape == (54, 16)


@pytest.mark.parametrize("option", ["--columns", "--gap"])
@pytest.mark.parametrize("words", [("generate",), ("interpolate", 1, 2)])
def test_files_of_a_folder_are_no_sheet(shell: Shell, tmp_path: Path, words: Any, option: str) -> None:
    assert shell(*words, option, 2, "-o", tmp_path / "out") == USAGE
    assert option in shell.err
    assert not (tmp_path / "out").exists()


def test_score(shell: Shell, service: Service, scans: Path) -> None:
    assert shell("score", scans, "--invert", "true", "--resize", "crop") == DONE
    head, *lines = [line.split("\t") for line in shell.out.splitlines()]
    assert head == ["file", "distance", "drift", "percentile", "in_distribution"]
    assert [line[0] for line in lines] == [str(scans / name) for name in ("a.png", "b.png", "more/a.png")]
    with Client(service.url) as client:
        scores = client.score([Path(line[0]) for line in lines], invert=True, resize="crop")
    assert [float(line[1]) for line in lines] == [score.distance for score in scores]
    assert shell("score", scans, "--json") == DONE
    found = [json.loads(line) for line in shell.out.splitlines()]
    assert [list(line) for line in found] == [head] * 3


def test_scores_of_models_that_were_and_were_not_measured(canned: Callable[..., Shell], tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PICTURE)
    score = {"index": 0, "distance": 0.5, "drift": 0.25}
    for percentile, usual, shown in ((None, None, "-\t-"), (12.5, True, "12.5\ttrue")):
        member = {**score, "percentile": percentile, "in_distribution": usual}
        shell = canned(httpx.Response(200, json=generated(images=[member])))
        assert shell("score", tmp_path / "x.png") == DONE
        assert shell.out.splitlines()[1] == f"{tmp_path / 'x.png'}\t0.5\t0.25\t{shown}"


def limited_to(images: int) -> httpx.Response:
    """The models of a service that takes so many pictures in a request."""
    limits = {"n": 1, "images": images, "steps": 1, "frames": 2, "body_bytes": 1 << 20, "pixels": 1}
    return httpx.Response(200, json={"models": [], "default": "toy/1", "limits": limits})


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shell]:
    """A shell before a service of canned answers."""

    def made(*answers: Answer) -> Shell:
        to = Canned(*answers)

        def client(base_url: str, *, timeout: float, max_retries: int) -> Client:
            waits = {"sleep": lambda _: None, "jitter": lambda: 0.0}
            return Client(base_url, timeout=timeout, max_retries=max_retries, transport=to, **waits)  # type: ignore[arg-type]

        monkeypatch.setattr("ign_client._cli.Client", client)
        return Shell("http://x")

    return made


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (refusal(401), REFUSED),
        (refusal(404, "unknown_model"), REFUSED),
        (refusal(422, "invalid_value"), REFUSED),
        (refusal(500, "internal"), REFUSED),
        (refusal(429, "queue_full"), UNREACHABLE),
        (refusal(503, "draining"), UNREACHABLE),
        (refusal(504, "deadline_exceeded"), UNREACHABLE),
        (httpx.ConnectError("refused"), UNREACHABLE),
        (httpx.ReadTimeout("slow"), UNREACHABLE),
        (httpx.Response(200, text="It works!"), UNREACHABLE),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
@pytest.mark.parametrize("before", [(), (limited_to(1),)], ids=["when asked for limits", "afterwards"])
def test_what_would_happen_to_all_ends_it_at_once(
    canned: Callable[..., Shell], scans: Path, tmp_path: Path, before: tuple[Any, ...], answer: Any, status: int
) -> None:
    shell = canned(*before, *[answer] * 3)
    assert shell("--retries", 0, "project", scans, "-o", tmp_path / "out", "--jobs", 1) == status
    assert shell.err == "interrupted\n" if status == INTERRUPTED else shell.err.startswith("ign-client: ")
    assert shell.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_was_saved_before_is_counted(canned: Callable[..., Shell], scans: Path, tmp_path: Path) -> None:
    made = httpx.Response(200, json=generated(images=[IMAGE | {"inverted": False}]))
    shell = canned(limited_to(1), made, *[httpx.ConnectError("gone")] * 2)
    out = tmp_path / "out"
    assert shell("--retries", 0, "project", scans, "-o", out, "--jobs", 1) == UNREACHABLE
    assert shell.out.startswith(f"{out}: 1 of 3 pictures; --skip-existing ")
    assert names(out) == ["a.png"]


def test_one_picture_becomes_one_file(shell: Shell, scans: Path, tmp_path: Path) -> None:
    one = next(scans.rglob("*.png"))
    assert shell("project", one, "-o", tmp_path / "new" / "one.jpg") == DONE
    assert (tmp_path / "new" / "one.jpg").read_bytes().startswith(b"\xff\xd8")
    assert shell("project", scans, "-o", tmp_path / "several.png") == USAGE
    assert not (tmp_path / "several.png").exists()


def test_generating_goes_on_where_it_ended(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("generate", "-n", 12, "--seed", 3, "-o", out)
    assert shell(*asked) == DONE
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in ("3-01.png", "3-02.png", "3-07.png"):
        (out / name).unlink()
    assert shell(*asked) == USAGE
    assert shell(*asked, "--skip-existing") == DONE
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole


def test_what_was_generated_before_is_counted(canned: Callable[..., Shell], tmp_path: Path) -> None:
    shell = canned(httpx.Response(200, json=generated(images=[IMAGE | {"index": 0}])), *[KeyboardInterrupt()] * 40)
    assert shell("generate", "-n", 40, "--scale", 32, "--seed", 5, "-o", tmp_path, "--jobs", 1) == INTERRUPTED
    assert shell.out.startswith(f"{tmp_path}: 1 of 40 pictures; --seed 5 --skip-existing ")


def test_a_request_has_several_pictures(canned: Callable[..., Shell], scans: Path, tmp_path: Path) -> None:
    images = [IMAGE | {"inverted": False, "index": index} for index in range(2)]
    pair, single = (httpx.Response(200, json=generated(images=images[:count])) for count in (2, 1))
    shell = canned(limited_to(2), pair, single)
    assert shell("--retries", 0, "project", scans, "-o", tmp_path / "out", "--jobs", 1) == DONE
    assert names(tmp_path / "out") == ["a.png", "b.png", "more/a.png"]


def test_pictures_of_a_rejected_request_are_sent_alone(
    canned: Callable[..., Shell], scans: Path, tmp_path: Path
) -> None:
    made = httpx.Response(200, json=generated(images=[IMAGE | {"inverted": False}]))
    bad = refusal(422, "undecodable_image")
    shell = canned(limited_to(16), bad, made, bad, made)
    assert shell("--retries", 0, "project", scans, "-o", tmp_path / "out", "--jobs", 1) == REFUSED
    assert names(tmp_path / "out") == ["a.png", "more/a.png"]
    assert f"{scans / 'b.png'}: 422 undecodable_image" in shell.err


def test_what_was_scored_before_is_shown(canned: Callable[..., Shell], scans: Path) -> None:
    score = {"index": 0, "distance": 0.5, "drift": 0.25, "percentile": None, "in_distribution": None}
    shell = canned(
        limited_to(1), httpx.Response(200, json=generated(images=[score])), *[httpx.ConnectError("gone")] * 2
    )
    assert shell("--retries", 0, "score", scans, "--jobs", 1) == UNREACHABLE
    assert [line.partition("\t")[0] for line in shell.out.splitlines()] == ["file", str(scans / "a.png")]


def test_retries_and_time_outs_are_the_callers(canned: Callable[..., Shell], tmp_path: Path) -> None:
    shell = canned(refusal(503), refusal(503), httpx.Response(200, json=generated()))
    assert shell("--retries", 2, "--timeout", 5, "generate", "-o", tmp_path) == DONE


def test_a_disk_that_is_full(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, other: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert shell("generate", "-o", tmp_path) == REFUSED
    assert "No space left on device" in shell.err
    assert shell("generate", "-o", tmp_path / "x.png") == REFUSED
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_read(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone between being listed and being read."""
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("project", "missing.png", "-o", "out"), "missing.png: no such file"),
        (("project", "empty", "-o", "out"), "no .png .jpg .jpeg .webp in empty"),
        (("score", "missing"), "missing: no such file"),
        (("project", "x.png", "-o", "out", "--mask", "missing.png"), "missing.png: no such file"),
        (("project", "x.png", "x.jpg", "-o", "out"), "x.png and x.jpg would both become out/x.png"),
        (("interpolate", "1", "two", "-o", "x.gif"), "two: no such file"),
        (("interpolate", "1", "2", "3", "4", "--grid", "5", "-o", "y.png"), "--grid: expected ROWSxCOLS"),
        (("generate", "-n", "0", "-o", "out"), "-n: expected 1 or more"),
        (("--timeout", "0", "generate", "-o", "out"), "timeout: expected seconds above 0"),
        (("--retries", "-1", "generate", "-o", "out"), "max_retries: expected 0 or more"),
        (("--base-url", "nowhere", "generate", "-o", "out"), "base_url: expected"),
    ],
)
def test_commands_that_cannot_be_meant(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.png").write_bytes(PICTURE)
    (tmp_path / "x.jpg").write_bytes(PICTURE)
    assert shell(*words) == USAGE
    assert shell.err.startswith(f"ign-client: {said}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("dance",),
        ("generate",),
        ("generate", "-o", ""),
        ("generate", "-o", "x", "--jobs", "0"),
        ("generate", "-o", "x", "--jobs", "many"),
        ("generate", "-o", "x", "--noise-scale", "nan"),
        ("generate", "-o", "x", "--noise-scale", "much"),
        ("project", "-o", "x"),
    ],
)
def test_usage(shell: Shell, words: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        shell(*words)
    assert caught.value.code == USAGE
    assert capsys.readouterr().err.startswith("usage: ign-client")


def test_an_unknown_option_shows_the_options_of_its_command(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        shell("project", "x.png", "-o", "x", "--url", "nowhere")
    assert caught.value.code == USAGE
    said = capsys.readouterr().err
    assert said.startswith("usage: ign-client project")
    assert "--url nowhere" in said


def test_a_complaint_takes_the_place_of_the_progress() -> None:
    err = Screen(terminal=True)
    terminal = Terminal(io.StringIO(), err, clock=lambda: 0.0)
    terminal.progress(0, 2)
    terminal.error("x: no")
    terminal.progress(2, 2)
    terminal.result("done")
    assert err.getvalue() == (
        "\r[........................] 0/2\r" + " " * 30 + "\rx: no\n\r[########################] 2/2\n"
    )


def test_progress_tells_rate_and_time_left() -> None:
    err = Screen(terminal=True)
    now = [0.0]
    terminal = Terminal(io.StringIO(), err, clock=lambda: now[0])
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


def test_models(shell: Shell, service: Service) -> None:
    assert shell("models") == DONE
    head, *lines = [line.split("\t") for line in shell.out.splitlines()]
    assert head == ["model", "shape", "device", "default"]
    with Client(service.url) as client:
        served = client.models()
    assert [line[0] for line in lines] == [card.ref for card in served]
    assert [line[0] for line in lines if line[3] == "yes"] == [served.default]


def test_as_a_process(service: Service, tmp_path: Path) -> None:
    """Its own process, told by the environment where the service is."""

    def run(*words: str, url: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "ign_client", *words],
            cwd=tmp_path,
            env=environment(IGN_BASE_URL=url, NO_PROXY="*"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = run("generate", "--seed", "7", "-o", "seven.png", url=service.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "seven.png: seed 7\n", "")
    gone = run("--retries", "0", "generate", "-o", "eight.png", url="http://127.0.0.1:1")
    assert gone.returncode == UNREACHABLE
    assert gone.stderr.startswith("ign-client: POST /generate: ")
    assert gone.stderr.count("\n") == 1
    assert names(tmp_path) == ["seven.png"]


@pytest.mark.parametrize("way", ["closed", "left"])
def test_results_that_nobody_reads(service: Service, tmp_path: Path, way: str) -> None:
    """`>&-` and `| true`: the files are there, and nothing complains."""
    command = f"{sys.executable} -m ign_client generate -o nine.png " + (">&-" if way == "closed" else "| true")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment(IGN_BASE_URL=service.url, NO_PROXY="*"),
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path) == ["nine.png"]
