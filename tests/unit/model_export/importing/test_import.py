"""`import`: networks of other programs become models, or are refused with one line that says
why.
"""

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from model_export import cli
from model_export.importing import command
from service.models.loaded import LoadedModel
from service.models.repository import Repository
from service.runtime.onnx_model import OnnxModel
from tests.helpers import foreign_torch
from tests.helpers.folders import contents
from tests.helpers.foreign import (
    Network,
    autoencoder,
    batch_normalised,
    dncnn,
    endless,
    fixed_batch,
    keras,
    plain,
    two_inputs,
)
from tests.helpers.foreign_torch import Net

in_a_child = command._in_child


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_in_child", in_a_child)


def run_import(*words: str, name: str = "net") -> int:
    return cli.main(["import", *" ".join(words).split(), "--name", name, "--models", "models"])


def loaded(ref: str = "net/1") -> LoadedModel:
    """The model as the service verifies it."""
    repository = Repository(
        Path("models"), lambda data: [OnnxModel(data, device="cpu")], default="net"
    )
    return repository.load(ref)


def in_one_line(capsys: pytest.CaptureFixture[str], status: int, *words: str) -> None:
    said = capsys.readouterr().err
    assert (status, said.count("\n"), " import: " in said) == (2, 1, True), said
    for word in words:
        assert word in said
    assert not Path("models/net/1").exists()


def levels(*shape: int) -> Any:
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.float32)


def test_a_card_says_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    dncnn().write(Path("net.onnx"))
    assert run_import("net.onnx --residual --range 0,1 --licence MIT --title Denoiser") == 0
    assert "imported models/net/1; next: " in capsys.readouterr().out
    card = loaded().card
    assert (card.schema_version, card.shape, card.range, card.noise) == (
        2,
        (1, 20, 28),
        (0.0, 1.0),
        None,
    )
    assert (card.licence, card.title) == ("MIT", "Denoiser")
    assert card.origin is not None
    assert (card.origin.file, card.origin.folded[0]) == ("net.onnx", "y = x − network(x)")


@pytest.mark.parametrize("opens", [True, False])
def test_a_batch_of_one_becomes_any(opens: bool) -> None:
    fixed_batch(opens=opens).write(Path("net.onnx"))
    assert run_import("net.onnx") == 0
    x = levels(6, 1, 8, 8) / 127.5 - 1
    expected = np.concatenate([plain("net.onnx", row[None]) for row in x])
    np.testing.assert_allclose(loaded().instances[0].run(x), expected, atol=1e-6)


