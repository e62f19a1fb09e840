"""Forecasts of the gain and the cost of a fine-tuning, by small scikit-learn models.

The models are learned from past runs with known facts: those that sparkdiff ships (priors.json, made by
benchmarks/fleet.py) and those in the user's store that were started by triage, with equal weights. The fitted models are
not saved, because learning takes only a second.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from sparkdiff.data.rehearsal import SAMPLE
from sparkdiff.errors import requires_extra
from sparkdiff.history.pipeline_facts import FACTS, Facts
from sparkdiff.history.run_table import json_object

MOST = 0.5
"""Largest gain, as a share of the original's metric; larger gains count as this one."""
EARLY = 10
"""Number of epochs after which a run is stopped if it has not gained so far."""
PRIORS = resources.files("sparkdiff.history").joinpath("priors.json")  # the package may be in a zip
SIZES = ("rows", "heldOut", "parameters", "width", "stages", "trainedStages")
SHARES = ("quadraticGain", "stepGain", "firstEpochGain", "lastEpochGain", "lastGain", "drift")
SIGNALS = ("stepZ", "firstEpochZ", "lastEpochZ")
FLAGS = ("trainedBeforeHead", "head:linear", "head:bayes", "head:perceptron", "head:trees", "known", "lastTuned")
NAMES = (*SIZES, *SHARES, *SIGNALS, *FLAGS, "candidates", "regParam", "gradientSignal")


