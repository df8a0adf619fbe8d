"""Image files are opened in the threads of the codec pool: the event loop looks at their first bytes at most.

The exception is a PNG of the size of a model's image, which takes less time than waking a thread. It is not sent here.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

import service.images
from benchmarks.load_generator.messages import JSON, post, text
from tests.contract.any_size import UPLOADS, Way, ask, write_tiles
from tests.contract.harness import Service, serving, settings, write_models
from tests.helpers.pictures import noise, save

PILLOW, IMAGES = (Path(package.__file__ or "").parent for package in (PIL, service.images))
FORMATS = {str(file) for file in (*PILLOW.glob("*ImagePlugin.py"), PILLOW / "ImageFile.py")}
READERS = {"__init__", "_open", "load"}  # of Pillow's formats
PARSERS = {f"{IMAGES}/{name}.py" for name in ("decode", "formats", "untrusted")}
WRITERS = {"png_chunk", "png_header"}  # of answers
LOOKS = 8  # calls of functions that look at the beginning of an image; those that read the smallest call more
GREY = noise(9, 8, seed=1)
PAGES = [Image.fromarray(GREY)] * 3
FILES = {
    "PNG": save(GREY),
    "PNG of 16 bits": save(Image.fromarray(noise(9, 8).astype(np.uint16) * 257)),
    "TIFF": save(GREY, "TIFF", compression="tiff_lzw"),
    "TIFF of pages": save(PAGES[0], "TIFF", save_all=True, append_images=PAGES[1:]),
    **{name: save(GREY, name) for name in ("JPEG", "WEBP", "BMP", "GIF", "AVIF")},
}
FILES |= {f"half a {name}": data[: len(data) // 2] for name, data in FILES.items()}


WAYS: dict[str, Way] = {
    **{name: UPLOADS[name] for name in UPLOADS if JSON in name or name.endswith("edits")},
    "/score, form": UPLOADS["/score, form"],
    "/project, mask": lambda files: post("/project", {"images": [text(files[0])], "mask": text(files[0])}),
    "/latent-interpolate": lambda files: post(
        "/latent-interpolate", {"model": "grey", "points": [{"image": text(files[0])}, {"seed": 1}]}
    ),
}


class Profile:
    """Counts in every thread that begins meanwhile the calls of functions that read images."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()  # by thread and function

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        is_reader = code.co_filename in FORMATS and code.co_name in READERS
        is_parser = code.co_filename in PARSERS and code.co_name not in WRITERS
        if event == "call" and (is_reader or is_parser):
            name = f"Pillow's {code.co_qualname}" if is_reader else code.co_qualname
            self.calls[threading.current_thread().name.partition("_")[0], name] += 1


@pytest.fixture(scope="module")
def profile() -> Iterator[Profile]:
    profile = Profile()
    threading.setprofile(profile)
    yield profile
    threading.setprofile(None)


@pytest.fixture(scope="module", params=["grey", "tiles"])
def profiled(
    request: pytest.FixtureRequest, profile: Profile, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    models = write_tiles(write_models(tmp_path_factory.mktemp("models")))
    with serving(settings(models, default_model=request.param)) as service:
        yield service


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", WAYS)
def test_no_decoder_runs_on_the_event_loop(way: str, name: str, profile: Profile, profiled: Service) -> None:
    profile.calls.clear()
    assert ask(profiled, WAYS[way]([FILES[name]])) in (200, 422)
    on_loop = {name: count for (thread, name), count in profile.calls.items() if thread != "codec"}
    assert not [name for name in on_loop if name.startswith("Pillow")]
    assert sum(on_loop.values()) <= LOOKS, on_loop
    assert any(thread == "codec" for thread, _ in profile.calls)
