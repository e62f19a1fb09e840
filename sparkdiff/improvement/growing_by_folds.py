"""Growth: one arm grows on the rows that explore, and what it has made is proven beside the plain refit."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff.data.splits import Source
from sparkdiff.growth import costs
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


@dataclasses.dataclass(frozen=True)
class _Settings(ImprovementSettings):
    """Settings of the engine, with those of the growth: a run that goes on has the same ones."""

    growth: GrowthSettings = dataclasses.field(default_factory=GrowthSettings)


def grow_pipeline(
    given: Any, options: Options, settings: GrowthSettings, sources: Sequence[Source], phases: Phases, *, replace: bool = False,
    fits: Fits | None = None,
) -> Improved:  # fmt: skip
    """Grow a pipeline on rows that explore, and return what the rows that prove decide for, made from all rows.

    See `explore_and_prove`.
    """
    settings, missing = trees.without_trees(settings)
    learned: dict[int | None, Mapping[str, Any]] = {}

    def plan(model: Any, data: DataFrame) -> str:
        return described(model, options, settings, data)

    def summarize(
        ground: Ground, explores: Ground, origin: Origin, division: Division, explored: Explored, decision: Decision,
        timings: Mapping[str, float], account: Account,
    ) -> GrowthSummary:  # fmt: skip
        plain = by_folds.summary_of(ground, explores, origin, division, explored, decision, timings, account)
        values = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        step = next(iter(explored.raced.steps), None)
        best, shown = decision.best, {} if step is None else dict(step.learned)
        if grown := best is not None and best.proven.finalist.candidate.arm == "grow":
            shown |= learned.get(0, {})
            grown = any(not part["dropped"] for part in shown["fields"]["parts"])
            if not grown:
                values["reason"] += "; on the rows that make what ships no part joins, so it is the refit without any"
        values |= {
            "decision": "grown" if grown else "kept original" if best is None else "improved",
            "options": {**plain.options, **settings.asdict()},
        }
        if best is None and (step is None or not step.candidates):
            values["reason"] = origin.refused or (plain.reason if step is None else step.learned["why"])
        values["warnings"] = [*missing, *shown.get("warnings", []), *plain.warnings, *costs.unknown(ground.model)]
        cost = ground.start.cost
        fields = shown.get("fields", {"servingCost": {"limit": None}})
        after = cost if best is None or best.found is None else best.found.cost
        values |= fields | {"servingCost": {"before": cost, "after": after, **fields["servingCost"]}}
        if grown and step is not None:
            with phases.phase("attribute"):
                values["fineTunedGain"] = _gain_alone(explores, options, step.seconds)
            values["timings"] = {k: round(v, 3) for k, v in phases.timings.items()}
        return GrowthSummary(**values)

    verb = Verb([with_settings(settings, options.maxSeconds, learned)], Budget.unlimited(), plan, summarize)
    own = _Settings(
        arms=("grow",), baseline=False, parallelism=1, parts=settings.parts, entityCols=settings.entityCols,
        maxServingCost=settings.maxServingCost, maxLoss=settings.maxLoss, growth=settings,
    )  # fmt: skip
    return explore_and_prove(
        given, options, own, sources, by_folds.of_one_arm(phases), verb, replace=replace, fits=fits
    )


def _gain_alone(explores: Ground, options: Options, spent: float) -> float | None:
    """The gain of the stages that are there when they train without any part, on the rows that explore.

    Args:
        spent: seconds that the growth on these rows has taken; None where these were all that there are.
    """
    left = None if options.maxSeconds is None else options.maxSeconds - spent
    if left is not None and left <= 0:
        return None
    alone = dataclasses.replace(explores, phases=Phases(False), trainings=[])
    step = with_recipe(options.recipe, left).run(alone, 0, Limit(None, None), ())
    return max((share(alone, candidate) for candidate in step.candidates), default=0.0)
