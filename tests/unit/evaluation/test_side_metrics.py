"""Metrics that do not decide, against those that may, and scikit-learn's."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.evaluation.compatibility import SideMetrics, _Changes
from sparkdiff.evaluation.scores import Tally
from sparkdiff.objectives.losses import resolve as resolve_loss
from sparkdiff.objectives.metrics import resolve
from sparkdiff.options import Options
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.team import Team
from tests.support.small_heads import glr, linear, logistic, tensor
from tests.support.small_networks import one_vs_rest

RANDOM = np.random.default_rng(0)
N = 400
REGRESSION, CLASSIFIER = {"rmse", "mae", "r2"}, {"accuracy", "logLoss", "brier"}
HEADS = {
    "linear": (linear(), 0, REGRESSION),
    "poisson": (glr("poisson", "log"), 0, REGRESSION),
    "binomial": (glr("binomial", "logit"), 0, REGRESSION),
    "two classes": (logistic(threshold=0.3), 2, {*CLASSIFIER, "areaUnderROC"}),
    "softmax of two": (logistic(2, 2), 2, {*CLASSIFIER, "areaUnderROC"}),
    "three": (logistic(3, 3), 3, CLASSIFIER),
    "one vs rest": (one_vs_rest(3), 3, {"accuracy"}),
}


def both(heads: tuple[Predictor, Predictor], y: torch.Tensor, w: torch.Tensor, margins: list[torch.Tensor]) -> Any:
    """The metrics by two batches."""
    made, half = SideMetrics(*heads), len(y) // 2
    for rows in (slice(0, half), slice(half, None)):
        made.add(y[rows], w[rows], [margin[rows] for margin in margins])
    return made.values()


@pytest.mark.parametrize("far", [1.0, 60.0], ids=["", "sure"])  # sure: probabilities of 0 and 1 in float64
@pytest.mark.parametrize("kind", HEADS)
def test_each_equals_the_metric_of_its_name(kind: str, far: float) -> None:
    """All names that the summary and the report show, with weights."""
    head, classes, names = HEADS[kind]
    far = far if classes else 1.0
    shape = (N, head.margins) if head.margins else (N,)
    y = tensor(RANDOM.integers(0, classes, N) if classes else RANDOM.integers(0, 2, N))
    w, margins = tensor(RANDOM.uniform(0.1, 3, N)), [tensor(far * RANDOM.normal(size=shape).round(1)) for _ in range(2)]
    found = both((head, head), y, w, margins)
    assert found.keys() == names
    stats = LabelStats(0.5, 0.5, 0.0, 1.0, torch.bincount(y.long()))
    for name, (margin, side) in itertools.product(names, zip(margins, ("before", "after"), strict=True)):
        options = Options.of({"metric": name})
        columns = ("raw", "p", "prediction") if classes else ("prediction",)
        metric = resolve(options, resolve_loss("auto", {}, head, columns, stats), head, columns, stats)
        tally = Tally(metric, head)
        tally.add(margin, y, w, torch.arange(N) % MAX_BLOCKS)
        assert found[name][side] == pytest.approx(tally.score(Team()).value, rel=1e-9), name


def test_against_scikit_learn() -> None:
    y, w, margins = (
        tensor(RANDOM.integers(0, 2, N)),
        tensor(RANDOM.uniform(0.1, 3, N)),
        tensor(RANDOM.normal(size=(2, N))),
    )
    found = both((logistic(), logistic()), y, w, list(margins))
    for margin, side in zip(margins, ("before", "after"), strict=True):
        p = torch.sigmoid(margin)
        assert found["brier"][side] == pytest.approx(metrics.brier_score_loss(y, p, sample_weight=w))
        assert found["logLoss"][side] == pytest.approx(metrics.log_loss(y, p, sample_weight=w))
        assert found["accuracy"][side] == pytest.approx(metrics.accuracy_score(y, p > 0.5, sample_weight=w))
        assert found["areaUnderROC"][side] == pytest.approx(metrics.roc_auc_score(y, p, sample_weight=w))


def test_pipelines_of_two_kinds_have_the_metrics_of_both() -> None:
    y, w = tensor(RANDOM.integers(0, 3, N)), torch.ones(N, dtype=torch.float64)
    margin = tensor(RANDOM.normal(size=(N, 3)))
    assert both((logistic(3, 3), one_vs_rest(3)), y, w, [margin, margin]).keys() == {"accuracy"}


def test_a_metric_that_is_not_defined_is_left_out() -> None:
    flat, y = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    assert both((linear(), linear()), y, y, [flat, flat]).keys() == {"rmse", "mae"}  # no spread of labels, no r2
    assert "areaUnderROC" not in both((logistic(), logistic()), y, y, [flat, flat])
    assert both((linear(), linear()), y[:0], y[:0], [flat[:0], flat[:0]]) == {}


def test_a_histogram_of_changes() -> None:
    changes, r = _Changes(), np.random.default_rng(2)
    values = np.r_[r.normal(size=5000), 1e6, np.nan]
    changes.add(torch.as_tensor(values[:3000]))
    changes.add(torch.as_tensor(values[3000:]))
    found = changes.histogram()
    assert found is not None
    assert sum(found["counts"]) + found["outside"] == 5001  # the one that is not a number is left out
    assert found["outside"] == 50  # of 5,001, half a percent at each end
    assert -4 < found["edges"][0] < -2 and 2 < found["edges"][-1] < 4  # one far value does not flatten the rest
    still = _Changes()
    still.add(torch.zeros(10))
    assert still.histogram() is None
    one = _Changes()
    one.add(torch.tensor([0.0] * 999 + [2.0]))
    shown = one.histogram()
    assert shown is not None and (shown["edges"][0], shown["edges"][-1]) == (0.0, 2.0)
