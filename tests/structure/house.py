"""Print the size of the house and exit with 1 if a budget is broken: `make house`.

It counts the entries at the top of each package, modules and lines of every package, the files and calls of a request
(`benchmarks.request_path`), the words of the documents, and the retired names that are still in the code.
"""

import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

MAX_ENTRIES = {"service": 17, "model_export": 10}  # modules and packages at the top, besides __init__
MAX_FILE_LINES = 400
GENERATED = ("models",)  # folders of docs whose pages commands write
MAX_WORDS = 20_000  # of README.md and docs, without the generated pages
MAX_REQUEST = {"file_count": 33, "call_count": 190, "calls_together": 100, "thread_switches": 2}
"""Of a warm `/generate`. The goal for files is 15. It would take files of more than `MAX_FILE_LINES` lines, or fewer
checks on the way. A request alone takes more calls than in a task of its own, requests that arrive together fewer."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CODE = ("ign", "service", "model_export", "sdk/ign_client", "benchmarks", "examples", "tests")
# A word is retired in every identifier that contains it: `spoil` retires `spoil_rows` and `Spoil`.
RETIRED_WORDS = _names(
    "alarm alarms bury corked cruise desk door easel executors lane lanes lineup restorer restorers shed sheds "
    "spoil spoiling spoilings workshop"
)
# Their words have other good uses, so only the whole identifier is retired. `critic` is a key of stored runs.
RETIRED_NAMES = _names(
    "Applied CRITIC Captures CatchAll Copies Crew Critic Direct Exchange Meter OneThread Plan Quota Resident "
    "RowQueue Running Services Shape Silent StepRow Tally Together Traffic _books _hear aside books in_time"
)
RETIRED_CLASSES = ("Executor",)  # `concurrent.futures` has one, which is fine
RETIRED_MODULES = _names(
    "alarms alike answers aside books captures cards contestants copies crews critic degradations degrade desk direct "
    "door exchange executor found host lanes lineup on_ray precision quota restorers rig spoilings stand_ins turn wire "
    "workers workshop"
)
RETIRED_SCRIPTS = _names("easel film hands words")  # of the page
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@dataclass(frozen=True)
class Package:
    """A folder with Python modules: how many, the lines of all, and the largest of them."""

    name: str
    modules: int
    lines: int
    largest: str
    largest_lines: int


def entries(package: str) -> list[str]:
    """Modules and packages at the top of a package, besides `__init__`."""
    folder = ROOT / package
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    return sorted(modules | {file.parent.name for file in folder.glob("*/__init__.py")})


def packages() -> Iterator[Package]:
    """Every package below `service`, `model_export`, the client and the benchmarks."""
    for top in ("ign", "service", "model_export", "sdk/ign_client", "benchmarks"):
        for folder in sorted({file.parent for file in (ROOT / top).rglob("*.py")}):
            sizes = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in folder.glob("*.py")}
            largest = max(sizes, key=sizes.__getitem__)
            modules = len(sizes.keys() - {"__init__.py"})
            yield Package(str(folder.relative_to(ROOT)), modules, sum(sizes.values()), largest, sizes[largest])


def words(*, generated: bool) -> int:
    """Words of README.md and of the pages in docs, separated by white space as `wc -w` counts them."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    folders = [ROOT / "docs" / name for name in GENERATED]
    chosen = [page for page in pages if generated or not any(folder in page.parents for folder in folders)]
    return sum(len(page.read_text(encoding="utf-8").split()) for page in chosen)


def request_path() -> list[dict[str, Any]]:
    """Files, calls and thread switches of warm requests, one report each; this starts the service."""
    command = [sys.executable, "-m", "benchmarks.request_path", "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    return reports


def is_retired(identifier: str) -> bool:
    """Whether an identifier is a retired name or contains a retired word."""
    parts = {word.lower() for word in _WORD.findall(identifier)}
    return identifier in RETIRED_NAMES or not parts.isdisjoint(RETIRED_WORDS)


def identifiers(source: str) -> Iterator[tuple[str, int]]:
    """The identifiers of a Python source with their lines; neither strings nor comments."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.string, token.start[0]


def retired_names() -> list[str]:
    """`path:line name` of every retired name in Python code, and the path of every module with a retired name."""
    found: list[str] = []
    for file in sorted(file for top in CODE for file in (ROOT / top).rglob("*.py")):
        path = file.relative_to(ROOT)
        if file.stem.removeprefix("test_") in RETIRED_MODULES:
            found.append(f"{path}: the module's name")
        source = file.read_text(encoding="utf-8")
        lines: dict[str, int] = {}
        for name, line in identifiers(source):
            lines.setdefault(name, line)
        found += [f"{path}:{line} {name}" for name, line in lines.items() if is_retired(name)]
        found += [
            f"{path}: class {name}" for name in RETIRED_CLASSES if re.search(rf"^class {name}\b", source, re.MULTILINE)
        ]
    scripts = sorted((ROOT / "service" / "page").glob("*.js"))
    return found + [f"{file.relative_to(ROOT)}: the file's name" for file in scripts if file.stem in RETIRED_SCRIPTS]


def main() -> int:
    broken: list[str] = []

    def report(what: str, value: int, budget: int | None = None) -> None:
        if budget is not None and value > budget:
            broken.append(what)
        print(f"{value:>8}  {what}" + ("" if budget is None else f" (budget {budget})"))

    for package, budget in MAX_ENTRIES.items():
        report(f"entries at the top of {package}", len(entries(package)), budget)
    for found in packages():
        size = (
            f"modules in {found.name}, {found.lines} lines; the largest: {found.largest}, {found.largest_lines} lines"
        )
        report(size, found.modules)
        if found.largest_lines > MAX_FILE_LINES:
            broken.append(f"{found.name}/{found.largest} has more than {MAX_FILE_LINES} lines")
    generate, project = request_path()
    for key, budget in MAX_REQUEST.items():
        report(f"{key} of {generate['request']}", generate[key], budget)
        report(f"{key} of {project['request']}", project[key])
    report("words in README.md and docs without generated pages", words(generated=False), MAX_WORDS)
    report("words in README.md and docs", words(generated=True))
    names = retired_names()
    report("retired names in the code", len(names), 0)
    print(*names, sep="\n")
    print(*(f"broken: {budget}" for budget in broken), sep="\n", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
