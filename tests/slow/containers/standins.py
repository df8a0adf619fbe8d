"""Stand-ins for the public images that Compose names: the same programs from Debian's packages."""

from dataclasses import dataclass

import yaml

from tests.helpers.live import ROOT


@dataclass(frozen=True)
class StandIn:
    """A package of a Debian release with the image's entry point."""

    package: str
    entrypoint: str
    release: str = "bookworm"


STAND_INS = {
    "front": StandIn("nginx-light", "[]", release="trixie"),
    "prometheus": StandIn("prometheus", '["/usr/bin/prometheus"]'),
}


def image_of(service: str) -> str:
    """The image that Compose runs for a service, with its registry and without a digest."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return f"docker.io/{services[service]['image'].partition('@')[0]}"


def recipe(service: str, base: str) -> str:
    """A Containerfile."""
    stand_in = STAND_INS[service]
    sources = f"sed -i 's/bookworm/{stand_in.release}/g' /etc/apt/sources.list"
    return (
        f"FROM {base}\n"
        f"RUN {sources} && apt-get update -q && apt-get install -yq --no-install-recommends {stand_in.package}\n"
        f"ENTRYPOINT {stand_in.entrypoint}\n"
    )
