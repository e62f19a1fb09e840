"""The order of an improvement's arms: learned from what found the best before, shipped or stored. Without Spark."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from sparkdiff.improvement.arm_order import ArmForecaster, ArmOrder, ArmResult, PastImprovement, of_store, priors
from sparkdiff.improvement.improvement_options import ARMS
from sparkdiff.improvement.step_log import StepLog

FACTS = {"rows": 1000.0, "heldOut": 200.0, "parameters": 10.0, "candidates": 1.0, "stages": 3.0, "width": 5.0}


def learned(count: int = 60) -> list[PastImprovement]:
    """Training the weights finds the best where z is large, new stages find it elsewhere and take ten times as long."""
    draw, out = random.Random(0), []
    for _ in range(count):
        z = draw.uniform(-0.3, 0.6)
        arms = {"finetune": ArmResult(0.3 if z > 0.2 else 0.0, 1.0), "grow": ArmResult(0.0 if z > 0.2 else 0.2, 10.0)}
        out.append(PastImprovement({**FACTS, "quadraticGain": z}, arms))
    return out


def test_the_arm_that_won_on_similar_pipelines_comes_first() -> None:
    forecaster = ArmForecaster(learned())
    slack, none = ({**FACTS, "quadraticGain": z} for z in (0.5, -0.2))
    first, second = forecaster(slack, ["grow", "finetune"])
    assert (first.arm, second.arm) == ("finetune", "grow")
    assert first.probability > 0.8 > 0.2 > second.probability
    assert (first.seconds, second.seconds) == (pytest.approx(1.0), pytest.approx(10.0))
    assert [f.arm for f in forecaster(none, ["finetune", "grow"])] == ["grow", "finetune"]


def test_of_two_that_are_as_likely_the_quick_one_comes_first() -> None:
    both = {"refit": ArmResult(0.2, 5.0), "finetune": ArmResult(0.2, 1.0)}
    runs = [PastImprovement({**FACTS, "rows": 100.0 * i}, both) for i in range(1, 20)]
    assert [f.arm for f in ArmForecaster(runs)(FACTS, ["refit", "finetune"])] == ["finetune", "refit"]


def test_an_arm_that_was_never_tried_comes_last() -> None:
    found = ArmForecaster(learned())(FACTS, ["search", "grow", "finetune"])
    assert (found[-1].arm, found[-1].probability, found[-1].seconds) == ("search", 0.0, math.inf)


def test_runs_without_any_gain_teach_what_arms_take_only() -> None:
    nothing = [PastImprovement(FACTS, {"grow": ArmResult(0.0, 500.0)})] * 5
    assert ArmForecaster(nothing)(FACTS, ["grow"])[0].probability == 0.0
    one = ArmForecaster([*learned(), *nothing])({**FACTS, "quadraticGain": -0.2}, ["grow"])[0]
    assert one.probability > 0.8 and one.seconds > 10


def stored(tried: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    evidence = json.dumps({"z": 1.0, "facts": FACTS})
    row = {"verb": "improve", "metricDirection": "smaller", "before": 2.0, "evidence": evidence, "tried": tried}
    return {**row, **changes}


def one(kind: str, value: float | None, outcome: str, seconds: float = 3.0) -> dict[str, Any]:
    return {"kind": kind, "name": "", "value": value, "seconds": seconds, "outcome": outcome}


def test_a_store_tells_what_each_arm_found() -> None:
    tried = [
        one("finetune", 1.5, "accepted"),
        one("finetune", 1.0, "accepted"),
        one("grow", 0.5, "worse on city"),
        one("search", None, "stopped: no time left"),
        one("refit", None, "not tried: nothing can be fitted anew"),
    ]
    [found] = of_store([stored(tried)])
    assert found.facts == FACTS and found.arms.keys() == {"finetune", "grow"}
    assert found.arms["finetune"].gain == pytest.approx(0.5) and found.is_near_best("finetune")
    assert found.arms["grow"].gain == 0.0 and not found.is_near_best("grow")
    larger = stored([one("grow", 2.5, "accepted")], metricDirection="larger")
    assert of_store([larger])[0].arms["grow"].gain == pytest.approx(0.25)


def test_an_arm_stopped_early_teaches_only_what_it_found() -> None:
    """What it would have found is not known: that it had found nothing is no evidence against it."""
    evidence = json.dumps({"facts": FACTS, "stopped": ["refit", "finetune", "import"]})
    tried = [
        one("grow", 1.0, "accepted"),
        one("refit", 1.9, "accepted"),
        one("finetune", 1.0, "accepted"),
        one("search", None, "interrupted: "),
        one("import", 1.9, "not accepted"),
        one("simplify", None, "failed"),
    ]
    [found] = of_store([stored(tried, evidence=evidence)])
    assert found.arms.keys() == {"grow", "finetune", "simplify"} and found.is_near_best("finetune")


@pytest.mark.parametrize(
    "changes",
    [
        {"verb": "finetune"},
        {"evidence": None},
        {"evidence": "[1]"},
        {"evidence": "no json"},
        {"evidence": '{"facts": {"x": 1}}'},
        {"before": 0.0},
        {"before": None},
        {"tried": []},
        {"tried": None},
    ],
)
def test_a_run_that_tells_nothing_is_left_out(changes: dict[str, Any]) -> None:
    assert of_store([{**stored([one("grow", 1.0, "accepted")]), **changes}]) == []


def test_the_shipped_improvements_are_readable_and_of_all_arms() -> None:
    found = priors()
    assert len(found) >= 100 and {a for run in found for a in run.arms} == {*ARMS} - {"threshold"}  # metrics of losses
    assert 0.2 < sum(run.best > 0 for run in found) / len(found) < 0.9
    assert all(math.isfinite(v) for run in found for v in run.facts.values())
    assert not {name for run in found for name in run.facts} & {"metric", "stepGain", "lastEpochGain", "lastEpochZ"}
    chances = [f.probability for f in ArmForecaster(found)(FACTS, [*ARMS])]
    assert all(0 <= p <= 1 for p in chances) and max(chances) > 0


def test_an_order_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The run that goes on keeps the order, though the store has grown since."""
    order = ArmOrder(("grow", "refit"), {"grow": 0.5, "refit": 0.1}, 130, 2, "learned", FACTS)
    assert StepLog(tmp_path).read_or_make("order", lambda: order) == order
    assert StepLog(tmp_path).read_or_make("order", lambda: pytest.fail("it was decided anew")) == order
    assert StepLog(None).read_or_make("order", lambda: order) is order
    told = order.asdict()
    assert json.loads(json.dumps(told)) == told and told["arms"] == ["grow", "refit"]
