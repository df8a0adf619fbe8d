"""Look for known vulnerabilities in every package that docker/lock names, with pip-audit: `make
audit`.

Arguments go to pip-audit, such as `--vulnerability-service osv`.

Exit status:

0  every locked release was looked up, and none has a known vulnerability
1  a release has one
3  the database did not answer for every release, so the result says nothing about the others
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

LOCKS: Final = Path(__file__).resolve().parent / "lock"
CLEAN = 0
VULNERABLE = 1
UNKNOWN = 3


def audit(lock: Path, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Vulnerabilities of a lock, and what could not be looked up, one line each."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--disable-pip",
        "--require-hashes",
        "--format",
        "json",
    ]
    done = subprocess.run(  # noqa: S603 -- a fixed program; the arguments are those of whoever runs this
        [*command, "--requirement", str(lock), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    # it ends without a report if the database does not answer
    except (ValueError, LookupError, TypeError):
        return [], [f"no answer: {(done.stderr.strip() or 'no reason was given').splitlines()[-1]}"]
    found = [
        f"{package['name']} {package['version']}: {item['id']}, fixed in "
        f"{', '.join(item['fix_versions']) or '-'}"
        for package in packages
        for item in package.get("vulns", ())
    ]
    return found, [
        f"{package['name']}: {package['skip_reason']}"
        for package in packages
        if "skip_reason" in package
    ]


def main(arguments: list[str]) -> int:
    """Audit every lock, print the findings, and return the exit status."""
    status = CLEAN
    for lock in sorted(LOCKS.glob("*.txt")):
        found, unknown = audit(lock, arguments)
        print(f"{lock.name}: {len(found)} known vulnerabilities, {len(unknown)} not looked up")
        print("".join(f"  {line}\n" for line in (*found, *unknown[:3])), end="")
        if found:
            status = VULNERABLE
        elif unknown and status == CLEAN:
            status = UNKNOWN
    if status == UNKNOWN:
        print(
            "the database of vulnerabilities is out of reach: this says nothing about what "
            "is locked",
            file=sys.stderr,
        )
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
