"""Settings of a FineTuner whose candidates train together: one pass over the rows an epoch serves all of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sparkdiff.options import Options

CANDIDATES = ("learningRate", "regAnchor", "recipe", "ema")
"""Options that only decide which candidates train; all others must be the same. Candidates share one optimizer."""
MOST = 16
"""Settings that train together: with four candidates each, 64 copies of the parameters and of the optimizer's state; with the
ten of `thorough`, 160.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Together:
    """Options that differ in their candidates only."""

    settings: tuple[Options, ...]


@dataclasses.dataclass(frozen=True)
class JointSetting:
    """One of several settings that train together, by its position."""

    together: Together
    position: int


def members(fits: Sequence[tuple[Any, Options]]) -> list[JointSetting | None]:
    """For each (pipeline, options) the training that it is a part of; None where it trains alone.

    A run with a `runId` has a training of its own, which can be resumed; `maxSeconds` would count the seconds of the others.
    `numFolds` trains once per fold, and `learningRates` are relative to one `learningRate`.
    """
    groups: list[list[int]] = []
    for i, (pipeline, options) in enumerate(fits):
        if options.runId is not None or options.maxSeconds is not None or options.numFolds or options.learningRates:
            continue
        for group in groups:
            other, first = fits[group[0]]
            but_candidates = dataclasses.replace(first, **{name: getattr(options, name) for name in CANDIDATES})
            if len(group) < MOST and other is pipeline and but_candidates == options:
                group.append(i)
                break
        else:
            groups.append([i])
    out: list[JointSetting | None] = [None] * len(fits)
    for group in groups:
        if len(group) > 1:
            together = Together(tuple(fits[i][1] for i in group))
            for position, i in enumerate(group):
                out[i] = JointSetting(together, position)
    return out
