"""Draw the charts of the README from stored results.

    python -m benchmarks.charts

Writes docs/images/speed.svg from benchmarks/results/peers.json, and docs/images/quality.svg from
the metrics of the default model. Equal results give equal files.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.processes import ROOT
from benchmarks.harness.tables import RESULTS, read

IMAGES: Final = ROOT / "docs" / "images"
BLUE = "#2563eb"
GREY = "#9ca3af"
OURS: Final = "ign-service"
NAMES: Final = {"ign": OURS, "fastapi": "FastAPI + batcher"}


def speed(peers: Mapping[str, Any]) -> bytes:
    """Requests per second of each system of `bench_peers` with the number of processes that suits
    it best, as SVG.
    """
    best: dict[str, float] = {}
    for row in peers["png_at_32_connections"]:
        name = row["entry"].split(" ")[0]
        name = NAMES.get(name, name)
        best[name] = max(best.get(name, 0.0), row["requests_per_s"])
    names = sorted(best, key=best.__getitem__)
    axes = _axes(
        2.6, "requests/s, PNG to PNG, 32 connections, two CPU cores shared with the clients"
    )
    bars = axes.barh(
        names,
        [best[name] for name in names],
        color=[BLUE if name == OURS else GREY for name in names],
    )
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.margins(x=0.1)
    return _svg(axes)


def quality(metrics: Mapping[str, Any]) -> bytes:
    """Share of damaged test pictures of a `metrics.json` that a classifier recognises, before and
    after f, as SVG.
    """
    restoration: Mapping[str, Any] = metrics["restoration"]
    kinds = [kind for kind, measured in restoration.items() if "accuracy" in measured.get("f", {})]
    axes = _axes(3, "test pictures that a classifier recognises, %")
    axes.set_xlim(0, 112)
    for offset, stage, label, colour in (
        (-0.2, "f", "after f", BLUE),
        (0.2, "input", "damaged", GREY),
    ):
        shares = [100 * restoration[kind][stage]["accuracy"] for kind in kinds]
        bars = axes.barh(
            [place + offset for place in range(len(kinds))], shares, 0.38, color=colour, label=label
        )
        axes.bar_label(bars, fmt="{:.1f}", padding=3)
    axes.set_yticks(
        range(len(kinds)), [kind.replace("_", " ").replace("8bit", "in 8 bits") for kind in kinds]
    )
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=2)
    return _svg(axes)


def _axes(height: float, label: str) -> Axes:
    axes = Figure(figsize=(7, height), layout="constrained", facecolor="white").add_subplot(
        xlabel=label
    )
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _svg(axes: Axes) -> bytes:
    buffer = io.BytesIO()
    figure = cast(Figure, axes.figure)
    # Text stays text instead of outlines, and ids are the same in every run.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def charts() -> dict[Path, bytes]:
    """Every file with its content; the metrics are those of the highest version of the default
    model.
    """
    metrics = max(
        (ROOT / "models" / "mnist").glob("*/metrics.json"), key=lambda file: int(file.parent.name)
    )
    return {
        IMAGES / "speed.svg": speed(read(RESULTS / "peers.json")),
        IMAGES / "quality.svg": quality(read(metrics)),
    }


if __name__ == "__main__":
    for file, content in charts().items():
        file.write_bytes(content)
        print(file.relative_to(ROOT))
