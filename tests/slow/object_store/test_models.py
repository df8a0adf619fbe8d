"""Models in real object stores."""

from pathlib import Path

import httpx
import pytest

from tests.contract.harness import write_models
from tests.helpers.live import live_service
from tests.helpers.object_store import Bucket
from tests.helpers.onnx_models import write_model

pytest.importorskip("obstore", reason="needs the extra store")


def test_a_service_takes_its_models_from_a_bucket_and_starts_without_it(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.upload(write_models(tmp_path / "models"))
    settings = {"IGN_MODEL_DIR": f"{bucket.url}/fleet", "IGN_MODEL_CACHE": str(tmp_path / "cache")}
    settings |= {"IGN_DEFAULT_MODEL": "grey", "IGN_DEVICE": "cpu", **bucket.environment}
    with live_service(**settings) as url:
        assert [model["version"] for model in httpx.get(f"{url}/models").json()["models"]] == [
            "1",
            "2",
            "10",
        ]
        write_model(tmp_path / "more", "grey", "11", scale=0.5)
        bucket.upload(tmp_path / "more")
        assert httpx.post(f"{url}/v2/repository/models/grey/load", timeout=60.0).json() == {}
        assert httpx.get(f"{url}/models").json()["default"] == "grey/11"
        bucket.stop()
        failure = httpx.post(f"{url}/v2/repository/models/grey/load", timeout=60.0)
        assert (failure.status_code, failure.json()["code"]) == (400, "load_failed")
        assert not any(bucket.environment[name] in failure.text for name in bucket.wrong_key)
        assert httpx.post(f"{url}/generate", json={"seed": 1}).status_code == 200
    with live_service(**settings) as url:  # out of reach
        assert httpx.get(f"{url}/models").json()["default"] == "grey/11"
