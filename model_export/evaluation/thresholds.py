"""From which value on a measure is a limitation of the model, and from which on `evaluate` warns."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Threshold:
    """The two values of one measure."""

    limitation: float  # the page of the model states the measure as a limitation from here on
    warning: float  # the model does not work as it should from here on


COPIES: Final = Threshold(limitation=0.02, warning=0.1)
"""Share of f(z) nearer to another one, or to a training picture, than 1 % of real pictures."""
SSIM: Final = Threshold(limitation=0.99, warning=0.5)
"""Of real pictures after f; smaller values are worse."""
KL: Final = 0.01
"""Of the classes of f(z) from uniform, in nats, that is a limitation."""
KL_INCREASE: Final = 0.1
"""Nats by which the classes of f(z) are less even than those of training pictures (a warning) or become less even after
many steps (a limitation)."""
