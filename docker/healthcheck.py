"""Health check of the containers: exit status 0 if `/readyz` answers 200, else 1 and the reason on
one line.

It reads `IGN_HOST` and `IGN_PORT` like the service. It uses only the standard library, so that it
starts fast.
"""

import http.client
import os
import sys
from collections.abc import Mapping

TIMEOUT_S = 2.0
_MAX_BODY = 2048  # bytes of a response that are read
_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - looked up, not bound


def check(environ: Mapping[str, str]) -> str | None:
    """Ask the service whether it is ready.

    Args:
        environ: the variables of the service.

    Returns:
        None if it is ready, else the reason.
    """
    host = environ.get("IGN_HOST", "").strip()
    connection = http.client.HTTPConnection(
        _LOCAL.get(host, host), int(environ.get("IGN_PORT", "").strip() or 8000), timeout=TIMEOUT_S
    )
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read(_MAX_BODY).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as exc:
        return f"no answer: {str(exc) or type(exc).__name__}"
    finally:
        connection.close()
    return (
        None
        if response.status == http.client.OK
        else f"{response.status}: {' '.join(body.split())}"
    )


if __name__ == "__main__":
    reason = check(os.environ)
    if reason is not None:
        print(reason)
        sys.exit(1)
