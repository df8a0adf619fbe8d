"""Print the sizes of the project against their budgets, and exit with 1 if one is broken: `make
budgets`.

It counts nodes of the syntax tree, modules and words, the files and calls of a request, and the
places that follow a rule of the service. Nodes do not depend on how code is laid out, as lines do.
No number depends on the machine or its load.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Nodes of `ast`, of folders together; "." is the whole repository.
NODES = {
    ("service", "ign"): 118_630,
    ("model_export",): 75_000,
    ("sdk",): 19_570,
    ("benchmarks",): 36_700,
    ("tests",): 235_585,
    ("plugins",): 1_150,
    (".",): 491_200,
}
FILE_LINES = 500
SERVICE_MODULES = 78  # without `__init__`
SERVICE_ENTRIES = 16  # modules and packages at its top, without `__init__`
WORDS = 15_000  # of README.md and docs, without the pages that commands write
GENERATED = ROOT / "docs" / "models"
# Of a warm request: files that it enters, and calls. Of /generate, 19 and 150 are aimed at, of
# /project 22 and 185.
REQUESTS = {
    "POST /generate -> PNG": (25, 174),
    "POST /project, multipart -> PNG": (27, 189),
}
# Rule → the function that follows it, which exactly one place may call, besides tests and the
# function itself. A dotted name is the end of the called expression, without leading underscores:
# `self._rates.count` is `rates.count`. `service.cluster` does not count: its proxy runs in a
# process of Ray, where no other code of the service is, and answers for a replica that is gone.
RULES = {
    "choose the request id": "choose_request_id",
    "write the access line": "log_request",
    "check a key": "identify",
    "count a rate": "rates.count",
    "write a problem document": "problem_response",
}


@dataclass(frozen=True)
class Budget:
    """A number, and the range in which it must be."""

    what: str
    value: int
    most: int
    least: int = 0

    @property
    def holds(self) -> bool:
        return self.least <= self.value <= self.most

    def __str__(self) -> str:
        allowed = f"{self.most}" if self.least < self.most else f"exactly {self.most}"
        return f"{self.value:>8}  {self.what} (budget {allowed})" + (
            "" if self.holds else "  BROKEN"
        )


@cache
def python_files() -> dict[Path, str]:
    """Every Python file of the repository, relative to its root, with its text."""
    tops = [
        top
        for top in sorted(ROOT.iterdir())
        if not top.name.startswith(".") and top.name not in ("runs", "build")
    ]
    files = [
        file
        for top in tops
        for file in ([top] if top.suffix == ".py" else sorted(top.rglob("*.py")))
    ]
    return {file.relative_to(ROOT): file.read_text(encoding="utf-8") for file in files}


def nodes_of(*folders: str) -> int:
    """Nodes of the syntax trees of Python in these folders."""
    chosen = [Path(folder) for folder in folders]
    texts = [
        text
        for file, text in python_files().items()
        if any(each in file.parents for each in chosen)
    ]
    return sum(1 for text in texts for _ in ast.walk(ast.parse(text)))


def modules(folder: str) -> list[Path]:
    """The modules below a folder, without `__init__`, relative to it."""
    files = (file.relative_to(folder) for file in python_files() if Path(folder) in file.parents)
    return [file for file in files if file.name != "__init__.py"]


def entries(folder: str) -> set[str]:
    """Modules and packages at the top of a folder, without `__init__`."""
    return {file.parts[0] for file in modules(folder)}


def words() -> int:
    """Words of README.md and of the pages in docs that people write, as `wc -w` counts them."""
    pages = [
        ROOT / "README.md",
        *(page for page in (ROOT / "docs").rglob("*.md") if GENERATED not in page.parents),
    ]
    return sum(len(page.read_text(encoding="utf-8").split()) for page in pages)


def calls(tree: ast.AST, name: str) -> Iterator[int]:
    """The lines that call a function, without those in its own definition."""
    for node in ast.iter_child_nodes(tree):
        is_own = (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name == name.rpartition(".")[2]
        )
        if not is_own:
            if isinstance(node, ast.Call) and f".{ast.unparse(node.func)}".replace(
                "._", "."
            ).endswith(f".{name}"):
                yield node.lineno
            yield from calls(node, name)


def call_sites(name: str) -> list[str]:
    """`file:line` of every call outside tests."""
    last = name.rpartition(".")[2]
    return [
        f"{file}:{line}"
        for file, text in python_files().items()
        if file.parts[0] != "tests" and file != Path("service/cluster.py") and last in text
        for line in calls(ast.parse(text), name)
    ]


def static_budgets() -> Iterator[Budget]:
    """The budgets that reading the files decides."""
    for folders, most in NODES.items():
        where = (
            " and ".join(f"{folder}/" for folder in folders)
            if folders != (".",)
            else "the repository"
        )
        yield Budget(f"nodes of Python in {where}", nodes_of(*folders), most)
    longest = max(python_files(), key=lambda file: python_files()[file].count("\n"))
    yield Budget(
        f"lines of the longest file, {longest}", python_files()[longest].count("\n"), FILE_LINES
    )
    yield Budget("modules in service/", len(modules("service")), SERVICE_MODULES)
    yield Budget("entries at the top of service/", len(entries("service")), SERVICE_ENTRIES)
    yield Budget("words in README.md and docs", words(), WORDS)
    for rule, function in RULES.items():
        sites = call_sites(function)
        yield Budget(f"places that {rule}: {', '.join(sites)}", len(sites), 1, least=1)


def request_budgets() -> Iterator[Budget]:
    """Files and calls of a warm request, plain and with the headers of gateways; this starts the
    service.
    """
    command = [sys.executable, "-m", "benchmarks.request_path"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False
    )
    if not done.stdout:
        raise RuntimeError(f"the service was not measured:\n{done.stderr[-2000:]}")
    for report in json.loads(done.stdout):
        most_files, most_calls = REQUESTS[report["request"]]
        what = f"{report['request']}, {report['headers']}"
        yield Budget(f"files of {what}", report["file_count"], most_files)
        yield Budget(f"calls of {what}", report["call_count"], most_calls)


def main() -> int:
    budgets = [*static_budgets(), *request_budgets()]
    print(*budgets, sep="\n")
    return int(not all(budget.holds for budget in budgets))


if __name__ == "__main__":
    sys.exit(main())
