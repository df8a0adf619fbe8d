"""Accounts: what each caller holds of a finite resource, and at which rate it may ask.

A resource has a capacity C and, above it, a reserve R. A caller that holds h of it gets x more if
one of these holds; T is held in all, and n callers hold some, this one included:

    T + x ≤ C      and  h + x ≤ C / n               its share
    T + x ≤ C + R  and  h = 0                       the first request of a newcomer
    T + x ≤ C + R  and  h + x ≤ C + R − (T + x)     no more than what it leaves free

and h + x ≤ C. So a caller that is alone may hold C. When another comes, a caller above its share
keeps what it holds and gets no more, and the newcomer finds the reserve: those above their share do
not get it. The third rule is the dynamic threshold of switch buffers (Choudhury and Hahne, 1998).
Where many callers hold little, it allows more than C / n to one of them.

Where callers wait instead, the next one is the one that has spent least.
"""

import asyncio
import contextlib
import fcntl
import mmap
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from service.domain.errors import (
    OverShare,
    RateLimited,
    StartupError,
    TooLarge,
    TooManyBytes,
    TooManyConnections,
)

_SECONDS: Final = {"s": 1.0, "m": 60.0}
_ENTRY: Final = struct.Struct("<Qd")  # hash of the caller, 0 for an empty entry; its `due`
_WAYS: Final = 8  # entries of a bucket, one of which a caller takes
_BUCKET: Final = struct.Struct(f"<{'Qd' * _WAYS}")
_ROUNDING: Final = 1e-9  # seconds; sums of intervals have rounding errors
# To count a request, in at least 25 ms: whoever holds the lock for longer is stopped.
_TRIES: Final = 500
_PAUSE_S: Final = 50e-6


