"""What a run continues with: the preset of the command, adapted to what the checkpoint has done."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from model_export.data.datasets import Dataset
from model_export.errors import UserError
from model_export.training.checkpoint import Checkpoint
from model_export.training.presets import Preset, split_steps
from model_export.training.stages import Stage

# Fields that only the card uses. They may change at any time.
CARD_FIELDS: Final = (
    "name",
    "data",
    "licence",
    "description",
    "background",
    "polarity",
    "generate_steps",
    "project_steps",
)
_OPTIONS: Final = {
    "batch": "--batch",
    "network.size": "--size",
    "network.channels": "--channels",
    "corruptions": "--corruptions",
    "eight_bit": "--eight-bit",
}
_SHOWN: Final = 12  # differences that an error lists

Difference = tuple[str, object, object]
"""Name of an option or field, its value in the run, its value now."""


def continued_preset(preset: Preset, saved: Checkpoint, *, out: Path, data: Dataset, seed: int, bf16: bool) -> Preset:
    """The preset with which a run continues.

    Only the card's fields and the number of steps may differ. With more steps, stages that are done keep their length
    and the others share what is left; a run that is finished trains its last stage further. A finished run may also get
    further stages.
    """
    differences: list[Difference] = [
        (name, before, now)
        for name, before, now in (
            ("--seed", saved.seed, seed),
            ("--precision", _precision(saved.provenance.get("bf16")), _precision(bf16)),
        )
        if before != now
    ]
    if not data.matches(saved.data.get("sha256")):
        differences.append(("--data", _data(saved.data), _data({"name": data.name, "sha256": data.sha256})))
    adapted, others = _adapt(preset, saved)
    differences += others
    if differences:
        shown = "; ".join(f"{name} {before}, now {now}" for name, before, now in differences[:_SHOWN])
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise UserError(f"{out} holds a run with other options: {shown}{more}; choose another --out")
    return adapted


def adds_stages(preset: Preset, saved: Checkpoint) -> bool:
    """Whether the run has finished all its own stages and the preset continues with further ones."""
    done = saved.preset["stages"]
    return len(preset.stages) > len(done) and saved.step == sum(stage["steps"] for stage in done)


def _adapt(preset: Preset, saved: Checkpoint) -> tuple[Preset, list[Difference]]:
    try:
        recorded = Preset.from_dict(saved.preset)
    except (KeyError, TypeError, ValueError):
        return preset, [("preset", "of another version of this program", preset.name)]
    if adds_stages(preset, saved):
        recorded = dataclasses.replace(recorded, stages=(*recorded.stages, *preset.stages[len(recorded.stages) :]))
    adapted = dataclasses.replace(preset, stages=_stages(preset, recorded, saved))
    differences = list(_differences(_compared(recorded), _compared(preset)))
    lengths = [name for name, _, _ in differences if name.endswith((".steps", ".warmup"))]
    if len(lengths) == len(differences) and preset.steps >= recorded.steps:
        return adapted, []
    others = [each for each in differences if each[0] not in lengths]
    if preset.steps < recorded.steps and not adds_stages(preset, saved):
        others.append(("--steps", recorded.steps, f"{preset.steps}, and it may only grow"))
    return preset, others


def _stages(preset: Preset, recorded: Preset, saved: Checkpoint) -> tuple[Stage, ...]:
    """The recorded stages; the present one and those after it share the additional steps."""
    if len(preset.stages) != len(recorded.stages) or preset.steps <= recorded.steps:
        return recorded.stages
    done = recorded.stages[: saved.stage]
    rest = preset.stages[saved.stage :]
    steps = split_steps(preset.steps - sum(stage.steps for stage in done), [stage.steps for stage in rest])
    return (*done, *(dataclasses.replace(stage, steps=n) for stage, n in zip(rest, steps, strict=True)))


def _compared(preset: Preset) -> dict[str, Any]:
    return {name: value for name, value in preset.to_dict().items() if name not in CARD_FIELDS}


def _differences(before: Any, now: Any, name: str = "") -> Iterator[Difference]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif name == "stages" and len(before) == len(now):
        for one, other in zip(before, now, strict=True):
            yield from _differences(one, other, f"stage {one['name']}")
    elif before != now:
        yield _OPTIONS.get(name, name), _text(before), _text(now)


def _text(value: object) -> object:
    """A short form: stages by their names."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(str(each.get("name", each)) if isinstance(each, Mapping) else str(each) for each in value)
    return value


def _precision(bf16: object) -> str:
    return "bf16" if bf16 else "fp32"


def _data(data: Mapping[str, Any]) -> str:
    return f"{data.get('name')} of SHA-256 {str(data.get('sha256'))[:12]}"
