"""The procedure of a fine-tuning run: refit if needed, cache, verify, check, train, judge, write back; also if the labels
are class probabilities.

The guard is a statistical test: the tuned pipeline is accepted only if it is better on held-out rows, the rows that
decide. Held-out rows on which a pipeline was fitted are not new to it, nor to anything that starts from its weights:
boosted trees score a third better on such rows than on others, and so does a model trained from these trees. Therefore
a run starts from the fitted pipeline as passed, or, if that pipeline may have seen rows that decide, from its refit:
its stages fitted again with the same settings, on the training rows only. The result must beat the pipeline from which
the run starts. If the pipeline is better than its refit, and nothing shows whether the reason is that it has seen the
rows that decide, then nothing can be accepted on these rows.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from pyspark.ml import Estimator
from pyspark.sql import DataFrame

from sparkdiff.data import soft_labels
from sparkdiff.data.splits import (
    REFERENCE,
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    Boundaries,
    Source,
    fit_on_training_rows,
    rule,
    training_rows,
)
from sparkdiff.errors import InputError
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.row_margins import RecordedMargins, record_margins
from sparkdiff.evaluation.scores import Score
from sparkdiff.fine_tuning.fine_tuning_summary import shown_options, summary_of, summary_without_training
from sparkdiff.fine_tuning.phases import (
    check_data,
    judge_by_rows,
    open_run,
    too_few,
    train,
    verify_original,
    write_back_and_verify,
)
from sparkdiff.fine_tuning.task import FitResults, JointSetting, Outcome, Run, Task, prepare
from sparkdiff.fine_tuning.thresholds import tune_threshold, with_params
from sparkdiff.options import Options, refuse
from sparkdiff.pipeline.nesting import plain
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.unfitted_form import UnfittedForm, check_unfitted, refit, unfitted_form
from sparkdiff.report import FineTuningSummary, Phases, versions
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.predictor import Predictor
from sparkdiff.training.preparation import resolve_objectives
from sparkdiff.training.recipes import Recipe

SIDES = (TRAIN, VALIDATION)
HELD_OUT = (VALIDATION, TEST, REFERENCE)
"""Splits for which margins are recorded row by row."""
TRAINING_ROWS = 100_000
"""Largest number of training rows whose margins are recorded, too. With more, the held-out rows, about a quarter as
many, are enough to show the spread of the losses.
"""
SAME = 1e-5
"""Largest difference in loss, relative to the loss, between two fits on the same rows; not 0, as Spark sums in varying
order.
"""
NEAR = 0.05
"""Largest difference in loss between a pipeline and its refit on all rows for which both count as fitted on the same
rows, relative to the difference between the pipeline and its refit on the training rows only.
"""
OTHER_ROWS = "rows that it was not fitted on, with rowsAreNew=True"
WAY_OUT = {
    "weights": f"pass the unfitted Pipeline (with FineTuner, numFolds=5 lets all rows decide), or {OTHER_ROWS}",
    "threshold": f"pass the unfitted Pipeline, or {OTHER_ROWS}",
}
"""Remedy for a pipeline that may have seen the rows that decide, by the option `tune`."""


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """The pipeline from which a run starts, and why.

    Attributes:
        model: the pipeline to train, grow or improve: the pipeline as passed, or its refit.
        original: the pipeline as passed; it is returned if nothing better is found.
        given: if the run starts from a refit, the original's margins on the rows that decide.
        seen: if the run starts from a refit, a text on whether the original has seen the rows that decide.
        refused: text on why nothing can be accepted on these rows, and how to fix it; empty if something can.
        warnings: further warnings.
        fit: function that fits the pipeline to training rows; None if it was fitted on none of the rows.
    """

    model: Any
    original: Any
    given: RecordedMargins | None = None
    seen: str = ""
    refused: str = ""
    warnings: Sequence[str] = ()
    fit: Callable[[Source], Any] | None = None

    def with_refusal(self, why: str) -> "StartingPoint":
        """The same start with `why` as the reason for `refused`, unless `why` is empty or the start is already refused."""
        return dataclasses.replace(self, refused=self.refused or why)

    def complete_summary(self, summary: Any) -> Any:
        """The summary completed by this start's warnings and reason.

        If the run started from the refit, a warning says so; if the original was then kept, the reason says how to
        change that.
        """
        reason, warnings = self.refused or summary.reason, [*self.warnings, *summary.warnings]
        if self.seen:
            start = (
                "started from its refit on the training rows, which the result must beat"
                if summary.options["tune"] == "weights"
                else "tested the threshold on its refit on the training rows, to which these figures belong"
            )
            warnings = [
                f"{self.seen}: this run {start}; if none of its stages was fitted on these rows, set rowsAreNew=True",
                *warnings,
            ]
        if self.seen and summary.decision == "kept original":
            reason = f"{reason}; {self.seen}: {WAY_OUT[summary.options['tune']]}"
        return dataclasses.replace(summary, reason=reason, warnings=warnings)

    def complete_outcome(self, outcome: Any) -> Any:
        """The outcome with the pipeline as passed as `original`, and also as `model` if no new pipeline was accepted."""
        model = self.original if outcome.model is outcome.original else outcome.model
        return dataclasses.replace(outcome, model=model, original=self.original)


def starting_point(
    given: Any,
    model: Any,
    options: Options,
    sources: Sequence[Source],
    phases: Phases,
    *,
    boundaries: Boundaries | None = None,
    shared: FitResults | None = None,
    fit: Callable[[UnfittedForm], Any] | None = None,
) -> StartingPoint:
    """Find out by one or two Spark fits whether a fitted pipeline has seen the rows that decide, and choose the start.

    Args:
        given: the pipeline as passed by the user, fitted or unfitted.
        model: the plain, fitted pipeline; if `given` is unfitted, its fit on the training rows.
        fit: function that fits an unfitted form on the training rows; None: Spark fits it, each time anew.

    Raises:
        InputError: the pipeline, the data or the options can't be used.
        ParityError: the network of a pipeline and Spark compute different outputs.
    """
    o, shared = options, shared or FitResults()
    idle = check_unfitted(given, o.rowsAreNew)
    if o.rowsAreNew or isinstance(given, Estimator):
        return StartingPoint(
            model,
            model,
            warnings=idle,
            fit=(lambda rows: plain(fit_on_training_rows(given, [rows], o, Boundaries())))
            if isinstance(given, Estimator)
            else None,
        )
    task = prepare(model, o, sources[0].df)

    def measure(one: Any) -> tuple[Mapping[str, Score], RecordedMargins]:
        plan = task if one is model else prepare(one, o, sources[0].df)
        with open_run(plan, sources, Phases(False), shared=shared, boundaries=boundaries, keyed=True) as run:
            return verify_original(run, decides=False).scores, record_rows(run, run.network)

    with phases.phase("refit") as say:
        try:
            form = refittable(task, sources)
            before, margins = measure(model)  # raises errors before anything is fitted
            made = model, rule(o), o.labelCol, o.weightCol, tuple((s.uid, s.role) for s in form.stages)
            fit = fit or (lambda form: refit(form, training_rows(sources, o, boundaries)))
            own = shared.once(("refit", *made), functools.partial(fit, form))
            rows = functools.reduce(
                DataFrame.unionByName, (s.df for s in sources if s.split in (None, TRAIN, VALIDATION))
            )
            every = functools.partial(shared.once, ("refit on all rows", *made), lambda: refit(form, rows))
            found = evidence(before, measure(own)[0], lambda: measure(every())[0], alike=o.tune == "threshold")
        except InputError as e:
            say("no refit")
            way_out = f"pass {OTHER_ROWS}" if soft_labels.has_vector_labels(sources, task.labelCol) else WAY_OUT[o.tune]
            why = f"{model.uid} may have seen the rows that decide, and there is no refit of it that hasn't ({e}): {way_out}"
            return StartingPoint(model, model, refused=why)
        seen = f"{model.uid} {found.value}"
        say(seen)

    def again(rows: Source) -> Any:
        return refit(form, rows.data)

    if found is Evidence.NEW:
        return StartingPoint(model, model, fit=again)
    if found is Evidence.BETTER or (o.tune == "threshold" and found is Evidence.NO_BETTER):
        return StartingPoint(model, model, refused=f"{seen}: {WAY_OUT[o.tune]}")
    return StartingPoint(own, model, margins, seen, fit=again)


def record_rows(run: Run, network: Network) -> RecordedMargins:
    """The network's margins on the held-out rows (HELD_OUT), and on the training rows if there are at most TRAINING_ROWS."""
    all_train = run.data.stream.manifest.all_train
    splits = [s for s in HELD_OUT if s in run.cache.splits and not (all_train and s == VALIDATION)]
    splits += [TRAIN] if run.cache.rows(TRAIN) <= TRAINING_ROWS else []
    return record_margins(network, run.data, tuple(splits))


