"""A client that openapi-python-client makes of `docs/openapi.json`, as `docs/sdk.md` tells, against
the service.
"""

import importlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from service.app import ENDPOINTS
from tests.contract.data import CALLS, PICTURE
from tests.contract.harness import Service
from tests.helpers.live import run
from tests.helpers.openapi import FILE
from tests.helpers.pictures import noise, save

pytestmark = pytest.mark.slow

NAME = "ign_generated"


class Generated:
    """The package, module by module."""

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(f"{NAME}.{name}")

    def call(self, name: str, tag: str = "images") -> Any:
        return importlib.import_module(f"{NAME}.api.{tag}.{name}")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("generated")
    options = ["--path", FILE, "--output-path", folder / NAME, "--meta", "none"]
    # it calls ruff by its name
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = run(sys.executable, "-m", "openapi_python_client", "generate", *options, PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield Generated()
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


@pytest.fixture
def client(generated: Any, service: Service) -> Iterator[Any]:
    with generated.client.Client(base_url=service.url) as client:
        yield client


def test_every_post_of_json(generated: Any, client: Any, service: Service) -> None:
    models = generated.models
    kinds = {each.path: each.request for each in ENDPOINTS if each.request}
    for path, options in CALLS.items():
        call = generated.call(path.strip("/").replace("-", "_"))
        body = getattr(models, kinds[path].__name__).from_dict(options)
        answer = call.sync(client=client, body=body)
        assert answer.to_dict()["images"] == service.images(path, options), path
        assert answer.model.name == "grey"
    wrong = generated.call("generate").sync_detailed(
        client=client, body=models.GenerateRequest(n=99)
    )
    assert wrong.status_code == 422
    assert (wrong.parsed.code, [error.field for error in wrong.parsed.errors]) == (
        "invalid_value",
        ["n"],
    )


def test_a_form_with_files(generated: Any, client: Any) -> None:
    models = generated.models
    types = generated.types
    image = io.BytesIO(PICTURE)
    mask = io.BytesIO(save(noise(8, 8, seed=2)))
    body = models.ProjectFilesBody(
        image=[
            types.File(image, "a.png"),
            types.File(io.BytesIO(PICTURE), mime_type="image/png"),
        ],  # type or name
        mask=types.File(mask, "mask.png", "image/png"),
        score=True,
        record="0,1",
        strength=0.5,
        invert="auto",
        steps=2,
    )
    answer = generated.call("project").sync(client=client, body=body)
    assert [image.index for image in answer.images] == [0, 1]
    assert all(image.drift is not None and len(image.trajectory) == 2 for image in answer.images)
