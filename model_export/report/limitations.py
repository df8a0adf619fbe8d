"""The limitations of a model, derived from the measures in its card."""

from collections.abc import Iterator, Mapping
from typing import Final

from model_export.evaluation.thresholds import COPIES, KL, KL_INCREASE, SSIM
from model_export.report.markdown import Table, is_power
from service.artifact.card import ModelCard

_MIN_GAIN: Final = 1.0  # dB of PSNR; a smaller gain does not count as restored
_BETTER: Final = 0.9  # a further step is mentioned if it reaches this share of the Fréchet distance


def limitations(card: ModelCard) -> list[str]:
    """One or two sentences for each limitation; at least one entry. The warnings are not repeated here."""
    quality = card.quality
    domain = f"It is made for pictures like those of {card.data.name} only."
    if not quality:
        return [domain, "Its quality has not been measured."]
    return [
        domain,
        *_generation(quality.get("generation", {})),
        *_idempotence(quality.get("drift", {}), quality.get("repeated_application", {})),
        *_repetition(quality.get("repeated", {})),
        *_variety(quality.get("nearest", {})),
        *_real_pictures(quality.get("clean", {})),
        *_restoration(quality.get("restoration", {})),
    ]


def _generation(generation: Table) -> Iterator[str]:
    samples = generation.get("f", {})
    floor = generation.get("training", {}).get("frechet")
    distance = samples.get("frechet")
    if distance is not None and floor:
        yield f"Samples differ from real pictures: Fréchet distance {distance / floor:.1f} times that of real ones."
    if distance is not None:
        powers = {name: row["frechet"] for name, row in generation.items() if is_power(name) and "frechet" in row}
        best = min(powers, key=lambda name: powers[name])
        if powers[best] < _BETTER * distance:
            yield f"More steps give better samples: {best[1:]} steps reach a Fréchet distance of {powers[best]:.2f}."
    if samples.get("kl", 0.0) > KL:
        yield f"Classes are not equally frequent: KL divergence from uniform {samples['kl']:.3f} nats."


def _idempotence(drift: Table, repeated: Table) -> Iterator[str]:
    if "f" in drift:
        yield (
            f"It is only approximately idempotent: a second step changes a pixel of f(z) by {drift['f']:.4f} on "
            f"average. {_many_steps(repeated)}"
        )


def _many_steps(repeated: Table) -> str:
    samples, pictures = repeated.get("samples", {}), repeated.get("pictures", {})
    last = max((name for name in samples if is_power(name)), key=lambda name: int(name[1:] or 1), default="")
    rows = [samples.get(last, {}), pictures.get(last, {})]
    if any(row.get("at_rest") != 1.0 or "same_class" not in row for row in rows):
        return "Small changes add up over many steps."
    kept = [f"{100 * row['same_class']:.0f} %" for row in rows]
    return f"After {last[1:]} steps it is exact; {kept[0]} of samples and {kept[1]} of real pictures keep their class."


def _repetition(repeated: Table) -> Iterator[str]:
    first = repeated.get("f", {}).get("kl")
    for name, row in repeated.items():
        if first is not None and is_power(name) and row["kl"] > first + KL_INCREASE:
            yield (
                f"After {name[1:]} steps some classes dominate: KL divergence from uniform {row['kl']:.3f} nats, "
                f"{first:.3f} after one step."
            )
            return


def _variety(nearest: Table) -> Iterator[str]:
    texts = {
        "other_sample": "closer to another sample than 99 % of real pictures are to one another",
        "training_picture": "closer to a training picture than 99 % of held-out pictures are",
    }
    for name, text in texts.items():
        rare = nearest.get(name, {}).get("rare", 0.0)
        if rare > COPIES.limitation:
            yield f"{100 * rare:.1f} % of samples are {text}."


def _real_pictures(clean: Table) -> Iterator[str]:
    if clean.get("ssim", 1.0) < SSIM.limitation:
        yield f"It changes real pictures: SSIM {clean['ssim']:.3f} after one step."


def _restoration(restoration: Table) -> Iterator[str]:
    for name, row in restoration.items():
        before, after = row.get("input", {}).get("psnr"), row.get("f", {}).get("psnr")
        if before is None or after is None:
            continue
        if after < before + _MIN_GAIN:
            change = f"PSNR {before:.1f} dB before, {after:.1f} dB after one step{_masked(row)}"
            yield f"It {'hardly restores' if after > before else 'does not restore'} `{name}`: {change}."
            continue
        rival, best = best_baseline(row)
        group = row.get("baselines", {})
        ours = group.get("f", row["f"])["psnr"]  # on the pictures of the baselines
        if best > ours:
            yield f"For `{name}`, {rival} is better: PSNR {best:.1f} dB, f {ours:.1f} dB."


def _masked(row: Table) -> str:
    values = [figures["psnr"] for figures in row.get("with_mask", {}).values()]
    return f"; with a mask {max(values):.1f} dB" if values else ""


def best_baseline(row: Table) -> tuple[str, float]:
    """Name and PSNR of the best classical method for a corruption; ("", −∞) if none was measured."""
    methods = (
        (name.replace("_", " "), figures["psnr"])
        for name, figures in row.get("baselines", {}).items()
        if name != "input" and not is_power(name) and isinstance(figures, Mapping)
    )
    return max(methods, key=lambda pair: pair[1], default=("", float("-inf")))
