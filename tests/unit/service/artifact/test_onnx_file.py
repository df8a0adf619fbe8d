"""Files that onnxruntime would run and that the service refuses. The `onnx` package makes them; the reader is ours."""

from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.artifact.onnx_file import DOMAIN, EXTERNAL, NESTED, check_self_contained
from service.domain.errors import StartupError
from tests.helpers.onnx_models import graph, make_card, model_bytes, serialise

SHAPE = ("batch", 1, 8, 8)
PARTS = {"TensorProto", "NodeProto", "OperatorSetIdProto"}  # what is looked for


def test_ordinary_models_pass() -> None:
    check_self_contained(model_bytes())
    check_self_contained(model_bytes(make_card(shape=(3, 8, 8))))
    model = onnx.load_from_string(model_bytes())
    model.opset_import[0].domain = "ai.onnx"  # the other name of the standard domain
    check_self_contained(model.SerializeToString())


def in_a_branch() -> bytes:
    """A model with a branch that has a weight in another file."""
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 8, 8], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="/etc/passwd")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 8, 8])],
        [outside],
    )
    nodes = [
        helper.make_node("If", ["yes"], ["b"], then_branch=branch, else_branch=branch),
        helper.make_node("Mul", ["x", "b"], ["y"]),
    ]
    return serialise(graph(nodes, {"yes": np.array(True)}, SHAPE, SHAPE), make_card())


def test_weights_outside_of_the_file_are_refused() -> None:
    """Every other place of a tensor is compared with the definition of ONNX below."""
    with pytest.raises(StartupError, match=r"^has weights outside of the file") as caught:
        check_self_contained(in_a_branch())
    assert "passwd" not in caught.value.detail


@pytest.mark.parametrize("imported", [True, False])
def test_operators_of_other_domains_are_refused(imported: bool) -> None:
    """onnxruntime would run its own ones: so the rejection is ours, not the file's fault."""
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    model = onnx.load_from_string(serialise(graph([node], {}, SHAPE, SHAPE), make_card()))
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
