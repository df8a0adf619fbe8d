"""Health check of the containers: exit status 0 when `/readyz` answers 200, else 1 with the reason on one line.

Reads the same `IGN_HOST` and `IGN_PORT` as the service beside it. The standard library only, so that it starts fast.
"""

import http.client
import os
import sys
from collections.abc import Mapping

TIMEOUT_S = 2.0
_MOST = 2048  # bytes of an unexpected answer that are worth reading
_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - names to translate, not to bind


def check(environ: Mapping[str, str]) -> str | None:
    """Why the service that ``environ`` describes is not ready, or None when it is."""
    host = environ.get("IGN_HOST", "").strip()
    connection = http.client.HTTPConnection(
        _LOCAL.get(host, host), int(environ.get("IGN_PORT", "").strip() or 8000), timeout=TIMEOUT_S
    )
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read(_MOST).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as exc:
        return f"no answer: {str(exc) or type(exc).__name__}"
    finally:
        connection.close()
    return None if response.status == http.client.OK else f"{response.status}: {' '.join(body.split())}"


if __name__ == "__main__":
    reason = check(os.environ)
    if reason is not None:
        print(reason)
        sys.exit(1)
