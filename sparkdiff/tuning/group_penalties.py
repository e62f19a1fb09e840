"""A penalty for each group of features of a linear last stage, found on validation rows; Spark fits the result.

MLlib's linear estimators have one `regParam`. A penalty for each group is equivalent to one common penalty on columns
that are multiplied by factors, so the result is an ordinary Pipeline: the stages before, an ElementwiseProduct, and the
last stage with `standardization=False`. Its Params contain everything that its fit depends on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import ElementwiseProduct
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.pipeline.column_names import check_rows
from sparkdiff.tuning import cached_rows, linear_last_stages, solvers
from sparkdiff.tuning.column_groups import Groups, groups_of
from sparkdiff.tuning.fits import leaves_of
from sparkdiff.tuning.hypergradients import LinearModel, TunedPenalties, linear_model, tune_penalties
from sparkdiff.tuning.hypergradients.penalties import STEPS

SINGLES = tuple(float(p) for p in np.logspace(-6, 1, 15))
"""Penalties for all features together; the best of them is the start."""
MOST = 2000
"""Largest number of coefficients: their Hessian is factored at each step."""
LARGEST = 2**28
"""Largest number of feature values in memory."""


@dataclass(frozen=True)
class GroupPenalties:
    """The result of `group_penalties`.

    Attributes:
        estimator: an unfitted Pipeline of Spark's own stages: the stages before the last one as fitted to the training
            rows, an ElementwiseProduct, and the last stage. `fit` fits the last stage to any rows with these penalties.
        penalties: group -> its penalty, on the scale of `regParam`.
        validationLoss: the last stage's loss on the validation rows (log-loss, squared error or half the deviance),
            first with the best common penalty, then with the group penalties. The penalties were chosen on these rows,
            so expect a larger second loss on other rows.
        losses: this loss at the start and after each optimisation step.
    """

    estimator: Pipeline
    penalties: Mapping[str, float]
    validationLoss: tuple[float, float]
    losses: tuple[float, ...]


def group_penalties(
    estimator: Any,
    train: DataFrame,
    validation: DataFrame,
    *,
    groups: Any = "columns",
    singles: Sequence[float] = SINGLES,
    steps: int = STEPS,
) -> GroupPenalties:
    """Find penalties for each group of features that make the loss on the validation rows small.

    Args:
        estimator: a Pipeline, or a linear estimator alone.
        groups: "columns": a group for each column that VectorAssembler puts into the features, so that all categories
            of one column share a penalty, or for each slot if there is only one such column (as without
            VectorAssembler); or a dict of name -> columns or slot numbers.
        singles: penalties to try for all features together; the optimisation starts at the best one.
        steps: number of optimisation steps.

    Raises:
        InputError: the last stage has no such penalties, or the rows can't be used. The message says why.
    """
    check_rows("train", train)
    check_rows("validation", validation)
    *before, last = leaves_of(estimator, lambda _pipeline: False)
    asked = linear_estimator(last)
    if not singles or min(singles) <= 0:
        raise InputError(f"penalties must be larger than 0, got {list(singles)}")
    fitted = Pipeline(stages=before).fit(train) if before else PipelineModel([])
    parts = [fitted.transform(rows) for rows in (train, validation)]
    if why := cached_rows.cannot_read(parts[0].schema, asked.reads):
        raise InputError(f"method='hypergradient': {plain(why)}")
    with jvm.temporary(".search-", jvm.scratch_folder()) as folder:
        rows = [(parts[0], F.lit(-1)), (parts[1], F.lit(0))]
        cache = cached_rows.write_rows(rows, asked.reads, None, folder / "rows")
        chosen = groups_of(groups, asked.reads.features, fitted.stages, parts[0], cache.width)
        model = model_on(cache, type(last).__name__, asked.setting, chosen, parts[0], asked.reads.label)
        found = tune_penalties(model, singles, steps)
    if found is None:
        raise InputError(f"no fit of {last.uid} converges for any regParam of {list(singles)}")
    return outcome(model, found, chosen, fitted.stages, last)


def linear_estimator(last: Any) -> linear_last_stages.SolverSetting:
    """The last stage's setting in the form that sparkdiff's solvers read.

    Raises:
        InputError: the last stage isn't a linear estimator with an L2 penalty on each coefficient that a solver knows.
    """
    if type(last) not in linear_last_stages.KINDS:
        kinds = ", ".join(kind.__name__ for kind in linear_last_stages.KINDS)
        raise InputError(
            f"method='hypergradient' takes one of {kinds} as the last stage, but it is {type(last).__name__}"
        )
    given = linear_last_stages.solver_setting(last, {})
    share = last.getElasticNetParam() if last.hasParam("elasticNetParam") else 0.0
    if share > 0:
        raise InputError(
            f"method='hypergradient' finds L2 penalties, but elasticNetParam of {last.uid} is {share}: set it to 0"
        )
    kind = type(last).__name__
    why = solvers.why_left_to_spark(kind, given.setting, solvers.RowFacts(1, 0))
    link = given.setting.link or "identity"
    if kind == "GeneralizedLinearRegression" and (given.setting.family, link) == ("gaussian", "identity"):
        why = "Spark standardises its features whatever they are multiplied by: take LinearRegression, which has the same fits"
    if why:
        raise InputError(f"method='hypergradient' can't be used with {last.uid}: {why}")
    return given


def model_on(
    cache: cached_rows.CachedRows, kind: str, setting: solvers.Setting, groups: Groups, rows: DataFrame, label: str
) -> LinearModel:
    """The linear model with a penalty for each group, on these rows.

    Raises:
        InputError: the rows can't be used, or there are too many columns.
    """
    seen = cached_rows.look(cache, kind, [setting], 1, cached_rows.classes_told(rows.schema, label))
    sets = setting.sets(seen.classes)
    why = seen.problem or solvers.why_left_to_spark(kind, setting, solvers.RowFacts(1, seen.classes))
    if not why and sets * cache.width > MOST:
        why = f"{sets * cache.width:,} coefficients are more than {MOST:,}: make fewer features, or set regParam alone"
    if not why and cache.count * cache.width > LARGEST:
        why = f"{cache.count:,} rows x {cache.width} features do not fit into memory: pass a sample of the rows"
    model = None if why else linear_model(kind, cache.chunks, setting, groups.of_slot, seen.classes)
    if model is None:
        raise InputError(f"method='hypergradient': {plain(why) or 'the rows hold numbers that are not finite'}")
    return model


def plain(why: str) -> str:
    """The reason for leaving something to Spark, without the part that applies to a CrossValidator."""
    return why.partition(", so Spark")[0]


def outcome(
    model: LinearModel, found: TunedPenalties, groups: Groups, fitted: Sequence[Any], last: Any
) -> GroupPenalties:
    logs = found.best.logs
    penalties = dict(zip(groups.names, logs.exp().tolist(), strict=True))
    one = math.exp(float(logs.mean()))
    scale = model.scale_of_columns(logs, one)
    product = ElementwiseProduct(
        scalingVec=Vectors.dense(scale.numpy()), inputCol=last.getFeaturesCol(), outputCol=f"{last.uid}__scaled"
    )
    params = {last.regParam: one, last.featuresCol: product.getOutputCol()}
    if last.hasParam("standardization"):
        params[last.standardization] = False
    return GroupPenalties(
        Pipeline(stages=[*fitted, product, last.copy(params)]),
        penalties,
        (found.single.loss, found.best.loss),
        found.losses,
    )
