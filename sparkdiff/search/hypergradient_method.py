"""`method="hypergradient"` of a search. It runs no trials, but chooses stages by training a mixture of alternatives,
and finds a penalty for each column of features by the slope of the loss on validation rows.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparkdiff.errors import InputError
from sparkdiff.pipeline.nesting import plain
from sparkdiff.search.alternatives import places, with_choices
from sparkdiff.search.distributions import Uniform
from sparkdiff.search.search_options import Settings
from sparkdiff.search.search_space import Configuration, Dimension, SearchSpace
from sparkdiff.search.splitting import DividedRows
from sparkdiff.search.study import Trial
from sparkdiff.tuning.fits import leaves_of
from sparkdiff.tuning.group_penalties import group_penalties, linear_estimator
from sparkdiff.tuning.soft_choice import soft_choice

SINGLES = 15
"""Number of penalties that are tried for all features together if the space gives a range."""
LEAST = 1e-6
"""The penalty that replaces a `regParam` of 0."""


def check_method(space: SearchSpace, settings: Settings, metrics: int) -> None:
    """Check that the space and the settings suit the method.

    Raises:
        InputError: something is requested that the method can't do. The message names it.
    """
    method = "method='hypergradient'"
    last = _last(space)
    linear_estimator(last)
    if metrics > 1:
        raise InputError(f"{method} makes one loss small, that of {last.uid}: give one evaluator")
    for name in ("pruner", "runDir"):
        if getattr(settings, name) is not None:
            raise InputError(
                f"{method} runs no trials, so {name}={getattr(settings, name)!r} has no meaning: leave it out"
            )
    if settings.folds:
        raise InputError(f"{method} is judged by fresh rows only: leave numFolds={settings.numFolds} out")
    for dimension in space.dimensions:
        if dimension.when:
            raise InputError(f"{method} chooses no stages inside of alternatives, as {dimension.name} is")
        if dimension.param is not None and (dimension.param.parent, dimension.param.name) != (last.uid, "regParam"):
            raise InputError(
                f"{method} finds regParam of {last.uid}, and stages of alternatives; of the space it can't find "
                f"{dimension.name}: take that out, or method='trials'"
            )
        if dimension.param is not None:
            _singles(dimension)


def by_slope(space: SearchSpace, rows: DividedRows, evaluators: Sequence[Any]) -> tuple[Trial, Any]:
    """The winner, as the only trial, and its model, fitted by Spark to the training rows."""
    start = time.perf_counter()
    train, validation = rows.part("train"), rows.part("validation")
    penalty = next((q for q in space.dimensions if q.param is not None), None)
    singles = _singles(penalty) if penalty is not None else None
    given: dict[str, Any] = {} if singles is None else {"singles": singles}
    estimator, configuration = space.estimator, Configuration()
    names = {q.place: q.name for q in space.dimensions if q.param is None}
    if found := places(estimator):
        variants = {
            names[place.uid]: [with_choices(estimator, {place.uid: i}) for i in range(len(place.names()))]
            for place in found
        }
        # A penalty that isn't tuned stays unchanged, but `LEAST` replaces 0: without a penalty, a model may have no
        # solution here.
        fits = [] if penalty is not None else [max(_last(space).getRegParam(), LEAST)]
        positions = soft_choice(variants, train, validation, **given, fits=fits).positions
        configuration = {names[place.uid]: place.names()[i] for place, i in zip(found, positions, strict=True)}
        estimator = with_choices(estimator, {place.uid: i for place, i in zip(found, positions, strict=True)})
    if penalty is not None:
        tuned = group_penalties(estimator, train, validation, **given)
        estimator = tuned.estimator
        configuration |= {f"{penalty.name} of {group}": value for group, value in tuned.penalties.items()}
    model = estimator.fit(train)
    metric = evaluators[0].evaluate(model.transform(validation))
    if math.isnan(metric):
        raise InputError("the metric of the winner on the validation rows is NaN")
    return Trial(0, configuration, "complete", (metric,), seconds=time.perf_counter() - start), plain(model)


def _last(space: SearchSpace) -> Any:
    """The last stage, which must not be one of alternatives.

    Raises:
        InputError: the last stage is one of alternatives.
    """
    estimator = space.estimator
    last = leaves_of(with_choices(estimator, {}), lambda _pipeline: False)[-1]
    held = {stage.uid for place in places(estimator) for stage in place.getStages() if stage is not None}
    if last.uid in held:
        raise InputError(
            f"method='hypergradient' needs a last stage that is given, but {last.uid} is one of alternatives"
        )
    return last


def _singles(dimension: Dimension) -> list[float]:
    """The penalties to try for all features together; the steps start from the best one.

    Raises:
        InputError: the distribution of the penalty contains values of 0 or less.
    """
    distribution, listed = dimension.distribution, dimension.distribution.listed()
    if listed is not None:
        values = [float(v) for v in listed]
    elif isinstance(distribution, Uniform) and distribution.low > 0:
        values = np.logspace(math.log10(distribution.low), math.log10(distribution.high), SINGLES).tolist()
    else:
        values = [0.0]
    if min(values) <= 0:
        raise InputError(
            f"method='hypergradient' needs penalties larger than 0, but space gives {dimension.name} {distribution}: use "
            "loguniform(1e-6, 10)"
        )
    return values
