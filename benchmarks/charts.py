"""Draw the charts of the README from stored results.

    python -m benchmarks.charts

Writes docs/images/speed.svg from benchmarks/results/peers.json, and docs/images/quality.svg from the metrics of the
default model. Equal results give equal files.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.harness.processes import ROOT
from benchmarks.peers.servers import OURS
from service.artifact.files import METRICS_FILE
from service.models.repository import version_key
from service.settings import Settings

IMAGES: Final = ROOT / "docs" / "images"
PEERS: Final = ROOT / "benchmarks" / "results" / "peers.json"
_OURS_COLOUR, _OTHER_COLOUR = "#2563eb", "#9ca3af"
_NAMES: Final = {
    "fastapi": "FastAPI + batcher",
    "mosec": "mosec",
    "litserve": "LitServe",
    "bentoml": "BentoML",
    "ray": "Ray Serve",
    "mlserver": "MLServer",
    "pytriton": "PyTriton",
    OURS: "ign-service",
}


def speed(peers: Mapping[str, Any]) -> bytes:
    """Requests per second of each system with the number of processes that suits it best, as SVG.

    Args:
        peers: the results of `benchmarks.bench_peers`.
    """
    best: dict[str, float] = {}
    for row in peers["png_at_32_connections"]:
        name = row["entry"].split(" ")[0]
        best[name] = max(best.get(name, 0.0), row["requests_per_s"])
    names = sorted(best, key=best.__getitem__)
    figure = Figure(figsize=(7, 2.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot(xlabel="requests/s, PNG to PNG, 32 connections, two CPU cores shared with the clients")
    colours = [_OURS_COLOUR if name == OURS else _OTHER_COLOUR for name in names]
    bars = axes.barh([_NAMES[name] for name in names], [best[name] for name in names], color=colours)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    return _svg(figure)


def quality(metrics: Mapping[str, Any]) -> bytes:
    """Share of damaged test pictures that a classifier recognises, before and after one step of f, as SVG.

    Args:
        metrics: `metrics.json` of a model, from `model_export evaluate`.
    """
    restoration: Mapping[str, Any] = metrics["restoration"]
    kinds = [kind for kind, found in restoration.items() if "accuracy" in found.get("f", {})]
    figure = Figure(figsize=(7, 3), layout="constrained", facecolor="white")
    axes = figure.add_subplot(xlabel="test pictures that a classifier recognises, %", xlim=(0, 112))
    places: Sequence[float] = range(len(kinds))
    for offset, stage, label, colour in (
        (-0.2, "f", "after f", _OURS_COLOUR),
        (0.2, "input", "damaged", _OTHER_COLOUR),
    ):
        shares = [100 * restoration[kind][stage]["accuracy"] for kind in kinds]
        bars = axes.barh([place + offset for place in places], shares, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="{:.1f}", padding=3)
    axes.set_yticks(list(places), [kind.replace("_", " ").replace("8bit", "in 8 bits") for kind in kinds])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=2)
    return _svg(figure)


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Text stays text instead of outlines, and ids are the same in every run.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def default_metrics() -> Path:
    """The metrics of the highest version of the default model."""
    settings = Settings()
    files = (settings.model_dir / settings.default_model).glob(f"*/{METRICS_FILE}")
    return max(files, key=lambda file: version_key(f"{file.parts[-3]}/{file.parts[-2]}"))


def charts() -> dict[Path, bytes]:
    """Every file with its content."""
    return {
        IMAGES / "speed.svg": speed(json.loads(PEERS.read_text(encoding="utf-8"))),
        IMAGES / "quality.svg": quality(json.loads(default_metrics().read_text(encoding="utf-8"))),
    }


def main() -> None:
    for file, content in charts().items():
        file.write_bytes(content)
        print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
