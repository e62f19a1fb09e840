"""Options that only an improvement has, in addition to those of fine-tuning: the source of its Params, their checks and help."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparkdiff.errors import InputError
from sparkdiff.growth.growth_options import KINDS
from sparkdiff.improvement.budget import Budget
from sparkdiff.options import OptionGroup, convert_all, option, refuse

WHY_REFUSED = {
    "maxSeconds": "its time is `budget`",
    "tune": "only FineTuner has it; the arm threshold of Improver moves thresholds",
}
"""Options of fine-tuning that an improvement refuses -> the reason."""
ARMS = {
    "refit": "fits the stages anew on the training rows",
    "finetune": "trains the weights of the stages together",
    "threshold": "moves the threshold at which the last stage decides, nothing else",
    "simplify": "folds stages that fold exactly; deletes a stage, and refits the others",
    "search": "searches the settings of the stages, and fits them anew",
    "import": "adds boosted trees, fitted from the pipeline's own predictions",
    "grow": "adds stages that learn: hidden units, crosses, curves, effects",
}
"""Name of an arm (a way to improve a pipeline) -> its description; cheap arms first."""
CHANGES_FORM = ("simplify", "import", "grow")
"""Arms that add or delete stages."""


@dataclasses.dataclass(frozen=True)
class ImprovementSettings(OptionGroup):
    """Options of one improvement. `ImprovementSettings.of` creates them, and raises one error for all problems."""

    # fmt: off
    budget: str = option("30m", "time for all that is tried, such as 90s, 30m or 2h; or passes over the training rows, such as '300 passes', with which two runs give the same bits")
    arms: tuple[str, ...] = option(tuple(ARMS), f"what to try: {', '.join(ARMS)}", items="arms", item="arm", choices=tuple(ARMS))
    keepForm: bool = option(False, "whether the result must have the same stages: nothing is added or deleted")
    keepStages: tuple[str, ...] = option((), "stages that stay as they are, by uid, class name or output column: neither trained nor fitted anew nor deleted")
    maxServingCost: float | None = option(None, "largest cost of serving the result, as a multiple of what the pipeline costs now, by a table of costs per stage; if unset, no limit", kind=float, low=1)
    maxLoss: float = option(0.005, "share of the metric that a simpler pipeline may lose; 0 offers what is exact only", low=0, high=1)
    baseline: bool = option(True, "whether the table ends with Spark's own boosted trees (100, with defaults) on the same features, for comparison only; not with less than five minutes")
    parallelism: int | None = option(None, "how many arms, and folds that are proven, may run at the same time, each in a thread; if unset, half as many arms as cores are idle, at least one, and two folds. Where the budget is in passes, the result does not depend on it", kind=int, low=1)
    order: str = option("learned", "the order in which arms are tried: by what found the best on pipelines like this one, in the improvements that sparkdiff ships and those of storeDir (learned; needs scikit-learn and a budget of five minutes or more), or the cheap ones first (fixed)", choices=("learned", "fixed"))
    parts: tuple[str, ...] = option(tuple(k for k in KINDS if k != "trees"), f"kinds of parts that the arm grow tries: {', '.join(k for k in KINDS if k != 'trees')}", items="kinds of parts", choices=tuple(k for k in KINDS if k != "trees"))
    entityCols: tuple[str, ...] = option((), "columns that name users, items or shops, whose effects may be learned; the pipeline need not read them", items="column names")
    # fmt: on

    @staticmethod
    def of(given: Mapping[str, Any]) -> "ImprovementSettings":
        """Options from names and values.

        Raises:
            InputError: a value has a wrong type or is out of bounds, or no arm is left. The message names every problem.
        """
        # Budget.of tells what a number lacks.
        texts = {k: str(v) if k == "budget" else v for k, v in given.items()}
        values, problems = convert_all(texts, FIELDS, "Improver")
        if "budget" in values:
            try:
                Budget.of(values["budget"])
            except InputError as e:
                problems.append(str(e))
        if not problems and values.get("keepForm") and not set(values.get("arms", ARMS)) - set(CHANGES_FORM):
            problems.append(
                f"keepForm=true forbids all of arms={list(values['arms'])}, which add or delete stages: add refit, finetune or "
                "search, or leave keepForm out"
            )
        refuse(problems)
        return ImprovementSettings(**values)

    def allowed_arms(self) -> tuple[str, ...]:
        """Arms that the options `arms` and `keepForm` allow, cheap ones first."""
        return tuple(a for a in ARMS if a in self.arms and not (self.keepForm and a in CHANGES_FORM))


FIELDS = {field.name: field for field in dataclasses.fields(ImprovementSettings)}
