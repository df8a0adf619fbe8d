"""Holds "Who may import whom" of docs/architecture.md: by reading every file, and in a fresh
interpreter.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {name: ROOT / name for name in ("ign", "service", "model_export")} | {
    "ign_client": ROOT / "sdk/ign_client"
}
# Classes of which the service has one object, or one for each app.
SINGLETONS = {
    "AppState",
    "CodecPool",
    "RouteTable",
    "InFlightRequests",
    "Metrics",
    "ModelRegistry",
    "Repository",
}
CLIENT_PLACES = {
    "httpx": {"ign_client._transport"},
    "opentelemetry": {"ign_client._extras"},
    "numpy": {"ign_client._extras", "ign_client._picture"},
    "PIL": {"ign_client._extras", "ign_client._picture"},
}


class Import(NamedTuple):
    """One import statement, wherever it stands in a file."""

    importer: str
    target: str  # a module in full, or as much of `from a import b` as is one
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"

    @property
    def package(self) -> str:
        return self.target.partition(".")[0]


@cache
def modules() -> dict[str, ast.Module]:
    """The source of every module of every package."""
    return {
        ".".join((package, *file.relative_to(folder).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): ast.parse(file.read_text(encoding="utf-8"))
        for package, folder in PACKAGES.items()
        for file in sorted(folder.rglob("*.py"))
    }


@cache
def nodes(module: str) -> list[ast.AST]:
    return list(ast.walk(modules()[module]))


@cache
def imports_of(module: str) -> list[Import]:
    return list(_imports_of(module))


def _imports_of(module: str) -> Iterator[Import]:
    for node in nodes(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, line=node.lineno)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                target = inner if inner in modules() else node.module or ""
                yield Import(module, target, line=node.lineno)


@cache
def imports(package: str) -> tuple[Import, ...]:
    """The imports of a package or module and what is below it."""
    return tuple(
        found for module in modules() if within(module, [package]) for found in imports_of(module)
    )


def called(node: ast.Call) -> str:
    """The name of what a call calls, without what stands before its last dot."""
    return str(getattr(node.func, "attr", getattr(node.func, "id", "")))


def within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def is_outside(found: Import) -> bool:
    return (
        found.package not in sys.stdlib_module_names
        and found.package != found.importer.partition(".")[0]
    )


def expect_none(offences: Iterable[object]) -> None:
    assert not (listed := [str(each) for each in offences]), "\n".join(listed)


def section() -> str:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return text.partition("## Who may import whom")[2].partition("\n## ")[0]


def owners() -> dict[str, list[str]]:
    """The list of rule 3 turned round: package → modules of `service` that may import it."""
    rows = re.findall(r"^ +- `([\w.]+)`: ([\w`, ]+)$", section(), flags=re.MULTILINE)
    return {
        p[1:-1]: [owner for owner, names in rows if p in names]
        for _, names in rows
        for p in names.split(", ")
    }


def named(sentence: str) -> list[str]:
    """The modules in the place of NAMES in a sentence of the section."""
    pattern = r"\s+".join(re.escape(sentence).split(r"\ ")).replace(
        "NAMES", r"((?:`[\w.]+`(?:,\s+|\s+and\s+)?)+)"
    )
    found = re.search(pattern, section())
    assert found is not None, sentence
    return re.findall(r"`([\w.]+)`", found[1])


def test_files_and_names_that_the_page_tells_of_exist() -> None:
    text = (
        (ROOT / "docs" / "architecture.md")
        .read_text(encoding="utf-8")
        .partition("\n## Who may import whom")[0]
    )
    folders = *PACKAGES.values(), ROOT / "tests"
    paths = [file for folder in folders for file in folder.rglob("*.py")]
    files = set(re.findall(r"`([\w./]+\.py)`", text))
    assert len(files) > 20
    expect_none(
        file for file in files if not any(path.as_posix().endswith(f"/{file}") for path in paths)
    )
    source = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    dotted = re.findall(r"`([A-Z]\w+(?:\.(?!py)\w+)?|_\w+)`", text)
    names = {name for each in dotted for name in each.split(".")}
    defined = r"(?:\b(?:def|class) {0}\b|^ *{0}(?:: .+)? = |^    {0}: )"
    assert len(names) > 20
    expect_none(name for name in names if not re.search(defined.format(name), source, re.MULTILINE))


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("ign", ["torch", "onnxruntime"]),
        ("service", ["torch", "torchvision", "model_export", "ign_client", "ign"]),
        ("model_export", ["ign_client", "ign"]),
        ("ign_client", ["service", "model_export", "torch", "ign"]),
    ],
)
def test_packages_stay_apart(package: str, forbidden: list[str]) -> None:
    assert imports(package)
    expect_none(i for i in imports(package) if i.package in forbidden)


def test_training_knows_only_the_contract_of_the_service() -> None:
    used = [i for i in imports("model_export") if i.package == "service"]
    assert used
    contract = named("`model_export` imports of `service` only NAMES.")
    expect_none(i for i in used if not within(i.target, contract))


@pytest.mark.parametrize(
    ("importer", "allowed"),
    [
        ("service.domain", ["service.domain"]),
        ("service.scheduling", ["service.domain", "service.scheduling"]),
    ],
)
def test_the_core_is_numpy_and_the_standard_library(importer: str, allowed: list[str]) -> None:
    assert imports(importer)
    known = [*allowed, "numpy", *sys.stdlib_module_names]
    expect_none(i for i in imports(importer) if not within(i.target, known))


def test_the_sides_of_models_and_http_meet_in_one_module() -> None:
    """A name in the section that is no module any more fails too."""
    model, http = named("NAMES are the model side"), named("; NAMES are the HTTP side")
    public = named("of the model side only NAMES.")
    shared = named("Both sides share NAMES,")
    excepted = named("imports NAMES, which it counts")
    sides = model + http
    expect_none(name for name in [*sides, *public, *shared, *excepted] if name not in modules())
    found = imports("service")
    expect_none(i for i in found if within(i.importer, model) and within(i.target, http))
    expect_none(
        i
        for i in found
        if within(i.importer, shared) and within(i.target, sides) and not within(i.target, excepted)
    )
    assert {i.target for i in found if within(i.importer, http) and within(i.target, model)} == set(
        public
    )


def test_every_package_from_outside_has_its_place_and_no_other() -> None:
    outside = [i for i in imports("service") if is_outside(i) and i.package != "numpy"]
    expect_none(i for i in outside if not within(i.importer, owners().get(i.package, [])))
    stated = {(package, owner) for package, places in owners().items() for owner in places}
    expect_none(
        each
        for each in stated
        if not any(i.package == each[0] and within(i.importer, each[1:]) for i in outside)
    )


def test_the_client_is_httpx_and_the_standard_library() -> None:
    places: dict[str, set[str]] = {}
    for found in filter(is_outside, imports("ign_client")):
        places.setdefault(found.package, set()).add(found.importer)
    assert places == CLIENT_PLACES


def test_the_command_line_is_nothing_that_the_client_needs() -> None:
    command = ("ign_client._cli", "ign_client._batches")
    outer = [i for i in imports("ign_client") if not within(i.importer, command)]
    expect_none(i for i in outer if within(i.target, command))


def test_there_are_no_cycles() -> None:
    graph = {
        module: {i.target for i in imports_of(module) if i.target in modules()}
        for module in modules()
    }
    TopologicalSorter(graph).prepare()  # else it raises CycleError, which names the modules


def test_only_the_app_constructs() -> None:
    found = {
        (name, module)
        for module in modules()
        for node in (nodes(module) if within(module, ["service"]) else ())
        if isinstance(node, ast.Call) and (name := called(node)) in SINGLETONS
    }
    assert found == {(name, "service.app") for name in SINGLETONS}


PROBE = """
import importlib, os, sys, threading

