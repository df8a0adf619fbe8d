"""Images and results as values: what they show, what they save."""

import base64
import dataclasses
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ign_client import (
    Card,
    Client,
    Image,
    Images,
    InputError,
    Limits,
    ModelRef,
    Models,
    Picture,
    Score,
    Scores,
    Step,
    Timing,
    UnexpectedAnswer,
)
from tests.contract.data import npy
from tests.contract.harness import Service
from tests.helpers.pictures import noise, save

PNG = save(noise(4, 5, 3))
MODEL = ModelRef(name="toy", version="2", digest="sha256:0123456789abcdef")
TIMING = Timing(decode_ms=0.1, queue_ms=0.2, compute_ms=0.3, encode_ms=0.4)
STEP = Step(bytes=PNG, format="png", index=0, step=1, change=0.25)
IMAGE = Image(
    bytes=PNG, format="png", index=0, width=5, height=4, steps=2, converged=False, distance=0.5, trajectory=(STEP,)
)
IMAGES = Images(images=(IMAGE, IMAGE), model=MODEL, request_id="abc", timing=TIMING, seed=7)


def test_reprs_are_readable_and_hold_no_bytes(service: Service) -> None:
    assert repr(IMAGE) == (
        f"Image(bytes=<{len(PNG)} bytes>, format='png', index=0, width=5, height=4, steps=2, converged=False, "
        "distance=0.5, trajectory=<1 steps>)"
    )
    assert repr(IMAGES) == (
        "Images(images=<2 images>, model=<toy/2@0123456789ab>, request_id='abc', "
        "timing=Timing(decode_ms=0.1, queue_ms=0.2, compute_ms=0.3, encode_ms=0.4), seed=7)"
    )
    assert repr(dataclasses.replace(IMAGE, trajectory=())).endswith("distance=0.5)")
    assert repr(Picture(bytes=b"x", format="npy")) == "Picture(bytes=<1 bytes>, format='npy')"
    with Client(service.url, timeout=300) as client:
        found = [client.generate_as("png", n=2), client.latent_interpolate([1, 2])[1], client.model("grey")]
    for value in found:
        assert len(repr(value)) < 400, repr(value)
        assert "\\x" not in repr(value)


def test_values_are_frozen_comparable_hashable_and_picklable() -> None:
    values: list[Any] = [IMAGE, IMAGES, STEP, MODEL, TIMING]
    for value in values:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, None)
        assert pickle.loads(pickle.dumps(value)) == value
        assert hash(value) == hash(dataclasses.replace(value))
    assert dataclasses.replace(IMAGE, index=1) != IMAGE
    assert (len(IMAGES), IMAGES[-1], IMAGES[:1], list(IMAGES)) == (2, IMAGE, (IMAGE,), [IMAGE, IMAGE])
    assert IMAGE in IMAGES


def card(ref: str) -> Card:
    name, version = ref.split("/")
    place: dict[str, Any] = {"shape": (1, 2, 2), "range": (0.0, 1.0), "device": "cpu", "provider": "", "document": {}}
    return Card(name=name, version=version, digest="", **place)


def test_models_are_iterated_and_indexed() -> None:
    cards = tuple(map(card, ("a/2", "a/10", "b/x", "b/1")))
    limits = Limits(n=1, images=1, steps=1, frames=1, body_bytes=1, pixels=1)
    models = Models(models=cards, default="a/10", limits=limits)
    assert list(models) == list(cards)
    assert (len(models), models[0], models[-1]) == (4, cards[0], cards[3])
    assert (models["a"], models["a/2"], models["b"], models["b/x"]) == (cards[1], cards[0], cards[3], cards[2])
    assert all(name in models for name in ("a", "b/1", cards[0]))
    assert "c" not in models
    with pytest.raises(KeyError, match="a/2, a/10, b/x, b/1"):
        models["c"]
    with pytest.raises(IndexError):
        models[4]
    assert models._repr_html_().count("<tr>") == 5
    assert "<td>a/10</td><td>1×2×2</td><td>cpu</td><td>True</td>" in models._repr_html_()
    assert models._repr_html_().count("True") == 1


