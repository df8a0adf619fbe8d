import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.artifact import golden as module
from service.artifact.golden import Golden, check_golden, read_golden
from service.domain.errors import StartupError
from service.domain.latents import FloatRows
from tests.helpers.onnx_models import npy, reference, sample_rows

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


X = sample_rows(2)
GOLDEN = Golden(x=sample_rows(3), y=np.tanh(sample_rows(3)), digest="")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        archive(x=X, y=X),
        archive(x=X, y=X[:1], digest="a"),
        archive(x=X[:0], y=X[:0], digest="a"),
        archive(x=X.astype(np.float64), y=X.astype(np.float64), digest="a"),
        archive(x=X[:, :, :4], y=X[:, :, :4], digest="a"),
        archive(x=X, y=X * np.float32(np.nan), digest="a"),
        zipped({"x.npy": npy(X).replace(b"(2, ", b"(9, "), "y.npy": b"", "digest.npy": b""}),
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


VALID = valid()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(VALID) - 1), byte=st.integers(0, 255), cut=st.booleans())
@example(place=0, byte=VALID[0], cut=False)
def test_damage_is_read_as_it_was_or_refused(tmp_path: Path, place: int, byte: int, cut: bool) -> None:
    content = bytearray(VALID)
    content[place] = byte
    path = tmp_path / "golden.npz"
    path.write_bytes(content[:place] if cut else content)
    try:
        golden = read_golden(path, SHAPE)
    except StartupError:
        assert content != VALID or cut
        return
    np.testing.assert_array_equal(golden.x, sample_rows(3))
    np.testing.assert_array_equal(golden.y, reference(sample_rows(3)))
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
    network = Network(None, fault)
    report = check_golden(network, GOLDEN, tolerance=tolerance)
    assert network.sizes == [1, 1, 1, 3, 3]
    assert (report.passed, report.batches) == (passed, (1, 3))
    assert report.difference == pytest.approx(difference, rel=1e-3)
    assert reproducible in (None, report.reproducible)


@pytest.mark.parametrize("bad", [(1, 0), (2, 1), (8, 0), (8, 5), (8, 7)])
def test_every_place_of_every_bucket_is_seen(bad: tuple[int, int]) -> None:
    network = Network((1, 2, 8), lambda size, place: 0.25 if (size, place) == bad else 0.0)
    report = check_golden(network, GOLDEN, tolerance=0.1)
    assert not report.passed
    assert report.difference == pytest.approx(0.25)
    assert report.batches == (1, 2, 8)
