import json

from tests.contract.harness import Service
from tests.openapi import FILE, document


def test_the_file_is_what_the_service_says(service: Service) -> None:
    assert json.loads(FILE.read_text(encoding="utf-8")) == document(), "make openapi"
    assert service.get("/openapi.json").json() == document()
