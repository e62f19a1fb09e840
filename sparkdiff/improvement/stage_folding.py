"""Exact folding in an improvement: `sparkdiff.compact` merges stages, so that a pipeline with the same outputs serves cheaper."""

from typing import Any

from sparkdiff.growth import cost_table
from sparkdiff.growth.serving_cost import SAME
from sparkdiff.improvement.arm_context import ArmContext, as_pipeline
from sparkdiff.pipeline.translation import graph_of
from sparkdiff.serving.compact.compact import CompactPlan, compact, compact_plan


def fold_stages(context: ArmContext, model: Any) -> Any | None:
    """The pipeline with fewer stages and the same outputs; None if `folding` returns None, or if the result would not be
    cheaper to serve.

    Stages that must not change (`ArmContext.stay`) are kept, and so are the columns that they write.
    """
    plan = folding(context, model)
    if plan is None:
        return None
    made = compact(as_pipeline(model), list(plan.keepCols), schema=context.sources[0].df.schema)
    return made if cost_table.of_model(made) < cost_table.of_model(model) * (1 - SAME) else None


def folding(context: ArmContext, model: Any) -> CompactPlan | None:
    """Plan of the folding; None if no stage can be removed, if a stage that must not change would change, or if the options
    exclude the arm "simplify".
    """
    if "simplify" not in context.settings.allowed_arms():
        return None
    model, schema = as_pipeline(model), context.sources[0].df.schema
    written = [c for v in graph_of(model).vertices if v.uid in context.stay for c in v.outputs]
    plan = compact_plan(model, [*compact_plan(model, schema=schema).keepCols, *written], schema=schema)
    if any(s.uid in context.stay and s.action != "same" for s in plan.stages):
        return None
    return plan if any(s.action == "gone" for s in plan.stages) else None


def gone(plan: CompactPlan) -> tuple[str, ...]:
    """Uids of the stages that the plan removes."""
    return tuple(s.uid for s in plan.stages if s.action == "gone")
