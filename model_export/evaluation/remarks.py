"""What the measures of a generator say against it: sentences for its page, and warnings."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

Table = Mapping[str, Any]

# Where a measure differs from the ideal by more than the first value, the page says so; by more
# than the second one, `evaluate` warns.
_COPIES: Final = (0.02, 0.1)  # share of f(z) nearer to another picture than 99 % of real ones
_SSIM: Final = (0.99, 0.5)  # of real pictures after f; smaller values are worse
_KL: Final = (0.01, 0.1)  # of the classes from uniform, in nats; the second one beyond real ones
_LEAST_GAIN: Final = 1.0  # dB of PSNR; a smaller gain does not count as restored
_BETTER: Final = 0.9  # a further step is mentioned if it reaches this share of the Fréchet distance
_LEAST_DIVERSITY: Final = 0.5  # of the distance between real pictures
_MOST_FRECHET: Final = 25.0  # in units of the Fréchet distance of training pictures
_MOST_DRIFT: Final = 0.05  # mean |f(f(z)) − f(z)|, range 2
# L_idem / L_rec; good runs of the adversarial objective end below, collapsed ones above
_MOST_HEALTH: Final = 1.0
# share of pictures that keep their class after the most applications of f
_LEAST_KEPT: Final = 0.8


def remarks(table: Table) -> Iterator[tuple[bool, str]]:
    """A sentence for each measure that is not ideal, and whether it is a warning: the measure is
    far from that of a working model.
    """
    yield from _generation(table["generation"])
    if table.get("diversity", 1.0) < _LEAST_DIVERSITY:
        yield (
            True,
            f"Collapse: f(z) are alike, {table['diversity']:.2f} of the distance between real "
            "pictures.",
        )
    nearest = table["nearest"]
    for name, text in (
        ("other_sample", "another sample than 99 % of real pictures are to one another"),
        ("training_picture", "a training picture than 99 % of held-out pictures are"),
    ):
        rare = nearest[name]["rare"]
        if rare > _COPIES[0]:
            yield rare > _COPIES[1], f"{100 * rare:.1f} % of samples are closer to {text}."
    yield from _idempotence(table)
    ssim = table["clean"]["ssim"]
    if ssim < _SSIM[0]:
        yield ssim < _SSIM[1], f"It changes real pictures: SSIM {ssim:.3f} after one step."
    for name, row in table["restoration"].items():
        before = row["input"]["psnr"]
        after = row["f"]["psnr"]
        if after < before + _LEAST_GAIN:
            masked = [figures["psnr"] for figures in row.get("with_mask", {}).values()]
            change = f"PSNR {before:.1f} dB before, {after:.1f} dB after one step"
            change += f"; with a mask {max(masked):.1f} dB" if masked else ""
            verb = "hardly restores" if after > before else "does not restore"
            yield False, f"It {verb} `{name}`: {change}."


def _generation(generation: Table) -> Iterator[tuple[bool, str]]:
    multiple = generation["f"].get("multiple", 0.0)
    if multiple > 1.0:
        yield (
            multiple > _MOST_FRECHET,
            f"Samples differ from real pictures: Fréchet distance {multiple:.1f} times that of "
            "real ones.",
        )
    powers = {name: row["frechet"] for name, row in generation.items() if name[0] == "f"}
    best = min(powers, key=lambda name: powers[name])
    if powers[best] < _BETTER * powers["f"]:
        yield (
            False,
            f"More steps give better samples: {best[1:]} steps reach a Fréchet distance of "
            f"{powers[best]:.2f}.",
        )
    kl = generation["f"].get("kl", 0.0)
    if kl > _KL[0]:
        yield (
            kl - generation["training"]["kl"] > _KL[1],
            f"Classes are not equally frequent: KL divergence from uniform {kl:.3f} nats.",
        )


def _idempotence(table: Table) -> Iterator[tuple[bool, str]]:
    if "exact" in table:
        yield (
            False,
            "Stable is not correct: f(f(x)) = f(x) in every bit, for any x, is a property of "
            "its construction. A result that no longer changes may be wrong.",
        )
    else:
        drift = table["drift"]["f"]
        yield (
            drift > _MOST_DRIFT,
            "It is only approximately idempotent: a second step changes a pixel of f(z) by "
            f"{drift:.4f} on average.",
        )
        yield _many_steps(table["repeated_application"])
    if (health := table.get("health", 0.0)) > _MOST_HEALTH:
        yield True, f"f changes its own pictures more than real ones, r = {health:.2f}."


def _many_steps(repeated: Table) -> tuple[bool, str]:
    last = list(repeated["samples"])[-1]  # in ascending order of k
    rows = [repeated[start][last] for start in ("samples", "pictures")]
    kept = next((name for name in ("same_class", "same_attributes") if name in rows[0]), None)
    if kept is None:
        return False, "Small changes add up over many steps."
    state = "it is exact" if all(row["at_rest"] == 1.0 for row in rows) else "changes have added up"
    samples, pictures = (f"{100 * row[kept]:.0f} %" for row in rows)
    return min(row[kept] for row in rows) < _LEAST_KEPT, (
        f"After {last[1:] or 1} steps {state}: {samples} of samples and {pictures} of real "
        f"pictures keep their {kept.removeprefix('same_')}."
    )
