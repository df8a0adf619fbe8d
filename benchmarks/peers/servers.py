"""Who is measured: each contestant's packages, command, settings, and ways to ask."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.peers.payloads import PNG, RAW, Wire, as_it_is, as_list, latent, v2_base64, v2_binary

OURS: Final = "ign"
_BYTES: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How batches are formed. Which of several is used is measured, and the same for every load.

    Args:
        rows: of the largest batch.
        wait_ms: for which a batch that is not full may wait.
    """

    rows: int
    wait_ms: int

    def __str__(self) -> str:
        return f"≤ {self.rows} rows, {self.wait_ms} ms"


SOON: Final = (
    Batching(rows=16, wait_ms=1),
    Batching(rows=8, wait_ms=1),
    Batching(rows=32, wait_ms=2),
    Batching(rows=64, wait_ms=5),
)
"""Where a batch waits until it is full: with few connections a small one fills, and a large one only waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A serving system.

    Args:
        name: of the system, and of its environment.
        module: of its server, below `benchmarks.peers`; None for this service.
        packages: what its environment holds, besides onnxruntime and Pillow.
        distribution: the one whose version is named first.
        ready: path that answers 200 once it serves.
        wires: by payload, ways to ask; the first that is answered with 200 is taken.
        batching: the settings to choose from.
        environ: more environment variables, as its documentation recommends.
        alone: must have network and processes of its own, as it touches others'.
    """

    name: str
    module: str | None
    ready: str
    wires: Mapping[str, Sequence[Wire]]
    packages: tuple[str, ...] = ()
    distribution: str = ""
    batching: tuple[Batching, ...] = SOON
    environ: Mapping[str, str] = field(default_factory=dict)
    alone: bool = False


def _plain(path: str) -> Mapping[str, Sequence[Wire]]:
    return {PNG: [as_it_is(path, _BYTES)], RAW: [as_it_is(path, _BYTES)]}


SERVICE: Final = Contestant(
    name=OURS,
    module=None,
    ready="/readyz",
    wires={
        PNG: [as_it_is("/project?steps=1", "image/png", "image/png")],
        RAW: [
            v2_binary("mnist", kind="FP32", shape=[1, 1, 28, 28], parameters={"steps": 1}),
            latent("/latent-arithmetic", (1, 28, 28)),
        ],
    },
    batching=(Batching(rows=64, wait_ms=0),),
)

PEERS: Final = (
    Contestant(
        name="fastapi",
        module="fastapi_server",
        packages=("fastapi", "uvicorn", "uvloop", "httptools"),
        distribution="fastapi",
        ready="/openapi.json",
        wires=_plain("/predict"),
        batching=(Batching(rows=16, wait_ms=0), Batching(rows=64, wait_ms=0)),
    ),
    Contestant(
        name="mosec",
        module="mosec_server",
        packages=("mosec",),
        distribution="mosec",
        ready="/",
        wires=_plain("/predict"),
    ),
    Contestant(
        name="litserve",
        module="litserve_server",
        packages=("litserve",),
        distribution="litserve",
        ready="/health",
        wires=_plain("/predict"),
    ),
    Contestant(
        name="bentoml",
        module="bentoml_server",
        packages=("bentoml",),
        distribution="bentoml",
        ready="/readyz",
        wires={PNG: [as_list("/predict", "bodies")], RAW: [as_list("/predict", "bodies")]},
        batching=(Batching(rows=16, wait_ms=0), Batching(rows=32, wait_ms=0), Batching(rows=100, wait_ms=0)),
        environ={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Contestant(
        name="ray",
        module="ray_server",
        packages=("ray[serve]",),
        distribution="ray",
        ready="/-/healthz",
        wires=_plain("/predict"),
        batching=(Batching(rows=16, wait_ms=0), Batching(rows=64, wait_ms=0), Batching(rows=32, wait_ms=2)),
        environ={
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        alone=True,
    ),
    Contestant(
        name="mlserver",
        module="mlserver_server",
        packages=("mlserver", "uvloop<0.22"),  # its workers do not start with a later uvloop
        distribution="mlserver",
        ready="/v2/models/f/ready",
        wires={PNG: [v2_base64("f")], RAW: [v2_base64("f")]},
    ),
    Contestant(
        name="pytriton",
        module="pytriton_server",
        packages=("nvidia-pytriton",),
        distribution="nvidia-pytriton",
        ready="/v2/models/raw/ready",
        wires={
            PNG: [v2_binary("png", kind="BYTES", shape=[1, 1])],
            RAW: [v2_binary("raw", kind="FP32", shape=[1, 1, 28, 28])],
        },
        batching=(Batching(rows=32, wait_ms=0), Batching(rows=64, wait_ms=0), Batching(rows=16, wait_ms=1)),
    ),
)
ALL: Final = {contestant.name: contestant for contestant in (SERVICE, *PEERS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A contestant with a number of copies of the model, one thread each.

    Args:
        name: of the contestant.
        processes: how many; 0 for this service exactly as it comes.
    """

    name: str
    processes: int

    def __str__(self) -> str:
        return f"{self.name} as it comes" if self.processes == 0 else f"{self.name} ×{self.processes}"

    @property
    def contestant(self) -> Contestant:
        """Who it is."""
        return ALL[self.name]


def entries(names: Sequence[str], processes: Sequence[int]) -> Iterator[Entry]:
    """All that is measured: this service as it comes too, if it takes part."""
    for name in names:
        if name == OURS:
            yield Entry(name=name, processes=0)
        for number in processes:
            yield Entry(name=name, processes=number)


def command(contestant: Contestant, python: str) -> list[str]:
    """What starts its server with the interpreter of its environment."""
    if contestant.module is None:
        return [sys.executable, "-m", "service"]
    return [python, "-m", f"benchmarks.peers.{contestant.module}"]


def environment(entry: Entry, batching: Batching, port: int, models: Path, model: str) -> dict[str, str]:
    """Variables that its server reads.

    Args:
        entry: who, and how often.
        batching: how batches are formed.
        port: where to listen.
        models: directory of models.
        model: `name/version` within.
    """
    contestant, processes = entry.contestant, entry.processes
    if contestant.module is None:
        found = {"IGN_PORT": str(port), "IGN_MODEL_DIR": str(models), "IGN_DEFAULT_MODEL": model}
        if processes:
            threads = str(processes)  # one each: they are divided among the processes
            found |= {"IGN_DEVICE": "cpu", "IGN_ACCESS_LOG": "0", "IGN_WORKERS": threads, "IGN_THREADS": threads}
        return found
    return {
        "PEER_PORT": str(port),
        "PEER_PROCESSES": str(processes),
        "PEER_MAX_BATCH": str(batching.rows),
        "PEER_WAIT_MS": str(batching.wait_ms),
        "PEER_MODEL": str(models / model / "model.onnx"),
        **contestant.environ,
    }
