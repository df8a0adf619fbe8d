"""Hostile files, each a pure function of a random generator: networks, versions with cards, and
images.

Each function makes a file, opens it as the project does, and returns what came of it. It raises
what users never see.
"""

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, parser

from benchmarks.harness.common import MODEL, REF
from benchmarks.reliability.cases import Rng, image
from benchmarks.reliability.hostile_inputs import VALUES, damaged, damaged_image
from model_export import cli
from model_export.data.chance import choose
from model_export.errors import UserError
from model_export.importing import command
from service.artifact.card import CARD_KEY, Card
from service.artifact.golden import Golden, digest_of
from service.artifact.onnx_file import read_metadata
from service.domain.errors import IgnError, StartupError
from service.images.decode import DecodeLimits, ImageBytes
from service.images.prepare import prepare, to_mask
from service.models.repository import Repository
from service.runtime.onnx_model import OnnxModel

_NUMBERS: Final = (0, 1, -1, 2, 3, 7, 28, 255, 1 << 16, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63))
_PLACES: Final = (
    "/etc/passwd",
    "../../secret",
    "/dev/zero",
    "/proc/self/mem",
    "weights.bin",
    "",
    "a" * 5000,
)
_LIMITS: Final = DecodeLimits(max_pixels=250_000)
_MOST_PAGES: Final = 64
_ARGUMENTS: Final = (
    "--tile=16",
    "--overlap=0",
    "--range=-1,1",
    "--range=0,1",
    "--color=luma",
    "--bgr",
    "--residual",
)
_ROWS: Final = np.zeros((2, 1, 28, 28), np.float32)
_OPERATORS: Final = sorted(
    {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
)
_ATTRIBUTES: Final = [
    "pads",
    "strides",
    "group",
    "kernel_shape",
    "auto_pad",
    "axis",
    "training_mode",
    "to",
    "perm",
]
_NAMES: Final = (
    _OPERATORS,
    _ATTRIBUTES,
    ["x", "y", "first", "a", "evil", "com.microsoft", "ai.onnx.ml", "\x00"],
    _PLACES,
)
_TEXT: Final = """<ir_version: 8, opset_import: ["": 17]>
f (float[batch,1,28,28] x) => (float[batch,1,28,28] y)
<float[4,1,3,3] first = {%s}, float[1,4,3,3] second = {%s}, float low = {-1}, float high = {1}> {
    a = Conv<pads = [1,1,1,1]>(x, first)
    b = Relu(a)
    c = Conv<pads = [1,1,1,1]>(b, second)
    d = Sub(x, c)
    %s
    y = Clip(e, low, high)
}
%s"""
_MIDDLES: Final = {  # from d to e
    "plain": "e = Identity(d)",
    "large": "s = Constant<value_ints = [%d, %d]>() m = ConstantOfShape(s) t = "
    "ReduceMax<keepdims=0>(m) e = Add(d, t)",
    "endless": """n = Constant<value_int = %d>() s = Constant<value_int = %d>() yes = Cast<to = 9>(n)
        e = Loop<body = b (int64 i, bool go, float v) => (bool on, float w) {on = Identity(go) w = Tanh(v)}>(n, yes, d)
        """,
    "nested": "yes = Equal(low, low) e = %s",
    "functions": "e = own.f0(d)",
}


def _base(rng: Rng, middle: str) -> ModelProto:
    """y = clip(x − conv(relu(conv(x)))), with something in the middle."""
    kernels = (",".join(f"{value:.4f}" for value in part) for part in rng.normal(0, 0.1, (2, 36)))
    text = _MIDDLES[middle]
    functions = ""
    if middle == "nested":
        text %= _nested(int(rng.integers(1, 25)))
    elif "%" in text:
        text %= tuple(max(0, int(choose(rng, _NUMBERS))) for _ in range(2))
    if middle == "functions":
        depth = int(rng.integers(1, 40))
        ends = rng.random() < 0.7
        for number in range(depth):  # each calls the next one twice, and the last one the first
            last = "w = Tanh(u)" if ends else "w = own.f0(u)"
            body = (
                last
                if number == depth - 1
                else f"v = own.f{number + 1}(u) w = own.f{number + 1}(v)"
            )
            functions += (
                f'<domain: "own", opset_import: ["": 17, "own": 1]> f{number} (u) => '
                f"(w) {{{body}}}\n"
            )
    whole = _TEXT % (*kernels, text, functions)
    return parser.parse_model(whole.replace(": 17]", ': 17, "own": 1]', 1) if functions else whole)


def _nested(depth: int) -> str:
    inner = _nested(depth - 1) if depth else "Tanh(d)"
    return (
        f"If<then_branch = t () => (e) {{e = {inner}}}, else_branch = u () => (e) {{e = "
        f"Neg(d)}}>(yes)"
    )


def _external(rng: Rng, model: ModelProto) -> None:
    tensor = choose(rng, model.graph.initializer)
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", choose(rng, _PLACES)), ("offset", choose(rng, _NUMBERS))):
        tensor.external_data.add(key=key, value=str(value))


def _messages(message: Any) -> Iterator[Any]:
    """The message and all below it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type:
            for each in value if isinstance(value, MutableSequence) else (value,):
                yield from _messages(each)


def _field(rng: Rng, model: ModelProto) -> None:
    """Another value in a field: unknown operators, cycles, names that are used twice, sizes and
    types of weights, inputs and outputs.
    """
    message = choose(rng, list(_messages(model)))
    field = choose(rng, message.DESCRIPTOR.fields)
    present = getattr(message, field.name)
    is_list = isinstance(present, MutableSequence)
    if field.message_type:
        present.add() if is_list else present.SetInParent()
        return
    is_text = field.type in (field.TYPE_STRING, field.TYPE_BYTES)
    value: Any = choose(rng, choose(rng, _NAMES) if is_text else _NUMBERS)
    value = value.encode() if field.type == field.TYPE_BYTES else value
    with suppress(TypeError, ValueError):  # it does not fit
        if is_list:
            present.append(value)
            present[int(rng.integers(len(present)))] = value
        else:
            setattr(message, field.name, value)


def _model(rng: Rng) -> ModelProto:
    luck = rng.random()
    middle = (
        "endless"
        if luck < 0.002
        else choose(rng, ("large", "nested", "functions"))
        if luck < 0.2
        else "plain"
    )
    model = _base(rng, middle)
    for _ in range(int(rng.integers(0, 4))):
        choose(rng, (_external, _field, _field, _field))(rng, model)
    return model


def network(rng: Rng, folder: Path) -> str:
    """`ign import --dry-run`: what its child process does."""
    data = _model(rng).SerializeToString()
    file = folder / "net.onnx"
    sent = list[Any]()
    file.write_bytes(damaged(rng, data) if rng.random() < 0.3 else data)
    options = [option for option in _ARGUMENTS if rng.random() < 0.3]
    arguments = ["import", str(file), "--name", "net", *options]
    sender: Any = SimpleNamespace(send=sent.append)
    command._work(cli.parser().parse_args(arguments), "1", sender)
    error = next((each for each in sent if isinstance(each, BaseException)), None)
    if error is not None and ("\n" in str(error) or not isinstance(error, UserError | OSError)):
        raise error
    return "refused" if error else "imported"


@cache
def _card() -> Any:
    return json.loads(read_metadata(MODEL.read_bytes())[CARD_KEY])


def _edited(rng: Rng, value: Any) -> Any:
    """The JSON value with another value at a random place, or without it."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return copy.deepcopy(choose(rng, VALUES))
    key = choose(rng, list(value) if isinstance(value, dict) else range(len(value)))
    value[key] = _edited(rng, value[key])
    if rng.random() < 0.1:
        del value[key]
    return value


def version(rng: Rng, folder: Path) -> str:
    """Load a version: a network with a card, either of them hostile, and golden rows."""
    card = copy.deepcopy(_card())
    place = folder / REF
    place.mkdir(parents=True)
    is_about_cards = rng.random() < 0.7
    model = _base(rng, "plain") if is_about_cards else _model(rng)
    for _ in range(int(rng.integers(0, 3)) if is_about_cards else 0):
        card = _edited(rng, card)
    text = json.dumps(card)
    text = damaged(rng, text.encode()).decode("utf-8", "replace") if rng.random() < 0.2 else text
    model.metadata_props.add(key=CARD_KEY, value=text)
    data = model.SerializeToString()
    data = damaged(rng, data) if rng.random() < 0.1 else data
    golden = Golden(x=_ROWS, y=_ROWS, digest=digest_of(data)).to_bytes()
    (place / "model.onnx").write_bytes(data)
    (place / "golden.npz").write_bytes(damaged(rng, golden) if rng.random() < 0.3 else golden)
    try:
        Repository(folder, lambda data: [OnnxModel(data, device="cpu")], default="mnist").load(
            REF
        ).close()
    except StartupError as exc:
        if "\n" in exc.detail:
            raise
        return "refused"
    return "loaded"


def picture(rng: Rng, _: Path) -> str:
    """Decode an image as an input and as a mask, and the pages of a TIFF."""
    data = damaged_image(rng, image(rng))
    try:
        for page in ImageBytes("image", data).pages(_LIMITS, _MOST_PAGES):
            prepare(page.decode(), Card.model_validate(_card()))
        to_mask(ImageBytes("mask", data).open(_LIMITS))
    except IgnError as exc:
        return exc.error_code
    return "decoded"


KINDS: Final[dict[str, Callable[[Rng, Path], str]]] = {
    "network": network,
    "version": version,
    "image": picture,
}


def run(seed: int, number: int, kind: str) -> str:
    """What comes of a file; `FAULT` and the exception for what no user should see."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return KINDS[kind](np.random.default_rng((seed, number)), Path(folder))
    except Exception as exc:
        return f"FAULT {exc!r:.300}"
