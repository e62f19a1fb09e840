"""Growth: one arm grows on the rows that explore, and what it has made is proven beside the plain refit."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff.data.splits import Source
from sparkdiff.growth.parts import trees
from sparkdiff.growth.plan import described
from sparkdiff.growth.settings import GrowthSettings
from sparkdiff.growth.summary import GrowthSummary
from sparkdiff.improvement import by_folds
from sparkdiff.improvement.arms.fine_tuning import with_recipe
from sparkdiff.improvement.arms.growing import with_settings
from sparkdiff.improvement.budget import Account, Budget, Limit
from sparkdiff.improvement.candidate import share
from sparkdiff.improvement.ground import Ground
from sparkdiff.improvement.origin import Fits, Origin
from sparkdiff.improvement.procedure import Improved, Verb, explore_and_prove
from sparkdiff.improvement.proving import Decision
from sparkdiff.improvement.reporting import Explored
from sparkdiff.improvement.settings import ImprovementSettings
from sparkdiff.options import Options
from sparkdiff.proof.division import Division
from sparkdiff.report import Phases


def grow_pipeline(
    given: Any, options: Options, settings: GrowthSettings, sources: Sequence[Source], phases: Phases, *, replace: bool = False,
    fits: Fits | None = None,
) -> Improved:  # fmt: skip
    """Grow a pipeline on rows that explore, and return what the rows that prove decide for, made from all rows.

    See `explore_and_prove`.
    """
    settings, missing = trees.without_trees(settings)

    def plan(model: Any, data: DataFrame) -> str:
        return described(model, options, settings, data)

    def summarize(
        ground: Ground, explores: Ground, origin: Origin, division: Division, explored: Explored, decision: Decision,
        timings: Mapping[str, float], account: Account,
    ) -> GrowthSummary:  # fmt: skip
        plain = by_folds.summary_of(ground, explores, origin, division, explored, decision, timings, account)
        values = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        learned = explored.raced.steps[0].learned if explored.raced.steps else {}
        fields = learned.get(
            "fields", {"servingCost": {"before": ground.start.cost, "after": ground.start.cost, "limit": None}}
        )
        grown = decision.best is not None and decision.best.found is not None
        after = decision.best.found.cost if grown else ground.start.cost  # type: ignore[union-attr]
        values |= {"decision": "grown" if grown else "kept original", "options": {**plain.options, **settings.asdict()}}
        if not explored.raced.steps or not explored.raced.steps[0].candidates:
            values["reason"] = origin.refused or (
                explored.raced.steps[0].says if explored.raced.steps else plain.reason
            )
        values["warnings"] = [*missing, *learned.get("warnings", []), *plain.warnings]
        alone = _gain_alone(explores, options) if grown else None
        cost = {**fields["servingCost"], "after": after}
        return GrowthSummary(**values | fields | {"servingCost": cost, "fineTunedGain": alone})

    verb = Verb([with_settings(settings, options.maxSeconds)], Budget.unlimited(), plan, summarize)
    own = ImprovementSettings(
        arms=("grow",), baseline=False, entityCols=settings.entityCols, maxServingCost=settings.maxServingCost,
        maxLoss=settings.maxLoss,
    )  # fmt: skip
    return explore_and_prove(given, options, own, sources, phases, verb, replace=replace, fits=fits)


def _gain_alone(explores: Ground, options: Options) -> float:
    """The gain of the stages that are there when they train without any part, on the rows that explore."""
    step = with_recipe(options.recipe, options.maxSeconds).run(explores, 0, Limit(None, None), ())
    return max((share(explores, candidate) for candidate in step.candidates), default=0.0)
