"""Enlarged pictures, and sheets with columns and gaps: the same in every answer with pictures, and
bounded.
"""

import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.api.native import responses
from service.images.encode import enlarge
from service.images.untrusted import png_chunk
from tests.contract.data import PICTURE, Pixels, b64, frames, pixels, unb64
from tests.contract.harness import (
    LIMIT_S,
    PATIENCE_S,
    Service,
    busy_codec,
    gated,
    problem,
    serving,
    settings,
)
from tests.contract.test_streaming import EVENTS, of, streamed
from tests.helpers.onnx_models import write_model
from tests.helpers.pictures import opened

FOUR = [{"seed": seed} for seed in range(4)]
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"seed": 1, "n": 3},
    "/project": {"images": [b64(PICTURE)] * 3},
    "/latent-interpolate": {"points": FOUR[:2], "frames": 3},
    "/latent-arithmetic": {"terms": FOUR[:2]},
}
PATHS = pytest.mark.parametrize("path", BODIES)


def large(picture: Pixels, scale: int) -> Pixels:
    """The picture with every pixel as a square."""
    return picture.repeat(scale, 0).repeat(scale, 1)


def smooth(picture: Pixels, scale: int) -> Pixels:
    size = (picture.shape[1] * scale, picture.shape[0] * scale)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


RESAMPLED = pytest.mark.parametrize(
    ("resample", "expected"), [("nearest", large), ("smooth", smooth)]
)


@PATHS
@RESAMPLED
@pytest.mark.parametrize("model", ["grey", "colour"])
def test_every_picture_is_enlarged(
    service: Service,
    path: str,
    resample: str,
    expected: Callable[[Pixels, int], Pixels],
    model: str,
) -> None:
    """In a sheet too, each by itself."""
    body = BODIES[path] | {"model": model}
    plain = service.images(path, body)
    enlarged = service.images(path, body | {"scale": 5, "resample": resample})
    assert len(enlarged) == len(plain)
    pictures = []
    for before, after in zip(plain, enlarged, strict=True):
        pictures.append(pixels(unb64(after.pop("data"))))
        np.testing.assert_array_equal(pictures[-1], expected(pixels(unb64(before.pop("data"))), 5))
        assert (after.pop("width"), after.pop("height")) == pictures[-1].shape[1::-1] == (40, 40)
        assert {name: before[name] for name in after} == after
    wide = {"scale": 5, "resample": resample, "columns": len(pictures)}
    for accept in ("image/png", "image/webp", "image/jpeg"):
        if accept != "image/webp" or path != "/latent-interpolate":  # which is an animation
            sheet = pixels(
                service.post(path, body | wide, accept=accept).content,
                "L" if model == "grey" else "RGB",
            )
            difference = np.abs(sheet.astype(int) - np.concatenate(pictures, axis=1))
            assert difference.mean() < (9 if accept == "image/jpeg" else 1e-9)


@pytest.mark.parametrize("path", ["/generate", "/project"])
@RESAMPLED
def test_trajectories_and_streams_are_enlarged(
    service: Service, path: str, resample: str, expected: Callable[[Pixels, int], Pixels]
) -> None:
    body = BODIES[path] | {"steps": 2, "record": [0, 1]}
    options = {"scale": 4, "resample": resample}
    plain, enlarged = (service.images(path, body | extra) for extra in ({}, options))
    for before, after in zip(plain, enlarged, strict=True):
        for step, step_after in zip(before["trajectory"], after["trajectory"], strict=True):
            np.testing.assert_array_equal(
                pixels(unb64(step_after["data"])), expected(pixels(unb64(step["data"])), 4)
            )
    events = streamed(service, path, body | options)
    sent = {(step["index"], step["step"]): step["data"] for step in of(events, "step")}
    for image in enlarged:
        assert sent[image["index"], 2] == image["data"]
        assert all(
            sent[image["index"], step["step"]] == step["data"] for step in image["trajectory"]
        )
    assert [(image["width"], image["height"]) for image in events[-1][1]["images"]] == [
        (32, 32)
    ] * 3


