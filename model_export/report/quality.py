"""The measured quality of a model as a chapter of its page: what stands in its card, each table with its protocol."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from model_export.report.markdown import Table, formula, is_power, leaves, one_line, table
from service.artifact.card import ModelCard

_QUANTILES: Final = (1, 5, 25, 50, 75, 95, 99, 100)
_MEASURES: Final[Mapping[str, tuple[str, str]]] = {  # name and form of the numbers
    "psnr": ("PSNR, dB", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "accuracy": ("read correctly", ".1%"),
}
_NAMES: Final[Mapping[str, str]] = {"frechet": "Fréchet distance", "kl": "KL"}
_FURTHER: Final = ("health", "inception", "precision")
_BESIDE: Final = (  # of the protocol: told beside their tables
    *("frechet", "kl", "drift", "nearest", "diversity", "repeated", "restoration"),
    *_FURTHER,
)
_CHAPTERS: Final = (
    *("protocol", "warnings", "generation", "drift", "nearest", "diversity", "clean", "distance", "repeated"),
    "restoration",
)


def measured(card: ModelCard) -> Iterator[str]:
    """Paragraphs and tables; one sentence where nothing was measured."""
    quality = card.quality
    if not quality:
        yield "Not measured: `python -m model_export evaluate` has not been run on this file."
        return
    protocol = quality.get("protocol", {})
    yield "\n".join(f"- **Warning**: {one_line(warning)}" for warning in quality.get("warnings", ()))
    yield _notes(protocol, [key for key in protocol if key not in _BESIDE])
    if generation := quality.get("generation"):
        yield "### Generation"
        yield _generation(generation, quality.get("drift", {}))
        yield _notes(protocol, ("frechet", "kl", "drift"))
    if nearest := quality.get("nearest"):
        yield "### Nearest neighbours of f(z)"
        yield _nearest(nearest)
        if "diversity" in quality:
            yield f"Diversity: {quality['diversity']:.3f}."
        yield _notes(protocol, ("nearest", "diversity"))
    if repeated := quality.get("repeated"):
        yield "### f applied again and again"
        yield _repeated(repeated)
        yield _notes(protocol, ("repeated",))
    yield from _restoration(quality)
    if card.distance_quantiles:
        yield "### Distance of real pictures"
        yield _distance(card)
    if rest := {key: value for key, value in quality.items() if key not in _CHAPTERS}:
        yield "### Further measures"
        yield table(["measure", "value"], [(key, str(value)) for key, value in leaves(rest)])
        yield _notes(protocol, _FURTHER)


def _notes(protocol: Table, keys: Sequence[str]) -> str:
    """What the protocol says under these keys."""
    notes = leaves({key: protocol[key] for key in keys if key in protocol})
    return "\n".join(f"- {_NAMES.get(key, key)}: {one_line(str(value))}" for key, value in notes)


def _generation(generation: Table, drift: Table) -> str:
    floor = generation.get("training", {}).get("frechet")
    rows = []
    for name, row in generation.items():
        frechet = row.get("frechet")
        multiple = frechet / floor if frechet is not None and floor else None
        kl, confidence = _form(row.get("kl"), ".4f"), _form(row.get("confidence"), ".1%")
        samples = f"{formula(name)}(z)" if is_power(name) else formula(name)
        cells = (_form(frechet, ".2f"), _form(multiple, ".2f"), kl, confidence, _form(drift.get(name), ".4f"))
        rows.append((samples, *cells))
    return table(["pictures", "Fréchet distance", "× training", "KL", "confidence", "drift"], rows)


def _nearest(nearest: Table) -> str:
    head = ["to the nearest", "f(z), median", "real, median", "f(z), 1 %", "real, 1 %", "f(z) below the real 1 %"]
    rows = []
    for name, row in nearest.items():
        cells = [_form(row[who][key], ".4f") for key in ("median", "percentile_1") for who in ("samples", "real")]
        rows.append((formula(name), *cells, _form(row["rare"], ".1%")))
    return table(head, rows)


def _repeated(repeated: Table) -> str:
    forms = {"drift": ".4f", "moved": ".4f", "kl": ".4f", "confidence": ".1%"}
    rows = [
        (f"{formula(name)}(z)", *(_form(row.get(key), form) for key, form in forms.items()))
        for name, row in repeated.items()
        if isinstance(row, Mapping)
    ]
    return table(["y", "drift", "moved", "KL", "confidence"], rows)


def _restoration(quality: Table) -> Iterator[str]:
    """One table for each measure: pictures down, what was done to them across."""
    restoration = quality.get("restoration", {})
    rows = {name: dict(_ways(row)) for name, row in restoration.items()}
    if "clean" in quality:
        rows["clean"] = {"f": quality["clean"]}
    ways = list(dict.fromkeys(way for row in rows.values() for way in row))
    if not rows:
        return
    yield "### Restoration"
    yield (
        "Held-out pictures, degraded as the row says, against the clean ones: `input` is the degraded picture itself, "
        "`clean` a picture that was not degraded. The number after a name is its strength: σ of noise in the model's "
        "units, of blur in pixels of a 28-pixel side, the factor of low resolution, the share of the side of a hole."
    )
    for key, (title, form) in _MEASURES.items():
        if any(key in figures for row in rows.values() for figures in row.values()):
            cells = [(name, *(_form(row.get(way, {}).get(key), form) for way in ways)) for name, row in rows.items()]
            yield table([title, *(_said(way) for way in ways)], cells)
    yield from _baselines({name: row["baselines"] for name, row in restoration.items() if "baselines" in row})
    yield _notes(quality.get("protocol", {}), ("restoration",))


def _baselines(groups: Mapping[str, Table]) -> Iterator[str]:
    """Classical methods, each beside f on the same pictures."""
    rows = []
    for name, group in groups.items():
        for way, figures in _ways(group):
            said = _said(way) + (f" ({figures['setting']})" if "setting" in figures else "")
            cells = (_form(figures.get(key), form) for key, (_, form) in _MEASURES.items())
            rows.append((name, f"{group['n']:,}" if "n" in group else "–", said, *cells))
    if rows:
        yield "Classical methods, which need no training, and f on the same held-out pictures:"
        yield table(["degraded", "pictures", "restored by", *(title for title, _ in _MEASURES.values())], rows)


def _ways(row: Table, prefix: str = "") -> Iterator[tuple[str, Table]]:
    """What was done to a degraded picture, and its measures; ways may stand in groups."""
    for name, value in row.items():
        if isinstance(value, Mapping) and name != "baselines":
            if set(value) & set(_MEASURES):
                yield prefix + name, value
            else:
                yield from _ways(value, f"{prefix}{name} ")


def _said(way: str) -> str:
    return " ".join(formula(word) for word in way.split())


def _distance(card: ModelCard) -> str:
    quantiles = card.distance_quantiles or ()
    pictures = card.quality.get("distance", {})
    count = f" {pictures['n']:,}" if pictures else ""
    mean = f" The mean is {pictures['mean']:.4f}." if pictures else ""
    text = (
        f"Quantiles of mean |f(x) − x| over{count} held-out pictures, prepared as the service prepares them; `/score` "
        f"places a picture among them.{mean}"
    )
    row = [_form(quantiles[q], ".4f") for q in _QUANTILES]
    return f"{text}\n\n{table([f'{q} %' for q in _QUANTILES], [row])}"


def _form(value: float | None, form: str) -> str:
    """A number; – where there is none."""
    return "–" if value is None else format(value, form).replace("%", " %")
