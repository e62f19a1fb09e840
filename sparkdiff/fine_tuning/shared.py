"""The caches that fits on the same rows share, and the settings among them that train together."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sparkdiff.data import cache as caches
from sparkdiff.data.fingerprint import Request
from sparkdiff.data.splits import REFERENCE, Source, rule
from sparkdiff.fine_tuning.task import Task
from sparkdiff.machine import whole
from sparkdiff.machine.threads import MadeOnce
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


class Shared(MadeOnce):
    """What fits on the same rows have in common: each distinct cache is fingerprinted, written and compared with Spark once."""

    def __init__(self) -> None:
        super().__init__()
        self._members: list[tuple[Any, Options, JointSetting | None]] = []

    def train_together(self, fits: Sequence[tuple[Any, Options]]) -> None:
        """Take note of all fits that will be asked for, each a pipeline and options."""
        self._members = [(*fit, member) for fit, member in zip(fits, members(fits), strict=True)]

    def member_of(self, pipeline: Any, options: Options) -> JointSetting | None:
        """The training of several settings that one of those fits is a part of; None: it trains alone."""
        return next((m for p, o, m in self._members if p is pipeline and o == options), None)

    def has(self, key: tuple[Any, ...]) -> bool:
        """Whether there is something for this key."""
        return key in self.found

    def cache(self, key: tuple[Any, ...], request: Request, watch: caches.Watch) -> caches.Cache:
        known = ("cache", key) in self.found
        if known and not self.found["cache", key].is_there:  # `localCacheLimit` gave its place to another one
            del self.found["cache", key]
        cache = self.once(("cache", key), lambda: caches.open_cache(request, watch))
        return dataclasses.replace(cache, hit=True) if known else cache

    def remove_caches(self) -> None:
        """Remove the files of all caches; a later fit would write them again."""
        for key, cache in [*self.found.items()]:
            if key[0] == "cache":
                whole.remove(cache.folder)


def key_of(task: Task, sources: Sequence[Source]) -> tuple[Any, ...]:
    """All that decides, beside the rows to split, what is cached and where; not how it is trained."""
    o = task.options
    # The cut itself, and not the options that move it (reference, predictionCol, unfreeze): a list of these can lack one.
    return (
        task.model, task.cut.graph.head_position, task.cut, task.labelCol, task.weightCol, rule(o), o.guardCols,
        o.cacheDir, *(s.df for s in sources if s.split == REFERENCE),
    )  # fmt: skip
