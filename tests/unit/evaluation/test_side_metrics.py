"""Metrics that do not decide, against scikit-learn's."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from sklearn import metrics

from sparkdiff.evaluation.compatibility import _Changes
from sparkdiff.evaluation.side_metrics import SideMetrics, area_under_roc


def both(classes: int, label: np.ndarray, weight: np.ndarray, shown: list[tuple]) -> dict[str, dict[str, float]]:
    """The metrics by two batches."""
    made, half = SideMetrics(classes, labelled=True), len(label) // 2
    for rows in (slice(0, half), slice(half, None)):
        cut = [tuple(None if t is None else torch.as_tensor(t[rows]) for t in s) for s in shown]
        made.add(torch.as_tensor(label[rows]), torch.as_tensor(weight[rows]), cut)
    return made.values()


def test_of_a_regression() -> None:
    r = np.random.default_rng(0)
    y, w, old, new = r.normal(size=200), r.uniform(0.1, 3, 200), r.normal(size=200), r.normal(size=200)
    found = both(0, y, w, [(old, old, None), (new, new, None)])
    assert found.keys() == {"rmse", "mae", "r2"}
    for side, score in (("before", old), ("after", new)):
        assert found["rmse"][side] == pytest.approx(metrics.mean_squared_error(y, score, sample_weight=w) ** 0.5)
        assert found["mae"][side] == pytest.approx(metrics.mean_absolute_error(y, score, sample_weight=w))
        assert found["r2"][side] == pytest.approx(metrics.r2_score(y, score, sample_weight=w))


@pytest.mark.parametrize("classes", [2, 4])
def test_of_a_classifier(classes: int) -> None:
    r = np.random.default_rng(1)
    y, w = r.integers(0, classes, 300).astype(float), r.uniform(0.1, 3, 300)
    p = [r.dirichlet(np.ones(classes), 300).round(2) for _ in range(2)]  # rounded, so that scores tie
    p = [(q + 0.01) / (q + 0.01).sum(1, keepdims=True) for q in p]
    shown = [(q[:, 1] if classes == 2 else q.max(1), q.argmax(1).astype(float), q) for q in p]
    found = both(classes, y, w, shown)
    assert found.keys() == {"accuracy", "logLoss", "brier", *(["areaUnderROC"] if classes == 2 else [])}
    for side, q in zip(("before", "after"), p, strict=True):
        labels = [*range(classes)]
        assert found["accuracy"][side] == pytest.approx(metrics.accuracy_score(y, q.argmax(1), sample_weight=w))
        assert found["logLoss"][side] == pytest.approx(metrics.log_loss(y, q, sample_weight=w, labels=labels))
        right = np.eye(classes)[y.astype(int)]
        assert found["brier"][side] == pytest.approx(np.average(((q - right) ** 2).sum(1), weights=w))
        if classes == 2:
            assert found["areaUnderROC"][side] == pytest.approx(metrics.roc_auc_score(y, q[:, 1], sample_weight=w))


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, -3.0]), st.booleans()), min_size=2, max_size=30))
def test_the_area_counts_ties_by_half(rows: list[tuple[float, bool]]) -> None:
    score, positive = np.array([s for s, _ in rows]), np.array([p for _, p in rows])
    found = area_under_roc(torch.as_tensor(score), torch.as_tensor(positive).double(), torch.ones(len(rows)))
    if positive.all() or not positive.any():
        assert found is None
    else:
        assert found == pytest.approx(metrics.roc_auc_score(positive, score))


def test_what_is_not_defined_is_left_out() -> None:
    flat, y = np.zeros(6), np.ones(6)
    assert both(0, y, y, [(flat, flat, None)] * 2).keys() == {"rmse", "mae"}  # no spread of labels, no r2
    only = np.column_stack([flat, y])
    assert "areaUnderROC" not in both(2, y, y, [(y, y, only)] * 2)
    made = SideMetrics(3, labelled=False)
    made.add(torch.ones(2), torch.ones(2), [(torch.ones(2), torch.ones(2), None)] * 2)
    assert made.values() == {}


def test_a_histogram_of_changes() -> None:
    changes, r = _Changes(), np.random.default_rng(2)
    values = np.r_[r.normal(size=5000), 1e6, np.nan]
    changes.add(torch.as_tensor(values[:3000]))
    changes.add(torch.as_tensor(values[3000:]))
    found = changes.histogram()
    assert found is not None
    assert sum(found["counts"]) == 5001  # the one that is not a number is left out
    assert -4 < found["edges"][0] < -2 and 2 < found["edges"][-1] < 4  # one far value does not flatten the rest
    still = _Changes()
    still.add(torch.zeros(10))
    assert still.histogram() is None
    one = _Changes()
    one.add(torch.tensor([0.0] * 999 + [2.0]))
    shown = one.histogram()
    assert shown is not None and (shown["edges"][0], shown["edges"][-1]) == (0.0, 2.0)
