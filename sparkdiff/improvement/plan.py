"""The plan of an improvement, as text: which arms would be tried and which not, before anything runs and without a Spark job."""

from typing import Any

from pyspark.sql import DataFrame

from sparkdiff.data.splits import Source
from sparkdiff.fine_tuning.shared import Shared
from sparkdiff.growth import costs
from sparkdiff.improvement.arms import arms_of
from sparkdiff.improvement.baseline import name_of, wanted
from sparkdiff.improvement.budget import Budget
from sparkdiff.improvement.ground import Ground
from sparkdiff.improvement.settings import ARMS, ImprovementSettings
from sparkdiff.options import Options
from sparkdiff.proof import division
from sparkdiff.report import Phases, aligned


def described(model: Any, options: Options, settings: ImprovementSettings, data: DataFrame) -> str:
    """What an improvement of this fitted pipeline would try on rows of this schema.

    Raises:
        InputError: the pipeline can't be planned, or an option does not fit it.
    """
    Budget.of(settings.budget)
    ground = Ground(model, options, settings, [Source(data)], None, Phases(False), Shared())
    head = ground.plan.cut.graph.head.uid
    allowed = {arm.name: arm for arm in arms_of(settings)}
    rows = []
    for name, does in ARMS.items():
        why = (
            ""
            if name not in settings.arms
            else "keepForm forbids it"
            if name not in allowed
            else allowed[name].refused(ground)
        )
        if name in settings.arms:
            rows.append((f"  {name}", does, f"not tried: {why}" if why else ""))
    keeps = f"stages that stay as they are: {', '.join(ground.keeps)}" if ground.keeps else ""
    return "\n".join(filter(None, [
        f"improvement of {model.uid} within {settings.budget}, judged by {options.metric or f'the loss of {head}'}",
        division.sentence(ground.sources, options),
        *aligned(rows, left=(0, 1, 2)), keeps, f"for comparison only: {name_of(ground)}" if wanted(ground) else "",
        f"serving costs {costs.of_model(model):.3g} us per row by the table of costs",
        *costs.unknown(model),
    ]))  # fmt: skip
