"""What deploy/k8s says, as `kubectl apply -k` would send it: held against Kubernetes' schemas, and against the service.

No cluster is asked for anything.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.domain.errors import StartupError
from service.observability.metrics import Metrics
from service.settings import Settings, load_settings
from tests.helpers.live import ROOT, live_service
from tests.structure.test_deployment import lineage, read

K8S = ROOT / "deploy" / "k8s"
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))
AUTOSCALED = [name for name in OVERLAYS if name.endswith("-autoscaled")]

Object = dict[str, Any]

overlays = pytest.mark.parametrize("overlay", OVERLAYS)
autoscaled = pytest.mark.parametrize("overlay", AUTOSCALED)


@cache
def rendered(folder: Path) -> tuple[Object, ...]:
    """The objects of a kustomization, as `kubectl apply -k` would send them."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; .ci/tools installs it on Debian")
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


CUSTOM = {"ServiceMonitor"}  # kinds that a cluster knows by an operator; there is no schema of them here
LABEL = {"app.kubernetes.io/name": "ign"}

# The files


# Kubernetes' own schemas


def validate(found: Object) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    kubernetes.validate(found, kubernetes.latest_version(), strict=True)


@overlays
def test_kubernetes_accepts_every_field(overlay: str) -> None:
    known = [found for found in objects(overlay) if found["kind"] not in CUSTOM]
    assert len(known) >= 6
    for found in known:
        validate(found)


