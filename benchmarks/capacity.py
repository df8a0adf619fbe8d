"""How many replicas serve how many pictures a second, what is full first, and what it costs: docs/capacity.md.

    python -m benchmarks.capacity                                  # print
    python -m benchmarks.capacity --gpu-call-ms 0.4 --gpu-row-ms 0.006
    python -m benchmarks.capacity --fill docs/capacity.md          # put it between the page's marks

What a row costs comes from benchmarks/results: runtime.json and service.json. What nobody has measured, a GPU above
all, is an option, and the page names it an assumption. Latencies are those of `benchmarks.queueing`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Final

from benchmarks.harness.common import Json, duration, rounded, target
from benchmarks.harness.tables import RESULTS, about, read, table, verdict
from benchmarks.pods import (
    DEMANDS,
    MEANINGS,
    Assumed,
    Form,
    Measured,
    Pod,
    Size,
    cpu_pod,
    faster,
    gpu_pod,
    measured,
    price,
    sized,
    sizes,
    stepped,
    wire_bytes,
)
from benchmarks.queueing import Load, Replica, Seen, simulate

STEPS: Final = (1, 10, 100, 1000)
OBJECTIVE_MS: Final = 1000.0  # docs/operations.md: 99 % of answers within it
_MARKED: Final = re.compile(r"(<!-- capacity: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


@cache
def at(form: Form, pod: Pod, per_s: float) -> Seen:
    """One pod at so many pictures a second."""
    # The busier, the longer it takes until a p99 no longer depends on the seed.
    many = per_s > pod.per_s / 2
    requests = (6000 if many else 1000) if form.pictures == 1 else (1500 if many else 300)
    load = Load(requests=requests, rows=form.pictures, per_s=per_s / form.pictures)
    return simulate(pod.replica, load)


@cache
def alone(form: Form, pod: Pod) -> Seen:
    """One request at a time."""
    return simulate(pod.replica, Load(requests=40, rows=form.pictures))


def costs(found: Measured, _: Assumed) -> str:
    """Core-milliseconds of a picture."""
    lines = [
        {
            "request": form.name,
            "model": rounded(found.model_core_ms),
            "everything else": rounded(found.front_ms(form)),
            "sum": form.core_ms,
            "bytes": form.picture_bytes,
        }
        for form in found.forms
    ]
    encode = f"Encoding a picture as PNG, and that as base64: {rounded(found.encode_core_ms)} core-ms of it."
    return f"{about(read(RESULTS / 'service.json'))}\n\n{table(lines)}\n\n{encode}"


def assumptions(_: Measured, assumed: Assumed) -> str:
    lines = [
        {"option": f"`--{name.replace('_', '-')}`", "assumed": value, "what": MEANINGS[name]}
        for name, value in asdict(assumed).items()
    ]
    return table(lines)


def pods(found: Measured, assumed: Assumed) -> str:
    """What one pod can do."""
    lines = [
        {
            "pod": pod.kind,
            "request": form.name,
            "pictures per s": round(pod.per_s),
            "HTTP and pictures alone": round(pod.front_per_s),
            "the model alone": round(pod.device_per_s),
            "full first": pod.limit,
        }
        for form in found.forms
        for pod in (cpu_pod(found, form), gpu_pod(found, form, assumed))
    ]
    return table(lines)


def sizing(found: Measured, assumed: Assumed) -> str:
    return table([_sizing(size, assumed) for size in sizes(found, assumed)])


def _sizing(size: Size, assumed: Assumed) -> Json:
    pod, each = size.pod, size.demand / size.pods
    hour = price(size, assumed)
    return {
        "pictures per s": size.demand,
        "request": size.form.name,
        "pods": f"{size.pods} {pod.kind}",
        "cores": rounded(float(size.pods * pod.cores)),
        "GPUs": size.pods if pod.kind == "GPU" else 0,
        "Python busy": f"{each / pod.front_per_s:.0%}",
        "model busy": f"{each / pod.device_per_s:.0%}",
        "Gbit/s in all": rounded(size.demand * wire_bytes(size.form, assumed) * 8e-9),
        "price per hour": rounded(hour),
        "per million pictures": rounded(hour / (size.demand * 3600) * 1e6),
    }


def steps(found: Measured, assumed: Assumed) -> str:
    """What more steps ask for."""
    form, lines = found.forms[0], []
    for k in STEPS:
        line: Json = {"steps": k}
        for pod in (cpu_pod(found, form), gpu_pod(found, form, assumed)):
            size = sized(DEMANDS[1], form, stepped(found, form, pod, k), assumed)
            line[f"{pod.kind} pods"] = size.pods
            line[f"per hour, {pod.kind}"] = rounded(price(size, assumed))
        line["a GPU pod is full of"] = size.pod.limit
        lines.append(line)
    return table(lines)


def network(found: Measured, assumed: Assumed) -> str:
    """When a node's network is full, for the shipped shape and for a larger one."""
    lines = []
    for shape, scale in (("1×28×28", 1.0), ("3×64×64", 3 * 64 * 64 / (28 * 28))):
        for form in found.forms:
            each = form.picture_bytes * scale + assumed.head_bytes / form.pictures
            lines.append(
                {
                    "pictures": shape,
                    "request": form.name,
                    "bytes each": round(each),
                    "fill the link, per s": round(assumed.link_gbit * 1e9 / 8 / each),
                }
            )
    return table(lines)


