"""What hypothesis draws for the laws of stages: how many examples, columns, and weights of any size."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.extra.numpy import arrays

from tests.support.stages_and_rows import AT_ONCE, COLUMNS

# The same examples in every run; `SPARKDIFF_EXAMPLES=50 pytest tests/laws` looks for new ones. CI takes 1 of them for each
# commit, and all of them nightly.
EXAMPLES = os.environ.get("SPARKDIFF_EXAMPLES")


def generated(examples: int = 2) -> settings:
    wanted = int(EXAMPLES or examples)
    return settings(
        max_examples=wanted,
        derandomize=wanted <= examples,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


WIDTHS = (1, 3)
numbers = st.one_of(
    st.floats(-20, 20), st.floats(-1e-3, 1e-3), st.sampled_from([0.0, -0.0, 1.0, -7.5, 150.0, 1e-300, 1e100])
)
scales = st.one_of(st.floats(1e-3, 50), st.sampled_from([0.0, 0.0, 1e-300, 1e-9, 1.0, 1e9, 1e300]))
columns = st.sampled_from(COLUMNS)


def vector(width: int, elements: st.SearchStrategy[float] = numbers) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, width, elements=elements)


def many(
    strategy: Callable[[int], st.SearchStrategy[Any]], size: int = AT_ONCE
) -> st.SearchStrategy[tuple[int, list[Any]]]:
    """A width, and parameters of that width for `size` stages.

    Hypothesis begins with the simplest example, all stages alike; that isn't worth a job.
    """
    several = st.sampled_from(WIDTHS).flatmap(
        lambda width: st.tuples(st.just(width), st.lists(strategy(width), min_size=size, max_size=size))
    )
    return several.filter(lambda drawn: len({repr(d) for d in drawn[1]}) > size // 2)
