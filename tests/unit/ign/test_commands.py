"""`ign` through click's runner: its commands, their options, and what completes in a shell."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from ign.__main__ import main
from service import cli
from service.settings import Settings, load_settings, meaning_of, variable_of
from tests.helpers.live import environment
from tests.helpers.onnx_models import write_model

FIELDS = tuple(Settings.model_fields)
COMMANDS = tuple(main.list_commands(click.Context(main)))
LIGHT = ("import sys", "from ign.__main__ import main", "main(['--help'], standalone_mode=False)")
HEAVY = ("numpy", "PIL", "fastapi", "pydantic", "torch", "onnxruntime", "httpx", "uvicorn")


def ign(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(main, arguments, env=variables)


def completed(*words: str) -> list[str]:
    *before, incomplete = words
    found = ShellComplete(main, {}, "ign", "_IGN_COMPLETE").get_completions(before, incomplete)
    return [item.value for item in found]


def test_every_command_is_listed_and_has_help() -> None:
    assert {"serve", "models", "keys", "bulk"} <= set(COMMANDS)
    assert {"generate", "project", "score", "interpolate"} <= set(COMMANDS)
    assert {"data", "train", "export", "verify", "evaluate", "figures", "card"} <= set(COMMANDS)
    done = ign("--help")
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", done.output, re.MULTILINE)
        own = ign(command, "--help")
        assert (own.exit_code, f"ign {command}" in own.output) == (0, True)


def test_help_imports_nothing_heavy() -> None:
    probe = "\n".join((*LIGHT, f"print('loaded:', sorted(set({HEAVY!r}) & sys.modules.keys()))"))
    done = subprocess.run(
        [sys.executable, "-c", probe], env=environment(), capture_output=True, text=True, timeout=1800, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, str], bool]]:
    """What `ign serve` would serve, in place of serving."""
    calls: list[tuple[dict[str, str], bool]] = []

    def serve(options: dict[str, str], *, check: bool) -> int:
        calls.append((options, check))
        return 0

    monkeypatch.setattr(cli, "serve", serve)
    monkeypatch.setattr("service.server.process.leave", sys.exit)
    return calls


def other_value(field: str) -> str:
    """An allowed value that is not the default, as a variable holds it."""
    special = {
        "host": "0.0.0.0",
        "model_dir": "/srv/models",
        "model_cache": "/var/cache/ign",
        "default_model": "shapes/2",
        "versions": "mnist=3",
        "device": "cuda",
        "precision": "fp16",
        "log_format": "json",
        "site": "/srv/site",
        "api_keys_file": "/run/keys.json",
        "private_endpoints": "metrics,docs",
        "rate_limit": "20/s",
        "trusted_proxies": "10.0.0.0/8",
        "allowed_hosts": "ign.example.org",
        "cors_origins": "https://example.org",
    }
    default = Settings.model_fields[field].default
    if field in special:
        return special[field]
    return str(int(not default)) if isinstance(default, bool) else str(default + 1)


@pytest.mark.parametrize("field", FIELDS)
def test_an_option_equals_its_variable(field: str, served: list[tuple[dict[str, str], bool]]) -> None:
    value, option = other_value(field), f"--{field.replace('_', '-')}"
    if isinstance(Settings.model_fields[field].default, bool):
        arguments = [option if value == "1" else option.replace("--", "--no-")]
    else:
        arguments = [option, value]
    assert ign("serve", *arguments).exit_code == 0
    ((options, check),) = served
    assert not check
    needs = {"private_endpoints": {"IGN_API_KEYS_FILE": "k"}, "gpu_count": {"IGN_DEVICE": "cuda"}}
    needs |= {"model_memory_mib": {"IGN_DEVICE": "cpu"}, "drain_delay_s": {}}
    extra = needs.get(field, {})
    by_option = load_settings(extra | {variable_of(name): text for name, text in options.items()})
    assert by_option == load_settings(extra | {variable_of(field): value})
    assert getattr(by_option, field) != getattr(load_settings({}), field)


def test_serve_help_names_every_setting_variable_and_default() -> None:
    text = " ".join(ign("serve", "--help").output.split())
    for field in Settings.model_fields:
        for part in (f"--{field.replace('_', '-')}", f"[{variable_of(field)}; ", meaning_of(field)):
            assert part in text
    assert "[IGN_PORT; 8000]" in text
    assert "[IGN_RATE_LIMIT; off]" in text


def test_only_given_options_are_passed_on(served: list[tuple[dict[str, str], bool]]) -> None:
    assert ign("serve", "--check", IGN_PORT="not a port").exit_code == 0
    assert ign("serve", "--models", "there", "--port", "0").exit_code == 0
    assert served == [({}, True), ({"model_dir": "there", "port": "0"}, False)]


def test_a_refusal_names_the_option_that_was_given(capsys: Any) -> None:
    assert cli.serve({"port": "80a"}) == 2
    assert capsys.readouterr().err.startswith("ign-service does not start: --port='80a' is not allowed: ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["s"], ["serve", "site", "score"]),
        (["serve", "--de"], ["--default-model", "--device", "--deterministic"]),
        (["serve", "--device", ""], ["auto", "cpu", "cuda"]),
        (["generate", "--for"], ["--format", "--force"]),
        (["generate", "--format", "p"], ["png"]),
        (["bulk", "p"], ["project"]),
        (["bulk", "project", "--resize", "f"], ["fit"]),
        (["train", "--device", "c"], ["cpu", "cuda"]),
        (["keys", ""], ["add", "list", "revoke"]),
    ],
)
def test_words_complete(words: Sequence[str], expected: Sequence[str]) -> None:
    assert completed(*words) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_calls_ign(shell: str) -> None:
    done = ign("completion", shell)
    assert done.exit_code == 0
    assert f"_IGN_COMPLETE={shell}_complete" in done.output


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, str]:
    write_model(tmp_path / "models")
    return {"IGN_MODEL_DIR": str(tmp_path / "models"), "IGN_DEFAULT_MODEL": "toy", "IGN_DEVICE": "cpu"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--bogus", "ign: no option --bogus;"),
        ("fly", "ign: no command fly;"),
        ("keys fly", "ign keys: no command fly;"),
        ("serve --bogus", "ign serve: no option --bogus"),
        ("serve here", "ign serve: here: one argument too many;"),
        ("serve --device tpu", "ign serve: --device: 'tpu' is not one of 'auto', 'cpu', 'cuda';"),
        ("serve --port", "ign serve: --port: "),
        ("site", "ign site: OUT: missing;"),
        ("keys add x", "ign keys add: --file or the variable IGN_API_KEYS_FILE: missing;"),
        ("models --models nowhere", "ign models: IGN_MODEL_DIR=nowhere: no such directory"),
        ("models --models oci://host/x", "ign models: IGN_MODEL_DIR=oci://…: the service reads no registry; mount "),
        ("models push x", "ign models: push x: one argument too many;"),
        ("train --bogus 1", "ign train: no option --bogus;"),
        ("generate", "ign generate: -o/--out: missing;"),
        ("generate -o x -n many", "ign generate: -n: 'many' is no number;"),
        ("generate -o x --local --base-url y", "ign generate: --local needs no service; leave --base-url out"),
        ("project -o x --format gif y", "ign project: --format: 'gif' is not one of "),
        ("bulk generate", "ign bulk generate: OUTPUT: missing;"),
        ("bulk generate x -n 0", "ign bulk generate: -n: must be at least 1"),
        ("score nowhere.png", "ign score: nowhere.png: no such file"),
        ("train --data x", "ign train: --out: name the folder"),
    ],
)
def test_every_error_is_one_line_that_names_the_command(words: str, says: str) -> None:
    done = ign(*words.split())
    assert done.exit_code == 2
    assert done.output.startswith(says)
    assert done.output.count("\n") == 1
    assert not re.search("invalid|Error|[Uu]sage|argument is|No such", done.output)


def test_models_are_listed_from_their_cards(toy: dict[str, str]) -> None:
    models = {"IGN_MODEL_DIR": toy["IGN_MODEL_DIR"]}
    for default, mark in ((toy, "*"), (models, "*"), (models | {"IGN_DEFAULT_MODEL": "mnist"}, " ")):
        done = ign("models", **default)
        assert done.exit_code == 0
        assert done.output.startswith(f"{mark} toy/1")  # without a setting, the only one is the default
    done = ign("models", "--json", "--models", toy["IGN_MODEL_DIR"], IGN_DEFAULT_MODEL="toy/1")
    assert '"model": "toy/1"' in done.output


def test_a_card_writes_no_escapes_to_the_terminal(tmp_path: Path) -> None:
    write_model(tmp_path, description="\x1b]0;title\x07 a\nb \u202egnp")
    done = ign("models", "--models", str(tmp_path))
    assert done.output.rstrip("\n").isprintable()
    assert r"\x1b]0;title\x07 a\nb \u202egnp" in done.output


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"\x72\x02\x0a\xff"])
def test_an_unreadable_model_is_one_line(toy: dict[str, str], content: bytes | None) -> None:
    file = Path(toy["IGN_MODEL_DIR"], "toy", "1", "model.onnx")
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    done = ign("models", **toy)
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert "toy/1/model.onnx" in done.output


def test_generate_and_score_in_process(toy: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    keys = {"IGN_API_KEYS_FILE": "/nowhere", "IGN_PRIVATE_ENDPOINTS": "docs", "IGN_RATE_LIMIT": "1/m"}
    done = ign("generate", "--local", "-n", "3", "--seed", "7", "-o", str(out), **toy, **keys)
    assert done.exit_code == 0, done.output
    assert len(list(out.glob("*.png"))) == 3
    done = ign("score", "--local", str(out), **toy)
    assert done.exit_code == 0, done.output
    assert len([line for line in done.output.splitlines() if ".png\t" in line]) == 3


def test_a_service_that_is_not_there_or_does_not_start(tmp_path: Path) -> None:
    done = ign("generate", "--base-url", "http://127.0.0.1:1", "--retries", "0", "-o", str(tmp_path / "out"))
    assert done.exit_code == 3
    assert "ign serve" in done.output
    assert "--local" in done.output
    done = ign("generate", "--local", "-o", str(tmp_path / "out"), IGN_MODEL_DIR="/nowhere")
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert "IGN_MODEL_DIR=/nowhere" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("torch", "train --preset tiny --data x --out y"),
        ("matplotlib", "figures --model m --data x --out y"),
        ("onnx", "import net.onnx --name x"),
        ("torch", "import net.pt --name x --module net.py:Net --shape 1,8,8"),
        ("onnxruntime", "generate --local -o x"),
        ("onnxruntime", "bulk generate x"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(
    package: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("model_export.report", "model_export.export"))]:
        monkeypatch.delitem(sys.modules, name)
    if package == "onnxruntime":
        monkeypatch.setattr("service.environment.installed_onnxruntimes", set)
    else:
        monkeypatch.setitem(sys.modules, package, None)
    done = ign(*words.split())
    assert done.exit_code == 2
    (line,) = done.output.splitlines()
    assert package in line
    extras = {"onnxruntime": "cpu", "onnx": "import,cpu"}.get(package, "train,cpu")
    assert f"pip install 'ign-service[{extras}]'" in line
