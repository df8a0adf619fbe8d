"""Models of an object store, loaded by request: what a caller can make the service ask of it, and
learn of it.
"""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.contract.harness import PATIENCE_S, problem, serving, settings, write_keys, write_models
from tests.contract.test_oip_repository import check_f, index, load, replace

obstore = pytest.importorskip("obstore", reason="needs the extra store")
GenericError = pytest.importorskip("obstore.exceptions").GenericError
LocalStore = pytest.importorskip("obstore.store").LocalStore
LIST = obstore.list


class Store:
    """A folder that stands for a private bucket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listings = 0
        self.fails = False
        self.opened, self.entered = threading.Event(), threading.Event()
        self.opened.set()

    def from_url(self, *_: Any, **__: Any) -> Any:
        if self.fails:
            raise GenericError(
                "GET http://internal-endpoint/private-bucket?prefix=models after 4 retries"
            )
        return LocalStore(self.folder)

    def list(self, store: Any) -> Any:
        self.listings += 1
        self.entered.set()
        assert self.opened.wait(PATIENCE_S)
        return LIST(store)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store(write_models(tmp_path / "models"))
    monkeypatch.setattr("obstore.store.from_url", store.from_url)
    monkeypatch.setattr("obstore.list", store.list)
    monkeypatch.setattr("service.models.registry.REFRESH_PAUSE_S", 0.0)
    return store


def of_store(folder: Path, **changes: Any) -> Settings:
    return settings(Path("s3://private-bucket/models"), model_cache=folder / "cache", **changes)


def test_without_keys_only_known_names_reach_the_store_and_nothing_is_told_of_it(
    store: Store, tmp_path: Path
) -> None:
    with serving(of_store(tmp_path)) as service:
        replace(store.folder, "other/1", scale=0.25)
        for name in ("x", "other", "GREY"):
            problem(load(service, name), 404, "unknown_model")
        assert store.listings == 1  # that of the start
        assert load(service, "grey").status_code == 200  # which also copies what is new
        assert load(service, "other").status_code == 200
        assert store.listings == 3
        store.fails = True
        for text in (load(service, "grey").text, service.get("/models").text, str(index(service))):
            assert not re.search(r"internal-endpoint|private|s3:", text)
        problem(load(service, "grey"), 400, "load_failed")
        check_f(service)


def test_an_admin_loads_a_new_model_of_a_store(store: Store, tmp_path: Path) -> None:
    key = {"Authorization": "Bearer ops-key"}
    with serving(
        of_store(tmp_path, api_keys_file=write_keys(tmp_path, {"ops": "infer admin"}))
    ) as service:
        replace(store.folder, "other/1", scale=0.25)
        assert load(service, "other", headers=key).status_code == 200
        problem(load(service, "x", headers=key), 404, "unknown_model")
        assert service.post("/generate", {"model": "other"}, headers=key).status_code == 200


def test_calls_at_the_same_time_share_a_refresh_and_others_do_not_wait(
    store: Store, tmp_path: Path
) -> None:
    with serving(of_store(tmp_path)) as service, ThreadPoolExecutor(41) as pool:
        store.opened.clear()
        store.entered.clear()
        calls = [pool.submit(load, service, "grey")]
        assert store.entered.wait(PATIENCE_S)
        calls += [pool.submit(load, service, name) for name in ["colour", "grey"] * 20]
        service.until(lambda: service.metric("ign_requests_in_flight") >= 41)
        problem(load(service, "x"), 404, "unknown_model")
        replace(store.folder, "grey/11", scale=0.5)  # too late for the listing under way
        store.opened.set()
        assert {call.result().status_code for call in calls} == {200}
        assert store.listings == 3  # with that of the start
        assert service.get("/models").json()["default"] == "grey/11"
