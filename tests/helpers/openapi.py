"""The contract for programs as a file: `make openapi` writes it, and a test holds it to what the service says."""

import json
from pathlib import Path
from typing import Any

from service.app import build_services, create_app
from service.settings import Settings

FILE = Path(__file__).parents[2] / "docs" / "openapi.json"


def document() -> dict[str, Any]:
    """What `/openapi.json` answers."""
    return create_app(build_services(Settings())).openapi()


if __name__ == "__main__":
    FILE.write_text(json.dumps(document(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
