"""The decisions of a trial: a value for each Param of the space, and a stage for each place with alternatives. This
module doesn't use Optuna.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparkdiff.errors import InputError
from sparkdiff.pipeline.nesting import inside
from sparkdiff.search.alternatives import Alternatives, outputs, places, with_choices
from sparkdiff.search.distributions import MOST, Choice, Distribution, Integer, Uniform, as_distribution
from sparkdiff.tuning import trie
from sparkdiff.tuning.fits import is_sparks
from sparkdiff.tuning.param_checks import check_value

Configuration = dict[str, Any]
"""Values by the names of dimensions: a value of a Param, or the name of a chosen stage."""
Choices = tuple[tuple[str, str], ...]
"""Pairs (name of alternatives, name of the stage chosen from them)."""


@dataclass(frozen=True)
class Dimension:
    """One decision of a trial.

    Attributes:
        name: the name in trials and studies; the same in each process, unlike uids.
        param: the Param that is set; None if the decision is between alternatives.
        place: uid of these alternatives; "" for a Param.
        when: conditions, one of which must hold for the dimension to be searched: for each path to it, the (name,
            value) of the alternatives on the path. Empty: always searched.
    """

    name: str
    distribution: Distribution
    param: Any = None
    place: str = ""
    when: tuple[Choices, ...] = ()

    def active(self, configuration: Mapping[str, Any]) -> bool:
        ways = (all(configuration.get(name) == value for name, value in way) for way in self.when)
        return not self.when or any(ways)


@dataclass(frozen=True)
class SearchSpace:
    """All decisions of a trial of an estimator; alternatives come before the dimensions inside them."""

    estimator: Any
    dimensions: tuple[Dimension, ...]

    @staticmethod
    def of(estimator: Any, space: Mapping[Any, Any]) -> "SearchSpace":
        """Make the space.

        Raises:
            InputError: a Param belongs to no stage or refuses a value (the message names it), or there is nothing to
                decide.
        """
        held, names = inside(estimator), _stage_names(estimator)
        where = _conditions(estimator)
        found = [
            Dimension(
                _place_name(place, estimator), Choice(tuple(place.names())), place=place.uid, when=where[place.uid]
            )
            for place in reversed({place.uid: place for place in reversed(places(estimator))}.values())
        ]
        for param, given in space.items():
            stage = held.get(param.parent)
            if stage is None or not stage.hasParam(param.name):
                raise InputError(f"space {trie.unknown(param, held)}")
            distribution = as_distribution(f"{param.name} of {param.parent}", given)
            for value in distribution.ends():
                check_value("space", stage, param, value)
                _check_own(stage, param, value)
            name = f"{names[param.parent]}.{param.name}"
            found.append(Dimension(name, distribution, param, when=where.get(param.parent, ())))
        if not found:
            raise InputError(
                "space is empty and the estimator has no alternatives, so there is nothing to search: "
                "space={head.regParam: sparkdiff.loguniform(1e-5, 10)}"
            )
        return SearchSpace(estimator, tuple(found))

    def sample(self, draw: Callable[[Dimension], Any]) -> Configuration:
        """A configuration with a drawn value for each active dimension, in order."""
        configuration: Configuration = {}
        for dimension in self.dimensions:
            if dimension.active(configuration):
                configuration[dimension.name] = draw(dimension)
        return configuration

    def grid(self) -> list[Configuration]:
        """All configurations.

        Raises:
            InputError: there are infinitely many, or more than `MOST`.
        """
        endless = [q for q in self.dimensions if q.distribution.listed() is None]
        if endless:
            raise InputError(
                f"sampler='grid' needs a list of values, but space gives {endless[0].name} {endless[0].distribution}: use "
                "choice(...), or another sampler"
            )
        found = self.configurations()
        if found is None:
            raise InputError(
                f"sampler='grid' would try more than {MOST:,} settings: use another sampler, or fewer values"
            )
        return found

    def configurations(self) -> list[Configuration] | None:
        """All configurations; None if there are infinitely many, or more than `MOST`."""
        if any(q.distribution.listed() is None for q in self.dimensions):
            return None
        grids: list[Configuration] = [{}]
        for dimension in self.dimensions:
            values = names_of(dimension.distribution)
            grids = [
                {**configuration, **({dimension.name: value} if dimension.active(configuration) else {})}
                for configuration in grids
                for value in (values if dimension.active(configuration) else [None])
            ]
            if len(grids) > MOST:
                return None
        return grids

    def setting(self, configuration: Mapping[str, Any]) -> tuple[Any, dict[Any, Any]]:
        """The estimator with the chosen stage in place of alternatives, and the map of Params to fit it with."""
        choices, params = {}, {}
        for dimension in self.dimensions:
            if dimension.name not in configuration:
                continue
            value = configuration[dimension.name]
            if dimension.param is None:
                choices[dimension.place] = names_of(dimension.distribution).index(value)
            else:
                params[dimension.param] = value_of(dimension.distribution, value)
        return with_choices(self.estimator, choices), params

    def current(self) -> Configuration:
        """The configuration of the unchanged estimator, without values that the space does not contain."""
        held = inside(self.estimator)
        found: Configuration = {}
        for q in self.dimensions:
            if q.param is None and q.active(found):
                found[q.name] = names_of(q.distribution)[0]
            elif q.active(found):
                stage = held[q.param.parent]
                value = stage.getOrDefault(q.param.name) if stage.isDefined(q.param.name) else None
                if (name := name_of(q.distribution, value)) is not None:
                    found[q.name] = name
        return found

    def structure(self, configuration: Mapping[str, Any]) -> tuple[Any, ...]:
        """A key of the chosen stages: equal for configurations that choose the same stages."""
        return tuple(configuration.get(dimension.name) for dimension in self.dimensions if dimension.param is None)


def names_of(distribution: Distribution) -> list[Any]:
    """The names of a dimension's values; empty if there are too many to list."""
    return distribution.names() if isinstance(distribution, Choice) else distribution.listed() or []


