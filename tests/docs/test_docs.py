"""The documentation does what it says: its code runs, its commands exist, its links lead somewhere.

Of every page,
- `python` blocks run in a fresh interpreter, and are valid under mypy's strict rules, `js` blocks
  in node where it is installed; a `text` block right below is their output, numbers to three
  digits; an app of FastAPI gets requests with an image and with no image;
- `sh` and `bash` blocks hold commands, `console` blocks commands behind `$ `. `curl` and `ign
  import` run and must succeed; of the others, the target, file, option or extra they name must
  exist. What cannot be checked belongs into a `text` block;
- `json` blocks parse.

Blocks of one page share a folder, in order. The base URL in them is that of the real service with
the shipped model.
"""

import json
import math
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import httpx
import pytest

from ign.__main__ import main as ign
from ign_client import _cli as client
from model_export import cli
from service.bulk import __main__ as bulk
from service.settings import Settings, load_settings, variable_of
from tests.helpers.live import ROOT, START_S, environment, live_service, run

BASE_URL = "http://127.0.0.1:8000"
_NAMES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "docker/README.md",
    "sdk/README.md",
    "sdk/js/README.md",
)
PAGES = [
    *(ROOT / name for name in _NAMES if (ROOT / name).is_file()),
    *sorted((ROOT / "docs").rglob("*.md")),
]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
# Its blocks load torch and import networks, which takes as long as all other pages.
every_page_to_run = pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow) if page.name == "import.md" else page
        for page in PAGES
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)

