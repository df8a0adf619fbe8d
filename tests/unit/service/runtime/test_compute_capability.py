import ctypes
from typing import Any

import pytest

from service.runtime.devices import Capability, can_run, compute_capability, missing_code


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


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((6, 1), False),
        ((7, 0), False),  # V100
        ((7, 5), True),
        ((8, 7), True),
        ((9, 0), True),
        ((10, 0), False),  # B200
        ((11, 0), False),
        ((12, 1), True),
    ],
)
def test_code_runs_on_the_same_major_version_and_later_minor_ones(capability: Capability, runs: bool) -> None:
    assert can_run(capability) is runs