@pytest.mark.parametrize("accept", ["image/webp", "image/gif", "image/apng"])
def test_animations_are_enlarged(service: Service, accept: str) -> None:
    body = {"points": FOUR, "frames": 7, "loop": True}
    plain, enlarged = (
        frames(service.post("/latent-interpolate", body | extra, accept=accept).content)
        for extra in ({}, {"scale": 6})
    )
    np.testing.assert_array_equal(enlarged, [large(frame, 6) for frame in plain])
    if accept == "image/gif":  # whose palette has room for 256 colours of all frames
        for resample, slack in (("nearest", 1), ("smooth", 8)):
            options = {"model": "colour", "scale": 4, "resample": resample}
            image = opened(
                service.post("/latent-interpolate", body | options, accept=accept).content
            )
            exact = service.images("/latent-interpolate", body | options)[0]["data"]
            assert (
                np.abs(np.asarray(image.convert("RGB")).astype(int) - pixels(unb64(exact))).mean()
                < slack
            )


@pytest.mark.parametrize(
    ("options", "cells"),
    [
        ({}, (2, 3)),
        ({"columns": 1}, (5, 1)),
        ({"columns": 2}, (3, 2)),
        ({"columns": 5}, (1, 5)),
        ({"columns": 65_535}, (1, 5)),
    ],
)
@pytest.mark.parametrize(("gap", "scale"), [(0, 1), (1, 2), (64, 1)])
@pytest.mark.parametrize("model", ["grey", "colour"])
def test_columns_and_gaps(
    service: Service,
    options: dict[str, int],
    cells: tuple[int, int],
    gap: int,
    scale: int,
    model: str,
) -> None:
    body = {"seed": 1, "n": 5, "scale": scale, "model": model}
    pictures = [pixels(unb64(image["data"])) for image in service.images("/generate", body)]
    sheet = pixels(
        service.post(
            "/generate", body | options | ({"gap": gap} if gap else {}), accept="image/png"
        ).content
    )
    side = 8 * scale
    shape = tuple(count * (side + gap) - gap for count in cells)
    expected = np.zeros((*shape, *pictures[0].shape[2:]), np.uint8)
    expected[...] = 0 if model == "grey" else (0, 128, 255)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, cells[1])
        top = row * (side + gap)
        left = column * (side + gap)
        expected[top : top + side, left : left + side] = picture
    np.testing.assert_array_equal(sheet, expected)


def test_sheets_of_a_path_a_grid_and_one_picture(service: Service) -> None:
    path = {"points": FOUR, "frames": 6, "columns": 3}
    assert pixels(service.post("/latent-interpolate", path, accept="image/png").content).shape == (
        16,
        24,
    )
    grid = {"points": FOUR, "grid": {"rows": 2, "cols": 4}, "gap": 3}
    for accept in ("image/png", "image/webp", "image/jpeg"):
        assert pixels(service.post("/latent-interpolate", grid, accept=accept).content).shape[
            :2
        ] == (19, 41)
    plain = service.post(
        "/generate", {"seed": 1}, accept="image/png"
    ).content  # no gap and no empty cells
    assert (
        service.post("/generate", {"seed": 1, "columns": 7, "gap": 9}, accept="image/png").content
        == plain
    )


PICTURES = [
    ("application/x-npy", {"scale": 2}),
    ("application/json", {"scale": 2, "format": "npy"}),
]
SHEETS = [
    (form, body)
    for form in ("application/json", "application/x-npy")
    for body in ({"columns": 2}, {"gap": 1})
]
STREAMS = [("/generate", EVENTS, body) for body in ({"columns": 2}, {"gap": 1})]
GRID = {"grid": {"rows": 2, "cols": 2}, "columns": 4, "points": FOUR}
ANIMATIONS = [
    ("/latent-interpolate", f"image/{form}", body)
    for form in ("webp", "gif", "apng")
    for body in ({"columns": 2}, {"gap": 1})
]


@pytest.mark.parametrize(
    ("path", "accept", "body"),
    [
        *((path, accept, body) for path in BODIES for accept, body in PICTURES + SHEETS),
        *STREAMS,
        *ANIMATIONS,
        ("/latent-interpolate", "image/png", GRID),
    ],
)
def test_options_without_effect_are_refused(
    service: Service, path: str, accept: str, body: dict[str, Any]
) -> None:
    response = service.post(path, BODIES[path] | body, accept=accept)
    problem(response, 422, "invalid_value", next(iter(body)))


