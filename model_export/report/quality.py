"""The measured quality of a model as parts of its page: a summary, and tables with their
meaning.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from model_export.evaluation.remarks import Table, remarks
from model_export.export.artifact import TrainedCard

_NO_GAIN: Final = 0.3  # points of the character error rate, which are chance
_METHODS: Final = (
    "Characters that tesseract misreads, in per cent. raw: as scanned; background: divided "
    "by it; classic: non-local means before that; f2: f twice; tess-sauvola: tesseract's own "
    "threshold; sauvola: DoxaPy's."
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; every row has as many cells as the head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in line) + " |"
        for line in lines
    )


def one_line(text: str) -> str:
    """Text without line breaks, for a list or a cell."""
    return " ".join(text.split())


def superscript(k: int) -> str:
    """The exponent k; empty for 1."""
    return "" if k == 1 else str(k).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def limitations(card: TrainedCard) -> list[str]:
    """One or two sentences for each limitation; at least one entry. The warnings are not repeated
    here.
    """
    quality = card.quality
    domain = f"It is made for pictures like those of {card.data.name} only."
    if not quality:
        return [domain, "Its quality has not been measured."]
    if ocr := quality.get("ocr"):
        return [domain, *_reading(ocr)]
    return [domain, *(text for warns, text in remarks(quality) if not warns)]


def _reading(ocr: Table) -> Iterator[str]:
    """What OCR does not gain."""
    yield "It is no generator: f of noise shows strokes, no letters."
    rows = {
        name: (row["raw"], row["f"])
        for name, row in ocr["cer"].items()
        if row["f"] > row["raw"] + _NO_GAIN
    }
    if rows:
        cases = "; ".join(f"{name} {raw:.1f} % → {f:.1f} %" for name, (raw, f) in rows.items())
        yield f"Characters that tesseract reads wrongly are more with f than without it: {cases}."
    pictures = ", ".join(f"{name} {levels:.0f}" for name, levels in ocr["photographs"].items())
    yield f"Photographs on a page change, by levels of 255 on average: {pictures}."


def summary(quality: Table) -> str:
    """Warnings, and the most important figures as a table; one sentence if nothing was measured."""
    if not quality:
        return "Not measured: run `python -m model_export evaluate`."
    if ocr := quality.get("ocr"):
        means = table(*_error_rates(ocr["means"] | {"clean": ocr["cer"]["clean"]}))
        return f"{means}\n\n{_METHODS}"
    generation = quality["generation"]
    noisy = quality["restoration"]["noise_0.8"]
    floor = f"{generation['training']['frechet']:.2f}: training pictures"
    figures = [
        ("Fréchet distance of samples f(z)", generation["f"], "frechet", ".2f", floor),
        ("Unevenness of the classes of f(z), KL in nats", generation["f"], "kl", ".4f", "0"),
        ("Diversity of samples, relative to real pictures", quality, "diversity", ".2f", "1"),
        (
            "Change of f(z) by a second step, mean per pixel, range 2",
            quality.get("drift", {}),
            "f",
            ".4f",
            "0",
        ),
        ("SSIM of real pictures after one step", quality["clean"], "ssim", ".3f", "1"),
    ]
    rows = [
        (title, format(row[key], form), ideal)
        for title, row, key, form, ideal in figures
        if key in row
    ]
    rows.append(
        ("Strong noise (σ = 0.8), PSNR in dB", _arrow(noisy, "psnr", ".1f"), "higher is better")
    )
    if "accuracy" in noisy["f"]:
        rows.append(
            ("The same, share classified correctly", _arrow(noisy, "accuracy", ".1%"), "100 %")
        )
    for sigma, share in quality.get("exact", {}).get("returned", {}).items():
        returned = f"f(z) returned in every bit after noise of σ = {sigma}"
        rows.append((returned, _number(share, ".0%"), "100 %"))
    # of fonts and figures that training never shows
    for name, row in quality["drawings"].items():
        told = f"{name.capitalize()} told from real pictures by mean |f(u) − u|, AUROC"
        rows.append((told, f"{row['auroc']:.3f}", "1"))
        if "sure" in row:
            sure = " → ".join(_cells(row["sure"], {"u": ".0%", "f": ".0%", "f3": ".0%"}))
            rows.append(
                ("The same, classified with probability ≥ 0.9: u → f(u) → f³(u)", sure, "100 %")
            )
    warnings = [f"- **Warning**: {text}" for warns, text in remarks(quality) if warns]
    figures_table = table(["measure", "value", "ideal"], rows)
    return "\n".join(warnings + ["" for _ in warnings[:1]] + [figures_table])


def measurements(card: TrainedCard) -> Iterator[str]:
    """Paragraphs and tables; none if nothing was measured."""
    quality = card.quality
    if ocr := quality.get("ocr"):
        yield "### Characters that tesseract reads wrongly, in per cent"
        yield table(*_error_rates(ocr["cer"]))
        yield f"{ocr['blocks']} blocks for each damage."
        yield "### Pixels that change by more than 8 levels, in per cent"
        rows = [
            (name, *_cells(row, {"changed": ".2f", "moved": ".2f"}))
            for name, row in ocr["pixels"].items()
        ]
        yield table(["pages", "by f", "by one more f"], rows)
    if restoration := quality.get("restoration"):
        yield "### Restoration"
        rows = [
            (name, _arrow(row, "psnr", ".1f"), _arrow(row, "accuracy", ".1%"))
            for name, row in restoration.items()
        ]
        yield table(["corruption", "PSNR, dB", "classified correctly"], rows)
        yield (
            "Held-out pictures, corrupted → after one step of f. Numbers in names: σ of "
            "noise and of blur, factor of low resolution, share of the side of a hole."
        )


def _error_rates(rows: Table) -> tuple[list[str], list[tuple[str, ...]]]:
    """Head and lines of a table, method by method."""
    names = list(next(iter(rows.values())))
    return ["damage", *names], [
        (name, *_cells(row, dict.fromkeys(names, ".1f"))) for name, row in rows.items()
    ]


def _arrow(row: Table, key: str, form: str) -> str:
    before = row.get("input", {}).get(key)
    after = row.get("f", {}).get(key)
    return (
        "–"
        if before is None and after is None
        else f"{_number(before, form)} → {_number(after, form)}"
    )


def _cells(row: Table, forms: Mapping[str, str]) -> list[str]:
    return [_number(row.get(key), form) for key, form in forms.items()]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form).replace("%", " %")
