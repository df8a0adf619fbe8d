"""What onnxruntime is asked for, and what happens when it gives something else. No GPU: its sessions are stand-ins."""

import ctypes
import os
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from service.artifact.card import from_metadata
from service.domain.errors import StartupError
from service.runtime import session as sessions
from service.runtime.session import (
    CPU,
    CUDA,
    TENSORRT,
    CudaOptions,
    CudaUnavailable,
    Profile,
    cuda_options,
    cuda_session,
)
from tests.helpers.onnx_models import make_card, model_bytes

PROFILE = Profile(digest="0123456789abcdef0123", shape=(3, 64, 64), buckets=(1, 8, 32))


class Session:
    """Remembers what it was asked for; starts with ``loads``, or with all that was asked for."""

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

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fresh)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: name)
    return Fresh


def test_cuda_alone_and_nothing_to_fall_back_to(gpu: type[Session]) -> None:
    session = cuda_session(b"model", CudaOptions())
    assert isinstance(session, gpu)
    assert session.data == b"model"
    assert [name for name, _ in session.providers] == [CUDA]  # not the CPU: onnxruntime would refuse the entry below
    assert session.enable_fallback == 0
    assert session.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert session.options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert (session.options.intra_op_num_threads, session.options.inter_op_num_threads) == (1, 1)
    assert not session.options.use_deterministic_compute


def test_the_options_of_cuda() -> None:
    plain = {
        "device_id": "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
    }
    assert cuda_options(CudaOptions()) == plain
    assert cuda_options(CudaOptions(deterministic=True)) == plain | {"cudnn_conv_algo_search": "HEURISTIC"}
    assert cuda_options(CudaOptions(half=True)) == plain | {"use_tf32": "1"}  # "0" forbids float16 its tensor cores
    assert cuda_options(CudaOptions(graphs=True)) == plain | {"enable_cuda_graph": "1"}
    assert cuda_options(CudaOptions(memory_mib=2048)) == plain | {"gpu_mem_limit": "2147483648"}


def test_deterministic_is_told_the_session_too(gpu: type[Session]) -> None:
    assert cuda_session(b"", CudaOptions(deterministic=True)).options.use_deterministic_compute


def test_tensorrt_comes_first_with_its_cache_and_one_profile_for_all_buckets(
    gpu: type[Session], tmp_path: Path
) -> None:
    session = cuda_session(b"", CudaOptions(tensorrt_cache=tmp_path / "engines", half=True), PROFILE)
    (first, options), (second, _) = session.providers
    assert (first, second) == (TENSORRT, CUDA)
    folder = tmp_path / "engines" / f"0123456789abcdef-ort{onnxruntime.__version__}"
    assert folder.is_dir()
    assert options == {
        "device_id": "0",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": "x:1x3x64x64",
        "trt_profile_opt_shapes": "x:32x3x64x64",
        "trt_profile_max_shapes": "x:32x3x64x64",
        "trt_fp16_enable": "True",
    }
    assert session.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


def test_tensorrt_is_told_half_precision_only_where_it_is(gpu: type[Session], tmp_path: Path) -> None:
    session = cuda_session(b"", CudaOptions(tensorrt_cache=tmp_path), PROFILE)
    assert session.providers[0][1]["trt_fp16_enable"] == "False"


def test_a_cache_that_cannot_be_is_refused(gpu: type[Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StartupError, match=r"^IGN_TENSORRT_CACHE=.*file: Not a directory$") as caught:
        cuda_session(b"", CudaOptions(tensorrt_cache=file), PROFILE)
    assert not isinstance(caught.value, CudaUnavailable)  # the setting is wrong, not the device
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StartupError, match="cannot be written"):
        cuda_session(b"", CudaOptions(tensorrt_cache=tmp_path), PROFILE)
    assert not gpu.made


@pytest.mark.parametrize(
    ("there", "cuda", "says"),
    [
        ([CPU], CudaOptions(), "CUDA cannot be used: this onnxruntime is built without it"),
        ([CUDA, CPU], CudaOptions(tensorrt_cache=Path("unused")), "TensorRT cannot be used: this onnxruntime is built"),
    ],
)
def test_a_provider_that_is_not_built_in(
    there: list[str], cuda: CudaOptions, says: str, gpu: type[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    with pytest.raises(CudaUnavailable, match=says):
        cuda_session(b"", cuda, PROFILE)
    assert not gpu.made
    assert not Path("unused").exists()


@pytest.mark.parametrize(
    ("loads", "says"),
    [
        ([], "TensorRT cannot be used: its provider did not load"),
        ([CUDA], "TensorRT cannot be used: its provider did not load"),
        ([TENSORRT], "CUDA cannot be used: its provider did not load"),
    ],
)
def test_a_provider_that_left_in_silence(loads: list[str], says: str, gpu: type[Session], tmp_path: Path) -> None:
    gpu.loads = loads
    with pytest.raises(CudaUnavailable, match=says):
        cuda_session(b"", CudaOptions(tensorrt_cache=tmp_path), PROFILE)


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
        (
            "/src/onnxruntime/python/state.cc:729 void onnxruntime::python::Register(PySessionOptions&, const "
            "onnxruntime::ProviderOptions&) Please install TensorRT libraries, make sure they're in the PATH",
            "Please install TensorRT libraries, make sure they're in the PATH",
        ),
        ("Load model from /secret/model.onnx failed\nmore", "Load model from … failed"),
        ("", "RuntimeError"),
    ],
)
def test_a_message_is_what_an_operator_can_use(said: str, line: str) -> None:
    assert sessions.one_line(RuntimeError(said)) == line


def test_metadata_needs_no_device() -> None:
    assert from_metadata(sessions.metadata(model_bytes(make_card())))[0] == make_card()
