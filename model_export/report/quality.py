"""The measured quality of a model as parts of its page: a summary, and tables with their
meaning.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from model_export.evaluation.warnings import COPIES, KL, KL_INCREASE, SSIM
from model_export.export.artifact import TrainedCard

Table = Mapping[str, Any]
_MIN_GAIN: Final = 1.0  # dB of PSNR; a smaller gain does not count as restored
_NO_GAIN: Final = 0.3  # points of the character error rate, which are chance
_BETTER: Final = 0.9  # a further step is mentioned if it reaches this share of the Fréchet distance
_PICTURES: Final = {"training": "training pictures", "training_after_f": "f(training pictures)"}
_WAYS: Final = {"twice": ".1%", "file": ".1%"}
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


def is_power(name: str) -> bool:
    """Whether the name is f, f2, f3, …, as `evaluate` writes the powers of f."""
    return name == "f" or (name[:1] == "f" and name[1:].isdigit())


def formula(name: str) -> str:
    """A power of f with a superscript, f2 → f²; any other name as words."""
    return f"f{superscript(int(name[1:] or 1))}" if is_power(name) else name.replace("_", " ")


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
    return [
        domain,
        *_reading(quality.get("ocr", {})),
        *_generation(quality.get("generation", {})),
        *_idempotence(quality),
        *_variety(quality.get("nearest", {})),
        *_restoration(quality),
    ]


def _reading(ocr: Table) -> Iterator[str]:
    """What OCR does not gain."""
    if not ocr:
        return
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


def _generation(generation: Table) -> Iterator[str]:
    samples = generation.get("f", {})
    floor = generation.get("training", {}).get("frechet")
    if (distance := samples.get("frechet")) is not None:
        if floor:
            yield (
                f"Samples differ from real pictures: Fréchet distance {distance / floor:.1f} "
                f"times that of real ones."
            )
        powers = {
            name: row["frechet"]
            for name, row in generation.items()
            if is_power(name) and "frechet" in row
        }
        best = min(powers, key=lambda name: powers[name])
        if powers[best] < _BETTER * distance:
            yield (
                f"More steps give better samples: {best[1:]} steps reach a Fréchet distance of "
                f"{powers[best]:.2f}."
            )
    if samples.get("kl", 0.0) > KL:
        yield (
            f"Classes are not equally frequent: KL divergence from uniform {samples['kl']:.3f} "
            f"nats."
        )


def _idempotence(quality: Table) -> Iterator[str]:
    if "exact" in quality:
        yield (
            "Stable is not correct: f(f(x)) = f(x) in every bit, for any x, is a property of "
            "its construction. A result that no longer changes may be wrong."
        )
    if "f" in quality.get("drift", {}):
        yield (
            "It is only approximately idempotent: a second step changes a pixel of f(z) by "
            f"{quality['drift']['f']:.4f} on average. "
            f"{_many_steps(quality.get('repeated_application', {}))}"
        )
    repeated = quality.get("repeated", {})
    first = repeated.get("f", {}).get("kl")
    for name, row in repeated.items():
        if first is not None and is_power(name) and row["kl"] > first + KL_INCREASE:
            yield (
                f"After {name[1:]} steps some classes dominate: KL divergence from uniform "
                f"{row['kl']:.3f} nats, {first:.3f} after one step."
            )
            return


def _many_steps(repeated: Table) -> str:
    samples = repeated.get("samples", {})
    pictures = repeated.get("pictures", {})
    last = max(
        (name for name in samples if is_power(name)),
        key=lambda name: int(name[1:] or 1),
        default="",
    )
    rows = [samples.get(last, {}), pictures.get(last, {})]
    if any(row.get("at_rest") != 1.0 or "same_class" not in row for row in rows):
        return "Small changes add up over many steps."
    kept = [f"{100 * row['same_class']:.0f} %" for row in rows]
    return (
        f"After {last[1:]} steps it is exact; {kept[0]} of samples and {kept[1]} of real "
        f"pictures keep their class."
    )


def _variety(nearest: Table) -> Iterator[str]:
    texts = {
        "other_sample": "closer to another sample than 99 % of real pictures are to one another",
        "training_picture": "closer to a training picture than 99 % of held-out pictures are",
    }
    for name, text in texts.items():
        rare = nearest.get(name, {}).get("rare", 0.0)
        if rare > COPIES.limitation:
            yield f"{100 * rare:.1f} % of samples are {text}."


def _restoration(quality: Table) -> Iterator[str]:
    if (similarity := quality.get("clean", {}).get("ssim", 1.0)) < SSIM.limitation:
        yield f"It changes real pictures: SSIM {similarity:.3f} after one step."
    for name, row in quality.get("restoration", {}).items():
        before = row.get("input", {}).get("psnr")
        after = row.get("f", {}).get("psnr")
        if before is None or after is None:
            continue
        rival, best = best_baseline(row)
        # on the pictures of the baselines
        ours = row.get("baselines", {}).get("f", row["f"])["psnr"]
        if after < before + _MIN_GAIN:
            masked = [figures["psnr"] for figures in row.get("with_mask", {}).values()]
            change = f"PSNR {before:.1f} dB before, {after:.1f} dB after one step"
            change += f"; with a mask {max(masked):.1f} dB" if masked else ""
            yield (
                f"It {'hardly restores' if after > before else 'does not restore'} `{name}`: "
                f"{change}."
            )
        elif best > ours:
            yield f"For `{name}`, {rival} is better: PSNR {best:.1f} dB, f {ours:.1f} dB."


def best_baseline(row: Table) -> tuple[str, float]:
    """Name and PSNR of the best classical method for a corruption; ("", −∞) if none was
    measured.
    """
    methods = (
        (name.replace("_", " "), figures["psnr"])
        for name, figures in row.get("baselines", {}).items()
        if name != "input" and not is_power(name) and isinstance(figures, Mapping)
    )
    return max(methods, key=lambda pair: pair[1], default=("", float("-inf")))


def summary(card: TrainedCard) -> str:
    """The most important figures as a table; one sentence if nothing was measured."""
    quality = card.quality
    if not quality:
        return "Not measured: run `python -m model_export evaluate`."
    if ocr := quality.get("ocr"):
        return (
            f"{table(*_error_rates(ocr['means'] | {'clean': ocr['cer']['clean']}))}\n\n{_METHODS}"
        )
    warnings = "\n".join(
        f"- **Warning**: {one_line(warning)}" for warning in quality.get("warnings", ())
    )
    samples = quality.get("generation", {}).get("f", {})
    noisy = quality.get("restoration", {}).get("noise_0.8", {})
    floor = quality.get("generation", {}).get("training", {}).get("frechet")
    ideal = f"{floor:.2f}: training pictures" if floor else "0"
    figures = [
        ("Fréchet distance of samples f(z)", samples, "frechet", ".2f", ideal),
        ("Unevenness of the classes of f(z), KL in nats", samples, "kl", ".4f", "0"),
        ("Diversity of samples, relative to real pictures", quality, "diversity", ".2f", "1"),
        (
            "Change of f(z) by a second step, mean per pixel, range 2",
            quality.get("drift", {}),
            "f",
            ".4f",
            "0",
        ),
        ("SSIM of real pictures after one step", quality.get("clean", {}), "ssim", ".3f", "1"),
    ]
    rows = [
        (title, format(row[key], form), ideal)
        for title, row, key, form, ideal in figures
        if key in row
    ]
    if noisy:
        rows.append(
            ("Strong noise (σ = 0.8), PSNR in dB", _arrow(noisy, "psnr", ".1f"), "higher is better")
        )
    if "accuracy" in noisy.get("f", {}):
        rows.append(
            ("The same, share classified correctly", _arrow(noisy, "accuracy", ".1%"), "100 %")
        )
    for sigma, share in quality.get("exact", {}).get("returned", {}).items():
        rows.append(
            (
                f"f(z) returned in every bit after noise of σ = {sigma}",
                _number(share, ".0%"),
                "100 %",
            )
        )
    for name, row in quality.get(
        "drawings", {}
    ).items():  # of fonts and figures that training never shows
        rows.append(
            (
                f"{name.capitalize()} told from real pictures by mean |f(u) − u|, AUROC",
                f"{row['auroc']:.3f}",
                "1",
            )
        )
        if "sure" in row:
            sure = " → ".join(_cells(row["sure"], {"u": ".0%", "f": ".0%", "f3": ".0%"}))
            rows.append(
                ("The same, classified with probability ≥ 0.9: u → f(u) → f³(u)", sure, "100 %")
            )
    return "\n\n".join(
        part for part in (warnings, table(["measure", "value", "ideal"], rows)) if part
    )


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
    if generation := quality.get("generation"):
        yield "### Generation"
        yield _generation_table(generation)
        yield (
            "The Fréchet distance compares features of a classifier, and is comparable only "
            "within one data set. KL: divergence of the predicted classes from uniform, in "
            "nats."
        )
    if repeated := quality.get("repeated"):
        yield "### f applied k times"
        yield _repeated_table(repeated)
        yield "Drift: mean change of a pixel by one more step. Moved: mean difference from f(z)."
    if long_run := quality.get("repeated_application"):
        yield "### Samples, real and restored pictures under repeated application"
        yield _long_run_table(long_run)
        yield (
            f"Of {long_run['n']} pictures each. Restored: the input is a real picture with "
            f"noise of σ = 0.8. The "
            "Fréchet distance of few pictures is large: compare it within this table only. "
            "Same class, same attributes: as after one application. At rest: one more "
            "application changes no bit."
        )
    yield from _exact_measurements(quality.get("exact", {}))
    yield from _restoration_measurements(quality)
    if card.distance_quantiles:
        yield "### Distance of real pictures"
        quantiles = ", ".join(f"{q} % below {card.distance_quantiles[q]:.4f}" for q in (50, 95, 99))
        yield f"`/score` compares with mean |f(x) − x| of held-out pictures: {quantiles}."
    if precision := quality.get("precision"):
        yield "### Half precision"
        yield "\n".join(_precision(name, row) for name, row in precision.items())


def _error_rates(rows: Table) -> tuple[list[str], list[tuple[str, ...]]]:
    """Head and lines of a table, method by method."""
    names = list(next(iter(rows.values())))
    return ["damage", *names], [
        (name, *_cells(row, dict.fromkeys(names, ".1f"))) for name, row in rows.items()
    ]


def _exact_measurements(exact: Table) -> Iterator[str]:
    if not exact:
        return
    yield "### f(f(x)) = f(x)"
    rows = [
        (name, *_cells({way: exact[way][name] for way in _WAYS}, _WAYS)) for name in exact["twice"]
    ]
    yield table(["x", "in every bit", "the same through a file of 8 bits"], rows)
    unchanged, change = _cells(exact["forged"], {"unchanged": ".1%", "change": ".3f"})
    yield (
        f"Of {exact['n']} rows each; `large`: uniform noise in −10 … 10. Of forged pictures, "
        f"noise with the block means of f(z), f returns {unchanged} as they are, and changes "
        f"a pixel by {change} on average."
    )


def _restoration_measurements(quality: Table) -> Iterator[str]:
    if restoration := quality.get("restoration"):
        yield "### Restoration"
        yield _restoration_table(restoration)
        yield (
            "Held-out pictures, corrupted → after one step of f. Numbers in names: σ of "
            "noise and of blur, factor of low resolution, share of the side of a hole."
        )
    if attributes := _attributes_table(quality):
        yield "### Attributes"
        yield attributes
        yield (
            "Share of held-out pictures whose attribute is read correctly by a classifier "
            "trained on real ones."
        )


def _generation_table(generation: Table) -> str:
    rows = [
        (_PICTURES.get(name, f"{formula(name)}(z)"), *_cells(row, {"frechet": ".2f", "kl": ".4f"}))
        for name, row in generation.items()
        if "frechet" in row
    ]
    return table(["pictures", "Fréchet distance", "KL"], rows)


def _repeated_table(repeated: Table) -> str:
    forms = {"drift": ".4f", "moved": ".4f", "kl": ".3f"}
    rows = [
        (name[1:] or "1", *_cells(row, forms))
        for name, row in repeated.items()
        if isinstance(row, Mapping)
    ]
    return table(["k", "drift", "moved", "KL"], rows)


def _long_run_table(long_run: Table) -> str:
    figures = [
        row for start in long_run.values() if isinstance(start, Mapping) for row in start.values()
    ]
    kept = "same_attributes" if any("same_attributes" in row for row in figures) else "same_class"
    forms = {"frechet": ".2f", kept: ".1%", "drift": ".4f", "at_rest": ".1%"}
    rows = [
        (start, name[1:] or "1", *_cells(row, forms))
        for start, figures in long_run.items()
        if isinstance(figures, Mapping)
        for name, row in figures.items()
    ]
    return table(
        ["input", "k", "Fréchet distance", kept.replace("_", " "), "drift", "at rest"], rows
    )


def _restoration_table(restoration: Table) -> str:
    rows = []
    for name, row in restoration.items():
        method, psnr = best_baseline(row)
        cells = (_arrow(row, key, form) for key, form in (("psnr", ".1f"), ("accuracy", ".1%")))
        rows.append((name, *cells, f"{psnr:.1f} ({method})" if method else "–"))
    return table(
        ["corruption", "PSNR, dB", "classified correctly", "best classical method, PSNR"], rows
    )


def _attributes_table(quality: Table) -> str:
    """What is read from real pictures, and after one step of f; empty for data without
    attributes.
    """
    rows = {
        "real pictures": quality.get("protocol", {}).get("classifier", {}).get("attributes", {})
    }
    rows["f(real pictures)"] = quality.get("clean", {}).get("attributes", {})
    for name, row in quality.get("restoration", {}).items():
        rows[f"f({name})"] = row.get("f", {}).get("attributes", {})
    names = list(rows["real pictures"])
    cells = [
        (title, *_cells(shares, dict.fromkeys(names, ".1%"))) for title, shares in rows.items()
    ]
    return table(["picture", *(name.replace("_", " ") for name in names)], cells) if names else ""


def _precision(name: str, row: Table) -> str:
    frechet = _number(row.get("frechet"), ".2f")
    mean, largest = _cells(row.get("difference", {}), {"mean": ".5f", "largest": ".4f"})
    return (
        f"`{name}`: Fréchet distance {frechet}; pixels differ from fp32 by {mean} on average, "
        f"{largest} at most."
    )


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
