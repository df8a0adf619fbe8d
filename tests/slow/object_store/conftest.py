"""The object stores on which these tests run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.object_store import Azurite, Bucket


@pytest.fixture(params=[Bucket, Azurite])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bucket]:
    with request.param(tmp_path) as bucket:
        yield bucket
