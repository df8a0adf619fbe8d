"""Scenarios of bulk work between buckets, of any size: for tests."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from tests.helpers.folders import write
from tests.helpers.live import environment, free_port, processes, run, until
from tests.helpers.object_store import ACCESS, Bucket, Proxy
from tests.unit.service.bulk.conftest import picture

LIST: Final = """
import pathlib, re, tempfile
from service.bulk import __main__
from service.bulk.output import Output
from service.bulk.sources import Listing
def resident(): return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
start = resident()
with tempfile.TemporaryDirectory() as folder:
    out = Output(folder)
    listing = Listing("s3://models/in", None, out.place.get)
    out.start({}, listing)
print(len(listing.rows), resident() - start >> 10)
"""
ENTRY: Final = "<Key>in/{:09}-of-a-scan.png</Key><LastModified>2026-01-01T00:00:00Z</LastModified><Size>9</Size>"


def pictures(folder: Path, count: int, side: int = 28) -> Path:
    return write(
        folder, {f"{number:06}.png": picture(number, (side, side)) for number in range(count)}
    )


def bulk(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "service.bulk", "project", *map(str, arguments), "--steps", "1"]


def timed(command: list[str], **variables: str) -> tuple[float, float]:
    """Seconds of wall clock and of CPU of a command that succeeds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = run(*command, IGN_DEVICE="cpu", **variables)
    assert done.returncode == 0, done.stderr[-2000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, sum(after[:2]) - sum(before[:2])


def killed_workers(
    source: Path, bucket: Bucket, *, shard: int, kills: int, ray: bool, **variables: str
) -> int:
    """Four workers do all parts from `in` to `out`, or on ``ray`` two actors do, though 5 % of the
    requests fail, the store restarts and a number of them are killed (on ``ray`` any actor of the
    process namespace); returns how many requests that took.
    """
    chance = random.Random(0)
    count = len(list(source.iterdir()))
    bucket.upload(source, "in")
    with Proxy(bucket, failing=0.05) as proxy:
        settings = environment(
            IGN_DEVICE="cpu", **{"IGN_THREADS": "1"} | variables | proxy.environment
        )

        def work(part: int) -> subprocess.Popen[bytes]:
            options: list[object] = ["--ray", "--actors", 2] if ray else ["--part", f"{part}/4"]
            command = bulk(f"{bucket.url}/in", f"{bucket.url}/out", "--shard", shard, *options)
            return subprocess.Popen(
                command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )

        running = {part: work(part) for part in range(1, 2 if ray else 5)}
        for number in range(kills):
            moment = len(proxy.seen) + chance.randrange(1, 2 * count // kills)
            while len(proxy.seen) < moment and any(one.poll() is None for one in running.values()):
                time.sleep(0.01)  # between two looks at other processes
            if number == kills // 2 and bucket.restarts:
                bucket.stop()
                bucket.start()
            part = chance.choice(sorted(running))
            if ray:
                until(
                    lambda: kill_actor(chance),
                    lambda: "there is no actor that can be killed",
                    300.0,
                )
                continue
            running[part].kill()
            running[part].communicate()
            running[part] = work(part)
        said = [(process, process.communicate()[1].decode()) for process in running.values()]
        for process, text in said:
            assert process.returncode == 0, text[-2000:]
        return len(proxy.seen)


def kill_actor(chance: random.Random) -> bool:
    """Kill one of Ray Data's actors; returns whether there was one."""
    found = sorted(processes(b"ray::MapWorker"))
    if found:
        os.kill(chance.choice(found), signal.SIGKILL)
    return bool(found)


def memory_of_names(count: int) -> int:
    """MiB that listing so many objects takes, of a store that has nothing but names."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start = int(self.path.partition("continuation-token=")[2].partition("&")[0] or 0)
            stop = min(start + 1000, count)
            token = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < count else ""
            entries = "".join(
                f"<Contents>{ENTRY.format(number)}</Contents>" for number in range(start, stop)
            )
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"<ListBucketResult>{token}{entries}</ListBucketResult>".encode())

        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", free_port()), Pages) as server:
        threading.Thread(target=server.serve_forever).start()
        done = run(
            sys.executable,
            "-c",
            LIST,
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.server_port}",
            **ACCESS,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == str(count)
    return int(done.stdout.split()[1])
