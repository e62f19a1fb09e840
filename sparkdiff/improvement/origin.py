"""Origin of an improvement: the user's pipeline, the way to refit it in a fold, and a test whether it has seen the rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyspark.ml import Estimator

from sparkdiff import jvm
from sparkdiff.data import soft_labels
from sparkdiff.data.layout import check_number
from sparkdiff.data.splits import TRAIN, VALIDATION, Boundaries, Source, fit_on_training_rows
from sparkdiff.errors import InputError
from sparkdiff.evaluation.seen_rows import (
    LinearRows,
    Penalty,
    RowCount,
    SeenRows,
    combine_evidence,
    p_of_equations,
    p_of_losses,
    reproduces,
    rows_of_roots,
)
from sparkdiff.fine_tuning.fine_tuning_run import OTHER_ROWS, refittable
from sparkdiff.fine_tuning.task import FitResults, Run, Task, prepare
from sparkdiff.improvement.arm_context import ArmContext, Fit, measure
from sparkdiff.options import Options
from sparkdiff.pipeline.column_names import casefolding
from sparkdiff.pipeline.indexer_labels import check_same_classes, classes_of
from sparkdiff.pipeline.nesting import inside, last_stage, plain
from sparkdiff.pipeline.unfitted_form import check_unfitted, with_uids_of
from sparkdiff.proof import division
from sparkdiff.stages.base import columns_of
from sparkdiff.stages.forest import Trees
from sparkdiff.tensors.rows import Rows, rows_at
from sparkdiff.tuning import in_process_fits

Fits = Callable[[Any, Sequence[Source], Boundaries | None], Any]
"""(estimator, rows, boundaries of time) -> the model fitted to the training rows among them."""
FEW = 8
"""Number of leaves below which their counts and sums may agree by chance, or because samples were drawn so."""
EXACT = 1e-9
"""Largest relative difference of two sums of the same labels, which Spark adds in another order."""


@dataclass(frozen=True)
class Origin:
    """The user's pipeline.

    Attributes:
        given_model: the fitted pipeline as the user passed it; if the user passed an unfitted one, its fit to all rows.
        model: `given_model` as plain MLlib stages.
        fit: function that fits the pipeline to the training rows among other rows, in this process where
            `tuning.in_process_fits` can; None if the pipeline stays fixed, because it has not seen any of the rows, or if it
            can't be refitted.
        was_fitted: True if the user passed a fitted pipeline.
        refused: the reason why no gain can be proven; empty if gains can be proven.
        warnings: further warnings.
        fit_by_spark: like `fit`, by Spark alone, for a fit that may ship.
    """

    given_model: Any
    model: Any
    fit: Fit | None
    was_fitted: bool
    refused: str = ""
    warnings: tuple[str, ...] = ()
    fit_by_spark: Fit | None = None

    @staticmethod
    def of(
        given: Any,
        options: Options,
        sources: Sequence[Source],
        boundaries: Boundaries | None,
        *,
        keep: Sequence[str] = (),
        fits: Fits | None = None,
    ) -> "Origin":
        """Determine how a pipeline is refitted.

        Args:
            given: the fitted or unfitted pipeline.
            sources: the rows from which the shipped pipeline is made; an unfitted pipeline is fitted to the training rows among
                them.
            keep: stages that must not change, in addition to those that `freeze` names.
            fits: function that fits an estimator; None to fit by Spark.

        Raises:
            InputError: the pipeline, the data or the options can't be used.
        """
        warnings = tuple(check_unfitted(given, options.rowsAreNew))
        if isinstance(given, Estimator):
            fit, fit_by_spark = _refits(given, plain, options, fits)
            model = fit_by_spark(sources, boundaries)
            return Origin(model, model, fit, False, warnings=warnings, fit_by_spark=fit_by_spark)
        model = plain(given)
        if options.rowsAreNew:
            return Origin(given, model, None, True, warnings=warnings)
        try:
            form = refittable(prepare(model, options, sources[0].df), sources, keep)
        except InputError as e:
            ways = f"pass the unfitted Pipeline, or {OTHER_ROWS}"
            why = f"{model.uid} may have seen the rows, and there is no refit of it that hasn't ({e}): {ways}"
            return Origin(given, model, None, True, why, warnings)
        fit, fit_by_spark = _refits(form.estimator, partial(with_uids_of, form.model), options, fits)
        return Origin(given, model, fit, True, warnings=warnings, fit_by_spark=fit_by_spark)

    def rival(self, context: ArmContext, explores: ArmContext) -> tuple[bool, str]:
        """Choose the rival that finalists must beat, and give the reason: the fitted pipeline (True), or its refit in
        the same folds.

        The fitted pipeline is the rival unless it was fitted to these rows, according to the user or to `evidence`.

        Args:
            context: context of the fitted pipeline, with all rows.
            explores: context of the pipeline's refit, with the exploring rows.
        """
        if self.fit is None or not self.was_fitted:
            return self.fit is None, ""
        if context.options.rowsAreNew is False:
            return False, f"{self.model.uid} was fitted on these rows, as rowsAreNew=False says"
        fit = self.fit
        found = evidence(context, explores, lambda: fit(context.sources, context.boundaries))
        way = "" if found.shown else "; to compare with its refit, set rowsAreNew=False, or pass the unfitted Pipeline"
        return not found.shown, f"{self.model.uid} {found.words}{way}"


def _refits(estimator: Any, adapt: Callable[[Any], Any], options: Options, fits: Fits | None) -> tuple[Fit, Fit]:
    """`fit` and `fit_by_spark` of an `Origin`. Either fits at most once to the same rows: a fit serves for the test whether they
    were seen, and may ship.

    Args:
        adapt: function that makes of a fitted pipeline the one to return.
        fits: see `Origin.of`.
    """
    shared, by_spark = FitResults(), fits or partial(_fit_by_spark, options)

    def fit_by_spark(rows: Sequence[Source], bounds: Boundaries | None) -> Any:
        key = ("by Spark", *(s.df for s in rows if s.split == TRAIN))
        return shared.once(key, lambda: adapt(by_spark(estimator, rows, bounds)))

    def fit(rows: Sequence[Source], bounds: Boundaries | None) -> Any:
        trains = [s.df for s in rows if s.split == TRAIN]
        if shared.has(("by Spark", *trains)):
            return fit_by_spark(rows, bounds)

        def make() -> Any:
            with _scratch(options):
                model, here = fit_on_training_rows(estimator, rows, options, bounds, in_process_fits.fit)
            model = adapt(model)
            return model if here else shared.once(("by Spark", *trains), lambda: model)

        return shared.once(("in this process", *trains), make)

    return (fit if in_process_fits.can_fit(estimator) else fit_by_spark), fit_by_spark


def _fit_by_spark(options: Options, estimator: Any, rows: Sequence[Source], bounds: Boundaries | None) -> Any:
    return fit_on_training_rows(estimator, rows, options, bounds)


def _scratch(options: Options) -> AbstractContextManager[None]:
    """Context in which rows are fetched through a folder that Spark sees."""
    folder = jvm.shared_folder(options.cacheDir)
    return nullcontext() if folder is None else jvm.scratch(folder)


def check_rows(given: Any, options: Options, sources: Sequence[Source], divided: division.Division) -> int | None:
    """Check that a pipeline can be fitted to the training rows of each fold and measured on the fold's other rows.

    Args:
        divided: the division of these sources into folds.

    Returns:
        The result of `division.check`.

    Raises:
        InputError: the pipeline can't be fitted or measured in a fold. The message gives the reason.
    """
    casefold, last = casefolding(), last_stage(given)
    columns = [casefold(c) for s in sources if s.split in (None, TRAIN) for c in s.df.columns]

    def column(option: str) -> str | None:
        name = getattr(options, option) or next(iter(columns_of(last, (option,))), None)
        return name if name is not None and casefold(name) in columns else None

    classes = any(last.hasParam(name) for name in ("rawPredictionCol", "probabilityCol")) and not callable(options.loss)
    labelCol, weightCol = column("labelCol"), column("weightCol")
    if soft_labels.has_vector_labels(sources, labelCol):
        soft_labels.check_options(options)
    else:
        check_number("labelCol", labelCol, divided.makes.df, casefold, inside(given).values())
    return division.check(divided, options, labelCol=labelCol, weightCol=weightCol, classes=classes)


def by_number(task: Task) -> bool:
    """True if the loss, the metric or the predictor depends on the indices of the classes: because only one class
    counts, or because classes have their own costs, weights or thresholds.
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


