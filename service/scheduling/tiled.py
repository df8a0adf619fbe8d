"""Apply f to images of any size. A tile is a row: every pass over the images is a series of ordinary requests.

    cut, codec pool ─ requests of some tiles, scheduler ─ paste, codec pool

Two requests are open at a time, so the model has tiles while others are cut and pasted. Between two requests those of
other callers run, as between any requests. Beside the images, only the tiles of these two take memory.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from math import prod
from typing import Any, Final

import numpy as np

from service.domain.errors import DeadlineExceeded, DeadlineUnreachable, QueueFull
from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import KeepMask, Result, SchedulingParams, StepOutput, StepParams, StreamProgress
from service.domain.tiles import Tiling, strips
from service.scheduling.scheduler import Scheduler, SubmittedRun

RunCodec = Callable[[str, Callable[[Any], Any]], Awaitable[Any]]
"""Runs a job in a thread of the codec pool, which is its argument; its time counts as `decode` or `encode`."""
OPEN_REQUESTS: Final = 2
"""Requests to the scheduler that are open at a time; each has at most a batch of tiles."""
_RETRY_S: Final = 0.05


@dataclass(slots=True, eq=False)
class _Image:
    """One image on its way. Only jobs of the codec pool touch its pixels, and they run one after the other."""

    index: int
    row: FloatRow  # (C, H, W): the input, then the result of the last pass
    tiling: Tiling
    keep: KeepMask | None  # (1, H, W)

    original: FloatRow | None = None  # the input of an image with a mask
    canvas: FloatRow | None = None  # where the tiles of this pass go, from the first one on
    left: int = 0  # tiles of this pass that are not pasted
    steps: int = 0
    converged: bool = False
    distance: float = 0.0
    drift: float = 0.0
    trajectory: list[StepOutput] = field(default_factory=list)

    def cut(self, index: int, out: FloatRow) -> None:
        """Copy a tile to ``out``; with the first tile, the pass begins."""
        if self.canvas is None:
            self.canvas = np.zeros_like(self.row)
            self.left = self.tiling.count
        self.tiling.cut(self.row, index, out)

    def paste(self, tile: FloatRow, index: int) -> FloatRow | None:
        """Add the result of a tile; returns f of the image after the last one, with which the pass ends."""
        assert self.canvas is not None  # noqa: S101 - a tile is cut before it is pasted
        self.tiling.paste(tile, index, self.canvas)
        self.left -= 1
        if self.left:
            return None
        made, self.canvas = self.canvas, None
        return made

    def step(self, made: FloatRow, tolerance: float | None) -> float:
        """Take f of the image as its row; returns how far this step moves it."""
        change = _distance(made, self.row)
        self.distance = self.distance if self.steps else change
        if self.keep is not None and self.original is not None:
            np.copyto(made, self.original, where=self.keep)
            change = _distance(made, self.row)
        self.steps += 1
        self.converged = tolerance is not None and change < tolerance
        self.row = made
        return change


_Wave = Sequence[tuple[_Image, int]]  # tiles of one request to the scheduler
_EndPass = Callable[[_Image, FloatRow], float | None]


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
        self._images = [
            _Image(index, row, tiling, keep, original=None if keep is None else row)
            for index, (row, tiling, keep) in enumerate(images)
        ]
        self._params, self._step_params = params, params().step_params
        self._scheduler_for, self._run_codec, self._on_event = scheduler_for, run_codec, on_event
        passes = self._step_params.steps + self._step_params.score
        self._done, self._tiles = 0, passes * sum(image.tiling.count for image in self._images)
        # Of the tiles that are not done.
        self._pixels = passes * sum(image.tiling.count * prod(image.tiling.tile) for image in self._images)
        self._queue_s: float | None = None

    async def run(self) -> Result:
        """The result; its rows are a list. Raises what `Scheduler.run` raises. The run holds no array afterwards."""
        loop, step_params = asyncio.get_running_loop(), self._step_params
        began, images = loop.time(), self._images
        try:
            for image in images:
                self._record(image, None)
            for _ in range(step_params.steps):
                moving = [image for image in images if not image.converged]
                if not moving:
                    break
                await self._apply(moving, self._end_step)
            if step_params.score:
                await self._apply(images, _end_score)
            queue_s = self._queue_s or 0.0
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
        finally:
            images.clear()

    def _record(self, image: _Image, change: float | None) -> None:
        is_recorded = image.steps in self._step_params.record
        output = StepOutput(index=image.index, step=image.steps, row=image.row, change=change)
        if is_recorded:
            image.trajectory.append(output)
        if is_recorded or image.converged or image.steps == self._step_params.steps:
            self._on_event(output)

    async def _apply(self, images: Sequence[_Image], end: _EndPass) -> None:
        """Apply f to images, tile after tile: another order would round differently.

        ``end`` gets each image and f of it, in the codec pool; what it returns is recorded as the change of a step.
        """
        waiting = deque[tuple[_Wave, SubmittedRun]]()
        try:
            for wave in self._waves(images):
                submitted = await self._submit(await self._run_codec("decode", partial(_cut, wave)))
                waiting.append((wave, submitted))
                if len(waiting) == OPEN_REQUESTS:
                    await self._finish(*waiting.popleft(), end)
            while waiting:
                await self._finish(*waiting.popleft(), end)
        finally:
            for _, submitted in waiting:
                submitted.cancel()

    def _waves(self, images: Sequence[_Image]) -> Iterator[_Wave]:
        for tile, group in groupby(images, key=lambda image: image.tiling.tile):
            tiles = ((image, index) for image in group for index in range(image.tiling.count))
            size = self._scheduler_for(tile).batch_rows
            while wave := list(islice(tiles, size)):
                yield wave

    async def _submit(self, rows: FloatRows) -> SubmittedRun:
        """Submit tiles; waits while the queue is full, unless nothing of the request has run yet."""
        scheduler, area = self._scheduler_for(rows.shape[2:]), prod(rows.shape[2:])
        later = max(0, self._pixels // area - len(rows))  # as many of this size take as long
        while True:
            params = replace(
                self._params(), step_params=StepParams(steps=1), keep_mask=None, streamed=False, later_rows=later
            )
            try:
                return scheduler.start_run(rows, params)
            except QueueFull:
                if self._queue_s is None:
                    raise
            except DeadlineUnreachable as exc:
                if self._queue_s is None:
                    raise
                raise DeadlineExceeded("the deadline passed") from exc
            await asyncio.sleep(_RETRY_S)

    async def _finish(self, wave: _Wave, submitted: SubmittedRun, end: _EndPass) -> None:
        result = await submitted.result()
        self._queue_s = result.queue_s if self._queue_s is None else self._queue_s
        total = self._step_params.steps
        passes = min((image.steps for image in self._images if not image.converged), default=total)
        ended = await self._run_codec("encode", partial(_paste, wave, np.asarray(result.rows), end))
        self._done += len(wave)
        self._pixels -= len(wave) * prod(wave[0][0].tiling.tile)
        self._on_event(StreamProgress(steps_done=passes, steps=total, rows_done=self._done, rows=self._tiles))
        for image, change in ended:
            if change is not None:
                self._record(image, change)

    def _end_step(self, image: _Image, made: FloatRow) -> float:
        return image.step(made, self._step_params.tolerance)


def _end_score(image: _Image, made: FloatRow) -> None:
    image.drift = _distance(made, image.row)


def _cut(wave: _Wave, _: object) -> FloatRows:
    shape = (len(wave), len(wave[0][0].row), *wave[0][0].tiling.tile)
    rows = np.empty(shape, dtype=np.float32)
    for (image, index), row in zip(wave, rows, strict=True):
        image.cut(index, row)
    return rows


def _paste(wave: _Wave, rows: FloatRows, end: _EndPass, _: object) -> list[tuple[_Image, float | None]]:
    """Paste tiles; returns the images whose pass ends with them, and what ``end`` says of each."""
    ended = []
    for (image, index), row in zip(wave, rows, strict=True):
        made = image.paste(row, index)
        if made is not None:
            ended.append((image, end(image, made)))
    return ended


def _distance(a: FloatRow, b: FloatRow) -> float:
    """Mean |a − b|, some lines at a time: the difference of a large image would take as much memory as it."""
    total = sum(np.abs(a[:, strip] - b[:, strip]).sum(dtype=np.float64) for strip in strips(a))
    return float(total / a.size)
