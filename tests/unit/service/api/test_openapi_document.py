import json
from pathlib import Path
from typing import Any

from service.api.info import openapi
from service.app import ENDPOINTS
from service.settings import Settings

OPEN = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")


def document(**changes: Any) -> dict[str, Any]:
    return openapi.document(ENDPOINTS, Settings(**changes))


def test_keys_are_asked_for_where_there_are_some(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps([{"name": "a", "sha256": "0" * 64, "scopes": ["infer"]}]))
    guarded = document(api_keys_file=file)
    (scheme,) = guarded["components"]["securitySchemes"]
    for path, operations in guarded["paths"].items():
        for operation in operations.values():
            expected: list[Any] = [] if path in OPEN else [{scheme: []}]
            assert operation.get("security", []) == expected, path


def test_limits_are_those_of_the_service() -> None:
    found = document(max_images=5, max_steps=7)
    schemas = found["components"]["schemas"]
    form = found["paths"]["/project"]["post"]["requestBody"]["content"]["multipart/form-data"]
    fields = form["schema"]["properties"]
    assert schemas["GenerateRequest"]["properties"]["n"]["maximum"] == 5
    assert fields["image"]["maxItems"] == 5
    assert fields["steps"]["maximum"] == 7
    # of a card, not of a request
    assert schemas["Steps"]["properties"]["generate"]["maximum"] == 64
