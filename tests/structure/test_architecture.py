"""Holds "Who may import whom" of docs/architecture.md: by reading every file, and in a fresh interpreter."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "ign": ROOT / "ign",
    "service": ROOT / "service",
    "model_export": ROOT / "model_export",
    "ign_client": ROOT / "sdk" / "ign_client",
}
ANYWHERE = {"numpy", "service"}
# Classes of which the service has one object, or one for each app.
SINGLETONS = {"AppState", "CodecPool", "FastAPI", "InFlightRequests", "Metrics", "ModelRegistry", "Repository"}
CLIENT_PLACES = {
    "httpx": {"ign_client._transport"},
    "opentelemetry": {"ign_client._extras"},
    "numpy": {"ign_client._extras", "ign_client._picture"},
    "PIL": {"ign_client._extras", "ign_client._picture"},
}


@dataclass(frozen=True)
class Import:
    importer: str
    target: str  # a module in full, or as much of `from a import b` as is one
    relative: bool
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"

    @property
    def package(self) -> str:
        return self.target.partition(".")[0]


@cache
def modules() -> dict[str, Path]:
    """Module name → file, for every package there is."""
    return {
        ".".join((package, *file.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): file
        for package, folder in PACKAGES.items()
        for file in sorted(folder.rglob("*.py"))
    }


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def imports_of(module: str, source: ast.Module, known: frozenset[str]) -> Iterator[Import]:
    """Every import statement, wherever it stands in the file."""
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, relative=False, line=node.lineno)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                target = inner if inner in known else node.module or ""
                yield Import(module, target, relative=node.level > 0, line=node.lineno)


@cache
def imports(package: str) -> tuple[Import, ...]:
    known = frozenset(modules())
    return tuple(
        found for module in modules() if within(module, [package]) for found in imports_of(module, tree(module), known)
    )


def within(module: str, packages: list[str] | tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def listed(offences: list[str]) -> str:
    return "\n".join(["", *offences])


def section() -> str:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return text.partition("## Who may import whom")[2].partition("\n## ")[0]


def owners() -> dict[str, list[str]]:
    """The table of rule 3: package → modules of `service` that may import it."""
    rows = re.findall(r"^\s*\| `([\w.]+)` \| (`.*`) \|$", section(), flags=re.MULTILINE)
    return {package: re.findall(r"`([\w.]+)`", names) for package, names in rows}


def named(sentence: str) -> list[str]:
    """The modules in the place of NAMES in a sentence of the section."""
    pattern = r"\s+".join(re.escape(sentence).split(r"\ ")).replace("NAMES", r"((?:`[\w.]+`(?:,\s+|\s+and\s+)?)+)")
    found = re.search(pattern, section())
    assert found is not None, sentence
    return re.findall(r"`([\w.]+)`", found[1])


def test_files_and_names_that_the_page_tells_of_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("\n## Who may import whom")[0]
    paths = [f"/{file.relative_to(ROOT).as_posix()}" for file in [*modules().values(), *ROOT.glob("tests/*/*.py")]]
    files = re.findall(r"`([\w./]+\.py)`", text)
    assert len(files) > 30
    assert {file for file in files if not any(path.endswith(f"/{file}") for path in paths)} == set()
    source = "\n".join(file.read_text(encoding="utf-8") for file in modules().values())
    names = {
        name for dotted in re.findall(r"`([A-Z]\w+\.(?!py)\w+|_\w+|[A-Z]{4,})`", text) for name in dotted.split(".")
    }
    assert len(names) > 25
    defined = r"(?:\b(?:def|class) {0}\b|^ *{0}(?:: .+)? = |^    {0}: )"
    assert {name for name in names if not re.search(defined.format(name), source, re.MULTILINE)} == set()


def test_the_packages_are_found() -> None:
    assert {"service.app", "service.domain.errors", "service.images.decode", "model_export.training.train"} <= set(
        modules()
    )
    assert all(within(module, list(PACKAGES)) for module in modules())


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
    assert not (bad := [str(i) for i in imports(package) if i.package in forbidden]), listed(bad)


def test_training_knows_only_the_contract_of_the_service() -> None:
    used = [i for i in imports("model_export") if i.package == "service"]
    assert used
    assert not (
        bad := [str(i) for i in used if not within(i.target, named("`model_export` imports of `service` only NAMES."))]
    ), listed(bad)


@pytest.mark.parametrize(
    ("importer", "allowed"),
    [("service.domain", ["service.domain"]), ("service.scheduling", ["service.domain", "service.scheduling"])],
)
def test_the_core_is_numpy_and_the_standard_library(importer: str, allowed: list[str]) -> None:
    core = [i for i in imports("service") if within(i.importer, [importer])]
    assert core
    bad = [
        str(i)
        for i in core
        if i.package not in sys.stdlib_module_names and i.package != "numpy" and not within(i.target, allowed)
    ]
    assert not bad, listed(bad)


def test_the_sides_of_models_and_http_meet_in_one_module() -> None:
    """A name in the section that is no module any more fails too."""
    model, http = named("NAMES are the model side"), named("; NAMES are the HTTP side")
    public, shared = named("of the model side only NAMES."), named("Both sides share NAMES,")
    exceptions = named("imports NAMES, whose protocol it implements")
    found = {(i.importer, i.target): str(i) for i in imports("service")}
    bad = [text for (a, b), text in found.items() if within(a, model) and within(b, http)]
    bad += [
        text
        for (a, b), text in found.items()
        if within(a, shared) and within(b, model + http + exceptions) and not within(b, exceptions)
    ]
    assert not bad, listed(bad)
    assert {b for a, b in found if within(a, http) and within(b, model)} == set(public)
    assert {name for name in model + http + public + shared + exceptions if name not in modules()} == set()


def test_every_package_from_outside_has_its_place() -> None:
    table = owners()
    outside = [i for i in imports("service") if i.package not in sys.stdlib_module_names and i.package not in ANYWHERE]
    bad = [str(i) for i in outside if not within(i.importer, table.get(i.package, []))]
    assert not bad, listed(bad)


def test_the_table_says_nothing_that_is_not_so() -> None:
    said = {(package, owner) for package, places in owners().items() for owner in places}
    true = {
        (package, owner)
        for package, owner in said
        for i in imports("service")
        if i.package == package and within(i.importer, [owner])
    }
    assert said == true


def test_the_client_is_httpx_and_the_standard_library() -> None:
    places: dict[str, set[str]] = {}
    for found in imports("ign_client"):
        if found.package not in sys.stdlib_module_names and found.package != "ign_client":
            places.setdefault(found.package, set()).add(found.importer)
    assert places == CLIENT_PLACES


def test_the_client_needs_neither_pillow_nor_numpy(tmp_path: Path) -> None:
    probe = "import sys, ign_client, ign_client._cli; print(sorted({'numpy', 'PIL', 'service'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", probe],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "sdk"), "IGN_BASE_URL": "refused if anybody looked"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_command_line_is_nothing_that_the_client_needs() -> None:
    command = ("ign_client._cli", "ign_client._commands", "ign_client._batches", "ign_client._terminal")
    outer = [i for i in imports("ign_client") if not within(i.importer, (*command, "ign_client.__main__"))]
    assert not (bad := [str(i) for i in outer if within(i.target, command)]), listed(bad)


def test_imports_are_absolute_and_written_out() -> None:
    bad = [str(i) for package in PACKAGES for i in imports(package) if i.relative]
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                if name in ("__import__", "import_module"):
                    bad.append(f"{module}:{node.lineno} imports by text")
    assert not bad, listed(bad)


def test_there_are_no_cycles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in modules()}
    for package in PACKAGES:
        for found in imports(package):
            if found.target in graph:
                graph[found.importer].add(found.target)
    assert cycle(graph) == []
    graph["service.domain.errors"].add("service.app")
    assert {"service.domain.errors", "service.app"} <= set(cycle(graph)), "the search finds none where there is one"


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of the graph, or nothing: what is left after taking away, again and again, who leads nowhere."""
    left = {node: set(targets) for node, targets in graph.items()}
    while ends := [node for node, targets in left.items() if not targets]:
        for node in ends:
            del left[node]
        for targets in left.values():
            targets.difference_update(ends)
    path = [min(left)] if left else []
    while path and (following := min(left[path[-1]])) not in path:
        path.append(following)
    return path[path.index(following) :] if path else []


