"""Runs that write what the endpoints return, are stopped, continued, repeated or rejected."""

import errno
import json
import os
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from service.bulk.__main__ import main
from service.bulk.output import Output
from service.bulk.run import Shards
from tests.contract.data import b64, unb64
from tests.contract.harness import Service
from tests.helpers.folders import write
from tests.helpers.onnx_models import write_model
from tests.unit.service.bulk.conftest import (
    Run,
    manifest,
    output_files,
    output_images,
    picture,
)

MEASURES = ("steps", "converged", "inverted", "distance", "drift", "percentile", "in_distribution")


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (
            "project in out --steps 3 --strength 0.7 --score --format jpeg --resize crop",
            {"steps": 3, "strength": 0.7, "score": True, "format": "jpeg", "resize": "crop"},
        ),
        ("project in out --format npy", {"format": "npy"}),
        (
            "generate out -n 10 --seed alice --offset 3 --noise-scale 0.5 --tolerance 0.01 "
            "--steps 20",
            {
                "n": 10,
                "seed": "alice",
                "offset": 3,
                "noise_scale": 0.5,
                "tolerance": 0.01,
                "steps": 20,
            },
        ),
        ("generate out --seed 7", {"seed": 7}),
        ("score in out --invert true --model grey/2", {"invert": True, "model": "grey/2"}),
    ],
)
def test_a_run_gives_what_the_endpoint_gives(
    command: str, asked: dict[str, Any], bulk: Run, service: Service, pictures: dict[str, bytes]
) -> None:
    task = command.split()[0]
    names = sorted(pictures)
    body = (
        asked if task == "generate" else asked | {"images": [b64(pictures[name]) for name in names]}
    )
    ran = bulk(f"{command} --shard 4")
    assert ran.status == 0, ran.err
    images = service.post(f"/{task}", body).json()["images"]
    lines = manifest()
    assert output_images() == [unb64(image["data"]) for image in images if "data" in image]
    for line, image in zip(lines, images, strict=True):
        assert all(line[name] == image[name] for name in MEASURES if name in image)
    assert [line["index"] for line in lines] == list(range(len(images)))
    if task == "generate":
        first = asked.get("offset", 0)
        assert [line["latent"] for line in lines] == list(range(first, first + len(lines)))
        assert {line["seed"] for line in lines} == {735577801 if asked["seed"] == "alice" else 7}
    else:
        assert [line["source"] for line in lines] == names


def test_an_interrupted_run_returns_130(bulk: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shards, "start", Mock(side_effect=KeyboardInterrupt))
    ran = bulk("generate out")
    assert ran.status == 130
    assert "interrupted" in ran.err


