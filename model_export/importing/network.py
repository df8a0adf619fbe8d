"""Turn a network that was trained elsewhere into a model of the service: propose, check, fold,
compare, measure.
"""

import math
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
from onnx import TensorProto

from model_export.errors import UserError
from model_export.export.artifact import OnnxFunction, sample_rows, stamp
from model_export.importing.form import Form, Layout, Shape
from model_export.importing.sources import Source, dims, dims_text, read_checkpoint, read_onnx
from model_export.importing.tiles import SIDES, choose_tiles
from service.artifact.card import QUANTILES, Card, Noise, Tiles
from service.artifact.files import GOLDEN_FILE, MODEL_FILE
from service.artifact.golden import Golden, digest_of, max_abs_diff
from service.artifact.onnx_file import check_self_contained
from service.artifact.pixels import to_rows
from service.domain.latents import FloatRows

_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64)
_BATCH_VALUES: Final = 2**22  # float32 numbers of the largest batch, 16 MiB
_TILE_VALUES: Final = 2**20  # of tiles: other requests wait until a batch ends
# that are tried
_FEWEST_ROWS = 3
_MOST_ROWS = 16
# float32 numbers of all of them, for tiles: the service runs them at every start
_ROW_VALUES: Final = 2**18
_GOLDEN_VALUES: Final = 2**26  # float32 numbers that `golden.npz` may hold
_BATCH: Final = 7
_IMAGES: Final = 2000  # that drift and distance are measured on
# Shares of the range:
_EXACT: Final = 1e-4  # largest rounding error, between batches
_CLOSE: Final = 1e-3  # and between implementations: a quarter of a level
_NARROW: Final = 0.02  # what outputs span, over images that span all, is more
_BEYOND: Final = 0.1  # most outputs are no further outside


