import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from service.artifact.card import CARD_KEY, NOISE_KEY, CardError, ModelCard, Noise, from_metadata, to_metadata
from service.domain.latents import FrequencyStatistics
from tests.helpers.onnx_models import make_card

SHAPE = (3, 4, 5)


def statistics() -> FrequencyStatistics:
    parts = np.random.default_rng(0).uniform(0.1, 1, (4, *SHAPE)).astype(np.float32)
    return FrequencyStatistics(*parts)


def frequency_card() -> ModelCard:
    return make_card(shape=SHAPE, noise=Noise(kind="frequency", norm=3.0))


def encoded(array: NDArray[Any]) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


def test_round_trip() -> None:
    card = make_card("digits", "12", quality={"table": [1, 2.5, {"a": None}]}, description="Ziffern – “28×28”")
    read, noise = from_metadata(to_metadata(card))
    assert read == card
    assert read.ref == "digits/12"
    assert noise.shape == card.shape
    assert noise.statistics is None


def test_round_trip_of_frequency_statistics() -> None:
    metadata = to_metadata(frequency_card(), statistics())
    read, noise = from_metadata(metadata)
    assert read == frequency_card()
    assert noise.statistics is not None
    for name in ("real_mean", "real_std", "imag_mean", "imag_std"):
        np.testing.assert_array_equal(getattr(noise.statistics, name), getattr(statistics(), name))
    assert noise.row(1, 2).shape == SHAPE


def test_what_is_not_used_is_ignored() -> None:
    document = json.loads(to_metadata(make_card())[CARD_KEY]) | {"colour_space": "sRGB"}  # a newer card
    card, noise = from_metadata({CARD_KEY: json.dumps(document), NOISE_KEY: "nonsense"})
    assert (card, noise.statistics) == (make_card(), None)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"name": "Digits"}, "name"),
        ({"name": "../x"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"version": "0"}, "version"),
        ({"version": "1.0"}, "version"),
        ({"version": "01"}, "version"),
        ({"objective": "gan"}, "objective"),
        ({"shape": (2, 8, 8)}, "shape"),
        ({"shape": (1, 0, 8)}, "shape"),
        ({"shape": (1, 8, 5000)}, "shape"),
        ({"shape": (1, 8)}, "shape"),
        ({"range": (1.0, -1.0)}, "range must ascend"),
        ({"range": (0.0, 0.0), "background": (0.0,)}, "range must ascend"),
        ({"range": (0.0, float("inf"))}, "range"),
        ({"background": (-1.0, -1.0)}, "background needs one value per channel"),
        ({"background": ()}, "background needs one value per channel"),
        ({"background": (-1.5,)}, "background must lie in the range"),
        ({"background": (float("nan"),)}, "background"),
        ({"polarity": "dark"}, "polarity"),
        ({"buckets": ()}, "buckets must ascend"),
        ({"buckets": (0, 1)}, "buckets must ascend"),
        ({"buckets": (2, 1)}, "buckets must ascend"),
        ({"buckets": (1, 1)}, "buckets must ascend"),
        ({"distance_quantiles": (0.1,) * 100}, "101 ascending numbers"),
        ({"distance_quantiles": tuple(1 - i / 100 for i in range(101))}, "101 ascending numbers"),
        ({"distance_quantiles": (-0.1,) * 101}, "distance_quantiles"),
        ({"noise": {"kind": "uniform", "norm": 1.0}}, "noise.kind"),
        ({"noise": {"kind": "gaussian", "norm": 0.0}}, "noise.norm"),
        ({"steps": {"generate": 0}}, "steps.generate"),
        ({"steps": {"project": 65}}, "steps.project"),
        ({"tolerance": {"fp32": 0.0}}, "tolerance.fp32"),
        ({"opset": "x"}, "opset"),
        ({"licence": None}, "licence"),
    ],
)
def test_invalid_cards(changes: dict[str, Any], where: str) -> None:
    document = json.loads(to_metadata(make_card())[CARD_KEY]) | changes
    with pytest.raises(ValidationError) as raised:
        ModelCard.model_validate(document)
    assert where in str(raised.value)
    with pytest.raises(CardError, match="invalid card: ") as refused:
        from_metadata({CARD_KEY: json.dumps(document, default=list)})
    assert where in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("missing", ["name", "objective", "shape", "background", "noise", "opset", "data", "licence"])
def test_what_is_no_card(missing: str) -> None:
    with pytest.raises(CardError, match="it was not exported by model_export"):
        from_metadata({})
    document = json.loads(to_metadata(make_card())[CARD_KEY])
    del document[missing]
    for text, where in (("", "card"), ("{", "card"), ("[]", "card"), ("null", "card"), (json.dumps(document), missing)):
        with pytest.raises(CardError, match=f"invalid card: {where}: "):
            from_metadata({CARD_KEY: text})


def test_another_noise_stream_is_not_ours() -> None:
    noise = Noise(kind="gaussian", norm=8.0, stream="mt19937")
    with pytest.raises(CardError, match="unknown noise stream 'mt19937'"):
        from_metadata(to_metadata(make_card(noise=noise)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "frequency noise needs"),
        *(
            ({NOISE_KEY: text}, "is not a base64")
            for text in (
                "",
                "not base64!",
                base64.b64encode(b"not npy").decode(),
                encoded(np.zeros((4, *SHAPE), np.float32))[:-40],
                encoded(np.array([{"pickle": 1}], dtype=object)),
            )
        ),
        *(
            ({NOISE_KEY: encoded(array)}, "must be finite float32 of shape")
            for array in (
                np.zeros((4, 3, 4, 4), np.float32),
                np.zeros((2, *SHAPE), np.float32),
                np.zeros((4, *SHAPE), np.float64),
                np.full((4, *SHAPE), np.nan, np.float32),
            )
        ),
    ],
)
def test_frequency_noise_needs_statistics(entry: dict[str, str], message: str) -> None:
    with pytest.raises(CardError, match=message):
        from_metadata(to_metadata(frequency_card()) | entry)


@pytest.mark.parametrize(
    ("distance", "percentile"),
    [(0.0, 0.0), (0.01, 0.0), (0.02, 1.0), (0.025, 1.5), (0.5, 49.0), (1.0, 99.0), (1.01, 100.0), (7.0, 100.0)],
)
def test_percentiles_lie_between_the_quantiles_and_never_beyond(distance: float, percentile: float) -> None:
    card = make_card(distance_quantiles=tuple((i + 1) / 100 for i in range(101)))
    assert card.percentile(distance) == pytest.approx(percentile)
    assert make_card(distance_quantiles=None).percentile(distance) is None
