"""The chart of deploy/chart, rendered by Helm with every example of values: held against schemas,
and the service.

No cluster is asked for anything.
"""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import cache
from itertools import pairwise, product
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
from tests.contract.harness import bearer, write_keys
from tests.helpers.live import MODELS, ROOT, SHIPPED, free_port, live_service, run
from tests.helpers.object_store import Bucket
from tests.slow.monitoring.files import RULES
from tests.structure.test_deployment import lineage, read

helm = pytest.importorskip("helm_python", reason="needs `pip install helm-python-sdk`")
kubernetes = pytest.importorskip(
    "kubernetes_validate", reason="needs `pip install kubernetes-validate`"
)

Object = dict[str, Any]

CHART = ROOT / "deploy" / "chart" / "ign-service"
EXAMPLES = sorted(file.stem for file in (CHART / "examples").glob("*.yaml"))
ON_GPU = ("autoscaled", "bulk", "keda", "kserve", "models-bucket", "ray")
# Files of values, separated by spaces, of which the last wins, as with -f; "" is the chart's own
# values.
SETS = [
    "",
    "gpu",
    *EXAMPLES,
    *(f"gpu {name}" for name in ON_GPU),
    "kserve models-claim",
    "kserve models-volume",
]
CUSTOM = {
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
    "AlertmanagerConfig": "cloudcoil.models.prometheus_operator.v1alpha1",
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
}
"""Kinds that an operator adds to a cluster, and the package with their schema."""
WITHOUT_SCHEMA = ("HTTPRoute", "ServingRuntime", "InferenceService", "RayService")


def merged(base: Object, over: Object) -> Object:
    """``base`` with ``over`` on it, as Helm merges files of values."""
    both = {
        name: merged(base[name], over[name])
        for name in base.keys() & over.keys()
        if isinstance(over[name], dict)
    }
    return base | over | both


def values(chosen: str) -> Object:
    found: Object = {}
    for name in chosen.split():
        file = CHART / ("values-gpu.yaml" if name == "gpu" else f"examples/{name}.yaml")
        found = merged(found, yaml.safe_load(file.read_text(encoding="utf-8")))
    return found


every_set = pytest.mark.parametrize("chosen", SETS)
every_served = pytest.mark.parametrize(
    "chosen", [chosen for chosen in SETS if values(chosen).get("workload") in (None, "kserve")]
)
PROBES = ("startup", "readiness", "liveness")
# What KServe reads itself, and does not put into the pod.
OF_KSERVE = {"annotations", "deploymentStrategy", "labels", "maxReplicas", "minReplicas"}
OF_KSERVE |= {"model", "protocolVersions", "supportedModelFormats"}
STARTED = ("", "kserve", "models-bucket", "models-claim", "open", "traces")
"""Sets with which a service is started: their models and keys come in different ways."""


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
    (found,) = (each for each in objects(chosen) if each["kind"] == kind)
    return found


def pods(chosen: str) -> Iterator[Object]:
    """Metadata and spec of every pod that the release's objects make."""
    for found in objects(chosen):
        spec = found.get("spec", {})
        match found["kind"]:
            case "Deployment" | "Job":
                yield spec["template"]
            case "RayService":
                groups = [
                    spec["rayClusterConfig"]["headGroupSpec"],
                    *spec["rayClusterConfig"]["workerGroupSpecs"],
                ]
                yield from (group["template"] for group in groups)
            case "InferenceService":  # KServe puts the two together
                both = one(chosen, "ServingRuntime")["spec"] | spec["predictor"]
                spec = {name: both[name] for name in both.keys() - OF_KSERVE}
                yield {"metadata": {"labels": both["labels"]}, "spec": spec}


def container(chosen: str) -> Object:
    """That of the service, or of a Job."""
    (pod,) = pods(chosen)
    found: Object
    (found,) = pod["spec"]["containers"]
    return found


def environment(chosen: str) -> dict[str, str]:
    """The variables of a pod's service."""
    return {each["name"]: each["value"] for each in container(chosen)["env"]}


def settings(chosen: str) -> Settings:
    """What a pod's service reads: the image's variables under those of the pod."""
    image = " ".join(
        lineage(container(chosen)["image"].removeprefix(f"ign-service:{__version__}-"))
    )
    return load_settings(dict(re.findall(r"(IGN_\w+)=(\S+)", image)) | environment(chosen))


# Schemas


