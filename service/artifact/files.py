"""Names in a model directory, `<name>/<version>/{model.onnx, model.fp16.onnx, golden.npz, metrics.json}`."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

Precision = Literal["fp32", "fp16"]

MODEL_FILE: Final = "model.onnx"
MODEL_FILES: Final[Mapping[Precision, str]] = MappingProxyType({"fp32": MODEL_FILE, "fp16": "model.fp16.onnx"})
GOLDEN_FILE: Final = "golden.npz"
METRICS_FILE: Final = "metrics.json"

NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
VERSION_PATTERN: Final = r"^[1-9][0-9]{0,8}$"


def only_model(directory: Path) -> str | None:
    """The name of the model in a directory; None if that holds several, none, or cannot be read."""
    names = {file.parts[-3] for file in directory.glob(f"*/[1-9]*/{MODEL_FILE}")}
    names = {name for name in names if re.match(NAME_PATTERN, name)}
    return names.pop() if len(names) == 1 else None
