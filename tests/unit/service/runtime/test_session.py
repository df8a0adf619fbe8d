"""CUDA sessions, the driver and their messages. All are fakes, so no GPU is needed."""

import ctypes
from typing import Any

import onnxruntime
import pytest

from service.runtime import session
from service.runtime.session import (
    CPU,
    CUDA,
    STICKY,
    CudaOptions,
    CudaUnavailable,
    Kind,
    cuda_session,
    gpu_is_visible,
    kind_of,
    short_message,
)

ON_CPU = (
    "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to "
    "the default CPU EP, but fallback to CPU EP has been explicitly disabled by the user."
)


class Session:
    """Has its arguments. If ``left_over``, nodes are left to the CPU."""

    left_over = False

    def __init__(
        self,
        data: bytes,
        options: Any,
        *,
        providers: list[tuple[str, dict[str, str]]],
        enable_fallback: int,
    ):
        self.options = options
        self.providers = providers
        self.enable_fallback = enable_fallback
        if (
            self.left_over
            and options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        ):
            raise RuntimeError(ON_CPU)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that has every provider."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: name)
    monkeypatch.setattr(session, "gpu_is_visible", lambda: True)


def test_cuda_has_no_cpu_fallback() -> None:
    started = cuda_session(b"model", CudaOptions())
    ((name, options),) = started.providers  # onnxruntime refuses the entry below beside the CPU
    assert (name, options["use_tf32"]) == (CUDA, "0")
    # forbids tensor cores
    assert cuda_session(b"model", CudaOptions(half=True)).providers[0][1]["use_tf32"] == "1"
    assert started.enable_fallback == 0
    assert started.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


@pytest.mark.parametrize(
    ("visible", "printed", "says"),
    [
        (
            True,
            "",
            "CUDA cannot be used: This session contains graph nodes that are assigned to the "
            "default CPU EP",
        ),
        (False, "", r"CUDA cannot be used: its provider did not load; is NVIDIA's driver there\?$"),
        (
            True,
            "Failed to load libcublasLt.so.13: no such file\nFailed to load others",
            r"CUDA cannot be used: its provider did not load: Failed to load "
            r"libcublasLt.so.13: no such file$",
        ),
    ],
)
def test_nodes_left_to_the_cpu_are_told_apart_from_a_provider_that_is_not_there(
    visible: bool,
    printed: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "gpu_is_visible", lambda: visible)
    monkeypatch.setattr(Session, "left_over", True)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(printed, end=""))  # noqa: T201
    with pytest.raises(CudaUnavailable, match=says):
        cuda_session(b"", CudaOptions())


def test_without_cudnn_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        assert "cudnn" in name
        raise OSError(f"/secret/{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(
        CudaUnavailable,
        match=r"^CUDA cannot be used: cuDNN 9 does not load \(extra `gpu` has it\)$",
    ):
        cuda_session(b"", CudaOptions())


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : "
            "/src/core/providers/cuda/cuda_call.cc:129 std::conditional_t<THRW, void, "
            "Status> onnxruntime::CudaCall(ERRTYPE, const char*, int) [with ERRTYPE = "
            "cudaError; bool THRW = true] CUDA failure 35: CUDA driver is insufficient ; "
            "GPU=-1 ; hostname=secret",
            "CUDA failure 35: CUDA driver is insufficient",
        ),
        (
            "/src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static "
            "onnxruntime::CUDAExecutionProviderInfo "
            "onnxruntime::CUDAExecutionProviderInfo::FromProviderOptions("
            "const onnxruntime::ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : "
            "provider_options_utils.h:187 Parse Failed to parse "
            'provider option "device_id": CUDA failure 35: CUDA driver is insufficient ; GPU=-1 ; '
            "expr=count(&n); \n",
            'Failed to parse provider option "device_id": CUDA failure 35: CUDA driver is '
            "insufficient",
        ),
        ("Load model from /secret/model.onnx failed\nmore", "Load model from … failed"),
        ("", "RuntimeError"),
    ],
)
def test_a_message_is_what_an_operator_can_use(said: str, line: str) -> None:
    assert short_message(RuntimeError(said)) == line


@pytest.mark.parametrize(
    ("gpus", "failing", "is_visible"),
    [
        (1, "", True),
        (0, "", False),
        (1, "load", False),
        (1, "cuInit", False),
        (1, "cuDeviceGetCount", False),
    ],
)
def test_the_driver_tells_of_a_visible_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, failing: str, is_visible: bool
) -> None:
    class Driver:
        def __init__(self, name: str) -> None:
            if failing == "load":
                raise OSError(f"{name}: cannot open shared object file")

        def cuInit(self, flags: int) -> int:
            return 3 if failing == "cuInit" else 0

        def cuDeviceGetCount(self, count: Any) -> int:
            count._obj.value = gpus
            return 1 if failing == "cuDeviceGetCount" else 0

    monkeypatch.setattr(ctypes, "CDLL", Driver)
    assert gpu_is_visible() == is_visible


@pytest.mark.parametrize(("number", "name"), STICKY.items())
def test_every_error_that_stays_is_recognised_by_number_and_by_name(number: int, name: str) -> None:
    for text in (
        f"CUDA failure {number}: it is broken ; GPU=0 ; hostname=here ; file=cuda_call.cc ; "
        f"line=129",
        f"Non-zero status code returned while running Conv node. Status Message: CUDA "
        f"failure {number}: broken",
        f"Non-zero status code returned while running Mul node. Name:'/m' CUDA error "
        f"cudaError{name}:broken",
    ):
        assert kind_of(RuntimeError(text)) == "lost"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA failure 720: too many blocks in cooperative launch", "device"),  # one call's fault
        ("CUDA failure 900: operation not permitted when stream is capturing", "device"),
        ("CUDA error cudaErrorAssertion: not a name of CUDA", "device"),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", "device"),
        ("CUDA failure 2: out of memory ; GPU=0", "out of memory"),
        (
            "BFCArena::AllocateRawInternal Available memory of 0 is smaller than requested "
            "bytes of 9",
            "out of memory",
        ),
        ("Failed to allocate memory for requested buffer of size 1073741824", "out of memory"),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", "out of memory"),
        (
            "CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "out of memory",
        ),
        ("std::bad_alloc", "out of memory"),
        ("Non-zero status code returned while running Expand node: invalid expand shape", "other"),
        ("", "other"),
    ],
)
def test_other_errors(text: str, kind: Kind) -> None:
    assert kind_of(RuntimeError(text)) == kind
    assert kind_of(MemoryError(text)) == ("lost" if kind == "lost" else "out of memory")
