"""The arm "simplify", which deletes stages.

Its first step makes one pipeline for each stage that can be deleted: without this stage, and with the other stages
refitted to the training rows. The second step trains all weights of the best of these pipelines. Stages that can be
merged without a change of the outputs are removed at the end, from the pipeline that ships (`fold_stages`).
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff import jvm
from sparkdiff.errors import InputError, ParityError
from sparkdiff.growth import cost_table
from sparkdiff.growth.serving_cost import SAME
from sparkdiff.improvement.arm_context import ArmContext, as_pipeline, measure
from sparkdiff.improvement.arms.fine_tuning import fine_tuned
from sparkdiff.improvement.arms.refitting import fit_anew, fitted_to_label
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Arm, Candidate, CandidateRecipe, Step, best_of, nothing
from sparkdiff.pipeline.translation import graph_of
from sparkdiff.pipeline.unfitted_form import AS_FITTED, UnfittedForm, unfitted_form
from sparkdiff.serving.compact.compact import CompactPlan, compact, compact_plan
from sparkdiff.serving.compact.deletion import Deletion, deletions


def possible(context: ArmContext) -> list[tuple[Deletion, UnfittedForm]]:
    """Stages that can be deleted, each with the unfitted form of the pipeline without it."""
    found = []
    for one in deletions(context.model, context.sources[0].df.schema):
        form = fitted_to_label(context, unfitted_form(one.pipeline, keep=context.stay))
        kept = {s.uid for s in form.stages if s.role == AS_FITTED}
        if one.uid not in context.stay and form.learns and not kept & set(one.mustRefit):
            found.append((one, form))
    return found


def _refusal(context: ArmContext) -> str:
    if context.plan.labelCol is None:
        return "clusters are measured by distances, which another stage before them would change"
    return "" if possible(context) else "there is no stage that the others could do without"


def _run(context: ArmContext, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
    if number:
        best = best_of(context, [s for s in steps if s.arm == "simplify"])
        if best is None:
            return nothing("simplify", number, "no deletion gains")
        return fine_tuned(context, best, limit, recipe="default", number=number, name=f"{best.name}, fine-tuned")
    begun, found, failed, late = time.monotonic(), list[Candidate](), list[str](), False
    for one, form in possible(context):
        if found and limit.seconds is not None and time.monotonic() - begun > limit.seconds:
            late = True
            break
        try:
            found.append(_without(context, one, form, limit))
        except TimeoutError:
            late = True
            break
        except (InputError, ParityError, *jvm.SparkError) as e:
            failed.append(jvm.message(e))
    says = "; ".join([*(c.name for c in found), *failed, *(["out of time"] if late else [])])
    if not found:
        ended = "stopped" if late else "failed" if failed else ""
        return nothing("simplify", 0, says, ended=ended, late=late)
    return Step("simplify", 0, tuple(found), 0.0, says, trains=True, learned={"late": late})


def _without(context: ArmContext, one: Deletion, form: UnfittedForm, limit: Limit) -> Candidate:
    """Candidate: the pipeline without one stage, refitted."""
    begun, name = time.monotonic(), f"refitted without {one.stageClass.removesuffix('Model')}"
    found, making = (
        measure(context, fit_anew(context, form, limit.most)),
        CandidateRecipe("simplify", {"without": one.uid}),
    )
    return Candidate("simplify", name, found, making, f"without {one.uid}", seconds=time.monotonic() - begun)


def _make(context: ArmContext, settings: Mapping[str, Any]) -> Any:
    [form] = [form for one, form in possible(context) if one.uid == settings["without"]]
    return fit_anew(context, form)


ARM = Arm("simplify", 2, 0.5, _refusal, _run, _make, fits=2.0)


def fold_stages(context: ArmContext, model: Any) -> Any | None:
    """The pipeline with fewer stages and the same outputs; None if no stage can be removed, or if the result would not be
    cheaper to serve.

    Stages that must not change (`ArmContext.stay`) are kept, and so are the columns that they write.
    """
    plan = _plan_fold(context, model)
    if plan is None:
        return None
    made = compact(as_pipeline(model), list(plan.keepCols), schema=context.sources[0].df.schema)
    return made if cost_table.of_model(made) < cost_table.of_model(model) * (1 - SAME) else None


def _plan_fold(context: ArmContext, model: Any) -> CompactPlan | None:
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
