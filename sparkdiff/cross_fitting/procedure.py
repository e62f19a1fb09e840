"""The procedure of cross-fitting: what is refused, the folds one after the other, the decision, the training on all rows."""

import dataclasses
import functools
import math
import operator
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyspark.ml import Estimator, Pipeline

from sparkdiff.cross_fitting.results import FoldResult, Shipped, factor, sums_of
from sparkdiff.cross_fitting.summary import summary_of
from sparkdiff.data import folds
from sparkdiff.data.splits import REFERENCE, TEST, TRAIN, VALIDATION, Source, rule, training_rows
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation import compatibility, out_of_fold, paired_rows, slices
from sparkdiff.evaluation.acceptance import Judgement, divergence, needed, unit_of
from sparkdiff.evaluation.checks import trained_score
from sparkdiff.evaluation.ledger import diverged
from sparkdiff.evaluation.scores import Score
from sparkdiff.evaluation.unseen_errors import costs, unseen
from sparkdiff.fine_tuning.phases import begun, checked, trained, verified, written
from sparkdiff.fine_tuning.shared import Shared
from sparkdiff.fine_tuning.starting_point import Evidence, StartingPoint, evidence, refittable
from sparkdiff.fine_tuning.task import Task, prepare
from sparkdiff.fine_tuning.values import Fitted, Outcome, Run
from sparkdiff.options import Options
from sparkdiff.pipeline.class_numbers import check_same_classes, classes_of
from sparkdiff.pipeline.names import casefolding
from sparkdiff.pipeline.plan import Plan
from sparkdiff.pipeline.unfitted import check_unfitted, refit
from sparkdiff.report import Phases
from sparkdiff.stages.base import columns_of
from sparkdiff.store.run_folder import folder_name
from sparkdiff.training.recipes import Recipe

Fit = Callable[[Sequence[Source]], Any]


def cross_fit(
    given: Any, options: Options, sources: Sequence[Source], phases: Phases, fit: Fit, *, shared: Shared | None = None,
    replace: bool = False, told: Callable[[Plan], None] = lambda plan: None,
) -> Outcome:  # fmt: skip
    """Fine-tune the pipeline by folds, and return what the out-of-fold rows decide for, made of all rows.

    Args:
        given: a Pipeline, or a fitted pipeline; each fold fits it anew, unless `options.rowsAreNew`.
        sources: the rows to deal into folds, test rows, reference rows.
        fit: fits an unfitted pipeline on the training rows among these.
        replace: see `fine_tune`.
        told: called with the plan.

    Raises:
        InputError: before anything is fitted, where these rows or options don't suit; before anything is trained, where the
            number of a class counts and is another one in another fold.
        ParityError: a network and Spark disagree in a fold.
    """
    o, shared, origin = options, shared or Shared(), given
    idle = check_unfitted(given, o.rowsAreNew)
    if not isinstance(given, Estimator) and not o.rowsAreNew:
        given, fit = _anew(given, o, sources)
    sources = folds.numbered_sources(sources, o)
    check(given, o, sources)

    def task(number: int, parts: Sequence[Source]) -> tuple[Task, Shared]:
        own = shared.once(("fold", number, o.numFolds, rule(o)), Shared)
        model = own.once(("fitted", given), lambda: fit(parts)) if isinstance(given, Estimator) else given
        runId = o.runId and f"{o.runId}-{f'fold{number}' if number else 'all'}"
        # How many epochs train on all rows is known: no clock may end them before.
        seconds = o.maxSeconds if number else None
        return prepare(model, dataclasses.replace(o, runId=runId, maxSeconds=seconds), parts[0].data), own

    tasks: dict[int, tuple[Task, list[Source], Shared]] = {}
    done: list[FoldResult] = []
    try:
        # All are fitted and compared before the first one trains; first those that tell whether the others are of use.
        for number in (1, 0, *range(2, o.numFolds + 1)):
            phases.fold = number
            parts = folds.fold_sources(sources, o, number - 1) if number else folds.all_sources(sources)
            ready, own = task(number, parts)
            if number == 1:
                told(ready.plan)
            tasks[number] = ready, parts, own
            if by_number(ready):
                label, where = ready.labelCol, f"fold {number}" if number else "the fit on all rows"
                check_same_classes(classes_of(tasks[1][0].model, label), classes_of(ready.model, label), label, where)
            if number == 0 and given is not origin:
                _check_no_better(origin, *tasks[1], ready.model)
        for number in range(1, o.numFolds + 1):
            phases.fold = number
            ready, parts, own = tasks[number]
            done.append(_fold(ready, parts, phases, own, number, replace=replace))
        phases.fold = 0
        judgement = _judgement(done, o)
        ready, parts, own = tasks[0]
        shipped = _shipped(ready, parts, phases, own, done, judgement, replace=replace)
    finally:
        phases.fold = None
    start = StartingPoint(ready.model, ready.model if isinstance(origin, Estimator) else origin, warnings=idle)
    summary = start.told(summary_of(done, shipped, o))
    phases.on_decision(summary)
    runs = [f.fitted for f in done] + [f for f in (shipped.fitted,) if f is not None]
    return start.finished(Outcome(shipped.model, ready.model, ready.plan, summary, tuple(f.folder for f in runs)))


