"""Losses of rows, beside scikit-learn's and the formulas that training uses, without Spark."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor

from sparkdiff import InputError
from sparkdiff.objectives.formulas import focal
from sparkdiff.tuning.mean_loss import MeanLoss


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = np.random.default_rng(seed)
    found = (random.gamma(2, 1, 50), random.poisson(2, 50) + 0.5, random.integers(0, 3, 50))
    mu, y, w = (torch.from_numpy(np.asarray(x, np.float64)) for x in found)
    return mu, y, w


@pytest.mark.parametrize(
    ("name", "power"), [("poisson", 1.0), ("gamma", 2.0), ("tweedie", 1.5), ("tweedie", 3.0), ("poissonDeviance", 1.0)]
)
def test_deviances_are_half_of_scikit_learns(name: str, power: float) -> None:
    mu, y, w = drawn()
    params = {"power": power} if name == "tweedie" else {}
    theirs = metrics.mean_tweedie_deviance(y, mu, sample_weight=w, power=power)
    half = 1.0 if name == "poissonDeviance" else 0.5
    assert MeanLoss(name, "p", "y", "w", params).value(mu, y, w) == pytest.approx(half * theirs, rel=1e-12)


def test_other_losses() -> None:
    mu, y, w = drawn()
    one = torch.ones_like(w)
    assert MeanLoss("quantile", "p", "y", params={"tau": 0.8}).value(mu, y, w) == pytest.approx(
        metrics.mean_pinball_loss(y, mu, alpha=0.8, sample_weight=w)
    )
    off = (mu - y).abs()
    huber = torch.where(off < 0.5, off**2 / 2, 0.5 * (off - 0.25)).mean()
    assert MeanLoss("huber", "p", "y", params={"delta": 0.5}).value(mu, y, one) == pytest.approx(float(huber))
    label, share = (y > 2).double(), torch.sigmoid(mu - 2)
    theirs = metrics.log_loss(label, share, sample_weight=w)
    assert MeanLoss("logLoss", "p", "y").value(share, label, w) == pytest.approx(theirs)
    margins = torch.stack([2 - mu, mu - 2], 1)
    theirs = metrics.hinge_loss(label, mu - 2, sample_weight=w)
    assert MeanLoss("hinge", "p", "y").value(margins, label, w) == pytest.approx(theirs)
    certain = MeanLoss("logLoss", "p", "y").value(label, label, one)
    assert certain == 0.0


def test_probabilities_give_what_margins_give_in_training() -> None:
    _, y, w = drawn()
    y = (y - 0.5).clamp(max=2)
    margin = torch.from_numpy(np.random.default_rng(1).normal(size=(len(y), 3))) * 3
    p = margin.softmax(1)
    found = MeanLoss("focal", "p", "y", params={"gamma": 1.5}).rows(p, y)
    torch.testing.assert_close(found, focal(margin, y, 1.5), rtol=1e-12, atol=1e-14)
    theirs = metrics.log_loss(y, p, sample_weight=w)
    assert MeanLoss("focal", "p", "y", params={"gamma": 0.0}).value(p, y, w) == pytest.approx(theirs)
    came = np.eye(3)[y.long().numpy()]
    squares = np.average(((p.numpy() - came) ** 2).sum(1), weights=w.numpy())
    assert MeanLoss("brier", "p", "y").value(p, y, w) == pytest.approx(squares)

    two, label = margin[:, 0], (y > 0).double()
    sure = torch.stack([torch.sigmoid(-two), torch.sigmoid(two)], 1)
    for p in (sure, sure[:, 1]):
        found = MeanLoss("focal", "p", "y", params={"gamma": 2.0}).rows(p, label)
        torch.testing.assert_close(found, focal(two, label, 2.0), rtol=1e-9, atol=1e-14)
        theirs = metrics.brier_score_loss(label, sure[:, 1], sample_weight=w)
        assert MeanLoss("brier", "p", "y").value(p, label, w) == pytest.approx(theirs)
        weighted = MeanLoss("logLoss", "p", "y", params={"classWeights": [1.0, 4.0]}).rows(p, label)
        torch.testing.assert_close(weighted, (1 + 3 * label) * focal(two, label, 0.0))
    certain = MeanLoss("focal", "p", "y", params={"gamma": 2.0}).rows(label, label)
    assert not certain.any()


def test_costs_of_predicted_classes() -> None:
    costs = [[0.0, 1.0, 2.0], [5.0, 0.0, 1.0], [9.0, 3.0, 0.0]]
    found, y = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 2.0, 2.0])
    loss = MeanLoss("expectedCost", "p", "y", params={"costs": costs})
    assert loss.rows(found.double(), y.double()).tolist() == [1.0, 9.0, 0.0]
    assert np.isnan(loss.value(torch.full((3,), torch.nan), y, torch.ones(3)))
    with pytest.raises(InputError, match="metric='expectedCost' needs costs, a list of 2 rows"):
        MeanLoss("expectedCost", "p", "y")
    with pytest.raises(InputError, match="numbers >= 0"):
        MeanLoss("expectedCost", "p", "y", params={"costs": [[0, 1], [-1, 0]]})


def test_a_floor_is_the_one_of_training() -> None:
    mu, y, _ = drawn()
    below = MeanLoss("poisson", "p", "y", params={"floor": 0.5})
    assert float(below.rows(-mu, y).min()) > float(below.rows(torch.full_like(mu, 0.5), y).min())
    assert below.value(mu + 1, y, torch.ones_like(y)) == MeanLoss("poisson", "p", "y").value(
        mu + 1, y, torch.ones_like(y)
    )


def test_rows_of_weight_0_count_nowhere() -> None:
    mu, y, _ = drawn()
    broken, w = mu.clone(), torch.ones_like(mu)
    broken[3], w[3] = torch.nan, 0.0
    assert MeanLoss("poisson", "p", "y", "w").value(broken, y, w) == MeanLoss("poisson", "p", "y", "w").value(mu, y, w)
    assert np.isnan(MeanLoss("poisson", "p", "y").value(broken, y, torch.ones_like(mu)))


def test_what_cannot_be_measured() -> None:
    with pytest.raises(
        InputError, match="metric='oneVsRest' can't be computed of the columns that a pipeline writes: set metric to"
    ):
        MeanLoss("oneVsRest", "p", "y")
    with pytest.raises(InputError, match="power"):
        MeanLoss("tweedie", "p", "y")