@pytest.mark.usefixtures("pictures")
def test_another_job_is_refused(bulk: Run) -> None:
    command = "project in out --steps 2 --shard 4"
    assert bulk(command).status == 0
    before = output_files()
    for change, message in (
        ("--steps 3", "steps was 2, and is 3 now"),
        ("--model colour", "model was grey/10, and is colour/1 now"),
        ("--format webp", "format was png, and is webp now"),
        ("", "source was"),
    ):
        if not change:
            Path("in/00.png").rename("in/zz.png")
        ran = bulk(f"{command} {change}")
        assert ran.status == 2
        assert message in ran.err
        assert output_files() == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("project nothing out", "nothing: "),
        ("project empty out", "empty"),
        ("score list out", "holds no .png"),
        ("score no.zip out", "not a zip archive"),
        ("score empty.zip out", "holds no .png"),
        ("project in in/out", "lies within in"),
        ("project in out --steps 0", "--steps: "),
        ("generate out -n 2 --seed 1 --offset 4294967295", "2^32"),
        ("generate out --model nobody", "no model 'nobody'"),
        ("generate out --model silent", "silent/1 makes nothing of noise"),
        ("generate out --model broken", "broken/1/model.onnx"),
        ("generate file", "cannot be written"),
        ("generate file/out", "cannot be written"),
        ("generate http://127.0.0.1:9/out", "a web server cannot be written to"),
        (
            "generate s3://key:secret@bucket/out",
            "s3://bucket/out: a URL must hold neither credentials nor a query",
        ),
        ("generate in", "holds files of something else"),
        ("generate list", "run.json: damaged"),
        ("score nonsense://bucket out", "nonsense"),
        ("status in", "in"),
    ],
)
def test_invalid_commands_write_nothing(
    command: str, message: str, bulk: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path, {"in/a.png": picture(1), "file": b"", "list/run.json": b"[]", "no.zip": b"no zip"}
    )
    write(tmp_path, {"empty.zip": b"PK\x05\x06" + bytes(18), "models/broken/1/model.onnx": b"none"})
    (tmp_path / "empty").mkdir()
    if "silent" in command or "broken" in command:
        write_model(tmp_path / "models", "silent", imported=True)
        monkeypatch.setenv("IGN_MODEL_DIR", str(tmp_path / "models"))
    before = output_files(".")
    ran = bulk(command)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert output_files(".") == before
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "command", ["generate out --shard 0", "score i o --part 3/2", "score i o --ray --part 1/2"]
)
def test_usage_errors(command: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command.split())


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("pack", ["files", "tar"])
def test_a_second_worker_of_a_shard_changes_nothing_and_what_a_dead_one_left_is_replaced(
    pack: str, bulk: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {
            path: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in (tmp_path / "out").rglob("*.*")
        }

    command = f"project in out --shard 4 --pack {pack}"
    with monkeypatch.context() as patch:
        if pack == "tar":  # on a file system without hard links
            patch.setattr(os, "link", Mock(side_effect=PermissionError(errno.EPERM, "no links")))
        assert bulk(command).status == 0
        before = state()
        files = output_files()
        patch.setattr(Output, "complete", lambda self: {})  # as if both had begun before one ended
        patch.setattr(Output, "records", lambda self, shard: None)
        assert bulk(command).status == 0
        assert state() == before
    Path("out/shards/000001.jsonl").unlink()
    if pack == "files":
        next(Path("out/000001").iterdir()).write_bytes(b"of another device")
    assert bulk(command).status == 0
    assert output_files() == files


@pytest.mark.parametrize("pack", ["files", "tar", "parquet"])
def test_parts_make_what_one_worker_makes(
    pack: str, bulk: Run, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    if pack == "parquet":
        pytest.importorskip(
            "pyarrow", reason="pyarrow is not installed, so nothing was written to Parquet"
        )
    Path("in/bad.png").write_bytes(b"bad")
    command = f"project in out --shard 2 --pack {pack}"
    assert bulk(command.replace(" out", " whole")).status == 1
    waits: list[float] = []

    def first_part(_: float) -> None:
        waits.append(bulk(f"{command} --part 1/3").status)

    # In that module alone: other threads of this process sleep, too.
    monkeypatch.setattr(
        "service.bulk.output.time", SimpleNamespace(**{**vars(time), "sleep": first_part})
    )
    assert bulk(f"{command} --part 3/3").status == 0
    assert waits == [0]
    assert f"4/6 shards, {len(pictures) - 3}/{len(pictures) + 1} images" in bulk("status out").out
    assert bulk(f"{command} --part 2/3").status == 0
    assert output_files() == output_files("whole")
    if pack == "tar":
        with tarfile.open("out/000000.tar") as archive:
            names = archive.getnames()
            members = [archive.extractfile(name) for name in names]
            records = [json.loads(member.read()) for member in members[1::2] if member]
        assert records == manifest()[:2]
        assert names == [
            f"{Path(one['picture']).stem}.{kind}" for one in records for kind in ("png", "json")
        ]
    elif pack == "parquet":  # is itself an input
        assert bulk("project out/000000.parquet again").status == 0
