from collections.abc import Iterator
from pathlib import Path

import pytest

from ign_client import AsyncClient, Client
from tests.contract.harness import Service, serving, settings, write_models
from tests.unit.sdk.clients import Ask


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def service(models: Path) -> Iterator[Service]:
    with serving(settings(models)) as running:
        yield running


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IGN_BASE_URL", raising=False)
    monkeypatch.delenv("IGN_API_KEY", raising=False)


@pytest.fixture(params=[Client, AsyncClient], ids=["blocking", "awaiting"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Either client: what holds for one holds for the other."""
    return Ask(request.param)