def test_few_modules_touch_the_environment() -> None:
    names = {"environ", "environb", "getenv", "getenvb"}
    found = set()
    for module in modules():
        for node in ast.walk(tree(module)):
            attribute = isinstance(node, ast.Attribute) and node.attr in names and isinstance(node.value, ast.Name)
            direct = isinstance(node, ast.ImportFrom) and node.module == "os" and {a.name for a in node.names} & names
            if (attribute and ast.unparse(node).startswith("os.")) or direct:
                found.add(module)
    assert found == {"service.environment", "service.settings", "ign_client._settings"}


def test_only_the_app_constructs() -> None:
    found = {
        (name, module)
        for module in modules()
        if within(module, ["service"])
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func).rpartition(".")[2]) in SINGLETONS
    }
    assert found == {(name, "service.app") for name in SINGLETONS}


PROBE = """
import importlib, os, sys, threading

seen = []
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def watch(event, arguments):
    if event in ("socket.bind", "socket.connect", "subprocess.Popen", "os.system", "os.fork", "os.mkdir"):
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


def test_importing_the_service_loads_no_torch_and_does_nothing(tmp_path: Path) -> None:
    names = [module for module in modules() if within(module, ["service"])]
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", PROBE, *names],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "IGN_PORT": "refused if anybody looked"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert done.stderr == ""
