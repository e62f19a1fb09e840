"""A search that keeps the other model says why, and ends with what would decide it, in options that aren't set already."""

import math
from typing import Any

import pytest

from sparkdiff.evaluation.guard import Verdict
from sparkdiff.search.search_options import Settings
from sparkdiff.search.search_summary import decision_and_reason, ways_to_decide
from sparkdiff.search.winner_comparison import FILL, NOT_FINITE, OF_SPARK, ROW_BY_ROW, UNDEFINED, Comparison

ALL = "to decide it, set numFolds=5, so that more rows decide, or testFraction=0.3, or pass more rows"
FOLDS = "set numFolds=5, so that more rows decide"
ALONE = "or set guard=1 to let the metric on the fresh rows alone decide"


def verdict(**given: Any) -> Verdict:
    return Verdict(**{"accepted": False, "best": 0, "gain": 0.1, "z": 1.0, "p": 0.2, "level": 0.025, **given})


def reason(compared: Comparison, against: str = "default", **options: Any) -> str:
    ships, why, _ = decision_and_reason(compared, Settings.of(options), metric="rmse", larger=False, against=against)
    assert not ships
    return why


@pytest.mark.parametrize(
    ("compared", "says", "ends"),
    [
        (Comparison(2.0, 1.0, verdict(best=-1)), "the winner is not better", "to look further, widen the space"),
        (Comparison(1.0, 2.0, verdict()), "is within what chance explains", ALL),
        (Comparison(1.0, 2.0, verdict(against="rare losses")), "is not proven (", f"because rare losses; {ALL}"),
        (Comparison(1.0, 2.0, None, "12 groups, 30 are needed"), "not tested, because 12 groups, 30 are needed", ALL),
        (Comparison(1.0, math.nan, None, UNDEFINED), f"not tested, because {UNDEFINED}", ALL),
        (
            Comparison(1.0, 2.0, None, "Own gives no value per row", remedy=OF_SPARK),
            "not tested, because Own gives no value per row",
            f"to decide it, use an evaluator of regressions or classes, {ALONE}",
        ),
        (
            Comparison(1.0, 2.0, None, NOT_FINITE, remedy=FILL),
            f"not tested, because {NOT_FINITE}",
            f"to decide it, fill what is null or not finite, or leave such rows out, {ALONE}",
        ),
        (
            Comparison(1.0, 2.0, None, "the pipelines make several rows of one", remedy=ROW_BY_ROW),
            "not tested, because the pipelines make several rows of one",
            f"to decide it, let the stages keep all columns and make one row of each, as with handleInvalid='keep', {ALONE}",
        ),
        (
            Comparison(1.0, 2.0, None, "the winner leaves out 3 of 9 rows", refused=True, remedy=ROW_BY_ROW),
            "the winner leaves out 3 of 9 rows",
            "to decide it, let the stages keep all columns and make one row of each, as with handleInvalid='keep'",
        ),
    ],
    ids=["not better", "chance", "rare", "few units", "undefined", "own metric", "null", "several rows", "left out"],
)
def test_each_reason_has_figures_and_ends_with_the_way_out(compared: Comparison, says: str, ends: str) -> None:
    why = reason(compared)
    assert says in why and "(rmse " in why and why.endswith(f"; {ends}" if "because rare" not in ends else ends)


def test_an_untested_winner_must_be_better_at_any_guard() -> None:
    why = reason(Comparison(2.0, 1.0, None, "Own gives no value per row", remedy=OF_SPARK), guard=1.0)
    assert "on the fresh rows alone the winner is not better" in why
    assert why.endswith("; to look further, widen the space")


@pytest.mark.parametrize(
    ("options", "ways"),
    [
        ({"numFolds": 5}, "pass more rows"),
        ({"timeCol": "when"}, "set testFraction=0.3, or pass more rows"),
        (
            {"timeCol": "when", "testFraction": 0.1},
            f"{FOLDS.replace('5', '4')}, or testFraction=0.3, or pass more rows",
        ),
        ({"method": "hypergradient"}, "set testFraction=0.3, or pass more rows"),
        ({"testFraction": 0.4}, f"{FOLDS}, or pass more rows"),
        ({"testFraction": 0.5}, "pass more rows"),
        ({"validationFraction": 0.7}, f"{FOLDS}, or pass more rows"),
        ({"groupCol": "user", "testFraction": 0.5}, "pass more groups"),
    ],
    ids=["folds", "times", "few times", "slope", "many fresh", "half fresh", "no room", "groups"],
)
def test_only_what_is_not_set_and_can_be_is_advised(options: dict[str, Any], ways: str) -> None:
    assert ways_to_decide(Settings.of(options)) == f"to decide it, {ways}"
