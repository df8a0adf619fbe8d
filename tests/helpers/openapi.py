"""`docs/openapi.json`: `make openapi` writes the file, and a contract test compares it with the
service.
"""

import json
from pathlib import Path
from typing import Any

from service.api.info import openapi
from service.app import ENDPOINTS
from service.settings import Settings

FILE = Path(__file__).parents[2] / "docs" / "openapi.json"
# document → paths, components → path, schemas → one line for each operation and schema
_EXPANDED_LEVELS = 3


def document() -> dict[str, Any]:
    """The answer of `/openapi.json`."""
    return openapi.document(ENDPOINTS, Settings())


def dumps(value: object, levels: int = _EXPANDED_LEVELS) -> str:
    """Compact JSON with sorted keys; the members of the first ``levels`` levels have a line
    each.
    """
    if not (levels and isinstance(value, dict)):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    members = [f"{json.dumps(key)}:{dumps(value[key], levels - 1)}" for key in sorted(value)]
    return "{\n" + ",\n".join(members) + "\n}"


if __name__ == "__main__":
    FILE.write_text(dumps(document()) + "\n", encoding="utf-8")
