"""Check that two versions of the service give the same answers to a seeded set of requests.

Run it against a service of each version, with default settings and the shipped models, then compare the two files::

    git worktree add /tmp/old COMMIT
    (cd /tmp/old && IGN_PORT=8001 python -m service) &
    IGN_PORT=8002 python -m service &
    python -m benchmarks.answer_digests http://127.0.0.1:8001 --out old.json --keep old/
    python -m benchmarks.answer_digests http://127.0.0.1:8002 --out new.json --keep new/
    python -m benchmarks.answer_digests --compare old.json new.json

If the set of requests has changed since COMMIT, run the command of that worktree against both. The comparison prints
every request whose answer differs, and exits with status 1 if there is one; ``diff -r old new`` then shows how. A
digest covers the status, the content type, the headers of the contract and the body, of PNGs the pixels. It leaves out
what differs between two runs of one version (request ids, times, counters) and the sentences of error messages. Image
values depend on the machine and on onnxruntime and Pillow, so make both files on one machine with one environment.
"""

import argparse
import asyncio
import base64
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from benchmarks.load_generator.fetch import fetch
from benchmarks.load_generator.messages import EVENTS, HEADER_LENGTH
from benchmarks.load_generator.traffic import bad, good

_PNG_BASE64: Final = "iVBORw0KGgo"  # how every PNG begins in base64
_HEADERS: Final = ("content-type", "content-encoding", "allow", HEADER_LENGTH.lower())
_VOLATILE: Final = {"request_id", "timing", "detail", "error", "message"}


def canonical(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """What of an answer must stay the same; as readable text where the body is JSON or events."""
    named = sorted((name.lower(), value) for name, value in headers.items())
    kept = {name: value for name, value in named if name in _HEADERS or name.startswith("x-ign-")}
    media = kept.get("content-type", "")
    if media.startswith(EVENTS):
        body = "\n".join(_events(body)).encode()
    elif media == "image/png":
        body = _pixels(body)
    elif "json" in media and "content-encoding" not in kept and HEADER_LENGTH.lower() not in kept:
        body = _dump(json.loads(body)).encode()
    return f"{status}\n{json.dumps(kept, indent=1)}\n".encode() + body


def _events(body: bytes) -> list[str]:
    """The events in order of row and step, without comments and `progress`, which depend on time."""
    result: list[tuple[bool, int, int, str]] = []
    for block in body.decode().split("\n\n"):
        name, _, data = block.partition("\ndata: ")
        if name.startswith("event: ") and name != "event: progress":
            value = json.loads(data)
            is_last = name != "event: step"
            result.append((is_last, value.get("index", 0), value.get("step", 0), f"{name}\n{_dump(value)}"))
    return [shown for *_, shown in sorted(result)]


def _pixels(png: bytes) -> bytes:
    """The mode, size and pixels of a PNG: its compression may change between releases."""
    with Image.open(io.BytesIO(png)) as image:
        return f"{image.mode} {image.size} {getattr(image, 'n_frames', 1)} ".encode() + image.tobytes()


def _dump(value: Any) -> str:
    return json.dumps(_stable(value), indent=1, sort_keys=True)


def _stable(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_PNG_BASE64):
        return _pixels(base64.b64decode(value)).hex()
    if isinstance(value, dict):
        return {name: _stable(member) for name, member in value.items() if name not in _VOLATILE}
    return [_stable(item) for item in value] if isinstance(value, list) else value


def requests(number: int) -> Iterator[tuple[str, bytes]]:
    """The set, always the same: good and bad requests to every endpoint, by name."""
    rng = np.random.default_rng(0)
    for index in range(number):
        case = bad(rng) if index % 4 == 3 else good(rng)
        if case.kind not in ("GET /metrics", "slow body"):  # differs each time; takes long
            yield f"{index:04} {case.kind}", case.data


async def digests(url: str, number: int, keep: Path | None) -> dict[str, str]:
    """Status, media type and SHA-256 of every answer of the service at ``url``, by the request's name."""
    place = urlsplit(url)
    result: dict[str, str] = {}
    for name, data in requests(number):
        answer = await fetch(place.port or 80, data, host=place.hostname or "")
        content = canonical(answer.status, answer.headers, answer.body)
        media = answer.headers.get("content-type", "-").partition(";")[0]
        result[name] = f"{answer.status} {media} {hashlib.sha256(content).hexdigest()}"
        if keep is not None:
            await asyncio.to_thread((keep / f"{name[:4]}.txt").write_bytes, name.encode() + b"\n" + content)
    return result


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """One line for every request whose answers differ, or that one side lacks."""
    names = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    return [f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}" for name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", nargs="?", help="a running service, as http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, help="the file to write the digests into")
    parser.add_argument("--keep", type=Path, help="a folder to write the answers into")
    parser.add_argument("--requests", type=int, default=800, help="how many requests (default 800)")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two files of digests")
    options = parser.parse_args()
    if options.compare:
        differences = compare(*(json.loads(path.read_text(encoding="utf-8")) for path in options.compare))
        print("\n".join(differences) or "all answers are equal")
        return bool(differences)
    if not (options.url and options.out):
        parser.error("give URL and --out, or --compare A B")
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    result = asyncio.run(digests(options.url, options.requests, options.keep))
    options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(result)} answers: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
