"""Files of a model: its card, its golden rows, and what onnxruntime would run but the service refuses."""

import io
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.artifact import golden as module
from service.artifact.card import CARD_KEY, CardError, Noise, from_metadata, to_metadata
from service.artifact.golden import Golden, check_golden, read_golden
from service.artifact.onnx_file import DOMAIN, EXTERNAL, NESTED, check_self_contained
from service.domain.errors import StartupError
from service.domain.latents import FloatRows
from tests.helpers.fakes import FakeModel
from tests.helpers.onnx_models import graph, make_card, model_bytes, npy, reference, sample_rows, serialise

SHAPE = (3, 4, 5)


def test_round_trip() -> None:
    quality = {"table": [1, 2.5, {"a": None}]}
    noise = Noise(kind="gaussian", norm=3.0)
    card = make_card("digits", "12", SHAPE, quality=quality, description="Ziffern – “28×28”", noise=noise)
    read, source = from_metadata(to_metadata(card))
    assert read == card
    assert read.ref == "digits/12"
    assert source.shape == source.row(1, 2).shape == card.shape


def test_what_is_not_used_is_ignored() -> None:
    document = json.loads(to_metadata(make_card())[CARD_KEY]) | {"colour_space": "sRGB"}  # a newer card
    card, _ = from_metadata({CARD_KEY: json.dumps(document), "ign.noise": "nonsense"})
    assert card == make_card()


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"schema_version": 3}, "schema_version"),
        ({"name": "../x"}, "name"),
        ({"shape": (2, 8, 8)}, "shape"),
        ({"range": (1.0, -1.0)}, "range must ascend"),
        ({"range": (0.0, 0.0), "background": (0.0,)}, "range must ascend"),
        ({"background": (-1.0, -1.0)}, "background needs one value per channel"),
        ({"background": (-1.5,)}, "background must lie in the range"),
        ({"noise": {"kind": "frequency", "norm": 3.0}}, "noise.kind"),
        ({"shape": (3, 8, 8), "background": (0.0,) * 3, "color": "luma"}, "color is of grey models"),
        ({"tiles": {"overlap": 1, "multiple": 2, "smaller": (3,)}}, "smaller tiles must be multiples of 2"),
        ({"tiles": {"overlap": 1, "multiple": 2, "margin": 3}}, "margin of tiles must be a multiple of 2"),
        ({"tiles": {"overlap": 1, "smaller": (4, 2)}}, "smaller tiles must be multiples of 1, ascending"),
        ({"tiles": {"overlap": 1, "smaller": (8,)}}, "below the shape"),
        ({"tiles": {"overlap": 1, "smaller": (1, 2, 3, 4)}}, "tiles.smaller"),
        ({"tiles": {"overlap": 1}, "exact": True}, "exact is of models without tiles"),
        ({"buckets": ()}, "buckets must ascend"),
        ({"buckets": (1, 1)}, "buckets must ascend"),
        ({"distance_quantiles": (0.1,) * 100}, "101 ascending numbers"),
        ({"distance_quantiles": tuple(1 - i / 100 for i in range(101))}, "101 ascending numbers"),
    ],
)
def test_invalid_cards(changes: dict[str, Any], where: str) -> None:
    document = json.loads(to_metadata(make_card())[CARD_KEY]) | changes
    with pytest.raises(CardError, match="invalid card: ") as refused:
        from_metadata({CARD_KEY: json.dumps(document, default=list)})
    assert where in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["objective", "noise", "data", "training"])
def test_schema_1_needs_what_schema_2_may_lack(name: str) -> None:
    document = json.loads(to_metadata(make_card())[CARD_KEY]) | {name: None}
    with pytest.raises(CardError, match=f"invalid card: {name}"):
        from_metadata({CARD_KEY: json.dumps(document)})
    document |= {"schema_version": 2, "origin": {"file": "net.onnx", "sha256": "0" * 64, "folded": ["BGR"]}}
    card, _ = from_metadata({CARD_KEY: json.dumps(document)})
    assert getattr(card, name) is None
    assert from_metadata(to_metadata(card))[0] == card