def refittable(task: Task, sources: Sequence[Source], keep: Sequence[str] = ()) -> UnfittedForm:
    """The unfitted form of a fitted pipeline: fitting it refits the stages on the path to the loss, except those that must
    stay as they are fitted (frozen ones, for example) or that do not show their settings.

    Args:
        keep: names of further stages that stay as they are fitted.

    Raises:
        InputError: nothing can be refitted, or a stage whose fit labels may have affected stays as it is fitted; the
            message names it.
    """
    graph, o = task.cut.graph, task.options
    if soft_labels.has_vector_labels(sources, task.labelCol):
        raise InputError(f"Spark can't fit labelCol={task.labelCol!r}, which holds class probabilities")
    frozen = [graph.vertices[i].uid for i in graph.select([*o.freeze, *keep], "freeze or keepStages")]
    # Clusters are measured by distances in the space that the stages before them make.
    space = [v.uid for v in graph.vertices if v.uid != graph.head.uid] if task.labelCol is None else []
    stays = dict.fromkeys([*frozen, *space], "it is to be kept") | task.kept_as_fitted(sources[0].df.columns)
    form = unfitted_form(task.model, stays)
    form.check()
    path = {graph.formula_of(v) or v.uid for v in (graph.vertices[i] for i in task.roles.outside.path)}
    refuse([f"{s.uid} stays as it is fitted: {s.reason}" for s in form.stages if s.uid in path and s.knows_labels])
    return form