def import_network(options: Namespace, version: str) -> Iterator[str | Mapping[str, bytes]]:
    """Yield what is found and chosen, a line each, and then the files; raises UserError if it
    cannot be f.
    """
    source = read_checkpoint(options) if options.module else read_onnx(options.file)
    yield f"found: {source}"
    form, reason = _propose(source, options)
    tiles: Tiles | None = None
    if options.tile or options.overlap is not None or 0 in form.shape:
        lines, side, tiles = _choose_tiles(source, form, options)
        yield from lines
        open_sides = tiles is not None and bool(tiles.smaller)
        form = replace(form, shape=(form.shape[0], side, side), open_sides=open_sides)
    card = _card(source, form, options, version, tiles)
    (low, high), (channels, height, width) = form.interval, form.shape
    colour = "colour" if channels == 3 else "grey" if card.color is None else "luma"
    size = "any size" if tiles else f"{height}×{width}"
    yield f"chosen: images of {size}, {colour}, values {low:g}…{high:g}{reason}"
    most = _ROW_VALUES if card.tiles else _BATCH_VALUES
    rows = sample_rows(
        card, card.shape, max(_FEWEST_ROWS, min(_MOST_ROWS, most // math.prod(card.shape)))
    )
    yield f"checking: {len(rows)} images of {height}×{width}, alone and in batches"
    form, expected = _expected(source, form, rows)
    form, function, data, difference = _fold(source, form, card, rows, expected)
    if tiles and form.batch == "loop":  # whose rows have one size
        card = card.model_copy(update={"tiles": tiles.model_copy(update={"smaller": ()})})
    # All widths of the least height: a square, and tiles that are no squares.
    for _, height, width in card.row_shapes[:-1][
        : len(card.tiles.smaller) + 1 if card.tiles else 0
    ]:
        part = np.ascontiguousarray(rows[:, :, :height, :width])
        expected_part = form.apply(source.run, part).clip(*card.range)
        difference = max(difference, _compare(source, function, card, part, expected_part))
    yield from source.notes
    yield f"folded into the graph: {'; '.join(form.folded) or 'nothing'}"
    yield (
        f"checked: the same every time and in every batch; {difference:.1e} of the range from "
        f"{source.second}"
    )
    measured = _measure(function, card, options.data) if options.data else {}
    if options.data:
        figures = measured["quality"]["images"]
        yield "measured on {n} images: distance {distance:.4f}, drift {drift:.4f}".format(**figures)
    tolerance = (card.range[1] - card.range[0]) * max(_EXACT, min(4 * difference, _CLOSE))
    origin = {
        "file": options.file.name,
        "sha256": digest_of(options.file.read_bytes()),
        "folded": (*source.notes, *form.folded),
    }
    fields = card.model_dump() | measured | {"origin": origin, "tolerance": {"fp32": tolerance}}
    stamped = stamp(data, Card.model_validate(fields))
    check_self_contained(stamped)
    kept = max(1, _GOLDEN_VALUES // rows[0].size)
    golden = Golden(x=rows[:kept], y=expected[:kept], digest=digest_of(stamped))
    yield {MODEL_FILE: stamped, GOLDEN_FILE: golden.to_bytes()}


def _propose(source: Source, options: Namespace) -> tuple[Form, str]:
    """The form of a network, and what tells its range."""
    layout, shape, batch = _shape(source, options)
    _check_size(source, options, layout, shape)
    bounds = None if options.residual else source.bounds
    normalised = bool(options.mean or options.std)
    interval = options.range or ((0.0, 1.0) if normalised else bounds)
    if interval is None:
        raise UserError(
            "say which values are black and white: --range 0,1, --range -1,1 or --range 0,255"
        )
    bounded = bounds is not None and np.allclose(bounds, interval)
    if bounds is not None and not normalised and not bounded:
        raise UserError(
            "--range: its last operator gives values {:g}…{:g}; leave --range out".format(*bounds)
        )
    mean = options.mean or (0.0,)
    std = options.std or (1.0,)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, shape[0]):
            raise UserError(f"--{name}: {len(values)} values for {shape[0]} channels")
    if not min(std) > 0 or not interval[0] < interval[1]:
        raise UserError("--range must ascend, and --std be above 0")
    _check_colours(options, shape[0])
    form = Form(
        shape=shape,
        interval=interval,
        mean=mean,
        std=std,
        plain_output=normalised and bounded,
        layout=layout,
        bgr=options.bgr,
        residual=options.residual,
        batch="opened" if batch == 1 else "any",
    )
    if options.noise and form.is_scaled:
        raise UserError(
            "--noise: the graph scales its values, and noise has a deviation of 1 before that"
        )
    return form, "" if options.range or normalised else ", as its last operator tells"


def _check_colours(options: Namespace, channels: int) -> None:
    if options.bgr and channels == 1:
        raise UserError("--bgr: its images are grey")
    if options.color and channels == 3:
        raise UserError(
            f"--color {options.color}: its images are in colour, and only a grey network "
            f"gets their luma"
        )


def _shape(source: Source, options: Namespace) -> tuple[Layout, Shape, int | None]:
    """Layout, (C, H, W) and batch size of the input, which the options may only complete."""
    given, _ = source.ends
    text = f"its input is {dims_text(given)}"
    sizes = dims(given)
    if len(sizes) != 4 or given.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise UserError(f"{text}; f takes images as float32 of four dimensions")
    if sizes[0] not in (None, 1):
        raise UserError(f"{text}; export it with a batch of 1, or of any size")
    orders: dict[Layout, list[int | None]] = {"nchw": sizes[1:], "nhwc": [sizes[3], *sizes[1:3]]}
    orders = {layout: order for layout, order in orders.items() if options.layout in (None, layout)}
    fitting = {layout: order for layout, order in orders.items() if order[0] in (1, 3)}
    if len(fitting) > 1:
        raise UserError(f"{text}; say --layout nchw or --layout nhwc")
    layout, order = next(iter((fitting or orders).items()))
    channels, *sides = (
        size or option for size, option in zip(order, options.shape or (0, 0, 0), strict=True)
    )
    shape = (channels, sides[0], sides[1])
    if channels not in (1, 3) or (0 in sides and sides != [0, 0]):
        raise UserError(
            f"{text}; f takes grey (1) or colour (3) images of one size, or of any; see --shape"
        )
    if options.shape not in (None, shape):
        raise UserError(f"--shape: {text}")
    if options.tile and sides not in ([0, 0], [options.tile] * 2):
        raise UserError(f"--tile {options.tile}: {text}")
    return layout, shape, sizes[0]


def _check_size(source: Source, options: Namespace, layout: Layout, shape: Shape) -> None:
    """Refuse a network whose images are not as large as those that it takes."""
    channels, height, width = (size or options.tile or SIDES[0] for size in shape)
    sizes = (channels, height, width) if layout == "nchw" else (height, width, channels)
    values = np.zeros((1, *sizes), np.float32)
    result = source.run(values)
    if result.shape != values.shape:
        made, given = ("×".join(map(str, array.shape[1:])) for array in (result, values))
        raise UserError(
            f"it makes {made} of {given}, and f an image of the same shape: see docs/import.md"
        )


def _choose_tiles(
    source: Source, form: Form, options: Namespace
) -> tuple[list[str], int, Tiles | None]:
    channels, height, width = form.shape
    if height != width:
        raise UserError(f"--overlap: its images are {height}×{width}, and tiles are squares")
    return choose_tiles(
        partial(form.apply, source.run),
        channels,
        form.range,
        side=options.tile or height,
        overlap=options.overlap,
        takes_others=height == 0,
    )


def _card(
    source: Source, form: Form, options: Namespace, version: str, tiles: Tiles | None
) -> Card:
    """The card, without what is measured."""
    values = math.prod(form.shape)
    most = _TILE_VALUES if tiles else _BATCH_VALUES
    return Card(
        schema_version=2,
        name=options.name,
        version=version,
        title=options.title,
        shape=form.shape,
        tiles=tiles,
        color=options.color,
        range=form.range,
        background=form.range[:1] * form.shape[0],
        noise=Noise(kind=options.noise, norm=math.sqrt(values)) if options.noise else None,
        buckets=tuple(size for size in _BUCKETS if size == 1 or size * values <= most),
        opset=source.opset,
        licence=options.licence,
    )


def _expected(source: Source, form: Form, rows: FloatRows) -> tuple[Form, FloatRows]:
    """What the second implementation makes of the rows, clipped; the form says whether that was
    needed.
    """
    (low, high), width = form.range, form.range[1] - form.range[0]
    expected = form.apply(source.run, rows)
    if not np.isfinite(expected).all():
        raise UserError("it makes values that are not finite of ordinary images; is --range right?")
    if not np.array_equal(form.apply(source.run, rows), expected):
        raise UserError("it does not give the same result every time")
    beyond = np.maximum(low - expected, expected - high)
    narrow = source.bounds is None and np.ptp(expected) < _NARROW * width
    if narrow or (beyond > _BEYOND * width).mean() > 0.5:
        made = "from {:.0%} to {:.0%}".format(
            *(np.array([expected.min(), expected.max()]) - low) / width
        )
        raise UserError(
            f"--range: of images that span all of it, it makes values {made} of it; the "
            f"range does not fit"
        )
    return replace(form, clip=bool(beyond.max() > 0)), expected.clip(low, high)


def _fold(
    source: Source, form: Form, card: Card, rows: FloatRows, expected: FloatRows
) -> tuple[Form, OnnxFunction, bytes, float]:
    """The form that works, f, its graph, and the difference from ``expected`` as a share of the
    range.
    """
    data = form.fold(source.model)
    try:
        function = OnnxFunction(data, threads=1)
        return form, function, data, _compare(source, function, card, rows, expected)
    except Exception:
        if form.batch != "opened":
            raise
    # A graph with a batch of 1 often runs others as well; this one needs a loop over the rows.
    return _fold(source, replace(form, batch="loop"), card, rows, expected)


def _compare(
    source: Source, function: OnnxFunction, card: Card, rows: FloatRows, expected: FloatRows
) -> float:
    width = card.range[1] - card.range[0]
    alone = function(rows, 1)
    for size in (_BATCH, len(rows)):
        together = function(rows, size)
        if together.shape != alone.shape or not max_abs_diff(together, alone) <= _EXACT * width:
            raise UserError(
                f"its rows depend on each other: in batches of {size} it gives others than "
                f"alone. A batch norm in "
                "training mode does that; call model.eval() and export it again"
            )
    difference = max_abs_diff(alone, expected) / width
    if not difference <= _CLOSE:
        raise UserError(
            f"onnxruntime and {source.second} differ by {difference:.1e} of the range: no "
            f"rounding error"
        )
    return difference


def _measure(function: OnnxFunction, card: Card, source: str) -> dict[str, Any]:
    """The fields of the card that images tell: drift and distance, background and polarity."""
    import torch

    from model_export.data.datasets import open_source
    from model_export.evaluation.metrics import mean_distance

    channels, height, width = card.shape
    if height != width:
        raise UserError("--data: images are cropped to squares, and this network takes no squares")
    opened = open_source(source)
    found = opened.inspect()
    data = opened.load(size=height, channels=channels)
    x = to_rows(torch.cat([data.held_out, data.train])[:_IMAGES].numpy(), *card.range)
    y = function(x, _BATCH)
    distance = mean_distance(y, x)
    drift = float(mean_distance(function(y, _BATCH), y).mean())
    images = {
        "name": data.name,
        "sha256": data.sha256,
        "n": len(x),
        "distance": float(distance.mean()),
        "drift": drift,
    }
    background = np.resize(np.array(found.background, dtype=np.uint8), channels)
    return {
        "quality": {"images": images},
        "distance_quantiles": np.quantile(distance, np.linspace(0, 1, QUANTILES)).tolist(),
        "background": to_rows(background, *card.range)
        .astype(np.float64)
        .clip(*card.range)
        .tolist(),
        "polarity": found.polarity if channels == 1 else "none",
    }
