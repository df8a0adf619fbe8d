"""Bytes to rows and back: what fits comes out as it went in, and nothing else gets past."""

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.api.oip.tensors import InferRequest, Limits, check_rows, read_head, read_rows
from service.artifact.card import ModelCard
from service.domain.latents import MAX_MAGNITUDE, FloatRows
from tests.helpers.onnx_models import make_card

SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(1, 4), st.integers(1, 4))
FLOATS = st.floats(-MAX_MAGNITUDE, MAX_MAGNITUDE, width=32)


@st.composite
def batches(draw: st.DrawFn) -> FloatRows:
    shape = (draw(st.integers(1, 4)), *draw(SHAPES))
    return draw(arrays(np.float32, shape, elements=FLOATS))


def card_for(rows: FloatRows) -> ModelCard:
    channels, height, width = rows.shape[1:]
    return make_card(shape=(channels, height, width))


def read(body: bytes, length: int | None, card: ModelCard) -> tuple[InferRequest, FloatRows]:
    lengths = [] if length is None else [str(length)]
    inference = read_head(body, lengths, Limits(card.shape, 4, 10, 10**6))
    rows = read_rows(inference.x, body)
    check_rows(rows)
    return inference, rows


def request(rows: FloatRows, **members: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": list(rows.shape), "datatype": "FP32"} | members]}


@given(rows=batches(), nested=st.booleans())
def test_json_comes_out_as_it_went_in(rows: FloatRows, nested: bool) -> None:
    data = rows.tolist() if nested else rows.ravel().tolist()
    found, result = read(json.dumps(request(rows, data=data)).encode(), None, card_for(rows))
    assert result.tobytes() == rows.tobytes()
    assert result.shape == rows.shape
    assert found.id is None


@given(rows=batches(), padding=st.text(max_size=9))
def test_binary_comes_out_as_it_went_in(rows: FloatRows, padding: str) -> None:
    asked = request(rows, parameters={"binary_data_size": rows.nbytes}) | {"id": padding}
    head = json.dumps(asked, ensure_ascii=False).encode()
    found, result = read(head + rows.astype("<f4").tobytes(), len(head), card_for(rows))
    assert result.tobytes() == rows.tobytes()
    assert result.flags.aligned  # wherever in the body its bytes began
    assert found.id == padding
