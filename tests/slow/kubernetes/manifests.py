"""What deploy/k8s says, as `kubectl apply -k` would send it. No cluster is asked for anything."""

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings, load_settings
from tests.helpers.live import ROOT
from tests.structure.test_deployment import lineage

K8S = ROOT / "deploy" / "k8s"
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml"))
AUTOSCALED = [name for name in OVERLAYS if name.endswith("-autoscaled")]

Object = dict[str, Any]

overlays = pytest.mark.parametrize("overlay", OVERLAYS)
autoscaled = pytest.mark.parametrize("overlay", AUTOSCALED)


@cache
def kustomize() -> str | None:
    """Why nothing can be rendered, or None."""
    if shutil.which("kubectl") is None:
        return "kubectl is not installed; .ci/kubernetes installs it on Debian"
    told = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, check=True, text=True)
    if "kustomizeVersion" not in json.loads(told.stdout):
        return "this kubectl is too old: its kustomize knows no components"
    return None


@cache
def rendered(folder: Path) -> tuple[Object, ...]:
    """The objects of a kustomization, as `kubectl apply -k` would send them."""
    why = kustomize()
    if why is not None:
        pytest.skip(why)
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def objects(overlay: str) -> tuple[Object, ...]:
    return rendered(K8S / "overlays" / overlay)


def one(overlay: str, kind: str) -> Object:
    """The only object of a kind."""
    (found,) = [each for each in objects(overlay) if each["kind"] == kind]
    return found


def pod(overlay: str) -> Object:
    found: Object = one(overlay, "Deployment")["spec"]["template"]["spec"]
    return found


def container(overlay: str) -> Object:
    found: Object
    (found,) = pod(overlay)["containers"]
    return found


def target(overlay: str) -> str:
    """Of the Dockerfile: `cpu` or `gpu`."""
    return overlay.removesuffix("-autoscaled")


def image_settings(overlay: str) -> dict[str, str]:
    """The `IGN_…` variables of the image."""
    return dict(re.findall(r"(IGN_\w+)=(\S+)", " ".join(lineage(target(overlay)))))


def settings(overlay: str) -> Settings:
    """What a pod's service reads: the image's variables under those of the ConfigMap."""
    return load_settings(image_settings(overlay) | one(overlay, "ConfigMap")["data"])