def other_gpus(found: Measured, assumed: Assumed) -> str:
    """How the answer depends on what is not measured."""
    lines = []
    for factor in (0.25, 1.0, 4.0):
        other = faster(assumed, factor)
        line: Json = {"GPU": f"{factor:g} × as fast"}
        for form in found.forms:
            size = sized(DEMANDS[-1], form, gpu_pod(found, form, other), other)
            line[f"GPUs for {size.demand}/s: {form.name}"] = size.pods
            line[f"full first: {form.name}"] = size.pod.limit
        lines.append(line)
    return table(lines)


def latency(found: Measured, assumed: Assumed) -> str:
    """What callers wait, with all pods there and with one gone."""
    lines = []
    for size in sizes(found, assumed):
        seen, fewer = _both(size)
        lines.append(
            {
                "pictures per s": size.demand,
                "request": size.form.name,
                "pods": f"{size.pods} {size.pod.kind}",
                "alone ms": rounded(alone(size.form, size.pod).p50_ms),
                "p50 ms": rounded(seen.p50_ms),
                "p99 ms": rounded(seen.p99_ms),
                "p99 ms, a pod less": rounded(fewer.p99_ms),
            }
        )
    return table(lines)


def _both(size: Size) -> tuple[Seen, Seen]:
    return at(size.form, size.pod, size.demand / size.pods), at(size.form, size.pod, size.demand / (size.pods - 1))


def claims(found: Measured, assumed: Assumed) -> str:
    """What the sizing promises, held against the simulation."""
    seen = [(alone(size.form, size.pod), *_both(size)) for size in sizes(found, assumed)]
    burst = _overload(found)
    lines = [
        target("sized so: slowest p99", max(all_.p99_ms for _, all_, _ in seen), at_most=OBJECTIVE_MS, unit="ms"),
        target("a pod less: slowest p99", max(less.p99_ms for *_, less in seen), at_most=OBJECTIVE_MS, unit="ms"),
        target("a pod less: refused", max(less.refused for *_, less in seen), at_most=0),
        target("sized so: p99 over a request alone", max(b.p99_ms / a.p50_ms for a, b, _ in seen), at_most=5),
        target("overload × 3: goodput, share of capacity", burst.per_s / _capacity(found), at_least=0.9),
        target("overload × 3: admitted but late", burst.late, at_most=0),
    ]
    return table([verdict(line) for line in lines])


def _capacity(found: Measured) -> float:
    """Requests of 64 rows a second, without a GPU."""
    return found.forms[1].per_s / found.forms[1].pictures


