"""`ign` through click's runner: its commands, their options, and what completes in a shell."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest.mock import Mock

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from ign.__main__ import main
from service import cli
from service.settings import Settings, meaning_of, variable_of
from tests.helpers.live import environment
from tests.helpers.onnx_models import write_model


def ign(command: str, *arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(main, (*command.split(), *arguments), env=variables)


def test_help_imports_nothing_heavy() -> None:
    probe = (
        "import sys; from ign.__main__ import main; main(['--help'], standalone_mode=False); "
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800,
        check=True,
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "click" in loaded
    assert not loaded & {"numpy", "PIL", "fastapi", "pydantic", "onnxruntime", "httpx", "uvicorn"}


Served = list[tuple[dict[str, str], bool]]
"""Options, and whether they are only checked."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """What `ign serve` would serve, in place of serving."""
    calls: Served = []
    monkeypatch.setattr(cli, "serve", lambda options, *, check: calls.append((options, check)))
    monkeypatch.setattr("service.server.process.leave", lambda _: None)
    return calls


@pytest.mark.parametrize("field", Settings.model_fields)
def test_an_option_equals_its_variable(field: str, served: Served) -> None:
    info = Settings.model_fields[field]
    option = f"--{field.replace('_', '-')}"
    value = get_args(info.annotation)[0] if get_origin(info.annotation) is Literal else "7"
    words = f"{option} {value}"
    if info.annotation is bool:
        value = str(int(not info.default))
        words = option if value == "1" else option.replace("--", "--no-")
    assert ign(f"serve {words}").exit_code == 0
    assert served == [({field: value}, False)]


def test_serve_help_names_every_setting_variable_and_default() -> None:
    text = " ".join(ign("serve --help").output.split())
    for field in Settings.model_fields:
        for part in (f"--{field.replace('_', '-')}", f"[{variable_of(field)}; ", meaning_of(field)):
            assert part in text
    assert "[IGN_PORT; 8000]" in text
    assert "[IGN_RATE_LIMIT; off]" in text


def test_only_given_options_are_passed_on(served: Served) -> None:
    assert ign("serve --check", IGN_PORT="not a port").exit_code == 0
    assert ign("serve --models there --port 0").exit_code == 0
    assert served == [({}, True), ({"model_dir": "there", "port": "0"}, False)]


def test_a_refusal_names_the_option_that_was_given(capsys: Any) -> None:
    assert cli.serve({"port": "80a"}) == 2
    assert capsys.readouterr().err.startswith(
        "ign-service does not start: --port='80a' is not allowed: "
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("s", "serve site score"),
        ("serve --de", "--default-model --device"),
        ("serve --device ", "auto cpu cuda"),
        ("generate --for", "--format --force"),
        ("generate --format p", "png"),
        ("bulk p", "project"),
        ("bulk project --resize f", "fit"),
        ("train --device c", "cpu cuda"),
        ("keys ", "add list revoke"),
    ],
)
def test_words_complete(words: str, expected: str) -> None:
    *before, incomplete = words.split(" ")
    found = ShellComplete(main, {}, "ign", "_IGN_COMPLETE").get_completions(before, incomplete)
    assert [item.value for item in found] == expected.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_calls_ign(shell: str) -> None:
    assert f"_IGN_COMPLETE={shell}_complete" in ign("completion", shell).output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--bogus", "ign: no option --bogus;"),
        ("fly", "ign: no command fly;"),
        ("serv", "ign: no command serv; did you mean serve?"),
        ("serve --hos x", "ign serve: no option --hos; did you mean --host?"),
        ("serve --prot 1", "ign serve: no option --prot; did you mean --port?"),
        ("keys fly", "ign keys: no command fly;"),
        ("serve --bogus", "ign serve: no option --bogus"),
        (
            "serve --strict-models",
            "ign serve: --strict-models is no option any more: ign serve --ch",
        ),
        ("serve --gpus=2", "ign serve: --gpus is no option any more: IGN_GPU_COUNT"),
        ("serve here", "ign serve: here: one argument too many;"),
        ("serve --device tpu", "ign serve: --device: 'tpu' is not one of 'auto', 'cpu', 'cuda';"),
        ("serve --port", "ign serve: --port: "),
        ("site", "ign site: OUT: missing;"),
        ("keys add x", "ign keys add: --file or the variable IGN_API_KEYS_FILE: missing;"),
        ("models --models nowhere", "ign models: IGN_MODEL_DIR=nowhere: no such directory"),
        (
            "models --models oci://host/x",
            "ign models: IGN_MODEL_DIR=oci://…: the service reads no registry; mount ",
        ),
        ("models push x", "ign models: push x: one argument too many;"),
        ("train --bogus 1", "ign train: no option --bogus;"),
        # no option is shortened
        ("train --pres small", "ign train: no option --pres; did you mean --preset"),
        ("import x --name y --modul z", "ign import: no option --modul; did you mean --mod"),
        ("bulk generate x --form png", "ign bulk generate: no option --form; did you mean --fo"),
        ("generate -o x --n 3", "ign generate: no option --n; did you mean -n?"),
        ("generate", "ign generate: -o/--out: missing;"),
        ("generate -o x -n many", "ign generate: -n: 'many' is no number;"),
        (
            "generate -o x --local --base-url y",
            "ign generate: --local needs no service; leave --base-url out",
        ),
        ("generate -o x --local", "ign generate: IGN_MODEL_DIR=/nowhere: no such directory"),
        ("project -o x --format gif y", "ign project: --format: 'gif' is not one of "),
        ("bulk generate", "ign bulk generate: OUTPUT: missing;"),
        ("bulk generate x --shard many", "ign bulk generate: --shard: 'many' is no number;"),
        ("bulk generate x -n 0", "ign bulk generate: -n: must be at least 1"),
        ("score nowhere.png", "ign score: nowhere.png: no such file"),
        ("train --data x", "ign train: --out: name the folder"),
        ("train --quick --preset ign", "ign train: --preset: not allowed with argument --quick;"),
    ],
)
def test_every_error_is_one_line_that_names_the_command(words: str, says: str) -> None:
    done = ign(words, IGN_MODEL_DIR="/nowhere")
    assert done.exit_code == 2
    assert done.output.startswith(says)
    assert done.output.count("\n") == 1
    assert not re.search("invalid|Error|[Uu]sage|argument is|No such", done.output)


def test_models_are_listed_from_their_cards(tmp_path: Path) -> None:
    write_model(tmp_path, description="\x1b]0;title\x07 a\nb \u202egnp")
    models = {"IGN_MODEL_DIR": str(tmp_path)}
    # without a setting, the only one is the default
    for default, mark in (({}, "*"), ({"IGN_DEFAULT_MODEL": "mnist"}, " ")):
        shown = ign("models", **models, **default).output.rstrip("\n")
        assert shown.startswith(f"{mark} toy/1")
        # A card writes no escapes to the terminal.
        assert shown.isprintable()
        assert r"\x1b]0;title\x07 a\nb \u202egnp" in shown
    done = ign("models --json --models", str(tmp_path), IGN_DEFAULT_MODEL="toy/1")
    found = json.loads(done.output)
    assert (found["model"], found["default"]) == ("toy/1", True)


def test_a_service_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for option, attempts in (("", {1}), ("--retries 2", {3}), ("--deadline 3", {*range(2, 99)})):
        connect = Mock(side_effect=ConnectionRefusedError)
        monkeypatch.setattr(socket, "create_connection", connect)
        done = ign(f"generate {option} -o out")
        assert connect.call_count in attempts
        assert done.exit_code == 3
        assert "`ign serve` starts a service; with --local" in done.output


@pytest.mark.parametrize(
    ("package", "words", "extras"),
    [
        ("torch", "train --preset tiny --data x --out y", "train,cpu"),
        ("onnx", "import net.onnx --name x", "import,cpu"),
        ("torch", "import net.pt --name x --module net.py:Net --shape 1,8,8", "train,cpu"),
        ("onnxruntime", "generate --local -o x", "cpu"),
        ("onnxruntime", "bulk generate x", "cpu"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(
    package: str, words: str, extras: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        name
        for name in sys.modules
        if name.startswith(("model_export.report", "model_export.export"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("service.environment.installed_onnxruntimes", set)
    monkeypatch.setitem(sys.modules, package, None)
    done = ign(words)
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert package in done.output
    assert f"pip install 'ign-service[{extras}]'" in done.output
    assert ("CPU build" in done.output) == extras.startswith("train")
