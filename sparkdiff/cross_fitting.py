"""Cross-fitting: fine-tuning repeated per fold, so that all rows decide, and once more on all rows for what ships.

For each fold, an unfitted pipeline is fitted on rows outside of it and fine-tuned on them; validation rows of its own,
outside of the fold too, choose the candidate and the epoch. Nothing of this has seen the rows of the fold, which then
measure both pipelines. The rows of all folds together decide (`evaluation.out_of_fold`). If they decide for the tuned
one, the pipeline that is fitted on all rows is trained on all rows: by the candidate that most folds chose, for the
median of the epochs that these folds chose.
"""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pyspark.ml import Estimator, Pipeline
from torch import Tensor

from sparkdiff.data import folds
from sparkdiff.data.splits import REFERENCE, TEST, TRAIN, VALIDATION, Source, rule
from sparkdiff.diagnostics.pipelines import unreadable_by_older_spark
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation import compatibility, guard, out_of_fold, slices
from sparkdiff.evaluation.acceptance import Judgement, counted, needed, reason
from sparkdiff.evaluation.checks import check_trained
from sparkdiff.evaluation.compatibility import Compatibility
from sparkdiff.evaluation.ledger import candidate_count, diverged
from sparkdiff.evaluation.out_of_fold import FoldSums
from sparkdiff.evaluation.scores import Score, score
from sparkdiff.evaluation.slices import SliceSums
from sparkdiff.finetune import (
    Fitted,
    Measured,
    Outcome,
    Run,
    Shared,
    Task,
    begun,
    checked,
    prepare,
    trained,
    verified,
    written,
)
from sparkdiff.options import Options
from sparkdiff.pipeline.names import casefolding
from sparkdiff.pipeline.plan import Plan
from sparkdiff.report import FineTuningSummary, Phases
from sparkdiff.report.record import versions
from sparkdiff.stages.base import columns_of
from sparkdiff.store.run_folder import folder_name
from sparkdiff.training.recipes import Recipe

Fit = Callable[[Sequence[Source]], Any]


