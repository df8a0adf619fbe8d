"""Bulk work from bucket to bucket, on SeaweedFS behind a proxy: `python -m benchmarks.bulk_store`.

    throughput   5 000 pictures at 30 ms a request, against the same run on local files and a bare copy with obstore
    workers      four workers of `--part`, 30 times one is killed, 5 % of the requests fail, and the store restarts
    names        memory that listing 1 M names takes

Prints the figures and their targets as JSON. All ratios are of one run.
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


def throughput(folder: Path, bucket: Bucket, count: int = 5000) -> dict[str, Any]:
    source, options = pictures(folder / "in", count), ["--pack", "tar", "--shard", SHARD]
    bucket.upload(source, "in")
    with Proxy(bucket.port, delay_s=0.03) as proxy:
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


def workers(folder: Path, bucket: Bucket, count: int = 2000, kills: int = 30, shard: int = 32) -> dict[str, Any]:
    source = pictures(folder / "in", count)
    timed(bulk(source, folder / "out", "--shard", shard))
    requests = killed_workers(source, bucket, shard=shard, kills=kills)
    is_equal = bucket.download("out") == output_files(folder / "out")
    return {"killed": kills, "requests": requests, "equal to local": is_equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("throughput", "workers", "names"))
    what = parser.parse_args().what
    if what == "names":
        print(json.dumps({"1 M names, MiB above start, at most 150": memory_of_names(1_000_000)}))
        return
    with tempfile.TemporaryDirectory() as folder:
        bucket = Bucket(Path(folder))
        bucket.start()
        try:
            print(json.dumps({"throughput": throughput, "workers": workers}[what](Path(folder), bucket), indent=2))
        finally:
            bucket.stop()


if __name__ == "__main__":
    main()
