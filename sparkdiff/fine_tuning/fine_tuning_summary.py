"""The summary of a fine-tuning run, in parts that the summaries of growth and improvement use, too."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff.data.splits import REFERENCE, SPLITS, VALIDATION
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.acceptance import Judgement, divergence, reason
from sparkdiff.evaluation.pipeline_warnings import changes_outside, unreadable_by_older_spark
from sparkdiff.evaluation.scores import Score
from sparkdiff.fine_tuning.phases import in_memory
from sparkdiff.fine_tuning.task import GuardDecision, PipelineScores, Run, Task, TrainingResult
from sparkdiff.objectives.metric import Metric
from sparkdiff.pipeline.parity import Parity
from sparkdiff.report import FineTuningSummary, share_of, versions
from sparkdiff.stages.base import SUPPORT


def summary_of(
    run: Run,
    original: PipelineScores,
    fitted: TrainingResult,
    judged: GuardDecision,
    tuned: PipelineScores,
    doubts: Sequence[str],
) -> FineTuningSummary:
    judgement, found = judged.judgement, fitted.found
    held, now = original.scores[VALIDATION], tuned.scores[VALIDATION]
    params = ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}=[{', '.join(f'{x:.4g}' for x in value)}]"
        for name, value in fitted.params.items()
    )
    compared = {"before": original.parity, "after": tuned.parity, "float32": fitted.single}
    return FineTuningSummary(
        decision="tuned" if judgement.accepted else "kept original",
        reason=reason(
            judgement,
            run.task.options,
            run.goal.metric,
            held.value,
            found.history,
            whose=f"{params}: its" if params else "the best epoch's",
            divided=run.divided,
            nothing=f"{params}, the best by scores of training rows, gives no {run.goal.metric.direction} {run.goal.metric.name} "
            "on the validation rows"
            if params
            else "",
        ),
        warnings=warnings_of(run, fitted, judged, now, doubts),
        options=shown_options(run.task, run.goal.metric),
        **facts(run),
        **guard_fields(judgement),
        **metric_fields(original, tuned),
        **training_fields(fitted, compared, judgement.accepted),
    )


def summary_without_training(run: Run, original: PipelineScores, warnings: Sequence[str]) -> FineTuningSummary:
    """The summary of a run that trained nothing, and kept the original."""
    parity = {} if original.parity is None else {"before": dataclasses.asdict(original.parity)}
    return FineTuningSummary(
        decision="kept original",
        reason="",
        z=0.0,
        p=1.0,
        records=[],
        parity=parity,
        stages={},
        warnings=[*warnings],
        options=shown_options(run.task, run.goal.metric),
        **facts(run),
        **metric_fields(original, original),
    )


def facts(run: Run) -> dict[str, Any]:
    """The fields of the summary that are known without training, by name."""
    metric, cache = run.goal.metric, run.cache
    known = {"hit": cache.hit, "fingerprint": cache.fingerprint, "rows": {s: cache.rows(s) for s in cache.splits}}
    known |= {name: list(uids) for name, uids in (("stagesRead", cache.read), ("stagesKept", cache.kept)) if uids}
    return {
        "metric": metric.name,
        "metricDirection": metric.direction,
        "versions": versions(),
        "timings": {k: round(v, 3) for k, v in run.phases.timings.items()},
        "stream": run.data.stream.backend,
        "cache": known | ({"versions": run.versions} if run.versions else {}),
        "precision": run.task.options.precision,
    }


def shown_options(task: Task, metric: Metric, **more: Any) -> dict[str, Any]:
    """All options by name, with the label column, weight column and metric that are used where the user set none.

    Args:
        more: further options, such as those of growth.
    """
    found = {"labelCol": task.labelCol, "weightCol": task.weightCol, "metric": task.options.metric or metric.name}
    return task.options.asdict() | more | found


def guard_fields(judgement: Judgement) -> dict[str, Any]:
    """The fields of the summary with the results of the guard, the statistical test on held-out rows, by name."""
    verdict, reference, compatibility = judgement.verdict, judgement.reference, judgement.compatibility
    return {
        "z": verdict.z,
        "p": verdict.p,
        "gainInterval": None if verdict.interval is None else list(verdict.interval),
        "slices": [dataclasses.asdict(c) for c in judgement.slices],
        "reference": None if reference is None else dataclasses.asdict(reference),
        "compatibility": None if compatibility is None else dataclasses.asdict(compatibility),
    }


def metric_fields(original: PipelineScores, after: PipelineScores) -> dict[str, Any]:
    """The fields of the summary with the metrics of both pipelines and the gain on validation rows, by name."""
    before, now = original.scores, after.scores
    held, own = before[VALIDATION], now[VALIDATION]
    metrics = {
        s: {"before": before[s].value, "after": now[s].value} if s in before else None
        for s in SPLITS
        if s in before or s != REFERENCE
    }
    gain = 0.0 if after is original else share_of(held.sign * (held.value - own.value), held.value)
    return {"metrics": metrics, "gain": gain}


def training_fields(fitted: TrainingResult, compared: Mapping[str, Parity | None], changed: bool) -> dict[str, Any]:
    """The fields of the summary with the results of training, by name.

    Args:
        compared: parities by name; None where nothing was compared.
        changed: whether the returned pipeline has the trained parameters; if not, no parameter is reported as moved.
    """
    found = fitted.found
    moved = found.moved.items() if changed else ()
    return {
        "records": found.history,
        "candidates": guard.candidate_count(found.history),
        "diverged": len(guard.diverged_candidates(found.history)),
        "parity": {k: dataclasses.asdict(p) for k, p in compared.items() if p is not None},
        "stages": {k: {"largest": a, "rootMeanSquare": b} for k, (a, b) in moved},
        "device": fitted.device,
        "processes": None if fitted.processes is None else dataclasses.asdict(fitted.processes),
    }


def warnings_of(
    run: Run, fitted: TrainingResult, judged: GuardDecision, tuned: Score, doubts: Sequence[str]
) -> list[str]:
    """Warnings for the summary: reasons to doubt its figures."""
    task, o, goal, judgement = run.task, run.task.options, run.goal, judged.judgement
    warnings = [
        *judgement.verdict.warnings,
        *([task.soft.sentence()] if task.soft else []),
        *unreadable_by_older_spark(task.model),
        *doubts,
        *filter(None, [fitted.unsaved, fitted.endedEarly]),
        *fitted.fallbacks,
        *judged.warnings,
    ]
    warnings += [f"{loss}; training continued from the last checkpoint" for loss in fitted.lost]
    lost_candidates = divergence(fitted.found.history, o)
    if lost_candidates and judgement.verdict.best >= 0:  # else the reason says it
        warnings.append(lost_candidates)
    if judgement.reference is not None and judgement.reference.p is None:
        warnings.append(
            f"the reference rows come from {judgement.reference.units} groups or blocks, fewer than "
            f"{guard.MIN_UNITS}: they were measured, but not tested"
        )
    if fitted.frozen:
        entries = ", ".join(f"{n} of {name}" for name, n in fitted.frozen.items())
        warnings.append(f"entries that did not train, because fewer than {SUPPORT} training rows have them: {entries}")
    if o.localSteps > 1 and o.processes > 1:
        warnings.append(
            f"with localSteps={o.localSteps} another number of processes than {o.processes} gives another result"
        )
    if o.cacheInMemory and not in_memory(o, run.cache):
        warnings.append(
            "the cached rows would use half of the memory of this machine, so each epoch read them from the files"
        )
    trained = [i for i, s in enumerate(task.plan.stages) if s.trainable] or [task.cut.graph.head.position]
    warnings += changes_outside(task.roles, trained, judgement.accepted)
    if judgement.accepted and not goal.objective.calibrated and not fitted.params:
        warnings.append(
            f"the loss {goal.objective.name} trains decisions or ranks, not probabilities: the probabilities of the "
            "tuned pipeline are no longer calibrated"
        )
    if tuned.below:
        warnings.append(
            f"{tuned.below} validation rows are predicted below {goal.metric.floor:.3g}, where {goal.metric.name} continues as "
            "a parabola"
        )
    return warnings
