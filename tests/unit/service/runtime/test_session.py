"""Errors of CUDA sessions and their messages. The sessions are fakes, so no GPU is needed."""

import ctypes
from typing import Any

import onnxruntime
import pytest

from service.runtime.session import CPU, CUDA, CudaOptions, CudaUnavailable, cuda_session, short_message


class Session:
    """Records its arguments; ``loads`` are the providers it starts with, by default those requested."""

    loads: list[str] | None = None
    raises: Exception | None = None
    made: "list[Session]"

    def __init__(self, data: bytes, options: Any, *, providers: list[tuple[str, dict[str, str]]], enable_fallback: int):
        self.data, self.options, self.providers, self.enable_fallback = data, options, providers, enable_fallback
        self.made.append(self)
        if self.raises is not None:
            raise self.raises

    def get_providers(self) -> list[str]:
        asked = [name for name, _ in self.providers]
        return [*(asked if self.loads is None else self.loads), CPU]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    """An onnxruntime that has every provider."""

    class Fresh(Session):
        made: "list[Session]" = []  # noqa: RUF012 - one for each test

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fresh)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: name)
    return Fresh


def test_cuda_has_no_cpu_fallback(gpu: type[Session]) -> None:
    session = cuda_session(b"model", CudaOptions())
    assert isinstance(session, gpu)
    ((name, options),) = session.providers  # onnxruntime refuses the entry below beside the CPU
    assert (name, options["use_tf32"]) == (CUDA, "0")
    assert cuda_session(b"model", CudaOptions(half=True)).providers[0][1]["use_tf32"] == "1"  # forbids tensor cores
    assert session.enable_fallback == 0
    assert session.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


ON_CPU = (
    "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU EP, "
    "but fallback to CPU EP has been explicitly disabled by the user."
)


@pytest.mark.parametrize(
    ("loads", "printed", "says"),
    [
        ([CUDA], "", "CUDA cannot be used: This session contains graph nodes that are assigned to the default CPU EP"),
        ([], "", r"CUDA cannot be used: its provider did not load; is NVIDIA's driver there\?$"),
        (
            [],
            "Failed to load libcublasLt.so.13: no such file\nFailed to load others",
            r"CUDA cannot be used: its provider did not load: Failed to load libcublasLt.so.13: no such file$",
        ),
    ],
)
def test_nodes_left_to_the_cpu_are_told_apart_from_a_provider_that_is_not_there(
    loads: list[str],
    printed: str,
    says: str,
    gpu: type[Session],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Strict(gpu):  # type: ignore[misc, valid-type]
        def __init__(self, data: bytes, options: Any, **rest: Any) -> None:
            super().__init__(data, options, **rest)
            if options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1":
                raise RuntimeError(ON_CPU)

    gpu.loads = loads
    monkeypatch.setattr(onnxruntime, "InferenceSession", Strict)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(printed, end=""))  # noqa: T201
    with pytest.raises(CudaUnavailable, match=says):
        cuda_session(b"", CudaOptions())
    assert "CUDA session failed" in caplog.text


def test_without_cudnn_it_does_not_start(gpu: type[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        assert "cudnn" in name
        raise OSError(f"/secret/{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(CudaUnavailable, match=r"^CUDA cannot be used: cuDNN 9 does not load \(extra `gpu` has it\)$"):
        cuda_session(b"", CudaOptions())
    assert gpu.made  # onnxruntime itself has nothing against it


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : /src/onnxruntime/core/providers/cuda/cuda_call.cc:129 "
            "std::conditional_t<THRW, void, Status> onnxruntime::CudaCall(ERRTYPE, const char*, int) "
            "[with ERRTYPE = cudaError; bool THRW = true] CUDA failure 35: CUDA driver version is insufficient for "
            "CUDA runtime version ; GPU=-1 ; hostname=secret ; file=/src/x.cc ; line=280 ; expr=cudaSetDevice(0);",
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
        ),
        (
            "/src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static onnxruntime::"
            "CUDAExecutionProviderInfo onnxruntime::CUDAExecutionProviderInfo::FromProviderOptions(const onnxruntime::"
            "ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : provider_options_utils.h:187 Parse Failed to parse "
            'provider option "device_id": CUDA failure 35: CUDA driver version is insufficient for CUDA runtime '
            "version ; GPU=-1 ; hostname=vm ; file=/src/onnxruntime/core/x.cc ; line=70 ; "
            "expr=cudaGetDeviceCount(&num_devices); \n",
            'Failed to parse provider option "device_id": CUDA failure 35: CUDA driver version is insufficient for '
            "CUDA runtime version",
        ),
        ("Load model from /secret/model.onnx failed\nmore", "Load model from … failed"),
        ("", "RuntimeError"),
    ],
)
def test_a_message_is_what_an_operator_can_use(said: str, line: str) -> None:
    assert short_message(RuntimeError(said)) == line