def nested_functions(depth: int, last: str) -> bytes:
    """A function of the file calls the next one twice, and so on; the last one makes ``last`` of
    `u`.
    """
    bodies = [f"v = own.f{number}(u) w = own.f{number}(v)" for number in range(1, depth)] + [
        f"w = {last}(u)"
    ]
    text = (
        '<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float[n,1,8,8] x) => '
        "(float[n,1,8,8] y) {y = own.f0(x)}"
    )
    for number, body in enumerate(bodies):
        text += f'<domain: "own", opset_import: ["": 17, "own": 1]> f{number} (u) => (w) {{{body}}}'
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        (lambda: nested_functions(40, "Tanh"), "", ("549,755,813,888 operators",)),
        (lambda: nested_functions(3, "own.f0"), "", ("without end",)),
        (two_inputs().SerializeToString, "", ("2 inputs (data, sigma)",)),
        (
            Network(["n", 1, "h", "w"]).conv(1, 4).add("DepthToSpace", blocksize=2),
            "",  # and it is not asked for --range first
            ("1×256×256 of 1×128×128", "docs/import.md"),
        ),
        (batch_normalised(), "", ("rows depend on each other", "model.eval()")),
        (
            Network(["n", 1, 8, 8]).add("DeformConv2D", domain="org.example"),
            "",
            ("DeformConv2D of the domain org.example",),
        ),
        (
            Network(["n", 1, 8, 8]).conv(1, 1).add("Sigmoid").add("Mul", 255.0),
            "--range 0,1",
            ("--range", "fit"),
        ),
        (autoencoder(), "--range -1,1", ("--range", "0…1")),
        (dncnn(), "", ("--range 0,1",)),
        (dncnn(), "--range 0,1 --bgr", ("--bgr", "grey")),
        (dncnn(), "--range 0,1 --std 1,1,1", ("--std", "3 values for 1 channels")),
        (dncnn(), "--range 0,1 --std 0", ("--std",)),
        (dncnn(), "--range 0,1 --shape 1,28,28", ("--shape", "any×1×20×28")),
        (keras(), "--noise gaussian", ("--noise",)),
        (Network(["n", 1, "h", 8]).conv(1, 1).add("Tanh"), "", ("any×1×any×8", "--shape")),
        (Network(["n", 3, 8, 3]).conv(3, 3).add("Tanh"), "", ("--layout",)),
        (Network(["n", 4, 8, 8]).conv(4, 4).add("Tanh"), "", ("any×4×8×8", "colour (3)")),
        (Network([2, 1, 8, 8]).conv(1, 1).add("Tanh"), "", ("float 2×1×8×8", "batch of 1")),
        (Network(["n", 128]).add("Tanh"), "", ("any×128", "four dimensions")),
        (
            Network(["n", 1, 8, 8]).add("RandomNormalLike").add("Tanh"),
            "",
            ("same result every time",),
        ),
        (Network(["n", 1, 8, 8]).add("Sub", 2.0).add("Sqrt"), "--range 0,1", ("not finite",)),
        (Network(["n", 1, 8, 8]).add("NoSuch"), "", ("NoSuch",)),
        (lambda: b"\x08\x08:", "", ("not an ONNX file",)),
        (lambda: b"PK\x03\x04", "", ("checkpoint", "--module")),
    ],
)
def test_what_f_cannot_be(
    network: Network | Callable[[], bytes],
    options: str,
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = network.model().SerializeToString() if isinstance(network, Network) else network()
    Path("net.onnx").write_bytes(data)
    in_one_line(
        capsys,
        run_import("net.onnx", options),
        *words,
        "--" if words[0].startswith("--") else "net.onnx: ",
    )


@pytest.mark.usefixtures("_child")
def test_a_graph_that_does_not_end_is_refused_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    endless().write(Path("net.onnx"))
    in_one_line(
        capsys, run_import("net.onnx --timeout 1"), "net.onnx", "more than 1 s", "--timeout"
    )


@pytest.mark.usefixtures("_child")
def test_a_crash_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.py").write_text("import os\nos._exit(3)\n")
    in_one_line(
        capsys,
        run_import("net.pt --module net.py:Net --shape 1,8,8"),
        "net.pt",
        "crashed",
    )


def test_weights_beside_the_file_are_folded_in(capsys: pytest.CaptureFixture[str]) -> None:
    model = autoencoder().model()
    autoencoder().write(Path("inside.onnx"))
    onnx.save_model(
        model, "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0
    )
    Path("net.data").rename("elsewhere")
    in_one_line(capsys, run_import("net.onnx"), "net.onnx", "net.data")
    Path("elsewhere").rename("net.data")
    assert run_import("net.onnx") == 0
    x = levels(2, 3, 32, 32) / 255
    np.testing.assert_array_equal(loaded().instances[0].run(x), plain("inside.onnx", x))


def test_a_dry_run_writes_nothing_and_a_version_is_not_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dncnn().write(Path("net.onnx"))
    words = "net.onnx --residual --range 0,1"
    assert run_import(words, "--dry-run") == 0
    assert not Path("models").exists()
    assert capsys.readouterr().out.splitlines()[-1].startswith("checked: ")
    assert run_import(words, "--title", 41 * "a") == 2
    assert "import: --title 'aaa" in capsys.readouterr().err
    assert (run_import(words), run_import(words)) == (0, 0)
    assert sorted(contents(Path("models/net"))) == [
        f"{v}/{f}" for v in (1, 2) for f in ("golden.npz", "model.onnx")
    ]
    assert run_import(words, "--version", "1") == 2
    assert "models/net/1 exists" in capsys.readouterr().err


def test_commands_about_a_training_refuse_what_had_none(capsys: pytest.CaptureFixture[str]) -> None:
    autoencoder().write(Path("net.onnx"))
    assert run_import("net.onnx") == 0
    for words in (
        ("card", "--out", "net.md"),
        ("evaluate", "--data", "absent"),
        ("verify", "--run", "absent"),
    ):
        assert cli.main([*words, "--model", "models/net/1"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_drift_and_distance_are_measured_on_images() -> None:
    Network(["n", 1, 8, 8]).add("Mul", 0.5).add("Clip", np.float64(0), np.float64(1)).write(
        Path("net.onnx")
    )
    Path("images").mkdir()
    for i in range(20):
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(f"images/{i:02}.png")
    assert run_import("net.onnx --data images") == 0
    card = loaded().card
    values = np.arange(20) * 10 / 255
    images = card.quality["images"]
    assert (images["n"], images["distance"]) == (20, pytest.approx(values.mean() / 2, abs=1e-6))
    assert images["drift"] == pytest.approx(values.mean() / 4, abs=1e-6)
    assert card.percentile(values[-1] / 2) == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        (("--mean", "0.5", "--std", "0.5"), (-1.0, 1.0)),
        (("--mean", "0.1,0.2,0.3", "--std", "0.2,0.3,0.4"), (0.0, 1.0)),
    ],
)
def test_mean_and_deviation(options: tuple[str, ...], ends: tuple[float, float]) -> None:
    Network(["n", 3, 8, 8]).conv(3, 4).add("Relu").conv(4, 3).write(Path("net.onnx"))
    assert run_import("net.onnx", *options) == 0
    mean, std = (np.array(text.split(","), np.float32).reshape(-1, 1, 1) for text in options[1::2])
    x = levels(3, 3, 8, 8) / 255
    model = loaded()
    low, high = model.card.range
    y = model.instances[0].run(x * np.float32(high - low) + np.float32(low))
    expected = (plain("net.onnx", (x - mean) / std) * std + mean).clip(0, 1)
    np.testing.assert_allclose((y - low) / (high - low), expected, atol=1e-5)
    assert (low, high) == pytest.approx(ends)


def test_mean_and_deviation_of_the_input_alone() -> None:
    Network(["n", 1, 8, 8]).conv(1, 1).add("Sigmoid").write(Path("net.onnx"))
    assert run_import("net.onnx --mean 0.1307 --std 0.3081") == 0
    x = levels(3, 1, 8, 8) / 255
    expected = plain("net.onnx", (x - np.float32(0.1307)) / np.float32(0.3081))
    np.testing.assert_allclose(loaded().instances[0].run(x), expected, atol=1e-6)


TORCH = ("net.pt", "--module", "net.py:Net", "--shape", "1,12,8")


@pytest.fixture
def network() -> Net:
    """The network of `net.py`, with statistics in its batch norm."""
    Path("net.py").write_bytes(Path(foreign_torch.__file__).read_bytes())
    torch.manual_seed(1)
    made = Net()
    made(3 * torch.randn(20, 1, 12, 8))
    return made


def test_checkpoints_that_do_not_fit(network: Net, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(1, 1), "net.pt")
    in_one_line(capsys, run_import(*TORCH), "net.pt", "state_dict()")
    torch.save({"other": torch.zeros(3)}, "net.pt")
    in_one_line(capsys, run_import(*TORCH), "net.pt", "encode.0.weight")
    torch.save(network.state_dict(), "net.pt")
    in_one_line(capsys, run_import(*TORCH[:2], "net.py:None", *TORCH[3:]), "net.py", "'None'")
    in_one_line(capsys, run_import(*TORCH[:3]), "--shape")
    in_one_line(capsys, run_import("absent.pt", *TORCH[1:]), "absent.pt")


def test_a_network_may_have_half_of_the_memory_of_the_machine() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        command.limit_memory()
        assert (
            0
            < resource.getrlimit(resource.RLIMIT_DATA)[0]
            < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        )
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.usefixtures("_child")
def test_a_child_process_gives_the_files() -> None:
    dncnn().write(Path("net.onnx"))
    words = "net.onnx --residual --range 0,1"
    assert run_import(words) == 0
    assert contents(Path("models")).keys() == {"net/1/model.onnx", "net/1/golden.npz"}