@pytest.mark.parametrize(
    ("text", "where"),
    [("", "card"), ("{", "card"), ("[]", "card"), ("null", "card"), ("{}", "name"), ('{"name": "toy"}', "version")],
)
def test_what_is_no_card(text: str, where: str) -> None:
    with pytest.raises(CardError, match=f"invalid card: {where}: "):
        from_metadata({CARD_KEY: text})
    with pytest.raises(CardError, match="`ign export` and `ign import` write it"):
        from_metadata({})


def test_another_noise_stream_is_not_ours() -> None:
    noise = Noise(kind="gaussian", norm=8.0, stream="mt19937")
    with pytest.raises(CardError, match="unknown noise stream 'mt19937'"):
        from_metadata(to_metadata(make_card(noise=noise)))


@pytest.mark.parametrize(
    ("distance", "percentile"),
    [(0.0, 0.0), (0.01, 0.0), (0.02, 1.0), (0.025, 1.5), (0.5, 49.0), (1.0, 99.0), (1.01, 100.0), (7.0, 100.0)],
)
def test_percentiles_lie_between_the_quantiles_and_never_beyond(distance: float, percentile: float) -> None:
    card = make_card(distance_quantiles=tuple((i + 1) / 100 for i in range(101)))
    assert card.percentile(distance) == pytest.approx(percentile)
    assert make_card(distance_quantiles=None).percentile(distance) is None


def test_batches_of_tiles_are_those_of_the_card() -> None:
    tiled = make_card(tiles={"overlap": 1, "smaller": (2,)}, buckets=(1, 2))
    assert (tiled.batch_rows(64), tiled.batch_rows(1), make_card().batch_rows(128)) == (2, 1, 128)
    assert tiled.row_shapes == [(1, 2, 2), (1, 2, 8), (1, 8, 2), (1, 8, 8)]


GREY = (1, 8, 8)
X = sample_rows(3)
GOLDEN = Golden(x=X, y=np.tanh(X), digest="")


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def archive(x: Any = X, y: Any = X, digest: str = "a" * 64) -> bytes:
    return zipped(x=npy(x), y=npy(y), digest=npy(np.array(digest)))


VALID = archive(y=reference(X))


def network(buckets: tuple[int, ...] | None, fault: Callable[[int, int], float]) -> FakeModel:
    """f(x) = tanh(x), plus ``fault(batch size, place)`` on each row."""

    def function(rows: FloatRows) -> FloatRows:
        faults = [fault(len(rows), place) for place in range(len(rows))]
        return np.tanh(rows) + np.array(faults, np.float32)[:, None, None, None]

    return FakeModel(GREY, function, buckets)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        zipped(x=npy(X), y=npy(X)),
        archive(y=X[:1]),
        archive(x=X[:0], y=X[:0]),
        archive(x=X.astype(np.float64), y=X.astype(np.float64)),
        archive(x=X[:, :, :4], y=X[:, :, :4]),
        archive(y=X * np.float32(np.nan)),
        zipped(x=npy(X).replace(b"(3, ", b"(9, "), y=b"", digest=b""),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(content)
    with pytest.raises(StartupError) as caught:
        read_golden(path, GREY)
    assert str(tmp_path) not in caught.value.detail


def test_inflated_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipped(x=bytes(2**20), y=b"", digest=b"")
    assert len(bomb) < 4096
    (tmp_path / "golden.npz").write_bytes(bomb)
    monkeypatch.setattr(module, "MAX_BYTES", 2**16)
    with pytest.raises(StartupError, match="damaged") as caught:
        read_golden(tmp_path / "golden.npz", GREY)
    assert str(caught.value.__cause__) == "too large"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(VALID) - 1), byte=st.integers(0, 255), cut=st.booleans())
@example(place=0, byte=VALID[0], cut=False)
def test_damage_is_read_as_it_was_or_refused(tmp_path: Path, place: int, byte: int, cut: bool) -> None:
    content = bytearray(VALID)
    content[place] = byte
    path = tmp_path / "golden.npz"
    path.write_bytes(content[:place] if cut else content)
    try:
        golden = read_golden(path, GREY)
    except StartupError:
        assert content != VALID or cut
        return
    np.testing.assert_array_equal(golden.x, X)
    np.testing.assert_array_equal(golden.y, reference(X))
    assert golden.digest == "a" * 64


