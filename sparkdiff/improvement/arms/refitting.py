"""The arm that fits the stages anew on the training rows, and then trains them together."""

from collections.abc import Sequence
from typing import Any

from pyspark.ml import Pipeline

from sparkdiff import jvm
from sparkdiff.data.splits import fit_on_training_rows
from sparkdiff.evaluation.ledger import LedgerTrial
from sparkdiff.improvement.arm import Arm
from sparkdiff.improvement.arms.fine_tuning import fine_tuned
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Candidate, Step, one_column
from sparkdiff.improvement.ground import Ground, Measurement, measure
from sparkdiff.pipeline.unfitted import ESTIMATOR, Unfitted, unfitted, with_uids_of
from sparkdiff.stages.base import columns_of


def form_of(ground: Ground) -> Unfitted:
    """The unfitted form of the original. Stages that make the label stay as they are: a row keeps its label.

    So do all stages before a predictor without a label: the space in which its distances are measured stays the same.
    """
    graph = ground.plan.cut.graph
    space = [v.uid for v in graph.vertices if v.uid != graph.head.uid] if ground.plan.labelCol is None else ()
    measured = dict.fromkeys(space, "clusters are measured by distances in the space that it makes")
    return fitted_to_label(ground, unfitted(ground.model, keep=measured | ground.stay))


def fitted_to_label(ground: Ground, form: Unfitted) -> Unfitted:
    """The form, whose estimators fit what the improvement is judged by, where that is another label or weight than theirs.

    Their models say so: their Params are those of the fit.
    """
    plan, head = ground.plan, ground.plan.cut.graph.head
    own = columns_of(head.stage, ("labelCol",))
    for stage in (s.stage for s in form.stages if s.role == ESTIMATOR and plan.soft is None):
        if plan.labelCol is not None and columns_of(stage, ("labelCol",)) == own != (plan.labelCol,):
            stage._set(labelCol=plan.labelCol)
        if plan.weightCol is not None and stage.uid == head.uid and stage.hasParam("weightCol"):
            stage._set(weightCol=plan.weightCol)
    return form


def refitted(ground: Ground, form: Unfitted, limit: Limit) -> Measurement:
    """Fit a pipeline anew on the training rows, with its uids, and measure it."""
    estimator = form.estimator if isinstance(form.estimator, Pipeline) else Pipeline(stages=[form.estimator])
    with jvm.within(limit.most):
        model: Any = fit_on_training_rows(estimator, ground.sources, ground.options, ground.boundaries)
    return measure(ground, with_uids_of(form.model, model if estimator is form.estimator else model.stages[0]))


def _run(ground: Ground, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
    if number:
        [first] = [s for s in steps if s.arm == "refit" and s.number == 0]
        base = first.candidates[0].found
        return fine_tuned(
            ground, base, limit, recipe="default", arm="refit", number=number, name="refitted, fine-tuned"
        )
    form = form_of(ground)
    found = refitted(ground, form, limit)
    kept = [s.uid for s in form.stages if s.role == "as fitted"]
    says = "; ".join([f"fitted anew on {ground.rows['train']:,} rows", *(f"{uid} stays as it is" for uid in kept)])
    candidate = Candidate("refit", "refitted", found, 0)
    notes = {"notes": list(form.notes)}
    return Step(
        "refit", 0, one_column(ground, found), [LedgerTrial(0, 0)], (candidate,), 0.0, says, trains=True, learned=notes
    )


ARM = Arm("refit", 2, 0.5, lambda ground: form_of(ground).refusal, _run)
