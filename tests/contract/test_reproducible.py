"""Same seed, same bytes: whatever `n`, batch, neighbours or load."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.contract.data import b64
from tests.contract.harness import PATIENCE_S, Service
from tests.helpers.pictures import noise, save

CALLERS = 32
PICTURE = save(noise(20, 20, 3, seed=1))


def pictures(client: httpx.Client, body: dict[str, Any]) -> list[str]:
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return [image["data"] for image in response.json()["images"]]


@pytest.mark.parametrize(
    "options", [{}, {"steps": 5}, {"model": "colour"}, {"noise_scale": 0.7, "tolerance": 0.05}]
)
@pytest.mark.parametrize("form", ["png", "npy"])
def test_one_by_one_as_in_sixty_four(service: Service, options: dict[str, Any], form: str) -> None:
    options = options | {"seed": 42, "format": form}
    together = pictures(service.client, options | {"n": 64})
    assert len(set(together)) == 64
    assert [pictures(service.client, options | {"offset": i})[0] for i in range(64)] == together
    assert pictures(service.client, options | {"offset": 10, "n": 17}) == together[10:27]
    assert pictures(service.client, options | {"n": 64}) == together


def test_alone_and_under_concurrent_callers(service: Service) -> None:
    body = {"seed": 7, "n": 64, "steps": 3, "format": "npy"}
    alone = pictures(service.client, body)
    projection = {"images": [b64(PICTURE)], "steps": 3, "format": "npy"}
    projected = service.post("/project", projection).json()["images"]

    def caller(number: int) -> None:
        with httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client:
            for i in range(number, 64, CALLERS):
                assert pictures(client, body | {"n": 1, "offset": i}) == [alone[i]]
            offset = number % 32
            assert (
                pictures(client, body | {"n": 32, "offset": offset}) == alone[offset : offset + 32]
            )
            assert client.post("/project", json=projection).json()["images"] == projected

    with ThreadPoolExecutor(CALLERS) as pool:
        for done in [pool.submit(caller, number) for number in range(CALLERS)]:
            done.result()