@dataclasses.dataclass(frozen=True)
class Fold:
    """The result of one fold.

    Attributes:
        number: from 1 on.
        before, after: of the fold's original and of its tuned pipeline.
        units: rows or groups of the fold.
        weights: per split the exponent of the power of two that divides the weights.
        slices: None without guardCols.
        chosen: the candidate and its epoch; None where no epoch gained on the validation rows of this training.
        level, stricter: see `acceptance.needed`.
        warnings: about the rows, only of the first fold, and about the training.
    """

    number: int
    run: Run
    before: Measured
    after: Measured
    fitted: Fitted
    units: int
    slices: SliceSums | None
    compatibility: Compatibility
    chosen: tuple[Recipe, int] | None
    level: float
    stricter: int
    warnings: list[str]

    @property
    def weights(self) -> dict[str, int]:
        return self.run.cache.manifest["weights"]  # type: ignore[no-any-return]

    def entry(self) -> dict[str, Any]:
        """What the summary tells."""
        parity = {"before": self.before.parity, "after": None if self.chosen is None else self.after.parity}
        recipe, epochs = self.chosen or ("", 0)
        return {
            "fold": self.number, "rows": self.run.cache.rows(TEST), "before": self.before.scores[TEST].value,
            "after": self.after.scores[TEST].value, "recipe": str(recipe), "epochs": epochs,
            "parity": {k: dataclasses.asdict(p) for k, p in parity.items() if p is not None},
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shipped:
    """The pipeline fitted on all rows, and its training on all rows.

    Attributes:
        before, after: the same where the original ships.
        fitted: None where the out-of-fold rows keep the original, so that nothing was trained.
        failure: why the trained pipeline cannot ship, whatever the out-of-fold rows say; empty if it can.
    """

    run: Run
    model: Any
    before: Measured
    after: Measured
    fitted: Fitted | None
    judgement: Judgement
    failure: str

    @property
    def tuned(self) -> bool:
        return self.judgement.accepted and not self.failure


def cross_fit(
    given: Any, options: Options, sources: Sequence[Source], phases: Phases, fit: Fit, *, shared: Shared | None = None,
    replace: bool = False, told: Callable[[Plan], None] = lambda plan: None,
) -> Outcome:  # fmt: skip
    """Fine-tune the pipeline by folds, and return what the out-of-fold rows decide for, made of all rows.

    Args:
        given: an unfitted Pipeline, or a fitted pipeline if `options.rowsAreNew`.
        sources: the rows to deal into folds, test rows, reference rows.
        fit: fits an unfitted pipeline on the training rows among these.
        replace: see `fine_tune`.
        told: called with the plan.

    Raises:
        InputError: before anything is fitted, where these rows or options don't suit.
        ParityError: a network and Spark disagree in a fold.
    """
    o, shared = options, shared or Shared()
    check(given, o, sources)

    def task(number: int, parts: Sequence[Source]) -> tuple[Task, Shared]:
        own = shared.once(("fold", number, o.numFolds, rule(o)), Shared)
        model = own.once(("fitted", given), lambda: fit(parts)) if isinstance(given, Estimator) else given
        runId = o.runId and f"{o.runId}-{f'fold{number}' if number else 'all'}"
        # How many epochs train on all rows is known: no clock may end them before.
        seconds = o.maxSeconds if number else None
        return prepare(model, dataclasses.replace(o, runId=runId, maxSeconds=seconds), parts[0].df), own

    done: list[Fold] = []
    try:
        for number in range(1, o.numFolds + 1):
            phases.fold = number
            parts = folds.fold_sources(sources, o, number - 1)
            ready, own = task(number, parts)
            if number == 1:
                told(ready.plan)
            done.append(_fold(ready, parts, phases, own, number, replace=replace))
        phases.fold = 0
        judgement = _judgement(done, o)
        parts = folds.all_sources(sources)
        ready, own = task(0, parts)
        shipped = _shipped(ready, parts, phases, own, done, judgement, replace=replace)
    finally:
        phases.fold = None
    summary = _summary(done, shipped, o, phases)
    phases.on_decision(summary)
    runs = [f.fitted for f in done] + [f for f in (shipped.fitted,) if f is not None]
    return Outcome(shipped.model, ready.model, ready.plan, summary, tuple(f.folder for f in runs))


# Before anything runs -------------------------------------------------------------------------------------------------


def check(given: Any, options: Options, sources: Sequence[Source]) -> None:
    """Raise InputError if this pipeline can't be cross-fitted on these rows. Runs a job or two over the rows."""
    check_given(given, options)
    if options.runId is not None:
        folder_name(f"{options.runId}-fold{options.numFolds}")
    casefold = casefolding()
    columns = [casefold(c) for s in sources if s.split in (None, TRAIN) for c in s.df.columns]
    last = _last(given)

    def column(option: str) -> str | None:
        name = getattr(options, option) or next(iter(columns_of(last, (option,))), None)
        return name if name is not None and casefold(name) in columns else None

    classes = any(last.hasParam(name) for name in ("rawPredictionCol", "probabilityCol")) and not callable(options.loss)
    folds.check(
        sources, options, labelCol=column("labelCol"), weightCol=column("weightCol"), classes=classes, least=guard.MIN_UNITS
    )  # fmt: skip


def check_given(given: Any, options: Options) -> None:
    """Raise InputError for a fitted pipeline, unless the rows are new to it."""
    if isinstance(given, Estimator) or options.rowsAreNew:
        return
    raise InputError(
        f"numFolds={options.numFolds} needs a pipeline that is not fitted yet: {given.uid} may have been fitted on these rows, "
        "and would seem better on them than on others, so that no gain could be seen. Pass the unfitted Pipeline; or, if none "
        "of its stages has seen these rows, set rowsAreNew=True"
    )


def _last(given: Any) -> Any:
    """The last stage of a pipeline, fitted or not."""
    stages = given.getStages() if isinstance(given, Pipeline) else getattr(given, "stages", [])
    return _last(stages[-1]) if stages else given


# A fold ---------------------------------------------------------------------------------------------------------------


def _unit(options: Options) -> Literal["rows", "groups"]:
    return "groups" if options.groupCol else "rows"


def _fold(task: Task, parts: Sequence[Source], phases: Phases, shared: Shared, number: int, *, replace: bool) -> Fold:
    with begun(task, parts, phases, shared=shared) as run:
        before = after = verified(run)
        doubts = checked(run) if number == 1 else []
        fitted = trained(run, before, None, replace=replace)
        found, metric, o = fitted.found, run.goal.metric, run.task.options
        with phases.phase("judge"):
            tuned = _measured(run, fitted)
            networks, columns = (run.network, found.network), list(run.data.stream.slices.values())
            sliced = slices.sums(*networks, run.data, TEST, metric, columns, unit=_unit(o)) if columns else None
            compared = compatibility.compare(*networks, run.data, TEST)
            units = counted(run.data, TEST, _unit(o))[1]
        chosen = None
        if found.ledger.chosen >= 0:
            trial = found.ledger.trials[found.ledger.chosen]
            chosen = fitted.recipes[trial.candidate], trial.epoch
            _, after = written(run, before, found.network, {VALIDATION: tuned})
        warnings = [*doubts, *(f"fold {number}: {w}" for w in _troubles(fitted))]
        return Fold(
            number, run, before, after, fitted, units, sliced, compared, chosen, *needed(o, run.network), warnings
        )


def _measured(run: Run, fitted: Fitted) -> Score:
    """The metric of the trained network on the rows that training measured, once more."""
    single = run.task.options.precision == "float32"
    tuned = score(fitted.found.network, run.data, VALIDATION, run.goal.metric)
    check_trained(run.task.model.uid, fitted.best, tuned, run.goal.metric, single=single)
    return tuned


def _troubles(fitted: Fitted) -> list[str]:
    """What went otherwise than planned in a training."""
    lost = [f"{loss}; training continued from the last checkpoint" for loss in fitted.lost]
    return [*filter(None, [fitted.unsaved, fitted.cut]), *fitted.fallbacks, *lost]


# All folds ------------------------------------------------------------------------------------------------------------


def _factor(fold: Fold, split: str, top: int) -> float:
    return math.ldexp(1.0, fold.weights.get(split, 0) - top)


def _sums(done: Sequence[Fold]) -> tuple[list[FoldSums], int]:
    """What the folds show, in one unit of weight, and the exponent of the power of two that it is."""
    top = max([0, *(e for f in done for e in f.weights.values())])

    def gains(fold: Fold, split: str) -> Tensor:
        before, after = (m.scores[split].blocks for m in (fold.before, fold.after))
        return (before - after) * _factor(fold, split, top)

    def one(fold: Fold) -> FoldSums:
        own, factor = fold.before.scores[TEST], _factor(fold, TEST, top)
        elsewhere = gains(fold, TRAIN) + gains(fold, VALIDATION)
        return FoldSums(own.blocks * factor, gains(fold, TEST), own.weights * factor, fold.units, elsewhere)

    return [one(fold) for fold in done], top


def _judgement(done: Sequence[Fold], options: Options) -> Judgement:
    """The decision by the out-of-fold rows."""
    o, (sums, top) = options, _sums(done)
    level, stricter = min(f.level for f in done), max(f.stricter for f in done)
    verdict = out_of_fold.decide(sums, level=level, unit=_unit(o), seed=o.seed)
    worse = o.guard * verdict.level / level if o.guard < 1 else None
    if verdict.best < 0:
        return Judgement(verdict, worse, stricter=stricter)
    sliced = [f.slices.scaled(_factor(f, TEST, top)) for f in done if f.slices is not None]
    how: dict[str, Any] = {"level": worse or 0.025, "dependence": out_of_fold.dependence(sums), "seed": o.seed}
    changes = slices.judged(sum(sliced[1:], start=sliced[0]), **how) if sliced else []
    compared = compatibility.mean([f.compatibility for f in done])
    return Judgement(verdict, worse, tuple(changes), None, compared, o.maxFlipRate, stricter)


def for_all_rows(chosen: Sequence[tuple[Recipe, int]]) -> tuple[Recipe, int]:
    """The candidate that most folds chose, the first of them where several were chosen as often, and the median of the epochs
    that these folds chose, rounded up.
    """
    recipe, _ = Counter(recipe for recipe, _ in chosen).most_common(1)[0]
    return recipe, math.ceil(statistics.median(epoch for r, epoch in chosen if r == recipe))


# On all rows ----------------------------------------------------------------------------------------------------------


def _shipped(
    task: Task, parts: Sequence[Source], phases: Phases, shared: Shared, done: Sequence[Fold], judgement: Judgement, *,
    replace: bool,
) -> Shipped:  # fmt: skip
    with begun(task, parts, phases, shared=shared, allTrain=True) as run:
        before = verified(run)
        kept = Shipped(run, task.model, before, dataclasses.replace(before, parity=None), None, judgement, "")
        if not judgement.accepted:
            return kept
        recipe, epochs = for_all_rows([f.chosen for f in done if f.chosen is not None])
        fitted = trained(run, before, [recipe], replace=replace, epochs=epochs)
        kept = dataclasses.replace(kept, fitted=fitted)
        if lost := diverged(fitted.found.history):
            why = f"the training on all rows diverged in epoch {lost[0]['epoch']} ({recipe}): lower learningRate"
            return dataclasses.replace(kept, failure=why)
        with phases.phase("judge"):
            judgement = dataclasses.replace(judgement, reference=_reference(run, fitted, judgement))
        kept = dataclasses.replace(kept, judgement=judgement)
        if not judgement.accepted:
            return kept
        try:
            model, after = written(run, before, fitted.found.network, {VALIDATION: _measured(run, fitted)})
        except ParityError as e:
            return dataclasses.replace(kept, failure=str(e))
        return dataclasses.replace(kept, model=model, after=after)


def _reference(run: Run, fitted: Fitted, judgement: Judgement) -> slices.Change | None:
    """The change on the reference rows of what would ship, which has not seen them either."""
    if not run.cache.rows(REFERENCE):
        return None
    o, networks = run.task.options, (run.network, fitted.found.network)
    [change] = slices.changes(
        *networks, run.data, REFERENCE, run.goal.metric, (), unit=_unit(o), level=judgement.level or 0.025, seed=o.seed
    )
    return change


# Summary --------------------------------------------------------------------------------------------------------------


def _reason(done: Sequence[Fold], shipped: Shipped, options: Options, original: float) -> str:
    judgement = shipped.judgement
    if judgement.verdict.best < 0:
        without = sum(f.chosen is None for f in done)
        why = (
            f"in {without} of them no epoch gained on its own validation rows either"
            if without
            else "nothing to gain from here"
        )
        return f"the trainings of {len(done)} folds gain nothing on the out-of-fold rows; {why}"
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


def _summary(done: Sequence[Fold], shipped: Shipped, options: Options, phases: Phases) -> FineTuningSummary:
    run, judgement, (sums, _) = shipped.run, shipped.judgement, _sums(done)
    task, metric, verdict = run.task, run.goal.metric, judgement.verdict
    weights = sum(float(f.weights.sum()) for f in sums)
    before = metric.sign * sum(float(f.original.sum()) for f in sums) / weights
    gain = sum(float(f.gains.sum()) for f in sums) / weights if shipped.tuned else 0.0
    trainings = [(f.number, f.fitted) for f in done] + ([(0, shipped.fitted)] if shipped.fitted is not None else [])
    histories = [fitted.found.history for _, fitted in trainings]
    moved = shipped.fitted.found.moved if shipped.fitted is not None and shipped.tuned else {}
    compared = {"before": shipped.before.parity, "after": shipped.after.parity if shipped.tuned else None}
    compared["float32"] = done[0].fitted.single
    return FineTuningSummary(
        decision="tuned" if shipped.tuned else "kept original", reason=_reason(done, shipped, options, before),
        metric=metric.name, metricDirection=metric.direction, metrics=_metrics(shipped, before, before - metric.sign * gain),
        gain=gain / max(abs(before), 1e-12), z=verdict.z, p=verdict.p,
        records=[{"fold": n, **row} for (n, _), rows in zip(trainings, histories, strict=True) for row in rows],
        parity={k: dataclasses.asdict(p) for k, p in compared.items() if p is not None},
        stages={k: {"largest": a, "rootMeanSquare": b} for k, (a, b) in moved.items()},
        timings={k: round(v, 3) for k, v in phases.timings.items()}, stream=run.data.stream.backend,
        cache={"hit": run.cache.hit and all(f.run.cache.hit for f in done), "fingerprint": run.cache.fingerprint},
        options=options.asdict(every=True) | {
            "labelCol": task.labelCol, "weightCol": task.weightCol, "metric": options.metric or metric.name,
        },
        versions=versions(), warnings=_warnings(done, shipped),
        gainInterval=None if verdict.interval is None else list(verdict.interval),
        slices=[dataclasses.asdict(c) for c in judgement.slices],
        reference=None if judgement.reference is None else dataclasses.asdict(judgement.reference),
        compatibility=None if judgement.compatibility is None else dataclasses.asdict(judgement.compatibility),
        candidates=max(map(candidate_count, histories)), diverged=sum(len(diverged(h)) for h in histories),
        device=trainings[-1][1].device, precision=options.precision, folds=[f.entry() for f in done],
    )  # fmt: skip


def _warnings(done: Sequence[Fold], shipped: Shipped) -> list[str]:
    last = [] if shipped.fitted is None else _troubles(shipped.fitted)
    reference = shipped.judgement.reference
    untested = [
        f"the reference rows come from {reference.units} groups, fewer than {guard.MIN_UNITS}: they were measured, but not tested"
        for reference in [reference]
        if reference is not None and reference.p is None
    ]
    return [
        *shipped.judgement.verdict.warnings, *unreadable_by_older_spark(shipped.run.task.model),
        *(w for f in done for w in f.warnings), *(f"all rows: {w}" for w in last), *untested,
    ]  # fmt: skip