@pytest.mark.parametrize(
    ("fault", "tolerance", "passed", "reproducible", "difference"),
    [
        (lambda size, place: 0.0, 0.0, True, "exact", 0.0),
        (lambda size, place: 1e-3 if size == 3 else 0.0, 1e-2, True, "close", 1e-3),
        (lambda size, place: np.nan, 1e9, False, None, np.inf),
        (lambda size, place: np.inf, 1e9, False, None, np.inf),
    ],
)
def test_rows_run_alone_in_a_batch_and_rotated(
    fault: Callable[[int, int], float], tolerance: float, passed: bool, reproducible: str | None, difference: float
) -> None:
    model = network(None, fault)
    report = check_golden(model, GOLDEN, tolerance=tolerance)
    assert model.sizes == [1, 1, 1, 3, 3]
    assert report.passed == passed
    assert report.difference == pytest.approx(difference, rel=1e-3)
    assert reproducible in (None, report.reproducible)


@pytest.mark.parametrize("bad", [(1, 0), (2, 1), (8, 0), (8, 5), (8, 7)])
def test_every_place_of_every_bucket_is_seen(bad: tuple[int, int]) -> None:
    model = network((1, 2, 8), lambda size, place: 0.25 if (size, place) == bad else 0.0)
    report = check_golden(model, GOLDEN, tolerance=0.1)
    assert not report.passed
    assert report.difference == pytest.approx(0.25)


BATCH = ("batch", 1, 8, 8)
PARTS = {"TensorProto", "NodeProto", "OperatorSetIdProto"}  # what is looked for


def test_the_standard_domain_has_another_name() -> None:
    model = onnx.load_from_string(model_bytes())
    model.opset_import[0].domain = "ai.onnx"
    check_self_contained(model.SerializeToString())


def test_weights_outside_of_the_file_are_refused() -> None:
    """Every other place of a tensor is compared with the definition of ONNX below."""
    model = onnx.load_from_string(model_bytes())
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(StartupError, match=r"^has weights outside of the file") as caught:
        check_self_contained(model.SerializeToString())
    assert "passwd" not in caught.value.detail


@pytest.mark.parametrize("imported", [True, False])
def test_operators_of_other_domains_are_refused(imported: bool) -> None:
    """onnxruntime would run its own ones: so the rejection is ours, not the file's fault."""
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    model = onnx.load_from_string(serialise(graph([node], {}, BATCH, BATCH), make_card()))
    if imported:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(StartupError, match=r"^holds operators of the domain 'com.microsoft'"):
        check_self_contained(model.SerializeToString())


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


def leads_to_a_part(message: Any, seen: frozenset[str] = frozenset()) -> bool:
    if message.name in PARTS:
        return True
    return message.name not in seen and any(
        leads_to_a_part(field.message_type, seen | {message.name}) for field in message.fields if field.message_type
    )


def test_no_way_to_a_tensor_or_an_operator_is_left_out() -> None:
    """The field numbers are those of the definition that the onnx package carries."""
    pending, seen = [onnx.ModelProto.DESCRIPTOR], set()
    while pending:
        message: Any = pending.pop()
        if message.name in seen:
            continue
        seen.add(message.name)
        ways = {
            field.number: field.message_type.name
            for field in message.fields
            if field.message_type and leads_to_a_part(field.message_type)
        }
        assert NESTED.get(message.name, {}) == ways
        pending += [field.message_type for field in message.fields if field.number in ways]
    assert seen >= NESTED.keys() | DOMAIN.keys()
    for name, number in DOMAIN.items():
        assert getattr(onnx, name).DESCRIPTOR.fields_by_name["domain"].number == number
    fields = TensorProto.DESCRIPTOR.fields_by_name
    assert {fields["external_data"].number, fields["data_location"].number} == EXTERNAL
