from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.harness import Service, serving, settings, write_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def service(models: Path) -> Iterator[Service]:
    with serving(settings(models, cors_origins=("https://app.example",))) as running:
        yield running


@pytest.fixture
def unharmed(service: Service) -> Iterator[None]:
    """The next good request succeeds, and the service is as it was."""
    before = service.post("/generate", {"seed": 1}, accept="image/png").content
    yield
    after = service.post("/generate", {"seed": 1}, accept="image/png")
    assert after.status_code == 200
    assert after.content == before
    assert service.get("/readyz").status_code == 200
