"""The arm "refit", which fits the stages anew to the training rows, and then trains all weights together."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff import jvm
from sparkdiff.data.splits import fit_on_training_rows
from sparkdiff.improvement.arm_context import ArmContext, measure
from sparkdiff.improvement.arms.fine_tuning import fine_tuned
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Arm, Candidate, CandidateRecipe, Step
from sparkdiff.pipeline.unfitted_form import ESTIMATOR, UnfittedForm, unfitted_form, with_uids_of
from sparkdiff.stages.base import columns_of


def form_of(context: ArmContext) -> UnfittedForm:
    """Unfitted form of the original, in which stages that must not change stay fitted.

    Stages that make the label stay fitted, so that each row keeps its label. If the predictor has no label, as in clustering, all
    stages before it stay fitted, so that the space in which it measures distances stays the same.
    """
    graph = context.plan.cut.graph
    space = [v.uid for v in graph.vertices if v.uid != graph.head.uid] if context.plan.labelCol is None else ()
    measured = dict.fromkeys(space, "clusters are measured by distances in the space that it makes")
    return fitted_to_label(context, unfitted_form(context.model, keep=measured | context.stay))


def fitted_to_label(context: ArmContext, form: UnfittedForm) -> UnfittedForm:
    """The form, after the label of the improvement is set on estimators that read the last stage's own label, if that is
    another one, and its weight on the last stage. With soft labels (class probabilities) nothing is set.

    The fitted models have the same Params.
    """
    plan, head = context.plan, context.plan.cut.graph.head
    own = columns_of(head.stage, ("labelCol",))
    for stage in (s.stage for s in form.stages if s.role == ESTIMATOR and plan.soft is None):
        if plan.labelCol is not None and columns_of(stage, ("labelCol",)) == own != (plan.labelCol,):
            stage._set(labelCol=plan.labelCol)
        if plan.weightCol is not None and stage.uid == head.uid and stage.hasParam("weightCol"):
            stage._set(weightCol=plan.weightCol)
    return form


def fit_anew(context: ArmContext, form: UnfittedForm, seconds: float | None = None) -> Any:
    """Refit a pipeline to the training rows; the fitted stages keep the uids of the original.

    Raises:
        InputError: Spark can't fit the pipeline.
        TimeoutError: the fit takes longer than `seconds`.
    """
    with jvm.within(seconds):
        model = fit_on_training_rows(form.estimator, context.sources, context.options, context.boundaries)
    return with_uids_of(form.model, model)


def _run(context: ArmContext, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
    if number:
        [first] = [s for s in steps if s.arm == "refit" and s.number == 0]
        return fine_tuned(
            context, first.candidates[0], limit, recipe="default", number=number, name="refitted, fine-tuned"
        )
    begun, form = time.monotonic(), form_of(context)
    found = measure(context, fit_anew(context, form, limit.most))
    kept = [s.uid for s in form.stages if s.role == "as fitted"]
    says = "; ".join([f"fitted anew on {context.rows['train']:,} rows", *(f"{uid} stays as it is" for uid in kept)])
    candidate = Candidate("refit", "refitted", found, CandidateRecipe("refit"), seconds=time.monotonic() - begun)
    return Step("refit", 0, (candidate,), 0.0, says, trains=True, learned={"notes": list(form.notes)})


def _refusal(context: ArmContext) -> str:
    return (
        "all arms start from a refit, which is tested beside them"
        if context.fit is not None
        else form_of(context).refusal
    )


def _make(context: ArmContext, _settings: Mapping[str, Any]) -> Any:
    return fit_anew(context, form_of(context)) if context.fit is None else context.model


ARM = Arm("refit", 2, 0.5, _refusal, _run, _make, fits=1.0)
