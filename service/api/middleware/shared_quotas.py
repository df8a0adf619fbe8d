"""The rate limits of several processes: one table in a file that all of them map."""

import fcntl
import mmap
import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Final

from service.domain.rate_limit import Rate, next_due

_ENTRY: Final = struct.Struct("<Qd")  # hash of the caller, 0 for an empty entry; its `due`
_WAYS: Final = 8  # entries of a bucket, one of which a caller takes
_BUCKET_BYTES: Final = _WAYS * _ENTRY.size


class SharedGCRA:
    """As `service.domain.rate_limit.GCRA`, over all processes that open the same file.

    The hash of a caller chooses a bucket. A process locks the bytes of that bucket for some microseconds; the kernel
    drops the lock of a process that dies.

    Args:
        path: the file; the first process creates it.
        callers: how many are stored. Beyond that, or if a bucket is full, the caller that has been quiet longest is
            dropped and starts anew.
    """

    def __init__(self, path: Path, callers: int = 65_536) -> None:
        self._buckets = max(1, callers // _WAYS)
        size = self._buckets * _BUCKET_BYTES
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, size)
        self._memory = mmap.mmap(self._file, size)

    def wait(self, caller: str, rate: Rate, now: float) -> float:
        """Count a request of this caller at ``now``, in seconds of `time.monotonic`, which all processes share.

        Returns:
            0 if it is within the rate; else the seconds after which it would be. Then it does not count.
        """
        digest = int.from_bytes(blake2b(caller.encode(), digest_size=8).digest(), "little")
        start, key = digest % self._buckets * _BUCKET_BYTES, digest or 1
        fcntl.lockf(self._file, fcntl.LOCK_EX, _BUCKET_BYTES, start)
        try:
            entries = list(_ENTRY.iter_unpack(self._memory[start : start + _BUCKET_BYTES]))
            known = {found: way for way, (found, _) in enumerate(entries)}
            way = known.get(key, -1)
            due, wait = next_due(entries[way][1] if way >= 0 else now, rate, now)
            if not wait:
                if way < 0:
                    way = min(range(_WAYS), key=lambda each: entries[each][1] if entries[each][0] else 0.0)
                _ENTRY.pack_into(self._memory, start + way * _ENTRY.size, key, due)
            return wait
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, _BUCKET_BYTES, start)

    def close(self) -> None:
        """Unmap and close the file."""
        self._memory.close()
        os.close(self._file)
