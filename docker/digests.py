"""Write the digest of every public image behind its tag: `make digests`.

`name:tag` in the Dockerfiles and Compose files becomes `name:tag@sha256:…`, with the digest that
the registry has for the tag now. Nothing is written unless every registry answers.

Exit status:

0  every reference has the digest of today
1  with `--check`: a reference has no digest
3  a registry is out of reach, or does not know an image
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx

ROOT: Final = Path(__file__).resolve().parents[1]
FILES: Final = (
    "Dockerfile",
    "docker/export.Dockerfile",
    "deploy/kuberay/Dockerfile",
    "docker-compose.yml",
    "docker/compose.gpu-metrics.yml",
)
REFERENCE: Final = re.compile(
    r"(?m)^(?P<before>ARG BASE=|\s*image: )(?P<image>(?!ign-service)[a-z0-9./-]+:[\w.-]+)"
    r"(?P<digest>@sha256:[0-9a-f]{64})?$"
)
_MANIFESTS: Final = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


class OutOfReach(Exception):
    """A registry does not answer, or has no such image."""


def digest(http: httpx.Client, image: str) -> str:
    """The digest of an image's manifest or index, `sha256:` and 64 hexadecimal digits.

    Raises:
        OutOfReach: the registry does not answer with it.
    """
    name, tag = image.rsplit(":", 1)
    host, _, path = name.partition("/")
    if "." not in host:  # Docker Hub, where official images lie below `library`
        host = "registry-1.docker.io"
        path = name if "/" in name else f"library/{name}"
    url = f"https://{host}/v2/{path}/manifests/{tag}"
    try:
        answer = http.get(url, headers={"Accept": _MANIFESTS})
        if answer.status_code == 401:
            token = _token(http, answer.headers.get("www-authenticate", ""))
            answer = http.get(
                url, headers={"Accept": _MANIFESTS, "Authorization": f"Bearer {token}"}
            )
        answer.raise_for_status()
    except (httpx.HTTPError, LookupError, ValueError) as exc:
        raise OutOfReach(f"{image}: {str(exc) or type(exc).__name__}") from exc
    computed = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
    if answer.headers.get("docker-content-digest", computed) != computed:
        raise OutOfReach(f"{image}: the answer does not have the digest that its header names")
    return computed


def _token(http: httpx.Client, challenge: str) -> str:
    """An anonymous token, from where the registry says."""
    parameters = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    answer = http.get(parameters.pop("realm"), params=parameters).raise_for_status().json()
    return str(answer.get("token") or answer["access_token"])


def references(root: Path) -> Iterator[tuple[Path, str, bool]]:
    """File, image with its tag, and whether a digest follows, of every public image."""
    for name in FILES:
        for match in REFERENCE.finditer((root / name).read_text(encoding="utf-8")):
            yield root / name, match["image"], match["digest"] is not None


def pin(root: Path, http: httpx.Client) -> dict[str, str]:
    """Write the digests, and return them by image.

    Raises:
        OutOfReach: as `digest`; then no file has changed.
    """
    digests = {
        image: digest(http, image) for image in sorted({image for _, image, _ in references(root)})
    }
    for file in sorted({file for file, _, _ in references(root)}):
        text = file.read_text(encoding="utf-8")
        pinned = REFERENCE.sub(
            lambda match: f"{match['before']}{match['image']}@{digests[match['image']]}", text
        )
        file.write_text(pinned, encoding="utf-8")
    return digests


def main(arguments: list[str]) -> int:
    """Run the command, and return its exit status."""
    if arguments == ["--check"]:
        loose = [
            f"{file.relative_to(ROOT)}: {image} has no digest"
            for file, image, pinned in references(ROOT)
            if not pinned
        ]
        print("\n".join(loose) or "every public image has a digest")
        return 1 if loose else 0
    if arguments:
        print("usage: python docker/digests.py [--check]", file=sys.stderr)
        return 2
    with httpx.Client(timeout=30, follow_redirects=True) as http:
        try:
            for image, found in pin(ROOT, http).items():
                print(f"{image}@{found}")
        except OutOfReach as exc:
            print(f"no digest was written: {exc}", file=sys.stderr)
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
