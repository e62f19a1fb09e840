"""Metrics against scikit-learn, their influence against finite differences and DeLong's placements. No Spark session."""

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.errors import InputError
from sparkdiff.evaluation.scores import Tally
from sparkdiff.objectives.label_checks import check_label
from sparkdiff.objectives.metric import Metric, influence
from sparkdiff.objectives.metrics import of_predictions
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.team import Team
from tests.support.metric_cases import (
    BINARY,
    GUESS,
    M3,
    METRICS,
    PARAMS,
    REAL,
    SCORE,
    THREE,
    Y2,
    Y3,
    N,
    W,
    case,
    metric,
)
from tests.support.small_heads import COSTS, glr, linear, logistic, stats, tensor

Array = NDArray[np.float64]


def values(found: Metric, head: Predictor, margin: Tensor, y: Tensor, w: Tensor) -> tuple[float, Array]:
    """The metric, and what each row contributes, by the code that measures a split."""
    tally = Tally(found, head)
    finite = tally.add(margin, y, w, torch.arange(len(y)))
    assert bool(finite.all())
    score = tally.score(Team())
    assert score.sign == (-1.0 if found.larger else 1.0)
    assert score.weights[: len(y)].tolist() == w.tolist()
    np.testing.assert_equal(score.mean, score.sign * score.value)
    return score.value, (score.sign * score.blocks[: len(y)]).numpy()


def references() -> dict[str, Any]:
    m = pytest.importorskip("sklearn.metrics")
    found = M3.argmax(1).numpy()
    decided = (SCORE.numpy() > np.log(0.6 / 0.4)).astype(int)
    p = np.exp(M3.numpy()) / np.exp(M3.numpy()).sum(1, keepdims=True)
    y, g, y2, y3 = REAL.numpy(), GUESS.numpy(), Y2.numpy(), Y3.numpy()
    by = {"average": None, "zero_division": 0}
    weighted = {"average": "weighted", "zero_division": 0}

    def false_positives(w: Array) -> Array:
        c = m.confusion_matrix(y3, found, sample_weight=w)
        return (c.sum(0) - np.diag(c)) / (c.sum() - c.sum(1))  # type: ignore[no-any-return]

    scipy = pytest.importorskip("scipy.stats")
    weibull, seen = scipy.weibull_min(np.exp(0.3), scale=g), W.numpy() > 0
    surprise = -np.where(seen, weibull.logpdf(y) + np.log(y), weibull.logsf(y))  # of log(y), as Spark counts it
    own = 1 / (1 + np.exp(-2 * M3.numpy()))
    return {
        "weibull": lambda w: np.average(surprise, weights=w),
        "oneVsRest": lambda w: sum(m.log_loss(y3 == k, own[:, k], sample_weight=w) for k in range(3)),
        "rmse": lambda w: m.root_mean_squared_error(y, g, sample_weight=w),
        "mse": lambda w: m.mean_squared_error(y, g, sample_weight=w),
        "squared": lambda w: m.mean_squared_error(y, g, sample_weight=w),
        "mae": lambda w: m.mean_absolute_error(y, g, sample_weight=w),
        "absolute": lambda w: m.mean_absolute_error(y, g, sample_weight=w),
        "var": lambda w: np.average((g - np.average(y, weights=w)) ** 2, weights=w),
        "quantile": lambda w: m.mean_pinball_loss(y, g, alpha=0.9, sample_weight=w),
        "poisson": lambda w: m.mean_poisson_deviance(y, g, sample_weight=w) / 2,
        "poissonDeviance": lambda w: m.mean_poisson_deviance(y, g, sample_weight=w),
        "gamma": lambda w: m.mean_gamma_deviance(y, g, sample_weight=w) / 2,
        "tweedie": lambda w: m.mean_tweedie_deviance(y, g, power=1.3, sample_weight=w) / 2,
        "logLoss": lambda w: m.log_loss(y3, p, sample_weight=w),
        "brier": lambda w: m.brier_score_loss(y3, p, labels=range(3), sample_weight=w),
        "hinge": lambda w: m.hinge_loss(y3, M3.numpy(), sample_weight=w),
        "areaUnderROC": lambda w: m.roc_auc_score(y2, SCORE, sample_weight=w),
        "expectedCost": lambda w: np.average(np.array(COSTS)[y2.astype(int), decided], weights=w),
        "accuracy": lambda w: m.accuracy_score(y3, found, sample_weight=w),
        "hammingLoss": lambda w: m.hamming_loss(y3, found, sample_weight=w),
        "f1": lambda w: m.f1_score(y3, found, sample_weight=w, **weighted),
        "weightedFMeasure": lambda w: m.fbeta_score(y3, found, beta=0.5, sample_weight=w, **weighted),
        "weightedPrecision": lambda w: m.precision_score(y3, found, sample_weight=w, **weighted),
        "weightedRecall": lambda w: m.recall_score(y3, found, sample_weight=w, **weighted),
        "weightedTruePositiveRate": lambda w: m.recall_score(y3, found, sample_weight=w, **weighted),
        "weightedFalsePositiveRate": lambda w: np.average(
            false_positives(w), weights=m.confusion_matrix(y3, found, sample_weight=w).sum(1)
        ),
        "precisionByLabel": lambda w: m.precision_score(y3, found, sample_weight=w, **by)[2],
        "recallByLabel": lambda w: m.recall_score(y3, found, sample_weight=w, **by)[0],
        "truePositiveRateByLabel": lambda w: m.recall_score(y3, found, sample_weight=w, **by)[0],
        "falsePositiveRateByLabel": lambda w: false_positives(w)[0],
        "fMeasureByLabel": lambda w: m.fbeta_score(y3, found, beta=2.0, sample_weight=w, **by)[1],
    }


