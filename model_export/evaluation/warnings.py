"""Warnings about a model's measures: collapse and other failures, one line each."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from model_export.evaluation.classifier import Table


class Threshold(NamedTuple):
    """The value from which the page of a model states a limitation, and the one from which
    `evaluate` warns.
    """

    limitation: float
    warning: float


# share of f(z) nearer to another one, or to a training picture, than 1 % of real
COPIES: Final = Threshold(0.02, 0.1)
SSIM: Final = Threshold(0.99, 0.5)  # of real pictures after f; smaller values are worse
KL: Final = 0.01  # of the classes of f(z) from uniform, in nats, that is a limitation
# Nats by which the classes of f(z) are less even than those of training pictures (a warning) or
# become less even after many steps (a limitation).
KL_INCREASE: Final = 0.1
_MIN_DIVERSITY: Final = 0.5  # of the distance between real pictures
_MAX_FRECHET: Final = 25.0  # in units of the Fréchet distance of training pictures
_MAX_DRIFT: Final = 0.05  # mean |f(f(z)) − f(z)|, range 2
# L_idem / L_rec; good runs of the adversarial objective end below, collapsed ones above
_MAX_HEALTH: Final = 1.0
# share of pictures that keep their class after the most applications of f
_MIN_SAME_CLASS: Final = 0.8
_STARTS: Final = {
    "samples": "samples",
    "pictures": "real pictures",
    "restored": "restored pictures",
}


def warnings(table: Table) -> list[str]:
    """One line for every measure that is far from that of a working model; none for real
    pictures.
    """
    return [
        *_generation(table["generation"]),
        *_variety(table),
        *_idempotence(table),
        *_repeated_application(table),
    ]


def _generation(generation: Table) -> Iterator[str]:
    samples = generation["f"]
    real = generation["training"]
    if samples.get("kl", 0.0) - real.get("kl", 0.0) > KL_INCREASE:
        yield (
            f"collapse: some classes are rare in f(z): KL {samples['kl']:.3f}, training "
            f"pictures {real['kl']:.3f}"
        )
    if samples.get("multiple", 0.0) > _MAX_FRECHET:
        times = f"{samples['multiple']:.1f}"
        yield (
            f"f(z) are far from real pictures: the Fréchet distance is {times} times that of "
            f"training pictures"
        )


def _variety(table: Table) -> Iterator[str]:
    nearest = table["nearest"]
    copies = nearest["other_sample"]["rare"]
    memorised = nearest["training_picture"]["rare"]
    if copies > COPIES.warning:
        yield (
            f"collapse: {copies:.1%} of f(z) are nearer to another one than 99 % of real "
            f"pictures are to theirs"
        )
    if table.get("diversity", 1.0) < _MIN_DIVERSITY:
        yield (
            f"collapse: f(z) are alike: {table['diversity']:.2f} of the distance between real "
            f"pictures"
        )
    if memorised > COPIES.warning:
        yield (
            f"memorised: {memorised:.1%} of f(z) are nearer to a training picture than 99 % of "
            f"held-out ones are"
        )


def _idempotence(table: Table) -> Iterator[str]:
    drift = table.get("drift", {"f": 0.0})["f"]
    health = table.get("health", 0.0)
    ssim = table["clean"]["ssim"]
    if drift > _MAX_DRIFT:
        yield f"not idempotent: a second step changes f(z) by {drift:.3f} on average"
    if health > _MAX_HEALTH:
        yield f"not idempotent: f changes its own pictures more than real ones, r = {health:.2f}"
    if ssim < SSIM.warning:
        yield f"f does not keep real pictures: SSIM {ssim:.3f} after one step"


def _repeated_application(table: Table) -> Iterator[str]:
    figures = table.get("repeated_application", {})
    for start, noun in _STARTS.items() if figures else ():
        last = list(figures[start])[-1]  # in ascending order of k
        share = figures[start][last].get("same_class", 1.0)
        if share < _MIN_SAME_CLASS:
            yield (
                f"f applied {last[1:] or 1} times dissolves {noun}: {share:.1%} keep the class "
                f"they have after one"
            )
