"""Predictors of one feature, labels' statistics for them, and costs."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.linear import GeneralizedLinearRegression, LinearRegression, LogisticRegression

COLUMNS = ("raw", "p", "prediction")
COSTS = [[0.0, 1.0], [5.0, 0.5]]


def tensor(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float64)


def stats(y: Any = (0.0, 1.0, 1.0, 1.0)) -> LabelStats:
    y = np.asarray(y, dtype=np.float64)
    whole = bool((y == np.floor(y)).all() and y.min() >= 0)
    counts = torch.tensor(np.bincount(y.astype(int)) if whole else [], dtype=torch.int64)
    return LabelStats(float(y.mean()), float(y.std()), float(y.min()), float(y.max()), counts)


def linear() -> LinearRegression:
    return LinearRegression(tensor([1.0]), tensor(0.0), 1.0, True, None)


def glr(family: str, link: str) -> GeneralizedLinearRegression:
    nan = float("nan")
    return GeneralizedLinearRegression(
        tensor([1.0]), tensor(0.0), True, family=family, link=link, link_power=nan, variance_power=nan, shows_link=False
    )


def logistic(
    rows: int = 1, classes: int = 2, threshold: float = 0.5, thresholds: list[float] | None = None
) -> LogisticRegression:
    return LogisticRegression(
        torch.zeros(rows, 1, dtype=torch.float64),
        torch.zeros(rows, dtype=torch.float64),
        True,
        num_classes=classes,
        thresholds=None if thresholds is None else tensor(thresholds),
        threshold=threshold,
        bounds={},
        shown=LogisticRegression.SHOWN,
        uid="logreg",
    )