MOST = 60_000  # pixels
# a PNG whose base64 has a part that begins as that of a TIFF does
LIKE_TIFF = PICTURE[:33] + png_chunk(b"tEXt", b"key\0II*") + PICTURE[33:]
BEYOND: list[tuple[str, dict[str, Any], str, str]] = [
    ("/generate", {"n": 15, "scale": 8}, "application/json", "scale"),
    ("/generate", {"n": 14, "scale": 8, "steps": 1, "record": [1]}, "application/json", "scale"),
    ("/generate", {"n": 14, "scale": 8, "steps": 1, "record": [1]}, EVENTS, "scale"),
    ("/generate", {"n": 15, "scale": 8}, "image/png", "scale"),
    ("/generate", {"n": 32, "gap": 64, "columns": 2}, "image/png", "gap"),
    ("/project", {"images": [b64(PICTURE)], "scale": 31}, "image/webp", "scale"),
    ("/project", {"images": [b64(LIKE_TIFF)], "scale": 31}, "application/json", "scale"),
    ("/latent-interpolate", {"points": FOUR, "frames": 15, "scale": 8}, "image/gif", "scale"),
    ("/latent-arithmetic", {"terms": FOUR, "scale": 32}, "image/png", "scale"),
]


def test_pixels_of_an_answer_are_bounded_before_it_is_computed(models: Path) -> None:
    with serving(settings(models, max_pixels=MOST)) as service:
        for path, body, accept, field in BEYOND:
            problem(service.post(path, body, accept=accept), 422, "image_too_large", field)
        assert service.metric("ign_batches_total") == 0
        for accept in ("application/json", "image/png", EVENTS):
            assert (
                service.post("/generate", {"n": 12, "scale": 8}, accept=accept).status_code == 200
            )


def test_sides_beyond_the_format_are_refused_before_they_are_computed(tmp_path: Path) -> None:
    write_model(tmp_path, "wide", "1", (1, 1, 600))
    with serving(settings(tmp_path, default_model="wide")) as service:
        for path, body in (
            ("/generate", {"scale": 28}),
            ("/generate", {"n": 4, "scale": 7, "columns": 4}),
            ("/latent-interpolate", {"points": FOUR, "scale": 28}),
        ):
            assert (
                "16383"
                in problem(
                    service.post(path, body, accept="image/webp"), 422, "image_too_large"
                ).detail
            )
        strip = service.post(
            "/latent-interpolate", {"points": FOUR, "frames": 128}, accept="image/jpeg"
        )
        assert "76800" in problem(strip, 422, "image_too_large").detail
        assert service.metric("ign_batches_total") == 0
        assert service.post("/generate", {"scale": 27}, accept="image/webp").status_code == 200


@pytest.mark.parametrize("accept", ["application/json", "image/png", "image/gif"])
def test_after_the_deadline_no_further_picture_is_enlarged(
    models: Path, monkeypatch: pytest.MonkeyPatch, accept: str
) -> None:
    entered = threading.Event()
    free = threading.Event()
    calls = []

    def slow(picture: Pixels, scale: int, resample: Any) -> Pixels:
        calls.append(scale)
        entered.set()
        assert free.wait(PATIENCE_S)
        return enlarge(picture, scale, resample)

    for module in (responses, import_module("service.images.encode")):
        monkeypatch.setattr(module, "enlarge", slow)
    with serving(settings(models, request_timeout_s=LIMIT_S), loop="asyncio") as service:
        body = BODIES["/latent-interpolate"] | {"scale": 16}
        response = service.overdue(
            lambda: service.post("/latent-interpolate", body, accept=accept),
            lambda: entered.wait(PATIENCE_S),
        )
        problem(response, 504, "deadline_exceeded")
        assert entered.is_set()
        free.set()
        with busy_codec(service):
            assert len(calls) == 1


def test_a_stream_of_large_pictures_outlasts_the_wait_for_its_first_event(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a picture that is encoded after it."""
    body = {"seed": 3, "steps": 20, "record": [0, 1], "scale": 16}
    with (
        gated(monkeypatch, settings(models, request_timeout_s=LIMIT_S), loop="asyncio") as (
            service,
            gate,
        ),
        gate,
        service.stream(body) as (_, lines),
    ):
        service.skip()
        gate.opened.set()
        assert [line for line in lines if line.startswith("event")] == ["event: step"] * 2 + [
            "event: done"
        ]