class Evidence(Enum):
    """Evidence on whether a pipeline was fitted on the rows that decide, from the losses of the pipeline and its
    refits.

    The values are texts that continue a sentence about the pipeline.
    """

    NEW = "has not seen the rows that decide: a refit on the training rows reproduces it"
    NO_BETTER = "may have seen the rows that decide"
    SEEN = "has seen the rows that decide: a refit on all rows reproduces it"
    BETTER = "may have seen the rows that decide, on which it is better than its refit on the training rows"


def evidence(
    given: Mapping[str, Score],
    anew: Mapping[str, Score],
    everything: Callable[[], Mapping[str, Score]],
    *,
    alike: bool = False,
) -> Evidence:
    """Evidence on whether a pipeline was fitted on the rows that decide, from scores on training and held-out rows.

    Args:
        given: scores of the pipeline.
        anew: scores of its refit on the training rows.
        everything: function that refits the pipeline on all rows and returns the scores of this refit.
        alike: whether to look for a refit that reproduces the pipeline, even if the pipeline is no better than its refit.

    Raises:
        InputError: the refit drops other rows than the pipeline, so that their losses can't be compared.
    """
    if not torch.equal(given[VALIDATION].weights, anew[VALIDATION].weights):
        raise InputError("its refit leaves out other rows")
    if _apart(given, anew) <= SAME * sum(float(given[s].blocks.abs().sum()) for s in SIDES):
        return Evidence.NEW
    unknown = Evidence.BETTER if given[VALIDATION].mean < anew[VALIDATION].mean else Evidence.NO_BETTER
    if unknown is Evidence.NO_BETTER and not alike:
        return unknown
    return Evidence.SEEN if _apart(given, everything()) <= NEAR * _apart(given, anew) else unknown


def _apart(one: Mapping[str, Score], other: Mapping[str, Score]) -> float:
    """Distance between two pipelines: absolute difference of their losses, summed over blocks of training and held-out
    rows.
    """
    return sum(float((one[s].blocks - other[s].blocks).abs().sum()) for s in SIDES)


