"""Where no order of the arms can be learned, the cheap ones come first, and the summary says why."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from sparkdiff.improvement import order
from sparkdiff.improvement.settings import ImprovementSettings
from sparkdiff.options import Options

ARMS = [SimpleNamespace(name=name) for name in ("refit", "finetune")]


def ordered(**settings: Any) -> order.ArmOrder:
    ground: Any = SimpleNamespace(
        settings=ImprovementSettings.of(settings), options=Options(), rows={"train": 900}, plan=None,
        sources=[SimpleNamespace(df=None)],
    )  # fmt: skip
    return order.order_of(ground, ARMS)  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "why"), [
    ({"order": "fixed", "budget": "2m"}, "as order='fixed' asks"),
    ({"budget": "30s"}, "as 30s is too short to learn an order in"),
    ({"budget": "60 passes"}, "as the budget is in passes and no arm is left out for lack of time"),
])  # fmt: skip
def test_the_cheap_arms_come_first(given: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "training_facts", lambda *given: pytest.fail("rows were read"))
    found = ordered(**given)
    assert found.arms == ("refit", "finetune") and not found.facts
    assert str(found) == f"refit, finetune; the cheap ones first, {why}"


def test_without_scikit_learn_the_cheap_arms_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "training_facts", lambda *given: {})
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    found = ordered(budget="2m")
    assert found.arms == ("refit", "finetune")
    assert "no order can be learned: forecasts are learned by scikit-learn, which is not installed" in found.why
