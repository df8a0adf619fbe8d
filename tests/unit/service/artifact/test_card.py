"""Files of a model: its card, its golden rows, and what onnxruntime would run but the service
refuses.
"""

import io
import json
import math
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.artifact import golden as module
from service.artifact.card import CARD_KEY, CardError, Noise, from_metadata, to_metadata
from service.artifact.golden import Golden, check_golden, read_golden
from service.artifact.onnx_file import DOMAIN, EXTERNAL, NESTED, check_self_contained
from service.domain.errors import StartupError
from service.domain.latents import FloatRows
from service.domain.tiles import Tiling
from tests.helpers.fakes import FakeModel
from tests.helpers.onnx_models import graph, make_card, model_bytes, npy, sample_rows, serialise


def card_of(**changes: Any) -> Any:
    """The card that is read where a valid one has these fields instead."""
    document = json.loads(to_metadata(make_card())[CARD_KEY]) | changes
    return from_metadata({CARD_KEY: json.dumps(document, default=list)})


def test_round_trip() -> None:
    quality = {"table": [1, 2.5, {"a": None}]}
    noise = Noise(kind="gaussian", norm=3.0)
    card = make_card(
        "digits", "12", (3, 4, 5), quality=quality, description="Ziffern – “28×28”", noise=noise
    )
    assert from_metadata(to_metadata(card)) == card
    assert card_of(colour_space="sRGB") == make_card()  # of a newer card


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"name": "../x"}, "name"),
        ({"shape": (2, 8, 8)}, "shape"),
        ({"range": (0.0, 0.0), "background": (0.0,)}, "range must ascend"),
        ({"background": (-1.5,)}, "background must lie in the range"),
        ({"noise": {"kind": "frequency", "norm": 3.0}}, "kind of noise"),
        (
            {"shape": (3, 8, 8), "background": (0.0,) * 3, "color": "luma"},
            "color is of grey models",
        ),
        (
            {"tiles": {"overlap": 1, "multiple": 2, "smaller": (3,)}},
            "smaller tiles must be multiples of 2",
        ),
        ({"tiles": {"overlap": 1, "smaller": (8,)}}, "below the shape"),
        ({"tiles": {"overlap": 1}, "exact": True}, "exact is of models without tiles"),
        ({"buckets": (1, 1)}, "buckets must ascend"),
        ({"distance_quantiles": tuple(1 - i / 100 for i in range(101))}, "101 ascending numbers"),
    ],
)
def test_invalid_cards(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(CardError, match=r"invalid card: (?-s:.+)$") as refused:
        card_of(**changes)
    assert where in str(refused.value)


@pytest.mark.parametrize("name", ["objective", "noise", "data", "training"])
def test_schema_1_needs_what_schema_2_may_lack(name: str) -> None:
    with pytest.raises(CardError, match=f"invalid card: {name}"):
        card_of(**{name: None})
    origin = {"file": "net.onnx", "sha256": "0" * 64, "folded": ["BGR"]}
    card = card_of(**{name: None}, schema_version=2, origin=origin)
    assert getattr(card, name) is None
    assert from_metadata(to_metadata(card)) == card


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", None])
def test_what_is_no_card(text: str | None) -> None:
    with pytest.raises(CardError):
        from_metadata({} if text is None else {CARD_KEY: text})


def test_another_noise_stream_is_not_ours() -> None:
    with pytest.raises(CardError, match="unknown noise stream 'mt19937'"):
        card_of(noise={"kind": "gaussian", "norm": 8.0, "stream": "mt19937"})


@pytest.mark.parametrize(
    ("distance", "percentile"),
    [(0.0, 0.0), (0.01, 0.0), (0.025, 1.5), (1.0, 99.0), (1.01, 100.0), (7.0, 100.0)],
)
def test_percentiles_lie_between_the_quantiles_and_never_beyond(
    distance: float, percentile: float
) -> None:
    card = make_card(distance_quantiles=tuple((i + 1) / 100 for i in range(101)))
    assert card.percentile(distance) == pytest.approx(percentile)


GREY = (1, 8, 8)
X = sample_rows(3)
GOLDEN = Golden(x=X, y=np.tanh(X), digest="a" * 64)


def archive(**members: Any) -> bytes:
    """Golden rows of which some members are others, as arrays or as bytes, or are missing
    (None).
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in (vars(GOLDEN) | members).items():
            if content is not None:
                target.writestr(
                    f"{name}.npy", content if isinstance(content, bytes) else npy(np.array(content))
                )
    return buffer.getvalue()


VALID = archive()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        archive(digest=None),
        archive(y=X[:1]),
        archive(x=X[:0], y=X[:0]),
        archive(x=X.astype(np.float64), y=X.astype(np.float64)),
        archive(x=X[:, :, :4], y=X[:, :, :4]),
        archive(y=X * np.float32(np.nan)),
        archive(x=npy(X).replace(b"(3, ", b"(9, ")),
        archive(x=bytes(2**20)),  # a bomb
    ],
)
def test_anything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 2**16)
    path = tmp_path / "golden.npz"
    path.write_bytes(content)
    with pytest.raises(StartupError) as caught:
        read_golden(path, GREY)
    assert str(tmp_path) not in caught.value.detail
    assert len(content) < 4096 or str(caught.value.__cause__) == "too large"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(VALID) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_damage_is_read_as_it_was_or_refused(
    tmp_path: Path, place: int, byte: int, cut: bool
) -> None:
    content = bytearray(VALID)
    content[place] = byte
    path = tmp_path / "golden.npz"
    path.write_bytes(content[:place] if cut else content)
    try:
        golden = read_golden(path, GREY)
    except StartupError:
        assert content != VALID or cut
    else:
        np.testing.assert_equal(vars(golden), vars(GOLDEN))


def network(buckets: tuple[int, ...] | None, fault: Callable[[int, int], float]) -> FakeModel:
    """f(x) = tanh(x), plus ``fault(batch size, place)`` on each row."""

    def function(rows: FloatRows) -> FloatRows:
        faults = [fault(len(rows), place) for place in range(len(rows))]
        return np.tanh(rows) + np.array(faults, np.float32)[:, None, None, None]

    return FakeModel(GREY, function, buckets)


@pytest.mark.parametrize(
    ("fault", "passed", "reproducible", "difference"),
    [(0.0, True, "exact", 0.0), (1e-3, True, "close", 1e-3), (np.nan, False, "close", np.inf)],
)
def test_rows_run_alone_in_a_batch_and_rotated(
    fault: float, passed: bool, reproducible: str, difference: float
) -> None:
    model = network(None, lambda size, _: fault if size == 3 else 0.0)
    report = check_golden(model, GOLDEN, tolerance=1e-2)
    assert model.sizes == [1, 1, 1, 3, 3]
    assert (report.passed, report.reproducible) == (passed, reproducible)
    assert report.difference == pytest.approx(difference, rel=1e-3)


@pytest.mark.parametrize("bad", [(1, 0), (2, 1), (8, 0), (8, 5), (8, 7)])
def test_every_place_of_every_bucket_is_seen(bad: tuple[int, int]) -> None:
    model = network((1, 2, 8), lambda size, place: 0.25 if (size, place) == bad else 0.0)
    report = check_golden(model, GOLDEN, tolerance=0.1)
    assert not report.passed
    assert report.difference == pytest.approx(0.25)


def test_weights_outside_of_the_file_are_refused() -> None:
    """Every other place of a tensor is compared with the definition of ONNX below."""
    model = onnx.load_from_string(model_bytes())
    model.opset_import[0].domain = "ai.onnx"  # another name of the standard domain
    check_self_contained(model.SerializeToString())
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(StartupError, match="has weights outside of the file") as caught:
        check_self_contained(model.SerializeToString())
    assert "passwd" not in caught.value.detail


def test_operators_of_other_domains_are_refused() -> None:
    """onnxruntime would run its own ones."""
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    model = onnx.load_from_string(
        serialise(graph([node], {}, ("batch", *GREY), ("batch", *GREY)), make_card())
    )
    for _ in range(2):
        with pytest.raises(StartupError, match="holds operators of the domain 'com"):
            check_self_contained(model.SerializeToString())
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def nested() -> bytes:
    """A graph in an attribute in a node in a graph …"""
    data = b""
    for tag in b"\x32\x2a\x0a" * 200 + b"\x3a":
        length = len(data)
        data = bytes([tag, length & 127 | 128, length >> 7 & 127 | 128, length >> 14]) + data
    return data


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a",  # a length is missing
        b"\x3a\x05\x0a",  # a field ends beyond the file
        b"\x3b\x3c",  # a group
        b"\xff" * 11,  # a number that does not end
        b"\x82\x80\x80\x80\x80\x01\x00",  # a tag of more than 32 bits
        b"\x38\x01",  # a number where a graph belongs
        nested(),
    ],
)
def test_a_damaged_protobuf_is_refused(data: bytes) -> None:
    with pytest.raises(StartupError, match="not a model onnxruntime can load"):
        check_self_contained(data)


@given(st.binary(max_size=64))
def test_any_bytes_pass_or_are_refused(data: bytes) -> None:
    with suppress(StartupError):  # every other error fails this test
        check_self_contained(data)


# What is looked for
PARTS = {"TensorProto", "NodeProto", "OperatorSetIdProto"}


def leads_to_a_part(message: Any, seen: frozenset[str] = frozenset()) -> bool:
    if message.name in PARTS:
        return True
    return message.name not in seen and any(
        leads_to_a_part(field.message_type, seen | {message.name})
        for field in message.fields
        if field.message_type
    )


def test_no_way_to_a_tensor_or_an_operator_is_left_out() -> None:
    """The field numbers are those of the definition that the onnx package carries."""
    pending = [onnx.ModelProto.DESCRIPTOR]
    seen = set()
    while pending:
        message: Any = pending.pop()
        if message.name not in seen:
            seen.add(message.name)
            nested_types = [field for field in message.fields if field.message_type]
            ways = {
                each.number: each.message_type
                for each in nested_types
                if leads_to_a_part(each.message_type)
            }
            assert NESTED.get(message.name, {}) == {
                number: kind.name for number, kind in ways.items()
            }
            pending += ways.values()
    assert seen >= NESTED.keys() | DOMAIN.keys()
    for name, number in DOMAIN.items():
        assert getattr(onnx, name).DESCRIPTOR.fields_by_name["domain"].number == number
    fields = TensorProto.DESCRIPTOR.fields_by_name
    assert {fields["external_data"].number, fields["data_location"].number} == EXTERNAL


@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.sets(st.integers(1, 15), max_size=3),
    st.integers(0, 15),
    st.integers(0, 4),
)
def test_tiles_have_the_fewest_pixels(
    size: tuple[int, int], smaller: set[int], overlap: int, margin: int
) -> None:
    options: dict[str, Any] = {"overlap": overlap, "multiple": 4, "margin": 4 * margin}
    sides = [4 * side for side in sorted(smaller)]
    card = make_card(shape=(1, 64, 64), tiles=options | {"smaller": sides})
    others = list[Tiling]()
    for height in (*sides, 64):
        for width in (*sides, 64):
            with suppress(ValueError):  # tiles of these sides do not reach the end of the image
                others.append(Tiling(size, (height, width), **options))
    assert _pixels(card.tiling(size)) == min(map(_pixels, others))


def _pixels(tiling: Tiling) -> int:
    return tiling.count * math.prod(tiling.tile)
