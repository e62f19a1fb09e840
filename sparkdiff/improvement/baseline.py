"""A baseline for comparison only: Spark's own trees. They are never offered, and take part in no test.

Spark fits 100 trees with default settings to the training rows, on the features that the last stage reads: GBTRegressor for
numbers, GBTClassifier for two classes, and RandomForestClassifier for more classes, for which Spark has no boosted trees. The
metric is computed on the held-out rows from the columns that Spark writes.
"""

import dataclasses
import functools
import time
from typing import Any

from pyspark.ml.classification import GBTClassifier, RandomForestClassifier
from pyspark.ml.regression import GBTRegressor
from pyspark.sql import DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.data.splits import BLOCK, SPLIT, TEST, TIME, VALIDATION, training_rows, with_splits
from sparkdiff.errors import InputError
from sparkdiff.growth import cost_table
from sparkdiff.improvement.arm_context import ArmContext
from sparkdiff.improvement.budget import Budget
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.tuning.mean_loss import evaluator_of

TREES = 100
SHARE, LEAST_BUDGET = 0.04, 300.0
"""Share of the budget that the trees may use, before any arm; and the budget in seconds below which they are left out."""
POSITIVE = 0.5
"""Trees may predict numbers that a deviance doesn't allow as means. So predictions are raised to at least this share of
the smallest positive label of the training rows."""
FEATURES, LABEL, WEIGHT = "features", "label", "weight"


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Results of Spark's trees on the same rows.

    Attributes:
        name: a readable name.
        value, test: the metric on the validation rows and on the test rows; None if it was not measured.
        serving: the serving cost of the pipeline with these trees as its last stage, relative to the original's.
        seconds: duration of fitting and measuring.
        why: the reason why there is no value; empty if there is one.
    """

    name: str
    value: float | None = None
    test: float | None = None
    serving: float | None = None
    seconds: float = 0.0
    why: str = ""


def has_baseline(context: ArmContext) -> bool:
    """True if the trees are requested, and there are features and labels to fit them to."""
    task = context.plan
    return context.settings.baseline and task.labelCol is not None and task.cut.graph.head.stage.hasParam("featuresCol")


def limit(budget: Budget) -> float:
    """Seconds or passes of the budget that the trees may use; 0 if the budget is too small. Each tree takes one pass."""
    if budget.seconds is not None:
        return SHARE * budget.seconds if budget.seconds >= LEAST_BUDGET else 0.0
    assert budget.passes is not None
    return TREES if SHARE * budget.passes >= TREES else 0.0


def name_of(context: ArmContext) -> str:
    return f"Spark's {type(_estimator(context)).__name__}, {TREES} trees"


def measure_trees(context: ArmContext, budget: Budget) -> Baseline:
    """Fit and measure the trees within their share of the budget. Return their results, or the reason why there are none.

    Args:
        budget: a budget that is large enough for trees, see `limit`.
    """
    begun, name, most = time.monotonic(), name_of(context), limit(budget)
    seconds = None if budget.seconds is None else most
    try:
        with jvm.within(seconds):
            found = _fit_and_measure(context, name)
    except TimeoutError:
        found = Baseline(name, why=f"not fitted within {most:.3g} s, their share of the budget")
    except (InputError, *jvm.SparkError) as e:
        found = Baseline(name, why=jvm.message(e))
    return dataclasses.replace(found, seconds=time.monotonic() - begun)


def _estimator(context: ArmContext) -> Any:
    head: Any = context.plan.cut.graph.head.module
    classes, seed = head.classes, context.options.seed
    columns: dict[str, Any] = {"featuresCol": FEATURES, "labelCol": LABEL, "seed": seed}
    if classes > 2:
        return RandomForestClassifier(numTrees=TREES, **columns)
    return (GBTClassifier if classes else GBTRegressor)(maxIter=TREES, **columns)


def _fit_and_measure(context: ArmContext, name: str) -> Baseline:
    """Fit the trees and measure them on the held-out rows.

    Raises:
        InputError: the metric can't be computed from the columns of the trees.
    """
    estimator, weight = _estimator(context), context.plan.weightCol
    if weight is not None:
        estimator.setWeightCol(WEIGHT)
    evaluator = evaluator_of(
        context.metric,
        estimator,
        labelCol=LABEL,
        weightCol=None if weight is None else WEIGHT,
        params=context.metricParams,
    )
    with jvm.persist_rows(
        _columns(context, training_rows(context.sources, context.options, context.boundaries))
    ) as rows:
        model = estimator.fit(rows)
        least = None if context.metric.power is None else _least(rows)
        values = {}
        for split in (VALIDATION, TEST):
            if split in context.start.scores:
                found = model.transform(_columns(context, _held_out(context, split)))
                column = model.getPredictionCol()
                found = found if least is None else found.withColumn(column, F.greatest(column, F.lit(least)))
                values[split] = float(evaluator.evaluate(found))
    last = cost_table.of_stage(context.plan.cut.graph.head.stage, cost_table.filled_by_model(context.model))
    serving = 1 + (cost_table.of_stage(model) - last) / context.start.cost
    return Baseline(name, values[VALIDATION], values.get(TEST), serving)


def _columns(context: ArmContext, rows: DataFrame) -> DataFrame:
    """Features that the last stage reads, labels and weights; only of the rows that have a label."""
    task = context.plan
    head = task.cut.graph.head.stage
    chosen = {FEATURES: head.getOrDefault("featuresCol"), LABEL: task.labelCol, WEIGHT: task.weightCol}
    made = context.model.transform(rows)
    return made.select(*(col_by_name(c).alias(new) for new, c in chosen.items() if c is not None)).where(
        F.col(LABEL).isNotNull()
    )


def _held_out(context: ArmContext, split: str) -> DataFrame:
    """The held-out rows of a split, with the original columns of the data only."""
    frames = [df.where(df[SPLIT] == split) for df in with_splits(context.sources, context.options, context.boundaries)]
    union = functools.partial(DataFrame.unionByName, allowMissingColumns=True)
    return functools.reduce(union, frames).drop(SPLIT, BLOCK, TIME)


def _least(rows: DataFrame) -> float:
    found = rows.select(F.min(F.when(F.col(LABEL) > 0, F.col(LABEL)))).first()
    return POSITIVE * float(found[0]) if found is not None and found[0] is not None else POSITIVE
