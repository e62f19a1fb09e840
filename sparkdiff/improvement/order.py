"""Order in which arms are tried, learned from the arms that worked best on similar pipelines."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff import jvm
from sparkdiff.data.splits import TEST, TRAIN, VALIDATION
from sparkdiff.forecasting.arms import COLUMNS, ArmForecaster, of_store, priors
from sparkdiff.forecasting.facts import training_facts
from sparkdiff.history import store
from sparkdiff.improvement.budget import Budget
from sparkdiff.improvement.candidate import Arm
from sparkdiff.improvement.ground import Ground
from sparkdiff.stages.trees import RandomForestClassification, RandomForestRegression

FIXED = "fixed"
FORESTS = (RandomForestClassification, RandomForestRegression)
LEAST = 300.0
"""Seconds of a budget below which finding the facts and learning take longer (a few seconds) than the order saves."""
QUICK = ("import", "finetune", "search", "refit", "grow", "simplify")
"""Order for small budgets: by the chance to find the best pipeline, per second."""
FOREST = ("search", *QUICK)
"""Order for small budgets and a forest, whose trees are mostly too shallow by default."""


@dataclasses.dataclass(frozen=True)
class ArmOrder:
    """Order of the arms, with the reason.

    Attributes:
        arms: names of the arms in order.
        chances: by name, the probability that an arm finds the best pipeline, if there is a better one; empty if not learned.
        shipped, own: numbers of improvements that it was learned from: those shipped with sparkdiff, and those of the store.
        why: the reason as text.
        facts: facts about the pipeline and its rows, from which later improvements learn.
    """

    arms: tuple[str, ...]
    chances: Mapping[str, float] = dataclasses.field(default_factory=dict)
    shipped: int = 0
    own: int = 0
    why: str = ""
    facts: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{', '.join(self.arms)}; {self.why}"

    def asdict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self) | {"arms": list(self.arms)}


def order_of(ground: Ground, arms: Sequence[Arm]) -> ArmOrder:
    """Order for this pipeline and these rows; if it can't be learned, a fixed one."""
    names = tuple(arm.name for arm in arms)
    if ground.settings.order == FIXED:
        return ArmOrder(names, why="the cheap ones first, as order='fixed' asks")
    if len(names) < 2:
        return ArmOrder(names, why="there is no other one")
    budget = Budget.of(ground.settings.budget)
    if budget.seconds is None:
        return ArmOrder(
            names, why="the cheap ones first, as the budget is in passes and no arm is left out for lack of time"
        )
    if budget.seconds < LEAST:
        head = ground.plan.cut.graph.head.module
        quick = tuple(sorted(names, key=(FOREST if isinstance(head, FORESTS) else QUICK).index))
        return ArmOrder(
            quick, why=f"by chance per second, as {ground.settings.budget} is too short to learn an order in"
        )
    rows = sum(ground.rows[split] for split in (TRAIN, VALIDATION, TEST) if split in ground.rows)
    try:
        facts = training_facts(ground.plan, ground.sources[0].df, rows)
        own = of_store(store.rows_so_far(ground.options.storeDir, COLUMNS))
        found = ArmForecaster([*priors(), *own])(facts, names)
    except Exception as e:  # the order affects no decision: no error here may end the improvement
        return ArmOrder(names, why=f"the cheap ones first, as no order can be learned: {jvm.message(e)}")
    stored = f" and {len(own):,} of storeDir" if ground.options.storeDir else ""
    why = f"learned from {len(priors()):,} improvements that sparkdiff ships{stored}"
    chances = {f.arm: round(f.probability, 3) for f in found}
    return ArmOrder(tuple(f.arm for f in found), chances, len(priors()), len(own), why, facts)
