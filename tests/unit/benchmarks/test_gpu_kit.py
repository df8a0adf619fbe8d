"""The GPU kit: code taken out of libraries, stages with limits, and a rehearsal of the whole kit
without a GPU.
"""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.authors.gpu_kit import run
from benchmarks.authors.gpu_kit.fatbin import prune
from benchmarks.harness import tables
from benchmarks.harness.common import Json
from tests.helpers.live import ROOT

PTX = 1
MACHINE_CODE = 2
OTHER = 8


def container(*entries: tuple[int, int, bytes]) -> bytes:
    """A fat binary of (kind, architecture, code)."""
    parts = [
        struct.pack("<HHIQ12xI32x", kind, 0, 64, len(code), arch) + code
        for kind, arch, code in entries
    ]
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, sum(map(len, parts))) + b"".join(parts)


@pytest.mark.parametrize(
    ("arch", "kept"),
    [(90, {"a90", "p75", "o75"}), (86, {"a80", "a86", "p75", "o75"}), (80, {"a80", "p75", "o75"})],
)
def test_only_the_code_that_a_gpu_runs_is_left_and_nothing_moves(arch: int, kept: set[str]) -> None:
    code = [
        (MACHINE_CODE, "a", 75),
        (MACHINE_CODE, "a", 80),
        (MACHINE_CODE, "a", 86),
        (MACHINE_CODE, "a", 90),
    ]
    code += [(MACHINE_CODE, "a", 120), (PTX, "p", 75), (PTX, "p", 120), (OTHER, "o", 75)]
    entries = [(kind, number, f"{letter}{number}".encode()) for kind, letter, number in code]
    outside = b"text" + struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 2**40) + b"no container"
    library = bytearray(
        outside + container(*entries[:3]) + b"between" + container(*entries[3:]) + outside[:12]
    )
    before = bytes(library)
    prune(library, arch)
    assert {text.decode() for _, _, text in entries if text in library} == kept
    for _, _, text in entries:
        before = before if text in library else before.replace(text, bytes(len(text)))
    assert bytes(library) == before


def results(folder: Path) -> Json:
    result = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    assert isinstance(result, dict)
    return result


def outcomes(folder: Path) -> dict[str, str]:
    return {line["stage"]: line["outcome"] for line in results(folder)["stages"]}


def test_a_stage_ends_at_its_limit_and_what_was_done_stays(tmp_path: Path) -> None:
    hang = tmp_path / "hang.sh"
    result = tmp_path / "result.json"
    hang.write_text(f"sleep 600 &\necho $! > {tmp_path}/child\necho begun\nwait\n")
    target = {"what": "a", "sign": "≥", "bound": 1, "unit": "", "measured": 2, "met": True}
    result.write_text(
        json.dumps({"targets": [target], "sizes": [{"rows": 1}], "device": {"cudnn": "9"}})
    )
    stages = {
        "first-row": (60.0, f"cp {result} {{results}}/{{name}}.json"),
        "seen": (60.0, f"cp {{results}}/gpu.json {tmp_path}/seen"),
        "hangs": (1.0, f"sh {hang}"),
        "fails": (60.0, "false"),
        "last": (60.0, "true {word}"),
    }
    assert run.run(stages, tmp_path / "results", word="") == 1
    ends = {
        "first-row": "passed",
        "seen": "passed",
        "hangs": "over its limit",
        "fails": "status 1",
        "last": "passed",
    }
    assert outcomes(tmp_path / "results") == ends
    assert "begun" in (tmp_path / "results" / "gpu.log").read_text()
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"
    found = json.loads((tmp_path / "seen").read_text())
    assert [line["outcome"] for line in found["stages"]] == ["passed", "cut off"]
    for each in (found, results(tmp_path / "results")):
        assert each["first-row"] == [{"rows": 1}]
        assert each["targets"] == [target | {"what": "first-row: a"}]
        assert each["device"]["cudnn"] == "9"


def test_without_a_first_row_nothing_else_is_tried(tmp_path: Path) -> None:
    assert run.run({"first-row": (60, "false"), "next": (60, "true")}, tmp_path) == 1
    assert outcomes(tmp_path) == {"first-row": "status 1"}


def start(kit: Path, *options: str, path: str = os.defpath) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", str(kit / "kit.py"), *options]
    return subprocess.run(
        command, cwd=kit, env={"PATH": path}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("gpu-kit-py{}.{}.tar.xz.00", b"other", "is damaged: copy it again"),
        ("gpu-kit-py{}.{}.tar.xz.00", None, "No such file"),
        ("gpu-kit-py3.1.tar.xz.00", b"", "is for another Python than {}.{}\n"),
    ],
)
def test_a_part_that_cannot_be_used_is_named(
    name: str, data: bytes | None, says: str, tmp_path: Path
) -> None:
    part = name.format(*sys.version_info)
    (tmp_path / "kit.py").write_bytes((ROOT / "benchmarks/authors/gpu_kit/kit.py").read_bytes())
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {part}\n")
    if data is not None:
        (tmp_path / part).write_bytes(data)
    before = set(tmp_path.iterdir())
    done = start(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert part in done.stderr
    assert says.format(*sys.version_info) in done.stderr
    assert set(tmp_path.iterdir()) == before


# In place of pip: copies what the locks name out of this environment, and the runtime for CPUs for
# that for GPUs.
INSTALL = """
import re, shutil, sys
from importlib.metadata import distribution
from pathlib import Path
needs, site = (Path(sys.argv[sys.argv.index(option) + 1]) for option in ("-r", "--target"))
for name in re.findall(r"(?m)^([\\w.-]+)==", needs.read_text()):
    found = distribution(name.removesuffix("-gpu"))
    for file in (file for file in found.files if ".." not in file.parts):
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(found.locate_file(file), site / file)
"""
DRIVER = (
    "#!/bin/sh\ncase $1 in --query*) echo 'Stand-in, 580.65.06, 81559 MiB, 700 W, 1980 MHz, "
    "1 MiB' ;; esac\n"
)


@pytest.mark.slow
def test_a_kit_runs_all_stages_with_nothing_but_python(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    kit = tmp_path / "kit"
    programs.mkdir()
    (tmp_path / "install.py").write_text(INSTALL)
    python = (
        f'case "$*" in *" install "*) set -- {tmp_path}/install.py "$@" ;; esac\nexec '
        f'{sys.executable} "$@"\n'
    )
    for name, text in (("python", f"#!/bin/sh\n{python}"), ("nvidia-smi", DRIVER)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    env = os.environ | {
        "BIN": str(programs),
        "ARCH": "90",
        "KIT_PYTHON": running,
        "CUDA": "machine",
        "XZ_OPT": "-0",
    }
    assert (
        subprocess.run(
            [ROOT / "benchmarks/authors/gpu_kit/build", kit], env=env | {"ARCH": "70"}, check=False
        ).returncode
        == 1
    )
    subprocess.run([ROOT / "benchmarks/authors/gpu_kit/build", kit], env=env, check=True)
    assert max(file.stat().st_size for file in kit.iterdir()) <= 60 * 2**20
    done = start(kit, "--device", "cpu", "--quick", path=f"{programs}{os.pathsep}{os.defpath}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcomes(kit / "results") == dict.fromkeys(run.STAGES, "passed")
    result = results(kit / "results")
    assert {
        line["rows"] for name in ("service-1", "service-4", "service-8") for line in result[name]
    } == {1, 64}
    assert "Stand-in, 81559 MiB, driver 580.65.06" in tables.render(result)