def test_kubernetes_accepts_the_pods_of_kuberay() -> None:
    """There is no schema of the RayService around them."""
    cluster = yaml.safe_load(read("deploy/kuberay/rayservice.yaml"))["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]})


# Names, labels, ports


def selectors(found: Object) -> Iterator[dict[str, str]]:
    """The labels by which an object selects pods of the service."""
    spec = found.get("spec", {})
    match found["kind"]:
        case "Deployment":
            yield spec["selector"]["matchLabels"]
            for spread in spec["template"]["spec"]["topologySpreadConstraints"]:
                yield spread["labelSelector"]["matchLabels"]
        case "PodDisruptionBudget" | "ServiceMonitor":
            yield spec["selector"]["matchLabels"]
        case "Service":
            yield spec["selector"]
        case "NetworkPolicy":
            yield spec["podSelector"]["matchLabels"]


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
def test_probes_ask_what_there_is_and_are_patient(overlay: str) -> None:
    probes = {name: container(overlay)[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    live, least_s = {"cpu": ("/healthz", 60), "gpu": ("/readyz", 300)}[target(overlay)]
    asked = {name: (probe["httpGet"]["path"], probe["httpGet"]["port"]) for name, probe in probes.items()}
    assert asked == {"startup": ("/readyz", "http"), "readiness": ("/readyz", "http"), "liveness": (live, "http")}
    assert {path for path, _ in asked.values()} <= set(json.loads(read("docs/openapi.json"))["paths"])
    assert "health" not in settings(overlay).private_endpoints  # probes send no key
    patience = {name: probe["periodSeconds"] * probe["failureThreshold"] for name, probe in probes.items()}
    assert patience["readiness"] <= 10 < least_s <= patience["liveness"]
    assert patience["startup"] >= 600


@overlays
def test_the_account_and_the_settings_are_there(overlay: str) -> None:
    assert pod(overlay)["serviceAccountName"] == one(overlay, "ServiceAccount")["metadata"]["name"]
    assert pod(overlay)["automountServiceAccountToken"] is False
    named = [source["configMapRef"]["name"] for source in container(overlay)["envFrom"]]
    assert named == [one(overlay, "ConfigMap")["metadata"]["name"]]
    assert re.fullmatch(r"ign-settings-\w{10}", named[0])  # another name for other settings


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


# What the service is told


@overlays
def test_settings_and_keys(overlay: str) -> None:
    """Kubernetes would set `IGN_PORT` for a Service named `ign`, with which the service does not start."""
    found = settings(overlay)  # raises for a name or value that does not exist
    assert (found.device, found.log_format) == ({"cpu": "cpu", "gpu": "cuda"}[target(overlay)], "json")
    assert "env" not in container(overlay)
    assert (one(overlay, "Service")["metadata"]["name"], pod(overlay)["enableServiceLinks"]) == ("ign", False)
    with pytest.raises(StartupError):
        load_settings({"IGN_PORT": "tcp://10.96.0.7:80"})
    assert found.api_keys_file is not None
    (mount,) = [m for m in container(overlay)["volumeMounts"] if m["mountPath"] == str(found.api_keys_file.parent)]
    assert mount["readOnly"] is True
    (volume,) = [each for each in pod(overlay)["volumes"] if each["name"] == mount["name"]]
    assert (volume["secret"]["secretName"], volume["secret"]["defaultMode"]) == ("ign-keys", 0o440)
    assert f"--from-file={found.api_keys_file.name}" in read("docs/deployment.md")
    assert not [each for each in objects(overlay) if each["kind"] == "Secret"]


def test_models_may_come_from_a_claim(tmp_path: Path) -> None:
    # kustomize takes relative paths alone
    up = os.path.relpath(K8S, tmp_path)
    said = {"resources": [f"{up}/overlays/cpu"], "components": [f"{up}/components/models-volume"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(said))
    (deployment,) = [each for each in rendered(tmp_path) if each["kind"] == "Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts.keys() == {"tmp", "keys", "models"}
    assert mounts["models"]["mountPath"] == image_settings("cpu")["IGN_MODEL_DIR"]
    (claim,) = [volume["persistentVolumeClaim"] for volume in spec["volumes"] if volume["name"] == "models"]
    assert claim["readOnly"] is mounts["models"]["readOnly"] is True


@pytest.mark.slow
def test_the_service_runs_with_what_a_pod_is_given(tmp_path: Path) -> None:
    """As a process: the pod's settings but for paths, port and log, its probes, a key, and SIGTERM in the end."""
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps([{"name": "a", "sha256": hashlib.sha256(b"k").hexdigest(), "scopes": ["infer"]}]))
    given = one("cpu", "ConfigMap")["data"] | {"IGN_API_KEYS_FILE": str(keys), "IGN_PORT": "0"}
    given["IGN_LOG_FORMAT"] = "text"  # in which the address is read
    with live_service(**given, IGN_DEVICE="cpu") as url, httpx.Client(base_url=url, trust_env=False) as client:
        probes = [container("cpu")[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
        assert [client.get(path).status_code for path in probes] == [200, 200, 200]
        assert client.post("/generate", json={"n": 1}).status_code == 401
        assert client.post("/generate", json={"n": 1}, headers={"authorization": "Bearer k"}).status_code == 200
        told = client.get("/metrics").text
    metric = adapter()["seriesQuery"].partition("{")[0]
    assert f'{metric}{{model="mnist/5"}}' in told


# How pods leave, and how many there are


@overlays
def test_a_pod_has_time_to_drain_and_others_serve(overlay: str) -> None:
    found, spec = settings(overlay), pod(overlay)
    before = container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before > 0
    assert spec["terminationGracePeriodSeconds"] > before + found.drain_delay_s + found.drain_s
    assert found.drain_s >= found.request_timeout_s  # so that every admitted request gets its response
    budget = one(overlay, "PodDisruptionBudget")["spec"]
    assert set(budget) == {"maxUnavailable", "unhealthyPodEvictionPolicy", "selector"}
    scaler = [each for each in objects(overlay) if each["kind"] == "HorizontalPodAutoscaler"]
    replicas = scaler[0]["spec"]["minReplicas"] if scaler else one(overlay, "Deployment")["spec"]["replicas"]
    assert 0 < budget["maxUnavailable"] < replicas


# Autoscaling and metrics


def adapter() -> Object:
    (rule,) = yaml.safe_load((K8S / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]
    found: Object = rule
    return found


@autoscaled
def test_the_autoscaler_asks_for_what_the_service_says_and_decides_alone(overlay: str) -> None:
    spec = one(overlay, "HorizontalPodAutoscaler")["spec"]
    queue, cpu = spec["metrics"]
    metric = queue["pods"]["metric"]["name"]
    exposed, _ = Metrics().render()
    assert f"# TYPE {metric} gauge" in exposed.decode().splitlines()
    assert adapter()["seriesQuery"].partition("{")[0] == metric
    waiting, found = int(queue["pods"]["target"]["averageValue"]), settings(overlay)
    assert waiting == found.max_batch_rows < found.queue_rows
    cores = {"cpu": "1400m", "gpu": "700m"}[target(overlay)]
    assert cpu["resource"] == {"name": "cpu", "target": {"type": "AverageValue", "averageValue": cores}}
    deployment = one(overlay, "Deployment")
    assert "replicas" not in deployment["spec"]
    expected = {"apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert spec["scaleTargetRef"] == expected
    assert 2 <= spec["minReplicas"] < spec["maxReplicas"]
