import ctypes
from typing import Any

import pytest

from service.runtime.devices import (
    STICKY,
    Capability,
    Kind,
    can_run,
    compute_capability,
    kind_of,
    lacks_code,
    missing_code,
)


class Driver:
    """NVIDIA's driver on a machine with GPUs of these compute capabilities."""

    def __init__(self, *capabilities: Capability, failing: str = "") -> None:
        self.capabilities, self.failing = capabilities, failing

    def cuInit(self, flags: int) -> int:
        return 3 if self.failing == "cuInit" else 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        if ordinal >= len(self.capabilities):
            return 101
        device._obj.value = 7 + ordinal  # a handle is no ordinal
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:
        value._obj.value = self.capabilities[device.value - 7][attribute - 75]
        return 1 if self.failing == "cuDeviceGetAttribute" else 0


def installed(monkeypatch: pytest.MonkeyPatch, driver: Driver | None) -> None:
    def load(name: str) -> Driver:
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)


def test_the_driver_tells_the_capability_of_a_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, Driver((9, 0), (10, 3)))
    assert [compute_capability(i) for i in range(3)] == [(9, 0), (10, 3), None]
    assert missing_code(0) == ""
    assert missing_code(1) == (
        "GPU 1 has compute capability 10.3, and onnxruntime-gpu from PyPI holds code for "
        "7.5, 8.0, 8.6, 8.9, 9.0, 12.0 only"
    )


@pytest.mark.parametrize(
    "driver", [None, Driver(), Driver((10, 0), failing="cuInit"), Driver((10, 0), failing="cuDeviceGetAttribute")]
)
def test_a_driver_that_does_not_tell_is_no_reason(monkeypatch: pytest.MonkeyPatch, driver: Driver | None) -> None:
    installed(monkeypatch, driver)
    assert compute_capability(0) is None
    assert missing_code(0) == ""


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 7), (9, 0), (12, 1)])
def test_code_runs_on_the_same_major_version_and_later_minor_ones(capability: Capability) -> None:
    assert can_run(capability)
    assert not any(map(can_run, [(6, 1), (7, 0), (10, 0), (11, 0)]))  # P100, V100, B200, …


@pytest.mark.parametrize(("number", "name"), STICKY.items())
def test_every_error_that_stays_is_recognised_by_number_and_by_name(number: int, name: str) -> None:
    for text in (
        f"CUDA failure {number}: it is broken ; GPU=0 ; hostname=here ; file=cuda_call.cc ; line=129",
        f"Non-zero status code returned while running Conv node. Status Message: CUDA failure {number}: broken",
        f"Non-zero status code returned while running Mul node. Name:'/m' CUDA error cudaError{name}:broken",
    ):
        assert kind_of(RuntimeError(text)) == "lost"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA failure 1: invalid argument ; GPU=0", "device"),
        ("CUDA failure 720: too many blocks in cooperative launch", "device"),  # one call's fault
        ("CUDA failure 900: operation not permitted when stream is capturing", "device"),
        ("CUDA error cudaErrorAssertion: not a name of CUDA", "device"),
        ("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0", "device"),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", "device"),
        ("CUDA failure 2: out of memory ; GPU=0", "out of memory"),
        ("BFCArena::AllocateRawInternal Available memory of 0 is smaller than requested bytes of 9", "out of memory"),
        ("Failed to allocate memory for requested buffer of size 1073741824", "out of memory"),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", "out of memory"),
        ("CUDA error cudaErrorMemoryAllocation:out of memory", "out of memory"),
        ("CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "out of memory"),
        ("std::bad_alloc", "out of memory"),
        ("Non-zero status code returned while running Expand node: invalid expand shape", "other"),
        ("", "other"),
    ],
)
def test_other_errors(text: str, kind: Kind) -> None:
    assert kind_of(RuntimeError(text)) == kind
    assert kind_of(MemoryError(text)) == ("lost" if kind == "lost" else "out of memory")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA failure 209: no kernel image is available for execution on the device", True),
        ("CUDA error cudaErrorNoKernelImageForDevice:broken", True),
        ("CUDA failure 700: an illegal memory access was encountered", False),
    ],
)
def test_code_that_is_missing(text: str, expected: bool) -> None:
    assert lacks_code(RuntimeError(text)) is expected
