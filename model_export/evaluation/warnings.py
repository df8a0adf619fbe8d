"""What should not be in a model's figures: collapse, and other ways to fail, said in a line each."""

from collections.abc import Iterator
from typing import Final

from model_export.evaluation.judge import Table

UNEVEN: Final = 0.1  # nats that the classes of f(z) may be less even than those of training pictures
COPIES: Final = 0.1  # share of f(z) nearer to another one, or to a training picture, than 1 % of real ones are
ALIKE: Final = 0.5  # of the distance between real pictures
FAR: Final = 25.0  # times the Fréchet distance of training pictures
MOVES: Final = 0.05  # mean |f(f(z)) − f(z)|, range 2
HEALTHY: Final = 1.0  # L_idem / L_rec; good runs of the adversarial objective stay below, collapsed ones do not
SPOILS: Final = 0.5  # SSIM of good pictures after f


def warnings(table: Table) -> list[str]:
    """One line for every figure of an evaluation that is far from what a sound model has; none for real pictures."""
    return [*_generation(table["generation"]), *_variety(table), *_fixed_points(table)]


def _generation(generation: Table) -> Iterator[str]:
    one, real = generation["f"], generation["training"]
    if one.get("kl", 0.0) - real.get("kl", 0.0) > UNEVEN:
        yield f"collapse: some classes hardly appear in f(z): KL {one['kl']:.3f}, training pictures {real['kl']:.3f}"
    if one.get("multiple", 0.0) > FAR:
        yield f"f(z) are far from real pictures: Fréchet distance {one['multiple']:.1f} times that of training pictures"


def _variety(table: Table) -> Iterator[str]:
    nearest = table["nearest"]
    copies, learned = nearest["other_sample"]["rare"], nearest["training_picture"]["rare"]
    if copies > COPIES:
        yield f"collapse: {copies:.1%} of f(z) are nearer to another one than 99 % of real pictures are to theirs"
    if table.get("diversity", 1.0) < ALIKE:
        yield f"collapse: f(z) are alike: {table['diversity']:.2f} of the distance between real pictures"
    if learned > COPIES:
        yield f"learned by heart: {learned:.1%} of f(z) are nearer to a training picture than 99 % of held-out ones are"


def _fixed_points(table: Table) -> Iterator[str]:
    drift, health, ssim = table["drift"]["f"], table.get("health", 0.0), table["clean"]["ssim"]
    if drift > MOVES:
        yield f"not idempotent: a second step moves f(z) by {drift:.3f} on average"
    if health > HEALTHY:
        yield f"not idempotent: f moves its own pictures more than real ones, r = {health:.2f}"
    if ssim < SPOILS:
        yield f"f does not keep real pictures: SSIM {ssim:.3f} to themselves after one step"
