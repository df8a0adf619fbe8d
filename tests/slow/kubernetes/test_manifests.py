"""The objects of deploy/k8s, held against Kubernetes' own schemas and against each other."""

import importlib.util
import json
import re
from collections.abc import Iterator

import pytest
import yaml

from tests.slow.kubernetes.manifests import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    Object,
    container,
    objects,
    one,
    overlays,
    pod,
    settings,
    target,
)
from tests.structure.test_deployment import lineage, read

CUSTOM = {"ServiceMonitor"}  # kinds that a cluster knows by an operator; there is no schema of them here
LABEL = {"app.kubernetes.io/name": "ign"}

needs_schemas = pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None,
    reason="kubernetes-validate is not installed; the extra `dev` has it",
)


# The files


def test_every_file_belongs_to_a_kustomization() -> None:
    used = {K8S / "prometheus-adapter.yaml"}
    for file in K8S.rglob("kustomization.yaml"):
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
        named = [*said.get("resources", []), *said.get("components", [])]
        named += [patch["path"] for patch in said.get("patches", []) if "path" in patch]
        assert all((file.parent / name).exists() for name in named), file
        used |= {file, *((file.parent / name).resolve() for name in named)}
    assert {file for file in K8S.rglob("*") if file.is_file()} <= used


def test_the_guide_names_what_there_is() -> None:
    text = read("docs/deployment.md")
    names = [*(f"overlays/{name}" for name in OVERLAYS), *(f"components/{name}" for name in COMPONENTS)]
    assert len(names) == 7
    assert all(name in text for name in names)


# Kubernetes' own schemas


@needs_schemas
@overlays
def test_kubernetes_accepts_every_field(overlay: str) -> None:
    import kubernetes_validate

    found = objects(overlay)
    known = [each for each in found if each["kind"] not in CUSTOM]
    assert len(known) >= 6
    for each in known:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


@needs_schemas
def test_kubernetes_accepts_the_pods_of_kuberay() -> None:
    """What a RayService is around them has no schema here."""
    import kubernetes_validate

    cluster = yaml.safe_load(read("deploy/kuberay/rayservice.yaml"))["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pods = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]}
        kubernetes_validate.validate(pods, kubernetes_validate.latest_version(), strict=True)


@needs_schemas
def test_a_field_that_does_not_exist_is_refused() -> None:
    import kubernetes_validate

    service = yaml.safe_load((K8S / "base" / "service.yaml").read_text(encoding="utf-8"))
    service["spec"]["ports"][0]["targetport"] = "http"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, kubernetes_validate.latest_version(), strict=True)


# Names, labels, ports


def selectors(found: Object) -> Iterator[dict[str, str]]:
    """What an object selects pods by, of the service."""
    spec = found.get("spec", {})
    match found["kind"]:
        case "Deployment" | "PodDisruptionBudget":
            yield spec["selector"]["matchLabels"]
        case "Service":
            yield spec["selector"]
        case "NetworkPolicy":
            yield spec["podSelector"]["matchLabels"]
        case "ServiceMonitor":
            yield spec["selector"]["matchLabels"]
    if found["kind"] == "Deployment":
        for spread in spec["template"]["spec"]["topologySpreadConstraints"]:
            yield spread["labelSelector"]["matchLabels"]


@overlays
def test_every_selector_finds_the_pods(overlay: str) -> None:
    found = objects(overlay)
    chosen = [labels for each in found for labels in selectors(each)]
    assert len(chosen) >= 5
    assert all(labels == LABEL for labels in chosen)
    assert one(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"] == LABEL
    assert one(overlay, "Service")["metadata"]["labels"] == LABEL  # by which a ServiceMonitor finds it
    assert len({(each["kind"], each["metadata"]["name"]) for each in found}) == len(found)


@overlays
def test_ports_lead_to_the_service(overlay: str) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(overlay)["ports"]}
    assert ports == {"http": settings(overlay).port}
    assert f"EXPOSE {ports['http']}" in lineage(target(overlay))
    assert settings(overlay).host == "0.0.0.0"
    (port,) = one(overlay, "Service")["spec"]["ports"]
    assert (port["name"], port["targetPort"]) == ("http", "http")
    (rule,) = one(overlay, "NetworkPolicy")["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "http"}]


@overlays
def test_probes_ask_what_there_is(overlay: str) -> None:
    asked = {name: container(overlay)[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    live = "/healthz" if target(overlay) == "cpu" else "/readyz"
    assert {name: probe["path"] for name, probe in asked.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": live,
    }
    assert {probe["port"] for probe in asked.values()} == {"http"}
    assert {"/readyz", "/healthz"} <= set(json.loads(read("docs/openapi.json"))["paths"])
    assert "health" not in settings(overlay).private_endpoints  # probes send no key


@overlays
def test_a_pod_is_started_anew_long_after_it_is_taken_off(overlay: str) -> None:
    def patience(name: str) -> int:
        probe = container(overlay)[f"{name}Probe"]
        found: int = probe["periodSeconds"] * probe["failureThreshold"]
        return found

    assert patience("readiness") <= 10 < 60 <= patience("liveness")
    if container(overlay)["livenessProbe"]["httpGet"]["path"] == "/readyz":
        assert patience("liveness") >= 300
    assert patience("startup") >= 600


@overlays
def test_the_account_and_the_settings_are_there(overlay: str) -> None:
    assert pod(overlay)["serviceAccountName"] == one(overlay, "ServiceAccount")["metadata"]["name"]
    assert pod(overlay)["automountServiceAccountToken"] is False
    named = [source["configMapRef"]["name"] for source in container(overlay)["envFrom"]]
    assert named == [one(overlay, "ConfigMap")["metadata"]["name"]]
    assert re.fullmatch(r"ign-settings-\w{10}", named[0])  # another name for other settings


# Security: the profile `restricted` of Kubernetes' Pod Security Standards, and a little more


@overlays
def test_pods_are_restricted(overlay: str) -> None:
    spec, inside = pod(overlay)["securityContext"], container(overlay)["securityContext"]
    assert (spec["runAsNonRoot"], spec["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    assert f"USER {spec['runAsUser']}:{spec['runAsGroup']}" in lineage(target(overlay))
    assert spec["fsGroup"] == spec["runAsGroup"]
    assert inside == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    kinds = {kind for volume in pod(overlay)["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"emptyDir", "secret", "configMap", "persistentVolumeClaim", "projected", "downwardAPI"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod(overlay))
    assert all("hostPort" not in port for port in container(overlay)["ports"])


@overlays
def test_the_network_is_closed(overlay: str) -> None:
    policy = one(overlay, "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert rule["from"]  # an empty list would let in everybody
    assert all(peer.get("podSelector") or peer.get("namespaceSelector") for peer in rule["from"])
