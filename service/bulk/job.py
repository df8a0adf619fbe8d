"""The job of one run, and the fingerprint by which a later run knows that it continues the same job."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import ValidationError

from service.api.native.schemas import GenerateRequest, PictureOptions, ProjectOptions, ScoreOptions
from service.api.native.validation import step_params
from service.domain.errors import StartupError
from service.domain.tasks import StepParams
from service.models.registry import ServedModel
from service.settings import Settings

Task = Literal["generate", "project", "score"]
Options = GenerateRequest | ProjectOptions | ScoreOptions
Fingerprint = dict[str, Any]

SCHEMAS: Final[Mapping[Task, type[Options]]] = {
    "generate": GenerateRequest,
    "project": ProjectOptions,
    "score": ScoreOptions,
}
_LAYOUT: Final = 1  # of the output folder; a run does not continue a folder of another layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job; its options are those of the endpoint of the same name."""

    options: Options
    source: str = ""  # path or URL of the images; empty for `generate`
    column: str = "image"  # of a Parquet table, with the images
    shard: int = 1024  # images in each, ≥ 1

    @property
    def task(self) -> Task:
        """Name of the endpoint that does the same."""
        return next(task for task, schema in SCHEMAS.items() if type(self.options) is schema)

    def step_params(self, model: ServedModel, settings: Settings) -> StepParams:
        """How f is applied to each image; raises InvalidContent for more steps than the settings allow."""
        if not isinstance(self.options, GenerateRequest | ProjectOptions):
            return StepParams(steps=1, score=True)
        steps = model.card.steps
        recommended = steps.generate if isinstance(self.options, GenerateRequest) else steps.project
        return step_params(self.options, recommended=recommended, rows=1, settings=settings)

    def fingerprint(self, model: ServedModel, settings: Settings, images: int, digest: str) -> Fingerprint:
        """Everything that determines the bytes of the output, as JSON values; ``digest`` is that of the source."""
        unused = {"model", "record", *PictureOptions.model_fields} - {"format"}
        options = self.options.model_dump(mode="json", exclude=unused)
        if self.task != "score":
            options["steps"] = self.step_params(model, settings).steps
        return {
            "layout": _LAYOUT,
            "task": self.task,
            "model": model.ref,
            "digest": f"sha256:{model.digest}",
            "options": options,
            "pictures": images,
            "source": digest,
            "shard": self.shard,
        }


def parse_options(task: Task, values: Mapping[str, Any]) -> Options:
    """Validate the options of a task by the schema of its endpoint; a StartupError names the invalid option."""
    try:
        return SCHEMAS[task].model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = "-".join(str(part).replace("_", "-") for part in first["loc"])
        raise StartupError(f"{'-' if len(name) == 1 else '--'}{name}: {first['msg']}") from None


def check_same(previous: Fingerprint, current: Fingerprint) -> None:
    """Check that a run continues the same job; a StartupError names the first difference."""
    before, now = ({**one, **one.get("options", {}), "options": None} for one in (previous, current))
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
            change = f"{name} was {before.get(name)}, and is {now.get(name)} now"
            raise StartupError(f"the output holds another run: {change}; use another folder")