seen = []
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def watch(event, arguments):
    if event in ("socket.bind", "socket.connect", "subprocess.Popen", "os.system", "os.fork",
                 "os.mkdir"):
        seen.append((event, str(arguments[:2])))
    if event == "open" and arguments[2] & WRITING and arguments[0] != os.devnull:
        seen.append((event, str(arguments[0])))

import service.app
for name in ("torch", "torchvision", "model_export", "ign_client", "onnx", "scipy"):
    if name in sys.modules:
        print(f"import service.app loads {name}")

# What other packages do when they are first imported is behind us. What follows is ours alone.
for name in [name for name in sys.modules if name.partition(".")[0] == "service"]:
    del sys.modules[name]
sys.addaudithook(watch)
threads = threading.active_count()
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*(f"importing does {what}" for what in seen), sep="\\n")
if threading.active_count() != threads:
    print("importing starts a thread")
"""
CLIENT_PROBE = "import sys, ign_client._cli; print(*{'numpy', 'PIL', 'service'} & set(sys.modules))"


@pytest.mark.parametrize("client", [False, True])
def test_importing_does_nothing_and_loads_no_torch_and_the_client_no_numpy(
    client: bool, tmp_path: Path
) -> None:
    names = [] if client else [module for module in modules() if within(module, ["service"])]
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", CLIENT_PROBE if client else PROBE, *names],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(ROOT / "sdk" if client else ROOT),
            "IGN_PORT": "no number",
            "IGN_BASE_URL": "no URL",
        },
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
