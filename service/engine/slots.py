"""Rows in shared memory: the slots that one front end shares with the engine, and two rings of slot numbers.

The front end writes rows into a free slot and puts the slot's number into the ring `submitted`. The engine answers in
the same slot and puts the number into the ring `completed`. From then on the slot is free again. So a slot always has
one owner, and nobody locks.

Each use of a slot has a generation, which its ring entries carry. A cancellation that arrives after the slot is used
again names an old generation, and the engine ignores it.

The number of new entries passes through an eventfd. Its system calls also order the memory accesses of the two
processes.
"""

import math
import mmap
import os
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from service.domain.latents import FloatRows
from service.domain.tasks import Result

SLOTS: Final = 512
DATA_BYTES: Final = 1 << 16  # of a slot: rows, or a pickled error
TEXT_BYTES: Final = 256  # of a slot: fairness key and request id
MAX_ROWS: Final = 64  # of a slot
CANCEL: Final = 1 << 62
"""Bit of an entry of `submitted`: cancel this use of the slot."""

_SMALL: Final = 1024  # numbers; rows of up to so many are copied together, which costs a further copy but fewer calls
_SLOT_BITS: Final = 16
_SUBMITTED: Final = 4 * SLOTS  # a slot has at most three unread entries: an old cancellation, a use, its cancellation
_PAGE: Final = 4096

Row = NDArray[np.int64]


class Head(NamedTuple):
    """The numbers of a slot."""

    generation: int
    model: int
    rows: int
    steps: int
    score: int
    key_bytes: int
    id_bytes: int
    error_bytes: int  # set by the engine; 0: the slot holds a result


_ERROR_BYTES: Final = Head._fields.index("error_bytes")


class Times(NamedTuple):
    """The times of a slot in seconds: the deadline on `time.monotonic`; the engine sets the others."""

    deadline: float
    queue_s: float
    compute_s: float


