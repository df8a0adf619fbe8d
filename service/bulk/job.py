"""What one run is asked to do, and what it must have in common with the run it continues."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import ValidationError

from service.api.native.schemas import GenerateRequest, ProjectOptions, ScoreOptions
from service.api.native.validation import step_params
from service.domain.errors import StartupError
from service.domain.tasks import StepParams
from service.models.registry import ServedModel
from service.settings import Settings

Task = Literal["generate", "project", "score"]
Options = GenerateRequest | ProjectOptions | ScoreOptions
Identity = dict[str, Any]

SCHEMAS: Final[Mapping[Task, type[Options]]] = {
    "generate": GenerateRequest,
    "project": ProjectOptions,
    "score": ScoreOptions,
}

_LAYOUT: Final = 1
"""Of the output folder: a run never continues what another layout began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run.

    Args:
        options: those of the endpoint of the same name, parsed by its schema.
        source: folder, archive, table or URL of the pictures; empty for `generate`.
        column: of a Parquet table, where the pictures are.
        shard: pictures that are finished, and kept, together; ≥ 1.
    """

    options: Options
    source: str = ""
    column: str = "image"
    shard: int = 1024

    @property
    def task(self) -> Task:
        """Which endpoint's work it is."""
        if isinstance(self.options, GenerateRequest):
            return "generate"
        return "project" if isinstance(self.options, ProjectOptions) else "score"

    def step_params(self, model: ServedModel, settings: Settings) -> StepParams:
        """How f is applied to every picture.

        Raises:
            InvalidContent: more steps than the settings allow.
        """
        options, steps = self.options, model.card.steps
        if isinstance(options, GenerateRequest):
            return step_params(options, recommended=steps.generate, rows=1, settings=settings)
        if isinstance(options, ProjectOptions):
            return step_params(options, recommended=steps.project, rows=1, settings=settings)
        return StepParams(steps=1, score=True)

    def identity(self, model: ServedModel, settings: Settings, pictures: int, digest: str) -> Identity:
        """What decides every byte of the output, ready for JSON.

        Args:
            model: that does it.
            settings: of this process.
            pictures: how many there are.
            digest: of the source; empty for `generate`.
        """
        options = self.options.model_dump(mode="json", exclude={"model", "record"})
        if self.task != "score":
            options["steps"] = self.step_params(model, settings).steps
        return {
            "layout": _LAYOUT,
            "task": self.task,
            "model": model.ref,
            "digest": f"sha256:{model.digest}",
            "options": options,
            "pictures": pictures,
            "source": digest,
            "shard": self.shard,
        }


def parsed(task: Task, given: Mapping[str, Any]) -> Options:
    """The options of a task, held to the schema of the endpoint.

    Raises:
        StartupError: a value that the endpoint would refuse; the text names the option.
    """
    try:
        return SCHEMAS[task].model_validate(given)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = "-".join(str(part).replace("_", "-") for part in first["loc"])
        raise StartupError(f"{'-' if len(name) == 1 else '--'}{name}: {first['msg']}") from None


def check_same(there: Identity, asked: Identity) -> None:
    """Refuse to continue a run with something else.

    Raises:
        StartupError: the text names the first thing that differs.
    """
    before, now = _flat(there), _flat(asked)
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
            raise StartupError(
                f"the output holds another run: {name} was {before.get(name)}, and is {now.get(name)} now; "
                "give another folder"
            )


def _flat(identity: Identity) -> Identity:
    options = identity.get("options")
    return {**identity, **(options if isinstance(options, dict) else {}), "options": None}
