"""Runs that write what the endpoints return, are stopped, continued, repeated or rejected."""

import errno
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from service.bulk.__main__ import main
from service.bulk.output import Output
from service.bulk.places import Bucket
from service.bulk.run import Progress
from service.bulk.shards import ShardPlan, Shards
from tests.contract.data import b64, unb64
from tests.contract.harness import Service
from tests.helpers.live import environment
from tests.helpers.onnx_models import write_model
from tests.unit.service.bulk.conftest import (
    SHARD,
    Run,
    manifest,
    output_files,
    output_images,
    picture,
    service_environment,
    write,
)

KILLED = """
import os, signal, sys
from service.bulk import __main__, output

finish = output.Output.finish

def killed(self, shard, records):
    if shard == 3:  # two at a time: at least two are done
        os.kill(os.getpid(), signal.SIGKILL)
    return finish(self, shard, records)

output.Output.finish = killed
sys.exit(__main__.main(sys.argv[1:]))
"""


def inodes_of(output: Path) -> dict[Path, int]:
    return {file: file.stat().st_ino for file in output.glob("0*/*")}


def test_a_killed_run_continues(bulk: Run, models: Path, pictures: dict[str, bytes], tmp_path: Path) -> None:
    command = ["project", str(tmp_path / "in"), str(tmp_path / "out"), "--shard", "2", "--steps", "2"]
    dead = subprocess.run(
        [sys.executable, "-c", KILLED, *command],
        env=environment(**service_environment(models)),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    output = tmp_path / "out"
    assert (output / "000003").exists()
    assert not (output / "shards" / "000003.jsonl").exists()
    (output / ".0.partial").touch()
    assert not (output / "manifest.jsonl").exists()
    before = inodes_of(output)
    assert len({file.parent for file in before}) >= 2, "nothing was done that could be skipped"
    ran = bulk(*command)
    assert ran.status == 0, ran.err
    assert before.items() <= inodes_of(output).items()
    assert f"{len(pictures)}/{len(pictures)} images" in ran.err
    before = inodes_of(output)
    assert bulk(*command).status == 0  # complete, so nothing is repeated
    assert inodes_of(output) == before
    assert bulk("project", tmp_path / "in", tmp_path / "whole", "--shard", 2, "--steps", 2).status == 0
    assert output_files(output) == output_files(tmp_path / "whole")
    assert not list(output.glob(".*.partial"))


def test_a_stopped_run_reports_the_error_and_continues(
    bulk: Run, pictures: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Output.finish

    def full(self: Output, shard: int, *rest: Any) -> Any:
        if shard == 1:
            raise OSError(28, "No space left on device")
        return finish(self, shard, *rest)

    monkeypatch.setattr(Output, "finish", full)
    ran = bulk("project", tmp_path / "in", tmp_path / "out", "--shard", SHARD)
    assert ran.status == 3
    assert "No space left on device" in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    monkeypatch.setattr(Output, "finish", finish)
    assert bulk("project", tmp_path / "in", tmp_path / "out", "--shard", SHARD).status == 0
    assert len(output_images(tmp_path / "out")) == len(pictures)


def test_an_interrupted_run_returns_130(bulk: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Shards.start

    def interrupted(shards: Shards) -> ShardPlan:
        plan = start(shards)
        signal.raise_signal(signal.SIGINT)
        return plan

    monkeypatch.setattr(Shards, "start", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background is not given
    try:
        ran = bulk("generate", tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran.status == 130
    assert "interrupted" in ran.err


def test_another_job_is_refused(bulk: Run, pictures: dict[str, bytes], tmp_path: Path) -> None:
    command = ["project", tmp_path / "in", tmp_path / "out", "--steps", "2", "--shard", "4"]
    assert bulk(*command).status == 0
    before = output_files(tmp_path / "out")
    for change, message in (
        (("--steps", "3"), "steps was 2, and is 3 now"),
        (("--shard", "3"), "shard was 4, and is 3 now"),
        (("--model", "colour"), "model was grey/10, and is colour/1 now"),
        (("--format", "webp"), "format was png, and is webp now"),
        ((), "source was"),
    ):
        if not change:
            (tmp_path / "in" / "00.png").rename(tmp_path / "in" / "zz.png")
        ran = bulk(*command, *change)
        assert ran.status == 2
        assert message in ran.err
        assert output_files(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("project nothing out", "nothing: "),
        ("project in in/out", "lies within in"),
        ("project in out --steps 0", "--steps: "),
        ("project in out --tolerance nan", "--tolerance: "),
        ("generate out -n 2 --seed 1 --offset 4294967295", "2^32"),
        ("generate out --model nobody", "no model 'nobody'"),
        ("generate file", "cannot be written"),
        ("generate http://127.0.0.1:9/out", "a web server cannot be written to"),
        ("generate s3://key:secret@bucket/out", "s3://bucket/out: a URL must hold neither credentials nor a query"),
        ("generate in", "holds files of something else"),
        ("generate file/out", "cannot be written"),
        ("generate list", "run.json: damaged"),
        ("generate text", "run.json: damaged"),
        ("score nonsense://bucket out", "nonsense"),
        ("generate out", "grey/1/model.onnx"),
    ],
)
def test_invalid_commands_write_nothing(
    command: str, message: str, bulk: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"in/a.png": picture(1), "file": b"", "list/run.json": b"[]", "text/run.json": b"no JSON"})
    if message == "grey/1/model.onnx":
        monkeypatch.setenv("IGN_MODEL_DIR", str(write(tmp_path / "models", {message: b"none"})))
    monkeypatch.chdir(tmp_path)
    before = output_files(tmp_path)
    ran = bulk(*command.split())
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert output_files(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    ["generate out --shard 0", "score i o --invert x", "score i o --part 3/2", "score i o --ray --part 1/2"],
)
def test_usage_errors(command: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command.split())


@pytest.mark.parametrize("pack", ["files", "tar"])
def test_a_second_worker_of_a_shard_changes_nothing(
    pack: str, bulk: Run, pictures: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*.*")}

    if pack == "tar":  # on a file system without hard links
        monkeypatch.setattr(os, "link", Mock(side_effect=PermissionError(errno.EPERM, "no links")))
    command = ["project", tmp_path / "in", tmp_path / "out", "--shard", SHARD, "--pack", pack]
    assert bulk(*command).status == 0
    before = state()
    monkeypatch.setattr(Output, "complete", lambda self: {})  # as if both had begun before one ended
    monkeypatch.setattr(Output, "records", lambda self, shard: None)
    assert bulk(*command).status == 0
    assert state() == before


def test_what_a_dead_worker_left_of_a_shard_is_replaced(bulk: Run, pictures: dict[str, bytes], tmp_path: Path) -> None:
    command = ["project", tmp_path / "in", "--shard", SHARD]
    assert bulk(*command, tmp_path / "whole").status == 0
    assert bulk(*command, tmp_path / "out").status == 0
    (tmp_path / "out" / "shards" / "000001.jsonl").unlink()
    next((tmp_path / "out" / "000001").iterdir()).write_bytes(b"of another device")
    assert bulk(*command, tmp_path / "out").status == 0
    assert output_files(tmp_path / "out") == output_files(tmp_path / "whole")


@pytest.mark.parametrize("pack", ["files", "tar", "parquet"])
def test_parts_make_what_one_worker_makes(
    pack: str, bulk: Run, pictures: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pack == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed, so nothing was written to Parquet")
    (tmp_path / "in" / "bad.png").write_bytes(b"bad")
    monkeypatch.setattr("service.bulk.sources._PART", 3)  # names in a file of the listing
    command = ["project", tmp_path / "in", "--shard", 2, "--pack", pack]
    assert bulk(*command, tmp_path / "whole").status == 1
    waits: list[float] = []

    def first_part(_: float) -> None:
        waits.append(bulk(*command, tmp_path / "out", "--part", "1/3").status)

    # In that module alone: other threads of this process sleep, too.
    monkeypatch.setattr("service.bulk.output.time", SimpleNamespace(**{**vars(time), "sleep": first_part}))
    assert bulk(*command, tmp_path / "out", "--part", "3/3").status == 0
    assert waits == [0]
    assert f"4/6 shards, {len(pictures) - 3}/{len(pictures) + 1} images" in bulk("status", tmp_path / "out").out
    assert bulk(*command, tmp_path / "out", "--part", "2/3").status == 0
    assert output_files(tmp_path / "out") == output_files(tmp_path / "whole")
    assert bulk("status", tmp_path / "in").status == 2
    if pack == "tar":
        with tarfile.open(tmp_path / "out" / "000000.tar") as archive:
            names = archive.getnames()
            records = [json.loads(archive.extractfile(name).read()) for name in names[1::2]]  # type: ignore[union-attr]
        assert records == manifest(tmp_path / "out")[:2]
        assert names == [f"{Path(one['picture']).stem}.{kind}" for one in records for kind in ("png", "json")]
    elif pack == "parquet":  # is itself an input
        assert bulk("project", tmp_path / "out" / "000000.parquet", tmp_path / "again").status == 0


def test_settings_of_the_server_are_ignored(bulk: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """… and a queue may be smaller than a shard."""
    changes = {"WORKERS": "4", "PRIVATE_ENDPOINTS": "page", "QUEUE_ROWS": "2", "MAX_IMAGES": "2"}
    for name, value in (changes | {"API_KEYS_FILE": str(tmp_path / "nothing.json")}).items():
        monkeypatch.setenv(f"IGN_{name}", value)
    assert bulk("generate", tmp_path / "out", "-n", 9).status == 0
    assert os.listdir(tmp_path) == ["out"]
    assert len(manifest(tmp_path / "out")) == 9


GOOD = {"error": None, "detail": None}
PLAN = ShardPlan(images=1000, shards=10, missing=tuple(range(2, 10)), completed=200)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_for_each_shard_without_a_terminal(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "service.bulk"):
        progress = Progress(PLAN)
        progress.update([GOOD] * 100)
        progress.update([GOOD] * 50 + [{"error": "unreadable", "detail": f"{n}.png: bad"} for n in range(50)])
    lines = [line for line in caplog.messages if "/1000" in line]
    assert [line.split(", ")[0] for line in lines] == ["300/1000 images", "400/1000 images"]
    assert [line.split(", ")[1] for line in lines] == ["0 failed", "50 failed"]
    assert all(re.search(r", [\d.]+/s, 0:00:0\d left$", line) for line in lines)
    failed = [line for line in caplog.messages if line.endswith(".png: bad")]
    assert failed == [f"{n}.png: bad" for n in range(20)]
    assert "manifest" in caplog.text
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(PLAN)
    progress.update([GOOD] * 800)
    progress.bar.close()
    assert "1000/1000" in terminal.getvalue()


MEASURES = ("steps", "converged", "inverted", "distance", "drift")


@pytest.mark.parametrize("form", ["jpeg", "npy"])
def test_project(form: str, bulk: Run, service: Service, pictures: dict[str, bytes], tmp_path: Path) -> None:
    asked = {"steps": 3, "strength": 0.7, "score": True, "format": form, "resize": "crop"}
    options = ["--steps", 3, "--strength", 0.7, "--score", "--format", form, "--resize", "crop"]
    ran = bulk("project", tmp_path / "in", tmp_path / "out", "--shard", SHARD, *options)
    assert ran.status == 0, ran.err
    images = service.post("/project", {"images": [b64(one) for one in pictures.values()], **asked}).json()["images"]
    assert output_images(tmp_path / "out") == [unb64(image["data"]) for image in images]
    lines = manifest(tmp_path / "out")
    assert [line["source"] for line in lines] == list(pictures)
    assert [line["index"] for line in lines] == list(range(len(pictures)))
    assert [[line[m] for m in MEASURES] for line in lines] == [[image[m] for m in MEASURES] for image in images]


def test_generate(bulk: Run, service: Service, tmp_path: Path) -> None:
    assert bulk("generate", tmp_path / "default").status == 0
    assert [line["steps"] for line in manifest(tmp_path / "default")] == [2]  # the model's own
    options = ["-n", 10, "--seed", "alice", "--offset", 3, "--noise-scale", 0.5, "--tolerance", 0.01, "--steps", 20]
    ran = bulk("generate", tmp_path / "out", "--shard", SHARD, *options)
    assert ran.status == 0, ran.err
    asked = {"n": 10, "seed": "alice", "offset": 3, "noise_scale": 0.5, "tolerance": 0.01, "steps": 20}
    images = service.post("/generate", asked).json()["images"]
    assert output_images(tmp_path / "out") == [unb64(image["data"]) for image in images]
    lines = manifest(tmp_path / "out")
    assert [(line["seed"], line["latent"], line["source"]) for line in lines] == [
        (735577801, n, None) for n in range(3, 13)
    ]
    assert [line["steps"] for line in lines] == [image["steps"] for image in images]
    assert any(line["converged"] for line in lines)


def test_score(bulk: Run, service: Service, pictures: dict[str, bytes], tmp_path: Path) -> None:
    ran = bulk("score", tmp_path / "in", tmp_path / "out", "--invert", "true", "--model", "grey/2")
    assert ran.status == 0, ran.err
    asked = {"images": [b64(one) for one in pictures.values()], "invert": True, "model": "grey/2"}
    images = [{k: v for k, v in one.items() if k != "worst"} for one in service.post("/score", asked).json()["images"]]
    names = ("index", "distance", "drift", "percentile", "in_distribution")
    lines = manifest(tmp_path / "out")
    assert [{name: line[name] for name in names} for line in lines] == images
    assert {line["picture"] for line in lines} == {None}
    assert not (tmp_path / "out" / "000000").exists()


def test_a_model_without_noise_generates_nothing(bulk: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_model(tmp_path / "models", "grey", imported=True)
    monkeypatch.setenv("IGN_MODEL_DIR", str(tmp_path / "models"))
    ran = bulk("generate", tmp_path / "out", "--model", "grey")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "grey/1 makes nothing of noise" in ran.err


def test_a_write_whose_connection_ends_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    obstore = pytest.importorskip("obstore", reason="nothing was written to a store")
    written: list[bytes] = []

    def put(store: Any, name: str, file: io.BytesIO, *, mode: str) -> None:
        written.append(file.read())
        if len(written) < 3:
            raise obstore.exceptions.GenericError("error sending request")
        raise obstore.exceptions.AlreadyExistsError("the first of them was done")

    monkeypatch.setattr(obstore, "put", put)
    assert not Bucket("s3://bucket/out").put("a.tar", io.BytesIO(b"all of it"))
    assert written == [b"all of it"] * 3