@every_set
def test_helm_and_kubernetes_find_no_fault(chosen: str) -> None:
    report = helm.lint(str(CHART), values(chosen), strict=True)
    assert not report["errors"] + [
        message for message in report["messages"] if message["severity"] > 1
    ]
    bare = [
        {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": {"name": "ign"}}
        for pod in pods(chosen)
    ]
    unknown = {*CUSTOM, *WITHOUT_SCHEMA}
    for found in [each for each in objects(chosen) if each["kind"] not in unknown] + bare:
        kubernetes.validate(found, kubernetes.latest_version(), strict=True)
    assert len({(each["kind"], each["metadata"]["name"]) for each in objects(chosen)}) == len(
        objects(chosen)
    )
    assert bare


@pytest.mark.parametrize("kind", CUSTOM)
def test_operators_accept_every_field(kind: str) -> None:
    found = [each for chosen in SETS for each in objects(chosen) if each["kind"] == kind]
    assert found
    package = pytest.importorskip(CUSTOM[kind], reason="needs cloudcoil's models")
    for each in found:
        read_back = getattr(package, kind).model_validate(each)
        assert read_back.model_dump(mode="json", by_alias=True, exclude_unset=True) == each


# Names, labels, ports


@every_set
def test_every_selector_finds_the_pods_of_its_release_alone(chosen: str) -> None:
    label = {"app.kubernetes.io/name": "ign-service", "app.kubernetes.io/instance": "ign-canary"}
    text = json.dumps(render(values(chosen), "ign-canary"))
    found = {*re.findall(r'"(?:matchLabels|selector)": (\{"app[^}]*\})', text)}
    assert [json.loads(each) for each in found] == [label]
    assert all(label.keys() <= pod["metadata"]["labels"].keys() for pod in pods(chosen))


@every_served
def test_ports_and_probes_lead_to_the_service_and_are_patient(chosen: str) -> None:
    (port,), found = container(chosen)["ports"], settings(chosen)
    assert (port["containerPort"], found.host) == (found.port, "0.0.0.0")
    probes = [container(chosen)[f"{name}Probe"] for name in PROBES]
    live, least_s = ("/readyz", 300) if found.device == "cuda" else ("/healthz", 60)
    assert [probe["httpGet"]["path"] for probe in probes] == ["/readyz", "/readyz", live]
    led = {each["httpGet"]["port"] for each in probes}
    for each in objects(chosen):
        if each["kind"] == "Service":
            led.add(each["spec"]["ports"][0]["targetPort"])
        if each["kind"] == "NetworkPolicy":
            led.add(each["spec"]["ingress"][0]["ports"][0]["port"])
    assert led == {port.get("name", port["containerPort"])}
    startup, readiness, liveness = (
        probe["periodSeconds"] * probe["failureThreshold"] for probe in probes
    )
    assert readiness <= 10 < least_s <= liveness < 600 <= startup


@every_set
def test_pods_are_restricted(chosen: str) -> None:
    for pod in (pod["spec"] for pod in pods(chosen)):
        spec = pod["securityContext"]
        ray = pod["containers"][0]["name"].startswith("ray-")
        assert (spec["runAsNonRoot"], spec["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
        assert spec["fsGroup"] == spec["runAsGroup"]
        assert ray or f"USER {spec['runAsUser']}:{spec['runAsGroup']}" in lineage("cpu")
        (inside,) = (each["securityContext"] for each in pod["containers"])
        assert (inside["allowPrivilegeEscalation"], inside["capabilities"]) == (
            False,
            {"drop": ["ALL"]},
        )
        assert ray or inside["readOnlyRootFilesystem"]
        known = {"name", "emptyDir", "secret"}
        known.add("image" if chosen == "models-volume" else "persistentVolumeClaim")
        assert {kind for volume in pod["volumes"] for kind in volume} <= known
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        # Kubernetes would set IGN_PORT for a Service named `ign`, with which the service does not
        # start.
        assert pod["enableServiceLinks"] is False
        assert (
            pod["containers"][0]["name"] == "ray-head"
            or pod["automountServiceAccountToken"] is False
        )
        assert [each["topologyKey"][-4:] for each in pod["topologySpreadConstraints"]] == [
            "zone",
            "name",
        ]


@pytest.mark.parametrize("chosen", [chosen for chosen in SETS if chosen != "open"])
def test_the_network_is_closed(chosen: str) -> None:
    policy = one(chosen, "NetworkPolicy")["spec"]
    given = values(chosen)
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert bool(policy["ingress"]) is (given.get("workload") != "job")
    # no peer would be everybody
    for peer in (peer for rule in policy["ingress"] for peer in rule["from"] or [{}]):
        assert peer.get("podSelector") or peer.get("namespaceSelector")
    from_bucket = given.get("models", {}).get("source") == "bucket"
    reaches = from_bucket or given.get("workload") in ("job", "ray")
    own = given.get("networkPolicy", {}).get("egress", [])
    assert (len(policy["egress"]) > len(own)) is reaches
    assert all(rule.get("ports") or rule["to"] for rule in policy["egress"])


# What the service is told


@every_served
def test_a_pod_has_the_settings_keys_and_time_to_drain(chosen: str) -> None:
    # raises for a name or value that does not exist
    found = settings(chosen)
    (pod,) = pods(chosen)
    mounts = {mount["mountPath"]: mount for mount in container(chosen)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    if chosen != "open":
        assert (str(found.api_keys_file), mounts["/run/ign"]["name"]) == (
            "/run/ign/keys.json",
            "keys",
        )
        assert volumes["keys"]["secret"] == {"secretName": "ign-keys", "defaultMode": 0o440}
        assert "generic ign-keys --from-file=keys.json" in read("docs/deployment.md")
    before = container(chosen)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > before + found.drain_s
    limits = container(chosen)["resources"]["limits"]
    assert ("nvidia.com/gpu" in limits, "cpu" in limits) == (
        (True, False) if found.device == "cuda" else (False, True)
    )


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    pytest.importorskip("obstore", reason="needs the extra store")
    with Bucket(tmp_path) as bucket:
        yield bucket


@pytest.mark.parametrize("chosen", STARTED)
def test_the_service_runs_with_what_a_pod_is_given(
    chosen: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As a process on a CPU, with folders and stores of this machine, the pod's probes, a key, and
    SIGTERM.
    """
    model = tmp_path / "models" / SHIPPED["mnist"]
    shutil.copytree(MODELS / SHIPPED["mnist"], model)
    write_keys(tmp_path, {"a": "infer"})
    here = {
        "/run/ign/keys.json": tmp_path / "keys.json",
        "/models": model.parents[1],
        "/mnt/models": model,
    }
    given = {"IGN_MODEL_DIR": "/models", **environment(chosen)}
    if "IGN_MODEL_CACHE" in given:
        here["/models"] = tmp_path / "cache"
    if chosen == "models-bucket":
        store = request.getfixturevalue("bucket")
        store.upload(model.parents[1])
        given |= store.environment
    told = {name: str(here.get(value, value)) for name, value in given.items()}
    told |= {"IGN_PORT": f"{free_port()}", "IGN_DEVICE": "cpu"}
    with live_service(**told) as url, httpx.Client(base_url=url, trust_env=False) as client:
        probes = [container(chosen)[f"{name}Probe"]["httpGet"]["path"] for name in PROBES]
        assert [client.get(path).status_code for path in probes] == [200, 200, 200]
        assert client.post("/generate", json={"n": 1}).status_code == (
            200 if chosen == "open" else 401
        )
        client.headers.update(bearer("a"))
        assert client.post("/generate", json={"n": 1}).status_code == 200
        assert f'ign_queue_rows{{model="{SHIPPED["mnist"]}"}}' in client.get("/metrics").text


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
    assert (int(limits.get("nvidia.com/gpu", 0)), workers["maxReplicas"]) == (
        options.gpus,
        options.max_replicas,
    )
    assert int(limits["cpu"]) >= options.cpus
    assert spec["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    assert (
        spec["rayClusterConfig"]["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"]
        is False
    )
    for pod in pods(chosen):
        assert pod["spec"]["terminationGracePeriodSeconds"] > found.drain_s
        (mount,) = pod["spec"]["containers"][0]["volumeMounts"]
        assert str(found.api_keys_file) == f"{mount['mountPath']}/keys.json"


@pytest.mark.parametrize("chosen", ["bulk", "bulk-claim"])
def test_every_index_of_the_job_runs_its_part(chosen: str, tmp_path: Path) -> None:
    """The command of the pod, with a `python3` that says how it was called."""
    (tmp_path / "python3").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    job = one(chosen, "Job")["spec"]
    command = [*container(chosen)["command"], *container(chosen)["args"]]
    parts = job["completions"]
    for index in range(parts):
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": str(index)}
        called = run(*command, **env).stdout.splitlines()
        given = values(chosen)["job"]["args"]
        assert called == ["-m", "ign", "bulk", *given, "--part", f"{index + 1}/{parts}"]
    assert (job["completionMode"], parts > 1) == ("Indexed", True)


# Autoscaling, routes, monitoring


@pytest.mark.parametrize("chosen", ["autoscaled", "keda", "gpu autoscaled", "gpu keda"])
def test_the_autoscaler_asks_for_what_the_service_says_and_decides_alone(chosen: str) -> None:
    assert "# TYPE ign_queue_rows gauge" in Metrics().render()[0].decode().splitlines()
    found = settings(chosen)
    cores = "700m" if "gpu" in chosen else "1400m"
    if "keda" in chosen:
        spec = one(chosen, "ScaledObject")["spec"]
        queue, cpu = (trigger["metadata"] for trigger in spec["triggers"])
        assert 'ign_queue_rows{namespace="team",service="ign"}' in queue["query"]
        asked = (queue["threshold"], cpu["value"])
        replicas = (spec["minReplicaCount"], spec["maxReplicaCount"])
    else:
        spec = one(chosen, "HorizontalPodAutoscaler")["spec"]
        (rule,) = yaml.safe_load((CHART / "prometheus-adapter.yaml").read_text(encoding="utf-8"))[
            "rules"
        ]
        pod, cpu = spec["metrics"]
        series = rule["seriesQuery"].partition("{")[0]
        assert series == pod["pods"]["metric"]["name"] == "ign_queue_rows"
        asked = (pod["pods"]["target"]["averageValue"], cpu["resource"]["target"]["averageValue"])
        replicas = (spec["minReplicas"], spec["maxReplicas"])
    assert asked == (f"{found.max_batch_rows}", cores)
    assert "replicas" not in one(chosen, "Deployment")["spec"]
    assert spec["scaleTargetRef"]["name"] == one(chosen, "Deployment")["metadata"]["name"]
    budget = one(chosen, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] < replicas[0] < replicas[1]


def test_routes_let_through_what_the_service_allows_and_give_a_second_release_its_share() -> None:
    found = settings("ingress")
    annotations = one("ingress", "Ingress")["metadata"]["annotations"]
    assert annotations["nginx.org/client-max-body-size"] == f"{found.max_body_bytes}"
    assert annotations["nginx.org/proxy-read-timeout"] == f"{found.stream_timeout_s:g}s"
    (rule,) = one("canary", "HTTPRoute")["spec"]["rules"]
    assert rule["timeouts"]["request"] == f"{settings('canary').stream_timeout_s / 60:g}m0s"
    assert {each["name"]: each["weight"] for each in rule["backendRefs"]} == {
        "ign": 90,
        "ign-canary": 10,
    }
    assert "ign-canary" in [
        each["metadata"]["name"] for each in render({}, "ign-canary") if each["kind"] == "Service"
    ]


def test_rules_and_dashboards_are_those_of_compose() -> None:
    specs = {each["metadata"]["name"]: each.get("spec") for each in objects("autoscaled")}
    for file in RULES:
        expected = yaml.safe_load(file.read_text(encoding="utf-8"))
        for rule in (
            rule for group in expected["groups"] for rule in group["rules"] if "alert" in rule
        ):
            rule["labels"]["namespace"] = "team"
        assert specs[f"ign-{file.stem}"] == expected
    assert one("autoscaled", "ConfigMap")["data"] == {
        name: read(f"docker/grafana/dashboards/{name}") for name in ("ign.json", "ign-detail.json")
    }


# Values


def test_every_setting_may_be_given_and_what_the_service_refuses_is_named() -> None:
    # Those of which other values decide.
    owned = {
        f"IGN_{name}"
        for name in ("HOST", "PORT", "MODEL_DIR", "MODEL_CACHE", "API_KEYS_FILE", "GPU_COUNT")
    }
    schema = json.loads(read("deploy/chart/ign-service/values.schema.json"))["properties"]
    given = schema["settings"]["properties"]
    assert set(given) == {variable_of(name) for name in Settings.model_fields} - owned
    for name, value in product(given, (-1, 0, 0.0005, 10**13, "two words")):
        try:
            load_settings({name: str(value)})
        except StartupError as exc:
            if "is not allowed" in exc.detail:
                with pytest.raises(helm.HelmError, match=name):
                    render({"settings": {name: value}})
    render({"settings": {"IGN_PUBLIC": 1}})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"replica": 3}, "'replica'"),
        ({"settings": {"IGN_DRIAN_S": 3}}, "'IGN_DRIAN_S'"),
        ({"models": {"source": "claim"}}, "/models/claim"),
        ({"models": {"source": "bucket", "bucket": "oci://registry/image"}}, "/models/bucket"),
        ({"env": [{"name": "IGN_PORT", "value": "1"}]}, "/env/0/name"),
        ({"ingress": {"enabled": True}}, "/ingress/hosts"),
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
        given = before[words[2]] if "--reuse-values" in words else {}
        for option, value in pairwise(words):
            if option in ("-f", "--set"):
                more = (
                    yaml.safe_load(read(value)) if option == "-f" else helm.parse_set_string(value)
                )
                given = merged(given, more)
        before[words[2]] = given
        assert render(given, words[2])
