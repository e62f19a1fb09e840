"""The table of serving costs: whole, and larger for larger stages."""

import pytest

from sparkdiff.growth import costs


def test_every_class_of_the_table_can_be_read() -> None:
    assert costs.COSTS.keys() == costs.ENTRIES.keys()
    assert all(fixed >= 0 and each >= 0 for fixed, each in costs.COSTS.values())
    free = [kind for kind, figures in costs.COSTS.items() if figures == (0, 0)]
    assert free == ["VectorAttributeRewriter", "ColumnPruner"]  # they change the schema alone


def test_a_cost_is_fixed_and_by_entry() -> None:
    fixed, each = costs.COSTS["PCAModel"]
    assert costs.of("PCAModel", 1000) == pytest.approx(fixed + 1000 * each)
    assert costs.of("SomebodysStage", 1000) == costs.DEFAULT[0]


def test_look_ups_are_the_depths_of_trees() -> None:
    assert costs.lookups(1, 1) == 1
    assert costs.lookups(10, 10 * 31) == pytest.approx(50)
