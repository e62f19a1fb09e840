"""What cross-fitting decides without Spark: what trains on all rows, and which options exclude each other."""

import pytest

from sparkdiff.cross_fitting.procedure import for_all_rows
from sparkdiff.errors import InputError
from sparkdiff.evaluation import compatibility
from sparkdiff.evaluation.compatibility import Compatibility
from sparkdiff.options import Options
from sparkdiff.training.recipes import Recipe

CAREFUL, BOLD = Recipe(1e-3, 1e-3), Recipe(1e-2, 1e-3)


def test_the_candidate_of_most_folds_trains_for_the_median_of_its_epochs() -> None:
    assert for_all_rows([(CAREFUL, 9), (BOLD, 2), (BOLD, 7), (BOLD, 3)]) == (BOLD, 3)
    assert for_all_rows([(CAREFUL, 4), (BOLD, 2), (BOLD, 7), (CAREFUL, 5)]) == (CAREFUL, 5)  # the first; 4.5 rounded up
    assert for_all_rows([(BOLD, 1)]) == (BOLD, 1)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"numFolds": 1}, "must be 0, or 2 to 20: one fold leaves no rows to train on. Got 1 instead"),
        ({"numFolds": 21}, r"The 'numFolds' option must be in \[0, 20\]. Got 21 instead"),
        ({"numFolds": 5, "timeCol": "day"}, "numFolds=5 and timeCol='day' exclude each other: later rows would train"),
        ({"numFolds": 5, "validationIndicatorCol": "held"}, "validationIndicatorCol='held' exclude each other: with folds all"),
        ({"rowsAreNew": 1}, "rowsAreNew"),
    ],
)  # fmt: skip
def test_options_that_exclude_folds_are_named(given: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        Options.of(given)
    Options.of({"numFolds": 0, "timeCol": "day"})


def test_the_changes_of_several_folds_are_the_means_over_their_rows() -> None:
    sides = {"measure": "m", "before": 0.1, "after": 0.2}
    brier = [{"brier": {"before": x, "after": x}} for x in (0.1, 0.2)]
    one = Compatibility(100, 0.2, True, 0.1, 0.9, sides, [{"rows": 3}], others=brier[0])
    two = Compatibility(300, 0.0, True, 0.3, None, None, None, others=brier[1])
    found = compatibility.mean([one, two], [50.0, 50.0])
    assert found.others["brier"]["after"] == pytest.approx(0.15)  # by weight, as the metric
    assert (found.rows, found.changed, found.labels, found.bins) == (400, 0.05, True, None)
    assert found.psi == pytest.approx(0.25)
    assert (found.correlation, found.calibration) == (0.9, {"measure": "m", "before": 0.1, "after": 0.2})
