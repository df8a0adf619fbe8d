import base64
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from service.artifact.card import CARD_KEY, NOISE_KEY, CardError, ModelCard, Noise, from_metadata, to_metadata
from service.domain.latents import FrequencyStatistics
from tests.helpers.onnx_models import make_card, npy

SHAPE = (3, 4, 5)


def statistics() -> FrequencyStatistics:
    parts = np.random.default_rng(0).uniform(0.1, 1, (4, *SHAPE)).astype(np.float32)
    return FrequencyStatistics(*parts)


def encoded(array: NDArray[Any]) -> str:
    return base64.b64encode(npy(array)).decode()


@pytest.mark.parametrize("frequencies", [False, True])
def test_round_trip(frequencies: bool) -> None:
    quality = {"table": [1, 2.5, {"a": None}]}
    noise = Noise(kind="frequency" if frequencies else "gaussian", norm=3.0)
    card = make_card("digits", "12", SHAPE, quality=quality, description="Ziffern – “28×28”", noise=noise)
    read, source = from_metadata(to_metadata(card, statistics() if frequencies else None))
    assert read == card
    assert read.ref == "digits/12"
    assert source.shape == source.row(1, 2).shape == card.shape
    assert (source.statistics is not None) == frequencies
    for name in ("real_mean", "real_std", "imag_mean", "imag_std") if frequencies else ():
        np.testing.assert_array_equal(getattr(source.statistics, name), getattr(statistics(), name))


def test_what_is_not_used_is_ignored() -> None:
    document = json.loads(to_metadata(make_card())[CARD_KEY]) | {"colour_space": "sRGB"}  # a newer card
    card, noise = from_metadata({CARD_KEY: json.dumps(document), NOISE_KEY: "nonsense"})
    assert (card, noise.statistics) == (make_card(), None)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"name": "../x"}, "name"),
        ({"version": "01"}, "version"),
        ({"shape": (2, 8, 8)}, "shape"),
        ({"shape": (1, 8, 5000)}, "shape"),
        ({"range": (1.0, -1.0)}, "range must ascend"),
        ({"range": (0.0, 0.0), "background": (0.0,)}, "range must ascend"),
        ({"background": (-1.0, -1.0)}, "background needs one value per channel"),
        ({"background": (-1.5,)}, "background must lie in the range"),
        ({"buckets": ()}, "buckets must ascend"),
        ({"buckets": (0, 1)}, "buckets must ascend"),
        ({"buckets": (1, 1)}, "buckets must ascend"),
        ({"distance_quantiles": (0.1,) * 100}, "101 ascending numbers"),
        ({"distance_quantiles": tuple(1 - i / 100 for i in range(101))}, "101 ascending numbers"),
        ({"noise": {"kind": "gaussian", "norm": 0.0}}, "noise.norm"),
        ({"steps": {"generate": 0}}, "steps.generate"),
        ({"tolerance": {"fp32": 0.0}}, "tolerance.fp32"),
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


@pytest.mark.parametrize(
    ("text", "where"),
    [("", "card"), ("{", "card"), ("[]", "card"), ("null", "card"), ("{}", "name"), ('{"name": "toy"}', "version")],
)
def test_what_is_no_card(text: str, where: str) -> None:
    with pytest.raises(CardError, match=f"invalid card: {where}: "):
        from_metadata({CARD_KEY: text})
    with pytest.raises(CardError, match="it was not exported by model_export"):
        from_metadata({})


def test_another_noise_stream_is_not_ours() -> None:
    noise = Noise(kind="gaussian", norm=8.0, stream="mt19937")
    with pytest.raises(CardError, match="unknown noise stream 'mt19937'"):
        from_metadata(to_metadata(make_card(noise=noise)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a base64"),
        ("not base64!", "is not a base64"),
        (base64.b64encode(b"not npy").decode(), "is not a base64"),
        (encoded(np.zeros((2, *SHAPE), np.float32)), "must be finite float32 of shape"),
        (encoded(np.zeros((4, *SHAPE), np.float64)), "must be finite float32 of shape"),
        (encoded(np.full((4, *SHAPE), np.nan, np.float32)), "must be finite float32 of shape"),
    ],
)
def test_frequency_noise_needs_statistics(text: str, message: str) -> None:
    metadata = to_metadata(make_card(shape=SHAPE, noise=Noise(kind="frequency", norm=3.0)))
    with pytest.raises(CardError, match="frequency noise needs"):
        from_metadata(metadata)
    with pytest.raises(CardError, match=message):
        from_metadata(metadata | {NOISE_KEY: text})


@pytest.mark.parametrize(
    ("distance", "percentile"),
    [(0.0, 0.0), (0.01, 0.0), (0.02, 1.0), (0.025, 1.5), (0.5, 49.0), (1.0, 99.0), (1.01, 100.0), (7.0, 100.0)],
)
def test_percentiles_lie_between_the_quantiles_and_never_beyond(distance: float, percentile: float) -> None:
    card = make_card(distance_quantiles=tuple((i + 1) / 100 for i in range(101)))
    assert card.percentile(distance) == pytest.approx(percentile)
    assert make_card(distance_quantiles=None).percentile(distance) is None
