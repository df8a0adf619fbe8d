"""Slots and rings, as both processes see them: each test maps the same memory twice."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.slots import CANCEL, SLOTS, Ring, Segment, SlotFiles, entry, use_of


@pytest.fixture
def files() -> Iterator[SlotFiles]:
    made = SlotFiles.create()
    yield made
    made.close()


@pytest.fixture
def both(files: SlotFiles) -> tuple[Segment, Segment]:
    return Segment(files), Segment(files)


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=60))
def test_a_ring_keeps_order_and_loses_nothing(turns: list[tuple[int, bool]]) -> None:
    entries, bell = np.zeros(8, np.int64), os.eventfd(0, os.EFD_NONBLOCK)
    writer, reader = Ring(entries, bell), Ring(entries, bell)
    written: list[int] = []
    read: list[int] = []
    try:
        for count, takes in turns:
            # Its users never write more than there is room for.
            if takes or len(written) + count - len(read) > len(entries):
                read += reader.take()
                assert read == written
            new = list(range(len(written) + 1, len(written) + count + 1))
            writer.put(new)
            written += new
        read += reader.take()
        assert read == written
        assert reader.take() == []
    finally:
        os.close(bell)


@given(st.integers(0, SLOTS - 1), st.integers(0, 2**40), st.booleans())
def test_an_entry_names_a_slot_and_its_use(slot: int, generation: int, cancelled: bool) -> None:
    assert use_of(entry(slot, generation) | (CANCEL if cancelled else 0)) == (slot, generation)


def test_what_one_side_writes_the_other_reads(both: tuple[Segment, Segment]) -> None:
    front, engine = both
    rows = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    front.rows(7, 2, (3, 4, 5))[...] = rows
    front.write_text(7, "clé".encode())
    front.submitted.put([entry(7, 1)])
    assert engine.submitted.take() == [entry(7, 1)]
    np.testing.assert_array_equal(engine.rows(7, 2, (3, 4, 5)), rows)
    np.testing.assert_array_equal(engine.read_rows([7, 7], 2, (3, 4, 5)), [rows, rows])
    assert engine.read_texts([7])[0][:4].decode() == "clé"
    engine.completed.put([entry(7, 1)])
    assert front.completed.take() == [entry(7, 1)]
    assert front.submitted.take() == []


def test_a_full_slot_does_not_reach_into_the_next(both: tuple[Segment, Segment]) -> None:
    front, engine = both
    front.rows(1, 64, (1, 16, 16))[...] = 1.0
    front.rows(0, 64, (1, 16, 16))[...] = 2.0
    front.write_error(0, b"x" * 2**16)
    assert (engine.rows(1, 64, (1, 16, 16)) == 1.0).all()


def test_rows_outlive_the_descriptors() -> None:
    files = SlotFiles.create()
    rows = Segment(files).rows(3, 1, (1, 2, 2))
    files.close()
    rows[...] = 5.0
    assert rows.sum() == 20.0
