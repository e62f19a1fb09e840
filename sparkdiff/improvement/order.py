"""The order in which arms are tried: by what worked first on pipelines like this one."""

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
"""Seconds of a budget below which the facts and the learning, a few seconds, take more than the order saves."""
QUICK = ("import", "finetune", "search", "refit", "grow", "simplify")
"""The order for small budgets: by the chance to find the best pipeline, per second."""
FOREST = ("search", *QUICK)
"""The same for a forest, whose trees are mostly too shallow by default."""


@dataclasses.dataclass(frozen=True)
class ArmOrder:
    """The order of the arms, and why.

    Attributes:
        arms: by name, the first one first.
        chances: that an arm finds the best pipeline, if there is a better one; empty in the fixed order.
        shipped, own: from how many improvements it was learned: that sparkdiff ships, and of the store.
        why: in words.
        facts: of the pipeline and its rows, from which later improvements learn.
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
        """In values that JSON can hold."""
        return dataclasses.asdict(self) | {"arms": list(self.arms)}


def order_of(ground: Ground, arms: Sequence[Arm]) -> ArmOrder:
    """The order for this pipeline and these rows; the fixed one, the cheap arms first, where none can be learned."""
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
    except Exception as e:  # the order decides nothing: whatever it is, it may not end the improvement
        return ArmOrder(names, why=f"the cheap ones first, as no order can be learned: {jvm.message(e)}")
    stored = f" and {len(own):,} of storeDir" if ground.options.storeDir else ""
    why = f"learned from {len(priors()):,} improvements that sparkdiff ships{stored}"
    chances = {f.arm: round(f.probability, 3) for f in found}
    return ArmOrder(tuple(f.arm for f in found), chances, len(priors()), len(own), why, facts)
