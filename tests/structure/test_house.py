"""The budgets of `make house` that cost little to check."""

import pytest

from tests.structure import house


@pytest.mark.parametrize("package", house.MAX_ENTRIES)
def test_a_package_has_few_entries_at_its_top(package: str) -> None:
    found = house.entries(package)
    assert {"__main__"} < set(found)
    assert len(found) <= house.MAX_ENTRIES[package], found


def test_files_are_short() -> None:
    long = [found for found in house.packages() if found.largest_lines > house.MAX_FILE_LINES]
    assert not long


def test_the_documents_are_short() -> None:
    assert 0 < house.words(generated=False) <= house.MAX_WORDS
    assert house.words(generated=False) < house.words(generated=True)


def test_no_retired_name_is_left() -> None:
    assert house.retired_names() == []


@pytest.mark.parametrize(
    ("identifier", "retired"),
    [
        ("spoil_rows", True),
        ("Critic", True),
        ("critic_lr", False),
        ("_cruise_here", True),
        ("ThreadPoolExecutor", False),
        ("run_in_executor", False),
        ("planes", False),
        ("Plan", True),
        ("planned", False),
        ("finished", False),
    ],
)
def test_what_is_retired(identifier: str, retired: bool) -> None:
    assert house.is_retired(identifier) is retired


def test_strings_and_comments_hold_no_identifiers() -> None:
    source = 'name = "desk"  # desk\n'
    assert list(house.identifiers(source)) == [("name", 1)]