@cache
def _burst(pod: Pod, pictures: int, per_s: float) -> Seen:
    return simulate(pod.replica, Load(requests=800, rows=pictures, per_s=per_s))


def _overload(found: Measured) -> Seen:
    form = found.forms[1]
    return _burst(cpu_pod(found, form), form.pictures, 3 * _capacity(found))


def beside(found: Measured, _: Assumed) -> str:
    """The simulation beside what was measured: the same loads, in the same order."""
    service, scheduler = read(RESULTS / "service.json"), read(RESULTS / "scheduler.json")
    single, many = found.forms
    lines = []
    for line in service["single_pictures"]:
        load = Load(requests=12 * line["connections"] + 400, callers=line["connections"])
        seen = simulate(cpu_pod(found, single).replica, load)
        name = f"{single.name}, connections: {line['connections']}"
        lines.append(_beside(name, line["p50_ms"], seen, line["requests_per_s"]))
    npy = next(line for line in service["many_rows"] if line["form"] == "npy")
    seen = simulate(cpu_pod(found, many).replica, Load(requests=200, rows=64, callers=npy["connections"]))
    lines.append(_beside(f"{many.name}, connections: {npy['connections']}", npy["p50_ms"], seen, _capacity(found)))
    over = next(line for line in service["overload"] if line["request"].startswith("64 rows"))
    lines.append(_beside(f"{many.name}, overload × 3", over["ok_p50_ms"], _overload(found), over["goodput_per_s"]))
    near = scheduler["neighbours"][1]
    engine = Replica(call=found.calls(), front_s=scheduler["single_calls"][0]["added_ms"] / 1000)
    seen = simulate(engine, Load(requests=200, long=8))
    lines.append(_beside(f"engine, steps=1, {near['steps=1']}", near["p50_ms"], seen))
    return table(lines)


def _beside(name: str, p50_ms: float, seen: Seen, per_s: float | None = None) -> Json:
    return {
        "load": name,
        "measured p50 ms": p50_ms,
        "simulated p50 ms": rounded(seen.p50_ms),
        "ratio": rounded(seen.p50_ms / p50_ms),
        "measured per s": rounded(per_s),
        "simulated per s": None if per_s is None else rounded(seen.per_s),
    }


SECTIONS: Final[Mapping[str, Callable[[Measured, Assumed], str]]] = {
    "costs": costs,
    "assumptions": assumptions,
    "pods": pods,
    "sizing": sizing,
    "steps": steps,
    "network": network,
    "other-gpus": other_gpus,
    "latency": latency,
    "claims": claims,
    "beside": beside,
}


def fill(page: str, found: Measured, assumed: Assumed) -> str:
    """The page, with what its marks name between them.

    Raises:
        ValueError: a mark names nothing that there is.
    """

    def section(match: re.Match[str]) -> str:
        if match[2] not in SECTIONS:
            raise ValueError(f"capacity: {match[2]}: expected one of {', '.join(SECTIONS)}")
        return f"{match[1]}\n{SECTIONS[match[2]](found, assumed)}\n\n{match[3]}"

    return _MARKED.sub(section, page)


def main() -> int:
    options = parser().parse_args()
    try:
        assumed = Assumed(**{one.name: getattr(options, one.name) for one in fields(Assumed)})
        found = measured()
        if options.fill:
            page = Path(options.fill)
            page.write_text(fill(page.read_text(encoding="utf-8"), found, assumed), encoding="utf-8")
            return 0
        for name, section in SECTIONS.items():
            print(f"**{name}**\n\n{section(found, assumed)}\n")
    except (OSError, ValueError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="Work out how many pods serve how many pictures a second.")
    for one in fields(Assumed):
        text = MEANINGS[one.name].replace("**", "").replace("%", "%%")
        name = f"--{one.name.replace('_', '-')}"
        found.add_argument(name, type=duration, default=one.default, help=f"{text} (%(default)s)")
    found.add_argument("--fill", metavar="PAGE", help="put the tables between the marks of this page instead")
    return found


if __name__ == "__main__":
    sys.exit(main())
