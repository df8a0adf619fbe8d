"""Both images as they are built: what is in them, and how they run with nothing to spare."""

import json
import re

import pytest

from ign_client import Client
from tests.helpers.live import ROOT
from tests.slow.containers.engine import Engine
from tests.structure.test_deployment import locked

LOOK_INSIDE = """
import importlib.metadata, importlib.util, json, shutil, sys
print(json.dumps({
    "distributions": {d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()},
    "found": [name for name in ("torch", "pip", "model_export", "service") if importlib.util.find_spec(name)],
    "programs": [name for name in ("cc", "gcc", "c++", "ld", "make", "nvcc") if shutil.which(name)],
    "prefix": sys.prefix,
}))
"""
TARGETS = pytest.mark.parametrize("target", ["cpu", "gpu"])


@pytest.fixture
def image(target: str, request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(target)


@TARGETS
def test_the_image_holds_what_is_locked_and_nothing_else(
    engine: Engine, image: str, target: str
) -> None:
    done = engine.ends(image, "--entrypoint=/opt/venv/bin/python3", command=("-c", LOOK_INSIDE))
    inside = json.loads(done.stdout)
    assert inside == {
        "distributions": {name: version for name, (version, _) in locked(target).items()},
        "found": ["service"],
        "programs": [],
        "prefix": "/opt/venv",
    }


@TARGETS
@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_serves_on_the_cpu_and_stops_at_sigterm(
    engine: Engine, image: str, workers: str
) -> None:
    settings = ("--env=IGN_DEVICE=cpu", f"--env=IGN_WORKERS={workers}")
    with engine.started(image, *settings) as container:
        container.healthy()
        with Client(container.url) as client:
            digits = client.generate(n=4, seed=7, score=True)
            assert [(digit.width, digit.height) for digit in digits] == [(28, 28)] * 4
            assert client.generate(n=1, seed=7)[0].bytes == digits[0].bytes
            assert client.project(str(ROOT / "docs/images/drawn.png"), steps=2)[0].inverted
            assert {model.name for model in client.models().models} == {
                "avatars64",
                "fashion_mnist",
                "mnist",
                "scans",
            }
        written = engine.run("exec", container.name, "touch", "/app/models/new")
        assert (written.returncode, "Read-only file system" in written.stderr) == (1, True)
        container.terminate()
        assert container.ended() == 0


def test_the_gpu_image_refuses_the_cpu(engine: Engine, gpu: str) -> None:
    done = engine.ends(gpu)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"ign-service does not start: .*CUDA cannot be used", last)
    # Of all that the CUDA provider loads, the driver's own library alone is missing: that one comes
    # with the GPU.
    assert set(re.findall(r"(lib[\w.]+): cannot open shared object file", done.stderr)) == {
        "libcuda.so.1"
    }
