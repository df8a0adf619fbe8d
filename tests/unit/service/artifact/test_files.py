import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy_format

from service.artifact.files import read_npy
from tests.helpers.onnx_models import npy


def test_threads_parse_headers_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls of `ast.literal_eval` at a time fail at random in Python 3.11."""
    parse, alone = npy_format.read_array_header_1_0, threading.Semaphore(1)

    def parse_alone(*arguments: Any, **options: Any) -> Any:
        assert alone.acquire(blocking=False)
        try:
            return parse(*arguments, **options)
        finally:
            alone.release()

    monkeypatch.setattr(npy_format, "read_array_header_1_0", parse_alone)
    data = npy(np.zeros(3))
    with ThreadPoolExecutor(4) as pool:
        assert all(len(array) == 3 for array in pool.map(read_npy, [data] * 4000))
