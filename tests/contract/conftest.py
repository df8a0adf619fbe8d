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
