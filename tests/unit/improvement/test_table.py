"""The table of an improvement as text."""

from types import SimpleNamespace
from typing import Any

from sparkdiff.improvement import bottleneck
from sparkdiff.improvement.candidate import shortened
from sparkdiff.improvement.improvement_summary import _in_full, table_of

ROW: dict[str, Any] = {
    "arm": None,
    "name": "your pipeline",
    "value": 38.7,
    "test": None,
    "change": 0.0,
    "gain": 0.0,
    "changed": None,
    "error": None,
    "serving": 1.0,
    "compacted": None,
    "seconds": 0.0,
    "p": None,
    "interval": None,
    "accepted": False,
    "offers": [],
    "why": "",
}
BEST = ROW | {
    "arm": "finetune",
    "name": "fine-tuned",
    "value": 12.4,
    "change": -0.68,
    "changed": 0.86,
    "error": 0.021,
    "seconds": 3.2,
    "p": 0.0002,
    "interval": [0.634, 0.72],
    "accepted": True,
    "offers": ["best"],
    "compacted": 0.5,
}
TREES = {
    "name": "Spark's GBTRegressor, 100 trees",
    "value": 9.9,
    "test": None,
    "serving": 1.3,
    "seconds": 12.0,
    "why": "",
    "change": -0.744,
}


def table(baseline: dict[str, Any] | None) -> list[str]:
    found: Any = SimpleNamespace(table=[ROW, BEST], baseline=baseline, metric="poisson", metricDirection="smaller")
    return [" ".join(" ".join(row).split()) for row in table_of(found).rows]


def test_a_line_has_gain_interval_cost_and_evidence() -> None:
    assert table(None)[1:] == [
        "your pipeline 38.7 1.0x",
        "fine-tuned 12.4 -68.0% 2.1% 86.0% +63.4% to +72.0% 1.0x 3 s <- best (0.5x compacted), p < 0.001",
    ]


def test_the_last_line_is_for_comparison() -> None:
    assert table(TREES)[-1] == "Spark's GBTRegressor, 100 trees 9.9 -74.4% 1.3x 12 s for comparison"
    late = TREES | {"value": None, "serving": None, "change": None, "why": "out of time"}
    assert table(late)[-1] == "Spark's GBTRegressor, 100 trees not compared: out of time"


def test_a_long_name_is_shortened_and_told_in_full_below() -> None:
    parts = "hr x workingday, workingday x temp, season x temp, mnth x holiday"
    assert shortened(parts) == "hr x workingday, workingday x temp and 2 more"
    assert shortened("16 units") == "16 units"
    assert shortened("a" * 50 + ", b") == "a" * 50 + " and 1 more"
    row = BEST | {"name": f"+ {shortened(parts)}", "changes": parts}
    assert _in_full([ROW, row]) == [f"'+ hr x workingday, workingday x temp and 2 more': {parts}"]
    assert _in_full([ROW, BEST | {"changes": "x"}, row | {"offers": []}]) == []


def test_a_rival_that_is_better_is_said() -> None:
    assert "reach 9, 25.0% better than the best that was tried" in bottleneck.beside("Trees", 9.0, 12.0, 1.0)
    assert "reach 0.9, 12.5% better" in bottleneck.beside("Trees", 0.9, 0.8, -1.0)
    assert (
        bottleneck.beside("Trees", 13.0, 12.0, 1.0)
        == bottleneck.beside("Trees", 0.7, 0.8, -1.0)
        == bottleneck.beside("", None, 1, 1)
        == ""
    )


def why_nothing(proven: str = "", **states: str) -> str:
    arms = [{"arm": a, "state": s.removesuffix(", cut"), "cut": s.endswith("cut")} for a, s in states.items()]
    return bottleneck.explanation(
        [ROW], arms, metric="poisson", level=0.025, rows=1000, z=0.0, timed=False, proven=proven
    )


def test_nothing_is_said_of_what_was_not_looked_at() -> None:
    """The budget was over, or an arm refused: neither shows that this form is as good as these columns allow."""
    all_of_it = why_nothing(refit="done", finetune="done", search="stopped", grow="done")
    assert all_of_it == (
        "Nothing that was tried (refit, finetune, search, grow) lowers the loss by more than 0.5% on the rows that explore. As "
        "far as this shows, weights, settings and form are as good as these columns allow. Other columns would help next, not "
        "more compute."
    )
    short = why_nothing(refit="stopped, cut", finetune="done", search="stopped, cut", grow="stopped, cut")
    assert "As far as this shows, weights are as good" in short
    assert "The budget was over before refit, search and grow were done: a larger one may show more." in short
    assert "compute" not in short
    refused = why_nothing(refit="done", finetune="done", simplify="done", grow="not tried")
    assert "weights and settings are as good" in refused
    assert "form" not in refused
    assert "compute" not in refused
    shipped = why_nothing(proven="refit", refit="done", finetune="done", search="done", grow="done")
    assert shipped.endswith("on the rows that explore. The gain of 'refit' shows on the rows that prove.")
    assert why_nothing(refit="not tried", grow="failed") == "No arm could be tried."
    gained = bottleneck.explanation(
        [ROW, BEST | {"arm": "grow", "gain": 0.5}],
        [{"arm": "grow", "state": "done", "cut": False}],
        metric="poisson",
        level=0.025,
        rows=1000,
        z=5.0,
        timed=False,
        proven="",
    )
    assert gained.startswith("The loss was in the form")
    assert "have little left" not in gained  # as nobody looked
    assert "budget" not in gained
    late = bottleneck.explanation(
        [ROW, BEST | {"arm": "grow", "gain": 0.5}],
        [{"arm": "grow", "state": "done", "cut": False}, {"arm": "import", "state": "stopped", "cut": True}],
        metric="poisson",
        level=0.025,
        rows=1000,
        z=5.0,
        timed=False,
        proven="",
    )
    moved = [ROW, BEST | {"arm": "threshold", "gain": 0.5}, BEST | {"arm": "finetune", "gain": 0.1}]
    found = bottleneck.explanation(moved, [], metric="poisson", level=0.025, rows=1000, z=5.0, timed=False, proven="")
    assert found.startswith("The loss was in the decisions: another threshold gains about all that was found")
    assert "(weights +10.0%, threshold +50.0% of poisson)" in found
    few = {"metric": "poisson", "level": 1e-300, "rows": 1000, "z": 5.0, "timed": False, "proven": ""}
    assert "would show it" in bottleneck.explanation([ROW, BEST | {"gain": 0.5, "accepted": False}], [], **few)
    assert late == f"{gained} The budget was over before import was done: a larger one may show more."
