import pytest

from service.runtime.devices import STICKY, Kind, kind_of, lacks_code


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
        ("CUDA failure 7000: no such thing", "device"),
        ("CUDA failure 720: too many blocks in cooperative launch", "device"),  # one call's fault
        ("CUDA failure 900: operation not permitted when stream is capturing", "device"),
        ("CUDA error cudaErrorInvalidConfiguration:invalid configuration argument", "device"),
        ("CUDA error cudaErrorAssertion: not a name of CUDA", "device"),
        ("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0", "device"),
        ("CUBLAS failure 14: CUBLAS_STATUS_INTERNAL_ERROR ; GPU=0", "device"),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", "device"),
        ("driver says CUDA_ERROR_ILLEGAL_ADDRESS", "device"),
        ("CUDA failure 2: out of memory ; GPU=0", "out of memory"),
        ("CUDA error cudaErrorMemoryAllocation:out of memory", "out of memory"),
        ("CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "out of memory"),
        ("std::bad_alloc", "out of memory"),
        ("Non-zero status code returned while running Expand node: invalid expand shape", "other"),
        ("", "other"),
    ],
)
def test_other_errors(text: str, kind: Kind) -> None:
    assert kind_of(RuntimeError(text)) == kind


def test_pythons_own_error_of_memory() -> None:
    assert kind_of(MemoryError()) == "out of memory"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA failure 209: no kernel image is available for execution on the device", True),
        ("CUDA error cudaErrorNoKernelImageForDevice:broken", True),
        ("CUDA failure 98: invalid device function", True),
        ("CUDA failure 222: the provided PTX was compiled with an unsupported toolchain.", True),
        ("CUDA failure 700: an illegal memory access was encountered", False),
    ],
)
def test_code_that_is_missing(text: str, expected: bool) -> None:
    assert lacks_code(RuntimeError(text)) is expected