class Capacity(NamedTuple):
    """What there is of a resource, and the ``reserve`` above it."""

    size: int
    reserve: int

    @classmethod
    def of(cls, size: int, largest: int = 1) -> "Capacity":
        """With a reserve of a quarter, but room for the ``largest`` request."""
        return cls(size, max(size // 4, largest))

    def has_room(self, amount: int, held: int, total: int, callers: int) -> bool:
        """Whether a caller that holds ``held`` gets ``amount`` more; see the module."""
        after = total + amount
        own = held + amount
        if after <= self.size and own * callers <= self.size:
            return True
        free = self.size + self.reserve - after
        return free >= 0 and own <= self.size and (not held or own <= free)

    def is_over_share(self, own: int, callers: int) -> bool:
        """Whether ``own`` is more than an equal share."""
        return own * callers > self.size


UNLIMITED: Final = Capacity(sys.maxsize, 0)


class Accounts:
    """What each caller holds of one resource, or has spent of it. Belongs to one thread."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.total = 0
        self.held: dict[str, int] = {}  # by caller; none holds 0
        self.spent: dict[str, float] = {}  # by caller that holds some or waits

    def take(self, caller: str, amount: int) -> bool:
        """Give ``amount`` to the caller, if it has room."""
        held = self.held.get(caller, 0)
        callers = len(self.held) + (not held)
        # If all together hold no more than one share, no caller has more.
        is_little = (self.total + amount) * callers <= self.capacity.size
        if not is_little and not self.capacity.has_room(amount, held, self.total, callers):
            return False
        self.held[caller] = held + amount
        self.total += amount
        return True

    def give_back(self, caller: str, amount: int) -> None:
        """Take back what the caller has no more use for."""
        self.total -= amount
        self.held[caller] -= amount
        if not self.held[caller]:
            del self.held[caller]

    def next(self, waiting: Collection[str]) -> str:
        """Of callers that wait, the one that holds least, and of those, has spent least."""
        spent = self.begin((*self.held, *waiting))
        return min(waiting, key=lambda each: (self.held.get(each, 0), spent[each]))

    def begin(self, callers: Iterable[str]) -> dict[str, float]:
        """What these callers have spent, from now on; others are forgotten."""
        # A newcomer begins as if it had spent as little as any other: it is next, but not for as
        # long as it was away.
        least = min(self.spent.values(), default=0.0)
        self.spent = {each: self.spent.get(each, least) for each in callers}
        return self.spent

    def is_over_share(self, caller: str, amount: int) -> bool:
        """Whether the caller would hold more than an equal share with ``amount`` more."""
        held = self.held.get(caller, 0)
        return self.capacity.is_over_share(held + amount, len(self.held) + (not held))


class InFlightRequests:
    """Counts the requests in flight and the bytes that they hold, for each caller. Belongs to one
    event loop.

    Bytes are those of bodies, of responses and of the arrays that these are made from.
    `service.server` sets `leaving` (requests are still answered) and `draining` (no longer) once
    each, and waits with `idle`. `ModelRegistry` waits with `wait_for_current` before it closes a
    model.
    """

    def __init__(self, max_requests: Capacity, max_bytes: Capacity) -> None:
        self.leaving = self.draining = False
        self.requests = Accounts(max_requests)
        self.bytes = Accounts(max_bytes)
        self._epoch = Epoch()
        self._past_epochs: list[Epoch] = []

    @property
    def count(self) -> int:
        """Requests in flight."""
        return self.requests.total

    def enter(self, caller: str) -> "Epoch":
        """Count a request that begins; pass the return value to `leave`. Raises `OverShare` or
        `TooManyConnections`.
        """
        if not self.requests.take(caller, 1):
            if self.requests.is_over_share(caller, 1):
                raise OverShare(
                    "too many requests of this caller are in flight (IGN_MAX_INFLIGHT_REQUESTS)"
                )
            raise TooManyConnections("too many requests are in flight")
        epoch = self._epoch
        epoch.requests += 1
        return epoch

    def hold(self, caller: str, held: int, size: int) -> None:
        """Count bytes more of a request that holds some, until it ends.

        Raises `OverShare` or `TooManyBytes` if there is no room for them now, and `TooLarge` if
        there never is.

        Bytes of a body count as they arrive. If an announced length counted, a few slow clients
        could reserve everything without sending a byte.
        """
        capacity = self.bytes.capacity.size
        if held + size > capacity:
            text = (
                f"the request needs {held + size} bytes; the limit, IGN_MAX_INFLIGHT_BYTES, "
                f"is {capacity}"
            )
            raise TooLarge(text)
        if not self.bytes.take(caller, size):
            if self.bytes.is_over_share(caller, size):
                raise OverShare(
                    "the requests of this caller hold too many bytes (IGN_MAX_INFLIGHT_BYTES)"
                )
            raise TooManyBytes("the requests in flight hold too many bytes")

    def leave(self, epoch: "Epoch", caller: str, held_bytes: int) -> None:
        """Count a request that has ended, and the bytes that `hold` counted for it."""
        self.requests.give_back(caller, 1)
        if held_bytes:
            self.bytes.give_back(caller, held_bytes)
        epoch.requests -= 1
        if epoch.requests == 0 and epoch is not self._epoch:
            epoch.set()

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        while self.count:
            await self.wait_for_current()

    async def wait_for_current(self) -> None:
        """Wait until every request in flight at the time of the call has ended; later requests do
        not count.

        After it returns, no running request uses a model that lost its name before the call.
        """
        self._past_epochs = [epoch for epoch in (*self._past_epochs, self._epoch) if epoch.requests]
        self._epoch = Epoch()
        for epoch in list(self._past_epochs):
            await epoch.wait()


class Epoch(asyncio.Event):
    """The requests that began between two calls of `InFlightRequests.wait_for_current`; set when
    none is left and none can be added.
    """

    requests = 0


@dataclass(frozen=True, slots=True)
class Rate:
    """``count`` requests in ``seconds``: so many at once after a pause, in the long run one every
    ``interval``.
    """

    count: float
    seconds: float

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.count:g}/{'m' if self.seconds > 1 else 's'}"

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """Read `20/s` or `600/m`; anything else raises ValueError."""
        match = re.fullmatch(r"([1-9][0-9]{0,8})/([sm])", text)
        if match is None:
            raise ValueError("requests per second or minute such as 20/s or 600/m")
        return cls(int(match[1]), _SECONDS[match[2]])

    @property
    def interval(self) -> float:
        """Seconds from one request to the next in the long run."""
        return self.seconds / self.count


ERRORS: Final = Rate(1, 1 / 250)
"""Of each caller, however slow the model is: 4 % of the event loop's time."""
_MOST_PAUSE_S: Final = 0.75  # less than the server waits for connections when it stops


class Rates:
    """Limits callers to rates, in constant time and memory (generic cell rate algorithm, ITU-T
    I.371). Thread-safe.

    With ``path`` over all processes that open the same file, which the first one creates with its
    whole size, so that a full disk changes nothing; raises StartupError if it cannot be made.
    ``clock`` gives monotonic seconds, the same in all processes.

    The hash of a caller chooses a bucket. A process locks the bytes of that bucket for some
    microseconds; the kernel drops the lock of a process that dies. Beyond ``callers``, or if a
    bucket is full, the caller that has been quiet longest is dropped and starts anew. A request
    does not count if its bucket cannot be locked.
    """

    # An entry holds the end of the requests admitted so far if they had come one `interval` apart.
    # It may be up to `seconds` in the future, which is `count` requests at once. With 4/s, four
    # requests at 10.0 s move it to 11.0 s, and a fifth has to wait until 10.25 s.
    def __init__(
        self,
        path: Path | None = None,
        *,
        callers: int = 65_536,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # that of the file is of the process, not of a thread
        self._buckets = max(1, callers // _WAYS)
        self._file = -1
        size = self._buckets * _BUCKET.size
        if path is not None:
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                os.posix_fallocate(self._file, 0, size)
            except OSError as exc:
                raise StartupError(
                    f"TMPDIR: the file that counts the rates cannot be made: {exc.strerror}"
                ) from exc
        self._entries = mmap.mmap(self._file, size)

    def count(self, caller: str, rate: Rate) -> None:
        """Count a request, or raise `RateLimited` if it is beyond the rate. `Application._admit`
        alone calls it; another rate of a caller is a method beside it, with names of its own for
        `wait`, as `pause` has.
        """
        if wait := self.wait(caller, rate):
            detail = f"more than {rate.count:g} requests in {rate.seconds:g} s"
            raise RateLimited(detail, retry_after=wait)

    def pause(self, caller: str) -> float:
        """Count an error, and return for how many seconds it has to wait for earlier ones of its
        caller, at most 0.75.

        A client that ignores `Retry-After`, or repeats what is wrong, comes back at once, and an
        error takes CPU time that other requests then lack.
        """
        return min(self.wait(f"errors of {caller}", ERRORS, _MOST_PAUSE_S), _MOST_PAUSE_S)

    def wait(self, caller: str, rate: Rate, patience_s: float = 0.0) -> float:
        """Seconds that a request has to wait, 0 within the rate. Beyond ``patience_s`` it does not
        count. One that counts as n has the rate `Rate(count / n, seconds)`.
        """
        digest = int.from_bytes(blake2b(caller.encode(), digest_size=8).digest(), "little") or 1
        start = digest % self._buckets * _BUCKET.size
        with self._lock:
            if self._file < 0:
                return self._count(start, digest, rate, patience_s)
            for _ in range(_TRIES):
                with contextlib.suppress(OSError):
                    fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, _BUCKET.size, start)
                    try:
                        return self._count(start, digest, rate, patience_s)
                    finally:
                        fcntl.lockf(self._file, fcntl.LOCK_UN, _BUCKET.size, start)
                time.sleep(_PAUSE_S)
            return 0.0

    def _count(self, start: int, key: int, rate: Rate, patience_s: float) -> float:
        now = self._clock()
        bucket = _BUCKET.unpack_from(self._entries, start)
        keys, dues = bucket[::2], bucket[1::2]
        is_known = key in keys
        # Its own entry, else an empty one, else that of the caller that has been quiet longest.
        way = keys.index(key) if is_known else dues.index(min(dues))
        due = (max(dues[way], now) if is_known else now) + rate.interval
        wait = due - now - rate.seconds
        if wait <= max(patience_s, _ROUNDING):
            _ENTRY.pack_into(self._entries, start + way * _ENTRY.size, key, due)
        return wait if wait > _ROUNDING else 0.0
