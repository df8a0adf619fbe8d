import pytest

from ign_client import AsyncClient, Client
from tests.contract.conftest import models as models
from tests.contract.conftest import service as service
from tests.unit.sdk.clients import Ask


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IGN_BASE_URL", raising=False)
    monkeypatch.delenv("IGN_API_KEY", raising=False)


@pytest.fixture(params=[Client, AsyncClient], ids=["blocking", "awaiting"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Either client: what holds for one holds for the other."""
    return Ask(request.param)