def check_same_numbers(context: ArmContext, other: Any, where: str) -> None:
    """Raise InputError if class indices matter (see `by_number`) and another fit of the pipeline indexes the classes differently.

    Args:
        where: text that describes the other fit, for the message.
    """
    if by_number(context.plan):
        label = context.plan.labelCol
        check_same_classes(
            classes_of(context.model, label), classes_of(other, label), label, where, "the fit on all rows"
        )


def evidence(context: ArmContext, explores: ArmContext, refit: Callable[[], Any]) -> SeenRows:
    """Test whether the original was fitted to these rows, before any fold is measured.

    Args:
        context: context of the original, with all rows.
        explores: context of the original's refit, with the exploring rows.
        refit: function that fits the pipeline to all rows.
    """
    count, rows = row_count(context), context.rows[TRAIN]
    if count is not None and count.exceeds(rows):
        return combine_evidence(rows, count=count)
    if count is not None and count.rows == rows and _holds_these_rows(context):
        return combine_evidence(rows, leaves=True)
    equations = _equations(context)
    if equations is not None:
        return combine_evidence(rows, count=count, equations=equations)
    original, every = measure(explores, context.model), measure(explores, refit())
    unseen, weights = explores.start.scores[VALIDATION], explores.start.scores[VALIDATION].weights
    one, all_rows = (m.scores[VALIDATION].blocks for m in (original, every))
    losses = p_of_losses(
        count,
        explores.rows[TRAIN],
        original=one,
        seen=all_rows,
        unseen=unseen.blocks,
        weights=weights,
        squared=context.metric.name in ("squared", "mse"),
    )
    same = reproduces(original.recorded.margins, every.recorded.margins)
    return combine_evidence(rows, reproduced=same, count=count, losses=losses)


