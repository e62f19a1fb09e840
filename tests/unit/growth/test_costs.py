"""The table of serving costs: whole, and larger for larger stages."""

import pytest

from sparkdiff.growth import cost_table


def test_every_class_of_the_table_can_be_read() -> None:
    assert cost_table.COSTS.keys() == cost_table.ENTRIES.keys()
    assert all(fixed >= 0 and each >= 0 for fixed, each in cost_table.COSTS.values())
    free = [kind for kind, figures in cost_table.COSTS.items() if figures == (0, 0)]
    assert free == ["VectorAttributeRewriter", "ColumnPruner"]  # they change the schema alone


def test_a_cost_is_fixed_and_by_entry() -> None:
    fixed, each = cost_table.COSTS["PCAModel"]
    assert cost_table.of("PCAModel", 1000) == pytest.approx(fixed + 1000 * each)
    assert cost_table.of("SomebodysStage", 1000) == cost_table.DEFAULT[0]


def test_look_ups_are_the_depths_of_trees() -> None:
    assert cost_table.lookups(1, 1) == 1
    assert cost_table.lookups(10, 10 * 31) == pytest.approx(50)
