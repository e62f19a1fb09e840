"""Metrics of solutions on the rows that their folds hold out, without Spark."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.stages import linear as heads
from sparkdiff.stages.base import columns_of
from sparkdiff.tensors.rows import product, taken
from sparkdiff.tuning.cached_rows import CachedRows
from sparkdiff.tuning.scores import Judge
from sparkdiff.tuning.solvers import Solution
from sparkdiff.tuning.trie import Fit

SCORES = 2**27
"""Bytes of scores that are held at the same time."""


class WithParams:
    """An estimator with other values for some Params, to be read only. A copy would take Java a while, for each setting."""

    def __init__(self, stage: Any, params: Mapping[Any, Any]):
        self.stage, self.uid = stage, stage.uid
        self.values = {param.name: param.typeConverter(value) for param, value in params.items()}

    def hasParam(self, name: str) -> bool:
        return bool(self.stage.hasParam(name))

    def isSet(self, name: str) -> bool:
        return name in self.values or self.stage.isSet(name)

    def isDefined(self, name: str) -> bool:
        return name in self.values or (self.stage.hasParam(name) and self.stage.isDefined(name))

    def getOrDefault(self, name: str) -> Any:
        return self.values[name] if name in self.values else self.stage.getOrDefault(name)


Solved = Mapping[tuple[Fit, int], Solution]
"""By the last fit and the fold."""


def judged(
    solved: Solved, estimators: Mapping[Fit, WithParams], cache: CachedRows, folds: int, judge: Judge, kind: str
) -> dict[tuple[Fit, int], float]:
    """The metric of each solution on the rows that its fold holds out; none where the model doesn't write what is judged."""
    outs = {
        fit: found.coefficients.shape[0] if found.coefficients.ndim == 2 else 1 for (fit, _), found in solved.items()
    }
    columns = {fit: _columns(kind, estimators[fit], outs[fit], cache.width) for fit in outs}
    metrics: dict[tuple[Fit, int], float] = {}
    pending = [fit for fit in outs if judge.column in columns[fit][0]]
    for now in _batches(pending, outs, SCORES // (8 * max(cache.count, 1))):
        models = {fold: [fit for fit in now if (fit, fold) in solved] for fold in range(folds)}
        for fold, (margin, y, w) in _margins(solved, models, cache).items():
            for fit, part in zip(models[fold], margin.split([outs[fit] for fit in models[fold]], 1), strict=True):
                names, head = columns[fit]
                of = head.columns(part[:, 0] if outs[fit] == 1 else part)
                metrics[fit, fold] = judge.value(dict(zip(names, of, strict=True))[judge.column], y, w)
    return metrics


def _batches(fits: Sequence[Fit], outs: Mapping[Fit, int], room: int) -> Iterator[list[Fit]]:
    """As many at once as have room for their scores, at least one."""
    now: list[Fit] = []
    used = 0
    for fit in fits:
        if now and used + outs[fit] > room:
            yield now
            now, used = [], 0
        now.append(fit)
        used += outs[fit]
    if now:
        yield now


def _margins(
    solved: Solved, models: Mapping[int, Sequence[Fit]], cache: CachedRows
) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Fold by fold the margins of its models, the labels and the weights, of the rows that it holds out; in one pass."""
    matrices, found = {}, defaultdict(list)
    for fold, fits in models.items():
        if fits:
            own = [solved[fit, fold] for fit in fits]
            matrix = torch.cat([one.coefficients.view(-1, cache.width) for one in own]).T.contiguous()
            matrices[fold] = matrix, torch.cat([one.intercept.view(-1) for one in own])
    for piece in cache.pieces():
        for fold, (matrix, shift) in matrices.items():
            mine = piece.fold == fold
            margin = product(taken(piece.x, mine.nonzero()[:, 0]), matrix) + shift
            margin = margin if piece.offset is None else margin + piece.offset[mine][:, None]
            found[fold].append((margin, piece.own_label[mine], piece.own_weight[mine]))
    return {fold: tuple(map(torch.cat, zip(*parts, strict=True))) for fold, parts in found.items()}  # type: ignore[misc]


def _columns(kind: str, estimator: WithParams, outs: int, features: int) -> tuple[tuple[str, ...], Any]:
    """The names of the columns that a model writes, and the module that computes them from margins."""
    get, flat = estimator.getOrDefault, torch.zeros(features, dtype=torch.float64)
    zero, intercept = torch.tensor(0.0, dtype=torch.float64), get("fitIntercept")
    if kind == "LinearRegression":
        head: Any = heads.LinearRegression(flat, zero, 1.0, intercept, None)
        return ((get("predictionCol"),), head)
    if kind == "GeneralizedLinearRegression":
        family = get("family").lower()
        link = get("link").lower() if estimator.isDefined("link") else heads.CANONICAL[family]
        shown = columns_of(estimator, heads.GeneralizedLinearRegression.SHOWN)
        head = heads.GeneralizedLinearRegression(
            flat, zero, intercept, family=family, link=link, link_power=math.nan, variance_power=math.nan,
            shows_link=bool(columns_of(estimator, ("linkPredictionCol",))),
            shows_mean=bool(columns_of(estimator, ("predictionCol",))),
        )  # fmt: skip
        return shown, head
    settings = heads.LogisticRegression.settings(estimator)
    head = heads.LogisticRegression(
        torch.zeros(outs, features, dtype=torch.float64), torch.zeros(outs, dtype=torch.float64), intercept,
        num_classes=max(outs, 2), thresholds=settings["thresholds"] if outs > 1 else None,
        threshold=heads.binary_threshold(estimator) if outs == 1 else 0.5, bounds={}, shown=settings["shown"],
        uid=estimator.uid,
    )  # fmt: skip
    return columns_of(estimator, heads.LogisticRegression.SHOWN), head