# Before anything runs -------------------------------------------------------------------------------------------------


def check(given: Any, options: Options, sources: Sequence[Source]) -> None:
    """Raise InputError if this pipeline can't be cross-fitted on these rows. Runs a job or two over the rows."""
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
        sources, options, labelCol=column("labelCol"), weightCol=column("weightCol"), classes=classes
    )  # fmt: skip


def _anew(given: Any, options: Options, sources: Sequence[Source]) -> tuple[Pipeline, Fit]:
    """The unfitted form of a fitted pipeline, which may have seen these rows, and its fit.

    Raises:
        InputError: it has none that has seen no row.
    """
    try:
        form = refittable(prepare(given, options, sources[0].df), sources)
    except InputError as e:
        raise InputError(
            f"numFolds={options.numFolds} fits the pipeline anew in each fold, because {given.uid} may have been fitted on these "
            f"rows, but it can't be: {e}. Pass the unfitted Pipeline; or, if none of its stages has seen these rows, set "
            "rowsAreNew=True"
        ) from e
    whole = form.estimator if isinstance(form.estimator, Pipeline) else Pipeline(stages=[form.estimator])
    return whole, lambda parts: refit(form, training_rows(parts, options))


def _check_no_better(given: Any, task: Task, parts: Sequence[Source], shared: Shared, whole: Any) -> None:
    """Raise InputError if a fitted pipeline is better than its refits, and not because it was fitted on these rows.

    Args:
        task, parts, shared: of the first fold.
        whole: its refit on all rows.
    """

    def scores(model: Any) -> Mapping[str, Score]:
        with begun(prepare(model, task.options, parts[0].data), parts, Phases(False), shared=shared) as run:
            return verified(run, decides=False).scores

    own = scores(task.model)  # what is wrong with rows or options is told as such
    try:
        found = evidence(scores(given), own, lambda: scores(whole))
        why = found.value if found is Evidence.BETTER else ""
    except InputError as e:
        why = f"can't be compared with what is fitted anew: {e}"
    if why:
        raise InputError(
            f"numFolds={task.options.numFolds} fits the pipeline anew in each fold, but {given.uid} {why}. Pass the unfitted "
            "Pipeline; or, if none of its stages has seen these rows, set rowsAreNew=True"
        )


def by_number(task: Task) -> bool:
    """Whether the loss, the metric or the predictor goes by the number of a class: one class counts, or classes have costs,
    weights or thresholds of their own.
    """
    o, head = task.options, task.cut.graph.head.stage
    names = [*(o.loss if isinstance(o.loss, Mapping) else [o.loss]), o.metric]
    params = {**o.lossParams, **o.metricParams}
    return (
        any(
            callable(name) or name in ("areaUnderPR", "cost", "expectedCost") or str(name).endswith("ByLabel")
            for name in names
        )
        or params.get("classWeights", "balanced") != "balanced"
        or any(head.hasParam(name) and head.isSet(name) for name in ("threshold", "thresholds"))
    )


def _last(given: Any) -> Any:
    """The last stage of a pipeline, fitted or not."""
    stages = getattr(given, "stages", [])
    if isinstance(given, Pipeline):
        stages = given.getStages() if given.isDefined(given.stages) else []
    return _last(stages[-1]) if stages else given


# A fold ---------------------------------------------------------------------------------------------------------------