def scores(*percentiles: float | None) -> Scores:
    members = [
        Score(index=i, distance=0.125, drift=0.5, percentile=percentile, in_distribution=None)
        for i, percentile in enumerate(percentiles)
    ]
    return Scores(images=tuple(members), model=MODEL, request_id="abc", timing=TIMING)


def test_scores_show_their_numbers() -> None:
    one = "<distance=0.125, drift=0.5, percentile=12.5>"
    assert repr(scores(12.5)) == f"Scores([{one}], model=<toy/2@0123456789ab>)"
    assert "<distance=0.125, drift=0.5>" in repr(scores(None))
    assert repr(scores(*[12.5] * 6)).count(one) == 4
    assert "… 2 more" in repr(scores(*[12.5] * 6))
    html = scores(*[None] * 101)._repr_html_()
    assert html.count("<tr>") == 101
    assert "<td>0</td><td>0.125</td><td>0.5</td><td>-</td><td>-</td>" in html
    assert "and 1 more" in html
    assert "more" not in scores(12.5)._repr_html_()


def test_notebooks_show_images() -> None:
    assert IMAGE._repr_png_() == PNG
    assert Picture(bytes=b"x", format="webp")._repr_png_() is None
    assert f'src="data:image/png;base64,{base64.b64encode(PNG).decode()}"' in IMAGE._repr_html_()
    assert "index 0, steps 2, distance 0.5" in IMAGE._repr_html_()
    assert IMAGES._repr_html_().count("<img ") == 2
    many = dataclasses.replace(IMAGES, images=(IMAGE,) * 103)._repr_html_()
    assert many.count("<img ") == 100
    assert "and 3 more" in many
    assert "<img" not in Picture(bytes=b"x", format="npy")._repr_html_()


def test_images_are_decoded() -> None:
    np.testing.assert_array_equal(IMAGE.to_numpy(), noise(4, 5, 3))
    assert IMAGE.to_numpy().flags.writeable
    assert (IMAGE.to_pil().size, IMAGE.to_pil().mode) == ((5, 4), "RGB")
    lossless = Picture(bytes=save(noise(4, 5, 3), "WEBP", lossless=True), format="webp")
    assert IMAGE.png() == PNG
    assert np.array_equal(Picture(bytes=lossless.png(), format="png").to_numpy(), IMAGE.to_numpy())
    rows = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    array = Picture(bytes=npy(rows), format="npy")
    np.testing.assert_array_equal(array.to_numpy(), rows)
    with pytest.raises(InputError, match="to_numpy"):
        array.to_pil()
    with pytest.raises(UnexpectedAnswer, match="allow_pickle"):
        Picture(bytes=npy(np.array([{}], dtype=object)), format="npy").to_numpy()


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        *((name, "") for name in ("x.png", "x.PNG", "x", "x.dat", "x.apng")),
        *(("x.jpg", "jpeg"), ("x.webp", "webp"), ("x.npy", "npy")),
    ],
)
def test_saving(tmp_path: Path, name: str, promised: str) -> None:
    target = tmp_path / name
    target.write_bytes(b"before")
    if promised:
        with pytest.raises(InputError, match=promised):
            IMAGE.save(target)
        assert target.read_bytes() == b"before"
    else:
        assert IMAGE.save(str(target)) == target
        assert target.read_bytes() == PNG
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    (tmp_path / "plain").touch()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    link, target, pipe = tmp_path / "link.png", tmp_path / "target.png", tmp_path / "pipe.png"
    link.symlink_to(target)
    IMAGE.save(link)
    assert link.is_symlink()
    assert target.read_bytes() == IMAGE.bytes
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(pipe.read_bytes)
        IMAGE.save(pipe)
        assert received.result(timeout=300) == IMAGE.bytes
    assert pipe.is_fifo()
    reading, writing = os.pipe()
    with open(reading, "rb") as file:
        with open(writing, "wb"):
            (tmp_path / "out.png").symlink_to(f"/proc/self/fd/{writing}")
            IMAGE.save(tmp_path / "out.png")
        assert file.read() == IMAGE.bytes
