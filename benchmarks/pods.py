"""What a replica can do and how many there have to be: measured costs, assumptions, and the arithmetic of both."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.harness.common import Json
from benchmarks.harness.tables import RESULTS, read
from benchmarks.queueing import Call, Replica, interpolated

DEMANDS: Final = (10, 1_000, 100_000)
"""Pictures a second."""

_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64)
_TOP: Final = _BUCKETS[-1]


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What is not measured; all above 0. `MEANINGS` says in which unit.

    Raises:
        ValueError: pods would be more than busy.
    """

    gpu_call_ms: float = 0.5
    gpu_row_ms: float = 0.02
    most_busy: float = 0.7
    pod_cores: float = 2.0
    link_gbit: float = 10.0
    head_bytes: float = 1000.0
    core_hour: float = 0.04
    gpu_hour: float = 1.0

    def __post_init__(self) -> None:
        if self.most_busy > 1:
            raise ValueError(f"most_busy is {self.most_busy:g}: no pod is more than busy, which is 1")


MEANINGS: Final[Mapping[str, str]] = {
    "gpu_call_ms": "ms of a call of the model on a GPU, whatever its rows; **not yet measured on a GPU**",
    "gpu_row_ms": "ms for each row of it; **not yet measured on a GPU**",
    "most_busy": "share of its capacity that a pod is given",
    "pod_cores": "cores of a pod with a GPU; a pod without one has those of the machine that was measured",
    "link_gbit": "Gbit/s of a node's network",
    "head_bytes": "bytes of the heads of a request and its answer",
    "core_hour": "price of a core for an hour",
    "gpu_hour": "price of a GPU for an hour",
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """A kind of request, as measured on a pod without a GPU.

    Args:
        name: of it.
        pictures: in a request.
        per_s: pictures a second, the most that one process did.
        core_ms: CPU time of the service, by picture, model included.
        picture_bytes: both ways, by picture.
    """

    name: str
    pictures: int
    per_s: float
    core_ms: float
    picture_bytes: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the results say: ms of a call by rows, core-ms of a row at the largest batch, cores, kinds of requests.

    A call is of one session; so many of them run side by side.
    """

    call_ms: Mapping[int, float]
    model_core_ms: float
    encode_core_ms: float
    cores: int
    sessions: int
    forms: tuple[Form, Form]

    @property
    def rows_per_s(self) -> float:
        """Of the model alone, in full batches."""
        return self.sessions * _TOP / self.call_ms[_TOP] * 1000

    def calls(self, stretch: float = 1.0) -> Call:
        """All sessions as one device: so many times the rows in the time of one, but for a single row."""
        points = {rows * self.sessions: ms for rows, ms in self.call_ms.items()} | {1: self.call_ms[1]}
        return interpolated([(rows, ms * stretch / 1000) for rows, ms in sorted(points.items())])

    def front_ms(self, form: Form) -> float:
        """Core-ms of a picture that are not the model's: HTTP, pictures, scheduling, everything in Python."""
        return form.core_ms - self.model_core_ms


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A pod as this kind of request sees it: pictures a second that its one Python thread and its device can do.

    Args:
        kind: `CPU` or `GPU`.
        per_s: pictures a second, all in all.
        front_per_s, device_per_s: each alone.
        replica: the same for the simulation.
    """

    kind: str
    cores: float
    per_s: float
    front_per_s: float
    device_per_s: float
    replica: Replica

    @property
    def limit(self) -> str:
        """What is full first."""
        return "HTTP and pictures" if self.front_per_s < self.device_per_s else "the model"


@dataclass(frozen=True, kw_only=True)
class Size:
    """So many pods of a kind for a demand."""

    demand: int
    form: Form
    pod: Pod
    pods: int


def measured(results: Path = RESULTS) -> Measured:
    """What docs/performance.md shows, as far as it is needed.

    Raises:
        OSError, ValueError: there is no such result.
    """
    try:
        return _measured(read(results / "runtime.json"), read(results / "service.json"))
    except KeyError as exc:
        raise ValueError(f"a result lacks {exc}") from exc


def _measured(runtime: Json, service: Json) -> Measured:
    calls = {line["rows"]: line["onnxruntime"] for line in runtime["sizes"]}
    single = max(service["single_pictures"], key=lambda line: float(line["requests_per_s"]))
    many = {line["form"]: line for line in service["many_rows"]}
    channels, height, width = runtime["model"]["shape"]
    pixels = channels * height * width
    npy, png = many["npy"], many["64 PNGs in JSON"]
    forms = (
        # A PNG is no larger than its pixels, and a little for what is around them.
        Form(
            name="one picture, PNG to PNG",
            pictures=1,
            per_s=single["requests_per_s"],
            core_ms=single["server_core_ms"],
            picture_bytes=2 * (pixels + 100),
        ),
        Form(
            name="64 pictures, npy",
            pictures=64,
            per_s=npy["pictures_per_s"],
            core_ms=npy["server_core_ms"],
            picture_bytes=4 * pixels,
        ),
    )
    return Measured(
        call_ms={rows: call["ms_per_call"] for rows, call in calls.items()},
        model_core_ms=calls[_TOP]["cpu_ms_per_row"],
        encode_core_ms=png["server_core_ms"] - npy["server_core_ms"],
        cores=service["machine"]["cpus_granted"],
        sessions=max(1, service["machine"]["cpus_granted"] // runtime["threads"]),
        forms=forms,
    )


def cpu_pod(found: Measured, form: Form) -> Pod:
    """A pod as it was measured. Python and model share its cores, so both take longer than each alone."""
    front, device = 1000 / found.front_ms(form), found.rows_per_s
    stretch = min(front, device) / form.per_s
    replica = Replica(call=found.calls(stretch), front_s=form.pictures / front * stretch)
    return Pod(
        kind="CPU",
        cores=found.cores,
        per_s=form.per_s,
        front_per_s=front / stretch,
        device_per_s=device / stretch,
        replica=replica,
    )


def gpu_pod(found: Measured, form: Form, assumed: Assumed) -> Pod:
    """A pod with a GPU: HTTP and pictures as measured, a device as assumed, and neither in the other's way."""

    def call(rows: int) -> float:
        return (assumed.gpu_call_ms + assumed.gpu_row_ms * rows) / 1000

    front, device = 1000 / found.front_ms(form), _TOP / call(_TOP)
    replica = Replica(call=call, front_s=form.pictures / front, buckets=_BUCKETS)
    return Pod(
        kind="GPU",
        cores=assumed.pod_cores,
        per_s=min(front, device),
        front_per_s=front,
        device_per_s=device,
        replica=replica,
    )


def stepped(found: Measured, form: Form, pod: Pod, steps: int) -> Pod:
    """The same pod where every picture takes so many steps: as many rows for the model, and no more of the rest."""
    front, model = found.front_ms(form), found.model_core_ms
    device = pod.device_per_s / steps
    shared = form.per_s * form.core_ms / (front + steps * model)  # by what the cores did with one step
    return replace(pod, per_s=min(pod.front_per_s, device) if pod.kind == "GPU" else shared, device_per_s=device)


def price(size: Size, assumed: Assumed) -> float:
    """Of all pods, for an hour."""
    gpus = size.pods if size.pod.kind == "GPU" else 0
    return size.pods * size.pod.cores * assumed.core_hour + gpus * assumed.gpu_hour


def sized(demand: int, form: Form, pod: Pod, assumed: Assumed) -> Size:
    """As few pods as keep each below `most_busy`, and still do it all when one is gone."""
    pods = max(math.ceil(demand / (pod.per_s * assumed.most_busy)), math.ceil(demand / pod.per_s) + 1)
    return Size(demand=demand, form=form, pod=pod, pods=pods)


def sizes(found: Measured, assumed: Assumed) -> list[Size]:
    """Every demand, in every form, on either kind of pod."""
    return [
        sized(demand, form, pod, assumed)
        for demand in DEMANDS
        for form in found.forms
        for pod in (cpu_pod(found, form), gpu_pod(found, form, assumed))
    ]


def wire_bytes(form: Form, assumed: Assumed) -> float:
    """Bytes of a picture on the network, both ways, with its share of the heads."""
    return form.picture_bytes + assumed.head_bytes / form.pictures


def faster(assumed: Assumed, factor: float) -> Assumed:
    """The same with a GPU that is so many times as fast."""
    changed = {"gpu_call_ms": assumed.gpu_call_ms / factor, "gpu_row_ms": assumed.gpu_row_ms / factor}
    return Assumed(**{**asdict(assumed), **changed})
