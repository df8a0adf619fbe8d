"""What deploy/k8s promises of the service, held against the service: settings, images, drain, scaling, metrics."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from service.domain.errors import StartupError
from service.observability.metrics import Metrics
from service.settings import load_settings
from tests.helpers.live import live_service
from tests.slow.kubernetes.manifests import (
    K8S,
    Object,
    autoscaled,
    container,
    image_settings,
    objects,
    one,
    overlays,
    pod,
    rendered,
    settings,
    target,
)
from tests.structure.test_deployment import read, services

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
    assert f'{metric}{{model="mnist/3"}}' in told


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
