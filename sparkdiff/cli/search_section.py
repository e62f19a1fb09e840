"""The section `search` of a job: checks that need no session, and the conversion to the arguments of `Search`."""

from collections.abc import Callable, Mapping
from typing import Any

from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    Evaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)

from sparkdiff.cli.job_options import OWN
from sparkdiff.data.splits import TRAIN
from sparkdiff.errors import InputError, check_keys, did_you_mean, kind_of
from sparkdiff.pipeline.nesting import inside
from sparkdiff.search.alternatives import OUTPUTS
from sparkdiff.search.distributions import Distribution, as_distribution, integer, loguniform, uniform
from sparkdiff.search.search_options import FIELDS, Settings
from sparkdiff.stages.base import columns_of

RANGES: dict[str, Callable[[Any, Any], Distribution]] = {
    "uniform": uniform,
    "loguniform": loguniform,
    "integer": integer,
}
EVALUATORS: dict[str, Any] = {
    **dict.fromkeys(("areaUnderROC", "areaUnderPR"), BinaryClassificationEvaluator),
    **dict.fromkeys(
        ("f1", "accuracy", "weightedPrecision", "weightedRecall", "logLoss", "hammingLoss"),
        MulticlassClassificationEvaluator,
    ),
    **dict.fromkeys(("rmse", "mse", "mae", "r2", "var"), RegressionEvaluator),
}
"""Class of Spark's evaluator for each metric."""


def check(given: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Check the section `search` of a job.

    Raises:
        InputError: a key is unknown, a value is wrong, or the data are already divided.
    """
    check_keys("search: unknown key", given, [*OWN, *FIELDS])
    Settings.of({key: value for key, value in given.items() if key in FIELDS}).check_together()
    metrics(given)
    space(given)
    if more := [split for split in data if split != TRAIN]:
        raise InputError(
            f"data.{more[0]} is not used by a search, which divides data.train itself (search.validationFraction, "
            "search.testFraction): leave it out"
        )


def metrics(given: Mapping[str, Any]) -> list[str]:
    """The names of the metrics in the section `search`.

    Raises:
        InputError: a name is unknown, or no metric is named.
    """
    found = given.get("metric")
    names: list[Any] = found if isinstance(found, list) and found else [found]
    for name in names:
        if not isinstance(name, str) or name not in EVALUATORS:
            raise InputError(
                f"search.metric must name a metric, or a list of them. {did_you_mean(str(name), EVALUATORS)}"
            )
    return names


def space(given: Mapping[str, Any]) -> dict[tuple[str, str], Distribution]:
    """The distributions of the values to try, by (stage, Param), as named in the section `search`."""
    tree = given.get("space") or {}
    if not isinstance(tree, Mapping) or not all(isinstance(params, Mapping) for params in tree.values()):
        raise InputError(
            "search.space must be a mapping of stages to mappings of Params, such as PCA: {k: {integer: [2, 40]}}. "
            f"Got {tree!r} instead"
        )
    return {
        (str(stage), str(name)): distribution(f"search.space.{stage}.{name}", value)
        for stage, params in tree.items()
        for name, value in params.items()
    }


def distribution(name: str, given: Any) -> Distribution:
    """The distribution that {uniform: [low, high]}, {loguniform: [low, high]}, {integer: [low, high]}, {choice: [values]}
    or a list of values describes.

    Args:
        name: the setting, for messages.
    """
    if isinstance(given, list):
        return as_distribution(name, given)
    if isinstance(given, Mapping) and len(given) == 1:
        [(kind, ends)] = given.items()
        if kind == "choice" and isinstance(ends, list):
            return as_distribution(name, ends)
        if kind in RANGES and isinstance(ends, list) and len(ends) == 2:
            try:
                return RANGES[kind](*ends)
            except InputError as e:
                raise InputError(f"{name}: {e}") from e
    raise InputError(
        f"{name} must be a list of values, or one of {{uniform: [low, high]}}, {{loguniform: [low, high]}}, "
        f"{{integer: [low, high]}}. Got {given!r} instead"
    )


def params_of(given: Mapping[str, Any], estimator: Any) -> dict[Any, Distribution]:
    """The search space of the section `search`: distributions by the Param objects of the estimator's stages.

    Raises:
        InputError: a name in the space matches no stage, several stages, or no Param.
    """
    stages, out = [*inside(estimator).values()], {}
    for (stage, name), values in space(given).items():
        found = [s for s in stages if stage in (s.uid, type(s).__name__, *columns_of(s, OUTPUTS))]
        place = f"search.space.{stage}.{name}"
        if len(found) != 1:
            names = sorted({type(s).__name__ for s in stages})
            why = (
                f"{len(found)} stages have this name: use a uid or an output column"
                if found
                else did_you_mean(stage, names)
            )
            raise InputError(
                f"{place}: {why if found else f'no stage has this uid, class name or output column. {why}'}"
            )
        [one] = found
        if not one.hasParam(name):
            raise InputError(
                f"{place}: {one.uid} has no such Param. {did_you_mean(name, [p.name for p in one.params])}"
            )
        out[one.getParam(name)] = values
    return out


def evaluators(given: Mapping[str, Any], estimator: Any) -> list[Evaluator]:
    """Spark's evaluators for the metrics, set to the columns of the last stage with a label and a prediction column; those that a
    FineTuner names come first.
    """
    last: Any = None
    tuner = estimator if estimator.hasParam("pipeline") else None  # a FineTuner, whose columns come first
    for stage in inside(estimator).values():
        if not stage.hasParam("pipeline") and all(
            stage.hasParam(n) for n in ("labelCol", "predictionCol")
        ):  # no FineTuner
            last = stage
    found: list[Evaluator] = []
    for name in metrics(given):
        evaluator: Any = EVALUATORS[name](metricName=name)
        for column in ("labelCol", "weightCol", "predictionCol", "probabilityCol", "rawPredictionCol"):
            named = [n for stage in filter(None, (last, tuner)) for n in columns_of(stage, (column,))]
            if named and evaluator.hasParam(column):
                evaluator._set(**{column: named[-1]})
        if (
            isinstance(evaluator, BinaryClassificationEvaluator)
            and last is not None
            and not last.hasParam("rawPredictionCol")
        ):
            raise InputError(f"search.metric={name} needs a classifier, but {kind_of(last)} is none")
        found.append(evaluator)
    return found
