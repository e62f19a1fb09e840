"""Every metric that can be had of rows with labels, and rows of chance that it is measured on."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.objectives.losses import UNLABELLED, resolve as resolve_loss
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.metrics import NAMES as EVERY, resolve
from sparkdiff.options import Options
from sparkdiff.stages.predictor import Predictor
from tests.support.small_heads import COLUMNS, COSTS, linear, logistic, stats, tensor
from tests.support.small_networks import one_vs_rest, survival

METRICS = [name for name in EVERY if name not in UNLABELLED]  # those of clusters: tests/api/stages/test_clustering.py
RANDOM = np.random.default_rng(11)
N = 80
SCORE = tensor(np.round(RANDOM.normal(size=N), 1))  # ties
Y2, Y3 = tensor(RANDOM.random(N) < 0.4), tensor(RANDOM.integers(0, 3, N))
M3 = tensor(RANDOM.normal(size=(N, 3)) + 1.2 * np.eye(3)[Y3.long().numpy()])
REAL, GUESS = tensor(RANDOM.gamma(2.0, 2.0, N)), tensor(RANDOM.gamma(2.0, 2.0, N) + 0.1)
W = tensor(RANDOM.integers(0, 4, N))  # zeros too
BINARY, THREE = logistic(threshold=0.6), logistic(3, 3)


def metric(name: str | None, head: Predictor, y: Any = (0.0, 1.0, 1.0), **given: Any) -> Metric:
    columns = COLUMNS if head.classes else ("prediction",)
    options = Options.of({"metric": name, **given})
    objective = resolve_loss(options.loss, options.lossParams, head, columns, stats(y))
    return resolve(options, objective, head, columns, stats(y))


PARAMS: dict[str, dict[str, Any]] = {
    "fMeasureByLabel": {"metricLabel": 1, "beta": 2.0},
    "weightedFMeasure": {"beta": 0.5},
    "precisionByLabel": {"metricLabel": 2},
    "quantile": {"tau": 0.9},
    "huber": {"delta": 1.5},
    "tweedie": {"power": 1.3},
    "expectedCost": {"costs": COSTS},
    "cost": {"costs": COSTS},
}


def case(name: str) -> tuple[Metric, Predictor, Tensor, Tensor]:
    """The metric of this name on data that it can be had on."""
    params = {"metricParams": PARAMS[name]} if name in PARAMS else {}
    if name in ("areaUnderROC", "areaUnderPR", "expectedCost", "cost"):
        return metric(name, BINARY, **params), BINARY, SCORE, Y2
    times = torch.stack([GUESS.log(), torch.full_like(GUESS, -0.3), (W > 0).to(W.dtype)], 1)
    heads = [(linear(), GUESS, REAL), (THREE, M3, Y3)]
    heads += [(survival(1), times, REAL), (one_vs_rest(1), torch.cat([M3, 2 * M3], 1), Y3)]
    for head, margin, y in heads:
        try:
            return metric(name, head, y.numpy(), **params), head, margin, y
        except InputError:
            continue
    pytest.fail(f"no predictor for {name}")