def _fold(
    task: Task, parts: Sequence[Source], phases: Phases, shared: Shared, number: int, *, replace: bool
) -> FoldResult:
    with begun(task, parts, phases, shared=shared) as run:
        before = after = verified(run)
        doubts = checked(run) if number == 1 else []
        fitted = trained(run, before, None, replace=replace)
        found, metric, o = fitted.found, run.goal.metric, run.task.options
        with phases.phase("judge"):
            tuned = _measured(run, fitted)
            networks, columns = (run.network, found.network), list(run.data.stream.slices.values())
            sliced = slices.sums(*networks, run.data, TEST, metric, columns, unit=unit_of(o)) if columns else None
            compared = compatibility.compare(*networks, run.data, TEST)
            further = costs(*networks, run.data, TEST, metric)
            rows = paired_rows.read(*networks, run.data, TEST, metric, unit_of(o))
            training = paired_rows.read(*networks, run.data, TRAIN, metric, unit_of(o), rows).costs()
        chosen = None
        if found.ledger.chosen >= 0:
            trial = found.ledger.trials[found.ledger.chosen]
            chosen = fitted.recipes[trial.candidate], trial.epoch
            _, after = written(run, before, found.network, {VALIDATION: tuned})
        troubles = [*_troubles(fitted), *filter(None, [divergence(found.history, o)])]
        warnings = [*doubts, *(f"fold {number}: {w}" for w in troubles)]
        return FoldResult(
            number, run, before, after, fitted, rows, training, sliced, compared, further, chosen, *needed(o, run.network),
            warnings,
        )  # fmt: skip


def _measured(run: Run, fitted: Fitted) -> Score:
    """The metric of the trained network on the rows that training measured, once more."""
    task = run.task
    return trained_score(task.model.uid, task.options, fitted.best, run.goal.metric, fitted.found.network, run.data)


def _troubles(fitted: Fitted) -> list[str]:
    """What went otherwise than planned in a training."""
    lost = [f"{loss}; training continued from the last checkpoint" for loss in fitted.lost]
    return [*filter(None, [fitted.unsaved, fitted.cut]), *fitted.fallbacks, *lost]


# All folds ------------------------------------------------------------------------------------------------------------


def _judgement(done: Sequence[FoldResult], options: Options) -> Judgement:
    """The decision by the out-of-fold rows."""
    o, (sums, top) = options, sums_of(done)
    level, stricter = min(f.level for f in done), max(f.stricter for f in done)
    rows = [f.rows.scaled(factor(f, TEST, top)) for f in done]
    # What rows cost on average, by the fold where they cost most: the folds share training rows.
    training = max((f.training for f in done), key=lambda c: c.mean_square)
    verdict = paired_rows.decide_by_rows(
        functools.reduce(operator.add, rows), level=level, training=training, dependence=out_of_fold.dependence(sums), seed=o.seed
    )  # fmt: skip
    worse = o.guard * verdict.level / level if o.guard < 1 else None
    if verdict.best < 0:
        return Judgement(verdict, worse, stricter=stricter)
    sliced = [f.slices.scaled(factor(f, TEST, top)) for f in done if f.slices is not None]
    how: dict[str, Any] = {"level": worse or 0.025, "dependence": out_of_fold.dependence(sums), "seed": o.seed}
    changes = slices.judged(sum(sliced[1:], start=sliced[0]), **how) if sliced else []
    compared = compatibility.mean([f.compatibility for f in done], [float(s.weights.sum()) for s in sums])
    further = None
    if worse is not None:
        every = torch.cat([f.costs * factor(f, TEST, top) for f in done])
        further = unseen(float(sum(s.gains.sum() for s in sums)), every, training)
    return Judgement(verdict, worse, tuple(changes), None, compared, o.maxFlipRate, stricter, further)


def for_all_rows(chosen: Sequence[tuple[Recipe, int]]) -> tuple[Recipe, int]:
    """The candidate that most folds chose, the first of them where several were chosen as often, and the median of the epochs
    that these folds chose, rounded up.
    """
    recipe, _ = Counter(recipe for recipe, _ in chosen).most_common(1)[0]
    return recipe, math.ceil(statistics.median(epoch for r, epoch in chosen if r == recipe))


# On all rows ----------------------------------------------------------------------------------------------------------


def _shipped(
    task: Task, parts: Sequence[Source], phases: Phases, shared: Shared, done: Sequence[FoldResult], judgement: Judgement, *,
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
        judgement, doubts = task.compared_outside(judgement, model, parts[0].data)
        kept = dataclasses.replace(kept, judgement=judgement, doubts=doubts)
        return dataclasses.replace(kept, model=model, after=after) if judgement.accepted else kept


def _reference(run: Run, fitted: Fitted, judgement: Judgement) -> slices.Change | None:
    """The change on the reference rows of what would ship, which has not seen them either."""
    if not run.cache.rows(REFERENCE):
        return None
    o, networks = run.task.options, (run.network, fitted.found.network)
    [change] = slices.changes(
        *networks,
        run.data,
        REFERENCE,
        run.goal.metric,
        (),
        unit=unit_of(o),
        level=judgement.level or 0.025,
        seed=o.seed,
    )
    return change
