from collections.abc import Iterator
from pathlib import Path

import pytest

from service.domain.accounts import Rate
from tests.contract.harness import Service, serving, settings, write_keys, write_models

ORIGIN = "https://app.example"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def service(models: Path) -> Iterator[Service]:
    with serving(settings(models, cors_origins=(ORIGIN,))) as running:
        yield running


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scopes = {"alice": "infer", "ops": "admin", "slow": "infer", "slower": "infer"}
    return write_keys(tmp_path_factory.mktemp("keys"), scopes, slow="3/m", slower="3/m")


@pytest.fixture(scope="session")
def guarded(models: Path, keys: Path) -> Iterator[Service]:
    """A service with API keys and a rate limit."""
    limit = Rate(100_000, 1.0)
    with serving(
        settings(
            models,
            api_keys_file=keys,
            cors_origins=(ORIGIN,),
            rate_limit=limit,
        )
    ) as running:
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
