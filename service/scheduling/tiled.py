"""Apply f to images of any size. A tile is a row: every pass over the images is a series of
ordinary requests.

    cut, codec pool ─ requests of some tiles, scheduler ─ paste, codec pool

Two requests are open at a time, so the model has tiles while others are cut and pasted. Between two
requests those of other callers run, as between any requests. Beside the images, only the tiles of
these two take memory.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from typing import Any, Final

import numpy as np

from service.domain.errors import DeadlineExceeded, DeadlineUnreachable, QueueFull
from service.domain.latents import FloatRow, FloatRows
from service.domain.steps import RowSteps, StepRequest, mean_changes
from service.domain.tasks import (
    KeepMask,
    Result,
    SchedulingParams,
    StepOutput,
    StepParams,
    StreamProgress,
)
from service.domain.tiles import Tiling
from service.scheduling.scheduler import Scheduler

RunCodec = Callable[[str, Callable[[], Any]], Awaitable[Any]]
"""Runs a job in a thread of the codec pool; its time counts as `decode` or
`encode`.
"""
OPEN_REQUESTS: Final = 2
"""Requests to the scheduler that are open at a time; each has at most a batch of tiles."""
_RETRY_S: Final = 0.05


class _Image(RowSteps):
    """One image on its way. Only jobs of the codec pool touch its pixels, and they run one after
    the other.
    """

    def __init__(
        self, request: StepRequest, index: int, row: FloatRow, tiling: Tiling, keep: KeepMask | None
    ) -> None:
        super().__init__(request, index, row[None], None if keep is None else keep[None])
        self.tiling = tiling
        # where the tiles of this pass go, from the first one on
        self.canvas: FloatRow | None = None
        self.left = 0  # tiles of this pass that are not pasted

    @property
    def has_ended(self) -> bool:
        """Whether it has had its last step."""
        return self.scoring or self.done

    def cut_tile(self, index: int, out: FloatRow) -> None:
        """Copy a tile to ``out``; with the first tile, the pass begins."""
        if self.canvas is None:
            self.canvas = np.zeros_like(self.rows[0])
            self.left = self.tiling.count
        self.tiling.cut(self.rows[0], index, out)

    def paste_tile(self, tile: FloatRow, index: int) -> list[StepOutput]:
        """Add the result of a tile; after the last one the pass ends. Returns what is recorded or
        streamed of it.
        """
        assert self.canvas is not None  # noqa: S101 - a tile is cut before it is pasted
        self.tiling.paste(tile, index, self.canvas)
        self.left -= 1
        if self.left:
            return []
        made = self.canvas[None]
        self.canvas = None
        return self.after(made, mean_changes(made, self.rows))[1]


_Wave = Sequence[tuple[_Image, int]]  # tiles of one request to the scheduler


class TiledRun:
    """One request for images (C, H, W), each with its tiling, and a mask (1, H, W) or None.

    ``params`` gives the deadlines at the time of its call, and ``scheduler_for`` the scheduler of
    tiles (H, W). ``on_event`` gets what a stream sends: recorded steps, last steps, and progress in
    tiles.
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
        self._step_params = step_params = params().step_params
        masked = any(keep is not None for *_, keep in images)
        request = StepRequest(len(images), step_params, masked=masked, streamed=True)
        request.allocate([row for row, *_ in images])
        self._images = [_Image(request, index, *each) for index, each in enumerate(images)]
        self._params = params
        self._scheduler_for = scheduler_for
        self._run_codec = run_codec
        self._on_event = on_event
        passes = step_params.steps + step_params.score
        self._done = 0
        self._tiles = passes * sum(image.tiling.count for image in self._images)
        self._queue_s: float | None = None

    async def run(self) -> Result:
        """The result; its rows are a list. Raises what `Scheduler.run` raises. The run holds no
        array afterwards.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        images = self._images
        try:
            for image in images:
                if image.is_recorded():
                    self._emit(image.record(None))
            for _ in range(self._step_params.steps):
                moving = [image for image in images if not image.has_ended]
                if not moving:
                    break
                await self._apply(moving)
            if self._step_params.score:
                await self._apply(images)
            queue_s = self._queue_s or 0.0
            result = images[0].request.result
            result.queue_s = queue_s
            result.compute_s = loop.time() - began - queue_s
            return result
        finally:
            images.clear()

    def _emit(self, outputs: Iterable[StepOutput]) -> None:
        for output in outputs:
            self._on_event(output)

    async def _apply(self, images: Sequence[_Image]) -> None:
        """Apply f to images, tile after tile: another order would round differently."""
        waiting = deque[tuple[_Wave, asyncio.Future[Result]]]()
        try:
            for wave in self._waves(images):
                submitted = await self._submit(await self._run_codec("decode", partial(_cut, wave)))
                waiting.append((wave, submitted))
                if len(waiting) == OPEN_REQUESTS:
                    await self._finish(*waiting.popleft())
            while waiting:
                await self._finish(*waiting.popleft())
        finally:
            for _, submitted in waiting:
                if not submitted.cancel():
                    submitted.exception()  # or it counts as never retrieved

    def _waves(self, images: Sequence[_Image]) -> Iterator[_Wave]:
        for tile, group in groupby(images, key=lambda image: image.tiling.tile):
            tiles = ((image, index) for image in group for index in range(image.tiling.count))
            size = self._scheduler_for(tile).batch_rows
            while wave := list(islice(tiles, size)):
                yield wave

    async def _submit(self, rows: FloatRows) -> "asyncio.Future[Result]":
        """Submit tiles; waits while the queue is full, unless nothing of the request has run
        yet.

        What would miss the deadline ends here too, so that the device is left to those that can
        meet theirs: of pages that come together, none might.
        """
        scheduler = self._scheduler_for(rows.shape[2:])
        later = max(0, self._tiles - self._done - len(rows))
        while True:
            params = replace(
                self._params(),
                step_params=StepParams(steps=1),
                keep_mask=None,
                streamed=False,
                later_rows=later,
            )
            try:
                return scheduler.run(rows, params)
            except (QueueFull, DeadlineUnreachable) as exc:
                if self._queue_s is None:
                    raise
                if isinstance(exc, DeadlineUnreachable):
                    raise DeadlineExceeded("the last tiles would be late") from exc
            await asyncio.sleep(_RETRY_S)

    async def _finish(self, wave: _Wave, submitted: "asyncio.Future[Result]") -> None:
        result = await submitted
        self._queue_s = result.queue_s if self._queue_s is None else self._queue_s
        total = self._step_params.steps
        passes = min((image.steps for image in self._images if not image.has_ended), default=total)
        shown = await self._run_codec("encode", partial(_paste, wave, np.asarray(result.rows)))
        self._done += len(wave)
        self._on_event(
            StreamProgress(steps_done=passes, steps=total, rows_done=self._done, rows=self._tiles)
        )
        self._emit(shown)


def _cut(wave: _Wave) -> FloatRows:
    shape = (len(wave), wave[0][0].rows.shape[1], *wave[0][0].tiling.tile)
    rows = np.empty(shape, dtype=np.float32)
    for (image, index), row in zip(wave, rows, strict=True):
        image.cut_tile(index, row)
    return rows


def _paste(wave: _Wave, rows: FloatRows) -> list[StepOutput]:
    """Paste tiles; returns what is recorded or streamed of the images whose pass ends with them."""
    shown = list[StepOutput]()
    for (image, index), row in zip(wave, rows, strict=True):
        shown += image.paste_tile(row, index)
    return shown
