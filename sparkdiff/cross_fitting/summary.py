"""The summary of a cross-fitting."""

import dataclasses
from collections.abc import Sequence

from sparkdiff.cross_fitting.results import FoldResult, Shipped, factor, sums_of
from sparkdiff.data.splits import TEST, TRAIN, VALIDATION
from sparkdiff.diagnostics.pipelines import unreadable_by_older_spark
from sparkdiff.evaluation.acceptance import reason
from sparkdiff.evaluation.ledger import candidate_count, diverged
from sparkdiff.fine_tuning.summary import facts, shown_options, tested, warnings_of
from sparkdiff.fine_tuning.values import Judged
from sparkdiff.options import Options
from sparkdiff.report import FineTuningSummary
from sparkdiff.report.shares import share_of


def _reason(done: Sequence[FoldResult], shipped: Shipped, options: Options, original: float) -> str:
    judgement = shipped.judgement
    if judgement.verdict.best < 0 and not judgement.verdict.untested:
        without = sum(f.chosen is None for f in done)
        why = (
            f"in {without} of them no epoch gained on its own validation rows either"
            if without
            else "nothing to gain from here"
        )
        return (
            f"the trainings of {len(done)} folds gain nothing on the out-of-fold rows; {why}; to look further, try Improver, "
            "which also refits, searches and grows"
        )
    metric = shipped.run.goal.metric
    text = reason(judgement, options, metric, original, whose="the tuned pipelines'", where="out-of-fold")
    return f"{text}, but {shipped.failure}" if shipped.failure else text


def _metrics(shipped: Shipped, before: float, after: float) -> dict[str, dict[str, float] | None]:
    """Of the out-of-fold rows as validation rows, and of all other rows for what is returned."""
    metrics: dict[str, dict[str, float] | None] = {
        TRAIN: None,
        VALIDATION: {"before": before, "after": after},
        TEST: None,
    }
    for split, one in shipped.before.scores.items():
        if split != VALIDATION:
            metrics[split] = {"before": one.value, "after": shipped.after.scores[split].value}
    return metrics


def summary_of(done: Sequence[FoldResult], shipped: Shipped, options: Options) -> FineTuningSummary:
    run, judgement, (sums, top) = shipped.run, shipped.judgement, sums_of(done)
    task, metric = run.task, run.goal.metric
    weights = sum(float(f.weights.sum()) for f in sums)
    before = metric.sign * sum(factor(f, TEST, top) * float(f.before.scores[TEST].blocks.sum()) for f in done) / weights
    gain = sum(float(f.gains.sum()) for f in sums) / weights if shipped.tuned else 0.0
    trainings = [(f.number, f.fitted) for f in done] + ([(0, shipped.fitted)] if shipped.fitted is not None else [])
    histories = [fitted.found.history for _, fitted in trainings]
    moved = shipped.fitted.found.moved if shipped.fitted is not None and shipped.tuned else {}
    compared = {"before": shipped.before.parity, "after": shipped.after.parity if shipped.tuned else None}
    compared["float32"] = done[0].fitted.single
    shared = facts(run)
    shared["cache"] |= {"hit": run.cache.hit and all(f.run.cache.hit for f in done)}
    return FineTuningSummary(
        decision="tuned" if shipped.tuned else "kept original", reason=_reason(done, shipped, options, before),
        metrics=_metrics(shipped, before, before - metric.sign * gain), gain=share_of(gain, before),
        records=[{"fold": n, **row} for (n, _), rows in zip(trainings, histories, strict=True) for row in rows],
        parity={k: dataclasses.asdict(p) for k, p in compared.items() if p is not None},
        stages={k: {"largest": a, "rootMeanSquare": b} for k, (a, b) in moved.items()},
        options=shown_options(dataclasses.replace(task, options=options), metric), warnings=_warnings(done, shipped),
        candidates=max(map(candidate_count, histories)), diverged=sum(len(diverged(h)) for h in histories),
        device=trainings[-1][1].device, folds=[f.entry() for f in done], **shared, **tested(judgement),
    )  # fmt: skip


def _warnings(done: Sequence[FoldResult], shipped: Shipped) -> list[str]:
    last, of_folds, judgement = done[-1], [w for f in done for w in f.warnings], shipped.judgement
    if shipped.fitted is None:
        return [*judgement.verdict.warnings, *unreadable_by_older_spark(shipped.run.task.model), *of_folds]
    if not shipped.tuned:
        judgement = dataclasses.replace(judgement, verdict=dataclasses.replace(judgement.verdict, accepted=False))
    wishes, tuned = shipped.fitted.wishes, last.after.scores[TEST]
    broken = wishes.broken(shipped.fitted.found.network) if wishes is not None and shipped.tuned else []
    doubts = [*of_folds, *shipped.doubts]
    return warnings_of(shipped.run, shipped.fitted, Judged(judgement, tuned, broken), tuned, doubts)
