"""Samplers that choose the settings of the next trials: Optuna's, and two of ours behind the same interface.

A sampler is created for each trial, with a seed from the trial's number, and depends on the study only: a study that is
killed and started again continues as if it had never stopped.
"""

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.search.distributions import Choice, Distribution, Integer, Uniform
from sparkdiff.search.search_space import Configuration, SearchSpace

try:
    import optuna
except ImportError:  # the extra `search`
    optuna = None  # type: ignore[assignment]
Base: Any = object if optuna is None else optuna.samplers.BaseSampler

START = 10
"""Number of random trials before a sampler learns from them; Optuna's own number for TPE and GP."""
ONE_METRIC = ("recursiveRandom", "cmaes")
"""Samplers that support one metric only."""


@dataclass(frozen=True)
class SamplingPlan:
    """The sampling of a search.

    Attributes:
        seed: seed of the whole study.
        total: number of trials.
        parallelism: number of trials that are evaluated together if each could learn from the one before.
        chunk: number of trials that are evaluated together if the sampler learns nothing.
        larger: for each metric whether larger is better.
        sizes: sizes of the batches if a pruner determines them; else empty.
    """

    name: str
    space: SearchSpace
    seed: int
    total: int
    parallelism: int
    chunk: int
    larger: tuple[bool, ...] = (False,)
    sizes: tuple[int, ...] = ()

    def batch(self, first: int) -> int:
        """Number of trials in the batch that begins with trial `first`: all are sampled before any result is known."""
        if self.sizes:
            starts = [0, *accumulate(self.sizes)]
            return self.sizes[starts.index(first)]
        if self.name in ("grid", "random"):
            return self.chunk
        if self.name == "nsga2":
            return self.population
        if self.name == "cmaes":
            return 4 + int(3 * math.log(max(len(self.space.dimensions), 1))) if first else 1
        return min(START, self.total) if first == 0 else self.parallelism

    @property
    def population(self) -> int:
        return max(4, min(50, self.total // 5))

    @cached_property
    def shuffled_settings(self) -> list[Configuration] | None:
        """All settings in the random order in which the sampler `random` tries them; None if there are too many to
        list, or if they aren't equally likely.
        """
        settings = self.space.configurations()
        if settings is None or any(q.when or getattr(q.distribution, "log", False) for q in self.space.dimensions):
            return None
        order = np.random.RandomState(seed_of(self.seed, 0, "order")).permutation(len(settings))
        return [settings[i] for i in order]

    def sampler(self, number: int) -> Any:
        """The sampler of one trial."""
        seed = seed_of(self.seed, number)
        conditional = any(dimension.when for dimension in self.space.dimensions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            match self.name:
                case "grid":
                    return ListedSettings(self.space.grid())
                case "random" if self.shuffled_settings is not None:
                    return ListedSettings(self.shuffled_settings)  # none twice before all were tried
                case "random":
                    return optuna.samplers.RandomSampler(seed=seed)
                case "tpe":  # `group`: dimensions with a condition are modelled on the trials that met it
                    return optuna.samplers.TPESampler(
                        seed=seed, n_startup_trials=START, multivariate=True, group=conditional
                    )
                case "gp":
                    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=START, warn_independent_sampling=False)
                case "cmaes":
                    return optuna.samplers.CmaEsSampler(
                        seed=seed, popsize=self.batch(1), warn_independent_sampling=False
                    )
                case "nsga2":
                    return optuna.samplers.NSGAIISampler(seed=seed, population_size=self.population)
                case _:
                    return RecursiveRandom(self, number)


NAMES = ("grid", "random", "recursiveRandom", "gp", "tpe", "cmaes", "nsga2")


def check_sampler(name: str, metrics: int) -> None:
    """Check that a sampler can be used.

    Raises:
        InputError: there is no such sampler, it doesn't support so many metrics, or Optuna is missing.
    """
    if name == "annealing":
        raise InputError(
            "sampler='annealing' is not offered: in no benchmark did it beat recursiveRandom, which also stays near good trials"
        )
    if name not in NAMES:
        raise InputError(f"sampler={name!r} is none of {', '.join(NAMES)}. {did_you_mean(str(name), NAMES)}")
    if metrics > 1 and name in ONE_METRIC:
        raise InputError(f"sampler={name!r} looks at one metric, but there are {metrics} evaluators: use nsga2 or tpe")
    if optuna is None:
        raise InputError("sparkdiff.Search needs Optuna: pip install 'sparkdiff[search]'")


def seed_of(seed: int, number: int, what: str = "") -> int:
    """A seed of 32 bits: a hash of the study's seed, a trial's number, and the purpose `what`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {what}".encode()).digest()[:4], "big")


def suggest_value(trial: Any, name: str, given: Distribution) -> Any:
    """The value that an Optuna trial suggests for the dimension `name`."""
    if isinstance(given, Uniform):
        return trial.suggest_float(name, given.low, given.high, log=given.log)
    if isinstance(given, Integer):
        return trial.suggest_int(name, given.low, given.high, log=given.log)
    assert isinstance(given, Choice)
    return trial.suggest_categorical(name, given.names())


# Ours -----------------------------------------------------------------------------------------------------------------


class IndependentSampler(Base):  # type: ignore[misc]
    """A sampler that draws each dimension separately."""

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Mapping[str, Any]) -> dict[str, Any]:
        return {}


class ListedSettings(IndependentSampler):
    """A sampler that takes the settings of a list, one per trial. Optuna's GridSampler would repeat settings in which a
    dimension isn't active.
    """

    def __init__(self, settings: Sequence[Configuration]):
        self.settings = settings

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self.settings[trial.number % len(self.settings)][param_name]


@dataclass(frozen=True)
class FinishedTrial:
    """A finished trial: its configuration, and its metric, where smaller is better."""

    configuration: Mapping[str, Any]
    value: float


def finished_trials(study: Any) -> list[FinishedTrial]:
    sign = -1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1.0
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return [FinishedTrial(t.params, sign * t.value) for t in complete]


def draw_value(distribution: Any, near: Any, width: float, random: np.random.RandomState, *, known: bool) -> Any:
    """A random value of one of Optuna's distributions; if `known`, from a window around `near` whose width is the share
    `width` of the whole range. A category that is known stays unless it is redrawn, with probability `width`.
    """
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        stays = known and random.random_sample() >= width
        other = distribution.choices[random.randint(len(distribution.choices))]
        return near if stays else other
    whole = isinstance(distribution, optuna.distributions.IntDistribution)
    low, high = distribution.low - 0.5 * whole, distribution.high + 0.5 * whole
    if distribution.log:
        low, high = math.log(low), math.log(high)
    share = random.random_sample()
    if known:
        at = ((math.log(near) if distribution.log else near) - low) / (high - low) if high > low else 0.5
        left = min(max(at - width / 2, 0.0), max(1 - width, 0.0))  # keeps the width near the ends of the range
        share = left + share * min(width, 1.0)
    value = low + share * (high - low)
    value = math.exp(value) if distribution.log else value
    if whole:
        value = round(float(value))
    return min(max(value, distribution.low), distribution.high)


class RecursiveRandom(IndependentSampler):
    """Recursive random search (Ye and Kalyanaraman 2003): explore at random, then search around the best place in boxes
    that move to better places and shrink without them, until they are small; then explore again.

    In their notation: r = 0.2 and p = 0.9, hence START trials of exploration; q = 0.99 and v = 0.8, hence 3 misses
    until a box shrinks; c = 0.5, s = 0.01.
    """

    R, MISSES, SHRINK, LEAST = 0.2, 3, 0.5, 0.01

    def __init__(self, plan: SamplingPlan, number: int):
        self.plan, self.random = plan, np.random.RandomState(seed_of(plan.seed, number))
        self.place: tuple[Mapping[str, Any] | None, float] | None = None

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        if self.place is None:
            self.place = self.around(finished_trials(study))
        configuration, width = self.place
        near = None if configuration is None else configuration.get(param_name)
        return draw_value(
            param_distribution,
            near,
            width,
            self.random,
            known=configuration is not None and param_name in configuration,
        )

    def around(self, tried: Sequence[FinishedTrial]) -> tuple[Mapping[str, Any] | None, float]:
        """The configuration to stay near (None: draw anywhere), and the width around it as a share of each range."""
        explored: list[float] = []
        centre, width, misses = None, 1.0, 0
        first = self.R ** (1 / max(len(self.plan.space.dimensions), 1))
        best: FinishedTrial | None = None
        for t in tried:
            if centre is None:
                explored.append(t.value)
                best = t if best is None or t.value < best.value else best
                if len(explored) == START:
                    centre, width, misses = best, first, 0
                elif len(explored) > START and t.value <= float(np.quantile(explored, self.R)):
                    centre, width, misses = t, first, 0
            elif t.value < centre.value:
                centre, misses = t, 0
            else:
                misses += 1
                if misses == self.MISSES:
                    width, misses = width * self.SHRINK, 0
                if width < self.LEAST:
                    centre = None
        return (None, 1.0) if centre is None else (centre.configuration, width)
