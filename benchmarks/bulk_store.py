"""Bulk work from bucket to bucket, on SeaweedFS behind a proxy: `python -m benchmarks.bulk_store`.

    throughput   5 000 pictures at 30 ms a request, against the same run on local files and a bare copy with obstore
    workers      four workers of `--part`, 30 times one is killed, 5 % of the requests fail, and the store restarts
    names        memory that listing 1 M names takes

Prints the figures and their targets as JSON. All ratios are of one run. With `--ray`, the workers are two actors. Ray
opens ports on every address, and any actor that this process sees may be killed, so run it in namespaces of its own:

    unshare -n -p -f --mount-proc bash -c 'ip link set lo up && python -m benchmarks.bulk_store workers --ray'
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.helpers.bulk_store import bulk, killed_workers, memory_of_names, pictures, timed
from tests.helpers.object_store import Bucket, Proxy
from tests.unit.service.bulk.conftest import output_files

SHARD = 512
COPY = """
import obstore
from concurrent.futures import ThreadPoolExecutor
from obstore.store import from_url
near, far = (from_url(f"s3://models/{name}", client_options={"allow_http": True}) for name in ("in", "copy"))
names = [each["path"] for chunk in obstore.list(near) for each in chunk]
with ThreadPoolExecutor(64) as pool:
    contents = list(pool.map(lambda name: bytes(obstore.get(near, name).bytes()), names))
for n in range(0, len(contents), SHARD):
    obstore.put(far, str(n), b"".join(contents[n : n + SHARD]))
""".replace("SHARD", str(SHARD))


def throughput(bucket: Bucket, count: int = 5000) -> dict[str, Any]:
    folder = bucket.folder
    source, options = pictures(folder / "in", count), ["--pack", "tar", "--shard", SHARD]
    bucket.upload(source, "in")
    with Proxy(bucket, delay_s=0.03) as proxy:
        local = timed(bulk(source, folder / "out", *options))
        copy = timed([sys.executable, "-c", COPY], **proxy.environment)
        proxy.seen.clear()
        proxy.most.clear()
        far = timed(bulk("s3://models/in", "s3://models/out", *options), **proxy.environment)
    written = [request.rpartition("/")[2].partition(".")[0] for request in proxy.seen if request.startswith("PUT")]
    return {
        "local, copy, store [s]": [round(seconds, 1) for seconds, _ in (local, copy, far)],
        "rate over that of local and copy, at least 0.8": round((local[0] + copy[0]) / far[0], 2),
        "CPU above local [ms a picture], at most 0.8": round(1000 * (far[1] - local[1]) / count, 2),
        "reads in flight, at least 48": proxy.most["GET"],
        "writes of a shard, at most 3": max(Counter(name for name in written if name.isdigit()).values()),
        "equal to local": bucket.download("out") == output_files(folder / "out"),
    }


def workers(bucket: Bucket, kills: int, *, ray: bool, shard: int = 32) -> dict[str, Any]:
    source, local = pictures(bucket.folder / "in", 2000 * kills // 30), bucket.folder / "out"
    timed(bulk(source, local, "--shard", shard))
    requests = killed_workers(source, bucket, shard=shard, kills=kills, ray=ray)
    return {"killed": kills, "requests": requests, "equal to local": bucket.download("out") == output_files(local)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("throughput", "workers", "names"))
    parser.add_argument("--kills", type=int, default=30, help="of workers (30), with 67 pictures each")
    parser.add_argument("--ray", action="store_true", help="on Ray")
    options = parser.parse_args()
    if options.what == "names":
        print(json.dumps({"1 M names, MiB above start, at most 150": memory_of_names(1_000_000)}))
        return
    with tempfile.TemporaryDirectory() as folder, Bucket(Path(folder)) as bucket:
        found = throughput(bucket) if options.what == "throughput" else workers(bucket, options.kills, ray=options.ray)
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
