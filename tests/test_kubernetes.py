"""What deploy/k8s says, rendered and held against Kubernetes' own schemas and against the service. No cluster is asked.

`kubectl kustomize` renders, `kubernetes-validate` has the schemas; what either is missing for is skipped, and says so.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.domain.errors import StartupError
from service.metrics import Metrics
from service.settings import Settings, load_settings
from tests.live import ROOT
from tests.test_deployment import lineage, read, services

K8S = ROOT / "deploy" / "k8s"
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml"))
AUTOSCALED = [name for name in OVERLAYS if name.endswith("-autoscaled")]
CUSTOM = {"ServiceMonitor"}  # kinds that a cluster knows by an operator; there is no schema of them here
LABEL = {"app.kubernetes.io/name": "ign"}

Object = dict[str, Any]

overlays = pytest.mark.parametrize("overlay", OVERLAYS)
autoscaled = pytest.mark.parametrize("overlay", AUTOSCALED)
needs_schemas = pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None,
    reason="kubernetes-validate is not installed; the extra `dev` has it",
)


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
    assert "health" not in settings(overlay).closed  # probes send no key


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


# What the service is told


@overlays
def test_every_setting_exists(overlay: str) -> None:
    found = settings(overlay)  # raises for a name or value that does not
    assert found.device == {"cpu": "cpu", "gpu": "cuda"}[target(overlay)]
    assert found.log_format == "json"
    assert "env" not in container(overlay)


def test_a_service_link_would_refuse_to_start() -> None:
    """Why `enableServiceLinks` is false: what Kubernetes sets for a Service named `ign` otherwise."""
    with pytest.raises(StartupError):
        load_settings({"IGN_PORT": "tcp://10.96.0.7:80"})
    with pytest.raises(StartupError, match="IGN_SERVICE_HOST"):
        load_settings({"IGN_SERVICE_HOST": "10.96.0.7"})


@overlays
def test_no_service_links(overlay: str) -> None:
    assert one(overlay, "Service")["metadata"]["name"] == "ign"
    assert pod(overlay)["enableServiceLinks"] is False


@overlays
def test_keys_come_from_a_secret(overlay: str) -> None:
    keys = settings(overlay).api_keys_file
    assert keys is not None
    mounts = {mount["mountPath"]: mount for mount in container(overlay)["volumeMounts"]}
    mount = mounts[str(keys.parent)]
    assert mount["readOnly"] is True
    (volume,) = [each for each in pod(overlay)["volumes"] if each["name"] == mount["name"]]
    secret = volume["secret"]
    assert (secret["secretName"], secret["defaultMode"]) == ("ign-keys", 0o440)
    assert f"--from-file={keys.name}" in read("docs/deployment.md")
    assert not [each for each in objects(overlay) if each["kind"] == "Secret"]


@overlays
def test_the_image_is_that_of_compose(overlay: str) -> None:
    file = {"cpu": "docker/compose.cpu.yml", "gpu": "docker-compose.yml"}[target(overlay)]
    assert container(overlay)["image"] == services(file)["ign"]["image"]


@overlays
def test_volumes_and_mounts_agree(overlay: str) -> None:
    volumes = {volume["name"]: volume for volume in pod(overlay)["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container(overlay)["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    assert mounts["tmp"] == "/tmp"
    assert set(volumes["tmp"]["emptyDir"]) == {"sizeLimit"}


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


# How pods leave, and how many there are


@overlays
def test_a_pod_has_time_to_drain(overlay: str) -> None:
    found, spec = settings(overlay), pod(overlay)
    before = container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before > 0
    assert spec["terminationGracePeriodSeconds"] > before + found.drain_delay_s + found.drain_s
    assert found.drain_s >= found.request_timeout_s  # so that every request that was let in is answered


@overlays
def test_a_node_can_be_emptied_and_somebody_serves(overlay: str) -> None:
    budget = one(overlay, "PodDisruptionBudget")["spec"]
    assert set(budget) == {"maxUnavailable", "unhealthyPodEvictionPolicy", "selector"}
    scaler = [each for each in objects(overlay) if each["kind"] == "HorizontalPodAutoscaler"]
    replicas = scaler[0]["spec"]["minReplicas"] if scaler else one(overlay, "Deployment")["spec"]["replicas"]
    assert 0 < budget["maxUnavailable"] < replicas


@overlays
def test_a_rollout_needs_no_gpu_to_spare(overlay: str) -> None:
    strategy = one(overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    expected = {"cpu": {"maxSurge": 1, "maxUnavailable": 0}, "gpu": {"maxSurge": 0, "maxUnavailable": 1}}
    assert strategy == expected[target(overlay)]


@overlays
def test_resources(overlay: str) -> None:
    found = container(overlay)["resources"]
    gpus = {"nvidia.com/gpu": "1"} if target(overlay) == "gpu" else {}
    assert found["requests"]["cpu"] == "2"
    assert {name: value for name, value in found["limits"].items() if "/" in name} == gpus
    assert ("cpu" in found["limits"]) == (target(overlay) == "cpu")  # IGN_THREADS follows it
    assert {"memory"} <= found["limits"].keys() & found["requests"].keys()


# Autoscaling and metrics


def adapter() -> Object:
    (rule,) = yaml.safe_load((K8S / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]
    found: Object = rule
    return found


@autoscaled
def test_the_autoscaler_asks_for_what_the_service_says(overlay: str) -> None:
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


@autoscaled
def test_the_autoscaler_alone_says_how_many(overlay: str) -> None:
    deployment = one(overlay, "Deployment")
    spec = one(overlay, "HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in deployment["spec"]
    expected = {"apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert spec["scaleTargetRef"] == expected
    assert 2 <= spec["minReplicas"] < spec["maxReplicas"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed; .ci/monitoring installs it")
def test_prometheus_understands_the_adapter(tmp_path: Path) -> None:
    query = adapter()["metricsQuery"]
    filled = {"<<.Series>>": "ign_queue_rows", "<<.LabelMatchers>>": 'namespace="a",pod=~"b|c"', "<<.GroupBy>>": "pod"}
    for name, value in filled.items():
        assert name in query
        query = query.replace(name, value)
    rules = {"groups": [{"name": "adapter", "rules": [{"record": "ign:asked", "expr": query}]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    done = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@autoscaled
def test_prometheus_is_told_where(overlay: str) -> None:
    monitor = one(overlay, "ServiceMonitor")["spec"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in one(overlay, "Service")["spec"]["ports"]}
    assert endpoint["path"] in json.loads(read("docs/openapi.json"))["paths"]
    assert one(overlay, "Service")["metadata"]["labels"][monitor["jobLabel"]] == "ign"  # as the rules call the job
    scrape = yaml.safe_load(read("docker/prometheus/prometheus.yml"))["global"]["scrape_interval"]
    assert endpoint["interval"] == scrape


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