_FENCE = re.compile(r"^( *)(```+|~~~+)([\w-]*)[^\n]*\n(.*?)^ *\2 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"""\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)|(?:src|href)="([^"]+)\"""")
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)")
_TIMEOUT_S = 1800
PROGRAMS = Path(sys.executable).parent
# Appended to a block with an app: its POST paths take an image, refuse what is none, and never
# fail.
_REQUESTS = """
from pathlib import Path
from fastapi.testclient import TestClient
with TestClient(app) as client:
    for path in (route.path for route in app.routes if "POST" in getattr(route, "methods", ())):
        for content, status in ((Path("docs/images/drawn.png").read_bytes(), 200), (b"no image", 422)):
            response = client.post(path, files={"image": ("x.png", content)})
            assert response.status_code == status, (path, response.status_code, response.text)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block; ``output`` when nothing stands between it and the one before."""

    language: str
    code: str
    line: int
    output: bool

    @property
    def needs_service(self) -> bool:
        return self.language != "text" and BASE_URL in self.code


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        indent, _, language, code = match.groups()
        code = re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        follows = bool(found) and not text[end : match.start()].strip()
        found.append(Block(language, code, text.count("\n", 0, match.start()) + 1, follows))
        end = match.end()
    return found


def commands(block: Block) -> Iterator[str]:
    """The commands of a shell block, each with its continued lines."""
    console = block.language == "console"
    pending = ""
    for line in block.code.splitlines():
        if not pending and console and not line.startswith("$ "):
            continue
        part = line.removeprefix("$ ") if console and not pending else line
        pending = f"{pending}\n{part}" if pending else part
        if pending.endswith("\\"):
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation that goes on
            continue
        if words:
            yield pending
        pending = ""
    assert not pending, f"an unfinished command: {pending}"


def same_output(expected: str, actual: str) -> bool:
    """Equal up to white space, and up to one part in a thousand in numbers."""
    wanted, got = (_NUMBER.split(" ".join(text.split())) for text in (expected, actual))
    return len(wanted) == len(got) and all(
        math.isclose(float(a), float(b), rel_tol=1e-3, abs_tol=1e-3) if i % 2 else a == b
        for i, (a, b) in enumerate(zip(wanted, got, strict=True))
    )


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    if not any((ROOT / "models").glob("*/*/model.onnx")):
        pytest.skip("models/ holds no model, so nothing that talks to the service was run")
    with live_service() as url:
        # The metrics of a page need a request.
        httpx.post(f"{url}/generate", json={}, trust_env=False, timeout=START_S).raise_for_status()
        yield url


@every_page_to_run
def test_code_runs(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "service").symlink_to(ROOT / "service")
    shutil.copytree(ROOT / "docs" / "images", tmp_path / "docs" / "images")
    (tmp_path / "node_modules" / "@ign-service").mkdir(parents=True)
    (tmp_path / "node_modules" / "@ign-service" / "client").symlink_to(ROOT / "sdk" / "js")
    # A configuration of curl's, for every curl in the commands.
    (tmp_path / ".curlrc").write_text(
        f'fail-with-body\nshow-error\nnoproxy = "*"\nmax-time = {_TIMEOUT_S}\n'
    )
    found = blocks(page.read_text(encoding="utf-8"))
    runner = Runner(found, f"{page.relative_to(ROOT)}:", tmp_path)
    alone = [block for block in found if not block.needs_service]
    runner.run(alone)
    if len(alone) < len(found):
        if "curl " in page.read_text(encoding="utf-8") and shutil.which("curl") is None:
            pytest.skip("curl is not installed, so the page's commands were not run")
        url = request.getfixturevalue("base_url")
        replace(runner, base_url=url).run([block for block in found if block.needs_service])


@pytest.mark.slow
def test_python_is_valid_under_strict_rules(tmp_path: Path) -> None:
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.language == "python":
                name = re.sub(r"\W", "_", f"{page.relative_to(ROOT)}")
                (tmp_path / f"{name}_line_{block.line}.py").write_text(block.code)
    # docs/import.md writes this module.
    (tmp_path / "net.pyi").write_text("from torch import nn\ndef make() -> nn.Module: ...\n")
    # with its usual cache
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(tmp_path)]
    done = run(*command)
    assert done.returncode == 0, done.stdout


@dataclass(frozen=True)
class Runner:
    page: list[Block]
    here: str
    folder: Path
    base_url: str = BASE_URL

    def run(self, chosen: list[Block]) -> None:
        kinds: dict[str, Callable[[Block], None]] = {
            "python": self.python,
            "js": self.javascript,
            "sh": self.shell,
            "bash": self.shell,
            "console": self.shell,
            "json": self.json,
            "text": lambda _: None,
            "": lambda _: None,
        }
        for block in chosen:
            assert block.language in kinds, (
                f"{self.here}{block.line}: expected one of {', '.join(kinds)}"
            )
            kinds[block.language](block)

    def python(self, block: Block) -> None:
        code = block.code + (_REQUESTS if "FastAPI(" in block.code else "")
        code = code.replace(BASE_URL, self.base_url)
        self.compare(block, self.execute(block, [sys.executable, "-c", code]))

    def javascript(self, block: Block) -> None:
        if shutil.which("node") is None:
            return
        (self.folder / "block.mjs").write_text(block.code.replace(BASE_URL, self.base_url))
        self.compare(block, self.execute(block, ["node", "block.mjs"]))

    def compare(self, block: Block, printed: str) -> None:
        place = self.page.index(block) + 1
        shown = self.page[place] if place < len(self.page) else None
        if shown is not None and shown.output and shown.language == "text":
            assert same_output(shown.code, printed), (
                f"{self.here}{shown.line} says\n{shown.code}\nbut it is\n{printed}"
            )

    def shell(self, block: Block) -> None:
        for command in commands(block):
            if command.startswith(("curl ", "ign import ")):
                assert "ign " in command or BASE_URL in command, (
                    f"{self.here}{block.line}: only the service may be asked"
                )
                script = command.replace(BASE_URL, self.base_url)
                self.execute(block, ["bash", "-euo", "pipefail", "-c", script])
            else:
                check_named(
                    shlex.split(command, comments=True), f"{self.here}{block.line}: {command}"
                )

    def json(self, block: Block) -> None:
        try:
            json.loads(block.code)
        except ValueError as exc:
            raise AssertionError(f"{self.here}{block.line}: {exc}") from exc

    def execute(self, block: Block, command: list[str]) -> str:
        path = f"{PROGRAMS}:{environment().get('PATH', '/usr/bin:/bin')}"
        done = run(
            *command,
            cwd=self.folder,
            PATH=path,
            CURL_HOME=str(self.folder),
            KEY="any",
            NO_PROXY="*",
        )
        assert done.returncode == 0, (
            f"{self.here}{block.line}: {command[-1]}\n{done.stdout[-2000:]}\n{done.stderr}"
        )
        return done.stdout


def check_named(words: list[str], where: str) -> None:
    """Fail unless what a command names exists: a setting, target, module option, file or extra."""
    settings = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        settings[name] = value
    assert settings.keys() <= {variable_of(field) for field in Settings.model_fields}, where
    load_settings(settings)
    match words:
        case ["make", *rest]:
            targets = set(
                re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            )
            assert {word for word in rest if "=" not in word} <= targets, where
        case ["python", "-m", "model_export", *options]:
            cli.parser().parse_args(options)
        case ["ign-client", *options]:
            client.parser().parse_args(options)
        case ["ign", *options]:
            check_ign(options, where)
        case ["python", "-m", module, *_] if module.startswith("benchmarks."):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), where
        case ["python", file, *_] if file.endswith(".py"):
            assert (ROOT / file).is_file(), where
        case ["pip", "install", *rest]:
            found = re.search(r"\.(/sdk)?\[([\w,]+)\]", " ".join(rest))
            assert found is not None, where
            project = tomllib.loads(
                (ROOT / (found[1] or "").strip("/") / "pyproject.toml").read_text()
            )["project"]
            assert set(found[2].split(",")) <= set(project["optional-dependencies"]), where
        case _:
            raise AssertionError(
                f"{where}: not a command this test can check; a `text` block is for those"
            )


def check_ign(options: list[str], where: str) -> None:
    """Fail unless click, or the parser behind a command, takes the arguments."""
    name, *rest = options
    if name in ("generate", "project", "score", "interpolate"):
        client.parser().parse_args([word for word in options if word != "--local"])
    elif name == "bulk":
        bulk.parser().parse_args(rest)
    elif name in ("data", "train", "export", "import", "verify", "evaluate", "figures", "card"):
        cli.parser().parse_args(options)
    else:
        context = click.Context(ign)
        command: click.Command | None = ign
        rest = options
        while isinstance(command, click.Group):
            _, command, rest = command.resolve_command(context, rest)
        assert command is not None, where
        command.make_context(name, rest, parent=context)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        there = file.is_relative_to(ROOT) and file.exists()
        if not there or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def links(page: Path) -> list[str]:
    """What a page links to within the repository, code and what `make site` adds left out."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))
    found = [first or second for first, second in _LINK.findall(prose)]
    return [target for target in found if not re.match(r"(https?|mailto):|try/", target)]


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them."""
    headings = re.findall(
        r"^#+ +(.+?) *$", _FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
