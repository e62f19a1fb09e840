"""The arm "refit", which fits the stages anew to the training rows, and then trains all weights together."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff import jvm
from sparkdiff.data.splits import fit_on_training_rows
from sparkdiff.improvement.arms.fine_tuning import fine_tuned
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Arm, Candidate, Making, Step
from sparkdiff.improvement.ground import Ground, measure
from sparkdiff.pipeline.unfitted import ESTIMATOR, Unfitted, unfitted, with_uids_of
from sparkdiff.stages.base import columns_of


def form_of(ground: Ground) -> Unfitted:
    """Unfitted form of the original, in which stages that must not change stay fitted.

    Stages that make the label stay fitted, so that each row keeps its label. If the predictor has no label, as in clustering, all
    stages before it stay fitted, so that the space in which it measures distances stays the same.
    """
    graph = ground.plan.cut.graph
    space = [v.uid for v in graph.vertices if v.uid != graph.head.uid] if ground.plan.labelCol is None else ()
    measured = dict.fromkeys(space, "clusters are measured by distances in the space that it makes")
    return fitted_to_label(ground, unfitted(ground.model, keep=measured | ground.stay))


def fitted_to_label(ground: Ground, form: Unfitted) -> Unfitted:
    """The form, after the label of the improvement is set on estimators that read the last stage's own label, if that is
    another one, and its weight on the last stage. With soft labels (class probabilities) nothing is set.

    The fitted models have the same Params.
    """
    plan, head = ground.plan, ground.plan.cut.graph.head
    own = columns_of(head.stage, ("labelCol",))
    for stage in (s.stage for s in form.stages if s.role == ESTIMATOR and plan.soft is None):
        if plan.labelCol is not None and columns_of(stage, ("labelCol",)) == own != (plan.labelCol,):
            stage._set(labelCol=plan.labelCol)
        if plan.weightCol is not None and stage.uid == head.uid and stage.hasParam("weightCol"):
            stage._set(weightCol=plan.weightCol)
    return form


def fit_anew(ground: Ground, form: Unfitted, seconds: float | None = None) -> Any:
    """Refit a pipeline to the training rows; the fitted stages keep the uids of the original.

    Raises:
        InputError: Spark can't fit the pipeline.
        TimeoutError: the fit takes longer than `seconds`.
    """
    with jvm.within(seconds):
        model = fit_on_training_rows(form.estimator, ground.sources, ground.options, ground.boundaries)
    return with_uids_of(form.model, model)


def _run(ground: Ground, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
    if number:
        [first] = [s for s in steps if s.arm == "refit" and s.number == 0]
        return fine_tuned(
            ground, first.candidates[0], limit, recipe="default", number=number, name="refitted, fine-tuned"
        )
    begun, form = time.monotonic(), form_of(ground)
    found = measure(ground, fit_anew(ground, form, limit.most))
    kept = [s.uid for s in form.stages if s.role == "as fitted"]
    says = "; ".join([f"fitted anew on {ground.rows['train']:,} rows", *(f"{uid} stays as it is" for uid in kept)])
    candidate = Candidate("refit", "refitted", found, Making("refit"), seconds=time.monotonic() - begun)
    return Step("refit", 0, (candidate,), 0.0, says, trains=True, learned={"notes": list(form.notes)})


def _refused(ground: Ground) -> str:
    return (
        "all arms start from a refit, which is tested beside them"
        if ground.fit is not None
        else form_of(ground).refusal
    )


def _make(ground: Ground, settings: Mapping[str, Any]) -> Any:
    return fit_anew(ground, form_of(ground)) if ground.fit is None else ground.model


ARM = Arm("refit", 2, 0.5, _refused, _run, _make, fits=1.0)
