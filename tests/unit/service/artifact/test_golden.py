import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.artifact import golden as module
from service.artifact.files import read_npy
from service.artifact.golden import Golden, check_golden, read_golden
from service.domain.errors import StartupError
from service.domain.latents import FloatRows
from tests.helpers.onnx_models import reference, sample_rows

SHAPE = (1, 8, 8)


def archive(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def valid(n: int = 3) -> bytes:
    x = sample_rows(n)
    return archive(x=x, y=reference(x), digest=np.array("a" * 64))


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return buffer.getvalue()


def header(shape: str, dtype: str = "'<f4'") -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


class Network:
    """f(x) = tanh(x), plus ``fault(batch size, place)`` on each row."""

    def __init__(self, buckets: tuple[int, ...] | None, fault: Callable[[int, int], float]) -> None:
        self.shape = SHAPE
        self.buckets = buckets
        self.sizes: list[int] = []
        self._fault = fault

    def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
        self.sizes.append(len(rows))
        faults = [self._fault(len(rows), place) for place in range(len(rows))]
        return np.tanh(rows) + np.array(faults, np.float32)[:, None, None, None]

    def reduce_max_batch(self) -> None:
        raise AssertionError("not asked for")


def rows_and_truth(n: int = 3) -> Golden:
    x = sample_rows(n)
    return Golden(x=x, y=np.tanh(x), digest="")


def test_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(valid())
    golden = read_golden(path, SHAPE)
    np.testing.assert_array_equal(golden.x, sample_rows(3))
    np.testing.assert_array_equal(golden.y, reference(sample_rows(3)))
    assert golden.digest == "a" * 64


X = sample_rows(2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a zip file",
        valid()[:-40],
        valid()[:900] + b"\xff" * 8 + valid()[908:],
        archive(x=X, y=X),
        archive(x=X, y=X[:1], digest="a"),
        archive(x=X[:0], y=X[:0], digest="a"),
        archive(x=X.astype(np.float64), y=X.astype(np.float64), digest="a"),
        archive(x=X[:, :, :4], y=X[:, :, :4], digest="a"),
        archive(x=X, y=X * np.float32(np.nan), digest="a"),
        archive(x=np.array([{}], dtype=object), y=X, digest="a"),
        zipped({"x.npy": header("(1000000000000, 1, 8, 8)"), "y.npy": b"", "digest.npy": b""}),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(content)
    with pytest.raises(StartupError) as caught:
        read_golden(path, SHAPE)
    assert str(tmp_path) not in caught.value.detail


def test_inflated_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipped({"x.npy": bytes(2**20), "y.npy": b"", "digest.npy": b""})
    assert len(bomb) < 4096
    (tmp_path / "golden.npz").write_bytes(bomb)
    monkeypatch.setattr(module, "MAX_BYTES", 2**16)
    with pytest.raises(StartupError, match="damaged") as caught:
        read_golden(tmp_path / "golden.npz", SHAPE)
    assert str(caught.value.__cause__) == "too large"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(valid()) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_damage_is_read_as_it_was_or_refused(tmp_path: Path, place: int, byte: int, cut: bool) -> None:
    content = bytearray(valid())
    content[place] = byte
    path = tmp_path / "golden.npz"
    path.write_bytes(content[:place] if cut else content)
    try:
        golden = read_golden(path, SHAPE)
    except StartupError:
        return
    np.testing.assert_array_equal(golden.y, reference(sample_rows(3)))


def test_rows_run_alone_in_a_batch_and_rotated() -> None:
    network = Network(None, lambda size, place: 0.0)
    report = check_golden(network, rows_and_truth(), tolerance=0.0)
    assert network.sizes == [1, 1, 1, 3, 3]
    assert (report.passed, report.reproducible) == (True, "exact")


@pytest.mark.parametrize("bad", [(1, 0), (2, 1), (8, 0), (8, 5), (8, 7)])
def test_every_place_of_every_bucket_is_seen(bad: tuple[int, int]) -> None:
    network = Network((1, 2, 8), lambda size, place: 0.25 if (size, place) == bad else 0.0)
    report = check_golden(network, rows_and_truth(), tolerance=0.1)
    assert not report.passed
    assert report.difference == pytest.approx(0.25)
    assert set(network.sizes) == {1, 2, 8}


def test_a_provider_that_is_close_passes_and_says_so() -> None:
    network = Network((1, 4), lambda size, place: 1e-3 if size == 4 else 0.0)
    report = check_golden(network, rows_and_truth(), tolerance=1e-2)
    assert (report.passed, report.reproducible) == (True, "close")
    assert report.spread == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_never_pass(value: float) -> None:
    report = check_golden(Network(None, lambda size, place: value), rows_and_truth(), tolerance=1e9)
    assert (report.passed, report.difference) == (False, float("inf"))


# The reader of arrays


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
        np.array("text"),
        np.zeros((0, 3)),
    ],
    ids=["c-order", "fortran-order", "text", "empty"],
)
def test_an_array_is_read_back(array: Any) -> None:
    result = read_npy(npy(array))
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff{",
        npy(np.zeros(3, np.float32))[:-1],
        npy(np.zeros(3, np.float32)) + b"x",
        npy(np.array([{}], dtype=object)),
        header("(1000000000000000000, 1000000000000000000)"),
        header("(-1, -4)") + bytes(16),
        header("(" * 300 + ")" * 300),
        header("(1,)", "[('a', '|O')]") + bytes(8),
        header("(1,)" + " " * 2000) + bytes(4),
        header("(1,", "'|O'") + b"cos\nsystem\n",
        b"\x93NUMPY\x03\x00",
    ],
)
def test_damaged_and_hostile_data_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a \.npy file|more or less data|Python objects"):
        read_npy(data)
