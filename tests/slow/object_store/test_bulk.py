"""Bulk work from bucket to bucket, in real object stores behind a proxy that delays, fails and
counts.
"""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from service.bulk import places
from service.bulk.__main__ import main
from tests.contract.harness import write_models
from tests.helpers.bulk_store import bulk, killed_workers, memory_of_names, pictures, timed
from tests.helpers.live import run
from tests.helpers.object_store import Bucket, Proxy
from tests.unit.service.bulk.conftest import output_files

pytest.importorskip("obstore", reason="needs the extra store")


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    return {
        "IGN_MODEL_DIR": str(write_models(tmp_path / "fleet")),
        "IGN_DEFAULT_MODEL": "grey",
        "IGN_THREADS": "1",
    }


@pytest.mark.parametrize("pack", ["files", "tar"])
def test_many_reads_are_in_flight_and_few_writes_make_a_shard(
    pack: str, bucket: Bucket, variables: dict[str, str], tmp_path: Path
) -> None:
    source = pictures(tmp_path / "in", 300, side=8)
    options = ["--pack", pack, "--shard", 128]
    bucket.upload(source, "a folder/in")
    timed(bulk(source, tmp_path / "out", *options), **variables)
    with Proxy(bucket, delay_s=0.03) as proxy:
        far = bulk(f"{bucket.url}/a folder/in", f"{bucket.url}/out", *options)
        timed(far, **variables, **proxy.environment)
        assert proxy.most["GET"] >= 32  # on a busy machine, too
        reads = [
            request
            for request in proxy.seen
            if request.startswith("GET") and request.endswith(".png")
        ]
        assert len(reads) == len(set(reads)) == 300
        if pack == "tar":
            assert sum(request.startswith("PUT") for request in proxy.seen) == 2 + 2 * 3 + 1
        proxy.seen.clear()
        # complete: nothing but the manifest is written, nothing is listed
        timed(far, **variables, **proxy.environment)
        (written,) = (request for request in proxy.seen if request.startswith("PUT"))
        assert written.endswith("/models/out/manifest.jsonl")
        assert not any("prefix=a" in request for request in proxy.seen)
    assert bucket.download("out") == output_files(tmp_path / "out")
    bucket.upload(pictures(tmp_path / "others", 1, side=9), "a folder/in")
    changed = run(*far, **variables, **bucket.environment)
    assert changed.returncode == 2
    assert "000000.png is not what it was" in changed.stderr


def test_the_first_of_two_that_put_a_file_wins(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    place = places.Bucket(f"{bucket.url}/out")
    assert [place.put("shard", content) for content in (b"first", b"second")] == [True, False]
    assert place.get("shard") == b"first"


def test_workers_that_are_killed_make_what_one_makes(
    bucket: Bucket, variables: dict[str, str], tmp_path: Path
) -> None:
    source = pictures(tmp_path / "in", 200, side=8)
    timed(bulk(source, tmp_path / "out", "--shard", 8), **variables)
    killed_workers(source, bucket, shard=8, kills=3, ray=False, **variables)
    assert bucket.download("out") == output_files(tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "place", "failing", "says"),
    [
        ("wrong", "models", 0.0, "403"),
        ("right", "nobody", 0.0, "NoSuchBucket|ContainerNotFound"),
        ("right", "models", 1.0, "Error performing"),
    ],
)
def test_a_store_that_refuses_is_named_in_a_line(
    key: str,
    place: str,
    failing: float,
    says: str,
    bucket: Bucket,
    variables: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = pictures(tmp_path / "in", 2, side=8)
    url = bucket.url.replace("models", place)
    bucket.upload(source, "in")
    monkeypatch.setitem(places._RETRY, "retry_timeout", timedelta(seconds=1))
    with Proxy(bucket, failing=failing) as proxy:
        settings = variables | proxy.environment | (bucket.wrong_key if key == "wrong" else {})
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        for command in (bulk(f"{url}/in", tmp_path / "out"), bulk(source, f"{url}/out")):
            assert main(command[3:]) in (2, 3)
            (line,) = capfd.readouterr().err.splitlines()
            assert f"{url}/" in line
            assert re.search(says, line)
            assert not any(settings[name] in line for name in bucket.wrong_key)
            assert not (tmp_path / "out").exists()


def test_memory_for_names_is_bounded() -> None:
    assert memory_of_names(200_000) < 60
