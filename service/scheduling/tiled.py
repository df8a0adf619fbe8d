"""Apply f to images of any size. A tile is a row: every pass over the images is a series of ordinary requests.

    cut, codec pool ─ requests of some tiles, scheduler ─ paste, codec pool

Two requests are open at a time, so the model has tiles while others are cut and pasted. Between two requests those of
other callers run, as between any requests.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from math import prod
from typing import Any, Final

import numpy as np

from service.domain.errors import DeadlineExceeded, DeadlineUnreachable, QueueFull
from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import KeepMask, Result, SchedulingParams, StepOutput, StepParams, StreamProgress
from service.domain.tiles import Tiling
from service.scheduling.scheduler import Scheduler

RunCodec = Callable[[str, Callable[[], Any]], Awaitable[Any]]
"""Runs a job in a thread of the codec pool; its time counts as `decode` or `encode`."""
_RETRY_S: Final = 0.05


@dataclass(slots=True, eq=False)
class _Image:
    """One image on its way."""

    index: int
    input: FloatRow  # (C, H, W)
    tiling: Tiling
    keep: KeepMask | None  # (1, H, W)

    row: FloatRow = field(init=False)  # after the last pass
    mirrored: FloatRow = field(init=False)  # what tiles are cut from in this pass
    canvas: FloatRow = field(init=False)  # where their results go
    steps: int = 0
    converged: bool = False
    distance: float = 0.0
    drift: float = 0.0
    trajectory: list[StepOutput] = field(default_factory=list)

    def begin(self) -> None:
        """Prepare a pass."""
        self.mirrored = self.tiling.mirrored(self.row)
        self.canvas = self.tiling.empty(self.row)

    def end(self, tolerance: float | None) -> float:
        """Take the image of the canvas; returns how far this step moves it."""
        row = self.tiling.cropped(self.canvas)
        change = _distance(row, self.row)
        self.distance = self.distance if self.steps else change
        if self.keep is not None:
            np.copyto(row, self.input, where=self.keep)
            change = _distance(row, self.row)
        self.steps += 1
        self.converged = tolerance is not None and change < tolerance
        self.row = row
        return change


_Wave = Sequence[tuple[_Image, int]]  # tiles of one request


class TiledRun:
    """One request for images (C, H, W), each with its tiling, and a mask (1, H, W) or None.

    ``params`` gives the deadlines at the time of its call, and ``scheduler_for`` the scheduler of tiles (H, W).
    ``on_event`` gets what a stream sends: recorded steps, last steps, and progress in tiles.
    """

    def __init__(
        self,
        images: Sequence[tuple[FloatRow, Tiling, KeepMask | None]],
        params: Callable[[], SchedulingParams],
        *,
        scheduler_for: Callable[[tuple[int, int]], Scheduler],
        run_codec: RunCodec,
        on_event: Callable[[StepOutput | StreamProgress], None] = lambda _: None,
    ) -> None:
        self._images = [_Image(index, *each) for index, each in enumerate(images)]
        self._params, self._step_params = params, params().step_params
        self._scheduler_for, self._run_codec, self._on_event = scheduler_for, run_codec, on_event
        passes = self._step_params.steps + self._step_params.score
        self._done, self._tiles = 0, passes * sum(image.tiling.count for image in self._images)
        # Of the tiles that are not done.
        self._pixels = passes * sum(image.tiling.count * prod(image.tiling.tile) for image in self._images)
        self._queue_s: float | None = None

    async def run(self) -> Result:
        """The result; its rows are a list. Raises what `Scheduler.run` raises."""
        loop, step_params = asyncio.get_running_loop(), self._step_params
        began, moving = loop.time(), self._images
        for image in moving:
            image.row = image.input
            self._record(image, None)
        for _ in range(step_params.steps):
            await self._apply(moving)
            for image in moving:
                self._record(image, await self._run_codec("encode", partial(image.end, step_params.tolerance)))
            moving = [image for image in moving if not image.converged]
        if step_params.score:
            await self._apply(self._images)
            for image in self._images:
                image.drift = await self._run_codec("encode", partial(_drift, image))
        queue_s, images = self._queue_s or 0.0, self._images
        return Result(
            rows=[image.row for image in images],
            steps=np.array([image.steps for image in images]),
            converged=np.array([image.converged for image in images]),
            distance=np.array([image.distance for image in images]),
            drift=np.array([image.drift for image in images]) if step_params.score else None,
            trajectory=[image.trajectory for image in images] if step_params.record else [],
            queue_s=queue_s,
            compute_s=loop.time() - began - queue_s,
        )

    def _record(self, image: _Image, change: float | None) -> None:
        is_recorded = image.steps in self._step_params.record
        output = StepOutput(index=image.index, step=image.steps, row=image.row, change=change)
        if is_recorded:
            image.trajectory.append(output)
        if is_recorded or image.converged or image.steps == self._step_params.steps:
            self._on_event(output)

    async def _apply(self, images: Sequence[_Image]) -> None:
        """Fill the canvases of images with f of their rows, tile after tile: another order would round differently."""
        for image in images:
            await self._run_codec("decode", image.begin)
        pending = deque[tuple[_Wave, asyncio.Task[FloatRows]]]()
        try:
            async with asyncio.TaskGroup() as group:
                for wave in self._waves(images):
                    rows = await self._run_codec("decode", partial(_cut, wave))
                    pending.append((wave, group.create_task(self._submit(rows))))
                    if len(pending) > 1:
                        await self._paste(*pending.popleft())
                while pending:
                    await self._paste(*pending.popleft())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def _waves(self, images: Sequence[_Image]) -> Iterator[_Wave]:
        for tile, group in groupby(images, key=lambda image: image.tiling.tile):
            tiles = [(image, index) for image in group for index in range(image.tiling.count)]
            size = self._scheduler_for(tile).batch_rows
            yield from (tiles[first : first + size] for first in range(0, len(tiles), size))

    async def _submit(self, rows: FloatRows) -> FloatRows:
        scheduler, area = self._scheduler_for(rows.shape[2:]), prod(rows.shape[2:])
        later = max(0, self._pixels // area - len(rows))  # as many of this size take as long
        params = replace(
            self._params(), step_params=StepParams(steps=1), keep_mask=None, streamed=False, later_rows=later
        )
        while True:
            try:
                result = await scheduler.run(rows, params)
                break
            except QueueFull:
                if self._queue_s is None:  # nothing is done yet
                    raise
            except DeadlineUnreachable as exc:
                if self._queue_s is None:
                    raise
                raise DeadlineExceeded("the deadline passed") from exc
            await asyncio.sleep(_RETRY_S)
            params = replace(params, deadline=self._params().deadline)
        self._queue_s = result.queue_s if self._queue_s is None else self._queue_s
        return np.asarray(result.rows)

    async def _paste(self, wave: _Wave, task: "asyncio.Task[FloatRows]") -> None:
        await self._run_codec("encode", partial(_paste, wave, await task))
        self._done += len(wave)
        self._pixels -= len(wave) * prod(wave[0][0].tiling.tile)
        total = self._step_params.steps
        passes = min((image.steps for image in self._images if not image.converged), default=total)
        self._on_event(StreamProgress(steps_done=passes, steps=total, rows_done=self._done, rows=self._tiles))


def _cut(wave: _Wave) -> FloatRows:
    shape = (len(wave), len(wave[0][0].row), *wave[0][0].tiling.tile)
    rows = np.empty(shape, dtype=np.float32)
    for (image, index), row in zip(wave, rows, strict=True):
        image.tiling.cut(image.mirrored, index, row)
    return rows


def _paste(wave: _Wave, rows: FloatRows) -> None:
    for (image, index), row in zip(wave, rows, strict=True):
        image.tiling.paste(row, index, image.canvas)


def _drift(image: _Image) -> float:
    return _distance(image.tiling.cropped(image.canvas), image.row)


def _distance(a: FloatRow, b: FloatRow) -> float:
    return float(np.abs(a - b).mean(dtype=np.float64))