def name_of(distribution: Distribution, value: Any) -> Any:
    """The name of a value in a trial; None if the distribution does not contain it."""
    if isinstance(distribution, Choice):
        return next((n for n, v in zip(distribution.names(), distribution.values, strict=True) if v == value), None)
    assert isinstance(distribution, (Uniform, Integer))
    return value if value is not None and distribution.low <= value <= distribution.high else None


def value_of(distribution: Distribution, value: Any) -> Any:
    """The value to set on a Param for a value of a trial, which records a choice by its name."""
    if isinstance(distribution, Choice):
        return distribution.values[distribution.names().index(value)]
    return value


def _check_own(stage: Any, param: Any, value: Any) -> None:
    """Check that a stage that isn't Spark's, such as a FineTuner, takes a value.

    Raises:
        InputError: the stage refuses the value.
    """
    if is_sparks(stage):
        return
    try:
        stage.copy({param: value})
    except (InputError, TypeError, ValueError) as e:
        raise InputError(f"space gives {param.name} of {param.parent} the value {value!r}: {e}") from e


def _stage_names(estimator: Any) -> dict[str, str]:
    """The class of each stage, by uid, with a number if several have the same class."""
    held = [stage for stage in inside(estimator).values() if not isinstance(stage, Alternatives)]
    out = {}
    for stage in held:
        same = [other.uid for other in held if type(other) is type(stage)]
        kind = type(stage).__name__
        out[stage.uid] = f"{kind}{same.index(stage.uid) + 1}" if len(same) > 1 else kind
    return out


def _place_name(place: Alternatives, estimator: Any) -> str:
    """A name like `stage of scaled`, from the output columns; with a number if several alternatives write the same."""
    mine = outputs(place)
    same = [other.uid for other in places(estimator) if outputs(other) == mine]
    number = f" {same.index(place.uid) + 1}" if len(same) > 1 else ""
    return f"stage of {', '.join(mine) or 'alternatives'}{number}"


def _conditions(estimator: Any) -> dict[str, tuple[Choices, ...]]:
    """Conditions under which a stage is part of the estimator, by the stage's uid: the choices on each path to it;
    empty if it is always a part.
    """
    found: dict[str, list[Choices]] = {}

    def walk(stage: Any, above: Choices) -> None:
        for uid, held in inside(stage, lambda one: not isinstance(one, Alternatives)).items():
            found.setdefault(uid, []).append(above)
            if isinstance(held, Alternatives):
                name = _place_name(held, estimator)
                for option, inner in zip(held.names(), held.getStages(), strict=True):
                    walk(inner, (*above, (name, option)))

    walk(estimator, ())
    return {uid: () if () in ways else tuple(ways) for uid, ways in found.items()}