# The formula is Spark's own, or has no reference in scikit-learn; r2 and areaUnderPR are compared with Spark in tests/api.
OWN = {"r2", "areaUnderPR", "cost", "focal", "huber"}


@pytest.mark.parametrize("name", [n for n in METRICS if n not in OWN])
@pytest.mark.parametrize("weights", [torch.ones_like(W), W], ids=["unweighted", "weighted"])
def test_metrics_are_scikit_learns(name: str, weights: Tensor) -> None:
    found, head, margin, y = case(name)
    value, _ = values(found, head, margin, y, weights)
    assert value == pytest.approx(float(references()[name](weights.numpy())), rel=1e-12)


def test_r2_is_scikit_learns_without_weights() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    found, head, margin, y = case("r2")
    assert values(found, head, margin, y, torch.ones_like(y))[0] == pytest.approx(
        metrics.r2_score(y, margin), rel=1e-12
    )


def test_the_area_under_pr_by_hand() -> None:
    """Scores 3, 2, 2, 1; labels 1, 0, 1, 1: precision 1, 2/3, 3/4 at recall 1/3, 2/3, 1, and 1 at recall 0."""
    found = metric("areaUnderPR", BINARY)
    score, y = tensor([2.0, 3.0, 1.0, 2.0]), tensor([0.0, 1.0, 1.0, 1.0])
    expected = (1 + 1) / 2 / 3 + (1 + 2 / 3) / 2 / 3 + (2 / 3 + 3 / 4) / 2 / 3
    assert values(found, BINARY, score, y, torch.ones_like(y))[0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("weights", [torch.ones_like(W), W])
def test_the_brier_score_of_two_classes_is_of_the_second(weights: Tensor) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    expected = metrics.brier_score_loss(Y2, torch.sigmoid(SCORE), sample_weight=weights)
    softmax = torch.stack([torch.zeros_like(SCORE), SCORE], 1)
    for head, margin in ((BINARY, SCORE), (logistic(2, 2), softmax), (glr("binomial", "logit"), SCORE)):
        assert values(metric("brier", head), head, margin, Y2, weights)[0] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(InputError, match=r"holds 2.0, but brier on .* needs labels from 0 to 1"):
        check_label(metric("brier", head), head, stats([0.0, 2.0]), "y", None)


@pytest.mark.parametrize("name", [name for name in METRICS if name != "r2"])  # Spark's r2 doesn't count weights so
def test_a_weight_is_as_many_rows(name: str) -> None:
    found, head, margin, y = case(name)
    again = torch.arange(N).repeat_interleave(W.long())
    one, _ = values(found, head, margin, y, W)
    other, _ = values(found, head, margin[again], y[again], torch.ones(len(again), dtype=torch.float64))
    assert one == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_contributions_sum_to_the_metric_as_its_derivatives(name: str) -> None:
    """sum(w psi) = W T, and psi_i - mean = W dT/dw_i: moving weight to a row from all others moves T along it."""
    found, head, margin, y = case(name)
    value, sums = values(found, head, margin, y, W)
    assert sums.sum() / W.sum() == pytest.approx(value, rel=1e-12)
    total, step = float(W.sum()), 1e-4
    for i in (1, 2, 3, 7):
        if W[i] == 0:
            assert sums[i] == 0
            continue
        moved = []
        for sign in (1, -1):
            w = W * (1 - sign * step / total)
            w[i] = w[i] + sign * step
            moved.append(values(found, head, margin, y, w)[0])
        assert sums[i] / W[i] - value == pytest.approx(total * (moved[0] - moved[1]) / (2 * step), rel=1e-5, abs=1e-6)


def test_the_influence_on_auc_is_delongs_placements() -> None:
    found = metric("areaUnderROC", BINARY)
    value, psi = values(found, BINARY, SCORE, Y2, torch.ones_like(Y2))
    s, y = SCORE.numpy(), Y2.numpy() == 1
    wins = (s[y][:, None] > s[~y][None, :]) + 0.5 * (s[y][:, None] == s[~y][None, :])
    up, down = y.sum(), (~y).sum()
    expected = np.empty(N)
    expected[y] = wins.mean(1)  # V10: the share of the other class that a row beats
    expected[~y] = wins.mean(0)
    np.testing.assert_allclose((psi - value)[y] * up / N, expected[y] - value, atol=1e-13)
    np.testing.assert_allclose((psi - value)[~y] * down / N, expected[~y] - value, atol=1e-13)
    delong = expected[y].var(ddof=0) / up + expected[~y].var(ddof=0) / down
    assert psi.var() / N == pytest.approx(delong, rel=1e-12)


def test_influence_on_r2_through_the_origin_is_of_two_sums() -> None:
    kept = W > 0
    y, found, w = REAL[kept], GUESS[kept], W[kept]
    metric = of_predictions("r2", {"throughOrigin": True})
    errors, squares = (w * (y - found) ** 2).sum(), (w * y**2).sum()
    psi = 1 - errors / squares + w.sum() * (errors * y**2 / squares - (y - found) ** 2) / squares
    torch.testing.assert_close(influence(metric, found, y, w), psi, rtol=1e-12, atol=1e-12)
    assert float((w * psi).sum() / w.sum()) == pytest.approx(float(1 - errors / squares), rel=1e-12)
    assert bool(influence(metric, found, torch.zeros_like(y), w).isnan().all())
    around = float(influence(of_predictions("r2", {}), found, y, w).sum())
    assert around != pytest.approx(float(psi.sum()))


@pytest.mark.parametrize("name", [n for n in METRICS if n not in ("cost", "focal", "huber", "hinge")])
def test_the_direction_is_the_field_s(name: str) -> None:
    smaller = {
        *("rmse", "mse", "mae", "squared", "absolute", "quantile", "poisson", "gamma", "tweedie", "poissonDeviance"),
        *("logLoss", "hammingLoss", "weightedFalsePositiveRate", "falsePositiveRateByLabel", "expectedCost"),
        *("brier", "weibull", "oneVsRest"),
    }
    found = case(name)[0]
    assert found.name == name
    assert found.direction == ("smaller" if name in smaller else "larger")


# Edges ----------------------------------------------------------------------------------------------------------------


def test_a_softmax_of_two_classes_is_ranked_by_its_probability() -> None:
    head = logistic(2, 2)
    m = torch.stack([SCORE.flip(0), SCORE], 1)
    found, one = (metric("areaUnderROC", h) for h in (head, BINARY))
    expected, _ = values(one, BINARY, m[:, 1] - m[:, 0], Y2, W)
    assert values(found, head, m, Y2, W)[0] == expected


def test_a_binomial_regression_is_ranked_by_its_mean() -> None:
    head = glr("binomial", "cloglog")
    expected, _ = values(metric("areaUnderROC", BINARY), BINARY, SCORE, Y2, W)
    found = metric("areaUnderROC", head)
    assert values(found, head, SCORE, Y2, W)[0] == pytest.approx(expected, rel=1e-12)
    check_label(found, head, stats(Y2), "y")
    for labels, fractional, sentence in (([0.0, 2.0], None, "holds 2.0"), ([0.0, 0.5], 0.5, "holds 0.5")):
        with pytest.raises(InputError, match=f"{sentence}, but areaUnderROC on .* needs class indices 0 to 1"):
            check_label(found, head, stats(labels), "y", fractional)


def test_scores_that_are_all_equal_are_chance() -> None:
    flat = torch.zeros_like(Y2)
    assert values(metric("areaUnderROC", BINARY), BINARY, flat, Y2, W)[0] == 0.5
    share = float((Y2 * W).sum() / W.sum())
    assert values(metric("areaUnderPR", BINARY), BINARY, flat, Y2, W)[0] == pytest.approx(share)


@pytest.mark.parametrize(
    ("name", "head", "margin", "y", "params"),
    [
        ("areaUnderROC", BINARY, SCORE, torch.ones_like(Y2), {}),
        ("areaUnderROC", BINARY, SCORE, torch.zeros_like(Y2), {}),
        ("areaUnderPR", BINARY, SCORE, torch.zeros_like(Y2), {}),
        ("r2", linear(), GUESS, torch.full_like(REAL, 3.0), {}),
        ("recallByLabel", THREE, M3, Y3.clamp_max(1.0), {"metricLabel": 2}),
        ("precisionByLabel", THREE, M3, Y3.clamp_max(1.0), {"metricLabel": 2}),
        ("falsePositiveRateByLabel", THREE, M3, torch.ones_like(Y3), {"metricLabel": 1}),
        ("weightedFalsePositiveRate", THREE, M3, torch.ones_like(Y3), {}),
    ],
)
def test_what_is_undefined_is_nan_and_says_what_it_needs(
    name: str, head: Predictor, margin: Tensor, y: Tensor, params: dict[str, Any]
) -> None:
    found = metric(name, head, (0.0, 1.0, 2.0), metricParams=params)
    value, _ = values(found, head, margin, y, W)
    assert np.isnan(value)
    assert found.needs


@pytest.mark.parametrize(
    "name", ["f1", "weightedPrecision", "weightedRecall", "weightedFMeasure", "fMeasureByLabel", "accuracy"]
)
def test_a_class_without_rows_or_predictions_counts_nothing(name: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    margin, y = M3.clone(), Y3.clamp_max(1.0)  # class 2 is never right
    margin[:, 0] = -9.0  # and class 0 never predicted
    value, sums = values(metric(name, THREE, (0.0, 1.0, 2.0)), THREE, margin, y, W)
    found, w = margin.argmax(1), W.numpy()
    weighted = {"average": "weighted", "zero_division": 0, "sample_weight": w}
    expected = {
        "f1": lambda: metrics.f1_score(y, found, **weighted),
        "weightedPrecision": lambda: metrics.precision_score(y, found, **weighted),
        "weightedRecall": lambda: metrics.recall_score(y, found, **weighted),
        "weightedFMeasure": lambda: metrics.f1_score(y, found, **weighted),
        "fMeasureByLabel": lambda: 0.0,
        "accuracy": lambda: metrics.accuracy_score(y, found, sample_weight=w),
    }[name]()
    assert value == pytest.approx(expected, rel=1e-12)
    assert np.isfinite(sums).all()


def test_a_perfect_fit() -> None:
    assert values(metric("rmse", linear()), linear(), REAL, REAL, W)[0] == pytest.approx(0, abs=1e-140)
    assert values(metric("r2", linear()), linear(), REAL, REAL, W)[0] == 1.0
    for name, best in (("accuracy", 1.0), ("f1", 1.0), ("hammingLoss", 0.0)):
        right = 9 * torch.nn.functional.one_hot(Y3.long(), 3).to(torch.float64)
        assert values(metric(name, THREE), THREE, right, Y3, W)[0] == pytest.approx(best, rel=1e-15)


@pytest.mark.parametrize("name", ["areaUnderROC", "accuracy", "expectedCost", "logLoss", "brier"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_network_that_has_diverged_has_no_metric(name: str, wrong: float) -> None:
    """Spark would show a class for NaN, and a candidate that predicts one class for NaN mustn't win."""
    found = metric(name, BINARY, metricParams=PARAMS.get(name, {}))
    m = SCORE.clone()
    m[3] = wrong
    for weight, finite in ((1.0, False), (0.0, True)):
        tally, w = Tally(found, BINARY), torch.ones_like(Y2)
        w[3] = weight
        assert bool(tally.add(m, Y2, w, torch.arange(N)).all()) is finite
        value = tally.score(Team()).mean
        if finite or np.isnan(wrong):
            assert np.isfinite(value) == finite


def test_an_empty_split_has_no_metric() -> None:
    found, empty = metric("areaUnderROC", BINARY), torch.empty(0, dtype=torch.float64)
    assert influence(found, empty, empty, empty).shape == (0,)


# Which metric ---------------------------------------------------------------------------------------------------------


def batch_loss(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    return ((outputs["prediction"] - label) ** 2).mean()


@pytest.mark.parametrize(
    ("given", "head", "name"),
    [
        ({}, linear(), "squared"),
        ({"loss": "quantile"}, linear(), "quantile"),
        ({"loss": "auc"}, BINARY, "areaUnderROC"),
        ({"loss": "cost", "lossParams": {"costs": COSTS}}, BINARY, "expectedCost"),
        ({"loss": "focal"}, BINARY, "focal"),
        ({"loss": {"squared": 1, "absolute": 2}}, linear(), "1 squared + 2 absolute"),
        ({"loss": {"logLoss": 1, "mmce": 2}, "metric": "f1"}, BINARY, "f1"),
        ({"loss": batch_loss, "metric": "rmse"}, linear(), "rmse"),
    ],
)
def test_the_metric_of_a_loss(given: dict[str, Any], head: Predictor, name: str) -> None:
    assert metric(given.pop("metric", None), head, **given).name == name


@pytest.mark.parametrize(
    ("given", "head", "sentence"),
    [
        ({"loss": "mmce"}, BINARY, "the loss mmce is not a mean over rows.*set metric"),
        ({"loss": {"logLoss": 1, "mmce": 2}}, BINARY, r"the loss 1 logLoss \+ 2 mmce is not a mean over rows"),
        ({"loss": batch_loss}, linear(), "batch_loss is not a mean over rows"),
        ({"metricParams": {"beta": 1}}, linear(), r"metricParams \['beta'\] have no metric"),
        ({"metric": "areaUnderROC"}, THREE, "needs two classes, but LogisticRegression predicts 3 classes"),
        ({"metric": "areaUnderPR"}, linear(), "needs two classes, but LinearRegression predicts numbers"),
        ({"metric": "f1"}, glr("binomial", "logit"), "metric='f1' needs classes"),
        ({"metric": "expectedCost"}, linear(), "metric='expectedCost' needs classes"),
        ({"metric": "expectedCost"}, BINARY, "metric='expectedCost' needs costs, a list of 2 rows.*Got None"),
        (
            {"metric": "rmse"},
            BINARY,
            "measures numbers, but LogisticRegression predicts classes; use one of logLoss, areaUnder",
        ),
        ({"metric": "rmse"}, THREE, "use one of logLoss, f1"),
        ({"metric": "poissonDeviance"}, BINARY, "metric='poissonDeviance'|loss='poisson' on LogisticRegression"),
        ({"metric": "logLoss"}, linear(), "metric='logLoss': .* needs probabilities"),
        ({"metric": "huber"}, linear(), "'delta'.*Got None"),
        (
            {"metric": "f1", "metricParams": {"beta": 2}},
            BINARY,
            r"\['beta'\] are unknown to the metric 'f1'; it takes none",
        ),
        ({"metric": "weightedFMeasure", "metricParams": {"beta": 0}}, BINARY, "'beta': > 0.*Got 0.0"),
        ({"metric": "recallByLabel", "metricParams": {"metricLabel": 2}}, BINARY, "'metricLabel': 0 to 1.*Got 2.0"),
        ({"metric": "recallByLabel", "metricParams": {"metricLabel": [1]}}, BINARY, r"Got \[1.0\]"),
        ({"metric": "expectedCalibrationError"}, BINARY, "can't decide: chance makes .* to logLoss or brier"),
        ({"metric": "brier"}, linear(), "metric='brier' measures probabilities, which LinearRegression doesn't output"),
    ],
)
def test_metrics_that_cannot_be_had(given: dict[str, Any], head: Predictor, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        metric(given.pop("metric", None), head, **given)


def test_a_metric_without_parameters_has_those_of_the_loss() -> None:
    y, m, one = tensor([0.0, 10.0]), tensor([1.0, 0.0]), torch.ones(2, dtype=torch.float64)

    def pinball(**given: Any) -> float:
        return values(metric("quantile", linear(), **given), linear(), m, y, one)[0]

    assert pinball(loss="quantile", lossParams={"tau": 0.9}) == pytest.approx((0.1 + 9) / 2)
    assert pinball(loss="quantile", lossParams={"tau": 0.9}, metricParams={"tau": 0.1}) == pytest.approx((0.9 + 1) / 2)
    assert pinball() == pytest.approx(11 / 4)
    plain, _ = values(metric("logLoss", BINARY), BINARY, SCORE, Y2, W)
    named = metric("logLoss", BINARY, loss="logLoss", lossParams={"classWeights": [1, 9]})
    assert values(named, BINARY, SCORE, Y2, W)[0] == plain  # Spark's logLoss, as its name says
    itself = metric(None, BINARY, loss="logLoss", lossParams={"classWeights": [1, 9]})
    assert values(itself, BINARY, SCORE, Y2, W)[0] > 2 * plain


# Several processes ----------------------------------------------------------------------------------------------------


class Threads:
    """Sums over threads in place of processes."""

    def __init__(self, world: int):
        self.world, self.barrier, self.given = world, threading.Barrier(world), [torch.empty(0)] * world

    def sum_(self, rank: int, tensor: Tensor) -> None:
        self.given[rank] = tensor.clone()
        self.barrier.wait(10)
        tensor.copy_(torch.stack(self.given).sum(0))
        self.barrier.wait(10)


@dataclasses.dataclass(frozen=True)
class FakeTeam(Team):
    threads: Threads | None = None

    def sum_(self, *tensors: Tensor) -> None:
        for x in tensors:
            assert self.threads is not None
            self.threads.sum_(self.rank, x)


@pytest.mark.parametrize("name", ["areaUnderROC", "mse", "f1", "brier"])
def test_any_number_of_processes_measures_the_same(name: str) -> None:
    found, head, margin, y = case(name)
    block = torch.arange(N) % 7
    alone = Tally(found, head)
    alone.add(margin, y, W, block)
    expected, threads, scores = alone.score(Team()), Threads(3), {}

    def work(rank: int) -> None:
        tally, mine = (
            Tally(found, head),
            (torch.arange(N) >= 20 * rank) & (torch.arange(N) < (20, N, 0)[rank]),
        )  # 20, 60, none
        if rank < 2:
            tally.add(margin[mine], y[mine], W[mine], block[mine])
        scores[rank] = tally.score(FakeTeam(rank, 3, threads))

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(20)
    assert sorted(scores) == [0, 1, 2]
    for score in scores.values():
        assert torch.equal(score.blocks, scores[0].blocks)
        np.testing.assert_allclose(score.blocks, expected.blocks, rtol=1e-12, atol=1e-13)
        np.testing.assert_array_equal(score.weights, expected.weights)
        assert len(score.blocks) == MAX_BLOCKS


def test_gather_keeps_order_types_and_bits() -> None:
    threads, parts, found = Threads(3), [torch.arange(2), torch.arange(0), torch.tensor([7])], {}
    wild = [tensor([[np.nan, 1e-320]]), tensor(np.empty((0, 2))), tensor([[-np.inf, 1e308]])]

    def work(rank: int) -> None:
        team = FakeTeam(rank, 3, threads)
        found[rank] = (team.gather(parts[rank]), team.gather(wild[rank]))

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(20)
    for whole, odd in found.values():
        assert whole.tolist() == [0, 1, 7]
        assert whole.dtype == torch.int64
        np.testing.assert_array_equal(odd, [[np.nan, 1e-320], [-np.inf, 1e308]])
    assert len(found) == 3
