"""The job of a run, and its shards: in this process, or on Ray Data with one actor per GPU, or
some cores.

A shard reads its images in their order, some of them ahead of those that run, and writes images and
records.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

from anyio.from_thread import start_blocking_portal
from tqdm import tqdm

from service.api.app_state import AppState
from service.api.native.schemas import Format, GenerateRequest, ImageOptions, ProjectOptions
from service.app import running_services
from service.bulk.output import COLUMNS, Fingerprint, Made, Output, Pack, Record, packed, progress
from service.bulk.pipeline import SCHEMAS, Item, Options, Pipeline
from service.bulk.places import absolute, task_group
from service.bulk.sources import Files, open_source
from service.domain.errors import IgnError, StartupError, printable
from service.environment import available_cpus, prepare_process
from service.settings import Settings

_LOG = logging.getLogger(__name__)
_MAX_REPORTED: Final = 20  # failed images in the log; the manifest lists all
_SUFFIXES: Final = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "npy": ".npy"}
_AT_ONCE: Final = 64  # images that are read by one call


class Job(NamedTuple):
    """What one run does."""

    options: Options
    source: str = ""  # path or URL of the images; empty for `generate`
    column: str = "image"  # of a Parquet table, with the images
    shard: int = 1024  # images in each, ≥ 1
    pack: Pack = "files"
    part: tuple[int, int] = (1, 1)  # shards of this worker: k, n are every n-th, from the k-th


class ShardPlan(NamedTuple):
    """The number of images of a worker and of all shards, and what of its own is done."""

    images: int
    shards: int
    missing: tuple[int, ...]  # numbers of the shards that are not complete
    completed: int  # images in complete shards


class Latents:
    """The source of `generate`, which reads nothing."""

    digest = ""
    listing = None

    def __init__(self, options: GenerateRequest) -> None:
        self.images = options.n
        self._first = options.offset

    async def fetch(self, start: int, stop: int) -> list[Item]:
        """Latents ``start`` … ``stop − 1``."""
        return [Item(self._first + index) for index in range(start, stop)]


Source = Files | Latents


@dataclass(eq=False)
class Shards:
    """Processes shards of one job, whose ``source`` is open; raises StartupError as `Pipeline`."""

    job: Job
    services: AppState
    output: Output
    source: Source

    def __post_init__(self) -> None:
        options = self.job.options
        self._pipeline = Pipeline(options, self.services)
        self.images = self.source.images
        self._format = (
            options.format if isinstance(options, GenerateRequest | ProjectOptions) else None
        )
        self._ahead = asyncio.Semaphore(8)  # calls of `fetch` whose images are not yet written

    def start(self) -> ShardPlan:
        """Record the job in the output folder, or check that it continues the recorded one; returns
        what is missing.
        """
        self.output.start(self._fingerprint(), self.source.listing)
        size = self.job.shard
        (part, parts) = self.job.part
        count = -(-self.images // size)
        mine = range(part - 1, count, parts)
        complete = self.output.complete()
        missing = tuple(number for number in mine if number not in complete)
        images, left = (
            sum(min(size, self.images - n * size) for n in some) for some in (mine, missing)
        )
        return ShardPlan(images, count, missing, images - left)

    def _fingerprint(self) -> Fingerprint:
        """Everything that determines the bytes of the output, as JSON values."""
        job = self.job
        model = self._pipeline.model
        unused = {"model", "record", *ImageOptions.model_fields} - {"format"}
        options = job.options.model_dump(mode="json", exclude=unused)
        if self._format:
            options["steps"] = self._pipeline.steps.steps
        return {
            "layout": 2,  # of the output folder; no run continues one of another layout
            "task": next(task for task, schema in SCHEMAS.items() if type(job.options) is schema),
            "model": model.ref,
            "digest": f"sha256:{model.digest}",
            "options": options,
            "pictures": self.images,
            "source": self.source.digest,
            "listing": self.source.listing and self.source.listing.summary,
            "shard": job.shard,
            "pack": job.pack,
        }

    async def shard(self, number: int) -> list[Record]:
        """Process and write one shard; raises IgnError or OSError if something else than an image
        fails.
        """
        if (
            complete := await asyncio.to_thread(self.output.records, number)
        ) is not None:  # by another worker
            return complete
        start = number * self.job.shard
        stop = min(start + self.job.shard, self.images)
        tasks = []
        async with task_group() as group:
            while start < stop:
                await self._ahead.acquire()
                items = await self.source.fetch(start, min(start + _AT_ONCE, stop))
                tasks.append(group.create_task(self._process(number, start, items)))
                start += len(items)
        made = [each for task in tasks for each in task.result()]
        if self.job.pack != "files":
            file = await self.services.codec.run("encode", lambda: packed(self.job.pack, made))
            await self.output.write(number, [(self._folder(number), file)])
        return await asyncio.to_thread(self.output.finish, number, [record for record, _ in made])

    def _folder(self, number: int) -> str:
        return f"{number:06}" if self.job.pack == "files" else f"{number:06}.{self.job.pack}"

    async def _process(self, shard: int, start: int, items: Sequence[Item]) -> Made:
        """Records of some images, each with its image unless that is written."""
        await self._pipeline.run(items)
        made = [
            (self._record(shard, start + index, item), item.content)
            for index, item in enumerate(items)
        ]
        if self.job.pack == "files":
            await self.output.write(
                shard, [(record["picture"], image) for record, image in made if image]
            )
            made = [(record, b"") for record, _ in made]
        self._ahead.release()
        return made

    def _record(self, shard: int, index: int, item: Item) -> Record:
        """The line of an image in the manifest, with its file name or its error."""
        record = dict.fromkeys(COLUMNS) | item.measures | {"index": index}
        options = self.job.options
        if isinstance(options, GenerateRequest):
            record |= {"seed": options.seed or 0, "latent": options.offset + index}
        else:
            record["source"] = item.name.encode(
                errors="backslashreplace"
            ).decode()  # any bytes may be a name
        if item.error is not None:
            detail = str(item.error)
            if not (detail.startswith(item.name) or isinstance(item.source, int)):
                detail = f"{item.name}: {detail}"
            # on one line, without what controls a terminal: names may hold any characters
            record |= {"error": item.error.error_code, "detail": printable(detail)}
        elif item.content and self._format is not None:
            record["picture"] = f"{self._folder(shard)}/{_file_name(record, self._format)}"
        return record


def _file_name(record: Record, image_format: Format) -> str:
    """Index and shortened source name of an output, in characters that every file system allows."""
    stem = PurePosixPath(record["source"] or f"{record['seed']}-{record['latent']}").stem
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:80]
    return f"{record['index']:08}-{name}{_SUFFIXES[image_format]}"


class Progress:
    """Reports a run: a bar on a terminal, else one log line per shard."""

    def __init__(self, plan: ShardPlan) -> None:
        # disable=None: no bar unless stderr is a terminal
        self.bar = tqdm(
            total=plan.images,
            initial=plan.completed,
            unit=" images",
            dynamic_ncols=True,
            disable=None,
        )
        self._plan = plan
        self._done = plan.completed
        self._failed = 0
        self._began = time.monotonic()
        if plan.completed:
            _LOG.info("continuing: %d of %d images are complete", plan.completed, plan.images)

    def update(self, records: Sequence[Record]) -> None:
        """Report a finished shard and its first failed images."""
        for record in (one for one in records if one["error"]):
            self._failed += 1
            if self._failed <= _MAX_REPORTED:
                _LOG.warning("%s", record["detail"])
            elif self._failed == _MAX_REPORTED + 1:
                _LOG.warning("more images failed; the manifest lists all of them")
        self._done += len(records)
        self.bar.update(len(records))
        if self.bar.disable:
            total = self._plan.images
            seconds = max(time.monotonic() - self._began, 1e-9)
            speed = progress((self._done - self._plan.completed) / seconds, total - self._done)
            _LOG.info("%d/%d images, %d failed, %s", self._done, total, self._failed, speed)


def open_input(job: Job, output: Output, settings: Settings, *, is_part: bool) -> Source:
    """The source of a job, of which this process does a part or all."""
    if isinstance(job.options, GenerateRequest):
        return Latents(job.options)
    return open_source(
        output.listing(job.source, is_part=is_part),
        column=job.column,
        limit=settings.max_body_bytes,
    )


def run_local(job: Job, source: Source, output: Output, settings: Settings) -> ShardPlan:
    """Process the missing shards of a job in this process, to a locked output; returns the plan at
    the start.

    Raises StartupError if the run cannot start, and nothing was written. IgnError and OSError mean
    that it cannot continue; complete shards stay.
    """

    async def run() -> ShardPlan:
        async with running_services(settings, job.options.model or "") as services:
            shards = Shards(job, services, output, source)
            plan = shards.start()
            missing = iter(plan.missing)
            progress = Progress(plan)

            async def take_turns() -> None:
                for number in missing:  # all tasks take shards from the same iterator
                    progress.update(await shards.shard(number))

            with progress.bar:
                # While the last batches of one shard finish, the next one keeps the device busy.
                async with task_group() as tasks:
                    for _ in range(2):
                        tasks.create_task(take_turns())
        return plan

    return asyncio.run(run())


def run_on_ray(
    job: Job, source: Source, output: Output, settings: Settings, *, actors: int | None = None
) -> ShardPlan:
    """As `run_local`, on a Ray cluster. Input, output and models must have the same paths on all
    nodes.

    By default there is one of the ``actors`` per GPU, or per few cores without GPUs, and more as
    the cluster grows.
    """
    try:
        import ray
        import ray.data
    except ImportError as exc:
        raise StartupError(
            f"--ray: Ray is not installed ({exc}); pip install 'ign-service[ray]'"
        ) from None

    async def plan_run() -> ShardPlan:
        # The driver only resolves the model, for which it needs no GPU. Ray gives GPUs to the
        # actors only.
        async with running_services(
            settings.replace(device="cpu"), job.options.model or ""
        ) as services:
            return Shards(job, services, output, source).start()

    plan = asyncio.run(plan_run())
    progress = Progress(plan)
    try:
        with progress.bar:
            if plan.missing:
                ray.init(ignore_reinit_error=True, log_to_driver=False)
                for row in _results(ray, job, output, settings, plan.missing, actors):
                    if row["error"]:
                        raise OSError(row["error"])
                    progress.update(json.loads(row["records"]))
    except ray.exceptions.RayError as exc:
        raise OSError(f"Ray failed: {str(exc).strip().splitlines()[-1]}") from exc
    return plan


def _results(
    ray: Any,
    job: Job,
    output: Output,
    settings: Settings,
    missing: Sequence[int],
    actors: int | None,
) -> Iterator[dict[str, str]]:
    """What the actors return for each of these shards."""
    if job.source:  # actors have another working directory
        job = job._replace(source=absolute(job.source))
    if not settings.model_url:
        settings = settings.replace(model_dir=settings.model_dir.resolve())
    resources = ray.cluster_resources()
    cores = settings.threads or min(4, available_cpus())  # of an actor without a GPU
    gpus = 0 if settings.device == "cpu" else int(resources.get("GPU", 0))
    now = actors or gpus or int(resources.get("CPU", 1)) // cores or 1
    count = len(missing)
    ray.data.DataContext.get_current().enable_progress_bars = False  # `progress` shows one already
    # Ray schedules and tracks each block, so that many small ones are expensive.
    shards = ray.data.from_items(list(missing), override_num_blocks=min(count, 1000))
    return shards.map(
        Actor,
        fn_constructor_args=(
            job,
            absolute(output.url),
            settings if gpus else settings.replace(threads=cores),
        ),
        compute=ray.data.ActorPoolStrategy(
            min_size=min(now, count), max_size=min(actors or count, count)
        ),
        num_cpus=0 if gpus else cores,
        num_gpus=1 if gpus else 0,
    ).iter_rows()


class Actor:
    """A process of Ray with a loaded model; its arguments are the driver's, with absolute paths."""

    def __init__(self, job: Job, url: str, settings: Settings) -> None:
        prepare_process()
        output = Output(url)
        self._running = ExitStack()  # to the end of the process
        enter = self._running.enter_context
        # Ray may call the actor from different threads
        self._portal = enter(start_blocking_portal())
        services = enter(
            self._portal.wrap_async_context_manager(
                running_services(settings, job.options.model or "")
            )
        )
        self._shards = Shards(
            job, services, output, open_input(job, output, settings, is_part=True)
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """Process the shard in column `item`; returns its records, or the error as text: Ray would
        lose its type.
        """
        try:
            records = self._portal.call(self._shards.shard, row["item"])
        except (IgnError, OSError) as exc:
            return {"records": "[]", "error": str(exc)}
        return {"records": json.dumps(records), "error": ""}
