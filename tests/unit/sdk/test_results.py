"""Images and results as values: what they show, what they save."""

import dataclasses
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ign_client import (
    Image,
    Images,
    InputError,
    ModelRef,
    Picture,
    Score,
    Scores,
    Step,
    Timing,
    UnexpectedAnswer,
)
from tests.contract.data import npy
from tests.helpers.pictures import noise, save

PNG = save(noise(4, 5, 3))
MODEL = ModelRef(name="toy", version="2", digest="sha256:0123456789abcdef")
TIMING = Timing(decode_ms=0.1, queue_ms=0.2, compute_ms=0.3, encode_ms=0.4)
STEP = Step(bytes=PNG, format="png", index=0, step=1, change=0.25)
IMAGE = Image(
    bytes=PNG,
    format="png",
    index=0,
    width=5,
    height=4,
    steps=2,
    converged=False,
    distance=0.5,
    trajectory=(STEP,),
)
SCORE = Score(index=0, distance=0.125, drift=0.5, percentile=12.5, in_distribution=None)
IMAGES = Images(images=(IMAGE, IMAGE), model=MODEL, request_id="abc", timing=TIMING, seed=7)


def test_values_are_frozen_and_picklable_and_their_reprs_hold_no_bytes() -> None:
    for value in (IMAGE, IMAGES, Picture(bytes=PNG, format="npy")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, None)
        assert pickle.loads(pickle.dumps(value)) == value
        assert hash(value) == hash(dataclasses.replace(value))
        assert "\\x" not in repr(value)
    assert (len(IMAGES), IMAGES[-1], IMAGES[:1], list(IMAGES)) == (
        2,
        IMAGE,
        (IMAGE,),
        [IMAGE, IMAGE],
    )
    assert repr(IMAGE).endswith("distance=0.5, trajectory=<1 steps>)")
    assert "Images(images=<2 images>, model=<toy/2@0123456789ab>, request_id='abc'" in repr(IMAGES)


def test_notebooks_and_terminals_show_a_part_of_many() -> None:
    many = Scores(images=(SCORE,) * 101, model=MODEL, request_id="abc", timing=TIMING)
    one = "<distance=0.125, drift=0.5, percentile=12.5>"
    assert repr(many) == f"Scores([{', '.join([one] * 4)}, … 97 more], model=<toy/2@0123456789ab>)"
    assert "<td>0</td><td>0.125</td><td>0.5</td><td>12.5</td><td>-</td>" in many._repr_html_()
    assert "and 1 more" in many._repr_html_()
    html = dataclasses.replace(IMAGES, images=(IMAGE,) * 103)._repr_html_()
    assert (html.count('src="data:image/png;base64,'), "and 3 more" in html) == (100, True)
    array = Picture(bytes=b"x", format="npy")
    assert (IMAGE._repr_png_(), array._repr_png_(), "<img" in array._repr_html_()) == (
        PNG,
        None,
        False,
    )


def test_images_are_decoded() -> None:
    np.testing.assert_array_equal(IMAGE.to_numpy(), noise(4, 5, 3))
    assert (IMAGE.to_numpy().flags.writeable, IMAGE.to_pil().size, IMAGE.png()) == (
        True,
        (5, 4),
        PNG,
    )
    lossless = Picture(bytes=save(noise(4, 5, 3), "WEBP", lossless=True), format="webp")
    np.testing.assert_array_equal(
        Picture(bytes=lossless.png(), format="png").to_numpy(), IMAGE.to_numpy()
    )
    array = Picture(bytes=npy(np.ones((1, 2, 2), np.float32)), format="npy")
    np.testing.assert_array_equal(array.to_numpy(), np.ones((1, 2, 2), np.float32))
    with pytest.raises(InputError, match="to_numpy"):
        array.to_pil()
    with pytest.raises(UnexpectedAnswer, match="allow_pickle"):
        Picture(bytes=npy(np.array([{}], dtype=object)), format="npy").to_numpy()


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("x.PNG", ""),
        ("x", ""),
        ("x.apng", ""),
        ("x.jpg", "jpeg"),
        ("x.webp", "webp"),
        ("x.npy", "npy"),
    ],
)
def test_saving(tmp_path: Path, name: str, promised: str) -> None:
    target = tmp_path / name
    target.write_bytes(b"before")
    if promised:
        with pytest.raises(InputError, match=promised):
            IMAGE.save(target)
    else:
        assert IMAGE.save(str(target)) == target
    assert target.read_bytes() == (b"before" if promised else PNG)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    (tmp_path / "plain").touch()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    target = tmp_path / "target.png"
    pipe = tmp_path / "pipe.png"
    link.symlink_to(target)
    IMAGE.save(link)
    assert (link.is_symlink(), target.read_bytes()) == (True, PNG)
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(pipe.read_bytes)
        IMAGE.save(pipe)
        assert received.result(timeout=300) == PNG
    assert pipe.is_fifo()
