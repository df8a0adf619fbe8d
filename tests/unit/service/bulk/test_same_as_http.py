"""The command writes the same bytes as the endpoints return."""

from pathlib import Path

import pytest

from tests.contract.data import b64, unb64
from tests.contract.harness import Service
from tests.unit.service.bulk.conftest import SHARD, Run, manifest, output_images

MEASURES = ("steps", "converged", "inverted", "distance", "drift")


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "npy"])
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
    options = ["-n", 10, "--seed", 7, "--offset", 3, "--noise-scale", 0.5, "--tolerance", 0.01, "--steps", 20]
    ran = bulk("generate", tmp_path / "out", "--shard", SHARD, *options)
    assert ran.status == 0, ran.err
    asked = {"n": 10, "seed": 7, "offset": 3, "noise_scale": 0.5, "tolerance": 0.01, "steps": 20}
    images = service.post("/generate", asked).json()["images"]
    assert output_images(tmp_path / "out") == [unb64(image["data"]) for image in images]
    lines = manifest(tmp_path / "out")
    assert [(line["seed"], line["latent"], line["source"]) for line in lines] == [(7, n, None) for n in range(3, 13)]
    assert [line["steps"] for line in lines] == [image["steps"] for image in images]
    assert any(line["converged"] for line in lines)


def test_score(bulk: Run, service: Service, pictures: dict[str, bytes], tmp_path: Path) -> None:
    ran = bulk("score", tmp_path / "in", tmp_path / "out", "--invert", "true", "--model", "grey/2")
    assert ran.status == 0, ran.err
    asked = {"images": [b64(one) for one in pictures.values()], "invert": True, "model": "grey/2"}
    images = service.post("/score", asked).json()["images"]
    names = ("index", "distance", "drift", "percentile", "in_distribution")
    lines = manifest(tmp_path / "out")
    assert [{name: line[name] for name in names} for line in lines] == images
    assert {line["picture"] for line in lines} == {None}
    assert [file.name for file in (tmp_path / "out" / "000000").iterdir()] == ["manifest.jsonl"]


def test_steps_are_the_models_own_unless_given(bulk: Run, pictures: dict[str, bytes], tmp_path: Path) -> None:
    assert bulk("generate", tmp_path / "generated").status == 0
    assert bulk("project", tmp_path / "in", tmp_path / "projected").status == 0
    assert [line["steps"] for line in manifest(tmp_path / "generated")] == [2]
    assert {line["steps"] for line in manifest(tmp_path / "projected")} == {1}
