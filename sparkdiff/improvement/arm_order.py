"""Order in which arms (ways to improve a pipeline) are tried, learned from what worked best on similar pipelines."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff import jvm
from sparkdiff.data.splits import TEST, TRAIN, VALIDATION
from sparkdiff.history import run_store
from sparkdiff.history.arm_forecasts import COLUMNS, ArmForecaster, of_store, priors
from sparkdiff.history.pipeline_facts import training_facts
from sparkdiff.improvement.arm_context import ArmContext
from sparkdiff.improvement.budget import Budget
from sparkdiff.improvement.candidate import Arm
from sparkdiff.stages.trees import RandomForestClassification, RandomForestRegression

FIXED = "fixed"
FORESTS = (RandomForestClassification, RandomForestRegression)
LEAST = 300.0
"""Budget in seconds below which no order is learned: measuring facts and learning take a few seconds, more than it saves."""
QUICK = ("import", "finetune", "search", "refit", "threshold", "grow", "simplify")
"""Order for small budgets: descending probability per second of finding the best pipeline."""
FOREST = ("search", *QUICK)
"""Order for small budgets if the pipeline ends in a random forest, whose trees are mostly too shallow by default."""


@dataclasses.dataclass(frozen=True)
class ArmOrder:
    """Order of the arms, with the reason.

    Attributes:
        arms: names of the arms in order.
        chances: name of an arm -> probability that the arm finds the best pipeline, if any arm finds a better one than
            the original; empty if the order is not learned.
        shipped, own: numbers of past improvements from which the order is learned: shipped with sparkdiff, and in the
            user's store.
        why: the reason for the order, as text.
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


def order_of(context: ArmContext, arms: Sequence[Arm]) -> ArmOrder:
    """Order of the arms for this pipeline and these rows. If none is learned, it is fixed: the given order (cheap arms first), or
    for small budgets `QUICK` or `FOREST`.
    """
    names = tuple(arm.name for arm in arms)
    if context.settings.order == FIXED:
        return ArmOrder(names, why="the cheap ones first, as order='fixed' asks")
    if len(names) < 2:
        return ArmOrder(names, why="there is no other one")
    budget = Budget.of(context.settings.budget)
    if budget.seconds is None:
        return ArmOrder(
            names, why="the cheap ones first, as the budget is in passes and no arm is left out for lack of time"
        )
    if budget.seconds < LEAST:
        head = context.plan.cut.graph.head.module
        quick = tuple(sorted(names, key=(FOREST if isinstance(head, FORESTS) else QUICK).index))
        return ArmOrder(
            quick, why=f"by chance per second, as {context.settings.budget} is too short to learn an order in"
        )
    rows = sum(context.rows[split] for split in (TRAIN, VALIDATION, TEST) if split in context.rows)
    try:
        facts = training_facts(context.plan, context.sources[0].df, rows)
        own = of_store(run_store.rows_so_far(context.options.storeDir, COLUMNS))
        found = ArmForecaster([*priors(), *own])(facts, names)
    except Exception as e:  # the order affects no decision: no error here may end the improvement
        return ArmOrder(names, why=f"the cheap ones first, as no order can be learned: {jvm.message(e)}")
    stored = f" and {len(own):,} of storeDir" if context.options.storeDir else ""
    why = f"learned from {len(priors()):,} improvements that sparkdiff ships{stored}"
    chances = {f.arm: round(f.probability, 3) for f in found}
    return ArmOrder(tuple(f.arm for f in found), chances, len(priors()), len(own), why, facts)
