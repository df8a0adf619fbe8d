"""podman with a store of its own: stand-ins for public images never mix with the images of whoever
runs the tests.
"""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.live import ROOT, environment, until

BASE = "docker.io/library/python:3.13-slim-trixie"
HARDENED = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp:size=64m,mode=1777",
    "--pids-limit=512",
    "--memory=2g",
)
PATIENCE_S = 300.0
BUILD_S = 1500.0


@dataclass(frozen=True)
class Engine:
    """podman on the images and containers below ``store``, which outlives the tests: it holds the
    layers built.
    """

    store: Path

    @property
    def environment(self) -> dict[str, str]:
        return environment(
            CONTAINERS_CONF=str(self.store / "containers.conf"),
            CONTAINERS_STORAGE_CONF=str(self.store / "storage.conf"),
            PODMAN_IGNORE_CGROUPSV1_WARNING="1",
        )

    def prepare(self) -> None:
        """Write podman's settings."""
        self.store.mkdir(parents=True, exist_ok=True)
        limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
        bounds = {name: resource.getrlimit(limit)[1] for name, limit in limits.items()}
        # podman asks for more than it may have where it is itself in a sandbox.
        ulimits = [
            f"{name}={most}:{most}"
            for name, most in bounds.items()
            if most != resource.RLIM_INFINITY
        ]
        lines = [
            "[containers]",
            f"default_ulimits = {json.dumps(ulimits)}",
            "[engine]",
            'events_logger = "file"',
        ]
        if not Path("/run/systemd/system").is_dir():
            lines.append('cgroup_manager = "cgroupfs"')
        if shutil.which("runc"):  # crun refuses control groups of both versions at once
            lines.append('runtime = "runc"')
        (self.store / "containers.conf").write_text("\n".join(lines) + "\n")
        (self.store / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.store}/root"\nrunroot = '
            f'"{self.store}/run"\n'
        )

    def run(
        self, *arguments: str, timeout: float = PATIENCE_S
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["podman", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def say(self, *arguments: str, timeout: float = PATIENCE_S) -> str:
        """What podman prints.

        Raises:
            AssertionError: it failed; with the end of what it said.
        """
        done = self.run(*arguments, timeout=timeout)
        assert done.returncode == 0, (
            f"podman {' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        return self.run("image", "exists", image).returncode == 0

    def build(self, tag: str, *options: str, context: Path = ROOT) -> str:
        """Build, never pulling; layers built before are taken again."""
        # Where a proxy signs what comes from the package index, its authority is known in here,
        # too.
        authority = os.environ.get("SSL_CERT_FILE")
        volumes = (
            [f"--volume={authority}:/etc/ssl/certs/ca-certificates.crt:ro"] if authority else []
        )
        fixed = (
            f"--build-arg=BASE={BASE}",
            "--layers",
            "--format=docker",
            "--isolation=chroot",
            "--network=host",
            "--pull=never",
        )
        self.say("build", *fixed, *volumes, *options, "--tag", tag, str(context), timeout=BUILD_S)
        return tag

    def inspect(self, name: str) -> dict[str, Any]:
        return json.loads(self.say("inspect", name))[0]

    @contextmanager
    def started(self, image: str, *options: str) -> Iterator["Container"]:
        """A hardened container with port 8000 on a free port of 127.0.0.1, removed at the end."""
        name = self.say("run", "--detach", "--publish=127.0.0.1::8000", *HARDENED, *options, image)
        try:
            yield Container(self, name)
        finally:
            self.say("rm", "--force", "--time=0", name)

    def ends(
        self, image: str, *options: str, command: Sequence[str] = ()
    ) -> "subprocess.CompletedProcess[str]":
        """Run a hardened container to its end."""
        return self.run("run", "--rm", *HARDENED, *options, image, *command)


@dataclass(frozen=True)
class Container:
    engine: Engine
    name: str

    @property
    def url(self) -> str:
        return f"http://{self.engine.say('port', self.name, '8000').splitlines()[0]}"

    @property
    def state(self) -> dict[str, Any]:
        return self.engine.inspect(self.name)["State"]

    def log(self) -> str:
        done = self.engine.run("logs", self.name)
        return done.stdout + done.stderr

    def healthy(self) -> None:
        """Wait for its own health check. Without systemd nobody runs that but us."""

        def check() -> bool:
            assert self.state["Running"], self.log()
            return self.engine.run("healthcheck", "run", self.name).returncode == 0

        until(check, self.log, PATIENCE_S)
        assert self.state["Health"]["Status"] == "healthy"

    def terminate(self) -> None:
        self.engine.say("kill", "--signal=TERM", self.name)

    def ended(self) -> int:
        """Its exit status, once it has one."""
        return int(self.engine.say("wait", self.name))
