"""What a model cannot do, said from the numbers of its card."""

from collections.abc import Iterator, Mapping
from typing import Final

from model_export.report.markdown import Table, is_power
from service.artifact.card import ModelCard

_RESTORED: Final = 1.0  # dB of PSNR gained; less counts as not restored
_BETTER: Final = 0.9  # of the Fréchet distance: what a further step has to reach to be worth a sentence
_RARE: Final = 0.02  # twice what real pictures show
_EVEN: Final = 0.01  # nats
_UNEVEN: Final = 0.1  # nats
_UNTOUCHED: Final = 0.99  # SSIM


def limits(card: ModelCard) -> list[str]:
    """One sentence or two for each limit; never empty."""
    quality = card.quality
    found = [
        f"It knows {card.shape[1]}×{card.shape[2]} pictures like those of {card.data.name} and no others: what it "
        "makes of anything else means nothing."
    ]
    if not quality:
        return [*found, "Its quality has not been measured."]
    return [
        *found,
        *(f"Evaluation flags it: {warning}." for warning in quality.get("warnings", ())),
        *_generation(quality.get("generation", {}), quality.get("protocol", {})),
        *_idempotence(quality.get("drift", {})),
        *_repetition(quality.get("repeated", {})),
        *_variety(quality.get("nearest", {})),
        *_clean(quality.get("clean", {})),
        *_restoration(quality.get("restoration", {})),
    ]


def _generation(generation: Table, protocol: Table) -> Iterator[str]:
    one = generation.get("f", {})
    floor = generation.get("training", {}).get("frechet")
    distance = one.get("frechet")
    if distance is not None and floor:
        yield (
            f"Its pictures are not real ones: the Fréchet distance of f(z) is {distance:.2f}, {distance / floor:.1f} "
            f"times the {floor:.2f} of training pictures. That compares models of one data set, and nothing else."
        )
    if distance is not None:
        powers = {name: row["frechet"] for name, row in generation.items() if is_power(name) and "frechet" in row}
        best = min(powers, key=lambda name: powers[name])
        if powers[best] < _BETTER * distance:
            yield f"One step is not its best: {best[1:]} steps reach a Fréchet distance of {powers[best]:.2f}."
    if one.get("kl", 0.0) > _EVEN:
        samples = f" over {protocol['samples']} samples" if "samples" in protocol else ""
        yield f"Classes do not come equally often: KL divergence from uniform {one['kl']:.3f} nats{samples}."


def _idempotence(drift: Table) -> Iterator[str]:
    if "f" in drift:
        yield (
            f"It is idempotent only nearly: a second step moves the pixels of f(z) by {drift['f']:.4f} on average, in "
            "a range of 2, and such moves add up when f is applied many times."
        )


def _repetition(repeated: Table) -> Iterator[str]:
    first = repeated.get("f", {}).get("kl")
    for name, row in repeated.items():
        if first is not None and is_power(name) and row["kl"] > first + _UNEVEN:
            yield (
                f"Applied {name[1:]} times, f favours some classes: KL divergence from uniform {row['kl']:.3f} nats "
                f"over {repeated['n']} samples, {first:.3f} after one step."
            )
            return


def _variety(nearest: Table) -> Iterator[str]:
    said = {
        "other_sample": "nearer to another sample than all but 1 % of real pictures are to one another: less varied "
        "than the data",
        "training_picture": "nearer to a training picture than all but 1 % of held-out pictures are: some may be "
        "learned by heart",
    }
    for name, text in said.items():
        rare = nearest.get(name, {}).get("rare", 0.0)
        if rare > _RARE:
            yield f"{100 * rare:.1f} % of f(z) are {text}."


def _clean(clean: Table) -> Iterator[str]:
    if clean.get("ssim", 1.0) < _UNTOUCHED:
        after = f"SSIM {clean['ssim']:.3f}, PSNR {clean['psnr']:.1f} dB after f"
        yield f"It does not leave good pictures quite alone: {after}."


def _restoration(restoration: Table) -> Iterator[str]:
    for name, row in restoration.items():
        before, after = row.get("input", {}).get("psnr"), row.get("f", {}).get("psnr")
        if before is None or after is None:
            continue
        if after < before + _RESTORED:
            figures = f"PSNR {before:.2f} dB before, {after:.2f} dB after one step{_kept(row)}"
            yield f"It does not restore `{name}`: {figures}."
        group = row.get("baselines", {})
        compared = group.get("f", row["f"])["psnr"]  # on the same pictures
        rival, best = max(_baselines(group), key=lambda pair: pair[1], default=("", compared))
        if best > compared:
            yield f"For `{name}`, {rival} does better: PSNR {best:.2f} dB, f {compared:.2f} dB."


def _kept(row: Table) -> str:
    """The same with a mask, which says what is good and has to stay."""
    masked = [figures["psnr"] for figures in row.get("with_mask", {}).values()]
    return f"; with a mask {max(masked):.2f} dB" if masked else ""


def _baselines(group: Table) -> Iterator[tuple[str, float]]:
    """PSNR of the methods that are neither the degraded picture nor f."""
    for name, figures in group.items():
        if name != "input" and not is_power(name) and isinstance(figures, Mapping):
            yield name.replace("_", " "), figures["psnr"]
