"""What fine-tuning by folds decides without Spark: which options exclude each other, and whether rows are dealt into folds."""

from typing import Any

import pytest

from sparkdiff.errors import InputError
from sparkdiff.evaluation import compatibility
from sparkdiff.evaluation.compatibility import Compatibility
from sparkdiff.options import Options
from sparkdiff.proof.division import FOLDS, folds_of


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"numFolds": 1}, "must be 0, or 2 to 20: one fold explores, and at least one decides. Got 1 instead"),
        ({"numFolds": 21}, r"The 'numFolds' option must be in \[0, 20\]. Got 21 instead"),
        ({"numFolds": "many"}, r"The 'numFolds' option must be .*auto.*Got 'many' instead"),
        (
            {"numFolds": "auto", "groupCol": "user", "timeCol": "day"},
            "groupCol='user' and timeCol='day' exclude each other",
        ),
        (
            {"numFolds": 5, "validationIndicatorCol": "held"},
            "validationIndicatorCol='held' exclude each other: with folds all",
        ),
        ({"rowsAreNew": 1}, "rowsAreNew"),
    ],
)
def test_options_that_exclude_folds_are_named(given: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        Options.of(given)
    for taken in (
        {"numFolds": 0, "timeCol": "day"},
        {"numFolds": 5, "timeCol": "day"},
        {"numFolds": "auto", "timeCol": "day"},
    ):
        assert Options.of(taken).numFolds == taken["numFolds"]
    assert Options.of({"numFolds": "auto", "validationIndicatorCol": "held"}).validationIndicatorCol == "held"
    assert Options.of({"numFolds": 0, "validationIndicatorCol": "held"}).numFolds == 0


@pytest.mark.parametrize(
    ("given", "folds"),
    [
        ({"numFolds": 0}, 0),
        ({"numFolds": 7}, 7),
        ({"numFolds": 2, "timeCol": "day"}, 2),
        ({"numFolds": "auto"}, FOLDS),
        ({"numFolds": "auto", "timeCol": "day"}, FOLDS),
        ({"numFolds": "auto", "validationFraction": 0.7}, FOLDS),
        ({"numFolds": "auto", "validationFraction": 0.9}, 0),
        ({"numFolds": "auto", "timeCol": "day", "validationFraction": 0.4}, 0),
    ],
)
def test_auto_takes_folds_if_they_show_the_smaller_gains(given: dict[str, Any], folds: int) -> None:
    assert folds_of(Options.of(given)) == folds


def test_changes_of_several_folds_are_means_over_their_rows() -> None:
    sides = {"measure": "m", "before": 0.1, "after": 0.2}
    brier = [{"brier": {"before": x, "after": x}} for x in (0.1, 0.2)]
    one = Compatibility(100, 0.2, True, 0.1, 0.9, sides, [{"rows": 3}], others=brier[0])
    two = Compatibility(300, 0.0, True, 0.3, None, None, None, others=brier[1])
    found = compatibility.mean([one, two], [50.0, 50.0])
    assert found.others["brier"]["after"] == pytest.approx(0.15)  # by weight, as the metric
    assert (found.rows, found.changed, found.labels, found.bins) == (400, 0.05, True, None)
    assert found.psi == pytest.approx(0.25)
    assert (found.correlation, found.calibration) == (0.9, {"measure": "m", "before": 0.1, "after": 0.2})
