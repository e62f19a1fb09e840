"""The arm "threshold", which moves only the threshold (or thresholds) at which the last stage decides; see `thresholds`."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff import jvm
from sparkdiff.data.splits import TRAIN, VALIDATION
from sparkdiff.fine_tuning.thresholds import check_classes, choose_thresholds, scores_of, with_params
from sparkdiff.improvement.arm_context import ArmContext, measure, refit_on_rows
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Arm, Candidate, CandidateRecipe, Step
from sparkdiff.objectives.metrics import DECISIONS, DEFAULTS
from sparkdiff.proof.division import inner
from sparkdiff.stages.predictor import ProbabilisticClassifier


def _refusal(context: ArmContext) -> str:
    o, head = context.options, context.plan.cut.graph.head
    if not isinstance(head.module, ProbabilisticClassifier):
        return f"{head.uid} is no classifier with probabilities"
    if head.uid in context.keeps:
        return f"{head.uid} is to be kept"
    if why := context.plan.roles.kept_as_fitted(o.target).get(head.uid):
        return f"{head.uid}: {why}"
    return "" if (o.metric or DEFAULTS.get(str(o.loss))) in DECISIONS else "the metric does not depend on decisions"


def _make(context: ArmContext, _settings: Mapping[str, Any]) -> Any:
    """The pipeline with thresholds chosen on training rows: those that a refit without them has scored, or all if the pipeline
    was fitted on none of them.
    """
    o, within, split = context.options, context, TRAIN
    if context.fit is not None:
        rows = inner([s for s in context.sources if s.split == TRAIN], o)
        within, split = refit_on_rows(context, rows, context.boundaries), VALIDATION
        check_classes(context.plan, within.plan, "a part of the training rows")
    head: Any = context.plan.cut.graph.head.module
    with within.open_run(within.plan) as run:
        scores = scores_of(run, split)
    cuts = choose_thresholds(head, context.metric.name, {**o.lossParams, **o.metricParams}, [scores])
    return with_params(context.plan, context.model, head.threshold_params(cuts))


def _run(context: ArmContext, number: int, limit: Limit, _steps: Sequence[Step]) -> Step:
    begun = time.monotonic()
    with jvm.within(limit.most):
        found = measure(context, _make(context, {}))
    making, seconds = CandidateRecipe("threshold"), time.monotonic() - begun
    candidate = Candidate("threshold", "another threshold", found, making, seconds=seconds)
    head: Any = found.task.cut.graph.head.module
    cuts = ", ".join(f"{cut:.3g}" for cut in head.decides_by().tolist())
    return Step("threshold", number, (candidate,), 0.0, f"thresholds of the classes: {cuts}")


ARM = Arm("threshold", 1, 0.5, _refusal, _run, _make, fits=1.0)
