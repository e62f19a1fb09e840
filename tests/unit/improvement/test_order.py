"""Where no order of the arms is learned, it is a fixed one, and the summary says why."""

import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sparkdiff.improvement import arm_order
from sparkdiff.improvement.improvement_options import ARMS as ARMS_OF_ALL, ImprovementSettings
from sparkdiff.options import Options
from sparkdiff.stages.trees import RandomForestRegression

ARMS = ("refit", "finetune")


def ordered(arms: Sequence[str] = ARMS, head: Any = None, **settings: Any) -> arm_order.ArmOrder:
    """
    Args:
        head: the module of the last stage.
    """
    graph = SimpleNamespace(head=SimpleNamespace(module=head))
    context: Any = SimpleNamespace(
        settings=ImprovementSettings.of(settings),
        options=Options(),
        rows={"train": 900},
        plan=SimpleNamespace(cut=SimpleNamespace(graph=graph)),
        sources=[SimpleNamespace(df=None)],
    )
    return arm_order.order_of(context, [SimpleNamespace(name=name) for name in arms])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"order": "fixed", "budget": "2m"}, "as order='fixed' asks"),
        ({"budget": "60 passes"}, "as the budget is in passes and no arm is left out for lack of time"),
    ],
)
def test_the_cheap_arms_come_first(given: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arm_order, "training_facts", lambda *given: pytest.fail("rows were read"))
    found = ordered(**given)
    assert found.arms == ("refit", "finetune") and not found.facts
    assert str(found) == f"refit, finetune; the cheap ones first, {why}"


def test_in_little_time_chance_per_second_orders_the_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    """All arms are in that order."""
    monkeypatch.setattr(arm_order, "training_facts", lambda *given: pytest.fail("rows were read"))
    found = ordered(budget="299s")
    assert found.arms == ("finetune", "refit")
    assert str(found) == "finetune, refit; by chance per second, as 299s is too short to learn an order in"
    assert {*arm_order.QUICK} == {*ARMS_OF_ALL} and arm_order.QUICK[0] == "import"


def test_in_little_time_a_forest_is_searched_first() -> None:
    forest = RandomForestRegression.__new__(RandomForestRegression)
    assert ordered(("finetune", "search", "refit"), forest, budget="299s").arms == ("search", "finetune", "refit")
    assert ordered(("refit", "search", "finetune"), budget="299s").arms == ("finetune", "search", "refit")


def test_without_scikit_learn_the_cheap_arms_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arm_order, "training_facts", lambda *given: {})
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    found = ordered(budget="5m")
    assert found.arms == ("refit", "finetune")
    assert "no order can be learned: a learned forecast needs a package" in found.why