def row_count(context: ArmContext) -> RowCount | None:
    """Number of rows to which the last stage was fitted, as the stage or its summary records it; None if unknown."""
    head = context.plan.cut.graph.head
    stage: Any = head.stage
    if isinstance(head.module, Trees):
        counts = head.module.nodes.rawCount[head.module.nodes.offsets[:-1]]
        drawn = stage.hasParam("bootstrap") and stage.getBootstrap()
        rate = stage.getSubsamplingRate() if stage.hasParam("subsamplingRate") else 1.0
        return rows_of_roots(torch.from_numpy(counts), rate, bootstrap=drawn)
    summary = stage.summary if getattr(stage, "hasSummary", False) else None
    rows = getattr(summary, "numInstances", None)
    return None if rows is None else RowCount(float(rows))


def _holds_these_rows(context: ArmContext) -> bool:
    """True if the first of the boosted trees of the last stage was grown from exactly these rows, by the counts and the sums of
    labels in its leaves.
    """
    stage: Any = context.plan.cut.graph.head.stage
    head = context.plan.cut.graph.head.module
    if not isinstance(head, Trees) or not head.boosted or stage.getSubsamplingRate() < 1:
        return False
    nodes, leaves = head.nodes, int((head.tree == 0).sum())
    if leaves < FEW:
        return False
    found = torch.zeros(3, leaves, dtype=torch.float64)  # numbers of rows, sums of targets and of their magnitudes
    with context.open_run(context.plan) as run, torch.no_grad():
        for batch, label, weight, _ in run.data.batches(TRAIN):
            if label.ndim > 1:  # probabilities of the classes
                return False
            used = (weight > 0).nonzero()[:, 0]
            leaf = head.route(rows_at(_features(run, run.data.values(batch)), used))[:, 0].long()
            target = (2 * label - 1 if head.classes else label)[used] * weight[used]
            for total, part in zip(found, (torch.ones_like(target), target, target.abs()), strict=True):
                total += torch.bincount(leaf, part, leaves)
    counts, sums, sizes = found
    same = counts == torch.from_numpy(nodes.rawCount[nodes.leaf][:leaves])
    apart = (sums - torch.from_numpy(nodes.impurityStats[nodes.leaf][:leaves, 1])).abs()
    return bool(same.all() and (apart <= EXACT * sizes).all())


def _features(run: Run, values: dict[Any, Any]) -> Rows:
    """The features that the last stage reads, computed from the values of a batch of rows unless they are among them."""
    head = run.task.cut.graph.head
    run.network.run(values, [v for v in head.reads[:1] if v not in values])
    return values[head.reads[0]]


def _equations(context: ArmContext) -> float | None:
    """p-value of the test by the optimality equations of a linear last stage (`p_of_equations`); None if it isn't possible, as
    for other last stages.
    """
    head = context.plan.cut.graph.head
    stage: Any = head.stage
    ridge, mixed = (stage.getOrDefault(p) if stage.hasParam(p) else 0.0 for p in ("regParam", "elasticNetParam"))
    standardized = stage.hasParam("standardization") and stage.getOrDefault("standardization")
    with context.open_run(context.plan) as run, torch.no_grad():

        def batches() -> Iterator[LinearRows]:
            for batch, label, weight, _ in run.data.batches(TRAIN):
                values, used = run.data.values(batch), (weight > 0).nonzero()[:, 0]
                margin = run.network.margin(values)
                features = rows_at(_features(run, values), used)
                yield LinearRows(features, margin[used], label[used], weight[used])

        return p_of_equations(
            run.network.head, batches, Penalty(ridge * (1 - mixed), ridge * mixed, bool(standardized))
        )
