"""Studies of three numbers and a choice, and the loss that they make smaller."""

import math
from collections.abc import Mapping
from typing import Any

from sparkdiff import choice, integer, loguniform, uniform
from sparkdiff.search.samplers import SamplingPlan
from sparkdiff.search.search_space import Dimension, SearchSpace

SPACE = SearchSpace(
    None,
    (
        Dimension("x", loguniform(1e-5, 1), param=1),
        Dimension("n", integer(1, 20), param=1),
        Dimension("k", choice("a", "b"), param=1),
        Dimension("only a", uniform(0, 1), param=1, when=((("k", "a"),),)),
    ),
)
REQUEST = {"seed": 3, "space": {"x": "loguniform"}}


def loss(configuration: Mapping[str, Any]) -> float:
    assert ("only a" in configuration) == (configuration["k"] == "a")
    return (
        abs(math.log(configuration["x"]) + 5)
        + 0.3 * abs(configuration["n"] - 13)
        + (configuration["k"] == "b")
        + configuration.get("only a", 0)
    )


def plan(name: str, total: int = 40, parallelism: int = 1, seed: int = 3) -> SamplingPlan:
    return SamplingPlan(name, SPACE, seed, total, parallelism, 8)
