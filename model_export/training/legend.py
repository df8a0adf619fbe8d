"""The terms of the loss in words, for people who read the log."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from model_export.training.presets import Preset

TERMS: Final[Mapping[str, str]] = {
    "rec": "reconstruction: how much f changes real pictures",
    "imle": "distance of every picture to its nearest sample",
    "match": "distance of samples to the pictures they are paired with",
    "distill": "distance of f(z) to several steps of the earlier stage",
    "project": "restoration: distance of f(corrupted picture) to the picture",
    "idem": "idempotence: distance of f(f(z)) to f(z), trains the inner f",
    "tight": "tightness, negative: few other pictures stay as they are",
    "settle": "idempotence: how much f changes its own samples",
    "critic": "minus the discriminator's score of samples",
    "code_consistency": "how much the code of a picture changes after f",
    "drifting": "drifting: distance of samples to where the pictures draw them",
    "features": "restoration: the same distances in features of the earlier stage's encoder",
    "health": "idem / rec; above 1 the samples collapse",
}
"""Every name that `log.jsonl` and the progress bar show."""


def legend(preset: Preset) -> list[str]:
    """One line for each term that a stage of the preset uses. Lower values are better."""
    used = {"rec"} | {name for stage in preset.stages for name, weight in asdict(stage.weights).items() if weight > 0}
    if "idem" in used:
        used.add("health")
    width = max(map(len, used))
    return [f"  {name:{width}}  {words}" for name, words in TERMS.items() if name in used]
