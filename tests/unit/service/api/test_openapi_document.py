import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.api.access import HEALTH_PATHS
from service.api.info import openapi
from service.app import ENDPOINTS
from service.settings import Settings


def document(**changes: Any) -> dict[str, Any]:
    return openapi.document(ENDPOINTS, Settings(**changes))


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return document()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps([{"name": "a", "sha256": "0" * 64, "scopes": ["infer"]}]))
    return file


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


def operations(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in found["paths"].items():
        for operation in item.values():
            yield path, operation


def test_every_reference_leads_somewhere_and_no_schema_is_unused(plain: dict[str, Any]) -> None:
    references = {node["$ref"] for node in nodes(plain) if "$ref" in node}
    assert references == {f"#/components/schemas/{name}" for name in plain["components"]["schemas"]}


def test_failures_and_headers_of_the_middleware_are_told(plain: dict[str, Any]) -> None:
    for path, operation in operations(plain):
        responses = operation["responses"]
        assert ({"401", "403", "429"} <= responses.keys()) == (path not in HEALTH_PATHS), path
        assert ("503" in responses) == (path not in {"/healthz", "/metrics", "/v2/health/live"}), path
        is_native = "304" in responses or ("requestBody" in operation and not path.startswith("/v2"))
        assert ("422" in responses) == is_native, path
        for status, response in responses.items():
            assert response["headers"]["X-Request-ID"]["required"], (path, status)
            assert not response["headers"]["traceparent"]["required"], (path, status)
            assert ("Retry-After" in response["headers"]) == (status in ("429", "503"))
            assert ("WWW-Authenticate" in response["headers"]) == (status == "401")
            if status not in ("200", "304"):
                assert set(response["content"]) == {"application/problem+json"}


def test_keys_are_asked_for_where_there_are_some(plain: dict[str, Any], keys: Path) -> None:
    assert "securitySchemes" not in plain["components"]
    assert not any("security" in operation for _, operation in operations(plain))
    guarded = document(api_keys_file=keys)
    (scheme,) = guarded["components"]["securitySchemes"]
    for path, operation in operations(guarded):
        assert operation.get("security", []) == ([] if path in HEALTH_PATHS else [{scheme: []}]), path


def test_limits_are_those_of_the_service() -> None:
    found = document(max_images=5, max_steps=7)
    schemas = found["components"]["schemas"]
    assert schemas["GenerateRequest"]["properties"]["n"]["maximum"] == 5
    assert schemas["GenerateRequest"]["properties"]["steps"]["anyOf"][0]["maximum"] == 7
    assert schemas["InferParameters"]["properties"]["steps"]["maximum"] == 7
    assert schemas["ProjectRequest"]["properties"]["images"]["maxItems"] == 5
    assert schemas["ProjectRequest"]["properties"]["masks"]["anyOf"][0]["maxItems"] == 5
    project = found["paths"]["/project"]["post"]
    form = project["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert (form["image"]["maxItems"], form["steps"]["maximum"]) == (5, 7)
    (steps,) = (parameter["schema"] for parameter in project["parameters"] if parameter["name"] == "steps")
    assert steps["maximum"] == 7
    assert schemas["Steps"]["properties"]["generate"]["maximum"] == 64  # of a card, not of a request


def test_query_options_have_no_defaults_for_programs_to_send(plain: dict[str, Any]) -> None:
    options = [option for option in plain["paths"]["/project"]["post"]["parameters"] if option["in"] == "query"]
    assert options
    assert not any("default" in option["schema"] for option in options)


def test_one_service_does_not_change_the_document_of_another(plain: dict[str, Any]) -> None:
    before = json.dumps(plain)
    assert document(max_images=5) != plain
    assert json.dumps(plain) == before