_LAYOUT: Final[dict[str, tuple[tuple[int, ...], type[np.generic]]]] = {
    "submitted": ((_SUBMITTED,), np.int64),
    "completed": ((SLOTS,), np.int64),
    "heads": ((SLOTS, len(Head._fields)), np.int64),
    "times": ((SLOTS, len(Times._fields)), np.float64),
    "measures": ((SLOTS, 2, MAX_ROWS), np.float64),
    "text": ((SLOTS, TEXT_BYTES), np.uint8),
    "data": ((SLOTS, DATA_BYTES // 4), np.float32),
}


def _size(name: str) -> int:
    shape, kind = _LAYOUT[name]
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return -(-size // _PAGE) * _PAGE


SEGMENT_BYTES: Final = sum(map(_size, _LAYOUT))


class SlotFiles(NamedTuple):
    """The file descriptors of a segment: its memory, and the eventfds of `submitted` and `completed`."""

    memory: int
    submitted: int
    completed: int

    @classmethod
    def create(cls) -> Self:
        """A new segment, of which every slot is free."""
        memory = os.memfd_create("ign-slots", os.MFD_CLOEXEC)
        os.ftruncate(memory, SEGMENT_BYTES)
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        return cls(memory, os.eventfd(0, flags), os.eventfd(0, flags))

    def close(self) -> None:
        """Close the descriptors; a mapping stays valid."""
        for descriptor in self:
            os.close(descriptor)


class Ring:
    """One direction of a segment: a ring of entries that one process writes and the other reads.

    The writer never has more unread entries in the ring than it has room for.

    Args:
        entries: the ring.
        bell: the eventfd; it counts the unread entries.
    """

    def __init__(self, entries: NDArray[np.int64], bell: int) -> None:
        self._entries, self._bell, self._position = entries, bell, 0

    def put(self, new: Sequence[int]) -> None:
        """Write entries, and wake the reader once."""
        if not new:
            return
        start, room = self._position, len(self._entries) - self._position
        self._entries[start : start + len(new)] = new[:room]
        self._entries[: max(0, len(new) - room)] = new[room:]
        self._position = (start + len(new)) % len(self._entries)
        os.eventfd_write(self._bell, len(new))

    def take(self) -> list[int]:
        """Every entry that has been written since the last call."""
        try:
            count = os.eventfd_read(self._bell)
        except BlockingIOError:
            return []
        start, room = self._position, len(self._entries) - self._position
        self._position = (start + count) % len(self._entries)
        taken: list[int] = self._entries[start : start + count].tolist()
        return taken if count <= room else taken + self._entries[: count - room].tolist()


class Segment:
    """The shared memory of one front end and the engine; both map the same.

    Args:
        files: of `SlotFiles.create`; they stay the caller's to close.
    """

    def __init__(self, files: SlotFiles) -> None:
        # Views of the arrays keep the mapping alive, so that it is unmapped when the last request is gone.
        memory = mmap.mmap(files.memory, SEGMENT_BYTES)
        start = 0
        arrays: dict[str, NDArray[Any]] = {}
        for name, (shape, kind) in _LAYOUT.items():
            arrays[name] = np.frombuffer(memory, kind, int(np.prod(shape)), start).reshape(shape)
            start += _size(name)
        self.heads, self.times, self.measures = arrays["heads"], arrays["times"], arrays["measures"]
        self._text, self._data = arrays["text"], arrays["data"]
        self.submitted = Ring(arrays["submitted"], files.submitted)
        self.completed = Ring(arrays["completed"], files.completed)

    def rows(self, slot: int, count: int, shape: tuple[int, ...]) -> FloatRows:
        """(count, *shape) float32: a view of the slot."""
        view: FloatRows = self._data[slot, : count * math.prod(shape)].reshape(count, *shape)
        return view

    def write_text(self, slot: int, text: bytes) -> None:
        """Put the fairness key and the request id into the slot."""
        self._text[slot, : len(text)] = np.frombuffer(text, np.uint8)

    def read_texts(self, slots: Sequence[int]) -> list[bytes]:
        """All bytes of the texts of slots; `Head` says how many are in use."""
        texts = self._text[slots].tobytes()
        return [texts[start : start + TEXT_BYTES] for start in range(0, len(texts), TEXT_BYTES)]

    def read_rows(
        self, slots: Sequence[int], count: int, shape: tuple[int, ...], *, copy: bool = False
    ) -> Sequence[FloatRows]:
        """For each slot (count, *shape) float32: copies if they are small or that is asked for, else views."""
        size = count * math.prod(shape)
        if size <= _SMALL:
            return list(self._data[slots, :size].reshape(len(slots), count, *shape))
        views = [self.rows(slot, count, shape) for slot in slots]
        return [view.copy() for view in views] if copy else views

    def write_results(self, slots: Sequence[int], results: Sequence[Result]) -> None:
        """Put results with rows of the same shape into slots."""
        number, count = len(slots), len(results[0].rows)
        if results[0].rows.size <= _SMALL:
            rows = np.concatenate([result.rows for result in results]).reshape(number, -1)
            self._data[slots, : rows.shape[1]] = rows
        else:
            for slot, result in zip(slots, results, strict=True):
                self.rows(slot, count, result.rows.shape[1:])[...] = result.rows
        distances = np.concatenate([result.distance for result in results])
        self.measures[slots, 0, :count] = distances.reshape(number, count)
        if any(result.drift is not None for result in results):
            drifts = [result.distance if result.drift is None else result.drift for result in results]
            self.measures[slots, 1, :count] = np.concatenate(drifts).reshape(number, count)
        self.times[slots, 1:] = [(result.queue_s, result.compute_s) for result in results]
        self.heads[slots, _ERROR_BYTES] = 0

    def write_error(self, slot: int, pickled: bytes) -> None:
        """Put a pickled error into the slot."""
        self._data[slot].view(np.uint8)[: len(pickled)] = np.frombuffer(pickled, np.uint8)
        self.heads[slot, _ERROR_BYTES] = len(pickled)

    def read_error(self, slot: int, size: int) -> bytes:
        """The pickled error in the slot."""
        pickled: bytes = self._data[slot].view(np.uint8)[:size].tobytes()
        return pickled


def entry(slot: int, generation: int) -> int:
    """The entry of a ring for one use of a slot."""
    return generation << _SLOT_BITS | slot


def use_of(ring_entry: int) -> tuple[int, int]:
    """Slot and generation of an entry, without the bit `CANCEL`."""
    ring_entry &= ~CANCEL
    return ring_entry & ((1 << _SLOT_BITS) - 1), ring_entry >> _SLOT_BITS
