"""The settings that are worth searching, for the stages of a pipeline: one table by class names.

Each range contains the current setting, so a search can end where it began.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyspark.ml.param import Param

from sparkdiff.pipeline.unfitted_form import AS_FITTED, ESTIMATOR, UnfittedForm, UnfittedStage
from sparkdiff.search.alternatives import inputs, outputs
from sparkdiff.search.distributions import Choice, Distribution, Integer, choice, integer, loguniform, uniform
from sparkdiff.search.search_space import Configuration, SearchSpace

DENSE = 1_000
"""Largest number of features with which scalers may be tried with centring, which makes sparse rows dense."""
DEEPEST, DEEPEST_OF_FORESTS = 10, 12
"""Largest depth of trees that is searched, unless the current depth is larger; the time doubles with each level."""
FORESTS = ("RandomForestClassifier", "RandomForestRegressor")
"""Estimators whose prediction is a mean over trees: deep trees overfit it less than they overfit a single tree."""
FIXED = ("MultilayerPerceptronClassifier", "VectorSizeHint", "ElementwiseProduct", "VectorSlicer")
"""Stages that take vectors of one width only."""
BOUNDS = ("lowerBoundsOnCoefficients", "upperBoundsOnCoefficients")


Range = Callable[[UnfittedStage, Any], "Distribution | None"]
"""(stage, current value of the Param) -> the distribution to search, or None if it is not worth it."""


def _logarithmic(low: float, high: float) -> Range:
    """A rule: search from `low` to `high` on a logarithmic scale; for a Param whose current value is 0, which has no logarithm,
    among 0 and the powers of ten in this range.
    """

    def of(_stage: UnfittedStage, now: float) -> Distribution:
        if now > 0:
            return loguniform(min(low, now), max(high, now))
        decades = range(round(math.log10(low)), round(math.log10(high)) + 1)
        return choice(0.0, *(float(f"1e{n}") for n in decades))

    return of


def _between(low: float, high: float) -> Range:
    return lambda _stage, now: uniform(min(low, now), max(high, now))


def _whole(low: int, high: int, *, log: bool = False) -> Range:
    return lambda _stage, now: integer(min(low, now), max(high, now), log=log)


def _times(least: float, most: float, enough: int = 2) -> Range:
    """A number from `least` times the current one to `most` times it, or to `enough` if that is more."""
    return lambda _stage, now: integer(max(1, int(now * least)), max(enough, int(now * most)), log=True)


def _one_of(*values: Any) -> Range:
    """A choice with the current value first."""
    return lambda _stage, now: choice(now, *(v for v in values if v != now))


def _current(stage: UnfittedStage, name: str) -> Any:
    """The current value of the Param `name`; None if it has no value."""
    return stage.stage.getOrDefault(name) if stage.stage.isDefined(name) else None


def _unless(left_out: Callable[[UnfittedStage], bool], otherwise: Range) -> Range:
    return lambda stage, now: None if left_out(stage) else otherwise(stage, now)


# Single stages --------------------------------------------------------------------------------------------------------


def _more_iterations(_stage: UnfittedStage, now: int) -> Distribution | None:
    """More iterations for a solver that converges, in case it was stopped early."""
    return choice(now, 100) if now < 100 else None


def _has_bounds(stage: UnfittedStage) -> bool:
    return any(stage.stage.hasParam(name) and stage.stage.isSet(name) for name in BOUNDS)


def _no_mixture(stage: UnfittedStage) -> bool:
    """True if Spark refuses an L1 penalty: with bounds on coefficients, and with Huber's loss."""
    return _has_bounds(stage) or (stage.stage.hasParam("loss") and _current(stage, "loss") == "huber")


def _is_wide(stage: UnfittedStage) -> bool:
    sizes = [len(getattr(stage.model, name)) for name in ("mean", "median") if hasattr(stage.model, name)]
    return any(size > DENSE for size in sizes)


def _components(stage: UnfittedStage, _now: int) -> Distribution:
    most = stage.model.pc.numRows
    return integer(1, most, log=most > 32)