def fine_tune(
    task: Task,
    sources: Sequence[Source],
    phases: Phases,
    *,
    shared: FitResults | None = None,
    replace: bool = False,
    boundaries: Boundaries | None = None,
    recipes: Sequence[Recipe] | None = None,
    member: JointSetting | None = None,
    start: StartingPoint | None = None,
) -> Outcome:
    """Train the planned stages on these rows, and return the tuned pipeline if the guard accepts it, else the original.

    Args:
        phases: times the phases and notifies the listeners.
        shared: results of other fits on the same rows.
        recipes: the candidates to train (copies of the parameters with their settings); None: those of
            `options.recipe`.
        boundaries: times that divide the rows into splits, if already known.
        member: set if several settings train together (see `JointTraining`): this run's setting among them.
        start: the starting point of which `task` trains the model; None if `task.model` has not seen the rows that
            decide.
        replace: start again if `options.runId` was started with other settings, instead of raising.

    Raises:
        InputError: the data or options can't be used. Nothing was written except, perhaps, a complete cache.
        ParityError: the network and Spark compute different outputs.
    """
    shared, start = shared or FitResults(), start or StartingPoint(task.model, task.model)
    if soft_labels.has_vector_labels(sources, task.labelCol):
        task, boundaries = replace_soft_labels(task, sources, phases, shared), None
        assert task.soft is not None
        sources = task.soft.sources
        if task.soft.held < guard.MIN_UNITS:
            return no_evidence(task, task.soft, phases)
    with open_run(task, sources, phases, shared=shared, boundaries=boundaries, keyed=start.given is not None) as run:
        start = start.with_refusal(too_few(run))
        original = verify_original(run, decides=not start.refused)
        doubts = check_data(run)
        if start.refused:
            summary = start.complete_summary(summary_without_training(run, original, doubts))
            phases.on_decision(summary)
            return start.complete_outcome(Outcome(task.model, task.model, task.plan, summary, ()))
        fitted = (
            train(run, original, recipes, replace=replace, member=member)
            if task.options.tune == "weights"
            else tune_threshold(run, original, sources, boundaries, start.fit)
        )
        judged = judge_by_rows(run, original, fitted, None if fitted.params else start.given)
        model, tuned = task.model, dataclasses.replace(original, parity=None)
        if judged.judgement.accepted:
            made = (
                prepare(with_params(task, task.model, fitted.params), task.options, sources[0].df)
                if fitted.params
                else None
            )
            model, tuned = write_back_and_verify(run, original, fitted.found.network, {VALIDATION: judged.tuned}, made)
            judgement, notes = task.compare_other_outputs(judged.judgement, model, sources[0].df)
            judged, doubts = dataclasses.replace(judged, judgement=judgement), [*doubts, *notes]
            if not judgement.accepted:
                model, tuned = task.model, dataclasses.replace(original, parity=None)
            elif made is not None and start.original is not task.model:
                # A threshold is set on the pipeline as passed, whose weights stay. The figures are those of its refit.
                model = with_params(task, start.original, fitted.params)
                own = prepare(model, task.options, sources[0].df)
                with open_run(own, sources, phases, shared=shared, boundaries=boundaries) as shipped:
                    verify_original(shipped)
        summary = start.complete_summary(summary_of(run, original, fitted, judged, tuned, doubts))
        phases.on_decision(summary)
        return start.complete_outcome(
            Outcome(model, task.model, task.plan, summary, tuple(filter(None, [fitted.folder])))
        )


def replace_soft_labels(task: Task, sources: Sequence[Source], phases: Phases, shared: FitResults) -> Task:
    """The task for labels that are class probabilities, which are replaced by rows with one label each.

    A training row becomes one weighted row per class with a nonzero probability; other splits keep only rows with a
    true label.

    Raises:
        InputError: the labels can't be used, or the predictor or an option needs one label per row.
    """
    o, head, label = task.options, task.roles.graph.head, task.labelCol
    predictor = head.module
    assert isinstance(predictor, Predictor) and label is not None
    if not predictor.classes or not predictor.labelled:
        what = "predicts no classes that were labelled" if predictor.classes else "predicts numbers"
        raise InputError(
            f"labelCol={label!r} is a vector of class probabilities, but {head.uid} {what}: name another column"
        )
    soft_labels.check_options(o)
    with phases.phase("labels") as say:
        frames = tuple(s.df for s in sources)
        key = ("soft", label, task.weightCol, rule(o), predictor.classes, *frames)
        found: soft_labels.SoftLabels = shared.once(
            key, lambda: soft_labels.explode_classes(sources, o, label, task.weightCol, predictor.classes)
        )
        say(found.sentence())
    return dataclasses.replace(task, soft=found)


def no_evidence(task: Task, soft: soft_labels.SoftLabels, phases: Phases) -> Outcome:
    """The outcome if too few held-out rows have a true label, i.e. one class with probability 1.

    The original is kept and nothing is trained, because nothing could be accepted.
    """
    why = (
        f"no evidence: {soft.held:,} validation rows have a true label (a probability of 1 for one class), and at least "
        f"{guard.MIN_UNITS} are needed to decide, because labels that are themselves guesses prove nothing. Label some rows, and "
        "add them, or hold out more of them by validationFraction or validationIndicatorCol"
    )
    network = Network(task.cut.graph, task.cut.live)
    classes = torch.zeros(network.head.classes, dtype=torch.int64)
    _, metric = resolve_objectives(task.options, network, LabelStats(0.0, 1.0, 0.0, len(classes) - 1.0, classes))
    summary = FineTuningSummary(
        decision="kept original",
        reason=why,
        metric=metric.name,
        metricDirection=metric.direction,
        metrics=dict.fromkeys(SPLITS[:3]),
        gain=0.0,
        z=0.0,
        p=1.0,
        records=[],
        parity={},
        stages={},
        timings={k: round(v, 3) for k, v in phases.timings.items()},
        stream=task.options.stream,
        cache={"hit": False, "fingerprint": "", "rows": {TRAIN: soft.soft + soft.certain, VALIDATION: soft.held}},
        options=shown_options(task, metric),
        versions=versions(),
        warnings=[soft.sentence()],
        candidates=0,
        diverged=0,
        precision=task.options.precision,
    )
    phases.on_decision(summary)
    return Outcome(task.model, task.model, task.plan, summary, ())