@dataclasses.dataclass(frozen=True)
class PastRun:
    """A finished run.

    Attributes:
        facts: the facts that were measured before the run.
        kept: True if the tuned pipeline was kept, False if the original was kept.
        gain: gain on validation rows as a share of the original's metric; 0 if the original was kept.
        coreSeconds: core-seconds of the run, without those spent on measuring the facts.
    """

    facts: Mapping[str, float]
    kept: bool
    gain: float
    coreSeconds: float


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The forecast for a run.

    Attributes:
        probability: probability that the tuned pipeline replaces the original.
        gain: expected gain if the tuned pipeline replaces the original, as a share of the original's metric, at most 0.5.
        coreSeconds: expected core-seconds of the run.
    """

    probability: float
    gain: float
    coreSeconds: float

    @property
    def expected(self) -> float:
        """Expected gain, averaged over both outcomes (if the original is kept, the gain is 0)."""
        return self.probability * self.gain

    @property
    def worth(self) -> float:
        """Expected gain per core-second."""
        return self.expected / max(self.coreSeconds, 1e-3)


def features(facts: Mapping[str, float]) -> list[float]:
    """The facts as inputs of the models: numbers of similar size, in the order of `NAMES`; NaN, or 0 for `FLAGS`, if unknown."""
    return [_model_input(name, float(facts.get(name, 0.0 if name in FLAGS else math.nan))) for name in NAMES]


def _model_input(name: str, value: float) -> float:
    if math.isnan(value):
        return value
    if name in SIZES:
        return math.log1p(max(value, 0.0))
    if name in SHARES:
        return float(np.clip(value, -1.0, 1.0))
    if name in SIGNALS:
        return float(np.clip(value, -5.0, 10.0))
    if name == "regParam":
        return math.log10(max(value, 0.0) + 1e-6)
    return math.log(max(value, 0.0) + 1e-3) if name == "gradientSignal" else value


def of_store(runs: Sequence[Mapping[str, Any]]) -> list[PastRun]:
    """The past fine-tunings in a store that were started by triage, which stores their facts in the tag `FACTS`.

    Other runs are left out, and so are runs in which this tag holds no facts or whose gain or core-seconds are unknown.
    """
    out = []
    for run in runs:
        tags, gain = run["tags"] or {}, 0.0 if run["kept"] else run["gain"]
        facts = numbers(json_object(tags.get(FACTS, "")))
        if run["verb"] == "finetune" and facts is not None and None not in (gain, run["coreSeconds"]):
            out.append(PastRun(facts, not run["kept"], gain, run["coreSeconds"]))
    return out


def numbers(found: Any) -> Facts | None:
    """A value read from JSON, if it holds facts: finite numbers by name, among them `rows`; else None."""
    plain = isinstance(found, dict) and all(type(v) in (int, float) and math.isfinite(v) for v in found.values())
    return found if plain and "rows" in found else None


@functools.cache
def priors() -> tuple[PastRun, ...]:
    """The past runs that sparkdiff ships."""
    names = [f.name for f in dataclasses.fields(PastRun)]
    found = json.loads(PRIORS.read_text(encoding="utf-8"))["runs"]
    return tuple(PastRun(**{name: run[name] for name in names}) for run in found)


def forests() -> tuple[Any, Any]:
    """A classifier and a regressor (extremely randomized trees) that accept missing values.

    Raises:
        InputError: scikit-learn is not installed.
    """
    with requires_extra("triage", "a learned forecast"):
        from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
    forest: dict[str, Any] = {"n_estimators": 100, "min_samples_leaf": 3, "random_state": 0}

    def with_imputer(model: Any) -> Any:
        return make_pipeline(SimpleImputer(keep_empty_features=True), model)

    return with_imputer(ExtraTreesClassifier(**forest)), with_imputer(ExtraTreesRegressor(**forest))


class Forecaster:
    """Forecasts for runs, learned from finished runs.

    Args:
        runs: the past runs from which the forecasts are learned. In at least one the tuned pipeline must have been kept,
            and in at least one the original.

    Raises:
        InputError: scikit-learn is not installed.
    """

    def __init__(self, runs: Sequence[PastRun]):
        x = np.array([features(run.facts) for run in runs])
        kept = np.array([run.kept for run in runs])
        gain = np.array([min(max(run.gain, 0.0), MOST) for run in runs])
        classifier, regressor = forests()
        self._keeps, self._gains = classifier.fit(x, kept), regressor.fit(x[kept], gain[kept])
        self._costs = _Costs(runs)

    def __call__(self, facts: Facts) -> Forecast:
        x = np.array([features(facts)])
        probability = float(self._keeps.predict_proba(x)[0, 1])
        return Forecast(probability, float(self._gains.predict(x)[0]), self._costs(facts))


class _Costs:
    """Forecasts of the core-seconds of a run, by a linear model with non-negative coefficients, fitted to finished runs.

    Its terms are a constant, the number of stages, whether the predictor is of the kind `trees`, the number of cells (rows
    times stored entries), the number of rows, the number of rows if the predictor is of this kind, and the time of training
    on the rows beyond the sample, extrapolated from the training on the sample.
    """

    def __init__(self, runs: Sequence[PastRun]):
        from sklearn.linear_model import LinearRegression

        x, y = np.array([self._parts(run.facts) for run in runs]), np.array([run.coreSeconds for run in runs])
        # Fit relative errors, so that one large run does not outweigh all small ones.
        self._model = LinearRegression(positive=True, fit_intercept=False).fit(x / y[:, None], np.ones(len(y)))

    @staticmethod
    def _parts(facts: Mapping[str, float]) -> list[float]:
        rows, trees = facts.get("rows", 0.0), facts.get("head:trees", 0.0)
        cells = rows * facts.get("entries", facts.get("width", 1.0))  # few shipped runs know their entries
        return [1.0, facts.get("stages", 0.0), trees, cells / 1e6, rows / 1e6, trees * rows / 1e6, _beyond(facts)]

    def __call__(self, facts: Mapping[str, float]) -> float:
        return float(self._model.predict(np.array([self._parts(facts)]))[0])


def _beyond(facts: Mapping[str, float]) -> float:
    """Core-seconds of training all candidates on the rows beyond the sample, extrapolated from the training on the sample."""
    each = facts.get("secondsPerRow", 0.0) * facts.get("epochs", 0.0) * max(facts.get("candidates", 1.0), 1.0)
    return max(facts.get("rows", 0.0) - SAMPLE, 0.0) * each