def _layers(_stage: UnfittedStage, now: Sequence[int]) -> Distribution:
    """Other hidden layers, between the same input and output."""
    first, *hidden, last = now
    found = [hidden, [max(2, h // 2) for h in hidden], [2 * h for h in hidden], [8], [32], [32, 16]]
    return choice(*([first, *h, last] for i, h in enumerate(found) if h not in found[:i]))


def _features(stage: UnfittedStage, now: float) -> Distribution | None:
    """Number of features that a UnivariateFeatureSelector keeps; a share or a p-value in its other modes."""
    mode = _current(stage, "selectionMode")
    if mode == "numTopFeatures":
        return choice(
            now, *(float(n) for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if now / 4 <= n <= 4 * now and n != now)
        )
    return (_between(0.05, 1.0) if mode == "percentile" else _logarithmic(1e-4, 0.5))(stage, now)


def _if(param: str, value: str, then: Range) -> Range:
    return _unless(lambda stage: _current(stage, param) != value, then)


PENALTY = {"regParam": _logarithmic(1e-6, 10.0)}
MIXED = {**PENALTY, "elasticNetParam": _unless(_no_mixture, _between(0.0, 1.0)), "maxIter": _more_iterations}
MACHINE = {
    **PENALTY,
    "factorSize": _whole(2, 32, log=True),
    "stepSize": _logarithmic(1e-3, 1.0),
    "maxIter": _times(0.5, 3),
}
TREE = {"maxDepth": _whole(1, DEEPEST), "minInstancesPerNode": _whole(1, 100, log=True), "maxBins": _times(1, 4)}
FOREST = {
    **TREE,
    "maxDepth": _whole(1, DEEPEST_OF_FORESTS),
    "numTrees": _times(0.5, 4, 50),
    "subsamplingRate": _between(0.5, 1.0),
    "featureSubsetStrategy": _one_of("auto", "all", "onethird", "sqrt"),
}
BOOSTED = {
    **TREE,
    "maxIter": _times(0.5, 4, 50),
    "stepSize": _logarithmic(0.02, 0.5),
    "maxDepth": _whole(1, 8),
    "subsamplingRate": _between(0.5, 1.0),
}
CHI = {
    "numTopFeatures": _if("selectorType", "numTopFeatures", _times(0.25, 4)),
    "percentile": _if("selectorType", "percentile", _between(0.05, 1.0)),
    **{name: _if("selectorType", name, _logarithmic(1e-4, 0.5)) for name in ("fpr", "fdr", "fwe")},
}

RANGES: Mapping[str, Mapping[str, Range]] = {
    "AFTSurvivalRegression": {"maxIter": _more_iterations},
    "CountVectorizer": {"binary": _one_of(False, True)},
    "DecisionTreeClassifier": {**TREE, "impurity": _one_of("gini", "entropy")},
    "DecisionTreeRegressor": TREE,
    "FMClassifier": MACHINE,
    "FMRegressor": MACHINE,
    "GBTClassifier": BOOSTED,
    "GBTRegressor": BOOSTED,
    "GeneralizedLinearRegression": PENALTY,
    "HashingTF": {"binary": _one_of(False, True)},
    "IDF": {"minDocFreq": _whole(0, 20)},
    "Imputer": {"strategy": _one_of("mean", "median", "mode")},
    "LinearRegression": MIXED,
    "LinearSVC": {**PENALTY, "maxIter": _more_iterations},
    "LogisticRegression": MIXED,
    "MultilayerPerceptronClassifier": {"layers": _layers, "maxIter": _times(0.25, 3, 100)},
    "NaiveBayes": {
        "smoothing": _unless(lambda stage: _current(stage, "modelType") == "gaussian", _logarithmic(1e-3, 10.0))
    },
    "Normalizer": {"p": _one_of(1.0, 2.0)},
    "RandomForestClassifier": {**FOREST, "impurity": _one_of("gini", "entropy")},
    "RandomForestRegressor": FOREST,
    "RobustScaler": {
        "lower": _between(0.05, 0.45),
        "upper": _between(0.55, 0.95),
        "withScaling": _one_of(True, False),
        "withCentering": _unless(_is_wide, _one_of(False, True)),
    },
    "StandardScaler": {"withStd": _one_of(True, False), "withMean": _unless(_is_wide, _one_of(False, True))},
    "TargetEncoder": {"smoothing": _logarithmic(0.1, 1000.0)},
    "VectorIndexer": {"maxCategories": _whole(2, 32)},
}
"""The Params that are searched, by the class of an estimator or transformer."""

WIDTHS: Mapping[str, Mapping[str, Range]] = {
    "ChiSqSelector": CHI,
    "CountVectorizer": {"minDF": _one_of(1.0, 2.0, 5.0, 10.0)},
    "PCA": {"k": _components},
    "PolynomialExpansion": {"degree": _whole(1, 3)},
    "UnivariateFeatureSelector": {"selectionThreshold": _features},
    "VarianceThresholdSelector": {"varianceThreshold": _logarithmic(1e-4, 1.0)},
    "Word2Vec": {"vectorSize": _times(0.5, 2)},
}
"""Params that determine the width of a stage's output. They are searched unless a later stage requires that width."""


def settings_space(form: UnfittedForm) -> dict[Param[Any], Distribution]:
    """A space for `sparkdiff.Search` and `tune_within_budget` over the settings of the stages of a pipeline.

    Args:
        form: the unfitted form of a fitted pipeline; numbers of features are those to which its stages were fitted.

    Returns:
        {Param of a stage of form.estimator: distribution that contains its value}; empty if no setting is worth
            searching.
    """
    space: dict[Param[Any], Distribution] = {}
    for i, one in enumerate(form.stages):
        if one.role == AS_FITTED:
            continue
        fixed = _feeds_one_width(one, form.stages[i + 1 :])
        stage = _stage_to_search(one)
        name = type(stage.stage).__name__
        space |= _distributions(stage, {**RANGES.get(name, {}), **({} if fixed else WIDTHS.get(name, {}))})
    return space


def first_settings(space: SearchSpace) -> list[Configuration]:
    """The configurations to try first: the current setting; and the current setting without the most frequent limits:
    too few components or features, a solver that was stopped early, and a forest of shallow trees.

    With all components, features may be linearly dependent. Spark's solvers are then slow without a penalty, so the
    second configuration has the smallest penalty of the space in place of a `regParam` of 0.
    """
    now = space.current()
    freed = dict(now)
    for q in space.dimensions:
        stage, _, param = q.name.partition(".")
        kind = stage.rstrip("0123456789")
        if param == "maxIter" and isinstance(q.distribution, Choice):
            freed[q.name] = 100
        elif isinstance(q.distribution, Integer) and (
            param in WIDTHS.get(kind, {}) or (kind in FORESTS and param == "maxDepth")
        ):
            freed[q.name] = q.distribution.high
    if freed != now:
        for q in space.dimensions:
            if q.name.endswith(".regParam") and now.get(q.name) == 0 and isinstance(q.distribution, Choice):
                freed[q.name] = min(v for v in q.distribution.values if v > 0)
    return [now] if freed == now else [now, freed]


def _stage_to_search(one: UnfittedStage) -> UnfittedStage:
    """The stage whose settings are searched: the given one; for a OneVsRest, its classifier."""
    if one.role == ESTIMATOR and one.stage.hasParam("classifier"):
        return replace(one, stage=one.stage.getOrDefault("classifier"), model=one.model.models[0])
    return one


def _distributions(stage: UnfittedStage, ranges: Mapping[str, Range]) -> Iterator[tuple[Param[Any], Distribution]]:
    """The distributions with more than one value, of Params that this version of Spark has."""
    for name, range_ in ranges.items():
        if not stage.stage.hasParam(name) or _current(stage, name) is None:
            continue
        found = range_(stage, _current(stage, name))
        if found is not None and found.listed() != [_current(stage, name)]:
            yield stage.stage.getParam(name), found


def _feeds_one_width(one: UnfittedStage, later: Sequence[UnfittedStage]) -> bool:
    """True if a later stage that takes vectors of one width only reads this output, directly or through other stages."""
    made = {*outputs(one.stage)}
    for other in later:
        text = " ".join(str(other.model.getOrDefault(n)) for n in ("statement", "formula") if other.model.hasParam(n))
        if not made & {*inputs(other.model)} and not any(name in text for name in made):
            continue
        if other.role == AS_FITTED or type(other.stage).__name__ in FIXED or _has_bounds(other):
            return True
        if not other.model.hasParam("predictionCol"):  # otherwise the output width does not depend on the features
            made |= {*outputs(other.model)}
    return False
