"""The servers that are measured: packages, command, settings and protocols of each."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.peers.payloads import PNG, RAW, Protocol, json_list, latent, raw_body, v2_base64, v2_binary

OURS: Final = "ign"
_BYTES: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """A batching setting. One of several is chosen by measuring, and used for every load.

    Args:
        rows: the largest batch.
        wait_ms: the longest time that a batch waits for more rows.
    """

    rows: int
    wait_ms: int

    def __str__(self) -> str:
        return f"≤ {self.rows} rows, {self.wait_ms} ms"


WAITING: Final = (
    Batching(rows=16, wait_ms=1),
    Batching(rows=8, wait_ms=1),
    Batching(rows=32, wait_ms=2),
    Batching(rows=64, wait_ms=5),
)
"""For servers whose batches wait until they are full: with few connections only small batches fill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """A serving system.

    Args:
        name: the name of the system, and of its environment.
        module: its server below `benchmarks.peers`; None for this service.
        packages: the packages of its environment, besides onnxruntime and Pillow.
        distribution: the package whose version is stated first.
        ready: a path that answers 200 when the server is ready.
        protocols: protocols by payload; the first that is answered with 200 is used.
        batching: the settings to choose from.
        environ: more environment variables, as its documentation recommends.
        alone: needs its own network and process namespaces, as it interferes with other processes.
    """

    name: str
    module: str | None
    ready: str
    protocols: Mapping[str, Sequence[Protocol]]
    packages: tuple[str, ...] = ()
    distribution: str = ""
    batching: tuple[Batching, ...] = WAITING
    environ: Mapping[str, str] = field(default_factory=dict)
    alone: bool = False


def _plain(path: str) -> Mapping[str, Sequence[Protocol]]:
    return {PNG: [raw_body(path, _BYTES)], RAW: [raw_body(path, _BYTES)]}


SERVICE: Final = ServerSpec(
    name=OURS,
    module=None,
    ready="/readyz",
    protocols={
        PNG: [raw_body("/project?steps=1", "image/png", "image/png")],
        RAW: [
            v2_binary("mnist", kind="FP32", shape=[1, 1, 28, 28], parameters={"steps": 1}),
            latent("/latent-arithmetic", (1, 28, 28)),
        ],
    },
    batching=(Batching(rows=64, wait_ms=0),),
)

PEERS: Final = (
    ServerSpec(
        name="fastapi",
        module="fastapi_server",
        packages=("fastapi", "uvicorn", "uvloop", "httptools"),
        distribution="fastapi",
        ready="/openapi.json",
        protocols=_plain("/predict"),
        batching=(Batching(rows=16, wait_ms=0), Batching(rows=64, wait_ms=0)),
    ),
    ServerSpec(
        name="mosec",
        module="mosec_server",
        packages=("mosec",),
        distribution="mosec",
        ready="/",
        protocols=_plain("/predict"),
    ),
    ServerSpec(
        name="litserve",
        module="litserve_server",
        packages=("litserve",),
        distribution="litserve",
        ready="/health",
        protocols=_plain("/predict"),
    ),
    ServerSpec(
        name="bentoml",
        module="bentoml_server",
        packages=("bentoml",),
        distribution="bentoml",
        ready="/readyz",
        protocols={PNG: [json_list("/predict", "bodies")], RAW: [json_list("/predict", "bodies")]},
        batching=(Batching(rows=16, wait_ms=0), Batching(rows=32, wait_ms=0), Batching(rows=100, wait_ms=0)),
        environ={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    ServerSpec(
        name="ray",
        module="ray_server",
        packages=("ray[serve]",),
        distribution="ray",
        ready="/-/healthz",
        protocols=_plain("/predict"),
        batching=(Batching(rows=16, wait_ms=0), Batching(rows=64, wait_ms=0), Batching(rows=32, wait_ms=2)),
        environ={
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        alone=True,
    ),
    ServerSpec(
        name="mlserver",
        module="mlserver_server",
        packages=("mlserver", "uvloop<0.22"),  # its workers do not start with a later uvloop
        distribution="mlserver",
        ready="/v2/models/f/ready",
        protocols={PNG: [v2_base64("f")], RAW: [v2_base64("f")]},
    ),
    ServerSpec(
        name="pytriton",
        module="pytriton_server",
        packages=("nvidia-pytriton",),
        distribution="nvidia-pytriton",
        ready="/v2/models/raw/ready",
        protocols={
            PNG: [v2_binary("png", kind="BYTES", shape=[1, 1])],
            RAW: [v2_binary("raw", kind="FP32", shape=[1, 1, 28, 28])],
        },
        batching=(Batching(rows=32, wait_ms=0), Batching(rows=64, wait_ms=0), Batching(rows=16, wait_ms=1)),
    ),
)
ALL: Final = {server_spec.name: server_spec for server_spec in (SERVICE, *PEERS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A server with a number of copies of the model, one thread each.

    Args:
        name: the name of the server.
        processes: the number of copies; 0 for this service with its default settings, but without access log.
    """

    name: str
    processes: int

    def __str__(self) -> str:
        return f"{self.name} as it comes" if self.processes == 0 else f"{self.name} ×{self.processes}"

    @property
    def server_spec(self) -> ServerSpec:
        """The server of this entry."""
        return ALL[self.name]


def entries(names: Sequence[str], processes: Sequence[int]) -> Iterator[Entry]:
    """All entries; this service also with its default settings."""
    for name in names:
        if name == OURS:
            yield Entry(name=name, processes=0)
        for number in processes:
            yield Entry(name=name, processes=number)


def command(server_spec: ServerSpec, python: str) -> list[str]:
    """The command that starts the server with the interpreter of its environment."""
    if server_spec.module is None:
        return [sys.executable, "-m", "service"]
    return [python, "-m", f"benchmarks.peers.{server_spec.module}"]


def environment(entry: Entry, batching: Batching, port: int, models: Path, model: str) -> dict[str, str]:
    """The environment variables of its server.

    Args:
        entry: the server and its number of copies.
        batching: its batching.
        port: the port to listen on.
        models: the model directory.
        model: `name/version` in it.
    """
    server_spec, processes = entry.server_spec, entry.processes
    if server_spec.module is None:
        variables = {"IGN_PORT": str(port), "IGN_MODEL_DIR": str(models), "IGN_DEFAULT_MODEL": model}
        variables["IGN_ACCESS_LOG"] = "0"  # no peer writes one
        if processes:
            threads = str(processes)  # one each: they are divided among the processes
            variables |= {"IGN_DEVICE": "cpu", "IGN_WORKERS": threads, "IGN_THREADS": threads}
        return variables
    return {
        "PEER_PORT": str(port),
        "PEER_PROCESSES": str(processes),
        "PEER_MAX_BATCH": str(batching.rows),
        "PEER_WAIT_MS": str(batching.wait_ms),
        "PEER_MODEL": str(models / model / "model.onnx"),
        **server_spec.environ,
    }
