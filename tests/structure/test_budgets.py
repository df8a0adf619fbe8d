"""The budgets of `make budgets`, and how it counts."""

import pytest

from tests.structure import budgets


def test_sizes_and_rules_are_within_their_budgets() -> None:
    assert not [str(budget) for budget in budgets.static_budgets() if not budget.holds]


@pytest.mark.slow
def test_a_request_enters_few_files_whatever_headers_it_has() -> None:
    measured = list(budgets.request_budgets())
    # files and calls of both requests: plain, and with seven sets of headers
    assert len(measured) == 2 * 2 * 8
    assert all(budget.value > 0 for budget in measured)
    assert not [str(budget) for budget in measured if not budget.holds]
