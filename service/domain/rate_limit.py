"""Rate limits: requests per second or minute, and the algorithm that enforces them."""

import contextlib
import fcntl
import os
import re
import struct
import time
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from service.domain.errors import StartupError

EXPECTED: Final = "requests per second or minute such as 20/s or 600/m"
_SECONDS: Final = {"s": 1.0, "m": 60.0}
_ENTRY: Final = struct.Struct("<Qd")  # hash of the caller, 0 for an empty entry; its `due`
_WAYS: Final = 8  # entries of a bucket, one of which a caller takes
_BUCKET_BYTES: Final = _WAYS * _ENTRY.size
_TRIES: Final = 500  # to count a request, in at least 25 ms: whoever holds the lock for longer is stopped
_PAUSE_S: Final = 50e-6


@dataclass(frozen=True, slots=True)
class Rate:
    """``count`` requests in ``seconds``: so many at once after a pause, and one every ``interval`` in the long run."""

    count: float
    seconds: float

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """Read `20/s` or `600/m`; anything else raises ValueError with `EXPECTED`."""
        match = re.fullmatch(r"([1-9][0-9]{0,8})/([sm])", text)
        if match is None:
            raise ValueError(EXPECTED)
        return cls(int(match[1]), _SECONDS[match[2]])

    @property
    def interval(self) -> float:
        """Seconds from one request to the next in the long run."""
        return self.seconds / self.count

    def __str__(self) -> str:
        return f"{self.count:g} requests in {self.seconds:g} s"


def next_due(due: float, rate: Rate, now: float) -> tuple[float, float]:
    """What `GCRA` stores after a request at ``now``, and how long that has to wait: 0 if it is within the rate."""
    following = max(due, now) + rate.interval
    ahead = following - now - rate.seconds
    return following, ahead if ahead > 1e-9 else 0.0  # sums of intervals have rounding errors


class GCRA:
    """Limits every caller to a rate, in constant time and memory (generic cell rate algorithm, ITU-T I.371).

    Beyond ``callers``, the one that has been quiet longest is dropped and starts anew. Belongs to one thread.
    """

    def __init__(self, callers: int = 65_536) -> None:
        self._callers = callers
        # The end of the requests admitted so far if they had come one `interval` apart. It may be up to `seconds` in
        # the future, which is `count` requests at once. With 4/s, four requests at 10.0 s move it to 11.0 s, and a
        # fifth has to wait until 10.25 s.
        self._due: OrderedDict[str, float] = OrderedDict()

    def wait(self, caller: str, rate: Rate, now: float) -> float:
        """Count a request at ``now``, in seconds on any monotonic clock, and return 0; or the seconds to wait."""
        due, wait = next_due(self._due.get(caller, now), rate, now)
        if wait:
            self._due.move_to_end(caller)
            return wait
        self._due[caller] = due
        self._due.move_to_end(caller)
        if len(self._due) > self._callers:
            self._due.popitem(last=False)
        return 0.0


class SharedGCRA:
    """As `GCRA`, over all processes that open the same file; the first one creates it.

    The hash of a caller chooses a bucket. A process locks the bytes of that bucket for some microseconds; the kernel
    drops the lock of a process that dies. Beyond ``callers``, or if a bucket is full, the caller that has been quiet
    longest is dropped and starts anew. A request does not count if its bucket cannot be locked, read or written. The
    file has its whole size from the start, so a full disk changes nothing; raises StartupError if it cannot be made.
    """

    def __init__(self, path: Path, callers: int = 65_536) -> None:
        self._buckets = max(1, callers // _WAYS)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(self._file, 0, self._buckets * _BUCKET_BYTES)
        except OSError as exc:
            raise StartupError(f"TMPDIR: the file that counts the rates cannot be made: {exc.strerror}") from exc

    def wait(self, caller: str, rate: Rate, now: float) -> float:
        """Count a request of this caller at ``now``, in seconds of `time.monotonic`, which all processes share.

        Returns 0 if it is within the rate; else the seconds after which it would be. Then it does not count.
        """
        digest = int.from_bytes(blake2b(caller.encode(), digest_size=8).digest(), "little")
        start = digest % self._buckets * _BUCKET_BYTES
        for _ in range(_TRIES):
            with contextlib.suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, _BUCKET_BYTES, start)
                try:
                    return self._count(start, digest or 1, rate, now)
                finally:
                    fcntl.lockf(self._file, fcntl.LOCK_UN, _BUCKET_BYTES, start)
            time.sleep(_PAUSE_S)
        return 0.0

    def _count(self, start: int, key: int, rate: Rate, now: float) -> float:
        entries = list(_ENTRY.iter_unpack(os.pread(self._file, _BUCKET_BYTES, start)))
        known = {caller: way for way, (caller, _) in enumerate(entries)}
        way = known.get(key, -1)
        due, wait = next_due(entries[way][1] if way >= 0 else now, rate, now)
        if not wait:
            if way < 0:
                way = min(range(_WAYS), key=lambda each: entries[each][1] if entries[each][0] else 0.0)
            os.pwrite(self._file, _ENTRY.pack(key, due), start + way * _ENTRY.size)
        return wait

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
